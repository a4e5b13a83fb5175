// A whole elaboration: the model's text run once for one graph.
#include <string.h>

#include "frontend/interp.h"

Lower *lower_new(Program *p, Arena *a, Graph *g, const ElabOpts *opts) {
    Lower *lw = arena_new(a, Lower);
    Interp *in = arena_new(a, Interp);
    *lw = (Lower){.arena = a,
                  .diag = p->diag,
                  .g = g,
                  .interp = in,
                  .float_type = F32,
                  .n_leaves = g ? graph_lanes(g) : opts->leaves,
                  .n_waves = opts->waves > 0 ? opts->waves : 1,
                  .training = opts->kind == ELAB_TRAIN,
                  .inference = opts->kind == ELAB_RUN};
    *in = (Interp){.lw = lw, .program = p, .opts = opts};
    in->polys = poly_table_new(a);
    if (g) {
        lw->b = builder_end(g, p->diag);
        const Settings *s = program_settings(p);
        lw->random_eval = s && s->train.random_eval;
        lw->dropless = lw->inference && (!s || s->generate.dropless);
    }
    return lw;
}

// ---- inputs ---------------------------------------------------------------------------------------------

static DType element_of(const TypeExpr *t) {
    for (int k = 0; t->element && k < DTYPE_COUNT; k++)
        if (strcmp(dtype_name((DType)k), t->element) == 0) return (DType)k;
    return F32;
}

// What the plan fixes for a name in an input's shape: B is the sequences of a leaf, any other the sequence
// length.
static void bind_size(Lower *lw, const char *name) {
    const ElabOpts *o = interp_of(lw)->opts;
    int64_t other = strcmp(name, "S") != 0 && o->source ? o->source : o->S;
    poly_bind(lw, name, dim_n(strcmp(name, "B") == 0 ? (o->kind == ELAB_RUN ? 1 : o->B) : other));
}

static Val make_input(Lower *lw, Call *c, const char *name, Span at, DType dtype, const Exprs *shape) {
    LType type = {.dtype = dtype};
    for (int i = 0; i < shape->n; i++) {
        const Expr *x = shape->at[i];
        if (x->kind != X_NAME) continue;
        if (!find_var(c, x->name)) set_var(lw, c, x->name, value_of_poly(lw, x->at, poly_sym(lw, x->name)));
        const Val *size = find_var(c, x->name);            // `_` has none
        if (size && size->kind == V_POLY) bind_size(lw, x->name);
    }
    if (!eval_shape(lw, c, shape, &type)) return val_error(at);
    if (strcmp(name, "tokens") == 0 && type.ndim == 2) {
        lw->sequence = type.dim[1];
        if (lw->inference && shape->at[1]->kind == X_NAME) {
            Sym *s = graph_find_sym(lw->g, "S"), *context = graph_find_sym(lw->g, "C");
            poly_bind(lw, shape->at[1]->name, (Dim){1, s});
            poly_bind(lw, "S + past", (Dim){1, context});
        }
    }
    Dims dims = {.n = 0};
    if (lw->leaf) dims.at[dims.n++] = (Dim){1, lw->leaf};
    for (int i = 0; i < type.ndim; i++) {
        if (!poly_dim(lw, type.dim[i], &dims.at[dims.n++])) {
            error_at(lw, at, "input '%s': its axis %d, %s, has no size", name, i, poly_text(lw, type.dim[i]));
            return val_error(at);
        }
    }
    lw->b.at = at;
    Value *v = make(&lw->b, OP_INPUT, INS(NULL), .name = intern(name), .dtype = dtype, .dims = dims);
    return v ? val_tensor(lw, at, v, type, lw->leaf != NULL) : val_error(at);
}

static bool input_exists(const Lower *lw, const Param *p) {
    const Interp *in = interp_of(lw);
    if (strcmp(p->name, "labels") == 0 &&
        (lw->inference || (in->opts->kind == ELAB_EVAL && !in->opts->labels)))
        return false;
    if (!p->fallback) return true;
    const Settings *s = program_settings(in->program);
    return strcmp(p->name, "documents") == 0 && s && s->data.documents && !lw->inference;
}

static void bind_inputs(Lower *lw, Call *c) {
    for (int i = 0; i < c->fn->params.n; i++) {
        const Param *p = &c->fn->params.at[i];
        if (p->type.kind != TY_TENSOR) continue;
        Val v = input_exists(lw, p) ? make_input(lw, c, p->name, p->at, element_of(&p->type), &p->type.shape)
                                    : val_none(p->at);
        set_var(lw, c, p->name, v);
    }
}

// ---- results --------------------------------------------------------------------------------------------

static void make_return(Lower *lw, const char *name, Value *v, Span at) {
    lw->b.at = at;
    if (v) build(&lw->b, OP_RETURN, INS(v), .name = intern(name));
}

// What generation reads: of each sequence of a run, the row that its next token follows from.
static Value *last_rows(Lower *lw, Value *logits, Span at) {
    Sym *count = graph_find_sym(lw->g, "R");
    const Type *t = logits ? &logits->type : NULL;
    if (!count || !t || t->ndim != 3 || t->dim[1].sym != graph_find_sym(lw->g, "S")) return logits;
    lw->b.at = at;
    Value *last = make(&lw->b, OP_INPUT, INS(NULL), .name = intern("last"), .dtype = I32, .dims = {2, {dim_n(1), {1, count}}});
    return make(&lw->b, OP_GATHER_ROWS, INS(logits, last), 0);
}

static bool wants(const ElabOpts *o, const char *channel) {
    for (int i = 0; o->returns && o->returns[i]; i++)
        if (strcmp(o->returns[i], channel) == 0) return true;
    return false;
}

static void return_results(Lower *lw, const Call *c) {
    Interp *in = interp_of(lw);
    const ElabOpts *o = in->opts;
    lw->b.path = NULL;
    const Val *logits = c->results.n ? &c->results.v[0] : NULL;
    if (logits && logits->kind == V_FN) {
        fn_message(lw, logits, "a model returns tensors");
    } else if (logits && logits->kind == V_TENSOR && logits->t->type.rows) {
        error_at(lw, logits->at, "a model returns tokens, this is rows grouped by expert, %s",
                 ltype_text(lw, &logits->t->type));
        diag_help(lw->diag, "combine(rows, r) brings them back to their tokens");
    } else if (!logits || (logits->kind != V_TENSOR && logits->kind != V_ERROR)) {
        error_at(lw, c->fn->name_at, "model '%s' returns no tensor", c->fn->name);
    } else if (logits->kind == V_TENSOR && (o->kind == ELAB_RUN || wants(o, "logits"))) {
        make_return(lw, "logits", last_rows(lw, logits->t->v, logits->at), logits->at);
    }
    for (int i = 0; i < in->emits.n; i++) {
        const Emission *e = &in->emits.at[i];
        if (!wants(o, e->name)) continue;
        int number = 0;
        for (int k = 0; k < i; k++) number += in->emits.at[k].name == e->name;
        lw->b.path = e->path;
        make_return(lw, arena_printf(lw->arena, "%s.%d", e->name, number), e->t->v, e->at);
    }
}

static bool has_loss(const Graph *g) {
    for_each_node(g, n)
        if (n->op == OP_LOSS) return true;
    return false;
}

// A copied parameter starts as its source does.  Where nobody calls the source, so that it has no parameters,
// the copy keeps its own initialiser but draws as the source would (init_from).
static void finish_copies(Lower *lw) {
    Interp *in = interp_of(lw);
    for (int i = 0; i < in->made.n; i++) {
        Attrs *attr = &in->made.at[i].node->attr;
        for (int k = 0; attr->init_from && k < in->made.n; k++) {
            if (in->made.at[k].node->attr.name != attr->init_from) continue;
            attr->init = intern("copy");
            attr->init_a = attr->init_b = 0;
            break;
        }
    }
}

static void keep_what_was_found(Lower *lw, Program *p) {
    Interp *in = interp_of(lw);
    p->frozen.n = p->emits.n = p->made.n = 0;
    for (int i = 0; i < in->layers.n; i++) {
        const Layer *l = in->layers.at[i];
        if (!l->weights || !l->instance) continue;
        FrozenModel f = {l->instance->path, l->weights, l->at};
        vec_push(p->arena, &p->frozen, f);
    }
    for (int i = 0; i < in->emits.n; i++) vec_push(p->arena, &p->emits, in->emits.at[i]);
    for (int i = 0; i < in->made.n; i++) vec_push(p->arena, &p->made, in->made.at[i]);
}

// ---- graphs ---------------------------------------------------------------------------------------------

static Graph *new_graph(Arena *a, const ElabOpts *o) {
    static const char *const names[] = {[ELAB_TRAIN] = "pass", [ELAB_EVAL] = "eval", [ELAB_RUN] = "run"};
    Graph *g = graph_new(a, names[o->kind]);
    if (rt_mesh_ranks(o->mesh) > 1) g->mesh = o->mesh;
    if (o->kind == ELAB_RUN) {
        graph_add_sym(g, "S", SYM_PLAIN, o->S, 0, 0);
        graph_add_sym(g, "C", SYM_PLAIN, o->context, 0, 0);
        if (o->batch) graph_add_sym(g, "R", SYM_PLAIN, o->batch, 0, 0);
    } else {
        g->leaf = graph_add_sym(g, "L", SYM_LEAF, o->leaves, 0, 0);
    }
    return g;
}

// A call that nobody made: the model, or the scope of a function looked at alone.
static Call *root_call(Lower *lw, const Fn *fn, Span at) {
    Call *c = call_new(lw, NULL, fn, at);
    c->instance = arena_new(lw->arena, Instance);
    c->instance->path = "";
    c->instance->visit = 1;
    return c;
}

static Graph *elaborate(Program *p, Arena *a, const ElabOpts *opts, bool needs_loss) {
    if (!p->model) {
        diag_error(p->diag, (Span){0}, "%s has no model", p->main->path);
        return NULL;
    }
    int errors = diag_n_errors(p->diag);
    if (!program_settings(p)) return NULL;
    Graph *g = new_graph(a, opts);
    Lower *lw = lower_new(p, a, g, opts);
    lw->leaf = g->leaf;
    if (!lw->inference) poly_bind(lw, "past", dim_n(0));
    Call *c = root_call(lw, p->model, p->model->at);
    interp_of(lw)->call = c;
    lw->call = c;
    if (bind_hyper(lw, c, p)) {
        bind_inputs(lw, c);
        run_body(lw, c);
        return_results(lw, c);
        finish_copies(lw);
        bool quiet = diag_n_errors(p->diag) == errors;
        if (quiet && needs_loss && !has_loss(g))
            error_at(lw, p->model->name_at, "model '%s' has no loss to train", p->model->name);
    }
    keep_what_was_found(lw, p);
    return diag_n_errors(p->diag) == errors && !p->names_wrong ? g : NULL;
}

Graph *program_elaborate(Program *p, Arena *a, const ElabOpts *opts) {
    return elaborate(p, a, opts, opts->kind == ELAB_TRAIN);
}

ElabOpts program_train_opts(Program *p) {
    const Settings *s = program_settings(p);
    if (!s) return (ElabOpts){.kind = ELAB_TRAIN, .leaves = 1, .B = 1, .S = 1, .waves = 1, .labels = true};
    return (ElabOpts){.kind = ELAB_TRAIN,
                      .leaves = s->train.lanes,
                      .B = s->train.micro_batch,
                      .S = s->train.sequence,
                      .waves = s->train.waves,
                      .labels = true};
}

// ---- one function alone ---------------------------------------------------------------------------------

static const Param *param_for(const Fn *f, const Expr *call, int arg) {
    const char *name = call->args.at[arg].name;
    for (int i = 0; i < f->params.n; i++)
        if (name ? f->params.at[i].name == name : i == arg) return &f->params.at[i];
    return NULL;
}

// x[B, S, 64] as an argument is an input of that shape.
static Expr *with_inputs(Lower *lw, Call *c, const Fn *f, const Expr *call) {
    Expr *e = arena_new(lw->arena, Expr);
    *e = *call;
    e->args = (Args){0};
    for (int i = 0; i < call->args.n; i++) {
        Arg a = call->args.at[i];
        if (a.value->kind == X_INDEX && a.value->a->kind == X_NAME) {
            const Param *p = param_for(f, call, i);
            const char *name = a.value->a->name;
            set_var(lw, c, name,
                    make_input(lw, c, name, a.at, p ? element_of(&p->type) : F32, &a.value->items));
            a.value = a.value->a;
        }
        vec_push(lw->arena, &e->args, a);
    }
    return e;
}

Graph *program_elaborate_call(Program *p, Arena *a, const char *call, const ElabOpts *opts) {
    int errors = diag_n_errors(p->diag);
    const char *text = arena_strdup(p->arena, call);
    uint32_t file = diag_add_file(p->diag, "<function>", text, strlen(text));
    const Expr *e = ast_parse_expr(p->arena, p->diag, file);
    if (!e) return NULL;
    const Fn *other,
        *f = e->kind == X_CALL && e->a->kind == X_NAME ? find_fn(p->main, e->a->name, &other) : NULL;
    if (!f) {
        diag_error(p->diag, e->at,
                   "a call of a function of this file or its imports is needed: swiglu(x[B, S, 64], H: 96)");
        return NULL;
    }
    Graph *g = new_graph(a, opts);
    Lower *lw = lower_new(p, a, g, opts);
    lw->leaf = g->leaf;
    if (!lw->inference) poly_bind(lw, "past", dim_n(0));
    Call *c = root_call(lw, NULL, e->at);
    interp_of(lw)->call = c;
    lw->call = c;
    Results r = eval_all(lw, c, with_inputs(lw, c, f, e));
    for (int i = 0; i < r.n; i++) {
        if (r.v[i].kind == V_TENSOR) make_return(lw, arena_printf(a, "result.%d", i), r.v[i].t->v, e->at);
        else if (r.v[i].kind == V_FN) fn_message(lw, &r.v[i], "nothing is computed");
    }
    finish_copies(lw);
    keep_what_was_found(lw, p);
    return diag_n_errors(p->diag) == errors ? g : NULL;
}

// ---- the list of parameters -----------------------------------------------------------------------------

static ParamInfo describe(const Made *m) {
    const Attrs *attr = &m->node->attr;
    ParamInfo i = {.path = attr->name, .group = attr->group, .node = m->node, .dtype = (DType)attr->dtype,
                   .ndim = attr->dims.n, .elements = 1, .experts = m->experts, .k = m->k, .state = m->state,
                   .frozen = attr->frozen != 0};
    for (int k = 0; k < i.ndim; k++) {
        i.dim[k] = attr->dims.at[k].n;
        i.elements *= i.dim[k];
    }
    i.active = i.experts ? i.elements / i.experts * (i.k < i.experts ? i.k : i.experts) : i.elements;
    return i;
}

const ParamInfo *program_params(Program *p, int *n) {
    *n = 0;
    if (!p->params.n) {
        ElabOpts opts = program_train_opts(p);
        if (!elaborate(p, p->arena, &opts, false)) return NULL;
        for (int i = 0; i < p->made.n; i++) {
            ParamInfo info = describe(&p->made.at[i]);
            vec_push(p->arena, &p->params, info);
        }
    }
    *n = p->params.n;
    static const ParamInfo none;
    return p->params.n ? p->params.at : &none;
}
