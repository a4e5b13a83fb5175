// Sums over rows, rows moved by index and memory moved by shape must give the evaluator's bits.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/codegen/run_graph.h"

static void sums_over_rows_meet_in_trees(void **state) {
    static const int64_t rows[] = {1, 63, 64, 65, 130, 200, 449};
    for (int i = 0; i < 7; i++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(rows[i]), dim_n(3), dim_n(70)));
        Value *w = case_input(&c, "w", F32, DIMS(dim_n(rows[i]), dim_n(1)));
        Value *k = case_input(&c, "i", I32, DIMS(dim_n(rows[i]), dim_n(20)));
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {0}}), "first");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {1}}), "middle");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {2, {0, 1}}), "two");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {2, {0, 2}}), "outer");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {3, {0, 1, 2}}), "all");
        case_return(&c, make(&c.b, OP_SUM, INS(w), .axes = {1, {0}}), "column");
        case_return(&c, make(&c.b, OP_SUM, INS(k), .axes = {1, {0}}), "ints");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void sums_over_leaves_are_the_leaf_tree(void **state) {
    for (int64_t leaves = 1; leaves <= 8; leaves += leaves < 4 ? 1 : 3) {
        Case c = case_new();
        Sym *L = graph_add_sym(c.g, "L", SYM_LEAF, leaves, 0, 1);
        Dim l = {1, L}, rows = {96, L};
        Value *x = case_input(&c, "x", F32, DIMS(l, dim_n(2), dim_n(50), dim_n(24)));
        Value *r = case_input(&c, "r", F32, DIMS(rows, dim_n(40)));
        Value *s = case_input(&c, "s", F32, DIMS(l, dim_n(1)));
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {3, {0, 1, 2}}), "bias");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {0}}), "leaf");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {4, {0, 1, 2, 3}}), "all");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {2, {1, 2}}), "inside");
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {3}}), "columns");
        case_return(&c, make(&c.b, OP_SUM, INS(r), .axes = {1, {0}}), "rows");
        case_return(&c, make(&c.b, OP_SUM, INS(s), .axes = {2, {0, 1}}), "scalars");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void sums_follow_plain_symbols(void **state) {
    for (int64_t s = 1; s < 150; s += 70) {
        Case c = case_new();
        Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, 150, 0, 1)};
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(1), S, dim_n(33)));
        case_return(&c, make(&c.b, OP_SUM, INS(x), .axes = {1, {1}}), "rows");
        assert_int_equal(case_compare_all(&c, s, 0), 0);
        case_free(&c);
    }
}

static void running_sums_go_in_order(void **state) {
    static const DType types[] = {F32, BF16, I32};
    for (int t = 0; t < 3; t++)
        for (int form = 0; form < 4; form++) {
            Case c = case_new();
            Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, 70, 0, 1)};
            Value *x = case_input(&c, "x", types[t], DIMS(dim_n(3), S, dim_n(38)));
            Value *y = case_input(&c, "y", types[t], DIMS(dim_n(300), dim_n(9)));
            for (int axis = 0; axis < 3; axis++)
                case_return(&c, make(&c.b, OP_CUMSUM, INS(x), .axis = axis, .reverse = form & 1, .exclusive = form >> 1),
                            arena_printf(c.arena, "x%d", axis));
            for (int axis = 0; axis < 2; axis++)
                case_return(&c, make(&c.b, OP_CUMSUM, INS(y), .axis = axis, .reverse = form & 1, .exclusive = form >> 1),
                            arena_printf(c.arena, "y%d", axis));
            assert_int_equal(case_compare_all(&c, 41, 0), 0);
            case_free(&c);
        }
}

static void rows_are_gathered_and_scattered_by_index(void **state) {
    static const int64_t widths[] = {1, 5, 16, 64, 100, 130};
    for (int i = 0; i < 6; i++) {
        Case c = case_new();
        Dim D = dim_n(widths[i]);
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(2), dim_n(4), D)),
              *v = case_input(&c, "v", F32, DIMS(dim_n(61), D));
        Value *e = case_input(&c, "e", I32, DIMS(dim_n(61))),
              *e2 = case_input(&c, "e2", I32, DIMS(dim_n(7), dim_n(3)));
        Value *h = case_input(&c, "h", BF16, DIMS(dim_n(8), D));
        case_return(&c, make(&c.b, OP_GATHER_ROWS, INS(x, e)), "gather");
        case_return(&c, make(&c.b, OP_GATHER_ROWS, INS(x, e2)), "gather2");
        case_return(&c, make(&c.b, OP_GATHER_ROWS, INS(h, e2)), "gather16");
        case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(v, e), .dims = DIMS(dim_n(8), D)), "scatter");
        case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(v, e), .dims = DIMS(dim_n(2), dim_n(50), D)),
                    "sparse");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void scatter_into_a_parameter_adds_per_leaf(void **state) {
    for (int64_t leaves = 1; leaves <= 8; leaves *= 2) {
        Case c = case_new();
        Sym *L = graph_add_sym(c.g, "L", SYM_LEAF, leaves, 0, 1);
        Dim l = {1, L};
        Value *v = case_input(&c, "v", F32, DIMS(l, dim_n(3), dim_n(20), dim_n(72))),
              *e = case_input(&c, "e", I32, DIMS(l, dim_n(3), dim_n(20)));
        case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(v, e), .dims = DIMS(dim_n(20), dim_n(72))),
                    "table");
        case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(v, e), .dims = DIMS(((Dim){5, L}), dim_n(72))),
                    "tokens");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void memory_moves_along_every_axis(void **state) {
    static const DType types[] = {F32, BF16, BOOL, I32};
    for (int t = 0; t < 4; t++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", types[t], DIMS(dim_n(3), dim_n(5), dim_n(38))),
              *y = case_input(&c, "y", types[t], DIMS(dim_n(3), dim_n(5), dim_n(38)));
        Value *big = case_input(&c, "big", types[t], DIMS(dim_n(2), dim_n(9000)));
        for (int axis = 0; axis < 3; axis++) {
            case_return(&c, make(&c.b, OP_SLICE, INS(x), .axis = axis, .begin = 1, .end = 3),
                        arena_printf(c.arena, "slice%d", axis));
            case_return(&c, make(&c.b, OP_CONCAT, INS(x, y, x), .axis = axis),
                        arena_printf(c.arena, "concat%d", axis));
            if (types[t] != BOOL)
                case_return(&c, make(&c.b, OP_UNSLICE, INS(x), .axis = axis, .begin = 2, .n = 45),
                            arena_printf(c.arena, "unslice%d", axis));
        }
        static const int64_t perms[][3] = {{1, 0, 2}, {2, 1, 0}, {0, 2, 1}, {2, 0, 1}};
        for (int i = 0; i < 4; i++)
            case_return(&c,
                        make(&c.b, OP_PERMUTE, INS(x), .perm = {3, {perms[i][0], perms[i][1], perms[i][2]}}),
                        arena_printf(c.arena, "permute%d", i));
        case_return(&c, make(&c.b, OP_SLICE, INS(big), .axis = 1, .begin = 7, .end = 8900), "cut");
        case_return(&c, make(&c.b, OP_SLICE, INS(big), .axis = 0, .begin = 1, .end = 2), "half");
        case_return(&c, make(&c.b, OP_CONCAT, INS(big, big), .axis = 0), "stack");
        case_return(&c,
                    make(&c.b, OP_BROADCAST,
                         INS(make(&c.b, OP_SLICE, INS(x), .axis = 1, .begin = 0, .end = 1)),
                         .dims = DIMS(dim_n(2), dim_n(3), dim_n(4), dim_n(38))),
                    "broadcast");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

// Rows of a route: how many there are is known only while the program runs.
static void ragged_rows_follow_their_route(void **state) {
    Case c = case_new();
    Sym *L = graph_add_sym(c.g, "L", SYM_LEAF, 2, 0, 1);
    Dim l = {1, L};
    Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, 2 * 30 * 2, 8, 2);
    Value *x = case_input(&c, "x", F32, DIMS(l, dim_n(30), dim_n(40))),
          *e = case_input(&c, "e", I32, DIMS(l, dim_n(30), dim_n(2)));
    Node *route = build(&c.b, OP_ROUTE, INS(e), .experts = 8, .sym = R);
    R->extent = &route->out[0];
    Value *slot = &route->out[2];
    Value *token = build_binary(&c.b, OP_DIV, slot, build_const(&c.b, 2, I32));
    Value *rows = make(&c.b, OP_GATHER_ROWS, INS(x, token));
    BodyCase k = body_new(&c);
    Value *a = body_arg(&k, rows);
    Value *y = make(&k.b, OP_MUL, INS(a, build_unary(&k.b, OP_SIGMOID, a)));
    Value *s = make(&k.b, OP_SUM, INS(y), .axes = {1, {1}});
    Node *f = body_end(&c, &k, (Value *[]){make(&k.b, OP_ADD, INS(y, s)), s, NULL});
    case_return(&c, &f->out[0], "rows");
    case_return(&c, &f->out[1], "sums");
    case_return(
        &c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(&f->out[0], token), .dims = DIMS(l, dim_n(30), dim_n(40))),
        "combined");
    case_return(&c, &route->out[0], "offsets");
    assert_int_equal(case_compare_all(&c, 0, 1e-5), 0);
    case_free(&c);
}

// A whole router: choice, capacity by queue, renormed weights, statistics, rows.
static void gates_run_as_bodies_and_lone_ops(void **state) {
    Case c = case_new();
    Sym *L = graph_add_sym(c.g, "L", SYM_LEAF, 2, 0, 1);
    Dim l = {1, L};
    Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, 2 * 150 * 2, 8, 2);
    Value *z = case_input(&c, "z", F32, DIMS(l, dim_n(150), dim_n(8)));
    BodyCase k = body_new(&c);
    Value *x = body_arg(&k, z), *p = make(&k.b, OP_SOFTMAX, INS(x));
    Node *top = build(&k.b, OP_TOPK, INS(p), .k = 2);
    Value *w = &top->out[0], *e = &top->out[1];
    Value *place = build(&k.b, OP_QUEUE, INS(e), .experts = 8, .by_choice = 1)->out;
    Value *kept = make(&k.b, OP_LT, INS(place, build_const(&k.b, 30, I32)));
    Value *chosen = make(&k.b, OP_SELECT, INS(kept, e, build_const(&k.b, -1, I32)));
    Value *weight = make(&k.b, OP_SELECT, INS(kept, w, build_const(&k.b, 0, F32)));
    Value *sum = make(&k.b, OP_SUM, INS(weight), .axes = {1, {2}});
    Value *norm = make(&k.b, OP_DIV, INS(weight, make(&k.b, OP_MAX, INS(sum, build_const(&k.b, 1e-6, F32)))));
    Value *mean = make(&k.b, OP_SUM, INS(p), .axes = {1, {1}});
    Value *counts = make(&k.b, OP_COUNT, INS(chosen), .experts = 8);
    Node *route = build(&k.b, OP_ROUTE, INS(chosen), .experts = 8, .sym = R);
    R->extent = &route->out[0];
    Value *token = make(&k.b, OP_DIV, INS(&route->out[2], build_const(&k.b, 2, I32)));
    build_node(&k.b, OP_YIELD,
               INS(norm, chosen, mean, counts, &route->out[0], &route->out[1], token, p, e, p), &(Attrs){0});
    Node *gate = build(&c.b, OP_GATE, INS(z), .body = k.g);
    R->extent = &gate->out[4];
    for (int i = 0; i < gate->n_out; i++) case_return(&c, &gate->out[i], arena_printf(c.arena, "r%d", i));
    assert_int_equal(case_compare_all(&c, 0, 1e-6), 0);
    case_free(&c);
}

static void rows_draw_what_their_numbers_say(void **state) {
    static const int64_t sizes[] = {1, 5, 53, 4373};
    for (int i = 0; i < 4; i++) {
        int64_t cols = sizes[i];
        Case c = case_new();
        Value *rng = case_input(&c, "rng", I32, DIMS(dim_n(4))), *of = case_input(&c, "of", I32, DIMS(dim_n(37)));
        case_return(&c, make(&c.b, OP_RANDOM, INS(rng, of), .stream = 3, .dtype = F32, .dims = DIMS(dim_n(37), dim_n(cols))),
                    "u");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void random_numbers_are_philox(void **state) {
    static const int64_t sizes[] = {1, 15, 64, 10000};
    for (int i = 0; i < 4; i++) {
        Case c = case_new();
        Value *rng = case_input(&c, "rng", I32, DIMS(dim_n(4)));
        for (int stream = 0; stream < 3; stream++)
            case_return(&c,
                        make(&c.b, OP_RANDOM, INS(rng), .stream = stream, .dtype = F32,
                             .dims = DIMS(dim_n(3), dim_n(sizes[i]))),
                        arena_printf(c.arena, "u%d", stream));
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_rows_meet_in_trees),
        cmocka_unit_test(sums_over_leaves_are_the_leaf_tree),
        cmocka_unit_test(sums_follow_plain_symbols),
        cmocka_unit_test(running_sums_go_in_order),
        cmocka_unit_test(rows_are_gathered_and_scattered_by_index),
        cmocka_unit_test(scatter_into_a_parameter_adds_per_leaf),
        cmocka_unit_test(memory_moves_along_every_axis),
        cmocka_unit_test(ragged_rows_follow_their_route),
        cmocka_unit_test(random_numbers_are_philox),
        cmocka_unit_test(rows_draw_what_their_numbers_say),
        cmocka_unit_test(gates_run_as_bodies_and_lone_ops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
