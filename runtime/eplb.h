// Balanced placement of experts: which expert each slot of each rank holds, so that ranks have alike loads.
//
//     loads of experts  --replicate-->  slots of alike load  --pack-->  ranks of alike load
//
// The policies of EPLB (deepseek-ai/EPLB): f32 throughout, ties to the lowest index, so all who have the same loads get the
// same slots.  Hierarchical: groups of experts are packed to nodes first and stay there whole (a router limited to few
// groups then reaches few nodes).  Global: one group, one node.
#ifndef RUNTIME_EPLB_H
#define RUNTIME_EPLB_H
#include <stdbool.h>
#include <stdint.h>

#include "runtime/status.h"

typedef struct {
    int experts, slots;        // slots >= experts: what is more are replicas
    int ranks, nodes, groups;  // slots are dealt to ranks in order, ranks to nodes
    bool powers;               // replicas of an expert are 1, 2 or 4, at most as many as ranks: what training can sum (slots.h)
} RtEplbSizes;

bool     rt_eplb_is_hierarchical(const RtEplbSizes *z);                // else groups and nodes count as one
RtStatus rt_eplb_check(const RtEplbSizes *z, RtError *e);              // RT_BAD_SETTING says what doesn't divide
// One layer: load[experts] -> slot[slots], the expert in each; count[experts], its replicas.
RtStatus rt_eplb(const RtEplbSizes *z, const float *load, int32_t *slot, int32_t *count, RtError *e);

// The largest load of a rank over the mean, where replicas share an expert's load evenly; 1 without any load.
double   rt_eplb_imbalance(const RtEplbSizes *z, const float *load, const int32_t *slot, const int32_t *count);

#endif
