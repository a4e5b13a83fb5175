// What attention and its gradient share: sizes, scratch, what a tile knows of its queries, scores and masks.
//
// Lanes are queries: panels of 16 or 32 of them lie side by side; a block of up to 64 keys and their values
// is copied to scratch as f32, where its rows are not pages apart.
//
//     scores  S [keys][lanes]   = K rows x Q panel              softmax, masks, sums: vectors, no folds
//     output  O [V][lanes]     += V^T rows x P [keys][lanes]
//
// A few queries, as one token has, go the other way: attention_few.c.
//
// Orders: ir/ref/contraction.c.
#ifndef CODEGEN_CPU_ATTENTION_H
#define CODEGEN_CPU_ATTENTION_H
#include "codegen/cpu/choose.h"

enum { ATTN_BLOCK = 64, ATTN_SEGMENT = 512, ATTN_FEW = 8 };

typedef struct {
    const KernelNode *k;
    const Type *q_type, *k_type, *v_type;
    Dim S, C;
    int64_t batch, H, Hk, G, A, V, A16, V16, window;
    bool causal;
    int sinks, bias, valid, documents, sequences, after; // operand numbers, -1: not given; the first operand behind
    int64_t pool;                             // sequences: rows of keys that each has room for
    TileSize tile;                            // by attention_choose
    // made by attention_begin
    int vecs, lanes; // of a panel: what a tile computes at once
    int width;       // lanes in a row of scores: a whole number of panels
    int64_t used;    // bytes of scratch given away
    int64_t k_copy, v_copy;
    int64_t queries_used; // bytes of what is kept of a tile of queries; these are offsets in it:
    int64_t q_panel, pos, doc, bias_at, sink;
    TileSet score; // K rows x panel
    PackFunction copy_k, copy_v;
    LV S_now, C_now;         // of this batch element
    LV first_query, first_key; // its rows in q and o, and in k and v; NULL: it is the b-th, and has all of them
    // set by the kernel as it goes
    LV b, g;    // index of batch; key head
    LV queries; // address of what is kept of this tile of queries
} Attn;

bool attention_of(const KernelNode *k, Attn *p); // false: beyond what the kernels can do
// The code takes the depth of its stack and the size of its sums from the most keys there can be.
void attention_key(const Attn *p, KernelDesc *d);
// The tile, by predicted times; of panels whose lanes divide `most`.  Gradients: panels of one head, keys that its queries see.
// d: what was chosen goes there; NULL when the code is made.
void attention_choose(Attn *p, KernelDesc *d, int64_t most, bool grad);
// keys: rows of the copies of keys and values.
void attention_begin(Cg *cg, Attn *p, int width, int64_t keys, unsigned heights);
// Heights of tiles over the keys of a block.  heads_are_queries: a panel holds the heads of a key head side
// by side.
unsigned attention_heights(const Attn *p, bool heads_are_queries);

static inline int64_t attention_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t attention_take(int64_t *used, int64_t bytes); // bytes of scratch, or of what is kept of a tile
LV attention_at(Cg *cg, LV base, int64_t bytes);

// ---- queries ------------------------------------------------------------------------------------
// b and g, and where the rows of sequence b are.  place: b * Hk + g
void attention_place(Cg *cg, Attn *p, LV place);
LV attention_row(Cg *cg, const Attn *p, LV i, LV h); // number of row (b, i, h) of q, o and lse
LV attention_key_row(Cg *cg, const Attn *p, LV j);   // number of row (b, j, g) of k and v
LV attention_batch(Cg *cg, const Attn *p, const Type *t, int inner); // which of t's leading blocks b reads
// What lane `lane` needs to know of its query (i, h).
void attention_lane(Cg *cg, const Attn *p, LV lane, LV i, LV h);
LV lane_vec(Cg *cg, const Attn *p, DType t, int64_t field, int v);
void lane_put(Cg *cg, const Attn *p, DType t, LV x, int64_t field, int v);
// [columns][width] -> rows [lane][columns], by a factor for each lane (vectors; NULL: none).
void attention_transpose(Cg *cg, const Attn *p, LV from, int64_t columns, const LV *scale, LV rows);
// One row of f32 to `to`, element index `at`, of type t.
void attention_store_row(Cg *cg, LV row, int64_t columns, DType t, LV to, LV at);

// ---- keys ---------------------------------------------------------------------------------------
// First block of keys that any query at positions lo .. hi sees, and the end of what they see.
void attention_range(Cg *cg, const Attn *p, LV lo, LV hi, LV *from, LV *to);
// Keys j .. j+n-1 and their values, to row `to` of the copies.
void attention_copy_keys(Cg *cg, const Attn *p, LV j, LV n, LV to);
void attention_prefetch(Cg *cg, const Attn *p, bool values, LV j, int n); // asks for their rows
// Scores (or whatever the set computes) of n rows at a with the panel at b: c [n][width].
void attention_by_rows(Cg *cg, const Attn *p, const TileSet *set, LV a, LV b, int64_t depth, LV c, LV n);
// Asks for rows that come next while a product runs, before each of its tiles: long before their use they would be
// thrown out of the cache again.
typedef struct {
    void (*ask)(const void *self, Cg *cg, LV part);
    const void *self;
    int first; // part of the first tile, each next one has the next
} Ahead;
// acc [columns][width] continues its chains over n rows a, weighted: [n][width].  init (i1): it doesn't, it
// begins.
void attention_by_columns(Cg *cg, const Attn *p, const TileSet *set, LV a, int64_t columns, LV weights, LV n,
                          LV acc, LV begins, const Ahead *ahead);
// Whether some query at positions lo .. hi may not see some of the keys j .. j+n-1 or has a bias: i1.
LV attention_boundary(Cg *cg, const Attn *p, LV j, LV n, LV lo, LV hi);
// The score x of key j for 16 queries, with its bias; *seen: lanes that see the key, NULL: all.
LV attention_finish(Cg *cg, const Attn *p, LV x, LV j, int v, LV *seen);
LV attention_index(Cg *cg, const Attn *p, LV row, int v); // element of vector v of a row of scores

LV attention_both(Cg *cg, LV a, LV b); // a & b; a NULL: b
// `seen`, but only where a query at position pos sees the key: not behind it, not outside its window.  pos is
// not read where there is neither.
LV attention_in_reach(Cg *cg, const Attn *p, LV seen, LV key, LV pos);
LV minus_inf(Cg *cg);                  // of all lanes
LV is_minus_inf(Cg *cg, LV x);
LV larger(Cg *cg, LV a, LV b);    // b if equal, or if a is NaN
LV keep_of(Cg *cg, LV old, LV m); // exp(old - m), 0 if there was nothing
LV all_lanes(Cg *cg, LV truth);   // i1

// ---- few queries (attention_few.c) --------------------------------------------------------------
// At most ATTN_FEW of them, heads counted: phase 0 by segments of keys, phase 1 is their end.
bool attention_may_be_few(const Attn *p);
void attention_few_describe(const Attn *p, KernelDesc *d); // d has the tasks of one phase for many queries
int64_t attention_segments(const Attn *p);                 // most there can be
// Of the place and segment given (NULL: those of the task), p->b and p->g with the place.
void emit_attention_few(Cg *cg, const Attn *p, LV place, LV segment);

#endif
