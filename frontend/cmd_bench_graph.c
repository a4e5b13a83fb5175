#include "frontend/cmd_bench_graph.h"

#include <string.h>
#include <time.h>

#include "passes/pass.h"
#include "runtime/convert.h"
#include "runtime/exec.h"

bool bench_graph_compile(BenchGraph *b, Cli *c, const Machine *m, Graph *g, const char *const *pipeline, int threads) {
    *b = (BenchGraph){.c = c, .machine = m};
    Session s = {.cli = c, .arena = c->arena, .diag = c->diag, .machine = m};
    s.train = (TrainOpts){.dtype = intern("f32"), .recompute = intern("none"), .optimizer = intern("sgd"), .lr_expert = 1, .waves = 1};
    Graph *update = NULL;
    bool ok = session_passes(&s, &g, pipeline, &update) && session_compile(&s, &g, 1, NULL, threads);
    b->compiled = s.compiled;
    b->plan = s.plan;
    return ok;
}

bool bench_graph_open(BenchGraph *b, Cli *c, const Machine *m, const char *name, const char *text, const char *const *pipeline, int threads) {
    int n;
    *b = (BenchGraph){.c = c, .machine = m};
    Graph **g = graphs_parse(c->arena, c->diag, diag_add_file(c->diag, name, text, strlen(text)), &n);
    return g && bench_graph_compile(b, c, m, g[0], pipeline, threads);
}

void bench_graph_close(BenchGraph *b) {
    rt_plan_close(b->plan);
    if (b->compiled) compiled_free(b->compiled);
    b->plan = NULL;
    b->compiled = NULL;
}

void bench_graph_fill(BenchGraph *b, int below) {
    for (int i = 0; i < b->plan->n_tensors; i++) {
        const RtTensor *t = &b->plan->tensor[i];
        if (t->role != RT_INPUT && t->role != RT_PARAM) continue;
        bool is_float = dtype_is_float((DType)t->dtype);
        int64_t n = t->bytes / dtype_bytes((DType)t->dtype);
        for (int64_t k = 0; k < n; k++)
            rt_store_number(rt_tensor_data(b->plan, t), (DType)t->dtype, k, is_float ? (double)(k * 7 % 31 - 15) / 64 : (double)(k % below));
    }
}

int bench_graph_contraction(const BenchGraph *b) {
    for (int i = 0; i < (int)b->plan->plan->steps.n; i++)
        if (b->plan->step[i].work != RT_ELEMENTWISE) return i;
    return -1;
}

// ---- timing -------------------------------------------------------------------------------------------------

static double now(int threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double runs(const BenchRun *what, int times, int threads) {
    double begin = now(threads);
    for (int i = 0; i < times; i++) what->run(what->self);
    return (now(threads) - begin) / times;
}

enum { LEAST_ROUNDS = 5, LIST = 8 };
static const double A_ROUND = 2e-3;        // seconds, where one run is shorter

void bench_times(BenchRun *what, int n, int threads, double budget) {
    int times[LIST];
    double spent = 0;
    for (int i = 0; i < n; i++) {
        what[i].run(what[i].self);                         // touches its memory
        double once = runs(&what[i], 1, threads);
        times[i] = once < A_ROUND ? (int)(A_ROUND / (once > 1e-7 ? once : 1e-7)) + 1 : 1;
        what[i].seconds = once;
    }
    for (int round = 0; round < LEAST_ROUNDS || spent < budget * n; round++)
        for (int i = 0; i < n; i++) {
            double each = runs(&what[i], times[i], threads);
            spent += each * times[i];
            if (each < what[i].seconds) what[i].seconds = each;
        }
}

static void run_steps(void *self) {
    BenchSteps *s = self;
    rt_run_steps(s->plan, s->first, s->n);
}

BenchRun bench_steps(BenchSteps *self) { return (BenchRun){run_steps, self, 0}; }
