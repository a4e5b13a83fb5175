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
claim 'in chunks: trained' on_hosts 1 "$MOEC" train $model "${tiny[@]}" "${steps[@]}" --set parallel.chunks=4 --out "$work/four"
claim 'in chunks: numbers of one' diff <(numbers "$work/one") <(numbers "$work/four")
claim 'rows by nodes of two ranks: trained' on_hosts 2 "$MOEC" train $model "${tiny[@]}" "${steps[@]:0:5}" --set parallel.ep=4 --set parallel.a2a=node --out "$work/nodes"
claim 'rows by nodes: numbers of one' diff <(numbers "$work/one") <(numbers "$work/nodes")
finish
