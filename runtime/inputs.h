// Writing a plan's inputs and reading its numbers, by name.
#ifndef RUNTIME_INPUTS_H
#define RUNTIME_INPUTS_H
#include "runtime/data.h"
#include "runtime/plan.h"

// All elements of the input of this name become value; nothing happens if the plan has no such input.
void rt_set_input(RtPlanInstance *p, const char *name, double value);
// rng = {seed_lo, seed_hi, steps done, wave}.
void rt_set_rng(RtPlanInstance *p, uint64_t seed, int64_t steps_done, int64_t wave);
// step (from 1) and tokens_seen (before it), as the language has them.
void rt_set_progress(RtPlanInstance *p, int64_t step, int64_t tokens_seen);

// Where batches go: i32[L,B,S].  L: leaves of this rank.
typedef struct {
    RtPlanInstance *plan;
    const RtTensor *tokens, *labels;
    int64_t leaves, batch, sequence;
    int64_t end;                    // id that ends a document; -1: none
    RtSlice slice;                  // this rank's sequences among those that all ranks take at once
} RtBatchInputs;
RtStatus rt_batch_inputs(RtPlanInstance *p, int64_t end, RtBatchInputs *out, RtError *e);
static inline int64_t rt_batch_all_leaves(const RtBatchInputs *b) { return b->slice.all / b->batch; }
int32_t *rt_batch_tokens(const RtBatchInputs *b);
int32_t *rt_batch_labels(const RtBatchInputs *b);
// After tokens are there: positions, documents.  counts[leaves]: labels of each leaf that count.
void rt_batch_finish(const RtBatchInputs *b, int64_t *counts);

const char *rt_last_segment(const char *name);          // layers.3.ffn.balance -> balance

#endif
