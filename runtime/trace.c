// What ran when.  Each thread writes into its own part of one array; nothing is shared while steps run.  What
// is told of a step (rates, share of the limit) is told of one execution by all threads: from whoever begins
// first to whoever ends last.
#include "runtime/trace.h"
#include "runtime/gather.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int64_t rt_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

RtStatus rt_trace_begin(RtPlanInstance *p, int runs, RtError *e) {
    rt_trace_end(p);
    RtTrace *t = calloc(1, sizeof *t);
    if (!t) return rt_fail(e, RT_NO_MEMORY, "no memory for a trace");
    t->threads = p->threads;
    t->steps = (int)p->plan->steps.n;
    t->max_runs = runs * p->n_programs;
    const RtKernel *kernel = RT_TABLE(p->plan, RtKernel, kernels);
    for (int i = 0; i < t->steps; i++)
        t->capacity += kernel[p->step[i].kernel].n_phases * kernel[p->step[i].kernel].n_rounds * runs;
    t->capacity++;
    t->n = calloc((size_t)t->threads, sizeof *t->n);
    t->event = calloc((size_t)t->threads * (size_t)t->capacity, sizeof *t->event);
    t->work = calloc((size_t)t->max_runs * (size_t)t->steps + 1, sizeof *t->work);
    t->flight = calloc((size_t)t->max_runs * (size_t)t->steps + 1, sizeof *t->flight);
    t->origin_ns = rt_now_ns();
    p->trace = t;
    if (t->n && t->event && t->work && t->flight) return RT_OK;
    rt_trace_end(p);
    return rt_fail(e, RT_NO_MEMORY, "no memory for a trace");
}

void rt_trace_end(RtPlanInstance *p) {
    if (!p->trace) return;
    free(p->trace->n);
    free(p->trace->event);
    free(p->trace->work);
    free(p->trace->flight);
    free(p->trace);
    p->trace = NULL;
}

void rt_trace_add(RtTrace *t, int thread, RtTraceEvent event) {
    if (thread < t->threads && t->n[thread] < t->capacity && t->runs < t->max_runs) {
        event.run = t->runs;
        t->event[(size_t)thread * (size_t)t->capacity + (size_t)t->n[thread]++] = event;
    }
}

void rt_trace_flight(RtTrace *t, RtTraceFlight flight) {
    if (t->runs == t->max_runs || t->n_flights == t->max_runs * t->steps) return;
    flight.run = t->runs;
    t->flight[t->n_flights++] = flight;
}

void rt_trace_work(RtTrace *t, int step, RtWork work) {
    if (t->runs < t->max_runs) t->work[(size_t)t->runs * (size_t)t->steps + (size_t)step] = work;
}

// ---- limits ---------------------------------------------------------------------------------------------

double rt_limit_seconds(const RtLimits *l, RtWorkKind kind, RtWork w) {
    double peak = kind == RT_CONTRACTION_BF16 && l->bf16_dot > l->fma ? l->bf16_dot : l->fma, rate = 0;
    for (int i = 0; i < l->n_levels; i++) {
        rate = l->level[i].rate;
        if (w.bytes <= l->level[i].bytes) break;
    }
    double compute = peak > 0 ? w.flops / peak : 0, memory = rate > 0 ? w.bytes / rate : 0;
    return compute > memory ? compute : memory;
}

// ---- executions -----------------------------------------------------------------------------------------

// [runs, steps]; malloc'ed, NULL: no memory.
static RtTraceExec *executions(const RtTrace *t) {
    size_t n = (size_t)t->runs * (size_t)t->steps;
    RtTraceExec *exec = calloc(n + 1, sizeof *exec);
    if (!exec) return NULL;
    for (size_t i = 0; i < n; i++) exec[i].work = t->work[i];
    for (int thread = 0; thread < t->threads; thread++)
        for (int i = 0; i < t->n[thread]; i++) {
            const RtTraceEvent *v = &t->event[(size_t)thread * (size_t)t->capacity + (size_t)i];
            RtTraceExec *x = &exec[(size_t)v->run * (size_t)t->steps + (size_t)v->step];
            if (!x->end_ns || v->begin_ns < x->begin_ns) x->begin_ns = v->begin_ns;
            if (v->end_ns > x->end_ns) x->end_ns = v->end_ns;
            x->busy_ns += (double)(v->end_ns - v->begin_ns);
        }
    return exec;
}

static const char *kernel_name(const RtPlan *plan, const RtStep *s) {
    return RT_TEXT(plan, RT_TABLE(plan, RtKernel, kernels)[s->kernel].symbol);
}

// The line of the text that a step comes from; NULL: none.
static const RtSource *source_of(const RtPlan *plan, const RtStep *s) {
    const RtSource *source = RT_TABLE(plan, RtSource, sources) + s->span;
    return s->span < plan->sources.n && source->file < plan->text.n && source->line ? source : NULL;
}

// ---- the Chrome trace -----------------------------------------------------------------------------------

static void write_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text >= 32) fputc(*text, f);
    }
}

static void write_event(FILE *f, const RtPlanInstance *p, const RtLimits *limits, int thread,
                        const RtTraceEvent *v, const RtTraceExec *x) {
    const RtPlan *plan = p->plan;
    const RtStep *step = &p->step[v->step];
    double seconds = (double)(x->end_ns - x->begin_ns) / 1e9;
    fprintf(f, "{\"ph\": \"X\", \"pid\": %d, \"name\": \"", rt_rank(p->ranks) + 1);
    write_text(f, RT_TEXT(plan, step->op));
    fprintf(f, "\", \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"args\": {\"path\": \"", thread,
            (double)(v->begin_ns - p->trace->origin_ns) / 1e3, (double)(v->end_ns - v->begin_ns) / 1e3);
    write_text(f, RT_TEXT(plan, step->path));
    fputs("\", \"kernel\": \"", f);
    write_text(f, kernel_name(plan, step));
    fprintf(f, "\", \"run\": %d, \"step\": %d, \"phase\": %d, \"tasks\": %d, \"gflop\": %.6f, \"megabytes\": %.6f",
            v->run, v->step, v->phase, v->tasks, x->work.flops / 1e9, x->work.bytes / 1e6);
    if (seconds > 0) {
        fprintf(f, ", \"gflop_s\": %.3f, \"gb_s\": %.3f", x->work.flops / seconds / 1e9,
                x->work.bytes / seconds / 1e9);
        if (limits)
            fprintf(f, ", \"share_of_limit\": %.4f",
                    rt_limit_seconds(limits, (RtWorkKind)step->work, x->work) / seconds);
    }
    const RtSource *source = source_of(plan, step);
    if (source) {
        fputs(", \"source\": \"", f);
        write_text(f, RT_TEXT(plan, source->file));
        fprintf(f, ":%u\"", source->line);
    }
    fputs("}}", f);
}

// Two events: they may overlap with others.
static void write_flight(FILE *f, const RtPlanInstance *p, int number) {
    const RtTraceFlight *x = &p->trace->flight[number];
    const RtStep *step = &p->step[x->step];
    for (int end = 0; end < 2; end++) {
        fprintf(f, ",\n{\"ph\": \"%s\", \"cat\": \"exchange\", \"id\": %d, \"pid\": %d, \"tid\": 0, \"name\": \"", end ? "e" : "b", number,
                rt_rank(p->ranks) + 1);
        write_text(f, RT_TEXT(p->plan, step->op));
        fprintf(f, "\", \"ts\": %.3f, \"args\": {\"path\": \"", (double)((end ? x->end_ns : x->begin_ns) - p->trace->origin_ns) / 1e3);
        write_text(f, RT_TEXT(p->plan, step->path));
        fprintf(f, "\", \"step\": %d, \"bytes\": %lld, \"exposed_us\": %.3f}}", x->step, (long long)x->bytes, (double)x->exposed_ns / 1e3);
    }
}

static void path_of_rank(char *to, size_t room, const char *path, int rank) {
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    size_t stem = dot && (!slash || dot > slash + 1) && dot > path ? (size_t)(dot - path) : strlen(path);
    if (rank) snprintf(to, room, "%.*s.%d%s", (int)stem, path, rank, path + stem);
    else snprintf(to, room, "%s", path);
}

RtStatus rt_trace_write(const RtPlanInstance *p, const RtLimits *limits, const char *given, RtError *e) {
    const RtTrace *t = p->trace;
    char path[4096];
    path_of_rank(path, sizeof path, given, rt_rank(p->ranks));
    RtTraceExec *exec = executions(t);
    if (!exec) return rt_fail(e, RT_NO_MEMORY, "no memory for a trace");
    FILE *f = fopen(path, "w");
    if (!f) {
        free(exec);
        return rt_fail(e, RT_IO, "cannot create %s: %s", path, strerror(errno));
    }
    fputs("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", f);
    for (int thread = 0; thread < t->threads; thread++)
        fprintf(f,
                "%s{\"ph\": \"M\", \"pid\": %d, \"tid\": %d, \"name\": \"thread_name\", \"args\": {\"name\": "
                "\"thread %d\"}}",
                thread ? ",\n" : "", rt_rank(p->ranks) + 1, thread, thread);
    for (int thread = 0; thread < t->threads; thread++)
        for (int i = 0; i < t->n[thread]; i++) {
            const RtTraceEvent *v = &t->event[(size_t)thread * (size_t)t->capacity + (size_t)i];
            fputs(",\n", f);
            write_event(f, p, limits, thread, v, &exec[(size_t)v->run * (size_t)t->steps + (size_t)v->step]);
        }
    for (int i = 0; i < t->n_flights; i++) write_flight(f, p, i);
    fputs("\n]}\n", f);
    free(exec);
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) return rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
    return RT_OK;
}

// ---- the profile ----------------------------------------------------------------------------------------

// layers.3.ffn -> layers.*.ffn
static char *without_numbers(const char *path) {
    char *out = malloc(strlen(path) + 1), *to = out;
    for (const char *c = path; out && *c;) {
        size_t n = strcspn(c, "."), digits = strspn(c, "0123456789");
        if (n && digits == n)
            *to++ = '*';
        else {
            memcpy(to, c, n);
            to += n;
        }
        c += n;
        if (*c) *to++ = *c++;
    }
    if (out) *to = 0;
    return out;
}

static RtProfileLine *line_of(RtProfile *r, const RtPlan *plan, const RtStep *s) {
    char *path = without_numbers(RT_TEXT(plan, s->path));
    if (!path) return NULL;
    const char *kernel = kernel_name(plan, s);
    for (int i = 0; i < r->n; i++)
        if (r->line[i].kernel == kernel && !strcmp(r->line[i].path, path)) {
            free(path);
            return &r->line[i];
        }
    const RtSource *source = source_of(plan, s);
    r->line[r->n] = (RtProfileLine){.op = RT_TEXT(plan, s->op),
                                    .kernel = kernel,
                                    .path = path,
                                    .kind = (RtWorkKind)s->work,
                                    .source = source ? RT_TEXT(plan, source->file) : "",
                                    .line = source ? source->line : 0};
    return &r->line[r->n++];
}

static int longest_first(const void *a, const void *b) {
    double x = ((const RtProfileLine *)a)->seconds, y = ((const RtProfileLine *)b)->seconds;
    return (x < y) - (x > y);
}

RtStatus rt_profile_open(const RtPlanInstance *p, const RtLimits *limits, RtProfile *out, RtError *e) {
    const RtTrace *t = p->trace;
    RtTraceExec *exec = executions(t);
    *out = (RtProfile){.line = calloc((size_t)t->steps + 1, sizeof *out->line),
                       .wall_seconds = (double)t->run_ns / 1e9};
    bool ok = exec && out->line;
    double busy = 0;
    for (int run = 0; ok && run < t->runs; run++)
        for (int i = 0; ok && i < t->steps; i++) {
            const RtTraceExec *x = &exec[(size_t)run * (size_t)t->steps + (size_t)i];
            if (!x->end_ns) continue;
            RtProfileLine *l = line_of(out, p->plan, &p->step[i]);
            ok = l != NULL;
            if (!ok) break;
            double seconds = x->busy_ns / 1e9 / t->threads;
            l->launches++;
            l->seconds += seconds;
            l->work.flops += x->work.flops;
            l->work.bytes += x->work.bytes;
            l->limit_seconds += rt_limit_seconds(limits, l->kind, x->work);
            busy += seconds;
        }
    free(exec);
    if (!ok) {
        rt_profile_close(out);
        return rt_fail(e, RT_NO_MEMORY, "no memory for a profile");
    }
    out->idle_seconds = out->wall_seconds - busy;
    qsort(out->line, (size_t)out->n, sizeof *out->line, longest_first);
    return RT_OK;
}

void rt_profile_close(RtProfile *r) {
    for (int i = 0; i < r->n; i++) free(r->line[i].path);
    free(r->line);
    *r = (RtProfile){.line = NULL};
}
