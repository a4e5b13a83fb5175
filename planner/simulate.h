// The time of a step: what a rank computes and waits for, event by event, in the order of its plan.
//
//   compute   |dispatch| own experts |  wait  | experts ...
//   link              |=== rows =====|
//
// Ranks are alike (the traffic of the rank that `traffic` names is everybody's), so one is simulated: its compute in order,
// each link first come, first served.
#ifndef PLANNER_SIMULATE_H
#define PLANNER_SIMULATE_H
#include "ir/base/vec.h"
#include "planner/cluster.h"
#include "planner/layout.h"
#include "planner/traffic.h"

typedef enum { SPENT_PRODUCTS, SPENT_ATTENTION, SPENT_ROWS, SPENT_MESSAGES, SPENT_WAIT_ROWS, SPENT_WAIT_SUMS, SPENT_WAIT_OTHERS,
               SPENT_BUBBLE, SPENT_UPDATE, SPENT_KINDS } SpentKind;
const char *spent_name(SpentKind k);

// What a step of the plan costs.
typedef struct {
    double    seconds;             // of compute, this rank's share of messages included
    double    flops;
    SpentKind kind;
    bool      moves, pending, waits, backward, is_sum;
    uint32_t  sequence;            // of the exchange that it starts or waits for
    double    link[RT_LINKS];      // seconds of each link
    int       stage;               // of a pipeline
} StepCost;

typedef struct {
    const RtPlan *plan;
    StepCost *cost;                // [plan->steps.n]
    bool      bf16;                // there are products of bf16
    double    far_rows;            // rows at experts of the layer with the most, over their bound
} Costs;

typedef struct { const char *name, *path; double begin, end; int track; int rank; } TimelineEvent;      // track: 0 compute, 1 + RtLink
typedef struct {
    Arena *arena;
    VEC(TimelineEvent) events;
} Timeline;

typedef struct {
    double seconds;                // of a step
    double pass, update;           // of a pass (of all stages: the slowest), of the update
    double spent[SPENT_KINDS];
    double link[RT_LINKS];         // seconds that each link is busy
    double flops;                  // of a rank's step
    int    slowest;                // stage
} Simulated;

Costs costs_of(Arena *a, const Cluster *c, const TrafficOf *t);
// timeline: NULL, or where a pass and the update are recorded.
Simulated simulate(Arena *a, const Cluster *c, const PlanLayout *l, const Costs *costs, Timeline *timeline);

// Which steps of a program run.
typedef struct {
    int  stage;                    // -1: of all
    int  backward;                 // 0, 1; -1: both
    bool sums;                     // sums over ranks, too
} StepFilter;
// Some steps of a program alone: seconds and what they are spent on.
Simulated simulate_part(Arena *a, const Cluster *c, const Costs *costs, const char *program, StepFilter f, double from, Timeline *timeline);
Simulated simulate_update(Arena *a, const Cluster *c, const Costs *costs, int stage, double from, Timeline *timeline);
void      simulated_add(Simulated *to, const Simulated *part, double times);

bool timeline_write(const Timeline *t, const char *path);      // Chrome's format; false: errno

#endif
