// Contractions that gather rows, form pairs and apply epilogues: compiled and interpreted, the same bits as
// their meaning.  Shapes take every way through the kernels: short and long runs of rows, matrices read as
// they lie and packed, chains cut along k, columns that end inside a vector.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "passes/pass.h"
#include "tests/codegen/run_graph.h"

typedef struct { int gathers, epilogues, pairs; } Attached;

static Attached attach(Case *c) {
    Arena *scratch = arena_create();
    PassCtx cx = {.scratch = scratch, .diag = c->diag};
    pass_fuse(c->g, &cx);
    pass_attach(c->g, &cx);
    arena_destroy(scratch);
    if (!graph_check(c->g, c->diag)) diag_print(c->diag, stderr, false);
    assert_int_equal(diag_n_errors(c->diag), 0);
    Attached a = {0};
    for_each_node(c->g, n) {
        if (!op_is_contraction(n->op)) continue;
        a.gathers += (n->attr.gather & 1) + (n->attr.gather >> 1 & 1);
        a.epilogues += n->attr.epilogue != NULL;
        a.pairs += n->attr.pair != 0;
    }
    return a;
}

// interp and all machines with fma that run here.
static int compare(Case *c) {
    static const char *const cpus[] = {NULL, "avx512bf16", "avx512", "avx2"};
    int bad = 0;
    for (int i = 0; i < 4; i++)
        if (!cpus[i] || case_runs(cpus[i])) bad += case_compare(c, cpus[i], 1, 0);
    return bad;
}

static Value *number(Case *c, double x, DType t) { return build_const(&c->b, x, t); }

static Case leaves_case(int leaves, Dim *L) {
    Case c = case_new();
    *L = (Dim){1, graph_add_sym(c.g, "L", SYM_LEAF, leaves, 0, 0)};
    c.g->leaf = L->sym;
    return c;
}

// ---- matmul ---------------------------------------------------------------------------------------------

// Bias, relu, row scale, residual; the product itself is returned, too, if `kept`.
static void dense(DType t, int64_t rows, int64_t K, int64_t N, bool tb, bool kept) {
    Dim L;
    Case c = leaves_case(2, &L);
    Builder *b = &c.b;
    Dim M = dim_n(rows), k = dim_n(K), n = dim_n(N);
    Value *x = case_input(&c, "x", t, DIMS(L, M, k));
    Value *w = case_input(&c, "w", t, tb ? DIMS(n, k) : DIMS(k, n));
    Value *bias = case_input(&c, "bias", t, DIMS(n)), *scale = case_input(&c, "scale", t, DIMS(L, M, dim_n(1)));
    Value *more = case_input(&c, "more", t, DIMS(L, M, n));
    Value *y = make(b, OP_MATMUL, INS(x, w), .tb = tb);
    Value *z = build_binary(b, OP_MAX, build_binary(b, OP_ADD, y, bias), number(&c, 0, t));
    z = build_binary(b, OP_ADD, build_binary(b, OP_MUL, z, scale), more);
    case_return(&c, z, "z");
    if (kept) case_return(&c, y, "y");
    assert_int_equal(attach(&c).epilogues, 1);
    assert_int_equal(compare(&c), 0);
    case_free(&c);
}

static void test_epilogues(void **st) {
    (void)st;
    static const int64_t sizes[][3] = {{1, 8, 5},     {7, 40, 33},    {20, 16, 16},
                                       {150, 24, 70}, {61, 600, 300}, {130, 2100, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int form = 0; form < 4; form++)
            dense(form == 3 ? BF16 : F32, sizes[i][0], sizes[i][1], sizes[i][2], form & 1, form & 2);
}

// A mask and an i32 result: nothing of the product's type, so it gets a result of its own.
static void test_other_types(void **st) {
    (void)st;
    Dim L;
    Case c = leaves_case(3, &L);
    Builder *b = &c.b;
    Value *x = case_input(&c, "x", F32, DIMS(L, dim_n(6), dim_n(10)));
    Value *w = case_input(&c, "w", F32, DIMS(dim_n(10), dim_n(19)));
    Value *mask = case_input(&c, "mask", BOOL, DIMS(L, dim_n(6), dim_n(19)));
    Value *y = make(b, OP_MATMUL, INS(x, w), 0);
    Value *both = make(b, OP_AND, INS(make(b, OP_LT, INS(number(&c, 0, F32), y), 0), mask), 0);
    case_return(&c, both, "both");
    case_return(&c, make(b, OP_CAST, INS(both), .dtype = I32), "number");
    assert_int_equal(attach(&c).epilogues, 1);
    assert_int_equal(compare(&c), 0);
    case_free(&c);
}

// Two products of batches that meet.
static void test_pair_of_batches(void **st) {
    (void)st;
    Dim L;
    Case c = leaves_case(3, &L);
    Builder *b = &c.b;
    Value *x = case_input(&c, "x", F32, DIMS(L, dim_n(30), dim_n(12)));
    Value *w = case_input(&c, "w", F32, DIMS(L, dim_n(12), dim_n(20)));
    Value *v = case_input(&c, "v", F32, DIMS(L, dim_n(12), dim_n(20)));
    Value *y = make(b, OP_MATMUL, INS(x, w), 0), *z = make(b, OP_MATMUL, INS(x, v), 0);
    case_return(&c, build_binary(b, OP_MUL, build_unary(b, OP_TANH, y), z), "out");
    case_return(&c, z, "z");
    Attached a = attach(&c);
    assert_int_equal(a.epilogues, 1);
    assert_int_equal(a.pairs, 1);
    assert_int_equal(compare(&c), 0);
    case_free(&c);
}

// Rows by numbers of which some name no row: zeros.
static void test_gather(void **st) {
    (void)st;
    static const int64_t sizes[][3] = {{5, 9, 7}, {40, 64, 40}, {300, 33, 18}};
    for (int i = 0; i < 6; i++) {
        const int64_t *s = sizes[i / 2];
        DType t = i % 2 ? BF16 : F32;
        Dim L;
        Case c = leaves_case(2, &L);
        Builder *b = &c.b;
        Dim rows = dim_n(s[0]), k = dim_n(s[1]), n = dim_n(s[2]);
        Value *x = case_input(&c, "x", t, DIMS(L, dim_n(3), k));
        Value *v = case_input(&c, "v", t, DIMS(L, rows, n));
        Value *index = case_input(&c, "e", I32, DIMS(L, rows));      // -1 .. 7, and x has 6 rows
        Value *g = make(b, OP_GATHER_ROWS, INS(x, index), 0);
        case_return(&c, make(b, OP_MATMUL, INS(g, case_input(&c, "w", t, DIMS(k, n))), 0), "y");
        case_return(&c, make(b, OP_MATMUL_DW, INS(g, v), 0), "first");
        case_return(&c, make(b, OP_MATMUL_DW, INS(v, g), 0), "second");
        case_return(&c, make(b, OP_MATMUL_DW, INS(g, g), 0), "both");
        assert_int_equal(attach(&c).gathers, 5);
        assert_int_equal(compare(&c), 0);
        case_free(&c);
    }
}

// ---- experts --------------------------------------------------------------------------------------------

// Dispatch, SwiGLU, combine, and what backward makes of the rows.
static void experts(DType t, int leaves, int64_t tokens, int64_t D, int64_t H, bool tb, bool kept) {
    enum { E = 8, CHOICES = 2 };
    Dim L;
    Case c = leaves_case(leaves, &L);
    Builder *b = &c.b;
    Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, leaves * tokens * CHOICES, E, leaves);
    Dim T = dim_n(tokens), d = dim_n(D), h = dim_n(H), e = dim_n(E);
    Value *x = case_input(&c, "x", t, DIMS(L, T, d));
    Value *choice = case_input(&c, "e", I32, DIMS(L, T, dim_n(CHOICES)));
    Value *weight = case_input(&c, "weight", t, DIMS(L, T, dim_n(CHOICES), dim_n(1)));
    Node *route = build(b, OP_ROUTE, INS(choice), .experts = E, .sym = R);
    Value *offsets = node_out(route, 0), *slot = node_out(route, 2);
    Value *token = build_binary(b, OP_DIV, slot, number(&c, CHOICES, I32));
    Dims w = tb ? DIMS(e, h, d) : DIMS(e, d, h);
    Value *w1 = case_input(&c, "w1", t, w), *w3 = case_input(&c, "w3", t, w);
    Value *w2 = case_input(&c, "w2", t, DIMS(e, h, d));
    Value *rows = make(b, OP_GATHER_ROWS, INS(x, token), 0);
    Value *by = make(b, OP_GATHER_ROWS, INS(weight, slot), 0);
    Value *a = make(b, OP_GROUPED_MATMUL, INS(rows, w1, offsets), .tb = tb);
    Value *g = make(b, OP_GROUPED_MATMUL, INS(rows, w3, offsets), .tb = tb);
    Value *act = build_binary(b, OP_MUL, build_binary(b, OP_MUL, a, build_unary(b, OP_SIGMOID, a)), g);
    act = build_binary(b, OP_MUL, act, by);
    Value *y = make(b, OP_GROUPED_MATMUL, INS(act, w2, offsets), 0);
    case_return(&c, make(b, OP_SCATTER_ADD_ROWS, INS(y, token), .dims = DIMS(L, T, d)), "out");
    case_return(&c, make(b, OP_GROUPED_DW, INS(rows, act, offsets), 0), "dw1");
    case_return(&c, make(b, OP_GROUPED_DW, INS(act, rows, offsets), 0), "dw2");
    if (kept) {
        case_return(&c, make(b, OP_GROUPED_SUM, INS(a, offsets), 0), "a");
        case_return(&c, make(b, OP_GROUPED_SUM, INS(g, offsets), 0), "g");
    }
    Attached at = attach(&c);
    assert_int_equal(at.pairs, 1);
    assert_int_equal(at.gathers, 3);
    assert_int_equal(compare(&c), 0);
    case_free(&c);
}

static void test_experts(void **st) {
    (void)st;
    experts(F32, 1, 3, 8, 5, false, false);
    experts(F32, 2, 37, 40, 33, true, true);
    experts(F32, 3, 700, 32, 48, false, true);        // some 500 rows of an expert: packed
    experts(F32, 3, 700, 64, 70, true, false);
    experts(BF16, 2, 300, 24, 40, true, true);
    experts(BF16, 2, 20, 24, 18, false, false);
    experts(F32, 2, 130, 700, 200, false, true);      // matrices of 560 KB: short runs cut k
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_epilogues), cmocka_unit_test(test_other_types),
                                       cmocka_unit_test(test_pair_of_batches), cmocka_unit_test(test_gather),
                                       cmocka_unit_test(test_experts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
