// What kernels of a run reached: shares of a device's rates by op, from a trace (`--trace` of bench and train).
#ifndef PLANNER_CALIBRATE_H
#define PLANNER_CALIBRATE_H
#include "ir/base/diag.h"
#include "planner/cluster.h"
#include "planner/costs.h"

typedef struct {
    const char *op;
    int    steps;                  // of the plan
    double seconds;                // they took, each once: medians of its runs
    double limit;                  // least seconds by the rates of the device
} CalibratedOp;

typedef struct {
    int    n;
    CalibratedOp *op;              // the longest first
    double step_seconds;           // of a step of training, as the trace has it
} Calibration;

// Sets the shares of the ops that the trace has.  The trace must be of this plan's layout.  false after errors.
bool calibrate(Arena *a, Diag *d, Cluster *c, const RtPlan *plan, int64_t waves, const char *path, Calibration *out);

#endif
