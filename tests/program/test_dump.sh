#!/usr/bin/env bash
# Everything the compiler knows can be looked at, and what it prints it reads again.
. "$(dirname "$0")/common.sh"
dump() { "$MOEC" dump "$model" "${tiny[@]}" "$@"; }

"$MOEC" passes >"$work/passes"
passes=$(awk '/^train/ { on = 1; next } on { print; exit }' "$work/passes")
claim 'moec passes lists a pipeline' test "$(wc -w <<<"$passes")" -gt 8
for pass in input $(tr ' ' '\n' <<<"$passes" | sort -u); do
    exits 0 "after $pass" dump --after "$pass" --full --verify-each
    prints '^graph @pass stage' 'is a graph'
    cp "$log.out" "$work/$pass.ir"
    exits 0 'which is read again' "$MOEC" dump "$work/$pass.ir" --full
    claim 'as the same text' cmp "$log.out" "$work/$pass.ir"
done
exits 0 'with names and places' dump --after simplify --full --names --spans
prints '%x\.[0-9]+ = gather_rows %embed' 'has the names of the language'
prints 'loc\([0-9]+:[0-9]+:[0-9]+\)' 'and places in the text'
cp "$log.out" "$work/named.ir"
exits 0 'is read again' "$MOEC" dump "$work/named.ir" --full --names --spans
claim 'as the same text' cmp "$log.out" "$work/named.ir"
exits 0 'a pass over text' "$MOEC" dump "$work/input.ir" --passes simplify --full
claim 'is the pass over the program' cmp "$log.out" "$work/simplify.ir"
exits 0 'with four layers' dump --set L=4 --after simplify
prints '// layers\.[0-9].*: [0-9]+ nodes as layers\.[0-9]' 'equal ones are folded'
for program in pass update eval run; do
    exits 0 "@$program" dump --program $program
    prints "^graph @$program stage PLANNED" 'is planned to the end'
done
exits 0 'without a pass' dump --disable fuse --full
claim 'is another graph' test "$(cmp "$log.out" "$work/plan-memory.ir" >/dev/null; echo $?)" = 1
exits 0 '--time-passes' dump --time-passes
says 'simplify +[0-9.]+ ms' 'tells times on standard error'
exits 0 'bf16' dump --set train.dtype=bf16 --after precision
prints 'bf16\[' 'is in the types'

# where values are
ranks=(--set parallel.tp=2 --set parallel.ep=2 --set parallel.dp=2 --set parallel.zero=2)
for etp in 1 2; do
    for pass in partition layout; do
        exits 0 "of 8 ranks, etp $etp, after $pass" dump --after $pass --full "${ranks[@]}" --set parallel.etp=$etp
        cp "$log.out" "$work/ranks.ir"
        exits 0 'is read again' "$MOEC" dump "$work/ranks.ir" --full
        claim 'as the same text' cmp "$log.out" "$work/ranks.ir"
        claim 'with a place for each value that has leaves' sh -c '[ $(grep -cE "^  %.*\[L" "$0") -gt 60 ] && ! grep -E "^  %[^:]* : [a-z0-9]*\[L[^]]*\]( [!@]|$)" "$0" | grep -v "@ data:S0"' "$work/ranks.ir"
    done
done
exits 0 'of 8 ranks' dump --after partition "${ranks[@]}"
prints '= matmul .*\] @ data:S0 tp:S3' 'columns over tp'
prints '= matmul .*\] @ data:S0 tp:P' 'summands over tp'
prints '= grouped_dw .*\] @ exp:S0 edp:P tp:S[12]' 'gradients of experts before their sum'
exits 0 '@update of 8 ranks' dump --after partition "${ranks[@]}" --program update
prints 'state .*adam.m/.*\] @ exp:S0 edp:S1 tp:S[12]' 'moments of experts'
dump --after partition --full "${ranks[@]}" | sed 's/@ data:S0 tp:P/@ data:S0 tp:Q/' >"$work/wrong.ir"
exits 1 'a place that is none' "$MOEC" dump "$work/wrong.ir"
says 'expected a group of ranks \(data, exp, edp, tp\) and :S0, :P or :L, not tp:Q' 'is told'

exits 0 '--emit dot' dump --emit dot
prints '^digraph' 'is a graph for dot'
if command -v dot >/dev/null; then claim 'which dot reads' dot -Tsvg -o "$work/g.svg" "$log.out"; fi
exits 0 '--emit plan' dump --emit plan
prints '^plan +kernels [0-9]+' 'is the plan'
prints '^choose kernel [0-9]+ (product|sum|logits) [0-9]+x[0-9]+.*: [0-9.e-]+ ms( \| [0-9]+x[0-9]+.*: [0-9.e-]+ ms){2}  of [0-9]+$' \
    'with the three best ways to make a product and their predicted times'
exits 0 'of a program that only reads its parameters' dump --emit plan --program run
prints '^layout [a-z0-9.]+ [bf0-9]+\[[0-9,]+\] (P32V?T?|rows): [0-9.e-]+ ms \| (P32V?T?|rows): [0-9.e-]+ ms$' 'with the ways they may lie and their times'
exits 1 'of text that is not planned' "$MOEC" dump "$work/input.ir" --emit plan
says 'graph @pass is in stage WHOLE; --emit plan is made of graphs in stage PLANNED' 'is told'
says '--passes=.*autodiff,.*plan-memory' 'with the passes that go there'
exits 0 'of text that is' "$MOEC" dump "$work/plan-memory.ir" --emit plan
prints '^choose kernel' 'has choices as well'
exits 0 '--emit llvm' dump --emit llvm --program update
prints '^define ' 'is LLVM text'
for opt in opt-19 opt; do                       # kernels are modules of their own, one after the other
    command -v $opt >/dev/null || continue
    mkdir "$work/modules"
    awk -v dir="$work/modules" '/^; kernel / { n++ } { print >(dir "/" n ".ll") }' "$log.out"
    read_all() { for file in "$work"/modules/*.ll; do $opt -passes=verify -disable-output "$file" || return 1; done; }
    claim 'which LLVM reads' read_all
    break
done
exits 0 '--emit asm' dump --emit asm --program update
prints '^\s+(v?fmadd|vmul|ret|mov)' 'is assembly'
exits 0 '--emit asm for sse2' dump --emit asm --program update --target-cpu sse2
claim 'has no wide registers' test "$(grep -cE '%[yz]mm' "$log.out")" = 0

exits 0 '--html' dump --html "$work/page.html"
claim 'writes one page' test -s "$work/page.html"
claim 'that loads nothing' test "$(grep -cE '(src|href)="(https?:)?//' "$work/page.html")" = 0
for browser in chromium chromium-browser google-chrome; do
    command -v $browser >/dev/null || continue
    timeout 60 $browser --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --virtual-time-budget=3000 \
        --enable-logging=stderr --v=0 --dump-dom "file://$work/page.html" >"$work/dom" 2>"$work/console"
    claim 'opened in a browser it shows the model' grep -q 'tiny_mixtral' "$work/dom"
    claim 'draws something' grep -qE '<(svg|table|canvas)' "$work/dom"
    claim 'and no script fails' test "$(grep -cE 'CONSOLE.*(Uncaught|Error)' "$work/console")" = 0
    break
done

exits 1 'an unknown pass' dump --after fusee
says "did you mean 'fuse'" 'with a suggestion'
exits 1 'a pass of another pipeline' dump --program eval --after autodiff
exits 2 'an unknown --emit' dump --emit wasm
says 'ir, dot, plan, llvm, asm' 'with those there are'
exits 2 'an unknown --program' dump --program fly
exits 1 'a page that cannot be written' dump --html "$work/none/page.html"
says 'none/page.html' 'by name'
head -c 3000 "$work/simplify.ir" >"$work/cut.ir"
exits 1 'a cut graph' "$MOEC" dump "$work/cut.ir"
says 'cut.ir:[0-9]+:[0-9]+: error' 'with its place'
head -c 3000 /dev/urandom >"$work/noise.ir"
exits 1 'noise' "$MOEC" dump "$work/noise.ir"
exits 1 'a graph that is not there' "$MOEC" dump "$work/none.ir"
exits 0 'an empty graph file' sh -c ": >'$work/empty.ir'; '$MOEC' dump '$work/empty.ir'"
finish
