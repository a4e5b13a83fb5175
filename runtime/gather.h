// What the ranks of a run tell each other outside of a plan's programs: numbers of leaves, decisions, errors.
// All ranks call these at the same place.  ranks NULL: this one is alone, and nothing travels.
#ifndef RUNTIME_GATHER_H
#define RUNTIME_GATHER_H
#include "runtime/ranks.h"

static inline int rt_rank(const RtRanks *r) { return r ? r->rank : 0; }
static inline int rt_n_ranks(const RtRanks *r) { return r ? r->n : 1; }
static inline int rt_data_rank(const RtRanks *r) { return r ? rt_group_rank(r->mesh, RT_GROUP_DATA, r->rank) : 0; }
static inline int rt_data_ranks(const RtRanks *r) { return r ? rt_group_size(r->mesh, RT_GROUP_DATA) : 1; }

// Of the exchanges that programs made so far.
RtStatus rt_ranks_status(const RtRanks *r, RtError *e);
// own[bytes] of every data rank, in their order: all[rt_data_ranks * bytes].
RtStatus rt_gather(RtRanks *r, const void *own, int64_t bytes, void *all, RtError *e);
// own[bytes] of every rank of a group, in their order, on the group's rank `root`: all[group size * bytes]; NULL elsewhere.
RtStatus rt_gather_at(RtRanks *r, RtGroup g, int root, void *own, int64_t bytes, void *all, RtError *e);
// Anything from rank to rank of a group: RT_COMM_MOVE.
RtStatus rt_move(RtRanks *r, RtGroup g, const RtCommPart *send, int n_send, const RtCommPart *recv, int n_recv, RtError *e);
// A tensor in parts, put together on the rank of those that hold them whose part is `root`.  parts: rt_tensor_parts of it,
// or 1: of axis 0 only what this rank holds.  whole: room for it; only looked at there.
RtStatus rt_gather_tensor(const RtPlanInstance *p, const RtTensor *t, int parts, RtPartAt root, void *whole, RtError *e);
// data[bytes] becomes what it is on the first rank.
RtStatus rt_from_first(RtRanks *r, void *data, int64_t bytes, RtError *e);
// *x becomes its sum over data ranks.
RtStatus rt_sum(RtRanks *r, int64_t *x, RtError *e);
// x[n] become their sums over a group.
RtStatus rt_sum_over(RtRanks *r, RtGroup g, int64_t *x, int64_t n, RtError *e);
// flag[n], each 0 or 1, become 1 where any rank has 1.  RT_COMM where ranks have run different exchanges before.
RtStatus rt_any(RtRanks *r, int32_t *flag, int n, RtError *e);
// The texts of all ranks, one after the other, each with its zero; NULL counts as "".  The caller frees it.
RtStatus rt_gather_texts(RtRanks *r, const char *own, char **all, RtError *e);

// The first rank whose status isn't RT_OK; the number of ranks: there is none.
RtStatus rt_first_failed(RtRanks *r, RtStatus own, int *first, RtError *e);
// RT_OK if all ranks say so; otherwise every rank gets what the first of the others has to say, with its number unless
// all have failed alike.
RtStatus rt_agree(RtRanks *r, RtStatus own, RtError *e);
// The run is over: whoever waits for this rank gets e, with the rank's number in front.  Nothing happens if all ranks
// agreed on e.
void     rt_give_up(RtRanks *r, RtError *e);

#endif
