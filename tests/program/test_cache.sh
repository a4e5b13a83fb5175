#!/usr/bin/env bash
# Compiled code is kept by what it was made from: a second start compiles nothing, a damaged file is made again.
. "$(dirname "$0")/common.sh"
own_cache
model=$work/small.moe                            # few kernels: it is compiled over and over
tiny=(--set 'data.source=text("models/kjv.txt")' --set train.batch=8 --set train.sequence=32 --set data.held_out=0.001)
cat >"$model" <<'END'
import std.basic, std.norm
model small(tokens: i32[B, S], labels: i32[B, S], V = 256, D = 32) {
  param embed[V, D] = normal(0.02)
  logits = linear(rms_norm(take(embed, tokens)) as norm, V) as head
  loss ce = cross_entropy(logits, labels)
  return logits
}
END
steps=(--set 'train.length=2 steps')
compiled() { sed -En 's/.* ([0-9]+) compiled, ([0-9]+) from the cache.*/\1 \2/p' "$log.err"; }

exits 0 'a first start' train "$work/a" "${steps[@]}"
read -r made kept <<<"$(compiled)"
claim 'compiles its kernels' test "$made" -gt 10 -a "$kept" = 0
exits 0 'a second start' train "$work/b" "${steps[@]}"
claim 'compiles nothing' test "$(compiled)" = "0 $made"
claim 'and has the same bits' same_weights "$work/a" "$work/b"
exits 0 'another learning rate' train "$work/c" "${steps[@]}" --set train.lr=5e-4 --set 'train.length=3 steps'
claim 'compiles nothing' test "$(compiled)" = "0 $made"
exits 0 'another width' train "$work/d" "${steps[@]}" --set D=48
read -r more kept <<<"$(compiled)"
claim 'compiles again' test "$more" -gt 0
exits 0 'other machine code' train "$work/e" "${steps[@]}" --target-cpu sse2
read -r more kept <<<"$(compiled)"
claim 'compiles again' test "$more" -gt 10 -a "$kept" = 0

# damage: every file of code is cut, then one byte of each is changed, then each is empty
code() { find "$XDG_CACHE_HOME" -type f ! -name 'tokens-*'; }
claim 'the cache holds files of code' test "$(code | wc -l)" -gt 0
code | while read -r file; do truncate -s -7 "$file"; done
exits 0 'all files cut' train "$work/f" "${steps[@]}"
claim 'are made again' test "$(compiled)" = "$made 0"
claim 'with the same bits' same_weights "$work/a" "$work/f"
code | while read -r file; do printf '\252' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none; done
exits 0 'a byte changed in each' train "$work/g" "${steps[@]}"
claim 'are made again' test "$(compiled)" = "$made 0"
claim 'with the same bits' same_weights "$work/a" "$work/g"
code | while read -r file; do : >"$file"; done
exits 0 'empty files' train "$work/h" "${steps[@]}"
claim 'are made again' test "$(compiled)" = "$made 0"
find "$XDG_CACHE_HOME" -name 'tokens-*' | while read -r file; do truncate -s -5 "$file"; done
exits 0 'a cut file of tokens' train "$work/i" "${steps[@]}"
says 'data: [0-9,]+ tokens:' 'is made again'
claim 'with the same bits' same_weights "$work/a" "$work/i"

# how many rows there are at most is in code, too
wide=(--set D=32 --set L=1 --set H=32 --set train.sequence=32 --set train.batch=8 --set data.held_out=0.001)
text() { "$MOEC" generate "$work/moe" --quiet --prompt 'The LORD is my shepherd; I shall not want. He maketh me' --set generate.max_tokens=8 "$@"; }
exits 0 'a model with experts' "$MOEC" train models/tiny_mixtral.moe "${wide[@]}" --set 'train.length=1 steps' --out "$work/moe"
exits 0 'a prompt in pieces of 4 tokens' text --set generate.batch_tokens=4
cp "$log.out" "$work/pieces"
exits 0 'and whole' text
claim 'with the same text' cmp "$work/pieces" "$log.out"

# no place to keep code
mkdir "$work/ro"
chmod 500 "$work/ro"
if [ "$(id -u)" = 0 ]; then ro=/proc/moec-cache; else ro=$work/ro; fi       # root writes into folders of mode 500
exits 0 'a cache that cannot be written' env XDG_CACHE_HOME="$ro" "$MOEC" train "$model" "${tiny[@]}" "${steps[@]}" --out "$work/j"
claim 'works without one' test "$(compiled)" = "$made 0"
claim 'with the same bits' same_weights "$work/a" "$work/j"
exits 0 'no home at all' env -u HOME -u XDG_CACHE_HOME "$MOEC" check "$model" "${tiny[@]}"

# two at once share one cache
rm -rf "$XDG_CACHE_HOME"
train "$work/k" "${steps[@]}" >/dev/null 2>&1 &
first=$!
claim 'two begin with an empty cache' train "$work/l" "${steps[@]}"
claim 'both end well' wait $first
claim 'the first has the same bits' same_weights "$work/a" "$work/k"
claim 'the second too' same_weights "$work/a" "$work/l"
exits 0 'a third' train "$work/m" "${steps[@]}"
claim 'compiles nothing' test "$(compiled)" = "0 $made"
claim 'nothing half-written is left in the cache' test -z "$(find "$XDG_CACHE_HOME" -name '*tmp*')"
finish
