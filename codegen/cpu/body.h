// Bodies: elementwise work and row reductions over one space of rows, values in registers.  A single
// elementwise node, softmax, logsumexp or sum along the last axis is a body of one node.  Inside body*.c only.
//
// A body becomes a list of steps per row; softmax and logsumexp are spelled out in them.  Reductions cut a
// row's work into levels; each level runs over the columns once:
//
//     level 0   m = max(x)                       LOAD steps are repeated wherever they are read
//     level 1   e = exp(x - m); s = sum(e)       e is kept: in registers (64 columns) or a row buffer
//     level 2   store e / s
//
// Row buffers lie in the thread's scratch memory.  `slice` and `concat` of computed columns go through one
// too, and topk, take and put find their columns there; topk and put run before the columns of their level.
// gather_rows is a load from another row.  scatter_add_rows by a known inverse is a sum of rows of another space,
// the sources of the row; their numbers, sorted, are the rows of as many spaces more, and what is done to sources
// is done once in each:
//
//     row t     r0 < r1 < .. = inverse[t]          y = 0 + f(row r0) + f(row r1) + ..        -1, no row: + 0
//
// A body without reductions whose operands all have the space's own shape (or one element) runs flat: its
// elements are one long row, cut into runs of 4096.
#ifndef CODEGEN_CPU_BODY_H
#define CODEGEN_CPU_BODY_H
#include "codegen/cpu/elem.h"
#include "ir/base/vec.h"

enum { REGISTER_CHUNKS = 4, TOPK_CHUNKS = 16, MOST_AT_ONCE = 4, COLUMNS_AT_ONCE = 128, FLAT_RUN = 4096 };
enum { MAX_WIDTHS = 12, MAX_OPERANDS = 3, MOST_SOURCES = 16, MAX_SPACES = 8 + MOST_SOURCES, MAX_RESULTS = 32 };
enum { AHEAD_BYTES = 4096 };     // where the processor's own prefetch ends
enum { MOST_REDUCTIONS = CG_MAX_CARRY, MOST_STORES = 128, MOST_KEPT = 128, MOST_PARTS = 128 };   // of a body

typedef enum {
    S_LOAD, S_TABLE, S_CONST, S_INDEX, S_ELEM, S_SUM, S_MAX, S_BUFFER, S_TAKE, S_TOPK, S_PUT
} StepKind;

typedef struct Step Step;
// Columns begin .. of a buffer, written from a step.
typedef struct { Step *from; int64_t begin; Dim width; } Part;

struct Step {
    StepKind kind;
    const Node *node;            // ELEM, CONST, TABLE: the node; INDEX: the iota
    Op op;                       // ELEM without node: arithmetic of softmax, COPY, which rounds, or SELECT: 0
                                 // for a source that there is not
    Step *in[MAX_OPERANDS];
    int  n_in;
    DType dtype;
    bool wide;                   // has columns
    Dim  width;
    // LOAD, TABLE, INDEX
    int  arg, space;             // operand number; number of the row space it is read in
    Type view;                   // operand's type as read
    RowMap map;
    int64_t begin;               // first column read; BUFFER: of the buffer
    Step *number;                // LOAD: of the row it reads of the operand, whose own type is `source`
    Type source;
    // BUFFER
    Part  part[16];
    int   n_parts;
    Step *whole;                 // a slice of another buffer
    Step *by;                    // filled by this topk or put
    // TOPK, PUT: operands in[] are buffers
    Step *filled[2];
    int64_t keys;                // TOPK: offset in scratch of the keys
    // schedule
    int  level;                  // loop in which it is computed
    bool anywhere;               // cheap: computed again in every loop that wants it
    bool kept;                   // wanted in later loops
    int64_t buffer;              // offset in scratch; -1: none
    // emission
    LV   value, row;             // of the current chunk, or of the row; LOAD: row offset
    LV   chunk[REGISTER_CHUNKS + 1];
    int  seen;                   // chunk for which `value` holds
    bool asked;                  // LOAD: the level that reads it first asks for its next rows
};

typedef struct { Step *from; int result, source; int64_t begin; Dim cols; } Store;
// Leading dimensions are what counts.  Whose row it is: THIS_ROW - n is the n-th behind the current one, what is not
// negative the number of a source of it.
typedef struct { Type type; int source; } Space;
enum { THIS_ROW = -1 };
static inline bool is_source(int source) { return source >= 0; }

typedef struct {
    Arena *a;
    const KernelNode *k;
    const Graph *body;
    VEC(Step *) steps;
    VEC(Store) stores;
    VEC(Space) spaces;
    struct Memo { const Value *v; int space; Step *step; struct Memo *next; } *memo;
    bool ok, flat;
    int  n_levels;
    int64_t scratch;
    int64_t grain;
    const Value *result[MAX_RESULTS];     // what is stored; reshapes at the end only rename its dimensions
    const Type *rows;            // the rows of all: those of result 0, or of what a scatter brings together
    const Node *combine;         // the scatter, or NULL
    bool *in_all;                // by the body's values: the same in all sources of a row
    uint32_t streamed;           // streamed_results
    bool asks_ahead;             // for the rows after this one
} Body;

static inline Dim last_dim(const Type *t) { return t->ndim ? t->dim[t->ndim - 1] : dim_n(1); }
static inline Dim plain_width(Dim d) { return d.sym && d.sym->kind == SYM_LEAF ? dim_n(d.n * d.sym->bound) : d; }
// Columns or numbers made from other steps, again for every chunk.
static inline bool is_computed(const Step *s) { return s->kind == S_ELEM || s->kind == S_TAKE; }
static inline bool in_registers(Dim width) { return !width.sym && width.n <= REGISTER_CHUNKS * LANES; }
static inline bool is_topk_in_groups(const Step *s) {
    if (s->kind != S_TOPK) return false;
    Dim width = last_dim(&s->node->in[0]->type);
    return !width.sym && width.n <= TOPK_CHUNKS * LANES && s->node->attr.k <= LANES;
}

// body_steps.c: the step of a value of b->body in a space of rows; NULL, and b->ok false, if it has none.
Step *body_step(Body *b, const Value *v, int space);
int   body_space(Body *b, const Type *t, int source);     // number of a space of rows; -1: it can't be one of this body
const Type *body_rows(const Body *b, int source);         // of the target, or of sources

// body_levels.c: sets levels of steps; keeps what later ones read, b->ok false if that is more than a thread's scratch.
void body_set_levels(Body *b);
void body_keep_values(Body *b);
int  body_available(const Step *s);                       // the level from which on others may read it

typedef struct {
    Cg   *cg;
    Body *b;
    LV    row;
    LV    index[MAX_SPACES][MAX_DIM];       // by row space
    LV    source_row[MOST_SOURCES], is_source[MOST_SOURCES];     // sorted; 0 where there is none
    bool  all_there;                 // no source is missing
    LV    zeros;                     // what rows read by a number that is none show
    int   level, stamp, chunk_number;  // chunk_number: within a width kept in registers, else -1
    LV    col, mask;
} Em;

// How values wait in row buffers: booleans as bytes, all else as in registers.
static inline DType buffer_type(DType t) { return t == BOOL || t == I32 ? t : F32; }

// body_emit.c
LV body_buffer_at(Em *e, const Step *s);
LV body_column_at(Em *e, const Step *s);                  // the first column of a buffer or a part of one
// Rows lo .. hi - 1, as many at once as b was made for; gives the first that is left.
LV body_emit_rows(Cg *cg, Arena *a, Body *b, LV lo, LV hi, int at_once);
// body_topk.c
void body_emit_topk(Em *e, Step *s);                      // of all rows that are done at once
void body_emit_put(Em *e, Step *s);

#endif
