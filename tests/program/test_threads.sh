#!/usr/bin/env bash
# The number of threads changes no bit.
. "$(dirname "$0")/common.sh"
for threads in 1 2 4 7; do
    claim "$threads threads" train "$work/t$threads" --threads $threads --set 'train.length=8 steps'
    [ $threads = 1 ] && continue
    claim "$threads threads: weights and moments of one" same_weights "$work/t1" "$work/t$threads"
    claim "$threads threads: numbers of one" same_numbers "$work/t1" "$work/t$threads"
done
exits 0 'generation with 7 threads' "$MOEC" generate "$work/t1" --threads 7 --prompt 'And the' --set generate.max_tokens=40 --set generate.temperature=0
cp "$log.out" "$work/seven"
exits 0 'and with 1' "$MOEC" generate "$work/t1" --threads 1 --prompt 'And the' --set generate.max_tokens=40 --set generate.temperature=0
claim 'the same text' cmp "$log.out" "$work/seven"
for bad in 0 -1 x 2.5 ''; do
    exits 1 "--threads '$bad' is refused" train "$work/bad" --threads "$bad"
done
finish
