#!/usr/bin/env bash
# Data as people have it: other tokenizers, several files, bytes that are no text, too little of it.
. "$(dirname "$0")/common.sh"
two=(--set 'train.length=2 steps')
gpt2=$PWD/tests/goldens/tokenizers/gpt2
text=$work/kjv.txt
head -c 300000 models/kjv.txt >"$text"
source_of() { printf 'data.source=text("%s")' "$1"; }

# gpt2
if [ -f "$gpt2/vocab.json" ]; then
    exits 1 'gpt2 ids in a model of 256 are refused' train "$work/small" "${two[@]}" --set "data.tokenizer=gpt2(\"$gpt2\")"
    says '50257 ids.*256' 'with both numbers'
    big=(--set V=50257 --set D=16 --set H=16 --set "data.tokenizer=gpt2(\"$gpt2\")" --set "$(source_of "$text")")
    exits 0 'gpt2 in a model that has its ids' train "$work/gpt2" "${two[@]}" "${big[@]}"
    says 'data: [0-9,]+ tokens:' 'tokens are counted'
    exits 0 'the same again' train "$work/gpt2b" "${two[@]}" "${big[@]}"
    says 'data: [0-9,]+ tokens \(cached\)' 'its tokens were kept'
    claim 'and has the same bits' same_weights "$work/gpt2" "$work/gpt2b"
    exits 0 'generation from it' "$MOEC" generate "$work/gpt2" --prompt 'In the beginning' --set generate.max_tokens=8
    claim 'writes UTF-8' iconv -f UTF-8 -t UTF-8 "$log.out"
    exits 0 'its held-out text' "$MOEC" eval "$work/gpt2"
    prints 'bits per byte [0-9]' 'is measured in bits per byte of text'
    mkdir "$work/broken"
    head -c 5000 "$gpt2/vocab.json" >"$work/broken/vocab.json"
    cp "$gpt2/merges.txt" "$work/broken"
    exits 1 'a truncated vocabulary' train "$work/x" "${two[@]}" --set V=50257 --set "data.tokenizer=gpt2(\"$work/broken\")"
    says 'data.tokenizer.*vocab.json' 'by name'
else skip 'gpt2: its files are not here'; fi
exits 1 'a tokenizer whose folder is empty' train "$work/x" "${two[@]}" --set "data.tokenizer=gpt2(\"$work\")"
says 'data.tokenizer.*vocab.json' 'names the file it misses'
exits 1 'a tokenizer that does not exist' train "$work/x" "${two[@]}" --set data.tokenizer=words
says "words" 'by name'

# files
: >"$work/empty.txt"
exits 1 'an empty file' train "$work/x" "${two[@]}" --set "$(source_of "$work/empty.txt")"
says 'empty.txt.*0 tokens' 'by name'
exits 1 'a missing file' train "$work/x" "${two[@]}" --set "$(source_of "$work/none.txt")"
says 'none.txt: No such file' 'by name'
exits 1 'a folder' train "$work/x" "${two[@]}" --set "$(source_of "$work")"
says 'not a plain file' 'is no text'
if [ "$(id -u)" != 0 ]; then
    install -m 000 "$text" "$work/secret.txt"
    exits 1 'an unreadable file' train "$work/x" "${two[@]}" --set "$(source_of "$work/secret.txt")"
    says 'secret.txt: Permission denied' 'by name'
else skip 'an unreadable file: root reads all'; fi
head -c 32 "$text" >"$work/short.txt"
exits 1 'a text shorter than a sequence and its label' train "$work/x" "${two[@]}" --set "$(source_of "$work/short.txt")"
says '32 tokens.*sequence of 32' 'with the lengths'
claim 'none of these made anything' test ! -e "$work/x"
head -c 33 "$text" >"$work/one.txt"
exits 0 'a text of exactly one sequence and its label' train "$work/one" "${two[@]}" --set data.held_out=0 --set "$(source_of "$work/one.txt")"
says '1 samples?' 'is one sample'
head -c 50000 /dev/urandom >"$work/noise.txt"
exits 0 'bytes that are no UTF-8' train "$work/noise" "${two[@]}" --set "$(source_of "$work/noise.txt")"
exits 0 'two files' train "$work/two" "${two[@]}" --set "data.source=text(\"$text\", \"$work/noise.txt\")"
says 'data: 350,000 tokens' 'are read one after the other'
printf 'a\0b%.0s' $(seq 2000) >"$work/zeros.txt"
exits 0 'zero bytes' train "$work/zeros" "${two[@]}" --set "$(source_of "$work/zeros.txt")"

# held-out text
exits 0 'data.held_out=0' train "$work/all" "${two[@]}" --set data.held_out=0
says '0 held out' 'keeps nothing back'
exits 1 'eval then has nothing to measure' "$MOEC" eval "$work/all"
says 'held' 'and says so'
for bad in -0.1 1 lots; do exits 1 "data.held_out=$bad is refused" train "$work/x" "${two[@]}" --set data.held_out=$bad; done
claim 'in order: shuffle = false' train "$work/ordered" "${two[@]}" --set data.shuffle=false
claim 'is another run' test "$(cmp "$(newest "$work/ordered")/weights-00001.safetensors" "$(newest "$work/all")/weights-00001.safetensors" >/dev/null 2>&1; echo $?)" = 1
exits 0 'quantities: an epoch' train "$work/epoch" --set "$(source_of "$work/zeros.txt")" --set 'train.length=1 epoch' --set data.held_out=0
says 'steps 1 to 24' 'is 187 samples in steps of 8, the last one begun'
exits 0 'quantities: 2560 tokens, saved each hour' train "$work/tokens" --set 'train.length=2560 tokens' \
    --set 'train.eval_every=5 steps' --set 'train.save_every=1 hour'
says 'step 10/10' 'are ten steps'
says 'step 5: held out' 'evaluated after the fifth'
finish
