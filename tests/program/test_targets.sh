#!/usr/bin/env bash
# Every way to run a plan gives the same bits where there is a fused multiply-add, and close ones elsewhere.
. "$(dirname "$0")/common.sh"
length=(--set 'train.length=6 steps')
flags=$(grep -m 1 '^flags' /proc/cpuinfo)
has() { [[ " $flags " == *" $1 "* ]]; }

exits 0 'moec targets' "$MOEC" targets
prints '^ *cpu' 'names the cpu'
claim 'native' train "$work/native" "${length[@]}"
claim 'interp' train "$work/interp" "${length[@]}" --target interp
if has fma; then
    claim 'interp: weights of native' same_weights "$work/native" "$work/interp"
    claim 'interp: numbers of native' same_numbers "$work/native" "$work/interp"
fi
for cpu in avx512 avx2; do
    if has "${cpu/avx512/avx512f}"; then
        claim "$cpu" train "$work/$cpu" "${length[@]}" --target-cpu $cpu
        claim "$cpu: weights of native" same_weights "$work/native" "$work/$cpu"
        claim "$cpu: numbers of native" same_numbers "$work/native" "$work/$cpu"
    else
        skip "$cpu: this machine has none"
    fi
done
claim 'sse2' train "$work/sse2" "${length[@]}" --target-cpu sse2
value() { sed -En 's/^\{"step": [0-9]+, "loss": ([^,}]*).*/\1/p' "$1/metrics.jsonl"; }
close() {
    paste <(value "$1") <(value "$2") | awk '
        { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
        END { print "largest difference", worst, "in", n, "steps"; exit !(n == 6 && worst <= 1e-3) }'
}
claim 'sse2: losses close to native' close "$work/native" "$work/sse2"
exits 1 'sse2 goes on with no run of fma bits' train "$work/native" --set 'train.length=9 steps' --target-cpu sse2 --resume
says 'arithmetic' 'and says why'
exits 1 'a target that does not exist' train "$work/bad" --target cpux
says "did you mean 'cpu'" 'with a suggestion'
exits 1 'ref runs no plan' train "$work/bad" --target ref
says 'verify' 'and is for verify'
exits 1 'a processor that does not exist' train "$work/bad" --target-cpu avx3
says 'avx3.*(native|avx512|avx2|sse2)' 'names those there are'
claim 'and nothing is made' test ! -e "$work/bad"
finish
