#!/usr/bin/env bash
# Training on two hosts with a millisecond between them (a relay in user space holds frames back) has the bits of one host.
. tests/program/common.sh
. tests/net/hosts.sh
export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
missing=$(hosts_missing; delay_missing)
if [ -n "$missing" ]; then
    skip "hosts with a delay need $missing"
    exit 77
fi
claim 'two hosts' hosts_up 2 1000
# microseconds until the other host has refused a connection, the least of some
round_trip() {
    ip netns exec "${hosts[0]}" bash -c 'for _ in 1 2 3 4 5; do
        begin=${EPOCHREALTIME/./}
        (exec 3<>/dev/tcp/$0/9) 2>/dev/null
        echo $((${EPOCHREALTIME/./} - begin))
    done' $net.2 | sort -n | head -n 1
}
took=$(round_trip)
claim "a round trip takes two milliseconds and not many more ($took us)" [ "$took" -ge 2000 -a "$took" -lt 50000 ]
numbers() { grep -oE '"(step|loss|grad_norm)": [^,}]*' "$1/metrics.jsonl"; }
steps=(--threads 1 --quiet --set 'train.length=3 steps' --set parallel.ep=2)
claim 'one host: trained' "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --local 2 --out "$work/one"
claim 'two hosts: trained' on_hosts 1 "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --set parallel.chunks=4 --out "$work/two"
claim 'two hosts: numbers of one' diff <(numbers "$work/one") <(numbers "$work/two")
claim 'there are some' test "$(numbers "$work/two" | wc -l)" -ge 9
finish
