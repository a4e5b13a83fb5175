#!/usr/bin/env bash
# Tensor parallelism: the curve of one rank within rounding, the same bits whatever dp, ep and zero beside it; any layout reads any.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=8 steps' --set train.lr=3e-3 --set 'train.eval_every=4 steps' --threads 1)

# Names and hashes of all tensors, not where they lie.
tensors() {
    sed -nE '/^ "tensors": \{$/,/^ \}/ { s/^  "(.*)": \{$/\1/p; s/^   "hash": "(.*)",$/\1/p }' "$(newest "$1")/manifest.json" |
        paste - - | sort
}
same_tensors() { [ "$(tensors "$1" | wc -l)" -gt 20 ] && diff <(tensors "$1") <(tensors "$2"); }
column() { sed -E "s/.*\"$2\": ([-0-9.e+]*).*/\1/" "$1/metrics.jsonl"; }
# Losses and norms of all steps: off by at most this share, but not the same to the last bit everywhere.
near() { # A B SHARE
    for name in loss ce grad_norm; do
        paste -d' ' <(column "$1" $name) <(column "$2" $name)
    done | awk -v most="$3" '{ d = $1 - $2; if (d < 0) d = -d; if (d > most * $1) { print; bad = 1 } if (d) other = 1; n++ }
                             END { if (n != 24 || !other) { print n " numbers, all the same"; bad = 1 } exit bad }'
}
alike() { # TP NAME OPTION...: a run with tp and more has the bits of the one with tp alone
    local tp=$1 name=$2
    claim "$name: trained" train "$work/$name" "${steps[@]}" "${@:3}"
    claim "$name: numbers of $tp alone" same_numbers "$work/$tp" "$work/$name"
    claim "$name: weights and moments" same_tensors "$work/$tp" "$work/$name"
}

claim 'one rank' train "$work/one" "${steps[@]}"
claim 'tp 2' train "$work/tp2" "${steps[@]}" --local 2 --set parallel.tp=2
claim 'near one rank' near "$work/one" "$work/tp2" 1e-6
claim 'tp 4, which two key heads are shared by' train "$work/tp4" "${steps[@]}" --local 4 --set parallel.tp=4
claim 'near one rank' near "$work/one" "$work/tp4" 1e-6
alike tp2 tp2-ep2 --local 4 --set parallel.tp=2 --set parallel.ep=2
alike tp2 tp2-dp2 --local 4 --set parallel.tp=2 --set parallel.zero=2
alike tp2 tp2-ep2-dp2 --local 8 --set parallel.tp=2 --set parallel.ep=2 --set parallel.zero=2
moving=(--set parallel.placement=random --set 'parallel.rebalance=1 step' --set 'parallel.rebalance_window=2 steps' --set parallel.rebalance_gain=0)
alike tp2 tp2-moving --local 4 --set parallel.tp=2 --set parallel.ep=2 "${moving[@]}"
alike tp2 tp2-replicas --local 8 --set parallel.tp=2 --set parallel.ep=2 --set parallel.zero=2 --set parallel.replicas=2 "${moving[@]}"

# whole experts beside cut matrices
etp=(--set parallel.tp=2 --set parallel.etp=1)
claim 'etp 1' train "$work/etp1" "${steps[@]}" --local 2 "${etp[@]}"
claim 'near one rank' near "$work/one" "$work/etp1" 1e-6
alike etp1 etp1-ep2-dp2 --local 8 "${etp[@]}" --set parallel.ep=2 --set parallel.zero=1
alike etp1 etp1-moving --local 4 "${etp[@]}" --set parallel.ep=2 "${moving[@]}"
alike etp1 etp1-replicas --local 4 "${etp[@]}" --set parallel.zero=2 --set parallel.replicas=4 "${moving[@]}"
claim 'etp 1: tp 4' train "$work/etp1-tp4" "${steps[@]}" --local 4 --set parallel.tp=4 --set parallel.etp=1
claim 'near one rank' near "$work/one" "$work/etp1-tp4" 1e-6

# each rank of a tp group sends its share of the rows; between nodes the bytes are halved, inside they are joined
shared=(--set parallel.tp=2 --set parallel.etp=2)
claim 'etp 2' train "$work/etp2" "${steps[@]}" --local 2 "${shared[@]}"
claim 'near one rank' near "$work/one" "$work/etp2" 1e-6
alike etp2 etp2-ep2-dp2 --local 8 "${shared[@]}" --set parallel.ep=2 --set parallel.zero=2
alike etp2 etp2-moving --local 4 "${shared[@]}" --set parallel.ep=2 --set parallel.replicas=2 "${moving[@]}"
export MOE_DEBUG=nodes:2
claim 'tp 2, ep 2 on two nodes' train "$work/nodes" "${steps[@]}" --local 4 --set parallel.tp=2 --set parallel.ep=2 --set parallel.a2a=flat
alike etp2 nodes-etp2 --local 4 "${shared[@]}" --set parallel.ep=2 --set parallel.a2a=flat
unset MOE_DEBUG
between() { # RUN: bytes of rows that ranks sent to other nodes
    tr -d ' \n' <"$work/$1/ranks.json" | grep -oE '"(sent|received)"|"(rows|back)":\{[^}]*\}' |
        awk '/sent/ { on = 1 } /received/ { on = 0 }
             on && match($0, /"net":\[[0-9]+,[0-9]+/) { s = substr($0, RSTART, RLENGTH); sub(/.*,/, "", s); n += s } END { print n + 0 }'
}
claim 'half the bytes of rows between nodes' awk -v all="$(between nodes)" -v some="$(between nodes-etp2)" \
    'BEGIN { print some, all; exit !(some > 0.49 * all && some < 0.51 * all) }'

# checkpoints hold whole tensors
claim 'two steps with tp 2' train "$work/moved" "${steps[@]}" --local 2 --set parallel.tp=2 --set 'train.stop=2 steps'
claim 'two more on one rank' train "$work/moved" "${steps[@]}" --set 'train.stop=4 steps' --resume
claim 'one more with whole experts' train "$work/moved" "${steps[@]}" --local 4 "${etp[@]}" --set parallel.ep=2 --set 'train.stop=5 steps' --resume
claim 'one more with tp 4' train "$work/moved" "${steps[@]}" --local 4 --set parallel.tp=4 --set 'train.stop=6 steps' --resume
claim 'the rest with ep 2 and dp 2' train "$work/moved" "${steps[@]}" --local 4 --set parallel.ep=2 --set parallel.zero=1 --resume
claim 'near one rank' near "$work/one" "$work/moved" 1e-6
for run in one tp2 tp4 moved; do
    exits 0 "eval of $run" "$MOEC" eval "$work/$run"
    cut -d' ' -f2 "$log.out" >>"$work/losses"
done
exits 0 'eval on ranks' "$MOEC" eval "$work/tp2" --local 4 --set parallel.tp=2 --set parallel.ep=2
cut -d' ' -f2 "$log.out" >>"$work/losses"
exits 0 'eval with whole experts' "$MOEC" eval "$work/tp2" --local 4 "${etp[@]}" --set parallel.ep=2
cut -d' ' -f2 "$log.out" >>"$work/losses"
claim 'give one loss' awk '{ if (NR > 1 && ($1 - first > 2e-5 || first - $1 > 2e-5)) exit 1; if (NR == 1) first = $1 } END { if (NR != 6) exit 1 }' "$work/losses"

# average by token, bf16, biases and sinks
claim 'bf16: one rank' train "$work/half1" "${steps[@]}" --set train.dtype=bf16 --set train.average=token
claim 'bf16: tp 2' train "$work/half2" "${steps[@]}" --set train.dtype=bf16 --set train.average=token --local 2 --set parallel.tp=2
claim 'near one rank' near "$work/half1" "$work/half2" 0.01

# generation: the tokens of one rank, where no two are nearly as likely
say() { # NAME PATH OPTION...
    "$MOEC" generate "$2" --quiet --prompt 'In the beginning God' --set generate.max_tokens=16 --set generate.temperature=0 --set generate.dtype=f32 \
        "${@:3}" >"$work/$1" 2>"$log" </dev/null
}
for path in "$work/one" tests/goldens/hf/mixtral tests/goldens/hf/deepseek_v3 tests/goldens/hf/qwen3_moe; do
    name=text-$(basename "$path")
    claim "$name: one rank" say "$name" "$path"
    claim "$name: tp 2" say "$name-tp2" "$path" --local 2 --set parallel.tp=2
    claim "$name: the text of one rank" cmp "$work/$name" "$work/$name-tp2"
    claim "$name: tp 2, ep 2" say "$name-tp2-ep2" "$path" --local 4 --set parallel.tp=2 --set parallel.ep=2
    claim "$name: the text of one rank" cmp "$work/$name" "$work/$name-tp2-ep2"
done

# what can't be
exits 1 'heads that ranks cannot share' train "$work/none" --local 4 --set parallel.tp=4 --set D=48 --set N=6 --set KV=6
says 'attn.q.w has 6 heads, which 4 ranks' 'said so'
says 'attention.moe:[0-9]+:[0-9]+|basic.moe:[0-9]+:[0-9]+' 'with the line'
exits 1 'hidden columns that ranks cannot share' train "$work/none" --local 2 --set parallel.tp=2 --set H=33
says 'experts.w1 has 33 (rows|columns), which 2 ranks' 'said so'
exits 1 'experts cut otherwise' train "$work/none" --local 4 --set parallel.tp=4 --set parallel.etp=2
says 'parallel.etp is 2: experts are whole \(1\), or cut' 'said so'
exits 1 'too few lanes for whole experts' train "$work/none" --local 4 --set parallel.tp=4 --set parallel.etp=1 --set train.lanes=2
says "train.lanes is 2: it can't be dealt to 4 ranks" 'said so'
exits 1 'generating with whole experts' "$MOEC" generate "$work/tp2" --prompt a --local 2 "${etp[@]}"
says 'parallel.etp is 1: where there are no lanes' 'said so'
exits 1 'tp of three' train "$work/none" --local 3 --set parallel.tp=3
says 'power of two' 'said so'
claim 'nothing is made' test ! -e "$work/none"
finish
