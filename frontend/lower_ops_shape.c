// Shapes and selection: reshape, concat, split, gathers, topk, sort, and the makers full, iota, one_hot.
//
//   reshape(q, [B, S, N, d])  ->  reshape to [L,2,256,8,16]       B = 2, S = 256: what the plan fixes
//   take(embed, tokens)       ->  gather_rows embed [V,D], tokens [L,B,S]  ->  [L,B,S,D]
#include <assert.h>
#include <string.h>
#include "frontend/lower_ops.h"

// ---- shapes ---------------------------------------------------------------------------------------------

static const char *open_shape_text(OpCx *cx, const LType *t) {
    Str s = {.arena = cx->lw->arena};
    str_add(&s, "[");
    for (int i = 0; i < t->ndim; i++)
        str_printf(&s, "%s%s", i ? ", " : "", t->dim[i] ? poly_text(cx->lw, t->dim[i]) : "_");
    str_add(&s, "]");
    return s.text;
}

static OpResult op_reshape(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    LType want;
    if (!arg_shape(cx, 1, &want)) return op_failed(cx);
    const Poly *have = ltype_elements(cx, &x->type), *rest = poly_int(cx->lw, 1);
    int open = -1;
    int64_t n;
    for (int i = 0; i < want.ndim; i++) {
        if (want.dim[i]) {
            rest = poly_mul(cx->lw, rest, want.dim[i]);
        } else if (open < 0) {
            open = i;
        } else {
            op_error(cx, cx->arg_at[1], "reshape: one _ can be inferred, this shape has several");
            return op_failed(cx);
        }
    }
    bool fits = true;
    if (open >= 0) {
        LType shown = want;
        const Poly *size = poly_is_int(rest, &n) && n == 0 ? NULL : poly_div(cx->lw, have, rest);
        Num value;
        want.dim[open] = size;
        fits = size && !(poly_is_num(size, &value) && !poly_is_int(size, &n));
        Dim d;
        if (fits && !poly_dim(cx->lw, size, &d)) fits = false;
        if (!fits) want = shown;
    } else {
        fits = have == rest;
    }
    if (!fits) {
        op_error(cx, cx->at, "reshape: %s has %s elements, which do not fill %s",
                 ltype_text(cx->lw, &x->type), poly_text(cx->lw, have), open_shape_text(cx, &want));
        op_note_made(cx, &cx->arg[0], x);
        return op_failed(cx);
    }
    return op_one(cx, t_reshape(cx, x, &want));
}

static OpResult op_rows(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    if (!x->type.ndim) {
        op_error(cx, cx->arg_at[0], "rows: a tensor with columns is expected, this is %s",
                 ltype_text(cx->lw, &x->type));
        return op_failed(cx);
    }
    if (x->type.ndim == 1) return op_one(cx, t_insert_axis(cx, x, 0));
    return op_one(cx, t_flat(cx, x, 0, x->type.ndim - 1));
}

static OpResult op_permute(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    ListVal *list = cx->arg[1].list;
    int perm[MAX_DIM];
    bool seen[MAX_DIM] = {false};
    int64_t axis;
    bool right = list->n == x->type.ndim;
    for (int i = 0; right && i < list->n; i++) {
        right = val_int(cx, &list->at[i], &axis) && axis >= -x->type.ndim && axis < x->type.ndim;
        if (!right) break;
        perm[i] = (int)(axis < 0 ? axis + x->type.ndim : axis);
        right = !seen[perm[i]];
        seen[perm[i]] = true;
    }
    if (!right) {
        op_error(cx, cx->arg_at[1], "permute: a list with each of the %d axes of %s is expected",
                 x->type.ndim, ltype_text(cx->lw, &x->type));
        return op_failed(cx);
    }
    return op_one(cx, t_permute(cx, x, perm));
}

// The tensors of a list, of one element type.
static bool list_tensors(OpCx *cx, int param, int *n, TVal ***out) {
    ListVal *list = cx->arg[param].list;
    const Val **v = arena_array(cx->lw->arena, const Val *, list->n);
    *n = list->n;
    *out = arena_array(cx->lw->arena, TVal *, list->n);
    for (int i = 0; i < list->n; i++) v[i] = &list->at[i];
    DType t = common_dtype(cx, list->n, v);
    for (int i = 0; i < list->n; i++)
        if (!((*out)[i] = t_cast(cx, list->at[i].t, t))) return false;
    for (int i = 1; i < list->n; i++) {
        if ((*out)[i]->type.ndim == (*out)[0]->type.ndim) continue;
        op_error(cx, cx->arg_at[param], "%s: %s and %s have different numbers of axes", cx->op,
                 ltype_text(cx->lw, &(*out)[0]->type), ltype_text(cx->lw, &(*out)[i]->type));
        return false;
    }
    return true;
}

static OpResult op_concat(OpCx *cx) {
    int n, axis;
    TVal **x;
    if (!list_tensors(cx, 0, &n, &x) || !arg_axis(cx, 1, &x[0]->type, &axis)) return op_failed(cx);
    return op_one(cx, t_concat(cx, n, x, axis));
}

static OpResult op_stack(OpCx *cx) {
    int n, axis;
    TVal **x;
    if (!list_tensors(cx, 0, &n, &x)) return op_failed(cx);
    LType more = {.dtype = x[0]->type.dtype, .ndim = x[0]->type.ndim + 1};
    if (more.ndim > MAX_DIM) {
        op_error(cx, cx->at, "stack: too many axes: %d is the most", MAX_DIM - 1);
        return op_failed(cx);
    }
    for (int i = 0; i < more.ndim; i++) more.dim[i] = i ? x[0]->type.dim[i - 1] : poly_int(cx->lw, n);
    if (!arg_axis(cx, 1, &more, &axis) || !rows_axis_free(cx, x[0], axis, cx->at)) return op_failed(cx);
    for (int i = 0; i < n; i++)
        if (!(x[i] = t_insert_axis(cx, x[i], axis))) return op_failed(cx);
    return op_one(cx, t_concat(cx, n, x, axis));
}

static OpResult op_split(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    ListVal *sizes = cx->arg[1].list, *parts = arena_new(cx->lw->arena, ListVal);
    int axis;
    int64_t total = 0, have, n, begin = 0;
    if (!arg_axis(cx, 2, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    for (int i = 0; i < sizes->n; i++) {
        if (!val_int(cx, &sizes->at[i], &n) || n < 1) {
            op_error(cx, cx->arg_at[1], "split: sizes are whole numbers from 1, this list holds %s",
                     val_text(cx->lw, &sizes->at[i]));
            return op_failed(cx);
        }
        total += n;
    }
    if (!poly_known(cx, x->type.dim[axis], &have) || have != total) {
        op_error(cx, cx->at, "split: the sizes sum to %lld, axis %d of %s is %s", (long long)total, axis,
                 ltype_text(cx->lw, &x->type), poly_text(cx->lw, x->type.dim[axis]));
        op_note_made(cx, &cx->arg[0], x);
        return op_failed(cx);
    }
    parts->at = arena_array(cx->lw->arena, Val, sizes->n);
    for (int i = 0; i < sizes->n; i++) {
        if (!val_int(cx, &sizes->at[i], &n)) return op_failed(cx);
        TVal *part = t_slice(cx, x, axis, begin, begin + n);
        if (!part) return op_failed(cx);
        parts->at[parts->n++] = tensor_val(cx, part);
        begin += n;
    }
    return op_value((Val){.kind = V_LIST, .at = cx->at, .list = parts});
}

static OpResult op_expand(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    LType want;
    int64_t n;
    if (!arg_shape(cx, 1, &want)) return op_failed(cx);
    bool fits = want.ndim >= x->type.ndim;
    for (int i = 0; i < want.ndim && fits; i++) {
        int from = i - want.ndim + x->type.ndim;
        if (!want.dim[i])
            fits = false;
        else if (from >= 0 && x->type.dim[from] != want.dim[i])
            fits = poly_is_int(x->type.dim[from], &n) && n == 1;
    }
    if (fits && is_expert_rows(x) && (want.ndim != x->type.ndim || want.dim[0] != x->type.dim[0])) {
        rows_axis_free(cx, x, 0, cx->at);
        return op_failed(cx);
    }
    if (!fits) {
        op_error(cx, cx->at, "expand: %s cannot be stretched to %s: only axes of 1 stretch",
                 ltype_text(cx->lw, &x->type), open_shape_text(cx, &want));
        op_note_made(cx, &cx->arg[0], x);
        return op_failed(cx);
    }
    return op_one(cx, same_dims(&x->type, &want) ? x : t_expand(cx, x, &want));
}

static OpResult op_pad(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    int64_t before, after, n;
    int axis;
    if (!arg_int(cx, 1, &before) || !arg_int(cx, 2, &after) || !arg_axis(cx, 3, &x->type, &axis))
        return op_failed(cx);
    if (!rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    if (before < 0 || after < 0 || !poly_known(cx, x->type.dim[axis], &n)) {
        op_error(cx, cx->at, "pad: axis %d of %s cannot get %lld and %lld entries more", axis,
                 ltype_text(cx->lw, &x->type), (long long)before, (long long)after);
        return op_failed(cx);
    }
    bool is_bool = x->type.dtype == BOOL;
    if (is_bool) x = t_cast(cx, x, I32);
    if (!x) return op_failed(cx);
    LType t = x->type;
    t.dim[axis] = poly_int(cx->lw, before + n + after);
    TVal *y = t_new(cx,
                    make(cx->b, OP_UNSLICE, INS(x->v), .axis = axis + t_shift(x), .begin = before,
                         .n = before + n + after),
                    t, t_lead(x));
    return op_one(cx, is_bool ? t_cast(cx, y, BOOL) : y);
}

static OpResult op_shape(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    ListVal *list = arena_new(cx->lw->arena, ListVal);
    list->at = arena_array(cx->lw->arena, Val, x->type.ndim);
    for (int i = 0; i < x->type.ndim; i++) list->at[list->n++] = poly_val(cx, x->type.dim[i]);
    return op_value((Val){.kind = V_LIST, .at = cx->at, .list = list});
}

static OpResult op_size(OpCx *cx) {
    int axis;
    if (!arg_axis(cx, 1, &cx->arg[0].t->type, &axis)) return op_failed(cx);
    return op_value(poly_val(cx, cx->arg[0].t->type.dim[axis]));
}

// ---- makers ---------------------------------------------------------------------------------------------

static OpResult op_full(OpCx *cx) {
    LType t;
    const Val *v = &cx->arg[1];
    if (!arg_shape(cx, 0, &t)) return op_failed(cx);
    for (int i = 0; i < t.ndim; i++) {
        if (t.dim[i]) continue;
        op_error(cx, cx->arg_at[0], "full: nothing to infer _ from");
        return op_failed(cx);
    }
    if (v->kind == V_TENSOR && v->t->type.ndim) {
        op_error(cx, cx->arg_at[1], "full: the value is a number, this is %s",
                 ltype_text(cx->lw, &v->t->type));
        return op_failed(cx);
    }
    return op_one(cx, t_expand(cx,
                               t_operand(cx, v,
                                         v->kind == V_TENSOR ? v->t->type.dtype
                                         : v->kind == V_BOOL ? BOOL
                                                             : F32),
                               &t));
}

static OpResult op_iota(OpCx *cx) { return op_one(cx, t_iota(cx, val_poly(cx, &cx->arg[0]))); }

static bool is_index(OpCx *cx, int param) {
    TVal *t = cx->arg[param].t;
    if (t->type.dtype == I32) return true;
    op_error(cx, cx->arg_at[param], "%s: an index is i32, this is %s", cx->op, ltype_text(cx->lw, &t->type));
    op_note_made(cx, &cx->arg[param], t);
    return false;
}

static OpResult op_one_hot(OpCx *cx) {
    if (!is_index(cx, 0)) return op_failed(cx);
    TVal *i = cx->arg[0].t, *columns = t_iota(cx, val_poly(cx, &cx->arg[1]));
    return op_one(cx, t_binary(cx, OP_EQ, t_insert_axis(cx, i, i->type.ndim), columns));
}

// ---- gathers --------------------------------------------------------------------------------------------

// Index into a table that each leaf (or expert) has its own of: leaf l's rows start at l * n.
static TVal *index_with_owner(OpCx *cx, TVal *index, const TVal *table) {
    Lead lead = t_lead(table);
    Dims d = {.n = 1, .at = {table->v->type.dim[0]}};
    Val n = poly_val(cx, table->type.dim[0]);
    TVal *owner =
        t_new(cx, make(cx->b, OP_IOTA, INS(NULL), .dtype = I32, .dims = d, .axis = 0), (LType){0}, lead);
    TVal *number = t_number(cx, &n, I32),
         *zero = t_new(cx, build_const(cx->b, 0, I32), (LType){0}, LEAD_NONE);
    TVal *at = t_binary(cx, OP_ADD, index, t_binary(cx, OP_MUL, owner, number));
    TVal *nobody = t_new(cx, build_const(cx->b, -1, I32), (LType){0}, LEAD_NONE);
    return t_select(cx, t_binary(cx, OP_LT, index, zero), nobody, at);
}

static OpResult op_take(OpCx *cx) {
    TVal *table = cx->arg[0].t, *index = cx->arg[1].t;
    if (!table->type.ndim) {
        op_error(cx, cx->arg_at[0], "take: a table has rows, this is %s", ltype_text(cx->lw, &table->type));
        return op_failed(cx);
    }
    if (!is_index(cx, 1) || !rows_axis_free(cx, table, 0, cx->at)) return op_failed(cx);
    LType entry = table->type; // what one index picks
    entry.ndim--;
    memmove(entry.dim, entry.dim + 1, sizeof *entry.dim * (size_t)entry.ndim);
    TVal *flat = table->type.ndim == 1 ? t_insert_axis(cx, table, 1) : t_flat(cx, table, 1, table->type.ndim);
    if (t_lead(table) != LEAD_NONE) index = index_with_owner(cx, index, table);
    if (!flat || !index) return op_failed(cx);
    LType t = index->type, full = index->type;
    if (full.ndim + entry.ndim >= MAX_DIM) {
        op_error(cx, cx->at, "take: the result has too many axes: %d is the most", MAX_DIM - 1);
        return op_failed(cx);
    }
    t.dim[t.ndim++] = flat->type.dim[1];
    for (int i = 0; i < entry.ndim; i++) full.dim[full.ndim++] = entry.dim[i];
    TVal *y = t_new(cx, make(cx->b, OP_GATHER_ROWS, INS(flat->v, index->v)), t, t_lead(index));
    return op_one(cx, t_reshape(cx, y, &full));
}

// Everything but the last axis equal.
static bool same_rows(OpCx *cx, int a, int b) {
    LType s = cx->arg[a].t->type, t = cx->arg[b].t->type;
    if (s.ndim && t.ndim) {
        s.ndim--;
        t.ndim--;
        if (same_dims(&s, &t)) return true;
    }
    op_error(cx, cx->at, "%s: %s and %s must agree on all axes but the last", cx->op,
             ltype_text(cx->lw, &cx->arg[a].t->type), ltype_text(cx->lw, &cx->arg[b].t->type));
    return false;
}

TVal *t_take(OpCx *cx, TVal *x, TVal *index) {
    TVal *both[2] = {x, index};
    if (!t_same_lead(cx, 2, both)) return NULL;
    LType t = both[1]->type;
    return t_new(cx, make(cx->b, OP_TAKE, INS(both[0]->v, both[1]->v)), t, t_lead(both[1]));
}

static OpResult op_take_along(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    if (!is_index(cx, 1) || !same_rows(cx, 0, 1) || !rows_axis_free(cx, x, x->type.ndim - 1, cx->at))
        return op_failed(cx);
    return op_one(cx, t_take(cx, x, cx->arg[1].t));
}

static TVal *put(OpCx *cx, TVal *v, TVal *index, const TVal *like, int64_t n) {
    TVal *both[2] = {v, index};
    if (!t_same_lead(cx, 2, both)) return NULL;
    LType t = both[1]->type;
    t.dim[t.ndim - 1] = like->type.dim[like->type.ndim - 1];
    return t_new(cx, make(cx->b, OP_PUT, INS(both[0]->v, both[1]->v), .n = n), t, t_lead(both[1]));
}

static OpResult op_put_along(OpCx *cx) {
    TVal *x = cx->arg[0].t, *index = cx->arg[1].t;
    int64_t n;
    if (!is_index(cx, 1) || !same_rows(cx, 0, 1)) return op_failed(cx);
    if (!poly_known(cx, x->type.dim[x->type.ndim - 1], &n)) {
        op_error(cx, cx->at, "put_along: the last axis of %s has no fixed size",
                 ltype_text(cx->lw, &x->type));
        return op_failed(cx);
    }
    DType t = x->type.dtype == BOOL ? I32 : x->type.dtype;
    TVal *v = t_expand(cx, t_operand(cx, &cx->arg[2], t), &index->type);
    if (cx->arg[2].kind == V_TENSOR) {
        if (!same_dims(&cx->arg[2].t->type, &index->type)) {
            op_error(cx, cx->arg_at[2], "put_along: the values are %s, the indices %s",
                     ltype_text(cx->lw, &cx->arg[2].t->type), ltype_text(cx->lw, &index->type));
            return op_failed(cx);
        }
        v = t_cast(cx, cx->arg[2].t, t);
    }
    TVal *one = t_expand(cx, t_new(cx, build_const(cx->b, 1, I32), (LType){0}, LEAD_NONE), &index->type);
    TVal *zero = t_new(cx, build_const(cx->b, 0, I32), (LType){0}, LEAD_NONE);
    TVal *is_there = t_binary(cx, OP_LT, zero, put(cx, one, index, x, n));
    TVal *written = t_cast(cx, put(cx, v, index, x, n), x->type.dtype);
    return op_one(cx, t_select(cx, is_there, written, x));
}

// ---- order ----------------------------------------------------------------------------------------------

static OpResult largest(OpCx *cx, TVal *x, int64_t k, const Poly *k_dim, TVal **values, TVal **index) {
    Node *top = build(cx->b, OP_TOPK, INS(x->v), .k = k);
    if (!top) return op_failed(cx);
    LType t = x->type;
    t.dim[t.ndim - 1] = k_dim;
    *values = t_new(cx, &top->out[0], t, t_lead(x));
    *index = t_new(cx, &top->out[1], t, t_lead(x));
    return op_two(cx, *values, *index);
}

static OpResult op_topk(OpCx *cx) {
    TVal *x = cx->arg[0].t, *values, *index;
    int64_t k, n;
    if (!x->type.ndim) {
        op_error(cx, cx->arg_at[0], "topk: a tensor with rows is expected, this is %s",
                 ltype_text(cx->lw, &x->type));
        return op_failed(cx);
    }
    if (!arg_int(cx, 1, &k) || !rows_axis_free(cx, x, x->type.ndim - 1, cx->at)) return op_failed(cx);
    const Poly *columns = x->type.dim[x->type.ndim - 1];
    if (k < 1 || !poly_known(cx, columns, &n) || k > n) {
        op_error(cx, cx->arg_at[1], "topk keeps k = %lld of each row, but a row has %s", (long long)k,
                 poly_text(cx->lw, columns));
        op_note_made(cx, &cx->arg[0], x);
        return op_failed(cx);
    }
    if (x->type.dtype == BOOL) x = t_cast(cx, x, I32);
    return x ? largest(cx, x, k, val_poly(cx, &cx->arg[1]), &values, &index) : op_failed(cx);
}

// Ascending and stable: the largest of -x first, ties to the smaller index.
static OpResult op_sort(OpCx *cx) {
    TVal *x = cx->arg[0].t, *values, *index;
    int axis;
    int64_t n;
    if (!arg_axis(cx, 1, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    if (!poly_known(cx, x->type.dim[axis], &n)) {
        op_error(cx, cx->at, "sort: axis %d of %s has no fixed size", axis, ltype_text(cx->lw, &x->type));
        return op_failed(cx);
    }
    const Poly *size = x->type.dim[axis];
    if (x->type.dtype == BOOL) x = t_cast(cx, x, I32);
    x = t_swap_last(cx, t_unary(cx, OP_NEG, x), axis);
    if (!x || largest(cx, x, n, size, &values, &index).n != 2) return op_failed(cx);
    index = t_swap_last(cx, index, axis);
    return op_two(cx, t_swap_last(cx, t_unary(cx, OP_NEG, values), axis), index);
}

// ---- the table ------------------------------------------------------------------------------------------

#define X                                                                                                    \
    { "x", P_TENSOR }

// clang-format off
static const OpRow rows[] = {
    {"reshape",    op_reshape,    R_INSIDE, {X, {"shape", P_SHAPE}}},
    {"rows",       op_rows,       R_INSIDE, {X}},
    {"permute",    op_permute,    R_INSIDE, {X, {"axes", P_LIST}}},
    {"concat",     op_concat,     R_INSIDE, {{"list", P_TENSORS}, {"axis", P_AXIS}}},
    {"stack",      op_stack,      R_INSIDE, {{"list", P_TENSORS}, {"axis", P_AXIS}}},
    {"split",      op_split,      R_INSIDE, {X, {"sizes", P_LIST}, {"axis", P_AXIS}}},
    {"expand",     op_expand,     R_INSIDE, {X, {"shape", P_SHAPE}}},
    {"pad",        op_pad,        R_INSIDE, {X, {"before", P_INT}, {"after", P_INT}, {"axis", P_AXIS}}},
    {"shape",      op_shape,      R_INSIDE, {X}},
    {"size",       op_size,       R_INSIDE, {X, {"axis", P_AXIS}}},
    {"full",       op_full,       R_INSIDE, {{"shape", P_SHAPE}, {"value", P_VALUE}}},
    {"iota",       op_iota,       R_INSIDE, {{"n", P_INT}}},
    {"one_hot",    op_one_hot,    R_INSIDE, {{"i", P_TENSOR}, {"n", P_INT}}},
    {"take",       op_take,       R_INSIDE, {{"table", P_TENSOR}, {"i", P_TENSOR}}},
    {"take_along", op_take_along, R_INSIDE, {X, {"i", P_TENSOR}}},
    {"put_along",  op_put_along,  R_INSIDE, {X, {"i", P_TENSOR}, {"v", P_VALUE}}},
    {"topk",       op_topk,       R_INSIDE, {X, {"k", P_INT}}},
    {"sort",       op_sort,       R_INSIDE, {X, {"axis", P_AXIS}}},
};
// clang-format on

const OpTable shape_ops = {rows, sizeof rows / sizeof *rows};
