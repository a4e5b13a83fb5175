// Rows times a matrix, out of tiles.
#include "codegen/cpu/product.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include "codegen/cpu/dot.h"

enum {
    LEAST_K = 256,            // chains are cut into pieces no shorter, or tiles would mostly load and store their sums
    FEW_K = 16,               // of a single tile, so that rows of B are read as streams
    LONG_K = 8192,            // the longest chain that is never cut
    A_BYTES = 1536 << 10,     // at most for the copied rows of a tile
    STRIP = LANES,            // columns of a strip
    PANEL_VECS = PANEL_COLS / LANES,
    PANEL_AHEAD = 8 << 10     // bytes that are asked for before they are read, where panels lie ready
};

int rows_panels(const Rows *r) { return panels_of(r->N, r->schedule.vecs); }

static bool is_laid(const Rows *r) { return r->layout != LAYOUT_ROWS; }

// Whole ones of those that lie ready.
int64_t rows_panels_each(const Rows *r, int64_t groups) {
    int64_t each = (rows_panels(r) + groups - 1) / groups, whole = PANEL_VECS / r->schedule.vecs;
    return is_laid(r) && whole > 1 ? up(each, whole) : each;
}

int64_t rows_matrix(const Rows *r) {
    return r->tb ? layout_elements(r->layout, r->N, r->K) : layout_elements(r->layout, r->K, r->N);
}

// ---- rows times a matrix ------------------------------------------------------------------------

static int64_t cache_bytes(const KernelNode *k, MachineLevelKind level, int64_t typical) {
    int64_t size = k->machine ? k->machine->level[level].size : 0;
    return size ? size : typical;
}
// What stays near while other operands pass: rows of A in half of the second cache, a group of panels and the one behind it
// in the rest.  A panel, which tiles read as a stream, is as large as the first.
static int64_t panel_near(const KernelNode *k) { return cache_bytes(k, LEVEL_L1, 32 << 10); }
int64_t product_block_bytes(const KernelNode *k) {
    int64_t half = cache_bytes(k, LEVEL_L2, 512 << 10) / 2, most = RT_SCRATCH_BYTES / 4;
    return half < most ? half : most;
}
static int64_t group_near(const KernelNode *k) { return product_block_bytes(k) / 4; }
void product_key(const KernelNode *k, KernelDesc *d) {
    str_printf(&d->key, " near %d %d threads %d", (int)panel_near(k), (int)product_block_bytes(k), k->machine ? k->machine->threads : 0);
}

// Chains go on from y, so they can be cut where y keeps them whole.
int64_t rows_k_block(const KernelNode *k, const RowsLoad *load, int columns) {
    int64_t most = panel_near(k) / (columns * 4);
    if (most < LEAST_K) most = LEAST_K;
    if (dot_used(k->target, load->a_type, load->b_type)) most *= 2;
    if (load->y_type != F32 || load->K <= most) return load->K;
    int64_t pieces = (load->K + most - 1) / most;
    return up((load->K + pieces - 1) / pieces, 2 * LANES);
}

static bool copies_for_sets(const Rows *r, int64_t cols, int tile_rows);

void rows_choose(Rows *r, const KernelNode *k, RowsLoad load, KernelDesc *d, const char *what) {
    load.a_type = r->a_type, load.b_type = r->b_type, load.y_type = r->y_type;
    load.layout = r->layout;
    load.ta = r->ta, load.tb = r->tb;
    load.K = r->K, load.N = r->N;
    double groups = load.groups > 1 ? load.groups : 1;
    for (int rows = 1; rows <= TILE_MAX_ROWS; rows++)
        load.copies[rows] = copies_for_sets(r, (int64_t)((double)r->N / groups), rows) ? groups : 0;
    r->schedule = choose_rows(k, &load, d, what);
    r->k_block = rows_k_block(k, &load, r->schedule.vecs * LANES);
    if (!is_laid(r)) return;
    // DRAM, unlike the caches, gives streams no more when their lines are asked for.
    double bytes = load.matrices * load.sides * (double)rows_matrix(r) * dtype_bytes(r->b_type);
    r->few_ask = bytes <= (double)cache_bytes(k, LEVEL_L3, 32 << 20);
    if (d) str_printf(&d->key, "%s", r->few_ask ? " few ask" : "");
}

// A block of few tiles asks for B faster than its rows come in short pieces: its panels are shorter, more of them lie side
// by side.
enum { FEW_TILES = 4 };
static bool may_be_few(const Rows *r, int tile) { return r->max_rows < FEW_TILES * tile || (r->heights >> 1 & 1); }
static int64_t few_k(const Rows *r) {
    int64_t k = r->N * dtype_bytes(r->b_type) % 4096 ? LEAST_K : LEAST_K / 2;      // rows in the same sets of the second cache
    if (r->dot) k *= 2;
    return k < r->k_block ? k : r->k_block;
}
static bool cuts_k(const Rows *r) { return r->k_block < r->K || r->cuts_few; }
// Rows of A that are a power of two apart meet in the same cache sets: they are copied, too, if a tile has more of them than a
// set of the first cache has lines, or if more than one group of panels reads them.
enum { GROUP_COLS = 64, SET_LINES = 8 };
static bool rows_alias(const Rows *r) { return (r->a_given ? r->a_given : r->K) * 4 % 4096 == 0; }
static bool copies_for_sets(const Rows *r, int64_t cols, int tile_rows) {
    return rows_alias(r) && (cols > GROUP_COLS || tile_rows > SET_LINES) && r->max_rows > TILE_MAX_ROWS;
}
static bool copies_a(const Rows *r) {
    return r->ta || r->numbered || r->a_type != F32 || copies_for_sets(r, r->cols ? r->cols : r->N, r->schedule.rows);
}

bool rows_possible(const Rows *r) {
    if (r->K > LONG_K && r->y_type != F32) return false; // a cut chain is continued from y
    return !copies_a(r) || TILE_MAX_ROWS * (up(r->K, LANES) + LANES) * 4 <= A_BYTES;
}

// Tasks of few columns copy A and read short pieces of B's rows more often than threads are worth: no fewer than 512 columns
// where that is enough for as many tasks as keep the machine's threads busy.
int rows_groups(const Machine *m, int64_t runs, int64_t rows, int64_t K, int64_t N, bool rows_vary) {
    enum { TASKS = 16, EACH_THREAD = 2, COLUMNS = 512 };
    int64_t panels = (N + 31) / 32, want = (TASKS + runs - 1) / runs;
    int64_t threads = m ? m->threads : TASKS, busy = (EACH_THREAD * threads + runs - 1) / runs, wide = N / COLUMNS;
    if (wide < busy) wide = busy;
    while (wide < want && runs * wide % threads) wide++;    // or some threads would wait
    if (want > wide) want = wide;
    double work = 2.0 * (double)rows * (double)K * (double)N; // of a run
    int64_t most = (int64_t)(work / 2e6);                     // a task has 2 Mflop ..
    int64_t few = K * N * 4 / (256 << 10);                    // .. or, with few rows, 256 KiB of the matrix
    if (rows_vary || rows <= 4 * TILE_MAX_ROWS) most = most > few ? most : few;
    if (want > most) want = most;
    if (want > panels) want = panels;
    return want < 1 ? 1 : (int)want;
}

// first[i] .. first[i + 1] - 1: the panels of 32 columns of piece i, a 16th of what is left each time.  Of a matrix that lies in rows
// a piece has a part of each row: no less than STRETCH, which memory gives as fast as it can, where there are pieces enough.
enum { FEW_ROWS = 16, MAX_PIECES = 96, PIECE_BYTES = 64 << 10, STRETCH = 1 << 10 };
typedef struct { int n, first[MAX_PIECES + 1]; } Pieces;

// Panels that a tile of one row can read side by side.
static int most_side_by_side(const Rows *r, const CpuTarget *t) {
    MachineTileKind kind = r->b_type == BF16 ? TILE_BF16_WIDENED : TILE_F32;
    if (dot_used(t, r->a_type, r->b_type)) kind = TILE_BF16_DOT;
    int vecs = TILE_MAX_VECS;
    while (vecs > PANEL_VECS && !tile_fits(t, kind, 1, vecs)) vecs -= PANEL_VECS;
    return vecs / PANEL_VECS;
}

static Pieces pieces_of(const Rows *r, const CpuTarget *t, int64_t groups) {
    int panels = (int)((r->N + 31) / 32);
    int64_t panel = r->K * 32 * dtype_bytes(r->b_type), least = panel ? PIECE_BYTES / panel : panels;
    if (!is_laid(r) && !r->tb) {
        int64_t stretch = STRETCH / (32 * dtype_bytes(r->b_type)), most = panels / groups;
        if (least < stretch) least = stretch < most ? stretch : most;
    }
    int64_t wide = is_laid(r) ? most_side_by_side(r, t) : 1;
    if (least < wide) least = wide;
    Pieces p = {0};
    for (int at = 0; at < panels && p.n < MAX_PIECES; p.first[++p.n] = at) {
        int64_t left = panels - at, piece = up((left + 15) / 16 > least ? (left + 15) / 16 : least, wide);
        at = piece < left && p.n < MAX_PIECES - 1 ? at + (int)piece : panels;
    }
    return p;
}

int rows_parts(const Rows *r, const CpuTarget *t, int64_t groups) {
    return (int)((pieces_of(r, t, groups).n + groups - 1) / groups);
}

// In panels of `panel` columns: from one that begins in the piece.
static LV piece_table(Cg *cg, const Pieces *p, int n, int panel, int most) {
    LV *first = malloc((size_t)(n + 1) * sizeof *first);
    assert(first);
    for (int i = 0; i <= n; i++) {
        int at = (p->first[i < p->n ? i : p->n] * PANEL_COLS + panel - 1) / panel;
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
    Pieces p = pieces_of(r, cg->target, groups);
    LV table = piece_table(cg, &p, groups * parts, r->panel, r->n_panels);
    LV piece = cg_add(cg, cg_muli(cg, group, parts), part), few = cg_lt(cg, rows, cg_int(cg, FEW_ROWS + 1));
    LV lo = cg_i64(cg, cg_load1(cg, I32, table, piece)), hi = cg_i64(cg, cg_load1(cg, I32, table, cg_addi(cg, piece, 1)));
    LV all = cg_select(cg, cg_eq(cg, part, cg_int(cg, 0)), u->hi, u->lo);
    u->hi = cg_select(cg, few, hi, all);
    u->lo = cg_select(cg, few, lo, u->lo);
}

// Of a column that is turned: what a tile's stream asks for at a time (Shares).
static int slab_lines(const Rows *r) { return r->vecs < 2 ? 2 : r->vecs; }

static void emit_tiles(Cg *cg, Rows *r) {
    bool laid = is_laid(r);
    TileSpec s = {.vecs = r->vecs,
                  .cols = r->panel,
                  .a_row = r->a_row,
                  .a_k = r->a_k,
                  .c_row = r->y_row,
                  .b_type = laid && !r->dot ? r->b_type : F32,
                  .pairs = layout_is_pairs(r->layout) && !r->dot,
                  .c_type = r->y_type,
                  .dot = r->dot,
                  .reload = cuts_k(r),
                  .ask_c = r->max_rows > r->schedule.rows};
    int64_t row = r->vecs * LANES * (s.pairs ? 4 : dtype_bytes(s.b_type));
    s.stream = r->tb && !laid ? slab_lines(r) : (int)((row + 63) / 64);
    for (int tail = 0; tail < 2; tail++) {
        if (tail ? !r->tail : !r->n_whole) continue;
        s.cols = tail ? r->tail : r->panel;
        tile_functions(cg, tail ? &r->rest_last : &r->rest, &s, tail ? "tile_last" : "tile", r->heights);
    }
    if (r->tb && !laid) return;                            // a panel is packed before its first tile
    s.stream = 0;
    s.prefetch = laid ? 3 : 2;                             // panels are one stream; rows far apart would meet in the first cache
    s.packs = !laid;
    s.ahead = laid ? PANEL_AHEAD : 0;
    if (!laid) s.b_type = r->b_type;
    s.joins = !laid && r->dot;
    for (int tail = 0; tail < 2; tail++) {
        if (tail ? !r->tail : !r->n_whole) continue;
        s.cols = tail ? r->tail : r->panel;
        s.mask_b = tail && !laid;
        tile_functions(cg, tail ? &r->first_last : &r->first, &s, tail ? "first_last" : "first", r->heights);
    }
}

// Tiles of runs of few rows: as many columns as are fastest, of rows as they lie, or of several panels at once: the more streams
// a thread reads, the better memory keeps up.
static bool is_wide(const Rows *r, int height, int vecs) {
    int most = r->schedule.few[height];
    return r->heights >> height & 1 && (is_laid(r) ? vecs <= most && vecs % PANEL_VECS == 0 : vecs == most) && vecs;
}

static void emit_wide(Cg *cg, Rows *r) {
    bool laid = is_laid(r);
    TileSpec s = {.a_row = r->few_row, .a_k = 1, .c_row = r->y_row, .b_type = r->b_type, .c_type = r->y_type, .dot = r->dot};
    if (laid) {
        if (r->dot) s.b_type = F32;
        s.pairs = layout_is_pairs(r->layout) && !r->dot;
        s.b_panel = PANEL_COLS / r->panel * r->panel_bytes;
        s.prefetch = r->few_ask ? 3 : 0;
        s.ahead = PANEL_AHEAD;
    } else {
        s.prefetch = 2;
        s.joins = r->dot;
        s.reload = r->cuts_few;
    }
    for (int vecs = 1; vecs <= TILE_MAX_VECS && (laid || !r->tb); vecs++) {
        unsigned heights = 0;
        for (int h = 1; h <= r->schedule.rows; h++) heights |= (unsigned)is_wide(r, h, vecs) << h;
        char name[32];
        snprintf(name, sizeof name, "wide%d", vecs);
        s.vecs = vecs;
        s.cols = vecs * LANES;
        if (heights) tile_functions(cg, &r->wide[vecs], &s, name, heights);
    }
}

static void emit_packing(Cg *cg, Rows *r) {
    for (int i = 0; i < 4; i++) {
        bool tail = i % 2, piece = i / 2;                  // pieces are asked for before a tile
        int cols = tail ? r->tail : r->panel;
        static const char *const name[] = {"pack", "pack_last", "piece", "piece_last"};
        PackFunction *f[] = {&r->pack, &r->pack_last, &r->piece, &r->piece_last};
        if (!r->tb || is_laid(r) || !(tail ? r->tail : r->n_whole) || (piece && !r->ahead)) continue;
        *f[i] = r->dot ? pack_column_pairs_function(cg, name[i], r->vecs, cols, !piece)
                       : pack_columns_function(cg, name[i], r->b_type, r->vecs, cols, !piece);
    }
    if (r->ahead && !r->tb)
        r->pack_piece = pack_pieces_function(cg, "pack_piece", r->b_type, r->vecs, (cg->k->node->attr.pair ? 2 : 1) * r->panel_bytes, false, r->dot);
    if (!r->copy_a) return;
    if (r->ta)
        r->copy = r->dot ? pair_strips_function(cg, "strip", r->tile_bytes, false)
                         : strips_function(cg, "strip", r->a_type, r->tile_bytes, false);
    else if (r->dot)
        r->copy = copy_pairs_function(cg, "copy_rows", r->K, r->a_row, r->numbered);
    else
        r->copy = r->numbered ? copy_numbered_rows_function(cg, "copy_rows", r->a_type, r->K, r->a_row)
                              : copy_rows_function(cg, "copy_rows", r->a_type, r->K, r->a_row);
    r->copy_few = r->copy;
    if (!is_laid(r) || r->few_row == r->a_row) return;
    if (r->dot) r->copy_few = copy_pairs_function(cg, "copy_few", r->K, r->few_row, r->numbered);
    else
        r->copy_few = r->numbered ? copy_numbered_rows_function(cg, "copy_few", r->a_type, r->K, r->few_row)
                                  : copy_rows_function(cg, "copy_few", r->a_type, r->K, r->few_row);
}

void rows_begin(Cg *cg, Rows *r) {
    int rows = r->schedule.rows;
    r->vecs = r->schedule.vecs;
    r->panel = r->vecs * LANES;
    r->n_panels = rows_panels(r);
    r->n_whole = (int)(r->N / r->panel);
    r->tail = (int)(r->N % r->panel);
    r->dot = dot_used(cg->target, r->a_type, r->b_type);
    r->cuts_few = r->y_type == F32 && r->K > FEW_K && !r->tb && !is_laid(r) && may_be_few(r, rows);
    r->copy_a = copies_a(r);
    int64_t k = up(steps_of(r->dot, r->k_block), LANES);
    r->tiles_block = (int)((product_block_bytes(cg->k) / (4 * k) + rows - 1) / rows);
    if (r->tiles_block < 1) r->tiles_block = 1;
    r->panel_bytes = is_laid(r) ? rows_matrix(r) * dtype_bytes(r->b_type) * r->panel / up(r->N, PANEL_COLS)
                                : k * r->panel * 4 + 64;
    // Rows and strips side by side shall not share cache sets.
    r->a_row = r->ta ? 1 : r->copy_a ? k + LANES : r->a_given ? r->a_given : r->K;
    r->few_row = is_laid(r) && r->copy_a ? up(steps_of(r->dot, r->K), LANES) + LANES : r->a_row;
    r->a_k = r->ta ? STRIP : 1;
    r->tile_bytes = !r->copy_a ? 0 : r->ta ? k * STRIP * 4 + 64 : rows * r->a_row * 4;
    int64_t tiles = (r->max_rows + rows - 1) / rows;
    if (tiles > r->tiles_block) tiles = r->tiles_block;
    r->at_panels = up(r->scratch_used, 64) + up(tiles * r->tile_bytes, 64);
    int64_t panel_k = r->panel * k * (is_laid(r) ? dtype_bytes(r->b_type) : 4);
    r->group = (int)(group_near(cg->k) / panel_k);
    if (r->group < 1) r->group = 1;
    r->few_group = r->cuts_few ? (int)(group_near(cg->k) / (few_k(r) * r->panel * 4)) : r->group;
    int units = r->group > r->few_group ? r->group : r->few_group;
    if (units < 2) units = 2;                              // a pair has a panel of each matrix
    assert(is_laid(r) || r->at_panels + units * r->panel_bytes <= RT_SCRATCH_BYTES);
    r->ahead = !is_laid(r) && r->at_panels + 2 * units * r->panel_bytes <= RT_SCRATCH_BYTES;
    emit_tiles(cg, r);
    emit_wide(cg, r);
    emit_packing(cg, r);
}

// ---- one run: blocks of A, panels of B ----------------------------------------------------------
//
//     for each block of A             rows x k that stay in the second cache: copied, or as they lie
//         for each group of panels of B       both matrices of a pair in turn
//             for each tile           the first of a run leaves the panels in scratch; the epilogue follows each; behind
//                                     each a piece of the next group is packed, at last of the next block, too
// A block: tiles t0 .. t1-1 of the run, k0 .. k0+n_k-1.
typedef struct {
    TileCut cut;
    LV t0, t1, first, k0, n_k;     // first: row of tile t0
    LV a;                          // where tiles read it
    LV done;                       // i1: the chains end here; NULL: always
} Block;

static LV a_step(Cg *cg, const Rows *r, const RowsRun *u) {
    return u->a_step ? u->a_step : cg_int(cg, r->a_given ? r->a_given : r->K);
}

static LV block_source(Cg *cg, const Rows *r, const RowsRun *u, const Block *b) {
    LV step = a_step(cg, r, u), from = r->ta ? cg_add(cg, b->first, cg_mul(cg, b->k0, step))
                                             : cg_add(cg, r->numbered ? cg_int(cg, 0) : cg_mul(cg, b->first, step), b->k0);
    return cg_at(cg, r->a_type, u->a, from);
}

static void block_at(Cg *cg, const Rows *r, const RowsRun *u, Block *b) {
    b->first = tile_first(cg, &b->cut, b->t0);
    b->a = r->copy_a ? bytes_at(cg, cg->scratch, up(r->scratch_used, 64)) : block_source(cg, r, u, b);
}

// Rows first .. of the block, n of them, are copied to `to`.
static void copy_by(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, const PackFunction *copy, LV to, LV first,
                    LV n) {
    LV step = a_step(cg, r, u), from = block_source(cg, r, u, b);
    RowNumbers rows = {.n = u->rows.n};
    if (r->numbered) rows.index = cg_at(cg, I32, u->rows.index, cg_add(cg, b->first, first));
    else from = cg_at(cg, r->a_type, from, cg_mul(cg, first, step));
    copy_columns(cg, copy, to, from, n, step, b->n_k, r->numbered ? &rows : NULL);
}

static void copy_part(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, LV first, LV n) {
    copy_by(cg, r, u, b, &r->copy, cg_at(cg, F32, b->a, cg_muli(cg, first, r->a_row)), first, n);
}

static void copy_block(Cg *cg, const Rows *r, const RowsRun *u, const Block *b) {
    LV n = cg_sub(cg, tile_first(cg, &b->cut, b->t1), b->first);
    TileCut part = {cg_sub(cg, b->t1, b->t0), b->cut.base, cg_sub(cg, b->cut.extra, b->t0)};
    if (r->ta) pack_strips(cg, &r->copy, b->a, block_source(cg, r, u, b), b->n_k, a_step(cg, r, u), &part, NULL);
    else copy_part(cg, r, u, b, cg_int(cg, 0), n);
}

static LV a_of_tile(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, LV tile, LV first) {
    if (r->ta) return cg_bytes(cg, b->a, cg_muli(cg, cg_sub(cg, tile, b->t0), r->tile_bytes));
    LV rows = cg_sub(cg, first, b->first);
    return cg_at(cg, F32, b->a, r->copy_a ? cg_muli(cg, rows, r->a_row) : cg_mul(cg, rows, a_step(cg, r, u)));
}

// Rows first .. of the run begin, or are finished, in columns col .. end-1.  now: i1, or NULL: always.
static void attach_strip(Cg *cg, const RowsRun *u, bool finished, LV now, LV first, LV n, LV col, LV end) {
    if (!u->epilogue || (!finished && !u->epilogue->ahead)) return;
    CgIf here;
    if (now) cg_if(cg, &here, now);
    LV row = cg_add(cg, u->row, first);
    if (finished) epilogue_run(cg, u->epilogue, row, n, col, end);
    else epilogue_ahead(cg, u->epilogue, row, n, col, end);
    if (now) cg_endif(cg, &here);
}

// Panel `index` of a matrix that lies in panels, from k0 on.  Ours may be a half of one of those: the same rows, other columns.
static LV laid_panel_at(Cg *cg, const Rows *r, LV b, LV index, LV k0) {
    int64_t parts = PANEL_COLS / r->panel, column = dtype_bytes(r->b_type) * (layout_is_pairs(r->layout) ? 2 : 1);
    LV whole = cg_muli(cg, cg_div(cg, index, cg_int(cg, parts)), r->panel_bytes * parts);
    LV at = cg_add(cg, whole, cg_muli(cg, cg_rem(cg, index, cg_int(cg, parts)), r->panel * column));
    return cg_bytes(cg, b, cg_add(cg, at, cg_muli(cg, k0, PANEL_COLS * dtype_bytes(r->b_type))));
}

// A panel, of both matrices of a pair in turn.
typedef struct { LV panel, second, b, y, col; } Unit;      // second: i1, or NULL; b: where it lies

static Unit unit_at(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, LV i) {
    Unit n = {.panel = cg_add(cg, u->lo, i), .y = u->y};
    LV matrix = u->b;
    if (u->second_b) {
        n.panel = cg_add(cg, u->lo, cg_div(cg, i, cg_int(cg, 2)));
        n.second = cg_eq(cg, cg_rem(cg, i, cg_int(cg, 2)), cg_int(cg, 1));
        matrix = cg_select(cg, n.second, u->second_b, u->b);
        n.y = cg_select(cg, n.second, u->second_y, u->y);
    }
    n.col = cg_muli(cg, n.panel, r->panel);
    if (is_laid(r)) n.b = laid_panel_at(cg, r, matrix, n.panel, b->k0);
    else
        n.b = cg_at(cg, r->b_type, matrix, r->tb ? cg_add(cg, cg_mul(cg, n.col, u->k), b->k0)
                                                 : cg_add(cg, cg_muli(cg, b->k0, r->N), n.col));
    return n;
}

// if (it is the narrow last panel) part 1 else part 0: begins the branches that can occur, one after the other.
static bool begin_width(Cg *cg, const Rows *r, LV panel, int part, CgIf *f) {
    if (part ? !r->tail : !r->n_whole) return false;
    if (!r->tail || !r->n_whole) return true;
    if (part) cg_else(cg, f);
    else cg_if(cg, f, cg_lt(cg, panel, cg_int(cg, r->n_whole)));
    return true;
}
static void end_widths(Cg *cg, const Rows *r, CgIf *f) {
    if (r->tail && r->n_whole) cg_endif(cg, f);
}

static const TileSpec *rest_spec(const Rows *r) { return r->n_whole ? &r->rest.spec : &r->rest_last.spec; }

// Rows of the next panel, shared out among the last tiles: what is asked for early is gone again when it is read.
static void stream_next(Cg *cg, const Rows *r, const Block *b, const Unit *next, LV tile, LV height, TileCall *call) {
    int k_row = layout_is_pairs(r->layout) ? 2 : 1;        // k of a row
    int64_t step = (is_laid(r) ? PANEL_COLS * k_row : r->N) * dtype_bytes(r->b_type);
    LV one = cg_int(cg, 1), rows = cg_div(cg, cg_addi(cg, b->n_k, k_row - 1), cg_int(cg, k_row));
    LV each = cg_max(cg, tile_streamed(cg, rest_spec(r), height, call->k), one);
    LV tiles = cg_div(cg, cg_add(cg, rows, cg_addi(cg, each, -1)), each);
    LV from = cg_max(cg, cg_addi(cg, b->t0, 1), cg_sub(cg, b->t1, tiles)), row = cg_mul(cg, cg_sub(cg, tile, from), each);
    LV some = LLVMBuildICmp(cg->b, LLVMIntULT, row, rows, "");
    call->ahead = cg_select(cg, some, cg_bytes(cg, next->b, cg_muli(cg, row, step)), call->a);
    call->ahead_step = cg_int(cg, step);
    call->n_ahead = cg_select(cg, some, each, cg_int(cg, 0));
}

// Panels that a tile meets before the next one, n units from unit g0 on; slots: where they lie in scratch.
typedef struct { LV g0, n, units, slots; } Group;

static Unit unit_of(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, const Group *g, LV i) {
    return unit_at(cg, r, u, b, cg_min(cg, i, cg_addi(cg, g->units, -1)));
}
static LV panel_slot(Cg *cg, const Rows *r, const Group *g, LV i) {
    return cg_bytes(cg, g->slots, cg_muli(cg, cg_sub(cg, i, g->g0), r->panel_bytes));
}

static void pack_unit(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, const Group *g, LV i) {
    CgIf width;
    Unit at = unit_of(cg, r, u, b, g, i);
    for (int part = 0; part < 2; part++)
        if (begin_width(cg, r, at.panel, part, &width))
            pack_columns(cg, part ? &r->pack_last : &r->pack, panel_slot(cg, r, g, i), at.b, b->n_k, u->k);
    end_widths(cg, r, &width);
}

// ---- the next group, piece by piece
// Between the tiles of a group a piece of the next group's panels is packed: asked for before a tile, packed after it, so
// that nothing waits for memory, and nothing is gone again before it is read.

// The first of few tiles packs while it multiplies instead: there is no time between.

static int64_t piece_k(const Rows *r) { return !r->tb ? 1 : r->dot ? 2 * LANES : LANES; }
static int sides_of(const RowsRun *u) { return u->second_b ? 2 : 1; }

// Rows of k of a group, or pairs of them, which are packed through all panels at once.
static LV pieces_of_group(Cg *cg, const Rows *r, const Block *b) {
    return r->dot ? cg_div(cg, cg_addi(cg, b->n_k, 1), cg_int(cg, 2)) : b->n_k;
}

typedef struct { LV lo, hi; } Extent;
static Extent span_of_tile(Cg *cg, const Block *now, LV tile, LV pieces) {
    LV n = cg_sub(cg, now->t1, now->t0), i = cg_sub(cg, tile, now->t0);
    return (Extent){cg_div(cg, cg_mul(cg, i, pieces), n), cg_div(cg, cg_mul(cg, cg_addi(cg, i, 1), pieces), n)};
}

static void pack_row_pieces(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, const Group *g, const Extent *span) {
    int sides = sides_of(u), k_row = r->dot ? 2 : 1;
    LV lo = cg_muli(cg, span->lo, k_row), n = cg_sub(cg, cg_min(cg, cg_muli(cg, span->hi, k_row), b->n_k), lo);
    LV to = cg_muli(cg, span->lo, r->panel * 4);
    for (int side = 0; side < sides; side++) {
        Unit at = unit_at(cg, r, u, b, cg_addi(cg, g->g0, side));
        LV cols = cg_muli(cg, cg_div(cg, g->n, cg_int(cg, sides)), r->panel);
        cols = cg_min(cg, cols, cg_sub(cg, cg_int(cg, r->N), at.col));
        LV from = cg_at(cg, r->b_type, at.b, cg_muli(cg, lo, r->N));
        pack_rows(cg, &r->pack_piece, cg_bytes(cg, bytes_at(cg, g->slots, side * r->panel_bytes), to), from, n, cg_int(cg, r->N), cols, NULL);
    }
}

// A group in its block; what follows it, if `more`; few: the block has few tiles.
typedef struct { Block b; Group g; } Step;
typedef struct { Step now, next; LV more, few; } Steps;

// A matrix whose columns are turned is packed in shares, one for each call of a tile: slabs of k, as long as the lines that
// a tile's stream asks for at once, of some panels, whose columns follow each other.  So the stream asks for all that is packed
// behind the tiles of a row, a few lines at a time: more at once would wait for each other.
typedef struct { LV slabs, each, columns, panels; } Shares;      // slabs and panels of a share, shares side by side
typedef struct { LV lo, hi, p0, p1; } Share;

static int64_t slab_k(const Rows *r) { return slab_lines(r) * piece_k(r); }

static LV parts_of(Cg *cg, LV n, LV each) { return cg_div(cg, cg_add(cg, n, cg_addi(cg, each, -1)), each); }

static Shares shares_of(Cg *cg, const Rows *r, const Steps *s) {
    const Block *now = &s->now.b;
    LV calls = cg_mul(cg, cg_sub(cg, now->t1, now->t0), s->now.g.n);
    Shares h = {.slabs = parts_of(cg, s->next.b.n_k, cg_int(cg, slab_k(r)))};
    h.each = cg_max(cg, parts_of(cg, h.slabs, calls), cg_int(cg, 1));
    h.columns = cg_div(cg, calls, cg_max(cg, parts_of(cg, h.slabs, h.each), cg_int(cg, 1)));
    h.panels = parts_of(cg, s->next.g.n, h.columns);
    return h;
}

static Share share_of_call(Cg *cg, const Steps *s, const Shares *h, LV call) {
    LV lo = cg_mul(cg, cg_div(cg, call, h->columns), h->each), p0 = cg_mul(cg, cg_rem(cg, call, h->columns), h->panels);
    return (Share){lo, cg_min(cg, cg_add(cg, lo, h->each), h->slabs), p0, cg_min(cg, cg_add(cg, p0, h->panels), s->next.g.n)};
}

static LV call_of(Cg *cg, const Steps *s, LV i, LV tile) {
    return cg_add(cg, cg_mul(cg, cg_sub(cg, tile, s->now.b.t0), s->now.g.n), cg_sub(cg, i, s->now.g.g0));
}

// Shares of the calls of a row of tiles.
static void turn_shares(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV tile) {
    CgLoop call, slab, panel;
    CgIf width;
    const Block *b = &s->next.b;
    const Group *g = &s->next.g;
    Shares h = shares_of(cg, r, s);
    LV first = call_of(cg, s, s->now.g.g0, tile);
    cg_for(cg, &call, first, cg_add(cg, first, s->now.g.n), 1);
    Share share = share_of_call(cg, s, &h, call.i);
    cg_for(cg, &panel, share.p0, share.p1, 1);
    LV i = cg_add(cg, g->g0, panel.i);
    cg_for(cg, &slab, share.lo, share.hi, 1);
    LV k = cg_muli(cg, slab.i, slab_k(r)), n = cg_min(cg, cg_int(cg, slab_k(r)), cg_sub(cg, b->n_k, k));
    Unit at = unit_at(cg, r, u, b, i);
    LV to = cg_bytes(cg, panel_slot(cg, r, g, i), cg_muli(cg, k, r->panel * (r->dot ? 2 : 4)));
    for (int part = 0; part < 2; part++)
        if (begin_width(cg, r, at.panel, part, &width))
            pack_columns(cg, part ? &r->piece_last : &r->piece, to, cg_at(cg, r->b_type, at.b, k), n, u->k);
    end_widths(cg, r, &width);
    cg_end(cg, &slab);
    cg_end(cg, &panel);
    cg_end(cg, &call);
}

// The columns of a call's share, one behind the other.
static void stream_share(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV i, LV tile, TileCall *call) {
    Shares h = shares_of(cg, r, s);
    Share share = share_of_call(cg, s, &h, call_of(cg, s, i, tile));
    Unit at = unit_at(cg, r, u, &s->next.b, cg_add(cg, s->next.g.g0, share.p0));
    LV some = LLVMBuildAnd(cg->b, LLVMBuildAnd(cg->b, s->more, LLVMBuildNot(cg->b, s->few, ""), ""), cg_lt(cg, share.lo, share.hi), "");
    call->ahead = cg_select(cg, some, cg_at(cg, r->b_type, at.b, cg_muli(cg, share.lo, slab_k(r))), call->a);
    call->ahead_step = cg_muli(cg, u->k, dtype_bytes(r->b_type));
    call->n_ahead = cg_select(cg, some, cg_muli(cg, cg_sub(cg, share.p1, share.p0), r->panel), cg_int(cg, 0));
}

// What the tile asks for meanwhile, in panel i of its group: a line of each row of its piece of the next group, or, where
// panels lie ready or are left by the first tile, rows of the panel in the same place of the next group.
static void stream(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV i, LV tile, LV height, TileCall *call) {
    if (r->tb && !is_laid(r)) {
        stream_share(cg, r, u, s, i, tile, call);
        return;
    }
    Unit next = unit_of(cg, r, u, &s->now.b, &s->now.g, cg_add(cg, i, s->now.g.n));
    stream_next(cg, r, &s->now.b, &next, tile, height, call);
    if (is_laid(r)) return;
    const Step *n = &s->next;
    Extent span = span_of_tile(cg, &s->now.b, tile, pieces_of_group(cg, r, &n->b));
    int k_row = r->dot ? 2 : 1;
    LV at = cg_min(cg, cg_sub(cg, i, s->now.g.g0), cg_addi(cg, n->g.n, -1));
    Unit piece = unit_at(cg, r, u, &n->b, cg_add(cg, n->g.g0, at));
    LV from = cg_at(cg, r->b_type, piece.b, cg_muli(cg, span.lo, r->N * k_row));
    call->ahead = cg_select(cg, s->few, call->ahead, from);
    LV rows = cg_select(cg, s->more, cg_muli(cg, cg_sub(cg, span.hi, span.lo), k_row), cg_int(cg, 0));
    call->n_ahead = cg_select(cg, s->few, call->n_ahead, rows);
}

static LV c_at(Cg *cg, const Rows *r, const Block *b, const Unit *at, LV tile) {
    return cg_at(cg, r->y_type, at->y, cg_add(cg, cg_muli(cg, tile_first(cg, &b->cut, tile), r->y_row), at->col));
}

// Where the tile after this one has its sums: to the right, or below at the left, or at the top of the next group.
static LV next_c(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV i, LV tile) {
    const Block *b = &s->now.b;
    const Group *g = &s->now.g;
    LV end = cg_add(cg, g->g0, g->n), right = cg_addi(cg, i, 1), below = cg_addi(cg, tile, 1);
    LV is_last = cg_eq(cg, right, end), is_lowest = cg_eq(cg, below, b->t1);
    LV unit = cg_select(cg, is_last, cg_select(cg, is_lowest, end, g->g0), right);
    Unit at = unit_of(cg, r, u, b, g, unit);
    return c_at(cg, r, b, &at, cg_select(cg, is_last, cg_select(cg, is_lowest, b->t0, below), tile));
}

// The first tile of a panel that leaves it in scratch asks for its rows, and at last for those of the next panel.
static void unit_tile(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV i, LV tile, bool is_first) {
    const Block *b = &s->now.b;
    const Group *g = &s->now.g;
    LV first = tile_first(cg, &b->cut, tile), height = tile_height(cg, &b->cut, tile);
    Unit at = unit_of(cg, r, u, b, g, i);
    LV c = c_at(cg, r, b, &at, tile);
    bool lies = is_first && !is_laid(r);
    TileCall call = {.a = a_of_tile(cg, r, u, b, tile, first),
                     .b = lies || is_laid(r) ? at.b : panel_slot(cg, r, g, i),
                     .k = lies ? b->n_k : steps(cg, r->dot, b->n_k),
                     .b_k = cg_int(cg, lies ? r->N : is_laid(r) ? PANEL_COLS : r->panel),
                     .c = c,
                     .next_c = rest_spec(r)->ask_c ? next_c(cg, r, u, s, i, tile) : NULL};
    if (lies) call.panel = panel_slot(cg, r, g, i);
    if (is_first) call.next = unit_of(cg, r, u, b, g, cg_addi(cg, i, 1)).b;
    else if (rest_spec(r)->stream) stream(cg, r, u, s, i, tile, height, &call);
    if (b->done) call.init = cg_select(cg, cg_lt(cg, cg_int(cg, 0), b->k0), c, LLVMConstNull(cg->ptr));
    CgIf width;
    for (int part = 0; part < 2; part++)
        if (begin_width(cg, r, at.panel, part, &width))
            tile_call(cg, part ? is_first ? &r->first_last : &r->rest_last : is_first ? &r->first : &r->rest, height, &call);
    end_widths(cg, r, &width);
}

// A block follows in the place of this one: behind a tile's last use its rows give way to those of the tile in the same
// place, which is not higher.
static bool copies_between(const Rows *r) { return r->copy_a && !r->ta; }

// Tile `tile` of a block where it lies, asked for into the first cache: part i of n, all its rows.
static void ask_for_a(Cg *cg, const Rows *r, const RowsRun *u, const Block *b, LV tile, LV i, LV n) {
    CgLoop row, line;
    LV step = a_step(cg, r, u), first = cg_sub(cg, tile_first(cg, &b->cut, tile), b->first), height = tile_height(cg, &b->cut, tile);
    LV from = cg_at(cg, F32, block_source(cg, r, u, b), cg_mul(cg, first, step));
    LV lines = cg_div(cg, cg_addi(cg, b->n_k, LANES - 1), cg_int(cg, LANES));
    LV lo = cg_div(cg, cg_mul(cg, i, lines), n), hi = cg_div(cg, cg_mul(cg, cg_addi(cg, i, 1), lines), n);
    cg_for(cg, &row, cg_int(cg, 0), height, 1);
    LV at = cg_at(cg, F32, from, cg_mul(cg, row.i, step));
    cg_for(cg, &line, lo, hi, 1);
    cg_prefetch(cg, cg_at(cg, F32, at, cg_muli(cg, line.i, LANES)), false, 3);
    cg_end(cg, &line);
    cg_end(cg, &row);
}

// Before a panel of the last group that reads a block's copied rows: a part of the rows that take their place; of the first
// group that reads rows as they lie: of those of the tile that follows.
static void ask_for_next_a(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV i, LV tile) {
    if (r->ta || r->numbered || r->a_type != F32 || !rows_alias(r)) return;
    CgIf here;
    const Block *b = &s->now.b, *next = &s->next.b;
    LV begins = LLVMBuildAnd(cg->b, s->more, cg_eq(cg, s->next.g.g0, cg_int(cg, 0)), "");
    LV part = cg_sub(cg, i, s->now.g.g0), n = s->now.g.n;
    if (r->copy_a) {
        LV at = cg_add(cg, next->t0, cg_sub(cg, tile, b->t0));
        cg_if(cg, &here, LLVMBuildAnd(cg->b, begins, cg_lt(cg, at, next->t1), ""));
        ask_for_a(cg, r, u, next, at, part, n);
        cg_endif(cg, &here);
        return;
    }
    LV below = cg_addi(cg, tile, 1), inside = cg_lt(cg, below, b->t1), first = cg_eq(cg, s->now.g.g0, cg_int(cg, 0));
    cg_if(cg, &here, LLVMBuildAnd(cg->b, first, inside, ""));
    ask_for_a(cg, r, u, b, below, part, n);
    cg_else(cg, &here);
    CgIf last;
    cg_if(cg, &last, LLVMBuildAnd(cg->b, begins, LLVMBuildNot(cg->b, inside, ""), ""));
    ask_for_a(cg, r, u, next, next->t0, part, n);
    cg_endif(cg, &last);
    cg_endif(cg, &here);
}

static void copy_next_tile(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV tile) {
    CgIf last;
    const Block *next = &s->next.b;
    LV at = cg_add(cg, next->t0, cg_sub(cg, tile, s->now.b.t0)), there = cg_lt(cg, at, next->t1);
    LV begins = LLVMBuildAnd(cg->b, s->more, cg_eq(cg, s->next.g.g0, cg_int(cg, 0)), "");
    cg_if(cg, &last, LLVMBuildAnd(cg->b, begins, there, ""));
    copy_part(cg, r, u, next, cg_sub(cg, tile_first(cg, &next->cut, at), next->first), tile_height(cg, &next->cut, at));
    cg_endif(cg, &last);
}

static void group_tile(Cg *cg, const Rows *r, const RowsRun *u, const Steps *s, LV tile, bool is_first) {
    CgLoop unit;
    CgIf between;
    const Block *b = &s->now.b;
    const Group *g = &s->now.g;
    LV first = tile_first(cg, &b->cut, tile), height = tile_height(cg, &b->cut, tile), end = cg_add(cg, g->g0, g->n);
    LV sides = cg_int(cg, sides_of(u)), col = cg_muli(cg, cg_add(cg, u->lo, cg_div(cg, g->g0, sides)), r->panel);
    LV col_end = cg_min(cg, cg_add(cg, col, cg_muli(cg, cg_div(cg, g->n, sides), r->panel)), cg_int(cg, r->N));
    LV packs = r->ahead ? LLVMBuildAnd(cg->b, s->more, LLVMBuildNot(cg->b, s->few, ""), "") : NULL;
    Extent span;
    if (packs && !r->tb) span = span_of_tile(cg, b, tile, pieces_of_group(cg, r, &s->next.b));
    attach_strip(cg, u, false, b->done, first, height, col, col_end);
    cg_for(cg, &unit, g->g0, end, 1);
    ask_for_next_a(cg, r, u, s, unit.i, tile);
    unit_tile(cg, r, u, s, unit.i, tile, is_first);
    cg_end(cg, &unit);
    attach_strip(cg, u, true, b->done, first, height, col, col_end);
    if (copies_between(r)) copy_next_tile(cg, r, u, s, tile);
    if (!packs) return;
    cg_if(cg, &between, packs);
    if (r->tb) turn_shares(cg, r, u, s, tile);
    else pack_row_pieces(cg, r, u, &s->next.b, &s->next.g, &span);
    cg_endif(cg, &between);
}

static LV few_tiles(Cg *cg, const Rows *r, LV rows) {
    return cg_lt(cg, rows, cg_int(cg, (FEW_TILES - 1) * r->schedule.rows + 1));
}

// How chains are cut: pieces, each of `block` k.
typedef struct { LV pieces, block; } ChainCut;

static ChainCut chain_cut(Cg *cg, const Rows *r, const RowsRun *u) {
    LV one = cg_int(cg, 1);
    if (!cuts_k(r)) return (ChainCut){one, u->k};
    LV block = cg_int(cg, r->k_block);
    if (r->cuts_few) {
        // A single tile goes through rows of B rather than panels.
        LV single = cg_lt(cg, u->n, cg_int(cg, r->schedule.rows + 1));
        block = cg_select(cg, few_tiles(cg, r, u->n), cg_int(cg, few_k(r)), block);
        block = cg_select(cg, single, cg_int(cg, FEW_K), block);
    }
    LV pieces = cg_div(cg, cg_add(cg, u->k, cg_addi(cg, block, -1)), block);
    return (ChainCut){cg_max(cg, pieces, one), block};         // chains without steps are stored, too
}

static void piece_of_chain(Cg *cg, const Rows *r, const RowsRun *u, const ChainCut *c, LV i, Block *b) {
    b->k0 = cuts_k(r) ? cg_mul(cg, i, c->block) : cg_int(cg, 0);
    b->n_k = cuts_k(r) ? cg_min(cg, cg_sub(cg, u->k, b->k0), c->block) : u->k;
    b->done = cuts_k(r) ? cg_eq(cg, cg_add(cg, b->k0, b->n_k), u->k) : NULL;
}

// The order of a run.
typedef struct {
    TileCut cut;
    ChainCut chain;
    LV tiles_each, groups, units, units_each;
} Order;

static Step step_at(Cg *cg, const Rows *r, const RowsRun *u, const Order *o, LV i) {
    LV group = cg_rem(cg, i, o->groups), piece = cg_div(cg, i, o->groups), block = piece;
    Step s = {.b = {.cut = o->cut}};
    if (cuts_k(r)) {
        block = cg_div(cg, piece, o->chain.pieces);
        piece = cg_rem(cg, piece, o->chain.pieces);
    }
    s.b.t0 = cg_mul(cg, block, o->tiles_each);
    s.b.t1 = cg_min(cg, cg_add(cg, s.b.t0, o->tiles_each), o->cut.tiles);
    piece_of_chain(cg, r, u, &o->chain, piece, &s.b);
    block_at(cg, r, u, &s.b);
    s.g = (Group){.g0 = cg_mul(cg, group, o->units_each), .units = o->units};
    s.g.n = cg_min(cg, cg_sub(cg, o->units, s.g.g0), o->units_each);
    s.g.slots = bytes_at(cg, cg->scratch, r->at_panels);
    if (r->ahead) s.g.slots = cg_bytes(cg, s.g.slots, cg_mul(cg, cg_rem(cg, i, cg_int(cg, 2)), cg_muli(cg, o->units_each, r->panel_bytes)));
    return s;
}

static void run_blocks(Cg *cg, const Rows *r, const RowsRun *u) {
    CgLoop step, unit, tile;
    CgIf begins, packs;
    LV one = cg_int(cg, 1), zero = cg_int(cg, 0);
    int sides = sides_of(u), panels = r->group / sides ? r->group / sides : 1, few_panels = r->few_group / sides ? r->few_group / sides : 1;
    LV few = few_tiles(cg, r, u->n);
    Order o = {.cut = tile_cut(cg, u->n, r->schedule.rows), .chain = chain_cut(cg, r, u)};
    LV blocks = parts_of(cg, o.cut.tiles, cg_int(cg, r->tiles_block));
    o.tiles_each = parts_of(cg, o.cut.tiles, cg_max(cg, blocks, one));
    o.units = cg_muli(cg, cg_sub(cg, u->hi, u->lo), sides);
    o.units_each = cg_select(cg, few, cg_int(cg, few_panels * sides), cg_int(cg, panels * sides));
    o.groups = parts_of(cg, o.units, o.units_each);
    LV n = cg_mul(cg, cg_mul(cg, blocks, o.chain.pieces), o.groups);
    cg_for(cg, &step, zero, n, 1);
    LV after = cg_addi(cg, step.i, 1);
    Steps s = {.now = step_at(cg, r, u, &o, step.i), .more = cg_lt(cg, after, n)};
    s.next = step_at(cg, r, u, &o, cg_select(cg, s.more, after, step.i));
    Block *b = &s.now.b;
    s.few = r->ahead ? few : cg_bool(cg, true);
    if (r->copy_a) {
        cg_if(cg, &begins, cg_eq(cg, copies_between(r) ? step.i : s.now.g.g0, zero));
        copy_block(cg, r, u, b);
        cg_endif(cg, &begins);
    }
    LV empty = LLVMBuildOr(cg->b, s.few, cg_eq(cg, step.i, zero), ""), from = b->t0;
    if (is_laid(r)) {
        group_tile(cg, r, u, &s, b->t0, true);
        from = cg_addi(cg, b->t0, 1);
    } else {
        cg_if(cg, &packs, empty);
        if (!r->tb) group_tile(cg, r, u, &s, b->t0, true);
        else {
            cg_for(cg, &unit, s.now.g.g0, cg_add(cg, s.now.g.g0, s.now.g.n), 1);
            pack_unit(cg, r, u, b, &s.now.g, unit.i);
            cg_end(cg, &unit);
        }
        cg_endif(cg, &packs);
        if (!r->tb) from = cg_select(cg, empty, cg_addi(cg, b->t0, 1), b->t0);
    }
    cg_for(cg, &tile, from, b->t1, 1);
    group_tile(cg, r, u, &s, tile.i, false);
    cg_end(cg, &tile);
    cg_end(cg, &step);
}

// Rows of A for few rows' tiles, which go through all of k where panels lie ready: a panel is one stream.
static void few_rows_of_a(Cg *cg, const Rows *r, const RowsRun *u, const ChainCut *chain, LV piece, Block *b) {
    if (is_laid(r)) b->k0 = cg_int(cg, 0), b->n_k = u->k, b->done = NULL;
    else piece_of_chain(cg, r, u, chain, piece, b);
    block_at(cg, r, u, b);
    if (r->copy_a) copy_by(cg, r, u, b, &r->copy_few, b->a, cg_int(cg, 0), u->n);
}

static LV few_columns_at(Cg *cg, const Rows *r, LV matrix, const Block *b, LV col) {
    if (is_laid(r)) return laid_panel_at(cg, r, matrix, cg_div(cg, col, cg_int(cg, r->panel)), b->k0);
    return cg_at(cg, r->b_type, matrix, cg_add(cg, cg_muli(cg, b->k0, r->N), col));
}

// Columns lo .. hi-1 of y by tiles of one width.
static void wide_tiles(Cg *cg, const Rows *r, const RowsRun *u, const TileSet *set, LV lo, LV hi) {
    CgLoop k, l;
    LV zero = cg_int(cg, 0), cols = cg_int(cg, set->spec.cols);
    Block b = {.cut = {cg_int(cg, 1), u->n, zero}, .t0 = zero, .t1 = cg_int(cg, 1)};
    ChainCut chain = is_laid(r) ? (ChainCut){cg_int(cg, 1), u->k} : chain_cut(cg, r, u);
    attach_strip(cg, u, false, NULL, zero, u->n, lo, hi);
    cg_for(cg, &k, zero, chain.pieces, 1);
    few_rows_of_a(cg, r, u, &chain, k.i, &b);
    for (int side = 0; side < sides_of(u); side++) {
        LV matrix = side ? u->second_b : u->b, y = side ? u->second_y : u->y;
        cg_for(cg, &l, lo, hi, set->spec.cols);
        LV c = cg_at(cg, r->y_type, y, l.i);
        TileCall call = {.a = b.a, .b = few_columns_at(cg, r, matrix, &b, l.i), .c = c};
        call.k = is_laid(r) ? steps(cg, r->dot, b.n_k) : b.n_k;
        call.b_k = cg_int(cg, is_laid(r) ? PANEL_COLS : r->N);
        call.next = few_columns_at(cg, r, matrix, &b, cg_add(cg, l.i, cols));
        if (b.done) call.init = cg_select(cg, cg_lt(cg, zero, b.k0), c, LLVMConstNull(cg->ptr));
        tile_call(cg, set, u->n, &call);
        cg_end(cg, &l);
    }
    cg_end(cg, &k);
    attach_strip(cg, u, true, NULL, zero, u->n, lo, hi);
}

// A run of few rows is one tile, in columns as wide as the registers allow.  Gives the first panel it leaves.
static LV run_wide(Cg *cg, const Rows *r, const RowsRun *u) {
    LV first = u->lo, zero = cg_int(cg, 0);
    for (int vecs = TILE_MAX_VECS; vecs >= r->vecs; vecs--) {
        const TileSet *set = &r->wide[vecs];
        LV fits = NULL;
        for (int h = 1; h <= TILE_MAX_ROWS; h++) {
            if (!set->fn[h]) continue;
            LV equal = cg_eq(cg, u->n, cg_int(cg, h));
            fits = fits ? LLVMBuildOr(cg->b, fits, equal, "") : equal;
        }
        if (!fits) continue;
        CgIf some;
        int64_t panels = vecs / r->vecs;
        LV whole = cg_sub(cg, cg_min(cg, u->hi, cg_int(cg, r->n_whole)), first);
        LV n = cg_select(cg, fits, cg_div(cg, cg_max(cg, whole, zero), cg_int(cg, panels)), zero);
        LV end = cg_add(cg, first, cg_muli(cg, n, panels));
        cg_if(cg, &some, cg_lt(cg, zero, n));
        wide_tiles(cg, r, u, set, cg_muli(cg, first, r->panel), cg_muli(cg, end, r->panel));
        cg_endif(cg, &some);
        first = end;
    }
    return first;
}

void rows_run(Cg *cg, Rows *r, const RowsRun *u) {
    CgIf some, left;
    cg_if(cg, &some, cg_lt(cg, cg_int(cg, 0), u->n));
    RowsRun rest = *u;
    if (is_laid(r) || !r->tb) rest.lo = run_wide(cg, r, u);
    cg_if(cg, &left, cg_lt(cg, rest.lo, rest.hi));
    run_blocks(cg, r, &rest);
    cg_endif(cg, &left);
    cg_endif(cg, &some);
}

RowNumbers row_numbers(Cg *cg, const Contraction *c, int operand, LV first) {
    LV index = cg_at(cg, I32, cg_in(cg, c->index[operand]), first);
    return (RowNumbers){index, cg_rows(cg, &cg->k->node->in[operand]->type)};
}

void rows_attached(Cg *cg, Rows *r, RowsRun u, const Epilogue *e, LV b_at, LV y_at) {
    u.b = cg_at(cg, r->b_type, cg_in(cg, 1), b_at);
    u.y = cg_at(cg, r->y_type, epilogue_home(cg, e, 0), y_at);
    if (e->c.products == 2) {
        u.second_b = cg_at(cg, r->b_type, cg_in(cg, e->c.second), b_at);
        u.second_y = cg_at(cg, r->y_type, epilogue_home(cg, e, 1), y_at);
    }
    u.epilogue = e->fn ? e : NULL;
    rows_run(cg, r, &u);
}
