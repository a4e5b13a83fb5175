#ifndef PLANNER_PIPELINE_H
#define PLANNER_PIPELINE_H
#include "planner/simulate.h"
#include "planner/stages.h"

// Seconds of so many micro-batches (waves) through stages that take forward[s] and backward[s] each and `send` to hand one
// on.  idle[s]: how long each stage waits.
double pipeline_seconds(Arena *a, const double *forward, const double *backward, double send, int pp, int64_t waves, Timeline *timeline,
                        double *idle);

// A step on a pipeline: stage[layer + 1] as of stages_split, costs with their stages.  send: seconds to hand a micro-batch on.
// overlap: a stage runs one micro-batch forward while another runs backward, so that messages of each are hidden by the other
// (DualPipe).  Sums over ranks are made once, at the end.
Simulated simulate_pipeline(Arena *a, const Cluster *c, const PlanLayout *l, const Costs *costs, double send, bool overlap, Timeline *timeline);

#endif
