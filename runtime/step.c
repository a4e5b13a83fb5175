// batch -> pass, for each wave; then the numbers of update and update.
#include "runtime/step.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/exec.h"

RtStatus rt_work_open(RtPlanInstance *p, const RtSettings *s, RtStepWork *out, RtError *e) {
    RtStepWork *w = out;
    *w = (RtStepWork){.p = p, .s = s, .pass = rt_program(p, "pass"), .update = rt_program(p, "update")};
    if (w->pass < 0 || w->update < 0)
        return rt_fail(e, RT_BAD_PLAN, "the plan has no programs 'pass' and 'update': it cannot train");
    RT_TRY(rt_batch_inputs(p, s->end, &w->in, e));
    int64_t a_pass = w->in.slice.all;
    w->waves = s->batch ? s->batch / a_pass : 1;
    if (s->batch && s->batch % a_pass)
        return rt_fail(e, RT_BAD_SETTING, "train.batch is %lld, but a pass of the plan takes %lld sequences",
                       (long long)s->batch, (long long)a_pass);
    if (s->sequence && s->sequence != w->in.sequence)
        return rt_fail(e, RT_BAD_SETTING, "train.sequence is %lld, but the plan has %lld",
                       (long long)s->sequence, (long long)w->in.sequence);
    w->counts = calloc((size_t)w->in.leaves + 1, sizeof *w->counts);
    if (!w->counts) return rt_fail(e, RT_NO_MEMORY, "no memory for a step");
    return rt_report_open(&w->report, p, w->pass, w->update, e);
}

void rt_work_close(RtStepWork *w) {
    rt_report_close(&w->report);
    free(w->counts);
    w->counts = NULL;
}

// The waves, and how many labels the step has.  Under average = "token" a wave counts by its labels, whose sum is
// known at the end only.
static RtStatus run_waves(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, int64_t *labels, RtError *e) {
    bool by_token = w->s->average_token;
    *labels = 0;
    for (int64_t wave = 0; wave < w->waves; wave++) {
        batch(self, w->in.slice, rt_batch_tokens(&w->in), rt_batch_labels(&w->in));
        rt_batch_finish(&w->in, w->counts);
        rt_set_rng(w->p, w->s->seed, n.step - 1, wave);
        rt_set_input(w->p, "wave", (double)wave);
        rt_set_progress(w->p, n.step, n.tokens);
        rt_run(w->p, w->pass);
        RT_TRY(rt_report_collect(&w->report, w->pass, w->counts, e));
        *labels += w->report.labels;
        double share = by_token ? (double)w->report.labels : 1.0 / (double)w->waves;
        rt_report_add(&w->report, w->pass, n.step, share, by_token);
    }
    if (by_token && *labels) rt_report_scale(&w->report, 1 / (double)*labels);
    return RT_OK;
}

static RtStatus run_update(RtStepWork *w, RtStepNumbers n, int64_t labels, RtError *e) {
    double scale = w->s->average_token ? 1 / (double)(labels ? labels : 1)
                                       : 1 / (double)(w->waves * rt_batch_all_leaves(&w->in));
    rt_set_input(w->p, "lr", n.lr);
    rt_set_input(w->p, "step_number", (double)n.step);
    rt_set_input(w->p, "bias1", 1 - pow(w->s->beta1, (double)n.updates));
    rt_set_input(w->p, "bias2", 1 - pow(w->s->beta2, (double)n.updates));
    rt_set_input(w->p, "grad_scale", scale);
    rt_set_rng(w->p, w->s->seed, n.step - 1, 0);
    rt_set_progress(w->p, n.step, n.tokens);
    rt_run(w->p, w->update);
    RT_TRY(rt_report_collect(&w->report, w->update, NULL, e));
    rt_report_add(&w->report, w->update, n.step, 1, false);
    return RT_OK;
}

RtStatus rt_work_step(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, RtError *e) {
    int64_t labels;
    rt_report_begin(&w->report);
    RT_TRY(run_waves(w, n, batch, self, &labels, e));
    RT_TRY(run_update(w, n, labels, e));
    rt_report_end(&w->report);
    return RT_OK;
}
