#!/usr/bin/env bash
# Inference on several ranks has the texts and numbers of one rank, and a rank holds its own experts only.
. "$(dirname "$0")/common.sh"
printf '%s\n' 'In the beginning God created' 'And the' x 'The LORD is my shepherd; I shall not want. He maketh me' Go >"$work/prompts"
say() { # NAME PATH OPTION...: a line of JSON for each prompt into $work/NAME
    local name=$1 path=$2
    shift 2
    "$MOEC" generate "$path" --quiet --prompts "$work/prompts" --set generate.max_tokens=16 --set generate.temperature=1 "$@" \
        >"$work/$name" 2>"$log" </dev/null
}
alike() { # ONE NAME PATH OPTION...
    local one=$1 name=$2
    claim "$name" say "$2" "${@:3}"
    claim "$name: the texts of one rank" cmp "$work/$one" "$work/$name"
}

run=$work/run
claim 'a run of 20 steps' train "$run" --set 'train.length=20 steps' --set train.lr=3e-3
claim 'one rank' say one "$run"
claim 'five lines' test "$(wc -l <"$work/one")" = 5
alike one ep2 "$run" --local 2 --set parallel.ep=2
alike one ep2-alone "$run" --local 2 --set parallel.ep=2 --set generate.batch=1
alike one ep4 "$run" --local 4 --set parallel.ep=4                       # a rank has two prompts, the others one
alike one dp2-ep2 "$run" --local 4 --set parallel.ep=2
alike one ep8 "$run" --local 8 --set parallel.ep=8                       # more ranks than prompts
alike one dp3 "$run" --local 3
alike one pieces "$run" --local 2 --set parallel.ep=2 --set generate.batch_tokens=3

# experts on several ranks, and such that move between calls
alike one replicas "$run" --local 2 --set parallel.ep=2 --set parallel.replicas=2 --set parallel.placement=random
moves=(--set 'parallel.rebalance=2 steps' --set parallel.rebalance_gain=0)
alike one moves "$run" --local 2 --set parallel.ep=2 "${moves[@]}" --set parallel.placement=round_robin
alike one moves-replicas "$run" --local 4 --set parallel.ep=4 --set parallel.replicas=4 "${moves[@]}" --set generate.batch_tokens=5
claim 'bf16 on one rank' say half "$run" --set generate.dtype=bf16
alike half moves-bf16 "$run" --local 2 --set parallel.ep=2 --set parallel.replicas=2 "${moves[@]}" --set generate.dtype=bf16
exits 0 'told' "$MOEC" generate "$run" --prompts "$work/prompts" --set generate.max_tokens=16 --local 2 --set parallel.ep=2 \
    --set parallel.replicas=2 "${moves[@]}"
says 'busiest rank at [0-9.]+ of the mean load; [1-9][0-9]* experts moved, ' 'how many moved, and what it brought'
exits 0 'eval with replicas' "$MOEC" eval "$run" --local 2 --set parallel.ep=2 --set parallel.replicas=2
cut -d\( -f1 "$log.out" >"$work/eval-replicas"

claim 'one prompt on one rank' sh -c "'$MOEC' generate '$run' --quiet --prompt 'And the' --set generate.max_tokens=16 >'$work/single'"
claim 'on four, three of which have no token' sh -c "'$MOEC' generate '$run' --quiet --prompt 'And the' --set generate.max_tokens=16 \
    --local 4 --set parallel.ep=4 | cmp - '$work/single'"
exits 0 'eval on one rank' "$MOEC" eval "$run"
cut -d\( -f1 "$log.out" >"$work/eval"
claim 'which has the numbers of the one with replicas' cmp "$work/eval" "$work/eval-replicas"
for ranks in 2 4; do
    exits 0 "eval on $ranks" "$MOEC" eval "$run" --local $ranks --set parallel.ep=$ranks
    claim 'the same numbers' diff "$work/eval" <(cut -d\( -f1 "$log.out")
done

# weights of Hugging Face
for model in mixtral deepseek_v3 qwen3_moe; do
    claim "$model: one rank" say "$model" tests/goldens/hf/$model
    alike $model $model-ep2 tests/goldens/hf/$model --local 2 --set parallel.ep=2
    alike $model $model-ep4 tests/goldens/hf/$model --local 4 --set parallel.ep=4
done
model=models/qwen2_moe.moe
claim 'a shared expert with a gate: two steps' "$MOEC" train "$model" --set D=32 --set L=2 --set V=256 --set N=4 --set KV=2 --set E=4 --set k=2 \
    --set H=32 --set HE=32 --set HS=32 --set 'data.source=text("models/kjv.txt")' --set data.tokenizer=bytes \
    --set train.sequence=32 --set train.batch=8 --set 'train.length=2 steps' --out "$work/qwen2-run"
claim 'one rank' say qwen2 "$work/qwen2-run"
alike qwen2 qwen2-ep2 "$work/qwen2-run" --local 2 --set parallel.ep=2
alike qwen2 qwen2-ep4 "$work/qwen2-run" --local 4 --set parallel.ep=4
model=models/tiny_mixtral.moe

# ranks that are processes, and experts that no single one has room for
export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so
if [ -f "$MOEC_MPI_LIBRARY" ] && command -v mpirun >/dev/null; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}   # Open MPI keeps some
    mpi() { TMPDIR=$work timeout 100 mpirun --oversubscribe --mca mpi_yield_when_idle 1 -n "$@"; }
    claim 'mpirun -n 2: prompts from standard input' sh -c "TMPDIR=$work timeout 100 mpirun --oversubscribe --mca mpi_yield_when_idle 1 -n 2 \
        '$MOEC' generate '$run' --quiet --prompts - --set generate.max_tokens=16 --set generate.temperature=1 --set parallel.ep=2 \
        <'$work/prompts' >'$work/mpi'"
    claim 'mpirun -n 2: the texts of one rank' cmp "$work/one" "$work/mpi"
    exits 0 'mpirun -n 2 moec eval' mpi 2 "$MOEC" eval "$run" --set parallel.ep=2
    claim 'the same numbers' diff "$work/eval" <(cut -d\( -f1 "$log.out")
    exits 1 'mpirun -n 2: no file of prompts' mpi 2 "$MOEC" generate "$run" --prompts "$work/none"
    claim 'said once' test "$(grep -c "$work/none" "$log.err")" = 1
    if ! nm "$MOEC" 2>/dev/null | grep -q '__[at]san_init'; then
        big=(--set D=256 --set H=2048 --set L=2 --set train.sequence=16 --set train.batch=2 --set train.lanes=2)
        small=(--prompt 'And the' --quiet --threads 1 --set generate.max_tokens=3 --set generate.context=64 --set generate.batch_tokens=16)
        claim 'experts of 100 MB' train "$work/big" "${big[@]}" --set 'train.length=1 steps' --set 'train.optimizer=sgd(momentum: 0)'
        limit() { (ulimit -d $((100 * 1024)); "$@"); }
        exits 1 'do not fit into 100 MB' limit "$MOEC" generate "$work/big" "${small[@]}"
        says 'no memory for 1[0-9.]+ MB' 'which is said'
        exits 0 'but on four ranks they do' mpi 4 bash -c 'ulimit -d $((100 * 1024)); exec "$@"' moec "$MOEC" generate "$work/big" \
            "${small[@]}" --set parallel.ep=4
        cp "$log.out" "$work/mpi"
        claim 'with the text of one rank' sh -c "'$MOEC' generate '$work/big' ${small[*]:2} --prompt 'And the' | cmp - '$work/mpi'"
    else skip 'memory limits (sanitizers need more)'; fi
else skip 'MPI (libopenmpi-dev openmpi-bin)'; fi

# what can't be
exits 1 'ep without ranks' "$MOEC" generate "$run" --prompt a --set parallel.ep=2
says 'asks for 2 ranks, but there is one' 'said so'
says 'help: moec generate --local 2' 'with help'
exits 1 'experts that ranks cannot share evenly' "$MOEC" generate "$run" --prompt a --local 16 --set parallel.ep=16
says 'has 8 experts, which 16 ranks' 'said so'
exits 1 'replicas on one rank' "$MOEC" generate "$run" --prompt a --set parallel.replicas=2
says 'parallel.replicas: one rank has all experts' 'said so'
exits 1 'eval that moves experts' "$MOEC" eval "$run" --local 2 --set parallel.ep=2 "${moves[@]}"
says 'parallel.rebalance: eval goes through its text once' 'said so'
exits 1 'two ways to give prompts' "$MOEC" generate "$run" --prompt a --prompts "$work/prompts"
says 'one of them' 'said so'
printf 'a\n\377\n' >"$work/bytes"
exits 1 'a prompt that is no UTF-8' "$MOEC" generate "$run" --prompts "$work/bytes"
says 'line 2 is not UTF-8' 'said so'
finish
