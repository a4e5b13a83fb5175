#!/usr/bin/env bash
# Whatever happens to a rank, the others end, it is named, and the run goes on from the newest checkpoint with the same bits.
. "$(dirname "$0")/common.sh"
needs_mpi
steps=(--threads 1 --set 'train.length=12 steps' --set 'train.save_every=4 steps')
ranks=(--ranks 2 --set parallel.ep=2)
claim 'undisturbed' train "$work/whole" "${steps[@]}"

# disturbed FAULT WHAT PATTERN [OPTION...]: is told as PATTERN says, begun again, and ends with the bits of the undisturbed run
disturbed() {
    local out=$work/$1 what=$2 pattern=$3
    export MOEC_FAULT=$1
    shift 3
    exits 0 "$what: trained in spite of it" timeout 100 "$MOEC" train "$model" "${tiny[@]}" "${steps[@]}" --out "$out" --restarts 2 "$@"
    unset MOEC_FAULT
    says "$pattern" "$what: said"
    says 'restart 1 of 2' "$what: begun again"
    claim "$what: same losses and norms" same_numbers "$work/whole" "$out"
    claim "$what: same weights and moments" same_tensors "$work/whole" "$out"
    claim "$what: nothing half-written is left" test -z "$(find "$out" -name '*.tmp*' -o -name '.tmp*' -o -name '.del*')"
}
disturbed kill@start,rank=1 'killed at the start' "lost rank 1.*at the start: it is gone" "${ranks[@]}"
disturbed kill@step,rank=1,step=6 'killed in step 6' "lost rank 1.*step 6, in .*\(models/.*\.moe:[0-9]+\): it is gone" "${ranks[@]}"
disturbed stop@step,rank=0,step=6 'stopped in step 6' 'lost rank 0.*step 6.*nothing is heard of it' "${ranks[@]}"
disturbed hang@step,rank=1,step=6 'stuck in step 6' 'lost rank 1.*step 6.*it got nothing done for [2-5] s' "${ranks[@]}" --stall-seconds 2
says 'rank 0: waits for others in ' 'stuck: and that the other one waits'
disturbed crash@step,step=6 'one rank: crashed' 'lost rank 0.*step 6.*it is gone'
disturbed kill@step,step=6 'ranks that are threads: killed' 'lost rank 0.*step 6.*it is gone' --local 2

# killed in each part of a save
disturbed kill@save-file,rank=1,step=8 'a rank killed at save-file' 'lost rank 1.*step 8, while saving: it is gone' "${ranks[@]}"
disturbed kill@save-manifest,step=8 'the first rank killed at save-manifest' 'lost rank 0.*step 8, while saving: it is gone' "${ranks[@]}"
for point in save save-tensors save-file save-manifest save-rename save-latest save-delete; do
    disturbed "kill@$point,rank=0,step=$([ $point = save-delete ] && echo 4 || echo 8)" "killed at $point" \
        'lost rank 0.*step 8, while saving: it is gone' --set train.keep=1
done

# what is written down
out=$work/kill@step,rank=1,step=6
if command -v python3 >/dev/null; then
    claim 'events.jsonl' python3 - "$out/events.jsonl" <<'PY'
import json, sys
e = [json.loads(l) for l in open(sys.argv[1])]
saved = [x['step'] for x in e if x['event'] == 'saved']                 # two that follow at once may be one
assert saved[0] == 4 and saved[-1] == 12, e
e = [x for x in e if x['event'] != 'saved']
assert [x['event'] for x in e] == ['start', 'lost', 'restart', 'start', 'end'], e
lost, again = e[1], e[2]
assert lost['rank'] == 1 and lost['step'] == 6 and lost['cause'] == 'gone' and '.moe:' in lost['where'], lost
assert again['step'] == 4 and e[3]['step'] == 4 and e[-1]['status'] == 0, e
PY
fi
claim 'a log for each rank' test -s "$out/log/rank-0000.log" -a -s "$out/log/rank-0001.log"
claim 'with its steps' grep -q 'step 12/12' "$out/log/rank-0001.log"
claim 'and why it ended' grep -q 'rank 0 ends in step 6.*lost\|rank 0 ends in step 6.*rank 1' "$out/log/rank-0000.log"

# given up
fails() { MOEC_FAULT=$1 train "$work/$2" "${steps[@]}" "${ranks[@]}" --restarts "$3"; }
exits 77 'the same step fails each time' fails kill@step,rank=1,step=2,always same 9
says 'given up: step 2 fails each time' 'and says so'
exits 77 'no checkpoint between two' fails kill@save-file,rank=1,always none 1
says 'given up: 1 restart without a new checkpoint' 'and says so'
exits 76 'no restarts are wanted' fails kill@step,rank=1,step=6 zero 0
says 'lost rank 1' 'and names the rank'
exits 1 'what would fail again is not tried again' fails nonsense wrong 3
says 'MOEC_FAULT=nonsense is not ACTION@POINT' 'and told'
claim 'once' test "$(grep -c nonsense "$log.err")" = 1

# signals to the supervisor, and its end
forever=(--threads 1 --set 'train.length=90000 steps')

# a terminal that is not read for longer than ranks wait for their supervisor, and strangers that call
mkfifo "$work/unread"
sleep 60 <"$work/unread" &
children+=($!)
env --default-signal=INT "$MOEC" train "$model" "${tiny[@]}" "${forever[@]}" "${ranks[@]}" --out "$work/blocked" 2>"$work/unread" &
pid=$!
children+=($pid)
wait_for 60 has_lines "$work/blocked/metrics.jsonl" 3
port=$(tr '\0' '\n' <"/proc/$(of_run "$work/blocked" | tail -n 1)/environ" | sed -n 's/^MOEC_SUPERVISOR=\([0-9]*\):.*/\1/p')
for i in $(seq 40); do
    exec {stranger[i]}<>"/dev/tcp/127.0.0.1/$port"
    head -c 3000 /dev/urandom >&"${stranger[i]}"
done 2>/dev/null
head -c 80000 /dev/zero | tr '\0' x | fold -w 100 >>"$work/blocked/log/rank-0000.log"       # more than a pipe holds
sleep 10
claim 'an unread terminal and strangers disturb nobody' test "$(grep -c '"event":"lost"' "$work/blocked/events.jsonl")" = 0
claim 'training goes on' wait_for 10 has_lines "$work/blocked/metrics.jsonl" $(($(wc -l <"$work/blocked/metrics.jsonl") + 3))
kill -TERM $pid
wait $pid
claim 'and ends when it is told' test $? = 75
for signal in TERM INT HUP USR2; do
    out=$work/SIG$signal
    begin train "$model" "${tiny[@]}" "${forever[@]}" "${ranks[@]}" --restarts 2 --out "$out"
    wait_for 60 has_lines "$out/metrics.jsonl" 3
    kill -$signal $pid
    wait $pid
    claim "SIG$signal: exit status 75" test $? = 75
    last=$(steps_of "$out" | tail -n 1)
    claim "SIG$signal: saved" test -f "$out/ckpt/step-$(printf %08d "$last")/manifest.json"
    claim "SIG$signal: nobody is left" test -z "$(of_run "$out")"
done
begin train "$model" "${tiny[@]}" "${forever[@]}" "${ranks[@]}" --resume --out "$out"
wait_for 60 has_lines "$out/metrics.jsonl" $((last + 3))
kill -USR1 $pid
claim 'SIGUSR1 saves' wait_for 20 has_said 'saved .*step-'
step=$(steps_of "$out" | tail -n 1)
claim 'and training goes on' wait_for 20 has_lines "$out/metrics.jsonl" $((step + 2))
{ kill -9 $pid; wait $pid; } 2>/dev/null
nobody() { [ -z "$(of_run "$1")" ]; }
claim 'the supervisor is killed: nobody is left' wait_for 10 nobody "$out"

# what can't be
exits 1 'no such launcher' train "$work/nowhere" "${ranks[@]}" --launcher no-such-program
says 'no-such-program: No such file' 'by name'
exits 1 '--ranks beside --local' train "$work/none2" --ranks 2 --local 2
exits 1 'a launcher without ranks' train "$work/none2" --launcher mpirun
says '--launcher needs --ranks' 'and says why'
exits 1 'restarts that are no number' train "$work/none2" --restarts many
says "restarts is a number from 0 to .*not 'many'" 'and says so'
exits 1 'hosts that nobody names' train "$work/none2" "${ranks[@]}" --restarts 2 --elastic
says '--elastic .* needs --hostfile' 'can not be left out'
exits 1 'a host file that is not there' train "$work/none2" "${ranks[@]}" --hostfile "$work/nohosts"
says 'nohosts: No such file' 'by name'
exits 1 'a mesh that can not be' train "$work/none2" --ranks 2 --set parallel.ep=4
exits 1 'an existing run' train "$work/whole" "${ranks[@]}"
says '--resume goes on' 'is told how to go on'
claim 'nothing is made of all that' test ! -e "$work/none2"
exits 1 'one supervisor a rank' mpirun -n 2 "$MOEC" train "$model" --ranks 2 --out "$work/none2"
says 'each of which would supervise' 'is refused'

if claim_kills=$(bash tests/program/kills.sh 3); then ok '3 random kills'; else
    not_ok '3 random kills'
    printf '%s\n' "$claim_kills"
fi
finish
