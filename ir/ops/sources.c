// Sources, effects and regions: nodes whose types are written in them.  Also the reserved rules: none, zero,
// ok.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ir/ops/rules.h"

// ---- reserved rules -------------------------------------------------------------------------------------

bool shape_none(const Node *n, Type *out, Diag *d) {
    (void)n, (void)out, (void)d;
    return true;
}

bool check_ok(const Node *n, Diag *d) {
    (void)n, (void)d;
    return true;
}

// Flat almost everywhere: nothing flows back.
void grad_zero(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)b, (void)n, (void)dout, (void)need, (void)din;
}

void grad_none(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    (void)dout, (void)need, (void)din;
    if (b->diag) {
        diag_error(b->diag, n->at, "%s can't be differentiated", op_info[n->op].name);
        diag_help(b->diag, "stop_gradient(..) around it says that no gradient is wanted");
        return;
    }
    fprintf(stderr, "moec: internal: the gradient of %s was asked for\n", op_info[n->op].name);
    abort();
}

// ---- sources --------------------------------------------------------------------------------------------

bool shape_dims(const Node *n, Type *out, Diag *d) {
    (void)d;
    out[0] = type_of_dims((DType)n->attr.dtype, &n->attr.dims);
    return true;
}

bool check_source(const Node *n, Diag *d) {
    static const char *const known[] = {"zeros",   "const",      "normal", "trunc_normal",
                                        "uniform", "random_int", "copy"};
    if (!n->attr.name) {
        diag_error(d, n->at, "%s has no name", op_info[n->op].name);
        return false;
    }
    if (!n->attr.init) return true;
    if (!strcmp(n->attr.init, "random_int") && !(n->attr.init_a >= 0 && n->attr.init_a <= 0x1p31)) {
        diag_error(d, n->at, "random integers of '%s' are below a number from 0 to 2^31, not %g",
                   n->attr.name, n->attr.init_a);
        return false;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(n->attr.init, known[i])) {
            if (i + 1 < sizeof known / sizeof *known || n->attr.init_from) return true;
            diag_error(d, n->at, "init of '%s' is copy, but nothing is named to copy from", n->attr.name);
            return false;
        }
    diag_error(
        d, n->at,
        "init of '%s' is '%s', but must be zeros, const, normal, trunc_normal, uniform, random_int or copy",
        n->attr.name, n->attr.init);
    return false;
}

// seed, wave and step: four numbers.
bool check_random(const Node *n, Diag *d) {
    const Type *t = &n->in[0]->type, *of = n->n_in > 1 ? &n->in[1]->type : NULL, *y = &n->out[0].type;
    if (t->dtype != I32 || t->ndim != 1 || !dim_eq(t->dim[0], dim_n(4))) {
        diag_error(d, n->at, "random draws from i32[4], not %s", type_text(n->graph->arena, t));
        return false;
    }
    if (n->n_in == 1 || (n->n_in == 2 && (!of->ndim || (of->ndim == 1 && y->ndim && dim_eq(of->dim[0], y->dim[0])))))
        return true;
    diag_error(d, n->at, "random draws %s as a part of a larger tensor, i32[], or as rows of one, numbered one by one: not %s",
               type_text(n->graph->arena, y), type_text(n->graph->arena, of));
    return false;
}

bool shape_const(const Node *n, Type *out, Diag *d) {
    (void)d;
    out[0] = (Type){.dtype = (DType)n->attr.dtype};
    if (!n->attr.data) return true;
    const Tensor *t = &n->attr.data->tensor;
    out[0].ndim = (uint8_t)t->ndim;
    for (int i = 0; i < t->ndim; i++) out[0].dim[i] = dim_n(t->dim[i]);
    return true;
}

bool check_const(const Node *n, Diag *d) {
    if (!n->attr.data) return true;
    DType held = n->attr.data->tensor.dtype, want = (DType)n->attr.dtype;
    DType storage = dtype_is_float(want) ? F32 : want == BOOL ? BOOL : I32;
    if (held == storage) return true;
    diag_error(d, n->at, "a constant of %s holds its data as %s, not %s", dtype_name(want),
               dtype_name(storage), dtype_name(held));
    return false;
}

// ---- effects --------------------------------------------------------------------------------------------

// One number per leaf: [L, 1, ..], or all axes 1 where there are no leaves.
bool check_loss(const Node *n, Diag *d) {
    const Type *t = &n->in[0]->type;
    if (!n->attr.name) {
        diag_error(d, n->at, "loss has no name");
        return false;
    }
    for (int i = type_is_leafy(t) && t->dim[0].n == 1 ? 1 : 0; i < t->ndim; i++)
        if (!dim_is_1(t->dim[i])) {
            diag_error(d, n->at, "loss '%s' must be one number per leaf, but is %s", n->attr.name,
                       rule_type(n, t));
            return false;
        }
    return true;
}

bool check_update(const Node *n, Diag *d) {
    if (n->attr.name) return true;
    diag_error(d, n->at, "update names no state or parameter");
    return false;
}

// With sequences: pool [P, bound, ..], rows [1, S, ..], sequences [R, 4] -> the pool
static bool shape_cache_of_many(const Node *n, Type *out, Diag *d) {
    const Type *pool = &n->in[0]->type, *rows = &n->in[1]->type, *sequences = &n->in[2]->type;
    bool match = n->n_in == 3 && pool->ndim == rows->ndim && pool->ndim >= 2 && dim_is_1(rows->dim[0]) && !pool->dim[0].sym &&
                 !pool->dim[1].sym && sequences->ndim == 2 && dim_eq(sequences->dim[1], dim_n(SEQUENCE_COLUMNS));
    for (int i = 2; match && i < pool->ndim; i++) match = dim_eq(pool->dim[i], rows->dim[i]);
    if (!match) {
        diag_error(d, n->at, "cache of several sequences adds rows [1, S, ..] to a pool [P, bound, ..] as sequences i32[R, %d] say, but has "
                   "%s, %s and %s", SEQUENCE_COLUMNS, rule_type(n, rows), rule_type(n, pool), rule_type(n, sequences));
        return false;
    }
    out[0] = *pool;
    return true;
}

// pool [bound, ..], rows [1, S, ..] -> [1, C, ..]
bool shape_cache(const Node *n, Type *out, Diag *d) {
    const Type *pool = &n->in[0]->type, *rows = &n->in[1]->type;
    if (!n->attr.sym || n->attr.sym->kind != SYM_PLAIN) {
        diag_error(d, n->at, "cache names no row symbol for the length of its context");
        return false;
    }
    if (n->n_in > 2) return shape_cache_of_many(n, out, d);
    bool match = pool->ndim >= 1 && rows->ndim == pool->ndim + 1 && dim_is_1(rows->dim[0]);
    for (int i = 1; match && i < pool->ndim; i++) match = dim_eq(pool->dim[i], rows->dim[i + 1]);
    if (!match || pool->dim[0].sym || pool->dim[0].n < n->attr.sym->bound) {
        diag_error(
            d, n->at,
            "cache keeps at most %lld rows in a pool [bound, ..] and adds rows [1, S, ..], but has %s and %s",
            (long long)n->attr.sym->bound, rule_type(n, pool), rule_type(n, rows));
        return false;
    }
    out[0] = *rows;
    out[0].dim[1] = (Dim){1, n->attr.sym};
    return true;
}

// ---- regions --------------------------------------------------------------------------------------------

// Results are what the region's yield names.  Its args must be the node's operands.
bool shape_region(const Node *n, Type *out, Diag *d) {
    const Graph *body = n->attr.body;
    const Node *yield = body ? body->last : NULL;
    if (!yield || yield->op != OP_YIELD || yield->n_in != n->n_out) {
        diag_error(d, n->at, "the region of %s must end in a yield of %d results", op_info[n->op].name,
                   n->n_out);
        return false;
    }
    for_each_node(body, m) {
        if (m->op != OP_ARG) continue;
        if (m->attr.k < 0 || m->attr.k >= n->n_in || !type_eq(&m->out[0].type, &n->in[m->attr.k]->type)) {
            diag_error(d, n->at, "arg %lld in the region of %s is %s, but the node's operand is %s",
                       (long long)m->attr.k, op_info[n->op].name, rule_type(n, &m->out[0].type),
                       m->attr.k >= 0 && m->attr.k < n->n_in ? rule_type(n, &n->in[m->attr.k]->type)
                                                             : "missing");
            return false;
        }
    }
    for (int i = 0; i < n->n_out; i++) out[i] = yield->in[i]->type;
    return true;
}
