// Which register tile a product is made of and how it reads its matrix: of the ways there are, the one that is
// predicted to take the least time on this machine.  All give the same bits.
//
//     seconds = max(operations / rate of the tile, bytes / bandwidth of the level that holds them) + tasks * overhead
#ifndef CODEGEN_CPU_CHOOSE_H
#define CODEGEN_CPU_CHOOSE_H
#include "codegen/cpu/tile.h"

// Rows times a matrix.  few[n]: vectors of the tile that reads the matrix as it lies, of a run of n rows; 0: the
// run goes through panels as longer ones do.
typedef struct {
    int rows, vecs;                  // of the tallest tile of a run; a panel is as wide
    unsigned char few[TILE_MAX_ROWS + 1];
    int fours;                       // of sums over rows: rows whose leaves go in fours (tile.h); 0: leaves go one by one
} Schedule;

// What is multiplied.
typedef struct {
    DType  a_type, b_type, y_type;
    Layout layout;                   // of B
    bool   ta, tb;
    bool   cut;                      // tasks begin at multiples of 32 columns: so must panels
    bool   vary;                     // how many rows there are is known when it runs
    int    sides;                    // 2: a pair
    int64_t K, N;
    double matrices;                 // that are read
    double runs, rows;               // runs of each matrix, rows of each run, as far as they are known
    double tasks, groups;            // groups: of columns, which the tasks of a run's rows share out; 0: one
    double copies[TILE_MAX_ROWS + 1];    // times that rows of A that meet in cache sets are copied, by rows of the tallest tile
} RowsLoad;
// k of a piece of a chain, where panels are so wide.
int64_t rows_k_block(const KernelNode *k, const RowsLoad *load, int columns);
Schedule choose_rows(const KernelNode *k, const RowsLoad *load, KernelDesc *d, const char *what);

// Sums over `rows` rows into M x N elements of each of `matrices` results; a task makes m x n of them.
typedef struct {
    DType  a_type, b_type;
    int64_t M, N, m, n;
    int    leaves;
    bool   in_fours;                 // leaves may go so: all their rows are packed at once
    double matrices, rows;
    double tasks;
} SumsLoad;
typedef struct { int rows, vecs, fours; } SumsTile;
SumsTile choose_sums(const KernelNode *k, const SumsLoad *load, KernelDesc *d, const char *what);

// Attention: panels of queries as wide as a tile meet blocks of keys.  Chains are A long in scores, V in their gradients; results
// have V columns, gradients A.
typedef struct {
    bool    grad;
    int64_t A, V, block;             // keys of a block
    int64_t most;                    // lanes of a tile at most; a divisor of it
    double  blocks[TILE_MAX_VECS + 1];   // blocks of keys that all panels meet together, by vectors of a panel
    double  bytes, packed, tasks;    // moved; of panels and copies, packed
    double  exps;                    // lanes x keys
} AttentionLoad;
TileSize choose_attention(const KernelNode *k, const AttentionLoad *load, KernelDesc *d, const char *what);

// Dot products of bf16 where their tiles are clearly faster, for a plan that names them resumes only where they are
// used.
bool choose_dots(const CpuTarget *t, const Machine *m);

#endif
