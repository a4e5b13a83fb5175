// What a target is: it turns PLANNED graphs into a plan and code.  The list: targets.def.
#ifndef CODEGEN_TARGET_H
#define CODEGEN_TARGET_H
#include "ir/ir.h"
#include "ir/machine.h"
#include "runtime/abi.h"

typedef struct {
    const char *cpu;         // cpu target: "native", "avx512bf16", "avx512", "avx2", "sse2" (baseline x86-64); NULL: native
    const char *cache_dir;   // compiled code; NULL: $XDG_CACHE_HOME/moec or ~/.cache/moec; "": no cache
    int         threads;     // for compiling; 0: number of cores
    const char *info_json;   // copied into the plan
    const Machine *machine;  // rates to choose by; NULL: typical ones
    int64_t     waves;       // runs of @pass per step; 1: gradients are stored unread; 0: any number
} CompileOpts;

// A compiled set of programs.  Owns the plan block and the code.
typedef struct Compiled Compiled;
typedef struct { int kernels, compiled, cached, reference; double seconds; } CompileStats;

typedef struct {
    const char *name, *doc;
    bool (*available)(const char **why_not);
    // Programs of one plan share parameters, states and the persistent arena.  NULL after diag_error.
    Compiled *(*compile)(Graph *const *programs, int n, const CompileOpts *opts, Diag *d);
    // The plan alone, in a: what a run would allocate and do.  NULL after diag_error.
    const RtPlan *(*plan)(Arena *a, Graph *const *programs, int n, const CompileOpts *opts, Diag *d);
    // Ahead of time: objects and the plan as files in dir, for the system's cc.  false after diag_error.
    bool (*emit_objects)(Graph *const *programs, int n, const CompileOpts *opts, const char *dir, Diag *d);
    // Text of what was emitted: what = "llvm", "asm", "plan".  false: this target has no such form.
    bool (*dump)(Graph *const *programs, int n, const CompileOpts *opts, const char *what, Str *out, Diag *d);
    LayoutFn *layout;        // of a parameter that is only read; NULL: in rows
} Target;
extern const Target *const targets[];          // NULL-terminated; from targets.def
const Target *target_find(const char *name);

const RtPlan *compiled_plan(const Compiled *c);
RtKernelFn   *compiled_kernel(const Compiled *c, int kernel);    // address of plan kernel i
CompileStats  compiled_stats(const Compiled *c);
// Seconds that the products of plan kernel i were predicted to take on so many threads of the machine it was made for; 0: not
// weighed.
double        compiled_predicted(const Compiled *c, int kernel, int threads);
void          compiled_free(Compiled *c);

#endif
