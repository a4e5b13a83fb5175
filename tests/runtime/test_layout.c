// Tensors in panels: every element has a place of its own, values and files are the same in all layouts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>
#include "runtime/checkpoint.h"
#include "runtime/convert.h"
#include "runtime/exec.h"
#include "runtime/files.h"
#include "runtime/layout.h"
#include "tests/runtime/fake_plan.h"

enum { E = 3 };

static RtPlan *make_plan(PlanBuilder *b, DType dtype, Layout layout, int64_t rows, int64_t cols) {
    *b = (PlanBuilder){0};
    RtTensor *t = pb_tensor(b, "layers.0.experts.w", RT_PARAM, dtype, E, rows, cols);
    t->layout = (uint8_t)layout;
    t->init = RT_INIT_NORMAL;
    t->init_a = 1;
    t->experts = 1;
    b->persistent -= (t->bytes + 63) / 64 * 64;
    t->bytes = E * layout_elements(layout, rows, cols) * dtype_bytes(dtype);
    b->persistent += (t->bytes + 63) / 64 * 64;
    pb_tensor(b, "behind", RT_PARAM, F32, 40, 0, 0);
    pb_begin(b, "pass");
    return pb_finish(b);
}

static RtPlanInstance *open_plan(const RtPlan *plan) {
    RtPlanInstance *p;
    RtError e;
    if (rt_plan_open(plan, NULL, 2, &p, &e) != RT_OK) fail_msg("%s", e.text);
    return p;
}

static const RtTensor *weight(const RtPlanInstance *p) { return rt_tensor(p, "layers.0.experts.w"); }

static void check_equal(const RtPlanInstance *rows, const RtPlanInstance *laid) {
    const RtTensor *t = weight(rows), *u = weight(laid);
    int64_t n = rt_tensor_elements(rows, t), places = u->bytes / dtype_bytes((DType)u->dtype);
    bool *taken = calloc((size_t)places, 1);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = rt_tensor_index(u, i);
        assert_true(at >= 0 && at < places && !taken[at]);
        taken[at] = true;
        uint16_t want = rt_f32_to_bf16((float)rt_load_number(rt_tensor_data(rows, t), (DType)t->dtype, i));
        double have = rt_load_number(rt_tensor_data(laid, u), (DType)u->dtype, at);
        double exact = u->dtype == BF16 ? (double)rt_bf16_to_f32(want)
                                        : rt_load_number(rt_tensor_data(rows, t), (DType)t->dtype, i);
        assert_true(have == exact);
    }
    for (int64_t i = 0; i < places; i++)
        if (!taken[i]) assert_true(rt_load_number(rt_tensor_data(laid, u), (DType)u->dtype, i) == 0);
    const float *behind = rt_tensor_data(laid, rt_tensor(laid, "behind"));
    for (int i = 0; i < 40; i++) assert_true(behind[i] == 0);
    free(taken);
}

// First values, and an expert at a time from rows of both types.
static void values_are_the_same(void **state) {
    static const int64_t size[][2] = {{32, 64}, {33, 65}, {1, 1}, {70, 7}, {5, 130}, {64, 1}};
    for (int i = 0; i < 6; i++)
        for (int l = LAYOUT_P32; l < LAYOUT_COUNT; l++) {
            PlanBuilder a, b;
            RtPlan *plan[] = {make_plan(&a, F32, LAYOUT_ROWS, size[i][0], size[i][1]),
                              make_plan(&b, layout_is_pairs((Layout)l) ? BF16 : F32, (Layout)l, size[i][0], size[i][1])};
            RtPlanInstance *p = open_plan(plan[0]), *q = open_plan(plan[1]), *r = open_plan(plan[1]);
            RtError e;
            assert_int_equal(rt_init(p, 5, &e), RT_OK);
            assert_int_equal(rt_init(q, 5, &e), RT_OK);
            check_equal(p, q);
            int64_t n = size[i][0] * size[i][1];
            const float *from = rt_tensor_data(p, weight(p));
            char *unaligned = malloc((size_t)n * 4 + 1);
            for (int64_t k = E; k-- > 0;) {
                memcpy(unaligned + 1, from + k * n, (size_t)n * 4);
                rt_tensor_put(r, weight(r), k * n, n, unaligned + 1, F32);
            }
            check_equal(p, r);
            free(unaligned);
            rt_plan_close(p), rt_plan_close(q), rt_plan_close(r);
            free(plan[0]), free(plan[1]);
        }
}

// Checkpoints hold rows: whoever has panels reads them as well, and saves none.
static void checkpoints_hold_rows(void **state) {
    char dir[] = "/tmp/moec-layout-XXXXXX";
    assert_non_null(mkdtemp(dir));
    PlanBuilder a, b;
    RtPlan *plan[] = {make_plan(&a, F32, LAYOUT_ROWS, 40, 70), make_plan(&b, BF16, LAYOUT_P32VT, 40, 70)};
    RtPlanInstance *p = open_plan(plan[0]), *q = open_plan(plan[1]);
    RtError e;
    RtCkptInfo info = {.step = 1};
    assert_int_equal(rt_init(p, 9, &e), RT_OK);
    if (rt_ckpt_save(dir, p, &info, 1, NULL, &e) != RT_OK) fail_msg("%s", e.text);
    if (rt_ckpt_load_weights(dir, q, &e) != RT_OK) fail_msg("%s", e.text);
    check_equal(p, q);
    assert_int_equal(rt_ckpt_save(dir, q, &info, 1, NULL, &e), RT_BAD_PLAN);
    char *found;
    assert_int_equal(rt_ckpt_find(dir, &found, NULL, &e), RT_OK);
    assert_int_equal(rt_ckpt_load(found, q, NULL, &e), RT_BAD_FILE);          // a run goes on with what it was
    char *file = rt_path("%s/weights-00001.safetensors", found);
    memset(rt_tensor_data(q, weight(q)), 0, (size_t)weight(q)->bytes);
    if (rt_ckpt_load_weights(file, q, &e) != RT_OK) fail_msg("%s", e.text);
    check_equal(p, q);
    rt_plan_close(p), rt_plan_close(q);
    free(plan[0]), free(plan[1]), free(found), free(file);
    rt_remove_tree(dir);
}

// A tensor that can't lie as it says.
static void damaged_plans_are_found(void **state) {
    for (int i = 0; i < 4; i++) {
        PlanBuilder b;
        RtPlan *plan = make_plan(&b, F32, LAYOUT_P32, 40, 70);
        RtTensor *t = (RtTensor *)RT_TABLE(plan, RtTensor, tensors);
        RtError e;
        assert_int_equal(rt_plan_check(plan, plan->bytes, &e), RT_OK);
        if (i == 0) t->layout = LAYOUT_COUNT;
        if (i == 1) t->layout = LAYOUT_P32V;
        if (i == 2) t->bytes -= 4;
        if (i == 3) t->ndim = 1;
        assert_int_equal(rt_plan_check(plan, plan->bytes, &e), RT_BAD_PLAN);
        free(plan);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(values_are_the_same), cmocka_unit_test(checkpoints_hold_rows),
                                       cmocka_unit_test(damaged_plans_are_found)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
