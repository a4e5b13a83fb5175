// The register tile every contraction is made of, and the packing around it.
//
//     C[height x cols] = A[height x k] B[k x cols]      each element one chain c = fma(a, b, c), k ascending
//
// A is read by broadcasts at constant strides, B as vectors of 16 columns.  B is packed into panels:
// [k][panel] f32, as wide as the tile.  A tile is a static function of its module, one for each height that can occur.
// A tile of dot products (dot.h) is the same with pairs of bf16 for elements of A and B, and pairs for k.
#ifndef CODEGEN_CPU_TILE_H
#define CODEGEN_CPU_TILE_H
#include "codegen/cpu/cg.h"

enum { TILE_MAX_ROWS = 14, TILE_MAX_VECS = 8 };

// The table of tiles, tiles.def.
enum { TILE_RUN = 1, TILE_FEW = 2 };
typedef struct {
    int rows, vecs;            // vectors of 16 columns
    unsigned use;              // TILE_RUN, TILE_FEW
    int share[3];              // typical, in percent of the peak, by width of registers
} TileRow;
extern const TileRow tile_table[];
extern const int n_tile_rows;

// Whether sums, and what such a tile reads at once, fit the registers.
bool     tile_fits(const CpuTarget *t, MachineTileKind kind, int rows, int vecs);
// The table's first tile for runs that fits.
typedef struct { int rows, vecs; } TileSize;
TileSize tile_size(const CpuTarget *t);
int      tile_vecs(const CpuTarget *t, int height);       // widest tile of this height: 1, 2, 4 or 8 vectors

// Called for each vector of a finished tile; the default stores it to C.  col is a multiple of 16.
typedef void TileStore(void *self, Cg *cg, LV x, LV c, int row, int col, LV mask);

typedef struct {
    int     vecs, cols;        // vectors of 16 columns; live columns (the others are not stored)
    int64_t a_row, a_k;        // elements from a row of A to the next, from a k to the next
    int64_t c_row;             // elements from a row of C to the next
    DType   b_type, c_type;    // A is f32; with `dot` pairs in the place of f32
    bool    dot;               // A and B are pairs of bf16
    bool    joins;             // B is rows of bf16, two of which make pairs; k counts them
    bool    mask_b;            // B is not a panel: loads stay inside cols
    int64_t b_panel;           // of panels side by side (abi.h, Layout): bytes from one to the next; 0: a row is all columns
    bool    pairs;             // B is bf16 in pairs of k (abi.h, Layout): [k/2][b_k][2], what is behind an odd k is there
    int     prefetch;          // B comes from far: rows ahead are asked for into this cache (cg_prefetch); 0: not so
    int     ahead;             // bytes read until then, of streams; 0: few rows
    bool    packs;             // what is loaded of B is left as a panel for other tiles
    int     stream;            // so many lines at a time that other tiles will read are asked for meanwhile
    bool    ask_c;             // lines of the C that comes next are asked for
    bool    reload;            // the chain may continue from a tile in memory (init)
    bool    leaves;            // a chain for each leaf, whose sums meet in a tree (below)
    int     fours, n_leaves, leaf_k;     // not 0: so many leaves of so many k each (0: the table says), four leaves of `fours` rows at a time in registers
    int64_t held_row, merge_step;        // of the tree's tiles: elements between rows, between levels
    TileStore *store;          // NULL: to C
    void   *self;
} TileSpec;

typedef struct {
    TileSpec spec;
    LT       type;
    LV       fn[TILE_MAX_ROWS + 1];      // by height; NULL where not asked for
} TileSet;

// Emits the functions for the heights whose bit is set.
void tile_functions(Cg *cg, TileSet *set, const TileSpec *spec, const char *name, unsigned heights);

typedef struct {
    LV a, b, k, b_k, c;        // b_k: elements from a k of B to the next
    LV init;                   // address of the tile the chain continues; NULL or null: from zero
    LV leaves;                 // k is their number, init the tile at the bottom of its stack, this their table; c null: all sums are left there
    LV near;                   // the stack that all tiles share
    LV next;                   // behind the last row of B those of another tile are asked for; NULL: those that follow
    LV next_c;                 // the C that comes next; NULL: that to the right
    LV panel;                  // where B is left
    LV ahead, ahead_step, n_ahead;       // the stream: address, bytes from a row to the next, rows; NULL: nothing
} TileCall;
LV   tile_streamed(Cg *cg, const TileSpec *s, LV height, LV k);       // rows that the stream of a tile asks for
void tile_call(Cg *cg, const TileSet *set, LV height, const TileCall *c);     // dispatches on the height
void tile_call_fixed(Cg *cg, const TileSet *set, int height, const TileCall *c);

// Leaves of a sum over rows, whose rows lie one behind the other.  Their tree is that of a binary counter: before leaf l the
// stack holds a tile for each bit of l.  The chain of a leaf begins at zero or goes on from level LEAF_TOP; what it becomes
// is added to LEAF_MERGES tiles below, from the top down, and takes their place.  The last leaf's goes to c instead.
// Levels below LEAF_KEPT were begun by an earlier call, what is not LEAF_NEAR is left for a later one: they lie at init, others in
// a stack that all tiles share, so that it stays in the first cache.
// Leaves that are all there, a multiple of four, may go in fours: two chains side by side, and the sum of the two
// before them waits in registers, since a store costs as much as one or two multiply-adds of each pipe on some machines.  Of the
// table they need LEAF_K alone, and nothing where their rows are known when the code is made.
typedef enum { LEAF_K, LEAF_GOES_ON, LEAF_TOP, LEAF_MERGES, LEAF_KEPT, LEAF_NEAR, LEAF_FIELDS } LeafField;     // i32 each
enum { FOURS_ROWS = 8 };     // of a tile: a multiple of those at a time, and a divisor of most tasks' rows
int  tile_fours(const CpuTarget *t, int vecs);       // rows at a time; 0: none
LV leaf_table_at(Cg *cg, LV table, LV leaf);

// Rows cut into ceil(n / rows) tiles of nearly equal height: the first `extra` have base + 1, others base.
typedef struct { LV tiles, base, extra; } TileCut;
TileCut  tile_cut(Cg *cg, LV n, int rows);
LV       tile_height(Cg *cg, const TileCut *cut, LV tile);
LV       tile_first(Cg *cg, const TileCut *cut, LV tile);     // first row of a tile
unsigned tile_heights(int64_t n, int rows);                   // the heights that occur for n rows
static inline unsigned tile_all_heights(int rows) { return (2u << rows) - 2; }

// Functions that pack.  All give f32 and read `source` from its element (0, 0), rows `step` elements apart.
typedef struct { LT type; LV fn; int64_t cols; } PackFunction;      // cols: of functions that copy rows
// Rows by number: row i is row index[i] (i32) of the source, zeros if that is none of its n rows.  NULL where
// a function takes them: rows as they lie; `numbered` says while it is made which of both it is for.
typedef struct { LV index, n; } RowNumbers;
// Panels of vecs * 16 columns, panel_bytes apart, from n rows of `cols` columns.  The last panel may be
// narrow: what is behind its columns is 0.
PackFunction pack_rows_function(Cg *cg, const char *name, DType t, int vecs, int64_t panel_bytes,
                                bool numbered);
void         pack_rows(Cg *cg, const PackFunction *f, LV panels, LV source, LV n, LV step, LV cols,
                       const RowNumbers *rows);
// The same, of a few rows, or pairs of them, that are near already.
PackFunction pack_pieces_function(Cg *cg, const char *name, DType t, int vecs, int64_t panel_bytes, bool numbered, bool pairs);
// One panel from a source that holds its columns as rows; k rounds up to 16.  Columns from `cols` on repeat
// the last.
PackFunction pack_columns_function(Cg *cg, const char *name, DType t, int vecs, int cols, bool asks);
void         pack_columns(Cg *cg, const PackFunction *f, LV panel, LV source, LV k, LV step);
// Strips [n][16], strip_bytes apart, from n rows: strip t has the columns of tile t of the cut.  A of a
// transposed product.
PackFunction strips_function(Cg *cg, const char *name, DType t, int64_t strip_bytes, bool numbered);
void         pack_strips(Cg *cg, const PackFunction *f, LV strips, LV source, LV n, LV step,
                         const TileCut *cut, const RowNumbers *rows);
// The same for pairs of bf16: of rows 0 and 1, 2 and 3, .. of the source; of elements of a column.
PackFunction pack_row_pairs_function(Cg *cg, const char *name, int vecs, int64_t panel_bytes, bool numbered);
PackFunction pack_column_pairs_function(Cg *cg, const char *name, int vecs, int cols, bool asks);
PackFunction pair_strips_function(Cg *cg, const char *name, int64_t strip_bytes, bool numbered);
void         copy_numbered_rows(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step,
                                const RowNumbers *rows);
// n rows of `cols` elements become pairs, to_step apart.
PackFunction copy_pairs_function(Cg *cg, const char *name, int64_t cols, int64_t to_step, bool numbered);
// Fewer columns of rows, numbered or not (NULL), by any function that copies rows.
void         copy_columns(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step, LV cols,
                          const RowNumbers *rows);
// n rows of `cols` elements, to_step apart.
PackFunction copy_rows_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step);
void         copy_rows(Cg *cg, const PackFunction *f, LV to, LV source, LV n, LV step);
PackFunction copy_numbered_rows_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step);

// The same, of a few rows that are near already.
PackFunction copy_pieces_function(Cg *cg, const char *name, DType t, int64_t cols, int64_t to_step, bool numbered);

LV   tile_mask(Cg *cg, int live);            // constant mask of the first `live` of 16 lanes; NULL: all
void tile_transpose(Cg *cg, LV rows[16]);    // 16 vectors as a 16 x 16 block

#endif
