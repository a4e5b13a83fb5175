// An exact sum doesn't know the order of its addends, nor who added which, and is rounded once.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include "runtime/exact.h"

static uint64_t next(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 11;
}

static double any(uint64_t *state) {                     // magnitudes of losses and of squares of anything in f32
    double x = ldexp((double)next(state), (int)(next(state) % 500) - 300);
    return next(state) & 1 ? x : -x;
}

static double sum_of(const double *x, int n) {
    RtExact a = {0};
    for (int i = 0; i < n; i++) rt_exact_add(&a, x[i]);
    return rt_exact_value(&a);
}

static void equal_bits(double a, double b) { assert_memory_equal(&a, &b, sizeof a); }

static void one_number_is_itself(void **state) {
    uint64_t seed = 1;
    for (int i = 0; i < 100000; i++) {
        double x = any(&seed);
        if (fabs(x) < 0x1p-260) continue;                // lower bits would be cut
        equal_bits(sum_of(&x, 1), x);
    }
    equal_bits(sum_of((double[]){-0.0}, 1), 0.0);
    equal_bits(sum_of((double[]){0x1p-319 + 0x1p-321}, 1), 0x1p-319);
    equal_bits(sum_of((double[]){0x1p-400}, 1), 0.0);
    equal_bits(sum_of((double[]){DBL_MIN, -0x1p-1074}, 2), 0.0);
    equal_bits(sum_of((double[]){0x1.fffffffffffffp318}, 1), 0x1.fffffffffffffp318);
}

static void is_rounded_once_to_even(void **state) {
    equal_bits(sum_of((double[]){1, 0x1p-53}, 2), 1);
    equal_bits(sum_of((double[]){1, 0x1p-53, 0x1p-300}, 3), 1 + 0x1p-52);
    equal_bits(sum_of((double[]){1 + 0x1p-52, 0x1p-53}, 2), 1 + 0x1p-51);
    equal_bits(sum_of((double[]){-1, -0x1p-53, -0x1p-300}, 3), -1 - 0x1p-52);
    equal_bits(sum_of((double[]){0x1p53, 1, 0x1p-200}, 3), 0x1p53 + 2);
    equal_bits(sum_of((double[]){0x1.fffffffffffffp100, 0x1p47}, 2), 0x1p101);        // carries into the next power
    equal_bits(sum_of((double[]){1e30, 3, -1e30}, 3), 3);
    equal_bits(sum_of((double[]){1e30, -1e-30, -1e30}, 3), -1e-30);
    equal_bits(sum_of((double[]){0x1p64, -1, -0x1p64}, 3), -1);
}

static void is_rounded_like_integers(void **state) {
    uint64_t seed = 3;
    for (int i = 0; i < 20000; i++) {
        double x[40];
        __int128 sum = 0;
        for (int j = 0; j < 40; j++) {
            int64_t v = (int64_t)(next(&seed) << (next(&seed) % 10));
            if (next(&seed) & 1) v = -v;
            x[j] = (double)v;                            // at most 53 bits: exact
            sum += (__int128)x[j];
        }
        equal_bits(sum_of(x, 40), (double)sum);
    }
}

static void knows_no_order(void **state) {
    enum { N = 500 };
    double x[N];
    uint64_t seed = 7;
    for (int i = 0; i < N; i++) x[i] = any(&seed) * 0x1p-200;
    for (int i = 0; i < N; i += 2) x[i] = ldexp((double)next(&seed), (int)(next(&seed) % 40)) * (i % 4 ? 1 : -1);
    double whole = sum_of(x, N);
    for (int round = 0; round < 50; round++) {
        for (int i = N - 1; i > 0; i--) {
            int j = (int)(next(&seed) % (uint64_t)(i + 1));
            double t = x[i];
            x[i] = x[j];
            x[j] = t;
        }
        RtExact part[8] = {{{0}}};
        for (int i = 0; i < N; i++) rt_exact_add(&part[next(&seed) % 8], x[i]);
        for (int i = 1; i < 8; i++) rt_exact_merge(&part[0], &part[i]);
        equal_bits(rt_exact_value(&part[0]), whole);
    }
    double chain = 0;
    for (int i = 0; i < N; i++) chain += x[i];
    assert_true(chain != whole);                         // the addends are such that order matters
}

static void not_finite(void **state) {
    assert_true(isnan(sum_of((double[]){1, NAN, 2}, 3)));
    assert_true(isnan(sum_of((double[]){INFINITY, -INFINITY}, 2)));
    equal_bits(sum_of((double[]){INFINITY, 1}, 2), INFINITY);
    equal_bits(sum_of((double[]){-INFINITY, 1}, 2), -INFINITY);
    equal_bits(sum_of((double[]){0x1p319, 1}, 2), INFINITY);
    assert_int_equal(RT_EXACT_WORDS, 23);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_number_is_itself),     cmocka_unit_test(is_rounded_once_to_even),
        cmocka_unit_test(is_rounded_like_integers), cmocka_unit_test(knows_no_order),
        cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
