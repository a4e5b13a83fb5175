#!/usr/bin/env bash
# What one layout saved any other goes on with: all 25 pairs of five layouts, to the same bits; damage and full disks.
. "$(dirname "$0")/common.sh"
steps=(--set 'train.length=3 steps' --set train.sequence=16
    --set train.eval_every=none --set data.held_out=0.0001 --threads 1)
declare -A layout=(
    [one]=''
    [dp4-zero2]='--local 4 --set parallel.zero=2'
    [dp2-ep2-zero1]='--local 4 --set parallel.ep=2 --set parallel.zero=1'
    [ep4-replicas]='--local 4 --set parallel.ep=4 --set parallel.replicas=8 --set parallel.placement=random'
    [dp4-ep2-zero2]='--local 8 --set parallel.ep=2 --set parallel.zero=2 --set parallel.placement=round_robin')
names=(one dp4-zero2 dp2-ep2-zero1 ep4-replicas dp4-ep2-zero2)

# run NAME LAYOUT OPTION...: a word of a layout is an option
run() { # shellcheck disable=SC2086
    train "$work/$1" "${steps[@]}" $2 "${@:3}"
}
goes_on() { # FROM TO LAYOUT: a copy of the first, to the end
    cp -r "$work/$1" "$work/$2" && run "$2" "$3" --resume
}

same_end() { diff <(numbers "$1" | tail -n 1) <(numbers "$2" | tail -n 1); }     # who stops evaluates

claim 'three steps in one go' run whole ''
for name in "${names[@]}"; do
    claim "$name: two steps" run "$name" "${layout[$name]}" --set 'train.stop=2 steps'
    claim "$name: the tensors of one rank" same_tensors "$work/one" "$work/$name"
done
for from in "${names[@]}"; do
    for to in "${names[@]}"; do
        claim "$from, then $to" goes_on "$from" "$from-$to" "${layout[$to]}"
        claim "$from, then $to: numbers of one go" same_end "$work/whole" "$work/$from-$to"
        claim "$from, then $to: tensors of one go" same_tensors "$work/whole" "$work/$from-$to"
        rm -rf "$work/$from-$to"
    done
done

# tp has bits of its own: whoever goes on with it gets the same ones, and so does whoever goes on from it
tp='--local 8 --set parallel.tp=2 --set parallel.ep=2 --set parallel.zero=2'
claim 'one, then tp 2' goes_on one one-tp '--local 2 --set parallel.tp=2'
for from in dp2-ep2-zero1 ep4-replicas; do
    claim "$from, then tp 2, ep 2, dp 2" goes_on "$from" "$from-tp" "$tp"
    claim "$from, then tp 2, ep 2, dp 2: tensors of one, then tp 2" same_tensors "$work/one-tp" "$work/$from-tp"
done
claim 'tp 2, ep 2, dp 2: two steps' run tp "$tp" --set 'train.stop=2 steps'
claim 'then one' goes_on tp tp-one ''
for to in dp4-zero2 dp4-ep2-zero2; do
    claim "then $to" goes_on tp "tp-$to" "${layout[$to]}"
    claim "then $to: tensors of it, then one" same_tensors "$work/tp-one" "$work/tp-$to"
done

# an expert's moments that four ranks had parts of: a byte, a file's end
claim 'a step more' run dp4-ep2-zero2 "${layout[dp4-ep2-zero2]}" --set 'train.stop=3 steps' --resume
moments=adam.m/layers.1.ffn.experts.5.w2
file_of() { grep -l "$moments" "$work/$1/ckpt/step-0000000$2"/state-*.safetensors; }      # RUN STEP
begin_of() { # RUN STEP
    sed -n "\\|\"$moments\": {|,/\"offset\"/s/.*\"offset\": \([0-9]*\).*/\1/p" "$work/$1/ckpt/step-0000000$2/manifest.json"
}
cp -r "$work/dp4-ep2-zero2" "$work/bent"
printf '\252' | dd of="$(file_of bent 3)" bs=1 seek=$(($(begin_of bent 3) + 1000)) conv=notrunc status=none
exits 0 'a damaged byte' run bent "${layout[dp2-ep2-zero1]}" --resume
says "going on from .*step-00000002" 'the checkpoint before it is taken'
says "passing over 1 damaged .*tensor '$moments' is damaged near element 0" 'and the damage is told'
claim 'with the bits of one go' same_tensors "$work/whole" "$work/bent"
cp -r "$work/dp4-ep2-zero2" "$work/cut"
for step in 2 3; do truncate -s -512 "$(file_of cut $step)"; done
exits 1 'both checkpoints truncated' run cut "${layout[dp2-ep2-zero1]}" --resume
says 'error: .*no checkpoint is whole; of the newest: .*state-.* has [0-9]+ bytes, not [0-9]+' 'ends with a reason'

# a disk that is full, and too few lanes
full() { (ulimit -f 60; trap '' XFSZ; run full "${layout[dp2-ep2-zero1]}" --set 'train.save_every=2 steps'); }
exits 1 'the disk is full each time' full
says 'checkpoint of step 2: cannot write.*training goes on' 'training goes on'
says 'error: (rank [0-3]: )?checkpoint of step 3' 'until the last checkpoint can not be written either'
claim 'nothing half-written is left of it' test -z "$(find "$work/full" -name '*tmp*')"
claim 'two steps of two lanes' run lanes '--local 2' --set train.lanes=2 --set 'train.stop=2 steps'
exits 1 'goes on with eight' run lanes "${layout[dp4-ep2-zero2]}" --resume
says 'lanes' 'is refused'
finish
