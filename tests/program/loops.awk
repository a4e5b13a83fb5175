# Innermost loops of an assembly listing that hold at least 8 multiply-adds of vectors: how many there are,
# and how many reach for the stack with a vector.  WIDE: the name of the widest registers (zmm, ymm, xmm).
function end_function(   i, j, inner, n) {
    for (i = 0; i < n_loops; i++) {
        inner = 1
        for (j = 0; j < n_loops; j++)
            if (from[j] >= from[i] && to[j] <= to[i] && to[j] - from[j] < to[i] - from[i]) inner = 0
        n = fma[to[i]] - fma[from[i]]
        if (!inner || n < 8) continue
        loops++
        wide += n
        if (stack[to[i]] > stack[from[i]]) {
            spilling++
            print name, n, "multiply-adds,", stack[to[i]] - stack[from[i]], "vectors on the stack" >"/dev/stderr"
        }
    }
    n_loops = 0
}
/^[A-Za-z_][A-Za-z0-9_.]*:/ { end_function(); name = $1; split("", label) }
/^\.LBB[0-9_]+:/ { label[substr($1, 1, length($1) - 1)] = NR }
$1 ~ /^vfn?m(add|sub)[0-9]+ps$/ && $0 ~ WIDE { n_fma++ }
/\(%rsp/ && /%[xyz]mm/ { n_stack++ }
{ fma[NR] = n_fma; stack[NR] = n_stack }
$1 ~ /^j/ && ($2 in label) { from[n_loops] = label[$2]; to[n_loops++] = NR }
END {
    end_function()
    printf "inner loops %d  spilling %d  multiply-adds %d\n", loops, spilling, wide
}
