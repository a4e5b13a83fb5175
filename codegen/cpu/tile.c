// The register tile and the packing of its operands.
#include "codegen/cpu/tile.h"
#include <assert.h>
#include <stdio.h>
#include "codegen/cpu/dot.h"

const TileRow tile_table[] = {
#define RUN TILE_RUN
#define FEW TILE_FEW
#define TILE(rows, vecs, use, ...) {rows, vecs, use, {__VA_ARGS__}},
#include "codegen/cpu/tiles.def"
#undef TILE
#undef FEW
#undef RUN
};
const int n_tile_rows = sizeof tile_table / sizeof *tile_table;

// Registers beside the sums: all of B's row and an element of A, or all elements of A and a vector of B.  A <16 x float>
// takes 64 / vector_bytes of them.
static int by_rows(const CpuTarget *t, int vecs) { return vecs * (64 / t->vector_bytes) + 1; }
static int by_vectors(const CpuTarget *t, int rows) { return rows + 64 / t->vector_bytes; }
static int least_of(const CpuTarget *t, int rows, int vecs) {
    return by_rows(t, vecs) < by_vectors(t, rows) ? by_rows(t, vecs) : by_vectors(t, rows);
}
// Of pairs that are widened: one k after the other, which keeps the other halves; or both with each vector, which keeps
// all elements of A.
static int by_single_k(const CpuTarget *t, int rows, int vecs) { return least_of(t, rows, vecs) + vecs * (64 / t->vector_bytes); }
static int by_both_k(const CpuTarget *t, int rows) { return 2 * rows + 2 * (64 / t->vector_bytes) + 1; }
static bool widens_both(const CpuTarget *t, int rows, int vecs) { return by_both_k(t, rows) < by_single_k(t, rows, vecs); }

bool tile_fits(const CpuTarget *t, MachineTileKind kind, int rows, int vecs) {
    int rest = least_of(t, rows, vecs);
    if (kind == TILE_BF16_WIDENED) rest = widens_both(t, rows, vecs) ? by_both_k(t, rows) : by_single_k(t, rows, vecs);
    return rows * vecs * (64 / t->vector_bytes) + rest <= t->n_registers;
}

// Two chains and the sum of two others, a row of B and an element of A.
int tile_fours(const CpuTarget *t, int vecs) {
    int vector = vecs * (64 / t->vector_bytes), rows = (t->n_registers - vector - 1) / (3 * vector);
    while (rows > 0 && FOURS_ROWS % rows) rows--;
    return rows;
}

TileSize tile_size(const CpuTarget *t) {
    const TileRow *row = tile_table;
    while (!(row->use & TILE_RUN) || !tile_fits(t, TILE_F32, row->rows, row->vecs)) row++;
    return (TileSize){row->rows, row->vecs};
}

int tile_vecs(const CpuTarget *t, int height) {
    int least = tile_size(t).vecs;
    for (int vecs = TILE_MAX_VECS; vecs > least; vecs /= 2)
        if (tile_fits(t, TILE_F32, height, vecs)) return vecs;
    return least;
}

LV tile_mask(Cg *cg, int live) {
    if (live >= LANES) return NULL;
    LV lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = LLVMConstInt(cg->i1, i < live, 0);
    return LLVMConstVector(lane, LANES);
}

// Nothing else that the function touches lies where this pointer leads.
static void no_alias(Cg *cg, LV fn, int param) {
    unsigned kind = LLVMGetEnumAttributeKindForName("noalias", 7);
    LLVMAddAttributeAtIndex(fn, (LLVMAttributeIndex)(1 + param), LLVMCreateEnumAttribute(cg->cx, kind, 0));
}

static LV offset(Cg *cg, LV base, int64_t elements) {
    return elements ? cg_bytes(cg, base, cg_int(cg, elements * 4)) : base;
}

static LV offset_by(Cg *cg, LV base, LV n, int64_t elements) { return cg_at(cg, F32, base, cg_muli(cg, n, elements)); }

// ---- the tile -----------------------------------------------------------------------------------

// Of B, asked into the second cache: rows 4 KiB apart don't fit the first one's sets.  A panel's first tile, whose steps are short,
// asks so many vectors of sums before, but not for more rows than those sets hold.
enum { PREFETCH_ROWS = 32, MOST_PREFETCH_ROWS = 64, PREFETCH_STEPS = 1024 };
enum { P_A, P_B, P_K, P_B_K, P_C, P_INIT, P_LEAVES, P_NEXT, P_PANEL, P_AHEAD, P_AHEAD_STEP, P_N_AHEAD, P_NEXT_C, P_NEAR, N_PARAMS };

// Bytes between columns of a row of B, whose row holds one k or two.
static int64_t b_bytes(const TileSpec *s) { return s->pairs ? 4 : dtype_bytes(s->b_type); }

// Bytes from the begin of a row of B to its vector v.
static int64_t vector_at(const TileSpec *s, int v) {
    enum { EACH = PANEL_COLS / LANES };
    return s->b_panel ? v / EACH * s->b_panel + v % EACH * LANES * b_bytes(s) : v * LANES * b_bytes(s);
}

static LV widened(Cg *cg, LV pair, bool odd) {
    LV one = odd ? LLVMBuildShl(cg->b, pair, cg_vec_int(cg, 16), "")
                 : LLVMBuildAnd(cg->b, pair, cg_vec_int(cg, (int32_t)0xffff0000), "");
    return LLVMBuildBitCast(cg->b, one, cg->vf32, "");
}

// Vector v of B at one k, or at the first or second (odd) of two: pair is what the first has loaded, so that a line
// that comes from far is asked for once.  next: the row that makes pairs with that at b, or NULL.
static LV b_vector(Cg *cg, const TileSpec *s, LV b, LV next, int v, bool odd, LV *pair) {
    LV mask = s->mask_b ? tile_mask(cg, s->cols - v * LANES) : NULL, zero = cg_int(cg, 0);
    LV at = cg_bytes(cg, b, cg_int(cg, vector_at(s, v)));
    if (s->joins)
        return dot_join_rows(cg, at, mask, next ? cg_bytes(cg, next, cg_int(cg, vector_at(s, v))) : NULL, mask);
    if (!s->pairs) return cg_load_vec(cg, s->b_type, at, zero, mask);
    if (!odd) pair[v] = cg_load_vec(cg, I32, at, zero, mask);
    return widened(cg, pair[v], odd);
}

static LV multiply_add(Cg *cg, const TileSpec *s, LV a, LV b, LV c) {
    return s->dot ? cg_bf16_dot(cg, c, a, b) : cg_fma(cg, a, b, c);
}

static void ask_for_b(Cg *cg, const TileSpec *s, LV b, LV ahead, int cache) {
    int64_t vector = LANES * b_bytes(s);
    for (int64_t at = 0; at < s->vecs * vector; at += 64) {
        int64_t line = vector_at(s, (int)(at / vector)) + at % vector;
        cg_prefetch(cg, cg_bytes(cg, b, cg_addi(cg, ahead, line)), false, cache);
    }
}

static LV element_of_a(Cg *cg, const TileSpec *s, LV a, int row, int64_t k) {
    return cg_splat(cg, cg_load(cg, cg->f32, offset(cg, a, row * s->a_row + k * s->a_k), 4));
}

// Both k of a row of pairs, or the first alone: all that is to be done with a vector of B at a time.
static void tile_step_of_pairs(Cg *cg, const TileSpec *s, int height, LV a, int64_t k, int n_k, LV b, LV ahead, LV *acc) {
    LV x[2][TILE_MAX_ROWS], pair[TILE_MAX_VECS];
    if (ahead) ask_for_b(cg, s, b, ahead, s->prefetch);
    for (int j = 0; j < n_k; j++)
        for (int i = 0; i < height; i++) x[j][i] = element_of_a(cg, s, a, i, k + j);
    for (int v = 0; v < s->vecs; v++) {
        for (int j = 0; j < n_k; j++) {
            LV one = b_vector(cg, s, b, NULL, v, j, pair);
            for (int i = 0; i < height; i++) acc[i * s->vecs + v] = multiply_add(cg, s, x[j][i], one, acc[i * s->vecs + v]);
        }
        cg_loads_in_order(cg);
    }
}

// One step of the chain for all sums.  ahead: bytes from b to what is asked for, or NULL.  panel: where B is left.
static void tile_step(Cg *cg, const TileSpec *s, int height, LV a, int64_t k, LV b, LV next, LV ahead,
                      LV panel, LV *pair, LV *acc) {
    LV bv[TILE_MAX_VECS], x[TILE_MAX_ROWS];
    bool odd = s->pairs && k % 2, rows_first = by_rows(cg->target, s->vecs) <= by_vectors(cg->target, height);
    for (int v = 0; v < s->vecs && rows_first; v++) bv[v] = b_vector(cg, s, b, next, v, odd, pair);
    for (int v = 0; v < s->vecs && rows_first && s->packs; v++) cg_store_vec(cg, F32, bv[v], panel, cg_int(cg, v * LANES), NULL);
    if (ahead && !odd) ask_for_b(cg, s, b, ahead, s->prefetch);
    if (ahead && next) ask_for_b(cg, s, next, ahead, s->prefetch);
    for (int i = 0; i < height; i++) {
        x[i] = element_of_a(cg, s, a, i, k);
        for (int v = 0; v < s->vecs && rows_first; v++)
            acc[i * s->vecs + v] = multiply_add(cg, s, x[i], bv[v], acc[i * s->vecs + v]);
    }
    for (int v = 0; v < s->vecs && !rows_first; v++) {
        LV one = b_vector(cg, s, b, next, v, odd, pair);
        if (s->packs) cg_store_vec(cg, F32, one, panel, cg_int(cg, v * LANES), NULL);
        for (int i = 0; i < height; i++)
            acc[i * s->vecs + v] = multiply_add(cg, s, x[i], one, acc[i * s->vecs + v]);
    }
}

// From a row of B to what is asked for with it: rows later, or as many rows into what comes next.
typedef struct { LV far, wrapped, last; } Ahead;           // last: the first k to which `wrapped` applies

// Rows between what is read and what is asked for: more of panels, which are streams and fit the first cache's sets.
static int64_t rows_ahead(const TileSpec *s, int height) {
    int64_t row = s->vecs * LANES * b_bytes(s), sums = height * s->vecs;
    int64_t rows = s->packs ? PREFETCH_STEPS / sums : s->ahead / row;
    if (s->packs && rows > MOST_PREFETCH_ROWS) rows = MOST_PREFETCH_ROWS;
    return rows > PREFETCH_ROWS ? rows : PREFETCH_ROWS;
}

// k_row: k that a row holds.
static Ahead ahead_of(Cg *cg, const TileSpec *s, int height, LV fn, LV k, int k_row, LV step) {
    int64_t rows = rows_ahead(s, height);
    LV next = LLVMGetParam(fn, P_NEXT), far = cg_muli(cg, step, rows);
    LV to_next = cg_sub(cg, LLVMBuildPtrToInt(cg->b, next, cg->i64, ""), LLVMBuildPtrToInt(cg->b, LLVMGetParam(fn, P_B), cg->i64, ""));
    LV wrapped = cg_add(cg, to_next, cg_sub(cg, far, cg_mul(cg, cg_div(cg, k, cg_int(cg, k_row)), step)));
    return (Ahead){far, cg_select(cg, LLVMBuildIsNull(cg->b, next, ""), far, wrapped), cg_addi(cg, k, -k_row * rows)};
}

// A step is short when the tile is small: so many make a round.
enum { LARGE = 16 };
static int unroll_of(int sums) { return sums < LARGE ? 4 : 2; }

LV tile_streamed(Cg *cg, const TileSpec *s, LV height, LV k) {
    LV large = cg_lt(cg, cg_int(cg, (LARGE - 1) / s->vecs), height);
    return LLVMBuildLShr(cg->b, k, cg_select(cg, large, cg_int(cg, 1), cg_int(cg, 2)), "");
}

// Operands of a chain; a and b become what follows them.
typedef struct { LV a, b, k; } Chain;

// n sums in registers, chained over k.
static void tile_chain(Cg *cg, const TileSpec *s, int height, LV fn, Chain *chain, LV *acc) {
    int n = height * s->vecs, unroll = unroll_of(n), panel_at = n + 2, ahead_at = panel_at + s->packs;
    int carried = ahead_at + (s->stream > 0);
    bool both = s->pairs && widens_both(cg->target, height, s->vecs);
    LV all = chain->k, k = s->joins ? LLVMBuildLShr(cg->b, all, cg_int(cg, 1), "") : all;
    LV row = cg_muli(cg, LLVMGetParam(fn, P_B_K), b_bytes(s)), step = s->joins ? cg_add(cg, row, row) : row;
    Ahead ahead = {0};
    if (s->prefetch) ahead = ahead_of(cg, s, height, fn, k, s->pairs ? 2 : 1, step);
    LV carry[CG_MAX_CARRY], lo = cg_int(cg, 0);
    for (int i = 0; i < n; i++) carry[i] = acc[i];
    carry[n] = chain->a;
    carry[n + 1] = chain->b;
    if (s->packs) carry[panel_at] = LLVMGetParam(fn, P_PANEL);
    if (s->stream) carry[ahead_at] = LLVMGetParam(fn, P_AHEAD);
    for (int u = unroll; u >= 1; u = s->pairs || u == 1 ? u / 2 : 1) { // then what is left, one by one or by pairs
        CgLoop l;
        LV hi = LLVMBuildAnd(cg->b, k, cg_int(cg, -u), "");
        cg_loop_begin(cg, &l, lo, hi, u, carried, carry);
        for (int i = 0; i < n; i++) acc[i] = l.carry[i];
        LV a = l.carry[n], b = l.carry[n + 1], pair[TILE_MAX_VECS];
        LV panel = s->packs ? l.carry[panel_at] : NULL, other = s->stream ? l.carry[ahead_at] : NULL;
        LV asked = s->prefetch ? cg_select(cg, cg_lt(cg, l.i, ahead.last), ahead.far, ahead.wrapped) : NULL;
        if (s->stream && u == unroll) {
            for (int line = 0; line < s->stream; line++) cg_prefetch(cg, cg_bytes(cg, other, cg_int(cg, line * 64)), false, 2);
            LV more = cg_lt(cg, l.i, cg_muli(cg, LLVMGetParam(fn, P_N_AHEAD), unroll));
            other = cg_select(cg, more, cg_bytes(cg, other, LLVMGetParam(fn, P_AHEAD_STEP)), other);
        }
        for (int j = 0; j < u && both; j += 2) {
            tile_step_of_pairs(cg, s, height, a, j, u < 2 ? 1 : 2, b, asked, acc);
            b = cg_bytes(cg, b, step);
        }
        for (int j = 0; j < u && !both; j++) {
            tile_step(cg, s, height, a, j, b, s->joins ? cg_bytes(cg, b, row) : NULL, asked, panel, pair, acc);
            if (!s->pairs || j % 2) b = cg_bytes(cg, b, step);
            if (s->packs) panel = offset(cg, panel, s->vecs * LANES);
        }
        for (int i = 0; i < n; i++) carry[i] = acc[i];
        carry[n] = offset(cg, a, u * s->a_k);
        carry[n + 1] = b;
        if (s->packs) carry[panel_at] = panel;
        if (s->stream) carry[ahead_at] = other;
        cg_loop_end(cg, &l, carry);
        for (int i = 0; i < carried; i++) carry[i] = l.carry[i];
        lo = l.i;
    }
    for (int i = 0; i < n; i++) acc[i] = carry[i];
    chain->a = carry[n];
    chain->b = carry[n + 1];
    if (!s->joins) return;
    CgIf odd;
    LV longer[CG_MAX_CARRY];
    cg_if(cg, &odd, cg_lt(cg, cg_add(cg, k, k), all));
    for (int i = 0; i < n; i++) longer[i] = acc[i];
    tile_step(cg, s, height, carry[n], 0, carry[n + 1], NULL, NULL, s->packs ? carry[panel_at] : NULL, NULL, longer);
    cg_else(cg, &odd);
    cg_endif_join(cg, &odd, n, longer, carry, acc);
}

// Lines of the tile that comes next: what it continues, and where its sums go.
static void ask_for_c(Cg *cg, const TileSpec *s, int height, LV c) {
    int64_t bytes = dtype_bytes(s->c_type);
    for (int row = 0; row < height; row++)
        for (int64_t at = 0; at < s->cols * bytes; at += 64)
            cg_prefetch(cg, cg_bytes(cg, c, cg_int(cg, row * s->c_row * bytes + at)), true, 3);
}

static void begin_tile(Cg *cg, const char *name, int height, CgFunction *f, LT *type) {
    LT params[N_PARAMS] = {cg->ptr, cg->ptr, cg->i64, cg->i64, cg->ptr, cg->ptr, cg->ptr,
                           cg->ptr, cg->ptr, cg->ptr, cg->i64, cg->i64, cg->ptr, cg->ptr};
    char text[64];
    snprintf(text, sizeof text, "%s_%d", name, height);
    cg_function_begin(cg, f, text, cg->void_t, params, N_PARAMS);
    *type = f->type;
}

static void zero_sums(Cg *cg, int n, LV *acc) {
    for (int i = 0; i < n; i++) acc[i] = cg_vec(cg, 0);
}

// The sums of a tile whose rows are `row` elements apart, if there is one; else zeros.
static void load_sums(Cg *cg, const TileSpec *s, int n, LV there, LV from, int64_t row, LV *acc) {
    LV zeros[CG_MAX_CARRY], held[CG_MAX_CARRY];
    CgIf again;
    zero_sums(cg, n, zeros);
    cg_if(cg, &again, there);
    for (int i = 0; i < n; i++) {
        int col = i % s->vecs * LANES;
        held[i] = cg_load_vec(cg, F32, from, cg_int(cg, i / s->vecs * row + col), tile_mask(cg, s->cols - col));
    }
    cg_else(cg, &again);
    cg_endif_join(cg, &again, n, held, zeros, acc);
}

static void store_sums(Cg *cg, const TileSpec *s, int n, const LV *acc, LV c) {
    for (int i = 0; i < n; i++) {
        int row = i / s->vecs, col = i % s->vecs * LANES;
        LV mask = tile_mask(cg, s->cols - col);
        if (s->store) s->store(s->self, cg, acc[i], c, row, col, mask);
        else cg_store_vec(cg, s->c_type, acc[i], c, cg_int(cg, row * s->c_row + col), mask);
    }
}

static LV emit_tile(Cg *cg, const TileSpec *s, const char *name, int height, LT *type) {
    CgFunction f;
    begin_tile(cg, name, height, &f, type);
    no_alias(cg, f.fn, P_PANEL);
    int n = height * s->vecs;
    assert(n + 4 <= CG_MAX_CARRY);
    LV acc[CG_MAX_CARRY], init = LLVMGetParam(f.fn, P_INIT);
    Chain chain = {LLVMGetParam(f.fn, P_A), LLVMGetParam(f.fn, P_B), LLVMGetParam(f.fn, P_K)};
    zero_sums(cg, n, acc);
    if (s->ask_c) ask_for_c(cg, s, height, LLVMGetParam(f.fn, P_NEXT_C));
    if (s->reload) load_sums(cg, s, n, LLVMBuildIsNotNull(cg->b, init, ""), init, s->c_row, acc);
    tile_chain(cg, s, height, f.fn, &chain, acc);
    store_sums(cg, s, n, acc, LLVMGetParam(f.fn, P_C));
    cg_function_end(cg, &f);
    return f.fn;
}

// ---- a tile's leaves ----------------------------------------------------------------------------

LV leaf_table_at(Cg *cg, LV table, LV leaf) { return cg_at(cg, I32, table, cg_muli(cg, leaf, LEAF_FIELDS)); }

static LV leaf_field(Cg *cg, LV entry, LeafField i) { return cg_i64(cg, cg_load1(cg, I32, entry, cg_int(cg, i))); }

// A level of the tree: left by another call, or for one, or of this call alone.
static LV level_at(Cg *cg, const TileSpec *s, int height, LV fn, LV kept, LV level) {
    LV far = offset_by(cg, LLVMGetParam(fn, P_INIT), level, s->merge_step);
    LV near = offset_by(cg, LLVMGetParam(fn, P_NEAR), level, height * s->held_row);
    return cg_select(cg, kept, far, near);
}

// P_K: leaves, P_LEAVES: their table, P_INIT: the tile at the bottom of its stack, P_C: where the last leaf's sum goes.
static LV emit_leaves(Cg *cg, const TileSpec *s, const char *name, int height, LT *type) {
    CgFunction f;
    CgLoop leaf, merge;
    CgIf last, asks;
    begin_tile(cg, name, height, &f, type);
    int n = height * s->vecs;
    LV acc[CG_MAX_CARRY], n_leaves = LLVMGetParam(f.fn, P_K), zero = cg_int(cg, 0);
    LV operands[2] = {LLVMGetParam(f.fn, P_A), LLVMGetParam(f.fn, P_B)}, c = LLVMGetParam(f.fn, P_C);
    LV ends = LLVMBuildIsNotNull(cg->b, c, "");
    TileSpec held = *s;                                    // a tile of the stack
    held.cols = s->vecs * LANES;
    held.c_row = s->held_row;
    held.c_type = F32;
    cg_if(cg, &asks, ends);
    ask_for_c(cg, s, height, c);
    cg_endif(cg, &asks);
    cg_loop_begin(cg, &leaf, zero, n_leaves, 1, 2, operands);
    LV entry = leaf_table_at(cg, LLVMGetParam(f.fn, P_LEAVES), leaf.i), top = leaf_field(cg, entry, LEAF_TOP);
    LV merges = leaf_field(cg, entry, LEAF_MERGES), goes_on = cg_lt(cg, zero, leaf_field(cg, entry, LEAF_GOES_ON));
    LV kept = leaf_field(cg, entry, LEAF_KEPT), yes = cg_bool(cg, true);
    Chain chain = {leaf.carry[0], leaf.carry[1], leaf_field(cg, entry, LEAF_K)};
    load_sums(cg, &held, n, goes_on, level_at(cg, s, height, f.fn, yes, top), s->held_row, acc);
    tile_chain(cg, s, height, f.fn, &chain, acc);
    cg_loop_begin(cg, &merge, zero, merges, 1, n, acc);
    LV below = cg_sub(cg, cg_addi(cg, top, -1), merge.i), from = level_at(cg, s, height, f.fn, cg_lt(cg, below, kept), below);
    for (int i = 0; i < n; i++) {
        LV left = cg_load_vec(cg, F32, from, cg_int(cg, i / s->vecs * s->held_row + i % s->vecs * LANES), NULL);
        acc[i] = cg_fadd(cg, left, merge.carry[i]);
    }
    cg_loop_end(cg, &merge, acc);
    LV is_last = cg_eq(cg, cg_addi(cg, leaf.i, 1), n_leaves), stays = cg_eq(cg, leaf_field(cg, entry, LEAF_NEAR), zero);
    cg_if(cg, &last, LLVMBuildAnd(cg->b, is_last, ends, ""));
    store_sums(cg, s, n, merge.carry, c);
    cg_else(cg, &last);
    store_sums(cg, &held, n, merge.carry, level_at(cg, s, height, f.fn, stays, cg_sub(cg, top, merges)));
    cg_endif(cg, &last);
    LV next[2] = {chain.a, chain.b};
    cg_loop_end(cg, &leaf, next);
    cg_function_end(cg, &f);
    return f.fn;
}

// ---- leaves in fours

// Rows of a tile: A, C, and how many; leaves in turn: B.
typedef struct { LV a, b, c, near, table; int height; } FourPart;

// One step of both chains of two leaves, the second leaf_k rows behind the first.
static void two_steps(Cg *cg, const TileSpec *s, int height, LV a, LV b, int k, LV *acc) {
    for (int leaf = 0; leaf < 2; leaf++)
        tile_step(cg, s, height, a, k + leaf * s->leaf_k, offset(cg, b, (k + leaf * s->leaf_k) * s->vecs * LANES), NULL, NULL, NULL, NULL,
                  acc + leaf * height * s->vecs);
}

// Steps lo .. hi-1 of the chains of one or two leaves, whose rows are at[0] and at[1] of a and b, at[2] and at[3].
static void varied_steps(Cg *cg, const TileSpec *s, int height, int leaves, LV lo, LV hi, LV *at, LV *acc) {
    CgLoop l;
    int each = height * s->vecs, n = leaves * each;
    LV carry[CG_MAX_CARRY];
    for (int i = 0; i < n; i++) carry[i] = acc[i];
    for (int i = 0; i < 2 * leaves; i++) carry[n + i] = at[i];
    cg_loop_begin(cg, &l, lo, hi, 1, n + 2 * leaves, carry);
    for (int i = 0; i < n + 2 * leaves; i++) carry[i] = l.carry[i];
    for (int leaf = 0; leaf < leaves; leaf++) {
        LV *pair = carry + n + 2 * leaf;
        tile_step(cg, s, height, pair[0], 0, pair[1], NULL, NULL, NULL, NULL, carry + leaf * each);
        pair[0] = offset(cg, pair[0], s->a_k);
        pair[1] = offset(cg, pair[1], s->vecs * LANES);
    }
    cg_loop_end(cg, &l, carry);
    for (int i = 0; i < n; i++) acc[i] = l.carry[i];
    for (int i = 0; i < 2 * leaves; i++) at[i] = l.carry[n + i];
}

// Of leaves first and first + 1, whose rows the table tells: side by side as far as both go.  p goes on behind them.
static void varied_sum_of_two(Cg *cg, const TileSpec *s, FourPart *p, int first, LV *sum) {
    int n = p->height * s->vecs;
    LV acc[CG_MAX_CARRY], k[2], at[4];
    for (int i = 0; i < 2; i++) k[i] = leaf_field(cg, leaf_table_at(cg, p->table, cg_int(cg, first + i)), LEAF_K);
    at[0] = p->a, at[1] = p->b;
    at[2] = offset_by(cg, p->a, k[0], s->a_k), at[3] = offset_by(cg, p->b, k[0], s->vecs * LANES);
    LV both = cg_min(cg, k[0], k[1]);
    zero_sums(cg, 2 * n, acc);
    varied_steps(cg, s, p->height, 2, cg_int(cg, 0), both, at, acc);
    for (int i = 0; i < 2; i++) varied_steps(cg, s, p->height, 1, both, k[i], at + 2 * i, acc + i * n);
    p->a = at[2], p->b = at[3];
    for (int i = 0; i < n; i++) sum[i] = cg_fadd(cg, acc[i], acc[n + i]);
}

// Of leaves first and first + 1.
static void sum_of_two(Cg *cg, const TileSpec *s, FourPart *p, int first, LV *sum) {
    enum { STEPS = 4 };
    int n = p->height * s->vecs, whole = s->leaf_k / STEPS * STEPS;
    LV carry[CG_MAX_CARRY];
    CgLoop l;
    zero_sums(cg, 2 * n, carry);
    carry[2 * n] = offset(cg, p->a, first * s->leaf_k * s->a_k);
    carry[2 * n + 1] = offset(cg, p->b, first * s->leaf_k * s->vecs * LANES);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, whole), STEPS, 2 * n + 2, carry);
    for (int i = 0; i < 2 * n + 2; i++) carry[i] = l.carry[i];
    for (int k = 0; k < STEPS; k++) two_steps(cg, s, p->height, carry[2 * n], carry[2 * n + 1], k, carry);
    carry[2 * n] = offset(cg, carry[2 * n], STEPS * s->a_k);
    carry[2 * n + 1] = offset(cg, carry[2 * n + 1], STEPS * s->vecs * LANES);
    cg_loop_end(cg, &l, carry);
    for (int i = 0; i < 2 * n + 2; i++) carry[i] = l.carry[i];
    for (int k = 0; k < s->leaf_k - whole; k++) two_steps(cg, s, p->height, carry[2 * n], carry[2 * n + 1], k, carry);
    for (int i = 0; i < n; i++) sum[i] = cg_fadd(cg, carry[i], carry[n + i]);
}

static void sum_fours(Cg *cg, const TileSpec *s, const FourPart *part) {
    FourPart at = *part, *p = &at;                         // goes on from leaf to leaf
    int n = p->height * s->vecs, top = 0, fours = s->n_leaves / 4;
    TileSpec held = *s;
    held.cols = s->vecs * LANES, held.c_row = s->held_row, held.c_type = F32;
    for (int four = 0; four < fours; four++) {
        LV left[CG_MAX_CARRY], sum[CG_MAX_CARRY];
        (s->leaf_k ? sum_of_two : varied_sum_of_two)(cg, s, p, 4 * four, left);
        (s->leaf_k ? sum_of_two : varied_sum_of_two)(cg, s, p, 4 * four + 2, sum);
        for (int i = 0; i < n; i++) sum[i] = cg_fadd(cg, left[i], sum[i]);
        for (int done = four + 1; top && (done % 2 == 0 || four + 1 == fours); done /= 2) {
            LV below = offset(cg, p->near, --top * p->height * s->held_row);
            for (int i = 0; i < n; i++) {
                LV x = cg_load_vec(cg, F32, below, cg_int(cg, i / s->vecs * s->held_row + i % s->vecs * LANES), NULL);
                sum[i] = cg_fadd(cg, x, sum[i]);
            }
        }
        if (four + 1 == fours) store_sums(cg, s, n, sum, p->c);
        else store_sums(cg, &held, n, sum, offset(cg, p->near, top++ * p->height * s->held_row));
    }
}

static LV emit_fours(Cg *cg, const TileSpec *s, const char *name, int height, LT *type) {
    CgFunction f;
    CgLoop part;
    begin_tile(cg, name, height, &f, type);
    FourPart p = {LLVMGetParam(f.fn, P_A), LLVMGetParam(f.fn, P_B), LLVMGetParam(f.fn, P_C), LLVMGetParam(f.fn, P_NEAR), LLVMGetParam(f.fn, P_LEAVES), s->fours};
    LV at[2] = {p.a, p.c};
    ask_for_c(cg, s, height, p.c);
    cg_loop_begin(cg, &part, cg_int(cg, 0), cg_int(cg, height / s->fours), 1, 2, at);
    p.a = part.carry[0], p.c = part.carry[1];
    sum_fours(cg, s, &p);
    at[0] = offset(cg, p.a, s->fours * s->a_row);
    at[1] = cg_bytes(cg, p.c, cg_int(cg, s->fours * s->c_row * dtype_bytes(s->c_type)));
    cg_loop_end(cg, &part, at);
    p.a = part.carry[0], p.c = part.carry[1], p.height = height % s->fours;
    if (p.height) sum_fours(cg, s, &p);
    cg_function_end(cg, &f);
    return f.fn;
}

void tile_functions(Cg *cg, TileSet *set, const TileSpec *spec, const char *name, unsigned heights) {
    *set = (TileSet){.spec = *spec};
    for (int h = 1; h <= TILE_MAX_ROWS; h++)
        if (heights >> h & 1) set->fn[h] = (spec->fours ? emit_fours : spec->leaves ? emit_leaves : emit_tile)(cg, spec, name, h, &set->type);
}

void tile_call_fixed(Cg *cg, const TileSet *set, int height, const TileCall *c) {
    LV null = LLVMConstNull(cg->ptr);
    LV args[N_PARAMS] = {c->a,
                         c->b,
                         c->k,
                         c->b_k,
                         c->c,
                         c->init ? c->init : null,
                         c->leaves ? c->leaves : null,
                         c->next ? c->next : null,
                         c->panel ? c->panel : null,
                         c->ahead ? c->ahead : c->a,
                         c->ahead ? c->ahead_step : cg_int(cg, 0),
                         c->ahead ? c->n_ahead : cg_int(cg, 0),
                         c->next_c ? c->next_c : cg_at(cg, set->spec.c_type, c->c, cg_int(cg, set->spec.cols)),
                         c->near ? c->near : null};
    assert(set->fn[height]);
    cg_call(cg, set->type, set->fn[height], args, N_PARAMS);
}

void tile_call(Cg *cg, const TileSet *set, LV height, const TileCall *c) {
    int n = 0, only = 0;
    for (int h = 1; h <= TILE_MAX_ROWS; h++)
        if (set->fn[h]) n++, only = h;
    if (n == 1) {
        tile_call_fixed(cg, set, only, c);
        return;
    }
    LV fn = LLVMGetBasicBlockParent(LLVMGetInsertBlock(cg->b));
    LLVMBasicBlockRef done = LLVMAppendBasicBlockInContext(cg->cx, fn, "called");
    LV sw = LLVMBuildSwitch(cg->b, height, done, (unsigned)n);
    for (int h = 1; h <= TILE_MAX_ROWS; h++) {
        if (!set->fn[h]) continue;
        LLVMBasicBlockRef at = LLVMInsertBasicBlockInContext(cg->cx, done, "height");
        LLVMAddCase(sw, cg_int(cg, h), at);
        LLVMPositionBuilderAtEnd(cg->b, at);
        tile_call_fixed(cg, set, h, c);
        LLVMBuildBr(cg->b, done);
    }
    LLVMPositionBuilderAtEnd(cg->b, done);
}

// ---- cutting rows into tiles --------------------------------------------------------------------

TileCut tile_cut(Cg *cg, LV n, int rows) {
    TileCut cut = {.tiles = cg_div(cg, cg_addi(cg, n, rows - 1), cg_int(cg, rows))};
    LV tiles = cg_max(cg, cut.tiles, cg_int(cg, 1)); // n = 0: no tile, and no division by it
    cut.base = cg_div(cg, n, tiles);
    cut.extra = cg_rem(cg, n, tiles);
    return cut;
}

LV tile_height(Cg *cg, const TileCut *cut, LV tile) {
    return cg_add(cg, cut->base, LLVMBuildZExt(cg->b, cg_lt(cg, tile, cut->extra), cg->i64, ""));
}

LV tile_first(Cg *cg, const TileCut *cut, LV tile) {
    return cg_add(cg, cg_mul(cg, tile, cut->base), cg_min(cg, tile, cut->extra));
}

unsigned tile_heights(int64_t n, int rows) {
    if (n <= 0) return 0;
    int64_t tiles = (n + rows - 1) / rows, base = n / tiles, extra = n % tiles;
    return (extra ? 1u << (base + 1) : 0) | 1u << base;
}

// ---- packing ------------------------------------------------------------------------------------

// One of the four steps of a transpose: pairs of vectors `apart` apart; mask tells which lanes of the pair go
// where.
static LV shuffle(Cg *cg, LV a, LV b, const int lane[16]) {
    LV mask[LANES];
    for (int i = 0; i < LANES; i++) mask[i] = cg_int32(cg, lane[i]);
    return LLVMBuildShuffleVector(cg->b, a, b, LLVMConstVector(mask, LANES), "");
}

// Blocks of 1, 2, 4, 8 lanes change places between vectors that are as far apart.
void tile_transpose(Cg *cg, LV rows[16]) {
    for (int d = 1; d < LANES; d *= 2) {
        int low[LANES], high[LANES];
        for (int i = 0; i < LANES; i++) {
            bool second = i / d % 2;
            low[i] = second ? LANES + i - d : i;
            high[i] = second ? LANES + i : i + d;
        }
        for (int i = 0; i < LANES; i++) {
            if (i / d % 2) continue;
            LV a = rows[i], b = rows[i + d];
            rows[i] = shuffle(cg, a, b, low);
            rows[i + d] = shuffle(cg, a, b, high);
        }
    }
}

// The last parameters of a function for numbered rows: their numbers, and how many rows there are.
static void begin_pack(Cg *cg, CgFunction *f, const char *name, int n_params,
                       bool numbered) {
    LT params[10] = {cg->ptr, cg->ptr, cg->i64, cg->i64, cg->i64, cg->i64, cg->i64};
    if (numbered) {
        params[n_params++] = cg->ptr;
        params[n_params++] = cg->i64;
    }
    cg_function_begin(cg, f, name, cg->void_t, params, n_params);
}

static PackFunction end_pack(Cg *cg, CgFunction *f) {
    cg_function_end(cg, f);
    return (PackFunction){.type = f->type, .fn = f->fn};
}

static void call_pack(Cg *cg, const PackFunction *f, const LV *args, int n, const RowNumbers *rows) {
    LV all[10];
    for (int i = 0; i < n; i++) all[i] = args[i];
    if (rows) {
        all[n++] = rows->index;
        all[n++] = rows->n;
    }
    cg_call(cg, f->type, f->fn, all, n);
}

// A row of the source.
typedef struct {
    LV at, ahead;      // ahead: a row that comes later
    LV exists;         // lanes of all or none, NULL: it does.  Numbered rows may be none
} SourceRow;

// A loop over n rows, or pairs of them, with addresses in the source and one that steps by to_bytes.
typedef struct {
    CgLoop l;
    DType t;
    LV to, from, step;
    SourceRow row[2];
    int rows;          // at once
    int64_t to_bytes;
} RowLoop;

static LV row_at(Cg *cg, const RowLoop *r, LV source, LV row) {
    return cg_bytes(cg, source, cg_mul(cg, row, r->step));
}

// Row i of n.  Where there is none, the address is that of another one.
static SourceRow source_row(Cg *cg, const RowLoop *r, LV fn, int which, bool numbered) {
    LV n = LLVMGetParam(fn, 2), source = LLVMGetParam(fn, 1), i = cg_addi(cg, r->l.i, which), there = NULL;
    LV later = cg_min(cg, cg_addi(cg, i, PREFETCH_ROWS), cg_addi(cg, n, -1));
    if (which) {
        there = cg_lt(cg, i, n);
        i = cg_select(cg, there, i, r->l.i);
    }
    SourceRow row = {.at = which ? row_at(cg, r, source, i) : r->from, .exists = there};
    row.ahead = cg_bytes(cg, row.at, cg_muli(cg, r->step, PREFETCH_ROWS));
    if (numbered) {
        unsigned last = LLVMCountParams(fn);
        LV index = LLVMGetParam(fn, last - 2), rows = LLVMGetParam(fn, last - 1);
        LV number = cg_i64(cg, cg_load1(cg, I32, index, i));
        LV known = LLVMBuildICmp(cg->b, LLVMIntULT, number, rows, "");
        row.at = row_at(cg, r, source, cg_select(cg, known, number, cg_int(cg, 0)));
        row.ahead = row_at(cg, r, source, cg_i64(cg, cg_load1(cg, I32, index, later)));
        row.exists = there ? LLVMBuildAnd(cg->b, there, known, "") : known;
    }
    if (row.exists) row.exists = cg_splat(cg, row.exists);
    return row;
}

static void begin_rows(Cg *cg, RowLoop *r, LV fn, DType t, int64_t to_bytes, bool numbered, bool pairs) {
    LV carry[2] = {LLVMGetParam(fn, 0), LLVMGetParam(fn, 1)};
    *r = (RowLoop){.t = t,
                   .rows = pairs ? 2 : 1,
                   .step = cg_muli(cg, LLVMGetParam(fn, 3), dtype_bytes(t)),
                   .to_bytes = to_bytes};
    cg_loop_begin(cg, &r->l, cg_int(cg, 0), LLVMGetParam(fn, 2), r->rows, 2, carry);
    r->to = r->l.carry[0];
    r->from = r->l.carry[1];
    for (int i = 0; i < r->rows; i++) r->row[i] = source_row(cg, r, fn, i, numbered);
}
static void end_rows(Cg *cg, RowLoop *r) {
    LV next[2] = {cg_bytes(cg, r->to, cg_int(cg, r->to_bytes)),
                  cg_bytes(cg, r->from, cg_muli(cg, r->step, r->rows))};
    cg_loop_end(cg, &r->l, next);
}
static LV and_mask(Cg *cg, LV a, LV b) { return a && b ? LLVMBuildAnd(cg->b, a, b, "") : a ? a : b; }
// 16 columns from `col`: elements as f32, or pairs.
static LV load_rows(Cg *cg, const RowLoop *r, LV col, LV mask) {
    const SourceRow *row = r->row;
    if (r->rows == 2)
        return dot_join_rows(cg, cg_at(cg, r->t, row[0].at, col), and_mask(cg, mask, row[0].exists),
                             cg_at(cg, r->t, row[1].at, col), and_mask(cg, mask, row[1].exists));
    LV x = cg_load_vec(cg, r->t, row->at, col, mask);
    return row->exists ? cg_select(cg, row->exists, x, cg_vec(cg, 0)) : x;
}
static void ask_for_rows(Cg *cg, const RowLoop *r, LV col, int64_t cols) {
    for (int i = 0; i < r->rows; i++)
        for (int64_t at = 0; at < cols * dtype_bytes(r->t); at += 64)
            cg_prefetch(cg, cg_bytes(cg, cg_at(cg, r->t, r->row[i].ahead, col), cg_int(cg, at)), false, 2);
}

// Row by row, so that memory is read as it lies; rows ahead are asked for, since rows may be pages apart.
static PackFunction rows_function(Cg *cg, const char *name, DType t, int vecs, int64_t panel_bytes,
                                  bool numbered, bool pairs, bool asks) {
    CgFunction f;
    RowLoop row;
    CgLoop panel;
    begin_pack(cg, &f, name, 5, numbered);
    int64_t width = vecs * LANES;
    LV cols = LLVMGetParam(f.fn, 4), whole = cg_addi(cg, cols, 1 - width);
    begin_rows(cg, &row, f.fn, t, width * 4, numbered, pairs);
    cg_loop_begin(cg, &panel, cg_int(cg, 0), whole, width, 1, &row.to);
    LV to = panel.carry[0];
    for (int v = 0; v < vecs; v++)
        cg_store_vec(cg, F32, load_rows(cg, &row, cg_addi(cg, panel.i, v * LANES), NULL), to,
                     cg_int(cg, v * LANES), NULL);
    if (asks) ask_for_rows(cg, &row, panel.i, width);
    LV next = cg_bytes(cg, to, cg_int(cg, panel_bytes));
    cg_loop_end(cg, &panel, &next);
    CgIf rest;
    cg_if(cg, &rest, cg_lt(cg, panel.i, cols));
    for (int v = 0; v < vecs; v++) {
        LV at = cg_addi(cg, panel.i, v * LANES), mask = cg_tail_mask(cg, cg_sub(cg, cols, at));
        cg_store_vec(cg, F32, load_rows(cg, &row, at, mask), panel.carry[0], cg_int(cg, v * LANES), NULL);
    }
    cg_endif(cg, &rest);
    end_rows(cg, &row);
    return end_pack(cg, &f);
}

PackFunction pack_rows_function(Cg *cg, const char *name, DType t, int vecs, int64_t panel_bytes,
                                bool numbered) {
    return rows_function(cg, name, t, vecs, panel_bytes, numbered, false, true);
}
PackFunction pack_row_pairs_function(Cg *cg, const char *name, int vecs, int64_t panel_bytes, bool numbered) {
    return rows_function(cg, name, BF16, vecs, panel_bytes, numbered, true, true);
}
PackFunction pack_pieces_function(Cg *cg, const char *name, DType t, int vecs, int64_t panel_bytes, bool numbered, bool pairs) {
    return rows_function(cg, name, t, vecs, panel_bytes, numbered, pairs, false);
}

void pack_rows(Cg *cg, const PackFunction *f, LV panels, LV source, LV n, LV step, LV cols,
               const RowNumbers *rows) {
    call_pack(cg, f, (LV[]){panels, source, n, step, cols}, 5, rows);
}

static LV shuffle_eight(Cg *cg, LV a, LV b, const int lane[8]) {
    LV mask[8];
    for (int i = 0; i < 8; i++) mask[i] = cg_int32(cg, lane[i]);
    return LLVMBuildShuffleVector(cg->b, a, b, LLVMConstVector(mask, 8), "");
}

// 4 k of 8 columns, loaded as halves of registers: what is left are 4 x 4 blocks, whose shuffles cross no halves.
static void turn_eight(Cg *cg, const LV column[8], LV k, LV to, int64_t to_step) {
    static const int join[8] = {0, 1, 2, 3, 4, 5, 6, 7}, low[8] = {0, 8, 1, 9, 4, 12, 5, 13}, high[8] = {2, 10, 3, 11, 6, 14, 7, 15};
    static const int even[8] = {0, 1, 8, 9, 4, 5, 12, 13}, odd[8] = {2, 3, 10, 11, 6, 7, 14, 15};
    LT four = LLVMVectorType(cg->f32, 4);
    LV x[4], t[4];
    for (int i = 0; i < 4; i++)
        x[i] = shuffle_eight(cg, cg_load(cg, four, cg_at(cg, F32, column[i], k), 4), cg_load(cg, four, cg_at(cg, F32, column[i + 4], k), 4), join);
    for (int i = 0; i < 4; i++) t[i] = shuffle_eight(cg, x[i / 2 * 2], x[i / 2 * 2 + 1], i % 2 ? high : low);
    for (int i = 0; i < 4; i++) cg_store(cg, shuffle_eight(cg, t[i / 2], t[i / 2 + 2], i % 2 ? odd : even), offset(cg, to, i * to_step), 4);
}

// 16 k of 16 columns.  At once they would take twice the registers that there are.
static void turn_block(Cg *cg, const LV column[LANES], LV k, LV to, int64_t to_step) {
    for (int half = 0; half < LANES; half += 8)
        for (int part = 0; part < LANES; part += 4)
            turn_eight(cg, column + half, cg_addi(cg, k, part), offset(cg, to, part * to_step + half), to_step);
}

enum { ASK_AHEAD_K = 64 };     // lines ahead in a column: of 16 streams that are read by parts of lines the processor keeps too few

// 16 k (or pairs) of 16 columns at a time: loaded along k, transposed, stored along the columns; more columns at once would be more
// streams than a processor keeps.
static PackFunction columns_function(Cg *cg, const char *name, DType t, int vecs, int cols, bool pairs, bool asks) {
    CgFunction f;
    begin_pack(cg, &f, name, 4, false);
    LV to = LLVMGetParam(f.fn, 0), from = LLVMGetParam(f.fn, 1), k = LLVMGetParam(f.fn, 2),
       step = LLVMGetParam(f.fn, 3);
    int at_once = pairs ? 2 * LANES : LANES;
    bool blocks = t == F32 && cg->target->vector_bytes < 64;
    LV whole = LLVMBuildAnd(cg->b, k, cg_int(cg, -at_once), ""), left = cg_sub(cg, k, whole);
    for (int part = 0; part < 2 * vecs; part++) {          // of 16 columns whole squares, then the rest under a mask
        CgLoop l;
        int v = part / 2;
        bool rest = part % 2;
        LV mask = !rest ? NULL : pairs ? dot_tail_mask(cg, left) : cg_tail_mask(cg, left);
        cg_for(cg, &l, rest ? whole : cg_int(cg, 0), rest ? k : whole, at_once);
        LV x[LANES], column[LANES], row = cg_bytes(cg, to, cg_muli(cg, l.i, vecs * LANES * (pairs ? 2 : 4)));
        for (int j = 0; j < LANES; j++) {
            int col = v * LANES + j < cols ? v * LANES + j : cols - 1;
            column[j] = cg_at(cg, t, from, cg_muli(cg, step, col));
            if (asks && blocks && !rest) cg_prefetch(cg, cg_at(cg, t, column[j], cg_addi(cg, l.i, ASK_AHEAD_K)), false, 3);
        }
        if (blocks && !rest) turn_block(cg, column, l.i, offset(cg, row, v * LANES), vecs * LANES);
        else {
            for (int j = 0; j < LANES; j++) x[j] = pairs ? dot_load_pairs(cg, column[j], l.i, mask) : cg_load_vec(cg, t, column[j], l.i, mask);
            tile_transpose(cg, x);
            for (int j = 0; j < LANES; j++) cg_store_vec(cg, F32, x[j], row, cg_int(cg, (j * vecs + v) * LANES), NULL);
        }
        cg_end(cg, &l);
    }
    return end_pack(cg, &f);
}

PackFunction pack_columns_function(Cg *cg, const char *name, DType t, int vecs, int cols, bool asks) {
    return columns_function(cg, name, t, vecs, cols, false, asks);
}
PackFunction pack_column_pairs_function(Cg *cg, const char *name, int vecs, int cols, bool asks) {
    return columns_function(cg, name, BF16, vecs, cols, true, asks);
}

void pack_columns(Cg *cg, const PackFunction *f, LV panel, LV source, LV k, LV step) {
    call_pack(cg, f, (LV[]){panel, source, k, step}, 4, NULL);
}

static PackFunction any_strips_function(Cg *cg, const char *name, DType t, int64_t strip_bytes, bool numbered,
                                        bool pairs) {
    CgFunction f;
    RowLoop row;
    CgLoop tile;
    begin_pack(cg, &f, name, 7, numbered);
    TileCut cut = {LLVMGetParam(f.fn, 4), LLVMGetParam(f.fn, 5), LLVMGetParam(f.fn, 6)};
    LV high = cg_tail_mask(cg, cg_addi(cg, cut.base, 1)), low = cg_tail_mask(cg, cut.base);
    begin_rows(cg, &row, f.fn, t, LANES * 4, numbered, pairs);
    LV carry[2] = {row.to, cg_int(cg, 0)};
    cg_loop_begin(cg, &tile, cg_int(cg, 0), cut.tiles, 1, 2, carry);
    LV x = load_rows(cg, &row, tile.carry[1], cg_select(cg, cg_lt(cg, tile.i, cut.extra), high, low));
    cg_store_vec(cg, F32, x, tile.carry[0], cg_int(cg, 0), NULL);
    ask_for_rows(cg, &row, tile.carry[1], 1);
    LV next[2] = {cg_bytes(cg, tile.carry[0], cg_int(cg, strip_bytes)),
                  cg_add(cg, tile.carry[1], tile_height(cg, &cut, tile.i))};
    cg_loop_end(cg, &tile, next);
    end_rows(cg, &row);
    return end_pack(cg, &f);
}

PackFunction strips_function(Cg *cg, const char *name, DType t, int64_t strip_bytes, bool numbered) {
    return any_strips_function(cg, name, t, strip_bytes, numbered, false);
}
PackFunction pair_strips_function(Cg *cg, const char *name, int64_t strip_bytes, bool numbered) {
    return any_strips_function(cg, name, BF16, strip_bytes, numbered, true);
}

void pack_strips(Cg *cg, const PackFunction *f, LV strips, LV source, LV n, LV step, const TileCut *cut,
                 const RowNumbers *rows) {
    call_pack(cg, f, (LV[]){strips, source, n, step, cut->tiles, cut->base, cut->extra}, 7, rows);
}

// 16 elements of a row, or pairs, from element `at`.
static void copy_vector(Cg *cg, const RowLoop *r, bool pairs, LV at, LV mask) {
    const SourceRow *row = &r->row[0];
    if (!pairs) {
        cg_store_vec(cg, F32, load_rows(cg, r, at, mask), r->to, at, mask);
        return;
    }
    LV x = dot_load_pairs(cg, row->at, at, mask);
    if (row->exists) x = cg_select(cg, row->exists, x, cg_vec(cg, 0));
    cg_store_vec(cg, F32, x, cg_at(cg, BF16, r->to, at), cg_int(cg, 0), NULL);
}

static PackFunction copy_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step,
                                  bool numbered, bool pairs, bool asks) {
    CgFunction f;
    RowLoop row;
    CgLoop col;
    CgIf rest;
    int at_once = pairs ? 2 * LANES : LANES;
    begin_pack(cg, &f, name, 5, numbered);
    LV all = LLVMGetParam(f.fn, 4), whole = LLVMBuildAnd(cg->b, all, cg_int(cg, -at_once), "");
    LV left = cg_sub(cg, all, whole), mask = pairs ? dot_tail_mask(cg, left) : cg_tail_mask(cg, left);
    begin_rows(cg, &row, f.fn, t, to_step * 4, numbered, false);
    cg_for(cg, &col, cg_int(cg, 0), whole, at_once);
    copy_vector(cg, &row, pairs, col.i, NULL);
    if (asks) ask_for_rows(cg, &row, col.i, at_once);
    cg_end(cg, &col);
    cg_if(cg, &rest, cg_lt(cg, whole, all));
    copy_vector(cg, &row, pairs, whole, mask);
    cg_endif(cg, &rest);
    end_rows(cg, &row);
    PackFunction p = end_pack(cg, &f);
    p.cols = cols;
    return p;
}

PackFunction copy_rows_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step) {
    return copy_function(cg, name, t, cols, to_step, false, false, true);
}
PackFunction copy_numbered_rows_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step) {
    return copy_function(cg, name, t, cols, to_step, true, false, true);
}
PackFunction copy_pairs_function(Cg *cg, const char *name, int64_t cols, int64_t to_step, bool numbered) {
    return copy_function(cg, name, BF16, cols, to_step, numbered, true, true);
}
PackFunction copy_pieces_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step, bool numbered) {
    return copy_function(cg, name, t, cols, to_step, numbered, false, false);
}

void copy_columns(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step, LV cols,
                  const RowNumbers *rows) {
    call_pack(cg, f, (LV[]){to, source, n, step, cols}, 5, rows);
}
void copy_rows(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step) {
    copy_columns(cg, f, to, source, n, step, cg_int(cg, f->cols), NULL);
}
void copy_numbered_rows(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step,
                        const RowNumbers *rows) {
    copy_columns(cg, f, to, source, n, step, cg_int(cg, f->cols), rows);
}
