# What a change may not lose without anybody's knowing, found without timing anything: register tiles stay in
# registers, loops use the widest fma there is, and a step's launches, bytes and memory are those of guard.txt.
# MOEC_BLESS=1 rewrites guard.txt: its diff says what a change costs or wins.
. tests/program/common.sh
golden=tests/program/guard.txt

machine=tests/program/machine.json               # no choice may follow the rates of the machine this runs on

loops() { # MODEL TARGET REGISTERS: what loops.awk says, and its list of loops that spill in $work/spills
    "$MOEC" dump "models/$1.moe" --emit=asm --target-cpu="$2" --machine "$machine" |
        awk -v WIDE="$3" -f tests/program/loops.awk 2>"$work/spills"
}

number() { sed -nE "s/.*$1 ([0-9]+).*/\1/p"; }

sizes() { # MODEL
    local dump=("$MOEC" dump "models/$1.moe" --target-cpu=avx512 --machine "$machine")
    "${dump[@]}" --emit=plan | sed -nE "s/^plan +(kernels.*step [0-9.]+ MB).*/$1: \1/p"
    for program in 'pass attach' 'update fuse'; do
        "${dump[@]}" --program "${program% *}" --time-passes 2>&1 >"$work/ir" |
            sed -nE "s/^ *@${program/ / +} .* -> ([0-9]+ launches, ).* -> (.*)/$1 ${program% *}: \1\2/p"
    done
}

for name in tiny_mixtral bench_m30 tiny_switch; do
    for target in 'avx512 zmm' 'avx2 ymm'; do
        read -r cpu registers <<<"$target"
        found=$(loops "$name" "$cpu" "$registers")
        echo "     $name $cpu: $found"
        # Kernels with 16 registers and an exp keep constants in memory; tiles, functions of their own, keep nothing.
        if [ "$cpu" = avx2 ]; then grep -v '^moec_\|^piece_\|^epilogue' "$work/spills"; else cat "$work/spills"; fi >"$work/bad"
        if [ -s "$work/bad" ]; then not_ok "$name $cpu: no vector leaves its register in a tile" "$(cat "$work/bad")"
        else ok "$name $cpu: no vector leaves its register in a tile"; fi
        if [ "$(number multiply-adds <<<"$found")" -ge 2000 ] && [ "$(number loops <<<"$found")" -ge 50 ]; then
            ok "$name $cpu: contractions multiply and add in $registers"
        else not_ok "$name $cpu: contractions multiply and add in $registers" "$found"; fi
    done
    sizes "$name" >>"$work/sizes"
done
[ -n "${MOEC_BLESS:-}" ] && cp "$work/sizes" "$golden"
claim "launches, bytes and memory of a step are those of $golden" diff "$golden" "$work/sizes"
finish
