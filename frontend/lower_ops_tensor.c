// Building blocks on tensors: each takes text types and leads and makes the graph nodes that do the same.
//
//   a[B, S, D] * g[D]      leaf and none     mul f32[L,2,256,64], f32[64]              right-aligned, as in
//   the text a[B, S, D] * m[]       leaf and leaf     mul f32[L,2,256,64], f32[L,1,1,1]         new axes go
//   behind the lead x[R, H] + b[H]         rows and expert   add f32[R,96], gather_rows(b, row_group)  inside
//   an expert
#include <assert.h>
#include <string.h>
#include "frontend/lower_ops.h"

Lead t_lead(const TVal *t) {
    if (t->leafy) return LEAD_LEAF;
    if (t->per_expert) return LEAD_EXPERT;
    return t->type.rows && !t->type.expert_rows ? LEAD_ROWS : LEAD_NONE;
}

bool lead_dims(OpCx *cx, Lead lead, const LType *t, Dims *out) {
    *out = (Dims){0};
    if (lead == LEAD_LEAF) out->at[out->n++] = (Dim){1, cx->lw->leaf};
    if (lead == LEAD_EXPERT) out->at[out->n++] = dim_n(cx->lw->expert->E);
    if (lead == LEAD_ROWS) out->at[out->n++] = (Dim){1, t->rows->sym};
    if (out->n + t->ndim > MAX_DIM) {
        op_error(cx, cx->at, "%s: %s has too many axes: %d is the most", cx->op, ltype_text(cx->lw, t),
                 MAX_DIM - 1);
        return false;
    }
    for (int i = 0; i < t->ndim; i++)
        if (!op_dim(cx, t->dim[i], &out->at[out->n++])) return false;
    return true;
}

TVal *t_new(OpCx *cx, Value *v, LType type, Lead lead) {
    if (!v) return NULL;
    TVal *t = arena_new(cx->lw->arena, TVal);
    *t = (TVal){.v = v, .type = type, .leafy = lead == LEAD_LEAF, .per_expert = lead == LEAD_EXPERT};
    t->type.dtype = v->type.dtype;
    assert(v->type.ndim == type.ndim + t_shift(t));
    return t;
}

TVal *t_like(OpCx *cx, Value *v, const TVal *like) { return t_new(cx, v, like->type, t_lead(like)); }

DType float_dtype(DType t) { return dtype_is_float(t) ? t : F32; }

static DType wider(DType a, DType b) {
    if (a == b) return a;
    if (a == BOOL) return b;
    if (b == BOOL) return a;
    bool fa = dtype_is_float(a), fb = dtype_is_float(b);
    if (fa && fb) return F32; // bf16 with f16, or one of them is f32
    return fa ? a : fb ? b : I32;
}

// Whether a number may stand beside i32 without making it a float.
static bool is_i32_number(OpCx *cx, const Val *v) {
    int64_t n;
    if (v->kind == V_POLY && !poly_known(cx, v->poly, &n)) {
        Num value;
        return !poly_value(cx->lw, v->poly, &value);
    }
    return val_int(cx, v, &n) && n >= INT32_MIN && n <= INT32_MAX;
}

DType common_dtype(OpCx *cx, int n, const Val *const *v) {
    DType t = BOOL;
    for (int i = 0; i < n; i++)
        if (v[i]->kind == V_TENSOR) t = wider(t, v[i]->t->type.dtype);
    for (int i = 0; i < n; i++)
        if (is_number(v[i]) && !dtype_is_float(t)) t = is_i32_number(cx, v[i]) ? wider(t, I32) : F32;
    return t;
}

TVal *t_number(OpCx *cx, const Val *number, DType dtype) {
    double value = 0;
    Num n;
    if (number->kind == V_BOOL) {
        value = number->b;
    } else if (number->kind == V_NUM) {
        value = num_value(number->num);
    } else if (poly_value(cx->lw, number->poly, &n)) {
        value = num_value(n);
    } else {
        return op_error(cx, cx->at, "%s: the number %s is not known before the program runs", cx->op,
                        poly_text(cx->lw, number->poly));
    }
    return t_new(cx, build_const(cx->b, value, dtype), (LType){.dtype = dtype}, LEAD_NONE);
}

TVal *t_operand(OpCx *cx, const Val *v, DType dtype) {
    return v->kind == V_TENSOR ? t_cast(cx, v->t, dtype) : t_number(cx, v, dtype);
}

bool same_dims(const LType *a, const LType *b) {
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

bool rows_axis_free(OpCx *cx, const TVal *t, int axis, Span at) {
    if (!is_expert_rows(t) || axis != 0) return true;
    op_error(cx, at, "inside an expert a row may not depend on other rows: axis 0 is the rows of the expert");
    return false;
}

// A tensor of each expert as the rows of a route see it: w[H], [E,H], becomes [R,1..,H] with `ndim` axes.
static Value *gather_for_rows(OpCx *cx, const TVal *w, RouteVal *r, int ndim) {
    const Type *t = &w->v->type;
    int64_t n = 1;
    Dims flat = {.n = 2, .at = {t->dim[0]}}, full = {.n = ndim, .at = {{1, r->sym}}};
    for (int i = 1; i < t->ndim; i++) n *= t->dim[i].n;
    flat.at[1] = dim_n(n);
    for (int i = 1; i < ndim; i++) {
        int from = i - ndim + t->ndim;
        full.at[i] = from >= 1 ? t->dim[from] : dim_n(1);
    }
    if (!r->row_group) r->row_group = make(cx->b, OP_ROW_GROUP, INS(r->offsets), .sym = r->sym);
    Value *rows = build_reshape(cx->b, w->v, &flat);
    rows = rows && r->row_group ? make(cx->b, OP_GATHER_ROWS, INS(rows, r->row_group)) : NULL;
    return rows ? build_reshape(cx->b, rows, &full) : NULL;
}

// Whether these operands may meet at all; which lead and route their result has.
static bool meet(OpCx *cx, int n, TVal *const *x, int ndim, LType *type, Lead *lead) {
    const TVal *rows = NULL, *grouped = NULL, *leaf = NULL, *expert = NULL;
    for (int i = 0; i < n; i++) {
        const TVal **first = is_expert_rows(x[i]) ? &rows
                             : is_grouped(x[i])   ? &grouped
                             : x[i]->leafy        ? &leaf
                             : x[i]->per_expert   ? &expert
                                                  : NULL;
        if (!first) continue;
        if (*first && x[i]->type.rows != (*first)->type.rows) {
            op_error(cx, cx->at, "%s: rows of the route of line %d cannot meet rows of the route of line %d",
                     cx->op, line_of(cx, (*first)->type.rows->at), line_of(cx, x[i]->type.rows->at));
            return false;
        }
        if (!*first) *first = x[i];
    }
    if (grouped) {
        for (int i = 0; i < n; i++) {
            if (is_grouped(x[i]) || (t_lead(x[i]) == LEAD_NONE && !x[i]->type.ndim)) continue;
            op_error(cx, cx->at, "%s: rows grouped by expert, %s, cannot meet tokens, %s", cx->op,
                     ltype_text(cx->lw, &grouped->type), ltype_text(cx->lw, &x[i]->type));
            diag_help(cx->lw->diag, "combine(rows, r) brings them back to their tokens");
            return false;
        }
    }
    if (leaf && (rows || expert)) {
        op_error(cx, cx->at,
                 "%s: inside an expert %s is not available: it belongs to the tokens, not to their rows",
                 cx->op, ltype_text(cx->lw, &leaf->type));
        return false;
    }
    if (rows && rows->type.ndim != ndim) {
        op_error(cx, cx->at, "%s: inside an expert axis 0 must stay the rows: %s meets a tensor of %d axes",
                 cx->op, ltype_text(cx->lw, &rows->type), ndim);
        return false;
    }
    *lead = grouped ? LEAD_ROWS : leaf ? LEAD_LEAF : expert && !rows ? LEAD_EXPERT : LEAD_NONE;
    type->rows = grouped ? grouped->type.rows : rows ? rows->type.rows : NULL;
    type->expert_rows = rows != NULL;
    return true;
}

static bool drops_an_axis(const Value *v) {
    const Node *n = v->node;
    return n->op == OP_RESHAPE && n->in[0]->type.ndim == v->type.ndim + 1;
}

static bool disagree(OpCx *cx, const TVal *a, const TVal *b, int from_end) {
    const LType *s = &a->type, *t = &b->type;
    const char *end = "";
    if (s->ndim != t->ndim)
        end = arena_printf(cx->lw->arena, ": %s and %s", poly_text(cx->lw, s->dim[s->ndim - from_end]),
                           poly_text(cx->lw, t->dim[t->ndim - from_end]));
    op_error(cx, cx->at, "%s: shapes %s and %s do not agree on axis -%d%s", cx->op, shape_text(cx, s),
             shape_text(cx, t), from_end, end);
    const TVal *small = s->ndim < t->ndim ? a : b;
    const LType *large = small == a ? t : s;
    if (small->type.ndim + 1 == large->ndim && drops_an_axis(small->v) &&
        !memcmp(small->type.dim, large->dim, sizeof *large->dim * (size_t)small->type.ndim))
        diag_help(cx->lw->diag, "keepdim: true keeps the summed axis as 1");
    return false;
}

bool t_align(OpCx *cx, int n, TVal *const *x, Value **v, LType *type, Lead *lead) {
    int ndim = 0;
    for (int i = 0; i < n; i++) {
        if (!x[i]) return false;
        if (x[i]->type.ndim > ndim) ndim = x[i]->type.ndim;
    }
    *type = (LType){.dtype = x[0]->type.dtype, .ndim = ndim};
    if (!meet(cx, n, x, ndim, type, lead)) return false;
    for (int a = 1; a <= ndim; a++) { // axis -a
        const TVal *from = NULL;
        const Poly *dim = NULL;
        for (int i = 0; i < n; i++) {
            if (a > x[i]->type.ndim) continue;
            const Poly *d = x[i]->type.dim[x[i]->type.ndim - a];
            int64_t one;
            bool stretches = poly_is_int(d, &one) && one == 1;
            if (!dim || (poly_is_int(dim, &one) && one == 1 && !stretches))
                dim = d, from = x[i];
            else if (d != dim && !stretches)
                return disagree(cx, from, x[i], a);
        }
        type->dim[ndim - a] = dim;
    }
    for (int i = 0; i < n; i++) {
        v[i] = x[i]->v;
        if (x[i]->per_expert && type->expert_rows) {
            if (x[i]->type.ndim == ndim && x[i]->type.dim[0] != poly_int(cx->lw, 1))
                return disagree(cx, x[i], x[i], ndim);
            TVal w = *x[i];
            v[i] = gather_for_rows(cx, &w, type->rows, ndim);
        } else if (t_shift(x[i]) && x[i]->type.ndim < ndim) {
            Dims d = {.n = ndim + 1};
            const Type *t = &x[i]->v->type;
            for (int k = 0; k <= ndim; k++) d.at[k] = dim_n(1);
            d.at[0] = t->dim[0];
            for (int k = 1; k < t->ndim; k++) d.at[ndim + 1 - t->ndim + k] = t->dim[k];
            v[i] = build_reshape(cx->b, v[i], &d);
        }
        if (!v[i]) return false;
    }
    return true;
}

TVal *t_with_lead(OpCx *cx, TVal *x, Lead lead) {
    if (!x || t_lead(x) == lead || lead == LEAD_NONE) return x;
    assert(t_lead(x) == LEAD_NONE && lead != LEAD_ROWS);
    Dims d;
    if (!lead_dims(cx, lead, &x->type, &d)) return NULL;
    return t_new(cx, build_broadcast(cx->b, x->v, &d), x->type, lead);
}

bool t_same_lead(OpCx *cx, int n, TVal **x) {
    LType type = {0};
    Lead lead;
    int ndim = 0;
    for (int i = 0; i < n; i++) {
        if (!x[i]) return false;
        if (x[i]->type.ndim > ndim) ndim = x[i]->type.ndim;
    }
    if (!meet(cx, n, x, ndim, &type, &lead)) return false;
    for (int i = 0; i < n; i++) {
        if (type.expert_rows && !is_expert_rows(x[i])) {
            op_error(cx, cx->at, "%s: inside an expert all operands must be rows, this is %s", cx->op,
                     ltype_text(cx->lw, &x[i]->type));
            return false;
        }
        if (!(x[i] = t_with_lead(cx, x[i], lead))) return false;
    }
    return true;
}

TVal *t_cast(OpCx *cx, TVal *x, DType dtype) {
    if (!x || x->type.dtype == dtype) return x;
    return t_like(cx, build_cast(cx->b, x->v, dtype), x);
}

TVal *t_unary(OpCx *cx, Op op, TVal *x) { return x ? t_like(cx, build_unary(cx->b, op, x->v), x) : NULL; }

TVal *t_binary(OpCx *cx, Op op, TVal *a, TVal *b) {
    LType type;
    Lead lead;
    Value *v[2];
    if (!t_align(cx, 2, (TVal *[]){a, b}, v, &type, &lead)) return NULL;
    return t_new(cx, build_binary(cx->b, op, v[0], v[1]), type, lead);
}

TVal *t_select(OpCx *cx, TVal *c, TVal *a, TVal *b) {
    LType type;
    Lead lead;
    Value *v[3];
    if (!t_align(cx, 3, (TVal *[]){c, a, b}, v, &type, &lead)) return NULL;
    return t_new(cx, make(cx->b, OP_SELECT, INS(v[0], v[1], v[2])), type, lead);
}

TVal *t_binary_number(OpCx *cx, Op op, TVal *a, double n) {
    if (!a) return NULL;
    Value *number = build_const(cx->b, n, a->type.dtype);
    return t_binary(cx, op, a, t_new(cx, number, (LType){0}, LEAD_NONE));
}

TVal *t_reshape(OpCx *cx, TVal *x, const LType *dims) {
    if (!x) return NULL;
    if (same_dims(&x->type, dims)) return x;
    LType type = x->type;
    type.ndim = dims->ndim;
    memcpy(type.dim, dims->dim, sizeof type.dim);
    if (is_expert_rows(x) && (!type.ndim || type.dim[0] != x->type.dim[0])) {
        rows_axis_free(cx, x, 0, cx->at);
        return NULL;
    }
    Dims d;
    if (!lead_dims(cx, t_lead(x), &type, &d)) return NULL;
    TVal *y = t_new(cx, build_reshape(cx->b, x->v, &d), type, t_lead(x));
    if (y) y->keeps_all = x->keeps_all;
    return y;
}

TVal *t_permute(OpCx *cx, TVal *x, const int *perm) {
    if (!x) return NULL;
    if (is_expert_rows(x) && perm[0] != 0) {
        rows_axis_free(cx, x, 0, cx->at);
        return NULL;
    }
    Ints p = {.n = x->v->type.ndim};
    LType type = x->type;
    int shift = t_shift(x);
    bool moves = false;
    for (int i = 0; i < type.ndim; i++) {
        type.dim[i] = x->type.dim[perm[i]];
        p.at[i + shift] = perm[i] + shift;
        moves |= perm[i] != i;
    }
    return moves ? t_new(cx, make(cx->b, OP_PERMUTE, INS(x->v), .perm = p), type, t_lead(x)) : x;
}

TVal *t_swap_last(OpCx *cx, TVal *x, int axis) {
    if (!x) return NULL;
    int perm[MAX_DIM], last = x->type.ndim - 1;
    for (int i = 0; i <= last; i++) perm[i] = i == axis ? last : i == last ? axis : i;
    return t_permute(cx, x, perm);
}

TVal *t_expand(OpCx *cx, TVal *x, const LType *dims) {
    if (!x) return NULL;
    LType type = x->type;
    type.ndim = dims->ndim;
    memcpy(type.dim, dims->dim, sizeof type.dim);
    Value *v = x->v;
    Dims d;
    if (cx->lw->expert && t_lead(x) == LEAD_NONE && type.ndim &&
        type.dim[0] == poly_sym(cx->lw, cx->lw->expert->sym->name)) {
        type.rows = cx->lw->expert;
        type.expert_rows = true;
    }
    if (!lead_dims(cx, t_lead(x), &type, &d)) return NULL;
    if (t_shift(x) && x->type.ndim < type.ndim) { // new axes go behind the lead
        Dims one = {.n = d.n};
        for (int i = 0; i < d.n; i++) one.at[i] = dim_n(1);
        one.at[0] = v->type.dim[0];
        for (int i = 1; i < v->type.ndim; i++) one.at[d.n - v->type.ndim + i] = v->type.dim[i];
        v = build_reshape(cx->b, v, &one);
    }
    return v ? t_new(cx, build_broadcast(cx->b, v, &d), type, t_lead(x)) : NULL;
}

TVal *t_insert_axis(OpCx *cx, TVal *x, int axis) {
    if (!x) return NULL;
    LType t = {.ndim = x->type.ndim + 1};
    if (t.ndim > MAX_DIM)
        return op_error(cx, cx->at, "%s: too many axes: %d is the most", cx->op, MAX_DIM - 1);
    for (int i = 0; i < t.ndim; i++)
        t.dim[i] = i < axis ? x->type.dim[i] : i == axis ? poly_int(cx->lw, 1) : x->type.dim[i - 1];
    return t_reshape(cx, x, &t);
}

TVal *t_drop_axis(OpCx *cx, TVal *x, int axis) {
    if (!x) return NULL;
    LType t = {.ndim = x->type.ndim - 1};
    for (int i = 0; i < t.ndim; i++) t.dim[i] = x->type.dim[i < axis ? i : i + 1];
    return t_reshape(cx, x, &t);
}

TVal *t_slice(OpCx *cx, TVal *x, int axis, int64_t begin, int64_t end) {
    if (!x) return NULL;
    int64_t n;
    if (begin == 0 && poly_known(cx, x->type.dim[axis], &n) && end == n) return x;
    LType type = x->type;
    type.dim[axis] = poly_int(cx->lw, end - begin);
    return t_new(cx, make(cx->b, OP_SLICE, INS(x->v), .axis = axis + t_shift(x), .begin = begin, .end = end),
                 type, t_lead(x));
}

TVal *t_concat(OpCx *cx, int n, TVal **x, int axis) {
    if (!t_same_lead(cx, n, x)) return NULL;
    if (!rows_axis_free(cx, x[0], axis, cx->at)) return NULL;
    if (n == 1) return x[0];
    LType type = x[0]->type;
    Value **in = arena_array(cx->lw->arena, Value *, n + 1);
    for (int i = 0; i < n; i++) {
        in[i] = x[i]->v;
        LType t = x[i]->type;
        if (i) type.dim[axis] = poly_add(cx->lw, type.dim[axis], t.dim[axis]);
        t.dim[axis] = x[0]->type.dim[axis];
        if (!same_dims(&t, &x[0]->type))
            return op_error(cx, cx->at, "%s: %s and %s differ on more than axis %d", cx->op,
                            ltype_text(cx->lw, &x[0]->type), ltype_text(cx->lw, &x[i]->type), axis);
    }
    return t_new(cx, make(cx->b, OP_CONCAT, in, .axis = axis + t_shift(x[0])), type, t_lead(x[0]));
}

TVal *t_sum(OpCx *cx, TVal *x, const Ints *axes, bool keepdim) {
    if (!x) return NULL;
    Ints a = *axes;
    LType kept = x->type, dropped = x->type;
    dropped.ndim = 0;
    for (int i = 0, k = 0; i < x->type.ndim; i++) {
        if (k < axes->n && axes->at[k] == i) {
            kept.dim[i] = poly_int(cx->lw, 1);
            k++;
        } else {
            dropped.dim[dropped.ndim++] = x->type.dim[i];
        }
    }
    for (int i = 0; i < a.n; i++) a.at[i] += t_shift(x);
    TVal *y = a.n ? t_new(cx, build_sum(cx->b, x->v, &a), kept, t_lead(x)) : x;
    return keepdim ? y : t_reshape(cx, y, &dropped);
}

TVal *t_mean(OpCx *cx, TVal *x, const Ints *axes, bool keepdim) {
    if (!x) return NULL;
    const Poly *n = poly_int(cx->lw, 1);
    for (int i = 0; i < axes->n; i++) n = poly_mul(cx->lw, n, x->type.dim[axes->at[i]]);
    x = t_cast(cx, x, float_dtype(x->type.dtype));
    Val count = poly_val(cx, n);
    TVal *sum = t_sum(cx, x, axes, true), *number = sum ? t_number(cx, &count, sum->type.dtype) : NULL;
    TVal *y = t_binary(cx, OP_DIV, sum, number);
    return y && !keepdim ? t_sum(cx, y, axes, false) : y;
}

TVal *t_iota(OpCx *cx, const Poly *n) {
    Dims d = {.n = 1};
    if (!op_dim(cx, n, &d.at[0])) return NULL;
    return t_new(cx, make(cx->b, OP_IOTA, INS(NULL), .dtype = I32, .dims = d, .axis = 0),
                 (LType){.ndim = 1, .dim = {n}}, LEAD_NONE);
}

TVal *t_flat(OpCx *cx, TVal *x, int from, int to) {
    if (!x || to - from == 1) return x;
    LType t = {0};
    const Poly *n = poly_int(cx->lw, 1);
    for (int i = from; i < to; i++) n = poly_mul(cx->lw, n, x->type.dim[i]);
    for (int i = 0; i < from; i++) t.dim[t.ndim++] = x->type.dim[i];
    t.dim[t.ndim++] = n;
    for (int i = to; i < x->type.ndim; i++) t.dim[t.ndim++] = x->type.dim[i];
    return t_reshape(cx, x, &t);
}
