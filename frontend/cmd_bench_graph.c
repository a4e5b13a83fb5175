#include "frontend/cmd_bench_graph.h"

#include <string.h>
#include <time.h>

#include "passes/pass.h"
#include "runtime/convert.h"
#include "runtime/exec.h"

// Losses that stand there only to be differentiated, with what makes them and nothing else reads.
static void remove_losses(Graph *g) {
    for_each_node_reverse(g, n) {
        bool is_read = op_is(n->op, EFFECT) && n->op != OP_LOSS;
        for (int i = 0; i < n->n_out; i++) is_read |= n->out[i].n_uses > 0;
        if (is_read || op_is(n->op, SOURCE)) continue;
        graph_remove(n);
    }
}

static bool run_passes(Session *s, Graph **g, const char *const *pipeline) {
    Graph *update = NULL;
    if (pipeline != pipeline_train) return session_passes(s, g, pipeline, &update);
    const char *first[32];
    int n = 0;
    do first[n] = pipeline[n]; while (strcmp(first[n++], "optimizer") != 0);
    first[n] = NULL;
    if (!session_passes(s, g, first, &update)) return false;
    graph_recount(*g);
    remove_losses(*g);
    return session_passes(s, g, pipeline + n, &update);
}

// What is measured in panels lies in panels, faster or not.
static LayoutOffer panels(const Node *n, int operand, const char *cpu, const Machine *m, int64_t passing) {
    LayoutOffer o = target_find("cpu")->layout(n, operand, cpu, m, passing);
    o.laid = 0;
    return o;
}

static bool compile(BenchGraph *b, Cli *c, const Machine *m, Graph *g, const char *const *pipeline, int threads) {
    Session s = {.cli = c, .arena = c->arena, .diag = c->diag, .machine = m};
    s.train = (TrainOpts){.dtype = intern("f32"), .recompute = intern("cheap"), .optimizer = intern("sgd"), .lr_expert = 1, .waves = 1};
    s.own_parameters = pipeline == pipeline_forward;
    s.layout = panels;
    bool ok = run_passes(&s, &g, pipeline) && session_compile(&s, &g, 1, NULL, threads);
    b->compiled = s.compiled;
    b->plan = s.plan;
    return ok;
}

bool bench_graph_open(BenchGraph *b, Cli *c, const Machine *m, const char *name, const char *text, const char *const *pipeline, int threads) {
    int n;
    *b = (BenchGraph){.c = c, .machine = m};
    Graph **g = graphs_parse(c->arena, c->diag, diag_add_file(c->diag, name, text, strlen(text)), &n);
    return g && compile(b, c, m, g[0], pipeline, threads);
}

void bench_graph_close(BenchGraph *b) {
    rt_plan_close(b->plan);
    if (b->compiled) compiled_free(b->compiled);
    b->plan = NULL;
    b->compiled = NULL;
}

static double random_number(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(*state >> 32) * 0x1p-31;
}

void bench_graph_fill(BenchGraph *b, int below) {
    uint64_t state = 1;
    for (int i = 0; i < b->plan->n_tensors; i++) {
        const RtTensor *t = &b->plan->tensor[i];
        if (t->role != RT_INPUT && t->role != RT_PARAM) continue;
        bool is_float = dtype_is_float((DType)t->dtype);
        int64_t n = t->bytes / dtype_bytes((DType)t->dtype);
        for (int64_t k = 0; k < n; k++)
            rt_store_number(rt_tensor_data(b->plan, t), (DType)t->dtype, k, is_float ? random_number(&state) : (double)(k % below));
    }
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
    for (int round = 0; spent < budget * n || (round < LEAST_ROUNDS && spent < 10 * budget * n); round++)
        for (int i = 0; i < n; i++) {
            double each = runs(&what[i], times[i], threads);
            spent += each * times[i];
            if (each < what[i].seconds) what[i].seconds = each;
        }
}

static void run_steps(void *self) {
    const BenchSteps *s = self;
    for (int i = 0, n; i < s->n; i += n) {                 // neighbours in one go, as in a program
        for (n = 1; i + n < s->n && s->step[i + n] == s->step[i] + n;) n++;
        rt_run_steps(s->plan, s->step[i], n);
    }
}

BenchRun bench_steps(BenchSteps *self) { return (BenchRun){run_steps, self, 0}; }

bool bench_is_contraction(const RtPlan *plan, const RtStep *s) {
    (void)plan;
    return s->work != RT_ELEMENTWISE;
}

bool bench_is_any(const RtPlan *plan, const RtStep *s) {
    (void)plan, (void)s;
    return true;
}

BenchSteps bench_graph_steps(const BenchGraph *b, BenchCounts *counts) {
    int n = 0, all = (int)b->plan->plan->steps.n, *step = arena_array(b->c->arena, int, all + 1);
    for (int i = 0; i < all; i++)
        if (counts(b->plan->plan, &b->plan->step[i])) step[n++] = i;
    return (BenchSteps){b->plan, n, step};
}

double bench_predicted(const BenchGraph *b, const BenchSteps *s, int threads) {
    double seconds = 0;
    for (int i = 0; i < s->n; i++) seconds += compiled_predicted(b->compiled, (int)b->plan->step[s->step[i]].kernel, threads);
    return seconds;
}
