// Compiles the kernel of one node and runs it: for tests and benchmarks of templates, without graph and plan.
#ifndef TESTS_CODEGEN_ONE_KERNEL_H
#define TESTS_CODEGEN_ONE_KERNEL_H
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/cpu/cpu.h"

enum { ONE_MAX = 24 };

typedef struct {
    Node node;
    Value value[ONE_MAX], out[ONE_MAX], *in[ONE_MAX];
    KernelNode k;
    KernelDesc d;
    Arena *arena;
    Jit *jit;
    Machine rates;
    RtKernelFn *fn;
} OneKernel;

// Operands and results are added with their types before compiling.
static inline void one_in(OneKernel *o, Type t) {
    Value *v = &o->value[o->node.n_in];
    v->type = t;
    o->in[o->node.n_in++] = v;
}
static inline void one_out(OneKernel *o, Type t) { o->out[o->node.n_out++].type = t; }
static inline Type one_type(DType dtype, int n, ...) {
    Type t = {.dtype = dtype, .ndim = (uint8_t)n};
    va_list ap;
    va_start(ap, n);
    for (int i = 0; i < n; i++) t.dim[i] = va_arg(ap, Dim);
    va_end(ap);
    return t;
}
#define ONE_COUNT(...) (int)(sizeof((Dim[]){__VA_ARGS__}) / sizeof(Dim))
#define ONE_TYPE(dtype, ...) one_type(dtype, ONE_COUNT(__VA_ARGS__), __VA_ARGS__)

static inline void one_note_sym(OneKernel *o, const Sym *s) {
    if (!s || s->kind == SYM_LEAF) return;
    KernelNode *k = &o->k;
    if (s->kind == SYM_PLAIN) {
        for (int i = 0; i < k->n_plain; i++)
            if (k->plain[i] == s) return;
        k->plain_index[k->n_plain] = s->id;
        k->plain[k->n_plain++] = s;
    } else {
        for (int i = 0; i < k->n_ragged; i++)
            if (k->ragged[i] == s) return;
        k->ragged[k->n_ragged++] = s;
    }
}

static inline const CpuTarget *one_target(const char *name) {
    Arena *a = arena_create();
    const CpuTarget *t = cpu_find(name, false, diag_new(a));     // a row of the table
    arena_destroy(a);
    return t;
}

// false: the template declines the node.
static inline bool one_compile(OneKernel *o, const CpuTarget *target, DescribeFn *describe, EmitFn *emit) {
    Node *n = &o->node;
    n->in = o->in;
    n->out = o->out;
    o->k.node = n;
    o->rates = machine_guess(target->vector_bytes, 2);
    o->k.machine = &o->rates;
    o->k.target = target;
    for (int i = 0; i < kernel_n_args(&o->k); i++)
        for (int j = 0; j < kernel_arg_type(&o->k, i)->ndim; j++)
            one_note_sym(o, kernel_arg_type(&o->k, i)->dim[j].sym);
    o->arena = arena_create();
    o->d = (KernelDesc){.key.arena = o->arena, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) o->d.tasks[i] = tasks_fixed(1);
    if (!describe(&o->k, &o->d)) return false;

    o->k.workspace = true;
    KernelTemplate made_by = {n->op, describe, emit};
    PlanKernel kernel = {.key = "kernel", .symbol = "kernel", .made_by = &made_by, .node = o->k};
    if (getenv("ONE_ASM")) {
        Object text = cpu_emit_text(target, &kernel, FORM_ASSEMBLY);
        fwrite(text.bytes, 1, text.n, stdout);
        free(text.bytes);
    }
    EmittedPlan plan = {.kernel = &kernel, .n_kernels = 1};
    Diag *d = diag_new(o->arena);
    CompileStats stats;
    Code code;
    cpu_objects(target, &plan, &(CompileOpts){.cache_dir = "", .threads = 1}, &code, &stats);
    o->jit = jit_load(&plan, &code, &o->fn, d);
    if (!o->jit) diag_print(d, stderr, false);
    assert(o->jit);
    code_free(&code);
    return true;
}

static inline void one_free(OneKernel *o) {
    jit_free(o->jit);
    if (o->arena) arena_destroy(o->arena);
}

// All tasks of all phases, in order.  arg: operands, results, offsets of ragged symbols, workspace.
static inline int64_t one_tasks(const OneKernel *o, int phase, void *const *arg, const int64_t *sym) {
    TaskCount t = o->d.tasks[phase % o->d.n_phases];
    int64_t n = t.n;
    if (t.sym && t.sym->kind == SYM_RAGGED) {
        const int32_t *offsets = arg[kernel_n_args(&o->k)];
        n *= offsets[t.sym->groups * t.sym->leaves];
    } else if (t.sym) {
        n *= t.sym->kind == SYM_LEAF ? t.sym->bound : sym[t.sym->id];
    }
    return rt_count_tasks(&(RtTasks){n, t.grain, t.times, -1, t.extra}, NULL);
}

static inline void one_run(const OneKernel *o, void *const *arg, const int64_t *sym, void *scratch) {
    for (int p = 0; p < o->d.n_phases * o->d.n_rounds; p++) {
        int64_t n = one_tasks(o, p, arg, sym);
        for (int64_t i = n - 1; i >= 0; i--) { // backwards: the order must not matter
            RtCall c = {.arg = arg,
                        .sym = sym,
                        .task = (int32_t)i,
                        .n_tasks = (int32_t)n,
                        .phase = p,
                        .scratch = scratch};
            o->fn(&c);
        }
    }
}

#endif
