#!/usr/bin/env bash
# Reference results of other systems must be reproduced by compiled code and by the meaning of the ops.
# MOEC_GOLDENS=DIR names another set laid out alike: hf/*/, train/ (or train*/).  Every case found is run.
set -u
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
goldens=${MOEC_GOLDENS:-tests/goldens}
passed=0 failed=0 skipped=0
[ -z "${MOEC_TEST_CACHE:-}" ] || export XDG_CACHE_HOME=$MOEC_TEST_CACHE
log=$(mktemp)
trap 'rm -f "$log"' EXIT

one() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name: $(tail -n 1 "$log")"
    elif grep -q 'no model of models/ reads' "$log"; then
        skipped=$((skipped + 1))
        echo "skip $name: $(tail -n 1 "$log")"
    else
        failed=$((failed + 1))
        echo "FAIL $name: $*"
        tail -n 25 "$log"
    fi
}

on_ranks() { # NAME N ARGUMENT...: moec under mpirun
    local name="$1 on $2 ranks"
    if [ -f "$(dirname "$MOEC")/moec_mpi.so" ] && command -v mpirun >/dev/null; then
        # Open MPI keeps some memory
        ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-} one "$name" mpirun --oversubscribe --mca mpi_yield_when_idle 1 -n "$2" "$MOEC" "${@:3}" --threads 1
    else
        skipped=$((skipped + 1))
        echo "skip $name: MPI (libopenmpi-dev openmpi-bin)"
    fi
}

for dir in "$goldens"/hf/*/; do
    [ -f "$dir/reference.safetensors" ] || continue
    name=$(basename "$dir")
    one "$name" "$MOEC" verify "$dir"
    one "$name (ref, f64)" "$MOEC" verify --target ref --f64 "$dir"
    case $name in      # the balance loss of others is of one leaf
    mixtral*) on_ranks "$name" 2 verify "$dir" --set parallel.ep=2 --set aux_per=step ;;
    deepseek_v3*) on_ranks "$name" 2 verify "$dir" --set parallel.ep=2 ;;
    llama*) on_ranks "$name" 2 verify "$dir" ;;
    esac
done
for dir in "$goldens"/train*/; do
    [ -f "$dir/batches.safetensors" ] || continue
    name=$(basename "$dir")
    one "$name" "$MOEC" verify --train "$dir"
    on_ranks "$name" 4 verify --train "$dir" --set parallel.ep=2 --set train.lanes=4 --set aux_per=step \
        --set train.average=token
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $((passed + skipped)) -gt 0 ]
