// Statements.
#include <string.h>

#include "frontend/interp.h"

static void exec(Lower *lw, Call *c, const Stmt *t);

void exec_body(Lower *lw, Call *c, const Stmts *body) {
    for (int i = 0; i < body->n && !c->returned; i++) exec(lw, c, body->at[i]);
}

// ---- options --------------------------------------------------------------------------------------------

// The value of an option, or NULL.  Options of other names are reported once, by check_options.
static const Expr *find_option(const Stmt *t, const char *name) {
    for (int i = 0; i < t->options.n; i++)
        if (strcmp(t->options.at[i].name, name) == 0) return t->options.at[i].value;
    return NULL;
}

static bool number_option(Lower *lw, Call *c, const Stmt *t, const char *name, double *out) {
    const Expr *e = find_option(t, name);
    if (!e) return true;
    Val v = eval(lw, c, e);
    const Poly *p;
    Num n;
    if (v.kind == V_ERROR) return false;
    if (poly_of_value(lw, &v, &p) && poly_value(lw, p, &n)) {
        *out = num_value(n);
        return true;
    }
    error_at(lw, e->at, "'%s' is a number, not %s", name, val_text(lw, &v));
    lower_notes(lw);
    return false;
}

static bool bool_option(Lower *lw, Call *c, const Stmt *t, const char *name, bool *out) {
    const Expr *e = find_option(t, name);
    if (!e) return true;
    Val v = eval(lw, c, e);
    if (v.kind == V_BOOL) {
        *out = v.b;
        return true;
    }
    if (v.kind != V_ERROR) {
        error_at(lw, e->at, "'%s' is true or false, not %s", name, val_text(lw, &v));
        lower_notes(lw);
    }
    return false;
}

static bool str_option(Lower *lw, Call *c, const Stmt *t, const char *name, const char **out) {
    const Expr *e = find_option(t, name);
    if (!e) return true;
    Val v = eval(lw, c, e);
    if (v.kind == V_STR || v.kind == V_NONE) {
        *out = v.kind == V_STR ? v.str : NULL;
        return true;
    }
    if (v.kind != V_ERROR) {
        error_at(lw, e->at, "'%s' is a string, not %s", name, val_text(lw, &v));
        lower_notes(lw);
    }
    return false;
}

// ---- parameters and states ------------------------------------------------------------------------------

typedef struct { const char *kind, *from; double a, b; } Init;

static bool plain_init(Lower *lw, const FnVal *f, Span at, Init *out) {
    int n = f->given.n;
    double a = n > 0 ? num_value(f->given.at[0].v.num) : 0, b = n > 1 ? num_value(f->given.at[1].v.num) : 0;
    bool none = strcmp(f->op, "zeros") == 0 || strcmp(f->op, "ones") == 0,
         two = strcmp(f->op, "trunc_normal") == 0;
    if (none ? n != 0 : n < 1 || n > 1 + two) {
        error_at(lw, at, "%s takes %s, %d stand here", f->op,
                 none  ? "no number"
                 : two ? "one or two numbers"
                       : "one number",
                 n);
        lower_notes(lw);
        return false;
    }
    *out = (Init){.kind = intern(f->op), .a = a, .b = b};
    if (strcmp(f->op, "ones") == 0) *out = (Init){.kind = intern("const"), .a = 1};
    if (two && n == 1) out->b = 2;                   // cut at two standard deviations
    return true;
}

static bool eval_init(Lower *lw, Call *c, const Stmt *t, const LType *shape, Init *out) {
    Val v = eval(lw, c, t->value);
    // One of the user's own, such as torch_init, says which one it is for this shape.
    for (int round = 0; round < 4 && v.kind == V_FN && !v.fn->init && v.fn->fn; round++) {
        Val list = val_list(lw, t->value->at, shape->ndim, NULL);
        for (int i = 0; i < shape->ndim; i++)
            list.list->at[i] = value_of_poly(lw, t->value->at, shape->dim[i]);
        OpArg arg = {intern("shape"), list, t->value->at};
        Results r = call_value(lw, c, v.fn, 1, &arg, t->value->at, NULL);
        v = r.n == 1 ? r.v[0] : val_none(t->value->at);
    }
    if (v.kind == V_FN && v.fn->init) return plain_init(lw, v.fn, t->value->at, out);
    if (has_error(&v)) return false;
    error_at(lw, t->value->at,
             "what a parameter starts with is a function such as normal(0.02) or zeros, not %s",
             val_text(lw, &v));
    lower_notes(lw);
    return false;
}

// The axis `split:` names in this declaration, -1: none.
static bool eval_split(Lower *lw, Call *c, const Stmt *t, const Decl *d, int64_t *out) {
    *out = -1;
    const Expr *e = find_option(t, "split");
    if (!e) return true;
    bool stands = false;
    if (e->kind == X_NAME)
        for (int k = 0; k < t->decls.n; k++)
            for (int i = 0; i < t->decls.at[k].shape.n; i++) {
                const Expr *x = t->decls.at[k].shape.at[i];
                if (x->kind != X_NAME || x->name != e->name) continue;
                stands = true;
                if (&t->decls.at[k] == d) *out = i;
            }
    if (stands) return true;
    Val v = eval(lw, c, e);
    int64_t n;
    if (v.kind == V_NONE) return true;
    if (v.kind == V_NUM && num_is_int(v.num, &n) && n >= 0 && n < d->shape.n) {
        *out = n;
        return true;
    }
    if (v.kind != V_ERROR) {
        error_at(lw, e->at, "'split' is a name of the shape or an axis of it, not %s", val_text(lw, &v));
        lower_notes(lw);
    }
    return false;
}

static Own *find_own(Instance *in, const char *name) {
    for (int i = 0; i < in->own.n; i++)
        if (in->own.at[i].name == name) return &in->own.at[i];
    return NULL;
}

static bool fixed_dims(Lower *lw, const Decl *d, const LType *shape, Dims *out) {
    for (int i = 0; i < shape->ndim; i++) {
        Num n;
        Dim dim;
        bool constant = poly_is_num(shape->dim[i], &n) && poly_dim(lw, shape->dim[i], &dim);
        if (!constant || dim.n < 1) {
            error_at(lw, d->at, "'%s' has a shape that is not fixed: axis %d is %s", d->name, i,
                     poly_text(lw, shape->dim[i]));
            lower_notes(lw);
            return false;
        }
        out->at[out->n++] = dim;
    }
    return true;
}

static DType dtype_of(const char *element) {
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (element && strcmp(dtype_name((DType)t), element) == 0) return (DType)t;
    return F32;
}

// Parameters are stored in f32; what they say of their type, as `param w: f32[D]` or `dtype: "f32"`, must agree.
static bool is_stored_f32(Lower *lw, Call *c, const Stmt *t, const Decl *d) {
    const Expr *e = find_option(t, "dtype");
    const char *given = d->element && dtype_of(d->element) != F32 ? d->element : NULL, *option = NULL;
    if (!str_option(lw, c, t, "dtype", &option)) return false;
    if (!given && (!option || strcmp(option, "f32") == 0)) return true;
    error_at(lw, given ? d->at : e->at,
             "parameter '%s' is stored in f32, not %s; train.dtype chooses what contractions compute in", d->name,
             given ? given : option);
    lower_notes(lw);
    return false;
}

// All parameters of a route's experts lie on the same ranks: attribute `slots`, where the parameter's path doesn't say it.
static Name slots_of(Lower *lw, const Call *c, const char *param) {
    const char *dot = strrchr(param, '.');
    const char *within = dot ? arena_strndup(lw->arena, param, (size_t)(dot - param)) : "";
    while (c && !c->per_expert) c = c->caller;
    if (!lw->expert->slots) lw->expert->slots = c && c->instance ? c->instance->path : within;
    return strcmp(lw->expert->slots, within) ? intern(lw->expert->slots) : NULL;
}

static Node *make_own(Lower *lw, Call *c, const Stmt *t, const Decl *d, Instance *in, const LType *shape) {
    bool is_state = t->kind == S_STATE;
    Attrs attr = {.name = instance_path(lw, c, d->name), .dtype = is_state ? shape->dtype : F32};
    if (lw->expert) attr.dims.at[attr.dims.n++] = dim_n(lw->expert->E);
    if (!fixed_dims(lw, d, shape, &attr.dims)) return NULL;
    Init init;
    if (!eval_init(lw, c, t, shape, &init)) return NULL;
    lw->b.at = d->at;
    attr.init = init.kind;
    attr.init_a = init.a;
    if (is_state) return build_node(&lw->b, OP_STATE, INS(NULL), &attr);

    bool decay = shape->ndim >= 2, frozen = false;
    const char *group = lw->expert ? "expert" : "dense";
    if (!is_stored_f32(lw, c, t, d)) return NULL;
    attr.init_b = init.b;
    attr.lr = 1;
    if (!number_option(lw, c, t, "lr", &attr.lr) || !bool_option(lw, c, t, "decay", &decay) ||
        !bool_option(lw, c, t, "frozen", &frozen) || !str_option(lw, c, t, "group", &group) ||
        !eval_split(lw, c, t, d, &attr.split))
        return NULL;
    attr.decay = decay;
    attr.frozen = frozen || in->frozen || is_frozen(c);
    attr.group = intern(group ? group : "dense");
    if (attr.split >= 0 && lw->expert) attr.split++;
    if (lw->expert) attr.slots = slots_of(lw, c, attr.name);
    if (in->copy_from) {
        attr.init_from = intern(arena_printf(lw->arena, "%s.%s", in->copy_from, d->name));
    }
    return build_node(&lw->b, OP_PARAM, INS(NULL), &attr);
}

static Val declare(Lower *lw, Call *c, const Stmt *t, const Decl *d) {
    LType shape = {.dtype = t->kind == S_STATE ? dtype_of(d->element) : F32};
    if (!eval_shape(lw, c, &d->shape, &shape)) return val_error(d->at);
    Instance *in = instance_of(lw, c);
    if (!in) return val_error(d->at);
    Own *own = find_own(in, d->name);
    if (own && own->visit == in->visit) {
        error_at(lw, d->at, "'%s' is declared twice in this instance", d->name);
        diag_note(lw->diag, own->at, "the first one");
        lower_notes(lw);
        return val_error(d->at);
    }
    if (own) {                                            // another call of a shared layer
        bool same = own->t->type.ndim == shape.ndim;
        for (int i = 0; same && i < shape.ndim; i++) same = own->t->type.dim[i] == shape.dim[i];
        if (!same) {
            error_at(lw, d->at, "this layer is shared, but '%s' would be %s here and was %s before", d->name,
                     ltype_text(lw, &shape), ltype_text(lw, &own->t->type));
            lower_notes(lw);
            return val_error(d->at);
        }
        own->visit = in->visit;
        return (Val){.kind = V_TENSOR, .at = d->at, .t = own->t};
    }
    Node *n = make_own(lw, c, t, d, in, &shape);
    if (!n) return val_error(d->at);
    Val v = val_tensor(lw, d->at, node_out(n, 0), shape, false);
    v.t->per_expert = lw->expert != NULL;
    Own fresh = {d->name, v.t, in->visit, d->at};
    vec_push(lw->arena, &in->own, fresh);
    Made made = {n, lw->expert ? lw->expert->E : 0,
                 lw->expert ? (lw->expert->by_expert ? 1 : lw->expert->K) : 0, t->kind == S_STATE};
    vec_push(lw->arena, &interp_of(lw)->made, made);
    return v;
}

static void exec_decls(Lower *lw, Call *c, const Stmt *t) {
    if (!lw->g) {
        error_at(lw, t->at, "a function with parameters cannot be called here");
        return;
    }
    for (int i = 0; i < t->decls.n; i++)
        set_var(lw, c, t->decls.at[i].name, declare(lw, c, t, &t->decls.at[i]));
}

static void exec_update(Lower *lw, Call *c, const Stmt *t) {
    if (!lw->training || is_frozen(c) || lw->inference) return;
    Val v = eval(lw, c, t->value);
    if (v.kind == V_ERROR || !c->instance) {
        if (v.kind != V_ERROR) error_at(lw, t->name_at, "'%s' is no state of this instance", t->name);
        return;
    }
    Own *own = find_own(c->instance, t->name);
    if (!own || own->t->v->node->op != OP_STATE) {
        error_at(lw, t->name_at, "'%s' is no state of this instance", t->name);
        if (own) diag_note(lw->diag, own->at, "it is a parameter");
        lower_notes(lw);
        return;
    }
    if (v.kind == V_NUM) {
        error_at(lw, t->value->at, "the new value of '%s' is a tensor %s, not a number", t->name,
                 ltype_text(lw, &own->t->type));
        lower_notes(lw);
        return;
    }
    if (v.kind != V_TENSOR) {
        if (v.kind == V_FN) fn_message(lw, &v, "'update' needs a tensor");
        else
            error_at(lw, t->value->at, "the new value of '%s' is a tensor, not %s", t->name,
                     val_text(lw, &v));
        return;
    }
    bool same = v.t->type.ndim == own->t->type.ndim;
    for (int i = 0; same && i < v.t->type.ndim; i++) same = v.t->type.dim[i] == own->t->type.dim[i];
    if (!same) {
        error_at(lw, t->value->at, "'%s' is %s, its new value is %s", t->name, ltype_text(lw, &own->t->type),
                 ltype_text(lw, &v.t->type));
        diag_note(lw->diag, own->at, "declared here");
        lower_notes(lw);
        return;
    }
    if (v.t->leafy || v.t->per_expert != own->t->per_expert) {
        error_at(lw, t->value->at,
                 "this value is of a single micro-batch: it enters an update through step_sum, step_mean or "
                 "step_max");
        lower_notes(lw);
        return;
    }
    lw->b.at = t->at;
    Value *x = build_cast(&lw->b, v.t->v, own->t->type.dtype);
    if (x) build(&lw->b, OP_UPDATE, INS(x), .name = own->t->v->node->attr.name);
}

// ---- losses, metrics, channels --------------------------------------------------------------------------

static const char *path_of(Lower *lw, const char *name) {
    return lw->b.path ? intern(arena_printf(lw->arena, "%s.%s", lw->b.path, name)) : name;
}

// One number (per leaf) as f32, or NULL after an error.
static Value *scalar(Lower *lw, const Stmt *t, const Val *v, const char *what) {
    lw->b.at = t->at;
    if (v->kind == V_NUM) return build_const(&lw->b, num_value(v->num), F32);
    if (v->kind == V_ERROR) return NULL;
    if (v->kind == V_FN) {
        fn_message(lw, v, arena_printf(lw->arena, "'%s' needs a number", what));
        return NULL;
    }
    if (v->kind != V_TENSOR || v->t->type.ndim != 0 || v->t->type.rows) {
        error_at(lw, t->value->at, "%s '%s' is one number, this is %s", what, t->name, val_text(lw, v));
        if (v->kind == V_TENSOR) diag_help(lw->diag, "mean(x, axis: \"all\") makes one number of a tensor");
        lower_notes(lw);
        return NULL;
    }
    if (!lower_needs_no_step_sum(lw, t->value->at, what, v->t->v)) return NULL;
    return build_cast(&lw->b, v->t->v, F32);
}

static bool until_step(Lower *lw, Call *c, const Stmt *t, double *out) {
    const Expr *e = find_option(t, "until");
    *out = 0;
    if (!e) return true;
    Val v = eval(lw, c, e);
    if (v.kind == V_NONE) return true;
    if (v.kind == V_ERROR) return false;
    if (v.kind == V_QUANTITY) {
        const Settings *s = program_settings(interp_of(lw)->program);
        double n = num_value(v.quantity.num);
        if (!s) return false;
        double per_step = strcmp(v.quantity.unit, "step") == 0     ? 1
                          : strcmp(v.quantity.unit, "sample") == 0 ? (double)s->train.batch
                          : strcmp(v.quantity.unit, "token") == 0
                              ? (double)s->train.batch * (double)s->train.sequence
                              : 0;
        if (per_step > 0) {
            *out = n / per_step;
            return true;
        }
    }
    error_at(lw, e->at, "'until' is a number of steps, tokens or samples, not %s", val_text(lw, &v));
    lower_notes(lw);
    return false;
}

static bool not_in_expert(Lower *lw, const Stmt *t, const char *what) {
    if (!lw->expert) return true;
    error_at(lw, t->at, "inside an expert there is no %s: a row may not depend on its company", what);
    lower_notes(lw);
    return false;
}

// Generation, frozen models and evaluation without labels have no losses and metrics.
static bool losses_vanish(const Lower *lw, const Call *c) {
    const ElabOpts *o = interp_of(lw)->opts;
    return lw->inference || is_frozen(c) || (o->kind == ELAB_EVAL && !o->labels);
}

static void exec_loss(Lower *lw, Call *c, const Stmt *t) {
    if (losses_vanish(lw, c) || !not_in_expert(lw, t, "loss")) return;
    Val v = eval(lw, c, t->value);
    double weight = 1, until;
    if (!number_option(lw, c, t, "weight", &weight) || !until_step(lw, c, t, &until)) return;
    Value *x = scalar(lw, t, &v, "loss");
    if (x) build(&lw->b, OP_LOSS, INS(x), .name = path_of(lw, t->name), .weight = weight, .until = until);
}

static void exec_metric(Lower *lw, Call *c, const Stmt *t) {
    if (losses_vanish(lw, c) || !not_in_expert(lw, t, "metric")) return;
    Val v = eval(lw, c, t->value);
    Value *x = scalar(lw, t, &v, "metric");
    if (x) build(&lw->b, OP_METRIC, INS(x), .name = path_of(lw, t->name));
}

static void exec_emit(Lower *lw, Call *c, const Stmt *t) {
    if (is_frozen(c) || !not_in_expert(lw, t, "emit")) return;
    Val v = eval(lw, c, t->value);
    if (v.kind == V_ERROR) return;
    if (v.kind != V_TENSOR || v.t->type.rows) {
        error_at(lw, t->value->at, "a channel takes tensors, this is %s", val_text(lw, &v));
        lower_notes(lw);
        return;
    }
    Emission e = {.name = t->name, .path = lw->b.path, .t = v.t, .at = v.at};
    vec_push(lw->arena, &interp_of(lw)->emits, e);
}

static void exec_layer(Lower *lw, Call *c, const Stmt *t) {
    Val v = eval(lw, c, t->value);
    Layer *layer = arena_new(lw->arena, Layer);
    *layer = (Layer){.name = t->name, .at = t->at, .scope = c};
    if (v.kind == V_ERROR || !bool_option(lw, c, t, "frozen", &layer->frozen) ||
        !str_option(lw, c, t, "weights", &layer->weights)) {
        set_var(lw, c, t->name, val_error(t->at));
        return;
    }
    if (v.kind != V_FN || !v.fn->fn) {
        error_at(lw, t->value->at, "a layer is a function that lacks its tensors, this is %s",
                 val_text(lw, &v));
        lower_notes(lw);
        set_var(lw, c, t->name, val_error(t->at));
        return;
    }
    FnVal *f = arena_new(lw->arena, FnVal);
    *f = *v.fn;
    f->layer = layer;
    vec_push(lw->arena, &interp_of(lw)->layers, layer);
    set_var(lw, c, t->name, (Val){.kind = V_FN, .at = t->at, .fn = f});
}

// ---- assignment -----------------------------------------------------------------------------------------

static void check_shape(Lower *lw, Call *c, const Expr *left, const Val *v) {
    if (v->kind == V_ERROR) return;
    LType want = {0};
    Exprs shape = left->items;
    if (!eval_shape(lw, c, &shape, &want)) return;
    bool same = v->kind == V_TENSOR && v->t->type.ndim == want.ndim;
    for (int i = 0; same && i < want.ndim; i++) same = v->t->type.dim[i] == want.dim[i];
    if (same) return;
    if (v->kind == V_TENSOR) want.dtype = v->t->type.dtype;
    error_at(lw, left->at, "'%s' is written as %s, the value is %s", left->a->name,
             strchr(ltype_text(lw, &want), '['), val_text(lw, v));
    lower_notes(lw);
}

static void assign(Lower *lw, Call *c, const Expr *left, Val v) {
    if (left->kind == X_NAME) {
        set_var(lw, c, left->name, v);
    } else if (left->kind == X_INDEX && left->a->kind == X_NAME) {
        check_shape(lw, c, left, &v);
        set_var(lw, c, left->a->name, v);
    } else {
        error_at(lw, left->at, "only a name, or a name with a shape, can be assigned to");
    }
}

static const char *giver(Lower *lw, const Expr *e) {
    while (e->kind == X_AS) e = e->a;
    return e->kind == X_CALL ? ast_text(lw->arena, lw->diag, e->a->at) : "this";
}

static void exec_assign(Lower *lw, Call *c, const Stmt *t) {
    int n = t->left.n;
    if (t->right.n > 1) {
        if (t->right.n != n) {
            error_at(lw, t->at, "%d values, %d %s on the left", t->right.n, n,
                     n == 1 ? "name stands" : "names stand");
            return;
        }
        Val v[16];
        if (n > 16) {
            error_at(lw, t->at, "more than 16 names on the left");
            return;
        }
        for (int i = 0; i < n; i++) v[i] = eval(lw, c, t->right.at[i]);
        for (int i = 0; i < n; i++) assign(lw, c, t->left.at[i], v[i]);
        return;
    }
    const Expr *right = t->right.at[0];
    Results r = eval_all(lw, c, right);
    bool error = r.n >= 1 && r.v[0].kind == V_ERROR;
    if (r.n == n || error) {
        for (int i = 0; i < n; i++) assign(lw, c, t->left.at[i], error ? val_error(right->at) : r.v[i]);
        return;
    }
    if (r.n == 1 && r.v[0].kind == V_LIST && r.v[0].list->n == n) {
        for (int i = 0; i < n; i++) assign(lw, c, t->left.at[i], r.v[0].list->at[i]);
        return;
    }
    int given = r.n == 1 && r.v[0].kind == V_LIST ? r.v[0].list->n : r.n;
    error_at(lw, right->at, "%s gives %d value%s, %d %s on the left", giver(lw, right), given,
             given == 1 ? "" : "s", n, n == 1 ? "name stands" : "names stand");
    lower_notes(lw);
    for (int i = 0; i < n; i++) assign(lw, c, t->left.at[i], val_error(right->at));
}

static void exec_update_by(Lower *lw, Call *c, const Stmt *t) {
    const Expr *left = t->left.at[0];
    if (t->left.n != 1 || left->kind != X_NAME || !find_var(c, left->name)) {
        error_at(lw, left->at, "'%s=' changes one variable that has a value", t->name);
        return;
    }
    Val a = eval(lw, c, left), b = eval(lw, c, t->right.at[0]);
    const char *needs = arena_printf(lw->arena, "'%s=' needs a tensor", t->name);
    Val v = a.kind == V_ERROR || b.kind == V_ERROR ? val_error(t->at)
            : b.kind == V_FN                       ? fn_message(lw, &b, needs)
                                                   : binary_values(lw, t->at, t->name, &a, &b);
    set_var(lw, c, left->name, v);
}

// ---- control --------------------------------------------------------------------------------------------

static void exec_for(Lower *lw, Call *c, const Stmt *t) {
    Val over = eval(lw, c, t->value);
    if (has_error(&over)) return;
    if (over.kind != V_LIST) {
        error_at(lw, t->value->at, "'for' runs over a list or a range, this is %s", val_text(lw, &over));
        lower_notes(lw);
        return;
    }
    const char *outer = c->loop_var;
    c->loops++;
    c->loop_var = t->name;
    for (int i = 0; i < over.list->n && !c->returned; i++) {
        set_var(lw, c, t->name, over.list->at[i]);
        exec_body(lw, c, &t->body);
    }
    c->loops--;
    c->loop_var = outer;
}

static void exec_assert(Lower *lw, Call *c, const Stmt *t) {
    Interp *in = interp_of(lw);
    bool holds = true, outer = in->may_wait;
    in->may_wait = true;
    in->waited = false;
    bool known = eval_bool(lw, c, t->value, &holds);
    in->may_wait = outer;
    if (!known || holds || in->waited) return;
    error_at(lw, t->value->at, "%s", t->name);
    lower_notes(lw);
}

static void exec_return(Lower *lw, Call *c, const Stmt *t) {
    c->returned = true;
    if (t->right.n == 1) {
        c->results = eval_all(lw, c, t->right.at[0]);
        return;
    }
    if (t->right.n > MAX_RESULTS) {
        error_at(lw, t->at, "a function gives at most %d values", MAX_RESULTS);
        return;
    }
    c->results.n = t->right.n;
    for (int i = 0; i < t->right.n; i++) c->results.v[i] = eval(lw, c, t->right.at[i]);
}

static void exec_expr(Lower *lw, Call *c, const Stmt *t) {
    for (int i = 0; i < t->right.n; i++) {
        Results r = eval_all(lw, c, t->right.at[i]);
        for (int k = 0; k < r.n; k++)
            if (r.v[k].kind == V_FN) fn_message(lw, &r.v[k], "nothing uses it");
    }
}

// After an error in a condition nobody knows what the branches would have assigned.
static void forget(Lower *lw, Call *c, const Stmts *body) {
    for (int i = 0; i < body->n; i++) {
        const Stmt *t = body->at[i];
        for (int k = 0; k < t->left.n; k++)
            if (t->left.at[k]->kind == X_NAME) set_var(lw, c, t->left.at[k]->name, val_error(t->at));
        for (int k = 0; k < t->decls.n; k++) set_var(lw, c, t->decls.at[k].name, val_error(t->at));
        forget(lw, c, &t->body);
        forget(lw, c, &t->orelse);
    }
}

static void exec(Lower *lw, Call *c, const Stmt *t) {
    if (t->for_losses && lw->g && losses_vanish(lw, c)) return;
    switch (t->kind) {
    case S_ASSIGN: exec_assign(lw, c, t); break;
    case S_UPDATE_BY: exec_update_by(lw, c, t); break;
    case S_EXPR: exec_expr(lw, c, t); break;
    case S_PARAM: case S_STATE: exec_decls(lw, c, t); break;
    case S_UPDATE: exec_update(lw, c, t); break;
    case S_LOSS: exec_loss(lw, c, t); break;
    case S_METRIC: exec_metric(lw, c, t); break;
    case S_EMIT: exec_emit(lw, c, t); break;
    case S_LAYER: exec_layer(lw, c, t); break;
    case S_ASSERT: exec_assert(lw, c, t); break;
    case S_RETURN: exec_return(lw, c, t); break;
    case S_FOR: exec_for(lw, c, t); break;
    case S_IF: {
        bool chosen;
        if (eval_bool(lw, c, t->value, &chosen)) {
            exec_body(lw, c, chosen ? &t->body : &t->orelse);
        } else {
            forget(lw, c, &t->body);
            forget(lw, c, &t->orelse);
        }
        break;
    }
    }
}
