// What backward reads of forward: kept in memory, or computed again.
//
//     %s = sigmoid %a                          %s  = sigmoid %a
//     %y = mul %a, %s                          %y  = mul %a, %s
//     ..                               =>      ..
//     %d = mul %g, %s          (backward)      %s' = sigmoid %a          (backward)
//                                              %d  = mul %g, %s'
//
// Which values to keep is a minimum cut.  Every forward value that backward needs must be computable from
// what is kept; keeping costs a value's bytes, computing again costs nothing, but not everything may be
// computed again.  A node of the flow network per value, capacity its bytes; infinite edges from operands to
// results of nodes that may run again, from the source to results of nodes that may not, and to the sink from
// what backward reads.  Of all minimum cuts the one nearest to the sink is taken: the least work done twice.
// Parameters, states and inputs are there anyway.
//
//   train.recompute   may run again
//   none              nothing: every value read is kept
//   cheap             elementwise ops, softmax, structure, gathers of rows
//   layer             also contractions, row reductions, rows' ways to experts and back; what another layer reads
//                     is kept
//
// Never run again: choices (topk, queue, count, route, gates), attention, head_loss, random draws, sums over
// rows, and what is too small to be worth a kernel. A clone is its original with the same operands or their
// clones, so it computes the same bits.
#include <stdlib.h>
#include <string.h>
#include "passes/simplify.h"

static bool is_free(const Value *v) {
    Op op = value_shown(v)->node->op;
    return op == OP_PARAM || op == OP_STATE || op == OP_INPUT || op == OP_CONST;
}

// layers.3 of layers.3.ffn.experts; NULL outside layers
static const char *layer_of(const Node *n, int *length) {
    const char *at = n->path ? strstr(n->path, "layers.") : NULL;
    if (!at) return NULL;
    at += strlen("layers.");
    *length = (int)strspn(at, "0123456789") + (int)(at - n->path);
    return n->path;
}

static bool same_layer(const Node *x, const Node *y) {
    int nx = 0, ny = 0;
    const char *lx = layer_of(x, &nx), *ly = layer_of(y, &ny);
    return lx && ly && nx == ny && !strncmp(lx, ly, (size_t)nx);
}

// One number per row, or next to nothing: a kernel more costs more than the memory.
static bool is_thin(const Type *t) {
    enum { NEXT_TO_NOTHING = 64 << 10 };
    bool one_column = !t->ndim || dim_is_1(t->dim[t->ndim - 1]) || t->dim[t->ndim - 1].sym;
    return one_column || type_bytes(t) <= NEXT_TO_NOTHING;
}

static bool may_run_again(const Node *n, bool whole_layers) {
    bool sends_rows = n->op == OP_EXCHANGE_ROWS || n->op == OP_RETURN_ROWS;
    if (n->n_out != 1 || n->attr.body || (!op_is(n->op, PURE) && !sends_rows)) return false;
    if (is_thin(&n->out[0].type) && !node_is_view(n)) return false;
    switch (n->op) {
    case OP_RESHAPE:
    case OP_BROADCAST:
    case OP_SLICE:
    case OP_CONCAT:
    case OP_PERMUTE:
    case OP_UNSLICE:
    case OP_SOFTMAX:
    case OP_GATHER_ROWS:
    case OP_IOTA:           return true;
    case OP_MATMUL:
    case OP_GROUPED_MATMUL:
    case OP_EXCHANGE_ROWS:
    case OP_RETURN_ROWS:
    case OP_LOGSUMEXP:
    case OP_SCATTER_ADD_ROWS: return whole_layers;
    case OP_SUM:
        return whole_layers && n->attr.axes.n == 1 && n->attr.axes.at[0] == n->in[0]->type.ndim - 1;
    default:                return op_is(n->op, ELEMENTWISE);
    }
}

// ---- maximum flow (Dinic) ----

typedef struct { int to; int64_t room; } Arc;           // arc i and i^1 are each other's reverse
typedef struct {
    Arena *arena;
    VEC(Arc) arc;
    VEC(int) from;
    int  n_nodes, *first, *index, *level, *next, *queue;
} Flow;

enum { SOURCE_NODE, SINK_NODE, FIRST_VALUE };
#define INFINITE (INT64_MAX / 4)

static void add_arc(Flow *f, int from, int to, int64_t room) {
    vec_push(f->arena, &f->arc, ((Arc){to, room}));
    vec_push(f->arena, &f->arc, ((Arc){from, 0}));
    vec_push(f->arena, &f->from, from);
    vec_push(f->arena, &f->from, to);
}

static void index_arcs(Flow *f) {
    f->first = arena_array(f->arena, int, f->n_nodes + 2);
    f->index = arena_array(f->arena, int, f->arc.n + 1);
    f->level = arena_array(f->arena, int, f->n_nodes + 1);
    f->next = arena_array(f->arena, int, f->n_nodes + 1);
    f->queue = arena_array(f->arena, int, f->n_nodes + 1);
    for (int i = 0; i < f->arc.n; i++) f->first[f->from.at[i] + 1]++;
    for (int i = 0; i < f->n_nodes; i++) f->first[i + 1] += f->first[i];
    int *fill = arena_array(f->arena, int, f->n_nodes + 1);
    for (int i = 0; i < f->arc.n; i++) f->index[f->first[f->from.at[i]] + fill[f->from.at[i]]++] = i;
}

// Distances from the sink, against arcs with room.  False if the source can't be reached.
static bool find_levels(Flow *f) {
    for (int i = 0; i < f->n_nodes; i++) f->level[i] = -1;
    int begin = 0, end = 0;
    f->queue[end++] = SINK_NODE;
    f->level[SINK_NODE] = 0;
    while (begin < end) {
        int at = f->queue[begin++];
        for (int k = f->first[at]; k < f->first[at + 1]; k++) {
            int from = f->arc.at[f->index[k]].to;
            if (f->level[from] >= 0 || !f->arc.at[f->index[k] ^ 1].room) continue;
            f->level[from] = f->level[at] + 1;
            f->queue[end++] = from;
        }
    }
    return f->level[SOURCE_NODE] >= 0;
}

static int64_t push(Flow *f, int at, int64_t amount) {
    if (at == SINK_NODE) return amount;
    for (; f->next[at] < f->first[at + 1]; f->next[at]++) {
        Arc *arc = &f->arc.at[f->index[f->next[at]]];
        if (!arc->room || f->level[arc->to] != f->level[at] - 1) continue;
        int64_t pushed = push(f, arc->to, arc->room < amount ? arc->room : amount);
        if (!pushed) continue;
        arc->room -= pushed;
        f->arc.at[f->index[f->next[at]] ^ 1].room += pushed;
        return pushed;
    }
    return 0;
}

// After it level[i] >= 0 means: on the sink's side of the cut.
static void cut_nearest_to_sink(Flow *f) {
    while (find_levels(f)) {
        memcpy(f->next, f->first, sizeof *f->next * (size_t)f->n_nodes);
        while (push(f, SOURCE_NODE, INFINITE)) {}
    }
}

// ---- the choice ----

static int entry(const Value *v) { return FIRST_VALUE + 2 * v->id; }
static int leave(const Value *v) { return FIRST_VALUE + 2 * v->id + 1; }

// kept[value id]: a forward value that backward reads from memory.
static void choose(Graph *g, PassCtx *cx, bool whole_layers, bool *kept) {
    Arena *a = cx->scratch;
    int n_values = graph_number(g);
    Flow f = {.arena = a, .n_nodes = FIRST_VALUE + 2 * n_values};
    bool *crosses = arena_array(a, bool, n_values + 1);           // read by forward nodes of another layer
    bool *needed = arena_array(a, bool, n_values + 1);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++) {
            const Value *v = n->in[i];
            if (n->backward && !v->node->backward) needed[v->id] = true;
            if (!n->backward && !same_layer(n, v->node)) crosses[v->id] = true;
        }
    for_each_node(g, n) {
        if (n->backward) continue;
        bool again = may_run_again(n, whole_layers);
        for (int i = 0; i < n->n_out; i++) {
            const Value *v = &n->out[i];
            if (is_free(v)) continue;
            bool is_view = node_is_view(n);
            bool stays = !again || (whole_layers && crosses[v->id] && !is_view);
            add_arc(&f, entry(v), leave(v), is_view ? INFINITE : type_bytes(&v->type));
            if (needed[v->id]) add_arc(&f, leave(v), SINK_NODE, INFINITE);
            if (stays) add_arc(&f, SOURCE_NODE, entry(v), INFINITE);
            for (int k = 0; k < n->n_in && !stays; k++)
                if (!is_free(n->in[k])) add_arc(&f, leave(n->in[k]), entry(v), INFINITE);
        }
    }
    index_arcs(&f);
    cut_nearest_to_sink(&f);
    for_each_node(g, n)
        for (int i = 0; i < n->n_out && !n->backward; i++) {
            const Value *v = &n->out[i];
            kept[v->id] = is_free(v) || (f.level[entry(v)] < 0 && f.level[leave(v)] >= 0);
        }
}

// ---- clones ----

typedef struct { const bool *kept; int n_clones; } Clones;

// v as backward may read it at b's place.  Clones are found again through Value.mark.
static Value *for_backward(Clones *c, Builder *b, Value *v) {
    if (v->node->backward || c->kept[v->id]) return v;
    if (v->mark) return v->mark;
    Node *n = v->node;
    Value *few[16];
    Value **ins = n->n_in < 16 ? few : arena_array(b->g->arena, Value *, n->n_in + 1);
    for (int i = 0; i < n->n_in; i++) ins[i] = for_backward(c, b, n->in[i]);
    ins[n->n_in] = NULL;
    Node *clone = node_clone(b, n, ins);
    clone->keep = true;
    c->n_clones++;
    return v->mark = &clone->out[0];
}

// Of forward values that backward reads from memory.
static int64_t read_bytes(Graph *g) {
    int64_t bytes = 0;
    marks_clear(g);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in && n->backward; i++) {
            Value *v = n->in[i];
            while (node_is_view(v->node)) v = v->node->in[0];
            if (v->node->backward || v->mark || is_free(v)) continue;
            v->mark = v;
            bytes += type_bytes(&v->type);
        }
    marks_clear(g);
    return bytes;
}

bool pass_recompute(Graph *g, PassCtx *cx) {
    if (!cx->train || !strcmp(cx->train->recompute, "none")) return false;
    bool whole_layers = !strcmp(cx->train->recompute, "layer");
    bool *kept = arena_array(cx->scratch, bool, graph_number(g) + 1);
    choose(g, cx, whole_layers, kept);
    int64_t without = read_bytes(g);
    Clones c = {kept, 0};
    marks_clear(g);
    for_each_node(g, n) {
        if (!n->backward || n->keep) continue;
        Builder b = builder_before(g, n);
        for (int i = 0; i < n->n_in; i++) {
            Value *v = n->in[i], *u = for_backward(&c, &b, v);
            if (u == v) continue;
            replace_operand(n, i, u);
        }
    }
    marks_clear(g);
    drop_dead(g, cx);
    WON(cx, "%.1f -> %.1f MB kept for backward, %d nodes are computed again", (double)without / 1e6,
        (double)read_bytes(g) / 1e6, c.n_clones);
    return c.n_clones > 0;
}
