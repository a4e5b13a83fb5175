// What ranks do together is right to the bit on every transport, whatever the sizes, the skew, the delays and the
// order of waiting; what goes wrong is told, to all, in time.
//
//   test_comm          ranks are threads: 1, 2, 3, 4, 8 of them
//   test_comm long     the same, more of it
//   test_comm mpi      under mpirun: as many ranks as there are (tests/runtime/test_comm_mpi.sh)
//   test_comm mpi lost, differs, aborts, absent        one rank does so; the job must end with words
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "runtime/comm.h"
#include "runtime/convert.h"
#include "runtime/exact.h"

// ---- counting allocations: this program's malloc stands before the library's ----------------------------

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern void *__libc_malloc(size_t n);
static _Thread_local long n_mallocs;
void *malloc(size_t n) {
    n_mallocs++;
    return __libc_malloc(n);
}
#else
static const long n_mallocs;
#endif

// ---- ranks ----------------------------------------------------------------------------------------------

enum { MOST_RANKS = 8 };

typedef struct Rank Rank;
typedef void Body(Rank *r);

struct Rank {
    RtComm *c;
    int     rank, ranks;
    uint64_t seed;
    Body   *body;
    RtCommConfig config;
    RtError error;
    char    wrong[1200];                 // what was found first
};

static RtComm *the_comm;                 // of an MPI process
static RtCommFaults faults;
static bool is_long;

static void note(Rank *r, bool right, const char *what, int line) {
    if (!right && !r->wrong[0])
        snprintf(r->wrong, sizeof r->wrong, "rank %d of %d, line %d: %s", r->rank, r->ranks, line, what);
}
#define check(r, condition) note((r), (condition), #condition, __LINE__)
#define works(r, call)                                                                                        \
    do {                                                                                                      \
        bool is_well = (call) == RT_OK;                                                                       \
        note((r), is_well, (r)->error.code ? (r)->error.text : #call, __LINE__);                              \
    } while (0)

static void *live(void *arg) {
    Rank *r = arg;
    works(r, rt_comm_open(&r->config, &r->c, &r->error));
    if (r->c) r->body(r);
    rt_comm_close(r->c);
    return NULL;
}

static void run_threads(int n, RtCommConfig config, uint64_t seed, Body *body) {
    RtLocalWorld *world;
    Rank rank[MOST_RANKS] = {{0}};
    pthread_t thread[MOST_RANKS];
    assert_int_equal(rt_local_open(n, n == 8 ? 4 : 0, &world, NULL), RT_OK);
    for (int i = 0; i < n; i++) {
        config.world = world;
        config.rank = i;
        config.faults = &faults;
        rank[i] = (Rank){.rank = i, .ranks = n, .seed = seed, .body = body, .config = config};
        assert_int_equal(pthread_create(&thread[i], NULL, live, &rank[i]), 0);
    }
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    rt_local_close(world);
    for (int i = 0; i < n; i++) assert_string_equal(rank[i].wrong, "");
}

static void run_mpi(uint64_t seed, Body *body) {
    Rank r = {.c = the_comm, .rank = rt_comm_rank(the_comm), .ranks = rt_comm_ranks(the_comm), .seed = seed};
    body(&r);
    assert_string_equal(r.wrong, "");
}

static const int all_sizes[] = {1, 2, 3, 4, 8};

static void on_all(uint64_t seed, Body *body) {
    if (the_comm) {
        run_mpi(seed, body);
        return;
    }
    for (int i = 0; i < 5; i++) run_threads(all_sizes[i], (RtCommConfig){0}, seed, body);
}

// ---- values ---------------------------------------------------------------------------------------------

static uint64_t hash(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9e3779b97f4a7c15u + b;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Zeros of both signs, denormals, large beside small, and what cancels.
static float value(uint64_t seed, int rank, int64_t i) {
    uint64_t h = hash(seed * 64 + (uint64_t)rank, (uint64_t)i);
    float u = (float)((double)(h >> 11) * 0x1p-52 - 1);
    switch (h % 8) {
    case 0: return -0.0f;
    case 1: return 0.0f;
    case 2: return from_bits((uint32_t)(h >> 9 & 0x807fffff));
    case 3: return 1e30f * u;
    case 4: return 1e-30f * u;
    case 5: return rank % 2 ? 3e29f : -3e29f;
    default: return u;
    }
}

static float rounded(float x, DType dtype) { return dtype == BF16 ? rt_bf16_to_f32(rt_f32_to_bf16(x)) : x; }

typedef float Order(uint64_t seed, const int *rank, int m, int64_t i, DType dtype);

static float tree(uint64_t seed, const int *rank, int m, int64_t i, DType dtype) {
    if (m == 1) return rounded(value(seed, rank[0], i), dtype);
    int left = (int)tree_split(m);
    return rounded(tree(seed, rank, left, i, dtype) + tree(seed, rank + left, m - left, i, dtype), dtype);
}

static float chain(uint64_t seed, const int *rank, int m, int64_t i, DType dtype) {
    float sum = rounded(value(seed, rank[0], i), dtype);
    for (int j = 1; j < m; j++) sum = rounded(sum + rounded(value(seed, rank[j], i), dtype), dtype);
    return sum;
}

// Halving with falling distance: (0 + 2) + (1 + 3).
static float far_first(uint64_t seed, const int *rank, int m, int64_t i, DType dtype) {
    int mixed[MOST_RANKS];
    for (int j = 0; j < m; j++) mixed[rt_comm_piece(j, m)] = rank[j];
    return tree(seed, mixed, m, i, dtype);
}

static int64_t whole(uint64_t seed, int rank, int64_t i) {
    return (int64_t)hash(seed * 64 + (uint64_t)rank, (uint64_t)i) >> 8;
}

static void element(void *at, DType dtype, uint64_t seed, int rank, int64_t i) {
    if (dtype_is_float(dtype)) {
        float x = value(seed, rank, i);
        uint16_t half = rt_f32_to_bf16(x);
        memcpy(at, dtype == F32 ? (void *)&x : (void *)&half, dtype == F32 ? 4 : 2);
    } else {
        int64_t bits = whole(seed, rank, i);
        memcpy(at, &bits, (size_t)dtype_bytes(dtype));
    }
}

// ---- one collective, made from a seed on all ranks alike, and what must come of it ----------------------

enum { MOST_SLOTS = 3, GUARD = 64 };

typedef struct {
    RtCommOp op;
    uint64_t seed;
    int      rank[MOST_RANKS], m, i, slots;          // all ranks of its group
    int64_t  cut[MOST_RANKS + 1], buf_bytes;
    RtCommPart send[MOST_RANKS * MOST_SLOTS], recv[MOST_RANKS * MOST_SLOTS];
    char    *buf, *scratch, *out, *in;
    int      ticket;
} Job;

static bool has_parts(RtCommKind k) { return k == RT_COMM_ROWS || k == RT_COMM_BACK || k == RT_COMM_MOVE || k == RT_COMM_FEW; }
static bool halves(RtCommKind k) { return k == RT_COMM_TREE_SCATTER || k == RT_COMM_TREE_GATHER; }
static bool has_cut(RtCommKind k) { return halves(k) || k == RT_COMM_GATHER; }
static bool is_tree(RtCommKind k) { return halves(k) || k == RT_COMM_TREE_REDUCE; }

// Bytes from i to j for a slot: even, all to one, none, to oneself, or very unequal.
static int64_t part_bytes(const Job *job, int i, int j, int slot) {
    uint64_t h = hash(hash(job->seed, (uint64_t)(i * 8 + j)), (uint64_t)slot);
    int64_t n = job->op.n;
    switch (job->seed % 5) {
    case 0: return n;
    case 1: return j == (int)(job->seed / 5 % (uint64_t)job->m) ? n : 0;
    case 2: return job->seed % 2 && i == 0 ? n : 0;
    case 3: return i == j ? n : (int64_t)(h % 2);
    default: return h % 4 ? (int64_t)(h >> 8) & (n >> (h % 16)) : n;
    }
}

static char row_byte(const Job *job, int part, int from, int to, int64_t b) {
    return (char)whole(job->seed + (uint64_t)(part % job->slots) * 1000, from * 8 + to, b);
}

// Do what two ranks have for each other go when all else has?
static bool goes_later(const Job *job, int j) { return job->seed / 11 % 2 && (job->i ^ j) & 1; }

static void fill_parts(Job *job, Rank *r) {
    int64_t out = 0, in = 0;
    job->slots = 1 + (int)(job->seed / 7 % MOST_SLOTS);
    for (int k = 0; k < 2 * job->m; k++)
        for (int s = 0, j = k % job->m; s < job->slots; s++) {
            if (goes_later(job, j) != (k >= job->m)) continue;
            job->op.send_later += k >= job->m;
            job->op.recv_later += k >= job->m;
            job->send[job->op.n_send++] = (RtCommPart){NULL, part_bytes(job, job->i, j, s), j};
            job->recv[job->op.n_recv++] = (RtCommPart){NULL, part_bytes(job, j, job->i, s), j};
            out += part_bytes(job, job->i, j, s);
            in += part_bytes(job, j, job->i, s);
        }
    job->out = malloc((size_t)out + GUARD);
    job->in = malloc((size_t)in + GUARD);
    memset(job->in, 0xa5, (size_t)in + GUARD);
    job->buf_bytes = in;
    char *from = job->out, *to = job->in;
    for (int p = 0; p < job->op.n_send; p++) {
        RtCommPart *send = &job->send[p], *recv = &job->recv[p];
        send->at = from;
        recv->at = to;
        for (int64_t b = 0; b < send->bytes; b++)
            from[b] = row_byte(job, p, r->rank, job->rank[send->peer], b);
        from += send->bytes;
        to += recv->bytes;
    }
    job->op.send = job->send;
    job->op.recv = job->recv;
    job->op.n = 0;
}

static void make_cut(Job *job) {
    int64_t n = job->op.n;
    if (job->seed % 3) rt_comm_cut(n, job->seed % 3 == 1 ? 4096 : 1, rt_is_power_of_two(job->m) ? job->m : 1, job->cut);
    if (job->seed % 3 && rt_is_power_of_two(job->m)) return;
    job->cut[0] = 0;
    for (int j = 1; j <= job->m; j++) {
        int64_t left = n - job->cut[j - 1], some = (int64_t)(hash(job->seed, (uint64_t)j) % (uint64_t)(left + 1));
        job->cut[j] = j == job->m ? n : job->cut[j - 1] + some;
    }
}

// The elements of the buffer that this rank brings.
static void own_range(const Job *job, int i, int64_t *begin, int64_t *end) {
    int piece = job->op.kind == RT_COMM_TREE_GATHER ? rt_comm_piece(i, job->m) : i;
    *begin = 0;
    *end = job->op.n;
    if (job->op.kind == RT_COMM_COUNTS) {
        *begin = rt_comm_block(&job->op, job->m, i) * job->op.n;
        *end = *begin + job->op.n;
    } else if (job->op.kind == RT_COMM_GATHER || job->op.kind == RT_COMM_TREE_GATHER) {
        *begin = job->cut[piece];
        *end = job->cut[piece + 1];
    } else if (job->op.kind == RT_COMM_BCAST && i != job->op.root) {
        *end = 0;
    }
}

static void make(Job *job, Rank *r, RtCommKind kind, int group, const int *ranks, int64_t n, DType dtype,
                 uint64_t seed) {
    *job = (Job){.seed = seed, .m = rt_comm_group_ranks(r->c, group), .i = rt_comm_group_rank(r->c, group),
                 .op = {.kind = kind, .group = group, .n = n, .dtype = dtype,
                        .tag = {.node = (uint32_t)seed, .chunk = (uint32_t)(seed % 3), .where = "test_comm.c"}}};
    memcpy(job->rank, ranks, (size_t)job->m * sizeof *ranks);
    if (has_parts(kind)) {
        fill_parts(job, r);
        return;
    }
    job->op.root = (int)(seed % (uint64_t)job->m);
    if (kind == RT_COMM_COUNTS && seed / 2 % 2 && job->m % 2 == 0) job->op.per_node = seed / 4 % 2 ? job->m / 2 : 1;
    if (has_cut(kind)) {
        make_cut(job);
        job->op.cut = job->cut;
    }
    job->buf_bytes = n * dtype_bytes(dtype) * (kind == RT_COMM_COUNTS ? job->m : 1);
    job->op.buf = job->buf = malloc((size_t)job->buf_bytes + GUARD);
    job->op.scratch = job->scratch = malloc((size_t)rt_comm_scratch_bytes(kind, dtype, n, job->m));
    memset(job->buf, 0xa5, (size_t)job->buf_bytes + GUARD);
    int64_t begin, end;
    own_range(job, job->i, &begin, &end);
    for (int64_t i = begin; i < end; i++) element(job->buf + i * dtype_bytes(dtype), dtype, seed, r->rank, i);
}

static void start(Job *job, Rank *r) {
    long before = n_mallocs;
    works(r, rt_comm_start(r->c, &job->op, &job->ticket, &r->error));
    check(r, the_comm || n_mallocs == before);         // but MPI may
}

static bool sum_is(const Job *job, int64_t i, Order *order) {
    float want = order(job->seed, job->rank, job->m, i, job->op.dtype);
    if (job->op.dtype == F32) return memcmp(&want, (float *)job->buf + i, 4) == 0;
    return rt_f32_to_bf16(want) == ((uint16_t *)job->buf)[i];
}

static bool exact_is(const Job *job, int64_t i) {
    int64_t sum = 0;
    for (int j = 0; j < job->m; j++) sum = (int64_t)((uint64_t)sum + (uint64_t)whole(job->seed, job->rank[j], i));
    return job->op.dtype == I32 ? ((int32_t *)job->buf)[i] == (int32_t)sum : ((int64_t *)job->buf)[i] == sum;
}

static bool is_of(const Job *job, int64_t i, int rank) {
    char want[8];
    int bytes = dtype_bytes(job->op.dtype);
    element(want, job->op.dtype, job->seed, rank, i);
    return memcmp(want, job->buf + i * bytes, (size_t)bytes) == 0;
}

static bool parts_are_right(const Job *job, int rank) {
    for (int p = 0; p < job->op.n_recv; p++) {
        const RtCommPart *recv = &job->recv[p];
        int from = job->rank[recv->peer];
        for (int64_t b = 0; b < recv->bytes; b++)
            if (((char *)recv->at)[b] != row_byte(job, p, from, rank, b)) return false;
    }
    return true;
}

static bool is_guarded(const char *at, int64_t bytes) {
    for (int i = 0; i < GUARD; i++)
        if (at[bytes + i] != (char)0xa5) return false;
    return true;
}

// Of large results (in the long test: of very large ones) the ends, and one of some.
static int64_t next_checked(int64_t i, int64_t end) {
    return (is_long && end <= 1 << 18) || i % 4096 < 64 || end - i < 300 ? i + 1 : i + 13 < end ? i + 13 : end - 1;
}

static void check_result(Job *job, Rank *r) {
    const RtCommOp *op = &job->op;
    int64_t n = op->n, begin = 0, end = n, wrong = 0;
    int piece = rt_comm_piece(job->i, job->m);
    if (op->kind == RT_COMM_TREE_SCATTER) begin = job->cut[piece], end = job->cut[piece + 1];
    switch (op->kind) {
    case RT_COMM_TREE_REDUCE:
    case RT_COMM_TREE_SCATTER:
        for (int64_t i = begin; i < end; i = next_checked(i, end)) wrong += !sum_is(job, i, tree);
        break;
    case RT_COMM_EXACT:
        for (int64_t i = 0; i < n; i = next_checked(i, n)) wrong += !exact_is(job, i);
        break;
    case RT_COMM_BCAST:
        for (int64_t i = 0; i < n; i = next_checked(i, n)) wrong += !is_of(job, i, job->rank[op->root]);
        break;
    case RT_COMM_COUNTS:
    case RT_COMM_GATHER:
    case RT_COMM_TREE_GATHER:
        for (int j = 0; j < job->m; j++) {
            own_range(job, j, &begin, &end);
            for (int64_t i = begin; i < end; i = next_checked(i, end)) wrong += !is_of(job, i, job->rank[j]);
        }
        break;
    default:
        check(r, parts_are_right(job, r->rank));
        check(r, is_guarded(job->in, job->buf_bytes));
        return;
    }
    check(r, wrong == 0);
    check(r, is_guarded(job->buf, job->buf_bytes));
}

static void finish(Job *job, Rank *r) {
    long before = n_mallocs;
    works(r, rt_comm_done(r->c, job->ticket, &r->error));
    check(r, the_comm || n_mallocs == before);         // but MPI may
    if (!r->wrong[0]) check_result(job, r);
    free(job->buf);
    free(job->scratch);
    free(job->out);
    free(job->in);
}

static const int everyone[MOST_RANKS] = {0, 1, 2, 3, 4, 5, 6, 7};

static void do_one(Rank *r, RtCommKind kind, int64_t n, DType dtype, uint64_t seed) {
    Job job;
    make(&job, r, kind, 0, everyone, n, dtype, seed);
    start(&job, r);
    finish(&job, r);
}

static bool is_legal(RtCommKind kind, int m) { return !is_tree(kind) || rt_is_power_of_two(m); }

static DType some_dtype(RtCommKind kind, uint64_t seed) {
    static const DType any[] = {F32, BF16, I32, U8, I64};
    if (kind == RT_COMM_TREE_REDUCE || kind == RT_COMM_TREE_SCATTER) return seed % 2 ? BF16 : F32;
    if (kind == RT_COMM_EXACT || kind == RT_COMM_COUNTS) return seed % 2 ? I32 : I64;
    return any[seed % 5];
}

// ---- tests ----------------------------------------------------------------------------------------------

static void each_size_of(Rank *r) {
    static const int64_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 4096, 262143, 262144, 262145};
    for (int kind = 0; kind < RT_COMM_KINDS; kind++)
        for (int s = 0; s < 12 && is_legal(kind, r->ranks); s++)
            for (uint64_t seed = (uint64_t)s; seed < (uint64_t)s + (sizes[s] > 4096 ? 1 : is_long ? 6 : 4); seed++)
                do_one(r, kind, sizes[s], some_dtype(kind, seed), seed);
}

// More pieces than are on the way at once.
static void many_pieces_of(Rank *r) {
    enum { BYTES = 11 << 18 };
    if (r->ranks <= 3) do_one(r, RT_COMM_ROWS, BYTES, U8, 0);             // even
    do_one(r, RT_COMM_BACK, BYTES, U8, 1);                                // all to one
    do_one(r, RT_COMM_BCAST, BYTES, U8, 2);
    if (!rt_is_power_of_two(r->ranks)) return;
    do_one(r, RT_COMM_TREE_REDUCE, is_long ? 5 << 20 : BYTES, F32, 1);
    do_one(r, RT_COMM_TREE_SCATTER, BYTES, BF16, 1);
}

static void every_kind_and_size(void **state) { on_all(0, each_size_of); }
static void any_number_of_pieces(void **state) { on_all(0, many_pieces_of); }

static void tells_orders_apart(Rank *r) {
    if (!rt_is_power_of_two(r->ranks) || r->ranks < 4) return;
    for (int64_t n = 500; n <= 50000; n *= 100)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            int64_t chains = 0, far = 0;
            Job job;
            make(&job, r, RT_COMM_TREE_REDUCE, 0, everyone, n, bf16 ? BF16 : F32, 3);
            start(&job, r);
            works(r, rt_comm_done(r->c, job.ticket, &r->error));
            for (int64_t i = 0; i < n; i++) {
                chains += !sum_is(&job, i, chain);
                far += !sum_is(&job, i, far_first);
            }
            check(r, chains > n / 50 && far > n / 50);
            check_result(&job, r);
            free(job.buf);
            free(job.scratch);
        }
}

static void other_orders_have_other_bits(void **state) { on_all(0, tells_orders_apart); }

// Waits for jobs in an order of this rank's own.
static void finish_all(Job *job, int n, Rank *r, uint64_t seed) {
    int order[RT_COMM_OPEN];
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(hash(seed + (uint64_t)r->rank, (uint64_t)i) % (uint64_t)(i + 1)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (int i = 0; i < n; i++) finish(&job[order[i]], r);
}

static void opens_many(Rank *r) {
    Job *job = malloc(RT_COMM_OPEN * sizeof *job);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < RT_COMM_OPEN; i++) {
            RtCommKind kind = (RtCommKind)(hash(r->seed, (uint64_t)i) % RT_COMM_KINDS);
            if (!is_legal(kind, r->ranks)) kind = RT_COMM_ROWS;
            int64_t n = (int64_t)(hash(1, (uint64_t)i) % 20000);
            make(&job[i], r, kind, 0, everyone, n, some_dtype(kind, (uint64_t)i), (uint64_t)i);
            start(&job[i], r);
        }
        int ticket;
        check(r, rt_comm_start(r->c, &job[0].op, &ticket, &r->error) == RT_BAD_PLAN);
        r->error.code = RT_OK;
        finish_all(job, RT_COMM_OPEN, r, (uint64_t)round);
    }
    free(job);
}

static void many_are_open_at_once(void **state) { on_all(5, opens_many); }

// ---- groups, random programs ----------------------------------------------------------------------------

typedef struct { int number, m, rank[MOST_RANKS]; } Group;

static void add_group(Rank *r, Group *g, int *n, const int *ranks, int m) {
    Group *new = &g[(*n)++];
    new->m = m;
    memcpy(new->rank, ranks, (size_t)m * sizeof *ranks);
    works(r, rt_comm_group(r->c, ranks, m, &new->number, &r->error));
    check(r, rt_comm_group_ranks(r->c, new->number) == m && ranks[rt_comm_group_rank(r->c, new->number)] == r->rank);
}

enum { FAMILIES = 6 };

// All ranks; neighbours; the same place in each half; all but the last; all but the first; all, backwards.
static int open_groups(Rank *r, Group *g) {
    int n = 0, m = r->ranks, half = m / 2, last = m - 1, backwards[MOST_RANKS];
    int place = half ? r->rank % half : 0, pair[2] = {r->rank & ~1, r->rank | 1}, far[2] = {place, place + half};
    for (int i = 0; i < m; i++) backwards[i] = m - 1 - i;
    g[n++] = (Group){.m = m, .rank = {0, 1, 2, 3, 4, 5, 6, 7}};
    bool is_even = m % 2 == 0;
    add_group(r, g, &n, is_even ? pair : &r->rank, is_even ? 2 : 1);
    add_group(r, g, &n, is_even ? far : &r->rank, is_even ? 2 : 1);
    add_group(r, g, &n, m > 1 && r->rank < last ? everyone : &r->rank, m > 1 && r->rank < last ? m - 1 : 1);
    add_group(r, g, &n, m > 1 && r->rank > 0 ? everyone + 1 : &r->rank, m > 1 && r->rank > 0 ? m - 1 : 1);
    add_group(r, g, &n, backwards, m);
    return n;
}

static const Group *groups_of(Rank *r) {          // MPI: opened once
    static Group once[FAMILIES];
    if (the_comm && !once[0].m) open_groups(r, once);
    return once;
}

static void finish_one(Job *job, Rank *r) {
    finish(job, r);
    free(job);
}

// A program of collectives that all ranks make from one seed: starts and waits in turns, the waits in an order of
// each rank's own.
static void run_program(Rank *r, const Group *g, uint64_t seed) {
    enum { MOST_OPEN = 12 };
    Job *job[MOST_OPEN];
    int open = 0, steps = 10 + (int)(hash(seed, 1) % 30);
    for (int s = 0; s < steps; s++) {
        uint64_t h = hash(seed, (uint64_t)s + 100);
        int family = (int)(h % FAMILIES);
        RtCommKind kind = (RtCommKind)((h >> 8) % RT_COMM_KINDS);
        int64_t n = (int64_t)((h >> 16) % ((h >> 40) % 8 ? 500 : 40000));
        if (!is_legal(kind, g[family].m)) kind = RT_COMM_GATHER;
        if (open == MOST_OPEN || (open > 0 && (h >> 50) % 3 == 0)) {
            int which = (int)(hash(seed + (uint64_t)r->rank, h) % (uint64_t)open);
            finish_one(job[which], r);
            job[which] = job[--open];
        }
        job[open] = malloc(sizeof *job[open]);
        make(job[open], r, kind, g[family].number, g[family].rank, n, some_dtype(kind, h), h);
        start(job[open++], r);
        if (h >> 60 == 0) rt_comm_progress(r->c);
        if (r->wrong[0]) return;
    }
    while (open > 0) finish_one(job[--open], r);
}

static void runs_programs(Rank *r) {
    Group own[FAMILIES];
    const Group *g = the_comm ? groups_of(r) : own;
    if (!the_comm) open_groups(r, own);
    int programs = is_long ? 100 : 20;
    for (int p = 0; p < programs && !r->wrong[0]; p++) run_program(r, g, r->seed + (uint64_t)p);
}

static void random_programs(void **state) { on_all(1000, runs_programs); }

static void delays_change_nothing(void **state) {
    faults = (RtCommFaults){.seed = 9, .delay_ns = 300000};
    on_all(2000, runs_programs);
    on_all(6, opens_many);
    faults = (RtCommFaults){0};
}

// ---- what is counted ------------------------------------------------------------------------------------

static void add_counts(RtTraffic *to, const RtTraffic *from, int n) {
    for (int i = 0; i < n; i++) {
        to->messages += from[i].messages;
        to->bytes += from[i].bytes;
    }
}

static void equal_counts(Rank *r, RtTraffic is, RtTraffic was, RtTraffic want) {
    check(r, is.messages - was.messages == want.messages);
    check(r, is.bytes - was.bytes == want.bytes);
}

static void counts(Rank *r) {
    for (int kind = 0; kind < RT_COMM_KINDS; kind++) {
        if (!is_legal(kind, r->ranks)) continue;
        RtCommCounters before = rt_comm_counters(r->c);
        RtTraffic sent[RT_LINKS] = {{0}}, received[RT_LINKS] = {{0}};
        for (uint64_t seed = 0; seed < 6; seed++) {
            Job job;
            make(&job, r, kind, 0, everyone, seed % 2 ? 300000 : 700, some_dtype(kind, seed), seed);
            RtTraffic to[MOST_RANKS] = {{0}}, from[MOST_RANKS] = {{0}};
            RtCommOp sizes = job.op;                 // as the planner has it
            sizes.buf = sizes.scratch = NULL;
            rt_comm_traffic(&sizes, r->rank, r->ranks, to, from);
            for (int j = 0; j < r->ranks; j++) {
                RtLink link = rt_comm_node(r->c, j) == rt_comm_node(r->c, r->rank) ? RT_LINK_NODE : RT_LINK_NET;
                add_counts(&sent[link], &to[j], 1);
                add_counts(&received[link], &from[j], 1);
            }
            start(&job, r);
            finish(&job, r);
        }
        RtCommCounters after = rt_comm_counters(r->c);
        for (int link = 0; link < RT_LINKS; link++) {
            equal_counts(r, after.sent[kind][link], before.sent[kind][link], sent[link]);
            equal_counts(r, after.received[kind][link], before.received[kind][link], received[link]);
        }
        check(r, after.ops[kind] - before.ops[kind] == 6);
    }
}

static void counters_are_exact(void **state) { on_all(0, counts); }

// By hand: 1 Mi floats on 4 ranks are halves of 2 MiB and 1 MiB, there in pieces of 256 KiB, back in such of 512 KiB.
static void traffic_by_hand(void **state) {
    RtCommOp op = {.kind = RT_COMM_TREE_REDUCE, .dtype = F32, .n = 1 << 20};
    RtTraffic sent[4] = {{0}}, received[4] = {{0}};
    rt_comm_traffic(&op, 1, 4, sent, received);
    assert_int_equal(sent[0].messages, 8 + 4);
    assert_int_equal(sent[0].bytes, (2 << 20) + (2 << 20));
    assert_int_equal(sent[3].messages, 4 + 2);
    assert_int_equal(sent[3].bytes, (1 << 20) + (1 << 20));
    assert_int_equal(sent[1].bytes + sent[2].bytes + sent[1].messages + sent[2].messages, 0);
    assert_memory_equal(sent, received, sizeof sent);

    RtTraffic small[4] = {{0}};
    op.n = 10;                                       // all to all
    rt_comm_traffic(&op, 1, 4, small, received);
    for (int j = 0; j < 4; j++) {
        assert_int_equal(small[j].messages, j != 1);
        assert_int_equal(small[j].bytes, j == 1 ? 0 : 40);
    }
}

static void cuts_are_at_borders(void **state) {
    int64_t cut[9];
    rt_comm_cut(10 * 4096 + 5, 4096, 4, cut);
    assert_int_equal(cut[2], 5 * 4096);              // 5.0006 blocks is the middle
    assert_int_equal(cut[1], 2 * 4096);              // 2.5: the lower of two
    assert_int_equal(cut[3], 8 * 4096);              // 7.5006
    assert_int_equal(cut[4], 10 * 4096 + 5);
    rt_comm_cut(100, 4096, 8, cut);                  // a short tensor isn't cut
    for (int i = 0; i < 9; i++) assert_true(cut[i] == 0 || cut[i] == 100);
    rt_comm_cut(0, 4096, 8, cut);
    assert_int_equal(cut[8], 0);
    for (int i = 0; i < 8; i++) assert_int_equal(rt_comm_piece(rt_comm_piece(i, 8), 8), i);
    assert_int_equal(rt_comm_piece(1, 8), 4);
    assert_int_equal(rt_comm_piece(3, 4), 3);
}

// ---- rows by and by, shared memory, exact sums ----------------------------------------------------------

// Rows of one peer are ready while another is late: the last rank begins when rank 0 has told it so.
static void takes_rows_as_they_come(Rank *r) {
    int last = r->ranks - 1, told, ends[2] = {0, last}, ticket;
    if (last < 2) return;
    bool is_end = r->rank == 0 || r->rank == last;
    works(r, rt_comm_group(r->c, is_end ? ends : &r->rank, is_end ? 2 : 1, &told, &r->error));
    char in[MOST_RANKS] = {0}, out[MOST_RANKS], token = 1;
    RtCommPart send[MOST_RANKS], recv[MOST_RANKS], tell = {&token, 1, r->rank == 0};
    for (int j = 0; j < r->ranks; j++) {
        out[j] = (char)(10 * r->rank + j);
        send[j] = (RtCommPart){&out[j], 1, j};
        recv[j] = (RtCommPart){&in[j], 1, j};
    }
    RtCommOp rows = {.kind = RT_COMM_ROWS, .send = send, .recv = recv, .n_send = r->ranks, .n_recv = r->ranks};
    RtCommOp move = {.kind = RT_COMM_MOVE, .group = told};
    if (r->rank == 0) move.send = &tell, move.n_send = 1;
    if (r->rank == last) {
        move.recv = &tell, move.n_recv = 1;
        works(r, rt_comm_run(r->c, &move, &r->error));
    }
    works(r, rt_comm_start(r->c, &rows, &ticket, &r->error));
    if (r->rank == 0) {
        for (int j = 0; j < last;) {
            rt_comm_progress(r->c);
            if (rt_comm_ready(r->c, ticket, j)) j++;
        }
        works(r, rt_comm_done_parts(r->c, ticket, r->ranks, last, &r->error));
        check(r, !rt_comm_ready(r->c, ticket, last));
        works(r, rt_comm_run(r->c, &move, &r->error));
    }
    works(r, rt_comm_done(r->c, ticket, &r->error));
    for (int j = 0; j < r->ranks; j++) check(r, in[j] == (char)(10 * j + r->rank));
}

static void rows_are_ready_one_by_one(void **state) { on_all(0, takes_rows_as_they_come); }

static void shares(Rank *r) {
    for (int round = 1; round < 3; round++) {
        void *at[MOST_RANKS];
        works(r, rt_comm_shared(r->c, 1000, true, at, &r->error));
        for (int j = 0; j < r->ranks; j++)
            check(r, (at[j] != NULL) == (rt_comm_node(r->c, j) == rt_comm_node(r->c, r->rank)));
        char *own = at[r->rank];
        check(r, (uintptr_t)own % 64 == 0 && own[0] == 0 && own[999] == 0);
        memset(own, r->rank + round, 1000);
        do_one(r, RT_COMM_EXACT, 1, I64, 1);             // all have written
        for (int j = 0; j < r->ranks; j++)
            check(r, !at[j] || (((char *)at[j])[0] == j + round && ((char *)at[j])[999] == j + round));
        do_one(r, RT_COMM_EXACT, 1, I64, 1);
    }
}

static void ranks_of_a_node_share_memory(void **state) { on_all(0, shares); }

static void sums_exactly(Rank *r) {
    enum { N = 4000 };
    RtExact own = {0}, all = {0};
    for (int i = 0; i < N; i++) {
        double x = ldexp((double)value(4, 0, i), i % 50);
        rt_exact_add(&all, x);
        if (i % r->ranks == r->rank) rt_exact_add(&own, x);
    }
    int64_t scratch[RT_EXACT_WORDS * MOST_RANKS];
    RtCommOp op = {.kind = RT_COMM_EXACT, .dtype = I64, .n = RT_EXACT_WORDS, .buf = &own, .scratch = scratch};
    works(r, rt_comm_run(r->c, &op, &r->error));
    double is = rt_exact_value(&own), want = rt_exact_value(&all);
    check(r, memcmp(&is, &want, sizeof is) == 0 && want != 0);
}

static void scalars_know_no_layout(void **state) { on_all(0, sums_exactly); }

// ---- what can't be run ----------------------------------------------------------------------------------

static void says(Rank *r, const char *words) {
    note(r, strstr(r->error.text, words) != NULL, r->error.text, __LINE__);
}

static void refuses(Rank *r, RtCommOp op, const char *words) {
    int ticket;
    check(r, rt_comm_start(r->c, &op, &ticket, &r->error) == RT_BAD_PLAN);
    says(r, words);
    r->error.code = RT_OK;
}

static void refuses_ops(Rank *r) {
    float x[8] = {0};
    int64_t falling[] = {0, 3, 2, 4, 4, 4, 4, 4, 4}, cut[] = {0, 4, 4, 4, 4, 4, 4, 4, 4};
    RtCommPart to_nobody = {x, 4, r->ranks}, both[] = {{x, 4, r->ranks - 1}, {x, 4, 0}}, own = {x, 4, r->rank};
    RtCommOp sum = {.kind = RT_COMM_TREE_REDUCE, .dtype = F32, .n = 4, .buf = x, .scratch = x}, of_integers = sum,
             with_cut = sum, without_scratch = sum;
    of_integers.dtype = I32;
    with_cut.cut = cut;
    without_scratch.scratch = NULL;
    refuses(r, (RtCommOp){.kind = RT_COMM_BCAST, .group = 77}, "there is no group 77");
    refuses(r, (RtCommOp){.kind = RT_COMM_BCAST, .dtype = F32, .n = 3}, "without a buffer");
    refuses(r, (RtCommOp){.kind = RT_COMM_BCAST, .dtype = F32, .n = 1, .buf = x, .root = r->ranks}, "bcast from rank");
    refuses(r, (RtCommOp){.kind = RT_COMM_EXACT, .dtype = F32, .n = 1, .buf = x, .scratch = x}, "does not sum f32");
    refuses(r, (RtCommOp){.kind = RT_COMM_ROWS, .send = &to_nobody, .n_send = 1}, "send[0] is 4 bytes, peer");
    refuses(r, (RtCommOp){.kind = RT_COMM_BACK, .send = &own, .n_send = 1}, "sends itself");
    if (!rt_is_power_of_two(r->ranks)) {
        refuses(r, sum, "1, 2, 4, 8");
        return;
    }
    refuses(r, of_integers, "does not sum i32");
    refuses(r, with_cut, "has no cuts");
    if (r->ranks == 1) return;
    refuses(r, without_scratch, "without scratch");
    refuses(r, (RtCommOp){.kind = RT_COMM_ROWS, .recv = both, .n_recv = 2}, "recv are not in the order");
    refuses(r, (RtCommOp){.kind = RT_COMM_GATHER, .dtype = F32, .n = 4, .buf = x, .cut = falling}, "ascend");
}

static void bad_ops_are_refused(void **state) { on_all(0, refuses_ops); }

// ---- do all run the same? -------------------------------------------------------------------------------

static void facts(Rank *r) {
    RtCommFact fact[] = {{"plan", 7}, {"number of lanes", 8}, {"data", 9}};
    works(r, rt_comm_same(r->c, fact, 3, &r->error));
    if (r->ranks < 3) return;
    fact[1].value += r->rank == 1;
    fact[2].value += r->rank == 2;
    check(r, rt_comm_same(r->c, fact, 3, &r->error) == RT_COMM);
    const char *others = r->ranks == 3 ? "rank 0, 2: 0000000000000008"
                       : r->ranks == 4 ? "rank 0, 2, 3: 0000000000000008" : "rank 0, 2-7: 0000000000000008";
    says(r, "differ in number of lanes");
    says(r, "rank 1: 0000000000000009");
    says(r, others);
}

static void facts_that_differ_are_named(void **state) { on_all(0, facts); }

// The step's message: true sums of the check words of all ranks.
static RtStatus check_step(Rank *r) {
    int64_t word[RT_CHECK_WORDS], scratch[RT_CHECK_WORDS * MOST_RANKS];
    rt_comm_check_words(r->c, word);
    RtCommOp op = {.kind = RT_COMM_EXACT, .dtype = I64, .n = RT_CHECK_WORDS, .buf = word, .scratch = scratch};
    works(r, rt_comm_run(r->c, &op, &r->error));
    return rt_comm_check(r->c, word, &r->error);
}

// Rank 2 has other rows, where there is nothing to send and so nothing that could be noticed.
static void differs_in_silence(Rank *r) {
    works(r, check_step(r));
    rt_comm_step(r->c, 17);
    for (uint32_t node = 1; node < 40; node++) {
        bool other = node == 20 && r->rank == 2;
        RtCommOp op = {.kind = other ? RT_COMM_BACK : RT_COMM_ROWS,
                       .tag = {.node = node + other, .where = "layer 5, m.moe:31"}};
        works(r, rt_comm_run(r->c, &op, &r->error));
    }
    if (r->ranks < 3) {
        works(r, check_step(r));
        return;
    }
    check(r, check_step(r) == RT_COMM);
    says(r, "step 17: the ranks don't run the same program");
    says(r, "rank 2: back (layer 5, m.moe:31; node 21; #");
    says(r, ": rows (layer 5, m.moe:31; node 20; #");
    r->error.code = RT_OK;
}

static void a_steps_hash_finds_what_no_message_shows(void **state) { on_all(0, differs_in_silence); }

// ---- what goes wrong ------------------------------------------------------------------------------------
// Each of these ends the run for all ranks; under MPI each is a job of its own.

static void ends(Rank *r, RtStatus s) {
    if (s == RT_OK) return;
    if (the_comm) fprintf(stderr, "%s\n", r->error.text);
    rt_comm_abort(r->c, &r->error);
}

static RtStatus reduce(Rank *r, uint32_t node, int64_t n) {
    static float buf[MOST_RANKS][5000], scratch[MOST_RANKS][5000 * 8];
    RtCommOp op = {.kind = RT_COMM_TREE_REDUCE, .dtype = F32, .n = n, .buf = buf[r->rank], .scratch = scratch[r->rank],
                   .tag = {.node = node, .where = "layer 3, m.moe:12"}};
    return rt_comm_run(r->c, &op, &r->error);
}

static void one_differs(Rank *r) {
    RtStatus s = reduce(r, 1, 100);
    if (s == RT_OK) s = reduce(r, r->rank == 1 ? 3 : 2, 100);
    if (s == RT_OK) s = reduce(r, 4, 100);
    ends(r, s);
}

static void one_has_another_size(Rank *r) {
    RtStatus s = reduce(r, 1, r->rank == 1 ? 5000 : 4999);
    ends(r, s == RT_OK ? reduce(r, 2, 1) : s);
}

static void rows_differ(Rank *r) {
    char bytes[64] = {0};
    RtCommPart to = {bytes, r->rank == 0 ? 40 : 0, 1}, from = {bytes, r->rank == 1 ? 32 : 0, 0};
    RtCommOp op = {.kind = RT_COMM_ROWS, .send = &to, .n_send = r->rank == 0, .recv = &from, .n_recv = r->rank == 1,
                   .tag = {.node = 8, .where = "layer 3, m.moe:12"}};
    RtStatus s = rt_comm_run(r->c, &op, &r->error);
    ends(r, s == RT_OK ? reduce(r, 9, 4) : s);
}

static void one_is_absent(Rank *r) {
    RtStatus s = reduce(r, 1, 4999);
    if (s == RT_OK && r->rank == 1) usleep(the_comm ? 60000000 : 1200000);
    if (s == RT_OK) s = reduce(r, 2, 4999);
    ends(r, s);
}

static void one_aborts(Rank *r) {
    if (r->rank == 1) {
        ends(r, rt_fail(&r->error, RT_IO, "the disk of rank 1 is full"));
    } else {
        ends(r, reduce(r, 1, 4999));
    }
}

typedef struct { const char *name; Body *body; RtStatus status; const char *words[4]; } Trouble;

#define REDUCE "tree_reduce (layer 3, m.moe:12; node "

static const Trouble troubles[] = {
    {"differs", one_differs, RT_COMM,
     {"the ranks don't run the same program", REDUCE "2; #2 of group 0)", REDUCE "3; #2 of group 0)"}},
    {"size", one_has_another_size, RT_COMM, {REDUCE "1; #1 of group 0)", "of another size"}},
    {"rows", rows_differ, RT_COMM,
     {"rank 1", "rows (layer 3, m.moe:12; node 8; #1 of group 0)", "rank 0 sent more than 32 bytes where 32 are due"}},
    {"absent", one_is_absent, RT_TIMEOUT,
     {"nothing moved for 0.5 s", "bytes from rank",
      "last completed " REDUCE "1; #1 of group 0), waits for " REDUCE "2; #2",
      "rank 1: last completed " REDUCE "1; #1 of group 0), computes"}},
    {"lost", one_is_absent, RT_TIMEOUT, {"nothing moved for 0.5 s", "bytes from rank", "waits for " REDUCE "1; #1"}},
    {"aborts", one_aborts, RT_IO, {"the disk of rank 1 is full"}},
};

static void run_trouble(const Trouble *trouble, int n) {
    RtLocalWorld *world;
    Rank rank[MOST_RANKS] = {{0}};
    pthread_t thread[MOST_RANKS];
    RtCommFaults lose = {.lose = 2};
    assert_int_equal(rt_local_open(n, 0, &world, NULL), RT_OK);
    for (int i = 0; i < n; i++) {
        bool loses = i == 0 && strcmp(trouble->name, "lost") == 0;
        RtCommConfig config = {.world = world, .rank = i, .silence_ns = 500000000, .faults = loses ? &lose : NULL};
        rank[i] = (Rank){.rank = i, .ranks = n, .body = trouble->body, .config = config};
        assert_int_equal(pthread_create(&thread[i], NULL, live, &rank[i]), 0);
    }
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    rt_local_close(world);
    int told = 0;
    for (int i = 0; i < n; i++) {
        told += rank[i].error.code == trouble->status;
        assert_string_equal(rank[i].wrong, "");
        for (int w = 0; w < 4 && trouble->words[w]; w++)
            if (rank[i].error.code != RT_OK && !strstr(rank[i].error.text, trouble->words[w]))
                fail_msg("%s: rank %d says: %s\nwithout: %s", trouble->name, i, rank[i].error.text, trouble->words[w]);
    }
    assert_true(told >= n - 1);                      // the absent one comes when all is over
}

static void troubles_are_told_to_all(void **state) {
    for (size_t t = 0; t < sizeof troubles / sizeof *troubles; t++)
        for (int n = 2; n <= 4; n *= 2) run_trouble(&troubles[t], n);
}

// Rank 1 is later than the bound, but not than is expected.
static void is_slow(Rank *r) {
    char byte = 1;
    if (r->rank == 1) usleep(1200000);
    RtCommOp op = {.kind = RT_COMM_BCAST, .dtype = U8, .n = 1, .buf = &byte, .root = 1, .expected_ns = 300000000};
    works(r, rt_comm_run(r->c, &op, &r->error));
}

static void a_predicted_time_lengthens_the_bound(void **state) {
    run_threads(2, (RtCommConfig){.silence_ns = 500000000}, 0, is_slow);
}

// All of the process stands still for twice the bound: nobody was silent.
static void is_stopped_for_a_while(Rank *r) {
    if (r->rank == 1) {
        pid_t parent = getpid(), child = fork();
        if (child == 0) {
            usleep(1000000);
            kill(parent, SIGCONT);
            _exit(0);
        }
        raise(SIGSTOP);
        waitpid(child, NULL, 0);
    }
    works(r, reduce(r, 1, 4999));
}

static void a_stopped_process_goes_on(void **state) {
    run_threads(2, (RtCommConfig){.silence_ns = 500000000}, 0, is_stopped_for_a_while);
}

// Under mpirun: the job is to end by itself, with these words.
static int end_in_trouble(const char *name) {
    for (size_t t = 0; t < sizeof troubles / sizeof *troubles; t++) {
        if (strcmp(name, troubles[t].name) != 0) continue;
        Rank r = {.c = the_comm, .rank = rt_comm_rank(the_comm), .ranks = rt_comm_ranks(the_comm)};
        rt_comm_silence(r.c, 500000000);
        if (strcmp(name, "lost") == 0 && r.rank == 0) faults.lose = 2;
        troubles[t].body(&r);
        return 3;                                    // nothing was noticed
    }
    return 2;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steps_hash_finds_what_no_message_shows),      // others don't run the same on all ranks
        cmocka_unit_test(every_kind_and_size),
        cmocka_unit_test(any_number_of_pieces),
        cmocka_unit_test(other_orders_have_other_bits),
        cmocka_unit_test(many_are_open_at_once),
        cmocka_unit_test(random_programs),
        cmocka_unit_test(delays_change_nothing),
        cmocka_unit_test(counters_are_exact),
        cmocka_unit_test(rows_are_ready_one_by_one),
        cmocka_unit_test(ranks_of_a_node_share_memory),
        cmocka_unit_test(scalars_know_no_layout),
        cmocka_unit_test(bad_ops_are_refused),
        cmocka_unit_test(facts_that_differ_are_named),
    };
    const struct CMUnitTest of_one_process[] = {
        cmocka_unit_test(traffic_by_hand),
        cmocka_unit_test(cuts_are_at_borders),
        cmocka_unit_test(troubles_are_told_to_all),
        cmocka_unit_test(a_predicted_time_lengthens_the_bound),
        cmocka_unit_test(a_stopped_process_goes_on),
    };
    bool is_mpi = argc > 1 && strcmp(argv[1], "mpi") == 0;
    is_long = argc > 1 && strcmp(argv[argc - 1], "long") == 0;
    if (is_mpi) {
        RtError e;
        if (rt_comm_open(&(RtCommConfig){.faults = &faults}, &the_comm, &e) != RT_OK) {
            fprintf(stderr, "%s\n", e.text);
            return 77;
        }
        if (argc > 2 && !is_long) return end_in_trouble(argv[2]);
        if (rt_comm_rank(the_comm) > 0) freopen("/dev/null", "w", stdout);
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rt_comm_close(the_comm);
    return is_mpi ? failed : failed + cmocka_run_group_tests(of_one_process, NULL, NULL);
}
