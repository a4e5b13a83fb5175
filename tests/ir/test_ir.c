// The graph itself: text form both ways, copies, the verifier's refusals, and what the evaluator says of sums
// and sizes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/build.h"
#include "ir/eval.h"
#include "ir/ir.h"

// ---- helpers --------------------------------------------------------------------------------------------

static char *read_file(Arena *a, const char *name, size_t *n) {
    char path[512];
    snprintf(path, sizeof path, "%s/tests/ir/%s", MOEC_SOURCE_DIR, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = arena_alloc(a, 1 << 20);
    *n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    return text;
}

static Graph *parse(Arena *a, Diag *d, const char *text) {
    int n;
    Graph **g = graphs_parse(a, d, diag_add_file(d, "test.ir", text, strlen(text)), &n);
    return g ? g[0] : NULL;
}

static Graph *parse_file(Arena *a, Diag *d, const char *name) {
    size_t n;
    Graph *g = parse(a, d, read_file(a, name, &n));
    if (!g) diag_print(d, stderr, false);
    assert_non_null(g);
    return g;
}

static const char *print(Arena *a, const Graph *g, PrintOpts opts) {
    Str s = {.arena = a};
    graph_print(g, &s, opts);
    return s.text;
}

// The messages of d as one text.
static char *messages(Diag *d) {
    static char text[4096];
    FILE *f = fmemopen(text, sizeof text, "w");
    diag_print(d, f, false);
    fclose(f);
    return text;
}

static void expect_message(Diag *d, const char *part) {
    char *text = messages(d);
    if (!strstr(text, part)) fail_msg("expected '%s' in:\n%s", part, text);
    diag_clear(d);
}

#define WITH_ARENA                    \
    (void)state;                      \
    Arena *a = arena_create();        \
    Diag *d = diag_new(a)

// ---- text -----------------------------------------------------------------------------------------------

// What print writes, parse reads back to a graph that prints alike; with names, spans, and as a copy.
static void text_round_trips(void **state) {
    static const char *const file[] = {"tiny.ir", "regions.ir", "planned.ir", "layers.ir"};
    WITH_ARENA;
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        Graph *g = parse_file(a, d, file[i]);
        if (!graph_check(g, d)) fail_msg("%s", messages(d));
        for (int opts = 0; opts < 4; opts++) {
            PrintOpts o = {.names = opts & 1, .spans = opts & 2};
            const char *once = print(a, g, o);
            Graph *again = parse(a, d, once);
            if (!again) fail_msg("%s: %s\n%s", file[i], messages(d), once);
            assert_string_equal(once, print(a, again, o));
            if (!graph_check(again, d)) fail_msg("%s: %s", file[i], messages(d));
            assert_true(graph_hash(g) == graph_hash(again));
        }
    }
    arena_destroy(a);
}

static void copies_stand_alone(void **state) {
    WITH_ARENA;
    Arena *other = arena_create();
    Graph *g = parse_file(other, d, "regions.ir"), *copy = graph_copy(a, g);
    char *text = arena_strdup(a, print(a, g, (PrintOpts){.spans = true}));
    arena_destroy(other);                       // anything still shared is gone now
    assert_string_equal(text, print(a, copy, (PrintOpts){.spans = true}));
    if (!graph_check(copy, d)) fail_msg("%s", messages(d));
    arena_destroy(a);
}

static void equal_layers_fold(void **state) {
    WITH_ARENA;
    const char *text = print(a, parse_file(a, d, "layers.ir"), (PrintOpts){.fold = true});
    assert_non_null(strstr(text, "// layers.1: 3 nodes as layers.0"));
    assert_null(strstr(text, "layers.1.w"));
    assert_non_null(strstr(text, "layers.2.w"));        // exp, not tanh
    arena_destroy(a);
}

// Doubles, floats, infinities and negative zero come back as they were.
static void reals_keep_all_digits(void **state) {
    static const double value[] = {0.1, 1.0 / 3, -0.0, 1e-300, 3.4028234663852886e38, 0.30000001192092896};
    WITH_ARENA;
    for (size_t i = 0; i < sizeof value / sizeof *value; i++) {
        Graph *g = graph_new(a, "g");
        Builder b = builder_end(g, d);
        build_const(&b, value[i], F32);
        Graph *again = parse(a, d, print(a, g, (PrintOpts){0}));
        assert_non_null(again);
        assert_memory_equal(&again->first->attr.value, &value[i], sizeof value[i]);
    }
    arena_destroy(a);
}

// ---- refusals -------------------------------------------------------------------------------------------

static void refuses(const char *nodes, const char *message) {
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    const char *text = arena_printf(a,
        "graph @g {\n leaves L = 4\n rows S <= 8\n rows R <= 16 by 2 leaves 4\n"
        " %%x = input {name = \"x\"} : f32[L,6,8]\n %%i = input {name = \"i\"} : i32[L,6]\n%s\n}\n", nodes);
    Graph *g = parse(a, d, text);
    if (g && graph_check(g, d)) fail_msg("accepted: %s", nodes);
    expect_message(d, message);
    arena_destroy(a);
}

static void mistakes_are_told(void **state) {
    (void)state;
    refuses(" %y = add %x, %i : f32[L,6,8]", "operands 'a' and 'b' of add must have the same element type");
    refuses(" %y = add %x : f32[L,6,8]", "add takes 2 operands, not 1");
    refuses(" %y = exp %i : i32[L,6]", "operand 'x' of exp must be float, but is i32[L,6]");
    refuses(" %w = param {name = \"w\"} : f32[7]\n %y = add %x, %w : f32[L,6,8]",
            "axis 1 from the right is 8 in one and 7");
    refuses(" %y = tanh %x : f32[L,8,6]", "is f32[L,6,8] by its operands, but f32[L,8,6] is written");
    refuses(" %y = reshape %x : f32[L,7,7]", "changes the number of elements");
    refuses(" %y = reshape %x : f32[192]", "changes the number of elements");
    refuses(" %y = permute %x {perm = [0, 1, 1]} : f32[L,6,8]", "must name each of its 3 axes once");
    refuses(" %y = slice %x {axis = 2, begin = 4, end = 9} : f32[L,6,5]",
            "takes 4..9 of axis 2, which has 8");
    refuses(" %y = slice %x {axis = 0, begin = 0, end = 1} : f32[1,6,8]", "needs an axis of constant size");
    refuses(" %y = concat %x, %i {axis = 1} : f32[L,12,8]", "all other axes must be equal");
    refuses(" %y = sum %x {axes = [3]} : f32[L,6,8]", "sum works along axis 3, but f32[L,6,8] has 3 axes");
    refuses(" %y = sum %x {axes = [1, 0]} : f32[1,1,8]", "must ascend");
    refuses(" %y = broadcast %x : f32[L,6,16]", "only axes of size 1 stretch");
    refuses(" loss %x {name = \"ce\"}", "loss 'ce' must be one number per leaf, but is f32[L,6,8]");
    refuses(" %y = param {name = \"w\", init = \"ones\"} : f32[2]", "init of 'w' is 'ones'");
    refuses(" yield %x", "a yield ends a region");
    refuses(" %y = tanhh %x : f32[L,6,8]", "there is no op tanhh");
    refuses(" %y = tanhh %x : f32[L,6,8]", "did you mean 'tanh'?");
    refuses(" %y = tanh %q : f32[L,6,8]", "not defined before: %q");
    refuses(" %x = tanh %x : f32[L,6,8]", "defined twice: %x");
    refuses(" %y = sum %x {axis = [1]} : f32[L,6,8]", "expected a whole number");
    refuses(" %y = sum %x {axess = [1]} : f32[L,6,8]", "no attribute is called axess");
    refuses(" %y = tanh %x : f32[M,6,8]", "there is no row symbol M");
    refuses(" %y = const {data = data(12)} : f32[99]", "data section is missing");
    refuses(" %y = const {data = [1, 2]} : f32[3]", "does not fit its type");
    refuses(" %y = tanh %x : f32[L,6,8", "expected ]");
    refuses(" %y = fused %x body { %a = arg {k = 1} : f32[L,6,8]\n yield %a\n } : f32[L,6,8]",
            "arg 1 in the region of fused");
    const char *product = " %w = param {name = \"w\"} : f32[8,5]\n";
    static const char *const attached[][2] = {
        {" %y = matmul %x, %w, %i : f32[L,6,5]", "matmul with these attachments takes 2 operands, not 3"},
        {" %y = matmul %x, %w {gather = 1} : f32[L,6,5]", "takes 3 operands, not 2"},
        {" %y = matmul %x, %w, %x {gather = 1} : f32[L,6,5]", "gathers rows by i32 numbers"},
        {" %y = matmul %x, %w, %i {gather = 2} : f32[L,6,5]", "can't gather these rows"},
        {" %y = matmul %x, %w, %w {pair = 1} : f32[L,6,5]", "two right-hand sides alike and an epilogue"},
        {" %y = matmul %x, %w epilogue { %a = arg {k = 0} : f32[L,6,8]\n yield %a\n } : f32[L,6,8]",
         "arg 0 in the epilogue of matmul is f32[L,6,8], but stands for f32[L,6,5]"},
        {" %y = matmul %x, %w epilogue { %a = arg {k = 1} : f32[L,6,5]\n yield %a\n } : f32[L,6,5]",
         "stands for nothing"},
        {" %y = matmul %x, %w epilogue { %a = arg {k = 0} : f32[L,6,5]\n %s = sum %a {axes = [2]} : f32[L,6,1]\n"
         " yield %s\n } : f32[L,6,1]", "must have the dimensions of f32[L,6,5]"}};
    for (size_t i = 0; i < sizeof attached / sizeof attached[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "%s%s", product, attached[i][0]);
        refuses(text, attached[i][1]);
    }
}

// Errors of nodes built from C are told by the same rules, and give NULL.
static void builder_reports(void **state) {
    WITH_ARENA;
    Graph *g = graph_new(a, "g");
    Builder b = builder_end(g, d);
    Value *x =
        make(&b, OP_INPUT, NULL, .name = intern("x"), .dtype = F32, .dims = {2, {{2, NULL}, {3, NULL}}});
    assert_null(make(&b, OP_AND, INS(x, x), 0));
    expect_message(d, "operand 'a' of and must be bool, but is f32[2,3]");
    assert_int_equal(x->n_uses, 0);
    assert_int_equal(g->n_nodes, 1);
    arena_destroy(a);
}

// The verifier finds what passes may break.
static void verifier_finds_damage(void **state) {
    WITH_ARENA;
    Graph *g = parse_file(a, d, "layers.ir");
    Node *last = g->last->prev;
    last->out[0].n_uses++;
    assert_false(graph_check(g, d));
    expect_message(d, "counts its readers wrong");
    last->out[0].n_uses--;
    Value *operand = last->in[0];
    replace_operand(last, 0, &last->out[0]);
    assert_false(graph_check(g, d));
    expect_message(d, "made later");
    replace_operand(last, 0, operand);
    last->out[0].type.dtype = BF16;
    assert_false(graph_check(g, d));
    expect_message(d, "by its operands");
    last->out[0].type.dtype = F32;
    g->stage = PLANNED;
    assert_false(graph_check(g, d));
    expect_message(d, "no place in memory");
    arena_destroy(a);
}

static void edits_keep_counts(void **state) {
    WITH_ARENA;
    Graph *g = parse_file(a, d, "layers.ir");
    Node *tanh0 = g->first;
    while (tanh0->op != OP_TANH) tanh0 = tanh0->next;
    Builder b = builder_after(g, tanh0);
    Value *other = build_unary(&b, OP_SIGMOID, tanh0->in[0]);
    assert_string_equal(other->node->path, "layers.0.act");
    replace_all_uses(g, &tanh0->out[0], other);
    assert_int_equal(tanh0->out[0].n_uses, 0);
    graph_remove(tanh0);
    if (!graph_check(g, d)) fail_msg("%s", messages(d));
    graph_recount(g);
    if (!graph_check(g, d)) fail_msg("%s", messages(d));
    arena_destroy(a);
}

// ---- evaluation -----------------------------------------------------------------------------------------

// Values that differ from element to element and don't add exactly.
static float element(int64_t i) { return (float)sin((double)i * 12.9898) * (1 + (float)(i % 7)); }

static bool fill(void *self, const Node *n, Tensor *t) {
    (void)self, (void)n;
    int64_t count = 1;
    for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
    for (int64_t i = 0; i < count; i++) {
        if (t->dtype == F32) ((float *)t->data)[i] = element(i);
        else if (t->dtype == F64) ((double *)t->data)[i] = element(i);
        else if (t->dtype == I32) ((int32_t *)t->data)[i] = (int32_t)i;
        else ((uint8_t *)t->data)[i] = i % 2;
    }
    return true;
}

static Eval *run(Arena *a, Diag *d, const Graph *g, bool f64) {
    Eval *e = eval_graph(a, g, &(EvalOpts){.source = fill, .f64 = f64}, d);
    if (!e) fail_msg("%s", messages(d));
    return e;
}

// What node `back` before the last reads.
static const Tensor *last_read(const Eval *e, const Graph *g, int back) {
    const Node *n = g->last;
    while (back--) n = n->prev;
    return eval_value(e, n->in[0]);
}

static const Tensor *eval_text(Arena *a, Diag *d, const char *text, bool f64) {
    Graph *g = parse(a, d, text);
    if (!g) fail_msg("%s", messages(d));
    if (!graph_check(g, d)) fail_msg("%s", messages(d));
    return last_read(run(a, d, g, f64), g, 0);
}

static float lanes(const float *x, int n) {
    float lane[16] = {0};
    for (int i = 0; i < n; i++) lane[i % 16] += x[i];
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

static float chunks(const float *x, int n, int stride) {        // up to 192 rows: 64 + 64 + the rest
    float part[3] = {0};
    for (int i = 0; i < n; i++) part[i / 64] += x[i * stride];
    return n <= 64 ? part[0] : n <= 128 ? part[0] + part[1] : (part[0] + part[1]) + part[2];
}

static float leaf_tree(const float *x) { return (x[0] + x[1]) + x[2]; }     // 3 leaves

// sum of x over axes, x filled with element(i).
static const Tensor *sum_of(Arena *a, Diag *d, const char *x, const char *axes, const char *y) {
    const char *text = arena_printf(a, "graph @g { leaves L = 3\n %%x = input {name = \"x\"} : %s\n"
        "%%y = sum %%x {axes = %s} : %s\n return %%y {name = \"y\"} }", x, axes, y);
    return eval_text(a, d, text, false);
}

// The orders of sums that compiled code has to keep, bit for bit (ir/README.md).
static void sums_keep_their_order(void **state) {
    WITH_ARENA;
    enum { ROWS = 150, COLS = 20, LEAF = ROWS * COLS };
    static float x[3 * LEAF];
    for (int i = 0; i < 3 * LEAF; i++) x[i] = element(i);

    const float *y = sum_of(a, d, "f32[L,150,20]", "[2]", "f32[L,150,1]")->data;
    for (int r = 0; r < 3 * ROWS; r++) assert_true(y[r] == lanes(x + COLS * r, COLS));

    y = sum_of(a, d, "f32[L,150,20]", "[1]", "f32[L,1,20]")->data;
    for (int l = 0; l < 3; l++)
        for (int c = 0; c < COLS; c++) assert_true(y[l * COLS + c] == chunks(x + l * LEAF + c, ROWS, COLS));

    float leaf[3];
    y = sum_of(a, d, "f32[L,150,20]", "[0, 1]", "f32[1,1,20]")->data;
    for (int c = 0; c < COLS; c++) {
        for (int l = 0; l < 3; l++) leaf[l] = chunks(x + l * LEAF + c, ROWS, COLS);
        assert_true(y[c] == leaf_tree(leaf));
    }
    assert_memory_equal(sum_of(a, d, "f32[150*L,20]", "[0]", "f32[1,20]")->data, y, COLS * sizeof(float));

    y = sum_of(a, d, "f32[L,150,20]", "[0, 1, 2]", "f32[1,1,1]")->data;
    float row[3 * ROWS];
    for (int r = 0; r < 3 * ROWS; r++) row[r] = lanes(x + COLS * r, COLS);
    for (int l = 0; l < 3; l++) leaf[l] = chunks(row + ROWS * l, ROWS, 1);
    assert_true(y[0] == leaf_tree(leaf));

    y = sum_of(a, d, "f32[3000*L]", "[0]", "f32[1]")->data;
    for (int l = 0; l < 3; l++) leaf[l] = lanes(x + LEAF * l, LEAF);
    assert_true(y[0] == leaf_tree(leaf));

    y = sum_of(a, d, "f32[L]", "[0]", "f32[1]")->data;
    assert_true(y[0] == leaf_tree(x));

    const int32_t *k = sum_of(a, d, "i32[L,5,3]", "[0, 2]", "i32[1,5,1]")->data;
    assert_int_equal(k[1], 3 + 4 + 5 + 18 + 19 + 20 + 33 + 34 + 35);
    arena_destroy(a);
}

static void broadcasting_by_hand(void **state) {
    WITH_ARENA;
    const Tensor *t =
        eval_text(a, d,
                  "graph @g { %a = const {data = [1, 2]} : f32[2,1] %b = const {data = [10, 20, 30]} : f32[3]"
                  " %y = sub %a, %b : f32[2,3] return %y {name = \"y\"} }",
                  false);
    const float want[] = {-9, -19, -29, -8, -18, -28};
    assert_memory_equal(t->data, want, sizeof want);
    t = eval_text(
        a, d,
        "graph @g { %a = const {data = [-7, 7, -7, 5]} : i32[4] %b = const {data = [2, -2, -2, 0]} : i32[4]"
        " %q = div %a, %b : i32[4] %m = mod %a, %b : i32[4] %c = concat %q, %m {axis = 0} : i32[8] return %c "
        "{name = \"y\"} }",
        false);
    const int32_t ints[] = {-4, -4, 3, 0, 1, -1, -1, 5};
    assert_memory_equal(t->data, ints, sizeof ints);
    t = eval_text(
        a, d,
        "graph @g { %a = const {data = [1, 2, 3, 4, 5, 6]} : f32[2,3] %p = permute %a {perm = [1, 0]} : "
        "f32[3,2]"
        " %s = slice %p {axis = 0, begin = 1, end = 3} : f32[2,2] %u = unslice %s {axis = 1, begin = 1, n = "
        "3} : f32[2,3]"
        " %c = cumsum %u {axis = 1, reverse = 1, exclusive = 1} : f32[2,3] return %c {name = \"y\"} }",
        false);
    const float sums[] = {7, 5, 0, 9, 6, 0};
    assert_memory_equal(t->data, sums, sizeof sums);
    arena_destroy(a);
}

// Storage precision shows where a node's type says so, half to even; in double nothing is rounded.
static void storage_is_rounded(void **state) {
    WITH_ARENA;
    const char *text =
        "graph @g { %%a = const {data = [1.00390625, 1.01171875, 65519, 65520, 1e-8, 3.1e-8]} : f32[6]"
        " %%b = cast %%a : %s[6] %%y = cast %%b : f32[6] return %%y {name = \"y\"} }";
    const Tensor *t = eval_text(a, d, arena_printf(a, text, "bf16"), false);
    assert_true(((float *)t->data)[0] == 1.0f && ((float *)t->data)[1] == 1.015625f &&
                ((float *)t->data)[2] == 65536);
    t = eval_text(a, d, arena_printf(a, text, "f16"), false);
    const float half[] = {1.00390625f, 1.01171875f, 65504, INFINITY, 0, 0x1p-24f};
    assert_memory_equal(t->data, half, sizeof half);
    t = eval_text(a, d, arena_printf(a, text, "bf16"), true);
    assert_true(t->dtype == F64 && ((double *)t->data)[0] == 1.00390625);
    arena_destroy(a);
}

// A route inside a gate sets the size of rows outside it.
static void gates_define_rows(void **state) {
    WITH_ARENA;
    Graph *g = parse_file(a, d, "regions.ir");
    Eval *e = run(a, d, g, false);
    const Tensor *rows = last_read(e, g, 0);
    assert_int_equal(rows->dim[0], 16);             // 2 leaves of 4 tokens, 2 choices each
    for (int i = 1; i < 16; i++) assert_true(((int32_t *)rows->data)[i - 1] <= ((int32_t *)rows->data)[i]);
    const Tensor *norm = last_read(e, g, 1);
    float want[3] = {element(0) * element(0), element(1) * element(1), element(2) * element(2)};
    assert_true(((float *)norm->data)[0] == lanes(want, 3));
    arena_destroy(a);
}

static bool fill_route(void *self, const Node *n, Tensor *t) {
    (void)self, (void)n;
    static const int32_t choice[] = {0, -1, 1, -1, -1, 1};
    memcpy(t->data, choice, sizeof choice);
    return true;
}

// Choices of nobody have no rows: the ragged size is what is left.
static void dropped_choices_have_no_rows(void **state) {
    WITH_ARENA;
    Graph *g =
        parse(a, d,
              "graph @g { leaves L = 2\n rows R <= 6 by 2 leaves 2\n %e = input {name = \"e\"} : i32[L,3,1]"
              " %o, %r, %s = route %e {experts = 2, sym = R} : i32[5], i32[L,3,1], i32[R]"
              " %f = cast %s : f32[R] return %f {name = \"f\"} return %o {name = \"o\"} }");
    assert_non_null(g);
    Eval *e = eval_graph(a, g, &(EvalOpts){.source = fill_route}, d);
    assert_non_null(e);
    const int32_t offsets[] = {0, 1, 1, 2, 3};
    const float slots[] = {0, 2, 5};
    assert_memory_equal(last_read(e, g, 0)->data, offsets, sizeof offsets);
    assert_int_equal(last_read(e, g, 1)->dim[0], 3);
    assert_memory_equal(last_read(e, g, 1)->data, slots, sizeof slots);
    arena_destroy(a);
}

static int64_t three_of_five(void *self, const Sym *s) {
    (void)self;
    return !strcmp(s->name, "S") ? 3 : 5;
}

// Rows of inference have the size the caller says.
static void plain_rows_are_set_by_the_caller(void **state) {
    WITH_ARENA;
    Graph *g = parse_file(a, d, "planned.ir");
    Eval *e = eval_graph(a, g, &(EvalOpts){.source = fill, .sym_value = three_of_five}, d);
    assert_non_null(e);
    const Tensor *y = last_read(e, g, 1);
    assert_int_equal(y->dim[1], 5);
    arena_destroy(a);
}

// Folded in double, rounded once.
static void constants_fold(void **state) {
    WITH_ARENA;
    Graph *g = parse(
        a, d,
        "graph @g { %i = iota {axis = 0} : i32[4] %f = cast %i : f32[4] %k = const {value = 0.1} : f32[]"
        " %m = mul %f, %k : f32[4] %c = cos %m : f32[4] %x = input {name = \"x\"} : f32[4] %y = mul %c, %x : "
        "f32[4]"
        " return %c {name = \"c\"} return %y {name = \"y\"} }");
    assert_non_null(g);
    const Tensor *t = eval_constant(a, g->last->prev->in[0]->node);
    assert_non_null(t);
    assert_int_equal(t->dtype, F32);
    for (int i = 0; i < 4; i++) assert_true(((float *)t->data)[i] == (float)cos(i * 0.1));
    assert_null(eval_constant(a, g->last->in[0]->node));
    arena_destroy(a);
}

// The gradient of a broadcast, over missing axes and the leaf axis.
static void sum_to_undoes_broadcast(void **state) {
    WITH_ARENA;
    Graph *g = graph_new(a, "g");
    Sym *leaf = graph_add_sym(g, "L", SYM_LEAF, 4, 0, 0);
    Builder b = builder_end(g, d);
    Value *x = make(&b, OP_INPUT, NULL, .name = intern("x"), .dtype = F32,
                    .dims = {3, {{1, leaf}, {6, NULL}, {8, NULL}}});
    Type to = type_make(F32, 2, (Dim[]){{1, NULL}, {8, NULL}});
    Value *y = build_sum_to(&b, x, &to);
    assert_true(type_eq(&y->type, &to));
    assert_int_equal(y->node->op, OP_RESHAPE);
    const Node *sum = y->node->in[0]->node;
    assert_int_equal(sum->op, OP_SUM);
    assert_int_equal(sum->attr.leaves, 4);
    assert_int_equal(sum->attr.axes.n, 2);
    assert_ptr_equal(build_sum_to(&b, x, &x->type), x);
    arena_destroy(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_round_trips),
        cmocka_unit_test(copies_stand_alone),
        cmocka_unit_test(equal_layers_fold),
        cmocka_unit_test(reals_keep_all_digits),
        cmocka_unit_test(mistakes_are_told),
        cmocka_unit_test(builder_reports),
        cmocka_unit_test(verifier_finds_damage),
        cmocka_unit_test(edits_keep_counts),
        cmocka_unit_test(sums_keep_their_order),
        cmocka_unit_test(broadcasting_by_hand),
        cmocka_unit_test(storage_is_rounded),
        cmocka_unit_test(gates_define_rows),
        cmocka_unit_test(dropped_choices_have_no_rows),
        cmocka_unit_test(plain_rows_are_set_by_the_caller),
        cmocka_unit_test(constants_fold),
        cmocka_unit_test(sum_to_undoes_broadcast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
