// Runs a graph through a target and through the evaluator on the same inputs, and compares the results it returns.
#ifndef TESTS_CODEGEN_RUN_GRAPH_H
#define TESTS_CODEGEN_RUN_GRAPH_H
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/target.h"
#include "ir/build.h"
#include "ir/eval.h"
#include "passes/pass.h"

typedef struct {
    Arena *arena;
    Diag  *diag;
    Graph *g;
    Builder b;
} Case;

static inline Case case_new(void) {
    Case c = {.arena = arena_create()};
    c.diag = diag_new(c.arena);
    c.g = graph_new(c.arena, "eval");
    c.b = builder_end(c.g, NULL);
    return c;
}

static inline void case_free(Case *c) { arena_destroy(c->arena); }

#define DIMS(...) ((Dims){(int)(sizeof((Dim[]){__VA_ARGS__}) / sizeof(Dim)), {__VA_ARGS__}})

static inline Value *case_input(Case *c, const char *name, DType t, Dims dims) {
    return make(&c->b, OP_INPUT, INS(NULL), .name = intern(name), .dtype = t, .dims = dims);
}
static inline void case_return(Case *c, Value *v, const char *name) { build(&c->b, OP_RETURN, INS(v), .name = intern(name)); }

static inline uint32_t case_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint32_t x = (uint32_t)(*state >> 32);
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    return x ^ x >> 12;
}

static inline uint64_t case_seed(const char *name) { return str_hash(name, strlen(name), 7); }

// Inputs: floats in about [-4, 4] with a few zeros and large ones; ints 0 .. 7 (-1 too if the name begins with e); bools.
static inline void case_fill(const char *name, DType t, int64_t n, void *to) {
    uint64_t state = case_seed(name);
    for (int64_t i = 0; i < n; i++) {
        uint32_t r = case_random(&state);
        float x = ((float)(int32_t)r) * 0x1p-29f;
        if (r % 61 == 0) x = 0;
        if (r % 97 == 0) x *= 20;
        if (name[0] == 'p') x = fabsf(x) + 0.01f;           // positive
        switch (t) {
        case F32: ((float *)to)[i] = x; break;
        case BF16: { uint32_t u; memcpy(&u, &x, 4); ((uint16_t *)to)[i] = (uint16_t)(u >> 16); break; }
        case F16: ((_Float16 *)to)[i] = (_Float16)x; break;
        case BOOL: ((uint8_t *)to)[i] = r & 1; break;
        default: ((int32_t *)to)[i] = name[0] == 'e' ? (int32_t)(r % 9) - 1 : (int32_t)(r % 8); break;
        }
    }
}

// The same elements, where the tensor's layout has them.
static inline void case_fill_panels(const char *name, const RtTensor *t, int64_t count, char *to) {
    int64_t rows = t->dim[t->ndim - 2], cols = t->dim[t->ndim - 1], size = dtype_bytes((DType)t->dtype);
    char *raw = malloc((size_t)(count * size + 1));
    case_fill(name, (DType)t->dtype, count, raw);
    memset(to, 0, (size_t)t->bytes);
    for (int64_t i = 0; i < count; i++) {
        int64_t matrix = i / (rows * cols), inside = i % (rows * cols);
        int64_t at = matrix * layout_elements((Layout)t->layout, rows, cols) +
                     layout_index((Layout)t->layout, rows, cols, inside / cols, inside % cols);
        memcpy(to + at * size, raw + i * size, (size_t)size);
    }
    free(raw);
}

static inline int64_t case_count(const int64_t *dim, int ndim) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= dim[i];
    return n;
}

typedef struct { int64_t plain; } CaseSyms;

static inline bool case_source(void *self, const Node *n, Tensor *t) {
    DType storage = n->out[0].type.dtype;
    int64_t count = case_count(t->dim, t->ndim);
    void *raw = malloc((size_t)(type_bytes(&n->out[0].type) + 64));
    case_fill(n->attr.name, storage, count, raw);
    for (int64_t i = 0; i < count; i++) {
        if (storage == BF16) { uint32_t u = (uint32_t)((uint16_t *)raw)[i] << 16; memcpy((float *)t->data + i, &u, 4); }
        else if (storage == F16) ((float *)t->data)[i] = (float)((_Float16 *)raw)[i];
    }
    if (storage != BF16 && storage != F16) memcpy(t->data, raw, (size_t)(count * dtype_bytes(storage)));
    free(raw);
    return true;
}

static inline int64_t case_sym(void *self, const Sym *s) { return ((CaseSyms *)self)->plain; }

// Every value gets memory of its own; results of steps stay clear of each other.
static inline void case_place(Graph *g) {
    int64_t at = 0;
    for_each_node(g, n)
        for (int i = 0; i < n->n_out; i++) {
            Value *v = &n->out[i];
            v->arena = RT_STEP;
            v->offset = at;
            at += (type_bytes(&v->type) + 127) / 64 * 64;
        }
    g->arena_bytes = at;
    g->stage = PLANNED;
}

typedef struct { char *base[RT_ARENAS]; int64_t *sym; } CaseMemory;

static inline void case_read_syms(const RtPlan *p, CaseMemory *m, int64_t plain) {
    const RtSym *s = RT_TABLE(p, RtSym, syms);
    for (uint32_t i = 0; i < p->syms.n; i++)
        m->sym[i] = s[i].fixed >= 0 ? s[i].fixed : s[i].from_arena < 0 ? plain
                  : ((int32_t *)(m->base[s[i].from_arena] + s[i].from_offset))[s[i].from_index];
}

static inline void case_execute(const Compiled *c, CaseMemory *m, int64_t plain) {
    const RtPlan *p = compiled_plan(c);
    const RtKernel *kernels = RT_TABLE(p, RtKernel, kernels);
    void *scratch = aligned_alloc(64, RT_SCRATCH_BYTES);
    for (uint32_t i = 0; i < p->steps.n; i++) {
        const RtStep *s = &RT_TABLE(p, RtStep, steps)[i];
        const RtArg *args = RT_TABLE(p, RtArg, args) + s->first_arg;
        void *arg[128];
        assert(s->n_args <= 128);
        for (uint32_t j = 0; j < s->n_args; j++) arg[j] = m->base[args[j].arena] + args[j].offset;
        const RtKernel *k = &kernels[s->kernel];
        for (uint32_t phase = 0; phase < (uint32_t)k->n_phases * k->n_rounds; phase++) {
            int64_t tasks = rt_count_tasks(&s->tasks[phase % k->n_phases], m->sym);
            for (int64_t task = tasks - 1; task >= 0; task--) {      // any order
                memset(scratch, 0xff, 1 << 16);
                RtCall call = {.arg = arg, .sym = m->sym, .task = (int32_t)task, .n_tasks = (int32_t)tasks,
                               .phase = (int32_t)phase, .scratch = scratch,
                               .data = k->data.n ? (const char *)p + k->data.offset : NULL};
                compiled_kernel(c, (int)s->kernel)(&call);
            }
        }
        case_read_syms(p, m, plain);
    }
    free(scratch);
}

// NaN equals NaN; else the same bits, or within `tolerance` relative to the larger one.
static inline bool case_same(float a, float b, double tolerance) {
    if (isnan(a) && isnan(b)) return true;
    if (a == b) return true;
    double d = fabs((double)a - (double)b), m = fmax(fabs((double)a), fabs((double)b));
    return tolerance > 0 && (d <= tolerance * m || d <= tolerance * 1e-2);
}

static inline float case_element(DType storage, const void *x, int64_t i) {
    switch (storage) {
    case F32: return ((const float *)x)[i];
    case BF16: { uint32_t u = (uint32_t)((const uint16_t *)x)[i] << 16; float f; memcpy(&f, &u, 4); return f; }
    case F16: return (float)((const _Float16 *)x)[i];
    case BOOL: return ((const uint8_t *)x)[i];
    default: return (float)((const int32_t *)x)[i];
    }
}

// Steps of compiled graphs that ran a reference meaning, over all comparisons so far.
static int case_references;
// What code is chosen by; NULL: a typical machine.
static const Machine *case_machine;

// The number of results that differ; prints the first of each.  cpu NULL: target interp.  plain: value of plain symbols.
// The values of the graph have their places.
static inline int case_compare_placed(Case *c, const char *cpu, int64_t plain, double tolerance) {
    CaseSyms syms = {plain};
    EvalOpts opts = {.source = case_source, .self = &syms, .sym_value = case_sym};
    Eval *e = eval_graph(c->arena, c->g, &opts, c->diag);
    const Tensor *want[64];
    Node *ret[64];
    int n_ret = 0;
    for_each_node(c->g, n)
        if (n->op == OP_RETURN) {
            want[n_ret] = eval_value(e, n->in[0]);
            ret[n_ret++] = n;
        }
    CompileOpts co = {.cpu = cpu, .cache_dir = "", .threads = 1, .machine = case_machine};
    Compiled *code = target_find(cpu ? "cpu" : "interp")->compile(&c->g, 1, &co, c->diag);
    if (!code) {
        diag_print(c->diag, stderr, false);
        return 1;
    }
    const RtPlan *p = compiled_plan(code);
    CaseMemory m = {{aligned_alloc(64, (size_t)p->persistent_bytes / 64 * 64 + 128), aligned_alloc(64, (size_t)p->step_bytes / 64 * 64 + 128),
                     (char *)p + p->consts.offset}, calloc(p->syms.n + 1, 8)};
    memset(m.base[0], 0xff, (size_t)p->persistent_bytes);
    memset(m.base[1], 0xff, (size_t)p->step_bytes);
    const RtTensor *t = RT_TABLE(p, RtTensor, tensors);
    for (uint32_t i = 0; i < p->tensors.n; i++)
        if (t[i].role != RT_OUTPUT) {
            int64_t count = 1;
            for (int k = 0; k < t[i].ndim; k++) {
                bool is_plain = t[i].dim_sym[k] >= 0 && RT_TABLE(p, RtSym, syms)[t[i].dim_sym[k]].fixed < 0;
                count *= is_plain ? t[i].dim[k] / RT_TABLE(p, RtSym, syms)[t[i].dim_sym[k]].bound * plain : t[i].dim[k];
            }
            void *to = m.base[t[i].arena] + t[i].offset;
            if (t[i].layout == LAYOUT_ROWS) case_fill(RT_TEXT(p, t[i].name), (DType)t[i].dtype, count, to);
            else case_fill_panels(RT_TEXT(p, t[i].name), &t[i], count, to);
        }
    case_read_syms(p, &m, plain);
    case_execute(code, &m, plain);
    int bad = 0;
    for (int r = 0; r < n_ret; r++)
        for (uint32_t i = 0; i < p->tensors.n; i++) {
            if (t[i].role != RT_OUTPUT || strcmp(RT_TEXT(p, t[i].name), ret[r]->attr.name)) continue;
            const void *have = m.base[t[i].arena] + t[i].offset;
            int64_t count = case_count(want[r]->dim, want[r]->ndim);
            for (int64_t k = 0; k < count; k++) {
                float x = case_element((DType)t[i].dtype, have, k), y = case_element(want[r]->dtype, want[r]->data, k);
                if (case_same(x, y, tolerance)) continue;
                printf("%s %s[%lld]: %.9g (%a), must be %.9g (%a)  %s\n", cpu ? cpu : "interp", ret[r]->attr.name, (long long)k,
                       (double)x, (double)x, (double)y, (double)y, node_str(ret[r]->in[0]->node));
                bad++;
                break;
            }
        }
    int reference = compiled_stats(code).reference;
    if (cpu) case_references += reference;
    for (uint32_t i = 0; cpu && reference && getenv("CASE_VERBOSE") && i < p->steps.n; i++) {
        const RtStep *s = &RT_TABLE(p, RtStep, steps)[i];
        if (!strcmp(RT_TEXT(p, RT_TABLE(p, RtKernel, kernels)[s->kernel].symbol), "moec_ref_kernel"))
            printf("%s runs the reference\n", RT_TEXT(p, s->op));
    }
    free(m.base[0]);
    free(m.base[1]);
    free(m.sym);
    compiled_free(code);
    return bad;
}

static inline int case_compare(Case *c, const char *cpu, int64_t plain, double tolerance) {
    case_place(c->g);
    return case_compare_placed(c, cpu, plain, tolerance);
}

static inline bool case_runs(const char *cpu) {
#if defined(__x86_64__)
    if (!strcmp(cpu, "avx512bf16"))
        return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(cpu, "avx512")) return __builtin_cpu_supports("x86-64-v4");
    if (!strcmp(cpu, "avx2")) return __builtin_cpu_supports("x86-64-v3");
    return true;
#else
    return !strcmp(cpu, "native");
#endif
}

// On every machine of the table that runs here, and on interp.  Machines without fma get `loose` as their tolerance.
static inline int case_compare_all(Case *c, int64_t plain, double loose) {
    static const char *const cpus[] = {"native", "avx512bf16", "avx512", "avx2", "sse2"};
    int bad = case_compare(c, NULL, plain, 0);
    for (int i = 0; i < 5; i++)
        if (case_runs(cpus[i])) bad += case_compare(c, cpus[i], plain, strcmp(cpus[i], "sse2") ? 0 : loose);
    return bad;
}

// ---- bodies -------------------------------------------------------------------------------------------------

typedef struct { Graph *g; Builder b; Value *in[32]; int n_in; } BodyCase;

static inline BodyCase body_new(Case *c) {
    BodyCase k = {.g = graph_new(c->arena, "body")};
    k.g->parent = c->g;
    k.b = builder_end(k.g, NULL);
    return k;
}
static inline Value *body_arg(BodyCase *k, Value *outside) {
    k->in[k->n_in] = outside;
    return make(&k->b, OP_ARG, INS(NULL), .k = k->n_in++, .dtype = outside->type.dtype, .dims = dims_of(&outside->type));
}
// The fused node whose results are ys.
static inline Node *body_end(Case *c, BodyCase *k, Value *const *ys) {
    build_node(&k->b, OP_YIELD, ys, &(Attrs){0});
    Type types[32];
    int n = 0;
    for (; ys[n]; n++) types[n] = ys[n]->type;
    Value *ins[33] = {NULL};
    for (int i = 0; i < k->n_in; i++) ins[i] = k->in[i];
    return build_typed(&c->b, OP_FUSED, ins, &(Attrs){.body = k->g}, n, types);
}

static inline LayoutOffer case_panels(const Node *n, int operand, const char *cpu, const Machine *m, int64_t passing) {
    LayoutOffer o = target_find("cpu")->layout(n, operand, cpu, m, passing);
    o.laid = 0;
    return o;
}

// The passes that say where products leave their results and how the parameters of a reading program lie: in panels where they may.
static inline void case_lay_out(Case *c) {
    Arena *scratch = arena_create();
    PassCtx cx = {.scratch = scratch, .diag = c->diag, .own_parameters = true, .layout = case_panels};
    pass_fuse(c->g, &cx);
    pass_attach(c->g, &cx);
    pass_layout(c->g, &cx);
    arena_destroy(scratch);
}

#endif
