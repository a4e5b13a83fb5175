// The interp target: the plan and the runtime, with every kernel the reference meaning of its op.  Slow,
// plain, and the same bits as the cpu target where that has fma.
#include <string.h>
#include <time.h>
#include "codegen/compiled.h"
#include "codegen/interp/ref_kernel.h"

static bool available(const char **why_not) {
    (void)why_not;
    return true;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static PlanOpts plan_opts(Graph *const *programs, int n, const CompileOpts *opts) {
    return (PlanOpts){.arithmetic = graphs_have_one_chain(programs, n) ? "f32-fma one-chain" : "f32-fma", .info_json = opts->info_json, .waves = opts->waves};
}

static Compiled *compile(Graph *const *programs, int n, const CompileOpts *opts, Diag *d) {
    double start = now();
    Arena *a = arena_create();
    PlanOpts po = plan_opts(programs, n, opts);
    EmittedPlan *e = emit_plan(a, programs, n, &po, d);
    if (!e) {
        arena_destroy(a);
        return NULL;
    }
    Compiled *c = arena_new(a, Compiled);
    *c = (Compiled){.arena = a, .emitted = e, .fn = arena_array(a, RtKernelFn *, e->n_kernels)};
    for (int i = 0; i < e->n_kernels; i++) c->fn[i] = e->kernel[i].is_exchange ? NULL : moec_ref_kernel;
    c->stats = (CompileStats){.kernels = e->n_kernels, .reference = e->n_kernels, .seconds = now() - start};
    return c;
}

static const RtPlan *plan(Arena *a, Graph *const *programs, int n, const CompileOpts *opts, Diag *d) {
    PlanOpts po = plan_opts(programs, n, opts);
    EmittedPlan *e = emit_plan(a, programs, n, &po, d);
    return e ? e->plan : NULL;
}

static bool emit_objects(Graph *const *programs, int n, const CompileOpts *opts, const char *dir, Diag *d) {
    (void)programs; (void)n; (void)opts; (void)dir;
    diag_error(d, (Span){0}, "target interp makes no object files; target cpu does");
    return false;
}

static bool dump(Graph *const *programs, int n, const CompileOpts *opts, const char *what, Str *out,
                 Diag *d) {
    if (strcmp(what, "plan")) return false;
    PlanOpts po = plan_opts(programs, n, opts);
    EmittedPlan *e = emit_plan(out->arena, programs, n, &po, d);
    if (e) plan_print(e, out);
    return e != NULL;
}

extern const Target target_interp;
const Target target_interp = {"interp",     "reference kernels through plan and runtime: slow, for checking",
                              available,    compile, plan,
                              emit_objects, dump};
