// Arguments on parameters: is a value what the parameter takes, what do shapes say, what is left to defaults.
#include <string.h>

#include "frontend/interp.h"

// ---- values for parameters ------------------------------------------------------------------------------

int find_param(const Fn *f, const char *name) {
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
bool check_value(Lower *lw, const Fn *f, int param, const Val *v, Span at, const Expr *call) {
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
            error_at(lw, at, "%s: '%s' is a whole number, not %s", f->name, p->name,
                     num_text(lw->arena, v->num));
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
        error_at(lw, e->at,
                 "%s is not known where this shape is solved: it is no parameter and stands alone nowhere",
                 e->name);
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
    return shape_error(
        s, plain ? arena_printf(lw->arena, "axis %d is %s, not %s", axis, poly_text(lw, dim), value)
                 : arena_printf(lw->arena, "axis %d is %s, %s is %s", axis, poly_text(lw, dim), text.text,
                                value));
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
    error_at(s->lw, s->at, "%s: parameter '%s' is %s%s, the argument is %s", s->f->name, s->p->name,
             want ? want : "a float tensor ", shape_of_param(s->lw, s->p), ltype_text(s->lw, &s->t->type));
    lower_notes(s->lw);
    return false;
}

static bool solve_shape(Lower *lw, Call *c, const Fn *f, int param, const Val *v, Span at) {
    const Param *p = &f->params.at[param];
    const Exprs *shape = &p->type.shape;
    const LType *t = &v->t->type;
    Solve s = {lw, c, f, p, v->t, at};
    if (t->rows && !t->expert_rows) {
        error_at(lw, at, "%s: parameter '%s' takes tokens, this is rows grouped by expert, %s", f->name,
                 p->name, ltype_text(lw, t));
        diag_help(lw->diag,
                  "each_expert(%s, rows) runs it for each expert, combine(rows, r) brings rows back to their "
                  "tokens",
                  f->name);
        lower_notes(lw);
        return false;
    }
    int rest = -1;
    for (int i = 0; i < shape->n; i++)
        if (shape->at[i]->kind == X_REST) rest = i;
    int fixed = shape->n - (rest >= 0);
    if (rest < 0 ? t->ndim != fixed : t->ndim < fixed)
        return shape_error(&s, arena_printf(lw->arena, "%s%d %s, not %d", rest < 0 ? "" : "at least ", fixed,
                                            fixed == 1 ? "axis" : "axes", t->ndim));
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
        const char *text = expr_text(lw, p->fallback),
                   *values = expr_text(lw, with_values(lw, c, p->fallback));
        error_at(lw, call_at, "%s: %s = %s = %s is not a whole number", f->name, p->name, text, values);
        diag_note(lw->diag, p->fallback->at, "the default is computed here");
        lower_notes(lw);
        return val_error(p->fallback->at);
    }
    if (!check_value(lw, f, param, &v, p->fallback->at, NULL)) return val_error(p->fallback->at);
    return v;
}

// ---- all of a call ---------------------------------------------------------------------------------------

// Binds parameters: compile-time arguments, then shapes left to right, then defaults in order.
bool bind_params(Lower *lw, Call *c, const Matched *m, Span at, const Expr *call) {
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
