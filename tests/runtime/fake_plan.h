// A plan made by hand: tables are filled through these functions, pb_finish lays them out in one block.
#ifndef TESTS_RUNTIME_FAKE_PLAN_H
#define TESTS_RUNTIME_FAKE_PLAN_H
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/plan.h"

enum { PB_MAX = 64, PB_TEXT = 8192 };

typedef struct {
    char      text[PB_TEXT];
    uint32_t  n_text;
    RtSym     sym[PB_MAX];       int n_syms;
    RtTensor  tensor[PB_MAX];    int n_tensors;
    RtKernel  kernel[PB_MAX];    int n_kernels;
    RtKernelFn *fn[PB_MAX];
    RtArg     arg[4 * PB_MAX];   int n_args;
    RtStep    step[PB_MAX];      int n_steps;
    RtProgram program[8];        int n_programs;
    int64_t   persistent, step_bytes;
    const char *info;
    RtMesh    mesh;
} PlanBuilder;

static inline uint32_t pb_text(PlanBuilder *b, const char *text) {
    if (!b->n_text) b->n_text = 1;                       // offset 0 is ""
    uint32_t at = b->n_text;
    assert(at + strlen(text) + 1 < PB_TEXT);
    strcpy(b->text + at, text);
    b->n_text += (uint32_t)strlen(text) + 1;
    return at;
}

static inline int pb_sym(PlanBuilder *b, const char *name, int64_t bound, int64_t fixed) {
    b->sym[b->n_syms] = (RtSym){.name = pb_text(b, name), .bound = bound, .fixed = fixed, .from_arena = -1};
    return b->n_syms++;
}

// A tensor in the persistent arena; dim ends at the first 0.
static inline RtTensor *pb_tensor(PlanBuilder *b, const char *name, RtRole role, DType dtype, int64_t d0,
                                  int64_t d1, int64_t d2) {
    RtTensor *t = &b->tensor[b->n_tensors++];
    *t = (RtTensor){
        .name = pb_text(b, name), .dtype = (uint8_t)dtype, .role = (uint8_t)role, .arena = RT_PERSISTENT};
    int64_t dim[3] = {d0, d1, d2};
    t->bytes = dtype_bytes(dtype);
    for (int i = 0; i < 3 && dim[i]; i++) {
        t->dim[t->ndim++] = dim[i];
        t->bytes *= dim[i];
    }
    for (int i = 0; i < MAX_DIM; i++) t->dim_sym[i] = -1;
    t->init_name = t->name;
    t->saved = role == RT_PARAM || role == RT_STATE;
    t->offset = b->persistent;
    b->persistent += (t->bytes + 63) / 64 * 64;
    return t;
}

static inline int pb_kernel(PlanBuilder *b, const char *name, RtKernelFn *fn, int n_phases) {
    b->kernel[b->n_kernels] = (RtKernel){.symbol = pb_text(b, name), .n_phases = (uint16_t)n_phases, .n_rounds = 1};
    b->fn[b->n_kernels] = fn;
    return b->n_kernels++;
}

static inline void pb_begin(PlanBuilder *b, const char *program) {
    b->program[b->n_programs++] =
        (RtProgram){.name = pb_text(b, program), .first_step = (uint32_t)b->n_steps};
}

// A step of n tasks a phase; its arguments follow with pb_arg.
static inline RtStep *pb_step(PlanBuilder *b, int kernel, int64_t n) {
    RtStep *s = &b->step[b->n_steps++];
    *s = (RtStep){.kernel = (uint32_t)kernel, .first_arg = (uint32_t)b->n_args, .span = 0, .defines_sym = -1,
                  .op = b->kernel[kernel].symbol, .path = pb_text(b, "layers.0"),
                  .work = RT_CONTRACTION, .flops = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++)
        s->tasks[i] = (RtTasks){.n = n, .grain = 1, .times = 1, .sym = -1};
    b->program[b->n_programs - 1].n_steps++;
    return s;
}

static inline void pb_arg(PlanBuilder *b, const RtTensor *t) {
    b->arg[b->n_args++] = (RtArg){.offset = t->offset, .arena = t->arena};
    b->step[b->n_steps - 1].n_args++;
}

static inline RtSpan pb_place(char *block, uint32_t *at, const void *data, uint32_t n, uint32_t entry) {
    *at = (*at + 63) / 64 * 64;
    RtSpan s = {*at, n};
    if (block && n) memcpy(block + *at, data, (size_t)n * entry);
    *at += n * entry;
    return s;
}

static inline RtPlan *pb_finish(PlanBuilder *b) {
    RtPlan h = {.magic = RT_PLAN_MAGIC,
                .version = RT_PLAN_VERSION,
                .graph_hash = 42,
                .mesh = b->mesh,
                .persistent_bytes = b->persistent,
                .step_bytes = b->step_bytes};
    h.arithmetic = pb_text(b, "f32-fma");
    h.info = pb_text(b, b->info ? b->info : "{}");
    char *block = NULL;
    for (int turn = 0; turn < 2; turn++) {
        uint32_t at = sizeof h;
        h.text = pb_place(block, &at, b->text, b->n_text, 1);
        h.syms = pb_place(block, &at, b->sym, (uint32_t)b->n_syms, sizeof(RtSym));
        h.tensors = pb_place(block, &at, b->tensor, (uint32_t)b->n_tensors, sizeof(RtTensor));
        h.kernels = pb_place(block, &at, b->kernel, (uint32_t)b->n_kernels, sizeof(RtKernel));
        h.args = pb_place(block, &at, b->arg, (uint32_t)b->n_args, sizeof(RtArg));
        h.steps = pb_place(block, &at, b->step, (uint32_t)b->n_steps, sizeof(RtStep));
        h.programs = pb_place(block, &at, b->program, (uint32_t)b->n_programs, sizeof(RtProgram));
        h.sources = pb_place(block, &at, NULL, 0, sizeof(RtSource));
        h.consts = pb_place(block, &at, NULL, 0, 1);
        h.bytes = (at + 63) / 64 * 64;
        if (!block) block = aligned_alloc(64, h.bytes);
    }
    memcpy(block, &h, sizeof h);
    return (RtPlan *)block;
}

#endif
