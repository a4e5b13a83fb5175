// Operations of the language: how a call finds its row, how its arguments find their parameters; operators
// and indexing.
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

// ---- messages -------------------------------------------------------------------------------------------

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
    if (v->at.file == cx->at.file && v->at.begin >= cx->at.begin && v->at.end <= cx->at.end)
        return; // shown anyway
    diag_note(cx->lw->diag, v->at, "%s is %s", t->what ? t->what : "it", ltype_text(cx->lw, &t->type));
}

// ---- results --------------------------------------------------------------------------------------------

OpResult op_failed(OpCx *cx) { return (OpResult){1, {val_error(cx->at)}}; }
OpResult op_value(Val v) { return (OpResult){1, {v}}; }
Val tensor_val(OpCx *cx, TVal *t) {
    return t ? (Val){.kind = V_TENSOR, .at = cx->at, .t = t} : val_error(cx->at);
}
OpResult op_one(OpCx *cx, TVal *t) { return op_value(tensor_val(cx, t)); }
OpResult op_number(OpCx *cx, Num n) { return op_value(val_num(cx->at, n)); }

OpResult op_two(OpCx *cx, TVal *a, TVal *b) {
    if (!a || !b) return op_failed(cx);
    return (OpResult){2, {tensor_val(cx, a), tensor_val(cx, b)}};
}

// ---- compile-time values --------------------------------------------------------------------------------

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
        op_error(cx, cx->arg_at[param], "%s: '%s' is %s, which %s", cx->op, param_name(cx, param),
                 poly_text(cx->lw, v->poly),
                 cx->lw->inference ? "is not known before generation runs"
                                   : "is not a whole number known while compiling");
    else
        op_error(cx, cx->arg_at[param], "%s: a whole number is expected for '%s', this is %s", cx->op,
                 param_name(cx, param), val_text(cx->lw, v));
    return false;
}

bool arg_num(OpCx *cx, int param, double *out) {
    Val *v = &cx->arg[param];
    Num n;
    if (v->kind == V_NUM) {
        *out = num_value(v->num);
        return true;
    }
    if (v->kind == V_POLY && poly_value(cx->lw, v->poly, &n)) {
        *out = num_value(n);
        return true;
    }
    op_error(cx, cx->arg_at[param], "%s: '%s' must be known while compiling, this is %s", cx->op,
             param_name(cx, param), val_text(cx->lw, v));
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
        op_error(cx, cx->arg_at[param], "%s: a shape has at most %d axes, this one has %d", cx->op, MAX_DIM,
                 list->n);
        return false;
    }
    for (int i = 0; i < list->n; i++) {
        Val *v = &list->at[i];
        bool open = v->kind == V_NONE || (v->kind == V_STR && !strcmp(v->str, "_"));
        if (v->kind == V_ERROR) return false;
        if (!open && !is_number(v)) {
            op_error(cx, cx->arg_at[param], "%s: a shape is a list of whole numbers, this one holds %s",
                     cx->op, val_text(cx->lw, v));
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
            op_error(cx, cx->arg_at[param],
                     "%s: 'axis' is a whole number, a list of them or \"all\", not \"%s\"", cx->op, v->str);
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

// ---- operators ------------------------------------------------------------------------------------------

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
    if (a->kind != V_TENSOR) { // a ** x = exp(x * log a)
        Num n = {0};
        if (a->kind == V_NUM)
            n = a->num;
        else if (a->kind != V_POLY || !poly_value(cx->lw, a->poly, &n))
            return op_error(cx, cx->at, "%s: the base must be a number known while compiling", cx->op);
        if (num_value(n) <= 0)
            return op_error(cx, cx->at, "%s: the base %s is not positive", cx->op,
                            num_text(cx->lw->arena, n));
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
    if (b->kind == V_NUM)
        n = b->num;
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

typedef struct {
    const char *name;
    int op;
    bool swap, negate;
} Compare;
static const Compare compares[] = {{"==", OP_EQ, false, false}, {"!=", OP_EQ, false, true},
                                   {"<", OP_LT, false, false},  {"<=", OP_LE, false, false},
                                   {">", OP_LT, true, false},   {">=", OP_LE, true, false}};
typedef struct {
    const char *name;
    int op;
} Arithmetic;
static const Arithmetic arithmetics[] = {
    {"+", OP_ADD}, {"-", OP_SUB}, {"*", OP_MUL}, {"/", OP_DIV}, {"%", OP_MOD}};

static TVal *compare(OpCx *cx, const Compare *c, const Val *a, const Val *b) {
    if (c->swap) {
        const Val *t = a;
        a = b;
        b = t;
    }
    if (c->op != OP_EQ && a->kind == V_TENSOR && a->t->keeps_all && is_number(b))
        return full_like(cx, a->t, 1, BOOL);
    DType t = common_dtype(cx, 2, (const Val *[]){a, b});
    if (t == BOOL && c->op != OP_EQ) t = I32;
    TVal *right = t_operand(cx, b, t), *y = t_binary(cx, (Op)c->op, t_operand(cx, a, t), right);
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
    TVal *right = t_operand(cx, b, BOOL);
    return t_binary(cx, op, t_operand(cx, a, BOOL), right);
}

TVal *t_transpose(OpCx *cx, TVal *x) {
    if (!x) return NULL;
    if (x->type.ndim < 2)
        return op_error(cx, cx->at, ".T swaps the last two axes, %s has %s", ltype_text(cx->lw, &x->type),
                        x->type.ndim ? "one" : "none");
    if (is_grouped(x))
        return op_error(cx, cx->at, ".T: rows grouped by expert, %s, keep their axes",
                        ltype_text(cx->lw, &x->type));
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
            return tensor_val(cx, op_error(cx, cx->at, "'not' inverts a bool, this is %s",
                                           ltype_text(cx->lw, &a->t->type)));
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
        if (arithmetics[i].op == OP_DIV) t = float_dtype(t); // i32 / i32 is f32
        TVal *right = t_operand(cx, b, t);
        return tensor_val(cx, t_binary(cx, (Op)arithmetics[i].op, t_operand(cx, a, t), right));
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
    const char *shown = !strcmp(op, "T")     ? ".T"
                        : !strcmp(op, "neg") ? "'-'"
                                             : arena_printf(lw->arena, "'%s'", op);
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

// ---- indexing -------------------------------------------------------------------------------------------

// An end of a range as a number from 0 to n; open ends are `open`.
static bool bound_of(OpCx *cx, const Index *ix, const Val *v, int64_t open, const LType *t, int axis,
                     int64_t n, int64_t *out) {
    if (v->kind == V_NONE) {
        *out = open;
        return true;
    }
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
        op_error(cx, ix->at, "index %s is outside axis %d of %s", val_text(cx->lw, v), axis,
                 ltype_text(cx->lw, t));
        return false;
    }
    return true;
}

static TVal *take_index(OpCx *cx, TVal *x, const Index *index, int n_index) {
    int n_axes = 0, rest = -1;
    for (int i = 0; i < n_index; i++) {
        if (index[i].kind != IX_REST)
            n_axes++;
        else if (rest >= 0)
            return op_error(cx, index[i].at, "'...' stands at most once in an index");
        else
            rest = i;
    }
    const LType whole = x->type;
    if (n_axes > whole.ndim)
        return op_error(cx, cx->at, "%d indices for %s, which has %d axes", n_axes,
                        ltype_text(cx->lw, &whole), whole.ndim);
    if (x->type.rows && !x->type.expert_rows)
        return op_error(cx, cx->at, "rows grouped by expert, %s, cannot be indexed",
                        ltype_text(cx->lw, &whole));
    int dropped[MAX_DIM], n_dropped = 0, axis = 0;
    for (int i = 0; i < n_index; i++) {
        const Index *ix = &index[i];
        if (ix->kind == IX_REST) {
            axis += whole.ndim - n_axes;
            continue;
        }
        if (ix->kind != IX_ALL) {
            int64_t n, begin, end;
            if (!rows_axis_free(cx, x, axis, ix->at)) return NULL;
            if (!poly_known(cx, whole.dim[axis], &n))
                return op_error(cx, ix->at, "axis %d of %s has no fixed size and cannot be cut", axis,
                                ltype_text(cx->lw, &whole));
            if (!bound_of(cx, ix, &ix->from, 0, &whole, axis, n, &begin)) return NULL;
            if (ix->kind == IX_AT) {
                end = begin + 1;
                dropped[n_dropped++] = axis;
            } else if (!bound_of(cx, ix, &ix->to, n, &whole, axis, n, &end)) {
                return NULL;
            } else if (end <= begin) {
                return op_error(cx, ix->at, "the range %lld..%lld is empty", (long long)begin,
                                (long long)end);
            }
            if (!(x = t_slice(cx, x, axis, begin, end))) return NULL;
        }
        axis++;
    }
    LType kept = {0};
    for (int i = 0, k = 0; i < whole.ndim; i++) {
        if (k < n_dropped && dropped[k] == i)
            k++;
        else
            kept.dim[kept.ndim++] = x->type.dim[i];
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

// ---- arguments ------------------------------------------------------------------------------------------

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
    [P_ANY] = "a value",   [P_TENSOR] = "a tensor",    [P_VALUE] = "a tensor or number",
    [P_NUM] = "a number",  [P_INT] = "a whole number", [P_BOOL] = "true or false",
    [P_WORD] = "a word",   [P_AXIS] = "an axis",       [P_AXES] = "an axis, a list of them or \"all\"",
    [P_SHAPE] = "a shape", [P_LIST] = "a list",        [P_TENSORS] = "a list of tensors",
    [P_ROUTE] = "a route", [P_STR] = "a string"};

static bool fits(OpCx *cx, ParamKind kind, const Val *v) {
    int64_t n;
    switch (kind) {
    case P_ANY:
        return true;
    case P_TENSOR:
        return v->kind == V_TENSOR;
    case P_VALUE:
        return v->kind == V_TENSOR || v->kind == V_BOOL || is_number(v);
    case P_NUM:
        return is_number(v);
    case P_INT:
    case P_AXIS:
        return v->kind == V_POLY || val_int(cx, v, &n);
    case P_BOOL:
        return v->kind == V_BOOL;
    case P_WORD:
    case P_STR:
        return v->kind == V_STR;
    case P_AXES:
        return v->kind == V_STR || v->kind == V_LIST || val_int(cx, v, &n);
    case P_SHAPE:
    case P_LIST:
        return v->kind == V_LIST;
    case P_TENSORS:
        return v->kind == V_LIST && all_tensors(v->list);
    case P_ROUTE:
        return v->kind == V_ROUTE;
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
        op_error(cx, at, "%s needs tokens, these are rows grouped by expert, %s", cx->op,
                 ltype_text(cx->lw, &t->type));
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
            while (next < n && cx->given[next]) next++; // fills what is left, in order
            if (next == n) {
                op_error(cx, a->at, "%s takes at most %d argument%s, this is one more", row->name, n,
                         n == 1 ? "" : "s");
                return false;
            }
            p = next++;
        } else {
            for (int k = 0; k < n; k++)
                if (!strcmp(names[k], a->name)) p = k;
            if (p < 0) {
                if (a->v.kind == V_NONE) continue; // an argument that is none may lack its parameter
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
        if (v->kind == V_NONE && param->def && !strcmp(param->def, "none")) {
            cx->given[p] = false;
            continue;
        }
        if (!fits(cx, param->kind, v)) {
            op_error(cx, cx->arg_at[p], "%s: %s is expected for '%s', this is %s", row->name,
                     kind_text[param->kind], param->name, val_text(cx->lw, v));
            return false;
        }
        if (param->kind == P_WORD && !check_word(cx, param, v, cx->arg_at[p])) return false;
        if (!check_rows(cx, v, cx->arg_at[p])) return false;
    }
    return true;
}

const char *const *lower_op_names(int *n) {
    enum { MOST = 160 };
    static _Thread_local const char *names[MOST]; // the same constants each time
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
