#include "planner/simulate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// ---- the state of ranks -------------------------------------------------------------------------------------------

typedef struct {
    uint32_t  next, end;           // steps of the program
    uint32_t  step;                // that it works at or waits in
    double    left, begun;         // of its work: seconds, at the rates of the machine file
    SpentKind kind;                // of its work, or of its waiting
    int64_t   waits_for;           // exchange that it waits for, when no work is left; -1: none
    double    free[RT_LINKS];      // when each of its links is
    double    busy[RT_LINKS];
    double   *started, *done;      // by exchange; below 0: not yet
    SpentKind *waited;             // by exchange: what waiting for it is
    double    spent[SPENT_KINDS];
    double    flops, ended;
} RankClock;

typedef struct {
    const Cluster *c;
    const Costs *costs;
    StepFilter filter;
    double    now;
    RankClock *rank;               // [costs->ranks]
    int      *running;             // [nodes of these ranks]: ranks that compute
    Timeline *timeline;
} Clock;

enum { TRACK_COMPUTE };

static void note(Clock *k, int r, uint32_t step, double begin, double end, int track) {
    if (!k->timeline || end <= begin) return;
    const RtStep *s = RT_TABLE(k->costs->plan, RtStep, steps) + step;
    int shown = k->filter.stage < 0 ? r : k->filter.stage;
    TimelineEvent e = {RT_TEXT(k->costs->plan, s->op), RT_TEXT(k->costs->plan, s->path), begin, end, track, shown};
    vec_push(k->timeline->arena, &k->timeline->events, e);
}

// ---- exchanges ----------------------------------------------------------------------------------------------------

// Of the ranks that are looked at, the others of its exchange's group.  One that stands for all meets nobody.
static int group_size(const Clock *k, const StepCost *s) {
    return k->costs->ranks > 1 ? rt_group_size(k->costs->plan->mesh, s->group) : 1;
}
static int group_member(const Clock *k, const StepCost *s, int r, int i) {
    return k->costs->ranks > 1 ? rt_group_member(k->costs->plan->mesh, s->group, r, i) : 0;
}

// Bytes move when all have started.
static void move(Clock *k, int r, uint32_t step) {
    const StepCost *s = &k->costs->of[r][step];
    RankClock *own = &k->rank[r];
    double done = k->now;
    for (int l = 0; l < RT_LINKS; l++) {
        if (s->link[l] == 0) continue;
        double begin = fmax(own->free[l], k->now);
        own->free[l] = begin + s->link[l];
        own->busy[l] += s->link[l];
        done = fmax(done, own->free[l]);
        note(k, r, step, begin, own->free[l], 1 + l);
    }
    own->done[s->sequence] = done;
}

static void start(Clock *k, int r, uint32_t step) {
    const StepCost *s = &k->costs->of[r][step];
    int n = group_size(k, s);
    bool all = true;
    k->rank[r].started[s->sequence] = k->now;
    k->rank[r].waited[s->sequence] = s->kind;
    for (int i = 0; i < n; i++) all &= k->rank[group_member(k, s, r, i)].started[s->sequence] >= 0;
    for (int i = 0; i < n && all; i++) move(k, group_member(k, s, r, i), step);
}

// ---- steps --------------------------------------------------------------------------------------------------------

static void begin_step(Clock *k, int r, uint32_t step) {
    const StepCost *s = &k->costs->of[r][step];
    RankClock *own = &k->rank[r];
    own->step = step;
    own->begun = k->now;
    own->flops += s->flops;
    if (s->moves) start(k, r, step);
    own->left = s->seconds;
    own->kind = s->moves ? SPENT_MESSAGES : s->kind;
    bool stays = s->waits || (s->moves && !s->pending);
    own->waits_for = stays && own->started[s->sequence] >= 0 ? (int64_t)s->sequence : -1;
}

static bool takes(StepFilter f, const StepCost *s) {
    return (f.stage < 0 || s->stage == f.stage) && (f.backward < 0 || s->backward == f.backward) && (f.sums || !s->is_sum);
}

static bool is_blocked(const RankClock *own, double now) {
    return own->waits_for >= 0 && (own->done[own->waits_for] < 0 || own->done[own->waits_for] > now);
}

// Up to its next work or wait.  true: it went on.
static bool go_on(Clock *k, int r) {
    RankClock *own = &k->rank[r];
    bool moved = false;
    while (own->left <= 0 && !is_blocked(own, k->now)) {
        own->waits_for = -1;
        while (own->next < own->end && !takes(k->filter, &k->costs->of[r][own->next])) own->next++;
        if (own->next == own->end) break;
        begin_step(k, r, own->next++);
        own->ended = k->now;
        moved = true;
    }
    return moved;
}

// ---- events -------------------------------------------------------------------------------------------------------

static int node_of(const Clock *k, int r) { return r / k->c->per_node; }

// Until when messages take a share of the device.
static double shared_until(const Clock *k, const RankClock *own) {
    double until = 0;
    for (int l = 0; l < RT_LINKS && k->c->comm_share > 0; l++) until = fmax(until, own->free[l]);
    return until;
}

// The rates of the file are of a node whose ranks all compute.
static double speed_of(const Clock *k, int r) {
    const Cluster *c = k->c;
    double speed = shared_until(k, &k->rank[r]) > k->now ? 1 - c->comm_share : 1;
    if (c->cores && k->costs->ranks > 1) {
        int running = k->running[node_of(k, r)];
        if (running < c->per_node) speed *= (double)c->per_node / (running > c->cores ? running : c->cores);
    }
    return speed;
}

static void count_running(Clock *k) {
    memset(k->running, 0, sizeof *k->running * (size_t)(node_of(k, k->costs->ranks - 1) + 1));
    for (int r = 0; r < k->costs->ranks; r++) k->running[node_of(k, r)] += k->rank[r].left > 0;
}

// When the next thing happens; below 0: nothing does any more.
static double next_event(const Clock *k) {
    double at = -1;
    for (int r = 0; r < k->costs->ranks; r++) {
        const RankClock *own = &k->rank[r];
        double when = -1, until = shared_until(k, own);
        if (own->left > 0) {
            when = k->now + own->left / speed_of(k, r);
            if (until > k->now && until < when) when = until;
        } else if (own->waits_for >= 0) when = own->done[own->waits_for];
        if (when >= 0 && (at < 0 || when < at)) at = when;
    }
    return at;
}

static void advance(Clock *k, double to) {
    for (int r = 0; r < k->costs->ranks; r++) {
        RankClock *own = &k->rank[r];
        double passed = to - k->now;
        if (own->left > 0) {
            double left = own->left - passed * speed_of(k, r);
            own->spent[own->kind] += passed;
            own->left = left > 1e-13 * to ? left : 0;  // less is lost in the sum
            own->ended = to;
            if (own->left > 0) continue;
            note(k, r, own->step, own->begun, to, TRACK_COMPUTE);
            own->begun = to;
        } else if (own->waits_for >= 0) {
            own->spent[own->waited[own->waits_for]] += passed;
            own->ended = to;
            double done = own->done[own->waits_for];
            if (done >= 0 && done <= to) note(k, r, own->step, own->begun, to, TRACK_COMPUTE);
        }
    }
    k->now = to;
}

static void run(Clock *k) {
    for (;;) {
        for (bool moved = true; moved;) {              // what one starts, another may wait for
            moved = false;
            for (int r = 0; r < k->costs->ranks; r++) moved |= go_on(k, r);
        }
        count_running(k);
        double to = next_event(k);
        if (to < 0) return;
        advance(k, to);
    }
}

static RankClock clock_of(Arena *a, const RtPlan *plan, const RtProgram *p) {
    int n = (int)plan->steps.n + 1;
    RankClock own = {.next = p->first_step, .end = p->first_step + p->n_steps, .waits_for = -1, .started = arena_array(a, double, n),
                     .done = arena_array(a, double, n), .waited = arena_array(a, SpentKind, n)};
    for (int i = 0; i < n; i++) own.started[i] = own.done[i] = -1;
    return own;
}

static const RtProgram *program_named(const RtPlan *plan, const char *name) {
    const RtProgram *p = RT_TABLE(plan, RtProgram, programs);
    for (uint32_t i = 0; i < plan->programs.n; i++)
        if (!strcmp(RT_TEXT(plan, p[i].name), name)) return &p[i];
    return NULL;
}

Simulated simulate_part(Arena *a, const Cluster *c, const Costs *costs, const char *program, StepFilter f, double from, Timeline *timeline) {
    const RtProgram *p = program_named(costs->plan, program);
    Simulated sum = {.seconds = 0}, mean = {.seconds = 0};
    if (!p) return sum;
    Clock k = {.c = c, .costs = costs, .filter = f, .now = from, .rank = arena_array(a, RankClock, costs->ranks),
               .running = arena_array(a, int, costs->ranks), .timeline = timeline};
    for (int r = 0; r < costs->ranks; r++) k.rank[r] = clock_of(a, costs->plan, p);
    run(&k);
    for (int r = 0; r < costs->ranks; r++) {
        RankClock *own = &k.rank[r];
        own->spent[SPENT_WAIT_OTHERS] += k.now - fmax(own->ended, from);           // for those who end later
        Simulated one = {.flops = own->flops};
        memcpy(one.spent, own->spent, sizeof one.spent);
        memcpy(one.link, own->busy, sizeof one.link);
        simulated_add(&sum, &one, 1);
    }
    simulated_add(&mean, &sum, 1.0 / costs->ranks);
    mean.seconds = k.now - from;
    return mean;
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
