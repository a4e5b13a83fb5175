#!/usr/bin/env bash
# A run that is interrupted in any way and gone on with has the bits of one that wasn't.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=40 steps' --set 'train.eval_every=10 steps')

claim '40 steps in one go' train "$work/whole" "${steps[@]}"

# train.stop at 20, kill -9 in the middle of step 23 (the trace is written into a pipe nobody reads), go on
claim 'train.stop ends after 20 steps' train "$work/killed" "${steps[@]}" --set 'train.stop=20 steps'
claim 'the last step is saved' test -d "$work/killed/ckpt/step-00000020"
mkfifo "$work/pipe"
begin train "$model" "${tiny[@]}" "${steps[@]}" --out "$work/killed" --resume --trace "$work/pipe"
wait_for 60 has_lines "$work/killed/metrics.jsonl" 22
{ kill -9 $pid; wait $pid; } 2>/dev/null
claim 'killed after step 22 was written down' test "$(steps_of "$work/killed" | tail -n 1)" = 22
claim 'gone on with after kill -9' train "$work/killed" "${steps[@]}" --resume
claim 'its weights and moments are those of one go' same_weights "$work/whole" "$work/killed"
claim 'its losses, norms and evaluations are those of one go' same_numbers "$work/whole" "$work/killed"
claim 'metrics.jsonl was cut back: every step stands there once' diff <(seq 40) <(steps_of "$work/killed")

# SIGTERM and SIGINT
for signal in TERM INT; do
    out=$work/$signal
    begin train "$model" "${tiny[@]}" --set 'train.length=90000 steps' --out "$out"
    wait_for 60 has_lines "$out/metrics.jsonl" 3
    kill -$signal $pid
    wait $pid
    claim "SIG$signal gives exit status 75" test $? = 75
    says 'stopped by signal.*--resume' "SIG$signal: the last words tell how to go on"
    last=$(steps_of "$out" | tail -n 1)
    claim "SIG$signal: the step it was in (step $last) is finished and saved" test -f "$out/ckpt/step-$(printf %08d "$last")/manifest.json"
    claim "SIG$signal: nothing half-written is left" test -z "$(find "$out" -name '*.tmp*' -o -name '.tmp*')"
    claim "SIG$signal: gone on with for 5 steps" train "$out" --set 'train.length=90000 steps' --set "train.stop=$((last + 5)) steps" --resume
    claim "SIG$signal: the same in one go" train "$out.whole" --set 'train.length=90000 steps' --set "train.stop=$((last + 5)) steps"
    claim "SIG$signal: same weights" same_weights "$out" "$out.whole"
    rm -rf "$out" "$out.whole"
done

# a signal that comes in the middle of an evaluation, which here takes long: by reference, on half of the text
begin train "$model" "${tiny[@]}" --set 'train.length=9 steps' --set 'train.eval_every=2 steps' --set data.held_out=0.5 --target interp \
    --out "$work/evaluating"
wait_for 60 has_said 'step 2/9'
kill -TERM $pid
sent=$SECONDS
wait $pid
claim 'a signal during an evaluation gives exit status 75' test $? = 75
claim 'and is followed at once' test $((SECONDS - sent)) -lt 15
claim 'by a checkpoint' test -f "$work/evaluating/ckpt/step-00000002/manifest.json"

# the newest checkpoint is damaged
claim '20 steps, saved each 10' train "$work/damaged" "${steps[@]}" --set 'train.stop=20 steps' --set 'train.save_every=10 steps'
cp -r "$work/damaged" "$work/truncated"
cp -r "$work/damaged" "$work/half"
file=$work/damaged/ckpt/step-00000020/weights-00001.safetensors
size=$(stat -c %s "$file")
printf '\377\001\376' | dd of="$file" bs=1 seek=$((size / 2)) conv=notrunc status=none
exits 0 'one damaged byte: gone on with' train "$work/damaged" "${steps[@]}" --resume
says 'going on from .*step-00000010' 'from the checkpoint before the damaged one'
says 'damaged' 'and the damage is told'
claim 'damaged: weights of one go' same_weights "$work/whole" "$work/damaged"
claim 'damaged: numbers of one go' same_numbers "$work/whole" "$work/damaged"
truncate -s -100 "$work/truncated/ckpt/step-00000020/state-00000.safetensors"
exits 0 'a truncated file: gone on with' train "$work/truncated" "${steps[@]}" --resume
says 'going on from .*step-00000010' 'truncated: from the checkpoint before it'
claim 'truncated: weights of one go' same_weights "$work/whole" "$work/truncated"
rm "$work/half/ckpt/step-00000020/manifest.json" "$work/half/ckpt/latest"
exits 0 'no manifest: gone on with' train "$work/half" "${steps[@]}" --resume
claim 'no manifest: weights of one go' same_weights "$work/whole" "$work/half"

# one bit in any kind of file: what is damaged is named, the newest whole checkpoint is taken, the bits are those of one go
claim '20 steps, saved each 10, as ranks do' train "$work/kinds" "${steps[@]}" --local 2 --set parallel.zero=1 \
    --set 'train.stop=20 steps' --set 'train.save_every=10 steps' --threads 1
flip() { # FILE: a bit in the middle
    local at=$(($(stat -c %s "$1") / 2)) byte
    byte=$(od -An -tu1 -j $at -N 1 "$1")
    printf "$(printf '\\%03o' $((byte ^ 4)))" | dd of="$1" bs=1 seek=$at conv=notrunc status=none
}
for file in weights-0001-00001.safetensors state-0000-00000.safetensors manifest.json model.moe settings.json; do
    rm -rf "$work/flipped"
    cp -r "$work/kinds" "$work/flipped"
    flip "$work/flipped/ckpt/step-00000020/$file"
    exits 0 "a bit of $file: gone on with" train "$work/flipped" "${steps[@]}" --resume --set 'train.stop=21 steps' --set train.keep=1
    says "passing over 1 damaged .*step-00000020/$file.*(damaged|does not fit)" "$file: is named"
    says 'going on from .*step-00000010' "$file: from the checkpoint before"
    claim "$file: numbers of one go" diff <(numbers "$work/whole" | head -n 20) <(numbers "$work/flipped" | head -n 20)
    claim "$file: what was saved last is not the one deleted" test -f "$work/flipped/ckpt/step-00000021/manifest.json"
done
for file in weights-0001-00001.safetensors.xxh ../latest; do                   # hints: nothing is lost with them
    rm -rf "$work/flipped"
    cp -r "$work/kinds" "$work/flipped"
    flip "$work/flipped/ckpt/step-00000020/$file"
    exits 0 "a bit of $file: gone on with" train "$work/flipped" "${steps[@]}" --resume --set 'train.stop=21 steps'
    says 'going on from .*step-00000020' "$file: from the newest"
done
for file in weights-0001-00001.safetensors model.moe; do
    rm -rf "$work/flipped"
    cp -r "$work/kinds" "$work/flipped"
    for step in 10 20; do flip "$work/flipped/ckpt/step-000000$step/$file"; done
    exits 1 "a bit of $file in both: refused" train "$work/flipped" "${steps[@]}" --resume
    says "step-00000020/$file.*(damaged|does not fit)" "$file in both: the newest is named"
done

# a resumed run must be the same run
exits 1 'another seed is refused' train "$work/half" "${steps[@]}" --set train.seed=7 --resume
says 'train.seed' 'with its reason'
exits 1 'another shape is refused' train "$work/half" "${steps[@]}" --set D=64 --resume
says 'step-00000040.*F32\[256,32\].*F32\[256,64\]' 'with both shapes'
says 'help: it was begun with --set D=32' 'and what it was begun with'
exits 1 'other data is refused' train "$work/half" "${steps[@]}" --set data.held_out=0.5 --resume
says 'other data' 'with its reason'
exits 1 'a run that is not there is refused' train "$work/nowhere" --resume
claim 'and nothing is made' test ! -e "$work/nowhere"
exits 0 'a finished run has nothing to do' train "$work/half" "${steps[@]}" --resume
says 'nothing to do' 'and says so'
claim 'and still has its numbers' same_numbers "$work/whole" "$work/half"
finish
