#!/usr/bin/env bash
# A full disk, a folder that cannot be written, numbers that are none: told in words, and nothing that was whole is lost.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=20 steps' --set 'train.save_every=5 steps')
whole() { "$MOEC" eval "$1" --quiet; }             # a checkpoint is whole if it can be read

# ---- full disk: files may not grow beyond a size
claim 'a run of 20 steps' train "$work/whole" "${steps[@]}"
claim 'a run that was stopped' train "$work/full" "${steps[@]}" --set 'train.stop=5 steps'
full() { (ulimit -f 200; trap '' XFSZ; train "$work/full" "${steps[@]}" "$@"); }      # 200 KiB: less than the weights
exits 1 'the disk is full when it saves again' full --resume
says 'step 10.*(File too large|No space left)' 'and says what failed, and why'
claim 'the older checkpoint is whole' whole "$work/full"
claim 'and the only one' test "$(ls "$work/full/ckpt")" = "$(printf 'latest\nstep-00000005')"
claim 'nothing half-written is left' test -z "$(find "$work/full" -name '*tmp*')"
claim 'gone on with when there is space' train "$work/full" "${steps[@]}" --resume
claim 'it has the bits of one go' same_weights "$work/whole" "$work/full"

# a file system of its own, where there may be one
mkdir "$work/small"
if mount -t tmpfs -o size=2500k tmpfs "$work/small" 2>/dev/null; then
    exits 1 'a small disk fills up' train "$work/small/run" "${steps[@]}" --set train.keep=99
    says 'No space left' 'and says so'
    claim 'what was saved before is whole' whole "$work/small/run"
    umount "$work/small"
else skip 'a small disk: mount is not allowed'; fi

# wherever in a save it happens, that checkpoint alone is lost
for point in save save-tensors save-file save-manifest save-rename; do
    MOEC_FAULT=fail@$point,step=10 exits 0 "no space at $point: trained" train "$work/$point" "${steps[@]}"
    says 'checkpoint of step 10: cannot write.*No space left.*; training goes on' "$point: is told"
    claim "$point: the other checkpoints are there" test "$(echo $(ls "$work/$point/ckpt"))" = 'latest step-00000005 step-00000015 step-00000020'
    claim "$point: the same bits" same_weights "$work/whole" "$work/$point"
    claim "$point: nothing half-written is left" test -z "$(find "$work/$point" -name '*tmp*')"
done

# ---- folders
: >"$work/file"
exits 1 '--out is a file' train "$work/file" "${steps[@]}"
claim 'which is left as it was' test -f "$work/file" -a ! -s "$work/file"
exits 1 '--out below a file' train "$work/file/run" "${steps[@]}"
exits 1 '--out where nothing can be made' train /proc/moec-run "${steps[@]}"
says '/proc/moec-run' 'by name'
exits 1 'an existing run' train "$work/whole" "${steps[@]}"
says '--resume' 'is told how to go on'
claim 'and is as it was' same_weights "$work/whole" "$work/full"
if [ "$(id -u)" != 0 ]; then
    mkdir -m 500 "$work/locked"
    exits 1 'a read-only folder' train "$work/locked/run" "${steps[@]}"
    says 'locked/run.*Permission denied' 'says so'
else skip 'a read-only folder: root writes everywhere'; fi
exits 1 'a trace that cannot be written' train "$work/trace" "${steps[@]}" --trace "$work/none/trace.json"
says 'none/trace.json' 'by name'

# ---- numbers: the weights become so large that nothing is finite any more
exits 0 'a learning rate of a million' train "$work/nan" --set 'train.length=8 steps' --set train.lr=1e6 --set train.schedule=constant \
    --set train.clip=none --set 'train.optimizer=sgd()'
says 'gradient is not finite; the step is skipped \(1 so far\)' 'skipped steps are told'
says 'only counted' 'the first few one by one'
says 'skipped [0-9]' 'and stand in the progress'
skipped=$(sed -En 's/.*"skipped_steps": ([0-9]+).*/\1/p' "$work/nan/metrics.jsonl" | tail -n 1)
claim 'and are counted in metrics.jsonl' test "$skipped" -ge 2
claim 'which is JSON: no NaN stands there' test "$(grep -ciE 'nan|inf' "$work/nan/metrics.jsonl")" = 0
if command -v python3 >/dev/null; then
    claim 'for a parser too' python3 -c 'import json, sys; [json.loads(l) for l in open(sys.argv[1])]' "$work/nan/metrics.jsonl"
fi
claim 'the run is gone on with' train "$work/nan" --set 'train.length=9 steps' --set train.lr=1e6 --set train.schedule=constant \
    --set train.clip=none --set 'train.optimizer=sgd()' --resume
claim 'and goes on counting' test "$(sed -En 's/.*"skipped_steps": ([0-9]+).*/\1/p' "$work/nan/metrics.jsonl" | tail -n 1)" = $((skipped + 1))

# ---- memory: what 100 steps more allocate
if command -v "${CC:-cc}" >/dev/null; then
    cat >"$work/count.c" <<'END'
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
static atomic_long n;
void *malloc(size_t bytes) { n++; return __libc_malloc(bytes); }
void *calloc(size_t k, size_t bytes) { n++; return __libc_calloc(k, bytes); }
void *realloc(void *p, size_t bytes) { n++; return __libc_realloc(p, bytes); }
__attribute__((destructor)) static void tell(void) { fprintf(stderr, "allocations %ld\n", (long)n); }
END
    allocations() { # STEPS
        LD_PRELOAD=$work/count.so train "$work/memory$1" --set "train.length=$1 steps" 2>&1 | sed -n 's/^allocations //p'
    }
    if "${CC:-cc}" -shared -fPIC -o "$work/count.so" "$work/count.c" 2>/dev/null && [ -n "$(allocations 19)" ]; then
        few=$(allocations 20) many=$(allocations 120)      # two threads that load kernels now and then open a file more or less
        claim "100 steps more allocate nothing ($few, $many)" test "${few:-0}" -gt 0 -a $((many - few)) -lt 10
    else skip 'counting allocations: this C library has other names'; fi
fi

# ---- what a run leaves
exits 0 'a trace' train "$work/traced" --set 'train.length=4 steps' --trace "$work/trace.json"
says 'trace of step' 'says where it is'
if command -v python3 >/dev/null; then
    claim 'is a Chrome trace' python3 -c '
import json, sys
events = json.load(open(sys.argv[1]))
events = events["traceEvents"] if isinstance(events, dict) else events
spans = [e for e in events if e["ph"] == "X"]
assert len(spans) > 50 and all(e["dur"] >= 0 and e["name"] for e in spans), len(spans)' "$work/trace.json"
    claim 'the TensorBoard file holds records with the right checksums' python3 - "$work"/whole/events.out.tfevents.* <<'PY'
import struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8): crc = (crc >> 1) ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff
data, at, n = open(sys.argv[1], 'rb').read(), 0, 0
while at < len(data):
    length, = struct.unpack_from('<Q', data, at)
    assert struct.unpack_from('<I', data, at + 8)[0] == masked(data[at:at + 8]), at
    body = data[at + 12:at + 12 + length]
    assert struct.unpack_from('<I', data, at + 12 + length)[0] == masked(body), at
    at, n = at + 16 + length, n + 1
assert n > 20 and b'loss/total' in data, n
PY
fi
finish
