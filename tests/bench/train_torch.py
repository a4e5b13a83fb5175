#!/usr/bin/env python3
"""Training steps of Hugging Face Mixtral under PyTorch, with the shapes of tiny_mixtral and bench_m30.

    train_torch.py --out FILE.jsonl [--models tiny_mixtral,bench_m30] [--variants grouped_mm:f32,...] [--threads 2]
    train_torch.py --list

A variant is EXPERTS[+compile]:DTYPE with EXPERTS one of eager, batched_mm, grouped_mm and DTYPE f32 or bf16 (autocast).
Each runs in a process of its own, so that its peak of memory is its own, and adds one line to FILE; what FILE holds
already is not run again.  A step is forward with the balancing loss, backward, clipping to 1 and fused AdamW on random
ids; the rate is the median of 20 steps after 5.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

MODELS = {
    "tiny_mixtral": dict(batch=16, sequence=256, vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False),
    "bench_m30": dict(batch=8, sequence=256, vocab_size=8192, hidden_size=384, intermediate_size=512, num_hidden_layers=6,
                      num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True),
}
EXPERTS, TOP_K = 8, 2
VARIANTS = [f"{e}{c}:{d}" for d in ("f32", "bf16") for c in ("", "+compile") for e in ("eager", "grouped_mm", "batched_mm")]
WARMUP, STEPS = 5, 20


def forward_flops(m):
    """What MFU counts: products of chosen experts, the half of attention that is causal."""
    d, heads, kv, layers = m["hidden_size"], m["num_attention_heads"], m["num_key_value_heads"], m["num_hidden_layers"]
    head = d // heads
    layer = 2 * d * head * (2 * heads + 2 * kv) + 2 * d * EXPERTS + TOP_K * 6 * d * m["intermediate_size"]
    layer += 4 * heads * head * (m["sequence"] + 1) / 2
    return m["batch"] * m["sequence"] * (layers * layer + 2 * d * m["vocab_size"])


def peak_megabytes():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def run_one(model_name, variant, threads):
    import torch
    import transformers
    from transformers import MixtralConfig, MixtralForCausalLM

    experts, dtype = variant.split(":")
    experts, _, compiled = experts.partition("+")
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    shape = dict(MODELS[model_name])
    batch, sequence = shape.pop("batch"), shape.pop("sequence")
    config = MixtralConfig(**shape, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, router_aux_loss_coef=0.01,
                           output_router_logits=True, max_position_embeddings=4096, sliding_window=None, use_cache=False,
                           attn_implementation="sdpa", pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config._experts_implementation = experts
    model = MixtralForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model

    def step():
        ids = torch.randint(0, config.vocab_size, (batch, sequence))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    for _ in range(WARMUP - 1):
        step()
    took = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        loss = step()
        took.append(time.perf_counter() - begin)
    median, tokens = statistics.median(took), batch * sequence
    return {"model": model_name, "variant": variant, "threads": threads, "torch": torch.__version__,
            "transformers": transformers.__version__, "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_s": tokens / median, "step_ms": 1e3 * median, "gflop_s": 3 * forward_flops(MODELS[model_name]) / median / 1e9,
            "peak_mb": peak_megabytes(), "first_step_s": first, "loss": loss.item()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="train_torch.jsonl")
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--timeout", type=int, default=600, help="seconds for one variant")
    p.add_argument("--again", action="store_true", help="run what the file holds already once more")
    p.add_argument("--list", action="store_true")
    p.add_argument("--one", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.list:
        print("\n".join(VARIANTS))
        return 0
    if o.one:
        print(json.dumps(run_one(*o.one, o.threads)))
        return 0
    models, variants = o.models.split(","), o.variants.split(",")
    for name, known in [(m, MODELS) for m in models] + [(v, VARIANTS) for v in variants]:
        if name not in known:
            p.error(f"there is no '{name}'; there are {', '.join(known)}")
    done = set()
    if os.path.exists(o.out) and not o.again:
        with open(o.out) as f:
            done = {(r["model"], r["variant"], r["threads"]) for r in map(json.loads, f)}
    failed = 0
    for model in models:
        for variant in variants:
            if (model, variant, o.threads) in done:
                continue
            command = [sys.executable, os.path.abspath(__file__), "--one", model, variant, "--threads", str(o.threads)]
            try:
                r = subprocess.run(command, capture_output=True, text=True, timeout=o.timeout)
                why = "" if r.returncode == 0 else (r.stderr.strip().splitlines() or [f"status {r.returncode}"])[-1]
            except subprocess.TimeoutExpired:
                why = f"took over {o.timeout} s"
            if why:
                print(f"{model:14} {variant:22} failed: {why}", file=sys.stderr)
                failed += 1
                continue
            result = json.loads(r.stdout.splitlines()[-1])
            with open(o.out, "a") as f:
                f.write(json.dumps(result) + "\n")
            print(f"{model:14} {variant:22} {result['tokens_s']:9.0f} tokens/s {result['gflop_s']:7.1f} GFLOP/s {result['peak_mb']:7.0f} MB",
                  flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
