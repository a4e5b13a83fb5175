// The pipelines, and what must come before what.
#include <string.h>
#include "passes/pass.h"

const PassInfo pass_info[] = {
#define PASS(name, fn, needs, leaves, doc) {name, doc, fn, needs, leaves, #fn},
#include "passes/passes.def"
#undef PASS
};
const int n_passes = (int)(sizeof pass_info / sizeof *pass_info);

// simplify runs a second time after autodiff: gradient rules write the general case (sums over nothing,
// products with 1) and repeat forward work that is there already; head_loss meets its gradient.
const char *const pipeline_train[] = {
    "split", "simplify", "fuse-gating", "precision", "autodiff", "optimizer", "simplify", "contract", "tensor-parallel",
    "partition", "one-chain", "recompute", "fuse", "attach", "layout", "schedule-a2a", "plan-memory", NULL};
const char *const pipeline_update[] = {
    "simplify", "contract", "tensor-parallel", "partition", "fuse", "layout", "schedule-a2a", "plan-memory", NULL};
const char *const pipeline_forward[] = {
    "split", "simplify", "fuse-gating", "precision", "sequences", "contract", "tensor-parallel", "partition", "fuse", "attach", "layout",
    "schedule-a2a", "plan-memory", NULL};

// No `then` may stand before all `first`s of a list, and none before any of them where `always` says so.
static const struct { const char *first, *then, *because; bool always; } pass_order[] = {
    {"simplify",    "autodiff",     "head_loss is recognised before its gradient exists"},
    {"split",       "autodiff",     "gradients and optimizer states are cut as their parameters are"},
    {"contract",    "tensor-parallel", "the arithmetic is that of one rank", true},
    {"tensor-parallel", "partition", "sums over tp are between values of one rank's leaves", true},
    {"fuse-gating", "partition",    "the matcher looks for whole tensors, not shards"},
    {"precision",   "autodiff",     "autodiff differentiates the casts, so gradients come out in f32"},
    {"precision",   "sequences",    "caches have the type they keep", true},
    {"sequences",   "tensor-parallel", "logits of few rows are gathered, not of all", true},
    {"autodiff",    "optimizer",    "the optimizer updates the parameters that have a gradient"},
    {"autodiff",    "contract",     "fma has no gradient rule"},
    {"optimizer",   "contract",     "updates leave the pass before its arithmetic is fixed"},
    {"simplify",    "contract",     "simplify may reorder products; from contract on no bit changes", true},
    {"contract",    "fuse",         "rounding must not depend on which nodes meet in one body"},
    {"contract",    "recompute",    "a clone must compute what its original does"},
    {"simplify",    "recompute",    "merging equal nodes would undo the clones", true},
    {"partition",   "one-chain",    "sums over ranks are known by the leaves they end in"},
    {"partition",   "recompute",    "exchanges must be there to be seen: rows are sent twice only if asked"},
    {"recompute",   "fuse",         "clones are fused into the backward bodies that read them"},
    {"partition",   "schedule-a2a", "there is no exchange to schedule until tensors are split"},
    {"fuse",        "attach",       "an epilogue is a whole body; half of one would keep its values in memory"},
    {"attach",      "plan-memory",  "gathered rows and products inside an epilogue have no memory"},
    {"fuse",        "plan-memory",  "values inside bodies have no memory"},
    {"layout",      "plan-memory",  "a layout may change the size of a buffer"},
    {"schedule-a2a", "plan-memory", "what lives at the same time follows from the order"},
};

const PassInfo *pass_find(const char *name) {
    for (int i = 0; i < n_passes; i++)
        if (!strcmp(pass_info[i].name, name)) return &pass_info[i];
    return NULL;
}

const char *pipeline_check(Arena *a, const char *const *names) {
    int stage = WHOLE;
    bool stage_is_known = false;            // a list for a graph read from a file may begin in any stage
    for (int i = 0; names[i]; i++) {
        const PassInfo *p = pass_find(names[i]);
        if (!p) return arena_printf(a, "there is no pass '%s'", names[i]);
        if (p->needs != ANY_STAGE && stage_is_known && p->needs != stage)
            return arena_printf(a, "%s needs stage %s, but the graph is in stage %s there", p->name,
                                stage_name[p->needs], stage_name[stage]);
        if (p->needs != ANY_STAGE || p->leaves != SAME_STAGE) {
            stage = p->leaves != SAME_STAGE ? p->leaves : p->needs;
            stage_is_known = true;
        }
        for (size_t k = 0; k < sizeof pass_order / sizeof *pass_order; k++) {
            if (strcmp(names[i], pass_order[k].then)) continue;
            bool came_before = false;
            for (int j = 0; j < i; j++) came_before |= !strcmp(names[j], pass_order[k].first);
            for (int j = i + 1; names[j]; j++) {
                if (!strcmp(names[j], pass_order[k].first) && (!came_before || pass_order[k].always))
                    return arena_printf(a, "%s must come before %s: %s", pass_order[k].first,
                                        pass_order[k].then, pass_order[k].because);
            }
        }
    }
    return NULL;
}
