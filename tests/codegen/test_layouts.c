// Matrices in panels: compiled for all machines, the bits of their meaning, which knows no layouts.  Names with p:
// positive numbers, whose sums machines without fma get nearly right, too.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/codegen/run_graph.h"

static Value *param(Case *c, const char *name, DType t, Dims dims) {
    return make(&c->b, OP_PARAM, INS(NULL), .name = intern(name), .dtype = t, .dims = dims);
}

// How many parameters lie in panels.
static int lay_out(Case *c) {
    case_lay_out(c);
    if (!graph_check(c->g, c->diag)) diag_print(c->diag, stderr, false);
    assert_int_equal(diag_n_errors(c->diag), 0);
    int n_laid = 0;
    for_each_node(c->g, n) n_laid += n->op == OP_PARAM && n->out[0].type.layout != LAYOUT_ROWS;
    return n_laid;
}

static int compare(Case *c, int64_t rows) {
    static const char *const cpus[] = {"native", "avx512bf16", "avx512", "avx2", "sse2"};
    int bad = 0;
    for (int i = 0; i < 5; i++)
        if (case_runs(cpus[i])) bad += case_compare(c, cpus[i], rows, i < 4 ? 0 : 2e-5);
    return bad;
}

static void dense(DType t, int64_t bound, int64_t rows, int64_t K, int64_t N, bool tb) {
    Case c = case_new();
    Builder *b = &c.b;
    Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, bound, 0, 0)}, k = dim_n(K), n = dim_n(N);
    Value *x = case_input(&c, "px", t, DIMS(S, k));
    Value *w = param(&c, "pw", t, tb ? DIMS(n, k) : DIMS(k, n)), *bias = case_input(&c, "pbias", t, DIMS(n));
    Value *y = make(b, OP_MATMUL, INS(x, w), .tb = tb);
    case_return(&c, build_binary(b, OP_ADD, y, bias), "y");
    assert_int_equal(lay_out(&c), 1);
    int bad = compare(&c, rows);
    if (bad) print_message("%s, %lld rows, K %lld, N %lld, tb %d\n", dtype_name(t), (long long)rows, (long long)K, (long long)N, tb);
    assert_int_equal(bad, 0);
    case_free(&c);
}

static void test_matmul(void **st) {
    (void)st;
    static const int64_t sizes[][4] = {{512, 1, 64, 64}, {512, 1, 33, 8},   {16, 3, 1, 33},   {512, 14, 7, 16},
                                       {512, 13, 40, 17}, {512, 300, 65, 70}, {512, 29, 128, 5}, {512, 27, 2100, 96},
                                       {512, 1, 1024, 230}, {512, 2, 1023, 128}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int form = 0; form < 4; form++) {
            if ((form & 2) && sizes[i][2] > 2000) continue;
            dense(form & 2 ? BF16 : F32, sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], form & 1);
        }
}

// The table of an embedding that is the head, too.
static void test_tied(void **st) {
    (void)st;
    for (int i = 0; i < 4; i++) {
        DType t = i & 1 ? BF16 : F32;
        int64_t D = i & 2 ? 37 : 48;
        Case c = case_new();
        Builder *b = &c.b;
        Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, 9, 0, 0)};
        Value *w = param(&c, "pw", t, DIMS(dim_n(7), dim_n(D)));              // ids 7 and -1 name no row
        Value *x = make(b, OP_GATHER_ROWS, INS(w, case_input(&c, "e", I32, DIMS(S))), 0);
        case_return(&c, x, "x");
        case_return(&c, make(b, OP_MATMUL, INS(build_unary(b, OP_ABS, x), w), .tb = 1), "y");
        assert_int_equal(lay_out(&c), 1);
        assert_int_equal(compare(&c, 9), 0);
        case_free(&c);
    }
}

// Dispatch, a pair, combine: a matrix of each expert.
static void experts(DType t, int64_t bound, int64_t tokens, int64_t D, int64_t H, bool tb) {
    enum { E = 4, CHOICES = 2 };
    Case c = case_new();
    Builder *b = &c.b;
    Dim S = {1, graph_add_sym(c.g, "S", SYM_PLAIN, bound, 0, 0)};
    Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, bound * CHOICES, E, 1);
    Dim d = dim_n(D), h = dim_n(H), e = dim_n(E);
    Value *x = case_input(&c, "px", t, DIMS(S, d)), *any = case_input(&c, "e", I32, DIMS(S, dim_n(CHOICES)));
    Value *choice = build_binary(b, OP_MOD, any, build_const(b, E, I32));
    Node *route = build(b, OP_ROUTE, INS(choice), .experts = E, .sym = R);
    Value *offsets = node_out(route, 0), *slot = node_out(route, 2);
    Value *token = build_binary(b, OP_DIV, slot, build_const(b, CHOICES, I32));
    Dims up = tb ? DIMS(e, h, d) : DIMS(e, d, h);
    Value *rows = make(b, OP_GATHER_ROWS, INS(x, token), 0);
    Value *a = make(b, OP_GROUPED_MATMUL, INS(rows, param(&c, "pw1", t, up), offsets), .tb = tb);
    Value *g = make(b, OP_GROUPED_MATMUL, INS(rows, param(&c, "pw3", t, up), offsets), .tb = tb);
    Value *act = build_binary(b, OP_MUL, build_unary(b, OP_TANH, a), g);
    Value *y = make(b, OP_GROUPED_MATMUL, INS(act, param(&c, "pw2", t, tb ? DIMS(e, d, h) : DIMS(e, h, d)), offsets), .tb = tb);
    case_return(&c, make(b, OP_SCATTER_ADD_ROWS, INS(y, token), .dims = DIMS(S, d)), "out");
    assert_int_equal(lay_out(&c), 3);
    assert_int_equal(compare(&c, tokens), 0);
    case_free(&c);
}

static void test_experts(void **st) {
    (void)st;
    for (int i = 0; i < 4; i++) {
        DType t = i & 1 ? BF16 : F32;
        experts(t, 256, 1, 33, 65, i & 2);
        experts(t, 256, 31, 40, 24, i & 2);
        experts(t, 6, 5, 64, 96, i & 2);
        experts(t, 256, 1, 1040, 224, i & 2);          // one row through all of k, panels side by side
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_matmul), cmocka_unit_test(test_tied), cmocka_unit_test(test_experts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
