// Reverse-mode differentiation: the chain rule and nothing else.
//
//     %y = f %x                %y  = f %x
//     loss %y           =>     loss %y
//                              %dy = const 1, per leaf
//                              %dx = <gradient rule of f>(%dy)
//
// Gradients are sums over leaves: each leaf's loss is seeded with its weight, and dividing by the number of
// leaves (or of labels) happens once, in the optimizer.  A loss without the leaf axis is the same for all
// leaves of the pass, so it is seeded with weight * leaves.
//
// One sweep forward finds which values depend on a parameter through differentiable ops, so nothing is built
// that nobody wants.  One sweep backward calls the gradient rule of each node that some gradient reaches.  A
// value with several readers gets the left fold of their gradients in reverse list order; that fixes how sums
// associate.
//
// A region (a gate) is differentiated through copies of its nodes, placed behind it: what it yields is then
// read from it, what it doesn't (a softmax of logits) stays a copy, recomputed for the gradient.
//
// A gradient has its value's element type, or is f32 where the value is narrower: a weight read as bf16 gets
// the f32 sum that its contraction computes, and that is what reaches the parameter.
//
// It names no op but the losses where it starts, the parameters where it ends, casts, and what it builds there.
#include <assert.h>
#include <string.h>
#include "passes/util.h"

typedef struct {
    Graph   *g;
    PassCtx *cx;
    Builder  b;
    bool    *need;        // [value id] depends on a trained parameter, differentiably
    Value  **grad;        // [value id] its gradient so far, or NULL
    int      n_values;    // values of the forward graph
    Value   *label_counts;    // train.average = "token": f32[L,1], made on demand
} Autodiff;

static bool is_trained(const Node *n) {
    return n->op == OP_PARAM && !n->attr.frozen && dtype_is_float((DType)n->attr.dtype);
}

static bool is_flat(Op op) { return !strcmp(op_info[op].grad_name, "zero"); }
static bool has_no_gradient(Op op) { return !strcmp(op_info[op].grad_name, "none"); }

static void find_needed(Autodiff *ad) {
    for_each_node(ad->g, n) {
        bool need = is_trained(n);
        for (int i = 0; i < n->n_in && !is_flat(n->op); i++) need |= ad->need[n->in[i]->id];
        for (int i = 0; i < n->n_out; i++)
            ad->need[n->out[i].id] = need && dtype_is_float(n->out[i].type.dtype);
    }
}

static void add_gradient(Autodiff *ad, const Value *v, Value *d) {
    Value **at = &ad->grad[v->id];
    if (*at && (*at)->type.dtype != d->type.dtype) {
        *at = build_cast(&ad->b, *at, F32);
        d = build_cast(&ad->b, d, F32);
    }
    *at = *at ? build_binary(&ad->b, OP_ADD, *at, d) : d;
}

static bool has_gradient_type(const Value *d, const Value *v) {
    Type wide = v->type;
    wide.dtype = F32;
    return type_eq(&d->type, &v->type) || type_eq(&d->type, &wide);
}

// The gradient of a result of n as its rule takes it.  What only hands values on takes a wide one, too.
static Value *gradient_of(Autodiff *ad, const Node *n, const Value *result) {
    Value *d = ad->grad[result->id];
    return !d || n->op == OP_CAST || op_is(n->op, VIEW) ? d : build_cast(&ad->b, d, result->type.dtype);
}

// ---- seeds ----

// The labels of each leaf that count: f32[L,1].
static Value *label_counts(Autodiff *ad) {
    if (ad->label_counts) return ad->label_counts;
    const Node *labels = NULL;
    for_each_node(ad->g, n)
        if (n->op == OP_INPUT && !strcmp(n->attr.name, "labels")) labels = n;
    if (!labels) {
        diag_error(ad->cx->diag, (Span){0}, "train.average = \"token\" needs a model that reads labels");
        return NULL;
    }
    Builder *b = &ad->b;
    Value *v = (Value *)&labels->out[0];
    Value *is_label = build_unary(b, OP_NOT, build_binary(b, OP_EQ, v, build_const(b, -100, I32)));
    Dims flat = {2, {v->type.dim[0], dim_n(1)}};
    for (int i = 1; i < v->type.ndim; i++) flat.at[1].n *= v->type.dim[i].n;
    Value *ones = build_reshape(b, build_cast(b, is_label, F32), &flat);
    return ad->label_counts = build_sum(b, ones, &(Ints){1, {1}});
}

static Node *find_input(Graph *g, const char *name) {
    for_each_node(g, n)
        if (n->op == OP_INPUT && !strcmp(n->attr.name, name)) return n;
    return NULL;
}

// 1.0 up to step `until`, then 0: f32[].  Steps count from 1 in the text, the input "rng" holds them from 0.
static Value *is_running(Autodiff *ad, double until) {
    Builder *b = &ad->b;
    Node *rng = find_input(ad->g, "rng");
    if (!rng) {
        Builder first = builder_before(ad->g, ad->g->first);
        rng =
            build(&first, OP_INPUT, INS(NULL), .name = intern("rng"), .dtype = I32, .dims = {1, {dim_n(4)}});
    }
    Value *step = make(b, OP_SLICE, INS(&rng->out[0]), .axis = 0, .begin = 2, .end = 3);
    Value *end = build_const(b, until, I32);
    Value *runs = build_binary(b, OP_LT, build_reshape(b, step, &(Dims){0}), end);
    return build_cast(b, runs, F32);
}

static void seed(Autodiff *ad, const Node *loss) {
    const Value *x = loss->in[0];
    bool leafy = type_is_leafy(&x->type);
    double lanes = (double)graph_lanes(ad->g);
    double weight = loss->attr.weight * (leafy ? 1 : lanes);
    Builder *b = &ad->b;
    Value *d = build_const(b, weight, F32);
    if (loss->attr.until > 0) d = build_binary(b, OP_MUL, d, is_running(ad, loss->attr.until));
    Dims dims = dims_of(&x->type);
    if (ad->cx->train->average_token) {
        Value *count = label_counts(ad);
        if (!count) return;
        if (!leafy) {     // all labels of the pass; the weight holds the factor `leaves` no more
            Value *all = build_reshape(b, build_sum(b, count, &(Ints){1, {0}}), &(Dims){0});
            d = build_binary(b, OP_MUL, build_scale(b, d, 1.0 / lanes), all);
        } else {
            d = build_binary(b, OP_MUL, build_reshape(b, count, &dims), d);
        }
    }
    add_gradient(ad, x, build_broadcast(b, d, &dims));
}

// ---- regions ----

typedef struct { Value *copy, *result; } Yielded;
typedef VEC(Yielded) YieldedList;
typedef struct { Sym *sym; Value *extent; } Extent;
typedef VEC(Extent) Extents;

// Copies of the nodes of n's body behind n; readers of n's results read the copies.
static void open_region(Autodiff *ad, Node *n, YieldedList *yielded) {
    Arena *a = ad->cx->scratch;
    PtrMap map = {.arena = a};
    Builder b = builder_after(ad->g, n);
    for_each_node(n->attr.body, m) {
        if (m->op == OP_ARG) {
            map_put(&map, &m->out[0], n->in[m->attr.k]);
            continue;
        }
        Value **ins = arena_array(a, Value *, m->n_in + 1);
        for (int i = 0; i < m->n_in; i++) ins[i] = map_get(&map, m->in[i]);
        if (m->op == OP_YIELD) {
            for (int i = 0; i < m->n_in; i++) {
                n->out[i].mark = ins[i];
                vec_push(a, yielded, ((Yielded){ins[i], &n->out[i]}));
            }
            break;
        }
        Node *copy = node_clone(&b, m, ins);
        for (int i = 0; i < m->n_out; i++) map_put(&map, &m->out[i], &copy->out[i]);
    }
}

static bool open_regions(Autodiff *ad, YieldedList *yielded, Extents *extents) {
    Arena *a = ad->cx->scratch;
    for (int i = 0; i < ad->g->n_syms; i++)
        if (ad->g->sym[i]->extent) vec_push(a, extents, ((Extent){ad->g->sym[i], ad->g->sym[i]->extent}));
    marks_clear(ad->g);
    for_each_node(ad->g, n) {
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        if (n->attr.body) open_region(ad, n, yielded);
    }
    marks_clear(ad->g);
    return yielded->n > 0;
}

// What regions yield is read from them again; copies that nobody reads any more go.
static void close_regions(Autodiff *ad, const YieldedList *yielded, const Extents *extents) {
    for (int i = 0; i < yielded->n; i++) yielded->at[i].copy->mark = yielded->at[i].result;
    for_each_node(ad->g, n)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
    marks_clear(ad->g);
    for_each_node_reverse(ad->g, n) {
        bool is_read = n->n_out == 0;
        for (int i = 0; i < n->n_out; i++) is_read |= n->out[i].n_uses > 0;
        if (!is_read && op_is(n->op, PURE) && !op_is(n->op, SOURCE)) graph_remove(n);
    }
    for (int i = 0; i < extents->n; i++) extents->at[i].sym->extent = extents->at[i].extent;
}

// ---- the walk ----

static void leave(Autodiff *ad, const Node *param) {
    Value *d = ad->grad[param->out[0].id];
    Builder b = builder_after(ad->g, d->node); // as early as possible: the gradient's memory is free then
    b.at = param->at;
    b.path = param->path;
    b.backward = true;
    if (ad->cx->train->return_grads) {
        const char *name = intern(arena_printf(ad->cx->scratch, "grad.%s", param->attr.name));
        build(&b, OP_RETURN, INS(d), .name = name);
    } else {
        build(&b, OP_ACCUMULATE, INS(d), .name = param->attr.name);
    }
}

// False after an error.
static bool step_back(Autodiff *ad, const Node *n) {
    enum { FEW = 16 };
    Value *dout_few[FEW], *din_few[FEW];
    bool need_few[FEW];
    const OpInfo *info = &op_info[n->op];
    bool is_few = n->n_in <= FEW && n->n_out <= FEW;
    Arena *a = ad->cx->scratch;
    Value **dout = is_few ? dout_few : arena_array(a, Value *, n->n_out);
    Value **din = is_few ? din_few : arena_array(a, Value *, n->n_in);
    bool *need = is_few ? need_few : arena_array(a, bool, n->n_in);
    bool is_reached = false, is_wanted = false;
    for (int i = 0; i < n->n_out; i++) is_reached |= ad->grad[n->out[i].id] != NULL;
    if (!is_reached) return true;
    for (int i = 0; i < n->n_in; i++) {
        din[i] = NULL;
        need[i] = ad->need[n->in[i]->id];
        is_wanted |= need[i];
    }
    if (!is_wanted) return true;
    if (has_no_gradient(n->op)) {
        diag_error(ad->cx->diag, n->at,
                   "%s can't be differentiated, but a parameter's gradient flows through it", info->name);
        diag_note(ad->cx->diag, n->at,
                  "stop_gradient(..) of its operand or its result says that it is meant as a constant");
        return false;
    }
    ad->b.at = n->at;
    ad->b.path = n->path;
    for (int i = 0; i < n->n_out; i++) dout[i] = gradient_of(ad, n, &n->out[i]);
    info->grad(&ad->b, n, dout, need, din);
    for (int i = 0; i < n->n_in; i++) {
        if (!need[i] || !din[i]) continue;
        assert(has_gradient_type(din[i], n->in[i]));
        add_gradient(ad, n->in[i], din[i]);
    }
    return true;
}

bool pass_autodiff(Graph *g, PassCtx *cx) {
    if (!cx->train || !g->last) return false;
    Autodiff ad = {.g = g, .cx = cx, .b = builder_end(g, cx->diag)};
    ad.b.backward = true;
    YieldedList yielded = {0};
    Extents extents = {0};
    bool has_regions = open_regions(&ad, &yielded, &extents);
    ad.n_values = graph_number(g);
    ad.need = arena_array(cx->scratch, bool, ad.n_values + 1);
    ad.grad = arena_array(cx->scratch, Value *, ad.n_values + 1);
    find_needed(&ad);

    int n_before = g->n_nodes;
    Node *last = g->last;
    for (Node *n = last; n; n = n->prev) {
        if (n->backward) continue;               // an ACCUMULATE may stand before its parameter's reader
        if (n->op == OP_LOSS) {
            if (!ad.need[n->in[0]->id]) continue;
            ad.b.at = n->at;
            ad.b.path = n->path;
            seed(&ad, n);
        } else if (is_trained(n)) {
            if (ad.grad[n->out[0].id])
                leave(&ad, n);
            else
                diag_warning(cx->diag, n->at, "parameter %s gets no gradient: no loss depends on it",
                             n->attr.name);
        } else if (!step_back(&ad, n)) {
            return true;
        }
    }
    if (has_regions) close_regions(&ad, &yielded, &extents);
    TRACE(cx, "autodiff: %d nodes, %d with gradients\n", n_before, g->n_nodes);
    return g->n_nodes != n_before;
}
