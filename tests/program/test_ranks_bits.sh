#!/usr/bin/env bash
# 16 layouts of 1 to 8 ranks, two models, 30 steps: every loss, norm and final tensor has the bits of one rank.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=30 steps' --set train.sequence=16 --threads 1)

# dp ep zero
layouts='1 1 0   2 1 0   2 1 2   1 2 0   1 2 1   4 1 1   2 2 0   2 2 2
         1 4 0   1 4 1   8 1 0   8 1 2   4 2 1   2 4 0   2 4 1   1 8 2'

taken() { grep -oE "\"$1\": ?[0-9]+" "$2/ranks.json" | grep -oE '[0-9]+$' | sort -u; }     # bytes; of all ranks, once

# So many ranks hold as much of a kind each, whatever they share; twice as many at most 0.6 times that: vectors are whole.
shared_out() { # KIND
    sort -nu "$1" | awk '{ if (NF != 2 || $1 == ranks || (ranks && $2 > 0.6 * bytes * 2 * ranks / $1)) { print; exit 1 }
                           ranks = $1; bytes = $2; n++ } END { if (n < 2) exit 1 }'
}

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
        [ "$zero" = 0 ] || echo "$((dp * ep)) $(taken optimizer "$out")" >>"$work/$name/optimizer"
        [ "$zero" != 2 ] || echo "$((dp * ep)) $(taken gradients "$out")" >>"$work/$name/gradients"
        rm -rf "$out"
    done < <(xargs -n 3 <<<"$layouts")
    claim "$name: every rank has its part of the moments" shared_out "$work/$name/optimizer"
    claim "$name: and with zero = 2 of the gradients" shared_out "$work/$name/gradients"
}

all_layouts 'top-2'
model=models/tiny_switch.moe
all_layouts 'top-1 with drops'
claim 'there were drops' grep -qE '"drop_rate": 0\.0*[1-9]' "$work/top-1 with drops/metrics.jsonl"
finish
