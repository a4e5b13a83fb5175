// Sums, maxima, running sums, softmax, logsumexp.  Orders of sums: ir/README.md; meanings: ir/ref/reduce.c.
#include "ir/ops/rules.h"

// ---- checks ---------------------------------------------------------------------------------------------

// Along an axis of the operand; of the result where there is no operand.
bool check_axis(const Node *n, Diag *d) {
    return rule_axis(n, n->attr.axis, n->n_in ? &n->in[0]->type : &n->out[0].type, d);
}

bool check_axes(const Node *n, Diag *d) {
    for (int i = 0; i < n->attr.axes.n; i++) {
        if (!rule_axis(n, n->attr.axes.at[i], &n->in[0]->type, d)) return false;
        if (i && n->attr.axes.at[i - 1] >= n->attr.axes.at[i]) {
            diag_error(d, n->at, "the axes of %s must ascend", op_info[n->op].name);
            return false;
        }
    }
    return true;
}

// ---- sum, reduce_max, cumsum ----------------------------------------------------------------------------

bool shape_sum(const Node *n, Type *out, Diag *d) {
    (void)d;
    out[0] = n->in[0]->type;
    for (int i = 0; i < n->attr.axes.n; i++) {
        int64_t axis = n->attr.axes.at[i];
        if (axis >= 0 && axis < out[0].ndim) out[0].dim[axis] = dim_n(1);     // others: check_axes tells
    }
    return true;
}

void grad_sum(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Dims dims = dims_of(&n->in[0]->type);
    din[0] = build_broadcast(b, dout[0], &dims);
}

bool shape_reduce1(const Node *n, Type *out, Diag *d) {
    if (!rule_axis(n, n->attr.axis, &n->in[0]->type, d)) return false;
    out[0] = n->in[0]->type;
    out[0].dim[n->attr.axis] = dim_n(1);
    return true;
}

void grad_cumsum(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    din[0] = make(b, OP_CUMSUM, INS(dout[0]), .axis = n->attr.axis, .reverse = !n->attr.reverse,
                  .exclusive = n->attr.exclusive);
}

// ---- softmax, logsumexp ---------------------------------------------------------------------------------

bool shape_last1(const Node *n, Type *out, Diag *d) {
    const Type *t = &n->in[0]->type;
    if (!rule_axis(n, t->ndim - 1, t, d)) return false;
    out[0] = *t;
    out[0].dim[t->ndim - 1] = dim_n(1);
    return true;
}

// p*(d - sum(d*p)).
void grad_softmax(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Value *p = node_out(n, 0), *d = dout[0];
    Ints last = {1, {n->in[0]->type.ndim - 1}};
    Value *mean = build_sum(b, build_binary(b, OP_MUL, d, p), &last);
    din[0] = build_binary(b, OP_MUL, p, build_binary(b, OP_SUB, d, mean));
}

void grad_logsumexp(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    din[0] = build_binary(b, OP_MUL, dout[0], build_unary(b, OP_SOFTMAX, n->in[0]));
}
