// Expressions.  Compile-time values are computed here; as soon as a tensor takes part, lower_ops.c does it.
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "frontend/interp.h"

// ---- making values --------------------------------------------------------------------------------------

Val val_error(Span at) { return (Val){.kind = V_ERROR, .at = at}; }
Val val_none(Span at) { return (Val){.kind = V_NONE, .at = at}; }
Val val_num(Span at, Num n) { return (Val){.kind = V_NUM, .at = at, .num = n}; }
Val val_of_bool(Span at, bool b) { return (Val){.kind = V_BOOL, .at = at, .b = b}; }
Val val_of_str(Span at, const char *s) { return (Val){.kind = V_STR, .at = at, .str = intern(s)}; }

Val val_list(Lower *lw, Span at, int n, const Val *items) {
    ListVal *l = arena_new(lw->arena, ListVal);
    l->n = n;
    l->at = arena_array(lw->arena, Val, n > 0 ? n : 1);
    if (n > 0 && items) memcpy(l->at, items, sizeof(Val) * (size_t)n);
    return (Val){.kind = V_LIST, .at = at, .list = l};
}

Val val_tensor(Lower *lw, Span at, Value *v, LType type, bool leafy) {
    TVal *t = arena_new(lw->arena, TVal);
    *t = (TVal){.v = v, .type = type, .leafy = leafy};
    return (Val){.kind = V_TENSOR, .at = at, .t = t};
}

Val value_of_poly(Lower *lw, Span at, const Poly *p) {
    (void)lw;
    Num n;
    if (poly_is_num(p, &n)) return val_num(at, n);
    return (Val){.kind = V_POLY, .at = at, .poly = p};
}

bool poly_of_value(Lower *lw, const Val *v, const Poly **out) {
    if (v->kind == V_NUM) *out = poly_num(lw, v->num);
    else if (v->kind == V_POLY) *out = v->poly;
    else return false;
    return true;
}

bool has_error(const Val *v) {
    if (v->kind == V_ERROR) return true;
    if (v->kind == V_LIST)
        for (int i = 0; i < v->list->n; i++)
            if (has_error(&v->list->at[i])) return true;
    return false;
}

// ---- texts ----------------------------------------------------------------------------------------------

const char *ltype_text(Lower *lw, const LType *t) {
    Str s = {.arena = lw->arena};
    bool grouped = t->rows && !t->expert_rows;
    str_printf(&s, "%s[", dtype_name(t->dtype));
    if (grouped) str_printf(&s, "%lld|*", (long long)t->rows->E);
    for (int i = 0; i < t->ndim; i++) {
        bool row_axis = t->expert_rows && i == 0;
        str_printf(&s, "%s%s", i || grouped ? ", " : "", row_axis ? "*" : poly_text(lw, t->dim[i]));
    }
    str_add(&s, "]");
    return s.text;
}

static const char *fn_name(const FnVal *f) { return f->fn ? f->fn->name : f->op; }

const char *val_text(Lower *lw, const Val *v) {
    Arena *a = lw->arena;
    switch (v->kind) {
    case V_NONE: return "none";
    case V_NUM: return arena_printf(a, "the number %s", num_text(a, v->num));
    case V_POLY: return arena_printf(a, "the number %s", poly_text(lw, v->poly));
    case V_BOOL: return v->b ? "true" : "false";
    case V_STR: return arena_printf(a, "\"%s\"", v->str);
    case V_LIST: return arena_printf(a, "a list of %d", v->list->n);
    case V_FN: return arena_printf(a, "a function (%s)", fn_name(v->fn));
    case V_QUANTITY:
        return arena_printf(a, "%s %ss", num_text(a, v->quantity.num), v->quantity.unit);
    case V_TENSOR:
        return arena_printf(
            a, "%s %s", v->t->type.rows && !v->t->type.expert_rows ? "rows grouped by expert" : "a tensor",
            ltype_text(lw, &v->t->type));
    case V_ROUTE: return arena_printf(a, "a route to %lld experts", (long long)v->route->E);
    case V_ERROR: break;
    }
    return "an error";
}

// ---- messages -------------------------------------------------------------------------------------------

void error_at(Lower *lw, Span at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    Str s = {.arena = lw->arena};
    str_vprintf(&s, fmt, ap);
    va_end(ap);
    diag_error(lw->diag, at, "%s", s.text);
}

static Val fail(Lower *lw, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static Val fail(Lower *lw, Span at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    Str s = {.arena = lw->arena};
    str_vprintf(&s, fmt, ap);
    va_end(ap);
    diag_error(lw->diag, at, "%s", s.text);
    lower_notes(lw);
    return val_error(at);
}

void lower_notes(Lower *lw) {
    enum { MOST = 4 };
    int n = 0;
    for (const Call *c = lw->call; c && c->caller && n < MOST; c = c->caller, n++) {
        if (c->per_expert)
            diag_note(lw->diag, c->at, "'%s' runs once per expert because of this", c->fn->name);
        else diag_note(lw->diag, c->at, "in '%s', called here", c->fn->name);
    }
}

static bool is_given(const FnVal *f, int param) {
    for (int i = 0; i < f->given.n; i++)
        if (f->given.at[i].param == param) return true;
    return false;
}

Val fn_message(Lower *lw, const Val *v, const char *needs) {
    const FnVal *f = v->fn;
    if (!f->fn) return fail(lw, v->at, "this is a function (%s); %s", f->op, needs);
    for (int i = 0; i < f->fn->params.n; i++) {
        const Param *p = &f->fn->params.at[i];
        if (p->fallback || is_given(f, i)) continue;
        error_at(lw, v->at, "this is a function: %s still lacks '%s'; %s", f->fn->name, p->name, needs);
        diag_note(lw->diag, p->at, "declared here");
        lower_notes(lw);
        return val_error(v->at);
    }
    return fail(lw, v->at, "this is a function (%s), not called yet; %s", f->fn->name, needs);
}

// ---- names ----------------------------------------------------------------------------------------------

const Val *find_var(const Call *c, const char *name) {
    if (!c) return NULL;
    for (int i = 0; i < c->vars.n; i++)
        if (c->vars.at[i].name == name) return &c->vars.at[i].v;
    return NULL;
}

void set_var(Lower *lw, Call *c, const char *name, Val v) {
    if (strcmp(name, "_") == 0) return;
    if (v.kind == V_TENSOR && !v.t->what) {
        v.t->what = name;
        if (v.t->v && !v.t->v->name) v.t->v->name = name;
    }
    for (int i = 0; i < c->vars.n; i++)
        if (c->vars.at[i].name == name) {
            c->vars.at[i].v = v;
            return;
        }
    Bind b = {name, v};
    vec_push(lw->arena, &c->vars, b);
}

static Val number_input(Lower *lw, Span at, const char *name, Value **made) {
    if (!*made)
        *made = make(&lw->b, OP_INPUT, INS(NULL), .name = intern(name), .dtype = F32, .dims = {.n = 0});
    return val_tensor(lw, at, *made, (LType){.dtype = F32}, false);
}

// Names every program knows.
static bool find_constant(Lower *lw, Span at, const char *name, Val *out) {
    Interp *in = interp_of(lw);
    if (strcmp(name, "training") == 0) *out = val_of_bool(at, lw->training);
    else if (strcmp(name, "random_eval") == 0) *out = val_of_bool(at, lw->random_eval);
    else if (strcmp(name, "pi") == 0) *out = val_num(at, num_double(acos(-1)));
    else if (strcmp(name, "_") == 0) *out = val_of_str(at, "_");
    else if (strcmp(name, "step") == 0 && lw->g) *out = number_input(lw, at, "step", &in->step);
    else if (strcmp(name, "tokens_seen") == 0 && lw->g)
        *out = number_input(lw, at, "tokens_seen", &in->tokens_seen);
    else return false;
    return true;
}

static const Module *module_of(Lower *lw, const Call *c) {
    return c && c->fn ? c->fn->module : program_main(interp_of(lw)->program);
}

// Is the name assigned somewhere in this function, so that it only lacks a value on the way taken?
static bool assigns(const Stmts *body, const char *name) {
    for (int i = 0; i < body->n; i++) {
        const Stmt *t = body->at[i];
        for (int k = 0; k < t->left.n; k++)
            if (t->left.at[k]->kind == X_NAME && t->left.at[k]->name == name) return true;
        for (int k = 0; k < t->decls.n; k++)
            if (t->decls.at[k].name == name) return true;
        if ((t->kind == S_FOR || t->kind == S_LAYER) && t->name == name) return true;
        if (assigns(&t->body, name) || assigns(&t->orelse, name)) return true;
    }
    return false;
}

static bool in_a_shape(const Fn *f, const char *name) {
    for (int i = 0; i < f->params.n; i++)
        for (int k = 0; k < f->params.at[i].type.shape.n; k++) {
            const Expr *e = f->params.at[i].type.shape.at[k];
            if (e->kind == X_NAME && e->name == name) return true;
        }
    return false;
}

static Val eval_name(Lower *lw, Call *c, const Expr *e) {
    const Val *v = find_var(c, e->name);
    if (v) {
        Val copy = *v;
        if (copy.kind != V_FN && copy.kind != V_TENSOR && copy.kind != V_ROUTE) copy.at = e->at;
        return copy;
    }
    Val found = lookup_fn(lw, module_of(lw, c), e->name, e->at);
    if (found.kind != V_NONE) return found;
    if (find_constant(lw, e->at, e->name, &found)) return found;
    if (lower_is_op(e->name) || is_init(e->name)) {
        FnVal *f = arena_new(lw->arena, FnVal);
        *f = (FnVal){.at = e->at, .op = e->name, .init = is_init(e->name)};
        return (Val){.kind = V_FN, .at = e->at, .fn = f};
    }
    if (c && c->fn && in_a_shape(c->fn, e->name))
        return fail(lw, e->at, "dimension '%s' is not known here: the only tensors that have it are none",
                    e->name);
    if (c && c->fn && assigns(&c->fn->body, e->name))
        return fail(lw, e->at, "'%s' has no value here: what assigns it was not run before this", e->name);
    const char *near = name_near(lw, c, module_of(lw, c), e->name);
    if (near) error_at(lw, e->at, "there is no '%s'; did you mean '%s'?", e->name, near);
    else error_at(lw, e->at, "there is no '%s'", e->name);
    return val_error(e->at);
}

// ---- operators ------------------------------------------------------------------------------------------

bool values_equal(Lower *lw, const Val *a, const Val *b) {
    const Poly *x, *y;
    if (poly_of_value(lw, a, &x) && poly_of_value(lw, b, &y)) return x == y;
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case V_NONE: return true;
    case V_BOOL: return a->b == b->b;
    case V_STR: return a->str == b->str;
    case V_QUANTITY:
        return a->quantity.unit == b->quantity.unit && num_cmp(a->quantity.num, b->quantity.num) == 0;
    case V_FN: return a->fn == b->fn;
    case V_LIST:
        if (a->list->n != b->list->n) return false;
        for (int i = 0; i < a->list->n; i++)
            if (!values_equal(lw, &a->list->at[i], &b->list->at[i])) return false;
        return true;
    default: return false;
    }
}

static Val tensor_op(Lower *lw, Span at, const char *op, const Val *a, const Val *b) {
    lw->b.at = at;
    return lower_operator(lw, at, op, a, b);
}

static bool is_compare(const char *op) { return strchr("=!<>", op[0]) != NULL; }

// Decides a comparison of symbolic ints: for every value where it can, else, in an assert, by the plan's
// numbers.
static Val compare_polys(Lower *lw, Span at, const char *op, const Poly *a, const Poly *b) {
    int always = poly_compare(lw, op, a, b);
    if (always >= 0) return val_of_bool(at, always);
    Interp *in = interp_of(lw);
    if (in->may_wait) {
        Num x, y;
        if (poly_value(lw, a, &x) && poly_value(lw, b, &y))
            return val_of_bool(at, poly_compare(lw, op, poly_num(lw, x), poly_num(lw, y)) == 1);
        in->waited = true;
        return val_of_bool(at, true);
    }
    error_at(lw, at, "'%s' depends on the size of the batch here: %s against %s", op, poly_text(lw, a),
             poly_text(lw, b));
    lower_notes(lw);
    return val_error(at);
}

static Val fold_numbers(Lower *lw, Span at, const char *op, const Val *a, const Val *b) {
    const Poly *x, *y;
    if (!poly_of_value(lw, a, &x) || !poly_of_value(lw, b, &y)) return val_error(at);
    if (is_compare(op)) {
        if (a->kind == V_NUM && b->kind == V_NUM) {
            int c = num_cmp(a->num, b->num);
            bool equal = c == 0, less = c == -1, more = c == 1;
            bool result = op[0] == '=' ? equal : op[0] == '!' ? !equal : op[0] == '<' ? less : more;
            return val_of_bool(at, result || (op[0] != '=' && op[0] != '!' && op[1] == '=' && equal));
        }
        return compare_polys(lw, at, op, x, y);
    }
    bool both = a->kind == V_NUM && b->kind == V_NUM;
    if (strcmp(op, "**") == 0) {
        int64_t n;
        if (both) return val_num(at, num_pow(a->num, b->num));
        if (b->kind == V_NUM && num_is_int(b->num, &n) && n >= 0 && n <= 8) {
            const Poly *p = poly_int(lw, 1);
            while (n--) p = poly_mul(lw, p, x);
            return value_of_poly(lw, at, p);
        }
        Num u, v;
        if (poly_value(lw, x, &u) && poly_value(lw, y, &v)) return val_num(at, num_pow(u, v));
        return fail(lw, at, "'**': a power of %s is not known while compiling", poly_text(lw, x));
    }
    if (op[0] == '+')
        return both ? val_num(at, num_add(a->num, b->num)) : value_of_poly(lw, at, poly_add(lw, x, y));
    if (op[0] == '-')
        return both ? val_num(at, num_sub(a->num, b->num)) : value_of_poly(lw, at, poly_sub(lw, x, y));
    if (op[0] == '*')
        return both ? val_num(at, num_mul(a->num, b->num)) : value_of_poly(lw, at, poly_mul(lw, x, y));
    bool remainder = op[0] == '%';
    Num divisor;
    if (poly_is_num(y, &divisor) && num_value(divisor) == 0)
        return fail(lw, at, "'%s': division by zero", op);
    if (both) return val_num(at, remainder ? num_mod(a->num, b->num) : num_div(a->num, b->num));
    const Poly *q = poly_div(lw, x, y);
    if (!q) {
        Num u, v;
        if (poly_value(lw, x, &u) && poly_value(lw, y, &v))
            return val_num(at, remainder ? num_mod(u, v) : num_div(u, v));
        return fail(lw, at, "'%s': %s does not divide %s for every size", op, poly_text(lw, y),
                    poly_text(lw, x));
    }
    if (!remainder) return value_of_poly(lw, at, q);
    return value_of_poly(lw, at, poly_sub(lw, x, poly_mul(lw, y, poly_opaque(lw, "floor", q, NULL))));
}

static Val fold_lists(Lower *lw, Span at, const char *op, const Val *a, const Val *b) {
    if (strcmp(op, "+") == 0 && a->kind == V_LIST && b->kind == V_LIST) {
        Val v = val_list(lw, at, a->list->n + b->list->n, NULL);
        if (a->list->n) memcpy(v.list->at, a->list->at, sizeof(Val) * (size_t)a->list->n);
        if (b->list->n) memcpy(v.list->at + a->list->n, b->list->at, sizeof(Val) * (size_t)b->list->n);
        return v;
    }
    if (b->kind == V_LIST && a->kind == V_NUM) {
        const Val *swap = a;
        a = b;
        b = swap;
    }
    int64_t n;
    if (strcmp(op, "*") == 0 && a->kind == V_LIST && b->kind == V_NUM && num_is_int(b->num, &n) && n >= 0 &&
        n < 1 << 20) {
        Val v = val_list(lw, at, a->list->n * (int)n, NULL);
        for (int i = 0; i < v.list->n; i++) v.list->at[i] = a->list->at[i % a->list->n];
        return v;
    }
    return fail(lw, at,
                "'%s': lists join with '+' another list and repeat with '*' a whole number, not with %s", op,
                val_text(lw, a->kind == V_LIST ? b : a));
}

static bool is_number(const Val *v) { return v->kind == V_NUM || v->kind == V_POLY; }

Val binary_values(Lower *lw, Span at, const char *op, const Val *a, const Val *b) {
    if (has_error(a) || has_error(b)) return val_error(at);
    if (a->kind == V_FN || b->kind == V_FN) {
        if (a->kind == V_NONE || b->kind == V_NONE || (a->kind == V_FN && b->kind == V_FN && is_compare(op)))
            return val_of_bool(at, (op[0] == '!') != values_equal(lw, a, b));
        return fn_message(lw, a->kind == V_FN ? a : b, arena_printf(lw->arena, "'%s' needs a tensor", op));
    }
    bool equality = strcmp(op, "==") == 0 || strcmp(op, "!=") == 0;
    if (equality && (a->kind == V_NONE || b->kind == V_NONE))
        return val_of_bool(at, (a->kind == b->kind) == (op[0] == '='));
    if (a->kind == V_TENSOR || b->kind == V_TENSOR) {
        const Val *other = a->kind == V_TENSOR ? b : a;
        if (other->kind == V_TENSOR || is_number(other) || other->kind == V_BOOL)
            return tensor_op(lw, at, op, a, b);
        return fail(lw, at, "'%s' needs a tensor or a number beside the tensor, this is %s", op,
                    val_text(lw, other));
    }
    if (is_number(a) && is_number(b)) return fold_numbers(lw, at, op, a, b);
    if (equality) return val_of_bool(at, values_equal(lw, a, b) == (op[0] == '='));
    if (a->kind == V_LIST || b->kind == V_LIST) return fold_lists(lw, at, op, a, b);
    if (a->kind == V_STR && b->kind == V_STR && strcmp(op, "+") == 0)
        return val_of_str(at, arena_printf(lw->arena, "%s%s", a->str, b->str));
    if (a->kind == V_QUANTITY && b->kind == V_NUM && (op[0] == '*' || op[0] == '/') && !op[1]) {
        Val v = *a;
        v.at = at;
        v.quantity.num = op[0] == '*' ? num_mul(a->quantity.num, b->num) : num_div(a->quantity.num, b->num);
        return v;
    }
    const Val *odd = is_number(a) || a->kind == V_BOOL ? b : a;
    return fail(lw, at, "'%s' does not take %s", op, val_text(lw, odd));
}

// `and`, `or`: the right side is looked at only where the left one leaves it open.
static Val eval_logic(Lower *lw, Call *c, const Expr *e) {
    bool is_and = strcmp(e->name, "and") == 0;
    Val a = eval(lw, c, e->a);
    if (a.kind == V_ERROR) return a;
    if (a.kind == V_BOOL && a.b != is_and) return val_of_bool(e->at, a.b);
    Val b = eval(lw, c, e->b);
    if (b.kind == V_ERROR) return b;
    if (a.kind == V_BOOL && (b.kind == V_BOOL || b.kind == V_TENSOR)) {
        b.at = e->at;
        return b;
    }
    if (b.kind == V_BOOL && a.kind == V_TENSOR)
        return b.b == is_and ? a : tensor_op(lw, e->at, e->name, &a, &b);
    if (a.kind == V_TENSOR && b.kind == V_TENSOR) return tensor_op(lw, e->at, e->name, &a, &b);
    const Val *odd = a.kind == V_BOOL || a.kind == V_TENSOR ? &b : &a;
    if (odd->kind == V_FN) return fn_message(lw, odd, arena_printf(lw->arena, "'%s' needs a bool", e->name));
    return fail(lw, odd->at, "'%s' needs bools, this is %s", e->name, val_text(lw, odd));
}

static Val eval_in(Lower *lw, Call *c, const Expr *e) {
    Val a = eval(lw, c, e->a), b = eval(lw, c, e->b);
    if (has_error(&a) || has_error(&b)) return val_error(e->at);
    if (b.kind != V_LIST)
        return fail(lw, b.at, "'in' needs a list on its right, this is %s", val_text(lw, &b));
    bool found = false;
    for (int i = 0; i < b.list->n; i++) found |= values_equal(lw, &a, &b.list->at[i]);
    return val_of_bool(e->at, found == (e->name[0] == 'i'));
}

static Val eval_binary(Lower *lw, Call *c, const Expr *e) {
    if (strcmp(e->name, "and") == 0 || strcmp(e->name, "or") == 0) return eval_logic(lw, c, e);
    if (strcmp(e->name, "in") == 0 || strcmp(e->name, "not in") == 0) return eval_in(lw, c, e);
    if (strcmp(e->name, "??") == 0) {
        Val a = eval(lw, c, e->a);
        return a.kind == V_NONE ? eval(lw, c, e->b) : a;
    }
    Val a = eval(lw, c, e->a), b = eval(lw, c, e->b);
    return binary_values(lw, e->at, e->name, &a, &b);
}

static Val eval_unary(Lower *lw, Call *c, const Expr *e) {
    Val a = eval(lw, c, e->a);
    const char *op = e->kind == X_NOT ? "not" : "neg";
    if (a.kind == V_ERROR) return a;
    if (a.kind == V_TENSOR) return tensor_op(lw, e->at, op, &a, NULL);
    if (e->kind == X_NOT && a.kind == V_BOOL) return val_of_bool(e->at, !a.b);
    if (e->kind == X_NEG && a.kind == V_NUM) return val_num(e->at, num_sub(num_int(0), a.num));
    if (e->kind == X_NEG && a.kind == V_POLY)
        return value_of_poly(lw, e->at, poly_sub(lw, poly_int(lw, 0), a.poly));
    if (a.kind == V_FN)
        return fn_message(lw, &a, e->kind == X_NOT ? "'not' needs a bool" : "'-' needs a tensor");
    return fail(lw, e->at, "'%s' does not take %s", e->kind == X_NOT ? "not" : "-", val_text(lw, &a));
}

bool eval_bool(Lower *lw, Call *c, const Expr *e, bool *out) {
    Val v = eval(lw, c, e);
    if (v.kind == V_ERROR) return false;
    if (v.kind == V_BOOL) {
        *out = v.b;
        return true;
    }
    if (v.kind == V_TENSOR) {
        error_at(lw, e->at, "'if' chooses while compiling, this value exists only while running");
        diag_help(lw->diag, "where(c, a, b) chooses element by element");
        lower_notes(lw);
    } else {
        fail(lw, e->at, "a bool is needed here, this is %s", val_text(lw, &v));
    }
    return false;
}

// ---- lists and indices ----------------------------------------------------------------------------------

static Val eval_list(Lower *lw, Call *c, const Expr *e) {
    VEC(Val) items = {0};
    for (int i = 0; i < e->items.n; i++) {
        const Expr *x = e->items.at[i];
        if (x->kind != X_REST) {
            Val v = eval(lw, c, x);
            vec_push(lw->arena, &items, v);
        } else if (!c || !c->has_rest) {
            return fail(lw, x->at, "'...' is not known here: no tensor parameter has it");
        } else {
            for (int k = 0; k < c->rest.ndim; k++) {
                Val v = value_of_poly(lw, x->at, c->rest.dim[k]);
                vec_push(lw->arena, &items, v);
            }
        }
    }
    return val_list(lw, e->at, items.n, items.at);
}

static Val eval_range(Lower *lw, Call *c, const Expr *e) {
    Val a = eval(lw, c, e->a), b = eval(lw, c, e->b);
    if (a.kind == V_ERROR || b.kind == V_ERROR) return val_error(e->at);
    int64_t from, to;
    const Val *odd = a.kind != V_NUM || !num_is_int(a.num, &from) ? &a
                     : b.kind != V_NUM || !num_is_int(b.num, &to) ? &b
                                                                  : NULL;
    if (odd)
        return fail(lw, odd->at, "a range goes from one whole number to another, this is %s",
                    val_text(lw, odd));
    if (to - from > 1 << 20) return fail(lw, e->at, "this range has more than %d numbers", 1 << 20);
    int n = to > from ? (int)(to - from) : 0;
    Val v = val_list(lw, e->at, n, NULL);
    for (int i = 0; i < n; i++) v.list->at[i] = val_num(e->at, num_int(from + i));
    return v;
}

static Val eval_each(Lower *lw, Call *c, const Expr *e) {
    Val over = eval(lw, c, e->b);
    if (has_error(&over)) return val_error(e->at);
    if (over.kind != V_LIST)
        return fail(lw, over.at, "'for' runs over a list or a range, this is %s", val_text(lw, &over));
    VEC(Val) items = {0};
    Call *scope = c;
    if (!scope) scope = call_new(lw, NULL, NULL, e->at);
    const Val *hidden = find_var(scope, e->name);
    Val saved = hidden ? *hidden : val_none(e->at);
    int n_vars = scope->vars.n;
    for (int i = 0; i < over.list->n; i++) {
        set_var(lw, scope, e->name, over.list->at[i]);
        bool keep = true;
        if (e->c && !eval_bool(lw, scope, e->c, &keep)) return val_error(e->at);
        if (!keep) continue;
        Val v = eval(lw, scope, e->a);
        vec_push(lw->arena, &items, v);
    }
    if (hidden) set_var(lw, scope, e->name, saved);
    else scope->vars.n = n_vars;
    return val_list(lw, e->at, items.n, items.at);
}

static Val index_list(Lower *lw, Call *c, const Expr *e, const Val *list) {
    if (e->items.n != 1) return fail(lw, e->at, "a list takes one index");
    const Expr *x = e->items.at[0];
    int64_t n = list->list->n, from = 0, to = n;
    bool range = x->kind == X_RANGE;
    const Expr *ends[2] = {range ? x->a : x, range ? x->b : NULL};
    for (int i = 0; i < 2; i++) {
        if (!ends[i]) continue;
        Val v = eval(lw, c, ends[i]);
        int64_t k;
        if (v.kind == V_ERROR) return v;
        if (v.kind != V_NUM || !num_is_int(v.num, &k))
            return fail(lw, v.at, "the index of a list is a whole number, this is %s", val_text(lw, &v));
        *(i ? &to : &from) = k < 0 ? k + n : k;
    }
    if (range) {
        if (from < 0 || to > n || from > to)
            return fail(lw, x->at, "%lld..%lld is not inside a list of %lld", (long long)from, (long long)to,
                        (long long)n);
        return val_list(lw, e->at, (int)(to - from), list->list->at + from);
    }
    if (from < 0 || from >= n)
        return fail(lw, x->at, "index %lld of a list of %lld", (long long)from, (long long)n);
    return list->list->at[from];
}

static Val eval_index(Lower *lw, Call *c, const Expr *e) {
    Val base = eval(lw, c, e->a);
    if (base.kind == V_ERROR) return base;
    if (base.kind == V_LIST) return index_list(lw, c, e, &base);
    if (base.kind == V_FN) return fn_message(lw, &base, "an index needs a tensor");
    if (base.kind != V_TENSOR)
        return fail(lw, e->at, "only tensors and lists have elements, this is %s", val_text(lw, &base));
    Index index[MAX_DIM];
    int n = e->items.n;
    if (n > MAX_DIM) return fail(lw, e->at, "%d indices: a tensor has at most %d axes", n, MAX_DIM);
    for (int i = 0; i < n; i++) {
        const Expr *x = e->items.at[i];
        index[i] = (Index){.at = x->at, .from = val_none(x->at), .to = val_none(x->at)};
        index[i].kind = x->kind == X_RANGE  ? IX_RANGE
                        : x->kind == X_ALL  ? IX_ALL
                        : x->kind == X_REST ? IX_REST
                                            : IX_AT;
        if (x->kind == X_RANGE) {
            if (x->a) index[i].from = eval(lw, c, x->a);
            if (x->b) index[i].to = eval(lw, c, x->b);
        } else if (index[i].kind == IX_AT) {
            index[i].from = eval(lw, c, x);
        }
        if (has_error(&index[i].from) || has_error(&index[i].to)) return val_error(e->at);
    }
    lw->b.at = e->at;
    return lower_index(lw, e->at, &base, index, n);
}

// ---- members --------------------------------------------------------------------------------------------

// .a.b.c of a block's subject: asks for the whole chain.
static bool subject_chain(const Expr *e, const char **path, int *n, int most) {
    if (e->kind == X_MEMBER && !subject_chain(e->a, path, n, most)) return false;
    if (e->kind != X_MEMBER && e->kind != X_DOT) return false;
    if (*n == most) return false;
    path[(*n)++] = e->name;
    return true;
}

static Val eval_member(Lower *lw, Call *c, const Expr *e) {
    const char *path[16];
    int n = 0;
    if (subject_chain(e, path, &n, 16)) {
        const Subject *s = interp_of(lw)->subject;
        if (!s) return fail(lw, e->at, "a leading dot has a meaning in 'config' and 'weights' only");
        Val v = val_none(e->at);
        return s->member(s->self, e->at, n, path, &v) ? v : val_none(e->at);
    }
    if (e->a->kind == X_NAME && !find_var(c, e->a->name)) { // a function of an import that has a name
        const Module *m = module_of(lw, c);
        for (int i = 0; m && i < m->imports.n; i++) {
            const Import *im = &m->imports.at[i];
            if (im->as != e->a->name || !im->module) continue;
            Val f = lookup_own(lw, im->module, e->name, e->at);
            if (f.kind != V_NONE) return f;
            const char *near = name_near(lw, NULL, im->module, e->name);
            if (near)
                error_at(lw, e->op_at, "%s has no function '%s'; did you mean '%s'?", im->as, e->name, near);
            else error_at(lw, e->op_at, "%s has no function '%s'", im->as, e->name);
            return val_error(e->at);
        }
    }
    Val base = eval(lw, c, e->a);
    if (base.kind == V_ERROR || base.kind == V_NONE) return base;
    if (base.kind == V_TENSOR && strcmp(e->name, "T") == 0) return tensor_op(lw, e->at, "T", &base, NULL);
    if (base.kind == V_FN)
        return fn_message(lw, &base, arena_printf(lw->arena, "'.%s' needs a tensor", e->name));
    return fail(lw, e->op_at, "there is no member '%s' of %s%s", e->name, val_text(lw, &base),
                base.kind == V_TENSOR ? "; a tensor has .T" : "");
}

// ---- all ------------------------------------------------------------------------------------------------

Results eval_all(Lower *lw, Call *c, const Expr *e) {
    if (e->kind == X_CALL) return eval_call(lw, c, e, NULL);
    if (e->kind == X_AS) {
        if (e->a->kind == X_CALL) return eval_call(lw, c, e->a, e);
        error_at(lw, e->op_at, "'as' names the instance a call makes; this is no call");
        return (Results){1, {val_error(e->at)}};
    }
    if (e->kind == X_IF) {
        bool chosen;
        if (!eval_bool(lw, c, e->a, &chosen)) return (Results){1, {val_error(e->at)}};
        return eval_all(lw, c, chosen ? e->b : e->c);
    }
    return (Results){1, {eval(lw, c, e)}};
}

Val eval(Lower *lw, Call *c, const Expr *e) {
    switch (e->kind) {
    case X_NAME: return eval_name(lw, c, e);
    case X_NUM: return val_num(e->at, e->num);
    case X_QUANTITY: return (Val){.kind = V_QUANTITY, .at = e->at, .quantity = {e->num, e->unit}};
    case X_STR: return val_of_str(e->at, e->name);
    case X_BOOL: return val_of_bool(e->at, e->num.num != 0);
    case X_NONE: return val_none(e->at);
    case X_INF: return val_num(e->at, num_double(INFINITY));
    case X_DOT: case X_MEMBER: return eval_member(lw, c, e);
    case X_LIST: return eval_list(lw, c, e);
    case X_EACH: return eval_each(lw, c, e);
    case X_RANGE: return eval_range(lw, c, e);
    case X_INDEX: return eval_index(lw, c, e);
    case X_NOT: case X_NEG: return eval_unary(lw, c, e);
    case X_BINARY: return eval_binary(lw, c, e);
    case X_REST: case X_ALL: return fail(lw, e->at, "this stands in an index or a shape only");
    case X_MODEL: return fail(lw, e->at, "'model' is the root of paths in 'weights' only");
    case X_CALL: case X_AS: case X_IF: break;
    }
    Results r = eval_all(lw, c, e);
    if (r.n == 1) return r.v[0];
    const Expr *call = e->kind == X_AS ? e->a : e;
    const char *name = call->kind == X_CALL ? ast_text(lw->arena, lw->diag, call->a->at) : "this";
    if (r.n == 0) return fail(lw, e->at, "%s gives no value", name);
    return fail(lw, e->at, "%s gives %d values, one is needed here", name, r.n);
}

// ---- shapes ---------------------------------------------------------------------------------------------

bool eval_dim(Lower *lw, Call *c, const Expr *e, const Poly **out) {
    Val v = eval(lw, c, e);
    if (v.kind == V_ERROR) return false;
    if (!poly_of_value(lw, &v, out)) {
        fail(lw, e->at, "a dimension is a whole number, this is %s", val_text(lw, &v));
        return false;
    }
    int64_t n;
    Num number;
    if (poly_is_num(*out, &number) && (!num_is_int(number, &n) || n < 0)) {
        fail(lw, e->at, "a dimension is a whole number, this is %s", num_text(lw->arena, number));
        return false;
    }
    return true;
}

bool eval_shape(Lower *lw, Call *c, const Exprs *shape, LType *out) {
    out->ndim = 0;
    for (int i = 0; i < shape->n; i++) {
        const Expr *x = shape->at[i];
        int n = x->kind == X_REST ? c->rest.ndim : 1;
        if (x->kind == X_REST && !c->has_rest) {
            fail(lw, x->at, "'...' is not known here: no tensor parameter has it");
            return false;
        }
        if (out->ndim + n > MAX_DIM - 1) {
            fail(lw, x->at, "this shape has more than %d axes", MAX_DIM - 1);
            return false;
        }
        if (x->kind == X_REST) {
            for (int k = 0; k < n; k++) out->dim[out->ndim++] = c->rest.dim[k];
        } else if (!eval_dim(lw, c, x, &out->dim[out->ndim++])) {
            return false;
        }
    }
    return true;
}
