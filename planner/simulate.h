// The time of a step: what ranks compute and wait for, event by event, in the order of their plan.
//
//   compute   |dispatch| own experts |  wait  | experts ...
//   link              |=== rows =====|
//
// One rank stands for all where they are alike; else all of a mesh are simulated side by side.  An exchange is under way when
// the last of its group has started it; each link is first come, first served.  Ranks that share cores get more of them
// while others wait.
#ifndef PLANNER_SIMULATE_H
#define PLANNER_SIMULATE_H
#include "ir/base/vec.h"
#include "planner/costs.h"
#include "planner/layout.h"

typedef struct { const char *name, *path; double begin, end; int track; int rank; } TimelineEvent;      // track: 0 compute, 1 + RtLink
typedef struct {
    Arena *arena;
    VEC(TimelineEvent) events;
} Timeline;

typedef struct {
    double seconds;                // of a step
    double pass, update;           // of a pass (of all stages: the slowest), of the update
    double spent[SPENT_KINDS];     // of several ranks: their mean
    double link[RT_LINKS];         // seconds that each link is busy
    double flops;                  // of a rank's step
    int    slowest;                // stage
} Simulated;

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
