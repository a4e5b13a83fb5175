// Choosing tiles and forms by predicted times.
#include "codegen/cpu/choose.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/cpu/dot.h"
#include "ir/base/debug.h"

// ---- rates ---------------------------------------------------------------------------------------------

// Rates differ from run to run by so much: candidates that near count as equal.
static const double NEAR = 1.02;

static bool measured_here(const CpuTarget *t, const Machine *m) { return m && m->vector_bytes == t->vector_bytes; }

static double peak_of(const CpuTarget *t, const Machine *m, MachineTileKind kind) {
    Machine typical;
    if (!measured_here(t, m)) {
        typical = machine_guess(t->vector_bytes, 1);
        m = &typical;
    }
    MachineRates r = machine_rates(m, 1);
    return kind == TILE_BF16_DOT && r.bf16_dot > 0 ? r.bf16_dot : r.fma;
}

// Of a row of the table: measured, or typical.  0: it doesn't fit, or isn't used so.
static double table_rate(const CpuTarget *t, const Machine *m, const TileRow *row, MachineTileKind kind) {
    static const int typical[TILE_KINDS] = {
        [TILE_F32] = 100, [TILE_BF16_WIDENED] = 98, [TILE_BF16_DOT] = 95, [TILE_F32_ROWS] = 82};
    if ((kind == TILE_F32_ROWS && !(row->use & TILE_FEW)) || !tile_fits(t, kind, row->rows, row->vecs)) return 0;
    double rate = measured_here(t, m) ? machine_tile(m, row->rows, row->vecs, kind) : 0;
    int share = row->share[t->vector_bytes == 64 ? 0 : t->vector_bytes == 32 ? 1 : 2];
    return rate > 0 ? rate : peak_of(t, m, kind) * 1e-4 * share * typical[kind];
}

static bool can_run(const CpuTarget *t, const Machine *m, const TileRow *row, MachineTileKind kind) {
    return row->use & TILE_RUN && table_rate(t, m, row, kind) > 0;
}

// Of a tile of any height: between rows of the table of its width.  0: none is as wide.
static double tile_rate(const CpuTarget *t, const Machine *m, MachineTileKind kind, int rows, int vecs) {
    const TileRow *below = NULL, *above = NULL;
    double low = 0, high = 0;
    if (!tile_fits(t, kind, rows, vecs)) return 0;
    for (int i = 0; i < n_tile_rows; i++) {
        const TileRow *row = &tile_table[i];
        double rate = row->vecs == vecs ? table_rate(t, m, row, kind) : 0;
        if (rate > 0 && row->rows <= rows && (!below || row->rows > below->rows)) below = row, low = rate;
        if (rate > 0 && row->rows >= rows && (!above || row->rows < above->rows)) above = row, high = rate;
    }
    if (!below || !above) return below ? low : above ? high * rows / above->rows : 0;
    return below == above ? low : low + (high - low) * (rows - below->rows) / (above->rows - below->rows);
}

bool choose_dots(const CpuTarget *t, const Machine *m) {
    double best[TILE_KINDS] = {0};
    if (!t->bf16_dot || machine_rates(m, 1).bf16_dot <= 0) return false;
    for (MachineTileKind kind = 0; kind < TILE_F32_ROWS; kind++)
        for (int i = 0; i < n_tile_rows; i++)
            if (can_run(t, m, &tile_table[i], kind)) best[kind] = fmax(best[kind], table_rate(t, m, &tile_table[i], kind));
    return best[TILE_BF16_DOT] > 1.25 * fmax(best[TILE_F32], best[TILE_BF16_WIDENED]);
}

// ---- candidates ----------------------------------------------------------------------------------------

typedef struct {
    Schedule schedule;
    Predicted takes;
    double seconds;
} Candidate;
enum { MOST = 64 };
typedef struct {
    const Machine *machine;
    int n;
    Candidate at[MOST];
} Candidates;

static void add_candidate(Candidates *all, const Schedule *s, Predicted takes) {
    for (int i = 0; i < all->n; i++)
        if (!memcmp(&all->at[i].schedule, s, sizeof *s)) return;
    assert(all->n < MOST);
    all->at[all->n++] = (Candidate){*s, takes, predicted_seconds(all->machine, &takes, 1)};
}

static bool nearly(double a, double least) { return a <= NEAR * least; }

// The least time; where memory makes times equal the least work; else the first.  taken: not those.
static int best_of(const Candidates *all, const bool *taken) {
    double least = INFINITY, work = INFINITY;
    for (int i = 0; i < all->n; i++)
        if (!taken[i]) least = fmin(least, all->at[i].seconds);
    for (int i = 0; i < all->n; i++)
        if (!taken[i] && nearly(all->at[i].seconds, least)) work = fmin(work, all->at[i].takes.compute);
    for (int i = 0; i < all->n; i++)
        if (!taken[i] && nearly(all->at[i].seconds, least) && nearly(all->at[i].takes.compute, work)) return i;
    return -1;
}

static const char *few_text(Arena *a, const Schedule *s) {
    const char *text = "";
    for (int n = 1; n <= s->rows; n++)
        if (s->few[n]) text = arena_printf(a, "%s %dx%d", text, n, s->few[n] * LANES);
    return text;
}
static const char *text_of(Arena *a, const Candidate *c, bool laid) {
    const char *few = few_text(a, &c->schedule), *all = laid ? ", panels as they lie" : c->schedule.fours ? ", leaves in fours" : "";
    const char *apart = !*few ? "" : laid ? ", side by side:" : ", rows as they lie:";
    return arena_printf(a, "%dx%d%s%s%s", c->schedule.rows, c->schedule.vecs * LANES, all, apart, few);
}

// The best, or the one that was asked for, and what it was weighed against go into d; its text into the key.
static Schedule settle(const Candidates *all, KernelDesc *d, const char *what, bool laid) {
    Arena *scratch = arena_create();
    const char *number = debug_arg(scratch, DEBUG_choose);
    bool taken[MOST] = {false};
    int first = number ? abs(atoi(number)) % all->n : best_of(all, taken);
    arena_destroy(scratch);
    if (!d) return all->at[first].schedule;
    Choice c = {.what = what, .candidates = all->n};
    for (int next = first; next >= 0 && c.n < CHOICE_BEST; next = best_of(all, taken)) {
        taken[next] = true;
        c.best[c.n++] = (Weighed){text_of(d->key.arena, &all->at[next], laid), all->at[next].takes};
    }
    d->choice[d->n_choices++] = c;
    str_printf(&d->key, " %s %s", what, c.best[0].text);
    return all->at[first].schedule;
}

// ---- rows times a matrix -------------------------------------------------------------------------------

typedef struct {
    const RowsLoad *load;
    const KernelNode *k;
    const CpuTarget *target;
    const Machine *machine;
    MachineTileKind kind; // of tiles that read panels
    bool laid, may_lie;   // B is in panels; few rows may read it and A as they lie
    int rows;             // of a run
} Weigh;

// Of tiles that go through k in so many calls: operations over their rate, which holds for calls of MACHINE_TILE_K each, and what
// more or fewer calls take.
typedef struct { MachineTileKind kind; int vecs; double k, calls; } Chain;

// `tiles` tiles of nearly equal height that are n rows, in one panel.
static double tiles_time(const CpuTarget *t, const Machine *m, const Chain *c, int n, int tiles) {
    int base = n / tiles, extra = n % tiles;
    double step = 2.0 * c->vecs * LANES * c->k, seconds = 0;
    if (base) seconds += (tiles - extra) * base * step / tile_rate(t, m, c->kind, base, c->vecs);
    if (extra) seconds += extra * (base + 1) * step / tile_rate(t, m, c->kind, base + 1, c->vecs);
    double calls = (base ? tiles : extra) * (c->calls - c->k / MACHINE_TILE_K) * m->call;
    return seconds + calls > 0.5 * seconds ? seconds + calls : 0.5 * seconds;
}

static MachineTileKind few_kind(const Weigh *w) { return w->laid ? w->kind : TILE_F32_ROWS; }

static int parts(int64_t n, int64_t most) { return (int)((n + most - 1) / most); }

// Of a run through panels of B, which its first tile leaves for the others unless they lie there.  Chains that are cut
// go on from y; rows of A may be copied before.
static double in_panels(const Weigh *w, const Schedule *s, int n, int64_t columns) {
    const RowsLoad *l = w->load;
    double rate = l->tb ? w->machine->turn : w->machine->level[LEVEL_L2].write[0];
    double k = (double)l->K, packing = w->laid ? 0 : k * (double)columns * 4 / rate;
    int64_t block = rows_k_block(w->k, l, s->vecs * LANES);
    Chain chain = {w->kind, s->vecs, k, parts(l->K, block)};
    double tiles = tiles_time(w->target, w->machine, &chain, n, parts(n, s->rows));
    const MachineLevel *of_y = &w->machine->level[machine_level(w->machine, n * l->N * 4, 1)];
    double go_on = block < l->K ? 8.0 * n * (double)columns * (parts(l->K, block) - 1) / of_y->copy[0] : 0;
    const MachineLevel *of_a = &w->machine->level[machine_level(w->machine, (int64_t)(n * k) * dtype_bytes(l->a_type), 1)];
    double copied = l->copies[s->rows] * n * k * (double)columns / (double)(l->N * l->sides);
    double copying = copied * (dtype_bytes(l->a_type) / of_a->read[0] + 4 / w->machine->level[LEVEL_L2].write[0]);
    return packing + copying + go_on + parts(columns, s->vecs * LANES) * tiles;
}

static bool can_be(const Weigh *w, int n, int vecs);

// Of a run that is one tile, `vecs` wide, which reads B as it lies; what columns are left go through narrower tiles of panels side
// by side, or through panels.
static double as_it_lies(const Weigh *w, const Schedule *s, int n, int vecs) {
    double k = (double)w->load->K, seconds = 0;
    int64_t left = w->load->N;
    for (int v = vecs; v > 0 && (w->laid || v == vecs); v--) {
        if (!can_be(w, n, v)) continue;
        Chain chain = {few_kind(w), v, k, w->laid ? 1 : k / MACHINE_TILE_K};     // rows: measured in short calls
        seconds += (double)(left / (v * LANES)) * tiles_time(w->target, w->machine, &chain, n, 1);
        left %= v * LANES;
    }
    return seconds + (left ? in_panels(w, s, n, left) : 0);
}

static bool can_be(const Weigh *w, int n, int vecs) {
    if (w->laid && vecs % (PANEL_COLS / LANES)) return false;
    return vecs * LANES <= w->load->N && tile_rate(w->target, w->machine, few_kind(w), n, vecs) > 0;
}

// Of a run of n rows; 0: single panels are no slower.
static int best_width(const Weigh *w, const Schedule *s, int n) {
    double least = in_panels(w, s, n, w->load->N);
    int best = 0;
    for (int vecs = s->vecs; vecs <= TILE_MAX_VECS; vecs += s->vecs) {
        double seconds = can_be(w, n, vecs) ? as_it_lies(w, s, n, vecs) : least;
        if (seconds * NEAR < least) least = seconds, best = vecs;
    }
    return best;
}

static void add_rows(const Weigh *w, Candidates *all, const Schedule *s) {
    const RowsLoad *l = w->load;
    int width = w->rows <= s->rows ? s->few[w->rows] : 0;
    double compute = width ? as_it_lies(w, s, w->rows, width) : in_panels(w, s, w->rows, l->N);
    int64_t columns = w->laid ? (int64_t)parts(l->N, s->vecs * LANES) * s->vecs * LANES : l->N;      // what is 0 is read, too
    double matrix = (double)(l->K * columns * dtype_bytes(l->b_type) * l->sides);
    double rows = l->rows * (double)(l->K * dtype_bytes(l->a_type) + l->N * 4 * l->sides), runs = l->matrices * l->runs;
    Predicted p = {.compute = compute * runs * l->sides, .bytes = runs * (matrix + rows), .tasks = l->tasks};
    int64_t near = (int64_t)(l->matrices * matrix + runs * rows);
    p.level = machine_level(w->machine, near > w->k->passing ? near : w->k->passing, 1);
    if (!w->laid && !l->tb) p.slower = 1 + (machine_strips(w->machine, p.level, l->N * dtype_bytes(l->b_type)) - 1) * matrix / (matrix + rows);
    add_candidate(all, s, p);
}

static void weigh_row(const Weigh *w, Candidates *all, const TileRow *row) {
    const RowsLoad *l = w->load;
    int tiles = parts(w->rows, row->rows);
    Schedule s = {.rows = l->vary ? row->rows : parts(w->rows, tiles), .vecs = row->vecs};
    for (int n = 1; n <= s.rows && l->vary && w->may_lie; n++) s.few[n] = (unsigned char)best_width(w, &s, n);
    add_rows(w, all, &s);
    if (l->vary || tiles > 1 || !w->may_lie) return;
    for (int vecs = s.vecs; vecs <= TILE_MAX_VECS; vecs += s.vecs) {
        if (!can_be(w, w->rows, vecs)) continue;
        s.few[w->rows] = (unsigned char)vecs;
        add_rows(w, all, &s);
    }
}

static const Machine *machine_of(const KernelNode *k, Machine *typical) {
    *typical = machine_guess(k->target->vector_bytes, 1);
    return k->machine ? k->machine : typical;
}

Schedule choose_rows(const KernelNode *k, const RowsLoad *load, KernelDesc *d, const char *what) {
    Machine typical;
    bool laid = load->layout != LAYOUT_ROWS, dot = dot_used(k->target, load->a_type, load->b_type);
    Weigh w = {.load = load,
               .k = k,
               .target = k->target,
               .machine = machine_of(k, &typical),
               .laid = laid,
               .may_lie = laid || !(load->ta || load->tb),
               .rows = load->rows > 1 ? (int)ceil(load->rows) : 1};
    w.kind = dot ? TILE_BF16_DOT : laid && load->b_type == BF16 ? TILE_BF16_WIDENED : TILE_F32;
    Candidates all = {.machine = w.machine};
    for (int i = 0; i < n_tile_rows; i++) {
        const TileRow *row = &tile_table[i];
        bool parts_panels = PANEL_COLS / LANES % row->vecs == 0, too_wide = (row->vecs - 1) * LANES >= load->N;
        if (can_run(k->target, w.machine, row, w.kind) && (parts_panels || !(laid || load->cut)) && !too_wide)
            weigh_row(&w, &all, row);
    }
    return settle(&all, d, what, laid);
}

// ---- sums over rows ------------------------------------------------------------------------------------

static int64_t up_to(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What the ends of a task's leaves take, beside the operations.
static double leaf_ends(const CpuTarget *t, const Machine *m, const SumsLoad *l, bool fours) {
    Machine typical = machine_guess(t->vector_bytes, 1);
    double peak = peak_of(t, m, TILE_F32), rate = measured_here(t, m) ? fours ? m->fours : m->leaves : 0;
    if (rate <= 0) rate = (fours ? typical.fours : typical.leaves) / typical.rates[0].fma * peak;
    double each = 2.0 * MACHINE_LEAF_K * (1 / rate - 1 / peak);
    return l->leaves > 1 && each > 0 ? each * l->leaves * (double)(l->m * l->n) : 0;
}

SumsTile choose_sums(const KernelNode *k, const SumsLoad *load, KernelDesc *d, const char *what) {
    Machine typical;
    const Machine *m = machine_of(k, &typical);
    MachineTileKind kind = dot_used(k->target, load->a_type, load->b_type) ? TILE_BF16_DOT : TILE_F32;
    Candidates all = {.machine = m};
    double runs = ceil((double)load->M / (double)load->m), groups = ceil((double)load->N / (double)load->n),
           times = load->matrices * runs * groups;
    double packing = load->rows * (double)(load->m + load->n) * 4 / m->level[LEVEL_L2].write[0];      // of a task
    double bytes = load->rows * (double)(load->M * dtype_bytes(load->a_type) + load->N * dtype_bytes(load->b_type));
    for (int i = 0; i < n_tile_rows; i++) {
        const TileRow *row = &tile_table[i];
        bool whole = PANEL_COLS / LANES % row->vecs == 0, too_wide = (row->vecs - 1) * LANES >= load->N;
        if (!can_run(k->target, m, row, kind) || !whole || too_wide) continue;
        int tiles = parts(load->m, row->rows);
        Chain chain = {kind, row->vecs, load->rows, kind == TILE_BF16_DOT ? load->leaves : 1};
        double seconds = tiles_time(k->target, m, &chain, (int)load->m, tiles) * parts(load->n, row->vecs * LANES);
        seconds += packing + leaf_ends(k->target, m, load, false);
        Predicted p = {.compute = times * seconds,
                       .tasks = load->tasks,
                       .bytes = load->matrices * (bytes + (double)(load->M * load->N) * 4)};
        p.level = machine_level(m, (int64_t)p.bytes, 1);
        add_candidate(&all, &(Schedule){.rows = parts(load->m, tiles), .vecs = row->vecs}, p);
        int fours = load->in_fours ? tile_fours(k->target, row->vecs) : 0;
        if (!fours || kind != TILE_F32) continue;
        double operations = 2 * load->rows * (double)load->m * (double)up_to(load->n, row->vecs * LANES);
        p.compute = times * (operations / peak_of(k->target, m, TILE_F32) + packing + leaf_ends(k->target, m, load, true));
        add_candidate(&all, &(Schedule){.rows = FOURS_ROWS, .vecs = row->vecs, .fours = fours}, p);
    }
    Schedule s = settle(&all, d, what, false);
    return (SumsTile){s.rows, s.vecs, s.fours};
}

// ---- attention -----------------------------------------------------------------------------------------

// An exponential and what is around it: instructions of a vector, two a cycle, as a multiply-add is one of.
enum { EXP_INSTRUCTIONS = 25 };

// Of a block of keys and a panel of queries: scores and results; or scores, those of do, and dq, dk and dv, which have tiles of keys.
static double block_time(const KernelNode *k, const Machine *m, const AttentionLoad *l, const TileRow *row) {
    int A = (int)l->A, V = (int)l->V, n = (int)l->block, lanes = row->vecs * LANES;
    Chain of_a = {TILE_F32, row->vecs, A, 1}, of_v = {TILE_F32, row->vecs, V, 1}, of_keys = {TILE_F32, row->vecs, n, 1}, of_queries = {TILE_F32, row->vecs, lanes, (double)lanes / (double)l->block};
    double scores = tiles_time(k->target, m, &of_a, n, parts(n, row->rows));
    if (!l->grad) return scores + tiles_time(k->target, m, &of_keys, V, parts(V, row->rows));
    double columns = parts(A, lanes) + parts(V, lanes);
    return scores + tiles_time(k->target, m, &of_v, n, parts(n, row->rows)) + tiles_time(k->target, m, &of_keys, A, parts(A, row->rows)) +
           columns * tiles_time(k->target, m, &of_queries, n, parts(n, row->rows));
}

TileSize choose_attention(const KernelNode *k, const AttentionLoad *load, KernelDesc *d, const char *what) {
    Machine typical;
    const Machine *m = machine_of(k, &typical);
    Candidates all = {.machine = m};
    double exps = load->exps * EXP_INSTRUCTIONS / peak_of(k->target, m, TILE_F32), packing = load->packed / m->turn;
    for (int i = 0; i < n_tile_rows; i++) {
        const TileRow *row = &tile_table[i];
        if (!can_run(k->target, m, row, TILE_F32) || row->vecs * LANES > load->most || load->most % (row->vecs * LANES)) continue;
        Predicted p = {.compute = load->blocks[row->vecs] * block_time(k, m, load, row) + exps + packing, .bytes = load->bytes, .tasks = load->tasks};
        p.level = machine_level(m, (int64_t)load->bytes, 1);
        add_candidate(&all, &(Schedule){.rows = row->rows, .vecs = row->vecs}, p);
    }
    Schedule s = settle(&all, d, what, false);
    return (TileSize){s.rows, s.vecs};
}
