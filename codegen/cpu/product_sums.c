// Sums over rows out of tiles: gradients of matrices, leaf by leaf.
#include <assert.h>
#include "codegen/cpu/dot.h"
#include "codegen/cpu/product.h"

static const double UNEVEN = 1.25; // rows of a matrix that has more than others, over the mean

// At most c.m x c.n elements of a task.
static SumCut sums_cut(SumCut c, int64_t M, int64_t N, int64_t matrices) {
    for (;;) {
        c.runs = (M + c.m - 1) / c.m;
        c.groups = (N + c.n - 1) / c.n;
        if (matrices * c.runs * c.groups >= 8 || (c.m <= 24 && c.n <= 32)) break;
        if (c.n > c.m && c.n > 32)
            c.n /= 2; // few matrices: smaller pieces, so that there are 8 tasks
        else
            c.m /= 2;
    }
    c.m = (M + c.runs - 1) / c.runs;
    if (c.runs > 1) c.m = up(c.m, LANES);
    c.runs = (M + c.m - 1) / c.m;
    return c;
}

// Elements from a row of a to the next: rows an even number of lines apart would share cache sets.
static int64_t a_step_of(const Sums *s) { return ((s->cut.m + LANES - 1) / LANES | 1) * LANES; }

// Rows of a and b that stay in the second cache, and in `room` bytes.
static int64_t packed_rows(const Sums *s, const KernelNode *k, bool dot, int panel, int64_t room) {
    int64_t near = product_block_bytes(k), row = (a_step_of(s) + up(s->cut.n, panel)) * (dot ? 2 : 4);
    if (room > near) room = near;
    return room / row < LANES ? LANES : room / row / LANES * LANES;
}

// May leaves go in fours, because all rows lie packed at once, or, as far as is known, mostly do?
static bool goes_in_fours(const Sums *s, const KernelNode *k, double rows) {
    bool dot = dot_used(k->target, s->a_type, s->b_type), fours = s->all_there && s->leaves % 4 == 0 && !dot;
    double most = s->leaf_rows ? (double)(s->leaves * s->leaf_rows) : UNEVEN * rows;
    return fours && most <= (double)packed_rows(s, k, false, TILE_MAX_VECS * LANES, INT64_MAX);
}

void sums_choose(Sums *s, const KernelNode *k, int64_t matrices, double rows, KernelDesc *d, const char *what) {
    if (!s->cut.m) {                                       // of few rows there is room for more columns
        s->cut = sums_cut((SumCut){.m = 256, .n = 512}, s->M, s->N, matrices);
        if (!s->leaf_rows || !goes_in_fours(s, k, rows)) s->cut = sums_cut((SumCut){.m = 192, .n = 256}, s->M, s->N, matrices);
    }
    SumsLoad load = {s->a_type, s->b_type, s->M, s->N, s->cut.m, s->cut.n, s->leaves, goes_in_fours(s, k, rows),
                     (double)matrices, rows, (double)(matrices * s->cut.runs * s->cut.groups)};
    s->size = choose_sums(k, &load, d, what);
}

// Scratch:  stacks of tiles, one level for each power of two of leaves | a stack for all | table of leaves | columns of a, a panel of its own width | panels of b
void sums_begin(Cg *cg, Sums *s) {
    SumsTile size = s->size;
    int levels = 1;
    while ((1 << levels) <= s->leaves) levels++;
    s->vecs = size.vecs;
    s->panel = s->vecs * LANES;
    s->tiles = (s->cut.m + size.rows - 1) / size.rows;
    s->panels = (s->cut.n + s->panel - 1) / s->panel;
    s->slot = (int64_t)size.rows * s->panel;
    s->level = s->slot * s->tiles * s->panels;
    bool known = size.fours && s->leaf_rows;
    s->at_near = known ? 0 : levels * s->level * 4;
    s->at_table = s->at_near + levels * s->slot * 4;
    s->at_a = up(s->at_table + s->leaves * LEAF_FIELDS * 4, 64);
    s->dot = dot_used(cg->target, s->a_type, s->b_type);
    s->a_step = a_step_of(s);
    s->rows = packed_rows(s, cg->k, s->dot, s->panel, RT_SCRATCH_BYTES - s->at_a - 65536);
    assert(!known || s->leaves * s->leaf_rows <= s->rows);
    s->panel_bytes = steps_of(s->dot, s->rows) * s->panel * 4 + 64;
    s->at_b = s->at_a + steps_of(s->dot, s->rows) * s->a_step * 4;
    int64_t buffer = s->at_b + s->panels * s->panel_bytes - s->at_a;
    s->buffer = !s->dot && !known && s->at_a + 2 * buffer <= RT_SCRATCH_BYTES ? up(buffer, 64) : 0;
    assert(s->at_a + buffer <= RT_SCRATCH_BYTES);
    TileSpec spec = {.vecs = s->vecs,
                     .cols = s->panel,
                     .a_row = 1,
                     .a_k = s->a_step,
                     .c_row = s->N,
                     .b_type = F32,
                     .c_type = s->y_type,
                     .dot = s->dot,
                     .leaves = true,
                     .n_leaves = s->leaves,
                     .leaf_k = (int)s->leaf_rows,
                     .held_row = s->panel,
                     .merge_step = s->level};
    unsigned heights = tile_heights(s->cut.m, size.rows) | tile_heights(s->M % s->cut.m, size.rows);
    for (int part = 0; part < 2; part++) {
        spec.cols = part ? (int)(s->N % s->panel) : s->panel;
        if (part ? !spec.cols : s->N < s->panel) continue;
        spec.fours = 0;
        if (!known) tile_functions(cg, &s->tile[part], &spec, part ? "sum_last" : "sum", heights);
        spec.fours = size.fours;
        if (spec.fours) tile_functions(cg, &s->fours[part], &spec, part ? "fours_last" : "fours", heights);
    }
    if (s->dot) {
        s->pack = pack_row_pairs_function(cg, "pack", s->vecs, s->panel_bytes, s->numbered[1]);
        s->pack_a = pack_row_pairs_function(cg, "pack_a", (int)(s->a_step / LANES), 0, s->numbered[0]);
        return;
    }
    s->pack = pack_rows_function(cg, "pack", s->b_type, s->vecs, s->panel_bytes, s->numbered[1]);
    s->pack_a = s->numbered[0] ? copy_numbered_rows_function(cg, "copy_a", s->a_type, s->cut.m, s->a_step)
                               : copy_rows_function(cg, "copy_a", s->a_type, s->cut.m, s->a_step);
    if (!s->buffer) return;
    s->piece = pack_pieces_function(cg, "piece", s->b_type, s->vecs, s->panel_bytes, s->numbered[1], false);
    s->piece_a = copy_pieces_function(cg, "piece_a", s->a_type, s->cut.m, s->a_step, s->numbered[0]);
}

// What a task computes: m rows of the result from m0 on, in tiles, panels p0 .. p1-1.
typedef struct {
    LV m0, m, p0, p1, panels;
    TileCut cut;
} SumPart;

// Where the task's tile (t, p) lies in a level of the stack.
static LV slot_at(Cg *cg, const Sums *s, LV level, LV t, LV p) {
    LV n = cg_add(cg, cg_muli(cg, t, s->panels), p);
    LV at = cg_add(cg, cg_muli(cg, level, s->level), cg_muli(cg, n, s->slot));
    return cg_at(cg, F32, cg->scratch, at);
}
// buffer: bytes to that of a chunk.
static LV a_at(Cg *cg, const Sums *s, LV buffer, LV row, LV column) {
    return cg_at(cg, F32, cg_bytes(cg, bytes_at(cg, cg->scratch, s->at_a), buffer), cg_add(cg, cg_muli(cg, row, s->a_step), column));
}
static LV sum_panel_at(Cg *cg, const Sums *s, LV buffer, LV p) {
    return cg_bytes(cg, bytes_at(cg, cg->scratch, s->at_b), cg_add(cg, buffer, cg_muli(cg, p, s->panel_bytes)));
}

static LV bits_set(Cg *cg, LV x) { return cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &x, 1); }
static LV trailing_zeros(Cg *cg, LV x) { // x is not 0
    LV args[2] = {x, cg_bool(cg, true)};
    return cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, args, 2);
}

// Rows of a (0) or b (1) that a part reads, columns col .. end-1.
typedef struct { LV from, step, col, end; RowNumbers rows; } SumRows;

static SumRows sum_rows(Cg *cg, const Sums *s, const SumsRun *u, const SumPart *part, int operand) {
    SumRows r = {.from = u->a, .step = cg_int(cg, s->a_given ? s->a_given : s->M), .col = part->m0, .rows = u->rows[operand]};
    r.end = cg_add(cg, part->m0, part->m);
    if (!operand) return r;
    r.from = u->b;
    r.step = cg_int(cg, s->N);
    r.col = cg_muli(cg, part->p0, s->panel);
    r.end = cg_min(cg, cg_muli(cg, part->p1, s->panel), cg_int(cg, s->N));
    return r;
}

// Packs n rows, from row `first` of all, behind `at` rows of a buffer.
static void pack_operand(Cg *cg, const Sums *s, const SumRows *r, int operand, const PackFunction *f, LV buffer, LV at, LV first, LV n) {
    DType t = operand ? s->b_type : s->a_type;
    RowNumbers rows = r->rows;
    LV row = first, zero = cg_int(cg, 0);
    if (s->numbered[operand]) {
        rows.index = cg_at(cg, I32, rows.index, first);
        row = zero;
    }
    LV from = cg_at(cg, t, r->from, cg_add(cg, cg_mul(cg, row, r->step), r->col)), cols = cg_sub(cg, r->end, r->col);
    LV to = operand ? cg_at(cg, F32, sum_panel_at(cg, s, buffer, zero), cg_muli(cg, at, s->panel)) : a_at(cg, s, buffer, at, zero);
    (operand || s->dot ? pack_rows : copy_columns)(cg, f, to, from, n, r->step, cols, s->numbered[operand] ? &rows : NULL);
}

static void pack_sums(Cg *cg, const Sums *s, const SumsRun *u, const SumPart *part, LV buffer, LV first, LV n) {
    for (int i = 1; i >= 0; i--) {
        SumRows r = sum_rows(cg, s, u, part, i);
        pack_operand(cg, s, &r, i, i ? &s->pack : &s->pack_a, buffer, cg_int(cg, 0), first, n);
    }
}

// Part i of n of the lines of rows lo .. hi-1 is asked for.
static void ask_for_sums(Cg *cg, const Sums *s, const SumsRun *u, const SumPart *part, LV lo, LV hi, LV i, LV n) {
    for (int operand = 0; operand < 2; operand++) {
        CgLoop row, at;
        DType t = operand ? s->b_type : s->a_type;
        int line = 64 / (int)dtype_bytes(t);
        SumRows r = sum_rows(cg, s, u, part, operand);
        LV lines = cg_div(cg, cg_addi(cg, cg_sub(cg, r.end, r.col), line - 1), cg_int(cg, line));
        LV l0 = cg_div(cg, cg_mul(cg, lines, i), n), l1 = cg_div(cg, cg_mul(cg, lines, cg_addi(cg, i, 1)), n);
        cg_for(cg, &row, lo, hi, 1);
        LV number = row.i;
        if (s->numbered[operand]) number = cg_i64(cg, cg_load1(cg, I32, r.rows.index, row.i));
        LV from = cg_at(cg, t, r.from, cg_add(cg, cg_mul(cg, number, r.step), r.col));
        cg_for(cg, &at, l0, l1, 1);
        cg_prefetch(cg, cg_at(cg, t, from, cg_muli(cg, at.i, line)), false, 2);
        cg_end(cg, &at);
        cg_end(cg, &row);
    }
}

static void begin_tiles(Cg *cg, const SumPart *part, CgLoop *t, CgLoop *p) {
    cg_for(cg, t, cg_int(cg, 0), part->cut.tiles, 1);
    cg_for(cg, p, cg_int(cg, 0), part->panels, 1);
}

// The rows of the part's tiles, one by one: where each lies at the bottom of the stack, and in the matrix.
typedef struct {
    CgLoop t, p, row;
    LV slot, at[TILE_MAX_VECS], mask[TILE_MAX_VECS];
} TileRows;

static void begin_tile_rows(Cg *cg, const Sums *s, const SumPart *part, TileRows *r) {
    begin_tiles(cg, part, &r->t, &r->p);
    LV col = cg_muli(cg, cg_add(cg, part->p0, r->p.i), s->panel);
    LV first = cg_add(cg, part->m0, tile_first(cg, &part->cut, r->t.i));
    LV slot = slot_at(cg, s, cg_int(cg, 0), r->t.i, r->p.i);
    cg_for(cg, &r->row, cg_int(cg, 0), tile_height(cg, &part->cut, r->t.i), 1);
    r->slot = cg_at(cg, F32, slot, cg_muli(cg, r->row.i, s->panel));
    LV at = cg_add(cg, cg_muli(cg, cg_add(cg, first, r->row.i), s->N), col);
    for (int v = 0; v < s->vecs; v++) {
        r->at[v] = cg_addi(cg, at, v * LANES);
        r->mask[v] = s->N % s->panel ? cg_tail_mask(cg, cg_sub(cg, cg_int(cg, s->N - v * LANES), col)) : NULL;
    }
}

static void end_tile_rows(Cg *cg, TileRows *r) {
    cg_end(cg, &r->row);
    cg_end(cg, &r->p);
    cg_end(cg, &r->t);
}

static LV level_at(Cg *cg, const SumLevels *l, LV y, LV level) {
    LV above = cg_bytes(cg, l->above, cg_muli(cg, cg_addi(cg, level, -1), l->step));
    return cg_select(cg, cg_lt(cg, cg_int(cg, 0), level), above, y);
}

// The chains of the first leaf go on where an earlier call left them.
static void load_sums(Cg *cg, const Sums *s, const SumPart *part, LV y, const SumLevels *l) {
    CgIf f;
    TileRows r;
    cg_if(cg, &f, l->goes_on);
    LV from = level_at(cg, l, y, l->top);
    begin_tile_rows(cg, s, part, &r);
    for (int v = 0; v < s->vecs; v++)
        cg_store_vec(cg, F32, cg_load_vec(cg, F32, from, r.at[v], r.mask[v]), r.slot, cg_int(cg, v * LANES),
                     NULL);
    end_tile_rows(cg, &r);
    cg_endif(cg, &f);
}

// The finished tiles, at the bottom of the stack, go to a level.
static void store_sums(Cg *cg, const Sums *s, const SumPart *part, LV y, const SumLevels *l) {
    TileRows r;
    CgLoop merge;
    LV to = level_at(cg, l, y, cg_sub(cg, l->top, l->merges));
    begin_tile_rows(cg, s, part, &r);
    LV x[TILE_MAX_VECS];
    for (int v = 0; v < s->vecs; v++) x[v] = cg_load_vec(cg, F32, r.slot, cg_int(cg, v * LANES), NULL);
    cg_loop_begin(cg, &merge, cg_int(cg, 0), l->merges, 1, s->vecs, x);
    LV left = level_at(cg, l, y, cg_sub(cg, cg_addi(cg, l->top, -1), merge.i));
    for (int v = 0; v < s->vecs; v++)
        x[v] = cg_fadd(cg, cg_load_vec(cg, F32, left, r.at[v], r.mask[v]), merge.carry[v]);
    cg_loop_end(cg, &merge, x);
    for (int v = 0; v < s->vecs; v++) cg_store_vec(cg, s->y_type, merge.carry[v], to, r.at[v], r.mask[v]);
    end_tile_rows(cg, &r);
}

// Rows lo .. hi-1 of all, packed at once: those of leaves l0 .. end-1, of which leaves below l1 end here.  Rows hi .. next-1
// are those of the next chunk.
typedef struct { LV lo, hi, l0, l1, end, next, buffer, all; } Chunk;      // all: i1, there is no other chunk

// What each leaf of the chunk adds to the tree.
static void fill_table(Cg *cg, const Sums *s, const SumsRun *u, const Chunk *c, LV n_leaves, LV table) {
    CgLoop leaf;
    LV begin, end, zero = cg_int(cg, 0);
    cg_for(cg, &leaf, c->l0, c->end, 1);
    LV top = bits_set(cg, leaf.i), carried = trailing_zeros(cg, cg_addi(cg, leaf.i, 1));
    u->leaf(u->self, cg, leaf.i, &begin, &end);
    LV first = cg_max(cg, begin, c->lo), goes_on = cg_lt(cg, begin, c->lo);
    LV merges = cg_select(cg, cg_eq(cg, leaf.i, cg_addi(cg, n_leaves, -1)), top, carried);
    if (u->levels) {
        LV before = LLVMBuildAnd(cg->b, u->levels->goes_on, cg_eq(cg, leaf.i, zero), "");
        goes_on = LLVMBuildOr(cg->b, goes_on, before, "");
    }
    LV ended = cg_lt(cg, leaf.i, c->l1), kept = bits_set(cg, c->l0);
    merges = cg_select(cg, ended, merges, zero);
    // What is left when the chunk ends: the sum of all, or sums of as many leaves as the bits of l1 say and the begin of the next.
    LV after = cg_addi(cg, leaf.i, 1), low = LLVMBuildAnd(cg->b, after, LLVMBuildNeg(cg->b, after, ""), "");
    LV all = cg_select(cg, cg_eq(cg, c->l1, n_leaves), n_leaves, LLVMBuildAnd(cg->b, c->l1, LLVMBuildNeg(cg->b, low, ""), ""));
    LV near = LLVMBuildAnd(cg->b, ended, LLVMBuildNot(cg->b, cg_eq(cg, all, after), ""), "");
    near = LLVMBuildAnd(cg->b, near, LLVMBuildNot(cg->b, cg_lt(cg, cg_sub(cg, top, merges), kept), ""), "");
    LV field[LEAF_FIELDS] = {[LEAF_K] = steps(cg, s->dot, cg_sub(cg, cg_min(cg, end, c->hi), first)),
                             [LEAF_GOES_ON] = LLVMBuildZExt(cg->b, goes_on, cg->i64, ""),
                             [LEAF_TOP] = top,
                             [LEAF_MERGES] = merges,
                             [LEAF_KEPT] = kept,
                             [LEAF_NEAR] = LLVMBuildZExt(cg->b, near, cg->i64, "")};
    LV entry = leaf_table_at(cg, table, cg_sub(cg, leaf.i, c->l0));
    for (int i = 0; i < LEAF_FIELDS; i++)
        cg_store1(cg, I32, LLVMBuildTrunc(cg->b, field[i], cg->i32, ""), entry, cg_int(cg, i));
    cg_end(cg, &leaf);
}

static void sum_tile(Cg *cg, const Sums *s, int part, LV height, const TileCall *call, LV all) {
    bool varied = s->size.fours && !s->leaf_rows;
    CgIf fours;
    if (varied) cg_if(cg, &fours, all);
    if (s->size.fours) tile_call(cg, &s->fours[part], height, call);
    if (varied) cg_else(cg, &fours);
    if (!s->size.fours || varied) tile_call(cg, &s->tile[part], height, call);
    if (varied) cg_endif(cg, &fours);
}

// The last leaf's sums go to y at once, unless there are levels.
static void sum_chunk(Cg *cg, const Sums *s, const SumsRun *u, const SumPart *part, const Chunk *c, LV n_leaves) {
    CgLoop t, p;
    CgIf width;
    LV zero = cg_int(cg, 0), table = bytes_at(cg, cg->scratch, s->at_table), null = LLVMConstNull(cg->ptr), lo = NULL, hi = NULL;
    fill_table(cg, s, u, c, n_leaves, table);
    cg_for(cg, &t, zero, part->cut.tiles, 1);
    if (s->buffer) { // rows of the next chunk that are packed behind this tile row
        LV rows = cg_sub(cg, c->next, c->hi);
        lo = cg_add(cg, c->hi, cg_div(cg, cg_mul(cg, rows, t.i), part->cut.tiles));
        hi = cg_add(cg, c->hi, cg_div(cg, cg_mul(cg, rows, cg_addi(cg, t.i, 1)), part->cut.tiles));
    }
    cg_for(cg, &p, zero, part->panels, 1);
    if (s->buffer) ask_for_sums(cg, s, u, part, lo, hi, p.i, part->panels);
    LV height = tile_height(cg, &part->cut, t.i), first = tile_first(cg, &part->cut, t.i);
    LV panel = cg_add(cg, part->p0, p.i), row = cg_add(cg, part->m0, first);
    LV y = cg_at(cg, s->y_type, u->y, cg_add(cg, cg_muli(cg, row, s->N), cg_muli(cg, panel, s->panel)));
    TileCall call = {.a = a_at(cg, s, c->buffer, zero, first),
                     .b = sum_panel_at(cg, s, c->buffer, p.i),
                     .k = cg_sub(cg, c->end, c->l0),
                     .b_k = cg_int(cg, s->panel),
                     .init = slot_at(cg, s, zero, t.i, p.i),
                     .leaves = table,
                     .near = bytes_at(cg, cg->scratch, s->at_near),
                     .c = u->levels ? null : cg_select(cg, cg_eq(cg, c->l1, n_leaves), y, null)};
    bool whole = s->N >= s->panel, tail = s->N % s->panel;
    if (whole && tail) cg_if(cg, &width, cg_lt(cg, panel, cg_int(cg, s->N / s->panel)));
    if (whole) sum_tile(cg, s, 0, height, &call, c->all);
    if (whole && tail) cg_else(cg, &width);
    if (tail) sum_tile(cg, s, 1, height, &call, c->all);
    if (whole && tail) cg_endif(cg, &width);
    cg_end(cg, &p);
    if (s->buffer) {
        LV other = cg_sub(cg, cg_int(cg, s->buffer), c->buffer), n = cg_sub(cg, hi, lo), at = cg_sub(cg, lo, c->hi);
        for (int i = 0; i < 2; i++) {
            SumRows r = sum_rows(cg, s, u, part, i);
            pack_operand(cg, s, &r, i, i ? &s->piece : &s->piece_a, other, at, lo, n);
        }
    }
    cg_end(cg, &t);
}

// Leaves that end at row hi or before.
static LV ended_leaves(Cg *cg, const SumsRun *u, LV n_leaves, LV hi) {
    CgLoop leaf;
    LV begin, end, zero = cg_int(cg, 0);
    cg_loop_begin(cg, &leaf, zero, n_leaves, 1, 1, &zero);
    u->leaf(u->self, cg, leaf.i, &begin, &end);
    LV n = cg_add(cg, leaf.carry[0], cg_select(cg, cg_lt(cg, hi, end), zero, cg_int(cg, 1)));
    cg_loop_end(cg, &leaf, &n);
    return leaf.carry[0];
}

// Chunks of rows: of all leaves, one behind the other, or, where rows make pairs, of one leaf after the other.  Leaves
// without rows count as +0.
void sums_run(Cg *cg, Sums *s, const SumsRun *u) {
    LV zero = cg_int(cg, 0), one = cg_int(cg, 1), n_leaves = u->n_leaves ? u->n_leaves : cg_int(cg, s->leaves);
    SumPart part = {.m0 = cg_muli(cg, u->run, s->cut.m), .p0 = cg_muli(cg, u->group, s->cut.n / s->panel)};
    part.m = cg_min(cg, cg_int(cg, s->cut.m), cg_sub(cg, cg_int(cg, s->M), part.m0));
    part.cut = tile_cut(cg, part.m, s->size.rows);
    part.p1 = cg_min(cg, cg_addi(cg, part.p0, s->panels), cg_int(cg, panels_of(s->N, s->vecs)));
    part.panels = cg_sub(cg, part.p1, part.p0);
    if (u->levels) load_sums(cg, s, &part, u->y, u->levels);
    CgLoop leaf, chunk;
    LV begin, end, unused;
    if (s->dot) {
        cg_for(cg, &leaf, zero, n_leaves, 1);
        u->leaf(u->self, cg, leaf.i, &begin, &end);
    } else {
        u->leaf(u->self, cg, zero, &begin, &unused);
        u->leaf(u->self, cg, cg_addi(cg, n_leaves, -1), &unused, &end);
    }
    LV most = cg_int(cg, s->rows);
    if (u->leaf_rows) { // whole leaves, if there is room for some
        LV whole = cg_div(cg, most, cg_max(cg, u->leaf_rows, one));
        most = cg_select(cg, cg_lt(cg, zero, whole), cg_max(cg, cg_mul(cg, whole, u->leaf_rows), one), most);
    }
    LV chunks = cg_div(cg, cg_add(cg, cg_sub(cg, end, begin), cg_addi(cg, most, -1)), most);
    cg_loop_begin(cg, &chunk, zero, cg_max(cg, chunks, one), 1, 1, &zero);
    Chunk c = {.lo = cg_add(cg, begin, cg_mul(cg, chunk.i, most)), .l0 = chunk.carry[0]};
    c.hi = cg_min(cg, cg_add(cg, c.lo, most), end);
    c.next = cg_min(cg, cg_add(cg, c.hi, most), end);
    c.all = cg_lt(cg, chunks, cg_int(cg, 2));
    c.buffer = s->buffer ? cg_muli(cg, cg_rem(cg, chunk.i, cg_int(cg, 2)), s->buffer) : zero;
    if (s->dot) {
        c.l0 = leaf.i;
        c.end = cg_addi(cg, leaf.i, 1);
        c.l1 = cg_select(cg, cg_eq(cg, c.hi, end), c.end, c.l0);
    } else {
        c.l1 = ended_leaves(cg, u, n_leaves, c.hi);
        u->leaf(u->self, cg, cg_min(cg, c.l1, cg_addi(cg, n_leaves, -1)), &begin, &unused);
        LV begun = LLVMBuildAnd(cg->b, cg_lt(cg, c.l1, n_leaves), cg_lt(cg, begin, c.hi), "");
        c.end = cg_add(cg, c.l1, LLVMBuildZExt(cg->b, begun, cg->i64, ""));
    }
    CgIf packs;
    if (s->buffer) cg_if(cg, &packs, cg_eq(cg, chunk.i, zero));
    pack_sums(cg, s, u, &part, c.buffer, c.lo, cg_sub(cg, c.hi, c.lo));
    if (s->buffer) cg_endif(cg, &packs);
    sum_chunk(cg, s, u, &part, &c, n_leaves);
    cg_loop_end(cg, &chunk, &c.l1);
    if (s->dot) cg_end(cg, &leaf);
    if (u->levels) store_sums(cg, s, &part, u->y, u->levels);
}
