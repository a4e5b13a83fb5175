// Elementwise operations, also of compile-time numbers, and reductions.
//
//   gelu(x)           ->  0.5 * x * (1 + erf(x / sqrt 2))         the graph has no gelu: fusion makes it one
//   loop max(x, axis: 0)   ->  permute, topk 1, permute, reshape       differentiable
#include <math.h>
#include <string.h>
#include "frontend/lower_ops.h"

// ---- compile-time numbers -------------------------------------------------------------------------------

static bool is_tensor(const Val *v) { return v->kind == V_TENSOR; }

// The number of a compile-time argument, which the plan may fix.
static bool number_of(OpCx *cx, int param, Num *out) {
    Val *v = &cx->arg[param];
    if (v->kind == V_NUM) {
        *out = v->num;
        return true;
    }
    if (v->kind == V_POLY && poly_value(cx->lw, v->poly, out)) return true;
    op_error(cx, cx->arg_at[param], "%s: a number known while compiling is expected, this is %s", cx->op,
             v->kind == V_POLY ? poly_text(cx->lw, v->poly) : val_text(cx->lw, v));
    return false;
}

static Num num_neg(Num a) { return num_sub(num_int(0), a); }
static Num num_abs(Num a) { return num_cmp(a, num_int(0)) < 0 ? num_neg(a) : a; }
static Num num_sign(Num a) { return num_int(num_cmp(a, num_int(0))); }
static Num num_min(Num a, Num b) { return num_cmp(b, a) < 0 ? b : a; }
static Num num_max(Num a, Num b) { return num_cmp(b, a) > 0 ? b : a; }

// f(number), which stays exact where f is; a symbolic one becomes an atom, f(B*S/8).
static OpResult exact_unary(OpCx *cx, Num (*f)(Num), const char *atom) {
    Val *v = &cx->arg[0];
    Num n;
    if (v->kind == V_POLY && atom) return op_value(poly_val(cx, poly_opaque(cx->lw, atom, v->poly, NULL)));
    return number_of(cx, 0, &n) ? op_number(cx, f(n)) : op_failed(cx);
}

static double fold_rsqrt(double x) { return 1 / sqrt(x); }
static double fold_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double fold_silu(double x) { return x / (1 + exp(-x)); }
static double fold_relu(double x) { return x > 0 ? x : 0; }
static double fold_softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }

static OpResult fold(OpCx *cx) {
    Num n;
    return number_of(cx, 0, &n) ? op_number(cx, num_double(cx->row->fold(num_value(n)))) : op_failed(cx);
}

// ---- elementwise ----------------------------------------------------------------------------------------

static TVal *float_arg(OpCx *cx) { return t_cast(cx, cx->arg[0].t, float_dtype(cx->arg[0].t->type.dtype)); }

static OpResult op_unary(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return fold(cx);
    return op_one(cx, t_unary(cx, (Op)cx->row->op, float_arg(cx)));
}

static OpResult op_floor(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return exact_unary(cx, num_floor, "floor");
    TVal *x = cx->arg[0].t;
    return op_one(cx, dtype_is_float(x->type.dtype) ? t_unary(cx, OP_FLOOR, x) : x);
}

static OpResult op_ceil(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return exact_unary(cx, num_ceil, "ceil");
    TVal *x = cx->arg[0].t;
    if (!dtype_is_float(x->type.dtype)) return op_one(cx, x);
    return op_one(cx, t_unary(cx, OP_NEG, t_unary(cx, OP_FLOOR, t_unary(cx, OP_NEG, x))));
}

static OpResult op_round(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return exact_unary(cx, num_round, "round");
    TVal *x = cx->arg[0].t;
    return op_one(cx, dtype_is_float(x->type.dtype) ? t_unary(cx, OP_ROUND, x) : x);
}

static TVal *signed_arg(OpCx *cx) {
    return cx->arg[0].t->type.dtype == BOOL ? t_cast(cx, cx->arg[0].t, I32) : cx->arg[0].t;
}

static OpResult op_abs(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return exact_unary(cx, num_abs, NULL);
    return op_one(cx, t_unary(cx, OP_ABS, signed_arg(cx)));
}

static OpResult op_sign(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return exact_unary(cx, num_sign, NULL);
    return op_one(cx, t_unary(cx, OP_SIGN, signed_arg(cx)));
}

static TVal *scalar(OpCx *cx, double value, DType dtype) {
    return t_new(cx, build_const(cx->b, value, dtype), (LType){0}, LEAD_NONE);
}

// max(0, x): at 0 the gradient goes to the constant.
static TVal *relu(OpCx *cx, TVal *x) {
    return x ? t_binary(cx, OP_MAX, scalar(cx, 0, x->type.dtype), x) : NULL;
}

static OpResult op_relu(OpCx *cx) {
    return is_tensor(&cx->arg[0]) ? op_one(cx, relu(cx, signed_arg(cx))) : fold(cx);
}

static OpResult op_silu(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return fold(cx);
    TVal *x = float_arg(cx);
    return op_one(cx, t_binary(cx, OP_MUL, x, t_unary(cx, OP_SIGMOID, x)));
}

static OpResult op_softplus(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) return fold(cx);
    TVal *x = float_arg(cx), *small = t_unary(cx, OP_EXP, t_unary(cx, OP_NEG, t_unary(cx, OP_ABS, x)));
    TVal *rest = t_unary(cx, OP_LOG1P, small);
    return op_one(cx, t_binary(cx, OP_ADD, relu(cx, x), rest));
}

static OpResult op_gelu(OpCx *cx) {
    TVal *x = float_arg(cx);
    const char *form = cx->arg[1].str;
    if (!strcmp(form, "quick"))
        return op_one(
            cx, t_binary(cx, OP_MUL, x, t_unary(cx, OP_SIGMOID, t_binary_number(cx, OP_MUL, x, 1.702))));
    TVal *inner;
    if (!strcmp(form, "erf")) {
        inner = t_unary(cx, OP_ERF, t_binary_number(cx, OP_MUL, x, sqrt(0.5)));
    } else { // tanh(sqrt(2/pi) (x + 0.044715 x^3))
        TVal *cube = t_binary(cx, OP_MUL, t_binary(cx, OP_MUL, x, x), x);
        TVal *sum = t_binary(cx, OP_ADD, x, t_binary_number(cx, OP_MUL, cube, 0.044715));
        inner = t_unary(cx, OP_TANH, t_binary_number(cx, OP_MUL, sum, 0.79788456080286535588));
    }
    TVal *half = t_binary_number(cx, OP_MUL, x, 0.5);
    return op_one(cx, t_binary(cx, OP_MUL, half, t_binary_number(cx, OP_ADD, inner, 1)));
}

static OpResult op_is_finite(OpCx *cx) {
    if (!is_tensor(&cx->arg[0])) {
        Num n;
        if (!number_of(cx, 0, &n)) return op_failed(cx);
        return op_value((Val){.kind = V_BOOL, .at = cx->at, .b = isfinite(num_value(n))});
    }
    return op_one(cx, t_binary_number(cx, OP_LT, t_unary(cx, OP_ABS, float_arg(cx)), INFINITY));
}

// ---- casts ----------------------------------------------------------------------------------------------

static OpResult op_cast_to(OpCx *cx) {
    DType to = (DType)cx->row->op;
    Val *v = &cx->arg[0];
    Num n;
    if (is_tensor(v)) return op_one(cx, t_cast(cx, v->t, to));
    if (v->kind == V_BOOL) return op_number(cx, num_int(v->b));
    if (v->kind == V_POLY && to == F32)
        return op_value(poly_val(cx, poly_opaque(cx->lw, "f32", v->poly, NULL)));
    if (!number_of(cx, 0, &n)) return op_failed(cx);
    if (to == I32) return op_number(cx, num_cmp(n, num_int(0)) < 0 ? num_ceil(n) : num_floor(n));
    if (to == F32) return op_number(cx, num_double((float)num_value(n)));
    op_error(cx, cx->at, "%s rounds tensors; numbers are exact while compiling (f32(v) rounds one)", cx->op);
    return op_failed(cx);
}

static OpResult op_cast(OpCx *cx) { return op_one(cx, t_operand(cx, &cx->arg[0], cx->arg[1].t->type.dtype)); }

// ---- where, clamp, min, max -----------------------------------------------------------------------------

static OpResult op_where(OpCx *cx) {
    const Val *c = &cx->arg[0], *a = &cx->arg[1], *b = &cx->arg[2];
    if (c->kind == V_BOOL) return op_value(c->b ? *a : *b);
    if (!is_tensor(c) || c->t->type.dtype != BOOL) {
        op_error(cx, cx->arg_at[0], "where: the condition is a bool, this is %s", val_text(cx->lw, c));
        if (is_tensor(c)) op_note_made(cx, c, c->t);
        return op_failed(cx);
    }
    DType t = common_dtype(cx, 2, (const Val *[]){a, b});
    TVal *otherwise = t_operand(cx, b, t);
    return op_one(cx, t_select(cx, c->t, t_operand(cx, a, t), otherwise));
}

static bool all_numbers(OpCx *cx, int n) {
    for (int i = 0; i < n; i++)
        if (!is_number(&cx->arg[i])) return false;
    return true;
}

static Val smaller_or_larger(OpCx *cx, const Val *a, const Val *b, bool larger) {
    if (a->kind == V_NUM && b->kind == V_NUM)
        return val_num(cx->at, larger ? num_max(a->num, b->num) : num_min(a->num, b->num));
    const Poly *p = val_poly(cx, a), *q = val_poly(cx, b);
    return p == q ? poly_val(cx, p) : poly_val(cx, poly_opaque(cx->lw, larger ? "max" : "min", p, q));
}

static OpResult op_clamp(OpCx *cx) {
    const Val *x = &cx->arg[0], *lo = &cx->arg[1], *hi = &cx->arg[2];
    if (all_numbers(cx, 3)) {
        Val low = smaller_or_larger(cx, x, lo, true);
        return op_value(smaller_or_larger(cx, &low, hi, false));
    }
    DType t = common_dtype(cx, 3, (const Val *[]){x, lo, hi});
    if (t == BOOL) t = I32;
    TVal *low = t_operand(cx, lo, t), *y = t_binary(cx, OP_MAX, t_operand(cx, x, t), low);
    return op_one(cx, t_binary(cx, OP_MIN, y, t_operand(cx, hi, t)));
}

// ---- reductions -----------------------------------------------------------------------------------------
// Parameters: 0 x, then `axis` and `keepdim` at the places `at` and `at + 1`.

static bool reduced_axes(OpCx *cx, int at, Ints *axes, bool *keepdim) {
    Val *x = &cx->arg[0];
    if (!is_tensor(x)) {
        op_error(cx, cx->arg_at[0], "%s: a tensor is expected, this is %s", cx->op, val_text(cx->lw, x));
        return false;
    }
    if (!cx->given[at]) {
        op_error(cx, cx->at, "%s lacks its argument 'axis'", cx->op);
        diag_help(cx->lw->diag, "axis: \"all\" reduces every axis, axis: -1 the last one");
        return false;
    }
    if (!arg_axes(cx, at, &x->t->type, axes)) return false;
    for (int i = 0; i < axes->n; i++)
        if (!rows_axis_free(cx, x->t, (int)axes->at[i], cx->at)) return false;
    *keepdim = cx->arg[at + 1].b;
    return true;
}

// Drops the (size 1) axes unless they are kept.
static TVal *finish(OpCx *cx, TVal *x, const Ints *axes, bool keepdim) {
    if (!x || keepdim) return x;
    LType t = {0};
    for (int i = 0, k = 0; i < x->type.ndim; i++) {
        if (k < axes->n && axes->at[k] == i)
            k++;
        else
            t.dim[t.ndim++] = x->type.dim[i];
    }
    return t_reshape(cx, x, &t);
}

// The largest (or smallest) along an axis, and where it is.
static TVal *extreme(OpCx *cx, TVal *x, int axis, bool largest, TVal **index) {
    if (x->type.dtype == BOOL) x = t_cast(cx, x, I32);
    if (!largest) x = t_unary(cx, OP_NEG, x);
    TVal *last = t_swap_last(cx, x, axis);
    if (!last) return NULL;
    Node *top = build(cx->b, OP_TOPK, INS(last->v), .k = 1);
    if (!top) return NULL;
    LType t = last->type;
    t.dim[t.ndim - 1] = poly_int(cx->lw, 1);
    if (index) *index = t_swap_last(cx, t_new(cx, &top->out[1], t, t_lead(last)), axis);
    TVal *y = t_new(cx, &top->out[0], t, t_lead(last));
    return t_swap_last(cx, largest ? y : t_unary(cx, OP_NEG, y), axis);
}

static TVal *any_along(OpCx *cx, TVal *x, int axis) {
    LType t = x->type;
    t.dim[axis] = poly_int(cx->lw, 1);
    return t_new(cx, make(cx->b, OP_REDUCE_MAX, INS(x->v), .axis = axis + t_shift(x)), t, t_lead(x));
}

static TVal *any_or_all(OpCx *cx, TVal *x, const Ints *axes, bool all) {
    if (all) x = t_unary(cx, OP_NOT, x);
    for (int i = 0; x && i < axes->n; i++) x = any_along(cx, x, (int)axes->at[i]);
    return all ? t_unary(cx, OP_NOT, x) : x;
}

static OpResult op_min_max(OpCx *cx) {
    bool larger = cx->row->op == OP_MAX;
    const Val *a = &cx->arg[0], *b = &cx->arg[1];
    if (cx->given[1]) {
        if (cx->given[2]) {
            op_error(cx, cx->at, "%s has either two values or an axis", cx->op);
            return op_failed(cx);
        }
        if (all_numbers(cx, 2)) return op_value(smaller_or_larger(cx, a, b, larger));
        if (!is_tensor(a) && !is_number(a)) {
            op_error(cx, cx->arg_at[0], "%s: a tensor or number is expected, this is %s", cx->op,
                     val_text(cx->lw, a));
            return op_failed(cx);
        }
        DType t = common_dtype(cx, 2, (const Val *[]){a, b});
        if (t == BOOL) t = I32;
        TVal *right = t_operand(cx, b, t);
        return op_one(cx, t_binary(cx, (Op)cx->row->op, t_operand(cx, a, t), right));
    }
    if (a->kind == V_LIST && a->list->n) {
        Val best = a->list->at[0];
        for (int i = 0; i < a->list->n; i++) {
            if (!is_number(&a->list->at[i])) {
                op_error(cx, cx->arg_at[0], "%s: a list of numbers is expected, this one holds %s", cx->op,
                         val_text(cx->lw, &a->list->at[i]));
                return op_failed(cx);
            }
            best = smaller_or_larger(cx, &best, &a->list->at[i], larger);
        }
        return op_value(best);
    }
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 2, &axes, &keepdim)) return op_failed(cx);
    TVal *x = a->t;
    if (x->type.dtype == BOOL)
        return op_one(cx, finish(cx, any_or_all(cx, x, &axes, !larger), &axes, keepdim));
    for (int i = 0; x && i < axes.n; i++) x = extreme(cx, x, (int)axes.at[i], larger, NULL);
    return op_one(cx, finish(cx, x, &axes, keepdim));
}

static OpResult op_sum(OpCx *cx) {
    Val *v = &cx->arg[0];
    if (v->kind == V_LIST) {
        const Poly *sum = poly_int(cx->lw, 0);
        Num total = num_int(0);
        bool symbolic = false;
        for (int i = 0; i < v->list->n; i++) {
            Val *e = &v->list->at[i];
            if (!is_number(e)) {
                op_error(cx, cx->arg_at[0], "sum: a list of numbers is expected, this one holds %s",
                         val_text(cx->lw, e));
                return op_failed(cx);
            }
            if (e->kind == V_POLY)
                symbolic = true, sum = poly_add(cx->lw, sum, e->poly);
            else
                total = num_add(total, e->num);
        }
        if (!symbolic) return op_number(cx, total);
        return op_value(poly_val(cx, poly_add(cx->lw, sum, poly_num(cx->lw, total))));
    }
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    TVal *x = v->t->type.dtype == BOOL ? t_cast(cx, v->t, I32) : v->t;
    return op_one(cx, t_sum(cx, x, &axes, keepdim));
}

static OpResult op_mean(OpCx *cx) {
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    return op_one(cx, t_mean(cx, cx->arg[0].t, &axes, keepdim));
}

static OpResult op_var(OpCx *cx) {
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    TVal *x = float_arg(cx), *d = t_binary(cx, OP_SUB, x, t_mean(cx, x, &axes, true));
    return op_one(cx, t_mean(cx, t_binary(cx, OP_MUL, d, d), &axes, keepdim));
}

static OpResult op_any_all(OpCx *cx) {
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    TVal *x = cx->arg[0].t;
    if (x->type.dtype != BOOL) {
        op_error(cx, cx->arg_at[0], "%s: bools are expected, this is %s", cx->op,
                 ltype_text(cx->lw, &x->type));
        op_note_made(cx, &cx->arg[0], x);
        return op_failed(cx);
    }
    return op_one(cx, finish(cx, any_or_all(cx, x, &axes, cx->row->op == OP_AND), &axes, keepdim));
}

static OpResult op_prod(OpCx *cx) {
    Ints axes;
    bool keepdim;
    int64_t n;
    enum { LONGEST = 64 };
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    TVal *x = signed_arg(cx);
    for (int i = 0; x && i < axes.n; i++) {
        int axis = (int)axes.at[i];
        if (!poly_known(cx, x->type.dim[axis], &n) || n < 1 || n > LONGEST) {
            op_error(cx, cx->at, "prod multiplies 1 to %d factors, axis %d of %s has %s", LONGEST, axis,
                     ltype_text(cx->lw, &x->type), poly_text(cx->lw, x->type.dim[axis]));
            return op_failed(cx);
        }
        TVal *y = t_slice(cx, x, axis, 0, 1);
        for (int64_t k = 1; k < n; k++) y = t_binary(cx, OP_MUL, y, t_slice(cx, x, axis, k, k + 1));
        x = y;
    }
    return op_one(cx, finish(cx, x, &axes, keepdim));
}

static OpResult op_arg_extreme(OpCx *cx) {
    int axis;
    TVal *x = cx->arg[0].t, *index = NULL;
    if (!arg_axis(cx, 1, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    if (!extreme(cx, x, axis, cx->row->op == OP_MAX, &index)) return op_failed(cx);
    return op_one(cx, finish(cx, index, &(Ints){1, {axis}}, cx->arg[2].b));
}

static TVal *logsumexp(OpCx *cx, TVal *x, int axis) {
    TVal *last = t_swap_last(cx, x, axis);
    if (!last) return NULL;
    LType t = last->type;
    t.dim[t.ndim - 1] = poly_int(cx->lw, 1);
    return t_swap_last(cx, t_new(cx, build_unary(cx->b, OP_LOGSUMEXP, last->v), t, t_lead(last)), axis);
}

static OpResult op_logsumexp(OpCx *cx) {
    Ints axes;
    bool keepdim;
    if (!reduced_axes(cx, 1, &axes, &keepdim)) return op_failed(cx);
    TVal *x = float_arg(cx);
    for (int i = 0; x && i < axes.n; i++) x = logsumexp(cx, x, (int)axes.at[i]);
    return op_one(cx, finish(cx, x, &axes, keepdim));
}

static OpResult op_softmax(OpCx *cx) {
    int axis;
    TVal *x = float_arg(cx);
    if (!x || !arg_axis(cx, 1, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    return op_one(cx, t_swap_last(cx, t_unary(cx, OP_SOFTMAX, t_swap_last(cx, x, axis)), axis));
}

static OpResult op_log_softmax(OpCx *cx) {
    int axis;
    TVal *x = float_arg(cx);
    if (!x || !arg_axis(cx, 1, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    return op_one(cx, t_binary(cx, OP_SUB, x, logsumexp(cx, x, axis)));
}

static OpResult op_cumsum(OpCx *cx) {
    int axis;
    TVal *x = signed_arg(cx);
    if (!x || !arg_axis(cx, 1, &x->type, &axis) || !rows_axis_free(cx, x, axis, cx->at)) return op_failed(cx);
    return op_one(cx, t_like(cx, make(cx->b, OP_CUMSUM, INS(x->v), .axis = axis + t_shift(x)), x));
}

static OpResult op_len(OpCx *cx) {
    Val *v = &cx->arg[0];
    if (v->kind == V_LIST) return op_number(cx, num_int(v->list->n));
    if (v->kind == V_STR) return op_number(cx, num_int((int64_t)strlen(v->str)));
    op_error(cx, cx->arg_at[0], "len counts a list, this is %s", val_text(cx->lw, v));
    if (v->kind == V_TENSOR) diag_help(cx->lw->diag, "size(x, 0) is the size of an axis");
    return op_failed(cx);
}

// ---- the table ------------------------------------------------------------------------------------------

#define VALUE                                                                                                \
    { "x", P_VALUE }
#define TENSOR                                                                                               \
    { "x", P_TENSOR }
#define REDUCED                                                                                              \
    {"axis", P_AXES, "none"}, { "keepdim", P_BOOL, "false" }

// clang-format off
static const OpRow rows[] = {
    {"exp",       op_unary,    R_BOTH, {VALUE}, OP_EXP, exp},
    {"log",       op_unary,    R_BOTH, {VALUE}, OP_LOG, log},
    {"log1p",     op_unary,    R_BOTH, {VALUE}, OP_LOG1P, log1p},
    {"sqrt",      op_unary,    R_BOTH, {VALUE}, OP_SQRT, sqrt},
    {"rsqrt",     op_unary,    R_BOTH, {VALUE}, OP_RSQRT, fold_rsqrt},
    {"sin",       op_unary,    R_BOTH, {VALUE}, OP_SIN, sin},
    {"cos",       op_unary,    R_BOTH, {VALUE}, OP_COS, cos},
    {"tanh",      op_unary,    R_BOTH, {VALUE}, OP_TANH, tanh},
    {"erf",       op_unary,    R_BOTH, {VALUE}, OP_ERF, erf},
    {"sigmoid",   op_unary,    R_BOTH, {VALUE}, OP_SIGMOID, fold_sigmoid},
    {"relu",      op_relu,     R_BOTH, {VALUE}, 0, fold_relu},
    {"silu",      op_silu,     R_BOTH, {VALUE}, 0, fold_silu},
    {"softplus",  op_softplus, R_BOTH, {VALUE}, 0, fold_softplus},
    {"gelu",      op_gelu,     R_BOTH, {TENSOR, {"form", P_WORD, "erf", "erf|tanh|quick"}}},
    {"abs",       op_abs,      R_BOTH, {VALUE}},
    {"sign",      op_sign,     R_BOTH, {VALUE}},
    {"floor",     op_floor,    R_BOTH, {VALUE}},
    {"ceil",      op_ceil,     R_BOTH, {VALUE}},
    {"round",     op_round,    R_BOTH, {VALUE}},
    {"is_finite", op_is_finite, R_BOTH, {VALUE}},
    {"f32",       op_cast_to,  R_BOTH, {VALUE}, F32},
    {"bf16",      op_cast_to,  R_BOTH, {VALUE}, BF16},
    {"f16",       op_cast_to,  R_BOTH, {VALUE}, F16},
    {"i32",       op_cast_to,  R_BOTH, {VALUE}, I32},
    {"cast",      op_cast,     R_BOTH, {VALUE, {"like", P_TENSOR}}},
    {"where",     op_where,    R_BOTH, {{"c", P_VALUE}, {"a", P_VALUE}, {"b", P_VALUE}}},
    {"clamp",     op_clamp,    R_BOTH, {VALUE, {"lo", P_VALUE}, {"hi", P_VALUE}}},
    {"min",       op_min_max,  R_BOTH, {{"x", P_ANY}, {"b", P_VALUE, "none"}, REDUCED}, OP_MIN},
    {"max",       op_min_max,  R_BOTH, {{"x", P_ANY}, {"b", P_VALUE, "none"}, REDUCED}, OP_MAX},
    {"sum",       op_sum,      R_INSIDE, {{"x", P_ANY}, REDUCED}},
    {"mean",      op_mean,     R_INSIDE, {TENSOR, REDUCED}},
    {"var",       op_var,      R_INSIDE, {TENSOR, REDUCED}},
    {"prod",      op_prod,     R_INSIDE, {TENSOR, REDUCED}},
    {"any",       op_any_all,  R_INSIDE, {TENSOR, REDUCED}, OP_OR},
    {"all",       op_any_all,  R_INSIDE, {TENSOR, REDUCED}, OP_AND},
    {"logsumexp", op_logsumexp, R_INSIDE, {TENSOR, REDUCED}},
    {"argmax",    op_arg_extreme, R_INSIDE, {TENSOR, {"axis", P_AXIS}, {"keepdim", P_BOOL, "false"}}, OP_MAX},
    {"argmin",    op_arg_extreme, R_INSIDE, {TENSOR, {"axis", P_AXIS}, {"keepdim", P_BOOL, "false"}}, OP_MIN},
    {"softmax",   op_softmax,  R_INSIDE, {TENSOR, {"axis", P_AXIS, "-1"}}},
    {"log_softmax", op_log_softmax, R_INSIDE, {TENSOR, {"axis", P_AXIS, "-1"}}},
    {"cumsum",    op_cumsum,   R_INSIDE, {TENSOR, {"axis", P_AXIS}}},
    {"len",       op_len,      R_BOTH, {{"x", P_ANY}}},
};
// clang-format on

const OpTable math_ops = {rows, sizeof rows / sizeof *rows};
