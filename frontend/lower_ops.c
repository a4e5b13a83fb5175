// Operations of the language: how a call finds its row, how its arguments find their parameters, what operators do,
// and the building blocks on tensors that all operations share.
//
//   softmax(z, axis: 1)  ->  row "softmax": x = z, axis = 1  ->  op_softmax  ->  permute, softmax, permute
#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "frontend/lower_ops.h"

static const OpTable *const tables[] = {&math_ops, &shape_ops, &route_ops, &nn_ops};
enum { N_TABLES = sizeof tables / sizeof *tables };

static const OpRow *find_row(const char *name) {
    for (int t = 0; t < N_TABLES; t++)
        for (int i = 0; i < tables[t]->n; i++)
            if (!strcmp(tables[t]->row[i].name, name)) return &tables[t]->row[i];
    return NULL;
}

bool lower_is_op(const char *name) { return find_row(name) != NULL; }

// ---- messages -----------------------------------------------------------------------------------------------------

void *op_error(OpCx *cx, Span at, const char *fmt, ...) {
    Str text = {.arena = cx->lw->arena};
    va_list ap;
    va_start(ap, fmt);
    str_vprintf(&text, fmt, ap);
    va_end(ap);
    diag_error(cx->lw->diag, at, "%s", text.text);
    return NULL;
}

const char *shape_text(OpCx *cx, const LType *t) {
    Str s = {.arena = cx->lw->arena};
    str_add(&s, "[");
    for (int i = 0; i < t->ndim; i++) str_printf(&s, "%s%s", i ? ", " : "", poly_text(cx->lw, t->dim[i]));
    str_add(&s, "]");
    return s.text;
}

int line_of(OpCx *cx, Span at) {
    int line, column;
    diag_line_column(cx->lw->diag, at, &line, &column);
    return line;
}

void op_note_made(OpCx *cx, const Val *v, const TVal *t) {
    if (!v || !v->at.file) return;
    if (v->at.file == cx->at.file && v->at.begin >= cx->at.begin && v->at.end <= cx->at.end) return;   // shown anyway
    diag_note(cx->lw->diag, v->at, "%s is %s", t->what ? t->what : "it", ltype_text(cx->lw, &t->type));
}

// ---- results --------------------------------------------------------------------------------------------------------

OpResult op_failed(OpCx *cx) { return (OpResult){1, {val_error(cx->at)}}; }
OpResult op_value(Val v) { return (OpResult){1, {v}}; }
Val tensor_val(OpCx *cx, TVal *t) { return t ? (Val){.kind = V_TENSOR, .at = cx->at, .t = t} : val_error(cx->at); }
OpResult op_one(OpCx *cx, TVal *t) { return op_value(tensor_val(cx, t)); }
OpResult op_number(OpCx *cx, Num n) { return op_value(val_num(cx->at, n)); }

OpResult op_two(OpCx *cx, TVal *a, TVal *b) {
    if (!a || !b) return op_failed(cx);
    return (OpResult){2, {tensor_val(cx, a), tensor_val(cx, b)}};
}

// ---- compile-time values ----------------------------------------------------------------------------------------------

bool is_number(const Val *v) { return v->kind == V_NUM || v->kind == V_POLY; }

const Poly *val_poly(OpCx *cx, const Val *v) {
    assert(is_number(v));
    return v->kind == V_NUM ? poly_num(cx->lw, v->num) : v->poly;
}

Val poly_val(OpCx *cx, const Poly *p) {
    Num n;
    if (poly_is_num(p, &n)) return val_num(cx->at, n);
    return (Val){.kind = V_POLY, .at = cx->at, .poly = p};
}

bool poly_known(OpCx *cx, const Poly *p, int64_t *out) {
    Num n;
    return poly_is_int(p, out) || (poly_value(cx->lw, p, &n) && num_is_int(n, out));
}

bool val_int(OpCx *cx, const Val *v, int64_t *out) {
    if (v->kind == V_NUM) return num_is_int(v->num, out);
    return v->kind == V_POLY && poly_known(cx, v->poly, out);
}

static const char *param_name(OpCx *cx, int param) { return cx->row->param[param].name; }

bool arg_int(OpCx *cx, int param, int64_t *out) {
    Val *v = &cx->arg[param];
    if (val_int(cx, v, out)) return true;
    if (v->kind == V_POLY)
        op_error(cx, cx->arg_at[param], "%s: '%s' is %s, which is not a whole number known while compiling", cx->op,
                 param_name(cx, param), poly_text(cx->lw, v->poly));
    else
        op_error(cx, cx->arg_at[param], "%s: a whole number is expected for '%s', this is %s", cx->op,
                 param_name(cx, param), val_text(cx->lw, v));
    return false;
}

bool arg_num(OpCx *cx, int param, double *out) {
    Val *v = &cx->arg[param];
    Num n;
    if (v->kind == V_NUM) { *out = num_value(v->num); return true; }
    if (v->kind == V_POLY && poly_value(cx->lw, v->poly, &n)) { *out = num_value(n); return true; }
    op_error(cx, cx->arg_at[param], "%s: '%s' must be known while compiling, this is %s", cx->op, param_name(cx, param),
             val_text(cx->lw, v));
    return false;
}

bool op_dim(OpCx *cx, const Poly *p, Dim *out) {
    if (poly_dim(cx->lw, p, out)) return true;
    op_error(cx, cx->at, "%s: dimension %s is not a whole number here", cx->op, poly_text(cx->lw, p));
    return false;
}

bool arg_shape(OpCx *cx, int param, LType *out) {
    ListVal *list = cx->arg[param].list;
    *out = (LType){0};
    if (list->n > MAX_DIM) {
        op_error(cx, cx->arg_at[param], "%s: a shape has at most %d axes, this one has %d", cx->op, MAX_DIM, list->n);
        return false;
    }
    for (int i = 0; i < list->n; i++) {
        Val *v = &list->at[i];
        bool open = v->kind == V_NONE || (v->kind == V_STR && !strcmp(v->str, "_"));
        if (v->kind == V_ERROR) return false;
        if (!open && !is_number(v)) {
            op_error(cx, cx->arg_at[param], "%s: a shape is a list of whole numbers, this one holds %s", cx->op,
                     val_text(cx->lw, v));
            return false;
        }
        int64_t n;
        if (v->kind == V_NUM && (!num_is_int(v->num, &n) || n < 0)) {
            op_error(cx, cx->arg_at[param], "%s: dimension %s is not a whole number", cx->op,
                     num_text(cx->lw->arena, v->num));
            return false;
        }
        out->dim[out->ndim++] = open ? NULL : val_poly(cx, v);
    }
    return true;
}

const Poly *ltype_elements(OpCx *cx, const LType *t) {
    const Poly *n = poly_int(cx->lw, 1);
    for (int i = 0; i < t->ndim; i++) n = poly_mul(cx->lw, n, t->dim[i]);
    return n;
}

static bool one_axis(OpCx *cx, const Val *v, Span at, const LType *t, int *axis) {
    int64_t n;
    if (!val_int(cx, v, &n)) {
        op_error(cx, at, "%s: an axis is a whole number, this is %s", cx->op, val_text(cx->lw, v));
        return false;
    }
    if (n < -t->ndim || n >= t->ndim) {
        op_error(cx, at, "%s: there is no axis %lld in %s", cx->op, (long long)n, ltype_text(cx->lw, t));
        return false;
    }
    *axis = (int)(n < 0 ? n + t->ndim : n);
    return true;
}

bool arg_axis(OpCx *cx, int param, const LType *t, int *axis) {
    return one_axis(cx, &cx->arg[param], cx->arg_at[param], t, axis);
}

bool arg_axes(OpCx *cx, int param, const LType *t, Ints *axes) {
    Val *v = &cx->arg[param];
    bool in[MAX_DIM] = {false};
    int axis;
    *axes = (Ints){0};
    if (v->kind == V_STR) {
        if (strcmp(v->str, "all")) {
            op_error(cx, cx->arg_at[param], "%s: 'axis' is a whole number, a list of them or \"all\", not \"%s\"", cx->op,
                     v->str);
            return false;
        }
        for (int i = 0; i < t->ndim; i++) in[i] = true;
    } else if (v->kind == V_LIST) {
        for (int i = 0; i < v->list->n; i++) {
            if (!one_axis(cx, &v->list->at[i], cx->arg_at[param], t, &axis)) return false;
            in[axis] = true;
        }
    } else {
        if (!one_axis(cx, v, cx->arg_at[param], t, &axis)) return false;
        in[axis] = true;
    }
    for (int i = 0; i < t->ndim; i++)
        if (in[i]) axes->at[axes->n++] = i;
    return true;
}

// ---- tensors ------------------------------------------------------------------------------------------------------

Lead t_lead(const TVal *t) {
    if (t->leafy) return LEAD_LEAF;
    if (t->per_expert) return LEAD_EXPERT;
    return t->type.rows && !t->type.expert_rows ? LEAD_ROWS : LEAD_NONE;
}

bool is_expert_rows(const TVal *t) { return t->type.rows && t->type.expert_rows; }

static bool is_grouped(const TVal *t) { return t->type.rows && !t->type.expert_rows; }

bool lead_dims(OpCx *cx, Lead lead, const LType *t, Dims *out) {
    *out = (Dims){0};
    if (lead == LEAD_LEAF) out->at[out->n++] = (Dim){1, cx->lw->leaf};
    if (lead == LEAD_EXPERT) out->at[out->n++] = dim_n(cx->lw->expert->E);
    if (lead == LEAD_ROWS) out->at[out->n++] = (Dim){1, t->rows->sym};
    if (out->n + t->ndim > MAX_DIM) {
        op_error(cx, cx->at, "%s: %s has too many axes: %d is the most", cx->op, ltype_text(cx->lw, t), MAX_DIM - 1);
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
    if (fa && fb) return F32;                    // bf16 with f16, or one of them is f32
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
        const TVal **first = is_expert_rows(x[i]) ? &rows : is_grouped(x[i]) ? &grouped
                           : x[i]->leafy ? &leaf : x[i]->per_expert ? &expert : NULL;
        if (!first) continue;
        if (*first && x[i]->type.rows != (*first)->type.rows) {
            op_error(cx, cx->at, "%s: rows of the route of line %d cannot meet rows of the route of line %d", cx->op,
                     line_of(cx, (*first)->type.rows->at), line_of(cx, x[i]->type.rows->at));
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
        op_error(cx, cx->at, "%s: inside an expert %s is not available: it belongs to the tokens, not to their rows",
                 cx->op, ltype_text(cx->lw, &leaf->type));
        return false;
    }
    if (rows && rows->type.ndim != ndim) {
        op_error(cx, cx->at, "%s: inside an expert axis 0 must stay the rows: %s meets a tensor of %d axes", cx->op,
                 ltype_text(cx->lw, &rows->type), ndim);
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
    op_error(cx, cx->at, "%s: shapes %s and %s do not agree on axis -%d%s", cx->op, shape_text(cx, s), shape_text(cx, t),
             from_end, end);
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
    for (int a = 1; a <= ndim; a++) {                          // axis -a
        const TVal *from = NULL;
        const Poly *dim = NULL;
        for (int i = 0; i < n; i++) {
            if (a > x[i]->type.ndim) continue;
            const Poly *d = x[i]->type.dim[x[i]->type.ndim - a];
            int64_t one;
            bool stretches = poly_is_int(d, &one) && one == 1;
            if (!dim || (poly_is_int(dim, &one) && one == 1 && !stretches)) dim = d, from = x[i];
            else if (d != dim && !stretches) return disagree(cx, from, x[i], a);
        }
        type->dim[ndim - a] = dim;
    }
    for (int i = 0; i < n; i++) {
        v[i] = x[i]->v;
        if (x[i]->per_expert && type->expert_rows) {
            if (x[i]->type.ndim == ndim && x[i]->type.dim[0] != poly_int(cx->lw, 1)) return disagree(cx, x[i], x[i], ndim);
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
    if (t_shift(x) && x->type.ndim < type.ndim) {             // new axes go behind the lead
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
    if (t.ndim > MAX_DIM) return op_error(cx, cx->at, "%s: too many axes: %d is the most", cx->op, MAX_DIM - 1);
    for (int i = 0; i < t.ndim; i++) t.dim[i] = i < axis ? x->type.dim[i] : i == axis ? poly_int(cx->lw, 1) : x->type.dim[i - 1];
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
    return t_new(cx, make(cx->b, OP_SLICE, INS(x->v), .axis = axis + t_shift(x), .begin = begin, .end = end), type,
                 t_lead(x));
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

// ---- operators -----------------------------------------------------------------------------------------------------

static TVal *full_like(OpCx *cx, TVal *x, double value, DType dtype) {
    TVal *c = t_new(cx, build_const(cx->b, value, dtype), (LType){0}, LEAD_NONE);
    Dims d;
    if (!c || !lead_dims(cx, t_lead(x), &x->type, &d)) return NULL;
    return t_like(cx, build_broadcast(cx->b, c->v, &d), x);
}

// x ** n for a whole n >= 1, by squaring.
static TVal *whole_power(OpCx *cx, TVal *x, int64_t n) {
    TVal *y = NULL;
    for (; n; n >>= 1) {
        if (n & 1) y = y ? t_binary(cx, OP_MUL, y, x) : x;
        if (n > 1) x = t_binary(cx, OP_MUL, x, x);
    }
    return y;
}

static TVal *power(OpCx *cx, const Val *a, const Val *b) {
    if (a->kind != V_TENSOR) {                                   // a ** x = exp(x * log a)
        Num n = {0};
        if (a->kind == V_NUM) n = a->num;
        else if (a->kind != V_POLY || !poly_value(cx->lw, a->poly, &n))
            return op_error(cx, cx->at, "%s: the base must be a number known while compiling", cx->op);
        if (num_value(n) <= 0) return op_error(cx, cx->at, "%s: the base %s is not positive", cx->op, num_text(cx->lw->arena, n));
        TVal *x = t_cast(cx, b->t, float_dtype(b->t->type.dtype));
        return t_unary(cx, OP_EXP, t_binary_number(cx, OP_MUL, x, log(num_value(n))));
    }
    TVal *x = a->t, *f = NULL;
    if (b->kind == V_TENSOR) {
        DType t = float_dtype(common_dtype(cx, 2, (const Val *[]){a, b}));
        f = t_unary(cx, OP_LOG, t_cast(cx, x, t));
        return t_unary(cx, OP_EXP, t_binary(cx, OP_MUL, t_cast(cx, b->t, t), f));
    }
    Num n = {0};
    if (b->kind == V_NUM) n = b->num;
    else if (b->kind != V_POLY || !poly_value(cx->lw, b->poly, &n))
        return op_error(cx, cx->at, "%s: the exponent must be a number known while compiling", cx->op);
    int64_t k;
    if (num_is_int(n, &k) && k >= -8 && k <= 8) {
        if (k < 0 || x->type.dtype == BOOL) x = t_cast(cx, x, float_dtype(x->type.dtype));
        if (k == 0) return full_like(cx, x, 1, x->type.dtype);
        TVal *y = whole_power(cx, x, k < 0 ? -k : k);
        if (k > 0) return y;
        TVal *one = y ? t_new(cx, build_const(cx->b, 1, y->type.dtype), (LType){0}, LEAD_NONE) : NULL;
        return t_binary(cx, OP_DIV, one, y);
    }
    x = t_cast(cx, x, float_dtype(x->type.dtype));
    if (num_value(n) == 0.5) return t_unary(cx, OP_SQRT, x);
    if (num_value(n) == -0.5) return t_unary(cx, OP_RSQRT, x);
    return t_unary(cx, OP_EXP, t_binary_number(cx, OP_MUL, t_unary(cx, OP_LOG, x), num_value(n)));
}

typedef struct { const char *name; int op; bool swap, negate; } Compare;
static const Compare compares[] = {
    {"==", OP_EQ, false, false}, {"!=", OP_EQ, false, true}, {"<", OP_LT, false, false}, {"<=", OP_LE, false, false},
    {">", OP_LT, true, false},   {">=", OP_LE, true, false}};
typedef struct { const char *name; int op; } Arithmetic;
static const Arithmetic arithmetics[] = {{"+", OP_ADD}, {"-", OP_SUB}, {"*", OP_MUL}, {"/", OP_DIV}, {"%", OP_MOD}};

static TVal *compare(OpCx *cx, const Compare *c, const Val *a, const Val *b) {
    if (c->swap) { const Val *t = a; a = b; b = t; }
    if (c->op != OP_EQ && a->kind == V_TENSOR && a->t->keeps_all && is_number(b)) return full_like(cx, a->t, 1, BOOL);
    DType t = common_dtype(cx, 2, (const Val *[]){a, b});
    if (t == BOOL && c->op != OP_EQ) t = I32;
    TVal *y = t_binary(cx, (Op)c->op, t_operand(cx, a, t), t_operand(cx, b, t));
    return c->negate ? t_unary(cx, OP_NOT, y) : y;
}

static TVal *logic(OpCx *cx, Op op, const Val *a, const Val *b) {
    for (int i = 0; i < 2; i++) {
        const Val *v = i ? b : a;
        if (v->kind == V_BOOL || (v->kind == V_TENSOR && v->t->type.dtype == BOOL)) continue;
        op_error(cx, cx->at, "%s joins bools, this is %s", cx->op, val_text(cx->lw, v));
        if (v->kind == V_TENSOR) op_note_made(cx, v, v->t);
        return NULL;
    }
    return t_binary(cx, op, t_operand(cx, a, BOOL), t_operand(cx, b, BOOL));
}

TVal *t_transpose(OpCx *cx, TVal *x) {
    if (!x) return NULL;
    if (x->type.ndim < 2)
        return op_error(cx, cx->at, ".T swaps the last two axes, %s has %s", ltype_text(cx->lw, &x->type),
                        x->type.ndim ? "one" : "none");
    if (is_grouped(x)) return op_error(cx, cx->at, ".T: rows grouped by expert, %s, keep their axes", ltype_text(cx->lw, &x->type));
    TVal *y = t_swap_last(cx, x, x->type.ndim - 2);
    if (y && y != x) y->transpose_of = x;
    return y;
}

Val op_arithmetic(OpCx *cx, const char *op, const Val *a, const Val *b) {
    for (size_t i = 0; i < sizeof compares / sizeof *compares; i++)
        if (!strcmp(op, compares[i].name)) return tensor_val(cx, compare(cx, &compares[i], a, b));
    if (!strcmp(op, "and")) return tensor_val(cx, logic(cx, OP_AND, a, b));
    if (!strcmp(op, "or")) return tensor_val(cx, logic(cx, OP_OR, a, b));
    if (!strcmp(op, "**")) return tensor_val(cx, power(cx, a, b));
    if (!strcmp(op, "T")) return tensor_val(cx, t_transpose(cx, a->t));
    if (!strcmp(op, "not")) {
        if (a->t->type.dtype != BOOL)
            return tensor_val(cx, op_error(cx, cx->at, "'not' inverts a bool, this is %s", ltype_text(cx->lw, &a->t->type)));
        return tensor_val(cx, t_unary(cx, OP_NOT, a->t));
    }
    if (!strcmp(op, "neg")) {
        TVal *x = a->t->type.dtype == BOOL ? t_cast(cx, a->t, I32) : a->t;
        return tensor_val(cx, t_unary(cx, OP_NEG, x));
    }
    if (!strcmp(op, "@")) {
        if (a->kind != V_TENSOR || b->kind != V_TENSOR)
            return tensor_val(cx, op_error(cx, cx->at, "matmul: both sides are tensors, this is %s",
                                           val_text(cx->lw, a->kind != V_TENSOR ? a : b)));
        return tensor_val(cx, t_matmul(cx, a->t, b->t, a, b));
    }
    for (size_t i = 0; i < sizeof arithmetics / sizeof *arithmetics; i++) {
        if (strcmp(op, arithmetics[i].name)) continue;
        DType t = common_dtype(cx, 2, (const Val *[]){a, b});
        if (t == BOOL) t = I32;
        if (arithmetics[i].op == OP_DIV) t = float_dtype(t);     // i32 / i32 is f32
        return tensor_val(cx, t_binary(cx, (Op)arithmetics[i].op, t_operand(cx, a, t), t_operand(cx, b, t)));
    }
    assert(!"operator");
    return val_error(cx->at);
}

// The shared frame of operators, indexing and calls: nodes get the call's span, an error the chain of calls.
static OpCx frame_enter(Lower *lw, Span at, const char *op, Span *outer, int *n_errors) {
    *outer = lw->b.at;
    *n_errors = diag_n_errors(lw->diag);
    lw->b.at = at;
    return (OpCx){.lw = lw, .b = &lw->b, .at = at, .op = op};
}

static void frame_leave(Lower *lw, Span outer, int n_errors) {
    lw->b.at = outer;
    if (diag_n_errors(lw->diag) > n_errors) lower_notes(lw);
}

Val lower_operator(Lower *lw, Span at, const char *op, const Val *a, const Val *b) {
    if (a->kind == V_ERROR || (b && b->kind == V_ERROR)) return val_error(at);
    Span outer;
    int n_errors;
    const char *shown = !strcmp(op, "T") ? ".T" : !strcmp(op, "neg") ? "'-'" : arena_printf(lw->arena, "'%s'", op);
    OpCx cx = frame_enter(lw, at, shown, &outer, &n_errors);
    Val result = val_error(at);
    const Val *wrong = NULL;
    for (int i = 0; i < 2 && !wrong; i++) {
        const Val *v = i ? b : a;
        if (v && v->kind != V_TENSOR && v->kind != V_BOOL && !is_number(v)) wrong = v;
    }
    if (wrong) {
        op_error(&cx, wrong->at, "this is %s; %s needs a tensor", val_text(lw, wrong), shown);
    } else if (a->kind == V_TENSOR && !a->t->v) {
        // silent: its error was reported
    } else if (b && b->kind == V_TENSOR && !b->t->v) {
    } else {
        result = op_arithmetic(&cx, op, a, b);
    }
    frame_leave(lw, outer, n_errors);
    return result;
}

// ---- indexing -------------------------------------------------------------------------------------------------------

// An end of a range as a number from 0 to n; open ends are `open`.
static bool bound_of(OpCx *cx, const Index *ix, const Val *v, int64_t open, const LType *t, int axis, int64_t n, int64_t *out) {
    if (v->kind == V_NONE) { *out = open; return true; }
    if (v->kind == V_TENSOR) {
        op_error(cx, ix->at, "an index is known while compiling, this value exists only while running");
        diag_help(cx->lw->diag, "take(x, i) picks rows of x, take_along(x, i) entries of each row");
        return false;
    }
    if (!val_int(cx, v, out)) {
        op_error(cx, ix->at, "an index is a whole number, this is %s", val_text(cx->lw, v));
        return false;
    }
    if (*out < 0) *out += n;
    int64_t most = ix->kind == IX_AT ? n - 1 : n;
    if (*out < 0 || *out > most) {
        op_error(cx, ix->at, "index %s is outside axis %d of %s", val_text(cx->lw, v), axis, ltype_text(cx->lw, t));
        return false;
    }
    return true;
}

static TVal *take_index(OpCx *cx, TVal *x, const Index *index, int n_index) {
    int n_axes = 0, rest = -1;
    for (int i = 0; i < n_index; i++) {
        if (index[i].kind != IX_REST) n_axes++;
        else if (rest >= 0) return op_error(cx, index[i].at, "'...' stands at most once in an index");
        else rest = i;
    }
    const LType whole = x->type;
    if (n_axes > whole.ndim)
        return op_error(cx, cx->at, "%d indices for %s, which has %d axes", n_axes, ltype_text(cx->lw, &whole), whole.ndim);
    if (x->type.rows && !x->type.expert_rows)
        return op_error(cx, cx->at, "rows grouped by expert, %s, cannot be indexed", ltype_text(cx->lw, &whole));
    int dropped[MAX_DIM], n_dropped = 0, axis = 0;
    for (int i = 0; i < n_index; i++) {
        const Index *ix = &index[i];
        if (ix->kind == IX_REST) { axis += whole.ndim - n_axes; continue; }
        if (ix->kind != IX_ALL) {
            int64_t n, begin, end;
            if (!rows_axis_free(cx, x, axis, ix->at)) return NULL;
            if (!poly_known(cx, whole.dim[axis], &n))
                return op_error(cx, ix->at, "axis %d of %s has no fixed size and cannot be cut", axis, ltype_text(cx->lw, &whole));
            if (!bound_of(cx, ix, &ix->from, 0, &whole, axis, n, &begin)) return NULL;
            if (ix->kind == IX_AT) {
                end = begin + 1;
                dropped[n_dropped++] = axis;
            } else if (!bound_of(cx, ix, &ix->to, n, &whole, axis, n, &end)) {
                return NULL;
            } else if (end <= begin) {
                return op_error(cx, ix->at, "the range %lld..%lld is empty", (long long)begin, (long long)end);
            }
            if (!(x = t_slice(cx, x, axis, begin, end))) return NULL;
        }
        axis++;
    }
    LType kept = {0};
    for (int i = 0, k = 0; i < whole.ndim; i++) {
        if (k < n_dropped && dropped[k] == i) k++;
        else kept.dim[kept.ndim++] = x->type.dim[i];
    }
    return t_reshape(cx, x, &kept);
}

Val lower_index(Lower *lw, Span at, const Val *x, const Index *index, int n_index) {
    if (x->kind == V_ERROR || !x->t->v) return val_error(at);
    for (int i = 0; i < n_index; i++)
        if (index[i].from.kind == V_ERROR || index[i].to.kind == V_ERROR) return val_error(at);
    Span outer;
    int n_errors;
    OpCx cx = frame_enter(lw, at, "index", &outer, &n_errors);
    Val result = tensor_val(&cx, take_index(&cx, x->t, index, n_index));
    frame_leave(lw, outer, n_errors);
    return result;
}

// ---- arguments -----------------------------------------------------------------------------------------------------

static int count_params(const OpRow *row) {
    int n = 0;
    while (n < MAX_OP_PARAMS && row->param[n].name) n++;
    return n;
}

static Val default_value(const OpParam *p, Span at) {
    const char *d = p->def;
    if (!strcmp(d, "none")) return (Val){.kind = V_NONE, .at = at};
    if (!strcmp(d, "true") || !strcmp(d, "false")) return (Val){.kind = V_BOOL, .at = at, .b = *d == 't'};
    if (p->kind == P_WORD) return (Val){.kind = V_STR, .at = at, .str = intern(d)};
    double f = strtod(d, NULL);
    return val_num(at, f == floor(f) ? num_int((int64_t)f) : num_double(f));
}

// Splits "causal|full" into interned words.
static int words_of(const char *words, const char **out, int most) {
    int n = 0;
    while (*words && n < most) {
        size_t len = strcspn(words, "|");
        out[n++] = intern_n(words, len);
        words += len + (words[len] == '|');
    }
    return n;
}

static bool check_word(OpCx *cx, const OpParam *p, const Val *v, Span at) {
    const char *word[8];
    int n = words_of(p->words, word, 8);
    for (int i = 0; i < n; i++)
        if (v->str == word[i] || !strcmp(v->str, word[i])) return true;
    Str list = {.arena = cx->lw->arena};
    for (int i = 0; i < n; i++) str_printf(&list, "%s\"%s\"", i ? ", " : "", word[i]);
    const char *near = did_you_mean(v->str, word, n);
    op_error(cx, at, "%s: '%s' is one of %s, not \"%s\"%s", cx->op, p->name, list.text, v->str,
             near ? arena_printf(cx->lw->arena, "; did you mean \"%s\"?", near) : "");
    return false;
}

static bool all_tensors(const ListVal *l) {
    for (int i = 0; i < l->n; i++)
        if (l->at[i].kind != V_TENSOR) return false;
    return l->n > 0;
}

static const char *const kind_text[] = {
    [P_ANY] = "a value", [P_TENSOR] = "a tensor", [P_VALUE] = "a tensor or number", [P_NUM] = "a number",
    [P_INT] = "a whole number", [P_BOOL] = "true or false", [P_WORD] = "a word", [P_AXIS] = "an axis",
    [P_AXES] = "an axis, a list of them or \"all\"", [P_SHAPE] = "a shape", [P_LIST] = "a list",
    [P_TENSORS] = "a list of tensors", [P_ROUTE] = "a route", [P_STR] = "a string"};

static bool fits(OpCx *cx, ParamKind kind, const Val *v) {
    int64_t n;
    switch (kind) {
    case P_ANY:     return true;
    case P_TENSOR:  return v->kind == V_TENSOR;
    case P_VALUE:   return v->kind == V_TENSOR || v->kind == V_BOOL || is_number(v);
    case P_NUM:     return is_number(v);
    case P_INT:
    case P_AXIS:    return v->kind == V_POLY || val_int(cx, v, &n);
    case P_BOOL:    return v->kind == V_BOOL;
    case P_WORD:
    case P_STR:     return v->kind == V_STR;
    case P_AXES:    return v->kind == V_STR || v->kind == V_LIST || val_int(cx, v, &n);
    case P_SHAPE:
    case P_LIST:    return v->kind == V_LIST;
    case P_TENSORS: return v->kind == V_LIST && all_tensors(v->list);
    case P_ROUTE:   return v->kind == V_ROUTE;
    }
    return false;
}

static bool check_rows(OpCx *cx, const Val *v, Span at) {
    if (v->kind == V_LIST) {
        for (int i = 0; i < v->list->n; i++)
            if (!check_rows(cx, &v->list->at[i], at)) return false;
        return true;
    }
    if (v->kind != V_TENSOR) return true;
    RowsRule rule = cx->row->rows;
    const TVal *t = v->t;
    if (is_grouped(t) && rule != R_GROUPED && rule != R_BOTH) {
        op_error(cx, at, "%s needs tokens, these are rows grouped by expert, %s", cx->op, ltype_text(cx->lw, &t->type));
        diag_help(cx->lw->diag, "combine(rows, r) brings them back to their tokens");
        return false;
    }
    if ((is_expert_rows(t) || t->per_expert) && rule != R_INSIDE && rule != R_BOTH) {
        op_error(cx, at, "%s cannot stand inside an expert: a row may not depend on other rows", cx->op);
        return false;
    }
    if (rule == R_GROUPED && !is_grouped(t)) {
        op_error(cx, at, "%s needs rows grouped by expert, this is %s", cx->op, ltype_text(cx->lw, &t->type));
        diag_help(cx->lw->diag, "dispatch(x, r) makes them");
        return false;
    }
    return true;
}

static bool contains_error(const Val *v) {
    if (v->kind == V_ERROR || (v->kind == V_TENSOR && !v->t->v)) return true;
    if (v->kind == V_LIST)
        for (int i = 0; i < v->list->n; i++)
            if (contains_error(&v->list->at[i])) return true;
    return false;
}

static bool match_arguments(OpCx *cx, const OpCall *call) {
    const OpRow *row = cx->row;
    const char *names[MAX_OP_PARAMS];
    int n = count_params(row), next = 0;
    for (int i = 0; i < n; i++) names[i] = row->param[i].name;
    for (int i = 0; i < call->n; i++) {
        const OpArg *a = &call->arg[i];
        int p = -1;
        if (!a->name) {
            if (next == n) {
                op_error(cx, a->at, "%s takes at most %d argument%s, this is one more", row->name, n, n == 1 ? "" : "s");
                return false;
            }
            p = next++;
        } else {
            for (int k = 0; k < n; k++)
                if (!strcmp(names[k], a->name)) p = k;
            if (p < 0) {
                if (a->v.kind == V_NONE) continue;               // an argument that is none may lack its parameter
                const char *near = did_you_mean(a->name, names, n);
                op_error(cx, a->at, "%s has no parameter '%s'%s", row->name, a->name,
                         near ? arena_printf(cx->lw->arena, "; did you mean '%s'?", near) : "");
                return false;
            }
        }
        if (cx->given[p]) {
            op_error(cx, a->at, "%s: '%s' is given twice", row->name, names[p]);
            return false;
        }
        cx->given[p] = true;
        cx->arg[p] = a->v;
        cx->arg_at[p] = a->at;
    }
    for (int p = 0; p < n; p++) {
        const OpParam *param = &row->param[p];
        if (!cx->given[p]) {
            if (!param->def) {
                op_error(cx, cx->at, "%s lacks its argument '%s'", row->name, param->name);
                return false;
            }
            cx->arg[p] = default_value(param, cx->at);
            cx->arg_at[p] = cx->at;
            continue;
        }
        const Val *v = &cx->arg[p];
        if (v->kind == V_NONE && param->def && !strcmp(param->def, "none")) { cx->given[p] = false; continue; }
        if (!fits(cx, param->kind, v)) {
            op_error(cx, cx->arg_at[p], "%s: %s is expected for '%s', this is %s", row->name, kind_text[param->kind],
                     param->name, val_text(cx->lw, v));
            return false;
        }
        if (param->kind == P_WORD && !check_word(cx, param, v, cx->arg_at[p])) return false;
        if (!check_rows(cx, v, cx->arg_at[p])) return false;
    }
    return true;
}

const char *const *lower_op_names(int *n) {
    enum { MOST = 160 };
    static _Thread_local const char *names[MOST];                // the same constants each time
    int count = 0;
    for (int t = 0; t < N_TABLES; t++)
        for (int i = 0; i < tables[t]->n; i++) {
            assert(count < MOST);
            names[count++] = tables[t]->row[i].name;
        }
    *n = count;
    return names;
}

OpResult lower_op(Lower *lw, const OpCall *call) {
    for (int i = 0; i < call->n; i++)
        if (contains_error(&call->arg[i].v)) return (OpResult){1, {val_error(call->at)}};
    Span outer;
    int n_errors;
    OpCx cx = frame_enter(lw, call->at, call->op, &outer, &n_errors);
    cx.row = find_row(call->op);
    assert(cx.row);
    OpResult r = match_arguments(&cx, call) ? cx.row->fn(&cx) : op_failed(&cx);
    frame_leave(lw, outer, n_errors);
    return r;
}
