// Cross-entropy over a vocabulary without the logits of all tokens in memory.
//
//     %z = matmul %x, %w {tb = 1} : f32[L,512,32000]
//     %l = logsumexp %z : f32[L,512,1]                       %n, %lse = head_loss %x, %w, %y
//     %t = take %z, %y : f32[L,512,1]                 =>
//     %n = sub %l, %t : f32[L,512,1]
//
// Only where the logits and both rows of numbers have no other reader: a graph that returns its logits keeps
// them. Labels below 0 give 0 here and logsumexp there; whoever has such labels masks them anyway.  Logits times a
// number, or by one, are those of %x times or by it.
//
// Once its gradient is there, both become one, so that logits are computed once:
//
//     %n, %lse = head_loss %x, %w, %y
//     ..                                                    %d = ..
//     %d = ..                                        =>     %n, %dx, %dw = head_loss_and_grad %x, %w, %y, %d
//     %dx, %dw = head_loss_grad %x, %w, %y, %lse, %d
//
// Only where %d doesn't depend on the loss (it is 1 / targets or the like): what makes it moves up.
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

// x * number or x / number
static bool is_scale(const Node *n) {
    double number;
    return (n->op == OP_MUL || n->op == OP_DIV) && value_is_scalar_const(n->in[1], &number);
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
    Node *scale = is_scale(logits->node) ? logits->node : NULL;
    if (scale && logits != z && logits->n_uses != 1) return NULL;
    if (scale) logits = before_views(scale->in[0]);
    Node *m = logits->node;
    if (m->op != OP_MATMUL || m->attr.ta || !m->attr.tb || m->in[1]->type.ndim != 2 ||
        !keeps_last_axis(z, logits))
        return NULL;
    if (logits != z && logits->n_uses != 1) return NULL;

    Builder b = builder_before(g, n);
    Dims rows = dims_of(&m->in[0]->type), dims = dims_of(&n->out[0].type);
    rows.n--;
    Value *label = build_reshape(&b, take->in[1], &rows);
    Value *x = scale ? build_binary(&b, scale->op, m->in[0], scale->in[1]) : m->in[0];
    return build_reshape(&b, make(&b, OP_HEAD_LOSS, INS(x, m->in[1], label), 0), &dims);
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

// Marks what v is made of from node `first` on, by id.  False: `first` is part of it.
static bool mark_makers(const Value *v, int first, bool *is_maker) {
    const Node *n = v->node;
    if (n->id == first) return false;
    if (n->id < first || is_maker[n->id]) return true;
    is_maker[n->id] = true;
    for (int i = 0; i < n->n_in; i++)
        if (!mark_makers(n->in[i], first, is_maker)) return false;
    return true;
}

// head_loss_and_grad in place of a head_loss_grad and its partner, or NULL.
static Node *merged(Graph *g, PassCtx *cx, Node *grad) {
    if (grad->op != OP_HEAD_LOSS_GRAD) return NULL;
    Value *lse = grad->in[3], *d = grad->in[4];
    Node *head = lse->node;
    if (head->op != OP_HEAD_LOSS || lse != &head->out[1] || lse->n_uses != 1) return NULL;
    for (int i = 0; i < head->n_in; i++)
        if (grad->in[i] != head->in[i]) return NULL;
    graph_number(g);
    bool *is_maker = arena_array(cx->scratch, bool, g->n_nodes + 1);
    if (!mark_makers(d, head->id, is_maker)) return NULL;
    Node *place = head->prev;
    for (Node *n = head->next, *next; n != grad; n = next) {
        next = n->next;
        if (!is_maker[n->id]) continue;
        node_move_behind(n, place);
        place = n;
    }
    Builder b = builder_before(g, head);
    Node *both = build(&b, OP_HEAD_LOSS_AND_GRAD, INS(head->in[0], head->in[1], head->in[2], d), 0);
    Value *old[] = {&head->out[0], &grad->out[0], &grad->out[1]};
    for (int i = 0; i < 3; i++) {
        both->out[i].name = old[i]->name;
        replace_all_uses(g, old[i], &both->out[i]);
    }
    return both;
}

bool merge_head_loss(Graph *g, PassCtx *cx) {
    bool changed = false;
    for (Node *n = g->first, *next; n; n = next) {
        next = n->next;
        Node *both = merged(g, cx, n);
        if (!both) continue;
        Node *head = n->in[3]->node;
        graph_remove(n);
        graph_remove(head);
        TRACE(cx, "simplify: head_loss of %s with its gradient: logits once\n",
              both->path ? both->path : "the loss");
        changed = true;
    }
    return changed;
}
