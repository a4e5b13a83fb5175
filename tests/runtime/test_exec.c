// A program gives the same bits on any number of threads, allocates nothing, and a damaged plan is refused by
// name.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>
#include "runtime/exec.h"
#include "runtime/trace.h"
#include "tests/runtime/fake_plan.h"

// ---- counting allocations: this program's malloc stands before the library's ----------------------------
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
extern void *__libc_malloc(size_t n);
static _Atomic long n_mallocs;
void *malloc(size_t n) {
    n_mallocs++;
    return __libc_malloc(n);
}
#endif

enum { N = 1000 };

// Phase 0: y[i] = x[i] * 1.1; phase 1: z[i] = y[i] + y[N - 1 - i], which needs all of phase 0.  A second round
// (phases 2 and 3) starts from z.
static void two_phases(const RtCall *c) {
    const float *x = c->arg[c->phase < 2 ? 0 : 2];
    float *y = c->arg[1], *z = c->arg[2];
    for (int i = c->task * 10; i < (c->task + 1) * 10; i++) {
        if (c->phase % 2 == 0) y[i] = x[i] * 1.1f;
        else z[i] = y[i] + y[N - 1 - i] * 0.3f;
    }
    ((char *)c->scratch)[RT_SCRATCH_BYTES - 1] = 1;
}

// offsets = {0, 3, 7}
static void define_rows(const RtCall *c) {
    int32_t *offsets = c->arg[0];
    offsets[0] = 0;
    offsets[1] = 3;
    offsets[2] = 7;
}

static void count_rows(const RtCall *c) {
    int32_t *seen = c->arg[0];
    seen[c->task] = (int32_t)c->sym[0] * 100 + c->n_tasks;
}

static RtPlan *make_plan(PlanBuilder *b) {
    *b = (PlanBuilder){0};
    int rows = pb_sym(b, "R", 16, -1);
    RtTensor *x = pb_tensor(b, "x", RT_INPUT, F32, N, 0, 0), *y = pb_tensor(b, "y", RT_OUTPUT, F32, N, 0, 0);
    RtTensor *z = pb_tensor(b, "z", RT_OUTPUT, F32, N, 0, 0),
             *offsets = pb_tensor(b, "offsets", RT_OUTPUT, I32, 3, 0, 0);
    RtTensor *seen = pb_tensor(b, "seen", RT_OUTPUT, I32, 16, 0, 0),
             *ragged = pb_tensor(b, "ragged", RT_OUTPUT, F32, 32, 5, 0);
    ragged->dim_sym[0] = rows;                           // 2 R rows
    b->sym[rows].from_arena = RT_PERSISTENT;
    b->sym[rows].from_offset = offsets->offset;
    b->sym[rows].from_index = 2;
    int k0 = pb_kernel(b, "two_phases", two_phases, 2), k1 = pb_kernel(b, "define_rows", define_rows, 1);
    int k2 = pb_kernel(b, "count_rows", count_rows, 1);
    b->kernel[k0].n_rounds = 2;
    pb_begin(b, "pass");
    pb_step(b, k0, N / 10);
    pb_arg(b, x), pb_arg(b, y), pb_arg(b, z);
    pb_step(b, k1, 1)->defines_sym = rows;
    pb_arg(b, offsets);
    RtStep *s = pb_step(b, k2, 0);
    s->tasks[0] = (RtTasks){.n = 2, .grain = 4, .times = 1, .sym = rows};      // ceil(2 * 7 / 4) = 4
    pb_arg(b, seen);
    return pb_finish(b);
}

static RtPlanInstance *open_plan(PlanBuilder *b, const RtPlan *plan, int threads) {
    RtPlanInstance *p;
    RtError e;
    if (rt_plan_open(plan, b->fn, threads, &p, &e) != RT_OK) fail_msg("%s", e.text);
    float *x = rt_tensor_data(p, rt_tensor(p, "x"));
    for (int i = 0; i < N; i++) x[i] = (float)i * 0.37f - 5;
    return p;
}

static void same_bits_on_any_number_of_threads(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    float expected[N];
    for (int threads = 1; threads <= 7; threads++) {
        RtPlanInstance *p = open_plan(&b, plan, threads);
        for (int repeat = 0; repeat < 50; repeat++) rt_run(p, rt_program(p, "pass"));
        const float *z = rt_tensor_data(p, rt_tensor(p, "z"));
        if (threads == 1) memcpy(expected, z, sizeof expected);
        assert_memory_equal(z, expected, sizeof expected);
        rt_plan_close(p);
    }
    free(plan);
}

static void runs_all_phases_in_each_round(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = open_plan(&b, plan, 2);
    float y[N], z[N];
    memcpy(z, rt_tensor_data(p, rt_tensor(p, "x")), sizeof z);
    rt_run(p, 0);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) y[i] = z[i] * 1.1f;
        for (int i = 0; i < N; i++) z[i] = y[i] + y[N - 1 - i] * 0.3f;
    }
    const float *got = rt_tensor_data(p, rt_tensor(p, "z"));
    for (int i = 0; i < N; i++) assert_float_equal(got[i], z[i], 1e-3);
    rt_plan_close(p);
    free(plan);
}

static void reads_row_symbols_after_the_step_that_defines_them(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = open_plan(&b, plan, 3);
    rt_run(p, 0);
    assert_int_equal(p->sym[rt_sym(p, "R")], 7);
    const int32_t *seen = rt_tensor_data(p, rt_tensor(p, "seen"));
    for (int i = 0; i < 16; i++) assert_int_equal(seen[i], i < 4 ? 704 : 0);
    Tensor ragged = rt_tensor_view(p, rt_tensor(p, "ragged"));
    assert_int_equal(ragged.dim[0], 14);
    assert_int_equal(ragged.dim[1], 5);
    rt_plan_close(p);
    free(plan);
}

static void allocates_nothing_while_running(void **state) {
#ifndef COUNTS_ALLOCATIONS
    skip();
#else
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = open_plan(&b, plan, 2);
    rt_run(p, 0);                                        // starts the threads
    long before = n_mallocs;
    for (int i = 0; i < 100; i++) rt_run(p, 0);
    assert_int_equal(n_mallocs, before);
    rt_plan_close(p);
    free(plan);
#endif
}

static void finds_names(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = open_plan(&b, plan, 1);
    for (int i = 0; i < p->n_tensors; i++)
        assert_ptr_equal(rt_tensor(p, rt_tensor_name(p, &p->tensor[i])), &p->tensor[i]);
    assert_null(rt_tensor(p, "zz"));
    assert_string_equal(rt_tensor_nearest(p, "ofsets"), "offsets");
    assert_int_equal(rt_program(p, "pass"), 0);
    assert_int_equal(rt_program(p, "update"), -1);
    assert_true(rt_is_output_of(p, 0, rt_tensor(p, "z")));
    assert_false(rt_is_output_of(p, 0, rt_tensor(p, "ragged")));
    rt_plan_close(p);
    free(plan);
}

static void writes_a_trace(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = open_plan(&b, plan, 2);
    RtError e;
    assert_int_equal(rt_trace_begin(p, 1, &e), RT_OK);
    rt_run(p, 0);
    RtLimits limits = {.fma = 1e9, .n_levels = 1, .level = {{0, 1e9}}};
    char path[] = "/tmp/moec-trace-XXXXXX";
    close(mkstemp(path));
    assert_int_equal(rt_trace_write(p, &limits, path, &e), RT_OK);
    FILE *f = fopen(path, "r");
    char text[65536];
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    unlink(path);
    assert_non_null(strstr(text, "\"two_phases\""));
    assert_non_null(strstr(text, "\"layers.0\""));
    json_t *json = json_loads(text, 0, NULL), *event;
    assert_non_null(json);
    size_t i;
    json_array_foreach(json_object_get(json, "traceEvents"), i, event) {
        if (strcmp(json_string_value(json_object_get(event, "ph")), "X") != 0) continue;
        static const char *const told[] = {"path", "kernel", "gflop", "megabytes", "gflop_s", "gb_s", "share_of_limit"};
        for (size_t k = 0; k < sizeof told / sizeof *told; k++)
            assert_non_null(json_object_get(json_object_get(event, "args"), told[k]));
    }
    json_decref(json);

    // what kernels took and what threads waited is all the time there was
    RtProfile r;
    assert_int_equal(rt_profile_open(p, &limits, &r, &e), RT_OK);
    assert_true(r.n > 0);
    double sum = r.idle_seconds;
    for (int k = 0; k < r.n; k++) {
        sum += r.line[k].seconds;
        assert_string_equal(r.line[k].path, "layers.*");
        assert_true(k == 0 || r.line[k].seconds <= r.line[k - 1].seconds);
    }
    assert_true(r.wall_seconds > 0 && fabs(sum - r.wall_seconds) < 1e-9);
    rt_profile_close(&r);
    rt_plan_close(p);
    free(plan);
}

// The work of a step at the sizes of this call: rows of one symbol, and the matrices of the experts they meet.
static void work_follows_symbols(void **state) {
    RtSym sym[] = {{.bound = 8, .fixed = -1, .from_arena = -1}, {.bound = 16, .fixed = -1, .from_arena = 0}};
    struct { RtPlan plan; RtSym sym[2]; } block = {.plan.syms = {offsetof(__typeof__(block), sym), 2}, .sym = {sym[0], sym[1]}};
    int64_t value[2] = {2, 3};
    RtPlanInstance p = {.plan = &block.plan, .sym = value, .n_syms = 2};
    RtStep plain = {.flops = 800, .bytes = 100, .part = {{80, 0, 0}}, .n_parts = 1};
    RtWork w = rt_step_work(&p, &plain);
    assert_float_equal(w.flops, 200, 1e-9);
    assert_float_equal(w.bytes, 20 + 20, 1e-9);
    RtStep grouped = {.flops = 160, .bytes = 1000 + 32, .part = {{32, 1, 0}}, .n_parts = 1, .experts = 10};
    w = rt_step_work(&p, &grouped);
    assert_float_equal(w.flops, 30, 1e-9);
    assert_float_equal(w.bytes, 300 + 6, 1e-9);
    assert_float_equal(w.fixed_bytes, 300, 1e-9);
    RtLimits limits = {.fma = 100, .bf16_dot = 200, .n_levels = 2, .level = {{50, 1000}, {0, 10}}};
    assert_float_equal(rt_limit_seconds(&limits, RT_CONTRACTION, (RtWork){1000, 20, 0}), 10, 1e-9);
    assert_float_equal(rt_limit_seconds(&limits, RT_CONTRACTION_BF16, (RtWork){1000, 20, 0}), 5, 1e-9);
    assert_float_equal(rt_limit_seconds(&limits, RT_ELEMENTWISE, (RtWork){10, 50, 0}), 0.1, 1e-9);
    assert_float_equal(rt_limit_seconds(&limits, RT_ELEMENTWISE, (RtWork){10, 60, 0}), 6, 1e-9);
}

// Each change of one number must be found: nothing of a damaged plan is used.
static void refuses_damaged_plans(void **state) {
    PlanBuilder b;
    RtError e;
    struct { const char *what; size_t at; int32_t value; } damage[64];
    int n = 0;
    RtPlan *good = make_plan(&b);
    assert_int_equal(rt_plan_check(good, good->bytes, &e), RT_OK);
    assert_int_equal(rt_plan_check(good, good->bytes - 1, &e), RT_BAD_PLAN);
    assert_int_equal(rt_plan_check(good, 10, &e), RT_BAD_PLAN);
#define DAMAGE(what, field, value)                                                                           \
    damage[n++] = (typeof(*damage)) { what, (size_t)((const char *)&(field) - (const char *)good), value }
    RtTensor *tensor = (RtTensor *)RT_TABLE(good, RtTensor, tensors);
    RtStep *step = (RtStep *)RT_TABLE(good, RtStep, steps);
    RtArg *arg = (RtArg *)RT_TABLE(good, RtArg, args);
    RtSym *sym = (RtSym *)RT_TABLE(good, RtSym, syms);
    RtKernel *kernel = (RtKernel *)RT_TABLE(good, RtKernel, kernels);
    RtProgram *program = (RtProgram *)RT_TABLE(good, RtProgram, programs);
    DAMAGE("magic", good->magic, 1);
    DAMAGE("version", good->version, 99);
    DAMAGE("tensors span", good->tensors.n, 1 << 28);
    DAMAGE("steps offset", good->steps.offset, 0x7ffffff0);
    DAMAGE("text", good->text.n, 5);
    DAMAGE("tensor name", tensor[1].name, 1 << 20);
    DAMAGE("tensor offset", tensor[1].offset, 1 << 30);
    DAMAGE("tensor size", tensor[1].bytes, 8);
    DAMAGE("tensor symbol", tensor[1].dim_sym[0], 9);
    DAMAGE("step kernel", step[0].kernel, 77);
    DAMAGE("step args", step[0].n_args, 1000);
    DAMAGE("step grain", step[0].tasks[0].grain, 0);
    DAMAGE("step symbol", step[1].defines_sym, 5);
    DAMAGE("step work", step[0].work, RT_WORK_KINDS);
    DAMAGE("step parts", step[0].n_parts, RT_MAX_PARTS + 1);
    DAMAGE("arg arena", arg[0].arena, 4);
    DAMAGE("arg offset", arg[0].offset, 1 << 30);
    DAMAGE("symbol source", sym[0].from_index, 1 << 28);
    DAMAGE("kernel phases", kernel[0].n_phases, 5);
    DAMAGE("kernel rounds", kernel[0].n_rounds, 0);
    DAMAGE("program steps", program[0].n_steps, 50);
    for (int i = 0; i < n; i++) {
        char *bad = aligned_alloc(64, good->bytes);
        memcpy(bad, good, good->bytes);
        memcpy(bad + damage[i].at, &damage[i].value, 4);
        e.text[0] = 0;
        if (rt_plan_check((RtPlan *)bad, good->bytes, &e) != RT_BAD_PLAN)
            fail_msg("not found: %s", damage[i].what);
        assert_true(strlen(e.text) > 10);
        free(bad);
    }
    free(good);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_on_any_number_of_threads),
        cmocka_unit_test(runs_all_phases_in_each_round),
        cmocka_unit_test(reads_row_symbols_after_the_step_that_defines_them),
        cmocka_unit_test(allocates_nothing_while_running),
        cmocka_unit_test(finds_names),
        cmocka_unit_test(writes_a_trace),
        cmocka_unit_test(work_follows_symbols),
        cmocka_unit_test(refuses_damaged_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
