#!/usr/bin/env bash
# An ahead-of-time trainer stands alone and computes the bits of moec train.
. "$(dirname "$0")/common.sh"
cc=${CC:-cc}
command -v "${cc%% *}" >/dev/null || { echo 'skip all: there is no C compiler to link with'; exit 77; }
source=$PWD
length=(--set 'train.length=8 steps')
exits 0 'moec build' "$MOEC" build "$model" "${tiny[@]}" "${length[@]}" -o "$work/trainer"
prints 'trainer' 'names what it made'
claim 'and nothing else is left beside it' test "$(cd "$work" && ls -d trainer*)" = trainer
if command -v ldd >/dev/null; then
    ldd "$work/trainer" >"$log.out" 2>&1
    claim 'ldd: no LLVM, no moec' test "$(grep -ciE 'LLVM|moec|not found' "$log.out")" = 0
fi
claim 'moec train' train "$work/a" "${length[@]}"

# without an environment (but a sanitizer's), from another folder; the text that was named when built is found
sanitizer=(${TSAN_OPTIONS:+"TSAN_OPTIONS=$TSAN_OPTIONS"} ${OMP_TOOL_LIBRARIES:+"OMP_TOOL_LIBRARIES=$OMP_TOOL_LIBRARIES"})
alone() { (cd / && env -i "${sanitizer[@]}" "$work/trainer" "$@"); }
exits 0 'the trainer trains in an empty environment' alone train --out "$work/b"
claim 'nothing on standard output' test ! -s "$log.out"
says 'step 8/8' 'it tells its progress'
claim 'weights and moments of moec train' same_weights "$work/a" "$work/b"
claim 'numbers of moec train' same_numbers "$work/a" "$work/b"

exits 0 'eval' alone eval "$work/b"
cp "$log.out" "$work/eval.b"
exits 0 'moec eval of its run' "$MOEC" eval "$work/b"
numbers_of() { sed -E 's/, [0-9.]+ s\)//' "$1"; }
claim 'the same loss' diff <(numbers_of "$work/eval.b") <(numbers_of "$log.out")
ask=(--prompt 'And God' --set generate.max_tokens=30 --set generate.seed=3)
exits 0 'generate' alone generate "$work/b" "${ask[@]}"
cp "$log.out" "$work/text.b"
exits 0 'moec generate from its run' "$MOEC" generate "$work/b" "${ask[@]}"
claim 'the same text' cmp "$log.out" "$work/text.b"
exits 0 'the trainer reads runs of moec train' alone generate "$work/a" "${ask[@]}"
claim 'and continues alike' cmp "$log.out" "$work/text.b"

# what may still be set
exits 0 'lr, length, seed, held_out, saving' alone train --out "$work/c" --set train.lr=2e-3 --set 'train.length=6 steps' \
    --set train.seed=5 --set data.held_out=0.002 --set 'train.save_every=3 steps' --set train.keep=1
claim 'saved as asked' test "$(ls "$work/c/ckpt")" = "$(printf 'latest\nstep-00000006')"
claim 'moec train with the same' train "$work/d" --set train.lr=2e-3 --set 'train.length=6 steps' --set train.seed=5 \
    --set data.held_out=0.002
claim 'same weights' same_weights "$work/c" "$work/d"
exits 0 'data of a path in the current folder' sh -c "cd '$source/models' && '$work/trainer' train --out '$work/e' \
    --set 'data.source=text(\"kjv.txt\")' --set 'train.stop=1 steps'"
exits 0 'stopped by train.stop' alone train --out "$work/f" --set 'train.stop=4 steps'
exits 0 'resumed' alone train --out "$work/f" --resume
claim 'has the bits of one go' same_weights "$work/a" "$work/f"

# what may not
for set in D=64 k=3 train.batch=4 train.sequence=64 train.dtype=bf16 train.clip=2 train.recompute=none generate.context=99 generate.dtype=bf16; do
    exits 1 "--set $set is refused" alone train --out "$work/x" --set "$set"
    says "'${set%%=*}' was fixed when this program was built" 'and says why'
done
exits 1 '--set train.lrr is refused' alone train --out "$work/x" --set train.lrr=1
says "no setting 'train.lrr'.*train\.lr'" 'with a suggestion'
exits 1 '--set generate.top_p=2 is refused' alone generate "$work/b" --set generate.top_p=2
exits 1 'an existing run is refused' alone train --out "$work/b"
says '--resume' 'and told how to go on'
exits 1 'a missing run' alone eval "$work/none"
exits 2 'no command' alone
exits 2 'an unknown command' alone fly
exits 2 'an unknown option' alone train --out "$work/x" --fast
exits 2 'train without --out' alone train
exits 2 'a bad number of threads' alone train --out "$work/x" --threads zero
exits 0 '--help' alone --help
prints 'train.*eval.*generate|generate RUN' 'tells the commands'
exits 0 'help after a command' alone train --help
claim 'nothing was made on the way' test ! -e "$work/x"

exits 1 'build without its libraries' env MOEC_LIB="$work" "$MOEC" build "$model" "${tiny[@]}" -o "$work/y"
exits 1 'build with a compiler that fails' env CC=false "$MOEC" build "$model" "${tiny[@]}" -o "$work/y"
says 'could not link.*libjansson-dev' 'says that linking failed, and what it takes'
exits 1 'build into a folder that is not there' "$MOEC" build "$model" "${tiny[@]}" -o "$work/none/y"
claim 'and leaves nothing' test -z "$(ls -d "$work"/y* 2>/dev/null)"
finish
