// Compiled contractions against their meaning: the same bits where the target has fma, nearly the same where
// not.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include "codegen/cpu/product.h"
#include "ir/ref/ref.h"
#include "tests/codegen/one_kernel.h"

static uint64_t state = 1;
static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
static int64_t between(int64_t lo, int64_t hi) { return lo + draw() % (uint64_t)(hi - lo + 1); }
static float number(void) { return (float)(draw() % 20001) / 10000.0f - 1.0f; }

static Sym leaf_sym(int64_t n) { return (Sym){.name = "L", .kind = SYM_LEAF, .bound = n}; }
static Dim num(int64_t n) { return (Dim){n, NULL}; }
static Dim sym(Sym *s) { return (Dim){1, s}; }

typedef struct {
    const CpuTarget *target;
    bool foreign;      // of instructions that this machine lacks: compiled, not run
    void *scratch;
} Setup;

// A case: one node, tensors of actual sizes, floats always f32 here (bf16 operands are rounded to).
typedef struct {
    OneKernel o;
    Tensor t[ONE_MAX], want[ONE_MAX];
    int64_t sym[8];
    void *extra[4];
    int n_extra;
} Case;

// On a machine with dot products everything is done with them, but chains so long that they must be f32.
static DType type_on(const Setup *s, DType t, int64_t K) { return s->target->dot && K <= 8192 ? BF16 : t; }

static int64_t size_now(const Case *c, Dim d) {
    if (!d.sym) return d.n;
    if (d.sym->kind == SYM_LEAF) return d.n * d.sym->bound;
    return d.n * c->sym[d.sym->id];
}

static Tensor tensor_of(const Case *c, const Type *type) {
    Tensor t = {.dtype = type->dtype == BF16 ? F32 : type->dtype, .ndim = type->ndim};
    int64_t n = 1;
    for (int i = 0; i < t.ndim; i++) n *= t.dim[i] = size_now(c, type->dim[i]);
    t.data = calloc((size_t)n + 16, (size_t)dtype_bytes(t.dtype));
    return t;
}

static float to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, 4);
    return x;
}

// As the kernel sees it: bf16 in two bytes.  Guard bytes behind show stores that went too far.
enum { GUARD = 64 };
static void *memory_of(const Tensor *t, DType dtype) {
    int64_t n = n_elements(t), bytes = n * dtype_bytes(dtype);
    unsigned char *m = aligned_alloc(64, (size_t)((bytes + GUARD + 63) / 64 * 64));
    memset(m + bytes, 0xa5, GUARD);
    for (int64_t i = 0; dtype == BF16 && i < n; i++) {
        uint32_t u;
        memcpy(&u, (float *)t->data + i, 4);
        ((uint16_t *)(void *)m)[i] = (uint16_t)(u >> 16);
    }
    if (dtype != BF16) memcpy(m, t->data, (size_t)bytes);
    return m;
}

static void fill(const Case *c, int i) {
    const Type *type = kernel_arg_type(&c->o.k, i);
    int64_t n = n_elements(&c->t[i]);
    if (!dtype_is_float(type->dtype)) return;
    for (int64_t j = 0; j < n; j++) reals(&c->t[i])[j] = type->dtype == BF16 ? to_bf16(number()) : number();
}

static void compare(const Setup *s, const Case *c, int i, void *memory) {
    const Type *type = kernel_arg_type(&c->o.k, i);
    const Tensor *want = &c->t[i];
    int64_t n = n_elements(want), wrong = 0;
    for (int64_t j = 0; j < n; j++) {
        float w = reals(want)[j], g;
        if (type->dtype == BF16) {
            uint32_t u = (uint32_t)((uint16_t *)memory)[j] << 16;
            memcpy(&g, &u, 4);
            w = to_bf16(w);
        } else {
            g = ((float *)memory)[j];
        }
        bool same = memcmp(&w, &g, 4) == 0 || (isnan(w) && isnan(g));
        if (!s->target->fma)
            same = same || fabsf(w - g) <= 1e-4f * (1 + fabsf(w)) ||
                   (type->dtype == BF16 && fabsf(w - g) <= 0.01f * (1 + fabsf(w)));
        if (!same && wrong++ < 4)
            print_message("result %d element %lld of %lld: %.9g, should be %.9g\n", i - c->o.node.n_in,
                          (long long)j, (long long)n, (double)g, (double)w);
    }
    assert_int_equal(wrong, 0);
    unsigned char *end = (unsigned char *)memory + n * dtype_bytes(type->dtype);
    for (int j = 0; j < GUARD; j++) assert_int_equal(end[j], 0xa5);
}

// Compiles, runs kernel and meaning, compares all results.  prepare fills integer operands.
static void check(const Setup *s, Case *c, DescribeFn *describe, EmitFn *emit, RefKernel *ref,
                  void (*prepare)(Case *c)) {
    OneKernel *o = &c->o;
    assert_true(one_compile(o, s->target, describe, emit));
    if (s->foreign) {
        one_free(o);
        return;
    }
    int n_args = kernel_n_args(&o->k), n_in = o->node.n_in;
    void *arg[ONE_MAX + 8];
    for (int i = 0; i < n_args; i++) {
        c->t[i] = tensor_of(c, kernel_arg_type(&o->k, i));
        if (i < n_in) fill(c, i);
    }
    if (prepare) prepare(c);
    for (int i = 0; i < n_args; i++) {
        arg[i] = memory_of(&c->t[i], kernel_arg_type(&o->k, i)->dtype);
        if (i >= n_in) {
            int64_t bytes = n_elements(&c->t[i]) * dtype_bytes(kernel_arg_type(&o->k, i)->dtype);
            memset(arg[i], 0x7f, (size_t)bytes);
        }
    }
    for (int i = 0; i < c->n_extra; i++) arg[n_args + i] = c->extra[i];
    void *workspace = aligned_alloc(64, (size_t)(o->d.workspace + 63) / 64 * 64 + 64);
    memset(workspace, 0x7f, (size_t)o->d.workspace);
    arg[n_args + c->n_extra] = workspace;
    memset(s->scratch, 0x7f, RT_SCRATCH_BYTES);
    one_run(o, arg, c->sym, s->scratch);
    ref(&o->node.attr, n_in, c->t, o->node.n_out, c->t + n_in);
    for (int i = n_in; i < n_args; i++) compare(s, c, i, arg[i]);
    for (int i = 0; i < n_args; i++) {
        free(arg[i]);
        free(c->t[i].data);
    }
    free(workspace);
    one_free(o);
}

// ---- matmul -------------------------------------------------------------------------------------

static void matmul_case(const Setup *s, DType t, int64_t batch, bool shared, int64_t M, int64_t K, int64_t N,
                        bool ta, bool tb) {
    t = type_on(s, t, K);
    Case c = {0};
    c.o.node.op = OP_MATMUL;
    c.o.node.attr = (Attrs){.ta = ta, .tb = tb};
    one_in(&c.o, ONE_TYPE(t, num(batch), num(ta ? K : M), num(ta ? M : K)));
    if (shared)
        one_in(&c.o, ONE_TYPE(t, num(tb ? N : K), num(tb ? K : N)));
    else
        one_in(&c.o, ONE_TYPE(t, num(batch), num(tb ? N : K), num(tb ? K : N)));
    one_out(&c.o, ONE_TYPE(t, num(batch), num(M), num(N)));
    check(s, &c, describe_matmul, emit_matmul, ref_matmul, NULL);
}

static void test_matmul_sizes(void **st) {
    static const int64_t sizes[][3] = {{1, 1, 1},     {1, 7, 5},      {2, 64, 256}, {3, 16, 40},
                                       {5, 100, 33},  {14, 33, 64},   {15, 32, 31}, {28, 128, 96},
                                       {63, 17, 32},  {253, 65, 100}, {300, 48, 8}, {505, 20, 300},
                                       {4, 300, 1000}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int tb = 0; tb < 2; tb++)
            matmul_case(*st, F32, 1, true, sizes[i][0], sizes[i][1], sizes[i][2], false, tb);
}

static void test_matmul_random(void **st) {
    for (int i = 0; i < 12; i++) {
        DType t = i % 3 == 2 ? BF16 : F32;
        matmul_case(*st, t, between(1, 3), draw() & 1, between(1, 40), between(1, 70), between(1, 80),
                    draw() & 1, draw() & 1);
    }
    matmul_case(*st, BF16, 1, true, 100, 64, 96, false, false);
    matmul_case(*st, F32, 1, true, 20, 8200, 40, false, false); // a chain that is cut
    matmul_case(*st, F32, 1, true, 3, 8200, 40, false, true);
}

static void dynamic_rows(const Setup *s, int64_t bound, int64_t now, int64_t K, int64_t N, bool tb) {
    DType t = type_on(s, F32, K);
    Sym rows = {.name = "S", .kind = SYM_PLAIN, .bound = bound, .id = 2};
    Case c = {.sym[2] = now};
    c.o.node.op = OP_MATMUL;
    c.o.node.attr.tb = tb;
    one_in(&c.o, ONE_TYPE(t, num(1), sym(&rows), num(K)));
    one_in(&c.o, ONE_TYPE(t, num(tb ? N : K), num(tb ? K : N)));
    one_out(&c.o, ONE_TYPE(t, num(1), sym(&rows), num(N)));
    check(s, &c, describe_matmul, emit_matmul, ref_matmul, NULL);
}

static void test_matmul_rows_vary(void **st) {
    static const int64_t now[] = {0, 1, 2, 5, 9, 14, 15, 252, 259, 512};
    for (size_t i = 0; i < sizeof now / sizeof now[0]; i++) dynamic_rows(*st, 512, now[i], 24, 200, i & 1);
}

static void dw_case(const Setup *s, DType t, int64_t leaves, int64_t rows, int64_t M, int64_t N) {
    t = type_on(s, t, rows);
    Sym leaf = leaf_sym(leaves);
    Case c = {0};
    c.o.node.op = OP_MATMUL_DW;
    c.o.node.attr.leaves = leaves;
    one_in(&c.o, ONE_TYPE(t, sym(&leaf), num(rows), num(M)));
    one_in(&c.o, ONE_TYPE(t, sym(&leaf), num(rows), num(N)));
    one_out(&c.o, ONE_TYPE(F32, num(M), num(N)));
    check(s, &c, describe_matmul_dw, emit_matmul_dw, ref_matmul_dw, NULL);
}

static void test_matmul_dw(void **st) {
    static const int64_t leaves[] = {1, 2, 3, 4, 7, 8, 12};
    for (size_t i = 0; i < sizeof leaves / sizeof leaves[0]; i++) {
        dw_case(*st, F32, leaves[i], between(1, 30), between(1, 150), between(1, 150));
        dw_case(*st, i % 2 ? BF16 : F32, leaves[i], between(1, 30), between(1, 20), between(1, 20));
    }
    dw_case(*st, F32, 2, 600, 128, 256); // leaves longer than a packed block
    dw_case(*st, F32, 4, 256, 113, 32);
}

// ---- grouped ------------------------------------------------------------------------------------

// Rows of each (expert, leaf): a few, none, or all with one expert.
static int32_t *make_offsets(int experts, int leaves, int64_t bound, int kind) {
    int n = experts * leaves;
    int32_t *at = calloc((size_t)n + 1, sizeof *at);
    int64_t left = bound, only = between(0, n - 1);
    for (int i = 0; i < n; i++) {
        int64_t take = kind == 0   ? between(0, 2 * bound / n)
                       : kind == 1 ? (i == only ? bound : 0)
                       : kind == 2 ? bound / n
                                   : 0;
        if (take > left) take = left;
        left -= take;
        at[i + 1] = at[i] + (int32_t)take;
    }
    return at;
}

static const int32_t *offsets_now;
static int offsets_arg, offsets_n;
static void put_offsets(Case *c) {
    memcpy(c->t[offsets_arg].data, offsets_now, sizeof(int32_t) * (size_t)offsets_n);
}

static bool one_chain;          // attribute of the grouped_dw tested

static void grouped_case(const Setup *s, DType t, int experts, int leaves, int64_t bound, int kind, int64_t K,
                         int64_t N, bool tb, bool dw, bool fixed) {
    t = type_on(s, t, K);
    Sym rows = {
        .name = "R", .kind = SYM_RAGGED, .bound = bound, .groups = experts, .leaves = leaves, .id = 3};
    Case c = {0};
    int32_t *offsets = make_offsets(experts, leaves, bound, kind);
    offsets_now = offsets;
    offsets_arg = 2;
    offsets_n = experts * leaves + 1;
    c.sym[3] = offsets[experts * leaves];
    c.extra[0] = offsets;
    c.n_extra = fixed ? 0 : 1;
    Dim r = fixed ? num(bound) : sym(&rows);
    c.o.node.attr.tb = tb;
    c.o.node.attr.one_chain = one_chain;
    one_in(&c.o, ONE_TYPE(t, r, num(K)));
    if (dw)
        one_in(&c.o, ONE_TYPE(t, r, num(N)));
    else
        one_in(&c.o, ONE_TYPE(t, num(experts), num(tb ? N : K), num(tb ? K : N)));
    one_in(&c.o, ONE_TYPE(I32, num(experts * leaves + 1)));
    if (dw)
        one_out(&c.o, ONE_TYPE(F32, num(experts), num(K), num(N)));
    else
        one_out(&c.o, ONE_TYPE(t, r, num(N)));
    if (dw)
        check(s, &c, describe_grouped_dw, emit_grouped_dw, ref_grouped_dw, put_offsets);
    else
        check(s, &c, describe_grouped_matmul, emit_grouped_matmul, ref_grouped_matmul, put_offsets);
    free(offsets);
}

static void test_grouped_matmul(void **st) {
    for (int kind = 0; kind < 4; kind++)
        for (int tb = 0; tb < 2; tb++) {
            grouped_case(*st, F32, 4, 1, 100, kind, 33, 70, tb, false, false);
            grouped_case(*st, kind == 2 ? BF16 : F32, 8, 4, 600, kind, 64, 64, tb, false, false);
        }
    grouped_case(*st, F32, 3, 8, 40, 1, 16, 20, false, false, true);
    grouped_case(*st, F32, 4, 2, 9, 0, 40, 256, false, false, false);
}

static void test_grouped_dw(void **st) {
    static const int leaves[] = {1, 4, 8, 3};
    for (int kind = 0; kind < 4; kind++)
        for (int i = 0; i < 4; i++)
            grouped_case(*st, kind == 2 ? BF16 : F32, i ? 3 : 8, leaves[i], 700, kind, between(1, 60),
                         between(1, 60), false, true, false);
    grouped_case(*st, F32, 2, 2, 1500, 1, 130, 130, false, true, false);
    for (int kind = 0; kind < 2; kind++) grouped_case(*st, F32, 8, 4, 2000, kind, 40, 50, false, true, false); // fours, and more rows than they take
    one_chain = true;                                        // experts of no rows, of few, of more than a chunk
    for (int kind = 0; kind < 4; kind++) grouped_case(*st, kind == 2 ? BF16 : F32, 3, 8, kind ? 700 : 1500, kind, 40, 50, false, true, false);
    one_chain = false;
}

static void sum_case(const Setup *s, DType t, int experts, int leaves, int64_t bound, int kind, int64_t N) {
    Sym rows = {
        .name = "R", .kind = SYM_RAGGED, .bound = bound, .groups = experts, .leaves = leaves, .id = 3};
    Case c = {0};
    int32_t *offsets = make_offsets(experts, leaves, bound, kind);
    offsets_now = offsets;
    offsets_arg = 1;
    offsets_n = experts * leaves + 1;
    c.sym[3] = offsets[experts * leaves];
    c.extra[0] = offsets;
    c.n_extra = 1;
    one_in(&c.o, ONE_TYPE(t, sym(&rows), num(N)));
    one_in(&c.o, ONE_TYPE(I32, num(offsets_n)));
    one_out(&c.o, ONE_TYPE(t, num(experts), num(N)));
    check(s, &c, describe_grouped_sum, emit_grouped_sum, ref_grouped_sum, put_offsets);
    free(offsets);
}

static void test_grouped_sum(void **st) {
    for (int kind = 0; kind < 4; kind++) {
        sum_case(*st, F32, 3, 4, 900, kind, 70);
        sum_case(*st, kind ? F32 : BF16, 2, 1, 700, kind, 16);
    }
}

// ---- attention ----------------------------------------------------------------------------------

enum { SINKS = 1, BIAS = 2, VALID = 4, DOCUMENTS = 8, SEQUENCES = 16 };

typedef struct {
    DType t;
    int64_t B, S, C, H, Hk, A, V, window;
    int causal, has;
    bool vary; // S and C are row symbols
} Shape;

// valid: some keys hidden, in one sequence all; documents: runs of equal numbers.
static void prepare_options(Case *c) {
    const Attrs *attr = &c->o.node.attr;
    int next = 3 + ((attr->has & SINKS) != 0) + ((attr->has & BIAS) != 0);
    if (attr->has & VALID) {
        Tensor *t = &c->t[next++];
        for (int64_t i = 0; i < n_elements(t); i++) bools(t)[i] = draw() % 4 != 0 && i >= t->dim[t->ndim - 1];
    }
    if (attr->has & DOCUMENTS) {
        Tensor *t = &c->t[next++];
        for (int64_t i = 0, d = 0; i < n_elements(t); i++) ints(t)[i] = (int32_t)(d += draw() % 9 == 0);
    }
    // The gradient needs o and lse of the same operands.
    if (c->o.node.n_out > 2) {
        Tensor out[2] = {c->t[next], c->t[next + 1]};
        ref_attention(attr, next, c->t, 2, out);
        if (kernel_arg_type(&c->o.k, next)->dtype == BF16)
            for (int64_t i = 0; i < n_elements(&out[0]); i++) reals(&out[0])[i] = to_bf16(reals(&out[0])[i]);
    }
}

static void attention_case(const Setup *s, Shape a, bool grad) {
    Sym S = {.name = "S", .kind = SYM_PLAIN, .bound = a.S + 3, .id = 1},
        C = {.name = "C", .kind = SYM_PLAIN, .bound = a.C + 5, .id = 2};
    Case c = {.sym = {0, a.S, a.C}};
    c.o.node.attr = (Attrs){.causal = a.causal, .window = a.window, .scale = 0.3, .has = a.has};
    Dim b = num(a.B), sd = a.vary ? sym(&S) : num(a.S), cd = a.vary ? sym(&C) : num(a.C), h = num(a.H),
        hk = num(a.Hk);
    Type bias = a.has & BIAS && a.A % 2 ? ONE_TYPE(F32, num(1), h, sd, num(1)) : ONE_TYPE(F32, h, sd, cd);
    Type o = ONE_TYPE(a.t, b, sd, h, num(a.V)), lse = ONE_TYPE(F32, b, sd, h);
    one_in(&c.o, ONE_TYPE(a.t, b, sd, h, num(a.A)));
    one_in(&c.o, ONE_TYPE(a.t, b, cd, hk, num(a.A)));
    one_in(&c.o, ONE_TYPE(a.t, b, cd, hk, num(a.V)));
    if (a.has & SINKS) one_in(&c.o, ONE_TYPE(F32, h));
    if (a.has & BIAS) one_in(&c.o, bias);
    if (a.has & VALID) one_in(&c.o, ONE_TYPE(BOOL, b, cd));
    if (a.has & DOCUMENTS) one_in(&c.o, ONE_TYPE(I32, b, cd));
    if (!grad) {
        one_out(&c.o, o);
        one_out(&c.o, lse);
        check(s, &c, describe_attention, emit_attention, ref_attention, prepare_options);
        return;
    }
    one_in(&c.o, o);
    one_in(&c.o, lse);
    one_in(&c.o, o);
    for (int i = 0; i < 3; i++) one_out(&c.o, c.o.value[i].type);
    if (a.has & SINKS) one_out(&c.o, lse);
    if (a.has & BIAS) one_out(&c.o, ONE_TYPE(F32, b, h, sd, cd));
    check(s, &c, describe_attention_grad, emit_attention_grad, ref_attention_grad, prepare_options);
}

// first row, rows, length, place: in calls of up to 45 rows of up to 4 sequences, from pools of 5 places
static const int32_t runs[][4 * SEQUENCE_COLUMNS] = {
    {0, 20, 20, 3, 20, 1, 1100, 0, 21, 3, 700, 1, 24, 1, 1, 4},
    {0, 1, 64, 0, 1, 1, 513, 1, 2, 1, 900, 2, 3, 1, 8, 3},
    {0, 9, 1200, 2, 9, 36, 530, 4},
};
static const int n_runs[] = {4, 4, 2};
static const int32_t *run_at_hand;

static void prepare_sequences(Case *c) {
    int last = c->o.node.n_in - 1;
    memcpy(c->t[last].data, run_at_hand, (size_t)n_elements(&c->t[last]) * sizeof *run_at_hand);
}

static void sequences_case(const Setup *s, Shape a, int run) {
    Sym S = {.name = "S", .kind = SYM_PLAIN, .bound = 48, .id = 1}, C = {.name = "C", .kind = SYM_PLAIN, .bound = a.C, .id = 2},
        R = {.name = "R", .kind = SYM_PLAIN, .bound = 5, .id = 3};
    const int32_t *last = runs[run] + (n_runs[run] - 1) * SEQUENCE_COLUMNS;
    Case c = {.sym = {0, last[SEQUENCE_FIRST] + last[SEQUENCE_ROWS], a.C, n_runs[run]}};
    run_at_hand = runs[run];
    c.o.node.attr = (Attrs){.causal = 1, .window = a.window, .scale = 0.3, .has = a.has | SEQUENCES};
    Dim one = num(1), places = num(5), sd = sym(&S), cd = num(a.C), h = num(a.H), hk = num(a.Hk);
    one_in(&c.o, ONE_TYPE(a.t, one, sd, h, num(a.A)));
    one_in(&c.o, ONE_TYPE(a.t, places, cd, hk, num(a.A)));
    one_in(&c.o, ONE_TYPE(a.t, places, cd, hk, num(a.V)));
    if (a.has & SINKS) one_in(&c.o, ONE_TYPE(F32, h));
    if (a.has & BIAS) one_in(&c.o, ONE_TYPE(F32, h, sd, sym(&C)));
    one_in(&c.o, ONE_TYPE(I32, sym(&R), num(SEQUENCE_COLUMNS)));
    one_out(&c.o, ONE_TYPE(a.t, one, sd, h, num(a.V)));
    one_out(&c.o, ONE_TYPE(F32, one, sd, h));
    check(s, &c, describe_attention, emit_attention, ref_attention, prepare_sequences);
}

static void test_attention_of_sequences(void **st) {
    static const Shape shapes[] = {
        {.t = F32, .C = 1200, .H = 4, .Hk = 2, .A = 16, .V = 24},
        {.t = F32, .C = 1200, .H = 2, .Hk = 1, .A = 24, .V = 16, .window = 100, .has = SINKS},
        {.t = BF16, .C = 1200, .H = 2, .Hk = 2, .A = 16, .V = 16, .has = BIAS},
        {.t = F32, .C = 1200, .H = 10, .Hk = 1, .A = 16, .V = 16},           // never few
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t run = 0; run < sizeof n_runs / sizeof *n_runs; run++) sequences_case(*st, shapes[i], (int)run);
}

static const Shape attention_shapes[] = {
    {F32, 1, 1, 1, 1, 1, 8, 8, 0, 1, 0},
    {F32, 2, 64, 64, 2, 1, 16, 16, 0, 1, 0},
    {F32, 2, 45, 45, 4, 2, 24, 40, 0, 1, SINKS},
    {F32, 1, 33, 70, 2, 2, 32, 32, 0, 0, BIAS},
    {F32, 1, 40, 40, 2, 1, 17, 19, 0, 1, BIAS | VALID},
    {F32, 2, 100, 100, 3, 1, 16, 48, 20, 1, DOCUMENTS | SINKS},
    {F32, 1, 90, 90, 2, 2, 16, 16, 7, 0, VALID},
    {F32, 1, 3, 600, 4, 2, 16, 16, 0, 1, 0, true},
    {F32, 1, 1, 1100, 4, 1, 32, 32, 0, 1, SINKS, true},
    {F32, 1, 20, 1700, 2, 2, 16, 16, 300, 1, 0, true},
    {F32, 1, 2, 4700, 1, 1, 8, 8, 1000, 1, VALID, true},
    {BF16, 2, 50, 50, 4, 2, 16, 32, 0, 1, SINKS | VALID},
    // tasks of several tiles; gradients in runs of keys and of queries
    {F32, 1, 300, 300, 2, 1, 24, 40, 0, 1, 0},
    {BF16, 1, 290, 290, 2, 1, 16, 16, 100, 1, DOCUMENTS},
    {F32, 1, 70, 330, 2, 1, 16, 32, 50, 0, BIAS},
    {BF16, 4, 3, 190, 1, 1, 1024, 1024, 0, 1, 0}, // the largest sums that stay in scratch
    // few queries
    {F32, 2, 1, 1300, 3, 1, 40, 40, 0, 1, 0, true},
    {BF16, 1, 2, 700, 4, 1, 24, 19, 70, 1, SINKS | DOCUMENTS, true},
    {F32, 1, 1, 130, 5, 1, 33, 64, 20, 0, BIAS | VALID, true},
    {F32, 1, 2, 90, 2, 2, 16, 16, 0, 1, SINKS},
    {BF16, 1, 1, 3700, 8, 1, 64, 128, 0, 1, 0, true},
    {F32, 1, 3, 2200, 1, 1, 64, 64, 0, 1, 0, true}, // more keys than are copied at once
};

static void test_attention(void **st) {
    for (size_t i = 0; i < sizeof attention_shapes / sizeof attention_shapes[0]; i++)
        attention_case(*st, attention_shapes[i], false);
}
static void test_attention_grad(void **st) {
    for (size_t i = 0; i < sizeof attention_shapes / sizeof attention_shapes[0]; i++)
        attention_case(*st, attention_shapes[i], true);
}

// ---- head ---------------------------------------------------------------------------------------

static void prepare_labels(Case *c) {
    int64_t V = c->t[1].dim[0];
    for (int64_t i = 0; i < n_elements(&c->t[2]); i++)
        ints(&c->t[2])[i] = draw() % 8 ? (int32_t)between(0, V - 1) : -1;
    if (c->o.node.op != OP_HEAD_LOSS_GRAD) return;
    Tensor nll = c->t[4], lse = c->t[3], out[2];
    out[0] = tensor_of(c, kernel_arg_type(&c->o.k, 4));
    out[1] = lse;
    ref_head_loss(&c->o.node.attr, 3, c->t, 2, out);
    free(out[0].data);
    for (int64_t i = 0; i < n_elements(&nll); i++) reals(&nll)[i] = number();
}

static void head_case(const Setup *s, Op op, DType t, int64_t leaves, int64_t rows, int64_t D, int64_t V) {
    Sym leaf = leaf_sym(leaves);
    Case c = {.o.node = {.op = op, .attr = {.leaves = leaves, .narrow = t == BF16}}};
    Type x = ONE_TYPE(t, sym(&leaf), num(rows), num(D)), w = ONE_TYPE(t, num(V), num(D)),
         one = ONE_TYPE(F32, sym(&leaf), num(rows), num(1));
    one_in(&c.o, x);
    one_in(&c.o, w);
    one_in(&c.o, ONE_TYPE(I32, sym(&leaf), num(rows)));
    if (op == OP_HEAD_LOSS_GRAD) one_in(&c.o, one);
    if (op != OP_HEAD_LOSS) one_in(&c.o, one);
    if (op != OP_HEAD_LOSS_GRAD) one_out(&c.o, one);
    one_out(&c.o, op == OP_HEAD_LOSS ? one : x);
    if (op != OP_HEAD_LOSS) one_out(&c.o, ONE_TYPE(F32, num(V), num(D)));
    check(s, &c, describe_head_loss, emit_head_loss,
          op == OP_HEAD_LOSS        ? ref_head_loss
          : op == OP_HEAD_LOSS_GRAD ? ref_head_loss_grad
                                    : ref_head_loss_and_grad,
          prepare_labels);
}

static void test_head_loss(void **st) {
    const Op op[] = {OP_HEAD_LOSS, OP_HEAD_LOSS_GRAD, OP_HEAD_LOSS_AND_GRAD};
    for (int i = 0; i < 3; i++) {
        head_case(*st, op[i], F32, 1, 1, 8, 5);
        head_case(*st, op[i], F32, 2, 33, 24, 100);
        head_case(*st, op[i], F32, 4, 70, 32, 257);
        head_case(*st, op[i], BF16, 3, 20, 16, 64);
        head_case(*st, op[i], F32, 3, 150, 16, 33000);  // rounds of leaves
        head_case(*st, op[i], F32, 2, 450, 16, 24000);  // rounds of pieces of a leaf
        head_case(*st, op[i], BF16, 1, 600, 8, 17000);
        head_case(*st, op[i], F32, 1, 9, 7168, 50);
    }
}

static int set_up(void **st, const char *name, bool foreign) {
    Setup *s = calloc(1, sizeof *s);
    s->target = one_target(name);
    s->foreign = foreign;
    s->scratch = aligned_alloc(64, RT_SCRATCH_BYTES);
    *st = s;
    return 0;
}
static int tear_down(void **st) {
    free(((Setup *)*st)->scratch);
    free(*st);
    return 0;
}
static bool runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool runs_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}
static bool runs_avx512bf16(void) { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

static int sse2(void **st) { return set_up(st, "sse2", false); }
static int avx2(void **st) { return set_up(st, "avx2", !runs_avx2()); }
static int avx512(void **st) { return set_up(st, "avx512", !runs_avx512()); }
static int avx512bf16(void **st) { return set_up(st, "avx512bf16", !runs_avx512bf16()); }

// A pattern, such as '*dw': only those tests.
int main(int n_args, char **arg) {
    if (n_args > 1) cmocka_set_test_filter(arg[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_sizes),     cmocka_unit_test(test_matmul_random),
        cmocka_unit_test(test_matmul_rows_vary), cmocka_unit_test(test_matmul_dw),
        cmocka_unit_test(test_grouped_matmul),   cmocka_unit_test(test_grouped_dw),
        cmocka_unit_test(test_grouped_sum),      cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_grad),   cmocka_unit_test(test_attention_of_sequences), cmocka_unit_test(test_head_loss),
    };
    const struct CMUnitTest some[] = {              // where nobody runs it
        cmocka_unit_test(test_matmul_sizes), cmocka_unit_test(test_matmul_dw), cmocka_unit_test(test_grouped_matmul),
        cmocka_unit_test(test_attention),
    };
    __builtin_cpu_init();
    int failed = runs_avx2() ? cmocka_run_group_tests_name("sse2", some, sse2, tear_down)
                             : cmocka_run_group_tests_name("sse2", tests, sse2, tear_down);
    failed += cmocka_run_group_tests_name("avx2", tests, avx2, tear_down);
    failed += cmocka_run_group_tests_name("avx512", tests, avx512, tear_down);
    failed += cmocka_run_group_tests_name("avx512bf16", tests, avx512bf16, tear_down);
    return failed != 0;
}
