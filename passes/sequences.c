// Sequences of @run: rows of several ones advance in one run, each with its own length and place in the caches, and of
// each the last row alone is asked for logits.
//
//     %y = matmul %x, %w {tb = 1} : f32[1,S,V]          %g = gather_rows %x, %last : f32[1,R,D]
//     %z = gather_rows %y, %last : f32[1,R,V]     =>    %z = matmul %g, %w {tb = 1} : f32[1,R,V]
//
//     %p = state : f32[C,2,64]                          %p = state : f32[P,C,2,64]
//     %k = cache %p, %x {sym = C} : f32[1,C,2,64]       %k = cache %p, %x, %s {sym = C} : f32[P,C,2,64]
//     %o, %l = attention %q, %k, %v               =>    %o, %l = attention %q, %k, %v, %s {has = 16}
//
// %s = input "sequences" : i32[R,4] (runtime/abi.h), P the most sequences of a run, which is what R is bounded by.  To all
// other ops rows are rows.  Where that isn't so (a cache that isn't read by attention alone, as latent attention's; an op
// that looks at several rows) runs have one sequence: R is bounded by 1, and the caches stay.
#include <string.h>
#include "passes/util.h"

enum { HAS_VALID = 4, HAS_DOCUMENTS = 8, HAS_SEQUENCES = 16 };

// ---- the last rows -----------------------------------------------------------------------------------------------

typedef struct {
    Graph *g;
    Builder b;
    Value *last;
    PtrMap made;                // from values of all rows to those of the last ones
    int n_products;
} Lift;

static bool has_rows(const Value *v, const Sym *rows) {
    for (int i = 0; i < v->type.ndim; i++)
        if (v->type.dim[i].sym == rows) return true;
    return false;
}

// [1, S, ..columns]
static bool is_rows(const Value *v, const Sym *rows) {
    return v->type.ndim == 3 && dim_is_1(v->type.dim[0]) && v->type.dim[1].sym == rows && v->type.dim[1].n == 1 && !v->type.dim[2].sym;
}

// Result row i of n needs row i of the operands that have rows, and all of the others.
static bool is_by_rows(const Node *n) {
    const Type *t = &n->in[0]->type;
    switch (n->op) {
    case OP_MATMUL: return !n->attr.ta && n->n_in == 2 && n->in[1]->type.ndim == 2;
    case OP_SUM: return n->attr.axes.n == 1 && n->attr.axes.at[0] == t->ndim - 1;
    case OP_REDUCE_MAX: case OP_SLICE: return n->attr.axis == t->ndim - 1;
    case OP_SOFTMAX: case OP_LOGSUMEXP: return true;
    default: return op_is(n->op, ELEMENTWISE);
    }
}

static Value *last_rows(Lift *l, Value *v, const Sym *rows) {
    Value *there = map_get(&l->made, v);
    if (there) return there;
    const Node *n = v->node;
    bool lifts = v->n_uses == 1 && n->n_out == 1 && n->n_in && is_by_rows(n);
    for (int i = 0; lifts && i < n->n_in; i++) lifts = is_rows(n->in[i], rows) || !has_rows(n->in[i], rows);
    if (lifts) {
        Value **in = arena_array(l->g->arena, Value *, n->n_in + 1);
        for (int i = 0; i < n->n_in; i++) in[i] = is_rows(n->in[i], rows) ? last_rows(l, n->in[i], rows) : n->in[i];
        l->b.path = n->path;
        l->b.at = n->at;
        there = &build_node(&l->b, n->op, in, &n->attr)->out[0];
        l->n_products += op_is(n->op, PRODUCTS);
    } else {
        there = make(&l->b, OP_GATHER_ROWS, INS(v, l->last), 0);
    }
    map_put(&l->made, v, there);
    return there;
}

static bool is_unread(const Node *n) {
    for (int i = 0; i < n->n_out; i++)
        if (n->out[i].n_uses) return false;
    return op_is(n->op, PURE);
}

static int lift_last_rows(Graph *g, Arena *a, const Sym *rows) {
    Lift l = {.g = g, .made = {.arena = a}};
    for_each_node(g, n) {
        Value *index = n->op == OP_GATHER_ROWS ? n->in[1] : NULL;
        if (!index || index->node->op != OP_INPUT || strcmp(index->node->attr.name, "last") || !is_rows(n->in[0], rows)) continue;
        l.b = builder_before(g, n);
        l.last = index;
        replace_all_uses(g, &n->out[0], last_rows(&l, n->in[0], rows));
    }
    for_each_node_reverse(g, n)
        if (is_unread(n)) graph_remove(n);
    return l.n_products;
}

// ---- what rows of several sequences must not meet ------------------------------------------------------------------

static bool is_along(const Type *t, int axis, const Sym *rows) { return axis >= 0 && axis < t->ndim && t->dim[axis].sym == rows; }

// Does a result row of n depend on several rows of its operands, or on where they are?
static bool mixes_rows(const Node *n, const Sym *rows) {
    if (!n->n_in) return n->op == OP_IOTA && is_along(&n->out[0].type, (int)n->attr.axis, rows);
    const Type *t = &n->in[0]->type;
    int last = t->ndim - 1;
    switch (n->op) {
    case OP_SINKHORN: case OP_QUEUE: return true;
    case OP_SUM:
        for (int i = 0; i < n->attr.axes.n; i++)
            if (is_along(t, (int)n->attr.axes.at[i], rows)) return true;
        return false;
    case OP_REDUCE_MAX: case OP_CUMSUM: case OP_CONCAT: return is_along(t, (int)n->attr.axis, rows);
    case OP_MATMUL: return is_along(t, n->attr.ta ? last - 1 : last, rows) || has_rows(n->in[1], rows);
    case OP_SOFTMAX: case OP_LOGSUMEXP: case OP_TOPK: case OP_TAKE: case OP_PUT: return is_along(t, last, rows);
    case OP_ATTENTION: return has_rows(n->in[1], rows) || has_rows(n->in[2], rows);
    default: return false;
    }
}

static bool mixes_inside(const Graph *g, const Sym *rows) {
    for_each_node(g, n)
        if (mixes_rows(n, rows) || (n->attr.body && mixes_inside(n->attr.body, rows))) return true;
    return false;
}

static bool is_known_input(const Node *n) {
    static const char *const known[] = {"tokens", "positions", "last"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(n->attr.name, known[i])) return true;
    return false;
}

static bool reads_caches(const Node *n, const Sym *rows) {
    return n->in[1]->node->op == OP_CACHE && n->in[2]->node->op == OP_CACHE && n->attr.causal &&
           !(n->attr.has & (HAS_VALID | HAS_DOCUMENTS)) && n->in[0]->type.ndim == 4 && dim_is_1(n->in[0]->type.dim[0]) &&
           n->in[0]->type.dim[1].sym == rows;
}

// Why runs of g have one sequence; NULL: they may have several.  *at: the node that stands in the way.
static const char *one_alone(const Graph *g, const Sym *rows, const Node **at) {
    for_each_node(g, n) {
        *at = n;
        if (n->op == OP_INPUT && !is_known_input(n)) return arena_printf(g->arena, "input '%s' belongs to one sequence", n->attr.name);
        if (n->op == OP_CACHE && (n->in[0]->node->op != OP_STATE || n->in[0]->n_uses != 1)) return "its cache is read before it grows";
        for (int i = 0; i < n->n_in; i++) {
            if (n->in[i]->node->op != OP_CACHE) continue;
            if (n->op != OP_ATTENTION || i < 1 || i > 2) return "a cache is read by more than attention here, as latent attention's is";
            if (!reads_caches(n, rows)) return "attention with a cache has no causal mask, or names its keys, here";
        }
        if (mixes_rows(n, rows) || (n->attr.body && mixes_inside(n->attr.body, rows))) return "tokens look at each other outside of attention here";
    }
    return NULL;
}

// ---- caches --------------------------------------------------------------------------------------------------------

static Value *input_of_sequences(Graph *g, Sym *count) {
    Builder b = builder_before(g, g->first);
    return make(&b, OP_INPUT, INS(NULL), .name = intern("sequences"), .dtype = I32, .dims = {2, {{1, count}, dim_n(SEQUENCE_COLUMNS)}});
}

static void widen_cache(Graph *g, Node *n, Value *sequences, int64_t places) {
    Node *state = n->in[0]->node;
    Dims *d = &state->attr.dims;
    for (int i = d->n++; i > 0; i--) d->at[i] = d->at[i - 1];
    d->at[0] = dim_n(places);
    state->out[0].type = type_make((DType)state->attr.dtype, d->n, d->at);
    Builder b = builder_before(g, n);
    n->out[0].mark = make(&b, OP_CACHE, INS(n->in[0], n->in[1], sequences), .sym = n->attr.sym);
}

static void attend_sequences(Graph *g, Node *n, Value *sequences) {
    Value **in = arena_array(g->arena, Value *, n->n_in + 2);
    for (int i = 0; i < n->n_in; i++) in[i] = n->in[i]->mark ? n->in[i]->mark : n->in[i];
    in[n->n_in] = sequences;
    Attrs attr = n->attr;
    attr.has |= HAS_SEQUENCES;
    Builder b = builder_before(g, n);
    Node *m = build_node(&b, OP_ATTENTION, in, &attr);
    for (int i = 0; i < n->n_out; i++) replace_all_uses(g, &n->out[i], &m->out[i]);
}

static int share_caches(Graph *g, Sym *count) {
    Value *sequences = NULL;
    int n_caches = 0;
    marks_clear(g);
    for_each_node(g, n) {
        if (n->op == OP_CACHE && !n->out[0].mark && n->n_in == 2) {
            if (!sequences) sequences = input_of_sequences(g, count);
            widen_cache(g, n, sequences, count->bound);
            n_caches++;
        } else if (n->op == OP_ATTENTION && n->in[1]->mark) {
            attend_sequences(g, n, sequences);
        }
    }
    for_each_node_reverse(g, n)
        if ((n->op == OP_CACHE && n->out[0].mark) || (n->op == OP_ATTENTION && n->in[1]->mark)) graph_remove(n);
    marks_clear(g);
    return n_caches;
}

bool pass_sequences(Graph *g, PassCtx *cx) {
    Sym *count = graph_find_sym(g, "R"), *rows = graph_find_sym(g, "S");
    if (!count || count->kind != SYM_PLAIN || !rows) {
        TRACE(cx, "sequences: %s asks for no last rows\n", g->name);
        return false;
    }
    const Node *at = NULL;
    const char *why = one_alone(g, rows, &at);
    if (why && cx->train && cx->train->batch > 1) {
        diag_error(cx->diag, at->at, "generate.batch is %lld, but a run of this model has one sequence: %s", (long long)cx->train->batch, why);
        return true;
    }
    if (why) count->bound = 1;
    int n_products = lift_last_rows(g, cx->scratch, rows), n_caches = why ? 0 : share_caches(g, count);
    if (why) TRACE(cx, "sequences: one in a run: %s\n", why);
    WON(cx, "%lld sequences in a run, %d caches shared, %d products of their last rows", (long long)count->bound, n_caches, n_products);
    return true;
}
