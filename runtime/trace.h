// What ran when: as a Chrome trace (chrome://tracing, ui.perfetto.dev), and summed up by kernel.
#ifndef RUNTIME_TRACE_H
#define RUNTIME_TRACE_H
#include "runtime/plan.h"

typedef struct {
    int32_t run, step, phase, tasks;
    int64_t begin_ns, end_ns;
} RtTraceEvent;

// An exchange between ranks, from its start until nothing of it was under way any more.
typedef struct {
    int32_t run, step;
    int64_t begin_ns, end_ns, exposed_ns;      // exposed: of it, what this rank spent in starting and waiting
    int64_t bytes;                             // that this rank sent
} RtTraceFlight;

// One execution of a step, by all threads.
typedef struct {
    RtWork  work;
    int64_t begin_ns, end_ns;           // of whoever began first and ended last; end_ns 0: it had no tasks
    double  busy_ns;                    // of all threads
} RtTraceExec;

typedef struct RtTrace {
    int threads, capacity;              // events per thread
    int *n;                             // [threads]
    RtTraceEvent *event;                // [threads, capacity]
    int runs, max_runs, steps;
    RtWork *work;                       // [max_runs, steps]
    RtTraceFlight *flight;              // [max_runs * steps]
    int n_flights;
    int64_t origin_ns, run_ns;          // run_ns: all runs together
} RtTrace;

// From now on rt_run records, until rt_trace_end; room for `runs` runs of every program.
RtStatus rt_trace_begin(RtPlanInstance *p, int runs, RtError *e);
void     rt_trace_end(RtPlanInstance *p);

int64_t rt_now_ns(void);
void    rt_trace_add(RtTrace *t, int thread, RtTraceEvent event);   // drops what no room is left for
void    rt_trace_flight(RtTrace *t, RtTraceFlight flight);
void    rt_trace_work(RtTrace *t, int step, RtWork work);           // of this run

// ---- what was recorded ----------------------------------------------------------------------------------

enum { RT_LEVELS = 4 };

// What the machine can do with the plan's threads; 0: unknown.
typedef struct {
    double fma, bf16_dot;               // operations a second; bf16_dot: of bf16 operands, 0: there is no such
    int n_levels;
    struct { double bytes, rate; } level[RT_LEVELS];    // what fits in bytes is read at rate; the last has all
} RtLimits;

// The least time this work can take: the longer of its operations and its bytes.
double rt_limit_seconds(const RtLimits *l, RtWorkKind kind, RtWork w);

// A Chrome trace; of several ranks each writes its own, those behind the first to PATH with their number in front of the
// ending (t.json, t.1.json, ..).  limits NULL: without shares of them.
RtStatus rt_trace_write(const RtPlanInstance *p, const RtLimits *limits, const char *path, RtError *e);

// Steps of one kernel whose paths differ in numbers only.
typedef struct {
    const char *op, *kernel, *source;   // texts of the plan; source: file, or ""
    uint32_t line;
    char   *path;                       // layers.*.ffn
    int64_t launches;
    double  seconds, limit_seconds;     // seconds: the threads' mean
    RtWork  work;
    RtWorkKind kind;
} RtProfileLine;

typedef struct {
    int n;
    RtProfileLine *line;                // longest first
    double wall_seconds, idle_seconds;  // of the runs; idle: the threads' mean
} RtProfile;

RtStatus rt_profile_open(const RtPlanInstance *p, const RtLimits *limits, RtProfile *out, RtError *e);
void     rt_profile_close(RtProfile *r);

#endif
