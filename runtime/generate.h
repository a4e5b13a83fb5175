// Continuing a text with program "run".
#ifndef RUNTIME_GENERATE_H
#define RUNTIME_GENERATE_H
#include <stdio.h>
#include "runtime/plan.h"
#include "runtime/rebalance.h"
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

// Decodes sequences step by step: program "run", inputs tokens and positions i32[1,S], symbols S (rows of this call) and C
// (rows of its longest sequence so far), output logits.  Where there is a symbol R, a call may have as many sequences:
// input last i32[1,R] names the row of each that logits are of, sequences i32[R,4] (runtime/abi.h) what it has and where
// in the caches its place is.
typedef struct {
    RtPlanInstance *plan;
    int     program, sym_rows, sym_context, sym_sequences;
    const RtTensor *tokens, *positions, *sequences, *last, *logits;
    int64_t max_rows, max_context, vocab;
    int     places;                 // most sequences of a call
    int64_t *past;                  // rows of the sequence at each place, [places]
    float  *row;                    // logits of a row, [vocab]
    int     n;                      // sequences of this call
    int64_t rows, longest;          // its rows, and those of its longest sequence with these
    RtRebalance *rebalance;         // NULL: experts stay where they are
    RtRebalanced moved;             // by all calls so far; before: as the first decision found it, after: as the last one left it
    int64_t calls;
    double  seconds;                // of this call
} RtDecoder;
RtStatus rt_decoder_open(RtPlanInstance *p, RtDecoder *d, RtError *e);
void     rt_decoder_close(RtDecoder *d);
void     rt_decoder_restart(RtDecoder *d, int place);              // an empty sequence
// A call is begun, given rows of sequences at different places (at most max_rows in all, max_context of a sequence), and
// run; of none where other ranks have some.  add returns the number by which logits are asked for.
void     rt_decoder_begin(RtDecoder *d);
int      rt_decoder_add(RtDecoder *d, int place, const int32_t *ids, int64_t n);
void     rt_decoder_run(RtDecoder *d);
// By parallel.rebalance, whose steps are calls: their rows are counted and experts moved.  Between calls all ranks
// say balance.
RtStatus rt_decoder_rebalance(RtDecoder *d, const RtSettings *s, RtError *e);
RtStatus rt_decoder_balance(RtDecoder *d, RtError *e);
const float *rt_decoder_logits(RtDecoder *d, int number);          // until the next one is asked for
// Feeds ids[n] to the sequence at place 0, in calls of at most max_rows; logits of the last one.
const float *rt_decoder_feed(RtDecoder *d, const int32_t *ids, int64_t n);

// A text to be continued.
typedef struct {
    const char *prompt;
    FILE *out;                      // whole characters as they come; NULL: nowhere
    RtGenerateResult result;
} RtRequest;
// As many at a time as the program has places for.  Where there are several ranks, all call this; request i is data rank
// i % n's, which alone writes it and fills its result.  Tokens are those of the request alone on one rank.  moved: experts
// between ranks; NULL: nobody asks.
RtStatus rt_generate_all(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, RtRequest *request, int n,
                         RtRebalanced *moved, RtError *e);

// Prompt in, text out to `out` as it comes (whole characters only); out NULL: nowhere.
RtStatus rt_generate(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, const char *prompt,
                     FILE *out, RtGenerateResult *result, RtError *e);

#endif
