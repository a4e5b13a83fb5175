// Runs collectives: round after round of messages, on any transport.
//
//   start     checks the op, begins round 0
//   progress  takes what has finished from the transport: adds what is to be added, posts what comes next, begins the
//             next round when nothing of the last is left
//   done      progress until the op is over; meanwhile looks whether the world has changed
#include "runtime/comm.h"

#include <assert.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/comm_priv.h"
#include "runtime/comm_rounds.h"
#include "runtime/monitor.h"
#include "runtime/trace.h"

const char *rt_link_name(RtLink link) { return link == RT_LINK_NODE ? "node" : "net"; }

const char *rt_comm_kind_name(RtCommKind kind) {
    static const char *const name[RT_COMM_KINDS] = {
#define X(kind, text) [RT_COMM_##kind] = text,
        RT_COMM_KINDS_DO(X)
#undef X
    };
    return name[kind];
}

// ---- streams --------------------------------------------------------------------------------------------

static RtLink link_to(const RtComm *c, int rank) {
    return c->ops->node(c->transport, rank) == c->ops->node(c->transport, c->rank) ? RT_LINK_NODE : RT_LINK_NET;
}

static void fail(RtComm *c, const RtError *e) {
    if (c->error.code == RT_OK) c->error = *e;
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// For tests: is this message to be lost; until when are those behind it held back?
static bool is_lost(RtComm *c, RtStream *s) {
    const RtCommFaults *f = c->faults;
    c->n_posted++;
    if (f->delay_ns > 0) {
        uint64_t draw = mix(f->seed * 0x9e3779b97f4a7c15u + ((uint64_t)c->rank << 40) + (uint64_t)c->n_posted);
        s->held_ns = rt_now_ns() + (int64_t)(draw % (uint64_t)f->delay_ns);
    }
    return c->n_posted == f->lose;
}

static void post_piece(RtComm *c, RtStream *s, int slot, int64_t bytes) {
    const RtCommRun *run = s->run;
    RtMessage *m = &s->message[slot];
    *m = (RtMessage){.at = (char *)s->part->at + s->at,
                     .bytes = bytes,
                     .tag = run->tag,
                     .group = run->op.group,
                     .peer = s->peer,
                     .rank = c->group[run->op.group].ranks[s->peer],
                     .is_send = s->is_send,
                     .at_part = s->at,
                     .part = s->part,
                     .stream = s};
    if (s->adds && !s->is_send) m->at = (char *)run->op.scratch + slot * rt_piece_bytes(true);
    s->at += bytes;
    if (s->is_send && c->faults && is_lost(c, s)) {
        m->part = NULL;
        return;
    }
    s->busy++;
    c->ops->post(c->transport, m);
}

static int free_slot(const RtStream *s) {
    int slot = 0;
    while (s->message[slot].part) slot++;
    return slot;
}

static bool is_held(const RtComm *c, const RtStream *s) {
    return c->faults && s->is_send && s->held_ns > rt_now_ns();
}

static void pump(RtComm *c, RtStream *s) {
    int64_t most = rt_piece_bytes(s->adds);
    while (s->part < s->end && s->busy < RT_WINDOW) {
        int64_t left = s->part->bytes - s->at;
        if (left == 0) {
            s->part++;
            s->at = 0;
        } else if (is_held(c, s)) {
            return;
        } else {
            post_piece(c, s, free_slot(s), left < most ? left : most);
        }
    }
}

static bool is_through(const RtStream *s) { return s->part == s->end && s->busy == 0; }

static void open_stream(RtComm *c, RtCommRun *run, RtStream *s, bool is_send, int peer, const RtCommPart *part, int n,
                        bool adds) {
    s->run = run;
    s->peer = peer;
    s->is_send = is_send;
    s->adds = adds;
    s->busy = 0;
    s->part = part;
    s->end = part + n;
    s->at = 0;
    for (int i = 0; i < RT_WINDOW; i++) s->message[i].part = NULL;
    pump(c, s);
    run->open += !is_through(s);
}

static void open_whole(RtComm *c, RtCommRun *run, RtStream *s, bool is_send, int peer, void *at, int64_t bytes,
                       bool adds) {
    s->whole = (RtCommPart){at, bytes, peer};
    open_stream(c, run, s, is_send, peer, &s->whole, bytes > 0, adds);
}

// Parts first to end of a list that is in the order of peers.
static void open_parts(RtComm *c, RtCommRun *run, bool is_send, const RtCommPart *part, int first, int end) {
    for (int next; first < end; first = next) {
        int peer = part[first].peer;
        for (next = first + 1; next < end && part[next].peer == peer;) next++;
        RtStream *s = &(is_send ? run->out : run->in)[peer];
        if (peer != run->i) open_stream(c, run, s, is_send, peer, part + first, next - first, false);
    }
}

// Higher ranks first, so that not all begin with rank 0.
static void open_list(RtComm *c, RtCommRun *run, bool is_send, const RtCommPart *part, int n) {
    int higher = 0;
    while (higher < n && part[higher].peer <= run->i) higher++;
    open_parts(c, run, is_send, part, higher, n);
    open_parts(c, run, is_send, part, 0, higher);
}

// ---- rounds ---------------------------------------------------------------------------------------------

static bool has_parts(RtCommKind kind) {
    return kind == RT_COMM_ROWS || kind == RT_COMM_BACK || kind == RT_COMM_MOVE || kind == RT_COMM_FEW;
}

static void begin_round(RtComm *c, RtCommRun *run) {
    const RtCommOp *op = &run->op;
    for (int j = 0; j < run->m; j++)
        run->out[j].part = run->out[j].end = run->in[j].part = run->in[j].end = NULL;
    if (has_parts(op->kind)) {
        int recv = op->n_recv - op->recv_later, send = op->n_send - op->send_later;
        bool later = run->round > 0;
        open_list(c, run, false, op->recv + (later ? recv : 0), later ? op->recv_later : recv);
        open_list(c, run, true, op->send + (later ? send : 0), later ? op->send_later : send);
        return;
    }
    for (int d = 1; d < run->m; d++) {           // first to receive: what comes early then has a place
        int from = (run->i - d + run->m) % run->m;
        RtShare s = rt_share(op, run->i, run->m, run->round, from);
        open_whole(c, run, &run->in[from], false, from, s.recv, s.recv_bytes, s.adds);
    }
    for (int d = 1; d < run->m; d++) {
        int to = (run->i + d) % run->m;
        RtShare s = rt_share(op, run->i, run->m, run->round, to);
        open_whole(c, run, &run->out[to], true, to, s.send, s.send_bytes, s.adds);
    }
}

// Begins rounds until one has something to wait for.
static void go_on(RtComm *c, RtCommRun *run) {
    int rounds = rt_rounds(&run->op, run->m);
    while (run->open == 0 && run->round < rounds) {
        begin_round(c, run);
        run->round++;
    }
    if (run->open > 0 || run->is_over) return;
    rt_finish_rounds(&run->op, run->i, run->m);
    run->is_over = true;
}

static void add_piece(const RtMessage *m) {
    const RtCommRun *run = m->stream->run;
    void *to = (char *)m->part->at + m->at_part;
    bool peer_is_lower = m->peer < run->i;
    rt_comm_add(run->op.dtype, to, peer_is_lower ? m->at : to, peer_is_lower ? to : m->at, m->bytes);
}

static void wrong_message(RtComm *c, const RtMessage *m) {
    char text[200], size[64];
    RtError e;
    const RtCommRun *run = m->stream->run;
    bool is_longer = m->arrived > m->bytes;
    snprintf(size, sizeof size, "%s%lld", is_longer ? "more than " : "",
             (long long)(is_longer ? m->bytes : m->arrived));
    if (m->failed)
        rt_fail(&e, RT_TIMEOUT, "rank %d, step %lld, %s: the connection to rank %d failed", c->rank, (long long)c->step,
                rt_comm_op_text(c, run, text), m->rank);
    else
        rt_fail(&e, RT_COMM, "rank %d, step %lld, %s: rank %d sent %s bytes where %lld are due", c->rank,
                (long long)c->step, rt_comm_op_text(c, run, text), m->rank, size, (long long)m->bytes);
    fail(c, &e);
}

static void count(RtTraffic *t, int64_t bytes) {
    t->messages++;
    t->bytes += bytes;
}

static void finish(RtComm *c, RtMessage *m) {
    RtStream *s = m->stream;
    RtCommRun *run = s->run;
    RtCommCounters *n = &c->counters;
    int64_t bytes = m->is_send ? m->bytes : m->arrived;
    count(&(m->is_send ? n->sent : n->received)[run->op.kind][link_to(c, m->rank)], bytes);
    if (run->op.tag.where) count(&(m->is_send ? n->plan_sent : n->plan_received)[run->op.kind][link_to(c, m->rank)], bytes);
    bool is_right = run->op.kind == RT_COMM_FEW ? bytes <= m->bytes : bytes == m->bytes;
    if (m->failed || !is_right) wrong_message(c, m);
    else if (s->adds && !m->is_send) add_piece(m);
    m->part = NULL;
    s->busy--;
    run->moved_ns = rt_now_ns();
    pump(c, s);
    if (!is_through(s)) return;
    run->open--;
    go_on(c, run);
}

static void pump_held(RtComm *c) {
    for (int r = 0; r < RT_COMM_OPEN; r++) {
        RtCommRun *run = &c->run[r];
        if (!run->number || run->is_over) continue;
        for (int j = 0; j < run->m; j++) {
            RtStream *s = &run->out[j];
            if (is_through(s)) continue;
            pump(c, s);
            run->open -= is_through(s);          // the last one was lost
        }
        go_on(c, run);
    }
}

void rt_comm_progress(RtComm *c) {
    if (c->faults) pump_held(c);
    for (RtMessage *m; (m = c->ops->progress(c->transport));)        // as long as there is more: the next call may be far
        for (RtMessage *next; m; m = next) {
            next = m->next;                      // finishing may post it anew
            finish(c, m);
        }
}

// ---- starting -------------------------------------------------------------------------------------------

static RtStatus check_parts(const RtCommOp *op, const RtCommPart *part, int n, int later, const char *list, int m, RtError *e) {
    if (later < 0 || later > n)
        return rt_fail(e, RT_BAD_PLAN, "%s: %d of %d parts of %s are later ones", rt_comm_kind_name(op->kind), later, n, list);
    for (int p = 0; p < n; p++) {
        if (part[p].peer < 0 || part[p].peer >= m || part[p].bytes < 0)
            return rt_fail(e, RT_BAD_PLAN, "%s: %s[%d] is %lld bytes, peer %d of %d", rt_comm_kind_name(op->kind), list,
                           p, (long long)part[p].bytes, part[p].peer, m);
        if (p > 0 && p != n - later && part[p].peer < part[p - 1].peer)
            return rt_fail(e, RT_BAD_PLAN, "%s: the parts of %s are not in the order of peers",
                           rt_comm_kind_name(op->kind), list);
    }
    return RT_OK;
}

static bool has_cut(RtCommKind kind) {
    return kind == RT_COMM_TREE_SCATTER || kind == RT_COMM_TREE_GATHER || kind == RT_COMM_GATHER;
}

static RtStatus check_cut(const RtCommOp *op, int m, RtError *e) {
    if (!has_cut(op->kind))
        return op->cut ? rt_fail(e, RT_BAD_PLAN, "%s has no cuts", rt_comm_kind_name(op->kind)) : RT_OK;
    bool right = op->cut && op->cut[0] == 0 && op->cut[m] == op->n;
    for (int j = 0; right && j < m; j++) right = op->cut[j] <= op->cut[j + 1];
    return right ? RT_OK
                 : rt_fail(e, RT_BAD_PLAN, "%s: the cuts don't ascend from 0 to %lld", rt_comm_kind_name(op->kind),
                           (long long)op->n);
}

static RtStatus check_op(const RtCommOp *op, int m, RtError *e) {
    bool is_tree = op->kind == RT_COMM_TREE_REDUCE || op->kind == RT_COMM_TREE_SCATTER,
         halves = is_tree || op->kind == RT_COMM_TREE_GATHER;
    if (halves && (m & (m - 1)))
        return rt_fail(e, RT_BAD_PLAN, "%s is over 1, 2, 4, 8, .. ranks, not %d", rt_comm_kind_name(op->kind), m);
    if ((is_tree && op->dtype != F32 && op->dtype != BF16) ||
        (op->kind == RT_COMM_EXACT && op->dtype != I32 && op->dtype != I64))
        return rt_fail(e, RT_BAD_PLAN, "%s does not sum %s", rt_comm_kind_name(op->kind), dtype_name(op->dtype));
    if (has_parts(op->kind)) {
        RT_TRY(check_parts(op, op->send, op->n_send, op->send_later, "send", m, e));
        return check_parts(op, op->recv, op->n_recv, op->recv_later, "recv", m, e);
    }
    if (op->per_node < 0 || (op->per_node && (op->kind != RT_COMM_COUNTS || m % op->per_node)))
        return rt_fail(e, RT_BAD_PLAN, "%s between nodes of %d of %d ranks", rt_comm_kind_name(op->kind), op->per_node, m);
    if (op->n < 0 || (op->n > 0 && !op->buf))
        return rt_fail(e, RT_BAD_PLAN, "%s of %lld elements without a buffer", rt_comm_kind_name(op->kind),
                       (long long)op->n);
    if (rt_comm_scratch_bytes(op->kind, op->dtype, op->n, m) > 0 && !op->scratch)
        return rt_fail(e, RT_BAD_PLAN, "%s without scratch", rt_comm_kind_name(op->kind));
    if (op->kind == RT_COMM_BCAST && (op->root < 0 || op->root >= m))
        return rt_fail(e, RT_BAD_PLAN, "bcast from rank %d of %d", op->root, m);
    return check_cut(op, m, e);
}

static const RtCommPart *parts_of(const RtCommPart *part, int n, int peer, int *count) {
    int first = 0;
    while (first < n && part[first].peer != peer) first++;
    *count = 0;
    while (first + *count < n && part[first + *count].peer == peer) ++*count;
    return part + first;
}

// The parts from this rank to itself.
static RtStatus copy_own(const RtCommOp *op, int i, RtError *e) {
    int n_send, n_recv;
    const RtCommPart *send = parts_of(op->send, op->n_send, i, &n_send),
                     *recv = parts_of(op->recv, op->n_recv, i, &n_recv);
    bool equal = n_send == n_recv;
    for (int p = 0; equal && p < n_send; p++) equal = send[p].bytes == recv[p].bytes;
    if (!equal)
        return rt_fail(e, RT_BAD_PLAN, "%s: what a rank sends itself is not what it receives",
                       rt_comm_kind_name(op->kind));
    for (int p = 0; p < n_send; p++)
        if (send[p].bytes) memcpy(recv[p].at, send[p].at, (size_t)send[p].bytes);
    return RT_OK;
}

RtStatus rt_comm_start(RtComm *c, const RtCommOp *op, int *ticket, RtError *e) {
    if (c->error.code != RT_OK) return rt_fail(e, c->error.code, "%s", c->error.text);
    if (op->group < 0 || op->group >= c->n_groups) return rt_fail(e, RT_BAD_PLAN, "there is no group %d", op->group);
    RtCommGroup *g = &c->group[op->group];
    RT_TRY(check_op(op, g->m, e));
    int slot = 0;
    while (slot < RT_COMM_OPEN && c->run[slot].number) slot++;
    if (slot == RT_COMM_OPEN)
        return rt_fail(e, RT_BAD_PLAN, "more than %d collectives are started and not waited for", RT_COMM_OPEN);
    if (has_parts(op->kind) && !op->own_later) RT_TRY(copy_own(op, g->i, e));

    RtCommRun *run = &c->run[slot];
    run->op = *op;
    run->m = g->m;
    run->i = g->i;
    run->number = ++c->started;
    run->in_group = g->started++;
    run->tag = rt_comm_tag(op, run->in_group);
    g->recent[run->in_group % RT_COMM_OPEN] = run->tag;
    run->round = run->open = 0;
    run->is_over = false;
    run->moved_ns = rt_now_ns();
    c->counters.ops[op->kind]++;
    rt_comm_note_start(c, run);
    go_on(c, run);
    *ticket = slot;
    return RT_OK;
}

// ---- waiting --------------------------------------------------------------------------------------------

bool rt_comm_ready(const RtComm *c, int ticket, int part) {
    const RtCommRun *run = &c->run[ticket];
    const RtCommPart *p = &run->op.recv[part];
    if (p->peer == run->i) return true;
    const RtStream *s = &run->in[p->peer];
    if (s->part <= p) return false;
    for (int i = 0; i < RT_WINDOW; i++)
        if (s->message[i].part == p) return false;
    return true;
}

enum {
    LOOK_NS = 20000000,              // standing still so long, a rank looks what is wrong
    HELD_LOOK_NS = 20000             // RtCommFaults: whether messages may go
};

// Everything of a run, or (stride > 0) what rt_comm_done_parts waits for.
typedef struct { int stride, below; } Awaited;

static bool is_there(const RtComm *c, const RtCommRun *run, Awaited what) {
    for (int p = 0; what.stride && !run->is_over && p < run->op.n_recv; p++)
        if (p % what.stride < what.below && !rt_comm_ready(c, (int)(run - c->run), p)) return false;
    return what.stride || run->is_over;
}

static void wait(RtComm *c, RtCommRun *run, Awaited what) {
    int64_t bound_ns = c->silence_ns + 10 * run->op.expected_ns, looked_ns = rt_now_ns(), still_ns = 0;
    int64_t moved_ns = run->moved_ns;
    while (!is_there(c, run, what) && c->error.code == RT_OK) {
        c->ops->rest(c->transport, c->faults && c->faults->delay_ns > 0 ? HELD_LOOK_NS : LOOK_NS);
        rt_comm_progress(c);
        int64_t past_ns = rt_now_ns() - looked_ns;
        if (is_there(c, run, what) || past_ns < LOOK_NS) continue;
        looked_ns += past_ns;
        // a longer pause is this rank's own: the process was stopped, say, and all others perhaps with it
        still_ns = moved_ns == run->moved_ns ? still_ns + (past_ns < 5 * LOOK_NS ? past_ns : LOOK_NS) : 0;
        moved_ns = run->moved_ns;
        RtError e;
        if (c->ops->ended(c->transport, &e)) fail(c, &e);
        else if (!rt_comm_find_stray(c) && still_ns > bound_ns) rt_comm_tell_silence(c, run, bound_ns);
    }
}

RtStatus rt_comm_done(RtComm *c, int ticket, RtError *e) {
    RtCommRun *run = &c->run[ticket];
    assert(run->number);
    if (!run->is_over) rt_comm_progress(c);
    if (!run->is_over && c->error.code == RT_OK) {
        rt_comm_note_wait(c, run);
        wait(c, run, (Awaited){0, 0});
    }
    if (c->error.code != RT_OK) return rt_fail(e, c->error.code, "%s", c->error.text);
    if (run->op.own_later) RT_TRY(copy_own(&run->op, run->i, e));
    rt_comm_note_done(c, run);
    run->number = 0;
    return RT_OK;
}

RtStatus rt_comm_done_parts(RtComm *c, int ticket, int stride, int below, RtError *e) {
    RtCommRun *run = &c->run[ticket];
    Awaited what = {stride, below};
    if (!is_there(c, run, what)) rt_comm_progress(c);
    if (!is_there(c, run, what) && c->error.code == RT_OK) {
        rt_comm_note_wait(c, run);
        wait(c, run, what);
        rt_comm_note_go_on(c);
    }
    return c->error.code == RT_OK ? RT_OK : rt_fail(e, c->error.code, "%s", c->error.text);
}

RtStatus rt_comm_run(RtComm *c, const RtCommOp *op, RtError *e) {
    int ticket;
    RT_TRY(rt_comm_start(c, op, &ticket, e));
    return rt_comm_done(c, ticket, e);
}

int64_t rt_comm_moved_ns(const RtComm *c, int ticket) { return c->run[ticket].moved_ns; }

void rt_comm_step(RtComm *c, int64_t step) { c->step = step; }
void rt_comm_silence(RtComm *c, int64_t ns) { c->silence_ns = ns; }
RtCommCounters rt_comm_counters(const RtComm *c) { return c->counters; }

// ---- opening --------------------------------------------------------------------------------------------

int rt_comm_rank(const RtComm *c) { return c->rank; }
int rt_comm_ranks(const RtComm *c) { return c->ranks; }
int rt_comm_node(const RtComm *c, int rank) { return c->ops->node(c->transport, rank); }
int rt_comm_group_rank(const RtComm *c, int group) { return c->group[group].i; }
int rt_comm_group_ranks(const RtComm *c, int group) { return c->group[group].m; }

RtStatus rt_comm_shared(RtComm *c, size_t bytes, bool zeroed, void **at, RtError *e) {
    return c->ops->shared(c->transport, bytes, zeroed, at, e);
}

static RtStatus check_group(const RtComm *c, const int *ranks, int n, int *own, RtError *e) {
    *own = -1;
    for (int j = 0; j < n; j++) {
        if (ranks[j] < 0 || ranks[j] >= c->ranks)
            return rt_fail(e, RT_BAD_PLAN, "a group with rank %d of %d", ranks[j], c->ranks);
        for (int k = 0; k < j; k++)
            if (ranks[k] == ranks[j]) return rt_fail(e, RT_BAD_PLAN, "a group with rank %d twice", ranks[j]);
        if (ranks[j] == c->rank) *own = j;
    }
    return *own >= 0 ? RT_OK : rt_fail(e, RT_BAD_PLAN, "rank %d is not in its own group", c->rank);
}

RtStatus rt_comm_group(RtComm *c, const int *ranks, int n, int *group, RtError *e) {
    int own;
    RT_TRY(check_group(c, ranks, n, &own, e));
    RtCommGroup *all = realloc(c->group, (size_t)(c->n_groups + 1) * sizeof *all);
    if (all) c->group = all;
    int *copy = malloc((size_t)n * sizeof *copy);
    if (!all || !copy) {
        free(copy);
        return rt_fail(e, RT_NO_MEMORY, "no memory for a group of %d ranks", n);
    }
    memcpy(copy, ranks, (size_t)n * sizeof *copy);
    c->allocated += (int64_t)((size_t)n * sizeof *copy + sizeof *c->group);
    c->group[c->n_groups] = (RtCommGroup){.ranks = copy, .m = n, .i = own};
    *group = c->n_groups++;
    return c->ops->group(c->transport, *group, copy, n, e);
}

// What mpirun of Open MPI, those of others, and srun --mpi=pmix tell their processes.
int rt_comm_world_size(void) {
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (!size) size = getenv("PMI_SIZE");
    if (!size && getenv("PMIX_RANK")) size = getenv("SLURM_STEP_NUM_TASKS");
    return size && atoi(size) > 1 ? atoi(size) : 1;
}

int rt_comm_world_rank(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank) rank = getenv("PMI_RANK");
    if (!rank) rank = getenv("PMIX_RANK");
    return rank ? atoi(rank) : 0;
}

// moec_mpi.so lies beside the program, or where `cmake --install` puts it, or where the system looks for libraries.
static void *load_mpi(char *why, size_t why_bytes) {
    static const char *const places[] = {"%s/moec_mpi.so", "%s/../lib/moec/moec_mpi.so"};
    char program[4000], path[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    char *slash = strrchr(program, '/');
    if (slash) *slash = 0;
    const char *given = getenv("MOEC_MPI_LIBRARY"), *found = given ? given : "moec_mpi.so";
    for (int i = 0; !given && i < 2; i++) {
        snprintf(path, sizeof path, places[i], program);
        if (access(path, R_OK) != 0) continue;
        found = path;
        break;
    }
    void *library = dlopen(found, RTLD_NOW | RTLD_GLOBAL);     // global: Open MPI loads parts that look for it
    if (!library) snprintf(why, why_bytes, "%s", dlerror());
    return library;
}

static RtStatus find_transport(const RtCommConfig *cf, const RtTransportOps **out, RtError *e) {
    *out = &rt_transport_local;
    if (cf->world) return RT_OK;
    char why[512] = "";
    void *library = load_mpi(why, sizeof why);
    *out = library ? dlsym(library, RT_TRANSPORT_MPI) : NULL;
    if (*out) return RT_OK;
    return rt_fail(e, RT_COMM, "more than one rank needs MPI, and there is none: %s (moec is built with it where "
                               "libopenmpi-dev is, and runs with it where libopenmpi3 is)", why);
}

static size_t page_list_bytes(int ranks) { return (size_t)ranks * sizeof(RtCommPage *); }
static size_t streams_bytes(int ranks) { return (size_t)ranks * RT_COMM_OPEN * 2 * sizeof(RtStream); }

int64_t rt_comm_bytes(int ranks, int groups, int members) {
    return (int64_t)(sizeof(RtComm) + sizeof(RtCommPage) + page_list_bytes(ranks) + streams_bytes(ranks) +
                     (size_t)groups * sizeof(RtCommGroup) + (size_t)members * sizeof(int));
}

int64_t rt_comm_allocated(const RtComm *c) { return c->allocated; }

static RtStatus open_run(RtComm *c, RtError *e) {
    int *all = malloc((size_t)c->ranks * sizeof *all);
    void **page = calloc(1, page_list_bytes(c->ranks));
    c->page = (RtCommPage **)page;
    c->streams = calloc(1, streams_bytes(c->ranks));
    c->allocated += (int64_t)(page_list_bytes(c->ranks) + streams_bytes(c->ranks) + sizeof(RtCommPage));
    RtStatus s = RT_OK;
    if (!all || !page || !c->streams)
        s = rt_fail(e, RT_NO_MEMORY, "no memory for a communicator of %d ranks", c->ranks);
    if (s == RT_OK) {
        for (int r = 0; r < c->ranks; r++) all[r] = r;
        for (int r = 0; r < RT_COMM_OPEN; r++) {
            c->run[r].out = c->streams + (size_t)r * 2 * (size_t)c->ranks;
            c->run[r].in = c->run[r].out + c->ranks;
        }
        s = rt_comm_shared(c, sizeof(RtCommPage), true, page, e);
    }
    int group;
    if (s == RT_OK) s = rt_comm_group(c, all, c->ranks, &group, e);
    free(all);
    return s;
}

// A launcher of another MPI starts ranks that don't know each other: each would train by itself into the same folder.
static RtStatus check_size(const RtCommConfig *cf, int ranks, RtError *e) {
    int started = rt_comm_world_size();
    if (cf->world || started == ranks || started == 1) return RT_OK;
    return rt_fail(e, RT_COMM, "started as one of %d ranks, but MPI knows %d: was it the launcher of another MPI?",
                   started, ranks);
}

RtStatus rt_comm_open(const RtCommConfig *cf, RtComm **out, RtError *e) {
    RtComm *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return rt_fail(e, RT_NO_MEMORY, "no memory for a communicator");
    c->allocated = sizeof *c;
    c->silence_ns = cf->silence_ns ? cf->silence_ns : 30000000000;
    c->faults = cf->faults;
    RtStatus s = find_transport(cf, &c->ops, e);
    if (s == RT_OK) s = c->ops->open(cf, &c->transport, e);
    if (s == RT_OK) {
        c->rank = c->ops->rank(c->transport);
        c->ranks = c->ops->ranks(c->transport);
        s = check_size(cf, c->ranks, e);
    }
    if (s == RT_OK) s = open_run(c, e);
    if (s == RT_OK) {
        *out = c;
    } else {
        c->error.code = s;
        rt_comm_close(c);
    }
    return s;
}

void rt_comm_close(RtComm *c) {
    if (!c) return;
    bool in_order = c->error.code == RT_OK;
    for (int r = 0; r < RT_COMM_OPEN; r++) in_order &= c->run[r].number == 0;
    if (c->transport) c->ops->close(c->transport, in_order);
    for (int g = 0; g < c->n_groups; g++) free(c->group[g].ranks);
    free(c->group);
    free(c->streams);
    free(c->page);
    free(c);
}

void rt_comm_abort(RtComm *c, const RtError *e) {
    fail(c, e);
    rt_monitor_failed(e);
    c->ops->abort(c->transport, e);
}
