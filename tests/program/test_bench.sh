# `moec bench` measures what it says: tables and JSON hold the same keys, profiles add up, bad arguments are told.
. tests/program/common.sh
few=(--steps 2 --warmup 1)

# number KEY: of the last command's JSON, at the top
number() { sed -nE "s/^ \"$1\": ([-0-9.e+]+),?$/\1/p" "$log.out"; }
holds() { awk "BEGIN { exit !($1) }"; }          # a condition on numbers
is_json() {
    if command -v python3 >/dev/null; then python3 -m json.tool <"$1" >/dev/null
    elif command -v jq >/dev/null; then jq . <"$1" >/dev/null
    else skip 'JSON is read by another program: there is neither python3 nor jq'; fi
}
shrink=(--set D=32 --set L=2 --set H=32 --set train.sequence=32 --set train.batch=8)

exits 0 'steps of a model' "$MOEC" bench $model "${shrink[@]}" "${few[@]}" --profile --trace "$work/trace.json"
prints '^tokens/s +[0-9]' 'tokens per second'
prints '^share of fma +[0-9.]+%' 'the share of the machine'
prints '^peak MB +[1-9]' 'the peak of memory'
prints '^ *[0-9.]+ +[0-9.]+% .*idle' 'the profile ends with what threads waited'
claim 'the profile has ten lines' test "$(sed -n '/share of limit/,$p' "$log.out" | wc -l)" = 11
claim 'the trace is JSON' is_json "$work/trace.json"
claim 'the trace names kernel, rates and share of the limit' \
    grep -qE '"kernel": "moec_[a-z_]+[0-9a-f]+".*"gflop_s": [0-9.]+, "gb_s": [0-9.]+, "share_of_limit": [0-9.]+, "source": "[^"]+:[0-9]+"' "$work/trace.json"

exits 0 'steps on two ranks' "$MOEC" bench $model "${shrink[@]}" "${few[@]}" --local 2 --set parallel.ep=2 --json --trace "$work/ranks.json"
claim 'rows are exposed no longer than they and their starts take' holds "$(number rows_exposed_ms) > 0 && $(number rows_under_way_ms) > 0"
claim 'the busiest rank has the mean or more' holds "$(number most_rows_over_mean) >= 1 && $(number most_rows_over_mean) <= 2"
claim 'each rank writes its trace' is_json "$work/ranks.1.json"
claim 'with what is under way' grep -qE '"ph": "b", "cat": "exchange".*"pid": 2.*"exchange_rows".*"bytes": [1-9]' "$work/ranks.1.json"
exits 0 'steps between which experts move' "$MOEC" bench $model "${shrink[@]}" --steps 6 --warmup 1 --local 2 --set parallel.ep=2 \
    --set 'parallel.rebalance=1 step' --set parallel.rebalance_gain=0 --json
claim 'experts have moved' holds "$(number experts_moved) > 0 && $(number moves_ms_a_step) > 0"

exits 0 'the same as JSON' "$MOEC" bench $model "${shrink[@]}" "${few[@]}" --profile --json
claim 'it is JSON' is_json "$log.out"
claim 'tokens of a step' test "$(number step_tokens)" = 256
claim 'rates fit' holds "$(number tokens_s) * $(number step_ms) / 1000 > 0.999 * 256 && $(number tokens_s) * $(number step_ms) / 1000 < 1.001 * 256"
claim 'launches are more than kernels' holds "$(number launches) >= $(number kernels) && $(number kernels) > 10"
sum=$(sed -nE 's/^   "share": ([-0-9.e+]+),$/\1/p' "$log.out" | awk '{ s += $1 } END { print s }')
claim 'shares of the profile are the whole' holds "$sum > 0.999 && $sum < 1.001"

exits 0 'a prompt and tokens' "$MOEC" bench $model "${shrink[@]}" --set generate.context=64 --set generate.batch_tokens=32 --generate \
    --prompt 32 --tokens 4 --rounds 2 --json --decode --profile
claim 'it is JSON' is_json "$log.out"
claim 'rates of prompt and tokens' holds "$(number prefill_tokens_s) > 0 && $(number decode_tokens_s) > 0"
# of 8 experts a token reads 2: per layer the matrices of 2 experts, attention's four and the router; the head
weights=$(((2 * (2 * 3 * 32 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 8 * 32) + 256 * 32) * 4))
claim 'weights that a token reads' holds "$(number weights_mb_a_step) * 1e6 > $weights && $(number weights_mb_a_step) * 1e6 < 1.2 * $weights"

exits 0 'products' "$MOEC" bench gemm --only '64x' --threads 1 --milliseconds 1 --json
claim 'it is JSON' is_json "$log.out"
claim 'what each was predicted to take' test "$(grep -cE '"predicted_us": [1-9]' "$log.out")" -gt 30
claim 'each kind of product' test "$(grep -cE '"product": "(8 experts )?(x w|x panels|dy w\^T|x\^T dy) 64x' "$log.out")" = 32

exits 0 'heads' "$MOEC" bench gemm --only 'head' --threads 2 --milliseconds 1
prints '^head gradient 4096x128x256 +bf16 +2' 'forward and backward'
exits 0 'gates' "$MOEC" bench gate --only 'T=1024 E=8 k=2' --width 16 --onehot --milliseconds 1 --json
claim 'it is JSON' is_json "$log.out"
claim 'with the formulation by masks' grep -qE '"times_onehot": [0-9.]+' "$log.out"
claim 'the least bytes' grep -qE '"least_mb": 0.393216' "$log.out"     # 5 of 16 and 2 of 8 columns, 1024 rows of f32
exits 0 'attention' "$MOEC" bench attention --only 'f32' --threads 1 --milliseconds 1
prints '^gradient 8x256, 6 heads of 64 +f32' 'its gradient'
prints '^token behind 575' 'single tokens'

exits 2 'nothing of that name' "$MOEC" bench gem
says "did you mean 'gemm'" 'what is near'
exits 2 'an option that would be without effect' "$MOEC" bench gemm --steps 3
says 'no use for --steps' 'which'
exits 1 'no such file' "$MOEC" bench "$work/none.moe"
says 'none.moe' 'by name'
exits 1 'no number' "$MOEC" bench $model --steps many
says "not 'many'" 'by its text'
exits 0 'single tokens on two ranks' "$MOEC" bench $model "${shrink[@]}" --set generate.context=64 --generate --decode --prompt 8 --tokens 4 --rounds 1 \
    --local 2 --set parallel.ep=2 --trace "$work/decode.json"
claim 'each rank writes its trace of them' test "$(grep -lE '"name": "grouped_matmul"' "$work/decode.json" "$work/decode.1.json" | wc -l)" = 2
exits 1 'too long a prompt' "$MOEC" bench $model "${shrink[@]}" --set generate.context=64 --generate --prompt 100
says 'generate.context, which is 64' 'the setting'
exits 1 'a peer that is not there' "$MOEC" bench gemm --peer "$work/none.so"
says 'none.so' 'by name'
exits 1 'no such product' "$MOEC" bench gemm --only 'hexagons' --milliseconds 1
says "'hexagons'" 'the text'
exits 1 'images' "$MOEC" bench models/cifar10_moe.moe
finish
