// The algebra of simplify: one function per family, each with its picture.
//
// Requirements.  The type stays the same.  Each rule makes the graph smaller or moves it towards this normal
// form:
//   * broadcasts stand as late as possible: before a node that can't broadcast itself (elementwise nodes can)
//   * permutes of the last two axes are attributes of the contraction that reads them
//   * a factor per row stands before a grouped matmul, not behind it
// Rules that change bits beyond a rounding of the same value are not here: no division becomes a product.
#include <math.h>
#include <string.h>
#include "passes/simplify.h"

static bool is_number(const Value *v, double number) {
    double x;
    return value_is_number(v, &x) && x == number;
}

static bool same_type(const Value *x, const Node *n) { return type_eq(&x->type, &n->out[0].type); }

// ---- elementwise ----

//  exp(broadcast x) => broadcast(exp x)          add(broadcast x, full) => add(x, full)
static Value *late_broadcast(Builder *b, Node *n) {
    Value *ins[4] = {0};
    bool stripped = false;
    if (!op_is(n->op, ELEMENTWISE) || n->n_in > 3 || !n->n_in) return NULL;
    for (int i = 0; i < n->n_in; i++) {
        bool is_broadcast = n->in[i]->node->op == OP_BROADCAST;
        stripped |= is_broadcast;
        ins[i] = is_broadcast ? n->in[i]->node->in[0] : n->in[i];
    }
    if (!stripped) return NULL;
    Value *v = build_first(build_node(b, n->op, ins, &n->attr));
    if (same_type(v, n)) return v;
    Dims dims = dims_of(&n->out[0].type);
    return build_broadcast(b, v, &dims);
}

static Value *arithmetic(Builder *b, Node *n) {
    Value *x = n->n_in > 0 ? n->in[0] : NULL, *y = n->n_in > 1 ? n->in[1] : NULL;
    switch (n->op) {
    case OP_ADD:
        if (is_number(y, 0) && same_type(x, n)) return x;
        if (is_number(x, 0) && same_type(y, n)) return y;
        if (y->node->op == OP_NEG) return build_binary(b, OP_SUB, x, y->node->in[0]);
        if (x->node->op == OP_NEG) return build_binary(b, OP_SUB, y, x->node->in[0]);
        return NULL;
    case OP_SUB:
        if (is_number(y, 0) && same_type(x, n)) return x;
        if (y->node->op == OP_NEG) return build_binary(b, OP_ADD, x, y->node->in[0]);
        return NULL;
    case OP_MUL:
        if (is_number(y, 1) && same_type(x, n)) return x;
        if (is_number(x, 1) && same_type(y, n)) return y;
        return NULL;
    case OP_DIV:
        return is_number(y, 1) && same_type(x, n) ? x : NULL;
    case OP_NEG:
        if (x->node->op == OP_NEG) return x->node->in[0];
        if (x->node->op == OP_SUB) return build_binary(b, OP_SUB, x->node->in[1], x->node->in[0]);
        return NULL;
    case OP_NOT:
        return x->node->op == OP_NOT ? x->node->in[0] : NULL;
    case OP_AND:
        if (is_number(y, 1) && same_type(x, n)) return x;
        if (is_number(x, 1) && same_type(y, n)) return y;
        return NULL;
    case OP_MAX:
    case OP_MIN:
        return x == y ? x : NULL;
    case OP_SELECT: {
        double c;
        if (n->in[1] == n->in[2] && same_type(n->in[1], n)) return n->in[1];
        if (!value_is_number(x, &c)) return NULL;
        Value *chosen = n->in[c != 0 ? 1 : 2];
        Dims dims = dims_of(&n->out[0].type);
        return build_broadcast(b, chosen, &dims);
    }
    case OP_CAST: {
        if (same_type(x, n)) return x;
        bool widened = x->node->op == OP_CAST && x->type.dtype == F32 &&
                       x->node->in[0]->type.dtype == n->out[0].type.dtype &&
                       dtype_is_float(n->out[0].type.dtype);
        return widened ? x->node->in[0] : NULL;       // bf16 -> f32 -> bf16
    }
    default:
        return NULL;
    }
}

// ---- structure ----

// x's dims as axes of its broadcast result t: right-aligned, missing leading axes are 1.
static Dim before_broadcast(const Value *x, const Type *t, int axis) {
    int i = axis - (t->ndim - x->type.ndim);
    return i < 0 ? dim_n(1) : x->type.dim[i];
}

//  reshape(broadcast x) => broadcast(reshape x)      where the reshape only drops or adds axes of 1
static Value *reshape_of_broadcast(Builder *b, Node *n) {
    const Type *t = &n->in[0]->type, *r = &n->out[0].type;
    Value *x = n->in[0]->node->in[0];
    Dims dims = {r->ndim};
    int axis = 0;
    for (int i = 0; i < r->ndim; i++) {
        if (dim_is_1(r->dim[i])) {
            dims.at[i] = dim_n(1);
            continue;
        }
        while (axis < t->ndim && dim_is_1(t->dim[axis])) axis++;
        if (axis == t->ndim || !dim_eq(t->dim[axis], r->dim[i])) return NULL;
        dims.at[i] = before_broadcast(x, t, axis++);
    }
    while (axis < t->ndim && dim_is_1(t->dim[axis])) axis++;
    if (axis != t->ndim) return NULL;
    Dims to = dims_of(r);
    return build_broadcast(b, build_reshape(b, x, &dims), &to);
}

static Value *reshaped(Builder *b, Node *n) {
    Value *x = n->in[0];
    Dims dims = dims_of(&n->out[0].type);
    if (same_type(x, n)) return x;
    if (x->node->op == OP_RESHAPE) return build_reshape(b, x->node->in[0], &dims);
    if (x->node->op == OP_BROADCAST) return reshape_of_broadcast(b, n);
    double number;
    if (value_is_scalar_const(x, &number)) return build_broadcast(b, x, &dims);
    return NULL;
}

static Value *broadcasted(Builder *b, Node *n) {
    Value *x = n->in[0];
    if (same_type(x, n)) return x;
    Dims dims = dims_of(&n->out[0].type);
    return x->node->op == OP_BROADCAST ? build_broadcast(b, x->node->in[0], &dims) : NULL;
}

//  iota along one of several axes => broadcast of an iota with that axis alone
static Value *narrow_iota(Builder *b, Node *n) {
    const Type *t = &n->out[0].type;
    Dims dims = {t->ndim}, all = dims_of(t);
    for (int i = 0; i < t->ndim; i++) dims.at[i] = i == n->attr.axis ? t->dim[i] : dim_n(1);
    Type narrow = type_of_dims(t->dtype, &dims);
    if (type_eq(&narrow, t)) return NULL;
    return build_broadcast(b, make(b, OP_IOTA, NULL, .dtype = t->dtype, .axis = n->attr.axis, .dims = dims),
                           &all);
}

static Value *permuted(Builder *b, Node *n) {
    Value *x = n->in[0];
    const Ints *p = &n->attr.perm;
    bool is_identity = true;
    for (int i = 0; i < p->n; i++) is_identity &= p->at[i] == i;
    if (is_identity) return x;
    if (x->node->op != OP_PERMUTE) return NULL;
    Ints both = {p->n};
    for (int i = 0; i < p->n; i++) both.at[i] = x->node->attr.perm.at[p->at[i]];
    return make(b, OP_PERMUTE, INS(x->node->in[0]), .perm = both);
}

static int64_t size_along(const Value *v, int64_t axis) { return v->type.dim[axis].n; }

static Value *sliced(Builder *b, Node *n) {
    Value *x = n->in[0];
    const Attrs *at = &n->attr;
    if (same_type(x, n)) return x;
    const Node *m = x->node;
    if (m->op == OP_SLICE && m->attr.axis == at->axis)
        return make(b, OP_SLICE, INS(m->in[0]), .axis = at->axis, .begin = m->attr.begin + at->begin,
                    .end = m->attr.begin + at->end);
    if (m->op == OP_UNSLICE && m->attr.axis == at->axis && m->attr.begin == at->begin &&
        same_type(m->in[0], n))
        return m->in[0];
    if (m->op == OP_CONCAT && m->attr.axis == at->axis) {
        int64_t begin = 0;
        for (int i = 0; i < m->n_in; begin += size_along(m->in[i++], at->axis)) {
            int64_t end = begin + size_along(m->in[i], at->axis);
            if (begin == at->begin && end == at->end) return m->in[i];
            if (begin <= at->begin && at->end <= end)
                return make(b, OP_SLICE, INS(m->in[i]), .axis = at->axis, .begin = at->begin - begin,
                            .end = at->end - begin);
        }
    }
    return NULL;
}

//  concat(x[0..3], x[3..8]) => x[0..8]
static Value *concatenated(Builder *b, Node *n) {
    if (n->n_in == 1) return n->in[0];
    const Node *first = n->in[0]->node;
    for (int i = 0; i < n->n_in; i++) {
        const Node *m = n->in[i]->node;
        if (m->op != OP_SLICE || m->attr.axis != n->attr.axis || m->in[0] != first->in[0]) return NULL;
        if (i && m->attr.begin != n->in[i - 1]->node->attr.end) return NULL;
    }
    return make(b, OP_SLICE, INS(first->in[0]), .axis = n->attr.axis, .begin = first->attr.begin,
                .end = n->in[n->n_in - 1]->node->attr.end);
}

//  add(unslice x at 0, unslice y behind it) => concat(x, y)      the gradient of split, and of rotary halves
static Value *joined_slices(Builder *b, Node *n) {
    if (n->op != OP_ADD) return NULL;
    Node *x = n->in[0]->node, *y = n->in[1]->node;
    if (x->op != OP_UNSLICE || y->op != OP_UNSLICE || x->attr.axis != y->attr.axis ||
        !type_eq(&x->out[0].type, &y->out[0].type))
        return NULL;
    if (x->out[0].n_uses != 1 || y->out[0].n_uses != 1) return NULL;
    if (x->attr.begin > y->attr.begin) {
        Node *z = x;
        x = y;
        y = z;
    }
    int64_t axis = x->attr.axis, end = x->attr.begin + size_along(x->in[0], axis);
    if (end != y->attr.begin) return NULL;
    Value *both = make(b, OP_CONCAT, INS(x->in[0], y->in[0]), .axis = axis);
    if (same_type(both, n)) return both;
    return make(b, OP_UNSLICE, INS(both), .axis = axis, .begin = x->attr.begin, .n = x->attr.n);
}

// ---- sums ----

//  sum(x) over axes of 1 => x          sum(broadcast x) over repeated axes => x * count
static Value *summed(Builder *b, Node *n) {
    Value *x = n->in[0];
    if (same_type(x, n)) return x;
    Ints axes = {0};
    for (int i = 0; i < n->attr.axes.n; i++)
        if (!dim_is_1(x->type.dim[n->attr.axes.at[i]])) axes.at[axes.n++] = n->attr.axes.at[i];
    if (axes.n < n->attr.axes.n) return build_sum(b, x, &axes);
    if (x->node->op != OP_BROADCAST || !dtype_is_float(x->type.dtype)) return NULL;
    Value *narrow = x->node->in[0];
    double count = 1;
    for (int i = 0; i < axes.n; i++) {
        Dim d = x->type.dim[axes.at[i]];
        if (!dim_is_1(before_broadcast(narrow, &x->type, (int)axes.at[i])) ||
            (d.sym && d.sym->kind != SYM_LEAF))
            return NULL;
        count *= (double)dim_bound(d);
    }
    Dims dims = dims_of(&n->out[0].type);
    return build_broadcast(b, build_scale(b, narrow, count), &dims);
}

// ---- contractions ----

static bool swaps_last_two(const Node *n) {
    if (n->op != OP_PERMUTE) return false;
    const Ints *p = &n->attr.perm;
    if (p->n < 2 || p->at[p->n - 1] != p->n - 2 || p->at[p->n - 2] != p->n - 1) return false;
    for (int i = 0; i < p->n - 2; i++)
        if (p->at[i] != i) return false;
    return true;
}

//  matmul(x, permute w) => matmul(x, w) {tb = 1}
static Value *contraction(Builder *b, Node *n) {
    Attrs attr = n->attr;
    Value *x = n->in[0], *w = n->in[1];
    bool batched =
        x->type.ndim == w->type.ndim; // else all leading axes of a are rows: ta would mean another thing
    if (n->op == OP_MATMUL && batched && swaps_last_two(x->node)) {
        attr.ta = !attr.ta;
        x = x->node->in[0];
    }
    if (swaps_last_two(w->node)) {
        attr.tb = !attr.tb;
        w = w->node->in[0];
    }
    if (x == n->in[0] && w == n->in[1]) return NULL;
    return n->op == OP_MATMUL ? build_first(build_node(b, OP_MATMUL, INS(x, w), &attr))
                              : build_first(build_node(b, OP_GROUPED_MATMUL, INS(x, w, n->in[2]), &attr));
}

//  mul(grouped_matmul(a, w), s[R,1])        => grouped_matmul(mul(a, s), w)
//  mul(add(grouped_matmul(a, w), bias), s)  => add(grouped_matmul(mul(a, s), w), mul(bias, s))
// The router's weight then multiplies the activation: its gradient is a row sum inside the activation's
// backward body, and expert outputs are neither saved nor recomputed.  Forward only: what autodiff writes
// stays.
static Value *scale_before(Builder *b, Node *n) {
    if (n->op != OP_MUL || n->backward) return NULL;
    for (int i = 0; i < 2; i++) {
        Value *y = n->in[i], *s = n->in[1 - i];
        bool per_row = s->type.ndim == 2 && y->type.ndim == 2 && dim_eq(s->type.dim[0], y->type.dim[0]) &&
                       dim_is_1(s->type.dim[1]);
        if (!per_row || y->n_uses != 1) continue;
        const Node *m = y->node;
        if (m->op == OP_GROUPED_MATMUL) {
            Value *scaled = build_binary(b, OP_MUL, m->in[0], s);
            return build_first(build_node(b, OP_GROUPED_MATMUL, INS(scaled, m->in[1], m->in[2]), &m->attr));
        }
        for (int k = 0; m->op == OP_ADD && k < 2; k++) {
            const Node *product = m->in[k]->node;
            if (product->op != OP_GROUPED_MATMUL || m->in[k]->n_uses != 1) continue;
            Value *scaled = build_binary(b, OP_MUL, product->in[0], s);
            Value *main = build_first(build_node(
                b, OP_GROUPED_MATMUL, INS(scaled, product->in[1], product->in[2]), &product->attr));
            return build_binary(b, OP_ADD, main, build_binary(b, OP_MUL, m->in[1 - k], s));
        }
    }
    return NULL;
}

// ---- rows ----

// The row_of that belongs to slot_of: results of one route, perhaps inside a gate that yields both.
static Value *inverse_of(const Value *slot_of) {
    Node *n = slot_of->node;
    if (n->op == OP_ROUTE) return slot_of->index == 2 ? &n->out[1] : NULL;
    if (n->op != OP_GATE) return NULL;
    const Node *yield = n->attr.body->last;
    const Value *inner = yield->in[slot_of->index];
    if (inner->node->op != OP_ROUTE || inner->index != 2) return NULL;
    for (int i = 0; i < yield->n_in; i++)
        if (yield->in[i] == &inner->node->out[1]) return &n->out[i];
    return NULL;
}

//  scatter_add_rows(v, slot_of) => gather_rows(v, row_of)
// slot_of is a permutation of the slots that have a row, so each result row is one row of v or zeros.
static Value *scatter_as_gather(Builder *b, Node *n) {
    Value *row_of = inverse_of(n->in[1]);
    if (!row_of) return NULL;
    Dims slots = dims_of(&n->out[0].type);
    slots.n--;
    if (type_bound_elements(&n->out[0].type) / type_cols(&n->out[0].type) !=
        type_bound_elements(&row_of->type))
        return NULL;
    return make(b, OP_GATHER_ROWS, INS(n->in[0], build_reshape(b, row_of, &slots)), 0);
}

//  scatter_add_rows(v, slot_of / k) => scatter_add_rows(v, slot_of / k, row_of)
// With the rows of each token at hand nobody has to look for them.  A token of one choice is its slot: what is wide is
// combined, since that can be fused with the work on its rows, numbers are gathered.
static Value *scatter_to_tokens(Builder *b, Node *n) {
    const Node *token = n->in[1]->node;
    double k = 1;
    if (n->n_in != 2) return NULL;
    bool divides = token->op == OP_DIV && value_is_number(token->in[1], &k);
    if (!divides && type_cols(&n->out[0].type) == 1) return NULL;
    Value *row_of = inverse_of(divides ? token->in[0] : n->in[1]);
    const Type *y = &n->out[0].type;
    if (!row_of || (double)type_cols(&row_of->type) != k) return NULL;
    Dims rows = dims_of(y);
    rows.at[rows.n - 1] = dim_n((int64_t)k);
    if (type_bound_elements(y) / type_cols(y) * (int64_t)k != type_bound_elements(&row_of->type)) return NULL;
    return make(b, OP_SCATTER_ADD_ROWS, INS(n->in[0], n->in[1], build_reshape(b, row_of, &rows)), .dims = n->attr.dims);
}

Value *rule_apply(Builder *b, Node *n) {
    Value *v = late_broadcast(b, n);
    if (!v) v = joined_slices(b, n);
    if (!v) v = scale_before(b, n);
    if (v) return v;
    switch (n->op) {
    case OP_RESHAPE:          return reshaped(b, n);
    case OP_BROADCAST:        return broadcasted(b, n);
    case OP_IOTA:             return narrow_iota(b, n);
    case OP_PERMUTE:          return permuted(b, n);
    case OP_SLICE:            return sliced(b, n);
    case OP_CONCAT:           return concatenated(b, n);
    case OP_SUM:              return summed(b, n);
    case OP_REDUCE_MAX:       return same_type(n->in[0], n) ? n->in[0] : NULL;      // of one
    case OP_MATMUL:
    case OP_GROUPED_MATMUL:   return contraction(b, n);
    case OP_SCATTER_ADD_ROWS: v = scatter_to_tokens(b, n); return v || n->n_in > 2 ? v : scatter_as_gather(b, n);
    default:                  return op_is(n->op, ELEMENTWISE) ? arithmetic(b, n) : NULL;
    }
}
