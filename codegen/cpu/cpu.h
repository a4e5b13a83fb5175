// Inside codegen/cpu/: from a kernel of the plan to machine code.
#ifndef CODEGEN_CPU_CPU_H
#define CODEGEN_CPU_CPU_H
#include "codegen/cpu/cg.h"
#include "codegen/emit_plan.h"

// The machine of that name (NULL: native), or NULL after diag_error.  run_here: it must be able to run on
// this machine.
const CpuTarget *cpu_find(const char *name, bool run_here, Diag *d);

typedef struct { char *bytes; size_t n; } Object;              // malloc'd
typedef struct { char text[CG_PART_NAME]; } PartName;

// A kernel's object file and the functions it shares with others (parts.c): malloc'd; no bytes: it has none.
typedef struct { Object object; PartName *part; int n_parts; } Code;
void code_free(Code *c);

// One kernel as an object file, or with its parts as assembly or LLVM text.  Threads may call it at once for different
// kernels.  Parts that nobody has compiled are, and kept.
typedef enum { FORM_ASSEMBLY, FORM_LLVM } TextForm;
typedef struct CodeCache CodeCache;
Code cpu_emit(const CpuTarget *t, const PlanKernel *k, const CodeCache *cache);
Object cpu_emit_text(const CpuTarget *t, const PlanKernel *k, TextForm form);

// The plan's constant block and kernel table as an object: symbols moec_plan and moec_kernels.
Object cpu_emit_plan_object(const CpuTarget *t, const EmittedPlan *e);

// Code of all kernels that have a template, from the cache or compiled in parallel; their parts are there.  No bytes for
// reference kernels.  Fills stats.
void cpu_objects(const CpuTarget *t, const EmittedPlan *e, const CompileOpts *opts, Code *code, CompileStats *stats);

// The names of all parts, each once.  The caller frees.
PartName *code_parts(const Code *code, int n_kernels, int *n);

// ---- parts (parts.c): compiled once in this process, by a name with the hash of all that their code depends on ----------
bool part_known(const char *name);                             // there, or about to be
bool part_claim(const char *name);                             // true: now it is this thread's to make, by part_keep
void part_keep(const char *name, Object o);                    // takes o; of two the first stays
const Object *part_wait(const char *name);                     // of one that was claimed, once it is there

// ---- code cache (cache.c): one file per kernel and part, named by the hash of all that the code depends on ------
struct CodeCache { char dir[4096]; bool on; };
CodeCache cache_open(const char *dir);
bool cache_load(const CodeCache *c, const CpuTarget *t, const char *key, Code *code);  // false: none whole, or a part is missing
void cache_store(const CodeCache *c, const CpuTarget *t, const char *key, const Code *code);
bool cache_load_part(const CodeCache *c, const char *name, Object *o);
void cache_store_part(const CodeCache *c, const char *name, const Object *o);
void cache_trim(const CodeCache *c); // to 256 MB, oldest files first

// ---- running code (jit.c) ------------------------------------------------------------------------------
typedef struct Jit Jit;
// Loads objects and fills fn[i] for those with bytes.  NULL after diag_error.
Jit *jit_load(const EmittedPlan *e, const Code *code, RtKernelFn **fn, Diag *d);
void jit_free(Jit *j);

#endif
