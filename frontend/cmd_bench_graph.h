// Small graphs compiled and run alone, for benches of kernels: texts in the graph's own form.
#ifndef FRONTEND_CMD_BENCH_GRAPH_H
#define FRONTEND_CMD_BENCH_GRAPH_H
#include "frontend/cmd_session.h"
#include "runtime/trace.h"

typedef struct {
    Cli *c;
    const Machine *machine;
    Compiled *compiled;
    RtPlanInstance *plan;              // one program
} BenchGraph;

// Reads one graph (a name for its text in messages, and the text), runs these passes, compiles it and opens it for so many
// threads.  pipeline_train: losses are taken out once they are differentiated.  false after an error.
bool bench_graph_open(BenchGraph *b, Cli *c, const Machine *m, const char *name, const char *text, const char *const *pipeline, int threads);
void bench_graph_close(BenchGraph *b);
// Random numbers from -1 to 1 in all inputs and parameters of floats; ints count 0 .. below - 1 again and again.
void bench_graph_fill(BenchGraph *b, int below);

// Something to time: run(self) once.
typedef struct {
    void (*run)(void *self);
    void *self;
    double seconds;                    // set: of one run, the best
} BenchRun;
// Times n of them in turns, so that all meet the same neighbours, for about `budget` seconds each (0: once).  One thread is
// timed by its own clock, which other programs don't disturb, more by the clock on the wall.
void bench_times(BenchRun *what, int n, int threads, double budget);

// Some steps of a plan as such a run, in order; self lives as long.
typedef struct { RtPlanInstance *plan; int n; const int *step; } BenchSteps;
BenchRun bench_steps(BenchSteps *self);
typedef bool BenchCounts(const RtPlan *plan, const RtStep *s);
BenchSteps bench_graph_steps(const BenchGraph *b, BenchCounts *counts);
BenchCounts bench_is_contraction, bench_is_any;
// What the compiler predicted these steps to take; 0: nothing was weighed.
double bench_predicted(const BenchGraph *b, const BenchSteps *s, int threads);

#endif
