// attention_grad: codegen/cpu/attention.h.  A tile is 64 queries of one head; it meets the blocks of keys it
// sees.
//
//     S  = K Q^T     P = exp(S - lse)                     [keys][queries]
//     dP = V dO^T    T = P * (dP - D) * scale             dq += K^T T     dk += T Q     dv += P dO
//
// Heads, then tiles, then blocks, all ascending, so every chain meets its terms in order.  A task does so for
// a key head.  Where that makes few tasks, or narrow sums of dk and dv outgrow the scratch, there are two
// kinds: runs of keys give dk and dv, runs of queries dq, and both make S and dP for themselves.
#include "codegen/cpu/attention.h"
#include <assert.h>

enum { QUERIES = 64, RUN_QUERIES = 256, FEW_TASKS = 4, CLEAR_AHEAD = 16 };

// Adds weights^T rows into dk or dv: rows are keys, columns those of q or do.
typedef struct {
    TileSet whole, last;
    int64_t columns, columns16, c_row; // c_row: elements from a row of the sums to the next
    int n_whole, tail;
} KeySums;

typedef struct {
    bool dq, sums; // what this part gives
    LV first_head, last_head, first_query, last_query, first_key,
        last_key; // of the task; last: behind the last
} Part;

typedef struct {
    bool own;                                         // dk and dv are summed in scratch
    bool keep;                                        // all keys of a task are copied at once
    int64_t do_panel, lse, D;                         // of a tile
    int64_t s, dp, dq, q_rows, do_rows, rows, dk, dv; // scratch
    TileSet dp_tile, dq_tile;
    KeySums keys, values;
    PackFunction copy_q, copy_o, pack;
} Grad;

static int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Keys of a run: their sums take at most a quarter of the scratch.
static int64_t run_keys(const Attn *p) {
    int64_t keys = 256;
    while (keys > ATTN_BLOCK && keys * (p->A16 + p->V16) * 4 > RT_SCRATCH_BYTES / 4) keys /= 2;
    return keys;
}
static bool narrow(const Attn *p) { return p->k_type->dtype != F32; }
static bool in_runs(const Attn *p) {
    return (p->batch * p->Hk < FEW_TASKS && dim_bound(p->C) > run_keys(p)) ||
           (narrow(p) && dim_bound(p->C) * (p->A16 + p->V16) * 4 > RT_SCRATCH_BYTES / 8 * 3);
}
static int64_t runs(Dim d, int64_t size) { return (dim_bound(d) + size - 1) / size; }

bool describe_attention_grad(const KernelNode *k, KernelDesc *d) {
    Attn p;
    if (!attention_of(k, &p)) return false;
    const Node *n = k->node;
    if (p.bias >= 0 &&
        (n->in[p.bias]->type.dtype != F32 || type_bound_elements(&n->out[n->n_out - 1].type) > INT32_MAX))
        return false;
    attention_key(&p, d);
    attention_choose(&p, d, QUERIES, true);
    int64_t tasks = p.batch * p.Hk;
    d->tasks[0] =
        tasks_fixed(in_runs(&p) ? tasks * (runs(p.C, run_keys(&p)) + runs(p.S, RUN_QUERIES)) : tasks);
    double pairs = (double)dim_bound(p.S) * (double)dim_bound(p.C) * (p.causal ? 0.5 : 1);
    d->flops = 2.0 * (double)(p.batch * p.H) * pairs * (double)(3 * p.A + 2 * p.V);
    return true;
}

static LV scratch(Cg *cg, int64_t bytes) { return attention_at(cg, cg->scratch, bytes); }

static void key_sums_begin(Cg *cg, const Attn *p, const Grad *g, KeySums *k, int64_t columns,
                           unsigned heights, const char *name, const char *last) {
    k->columns = columns;
    k->columns16 = attention_up(columns, LANES);
    k->c_row = g->own ? k->columns16 : p->Hk * columns;
    k->n_whole = (int)(columns / p->lanes);
    k->tail = (int)(columns % p->lanes);
    TileSpec s = {.vecs = p->vecs,
                  .cols = p->lanes,
                  .a_row = QUERIES,
                  .a_k = 1,
                  .c_row = k->c_row,
                  .b_type = F32,
                  .c_type = F32,
                  .reload = true};
    if (k->n_whole) tile_functions(cg, &k->whole, &s, name, heights);
    s.cols = k->tail;
    s.vecs = (k->tail + LANES - 1) / LANES;
    if (k->tail) tile_functions(cg, &k->last, &s, last, heights);
}

// Rows of c (dk or dv) for n keys continue their chains over n_q queries: weights [n][QUERIES] by rows
// [n_q][columns16].  The first key is seen from query `sees` on, each next one a query later; NULL: from the
// first.
static void key_sums(Cg *cg, const Attn *p, const KeySums *k, LV weights, LV rows, LV n_q, LV sees, LV c,
                     LV n, const Ahead *ahead) {
    TileCut cut = tile_cut(cg, n, p->tile.rows);
    CgLoop t, col;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    ahead->ask(ahead->self, cg, cg_addi(cg, t.i, ahead->first));
    LV first = tile_first(cg, &cut, t.i), height = tile_height(cg, &cut, t.i),
       a = cg_at(cg, F32, weights, cg_muli(cg, first, QUERIES)), b = rows, depth = n_q,
       to = cg_at(cg, F32, c, cg_muli(cg, first, k->c_row));
    if (sees) {
        LV skip = cg_max(cg, cg_add(cg, sees, first), cg_int(cg, 0));
        a = cg_at(cg, F32, a, skip);
        b = cg_at(cg, F32, b, cg_muli(cg, skip, k->columns16));
        depth = cg_sub(cg, depth, skip);
    }
    TileCall call = {.k = depth, .b_k = cg_int(cg, k->columns16), .a = a};
    if (k->n_whole) {
        cg_for(cg, &col, cg_int(cg, 0), cg_int(cg, k->n_whole * p->lanes), p->lanes);
        call.b = cg_at(cg, F32, b, col.i);
        call.c = call.init = cg_at(cg, F32, to, col.i);
        tile_call(cg, &k->whole, height, &call);
        cg_end(cg, &col);
    }
    if (k->tail) {
        LV done = cg_int(cg, k->n_whole * p->lanes);
        call.b = cg_at(cg, F32, b, done);
        call.c = call.init = cg_at(cg, F32, to, done);
        tile_call(cg, &k->last, height, &call);
    }
    cg_end(cg, &t);
}

static LV result_row(Cg *cg, const Attn *p, LV j) { // row of key j in dk and dv
    return cg_add(cg, cg_muli(cg, cg_add(cg, cg_mul(cg, p->b, p->C_now), j), p->Hk), p->g);
}

// Where the row of key j of dk (or dv) is summed.
static LV sums_at(Cg *cg, const Attn *p, const Grad *g, const Part *part, bool values, LV j) {
    const KeySums *k = values ? &g->values : &g->keys;
    if (g->own)
        return cg_at(cg, F32, scratch(cg, values ? g->dv : g->dk),
                     cg_muli(cg, cg_sub(cg, j, part->first_key), k->columns16));
    return cg_at(cg, F32, cg_out(cg, values ? 2 : 1), cg_muli(cg, result_row(cg, p, j), k->columns));
}

static void clear_sums(Cg *cg, const Attn *p, const Grad *g, const Part *part) {
    CgLoop j;
    cg_for(cg, &j, part->first_key, part->last_key, 1);
    for (int values = 0; values < 2; values++) {
        int64_t bytes = (values ? p->V : p->A) * 4;
        LV later = sums_at(cg, p, g, part, values, cg_addi(cg, j.i, CLEAR_AHEAD));
        for (int64_t line = 0; line < bytes; line += 64)
            cg_prefetch(cg, cg_bytes(cg, later, cg_int(cg, line)), true, 3);
        cg_memset0(cg, sums_at(cg, p, g, part, values, j.i), cg_int(cg, bytes));
    }
    cg_end(cg, &j);
}

static void store_sums(Cg *cg, const Attn *p, const Grad *g, const Part *part) {
    CgLoop j;
    cg_for(cg, &j, part->first_key, part->last_key, 1);
    for (int values = 0; values < 2; values++) {
        int64_t columns = values ? p->V : p->A;
        attention_store_row(cg, sums_at(cg, p, g, part, values, j.i), columns, p->k_type->dtype,
                            cg_out(cg, values ? 2 : 1), cg_muli(cg, result_row(cg, p, j.i), columns));
    }
    cg_end(cg, &j);
}

// D = chain over V of do * o: the order of dp.  Of a query that sees one key both are the same bits, and its
// ds 0.
static void output_products(Cg *cg, const Attn *p, const Grad *g, LV o_panel) {
    enum { VECS = QUERIES / LANES };
    LV sum[VECS], do_panel = attention_at(cg, p->queries, g->do_panel);
    CgLoop c;
    for (int v = 0; v < VECS; v++) sum[v] = cg_vec(cg, 0);
    cg_loop_begin(cg, &c, cg_int(cg, 0), cg_int(cg, p->V), 1, VECS, sum);
    for (int v = 0; v < VECS; v++) {
        LV at = attention_index(cg, p, c.i, v);
        sum[v] = cg_fma(cg, cg_load_vec(cg, F32, do_panel, at, NULL), cg_load_vec(cg, F32, o_panel, at, NULL),
                        c.carry[v]);
    }
    cg_loop_end(cg, &c, sum);
    for (int v = 0; v < VECS; v++) lane_put(cg, p, F32, c.carry[v], g->D, v);
}

static LV dbias_index(Cg *cg, const Attn *p, LV i, LV h) { // element (b, h, i, 0) of [.., H, S, C]
    LV at = cg_add(cg, cg_muli(cg, p->b, p->H), h);
    return cg_mul(cg, cg_add(cg, cg_mul(cg, at, p->S_now), i), p->C_now);
}

// A tile of queries and where it stands.
typedef struct {
    LV h, first, n, lo, hi, masked;
} Queries; // lo, hi: positions; masked: some have lse = -inf

static void put_dbias(Cg *cg, const Attn *p, const Queries *q, LV key, int v, LV ds) {
    LV step = cg_splat(cg, LLVMBuildTrunc(cg->b, p->C_now, cg->i32, ""));
    LV first =
        cg_splat(cg, LLVMBuildTrunc(cg->b, cg_add(cg, dbias_index(cg, p, q->first, q->h), key), cg->i32, ""));
    LV lanes = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_vec_int(cg, v * LANES), "");
    LV index = LLVMBuildAdd(cg->b, first, LLVMBuildMul(cg->b, lanes, step, ""), "");
    LV wide = LLVMBuildSExt(cg->b, index, cg->vi64, ""), out = cg_out(cg, p->k->node->n_out - 1);
    LV to = LLVMBuildGEP2(cg->b, cg->f32, out, &wide, 1, "");
    LT overload[2] = {cg->vf32, LLVMTypeOf(to)};
    LV args[4] = {ds, to, cg_int32(cg, 4), cg_tail_mask(cg, cg_addi(cg, q->n, -v * LANES))};
    cg_intrinsic(cg, "llvm.masked.scatter", overload, 2, args, 4);
}

// p -> s, t = ds * scale -> dp, from scores and do * v of keys j .. j+n-1; masked: some queries don't see
// some keys.
static void block_weights(Cg *cg, const Attn *p, const Grad *g, const Part *part, LV j, LV n,
                          const Queries *q, bool masked) {
    LV s = scratch(cg, g->s), dp = scratch(cg, g->dp), zero = cg_vec(cg, 0);
    CgLoop row;
    cg_for(cg, &row, cg_int(cg, 0), n, 1);
    LV key = cg_add(cg, j, row.i), scale = cg_vec(cg, (float)p->k->node->attr.scale);
    for (int v = 0; v < QUERIES / LANES; v += 2) {
        LV at[2], w[2], seen[2] = {NULL, NULL};
        for (int i = 0; i < 2; i++) {
            at[i] = attention_index(cg, p, row.i, v + i);
            LV lse = lane_vec(cg, p, F32, g->lse, v + i), x = cg_load_vec(cg, F32, s, at[i], NULL);
            if (masked) {
                x = attention_finish(cg, p, x, key, v + i, &seen[i]);
                seen[i] = attention_both(cg, seen[i], LLVMBuildNot(cg->b, is_minus_inf(cg, lse), ""));
            }
            w[i] = cg_fsub(cg, x, lse);
        }
        cg_exp_two(cg, w);
        for (int i = 0; i < 2; i++) {
            if (seen[i]) w[i] = cg_select(cg, seen[i], w[i], zero);
            LV D = lane_vec(cg, p, F32, g->D, v + i);
            LV ds = cg_fmul(cg, w[i], cg_fsub(cg, cg_load_vec(cg, F32, dp, at[i], NULL), D));
            if (seen[i]) ds = cg_select(cg, seen[i], ds, zero);
            cg_store_vec(cg, F32, w[i], s, at[i], NULL);
            cg_store_vec(cg, F32, cg_fmul(cg, ds, scale), dp, at[i], NULL);
            if (p->bias >= 0 && part->dq) put_dbias(cg, p, q, key, v + i, ds);
        }
    }
    cg_end(cg, &row);
}

// n rows from `source` and then the last one again, up to a whole tile: rows, and a panel of them.
static void take_rows(Cg *cg, const PackFunction *copy, LV rows, int64_t columns16, DType t, LV source,
                      int64_t step, LV n) {
    LV last = cg_addi(cg, n, -1);
    copy_rows(cg, copy, rows, source, n, cg_int(cg, step));
    copy_rows(cg, copy, cg_at(cg, F32, rows, cg_muli(cg, n, columns16)),
              cg_at(cg, t, source, cg_muli(cg, last, step)), cg_sub(cg, cg_int(cg, QUERIES), n),
              cg_int(cg, 0));
}

static void begin_queries(Cg *cg, const Attn *p, const Grad *g, Queries *q) {
    DType t = p->q_type->dtype;
    LV q_rows = scratch(cg, g->q_rows), do_rows = scratch(cg, g->do_rows), rows = scratch(cg, g->rows),
       row = attention_row(cg, p, q->first, q->h), A16 = cg_int(cg, p->A16), V16 = cg_int(cg, p->V16);
    LV q_at = cg_at(cg, t, cg_in(cg, 0), cg_muli(cg, row, p->A)), o_index = cg_muli(cg, row, p->V);
    take_rows(cg, &g->copy_q, q_rows, p->A16, t, q_at, p->H * p->A, q->n);
    take_rows(cg, &g->copy_o, do_rows, p->V16, t, cg_at(cg, t, cg_in(cg, p->after + 2), o_index), p->H * p->V,
              q->n);
    take_rows(cg, &g->copy_o, rows, p->V16, t, cg_at(cg, t, cg_in(cg, p->after), o_index), p->H * p->V, q->n);
    pack_columns(cg, &g->pack, attention_at(cg, p->queries, p->q_panel), q_rows, cg_int(cg, p->A), A16);
    pack_columns(cg, &g->pack, attention_at(cg, p->queries, g->do_panel), do_rows, cg_int(cg, p->V), V16);
    pack_columns(cg, &g->pack, scratch(cg, g->dq), rows, cg_int(cg, p->V), V16);
    output_products(cg, p, g, scratch(cg, g->dq));
    LV last = cg_add(cg, q->first, cg_addi(cg, q->n, -1));
    CgLoop lane;
    cg_for(cg, &lane, cg_int(cg, 0), cg_int(cg, QUERIES), 1);
    LV i = cg_min(cg, cg_add(cg, q->first, lane.i), last);
    cg_store1(cg, F32, cg_load1(cg, F32, cg_in(cg, p->after + 1), attention_row(cg, p, i, q->h)),
              attention_at(cg, p->queries, g->lse), lane.i);
    attention_lane(cg, p, lane.i, i, q->h);
    cg_end(cg, &lane);
    LV some = NULL;
    for (int v = 0; v < QUERIES / LANES; v++) {
        LV none = is_minus_inf(cg, lane_vec(cg, p, F32, g->lse, v));
        some = some ? LLVMBuildOr(cg->b, some, none, "") : none;
    }
    q->masked = LLVMBuildNot(cg->b, all_lanes(cg, LLVMBuildNot(cg->b, some, "")), "");
    LV shift = cg_sub(cg, p->C_now, p->S_now);
    q->lo = cg_add(cg, q->first, shift);
    q->hi = cg_add(cg, last, shift);
}

static void store_queries(Cg *cg, const Attn *p, const Grad *g, const Queries *q) {
    const Node *node = p->k->node;
    LV rows = scratch(cg, g->rows);
    attention_transpose(cg, p, scratch(cg, g->dq), p->A16, NULL, rows);
    if (p->sinks >= 0)
        for (int v = 0; v < QUERIES / LANES; v++) { // lse's place holds dsinks from here
            LV e = cg_exp(cg, cg_fsub(cg, lane_vec(cg, p, F32, p->sink, v), lane_vec(cg, p, F32, g->lse, v)));
            lane_put(cg, p, F32, cg_fneg(cg, cg_fmul(cg, e, lane_vec(cg, p, F32, g->D, v))), g->lse, v);
        }
    CgLoop lane;
    cg_for(cg, &lane, cg_int(cg, 0), q->n, 1);
    LV row = attention_row(cg, p, cg_add(cg, q->first, lane.i), q->h);
    attention_store_row(cg, cg_at(cg, F32, rows, cg_muli(cg, lane.i, p->A16)), p->A, p->q_type->dtype,
                        cg_out(cg, 0), cg_muli(cg, row, p->A));
    if (p->sinks >= 0)
        cg_store1(cg, node->out[3].type.dtype,
                  cg_load1(cg, F32, attention_at(cg, p->queries, g->lse), lane.i), cg_out(cg, 3), row);
    cg_end(cg, &lane);
}

// What is read and written behind the last block of a tile: the rows of the next one, and dq of this.
typedef struct {
    const Attn *p;
    LV last; // whether the block is the last
    LV first, h; // first query and head of the tile
    LV next_first, next_h;
} Next;

// Some of these arrays are asked for while a product runs, in that many parts.
enum { NEXT_Q, NEXT_O, NEXT_DO, THIS_DQ, N_ARRAYS };
typedef struct {
    const Next *next;
    int from, to; // arrays
    int64_t parts;
} Share;

static void ask_share(const void *self, Cg *cg, LV part) {
    const Share *share = self;
    const Next *next = share->next;
    const Attn *p = next->p;
    CgIf last;
    CgLoop i;
    cg_if(cg, &last, next->last);
    int64_t n = (QUERIES + share->parts - 1) / share->parts;
    LV from = cg_muli(cg, part, n);
    cg_for(cg, &i, from, cg_min(cg, cg_addi(cg, from, n), cg_int(cg, QUERIES)), 1);
    for (int w = share->from; w < share->to; w++) {
        bool write = w == THIS_DQ;
        LV at = write ? cg_out(cg, 0) : cg_in(cg, w == NEXT_Q ? 0 : w == NEXT_O ? p->after : p->after + 2);
        LV row = attention_row(cg, p, cg_add(cg, write ? next->first : next->next_first, i.i),
                               write ? next->h : next->next_h);
        int64_t bytes = (w == NEXT_Q || write ? p->A : p->V) * dtype_bytes(p->q_type->dtype);
        for (int64_t line = 0; line < bytes; line += 64)
            cg_prefetch(cg, cg_bytes(cg, at, cg_addi(cg, cg_muli(cg, row, bytes), line)), write, 2);
    }
    cg_end(cg, &i);
    cg_endif(cg, &last);
}

// Keys j .. j+n-1 and the queries of a tile.  A panel of them leaves out keys that come after it.
static void grad_block(Cg *cg, const Attn *p, const Grad *g, const Part *part, const Queries *q, LV j, LV n,
                       const Next *next) {
    LV s = scratch(cg, g->s), dp = scratch(cg, g->dp), dq = scratch(cg, g->dq), zero = cg_int(cg, 0),
       keys = scratch(cg, p->k_copy), values = scratch(cg, p->v_copy), n_panel[QUERIES / LANES];
    if (g->keep) {
        LV row = cg_sub(cg, j, part->first_key);
        keys = cg_at(cg, F32, keys, cg_muli(cg, row, p->A16));
        values = cg_at(cg, F32, values, cg_muli(cg, row, p->V16));
    } else {
        attention_copy_keys(cg, p, j, n, zero);
    }
    for (int i = 0; i * p->lanes < QUERIES; i++) {
        int at = i * p->lanes * 4;
        LV live = cg_min(cg, cg_addi(cg, q->n, -i * p->lanes), cg_int(cg, p->lanes));
        n_panel[i] = n;
        if (p->causal)
            n_panel[i] = cg_min(cg, n, cg_sub(cg, cg_add(cg, q->lo, cg_addi(cg, live, i * p->lanes)), j));
        n_panel[i] = cg_select(cg, cg_lt(cg, zero, live), cg_max(cg, n_panel[i], zero), zero);
        attention_by_rows(cg, p, &p->score, keys, attention_at(cg, p->queries, p->q_panel + at), p->A,
                          attention_at(cg, s, at), n_panel[i]);
        attention_by_rows(cg, p, &g->dp_tile, values, attention_at(cg, p->queries, g->do_panel + at), p->V,
                          attention_at(cg, dp, at), n_panel[i]);
    }
    CgIf f;
    LV masked = LLVMBuildOr(cg->b, q->masked, attention_boundary(cg, p, j, n, q->lo, q->hi), "");
    cg_if(cg, &f, masked);
    block_weights(cg, p, g, part, j, n, q, true);
    cg_else(cg, &f);
    block_weights(cg, p, g, part, j, n, q, false);
    cg_endif(cg, &f);
    int panels = QUERIES / p->lanes, rows = p->tile.rows;
    if (part->dq) {
        int tiles = ((int)p->A + rows - 1) / rows;
        Share share = {next, 0, part->sums ? NEXT_Q + 1 : N_ARRAYS, panels * tiles};
        for (int i = 0; i < panels; i++)
            attention_by_columns(cg, p, &g->dq_tile, keys, p->A, attention_at(cg, dp, i * p->lanes * 4),
                                 n_panel[i], attention_at(cg, dq, i * p->lanes * 4), NULL,
                                 &(Ahead){ask_share, &share, i * tiles});
    }
    if (!part->sums) return;
    LV sees = p->causal ? cg_sub(cg, j, q->lo) : NULL;
    int tiles = (ATTN_BLOCK + rows - 1) / rows;
    Share in_dk = {next, part->dq ? NEXT_O : NEXT_Q, NEXT_DO, tiles},
          in_dv = {next, NEXT_DO, part->dq ? N_ARRAYS : THIS_DQ, tiles};
    key_sums(cg, p, &g->keys, dp, scratch(cg, g->q_rows), q->n, sees, sums_at(cg, p, g, part, false, j), n,
             &(Ahead){ask_share, &in_dk, 0});
    key_sums(cg, p, &g->values, s, scratch(cg, g->do_rows), q->n, sees, sums_at(cg, p, g, part, true, j), n,
             &(Ahead){ask_share, &in_dv, 0});
}

static void grad_part(Cg *cg, const Attn *p, const Grad *g, const Part *part) {
    CgLoop head, tile, block;
    if (part->sums) clear_sums(cg, p, g, part);
    if (g->keep)
        attention_copy_keys(cg, p, part->first_key, cg_sub(cg, part->last_key, part->first_key),
                            cg_int(cg, 0));
    cg_for(cg, &head, part->first_head, part->last_head, 1);
    cg_for(cg, &tile, part->first_query, part->last_query, QUERIES);
    Queries q = {.h = head.i, .first = tile.i};
    q.n = cg_min(cg, cg_sub(cg, part->last_query, tile.i), cg_int(cg, QUERIES));
    begin_queries(cg, p, g, &q);
    if (part->dq) {
        cg_memset0(cg, scratch(cg, g->dq), cg_int(cg, p->A16 * QUERIES * 4));
        if (p->bias >= 0)
            cg_memset0(cg,
                       cg_at(cg, F32, cg_out(cg, p->k->node->n_out - 1), dbias_index(cg, p, tile.i, head.i)),
                       cg_muli(cg, cg_mul(cg, q.n, p->C_now), 4));
    }
    LV from, to;
    attention_range(cg, p, q.lo, q.hi, &from, &to);
    to = cg_min(cg, to, part->last_key);
    LV after = cg_addi(cg, tile.i, QUERIES), more = cg_lt(cg, after, part->last_query);
    Next next = {.p = p,
                 .first = tile.i,
                 .h = head.i,
                 .next_first = cg_select(cg, more, after, part->first_query),
                 .next_h = cg_select(cg, more, head.i, cg_addi(cg, head.i, 1))};
    cg_for(cg, &block, cg_max(cg, from, part->first_key), to, ATTN_BLOCK);
    LV left = cg_sub(cg, to, block.i);
    next.last = cg_lt(cg, left, cg_int(cg, ATTN_BLOCK + 1));
    grad_block(cg, p, g, part, &q, block.i, cg_min(cg, left, cg_int(cg, ATTN_BLOCK)), &next);
    cg_end(cg, &block);
    if (part->dq) store_queries(cg, p, g, &q);
    cg_end(cg, &tile);
    cg_end(cg, &head);
    if (part->sums && g->own) store_sums(cg, p, g, part);
}

static LV run_end(Cg *cg, LV first, int64_t size, LV all) {
    return cg_min(cg, cg_addi(cg, first, size), all);
}

// Tasks: runs of keys, then runs of queries.
static void grad_runs(Cg *cg, Attn *p, const Grad *g) {
    LV places = cg_int(cg, p->batch * p->Hk), place = cg_rem(cg, cg->task, places),
       run = cg_div(cg, cg->task, places), zero = cg_int(cg, 0);
    p->b = cg_div(cg, place, cg_int(cg, p->Hk));
    p->g = cg_rem(cg, place, cg_int(cg, p->Hk));
    int64_t key_runs = runs(p->C, run_keys(p));
    Part part = {.first_head = cg_muli(cg, p->g, p->G)};
    part.last_head = cg_addi(cg, part.first_head, p->G);
    CgIf f;
    cg_if(cg, &f, cg_lt(cg, run, cg_int(cg, key_runs)));
    // Queries before the keys, or past their window, add nothing.
    LV shift = cg_sub(cg, p->C_now, p->S_now);
    part.sums = true;
    part.first_key = cg_muli(cg, run, run_keys(p));
    part.last_key = run_end(cg, part.first_key, run_keys(p), p->C_now);
    part.first_query = zero;
    part.last_query = p->S_now;
    if (p->causal) {
        LV first = cg_max(cg, cg_sub(cg, part.first_key, shift), zero);
        part.first_query = LLVMBuildAnd(cg->b, first, cg_int(cg, -QUERIES), "");
    }
    if (p->window)
        part.last_query = cg_min(cg, p->S_now, cg_sub(cg, cg_addi(cg, part.last_key, p->window - 1), shift));
    grad_part(cg, p, g, &part);
    cg_else(cg, &f);
    part.sums = false;
    part.dq = true;
    part.first_key = zero;
    part.last_key = p->C_now;
    part.first_query = cg_muli(cg, cg_addi(cg, run, -key_runs), RUN_QUERIES);
    part.last_query = run_end(cg, part.first_query, RUN_QUERIES, p->S_now);
    grad_part(cg, p, g, &part);
    cg_endif(cg, &f);
}

void emit_attention_grad(Cg *cg, const KernelNode *k) {
    Attn p;
    Grad g = {0};
    attention_of(k, &p);
    attention_choose(&p, NULL, QUERIES, true);
    int rows = p.tile.rows;
    unsigned heights = attention_heights(&p, false);
    int64_t keys = dim_bound(p.C);
    g.keep = keys * (p.A16 + p.V16) * 4 <= RT_SCRATCH_BYTES / 4;
    attention_begin(cg, &p, QUERIES, g.keep ? keys : ATTN_BLOCK, heights);
    int64_t columns16 = larger_of(p.A16, p.V16);
    g.do_panel = attention_take(&p.queries_used, p.V16 * QUERIES * 4);
    g.lse = attention_take(&p.queries_used, QUERIES * 4);
    g.D = attention_take(&p.queries_used, QUERIES * 4);
    int64_t queries = attention_take(&p.used, p.queries_used);
    g.s = attention_take(&p.used, ATTN_BLOCK * QUERIES * 4);
    g.dp = attention_take(&p.used, ATTN_BLOCK * QUERIES * 4);
    g.dq = attention_take(&p.used, columns16 * QUERIES * 4); // and o's panel before
    g.q_rows = attention_take(&p.used, QUERIES * p.A16 * 4);
    g.do_rows = attention_take(&p.used, QUERIES * p.V16 * 4);
    g.rows = attention_take(&p.used, QUERIES * columns16 * 4); // of o, of dq
    if (in_runs(&p)) keys = run_keys(&p);
    g.own = narrow(&p);
    if (g.own) {
        g.dk = attention_take(&p.used, keys * p.A16 * 4);
        g.dv = attention_take(&p.used, keys * p.V16 * 4);
    }
    attention_take(&p.used, p.lanes * 4); // tiles read whole vectors behind the last row
    assert(p.used <= RT_SCRATCH_BYTES);
    p.queries = scratch(cg, queries);
    g.copy_q = copy_rows_function(cg, "copy_q", p.q_type->dtype, p.A, p.A16);
    g.copy_o = copy_rows_function(cg, "copy_o", p.q_type->dtype, p.V, p.V16);
    g.pack = pack_columns_function(cg, "pack_queries", F32, QUERIES / LANES, QUERIES, false);
    TileSpec s = p.score.spec;
    s.store = NULL;
    s.a_row = p.V16;
    tile_functions(cg, &g.dp_tile, &s, "dp", heights);
    s.a_row = 1;
    s.a_k = p.A16;
    s.reload = true;
    tile_functions(cg, &g.dq_tile, &s, "dq", tile_heights(p.A, rows));
    key_sums_begin(cg, &p, &g, &g.keys, p.A, heights, "dk", "dk_last");
    if (p.V == p.A)
        g.values = g.keys;
    else
        key_sums_begin(cg, &p, &g, &g.values, p.V, heights, "dv", "dv_last");
    if (in_runs(&p)) {
        grad_runs(cg, &p, &g);
        return;
    }
    p.b = cg_div(cg, cg->task, cg_int(cg, p.Hk));
    p.g = cg_rem(cg, cg->task, cg_int(cg, p.Hk));
    Part whole = {.dq = true,
                  .sums = true,
                  .first_query = cg_int(cg, 0),
                  .last_query = p.S_now,
                  .first_key = cg_int(cg, 0),
                  .last_key = p.C_now,
                  .first_head = cg_muli(cg, p.g, p.G)};
    whole.last_head = cg_addi(cg, whole.first_head, p.G);
    grad_part(cg, &p, &g, &whole);
}
