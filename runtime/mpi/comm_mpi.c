// Ranks as processes of Open MPI, or any MPI.  A library of its own, loaded when there is more than one rank.
//
// Used of MPI: Isend, Irecv, Testsome on one thread (FUNNELED), and while opening, groups and shared memory.  No MPI
// collective moves data: their sums have an order of their own.  MPI moves nothing without being called, so `progress`
// is called between tiles of work, and `rest` calls it all the time.
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/comm_transport.h"

enum {
    SPIN_NS = 50000,           // a rank that waits keeps its core so long, ..
    YIELD_NS = 2000000,        // lets others have it for a time, and sleeps after that
    SLEEP_NS = 50000,
    HEADER_BYTES = 4096        // more than Open MPI puts in front of a message
};

struct RtTransport {
    int       rank, ranks;
    bool      has_core;        // no more ranks on this node than cores
    int      *node;            // [ranks]
    MPI_Comm  same_node;
    int      *node_rank;       // [ranks]: of same_node; those of other nodes: -1
    MPI_Comm *group;
    int       n_groups;
    MPI_Win  *window;
    int       n_windows;
    // messages on the way: request[i] is of message[i]
    int           n;
    MPI_Request  *request;
    RtMessage   **message;
    MPI_Status   *status;      // of those that have finished
    int          *index;
    RtMessage    *finished;    // not yet given out
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static RtStatus failed(RtError *e, const char *what, int code) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;
    MPI_Error_string(code, text, &n);
    return rt_fail(e, RT_COMM, "MPI: %s: %s", what, text);
}

// ---- messages -------------------------------------------------------------------------------------------

static void give_out(RtTransport *t, RtMessage *m) {
    m->next = t->finished;
    t->finished = m;
}

static void mpi_post(RtTransport *t, RtMessage *m) {
    MPI_Comm comm = t->group[m->group];
    MPI_Request *request = &t->request[t->n];
    int code = m->is_send ? MPI_Isend(m->at, (int)m->bytes, MPI_BYTE, m->peer, (int)m->tag, comm, request)
                          : MPI_Irecv(m->at, (int)m->bytes, MPI_BYTE, m->peer, (int)m->tag, comm, request);
    m->failed = code != MPI_SUCCESS;
    if (m->failed) give_out(t, m);
    else t->message[t->n++] = m;
}

static void note_end(RtMessage *m, MPI_Status *status, bool has_error) {
    int class = MPI_SUCCESS, count = 0;
    if (has_error) MPI_Error_class(status->MPI_ERROR, &class);
    m->failed = class != MPI_SUCCESS && class != MPI_ERR_TRUNCATE;
    if (m->is_send || m->failed) return;
    MPI_Get_count(status, MPI_BYTE, &count);
    m->arrived = class == MPI_ERR_TRUNCATE ? m->bytes + 1 : count;
}

// Closes the gaps that finished messages left.
static void compact(RtTransport *t) {
    int kept = 0;
    for (int i = 0; i < t->n; i++) {
        if (!t->message[i]) continue;
        t->request[kept] = t->request[i];
        t->message[kept++] = t->message[i];
    }
    t->n = kept;
}

static void poll(RtTransport *t) {
    int count = 0;
    if (t->n == 0) return;
    int code = MPI_Testsome(t->n, t->request, &count, t->index, t->status);
    if (count == MPI_UNDEFINED || count == 0) return;
    for (int i = 0; i < count; i++) {
        RtMessage *m = t->message[t->index[i]];
        t->message[t->index[i]] = NULL;
        note_end(m, &t->status[i], code == MPI_ERR_IN_STATUS);
        give_out(t, m);
    }
    compact(t);
}

static RtMessage *mpi_progress(RtTransport *t) {
    poll(t);
    RtMessage *finished = t->finished;
    t->finished = NULL;
    return finished;
}

static void mpi_rest(RtTransport *t, int64_t ns) {
    int64_t begin_ns = now_ns();
    for (;;) {
        poll(t);
        int64_t past_ns = now_ns() - begin_ns;
        if (t->finished || past_ns >= ns) return;
        if (past_ns > YIELD_NS) nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
        else if (!t->has_core || past_ns > SPIN_NS) sched_yield();
    }
}

static bool mpi_unexpected(RtTransport *t, int group, int peer, int rank, uint32_t *tag) {
    (void)rank;
    int is_there = 0;
    MPI_Status status;
    if (MPI_Iprobe(peer, MPI_ANY_TAG, t->group[group], &is_there, &status) != MPI_SUCCESS || !is_there) return false;
    *tag = (uint32_t)status.MPI_TAG;
    return true;
}

// ---- groups, shared memory ------------------------------------------------------------------------------

static RtStatus mpi_group(RtTransport *t, int group, const int *ranks, int n, RtError *e) {
    MPI_Comm *all = realloc(t->group, (size_t)(group + 1) * sizeof *all);
    if (!all) return rt_fail(e, RT_NO_MEMORY, "no memory for a group of %d ranks", n);
    t->group = all;
    int lowest = ranks[0], place = 0, size;
    for (int j = 0; j < n; j++) {
        if (ranks[j] < lowest) lowest = ranks[j];
        if (ranks[j] == t->rank) place = j;
    }
    int code = MPI_Comm_split(MPI_COMM_WORLD, lowest, place, &t->group[group]);
    if (code != MPI_SUCCESS) return failed(e, "a group", code);
    t->n_groups = group + 1;
    MPI_Comm_set_errhandler(t->group[group], MPI_ERRORS_RETURN);
    MPI_Comm_size(t->group[group], &size);
    if (size == n) return RT_OK;
    return rt_fail(e, RT_COMM, "rank %d: group %d has %d ranks here, %d by all", t->rank, group, n, size);
}

static RtStatus mpi_shared(RtTransport *t, size_t bytes, bool zeroed, void **at, RtError *e) {
    MPI_Win *all = realloc(t->window, (size_t)(t->n_windows + 1) * sizeof *all);
    if (!all) return rt_fail(e, RT_NO_MEMORY, "no memory for %zu bytes that ranks share", bytes);
    t->window = all;
    MPI_Win *window = &t->window[t->n_windows];
    char *own;
    MPI_Aint room = (MPI_Aint)((bytes + 127) / 64 * 64);              // with what aligning takes
    int code = MPI_Win_allocate_shared(room, 1, MPI_INFO_NULL, t->same_node, &own, window);
    if (code != MPI_SUCCESS) return failed(e, "shared memory", code);
    t->n_windows++;
    for (int r = 0; r < t->ranks; r++) {
        MPI_Aint size;
        int unit;
        char *base = NULL;
        if (t->node_rank[r] >= 0) MPI_Win_shared_query(*window, t->node_rank[r], &size, &unit, &base);
        at[r] = base ? base + (64 - (uintptr_t)base % 64) % 64 : NULL;
    }
    if (zeroed) memset(at[t->rank], 0, bytes);
    MPI_Barrier(t->same_node);
    return RT_OK;
}

static int mpi_rank(const RtTransport *t) { return t->rank; }
static int mpi_ranks(const RtTransport *t) { return t->ranks; }
static int mpi_node(const RtTransport *t, int rank) { return t->node[rank]; }

// ---- opening --------------------------------------------------------------------------------------------

// Nodes are numbered by their lowest ranks.
static void number_nodes(RtTransport *t) {
    int lowest = t->rank, size;
    MPI_Comm_size(t->same_node, &size);
    MPI_Bcast(&lowest, 1, MPI_INT, 0, t->same_node);
    MPI_Allgather(&lowest, 1, MPI_INT, t->node, 1, MPI_INT, MPI_COMM_WORLD);
    for (int r = 0, place = 0; r < t->ranks; r++) t->node_rank[r] = t->node[r] == lowest ? place++ : -1;
    for (int r = 0, nodes = 0; r < t->ranks; r++) t->node[r] = t->node[r] == r ? nodes++ : t->node[t->node[r]];
    t->has_core = size <= sysconf(_SC_NPROCESSORS_ONLN);
}

static bool has_room_for_tags(void) {
    int *highest = NULL, is_there = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &highest, &is_there);
    return is_there && *highest >= RT_TAGS - 1;
}

static RtStatus allocate(RtTransport *t, RtError *e) {
    size_t ranks = (size_t)t->ranks, room = (size_t)RT_MESSAGES * ranks;
    t->node = calloc(ranks, sizeof *t->node);
    t->node_rank = calloc(ranks, sizeof *t->node_rank);
    t->request = calloc(room, sizeof *t->request);
    t->message = calloc(room, sizeof *t->message);
    t->status = calloc(room, sizeof *t->status);
    t->index = calloc(room, sizeof *t->index);
    if (t->node && t->node_rank && t->request && t->message && t->status && t->index) return RT_OK;
    return rt_fail(e, RT_NO_MEMORY, "no memory for the messages of %d ranks", t->ranks);
}

static void free_transport(RtTransport *t) {
    free(t->node);
    free(t->node_rank);
    free(t->request);
    free(t->message);
    free(t->status);
    free(t->index);
    free(t->group);
    free(t->window);
    free(t);
}

// Not in order, MPI_Finalize would wait for the others: mpirun then ends all, since a rank has gone without it.
static void mpi_close(RtTransport *t, bool in_order) {
    if (in_order) {
        for (int i = 0; i < t->n_windows; i++) MPI_Win_free(&t->window[i]);
        for (int i = 0; i < t->n_groups; i++) MPI_Comm_free(&t->group[i]);
        MPI_Comm_free(&t->same_node);
        MPI_Finalize();
    }
    free_transport(t);
}

// Open MPI asks the receiver of more than 64 KiB first, and sends when an answer has come.  Both have to look after messages for
// that, which they do between tasks, of milliseconds.  So all that moec sends at once goes without a question; what a
// user has set (--mca, OMPI_MCA_..) stays.  Inside a node other settings count.
static void send_unasked(void) {
    static const char *const limit[] = {"OMPI_MCA_btl_tcp_eager_limit", "OMPI_MCA_btl_tcp_rndv_eager_limit", "OMPI_MCA_btl_tcp_max_send_size"};
    const char *here = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"), *all = getenv("OMPI_COMM_WORLD_SIZE");
    if (here && all && atoi(here) == atoi(all)) return;
    char bytes[16];
    snprintf(bytes, sizeof bytes, "%d", RT_PIECE_BYTES + HEADER_BYTES);
    for (size_t i = 0; i < sizeof limit / sizeof *limit; i++) setenv(limit[i], bytes, 0);
}

static RtStatus mpi_open(const RtCommConfig *cf, RtTransport **out, RtError *e) {
    (void)cf;
    int was_open = 0, level = 0;
    MPI_Initialized(&was_open);
    if (was_open) return rt_fail(e, RT_COMM, "MPI can be opened once in a process");
    send_unasked();
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    if (code != MPI_SUCCESS) return rt_fail(e, RT_COMM, "MPI_Init_thread failed (%d)", code);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    RtTransport *t = calloc(1, sizeof *t);
    if (!t) return rt_fail(e, RT_NO_MEMORY, "no memory for MPI");
    MPI_Comm_rank(MPI_COMM_WORLD, &t->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &t->ranks);
    RtStatus s = allocate(t, e);
    if (s == RT_OK && !has_room_for_tags()) s = rt_fail(e, RT_COMM, "this MPI has less than %d tags", RT_TAGS);
    if (s == RT_OK) {
        code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &t->same_node);
        if (code != MPI_SUCCESS) s = failed(e, "the ranks of this node", code);
        else MPI_Comm_set_errhandler(t->same_node, MPI_ERRORS_RETURN);
    }
    if (s != RT_OK) {
        free_transport(t);
        return s;
    }
    number_nodes(t);
    *out = t;
    return RT_OK;
}

static void mpi_abort(RtTransport *t, const RtError *e) {
    (void)t;
    fprintf(stderr, "moec: error: %s\n", e->text);         // the last words: nobody returns from here
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, rt_exit_status(e->code));
}

static bool mpi_ended(RtTransport *t, RtError *e) {
    (void)t, (void)e;
    return false;                  // an aborted job is no more
}

__attribute__((visibility("default"))) extern const RtTransportOps rt_transport_mpi;
const RtTransportOps rt_transport_mpi = {
    .name = "mpi",
    .open = mpi_open,
    .close = mpi_close,
    .abort = mpi_abort,
    .ended = mpi_ended,
    .rank = mpi_rank,
    .ranks = mpi_ranks,
    .node = mpi_node,
    .group = mpi_group,
    .shared = mpi_shared,
    .post = mpi_post,
    .progress = mpi_progress,
    .rest = mpi_rest,
    .unexpected = mpi_unexpected,
};
