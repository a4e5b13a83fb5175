// Layers of a model, and the stages of a pipeline that they are dealt to.  The runtime has no pipelines: a stage is a run of
// layers of the plan of all, its micro-batches are the plan's passes.
#ifndef PLANNER_STAGES_H
#define PLANNER_STAGES_H
#include "ir/ir.h"
#include "planner/layout.h"
#include "runtime/memory.h"

// A layer is a path up to its first number: layers.3 of layers.3.ffn.experts.  What has none stands before the first or
// behind the last.
typedef struct {
    int n;                         // layers, in the order of forward
    const char **name;             // [n]
    int *step_layer;               // [plan steps]: -1: before the first; n: behind the last
    int *tensor_layer;             // [plan tensors]
} Layers;

Layers layers_of(Arena *a, const RtPlan *plan);
int    layer_find(const Layers *l, const char *path);      // -2: no layer
// The longest start of a path that names a layer; NULL: none.
const char *layer_name(Arena *a, const char *path);

// stage[layer + 1] for layers -1 .. n: contiguous, so that the longest stage is short.  weight: of a layer, [n + 2].
// false: there are fewer layers than stages.
bool stages_split(const Layers *l, const double *weight, int pp, int *stage);

// Bytes of forward values that backward reads, by layer (index layer + 1): once per micro-batch, and once whatever their
// number (what follows from parameters alone); and the most that others take at one time while a layer runs.
typedef struct { double *kept, *fixed, *passing; } LayerMemory;
LayerMemory layers_memory(Arena *a, const Layers *l, Graph *pass);

// All a layer takes of a rank that has it, with so many micro-batches under way.
double *layers_bytes(Arena *a, const Layers *l, const LayerMemory *m, const RtPlan *plan, int64_t under_way);

// Micro-batches whose values a stage holds at one time, where each backward runs as early as it can.
static inline int64_t stage_under_way(const PlanLayout *l, int stage) {
    return l->pp - stage < l->waves ? l->pp - stage : l->waves;
}

// Of a rank of a stage: what the plan says of all layers, cut to the stage's.
RtMemory stage_memory(const Layers *l, const LayerMemory *m, const RtPlan *plan, const int *stage, int s, const PlanLayout *layout, int threads);

#endif
