// Products of matrices out of tiles: rows times a matrix, and sums over rows.  What matmul, grouped_matmul,
// their gradients and head_loss share; the kernels say which rows, which matrix, which part a task takes.
#ifndef CODEGEN_CPU_PRODUCT_H
#define CODEGEN_CPU_PRODUCT_H
#include "codegen/cpu/choose.h"
#include "codegen/cpu/epilogue.h"

// ---- y[n, N] = a[n, K] b[K, N] ------------------------------------------------------------------
// Blocks of A, in rows and k, stay in the second cache while groups of panels of B pass by.  Panels are packed between the
// tiles of the group before; of few rows by the first tile, which reads B as it lies and leaves them in scratch.
typedef struct {
    // given
    DType   a_type, b_type, y_type;
    bool    ta, tb;            // ta: a is stored [K, rows]; tb: b is stored [N, K]
    bool    numbered;          // rows of a are read by number
    Layout  layout;            // of b: panels are read as they lie, whatever the run's length
    int64_t K, N;              // K: largest; N is known
    int64_t y_row, a_given;    // elements between rows of y; of a, if they are not its K (0: they are)
    int64_t max_rows, cols;    // of a run at most; cols = 0: all N
    unsigned heights;          // tile heights that can occur
    int64_t scratch_used;      // bytes at the start of the scratch that are not ours
    Schedule schedule;         // by rows_choose
    // made by rows_begin
    int     vecs, panel;       // vectors and columns of a panel
    int     n_panels, n_whole, tail;     // panels, whole ones, columns of the last if it is narrow
    bool    dot;               // a and b are multiplied in pairs of k (dot.h)
    bool    copy_a;            // tiles read copies of the rows of A
    int64_t k_block;           // k of a block of A
    bool    cuts_few;          // runs of few rows take less
    int     tiles_block;       // most tiles of a block of A
    int64_t a_row, a_k, tile_bytes;      // tile_bytes: of the copied rows of a tile
    int     group, few_group;  // panels that a tile meets before the next tile
    bool    ahead;             // there is room for the next group's panels
    int64_t panel_bytes, at_panels;
    TileSet first, first_last, rest, rest_last;      // the first tile of a panel, the others; _last: the narrow panel
    TileSet wide[TILE_MAX_VECS + 1];     // of runs of few rows, by vectors
    int64_t few_row;           // copied rows of those lie so far apart
    bool    few_ask;           // they ask for lines of panels that lie ready
    PackFunction pack, pack_last, piece, piece_last, pack_piece, copy, copy_few;
} Rows;

// What the code of products takes from the machine becomes part of the key.
void product_key(const KernelNode *k, KernelDesc *d);
bool rows_possible(const Rows *r);                 // false: sizes beyond the scratch
// Fills the schedule and what follows from it.  load: what Rows doesn't say (vary, sides, matrices, runs, rows,
// tasks).  d: what was chosen goes there; NULL when the code is made.  what: the product's name in the kernel.
void rows_choose(Rows *r, const KernelNode *k, RowsLoad load, KernelDesc *d, const char *what);
void rows_begin(Cg *cg, Rows *r);
// One run of n rows and panels lo .. hi-1.  a: its first row (ta: its first column, a_step: elements between
// the rows of a as stored); b: element (0, 0) of the matrix.  Numbered rows: a is row 0 of the source, `rows`
// the numbers of the run's.
typedef struct {
    LV a, a_step, b, y, n, k, lo, hi;
    RowNumbers rows;
    const Epilogue *epilogue;  // run over finished strips; NULL: none
    LV row;                    // the run's first row among all
    LV second_b, second_y;     // of a pair; NULL: none
} RowsRun;
void rows_run(Cg *cg, Rows *r, const RowsRun *run);
// The run of a contraction with what is attached to it: b and y are the node's, b_at and y_at elements behind
// their begin; both products of a pair, and the epilogue.
void rows_attached(Cg *cg, Rows *r, RowsRun run, const Epilogue *e, LV b_at, LV y_at);
// Numbers of the rows of operand 0 or 1 from row `first` on.
RowNumbers row_numbers(Cg *cg, const Contraction *c, int operand, LV first);
int  rows_panels(const Rows *r);                   // panels of N columns
int64_t rows_panels_each(const Rows *r, int64_t groups);     // of a group
int64_t rows_matrix(const Rows *r);                // elements from a matrix b to the next
enum { ROWS_RUN = 256 };                           // rows of a task at most; runs of a product are equally long

// Rows that a product of `bound` rows is weighed at, where they vary with sym.
static inline int64_t rows_weighed(const KernelNode *k, int64_t bound, const Sym *sym) {
    return sym && k->at_rows && k->at_rows < bound ? k->at_rows : bound;
}

// Does the node's kernel take its matrices in panels?
bool matmul_takes_panels(const KernelNode *k);
bool grouped_takes_panels(const KernelNode *k);

// How many groups of panels a task's matrix is cut into, so that there are enough tasks and none is tiny.
int rows_groups(const Machine *m, int64_t runs, int64_t rows, int64_t K, int64_t N, bool rows_vary);

// Where the number of rows varies, the tasks of a run are `groups` times `parts`.  Few rows, for which reading the
// matrix is the work, cut it so: long pieces first, which memory streams best, short ones last, so that threads end
// together.  For more rows the first part of a group takes all its panels and packs what it needs once.
int  rows_parts(const Rows *r, const CpuTarget *t, int64_t groups);
void rows_part(Cg *cg, const Rows *r, RowsRun *u, LV rows, LV group, LV part, int groups, int parts);

// ---- y[M, N] = tree over leaves of sum over rows of a[row, M] b[row, N] -------------------------
// A task computes m x n elements of the result; the cut depends on sizes only, not on the machine.
typedef struct { int64_t m, n, runs, groups; } SumCut;

typedef struct {
    // given
    DType   a_type, b_type, y_type;
    int64_t M, N;
    int     leaves;
    int64_t leaf_rows;                           // of each, if it is known; else 0
    bool    all_there;                           // all leaves come in one call, as many as `leaves`
    bool    numbered[2];                         // rows of a, of b are read by number
    int64_t a_given;                             // elements between rows of a, if they are not M; 0: they are
    SumCut  cut;                                 // m = 0: sums_begin fills it; n: whole panels, or all of N
    SumsTile size;                               // by sums_choose
    // made by sums_begin
    bool    dot;                                 // rows are multiplied in pairs
    int64_t rows;                                // of a and b packed at once: so many stay in the second cache
    int     vecs, panel;
    int64_t tiles, panels;                       // most of a task
    int64_t slot, level;                         // floats of a tile, of a level of the stack
    int64_t at_near, at_table, at_a, a_step, at_b, panel_bytes;     // a_step: elements from a row of a to the next
    int64_t buffer;                              // bytes from the rows packed now to those packed meanwhile; 0: none are
    TileSet tile[2], fours[2];                   // of whole panels and of the narrow one; where all leaves lie packed, in fours
    PackFunction pack, pack_a, piece, piece_a;   // piece: of rows that were asked for
} Sums;

// Fills cut and size.  rows: that are summed into each matrix.
void sums_choose(Sums *s, const KernelNode *k, int64_t matrices, double rows, KernelDesc *d, const char *what);
void sums_begin(Cg *cg, Sums *s);
// begin .. end-1: the rows of a leaf; the next leaf begins where it ends.
typedef void LeafRows(void *self, Cg *cg, LV leaf, LV *begin, LV *end);
// Sums whose rows come in several calls: finished ones of earlier leaves wait in levels of f32 [M, N], like
// those of a binary counter.  Level 0 is y.
typedef struct {
    LV above;                                    // level 1; the further ones are `step` bytes apart
    int64_t step;
    LV top;                                      // levels in use
    LV goes_on;                                  // i1: level `top` holds the begin of the first leaf's chains
    LV merges;                                   // levels that are added on the left, from the top down
} SumLevels;

typedef struct {
    LV a, b, y;                                  // y: the matrix
    LV run, group;                               // which part of it
    RowNumbers rows[2];                          // of all rows of a, of b
    LeafRows *leaf;
    void     *self;
    LV leaf_rows;                                // of each, if they are equal; else NULL
    LV n_leaves;                                 // at most Sums.leaves; NULL: so many
    const SumLevels *levels;                     // NULL: all rows are there
} SumsRun;
void sums_run(Cg *cg, Sums *s, const SumsRun *u);

// ---- of both ------------------------------------------------------------------------------------

int64_t product_block_bytes(const KernelNode *k);      // of operands that stay in the second cache
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// Elements of 4 bytes that k of A or B take up in a tile: f32, or pairs of bf16.
static inline int64_t steps_of(bool dot, int64_t k) { return dot ? (k + 1) / 2 : k; }
static inline LV steps(Cg *cg, bool dot, LV k) {
    return dot ? LLVMBuildLShr(cg->b, cg_addi(cg, k, 1), cg_int(cg, 1), "") : k;
}
static inline LV bytes_at(Cg *cg, LV base, int64_t n) { return n ? cg_bytes(cg, base, cg_int(cg, n)) : base; }

static inline int panels_of(int64_t N, int vecs) { return (int)((N + vecs * LANES - 1) / (vecs * LANES)); }

#endif
