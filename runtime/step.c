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
    int64_t a_pass = rt_batch_sequences(&w->in);
    w->waves = s->batch ? s->batch / a_pass : 1;
    if (s->batch && s->batch % a_pass)
        return rt_fail(e, RT_BAD_SETTING, "train.batch is %lld, but a pass of the plan takes %lld sequences",
                       (long long)s->batch, (long long)a_pass);
    if (s->sequence && s->sequence != w->in.sequence)
        return rt_fail(e, RT_BAD_SETTING, "train.sequence is %lld, but the plan has %lld",
                       (long long)s->sequence, (long long)w->in.sequence);
    w->counts = calloc((size_t)(w->waves * w->in.leaves) + 1, sizeof *w->counts);
    return w->counts ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for a step");
}

void rt_work_close(RtStepWork *w) {
    free(w->counts);
    w->counts = NULL;
}

// The waves; returns how many labels the step has.  Under average = "token" a wave counts by its labels,
// whose sum is known at the end only.
static int64_t run_waves(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, RtReport *report) {
    int64_t labels = 0, leaves = w->in.leaves;
    bool by_token = w->s->average_token;
    for (int64_t wave = 0; wave < w->waves; wave++) {
        int64_t *counts = w->counts + wave * leaves, here = 0;
        batch(self, rt_batch_sequences(&w->in), rt_batch_tokens(&w->in), rt_batch_labels(&w->in));
        rt_batch_finish(&w->in, counts);
        for (int64_t l = 0; l < leaves; l++) here += counts[l];
        labels += here;
        rt_set_rng(w->p, w->s->seed, n.step - 1, wave);
        rt_set_input(w->p, "wave", (double)wave);
        rt_set_progress(w->p, n.step, n.tokens);
        rt_run(w->p, w->pass);
        if (report)
            rt_report_add(report, w->p, w->pass, n.step, by_token ? (double)here : 1.0 / (double)w->waves, leaves,
                          by_token ? counts : NULL);
    }
    if (report && by_token && labels) rt_report_scale(report, 1 / (double)labels);
    return labels;
}

static void run_update(RtStepWork *w, RtStepNumbers n, int64_t labels, RtReport *report) {
    double scale =
        w->s->average_token ? 1 / (double)(labels ? labels : 1) : 1 / (double)(w->waves * w->in.leaves);
    rt_set_input(w->p, "lr", n.lr);
    rt_set_input(w->p, "step_number", (double)n.step);
    rt_set_input(w->p, "bias1", 1 - pow(w->s->beta1, (double)n.updates));
    rt_set_input(w->p, "bias2", 1 - pow(w->s->beta2, (double)n.updates));
    rt_set_input(w->p, "grad_scale", scale);
    rt_set_rng(w->p, w->s->seed, n.step - 1, 0);
    rt_set_progress(w->p, n.step, n.tokens);
    rt_run(w->p, w->update);
    if (report) rt_report_add(report, w->p, w->update, n.step, 1, w->in.leaves, NULL);
}

void rt_work_step(RtStepWork *w, RtStepNumbers n, RtBatchFn *batch, void *self, RtReport *report) {
    if (report) rt_report_begin(report);
    int64_t labels = run_waves(w, n, batch, self, report);
    run_update(w, n, labels, report);
    if (report) rt_report_end(report);
}
