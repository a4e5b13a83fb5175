// attention, without an array of all scores: codegen/cpu/attention.h.
//
// Task = (some tiles of queries, counting the heads of one key head as queries; batch, key head).  A block of
// keys is copied once for all tiles of the task.
#include "codegen/cpu/attention.h"
#include <assert.h>
#include <math.h>

enum { HAS_SINKS = 1, HAS_BIAS = 2, HAS_VALID = 4, HAS_DOCUMENTS = 8, HAS_SEQUENCES = 16 };

int64_t attention_take(int64_t *used, int64_t bytes) {
    int64_t at = *used;
    *used = attention_up(at + bytes, 64);
    return at;
}
LV attention_at(Cg *cg, LV base, int64_t bytes) {
    return bytes ? cg_bytes(cg, base, cg_int(cg, bytes)) : base;
}
static LV scratch(Cg *cg, int64_t bytes) { return attention_at(cg, cg->scratch, bytes); }

bool attention_of(const KernelNode *k, Attn *p) {
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
                .documents = -1,
                .sequences = -1};
    int d = p->q_type->ndim;
    for (int i = 0; i + 3 < d; i++) {
        const Dim *x = &p->q_type->dim[i];
        if (x->sym && x->sym->kind != SYM_LEAF) return false;
        p->batch *= dim_bound(*x);
    }
    p->S = p->q_type->dim[d - 3], p->H = p->q_type->dim[d - 2].n, p->A = p->q_type->dim[d - 1].n;
    p->C = p->k_type->dim[d - 3], p->Hk = p->k_type->dim[d - 2].n, p->V = p->v_type->dim[d - 1].n;
    p->G = p->H / p->Hk;
    p->A16 = attention_up(p->A, LANES), p->V16 = attention_up(p->V, LANES);
    int next = 3;
    if (attr->has & HAS_SINKS) p->sinks = next++;
    if (attr->has & HAS_BIAS) p->bias = next++;
    if (attr->has & HAS_VALID) p->valid = next++;
    if (attr->has & HAS_DOCUMENTS) p->documents = next++;
    if (attr->has & HAS_SEQUENCES) {
        const Dim *n_sequences = &n->in[p->sequences = next++]->type.dim[0];
        p->batch = dim_bound(*n_sequences);
        p->pool = dim_bound(p->C);
    }
    p->after = next;
    // Gathers of a bias count in 32 bits.
    if (p->bias >= 0 && type_bound_elements(&n->in[p->bias]->type) > INT32_MAX) return false;
    return p->q_type->dtype != F16 && p->A <= 1024 && p->V <= 1024 && dim_bound(p->C) < INT32_MAX / 2;
}

void attention_key(const Attn *p, KernelDesc *d) {
    if (p->S.sym) str_printf(&d->key, " queries %lld", (long long)dim_bound(p->S));
    if (p->C.sym) str_printf(&d->key, " keys %lld", (long long)dim_bound(p->C));
}

// ---- its tile -------------------------------------------------------------------------------------

// Blocks of keys that panels of so many lanes meet, of one key head; a part of a block counts as such.
static double blocks_met(const Attn *p, int64_t lanes, bool grad) {
    int64_t S = dim_bound(p->S), C = dim_bound(p->C), G = grad ? 1 : p->G;
    double keys = 0;
    if (S > C) S = C;                    // rows of several sequences
    for (int64_t r = 0; r < S * G; r += lanes) {
        int64_t last = (r + lanes < S * G ? r + lanes : S * G) - 1, hi = last / G + C - S, lo = r / G + C - S;
        int64_t end = p->causal ? hi + 1 : p->window ? hi + p->window : C;
        int64_t from = p->window && lo + 1 > p->window ? (lo + 1 - p->window) / ATTN_BLOCK * ATTN_BLOCK : 0;
        keys += (double)((end < C ? end : C) - from);
    }
    return keys / ATTN_BLOCK * (double)(grad ? p->G : 1);
}

void attention_choose(Attn *p, KernelDesc *d, int64_t most, bool grad) {
    const Node *n = p->k->node;
    double sequences = p->sequences < 0 ? 1 : (double)p->batch, places = (double)(p->batch * p->Hk) / sequences;
    AttentionLoad l = {.grad = grad, .A = p->A, .V = p->V, .block = ATTN_BLOCK, .most = most, .tasks = places};
    for (int vecs = 1; vecs <= TILE_MAX_VECS; vecs *= 2) l.blocks[vecs] = places * blocks_met(p, vecs * LANES, grad);
    l.exps = l.blocks[1] * ATTN_BLOCK * LANES;
    for (int i = 0; i < n->n_in + n->n_out; i++) l.bytes += (double)type_bytes(kernel_arg_type(p->k, i)) / (i == 1 || i == 2 ? sequences : 1);
    l.packed = l.bytes;
    p->tile = choose_attention(p->k, &l, d, grad ? "gradient" : "attention");
}

// ---- what both directions share -----------------------------------------------------------------

unsigned attention_heights(const Attn *p, bool heads_are_queries) {
    TileSize size = p->tile;
    bool fixed = (!p->S.sym || p->S.sym->kind == SYM_LEAF) && (!p->C.sym || p->C.sym->kind == SYM_LEAF);
    if (!fixed) return tile_all_heights(size.rows);
    int64_t S = dim_bound(p->S), C = dim_bound(p->C), G = heads_are_queries ? p->G : 1,
            lanes = size.vecs * LANES;
    unsigned heights = C >= ATTN_BLOCK ? tile_heights(ATTN_BLOCK, size.rows) : 0;
    for (int64_t r = 0; r < S * G; r += lanes) {
        int64_t last = (r + lanes < S * G ? r + lanes : S * G) - 1, max = last / G + C - S;
        int64_t end = p->causal ? max + 1 : p->window ? max + p->window : C;
        heights |= tile_heights((end < C ? end : C) % ATTN_BLOCK, size.rows);
    }
    return heights;
}

static void store_scaled(void *self, Cg *cg, LV x, LV c, int row, int col, LV mask) {
    const Attn *p = self;
    x = cg_fmul(cg, x, cg_vec(cg, (float)p->k->node->attr.scale));
    cg_store_vec(cg, F32, x, c, cg_int(cg, row * p->width + col), mask);
}

void attention_begin(Cg *cg, Attn *p, int width, int64_t keys, unsigned heights) {
    p->vecs = p->tile.vecs;
    p->lanes = p->vecs * LANES;
    p->width = width;
    p->k_copy = attention_take(&p->used, keys * p->A16 * 4);
    p->v_copy = attention_take(&p->used, keys * p->V16 * 4);
    p->pos = attention_take(&p->queries_used, width * 4);
    p->doc = attention_take(&p->queries_used, width * 4);
    p->bias_at = attention_take(&p->queries_used, width * 4);
    p->sink = attention_take(&p->queries_used, width * 4);
    p->q_panel = attention_take(&p->queries_used, p->A16 * width * 4);
    TileSpec s = {.vecs = p->vecs,
                  .cols = p->lanes,
                  .a_row = p->A16,
                  .a_k = 1,
                  .c_row = width,
                  .b_type = F32,
                  .c_type = F32,
                  .store = store_scaled,
                  .self = p};
    tile_functions(cg, &p->score, &s, "score", heights);
    p->copy_k = copy_rows_function(cg, "copy_k", p->k_type->dtype, p->A, p->A16);
    p->copy_v = copy_rows_function(cg, "copy_v", p->v_type->dtype, p->V, p->V16);
    p->S_now = cg_dim(cg, p->S);
    p->C_now = cg_dim(cg, p->C);
}

void attention_place(Cg *cg, Attn *p, LV place) {
    p->b = cg_div(cg, place, cg_int(cg, p->Hk));
    p->g = cg_rem(cg, place, cg_int(cg, p->Hk));
    if (p->sequences < 0) return;
    LV s[SEQUENCE_COLUMNS];
    cg_sequence(cg, cg_in(cg, p->sequences), p->b, s);
    p->S_now = s[SEQUENCE_ROWS];
    p->C_now = s[SEQUENCE_LENGTH];
    p->first_query = s[SEQUENCE_FIRST];
    p->first_key = cg_muli(cg, s[SEQUENCE_PLACE], p->pool);
}

LV attention_row(Cg *cg, const Attn *p, LV i, LV h) {
    LV first = p->first_query ? p->first_query : cg_mul(cg, p->b, p->S_now);
    return cg_add(cg, cg_muli(cg, cg_add(cg, first, i), p->H), h);
}

LV attention_key_row(Cg *cg, const Attn *p, LV j) {
    LV first = p->first_key ? p->first_key : cg_mul(cg, p->b, p->C_now);
    return cg_add(cg, cg_muli(cg, cg_add(cg, first, j), p->Hk), p->g);
}

// Size-1 and missing axes of t are shared.
LV attention_batch(Cg *cg, const Attn *p, const Type *t, int inner) {
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

LV lane_vec(Cg *cg, const Attn *p, DType t, int64_t field, int v) {
    return cg_load_vec(cg, t, attention_at(cg, p->queries, field), cg_int(cg, v * LANES), NULL);
}
void lane_put(Cg *cg, const Attn *p, DType t, LV x, int64_t field, int v) {
    cg_store_vec(cg, t, x, attention_at(cg, p->queries, field), cg_int(cg, v * LANES), NULL);
}

void attention_lane(Cg *cg, const Attn *p, LV lane, LV i, LV h) {
    LV pos = cg_sub(cg, cg_add(cg, i, p->C_now), p->S_now);
    LV pos32 = LLVMBuildTrunc(cg->b, pos, cg->i32, "");
    cg_store1(cg, I32, pos32, attention_at(cg, p->queries, p->pos), lane);
    if (p->documents >= 0) {
        LV at = cg_add(
            cg, cg_mul(cg, attention_batch(cg, p, kernel_arg_type(p->k, p->documents), 1), p->C_now), pos);
        cg_store1(cg, I32, cg_load1(cg, I32, cg_in(cg, p->documents), at),
                  attention_at(cg, p->queries, p->doc), lane);
    }
    if (p->sinks >= 0)
        cg_store1(cg, F32, cg_load1(cg, kernel_arg_type(p->k, p->sinks)->dtype, cg_in(cg, p->sinks), h),
                  attention_at(cg, p->queries, p->sink), lane);
    if (p->bias >= 0) {
        const Type *t = kernel_arg_type(p->k, p->bias);
        int d = t->ndim;
        LV at = attention_batch(cg, p, t, 3);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 3]));
        if (!dim_is_1(t->dim[d - 3])) at = cg_add(cg, at, h);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 2]));
        if (!dim_is_1(t->dim[d - 2])) at = cg_add(cg, at, p->first_query ? cg_add(cg, p->first_query, i) : i);
        at = cg_mul(cg, at, cg_dim(cg, t->dim[d - 1]));
        cg_store1(cg, I32, LLVMBuildTrunc(cg->b, at, cg->i32, ""), attention_at(cg, p->queries, p->bias_at),
                  lane);
    }
}

void attention_range(Cg *cg, const Attn *p, LV lo, LV hi, LV *from, LV *to) {
    LV zero = cg_int(cg, 0);
    *from = p->window ? cg_max(cg, zero, cg_addi(cg, lo, 1 - p->window)) : zero;
    *from = LLVMBuildAnd(cg->b, *from, cg_int(cg, -ATTN_BLOCK), "");
    LV seen = p->causal ? cg_addi(cg, hi, 1) : p->window ? cg_addi(cg, hi, p->window) : p->C_now;
    *to = cg_max(cg, zero, cg_min(cg, seen, p->C_now));
}

void attention_copy_keys(Cg *cg, const Attn *p, LV j, LV n, LV to) {
    LV row = attention_key_row(cg, p, j);
    LV k = cg_at(cg, p->k_type->dtype, cg_in(cg, 1), cg_muli(cg, row, p->A)),
       v = cg_at(cg, p->v_type->dtype, cg_in(cg, 2), cg_muli(cg, row, p->V));
    copy_rows(cg, &p->copy_k, cg_at(cg, F32, scratch(cg, p->k_copy), cg_muli(cg, to, p->A16)), k, n,
              cg_int(cg, p->Hk * p->A));
    copy_rows(cg, &p->copy_v, cg_at(cg, F32, scratch(cg, p->v_copy), cg_muli(cg, to, p->V16)), v, n,
              cg_int(cg, p->Hk * p->V));
}

void attention_prefetch(Cg *cg, const Attn *p, bool values, LV j, int n) {
    DType t = values ? p->v_type->dtype : p->k_type->dtype;
    int64_t columns = values ? p->V : p->A, bytes = columns * dtype_bytes(t);
    LV row = attention_key_row(cg, p, j);
    LV at = cg_at(cg, t, cg_in(cg, values ? 2 : 1), cg_muli(cg, row, columns));
    CgLoop i;
    cg_for(cg, &i, cg_int(cg, 0), cg_int(cg, n), 1);
    LV from = cg_bytes(cg, at, cg_muli(cg, i.i, p->Hk * bytes));
    for (int64_t line = 0; line < bytes; line += 64)
        cg_prefetch(cg, cg_bytes(cg, from, cg_int(cg, line)), false, 2);
    cg_end(cg, &i);
}

void attention_by_rows(Cg *cg, const Attn *p, const TileSet *set, LV a, LV b, int64_t depth, LV c, LV n) {
    TileCut cut = tile_cut(cg, n, p->tile.rows);
    CgLoop t;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    LV first = tile_first(cg, &cut, t.i);
    tile_call(cg, set, tile_height(cg, &cut, t.i),
              &(TileCall){.a = cg_at(cg, F32, a, cg_muli(cg, first, set->spec.a_row)),
                          .b = b,
                          .k = cg_int(cg, depth),
                          .b_k = cg_int(cg, p->width),
                          .c = cg_at(cg, F32, c, cg_muli(cg, first, p->width))});
    cg_end(cg, &t);
}

void attention_by_columns(Cg *cg, const Attn *p, const TileSet *set, LV a, int64_t columns, LV weights, LV n,
                          LV acc, LV begins, const Ahead *ahead) {
    TileCut cut = tile_cut(cg, cg_int(cg, columns), p->tile.rows);
    CgLoop t;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    ahead->ask(ahead->self, cg, cg_addi(cg, t.i, ahead->first));
    LV first = tile_first(cg, &cut, t.i), c = cg_at(cg, F32, acc, cg_muli(cg, first, p->width));
    tile_call(cg, set, tile_height(cg, &cut, t.i),
              &(TileCall){.a = cg_at(cg, F32, a, first),
                          .b = weights,
                          .k = n,
                          .b_k = cg_int(cg, p->width),
                          .c = c,
                          .init = begins ? cg_select(cg, begins, LLVMConstNull(cg->ptr), c) : c});
    cg_end(cg, &t);
}

LV attention_both(Cg *cg, LV a, LV b) { return a ? LLVMBuildAnd(cg->b, a, b, "") : b; }
static LV either(Cg *cg, LV a, LV b) { return a ? LLVMBuildOr(cg->b, a, b, "") : b; }

LV attention_boundary(Cg *cg, const Attn *p, LV j, LV n, LV lo, LV hi) {
    if (p->bias >= 0 || p->valid >= 0 || p->documents >= 0) return cg_bool(cg, true);
    LV last = cg_add(cg, j, cg_addi(cg, n, -1)), some = NULL;
    if (p->causal) some = cg_lt(cg, lo, last);
    if (p->window) {
        some = either(cg, some, cg_lt(cg, j, cg_addi(cg, hi, 1 - p->window)));
        if (!p->causal) some = either(cg, some, cg_lt(cg, cg_addi(cg, lo, p->window - 1), last));
    }
    return some ? some : cg_bool(cg, false);
}

LV attention_in_reach(Cg *cg, const Attn *p, LV seen, LV key, LV pos) {
    if (p->causal) seen = attention_both(cg, seen, LLVMBuildICmp(cg->b, LLVMIntSLE, key, pos, ""));
    if (!p->window) return seen;
    LV w = cg_vec_int(cg, (int32_t)p->window);
    seen = attention_both(cg, seen, LLVMBuildICmp(cg->b, LLVMIntSGT, key, LLVMBuildSub(cg->b, pos, w, ""), ""));
    if (p->causal) return seen;
    return attention_both(cg, seen, LLVMBuildICmp(cg->b, LLVMIntSLT, key, LLVMBuildAdd(cg->b, pos, w, ""), ""));
}

LV attention_finish(Cg *cg, const Attn *p, LV x, LV j, int v, LV *seen) {
    if (p->bias >= 0) {
        const Type *t = kernel_arg_type(p->k, p->bias);
        LV at = lane_vec(cg, p, I32, p->bias_at, v);
        if (!dim_is_1(t->dim[t->ndim - 1]))
            at = LLVMBuildAdd(cg->b, at, cg_splat(cg, LLVMBuildTrunc(cg->b, j, cg->i32, "")), "");
        x = cg_fadd(cg, x, cg_gather_vec(cg, t->dtype, cg_in(cg, p->bias), at, NULL));
    }
    LV key = cg_splat(cg, LLVMBuildTrunc(cg->b, j, cg->i32, ""));
    LV pos = p->causal || p->window ? lane_vec(cg, p, I32, p->pos, v) : NULL;
    LV mask = attention_in_reach(cg, p, NULL, key, pos);
    if (p->valid >= 0) {
        LV at =
            cg_add(cg, cg_mul(cg, attention_batch(cg, p, kernel_arg_type(p->k, p->valid), 1), p->C_now), j);
        mask = attention_both(cg, mask, cg_splat(cg, cg_load1(cg, BOOL, cg_in(cg, p->valid), at)));
    }
    if (p->documents >= 0) {
        LV at = cg_add(
            cg, cg_mul(cg, attention_batch(cg, p, kernel_arg_type(p->k, p->documents), 1), p->C_now), j);
        LV doc = cg_splat(cg, cg_load1(cg, I32, cg_in(cg, p->documents), at));
        mask = attention_both(cg, mask,
                              LLVMBuildICmp(cg->b, LLVMIntEQ, doc, lane_vec(cg, p, I32, p->doc, v), ""));
    }
    *seen = mask;
    return x;
}

LV attention_index(Cg *cg, const Attn *p, LV row, int v) {
    return cg_addi(cg, cg_muli(cg, row, p->width), v * LANES);
}

void attention_transpose(Cg *cg, const Attn *p, LV from, int64_t columns, const LV *scale, LV rows) {
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, columns), LANES);
    for (int v = 0; v < p->width / LANES; v++) {
        LV x[LANES];
        for (int i = 0; i < LANES; i++) {
            x[i] = cg_load_vec(cg, F32, from, attention_index(cg, p, cg_addi(cg, c.i, i), v), NULL);
            if (scale) x[i] = cg_fmul(cg, x[i], scale[v]);
        }
        tile_transpose(cg, x);
        for (int i = 0; i < LANES; i++)
            cg_store_vec(cg, F32, x[i], rows, cg_addi(cg, c.i, (v * LANES + i) * columns), NULL);
    }
    cg_end(cg, &c);
}

void attention_store_row(Cg *cg, LV row, int64_t columns, DType t, LV to, LV at) {
    CgLoop c;
    int64_t whole = columns / LANES * LANES;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, whole), LANES);
    cg_store_vec(cg, t, cg_load_vec(cg, F32, row, c.i, NULL), to, cg_add(cg, at, c.i), NULL);
    cg_end(cg, &c);
    if (whole < columns)
        cg_store_vec(cg, t, cg_load_vec(cg, F32, row, cg_int(cg, whole), NULL), to, cg_addi(cg, at, whole),
                     tile_mask(cg, (int)(columns - whole)));
}

LV minus_inf(Cg *cg) { return cg_vec(cg, -INFINITY); }
LV is_minus_inf(Cg *cg, LV x) { return LLVMBuildFCmp(cg->b, LLVMRealOEQ, x, minus_inf(cg), ""); }
LV all_lanes(Cg *cg, LV truth) {
    LV bits = LLVMBuildBitCast(cg->b, truth, cg->i16, "");
    return LLVMBuildICmp(cg->b, LLVMIntEQ, bits, LLVMConstAllOnes(cg->i16), "");
}

// ---- attention ----------------------------------------------------------------------------------

// Running softmax of a tile, one level per power of two of segments:  m [lanes], l [lanes], o [V16][lanes].
typedef struct {
    int64_t base, m, l, o, level; // base: offset in what is kept of a tile
    int64_t s, rows, numbers;     // scratch: scores, rows of queries or results, numbers of queries' rows
    int64_t tiles, lse;           // scratch: what is kept of the tiles of a task
    int n_levels;
    int64_t task_rows;
    LV start, end, all; // queries of the task, and how many there are
    TileSet values;
    PackFunction copy_q, pack;
} Running;

// Levels of the tree over segments, and one for the segment that runs.
static int levels_of(const Attn *p) {
    int levels = 2;
    while ((int64_t)ATTN_SEGMENT << (levels - 2) < dim_bound(p->C)) levels++;
    return levels;
}

// Queries of a task: enough that copying keys costs little, not so many that threads starve or scratch ends.
static int64_t task_rows(const Attn *p) {
    int64_t rows = 256, each = (p->A16 + levels_of(p) * (p->V16 + 2)) * 4;
    while (rows > 32 &&
           (dim_bound(p->S) * p->G / rows * p->batch * p->Hk < 16 || rows * each > RT_SCRATCH_BYTES / 2))
        rows /= 2;
    return rows;
}

bool describe_attention(const KernelNode *k, KernelDesc *d) {
    Attn p;
    if (!attention_of(k, &p)) return false;
    attention_key(&p, d);
    bool vary = p.S.sym && p.S.sym->kind != SYM_LEAF;
    d->tasks[0] = (TaskCount){(vary ? p.S.n : dim_bound(p.S)) * p.G, task_rows(&p), p.batch * p.Hk,
                              vary ? p.S.sym : NULL, 0};
    if (attention_may_be_few(&p)) attention_few_describe(&p, d);
    attention_choose(&p, d, task_rows(&p), false);
    double pairs = (double)dim_bound(p.S) * (double)dim_bound(p.C) * (p.causal ? 0.5 : 1);
    d->flops = 2.0 * (double)(p.batch * p.H) * pairs * (double)(p.A + p.V);
    return true;
}

static LV level_at(Cg *cg, const Attn *p, const Running *r, LV level) {
    return cg_bytes(cg, attention_at(cg, p->queries, r->base), cg_muli(cg, level, r->level));
}
static LV run_load(Cg *cg, LV level, int64_t field, int v) {
    return cg_load_vec(cg, F32, cg_bytes(cg, level, cg_int(cg, field)), cg_int(cg, v * LANES), NULL);
}
static void run_store(Cg *cg, LV x, LV level, int64_t field, int v) {
    cg_store_vec(cg, F32, x, cg_bytes(cg, level, cg_int(cg, field)), cg_int(cg, v * LANES), NULL);
}

LV larger(Cg *cg, LV a, LV b) { return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, a, b, ""), a, b); }
LV keep_of(Cg *cg, LV old, LV m) {
    return cg_select(cg, is_minus_inf(cg, old), cg_vec(cg, 0), cg_exp_down(cg, cg_fsub(cg, old, m)));
}

// used: keys will join, the first of which begin o.
static void new_level(Cg *cg, const Attn *p, const Running *r, LV level, LV used) {
    for (int v = 0; v < p->vecs; v++) {
        run_store(cg, minus_inf(cg), level, r->m, v);
        run_store(cg, cg_vec(cg, 0), level, r->l, v);
    }
    CgIf clear;
    cg_if(cg, &clear, LLVMBuildNot(cg->b, used, ""));
    cg_memset0(cg, cg_bytes(cg, level, cg_int(cg, r->o)), cg_int(cg, p->V16 * p->lanes * 4));
    cg_endif(cg, &clear);
}

// o *= f[v], all columns.
static void scale_o(Cg *cg, const Attn *p, const Running *r, LV level, LV *f) {
    LV o = cg_bytes(cg, level, cg_int(cg, r->o));
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = attention_index(cg, p, c.i, v);
        cg_store_vec(cg, F32, cg_fmul(cg, cg_load_vec(cg, F32, o, at, NULL), f[v]), o, at, NULL);
    }
    cg_end(cg, &c);
}

// Sum over the 64 rows of s in the order of lanes_sum: 16 partial sums over rows l, l+16, .., then folds 8,
// 4, 2, 1.
static LV fold_rows(Cg *cg, const Attn *p, LV s, int v, int l, int half) {
    if (half < LANES)
        return cg_fadd(cg, fold_rows(cg, p, s, v, l, half * 2), fold_rows(cg, p, s, v, l + half, half * 2));
    LV sum = cg_load_vec(cg, F32, s, cg_int(cg, l * p->width + v * LANES), NULL);
    for (int i = l + LANES; i < ATTN_BLOCK; i += LANES)
        sum = cg_fadd(cg, sum, cg_load_vec(cg, F32, s, cg_int(cg, i * p->width + v * LANES), NULL));
    return sum;
}

enum { ROWS_AT_ONCE = 4 }; // of scores

// The largest score of each lane; masks and biases are laid on the scores here.
static void finish_scores(Cg *cg, const Attn *p, LV s, LV j, LV n, LV boundary, LV *largest) {
    LV masked[TILE_MAX_VECS], plain[TILE_MAX_VECS], zero = cg_int(cg, 0);
    CgLoop row;
    CgIf f;
    cg_if(cg, &f, boundary);
    for (int v = 0; v < p->vecs; v++) masked[v] = minus_inf(cg);
    cg_loop_begin(cg, &row, zero, n, 1, p->vecs, masked);
    for (int v = 0; v < p->vecs; v++) {
        LV at = attention_index(cg, p, row.i, v), seen;
        LV x = attention_finish(cg, p, cg_load_vec(cg, F32, s, at, NULL), cg_add(cg, j, row.i), v, &seen);
        if (seen) x = cg_select(cg, seen, x, minus_inf(cg));
        cg_store_vec(cg, F32, x, s, at, NULL);
        masked[v] = larger(cg, x, row.carry[v]);
    }
    cg_loop_end(cg, &row, masked);
    for (int v = 0; v < p->vecs; v++) masked[v] = row.carry[v];
    cg_else(cg, &f);
    for (int v = 0; v < p->vecs; v++) plain[v] = minus_inf(cg);
    cg_loop_begin(cg, &row, zero, n, ROWS_AT_ONCE, p->vecs, plain);
    for (int v = 0; v < p->vecs; v++) {
        LV x[ROWS_AT_ONCE];
        for (int u = 0; u < ROWS_AT_ONCE; u++)
            x[u] = cg_load_vec(cg, F32, s, attention_index(cg, p, cg_addi(cg, row.i, u), v), NULL);
        // A NaN stands first, where it loses.
        LV a = larger(cg, x[0], row.carry[v]), b = larger(cg, x[1], minus_inf(cg));
        plain[v] = larger(cg, larger(cg, x[3], larger(cg, x[2], b)), a);
    }
    cg_loop_end(cg, &row, plain);
    for (int v = 0; v < p->vecs; v++) plain[v] = row.carry[v];
    cg_endif_join(cg, &f, p->vecs, masked, plain, largest);
}

static void fill_rows(Cg *cg, const Attn *p, LV s, LV from, LV to, float x) {
    CgLoop row;
    cg_for(cg, &row, from, to, 1);
    for (int v = 0; v < p->vecs; v++)
        cg_store_vec(cg, F32, cg_vec(cg, x), s, attention_index(cg, p, row.i, v), NULL);
    cg_end(cg, &row);
}

// Keys j .. j+n-1 join; begins: no key of this segment has before.
static void attend_block(Cg *cg, const Attn *p, const Running *r, LV level, LV j, LV n, LV begins,
                         LV boundary, const Ahead *ahead) {
    LV s = scratch(cg, r->s), m[TILE_MAX_VECS], keep[TILE_MAX_VECS], from[TILE_MAX_VECS], same = NULL;
    attention_by_rows(cg, p, &p->score, scratch(cg, p->k_copy), attention_at(cg, p->queries, p->q_panel),
                      p->A, s, n);
    LV some = LLVMBuildAnd(cg->b, cg_addi(cg, n, ROWS_AT_ONCE - 1), cg_int(cg, -ROWS_AT_ONCE), "");
    fill_rows(cg, p, s, n, some, -INFINITY);
    finish_scores(cg, p, s, j, n, boundary, m);
    for (int v = 0; v < p->vecs; v++) {
        LV old = run_load(cg, level, r->m, v);
        m[v] = larger(cg, m[v], old);
        keep[v] = keep_of(cg, old, m[v]);
        from[v] =
            cg_select(cg, is_minus_inf(cg, m[v]), cg_vec(cg, 0), m[v]); // nothing seen: exp(-inf), not of NaN
        same = attention_both(cg, same, LLVMBuildFCmp(cg->b, LLVMRealOEQ, keep[v], cg_vec(cg, 1), ""));
    }
    CgLoop row;
    cg_for(cg, &row, cg_int(cg, 0), some, ROWS_AT_ONCE);
    for (int u = 0; u < ROWS_AT_ONCE; u += 2)
        for (int v = 0; v < p->vecs; v++) {
            LV at[2], x[2];
            for (int i = 0; i < 2; i++) {
                at[i] = attention_index(cg, p, cg_addi(cg, row.i, u + i), v);
                x[i] = cg_fsub(cg, cg_load_vec(cg, F32, s, at[i], NULL), from[v]);
            }
            cg_exp_down_two(cg, x);
            for (int i = 0; i < 2; i++) cg_store_vec(cg, F32, x[i], s, at[i], NULL);
        }
    cg_end(cg, &row);
    fill_rows(cg, p, s, some, cg_int(cg, ATTN_BLOCK), 0);
    for (int v = 0; v < p->vecs; v++) {
        run_store(cg, cg_fma(cg, run_load(cg, level, r->l, v), keep[v], fold_rows(cg, p, s, v, 0, 1)), level,
                  r->l, v);
        run_store(cg, m[v], level, r->m, v);
    }
    CgIf f;
    LV scale = LLVMBuildNot(cg->b, LLVMBuildOr(cg->b, begins, all_lanes(cg, same), ""), "");
    cg_if(cg, &f, scale);
    scale_o(cg, p, r, level, keep);
    cg_endif(cg, &f);
    attention_by_columns(cg, p, &r->values, scratch(cg, p->v_copy), p->V, s, n,
                         cg_bytes(cg, level, cg_int(cg, r->o)), begins, ahead);
}

// Level b joins level a, which comes before it.
static void merge_levels(Cg *cg, const Attn *p, const Running *r, LV a, LV b) {
    LV ra[TILE_MAX_VECS], rb[TILE_MAX_VECS], none[TILE_MAX_VECS];
    for (int v = 0; v < p->vecs; v++) {
        LV ma = run_load(cg, a, r->m, v), mb = run_load(cg, b, r->m, v), m = larger(cg, ma, mb);
        none[v] = is_minus_inf(cg, mb);
        ra[v] = keep_of(cg, ma, m);
        rb[v] = cg_exp_down(cg, cg_fsub(cg, mb, m));
        LV la = run_load(cg, a, r->l, v),
           l = cg_fma(cg, run_load(cg, b, r->l, v), rb[v], cg_fmul(cg, la, ra[v]));
        run_store(cg, cg_select(cg, none[v], la, l), a, r->l, v);
        run_store(cg, cg_select(cg, none[v], ma, m), a, r->m, v);
    }
    LV oa = cg_bytes(cg, a, cg_int(cg, r->o)), ob = cg_bytes(cg, b, cg_int(cg, r->o));
    CgLoop c;
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1);
    for (int v = 0; v < p->vecs; v++) {
        LV at = attention_index(cg, p, c.i, v), x = cg_load_vec(cg, F32, oa, at, NULL);
        LV y = cg_fma(cg, cg_load_vec(cg, F32, ob, at, NULL), rb[v], cg_fmul(cg, x, ra[v]));
        cg_store_vec(cg, F32, cg_select(cg, none[v], x, y), oa, at, NULL);
    }
    cg_end(cg, &c);
}

// The tiles of the task, one after the other: first and last query.
typedef struct {
    CgLoop l;
    LV first, last, from, to, lo, hi;
} Tiles;

static void tiles_begin(Cg *cg, Attn *p, const Running *r, Tiles *t) {
    LV shift = cg_sub(cg, p->C_now, p->S_now), G = cg_int(cg, p->G);
    cg_for(cg, &t->l, r->start, r->end, p->lanes);
    LV tile = cg_div(cg, cg_sub(cg, t->l.i, r->start), cg_int(cg, p->lanes));
    p->queries = cg_bytes(cg, scratch(cg, r->tiles), cg_muli(cg, tile, p->queries_used));
    t->first = t->l.i;
    t->last = cg_addi(cg, cg_min(cg, cg_addi(cg, t->first, p->lanes), r->all), -1);
    t->lo = cg_add(cg, cg_div(cg, t->first, G), shift);
    t->hi = cg_add(cg, cg_div(cg, t->last, G), shift);
    attention_range(cg, p, t->lo, t->hi, &t->from, &t->to);
}

// Asks for the rows of queries from .. to-1 in operand or result `at`.
static void prefetch_queries(Cg *cg, const Attn *p, LV at, DType t, int64_t columns, LV from, LV to,
                             bool write) {
    CgLoop q;
    LV G = cg_int(cg, p->G);
    cg_for(cg, &q, from, to, 1);
    LV h = cg_add(cg, cg_muli(cg, p->g, p->G), cg_rem(cg, q.i, G));
    LV row = cg_at(cg, t, at, cg_muli(cg, attention_row(cg, p, cg_div(cg, q.i, G), h), columns));
    for (int64_t line = 0; line < columns * dtype_bytes(t); line += 64)
        cg_prefetch(cg, cg_bytes(cg, row, cg_int(cg, line)), write, 2);
    cg_end(cg, &q);
}

// What lanes know of their queries; lanes without a query repeat the last one.
static void begin_lanes(Cg *cg, Attn *p, const Tiles *t) {
    LV G = cg_int(cg, p->G);
    CgLoop lane;
    cg_for(cg, &lane, cg_int(cg, 0), cg_int(cg, p->lanes), 1);
    LV q = cg_min(cg, cg_add(cg, t->first, lane.i), t->last);
    attention_lane(cg, p, lane.i, cg_div(cg, q, G), cg_add(cg, cg_muli(cg, p->g, p->G), cg_rem(cg, q, G)));
    cg_end(cg, &lane);
}

// The panel of a tile's queries.
static void take_queries(Cg *cg, const Attn *p, const Running *r, const Tiles *t) {
    LV numbers = scratch(cg, r->numbers), rows = scratch(cg, r->rows), G = cg_int(cg, p->G),
       zero = cg_int(cg, 0);
    CgLoop lane;
    cg_for(cg, &lane, zero, cg_int(cg, p->lanes), 1);
    LV q = cg_min(cg, cg_add(cg, t->first, lane.i), t->last),
       h = cg_add(cg, cg_muli(cg, p->g, p->G), cg_rem(cg, q, G)),
       row = cg_add(cg, cg_muli(cg, cg_div(cg, q, G), p->H), h);
    cg_store1(cg, I32, LLVMBuildTrunc(cg->b, row, cg->i32, ""), numbers, lane.i);
    cg_end(cg, &lane);
    LV source =
        cg_at(cg, p->q_type->dtype, cg_in(cg, 0), cg_muli(cg, attention_row(cg, p, zero, zero), p->A));
    copy_numbered_rows(cg, &r->copy_q, rows, source, cg_int(cg, p->lanes), cg_int(cg, p->A),
                       &(RowNumbers){numbers, cg_muli(cg, p->S_now, p->H)});
    pack_columns(cg, &r->pack, attention_at(cg, p->queries, p->q_panel), rows, cg_int(cg, p->A),
                 cg_int(cg, p->A16));
}

// What is read behind the product that runs: the next tile's queries, or, behind the last tile, the next block of keys.
typedef struct {
    const Attn *p;
    const Running *r;
    LV first, last; // whether this is the tile's first block; whether it is the last tile
    LV query, key;  // that come
} Next;

static void ask_next(const void *self, Cg *cg, LV part) {
    const Next *next = self;
    const Attn *p = next->p;
    int tiles = (int)((p->V + p->tile.rows - 1) / p->tile.rows);
    int keys = (ATTN_BLOCK + tiles - 1) / tiles, queries = (p->lanes + tiles - 1) / tiles;
    CgIf last, first;
    cg_if(cg, &last, next->last);
    for (int values = 0; values < 2; values++)
        attention_prefetch(cg, p, values, cg_add(cg, next->key, cg_muli(cg, part, keys)), keys);
    cg_else(cg, &last);
    cg_if(cg, &first, next->first);
    LV from = cg_add(cg, next->query, cg_muli(cg, part, queries));
    prefetch_queries(cg, p, cg_in(cg, 0), p->q_type->dtype, p->A, from,
                     cg_min(cg, cg_addi(cg, from, queries), next->r->end), false);
    cg_endif(cg, &first);
    cg_endif(cg, &last);
}

// Keys lo .. hi-1, all of one segment.
static void attend_range(Cg *cg, Attn *p, const Running *r, LV level, LV lo, LV hi) {
    CgLoop block;
    Tiles t;
    tiles_begin(cg, p, r, &t);
    new_level(cg, p, r, level_at(cg, p, r, level), cg_lt(cg, cg_max(cg, lo, t.from), cg_min(cg, hi, t.to)));
    cg_end(cg, &t.l);
    cg_for(cg, &block, lo, hi, ATTN_BLOCK);
    attention_copy_keys(cg, p, block.i, cg_min(cg, cg_sub(cg, hi, block.i), cg_int(cg, ATTN_BLOCK)),
                        cg_int(cg, 0));
    tiles_begin(cg, p, r, &t);
    LV n = cg_min(cg, cg_sub(cg, t.to, block.i), cg_int(cg, ATTN_BLOCK));
    LV meets = LLVMBuildAnd(cg->b, cg_lt(cg, block.i, t.to),
                            LLVMBuildNot(cg->b, cg_lt(cg, block.i, t.from), ""), "");
    CgIf f, first;
    cg_if(cg, &f, meets);
    Next next = {.p = p,
                 .r = r,
                 .first = cg_eq(cg, block.i, t.from),
                 .query = cg_addi(cg, t.last, 1),
                 .key = cg_addi(cg, block.i, ATTN_BLOCK)};
    next.last = LLVMBuildAnd(cg->b, cg_eq(cg, next.query, r->end), cg_lt(cg, next.key, t.to), "");
    cg_if(cg, &first, next.first);
    take_queries(cg, p, r, &t);
    cg_endif(cg, &first);
    attend_block(cg, p, r, level_at(cg, p, r, level), block.i, n, cg_eq(cg, block.i, cg_max(cg, lo, t.from)),
                 attention_boundary(cg, p, block.i, n, t.lo, t.hi), &(Ahead){ask_next, &next, 0});
    cg_endif(cg, &f);
    cg_end(cg, &t.l);
    cg_end(cg, &block);
}

// All segments, met in their tree by a binary counter; the result is in level 0.
static void attend_segments(Cg *cg, Attn *p, const Running *r, LV from, LV to) {
    LV zero = cg_int(cg, 0), one = cg_int(cg, 1), size = cg_int(cg, ATTN_SEGMENT);
    if (dim_bound(p->C) <= ATTN_SEGMENT) {
        attend_range(cg, p, r, zero, from, to);
        return;
    }
    LV first = cg_div(cg, from, size),
       end = cg_max(cg, cg_div(cg, cg_addi(cg, to, ATTN_SEGMENT - 1), size), cg_addi(cg, first, 1));
    CgLoop empty, seg, merge;
    LV bits = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &first, 1);
    Tiles t;
    tiles_begin(cg, p, r, &t);
    cg_for(cg, &empty, zero, bits, 1); // segments before the window changed nothing
    new_level(cg, p, r, level_at(cg, p, r, empty.i), cg_bool(cg, false));
    cg_end(cg, &empty);
    cg_end(cg, &t.l);
    cg_for(cg, &seg, first, end, 1);
    LV at = cg_mul(cg, seg.i, size), after = cg_addi(cg, seg.i, 1);
    LV top = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &seg.i, 1);
    attend_range(cg, p, r, top, cg_max(cg, at, from), cg_min(cg, cg_addi(cg, at, ATTN_SEGMENT), to));
    LV zeros[2] = {after, cg_bool(cg, true)};
    LV merges =
        cg_select(cg, cg_eq(cg, after, end), top, cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, zeros, 2));
    tiles_begin(cg, p, r, &t);
    cg_for(cg, &merge, zero, merges, 1);
    LV b = cg_sub(cg, top, merge.i);
    merge_levels(cg, p, r, level_at(cg, p, r, cg_sub(cg, b, one)), level_at(cg, p, r, b));
    cg_end(cg, &merge);
    cg_end(cg, &t.l);
    cg_end(cg, &seg);
}

// Sinks, normalisation, and out.
static void finish_tile(Cg *cg, const Attn *p, const Running *r, LV r0, LV n) {
    LV level = level_at(cg, p, r, cg_int(cg, 0)), inverse[TILE_MAX_VECS], keep[TILE_MAX_VECS],
       zero = cg_vec(cg, 0);
    for (int v = 0; v < p->vecs; v++) {
        LV m = run_load(cg, level, r->m, v), l = run_load(cg, level, r->l, v);
        if (p->sinks >= 0) {
            LV sink = lane_vec(cg, p, F32, p->sink, v), old = m;
            m = larger(cg, old, sink);
            keep[v] = keep_of(cg, old, m);
            l = cg_fma(cg, l, keep[v], cg_exp_down(cg, cg_fsub(cg, sink, m)));
        }
        LV none = is_minus_inf(cg, m);
        inverse[v] = cg_select(cg, none, zero, cg_fdiv(cg, cg_vec(cg, 1), l));
        cg_store_vec(cg, F32, cg_select(cg, none, m, cg_fadd(cg, m, cg_log(cg, l))), scratch(cg, r->lse),
                     cg_int(cg, v * LANES), NULL);
    }
    if (p->sinks >= 0) scale_o(cg, p, r, level, keep);
    LV rows = scratch(cg, r->rows);
    attention_transpose(cg, p, cg_bytes(cg, level, cg_int(cg, r->o)), p->V16, inverse, rows);
    CgLoop lane;
    cg_for(cg, &lane, cg_int(cg, 0), n, 1);
    LV q = cg_add(cg, r0, lane.i), i = cg_div(cg, q, cg_int(cg, p->G)), h = cg_rem(cg, q, cg_int(cg, p->G));
    LV row = attention_row(cg, p, i, cg_add(cg, cg_muli(cg, p->g, p->G), h));
    attention_store_row(cg, cg_at(cg, F32, rows, cg_muli(cg, lane.i, p->V16)), p->V, p->q_type->dtype,
                        cg_out(cg, 0), cg_muli(cg, row, p->V));
    cg_store1(cg, F32, cg_load1(cg, F32, scratch(cg, r->lse), lane.i), cg_out(cg, 1), row);
    cg_end(cg, &lane);
}

// The queries of block `block` of a batch element and key head.
static void emit_many(Cg *cg, const Attn *given, LV block) {
    Attn p = *given;
    p.score.spec.self = &p;
    TileSize size = p.tile;
    Running r = {.l = p.lanes * 4, .o = p.lanes * 8, .n_levels = levels_of(&p), .task_rows = task_rows(&p)};
    r.level = r.o + p.V16 * p.lanes * 4;
    r.base = attention_take(&p.queries_used, r.level * r.n_levels);
    r.s = attention_take(&p.used, ATTN_BLOCK * p.width * 4);
    r.rows = attention_take(&p.used, p.lanes * (p.A16 > p.V16 ? p.A16 : p.V16) * 4);
    r.numbers = attention_take(&p.used, p.lanes * 4);
    r.lse = attention_take(&p.used, p.lanes * 4);
    r.tiles = attention_take(&p.used, (r.task_rows + p.lanes - 1) / p.lanes * p.queries_used);
    assert(p.used <= RT_SCRATCH_BYTES);
    TileSpec s = {.vecs = p.vecs,
                  .cols = p.lanes,
                  .a_row = 1,
                  .a_k = p.V16,
                  .c_row = p.width,
                  .b_type = F32,
                  .c_type = F32,
                  .reload = true};
    tile_functions(cg, &r.values, &s, "values", tile_heights(p.V, size.rows));
    r.copy_q = copy_numbered_rows_function(cg, "copy_q", p.q_type->dtype, p.A, p.A16);
    r.pack = pack_columns_function(cg, "pack_queries", F32, p.vecs, p.lanes, false);

    r.all = cg_muli(cg, p.S_now, p.G);
    r.start = cg_muli(cg, block, r.task_rows);
    r.end = cg_min(cg, cg_addi(cg, r.start, r.task_rows), r.all);
    prefetch_queries(cg, &p, cg_in(cg, 0), p.q_type->dtype, p.A, r.start,
                     cg_min(cg, cg_addi(cg, r.start, p.lanes), r.end), false);
    Tiles t;
    tiles_begin(cg, &p, &r, &t);
    begin_lanes(cg, &p, &t);
    cg_end(cg, &t.l);
    LV shift = cg_sub(cg, p.C_now, p.S_now), G = cg_int(cg, p.G), from, to;
    attention_range(cg, &p, cg_add(cg, cg_div(cg, r.start, G), shift),
                    cg_add(cg, cg_div(cg, cg_addi(cg, r.end, -1), G), shift), &from, &to);
    attend_segments(cg, &p, &r, from, to);
    tiles_begin(cg, &p, &r, &t);
    prefetch_queries(cg, &p, cg_out(cg, 0), p.q_type->dtype, p.V, t.first, cg_addi(cg, t.last, 1), true);
    finish_tile(cg, &p, &r, t.first, cg_addi(cg, cg_sub(cg, t.last, t.first), 1));
    cg_end(cg, &t.l);
}

// The tasks of a key head follow each other while its keys are near; the last queries see most of them, so come first.
static void emit_many_of_task(Cg *cg, Attn *p) {
    LV blocks = cg_div(cg, cg->n_tasks, cg_int(cg, p->batch * p->Hk));
    attention_place(cg, p, cg_div(cg, cg->task, blocks));
    emit_many(cg, p, cg_sub(cg, cg_addi(cg, blocks, -1), cg_rem(cg, cg->task, blocks)));
}

// A sequence has a part of the rows, so less to do than there are tasks: tasks of phase 0 are segments of the longest
// context there may be, those of phase 1 blocks of all rows.
static void emit_of_sequences(Cg *cg, Attn *p) {
    CgIf is, few, phase, some;
    bool may_be_few = attention_may_be_few(p);
    LV blocks = cg_div(cg, cg->n_tasks, cg_int(cg, p->batch * p->Hk)), first = cg_eq(cg, cg->phase, cg_int(cg, 0));
    LV parts = may_be_few ? cg_select(cg, first, cg_int(cg, attention_segments(p)), blocks) : blocks;
    LV place = cg_div(cg, cg->task, parts), part = cg_rem(cg, cg->task, parts);
    cg_if(cg, &is, cg_lt(cg, cg_div(cg, place, cg_int(cg, p->Hk)), cg_dim(cg, kernel_arg_type(p->k, p->sequences)->dim[0])));
    attention_place(cg, p, place);
    LV n = cg_muli(cg, p->S_now, p->G);
    if (may_be_few) {
        cg_if(cg, &few, cg_lt(cg, n, cg_int(cg, ATTN_FEW + 1)));
        LV begin = cg_select(cg, first, cg_muli(cg, part, ATTN_SEGMENT), part), end = cg_select(cg, first, p->C_now, cg_int(cg, 1));
        cg_if(cg, &some, cg_lt(cg, begin, end));
        emit_attention_few(cg, p, place, part);
        cg_endif(cg, &some);
        cg_else(cg, &few);
        cg_if_phase(cg, &phase, 1);
    }
    LV needed = cg_div(cg, cg_addi(cg, n, task_rows(p) - 1), cg_int(cg, task_rows(p)));
    cg_if(cg, &some, cg_lt(cg, part, needed));
    emit_many(cg, p, cg_sub(cg, cg_addi(cg, needed, -1), part));
    cg_endif(cg, &some);
    if (may_be_few) {
        cg_endif(cg, &phase);
        cg_endif(cg, &few);
    }
    cg_endif(cg, &is);
}

void emit_attention(Cg *cg, const KernelNode *k) {
    Attn p;
    attention_of(k, &p);
    attention_choose(&p, NULL, task_rows(&p), false);
    attention_begin(cg, &p, p.tile.vecs * LANES, ATTN_BLOCK, attention_heights(&p, true));
    if (p.sequences >= 0) {
        emit_of_sequences(cg, &p);
        return;
    }
    if (!attention_may_be_few(&p)) {
        emit_many_of_task(cg, &p);
        return;
    }
    CgIf few, end;
    LV n = cg_muli(cg, p.S_now, p.G);
    cg_if(cg, &few, cg_lt(cg, n, cg_int(cg, ATTN_FEW + 1)));
    emit_attention_few(cg, &p, NULL, NULL);
    cg_else(cg, &few);
    cg_if_phase(cg, &end, 1);
    emit_many_of_task(cg, &p);
    cg_endif(cg, &end);
    cg_endif(cg, &few);
}
