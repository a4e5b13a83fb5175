#include "planner/traffic.h"

#include <math.h>
#include <string.h>

#include "passes/a2a.h"
#include "runtime/comm_rounds.h"
#include "runtime/node_rows.h"
#include "runtime/ranks.h"

// ---- rows of experts ----------------------------------------------------------------------------------------------

static const RtStep *step_of(const RtPlan *plan, uint32_t i) { return RT_TABLE(plan, RtStep, steps) + i; }
static const RtArg *arg_of(const RtPlan *plan, uint32_t step, int i) {
    return RT_TABLE(plan, RtArg, args) + step_of(plan, step)->first_arg + i;
}

static bool same_place(const RtArg *a, const RtArg *b) { return a->arena == b->arena && a->offset == b->offset; }

// Offsets at the experts, as an exchange of offsets makes them.
static const RtArg *result_of(const RtPlan *plan, uint32_t step, const RtExchange *x) { return arg_of(plan, step, x->per_node ? 2 : 1); }

uint32_t traffic_offsets_step(const RtPlan *plan, uint32_t step) {
    const RtExchange *x = rt_exchange_of(plan, step);
    bool joins = x && (x->kind == RT_JOIN_ROWS || x->kind == RT_SUM_ROWS);
    if (!x || (x->kind != RT_EXCHANGE_ROWS && x->kind != RT_RETURN_ROWS && !joins)) return UINT32_MAX;
    for (uint32_t i = step; i-- > 0;) {
        const RtExchange *y = rt_exchange_of(plan, i);
        if (y && y->kind == (joins ? RT_JOIN_OFFSETS : RT_EXCHANGE_OFFSETS) && same_place(result_of(plan, i, y), arg_of(plan, step, 2))) return i;
    }
    return UINT32_MAX;
}

// The bound of the rows whose offsets are at this place.
static int64_t bound_at(const RtPlan *plan, const RtArg *at) {
    const RtSym *sym = RT_TABLE(plan, RtSym, syms);
    for (uint32_t i = 0; i < plan->syms.n; i++)
        if (sym[i].from_arena == (int32_t)at->arena && sym[i].from_offset == at->offset) return sym[i].bound;
    return 0;
}

// Whole numbers in the proportions of 1 / (e + 1)^skew, none above most, with the sum n (if it can be).
static void share_out(int32_t *to, int experts, int64_t n, int64_t most, double skew) {
    double weight = 0, taken = 0;
    for (int e = 0; e < experts; e++) weight += pow(e + 1, -skew);
    int64_t given = 0;
    for (int e = 0; e < experts; e++) {
        double own = pow(e + 1, -skew), left = weight - taken;
        double want = left > 0 ? (double)(n - given) * own / left : 0;
        int64_t rows = (int64_t)(want + 0.5);
        to[e] = (int32_t)(rows < most ? rows : most);
        given += to[e];
        taken += own;
    }
}

static const RtSlots *table_of(const TrafficOf *t, const RtExchange *x) { return x->table ? &t->table[x->table - 1] : NULL; }

// Which expert a slot has, and does it serve a rank of the group?
static int expert_in(const RtSlots *s, int slot) { return s ? s->expert[slot] : slot; }
static bool serves(const RtSlots *s, int slot, int rank) { return !s || rt_slot_serves(s, slot, rank); }

// The step that makes the offsets at this place out of those of other ranks' rows; UINT32_MAX: a route does.
static uint32_t offsets_made_by(const RtPlan *plan, const RtArg *at, uint32_t before) {
    for (uint32_t i = before; i-- > 0;) {
        const RtExchange *y = rt_exchange_of(plan, i);
        if (y && y->kind == RT_EXCHANGE_OFFSETS && same_place(result_of(plan, i, y), at)) return i;
    }
    return UINT32_MAX;
}

// Of each rank of a tp group, what comes to its experts from other ranks: alike on all.
static void share_arrived(const TrafficOf *t, Arena *a, uint32_t from, int m, int experts, int32_t *rows) {
    const RtExchange *y = rt_exchange_of(t->plan, from);
    int ranks = rt_group_size(t->plan->mesh, (RtGroup)y->group), i = rt_group_rank(t->plan->mesh, (RtGroup)y->group, t->rank);
    const int32_t *sent = traffic_rows(t, a, from)->rows;
    const RtSlots *table = table_of(t, y);
    for (int k = 0; k < m; k++)
        for (int e = 0; e < experts; e++) {                // blocks: of each slot, by ranks
            int slot = i * (experts / ranks) + e / ranks, r = e % ranks;
            rows[k * experts + e] = serves(table, slot, r) ? sent[r * y->experts + expert_in(table, slot)] : 0;
        }
}

static int nodes_of(const RtExchange *x, int m) { return x->per_node ? m / x->per_node : 0; }

// How many different rows a member has for each other node: by the node's share of all, as if experts were drawn evenly.
static void model_distinct(const TrafficOf *t, const RtExchange *x, int m, int member, const int32_t *rows, int32_t *distinct) {
    const RtSlots *table = table_of(t, x);
    int nodes = nodes_of(x, m), here = x->slots / nodes;
    double all = 0, reached = 0;
    for (int e = 0; e < x->experts; e++) all += rows[e];
    int k = t->tokens > 0 ? (int)(all / t->tokens + 0.5) : 0;
    for (int pass = 0; pass < 2 && all > 0; pass++)
        for (int n = 0; n < nodes; n++) {
            double there = 0;
            for (int s = n * here; s < (n + 1) * here; s++) there += serves(table, s, member) ? rows[expert_in(table, s)] : 0;
            double share = a2a_share_of_node(k, x->experts, x->experts * there / all);
            if (!pass) reached += share;
            if (pass && t->node_rows > 0 && reached > t->node_rows) share *= t->node_rows / reached;
            distinct[n] = n == member / x->per_node ? 0 : (int32_t)fmin(t->tokens * share + 0.5, there);
        }
}

TrafficRows *traffic_rows(const TrafficOf *t, Arena *a, uint32_t step) {
    const RtExchange *x = rt_exchange_of(t->plan, step);
    int m = rt_group_size(t->plan->mesh, (RtGroup)x->group), nodes = nodes_of(x, m);
    TrafficRows *r = arena_new(a, TrafficRows);
    *r = (TrafficRows){arena_array(a, int32_t, m * x->experts), nodes ? arena_array(a, int32_t, m * nodes) : NULL};
    uint32_t from = x->kind == RT_JOIN_OFFSETS && !t->log ? offsets_made_by(t->plan, arg_of(t->plan, step, 0), step) : UINT32_MAX;
    int64_t n = bound_at(t->plan, arg_of(t->plan, step, 0));
    if (from != UINT32_MAX) share_arrived(t, a, from, m, x->experts, r->rows);
    for (int k = 0; k < m; k++) {
        int32_t *rows = r->rows + k * x->experts, *distinct = nodes ? r->distinct + k * nodes : NULL;
        int rank = rt_group_member(t->plan->mesh, (RtGroup)x->group, t->rank, k);
        if (t->log && routes_mean(t->log, x->sequence, rank, rows, x->experts, distinct, nodes)) continue;
        if (t->log) routes_mean(t->log, x->sequence, rank, rows, x->experts, NULL, 0);
        else if (from == UINT32_MAX) share_out(rows, x->experts, n, (int64_t)t->tokens, t->skew);
        if (nodes) model_distinct(t, x, m, k, rows, distinct);
    }
    return r;
}

// Joined rows are those of all ranks, block by block.
static int first_slot(const RtExchange *x, int i, int mine) {
    return x->kind == RT_JOIN_OFFSETS || x->kind == RT_JOIN_ROWS || x->kind == RT_SUM_ROWS ? 0 : i * mine;
}

int64_t traffic_rows_here(const TrafficOf *t, uint32_t offsets_step, const TrafficRows *r) {
    const int32_t *rows = r->rows;
    const RtExchange *x = rt_exchange_of(t->plan, offsets_step);
    const RtSlots *table = table_of(t, x);
    RtGroup g = (RtGroup)x->group;
    int m = rt_group_size(t->plan->mesh, g), i = rt_group_rank(t->plan->mesh, g, t->rank), mine = x->slots / m;
    int64_t n = 0;
    for (int s = first_slot(x, i, mine), end = s + mine; s < end; s++)
        for (int k = 0; k < m; k++) n += serves(table, s, k) ? rows[k * x->experts + expert_in(table, s)] : 0;
    return n;
}

// Offsets as the runtime has them on group rank i, with all rows of a rank in its last leaf.
static RtRowsAt offsets_of(Arena *a, const RtExchange *x, const RtSlots *table, int i, int m, const int32_t *rows) {
    int E = x->experts, n = x->leaves, mine = x->slots / m, first = first_slot(x, i, mine);
    int32_t *home = arena_array(a, int32_t, E * n + 1), *far = arena_array(a, int32_t, mine * m * n + 1), at = 0;
    for (int e = 0; e < E; e++) {
        for (int l = 0; l < n; l++) home[e * n + l] = at;
        at += rows[i * E + e];
    }
    home[E * n] = at;
    at = 0;
    for (int s = 0; s < mine; s++)
        for (int k = 0; k < m; k++) {
            for (int l = 0; l < n; l++) far[(s * m + k) * n + l] = at;
            at += serves(table, first + s, k) ? rows[k * E + expert_in(table, first + s)] : 0;
        }
    far[mine * m * n] = at;
    return (RtRowsAt){.home = home, .far = far};
}

// ---- messages -----------------------------------------------------------------------------------------------------

static void scale(RtTraffic *t, double by) { t->bytes = (int64_t)((double)t->bytes * by); }

// What is assumed of rows beyond what the runtime does.  Rows that a node gets once are handed on inside it.
static void assume(const TrafficOf *t, const RtExchange *x, int64_t rows, StepTraffic *s) {
    if (s->kind != RT_COMM_ROWS && s->kind != RT_COMM_BACK) return;
    double k = t->tokens > 0 ? (double)rows / t->tokens : 0;
    if (t->node_rows > 0 && k > t->node_rows && s->sent[RT_LINK_NET].bytes && !x->per_node) {
        RtTraffic *near_sent = &s->sent[RT_LINK_NODE], *near_received = &s->received[RT_LINK_NODE];
        near_sent->bytes += s->received[RT_LINK_NET].bytes;
        near_received->bytes += s->received[RT_LINK_NET].bytes;
        scale(&s->sent[RT_LINK_NET], t->node_rows / k);
        scale(&s->received[RT_LINK_NET], t->node_rows / k);
    }
    if (t->row_bytes > 0 && s->kind == RT_COMM_ROWS) {
        double by = t->row_bytes / dtype_bytes((DType)x->dtype);
        for (int l = 0; l < RT_LINKS; l++) {
            scale(&s->sent[l], by);
            scale(&s->received[l], by);
        }
        s->handed = (int64_t)((double)s->handed * by);
    }
}

// Rows that come to experts by nodes: what the runtime would count, and what moves, given these.
static void op_by_nodes(Arena *a, const RtExchange *x, int m, const TrafficRows *rows, const RtRowsAt *at, RtExchangeRoom room, RtCommOp *op,
                        int64_t *handed) {
    int E = x->experts, leaves = x->leaves, nodes = nodes_of(x, m), mine = x->slots / m;
    int64_t block = rt_node_count_elements(x, m);
    int32_t *counts = arena_array(a, int32_t, (int)block * m);
    for (int k = 0; k < m; k++) {
        int32_t *to = counts + rt_comm_block(&(RtCommOp){.kind = RT_COMM_COUNTS, .per_node = x->per_node}, m, k) * block;
        for (int e = 0; e < E; e++) to[(e + 1) * leaves - 1] = rows->rows[k * E + e];
        memcpy(to + E * leaves, rows->distinct + k * nodes, sizeof *to * (size_t)nodes);
    }
    RtNodeRows r = {.x = *x, .m = m, .i = at->rank, .table = at->table, .home = at->home, .far = at->far, .counts = counts,
                    .box = arena_array(a, unsigned char *, x->per_node)};
    *op = (RtCommOp){.kind = x->kind == RT_RETURN_ROWS ? RT_COMM_BACK : RT_COMM_ROWS, .dtype = (DType)x->dtype};
    rt_node_op(&r, room.send, room.recv, op);
    for (int s = 0; s < mine; s++)
        for (int k = 0; k < m; k++) {
            const int32_t *f = at->far + (s * m + k) * leaves;
            if (k / x->per_node != at->rank / x->per_node) *handed += (f[leaves] - f[0]) * x->elements * dtype_bytes((DType)x->dtype);
        }
}

bool traffic_of_step(const TrafficOf *t, Arena *a, uint32_t step, const TrafficRows *rows, StepTraffic *out) {
    *out = (StepTraffic){.kind = RT_COMM_KINDS};
    const RtExchange *x = rt_exchange_of(t->plan, step);
    if (!x) return false;
    RtMesh mesh = t->plan->mesh;
    RtGroup group = (RtGroup)x->group;
    int m = rt_group_size(mesh, group), i = rt_group_rank(mesh, group, t->rank);
    int parts = MOST_REPLICAS * x->slots + m + 2;                // of rows: a slot's, a node's; of sums: one to each other replica
    RtExchangeRoom room = {.send = arena_array(a, RtCommPart, parts), .recv = arena_array(a, RtCommPart, parts), .cut = arena_array(a, int64_t, m + 1)};
    RtRowsAt at = {.home = NULL};
    if (rows) at = offsets_of(a, x, table_of(t, x), i, m, rows->rows);
    at.table = table_of(t, x);
    at.rank = i;
    RtCommOp op;
    if (m == 1) return false;
    if (rows && x->per_node) op_by_nodes(a, x, m, rows, &at, room, &op, &out->handed);
    else if (!rt_exchange_op(x, m, &at, room, &op)) return false;
    RtTraffic *sent = arena_array(a, RtTraffic, m), *received = arena_array(a, RtTraffic, m);
    rt_comm_traffic(&op, i, m, sent, received);
    out->kind = op.kind;
    out->rounds = rt_rounds(&op, m);
    for (int k = 0; k < m; k++) {
        bool near = rt_group_member(mesh, group, t->rank, k) / t->per_node == t->rank / t->per_node;
        RtLink link = near ? RT_LINK_NODE : RT_LINK_NET;
        out->sent[link].messages += sent[k].messages;
        out->sent[link].bytes += sent[k].bytes;
        out->received[link].messages += received[k].messages;
        out->received[link].bytes += received[k].bytes;
    }
    int64_t at_home = 0;
    for (int e = 0; rows && e < x->experts; e++) at_home += rows->rows[i * x->experts + e];
    assume(t, x, at_home, out);
    return true;
}

static void add(RtUsage *u, const StepTraffic *s, int64_t times) {
    for (int l = 0; l < RT_LINKS; l++) {
        u->sent[s->kind][l].messages += times * s->sent[l].messages;
        u->sent[s->kind][l].bytes += times * s->sent[l].bytes;
        u->received[s->kind][l].messages += times * s->received[l].messages;
        u->received[s->kind][l].bytes += times * s->received[l].bytes;
    }
}

// How often a step of the plan runs in a step of training.
static int64_t times_run(const RtPlan *plan, uint32_t step, int64_t waves) {
    const RtProgram *p = RT_TABLE(plan, RtProgram, programs);
    for (uint32_t i = 0; i < plan->programs.n; i++) {
        if (step < p[i].first_step || step >= p[i].first_step + p[i].n_steps) continue;
        const char *name = RT_TEXT(plan, p[i].name);
        return !strcmp(name, "pass") ? waves : !strcmp(name, "update");
    }
    return 0;
}

void traffic_of_training_step(const TrafficOf *t, Arena *a, int64_t waves, RtUsage *out) {
    *out = (RtUsage){.sent = {{{0}}}};
    TrafficRows **rows = arena_array(a, TrafficRows *, (int)t->plan->steps.n + 1);        // by the step of their offsets
    for (uint32_t i = 0; i < t->plan->steps.n; i++) {
        StepTraffic s;
        int64_t times = times_run(t->plan, i, waves);
        uint32_t of = times ? traffic_offsets_step(t->plan, i) : UINT32_MAX;
        if (of != UINT32_MAX && !rows[of]) rows[of] = traffic_rows(t, a, of);
        if (times && traffic_of_step(t, a, i, of == UINT32_MAX ? NULL : rows[of], &s)) add(out, &s, times);
    }
}

// ---- recorded routes ----------------------------------------------------------------------------------------------

bool traffic_recorded(const TrafficOf *t, Arena *a, Diag *d, const RouteLog *log, int64_t waves, RtUsage *out) {
    RtMesh mesh = t->plan->mesh;
    *out = (RtUsage){.sent = {{{0}}}};
    for (uint32_t i = 0; i < t->plan->steps.n; i++) {
        StepTraffic s;
        if (traffic_offsets_step(t->plan, i) == UINT32_MAX && traffic_of_step(t, a, i, NULL, &s))
            add(out, &s, routes_steps(log) * times_run(t->plan, i, waves));
    }
    for (int line = 0; line < routes_lines(log); line++) {
        bool is_known = false;
        for (uint32_t i = 0; i < t->plan->steps.n; i++) {
            uint32_t of = traffic_offsets_step(t->plan, i);
            if (of == UINT32_MAX || rt_exchange_of(t->plan, of)->sequence != routes_exchange(log, line)) continue;
            const RtExchange *x = rt_exchange_of(t->plan, i);
            int m = rt_group_size(mesh, (RtGroup)x->group), nodes = nodes_of(x, m);
            TrafficRows rows = {arena_array(a, int32_t, m * x->experts), arena_array(a, int32_t, m * nodes + 1)};
            is_known = true;
            for (int k = 0; k < m; k++) {
                int rank = rt_group_member(mesh, (RtGroup)x->group, t->rank, k);
                is_known &= routes_rows(log, line, rank, rows.rows + k * x->experts, x->experts, rows.distinct + k * nodes, nodes);
            }
            StepTraffic s;
            if (is_known && traffic_of_step(t, a, i, &rows, &s)) add(out, &s, 1);
        }
        if (is_known) continue;
        diag_error(d, (Span){0}, "the recorded routes are of another program or layout: line %d of a rank is exchange %u", line + 1,
                   routes_exchange(log, line));
        return false;
    }
    return true;
}
