// What each step of a plan costs a rank of a cluster: seconds of compute, seconds of each link.
#ifndef PLANNER_COSTS_H
#define PLANNER_COSTS_H
#include "planner/cluster.h"
#include "planner/traffic.h"
#include "runtime/plan.h"

typedef enum { SPENT_PRODUCTS, SPENT_ATTENTION, SPENT_ROWS, SPENT_MESSAGES, SPENT_WAIT_ROWS, SPENT_WAIT_SUMS, SPENT_WAIT_OTHERS,
               SPENT_BUBBLE, SPENT_UPDATE, SPENT_KINDS } SpentKind;
const char *spent_name(SpentKind k);

typedef struct {
    double    seconds;             // of compute, this rank's share of messages included
    double    flops;
    SpentKind kind;
    bool      moves, pending, waits, backward, is_sum;
    RtGroup   group;               // that it moves over
    uint32_t  sequence;            // of the exchange that it starts or waits for
    double    link[RT_LINKS];      // seconds of each link
    int       stage;               // of a pipeline
} StepCost;

typedef struct {
    const RtPlan *plan;
    int       ranks;               // of the mesh that were looked at: 1 (all are like it), or all
    StepCost **of;                 // [ranks][plan->steps.n]
    bool      bf16;                // there are products of bf16
    double    far_rows;            // rows at experts of the layer with the most, over their bound
} Costs;

// ranks 1: the one that t names.
Costs costs_of(Arena *a, const Cluster *c, const TrafficOf *t, int ranks);

// The least time that work takes at the rates of a device.
double limit_seconds(const Cluster *c, RtWorkKind kind, RtWork w);

#endif
