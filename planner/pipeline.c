// A step of a pipeline: one forward, one backward (1F1B).  Each stage runs pp - s forwards ahead, then one backward after
// each forward; a stage starts when its neighbour's results have come.
#include "planner/pipeline.h"

#include <string.h>

static double later(double a, double b) { return a > b ? a : b; }

double pipeline_seconds(Arena *a, const double *forward, const double *backward, double send, int pp, int64_t waves, Timeline *timeline,
                        double *idle) {
    memset(idle, 0, sizeof *idle * (size_t)pp);
    int m = (int)waves;
    double *f = arena_array(a, double, pp * m), *b = arena_array(a, double, pp * m), *now = arena_array(a, double, pp);
    int *nf = arena_array(a, int, pp), *nb = arena_array(a, int, pp);
    for (int left = 2 * pp * m; left > 0;) {
        bool moved = false;
        for (int s = 0; s < pp; s++) {
            bool back = nf[s] == m || nf[s] - nb[s] >= (pp - s < m ? pp - s : m);
            int i = back ? nb[s] : nf[s];
            if (i == m) continue;
            bool ready = back ? (s + 1 < pp ? nb[s + 1] > i : nf[s] > i) : s == 0 || nf[s - 1] > i;
            if (!ready) continue;
            double from = back ? (s + 1 < pp ? b[(s + 1) * m + i] + send : f[s * m + i]) : s ? f[(s - 1) * m + i] + send : 0;
            double begin = later(now[s], from);
            idle[s] += begin - now[s];
            now[s] = begin + (back ? backward[s] : forward[s]);
            (back ? b : f)[s * m + i] = now[s];
            if (timeline) {
                TimelineEvent e = {back ? "backward" : "forward", arena_printf(timeline->arena, "micro-batch %d", i), begin, now[s], 0, s};
                vec_push(timeline->arena, &timeline->events, e);
            }
            (*(back ? &nb[s] : &nf[s]))++;
            left--;
            moved = true;
        }
        if (!moved) break;
    }
    double end = 0;
    for (int s = 0; s < pp; s++) end = later(end, now[s]);
    for (int s = 0; s < pp; s++) idle[s] += end - now[s];
    return end;
}

static double worked(const Simulated *s) {
    return s->spent[SPENT_PRODUCTS] + s->spent[SPENT_ATTENTION] + s->spent[SPENT_ROWS] + s->spent[SPENT_MESSAGES];
}

static double longest_link(const Simulated *f, const Simulated *b) {
    double most = 0;
    for (int l = 0; l < RT_LINKS; l++) most = later(most, f->link[l] + b->link[l]);
    return most;
}

// Forward and backward together take as long as their compute, slowed by messages, or as their messages.
static double overlapped(const Cluster *c, const Simulated *f, const Simulated *b) {
    double work = worked(f) + worked(b), link = longest_link(f, b);
    return later(work / (1 - c->comm_share * (link < work ? link / work : 1)), link);
}

Simulated simulate_pipeline(Arena *a, const Cluster *c, const PlanLayout *l, const Costs *costs, double send, bool overlap, Timeline *timeline) {
    int pp = l->pp;
    Simulated *part[2] = {arena_array(a, Simulated, pp), arena_array(a, Simulated, pp)}, *update = arena_array(a, Simulated, pp);
    double *forward = arena_array(a, double, pp), *backward = arena_array(a, double, pp), *idle = arena_array(a, double, pp);
    double sums = 0, last = 0;
    int slowest = 0;
    for (int s = 0; s < pp; s++) {
        Cluster unshared = *c;                         // overlapped() slows compute itself
        if (overlap) unshared.comm_share = 0;
        for (int back = 0; back < 2; back++)
            part[back][s] = simulate_part(a, &unshared, costs, "pass", (StepFilter){s, back, false}, 0, NULL);
        Simulated with_sums = simulate_part(a, &unshared, costs, "pass", (StepFilter){s, 1, true}, 0, NULL);
        forward[s] = part[0][s].seconds;
        backward[s] = part[1][s].seconds;
        sums = later(sums, with_sums.seconds - backward[s]);
        if (overlap) {
            double scale = overlapped(c, &part[0][s], &part[1][s]) / (forward[s] + backward[s]);
            forward[s] *= scale;
            backward[s] *= scale;
        }
        update[s] = simulate_update(a, c, costs, s, 0, NULL);
        last = later(last, update[s].seconds);
        if (forward[s] + backward[s] > forward[slowest] + backward[slowest]) slowest = s;
    }
    double steady = pipeline_seconds(a, forward, backward, send, pp, l->waves, timeline, idle), waves = (double)l->waves;
    Simulated r = {.slowest = slowest, .seconds = 0};
    for (int back = 0; back < 2; back++) simulated_add(&r, &part[back][slowest], waves);
    double busy = waves * (forward[slowest] + backward[slowest]);
    if (overlap) {                                     // what neither hides
        double work = worked(&r);
        r.spent[SPENT_WAIT_ROWS] = busy > work ? busy - work : 0;
        r.spent[SPENT_WAIT_OTHERS] = 0;
    }
    simulated_add(&r, &update[slowest], 1);
    r.spent[SPENT_WAIT_SUMS] += sums;
    r.spent[SPENT_BUBBLE] = idle[slowest];
    r.pass = forward[slowest] + backward[slowest];
    r.update = last;
    r.seconds = steady + sums + last;
    return r;
}
