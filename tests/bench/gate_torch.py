#!/usr/bin/env python3
"""Routing in PyTorch: softmax, top-k, dispatch and combine with experts that change nothing, forward and backward.

    gate_torch.py [--threads 2] [--width 1024] [--only 'T=8192 E=32 k=2'] [--no-onehot] [--json]

sort      rows sorted by expert, index_select, weights, index_add: what libraries without a capacity do
onehot    masks [T, E, C] and einsum, room for C = k T / E tokens per expert: GShard, DeepSpeed
The shapes are those of `moec bench gate`.  Milliseconds, the median of 7 (onehot: as many as 20 seconds allow, at least one).
"""
import argparse
import json
import os
import statistics
import sys
import time

import torch


def choose(z, k):
    w, e = torch.softmax(z, -1).topk(k)
    return (w / w.sum(-1, keepdim=True) if k > 1 else w), e


def by_sort(x, z, k):
    w, e = choose(z, k)
    slot = torch.argsort(e.reshape(-1), stable=True)
    token = slot // k
    rows = x.index_select(0, token)                        # what experts read and, here, write
    return torch.zeros_like(x).index_add(0, token, rows * w.reshape(-1).index_select(0, slot)[:, None])


def by_onehot(x, z, k):
    w, e = choose(z, k)
    experts = z.shape[1]
    room = max(k * x.shape[0] // experts, 1)
    combine, before = 0, 0
    for j in range(k):
        mask = torch.nn.functional.one_hot(e[:, j], experts)
        place = mask.cumsum(0) - 1 + before
        before = before + mask.sum(0, keepdim=True)
        mask = mask * (place < room)
        place = torch.nn.functional.one_hot((place * mask).sum(1), room).to(x.dtype)
        combine = combine + torch.einsum("te,tc->tec", w[:, j : j + 1] * mask, place)
    rows = torch.einsum("tec,td->ecd", (combine > 0).to(x.dtype), x)
    return torch.einsum("tec,ecd->td", combine, rows)


def milliseconds(f, x, z, k, dy, most):
    took, begin = [], time.perf_counter()
    while not took or (len(took) < 8 and time.perf_counter() - begin < most):
        x.grad = z.grad = None
        start = time.perf_counter()
        f(x, z, k).backward(dy)
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took[1:] or took)             # the first touches its memory


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--width", type=int, default=1024)
    p.add_argument("--only", default="")
    p.add_argument("--no-onehot", action="store_true")
    p.add_argument("--json", action="store_true")
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    rows = []
    for tokens in (1024, 2048, 4096, 8192):
        for experts in (8, 32, 128):
            for k in (1, 2, 8):
                name = f"T={tokens} E={experts} k={k}"
                if o.only not in name:
                    continue
                x, z = torch.randn(tokens, o.width, requires_grad=True), torch.randn(tokens, experts, requires_grad=True)
                dy = torch.randn(tokens, o.width)
                row = {"gate": name, "threads": o.threads, "sort_ms": milliseconds(by_sort, x, z, k, dy, 20)}
                fits = tokens * k * tokens * 4 <= 1 << 30  # the mask
                row["onehot_ms"] = milliseconds(by_onehot, x, z, k, dy, 20) if fits and not o.no_onehot else None
                rows.append(row)
                if not o.json:
                    onehot = f"{row['onehot_ms']:10.1f}" if row["onehot_ms"] else "         -"
                    print(f"{name:22} sort {row['sort_ms']:9.2f} ms   onehot {onehot} ms", flush=True)
    if not rows:
        p.error(f"--only '{o.only}' is part of no name, such as 'T=8192 E=32 k=2'")
    if o.json:
        print(json.dumps({"torch": torch.__version__, "width": o.width, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
