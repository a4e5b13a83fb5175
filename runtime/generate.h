// Continuing a text with program "run".
#ifndef RUNTIME_GENERATE_H
#define RUNTIME_GENERATE_H
#include <stdio.h>
#include "runtime/plan.h"
#include "runtime/settings.h"
#include "runtime/tokenizer.h"

// Choosing the next token.  Applied in this order: repetition, temperature, top-k, top-p, min-p.
typedef struct {
    double  temperature;            // 0: the largest logit
    int64_t top_k;                  // 0: all
    double  top_p, min_p, repetition;
    uint64_t seed;
} RtSampling;

typedef struct RtSampler RtSampler;
RtSampler *rt_sampler_open(RtSampling s, int64_t vocab);          // NULL: no memory
void       rt_sampler_close(RtSampler *s);
void       rt_sampler_seen(RtSampler *s, int32_t id);              // counts for the repetition penalty
// The token for draw number `draw` (each number gives its own random number).  logits[vocab] stay as they
// are.
int32_t    rt_sampler_next(RtSampler *s, const float *logits, int64_t draw);

typedef struct {
    int64_t prompt_tokens, tokens;
    double  prompt_seconds, seconds;
    const char *why;                // "eos", "stop", "max_tokens", "context"
} RtGenerateResult;

// Decodes one sequence step by step: program "run", inputs tokens and positions i32[1,S], symbols S (rows of
// this call) and C (rows of the sequence so far), output logits.
typedef struct {
    RtPlanInstance *plan;
    int     program, sym_rows, sym_context;
    const RtTensor *tokens, *positions, *logits;
    int64_t past, max_rows, max_context, vocab;
    float  *row;                    // logits of the last row, [vocab]
} RtDecoder;
RtStatus rt_decoder_open(RtPlanInstance *p, RtDecoder *d, RtError *e);
void     rt_decoder_close(RtDecoder *d);
void     rt_decoder_restart(RtDecoder *d);                         // an empty sequence
// Feeds ids[n], in pieces of at most max_rows; logits of the last one.  n <= max_context - past.
const float *rt_decoder_feed(RtDecoder *d, const int32_t *ids, int64_t n);

// A text to be continued.
typedef struct {
    const char *prompt;
    FILE *out;                      // whole characters as they come; NULL: nowhere
    RtGenerateResult result;
} RtRequest;
// Where there are several ranks, all call this; request i is data rank i % n's, which alone writes it and fills its result.
// Tokens are those that one rank would choose.
RtStatus rt_generate_all(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, RtRequest *request, int n,
                         RtError *e);

// Prompt in, text out to `out` as it comes (whole characters only); out NULL: nowhere.
RtStatus rt_generate(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, const char *prompt,
                     FILE *out, RtGenerateResult *result, RtError *e);

#endif
