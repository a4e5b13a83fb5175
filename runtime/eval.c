// Evaluation: every label of the held-out part counts once, whatever the batch.
#include "runtime/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec.h"
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

// Runs the batches; returns the labels that counted, -1 when stopped.
static int64_t run_batches(RtPlanInstance *p, const RtData *d, const RtBatchInputs *in, int program,
                           uint64_t seed, int64_t samples, bool (*stopped)(void), int64_t *counts,
                           RtReport *report, RtEvalResult *out) {
    int64_t labels = 0;
    for (int64_t first = 0; first < samples; first += rt_batch_sequences(in)) {
        if (stopped && stopped()) return -1;
        int64_t bytes, here = 0;
        out->samples += rt_data_held_out_batch(d, first, rt_batch_sequences(in), rt_batch_tokens(in),
                                               rt_batch_labels(in), &bytes);
        out->bytes += bytes;
        rt_batch_finish(in, counts);
        for (int64_t l = 0; l < in->leaves; l++) here += counts[l];
        labels += here;
        rt_set_rng(p, seed, 0, 0);
        rt_set_progress(p, 1, 0);
        rt_run(p, program);
        rt_report_add(report, p, program, 1, (double)here, in->leaves, counts);
    }
    rt_report_scale(report, 1 / (double)labels);
    rt_report_end(report);
    return labels;
}

RtStatus rt_eval(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples, RtEvalResult *out,
                 RtError *e) {
    return rt_eval_until(p, d, seed, max_samples, NULL, out, e);
}

RtStatus rt_eval_until(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples,
                       bool (*stopped)(void), RtEvalResult *out, RtError *e) {
    *out = (RtEvalResult){0};
    int program = rt_program(p, "eval");
    if (program < 0) return rt_fail(e, RT_BAD_PLAN, "the plan has no program 'eval'");
    RtBatchInputs in;
    RT_TRY(rt_batch_inputs(p, -1, &in, e));
    int64_t samples = rt_data_held_out(d);
    if (max_samples > 0 && max_samples < samples) samples = max_samples;
    if (samples == 0)
        return rt_fail(
            e, RT_BAD_SETTING,
            "the held-out part is shorter than one sequence of %lld and its last label: raise data.held_out",
            (long long)in.sequence);
    int64_t *counts = calloc((size_t)in.leaves, sizeof *counts), begin_ns = rt_now_ns();
    RtReport report;
    RtStatus s = rt_report_open(&report, p, program, -1, e);
    if (s == RT_OK && !counts) s = rt_fail(e, RT_NO_MEMORY, "no memory for evaluation");
    if (s == RT_OK) {
        rt_report_begin(&report);
        out->tokens = run_batches(p, d, &in, program, seed, samples, stopped, counts, &report, out);
    }
    if (s == RT_OK && out->tokens < 0) s = rt_fail(e, RT_STOPPED, "evaluation was stopped");
    if (s == RT_OK) {
        out->ce = ce_of(&report);
        if (isnan(out->ce)) out->ce = NAN;           // without a sign, which printf would write
        out->loss = report.loss;
        if (isnan(out->ce) && report.n_sources == 0)
            s = rt_fail(e, RT_BAD_PLAN, "program 'eval' reports no loss");
    }
    rt_report_close(&report);
    free(counts);
    RT_TRY(s);
    out->perplexity = exp(out->ce);
    out->bits_per_byte = out->bytes ? out->ce * (double)out->tokens / log(2) / (double)out->bytes : 0;
    out->seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
    return RT_OK;
}

void rt_eval_print(const RtEvalResult *r, FILE *out) {
    fprintf(out, "loss %.5f  perplexity %.4f  bits per byte %.4f  (%lld tokens, %lld bytes, %.1f s)\n", r->ce,
            r->perplexity, r->bits_per_byte, (long long)r->tokens, (long long)r->bytes, r->seconds);
}
