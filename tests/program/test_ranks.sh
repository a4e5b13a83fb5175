#!/usr/bin/env bash
# Training on several ranks has the bits of training on one, whatever the layout, and any layout goes on with any other.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=6 steps' --set 'train.eval_every=3 steps' --threads 1)

# alike ONE NAME OPTION...: a run on several ranks has the numbers and tensors of run ONE on one
alike() {
    local one=$work/$1 name=$2
    shift 2
    claim "$name: trained" train "$work/$name" "${steps[@]}" "$@"
    claim "$name: losses, norms and evaluations of one rank" same_numbers "$one" "$work/$name"
    claim "$name: weights and moments of one rank" same_tensors "$one" "$work/$name"
}

claim 'one rank' train "$work/one" "${steps[@]}"
alike one dp1 --local 1
alike one dp2 --local 2
alike one ep2 --local 2 --set parallel.ep=2
alike one ep2-chunks --local 2 --set parallel.ep=2 --set parallel.chunks=2
alike one ep2-recompute --local 2 --set parallel.ep=2 --set train.recompute='"layer"'
exits 0 'chunks in the graph' "$MOEC" dump $model "${tiny[@]}" --set parallel.ep=2 --set parallel.dp=1 --set parallel.chunks=2 --after schedule-a2a
prints 'return_rows .*chunks = 2' 'rows go back by chunks'

# rows that stay on their rank, apart: some before others' have come, the rest when those are on their way back
apart=(--set parallel.own_rows=apart)
alike one apart-ep2 --local 2 --set parallel.ep=2 "${apart[@]}" --set parallel.placement=random
alike one apart-ep4-chunks --local 4 --set parallel.ep=4 "${apart[@]}" --set parallel.chunks=2 --set train.recompute='"layer"'
exits 0 'apart in the graph' "$MOEC" dump $model "${tiny[@]}" --set parallel.ep=2 --set parallel.dp=1 "${apart[@]}" --after schedule-a2a
prints 'return_rows .*chunks = 1, own = 3' 'of two experts first, of two last'
# a router of zeros sends all rows to the first two experts: to one rank, which then has its own and others', and the other none
sed 's/^model tiny_mixtral/fn no_choice(x[..., D], E: int, used: bool[...] = none, k = 2) {\n  param gate[E, D] = zeros\n  w, e = topk(softmax(score(x, gate)), k)\n  return route(w, e, E)\n}\n&/
    s/router: top_k(k:, aux: 0.01)/router: no_choice(k:)/; s/^import routing.top_k/import std.route, std.losses/' models/tiny_mixtral.moe >"$work/no_choice.moe"
ln -s "$PWD/models/kjv.txt" "$work/kjv.txt"
some=$model model=$work/no_choice.moe
claim 'no choice: one rank' train "$work/crowd" "${steps[@]}" --set 'train.length=1 step'
alike crowd crowd-apart --local 2 --set parallel.ep=2 "${apart[@]}" --set 'train.length=1 step'
claim 'no choice: all rows went to one rank' grep -q '"load_max_over_mean": 4,' "$work/crowd-apart/metrics.jsonl"
model=$some
alike one dp4-zero --local 4 --set parallel.zero=1
alike one dp2-ep2 --local 4 --set parallel.dp=2 --set parallel.ep=2
alike one ep4-zero --local 4 --set parallel.ep=4 --set parallel.zero=2

# rows by nodes: pretended ones of 1, 2, 4 ranks; a token whose experts are on one node crosses once
by_nodes() { # ONE RANKS_A_NODE NAME OPTION...
    export MOE_DEBUG=nodes:$2
    alike "$1" "$3" "${@:4}" --set parallel.a2a=node
    unset MOE_DEBUG
}
net() { # RUN KIND: messages and bytes that its ranks sent between nodes
    sed 's/"received".*//' "$work/$1/ranks.json" | grep -oE "\"$2\":\{[^}]*\"net\":\[[0-9,]*" | sed 's/.*\[//' |
        awk -F , '{ m += $1; b += $2 } END { print m + 0, b + 0 }'
}
by_nodes one 1 nodes-ep2 --local 2 --set parallel.ep=2
by_nodes one 2 nodes-ep4-zero --local 4 --set parallel.ep=4 --set parallel.zero=2
MOE_DEBUG=nodes:2 alike one flat-ep4 --local 4 --set parallel.ep=4 --set parallel.a2a=flat
by_nodes one 2 nodes-apart --local 4 --set parallel.ep=4 "${apart[@]}"
by_nodes one 2 nodes-dp2-ep4 --local 8 --set parallel.ep=4 --set parallel.placement=random
by_nodes one 4 nodes-ep8-moving --local 8 --set parallel.ep=8 --set parallel.replicas=8 --set parallel.placement=random \
    --set 'parallel.rebalance=1 step' --set parallel.rebalance_gain=0
read -r messages bytes < <(net flat-ep4 rows)
read -r fewer less < <(net nodes-ep4-zero rows)
claim 'by nodes: a quarter of the messages' test "$fewer" -gt 0 -a $((4 * fewer)) -le "$messages"
claim 'by nodes: fewer bytes there' test $((115 * less)) -lt $((100 * bytes))
claim 'by nodes: as many back' diff <(net flat-ep4 back | cut -d ' ' -f 2) <(net nodes-ep4-zero back | cut -d ' ' -f 2)

# four waves of four lanes, leaves that count by their labels, bf16
waves=(--set train.batch=16 --set train.micro_batch=1 --set train.lanes=4 --set train.average=token --set train.dtype=bf16)
claim 'waves: one rank' train "$work/waves" "${steps[@]}" "${waves[@]}"
by_nodes waves 2 waves-nodes "${waves[@]}" --local 4 --set parallel.ep=4
MOE_DEBUG=nodes:2 alike waves waves-flat "${waves[@]}" --local 4 --set parallel.ep=4 --set parallel.a2a=flat
claim 'by nodes: fewer bytes of bf16 there' test $((115 * $(net waves-nodes rows | cut -d ' ' -f 2))) -lt $((100 * $(net waves-flat rows | cut -d ' ' -f 2)))
alike waves waves-dp2-ep2 "${waves[@]}" --local 4 --set parallel.ep=2 --set parallel.zero=1

# experts anywhere; an expert's tensors, its rows and its norm go where the table says
placed=(--set parallel.placement=random --set 'parallel.rebalance=0 steps')
alike one placed-ep2 --local 2 --set parallel.ep=2 "${placed[@]}"
second() { grep -A2 "\"$2\": \[" "$(newest "$work/$1")/manifest.json" | tail -n 1 | tr -dc 0-9; }     # expert in the second slot
claim 'placed-ep2: not by number' test "$(second placed-ep2 layers.0.ffn.experts)" = 6
alike one placed-ep4-zero --local 4 --set parallel.ep=4 --set parallel.zero=2 "${placed[@]}"
alike one placed-dp2-ep2 --local 4 --set parallel.ep=2 --set parallel.placement=round_robin

# experts that move after each step whose loads say so, and where it pays
always=(--set 'parallel.rebalance=1 step' --set 'parallel.rebalance_window=2 steps' --set parallel.rebalance_gain=0)
alike one moving-ep2 --local 2 --set parallel.ep=2 "${always[@]}"
alike one moving-ep4-zero --local 4 --set parallel.ep=4 --set parallel.zero=2 "${placed[@]}" "${always[@]}"
alike one moving-dp2-ep2 --local 4 --set parallel.ep=2 "${always[@]}"
claim 'moving-ep4-zero: most steps moved some' test "$(grep -c 'moved [0-9]* experts, [0-9.]* MB in' "$work/moving-ep4-zero/train.log")" -ge 3
# unasked: inside a node, told to the log alone
alike one unasked-ep2 --local 2 --set parallel.ep=2 --set parallel.rebalance_gain=0
claim 'unasked: moved' grep -q 'busiest rank .* moved [0-9]* experts' "$work/unasked-ep2/train.log"
exits 0 'unasked' train "$work/unasked-again" "${steps[@]}" --local 2 --set parallel.ep=2 --set parallel.rebalance_gain=0
claim 'unasked: quietly' sh -c '! grep -q "busiest rank" "$0.out" "$0.err"' "$log"
alike one never-ep2 --local 2 --set parallel.ep=2 --set parallel.rebalance_gain=0 --set 'parallel.rebalance=0 steps'
claim 'never: stayed' sh -c '! grep -q "busiest rank" "$0"' "$work/never-ep2/train.log"
MOE_DEBUG=nodes:1 alike one apart-ep2-nodes --local 2 --set parallel.ep=2 --set parallel.rebalance_gain=0
claim 'between nodes, unasked: stayed' sh -c '! grep -q "busiest rank" "$0"' "$work/apart-ep2-nodes/train.log"
alike one staying --local 2 --set parallel.ep=2 --set 'parallel.rebalance=2 steps' --set parallel.rebalance_gain=1000000
MOE_DEBUG=nodes:2 alike one groups-ep4 --local 4 --set parallel.ep=4 "${always[@]}" --set parallel.rebalance_groups=2
claim 'groups-ep4: some moved' grep -q 'moved [0-9]* experts' "$work/groups-ep4/train.log"
node_of_slots() { # of each slot of a layer, in order: the group of its expert
    tr -d ' \n' <"$(newest "$work/groups-ep4")/manifest.json" | grep -oE "\"$1\":\[[0-9,]*\]" | head -n 1 | grep -oE '[0-9]+' | tail -n 8 |
        awk '{ printf "%d", $1 / 4 }'
}
claim 'groups-ep4: each on one node' sh -c 'case $0 in 00001111 | 11110000) ;; *) echo "$0"; false ;; esac' "$(node_of_slots layers.1.ffn.experts)"
claim 'staying: said so' grep -q 'experts stay: .* would save' "$work/staying/train.log"

# replicas: an expert on several ranks, each for a part of the lanes
alike one replicas-ep2 --local 2 --set parallel.ep=2 --set parallel.replicas=4 "${placed[@]}"
alike one replicas-ep4-zero --local 4 --set parallel.ep=4 --set parallel.zero=1 --set parallel.replicas=8 "${placed[@]}"
most() { sed -n '/"layers.0.ffn.experts": \[/,/\]/p' "$(newest "$work/$1")/manifest.json" | grep -oE '^ *[0-9]+' | sort | uniq -c | sort -rn | awk '{ print $1; exit }'; }
claim 'replicas-ep4-zero: four of some' test "$(most replicas-ep4-zero)" = 4
alike one replicas-moving --local 4 --set parallel.ep=2 --set parallel.replicas=2 "${always[@]}"
alike waves waves-replicas "${waves[@]}" --local 4 --set parallel.ep=4 --set parallel.replicas=4 "${placed[@]}" "${always[@]}"
claim 'two steps with replicas' train "$work/some" "${steps[@]}" --local 4 --set parallel.ep=4 --set parallel.replicas=8 "${placed[@]}" --set 'train.stop=2 steps'
claim 'two with as many' train "$work/some" "${steps[@]}" --local 2 --set parallel.ep=2 --set parallel.replicas=8 --set 'train.stop=4 steps' --resume
claim 'the rest without' train "$work/some" "${steps[@]}" --local 2 --set parallel.ep=2 --resume
claim 'has the tensors of one rank' same_tensors "$work/one" "$work/some"

# choices without a place
mixtral=$model model=models/tiny_switch.moe
claim 'drops: one rank' train "$work/drops" "${steps[@]}"
by_nodes drops 2 drops-nodes --local 4 --set parallel.ep=4
alike drops drops-dp2-ep2 --local 4 --set parallel.ep=2
alike drops drops-replicas --local 4 --set parallel.ep=4 --set parallel.replicas=4 "${always[@]}"
claim 'there were some' grep -qE '"drop_rate": 0\.0*[1-9]' "$work/drops/metrics.jsonl"
model=$mixtral

# draws for tokens and for rows at experts
sed 's/expert: swiglu(H:)/expert: relu_ffn(H:, rate: 0.2)/; s/= take(embed, tokens)/= dropout(take(embed, tokens), 0.1)/' \
    models/tiny_mixtral.moe >"$work/tiny_mixtral.moe"
model=$work/tiny_mixtral.moe
claim 'dropout: one rank' train "$work/dropout" "${steps[@]}"
alike dropout dropout-dp2 --local 2
alike dropout dropout-ep2 --local 2 --set parallel.ep=2
by_nodes dropout 1 dropout-nodes --local 2 --set parallel.ep=2
alike dropout dropout-dp2-ep2 --local 4 --set parallel.ep=2
model=$mixtral

# from one layout to another, and back to one rank
claim 'two steps on two ranks' train "$work/moved" "${steps[@]}" --local 2 --set parallel.ep=2 "${placed[@]}" --set 'train.stop=2 steps'
claim 'two more on four' train "$work/moved" "${steps[@]}" --local 4 --set parallel.ep=2 --set parallel.zero=1 --set 'train.stop=4 steps' --resume
claim 'one more on four, with experts where the two had them' train "$work/moved" "${steps[@]}" --local 4 --set parallel.ep=4 \
    --set 'train.stop=5 steps' --resume
claim 'as their checkpoint says' test "$(second moved layers.1.ffn.experts)" = 6
claim 'the rest on one' train "$work/moved" "${steps[@]}" --resume
claim 'with the tensors of one go' same_tensors "$work/one" "$work/moved"
claim 'and every step once' diff <(seq 6) <(steps_of "$work/moved")
claim 'eval reads what four ranks wrote' "$MOEC" eval "$work/dp2-ep2" --quiet

# ranks that are processes
export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so
if [ -f "$MOEC_MPI_LIBRARY" ] && command -v mpirun >/dev/null; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}   # Open MPI keeps some
    mpi() { TMPDIR=$work timeout 100 mpirun --oversubscribe --mca mpi_yield_when_idle 1 -n 2 "$MOEC" "$@"; }
    mpi_train() { # OUT OPTION...
        local out=$1
        shift
        mpi train "$model" "${tiny[@]}" --out "$out" "$@"
    }
    claim 'mpirun -n 2: trained' mpi_train "$work/mpi" "${steps[@]}" --set parallel.ep=2 "${always[@]}" "${apart[@]}"
    claim 'mpirun -n 2: numbers of one rank' same_numbers "$work/one" "$work/mpi"
    claim 'mpirun -n 2: tensors of one rank' same_tensors "$work/one" "$work/mpi"
    exits 1 'mpirun -n 2: another seed' mpi_train "$work/mpi" "${steps[@]}" --set train.seed=9 --resume
    says 'train.seed' 'mpirun -n 2: is refused'
    claim 'mpirun -n 2: once' test "$(grep -c train.seed "$log.err")" = 1
    exits 1 'mpirun -n 2: a folder that cannot be' mpi_train /proc/none "${steps[@]}"
    says 'rank 0: cannot create folder /proc/none' 'mpirun -n 2: by name'
    exits 2 'mpirun -n 2 moec check' mpi check "$model"
    says 'check runs on one rank' 'is refused'
    mpi_train "$work/stopped" --threads 1 --set 'train.length=90000 steps' >"$log.out" 2>"$log.err" &
    pid=$!
    children+=($pid)
    wait_for 60 has_lines "$work/stopped/metrics.jsonl" 3
    kill -TERM "$(pgrep -f -- "train .*--out $work/stopped" | tail -n 1)"
    wait $pid
    claim 'mpirun -n 2: SIGTERM to one rank gives exit status 75' test $? = 75
    last=$(steps_of "$work/stopped" | tail -n 1)
    claim 'mpirun -n 2: and a checkpoint' test -f "$work/stopped/ckpt/step-$(printf %08d "$last")/manifest.json"
else skip 'MPI (libopenmpi-dev openmpi-bin)'; fi

# a signal, a full disk
begin train "$model" "${tiny[@]}" --threads 1 --local 2 --set 'train.length=90000 steps' --out "$work/TERM"
wait_for 60 has_lines "$work/TERM/metrics.jsonl" 3
kill -TERM $pid
wait $pid
claim 'SIGTERM gives exit status 75' test $? = 75
last=$(steps_of "$work/TERM" | tail -n 1)
claim "and a checkpoint of the last step" test -f "$work/TERM/ckpt/step-$(printf %08d "$last")/manifest.json"
claim 'nothing half-written is left' test -z "$(find "$work/TERM" -name '*.tmp*' -o -name '.tmp*')"
full() { (ulimit -f 100; trap '' XFSZ; train "$work/full" "${steps[@]}" --local 2 --set 'train.save_every=2 steps'); }
exits 1 'the disk is full each time' full
says 'checkpoint of step 2: cannot write.*training goes on' 'training goes on'
says 'error: (rank [01]: )?checkpoint of step 6' 'until the last checkpoint can not be written either'
claim 'nothing half-written is left of it' test -z "$(find "$work/full" -name '*tmp*')"

# what can't be
refused() { # PATTERN TEXT OPTION...
    local pattern=$1 text=$2
    shift 2
    exits 1 "$text" train "$work/none" "$@"
    says "$pattern" "$text: said so"
    claim "$text: nothing is made" test ! -e "$work/none"
}
refused 'asks for 2 ranks, but there is one' 'ep=2 on one rank' --set parallel.ep=2
says 'help:.*--local 2' 'with help'
refused 'parallel.dp = 1 times parallel.ep = 2 times parallel.tp = 1 makes 2' 'a mesh of other size' --local 4 --set parallel.ep=2 --set parallel.dp=1
refused 'must be powers of two' 'three ranks' --local 3
refused 'can.t be dealt to 2 ranks' 'one lane for two ranks' --local 2 --set train.lanes=1
says 'help: --set train.lanes=2' 'with help'
refused 'no power of two' 'six lanes' --local 2 --set train.batch=12 --set train.lanes=6
refused 'ffn.*12 experts.*8 ranks|E.*12' '12 experts on 8 ranks' --local 8 --set parallel.ep=8 --set E=12
refused 'parallel.rebalance: with parallel.ep = 1' 'moving experts that are everywhere' --local 2 --set 'parallel.rebalance=5 steps'
refused 'parallel.rebalance_groups is 2, but parallel.rebalance is none' 'groups of experts that never move' --local 2 --set parallel.ep=2 \
    --set parallel.rebalance_groups=2
refused 'parallel.rebalance_groups is 2, but parallel.rebalance is 0' 'or are never to' --local 2 --set parallel.ep=2 \
    --set parallel.rebalance_groups=2 --set 'parallel.rebalance=0 steps'
exits 1 'groups that do not share the experts' train "$work/groups" --local 2 --set parallel.ep=2 --set 'parallel.rebalance=1 step' \
    --set parallel.rebalance_groups=3
says 'parallel.rebalance_groups is 3, which doesn.t divide the 8 experts of layers.0' 'are refused'
refused 'parallel.rebalance' 'moving experts on one rank' --set 'parallel.rebalance=5 steps'
refused 'parallel.chunks is 4, but rows that go by nodes' 'chunks by nodes' --local 2 --set parallel.ep=2 --set parallel.a2a=node --set parallel.chunks=4
export MOE_DEBUG=nodes:3
refused 'must be neighbours, as many on each node' 'nodes of three and one' --local 4 --set parallel.ep=4 --set parallel.a2a=node
unset MOE_DEBUG
refused 'parallel.progress is thread' 'a thread for messages' --local 2 --set parallel.progress=thread
refused '8 experts and 3 replicas .parallel.replicas.' 'replicas that can.t be shared' --local 2 --set parallel.ep=2 --set parallel.replicas=3
refused 'at most as many as experts' 'too many replicas' --local 2 --set parallel.ep=2 --set parallel.replicas=10
refused 'parallel.replicas' 'replicas on one rank' --set parallel.replicas=2
refused 'parallel.pp is 2' 'pipelines' --local 2 --set parallel.pp=2
refused 'parallel.bound is 1.25' 'a bound of rows' --local 2 --set parallel.bound=1.25
refused 'parallel.zero is 3' 'zero 3' --local 2 --set parallel.zero=3
finish
