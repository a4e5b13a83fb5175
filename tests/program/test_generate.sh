#!/usr/bin/env bash
# Generation: deterministic, independent of how the prompt is cut, stops where it is told to, writes UTF-8.
. "$(dirname "$0")/common.sh"
run=$work/run
claim 'a run of 30 steps' train "$run" --set 'train.length=30 steps' --set train.lr=3e-3
prompt='In the beginning God created the heaven and the earth. And the earth was without form, and void; and'
say() { # NAME OPTION...: the text into $work/NAME
    local name=$1
    shift
    "$MOEC" generate "$run" --quiet --set generate.max_tokens=40 "$@" >"$work/$name" 2>"$log"
}
greedy=(--prompt "$prompt" --set generate.temperature=0)

claim 'greedy' say greedy "${greedy[@]}"
claim 'wrote something' test -s "$work/greedy"
claim 'greedy again' say again "${greedy[@]}"
claim 'the same text' cmp "$work/greedy" "$work/again"
for rows in 1 7 64 100; do
    claim "the prompt in pieces of $rows" say "rows$rows" "${greedy[@]}" --set generate.batch_tokens=$rows
    claim 'the same text' cmp "$work/greedy" "$work/rows$rows"
done
claim 'a short context that still fits' say context "${greedy[@]}" --set generate.context=160
claim 'the same text' cmp "$work/greedy" "$work/context"
claim 'interp' say interp "${greedy[@]}" --target interp
claim 'the same text' cmp "$work/greedy" "$work/interp"
# interp has its weights in rows, cpu in panels
half=("${greedy[@]}" --set generate.dtype=bf16)
claim 'in bf16' say half "${half[@]}"
claim 'wrote something' test -s "$work/half"
claim 'in bf16, in pieces of 7' say half7 "${half[@]}" --set generate.batch_tokens=7
claim 'the same text' cmp "$work/half" "$work/half7"
claim 'in bf16 by interp' say halfi "${half[@]}" --target interp
claim 'the same text' cmp "$work/half" "$work/halfi"
claim 'top_k = 1 is greedy' say topk --prompt "$prompt" --set generate.top_k=1
claim 'the same text' cmp "$work/greedy" "$work/topk"
claim 'top_p = 0 is greedy' say topp --prompt "$prompt" --set generate.top_p=0
claim 'the same text' cmp "$work/greedy" "$work/topp"
claim 'min_p = 1 is greedy' say minp --prompt "$prompt" --set generate.min_p=1 --set generate.top_p=1
claim 'the same text' cmp "$work/greedy" "$work/minp"

sampled=(--prompt "$prompt" --set generate.temperature=1 --set generate.top_p=1)
claim 'seed 1' say seed1 "${sampled[@]}" --set generate.seed=1
claim 'seed 1 again' say seed1b "${sampled[@]}" --set generate.seed=1
claim 'the same text' cmp "$work/seed1" "$work/seed1b"
claim 'seed 2' say seed2 "${sampled[@]}" --set generate.seed=2
claim 'another text' test "$(cmp "$work/seed1" "$work/seed2" >/dev/null; echo $?)" = 1
claim 'only UTF-8 is written' iconv -f UTF-8 -t UTF-8 "$work/seed1" "$work/seed2"

# a text for the stop: what greedy writes from its fifth to seventh byte
stop=$(tail -c +5 "$work/greedy" | head -c 3)
claim 'a stop text' say stopped "${greedy[@]}" --set "generate.stop=[\"$stop\"]"
claim 'ends before it' test "$(cat "$work/stopped")" = "$(awk -v RS='\001' -v s="$stop" '{ print substr($0, 1, index($0, s) - 1) }' "$work/greedy")"
claim 'repetition' say repetition "${greedy[@]}" --set generate.repetition=3
claim 'another text' test "$(cmp "$work/greedy" "$work/repetition" >/dev/null; echo $?)" = 1
claim 'an empty prompt' say empty --prompt '' --set generate.start=10
claim 'a prompt from standard input' sh -c "printf '%s' '$prompt' | '$MOEC' generate '$run' --quiet --prompt - --set generate.max_tokens=40 \
    --set generate.temperature=0 | cmp - '$work/greedy'"
exits 0 'with words about it' "$MOEC" generate "$run" "${greedy[@]}" --set generate.max_tokens=5
says '5 tokens' 'which are on standard error'
claim 'and only the text on standard output' test "$(wc -c <"$log.out")" -le 20

# several sequences in a run: each as if it were alone
printf '%s\n' 'In the beginning God created' x "$prompt" 'And the' 'The LORD is my shepherd; I shall not want.' Go And >"$work/prompts"
lines() { # NAME PATH OPTION...: a line of JSON for each prompt
    "$MOEC" generate "$2" --quiet --prompts "$work/prompts" --set generate.max_tokens=20 --set generate.temperature=1 "${@:3}" >"$work/$1" 2>"$log"
}
claim 'seven prompts, one after the other' lines alone "$run" --set generate.batch=1
claim 'seven lines' test "$(wc -l <"$work/alone")" = 7
for batch in 2 3 none 16; do
    claim "generate.batch = $batch" lines many "$run" --set generate.batch=$batch
    claim 'the same texts' cmp "$work/alone" "$work/many"
done
claim 'prompts in pieces' lines many "$run" --set generate.batch=3 --set generate.batch_tokens=5
claim 'the same texts' cmp "$work/alone" "$work/many"
claim 'by interp' lines many "$run" --set generate.batch=3 --target interp
claim 'the same texts' cmp "$work/alone" "$work/many"
claim 'in bf16, alone' lines half "$run" --set generate.batch=1 --set generate.dtype=bf16
claim 'in bf16, many' lines halves "$run" --set generate.dtype=bf16
claim 'the same texts' cmp "$work/half" "$work/halves"
for golden in mixtral_swa llama; do                 # a window, and none
    claim "$golden alone" lines alone tests/goldens/hf/$golden --set generate.batch=1
    claim "$golden, many" lines many tests/goldens/hf/$golden
    claim 'the same texts' cmp "$work/alone" "$work/many"
done
claim 'latent attention: one after the other' lines latent tests/goldens/hf/deepseek_v3
exits 1 'but not two at a time' lines latent tests/goldens/hf/deepseek_v3 --set generate.batch=2
cp "$log" "$log.err"
says 'generate.batch is 2, but a run of this model has one sequence: .*latent' 'and says why'

# a checkpoint instead of its run
claim 'of a checkpoint' "$MOEC" generate "$run/ckpt/step-00000030" --quiet "${greedy[@]}" --set generate.max_tokens=40
exits 0 'eval' "$MOEC" eval "$run"
prints '^loss [0-9.]+ +perplexity [0-9.]+ +bits per byte [0-9.]+' 'prints a line'
exits 0 'eval of other text' "$MOEC" eval "$run" --set 'data.source=text("models/kjv.txt")' --set data.held_out=0.0005
prints '^loss' 'and prints a line'

# a checkpoint stands alone: the model's own imports and the library are not needed any more
mkdir "$work/own"
cp models/kjv.txt "$work/own"
printf 'import std.norm\nfn my_norm(x[..., D]) {\n  return rms_norm(x) as inner\n}\n' >"$work/own/parts.moe"
sed -e '0,/^import /s//import "parts.moe" as parts\nimport /' -e 's/rms_norm(x) as norm/parts.my_norm(x) as norm/' \
    "$model" >"$work/own/model.moe"
exits 0 'a model with a file of its own' "$MOEC" train "$work/own/model.moe" "${tiny[@]}" --set 'train.length=2 steps' --out "$work/own/run"
rm "$work/own/parts.moe" "$work/own/model.moe"
exits 0 'is evaluated without it' env MOEC_MODELS="$work/none" "$MOEC" eval "$work/own/run"
exits 0 'and continues text' env MOEC_MODELS="$work/none" "$MOEC" generate "$work/own/run" --prompt a --set generate.max_tokens=3

# refused
exits 1 'a prompt longer than the context' "$MOEC" generate "$run" "${greedy[@]}" --set generate.context=32
says 'context|32' 'and says so'
for set in generate.temperature=-1 generate.top_p=1.5 generate.top_k=-2 generate.min_p=2 generate.repetition=0 generate.max_tokens=0 \
    generate.temperature=hot generate.batch_tokens=0 generate.batch=0 'generate.stop=[3]'; do
    exits 1 "$set is refused" "$MOEC" generate "$run" --prompt a --set "$set"
    says "${set%%=*}" 'by name'
done
exits 1 'an unknown setting' "$MOEC" generate "$run" --prompt a --set generate.temprature=1
says "did you mean.*temperature" 'with a suggestion'
exits 1 'no run' "$MOEC" generate "$work/none-such" --prompt a
says 'none-such' 'by name'
mkdir "$work/hollow"
exits 1 'a folder without a checkpoint' "$MOEC" generate "$work/hollow" --prompt a
says 'hollow' 'by name'
cp -r "$run" "$work/bad"
printf 'xxxx' | dd of="$work/bad/ckpt/step-00000030/weights-00001.safetensors" bs=1 seek=20000 conv=notrunc status=none
exits 1 'a damaged checkpoint' "$MOEC" generate "$work/bad" --prompt a
says 'damaged' 'and says what is damaged'
claim 'and writes no text' test ! -s "$log.out"
finish
