// Makes list order the order in which a rank runs: from here on each node may be executed at its place.
//
//     update %v {name = "w"}            %r = mul (param "w"), %x
//     %r = mul (param "w"), %x    =>    update %v {name = "w"}
//
// An update means "at the end; reads see the old".  It moves behind the last reader of what it overwrites,
// and not further, so that the memory of its operand is free early.  An update whose operand is itself a
// parameter or state gets a copy of it first: two states may be exchanged.  Accumulates stand directly behind
// what they read.
//
// Exchanges are started where their operand is there and waited for as late as other work allows:
//
//     %y = exchange_rows %x, ..         %y' = exchange_rows %x, .. {pending = 1}
//     %z = grouped_matmul %y, ..   =>   %s  = .. what doesn't need %y: a shared expert, the router's loss ..
//     %s = ..                           %y  = wait %y', %x
//                                       %z  = grouped_matmul %y, ..
//
// A list scheduler in the order of the text: the first node whose operands are there comes next, a wait when there is
// nothing else nearby, or when too many sums are on their way (each holds memory).  It sees the plan only, never counts,
// so all ranks meet their exchanges in one order.
#include "passes/util.h"

enum {
    NEARBY = 160,            // nodes: about a layer; work from further away would keep its results long
    SUMS_UNDER_WAY = 8
};

static bool can_pend(const Node *n) {
    RtGroup group;
    switch (n->op) {
    case OP_TREE_ALL_REDUCE: case OP_TREE_REDUCE_SCATTER: case OP_ALL_GATHER: case OP_EXCHANGE_ROWS: case OP_RETURN_ROWS:
        return exchange_group(n, &group) && rt_group_size(n->graph->mesh, group) > 1;
    default: return false;
    }
}

static bool is_sum(const Node *n) { return n->op == OP_TREE_ALL_REDUCE || n->op == OP_TREE_REDUCE_SCATTER; }

// Behind each exchange its wait, which all read instead.
static int add_waits(Graph *g) {
    int n_waits = 0;
    marks_clear(g);                                      // of an exchange's result: the wait's
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        if (!can_pend(n)) continue;
        Builder b = builder_after(g, n);
        Value *y = &n->out[0];
        // sums copy what they add; rows are sent from where they lie
        Value *done = is_sum(n) || n->op == OP_ALL_GATHER ? make(&b, OP_WAIT, INS(y), 0) : make(&b, OP_WAIT, INS(y, n->in[0]), 0);
        n->attr.pending = 1;
        y->mark = done;
        n_waits++;
    }
    marks_clear(g);
    return n_waits;
}

typedef struct {
    Graph *g;
    Node **node;             // by id
    int   *missing;          // operands that are not there yet
    int   *first_user, *next_user, *user;      // edges, as lists by node
    bool  *ready, *placed;
    int   *work, *wait;      // ids in list order: waits, and all others
    int    n, n_work, n_waits, lowest_work, lowest_wait, under_way, hidden;
    Node  *last;             // of what is placed
} Scheduler;

static bool is_source(const Node *n) { return op_is(n->op, SOURCE); }

static void place(Scheduler *s, Node *n) {
    s->placed[n->id] = true;
    s->ready[n->id] = false;
    for (int i = 0; i < n->n_in; i++)                    // a source stands before its first reader
        if (!s->placed[n->in[i]->node->id]) place(s, n->in[i]->node);
    *(s->last ? &s->last->next : &s->g->first) = n;
    n->prev = s->last;
    n->next = NULL;
    s->last = n;
    if (n->attr.pending && is_sum(n)) s->under_way++;
    if (n->op == OP_WAIT && is_sum(n->in[0]->node)) s->under_way--;
    for (int e = s->first_user[n->id]; e >= 0; e = s->next_user[e])
        if (--s->missing[s->user[e]] == 0) s->ready[s->user[e]] = true;
}

static int first_ready(Scheduler *s, const int *at, int n, int *lowest, int of_sum) {
    while (*lowest < n && (s->placed[at[*lowest]] || is_source(s->node[at[*lowest]]))) ++*lowest;
    for (int i = *lowest; i < n; i++)
        if (s->ready[at[i]] && (of_sum < 0 || is_sum(s->node[at[i]]->in[0]->node) == of_sum)) return at[i];
    return -1;
}

static int next_node(Scheduler *s) {
    int work = first_ready(s, s->work, s->n_work, &s->lowest_work, -1);
    int rows = first_ready(s, s->wait, s->n_waits, &s->lowest_wait, 0), sum = first_ready(s, s->wait, s->n_waits, &s->lowest_wait, 1);
    bool too_many = s->under_way >= SUMS_UNDER_WAY;
    if (sum >= 0 && too_many && (work < 0 || s->node[work]->attr.pending)) return sum;
    if (work >= 0 && (rows < 0 || work < rows + NEARBY)) {
        s->hidden += rows >= 0;
        return work;
    }
    return rows >= 0 ? rows : sum;
}

static void overlap(Graph *g, PassCtx *cx) {
    int n_waits = add_waits(g), edges = 0;
    if (!n_waits) return;
    Arena *a = cx->scratch;
    int id = 0;
    for_each_node(g, n) {
        n->id = id++;
        edges += n->n_in;
    }
    Scheduler s = {.g = g, .n = id,
                   .node = arena_array(a, Node *, id + 1), .missing = arena_array(a, int, id + 1),
                   .first_user = arena_array(a, int, id + 1), .next_user = arena_array(a, int, edges + 1),
                   .user = arena_array(a, int, edges + 1), .ready = arena_array(a, bool, id + 1),
                   .placed = arena_array(a, bool, id + 1), .work = arena_array(a, int, id + 1),
                   .wait = arena_array(a, int, n_waits + 1)};
    for (int i = 0; i < id; i++) s.first_user[i] = -1;
    int e = 0;
    for_each_node(g, n) {
        s.node[n->id] = n;
        *(n->op == OP_WAIT ? &s.wait[s.n_waits++] : &s.work[s.n_work++]) = n->id;
        for (int i = 0; i < n->n_in; i++) {
            int of = n->in[i]->node->id;
            if (is_source(n->in[i]->node)) continue;
            s.user[e] = n->id;
            s.next_user[e] = s.first_user[of];
            s.first_user[of] = e++;
            s.missing[n->id]++;
        }
        s.ready[n->id] = !s.missing[n->id] && !is_source(n);
    }
    for (int i; (i = next_node(&s)) >= 0;) place(&s, s.node[i]);
    for (int i = 0; i < id; i++)
        if (!s.placed[i]) place(&s, s.node[i]);          // sources that nobody reads
    g->last = s.last;
    WON(cx, "%d exchanges are waited for late, beside %d nodes", n_waits, s.hidden);
}

// The parameter or state whose memory v shows, or NULL.
static const Node *persistent(const Value *v) {
    const Node *n = value_shown(v)->node;
    return n->op == OP_PARAM || n->op == OP_STATE ? n : NULL;
}

static Node *later(Node *x, Node *y) { return x && x->id > y->id ? x : y; }

bool pass_schedule_a2a(Graph *g, PassCtx *cx) {
    bool changed = rt_mesh_ranks(g->mesh) > 1;
    if (changed) overlap(g, cx);
    PtrMap last_reader = {.arena = cx->scratch};           // by name
    graph_number(g);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++) {
            const Node *source = persistent(n->in[i]);
            if (source) map_put(&last_reader, source->attr.name, n);
        }
    for_each_node(g, n) {
        if (n->op == OP_UPDATE && persistent(n->in[0]) && persistent(n->in[0])->attr.name != n->attr.name) {
            Builder b = builder_after(g, value_shown(n->in[0])->node);
            Node *source = n->in[0]->node;
            b.before = source->next;
            Value *copy = build_unary(&b, OP_COPY, n->in[0]);
            copy->node->id = source->id;
            replace_operand(n, 0, copy);
            changed = true;
        }
        if (n->op != OP_UPDATE && n->op != OP_ACCUMULATE) continue;
        Node *place = n->in[0]->node;
        Node *reader = n->op == OP_UPDATE ? map_get(&last_reader, n->attr.name) : NULL;
        place = later(reader && reader != n ? reader : NULL, place);
        if (place->next == n || place == n) continue;
        node_move_behind(n, place);
        changed = true;
    }
    TRACE(cx, "schedule-a2a: %d nodes\n", g->n_nodes);
    return changed;
}
