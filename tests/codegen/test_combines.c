// Bodies that read rows by number and add up the rows of each token must give the evaluator's bits.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/codegen/run_graph.h"

// A dispatch of t tokens per leaf: k choices each among 8 experts, some of them nobody.
typedef struct { Dim L; int64_t t, k; Value *row_of, *slot_of, *token; } Dispatch;

static Dispatch dispatch(Case *c, int64_t leaves, int64_t t, int64_t k) {
    Dispatch d = {.L = {1, graph_add_sym(c->g, "L", SYM_LEAF, leaves, 0, 1)}, .t = t, .k = k};
    Sym *R = graph_add_sym(c->g, "R", SYM_RAGGED, leaves * t * k, 8, (int)leaves);
    Value *e = case_input(c, "e", I32, DIMS(d.L, dim_n(t), dim_n(k)));
    Node *route = build(&c->b, OP_ROUTE, INS(e), .experts = 8, .sym = R);
    R->extent = &route->out[0];
    d.row_of = &route->out[1];
    d.slot_of = &route->out[2];
    d.token = make(&c->b, OP_DIV, INS(d.slot_of, build_const(&c->b, (double)k, I32)));
    return d;
}

static Value *arg(BodyCase *k, Value *v) { return body_arg(k, v); }

static void rows_by_number_are_loads(void **state) {
    static const int64_t widths[] = {1, 5, 16, 64, 100, 1030};
    static const DType types[] = {F32, BF16, I32};
    for (int i = 0; i < 18; i++) {
        Case c = case_new();
        DType t = types[i / 6];
        Dim D = dim_n(widths[i % 6]);
        Value *x = case_input(&c, "x", t, DIMS(dim_n(7), D)), *y = case_input(&c, "y", t, DIMS(dim_n(40), dim_n(3), D));
        Value *e = case_input(&c, "e", I32, DIMS(dim_n(40), dim_n(3)));            // -1 .. 7: the last is no row either
        BodyCase k = body_new(&c);
        Value *rows = make(&k.b, OP_GATHER_ROWS, INS(arg(&k, x), arg(&k, e)));
        Value *sum = make(&k.b, OP_ADD, INS(rows, arg(&k, y)));
        Ints last = {1, {2}};
        Node *body = body_end(&c, &k, (Value *[]){rows, sum, build_sum(&k.b, sum, &last), NULL});
        for (int j = 0; j < 3; j++) case_return(&c, &body->out[j], arena_printf(c.arena, "r%d", j));
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void combines_add_rows_in_order(void **state) {
    static const int64_t widths[] = {1, 7, 16, 64, 130, 1024}, choices[] = {1, 2, 3, 8, 17};
    for (int i = 0; i < 18; i++) {
        Case c = case_new();
        int64_t width = widths[i % 6], k = choices[i % 5];
        DType t = i % 4 == 3 ? BF16 : F32;
        Dispatch d = dispatch(&c, i % 3 ? 1 : 4, 33, k);
        Value *slots = case_input(&c, "v", t, DIMS(((Dim){d.t * k, d.L.sym}), dim_n(width)));
        Value *v = make(&c.b, OP_GATHER_ROWS, INS(slots, d.slot_of));
        Dims tokens = DIMS(d.L, dim_n(d.t), dim_n(width));
        case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(v, d.token, d.row_of), .dims = tokens), "combined");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

// The forward and backward of tokens that go through experts that change nothing: weights before, a residual and a
// norm behind the sum; the weights' gradients leave as rows.
static void combines_take_in_what_is_before_and_behind(void **state) {
    static const int64_t widths[] = {5, 64, 200};
    for (int i = 0; i < 12; i++) {
        Case c = case_new();
        int64_t width = widths[i % 3], k = i % 2 ? 2 : 8;
        DType t = i < 6 ? F32 : BF16;
        Dispatch d = dispatch(&c, i % 4 ? 1 : 2, 41, k);
        Dims tokens = DIMS(d.L, dim_n(d.t), dim_n(width));
        Value *x = case_input(&c, "x", t, tokens), *dy = case_input(&c, "dy", t, tokens),
              *w = case_input(&c, "w", t, DIMS(((Dim){d.t * k, d.L.sym}), dim_n(1)));
        Ints columns = {1, {2}}, row = {1, {1}};

        BodyCase f = body_new(&c);
        Value *ax = arg(&f, x), *token = arg(&f, d.token), *slot = arg(&f, d.slot_of);
        Value *weighted = make(&f.b, OP_MUL, INS(make(&f.b, OP_GATHER_ROWS, INS(ax, token)),
                                                 make(&f.b, OP_GATHER_ROWS, INS(arg(&f, w), slot))));
        Value *y = make(&f.b, OP_SCATTER_ADD_ROWS, INS(weighted, token, arg(&f, d.row_of)), .dims = tokens);
        Value *z = make(&f.b, OP_ADD, INS(ax, y));
        Value *scale = make(&f.b, OP_RSQRT, INS(build_sum(&f.b, make(&f.b, OP_MUL, INS(z, z)), &columns)));
        Node *forward = body_end(&c, &f, (Value *[]){z, make(&f.b, OP_MUL, INS(z, scale)), NULL});

        BodyCase g = body_new(&c);
        token = arg(&g, d.token), slot = arg(&g, d.slot_of);
        Value *d_rows = make(&g.b, OP_GATHER_ROWS, INS(arg(&g, dy), token));
        Value *x_rows = make(&g.b, OP_GATHER_ROWS, INS(arg(&g, x), token));
        Value *dv = make(&g.b, OP_MUL, INS(d_rows, make(&g.b, OP_GATHER_ROWS, INS(arg(&g, w), slot))));
        Value *dw = build_sum(&g.b, make(&g.b, OP_MUL, INS(d_rows, x_rows)), &row);
        Value *p = make(&g.b, OP_SOFTMAX, INS(d_rows));
        Value *dx = make(&g.b, OP_SCATTER_ADD_ROWS, INS(dv, token, arg(&g, d.row_of)), .dims = tokens);
        Node *backward = body_end(&c, &g, (Value *[]){dw, dx, p, NULL});

        for (int j = 0; j < 2; j++) case_return(&c, &forward->out[j], arena_printf(c.arena, "forward%d", j));
        for (int j = 0; j < 3; j++) case_return(&c, &backward->out[j], arena_printf(c.arena, "backward%d", j));
        assert_int_equal(case_compare_all(&c, 0, 1e-5), 0);
        case_free(&c);
    }
}

// Where no cache holds anything, results are written past the caches.
static void streamed_results_have_the_same_bits(void **state) {
    Machine m = machine_guess(32, 1);
    for (int i = LEVEL_L1; i < LEVEL_DRAM; i++) m.level[i].size = 0;
    case_machine = &m;
    combines_take_in_what_is_before_and_behind(state);
    rows_by_number_are_loads(state);
    case_machine = NULL;
}

static void none_of_this_ran_a_reference(void **state) { assert_int_equal(case_references, 0); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_by_number_are_loads),
        cmocka_unit_test(combines_add_rows_in_order),
        cmocka_unit_test(combines_take_in_what_is_before_and_behind),
        cmocka_unit_test(streamed_results_have_the_same_bits),
        cmocka_unit_test(none_of_this_ran_a_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
