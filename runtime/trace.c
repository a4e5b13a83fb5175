// What ran when.  Each thread writes into its own part of one array; nothing is shared while steps run.
#include "runtime/trace.h"

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
    t->capacity = (int)p->plan->steps.n * RT_MAX_PHASES * runs + 1;
    t->n = calloc((size_t)t->threads, sizeof *t->n);
    t->event = calloc((size_t)t->threads * (size_t)t->capacity, sizeof *t->event);
    t->origin_ns = rt_now_ns();
    p->trace = t;
    if (t->n && t->event) return RT_OK;
    rt_trace_end(p);
    return rt_fail(e, RT_NO_MEMORY, "no memory for a trace");
}

void rt_trace_end(RtPlanInstance *p) {
    if (!p->trace) return;
    free(p->trace->n);
    free(p->trace->event);
    free(p->trace);
    p->trace = NULL;
}

void rt_trace_add(RtTrace *t, int thread, RtTraceEvent event) {
    if (thread < t->threads && t->n[thread] < t->capacity)
        t->event[(size_t)thread * (size_t)t->capacity + (size_t)t->n[thread]++] = event;
}

static void write_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text >= 32) fputc(*text, f);
    }
}

RtStatus rt_trace_write(const RtPlanInstance *p, const char *path, RtError *e) {
    const RtTrace *t = p->trace;
    const RtSource *source = RT_TABLE(p->plan, RtSource, sources);
    FILE *f = fopen(path, "w");
    if (!f) return rt_fail(e, RT_IO, "cannot create %s: %s", path, strerror(errno));
    fputs("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", f);
    for (int thread = 0; thread < t->threads; thread++)
        fprintf(f,
                "{\"ph\": \"M\", \"pid\": 1, \"tid\": %d, \"name\": \"thread_name\", \"args\": {\"name\": "
                "\"thread %d\"}}%s\n",
                thread, thread, thread + 1 < t->threads || t->n[0] ? "," : "");
    bool first = true;
    for (int thread = 0; thread < t->threads; thread++)
        for (int i = 0; i < t->n[thread]; i++) {
            const RtTraceEvent *v = &t->event[(size_t)thread * (size_t)t->capacity + (size_t)i];
            const RtStep *step = &p->step[v->step];
            fputs(first ? "{\"ph\": \"X\", \"pid\": 1, \"name\": \""
                        : ",\n{\"ph\": \"X\", \"pid\": 1, \"name\": \"",
                  f);
            first = false;
            write_text(f, RT_TEXT(p->plan, step->op));
            fprintf(f, "\", \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"args\": {\"path\": \"", thread,
                    (double)(v->begin_ns - t->origin_ns) / 1e3, (double)(v->end_ns - v->begin_ns) / 1e3);
            write_text(f, RT_TEXT(p->plan, step->path));
            fprintf(f, "\", \"step\": %d, \"phase\": %d, \"tasks\": %d, \"gflop\": %.6f", v->step, v->phase,
                    v->tasks, step->flops / 1e9);
            if (step->span < p->plan->sources.n && source[step->span].file < p->plan->text.n &&
                source[step->span].line) {
                fputs(", \"source\": \"", f);
                write_text(f, RT_TEXT(p->plan, source[step->span].file));
                fprintf(f, ":%u\"", source[step->span].line);
            }
            fputs("}}", f);
        }
    fputs("\n]}\n", f);
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) return rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
    return RT_OK;
}
