#!/usr/bin/env bash
# Measured rates: positive, kept by CPU, read by every command that makes code, measured anew if damaged; they change no bit.
. "$(dirname "$0")/common.sh"
own_cache
moec() { "$MOEC" "$@"; }
kept=$XDG_CACHE_HOME/moec/machine.json
dump=(dump $model "${tiny[@]}" --emit plan)

# ---- machine
exits 2 'nothing to bench' moec bench
says 'WHAT' 'says what is missing'
exits 2 'a misspelt thing' moec bench machina
says "did you mean 'machine'" 'with a suggestion'
exits 0 'bench machine' moec bench machine
prints '^f32 fma +1.00 ' 'tells the rate of arithmetic'
prints '^L2 ' 'and of caches'
prints '^ +[0-9]+ x [0-9]+ +f32' 'and of register tiles'
claim 'and keeps them' test -s "$kept"
sed -i -E 's/"tiles": \[/"ops": {"matmul": 0.5}, "tiles": [/' "$kept"
exits 0 'bench machine, where ops have shares' moec bench machine --quiet
claim 'leaves them' grep -qE '"matmul": 0.5' "$kept"
exits 0 'bench machine --json' moec bench machine --json --machine "$work/mine.json"
cp "$log.out" "$work/printed"
claim "prints what it keeps" cmp "$work/printed" "$work/mine.json"
if command -v python3 >/dev/null; then
    claim 'whose numbers are finite and positive' python3 - "$work/printed" <<'PY'
import json, math, sys
def check(x, path):
    if isinstance(x, dict):
        for k in x: check(x[k], path + "." + k)
    elif isinstance(x, list):
        for i, y in enumerate(x): check(y, path + "[%d]" % i)
    elif not isinstance(x, str):
        may_be_0 = path.endswith("_dot") or path.endswith(".size") or path.endswith(".probed")
        assert math.isfinite(x) and (x > 0 or may_be_0 and x == 0), (path, x)
(name, machine), = json.load(open(sys.argv[1])).items()
check(machine, "machine")
assert machine["tiles"] and machine["levels"]["DRAM"]["probed"] > 0
fma = machine["rates"][0]["fma"]
tiles = machine["tiles"]
assert max(t["rate"] for t in tiles if t["kind"] != "bf16 dot") < 1.3 * fma         # no tile beats the registers
assert {"f32", "f32 rows"} <= {t["kind"] for t in tiles}
PY
else skip 'python3 is not here'; fi

# ---- the file that commands read
exits 0 'a dump with a file of rates' moec "${dump[@]}" --machine "$work/mine.json"
exits 1 'a file that is not there' moec "${dump[@]}" --machine "$work/none.json"
says 'none.json: No such file' 'is told'
sed 's/"fma": [0-9.]*/"fma": -1/' "$work/mine.json" >"$work/bad.json"
for command in dump build train; do
    exits 1 "$command with a wrong rate" moec $command $model "${tiny[@]}" --machine "$work/bad.json"
    says 'bad.json: machine.rates\[0\].fma is -1; it must be a number above 0' 'is told which, and what it must be'
done
sed -E 's/"tiles": \[/"ops": {"matmul": -1}, "tiles": [/' "$work/mine.json" >"$work/bad.json"
exits 1 'a wrong share of an op' moec "${dump[@]}" --machine "$work/bad.json"
says 'machine.ops.matmul is -1; it must be a number above 0' 'is told'
sed -E 's/^ "[^"]*": \{/ "Another CPU": {/' "$work/mine.json" >"$work/other.json"
exits 0 'rates of another machine' moec "${dump[@]}" --machine "$work/other.json"
python3 -c 'import json,sys; a=json.load(open(sys.argv[1])); m=list(a.values())[0]; json.dump({"One": m, "Two": m}, open(sys.argv[2], "w"))' \
    "$work/mine.json" "$work/two.json" 2>/dev/null &&
    { exits 1 'of two others' moec "${dump[@]}" --machine "$work/two.json"; says 'describes 2 other CPUs' 'are not guessed between'; }

# ---- a first start, and what may lie in the cache
fresh() { # TEXT: a start that must measure; leaves a whole file
    exits 0 "$1" moec "${dump[@]}"
    claim 'and keeps what it measured' moec "${dump[@]}" --machine "$kept"
}
rm "$kept"
fresh 'a first start measures'
claim 'without a word' test ! -s "$log.err"
cp "$kept" "$work/quick.json"
exits 0 'a second' moec "${dump[@]}"
claim 'does not measure again' cmp "$kept" "$work/quick.json"
cp "$work/other.json" "$kept"
fresh 'a file of another CPU'
claim 'which stays in it' grep -q 'Another CPU' "$kept"
truncate -s -40 "$kept"
fresh 'a cut file'
truncate -s -40 "$kept"
exits 0 'which is told' moec "${dump[@]}"
says 'warning: .*machine.json: .*measured anew' 'with its name'
echo '[]' >"$kept"
fresh 'a file of something else'

# ---- rates choose code, never results
steps=(--set 'train.length=3 steps')
exits 0 'a run with measured rates' train "$work/a" "${steps[@]}"
for change in 's/"(rate|read|fma)": ([0-9.]+)/"\1": 1\2/' 's/"(bf16_dot|int8_dot)": [0-9.]+/"\1": 0.0/' 's/"size": [0-9]+/"size": 16384/' \
    's/"(region|barrier)": [0-9.]+/"\1": 900.0/'; do
    sed -E "$change" "$work/mine.json" >"$work/odd.json"
    rm -rf "$work/b"
    exits 0 "a run with odd rates ($change)" train "$work/b" "${steps[@]}" --machine "$work/odd.json"
    claim 'has the same bits' same_weights "$work/a" "$work/b"
done
exits 0 'code for an older CPU' moec "${dump[@]}" --target-cpu sse2
finish
