// Compiled elementwise work and row reductions must give the evaluator's bits, whatever the vector width.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "codegen/cpu/cg.h"
#include "ir/vmath.h"
#include "tests/codegen/run_graph.h"

static const double loose = 2e-5;            // where fma is a product and a sum

// ---- single ops ----------------------------------------------------------------------------------------

static void unary_ops_give_the_evaluators_bits(void **state) {
    static const Op ops[] = {OP_NEG,  OP_ABS,     OP_SIGN, OP_EXP, OP_LOG, OP_LOG1P, OP_SQRT, OP_RSQRT,
                             OP_TANH, OP_SIGMOID, OP_ERF,  OP_SIN, OP_COS, OP_FLOOR, OP_ROUND};
    Case c = case_new();
    Value *x = case_input(&c, "x", F32, DIMS(dim_n(7), dim_n(37))),
          *p = case_input(&c, "p", F32, DIMS(dim_n(5), dim_n(64)));
    for (int i = 0; i < (int)(sizeof ops / sizeof *ops); i++) {
        case_return(&c, build_unary(&c.b, ops[i], x), arena_printf(c.arena, "x.%s", op_info[ops[i]].name));
        case_return(&c, build_unary(&c.b, ops[i], p), arena_printf(c.arena, "p.%s", op_info[ops[i]].name));
    }
    assert_int_equal(case_compare_all(&c, 0, 1e-6), 0);
    case_free(&c);
}

static void binary_ops_broadcast(void **state) {
    static const Op ops[] = {OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MOD, OP_MAX, OP_MIN, OP_EQ, OP_LT, OP_LE};
    static const Dims right[] = {{3, {{2}, {3}, {37}}}, {1, {{37}}},          {3, {{2}, {3}, {1}}},
                                 {3, {{2}, {1}, {37}}}, {3, {{1}, {3}, {1}}}, {0}};
    for (int k = 0; k < (int)(sizeof right / sizeof *right); k++) {
        Case c = case_new();
        Value *a = case_input(&c, "a", F32, DIMS(dim_n(2), dim_n(3), dim_n(37))),
              *b = case_input(&c, "b", F32, right[k]);
        Value *i = case_input(&c, "i", I32, DIMS(dim_n(2), dim_n(3), dim_n(37))),
              *e = case_input(&c, "e", I32, right[k]);
        for (int j = 0; j < (int)(sizeof ops / sizeof *ops); j++) {
            case_return(&c, build_binary(&c.b, ops[j], a, b),
                        arena_printf(c.arena, "f.%s", op_info[ops[j]].name));
            case_return(&c, build_binary(&c.b, ops[j], i, e),
                        arena_printf(c.arena, "i.%s", op_info[ops[j]].name));
        }
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void casts_round_and_truncate(void **state) {
    static const DType types[] = {F32, BF16, F16, I32, BOOL};
    Case c = case_new();
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            Value *x = case_input(&c, arena_printf(c.arena, "x%d", i), types[i], DIMS(dim_n(3), dim_n(50)));
            case_return(&c, make(&c.b, OP_CAST, INS(x), .dtype = types[j]),
                        arena_printf(c.arena, "y.%d.%d", i, j));
        }
    assert_int_equal(case_compare_all(&c, 0, 0), 0);
    case_free(&c);
}

static void bf16_arithmetic_rounds_after_every_op(void **state) {
    Case c = case_new();
    Value *x = case_input(&c, "x", BF16, DIMS(dim_n(6), dim_n(33))),
          *y = case_input(&c, "y", BF16, DIMS(dim_n(33)));
    Value *z = make(&c.b, OP_MUL, INS(make(&c.b, OP_ADD, INS(x, y)), y));
    case_return(&c, z, "z");
    case_return(&c, make(&c.b, OP_SOFTMAX, INS(x)), "softmax");
    case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {1}}), "sum");
    assert_int_equal(case_compare_all(&c, 0, 1e-2), 0);
    case_free(&c);
}

static void row_reductions_add_in_lane_order(void **state) {
    static const int64_t widths[] = {1, 2, 8, 15, 16, 17, 48, 64, 65, 128, 200, 1000};
    for (int i = 0; i < (int)(sizeof widths / sizeof *widths); i++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(2), dim_n(5), dim_n(widths[i])));
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {2}}), "sum");
        case_return(&c, make(&c.b, OP_SOFTMAX, INS(x)), "softmax");
        case_return(&c, make(&c.b, OP_LOGSUMEXP, INS(x)), "logsumexp");
        Value *k = case_input(&c, "i", I32, DIMS(dim_n(2), dim_n(5), dim_n(widths[i])));
        case_return(&c, make(&c.b, OP_SUM, INS(k), .axes = {1, {2}}), "isum");
        Value *near = make(&c.b, OP_LT, INS(x, build_const(&c.b, -3.9, F32)));
        for (int axis = 0; axis < 3; axis++) {
            case_return(&c, make(&c.b, OP_REDUCE_MAX, INS(near), .axis = axis), arena_printf(c.arena, "any%d", axis));
            case_return(&c, make(&c.b, OP_REDUCE_MAX, INS(k), .axis = axis), arena_printf(c.arena, "imax%d", axis));
            case_return(&c, make(&c.b, OP_REDUCE_MAX, INS(x), .axis = axis), arena_printf(c.arena, "max%d", axis));
        }
        assert_int_equal(case_compare_all(&c, 0, 1e-6), 0);
        case_free(&c);
    }
}

// ---- bodies --------------------------------------------------------------------------------------------

// x / sqrt(mean(x^2) + eps) * g, for register-sized and wide rows.
static void rms_norm_is_one_kernel(void **state) {
    static const int64_t widths[] = {24, 64, 128, 300};
    for (int i = 0; i < 4; i++) {
        Case c = case_new();
        Dim D = dim_n(widths[i]);
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(3), dim_n(7), D)),
              *g = case_input(&c, "g", F32, DIMS(D));
        BodyCase k = body_new(&c);
        Value *bx = body_arg(&k, x), *bg = body_arg(&k, g);
        Value *ss = make(&k.b, OP_SUM, INS(make(&k.b, OP_MUL, INS(bx, bx))), .axes = {1, {2}});
        Value *mean = build_scale(&k.b, ss, 1.0 / (double)widths[i]);
        Value *r = build_unary(&k.b, OP_RSQRT, make(&k.b, OP_ADD, INS(mean, build_const(&k.b, 1e-6, F32))));
        Value *y = make(&k.b, OP_MUL, INS(make(&k.b, OP_MUL, INS(bx, r)), bg));
        Node *f = body_end(&c, &k, (Value *[]){y, r, NULL});
        case_return(&c, &f->out[0], "y");
        case_return(&c, &f->out[1], "r");
        assert_int_equal(case_compare_all(&c, 0, loose), 0);
        case_free(&c);
    }
}

// Halves rotated by tables that all batches and heads share.
static void rope_slices_and_joins_columns(void **state) {
    static const int64_t heads[] = {16, 32, 64, 160};
    for (int i = 0; i < 4; i++) {
        Case c = case_new();
        int64_t A = heads[i];
        Value *q = case_input(&c, "q", F32, DIMS(dim_n(2), dim_n(5), dim_n(3), dim_n(A)));
        Value *cs = case_input(&c, "cos", F32, DIMS(dim_n(5), dim_n(1), dim_n(A / 2)));
        Value *sn = case_input(&c, "sin", F32, DIMS(dim_n(5), dim_n(1), dim_n(A / 2)));
        BodyCase k = body_new(&c);
        Value *bq = body_arg(&k, q), *bc = body_arg(&k, cs), *bs = body_arg(&k, sn);
        Value *lo = make(&k.b, OP_SLICE, INS(bq), .axis = 3, .begin = 0, .end = A / 2);
        Value *hi = make(&k.b, OP_SLICE, INS(bq), .axis = 3, .begin = A / 2, .end = A);
        Value *a = make(&k.b, OP_SUB, INS(make(&k.b, OP_MUL, INS(lo, bc)), make(&k.b, OP_MUL, INS(hi, bs))));
        Value *b = make(&k.b, OP_FMA, INS(hi, bc, make(&k.b, OP_MUL, INS(lo, bs))));
        Value *joined = make(&k.b, OP_CONCAT, INS(a, b), .axis = 3);
        Value *twice = make(&k.b, OP_ADD, INS(joined, bq));                  // the join is read again
        Value *part = make(&k.b, OP_SLICE, INS(twice), .axis = 3, .begin = 3, .end = A / 2 + 1);
        Node *f = body_end(&c, &k, (Value *[]){joined, twice, part, NULL});
        case_return(&c, &f->out[0], "joined");
        case_return(&c, &f->out[1], "twice");
        case_return(&c, &f->out[2], "part");
        assert_int_equal(case_compare_all(&c, 0, loose), 0);
        case_free(&c);
    }
}

static void softmax_and_its_gradient_share_a_body(void **state) {
    static const int64_t widths[] = {8, 64, 70, 513};
    for (int i = 0; i < 4; i++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(11), dim_n(widths[i])));
        Value *d = case_input(&c, "d", F32, DIMS(dim_n(11), dim_n(widths[i])));
        BodyCase k = body_new(&c);
        Value *bx = body_arg(&k, x), *bd = body_arg(&k, d);
        Value *p = make(&k.b, OP_SOFTMAX, INS(bx));
        Value *pd = make(&k.b, OP_MUL, INS(p, bd));
        Value *s = make(&k.b, OP_SUM, INS(pd), .axes = {1, {1}});
        Value *dx = make(&k.b, OP_MUL, INS(p, make(&k.b, OP_SUB, INS(bd, s))));
        Value *z = make(&k.b, OP_LOGSUMEXP, INS(bx));
        Value *sel = make(&k.b, OP_SELECT, INS(make(&k.b, OP_LT, INS(s, p)), dx, z));
        Node *f = body_end(&c, &k, (Value *[]){dx, p, s, z, sel, NULL});
        for (int j = 0; j < 5; j++) case_return(&c, &f->out[j], arena_printf(c.arena, "r%d", j));
        assert_int_equal(case_compare_all(&c, 0, 1e-4), 0);
        case_free(&c);
    }
}

// Scores with many ties: choose, read the chosen, put weights back; more rows than one task has.
static void topk_take_and_put_choose_in_order(void **state) {
    static const struct {
        int64_t n, k;
    } sizes[] = {{1, 1}, {8, 2}, {8, 1}, {16, 16}, {17, 3}, {60, 6}, {128, 8}, {130, 8}, {256, 16}, {300, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(9), dim_n(101), dim_n(sizes[i].n)));
        Value *tied = build_unary(&c.b, OP_FLOOR, x);
        Node *top = build(&c.b, OP_TOPK, INS(tied), .k = sizes[i].k);
        case_return(&c, &top->out[0], "values");
        case_return(&c, &top->out[1], "index");
        Node *nan = build(&c.b, OP_TOPK, INS(build_unary(&c.b, OP_LOG, tied)), .k = sizes[i].k);      // of half of them
        case_return(&c, &nan->out[0], "numbers before NaN");
        case_return(&c, &nan->out[1], "index of NaN");
        case_return(&c, make(&c.b, OP_TAKE, INS(x, &top->out[1])), "take");
        case_return(&c, make(&c.b, OP_PUT, INS(&top->out[0], &top->out[1]), .n = sizes[i].n), "put");
        BodyCase k = body_new(&c);
        Value *z = body_arg(&k, x);
        Node *t = build(&k.b, OP_TOPK, INS(make(&k.b, OP_SOFTMAX, INS(z))), .k = sizes[i].k);
        Value *s = make(&k.b, OP_SUM, INS(&t->out[0]), .axes = {1, {2}});
        Value *w = make(&k.b, OP_DIV, INS(&t->out[0], s)), *e = &t->out[1];
        Value *even =
            make(&k.b, OP_EQ,
                 INS(make(&k.b, OP_MOD, INS(e, build_const(&k.b, 2, I32))), build_const(&k.b, 0, I32)));
        Value *kept = make(&k.b, OP_SELECT, INS(even, e, build_const(&k.b, -1, I32)));
        Value *back = make(&k.b, OP_PUT, INS(w, kept), .n = sizes[i].n),
              *some = make(&k.b, OP_TAKE, INS(z, kept));
        Node *f = body_end(&c, &k, (Value *[]){w, e, kept, back, some, NULL});
        for (int j = 0; j < 5; j++) case_return(&c, &f->out[j], arena_printf(c.arena, "g%d", j));
        assert_int_equal(case_compare_all(&c, 0, 1e-6), 0);
        case_free(&c);
    }
}

static void plain_symbols_size_rows_and_columns(void **state) {
    for (int64_t s = 1; s < 40; s += 13) {
        Case c = case_new();
        Sym *S = graph_add_sym(c.g, "S", SYM_PLAIN, 40, 0, 1);
        Dim d = {1, S};
        Value *x = case_input(&c, "x", F32, DIMS(d, dim_n(24))),
              *y = case_input(&c, "y", F32, DIMS(dim_n(3), d));
        case_return(&c, make(&c.b, OP_SOFTMAX, INS(x)), "rows");
        case_return(&c, make(&c.b, OP_SOFTMAX, INS(y)), "columns");
        case_return(&c, make(&c.b, OP_ADD, INS(x, x)), "flat");
        assert_int_equal(case_compare_all(&c, s, 1e-6), 0);
        case_free(&c);
    }
}

// Memory planning lets a result lie where an operand did that nobody reads later, even if another result needs it.
static void results_lie_where_operands_did(void **state) {
    static const int64_t widths[] = {8, 24, 300};
    for (int i = 0; i < 3; i++) {
        Case c = case_new();
        Dims dims = DIMS(dim_n(3), dim_n(7), dim_n(widths[i]));
        Value *a = build_unary(&c.b, OP_NEG, case_input(&c, "x", F32, dims)),
              *b = build_unary(&c.b, OP_NEG, case_input(&c, "y", F32, dims)),
              *m = make(&c.b, OP_LT, INS(a, b));
        BodyCase k = body_new(&c);
        Value *ba = body_arg(&k, a), *bb = body_arg(&k, b), *bm = body_arg(&k, m);
        Value *first = build_unary(&k.b, OP_ABS, ba), *less = make(&k.b, OP_LT, INS(bb, build_const(&k.b, 0, F32)));
        Value *second = make(&k.b, OP_SELECT, INS(bm, ba, bb));
        Node *f = body_end(&c, &k, (Value *[]){first, less, second, NULL});
        case_return(&c, build_unary(&c.b, OP_NEG, &f->out[0]), "r0");  // not the body's own: those lie elsewhere
        case_return(&c, build_unary(&c.b, OP_NOT, &f->out[1]), "r1");
        case_return(&c, build_unary(&c.b, OP_NEG, &f->out[2]), "r2");
        case_place(c.g);
        f->out[0].offset = b->offset;
        f->out[1].offset = m->offset;
        assert_int_equal(case_compare_placed(&c, "native", 0, 0), 0);
        case_free(&c);
    }
}

// ---- random bodies -------------------------------------------------------------------------------------

static void random_bodies_give_the_evaluators_bits(void **state) {
    static const Op unary[] = {OP_NEG, OP_ABS, OP_SIGMOID, OP_TANH, OP_FLOOR, OP_SIGN};
    static const Op binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_MAX, OP_MIN, OP_LT};
    static const int64_t widths[] = {4, 16, 24, 64, 96, 130};
    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t r = seed * 77777;
        Case c = case_new();
        int64_t W = widths[case_random(&r) % 6];
        Dims full = DIMS(dim_n(2), dim_n(3), dim_n(W)), row = DIMS(dim_n(2), dim_n(3), dim_n(1));
        Dims shapes[] = {
            full, full, row, DIMS(dim_n(W)), DIMS(dim_n(3), dim_n(1)), DIMS(dim_n(2), dim_n(1), dim_n(W)),
            {0}};
        BodyCase k = body_new(&c);
        Value *pool[64];
        int n = 0;
        for (int i = 0; i < 7; i++)
            pool[n++] = body_arg(&k, case_input(&c, arena_printf(c.arena, "x%d", i), F32, shapes[i]));
        while (n < 40) {
            Value *a = pool[case_random(&r) % (uint32_t)n], *b = pool[n - 1 - (int)(case_random(&r) % 6u)],
                  *y = NULL;
            bool wide = a->type.ndim == 3 && a->type.dim[2].n == W && a->type.dim[1].n == 3;
            switch (case_random(&r) % 8) {
            case 0: y = build_unary(&k.b, unary[case_random(&r) % 6], a); break;
            case 1: if (wide) y = make(&k.b, OP_SUM, INS(a), .axes = {1, {2}}); break;
            case 2: if (wide && case_random(&r) % 2) y = make(&k.b, OP_SOFTMAX, INS(a)); break;
            case 3: if (wide) y = make(&k.b, OP_REDUCE_MAX, INS(a), .axis = 2); break;
            case 4: y = make(&k.b, OP_FMA, INS(a, b, pool[case_random(&r) % (uint32_t)n])); break;
            case 5:
                if (wide && W % 2 == 0) {
                    Value *lo = make(&k.b, OP_SLICE, INS(a), .axis = 2, .begin = 0, .end = W / 2);
                    Value *hi = make(&k.b, OP_SLICE, INS(a), .axis = 2, .begin = W / 2, .end = W);
                    y = make(&k.b, OP_CONCAT, INS(build_unary(&k.b, OP_NEG, hi), lo), .axis = 2);
                }
                break;
            default: y = build_binary(&k.b, binary[case_random(&r) % 6], a, b);
            }
            if (y && y->type.dtype == BOOL) y = make(&k.b, OP_SELECT, INS(y, a, b));
            if (y) pool[n++] = y;
        }
        Value *out[16];
        int n_out = 0;
        for (int i = n - 1; i > 6 && n_out < 6; i--)
            if (pool[i]->type.ndim == 3 && pool[i]->type.dim[0].n == 2 && pool[i]->type.dim[1].n == 3)
                out[n_out++] = pool[i];
        out[n_out] = NULL;
        if (n_out) {
            Node *f = body_end(&c, &k, out);
            for (int i = 0; i < n_out; i++) case_return(&c, &f->out[i], arena_printf(c.arena, "y%d", i));
            int bad = case_compare(&c, NULL, 0, 0) + case_compare(&c, "native", 0, 0);
            if (seed % 4 == 0 && case_runs("avx2")) bad += case_compare(&c, "avx2", 0, 0);
            if (bad) printf("seed %d\n", (int)seed);
            assert_int_equal(bad, 0);
        }
        case_free(&c);
    }
}

// ---- vector math ---------------------------------------------------------------------------------------

static double ulps(float y, double exact) {
    if (isnan(exact)) return isnan(y) ? 0 : INFINITY;
    float nearest = (float)exact;
    if (isinf(nearest) || isinf(y)) return nearest == y ? 0 : INFINITY;
    int e;
    frexp(exact, &e);
    return fabs((double)y - exact) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static double exact_sigmoid(double x) { return x < -87 ? NAN : 1 / (1 + exp(-x)); }
static float sigmoid_above(float x) { return x < -87 ? NAN : vm_sigmoid(x); }

static void vector_math_stays_within_its_bounds(void **state) {
    static const struct {
        const char *name;
        float (*f)(float);
        double (*exact)(double);
        double bound;
    } fn[] = {{"exp", vm_exp, exp, 1.1},       {"log", vm_log, log, 1.0},
              {"log1p", vm_log1p, log1p, 2.0}, {"sigmoid", sigmoid_above, exact_sigmoid, 2.5},
              {"tanh", vm_tanh, tanh, 1.5},    {"erf", vm_erf, erf, 2.5}};
    for (int i = 0; i < 6; i++) {
        double most = 0;
        float at = 0;
        for (uint64_t bits = 0; bits < (UINT64_C(1) << 32); bits += 2741) {
            float x = vm_float((int32_t)(uint32_t)bits);
            double u = ulps(fn[i].f(x), fn[i].exact((double)x));
            if (u > most) most = u, at = x;
        }
        printf("%s: at most %.3f ulp, at %a\n", fn[i].name, most, (double)at);
        assert_true(most <= fn[i].bound);
    }
}

static void exp_down_is_exp_below_zero(void **state) {
    for (uint32_t bits = 0x80000000; bits > 2741; bits += 2741) {
        float x = vm_float((int32_t)bits);
        assert_int_equal(vm_bits(vm_exp_down(x)), vm_bits(vm_exp(x)));
    }
    assert_int_equal(vm_bits(vm_exp_down(0)), vm_bits(1));
}

// How a softmax of 4096 rows of 1024 is cut on so many threads, where a step moves so many bytes.
static TaskCount rows_described(int threads, double bytes, bool *asks) {
    Type t = type_make(F32, 2, (Dim[]){dim_n(4096), dim_n(1024)});
    Machine m = machine_guess(32, threads);
    Value x = {.type = t}, y = {.type = t}, *in[] = {&x};
    Node n = {.op = OP_SOFTMAX, .attr.axis = 1, .in = in, .n_in = 1, .out = &y, .n_out = 1};
    KernelNode k = {.node = &n, .machine = &m, .bytes = bytes};
    Arena *a = arena_create();
    KernelDesc d = {.key.arena = a, .n_phases = 1, .n_rounds = 1};
    assert_true(cpu_template(OP_SOFTMAX)->describe(&k, &d));
    *asks = d.key.n && strstr(d.key.text, " ahead");
    arena_destroy(a);
    return d.tasks[0];
}

// A task has half a MiB, unless threads would then have fewer than eight each; never less than 64 KiB.
static void tasks_are_large_where_threads_have_enough(void **state) {
    bool asks;
    assert_int_equal(rows_described(2, 1, &asks).grain, 64);
    assert_int_equal(rows_described(16, 1, &asks).grain, 32);
    assert_int_equal(rows_described(256, 1, &asks).grain, 8);
}

// What lies in a cache comes fast enough by itself.
static void rows_are_asked_for_from_memory_only(void **state) {
    bool asks;
    double cache = (double)machine_guess(32, 2).level[LEVEL_L3].size;
    rows_described(2, cache, &asks);
    assert_false(asks);
    rows_described(2, cache + 1, &asks);
    assert_true(asks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_ops_give_the_evaluators_bits),
        cmocka_unit_test(binary_ops_broadcast),
        cmocka_unit_test(casts_round_and_truncate),
        cmocka_unit_test(bf16_arithmetic_rounds_after_every_op),
        cmocka_unit_test(row_reductions_add_in_lane_order),
        cmocka_unit_test(rms_norm_is_one_kernel),
        cmocka_unit_test(rope_slices_and_joins_columns),
        cmocka_unit_test(softmax_and_its_gradient_share_a_body),
        cmocka_unit_test(topk_take_and_put_choose_in_order),
        cmocka_unit_test(plain_symbols_size_rows_and_columns),
        cmocka_unit_test(results_lie_where_operands_did),
        cmocka_unit_test(tasks_are_large_where_threads_have_enough),
        cmocka_unit_test(rows_are_asked_for_from_memory_only),
        cmocka_unit_test(random_bodies_give_the_evaluators_bits),
        cmocka_unit_test(vector_math_stays_within_its_bounds),
        cmocka_unit_test(exp_down_is_exp_below_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
