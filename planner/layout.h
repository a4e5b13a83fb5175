// How a step is shared out to ranks.
#ifndef PLANNER_LAYOUT_H
#define PLANNER_LAYOUT_H
#include <stdbool.h>
#include "runtime/abi.h"

typedef struct {
    int     pp;                // stages of a pipeline, each with the mesh of its own
    RtMesh  mesh;
    int64_t lanes, waves;      // of a step: lanes are dealt to data ranks, a pass takes a rank's lanes of one wave
    int64_t micro_batch, sequence;
    const char *recompute;     // train.recompute
    double  row_bound;         // rows at experts, times those at home; 0: the worst case
} PlanLayout;

static inline int layout_data_ranks(const PlanLayout *l) { return rt_group_size(l->mesh, RT_GROUP_DATA); }
static inline int layout_ranks(const PlanLayout *l) { return l->pp * rt_mesh_ranks(l->mesh); }
static inline int64_t layout_leaves(const PlanLayout *l) { return l->lanes / layout_data_ranks(l); }      // of a rank's pass
static inline int64_t layout_routed_leaves(const PlanLayout *l) { return l->lanes / rt_lane_ranks(l->mesh); }
static inline double layout_step_tokens(const PlanLayout *l) {
    return (double)l->lanes * (double)l->waves * (double)l->micro_batch * (double)l->sequence;
}

#endif
