// Tiles and forms are chosen by what a machine was measured to do, the dump tells what was weighed, and no choice
// changes a bit.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/codegen/run_graph.h"

static const char *dump_text(Case *c, const char *cpu, const char *form) {
    Str text = {.arena = c->arena};
    CompileOpts co = {.cpu = cpu, .cache_dir = "", .threads = 1, .machine = case_machine};
    assert_true(target_find("cpu")->dump(&c->g, 1, &co, form, &text, c->diag));
    return text.text;
}
static const char *plan_text(Case *c, const char *cpu) { return dump_text(c, cpu, "plan"); }

// Most candidates of a product in the text, whose lines end with "of NUMBER".
static int most_candidates(const char *text) {
    int most = 0;
    for (const char *at = text; (at = strstr(at, "\nchoose kernel ")); at++) {
        const char *end = strchr(at + 1, '\n'), *of = end;
        while (strncmp(of, "of ", 3) != 0) of--;
        if (atoi(of + 3) > most) most = atoi(of + 3);
    }
    return most;
}

// Rows: few and many, known and not; columns that end inside a panel; a k that is cut; experts with a pair and numbered
// rows; sums.
static void every_product(Case *c) {
    Builder *b = &c->b;
    enum { K = 300, N = 70, E = 3 };
    Dim S = {1, graph_add_sym(c->g, "S", SYM_PLAIN, 40, 0, 0)},
        rows = {1, graph_add_sym(c->g, "R0", SYM_RAGGED, 40, E, 1)};
    Dim k = dim_n(K), n = dim_n(N);
    Value *w = case_input(c, "w", F32, DIMS(k, n));
    case_return(c, make(b, OP_MATMUL, INS(case_input(c, "few", F32, DIMS(dim_n(2), k)), w), 0), "y_few");
    case_return(c, make(b, OP_MATMUL, INS(case_input(c, "many", F32, DIMS(dim_n(29), k)), w), 0), "y_many");
    case_return(c, make(b, OP_MATMUL, INS(case_input(c, "some", F32, DIMS(S, k)), w), 0), "y_some");
    Value *dy = case_input(c, "dy", F32, DIMS(dim_n(29), n));
    case_return(c, make(b, OP_MATMUL, INS(dy, w), .tb = 1), "dx");
    case_return(c, make(b, OP_MATMUL_DW, INS(case_input(c, "many", F32, DIMS(dim_n(29), k)), dy), 0), "dw");
    Value *p = make(b, OP_PARAM, INS(NULL), .name = intern("p"), .dtype = F32, .dims = DIMS(k, n));
    case_return(c, make(b, OP_MATMUL, INS(case_input(c, "some", F32, DIMS(S, k)), p), 0), "y_laid");
    Value *x = case_input(c, "x", F32, DIMS(dim_n(40), k));
    Node *route =
        build(b, OP_ROUTE, INS(case_input(c, "choice", I32, DIMS(dim_n(40), dim_n(1)))), .experts = E, .sym = rows.sym);
    Value *offsets = &route->out[0], *sorted = make(b, OP_GATHER_ROWS, INS(x, &route->out[2]), 0);
    Value *up = make(b, OP_GROUPED_MATMUL, INS(sorted, case_input(c, "w1", F32, DIMS(dim_n(E), k, n)), offsets), 0);
    Value *gate = make(b, OP_GROUPED_MATMUL, INS(sorted, case_input(c, "w2", F32, DIMS(dim_n(E), k, n)), offsets), 0);
    Value *h = build_binary(b, OP_MUL, up, gate);
    case_return(c, make(b, OP_GROUPED_DW, INS(sorted, h, offsets), 0), "dw1");
}

// Panels that end inside a tile and keys that end inside a block; few queries; its gradient.
static void every_attention(Case *c) {
    enum { S = 70, H = 4, A = 24, V = 40 };
    Dim h = dim_n(H), hk = dim_n(2), a = dim_n(A), v = dim_n(V), s = dim_n(S);
    Value *k = case_input(c, "k", F32, DIMS(s, hk, a)), *values = case_input(c, "v", F32, DIMS(s, hk, v));
    Value *q = case_input(c, "q", F32, DIMS(s, h, a)), *o = case_input(c, "o", F32, DIMS(s, h, v)), *few = case_input(c, "few", F32, DIMS(dim_n(2), h, a));
    Node *all = build(&c->b, OP_ATTENTION, INS(q, k, values), .causal = 1, .scale = 0.2);
    case_return(c, node_out(all, 0), "y");
    case_return(c, node_out(all, 1), "y_lse");
    case_return(c, node_out(build(&c->b, OP_ATTENTION, INS(few, k, values), .causal = 1, .scale = 0.2), 0), "y_few");
    Node *back = build(&c->b, OP_ATTENTION_GRAD, INS(q, k, values, o, case_input(c, "lse", F32, DIMS(s, h)), case_input(c, "do", F32, DIMS(s, h, v))),
                       .causal = 1, .scale = 0.2);
    static const char *const names[] = {"dq", "dk", "dv"};
    for (int i = 0; i < 3; i++) case_return(c, node_out(back, i), names[i]);
}

static void bits_of(void (*every)(Case *c)) {
    const char *cpus[] = {"native", "avx2"};
    for (int i = 0; i < 2; i++) {
        Case c = case_new();
        every(&c);
        case_lay_out(&c);
        case_place(c.g);
        bool runs = case_runs(i ? "avx512" : cpus[i]); // where native code is avx2 itself once is enough
        int n = runs ? most_candidates(plan_text(&c, cpus[i])) : 0;
        for (int taken = 0; taken < n; taken++) {
            char text[32];
            snprintf(text, sizeof text, "choose:%d", taken);
            setenv("MOE_DEBUG", text, 1);
            int bad = case_compare_placed(&c, cpus[i], 37, 0);
            if (bad) print_message("%s, %s\n%s", cpus[i], text, plan_text(&c, cpus[i]));
            unsetenv("MOE_DEBUG");
            assert_int_equal(bad, 0);
        }
        assert_true(n > 4 || !runs);
        case_free(&c);
    }
    assert_int_equal(case_references, 0);
}

static void bits_are_the_same(void **state) { bits_of(every_product); }
static void bits_of_attention_are_the_same(void **state) { bits_of(every_attention); }

// ---- what is chosen ------------------------------------------------------------------------------------

static Machine machine_with(int vector_bytes, int rows, int vecs, MachineTileKind kind, double share) {
    Machine m = machine_guess(vector_bytes, 1);
    m.tile[m.n_tiles++] = (MachineTile){rows, vecs, kind, share * m.rates[0].fma};
    return m;
}

static const char *text_of(Case *c, const char *cpu, const char *form, const Machine *m, DType t, int64_t M, int64_t K, int64_t N) {
    *c = case_new();
    Value *x = case_input(c, "x", t, DIMS(dim_n(M), dim_n(K))), *w = case_input(c, "w", t, DIMS(dim_n(K), dim_n(N)));
    case_return(c, make(&c->b, OP_MATMUL, INS(x, w), 0), "y");
    case_place(c->g);
    case_machine = m;
    const char *text = dump_text(c, cpu, form);
    case_machine = NULL;
    return text;
}
static const char *plan_of(Case *c, const char *cpu, const Machine *m, DType t, int64_t M, int64_t K, int64_t N) {
    return text_of(c, cpu, "plan", m, t, M, K, N);
}

static void is_chosen(const char *cpu, const Machine *m, int64_t M, int64_t K, int64_t N, const char *what) {
    Case c;
    const char *text = plan_of(&c, cpu, m, F32, M, K, N), *at = strstr(text, "choose kernel 0 product ");
    if (!at || strncmp(at + 24, what, strlen(what))) fail_msg("not %s: %s", what, at ? at : text);
    case_free(&c);
}

static void rates_decide(void **state) {
    Machine m = machine_guess(64, 1), slow = machine_with(64, 14, 2, TILE_F32, 0.5),
            fast = machine_with(32, 4, 1, TILE_F32, 1.5);
    is_chosen("avx512", &m, 256, 512, 1024, "14x32:");
    is_chosen("avx512", &slow, 256, 512, 1024, "13x32:");
    is_chosen("avx2", &m, 256, 512, 1024, "6x16:"); // measured with other registers: typical rates
    is_chosen("avx2", &fast, 256, 512, 1024, "4x16:");
    is_chosen("avx512", &m, 256, 512, 8, "14x16:");  // no wider than the matrix
    is_chosen("avx512", &m, 16, 512, 1024, "8x32:"); // rows are shared out evenly
}

// Rows of A a multiple of 4 KiB apart meet in one set of the first cache: a tile that has more of them than a set has lines reads
// copies, however few the columns; lower tiles and other rows don't need them.
static void high_tiles_copy_rows_that_meet(void **state) {
    Machine high = machine_with(64, 14, 2, TILE_F32, 4.0), low = machine_with(64, 6, 1, TILE_F32, 4.0);
    const struct { const Machine *m; int64_t K; bool copies; } cases[] = {{&high, 1024, true}, {&high, 1040, false}, {&low, 1024, false}};
    for (int i = 0; i < 3; i++) {
        Case c;
        const char *text = text_of(&c, "avx512", "llvm", cases[i].m, F32, 256, cases[i].K, 64);
        assert_int_equal(strstr(text, "copy_rows") != NULL, cases[i].copies);
        case_free(&c);
    }
}

// Where storing decides: the matrix is packed once, rows that meet are copied by each of the tasks.
static void copies_are_predicted(void **state) {
    Machine m = machine_guess(64, 1);
    m.level[LEVEL_L2].write[0] = 1e6;
    double stored[2];
    for (int i = 0; i < 2; i++) {
        Case c;
        int64_t K = i ? 1024 : 1040;
        const char *at = strstr(plan_of(&c, "avx512", &m, F32, 256, K, 1024), "choose kernel 0 product ");
        assert_true(at && sscanf(at + 24, "%*[^:]: %lf", &stored[i]) == 1);
        assert_float_equal(stored[i], (1024 + (i ? 2 * 256 : 0)) * (double)K * 4 / 1e6 * 1e3, 20);
        case_free(&c);
    }
}

// Wide enough for memory, or as many as the threads need, and then as many for each.
static void tasks_are_wide_where_threads_are_few(void **state) {
    static const struct { int threads, columns, tasks; } cases[] = {{1, 1024, 2},  {2, 1024, 4}, {4, 1024, 8}, {8, 1024, 16},
                                                                    {64, 1024, 16}, {1, 3584, 7}, {2, 3584, 8}, {3, 3584, 9}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Machine m = machine_guess(64, 1);
        m.threads = cases[i].threads;
        Case c;
        int n = 0;
        const char *at = strstr(plan_of(&c, "avx512", &m, F32, 256, 1040, cases[i].columns), "  tasks ");
        assert_true(at && sscanf(at, "  tasks %d", &n) == 1);
        assert_int_equal(n, cases[i].tasks);
        case_free(&c);
    }
}

static const char *laid_plan(Case *c, const Machine *m, DType t) {
    *c = case_new();
    Dim S = {1, graph_add_sym(c->g, "S", SYM_PLAIN, 300, 0, 0)}, k = dim_n(256), n = dim_n(256);
    Value *w = make(&c->b, OP_PARAM, INS(NULL), .name = intern("w"), .dtype = t, .dims = DIMS(k, n));
    case_return(c, make(&c->b, OP_MATMUL, INS(case_input(c, "x", t, DIMS(S, k)), w), 0), "y");
    case_lay_out(c);
    case_place(c->g);
    case_machine = m;
    const char *text = plan_text(c, "avx2");
    case_machine = NULL;
    return text;
}

// As many panels at once as are fastest.
static void panels_side_by_side(void **state) {
    Machine wide = machine_with(32, 1, 4, TILE_BF16_WIDENED, 0.99), narrow = machine_with(32, 1, 2, TILE_BF16_WIDENED, 0.99);
    const Machine *machines[] = {&wide, &narrow};
    static const char *const chosen[] = {", side by side: 1x64", ", side by side: 1x32"};
    for (int i = 0; i < 2; i++) {
        Case c;
        const char *text = laid_plan(&c, machines[i], BF16);
        assert_non_null(strstr(text, chosen[i]));
        case_free(&c);
    }
}

static void few_rows_read_as_they_are_fastest(void **state) {
    Machine rows = machine_with(32, 2, 3, TILE_F32_ROWS, 0.99), panels = machine_with(32, 2, 3, TILE_F32, 4.0);
    rows.level[LEVEL_L2].write[0] = panels.level[LEVEL_L2].write[0] = 1e15; // nothing to leave panels
    is_chosen("avx2", &rows, 2, 256, 96, "2x16, rows as they lie: 2x48:");
    is_chosen("avx2", &panels, 2, 256, 96, "2x48:");
}

static Layout laid_out(const Machine *m, int64_t rows) {
    Case c = case_new();
    Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, rows, 0, 0)}, k = dim_n(256), n = dim_n(96);
    Value *x = case_input(&c, "x", F32, DIMS(S, k));
    Value *w = make(&c.b, OP_PARAM, INS(NULL), .name = intern("w"), .dtype = F32, .dims = DIMS(k, n));
    case_return(&c, make(&c.b, OP_MATMUL, INS(x, w), 0), "y");
    Arena *scratch = arena_create();
    Str told = {.arena = scratch};
    PassCtx cx = {.scratch = scratch, .diag = c.diag, .machine = m, .own_parameters = true, .layout = target_find("cpu")->layout, .cpu = "avx2", .weighed = &told};
    pass_layout(c.g, &cx);
    Layout l = (Layout)w->type.layout;
    assert_non_null(strstr(told.text, l == LAYOUT_P32 ? "layout w f32[256,96] P32: " : "layout w f32[256,96] rows: "));
    double best, other;                                    // what is told in this order decided
    assert_int_equal(sscanf(strchr(told.text, ':'), ": %lf ms | %*[^:]: %lf ms", &best, &other), 2);
    assert_true(best > 0 && best <= 1.02 * other);
    arena_destroy(scratch);
    case_free(&c);
    return l;
}

// A parameter lies as its readers are predicted to read it fastest: in panels where packing or panels' tiles win, in rows where
// few rows read rows faster; where memory limits both, in panels.
static void layouts_follow_rates(void **state) {
    Machine rows = machine_with(32, 1, 6, TILE_F32_ROWS, 0.99);
    rows.task = 0;                                         // panels are cut into more of them
    static const int widths[] = {1, 2, 4, 6};              // of a panel's half, of panels side by side
    for (int i = 0; i < 4; i++) rows.tile[rows.n_tiles++] = (MachineTile){1, widths[i], TILE_F32, 0.05 * rows.rates[0].fma};
    assert_int_equal(laid_out(&rows, 1), LAYOUT_ROWS);
    Machine slow = rows;
    slow.level[LEVEL_L2].read[0] = slow.level[LEVEL_L1].read[0] = 1e8;
    assert_int_equal(laid_out(&slow, 1), LAYOUT_P32);
    Machine panels = rows;
    panels.tile[1].rate = 0.9 * rows.rates[0].fma;
    assert_int_equal(laid_out(&panels, 1), LAYOUT_P32);
    assert_int_equal(laid_out(&panels, 300), LAYOUT_P32);
    Machine side_by_side = rows;
    side_by_side.tile[4].rate = 0.99 * rows.rates[0].fma;
    assert_int_equal(laid_out(&side_by_side, 1), LAYOUT_P32);
    rows.level[LEVEL_L2].write[0] = 1e15;                  // nothing to pack once for all of 300 rows, nor for one
    assert_int_equal(laid_out(&rows, 300), LAYOUT_ROWS);
}

static const char *attention_text(Case *c, const Machine *m) {
    *c = case_new();
    every_attention(c);
    case_place(c->g);
    case_machine = m;
    const char *text = plan_text(c, "avx2");
    case_machine = NULL;
    return text;
}

// Attention's tile is that with which scores, results and gradients are predicted to take least.
static void attention_follows_rates(void **state) {
    static const int rows[] = {4, 5};
    for (int i = 0; i < 2; i++) {
        Machine m = machine_with(32, rows[i], 1, TILE_F32, 1.5);
        Case c;
        const char *text = attention_text(&c, &m), *tile = i ? "5x16: " : "4x16: ", *kernel = text;
        for (int k = 0; k < 2; k++) {
            kernel = strstr(text, k ? " gradient " : " attention ");
            assert_non_null(kernel);
            assert_true(!strncmp(kernel + (k ? 10 : 11), tile, 6));
        }
        case_free(&c);
    }
}

// The formula: the longer of work and memory, and the tasks.
static void times_are_predicted(void **state) {
    Machine m = machine_guess(32, 1);
    m.level[LEVEL_DRAM].read[0] = m.level[LEVEL_L3].read[0] = 1e6; // so slow that bytes decide
    m.level[LEVEL_L1].size = m.level[LEVEL_L2].size = m.level[LEVEL_L3].size = 1 << 10;
    m.task = 0;
    Case c;
    const char *text = plan_of(&c, "avx2", &m, F32, 252, 512, 1024), *at = strstr(text, "6x16: ");
    assert_non_null(at);
    assert_float_equal(atof(at + 6), (252 * 512 + 512 * 1024 + 252 * 1024) * 4 / 1e6 * 1e3, 5);
    case_free(&c);
    m.task = 1;
    int tasks = 0;
    text = plan_of(&c, "avx2", &m, F32, 252, 512, 1024);
    assert_true(sscanf(strstr(text, "  tasks "), "  tasks %d", &tasks) == 1 && tasks > 1);
    assert_float_equal(atof(strstr(text, "6x16: ") + 6),
                       1e3 * tasks + (252 * 512 + 512 * 1024 + 252 * 1024) * 4 / 1e6 * 1e3, 20);
    case_free(&c);
}

// Instructions: dot products only where their tiles were measured to be clearly faster.
static void dots_are_chosen(void **state) {
    if (!case_runs("avx512bf16")) skip();
    for (int fast = 0; fast < 2; fast++) {
        Machine m = machine_with(64, 14, 2, TILE_BF16_DOT, fast ? 1.9 : 1.1);
        m.rates[0].bf16_dot = (fast ? 2.0 : 0.5) * m.rates[0].fma;
        Case c;
        const char *text = plan_of(&c, "native", &m, BF16, 256, 512, 1024);
        assert_non_null(strstr(text, fast ? "arithmetic bf16-dot" : "arithmetic f32-fma"));
        case_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rates_decide), cmocka_unit_test(high_tiles_copy_rows_that_meet), cmocka_unit_test(copies_are_predicted), cmocka_unit_test(tasks_are_wide_where_threads_are_few),
        cmocka_unit_test(few_rows_read_as_they_are_fastest), cmocka_unit_test(panels_side_by_side),
        cmocka_unit_test(layouts_follow_rates), cmocka_unit_test(times_are_predicted), cmocka_unit_test(dots_are_chosen), cmocka_unit_test(attention_follows_rates), cmocka_unit_test(bits_are_the_same),
        cmocka_unit_test(bits_of_attention_are_the_same)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
