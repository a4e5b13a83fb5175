#include "planner/costs.h"

#include <string.h>

#include "runtime/plan.h"
#include "runtime/ranks.h"

const char *spent_name(SpentKind k) {
    static const char *const name[SPENT_KINDS] = {
        [SPENT_PRODUCTS] = "products",          [SPENT_ATTENTION] = "attention",       [SPENT_ROWS] = "other kernels",
        [SPENT_MESSAGES] = "moving messages",   [SPENT_WAIT_ROWS] = "waiting for rows", [SPENT_WAIT_SUMS] = "waiting for sums",
        [SPENT_WAIT_OTHERS] = "waiting for parts", [SPENT_BUBBLE] = "pipeline bubble", [SPENT_UPDATE] = "update"};
    return name[k];
}

// ---- what steps cost ----------------------------------------------------------------------------------------------

static SpentKind kind_of(const RtPlan *plan, const RtStep *s) {
    if (s->work == RT_ELEMENTWISE) return SPENT_ROWS;
    return strncmp(RT_TEXT(plan, s->op), "attention", 9) ? SPENT_PRODUCTS : SPENT_ATTENTION;
}

static double bandwidth_of(const Cluster *c, double bytes) {
    for (int i = 0; i < c->n_caches; i++)
        if (bytes <= c->cache[i].bytes) return c->cache[i].rate;
    return c->bandwidth;
}

double limit_seconds(const Cluster *c, RtWorkKind kind, RtWork w) {
    double flops = w.flops / (kind == RT_CONTRACTION_BF16 ? c->flops_bf16 : c->flops_f32), bytes = w.bytes / bandwidth_of(c, w.bytes);
    return flops > bytes ? flops : bytes;
}

// By what was fitted to its op, or else by the efficiencies of its kind.
static double compute_seconds(const Cluster *c, const char *op, SpentKind kind, RtWorkKind work, RtWork w) {
    double fitted = cluster_op_share(c, op);
    if (fitted > 0) return limit_seconds(c, work, w) / fitted + c->launch;
    double share = kind == SPENT_PRODUCTS ? c->efficiency.gemm : kind == SPENT_ATTENTION ? c->efficiency.attention : c->efficiency.rows;
    double flops = w.flops / ((work == RT_CONTRACTION_BF16 ? c->flops_bf16 : c->flops_f32) * share);
    double bytes = w.bytes / (bandwidth_of(c, w.bytes) * c->efficiency.rows);
    return (flops > bytes ? flops : bytes) + c->launch;
}

static double link_seconds(const ClusterLink *k, int per_node, int rounds, RtTraffic sent, RtTraffic received) {
    int64_t bytes = sent.bytes > received.bytes ? sent.bytes : received.bytes;
    if (!sent.messages && !received.messages) return 0;
    return rounds * k->latency + (double)bytes * (k->per_node ? per_node : 1) / k->rate;
}

// The rank's own work for messages: each is sent and received once; its bytes are moved by whoever receives them.
static double own_seconds(const ClusterLink *k, RtTraffic sent, RtTraffic received) {
    return (double)(sent.messages + received.messages) * k->message + (double)received.bytes * k->cpu;
}

static void cost_exchange(const Cluster *c, const RtExchange *x, const StepTraffic *m, StepCost *to) {
    to->moves = true;
    to->is_sum = m->kind == RT_COMM_TREE_REDUCE || m->kind == RT_COMM_TREE_SCATTER;
    to->kind = m->kind == RT_COMM_ROWS || m->kind == RT_COMM_BACK || m->kind == RT_COMM_COUNTS ? SPENT_WAIT_ROWS
               : to->is_sum                                                                    ? SPENT_WAIT_SUMS
                                                                                               : SPENT_WAIT_OTHERS;
    to->sequence = x->sequence;
    to->pending = x->pending;
    for (int l = 0; l < RT_LINKS; l++) {
        RtTraffic received = m->received[l];
        if (l == RT_LINK_NODE && c->link[l].kind) received.bytes += m->handed;
        to->link[l] = link_seconds(&c->link[l], c->per_node, m->rounds, m->sent[l], received);
        to->seconds += own_seconds(&c->link[l], m->sent[l], received);
    }
}

// Runs for the whole plan once: the values that data would give symbols.
static void set_rows(Arena *a, const TrafficOf *t, Costs *costs, int64_t *sym, TrafficRows **rows) {
    const RtPlan *plan = t->plan;
    const RtSym *all = RT_TABLE(plan, RtSym, syms);
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    for (uint32_t i = 0; i < plan->syms.n; i++) sym[i] = all[i].fixed >= 0 ? all[i].fixed : all[i].bound;
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        if (!x || (x->kind != RT_EXCHANGE_OFFSETS && x->kind != RT_JOIN_OFFSETS)) continue;
        rows[i] = traffic_rows(t, a, i);
        if (step[i].defines_sym < 0) continue;
        int64_t n = traffic_rows_here(t, i, rows[i]), bound = all[step[i].defines_sym].bound;
        double full = bound ? (double)n / (double)bound : 0;
        if (full > costs->far_rows) costs->far_rows = full;
        sym[step[i].defines_sym] = n;
    }
}

static StepCost *costs_of_rank(Arena *a, const Cluster *c, const TrafficOf *t, Costs *costs) {
    const RtPlan *plan = t->plan;
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    StepCost *cost = arena_array(a, StepCost, (int)plan->steps.n + 1);
    int64_t *sym = arena_array(a, int64_t, (int)plan->syms.n + 1);
    TrafficRows **rows = arena_array(a, TrafficRows *, (int)plan->steps.n + 1);
    set_rows(a, t, costs, sym, rows);
    RtPlanInstance sized = {.plan = plan, .sym = sym};                 // rt_step_work reads sizes alone
    Arena *scratch = arena_create();
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        StepCost *to = &cost[i];
        const RtExchange *x = rt_exchange_of(plan, i);
        StepTraffic moved;
        to->backward = step[i].backward;
        if (!x) {
            RtWork w = rt_step_work(&sized, &step[i]);
            to->kind = kind_of(plan, &step[i]);
            costs->bf16 |= step[i].work == RT_CONTRACTION_BF16;
            to->flops = w.flops;
            to->seconds = compute_seconds(c, RT_TEXT(plan, step[i].op), to->kind, (RtWorkKind)step[i].work, w);
            continue;
        }
        to->kind = SPENT_ROWS;
        to->group = (RtGroup)x->group;
        to->waits = x->kind == RT_WAIT;
        to->sequence = x->sequence;
        uint32_t of = traffic_offsets_step(plan, i);
        if (!to->waits && traffic_of_step(t, scratch, i, of == UINT32_MAX ? NULL : rows[of], &moved)) cost_exchange(c, x, &moved, to);
        arena_reset(scratch);
    }
    arena_destroy(scratch);
    return cost;
}

Costs costs_of(Arena *a, const Cluster *c, const TrafficOf *t, int ranks) {
    Costs costs = {.plan = t->plan, .ranks = ranks, .of = arena_array(a, StepCost *, ranks)};
    for (int r = 0; r < ranks; r++) {
        TrafficOf own = *t;
        own.rank = ranks > 1 ? r : t->rank;
        costs.of[r] = costs_of_rank(a, c, &own, &costs);
    }
    return costs;
}
