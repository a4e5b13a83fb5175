// Cross-entropy over a vocabulary without the logits of all tokens in memory.
//
//     %z = matmul %x, %w {tb = 1} : f32[L,512,32000]
//     %l = logsumexp %z : f32[L,512,1]                       %n, %lse = head_loss %x, %w, %y
//     %t = take %z, %y : f32[L,512,1]                 =>
//     %n = sub %l, %t : f32[L,512,1]
//
// Only where the logits and both rows of numbers have no other reader: a graph that returns its logits keeps
// them. Labels below 0 give 0 here and logsumexp there; whoever has such labels masks them anyway.
#include "passes/simplify.h"

// What v is before reshapes and a widening cast, each with a single reader.
static Value *before_views(Value *v) {
    while (v->n_uses == 1 && (v->node->op == OP_RESHAPE || (v->node->op == OP_CAST && v->type.dtype == F32)))
        v = v->node->in[0];
    return v;
}

static bool keeps_last_axis(const Value *x, const Value *y) {
    return type_cols(&x->type) == type_cols(&y->type);
}

// The head_loss's nll in the shape of n, or NULL.
static Value *head_loss(Graph *g, Node *n) {
    if (n->op != OP_SUB) return NULL;
    Node *lse = before_views(n->in[0])->node, *take = before_views(n->in[1])->node;
    if (lse->op != OP_LOGSUMEXP || take->op != OP_TAKE) return NULL;
    Value *z = lse->in[0];
    bool ours = take->in[0] == z && z->n_uses == 2 && lse->out[0].n_uses == 1 && take->out[0].n_uses == 1
             && type_cols(&take->in[1]->type) == 1;
    if (!ours) return NULL;
    Value *logits = z;
    if (z->node->op == OP_RESHAPE || z->node->op == OP_CAST) logits = before_views(z->node->in[0]);
    Node *m = logits->node;
    if (m->op != OP_MATMUL || m->attr.ta || !m->attr.tb || m->in[1]->type.ndim != 2 ||
        !keeps_last_axis(z, logits))
        return NULL;
    if (m != z->node && logits->n_uses != 1) return NULL;

    Builder b = builder_before(g, n);
    Dims rows = dims_of(&m->in[0]->type), dims = dims_of(&n->out[0].type);
    rows.n--;
    Value *label = build_reshape(&b, take->in[1], &rows);
    return build_reshape(&b, make(&b, OP_HEAD_LOSS, INS(m->in[0], m->in[1], label), 0), &dims);
}

bool recognise_head_loss(Graph *g, PassCtx *cx) {
    bool changed = false;
    marks_clear(g);
    for_each_node(g, n) {
        Value *nll = head_loss(g, n);
        if (!nll) continue;
        n->out[0].mark = nll;
        TRACE(cx, "simplify: head_loss for %s\n", n->path ? n->path : "the loss");
        changed = true;
    }
    if (changed) marks_apply(g);
    return changed;
}
