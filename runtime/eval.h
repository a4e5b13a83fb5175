// Evaluation over the held-out part.
#ifndef RUNTIME_EVAL_H
#define RUNTIME_EVAL_H
#include <stdbool.h>
#include <stdio.h>
#include "runtime/data.h"
#include "runtime/plan.h"

typedef struct {
    double  loss;                   // the objective
    double  ce;                     // nats per token: the loss called ce, or the first
    double  perplexity, bits_per_byte;
    int64_t samples, tokens, bytes; // tokens: labels that count
    double  seconds;
} RtEvalResult;

// Runs program "eval" over the held-out samples, at most max_samples of them (0: all).
RtStatus rt_eval(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples, RtEvalResult *out,
                 RtError *e);
// The same, but given up with RT_STOPPED once `stopped` (asked between batches) says so on any rank.
RtStatus rt_eval_until(RtPlanInstance *p, const RtData *d, uint64_t seed, int64_t max_samples,
                       bool (*stopped)(void), RtEvalResult *out, RtError *e);
void     rt_eval_print(const RtEvalResult *r, FILE *out);

#endif
