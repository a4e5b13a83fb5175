#!/usr/bin/env bash
# Gradient accumulation: a batch in two waves gives what it gives in one, up to rounding.
. "$(dirname "$0")/common.sh"
length=(--set train.batch=16 --set 'train.length=12 steps')
claim 'batch 16 in one wave' train "$work/one" "${length[@]}"
exits 0 'batch 16 = 8 lanes x 1 sequence x 2 waves' train "$work/two" "${length[@]}" --set train.micro_batch=1 --set train.lanes=8
says '2 waves x 8 lanes x 1 sequence' 'the start tells the waves'
exits 0 'batch 16 = 4 lanes x 1 sequence x 4 waves' train "$work/four" "${length[@]}" --set train.micro_batch=1 --set train.lanes=4
says '4 waves x 4 lanes x 1 sequence' 'the start tells the waves'
claim 'both saw the same tokens' diff <(grep -o '"tokens": [0-9]*' "$work/one/metrics.jsonl") <(grep -o '"tokens": [0-9]*' "$work/two/metrics.jsonl")

value() { sed -En 's/^\{"step": [0-9]+, .*"'"$2"'": ([^,}]*).*/\1/p' "$1/metrics.jsonl"; }
close() { # RUN RUN NAME TOLERANCE
    paste <(value "$1" "$3") <(value "$2" "$3") | awk -v most="$4" '
        { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
        END { print "largest difference", worst, "in", n, "steps"; exit !(n == 12 && worst <= most) }'
}
# the balance loss is of a wave's own sequences, so it is compared with more room
claim 'two waves: cross entropy of one' close "$work/one" "$work/two" ce 2e-3
claim 'two waves: gradient norm of one' close "$work/one" "$work/two" grad_norm 2e-2
claim 'four waves: cross entropy of one' close "$work/one" "$work/four" ce 2e-3

exits 1 'a batch that does not divide is refused' train "$work/bad" --set train.batch=16 --set train.micro_batch=3 --set train.lanes=8
says 'batch' 'with its reason'
claim 'and leaves nothing' test ! -e "$work/bad"
claim 'waves are gone on with' train "$work/half" "${length[@]}" --set train.micro_batch=1 --set train.lanes=8 --set 'train.stop=6 steps'
claim 'the second half' train "$work/half" "${length[@]}" --set train.micro_batch=1 --set train.lanes=8 --resume
claim 'has the bits of one go' same_weights "$work/two" "$work/half"
exits 1 'other waves are another run' train "$work/half" "${length[@]}" --set 'train.length=20 steps' --resume
says 'lanes' 'with its reason'
finish
