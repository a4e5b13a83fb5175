#!/usr/bin/env bash
# Training in bf16: threads and resuming change no bit, the loss follows that of f32, and the arithmetic is part of a run.
. "$(dirname "$0")/common.sh"
narrow=(--set train.dtype=bf16)
flags=$(grep -m 1 '^flags' /proc/cpuinfo)
losses() { sed -En 's/^\{"step": [0-9]+, "loss": ([^,}]*).*/\1/p' "$1/metrics.jsonl"; }

for threads in 1 3; do
    claim "$threads threads" train "$work/t$threads" "${narrow[@]}" --threads $threads --set 'train.length=8 steps'
done
claim 'the same weights and moments' same_weights "$work/t1" "$work/t3"
claim 'the same numbers' same_numbers "$work/t1" "$work/t3"
claim 'the first half of a run' train "$work/half" "${narrow[@]}" --set 'train.length=8 steps' --set 'train.stop=4 steps'
claim 'and the second' train "$work/half" "${narrow[@]}" --set 'train.length=8 steps' --resume
claim 'end where one run does' same_weights "$work/t1" "$work/half"

# Means over the last 50 of 300 steps.
close() {
    paste <(losses "$1") <(losses "$2") | awk '
        NR > 250 { a += $1; b += $2 }
        END { d = (b - a) / a; print NR " steps, f32 " a / 50 ", bf16 " b / 50 ", apart " 100 * d " %"; exit !(NR == 300 && d * d < 1e-4) }'
}
claim '300 steps in f32' train "$work/f32" --set 'train.length=300 steps'
claim '300 steps in bf16' train "$work/bf16" "${narrow[@]}" --set 'train.length=300 steps'
claim 'the curve within 1 % of f32' close "$work/f32" "$work/bf16"
cat "$log"

# Whether pairs are multiplied is told by the name of the machine, so a run knows it.
if [[ " $flags " == *' avx512_bf16 '* ]]; then
    claim 'dot products' train "$work/dot" "${narrow[@]}" --set 'train.length=8 steps' --target-cpu avx512bf16
    claim 'f32 fma' train "$work/fma" "${narrow[@]}" --set 'train.length=8 steps' --target-cpu avx512
    claim 'the same weights, where no number is subnormal' same_weights "$work/dot" "$work/fma"
    exits 1 'neither goes on as the other' train "$work/dot" "${narrow[@]}" --set 'train.length=9 steps' --target-cpu avx512 --resume
    says 'arithmetic bf16-dot.*f32-fma' 'and says why'
    claim 'f32 on the same machine' train "$work/wide" --set 'train.length=4 steps' --target-cpu avx512bf16
    claim 'goes on anywhere' train "$work/wide" --set 'train.length=6 steps' --target-cpu avx512 --resume
else
    skip 'dot products: this machine has none'
fi
finish
