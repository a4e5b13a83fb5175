// First values depend on seed, name and element number only: not on threads, not on the order of tensors.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "runtime/convert.h"
#include "runtime/exec.h"
#include "tests/runtime/fake_plan.h"

enum { N = 20000 };

static RtTensor *with_init(RtTensor *t, RtInitKind kind, double a, double c) {
    t->init = (uint8_t)kind;
    t->init_a = a;
    t->init_b = c;
    return t;
}

static RtPlan *make_plan(PlanBuilder *b, bool reversed) {
    *b = (PlanBuilder){0};
    if (reversed) pb_tensor(b, "first", RT_STATE, F32, 77, 0, 0);      // moves everything
    with_init(pb_tensor(b, "normal", RT_PARAM, F32, N, 0, 0), RT_INIT_NORMAL, 0.02, 0);
    with_init(pb_tensor(b, "other", RT_PARAM, F32, N, 0, 0), RT_INIT_NORMAL, 0.02, 0);
    with_init(pb_tensor(b, "half", RT_PARAM, BF16, N, 0, 0), RT_INIT_NORMAL, 0.02, 0)->init_name =
        b->tensor[reversed].init_name;
    with_init(pb_tensor(b, "cut", RT_PARAM, F32, N, 0, 0), RT_INIT_TRUNC_NORMAL, 0.5, 2);
    with_init(pb_tensor(b, "uniform", RT_PARAM, F32, N, 0, 0), RT_INIT_UNIFORM, 3, 0);
    with_init(pb_tensor(b, "ints", RT_STATE, I32, N, 0, 0), RT_INIT_RANDOM_INT, 7, 0);
    with_init(pb_tensor(b, "ones", RT_PARAM, F32, 5, 0, 0), RT_INIT_CONST, 1, 0);
    RtTensor *copy = with_init(pb_tensor(b, "copy", RT_PARAM, F32, 3, N, 0), RT_INIT_COPY, 0, 0);
    copy->init_from = pb_text(b, "again");
    RtTensor *again = with_init(pb_tensor(b, "again", RT_PARAM, F32, N, 0, 0), RT_INIT_COPY, 0, 0);
    again->init_from = pb_text(b, "normal");
    pb_begin(b, "pass");
    return pb_finish(b);
}

static RtPlanInstance *open_plan(const RtPlan *plan, int threads, uint64_t seed) {
    RtPlanInstance *p;
    RtError e;
    if (rt_plan_open(plan, NULL, threads, &p, &e) != RT_OK) fail_msg("%s", e.text);
    if (rt_init(p, seed, &e) != RT_OK) fail_msg("%s", e.text);
    return p;
}

static const float *data(RtPlanInstance *p, const char *name) {
    return rt_tensor_data(p, rt_tensor(p, name));
}

static void same_values_on_any_threads_and_in_any_place(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b, false), *moved = make_plan(&b, true);
    RtPlanInstance *p = open_plan(plan, 1, 11), *q = open_plan(moved, 5, 11), *r = open_plan(plan, 2, 12);
    static const char *const names[] = {"normal", "other", "cut", "uniform", "ints", "copy"};
    for (int i = 0; i < 6; i++) assert_memory_equal(data(p, names[i]), data(q, names[i]), N * 4);
    assert_memory_not_equal(data(p, "normal"), data(p, "other"), N * 4);
    assert_memory_not_equal(data(p, "normal"), data(r, "normal"), N * 4);
    rt_plan_close(p), rt_plan_close(q), rt_plan_close(r);
    free(plan), free(moved);
}

static void distributions_are_right(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b, false);
    RtPlanInstance *p = open_plan(plan, 2, 3);
    double sum = 0, squares = 0, fourth = 0, cut_most = 0, uniform_most = 0, uniform_sum = 0;
    int seen[7] = {0};
    for (int i = 0; i < N; i++) {
        double x = data(p, "normal")[i] / 0.02;
        sum += x, squares += x * x, fourth += x * x * x * x;
        cut_most = fmax(cut_most, fabs(data(p, "cut")[i]));
        uniform_most = fmax(uniform_most, fabs(data(p, "uniform")[i]));
        uniform_sum += data(p, "uniform")[i];
        int32_t k = ((const int32_t *)(const void *)data(p, "ints"))[i];
        assert_in_range(k, 0, 6);
        seen[k]++;
    }
    assert_true(fabs(sum / N) < 0.03 && fabs(squares / N - 1) < 0.03 && fabs(fourth / N - 3) < 0.2);
    assert_true(cut_most <= 1 && cut_most > 0.99);
    assert_true(uniform_most <= 3 && uniform_most > 2.99 && fabs(uniform_sum / N) < 0.05);
    for (int k = 0; k < 7; k++) assert_in_range(seen[k], N / 7 - 300, N / 7 + 300);
    for (int i = 0; i < 5; i++) assert_true(data(p, "ones")[i] == 1);
    rt_plan_close(p);
    free(plan);
}

static void copies_repeat_and_types_round(void **state) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b, false);
    RtPlanInstance *p = open_plan(plan, 2, 3);
    for (int i = 0; i < 3; i++) assert_memory_equal(data(p, "copy") + i * N, data(p, "normal"), N * 4);
    const uint16_t *half = (const uint16_t *)(const void *)data(p, "half");
    for (int i = 0; i < N; i++) assert_int_equal(half[i], rt_f32_to_bf16(data(p, "normal")[i]));
    rt_plan_close(p);
    free(plan);
}

static void refuses_copies_of_nothing_and_of_themselves(void **state) {
    PlanBuilder b = {0};
    with_init(pb_tensor(&b, "a", RT_PARAM, F32, 4, 0, 0), RT_INIT_COPY, 0, 0)->init_from = pb_text(&b, "b");
    with_init(pb_tensor(&b, "b", RT_PARAM, F32, 4, 0, 0), RT_INIT_COPY, 0, 0)->init_from = pb_text(&b, "a");
    pb_begin(&b, "pass");
    RtPlan *plan = pb_finish(&b);
    RtPlanInstance *p;
    RtError e;
    assert_int_equal(rt_plan_open(plan, NULL, 1, &p, &e), RT_OK);
    assert_int_equal(rt_init(p, 0, &e), RT_BAD_PLAN);
    assert_non_null(strstr(e.text, "copy of itself"));
    rt_plan_close(p);
    free(plan);
}

// All 65536 half-precision numbers survive the way to f32 and back; f32 rounds to the nearest of them.
static void sixteen_bit_floats(void **state) {
    for (uint32_t h = 0; h < 65536; h++) {
        float x = rt_f16_to_f32((uint16_t)h);
        if (!isnan(x)) assert_int_equal(rt_f32_to_f16(x), h);
        else assert_true(isnan(rt_f16_to_f32(rt_f32_to_f16(x))));
        float y = rt_bf16_to_f32((uint16_t)h);
        if (!isnan(y)) assert_int_equal(rt_f32_to_bf16(y), h);
    }
    assert_int_equal(rt_f32_to_f16(1 + 0x1p-11f), 0x3c00);             // half way: to even
    assert_int_equal(rt_f32_to_f16(1 + 3 * 0x1p-11f), 0x3c02);
    assert_int_equal(rt_f32_to_f16(65519.99f), 0x7bff);
    assert_int_equal(rt_f32_to_f16(65520), 0x7c00);
    assert_int_equal(rt_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(rt_f32_to_f16(0x1.8p-25f), 1);
    assert_int_equal(rt_f32_to_bf16(1 + 0x1p-8f), 0x3f80);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_values_on_any_threads_and_in_any_place),
        cmocka_unit_test(distributions_are_right),
        cmocka_unit_test(copies_repeat_and_types_round),
        cmocka_unit_test(refuses_copies_of_nothing_and_of_themselves),
        cmocka_unit_test(sixteen_bit_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
