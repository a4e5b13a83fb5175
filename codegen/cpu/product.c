// Products of matrices out of tiles.
#include "codegen/cpu/product.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include "codegen/cpu/dot.h"

enum {
    NEAR_BYTES = 256 << 10,   // of B as it lies, that all tiles of a short run pass before the next
    DIRECT_ROWS = 112,        // a run so short reads B as it lies
    PACKED_BYTES = 512 << 10, // of B in scratch: half of a small second-level cache
    LONG_K = 8192,            // the longest chain that is never cut
    K_BLOCK = 2048,           // at most, of chains that continue from y, so that a panel stays near ..
    NEAR_PANELS = 16,         // .. and so many of them: each block of panels reads the rows of A again
    A_BYTES = 1536 << 10,     // at most for the copied rows of a tile
    SUM_ROWS = 256,           // rows packed at once by sums over rows
    STRIP = LANES             // columns of a strip
};

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// Elements of 4 bytes that k of A or B take up in a tile: f32, or pairs of bf16.
static int64_t steps_of(bool dot, int64_t k) { return dot ? (k + 1) / 2 : k; }
static LV steps(Cg *cg, bool dot, LV k) {
    return dot ? LLVMBuildLShr(cg->b, cg_addi(cg, k, 1), cg_int(cg, 1), "") : k;
}
static LV bytes_at(Cg *cg, LV base, int64_t n) { return n ? cg_bytes(cg, base, cg_int(cg, n)) : base; }

// Narrow matrices get panels of one vector.
static int panel_vecs(const CpuTarget *t, int64_t N) {
    int vecs = tile_size(t).vecs;
    return N <= LANES ? 1 : vecs;
}

int rows_panels(const CpuTarget *t, int64_t N) {
    int panel = panel_vecs(t, N) * LANES;
    return (int)((N + panel - 1) / panel);
}

static bool is_laid(const Rows *r) { return r->layout != LAYOUT_ROWS; }

// The halves of a pair need two vectors more.
int rows_tile(const CpuTarget *t, const Rows *r) {
    return tile_size(t).rows - (layout_is_pairs(r->layout) && !dot_used(t, r->a_type, r->b_type));
}

int64_t rows_matrix(const Rows *r) {
    return r->tb ? layout_elements(r->layout, r->N, r->K) : layout_elements(r->layout, r->K, r->N);
}

// ---- rows times a matrix ------------------------------------------------------------------------

static bool cuts_k(const Rows *r) { return r->K > K_BLOCK && r->y_type == F32 && !is_laid(r); }
static int64_t k_block_of(const Rows *r) {
    if (!cuts_k(r)) return r->K;
    int64_t cols = r->N < NEAR_PANELS * 2 * LANES ? up(r->N, LANES) : NEAR_PANELS * 2 * LANES;
    int64_t k = PACKED_BYTES / (cols * 4) / LANES * LANES;
    return k < K_BLOCK ? k : K_BLOCK;
}
// Rows of A that are a power of two apart meet in the same cache sets: they are copied, too.
static bool copies_a(const Rows *r) {
    int64_t row = (r->a_given ? r->a_given : r->K) * 4;
    return r->ta || r->numbered || r->a_type != F32 ||
           (row % 4096 == 0 && r->N >= 128 && r->max_rows > TILE_MAX_ROWS);
}

bool rows_possible(const Rows *r) {
    if (r->K > LONG_K && r->y_type != F32) return false; // a cut chain is continued from y
    return !copies_a(r) || TILE_MAX_ROWS * (up(r->K, LANES) + LANES) * 4 <= A_BYTES;
}

int rows_groups(int64_t runs, int64_t rows, int64_t K, int64_t N, bool rows_vary) {
    int64_t panels = (N + 31) / 32, want = (32 + runs - 1) / runs;
    double work = 2.0 * (double)rows * (double)K * (double)N; // of a run
    int64_t most = (int64_t)(work / 2e6);                     // a task has 2 Mflop ..
    int64_t few = K * N * 4 / (256 << 10);                    // .. or, with few rows, 256 KiB of the matrix
    if (rows_vary || rows <= 4 * TILE_MAX_ROWS) most = most > few ? most : few;
    if (want > most) want = most;
    if (want > panels) want = panels;
    return want < 1 ? 1 : (int)want;
}

// first[i] .. first[i + 1] - 1: the panels of 32 columns of piece i, a 16th of what is left each time.
enum { FEW_ROWS = 16, MAX_PIECES = 96, PIECE_BYTES = 64 << 10 };
typedef struct { int n, first[MAX_PIECES + 1]; } Pieces;

static Pieces pieces_of(const Rows *r) {
    int panels = (int)((r->N + 31) / 32);
    int64_t panel = r->K * 32 * dtype_bytes(r->b_type), least = panel ? PIECE_BYTES / panel : panels;
    if (least < 1) least = 1;
    Pieces p = {0};
    for (int at = 0; at < panels && p.n < MAX_PIECES; p.first[++p.n] = at) {
        int64_t left = panels - at, piece = (left + 15) / 16 > least ? (left + 15) / 16 : least;
        at = piece < left && p.n < MAX_PIECES - 1 ? at + (int)piece : panels;
    }
    return p;
}

int rows_parts(const Rows *r, int64_t groups) { return (int)((pieces_of(r).n + groups - 1) / groups); }

static LV piece_table(Cg *cg, const Pieces *p, int n, int scale, int most) {
    LV *first = malloc((size_t)(n + 1) * sizeof *first);
    assert(first);
    for (int i = 0; i <= n; i++) {
        int at = p->first[i < p->n ? i : p->n] * scale;
        first[i] = cg_int32(cg, at < most ? at : most);
    }
    LV init = LLVMConstArray2(cg->i32, first, (uint64_t)n + 1), table = LLVMAddGlobal(cg->module, LLVMTypeOf(init), "pieces");
    free(first);
    LLVMSetInitializer(table, init);
    LLVMSetGlobalConstant(table, true);
    LLVMSetLinkage(table, LLVMInternalLinkage);
    return table;
}

// u has the group's panels; rows: of the task, whoever multiplies them.
void rows_part(Cg *cg, const Rows *r, RowsRun *u, LV rows, LV group, LV part, int groups, int parts) {
    Pieces p = pieces_of(r);
    LV table = piece_table(cg, &p, groups * parts, PANEL_COLS / r->panel, r->n_panels);
    LV piece = cg_add(cg, cg_muli(cg, group, parts), part), few = cg_lt(cg, rows, cg_int(cg, FEW_ROWS + 1));
    LV lo = cg_i64(cg, cg_load1(cg, I32, table, piece)), hi = cg_i64(cg, cg_load1(cg, I32, table, cg_addi(cg, piece, 1)));
    LV all = cg_select(cg, cg_eq(cg, part, cg_int(cg, 0)), u->hi, u->lo);
    u->hi = cg_select(cg, few, hi, all);
    u->lo = cg_select(cg, few, lo, u->lo);
}

static void emit_packing(Cg *cg, Rows *r) {
    if (r->packed && !r->tb && !is_laid(r))
        r->pack = r->dot ? pack_row_pairs_function(cg, "pack", r->vecs, r->panel_bytes, false)
                         : pack_rows_function(cg, "pack", r->b_type, r->vecs, r->panel_bytes, false);
    for (int tail = 0; tail < 2; tail++) {
        int cols = tail ? r->tail : r->panel;
        const char *name = tail ? "pack_last" : "pack";
        if (!r->packed || !r->tb || is_laid(r) || !(tail ? r->tail : r->n_whole)) continue;
        *(tail ? &r->pack_last : &r->pack) = r->dot
                                                 ? pack_column_pairs_function(cg, name, r->vecs, cols)
                                                 : pack_columns_function(cg, name, r->b_type, r->vecs, cols);
    }
    if (!r->copy_a) return;
    if (r->ta)
        r->copy = r->dot ? pair_strips_function(cg, "strip", 0, false)
                         : strips_function(cg, "strip", r->a_type, 0, false);
    else if (r->dot)
        r->copy = copy_pairs_function(cg, "copy_rows", r->K, r->a_row, r->numbered);
    else
        r->copy = r->numbered ? copy_numbered_rows_function(cg, "copy_rows", r->a_type, r->K, r->a_row)
                              : copy_rows_function(cg, "copy_rows", r->a_type, r->K, r->a_row);
}

void rows_begin(Cg *cg, Rows *r) {
    TileSize size = {rows_tile(cg->target, r), panel_vecs(cg->target, r->N)};
    r->vecs = panel_vecs(cg->target, r->N);
    r->panel = r->vecs * LANES;
    r->n_panels = rows_panels(cg->target, r->N);
    r->n_whole = (int)(r->N / r->panel);
    r->tail = (int)(r->N % r->panel);
    r->k_block = k_block_of(r);
    r->dot = dot_used(cg->target, r->a_type, r->b_type);
    int64_t K = steps_of(r->dot, r->K);
    r->panel_bytes = is_laid(r) ? rows_matrix(r) * dtype_bytes(r->b_type) * r->panel / up(r->N, PANEL_COLS)
                                // panels side by side shall not share cache sets
                                : up(steps_of(r->dot, r->k_block), LANES) * r->panel * 4 + 64;
    r->block = (int)(PACKED_BYTES / r->panel_bytes);
    if (r->block > r->n_panels) r->block = r->n_panels;
    if (r->block < 1) r->block = 1;
    r->copy_a = copies_a(r);
    r->direct_k = r->K * r->N * dtype_bytes(r->b_type) > 2 * NEAR_BYTES && r->y_type == F32 && !r->ta
                      ? up(NEAR_BYTES / (r->N * dtype_bytes(r->b_type)) + 1, LANES)
                      : 0;
    bool fits = !r->copy_a ||
                (!r->ta && DIRECT_ROWS * (up(K, LANES) + LANES) * 4 + r->scratch_used < RT_SCRATCH_BYTES);
    r->direct_rows = fits ? DIRECT_ROWS : size.rows; // rows that are copied, are all at once
    r->direct = !r->tb && r->min_rows <= r->direct_rows && !is_laid(r);
    r->packed = !r->direct || r->max_rows > r->direct_rows;
    r->a_row = r->ta ? 1 : r->copy_a ? up(K, LANES) + LANES : r->a_given ? r->a_given : r->K;
    r->a_k = r->ta ? STRIP : 1;
    int64_t a_bytes = !r->copy_a ? 0 : r->ta ? up(K * STRIP * 4, 64) : up(size.rows * r->a_row * 4, 64);
    r->at_panels = up(r->scratch_used, 64) + a_bytes;
    r->copy_all = r->copy_a && is_laid(r) && r->scratch_used + r->max_rows * r->a_row * 4 + 64 <= RT_SCRATCH_BYTES;
    assert(is_laid(r) || r->at_panels + r->block * r->panel_bytes <= RT_SCRATCH_BYTES);

    TileSpec s = {.vecs = r->vecs,
                  .cols = r->panel,
                  .a_row = r->a_row,
                  .a_k = r->a_k,
                  .c_row = r->y_row,
                  .b_type = is_laid(r) && !r->dot ? r->b_type : F32,
                  .pairs = layout_is_pairs(r->layout) && !r->dot,
                  .c_type = r->y_type,
                  .dot = r->dot,
                  .reload = cuts_k(r) || (r->direct && r->direct_k),
                  .prefetch = is_laid(r) ? 3 : 2};  // panels are one stream; rows far apart would meet in the first cache
    bool f32 = r->b_type == F32;
    unsigned heights = r->heights;
    if ((r->packed || f32) && r->n_whole) tile_functions(cg, &r->whole, &s, "tile", heights);
    TileSpec last = s;
    last.cols = r->tail;
    last.mask_b = !is_laid(r);
    if ((r->packed || f32) && r->tail) tile_functions(cg, &r->last, &last, "tile_last", heights);
    if (r->direct) {
        r->direct_whole = r->whole;
        r->direct_last = r->last;
        s.b_type = last.b_type = r->b_type;
        s.joins = last.joins = r->dot;
        if (!f32 && r->n_whole) tile_functions(cg, &r->direct_whole, &s, "direct", heights);
        if (!f32 && r->tail) tile_functions(cg, &r->direct_last, &last, "direct_last", heights);
        for (int h = 1; h <= size.rows; h++) {
            TileSpec wide = s;
            wide.vecs = tile_vecs(cg->target, h);
            wide.cols = wide.vecs * LANES;
            char name[32];
            snprintf(name, sizeof name, "wide%d", wide.vecs);
            if ((heights >> h & 1) && wide.vecs > r->vecs && wide.cols <= r->N)
                tile_functions(cg, &r->wide[h], &wide, name, 1u << h);
        }
    }
    emit_packing(cg, r);
}

static LV a_step(Cg *cg, const Rows *r, const RowsRun *u) {
    return u->a_step ? u->a_step : cg_int(cg, r->a_given ? r->a_given : r->K);
}

// A cut chain copies the k of a piece only.
static bool copies_pieces(const Rows *r) { return r->copy_a && !r->ta && cuts_k(r); }

// Elements k0 .. k0+n_k-1 of n rows from `first`, copied to where tiles read them.  ta: all of at most one tile.
static LV copy_of_rows(Cg *cg, const Rows *r, const RowsRun *u, LV first, LV n, LV k0, LV n_k) {
    LV to = bytes_at(cg, cg->scratch, up(r->scratch_used, 64)), step = a_step(cg, r, u);
    TileCut one = {cg_int(cg, 1), n, cg_int(cg, 0)};
    RowNumbers rows = {.n = u->rows.n};
    if (r->ta) {
        pack_strips(cg, &r->copy, to, cg_at(cg, r->a_type, u->a, first), u->k, step, &one, NULL);
        return to;
    }
    if (r->numbered) rows.index = cg_at(cg, I32, u->rows.index, first);
    LV from = r->numbered ? k0 : cg_add(cg, cg_mul(cg, first, step), k0);
    copy_columns(cg, &r->copy, to, cg_at(cg, r->a_type, u->a, from), n, step, n_k, r->numbered ? &rows : NULL);
    return to;
}

static LV y_at(Cg *cg, const Rows *r, const RowsRun *u, LV row, LV col) {
    return cg_at(cg, r->y_type, u->y, cg_add(cg, cg_muli(cg, row, r->y_row), col));
}

// Rows first .. of the run begin, or are finished, in panels p0 .. p1-1.  now: i1, or NULL: always.
static void attach_strip(Cg *cg, const Rows *r, const RowsRun *u, bool finished, LV now, LV first, LV n,
                         LV p0, LV p1) {
    if (!u->epilogue || (!finished && !u->epilogue->ahead)) return;
    CgIf last, here;
    if (u->last) cg_if(cg, &last, u->last);
    if (now) cg_if(cg, &here, now);
    LV row = cg_add(cg, u->row, first), col = cg_muli(cg, p0, r->panel);
    LV end = cg_min(cg, cg_muli(cg, p1, r->panel), cg_int(cg, r->N));
    if (finished) epilogue_run(cg, u->epilogue, row, n, col, end);
    else epilogue_ahead(cg, u->epilogue, row, n, col, end);
    if (now) cg_endif(cg, &here);
    if (u->last) cg_endif(cg, &last);
}

// Columns `col` .. of B, k0 .. k0+n_k-1, for one tile of rows.
static void direct_tile(Cg *cg, const Rows *r, const RowsRun *u, const TileSet *set, LV a, LV height, LV row,
                        LV col, LV k0, LV n_k) {
    LV c = y_at(cg, r, u, row, col), b = cg_at(cg, r->b_type, u->b, cg_add(cg, cg_muli(cg, k0, r->N), col));
    LV init = r->direct_k ? cg_select(cg, cg_lt(cg, cg_int(cg, 0), k0), c, LLVMConstNull(cg->ptr)) : NULL;
    tile_call(cg, set, height,
              &(TileCall){.a = r->direct_k ? cg_at(cg, F32, a, steps(cg, r->dot, k0)) : a,
                          .b = b,
                          .k = n_k,
                          .b_k = cg_int(cg, r->N),
                          .c = c,
                          .init = init});
}

// B is read as it lies, in pieces of k that stay near.  One tile of rows takes columns as wide as the
// registers allow; several take one panel after the other.
static void run_direct(Cg *cg, Rows *r, const RowsRun *u) {
    LV zero = cg_int(cg, 0), k0 = zero, n_k = u->k;
    CgLoop cut;
    attach_strip(cg, r, u, false, NULL, zero, u->n, u->lo, u->hi);
    LV a = r->copy_a ? copy_of_rows(cg, r, u, zero, u->n, zero, u->k) : u->a;
    if (r->direct_k) {
        cg_for(cg, &cut, zero, u->k, r->direct_k);
        k0 = cut.i;
        n_k = cg_min(cg, cg_sub(cg, u->k, k0), cg_int(cg, r->direct_k));
    }
    LV col = cg_muli(cg, u->lo, r->panel),
       end = cg_muli(cg, cg_min(cg, u->hi, cg_int(cg, r->n_whole)), r->panel);
    TileCut rows = tile_cut(cg, u->n, tile_size(cg->target).rows);
    for (int vecs = TILE_MAX_VECS; vecs > r->vecs; vecs /= 2) {
        TileSet set = {0};
        LV fits = NULL;
        for (int h = 1; h <= TILE_MAX_ROWS; h++) {
            if (!r->wide[h].fn[h] || r->wide[h].spec.vecs != vecs) continue;
            LV equal = cg_eq(cg, u->n, cg_int(cg, h));
            fits = fits ? LLVMBuildOr(cg->b, fits, equal, "") : equal;
            set.fn[h] = r->wide[h].fn[h];
            set.type = r->wide[h].type;
        }
        if (!fits) continue;
        int64_t cols = vecs * LANES;
        CgLoop l;
        cg_for(cg, &l, col, cg_select(cg, fits, cg_addi(cg, end, 1 - cols), zero), cols);
        direct_tile(cg, r, u, &set, a, u->n, zero, l.i, k0, n_k);
        cg_end(cg, &l);
        col = l.i;
    }
    LV tail = cg_int(cg, r->n_whole * r->panel);
    LV tail_end = cg_select(cg, cg_eq(cg, u->hi, cg_int(cg, r->n_panels)), cg_addi(cg, tail, 1), tail);
    for (int part = 0; part < 2; part++) {
        if (part ? !r->tail : !r->n_whole) continue;
        CgLoop l, tile;
        cg_for(cg, &l, part ? tail : col, part ? tail_end : end, r->panel);
        cg_for(cg, &tile, zero, rows.tiles, 1);
        LV first = tile_first(cg, &rows, tile.i);
        direct_tile(cg, r, u, part ? &r->direct_last : &r->direct_whole,
                    cg_at(cg, F32, a, cg_muli(cg, first, r->a_row)), tile_height(cg, &rows, tile.i), first,
                    l.i, k0, n_k);
        cg_end(cg, &tile);
        cg_end(cg, &l);
    }
    if (r->direct_k) cg_end(cg, &cut);
    attach_strip(cg, r, u, true, NULL, zero, u->n, u->lo, u->hi);
}

static LV panel_at(Cg *cg, const Rows *r, LV index) {
    return cg_bytes(cg, bytes_at(cg, cg->scratch, r->at_panels), cg_muli(cg, index, r->panel_bytes));
}

// Panel `index` of a matrix that lies in panels.  Ours may be a half of one of those: the same rows, other columns.
static LV laid_panel_at(Cg *cg, const Rows *r, const RowsRun *u, LV index) {
    int64_t parts = PANEL_COLS / r->panel, column = dtype_bytes(r->b_type) * (layout_is_pairs(r->layout) ? 2 : 1);
    LV whole = cg_muli(cg, cg_div(cg, index, cg_int(cg, parts)), r->panel_bytes * parts);
    return cg_bytes(cg, u->b, cg_add(cg, whole, cg_muli(cg, cg_rem(cg, index, cg_int(cg, parts)), r->panel * column)));
}

static void pack_block(Cg *cg, Rows *r, const RowsRun *u, LV p0, LV p1, LV k0, LV n_k) {
    if (!r->tb) {
        LV col = cg_muli(cg, p0, r->panel), end = cg_min(cg, cg_muli(cg, p1, r->panel), cg_int(cg, r->N));
        pack_rows(cg, &r->pack, panel_at(cg, r, cg_int(cg, 0)),
                  cg_at(cg, r->b_type, u->b, cg_add(cg, cg_muli(cg, k0, r->N), col)), n_k, cg_int(cg, r->N),
                  cg_sub(cg, end, col), NULL);
        return;
    }
    LV whole = cg_min(cg, p1, cg_int(cg, r->n_whole));
    for (int part = 0; part < 2; part++) {
        if (part ? !r->tail : !r->n_whole) continue;
        CgLoop l;
        cg_for(cg, &l, part ? cg_max(cg, p0, whole) : p0, part ? p1 : whole, 1);
        LV at = cg_add(cg, cg_mul(cg, cg_muli(cg, l.i, r->panel), u->k), k0);
        pack_columns(cg, part ? &r->pack_last : &r->pack, panel_at(cg, r, cg_sub(cg, l.i, p0)),
                     cg_at(cg, r->b_type, u->b, at), n_k, u->k);
        cg_end(cg, &l);
    }
}

// Blocks of panels; for each, all tiles of rows pass by, and a tile meets one panel after the other.
static void run_packed(Cg *cg, Rows *r, const RowsRun *u) {
    CgLoop block, cut, tile;
    LV all = r->copy_all ? copy_of_rows(cg, r, u, cg_int(cg, 0), u->n, cg_int(cg, 0), u->k) : NULL;
    cg_for(cg, &block, u->lo, u->hi, r->block);
    LV p0 = block.i, p1 = cg_min(cg, cg_addi(cg, p0, r->block), u->hi);
    LV b_k = cg_int(cg, is_laid(r) ? PANEL_COLS : r->panel);
    LV k0 = cg_int(cg, 0), n_k = u->k;
    if (cuts_k(r)) {
        cg_for(cg, &cut, k0, u->k, r->k_block);
        k0 = cut.i;
        n_k = cg_min(cg, cg_sub(cg, u->k, k0), cg_int(cg, r->k_block));
    }
    if (!is_laid(r)) pack_block(cg, r, u, p0, p1, k0, n_k);
    TileCut rows = tile_cut(cg, u->n, rows_tile(cg->target, r));
    cg_for(cg, &tile, cg_int(cg, 0), rows.tiles, 1);
    LV first = tile_first(cg, &rows, tile.i), height = tile_height(cg, &rows, tile.i);
    LV done = cuts_k(r) ? cg_eq(cg, cg_add(cg, k0, n_k), u->k) : NULL;
    bool pieces = copies_pieces(r);
    LV copied_k = pieces ? k0 : cg_int(cg, 0);             // first k of a
    LV a = all         ? cg_at(cg, F32, all, cg_muli(cg, first, r->a_row))
           : r->copy_a ? copy_of_rows(cg, r, u, first, height, copied_k, pieces ? n_k : u->k)
                       : cg_at(cg, F32, u->a, cg_mul(cg, first, a_step(cg, r, u)));
    a = cg_at(cg, F32, a, cg_muli(cg, steps(cg, r->dot, cg_sub(cg, k0, copied_k)), r->a_k));
    LV whole = cg_min(cg, p1, cg_int(cg, r->n_whole));
    for (int part = 0; part < 2; part++) {
        if (part ? !r->tail : !r->n_whole) continue;
        CgLoop l;
        cg_for(cg, &l, part ? cg_max(cg, p0, whole) : p0, part ? p1 : whole, 1);
        attach_strip(cg, r, u, false, done, first, height, l.i, cg_addi(cg, l.i, 1));
        LV c = y_at(cg, r, u, first, cg_muli(cg, l.i, r->panel));
        LV init = cuts_k(r) ? cg_select(cg, cg_lt(cg, cg_int(cg, 0), k0), c, LLVMConstNull(cg->ptr)) : NULL;
        tile_call(cg, part ? &r->last : &r->whole, height,
                  &(TileCall){.a = a,
                              .b = is_laid(r) ? laid_panel_at(cg, r, u, l.i)
                                              : panel_at(cg, r, cg_sub(cg, l.i, p0)),
                              .k = steps(cg, r->dot, n_k),
                              .b_k = b_k,
                              .c = c,
                              .init = init});
        cg_end(cg, &l);
    }
    attach_strip(cg, r, u, true, done, first, height, p0, p1);
    cg_end(cg, &tile);
    if (cuts_k(r)) cg_end(cg, &cut);
    cg_end(cg, &block);
}

void rows_run(Cg *cg, Rows *r, const RowsRun *u) {
    CgIf some, few;
    cg_if(cg, &some, LLVMBuildAnd(cg->b, cg_lt(cg, cg_int(cg, 0), u->n), cg_lt(cg, u->lo, u->hi), ""));
    if (r->direct && r->packed) {
        cg_if(cg, &few, cg_lt(cg, u->n, cg_int(cg, r->direct_rows + 1)));
        run_direct(cg, r, u);
        cg_else(cg, &few);
        run_packed(cg, r, u);
        cg_endif(cg, &few);
    } else if (r->direct) {
        run_direct(cg, r, u);
    } else {
        run_packed(cg, r, u);
    }
    cg_endif(cg, &some);
}

RowNumbers row_numbers(Cg *cg, const Contraction *c, int operand, LV first) {
    LV index = cg_at(cg, I32, cg_in(cg, c->index[operand]), first);
    return (RowNumbers){index, cg_rows(cg, &cg->k->node->in[operand]->type)};
}

void rows_attached(Cg *cg, Rows *r, RowsRun u, const Epilogue *e, LV b_at, LV y_at) {
    bool pair = e->c.products == 2;
    LV b = cg_in(cg, 1), y = epilogue_home(cg, e, 0);
    CgLoop side;
    if (pair) {
        cg_for(cg, &side, cg_int(cg, 0), cg_int(cg, 2), 1);
        u.last = cg_lt(cg, cg_int(cg, 0), side.i);
        b = cg_select(cg, u.last, cg_in(cg, e->c.second), b);
        y = cg_select(cg, u.last, epilogue_home(cg, e, 1), y);
    }
    u.b = cg_at(cg, r->b_type, b, b_at);
    u.y = cg_at(cg, r->y_type, y, y_at);
    u.epilogue = e->fn ? e : NULL;
    rows_run(cg, r, &u);
    if (pair) cg_end(cg, &side);
}

// ---- sums over rows -----------------------------------------------------------------------------

SumCut sums_cut(int64_t M, int64_t N, int64_t matrices) {
    SumCut c = {.m = 112, .n = 128};
    for (;;) {
        c.runs = (M + c.m - 1) / c.m;
        c.groups = (N + c.n - 1) / c.n;
        if (matrices * c.runs * c.groups >= 8 || (c.m == 28 && c.n == 32)) break;
        if (c.n > c.m)
            c.n /= 2; // few matrices: smaller pieces, so that there are 8 tasks
        else
            c.m /= 2;
    }
    c.m = (M + c.runs - 1) / c.runs;
    return c;
}

// Scratch:  stack of tiles, one level for each power of two of leaves | strips of a | panels of b
void sums_begin(Cg *cg, Sums *s, int64_t matrices) {
    TileSize size = tile_size(cg->target);
    int levels = 1;
    while ((1 << levels) <= s->leaves) levels++;
    if (!s->cut.m) s->cut = sums_cut(s->M, s->N, matrices);
    s->vecs = panel_vecs(cg->target, s->N);
    s->panel = s->vecs * LANES;
    s->tiles = (s->cut.m + size.rows - 1) / size.rows;
    s->panels = (s->cut.n + s->panel - 1) / s->panel;
    s->slot = (int64_t)size.rows * s->panel;
    s->level = s->slot * s->tiles * s->panels;
    s->at_a = levels * s->level * 4;
    s->dot = dot_used(cg->target, s->a_type, s->b_type);
    int64_t row = (s->tiles * STRIP + s->panels * s->panel) * (s->dot ? 2 : 4);
    for (s->rows = SUM_ROWS; s->at_a + s->rows * row + 65536 > RT_SCRATCH_BYTES && s->rows > LANES;)
        s->rows /= 2;
    s->strip_bytes = steps_of(s->dot, s->rows) * STRIP * 4 + 64;
    s->panel_bytes = steps_of(s->dot, s->rows) * s->panel * 4 + 64;
    s->at_b = s->at_a + s->tiles * s->strip_bytes;
    assert(s->at_b + s->panels * s->panel_bytes <= RT_SCRATCH_BYTES);
    TileSpec spec = {.vecs = s->vecs,
                     .cols = s->panel,
                     .a_row = 1,
                     .a_k = STRIP,
                     .c_row = s->panel,
                     .b_type = F32,
                     .c_type = F32,
                     .dot = s->dot,
                     .reload = true,
                     .merge = true,
                     .merge_step = s->level};
    int64_t rest = s->M % s->cut.m;
    tile_functions(cg, &s->tile, &spec, "sum",
                   tile_heights(s->cut.m, size.rows) | tile_heights(rest, size.rows));
    if (s->dot) {
        s->pack = pack_row_pairs_function(cg, "pack", s->vecs, s->panel_bytes, s->numbered[1]);
        s->strip = pair_strips_function(cg, "strip", s->strip_bytes, s->numbered[0]);
        return;
    }
    s->pack = pack_rows_function(cg, "pack", s->b_type, s->vecs, s->panel_bytes, s->numbered[1]);
    s->strip = strips_function(cg, "strip", s->a_type, s->strip_bytes, s->numbered[0]);
}

// What a task computes: rows m0 .. of the result in tiles, panels p0 .. p1-1.
typedef struct {
    LV m0, p0, p1, panels;
    TileCut cut;
} SumPart;

// Where the task's tile (t, p) lies in a level of the stack.
static LV slot_at(Cg *cg, const Sums *s, LV level, LV t, LV p) {
    LV n = cg_add(cg, cg_muli(cg, t, s->panels), p);
    LV at = cg_add(cg, cg_muli(cg, level, s->level), cg_muli(cg, n, s->slot));
    return cg_at(cg, F32, cg->scratch, at);
}
static LV strip_at(Cg *cg, const Sums *s, LV t) {
    return cg_bytes(cg, bytes_at(cg, cg->scratch, s->at_a), cg_muli(cg, t, s->strip_bytes));
}
static LV sum_panel_at(Cg *cg, const Sums *s, LV p) {
    return cg_bytes(cg, bytes_at(cg, cg->scratch, s->at_b), cg_muli(cg, p, s->panel_bytes));
}

static LV bits_set(Cg *cg, LV x) { return cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &x, 1); }
static LV trailing_zeros(Cg *cg, LV x) { // x is not 0
    LV args[2] = {x, cg_bool(cg, true)};
    return cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, args, 2);
}

// Packs n rows for the part; a and b: their first row, a at the part's first column.  Numbered rows: row 0 of
// the source, and the first row's number.
static void pack_sums(Cg *cg, Sums *s, const SumPart *part, LV a, LV b, LV n, const RowNumbers rows[2]) {
    LV col = cg_muli(cg, part->p0, s->panel),
       end = cg_min(cg, cg_muli(cg, part->p1, s->panel), cg_int(cg, s->N));
    pack_rows(cg, &s->pack, sum_panel_at(cg, s, cg_int(cg, 0)), cg_at(cg, s->b_type, b, col), n,
              cg_int(cg, s->N), cg_sub(cg, end, col), s->numbered[1] ? &rows[1] : NULL);
    pack_strips(cg, &s->strip, strip_at(cg, s, cg_int(cg, 0)), a, n,
                cg_int(cg, s->a_given ? s->a_given : s->M), &part->cut,
                s->numbered[0] ? &rows[0] : NULL);
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

// The finished tiles, at the bottom of the stack, go to y, or to a level.
static void store_sums(Cg *cg, const Sums *s, const SumPart *part, LV y, const SumLevels *l) {
    TileRows r;
    CgLoop merge;
    LV to = l ? level_at(cg, l, y, cg_sub(cg, l->top, l->merges)) : y;
    begin_tile_rows(cg, s, part, &r);
    LV x[TILE_MAX_VECS];
    for (int v = 0; v < s->vecs; v++) x[v] = cg_load_vec(cg, F32, r.slot, cg_int(cg, v * LANES), NULL);
    if (l) {
        cg_loop_begin(cg, &merge, cg_int(cg, 0), l->merges, 1, s->vecs, x);
        LV left = level_at(cg, l, y, cg_sub(cg, cg_addi(cg, l->top, -1), merge.i));
        for (int v = 0; v < s->vecs; v++)
            x[v] = cg_fadd(cg, cg_load_vec(cg, F32, left, r.at[v], r.mask[v]), merge.carry[v]);
        cg_loop_end(cg, &merge, x);
        for (int v = 0; v < s->vecs; v++) x[v] = merge.carry[v];
    }
    for (int v = 0; v < s->vecs; v++) cg_store_vec(cg, s->y_type, x[v], to, r.at[v], r.mask[v]);
    end_tile_rows(cg, &r);
}

// The stack is that of a binary counter: before leaf l it holds one sum for each bit of l; a finished leaf
// adds those its carry runs through, the last leaf all.
void sums_run(Cg *cg, Sums *s, const SumsRun *u) {
    LV zero = cg_int(cg, 0);
    SumPart part = {.m0 = cg_muli(cg, u->run, s->cut.m), .p0 = cg_muli(cg, u->group, s->cut.n / s->panel)};
    part.cut = tile_cut(cg, cg_min(cg, cg_int(cg, s->cut.m), cg_sub(cg, cg_int(cg, s->M), part.m0)),
                        tile_size(cg->target).rows);
    part.p1 = cg_min(cg, cg_addi(cg, part.p0, s->panels), cg_int(cg, rows_panels(cg->target, s->N)));
    part.panels = cg_sub(cg, part.p1, part.p0);
    CgLoop leaf, block, t, p;
    LV n_leaves = u->n_leaves ? u->n_leaves : cg_int(cg, s->leaves);
    if (u->levels) load_sums(cg, s, &part, u->y, u->levels);
    cg_for(cg, &leaf, zero, n_leaves, 1);
    LV begin, end;
    u->leaf(u->self, cg, leaf.i, &begin, &end);
    LV n = cg_sub(cg, end, begin), top = bits_set(cg, leaf.i);
    LV merges = cg_select(cg, cg_eq(cg, leaf.i, cg_addi(cg, n_leaves, -1)), top,
                          trailing_zeros(cg, cg_addi(cg, leaf.i, 1)));
    cg_for(cg, &block, zero, cg_max(cg, n, cg_int(cg, 1)), s->rows); // a leaf without rows counts as +0
    LV left = cg_sub(cg, n, block.i), n_k = cg_min(cg, left, cg_int(cg, s->rows)),
       first = cg_add(cg, begin, block.i);
    RowNumbers rows[2] = {u->rows[0], u->rows[1]};
    LV row[2] = {first, first};                // of a, of b where they lie
    for (int i = 0; i < 2; i++) {
        if (!s->numbered[i]) continue;
        rows[i].index = cg_at(cg, I32, rows[i].index, first);
        row[i] = zero;
    }
    LV a = cg_at(cg, s->a_type, u->a,
                 cg_add(cg, cg_muli(cg, row[0], s->a_given ? s->a_given : s->M), part.m0));
    pack_sums(cg, s, &part, a, cg_at(cg, s->b_type, u->b, cg_muli(cg, row[1], s->N)), n_k, rows);
    LV n_merge = cg_select(cg, cg_lt(cg, left, cg_int(cg, s->rows + 1)), merges, zero);
    LV begins = cg_eq(cg, block.i, zero);
    if (u->levels) {
        LV goes_on = LLVMBuildAnd(cg->b, u->levels->goes_on, cg_eq(cg, leaf.i, zero), "");
        begins = LLVMBuildAnd(cg->b, begins, LLVMBuildNot(cg->b, goes_on, ""), "");
    }
    begin_tiles(cg, &part, &t, &p);
    LV init = cg_select(cg, begins, LLVMConstNull(cg->ptr), slot_at(cg, s, top, t.i, p.i));
    tile_call(cg, &s->tile, tile_height(cg, &part.cut, t.i),
              &(TileCall){.a = strip_at(cg, s, t.i),
                          .b = sum_panel_at(cg, s, p.i),
                          .k = steps(cg, s->dot, n_k),
                          .b_k = cg_int(cg, s->panel),
                          .c = slot_at(cg, s, cg_sub(cg, top, n_merge), t.i, p.i),
                          .init = init,
                          .n_merge = n_merge,
                          .merge = slot_at(cg, s, cg_addi(cg, top, -1), t.i, p.i)});
    cg_end(cg, &p);
    cg_end(cg, &t);
    cg_end(cg, &block);
    cg_end(cg, &leaf);
    store_sums(cg, s, &part, u->y, u->levels);
}
