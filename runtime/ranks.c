// Exchanges of a plan, as collectives of the communicator.
//
//     at home, rank j          rows by (expert, own leaves):     | e0       | e1       | e2       | e3       |
//                                                                  to rank 0, its e0 e1   to rank 1, its e2 e3
//     at the experts, rank 1   rows by (slot, all leaves):       | e2: from 0, from 1 ..  | e3: from 0, from 1 .. |
//
// What goes to a rank, and what comes from one, is a piece for each of the slots there (slots.h), and lies where it is
// computed: nothing is packed.
#include "runtime/ranks.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/comm_rounds.h"
#include "runtime/few_rows.h"
#include "runtime/inputs.h"
#include "runtime/node_rows.h"
#include "runtime/trace.h"

// Bytes of work space: what is added or gathered, and the communicator's scratch behind it.
static size_t up(size_t n) { return (n + 63) & ~(size_t)63; }

static bool is_exact(const RtExchange *x) { return x->dtype == I32 || x->dtype == I64; }

enum { MOVED_BYTES = 64 << 10 };           // at once, where parts are put in order in their own memory

static size_t work_bytes(const RtPlan *plan, const RtExchange *x) {
    int m = rt_group_size(plan->mesh, (RtGroup)x->group);
    int64_t elements = x->elements * (x->sym >= 0 ? RT_TABLE(plan, RtSym, syms)[x->sym].bound : 1);
    size_t bytes = (size_t)elements * (size_t)dtype_bytes((DType)x->dtype);
    switch (x->kind) {
    case RT_TREE_ALL_REDUCE:
        return (size_t)rt_comm_scratch_bytes(is_exact(x) ? RT_COMM_EXACT : RT_COMM_TREE_REDUCE, (DType)x->dtype, elements, m);
    case RT_TREE_REDUCE_SCATTER:
        return MOVED_BYTES + (size_t)rt_comm_scratch_bytes(RT_COMM_TREE_SCATTER, (DType)x->dtype, elements, m);
    case RT_ALL_GATHER: return x->table ? (size_t)m * bytes : x->run ? MOVED_BYTES : 0;
    case RT_SUM_REPLICAS: return MOST_REPLICAS * bytes;
    case RT_EXCHANGE_OFFSETS: return x->per_node ? 0 : (size_t)m * (size_t)x->experts * (size_t)x->leaves * sizeof(int32_t);
    case RT_JOIN_OFFSETS: return (size_t)m * (size_t)x->experts * (size_t)x->leaves * sizeof(int32_t);
    case RT_SUM_ROWS: return (size_t)m * (size_t)x->rows * (size_t)x->elements * (size_t)dtype_bytes((DType)x->dtype);
    case RT_EXCHANGE_ROWS: case RT_RETURN_ROWS: case RT_EXCHANGE_COUNTS: return x->per_node ? rt_node_work_bytes(x, m) : 0;
    default: return 0;
    }
}

static bool uses_box(const RtExchange *x) { return x->per_node && (x->kind == RT_EXCHANGE_ROWS || x->kind == RT_RETURN_ROWS); }

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

// What an exchange borrows while it is under way.
typedef struct RtSlot {
    RtCommOp op;
    int      ticket;
    RtCommPart *send, *recv;   // [slots], by nodes [slots + ranks + 2]
    int64_t *cut;              // [ranks + 1]
    unsigned char *work;       // what it adds, gathers or counts
    size_t   work_bytes, slots;
    void    *part, *from;      // the result of a reduce_scatter, or of gathered experts, and where in work it will be
    size_t   part_bytes;       // of one expert
    int      summands;         // sum_rows: so many, one after the other in work
    unsigned char *joined;     // all_gather along an inner axis: the result, where runs of each rank have to take turns
    int64_t  begin_ns, exposed_ns;
    bool     taken;            // while slots are dealt
    RtNodeRows rows;           // of an exchange by nodes
    RtFewRows few;             // of few rows
    bool     is_few;           // the exchange under way is of few
    unsigned char **box;       // [per_node]
    size_t   box_bytes, box_at;      // of one of the two that take turns, and where they are in what a node shares
    int      turn, per_node;
} RtSlot;

const RtExchange *rt_exchange_of(const RtPlan *plan, uint32_t step) {
    const RtKernel *k = RT_TABLE(plan, RtKernel, kernels) + RT_TABLE(plan, RtStep, steps)[step].kernel;
    return strcmp(RT_TEXT(plan, k->symbol), EXCHANGE_SYMBOL) ? NULL : (const RtExchange *)((const char *)plan + k->data.offset);
}

typedef struct RtDealt {
    int slot, step;            // step: of the plan, where it starts
} RtDealt;

// Exchanges that are never under way at once share a slot.  slot, dealt: [steps + 1], zeroed.  Returns how many slots.
static int deal_slots(const RtPlan *plan, RtSlot *slot, RtDealt *dealt) {
    int n_slots = 0;
    size_t few_bytes = 2 * rt_few_message_bytes(plan);
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        if (!x) continue;
        if (x->kind == RT_CHUNK_OFFSETS || (x->kind == RT_WAIT && x->chunk + 1 < x->chunks)) continue;
        if (x->kind == RT_WAIT) {
            slot[dealt[x->sequence].slot].taken = false;
            continue;
        }
        int k = 0;
        while (slot[k].taken) k++;
        RtSlot *s = &slot[k];
        size_t bytes = work_bytes(plan, x);
        dealt[x->sequence] = (RtDealt){k, (int)i};
        s->taken = x->pending;
        if (x->kind == RT_EXCHANGE_ROWS || x->kind == RT_RETURN_ROWS) bytes += few_bytes * (size_t)rt_group_size(plan->mesh, (RtGroup)x->group);
        if (bytes > s->work_bytes) s->work_bytes = bytes;
        if ((size_t)x->slots > s->slots) s->slots = (size_t)x->slots;
        if (x->per_node > s->per_node) s->per_node = x->per_node;
        size_t box = uses_box(x) ? rt_node_box_bytes(x, rt_group_size(plan->mesh, (RtGroup)x->group)) : 0;
        if (box > s->box_bytes) s->box_bytes = box;
        if (k >= n_slots) n_slots = k + 1;
    }
    return n_slots;
}

static size_t work_room(const RtSlot *s) { return up(s->work_bytes + 1); }
static size_t parts_room(const RtPlan *plan, const RtSlot *s) {
    return (s->slots + 1 + (s->per_node ? (size_t)rt_mesh_ranks(plan->mesh) + 1 : 0)) * sizeof *s->send;
}
static size_t boxes_room(const RtSlot *s) { return (size_t)s->per_node * sizeof *s->box; }

// What ranks of a node share: where each slot's part begins, and of how many bytes all are.  While one exchange is under way,
// ranks that are behind may still read what the last in the same slot left; when it has ended here, all are through with that:
// so two boxes take turns.
static size_t place_boxes(RtSlot *slot, int n_slots) {
    size_t at = 0;
    for (int i = 0; i < n_slots; i++) {
        slot[i].box_at = at;
        at += 2 * up(slot[i].box_bytes);
    }
    return at;
}
static size_t cut_room(const RtPlan *plan) { return ((size_t)rt_mesh_ranks(plan->mesh) + 1) * sizeof(int64_t); }
static size_t dealt_room(const RtPlan *plan) { return ((size_t)plan->steps.n + 1) * (sizeof(RtSlot) + sizeof(RtDealt)); }

int64_t rt_ranks_bytes(const RtPlan *plan) {
    RtSlot *slot = calloc((size_t)plan->steps.n + 1, sizeof *slot);
    RtDealt *dealt = calloc((size_t)plan->steps.n + 1, sizeof *dealt);
    int n = rt_mesh_ranks(plan->mesh), groups = 1, members = n;
    size_t bytes = sizeof(RtRanks) + dealt_room(plan) + (size_t)rt_slots_bytes(plan);
    int n_slots = slot && dealt ? deal_slots(plan, slot, dealt) : 0;
    for (int i = 0; i < n_slots; i++) bytes += work_room(&slot[i]) + 2 * parts_room(plan, &slot[i]) + cut_room(plan) + boxes_room(&slot[i]);
    bytes += place_boxes(slot, n_slots);
    for (int g = 0; g < RT_GROUPS; g++) {
        int m = rt_group_size(plan->mesh, (RtGroup)g);
        groups += m > 1;
        members += m > 1 ? m : 0;
    }
    free(slot);
    free(dealt);
    return (int64_t)bytes + rt_comm_bytes(n, groups, members);
}

// The plan says which ranks share memory; do they?
static RtStatus check_nodes(const RtRanks *r, const RtExchange *x, RtError *e) {
    int m = rt_group_size(r->mesh, (RtGroup)x->group);
    int here = rt_comm_node(r->comm, r->rank), i = rt_group_rank(r->mesh, (RtGroup)x->group, r->rank);
    for (int k = 0; k < m; k++) {
        int other = rt_group_member(r->mesh, (RtGroup)x->group, r->rank, k);
        if ((rt_comm_node(r->comm, other) == here) != (k / x->per_node == i / x->per_node))
            return rt_fail(e, RT_BAD_SETTING, "the plan is for nodes of %d ranks that share experts, which rank %d and %d don't fit", x->per_node,
                           r->rank, other);
    }
    return RT_OK;
}

static RtStatus share_boxes(RtRanks *r, size_t bytes, RtError *e) {
    r->shared = calloc((size_t)r->n, sizeof *r->shared);
    if (!r->shared) return rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", r->n);
    for (uint32_t i = 0; i < r->plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(r->plan, i);
        if (x && x->per_node) RT_TRY(check_nodes(r, x, e));
    }
    if (rt_comm_shared(r->comm, bytes, false, r->shared, e) == RT_OK) return RT_OK;
    return rt_fail(e, e->code, "%.1f MB that ranks of a node share for rows of experts (parallel.a2a=flat needs none): %s", (double)bytes / 1e6,
                   e->text);
}

static RtStatus open_buffers(RtRanks *r, RtPlanInstance *p, RtError *e) {
    r->slot = calloc((size_t)p->plan->steps.n + 1, sizeof *r->slot);
    r->dealt = calloc((size_t)p->plan->steps.n + 1, sizeof *r->dealt);
    if (!r->slot || !r->dealt) return rt_fail(e, RT_NO_MEMORY, "no memory for exchanges");
    r->n_slots = deal_slots(p->plan, r->slot, r->dealt);
    r->few_tokens = rt_few_tokens(p->plan);
    r->few_message_bytes = rt_few_message_bytes(p->plan);
    size_t taken = sizeof *r + dealt_room(p->plan) + (size_t)rt_slots_bytes(p->plan);
    for (int i = 0; i < r->n_slots; i++) {
        RtSlot *s = &r->slot[i];
        s->work = aligned_alloc(64, work_room(s));
        s->send = calloc(1, parts_room(p->plan, s));
        s->recv = calloc(1, parts_room(p->plan, s));
        s->cut = calloc(1, cut_room(p->plan));
        s->box = calloc(1, boxes_room(s) + 1);
        if (!s->work || !s->send || !s->recv || !s->cut || !s->box)
            return rt_fail(e, RT_NO_MEMORY, "no memory for exchanges of %zu bytes", s->work_bytes);
        taken += work_room(s) + 2 * parts_room(p->plan, s) + cut_room(p->plan) + boxes_room(s);
    }
    size_t shared = place_boxes(r->slot, r->n_slots);
    if (shared) RT_TRY(share_boxes(r, shared, e));
    taken += shared;
    p->allocated += (int64_t)taken + rt_comm_allocated(r->comm);
    return RT_OK;
}

RtStatus rt_ranks_open(RtPlanInstance *p, RtComm *comm, RtRanks **out, RtError *e) {
    int n = rt_comm_ranks(comm);
    *out = NULL;
    if (rt_mesh_ranks(p->plan->mesh) != n)
        return rt_fail(e, RT_BAD_SETTING, "the plan is for %d ranks, but there are %d", rt_mesh_ranks(p->plan->mesh), n);
    RtRanks *r = calloc(1, sizeof *r);
    if (!r) return rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", n);
    *r = (RtRanks){.comm = comm, .plan = p->plan, .rank = rt_comm_rank(comm), .n = n, .mesh = p->plan->mesh, .plan_run = p};
    RtStatus s = rt_slots_open(p->plan, &r->table, e);
    if (s == RT_OK) s = open_groups(r, e);
    if (s == RT_OK) s = open_buffers(r, p, e);
    if (s != RT_OK) {
        rt_ranks_close(r);
        return s;
    }
    p->ranks = r;
    rt_set_input(p, "data_rank", rt_group_rank(r->mesh, RT_GROUP_DATA, r->rank));
    rt_set_input(p, "tp_rank", rt_group_rank(r->mesh, RT_GROUP_TP, r->rank));
    *out = r;
    return RT_OK;
}

void rt_ranks_close(RtRanks *r) {
    if (!r) return;
    for (int i = 0; i < r->n_slots; i++) {
        free(r->slot[i].work);
        free(r->slot[i].send);
        free(r->slot[i].recv);
        free(r->slot[i].cut);
        free(r->slot[i].box);
    }
    free(r->shared);
    free(r->slot);
    free(r->dealt);
    rt_slots_close(r->table, r->plan);
    free(r);
}

// ---- what a step does --------------------------------------------------------------------------------------------

typedef struct {
    RtRanks *r;
    const RtExchange *x;
    RtSlot *s;
    const RtSlots *t;          // which experts are where; NULL: it is not about experts
    int m, i;                  // ranks of the group; this one
} Job;

static RtCommKind kind_of(const RtExchange *x) {
    switch ((RtExchangeKind)x->kind) {
    case RT_TREE_ALL_REDUCE: return is_exact(x) ? RT_COMM_EXACT : RT_COMM_TREE_REDUCE;
    case RT_TREE_REDUCE_SCATTER: return RT_COMM_TREE_SCATTER;
    case RT_ALL_GATHER: return RT_COMM_GATHER;
    case RT_EXCHANGE_OFFSETS: return x->per_node ? RT_COMM_KINDS : RT_COMM_COUNTS;
    case RT_EXCHANGE_COUNTS: case RT_JOIN_OFFSETS: return RT_COMM_COUNTS;
    case RT_EXCHANGE_ROWS: case RT_JOIN_ROWS: return RT_COMM_ROWS;
    case RT_RETURN_ROWS: case RT_SUM_ROWS: return RT_COMM_BACK;
    case RT_SUM_REPLICAS: return RT_COMM_MOVE;
    case RT_SHARD: case RT_WAIT: case RT_CHUNK_OFFSETS: case RT_OWN_ROWS: break;
    }
    return RT_COMM_KINDS;
}

static size_t bytes_of(const RtExchange *x) { return (size_t)x->elements * (size_t)dtype_bytes((DType)x->dtype); }

// By way of integers: the planner has sizes, no rows.
static void *address(unsigned char *base, int64_t bytes) { return (void *)((uintptr_t)base + (uintptr_t)bytes); }

// What a rank has at home for others' experts, and has of others for its own.
static void size_rows(const RtExchange *x, int m, const RtRowsAt *at, RtCommPart *send, RtCommPart *recv, RtCommOp *op) {
    bool back = x->kind == RT_RETURN_ROWS;
    int leaves = x->leaves, mine = x->slots / m, n = 0;
    int first = rt_chunk_begin(mine, x->chunk, x->chunks), end = x->chunks > 1 ? rt_chunk_begin(mine, x->chunk + 1, x->chunks) : mine;
    int64_t row = (int64_t)bytes_of(x);
    RtCommPart *near_part = back ? recv : send, *far_part = back ? send : recv;
    for (int k = 0; k < m; k++)
        for (int s = first; s < end; s++, n++) {
            int slot = k * mine + s, expert = at->table ? at->table->expert[slot] : slot;
            bool serves = !at->table || rt_slot_serves(at->table, slot, at->rank);
            const int32_t *h = at->home + (int64_t)expert * leaves, *f = at->far + (int64_t)(s * m + k) * leaves;
            near_part[n] = (RtCommPart){address(at->home_rows, h[0] * row), serves ? (h[leaves] - h[0]) * row : 0, k};
            far_part[n] = (RtCommPart){address(at->far_rows, f[0] * row), (f[leaves] - f[0]) * row, k};
        }
    op->send = send;
    op->recv = recv;
    op->n_send = op->n_recv = n;
}

// Of each expert, own rows to all and those of all here; or summands of all to who they are of, of one's own by rank.
static void size_joined(const RtExchange *x, int m, const RtRowsAt *at, RtCommPart *send, RtCommPart *recv, RtCommOp *op) {
    bool sums = x->kind == RT_SUM_ROWS;
    int leaves = x->leaves, n = 0;
    int64_t row = (int64_t)bytes_of(x), all = at->home[(int64_t)x->experts * leaves] * row;
    RtCommPart *own = sums ? recv : send, *others = sums ? send : recv;
    for (int k = 0; k < m; k++)
        for (int e = 0; e < x->experts; e++, n++) {
            const int32_t *h = at->home + (int64_t)e * leaves, *f = at->far + (int64_t)(e * m + k) * leaves;
            own[n] = (RtCommPart){address(at->home_rows, h[0] * row + (sums ? k * all : 0)), (h[leaves] - h[0]) * row, k};
            others[n] = (RtCommPart){address(at->far_rows, f[0] * row), (f[leaves] - f[0]) * row, k};
        }
    op->send = send;
    op->recv = recv;
    op->n_send = op->n_recv = n;
}

// Each replica's sum to the others: home_rows are the sums of this rank's slots; far_rows have room for MOST_REPLICAS of each.
static void size_replicas(const RtExchange *x, int m, const RtRowsAt *at, RtCommPart *send, RtCommPart *recv, RtCommOp *op) {
    const RtSlots *t = at->table;
    int mine = x->slots / m, first = at->rank * mine, n = 0;
    int64_t one = (int64_t)bytes_of(x) / mine;
    for (int a = first; t && a < first + mine; a++)
        for (int b = 0; b < x->slots; b++) n += a != b && t->expert[a] == t->expert[b];
    *op = (RtCommOp){.kind = RT_COMM_MOVE, .dtype = U8, .send = send, .recv = recv, .n_send = n, .n_recv = n};
    n = 0;
    for (int b = 0; t && b < x->slots; b++)                // by peers
        for (int a = first; a < first + mine; a++)
            if (a != b && t->expert[a] == t->expert[b])
                recv[n++] = (RtCommPart){address(at->far_rows, ((a - first) * MOST_REPLICAS + t->turn[b]) * one), one, b / mine};
    n = 0;
    for (int k = 0; t && k < m; k++)
        for (int a = first; a < first + mine; a++)
            for (int b = k * mine; b < (k + 1) * mine; b++)
                if (a != b && t->expert[a] == t->expert[b])
                    send[n++] = (RtCommPart){address(at->home_rows, (a - first) * one), one, k};
}

bool rt_exchange_op(const RtExchange *x, int m, const RtRowsAt *at, RtExchangeRoom room, RtCommOp *op) {
    *op = (RtCommOp){.kind = kind_of(x), .dtype = (DType)x->dtype, .n = x->elements};
    switch (op->kind) {
    case RT_COMM_TREE_SCATTER:
        for (int k = 0; k <= m; k++) room.cut[k] = x->elements / m * k;
        op->cut = room.cut;
        return true;
    case RT_COMM_GATHER:
        for (int k = 0; k <= m; k++) room.cut[k] = x->elements * k;
        op->n *= m;
        op->cut = room.cut;
        return true;
    case RT_COMM_COUNTS:
        op->n = x->per_node ? rt_node_count_elements(x, m) : (int64_t)x->experts * x->leaves;
        op->per_node = x->per_node;
        return true;
    case RT_COMM_MOVE:
        size_replicas(x, m, at, room.send, room.recv, op);
        return true;
    case RT_COMM_ROWS: case RT_COMM_BACK:
        op->n = 0;
        (x->kind == RT_JOIN_ROWS || x->kind == RT_SUM_ROWS ? size_joined : size_rows)(x, m, at, room.send, room.recv, op);
        return true;
    default: return op->kind != RT_COMM_KINDS;
    }
}

static void prepare(const Job *j, const RtRowsAt *at) {
    RtSlot *s = j->s;
    rt_exchange_op(j->x, j->m, at, (RtExchangeRoom){s->send, s->recv, s->cut}, &s->op);
    s->op.group = j->r->group[j->x->group];
    s->op.tag = (RtCommTag){.node = j->x->sequence, .where = RT_TEXT(j->r->plan, j->x->where)};
    s->op.scratch = s->work;
    s->op.own_later = j->x->own > 0;
}

// The same by nodes.
static void prepare_nodes(const Job *j, const RtNodeRows *rows) {
    RtSlot *s = j->s;
    s->rows = *rows;
    s->op = (RtCommOp){.kind = kind_of(j->x), .dtype = (DType)j->x->dtype, .group = j->r->group[j->x->group],
                       .tag = {.node = j->x->sequence, .where = RT_TEXT(j->r->plan, j->x->where)}};
    for (int g = 0; g < j->x->per_node; g++) {
        int k = j->i / j->x->per_node * j->x->per_node + g, rank = rt_group_member(j->r->mesh, (RtGroup)j->x->group, j->r->rank, k);
        s->box[g] = (unsigned char *)j->r->shared[rank] + s->box_at + (size_t)s->turn * up(s->box_bytes);
    }
    s->turn = !s->turn;
    s->rows.box = s->box;
    s->op.own_later = j->x->own > 0;
    rt_node_op(&s->rows, s->send, s->recv, &s->op);
    rt_node_begin(&s->rows);
}

static bool moves_rows(const RtCommOp *op) { return op->kind == RT_COMM_ROWS || op->kind == RT_COMM_BACK || op->kind == RT_COMM_FEW; }

static int64_t bytes_sent(const Job *j) {
    RtTraffic *sent = calloc((size_t)j->m * 2, sizeof *sent);
    int64_t bytes = 0;
    if (!sent) return 0;
    rt_comm_traffic(&j->s->op, j->i, j->m, sent, sent + j->m);
    for (int k = 0; k < j->m; k++) bytes += sent[k].bytes;
    free(sent);
    return bytes;
}

static void note_flight(const Job *j) {
    RtRanks *r = j->r;
    int64_t end_ns = rt_comm_moved_ns(r->comm, j->s->ticket);
    if (moves_rows(&j->s->op)) {
        r->rows.under_way_ns += end_ns - j->s->begin_ns;
        r->rows.exposed_ns += j->s->exposed_ns;
    }
    if (!r->plan_run->trace) return;
    rt_trace_flight(r->plan_run->trace, (RtTraceFlight){.step = r->dealt[j->x->sequence].step, .begin_ns = j->s->begin_ns, .end_ns = end_ns,
                                                        .exposed_ns = j->s->exposed_ns, .bytes = bytes_sent(j)});
}

// The parts of m ranks, cut along an axis: `rows` times a run of each rank in turn, or one part after the other.
typedef struct { int64_t rows; int m; size_t run; bool apart; } Parts;

static Parts parts_of(const Job *j, int64_t part, bool apart) {
    int64_t run = j->x->run ? j->x->run : part;
    return (Parts){part / run, j->m, (size_t)run * (size_t)dtype_bytes((DType)j->x->dtype), apart};
}

// Which run comes to place i.  Where parts are summed, a part stands where the halvings leave it to its rank.
static int64_t comes_from(const Parts *p, int64_t i) {
    return p->apart ? i % p->rows * p->m + rt_comm_piece((int)(i / p->rows), p->m) : i % p->m * p->rows + i / p->m;
}

// In place: along each cycle of the permutation, a piece of the runs at a time.  work: [MOVED_BYTES].
static void reorder(const Parts *p, unsigned char *x, unsigned char *work) {
    int64_t n = p->rows * p->m, k;
    for (int64_t first = 0; first < n; first++) {
        for (k = comes_from(p, first); k > first; k = comes_from(p, k)) {}
        if (k < first || comes_from(p, first) == first) continue;        // another's cycle; its own place
        for (size_t at = 0, bytes; at < p->run; at += bytes) {
            bytes = p->run - at < MOVED_BYTES ? p->run - at : MOVED_BYTES;
            memcpy(work, x + (size_t)first * p->run + at, bytes);
            int64_t to = first;
            for (int64_t from; (from = comes_from(p, to)) != first; to = from)
                memcpy(x + (size_t)to * p->run + at, x + (size_t)from * p->run + at, bytes);
            memcpy(x + (size_t)to * p->run + at, work, bytes);
        }
    }
}

static void add_to(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

// The tree over the replicas of each slot's expert, one's own sum among the others'.
static void add_replicas(const Job *j) {
    int mine = j->t->slots / j->m;
    int64_t n = j->x->elements / mine;
    float *y = j->s->part, *x = j->s->from, *others = (float *)(void *)j->s->work;
    for (int s = 0; s < mine; s++, x += n, y += n, others += MOST_REPLICAS * n) {
        int slot = j->i * mine + s, count = j->t->count[j->t->expert[slot]];
        if (count == 1) {
            memcpy(y, x, (size_t)n * sizeof *y);
            continue;
        }
        memcpy(others + j->t->turn[slot] * n, x, (size_t)n * sizeof *x);
        for (int d = 1; d < count; d *= 2)
            for (int k = 0; k + d < count; k += 2 * d) add_to(others + k * n, others + (k + d) * n, n);
        memcpy(y, others, (size_t)n * sizeof *y);
    }
}

// The tree over ranks of what they sent, one after the other in work.
static void add_summands(const Job *j) {
    RtSlot *s = j->s;
    size_t n = s->part_bytes;
    for (int d = 1; d < s->summands; d *= 2)
        for (int k = 0; k + d < s->summands; k += 2 * d) {
            unsigned char *low = s->work + (size_t)k * n;
            rt_comm_add((DType)j->x->dtype, low, low, low + (size_t)d * n, (int64_t)n);
        }
    memcpy(s->part, s->work, n);
}

// How many rows are at the experts is known now.
static void end_few(const Job *j) {
    RtRanks *r = j->r;
    const RtFewRows *w = &j->s->few;
    rt_few_end(w);
    if (w->x.kind != RT_EXCHANGE_ROWS) return;
    rt_read_sym(r->plan_run, r->few_sym);
}

static void finish(const Job *j) {
    RtRanks *r = j->r;
    int64_t wait_ns = rt_now_ns();
    r->status = rt_comm_done(r->comm, j->s->ticket, &r->error);
    unsigned char *to = j->s->part, *from = j->s->from;
    size_t n = j->s->part_bytes;
    if (r->status == RT_OK && j->s->op.kind == RT_COMM_MOVE) add_replicas(j);
    else if (r->status == RT_OK && j->s->summands) add_summands(j);
    else if (r->status == RT_OK && to && j->t)
        for (int e = 0; e < j->t->experts; e++) memcpy(to + (size_t)e * n, from + (size_t)j->t->slot[e] * n, n);
    else if (r->status == RT_OK && to) memcpy(to, from, n);
    if (r->status == RT_OK && j->s->joined) {
        Parts parts = parts_of(j, j->x->elements, false);
        reorder(&parts, j->s->joined, j->s->work);
    }
    if (r->status == RT_OK && j->x->per_node && moves_rows(&j->s->op)) rt_node_end(&j->s->rows);
    if (r->status == RT_OK && j->s->is_few) end_few(j);
    j->s->is_few = false;
    j->s->part = NULL;
    j->s->summands = 0;
    j->s->joined = NULL;
    j->s->exposed_ns += rt_now_ns() - wait_ns;
    note_flight(j);
}

// The rows of the chunks so far.
static void finish_chunk(const Job *j) {
    RtRanks *r = j->r;
    int64_t wait_ns = rt_now_ns();
    int mine = j->x->slots / j->m;
    r->status = rt_comm_done_parts(r->comm, j->s->ticket, mine, rt_chunk_begin(mine, j->x->chunk + 1, j->x->chunks), &r->error);
    j->s->exposed_ns += rt_now_ns() - wait_ns;
}

static void run_from(const Job *j, int64_t begin_ns) {
    RtRanks *r = j->r;
    j->s->begin_ns = begin_ns;
    r->status = rt_comm_start(r->comm, &j->s->op, &j->s->ticket, &r->error);
    j->s->exposed_ns = rt_now_ns() - j->s->begin_ns;
    if (r->status == RT_OK && !j->x->pending) finish(j);
}

static void run(const Job *j) { run_from(j, rt_now_ns()); }

static void all_reduce(const Job *j, const void *x, void *y) {
    if (x != y) memcpy(y, x, bytes_of(j->x));
    prepare(j, NULL);
    j->s->op.buf = y;
    run(j);
}

// Sums are formed where the summands are, so that no memory is needed for them.
static void reduce_scatter(const Job *j, unsigned char *x, void *y) {
    size_t part = bytes_of(j->x) / (size_t)j->m;
    Parts parts = parts_of(j, j->x->elements / j->m, true);
    reorder(&parts, x, j->s->work);
    prepare(j, NULL);
    j->s->op.buf = x;
    j->s->op.scratch = j->s->work + MOVED_BYTES;
    j->s->part = y;
    j->s->from = x + (size_t)rt_comm_piece(j->i, j->m) * part;
    j->s->part_bytes = part;
    run(j);
}

// Parts of experts are in the order of slots, what they make is in that of experts.
static void all_gather(const Job *j, const void *x, unsigned char *y) {
    if (j->t) {
        j->s->part = y;
        j->s->from = y = j->s->work;
        j->s->part_bytes = bytes_of(j->x) * (size_t)j->m / (size_t)j->t->slots;
    } else if (j->x->run) {
        j->s->joined = y;
    }
    memcpy(y + (size_t)j->i * bytes_of(j->x), x, bytes_of(j->x));
    prepare(j, NULL);
    j->s->op.buf = y;
    run(j);
}

// One line: how many rows each expert gets from here, and by nodes how many different ones each node.
static void record_route(const RtRanks *r, const RtExchange *x, const int32_t *home, const RtNodeRows *by_nodes) {
    flockfile(r->routes);
    fprintf(r->routes, "{\"step\": %lld, \"rank\": %d, \"exchange\": %u, \"rows\": [", (long long)r->step, r->rank, x->sequence);
    for (int e = 0; e < x->experts; e++)
        fprintf(r->routes, e ? ", %d" : "%d", home[(int64_t)(e + 1) * x->leaves] - home[(int64_t)e * x->leaves]);
    for (int n = 0; by_nodes && n < by_nodes->m / x->per_node; n++)
        fprintf(r->routes, "%s%d", n ? ", " : "], \"nodes\": [", rt_node_distinct(by_nodes, by_nodes->i, n));
    fputs("]}\n", r->routes);
    funlockfile(r->routes);
}

static void sum_replicas(const Job *j, unsigned char *x, unsigned char *y) {
    prepare(j, &(RtRowsAt){.home_rows = x, .far_rows = j->s->work, .table = j->t, .rank = j->i});
    j->s->from = x;
    j->s->part = y;
    run(j);
}

static void shard(const Job *j, const unsigned char *x, unsigned char *y) {
    if (!j->t) {
        int parts = j->x->parts ? j->x->parts : j->m;
        size_t part = bytes_of(j->x) / (size_t)parts;
        size_t run = j->x->run ? (size_t)j->x->run * (size_t)dtype_bytes((DType)j->x->dtype) : part;
        x += run * (size_t)(j->i * parts / j->m);
        for (size_t at = 0; at < part; at += run, x += run * (size_t)parts) memcpy(y + at, x, run);
        return;
    }
    int mine = j->t->slots / j->m;
    size_t one = bytes_of(j->x) / (size_t)j->t->experts;
    for (int k = 0; k < mine; k++) memcpy(y + (size_t)k * one, x + (size_t)j->t->expert[j->i * mine + k] * one, one);
}

// Of all ranks, by expert and leaf: gathered now, or (by nodes) before.
typedef struct { const int32_t *at; RtNodeRows by_nodes; int64_t n; } Counts;

static int32_t count_of(const Job *j, const Counts *c, int k, int expert, int leaf) {
    return c->at ? c->at[k * c->n + (int64_t)expert * j->x->leaves + leaf] : rt_node_rows(&c->by_nodes, k, expert, leaf);
}

static void gather_counts(const Job *j, const int32_t *home, Counts *c) {
    int32_t *counts = (int32_t *)(void *)j->s->work;         // [ranks, experts, leaves]
    for (int64_t k = 0; k < c->n; k++) counts[j->i * c->n + k] = home[k + 1] - home[k];
    c->at = counts;
    prepare(j, NULL);
    j->s->op.buf = counts;
    run(j);
}

static void join_offsets(const Job *j, const int32_t *own, int32_t *all) {
    int experts = j->x->experts, leaves = j->x->leaves;
    Counts c = {.n = (int64_t)experts * leaves};
    if (j->r->routes) record_route(j->r, j->x, own, NULL);
    gather_counts(j, own, &c);
    int32_t at = 0, *to = all;
    for (int e = 0; e < experts; e++)
        for (int k = 0; k < j->m; k++)
            for (int l = 0; l < leaves; l++) {
                *to++ = at;
                at += j->r->status == RT_OK ? c.at[k * c.n + (int64_t)e * leaves + l] : 0;
            }
    *to = at;
}

// arg: x, offsets of own rows, of all; y.
static void join_rows(const Job *j, void *const *arg) {
    prepare(j, &(RtRowsAt){.home = arg[1], .far = arg[2], .home_rows = arg[0], .far_rows = arg[3]});
    run(j);
}

static void sum_rows(const Job *j, void *const *arg) {
    const int32_t *own = arg[1];
    prepare(j, &(RtRowsAt){.home = own, .far = arg[2], .home_rows = j->s->work, .far_rows = arg[0]});
    j->s->part = arg[3];
    j->s->part_bytes = (size_t)own[(int64_t)j->x->experts * j->x->leaves] * bytes_of(j->x);
    j->s->summands = j->m;
    run(j);
}

static void own_rows(const Job *j, void *const *arg) {
    const int32_t *own = arg[1], *all = arg[2];
    size_t row = bytes_of(j->x);
    int leaves = j->x->leaves;
    for (int e = 0; e < j->x->experts; e++) {
        const int32_t *h = own + (int64_t)e * leaves, *f = all + (int64_t)(e * j->m + j->i) * leaves;
        unsigned char *to = (unsigned char *)arg[3] + (size_t)h[0] * row, *from = (unsigned char *)arg[0] + (size_t)f[0] * row;
        memcpy(to, from, (size_t)(h[leaves] - h[0]) * row);
    }
}

static RtNodeRows node_rows(const Job *j, const int32_t *home, const int32_t *counts, const int32_t *same) {
    return (RtNodeRows){.x = *j->x, .m = j->m, .i = j->i, .table = j->t, .home = home, .counts = counts, .same = same, .work = j->s->work};
}

static void exchange_counts(const Job *j, const int32_t *home, const int32_t *same, int32_t *counts) {
    RtNodeRows rows = node_rows(j, home, counts, same);
    prepare(j, NULL);
    rt_node_count(&rows, counts + rt_comm_block(&j->s->op, j->m, j->i) * j->s->op.n);
    j->s->op.buf = counts;
    run(j);
}

static void count_busiest(const Job *j, const Counts *c) {
    int mine = j->t->slots / j->m;
    int64_t most = 0;
    for (int r = 0; r < j->m; r++) {
        int64_t rows = 0;
        for (int s = r * mine; s < (r + 1) * mine; s++)
            for (int k = 0; k < j->m; k++)
                for (int l = 0; l < j->x->leaves && rt_slot_serves(j->t, s, k); l++) rows += count_of(j, c, k, j->t->expert[s], l);
        if (rows > most) most = rows;
        j->r->rows.all += rows;
    }
    j->r->rows.most += most;
}

static void exchange_offsets(const Job *j, const int32_t *home, const int32_t *counts, int32_t *far) {
    int experts = j->x->experts, leaves = j->x->leaves, mine = j->t->slots / j->m;
    for (int i = 0; i < experts; i++) j->t->rows[i] += home[(i + 1) * leaves] - home[i * leaves];
    if (j->r->few) {                       // not known before the rows are there
        memset(far, 0, ((size_t)j->t->slots * (size_t)leaves + 1) * sizeof *far);
        j->r->few_sym = RT_TABLE(j->r->plan, RtStep, steps)[j->r->dealt[j->x->sequence].step].defines_sym;
        return;
    }
    Counts c = {.n = (int64_t)experts * leaves};
    if (j->x->per_node) c.by_nodes = node_rows(j, home, counts, NULL);
    else gather_counts(j, home, &c);
    if (j->r->status != RT_OK) {
        memset(far, 0, ((size_t)j->t->slots * (size_t)leaves + 1) * sizeof *far);
        return;
    }
    if (j->r->routes) record_route(j->r, j->x, home, j->x->per_node ? &c.by_nodes : NULL);
    int32_t at = 0, *to = far;
    for (int s = j->i * mine; s < (j->i + 1) * mine; s++)
        for (int k = 0; k < j->m; k++)
            for (int l = 0; l < leaves; l++) {
                *to++ = at;
                at += rt_slot_serves(j->t, s, k) ? count_of(j, &c, k, j->t->expert[s], l) : 0;
            }
    *to = at;
    if (j->r->counts_busiest) count_busiest(j, &c);
}

static void exchange_few(const Job *j, const int32_t *home, int32_t *far, unsigned char *home_rows, unsigned char *far_rows) {
    RtSlot *s = j->s;
    int64_t begin_ns = rt_now_ns();
    s->few = (RtFewRows){.x = *j->x, .m = j->m, .i = j->i, .table = j->t, .home = home, .far = far, .home_rows = home_rows, .far_rows = far_rows,
                         .work = s->work, .message_bytes = j->r->few_message_bytes};
    s->is_few = true;
    s->op = (RtCommOp){.dtype = (DType)j->x->dtype, .group = j->r->group[j->x->group],
                       .tag = {.node = j->x->sequence, .where = RT_TEXT(j->r->plan, j->x->where)}};
    rt_few_op(&s->few, s->send, s->recv, &s->op);
    run_from(j, begin_ns);
}

// arg: x, offsets at home, at the experts; by nodes counts, and where rows may be the same, their numbers; y.
static void exchange_rows(const Job *j, void *const *arg) {
    bool back = j->x->kind == RT_RETURN_ROWS;
    const int32_t *home = arg[1], *far = arg[2];
    int n_in = j->x->per_node ? j->x->tokens ? 5 : 4 : 3;
    unsigned char *x = arg[0], *y = arg[n_in];
    int64_t begin_ns = rt_now_ns();
    if (j->r->few) {
        exchange_few(j, home, arg[2], back ? y : x, back ? x : y);
        return;
    }
    if (j->x->per_node) {
        RtNodeRows rows = node_rows(j, home, arg[3], j->x->tokens ? arg[4] : NULL);
        rows.far = far;
        rows.home_rows = back ? y : x;
        rows.far_rows = back ? x : y;
        prepare_nodes(j, &rows);
    } else {
        prepare(j, &(RtRowsAt){.home = home, .far = far, .home_rows = back ? y : x, .far_rows = back ? x : y,
                               .table = j->t, .rank = j->i});
    }
    run_from(j, begin_ns);
}

static int32_t *put_ranges(int32_t *to, int32_t begin, int32_t end, int32_t second, int32_t second_end) {
    const int32_t n[RT_CHUNK_NUMBERS] = {begin, end, second, second_end};
    memcpy(to, n, sizeof n);
    return to + RT_CHUNK_NUMBERS;
}

// Of a slot's rows those of rank i, or all others', or all, where the chunk has them.
static void chunk_offsets(const RtExchange *x, int m, int i, const int32_t *far, int32_t *to) {
    int mine = x->slots / m, n = x->leaves * m, chunks = x->chunks;
    for (int q = 0; q < chunks + RT_CHUNKS_MORE; q++)
        for (int s = 0; s < mine; s++) {
            const int32_t *f = far + (int64_t)s * n;
            int32_t begin = f[0], end = f[n], own = f[i * x->leaves], own_end = f[(i + 1) * x->leaves];
            bool in_chunk = q < chunks && s >= rt_chunk_begin(mine, q, chunks) && s < rt_chunk_begin(mine, q + 1, chunks);
            bool is_own = x->own && q == chunks + (s < x->own - 1 ? RT_CHUNK_OWN_FIRST : RT_CHUNK_OWN_LAST);
            if (q == chunks + RT_CHUNK_ALL || (in_chunk && !x->own)) to = put_ranges(to, begin, end, end, end);
            else if (in_chunk) to = put_ranges(to, begin, own, own_end, end);
            else to = put_ranges(to, own, is_own ? own_end : own, end, end);
        }
}

// After a failure nothing is exchanged any more; offsets are those of no rows.
void moec_exchange(const RtCall *c) {
    RtRanks *r = c->ranks;
    RtExchange now = *(const RtExchange *)c->data, *x = &now;
    void *const *arg = c->arg;
    if (!r) return;
    if (x->sym >= 0) x->elements *= c->sym[x->sym];
    Job j = {.r = r, .x = x, .s = &r->slot[r->dealt[x->sequence].slot]};
    j.t = x->table ? &r->table[x->table - 1] : NULL;
    j.m = rt_group_size(r->mesh, (RtGroup)x->group);
    j.i = rt_group_rank(r->mesh, (RtGroup)x->group, r->rank);
    if (x->kind == RT_CHUNK_OFFSETS) {
        chunk_offsets(x, j.m, j.i, arg[0], arg[1]);
        return;
    }
    if (r->status != RT_OK) {
        if (x->kind == RT_EXCHANGE_OFFSETS || x->kind == RT_JOIN_OFFSETS)
            memset(arg[x->per_node ? 2 : 1], 0, ((size_t)x->slots * (size_t)x->leaves + 1) * sizeof(int32_t));
        return;
    }
    switch ((RtExchangeKind)x->kind) {
    case RT_TREE_ALL_REDUCE: all_reduce(&j, arg[0], arg[1]); break;
    case RT_TREE_REDUCE_SCATTER: reduce_scatter(&j, arg[0], arg[1]); break;
    case RT_ALL_GATHER: all_gather(&j, arg[0], arg[1]); break;
    case RT_SHARD: shard(&j, arg[0], arg[1]); break;
    case RT_EXCHANGE_COUNTS: exchange_counts(&j, arg[0], x->tokens ? arg[1] : NULL, arg[x->tokens ? 2 : 1]); break;
    case RT_EXCHANGE_OFFSETS: exchange_offsets(&j, arg[0], arg[1], arg[x->per_node ? 2 : 1]); break;
    case RT_EXCHANGE_ROWS: case RT_RETURN_ROWS: exchange_rows(&j, arg); break;
    case RT_JOIN_OFFSETS: join_offsets(&j, arg[0], arg[1]); break;
    case RT_JOIN_ROWS: join_rows(&j, arg); break;
    case RT_SUM_ROWS: sum_rows(&j, arg); break;
    case RT_OWN_ROWS: own_rows(&j, arg); break;
    case RT_SUM_REPLICAS: sum_replicas(&j, arg[0], arg[1]); break;
    case RT_WAIT:
        if (x->chunk + 1 < x->chunks) finish_chunk(&j);
        else finish(&j);
        break;
    case RT_CHUNK_OFFSETS: break;
    }
}
