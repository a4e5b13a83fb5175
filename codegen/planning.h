// What the makers of a plan share.  Inside codegen/ only.
//
//     emit_plan.c      places of values, programs in order
//     plan_steps.c     steps          plan_kernels.c   kernels, by key
//     plan_tensors.c   tensors        plan_block.c     texts, constants, symbols; the block
#ifndef CODEGEN_PLANNING_H
#define CODEGEN_PLANNING_H
#include "codegen/emit_plan.h"
#include "ir/base/block.h"
#include "ir/base/map.h"
#include "ir/base/vec.h"

typedef struct { int64_t offset; int arena; } Loc;
enum { NOWHERE = -1 };
enum { WORKSPACE_MARK = 0x7fff };      // an argument's arena until the size of all step buffers is known

typedef struct {
    const Graph *g;
    Loc *loc;              // by value id
    int64_t workspace;     // largest of its steps
    int64_t chunk_bytes;   // offsets of chunks, behind what plan-memory has laid out
    int first_step, n_steps;
} Prog;

typedef struct {
    const Sym *sym;
    int index;
} SymSlot;

typedef struct {
    RtTensor t;
    const char *name;
    int64_t ordinal;       // outputs: which of this name in its program
} TensorSlot;

typedef struct {
    Arena *a;
    Diag  *d;
    const PlanOpts *opts;
    Str text;
    PtrMap texts, keys, names, places;     // by text, kernel key, tensor name, source position
    VEC(SymSlot) sym_slots;
    VEC(RtSym) syms;
    VEC(TensorSlot) tensors;
    VEC(RtSlotTable) slot_tables;
    VEC(PlanKernel) kernels;
    VEC(RtKernel) rt_kernels;
    VEC(RtArg) args;
    VEC(RtStep) steps;
    VEC(RtProgram) programs;
    VEC(RtSource) sources;
    Block consts;
    int64_t persistent;
    PtrMap exchanges;      // from their nodes to their numbers: one, or one for each chunk that is sent by itself
    int n_exchanges;
    PtrMap chunk_offsets;  // from offsets to where those of their chunks are
    int chunk, chunks;     // of the step that is added
    int own;               // of its run: attribute own
    Prog *prog;            // being emitted
} Plan;

// Each thing once: gives its number or where it is.
uint32_t plan_add_text(Plan *p, const char *text);
uint32_t plan_add_span(Plan *p, Span at);
int64_t  plan_add_persistent(Plan *p, int64_t bytes);
int      plan_sym(Plan *p, const Sym *s);
RtPlan  *plan_finish(Plan *p, Graph *const *programs, int n);

// Tensors by number; -1: none, or after diag_error.
int  plan_find_tensor(const Plan *p, const char *name);
int  plan_named_tensor(Plan *p, const Type *t, const char *name, RtRole role, const Node *n);
int  plan_source_tensor(Plan *p, const Node *n);
int  plan_output_tensor(Plan *p, const Node *n, int64_t ordinal);
int  plan_slot_table(Plan *p, const Node *n, int64_t experts);
void plan_mark_experts(Plan *p);
Loc  plan_tensor_loc(const Plan *p, int i);

KernelNode *plan_kernel_node(Plan *p, const Node *n);
int plan_kernel_of(Plan *p, KernelNode *k, KernelDesc *desc);
int plan_exchange_kernel(Plan *p, KernelNode *k, KernelDesc *desc);
int plan_kernel_named(Plan *p, PlanKernel kernel, int n_rounds, const void *data, size_t bytes);
RtTasks plan_tasks(Plan *p, TaskCount t);

Loc   plan_loc_of(const Plan *p, const Value *v);
void  plan_add_node(Plan *p, const Node *n);
Node *plan_add_chunked_run(Plan *p, Node *const *member, int n);     // returns the last node of the run
void  plan_add_waits_of_chunks(Plan *p, const Node *wait);
void  plan_add_copy(Plan *p, const Node *like, const Type *t, Loc from, Loc to);
void  plan_add_accumulate(Plan *p, const Node *acc, Loc grad);       // grad = wave == 0 ? d : grad + d

#endif
