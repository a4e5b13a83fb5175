#!/usr/bin/env bash
# What `moec plan` says of a run before it is started is what the run then takes.
. "$(dirname "$0")/common.sh"
own_cache
steps=(--set 'train.length=2 steps' --set 'train.eval_every=none' --threads 1)

plan() { "$MOEC" plan "$model" "${tiny[@]}" --threads 1 "$@"; }

# The number behind a name in a file of JSON; of several, all, each once.
values() { grep -oE "\"$1\": ?[0-9]+" "$2" | grep -oE '[0-9]+$' | sort -u; }

same_memory() { # RUN: every rank took what the last plan said
    [ -n "$(values total "$work/plan.json")" ] && diff <(values total "$work/plan.json") <(values allocated "$work/$1/ranks.json")
}

# What ranks sent and received, in a file of JSON.
moved() { tr -d ' \n' <"$1" | sed -E 's/"memory":\{[^}]*\},?//g' | grep -oE '"steps":[0-9]+|"ranks":\[.*\]'; }

same_messages() { # RUN
    [ "$(moved "$work/$1/ranks.json" | wc -c)" -gt 200 ] && diff <(moved "$work/$1/ranks.json" | sort) <(moved "$work/plan.json" | sort)
}

# routed NAME RANKS OPTION...: the same of rows that data sent to experts
routed() {
    local name=$1 n=$2
    shift 2
    alike "$name" "$n" --record-routes "$@"
    claim "$name: planned with the routes of the run" sh -c '"$@" >"$0"' "$work/plan.json" "$MOEC" plan "$model" "${tiny[@]}" --threads 1 \
        --json --local "$n" --routes "$work/$name/routes" "$@"
    claim "$name: messages and bytes of every rank" same_messages "$name"
}

# alike NAME RANKS OPTION...: a run takes what its plan says
alike() {
    local name=$1 n=$2 record=()
    shift 2
    [ "${1:-}" = --record-routes ] && record=("$1") && shift
    claim "$name: planned" sh -c '"$@" >"$0"' "$work/plan.json" "$MOEC" plan "$model" "${tiny[@]}" --threads 1 --json --local "$n" "$@"
    local=(--local "$n")
    [ "$n" = 1 ] && local=()
    claim "$name: trained" train "$work/$name" "${steps[@]}" "${local[@]}" "${record[@]}" "$@"
    claim "$name: memory to the byte" same_memory "$name"
}

alike one 1
routed dp2-ep2-recompute 4 --set parallel.ep=2 --set train.recompute='"layer"'
routed ep2-bf16 2 --set parallel.ep=2 --set train.dtype=bf16
routed dp2-ep2-zero 4 --set parallel.ep=2 --set parallel.zero=1
routed dp2-ep2-zero2 4 --set parallel.ep=2 --set parallel.zero=2
routed ep4-zero2-waves 4 --set parallel.ep=4 --set parallel.zero=2 --set train.lanes=4 --set train.micro_batch=1
routed tp2-ep2 4 --set parallel.tp=2 --set parallel.ep=2
routed etp1-ep2 4 --set parallel.tp=2 --set parallel.etp=1 --set parallel.ep=2
routed ep2-replicas 2 --set parallel.ep=2 --set parallel.replicas=4 --set parallel.placement=random
routed ep4-replicas 4 --set parallel.ep=4 --set parallel.replicas=8 --set parallel.zero=1
routed dp2-ep2-replicas 4 --set parallel.ep=2 --set parallel.replicas=2
routed etp2-ep2 4 --set parallel.tp=2 --set parallel.etp=2 --set parallel.ep=2
mixtral=$model model=models/tiny_switch.moe
routed drops 4 --set parallel.ep=2
model=$mixtral

# machine files
cat >"$work/bad.json" <<'END'
{"name": "bad", "nodes": 1,
 "device": {"kind": "gpu", "per_node": 2, "memory": -80e9, "flops": {"f32": 1e12, "bf16": 1e12},
            "bandwith": 1e12, "bandwidth": 1e12, "efficiency": {"gemm": 1.7, "attention": 0.5, "rows": 0.8}},
 "links": []}
END
exits 1 'a wrong machine file' plan --machine "$work/bad.json"
says 'bad.json:2:.*device.memory must be a number above 0' 'names the member, its line and what it must be'
says 'device.bandwith is not known here; did you mean "bandwidth"' 'knows what was meant'
says 'device.efficiency.gemm must be a number from 0 to 1' 'shares are shares'
echo '{"name": ' >"$work/cut.json"
exits 1 'half a machine file' plan --machine "$work/cut.json"
says 'cut.json:.*this is not JSON' 'is no JSON'
exits 1 'no machine file' plan --machine "$work/none.json"
says 'none.json: No such file' 'says so'
exits 1 'no machine at all' plan
says 'either --machine FILE or --local N' 'asks for one'
for m in machines/*.json; do
    name=$(basename "$m" .json)
    claim "machine $name is read" plan --machine "$name" --set parallel.dp=1
done
claim 'a file of this machine is written' plan --local 2 --write-machine "$work/here.json"
claim 'and read again' plan --machine "$work/here.json"
exits 1 'more ranks than devices' plan --machine laptop-2 --set parallel.dp=4
says 'makes 4 ranks, but a laptop of 2 cores has 2 devices' 'are counted'

# golden NAME FILE OPTION...: the text of a plan, but for what the runtime keeps for itself; MOEC_BLESS=1 writes it anew
golden() {
    local want=tests/program/plan/$1.txt
    shift
    "$MOEC" plan "$@" 2>"$work/warnings" | grep -vE '^  (constants|exchanges|tables|total) ' >"$work/text"
    [ -n "${MOEC_BLESS:-}" ] && cp "$work/text" "$want"
    diff "$want" "$work/text"
}
claim 'a plan of experts on two devices' golden tiny-ep models/tiny_mixtral.moe --machine laptop-2 --set parallel.ep=2 --target interp
claim 'a plan of a pipeline' golden tiny-pp models/tiny_mixtral.moe --machine a100-8 --set parallel.pp=2 --set parallel.ep=2 --set train.lanes=4 --target interp

# efficiencies fitted to a run of this machine
ranks=(--set parallel.ep=2)
seconds() { grep -oE '"seconds": [0-9.e-]+' "$1" | tail -1; }
claim 'a traced run' "$MOEC" bench "$model" "${tiny[@]}" "${ranks[@]}" --threads 1 --local 2 --steps 3 --warmup 1 --trace "$work/run.json"
claim 'a plan before' sh -c '"$@" >"$0"' "$work/before.json" "$MOEC" plan "$model" "${tiny[@]}" "${ranks[@]}" --threads 1 --local 2 --json
claim 'shares are fitted' plan "${ranks[@]}" --local 2 --calibrate "$work/run.json" --write-machine "$work/fitted.json"
claim 'of products and attention' grep -qE '"(grouped_matmul|attention)": [0-9.]+' "$work/fitted.json"
claim 'and kept for this CPU' grep -q '"ops": {' "$XDG_CACHE_HOME/moec/machine.json"
claim 'a plan behind' sh -c '"$@" >"$0"' "$work/behind.json" "$MOEC" plan "$model" "${tiny[@]}" "${ranks[@]}" --threads 1 --local 2 --json
claim 'says another time' [ "$(seconds "$work/before.json")" != "$(seconds "$work/behind.json")" ]
claim 'the file of the machine says the same' sh -c '"$@" >"$0"' "$work/file.json" "$MOEC" plan "$model" "${tiny[@]}" "${ranks[@]}" --threads 1 --machine "$work/fitted.json" --json
claim 'to four digits' [ "$(seconds "$work/file.json" | cut -c1-17)" = "$(seconds "$work/behind.json" | cut -c1-17)" ]
exits 1 'a trace of another model' "$MOEC" plan models/tiny_switch.moe --threads 1 --local 2 --set parallel.ep=2 --calibrate "$work/run.json"
says 'is of another model or layout: its step [0-9]+ is' 'is refused'
exits 1 'a trace of ranks that share cores' plan --local 64 --set train.lanes=64 --set train.batch=64 --set train.micro_batch=1 --set parallel.ep=1 --calibrate "$work/run.json"
says '64 ranks share [0-9]+ cores' 'is refused'
exits 1 'a trace that is none' plan "${ranks[@]}" --local 2 --calibrate "$work/behind.json"
says 'this is not a trace' 'is refused'

# the busier rank: rows as the model of routers has them take the time of the model, all rows to one rank take longer
mkdir "$work/even" "$work/uneven"
for r in 0 1; do
    from=$work/ep2-bf16/routes/rank-000$r.jsonl
    sed -E 's/"rows": *\[[^]]*\]/"rows": [32, 32, 32, 32, 32, 32, 32, 32]/' "$from" >"$work/even/rank-000$r.jsonl"
    sed -E 's/"rows": *\[[^]]*\]/"rows": [64, 64, 64, 64, 0, 0, 0, 0]/' "$from" >"$work/uneven/rank-000$r.jsonl"
done
for routes in even uneven; do
    claim "a plan with $routes rows" sh -c '"$@" >"$0"' "$work/$routes.json" "$MOEC" plan "$model" "${tiny[@]}" "${ranks[@]}" --threads 1 --local 2 --json \
        --routes "$work/$routes"
done
claim 'even rows take the time of the model' [ "$(seconds "$work/even.json")" = "$(seconds "$work/behind.json")" ]
waited() { grep -oE '"waiting for rows": [0-9.e-]+' "$1"; }
claim 'with uneven rows ranks wait' [ "$(waited "$work/uneven.json")" != "$(waited "$work/even.json")" ]

# the link between nodes that is described decides about chunks
flights() { # RATE: ways back on it in a pass
    cat >"$work/hosts.json" <<END
{"name": "two hosts", "nodes": 2, "links": [{"level": "net", "kind": "ethernet", "rate": $1, "latency": 50e-6}],
 "device": {"kind": "cpu", "per_node": 1, "memory": 8e9, "flops": {"f32": 80e9, "bf16": 80e9}, "bandwidth": 15e9,
            "efficiency": {"gemm": 0.5, "attention": 0.4, "rows": 0.5}}}
END
    MOE_DEBUG=trace:schedule-a2a "$MOEC" plan tests/net/hosts.moe --machine "$work/hosts.json" --set parallel.ep=2 --set L=1 \
        --trace "$work/hosts.trace" >"$log" 2>"$work/schedule-$1" || return
    grep -c '"return_rows", "pid": 0, "tid": 2' "$work/hosts.trace"
}
claim 'a slow link is planned with chunks, a fast one without' [ "$(flights 12.5e6)" -gt "$(flights 100e9)" ]
claim 'and with own rows apart' grep -qE 'chunks, own rows of 0 experts first, of 4 last, predicted' "$work/schedule-12.5e6"
claim 'a link that a shared expert hides needs neither' [ "$(flights 125e6)" = "$(flights 100e9)" ]
claim 'it stands on both ways' grep -qE 'MB there beside [1-9][0-9.]* ms, .* MB back beside [1-9][0-9.]* ms.* 1 chunks, predicted' "$work/schedule-125e6"

# rows by nodes: a described cluster's plan against ranks on pretended nodes
nodes_of() { # NODES PER_NODE
    cat >"$work/nodes.json" <<END
{"name": "nodes", "nodes": $1, "links": [{"level": "net", "kind": "ethernet", "rate": 125e6, "latency": 50e-6},
                                         {"level": "node", "kind": "shared memory", "rate": 5e9, "latency": 2e-6}],
 "device": {"kind": "cpu", "per_node": $2, "memory": 8e9, "flops": {"f32": 80e9, "bf16": 80e9}, "bandwidth": 15e9,
            "efficiency": {"gemm": 0.5, "attention": 0.4, "rows": 0.5}}}
END
}
by_nodes() { # NAME NODES PER_NODE OPTION...
    local name=$1 n=$(($2 * $3)) per=$3 plan=("$MOEC" plan "$model" "${tiny[@]}" --threads 1 --json --machine "$work/nodes.json")
    nodes_of "$2" "$3"
    shift 3
    set -- --set parallel.a2a=node "$@"
    export MOE_DEBUG=nodes:$per
    claim "$name: trained" train "$work/$name" "${steps[@]}" --local "$n" --record-routes "$@"
    unset MOE_DEBUG
    claim "$name: planned" sh -c '"$@" >"$0"' "$work/model.json" "${plan[@]}" "$@"
    claim "$name: planned with the routes of the run" sh -c '"$@" >"$0"' "$work/plan.json" "${plan[@]}" --routes "$work/$name/routes" "$@"
    claim "$name: memory to the byte" same_memory "$name"
    claim "$name: messages and bytes of every rank" same_messages "$name"
}
by_nodes nodes-ep4 2 2 --set parallel.ep=4
by_nodes nodes-alone 2 1 --set parallel.ep=2
by_nodes nodes-ep4-replicas 2 2 --set parallel.ep=4 --set parallel.replicas=4 --set parallel.placement=random
by_nodes nodes-dp2 2 4 --set parallel.ep=4 --set parallel.dp=2
nodes_of 2 2
exits 1 'routes of ranks that went another way' "$MOEC" plan "$model" "${tiny[@]}" --threads 1 --machine "$work/nodes.json" --set parallel.a2a=node \
    --routes "$work/ep4-replicas/routes" --set parallel.ep=4 --set parallel.dp=1
says 'the recorded routes are of another program or layout' 'are not taken'
nodes_of 4 3
exits 1 'experts of ranks that nodes cut' "$MOEC" plan "$model" "${tiny[@]}" --threads 1 --machine "$work/nodes.json" --set parallel.a2a=node \
    --set parallel.ep=4 --set parallel.dp=1
says 'the 4 ranks that share experts .* must be neighbours, as many on each node' 'are refused'

# what can't fit
sed 's/"memory": 80e9, "reserve": 3e9/"memory": 150e6, "reserve": 1e6/' machines/a100-8.json >"$work/small.json"
exits 1 'a model larger than a device' "$MOEC" plan models/tiny_mixtral.moe --machine "$work/small.json" --set parallel.dp=1 --set train.lanes=8 --tries 8
says 'models/std/.*: error: a rank needs [0-9.]+ GB, but a device of 8x A100 80 GB has 0.1 GB for it; layers.[0-9]+ takes the most' 'names the layer'
says 'help: the nearest layout that fits .*--set parallel' 'and a layout that fits'

# the search finds something no slower than what was asked for, and the timeline is JSON
claim 'a search' sh -c '"$@" >"$0"' "$work/found.json" "$MOEC" plan "$model" "${tiny[@]}" --machine laptop-2 --search --tries 4 --json --trace "$work/trace.json"
claim 'it found layouts' grep -q '"found": \[' "$work/found.json"
claim 'the timeline has products and exchanges' sh -c "grep -q '\"name\": \"grouped_matmul\"' '$work/trace.json' && tail -n 1 '$work/trace.json' | grep -q '^]}$'"
exits 1 'an assumption nobody knows' plan --machine laptop-2 --assume overlapped
says 'not .overlapped.' 'is refused'

finish
