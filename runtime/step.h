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
    int64_t *counts;                // [waves, leaves]: labels that count
} RtStepWork;

// RT_BAD_SETTING where the settings' batch and sequence are not the plan's.
RtStatus rt_work_open(RtPlanInstance *p, const RtSettings *s, RtStepWork *out, RtError *e);
void     rt_work_close(RtStepWork *w);
static inline int64_t rt_work_sequences(const RtStepWork *w) { return w->waves * rt_batch_sequences(&w->in); }

// The next sequences: ids and labels of rows of in.sequence.
typedef void RtBatchFn(void *self, int64_t sequences, int32_t *tokens, int32_t *labels);

typedef struct {
    int64_t step;                   // from 1
    int64_t updates;                // steps that changed something, this one included: what bias correction counts
    int64_t tokens;                 // before the step
    double  lr;
} RtStepNumbers;

// report NULL: nobody asks for the numbers.
void rt_work_step(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, RtReport *report);

#endif
