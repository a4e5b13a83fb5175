// Running programs of a plan.
#ifndef RUNTIME_EXEC_H
#define RUNTIME_EXEC_H
#include "runtime/plan.h"

// Runs a program once.  Allocates nothing.  The result doesn't depend on the number of threads.
void rt_run(RtPlanInstance *p, int program);
// The same of steps first .. first + n - 1 of the plan alone: for measuring them.  What they read must be there.
void rt_run_steps(RtPlanInstance *p, int first, int n);

// First values of all parameters and states, and zeros for gradients.  They depend on seed, name and element
// number only.
RtStatus rt_init(RtPlanInstance *p, uint64_t seed, RtError *e);

#endif
