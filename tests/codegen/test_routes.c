// Counts, queues, routes and the expert of each row must be the evaluator's, whatever the sizes: one token, none,
// more than one run, leaves, everyone to one expert.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/codegen/run_graph.h"

typedef struct { int64_t leaves, t, k, experts; } Size;

// Names that begin with e hold -1 .. 7: fewer experts than 8 leave some choices without one.
static const Size sizes[] = {
    {1, 1, 1, 8},  {1, 1, 2, 3},    {1, 37, 2, 8},   {4, 33, 8, 5},   {1, 3000, 1, 8},
    {2, 3000, 2, 8}, {1, 1500, 8, 7}, {8, 1024, 2, 128}, {1, 9001, 3, 40}, {1, 512, 4, 1},
};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static Dims choice_dims(Case *c, const Size *s) {
    Dim L = {1, graph_add_sym(c->g, "L", SYM_LEAF, s->leaves, 0, 1)};
    return DIMS(L, dim_n(s->t), dim_n(s->k));
}

static void routes_sort_rows_by_expert_and_leaf(void **state) {
    for (int i = 0; i < N_SIZES; i++) {
        const Size *s = &sizes[i];
        Case c = case_new();
        Value *e = case_input(&c, "e", I32, choice_dims(&c, s));
        Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, s->leaves * s->t * s->k, (int)s->experts, (int)s->leaves);
        Node *route = build(&c.b, OP_ROUTE, INS(e), .experts = s->experts, .sym = R);
        R->extent = &route->out[0];
        case_return(&c, &route->out[0], "offsets");
        case_return(&c, &route->out[1], "row_of");
        case_return(&c, &route->out[2], "slot_of");
        case_return(&c, make(&c.b, OP_ROW_GROUP, INS(&route->out[0]), .sym = R), "expert");
        case_return(&c, make(&c.b, OP_COUNT, INS(e), .experts = s->experts), "count");
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void queues_stand_in_order_of_choice_and_priority(void **state) {
    for (int i = 0; i < N_SIZES; i++)
        for (int by_choice = 0; by_choice < 2; by_choice++) {
            const Size *s = &sizes[i];
            Case c = case_new();
            Dims dims = choice_dims(&c, s);
            Value *e = case_input(&c, "e", I32, dims), *x = case_input(&c, "x", F32, dims);
            Value *h = case_input(&c, "h", BF16, dims), *flat = make(&c.b, OP_MUL, INS(x, build_const(&c.b, 0, F32)));
            Value *nan = make(&c.b, OP_LOG, INS(x));        // of what is negative; -inf of zero
            Value *by[] = {NULL, x, h, flat, nan};
            for (int k = 0; k < 5; k++)
                case_return(&c, make(&c.b, OP_QUEUE, INS(e, by[k]), .experts = s->experts, .by_choice = by_choice),
                            arena_printf(c.arena, "queue%d", k));
            assert_int_equal(case_compare_all(&c, 0, 0), 0);
            case_free(&c);
        }
}

static void all_tokens_may_want_one_expert(void **state) {
    for (int64_t t = 1; t < 6000; t = t * 5 + 1) {
        Case c = case_new();
        Dims dims = DIMS(dim_n(1), dim_n(t), dim_n(2));
        Value *x = case_input(&c, "x", F32, dims), *zero = build_const(&c.b, 0, F32);
        Value *e = make(&c.b, OP_CAST, INS(make(&c.b, OP_MUL, INS(x, zero))), .dtype = I32);
        Value *nobody = make(&c.b, OP_SUB, INS(e, build_const(&c.b, 1, I32)));
        Sym *R[2];
        for (int i = 0; i < 2; i++) {
            R[i] = graph_add_sym(c.g, i ? "N" : "R", SYM_RAGGED, t * 2, 16, 1);
            Node *route = build(&c.b, OP_ROUTE, INS(i ? nobody : e), .experts = 16, .sym = R[i]);
            R[i]->extent = &route->out[0];
            for (int k = 0; k < 3; k++)
                case_return(&c, &route->out[k], arena_printf(c.arena, "route%d_%d", i, k));
            case_return(&c, make(&c.b, OP_COUNT, INS(i ? nobody : e), .experts = 16), i ? "count1" : "count0");
            case_return(&c, make(&c.b, OP_QUEUE, INS(i ? nobody : e, x), .experts = 16, .by_choice = i), i ? "queue1" : "queue0");
        }
        assert_int_equal(case_compare_all(&c, 0, 0), 0);
        case_free(&c);
    }
}

static void sizes_may_be_known_only_at_run_time(void **state) {
    static const int64_t now[] = {0, 1, 7, 5000};
    for (int i = 0; i < 4; i++) {
        Case c = case_new();
        Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, 5000, 0, 1)};
        Value *e = case_input(&c, "e", I32, DIMS(dim_n(1), S, dim_n(2)));
        Value *sequences = case_input(&c, "e2", I32, DIMS(S, dim_n(3), dim_n(2)));
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(1), S, dim_n(2)));
        Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, 10000, 8, 1);
        Node *route = build(&c.b, OP_ROUTE, INS(e), .experts = 8, .sym = R);
        R->extent = &route->out[0];
        for (int k = 0; k < 3; k++) case_return(&c, &route->out[k], arena_printf(c.arena, "route%d", k));
        case_return(&c, make(&c.b, OP_COUNT, INS(e), .experts = 8), "count");
        case_return(&c, make(&c.b, OP_COUNT, INS(sequences), .experts = 8), "counts");
        case_return(&c, make(&c.b, OP_QUEUE, INS(e), .experts = 8, .by_choice = 1), "queue");
        case_return(&c, make(&c.b, OP_QUEUE, INS(sequences), .experts = 8), "queues");
        case_return(&c, make(&c.b, OP_QUEUE, INS(e, x), .experts = 8), "best");
        assert_int_equal(case_compare_all(&c, now[i], 0), 0);
        case_free(&c);
    }
}

static void balanced_scores_are_the_evaluators(void **state) {
    static const struct { int64_t leaves, t, experts; int limit; } few[] = {
        {1, 1, 1, 3}, {1, 5, 3, 100}, {4, 33, 8, 1}, {2, 64, 16, 7}, {1, 65, 17, 30}, {8, 300, 64, 5}, {1, 1000, 130, 2},
    };
    for (size_t i = 0; i < sizeof few / sizeof *few; i++)
        for (int plain = 0; plain < 2; plain++) {
            Case c = case_new();
            Dim L = {1, graph_add_sym(c.g, "L", SYM_LEAF, few[i].leaves, 0, 1)};
            Dim t = plain ? (Dim){1, graph_add_sym(c.g, "S", SYM_PLAIN, few[i].t + 40, 0, 1)} : dim_n(few[i].t);
            Value *x = case_input(&c, "x", F32, DIMS(L, t, dim_n(few[i].experts)));
            Value *nan = make(&c.b, OP_LOG, INS(x)), *zero = make(&c.b, OP_MUL, INS(x, build_const(&c.b, 0, F32)));
            case_return(&c, make(&c.b, OP_SINKHORN, INS(x), .tolerance = 1e-3, .limit = few[i].limit), "balanced");
            case_return(&c, make(&c.b, OP_SINKHORN, INS(zero), .tolerance = 0, .limit = few[i].limit), "even");
            case_return(&c, make(&c.b, OP_SINKHORN, INS(nan), .tolerance = 1e-3, .limit = few[i].limit), "nan");
            assert_int_equal(case_compare_all(&c, few[i].t, 1e-2), 0);
            case_free(&c);
        }
}

static void none_of_this_ran_a_reference(void **state) { assert_int_equal(case_references, 0); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routes_sort_rows_by_expert_and_leaf),
        cmocka_unit_test(queues_stand_in_order_of_choice_and_priority),
        cmocka_unit_test(all_tokens_may_want_one_expert),
        cmocka_unit_test(sizes_may_be_known_only_at_run_time),
        cmocka_unit_test(balanced_scores_are_the_evaluators),
        cmocka_unit_test(none_of_this_ran_a_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
