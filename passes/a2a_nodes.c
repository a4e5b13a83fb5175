// Rows of experts by nodes, where a node has several of the ranks that share them, or rows that several of its experts want:
//
//     %o' = exchange_offsets %o            =>      %c  = exchange_counts %o, %t {per_node = 4, tokens = 2048}
//     %x' = exchange_rows %x, %o, %o'              %o' = exchange_offsets %o, %c {per_node = 4}
//     %z  = return_rows %y, %o, %o'                %x' = exchange_rows %x, %o, %o', %c, %t {per_node = 4, tokens = 2048}
//                                                  %z  = return_rows %y, %o, %o', %c {per_node = 4}
//
// %t are the rows' tokens, by which x was gathered.  What the runtime does then: runtime/node_rows.h.  A route goes so when that
// is predicted to be faster, or parallel.a2a says so.
#include <math.h>
#include <string.h>

#include "passes/a2a.h"

// What partition made of a route.
typedef struct {
    Node  *offsets;            // exchange_offsets
    Node **user;               // exchange_rows, return_rows
    int    n_users;
    Value *same;               // rows of the same number are one; NULL: not known
    int64_t tokens;
    int    per_node, nodes;
} Route;

static bool is_user(const Route *r, const Node *n) {
    return (n->op == OP_EXCHANGE_ROWS || n->op == OP_RETURN_ROWS) && n->in[2] == &r->offsets->out[0];
}

// What gathered rows, alone or in a body that converts them; NULL: nothing did.
static const Node *gather_of(const Value *rows) {
    const Node *n = rows->node, *body = n;
    if (n->op == OP_FUSED) {
        for_each_node(n->attr.body, m)
            if (m->op == OP_YIELD) body = m->in[rows - n->out]->node;
        while (body->op == OP_CAST) body = body->in[0]->node;
    }
    return body->op == OP_GATHER_ROWS ? body : NULL;
}

// slot / k, of the route's own slots: by which token's number was it gathered?
static Value *token_of_rows(const Route *r, const Node *n) {
    double k;
    const Node *rows = n->in[0]->node, *gather = n->op == OP_EXCHANGE_ROWS ? gather_of(n->in[0]) : NULL;
    if (!gather) return NULL;
    Value *by = gather == rows ? gather->in[1] : gather->in[1]->node->op == OP_ARG ? rows->in[gather->in[1]->node->attr.k] : NULL;
    const Node *div = by ? by->node : NULL;
    bool by_token = div && div->op == OP_DIV && div->in[0]->node == r->offsets->in[0]->node && value_is_scalar_const(div->in[1], &k);
    return by_token ? by : NULL;
}

static Route route_of(Graph *g, PassCtx *cx, Node *offsets) {
    Route r = {.offsets = offsets, .user = arena_array(cx->scratch, Node *, offsets->out[0].n_uses + 1), .per_node = (int)cx->train->per_node};
    r.nodes = a2a_ranks(offsets) / r.per_node;
    for_each_node(g, n) {
        if (!is_user(&r, n)) continue;
        r.user[r.n_users++] = n;
        Value *token = token_of_rows(&r, n);
        if (!token || r.same) continue;
        const Type *x = &gather_of(n->in[0])->in[0]->type;
        r.same = token;
        r.tokens = type_bound_elements(x) / dim_bound(x->dim[x->ndim - 1]);
    }
    return r;
}

static bool crosses_once(const Route *r, const Node *n) { return r->same && token_of_rows(r, n) == r->same; }

// ---- how long ----------------------------------------------------------------------------------------------------

double a2a_share_of_node(int k, double experts, double there) {
    double none = 1;
    for (int i = 0; i < k; i++) none *= experts - there > i ? (experts - there - i) / (experts - i) : 0;
    return 1 - none;
}

// Different ones of the rows for k experts each that nodes get.
static double distinct(const Route *r, double rows) {
    double experts = (double)r->offsets->attr.experts, k = rows / (double)r->tokens;
    return (double)r->tokens * a2a_share_of_node((int)(k + 0.5), experts, experts / r->nodes) * r->nodes;
}

typedef struct { A2aRun run; double copied; } Way;

// Half of what a step does with the route (forward or backward), as if both were alike.
static Way way(Graph *g, PassCtx *cx, const Route *r, bool by_nodes) {
    int ranks = a2a_ranks(r->offsets);
    Way w = {.run = {.kernels = 1, .ranks = ranks, .slots = a2a_slots(r->offsets)}};
    double map = sizeof(int32_t);
    for (int i = 0; i < r->n_users; i++) {
        const Node *n = r->user[i];
        double rows = a2a_rows_at_home(n), row = a2a_row_bytes(n), bytes = rows * row;
        bool once = by_nodes && crosses_once(r, n);
        if (once) bytes = distinct(r, rows) * row + rows * map;
        *(n->op == OP_EXCHANGE_ROWS ? &w.run.there : &w.run.back) += a2a_on_link(cx, bytes, ranks) / 2;
        // written where a node shares memory; what goes there is packed in front of that
        double away = (double)(r->nodes - 1) / r->nodes;
        if (by_nodes) w.copied += (rows * row + (n->op == OP_EXCHANGE_ROWS ? bytes : 0)) * away / 2;
    }
    for_each_node(g, n) {
        if (n->op != OP_GROUPED_MATMUL || n->in[2] != &r->offsets->out[0]) continue;
        w.run.products += a2a_products_flops(n) / ranks / 2;
        w.run.matrices += a2a_matrices_bytes(n) / 2;
    }
    return w;
}

enum { COPIES_A_SECOND = 2000000000, WORD_NS = 2000 };       // bytes that one core copies; a word between ranks of a node

static double seconds_by_nodes(Graph *g, PassCtx *cx, const Route *r) {
    Way w = way(g, cx, r, true);
    const MachineLink *near = &cx->train->near;
    double copies = near->rate > 0 ? near->rate : COPIES_A_SECOND, word = near->rate > 0 ? near->latency : WORD_NS * 1e-9;
    double words = r->n_users / 2.0 * (r->per_node - 1) * word;
    return a2a_seconds(cx, &w.run, a2a_best_cut(cx, &w.run, 1, r->nodes - 1), r->nodes - 1) + w.copied / copies + words;
}

static double seconds_by_ranks(Graph *g, PassCtx *cx, const Route *r) {
    Way w = way(g, cx, r, false);
    int ranks = a2a_ranks(r->offsets), peers = a2a_peers(cx, ranks), experts = (int)r->offsets->attr.experts / ranks;
    return a2a_seconds(cx, &w.run, a2a_best_cut(cx, &w.run, experts, peers), peers);
}

// ---- by nodes ----------------------------------------------------------------------------------------------------

// The rows' tokens, in front of the counts that need them.
static void hoist_same(Graph *g, Route *r) {
    double k = 1;
    Builder b = builder_before(g, r->offsets);
    Node *div = r->same->node;
    value_is_scalar_const(div->in[1], &k);
    Value *same = build_binary(&b, OP_DIV, div->in[0], build_const(&b, k, I32));
    Node *by = div->in[1]->node;
    replace_all_uses(g, r->same, same);
    graph_remove(div);
    if (!by->out[0].n_uses) graph_remove(by);
    r->same = same;
}

static void send_by_nodes(Graph *g, Route *r) {
    Node *o = r->offsets;
    if (r->same) hoist_same(g, r);
    Builder b = builder_before(g, o);
    Value *counts = r->same ? make(&b, OP_EXCHANGE_COUNTS, INS(o->in[0], r->same), .experts = o->attr.experts, .over = o->attr.over,
                                   .slots = o->attr.slots, .per_node = r->per_node, .tokens = r->tokens)
                            : make(&b, OP_EXCHANGE_COUNTS, INS(o->in[0]), .experts = o->attr.experts, .over = o->attr.over,
                                   .slots = o->attr.slots, .per_node = r->per_node);
    node_add_operand(o, counts);
    o->attr.per_node = r->per_node;
    for (int i = 0; i < r->n_users; i++) {
        Node *n = r->user[i];
        bool once = crosses_once(r, n);
        node_add_operand(n, counts);
        n->attr.per_node = r->per_node;
        if (!once) continue;
        node_add_operand(n, r->same);
        n->attr.tokens = r->tokens;
    }
}

bool a2a_by_nodes(Graph *g, PassCtx *cx) {
    const TrainOpts *t = cx->train;
    int routes = 0, by_nodes = 0;
    double nodes = 0, ranks = 0;
    if (!t || !t->per_node || !strcmp(t->a2a, "flat") || (t->chunks > 1 && strcmp(t->a2a, "node") != 0)) return false;
    for_each_node(g, n) {
        if (n->op != OP_EXCHANGE_OFFSETS || a2a_ranks(n) % t->per_node || a2a_ranks(n) == t->per_node) continue;
        Route r = route_of(g, cx, n);
        double one = seconds_by_nodes(g, cx, &r), other = seconds_by_ranks(g, cx, &r);
        bool chosen = one < other || !strcmp(t->a2a, "node");
        TRACE(cx, "schedule-a2a: %s: rows %s, predicted %.3f ms by %d nodes of %d ranks, %.3f ms from rank to rank\n", n->path ? n->path : "",
              chosen ? r.same ? "by nodes, each once" : "by nodes" : "from rank to rank", 1e3 * one, r.nodes, r.per_node, 1e3 * other);
        routes++;
        by_nodes += chosen;
        nodes += one;
        ranks += other;
        if (chosen) send_by_nodes(g, &r);
    }
    if (routes)
        WON(cx, "rows of %d of %d routes go by nodes of %d ranks: predicted %.2f ms, from rank to rank %.2f ms", by_nodes, routes,
            (int)t->per_node, 1e3 * nodes, 1e3 * ranks);
    return by_nodes > 0;
}
