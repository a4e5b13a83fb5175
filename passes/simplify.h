// Between simplify.c (the driver) and its parts.  Inside passes/ only.
#ifndef PASSES_SIMPLIFY_H
#define PASSES_SIMPLIFY_H
#include "passes/util.h"

// A value equal to n's only result that costs less, built with b (which stands before n), or NULL.  rules.c
Value *rule_apply(Builder *b, Node *n);
// logsumexp and take of logits that nobody else reads: head_loss.  True if it changed anything.  head_loss.c
bool recognise_head_loss(Graph *g, PassCtx *cx);
// head_loss and a head_loss_grad that doesn't wait for it: both at once.  True if it changed anything.  head_loss.c
bool merge_head_loss(Graph *g, PassCtx *cx);
// Nodes that follow from constants alone become constants, computed in double and rounded once.  fold.c
bool fold_constants(Graph *g, PassCtx *cx);
// At inference: functions of the positions with a cos or sin become rows of a table of all positions.  fold.c
bool tabulate_positions(Graph *g, PassCtx *cx);

// Drops pure nodes that nobody reads.  simplify.c
bool drop_dead(Graph *g, PassCtx *cx);
// Replaces what has a mark: every operand (and symbol extent) v with v->mark becomes the end of the chain of
// marks. Then clears the marks.
void marks_apply(Graph *g);
static inline Value *mark_end(Value *v) {
    while (v->mark) v = v->mark;
    return v;
}

#endif
