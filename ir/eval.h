// Runs a graph by the meaning of its ops: constant folding, differential tests, `--target=ref`.
#ifndef IR_EVAL_H
#define IR_EVAL_H
#include "ir/ir.h"

typedef struct Eval Eval;

typedef struct {
    bool f64;                                     // all float tensors in double
    // Gives the contents of a PARAM, STATE or INPUT node: fills t->data's elements (t has dtype F32/F64 for floats,
    // I32, BOOL.., actual sizes, data allocated).  false: reported by the caller, the run fails.
    bool (*source)(void *self, const Node *n, Tensor *t);
    void *self;
    int64_t (*sym_value)(void *self, const Sym *s);   // PLAIN symbols; NULL: their bound
} EvalOpts;

// Everything lives in a.  Returns NULL after diag_error.  Effects are collected, nothing is written anywhere.
Eval *eval_graph(Arena *a, const Graph *g, const EvalOpts *opts, Diag *d);
const Tensor *eval_value(const Eval *e, const Value *v);       // the tensor of a value of g (actual sizes)
// Evaluates a graph whose sources are all constants: constant folding of node n.  NULL if it can't.
const Tensor *eval_constant(Arena *a, const Node *n);

#endif
