// A call in the text: whom it calls, the name of its instance, and the calls only the interpreter can make:
// each_expert, emitted, copy, and routes, which report themselves.
#include <string.h>

#include "frontend/interp.h"

static Results one(Val v) { return (Results){1, {v}}; }
static Results failed(Span at) { return one(val_error(at)); }

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

// The name of the instance that calling this expression makes: the parameter it came through, or the
// function.
static const char *segment_of(const Call *c, const Expr *callee, const FnVal *f) {
    if (f->layer) return f->layer->name;
    if (callee->kind == X_NAME && find_var(c, callee->name) && is_fn_param(c, callee->name))
        return callee->name;
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
        error_at(lw, e->at,
                 "each_expert takes a function and rows grouped by expert: each_expert(f, dispatch(x, r))");
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
            error_at(lw, args[i].at,
                     "each_expert: these rows were dispatched by another route than the first ones");
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
        error_at(lw, args[1].at, "each_expert needs rows grouped by expert, this is %s",
                 val_text(lw, &args[1].v));
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
            error_at(lw, e->at, "each_expert: the function gives %s, not a row for each of its rows",
                     val_text(lw, v));
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
    Emission e = {.name = intern(channel), .path = lw->b.path, .t = t, .at = at, .automatic = true};
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
    if (asked && asked->kind == V_TENSOR && asked->t->type.dtype == I32)
        count_metric(lw, "routed", asked->t->v, r->E);
    count_metric(lw, "load", r->choice, r->E);
}

// ---- a call in the text ---------------------------------------------------------------------------------

static const char *as_segment(Lower *lw, Call *c, const Expr *as) {
    if (!as->b) return as->name;
    Val v = eval(lw, c, as->b);
    int64_t n;
    if (v.kind == V_NUM && num_is_int(v.num, &n))
        return intern(arena_printf(lw->arena, "%s.%lld", as->name, (long long)n));
    if (v.kind == V_ERROR) return NULL;
    error_at(lw, as->b->at, "the index of a name is a whole number, this is %s", val_text(lw, &v));
    lower_notes(lw);
    return NULL;
}

static Results call_builtin(Lower *lw, Call *c, const Expr *e, const char *name, int n, OpArg *args,
                            Site *site) {
    if (strcmp(name, "each_expert") == 0) return each_expert(lw, c, e, n, args, site);
    if (strcmp(name, "emitted") == 0) return one(emitted(lw, c, n, args, e->at));
    if (strcmp(name, "copy") == 0) return one(copy_of(lw, c, e, n, args));
    if (is_init(name)) {
        FnVal f = {.at = e->at, .op = name, .init = true};
        return call_init(lw, &f, n, args, e->at);
    }
    for (int i = 0; i < n; i++)
        if (args[i].v.kind == V_FN)
            return one(fn_message(lw, &args[i].v, arena_printf(lw->arena, "%s needs a tensor", name)));
    Results r = call_op(lw, name, n, args, e->at);
    if (r.n == 1 && r.v[0].kind == V_ROUTE) report_route(lw, c, r.v[0].route, n, args, e->at);
    return r;
}

Results eval_call(Lower *lw, Call *c, const Expr *e, const Expr *as) {
    const Module *m = c && c->fn ? c->fn->module : program_main(interp_of(lw)->program);
    Site site = {.has_as = as != NULL, .expr = e};
    bool plain = e->a->kind == X_NAME && !find_var(c, e->a->name);
    Val callee = plain ? lookup_fn(lw, m, e->a->name, e->a->at) : eval(lw, c, e->a);
    OpArg *args;
    bool ok = eval_args(lw, c, &e->args, &args);
    if (as && !(site.segment = as_segment(lw, c, as))) return failed(e->at);
    if (callee.kind == V_ERROR) return failed(e->at);
    if (plain && callee.kind == V_NONE) {
        if (is_builtin(e->a->name))
            return ok ? call_builtin(lw, c, e, e->a->name, e->args.n, args, &site) : failed(e->at);
        const char *near = name_near(lw, c, m, e->a->name);
        if (near)
            error_at(lw, e->a->at, "there is no operation or function '%s'; did you mean '%s'?", e->a->name,
                     near);
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
