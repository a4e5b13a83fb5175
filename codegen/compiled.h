// What targets share: a compiled set of programs from the inside.
#ifndef CODEGEN_COMPILED_H
#define CODEGEN_COMPILED_H
#include "codegen/emit_plan.h"

struct Compiled {
    Arena *arena;
    EmittedPlan *emitted;
    RtKernelFn **fn;                     // [n_kernels]
    CompileStats stats;
    void *code;                          // the target's own, given to free_code
    void (*free_code)(void *code);
};

#endif
