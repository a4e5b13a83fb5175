// Rules of what has heads or a vocabulary: lookups, the loss, attention and its cache.
#include "passes/tp.h"

// ---- the vocabulary ----------------------------------------------------------------------------------------------

static Value *tp_rank(Tp *q) {
    if (q->tp_rank) return q->tp_rank;
    Builder first = builder_before(q->g, q->g->first);
    return q->tp_rank = make(&first, OP_INPUT, INS(NULL), .name = intern("tp_rank"), .dtype = I32);
}

// 0 <= x < n.
static Value *is_below(Builder *b, Value *x, int64_t n) {
    Value *zero = build_const(b, 0, I32), *end = build_const(b, (double)n, I32);
    Value *least = build_binary(b, OP_LE, zero, x), *most = build_binary(b, OP_LT, x, end);
    return build_binary(b, OP_AND, least, most);
}

// Numbers of rows of the whole table as numbers of this rank's n; which of them are its own.
typedef struct { Value *own, *number; } LocalIds;

static LocalIds local_ids(Tp *q, Builder *b, Value *ids, int64_t n) {
    Value *rank = tp_rank(q), *each = build_const(b, (double)n, I32);
    Value *number = build_binary(b, OP_SUB, ids, build_binary(b, OP_MUL, rank, each));
    return (LocalIds){is_below(b, number, n), number};
}

static Value *choose(Builder *b, Value *c, Value *x, Value *y) { return make(b, OP_SELECT, INS(c, x, y)); }
static Value *own_or_none(Builder *b, LocalIds l) { return choose(b, l.own, l.number, build_const(b, -1, I32)); }

void place_gather_rows(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    const Type *x = &n->in[0]->type;
    if (is_at_leaves(q, n->in[0]) || (is_at_leaves(q, n->in[1]) && (s.kind == WHOLE_ON_EACH || are_leaves(q, x)))) {
        place_own(q, n);
        return;
    }
    want(q, n, 1, whole);
    if (s.kind == CUT && s.axis == x->ndim - 1) {
        shape_again(q, n, cut(n->out[0].type.ndim - 1));
    } else if (s.kind == CUT && s.axis == 0 && x->ndim == 2) {
        Builder b = builder_before(q->g, n);
        replace_operand(n, 1, own_or_none(&b, local_ids(q, &b, n->in[1], x->dim[0].n)));     // of others' rows: zeros
        shape_again(q, n, partial);
    } else if (s.kind == PARTIAL && type_bound_elements(&n->out[0].type) <= type_bound_elements(x)) {
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// The parameter whose gradient v is, or NULL.
static const Node *gradient_of(const Tp *q, const Node *n) {
    for (const Node *m = n->next; m; m = m->next)
        if (m->op == OP_ACCUMULATE && m->in[0] == &n->out[0]) return map_get(&q->params, m->attr.name);
    return NULL;
}

void place_scatter_add_rows(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    int last = n->attr.dims.n - 1;
    for (int i = 1; i < n->n_in; i++) want(q, n, i, whole);
    if (s.kind == CUT && s.axis == n->in[0]->type.ndim - 1 && n->attr.dims.at[last].n == type_cols(&n->in[0]->type) * q->tp) {
        n->attr.dims.at[last].n /= q->tp;
        shape_again(q, n, cut(last));
        return;
    }
    const Node *table = n->attr.dims.n == 2 && n->n_in == 2 ? gradient_of(q, n) : NULL;
    if (table && same_spot(tensor_spot(q, table->attr.name, &n->attr.dims), cut(0))) {
        want(q, n, 0, whole);
        Builder b = builder_before(q->g, n);
        n->attr.dims.at[0].n /= q->tp;
        replace_operand(n, 1, own_or_none(&b, local_ids(q, &b, n->in[1], n->attr.dims.at[0].n)));
        shape_again(q, n, cut(0));
    } else if (s.kind == PARTIAL) {
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// As the gradient of a part of the table reads them: one's own, n for those of other ranks, -1 for none.
static Value *labels_of_part(Tp *q, Builder *b, Value *label, int64_t n) {
    LocalIds l = local_ids(q, b, label, n);
    Value *elsewhere = build_const(b, (double)n, I32), *none = build_const(b, -1, I32);
    return choose(b, l.own, l.number, choose(b, is_below(b, label, n * q->tp), elsewhere, none));
}

// The losses of rows: log of the sum of exponentials over all parts of the vocabulary, less the logit of the label, which
// one rank has.
typedef struct { Value *x, *w, *label, *dnll; int64_t V; } HeadRows;
typedef struct { Value *nll, *lse; } HeadLoss;

static HeadLoss head_loss(Tp *q, Builder *b, const HeadRows *h, const Type *number) {
    LocalIds l = local_ids(q, b, h->label, h->V);
    Node *n = build(b, OP_HEAD_LOSS, INS(h->x, h->w, own_or_none(b, l)));
    Dims dims = dims_of(number);
    Value *own = build_reshape(b, l.own, &dims), *zero = build_const(b, 0, F32);
    Value *logit = choose(b, own, build_binary(b, OP_SUB, &n->out[1], &n->out[0]), zero);
    Value *lse = make(b, OP_ALL_GATHER, INS(&n->out[1]), .over = over_tp, .axis = number->ndim - 1);
    lse = build_unary(b, OP_LOGSUMEXP, lse);
    logit = make(b, OP_TREE_ALL_REDUCE, INS(logit), .over = over_tp);
    q->n_sums++;
    q->n_gathers++;
    Value *known = build_reshape(b, is_below(b, h->label, h->V * q->tp), &dims), *nll = build_binary(b, OP_SUB, lse, logit);
    return (HeadLoss){choose(b, known, nll, zero), lse};
}

static void head_grad(Tp *q, Builder *b, const HeadRows *h, Value *lse, const Attrs *attr, Node *old, int dx) {
    Value *label = labels_of_part(q, b, h->label, h->V);
    Node *n = build(b, OP_HEAD_LOSS_GRAD, INS(h->x, h->w, label, lse, h->dnll), .over = over_tp, .narrow = attr->narrow,
                    .leaves = attr->leaves);
    spot_set(q, &n->out[0], partial);
    spot_set(q, &n->out[1], cut(0));
    map_put(&q->moved, &old->out[dx], &n->out[0]);
    map_put(&q->moved, &old->out[dx + 1], &n->out[1]);
}

// Replaced by nodes in front of it; readers are sent on as the walk meets them.
void place_head(Tp *q, Node *n) {
    if (!is_cut_at(n->in[1], 0)) {
        settle(q, n);
        return;
    }
    for (int i = 0; i < n->n_in; i++)
        if (i != 1) want(q, n, i, whole);
    Builder b = builder_before(q->g, n);
    HeadRows h = {n->in[0], n->in[1], n->in[2], n->in[n->n_in - 1], n->in[1]->type.dim[0].n};
    if (n->op == OP_HEAD_LOSS_GRAD) {
        head_grad(q, &b, &h, n->in[3], &n->attr, n, 0);
    } else {
        HeadLoss loss = head_loss(q, &b, &h, &n->out[0].type);
        map_put(&q->moved, &n->out[0], loss.nll);
        if (n->op == OP_HEAD_LOSS) map_put(&q->moved, &n->out[1], loss.lse);
        else head_grad(q, &b, &h, loss.lse, &n->attr, n, 1);
    }
}

// ---- attention ---------------------------------------------------------------------------------------------------

enum { HAS_SINKS = 1, HAS_BIAS = 2 };

// Keys and values: cut as queries are; whole where all ranks have the same single head; shared where a rank takes the one
// that its queries read.
typedef enum { KV_CUT, KV_WHOLE, KV_SHARED } KvKind;

static KvKind kv_kind(const Tp *q, const Value *k) {
    int heads = k->type.ndim - 2;
    if (is_cut_at(k, heads) || k->type.dim[heads].n % q->tp == 0) return KV_CUT;
    return k->type.dim[heads].n == 1 ? KV_WHOLE : KV_SHARED;
}

static void want_head(Tp *q, Node *n, int i, KvKind kind) {
    int heads = n->in[i]->type.ndim - 2;
    want(q, n, i, kind == KV_CUT ? cut(heads) : whole);
    if (kind != KV_SHARED) return;
    Twins *t = twins_of(q, n->in[i]);
    if (!t->shared) {
        Builder b = builder_before(q->g, n);
        t->shared = make(&b, OP_SHARD, INS(n->in[i]), .over = over_tp, .axis = heads, .parts = n->in[i]->type.dim[heads].n);
    }
    replace_operand(n, i, t->shared);
}

// Operands of attention, or its gradient, by heads.  false: all are whole.
static bool want_heads(Tp *q, Node *n, KvKind *kind) {
    int heads = n->in[0]->type.ndim - 2, i = 3;
    *kind = KV_CUT;
    if (!is_cut_at(n->in[0], heads)) {
        settle(q, n);
        return false;
    }
    *kind = kv_kind(q, n->in[1]);
    want_head(q, n, 1, *kind);
    want_head(q, n, 2, *kind);
    if (n->attr.has & HAS_SINKS) want(q, n, i++, cut(0));
    if (n->attr.has & HAS_BIAS) {
        int axis = n->in[i]->type.ndim - 3;
        want(q, n, i, is_cut_at(n->in[i], axis) || !dim_is_1(n->in[i]->type.dim[axis]) ? cut(axis) : whole);
        i++;
    }
    for (; n->op == OP_ATTENTION && i < n->n_in; i++) want(q, n, i, whole);
    if (n->op == OP_ATTENTION) return true;
    int after = n->n_in - 3;
    for (; i < after; i++) want(q, n, i, whole);
    want(q, n, after, cut(heads));
    want(q, n, after + 1, cut(heads));                   // lse [.., S, H]
    want(q, n, after + 2, cut(heads));
    return true;
}

void place_attention(Tp *q, Node *n) {
    KvKind kind;
    if (!want_heads(q, n, &kind)) return;
    shape_again(q, n, cut(n->in[0]->type.ndim - 2));
}

// Gradients of the heads that each rank took: those of one head are added.
static Value *of_shared_heads(Tp *q, Node *n, Value *dk, int64_t n_heads) {
    Builder b = builder_after(q->g, n);
    int axis = dk->type.ndim - 2;
    Value *all = make(&b, OP_ALL_GATHER, INS(dk), .over = over_tp, .axis = axis);
    Dims dims = dims_of(&all->type), each = dims;
    each.n++;
    each.at[axis + 2] = each.at[axis + 1];
    each.at[axis] = dim_n(n_heads);
    each.at[axis + 1] = dim_n(q->tp / n_heads);
    dims.at[axis] = dim_n(n_heads);
    q->n_gathers++;
    return build_reshape(&b, build_sum(&b, build_reshape(&b, all, &each), &(Ints){1, {axis + 1}}), &dims);
}

void place_attention_grad(Tp *q, Node *n) {
    KvKind kind;
    int64_t n_heads[2] = {n->out[1].type.dim[n->out[1].type.ndim - 2].n, n->out[2].type.dim[n->out[2].type.ndim - 2].n};
    int heads = n->in[0]->type.ndim - 2, i = 3;
    if (!want_heads(q, n, &kind)) return;
    shape_again(q, n, cut(heads));
    for (int k = 1; k <= 2; k++) {
        if (kind == KV_WHOLE) spot_set(q, &n->out[k], partial);
        if (kind == KV_SHARED) map_put(&q->moved, &n->out[k], of_shared_heads(q, n, &n->out[k], n_heads[k - 1]));
    }
    if (n->attr.has & HAS_SINKS) spot_set(q, &n->out[i++], cut(heads));            // [.., S, H]
    if (n->attr.has & HAS_BIAS) spot_set(q, &n->out[i], cut(n->out[i].type.ndim - 3));               // [.., H, S, C]
}

// The pool has the columns of what is appended.
void place_cache(Tp *q, Node *n) {
    Spot s = spot_of(n->in[1]);
    Node *pool = n->in[0]->node;
    if (s.kind == CUT && s.axis > 1 && pool->op == OP_STATE && pool->out[0].n_uses == 1) {
        cut_tensor(q, pool, s.axis - (n->in[1]->type.ndim - pool->out[0].type.ndim));
        shape_again(q, n, s);
    } else {
        settle(q, n);
    }
}
