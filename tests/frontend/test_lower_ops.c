// Operations of the language on tensors made by hand: types of results, messages, and values by the graph's
// meaning. Two leaves; B = 2, S = 4.  Every source element i (over all leaves) holds a number of its index.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/interp.h"
#include "ir/eval.h"

typedef struct {
    Arena *arena;
    Lower *lw;
    Interp interp;
} World;

static World *world(void) {
    Arena *a = arena_create();
    World *w = arena_new(a, World);
    Lower *lw = arena_new(a, Lower);
    w->arena = a;
    w->lw = lw;
    w->interp.lw = lw;
    w->interp.polys = poly_table_new(a);
    Graph *g = graph_new(a, "pass");
    *lw = (Lower){.arena = a,
                  .diag = diag_new(a),
                  .g = g,
                  .training = true,
                  .float_type = F32,
                  .n_leaves = 2,
                  .n_waves = 1,
                  .interp = &w->interp};
    lw->leaf = g->leaf = graph_add_sym(g, "L", SYM_LEAF, 2, 0, 0);
    lw->b = builder_end(g, lw->diag);
    poly_bind(lw, "B", dim_n(2));
    poly_bind(lw, "S", dim_n(4));
    return w;
}

static void done(World *w) { arena_destroy(w->arena); }

static const char *messages(World *w) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diag_print(w->lw->diag, f, false);
    fclose(f);
    const char *kept = arena_strdup(w->arena, text);
    free(text);
    return kept;
}

static void assert_says(World *w, const char *part) {
    const char *text = messages(w);
    if (!strstr(text, part)) fail_msg("expected \"%s\" in:\n%s", part, text);
}

// "B S 3" as a shape.
static LType shape_of(World *w, DType dtype, const char *dims) {
    LType t = {.dtype = dtype};
    for (const char *s = dims; *s;) {
        size_t n = strcspn(s, " ");
        const char *word = intern_n(s, n);
        t.dim[t.ndim++] =
            word[0] >= '0' && word[0] <= '9' ? poly_int(w->lw, atoi(word)) : poly_sym(w->lw, word);
        s += n + (s[n] == ' ');
    }
    return t;
}

static Val tensor(World *w, const char *name, DType dtype, const char *dims, bool leafy) {
    LType t = shape_of(w, dtype, dims);
    Dims d = {0};
    if (leafy) d.at[d.n++] = (Dim){1, w->lw->leaf};
    for (int i = 0; i < t.ndim; i++) assert_true(poly_dim(w->lw, t.dim[i], &d.at[d.n++]));
    Value *v = make(&w->lw->b, OP_INPUT, INS(NULL), .name = intern(name), .dtype = dtype, .dims = d);
    return val_tensor(w->lw, (Span){0}, v, t, leafy);
}

static Val data(World *w, const char *name, const char *dims) { return tensor(w, name, F32, dims, true); }
static Val number(double x) {
    return val_num((Span){0}, x == floor(x) && !isinf(x) ? num_int((int64_t)x) : num_double(x));
}
static Val string(const char *s) { return (Val){.kind = V_STR, .str = intern(s)}; }
static Val bool_of(bool b) { return (Val){.kind = V_BOOL, .b = b}; }
static Val list_of(World *w, int n, const Val *v) {
    ListVal *l = arena_new(w->arena, ListVal);
    l->n = n;
    l->at = arena_array(w->arena, Val, n);
    memcpy(l->at, v, sizeof *v * (size_t)n);
    return (Val){.kind = V_LIST, .list = l};
}
#define LIST(w, ...) list_of((w), (int)(sizeof((Val[]){__VA_ARGS__}) / sizeof(Val)), (Val[]){__VA_ARGS__})

// call(w, "topk", 2, x, number(2)); names in `named` belong to the last arguments.
static OpResult call_named(World *w, const char *op, int n, const Val *v, int n_named,
                           const char *const *named) {
    OpArg arg[12];
    for (int i = 0; i < n; i++)
        arg[i] = (OpArg){i < n - n_named ? NULL : intern(named[i - (n - n_named)]), v[i], {0}};
    return lower_op(w->lw, &(OpCall){.op = intern(op), .n = n, .arg = arg});
}
static Val first(OpResult r) { return r.v[0]; }
#define COUNT_OF(...) (int)(sizeof((Val[]){__VA_ARGS__}) / sizeof(Val))
#define CALL(w, op, ...) first(CALL2(w, op, __VA_ARGS__))
#define CALL2(w, op, ...) call_named((w), (op), COUNT_OF(__VA_ARGS__), (Val[]){__VA_ARGS__}, 0, NULL)
#define CALL_AXIS(w, op, x, axis) CALL_LAST(w, op, "axis", x, axis)
#define CALL_LAST(w, op, name, ...)                                                                          \
    first(call_named((w), (op), COUNT_OF(__VA_ARGS__), (Val[]){__VA_ARGS__}, 1, (const char *[]){name}))
static Val operate(World *w, const char *op, Val a, Val b) {
    return lower_operator(w->lw, (Span){0}, op, &a, &b);
}

static void assert_type(World *w, Val v, const char *text) {
    if (v.kind != V_TENSOR) fail_msg("no tensor:\n%s", messages(w));
    assert_string_equal(ltype_text(w->lw, &v.t->type), text);
}
static void assert_graph_type(World *w, Val v, const char *text) {
    assert_string_equal(type_text(w->arena, &v.t->v->type), text);
}

// ---- values
// -------------------------------------------------------------------------------------------------------

// Integers: index modulo 3.  bools: every other.  Floats: a fixed wave.
static double element(const Node *n, int64_t i) {
    if (n->attr.dtype == I32) return (double)(i % 3);
    if (n->attr.dtype == BOOL) return (double)(i % 2);
    return sin((double)(i + 3 * (int64_t)strlen(n->attr.name)) * 1.7);
}

static bool fill(void *self, const Node *n, Tensor *t) {
    (void)self;
    int64_t count = 1;
    for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
    for (int64_t i = 0; i < count; i++) {
        if (t->dtype == F64)
            ((double *)t->data)[i] = element(n, i);
        else if (t->dtype == F32)
            ((float *)t->data)[i] = (float)element(n, i);
        else if (t->dtype == I32)
            ((int32_t *)t->data)[i] = (int32_t)element(n, i);
        else
            ((uint8_t *)t->data)[i] = (uint8_t)element(n, i);
    }
    return true;
}

static Eval *evaluate(World *w) {
    if (diag_n_errors(w->lw->diag)) fail_msg("%s", messages(w));
    Eval *e = eval_graph(w->arena, w->lw->g, &(EvalOpts){.f64 = true, .source = fill}, w->lw->diag);
    if (!e) fail_msg("%s", messages(w));
    return e;
}
static const double *values(Eval *e, Val v) { return eval_value(e, v.t->v)->data; }
static int64_t n_values(Eval *e, Val v) {
    const Tensor *t = eval_value(e, v.t->v);
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}
static void assert_near(double a, double b) {
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b)))) fail_msg("%.17g, expected %.17g", a, b);
}

// ---- elementwise, broadcasting
// -----------------------------------------------------------------------------------

static void broadcasts_as_the_text_says(void **state) {
    World *w = world();
    Val x = data(w, "x", "B S 3"), g = tensor(w, "gg", F32, "3", false),
        m = CALL_AXIS(w, "mean", x, string("all"));
    assert_type(w, m, "f32[]");
    assert_graph_type(w, m, "f32[L]");
    Val y = operate(w, "-", operate(w, "*", x, g), m);
    assert_type(w, y, "f32[B, S, 3]");
    Eval *e = evaluate(w);
    const double *px = values(e, x), *pg = values(e, g), *pm = values(e, m), *py = values(e, y);
    for (int64_t i = 0; i < n_values(e, y); i++) assert_near(py[i], px[i] * pg[i % 3] - pm[i / 24]);
    done(w);
}

static void promotes_types(void **state) {
    World *w = world();
    Val i = tensor(w, "i", I32, "S", true), h = tensor(w, "h", BF16, "S", true), x = data(w, "x", "S");
    assert_type(w, operate(w, "+", i, i), "i32[S]");
    assert_type(w, operate(w, "/", i, i), "f32[S]");
    assert_type(w, operate(w, "+", i, h), "bf16[S]");
    assert_type(w, operate(w, "*", h, x), "f32[S]");
    assert_type(w, operate(w, "*", h, number(0.5)), "bf16[S]");
    assert_type(w, operate(w, "*", i, number(2)), "i32[S]");
    assert_type(w, operate(w, "*", i, number(0.5)), "f32[S]");
    assert_type(w, operate(w, "<", i, x), "bool[S]");
    done(w);
}

static void says_where_shapes_disagree(void **state) {
    World *w = world();
    Val x = data(w, "x", "S 2"), s = CALL_AXIS(w, "sum", x, number(-1));
    assert_int_equal(operate(w, "/", x, s).kind, V_ERROR);
    assert_says(w, "'/': shapes [S, 2] and [S] do not agree on axis -1: 2 and S");
    done(w);
    w = world();
    x = data(w, "x", "S 2"), s = CALL_AXIS(w, "sum", x, number(-1));
    operate(w, "/", x, s);
    assert_says(w, "help: keepdim: true keeps the summed axis as 1");
    done(w);
}

static void folds_numbers_exactly(void **state) {
    World *w = world();
    int64_t n;
    Num tokens = num_mul(num_div(num_int(100 * 2), num_int(4)), num_div(num_int(11), num_int(10)));
    assert_true(num_is_int(CALL(w, "ceil", val_num((Span){0}, tokens)).num, &n));
    assert_int_equal(n, 55);
    Val s = {.kind = V_POLY, .poly = poly_div(w->lw, poly_sym(w->lw, "S"), poly_int(w->lw, 3))};
    Val c = CALL(w, "max", CALL(w, "ceil", s), number(1));
    assert_string_equal(poly_text(w->lw, c.poly), "max(ceil(S/3), 1)");
    Num value;
    assert_true(poly_value(w->lw, c.poly, &value) && num_is_int(value, &n));
    assert_int_equal(n, 2);
    assert_near(num_value(CALL(w, "sqrt", number(2)).num), sqrt(2));
    done(w);
}

static void powers(void **state) {
    World *w = world();
    Val x = data(w, "x", "S"), cube = operate(w, "**", x, number(3)),
        inverse = operate(w, "**", x, number(-1));
    Val base = operate(w, "**", number(10), x), root = operate(w, "**", CALL(w, "abs", x), number(0.25));
    Eval *e = evaluate(w);
    for (int i = 0; i < 8; i++) {
        double v = values(e, x)[i];
        assert_near(values(e, cube)[i], v * v * v);
        assert_near(values(e, inverse)[i], 1 / v);
        assert_near(values(e, base)[i], pow(10, v));
        assert_near(values(e, root)[i], pow(fabs(v), 0.25));
    }
    done(w);
}

// ---- reductions, shapes
// --------------------------------------------------------------------------------------------

static void reduces_any_axis(void **state) {
    World *w = world();
    Val x = data(w, "x", "S 3"), most = CALL_AXIS(w, "max", x, number(0)),
        where = CALL_AXIS(w, "argmax", x, number(0));
    Val p = CALL_AXIS(w, "softmax", x, number(0)), sum = CALL_AXIS(w, "sum", p, number(0)),
        var = CALL_AXIS(w, "var", x, number(0));
    assert_type(w, most, "f32[3]");
    assert_type(w, where, "i32[3]");
    assert_type(w, p, "f32[S, 3]");
    Eval *e = evaluate(w);
    for (int l = 0; l < 2; l++)
        for (int c = 0; c < 3; c++) {
            const double *px = values(e, x) + 12 * l;
            int best = 0;
            double mean = 0, square = 0;
            for (int s = 0; s < 4; s++) {
                if (px[3 * s + c] > px[3 * best + c]) best = s;
                mean += px[3 * s + c] / 4;
            }
            for (int s = 0; s < 4; s++) square += pow(px[3 * s + c] - mean, 2) / 4;
            assert_near(values(e, most)[3 * l + c], px[3 * best + c]);
            assert_int_equal(((const int32_t *)eval_value(e, where.t->v)->data)[3 * l + c], best);
            assert_near(values(e, sum)[3 * l + c], 1);
            assert_near(values(e, var)[3 * l + c], square);
        }
    done(w);
}

static void infers_shapes(void **state) {
    World *w = world();
    Val x = data(w, "x", "B S 6"), rest = string("_");
    Val y = CALL(w, "reshape", x, LIST(w, rest, number(2), number(3)));
    assert_type(w, y, "f32[B*S, 2, 3]");
    assert_type(w, CALL(w, "rows", x), "f32[B*S, 6]");
    OpResult parts = CALL2(w, "split", x, LIST(w, number(2), number(4)), number(-1));
    assert_int_equal(parts.v[0].list->n, 2);
    assert_type(w, parts.v[0].list->at[1], "f32[B, S, 4]");
    Val joined = CALL(w, "concat", parts.v[0], number(-1)), both = CALL(w, "stack", LIST(w, x, x), number(0));
    assert_type(w, both, "f32[2, B, S, 6]");
    Index last[2] = {{IX_REST}, {.kind = IX_RANGE, .from = number(4)}},
          at[1] = {{.kind = IX_AT, .from = number(-1)}};
    assert_type(w, lower_index(w->lw, (Span){0}, &x, last, 2), "f32[B, S, 2]");
    assert_type(w, lower_index(w->lw, (Span){0}, &x, at, 1), "f32[S, 6]");
    Eval *e = evaluate(w);
    for (int i = 0; i < 96; i++) assert_near(values(e, joined)[i], values(e, x)[i]);
    CALL(w, "reshape", x, LIST(w, rest, number(5)));
    assert_says(w, "reshape: f32[B, S, 6] has 6*B*S elements, which do not fill [_, 5]");
    done(w);
}

static void picks_and_puts(void **state) {
    World *w = world();
    Val x = data(w, "x", "S 5"), i = tensor(w, "i", I32, "S 1", true);
    Val y = CALL(w, "put_along", x, i, number(7)), z = CALL(w, "take_along", y, i),
        t = CALL(w, "take", x, CALL(w, "rows", i));
    assert_type(w, y, "f32[S, 5]");
    assert_type(w, t, "f32[S, 1, 5]"); // a table of each leaf
    OpResult sorted = CALL2(w, "sort", x, number(-1));
    Eval *e = evaluate(w);
    for (int r = 0; r < 8; r++) {
        assert_near(values(e, z)[r], 7);
        assert_near(values(e, t)[5 * r], values(e, x)[20 * (r / 4) + 5 * (r % 3)]);
        for (int c = 1; c < 5; c++)
            assert_true(values(e, sorted.v[0])[5 * r + c - 1] <= values(e, sorted.v[0])[5 * r + c]);
    }
    done(w);
}

// ---- arguments
// ------------------------------------------------------------------------------------------------------

static void explains_wrong_arguments(void **state) {
    World *w = world();
    Val x = data(w, "p", "B S 8"), y;
    CALL_LAST(w, "topk", "kk", x, number(2));
    CALL(w, "topk", x);
    CALL(w, "topk", x, number(9));
    CALL(w, "topk", x, string("two"));
    CALL_LAST(w, "gelu", "form", x, string("erff"));
    CALL_AXIS(w, "sum", x, number(3));
    y = CALL(w, "where", x, x, x);
    assert_int_equal(y.kind, V_ERROR);
    const char *text = messages(w);
    const char *expected[] = {
        "topk has no parameter 'kk'; did you mean 'k'?",
        "topk lacks its argument 'k'",
        "topk keeps k = 9 of each row, but a row has 8",
        "topk: a whole number is expected for 'k'",
        "gelu: 'form' is one of \"erf\", \"tanh\", \"quick\", not \"erff\"; did you mean \"erf\"?",
        "sum: there is no axis 3 in f32[B, S, 8]",
        "where: the condition is a bool"};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(text, expected[i])) fail_msg("expected \"%s\" in:\n%s", expected[i], text);
    done(w);
}

static void refuses_noise_in_evaluation(void **state) {
    World *w = world();
    w->lw->training = false;
    CALL(w, "gumbel", LIST(w, number(4)));
    assert_says(w, "randomness in evaluation");
    done(w);
}

// ---- contractions
// -----------------------------------------------------------------------------------------------------

static void multiplies_matrices(void **state) {
    World *w = world();
    Val x = data(w, "x", "B S 3"), m = tensor(w, "m", F32, "5 3", false), wide = data(w, "wide", "B 3 5");
    Val y = operate(w, "@", x, lower_operator(w->lw, (Span){0}, "T", &m, NULL));
    assert_type(w, y, "f32[B, S, 5]");
    assert_int_equal(y.t->v->node->attr.tb, 1);
    Val z = CALL(w, "einsum", string("b s d, h d -> h b s"), x, m), u = operate(w, "@", x, wide);
    assert_type(w, z, "f32[5, B, S]");
    assert_type(w, u, "f32[B, S, 5]");
    Eval *e = evaluate(w);
    for (int l = 0; l < 2; l++)
        for (int r = 0; r < 8; r++)
            for (int h = 0; h < 5; h++) {
                double sum = 0, batch = 0;
                for (int d = 0; d < 3; d++) {
                    double v = values(e, x)[(8 * l + r) * 3 + d];
                    sum += v * values(e, m)[3 * h + d];
                    batch += v * values(e, wide)[((2 * l + r / 4) * 3 + d) * 5 + h];
                }
                assert_near(values(e, y)[(8 * l + r) * 5 + h], sum);
                assert_near(values(e, z)[(5 * l + h) * 8 + r], sum);
                assert_near(values(e, u)[(8 * l + r) * 5 + h], batch);
            }
    operate(w, "@", x, m);
    assert_says(w, "matmul: a has 3 columns, b has 5 rows");
    done(w);
}

static void cross_entropy_is_a_mean_over_labels(void **state) {
    World *w = world();
    Val z = data(w, "z", "S 3"), label = tensor(w, "label", I32, "S", true);
    Val hidden = CALL(w, "where", operate(w, "==", label, number(2)), number(-100), label);
    Val ce = CALL(w, "cross_entropy", z, hidden);
    assert_graph_type(w, ce, "f32[L]");
    Eval *e = evaluate(w);
    for (int l = 0; l < 2; l++) {
        double sum = 0, n = 0;
        for (int r = 4 * l; r < 4 * l + 4; r++) {
            const double *p = values(e, z) + 3 * r;
            if (r % 3 == 2) continue;
            sum += log(exp(p[0]) + exp(p[1]) + exp(p[2])) - p[r % 3];
            n++;
        }
        assert_near(values(e, ce)[l], sum / n);
    }
    done(w);
}

// ---- routing
// ----------------------------------------------------------------------------------------------------------

typedef struct {
    Val x, w, e, r, rows;
} Routed;

static Routed routed(World *w, bool drop) {
    Routed t = {.x = data(w, "x", "B S 6"), .w = data(w, "weight", "B S 2")};
    OpResult top = CALL2(w, "topk", data(w, "score", "B S 4"), number(2));
    t.e = top.v[1];
    if (drop) {
        Val keep = operate(w, "<", CALL(w, "queue", t.e, number(4)), number(3));
        t.r = CALL(w, "route", t.w, t.e, number(4), keep);
    } else {
        t.r = CALL(w, "route", t.w, t.e, number(4));
    }
    if (t.r.kind != V_ROUTE) fail_msg("%s", messages(w));
    t.rows = CALL(w, "dispatch", t.x, t.r);
    return t;
}

static void combine_undoes_dispatch(void **state) {
    for (int drop = 0; drop < 2; drop++) {
        World *w = world();
        Routed t = routed(w, drop);
        assert_type(w, t.rows, "f32[4|*, 6]");
        Val y = CALL(w, "combine", t.rows, t.r), z = CALL(w, "by_choice", t.rows, t.r);
        Val parts = CALL_LAST(w, "combine", "groups", operate(w, "*", t.rows, CALL(w, "gates", t.r)), t.r,
                              bool_of(false), number(2));
        assert_type(w, y, "f32[B, S, 6]");
        assert_type(w, z, "f32[B, S, 2, 6]");
        Eval *e = evaluate(w);
        const int32_t *row_of = eval_value(e, t.r.route->row_of)->data;
        int dropped = 0;
        for (int i = 0; i < 16; i++)
            for (int d = 0; d < 6; d++) {
                double sum = 0, x = values(e, t.x)[6 * i + d];
                for (int k = 0; k < 2; k++) {
                    bool kept = row_of[2 * i + k] >= 0;
                    dropped += !kept;
                    if (kept) sum += values(e, t.w)[2 * i + k] * x;
                    assert_near(values(e, z)[(2 * i + k) * 6 + d], kept ? x : 0);
                }
                assert_near(values(e, y)[6 * i + d], sum);
                assert_near(values(e, parts)[6 * i + d], sum);
            }
        assert_int_equal(dropped > 0, drop);
        done(w);
    }
}

static void experts_choose(void **state) {
    World *w = world();
    Val x = data(w, "x", "B S 3"), score = data(w, "score", "2 S");
    OpResult top = CALL2(w, "topk", score, number(3));
    Val n_tokens = {.kind = V_POLY, .poly = poly_mul(w->lw, poly_sym(w->lw, "B"), poly_sym(w->lw, "S"))};
    Val r = CALL(w, "route_by_expert", top.v[0], top.v[1], n_tokens),
        y = CALL(w, "combine", CALL(w, "dispatch", x, r), r);
    assert_type(w, y, "f32[B, S, 3]");
    Eval *e = evaluate(w);
    const int32_t *t = eval_value(e, top.v[1].t->v)->data;
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < 8; i++) {
            double weight = 0;
            for (int s = 0; s < 6; s++)
                if (t[6 * l + s] == i) weight += values(e, top.v[0])[6 * l + s];
            assert_near(values(e, y)[(8 * l + i) * 3], weight * values(e, x)[(8 * l + i) * 3]);
        }
    done(w);
}

static void rows_do_not_meet_tokens(void **state) {
    World *w = world();
    Routed t = routed(w, false), other = routed(w, false);
    operate(w, "+", t.x, t.rows);
    CALL_AXIS(w, "softmax", t.rows, number(-1));
    CALL(w, "combine", t.rows, other.r);
    CALL(w, "combine", t.x, t.r);
    const char *text = messages(w);
    const char *expected[] = {"'+': rows grouped by expert, f32[4|*, 6], cannot meet tokens, f32[B, S, 6]",
                              "help: combine(rows, r) brings them back to their tokens",
                              "softmax needs tokens, these are rows grouped by expert",
                              "combine: these rows were dispatched by the route of line",
                              "combine needs rows grouped by expert, this is f32[B, S, 6]"};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(text, expected[i])) fail_msg("expected \"%s\" in:\n%s", expected[i], text);
    done(w);
}

static void runs_inside_an_expert(void **state) {
    World *w = world();
    Routed t = routed(w, true);
    Lower *lw = w->lw;
    lw->expert = t.r.route;
    Val x = t.rows, m = tensor(w, "mm", F32, "4 3 6", false), bias = tensor(w, "bias", F32, "4 3", false);
    x.t->type.expert_rows = true; // as each_expert shows them
    memmove(x.t->type.dim + 1, x.t->type.dim, sizeof *x.t->type.dim);
    x.t->type.dim[0] = poly_sym(lw, t.r.route->sym->name);
    x.t->type.ndim = 2;
    m.t->per_expert = bias.t->per_expert = true;
    m.t->type = shape_of(w, F32, "3 6");
    bias.t->type = shape_of(w, F32, "3");
    Val y = operate(w, "+", operate(w, "@", x, lower_operator(lw, (Span){0}, "T", &m, NULL)), bias);
    assert_int_equal(y.kind, V_TENSOR);
    assert_graph_type(w, y, "f32[R0,3]");
    Eval *e = evaluate(w);
    const int32_t *offsets = eval_value(e, t.r.route->offsets)->data;
    for (int expert = 0; expert < 4; expert++)
        for (int row = offsets[2 * expert]; row < offsets[2 * expert + 2]; row++)
            for (int h = 0; h < 3; h++) {
                double sum = values(e, bias)[3 * expert + h];
                for (int d = 0; d < 6; d++)
                    sum += values(e, x)[6 * row + d] * values(e, m)[(3 * expert + h) * 6 + d];
                assert_near(values(e, y)[3 * row + h], sum);
            }
    CALL_AXIS(w, "mean", x, number(0));
    assert_says(w, "inside an expert a row may not depend on other rows");
    done(w);
}

static void generation_keeps_every_choice(void **state) {
    World *w = world();
    Graph *g = w->lw->g;
    w->lw->leaf = g->leaf = NULL;
    w->lw->training = false;
    w->lw->inference = w->lw->dropless = true;
    poly_bind(w->lw, "B", dim_n(1));
    poly_bind(w->lw, "S", (Dim){1, graph_add_sym(g, "S", SYM_PLAIN, 8, 0, 0)});
    Val e = tensor(w, "e", I32, "B S 2", false);
    Val capacity = {
        .kind = V_POLY,
        .poly = poly_opaque(w->lw, "ceil", poly_div(w->lw, poly_sym(w->lw, "S"), poly_int(w->lw, 3)), NULL)};
    Val keep = operate(w, "<", CALL(w, "queue", e, number(4)), capacity);
    assert_type(w, keep, "bool[B, S, 2]");
    assert_int_equal(CALL(w, "route", tensor(w, "w", F32, "B S 2", false), e, number(4), keep).kind, V_ROUTE);
    done(w);
}

// ---- over the step
// ------------------------------------------------------------------------------------------------------

static void sums_over_the_step(void **state) {
    World *w = world();
    Val x = data(w, "x", "3"), sum = CALL(w, "step_sum", x), mean = CALL(w, "step_mean", x);
    assert_graph_type(w, sum, "f32[3]");
    Eval *e = evaluate(w);
    for (int i = 0; i < 3; i++) {
        assert_near(values(e, sum)[i], values(e, x)[i] + values(e, x)[3 + i]);
        assert_near(values(e, mean)[i], (values(e, x)[i] + values(e, x)[3 + i]) / 2);
    }
    assert_true(lower_needs_no_step_sum(w->lw, (Span){0}, "loss balance", sum.t->v));
    done(w);
    w = world();
    w->lw->n_waves = 2;
    x = data(w, "x", "3");
    Val f = operate(w, "*", x, CALL(w, "step_sum", x)), so_far = operate(w, "*", x, CALL(w, "so_far", x));
    assert_true(lower_needs_no_step_sum(w->lw, (Span){0}, "loss global", so_far.t->v));
    assert_false(lower_needs_no_step_sum(w->lw, (Span){0}, "loss balance", f.t->v));
    assert_says(w, "loss balance needs a sum over all micro-batches of a step, but they run in 2 waves");
    done(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(broadcasts_as_the_text_says),
                                       cmocka_unit_test(promotes_types),
                                       cmocka_unit_test(says_where_shapes_disagree),
                                       cmocka_unit_test(folds_numbers_exactly),
                                       cmocka_unit_test(powers),
                                       cmocka_unit_test(reduces_any_axis),
                                       cmocka_unit_test(infers_shapes),
                                       cmocka_unit_test(picks_and_puts),
                                       cmocka_unit_test(explains_wrong_arguments),
                                       cmocka_unit_test(refuses_noise_in_evaluation),
                                       cmocka_unit_test(multiplies_matrices),
                                       cmocka_unit_test(cross_entropy_is_a_mean_over_labels),
                                       cmocka_unit_test(combine_undoes_dispatch),
                                       cmocka_unit_test(experts_choose),
                                       cmocka_unit_test(rows_do_not_meet_tokens),
                                       cmocka_unit_test(runs_inside_an_expert),
                                       cmocka_unit_test(generation_keeps_every_choice),
                                       cmocka_unit_test(sums_over_the_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
