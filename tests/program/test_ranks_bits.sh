#!/usr/bin/env bash
# 16 layouts of 1 to 8 ranks, two models, 30 steps: every loss, norm and final tensor has the bits of one rank.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=30 steps' --set train.sequence=16 --threads 1)

# dp ep zero
layouts='1 1 0   2 1 0   2 1 2   1 2 0   1 2 1   4 1 1   2 2 0   2 2 2
         1 4 0   1 4 1   8 1 0   8 1 2   4 2 1   2 4 0   2 4 1   1 8 2'

all_layouts() { # NAME OPTION...
    local name=$1
    shift
    claim "$name: one rank" train "$work/$name" "${steps[@]}" "$@"
    claim "$name: 30 steps of it" diff <(seq 30) <(steps_of "$work/$name")
    set -- "$name" "$@"
    local dp ep zero
    while read -r dp ep zero; do
        local out=$work/$name-$dp-$ep-$zero
        local layout="dp=$dp ep=$ep zero=$zero"
        claim "$name: $layout: trained" train "$out" "${steps[@]}" "${@:2}" --local $((dp * ep)) \
            --set parallel.dp="$dp" --set parallel.ep="$ep" --set parallel.zero="$zero"
        claim "$name: $layout: losses and norms" same_numbers "$work/$name" "$out"
        claim "$name: $layout: weights and moments" same_tensors "$work/$name" "$out"
        rm -rf "$out"
    done < <(xargs -n 3 <<<"$layouts")
}

all_layouts 'top-2'
model=models/tiny_switch.moe
all_layouts 'top-1 with drops'
claim 'there were drops' grep -qE '"drop_rate": 0\.0*[1-9]' "$work/top-1 with drops/metrics.jsonl"
finish
