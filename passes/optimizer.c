// Makes the second program of a step, @update, and moves the text's own updates there.
//
//   @pass                                     @update
//     accumulate %dw {name = "w"}       =>      norm of all (state "grad/w") * grad_scale, clip, ..
//     update %b1 {name = "bias"}                %g = mul (state "grad/w"), grad_scale * clip
//                                               update .. {name = "w"}   update .. {name = "adam.m/w"}   ..
//     accumulate %c {name = "sum/0"}            update f(state "grad/sum/0") {name = "bias"}
//
// What the pass accumulates under NAME is read here as the state grad/NAME: the sum over the leaves of all
// passes of the step.  Inputs the host writes before @update, all f32[]:
//   lr            the schedule's rate of this step
//   grad_scale    1 / leaves of the step; average = "token": 1 / labels of the step
//   bias1 bias2   1 - beta1^step, 1 - beta2^step
// Metrics: grad_norm (before clipping), finite (1 or 0).
//
// A step whose norm isn't finite changes no parameter and no moment: every new value is select(finite, new,
// old).
//
// An update of the text (`update bias = bias + u*sign(..)`) may read values of the pass, but only sums over
// all leaves: its expression is cut where the leaf axis ends.  The cut values are accumulated in the pass,
// the rest of the expression is copied here.
#include <float.h>
#include <string.h>
#include "passes/util.h"

typedef struct {
    Graph   *pass, *update;
    PassCtx *cx;
    Builder  b;               // at the end of @update
    Value   *lr, *bias1, *bias2, *scale, *finite, *one;
    int      n_sums;
} Optimizer;

static Value *scalar_input(Optimizer *o, const char *name) {
    return make(&o->b, OP_INPUT, INS(NULL), .name = intern(name), .dtype = F32);
}

static Value *state(Optimizer *o, const char *prefix, const Node *param) {
    const char *name = intern(arena_printf(o->cx->scratch, "%s/%s", prefix, param->attr.name));
    return make(&o->b, OP_STATE, INS(NULL), .name = name, .dtype = F32, .dims = dims_of(&param->out[0].type),
                .init = intern("zeros"));
}

static Value *add(Optimizer *o, Value *x, Value *y) { return build_binary(&o->b, OP_ADD, x, y); }
static Value *sub(Optimizer *o, Value *x, Value *y) { return build_binary(&o->b, OP_SUB, x, y); }
static Value *mul(Optimizer *o, Value *x, Value *y) { return build_binary(&o->b, OP_MUL, x, y); }
static Value *quotient(Optimizer *o, Value *x, Value *y) { return build_binary(&o->b, OP_DIV, x, y); }

static void update(Optimizer *o, const char *name, Value *fresh, Value *old) {
    Value *v = make(&o->b, OP_SELECT, INS(o->finite, fresh, old));
    build(&o->b, OP_UPDATE, INS(v), .name = name);
}

// Sum of squares: along columns first (a row reduction that fuses with the product), then over rows.
static Value *sum_of_squares(Optimizer *o, Value *x) {
    Value *s = mul(o, x, x);
    int n = s->type.ndim;
    if (n) s = build_sum(&o->b, s, &(Ints){1, {n - 1}});
    if (n > 1) {
        Ints rest = {n - 1};
        for (int i = 0; i < n - 1; i++) rest.at[i] = i;
        s = build_sum(&o->b, s, &rest);
    }
    return build_reshape(&o->b, s, &(Dims){0});
}

// The new parameter, and its moments' updates.
static void update_parameter(Optimizer *o, const Node *param, Value *g) {
    const TrainOpts *t = o->cx->train;
    const char *name = param->attr.name;
    bool is_expert = param->attr.group && !strcmp(param->attr.group, "expert");
    double rate = param->attr.lr * (is_expert ? t->lr_expert : 1);
    bool decays = t->decay != 0 && (t->decay_all || param->attr.decay);
    Value *p = build_first(node_clone(&o->b, param, NULL));
    Value *old = p;
    Value *lr = build_scale(&o->b, o->lr, rate);

    if (!strcmp(t->optimizer, "sgd")) {
        if (decays) g = add(o, g, build_scale(&o->b, p, t->decay));
        if (t->momentum != 0) {
            Value *m = state(o, "sgd.m", param);
            Value *m1 = add(o, build_scale(&o->b, m, t->momentum), g);
            update(o, m->node->attr.name, m1, m);
            g = m1;
        }
        update(o, name, sub(o, p, mul(o, g, lr)), old);
        return;
    }

    if (decays && !strcmp(t->optimizer, "adamw"))
        p = mul(o, p, sub(o, o->one, build_scale(&o->b, lr, t->decay)));
    else if (decays)
        g = add(o, g, build_scale(&o->b, p, t->decay));
    Value *m = state(o, "adam.m", param), *v = state(o, "adam.v", param);
    Value *g1 = build_scale(&o->b, g, 1 - t->beta1);
    Value *m1 = add(o, build_scale(&o->b, m, t->beta1), g1);
    Value *g2 = build_scale(&o->b, mul(o, g, g), 1 - t->beta2);
    Value *v1 = add(o, build_scale(&o->b, v, t->beta2), g2);
    Value *root = build_unary(&o->b, OP_SQRT, quotient(o, v1, o->bias2));
    Value *denominator = add(o, root, build_const(&o->b, t->eps, F32));
    Value *moved = quotient(o, mul(o, m1, quotient(o, lr, o->bias1)), denominator);
    update(o, name, sub(o, p, moved), old);
    update(o, m->node->attr.name, m1, m);
    update(o, v->node->attr.name, v1, v);
}

// ---- the text's updates ----

static bool depends_on_leaves(const Value *v) { return type_is_leafy(&v->type) || type_ragged(&v->type); }

static Value *moved(Optimizer *o, Value *v);

// v is the same for all leaves but computed from leafy values: it leaves the pass as a sum.
static Value *cut(Optimizer *o, Value *v) {
    const Node *n = v->node;
    if (n->op == OP_REDUCE_MAX && o->cx->train->waves > 1) {
        diag_error(o->cx->diag, n->at,
                   "an update reads a maximum over the step, which is known only in one pass, "
                   "but a step has %ld passes",
                   (long)o->cx->train->waves);
        return NULL;
    }
    const char *name = intern(arena_printf(o->cx->scratch, "sum/%d", o->n_sums++));
    Builder b = builder_after(o->pass, v->node);
    build(&b, OP_ACCUMULATE, INS(v), .name = name);
    return make(&o->b, OP_STATE, INS(NULL), .name = intern(arena_printf(o->cx->scratch, "grad/%s", name)),
                .dtype = v->type.dtype, .dims = dims_of(&v->type), .init = intern("zeros"));
}

// v as a value of @update; NULL after an error.
static Value *moved(Optimizer *o, Value *v) {
    if (v->mark) return v->mark;
    Node *n = v->node;
    bool is_cut = false;
    for (int i = 0; i < n->n_in; i++) is_cut |= depends_on_leaves(n->in[i]) && !depends_on_leaves(v);
    if (is_cut) return v->mark = cut(o, v);
    if (depends_on_leaves(v) || !op_is(n->op, PURE)) {
        diag_error(o->cx->diag, n->at,
                   "an update reads a value of single micro-batches; step_sum(..), step_mean(..) or "
                   "step_max(..) of it is one value for the step");
        return NULL;
    }
    Value **ins = arena_array(o->cx->scratch, Value *, n->n_in + 1);
    for (int i = 0; i < n->n_in; i++)
        if (!(ins[i] = moved(o, n->in[i]))) return NULL;
    Node *copy = node_clone(&o->b, n, ins);
    for (int i = 0; i < n->n_out; i++) n->out[i].mark = &copy->out[i];
    return v->mark;
}

// The states of so_far(x), which the front end writes: updated by each pass, so they stay there.
static const char so_far[] = "so_far.";

static void move_updates(Optimizer *o) {
    marks_clear(o->pass);
    for_each_node(o->pass, n) {
        if (n->op != OP_UPDATE || !strncmp(n->attr.name, so_far, strlen(so_far))) continue;
        Value *v = moved(o, n->in[0]);
        if (!v) break;
        o->b.at = n->at;
        o->b.path = n->path;
        build(&o->b, OP_UPDATE, INS(v), .name = n->attr.name);
        graph_remove(n);
    }
    marks_clear(o->pass);
}

bool pass_optimizer(Graph *g, PassCtx *cx) {
    const TrainOpts *t = cx->train;
    if (!t || !cx->update || t->return_grads) return false;
    bool known =
        !strcmp(t->optimizer, "adamw") || !strcmp(t->optimizer, "adam") || !strcmp(t->optimizer, "sgd");
    if (!known) {
        diag_error(cx->diag, (Span){0}, "train.optimizer is %s; there are adamw, adam and sgd", t->optimizer);
        return false;
    }
    Optimizer o = {.pass = g, .update = graph_new(g->arena, "update"), .cx = cx};
    o.update->mesh = g->mesh;
    o.b = builder_end(o.update, cx->diag);
    o.lr = scalar_input(&o, "lr");
    o.scale = scalar_input(&o, "grad_scale");
    if (strcmp(t->optimizer, "sgd")) {
        o.bias1 = scalar_input(&o, "bias1");
        o.bias2 = scalar_input(&o, "bias2");
        o.one = build_const(&o.b, 1, F32);
    }

    typedef struct { Node *param; Value *gradient; } Trained;
    VEC(Trained) trained = {0};
    Value *total = NULL;
    PtrMap accumulated = {.arena = cx->scratch};
    for_each_node(g, n)
        if (n->op == OP_ACCUMULATE) map_put(&accumulated, n->attr.name, n);
    for_each_node(g, n) {
        if (n->op != OP_PARAM || !map_get(&accumulated, n->attr.name)) continue;
        o.b.at = n->at;
        o.b.path = n->path;
        Value *gradient = state(&o, "grad", n); // unscaled: nothing of its size is made but the new contents
        Value *squares = sum_of_squares(&o, gradient);
        total = total ? add(&o, total, squares) : squares;
        vec_push(cx->scratch, &trained, ((Trained){n, gradient}));
    }
    o.b.at = (Span){0};
    o.b.path = NULL;
    if (!total) total = build_const(&o.b, 0, F32);
    Value *norm = mul(&o, build_unary(&o.b, OP_SQRT, total), o.scale);
    o.finite = build_binary(&o.b, OP_LE, norm, build_const(&o.b, FLT_MAX, F32));     // false for inf and NaN
    build(&o.b, OP_METRIC, INS(norm), .name = intern("grad_norm"));
    build(&o.b, OP_METRIC, INS(build_cast(&o.b, o.finite, F32)), .name = intern("finite"));
    Value *factor = o.scale;
    if (t->clip > 0) {
        Value *is = add(&o, norm, build_const(&o.b, 1e-6, F32));
        Value *room = quotient(&o, build_const(&o.b, t->clip, F32), is);
        factor = mul(&o, factor, build_binary(&o.b, OP_MIN, build_const(&o.b, 1, F32), room));
    }
    for (int i = 0; i < trained.n; i++) {
        o.b.at = trained.at[i].param->at;
        o.b.path = trained.at[i].param->path;
        update_parameter(&o, trained.at[i].param, mul(&o, trained.at[i].gradient, factor));
    }
    move_updates(&o);
    TRACE(cx, "optimizer: %d parameters, %d nodes, %d sums of the pass\n", trained.n, o.update->n_nodes,
          o.n_sums);
    *cx->update = o.update;
    return true;
}
