#include "frontend/cmd_ranks.h"

#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd_machine.h"
#include "frontend/cmd_mesh.h"
#include "ir/base/debug.h"
#include "runtime/trace.h"

enum { MOST_LOCAL = 256 };

int ranks_pretended_nodes(Arena *a) {
    const char *text = debug_arg(a, DEBUG_nodes);
    int n = text ? atoi(text) : 0;
    return n > 0 ? n : 0;
}

// Rates measured on different hosts differ, and with them what passes choose.
static bool share_machine(Cli *c, Ranks *r) {
    Session s = {.cli = c, .arena = c->arena, .diag = c->diag};
    bool first = r->world.rank == 0;
    const Machine *own = first && ranks_threads(&s, r, &r->threads) ? machine_open(c, cli_flag(c, "trace")) : NULL;
    int64_t known = own ? r->threads + 1 : 0;
    Machine *m = arena_new(c->arena, Machine);
    if (own) *m = *own;
    RtError e = {0};
    RtStatus status = rt_from_first(r->among, &known, sizeof known, &e);
    if (status == RT_OK && known) status = rt_from_first(r->among, m, sizeof *m, &e);
    if (status != RT_OK) diag_error(c->diag, (Span){0}, "%s", e.text);
    r->machine = m;
    r->threads = (int)known - 1;
    return status == RT_OK && known;
}

bool ranks_open(Cli *c, Ranks *r) {
    *r = (Ranks){.n = 1};
    const char *local = cli_value(c, "local");
    int world = rt_comm_world_size();
    if (local) {
        char *end;
        long n = strtol(local, &end, 10);
        r->n = (int)n;
        r->local = true;
        r->node_ranks = ranks_pretended_nodes(c->arena);
        if (*end || n < 1 || n > MOST_LOCAL)
            diag_error(c->diag, (Span){0}, "--local is a number of ranks from 1 to %d, not '%s'", MOST_LOCAL, local);
        else if (world > 1)
            diag_error(c->diag, (Span){0}, "mpirun started %d processes, so --local %s is one too much", world, local);
        return diag_n_errors(c->diag) == 0;
    }
    if (world == 1) return true;
    RtError e = {0};
    if (rt_comm_open(&(RtCommConfig){0}, &r->comm, &e) != RT_OK) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        return false;
    }
    r->n = rt_comm_ranks(r->comm);
    r->world = (RtRanks){.comm = r->comm, .rank = rt_comm_rank(r->comm), .n = r->n};
    r->among = &r->world;
    return share_machine(c, r);
}

void ranks_close(Ranks *r) {
    rt_comm_close(r->comm);
    r->comm = NULL;
}

// ---- how ranks share the work -------------------------------------------------------------------------------

#define WRONG(...) (diag_error(s->diag, (Span){0}, __VA_ARGS__), false)

// What plans know of, and this runtime doesn't.
static bool can_run(Session *s, const Settings *t) {
    const Words *order = &t->parallel.order;
    if (t->parallel.pp > 1)
        return WRONG("parallel.pp is %lld: this version has no pipelines, every rank has all layers",
                     (long long)t->parallel.pp);
    if (!strcmp(t->parallel.a2a, "node") && t->parallel.chunks > 1)
        return WRONG("parallel.chunks is %lld, but rows that go by nodes (parallel.a2a is node) do so in one: chunks are of flat or auto",
                     (long long)t->parallel.chunks);
    if (!strcmp(t->parallel.progress, "thread"))
        return WRONG("parallel.progress is thread: this version moves messages between tasks (calls)");
    if (t->parallel.bound)
        return WRONG("parallel.bound is %g: on a CPU there is room for all rows; moec plan counts with it", t->parallel.bound);
    if (t->parallel.rebalance_groups > 1 && t->parallel.replicas)
        return WRONG("parallel.rebalance_groups is %lld: replicas (parallel.replicas) serve ranks of all nodes, so no group of experts stays on one",
                     (long long)t->parallel.rebalance_groups);
    if (t->parallel.rebalance_groups > 1 && t->parallel.rebalance.value == 0)
        return WRONG("parallel.rebalance_groups is %lld, but parallel.rebalance is %s: no expert moves between nodes",
                     (long long)t->parallel.rebalance_groups, t->parallel.rebalance.unit ? "0" : "none");
    if (order->n && strcmp(order->at[0], "ep") != 0)
        return WRONG("parallel.order begins with %s: in this version neighbours share matrices, then experts", order->at[0]);
    return true;
}

static bool shape_mesh(Session *s, const Settings *t, const Ranks *r, RtMesh *out) {
    if (!can_run(s, t) || !mesh_shape(s->diag, t, r->n, out)) return false;
    if (t->parallel.rebalance.value > 0 && rt_expert_ranks(*out) == 1)
        return WRONG("parallel.rebalance: with parallel.ep = 1 every rank has all experts, there is nothing to move");
    return true;
}

// ---- the way between nodes ----------------------------------------------------------------------------------

// Seconds in which `there` bytes go from rank 0 to rank `other` and one comes back, on rank 0.
static RtStatus ping(const Ranks *r, int other, char *data, int64_t there, double *seconds, RtError *e) {
    RtCommPart first = {data, there, other}, second = {data, 1, other};
    int rank = r->world.rank;
    int64_t begin_ns = rt_now_ns();
    for (int way = 0; way < 2; way++) {
        RtCommOp op = {.kind = RT_COMM_MOVE, .dtype = U8};
        RtCommPart *part = way ? &second : &first;
        if (rank == other) part->peer = 0;
        if (rank == (way ? other : 0)) op.send = part, op.n_send = 1;
        if (rank == (way ? 0 : other)) op.recv = part, op.n_recv = 1;
        RT_TRY(rt_comm_run(r->comm, &op, e));
    }
    *seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
    return RT_OK;
}

// What TCP costs a core for each byte that it sends or receives.
static const double cpu_a_byte = 3e-10;
enum { PINGS = 5, PING_BYTES = 2 << 20 };

static RtStatus measure_link(const Ranks *r, int other, MachineLink *link, RtError *e) {
    char *data = calloc(1, PING_BYTES);
    if (!data) return rt_fail(e, RT_NO_MEMORY, "no memory to measure the way between nodes");
    double latency = 1, seconds = 1, now = 0;
    RtStatus s = RT_OK;
    for (int i = 0; i < 2 * PINGS && s == RT_OK; i++) {
        s = ping(r, other, data, i < PINGS ? 1 : PING_BYTES, &now, e);
        double *best = i < PINGS ? &latency : &seconds;
        if (now < *best) *best = now;
    }
    free(data);
    double wire = seconds - latency > 1e-9 ? seconds - latency : 1e-9;
    *link = (MachineLink){.rate = PING_BYTES / wire, .latency = latency / 2, .message = latency / 4, .cpu = cpu_a_byte};
    return s == RT_OK ? rt_from_first(r->among, link, sizeof *link, e) : s;
}

// Between the first rank and the first of another node; all take the first rank's word, so that all make one plan.
bool ranks_find_link(Ranks *r, Diag *d) {
    int other = 0;
    RtError e = {0};
    while (r->comm && other < r->n && rt_comm_node(r->comm, other) == rt_comm_node(r->comm, 0)) other++;
    if (!r->comm || other == r->n) return true;
    if (measure_link(r, other, &r->link, &e) == RT_OK) return true;
    diag_error(d, (Span){0}, "%s", e.text);
    return false;
}

// ---- nodes --------------------------------------------------------------------------------------------------

static int node_of(const Ranks *r, int rank) {
    return r->comm ? rt_comm_node(r->comm, rank) : r->node_ranks ? rank / r->node_ranks : 0;
}

int ranks_per_node(const Ranks *r, RtMesh m) {
    int per_node = 1, n = rt_expert_ranks(m);
    const RtGroup g = RT_GROUP_EXP;
    while (per_node < n && node_of(r, rt_group_member(m, g, 0, per_node)) == node_of(r, 0)) per_node++;
    for (int rank = 0; rank < rt_mesh_ranks(m) && n % per_node == 0; rank++)
        for (int k = 0; k < n; k++) {
            bool same = node_of(r, rt_group_member(m, g, rank, k)) == node_of(r, rank);
            if (same != (k / per_node == rt_group_rank(m, g, rank) / per_node)) return 0;
        }
    return n % per_node ? 0 : per_node;
}

static bool find_nodes(Session *s, const Ranks *r, RtMesh m) {
    int per_node = ranks_per_node(r, m);
    if (per_node != rt_expert_ranks(m)) s->train.link = r->link;          // else rows stay on their node
    s->train.per_node = per_node < rt_expert_ranks(m) ? per_node : 0;
    if (per_node || strcmp(s->settings->parallel.a2a, "node") != 0) return true;
    return WRONG("parallel.a2a is node: the %d ranks that share experts (parallel.ep) must be neighbours, as many on each node",
                 rt_expert_ranks(m));
}

// By what passes of all ranks choose.
static bool set_first(Session *s, const Ranks *r) {
    int threads = r->threads;
    bool ok = r->machine || ranks_threads(s, r, &threads);
    s->first_machine = r->machine;
    s->train.threads = threads ? threads : omp_get_num_procs();
    return ok;
}

bool ranks_mesh(Session *s, const Ranks *r, RtMesh *out) {
    *out = (RtMesh){1, 1, 1, 0};
    if (!set_first(s, r)) return false;
    if (r->n == 1 && !r->local) return true;             // session_can_train has seen to it
    return shape_mesh(s, s->settings, r, out) && mesh_deals_lanes(s->diag, s->settings, *out, s->settings->train.lanes) &&
           find_nodes(s, r, *out);
}

static bool is_given(const Session *s, const char *key) {
    size_t n = strlen(key);
    for (int i = 0; i < s->cli->sets.n; i++) {
        const char *set = s->cli->sets.at[i];
        if (set_is_layout(set) && !strncmp(set + strlen("parallel."), key, n) && strchr("= ", set[strlen("parallel.") + n])) return true;
    }
    return false;
}

bool ranks_mesh_to_read(Session *s, const Ranks *r, bool has_lanes, RtMesh *out) {
    Settings t = *s->settings;
    if (!is_given(s, "ep")) t.parallel.ep = 1;
    if (!is_given(s, "tp")) t.parallel.tp = 1;
    if (!is_given(s, "pp")) t.parallel.pp = 1;
    if (!is_given(s, "dp")) t.parallel.dp = 0;
    if (!is_given(s, "etp")) t.parallel.etp = 0;
    if (!is_given(s, "order")) t.parallel.order.n = 0;
    if (!is_given(s, "rebalance")) t.parallel.rebalance = (Quantity){0};
    if (!is_given(s, "rebalance_groups")) t.parallel.rebalance_groups = 1;
    if (!is_given(s, "replicas")) t.parallel.replicas = 0;
    if (!has_lanes && mesh_etp(&t))
        return WRONG("parallel.etp is %d: where there are no lanes to share out, experts are cut and rows are whole", mesh_etp(&t));
    t.parallel.zero = 0;                                 // nothing is optimized
    *out = (RtMesh){1, 1, 1, 0};
    if (!set_first(s, r)) return false;
    if (r->n == 1 && !r->local) {
        if (t.parallel.replicas || t.parallel.rebalance.value > 0)
            return WRONG("parallel.%s: one rank has all experts", t.parallel.replicas ? "replicas" : "rebalance");
        return session_has_ranks(s, &t, 1);
    }
    return shape_mesh(s, &t, r, out) && (!has_lanes || mesh_deals_lanes(s->diag, &t, *out, t.train.lanes));
}

bool ranks_moves_to_read(Session *s, RtSettings *settings) {
    settings->placement = PLACEMENT_LINEAR;
    settings->rebalance = settings->rebalance_window = (RtQuantity){0, RT_NO_UNIT};
    settings->rebalance_groups = 1;
    settings->rebalance_gain = 1;
    for (int i = 0; i < s->cli->sets.n; i++) {
        const char *set = s->cli->sets.at[i];
        RtError e = {0};
        if (strncmp(set, "parallel.rebalance", 18) != 0 && strncmp(set, "parallel.placement", 18) != 0) continue;
        if (rt_settings_set(settings, set, &e) != RT_OK) return WRONG("--set %s: %s", set, e.text);
    }
    return true;
}

static int on_this_node(const Ranks *r) {
    if (!r->comm) return r->local ? r->n : 1;
    int n = 0, here = rt_comm_node(r->comm, r->world.rank);
    for (int i = 0; i < r->n; i++) n += rt_comm_node(r->comm, i) == here;
    return n;
}

bool ranks_threads(Session *s, const Ranks *r, int *out) {
    bool ok;
    int given = session_threads(s, &ok), cores = omp_get_num_procs();
    bool bound = cores < sysconf(_SC_NPROCESSORS_ONLN);       // by mpirun: these are this process's alone
    int all = given ? given : cores, shared_by = r->local ? r->n : given || bound ? 1 : on_this_node(r);
    *out = shared_by == 1 ? given : all > shared_by ? all / shared_by : 1;
    return ok;
}

// ---- together -----------------------------------------------------------------------------------------------

bool ranks_in_turn(Ranks *r, Diag *d, bool (*prepare)(void *self), void *self) {
    if (!r->among) return prepare(self);
    bool first = true;
    int here = rt_comm_node(r->comm, r->world.rank);
    for (int i = 0; i < r->world.rank; i++) first &= rt_comm_node(r->comm, i) != here;
    for (int turn = 0; turn < 2; turn++) {
        RtError e = {0};
        int failed;
        bool ok = turn == (first ? 0 : 1) ? prepare(self) : true;
        RtStatus s = rt_first_failed(r->among, ok ? RT_OK : RT_BAD_SETTING, &failed, &e);
        if (s == RT_OK && failed == r->n) continue;
        if (s != RT_OK) diag_error(d, (Span){0}, "%s", e.text);
        else if (failed != r->world.rank) diag_clear(d);
        return false;
    }
    return true;
}

typedef struct {
    Session *s;
    RtLocalWorld *world;
    RtComm  *comm;
    int      rank, threads;
    RanksRun *run;
    void    *self;
    RtStatus status;
    RtError  error;
} Rank;

// comm NULL: alone.
static RtStatus run_plan(Rank *r, RtComm *comm) {
    RtPlanInstance *p;
    RtRanks *ranks = NULL;
    RtStatus s = session_open_plan(r->s, r->threads, &p, &r->error);
    if (s == RT_OK && comm) s = rt_ranks_open(p, comm, &ranks, &r->error);
    if (s == RT_OK) s = r->run(r->self, p, &r->error);
    else if (comm) rt_comm_abort(comm, &r->error);
    rt_plan_close(p);
    rt_ranks_close(ranks);
    return s;
}

static void *run_rank(void *arg) {
    Rank *r = arg;
    RtComm *comm = r->comm;
    r->status = comm ? RT_OK : rt_comm_open(&(RtCommConfig){.world = r->world, .rank = r->rank}, &comm, &r->error);
    if (r->status == RT_OK) r->status = run_plan(r, comm);
    if (!r->comm) rt_comm_close(comm);
    return NULL;
}

// As threads, of which this one is the first rank.
static RtStatus run_local(const Ranks *r, Rank first, RtError *e) {
    Rank *rank = calloc((size_t)r->n, sizeof *rank);
    pthread_t *thread = calloc((size_t)r->n, sizeof *thread);
    RtStatus s = rank && thread ? rt_local_open(r->n, r->node_ranks, &first.world, e)
                                : rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", r->n);
    for (int i = 0; i < r->n && s == RT_OK; i++) {
        rank[i] = first;
        rank[i].rank = i;
        if (i && pthread_create(&thread[i], NULL, run_rank, &rank[i]) != 0) {
            fprintf(stderr, "moec: the system gives no thread for rank %d\n", i);
            exit(EXIT_WRONG);                            // the others wait for it
        }
    }
    if (s == RT_OK) run_rank(&rank[0]);
    for (int i = 1; i < r->n && s == RT_OK; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < r->n && s == RT_OK; i++) {
        s = rank[i].status;
        *e = rank[i].error;
    }
    rt_local_close(first.world);
    free(rank);
    free(thread);
    return s;
}

RtStatus ranks_run(Session *s, const Ranks *r, int threads, RanksRun *run, void *self, RtError *e) {
    Rank rank = {.s = s, .comm = r->comm, .threads = threads, .run = run, .self = self};
    if (r->local) return run_local(r, rank, e);
    if (r->comm) run_rank(&rank);
    else rank.status = run_plan(&rank, NULL);
    *e = rank.error;
    return rank.status;
}
