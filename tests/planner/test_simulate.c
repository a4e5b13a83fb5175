// The simulator's events on plans small enough to do by hand.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "planner/simulate.h"

// @pass of four steps: compute, an exchange, compute, the wait for it.
enum { STEPS = 4 };
static struct {
    RtPlan plan;
    RtProgram program;
    RtStep step[STEPS];
    char text[16];
} block;

static const RtPlan *plan_of_mesh(RtMesh mesh) {
    memset(&block, 0, sizeof block);
    strcpy(block.text + 1, "pass");
    block.plan = (RtPlan){.mesh = mesh, .text = {offsetof(__typeof__(block), text), sizeof block.text}, .programs = {offsetof(__typeof__(block), program), 1},
                          .steps = {offsetof(__typeof__(block), step), STEPS}};
    block.program = (RtProgram){.name = 1, .n_steps = STEPS};
    return &block.plan;
}

typedef struct { double before, link, behind; } Load;

// A rank that computes, starts an exchange that takes so long, computes, waits.
static void fill(StepCost *cost, Load l) {
    cost[0] = (StepCost){.seconds = l.before, .kind = SPENT_PRODUCTS};
    cost[1] = (StepCost){.moves = true, .pending = true, .kind = SPENT_WAIT_ROWS, .group = RT_GROUP_EXP, .sequence = 1, .link = {l.link}};
    cost[2] = (StepCost){.seconds = l.behind, .kind = SPENT_PRODUCTS};
    cost[3] = (StepCost){.waits = true, .kind = SPENT_ROWS, .group = RT_GROUP_EXP, .sequence = 1};
}

static Simulated run(const Cluster *c, const Load *load, int ranks) {
    Arena *a = arena_create();
    Costs costs = {.plan = plan_of_mesh((RtMesh){.dp = 1, .ep = ranks, .tp = 1}), .ranks = ranks, .of = arena_array(a, StepCost *, ranks)};
    for (int r = 0; r < ranks; r++) {
        costs.of[r] = arena_array(a, StepCost, STEPS);
        fill(costs.of[r], load[r]);
    }
    Simulated s = simulate_part(a, c, &costs, "pass", (StepFilter){-1, -1, true}, 0, NULL);
    arena_destroy(a);
    return s;
}

static const Cluster node_of_two = {.nodes = 1, .per_node = 2};

static void one_rank_hides_what_it_can(void **state) {
    Simulated s = run(&node_of_two, &(Load){1, 3, 1}, 1);
    assert_float_equal(s.seconds, 4, 1e-9);
    assert_float_equal(s.spent[SPENT_PRODUCTS], 2, 1e-9);
    assert_float_equal(s.spent[SPENT_WAIT_ROWS], 2, 1e-9);
    assert_float_equal(s.link[0], 3, 1e-9);
    s = run(&node_of_two, &(Load){1, 1, 3}, 1);
    assert_float_equal(s.seconds, 4, 1e-9);
    assert_float_equal(s.spent[SPENT_WAIT_ROWS], 0, 1e-9);
}

// Nothing moves before both have started: 3 + 1 for the one that comes last, and the other waits as long.
static void the_busier_rank_makes_others_wait(void **state) {
    Simulated s = run(&node_of_two, (Load[]){{1, 1, 0}, {3, 1, 0}}, 2);
    assert_float_equal(s.seconds, 4, 1e-9);
    assert_float_equal(s.spent[SPENT_PRODUCTS], 2, 1e-9);                  // means
    assert_float_equal(s.spent[SPENT_WAIT_ROWS], 2, 1e-9);
    s = run(&node_of_two, (Load[]){{2, 1, 0}, {2, 1, 0}}, 2);
    assert_float_equal(s.seconds, 3, 1e-9);
}

// On one core each has half of it until the first waits; then the other has all.
static void ranks_that_share_a_core_use_it_up(void **state) {
    Cluster c = node_of_two;
    c.cores = 1;
    Simulated s = run(&c, (Load[]){{1, 0.5, 0}, {3, 0.5, 0}}, 2);
    assert_float_equal(s.seconds, 1 + 1 + 0.5, 1e-9);
    s = run(&c, (Load[]){{2, 0.5, 0}, {2, 0.5, 0}}, 2);
    assert_float_equal(s.seconds, 2.5, 1e-9);
}

static void messages_slow_compute(void **state) {
    Cluster c = node_of_two;
    c.comm_share = 0.5;
    Simulated s = run(&c, &(Load){1, 2, 3}, 1);                           // 2 s at half speed, then 2 s
    assert_float_equal(s.seconds, 5, 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_hides_what_it_can),
        cmocka_unit_test(the_busier_rank_makes_others_wait),
        cmocka_unit_test(ranks_that_share_a_core_use_it_up),
        cmocka_unit_test(messages_slow_compute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
