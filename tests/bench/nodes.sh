#!/usr/bin/env bash
# Rows between two hosts of 4 ranks each, from rank to rank against by nodes: bash tests/bench/nodes.sh [RATE [TOKENS...]], MOEC
# naming the program.  Namespaces as in hosts.sh; TOKENS of each rank (16 64 256 1024 4096).  Three runs of each by turns; medians
# of a step, and of how long its rows were under way (four wide exchanges, two narrow ones; waiting for each other included).
. tests/bench/hosts_begin.sh
shift
sizes=("${@:-16 64 256 1024 4096}")
hosts_up 2 && hosts_rate "$rate" || exit 1
one() { # A2A TOKENS: step ms, ms under way, messages, MB
    on_hosts 4 "$MOEC" bench tests/bench/nodes.moe --threads 1 --warmup 2 --steps $(($2 > 500 ? 4 : 10)) --set parallel.ep=8 \
        --set parallel.chunks=1 --set "parallel.a2a=$1" --set "train.sequence=$2" |
        awk '/^step ms/ { s = $NF } /^rows under/ { u = $NF } /^rows net messages/ { m = $NF } /^rows net MB/ { b = $NF } END { print s, u, m, b }'
}
median() { sort -n | sed -n 2p; }
printf '%-8s %28s %28s\n' "" 'flat' 'node'
printf '%-8s %8s %8s %5s %6s %8s %8s %5s %6s   %s\n' tokens 'step ms' 'rows ms' sent MB 'step ms' 'rows ms' sent MB 'times faster: rows, step'
for n in ${sizes[*]}; do
    : >"$work/flat"
    : >"$work/node"
    for i in 1 2 3; do
        for a2a in flat node; do one $a2a "$n" >>"$work/$a2a"; done
    done
    for a2a in flat node; do
        paste -d ' ' <(cut -d ' ' -f 1 "$work/$a2a" | median) <(cut -d ' ' -f 2 "$work/$a2a" | median) <(cut -d ' ' -f 3,4 "$work/$a2a" | tail -n 1)
    done | paste -d ' ' - - | awk -v n="$n" '{ printf "%-8s %8.2f %8.2f %5d %6.2f %8.2f %8.2f %5d %6.2f   %.2f %.2f\n", n, $1, $2, $3, $4, $5, $6, $7, $8, $2 / $6, $1 / $5 }'
done
