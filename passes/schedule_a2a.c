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
// so all ranks meet their exchanges in one order.  Products that the next rows to be sent don't depend on (gradients of
// parameters, a shared expert) are kept for the time when rows are under way: between nodes, as many as that is predicted to take
// on the way to experts, the rest on the way back, where ranks with few rows wait for those with many.
//
// What then still stands around products of rows, waits in front and ways back behind, runs chunk by chunk, a group of each
// rank's experts after another, where that is predicted to be faster (or parallel.chunks says so):
//
//     wait   grouped_matmul   grouped_matmul   return_rows      =>      w0 m0 m0 r0  w1 m1 m1 r1  ..
//
// r0 is under way beside m1, and the second chunk's rows come beside m0.  Rows that stay on their rank can be multiplied apart
// (attribute own): those of some experts in front of w0, the rest behind the last r.  No row's result depends on it.
//
// Rows that go by nodes (a2a_nodes.c) stay in one chunk: a node gets all it needs in one message.
#include "passes/a2a.h"

enum {
    NEARBY = 160,            // nodes: about a layer; work from further away would keep its results long
    SUMS_UNDER_WAY = 8
};

static bool can_pend(const Node *n) {
    RtGroup group;
    switch (n->op) {
    case OP_TREE_ALL_REDUCE: case OP_TREE_REDUCE_SCATTER: case OP_ALL_GATHER: case OP_EXCHANGE_ROWS: case OP_RETURN_ROWS:
    case OP_JOIN_ROWS: case OP_SUM_ROWS:
    case OP_SUM_REPLICAS:
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
        // what is copied into the result, and what is not: rows are sent from where they lie, and by nodes find their places in
        // the end; a part's sum is formed there
        bool copied = n->op == OP_TREE_ALL_REDUCE || n->op == OP_ALL_GATHER;
        Value *done = copied             ? make(&b, OP_WAIT, INS(y), 0)
                      : n->attr.per_node ? make(&b, OP_WAIT, INS(y, n->in[0], n->in[1], n->in[2], n->in[3]), 0)
                                         : make(&b, OP_WAIT, INS(y, n->in[0]), 0);
        n->attr.pending = 1;
        y->mark = done;
        n_waits++;
    }
    marks_clear(g);
    return n_waits;
}

// ---- how long -------------------------------------------------------------------------------------------

int a2a_ranks(const Node *n) {
    RtGroup group;
    return exchange_group(n, &group) ? rt_group_size(n->graph->mesh, group) : 1;
}

static int on_a_node(const PassCtx *cx, int ranks) {
    int per_node = cx->train ? (int)cx->train->per_node : 0;
    return per_node && ranks % per_node == 0 && ranks > per_node ? per_node : 0;
}

double a2a_on_link(const PassCtx *cx, double bytes, int ranks) {
    int per_node = on_a_node(cx, ranks);
    return per_node ? bytes * (ranks - per_node) / ranks * per_node : bytes * (ranks - 1) / ranks;
}

int a2a_peers(const PassCtx *cx, int ranks) {
    int per_node = on_a_node(cx, ranks);
    return ranks - (per_node ? per_node : 1);
}

double a2a_row_bytes(const Node *n) {
    const Type *t = &n->in[0]->type;
    return (double)type_bytes(t) / (double)dim_bound(t->dim[0]);
}

double a2a_rows_at_home(const Node *n) { return n->op == OP_RETURN_ROWS ? (double)n->attr.sym->bound : (double)dim_bound(n->in[0]->type.dim[0]); }

static double bytes_on_link(const PassCtx *cx, const Node *n) { return a2a_on_link(cx, a2a_rows_at_home(n) * a2a_row_bytes(n), a2a_ranks(n)); }

double a2a_products_flops(const Node *n) {
    Contraction c = contraction_of(n);
    return 2.0 * (double)type_bound_elements(&c.a) * (double)dim_bound(c.y.dim[c.y.ndim - 1]) * c.products;
}

// What ranks of one node copy from each other's memory is work of their cores, not a way that something else could hide.
static const MachineLink inside_node = {.rate = 4e9, .latency = 1.5e-6, .message = 0.5e-6, .cpu = 2.5e-10};
static const MachineLink *link_of(const PassCtx *cx) { return cx->train && cx->train->link.rate > 0 ? &cx->train->link : &inside_node; }

// Seconds that a byte takes and no core works at.
static double wire_seconds(const MachineLink *l) {
    double wire = 1 / l->rate - l->cpu;
    return wire > 0 ? wire : 0;
}

static double on_link_seconds(const PassCtx *cx, const Node *n) { return bytes_on_link(cx, n) * wire_seconds(link_of(cx)); }

static double products_rate(const PassCtx *cx) {
    if (cx->train && cx->train->flops > 0) return cx->train->flops;
    int threads = cx->train && cx->train->threads > 0 ? cx->train->threads : 1;
    return cx->machine ? machine_rates(cx->machine, threads).fma : 50e9;
}

// Of a node that multiplies; rows at experts as if all ranks' had as many.
static double products_seconds(const PassCtx *cx, const Node *n) {
    if (!op_is_contraction(n->op)) return 0;
    const Node *by = n->op == OP_GROUPED_MATMUL || n->op == OP_GROUPED_DW ? n->in[2]->node : NULL;
    return a2a_products_flops(n) / (by && by->op == OP_EXCHANGE_OFFSETS ? a2a_ranks(by) : 1) / products_rate(cx);
}

// ---- order ----------------------------------------------------------------------------------------------

typedef struct {
    Graph *g;
    Node **node;             // by id
    int   *missing;          // operands that are not there yet
    int   *first_user, *next_user, *user;      // edges, as lists by node
    bool  *ready, *placed;
    int   *work, *wait, *wide;      // ids in list order: waits, and all others; exchanges of wide rows
    int   *due;              // the first of those that depends on a node; n: none does
    double *started;         // of those: clock
    int    n, n_work, n_waits, n_wide, lowest_work, lowest_wait, lowest_wide, under_way, hidden;
    int    rows_under_way;
    double clock;            // seconds of the products that are placed
    Node  *last;             // of what is placed
    const PassCtx *cx;
} Scheduler;

// Worth hiding: rows of some width that go to experts or come back.
enum { WIDE = 64 };              // bytes of a row
static bool moves_wide_rows(const Node *n) {
    if (n->op != OP_EXCHANGE_ROWS && n->op != OP_RETURN_ROWS) return false;
    const Type *t = &n->in[0]->type;
    return type_bytes(t) >= WIDE * dim_bound(t->dim[0]);
}

// Work that can wait: nothing reads it but sums over ranks and the optimizer; or the next rows to be sent are others'.
static bool is_gradient(const Node *n) { return n->op == OP_GROUPED_DW || n->op == OP_MATMUL_DW; }
static bool can_wait(const Scheduler *s, int id) {
    Op op = s->node[id]->op;
    if (is_gradient(s->node[id])) return true;
    int next = s->lowest_wide < s->n_wide ? s->wide[s->lowest_wide] : s->n;
    return op == OP_MATMUL && next < id + NEARBY && next < s->due[id];
}

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
    if (n->attr.pending && moves_wide_rows(n)) s->rows_under_way++;
    if (n->op == OP_WAIT && moves_wide_rows(n->in[0]->node)) s->rows_under_way--;
    s->started[n->id] = s->clock;
    s->clock += products_seconds(s->cx, n);
    while (s->lowest_wide < s->n_wide && s->placed[s->wide[s->lowest_wide]]) s->lowest_wide++;
    for (int e = s->first_user[n->id]; e >= 0; e = s->next_user[e])
        if (--s->missing[s->user[e]] == 0) s->ready[s->user[e]] = true;
}

static int first_ready(Scheduler *s, const int *at, int n, int *lowest, int of_sum) {
    while (*lowest < n && (s->placed[at[*lowest]] || is_source(s->node[at[*lowest]]))) ++*lowest;
    for (int i = *lowest; i < n; i++)
        if (s->ready[at[i]] && (of_sum < 0 || is_sum(s->node[at[i]]->in[0]->node) == of_sum)) return at[i];
    return -1;
}

// The first work that is ready, what can wait last; beside rows, gradients hold memory no longer than they must.
static int first_work(Scheduler *s) {
    int first = first_ready(s, s->work, s->n_work, &s->lowest_work, -1);
    if (first < 0 || !can_wait(s, first) || (s->rows_under_way && is_gradient(s->node[first]))) return first;
    for (int i = s->lowest_work; i < s->n_work && s->work[i] < first + NEARBY; i++)
        if (s->ready[s->work[i]] && !can_wait(s, s->work[i])) return s->work[i];
    return first;
}

// Rows on their way to experts have had the time that they need.  Inside a node cores move them: there is nothing to share out.
enum { SPARE_PERCENT = 25 };
static bool has_come(const Scheduler *s, int wait) {
    const Node *x = s->node[wait]->in[0]->node;
    double beside = s->clock - s->started[x->id], needed = on_link_seconds(s->cx, x);
    return x->op == OP_EXCHANGE_ROWS && needed > 0 && beside >= (1 + SPARE_PERCENT / 100.0) * needed;
}

static int next_node(Scheduler *s) {
    int work = first_work(s);
    int rows = first_ready(s, s->wait, s->n_waits, &s->lowest_wait, 0), sum = first_ready(s, s->wait, s->n_waits, &s->lowest_wait, 1);
    bool too_many = s->under_way >= SUMS_UNDER_WAY;
    if (sum >= 0 && too_many && (work < 0 || s->node[work]->attr.pending)) return sum;
    if (work >= 0 && rows >= 0 && can_wait(s, work) && has_come(s, rows)) return rows;
    if (work >= 0 && (rows < 0 || work < rows + NEARBY)) {
        s->hidden += rows >= 0;
        return work;
    }
    return rows >= 0 ? rows : sum;
}

// Which exchange of wide rows needs a node first.
static void find_due(Scheduler *s) {
    for (int id = s->n - 1; id >= 0; id--) {
        Node *n = s->node[id];
        s->due[id] = n->attr.pending && moves_wide_rows(n) ? id : s->n;
        for (int e = s->first_user[id]; e >= 0 && s->due[id] != id; e = s->next_user[e])
            if (s->due[s->user[e]] < s->due[id]) s->due[id] = s->due[s->user[e]];
    }
    for (int id = 0; id < s->n; id++)
        if (s->due[id] == id) s->wide[s->n_wide++] = id;
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
    Scheduler s = {.g = g, .n = id, .cx = cx,
                   .node = arena_array(a, Node *, id + 1), .missing = arena_array(a, int, id + 1),
                   .first_user = arena_array(a, int, id + 1), .next_user = arena_array(a, int, edges + 1),
                   .user = arena_array(a, int, edges + 1), .ready = arena_array(a, bool, id + 1),
                   .placed = arena_array(a, bool, id + 1), .work = arena_array(a, int, id + 1),
                   .wait = arena_array(a, int, n_waits + 1), .wide = arena_array(a, int, id + 1), .due = arena_array(a, int, id + 1),
                   .started = arena_array(a, double, id + 1)};
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
    find_due(&s);
    for (int i; (i = next_node(&s)) >= 0;) place(&s, s.node[i]);
    for (int i = 0; i < id; i++)
        if (!s.placed[i]) place(&s, s.node[i]);          // sources that nobody reads
    g->last = s.last;
    WON(cx, "%d exchanges are waited for late, beside %d nodes", n_waits, s.hidden);
}

// ---- chunks --------------------------------------------------------------------------------------------

typedef struct {
    Node  *member[CHUNKED_RUN];
    int    n;
    A2aRun cost;
} Run;

static const Value *experts_offsets(const Node *n) {
    if (n->op == OP_GROUPED_MATMUL) return n->in[2]->node->op == OP_EXCHANGE_OFFSETS ? n->in[2] : NULL;
    const Node *x = n->op == OP_WAIT ? n->in[0]->node : n;
    bool fits = n->op == OP_WAIT ? x->op == OP_EXCHANGE_ROWS : x->op == OP_RETURN_ROWS;
    return fits && x->attr.pending ? x->in[2] : NULL;
}

static int stage_of(const Node *n) { return n->op == OP_WAIT ? 0 : n->op == OP_GROUPED_MATMUL ? 1 : 2; }

static bool is_made_in(const Run *r, const Value *v) {
    for (int i = 0; i < r->n; i++)
        if (r->member[i] == v->node) return true;
    return false;
}

// Seconds of the products between two nodes.
static double seconds_between(const PassCtx *cx, const Node *from, const Node *to) {
    double seconds = 0;
    for (const Node *n = from->next; n && n != to; n = n->next) seconds += products_seconds(cx, n);
    return seconds;
}

static const Node *wait_of(const Node *n) {
    const Node *wait = n->next;
    while (wait && (wait->op != OP_WAIT || wait->in[0]->node != n)) wait = wait->next;
    return wait;
}

// What stands beside its rows on their way, before the first product and behind the last.
static void find_beside(const PassCtx *cx, Run *r) {
    const Node *last = r->member[r->n - 1];
    for (int i = 0; i < r->n && !r->cost.beside_there; i++) {
        const Node *x = r->member[i]->op == OP_WAIT ? r->member[i]->in[0]->node : NULL;
        if (x && moves_wide_rows(x)) r->cost.beside_there = seconds_between(cx, x, r->member[0]);
    }
    if (last->op == OP_RETURN_ROWS && wait_of(last)) r->cost.beside_back = seconds_between(cx, last, wait_of(last));
}

int a2a_slots(const Node *offsets) { return ((int)offsets->attr.experts + offsets->graph->mesh.replicas) / a2a_ranks(offsets); }

double a2a_matrices_bytes(const Node *n) {
    Contraction c = contraction_of(n);
    return (double)type_bytes(&c.b) * c.products;
}

// The run of nodes that begins with first: waits, products, ways back, of the same experts' rows.
static Run run_from(const PassCtx *cx, Node *first) {
    Run r = {.n = 0};
    const Value *offsets = experts_offsets(first);
    int stage = 0, products = 0;
    for (Node *n = first; n && offsets && r.n < CHUNKED_RUN; n = n->next) {
        if (r.n && is_source(n)) continue;
        if (experts_offsets(n) != offsets || stage_of(n) < stage) break;
        if (stage_of(n) == 2 && !is_made_in(&r, n->in[0])) break;
        stage = stage_of(n);
        products += stage == 1;
        r.member[r.n++] = n;
        if (stage == 0) r.cost.there += bytes_on_link(cx, n->in[0]->node);
        if (stage == 1) r.cost.products += a2a_products_flops(n) / a2a_ranks(offsets->node);
        if (stage == 1) r.cost.matrices += a2a_matrices_bytes(n);
        if (stage == 2) r.cost.back += bytes_on_link(cx, n);
    }
    if (!products) r.n = 0;
    r.cost.kernels = r.n;
    r.cost.ranks = r.n ? a2a_ranks(offsets->node) : 1;
    r.cost.slots = r.n ? a2a_slots(offsets->node) : 0;
    if (r.n) find_beside(cx, &r);
    return r;
}

enum { LAUNCH_NS = 3000 };       // of a kernel
static const double MATRIX_BYTES_A_SECOND = 4e9;      // read and packed

static double max(double x, double y) { return x > y ? x : y; }
static double min(double x, double y) { return x < y ? x : y; }

// Seconds of a run: the first chunk's rows come before they are multiplied, the last one's go when all others' are; own rows and
// other work stand beside these two.  Where own rows are multiplied apart, matrices are read once more.
double a2a_seconds(const PassCtx *cx, const A2aRun *r, A2aCut cut, int peers) {
    const MachineLink *l = link_of(cx);
    int q = cut.chunks;
    double message = l->message * peers, there = r->there * wire_seconds(l), back = r->back * wire_seconds(l), work = r->products / products_rate(cx);
    double own = cut.own ? work / r->ranks : 0, own_first = cut.own ? own * (cut.own - 1) / r->slots : 0;
    double before = r->beside_there + own_first, behind = r->beside_back + own - own_first;
    double first = max(there / q, min(there, before)), last = back / q, beside = there + back + 2 * q * message - first - last;
    work += l->cpu * (r->there + r->back) - own + q * LAUNCH_NS * 1e-9 * r->kernels;
    if (cut.own) own += 2 * LAUNCH_NS * 1e-9 * r->kernels + r->matrices / MATRIX_BYTES_A_SECOND;
    return message + max(first - before, 0) + own + max(work, beside) + max(last - behind, 0) + message +
           (r->there > 0 || r->back > 0 ? l->latency * q : 0);
}

// All own rows first, all last, or half of the slots each.
static A2aCut best_own(const PassCtx *cx, const A2aRun *r, A2aCut best, int q, int peers) {
    const char *asked = cx->train ? cx->train->own_rows : NULL;
    bool apart = asked && !strcmp(asked, "apart");
    if (!r->slots || (asked && !strcmp(asked, "with"))) return best;
    int first[] = {r->slots / 2, 0, r->slots};
    for (int i = 0; i < 3; i++) {
        A2aCut cut = {q, 1 + first[i]};
        if ((apart && !best.own) || a2a_seconds(cx, r, cut, peers) < a2a_seconds(cx, r, best, peers)) best = cut;
    }
    return best;
}

A2aCut a2a_best_cut(const PassCtx *cx, const A2aRun *r, int experts, int peers) {
    static const int some[] = {1, 2, 3, 4, 6, 8, 12, 16};
    A2aCut best = {1, 0};
    int forced = cx->train ? (int)cx->train->chunks : 0;
    if (forced) {
        best.chunks = forced < experts ? forced : experts;
        return best_own(cx, r, best, best.chunks, peers);
    }
    for (size_t i = 0; i < sizeof some / sizeof *some && (i == 0 || some[i] <= experts); i++) {
        A2aCut cut = {some[i], 0};
        if (!best.own && a2a_seconds(cx, r, cut, peers) < a2a_seconds(cx, r, best, peers)) best = cut;
        best = best_own(cx, r, best, some[i], peers);
    }
    return best;
}

// How many runs, and how long they are predicted to take in chunks and in one.
typedef struct { int runs, chunked, apart, most; double seconds, in_one; } Chunked;

static Chunked cut_in_chunks(Graph *g, PassCtx *cx) {
    Chunked all = {.most = 1};
    for_each_node(g, n) {
        Run r = run_from(cx, n);
        if (!r.n) continue;
        const Node *by = experts_offsets(n)->node;
        int ranks = a2a_ranks(by), peers = a2a_peers(cx, ranks);
        A2aCut one = {1, 0}, cut = a2a_best_cut(cx, &r.cost, by->attr.per_node ? 1 : (int)by->attr.experts / ranks, peers);
        double seconds = a2a_seconds(cx, &r.cost, cut, peers), in_one = a2a_seconds(cx, &r.cost, one, peers);
        TRACE(cx, "schedule-a2a: %s: %d nodes, %.2f MB there beside %.3f ms, %.2f MB back beside %.3f ms, %.1f GFLOP: %d chunks%s, predicted "
              "%.3f ms, in one %.3f ms\n", n->path ? n->path : "", r.n, r.cost.there / 1e6, 1e3 * r.cost.beside_there, r.cost.back / 1e6,
              1e3 * r.cost.beside_back, r.cost.products / 1e9, cut.chunks,
              cut.own ? arena_printf(cx->scratch, ", own rows of %d experts first, of %d last", cut.own - 1, r.cost.slots + 1 - cut.own) : "",
              1e3 * seconds, 1e3 * in_one);
        all.runs++;
        all.seconds += seconds;
        all.in_one += in_one;
        n_next = r.member[r.n - 1]->next;
        if (cut.chunks < 2 && !cut.own) continue;
        for (int i = 0; i < r.n; i++) {
            r.member[i]->attr.chunks = cut.chunks;
            r.member[i]->attr.own = cut.own;
        }
        all.chunked++;
        all.apart += cut.own > 0;
        if (cut.chunks > all.most) all.most = cut.chunks;
    }
    return all;
}

static void tell_chunks(PassCtx *cx, Chunked c) {
    if (!c.chunked || !cx->won) return;
    WON(cx, "%s; %d of %d runs of experts' products in up to %d chunks, in %d of them own rows apart: predicted %.2f ms, in one %.2f ms",
        cx->won, c.chunked, c.runs, c.most, c.apart, 1e3 * c.seconds, 1e3 * c.in_one);
}

// The parameter or state whose memory v shows, or NULL.
static const Node *persistent(const Value *v) {
    const Node *n = value_shown(v)->node;
    return n->op == OP_PARAM || n->op == OP_STATE ? n : NULL;
}

static Node *later(Node *x, Node *y) { return x && x->id > y->id ? x : y; }

bool pass_schedule_a2a(Graph *g, PassCtx *cx) {
    bool changed = rt_mesh_ranks(g->mesh) > 1;
    if (changed) {
        a2a_by_nodes(g, cx);
        const char *nodes = cx->won;
        overlap(g, cx);
        if (nodes) WON(cx, "%s; %s", nodes, cx->won ? cx->won : "");
        tell_chunks(cx, cut_in_chunks(g, cx));
    }
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
