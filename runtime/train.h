// The training loop: programs "pass" (once per wave) and "update", then what surrounds them.
#ifndef RUNTIME_TRAIN_H
#define RUNTIME_TRAIN_H
#include <stdio.h>
#include "runtime/plan.h"
#include "runtime/settings.h"
#include "runtime/trace.h"

typedef struct {
    const RtSettings *settings;
    const char *run_dir;            // gets metrics.jsonl, TensorBoard events, ckpt/
    bool  resume;                   // from the newest whole checkpoint of run_dir
    const char *init_from; // NULL, or a checkpoint, run or safetensors whose weights the run begins with
    const char *model_name, *model_file, *model_text;    // stored in checkpoints; any may be NULL
    const char *cache_dir;          // token cache; NULL: rt_cache_dir()
    const char *trace_path;         // NULL, or where to write a Chrome trace of one step
    int64_t trace_step;             // which; 0: the third of this process
    bool  record_routes;            // several ranks: how many rows each route sent to each expert, in run_dir/routes/
    FILE *out;                      // progress; NULL: nowhere
    bool  quiet;                    // no progress, only the last line and warnings
    RtLimits limits;                // of the machine, for MFU and traces; zeros: unknown
    const char *startup;            // a line on compiling ("61 kernels compiled, 0 cached, 1.2 s"), or NULL
} RtTrainOpts;

typedef struct {
    int64_t step, skipped_steps, tokens;
    double  loss, seconds, tokens_per_s;
} RtTrainResult;

// RT_STOPPED after SIGINT or SIGTERM: the step was finished and saved.  result may be NULL.
RtStatus rt_train(const RtTrainOpts *o, RtPlanInstance *p, RtTrainResult *result, RtError *e);

#endif
