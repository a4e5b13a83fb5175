// Evaluation: every label of the held-out part counts once, whatever the batch.
#include "runtime/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec.h"
#include "runtime/inputs.h"
#include "runtime/trace.h"

// Is this the loss that perplexity is made of?  The one called ce, or, if none is, the first.
static const RtTensor *find_ce(const RtPlanInstance *p, int program) {
    const RtTensor *first = NULL;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (t->role != RT_OUTPUT || t->kind != RT_OUT_LOSS || !rt_is_output_of(p, program, t)) continue;
        if (!strcmp(rt_last_segment(rt_tensor_name(p, t)), "ce")) return t;
        if (!first) first = t;
    }
    return first;
}

typedef struct { double nll, objective, weight; } Sums;

static void add_batch(const RtPlanInstance *p, int program, const RtTensor *ce, int64_t leaves, const int64_t *counts, Sums *s) {
    double labels = 0;
    for (int64_t l = 0; l < leaves; l++) labels += (double)counts[l];
    s->nll += labels * rt_output_mean(p, ce, leaves, counts);
    s->weight += labels;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (t->role == RT_OUTPUT && t->kind == RT_OUT_LOSS && rt_is_output_of(p, program, t))
            s->objective += labels * (double)t->weight * rt_output_mean(p, t, leaves, counts);
    }
}

RtStatus rt_eval(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples, RtEvalResult *out, RtError *e) {
    *out = (RtEvalResult){0};
    int program = rt_program(p, "eval");
    if (program < 0) return rt_fail(e, RT_BAD_PLAN, "the plan has no program 'eval'");
    RtBatchInputs in;
    RT_TRY(rt_batch_inputs(p, -1, &in, e));
    const RtTensor *ce = find_ce(p, program);
    if (!ce) return rt_fail(e, RT_BAD_PLAN, "program 'eval' reports no loss");
    int64_t samples = rt_data_held_out(d);
    if (max_samples > 0 && max_samples < samples) samples = max_samples;
    if (samples == 0)
        return rt_fail(e, RT_BAD_SETTING, "the held-out part is shorter than one sequence of %lld and its last label: raise data.held_out",
                       (long long)in.sequence);
    int64_t *counts = calloc((size_t)in.leaves, sizeof *counts);
    if (!counts) return rt_fail(e, RT_NO_MEMORY, "no memory for evaluation");
    int64_t begin_ns = rt_now_ns();
    Sums s = {0, 0, 0};
    for (int64_t first = 0; first < samples; first += rt_batch_sequences(&in)) {
        int64_t bytes;
        out->samples += rt_data_held_out_batch(d, first, rt_batch_sequences(&in), rt_batch_tokens(&in), rt_batch_labels(&in), &bytes);
        out->bytes += bytes;
        rt_batch_finish(&in, counts);
        rt_set_rng(p, seed, 0, 0);
        rt_set_progress(p, 1, 0);
        rt_run(p, program);
        add_batch(p, program, ce, in.leaves, counts, &s);
    }
    free(counts);
    out->tokens = (int64_t)s.weight;
    out->ce = s.nll / s.weight;
    out->loss = s.objective / s.weight;
    out->perplexity = exp(out->ce);
    out->bits_per_byte = out->bytes ? s.nll / log(2) / (double)out->bytes : 0;
    out->seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
    return RT_OK;
}

void rt_eval_print(const RtEvalResult *r, FILE *out) {
    fprintf(out, "loss %.5f  perplexity %.4f  bits per byte %.4f  (%lld tokens, %lld bytes, %.1f s)\n", r->ce, r->perplexity,
            r->bits_per_byte, (long long)r->tokens, (long long)r->bytes, r->seconds);
}
