#!/usr/bin/env bash
# train.exact = false: threads and resuming still change no bit, the loss follows that of the exact run, neither run goes on as the other.
. "$(dirname "$0")/common.sh"
loose=(--set train.exact=false)
losses() { sed -En 's/^\{"step": [0-9]+, "loss": ([^,}]*).*/\1/p' "$1/metrics.jsonl"; }

for threads in 1 2; do
    claim "$threads threads" train "$work/t$threads" "${loose[@]}" --threads $threads --set 'train.length=8 steps'
done
claim 'the same weights and moments' same_weights "$work/t1" "$work/t2"
claim 'the first half of a run' train "$work/half" "${loose[@]}" --set 'train.length=8 steps' --set 'train.stop=4 steps'
exits 1 'does not go on as an exact one' train "$work/half" --set 'train.length=8 steps' --resume
says 'arithmetic .* one-chain, now it is' 'and says why'
claim 'and the second' train "$work/half" "${loose[@]}" --set 'train.length=8 steps' --resume
claim 'end where one run does' same_weights "$work/t1" "$work/half"

# Rounding apart, the same steps.
close() {
    paste <(losses "$1") <(losses "$2") | awk '
        { d = ($2 - $1) / $1; if (d * d > most * most) most = d; n++; differs += $1 != $2 }
        END { print n " steps, at most " most " apart, " differs " not the same"; exit !(n == 60 && differs > 0 && most * most < 1e-8) }'
}
claim '60 steps with trees' train "$work/exact" --set 'train.length=60 steps'
claim '60 steps without' train "$work/loose" "${loose[@]}" --set 'train.length=60 steps'
claim 'each loss within 1e-4' close "$work/exact" "$work/loose"
cat "$log"
finish
