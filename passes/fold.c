// Constant folding, and tables of functions of the positions.
//
// What follows from constants alone is evaluated in double through the whole chain that leads to it and
// rounded once, so cos and sin of rotary angles are the best f32 there is.
//
//     %p = iota {axis = 1}        %a = mul (cast %p), %freqs       %c = cos %a     =>     %c = const data
//
// At inference positions are an input, in 0 .. context-1.  The chain is then evaluated for all of them, and
// rows of the table are gathered: the same bits as in training, and no trigonometry at run time.
//
//     %p = input {name = "positions"} : i32[S]                  %t = const data : f32[4096,16]
//     %a = mul (reshape (cast %p)), %freqs : f32[1,S,1,16]  =>  %g = gather_rows %t, %p : f32[S,16]
//     %c = cos %a : f32[1,S,1,16]                               %c = reshape %g : f32[1,S,1,16]
#include <math.h>
#include <string.h>
#include "ir/eval.h"
#include "passes/simplify.h"

enum { MOST_ELEMENTS = 8 << 20, LARGE = 4096 };

// ---- evaluating a chain ----

// Bits of Node.flags while this file works.
enum {
    IN_CHAIN = 1,           // follows from constants (and positions) alone
    WANTED = 2,             // part of the chain that is being evaluated
    IS_READ_OUTSIDE = 4,    // ends its chain
    VARIES = 8,             // depends on positions
    TRIGONOMETRY = 16,      // a cos or sin of positions leads to it
};

static void want(Node *n) {
    if (n->flags & WANTED) return;
    n->flags |= WANTED;
    for (int i = 0; i < n->n_in; i++) want(n->in[i]->node);
}

static bool no_source(void *self, const Node *n, Tensor *t) {
    (void)self;
    (void)n;
    (void)t;
    return false;
}

// A value of the evaluator as constant data: f64 is rounded to f32.
static Value *rounded(Builder *b, Arena *scratch, const Tensor *t) {
    Tensor out = *t;
    if (t->dtype == F64) {
        int64_t n = 1;
        for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
        float *x = arena_array(scratch, float, n + 1);
        for (int64_t i = 0; i < n; i++) x[i] = (float)((const double *)t->data)[i];
        out.dtype = F32;
        out.data = x;
    }
    Value *v = build_data(b, &out);
    double number;
    if (!value_is_number(v, &number)) return v;
    Dims dims = dims_of(&v->type);
    graph_remove(v->node);
    return build_broadcast(b, build_const(b, number, out.dtype), &dims);
}

static bool is_storable(const Type *t) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym) return false;
    return (t->dtype == F32 || t->dtype == I32 || t->dtype == BOOL) &&
           type_bound_elements(t) <= MOST_ELEMENTS;
}

// ---- constants ----

static bool is_source_constant(const Node *n) { return n->op == OP_CONST || n->op == OP_IOTA; }

// Repeating a constant many times is left to who reads it.
static bool is_expansion(const Node *n) {
    return n->op == OP_BROADCAST && type_bound_elements(&n->out[0].type) > LARGE
        && type_bound_elements(&n->out[0].type) > type_bound_elements(&n->in[0]->type);
}

static bool is_constant(const Node *n) {
    if (is_source_constant(n)) return is_storable(&n->out[0].type);
    if (!op_is(n->op, PURE) || !op_info[n->op].ref || !n->n_in || n->attr.body || is_expansion(n))
        return false;
    for (int i = 0; i < n->n_in; i++)
        if (!(n->in[i]->node->flags & IN_CHAIN)) return false;
    for (int i = 0; i < n->n_out; i++)
        if (!is_storable(&n->out[i].type)) return false;
    return true;
}

// Broadcasts and reshapes of one number are the normal form already.
static bool is_normal(const Node *n) {
    double number;
    return n->n_out == 1 && (n->op == OP_BROADCAST || n->op == OP_RESHAPE) &&
           value_is_number(&n->out[0], &number);
}

// Replaces the results of n, in the chain.  False if it can't be evaluated.
static bool fold(Graph *g, PassCtx *cx, Node *n) {
    for_each_node(g, m) m->flags &= ~WANTED;
    want(n);
    Arena *scratch = arena_create();
    Graph *chain = graph_new(scratch, "fold");
    Builder in_chain = builder_end(chain, NULL);
    PtrMap map = {.arena = scratch};
    for (Node *m = g->first;; m = m->next) {
        if (m->flags & WANTED) {
            Value **ins = arena_array(scratch, Value *, m->n_in + 1);
            for (int i = 0; i < m->n_in; i++) ins[i] = map_get(&map, m->in[i]);
            Node *copy = node_clone(&in_chain, m, ins);
            for (int i = 0; i < m->n_out; i++) map_put(&map, &m->out[i], &copy->out[i]);
        }
        if (m == n) break;
    }
    EvalOpts opts = {.f64 = true, .source = no_source};
    Eval *e = eval_graph(scratch, chain, &opts, diag_new(scratch));
    Builder b = builder_before(g, n);
    for (int i = 0; e && i < n->n_out; i++)
        n->out[i].mark = rounded(&b, scratch, eval_value(e, map_get(&map, &n->out[i])));
    TRACE(cx, "simplify: folded %s of %d nodes\n", op_info[n->op].name, chain->n_nodes);
    arena_destroy(scratch);
    return e != NULL;
}

bool fold_constants(Graph *g, PassCtx *cx) {
    for_each_node(g, n) {
        n->flags = 0;
        if (is_constant(n)) n->flags = IN_CHAIN;
    }
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++)
            if (!(n->flags & IN_CHAIN)) n->in[i]->node->flags |= IS_READ_OUTSIDE;
    bool changed = false;
    marks_clear(g);
    for_each_node(g, n) {
        bool is_end = n->flags & IN_CHAIN && n->flags & IS_READ_OUTSIDE;
        if (is_end && !is_source_constant(n) && !is_normal(n)) changed |= fold(g, cx, n);
    }
    if (changed) marks_apply(g);
    for_each_node(g, n) n->flags = 0;
    return changed;
}

// ---- positions ----

// The one axis of symbol s that t has, with everything before it 1; -1 if t isn't so.
static int position_axis(const Type *t, const Sym *s) {
    int axis = -1;
    for (int i = 0; i < t->ndim; i++) {
        if (!t->dim[i].sym) {
            if (axis < 0 && t->dim[i].n != 1) return -1;
            continue;
        }
        if (axis >= 0 || t->dim[i].sym != s || t->dim[i].n != 1) return -1;
        axis = i;
    }
    return axis;
}

static int first_sym(const Type *t) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym) return i;
    return -1;
}

// Does row p of n's result follow from row p of its operands?
static bool keeps_positions(const Node *n) {
    if (op_is(n->op, ELEMENTWISE) || n->op == OP_RESHAPE || n->op == OP_BROADCAST) return true;
    if (n->op != OP_SLICE && n->op != OP_CONCAT) return false;
    return !n->out[0].type.dim[n->attr.axis].sym;
}

static Type with_context(const Type *t, const Sym *s, int64_t context) {
    Type u = *t;
    for (int i = 0; i < u.ndim; i++)
        if (u.dim[i].sym == s) u.dim[i] = dim_n(context);
    return u;
}

// Evaluates the chain to n with positions 0 .. context-1 and gathers rows of it.
static bool tabulate(Graph *g, PassCtx *cx, Node *n, Node *positions, int64_t context) {
    int axis = first_sym(&positions->out[0].type);
    Sym *s = positions->out[0].type.dim[axis].sym;
    for_each_node(g, m) m->flags &= ~WANTED;
    want(n);
    Arena *scratch = arena_create();
    Graph *chain = graph_new(scratch, "table");
    Builder in_chain = builder_end(chain, NULL);
    PtrMap map = {.arena = scratch};
    for (Node *m = g->first;; m = m->next) {
        if (m->flags & WANTED) {
            Value **ins = arena_array(scratch, Value *, m->n_in + 1);
            for (int i = 0; i < m->n_in; i++) ins[i] = map_get(&map, m->in[i]);
            Attrs attr = m->attr;
            for (int i = 0; i < attr.dims.n; i++)
                if (attr.dims.at[i].sym == s) attr.dims.at[i] = dim_n(context);
            Op op = m == positions ? OP_IOTA : m->op;
            attr.axis = m == positions ? axis : attr.axis;
            Node *copy = build_node(&in_chain, op, ins, &attr);
            map_put(&map, &m->out[0], &copy->out[0]);
        }
        if (m == n) break;
    }
    EvalOpts opts = {.f64 = true, .source = no_source};
    Eval *e = eval_graph(scratch, chain, &opts, diag_new(scratch));
    if (e) {
        Tensor t = *eval_value(e, map_get(&map, &n->out[0]));
        int64_t cols = 1;
        for (int i = 0; i < t.ndim; i++) cols *= t.dim[i];
        t.ndim = 2;
        t.dim[0] = context;
        t.dim[1] = cols / context;
        Builder b = builder_before(g, n);
        Value *rows = make(&b, OP_GATHER_ROWS, INS(rounded(&b, scratch, &t), &positions->out[0]), 0);
        Dims dims = dims_of(&n->out[0].type);
        n->out[0].mark = build_reshape(&b, rows, &dims);
        TRACE(cx, "simplify: a table of %ld positions replaces %s\n", (long)context, op_info[n->op].name);
    }
    arena_destroy(scratch);
    return e != NULL;
}

bool tabulate_positions(Graph *g, PassCtx *cx) {
    Node *positions = NULL;
    int64_t context = 0;
    for_each_node(g, n)
        if (n->op == OP_INPUT && !strcmp(n->attr.name, "positions")) positions = n;
    for (int i = 0; i < g->n_syms; i++)
        if (g->sym[i]->kind == SYM_PLAIN && g->sym[i]->bound > context) context = g->sym[i]->bound;
    int axis = positions ? first_sym(&positions->out[0].type) : -1;
    Sym *s = axis >= 0 ? positions->out[0].type.dim[axis].sym : NULL;
    if (!s || g->leaf || position_axis(&positions->out[0].type, s) != axis) return false;

    for_each_node(g, n) {
        n->flags = 0;
        const Node *varying = NULL;            // an operand that depends on positions
        bool is_chain = n == positions || is_constant(n) ||
                        (op_is(n->op, PURE) && n->n_in && n->n_out == 1 && keeps_positions(n));
        for (int i = 0; i < n->n_in; i++) {
            is_chain &= (n->in[i]->node->flags & IN_CHAIN) != 0;
            if (n->in[i]->node->flags & VARIES) varying = n->in[i]->node;
        }
        bool varies = n == positions || varying;
        if (varies && is_chain && n != positions) {
            Type t = with_context(&n->out[0].type, s, context);
            is_chain = position_axis(&n->out[0].type, s) >= 0 && is_storable(&t);
        }
        if (!is_chain) continue;
        n->flags = IN_CHAIN | (varies ? VARIES : 0);
        for (int i = 0; i < n->n_in; i++) n->flags |= n->in[i]->node->flags & TRIGONOMETRY;
        if (varies && (n->op == OP_COS || n->op == OP_SIN)) n->flags |= TRIGONOMETRY;
    }
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++)
            if (!(n->flags & IN_CHAIN)) n->in[i]->node->flags |= IS_READ_OUTSIDE;
    bool changed = false;
    marks_clear(g);
    for_each_node(g, n) {
        int all = IN_CHAIN | TRIGONOMETRY | IS_READ_OUTSIDE;
        if ((n->flags & all) == all) changed |= tabulate(g, cx, n, positions, context);
    }
    if (changed) marks_apply(g);
    for_each_node(g, n) n->flags = 0;
    return changed;
}
