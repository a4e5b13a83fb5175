// Experts move between ranks while a run goes on, where that pays: steps of training, or calls of a model that generates.
//
//     each step             exchanges count the rows of every expert (slots.h); the last `window` steps are kept
//     every `interval`      the counts of all ranks --eplb--> new tables.  For each layer: is what it saves until the next
//                           time more than what moving takes?  Then weights, moments and tables move.
//
// Unasked, training does so after each step where the ranks that share experts are of one node, by the rows since a layer's
// experts moved last: they move when the new table would have saved since then what moving takes.  A shift that is large
// pays at once, a small one in time, and one that doesn't last never.
// Counts are integers, so all ranks find the same tables; whether they pay is the first rank's to say, by its clock.
#ifndef RUNTIME_REBALANCE_H
#define RUNTIME_REBALANCE_H
#include "runtime/plan.h"
#include "runtime/schedule.h"

typedef struct {
    int64_t interval, window;  // steps; interval 0: never
    double  gain;              // a move must save so many times the seconds it takes
    int     groups;            // of experts, that a router limits tokens to: each stays on one node whole; 1: all alike
    bool    unasked;           // nobody has said an interval
} RtRebalanceSetting;

typedef struct {
    bool    considered;        // it was a step for it
    bool    unasked;           // as of the setting
    int64_t experts, bytes;    // moved, of all ranks
    double  seconds;           // that took
    double  before, after;     // rows of the busiest rank over the mean, over all layers; as moving would make it
    double  saves, takes;      // predicted: seconds a step, seconds once, of all layers
} RtRebalanced;

typedef struct RtRebalance RtRebalance;

// What parallel.rebalance and its companions say; by_default: experts move unasked.
RtStatus rt_rebalance_setting(const RtSettings *s, RtStepSize size, bool by_default, RtRebalanceSetting *out, RtError *e);
// *out NULL where no expert can move (interval 0; a plan whose experts are not shared, or, unasked, between nodes).  program: whose work a step is.
RtStatus rt_rebalance_open(RtPlanInstance *p, int program, RtRebalanceSetting s, RtRebalance **out, RtError *e);
void     rt_rebalance_close(RtRebalance *r);            // NULL is fine
// Around a step, which took `seconds`; steps_left: of the run, INT64_MAX if nobody knows.  Called by all ranks.
void     rt_rebalance_begin(RtRebalance *r);
RtStatus rt_rebalance_end(RtRebalance *r, int64_t step, double seconds, int64_t steps_left, RtRebalanced *out, RtError *e);

#endif
