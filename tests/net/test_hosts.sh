#!/usr/bin/env bash
# Training on two hosts (network namespaces, TCP between them at 200 Mbit/s) has the bits of training on one rank.
. tests/program/common.sh
. tests/net/hosts.sh
export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
missing=$(hosts_missing)
if [ -n "$missing" ]; then
    skip "hosts need $missing"
    exit 77
fi
claim 'two hosts' hosts_up 2
claim 'at 200 Mbit/s' hosts_rate 200mbit
numbers() { grep -oE '"(step|loss|grad_norm)": [^,}]*' "$1/metrics.jsonl"; }
steps=(--threads 1 --quiet --set 'train.length=3 steps' --set parallel.ep=2)
claim 'one host: trained' "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --local 2 --out "$work/one"
sent() { ip netns exec "${hosts[0]}" cat /sys/class/net/eth0/statistics/tx_bytes; }
before=$(sent)
claim 'two hosts: trained' on_hosts 1 "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --out "$work/two" --trace "$work/trace.json"
after=$(sent)
claim 'two hosts: numbers of one' diff <(numbers "$work/one") <(numbers "$work/two")
claim 'there are some' test "$(numbers "$work/two" | wc -l)" -ge 9
rows=$(grep -oE '"ph": "b".*"bytes": [0-9]+' "$work/trace.json" | sed 's/.*: //' | awk '{ s += $1 } END { print s + 0 }')
claim 'rows went over the wire' test "$rows" -gt 1000 -a $((after - before)) -gt $((3 * rows))
# the second host has measured other rates, by which alone it would schedule otherwise
mkdir -p "$work/slow/moec"
sed 's/"fma": [0-9.]*/"fma": 0.001/' "$XDG_CACHE_HOME/moec/machine.json" >"$work/slow/moec/machine.json"
claim 'in chunks: trained' on_hosts 1 bash -c '[ $OMPI_COMM_WORLD_RANK = 0 ] || export XDG_CACHE_HOME='"$work"'/slow; exec "$@"' moec \
    "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --set parallel.chunks=4 --out "$work/four"
claim 'by rates of the first' test "$(grep -c '"fma": 0.001' "$work/slow/moec/machine.json")" -gt 0
claim 'in chunks: numbers of one' diff <(numbers "$work/one") <(numbers "$work/four")
claim 'rows by nodes of two ranks: trained' on_hosts 2 "$MOEC" train $model "${tiny[@]}" "${steps[@]:0:5}" --set parallel.ep=4 --set parallel.a2a=node --out "$work/nodes"
claim 'rows by nodes: numbers of one' diff <(numbers "$work/one") <(numbers "$work/nodes")

# a whole host is lost: the others go on without it, with the bits of a run that was never disturbed
steps=(--threads 1 --set 'train.length=24 steps' --set 'train.save_every=4 steps' --set train.lanes=4 --set parallel.ep=1)
claim 'undisturbed: trained' "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --quiet --local 4 --out "$work/calm"
printf '%s slots=2\n' "${hosts[@]}" >"$work/hosts"
elastic() { # OPTION...: two ranks on each host, supervised
    TMPDIR=$work OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 250 "$MOEC" train $model "${tiny[@]}" "${steps[@]}" \
        --ranks 4 --hostfile "$work/hosts" --restarts 3 --elastic --out "$work/elastic" --launcher "mpirun --oversubscribe --bind-to none \
        --map-by slot --mca plm_rsh_agent $work/agent --mca mpi_yield_when_idle 1 --mca pml ob1 --mca btl tcp,vader,self \
        --mca oob_tcp_if_include $net.0/24 --mca btl_tcp_if_include $net.0/24 -x XDG_CACHE_HOME -x LC_ALL" "$@"
}
lose_host() { # N, once something was saved
    for _ in $(seq 1500); do
        grep -q '"event":"saved"' "$work/elastic/events.jsonl" 2>/dev/null && break
        sleep 0.02
    done
    local h=${hosts[$1]}
    ip netns pids "$h" | xargs -r kill -9
    ip netns del "$h"
}
lose_host 1 &
claim 'a host is lost: trained' elastic
wait $!
claim 'said which, and how many go on' grep -q "\"event\":\"left_out\".*\"host\":\"${hosts[1]}\",\"ranks\":2,\"of\":4" "$work/elastic/events.jsonl"
claim 'the numbers of the undisturbed run' diff <(numbers "$work/calm") <(numbers "$work/elastic")
finish
