// What ran when, as a Chrome trace (chrome://tracing, ui.perfetto.dev).
#ifndef RUNTIME_TRACE_H
#define RUNTIME_TRACE_H
#include "runtime/plan.h"

typedef struct {
    int32_t step, phase, tasks;
    int64_t begin_ns, end_ns;
} RtTraceEvent;

typedef struct RtTrace {
    int threads, capacity;              // events per thread
    int *n;                             // [threads]
    RtTraceEvent *event;                // [threads, capacity]
    int64_t origin_ns;
} RtTrace;

// From now on rt_run records, until rt_trace_end; room for `runs` runs of every program.
RtStatus rt_trace_begin(RtPlanInstance *p, int runs, RtError *e);
RtStatus rt_trace_write(const RtPlanInstance *p, const char *path, RtError *e);
void     rt_trace_end(RtPlanInstance *p);

int64_t rt_now_ns(void);
void    rt_trace_add(RtTrace *t, int thread, RtTraceEvent event);   // drops what no room is left for

#endif
