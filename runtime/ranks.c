// Exchanges of a plan, as collectives of the communicator.
//
//     at home, rank j          rows by (expert, own leaves):     | e0       | e1       | e2       | e3       |
//                                                                  to rank 0, its e0 e1   to rank 1, its e2 e3
//     at the experts, rank 1   rows by (expert, all leaves):     | e2: from 0, from 1 ..  | e3: from 0, from 1 .. |
//
// So what a rank sends another is contiguous, what it receives from it one piece per expert, and both lie where they are
// computed: nothing is packed.
#include "runtime/ranks.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/inputs.h"

// Bytes of work space: what is added or gathered, and the communicator's scratch behind it.
static size_t up(size_t n) { return (n + 63) & ~(size_t)63; }

static bool is_exact(const RtExchange *x) { return x->dtype == I32 || x->dtype == I64; }

static size_t work_bytes(const RtExchange *x, RtMesh mesh) {
    int m = rt_group_size(mesh, (RtGroup)x->group);
    size_t elements = (size_t)x->elements, bytes = elements * (size_t)dtype_bytes((DType)x->dtype);
    switch (x->kind) {
    case RT_TREE_ALL_REDUCE:
        return (size_t)rt_comm_scratch_bytes(is_exact(x) ? RT_COMM_EXACT : RT_COMM_TREE_REDUCE, (DType)x->dtype, x->elements, m);
    case RT_TREE_REDUCE_SCATTER:
        return up(bytes) + (size_t)rt_comm_scratch_bytes(RT_COMM_TREE_SCATTER, (DType)x->dtype, x->elements, m);
    case RT_EXCHANGE_OFFSETS: return (size_t)m * (size_t)x->experts * (size_t)x->leaves * sizeof(int32_t);
    default: return 0;
    }
}

static RtStatus open_groups(RtRanks *r, RtError *e) {
    int *members = malloc(sizeof *members * (size_t)r->n);
    RtStatus s = members ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", r->n);
    for (int g = 0; g < RT_GROUPS && s == RT_OK; g++) {
        int m = rt_group_size(r->mesh, (RtGroup)g);
        r->group[g] = -1;
        if (m == 1) continue;
        for (int i = 0; i < m; i++) members[i] = rt_group_member(r->mesh, (RtGroup)g, r->rank, i);
        s = rt_comm_group(r->comm, members, m, &r->group[g], e);
    }
    free(members);
    return s;
}

static RtStatus open_buffers(RtRanks *r, const RtPlanInstance *p, RtError *e) {
    const RtKernel *kernel = RT_TABLE(p->plan, RtKernel, kernels);
    size_t experts = 0;
    for (uint32_t i = 0; i < p->plan->kernels.n; i++) {
        if (strcmp(RT_TEXT(p->plan, kernel[i].symbol), EXCHANGE_SYMBOL) != 0) continue;
        const RtExchange *x = p->kernel_data[i];
        size_t bytes = work_bytes(x, r->mesh);
        if (bytes > r->work_bytes) r->work_bytes = bytes;
        if ((size_t)x->experts > experts) experts = (size_t)x->experts;
    }
    r->work = aligned_alloc(64, up(r->work_bytes + 1));
    r->send = calloc(experts + 1, sizeof *r->send);
    r->recv = calloc(experts + 1, sizeof *r->recv);
    r->cut = calloc((size_t)r->n + 1, sizeof *r->cut);
    if (r->work && r->send && r->recv && r->cut) return RT_OK;
    return rt_fail(e, RT_NO_MEMORY, "no memory for exchanges of %zu bytes", r->work_bytes);
}

RtStatus rt_ranks_open(RtPlanInstance *p, RtComm *comm, RtRanks **out, RtError *e) {
    int n = rt_comm_ranks(comm);
    *out = NULL;
    if (rt_mesh_ranks(p->plan->mesh) != n)
        return rt_fail(e, RT_BAD_SETTING, "the plan is for %d ranks, but there are %d", rt_mesh_ranks(p->plan->mesh), n);
    RtRanks *r = calloc(1, sizeof *r);
    if (!r) return rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", n);
    *r = (RtRanks){.comm = comm, .plan = p->plan, .rank = rt_comm_rank(comm), .n = n, .mesh = p->plan->mesh};
    RtStatus s = open_groups(r, e);
    if (s == RT_OK) s = open_buffers(r, p, e);
    if (s != RT_OK) {
        rt_ranks_close(r);
        return s;
    }
    p->ranks = r;
    rt_set_input(p, "data_rank", rt_group_rank(r->mesh, RT_GROUP_DATA, r->rank));
    *out = r;
    return RT_OK;
}

void rt_ranks_close(RtRanks *r) {
    if (!r) return;
    free(r->work);
    free(r->send);
    free(r->recv);
    free(r->cut);
    free(r);
}

// ---- what a step does --------------------------------------------------------------------------------------------

typedef struct {
    RtRanks *r;
    const RtExchange *x;
    int m, i;                  // ranks of the group; this one
} Job;

static RtCommOp op_of(const Job *j, RtCommKind kind) {
    return (RtCommOp){.kind = kind,
                      .group = j->r->group[j->x->group],
                      .tag = {.node = j->x->sequence, .where = RT_TEXT(j->r->plan, j->x->where)},
                      .dtype = (DType)j->x->dtype,
                      .n = j->x->elements};
}

static void run(const Job *j, const RtCommOp *op) {
    RtRanks *r = j->r;
    r->status = rt_comm_run(r->comm, op, &r->error);
}

static size_t bytes_of(const Job *j) { return (size_t)j->x->elements * (size_t)dtype_bytes((DType)j->x->dtype); }

static void all_reduce(const Job *j, const void *x, void *y) {
    if (x != y) memcpy(y, x, bytes_of(j));
    RtCommOp op = op_of(j, is_exact(j->x) ? RT_COMM_EXACT : RT_COMM_TREE_REDUCE);
    op.buf = y;
    op.scratch = j->r->work;
    run(j, &op);
}

// Pieces of a reduction end where its halvings lead: a part of axis 0 is put where its rank will find it.
static void reduce_scatter(const Job *j, const unsigned char *x, void *y) {
    size_t part = bytes_of(j) / (size_t)j->m;
    unsigned char *buf = j->r->work;
    for (int k = 0; k < j->m; k++) memcpy(buf + (size_t)rt_comm_piece(k, j->m) * part, x + (size_t)k * part, part);
    for (int k = 0; k <= j->m; k++) j->r->cut[k] = j->x->elements / j->m * k;
    RtCommOp op = op_of(j, RT_COMM_TREE_SCATTER);
    op.buf = buf;
    op.scratch = buf + up(bytes_of(j));
    op.cut = j->r->cut;
    run(j, &op);
    memcpy(y, buf + (size_t)rt_comm_piece(j->i, j->m) * part, part);
}

static void all_gather(const Job *j, const void *x, unsigned char *y) {
    memcpy(y + (size_t)j->i * bytes_of(j), x, bytes_of(j));
    for (int k = 0; k <= j->m; k++) j->r->cut[k] = j->x->elements * k;
    RtCommOp op = op_of(j, RT_COMM_GATHER);
    op.n = j->x->elements * j->m;
    op.buf = y;
    op.cut = j->r->cut;
    run(j, &op);
}

static void exchange_offsets(const Job *j, const int32_t *home, int32_t *far) {
    int experts = j->x->experts, leaves = j->x->leaves, mine = experts / j->m;
    int32_t *counts = (int32_t *)(void *)j->r->work;         // [ranks, experts, leaves]
    int64_t n = (int64_t)experts * leaves;
    for (int64_t k = 0; k < n; k++) counts[j->i * n + k] = home[k + 1] - home[k];
    RtCommOp op = op_of(j, RT_COMM_COUNTS);
    op.n = n;
    op.buf = counts;
    run(j, &op);
    int32_t at = 0, *to = far;
    for (int e = j->i * mine; e < (j->i + 1) * mine; e++)
        for (int k = 0; k < j->m; k++)
            for (int l = 0; l < leaves; l++) {
                *to++ = at;
                at += counts[k * n + (int64_t)e * leaves + l];
            }
    *to = at;
}

static void exchange_rows(const Job *j, unsigned char *x, const int32_t *home, const int32_t *far, unsigned char *y, bool back) {
    int leaves = j->x->leaves, mine = j->x->experts / j->m, n = 0;
    int64_t row = (int64_t)bytes_of(j);
    RtCommPart *near_part = back ? j->r->recv : j->r->send, *far_part = back ? j->r->send : j->r->recv;
    unsigned char *near_rows = back ? y : x, *far_rows = back ? x : y;
    for (int k = 0; k < j->m; k++)
        for (int e = 0; e < mine; e++, n++) {
            const int32_t *h = home + (int64_t)(k * mine + e) * leaves, *f = far + (int64_t)(e * j->m + k) * leaves;
            near_part[n] = (RtCommPart){near_rows + h[0] * row, (h[leaves] - h[0]) * row, k};
            far_part[n] = (RtCommPart){far_rows + f[0] * row, (f[leaves] - f[0]) * row, k};
        }
    RtCommOp op = op_of(j, back ? RT_COMM_BACK : RT_COMM_ROWS);
    op.n = 0;
    op.send = j->r->send;
    op.recv = j->r->recv;
    op.n_send = op.n_recv = n;
    run(j, &op);
}

void moec_exchange(const RtCall *c) {
    const RtExchange *x = c->data;
    Job j = {.r = c->ranks, .x = x};
    if (!j.r || j.r->status != RT_OK) return;
    j.m = rt_group_size(j.r->mesh, (RtGroup)x->group);
    j.i = rt_group_rank(j.r->mesh, (RtGroup)x->group, j.r->rank);
    void *const *arg = c->arg;
    switch ((RtExchangeKind)x->kind) {
    case RT_TREE_ALL_REDUCE: all_reduce(&j, arg[0], arg[1]); break;
    case RT_TREE_REDUCE_SCATTER: reduce_scatter(&j, arg[0], arg[1]); break;
    case RT_ALL_GATHER: all_gather(&j, arg[0], arg[1]); break;
    case RT_SHARD: memcpy(arg[1], (unsigned char *)arg[0] + bytes_of(&j) / (size_t)j.m * (size_t)j.i, bytes_of(&j) / (size_t)j.m); break;
    case RT_EXCHANGE_OFFSETS: exchange_offsets(&j, arg[0], arg[1]); break;
    case RT_EXCHANGE_ROWS: exchange_rows(&j, arg[0], arg[1], arg[2], arg[3], false); break;
    case RT_RETURN_ROWS: exchange_rows(&j, arg[0], arg[1], arg[2], arg[3], true); break;
    }
}
