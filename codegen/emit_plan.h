// PLANNED graphs become one plan: tensors with persistent offsets, kernels, steps.  The same for every
// target; what a target adds are kernel templates.
#ifndef CODEGEN_EMIT_PLAN_H
#define CODEGEN_EMIT_PLAN_H
#include "codegen/kernel.h"
#include "codegen/target.h"

typedef struct {
    const KernelTemplate *(*template_of)(Op op);   // NULL: every kernel is the reference
    const char *arithmetic;                        // "f32-fma" or "f32-mul-add"
    const char *info_json;
    int64_t waves;                                 // as CompileOpts
    const Machine *machine;                        // what templates choose by
    const CpuTarget *target;
} PlanOpts;

// A kernel of the plan and what it takes to make its code.
typedef struct {
    const char *key;                // canonical text: equal keys, equal code
    const char *symbol;             // name of the code
    const KernelTemplate *made_by;  // NULL: ref_kernel (interp/ref_kernel.h), all meaning in the data block
    KernelNode node;                // a node that asked for it
    int n_phases, n_choices;
    Choice choice[KERNEL_CHOICES];  // of its tiles (cpu/choose.h)
    bool is_exchange;               // the runtime's own (EXCHANGE_SYMBOL), whatever the target
} PlanKernel;

typedef struct {
    RtPlan *plan;                   // one block of plan->bytes, 64-byte aligned
    int n_kernels;
    PlanKernel *kernel;             // [n_kernels], by plan number
    const Machine *machine;         // they were chosen by; NULL: none
} EmittedPlan;

// NULL after diag_error.  Everything lives in a.
EmittedPlan *emit_plan(Arena *a, Graph *const *programs, int n, const PlanOpts *opts, Diag *d);

// Do weight gradients leave the leaf tree out (train.exact = false)?  The arithmetic says so.
bool graphs_have_one_chain(Graph *const *programs, int n);

// Text of a plan: tables, what was chosen for kernels, with predicted times of one thread, steps with their arguments.
void plan_print(const EmittedPlan *e, Str *out);

// Floating-point operations of one execution at bound sizes: contractions 2 per multiply-add, others 1 per
// element.
double node_flops(const Node *n);
RtWorkKind node_work(const Node *n);

#endif
