// Shapes, checks and gradients of selection, rows by index and routing.  Their meaning: ir/ref/routing.c.
#include <assert.h>

#include "ir/ops/rules.h"

static bool same_rows(const Type *a, const Type *b, int n) {
    for (int i = 0; i < n; i++)
        if (!dim_eq(a->dim[i], b->dim[i])) return false;
    return true;
}

static bool last_is_number(const Node *n, const Type *t, Diag *d) {
    if (t->ndim >= 1 && !t->dim[t->ndim - 1].sym) return true;
    diag_error(d, n->at, "%s needs a last axis of constant size, but got %s", op_info[n->op].name,
               rule_type(n, t));
    return false;
}

static const Type *in_type(const Node *n, int i) { return &n->in[i]->type; }

// ---- selection ------------------------------------------------------------------------------------------

bool shape_topk(const Node *n, Type *out, Diag *d) {
    const Type *x = in_type(n, 0);
    if (!last_is_number(n, x, d)) return false;
    out[0] = *x;
    out[0].dim[x->ndim - 1] = dim_n(n->attr.k);
    out[1] = out[0];
    out[1].dtype = I32;
    return true;
}

bool check_topk(const Node *n, Diag *d) {
    int64_t cols = type_cols(in_type(n, 0)), k = n->attr.k;
    if (k >= 1 && k <= cols) return true;
    diag_error(d, n->at, "topk keeps %lld of %lld entries, but k must be 1 to %lld", (long long)k,
               (long long)cols, (long long)cols);
    return false;
}

void grad_topk(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (!dout[0] || !need[0]) return;
    din[0] = make(b, OP_PUT, INS(dout[0], node_out(n, 1)), .n = type_cols(in_type(n, 0)));
}

bool check_rows_match(const Node *n, Diag *d) {
    const Type *x = in_type(n, 0), *index = in_type(n, 1);
    if (x->ndim == index->ndim && same_rows(x, index, x->ndim - 1)) return true;
    diag_error(d, n->at, "%s needs an index for each row, but got %s and %s", op_info[n->op].name,
               rule_type(n, x), rule_type(n, index));
    return false;
}

bool shape_take(const Node *n, Type *out, Diag *d) {
    if (!last_is_number(n, in_type(n, 0), d) || !last_is_number(n, in_type(n, 1), d)) return false;
    out[0] = *in_type(n, 1);
    out[0].dtype = in_type(n, 0)->dtype;
    return true;
}

void grad_take(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (!dout[0] || !need[0]) return;
    din[0] = make(b, OP_PUT, INS(dout[0], n->in[1]), .n = type_cols(in_type(n, 0)));
}

bool shape_put(const Node *n, Type *out, Diag *d) {
    const Type *v = in_type(n, 0), *index = in_type(n, 1);
    if (!last_is_number(n, v, d)) return false;
    if (v->ndim != index->ndim || !same_rows(v, index, v->ndim) || n->attr.n < 1) {
        diag_error(d, n->at, "put needs an index for each value and n >= 1, but got %s, %s and n = %lld",
                   rule_type(n, v), rule_type(n, index), (long long)n->attr.n);
        return false;
    }
    out[0] = *v;
    out[0].dim[v->ndim - 1] = dim_n(n->attr.n);
    return true;
}

void grad_put(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (dout[0] && need[0]) din[0] = make(b, OP_TAKE, INS(dout[0], n->in[1]), 0);
}

// ---- rows by index --------------------------------------------------------------------------------------

bool shape_gather_rows(const Node *n, Type *out, Diag *d) {
    const Type *x = in_type(n, 0), *index = in_type(n, 1);
    if (x->ndim < 2 || index->ndim >= MAX_DIM) {
        diag_error(d, n->at, "gather_rows needs rows and an index of at most %d axes, but got %s and %s",
                   MAX_DIM - 1, rule_type(n, x), rule_type(n, index));
        return false;
    }
    out[0] = *index;
    out[0].dtype = x->dtype;
    out[0].dim[out[0].ndim++] = x->dim[x->ndim - 1];
    return true;
}

// The other of a route's two maps (each other's inverse), if the index is one of them and x what it names
// rows of: then no two sources meet, and the gradient is a gather by that map.
static Value *inverse_of(const Value *index, const Type *x) {
    const Node *route = index->node;
    if (!route || route->op != OP_ROUTE || index->index == 0) return NULL;
    if (index->index == 1) {                                             // row_of reads rows R
        Dim rows = {1, route->attr.sym};
        return x->ndim == 2 && dim_eq(x->dim[0], rows) ? node_out(route, 2) : NULL;
    }
    int64_t slots = type_bound_elements(&route->out[1].type);            // slot_of reads slots
    return type_bound_elements(x) == slots * type_cols(x) ? node_out(route, 1) : NULL;
}

void grad_gather_rows(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    Value *d = dout[0], *index = n->in[1];
    const Type *x = in_type(n, 0);
    if (!d || !need[0]) return;
    Dims dims = dims_of(x);
    Value *inverse = inverse_of(index, x);
    if (inverse && (index->index == 1 || type_cols(x) == 1)) {         // wide slots: simplify decides (passes/rules.c)
        din[0] = build_reshape(b, make(b, OP_GATHER_ROWS, INS(d, inverse), 0), &dims);
        return;
    }
    const Node *group = index->node;
    if (group && group->op == OP_ROW_GROUP && x->ndim == 2 &&
        dim_eq(x->dim[0], dim_n(group->attr.sym->groups))) {
        din[0] = make(b, OP_GROUPED_SUM, INS(d, group->in[0]), 0);
        return;
    }
    Sym *rows = type_ragged(&d->type);
    bool by_leaf = rows && !type_is_leafy(x) && !type_ragged(x);
    din[0] = by_leaf ? make(b, OP_SCATTER_ADD_ROWS, INS(d, index, rows->extent), .dims = dims)
                     : make(b, OP_SCATTER_ADD_ROWS, INS(d, index), .dims = dims);
}

const Value *scatter_inverse(const Node *n) {
    return n->n_in > 2 && n->in[2]->type.ndim > 1 ? n->in[2] : NULL;
}

bool shape_scatter_add_rows(const Node *n, Type *out, Diag *d) {
    const Type *v = in_type(n, 0), *index = in_type(n, 1);
    const Dims *dims = &n->attr.dims;
    if (v->ndim != index->ndim + 1 || !same_rows(v, index, index->ndim) || dims->n < 1 || n->n_in > 3 ||
        !dim_eq(dims->at[dims->n - 1], v->dim[v->ndim - 1])) {
        Type want = type_of_dims(v->dtype, dims);
        diag_error(d, n->at,
                   "scatter_add_rows needs an index for each row and as many columns as its result, but got "
                   "%s and %s for %s",
                   rule_type(n, v), rule_type(n, index), rule_type(n, &want));
        return false;
    }
    out[0] = type_of_dims(v->dtype, dims);
    Sym *rows = type_ragged(v);
    const Value *inverse = scatter_inverse(n);
    if (inverse && (inverse->type.ndim != dims->n || !same_rows(&inverse->type, &out[0], dims->n - 1))) {
        diag_error(d, n->at, "scatter_add_rows needs source rows for each row of %s, but got %s", rule_type(n, &out[0]),
                   rule_type(n, &inverse->type));
        return false;
    }
    if (!inverse && n->n_in == 2 && rows && rows->leaves > 1 && !type_is_leafy(&out[0]) && !type_ragged(&out[0])) {
        diag_error(d, n->at,
                   "scatter_add_rows of grouped rows %s to %s, which has no leaves, needs their offsets",
                   rule_type(n, v), rule_type(n, &out[0]));
        return false;
    }
    return true;
}

void grad_scatter_add_rows(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (dout[0] && need[0]) din[0] = make(b, OP_GATHER_ROWS, INS(dout[0], n->in[1]), 0);
}

// ---- routing --------------------------------------------------------------------------------------------

// e is [.., t, k].
static bool is_choices(const Node *n, const Type *e, Diag *d) {
    if (e->ndim >= 2 && n->attr.experts >= 1) return true;
    diag_error(d, n->at, "%s needs choices [.., t, k] among at least 1 expert, but got %s and experts = %lld",
               op_info[n->op].name, rule_type(n, e), (long long)n->attr.experts);
    return false;
}

bool shape_count(const Node *n, Type *out, Diag *d) {
    const Type *e = in_type(n, 0);
    if (!is_choices(n, e, d)) return false;
    out[0] = type_make(I32, e->ndim - 1, e->dim);
    out[0].dim[e->ndim - 2] = dim_n(n->attr.experts);
    return true;
}

bool shape_queue(const Node *n, Type *out, Diag *d) {
    const Type *e = in_type(n, 0);
    if (!is_choices(n, e, d)) return false;
    if (n->n_in > 2 ||
        (n->n_in == 2 && (in_type(n, 1)->ndim != e->ndim || !same_rows(e, in_type(n, 1), e->ndim)))) {
        diag_error(d, n->at, "queue needs one priority per choice, but got %s for %s",
                   rule_type(n, in_type(n, 1)), rule_type(n, e));
        return false;
    }
    out[0] = *e;
    return true;
}

bool shape_route(const Node *n, Type *out, Diag *d) {
    const Type *e = in_type(n, 0);
    if (!is_choices(n, e, d)) return false;
    int64_t leaves = type_is_leafy(e) ? e->dim[0].sym->bound : 1;
    out[0] = type_make(I32, 1, &(Dim){n->attr.experts * leaves + 1, NULL});
    out[1] = *e;
    out[2] = type_make(I32, 1, &(Dim){1, n->attr.sym});
    return true;
}

bool check_route(const Node *n, Diag *d) {
    const Type *e = in_type(n, 0);
    const Sym *rows = n->attr.sym;
    int64_t leaves = type_is_leafy(e) ? e->dim[0].sym->bound : 1;
    if (rows && rows->kind == SYM_RAGGED && rows->groups == n->attr.experts && rows->leaves == leaves &&
        rows->bound >= 0 && rows->bound <= type_bound_elements(e))
        return true;
    diag_error(
        d, n->at,
        "route of %s must define rows of %lld groups and %lld leaves, at most %lld, but its symbol has "
        "%d groups, %d leaves and bound %lld",
        rule_type(n, e), (long long)n->attr.experts, (long long)leaves, (long long)type_bound_elements(e),
        rows ? rows->groups : 0, rows ? rows->leaves : 0, rows ? (long long)rows->bound : 0);
    return false;
}

bool shape_row_group(const Node *n, Type *out, Diag *d) {
    Sym *rows = n->attr.sym;
    const Type *offsets = in_type(n, 0);
    if (!rows || rows->kind != SYM_RAGGED || offsets->ndim != 1 ||
        !dim_eq(offsets->dim[0], dim_n((int64_t)rows->groups * rows->leaves + 1))) {
        diag_error(d, n->at, "row_group needs the offsets of its rows, but got %s", rule_type(n, offsets));
        return false;
    }
    out[0] = type_make(I32, 1, &(Dim){1, rows});
    return true;
}
