# What the scripts of this folder share: the tiny model they train, a folder of their own, one line per claim.
# Sourced with the source folder as current folder and MOEC naming the program.
set -u
: "${MOEC:?names the program moec}"
MOEC=$(realpath "$MOEC")
passed=0 failed=0
work=$(mktemp -d)
log=$work/log                                   # of the last claim's command
children=()
cleanup() {
    for child in "${children[@]}"; do kill -9 "$child" 2>/dev/null; done
    chmod -R u+w "$work"
    rm -rf "$work"
}
trap cleanup EXIT
export XDG_CACHE_HOME=${MOEC_TEST_CACHE:-$work/cache} LC_ALL=C.UTF-8
unset NO_COLOR MOEC_MODELS MOEC_LIB OMP_NUM_THREADS

model=models/tiny_mixtral.moe
tiny=(--set D=32 --set L=2 --set H=32 --set train.sequence=32 --set train.batch=8 --set data.held_out=0.001)

own_cache() { export XDG_CACHE_HOME=$work/cache; }        # of those that change what lies there

ok() {
    passed=$((passed + 1))
    echo "ok   $1"
}

not_ok() { # CLAIM [WHY]
    failed=$((failed + 1))
    echo "FAIL $1${2:+: $2}"
}

skip() { echo "skip $1"; }

# claim TEXT COMMAND...: the command succeeds
claim() {
    local text=$1 status=0
    shift
    "$@" >"$log" 2>&1 || status=$?
    if [ $status = 0 ]; then ok "$text"; else
        not_ok "$text" "status $status from: $*"
        tail -n 15 "$log" | sed 's/^/     | /'
    fi
}

# exits STATUS TEXT COMMAND...: the command ends with this status; its output is in $log.out and $log.err
exits() {
    local want=$1 text=$2 status=0
    shift 2
    "$@" >"$log.out" 2>"$log.err" </dev/null || status=$?
    if [ $status = "$want" ]; then ok "$text"; else
        not_ok "$text" "status $status, not $want, from: $*"
        tail -n 15 "$log.err" | sed 's/^/     | /'
    fi
}

# says PATTERN TEXT: the last command of exits wrote a matching line on stderr
says() {
    if grep -qE -- "$1" "$log.err"; then ok "$2"; else
        not_ok "$2" "no line matches '$1' in:"
        tail -n 10 "$log.err" | sed 's/^/     | /'
    fi
}

prints() { # the same of stdout
    if grep -qE -- "$1" "$log.out"; then ok "$2"; else
        not_ok "$2" "no line matches '$1' in:"
        tail -n 10 "$log.out" | sed 's/^/     | /'
    fi
}

train() { # OUT OPTION...
    local out=$1
    shift
    "$MOEC" train "$model" "${tiny[@]}" --out "$out" "$@"
}

# begin ARGUMENT...: the program in the background, as process $pid.  (bash lets a background command ignore SIGINT;
# env gives it back.)
begin() {
    env --default-signal=INT "$MOEC" "$@" >"$log.out" 2>"$log.err" </dev/null &
    pid=$!
    children+=($pid)
}

# The numbers of a run that may not differ: all but rates and times.
numbers() { sed -E 's/, "(tokens_per_s|mfu|seconds)": [^,}]*//g' "$1/metrics.jsonl"; }
steps_of() { sed -E 's/^\{"step": ([0-9]+).*/\1/' "$1/metrics.jsonl"; }
newest() { find "$1/ckpt" -maxdepth 1 -name 'step-*' | sort | tail -n 1; }

same_numbers() { [ -s "$1/metrics.jsonl" ] && diff <(numbers "$1") <(numbers "$2"); }

# Every tensor file of the newest checkpoints of two runs is the same, byte by byte.
same_weights() {
    local a b file n=0
    a=$(newest "$1")
    b=$(newest "$2")
    [ -n "$a" ] && [ "$(basename "$a")" = "$(basename "$b")" ] || { echo "newest: '$a' and '$b'"; return 1; }
    for file in "$a"/*.safetensors; do
        cmp "$file" "$b/$(basename "$file")" || return 1
        n=$((n + 1))
    done
    [ $n -gt 0 ]
}

# Names and hashes of all tensors of the newest checkpoint, not where they lie.
tensors() {
    sed -nE '/^ "tensors": \{$/,/^ \}/ { s/^  "(.*)": \{$/\1/p; s/^   "hash": "(.*)",$/\1/p }' "$(newest "$1")/manifest.json" |
        paste - - | sort
}
same_tensors() {
    [ -n "$(newest "$1")" ] && [ "$(basename "$(newest "$1")")" = "$(basename "$(newest "$2")")" ] &&
        [ "$(tensors "$1" | wc -l)" -gt 20 ] && diff <(tensors "$1") <(tensors "$2")
}

# Ends the test where ranks can't be processes.
needs_mpi() {
    export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so
    [ -f "$MOEC_MPI_LIBRARY" ] && command -v mpirun >/dev/null || { skip 'MPI (libopenmpi-dev openmpi-bin)'; exit 77; }
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work
    export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}                          # Open MPI keeps some
}

# Ranks and launchers of a supervised run.
of_run() { pgrep -f -- "$MOEC train .*--out $1 --resume"; }

# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
    local tenths=$(($1 * 10))
    shift
    until "$@" 2>/dev/null; do
        tenths=$((tenths - 1))
        [ $tenths -gt 0 ] || return 1
        sleep 0.1
    done
}

has_said() { grep -q -- "$1" "$log.err"; }      # PATTERN: what begin started wrote
has_lines() { [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; } # FILE N

finish() {
    echo "$passed passed, $failed failed"
    [ $failed = 0 ]
    exit
}
