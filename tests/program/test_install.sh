#!/usr/bin/env bash
# What cmake --install lays down works by itself: under a name with a space, from another folder.
. "$(dirname "$0")/common.sh"
folder=$(dirname "$(dirname "$MOEC")")
command -v cmake >/dev/null && [ -f "$folder/cmake_install.cmake" ] && [ -f "$folder/share/moec.1" ] ||
    { echo 'skip all: there is no cmake, or no whole build folder around the program'; exit 77; }
root="$work/an install"
claim 'cmake --install' cmake --install "$folder" --prefix "$root"
for file in bin/moec lib/moec/libtrainer.a lib/moec/libruntime.a lib/moec/libir.a share/moec/models/std \
            share/moec/models/kjv.txt share/doc/moec/LICENSE; do
    claim "lays down $file" test -e "$root/$file"
done
claim 'a man page' grep -q '^\.TH MOEC 1' "$root/share/man/man1/moec.1"
claim 'a completion' bash -c '. "$1" && complete -p moec' sh "$root/share/bash-completion/completions/moec"

MOEC="$root/bin/moec"
models="$root/share/moec/models"
mkdir "$work/elsewhere"
cd "$work/elsewhere" || exit 1
model="$models/tiny_mixtral.moe"
claim 'train' train run --set 'train.length=3 steps'
if [ -f "$root/lib/moec/moec_mpi.so" ] && command -v mpirun >/dev/null; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}   # Open MPI keeps some
    claim 'train on two ranks' mpirun --oversubscribe -n 2 "$MOEC" train "$model" "${tiny[@]}" --set 'train.length=3 steps' --out ranks
fi
exits 0 'generate' "$MOEC" generate run --prompt 'And God' --set generate.max_tokens=10
exits 0 'build' "$MOEC" build "$model" "${tiny[@]}" --set 'train.length=3 steps' -o "it's a trainer"
exits 0 'its trainer trains' "./it's a trainer" train --out built
claim 'to the same weights' same_weights run built

# a router that only the installed folder has
sed 's/fn top_k/fn only_here/' "$models/routing/top_k.moe" >"$models/routing/only_here.moe"
sed 's/top_k/only_here/' "$model" >own.moe
exits 0 'a model of one'\''s own imports from the installed folder' "$MOEC" check own.moe
claim 'which needs no right to write there' test -z "$(find "$root" -newer own.moe)"
finish
