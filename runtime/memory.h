// How much memory a rank takes and what for: said of a plan before anything is allocated.  What plan.c, ranks.c and comm.c
// allocate is counted in RtPlanInstance.allocated, so that both can be compared.
#ifndef RUNTIME_MEMORY_H
#define RUNTIME_MEMORY_H
#include "runtime/plan.h"

#define RT_MEMORY_KINDS_DO(X)                                                                                  \
    X(WEIGHTS, "weights") X(GRADIENTS, "gradients") X(OPTIMIZER, "optimizer") X(STATES, "states")              \
    X(NUMBERS, "inputs and outputs") X(STEP, "activations") X(CONSTS, "constants") X(SCRATCH, "scratch")       \
    X(EXCHANGES, "exchanges") X(TABLES, "tables")

typedef enum {
#define X(name, text) RT_MEMORY_##name,
    RT_MEMORY_KINDS_DO(X)
#undef X
    RT_MEMORY_KINDS
} RtMemoryKind;

typedef struct { int64_t bytes[RT_MEMORY_KINDS]; } RtMemory;

const char *rt_memory_name(RtMemoryKind kind);
RtMemoryKind rt_memory_of_tensor(const RtPlan *plan, const RtTensor *t);
// What rt_plan_open takes with so many threads, and rt_ranks_open if the plan is for several ranks.  A transport's own
// memory, MPI's say, is not in it.
RtMemory rt_plan_memory(const RtPlan *plan, int threads);
int64_t  rt_memory_total(const RtMemory *m);

#endif
