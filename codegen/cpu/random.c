// random: Philox4x32-10 of runtime/philox.h, sixteen elements at a time.  Lane l of the vector from element i
// computes block (i + l) / 4 and keeps its word (i + l) % 4.  Rows that are numbered one by one are drawn one by one.
#include "codegen/cpu/cg.h"

enum { RUN = 4096, ROUNDS = 10 };

static bool by_rows(const Node *n) { return n->n_in > 1 && n->in[1]->type.ndim > 0; }

static int64_t rows_grain_of(const Type *y) {
    int64_t each = dims_bound(y, 1, y->ndim);
    return each < RUN ? RUN / (each ? each : 1) : 1;
}

static int64_t run_of(const KernelNode *k) { return k->grain ? k->grain * type_cols(&k->node->out[0].type) : RUN; }

bool describe_random(const KernelNode *k, KernelDesc *d) {
    const Type *y = &k->node->out[0].type;
    TaskCount c = {1, run_of(k), 1, NULL};
    if (y->dtype != F32) return false;
    if (by_rows(k->node)) {
        for (int i = 1; i < y->ndim; i++)
            if (y->dim[i].sym) return false;
        d->tasks[0] = tasks_of_dims(y, 0, 1, rows_grain_of(y));
        return true;
    }
    for (int i = 0; i < y->ndim; i++) {
        const Sym *s = y->dim[i].sym;
        c.n *= y->dim[i].n;
        if (s && (s->kind == SYM_LEAF || c.sym)) c.n *= s->bound;
        else if (s) c.sym = s;
    }
    d->tasks[0] = c;
    return true;
}

static LV xor3(Cg *cg, LV a, LV b, LV c) { return LLVMBuildXor(cg->b, LLVMBuildXor(cg->b, a, b, ""), c, ""); }

// The 64-bit product of a constant and each lane, as its halves.
static void product(Cg *cg, uint32_t factor, LV x, LV *high, LV *low) {
    LV p = LLVMBuildMul(cg->b, LLVMBuildZExt(cg->b, x, cg->vi64, ""), cg_splat(cg, cg_int(cg, factor)), "");
    *low = LLVMBuildTrunc(cg->b, p, cg->vi32, "");
    *high = LLVMBuildTrunc(cg->b, LLVMBuildLShr(cg->b, p, cg_splat(cg, cg_int(cg, 32)), ""), cg->vi32, "");
}

static LV philox(Cg *cg, LV c[4], LV key[2], LV word) {
    for (int round = 0; round < ROUNDS; round++) {
        LV high[2], low[2];
        product(cg, 0xD2511F53u, c[0], &high[0], &low[0]);
        product(cg, 0xCD9E8D57u, c[2], &high[1], &low[1]);
        c[0] = xor3(cg, high[1], c[1], key[0]);
        c[2] = xor3(cg, high[0], c[3], key[1]);
        c[1] = low[1];
        c[3] = low[0];
        key[0] = cg_add(cg, key[0], cg_vec_int(cg, (int32_t)0x9E3779B9u));
        key[1] = cg_add(cg, key[1], cg_vec_int(cg, (int32_t)0xBB67AE85u));
    }
    LV bits = c[0];
    for (int w = 1; w < 4; w++)
        bits = cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntEQ, word, cg_vec_int(cg, w), ""), c[w], bits);
    return bits;
}

// Elements lo .. hi - 1 of `to`; element 0 is number `first` of the whole tensor.
static void draw(Cg *cg, int64_t stream, const LV rng[4], LV first, LV to, LV lo, LV hi) {
    CgLoop l;
    cg_for(cg, &l, lo, hi, LANES);
    LV at = cg_add(cg, first, l.i);
    LV block = LLVMBuildTrunc(cg->b, LLVMBuildLShr(cg->b, at, cg_int(cg, 2), ""), cg->i32, "");
    LV word = LLVMBuildTrunc(cg->b, LLVMBuildAnd(cg->b, at, cg_int(cg, 3), ""), cg->i32, "");
    LV lane = cg_add(cg, cg_splat(cg, word), cg_lanes(cg));
    LV counter[4] = {cg_add(cg, cg_splat(cg, block), LLVMBuildLShr(cg->b, lane, cg_vec_int(cg, 2), "")), rng[3],
                     cg_vec_int(cg, (int32_t)stream), rng[2]};
    LV bits = philox(cg, counter, (LV[]){rng[0], rng[1]}, LLVMBuildAnd(cg->b, lane, cg_vec_int(cg, 3), ""));
    LV u = LLVMBuildUIToFP(cg->b, LLVMBuildLShr(cg->b, bits, cg_vec_int(cg, 8), ""), cg->vf32, "");
    cg_store_vec(cg, F32, cg_fmul(cg, u, cg_vec(cg, 0x1p-24f)), to, l.i, cg_tail_mask(cg, cg_sub(cg, hi, l.i)));
    cg_end(cg, &l);
}

void emit_random(Cg *cg, const KernelNode *k) {
    const Node *node = k->node;
    const Type *y = &node->out[0].type;
    LV rng[4];
    for (int i = 0; i < 4; i++) rng[i] = cg_splat(cg, cg_load1(cg, I32, cg_in(cg, 0), cg_int(cg, i)));
    if (by_rows(node)) {
        int64_t each = dims_bound(y, 1, y->ndim), grain = rows_grain_of(y);
        LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), cg_dims(cg, y, 0, 1));
        CgLoop row;
        cg_for(cg, &row, lo, hi, 1);
        LV of = cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 1), row.i));
        draw(cg, node->attr.stream, rng, cg_muli(cg, of, each), cg_at(cg, F32, cg_out(cg, 0), cg_muli(cg, row.i, each)),
             cg_int(cg, 0), cg_int(cg, each));
        cg_end(cg, &row);
        return;
    }
    LV n = cg_elements(cg, y), lo = cg_muli(cg, cg->task, run_of(k)), hi = cg_min(cg, cg_addi(cg, lo, run_of(k)), n);
    LV first = cg_int(cg, 0);
    if (node->n_in > 1) first = cg_mul(cg, cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 1), cg_int(cg, 0))), n);
    draw(cg, node->attr.stream, rng, first, cg_out(cg, 0), lo, hi);
}
