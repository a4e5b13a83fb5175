// Every op of the table: its meaning runs in both precisions and agrees, its gradient rule equals central
// differences (shapes.def); selection, routing, contractions and attention also by hand cases.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/build.h"
#include "ir/eval.h"
#include "ir/ir.h"

// ---- instances ------------------------------------------------------------------------------------------

enum { L = -1, R = -2, LEAVES = 4, EXPERTS = 3, MAX_OPERANDS = 8 };

typedef enum { NOTHING, FLOATS, POSITIVE, WHOLE_NUMBERS, DIVISORS, BOOLS, INDICES, SEED, ROUTED } Kind;
typedef struct { Kind kind; int n, dim[6]; int64_t below; } Operand;

typedef struct {
    Graph *g;
    Sym *leaf, *rows, *other, *context;    // other: rows nobody defined yet
    Builder b;
    Node *route;
    Diag *diag;
    int line;
    const Operand *operand;
    int n_operands;
    Value *in[MAX_OPERANDS];
    int nudged;                            // operand and element that a central difference moves, and how far
    int64_t nudged_element;
    double by;
} Case;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// A fixed draw in [0, 1) with 20 bits, exact in f32.
static double draw(int line, int operand, int64_t element) {
    uint64_t x = mix(mix(mix((uint64_t)line) ^ (uint64_t)operand) ^ (uint64_t)element);
    return (double)(x >> 44) / (1 << 20);
}

static Dims dims_of_codes(const Case *c, int n, const int *code) {
    Dims d = {.n = n};
    for (int i = 0; i < n; i++)
        d.at[i] = code[i] > 0 ? dim_n(code[i]) : (Dim){1, code[i] == L ? c->leaf : c->rows};
    return d;
}

static Case *case_new(Arena *a, int line) {
    Case *c = arena_new(a, Case);
    c->g = graph_new(a, "case");
    c->leaf = graph_add_sym(c->g, "L", SYM_LEAF, LEAVES, 0, 0);
    c->g->leaf = c->leaf;
    c->rows = graph_add_sym(c->g, "R", SYM_RAGGED, LEAVES * 3 * 2, EXPERTS, LEAVES);
    c->other = graph_add_sym(c->g, "Q", SYM_RAGGED, LEAVES * 3 * 2, EXPERTS, LEAVES);
    c->context = graph_add_sym(c->g, "C", SYM_PLAIN, 5, 0, 0);
    c->diag = diag_new(a);
    c->b = builder_end(c->g, c->diag);
    c->line = line;
    c->nudged = -1;
    return c;
}

static Value *source(Case *c, const char *kind, int i, DType dtype, Dims dims) {
    char name[32];
    snprintf(name, sizeof name, "%s%d", kind, i);
    if (dtype == F32)
        return make(&c->b, OP_PARAM, NULL, .name = intern(name), .dtype = F32, .dims = dims,
                    .init = intern("zeros"));
    return make(&c->b, OP_INPUT, NULL, .name = intern(name), .dtype = dtype, .dims = dims);
}

static Value *operand_value(Case *c, int i) {
    const Operand *o = &c->operand[i];
    Dims dims = dims_of_codes(c, o->n, o->dim);
    bool grouped = o->kind == ROUTED || (o->n && o->dim[0] == R);
    if (grouped && !c->route) {
        Value *e = source(c, "e", 0, I32, dims_of_codes(c, 3, (int[]){L, 3, 2}));
        c->route = build(&c->b, OP_ROUTE, INS(e), .experts = EXPERTS, .sym = c->rows);
        assert_non_null(c->route);
    }
    if (o->kind == ROUTED)
        return o->below < 3 ? &c->route->out[o->below]
                            : make(&c->b, OP_ROW_GROUP, INS(&c->route->out[0]), .sym = c->rows);
    DType dtype = o->kind == BOOLS ? BOOL : o->kind == FLOATS || o->kind == POSITIVE ? F32 : I32;
    return source(c, "x", i, dtype, dims);
}

// Contents of a source; elements are drawn, the nudged one is moved.
static bool fill(void *self, const Node *n, Tensor *t) {
    Case *c = self;
    const char *name = n->attr.name;
    int i = atoi(name + 1);
    Kind kind = name[0] == 'x' ? c->operand[i].kind : name[0] == 'e' ? INDICES : FLOATS;
    int64_t below = name[0] == 'x' ? c->operand[i].below : EXPERTS, size = 1;
    for (int k = 0; k < t->ndim; k++) size *= t->dim[k];
    for (int64_t k = 0; k < size; k++) {
        double u = draw(c->line, name[0] * 100 + i, k);
        if (kind == FLOATS || kind == POSITIVE) {
            double v = kind == FLOATS ? 4 * u - 2 : 0.5 + 1.5 * u;
            if (name[0] == 'x' && i == c->nudged && k == c->nudged_element) v += c->by;
            if (t->dtype == F64) ((double *)t->data)[k] = v;
            else ((float *)t->data)[k] = (float)v;
        } else if (kind == BOOLS) {
            ((uint8_t *)t->data)[k] = u < 0.7;
        } else {
            int32_t v = kind == INDICES ? (int32_t)floor(u * (double)(below + 1)) - 1
                        : kind == DIVISORS ? (int32_t)(u * 4) + 1
                        : kind == SEED ? (int32_t)k + 7
                        : (int32_t)floor(u * 11) - 5;
            ((int32_t *)t->data)[k] = v;
        }
    }
    return true;
}

static double element(const Tensor *t, int64_t i) {
    switch (t->dtype) {
    case F64: return ((const double *)t->data)[i];
    case F32: return ((const float *)t->data)[i];
    case I32: return ((const int32_t *)t->data)[i];
    default: return ((const uint8_t *)t->data)[i];
    }
}

static int64_t size_of(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

static Eval *evaluate(Arena *a, Case *c, bool f64) {
    EvalOpts opts = {.f64 = f64, .source = fill, .self = c};
    Eval *e = eval_graph(a, c->g, &opts, c->diag);
    if (!e) diag_print(c->diag, stderr, false);
    assert_non_null(e);
    return e;
}

// Results whose gradient no rule takes.
static bool is_private(Op op, int result) {
    return result == 1 && (op == OP_ATTENTION || op == OP_HEAD_LOSS);
}

// sum over results of y * the gradients given to the rule
static double objective(const Eval *e, const Node *n, Value *const *dout) {
    double sum = 0;
    for (int j = 0; j < n->n_out; j++) {
        if (!dout[j]) continue;
        const Tensor *y = eval_value(e, &n->out[j]), *d = eval_value(e, dout[j]);
        for (int64_t i = 0; i < size_of(y); i++) sum += element(y, i) * element(d, i);
    }
    return sum;
}

static void compare_precisions(Arena *a, Case *c, const Node *n) {
    Eval *single = evaluate(a, c, false), *twice = evaluate(a, c, true);
    for (int j = 0; j < n->n_out; j++) {
        const Tensor *s = eval_value(single, &n->out[j]), *d = eval_value(twice, &n->out[j]);
        assert_int_equal(s->ndim, n->out[j].type.ndim);
        for (int i = 0; i < s->ndim; i++) {
            Dim bound = n->out[j].type.dim[i];
            assert_int_equal(s->dim[i], d->dim[i]);
            if (!bound.sym || bound.sym->kind == SYM_LEAF) assert_int_equal(s->dim[i], dim_bound(bound));
        }
        for (int64_t i = 0; i < size_of(s); i++) {
            double x = element(s, i), y = element(d, i);
            if (x == y || fabs(x - y) <= 2e-5 * (1 + fabs(y))) continue;
            fail_msg("line %d, %s: result %d[%lld] is %.9g in f32, %.9g in f64", c->line, op_info[n->op].name,
                     j, (long long)i, x, y);
        }
    }
}

static void compare_gradient(Arena *a, Case *c, const Node *n) {
    const double step = 1e-5;
    Value *dout[8] = {NULL}, *din[MAX_OPERANDS] = {NULL};
    bool need[MAX_OPERANDS] = {false}, any = false;
    for (int i = 0; i < n->n_in; i++) any |= need[i] = dtype_is_float(n->in[i]->type.dtype);
    for (int j = 0; j < n->n_out; j++)
        if (dtype_is_float(n->out[j].type.dtype) && !is_private(n->op, j))
            dout[j] = source(c, "d", j, F32, dims_of(&n->out[j].type));
    if (!any || !dout[0]) return;
    op_info[n->op].grad(&c->b, n, dout, need, din);
    Eval *at = evaluate(a, c, true);
    for (int i = 0; i < n->n_in; i++) {
        if (!need[i]) continue;
        if (!din[i]) fail_msg("line %d, %s: no gradient of operand %d", c->line, op_info[n->op].name, i);
        if (!type_eq(&din[i]->type, &n->in[i]->type))
            fail_msg("line %d, %s: gradient of operand %d is %s for %s", c->line, op_info[n->op].name, i,
                     type_text(a, &din[i]->type), type_text(a, &n->in[i]->type));
        const Tensor *g = eval_value(at, din[i]);
        for (int64_t k = 0; k < size_of(g); k++) {
            double y[2];
            for (int side = 0; side < 2; side++) {
                Arena *scratch = arena_create();
                c->nudged = i, c->nudged_element = k, c->by = side ? step : -step;
                y[side] = objective(evaluate(scratch, c, true), n, dout);
                arena_destroy(scratch);
            }
            c->nudged = -1;
            double want = (y[1] - y[0]) / (2 * step), is = element(g, k);
            if (fabs(is - want) > 1e-6 * (1 + fabs(want)))
                fail_msg("line %d, %s: gradient of operand %d[%lld] is %.9g, differences give %.9g", c->line,
                         op_info[n->op].name, i, (long long)k, is, want);
        }
    }
}

static bool has_gradient(Op op) {
    return strcmp(op_info[op].grad_name, "none") != 0 && strcmp(op_info[op].grad_name, "zero") != 0;
}

static void run_case(Arena *a, Case *c, Op op, const Operand *operand, const Attrs *attrs) {
    Value *ins[MAX_OPERANDS + 1] = {NULL};
    c->operand = operand;
    while (operand[c->n_operands].kind != NOTHING) {
        ins[c->n_operands] = operand_value(c, c->n_operands);
        c->n_operands++;
    }
    Node *n = build_node(&c->b, op, ins, attrs);
    if (!n) diag_print(c->diag, stderr, false);
    if (!n) fail_msg("line %d: %s can't be built", c->line, op_info[op].name);
    compare_precisions(a, c, n);
    if (has_gradient(op)) compare_gradient(a, c, n);
}

#define N_DIMS(...) (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int))
#define OPERAND(what, ...) {.kind = what, .n = N_DIMS(__VA_ARGS__), .dim = {__VA_ARGS__}}
#define F(...) OPERAND(FLOATS, __VA_ARGS__)
#define P(...) OPERAND(POSITIVE, __VA_ARGS__)
#define I(...) OPERAND(WHOLE_NUMBERS, __VA_ARGS__)
#define J(...) OPERAND(DIVISORS, __VA_ARGS__)
#define B(...) OPERAND(BOOLS, __VA_ARGS__)
#define X(end, ...) {.kind = INDICES, .n = N_DIMS(__VA_ARGS__), .dim = {__VA_ARGS__}, .below = end}
#define RNG OPERAND(SEED, 4)
#define OFFSETS {.kind = ROUTED, .below = 0}
#define ROW_OF {.kind = ROUTED, .below = 1}
#define SLOT_OF {.kind = ROUTED, .below = 2}
#define EXPERT {.kind = ROUTED, .below = 3}
#define NONE {.kind = NOTHING}
#define IN(...) {__VA_ARGS__, {.kind = NOTHING}}
#define D(...) dims_of_codes(c, N_DIMS(__VA_ARGS__), (int[]){__VA_ARGS__})
#define N(...) {.n = N_DIMS(__VA_ARGS__), .at = {__VA_ARGS__}}

static void every_instance(void **state) {
#define CASE(OP, INS_, ...) {                                                \
        Arena *a = arena_create();                                           \
        Case *c = case_new(a, __LINE__);                                     \
        const Operand operand[] = INS_;                                      \
        run_case(a, c, OP_##OP, operand, &(Attrs){__VA_ARGS__});             \
        arena_destroy(a);                                                    \
    }
#include "tests/ops/shapes.def"
#undef CASE
}

// Sources, effects, region holders and exchanges have no meaning of their own here.
static void every_op_has_an_instance(void **state) {
    static const Op without[] = {OP_PARAM, OP_STATE, OP_INPUT, OP_ARG, OP_LOSS, OP_METRIC, OP_RETURN,
                                 OP_UPDATE, OP_ACCUMULATE, OP_YIELD, OP_GATE, OP_FUSED,
                                 // run as the gradients of their partners
                                 OP_ATTENTION_GRAD, OP_HEAD_LOSS_GRAD};
    int seen[N_OPS] = {0};
#define CASE(OP, ...) seen[OP_##OP]++;
#include "tests/ops/shapes.def"
#undef CASE
    for (size_t i = 0; i < sizeof without / sizeof *without; i++) seen[without[i]]++;
    for (int op = 0; op < N_OPS; op++)
        if (!seen[op] && !op_is((Op)op, COMM)) fail_msg("'%s' has no instance in tests/ops/shapes.def", op_info[op].name);
}

#undef F
#undef P
#undef I
#undef J
#undef B
#undef X
#undef D
#undef N
#undef IN
#undef NONE

// ---- hand cases -----------------------------------------------------------------------------------------
// The meanings, called directly.

#define SHAPE(...) .ndim = N_DIMS(__VA_ARGS__), .dim = {__VA_ARGS__}
#define FLOAT_T(p, ...) (Tensor){.dtype = F32, SHAPE(__VA_ARGS__), .data = (p)}
#define INT_T(p, ...) (Tensor){.dtype = I32, SHAPE(__VA_ARGS__), .data = (p)}
#define TENSORS(...) ((Tensor[]){__VA_ARGS__})

#define RUN(op, ins, outs, ...)                                                                           \
    op_info[op].ref(&(Attrs){__VA_ARGS__}, (int)(sizeof(ins) / sizeof(Tensor)), ins,                      \
                    (int)(sizeof(outs) / sizeof(Tensor)), outs)

static void check_ints(const int32_t *is, const int32_t *want, int n) {
    for (int i = 0; i < n; i++)
        if (is[i] != want[i]) fail_msg("[%d] is %d, must be %d", i, (int)is[i], (int)want[i]);
}
static void check_floats(const float *is, const float *want, int n) {
    for (int i = 0; i < n; i++)
        if (is[i] != want[i]) fail_msg("[%d] is %.9g, must be %.9g", i, (double)is[i], (double)want[i]);
}
#define WANT_INTS(is, ...) check_ints(is, (int32_t[]){__VA_ARGS__}, N_DIMS(__VA_ARGS__))
#define WANT_FLOATS(is, ...)                                                                                 \
    check_floats(is, (float[]){__VA_ARGS__}, (int)(sizeof((float[]){__VA_ARGS__}) / sizeof(float)))

static double *drawn(int seed, int64_t n) {
    double *x = malloc(sizeof(double) * (size_t)n);
    for (int64_t i = 0; i < n; i++) x[i] = 4 * draw(seed, 0, i) - 2;
    return x;
}

static float *narrowed(const double *x, int64_t n) {
    float *y = malloc(sizeof(float) * (size_t)n);
    for (int64_t i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

static void topk_ties_and_nan(void **state) {
    float x[] = {1, 3, 3, 2, NAN, 3, -INFINITY, NAN}, v[8];
    int32_t i[8];
    Tensor in[] = {FLOAT_T(x, 1, 8)}, out[] = {FLOAT_T(v, 1, 8), INT_T(i, 1, 8)};
    RUN(OP_TOPK, in, out, .k = 8);
    WANT_INTS(i, 1, 2, 5, 3, 0, 6, 4, 7);
    assert_true(v[5] == -INFINITY && isnan(v[6]) && isnan(v[7]));
    int32_t n[] = {7, -7, 7, 0}, w[2];
    Tensor in2[] = {INT_T(n, 2, 2)}, out2[] = {INT_T(w, 2, 1), INT_T(i, 2, 1)};
    RUN(OP_TOPK, in2, out2, .k = 1);
    WANT_INTS(w, 7, 7);
    WANT_INTS(i, 0, 0);
}

static void take_and_put_ignore_nobody(void **state) {
    float x[] = {1, 2, 3, 4, 5, 6}, y[8];
    int32_t i[] = {2, -1, 0, 0, 3, 1};
    Tensor in[] = {FLOAT_T(x, 2, 3), INT_T(i, 2, 3)}, out[] = {FLOAT_T(y, 2, 3)};
    RUN(OP_TAKE, in, out, 0);
    WANT_FLOATS(y, 3, 0, 1, 4, 0, 5);
    Tensor wide[] = {FLOAT_T(y, 2, 4)};
    RUN(OP_PUT, in, wide, .n = 4);
    WANT_FLOATS(y, 3, 0, 1, 0, 4, 6, 0, 5);
    int32_t same[] = {1, 1, 1, -1, -1, -1};
    Tensor in2[] = {FLOAT_T(x, 2, 3), INT_T(same, 2, 3)};
    RUN(OP_PUT, in2, wide, .n = 4);
    WANT_FLOATS(y, 0, 6, 0, 0, 0, 0, 0, 0);
}

static void rows_by_index(void **state) {
    float x[] = {1, 2, 3, 4, 5, 6}, y[8];
    int32_t i[] = {2, -1, 0, 2};
    Tensor in[] = {FLOAT_T(x, 3, 2), INT_T(i, 2, 2)}, out[] = {FLOAT_T(y, 2, 2, 2)};
    RUN(OP_GATHER_ROWS, in, out, 0);
    WANT_FLOATS(y, 5, 6, 0, 0, 1, 2, 5, 6);

    // the order of additions: in sequence into data of the same leaf, by leaf and tree into no leaf's data
    float v[] = {1e8f, 1, -1e8f, 1}, g[1];
    int32_t to[] = {0, 0, 0, 0};
    Tensor rows[] = {FLOAT_T(v, 4, 1), INT_T(to, 4)}, sum[] = {FLOAT_T(g, 1, 1)};
    Dims one = {.n = 2, .at = {{1, NULL}, {1, NULL}}};
    RUN(OP_SCATTER_ADD_ROWS, rows, sum, .dims = one, .leaves = 1);
    WANT_FLOATS(g, 1);
    RUN(OP_SCATTER_ADD_ROWS, rows, sum, .dims = one, .leaves = 2);
    WANT_FLOATS(g, 0);
    Sym leaf = {.kind = SYM_LEAF, .bound = 2};
    Dims leafy = {.n = 2, .at = {{1, &leaf}, {1, NULL}}};
    RUN(OP_SCATTER_ADD_ROWS, rows, sum, .dims = leafy, .leaves = 2);
    WANT_FLOATS(g, 1);
    // grouped rows: leaf 0 owns rows 0 and 2, leaf 1 rows 1 and 3
    int32_t offsets[] = {0, 1, 2, 3, 4};
    Tensor grouped[] = {FLOAT_T(v, 4, 1), INT_T(to, 4), INT_T(offsets, 5)};
    RUN(OP_SCATTER_ADD_ROWS, grouped, sum, .dims = one, .leaves = 2);
    WANT_FLOATS(g, 2);
}

static void counts(void **state) {
    int32_t e[] = {0, 2, 2, -1, 1, 1, 1, 0}, n[6];
    Tensor in[] = {INT_T(e, 2, 2, 2)}, out[] = {INT_T(n, 2, 3)};
    RUN(OP_COUNT, in, out, .experts = 3);
    WANT_INTS(n, 1, 0, 2, 1, 3, 0);
}

static void queues(void **state) {
    // four tokens, two choices of three experts
    int32_t e[] = {0, 1, 0, 1, 1, 0, -1, 0}, place[8];
    Tensor in[] = {INT_T(e, 4, 2)}, out[] = {INT_T(place, 4, 2)};
    RUN(OP_QUEUE, in, out, .experts = 3);
    WANT_INTS(place, 0, 0, 1, 1, 2, 2, INT32_MAX, 3);
    RUN(OP_QUEUE, in, out, .experts = 3, .by_choice = 1);
    WANT_INTS(place, 0, 1, 1, 2, 0, 2, INT32_MAX, 3);
    // by priority; ties by token: capacity 2 keeps places 0 and 1
    float p[] = {0.1f, 0.5f, 0.9f, 0.5f, 0.7f, 0.9f, 1, 0.2f};
    Tensor with[] = {INT_T(e, 4, 2), FLOAT_T(p, 4, 2)};
    RUN(OP_QUEUE, with, out, .experts = 3);
    WANT_INTS(place, 3, 1, 0, 2, 0, 1, INT32_MAX, 2);
    RUN(OP_QUEUE, with, out, .experts = 3, .by_choice = 1);
    WANT_INTS(place, 1, 1, 0, 2, 0, 2, INT32_MAX, 3);
    // leading axes have queues of their own
    Tensor apart[] = {INT_T(e, 2, 2, 2)}, out2[] = {INT_T(place, 2, 2, 2)};
    RUN(OP_QUEUE, apart, out2, .experts = 3);
    WANT_INTS(place, 0, 0, 1, 1, 0, 0, INT32_MAX, 1);
}

static void routes(void **state) {
    // two leaves of two tokens with two choices
    int32_t e[] = {1, 0, 1, -1, 0, 1, 2, 0}, offsets[7], row[8], slot[8];
    Tensor in[] = {INT_T(e, 2, 2, 2)}, out[] = {INT_T(offsets, 7), INT_T(row, 2, 2, 2), INT_T(slot, 8)};
    RUN(OP_ROUTE, in, out, .experts = 3);
    WANT_INTS(offsets, 0, 1, 3, 5, 6, 6, 7);
    WANT_INTS(row, 3, 0, 4, -1, 1, 5, 6, 2);
    WANT_INTS(slot, 1, 4, 7, 0, 2, 5, 6);
    assert_int_equal(out[2].dim[0], 7);
    // one expert takes all, the others are empty
    int32_t all[] = {1, 1, 1, 1};
    Tensor in2[] = {INT_T(all, 4, 1)}, out2[] = {INT_T(offsets, 4), INT_T(row, 4, 1), INT_T(slot, 4)};
    RUN(OP_ROUTE, in2, out2, .experts = 3);
    WANT_INTS(offsets, 0, 0, 4, 4);
    WANT_INTS(row, 0, 1, 2, 3);
    WANT_INTS(slot, 0, 1, 2, 3);
    // nobody chose anything
    int32_t nobody[] = {-1, -1, -1, -1};
    Tensor in3[] = {INT_T(nobody, 4, 1)}, out3[] = {INT_T(offsets, 4), INT_T(row, 4, 1), INT_T(slot, 4)};
    RUN(OP_ROUTE, in3, out3, .experts = 3);
    WANT_INTS(offsets, 0, 0, 0, 0);
    WANT_INTS(row, -1, -1, -1, -1);
    assert_int_equal(out3[2].dim[0], 0);

    int32_t o[] = {0, 1, 3, 5, 6, 6, 7}, group[7];
    Sym rows = {.kind = SYM_RAGGED, .groups = 3, .leaves = 2, .bound = 8};
    Tensor in4[] = {INT_T(o, 7)}, out4[] = {INT_T(group, 7)};
    RUN(OP_ROW_GROUP, in4, out4, .sym = &rows);
    WANT_INTS(group, 0, 0, 0, 1, 1, 1, 2);
}

static void sinkhorn_evens_out(void **state) {
    float x[12], y[12];
    for (int i = 0; i < 12; i++) x[i] = (float)draw(1, 1, i) * 4;
    Tensor in[] = {FLOAT_T(x, 4, 3)}, out[] = {FLOAT_T(y, 4, 3)};
    RUN(OP_SINKHORN, in, out, .tolerance = 1e-7, .limit = 100);
    for (int e = 0; e < 3; e++) {
        float sum = 0;
        for (int t = 0; t < 4; t++) sum += y[t * 3 + e];
        assert_float_equal(sum, 1.0 / 3, 1e-5);
    }
    for (int t = 0; t < 4; t++) assert_float_equal(y[t * 3] + y[t * 3 + 1] + y[t * 3 + 2], 0.25, 1e-4);
}

static void leaf_sums(void **state) {
    // two leaves: (1e8 + 1) + (-1e8 + 1) loses both ones, one chain keeps the last
    float a[] = {1e8f, 1, -1e8f, 1}, b[] = {1, 1, 1, 1}, y[3];
    Tensor in[] = {FLOAT_T(a, 4, 1), FLOAT_T(b, 4, 1)}, out[] = {FLOAT_T(y, 1, 1)};
    RUN(OP_MATMUL_DW, in, out, .leaves = 2);
    WANT_FLOATS(y, 0);
    RUN(OP_MATMUL_DW, in, out, .leaves = 1);
    WANT_FLOATS(y, 1);
    // three experts, two leaves; the middle one is empty
    int32_t offsets[] = {0, 1, 2, 2, 2, 2, 4};
    Tensor in2[] = {FLOAT_T(a, 4, 1), FLOAT_T(b, 4, 1), INT_T(offsets, 7)}, out2[] = {FLOAT_T(y, 3, 1, 1)};
    RUN(OP_GROUPED_DW, in2, out2, .leaves = 2);
    WANT_FLOATS(y, 1e8f, 0, -1e8f);
    Tensor in3[] = {FLOAT_T(a, 4, 1), INT_T(offsets, 7)}, out3[] = {FLOAT_T(y, 3, 1)};
    RUN(OP_GROUPED_SUM, in3, out3, .leaves = 2);
    WANT_FLOATS(y, 1e8f, 0, -1e8f);
}

static void grouped_matmul_uses_the_rows_expert(void **state) {
    float x[] = {1, 2, 3, 4, 5, 6}, w[] = {1, 10, 100, 1000, 1, -1}, y[3];
    int32_t offsets[] = {0, 0, 2, 3};
    Tensor in[] = {FLOAT_T(x, 3, 2), FLOAT_T(w, 3, 2, 1), INT_T(offsets, 4)}, out[] = {FLOAT_T(y, 3, 1)};
    RUN(OP_GROUPED_MATMUL, in, out, 0);
    WANT_FLOATS(y, 2100, 4300, -1);
    Tensor in2[] = {FLOAT_T(x, 3, 2), FLOAT_T(w, 3, 1, 2), INT_T(offsets, 4)};
    RUN(OP_GROUPED_MATMUL, in2, out, .tb = 1);
    WANT_FLOATS(y, 2100, 4300, -1);
}

static void head_loss_skips_ignored_labels(void **state) {
    float x[] = {1, 2, 3, 4}, w[] = {0, 0, 0, 0, 1, 0}, nll[2], lse[2], dnll[] = {1, 1}, dx[4], dw[6];
    int32_t label[] = {-100, 2};
    Tensor in[] = {FLOAT_T(x, 2, 2), FLOAT_T(w, 3, 2), INT_T(label, 2)};
    Tensor out[] = {FLOAT_T(nll, 2, 1), FLOAT_T(lse, 2, 1)};
    RUN(OP_HEAD_LOSS, in, out, 0);
    assert_float_equal(nll[0], 0, 0);
    assert_float_equal(nll[1], log(2 + exp(3)) - 3, 1e-6);
    Tensor in2[] = {in[0], in[1], in[2], out[1], FLOAT_T(dnll, 2, 1)},
           out2[] = {FLOAT_T(dx, 2, 2), FLOAT_T(dw, 3, 2)};
    RUN(OP_HEAD_LOSS_GRAD, in2, out2, .leaves = 1);
    double p = exp(3) / (2 + exp(3)), q = 1 / (2 + exp(3));
    assert_float_equal(dx[0], 0, 0);
    assert_float_equal(dx[2], p - 1, 1e-6);
    assert_float_equal(dw[0], 3 * q, 1e-6);
    assert_float_equal(dw[5], 4 * (p - 1), 1e-6);
    float both[2 + 4 + 6];
    Tensor in3[] = {in[0], in[1], in[2], in2[4]},
           out3[] = {FLOAT_T(both, 2, 1), FLOAT_T(both + 2, 2, 2), FLOAT_T(both + 6, 3, 2)};
    RUN(OP_HEAD_LOSS_AND_GRAD, in3, out3, .leaves = 1);
    check_floats(both, nll, 2);
    check_floats(both + 2, dx, 4);
    check_floats(both + 6, dw, 6);
}

// Putting head_loss for its parts may change no bit.
static void head_loss_equals_its_parts(void **state) {
    enum { ROWS = 3, D = 37, V = 101 };
    double *xd = drawn(11, ROWS * D), *wd = drawn(12, V * D);
    float *x = narrowed(xd, ROWS * D), *w = narrowed(wd, V * D), logit[ROWS * V], lse[ROWS], taken[ROWS];
    float nll[ROWS], lse2[ROWS];
    int32_t label[] = {0, 50, 100};
    Tensor in[] = {FLOAT_T(x, ROWS, D), FLOAT_T(w, V, D), INT_T(label, ROWS)};
    Tensor z[] = {FLOAT_T(logit, ROWS, V)};
    Tensor in2[] = {in[0], in[1]}, out[] = {FLOAT_T(nll, ROWS, 1), FLOAT_T(lse, ROWS, 1)};
    Tensor of_parts[] = {FLOAT_T(lse2, ROWS, 1)}, pick[] = {z[0], INT_T(label, ROWS, 1)};
    Tensor picked[] = {FLOAT_T(taken, ROWS, 1)};
    RUN(OP_HEAD_LOSS, in, out, 0);
    RUN(OP_MATMUL, in2, z, .tb = 1);
    RUN(OP_LOGSUMEXP, z, of_parts, 0);
    RUN(OP_TAKE, pick, picked, 0);
    check_floats(lse, lse2, ROWS);
    for (int i = 0; i < ROWS; i++) taken[i] = lse2[i] - taken[i];
    check_floats(nll, taken, ROWS);
    free(xd), free(wd), free(x), free(w);
}

static void patches_pad_with_zeros(void **state) {
    float x[] = {1, 2, 3, 4}, y[16], back[4];
    Tensor in[] = {FLOAT_T(x, 1, 2, 2)}, out[] = {FLOAT_T(y, 2, 2, 4)};
    Ints kernel = {2, {2, 2}};
    RUN(OP_PATCHES, in, out, .kernel = kernel, .stride = 2, .pad = 1);
    WANT_FLOATS(y, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 0);
    Tensor image[] = {FLOAT_T(back, 1, 2, 2)};
    RUN(OP_FOLD, out, image, .kernel = kernel, .stride = 2, .pad = 1);
    WANT_FLOATS(back, 1, 2, 3, 4);
}

static void cache_appends(void **state) {
    float pool[] = {1, 2, 3, 4, 0, 0, 0, 0}, rows[] = {5, 6}, all[6];
    Tensor in[] = {FLOAT_T(pool, 4, 2), FLOAT_T(rows, 1, 1, 2)}, out[] = {FLOAT_T(all, 1, 3, 2)};
    RUN(OP_CACHE, in, out, 0);
    WANT_FLOATS(all, 1, 2, 3, 4, 5, 6);
    out[0].data = pool;                       // the result as a view of the pool
    RUN(OP_CACHE, in, out, 0);
    WANT_FLOATS(pool, 1, 2, 3, 4, 5, 6, 0, 0);
}

// ---- attention against a plain softmax in double ----------------------------------------------------------

typedef struct { int B, S, C, H, Hk, A, V, causal, window, has; } Attend;

static void plain_attention(const Attend *p, const double *q, const double *k, const double *v,
                            const double *sinks, const double *bias, const uint8_t *valid,
                            const int32_t *documents, double *o, double *lse) {
    double *s = malloc(sizeof(double) * (size_t)p->C);
    for (int b = 0; b < p->B; b++)
        for (int i = 0; i < p->S; i++)
            for (int h = 0; h < p->H; h++) {
                int g = h / (p->H / p->Hk), at = i + p->C - p->S, row = (b * p->S + i) * p->H + h;
                double m = p->has & 1 ? sinks[h] : -INFINITY, sum = 0;
                for (int j = 0; j < p->C; j++) {
                    bool sees = (!p->causal || j <= at) &&
                                (!p->window || (j > at - p->window && j < at + p->window)) &&
                                (!(p->has & 4) || valid[b * p->C + j]) &&
                                (!(p->has & 8) || documents[b * p->C + j] == documents[b * p->C + at]);
                    s[j] = -INFINITY;
                    if (!sees) continue;
                    s[j] = 0;
                    for (int c = 0; c < p->A; c++)
                        s[j] += q[row * p->A + c] * k[((b * p->C + j) * p->Hk + g) * p->A + c];
                    s[j] *= 0.3;
                    if (p->has & 2) s[j] += bias[(h * p->S + i) * p->C + j];
                    m = fmax(m, s[j]);
                }
                for (int c = 0; c < p->V; c++) o[row * p->V + c] = 0;
                if (m > -INFINITY) {
                    if (p->has & 1) sum += exp(sinks[h] - m);
                    for (int j = 0; j < p->C; j++) sum += exp(s[j] - m);
                    for (int j = 0; j < p->C; j++)
                        for (int c = 0; c < p->V; c++)
                            o[row * p->V + c] +=
                                exp(s[j] - m) / sum * v[((b * p->C + j) * p->Hk + g) * p->V + c];
                }
                lse[row] = m > -INFINITY ? m + log(sum) : -INFINITY;
            }
    free(s);
}

static void attention_is_a_softmax(void **state) {
    static const Attend shapes[] = {
        {1, 5, 5, 1, 1, 3, 2, 1, 0, 0},         // causal
        {2, 5, 5, 4, 2, 3, 2, 1, 0, 1},         // two query heads a key head, sinks
        {2, 3, 7, 4, 1, 3, 2, 1, 3, 0},         // later queries only, window
        {1, 4, 9, 2, 2, 1, 1, 0, 0, 2},         // full, bias
        {2, 6, 6, 2, 1, 2, 3, 1, 0, 4 | 8},     // padding and documents: some queries see nothing
        {2, 6, 6, 2, 1, 2, 3, 0, 2, 15},
        {1, 2, 1100, 1, 1, 4, 2, 1, 0, 0},      // three segments of keys
        {1, 3, 1600, 2, 1, 4, 2, 1, 700, 1},    // four, the first out of sight
        {1, 130, 130, 1, 1, 2, 2, 1, 70, 8},    // three blocks
    };
    for (size_t t = 0; t < sizeof shapes / sizeof *shapes; t++) {
        Attend p = shapes[t];
        int seed = 1000 * (int)(t + 1);
        int64_t nq = (int64_t)p.B * p.S * p.H * p.A, nk = (int64_t)p.B * p.C * p.Hk * p.A,
                nv = nk / p.A * p.V;
        int64_t no = nq / p.A * p.V, nl = nq / p.A, nb = (int64_t)p.H * p.S * p.C, nc = (int64_t)p.B * p.C;
        double *x[5] = {drawn(seed, nq), drawn(seed + 1, nk), drawn(seed + 2, nv), drawn(seed + 3, p.H),
                        drawn(seed + 4, nb)};
        int64_t size[5] = {nq, nk, nv, p.H, nb};
        uint8_t *valid = malloc((size_t)nc);
        int32_t *documents = malloc(sizeof(int32_t) * (size_t)nc);
        for (int64_t i = 0; i < nc; i++) {
            valid[i] = draw(seed + 5, 0, i) < 0.6 && i % p.C != 0;      // the first key is never seen
            documents[i] = (int32_t)(i % p.C * 3 / p.C);
        }
        double *o = drawn(0, no), *lse = drawn(0, nl), *o64 = drawn(0, no), *lse64 = drawn(0, nl);
        float *o32 = narrowed(o, no), *lse32 = narrowed(lse, nl), *y[5];
        plain_attention(&p, x[0], x[1], x[2], x[3], x[4], valid, documents, o, lse);
        Tensor in[7] = {{F64, 4, {p.B, p.S, p.H, p.A}, x[0]}, {F64, 4, {p.B, p.C, p.Hk, p.A}, x[1]},
                        {F64, 4, {p.B, p.C, p.Hk, p.V}, x[2]}};
        int n = 3, floats = 3, source_of[5] = {0, 1, 2};
        if (p.has & 1) source_of[floats++] = 3, in[n++] = (Tensor){F64, 1, {p.H}, x[3]};
        if (p.has & 2) source_of[floats++] = 4, in[n++] = (Tensor){F64, 3, {p.H, p.S, p.C}, x[4]};
        if (p.has & 4) in[n++] = (Tensor){BOOL, 2, {p.B, p.C}, valid};
        if (p.has & 8) in[n++] = (Tensor){I32, 2, {p.B, p.C}, documents};
        Attrs attrs = {.causal = p.causal, .window = p.window, .scale = 0.3, .has = p.has};
        Tensor out[2] = {{F64, 4, {p.B, p.S, p.H, p.V}, o64}, {F64, 3, {p.B, p.S, p.H}, lse64}};
        op_info[OP_ATTENTION].ref64(&attrs, n, in, 2, out);
        for (int i = 0; i < floats; i++) {
            y[i] = narrowed(x[source_of[i]], size[source_of[i]]);
            in[i].dtype = F32, in[i].data = y[i];
        }
        Tensor out32[2] = {{F32, 4, {p.B, p.S, p.H, p.V}, o32}, {F32, 3, {p.B, p.S, p.H}, lse32}};
        op_info[OP_ATTENTION].ref(&attrs, n, in, 2, out32);
        for (int64_t i = 0; i < no; i++) {
            if (fabs(o64[i] - o[i]) > 1e-13 || fabs((double)o32[i] - o[i]) > 4e-6)
                fail_msg("shape %zu: o[%lld] is %.17g and %.9g, must be %.17g", t, (long long)i, o64[i],
                         (double)o32[i], o[i]);
        }
        for (int64_t i = 0; i < nl; i++) {
            if (lse[i] == -INFINITY && lse64[i] == -INFINITY && lse32[i] == -INFINITY) continue;
            if (!(fabs(lse64[i] - lse[i]) <= 1e-13) || !(fabs((double)lse32[i] - lse[i]) <= 4e-6))
                fail_msg("shape %zu: lse[%lld] is %.17g and %.9g, must be %.17g", t, (long long)i, lse64[i],
                         (double)lse32[i], lse[i]);
        }
        for (int i = 0; i < 5; i++) free(x[i]);
        for (int i = 0; i < floats; i++) free(y[i]);
        free(valid), free(documents), free(o), free(lse), free(o64), free(lse64), free(o32), free(lse32);
    }
}

// Keys behind the last visible one change no bit: decoding one token equals its row in a longer run.
static void attention_of_a_prefix_has_the_same_bits(void **state) {
    enum { C = 1300, A = 4 };
    double *q = drawn(7, C * A), *k = drawn(8, C * A), *v = drawn(9, C * A);
    float *qf = narrowed(q, C * A), *kf = narrowed(k, C * A), *vf = narrowed(v, C * A);
    float *o = malloc(sizeof(float) * C * A), *lse = malloc(sizeof(float) * C), one[A], one_lse[1];
    Tensor in[] = {FLOAT_T(qf, C, 1, A), FLOAT_T(kf, C, 1, A), FLOAT_T(vf, C, 1, A)};
    Tensor out[] = {FLOAT_T(o, C, 1, A), FLOAT_T(lse, C, 1)};
    RUN(OP_ATTENTION, in, out, .causal = 1, .scale = 0.5);
    for (int i = 0; i < C; i += 37) {
        Tensor in1[] = {FLOAT_T(qf + i * A, 1, 1, A), FLOAT_T(kf, i + 1, 1, A), FLOAT_T(vf, i + 1, 1, A)};
        Tensor out1[] = {FLOAT_T(one, 1, 1, A), FLOAT_T(one_lse, 1, 1)};
        RUN(OP_ATTENTION, in1, out1, .causal = 1, .scale = 0.5);
        check_floats(one, o + i * A, A);
        check_floats(one_lse, lse + i, 1);
    }
    free(q), free(k), free(v), free(qf), free(kf), free(vf), free(o), free(lse);
}

// Rows of several sequences: each attends, and is kept, as if it were alone.
static void sequences_are_as_if_alone(void **state) {
    enum { PLACES = 4, BOUND = 800, H = 2, A = 4, S = 9, N = 3, C = 700 };
    static int32_t sequence[N][SEQUENCE_COLUMNS] = {{0, 3, 600, 2}, {3, 5, 5, 0}, {8, 1, C, 3}};
    enum { POOL = PLACES * BOUND * A };
    double *drawn_q = drawn(11, S * H * A), *drawn_k = drawn(12, POOL), *drawn_bias = drawn(13, H * S * C), *drawn_rows = drawn(14, S * A);
    float *q = narrowed(drawn_q, S * H * A), *k = narrowed(drawn_k, POOL), *bias = narrowed(drawn_bias, H * S * C),
          *rows = narrowed(drawn_rows, S * A);
    float *all = malloc(sizeof *all * POOL), o[S * H * A], lse[S * H], one[S * H * A], one_lse[S * H];
    Tensor table = INT_T(sequence, N, SEQUENCE_COLUMNS), pool = FLOAT_T(k, PLACES, BOUND, 1, A);
    Tensor add[] = {pool, FLOAT_T(rows, 1, S, 1, A), table}, kept[] = {FLOAT_T(all, PLACES, BOUND, 1, A)};
    RUN(OP_CACHE, add, kept, 0);
    for (int64_t i = 0; i < POOL; i++) {
        int64_t place = i / (BOUND * A), at = i / A % BOUND;
        float want = k[i];
        for (int s = 0; s < N; s++) {
            int64_t row = at - (sequence[s][SEQUENCE_LENGTH] - sequence[s][SEQUENCE_ROWS]);
            if (place == sequence[s][SEQUENCE_PLACE] && row >= 0 && row < sequence[s][SEQUENCE_ROWS])
                want = rows[(sequence[s][SEQUENCE_FIRST] + row) * A + i % A];
        }
        assert_true(all[i] == want);
    }
    Tensor in[] = {FLOAT_T(q, 1, S, H, A), kept[0], kept[0], FLOAT_T(bias, H, S, C), table};
    Tensor out[] = {FLOAT_T(o, 1, S, H, A), FLOAT_T(lse, 1, S, H)};
    RUN(OP_ATTENTION, in, out, .causal = 1, .window = 550, .scale = 0.5, .has = 2 | 16);
    for (int s = 0; s < N; s++) {
        int first = sequence[s][SEQUENCE_FIRST], n = sequence[s][SEQUENCE_ROWS], length = sequence[s][SEQUENCE_LENGTH];
        float *own = malloc(sizeof *own * (size_t)(H * n * length)), *keys = all + sequence[s][SEQUENCE_PLACE] * BOUND * A;
        for (int64_t i = 0; i < (int64_t)H * n * length; i++)
            own[i] = bias[(i / (n * length) * S + first + i / length % n) * C + i % length];
        Tensor in1[] = {FLOAT_T(q + first * H * A, 1, n, H, A), FLOAT_T(keys, 1, length, 1, A), FLOAT_T(keys, 1, length, 1, A),
                        FLOAT_T(own, H, n, length)};
        Tensor out1[] = {FLOAT_T(one, 1, n, H, A), FLOAT_T(one_lse, 1, n, H)};
        RUN(OP_ATTENTION, in1, out1, .causal = 1, .window = 550, .scale = 0.5, .has = 2);
        check_floats(o + first * H * A, one, n * H * A);
        check_floats(lse + first * H, one_lse, n * H);
        free(own);
    }
    free(drawn_q), free(drawn_k), free(drawn_bias), free(drawn_rows), free(q), free(k), free(bias), free(rows), free(all);
}

// ---- what must not be built -------------------------------------------------------------------------------

static void wrong_operands_are_refused(void **state) {
    Arena *a = arena_create();
    Case *c = case_new(a, 0);
    Builder *b = &c->b;
    Dims d35 = {2, {{3, NULL}, {5, NULL}}}, d43 = {2, {{4, NULL}, {3, NULL}}}, d3 = {1, {{3, NULL}}};
    Value *x = source(c, "x", 0, F32, d35), *y = source(c, "x", 1, F32, d43),
          *e = source(c, "x", 2, I32, d35);
    Value *i = source(c, "x", 3, I32, d3);
    Sym *few = graph_add_sym(c->g, "few", SYM_RAGGED, 15, 2, 1);
    int errors = 0;
#define REFUSED(...) assert_null(__VA_ARGS__); assert_int_equal(diag_n_errors(c->diag), ++errors)
    REFUSED(build(b, OP_MATMUL, INS(x, y), 0));
    REFUSED(build(b, OP_MATMUL, INS(x, y), .tb = 1));
    REFUSED(build(b, OP_TOPK, INS(x), .k = 6));
    REFUSED(build(b, OP_TOPK, INS(x), .k = 0));
    REFUSED(build(b, OP_TAKE, INS(y, e), 0));
    REFUSED(build(b, OP_PUT, INS(y, e), .n = 3));
    REFUSED(build(b, OP_SCATTER_ADD_ROWS, INS(y, i), .dims = d35));
    REFUSED(build(b, OP_GATHER_ROWS, INS(x, y), 0));
    REFUSED(build(b, OP_ROUTE, INS(e), .experts = 3, .sym = few));
    REFUSED(build(b, OP_ROUTE, INS(e), .experts = 3));
    REFUSED(build(b, OP_GROUPED_MATMUL, INS(x, y, i), 0));
    REFUSED(build(b, OP_ATTENTION, INS(x, x, x), .scale = 1));
    REFUSED(build(b, OP_QUEUE, INS(e, y), .experts = 3));
    REFUSED(build(b, OP_PATCHES, INS(x), .stride = 1));
    Value *other = build(b, OP_ROUTE, INS(e), .experts = 2, .sym = few)->out;
    REFUSED(build(b, OP_ROW_GROUP, INS(other), .sym = c->rows));
    arena_destroy(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_has_an_instance),
        cmocka_unit_test(every_instance),
        cmocka_unit_test(topk_ties_and_nan),
        cmocka_unit_test(take_and_put_ignore_nobody),
        cmocka_unit_test(rows_by_index),
        cmocka_unit_test(counts),
        cmocka_unit_test(queues),
        cmocka_unit_test(routes),
        cmocka_unit_test(sinkhorn_evens_out),
        cmocka_unit_test(leaf_sums),
        cmocka_unit_test(grouped_matmul_uses_the_rows_expert),
        cmocka_unit_test(head_loss_skips_ignored_labels),
        cmocka_unit_test(head_loss_equals_its_parts),
        cmocka_unit_test(patches_pad_with_zeros),
        cmocka_unit_test(cache_appends),
        cmocka_unit_test(attention_is_a_softmax),
        cmocka_unit_test(attention_of_a_prefix_has_the_same_bits),
        cmocka_unit_test(sequences_are_as_if_alone),
        cmocka_unit_test(wrong_operands_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
