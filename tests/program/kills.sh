#!/usr/bin/env bash
# kills.sh N [RANKS [SEED]]: trains under supervision and kills N processes at random moments: ranks, now and then mpirun; one
# in eight is stopped instead.  Each time all must be gone and told within 10 s and the run go on; ended by SIGTERM, it
# must have the bits of an undisturbed one.
. "$(dirname "$0")/common.sh"
n=${1:?how many kills} ranks=${2:-2}
RANDOM=${3:-1}
needs_mpi
length=(--threads 1 --set 'train.length=90000 steps')
killed=$work/killed

events() { local n; n=$(grep -c "\"event\":\"$1\"" "$killed/events.jsonl" 2>/dev/null); echo "${n:-0}"; }
has_events() { [ "$(events "$1")" -ge "$2" ]; }
now() { date +%s%3N; }                                         # ms

begin train "$model" "${tiny[@]}" "${length[@]}" --out "$killed" --set 'train.save_every=7 steps' --set train.keep=2 \
    --ranks "$ranks" --set parallel.ep="$ranks" --restarts 20
clean=0 worst=0
for ((i = 1; i <= n; i++)); do
    wait_for 90 has_events start "$i" || { not_ok "start $i"; break; }
    saved=$(events saved)
    [ $((RANDOM % 4)) = 0 ] || wait_for 60 has_events saved $((saved + 1))      # else while it starts
    sleep "$((RANDOM % 2)).$((RANDOM % 90 + 10))"
    mapfile -t all < <(of_run "$killed")
    victim=${all[$((RANDOM % ${#all[@]}))]} signal=KILL
    what=$(cat "/proc/$victim/comm")
    [ $((RANDOM % 8)) != 0 ] || [ "$what" = mpirun ] || signal=STOP
    at=$(steps_of "$killed" 2>/dev/null | tail -n 1) from=$(now)
    kill -$signal "$victim"
    ms=0
    until has_events lost "$i" || [ $ms -gt 60000 ]; do
        sleep 0.02
        past=$(($(now) - from)) from=$(now)
        [ "$(cut -d ' ' -f 3 "/proc/$pid/stat")" != T ] || past=0        # someone has stopped all of them
        ms=$((ms + past))
    done
    left=$(of_run "$killed" | grep -xf <(printf '%s\n' "${all[@]}"))
    echo "     kill $i: SIG$signal to $what after step ${at:-0}: all gone and told after $ms ms${left:+, but for $left}"
    [ "$ms" -le "$worst" ] || worst=$ms
    [ "$ms" -gt 10000 ] || [ -n "$left" ] || clean=$((clean + 1))
done
wait_for 60 has_events restart "$n"
saved=$(events saved)
wait_for 60 has_events saved $((saved + 1))
kill -TERM $pid
wait $pid
claim 'SIGTERM saves and ends, exit status 75' test $? = 75
claim "$n kills: $n clean ends within 10 s" test "$clean" = "$n"
claim "$n restarts" test "$(events restart)" = "$n"
last=$(steps_of "$killed" | tail -n 1)
claim "undisturbed for $last steps" train "$work/whole" "${length[@]}" --set "train.stop=$last steps" --quiet
sed -i 's/, "eval_.*\(, "tokens":\)/\1/' "$work/whole/metrics.jsonl" "$killed/metrics.jsonl"       # a signal leaves the last one out
claim 'the killed run has its losses and norms' same_numbers "$work/whole" "$killed"
claim 'and its weights and moments' same_tensors "$work/whole" "$killed"
claim 'nothing half-written is left' test -z "$(find "$killed" -name '*.tmp*' -o -name '.tmp*' -o -name '.del*')"
claim 'and no process' test -z "$(of_run "$killed")"
echo "     slowest end: $worst ms"
finish
