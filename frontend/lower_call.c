// Calls: matching arguments to parameters, solving shapes, functions with some arguments given, running a body.
#include <string.h>

#include "frontend/interp.h"

static Results one(Val v) { return (Results){1, {v}}; }
static Results failed(Span at) { return one(val_error(at)); }

// ---- finding functions ----------------------------------------------------------------------------------

static Val fn_value(Lower *lw, const Fn *fn, Span at) {
    FnVal *f = arena_new(lw->arena, FnVal);
    f->at = at;
    f->fn = fn;
    return (Val){.kind = V_FN, .at = at, .fn = f};
}

Val lookup_own(Lower *lw, const Module *m, const char *name, Span at) {
    const Fn *f = find_own_fn(m, name);
    return f ? fn_value(lw, f, at) : val_none(at);
}

Val lookup_fn(Lower *lw, const Module *m, const char *name, Span at) {
    const Fn *other, *f = find_fn(m, name, &other);
    return f ? fn_value(lw, f, at) : val_none(at);
}

const char *name_near(Lower *lw, const Call *c, const Module *m, const char *name) {
    VEC(const char *) vars = {0};
    for (int i = 0; c && i < c->vars.n; i++) vec_push(lw->arena, &vars, c->vars.at[i].name);
    return near_name(lw->arena, m, vars.n, vars.at, c != NULL, name);
}

// ---- values for parameters ------------------------------------------------------------------------------

static int find_param(const Fn *f, const char *name) {
    for (int i = 0; i < f->params.n; i++)
        if (f->params.at[i].name == name) return i;
    return -1;
}

static const char *words_text(Lower *lw, const TypeExpr *t) {
    Str s = {.arena = lw->arena};
    for (int i = 0; i < t->words.n; i++) str_printf(&s, "%s\"%s\"", i ? ", " : "", t->words.at[i]);
    return s.text;
}

static bool wrong_type(Lower *lw, const Fn *f, const Param *p, Span at, const char *needs, const Val *v) {
    if (v->kind == V_ERROR) return false;
    if (v->kind == V_FN) {
        fn_message(lw, v, arena_printf(lw->arena, "'%s' of %s is %s", p->name, f->name, needs));
        return false;
    }
    error_at(lw, at, "%s: '%s' is %s, not %s", f->name, p->name, needs, val_text(lw, v));
    lower_notes(lw);
    return false;
}

// "swiglu(x, H: 4)" without what is given by position, or NULL.
static const char *without_tensors(Lower *lw, const Expr *e) {
    if (!e || e->kind != X_CALL) return NULL;
    Str s = {.arena = lw->arena};
    ast_print_expr(&s, e->a);
    str_add(&s, "(");
    for (int i = 0, n = 0; i < e->args.n; i++) {
        if (!e->args.at[i].name) continue;
        str_printf(&s, "%s%s: ", n++ ? ", " : "", e->args.at[i].name);
        ast_print_expr(&s, e->args.at[i].value);
    }
    str_add(&s, ")");
    return s.text;
}

static bool expects_function(Lower *lw, const Param *p, const Val *v, Span at, const Expr *call) {
    error_at(lw, at, "a function is expected for '%s', this is %s", p->name, val_text(lw, v));
    for (int i = 0; v->kind == V_TENSOR && call && i < call->args.n; i++) {
        const Expr *x = call->args.at[i].value;
        if (x->at.begin != at.begin || x->at.end != at.end) continue;
        const char *text = without_tensors(lw, x);
        if (text) diag_help(lw->diag, "leave out the tensor: %s", text);
    }
    lower_notes(lw);
    return false;
}

static bool check_word(Lower *lw, const Fn *f, const Param *p, const Val *v, Span at) {
    const TypeExpr *t = &p->type;
    for (int i = 0; i < t->words.n; i++)
        if (v->kind == V_STR && t->words.at[i] == v->str) return true;
    const char *near = v->kind == V_STR ? did_you_mean(v->str, t->words.at, t->words.n) : NULL;
    Str s = {.arena = lw->arena};
    str_printf(&s, "%s: '%s' is one of %s, not %s", f->name, p->name, words_text(lw, t), val_text(lw, v));
    if (near) str_printf(&s, "; did you mean \"%s\"?", near);
    diag_error(lw->diag, at, "%s", s.text);
    lower_notes(lw);
    return false;
}

// Is v what the parameter takes?  Tensors: see solve_shape.
static bool check_value(Lower *lw, const Fn *f, int param, const Val *v, Span at, const Expr *call) {
    const Param *p = &f->params.at[param];
    bool number = v->kind == V_NUM || v->kind == V_POLY;
    if (has_error(v)) return false;
    if (v->kind == V_NONE && p->type.kind != TY_TENSOR) return true;
    switch (p->type.kind) {
    case TY_TENSOR:
        if (v->kind == V_TENSOR) return true;
        if (v->kind == V_NONE && ((p->fallback && p->fallback->kind == X_NONE) || f->is_model)) return true;
        return wrong_type(lw, f, p, at, "a tensor", v);
    case TY_INT:
        if (v->kind == V_NUM && !num_is_int(v->num, NULL)) {
            error_at(lw, at, "%s: '%s' is a whole number, not %s", f->name, p->name, num_text(lw->arena, v->num));
            lower_notes(lw);
            return false;
        }
        return number || wrong_type(lw, f, p, at, "a whole number", v);
    case TY_NUM: return number || wrong_type(lw, f, p, at, "a number", v);
    case TY_BOOL: return v->kind == V_BOOL || wrong_type(lw, f, p, at, "true or false", v);
    case TY_STR: return v->kind == V_STR || wrong_type(lw, f, p, at, "a string", v);
    case TY_LIST: return v->kind == V_LIST || wrong_type(lw, f, p, at, "a list", v);
    case TY_FN: return v->kind == V_FN || expects_function(lw, p, v, at, call);
    case TY_WORDS: return check_word(lw, f, p, v, at);
    case TY_ANY: break;
    }
    if (!p->fallback) return true;
    switch (p->fallback->kind) {                    // what was written as default says what it is
    case X_NUM: return number || wrong_type(lw, f, p, at, "a number", v);
    case X_BOOL: return v->kind == V_BOOL || wrong_type(lw, f, p, at, "true or false", v);
    case X_STR: return v->kind == V_STR || wrong_type(lw, f, p, at, "a string", v);
    case X_LIST: case X_EACH: return v->kind == V_LIST || wrong_type(lw, f, p, at, "a list", v);
    case X_QUANTITY: return v->kind == V_QUANTITY || wrong_type(lw, f, p, at, "a number with a unit", v);
    default: return true;
    }
}

// ---- shapes ---------------------------------------------------------------------------------------------

static const char *shape_of_param(Lower *lw, const Param *p) {
    Str s = {.arena = lw->arena};
    str_add(&s, "[");
    for (int i = 0; i < p->type.shape.n; i++) {
        if (i) str_add(&s, ", ");
        ast_print_expr(&s, p->type.shape.at[i]);
    }
    str_add(&s, "]");
    return s.text;
}

static const char *dims_text(Lower *lw, const LType *t) {
    const char *text = ltype_text(lw, t);
    return strchr(text, '[');
}

// An expression inside a shape may only use what is bound already.
static bool names_known(Lower *lw, const Call *c, const Expr *e) {
    if (!e) return true;
    if (e->kind == X_NAME && !find_var(c, e->name) && !lower_is_op(e->name)) {
        error_at(lw, e->at, "%s is not known where this shape is solved: it is no parameter and stands alone nowhere", e->name);
        return false;
    }
    bool ok = names_known(lw, c, e->a) && names_known(lw, c, e->b) && names_known(lw, c, e->c);
    for (int i = 0; ok && i < e->args.n; i++) ok = names_known(lw, c, e->args.at[i].value);
    return ok;
}

typedef struct {
    Lower *lw;
    Call *c;
    const Fn *f;
    const Param *p;
    const TVal *t;
    Span at;
} Solve;

static bool shape_error(const Solve *s, const char *why) {
    error_at(s->lw, s->at, "%s: parameter '%s' is %s, the argument is %s: %s", s->f->name, s->p->name,
             shape_of_param(s->lw, s->p), dims_text(s->lw, &s->t->type), why);
    lower_notes(s->lw);
    return false;
}

static bool solve_axis(const Solve *s, const Expr *x, int axis, const Poly *dim) {
    Lower *lw = s->lw;
    if (x->kind == X_NAME && strcmp(x->name, "_") == 0) return true;
    const Val *v = x->kind == X_NAME ? find_var(s->c, x->name) : NULL;
    if (x->kind == X_NAME && (!v || v->kind == V_NONE)) {
        set_var(lw, s->c, x->name, value_of_poly(lw, x->at, dim));
        return true;
    }
    const Poly *want;
    if (!names_known(lw, s->c, x) || !eval_dim(lw, s->c, x, &want)) return false;
    if (want == dim) return true;
    Str text = {.arena = lw->arena};
    ast_print_expr(&text, x);
    const char *value = poly_text(lw, want);
    bool plain = strcmp(text.text, value) == 0;
    return shape_error(s, plain ? arena_printf(lw->arena, "axis %d is %s, not %s", axis, poly_text(lw, dim), value)
                                : arena_printf(lw->arena, "axis %d is %s, %s is %s", axis, poly_text(lw, dim), text.text, value));
}

static bool solve_rest(const Solve *s, int from, int n) {
    Call *c = s->c;
    const LType *t = &s->t->type;
    if (!c->has_rest) {
        c->has_rest = true;
        c->rest.ndim = n;
        for (int i = 0; i < n; i++) c->rest.dim[i] = t->dim[from + i];
        return true;
    }
    bool same = c->rest.ndim == n;
    for (int i = 0; same && i < n; i++) same = c->rest.dim[i] == t->dim[from + i];
    if (same) return true;
    LType known = c->rest;
    return shape_error(s, arena_printf(s->lw->arena, "'...' is %s already", dims_text(s->lw, &known)));
}

static bool check_element_type(const Solve *s) {
    const char *want = s->p->type.element;
    DType have = s->t->type.dtype;
    if (want ? strcmp(want, dtype_name(have)) == 0 : dtype_is_float(have)) return true;
    error_at(s->lw, s->at, "%s: parameter '%s' is %s%s, the argument is %s", s->f->name, s->p->name, want ? want : "a float tensor ",
             shape_of_param(s->lw, s->p), ltype_text(s->lw, &s->t->type));
    lower_notes(s->lw);
    return false;
}

bool solve_shape(Lower *lw, Call *c, const Fn *f, int param, const Val *v, Span at) {
    const Param *p = &f->params.at[param];
    const Exprs *shape = &p->type.shape;
    const LType *t = &v->t->type;
    Solve s = {lw, c, f, p, v->t, at};
    if (t->rows && !t->expert_rows) {
        error_at(lw, at, "%s: parameter '%s' takes tokens, this is rows grouped by expert, %s", f->name, p->name, ltype_text(lw, t));
        diag_help(lw->diag, "each_expert(%s, rows) runs it for each expert, combine(rows, r) brings rows back to their tokens",
                  f->name);
        lower_notes(lw);
        return false;
    }
    int rest = -1;
    for (int i = 0; i < shape->n; i++)
        if (shape->at[i]->kind == X_REST) rest = i;
    int fixed = shape->n - (rest >= 0);
    if (rest < 0 ? t->ndim != fixed : t->ndim < fixed)
        return shape_error(&s, arena_printf(lw->arena, "%s%d %s, not %d", rest < 0 ? "" : "at least ", fixed, fixed == 1 ? "axis" : "axes", t->ndim));
    int n_rest = t->ndim - fixed, before = rest < 0 ? shape->n : rest;
    bool ok = true;
    for (int i = 0; ok && i < before; i++) ok = solve_axis(&s, shape->at[i], i, t->dim[i]);
    if (ok && rest >= 0) ok = solve_rest(&s, before, n_rest);
    for (int i = before + 1; ok && rest >= 0 && i < shape->n; i++)
        ok = solve_axis(&s, shape->at[i], i - shape->n, t->dim[i - 1 + n_rest]);
    return ok && check_element_type(&s);
}

// ---- defaults -------------------------------------------------------------------------------------------

// D / N -> 128 / 12
static const Expr *with_values(Lower *lw, const Call *c, const Expr *e) {
    if (!e) return NULL;
    Expr *x = arena_new(lw->arena, Expr);
    *x = *e;
    if (e->kind == X_NAME) {
        const Val *v = find_var(c, e->name);
        if (v && v->kind == V_NUM) {
            x->kind = X_NUM;
            x->num = v->num;
        }
    }
    x->a = (Expr *)with_values(lw, c, e->a);
    x->b = (Expr *)with_values(lw, c, e->b);
    x->c = (Expr *)with_values(lw, c, e->c);
    return x;
}

static const char *expr_text(Lower *lw, const Expr *e) {
    Str s = {.arena = lw->arena};
    ast_print_expr(&s, e);
    return s.text;
}

Val default_value(Lower *lw, Call *c, const Fn *f, int param, Span call_at) {
    const Param *p = &f->params.at[param];
    Val v = eval(lw, c, p->fallback);
    if (has_error(&v)) return val_error(p->fallback->at);
    if (p->type.kind == TY_INT && v.kind == V_NUM && !num_is_int(v.num, NULL)) {
        const char *text = expr_text(lw, p->fallback), *values = expr_text(lw, with_values(lw, c, p->fallback));
        error_at(lw, call_at, "%s: %s = %s = %s is not a whole number", f->name, p->name, text, values);
        diag_note(lw->diag, p->fallback->at, "the default is computed here");
        lower_notes(lw);
        return val_error(p->fallback->at);
    }
    if (!check_value(lw, f, param, &v, p->fallback->at, NULL)) return val_error(p->fallback->at);
    return v;
}

bool check_param_value(Lower *lw, const Fn *f, int param, const Val *v, Span at) {
    return check_value(lw, f, param, v, at, NULL);
}

// ---- matching -------------------------------------------------------------------------------------------

typedef struct {
    bool *given;
    Val  *v;
    Span *at;
} Matched;

static void already_given(Lower *lw, const Fn *f, const Param *p, Span at, Span first) {
    error_at(lw, at, "'%s' of %s was given already", p->name, f->name);
    diag_note(lw->diag, first, "here");
    lower_notes(lw);
}

static void unknown_parameter(Lower *lw, const Fn *f, const OpArg *a, Span call_at) {
    if (strcmp(a->name, "used") == 0) {
        error_at(lw, call_at, "%s has no parameter 'used', but this model masks padding", f->name);
        diag_note(lw->diag, a->v.at, "the mask comes from here");
        lower_notes(lw);
        return;
    }
    VEC(const char *) names = {0};
    for (int i = 0; i < f->params.n; i++) vec_push(lw->arena, &names, f->params.at[i].name);
    const char *near = did_you_mean(a->name, names.at, names.n);
    Span at = {a->at.file, a->at.begin, a->at.begin + (uint32_t)strlen(a->name)};
    if (near) error_at(lw, at, "%s has no parameter '%s'; did you mean '%s'?", f->name, a->name, near);
    else error_at(lw, at, "%s has no parameter '%s'", f->name, a->name);
    diag_note(lw->diag, f->at, "its parameters");
    lower_notes(lw);
}

// Puts what is known so far and the arguments of this call on their parameters.
static bool match(Lower *lw, const FnVal *f, int n, const OpArg *args, Span at, Matched *m) {
    const Fn *fn = f->fn;
    int np = fn->params.n > 0 ? fn->params.n : 1;
    *m = (Matched){arena_array(lw->arena, bool, np), arena_array(lw->arena, Val, np), arena_array(lw->arena, Span, np)};
    for (int i = 0; i < f->given.n; i++) {
        const Given *g = &f->given.at[i];
        m->given[g->param] = true;
        m->v[g->param] = g->v;
        m->at[g->param] = g->at;
    }
    bool ok = true;
    int next = 0;
    for (int i = 0; i < n; i++) {
        int k;
        if (!args[i].name) {
            while (next < fn->params.n && m->given[next]) next++;
            if (next == fn->params.n) {
                error_at(lw, args[i].at, "%s takes %d arguments, this is one more", fn->name, fn->params.n);
                diag_note(lw->diag, fn->at, "its parameters");
                lower_notes(lw);
                return false;
            }
            k = next++;
        } else {
            k = find_param(fn, args[i].name);
            if (k < 0 && args[i].v.kind == V_NONE) continue;       // what is none may be passed to whoever lacks it
            if (k < 0) {
                unknown_parameter(lw, fn, &args[i], at);
                ok = false;
                continue;
            }
            if (m->given[k]) {
                already_given(lw, fn, &fn->params.at[k], args[i].at, m->at[k]);
                ok = false;
                continue;
            }
        }
        m->given[k] = true;
        m->v[k] = args[i].v;
        m->at[k] = args[i].name ? args[i].v.at : args[i].at;
        if (args[i].name) m->at[k] = args[i].at;
    }
    return ok;
}

// An int that stands alone in the shape of a tensor that is given needs no argument.
static bool bound_by_tensor(const Fn *f, const Matched *m, const char *name) {
    for (int i = 0; i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        if (p->type.kind != TY_TENSOR || !m->given[i] || m->v[i].kind != V_TENSOR) continue;
        for (int k = 0; k < p->type.shape.n; k++)
            if (p->type.shape.at[k]->kind == X_NAME && p->type.shape.at[k]->name == name) return true;
    }
    return false;
}

static bool is_lacking(const Fn *f, const Matched *m, int i, bool inputs_may_lack) {
    const Param *p = &f->params.at[i];
    if (m->given[i] || p->fallback) return false;
    if (p->type.kind == TY_TENSOR && inputs_may_lack) return false;
    return !(p->type.kind == TY_INT && bound_by_tensor(f, m, p->name));
}

static Val partial(Lower *lw, const FnVal *f, const Matched *m, Span at) {
    FnVal *g = arena_new(lw->arena, FnVal);
    *g = *f;
    g->at = at;
    memset(&g->given, 0, sizeof g->given);
    for (int i = 0; i < f->fn->params.n; i++) {
        if (!m->given[i]) continue;
        Given x = {i, f->fn->params.at[i].name, m->v[i], m->at[i]};
        vec_push(lw->arena, &g->given, x);
    }
    return (Val){.kind = V_FN, .at = at, .fn = g};
}

// ---- running --------------------------------------------------------------------------------------------

Call *call_new(Lower *lw, Call *caller, const Fn *fn, Span at) {
    Call *c = arena_new(lw->arena, Call);
    c->caller = c->scope = caller;
    c->fn = fn;
    c->at = at;
    c->before = lw->g ? lw->g->last : NULL;
    c->in_loop = caller && caller->loops > 0;
    c->first_emit = interp_of(lw)->emits.n;
    return c;
}

static bool check_returns(Lower *lw, Call *c) {
    const Fn *f = c->fn;
    if (c->results.n != f->returns.n) {
        error_at(lw, c->at, "%s gives %d values, its head says %d", f->name, c->results.n, f->returns.n);
        diag_note(lw->diag, f->at, "here");
        return false;
    }
    for (int i = 0; i < f->returns.n; i++) {
        const TypeExpr *t = &f->returns.at[i];
        const Val *v = &c->results.v[i];
        if (t->kind != TY_TENSOR || v->kind == V_ERROR) continue;
        LType want = {0};
        if (!eval_shape(lw, c, &t->shape, &want)) return false;
        bool same = v->kind == V_TENSOR && want.ndim == v->t->type.ndim;
        for (int k = 0; same && k < want.ndim; k++) same = want.dim[k] == v->t->type.dim[k];
        bool dtype_ok = same && (t->element ? strcmp(t->element, dtype_name(v->t->type.dtype)) == 0
                                            : dtype_is_float(v->t->type.dtype));
        if (dtype_ok) continue;
        error_at(lw, v->at, "%s returns %s, this is %s", f->name, ast_text(lw->arena, lw->diag, t->at), val_text(lw, v));
        diag_note(lw->diag, t->at, "written here");
        lower_notes(lw);
        return false;
    }
    return true;
}

Results run_body(Lower *lw, Call *c) {
    Interp *in = interp_of(lw);
    Call *outer = in->call;
    bool training = lw->training;
    in->call = c;
    lw->call = c;
    if (c->frozen) lw->training = false;
    if (c->fn->value) {
        c->results = eval_all(lw, c, c->fn->value);
    } else {
        exec_body(lw, c, &c->fn->body);
    }
    if (c->fn->has_returns && !check_returns(lw, c)) c->results = failed(c->at);
    lw->training = training;
    in->call = outer;
    lw->call = outer;
    if (lw->g) set_path(lw, outer);
    return c->results;
}

// Binds parameters: compile-time arguments, then shapes left to right, then defaults in order.
static bool bind_params(Lower *lw, Call *c, const Matched *m, Span at, const Expr *call) {
    const Fn *f = c->fn;
    bool ok = true;
    for (int i = 0; i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        if (!m->given[i]) continue;
        ok &= check_value(lw, f, i, &m->v[i], m->at[i], call);
        Val v = m->v[i];
        if (v.kind == V_TENSOR || v.kind == V_NONE || p->type.kind != TY_TENSOR) set_var(lw, c, p->name, v);
    }
    if (!ok) return false;
    for (int i = 0; i < f->params.n; i++)
        if (m->given[i] && f->params.at[i].type.kind == TY_TENSOR && m->v[i].kind == V_TENSOR)
            ok &= solve_shape(lw, c, f, i, &m->v[i], m->at[i]);
    for (int i = 0; ok && i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        const Val *known = find_var(c, p->name);
        if (m->given[i] || (p->type.kind == TY_INT && known)) continue;
        Val v = p->fallback ? default_value(lw, c, f, i, at) : val_none(at);
        ok = v.kind != V_ERROR;
        set_var(lw, c, p->name, v);
    }
    return ok;
}

static Results call_init(Lower *lw, const FnVal *f, int n, const OpArg *args, Span at) {
    FnVal *g = arena_new(lw->arena, FnVal);
    *g = *f;
    g->at = at;
    memset(&g->given, 0, sizeof g->given);
    for (int i = 0; i < f->given.n; i++) vec_push(lw->arena, &g->given, f->given.at[i]);
    for (int i = 0; i < n; i++) {
        bool shape = args[i].name && strcmp(args[i].name, "shape") == 0;
        if (shape) continue;                          // the parameter's own
        if (args[i].v.kind != V_NUM || args[i].name) {
            error_at(lw, args[i].at, "%s takes a number, this is %s", f->op, val_text(lw, &args[i].v));
            lower_notes(lw);
            return failed(at);
        }
        Given x = {-1, NULL, args[i].v, args[i].at};
        vec_push(lw->arena, &g->given, x);
    }
    return one((Val){.kind = V_FN, .at = at, .fn = g});
}

static Results call_op(Lower *lw, const char *op, int n, const OpArg *args, Span at) {
    lw->b.at = at;
    OpCall call = {at, op, n, (OpArg *)args};
    OpResult r = lower_op(lw, &call);
    Results out = {.n = r.n};
    for (int i = 0; i < r.n; i++) out.v[i] = r.v[i];
    return out;
}

static Results call_op_value(Lower *lw, const FnVal *f, int n, const OpArg *args, Span at) {
    OpArg *all = arena_array(lw->arena, OpArg, f->given.n + n + 1);
    int k = 0;
    for (int i = 0; i < f->given.n; i++) all[k++] = (OpArg){f->given.at[i].name, f->given.at[i].v, f->given.at[i].at};
    for (int i = 0; i < n; i++) all[k++] = args[i];
    return call_op(lw, f->op, k, all, at);
}

typedef struct {
    const char *segment;
    Span segment_at;
    bool has_as, per_expert;
    const Expr *expr;            // the call's text, or NULL
} Site;

static Results call_fn(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at, const Site *site) {
    if (f->init) return call_init(lw, f, n, args, at);
    if (!f->fn) return call_op_value(lw, f, n, args, at);
    Matched m;
    if (!match(lw, f, n, args, at, &m)) return failed(at);
    bool frozen = f->layer && f->layer->frozen;
    bool inputs_may_lack = f->fn->is_model && (frozen || is_frozen(c) || lw->inference);
    for (int i = 0; i < f->fn->params.n; i++)
        if (is_lacking(f->fn, &m, i, inputs_may_lack)) {
            bool ok = true;
            for (int k = 0; k < f->fn->params.n; k++)
                if (m.given[k]) ok &= check_value(lw, f->fn, k, &m.v[k], m.at[k], site->expr);
            return ok ? one(partial(lw, f, &m, at)) : failed(at);
        }
    int depth = 0;
    for (const Call *x = c; x; x = x->caller) depth++;
    if (depth > MAX_CALLS) {
        error_at(lw, at, "calls are nested deeper than %d: does '%s' call itself?", MAX_CALLS, f->fn->name);
        return failed(at);
    }
    Call *call = call_new(lw, c, f->fn, at);
    call->value = f;
    call->segment = f->layer ? f->layer->name : site->segment ? site->segment : f->fn->name;
    call->segment_at = site->segment_at;
    call->has_as = site->has_as;
    call->per_expert = site->per_expert;
    call->layer = f->layer;
    call->copy = f->copy;
    call->frozen = frozen;
    if (f->layer) call->scope = f->layer->scope;
    if (!bind_params(lw, call, &m, at, site->expr)) return failed(at);
    Results r = run_body(lw, call);
    for (int i = 0; i < r.n; i++)
        if (r.v[i].kind == V_ROUTE) r.v[i].route->at = at;       // for messages: the router's call, not its last line
    return r;
}

Results call_value(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at, const char *segment) {
    Site site = {.segment = segment, .segment_at = at, .has_as = segment != NULL};
    return call_fn(lw, c, f, n, args, at, &site);
}

// ---- special calls --------------------------------------------------------------------------------------

static bool eval_args(Lower *lw, Call *c, const Args *args, OpArg **out) {
    OpArg *list = arena_array(lw->arena, OpArg, args->n + 1);
    bool ok = true;
    for (int i = 0; i < args->n; i++) {
        const Arg *a = &args->at[i];
        for (int k = 0; k < i; k++)
            if (a->name && args->at[k].name == a->name) {
                error_at(lw, a->name_at, "'%s' is given twice", a->name);
                ok = false;
            }
        list[i] = (OpArg){a->name, eval(lw, c, a->value), a->at};
        ok &= !has_error(&list[i].v);
    }
    *out = list;
    return ok;
}

// emitted("name"): what was put on the channel in this instance and below it so far.
static Val emitted(Lower *lw, Call *c, int n, const OpArg *args, Span at) {
    if (n != 1 || args[0].v.kind != V_STR) {
        error_at(lw, at, "emitted takes the name of a channel: emitted(\"router_logits\")");
        return val_error(at);
    }
    while (c->caller && !c->instance) c = c->caller;
    Interp *in = interp_of(lw);
    VEC(Val) list = {0};
    for (int i = c->first_emit; i < in->emits.n; i++) {
        const Emission *e = &in->emits.at[i];
        Val v = {.kind = V_TENSOR, .at = e->at, .t = e->t};
        if (e->name == args[0].v.str && !e->automatic) vec_push(lw->arena, &list, v);
    }
    return val_list(lw, at, list.n, list.at);
}

static bool is_fn_param(const Call *c, const char *name) {
    if (!c || !c->fn) return false;
    int k = find_param(c->fn, name);
    return k >= 0;
}

// The name of the instance that calling this expression makes: the parameter it came through, or the function.
static const char *segment_of(const Call *c, const Expr *callee, const FnVal *f) {
    if (f->layer) return f->layer->name;
    if (callee->kind == X_NAME && find_var(c, callee->name) && is_fn_param(c, callee->name)) return callee->name;
    return f->fn ? f->fn->name : f->op;
}

static Val copy_of(Lower *lw, Call *c, const Expr *e, int n, const OpArg *args) {
    if (n != 1 || args[0].v.kind != V_FN || !args[0].v.fn->fn) {
        error_at(lw, e->at, "copy takes a function that has parameters of its own");
        return val_error(e->at);
    }
    const FnVal *f = args[0].v.fn;
    CopyOf *copy = arena_new(lw->arena, CopyOf);
    *copy = (CopyOf){e->at, c, segment_of(c, e->args.at[0].value, f), f->layer};
    FnVal *g = arena_new(lw->arena, FnVal);
    *g = *f;
    g->layer = NULL;
    g->copy = copy;
    return (Val){.kind = V_FN, .at = e->at, .fn = g};
}

// each_expert(f, rows, ...): f elaborated once, for one expert; its first tensor parameters get the rows.
static Results each_expert(Lower *lw, Call *c, const Expr *e, int n, OpArg *args, Site *site) {
    if (n < 2 || args[0].v.kind != V_FN) {
        error_at(lw, e->at, "each_expert takes a function and rows grouped by expert: each_expert(f, dispatch(x, r))");
        return failed(e->at);
    }
    if (lw->expert) {
        error_at(lw, e->at, "each_expert inside an expert: an expert's rows have no experts of their own");
        lower_notes(lw);
        return failed(e->at);
    }
    RouteVal *route = NULL;
    for (int i = 1; i < n; i++) {
        const Val *v = &args[i].v;
        const LType *t = v->kind == V_TENSOR ? &v->t->type : NULL;
        if (!t || !t->rows) continue;
        if (route && t->rows != route) {
            error_at(lw, args[i].at, "each_expert: these rows were dispatched by another route than the first ones");
            diag_note(lw->diag, t->rows->at, "this one");
            diag_note(lw->diag, route->at, "the first ones by this");
            lower_notes(lw);
            return failed(e->at);
        }
        route = t->rows;
        TVal *row = arena_new(lw->arena, TVal);
        *row = *v->t;
        row->type.expert_rows = true;
        row->type.ndim++;
        for (int k = row->type.ndim - 1; k > 0; k--) row->type.dim[k] = row->type.dim[k - 1];
        row->type.dim[0] = poly_sym(lw, route->sym->name);
        args[i].v.t = row;
    }
    if (!route) {
        error_at(lw, args[1].at, "each_expert needs rows grouped by expert, this is %s", val_text(lw, &args[1].v));
        diag_help(lw->diag, "dispatch(x, r) groups them");
        lower_notes(lw);
        return failed(e->at);
    }
    if (!site->has_as) site->segment = segment_of(c, e->args.at[0].value, args[0].v.fn);
    site->per_expert = true;
    site->expr = NULL;
    poly_bind(lw, route->sym->name, (Dim){1, route->sym});
    lw->expert = route;
    Results r = call_fn(lw, c, args[0].v.fn, n - 1, args + 1, e->at, site);
    lw->expert = NULL;
    for (int i = 0; i < r.n; i++) {
        Val *v = &r.v[i];
        if (v->kind == V_ERROR) continue;
        if (v->kind == V_FN) return one(fn_message(lw, v, "each_expert needs its result"));
        if (v->kind != V_TENSOR || v->t->type.rows != route || !v->t->type.expert_rows) {
            error_at(lw, e->at, "each_expert: the function gives %s, not a row for each of its rows", val_text(lw, v));
            lower_notes(lw);
            return failed(e->at);
        }
        TVal *grouped = arena_new(lw->arena, TVal);
        *grouped = *v->t;
        grouped->type.expert_rows = false;
        grouped->type.ndim--;
        for (int k = 0; k < grouped->type.ndim; k++) grouped->type.dim[k] = grouped->type.dim[k + 1];
        grouped->what = NULL;
        grouped->transpose_of = NULL;
        *v = (Val){.kind = V_TENSOR, .at = e->at, .t = grouped};
    }
    return r;
}

// ---- routes report themselves ---------------------------------------------------------------------------

// How often each expert occurs, per leaf.
static void count_metric(Lower *lw, const char *name, Value *choice, int64_t experts) {
    if (!choice) return;
    Type *t = &choice->type;
    bool leafy = type_is_leafy(t);
    Dims dims = {.n = 0};
    if (leafy) dims.at[dims.n++] = t->dim[0];
    int64_t tokens = 1;
    for (int i = leafy; i < t->ndim - 1; i++) tokens *= dim_bound(t->dim[i]);
    dims.at[dims.n++] = dim_n(tokens);
    dims.at[dims.n++] = t->dim[t->ndim - 1];
    Value *flat = build_reshape(&lw->b, choice, &dims);
    Value *counts = flat ? make(&lw->b, OP_COUNT, INS(flat), .experts = experts) : NULL;
    if (!counts) return;
    const char *path = lw->b.path ? lw->b.path : "model";
    build(&lw->b, OP_METRIC, INS(counts), .name = intern(arena_printf(lw->arena, "%s.%s", name, path)));
}

static void route_channel(Lower *lw, const char *channel, Value *v, const RouteVal *r, DType dtype, Span at) {
    if (!v) return;
    TVal *t = arena_new(lw->arena, TVal);
    *t = (TVal){.v = v, .type = r->lead, .leafy = r->leafy};
    t->type.dtype = dtype;
    t->type.rows = NULL;
    t->type.expert_rows = false;
    t->type.dim[t->type.ndim++] = poly_int(lw, r->K);
    Emission e = {intern(channel), t, lw->b.path, at, true};
    vec_push(lw->arena, &interp_of(lw)->emits, e);
}

static void report_route(Lower *lw, const Call *c, const RouteVal *r, int n, const OpArg *args, Span at) {
    if (is_frozen(c) || r->by_expert) return;
    route_channel(lw, "topk_idx", r->choice, r, I32, at);
    route_channel(lw, "topk_weight", r->weight, r, F32, at);
    if (!lw->leaf) return;
    const Val *asked = n > 1 && !args[1].name ? &args[1].v : NULL;
    for (int i = 0; i < n; i++)
        if (args[i].name && strcmp(args[i].name, "e") == 0) asked = &args[i].v;
    if (asked && asked->kind == V_TENSOR && asked->t->type.dtype == I32) count_metric(lw, "routed", asked->t->v, r->E);
    count_metric(lw, "load", r->choice, r->E);
}

// ---- a call in the text ---------------------------------------------------------------------------------

static const char *as_segment(Lower *lw, Call *c, const Expr *as) {
    if (!as->b) return as->name;
    Val v = eval(lw, c, as->b);
    int64_t n;
    if (v.kind == V_NUM && num_is_int(v.num, &n)) return intern(arena_printf(lw->arena, "%s.%lld", as->name, (long long)n));
    if (v.kind == V_ERROR) return NULL;
    error_at(lw, as->b->at, "the index of a name is a whole number, this is %s", val_text(lw, &v));
    lower_notes(lw);
    return NULL;
}

static Results call_builtin(Lower *lw, Call *c, const Expr *e, const char *name, int n, OpArg *args, Site *site) {
    if (strcmp(name, "each_expert") == 0) return each_expert(lw, c, e, n, args, site);
    if (strcmp(name, "emitted") == 0) return one(emitted(lw, c, n, args, e->at));
    if (strcmp(name, "copy") == 0) return one(copy_of(lw, c, e, n, args));
    if (is_init(name)) {
        FnVal f = {.at = e->at, .op = name, .init = true};
        return call_init(lw, &f, n, args, e->at);
    }
    for (int i = 0; i < n; i++)
        if (args[i].v.kind == V_FN) return one(fn_message(lw, &args[i].v, arena_printf(lw->arena, "%s needs a tensor", name)));
    Results r = call_op(lw, name, n, args, e->at);
    if (r.n == 1 && r.v[0].kind == V_ROUTE) report_route(lw, c, r.v[0].route, n, args, e->at);
    return r;
}

Results eval_call(Lower *lw, Call *c, const Expr *e, const Expr *as) {
    const Module *m = c && c->fn ? c->fn->module : program_main(interp_of(lw)->program);
    Site site = {.segment_at = as ? as->op_at : e->at, .has_as = as != NULL, .expr = e};
    bool plain = e->a->kind == X_NAME && !find_var(c, e->a->name);
    Val callee = plain ? lookup_fn(lw, m, e->a->name, e->a->at) : eval(lw, c, e->a);
    OpArg *args;
    bool ok = eval_args(lw, c, &e->args, &args);
    if (as && !(site.segment = as_segment(lw, c, as))) return failed(e->at);
    if (callee.kind == V_ERROR) return failed(e->at);
    if (plain && callee.kind == V_NONE) {
        if (is_builtin(e->a->name)) return ok ? call_builtin(lw, c, e, e->a->name, e->args.n, args, &site) : failed(e->at);
        const char *near = name_near(lw, c, m, e->a->name);
        if (near) error_at(lw, e->a->at, "there is no operation or function '%s'; did you mean '%s'?", e->a->name, near);
        else error_at(lw, e->a->at, "there is no operation or function '%s'", e->a->name);
        return failed(e->at);
    }
    if (callee.kind != V_FN) {
        error_at(lw, e->a->at, "only functions can be called, this is %s", val_text(lw, &callee));
        lower_notes(lw);
        return failed(e->at);
    }
    if (!ok) return failed(e->at);
    const FnVal *f = callee.fn;
    if (!site.segment) site.segment = segment_of(c, e->a, f);
    return call_fn(lw, c, f, e->args.n, args, e->at, &site);
}
