// attention of few queries, as one token has: codegen/cpu/attention.h.  Lanes are keys here.
//
//     phase 0   task = (batch, key head, segment of keys):  S [queries][64 keys] = q rows x K panel, softmax
//     along
//               lanes, O [queries][V] += P x V rows; m, l and o of the segment go to the workspace
//     phase 1   task = (batch, key head):  segments meet in their tree
//
// The keys are read once, as fast as memory gives them, by as many threads as there are segments.
#include "codegen/cpu/attention.h"
#include <math.h>

enum { VECS = ATTN_BLOCK / LANES }; // of a row of scores

typedef struct {
    int64_t numbers, q, panel, s, block, keep, from; // scratch; block: a number of each query from this block
    int64_t m, l, o, slot;                           // workspace of a segment: [16], [16], [queries][V16]
    int64_t segments;                                // most there can be
    LV n;                                            // queries
    TileSet values[TILE_MAX_ROWS + 1], last[TILE_MAX_ROWS + 1]; // by height: whole runs of columns, the rest
    PackFunction copy_q;
    LV pack, place;
    LT pack_type;
} Few;

static LV scratch(Cg *cg, int64_t bytes) { return attention_at(cg, cg->scratch, bytes); }

static bool plain_or_known(Dim d) { return !d.sym || d.sym->kind != SYM_RAGGED; }
static bool known(Dim d) { return !d.sym || d.sym->kind == SYM_LEAF; }
bool attention_may_be_few(const Attn *p) {
    return plain_or_known(p->S) && plain_or_known(p->C) &&
           (known(p->S) ? dim_bound(p->S) * p->G : p->G) <= ATTN_FEW;
}

int64_t attention_segments(const Attn *p) { return (dim_bound(p->C) + ATTN_SEGMENT - 1) / ATTN_SEGMENT; }
static int64_t slot_bytes(const Attn *p) { return 2 * LANES * 4 + ATTN_FEW * p->V16 * 4; }

void attention_few_describe(const Attn *p, KernelDesc *d) {
    int64_t places = p->batch * p->Hk;
    d->n_phases = 2;
    d->tasks[1] = d->tasks[0];
    if (p->sequences >= 0) {
        Dim n = kernel_arg_type(p->k, p->sequences)->dim[0];
        d->tasks[0] = (TaskCount){n.n * p->Hk * attention_segments(p), 1, 1, n.sym, 0};
    } else {
        d->tasks[0] = (TaskCount){known(p->C) ? dim_bound(p->C) : p->C.n, ATTN_SEGMENT, places, known(p->C) ? NULL : p->C.sym, 0};
    }
    d->workspace = places * attention_segments(p) * slot_bytes(p);
}

// Rows up to 64 of keys, whatever is between them, as columns: [A16][64]; columns from n on repeat the last.
// Asks for the block that comes next.
static void emit_pack(Cg *cg, const Attn *p, Few *f) {
    CgFunction fn;
    DType t = p->k_type->dtype;
    int64_t step = p->Hk * p->A;
    LT params[3] = {cg->ptr, cg->ptr, cg->i64};
    cg_function_begin(cg, &fn, "pack_keys", cg->void_t, params, 3);
    LV to = LLVMGetParam(fn.fn, 0), from = LLVMGetParam(fn.fn, 1), n = LLVMGetParam(fn.fn, 2),
       last = cg_addi(cg, n, -1);
    CgLoop group, k;
    cg_for(cg, &group, cg_int(cg, 0), n, LANES);
    LV row[LANES];
    for (int i = 0; i < LANES; i++)
        row[i] = cg_at(cg, t, from, cg_muli(cg, cg_min(cg, cg_addi(cg, group.i, i), last), step));
    int64_t whole = p->A / LANES * LANES;
    for (int part = 0; part < 2; part++) {
        if (part && whole == p->A) break;
        cg_for(cg, &k, cg_int(cg, part ? whole : 0), cg_int(cg, part ? p->A : whole), LANES);
        LV x[LANES];
        for (int i = 0; i < LANES; i++) {
            x[i] = cg_load_vec(cg, t, row[i], k.i, part ? tile_mask(cg, (int)(p->A - whole)) : NULL);
            cg_prefetch(cg, cg_at(cg, t, row[i], cg_addi(cg, k.i, ATTN_BLOCK * step)), false, 2);
        }
        tile_transpose(cg, x);
        LV at = cg_add(cg, cg_muli(cg, k.i, ATTN_BLOCK), group.i);
        for (int i = 0; i < LANES; i++)
            cg_store_vec(cg, F32, x[i], to, cg_addi(cg, at, i * ATTN_BLOCK), NULL);
        cg_end(cg, &k);
    }
    cg_end(cg, &group);
    cg_function_end(cg, &fn);
    f->pack = fn.fn;
    f->pack_type = fn.type;
}

static unsigned query_heights(const Attn *p) {
    int rows = p->tile.rows;
    if (known(p->S)) return tile_heights(dim_bound(p->S) * p->G, rows);
    unsigned heights = 0;
    for (int64_t n = p->G; n <= ATTN_FEW; n += p->G) heights |= tile_heights(n, rows);
    return heights;
}

static void few_begin(Cg *cg, Attn *p, Few *f) {
    unsigned heights = query_heights(p);
    p->width = ATTN_BLOCK;
    p->used = 0;
    p->score.spec.c_row = ATTN_BLOCK;
    p->score.spec.self = p;
    TileSpec s = p->score.spec;
    tile_functions(cg, &p->score, &s, "few_scores", heights);
    f->numbers = attention_take(&p->used, LANES * 4);
    f->q = attention_take(&p->used, ATTN_FEW * p->A16 * 4);
    f->panel = attention_take(&p->used, p->A16 * ATTN_BLOCK * 4);
    f->s = attention_take(&p->used, ATTN_FEW * ATTN_BLOCK * 4);
    f->block = attention_take(&p->used, LANES * 4);
    f->keep = attention_take(&p->used, LANES * 4);
    f->from = attention_take(&p->used, LANES * 4);
    p->pos = attention_take(&p->used, LANES * 4);
    p->doc = attention_take(&p->used, LANES * 4);
    p->bias_at = attention_take(&p->used, LANES * 4);
    p->sink = attention_take(&p->used, LANES * 4);
    p->queries = cg->scratch;
    f->m = 0, f->l = LANES * 4, f->o = 2 * LANES * 4;
    f->slot = slot_bytes(p);
    f->segments = attention_segments(p);
    f->n = cg_muli(cg, p->S_now, p->G);
    f->copy_q = copy_numbered_rows_function(cg, "copy_few", p->q_type->dtype, p->A, p->A16);
    emit_pack(cg, p, f);
    for (int h = 1; h <= TILE_MAX_ROWS; h++) {
        if (!(heights >> h & 1)) continue;
        int vecs = tile_vecs(cg->target, h);
        while (vecs > 1 && vecs * LANES > p->V16) vecs /= 2;
        int tail = (int)(p->V % (vecs * LANES));
        s = (TileSpec){.vecs = vecs,
                       .cols = vecs * LANES,
                       .a_row = ATTN_BLOCK,
                       .a_k = 1,
                       .c_row = p->V16,
                       .b_type = p->v_type->dtype,
                       .c_type = F32,
                       .prefetch = true,
                       .reload = true};
        if (p->V >= s.cols) tile_functions(cg, &f->values[h], &s, "few_values", 1u << h);
        s.cols = tail;
        s.vecs = (tail + LANES - 1) / LANES;
        s.mask_b = true;
        if (tail) tile_functions(cg, &f->last[h], &s, "few_values_last", 1u << h);
        f->values[h].spec.vecs = vecs;
    }
}

static LV slot_at(Cg *cg, const Few *f, LV segment) {
    LV at = cg_add(cg, cg_muli(cg, f->place, f->segments), segment);
    return cg_bytes(cg, cg_workspace(cg), cg_muli(cg, at, f->slot));
}
static LV field(Cg *cg, LV slot, int64_t at) {
    return cg_load_vec(cg, F32, attention_at(cg, slot, at), cg_int(cg, 0), NULL);
}
static void put(Cg *cg, LV x, LV slot, int64_t at) {
    cg_store_vec(cg, F32, x, attention_at(cg, slot, at), cg_int(cg, 0), NULL);
}
static LV number(Cg *cg, DType t, int64_t at, LV query) { return cg_load1(cg, t, scratch(cg, at), query); }
static LV row_of(Cg *cg, const Attn *p, const Few *f, LV slot, LV query) { // of o
    return cg_at(cg, F32, attention_at(cg, slot, f->o), cg_muli(cg, query, p->V16));
}

static void scale_row(Cg *cg, const Attn *p, LV row, LV by) {
    CgLoop c;
    LV x = cg_splat(cg, by);
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V16), LANES);
    cg_store_vec(cg, F32, cg_fmul(cg, cg_load_vec(cg, F32, row, c.i, NULL), x), row, c.i, NULL);
    cg_end(cg, &c);
}

static void begin_queries(Cg *cg, const Attn *p, const Few *f) {
    LV G = cg_int(cg, p->G), zero = cg_int(cg, 0);
    CgLoop query;
    cg_for(cg, &query, zero, f->n, 1);
    LV i = cg_div(cg, query.i, G), h = cg_add(cg, cg_muli(cg, p->g, p->G), cg_rem(cg, query.i, G));
    LV row = cg_add(cg, cg_muli(cg, i, p->H), h);
    cg_store1(cg, I32, LLVMBuildTrunc(cg->b, row, cg->i32, ""), scratch(cg, f->numbers), query.i);
    attention_lane(cg, p, query.i, i, h);
    cg_end(cg, &query);
    LV source =
        cg_at(cg, p->q_type->dtype, cg_in(cg, 0), cg_muli(cg, attention_row(cg, p, zero, zero), p->A));
    copy_numbered_rows(cg, &f->copy_q, scratch(cg, f->q), source, f->n, cg_int(cg, p->A),
                       &(RowNumbers){scratch(cg, f->numbers), cg_muli(cg, p->S_now, p->H)});
}

// Scores of a query with keys j + 16 v .. of a block: with bias, -inf where it doesn't see them.
static LV finish_scores(Cg *cg, const Attn *p, LV x, LV query, LV j, LV n, int v) {
    LV first = cg_addi(cg, j, v * LANES), seen = cg_tail_mask(cg, cg_addi(cg, n, -v * LANES)), live = seen;
    LV key = LLVMBuildAdd(cg->b, cg_splat(cg, LLVMBuildTrunc(cg->b, first, cg->i32, "")), cg_lanes(cg), "");
    if (p->bias >= 0) {
        const Type *t = kernel_arg_type(p->k, p->bias);
        LV at = cg_i64(cg, number(cg, I32, p->bias_at, query)), bias;
        if (dim_is_1(t->dim[t->ndim - 1]))
            bias = cg_splat(cg, cg_load1(cg, t->dtype, cg_in(cg, p->bias), at));
        else
            bias = cg_load_vec(cg, t->dtype, cg_in(cg, p->bias), cg_add(cg, at, first), live);
        x = cg_fadd(cg, x, bias);
    }
    LV pos = p->causal || p->window ? cg_splat(cg, number(cg, I32, p->pos, query)) : NULL;
    seen = attention_in_reach(cg, p, seen, key, pos);
    for (int i = 0; i < 2; i++) {
        int in = i ? p->documents : p->valid;
        if (in < 0) continue;
        LV at = cg_add(cg, cg_mul(cg, attention_batch(cg, p, kernel_arg_type(p->k, in), 1), p->C_now), first);
        LV y = cg_load_vec(cg, i ? I32 : BOOL, cg_in(cg, in), at, live);
        if (i) y = LLVMBuildICmp(cg->b, LLVMIntEQ, y, cg_splat(cg, number(cg, I32, p->doc, query)), "");
        seen = attention_both(cg, seen, y);
    }
    return cg_select(cg, seen, x, minus_inf(cg));
}

// o of the segment += weights x values of n keys.
static void add_values(Cg *cg, const Attn *p, const Few *f, LV values, LV n, LV slot, LV begins) {
    TileCut cut = tile_cut(cg, f->n, p->tile.rows);
    CgLoop t, col;
    cg_for(cg, &t, cg_int(cg, 0), cut.tiles, 1);
    LV first = tile_first(cg, &cut, t.i), height = tile_height(cg, &cut, t.i),
       o = row_of(cg, p, f, slot, first);
    TileCall call = {.a = cg_at(cg, F32, scratch(cg, f->s), cg_muli(cg, first, ATTN_BLOCK)),
                     .k = n,
                     .b_k = cg_int(cg, p->Hk * p->V)};
    for (int h = 1; h <= TILE_MAX_ROWS; h++) {
        const TileSet *set[2] = {&f->values[h], &f->last[h]};
        int64_t step = set[0]->spec.vecs * LANES, whole = step ? p->V / step * step : 0;
        if (!set[0]->fn[h] && !set[1]->fn[h]) continue;
        CgIf is;
        cg_if(cg, &is, cg_eq(cg, height, cg_int(cg, h)));
        for (int part = 0; part < 2; part++) {
            if (!set[part]->fn[h]) continue;
            cg_for(cg, &col, cg_int(cg, part ? whole : 0), cg_int(cg, part ? p->V : whole), step);
            call.b = cg_at(cg, p->v_type->dtype, values, col.i);
            call.c = cg_at(cg, F32, o, col.i);
            call.init = cg_select(cg, begins, LLVMConstNull(cg->ptr), call.c);
            tile_call_fixed(cg, set[part], h, &call);
            cg_end(cg, &col);
        }
        cg_endif(cg, &is);
    }
    cg_end(cg, &t);
}

static void attend_block(Cg *cg, const Attn *p, const Few *f, LV slot, LV j, LV n, LV begins) {
    LV row = attention_key_row(cg, p, j), zero = cg_int(cg, 0), s = scratch(cg, f->s);
    LV keys = cg_at(cg, p->k_type->dtype, cg_in(cg, 1), cg_muli(cg, row, p->A));
    cg_call(cg, f->pack_type, f->pack, (LV[]){scratch(cg, f->panel), keys, n}, 3);
    for (int at = 0; at < ATTN_BLOCK; at += p->lanes)
        attention_by_rows(cg, p, &p->score, scratch(cg, f->q), scratch(cg, f->panel + at * 4), p->A,
                          scratch(cg, f->s + at * 4), f->n);
    CgLoop query;
    put(cg, minus_inf(cg), scratch(cg, f->block), 0);
    cg_for(cg, &query, zero, f->n, 1);
    LV largest = minus_inf(cg), at = cg_muli(cg, query.i, ATTN_BLOCK);
    for (int v = 0; v < VECS; v++) {
        LV index = cg_addi(cg, at, v * LANES), x = cg_load_vec(cg, F32, s, index, NULL);
        x = finish_scores(cg, p, x, query.i, j, n, v);
        cg_store_vec(cg, F32, x, s, index, NULL);
        largest = larger(cg, x, largest);
    }
    cg_store1(cg, F32, cg_fold_max(cg, largest), scratch(cg, f->block), query.i);
    cg_end(cg, &query);
    LV old = field(cg, slot, f->m), m = larger(cg, field(cg, scratch(cg, f->block), 0), old),
       keep = keep_of(cg, old, m);
    put(cg, m, slot, f->m);
    put(cg, keep, scratch(cg, f->keep), 0);
    put(cg, cg_select(cg, is_minus_inf(cg, m), cg_vec(cg, 0), m), scratch(cg, f->from), 0);
    cg_for(cg, &query, zero, f->n, 1);
    LV from = cg_splat(cg, number(cg, F32, f->from, query.i)), sum = NULL;
    at = cg_muli(cg, query.i, ATTN_BLOCK);
    for (int v = 0; v < VECS; v++) {
        LV index = cg_addi(cg, at, v * LANES);
        LV x = cg_exp_down(cg, cg_fsub(cg, cg_load_vec(cg, F32, s, index, NULL), from));
        cg_store_vec(cg, F32, x, s, index, NULL);
        sum = sum ? cg_fadd(cg, sum, x) : x;
    }
    cg_store1(cg, F32, cg_fold_sum(cg, sum), scratch(cg, f->block), query.i);
    CgIf scale;
    LV k = number(cg, F32, f->keep, query.i),
       changes = LLVMBuildFCmp(cg->b, LLVMRealUNE, k, cg_float(cg, 1), "");
    cg_if(cg, &scale, LLVMBuildAnd(cg->b, changes, LLVMBuildNot(cg->b, begins, ""), ""));
    scale_row(cg, p, row_of(cg, p, f, slot, query.i), k);
    cg_endif(cg, &scale);
    cg_end(cg, &query);
    put(cg, cg_fma(cg, field(cg, slot, f->l), keep, field(cg, scratch(cg, f->block), 0)), slot, f->l);
    LV values = cg_at(cg, p->v_type->dtype, cg_in(cg, 2), cg_muli(cg, row, p->V));
    add_values(cg, p, f, values, n, slot, begins);
}

// Slot b joins slot a, which comes before it.
static void merge_slots(Cg *cg, const Attn *p, const Few *f, LV a, LV b) {
    LV ma = field(cg, a, f->m), mb = field(cg, b, f->m), m = larger(cg, ma, mb), none = is_minus_inf(cg, mb),
       ra = keep_of(cg, ma, m), rb = cg_exp_down(cg, cg_fsub(cg, mb, m)), la = field(cg, a, f->l);
    LV l = cg_fma(cg, field(cg, b, f->l), rb, cg_fmul(cg, la, ra));
    put(cg, cg_select(cg, none, la, l), a, f->l);
    put(cg, cg_select(cg, none, ma, m), a, f->m);
    put(cg, ra, scratch(cg, f->keep), 0);
    put(cg, rb, scratch(cg, f->from), 0);
    CgLoop query, c;
    CgIf joins;
    cg_for(cg, &query, cg_int(cg, 0), f->n, 1);
    LV mine = cg_load1(cg, F32, attention_at(cg, b, f->m), query.i);
    cg_if(cg, &joins, LLVMBuildFCmp(cg->b, LLVMRealUNE, mine, cg_float(cg, -INFINITY), ""));
    LV sa = cg_splat(cg, number(cg, F32, f->keep, query.i)),
       sb = cg_splat(cg, number(cg, F32, f->from, query.i)), to = row_of(cg, p, f, a, query.i),
       from = row_of(cg, p, f, b, query.i);
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, p->V16), LANES);
    LV x = cg_fmul(cg, cg_load_vec(cg, F32, to, c.i, NULL), sa);
    cg_store_vec(cg, F32, cg_fma(cg, cg_load_vec(cg, F32, from, c.i, NULL), sb, x), to, c.i, NULL);
    cg_end(cg, &c);
    cg_endif(cg, &joins);
    cg_end(cg, &query);
}

static void attend_segment(Cg *cg, Attn *p, const Few *f, LV segment) {
    LV slot = slot_at(cg, f, segment), lo = cg_sub(cg, p->C_now, p->S_now), from, to;
    begin_queries(cg, p, f);
    put(cg, minus_inf(cg), slot, f->m);
    put(cg, cg_vec(cg, 0), slot, f->l);
    cg_memset0(cg, attention_at(cg, slot, f->o), cg_int(cg, ATTN_FEW * p->V16 * 4));
    attention_range(cg, p, lo, cg_addi(cg, p->C_now, -1), &from, &to);
    LV start = cg_muli(cg, segment, ATTN_SEGMENT);
    from = cg_max(cg, from, start);
    to = cg_min(cg, to, cg_addi(cg, start, ATTN_SEGMENT));
    CgLoop block;
    cg_for(cg, &block, from, to, ATTN_BLOCK);
    LV n = cg_min(cg, cg_sub(cg, to, block.i), cg_int(cg, ATTN_BLOCK));
    attend_block(cg, p, f, slot, block.i, n, cg_eq(cg, block.i, from));
    cg_end(cg, &block);
}

// The slots of segments meet in the tree of abi.h: after segment i the last runs of 1, 2, 4, .. that end
// there do; behind the last one those that are left.
static void meet(Cg *cg, const Attn *p, const Few *f, LV n) {
    LV zero = cg_int(cg, 0), one = cg_int(cg, 1);
    CgLoop i, size, rest;
    cg_for(cg, &i, zero, n, 1);
    LV end = cg_addi(cg, i.i, 1);
    LV zeros[2] = {end, cg_bool(cg, true)};
    LV merges = cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, zeros, 2);
    cg_for(cg, &size, zero, merges, 1);
    LV run = LLVMBuildShl(cg->b, one, size.i, ""), b = cg_sub(cg, end, run), a = cg_sub(cg, b, run);
    merge_slots(cg, p, f, slot_at(cg, f, a), slot_at(cg, f, b));
    cg_end(cg, &size);
    cg_end(cg, &i);
    LV last = LLVMBuildAnd(cg->b, n, cg_addi(cg, n, -1), ""); // where the last run begins
    LV bits = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &last, 1);
    cg_loop_begin(cg, &rest, zero, bits, 1, 1, &last);
    LV b_run = rest.carry[0], a_run = LLVMBuildAnd(cg->b, b_run, cg_addi(cg, b_run, -1), "");
    merge_slots(cg, p, f, slot_at(cg, f, a_run), slot_at(cg, f, b_run));
    cg_loop_end(cg, &rest, &a_run);
}

// Sinks, normalisation, and out.
static void finish_queries(Cg *cg, Attn *p, const Few *f) {
    LV slot = slot_at(cg, f, cg_int(cg, 0)), m = field(cg, slot, f->m), l = field(cg, slot, f->l),
       keep = NULL;
    if (p->sinks >= 0) {
        begin_queries(cg, p, f);
        LV sink = lane_vec(cg, p, F32, p->sink, 0), old = m;
        m = larger(cg, old, sink);
        keep = keep_of(cg, old, m);
        l = cg_fma(cg, l, keep, cg_exp_down(cg, cg_fsub(cg, sink, m)));
        put(cg, keep, scratch(cg, f->keep), 0);
    }
    LV none = is_minus_inf(cg, m);
    put(cg, cg_select(cg, none, cg_vec(cg, 0), cg_fdiv(cg, cg_vec(cg, 1), l)), scratch(cg, f->from), 0);
    put(cg, cg_select(cg, none, m, cg_fadd(cg, m, cg_log(cg, l))), scratch(cg, f->block), 0);
    CgLoop query;
    cg_for(cg, &query, cg_int(cg, 0), f->n, 1);
    LV o = row_of(cg, p, f, slot, query.i), G = cg_int(cg, p->G);
    if (keep) scale_row(cg, p, o, number(cg, F32, f->keep, query.i));
    scale_row(cg, p, o, number(cg, F32, f->from, query.i));
    LV h = cg_add(cg, cg_muli(cg, p->g, p->G), cg_rem(cg, query.i, G)),
       row = attention_row(cg, p, cg_div(cg, query.i, G), h);
    attention_store_row(cg, o, p->V, p->q_type->dtype, cg_out(cg, 0), cg_muli(cg, row, p->V));
    cg_store1(cg, F32, number(cg, F32, f->block, query.i), cg_out(cg, 1), row);
    cg_end(cg, &query);
}

void emit_attention_few(Cg *cg, const Attn *given, LV place, LV segment) {
    Attn p = *given;
    Few f = {.place = place};
    few_begin(cg, &p, &f);
    LV segments = cg_div(cg, cg_addi(cg, p.C_now, ATTN_SEGMENT - 1), cg_int(cg, ATTN_SEGMENT));
    CgIf first;
    cg_if_phase(cg, &first, 0);
    if (!place) {
        attention_place(cg, &p, f.place = cg_div(cg, cg->task, segments));
        segment = cg_rem(cg, cg->task, segments);
    }
    attend_segment(cg, &p, &f, segment);
    cg_else(cg, &first);
    if (!place) attention_place(cg, &p, f.place = cg->task);
    meet(cg, &p, &f, segments);
    finish_queries(cg, &p, &f);
    cg_endif(cg, &first);
}
