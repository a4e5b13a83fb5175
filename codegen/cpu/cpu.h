// Inside codegen/cpu/: from a kernel of the plan to machine code.
#ifndef CODEGEN_CPU_CPU_H
#define CODEGEN_CPU_CPU_H
#include "codegen/cpu/cg.h"
#include "codegen/emit_plan.h"

// The machine of that name (NULL: native), or NULL after diag_error.  run_here: it must be able to run on
// this machine.
const CpuTarget *cpu_find(const char *name, bool run_here, Diag *d);

typedef struct { char *bytes; size_t n; } Object;              // malloc'd

// One kernel as an object file, assembly or LLVM text.  Threads may call it at once for different kernels.
typedef enum { FORM_OBJECT, FORM_ASSEMBLY, FORM_LLVM } CodeForm;
Object cpu_emit(const CpuTarget *t, const PlanKernel *k, CodeForm form);

// The plan's constant block and kernel table as an object: symbols moec_plan and moec_kernels.
Object cpu_emit_plan_object(const CpuTarget *t, const EmittedPlan *e);

// Objects of all kernels that have a template, from the cache or compiled in parallel.  object[i].bytes is
// NULL for reference kernels.  Fills stats.
void cpu_objects(const CpuTarget *t, const EmittedPlan *e, const CompileOpts *opts, Object *object,
                 CompileStats *stats);

// ---- code cache (cache.c): one file per kernel, named by the hash of all that the code depends on ------
typedef struct { char dir[4096]; bool on; } CodeCache;
CodeCache cache_open(const char *dir);
bool cache_load(const CodeCache *c, const CpuTarget *t, const char *key, Object *o);   // false: none whole
void cache_store(const CodeCache *c, const CpuTarget *t, const char *key, const Object *o);
void cache_trim(const CodeCache *c); // to 256 MB, oldest files first

// ---- running code (jit.c) ------------------------------------------------------------------------------
typedef struct Jit Jit;
// Loads objects and fills fn[i] for those with bytes.  NULL after diag_error.
Jit *jit_load(const EmittedPlan *e, const Object *object, RtKernelFn **fn, Diag *d);
void jit_free(Jit *j);

#endif
