// Making nodes: shaped and checked as they are made, inserted at a place in the list.
#ifndef IR_BUILD_H
#define IR_BUILD_H
#include "ir/ir.h"

// Where new nodes go, and what they inherit.
struct Builder {
    Graph *g;
    Node  *before;     // new nodes are inserted before this one; NULL: at the end
    Span   at;
    Name   path;
    bool   backward;
    Diag  *diag;       // for shape errors of nodes made from user text; NULL: a wrong node is our bug (abort with text)
};

Builder builder_end(Graph *g, Diag *d);
Builder builder_before(Graph *g, Node *n);        // inherits n's span and path
Builder builder_after(Graph *g, Node *n);

// NULL after an error was reported to b->diag.  ins ends with NULL.
Node *build_node(Builder *b, Op op, Value *const *ins, const Attrs *attrs);
// For ops whose results don't follow from operands (FUSED, ATTENTION_GRAD's optional ones): types given.
Node *build_typed(Builder *b, Op op, Value *const *ins, const Attrs *attrs, int n_out, const Type *types);

// build(b, OP_TOPK, INS(scores), .k = 2)
#define build(b, op, ins, ...) build_node((b), (op), (ins), &(Attrs){__VA_ARGS__})
#define INS(...)               ((Value *[]){__VA_ARGS__, NULL})
// The first result: make(b, OP_ADD, INS(x, y)).  NULL if build gave NULL.
#define make(b, op, ins, ...)  build_first(build((b), (op), (ins), __VA_ARGS__))
static inline Value *build_first(Node *n) { return n ? &n->out[0] : NULL; }

// Small ones that gradient rules and passes use all the time.
Value *build_const(Builder *b, double value, DType dtype);              // scalar
Value *build_data(Builder *b, const Tensor *t);                         // copied into the graph's arena
Value *build_unary(Builder *b, Op op, Value *x);
Value *build_binary(Builder *b, Op op, Value *x, Value *y);
Value *build_scale(Builder *b, Value *x, double factor);                // x * factor; x itself for 1
Value *build_cast(Builder *b, Value *x, DType dtype);                   // x itself if it has it
Value *build_reshape(Builder *b, Value *x, const Dims *dims);           // x itself if it has it
Value *build_broadcast(Builder *b, Value *x, const Dims *dims);         // from size-1 (or missing leading) axes
Value *build_sum(Builder *b, Value *x, const Ints *axes);               // keeps the axes as 1
// The gradient of a broadcast: sums x over the axes in which `to` is 1 or missing, then has exactly its shape.
// Order of sums: see OP_SUM.  x itself if it has that type.
Value *build_sum_to(Builder *b, Value *x, const Type *to);

#endif
