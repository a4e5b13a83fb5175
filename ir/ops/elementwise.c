// Elementwise ops: result element i depends on operand elements i, with broadcasting.  Gradients of broadcast
// operands are summed back to the operand's shape (build_sum_to).  Meanings: ir/ref/elementwise.c.
#include <math.h>

#include "ir/ops/rules.h"

// ---- shapes ---------------------------------------------------------------------------------------------

bool rule_broadcast(const Node *n, const Type *a, const Type *b, Type *out, Diag *d) {
    const Type *longer = a->ndim >= b->ndim ? a : b, *shorter = longer == a ? b : a;
    int missing = longer->ndim - shorter->ndim;
    Type met = *longer;
    met.dtype = a->dtype;
    for (int i = 0; i < shorter->ndim; i++) {
        Dim x = shorter->dim[i], y = longer->dim[i + missing];
        if (dim_eq(x, y) || dim_is_1(x)) continue;
        if (dim_is_1(y)) {
            met.dim[i + missing] = x;
            continue;
        }
        Arena *arena = n->graph->arena;
        diag_error(d, n->at, "%s of %s and %s: axis %d from the right is %s in one and %s in the other",
                   op_info[n->op].name, type_text(arena, a), type_text(arena, b), shorter->ndim - i,
                   dim_text(arena, longer == a ? y : x), dim_text(arena, longer == a ? x : y));
        return false;
    }
    *out = met;
    return true;
}

bool shape_broadcast(const Node *n, Type *out, Diag *d) {
    Type t = n->in[0]->type;
    for (int i = 1; i < n->n_in; i++)
        if (!rule_broadcast(n, &t, &n->in[i]->type, &t, d)) return false;
    out[0] = t;
    return true;
}

bool shape_compare(const Node *n, Type *out, Diag *d) {
    if (!shape_broadcast(n, out, d)) return false;
    out[0].dtype = BOOL;
    return true;
}

bool shape_select(const Node *n, Type *out, Diag *d) {
    if (!shape_broadcast(n, out, d)) return false;
    out[0].dtype = n->in[1]->type.dtype;
    return true;
}

bool shape_same(const Node *n, Type *out, Diag *d) {
    (void)d;
    out[0] = n->in[0]->type;
    return true;
}

bool shape_cast(const Node *n, Type *out, Diag *d) {
    (void)d;
    out[0] = n->in[0]->type;
    out[0].dtype = (DType)n->attr.dtype;
    return true;
}

// ---- gradients: arithmetic --------------------------------------------------------------------------------

#define GRAD(name)                                                                                           \
    void grad_##name(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din)

static Value *add(Builder *b, Value *x, Value *y) { return build_binary(b, OP_ADD, x, y); }
static Value *sub(Builder *b, Value *x, Value *y) { return build_binary(b, OP_SUB, x, y); }
static Value *mul(Builder *b, Value *x, Value *y) { return build_binary(b, OP_MUL, x, y); }
static Value *quotient(Builder *b, Value *x, Value *y) { return build_binary(b, OP_DIV, x, y); }
static Value *neg(Builder *b, Value *x) { return build_unary(b, OP_NEG, x); }
static Value *number(Builder *b, double c, const Value *like) { return build_const(b, c, like->type.dtype); }
static Value *sum_to(Builder *b, Value *d, const Value *operand) {
    return build_sum_to(b, d, &operand->type);
}

GRAD(add) {
    for (int i = 0; i < 2; i++)
        if (need[i]) din[i] = sum_to(b, dout[0], n->in[i]);
}

GRAD(sub) {
    if (need[0]) din[0] = sum_to(b, dout[0], n->in[0]);
    if (need[1]) din[1] = neg(b, sum_to(b, dout[0], n->in[1]));
}

GRAD(mul) {
    for (int i = 0; i < 2; i++)
        if (need[i]) din[i] = sum_to(b, mul(b, dout[0], n->in[1 - i]), n->in[i]);
}

// y = a/b:  da = d/b,  db = -da*y.
GRAD(div) {
    Value *da = quotient(b, dout[0], n->in[1]);
    if (need[0]) din[0] = sum_to(b, da, n->in[0]);
    if (need[1]) din[1] = neg(b, sum_to(b, mul(b, da, node_out(n, 0)), n->in[1]));
}

// To a where it wins or ties, else to b.  `wins` is le(b, a) for max, le(a, b) for min.
static void grad_winner(Builder *b, const Node *n, Value *wins, Value *d, const bool *need, Value **din) {
    Value *zero = number(b, 0, d);
    if (need[0]) din[0] = sum_to(b, make(b, OP_SELECT, INS(wins, d, zero), 0), n->in[0]);
    if (need[1]) din[1] = sum_to(b, make(b, OP_SELECT, INS(wins, zero, d), 0), n->in[1]);
}

GRAD(max) { grad_winner(b, n, build_binary(b, OP_LE, n->in[1], n->in[0]), dout[0], need, din); }
GRAD(min) { grad_winner(b, n, build_binary(b, OP_LE, n->in[0], n->in[1]), dout[0], need, din); }

GRAD(select) {
    Value *d = dout[0], *c = n->in[0], *zero = number(b, 0, d);
    if (need[1]) din[1] = sum_to(b, make(b, OP_SELECT, INS(c, d, zero), 0), n->in[1]);
    if (need[2]) din[2] = sum_to(b, make(b, OP_SELECT, INS(c, zero, d), 0), n->in[2]);
}

GRAD(cast) {
    (void)need;
    if (dtype_is_float(n->in[0]->type.dtype) && dtype_is_float(n->out[0].type.dtype))
        din[0] = build_cast(b, dout[0], n->in[0]->type.dtype);
}

// ---- gradients: functions of one operand ------------------------------------------------------------------
// x the operand, y the result, d the gradient of y.

#define GRAD_OF_ONE(name, expression)                                  \
    GRAD(name) {                                                       \
        (void)need;                                                    \
        Value *x = n->in[0], *y = node_out(n, 0), *d = dout[0];        \
        (void)x, (void)y;                                              \
        din[0] = expression;                                           \
    }

GRAD_OF_ONE(neg, neg(b, d))
GRAD_OF_ONE(abs, mul(b, d, build_unary(b, OP_SIGN, x)))
GRAD_OF_ONE(exp, mul(b, d, y))
GRAD_OF_ONE(log, quotient(b, d, x))
GRAD_OF_ONE(log1p, quotient(b, d, add(b, x, number(b, 1, x))))
GRAD_OF_ONE(sqrt, quotient(b, build_scale(b, d, 0.5), y))

void grad_rsqrt(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Value *y = node_out(n, 0), *cube = mul(b, y, mul(b, y, y));
    din[0] = mul(b, build_scale(b, dout[0], -0.5), cube);
}

void grad_tanh(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Value *y = node_out(n, 0), *square = mul(b, y, y);
    din[0] = mul(b, dout[0], sub(b, number(b, 1, y), square));
}

GRAD_OF_ONE(sigmoid, mul(b, d, mul(b, y, sub(b, number(b, 1, y), y))))
GRAD_OF_ONE(erf, mul(b, d, build_scale(b, build_unary(b, OP_EXP, neg(b, mul(b, x, x))), 2 / sqrt(M_PI))))
GRAD_OF_ONE(sin, mul(b, d, build_unary(b, OP_COS, x)))
GRAD_OF_ONE(cos, neg(b, mul(b, d, build_unary(b, OP_SIN, x))))
