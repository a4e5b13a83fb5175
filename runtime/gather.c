// Small messages between the ranks of a run.
#include "runtime/gather.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Who waits here may wait for another rank that reads or writes files: some ten minutes.
static const int64_t PATIENCE_NS = 60000000000;

RtStatus rt_ranks_status(const RtRanks *r, RtError *e) {
    if (!r || r->status == RT_OK) return RT_OK;
    if (e) *e = r->error;
    return r->status;
}

static RtStatus run(RtRanks *r, RtCommOp *op, int ranks, RtError *e) {
    RT_TRY(rt_ranks_status(r, e));
    op->expected_ns = PATIENCE_NS;
    int64_t bytes = rt_comm_scratch_bytes(op->kind, op->dtype, op->n, ranks);
    void *scratch = bytes ? malloc((size_t)bytes) : NULL;
    if (bytes && !scratch) return rt_fail(e, RT_NO_MEMORY, "no memory to talk to other ranks");
    op->scratch = scratch;
    RtStatus s = rt_comm_run(r->comm, op, e);
    free(scratch);
    return s;
}

// Blocks of different sizes, in bytes, of a communicator's group: all[cut[i], cut[i + 1]) is rank i's.
static RtStatus gather_blocks(RtRanks *r, int group, int ranks, const int64_t *cut, void *all, RtError *e) {
    RtCommOp op = {.kind = RT_COMM_GATHER, .group = group, .dtype = U8, .n = cut[ranks], .buf = all, .cut = cut};
    return run(r, &op, ranks, e);
}

static RtStatus gather(RtRanks *r, int group, int i, int ranks, const void *own, int64_t bytes, void *all,
                       RtError *e) {
    int64_t *cut = malloc(((size_t)ranks + 1) * sizeof *cut);
    if (!cut) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of ranks");
    for (int k = 0; k <= ranks; k++) cut[k] = k * bytes;
    memcpy((char *)all + i * bytes, own, (size_t)bytes);
    RtStatus s = gather_blocks(r, group, ranks, cut, all, e);
    free(cut);
    return s;
}

RtStatus rt_gather(RtRanks *r, const void *own, int64_t bytes, void *all, RtError *e) {
    int n = rt_data_ranks(r);
    if (n > 1) return gather(r, r->group[RT_GROUP_DATA], rt_data_rank(r), n, own, bytes, all, e);
    memcpy(all, own, (size_t)bytes);
    return rt_ranks_status(r, e);
}

RtStatus rt_move(RtRanks *r, RtGroup g, const RtCommPart *send, int n_send, const RtCommPart *recv, int n_recv, RtError *e) {
    RtCommOp op = {.kind = RT_COMM_MOVE, .group = r->group[g], .dtype = U8, .send = send, .recv = recv, .n_send = n_send,
                   .n_recv = n_recv};
    return run(r, &op, rt_group_size(r->mesh, g), e);
}

RtStatus rt_gather_at(RtRanks *r, RtGroup g, int root, void *own, int64_t bytes, void *all, RtError *e) {
    int n = rt_group_size(r->mesh, g), i = rt_group_rank(r->mesh, g, r->rank);
    if (n == 1) {
        memcpy(all, own, (size_t)bytes);
        return RT_OK;
    }
    RtCommPart send = {own, bytes, root}, *recv = calloc((size_t)n, sizeof *recv);
    if (!recv) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of ranks");
    for (int k = 0; k < n && i == root; k++) recv[k] = (RtCommPart){(char *)all + k * bytes, bytes, k};
    RtStatus s = rt_move(r, g, &send, 1, recv, i == root ? n : 0, e);
    free(recv);
    return s;
}

// Parts one after the other, as they lie in the whole.
static void join_parts(const RtPlanInstance *p, const RtTensor *t, int parts, const char *from, char *whole) {
    int tp = rt_tensor_tp(p, t), inner = rt_tensor_inner_parts(p, t);
    size_t element = (size_t)dtype_bytes((DType)t->dtype);
    for (int i = 0; i < parts * inner * tp; i++, from += t->bytes) {
        RtOwn o = rt_tensor_place(p, t, (RtPartAt){i / tp / inner, i / tp % inner, i % tp});
        for (int64_t r = 0; r < o.runs; r++)
            memcpy(whole + (size_t)rt_own_begin(&o, r) * element, from + (size_t)(r * o.run) * element,
                   (size_t)o.run * element);
    }
}

RtStatus rt_gather_tensor(const RtPlanInstance *p, const RtTensor *t, int parts, RtPartAt root, void *whole,
                          RtError *e) {
    const struct { int n, root, group; } cut[] = {{rt_tensor_tp(p, t), root.tp, RT_GROUP_TP},
                                                  {rt_tensor_inner_parts(p, t), root.inner, t->within - 1},
                                                  {parts, root.part, t->shard - 1}};
    bool here = whole != NULL;
    int64_t bytes = t->bytes;
    char *data = rt_tensor_data(p, t), *joined = NULL;
    RtStatus s = RT_OK;
    for (int i = 0; i < 3 && s == RT_OK; i++) {           // everyone takes part, so that all ranks run the same exchanges
        if (cut[i].n == 1) continue;
        char *all = malloc((size_t)(cut[i].n * bytes) + 1);
        s = all ? rt_gather_at(p->ranks, (RtGroup)cut[i].group, cut[i].root, data, bytes, all, e)
                : rt_fail(e, RT_NO_MEMORY, "no memory to put '%s' together", rt_tensor_name(p, t));
        here = here && rt_group_rank(p->ranks->mesh, (RtGroup)cut[i].group, p->ranks->rank) == cut[i].root;
        bytes *= cut[i].n;
        free(joined);
        data = joined = all;
    }
    if (s == RT_OK && here) join_parts(p, t, parts, data, whole);
    free(joined);
    return s;
}

static RtStatus broadcast(RtRanks *r, int root, void *data, int64_t bytes, RtError *e) {
    RtCommOp op = {.kind = RT_COMM_BCAST, .dtype = U8, .root = root, .n = bytes, .buf = data};
    return run(r, &op, r->n, e);
}

RtStatus rt_from_first(RtRanks *r, void *data, int64_t bytes, RtError *e) {
    return r ? broadcast(r, 0, data, bytes, e) : RT_OK;
}

RtStatus rt_sum_over(RtRanks *r, RtGroup g, int64_t *x, int64_t n, RtError *e) {
    int m = rt_group_size(r->mesh, g);
    if (m == 1) return RT_OK;
    RtCommOp op = {.kind = RT_COMM_EXACT, .group = r->group[g], .dtype = I64, .n = n, .buf = x};
    return run(r, &op, m, e);
}

RtStatus rt_sum(RtRanks *r, int64_t *x, RtError *e) {
    return r ? rt_sum_over(r, RT_GROUP_DATA, x, 1, e) : RT_OK;
}

// With the words that tell whether all ranks have run the same exchanges so far.
RtStatus rt_any(RtRanks *r, int32_t *flag, int n, RtError *e) {
    enum { MOST = 12 };
    int64_t word[MOST + RT_CHECK_WORDS];
    assert(n <= MOST);
    if (!r) return RT_OK;
    for (int i = 0; i < n; i++) word[i] = flag[i];
    rt_comm_check_words(r->comm, word + n);
    RtCommOp op = {.kind = RT_COMM_EXACT, .dtype = I64, .n = n + RT_CHECK_WORDS, .buf = word};
    RT_TRY(run(r, &op, r->n, e));
    RT_TRY(rt_comm_check(r->comm, word + n, e));
    for (int i = 0; i < n; i++) flag[i] = word[i] != 0;
    return RT_OK;
}

RtStatus rt_gather_texts(RtRanks *r, const char *own, char **all, RtError *e) {
    int n = rt_n_ranks(r);
    int64_t bytes = own ? (int64_t)strlen(own) + 1 : 1, *size = malloc((size_t)n * sizeof *size),
            *cut = malloc(((size_t)n + 1) * sizeof *cut);
    *all = NULL;
    RtStatus s = size && cut ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for a list of ranks");
    if (s == RT_OK && r) s = gather(r, 0, r->rank, n, &bytes, sizeof bytes, size, e);
    if (s == RT_OK) {
        if (!r) size[0] = bytes;
        cut[0] = 0;
        for (int i = 0; i < n; i++) cut[i + 1] = cut[i] + size[i];
        *all = malloc((size_t)cut[n]);
        if (!*all) s = rt_fail(e, RT_NO_MEMORY, "no memory for the texts of %d ranks", n);
        else memcpy(*all + cut[rt_rank(r)], own ? own : "", (size_t)bytes);
    }
    if (s == RT_OK && r) s = gather_blocks(r, 0, n, cut, *all, e);
    if (s != RT_OK) {
        free(*all);
        *all = NULL;
    }
    free(size);
    free(cut);
    return s;
}

static bool names_its_rank(const RtError *e) {
    int rank, n = 0;
    return sscanf(e->text, "rank %d%n", &rank, &n) == 1 && e->text[n] == ':';
}

// *first: the first rank whose status isn't RT_OK, or the number of ranks; *alike: all failed, with the same status.
static RtStatus look_for_failures(RtRanks *r, RtStatus own, int *first, bool *alike, RtError *e) {
    int32_t code = (int32_t)own, *all = malloc((size_t)r->n * sizeof *all);
    if (!all) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of ranks");
    RtStatus s = gather(r, 0, r->rank, r->n, &code, sizeof code, all, e);
    *first = 0;
    *alike = true;
    for (int i = 0; i < r->n && s == RT_OK; i++) *alike &= all[i] == all[0];
    while (s == RT_OK && *first < r->n && all[*first] == RT_OK) ++*first;
    free(all);
    return s;
}

RtStatus rt_first_failed(RtRanks *r, RtStatus own, int *first, RtError *e) {
    bool alike;
    return look_for_failures(r, own, first, &alike, e);
}

RtStatus rt_agree(RtRanks *r, RtStatus own, RtError *e) {
    if (!r) return own;
    RtError none = {RT_OK, ""}, said = e ? *e : none;
    int first;
    bool alike;
    RT_TRY(look_for_failures(r, own, &first, &alike, e));
    if (first == r->n) return RT_OK;
    said.code = own;
    if (first == r->rank && !alike && !names_its_rank(&said)) rt_add_context(&said, own, "rank %d", r->rank);
    RT_TRY(broadcast(r, first, &said, sizeof said, e));
    r->agreed = said;
    if (e) *e = said;
    return said.code;
}

void rt_give_up(RtRanks *r, RtError *e) {
    if (!r || !strcmp(e->text, r->agreed.text)) return;
    if (!names_its_rank(e)) rt_add_context(e, e->code, "rank %d", r->rank);
    rt_comm_abort(r->comm, e);
}
