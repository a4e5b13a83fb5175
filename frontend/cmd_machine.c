// Measuring the machine: generated kernels (codegen/probe.h) on a team of our own threads, each with memory of its own.
//
// Other programs run meanwhile.  A run is short, thread time is what counts, and the best of several runs is taken: but
// where threads share something (a cache, memory) only runs in which all of them were at work all the time tell what they
// reach together, so runs that were interrupted are used only if there was no other.
//
// A first compile measures arithmetic alone, since that decides between instructions by factors (bf16 dot products run at
// half the rate of f32 on one machine and at twice on another); for bandwidths and the team typical numbers do until
// `bench machine` has measured all.
#include "frontend/cmd_machine.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "codegen/probe.h"
#include "frontend/cmd_session.h"
#include "frontend/machine_file.h"
#include "runtime/files.h"
#include "runtime/team.h"

static_assert((int)MACHINE_LEVELS <= (int)RT_LEVELS, "");

// ---- one measurement ----------------------------------------------------------------------------------------

typedef struct {
    _Alignas(64) double cpu, begin, end;                   // seconds of the last run
} Worker;

typedef struct {
    RtTeam *team;
    int     threads;
    Worker *worker;                                        // [threads]
    double  seconds;                                       // wanted of a run
    int     least, most;                                   // runs: until so many were not interrupted, at most
    char   *memory;                                        // of all threads, each its part of `part` bytes
    int64_t part;
    // the run
    const Probe *probe;
    int64_t counts[2];                                     // rounds, bytes
    int64_t from, window, at;                              // where in a part the source begins; runs of a round each are so far apart
} Lab;

static double clock_now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void work(void *arg, int thread) {
    Lab *lab = arg;
    Worker *w = &lab->worker[thread];
    char *part = lab->memory + thread * lab->part + lab->at;
    void *args[] = {lab->counts, part, part + lab->from};
    RtCall call = {.arg = args, .n_tasks = 1, .thread = thread};
    rt_team_barrier(lab->team, thread);
    w->begin = clock_now(CLOCK_MONOTONIC);
    double cpu = clock_now(CLOCK_THREAD_CPUTIME_ID);
    lab->probe->fn(&call);
    w->cpu = clock_now(CLOCK_THREAD_CPUTIME_ID) - cpu;
    w->end = clock_now(CLOCK_MONOTONIC);
}

// Thread seconds of the slowest thread; *whole: none was interrupted.
static double run_once(Lab *lab, bool *whole) {
    rt_team_run(lab->team, work, lab);
    double cpu = 1e-9, begin = lab->worker[0].begin, end = lab->worker[0].end;
    for (int i = 0; i < lab->threads; i++) {
        const Worker *w = &lab->worker[i];
        if (w->cpu > cpu) cpu = w->cpu;
        if (w->begin < begin) begin = w->begin;
        if (w->end > end) end = w->end;
    }
    *whole = end - begin < 1.05 * cpu;
    lab->at = lab->at + 2 * lab->window <= lab->part ? lab->at + lab->window : 0;
    return cpu;
}

// Rounds a second of all threads together, in the best run.
static double rounds_rate(Lab *lab, const Probe *p) {
    bool whole;
    double took, best = 0, best_cut = 0;
    lab->probe = p;
    lab->at = 0;
    lab->counts[0] = 1;
    while ((took = run_once(lab, &whole)) < 0.2 * lab->seconds && !lab->window) lab->counts[0] *= 4;
    if (!lab->window) lab->counts[0] = (int64_t)((double)lab->counts[0] * lab->seconds / took) + 1;
    for (int run = 0, good = 0; run < lab->most && good < lab->least; run++) {
        double rate = (double)lab->counts[0] / run_once(lab, &whole);
        if (whole) good++;
        if (whole && rate > best) best = rate;
        if (rate > best_cut) best_cut = rate;
    }
    return (best > 0 ? best : best_cut) * lab->threads;
}

static double work_rate(Lab *lab, const Probe *p) {
    lab->window = 0;
    lab->from = p->kind >= PROBE_TURN ? PROBE_TILE_BYTES : 64;
    return p->fn ? p->work * rounds_rate(lab, p) : 0;
}

// Every thread goes through `bytes`, a window of its part further in each run.
static double memory_rate(Lab *lab, const Probe *p, int64_t bytes, bool windows) {
    int64_t each = (p->kind == PROBE_COPY ? bytes / 2 : bytes) / PROBE_STEP * PROBE_STEP;
    lab->counts[1] = each;
    lab->window = windows ? bytes : 0;
    lab->from = each;
    return rounds_rate(lab, p) * (double)(p->kind == PROBE_COPY ? 2 * each : each);
}

// By the thread that will use it, so that it is near.
static void fill(void *arg, int thread) {
    const Lab *lab = arg;
    int32_t *part = (int32_t *)(lab->memory + thread * lab->part);
    for (int64_t i = 0; i < lab->part / 4; i++) part[i] = PROBE_WORD;
}

static bool lab_open(Lab *lab, int threads, int64_t bytes, Diag *d) {
    *lab = (Lab){.team = rt_team_open(threads), .threads = threads, .seconds = 2e-3, .least = 4, .most = 12};
    lab->part = bytes / threads / 4096 * 4096;
    lab->worker = aligned_alloc(64, sizeof(Worker) * (size_t)threads);
    lab->memory = mmap(NULL, (size_t)(lab->part * threads), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (lab->memory == MAP_FAILED) lab->memory = NULL;
    else madvise(lab->memory, (size_t)(lab->part * threads), MADV_HUGEPAGE);
    if (lab->team && lab->worker && lab->memory) return rt_team_run(lab->team, fill, lab), true;
    diag_error(d, (Span){0}, "can't measure the machine with %d threads and %lld MiB: %s", threads, (long long)bytes >> 20, strerror(errno));
    return false;
}

static void lab_close(Lab *lab) {
    rt_team_close(lab->team);
    free(lab->worker);
    if (lab->memory) munmap(lab->memory, (size_t)(lab->part * lab->threads));
}

// ---- the team -----------------------------------------------------------------------------------------------

enum { MEETINGS = 50, TEAMS = 40, TASKS = 4000 };

static void nothing(void *arg, int thread) { (void)arg, (void)thread; }
static void meet(void *arg, int thread) {
    for (int i = 0; i < MEETINGS; i++) rt_team_barrier(arg, thread);
}

// Empty tasks, taken as those of a step are (runtime/exec.c).
static void take_tasks(void *arg, int thread) {
    (void)thread;
    while (atomic_fetch_add_explicit((atomic_int *)arg, 1, memory_order_relaxed) < TASKS) {}
}

// Many new teams: where other programs run, the system often puts two threads of a team on one core, and leaves them there.
static void measure_team(Machine *m) {
    double first = clock_now(CLOCK_MONOTONIC), least_region = 1, least_barrier = 1, least_task = 1;
    for (int run = 0; run < TEAMS && (run < 3 || clock_now(CLOCK_MONOTONIC) < first + 0.2); run++) {
        RtTeam *team = rt_team_open(m->threads);
        if (!team) break;
        rt_team_run(team, meet, team);
        double begin = clock_now(CLOCK_MONOTONIC);
        for (int i = 0; i < MEETINGS; i++) rt_team_run(team, nothing, NULL);
        double between = clock_now(CLOCK_MONOTONIC);
        rt_team_run(team, meet, team);
        double met = clock_now(CLOCK_MONOTONIC);
        atomic_int next = 0;
        rt_team_run(team, take_tasks, &next);
        double end = clock_now(CLOCK_MONOTONIC), task = (end - met) * m->threads / TASKS, region = (between - begin) / MEETINGS, barrier = (met - between) / MEETINGS;
        if (region < least_region) least_region = region;
        if (barrier < least_barrier) least_barrier = barrier;
        if (task < least_task) least_task = task;
        rt_team_close(team);
    }
    if (least_region == 1) return;
    m->region = least_region;
    m->barrier = least_barrier;
    m->task = least_task;
}

// ---- all ----------------------------------------------------------------------------------------------------

static MachineRates arithmetic(Lab *lab, const Probe *probe) {
    return (MachineRates){lab->threads, work_rate(lab, &probe[PROBE_FMA]), work_rate(lab, &probe[PROBE_BF16_DOT]),
                          work_rate(lab, &probe[PROBE_INT8_DOT])};
}

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// What each of `threads` goes through so that it is found in this level and in no nearer one.
static int64_t level_bytes(const Machine *m, int level, int threads, int64_t all) {
    const MachineLevel *l = m->level;
    switch (level) {
    case LEVEL_L1: return l[LEVEL_L1].size / 2;
    case LEVEL_L2: return at_least(l[LEVEL_L2].size / 2, 2 * l[LEVEL_L1].size);
    case LEVEL_L3: return at_most(at_least(at_most(l[LEVEL_L3].size / 2, 16 << 20) / threads, 2 * l[LEVEL_L2].size), all / threads);
    default: return all / threads / 8;                     // and each run the next eighth
    }
}

static void measure_levels(Machine *m, Lab *lab, const Probe *probe, int64_t all, int which) {
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        MachineLevel *l = &m->level[i];
        if (i < LEVEL_DRAM && !l->size) continue;
        int64_t bytes = level_bytes(m, i, lab->threads, all) / 4096 * 4096;
        bool far = i == LEVEL_DRAM;
        l->read[which] = memory_rate(lab, &probe[PROBE_READ], bytes, far);
        l->write[which] = memory_rate(lab, &probe[PROBE_WRITE], bytes, far);
        l->copy[which] = memory_rate(lab, &probe[PROBE_COPY], bytes, far);
        l->stream[which] = memory_rate(lab, &probe[PROBE_STREAM], bytes, far);
        for (int k = 0; k < 2 && which == 0; k++)          // a block of 16 rows is more than nearer levels hold
            l->strips[k] = i < LEVEL_L3 ? l->read[0] : memory_rate(lab, &probe[PROBE_STRIPS + k], bytes, far);
        l->probed = far ? all : bytes * lab->threads;
    }
}

// All in turns, several times: a neighbour that disturbs one shall not make it look worse than the next.
static void measure_tiles(Machine *m, Lab *lab, const Probe *probe) {
    lab->seconds = 5e-4, lab->least = 2, lab->most = 4;
    for (int pass = 0; pass < 6; pass++)
        for (int i = 0; i < m->n_tiles; i++) {
            double rate = work_rate(lab, &probe[i]);
            if (rate > m->tile[i].rate) m->tile[i].rate = rate;
        }
}

// Of two that are weighed against each other, too.
static void measure_leaves(Machine *m, Lab *lab, const Probe *probe) {
    m->leaves = m->fours = 0;
    for (int pass = 0; pass < 6; pass++) {
        double leaves = work_rate(lab, &probe[PROBE_LEAVES]), fours = work_rate(lab, &probe[PROBE_FOURS]);
        if (leaves > m->leaves) m->leaves = leaves;
        if (fours > m->fours) m->fours = fours;
    }
}

// What is left of a short call's time when its operations are taken off: those of a long one tell what they take.
static void measure_call(Machine *m, Lab *lab, const Probe *probe) {
    double seconds[2];
    for (int i = 0; i < 2; i++) seconds[i] = 2.0 * probe[i].tile.rows * probe[i].tile.vecs * 16 * probe[i].k / work_rate(lab, &probe[i]);
    double each = (seconds[1] - seconds[0]) / (probe[1].k - probe[0].k), call = seconds[0] - each * probe[0].k;
    m->call = call > 0 ? call : 0;
}

// Several times what the caches hold, but not the machine's last memory.
static int64_t far_bytes(const Machine *m) {
    int64_t bytes = at_most(at_least(4 * m->level[LEVEL_L3].size, 256 << 20), 512 << 20);
    int64_t free_bytes = (int64_t)sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
    return at_least(at_most(bytes, free_bytes / 4), 16 << 20);
}

bool machine_measure(Machine *m, Diag *d) {
    enum { SHORT = PROBE_TILE, TILES = SHORT + 2 };
    Probe probe[TILES + MACHINE_TILES];
    probe_identify(m, omp_get_num_procs());
    probe_tiles(m);
    for (int i = 0; i < PROBE_TILE; i++) probe[i] = (Probe){.kind = (ProbeKind)i};
    for (int i = 0; i < 2; i++) probe[SHORT + i] = (Probe){.kind = PROBE_TILE, .tile = m->tile[0], .k = i ? MACHINE_TILE_K : 32};
    for (int i = 0; i < m->n_tiles; i++) probe[TILES + i] = (Probe){.kind = PROBE_TILE, .tile = m->tile[i]};
    Probes *code = probes_compile(NULL, probe, TILES + m->n_tiles, d);
    bool ok = code != NULL;
    int64_t all = far_bytes(m);
    m->n_rates = 0;
    for (int threads = 1; ok;) {
        bool memory = threads == 1 || threads == m->threads;
        Lab lab;
        ok = lab_open(&lab, threads, memory ? all : 64 * PROBE_STEP * threads, d);
        if (ok) {
            m->rates[m->n_rates++] = arithmetic(&lab, probe);
            if (threads == 1) measure_levels(m, &lab, probe, all, 0);
            if (threads == m->threads) measure_levels(m, &lab, probe, all, 1);
            if (threads == m->threads) measure_team(m);
            if (threads == 1) m->turn = work_rate(&lab, &probe[PROBE_TURN]);
            if (threads == 1) measure_call(m, &lab, &probe[SHORT]);
            if (threads == 1) measure_tiles(m, &lab, &probe[TILES]);
            if (threads == 1) measure_leaves(m, &lab, probe);
        }
        lab_close(&lab);
        if (threads == m->threads || m->n_rates == MACHINE_COUNTS) break;
        threads = 2 * threads < m->threads && m->n_rates < MACHINE_COUNTS - 1 ? 2 * threads : m->threads;
    }
    probes_free(code);
    // Where processors are another machine's guests, two may share a core for a second, and then no longer.
    Machine again = *m;
    ok = ok && machine_measure_arithmetic(&again, d);
    if (ok) machine_better_arithmetic(m, &again);
    return ok;
}

// Arithmetic of one thread and of all.
bool machine_measure_arithmetic(Machine *m, Diag *d) {
    Probe probe[] = {{.kind = PROBE_FMA}, {.kind = PROBE_BF16_DOT}, {.kind = PROBE_INT8_DOT}};
    probe_identify(m, omp_get_num_procs());
    Probes *code = probes_compile(NULL, probe, 3, d);
    bool ok = code != NULL;
    for (int i = 0; ok && i < m->n_rates; i++) {
        Lab lab;
        ok = lab_open(&lab, m->rates[i].threads, 64 * PROBE_STEP * m->rates[i].threads, d);
        if (ok) {
            lab.seconds = 1e-3;
            lab.least = 3, lab.most = 8;
            m->rates[i] = arithmetic(&lab, probe);
        }
        lab_close(&lab);
    }
    probes_free(code);
    return ok;
}

void machine_better_arithmetic(Machine *m, const Machine *other) {
    for (int i = 0; i < m->n_rates; i++)
        for (int k = 0; k < other->n_rates; k++) {
            MachineRates *a = &m->rates[i];
            const MachineRates *b = &other->rates[k];
            if (a->threads != b->threads) continue;
            a->fma = fmax(a->fma, b->fma);
            a->bf16_dot = fmax(a->bf16_dot, b->bf16_dot);
            a->int8_dot = fmax(a->int8_dot, b->int8_dot);
        }
}

// ---- the file -----------------------------------------------------------------------------------------------

const char *machine_cache_path(Cli *c) {
    char *dir = rt_cache_dir();
    const char *path = arena_printf(c->arena, "%s/machine.json", dir);
    free(dir);
    return path;
}

const char *machine_path(Cli *c) {
    const char *given = cli_value(c, "machine");
    return given ? given : machine_cache_path(c);
}

bool machine_keep(const char *path, const Machine *m) {
    json_t *all = json_load_file(path, 0, NULL);           // what it says of other CPUs
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    json_t *own = machine_json(m), *fitted = json_object_get(json_object_get(all, m->name), "ops");
    if (fitted && !m->n_ops) json_object_set(own, "ops", fitted);      // of plans: rates measured anew are much the same
    json_object_set_new(all, m->name, own);
    char *beside = rt_path("%s.%ld", path, (long)getpid());
    FILE *f = fopen(beside, "w");
    bool ok = f && json_dumpf(all, f, MACHINE_JSON) == 0 && fputc('\n', f) == '\n';
    if (f && fclose(f)) ok = false;
    ok = ok && rename(beside, path) == 0;
    int error = errno;
    if (!ok) unlink(beside);
    free(beside);
    json_decref(all);
    errno = error;
    return ok;
}

// Where it can't be kept it is measured again.
static void keep_in_cache(const char *path, const Machine *m) {
    char *dir = rt_cache_dir();
    if (rt_make_dirs(dir, NULL) == RT_OK) machine_keep(path, m);
    free(dir);
}

static const Machine *open_from(Cli *c, const char *path, bool given, bool all) {
    Machine *m = arena_new(c->arena, Machine), here;
    char why[256];
    size_t n;
    probe_identify(&here, omp_get_num_procs());
    char *text = read_file(c->arena, path, &n);
    if (!text && given) {
        diag_error(c->diag, (Span){0}, "%s: %s", path, strerror(errno));
        return NULL;
    }
    if (text) {
        MachineFound found = machine_in_text(m, here.name, given, text, n, why);
        if (found == MACHINE_FOUND && (given || !all || m->level[LEVEL_DRAM].probed)) return m;
        if (given) {
            diag_error(c->diag, (Span){0}, "%s: %s", path, why);
            diag_help(c->diag, "moec bench machine --machine FILE makes such a file");
            return NULL;
        }
        if (found == MACHINE_DAMAGED) diag_warning(c->diag, (Span){0}, "%s: %s; the machine was measured anew", path, why);
    }
    if (all && !c->quiet) fprintf(stderr, "measuring the machine (once): its limits are not known yet\n");
    if (!(all ? machine_measure(m, c->diag) : machine_measure_arithmetic(m, c->diag))) return NULL;
    keep_in_cache(path, m);
    return m;
}

const Machine *machine_open(Cli *c, bool all) { return open_from(c, machine_path(c), cli_value(c, "machine") != NULL, all); }

const Machine *machine_here(Cli *c, bool all) { return open_from(c, machine_cache_path(c), false, all); }

RtLimits machine_limits(const Machine *m, int threads) {
    MachineRates rates = machine_rates(m, threads);
    RtLimits limits = {.fma = rates.fma, .bf16_dot = rates.bf16_dot};
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        const MachineLevel *l = &m->level[i];
        if (!l->probed) continue;                          // typical numbers are no limit
        limits.level[limits.n_levels].bytes = (double)l->size * (i < LEVEL_L3 ? rates.threads : 1);
        limits.level[limits.n_levels++].rate = machine_bandwidth(m, l->read, threads);
    }
    return limits;
}
