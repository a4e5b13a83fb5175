#!/usr/bin/env bash
# The command line: help, suggestions, exit statuses, results alone on standard output, texts in order.
. "$(dirname "$0")/common.sh"
moec() { "$MOEC" "$@"; }

# ---- help
exits 0 'no arguments: first steps' moec
prints 'moec train models/tiny_mixtral.moe' 'with commands to try'
exits 0 '--help' moec --help
prints 'Exit status' 'tells exit statuses'
commands=$(awk '/^  [a-z]+ +[a-z]/ { print $1 }' "$log.out")
claim 'lists the commands' test "$(wc -w <<<"$commands")" -ge 10
for command in $commands; do
    exits 0 "$command --help" moec "$command" --help
    prints "^moec $command" 'begins with its name'
    prints "^  moec $command" 'and has an example'
    claim 'on standard output only' test ! -s "$log.err"
    exits 0 "help $command" moec help "$command"
done
exits 0 '--version' moec --version
prints '^moec [0-9]+\.[0-9]+' 'is a line'
claim 'no line of help is wider than 120' test -z "$(for c in $commands; do "$MOEC" "$c" --help; done | awk 'length > 120')"

# ---- mistakes
MOE_DEBUG=help exits 0 'MOE_DEBUG=help' moec check $model
prints '^  dump:PASS .*prints the graph' 'lists the switches'
claim 'and does nothing else' sh -c '! grep -q "active per token" "$0"' "$log.out"
MOE_DEBUG=time,dumb:fuse exits 2 'an unknown switch' moec check $model
says "MOE_DEBUG: there is no switch 'dumb'" 'is named'
exits 2 'an unknown command' moec trian
says "did you mean 'train'" 'with a suggestion'
exits 2 'nothing like a command' moec xyzzy
says 'moec --help' 'with a hint'
exits 2 'an unknown option' moec train $model --ouut x
says "did you mean '--out'" 'with a suggestion'
exits 2 'an option of another command' moec check $model --resume
exits 2 'an option without its value' moec train $model --out
says '--out DIR' 'says what is missing'
exits 2 'a flag with a value' moec check $model --quiet=yes
exits 2 'no file' moec train
says 'FILE.moe' 'says what is missing'
exits 2 'two files' moec check $model $model
exits 2 'a wrong colour' moec check $model --color blue
says 'auto, always' 'with those there are'
exits 1 'a file that is not there' moec check "$work/none.moe"
says 'none.moe: No such file' 'by name'
exits 1 'a folder' moec check "$work"
printf 'model m(tokens: i32[B, S]) {\n  x = "\377\376"\n}\n' >"$work/latin.moe"
exits 1 'a file that is no UTF-8' moec check "$work/latin.moe"
head -c 4000 /dev/urandom >"$work/noise.moe"
exits 1 'noise' moec check "$work/noise.moe"
claim 'is told in few lines' test "$(wc -l <"$log.err")" -lt 80
printf 'model m(tokens: i32[B, S], V = 8, D = 4) {\n  param e[V, D] = normal(0.02)\n  return take(e, tokenz)\n}\n' >"$work/typo.moe"
exits 1 'a wrong name' moec check "$work/typo.moe"
says 'typo.moe:3:18: error' 'with its place'
says "did you mean 'tokens'" 'with a suggestion'
: >"$work/empty.moe"
exits 1 'a file without a model is not trained' moec train "$work/empty.moe" --out "$work/x"
says 'holds no model' 'and told so'
for set in DD=3 D=abc D= D '=3' train.lrr=3 trian.lr=3 'train.length=12 fortnights' train.lr=fast train.batch=0; do
    exits 1 "--set '$set' is refused" moec check $model --set "$set"
    says '<--set>:1:[0-9]+: error' 'with its place'
done
for set in D=-1 D=1.5 N=3; do
    exits 1 "--set '$set' is refused" moec check $model --set "$set"
    says "${set#*=}" 'by its value'
done
exits 1 '--set DD=3' moec check $model --set DD=3
says "did you mean 'D'" 'with a suggestion'
for set in D=64 'D = 2 ** 7' train.lr=1e-3 'train.length=2 epochs' 'train.length=4M tokens' train.schedule=constant 'train.schedule=cosine(warmup: 5 steps)' \
    'generate.stop=["a", "b"]' train.stop=none 'train.save_every=10 minutes'; do
    exits 0 "--set '$set'" moec check $model --set "$set"
done

# ---- results alone on standard output
exits 0 'check' moec check $model
prints 'parameters +[0-9,]+' 'reports parameters'
prints 'active per token +[0-9,]+' 'and the active ones'
claim 'says nothing else' test ! -s "$log.err"
exits 0 'check --doc' moec check $model --doc moe
exits 0 'check --function' moec check $model --function 'swiglu(x[B, S, 64], H: 96)'
exits 0 'train --quiet' train "$work/run" --quiet --set 'train.length=2 steps'
claim 'says nothing at all' test ! -s "$log.err" -a ! -s "$log.out"
exits 0 'train' train "$work/loud" --set 'train.length=2 steps'
claim 'says nothing on standard output' test ! -s "$log.out"
exits 0 'eval --quiet' moec eval "$work/run" --quiet
claim 'is one line' test "$(wc -l <"$log.out")" = 1 -a ! -s "$log.err"
exits 0 'generate --quiet' moec generate "$work/run" --quiet --prompt a --set generate.max_tokens=4
claim 'is text alone' test ! -s "$log.err"
for command in ops passes targets settings; do
    exits 0 "moec $command" moec $command
    claim 'prints a list' test "$(wc -l <"$log.out")" -ge 3 -a ! -s "$log.err"
done
exits 0 'moec ops topk' moec ops topk
exits 0 'moec settings data' moec settings data
claim 'has all keys of the block, each with a text' test "$(grep -A1 '^data[.]' "$log.out" | grep -c '^    .')" = "$(grep -c '^    {"data", ' frontend/blocks.c)"
exits 0 'moec settings train.lr' moec settings train.lr
claim 'has one' test "$(grep -c '^train' "$log.out")" = 1
exits 1 'moec settings train.leng' moec settings train.leng
says "did you mean 'train.length'" 'with a suggestion'
exits 1 'moec ops topkk' moec ops topkk
says "did you mean 'topk'" 'with a suggestion'
if [ -w /dev/full ]; then
    full() { "$MOEC" "$@" >/dev/full; }
    exits 1 'a full standard output' full check $model
    says 'No space left' 'is told'
fi
exits 1 'an existing --out' train "$work/run"
says '--resume' 'is refused with a way on'
exits 1 'an existing --out that is no run' sh -c "mkdir '$work/mine'; touch '$work/mine/file'; '$MOEC' train $model --out '$work/mine'"
claim 'which is left alone' test "$(ls "$work/mine")" = file

# ---- colour
escapes() { grep -c $'\033' "$log.err"; }
exits 1 'an error through a pipe' moec check "$work/typo.moe"
claim 'has no colour' test "$(escapes)" = 0
exits 1 '--color=always' moec check "$work/typo.moe" --color=always
claim 'has' test "$(escapes)" -gt 0
if command -v script >/dev/null; then
    on_terminal() { TERM=xterm script -qec "$*" "$work/typescript" >/dev/null; }
    on_terminal "'$MOEC' check '$work/typo.moe'"
    claim 'on a terminal it has colour' grep -q $'\033\[' "$work/typescript"
    on_terminal "'$MOEC' check '$work/typo.moe' --color=never"
    claim 'but not with --color=never' test "$(grep -c $'\033\[' "$work/typescript")" = 0
    on_terminal "NO_COLOR=1 '$MOEC' check '$work/typo.moe'"
    claim 'nor with NO_COLOR' test "$(grep -c $'\033\[' "$work/typescript")" = 0
    on_terminal "'$MOEC' train $model ${tiny[*]} --set 'train.length=5 steps' --out '$work/tty'"
    claim 'the progress is one line that is rewritten' test "$(tr '\r' '\n' <"$work/typescript" | grep -c '^step [0-9]*/5')" -ge 2 -a \
        "$(grep -c 'step [0-9]*/5' "$work/typescript")" = 1
fi

# ---- man page and completion
exits 0 '--man' moec --man
prints '^\.TH MOEC' 'is a man page'
if command -v man >/dev/null && cp "$log.out" "$work/moec.1" && man -l "$work/moec.1" >"$work/page" 2>"$work/warnings"; then
    claim 'man shows every command' test "$(for c in $commands; do grep -cE "^ +moec $c" "$work/page"; done | grep -cx 0)" = 0
    claim 'without a warning' test ! -s "$work/warnings"
else skip 'man is not here'; fi
exits 0 '--completion' moec --completion
cp "$log.out" "$work/completion"
complete_words() { # WORD... CURRENT: what bash would offer
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _moec; echo "${COMPREPLY[@]}"' - "$work/completion" "$@"
}
claim 'bash completes commands' test "$(complete_words moec tr)" = train
claim 'and options' test "$(complete_words moec train x --resu)" = --resume
claim 'and files' test "$(complete_words moec check models/tiny_mi)" = "$model"
claim 'all commands are offered' test "$(complete_words moec '' | wc -w)" -ge "$(wc -w <<<"$commands")"
# ---- place
printf '{"layers.0": [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]}' >"$work/loads.json"
exits 0 'place' moec place "$work/loads.json" --ranks 8 --nodes 2 --slots 16 --groups 4
prints 'layer layers.0: max/mean load 1.208' 'as the reference has it'
prints 'rank 7 +11 +1\* +load 152' 'with the table of each rank'
exits 0 'place --json' moec place "$work/loads.json" --ranks 4 --json
prints '"max_over_mean":1.0726' 'is JSON'
exits 1 'slots that do not divide' moec place "$work/loads.json" --ranks 5
says "layers.0: 12 slots can't be dealt evenly to 5 ranks" 'are refused'
exits 1 'loads that are none' moec place "$model" --ranks 2
says 'tiny_mixtral.moe:1' 'are refused'
exits 2 'place without ranks' moec place "$work/loads.json"
says '[-][-]ranks N' 'says what is missing'

finish
