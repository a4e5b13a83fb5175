// What tensor parallelism may cut, in front of all other passes: heads are cut whole, so who reads a matrix as heads decides
// whether it can be.  Keys and values of fewer heads than ranks stay whole, and each rank takes the head that its queries
// read (tensor_parallel.c).
#include <string.h>

#include "passes/util.h"

typedef struct Origin Origin;
struct Origin {
    Node   *param;
    int64_t heads;             // it is read as so many; 0: not as heads
    const Origin *next;
};

typedef struct {
    PassCtx *cx;
    int64_t  tp;
    bool     whole_experts;
    PtrMap   heads;            // from PARAM nodes to Heads
} Split;

typedef struct { Node *param; int64_t n; bool queries; } Heads;

static Heads *heads_of(Split *s, Node *param) {
    Heads *h = map_get(&s->heads, param);
    if (h) return h;
    h = arena_new(s->cx->scratch, Heads);
    *h = (Heads){.param = param};
    map_put(&s->heads, param, h);
    return h;
}

static bool is_split(const Node *n) { return n->op == OP_PARAM && n->attr.split >= 0 && n->attr.split < n->attr.dims.n; }

static const Origin *joined(Split *s, const Origin *a, const Origin *b) {
    for (; b; b = b->next) {
        Origin *o = arena_new(s->cx->scratch, Origin);
        *o = (Origin){b->param, b->heads, a};
        a = o;
    }
    return a;
}

// Does this op hand on the columns of its operands?
static bool passes_on(Op op) {
    switch (op) {
    case OP_RESHAPE: case OP_SLICE: case OP_CONCAT: case OP_CACHE: case OP_PERMUTE: case OP_BROADCAST: case OP_FMA: return true;
    default: return op_is(op, ELEMENTWISE);
    }
}

// [.., N * d] as [.., N, d]: the columns of these parameters are N heads.
static void note_heads(Split *s, const Node *reshape, const Origin *o) {
    const Type *from = &reshape->in[0]->type;
    const Dims *to = &reshape->attr.dims;
    if (to->n != from->ndim + 1 || to->at[to->n - 2].sym) return;
    for (; o; o = o->next) {
        int64_t columns = o->param->attr.dims.at[o->param->attr.split].n, n = to->at[to->n - 2].n;
        if (type_cols(from) == columns && columns == n * to->at[to->n - 1].n) heads_of(s, o->param)->n = n;
    }
}

static void follow(Split *s, Node *n) {
    const Origin *o = NULL;
    if (is_split(n)) {
        Origin *own = arena_new(s->cx->scratch, Origin);
        *own = (Origin){.param = n};
        o = own;
    } else if (n->op == OP_MATMUL) {
        o = n->in[1]->mark;
    } else if (passes_on(n->op)) {
        for (int i = 0; i < n->n_in; i++) o = joined(s, o, n->in[i]->mark);
    }
    if (n->op == OP_RESHAPE) note_heads(s, n, o);
    if (n->op == OP_ATTENTION)
        for (const Origin *q = n->in[0]->mark; q; q = q->next) heads_of(s, q->param)->queries = true;
    for (int i = 0; i < n->n_out; i++) n->out[i].mark = (void *)o;
}

static void decide(Split *s, Node *param) {
    if (s->whole_experts && param_is_of_experts(param)) {
        param->attr.split = -1;
        return;
    }
    const Heads *h = heads_of(s, param);
    int64_t whole = param->attr.dims.at[param->attr.split].n, n = h->n ? h->n : whole;
    if (n % s->tp == 0) return;
    if (h->n && !h->queries && s->tp % h->n == 0) {
        param->attr.split = -1;                          // all ranks have them
        return;
    }
    diag_error(s->cx->diag, param->at, "%s has %lld %s, which %lld ranks (parallel.tp) can't share evenly", param->attr.name, (long long)n,
               h->n ? "heads" : param->attr.split ? "columns" : "rows", (long long)s->tp);
}

bool pass_split(Graph *g, PassCtx *cx) {
    if (g->mesh.tp <= 1) return false;
    Split s = {.cx = cx, .tp = g->mesh.tp, .whole_experts = g->mesh.etp == 1, .heads = {.arena = cx->scratch}};
    marks_clear(g);
    for_each_node(g, n) follow(&s, n);
    for_each_node(g, n)
        if (is_split(n)) decide(&s, n);
    marks_clear(g);
    return true;
}
