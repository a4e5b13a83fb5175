#include "planner/simulate.h"

#include <stdio.h>
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

static double compute_seconds(const Cluster *c, SpentKind kind, RtWorkKind work, RtWork w) {
    double rate = work == RT_CONTRACTION_BF16 ? c->flops_bf16 : c->flops_f32;
    double share = kind == SPENT_PRODUCTS ? c->efficiency.gemm : kind == SPENT_ATTENTION ? c->efficiency.attention : c->efficiency.rows;
    double flops = w.flops / (rate * share), bytes = w.bytes / (bandwidth_of(c, w.bytes) * c->efficiency.rows);
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
        to->link[l] = link_seconds(&c->link[l], c->per_node, m->rounds, m->sent[l], m->received[l]);
        to->seconds += own_seconds(&c->link[l], m->sent[l], m->received[l]);
    }
}

// Rows at this rank's experts.
static int64_t rows_here(const RtPlan *plan, uint32_t offsets_step, const int32_t *rows, int rank) {
    const RtExchange *x = rt_exchange_of(plan, offsets_step);
    RtGroup g = (RtGroup)x->group;
    int m = rt_group_size(plan->mesh, g), i = rt_group_rank(plan->mesh, g, rank), mine = x->experts / m;
    int64_t n = 0;
    for (int k = 0; k < m; k++)
        for (int e = i * mine; e < (i + 1) * mine; e++) n += rows[k * x->experts + e];
    return n;
}

// Runs for the whole plan once: the values that data would give symbols.
static void set_rows(Arena *a, const TrafficOf *t, Costs *costs, int64_t *sym, int32_t **rows) {
    const RtPlan *plan = t->plan;
    const RtSym *all = RT_TABLE(plan, RtSym, syms);
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    for (uint32_t i = 0; i < plan->syms.n; i++) sym[i] = all[i].fixed >= 0 ? all[i].fixed : all[i].bound;
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        if (!x || x->kind != RT_EXCHANGE_OFFSETS) continue;
        rows[i] = traffic_rows(t, a, i);
        if (step[i].defines_sym < 0) continue;
        int64_t n = rows_here(plan, i, rows[i], t->rank), bound = all[step[i].defines_sym].bound;
        double full = bound ? (double)n / (double)bound : 0;
        if (full > costs->far_rows) costs->far_rows = full;
        sym[step[i].defines_sym] = n;
    }
}

Costs costs_of(Arena *a, const Cluster *c, const TrafficOf *t) {
    const RtPlan *plan = t->plan;
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    Costs costs = {.plan = plan, .cost = arena_array(a, StepCost, (int)plan->steps.n + 1)};
    int64_t *sym = arena_array(a, int64_t, (int)plan->syms.n + 1);
    int32_t **rows = arena_array(a, int32_t *, (int)plan->steps.n + 1);
    set_rows(a, t, &costs, sym, rows);
    RtPlanInstance sized = {.plan = plan, .sym = sym};                 // rt_step_work reads sizes alone
    Arena *scratch = arena_create();
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        StepCost *to = &costs.cost[i];
        const RtExchange *x = rt_exchange_of(plan, i);
        StepTraffic moved;
        to->backward = step[i].backward;
        if (!x) {
            RtWork w = rt_step_work(&sized, &step[i]);
            to->kind = kind_of(plan, &step[i]);
            costs.bf16 |= step[i].work == RT_CONTRACTION_BF16;
            to->flops = w.flops;
            to->seconds = compute_seconds(c, to->kind, (RtWorkKind)step[i].work, w);
            continue;
        }
        to->kind = SPENT_ROWS;
        to->waits = x->kind == RT_WAIT;
        to->sequence = x->sequence;
        uint32_t of = traffic_offsets_step(plan, i);
        if (!to->waits && traffic_of_step(t, scratch, i, of == UINT32_MAX ? NULL : rows[of], &moved)) cost_exchange(c, x, &moved, to);
        arena_reset(scratch);
    }
    arena_destroy(scratch);
    return costs;
}

// ---- events -------------------------------------------------------------------------------------------------------

typedef struct {
    const Cluster *c;
    const Costs *costs;
    double now;                    // of compute
    double free[RT_LINKS];         // when each link is
    double busy[RT_LINKS];
    double *done;                  // by sequence: when an exchange is
    SpentKind *kind;               // by sequence
    double spent[SPENT_KINDS];
    double flops;
    Timeline *timeline;
    int    rank;
} Clock;

static void note(Clock *k, uint32_t step, double begin, double end, int track) {
    if (!k->timeline || end <= begin) return;
    const RtStep *s = RT_TABLE(k->costs->plan, RtStep, steps) + step;
    TimelineEvent e = {RT_TEXT(k->costs->plan, s->op), RT_TEXT(k->costs->plan, s->path), begin, end, track, k->rank};
    vec_push(k->timeline->arena, &k->timeline->events, e);
}

// Compute is slower while messages take a share of the device.
static void compute(Clock *k, uint32_t step, double seconds, SpentKind kind) {
    double begin = k->now, until = 0, share = k->c->comm_share;
    for (int l = 0; l < RT_LINKS; l++)
        if (k->free[l] > until) until = k->free[l];
    double window = until > begin ? (until - begin) * (1 - share) : 0;
    double took = share > 0 && window > 0 ? seconds <= window ? seconds / (1 - share) : until - begin + seconds - window : seconds;
    k->now += took;
    k->spent[kind] += took;
    note(k, step, begin, k->now, 0);
}

static void wait_until(Clock *k, uint32_t step, double when, SpentKind kind) {
    if (when <= k->now) return;
    note(k, step, k->now, when, 0);
    k->spent[kind] += when - k->now;
    k->now = when;
}

static void start(Clock *k, uint32_t step, const StepCost *s) {
    double done = k->now;
    for (int l = 0; l < RT_LINKS; l++) {
        if (s->link[l] == 0) continue;
        double begin = k->free[l] > k->now ? k->free[l] : k->now;
        k->free[l] = begin + s->link[l];
        k->busy[l] += s->link[l];
        if (k->free[l] > done) done = k->free[l];
        note(k, step, begin, k->free[l], 1 + l);
    }
    k->done[s->sequence] = done;
    k->kind[s->sequence] = s->kind;
    if (s->seconds > 0) compute(k, step, s->seconds, SPENT_MESSAGES);
    if (!s->pending) wait_until(k, step, done, s->kind);
}

static void run_step(Clock *k, uint32_t step) {
    const StepCost *s = &k->costs->cost[step];
    if (s->moves) start(k, step, s);
    else if (s->waits) wait_until(k, step, k->done[s->sequence], k->kind[s->sequence]);
    else compute(k, step, s->seconds, s->kind);
    k->flops += s->flops;
}

static bool takes(StepFilter f, const StepCost *s) {
    return (f.stage < 0 || s->stage == f.stage) && (f.backward < 0 || s->backward == f.backward) && (f.sums || !s->is_sum);
}

Simulated simulate_part(Arena *a, const Cluster *c, const Costs *costs, const char *program, StepFilter f, double from, Timeline *timeline) {
    const RtPlan *plan = costs->plan;
    Clock k = {.c = c, .costs = costs, .now = from, .done = arena_array(a, double, (int)plan->steps.n + 1),
               .kind = arena_array(a, SpentKind, (int)plan->steps.n + 1), .timeline = timeline, .rank = f.stage < 0 ? 0 : f.stage};
    const RtProgram *p = RT_TABLE(plan, RtProgram, programs);
    for (uint32_t i = 0; i < plan->programs.n; i++) {
        if (strcmp(RT_TEXT(plan, p[i].name), program) != 0) continue;
        for (uint32_t s = p[i].first_step; s < p[i].first_step + p[i].n_steps; s++)
            if (takes(f, &costs->cost[s])) run_step(&k, s);
    }
    Simulated r = {.seconds = k.now - from, .flops = k.flops};
    memcpy(r.spent, k.spent, sizeof r.spent);
    memcpy(r.link, k.busy, sizeof r.link);
    return r;
}

void simulated_add(Simulated *to, const Simulated *part, double times) {
    to->seconds += times * part->seconds;
    to->flops += times * part->flops;
    for (int i = 0; i < SPENT_KINDS; i++) to->spent[i] += times * part->spent[i];
    for (int l = 0; l < RT_LINKS; l++) to->link[l] += times * part->link[l];
}

// Kernels of the update are told apart from those of passes.
Simulated simulate_update(Arena *a, const Cluster *c, const Costs *costs, int stage, double from, Timeline *timeline) {
    Simulated u = simulate_part(a, c, costs, "update", (StepFilter){stage, -1, true}, from, timeline);
    for (SpentKind k = 0; k < SPENT_WAIT_ROWS; k++) {
        u.spent[SPENT_UPDATE] += u.spent[k];
        u.spent[k] = 0;
    }
    return u;
}

Simulated simulate(Arena *a, const Cluster *c, const PlanLayout *l, const Costs *costs, Timeline *timeline) {
    Simulated r = {.slowest = 0}, pass = simulate_part(a, c, costs, "pass", (StepFilter){-1, -1, true}, 0, timeline),
              update = simulate_update(a, c, costs, -1, pass.seconds, timeline);
    simulated_add(&r, &pass, (double)l->waves);
    simulated_add(&r, &update, 1);
    r.pass = pass.seconds;
    r.update = update.seconds;
    return r;
}

// ---- the timeline -------------------------------------------------------------------------------------------------

static void write_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        fputc(*text, f);
    }
}

bool timeline_write(const Timeline *t, const char *path) {
    static const char *const track[] = {"compute", "link inside the node", "link between nodes"};
    FILE *f = fopen(path, "w");
    if (!f) return false;
    fputs("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", f);
    int ranks = 0;
    for (int i = 0; i < t->events.n; i++)
        if (t->events.at[i].rank >= ranks) ranks = t->events.at[i].rank + 1;
    for (int r = 0; r < ranks; r++)
        for (int k = 0; k < 3; k++)
            fprintf(f, "{\"ph\": \"M\", \"pid\": %d, \"tid\": %d, \"name\": \"thread_name\", \"args\": {\"name\": \"%s\"}},\n", r, k, track[k]);
    for (int i = 0; i < t->events.n; i++) {
        const TimelineEvent *e = &t->events.at[i];
        fputs("{\"ph\": \"X\", \"name\": \"", f);
        write_text(f, e->name);
        fprintf(f, "\", \"pid\": %d, \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"args\": {\"path\": \"", e->rank, e->track, e->begin * 1e6,
                (e->end - e->begin) * 1e6);
        write_text(f, e->path);
        fprintf(f, "\"}}%s\n", i + 1 < t->events.n ? "," : "");
    }
    fputs("]}\n", f);
    bool ok = !ferror(f);
    return fclose(f) == 0 && ok;
}
