// What several passes need.  Inside passes/ and its tests only.
#ifndef PASSES_UTIL_H
#define PASSES_UTIL_H
#include "ir/base/map.h"
#include "ir/base/vec.h"
#include "passes/pass.h"

// A copy of n that reads ins (n->n_in of them), with n's span, path and attributes; placed by b.  A region it
// holds is shared: clone only what will replace n.
Node *node_clone(Builder *b, const Node *n, Value *const *ins);
// Are the attributes that op uses equal?
bool attrs_equal(Op op, const Attrs *x, const Attrs *y);
// Is v a constant with one value everywhere (looking through broadcast and reshape)?
bool value_is_number(const Value *v, double *number);
bool value_is_scalar_const(const Value *v, double *number);      // a CONST node of no dimensions
// A region of g for a node to hold.
Graph *region_new(Graph *g, const char *name);
// Value.mark of all values of g = NULL.
void marks_clear(Graph *g);
void node_add_operand(Node *n, Value *v);                        // v becomes the last one
// Moves n (in its graph's list) directly behind `place`, which is in the same list.
void node_move_behind(Node *n, Node *place);

// No other node reads its memory, which is not a tensor's.
bool value_is_read_once(const Value *v);
// A tensor with one part for each expert.
bool param_is_of_experts(const Node *param);

// What a run of g does: launches of kernels, and bytes they read and write.
typedef struct { int launches; double bytes; } GraphWork;
GraphWork graph_work(const Graph *g);
void won_work(const Graph *g, PassCtx *cx, GraphWork before);    // WON: how much less it is now

// The graph means the same: evaluates both on the same random sources and compares every effect that `before`
// has (UPDATEs may be gone: the optimizer moves them).  tolerance 0: bit for bit, in f32; else relative to
// the largest element of the tensor, in double.  NULL, or what differs (in a).
const char *semantics_differ(Arena *a, const Graph *before, const Graph *after, double tolerance);
// Random contents for PARAM, STATE and INPUT nodes, the same for the same name (EvalOpts.source with such a
// self).
typedef struct { const Graph *g; int64_t *int_limit; } RandomSources;
RandomSources random_sources(Arena *a, Graph *g);                // numbers g
bool random_source(void *self, const Node *n, Tensor *t);
int64_t random_sym_value(void *self, const Sym *s);

// What memory planning takes for granted of kernels (README.md): nodes that move no data, the value whose
// memory a chain of them shows, and results that may be written over an operand whose last reader the node
// is.
bool node_is_view(const Node *n);
const Value *value_shown(const Value *v);
bool node_can_overwrite(const Node *n, int operand, int result);

// Can contraction n read the rows of this operand by number (attach.c)?
bool contraction_can_gather(const Node *n, int operand);

// Does the memory plan hold: no two buffers that live at the same time overlap.  Walks all pairs; shares no
// code with the pass.  NULL, or which two (in a).
const char *plan_overlap(Arena *a, Graph *g);

#endif
