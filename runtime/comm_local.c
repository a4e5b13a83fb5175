// Ranks as threads of one process.
//
//   sender                                       receiver
//   post(send): into the receiver's mailbox,     progress: takes its mailbox, finds the receive of the same tag, copies
//   raise its event                              straight from the sender's memory, puts the message into the sender's
//   progress: takes what was copied              `copied`, raises the sender's event
//
// Lists between threads are stacks that are pushed with compare-and-swap and taken whole.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/comm_transport.h"
#include "runtime/wait.h"

enum { COPY_AT_ONCE = 1 << 20 };               // bytes, in one progress: it is called between tiles

typedef struct {
    _Alignas(64) RtEvent event;                // something was put here
    _Atomic(RtMessage *) arriving, copied;     // newest first
} Mailbox;

typedef struct {                               // first in, first out
    RtMessage *first, **last;
} Queue;

typedef struct Block {                         // of rt_comm_shared
    struct Block *next;
    _Alignas(64) char data[];
} Block;

struct RtLocalWorld {
    int      ranks, node_ranks;
    bool     can_spin;
    pthread_mutex_t lock;                      // of what follows
    pthread_cond_t  meet;
    int      arrived, meeting, closed;         // ranks at the present meeting; meetings so far; ranks that have closed
    Block   *blocks;
    void   **offered;                          // [ranks]: each rank's newest block
    RtError  end;                              // of a rank that aborted
    _Atomic bool is_over;
    Mailbox  box[];
};

struct RtTransport {
    RtLocalWorld *world;
    int       rank;
    uint32_t  seen;                            // of this rank's event, before its mailbox was taken
    RtSpin    spin;
    Queue    *waiting, *come;                  // by the other rank: receives; sends that met none
    Queue     matched;                         // receives whose send is in `from`, not yet copied
};

// ---- queues ---------------------------------------------------------------------------------------------

static void queue_clear(Queue *q) { *q = (Queue){NULL, &q->first}; }

static void queue_add(Queue *q, RtMessage *m) {
    m->next = NULL;
    *q->last = m;
    q->last = &m->next;
}

// The first for this group and tag leaves the queue; NULL: there is none.
static RtMessage *queue_take(Queue *q, int group, uint32_t tag) {
    for (RtMessage **at = &q->first; *at; at = &(*at)->next) {
        RtMessage *m = *at;
        if (m->group != group || m->tag != tag) continue;
        *at = m->next;
        if (!*at) q->last = at;
        return m;
    }
    return NULL;
}

static void push(_Atomic(RtMessage *) *stack, RtMessage *m) {
    m->next = atomic_load_explicit(stack, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(stack, &m->next, m, memory_order_release, memory_order_relaxed)) {}
}

static RtMessage *take_all(_Atomic(RtMessage *) *stack) {
    return atomic_load_explicit(stack, memory_order_relaxed)
               ? atomic_exchange_explicit(stack, NULL, memory_order_acquire)
               : NULL;
}

static RtMessage *oldest_first(RtMessage *m) {
    RtMessage *list = NULL;
    while (m) {
        RtMessage *next = m->next;
        m->next = list;
        list = m;
        m = next;
    }
    return list;
}

// ---- messages -------------------------------------------------------------------------------------------

static void match(RtTransport *t, RtMessage *recv, RtMessage *send) {
    recv->from = send;
    recv->arrived = send->bytes;
    queue_add(&t->matched, recv);
}

static void local_post(RtTransport *t, RtMessage *m) {
    if (m->is_send) {
        Mailbox *box = &t->world->box[m->rank];
        m->sender = t->rank;
        push(&box->arriving, m);
        rt_event_raise(&box->event);
        return;
    }
    RtMessage *send = queue_take(&t->come[m->rank], m->group, m->tag);
    if (send) match(t, m, send);
    else queue_add(&t->waiting[m->rank], m);
}

static void take_mail(RtTransport *t) {
    for (RtMessage *m = oldest_first(take_all(&t->world->box[t->rank].arriving)), *next; m; m = next) {
        next = m->next;
        RtMessage *recv = queue_take(&t->waiting[m->sender], m->group, m->tag);
        if (recv) match(t, recv, m);
        else queue_add(&t->come[m->sender], m);
    }
}

static RtMessage *local_progress(RtTransport *t) {
    Mailbox *box = &t->world->box[t->rank];
    t->seen = rt_event_value(&box->event);
    take_mail(t);
    RtMessage *finished = take_all(&box->copied);
    for (int64_t bytes = 0; t->matched.first && bytes < COPY_AT_ONCE;) {
        RtMessage *recv = t->matched.first, *send = recv->from;
        t->matched.first = recv->next;
        if (!recv->next) queue_clear(&t->matched);
        int64_t n = recv->bytes < send->bytes ? recv->bytes : send->bytes;
        if (n) memcpy(recv->at, send->at, (size_t)n);
        bytes += n;
        int sender = send->sender;
        push(&t->world->box[sender].copied, send);           // from here on it is the sender's
        rt_event_raise(&t->world->box[sender].event);
        recv->next = finished;
        finished = recv;
    }
    return finished;
}

static void local_rest(RtTransport *t, int64_t ns) {
    if (t->matched.first) return;
    rt_event_wait(&t->world->box[t->rank].event, t->seen, &t->spin, t->world->can_spin, ns);
}

static bool local_unexpected(RtTransport *t, int group, int peer, int rank, uint32_t *tag) {
    (void)peer;
    for (const RtMessage *m = t->come[rank].first; m; m = m->next) {
        if (m->group != group) continue;
        *tag = m->tag;
        return true;
    }
    return false;
}

// ---- all together ---------------------------------------------------------------------------------------

// Until all ranks are here.  An error: a rank has aborted, and not all will come.
static RtStatus meet(RtLocalWorld *w, RtError *e) {
    pthread_mutex_lock(&w->lock);
    int meeting = w->meeting;
    if (++w->arrived == w->ranks) {
        w->arrived = 0;
        w->meeting++;
        pthread_cond_broadcast(&w->meet);
    }
    while (w->meeting == meeting && !w->is_over) pthread_cond_wait(&w->meet, &w->lock);
    RtStatus s = w->meeting != meeting ? RT_OK : rt_fail(e, w->end.code, "%s", w->end.text);
    pthread_mutex_unlock(&w->lock);
    return s;
}

static void end_all(RtLocalWorld *w, const RtError *e) {
    pthread_mutex_lock(&w->lock);
    if (!w->is_over) w->end = *e;
    w->is_over = true;
    pthread_cond_broadcast(&w->meet);
    pthread_mutex_unlock(&w->lock);
    for (int r = 0; r < w->ranks; r++) rt_event_raise(&w->box[r].event);
}

static void local_abort(RtTransport *t, const RtError *e) { end_all(t->world, e); }

static bool local_ended(RtTransport *t, RtError *e) {
    if (!t->world->is_over) return false;
    pthread_mutex_lock(&t->world->lock);
    *e = t->world->end;
    pthread_mutex_unlock(&t->world->lock);
    return true;
}

// Until all have closed: till then, others may copy out of this rank's memory.
static void leave(RtLocalWorld *w) {
    pthread_mutex_lock(&w->lock);
    w->closed++;
    pthread_cond_broadcast(&w->meet);
    while (w->closed < w->ranks) pthread_cond_wait(&w->meet, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void free_transport(RtTransport *t) {
    if (!t) return;
    free(t->waiting);
    free(t->come);
    free(t);
}

static void local_close(RtTransport *t, bool in_order) {
    RtError e;
    rt_fail(&e, RT_COMM, "rank %d has closed", t->rank);
    if (!in_order) end_all(t->world, &e);
    leave(t->world);
    free_transport(t);
}

static RtStatus local_open(const RtCommConfig *cf, RtTransport **out, RtError *e) {
    RtLocalWorld *w = cf->world;
    RtTransport *t = calloc(1, sizeof *t);
    size_t ranks = (size_t)w->ranks;
    if (t) {
        *t = (RtTransport){.world = w, .rank = cf->rank, .spin = rt_spin_begin(),
                           .waiting = calloc(ranks, sizeof(Queue)), .come = calloc(ranks, sizeof(Queue))};
        queue_clear(&t->matched);
    }
    if (!t || !t->waiting || !t->come) {
        free_transport(t);
        rt_fail(e, RT_NO_MEMORY, "no memory for rank %d", cf->rank);
        end_all(w, e);
        leave(w);
        return RT_NO_MEMORY;
    }
    for (int r = 0; r < w->ranks; r++) {
        queue_clear(&t->waiting[r]);
        queue_clear(&t->come[r]);
    }
    *out = t;
    return meet(w, e);
}

static int local_rank(const RtTransport *t) { return t->rank; }
static int local_ranks(const RtTransport *t) { return t->world->ranks; }
static int local_node(const RtTransport *t, int rank) { return rank / t->world->node_ranks; }

static RtStatus local_group(RtTransport *t, int group, const int *ranks, int n, RtError *e) {
    (void)group, (void)ranks, (void)n;
    return meet(t->world, e);
}

static RtStatus local_shared(RtTransport *t, size_t bytes, bool zeroed, void **at, RtError *e) {
    RtLocalWorld *w = t->world;
    size_t size = (sizeof(Block) + bytes + 63) / 64 * 64;
    Block *b = aligned_alloc(64, size);
    if (!b) {
        rt_fail(e, RT_NO_MEMORY, "no memory for %zu bytes that ranks share", bytes);
        end_all(w, e);
        return RT_NO_MEMORY;
    }
    if (zeroed) memset(b, 0, size);
    pthread_mutex_lock(&w->lock);
    b->next = w->blocks;
    w->blocks = b;
    w->offered[t->rank] = b->data;
    pthread_mutex_unlock(&w->lock);
    RT_TRY(meet(w, e));
    for (int r = 0; r < w->ranks; r++) at[r] = local_node(t, r) == local_node(t, t->rank) ? w->offered[r] : NULL;
    return meet(w, e);                         // then the next offers may come
}

const RtTransportOps rt_transport_local = {
    .name = "local",
    .open = local_open,
    .close = local_close,
    .abort = local_abort,
    .ended = local_ended,
    .rank = local_rank,
    .ranks = local_ranks,
    .node = local_node,
    .group = local_group,
    .shared = local_shared,
    .post = local_post,
    .progress = local_progress,
    .rest = local_rest,
    .unexpected = local_unexpected,
};

RtStatus rt_local_open(int ranks, int node_ranks, RtLocalWorld **out, RtError *e) {
    size_t bytes = (sizeof(RtLocalWorld) + (size_t)ranks * sizeof(Mailbox) + 63) / 64 * 64;
    RtLocalWorld *w = aligned_alloc(64, bytes);
    void **offered = calloc((size_t)ranks, sizeof *offered);
    *out = NULL;
    if (!w || !offered) {
        free(w);
        free(offered);
        return rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", ranks);
    }
    memset(w, 0, bytes);
    w->ranks = ranks;
    w->node_ranks = node_ranks ? node_ranks : ranks;
    w->can_spin = ranks <= sysconf(_SC_NPROCESSORS_ONLN);
    w->offered = offered;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->meet, NULL);
    *out = w;
    return RT_OK;
}

void rt_local_close(RtLocalWorld *w) {
    if (!w) return;
    for (Block *b = w->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    pthread_cond_destroy(&w->meet);
    pthread_mutex_destroy(&w->lock);
    free(w->offered);
    free(w);
}
