// Inputs and outputs of programs by name.
#include "runtime/inputs.h"

#include <string.h>

#include "runtime/convert.h"
#include "runtime/gather.h"

static const RtTensor *find_input(const RtPlanInstance *p, const char *name) {
    const RtTensor *t = rt_tensor(p, name);
    return t && t->role == RT_INPUT ? t : NULL;
}

void rt_set_input(RtPlanInstance *p, const char *name, double value) {
    const RtTensor *t = find_input(p, name);
    if (!t) return;
    int64_t n = rt_tensor_elements(p, t);
    for (int64_t i = 0; i < n; i++) rt_store_number(rt_tensor_data(p, t), (DType)t->dtype, i, value);
}

void rt_set_rng(RtPlanInstance *p, uint64_t seed, int64_t steps_done, int64_t wave) {
    const RtTensor *t = find_input(p, "rng");
    if (!t || t->bytes < 16) return;
    uint32_t rng[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)steps_done, (uint32_t)wave};
    memcpy(rt_tensor_data(p, t), rng, sizeof rng);
}

void rt_set_progress(RtPlanInstance *p, int64_t step, int64_t tokens_seen) {
    rt_set_input(p, "step", (double)step);
    rt_set_input(p, "tokens_seen", (double)tokens_seen);
}

static RtStatus find_batch(RtPlanInstance *p, const char *name, const RtTensor **out, RtError *e) {
    *out = find_input(p, name);
    if (!*out)
        return rt_fail(
            e, RT_BAD_SETTING,
            "the model has no input '%s': a text can train only models that take tokens and labels", name);
    if ((*out)->dtype != I32 || (*out)->ndim != 3)
        return rt_fail(e, RT_BAD_SETTING, "the model's input '%s' must be i32[B, S], but is %s with %d axes",
                       name, dtype_name((DType)(*out)->dtype), (*out)->ndim - 1);
    return RT_OK;
}

RtStatus rt_batch_inputs(RtPlanInstance *p, int64_t end, RtBatchInputs *out, RtError *e) {
    *out = (RtBatchInputs){.plan = p, .end = end};
    RT_TRY(find_batch(p, "tokens", &out->tokens, e));
    RT_TRY(find_batch(p, "labels", &out->labels, e));
    Tensor t = rt_tensor_view(p, out->tokens), l = rt_tensor_view(p, out->labels);
    if (memcmp(t.dim, l.dim, sizeof t.dim) != 0)
        return rt_fail(e, RT_BAD_SETTING, "the model's tokens and labels have different shapes");
    out->leaves = t.dim[0];
    out->batch = t.dim[1];
    out->sequence = t.dim[2];
    int64_t n = out->leaves * out->batch;
    out->slice = (RtSlice){n * rt_data_rank(p->ranks), n, n * rt_data_ranks(p->ranks)};
    return RT_OK;
}

int32_t *rt_batch_tokens(const RtBatchInputs *b) { return rt_tensor_data(b->plan, b->tokens); }
int32_t *rt_batch_labels(const RtBatchInputs *b) { return rt_tensor_data(b->plan, b->labels); }

// positions and documents, [L,B,S] like tokens: one row of S after the other.
static void fill_rows(const RtBatchInputs *b, const char *name, bool documents) {
    const RtTensor *t = find_input(b->plan, name);
    if (!t) return;
    int64_t n = rt_tensor_elements(b->plan, t);
    const int32_t *token = rt_batch_tokens(b);
    int32_t value = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i % b->sequence == 0) value = 0;
        rt_store_number(rt_tensor_data(b->plan, t), (DType)t->dtype, i, value);
        value += !documents || (b->end >= 0 && i < b->leaves * b->batch * b->sequence && token[i] == b->end);
    }
}

void rt_batch_finish(const RtBatchInputs *b, int64_t *counts) {
    fill_rows(b, "positions", false);
    fill_rows(b, "documents", true);
    int64_t n = b->batch * b->sequence;
    const int32_t *label = rt_batch_labels(b);
    for (int64_t l = 0; l < b->leaves; l++) {
        counts[l] = 0;
        for (int64_t i = 0; i < n; i++) counts[l] += label[l * n + i] != -100;
    }
}

const char *rt_last_segment(const char *name) {
    const char *last = name;
    for (const char *c = name; *c; c++)
        if (*c == '.' || *c == '/') last = c + 1;
    return last;
}
