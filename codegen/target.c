// The table of targets, and what all compiled programs have in common.
#include "codegen/target.h"
#include <string.h>
#include "codegen/compiled.h"

#define TARGET(t) extern const Target t;
#include "codegen/targets.def"
#undef TARGET

const Target *const targets[] = {
#define TARGET(t) &t,
#include "codegen/targets.def"
#undef TARGET
    NULL
};

const Target *target_find(const char *name) {
    for (int i = 0; targets[i]; i++)
        if (!strcmp(targets[i]->name, name)) return targets[i];
    return NULL;
}

const RtPlan *compiled_plan(const Compiled *c) { return c->emitted->plan; }
RtKernelFn *compiled_kernel(const Compiled *c, int kernel) { return c->fn[kernel]; }
CompileStats compiled_stats(const Compiled *c) { return c->stats; }

double compiled_predicted(const Compiled *c, int kernel, int threads) {
    const PlanKernel *k = &c->emitted->kernel[kernel];
    double seconds = 0;
    for (int i = 0; i < k->n_choices; i++) seconds += predicted_seconds(c->emitted->machine, &k->choice[i].best[0].takes, threads);
    return seconds;
}

void compiled_free(Compiled *c) {
    if (!c) return;
    if (c->free_code) c->free_code(c->code);
    arena_destroy(c->arena);
}
