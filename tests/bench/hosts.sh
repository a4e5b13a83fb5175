#!/usr/bin/env bash
# How much of the rows' way between two hosts is hidden: bash tests/bench/hosts.sh [RATE [OPTION...]], MOEC naming the program.
# Two network namespaces, a rank on each; once without a limit, once at RATE (1gbit).  As root, on a machine that does nothing
# else.  What a rank waits for a slower one counts as exposed; most_rows_over_mean says how uneven the experts' rows are.
. tests/bench/hosts_begin.sh
shift
hosts_up 2 || exit 1
for r in none "$rate"; do
    hosts_rate "$r"
    echo "rate $r"
    on_hosts 1 "$MOEC" bench tests/net/hosts.moe --threads 1 --warmup 1 --steps 3 --set parallel.ep=2 --set L=1 "$@" | grep -E '^step ms|^rows|^most'
done
