// `moec bench attention`: attention and its gradient alone.  Work counts the pairs of a query and a key that it sees.
#include <string.h>

#include "frontend/cmd_bench.h"
#include "frontend/cmd_bench_graph.h"
#include "frontend/cmd_bench_table.h"
#include "frontend/cmd_machine.h"
#include "ir/base/str.h"
#include "passes/pass.h"
#include "runtime/exec.h"

// S queries at the end of C keys, H heads of A on Hk heads of keys.
typedef struct { const char *name; long long B, S, C, H, Hk, A; bool grad; } Heads;

static const Heads heads[] = {
    {"16x256, 4 heads of 32", 16, 256, 256, 4, 2, 32, false},
    {"8x256, 6 heads of 64", 8, 256, 256, 6, 2, 64, false},
    {"1x2048, 8 heads of 64", 1, 2048, 2048, 8, 8, 64, false},
    {"prompt 512, 16 heads of 64", 1, 512, 512, 16, 4, 64, false},
    {"token behind 575, 16 heads of 64", 1, 1, 576, 16, 4, 64, false},
    {"gradient 16x256, 4 heads of 32", 16, 256, 256, 4, 2, 32, true},
    {"gradient 8x256, 6 heads of 64", 8, 256, 256, 6, 2, 64, true},
    {"gradient 1x2048, 8 heads of 64", 1, 2048, 2048, 8, 8, 64, true},
};

static const char *graph_text(Arena *a, const Heads *h, const char *dtype) {
    Str t = {.arena = a};
    const char *q = arena_printf(a, "%s[%lld,%lld,%lld,%lld]", dtype, h->B, h->S, h->H, h->A),
               *k = arena_printf(a, "%s[%lld,%lld,%lld,%lld]", dtype, h->B, h->C, h->Hk, h->A), *lse = arena_printf(a, "f32[%lld,%lld,%lld]", h->B, h->S, h->H);
    str_printf(&t, "graph @eval stage WHOLE {\n  %%q = input {name = \"q\"} : %s\n  %%k = input {name = \"k\"} : %s\n  %%v = input {name = \"v\"} : %s\n", q, k, k);
    if (h->grad)
        str_printf(&t, "  %%o = input {name = \"o\"} : %s\n  %%lse = input {name = \"lse\"} : %s\n  %%do = input {name = \"do\"} : %s\n"
                       "  %%dq, %%dk, %%dv = attention_grad %%q, %%k, %%v, %%o, %%lse, %%do {causal = 1, scale = 0.125} : %s, %s, %s\n"
                       "  return %%dq {name = \"dq\"}\n  return %%dk {name = \"dk\"}\n  return %%dv {name = \"dv\"}\n}\n",
                   q, lse, q, q, k, k);
    else
        str_printf(&t, "  %%o, %%lse = attention %%q, %%k, %%v {causal = 1, scale = 0.125} : %s, %s\n  return %%o {name = \"o\"}\n  return %%lse {name = \"lse\"}\n}\n",
                   q, lse);
    return t.text;
}

static bool bench_one(Cli *c, const Machine *known, const Machine *m, const Heads *h, const char *dtype, int threads, double budget, json_t *rows) {
    BenchGraph b;
    bool ok = bench_graph_open(&b, c, known, h->name, graph_text(c->arena, h, dtype), pipeline_forward, threads);
    if (ok) {
        bench_graph_fill(&b, 1);
        BenchSteps steps = bench_graph_steps(&b, bench_is_contraction);
        BenchRun run = bench_steps(&steps);
        bench_times(&run, 1, threads, budget);
        double pairs = (double)h->S * (double)(h->C - h->S) + (double)h->S * (double)(h->S + 1) / 2;
        double flops = 4.0 * (double)(h->B * h->H * h->A) * pairs * (h->grad ? 2.5 : 1);
        double bytes = rt_step_work(b.plan, &b.plan->step[steps.step[0]]).bytes, rate = flops / run.seconds;
        MachineRates r = machine_rates(m, threads);
        bool dots = !strcmp(dtype, "bf16") && r.bf16_dot > 0;
        RtLimits limits = machine_limits(m, threads);
        double least = rt_limit_seconds(&limits, strcmp(dtype, "bf16") ? RT_CONTRACTION : RT_CONTRACTION_BF16, (RtWork){flops, bytes, 0});
        json_array_append_new(rows, json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:o, s:f}", "attention", h->name, "dtype", dtype, "threads",
                                              threads, "time_us", run.seconds * 1e6, "gflop_s", rate / 1e9, "gb_s", bytes / run.seconds / 1e9,
                                              "share_of_fma", rate / r.fma, "share_of_bf16_dot",
                                              dots ? json_real(rate / r.bf16_dot) : json_null(), "share_of_limit", least / run.seconds));
    }
    bench_graph_close(&b);
    return ok;
}

int bench_attention(Cli *c) {
    static const char *const dtype[] = {"f32", "bf16"};
    enum { N = sizeof heads / sizeof *heads };
    bool ok = true;
    int given = (int)bench_number(c, "threads", 1, 0, &ok);
    double budget = (double)bench_number(c, "milliseconds", 1, 200, &ok) / 1e3;
    const char *only = cli_value(c, "only");
    Machine m;
    const Machine *known = ok ? machine_open(c, false) : NULL;
    if (!known || !machine_measure(&m, c->diag)) return cli_finish(c, EXIT_WRONG);
    json_t *rows = json_array();
    for (int pass = 0; ok && pass < (given || m.threads == 1 ? 1 : 2); pass++)
        for (int i = 0; ok && i < 2 * N; i++) {
            const Heads *h = &heads[i % N];
            if (only && !strstr(arena_printf(c->arena, "%s %s", dtype[i / N], h->name), only)) continue;
            ok = bench_one(c, known, &m, h, dtype[i / N], given ? given : pass ? m.threads : 1, budget, rows);
        }
    return bench_finish(c, ok, "attention's name, such as 'f32 8x256, 6 heads of 64'",
                        json_pack("{s:s, s:f}", "cpu", m.name, "fma_gflop_s", m.rates[0].fma / 1e9), rows);
}
