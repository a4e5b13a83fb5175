// What a kernel template is.  CPU templates register by a row of cpu/kernels.def.
//
// A template serves one op.  `describe` says what the code depends on and how the work is cut; `emit` writes
// the body of one RtKernelFn with the helpers of cpu/cg.h.  Equal keys share one kernel, so everything the
// code depends on belongs into the key; offsets, names and paths never do.  Nor does the bound of a ragged
// symbol: a template that uses it adds it.
//
//     args of a step:   operands | results | offsets of ragged symbols | workspace
#ifndef CODEGEN_KERNEL_H
#define CODEGEN_KERNEL_H
#include "ir/ir.h"
#include "ir/machine.h"

typedef struct Cg Cg;
typedef struct CpuTarget CpuTarget;

enum { KERNEL_MAX_RAGGED = 4 };

typedef struct KernelNode {
    const Node *node;                        // op, attributes, operands and results with their types
    int n_ragged;
    const Sym *ragged[KERNEL_MAX_RAGGED];    // ragged symbols of its types, but for those it defines
    int n_plain;
    const Sym *plain[KERNEL_MAX_RAGGED];     // plain symbols of its types; their numbers in RtCall.sym
    int plain_index[KERNEL_MAX_RAGGED];
    bool workspace;                          // there is a workspace argument
    double bytes;                            // read and written by one execution at bound sizes
    uint32_t in_place;                       // bit j: result j lies where an operand does
    int64_t grain;                           // rows of a task (of count, queue and route: tokens), where a gate's kernel cuts
                                             // all its pieces alike; 0: as the template likes
    const Machine *machine;                  // rates to choose by; what was chosen belongs into the key, rates never do
    int64_t at_rows, passing;                // where a layout is weighed: rows of a symbol, 0: its bound; as LayoutFn
    const CpuTarget *target;                 // whose code it is (cpu/cg.h); NULL: a target without templates
} KernelNode;

// How many tasks a phase has: as RtTasks (runtime/abi.h) says; sym NULL: n alone.
typedef struct { int64_t n, grain, times; const Sym *sym; int extra; } TaskCount;

// What a way to make a kernel is predicted to take, and the ways that were weighed: the one taken, then the next best.
typedef struct {
    double compute;                 // seconds of one thread in its tiles
    double bytes;                   // moved, all from the same level of memory
    double slower;                  // than as a stream; 0: no slower
    MachineLevelKind level;
    double tasks;
} Predicted;
typedef struct { const char *text; Predicted takes; } Weighed;
enum { CHOICE_BEST = 3, KERNEL_CHOICES = 3 };
typedef struct {
    const char *what;               // product it is of
    int n, candidates;              // of best; of all that were weighed
    Weighed best[CHOICE_BEST];
} Choice;
// max(compute, bytes / bandwidth) + tasks * overhead, of `threads` threads (0: all).
double predicted_seconds(const Machine *m, const Predicted *p, int threads);

typedef struct KernelDesc {
    Str       key;                  // canonical text; op, types and attributes are already in it
    int       n_phases, n_rounds;   // 1 unless set; the phases run once in each round
    TaskCount tasks[RT_MAX_PHASES];
    int64_t   workspace;            // bytes shared by a step's tasks and phases; undefined at its start
    double    flops;                // of one execution at bound sizes; 0: node_flops
    int       n_choices;
    Choice    choice[KERNEL_CHOICES];
} KernelDesc;

// Fills d.  Presets: key, n_phases = n_rounds = 1, one task per phase.  false: this node has no fast form, the
// op's reference meaning runs instead.
typedef bool DescribeFn(const KernelNode *k, KernelDesc *d);
// Emits the body.  The builder stands in the function's first block; emit leaves it in the block that
// returns.
typedef void EmitFn(Cg *cg, const KernelNode *k);

typedef struct {
    Op op;
    DescribeFn *describe;
    EmitFn     *emit;
} KernelTemplate;
static inline int kernel_n_args(const KernelNode *k) { return k->node->n_in + k->node->n_out; }
static inline const Type *kernel_arg_type(const KernelNode *k, int i) {
    const Node *n = k->node;
    return i < n->n_in ? &n->in[i]->type : &n->out[i - n->n_in].type;
}

// Tasks over the rows of t (all dimensions but the last), `grain` rows each.  At most one of them may vary
// with a plain or ragged symbol.
TaskCount tasks_of_rows(const Type *t, int64_t grain);
// Over dimensions lo .. hi - 1 of t; of their symbols one counts, the others are taken at their bound.
TaskCount tasks_of_dims(const Type *t, int lo, int hi, int64_t grain);
int64_t dims_bound(const Type *t, int lo, int hi);    // their product at bound
static inline TaskCount tasks_fixed(int64_t n) { return (TaskCount){n, 1, 1, NULL, 0}; }
int64_t rows_bound(const Type *t);                    // product of all dimensions but the last, at bound
// Rows so that a task touches about 64 KiB; from sizes only.
int64_t rows_grain(const Type *t, int64_t bytes_per_row);

// Bit j: result j is f32 in rows of whole cache lines and better written past the caches (cg_stream): before it is read its
// lines would have left them, and writing them there first costs reading them.
uint32_t streamed_results(const KernelNode *k);

// The same number of rows: the same constant times the same symbols.
bool same_rows(const Type *a, const Type *b);
// The elements of a CONST node as dtype t, in a.
void *const_elements(Arena *a, const Node *n, DType t);

#endif
