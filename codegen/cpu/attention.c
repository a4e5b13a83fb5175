// attention and attention_grad, without an array of all scores.
//
// Lanes are queries: 16 (or 32) of them are packed side by side, keys and values are read as they lie in
// memory.
//
//     scores  S [64 keys][lanes]  = K rows x Q panel             softmax, masks, sums: vectors, no folds
//     output  O [V][lanes]       += V^T rows x P [64][lanes]
//
// attention       task = (32 queries, counting the heads of one key head as queries; batch, key head)
// attention_grad  task = (batch, key head): heads, then tiles of queries, then blocks of keys, all ascending,
// so every
//                 chain of dk and dv meets its terms in order
// Orders: ir/ref/contraction.c.
#include "codegen/cpu/tile.h"
#include <assert.h>
#include <math.h>

enum { BLOCK = 64, SEGMENT = 512, QUERIES = 32 };
enum { HAS_SINKS = 1, HAS_BIAS = 2, HAS_VALID = 4, HAS_DOCUMENTS = 8 };

typedef struct {
    const KernelNode *k;
    const Type *q_type, *k_type, *v_type;
    Dim S, C;
    int64_t batch, H, Hk, G, A, V, window;
    bool causal;
    int sinks, bias, valid, documents, after; // operand numbers, -1: not given; the first operand behind
    int lanes, vecs;
    // scratch, in bytes
    int64_t used, q_rows, q_panel, s, k_copy, v_copy, pos, doc, bias_at, sink, rows_out;
    TileSet score; // K rows x panel
    PackFunction pack, copy_q, copy_k, copy_v;
    int64_t A16, V16;
    LV S_now, C_now, b, g; // b: index of batch; g: key head
} Attn;

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t take(Attn *p, int64_t bytes) {
    int64_t at = p->used;
    p->used = up(at + bytes, 64);
    return at;
}
static LV at_byte(Cg *cg, int64_t n) { return n ? cg_bytes(cg, cg->scratch, cg_int(cg, n)) : cg->scratch; }

static bool attention_of(const KernelNode *k, Attn *p) {
    const Node *n = k->node;
    const Attrs *attr = &n->attr;
    *p = (Attn){.k = k,
                .q_type = &n->in[0]->type,
                .k_type = &n->in[1]->type,
                .v_type = &n->in[2]->type,
                .batch = 1,
                .window = attr->window,
                .causal = attr->causal != 0,
                .sinks = -1,
                .bias = -1,
                .valid = -1,
                .documents = -1};
    int d = p->q_type->ndim;
    for (int i = 0; i + 3 < d; i++) {
        const Dim *x = &p->q_type->dim[i];
        if (x->sym && x->sym->kind != SYM_LEAF) return false;
        p->batch *= dim_bound(*x);
    }
    p->S = p->q_type->dim[d - 3], p->H = p->q_type->dim[d - 2].n, p->A = p->q_type->dim[d - 1].n;
    p->C = p->k_type->dim[d - 3], p->Hk = p->k_type->dim[d - 2].n, p->V = p->v_type->dim[d - 1].n;
    p->G = p->H / p->Hk;
    p->A16 = up(p->A, LANES), p->V16 = up(p->V, LANES);
    int next = 3;
    if (attr->has & HAS_SINKS) p->sinks = next++;
    if (attr->has & HAS_BIAS) p->bias = next++;
    if (attr->has & HAS_VALID) p->valid = next++;
    if (attr->has & HAS_DOCUMENTS) p->documents = next++;
    p->after = next;
    // Gathers of a bias count in 32 bits.
    if (p->bias >= 0 && type_bound_elements(&n->in[p->bias]->type) > INT32_MAX) return false;
    return p->q_type->dtype != F16 && p->A <= 1024 && p->V <= 1024 && dim_bound(p->C) < INT32_MAX / 2;
}

// ---- what both directions share -----------------------------------------------------------------

// Numbers of keys a block can have; the tile heights they need.
static unsigned key_heights(const Attn *p, int size, bool heads_are_queries) {
    bool fixed = (!p->S.sym || p->S.sym->kind == SYM_LEAF) && (!p->C.sym || p->C.sym->kind == SYM_LEAF);
    if (!fixed) return tile_all_heights(size);
    int64_t S = dim_bound(p->S), C = dim_bound(p->C), G = heads_are_queries ? p->G : 1;
    unsigned heights = C >= BLOCK ? tile_heights(BLOCK, size) : 0;
    for (int64_t r = 0; r < S * G; r += p->lanes) {
        int64_t last = (r + p->lanes < S * G ? r + p->lanes : S * G) - 1, max = last / G + C - S;
        int64_t end = p->causal ? max + 1 : p->window ? max + p->window : C;
        heights |= tile_heights((end < C ? end : C) % BLOCK, size);
    }
    return heights;
}

static void attention_begin(Cg *cg, Attn *p, bool heads_are_queries) {
    TileSize size = tile_size(cg->target);
    p->vecs = size.vecs;
    p->lanes = p->vecs * LANES;
    int64_t lane_bytes = p->lanes * 4;
    p->q_rows = take(p, p->lanes * p->A16 * 4);
    p->q_panel = take(p, p->A16 * lane_bytes);
    p->s = take(p, BLOCK * lane_bytes);
    p->pos = take(p, lane_bytes);
    p->doc = take(p, lane_bytes);
    p->bias_at = take(p, lane_bytes);
    p->sink = take(p, lane_bytes);
    p->rows_out = take(p, p->lanes * (p->A16 > p->V16 ? p->A16 : p->V16) * 4);
    bool f32 = p->k_type->dtype == F32;
    p->k_copy = take(p, f32 ? 0 : BLOCK * p->A16 * 4);
    p->v_copy = take(p, f32 ? 0 : BLOCK * p->V16 * 4);
    TileSpec s = {.vecs = p->vecs,
                  .cols = p->lanes,
                  .a_row = f32 ? p->Hk * p->A : p->A16,
                  .a_k = 1,
                  .c_row = p->lanes,
                  .b_type = F32,
                  .c_type = F32};
    tile_functions(cg, &p->score, &s, "score", key_heights(p, size.rows, heads_are_queries));
    p->pack = pack_columns_function(cg, "pack_queries", F32, p->vecs, p->lanes);
    p->copy_q = copy_rows_function(cg, "copy_q", p->q_type->dtype, p->A, p->A16);
    if (!f32) {
        p->copy_k = copy_rows_function(cg, "copy_k", p->k_type->dtype, p->A, p->A16);
        p->copy_v = copy_rows_function(cg, "copy_v", p->v_type->dtype, p->V, p->V16);
    }
    p->S_now = cg_dim(cg, p->S);
    p->C_now = cg_dim(cg, p->C);
}

// Which of t's leading blocks this batch element reads: size-1 and missing axes are shared.
static LV batch_of(Cg *cg, const Attn *p, const Type *t, int inner) {
    int own = t->ndim - inner;
    LV at = cg_int(cg, 0), b = p->b;
    int64_t stride = 1;
    for (int i = p->q_type->ndim - 4, j = own - 1; j >= 0; i--, j--) {
        int64_t size = dim_bound(p->q_type->dim[i]);
        LV index = cg_rem(cg, b, cg_int(cg, size));
        b = cg_div(cg, b, cg_int(cg, size));
        if (!dim_is_1(t->dim[j])) at = cg_add(cg, at, cg_muli(cg, index, stride));
        stride *= dim_bound(t->dim[j]);
    }
    return at;
}

static LV lane_vec(Cg *cg, DType t, int64_t base, int v) {
    return cg_load_vec(cg, t, at_byte(cg, base), cg_int(cg, v * LANES), NULL);
}
static void lane_put(Cg *cg, DType t, LV x, int64_t base, int v) {
    cg_store_vec(cg, t, x, at_byte(cg, base), cg_int(cg, v * LANES), NULL);
}

// What lane `lane` needs to know of its query (i, h).
static void lane_setup(Cg *cg, const Attn *p, LV lane, LV i, LV h) {
    LV pos = cg_sub(cg, cg_add(cg, i, p->C_now), p->S_now);
    LV pos32 = LLVMBuildTrunc(cg->b, pos, cg->i32, "");
    cg_store1(cg, I32, pos32, at_byte(cg, p->pos), lane);
    if (p->documents >= 0) {
        LV at =
            cg_add(cg, cg_mul(cg, batch_of(cg, p, kernel_arg_type(p->k, p->documents), 1), p->C_now), pos);
        cg_store1(cg, I32, cg_load1(cg, I32, cg_in(cg, p->documents), at), at_byte(cg, p->doc), lane);
    }
    if (p->sinks >= 0)
        cg_store1(cg, F32, cg_load1(cg, kernel_arg_type(p->k, p->sinks)->dtype, cg_in(cg, p->sinks), h),
                  at_byte(cg, p->sink), lane);
    if (p->bias >= 0) {
        const Type *t = kernel_arg_type(p->k, p->bias);
        int d = t->ndim;
        LV at = batch_of(cg, p, t, 3);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 3]));
        if (!dim_is_1(t->dim[d - 3])) at = cg_add(cg, at, h);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 2]));
        if (!dim_is_1(t->dim[d - 2])) at = cg_add(cg, at, i);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 1]));
        cg_store1(cg, I32, LLVMBuildTrunc(cg->b, at, cg->i32, ""), at_byte(cg, p->bias_at), lane);
    }
}

// First and last block of keys that any query between positions lo and hi sees.
static void key_range(Cg *cg, const Attn *p, LV lo, LV hi, LV *from, LV *to) {
    LV zero = cg_int(cg, 0);
    *from = p->window ? cg_max(cg, zero, cg_addi(cg, lo, 1 - p->window)) : zero;
    *from = LLVMBuildAnd(cg->b, *from, cg_int(cg, -BLOCK), "");
    LV seen = p->causal ? cg_addi(cg, hi, 1) : p->window ? cg_addi(cg, hi, p->window) : p->C_now;
    *to = cg_max(cg, zero, cg_min(cg, seen, p->C_now));
}

// Rows of keys or values of a block as tiles read them; *step: elements between them.
static LV key_rows(Cg *cg, const Attn *p, bool values, LV j, LV n) {
    const Type *t = values ? p->v_type : p->k_type;
    int64_t width = values ? p->V : p->A;
    LV row = cg_add(cg, cg_muli(cg, cg_add(cg, cg_mul(cg, p->b, p->C_now), j), p->Hk), p->g);
    LV at = cg_at(cg, t->dtype, cg_in(cg, values ? 2 : 1), cg_muli(cg, row, width));
    if (t->dtype == F32) return at;
    LV to = at_byte(cg, values ? p->v_copy : p->k_copy);
    copy_rows(cg, values ? &p->copy_v : &p->copy_k, to, at, n, cg_int(cg, p->Hk * width));
    return to;
}

// n rows of a (row_step elements apart) times a panel of queries -> c [n][lanes].
static void rows_by_panel(Cg *cg, const Attn *p, const TileSet *set, LV a, int64_t a_row, LV panel,
                          int64_t depth, LV c, LV n) {
    TileCut cut = tile_cut(cg, n, tile_size(cg->target).rows);
    CgLoop t;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    LV first = tile_first(cg, &cut, t.i);
    tile_call(cg, set, tile_height(cg, &cut, t.i),
              &(TileCall){.a = cg_at(cg, F32, a, cg_muli(cg, first, a_row)),
                          .b = panel,
                          .k = cg_int(cg, depth),
                          .b_k = cg_int(cg, p->lanes),
                          .c = cg_at(cg, F32, c, cg_muli(cg, first, p->lanes))});
    cg_end(cg, &t);
}

// acc [width][lanes] continues its chains over the n rows of a block: a^T (width columns, a_step apart) by
// weights [n][lanes].
static void columns_by_weights(Cg *cg, const Attn *p, const TileSet *set, LV a, int64_t width, LV weights,
                               LV n, LV acc, LV init) {
    int rows = tile_size(cg->target).rows;
    TileCut cut = tile_cut(cg, cg_int(cg, width), rows);
    CgLoop t;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    LV first = tile_first(cg, &cut, t.i), at = cg_muli(cg, first, p->lanes), c = cg_at(cg, F32, acc, at);
    tile_call(cg, set, tile_height(cg, &cut, t.i),
              &(TileCall){.a = cg_at(cg, F32, a, first),
                          .b = weights,
                          .k = n,
                          .b_k = cg_int(cg, p->lanes),
                          .c = c,
                          .init = init ? cg_select(cg, init, c, LLVMConstNull(cg->ptr)) : c});
    cg_end(cg, &t);
}

static LV lane_or(Cg *cg, LV a, LV b) { return a ? LLVMBuildAnd(cg->b, a, b, "") : b; }

// The score of key j (row of the block at x) for 16 queries, scaled and biased; *seen: lanes that see the
// key, NULL: all.
static LV finish_score(Cg *cg, const Attn *p, LV x, LV j, int v, LV *seen) {
    x = cg_fmul(cg, x, cg_vec(cg, (float)p->k->node->attr.scale));
    if (p->bias >= 0) {
        const Type *t = kernel_arg_type(p->k, p->bias);
        LV at = lane_vec(cg, I32, p->bias_at, v);
        if (!dim_is_1(t->dim[t->ndim - 1]))
            at = LLVMBuildAdd(cg->b, at, cg_splat(cg, LLVMBuildTrunc(cg->b, j, cg->i32, "")), "");
        x = cg_fadd(cg, x, cg_gather_vec(cg, t->dtype, cg_in(cg, p->bias), at, NULL));
    }
    LV mask = NULL, key = cg_splat(cg, LLVMBuildTrunc(cg->b, j, cg->i32, ""));
    LV pos = p->causal || p->window ? lane_vec(cg, I32, p->pos, v) : NULL;
    if (p->causal) mask = lane_or(cg, mask, LLVMBuildICmp(cg->b, LLVMIntSLE, key, pos, ""));
    if (p->window) {
        LV w = cg_vec_int(cg, (int32_t)p->window);
        mask = lane_or(cg, mask, LLVMBuildICmp(cg->b, LLVMIntSGT, key, LLVMBuildSub(cg->b, pos, w, ""), ""));
        if (!p->causal)
            mask =
                lane_or(cg, mask, LLVMBuildICmp(cg->b, LLVMIntSLT, key, LLVMBuildAdd(cg->b, pos, w, ""), ""));
    }
    if (p->valid >= 0) {
        LV at = cg_add(cg, cg_mul(cg, batch_of(cg, p, kernel_arg_type(p->k, p->valid), 1), p->C_now), j);
        mask = lane_or(cg, mask, cg_splat(cg, cg_load1(cg, BOOL, cg_in(cg, p->valid), at)));
    }
    if (p->documents >= 0) {
        LV at = cg_add(cg, cg_mul(cg, batch_of(cg, p, kernel_arg_type(p->k, p->documents), 1), p->C_now), j);
        LV doc = cg_splat(cg, cg_load1(cg, I32, cg_in(cg, p->documents), at));
        mask = lane_or(cg, mask, LLVMBuildICmp(cg->b, LLVMIntEQ, doc, lane_vec(cg, I32, p->doc, v), ""));
    }
    *seen = mask;
    return x;
}

static LV s_index(Cg *cg, const Attn *p, LV row, int v) {
    return cg_addi(cg, cg_muli(cg, row, p->lanes), v * LANES);
}

// [width][lanes] -> rows [lane][width16].
static void transpose_out(Cg *cg, const Attn *p, LV from, int64_t width16, LV rows) {
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, width16), LANES);
    for (int v = 0; v < p->vecs; v++) {
        LV x[LANES];
        for (int i = 0; i < LANES; i++)
            x[i] = cg_load_vec(cg, F32, from, s_index(cg, p, cg_addi(cg, c.i, i), v), NULL);
        tile_transpose(cg, x);
        for (int i = 0; i < LANES; i++)
            cg_store_vec(cg, F32, x[i], rows, cg_addi(cg, c.i, (v * LANES + i) * width16), NULL);
    }
    cg_end(cg, &c);
}

// One row of `width` f32 to `to`, element index `at`, of type t.
static void store_row(Cg *cg, LV row, int64_t width, DType t, LV to, LV at) {
    CgLoop c;
    int64_t whole = width / LANES * LANES;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, whole), LANES);
    cg_store_vec(cg, t, cg_load_vec(cg, F32, row, c.i, NULL), to, cg_add(cg, at, c.i), NULL);
    cg_end(cg, &c);
    if (whole < width)
        cg_store_vec(cg, t, cg_load_vec(cg, F32, row, cg_int(cg, whole), NULL), to, cg_addi(cg, at, whole),
                     tile_mask(cg, (int)(width - whole)));
}

// ---- attention ----------------------------------------------------------------------------------

// The code takes the depth of its stack and the size of its sums from the most keys there can be.
static void key_of(const Attn *p, KernelDesc *d) {
    if (p->C.sym) str_printf(&d->key, " keys %lld", (long long)dim_bound(p->C));
}

bool describe_attention(const KernelNode *k, KernelDesc *d) {
    Attn p;
    if (!attention_of(k, &p)) return false;
    key_of(&p, d);
    bool vary = p.S.sym && p.S.sym->kind != SYM_LEAF;
    d->tasks[0] =
        (TaskCount){(vary ? p.S.n : dim_bound(p.S)) * p.G, QUERIES, p.batch * p.Hk, vary ? p.S.sym : NULL};
    double pairs = (double)dim_bound(p.S) * (double)dim_bound(p.C) * (p.causal ? 0.5 : 1);
    d->flops = 2.0 * (double)(p.batch * p.H) * pairs * (double)(p.A + p.V);
    return true;
}

// Running softmax of a tile, one level per power of two of segments:  m [lanes], l [lanes], o [V16][lanes].
typedef struct {
    int64_t base, m, l, o, level;
    TileSet values;
} Running;

static LV level_at(Cg *cg, const Running *r, LV level) {
    return cg_bytes(cg, at_byte(cg, r->base), cg_muli(cg, level, r->level));
}
static LV run_load(Cg *cg, LV level, int64_t field, int v) {
    return cg_load_vec(cg, F32, cg_bytes(cg, level, cg_int(cg, field)), cg_int(cg, v * LANES), NULL);
}
static void run_store(Cg *cg, LV x, LV level, int64_t field, int v) {
    cg_store_vec(cg, F32, x, cg_bytes(cg, level, cg_int(cg, field)), cg_int(cg, v * LANES), NULL);
}

static LV minus_inf(Cg *cg) { return cg_vec(cg, -INFINITY); }
static LV larger(Cg *cg, LV a, LV b) {
    return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, a, b, ""), a, b);
} // b if equal
static LV is_minus_inf(Cg *cg, LV x) { return LLVMBuildFCmp(cg->b, LLVMRealOEQ, x, minus_inf(cg), ""); }
// exp(old - m), 0 if there was nothing.
static LV keep_of(Cg *cg, LV old, LV m) {
    return cg_select(cg, is_minus_inf(cg, old), cg_vec(cg, 0), cg_exp(cg, cg_fsub(cg, old, m)));
}

static void new_level(Cg *cg, const Attn *p, const Running *r, LV level, bool clear) {
    for (int v = 0; v < p->vecs; v++) {
        run_store(cg, minus_inf(cg), level, r->m, v);
        run_store(cg, cg_vec(cg, 0), level, r->l, v);
    }
    if (clear) cg_memset0(cg, cg_bytes(cg, level, cg_int(cg, r->o)), cg_int(cg, p->V16 * p->lanes * 4));
}

// o *= f[v], all columns.
static void scale_o(Cg *cg, const Attn *p, const Running *r, LV level, LV *f) {
    LV o = cg_bytes(cg, level, cg_int(cg, r->o));
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = s_index(cg, p, c.i, v);
        cg_store_vec(cg, F32, cg_fmul(cg, cg_load_vec(cg, F32, o, at, NULL), f[v]), o, at, NULL);
    }
    cg_end(cg, &c);
}

// Sum over the 64 rows of s in the order of lanes_sum: 16 partial sums over rows l, l+16, .., then folds 8,
// 4, 2, 1.
static LV fold_rows(Cg *cg, const Attn *p, LV s, int v, int l, int half) {
    if (half < LANES)
        return cg_fadd(cg, fold_rows(cg, p, s, v, l, half * 2), fold_rows(cg, p, s, v, l + half, half * 2));
    LV sum = cg_load_vec(cg, F32, s, cg_int(cg, l * p->lanes + v * LANES), NULL);
    for (int i = l + LANES; i < BLOCK; i += LANES)
        sum = cg_fadd(cg, sum, cg_load_vec(cg, F32, s, cg_int(cg, i * p->lanes + v * LANES), NULL));
    return sum;
}

// Keys j .. j+n-1 join; first: no key of this segment has before.
static void attend_block(Cg *cg, const Attn *p, const Running *r, LV level, LV j, LV n, LV first) {
    LV s = at_byte(cg, p->s), zero = cg_int(cg, 0), carry[TILE_MAX_VECS], m[TILE_MAX_VECS],
       keep[TILE_MAX_VECS];
    rows_by_panel(cg, p, &p->score, key_rows(cg, p, false, j, n), p->score.spec.a_row,
                  at_byte(cg, p->q_panel), p->A, s, n);
    CgLoop row;
    for (int v = 0; v < p->vecs; v++) carry[v] = minus_inf(cg);
    cg_loop_begin(cg, &row, zero, n, 1, p->vecs, carry);
    for (int v = 0; v < p->vecs; v++) {
        LV at = s_index(cg, p, row.i, v), seen;
        LV x = finish_score(cg, p, cg_load_vec(cg, F32, s, at, NULL), cg_add(cg, j, row.i), v, &seen);
        if (seen) x = cg_select(cg, seen, x, minus_inf(cg));
        cg_store_vec(cg, F32, x, s, at, NULL);
        carry[v] = larger(cg, x, row.carry[v]);
    }
    cg_loop_end(cg, &row, carry);
    for (int v = 0; v < p->vecs; v++) {
        LV old = run_load(cg, level, r->m, v);
        m[v] = larger(cg, row.carry[v], old);
        keep[v] = keep_of(cg, old, m[v]);
    }
    cg_for(cg, &row, zero, n, 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = s_index(cg, p, row.i, v), x = cg_load_vec(cg, F32, s, at, NULL);
        x = cg_select(cg, is_minus_inf(cg, x), cg_vec(cg, 0), cg_exp(cg, cg_fsub(cg, x, m[v])));
        cg_store_vec(cg, F32, x, s, at, NULL);
    }
    cg_end(cg, &row);
    cg_for(cg, &row, n, cg_int(cg, BLOCK), 1);
    for (int v = 0; v < p->vecs; v++) cg_store_vec(cg, F32, cg_vec(cg, 0), s, s_index(cg, p, row.i, v), NULL);
    cg_end(cg, &row);
    for (int v = 0; v < p->vecs; v++) {
        run_store(cg, cg_fma(cg, run_load(cg, level, r->l, v), keep[v], fold_rows(cg, p, s, v, 0, 1)), level,
                  r->l, v);
        run_store(cg, m[v], level, r->m, v);
    }
    CgIf again;
    cg_if(cg, &again, LLVMBuildNot(cg->b, first, ""));
    scale_o(cg, p, r, level, keep);
    cg_endif(cg, &again);
    columns_by_weights(cg, p, &r->values, key_rows(cg, p, true, j, n), p->V, s, n,
                       cg_bytes(cg, level, cg_int(cg, r->o)), LLVMBuildNot(cg->b, first, ""));
}

// Level b joins level a, which comes before it.
static void merge_levels(Cg *cg, const Attn *p, const Running *r, LV a, LV b) {
    LV ra[TILE_MAX_VECS], rb[TILE_MAX_VECS], none[TILE_MAX_VECS];
    for (int v = 0; v < p->vecs; v++) {
        LV ma = run_load(cg, a, r->m, v), mb = run_load(cg, b, r->m, v), m = larger(cg, ma, mb);
        none[v] = is_minus_inf(cg, mb);
        ra[v] = keep_of(cg, ma, m);
        rb[v] = cg_exp(cg, cg_fsub(cg, mb, m));
        LV la = run_load(cg, a, r->l, v),
           l = cg_fma(cg, run_load(cg, b, r->l, v), rb[v], cg_fmul(cg, la, ra[v]));
        run_store(cg, cg_select(cg, none[v], la, l), a, r->l, v);
        run_store(cg, cg_select(cg, none[v], ma, m), a, r->m, v);
    }
    LV oa = cg_bytes(cg, a, cg_int(cg, r->o)), ob = cg_bytes(cg, b, cg_int(cg, r->o));
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = s_index(cg, p, c.i, v), x = cg_load_vec(cg, F32, oa, at, NULL);
        LV y = cg_fma(cg, cg_load_vec(cg, F32, ob, at, NULL), rb[v], cg_fmul(cg, x, ra[v]));
        cg_store_vec(cg, F32, cg_select(cg, none[v], x, y), oa, at, NULL);
    }
    cg_end(cg, &c);
}

static void attend_range(Cg *cg, const Attn *p, const Running *r, LV level, LV lo, LV hi) {
    CgLoop block;
    new_level(cg, p, r, level, true);
    cg_for(cg, &block, lo, hi, BLOCK);
    LV n = cg_min(cg, cg_sub(cg, hi, block.i), cg_int(cg, BLOCK));
    attend_block(cg, p, r, level, block.i, n, cg_eq(cg, block.i, lo));
    cg_end(cg, &block);
}

// All segments, met in their tree by a binary counter; the result is in level 0.
static void attend_segments(Cg *cg, const Attn *p, const Running *r, LV from, LV to) {
    LV zero = cg_int(cg, 0), one = cg_int(cg, 1), size = cg_int(cg, SEGMENT);
    if (dim_bound(p->C) <= SEGMENT) {
        attend_range(cg, p, r, level_at(cg, r, zero), from, to);
        return;
    }
    LV first = cg_div(cg, from, size),
       end = cg_max(cg, cg_div(cg, cg_addi(cg, to, SEGMENT - 1), size), cg_addi(cg, first, 1));
    CgLoop empty, seg, merge;
    LV bits = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &first, 1);
    cg_for(cg, &empty, zero, bits, 1); // segments before the window changed nothing
    new_level(cg, p, r, level_at(cg, r, empty.i), true);
    cg_end(cg, &empty);
    cg_for(cg, &seg, first, end, 1);
    LV at = cg_mul(cg, seg.i, size), after = cg_addi(cg, seg.i, 1);
    LV top = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &seg.i, 1);
    attend_range(cg, p, r, level_at(cg, r, top), cg_max(cg, at, from),
                 cg_min(cg, cg_addi(cg, at, SEGMENT), to));
    LV zeros[2] = {after, cg_bool(cg, true)};
    LV merges =
        cg_select(cg, cg_eq(cg, after, end), top, cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, zeros, 2));
    cg_for(cg, &merge, zero, merges, 1);
    LV b = cg_sub(cg, top, merge.i);
    merge_levels(cg, p, r, level_at(cg, r, cg_sub(cg, b, one)), level_at(cg, r, b));
    cg_end(cg, &merge);
    cg_end(cg, &seg);
}

static LV query_row(Cg *cg, const Attn *p, LV i, LV h) { // number of row (b, i, h) of q and o
    return cg_add(cg, cg_muli(cg, cg_add(cg, cg_mul(cg, p->b, p->S_now), i), p->H), h);
}

// Sinks, normalisation, and out.
static void finish_tile(Cg *cg, const Attn *p, const Running *r, LV r0, LV n, int64_t lse_at) {
    LV level = level_at(cg, r, cg_int(cg, 0)), inverse[TILE_MAX_VECS], keep[TILE_MAX_VECS],
       zero = cg_vec(cg, 0);
    for (int v = 0; v < p->vecs; v++) {
        LV m = run_load(cg, level, r->m, v), l = run_load(cg, level, r->l, v);
        if (p->sinks >= 0) {
            LV sink = lane_vec(cg, F32, p->sink, v), old = m;
            m = larger(cg, old, sink);
            keep[v] = keep_of(cg, old, m);
            l = cg_fma(cg, l, keep[v], cg_exp(cg, cg_fsub(cg, sink, m)));
        }
        LV none = is_minus_inf(cg, m);
        inverse[v] = cg_select(cg, none, zero, cg_fdiv(cg, cg_vec(cg, 1), l));
        lane_put(cg, F32, cg_select(cg, none, m, cg_fadd(cg, m, cg_log(cg, l))), lse_at, v);
    }
    if (p->sinks >= 0) scale_o(cg, p, r, level, keep);
    scale_o(cg, p, r, level, inverse);
    LV rows = at_byte(cg, p->rows_out);
    transpose_out(cg, p, cg_bytes(cg, level, cg_int(cg, r->o)), p->V16, rows);
    CgLoop lane;
    cg_for(cg, &lane, cg_int(cg, 0), n, 1);
    LV q = cg_add(cg, r0, lane.i), i = cg_div(cg, q, cg_int(cg, p->G)), h = cg_rem(cg, q, cg_int(cg, p->G));
    LV row = query_row(cg, p, i, cg_add(cg, cg_muli(cg, p->g, p->G), h));
    store_row(cg, cg_at(cg, F32, rows, cg_muli(cg, lane.i, p->V16)), p->V, p->q_type->dtype, cg_out(cg, 0),
              cg_muli(cg, row, p->V));
    cg_store1(cg, F32, cg_load1(cg, F32, at_byte(cg, lse_at), lane.i), cg_out(cg, 1), row);
    cg_end(cg, &lane);
}

void emit_attention(Cg *cg, const KernelNode *k) {
    Attn p;
    attention_of(k, &p);
    int rows = tile_size(cg->target).rows;
    attention_begin(cg, &p, true);
    Running r = {.l = p.lanes * 4, .o = p.lanes * 8};
    r.level = r.o + p.V16 * p.lanes * 4;
    int levels = 2;
    while ((int64_t)SEGMENT << (levels - 2) < dim_bound(p.C)) levels++;
    r.base = take(&p, r.level * levels);
    int64_t lse_at = take(&p, p.lanes * 4);
    assert(p.used <= RT_SCRATCH_BYTES);
    TileSpec s = {.vecs = p.vecs,
                  .cols = p.lanes,
                  .a_row = 1,
                  .a_k = p.v_type->dtype == F32 ? p.Hk * p.V : p.V16,
                  .c_row = p.lanes,
                  .b_type = F32,
                  .c_type = F32,
                  .reload = true};
    tile_functions(cg, &r.values, &s, "values", tile_heights(p.V, rows));

    LV places = cg_int(cg, p.batch * p.Hk), place = cg_rem(cg, cg->task, places), heads = cg_int(cg, p.Hk);
    LV start = cg_muli(cg, cg_div(cg, cg->task, places), QUERIES), all = cg_muli(cg, p.S_now, p.G),
       G = cg_int(cg, p.G);
    p.b = cg_div(cg, place, heads);
    p.g = cg_rem(cg, place, heads);
    CgLoop tile, lane;
    cg_for(cg, &tile, start, cg_min(cg, cg_addi(cg, start, QUERIES), all), p.lanes);
    LV n = cg_min(cg, cg_sub(cg, all, tile.i), cg_int(cg, p.lanes)),
       last = cg_add(cg, tile.i, cg_addi(cg, n, -1));
    cg_for(cg, &lane, cg_int(cg, 0), cg_int(cg, p.lanes), 1);
    LV q = cg_min(cg, cg_add(cg, tile.i, lane.i), last); // lanes without a query repeat the last one
    LV i = cg_div(cg, q, G), h = cg_add(cg, cg_muli(cg, p.g, p.G), cg_rem(cg, q, G));
    copy_rows(cg, &p.copy_q, cg_at(cg, F32, at_byte(cg, p.q_rows), cg_muli(cg, lane.i, p.A16)),
              cg_at(cg, p.q_type->dtype, cg_in(cg, 0), cg_muli(cg, query_row(cg, &p, i, h), p.A)),
              cg_int(cg, 1), cg_int(cg, 0));
    lane_setup(cg, &p, lane.i, i, h);
    cg_end(cg, &lane);
    pack_columns(cg, &p.pack, at_byte(cg, p.q_panel), at_byte(cg, p.q_rows), cg_int(cg, p.A),
                 cg_int(cg, p.A16));
    LV shift = cg_sub(cg, p.C_now, p.S_now), from, to;
    key_range(cg, &p, cg_add(cg, cg_div(cg, tile.i, G), shift), cg_add(cg, cg_div(cg, last, G), shift), &from,
              &to);
    attend_segments(cg, &p, &r, from, to);
    finish_tile(cg, &p, &r, tile.i, n, lse_at);
    cg_end(cg, &tile);
}

// ---- attention_grad -----------------------------------------------------------------------------

// Adds weights^T rows into dk or dv: rows are keys, columns those of q or do.
typedef struct {
    TileSet whole, last;
    int64_t width, width16;
    int n_whole, tail;
} KeySums;

typedef struct {
    int64_t do_rows, do_panel, dp, dq, lse, D, o_panel, dk, dv; // scratch; dk, dv: f32 sums of narrow results
    TileSet dp_tile, dq_tile;
    KeySums keys, values;
    PackFunction copy_o;
} Grad;

static bool narrow(const Attn *p) { return p->k_type->dtype != F32; }

bool describe_attention_grad(const KernelNode *k, KernelDesc *d) {
    Attn p;
    if (!attention_of(k, &p)) return false;
    const Node *n = k->node;
    if (p.bias >= 0 &&
        (n->in[p.bias]->type.dtype != F32 || type_bound_elements(&n->out[n->n_out - 1].type) > INT32_MAX))
        return false;
    if (narrow(&p) && dim_bound(p.C) * (p.A16 + p.V16) * 4 > (RT_SCRATCH_BYTES * 3LL) / 4) return false;
    key_of(&p, d);
    d->tasks[0] = tasks_fixed(p.batch * p.Hk);
    double pairs = (double)dim_bound(p.S) * (double)dim_bound(p.C) * (p.causal ? 0.5 : 1);
    d->flops = 2.0 * (double)(p.batch * p.H) * pairs * (double)(3 * p.A + 2 * p.V);
    return true;
}

static void key_sums_begin(Cg *cg, const Attn *p, KeySums *k, int64_t width, unsigned heights,
                           const char *name, const char *last) {
    k->width = width;
    k->width16 = up(width, LANES);
    k->n_whole = (int)(width / p->lanes);
    k->tail = (int)(width % p->lanes);
    TileSpec s = {.vecs = p->vecs,
                  .cols = p->lanes,
                  .a_row = p->lanes,
                  .a_k = 1,
                  .c_row = narrow(p) ? k->width16 : p->Hk * width,
                  .b_type = F32,
                  .c_type = F32,
                  .reload = true};
    if (k->n_whole) tile_functions(cg, &k->whole, &s, name, heights);
    s.cols = k->tail;
    s.vecs = (k->tail + LANES - 1) / LANES;
    if (k->tail) tile_functions(cg, &k->last, &s, last, heights);
}

// Rows j .. j+n-1 of c (dk or dv) continue their chains over n_q queries: weights [n][lanes] by rows
// [n_q][width16].
static void key_sums(Cg *cg, const Attn *p, const KeySums *k, LV weights, LV rows, LV n_q, LV c, LV n) {
    int64_t c_row = narrow(p) ? k->width16 : p->Hk * k->width;
    TileCut cut = tile_cut(cg, n, tile_size(cg->target).rows);
    CgLoop t, col;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    LV first = tile_first(cg, &cut, t.i), height = tile_height(cg, &cut, t.i);
    LV a = cg_at(cg, F32, weights, cg_muli(cg, first, p->lanes)),
       to = cg_at(cg, F32, c, cg_muli(cg, first, c_row));
    if (k->n_whole) {
        cg_for(cg, &col, cg_int(cg, 0), cg_int(cg, k->n_whole * p->lanes), p->lanes);
        LV at = cg_at(cg, F32, to, col.i);
        tile_call(cg, &k->whole, height,
                  &(TileCall){.a = a,
                              .b = cg_at(cg, F32, rows, col.i),
                              .k = n_q,
                              .b_k = cg_int(cg, k->width16),
                              .c = at,
                              .init = at});
        cg_end(cg, &col);
    }
    if (k->tail) {
        LV done = cg_int(cg, k->n_whole * p->lanes), at = cg_at(cg, F32, to, done);
        tile_call(cg, &k->last, height,
                  &(TileCall){.a = a,
                              .b = cg_at(cg, F32, rows, done),
                              .k = n_q,
                              .b_k = cg_int(cg, k->width16),
                              .c = at,
                              .init = at});
    }
    cg_end(cg, &t);
}

// Where rows j .. of dk (or dv) are summed.
static LV sums_at(Cg *cg, const Attn *p, const Grad *g, bool values, LV j) {
    int64_t width = values ? p->V : p->A;
    if (narrow(p))
        return cg_at(cg, F32, at_byte(cg, values ? g->dv : g->dk), cg_muli(cg, j, values ? p->V16 : p->A16));
    LV row = cg_add(cg, cg_muli(cg, cg_add(cg, cg_mul(cg, p->b, p->C_now), j), p->Hk), p->g);
    return cg_at(cg, F32, cg_out(cg, values ? 2 : 1), cg_muli(cg, row, width));
}

static void clear_sums(Cg *cg, const Attn *p, const Grad *g) {
    CgLoop j;
    cg_for(cg, &j, cg_int(cg, 0), p->C_now, 1);
    for (int values = 0; values < 2; values++)
        cg_memset0(cg, sums_at(cg, p, g, values, j.i), cg_int(cg, (values ? p->V : p->A) * 4));
    cg_end(cg, &j);
}

static void store_narrow_sums(Cg *cg, const Attn *p, const Grad *g) {
    CgLoop j;
    cg_for(cg, &j, cg_int(cg, 0), p->C_now, 1);
    LV row = cg_add(cg, cg_muli(cg, cg_add(cg, cg_mul(cg, p->b, p->C_now), j.i), p->Hk), p->g);
    for (int values = 0; values < 2; values++) {
        int64_t width = values ? p->V : p->A;
        store_row(cg, sums_at(cg, p, g, values, j.i), width, p->k_type->dtype, cg_out(cg, values ? 2 : 1),
                  cg_muli(cg, row, width));
    }
    cg_end(cg, &j);
}

// D = chain over V of do * o: the order of dp.  Of a query that sees one key both are the same bits, and its ds 0.
static void output_products(Cg *cg, const Attn *p, const Grad *g) {
    LV zero[2] = {cg_vec(cg, 0), cg_vec(cg, 0)};
    CgLoop c;
    assert(p->vecs <= 2);
    cg_loop_begin(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1, p->vecs, zero);
    LV sum[2], at = cg_muli(cg, c.i, p->lanes);
    for (int v = 0; v < p->vecs; v++) {
        LV here = cg_addi(cg, at, v * LANES);
        sum[v] = cg_fma(cg, cg_load_vec(cg, F32, at_byte(cg, g->do_panel), here, NULL),
                        cg_load_vec(cg, F32, at_byte(cg, g->o_panel), here, NULL), c.carry[v]);
    }
    cg_loop_end(cg, &c, sum);
    for (int v = 0; v < p->vecs; v++) lane_put(cg, F32, c.carry[v], g->D, v);
}

static LV dbias_index(Cg *cg, const Attn *p, LV i, LV h) { // element (b, h, i, 0) of [.., H, S, C]
    LV at = cg_add(cg, cg_muli(cg, p->b, p->H), h);
    return cg_mul(cg, cg_add(cg, cg_mul(cg, at, p->S_now), i), p->C_now);
}

// p -> s, t = ds * scale -> dp, from scores and do * v of one block.
static void block_weights(Cg *cg, const Attn *p, const Grad *g, LV j, LV n, LV h, LV i0, LV n_q) {
    LV s = at_byte(cg, p->s), dp = at_byte(cg, g->dp), zero = cg_vec(cg, 0);
    int dbias = p->bias >= 0 ? p->k->node->n_out - 1 : -1;
    CgLoop row;
    cg_for(cg, &row, cg_int(cg, 0), n, 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = s_index(cg, p, row.i, v), seen, key = cg_add(cg, j, row.i),
           lse = lane_vec(cg, F32, g->lse, v);
        LV x = finish_score(cg, p, cg_load_vec(cg, F32, s, at, NULL), key, v, &seen);
        seen = lane_or(cg, seen, LLVMBuildNot(cg->b, is_minus_inf(cg, lse), ""));
        LV w = cg_select(cg, seen, cg_exp(cg, cg_fsub(cg, x, lse)), zero);
        LV ds = cg_fmul(cg, w, cg_fsub(cg, cg_load_vec(cg, F32, dp, at, NULL), lane_vec(cg, F32, g->D, v)));
        ds = cg_select(cg, seen, ds, zero);
        cg_store_vec(cg, F32, w, s, at, NULL);
        cg_store_vec(cg, F32, cg_fmul(cg, ds, cg_vec(cg, (float)p->k->node->attr.scale)), dp, at, NULL);
        if (dbias < 0) continue;
        LV step = cg_splat(cg, LLVMBuildTrunc(cg->b, p->C_now, cg->i32, ""));
        LV first =
            cg_splat(cg, LLVMBuildTrunc(cg->b, cg_add(cg, dbias_index(cg, p, i0, h), key), cg->i32, ""));
        LV lanes = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_vec_int(cg, v * LANES), "");
        LV index = LLVMBuildAdd(cg->b, first, LLVMBuildMul(cg->b, lanes, step, ""), "");
        LV wide = LLVMBuildSExt(cg->b, index, cg->vi64, ""), out = cg_out(cg, dbias);
        LV to = LLVMBuildGEP2(cg->b, cg->f32, out, &wide, 1, "");
        LT overload[2] = {cg->vf32, LLVMTypeOf(to)};
        LV args[4] = {ds, to, cg_int32(cg, 4), cg_tail_mask(cg, cg_addi(cg, n_q, -v * LANES))};
        cg_intrinsic(cg, "llvm.masked.scatter", overload, 2, args, 4);
    }
    cg_end(cg, &row);
}

// Queries i0 .. i0+n-1 of head h: packs them, then meets all blocks of keys they see.
static void grad_tile(Cg *cg, const Attn *p, const Grad *g, LV h, LV i0, LV n) {
    DType t = p->q_type->dtype;
    const Node *node = p->k->node;
    LV q_rows = at_byte(cg, p->q_rows), do_rows = at_byte(cg, g->do_rows), one = cg_int(cg, 1);
    LV last = cg_add(cg, i0, cg_addi(cg, n, -1)), zero = cg_int(cg, 0), lanes = cg_int(cg, p->lanes);
    CgLoop lane, block;
    cg_for(cg, &lane, zero, lanes, 1); // o's rows lie where do's will
    LV o_at = cg_muli(cg, query_row(cg, p, cg_min(cg, cg_add(cg, i0, lane.i), last), h), p->V);
    copy_rows(cg, &g->copy_o, cg_at(cg, F32, do_rows, cg_muli(cg, lane.i, p->V16)),
              cg_at(cg, t, cg_in(cg, p->after), o_at), one, zero);
    cg_end(cg, &lane);
    pack_columns(cg, &p->pack, at_byte(cg, g->o_panel), do_rows, cg_int(cg, p->V), cg_int(cg, p->V16));
    cg_for(cg, &lane, zero, lanes, 1);
    LV i = cg_min(cg, cg_add(cg, i0, lane.i), last), row = query_row(cg, p, i, h);
    LV do_row = cg_at(cg, F32, do_rows, cg_muli(cg, lane.i, p->V16));
    copy_rows(cg, &p->copy_q, cg_at(cg, F32, q_rows, cg_muli(cg, lane.i, p->A16)),
              cg_at(cg, t, cg_in(cg, 0), cg_muli(cg, row, p->A)), one, zero);
    copy_rows(cg, &g->copy_o, do_row, cg_at(cg, t, cg_in(cg, p->after + 2), cg_muli(cg, row, p->V)), one,
              zero);
    cg_store1(cg, F32, cg_load1(cg, F32, cg_in(cg, p->after + 1), row), at_byte(cg, g->lse), lane.i);
    lane_setup(cg, p, lane.i, i, h);
    cg_end(cg, &lane);
    pack_columns(cg, &p->pack, at_byte(cg, p->q_panel), q_rows, cg_int(cg, p->A), cg_int(cg, p->A16));
    pack_columns(cg, &p->pack, at_byte(cg, g->do_panel), do_rows, cg_int(cg, p->V), cg_int(cg, p->V16));
    output_products(cg, p, g);
    LV s = at_byte(cg, p->s), dp = at_byte(cg, g->dp), dq = at_byte(cg, g->dq);
    cg_memset0(cg, dq, cg_int(cg, p->A16 * p->lanes * 4));
    if (p->bias >= 0)
        cg_memset0(cg, cg_at(cg, F32, cg_out(cg, node->n_out - 1), dbias_index(cg, p, i0, h)),
                   cg_muli(cg, cg_mul(cg, n, p->C_now), 4));

    LV shift = cg_sub(cg, p->C_now, p->S_now), from, to;
    key_range(cg, p, cg_add(cg, i0, shift), cg_add(cg, last, shift), &from, &to);
    cg_for(cg, &block, from, to, BLOCK);
    LV n_k = cg_min(cg, cg_sub(cg, to, block.i), cg_int(cg, BLOCK));
    LV keys = key_rows(cg, p, false, block.i, n_k), values = key_rows(cg, p, true, block.i, n_k);
    rows_by_panel(cg, p, &p->score, keys, p->score.spec.a_row, at_byte(cg, p->q_panel), p->A, s, n_k);
    rows_by_panel(cg, p, &g->dp_tile, values, g->dp_tile.spec.a_row, at_byte(cg, g->do_panel), p->V, dp, n_k);
    block_weights(cg, p, g, block.i, n_k, h, i0, n);
    columns_by_weights(cg, p, &g->dq_tile, keys, p->A, dp, n_k, dq, NULL);
    key_sums(cg, p, &g->keys, dp, q_rows, n, sums_at(cg, p, g, false, block.i), n_k);
    key_sums(cg, p, &g->values, s, do_rows, n, sums_at(cg, p, g, true, block.i), n_k);
    cg_end(cg, &block);

    LV rows = at_byte(cg, p->rows_out);
    transpose_out(cg, p, dq, p->A16, rows);
    if (p->sinks >= 0)
        for (int v = 0; v < p->vecs; v++) { // lse's place holds dsinks from here
            LV e = cg_exp(cg, cg_fsub(cg, lane_vec(cg, F32, p->sink, v), lane_vec(cg, F32, g->lse, v)));
            lane_put(cg, F32, cg_fneg(cg, cg_fmul(cg, e, lane_vec(cg, F32, g->D, v))), g->lse, v);
        }
    cg_for(cg, &lane, zero, n, 1);
    row = query_row(cg, p, cg_add(cg, i0, lane.i), h);
    store_row(cg, cg_at(cg, F32, rows, cg_muli(cg, lane.i, p->A16)), p->A, t, cg_out(cg, 0),
              cg_muli(cg, row, p->A));
    if (p->sinks >= 0)
        cg_store1(cg, node->out[3].type.dtype, cg_load1(cg, F32, at_byte(cg, g->lse), lane.i), cg_out(cg, 3),
                  row);
    cg_end(cg, &lane);
}

void emit_attention_grad(Cg *cg, const KernelNode *k) {
    Attn p;
    Grad g = {0};
    attention_of(k, &p);
    int rows = tile_size(cg->target).rows;
    attention_begin(cg, &p, false);
    unsigned heights = key_heights(&p, rows, false);
    int64_t lane_bytes = p.lanes * 4;
    g.do_rows = take(&p, p.lanes * p.V16 * 4);
    g.do_panel = take(&p, p.V16 * lane_bytes);
    g.dp = take(&p, BLOCK * lane_bytes);
    g.dq = take(&p, p.A16 * lane_bytes);
    g.lse = take(&p, lane_bytes);
    g.D = take(&p, lane_bytes);
    g.o_panel = take(&p, p.V16 * lane_bytes);
    if (narrow(&p)) {
        g.dk = take(&p, dim_bound(p.C) * p.A16 * 4);
        g.dv = take(&p, dim_bound(p.C) * p.V16 * 4);
    }
    take(&p, lane_bytes); // tiles read whole vectors behind the last row
    assert(p.used <= RT_SCRATCH_BYTES);
    g.copy_o = copy_rows_function(cg, "copy_o", p.q_type->dtype, p.V, p.V16);
    TileSpec s = p.score.spec;
    s.a_row = narrow(&p) ? p.V16 : p.Hk * p.V;
    g.dp_tile = p.score;
    if (s.a_row != p.score.spec.a_row) tile_functions(cg, &g.dp_tile, &s, "dp", heights);
    s.a_row = 1;
    s.a_k = narrow(&p) ? p.A16 : p.Hk * p.A;
    s.reload = true;
    tile_functions(cg, &g.dq_tile, &s, "dq", tile_heights(p.A, rows));
    key_sums_begin(cg, &p, &g.keys, p.A, heights, "dk", "dk_last");
    if (p.V == p.A)
        g.values = g.keys;
    else
        key_sums_begin(cg, &p, &g.values, p.V, heights, "dv", "dv_last");

    p.b = cg_div(cg, cg->task, cg_int(cg, p.Hk));
    p.g = cg_rem(cg, cg->task, cg_int(cg, p.Hk));
    clear_sums(cg, &p, &g);
    CgLoop head, tile;
    LV first = cg_muli(cg, p.g, p.G);
    cg_for(cg, &head, first, cg_addi(cg, first, p.G), 1);
    cg_for(cg, &tile, cg_int(cg, 0), p.S_now, p.lanes);
    grad_tile(cg, &p, &g, head.i, tile.i, cg_min(cg, cg_sub(cg, p.S_now, tile.i), cg_int(cg, p.lanes)));
    cg_end(cg, &tile);
    cg_end(cg, &head);
    if (narrow(&p)) store_narrow_sums(cg, &p, &g);
}
