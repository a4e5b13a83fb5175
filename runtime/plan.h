// A plan made ready to run: checked, its arenas allocated, its constants and argument addresses filled in.
#ifndef RUNTIME_PLAN_H
#define RUNTIME_PLAN_H
#include <stdatomic.h>
#include <stdint.h>
#include "runtime/abi.h"
#include "runtime/status.h"

struct RtTrace;
struct RtTeam;

typedef struct RtPlanInstance {
    const RtPlan      *plan;            // borrowed: must live as long
    RtKernelFn *const *kernel;          // borrowed; one per plan kernel.  NULL: an exchange, the runtime's own
    const RtTensor    *tensor;
    const RtStep      *step;
    const RtProgram   *program;
    int      n_tensors, n_programs, n_syms;
    int      threads;
    struct RtTeam *team;
    unsigned char *arena[RT_ARENAS];
    size_t   arena_bytes[RT_ARENAS];
    int64_t *sym;                       // current values
    void   **arg;                       // plan args as addresses
    const void **kernel_data;
    unsigned char *scratch;             // threads * RT_SCRATCH_BYTES
    uint32_t *by_name;                  // tensor numbers, sorted by name
    struct RtRanks *ranks;              // NULL: this rank is alone
    int64_t  allocated;                 // bytes, of the plan and of its exchanges
    struct RtTrace *trace;              // NULL: nothing is recorded
    _Alignas(64) atomic_int next[2];    // next task of this phase; of the following one
} RtPlanInstance;

// Everything a plan says about itself is checked against its own size; `available` is the size of the block.
RtStatus rt_plan_check(const RtPlan *plan, size_t available, RtError *e);

// threads 0: one per core.  Tensors start as zeros; rt_init gives parameters and states their first values.
RtStatus rt_plan_open(const RtPlan *plan, RtKernelFn *const *kernels, int threads, RtPlanInstance **out,
                      RtError *e);
void     rt_plan_close(RtPlanInstance *p);       // NULL is fine

// What rt_plan_open takes (runtime/memory.h sums it up).
size_t   rt_arena_bytes(const RtPlan *plan, RtArenaKind kind);
size_t   rt_scratch_bytes(int threads);
size_t   rt_tables_bytes(const RtPlan *plan);

int             rt_program(const RtPlanInstance *p, const char *name);            // number, or -1
const RtTensor *rt_tensor(const RtPlanInstance *p, const char *name);             // NULL: there is none
const char     *rt_tensor_name(const RtPlanInstance *p, const RtTensor *t);
const char *rt_tensor_nearest(const RtPlanInstance *p,
                              const char *name); // for "did you mean"; NULL: nothing near
void           *rt_tensor_data(const RtPlanInstance *p, const RtTensor *t);
Tensor          rt_tensor_view(const RtPlanInstance *p, const RtTensor *t);       // with its actual sizes
int64_t         rt_tensor_elements(const RtPlanInstance *p, const RtTensor *t);   // with its actual sizes
int64_t         rt_tensor_whole(const RtPlanInstance *p, const RtTensor *t);      // elements of all its parts, replicas once
// Of how many parts along axis 0 this rank has one, and the number of that one.
int             rt_tensor_parts(const RtPlanInstance *p, const RtTensor *t);
int             rt_tensor_part(const RtPlanInstance *p, const RtTensor *t);
// The same of axis 1 (RtTensor.within), and of the axis that tp cuts.
int             rt_tensor_inner_parts(const RtPlanInstance *p, const RtTensor *t);
int             rt_tensor_inner_part(const RtPlanInstance *p, const RtTensor *t);
int             rt_tensor_tp(const RtPlanInstance *p, const RtTensor *t);
// Where a rank's elements stand in the whole tensor, both row by row: `runs` times `run` elements.  `each` of them are of
// one entry of axis 0, from `first` on in it and `stride` apart; entries are `block` apart, in order or by expert[] (slots.h).
typedef struct { int64_t runs, run, first, stride, each, block; const int32_t *expert; } RtOwn;
RtOwn           rt_tensor_own(const RtPlanInstance *p, const RtTensor *t);
static inline int64_t rt_own_begin(const RtOwn *own, int64_t i) {
    int64_t entry = i / own->each;
    return own->first + (own->expert ? own->expert[entry] : entry) * own->block + i % own->each * own->stride;
}
typedef struct { int part, inner, tp; } RtPartAt;                // numbers of a rank's part: of axis 0, of axis 1, over tp
RtOwn           rt_tensor_place(const RtPlanInstance *p, const RtTensor *t, RtPartAt at);   // of another rank; no slots
// Of a tensor whose axis 0 counts experts: the number of the k-th that this rank holds.
int64_t         rt_tensor_expert(const RtPlanInstance *p, const RtTensor *t, int64_t k);
// Outputs of a program.  One called PROGRAM/NAME belongs to that program, any other to the programs whose
// steps touch it; rt_output_name leaves PROGRAM/ out.
bool            rt_is_output_of(const RtPlanInstance *p, int program, const RtTensor *t);
const char     *rt_output_name(const RtPlanInstance *p, const RtTensor *t);
const RtTensor *rt_output(const RtPlanInstance *p, int program, const char *name);   // NULL: there is none

int rt_sym(const RtPlanInstance *p, const char *name); // number of a row symbol, or -1
void    rt_set_sym(RtPlanInstance *p, int sym, int64_t value);                    // 0 <= value <= bound

// A symbol whose offsets a step has just written: takes its new value.
void    rt_read_sym(RtPlanInstance *p, int sym);

int64_t rt_parameters(const RtPlanInstance *p); // elements of all PARAM tensors, all their parts
// Of contractions, at bound sizes (for rows at the experts of several ranks: at their mean): the work that MFU counts.
double  rt_expert_flops(const RtPlanInstance *p, int program);        // of these, on rows at the experts of several ranks
double  rt_program_flops(const RtPlanInstance *p, int program);

typedef struct { double flops, bytes, fixed_bytes; } RtWork;       // fixed: of bytes, what grows with no symbol
// What a step does at the present values of the symbols.  Matrices of experts count where rows are theirs, at most
// one a row.
RtWork  rt_step_work(const RtPlanInstance *p, const RtStep *s);

#endif
