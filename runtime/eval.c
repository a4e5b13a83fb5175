// Evaluation: every label of the held-out part counts once, whatever the batch.
#include "runtime/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec.h"
#include "runtime/gather.h"
#include "runtime/inputs.h"
#include "runtime/report.h"
#include "runtime/trace.h"

// The loss that perplexity is made of: the one called ce, or, if none is, the first.
static double ce_of(const RtReport *r) {
    const RtReportValue *found = NULL;
    for (int i = 0; i < r->n; i++) {
        if (r->value[i].kind != REPORT_LOSS) continue;
        if (!found || !strcmp(r->value[i].name, "ce")) found = &r->value[i];
    }
    return found ? found->value : NAN;
}

typedef struct {
    RtPlanInstance *p;
    const RtData *d;
    uint64_t seed;
    int     program;
    RtBatchInputs in;
    int64_t *counts;                // [leaves]
    RtReport report;
    bool  (*stopped)(void);
} Evaluation;

static RtStatus run_batch(Evaluation *v, int64_t first, RtEvalResult *out, RtError *e) {
    const RtBatchInputs *in = &v->in;
    int32_t stopped = v->stopped && v->stopped();
    RT_TRY(rt_any(v->p->ranks, &stopped, 1, e));
    if (stopped) return rt_fail(e, RT_STOPPED, "evaluation was stopped");
    int64_t bytes;
    out->samples += rt_data_held_out_batch(v->d, first + in->slice.first, in->slice.n, rt_batch_tokens(in),
                                           rt_batch_labels(in), &bytes);
    out->bytes += bytes;
    rt_batch_finish(in, v->counts);
    rt_set_rng(v->p, v->seed, 0, 0);
    rt_set_progress(v->p, 1, 0);
    rt_run(v->p, v->program);
    RT_TRY(rt_report_collect(&v->report, v->program, v->counts, e));
    rt_report_add(&v->report, v->program, 1, (double)v->report.labels, true);
    out->tokens += v->report.labels;
    return RT_OK;
}

static RtStatus run_batches(Evaluation *v, int64_t samples, RtEvalResult *out, RtError *e) {
    rt_report_begin(&v->report);
    for (int64_t first = 0; first < samples; first += v->in.slice.all) RT_TRY(run_batch(v, first, out, e));
    rt_report_scale(&v->report, 1 / (double)out->tokens);
    rt_report_end(&v->report);
    RT_TRY(rt_sum(v->p->ranks, &out->samples, e));
    return rt_sum(v->p->ranks, &out->bytes, e);
}

static RtStatus finish(const Evaluation *v, RtEvalResult *out, RtError *e) {
    out->ce = ce_of(&v->report);
    if (isnan(out->ce)) out->ce = NAN;           // without a sign, which printf would write
    out->loss = v->report.loss;
    if (isnan(out->ce) && v->report.n_sources == 0)
        return rt_fail(e, RT_BAD_PLAN, "program 'eval' reports no loss");
    out->perplexity = exp(out->ce);
    out->bits_per_byte = out->bytes ? out->ce * (double)out->tokens / log(2) / (double)out->bytes : 0;
    return RT_OK;
}

RtStatus rt_eval(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples, RtEvalResult *out,
                 RtError *e) {
    return rt_eval_until(p, d, seed, max_samples, NULL, out, e);
}

RtStatus rt_eval_until(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples,
                       bool (*stopped)(void), RtEvalResult *out, RtError *e) {
    *out = (RtEvalResult){0};
    Evaluation v = {.p = p, .d = d, .seed = seed, .program = rt_program(p, "eval"), .stopped = stopped};
    if (v.program < 0) return rt_fail(e, RT_BAD_PLAN, "the plan has no program 'eval'");
    RT_TRY(rt_batch_inputs(p, -1, &v.in, e));
    int64_t samples = rt_data_held_out(d), begin_ns = rt_now_ns();
    if (max_samples > 0 && max_samples < samples) samples = max_samples;
    if (samples == 0)
        return rt_fail(
            e, RT_BAD_SETTING,
            "the held-out part is shorter than one sequence of %lld and its last label: raise data.held_out",
            (long long)v.in.sequence);
    v.counts = calloc((size_t)v.in.leaves, sizeof *v.counts);
    RtStatus s = rt_report_open(&v.report, p, v.program, -1, e);
    if (s == RT_OK && !v.counts) s = rt_fail(e, RT_NO_MEMORY, "no memory for evaluation");
    if (s == RT_OK) s = run_batches(&v, samples, out, e);
    if (s == RT_OK) s = finish(&v, out, e);
    rt_report_close(&v.report);
    free(v.counts);
    out->seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
    return s;
}

void rt_eval_print(const RtEvalResult *r, FILE *out) {
    fprintf(out, "loss %.5f  perplexity %.4f  bits per byte %.4f  (%lld tokens, %lld bytes, %.1f s)\n", r->ce,
            r->perplexity, r->bits_per_byte, (long long)r->tokens, (long long)r->bytes, r->seconds);
}
