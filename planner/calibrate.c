#include "planner/calibrate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ir/base/vec.h"
#include "runtime/ranks.h"

// ---- the trace ----------------------------------------------------------------------------------------------------

typedef struct {
    int    step, run;
    double begin, end;             // seconds
    RtWork work;                   // of the step
} Event;

typedef VEC(Event) Events;

static bool read_event(const json_t *o, Event *out, const char **op, const char **path) {
    const json_t *args = json_object_get(o, "args"), *step = json_object_get(args, "step"), *run = json_object_get(args, "run");
    const json_t *ts = json_object_get(o, "ts"), *dur = json_object_get(o, "dur");
    *op = json_string_value(json_object_get(o, "name"));
    *path = json_string_value(json_object_get(args, "path"));
    if (!json_is_integer(step) || !json_is_integer(run) || !json_is_number(ts) || !json_is_number(dur) || !*op || !*path) return false;
    double begin = json_number_value(ts) * 1e-6;
    *out = (Event){(int)json_integer_value(step), (int)json_integer_value(run), begin, begin + json_number_value(dur) * 1e-6,
                   {.flops = json_number_value(json_object_get(args, "gflop")) * 1e9, .bytes = json_number_value(json_object_get(args, "megabytes")) * 1e6}};
    return true;
}

static bool is_of_plan(const RtPlan *plan, int number, const char *op, const char *path) {
    const RtStep *s = RT_TABLE(plan, RtStep, steps) + number;
    return number >= 0 && number < (int)plan->steps.n && !strcmp(RT_TEXT(plan, s->op), op) && !strcmp(RT_TEXT(plan, s->path), path);
}

static bool read_events(Arena *a, Diag *d, const RtPlan *plan, const char *path, Events *to) {
    json_error_t e;
    json_t *all = json_load_file(path, 0, &e), *list = json_object_get(all, "traceEvents"), *o;
    size_t i;
    bool ok = json_is_array(list);
    if (!all && e.line > 0) diag_error(d, (Span){0}, "%s:%d: this is not JSON: %s", path, e.line, e.text);
    else if (!all) diag_error(d, (Span){0}, "%s", e.text);
    else if (!ok) diag_error(d, (Span){0}, "%s: this is not a trace: it has no list \"traceEvents\"", path);
    json_array_foreach(list, i, o) {
        const char *phase = json_string_value(json_object_get(o, "ph")), *op, *of;
        Event event;
        if (!ok || !phase || strcmp(phase, "X") != 0) continue;
        ok = read_event(o, &event, &op, &of);
        if (!ok) diag_error(d, (Span){0}, "%s: event %d is not one that --trace of bench or train writes", path, (int)i);
        else if (!is_of_plan(plan, event.step, op, of)) {
            diag_error(d, (Span){0}, "%s is of another model or layout: its step %d is %s of %s", path, event.step, op, *of ? of : "no layer");
            diag_help(d, "give the options here that the traced run had");
            ok = false;
        } else vec_push(a, to, event);
    }
    json_decref(all);
    if (ok && !to->n) diag_error(d, (Span){0}, "%s: no kernel was traced", path);
    return ok && to->n;
}

// ---- times --------------------------------------------------------------------------------------------------------

static int by_step_run_begin(const void *a, const void *b) {
    const Event *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    if (x->run != y->run) return x->run < y->run ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Time in which any thread works at a step: the events of a run in the order they begin.
static double covered(const Event *e, int n) {
    double until = e->begin, sum = 0;
    for (int i = 0; i < n; i++) {
        double from = e[i].begin > until ? e[i].begin : until;
        if (e[i].end <= from) continue;
        sum += e[i].end - from;
        until = e[i].end;
    }
    return sum;
}

static int run_length(const Event *e, int n) {
    int k = 1;
    while (k < n && e[k].step == e->step && e[k].run == e->run) k++;
    return k;
}

// Of all runs of one step: e[0 .. n).
static double median_seconds(Arena *scratch, const Event *e, int n) {
    double *took = arena_array(scratch, double, n);
    int runs = 0;
    for (int i = 0; i < n; i += run_length(e + i, n - i)) took[runs++] = covered(e + i, run_length(e + i, n - i));
    qsort(took, (size_t)runs, sizeof *took, by_value);
    return (took[runs / 2] + took[(runs - 1) / 2]) / 2;
}

static double whole_step(const Event *e, int n, int64_t waves) {
    double begin = e->begin, end = e->end;
    int last = 0;
    for (int i = 0; i < n; i++) {
        if (e[i].begin < begin) begin = e[i].begin;
        if (e[i].end > end) end = e[i].end;
        if (e[i].run > last) last = e[i].run;
    }
    return (end - begin) * (double)(waves + 1) / (last + 1);           // a step is its waves and the update
}

static CalibratedOp *row_of(Calibration *c, const char *op) {
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->op[i].op, op)) return &c->op[i];
    c->op[c->n] = (CalibratedOp){.op = op};
    return &c->op[c->n++];
}

static int by_seconds(const void *a, const void *b) {
    const CalibratedOp *x = a, *y = b;
    return x->seconds < y->seconds ? 1 : -(x->seconds > y->seconds);
}

static void set_share(Cluster *c, const CalibratedOp *op) {
    int i = 0;
    while (i < c->n_ops && strcmp(c->op[i].op, op->op) != 0) i++;
    if (i == CLUSTER_OPS || op->limit <= 0 || op->seconds <= 0) return;
    c->op[i].op = op->op;
    c->op[i].share = op->limit / op->seconds;
    if (i == c->n_ops) c->n_ops++;
}

bool calibrate(Arena *a, Diag *d, Cluster *c, const RtPlan *plan, int64_t waves, const char *path, Calibration *out) {
    Arena *scratch = arena_create();
    Events all = {0};
    bool ok = read_events(scratch, d, plan, path, &all);
    *out = (Calibration){.op = arena_array(a, CalibratedOp, (int)plan->steps.n + 1)};
    if (ok) {
        out->step_seconds = whole_step(all.at, all.n, waves);
        qsort(all.at, (size_t)all.n, sizeof *all.at, by_step_run_begin);
    }
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    for (int i = 0, n; i < all.n && ok; i += n) {
        for (n = 1; i + n < all.n && all.at[i + n].step == all.at[i].step;) n++;
        const Event *e = &all.at[i];
        if (rt_exchange_of(plan, (uint32_t)e->step)) continue;        // these take as long as others do
        CalibratedOp *row = row_of(out, arena_strdup(a, RT_TEXT(plan, step[e->step].op)));
        row->steps++;
        row->seconds += median_seconds(scratch, e, n);
        row->limit += limit_seconds(c, (RtWorkKind)step[e->step].work, e->work);
    }
    arena_destroy(scratch);
    if (out->n) qsort(out->op, (size_t)out->n, sizeof *out->op, by_seconds);
    for (int i = 0; i < out->n; i++) set_share(c, &out->op[i]);
    return ok;
}
