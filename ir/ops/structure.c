// Ops that only move elements: reshape, permute, broadcast, slice, unslice, concat.  Each is another one's
// gradient.
#include <string.h>

#include "ir/ops/rules.h"

bool rule_axis(const Node *n, int64_t axis, const Type *t, Diag *d) {
    if (axis >= 0 && axis < t->ndim) return true;
    diag_error(d, n->at, "%s works along axis %lld, but %s has %d axes", op_info[n->op].name, (long long)axis,
               rule_type(n, t), t->ndim);
    return false;
}

// ---- reshape --------------------------------------------------------------------------------------------

// A size as number * symbols; the symbols in order of axes do not matter for the number of elements.
typedef struct { int64_t number; int n_syms; const Sym *sym[MAX_DIM]; } Product;

static Product product_of(const Type *t) {
    Product p = {.number = 1};
    for (int i = 0; i < t->ndim; i++) {
        p.number *= t->dim[i].n;
        if (t->dim[i].sym) p.sym[p.n_syms++] = t->dim[i].sym;
    }
    return p;
}

static bool product_eq(Product a, Product b) {
    if (a.number != b.number || a.n_syms != b.n_syms) return false;
    for (int i = 0; i < a.n_syms; i++) {        // strike every symbol of a from b
        int k = 0;
        while (k < b.n_syms && b.sym[k] != a.sym[i]) k++;
        if (k == b.n_syms) return false;
        b.sym[k] = b.sym[--b.n_syms];
    }
    return true;
}

bool shape_reshape(const Node *n, Type *out, Diag *d) {
    out[0] = type_of_dims(n->in[0]->type.dtype, &n->attr.dims);
    if (product_eq(product_of(&n->in[0]->type), product_of(&out[0]))) return true;
    diag_error(d, n->at, "reshape of %s to %s changes the number of elements", rule_type(n, &n->in[0]->type),
               rule_type(n, &out[0]));
    return false;
}

void grad_reshape(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Dims dims = dims_of(&n->in[0]->type);
    din[0] = build_reshape(b, dout[0], &dims);
}

// ---- permute --------------------------------------------------------------------------------------------

bool shape_permute(const Node *n, Type *out, Diag *d) {
    const Type *t = &n->in[0]->type;
    const Ints *perm = &n->attr.perm;
    int seen = 0;
    out[0] = *t;
    for (int i = 0; i < perm->n && perm->n == t->ndim; i++) {
        if (perm->at[i] < 0 || perm->at[i] >= t->ndim) break;
        seen |= 1 << perm->at[i];
        out[0].dim[i] = t->dim[perm->at[i]];
    }
    if (perm->n == t->ndim && seen == (1 << t->ndim) - 1) return true;
    diag_error(d, n->at, "permute of %s must name each of its %d axes once", rule_type(n, t), t->ndim);
    return false;
}

void grad_permute(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    Ints back = {.n = n->attr.perm.n};
    for (int i = 0; i < back.n; i++) back.at[n->attr.perm.at[i]] = i;
    din[0] = make(b, OP_PERMUTE, INS(dout[0]), .perm = back);
}

// ---- broadcast ------------------------------------------------------------------------------------------

bool shape_to_dims(const Node *n, Type *out, Diag *d) {
    const Type *t = &n->in[0]->type;
    out[0] = type_of_dims(t->dtype, &n->attr.dims);
    int missing = out[0].ndim - t->ndim;
    bool fits = missing >= 0;
    for (int i = 0; fits && i < t->ndim; i++)
        fits = dim_is_1(t->dim[i]) || dim_eq(t->dim[i], out[0].dim[i + missing]);
    if (fits) return true;
    diag_error(d, n->at, "%s can't be repeated to %s: only axes of size 1 stretch", rule_type(n, t),
               rule_type(n, &out[0]));
    return false;
}

void grad_broadcast(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    din[0] = build_sum_to(b, dout[0], &n->in[0]->type);
}

// ---- slice, unslice -------------------------------------------------------------------------------------

static bool is_counted_axis(const Node *n, const Type *t, Diag *d) {
    if (!rule_axis(n, n->attr.axis, t, d)) return false;
    if (!t->dim[n->attr.axis].sym) return true;
    diag_error(d, n->at, "%s needs an axis of constant size, but axis %lld of %s counts rows",
               op_info[n->op].name, (long long)n->attr.axis, rule_type(n, t));
    return false;
}

bool shape_slice(const Node *n, Type *out, Diag *d) {
    const Type *t = &n->in[0]->type;
    if (!is_counted_axis(n, t, d)) return false;
    int64_t begin = n->attr.begin, end = n->attr.end, size = t->dim[n->attr.axis].n;
    out[0] = *t;
    out[0].dim[n->attr.axis] = dim_n(end - begin);
    if (0 <= begin && begin <= end && end <= size) return true;
    diag_error(d, n->at, "slice takes %lld..%lld of axis %lld, which has %lld", (long long)begin,
               (long long)end, (long long)n->attr.axis, (long long)size);
    return false;
}

void grad_slice(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    din[0] = make(b, OP_UNSLICE, INS(dout[0]), .axis = n->attr.axis, .begin = n->attr.begin,
                  .n = n->in[0]->type.dim[n->attr.axis].n);
}

bool shape_unslice(const Node *n, Type *out, Diag *d) {
    const Type *t = &n->in[0]->type;
    if (!is_counted_axis(n, t, d)) return false;
    int64_t begin = n->attr.begin, size = t->dim[n->attr.axis].n;
    out[0] = *t;
    out[0].dim[n->attr.axis] = dim_n(n->attr.n);
    if (begin >= 0 && begin + size <= n->attr.n) return true;
    diag_error(d, n->at, "unslice puts %lld at %lld of an axis of %lld", (long long)size, (long long)begin,
               (long long)n->attr.n);
    return false;
}

void grad_unslice(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)need;
    din[0] = make(b, OP_SLICE, INS(dout[0]), .axis = n->attr.axis, .begin = n->attr.begin,
                  .end = n->attr.begin + n->in[0]->type.dim[n->attr.axis].n);
}

// ---- concat ---------------------------------------------------------------------------------------------

bool shape_concat(const Node *n, Type *out, Diag *d) {
    if (!n->n_in) {
        diag_error(d, n->at, "concat of nothing");
        return false;
    }
    const Type *first = &n->in[0]->type;
    if (!is_counted_axis(n, first, d)) return false;
    out[0] = *first;
    for (int i = 1; i < n->n_in; i++) {
        const Type *t = &n->in[i]->type;
        bool match = t->dtype == first->dtype && t->ndim == first->ndim;
        for (int k = 0; match && k < t->ndim; k++)
            match = k == n->attr.axis ? !t->dim[k].sym : dim_eq(t->dim[k], first->dim[k]);
        if (!match) {
            diag_error(d, n->at, "concat along axis %lld of %s and %s: all other axes must be equal",
                       (long long)n->attr.axis, rule_type(n, first), rule_type(n, t));
            return false;
        }
        out[0].dim[n->attr.axis].n += t->dim[n->attr.axis].n;
    }
    return true;
}

void grad_concat(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    int64_t at = 0;
    for (int i = 0; i < n->n_in; i++) {
        int64_t size = n->in[i]->type.dim[n->attr.axis].n;
        if (need[i])
            din[i] = make(b, OP_SLICE, INS(dout[0]), .axis = n->attr.axis, .begin = at, .end = at + size);
        at += size;
    }
}
