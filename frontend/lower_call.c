// Calls: arguments on parameters, functions that lack some, running a body.
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
    const Fn *f = name[0] != '_' ? find_own_fn(m, name) : NULL;
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

// ---- matching -------------------------------------------------------------------------------------------

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
    *m = (Matched){arena_array(lw->arena, bool, np), arena_array(lw->arena, Val, np),
                   arena_array(lw->arena, Span, np)};
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
            if (k < 0 && args[i].v.kind == V_NONE) continue; // what is none may be passed to whoever lacks it
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
        error_at(lw, v->at, "%s returns %s, this is %s", f->name, ast_text(lw->arena, lw->diag, t->at),
                 val_text(lw, v));
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

Results call_init(Lower *lw, const FnVal *f, int n, const OpArg *args, Span at) {
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

Results call_op(Lower *lw, const char *op, int n, const OpArg *args, Span at) {
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
    for (int i = 0; i < f->given.n; i++)
        all[k++] = (OpArg){f->given.at[i].name, f->given.at[i].v, f->given.at[i].at};
    for (int i = 0; i < n; i++) all[k++] = args[i];
    return call_op(lw, f->op, k, all, at);
}

Results call_fn(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at, const Site *site) {
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
    call->segment = f->layer ? f->layer->name : site->segment ? site->segment : f->fn->name;
    call->has_as = site->has_as;
    call->per_expert = site->per_expert;
    call->layer = f->layer;
    call->copy = f->copy;
    call->frozen = frozen;
    if (f->layer) call->scope = f->layer->scope;
    if (!bind_params(lw, call, &m, at, site->expr)) return failed(at);
    Results r = run_body(lw, call);
    for (int i = 0; i < r.n; i++)
        if (r.v[i].kind == V_ROUTE)
            r.v[i].route->at = at; // for messages: the router's call, not its last line
    return r;
}

Results call_value(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at,
                   const char *segment) {
    Site site = {.segment = segment, .has_as = segment != NULL};
    return call_fn(lw, c, f, n, args, at, &site);
}
