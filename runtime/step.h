// One optimizer step: program "pass" once per wave, then program "update".
#ifndef RUNTIME_STEP_H
#define RUNTIME_STEP_H
#include "runtime/inputs.h"
#include "runtime/report.h"
#include "runtime/settings.h"

typedef struct {
    RtPlanInstance   *p;
    const RtSettings *s;
    int     pass, update;
    RtBatchInputs in;
    int64_t waves;
    int64_t *counts;                // [leaves]: labels that count
    RtReport report;                // of the last step
} RtStepWork;

// Where the plan is one of several ranks', p->ranks is there already.  RT_BAD_SETTING where the settings' batch and
// sequence are not the plan's.
RtStatus rt_work_open(RtPlanInstance *p, const RtSettings *s, RtStepWork *out, RtError *e);
void     rt_work_close(RtStepWork *w);
// Of all ranks.
static inline int64_t rt_work_sequences(const RtStepWork *w) { return w->waves * w->in.slice.all; }

// This rank's slice of the next sequences: ids and labels of rows of in.sequence.
typedef void RtBatchFn(void *self, RtSlice slice, int32_t *tokens, int32_t *labels);

typedef struct {
    int64_t step;                   // from 1
    int64_t updates;                // steps that changed something, this one included: what bias correction counts
    int64_t tokens;                 // before the step
    double  lr;
} RtStepNumbers;

// Fails only where an exchange with other ranks does.
RtStatus rt_work_step(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, RtError *e);

#endif
