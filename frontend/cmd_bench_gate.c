// `moec bench gate`: choice, route, dispatch and combine with experts that change nothing, forward and backward.
//
//     z [T, E] -> softmax, top-k -> route;  rows = x[token of slot];  y = sum of w * row;  then dx and dz from dy
//
// The time is set against the time that the least bytes need: x is read twice (the second time for dw), dy and z once,
// y, dx and dz are written, at the rates of the level that holds all of them: those of reading and writing in turns, or of
// copying and of reading the rest, whichever is faster.  Rows of experts are not counted: with experts that gather while
// they pack and add up in their epilogue they are in no memory either.
// --onehot runs the formulation of GShard and DeepSpeed too: a mask [T, E, C] with room for C = k T / E, two products with it
// forward and three back.
#include <math.h>
#include <string.h>

#include "frontend/cmd_bench.h"
#include "frontend/cmd_bench_graph.h"
#include "frontend/cmd_bench_table.h"
#include "frontend/cmd_machine.h"
#include "ir/base/str.h"
#include "passes/pass.h"
#include "runtime/exec.h"

typedef struct { long long T, E, k, D; } Gate;

enum { LEAVES = 8 };

#define PARAM "init = \"normal\", init_a = 1, group = \"dense\", lr = 1"

// x and z stand as parameters, so that the pass leaves their gradients.
static void add_sources(Str *t, const Gate *g, int leaves) {
    long long T = g->T / leaves;
    str_printf(t, "  %%x = param {name = \"x\", " PARAM "} : f32[L,%lld,%lld]\n  %%z = param {name = \"z\", " PARAM "} : f32[L,%lld,%lld]\n", T, g->D, T, g->E);
    str_printf(t, "  %%dy = input {name = \"dy\"} : f32[L,%lld,%lld]\n  %%p = softmax %%z : f32[L,%lld,%lld]\n", T, g->D, T, g->E);
    str_printf(t, "  %%v, %%e = topk %%p {k = %lld} : f32[L,%lld,%lld], i32[L,%lld,%lld]\n", g->k, T, g->k, T, g->k);
    if (g->k > 1)
        str_printf(t, "  %%s = sum %%v {axes = [2]} : f32[L,%lld,1]\n  %%w = div %%v, %%s : f32[L,%lld,%lld]\n", T, T, g->k);
}

static const char *weights(const Gate *g) { return g->k > 1 ? "%w" : "%v"; }

// What makes dy the gradient of y; it is not there any more when the graph runs.
static void add_objective(Str *t, const Gate *g, int leaves) {
    long long T = g->T / leaves;
    str_printf(t, "  %%yd = mul %%y, %%dy : f32[L,%lld,%lld]\n  %%l = sum %%yd {axes = [1, 2]} : f32[L,1,1]\n", T, g->D);
    str_add(t, "  loss %l {name = \"l\", weight = 1}\n  return %y {name = \"y\"}\n}\n");
}

static const char *gate_text(Arena *a, const Gate *g) {
    Str t = {.arena = a};
    long long T = g->T / LEAVES, k = g->k, D = g->D;
    str_printf(&t, "graph @pass stage WHOLE {\n  leaves L = %d\n  rows R <= %lld by %lld leaves %d of %%off\n", LEAVES, g->T * k, g->E, LEAVES);
    add_sources(&t, g, LEAVES);
    str_printf(&t, "  %%off, %%row, %%slot = route %%e {experts = %lld, sym = R, leaves = %d} : i32[%lld], i32[L,%lld,%lld], i32[R]\n", g->E, LEAVES,
               g->E * LEAVES + 1, T, k);
    str_printf(&t, "  %%k = const {value = %lld} : i32[]\n  %%token = div %%slot, %%k : i32[R]\n  %%rows = gather_rows %%x, %%token : f32[R,%lld]\n", k, D);
    str_printf(&t, "  %%w1 = reshape %s : f32[L,%lld,%lld,1]\n  %%wr = gather_rows %%w1, %%slot : f32[R,1]\n", weights(g), T, k);
    str_printf(&t, "  %%back = mul %%rows, %%wr : f32[R,%lld]\n  %%y = scatter_add_rows %%back, %%token : f32[L,%lld,%lld]\n", D, T, D);
    add_objective(&t, g, LEAVES);
    return t.text;
}

static const char *onehot_text(Arena *a, const Gate *g) {
    Str t = {.arena = a};
    long long T = g->T, E = g->E, D = g->D, C = g->k * T / E;
    str_add(&t, "graph @pass stage WHOLE {\n  leaves L = 1\n");
    add_sources(&t, g, 1);
    str_printf(&t, "  %%zero = const {value = 0} : f32[]\n  %%one = const {value = 1} : f32[]\n  %%ones = broadcast %%one : f32[L,%lld,1]\n", T);
    for (long long j = 0; j < g->k; j++) {
        str_printf(&t, "  %%e%lld = slice %%e {axis = 2, begin = %lld, end = %lld} : i32[L,%lld,1]\n", j, j, j + 1, T);
        str_printf(&t, "  %%m%lld = put %%ones, %%e%lld {n = %lld} : f32[L,%lld,%lld]\n", j, j, E, T, E);
        str_printf(&t, "  %%c%lld = cumsum %%m%lld {axis = 1, reverse = 0, exclusive = 1} : f32[L,%lld,%lld]\n", j, j, T, E);
        const char *place = arena_printf(a, "%%c%lld", j);
        if (j > 0) {                                       // behind those of earlier choices
            str_printf(&t, "  %%n%lld = sum %%m%lld {axes = [1]} : f32[L,1,%lld]\n", j - 1, j - 1, E);
            if (j > 1) str_printf(&t, "  %%h%lld = add %%h%lld, %%n%lld : f32[L,1,%lld]\n", j, j - 1, j - 1, E);
            str_printf(&t, "  %%q%lld = add %%c%lld, %%%s%lld : f32[L,%lld,%lld]\n", j, j, j > 1 ? "h" : "n", j > 1 ? j : 0, T, E);
            if (j == 1) str_printf(&t, "  %%h1 = add %%n0, %%zero : f32[L,1,%lld]\n", E);
            place = arena_printf(a, "%%q%lld", j);
        }
        str_printf(&t, "  %%a%lld = mul %s, %%m%lld : f32[L,%lld,%lld]\n  %%b%lld = sum %%a%lld {axes = [2]} : f32[L,%lld,1]\n", j, place, j, T, E, j, j, T);
        str_printf(&t, "  %%i%lld = cast %%b%lld : i32[L,%lld,1]\n  %%o%lld = put %%ones, %%i%lld {n = %lld} : f32[L,%lld,%lld]\n", j, j, T, j, j, C, T, C);
        str_printf(&t, "  %%w%lld = slice %s {axis = 2, begin = %lld, end = %lld} : f32[L,%lld,1]\n", j, weights(g), j, j + 1, T);
        str_printf(&t, "  %%g%lld = mul %%m%lld, %%w%lld : f32[L,%lld,%lld]\n", j, j, j, T, E);
        str_printf(&t, "  %%ge%lld = reshape %%g%lld : f32[L,%lld,%lld,1]\n  %%oe%lld = reshape %%o%lld : f32[L,%lld,1,%lld]\n", j, j, T, E, j, j, T, C);
        str_printf(&t, "  %%t%lld = mul %%ge%lld, %%oe%lld : f32[L,%lld,%lld,%lld]\n", j, j, j, T, E, C);
        if (j > 0) str_printf(&t, "  %%u%lld = add %%%s%lld, %%t%lld : f32[L,%lld,%lld,%lld]\n", j, j > 1 ? "u" : "t", j - 1, j, T, E, C);
    }
    const char *combine = arena_printf(a, "%%%s%lld", g->k > 1 ? "u" : "t", g->k - 1);
    str_printf(&t, "  %%some = lt %%zero, %s : bool[L,%lld,%lld,%lld]\n  %%mask = cast %%some : f32[L,%lld,%lld,%lld]\n", combine, T, E, C, T, E, C);
    str_printf(&t, "  %%mm = reshape %%mask : f32[L,%lld,%lld]\n  %%cc = reshape %s : f32[L,%lld,%lld]\n", T, E * C, combine, T, E * C);
    str_printf(&t, "  %%rows = matmul %%mm, %%x {ta = 1} : f32[L,%lld,%lld]\n  %%y = matmul %%cc, %%rows : f32[L,%lld,%lld]\n", E * C, D, T, D);
    add_objective(&t, g, 1);
    return t.text;
}

// Seconds of one run, and the bytes that its steps say they move; below 0 after an error.
static double time_of(Cli *c, const Machine *known, const char *name, const char *text, int threads, double budget, double *moved) {
    BenchGraph b;
    double seconds = -1;
    if (bench_graph_open(&b, c, known, name, text, pipeline_train, threads)) {
        bench_graph_fill(&b, 1);
        rt_run(b.plan, 0);
        BenchSteps steps = bench_graph_steps(&b, bench_is_any);
        BenchRun run = bench_steps(&steps);
        bench_times(&run, 1, threads, budget);
        seconds = run.seconds;
        *moved = 0;
        for (int i = 0; i < steps.n; i++) *moved += rt_step_work(b.plan, &b.plan->step[steps.step[i]]).bytes;
    }
    bench_graph_close(&b);
    return seconds;
}

// The least bytes, and the time they need.
static double least_seconds(const Machine *m, const Gate *g, int threads, double *bytes) {
    double x = 4.0 * (double)(g->T * g->D), z = 4.0 * (double)(g->T * g->E), read = 3 * x + z, write = 2 * x + z;
    const MachineLevel *l = &m->level[machine_level(m, (int64_t)(4 * x + 2 * z), threads)];
    double reads = machine_bandwidth(m, l->read, threads), writes = machine_bandwidth(m, l->write, threads),
           streams = machine_bandwidth(m, l->stream, threads), copies = machine_bandwidth(m, l->copy, threads);
    *bytes = read + write;
    double in_turns = read / reads + write / fmax(streams, writes), copied = 2 * write / copies + (read - write) / reads;
    return fmin(in_turns, copied);
}

int bench_gate(Cli *c) {
    static const long long tokens[] = {1024, 2048, 4096, 8192}, experts[] = {8, 32, 128}, chosen[] = {1, 2, 8};
    bool ok = true, with_onehot = cli_flag(c, "onehot");
    int threads = (int)bench_number(c, "threads", 1, 0, &ok);
    long long width = bench_number(c, "width", 16, 1024, &ok);
    double budget = (double)bench_number(c, "milliseconds", 1, 200, &ok) / 1e3;
    const char *only = cli_value(c, "only");
    Machine m;
    const Machine *known = ok ? machine_open(c, false) : NULL;
    if (!known || !machine_measure(&m, c->diag)) return cli_finish(c, EXIT_WRONG);
    if (!threads) threads = m.threads;
    json_t *rows = json_array();
    for (int i = 0; ok && i < 4 * 3 * 3; i++) {
        Gate g = {tokens[i / 9], experts[i / 3 % 3], chosen[i % 3], width};
        const char *name = arena_printf(c->arena, "T=%lld E=%lld k=%lld", g.T, g.E, g.k);
        if (only && !strstr(name, only)) continue;
        double moved, bytes, onehot = 0, ignored;
        double seconds = time_of(c, known, name, gate_text(c->arena, &g), threads, budget, &moved), least = least_seconds(&m, &g, threads, &bytes);
        bool fits = g.T * g.k * g.T * 4 <= 1LL << 30;      // the mask
        if (seconds >= 0 && with_onehot && fits)
            onehot = time_of(c, known, name, onehot_text(c->arena, &g), threads, 0, &ignored);
        ok = seconds >= 0 && onehot >= 0;
        json_array_append_new(rows, json_pack("{s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:o, s:o}", "gate", name, "threads", threads, "time_us",
                                              seconds * 1e6, "moved_mb", moved / 1e6, "least_mb", bytes / 1e6, "least_us", least * 1e6,
                                              "times_least", seconds / least, "onehot_us", onehot > 0 ? json_real(onehot * 1e6) : json_null(),
                                              "times_onehot", onehot > 0 ? json_real(onehot / seconds) : json_null()));
    }
    return bench_finish(c, ok, "gate's name, such as 'T=8192 E=32 k=2'",
                        json_pack("{s:s, s:I}", "cpu", m.name, "width", (json_int_t)width), rows);
}
