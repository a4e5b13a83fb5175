#!/usr/bin/env bash
# `moec check` takes every file of models/, and what can't be trained is said before anything is compiled.
. "$(dirname "$0")/../program/common.sh"

for file in models/*.moe models/*/*.moe; do
    exits 0 "check $file" "$MOEC" check "$file"
    claim 'without a word of complaint' test ! -s "$log.err"
done

exits 1 'images' "$MOEC" train models/cifar10_moe.moe --out "$work/x"
says 'data.source is cifar10.*trains on text' 'are refused by their source'
exits 1 'another source' train "$work/x" --set 'data.source=jsonl("a.jsonl")'
says 'trains on text' 'is refused'
exits 1 'a tokenizer larger than the model' train "$work/x" --set V=100
says 'bytes has 256 ids, but the model has room for 100.*--set V=256' 'is refused with what to set'
sed 's/labels: i32\[B, S\],/labels: i32[B, S], heads = 100,/; s/norm, V, split/norm, heads, split/' $model >"$work/narrow.moe"
cp models/kjv.txt "$work"
exits 1 'logits for fewer ids than the labels are' "$MOEC" train "$work/narrow.moe" "${tiny[@]}" --out "$work/x"
says 'room for 100' 'are refused too'
exits 0 'a keyword as the word of a key' train "$work/layer" --set train.recompute=layer --set 'train.length=1 steps' --set 'train.eval_every=none'
claim 'no run was begun by what was refused' test ! -e "$work/x"
finish
