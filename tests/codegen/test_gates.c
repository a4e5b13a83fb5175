// The gate of every router in models/routing/ is one kernel and computes what the evaluator does, bit for bit: tokens in
// several runs, a last run that is short, leaves shorter than a run, one token.
#include "tests/models/router_model.h"
#include "codegen/cpu/route.h"
#include "tests/codegen/run_graph.h"

typedef struct { int leaves, B, S, E; } Size;

static const Size sizes[] = {{2, 1, 192, 12}, {1, 1, 330, 16}, {3, 2, 20, 5}, {1, 1, 1, 5}};

static int n_gates, n_kernels;

// Leaves nothing but the gate, fed from inputs, its results returned.
static void keep_gate(Case *c, Node *gate) {
    c->b = builder_before(c->g, gate);
    for (int i = 0; i < gate->n_in; i++) {
        const Type *t = &gate->in[i]->type;
        Value *x = gate->in[i]->node->op == OP_CONST ? NULL : case_input(c, arena_printf(c->arena, "x%d", i), t->dtype, dims_of(t));
        if (x) replace_operand(gate, i, x);
    }
    for (Node *n = c->g->last, *before; n != gate; n = before) {
        before = n->prev;
        graph_remove(n);
    }
    for (Node *n = gate->prev, *before; n; n = before) {
        before = n->prev;
        bool read = false;
        for (int i = 0; i < gate->n_in; i++) read |= gate->in[i]->node == n;
        if (!read) graph_remove(n);
    }
    c->b = builder_end(c->g, NULL);
    for (int i = 0; i < gate->n_out; i++) case_return(c, &gate->out[i], arena_printf(c->arena, "r%d", i));
}

static void check_size(const char *name, const Fn *f, const Size *s) {
    static const char *const cpus[] = {"native", "avx512"};
    static const char *const pipeline[] = {"simplify", "fuse-gating", NULL};
    Loaded *l = load_case(&(RouterCase){name, f, "", s->E, s->B, s->S, param_of(f, "used") != NULL});
    ElabOpts o = {.kind = ELAB_TRAIN, .leaves = s->leaves, .B = s->B, .S = s->S, .waves = 1};
    const char *what = arena_printf(l->a, "%s of %d experts, %d leaves of %d x %d", name, s->E, s->leaves, s->B, s->S);
    Graph *g = passed(l, what, elaborate(l, what, o), pipeline, &usual, NULL, NULL);
    Node *gate = (Node *)find_op(g, OP_GATE);
    if (gate) {
        Case c = {.arena = l->a, .diag = l->d, .g = g};
        keep_gate(&c, gate);
        if (!gate_is_kernel(gate)) fail_msg("%s: the gate is opened", what);
        n_gates++;
        for (int i = 0; i < 2; i++)
            if (case_runs(cpus[i]) && case_compare(&c, cpus[i], 0, 0)) fail_msg("%s", what);
    }
    unload(l);
}

static void check_router(const char *name) {
    char path[200];
    snprintf(path, sizeof path, "models/routing/%s.moe", name);
    Loaded *l = load(path);
    int before = n_gates;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_size(name, router_fn(l, name), &sizes[i]);
    n_kernels += n_gates > before;
    unload(l);
}

static void gates_are_kernels_that_compute_what_the_evaluator_does(void **state) {
    int n = for_each_program("models/routing", check_router);
    print_message("%d of %d routers have a gate: %d gates compared, %d steps by reference\n", n_kernels, n, n_gates, case_references);
    assert_true(n_kernels >= 15);
    assert_int_equal(case_references, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gates_are_kernels_that_compute_what_the_evaluator_does)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
