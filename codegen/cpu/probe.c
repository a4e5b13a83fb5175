// The probes: chains of one instruction in registers, streams through memory, and the register tile of contractions.
#include "codegen/probe.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include "codegen/cpu/cpu.h"
#include "codegen/cpu/tile.h"

enum { ARG_COUNTS, ARG_TO, ARG_FROM, N_ARGS };
enum { UNROLL = 8, TILE_K = MACHINE_TILE_K, TILE_A_ROW = TILE_K + LANES, TILE_A_BYTES = 16 << 10, TILE_B_BYTES = 256 << 10 };
enum { ROWS_K = 64, ROWS_AT_ONCE = 16, ROWS_COLS = 1008 };     // rows of B that lie as they are; no power of two apart
static_assert(TILE_MAX_ROWS * TILE_A_ROW * 4 <= TILE_A_BYTES && TILE_A_BYTES + TILE_B_BYTES <= PROBE_TILE_BYTES, "");
static_assert(ROWS_K * ROWS_COLS * 4 <= TILE_B_BYTES && TILE_MAX_ROWS * ROWS_COLS * 4 <= PROBE_RESULT_BYTES, "");

// What emit gets: the node, in front of what it is for.
typedef struct {
    Node node;
    const Probe *probe;
} ProbeNode;
static const Probe *probe_of(const KernelNode *k) { return ((const ProbeNode *)k->node)->probe; }

static LV count(Cg *cg, int i) {
    return cg_load(cg, cg->i64, cg_gep(cg, cg->i64, cg_in(cg, ARG_COUNTS), cg_int(cg, i)), 8);
}

// ---- arithmetic ----------------------------------------------------------------------------------------

// Chains that together fill three quarters of the registers: enough to hide every latency.
static int n_chains(const CpuTarget *t) { return t->n_registers * 3 / 4 * t->vector_bytes / 64; }

static void emit_chains(Cg *cg, const KernelNode *k) {
    ProbeKind kind = probe_of(k)->kind;
    bool ints = kind != PROBE_FMA;
    LV x = cg_load(cg, ints ? cg->vi32 : cg->vf32, cg_in(cg, ARG_TO), 64);
    LV sum[CG_MAX_CARRY], first = kind == PROBE_INT8_DOT ? cg_vec_int(cg, 1) : cg_vec(cg, 1);
    int n = n_chains(cg->target);
    for (int i = 0; i < n; i++) sum[i] = first;
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), count(cg, 0), 1, n, sum);
    for (int i = 0; i < n; i++) sum[i] = l.carry[i];
    for (int u = 0; u < UNROLL; u++)
        for (int i = 0; i < n; i++)
            sum[i] = kind == PROBE_FMA        ? cg_fma(cg, x, x, sum[i])
                     : kind == PROBE_BF16_DOT ? cg_bf16_dot(cg, sum[i], x, x)
                                              : cg_int8_dot(cg, sum[i], x, x);
    cg_loop_end(cg, &l, sum);
    LV all = l.carry[0];
    for (int i = 1; i < n; i++)
        all = kind == PROBE_INT8_DOT ? cg_add(cg, all, l.carry[i]) : cg_fadd(cg, all, l.carry[i]);
    cg_store(cg, all, cg_in(cg, ARG_FROM), 64);
}

// ---- memory --------------------------------------------------------------------------------------------

static void emit_memory(Cg *cg, const KernelNode *k) {
    enum { VECS = PROBE_STEP / 64 };
    ProbeKind kind = probe_of(k)->kind;
    LV to = cg_in(cg, ARG_TO), from = cg_in(cg, ARG_FROM), sum[VECS], word = cg_vec_int(cg, PROBE_WORD);
    for (int i = 0; i < VECS; i++) sum[i] = cg_vec_int(cg, 0);
    CgLoop round, l;
    cg_loop_begin(cg, &round, cg_int(cg, 0), count(cg, 0), 1, VECS, sum);
    cg_loop_begin(cg, &l, cg_int(cg, 0), count(cg, 1), PROBE_STEP, VECS, round.carry);
    for (int i = 0; i < VECS; i++) {
        LV at = cg_addi(cg, l.i, i * 64), t = cg_bytes(cg, to, at);
        sum[i] = l.carry[i];
        if (kind == PROBE_READ) sum[i] = cg_add(cg, sum[i], cg_load(cg, cg->vi32, t, 64));
        if (kind == PROBE_WRITE) cg_store(cg, word, t, 64);
        if (kind == PROBE_STREAM) cg_stream(cg, word, t);
        if (kind == PROBE_COPY) cg_store(cg, cg_load(cg, cg->vi32, cg_bytes(cg, from, at), 64), t, 64);
    }
    cg_loop_end(cg, &l, sum);
    cg_loop_end(cg, &round, l.carry);
    if (kind != PROBE_READ) return;
    LV all = round.carry[0];                               // keeps the loads
    for (int i = 1; i < VECS; i++) all = cg_add(cg, all, round.carry[i]);
    cg_store(cg, all, to, 64);
}

// ---- strips --------------------------------------------------------------------------------------------

// As few rows of a product read their matrix: the same lines of the next block are asked for.
static void emit_strips(Cg *cg, const KernelNode *k) {
    int64_t row = probe_of(k)->kind == PROBE_STRIPS ? PROBE_ROW : PROBE_PAGE, block = ROWS_AT_ONCE * row;
    LV sum = cg_vec_int(cg, 0), bytes = count(cg, 1), end = cg_muli(cg, cg_div(cg, bytes, cg_int(cg, block)), block);
    CgLoop round, b, l;
    cg_loop_begin(cg, &round, cg_int(cg, 0), count(cg, 0), 1, 1, &sum);
    cg_loop_begin(cg, &b, cg_int(cg, 0), end, block, 1, round.carry);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, row), 64, 1, b.carry);
    LV at = cg_bytes(cg, cg_in(cg, ARG_TO), cg_add(cg, b.i, l.i));
    sum = l.carry[0];
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        LV line = cg_bytes(cg, at, cg_int(cg, i * row));
        sum = cg_add(cg, sum, cg_load(cg, cg->vi32, line, 64));
        cg_prefetch(cg, cg_bytes(cg, line, cg_int(cg, block)), false, 2);
    }
    cg_loop_end(cg, &l, &sum);
    cg_loop_end(cg, &b, l.carry);
    cg_loop_end(cg, &round, b.carry);
    cg_store(cg, round.carry[0], cg_in(cg, ARG_TO), 64);
}

// ---- packing columns -----------------------------------------------------------------------------------

enum { TURN_PANELS = TILE_B_BYTES / (TILE_A_ROW * LANES * 4) };      // rows of TILE_A_ROW, 16 a panel

static void emit_turn(Cg *cg, const KernelNode *k) {
    (void)k;
    PackFunction pack = pack_columns_function(cg, "pack", F32, 1, LANES, false);
    CgLoop round, l;
    cg_for(cg, &round, cg_int(cg, 0), count(cg, 0), 1);
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, TURN_PANELS), 1);
    LV from = cg_at(cg, F32, cg_in(cg, ARG_TO), cg_muli(cg, l.i, TILE_A_ROW * LANES));
    pack_columns(cg, &pack, cg_in(cg, ARG_FROM), from, cg_int(cg, TILE_K), cg_int(cg, TILE_A_ROW));
    cg_end(cg, &l);
    cg_end(cg, &round);
}

// ---- the tile ------------------------------------------------------------------------------------------

static TileSpec tile_spec(const MachineTile *t) {
    bool widened = t->kind == TILE_BF16_WIDENED, rows = t->kind == TILE_F32_ROWS;
    int cols = t->vecs * LANES;
    return (TileSpec){.vecs = t->vecs, .cols = cols, .a_row = TILE_A_ROW, .a_k = 1, .c_row = rows ? ROWS_COLS / cols * cols : cols,
                      .b_type = widened ? BF16 : F32, .c_type = F32, .pairs = widened, .dot = t->kind == TILE_BF16_DOT,
                      .reload = rows, .prefetch = rows ? 2 : 0};
}

// Elements of 4 bytes of A or B, f32 or pairs, that are k.
static int64_t k_of_step(const MachineTile *t) { return t->kind == TILE_BF16_DOT ? 2 : 1; }
static int64_t panel_bytes(const MachineTile *t) { return TILE_K * t->vecs * LANES * (t->kind == TILE_BF16_WIDENED ? 2 : 4); }

// One strip of rows passes all panels, as in a contraction.
static void emit_panels(Cg *cg, const MachineTile *t, int k, const TileSet *set) {
    LV a = cg_in(cg, ARG_TO), panels = cg_bytes(cg, a, cg_int(cg, TILE_A_BYTES));
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, TILE_B_BYTES / panel_bytes(t)), 1);
    TileCall call = {.a = a, .b = cg_bytes(cg, panels, cg_muli(cg, l.i, panel_bytes(t))), .k = cg_int(cg, k),
                     .b_k = cg_int(cg, set->spec.cols), .c = cg_in(cg, ARG_FROM)};
    tile_call_fixed(cg, set, t->rows, &call);
    cg_end(cg, &l);
}

// Few rows of A: a few rows of B at a time, all columns of each; the chains go on from C.
static void emit_rows(Cg *cg, const MachineTile *t, const TileSet *set) {
    LV a = cg_in(cg, ARG_TO), b = cg_bytes(cg, a, cg_int(cg, TILE_A_BYTES)), zero = cg_int(cg, 0), N = cg_int(cg, set->spec.c_row);
    CgLoop k, l;
    cg_for(cg, &k, zero, cg_int(cg, ROWS_K), ROWS_AT_ONCE);
    cg_for(cg, &l, zero, N, set->spec.cols);
    LV c = cg_at(cg, F32, cg_in(cg, ARG_FROM), l.i), at = cg_at(cg, F32, b, cg_add(cg, cg_mul(cg, k.i, N), l.i));
    TileCall call = {.a = cg_at(cg, F32, a, k.i), .b = at, .k = cg_int(cg, ROWS_AT_ONCE), .b_k = N, .c = c,
                     .init = cg_select(cg, cg_lt(cg, zero, k.i), c, LLVMConstNull(cg->ptr)),
                     .next = cg_at(cg, F32, at, cg_int(cg, set->spec.cols))};
    tile_call_fixed(cg, set, t->rows, &call);
    cg_end(cg, &l);
    cg_end(cg, &k);
}

static int tile_k(const Probe *p) { return p->k ? p->k : TILE_K; }

static void emit_probe_tile(Cg *cg, const KernelNode *k) {
    const MachineTile *t = &probe_of(k)->tile;
    TileSpec s = tile_spec(t);
    TileSet set;
    CgLoop round;
    tile_functions(cg, &set, &s, "tile", 1u << t->rows);
    cg_for(cg, &round, cg_int(cg, 0), count(cg, 0), 1);
    if (t->kind == TILE_F32_ROWS) emit_rows(cg, t, &set);
    else emit_panels(cg, t, tile_k(probe_of(k)), &set);
    cg_end(cg, &round);
}

static double tile_work(const Probe *p) {
    const MachineTile *t = &p->tile;
    TileSpec s = tile_spec(t);
    if (t->kind == TILE_F32_ROWS) return 2.0 * t->rows * (double)s.c_row * ROWS_K;
    return 2.0 * t->rows * s.cols * (double)(tile_k(p) * k_of_step(t) * (TILE_B_BYTES / panel_bytes(t)));
}

// ---- leaves --------------------------------------------------------------------------------------------

enum { LEAVES_K = MACHINE_LEAVES * MACHINE_LEAF_K, LEAVES_A_STEP = 3 * LANES, AT_NEAR = 16 << 10, AT_TABLE = 48 << 10 };
static_assert(LEAVES_K * LEAVES_A_STEP * 4 <= TILE_A_BYTES && (MACHINE_LEAVES & (MACHINE_LEAVES - 1)) == 0, "");

static MachineTile leaves_tile(const CpuTarget *t, ProbeKind kind) {
    TileSize size = tile_size(t);
    return (MachineTile){.rows = kind == PROBE_FOURS ? FOURS_ROWS : size.rows, .vecs = size.vecs, .kind = TILE_F32};
}

static void emit_probe_leaves(Cg *cg, const KernelNode *k) {
    const MachineTile *t = &probe_of(k)->tile;
    bool fours = probe_of(k)->kind == PROBE_FOURS;
    int cols = t->vecs * LANES, panel = LEAVES_K * cols;
    TileSpec s = {.vecs = t->vecs, .cols = cols, .a_row = 1, .a_k = LEAVES_A_STEP, .c_row = cols, .b_type = F32, .c_type = F32, .leaves = true,
                  .fours = fours ? tile_fours(cg->target, t->vecs) : 0, .n_leaves = MACHINE_LEAVES, .leaf_k = MACHINE_LEAF_K, .held_row = cols};
    TileSet set;
    CgLoop round, l;
    tile_functions(cg, &set, &s, "tile", 1u << t->rows);
    LV a = cg_in(cg, ARG_TO), panels = cg_bytes(cg, a, cg_int(cg, TILE_A_BYTES)), c = cg_in(cg, ARG_FROM), table = cg_bytes(cg, c, cg_int(cg, AT_TABLE));
    for (int leaf = 0; leaf < MACHINE_LEAVES; leaf++) {
        int32_t field[LEAF_FIELDS] = {[LEAF_K] = MACHINE_LEAF_K, [LEAF_TOP] = __builtin_popcount((unsigned)leaf),
                                      [LEAF_MERGES] = __builtin_ctz((unsigned)leaf + 1), [LEAF_NEAR] = 1};
        for (int i = 0; i < LEAF_FIELDS; i++) cg_store1(cg, I32, cg_int32(cg, field[i]), leaf_table_at(cg, table, cg_int(cg, leaf)), cg_int(cg, i));
    }
    cg_for(cg, &round, cg_int(cg, 0), count(cg, 0), 1);
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, TILE_B_BYTES / (panel * 4)), 1);
    TileCall call = {.a = a, .b = cg_at(cg, F32, panels, cg_muli(cg, l.i, panel)), .k = cg_int(cg, MACHINE_LEAVES), .b_k = cg_int(cg, cols), .c = c,
                     .init = c, .leaves = table, .near = cg_bytes(cg, c, cg_int(cg, AT_NEAR))};
    tile_call_fixed(cg, &set, t->rows, &call);
    cg_end(cg, &l);
    cg_end(cg, &round);
}

static double leaves_work(const MachineTile *t) { return 2.0 * t->rows * (double)(TILE_B_BYTES / 4); }

// ---- compiling -----------------------------------------------------------------------------------------

static const struct {
    const char *name;
    KernelTemplate made_by;
} kinds[] = {
    [PROBE_FMA] = {"fma", {.emit = emit_chains}},         [PROBE_BF16_DOT] = {"bf16 dot", {.emit = emit_chains}},
    [PROBE_INT8_DOT] = {"int8 dot", {.emit = emit_chains}}, [PROBE_READ] = {"read", {.emit = emit_memory}},
    [PROBE_WRITE] = {"write", {.emit = emit_memory}},     [PROBE_COPY] = {"copy", {.emit = emit_memory}},
    [PROBE_STREAM] = {"stream", {.emit = emit_memory}},   [PROBE_TURN] = {"turn", {.emit = emit_turn}},
    [PROBE_STRIPS] = {"strips", {.emit = emit_strips}},   [PROBE_STRIPS_OF_PAGES] = {"strips of pages", {.emit = emit_strips}},
    [PROBE_LEAVES] = {"leaves", {.emit = emit_probe_leaves}}, [PROBE_FOURS] = {"fours", {.emit = emit_probe_leaves}},
    [PROBE_TILE] = {"tile", {.emit = emit_probe_tile}},
};

static bool possible(const CpuTarget *t, const Probe *p) {
    if (p->kind == PROBE_BF16_DOT) return t->bf16_dot;
    if (p->kind == PROBE_INT8_DOT) return t->int8_dot;
    if (p->kind != PROBE_TILE) return true;
    return (p->tile.kind != TILE_BF16_DOT || t->bf16_dot) && tile_fits(t, p->tile.kind, p->tile.rows, p->tile.vecs);
}

static double work_of(const CpuTarget *t, const Probe *p) {
    double lanes = 2.0 * LANES * n_chains(t) * UNROLL;
    switch (p->kind) {
    case PROBE_FMA: return lanes;
    case PROBE_BF16_DOT: return 2 * lanes;
    case PROBE_INT8_DOT: return 4 * lanes;
    case PROBE_TURN: return TURN_PANELS * LANES * TILE_K * 4.0;
    case PROBE_LEAVES: case PROBE_FOURS: return leaves_work(&p->tile);
    case PROBE_TILE: return tile_work(p);
    default: return 0;
    }
}

struct Probes {
    Arena *arena;
    Jit *jit;
};

Probes *probes_compile(const char *cpu, Probe *probe, int n, Diag *d) {
    const CpuTarget *t = cpu_find(cpu, true, d);
    if (!t) return NULL;
    Arena *a = arena_create();
    EmittedPlan e = {.kernel = arena_array(a, PlanKernel, n + 1)};
    int *of = arena_array(a, int, n + 1);                  // probe of a kernel
    for (int i = 0; i < n; i++) {
        Probe *p = &probe[i];
        p->fn = NULL;
        if (!possible(t, p)) continue;
        if (p->kind == PROBE_LEAVES || p->kind == PROBE_FOURS) p->tile = leaves_tile(t, p->kind);
        p->work = work_of(t, p);
        ProbeNode *node = arena_new(a, ProbeNode);
        *node = (ProbeNode){.node.n_in = N_ARGS, .probe = p};
        const char *key = arena_printf(a, "probe %s %dx%d %d k %d", kinds[p->kind].name, p->tile.rows, p->tile.vecs, p->tile.kind, p->k);
        of[e.n_kernels] = i;
        e.kernel[e.n_kernels] = (PlanKernel){.key = key, .symbol = arena_printf(a, "moec_probe_%d", i),
                                             .made_by = &kinds[p->kind].made_by, .node = {.node = &node->node}};
        e.n_kernels++;
    }
    Code *code = arena_array(a, Code, e.n_kernels + 1);
    RtKernelFn **fn = arena_array(a, RtKernelFn *, e.n_kernels + 1);
    CompileStats stats;
    cpu_objects(t, &e, &(CompileOpts){.cache_dir = ""}, code, &stats);
    Probes *made = arena_new(a, Probes);
    *made = (Probes){.arena = a, .jit = jit_load(&e, code, fn, d)};
    for (int i = 0; i < e.n_kernels; i++) {
        code_free(&code[i]);
        probe[of[i]].fn = fn[i];
    }
    if (made->jit) return made;
    arena_destroy(a);
    return NULL;
}

void probes_free(Probes *p) {
    if (!p) return;
    jit_free(p->jit);
    arena_destroy(p->arena);
}

// ---- what the system tells -----------------------------------------------------------------------------

static void cpu_name(const CpuTarget *t, char *name, size_t n) {
#if defined(__x86_64__)
    unsigned r[12] = {0}, a, b, c, d;
    for (unsigned i = 0; i < 3; i++) __get_cpuid(0x80000002 + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]);
    if (r[0] && __get_cpuid(1, &a, &b, &c, &d)) {
        char brand[49] = {0};
        memcpy(brand, r, 48);
        const char *begin = brand + strspn(brand, " ");
        size_t end = strlen(begin);
        while (end && begin[end - 1] == ' ') end--;
        unsigned family = a >> 8 & 15, model = a >> 4 & 15;
        if (family == 15) family += a >> 20 & 255;
        if (family >= 6) model += (a >> 16 & 15) << 4;
        snprintf(name, n, "%.*s, family %u model %u", (int)end, begin, family, model);
        return;
    }
#endif
    snprintf(name, n, "%s", t->cpu);
}

// The first word of a file that describes cache `index`; "" if there is none.
static void cache_word(int index, const char *file, char word[32]) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, file);
    *word = 0;
    FILE *f = fopen(path, "r");
    if (!f) return;
    if (fscanf(f, "%31s", word) != 1) *word = 0;
    fclose(f);
}

// Bytes of the data cache of a level; 0: the system doesn't say.  (sysconf counts some shared caches once per core.)
static int64_t cache_bytes(int level) {
    for (int i = 0; i < 8; i++) {
        char at[32], type[32], size[32], *unit;
        cache_word(i, "level", at);
        cache_word(i, "type", type);
        cache_word(i, "size", size);
        if (atoi(at) != level || !strcmp(type, "Instruction")) continue;
        long long n = strtoll(size, &unit, 10);
        if (n > 0) return (int64_t)n << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : 0);
    }
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    static const int name[] = {0, _SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    long n = sysconf(name[level]);
    if (n > 0) return n;
#endif
    return 0;
}

void probe_identify(Machine *m, int threads) {
    const CpuTarget *t = cpu_find(NULL, true, NULL);
    *m = machine_guess(t->vector_bytes, threads);
    char name[sizeof m->name - 16];
    cpu_name(t, name, sizeof name);
    snprintf(m->name, sizeof m->name, "%s, %d thread%s", name, threads, threads == 1 ? "" : "s");
    for (int i = 0; i < 3; i++) {
        int64_t bytes = cache_bytes(i + 1);
        if (bytes) m->level[i].size = bytes;
    }
}

void probe_tiles(Machine *m) {
    const CpuTarget *t = cpu_find(NULL, true, NULL);
    m->n_tiles = 0;
    for (MachineTileKind kind = 0; kind < TILE_KINDS; kind++)
        for (int i = 0; i < n_tile_rows; i++) {
            const TileRow *row = &tile_table[i];
            Probe p = {.kind = PROBE_TILE, .tile = {.rows = row->rows, .vecs = row->vecs, .kind = kind}};
            bool panels = row->use & TILE_RUN || row->vecs % (PANEL_COLS / LANES) == 0;      // side by side
            if (!(kind == TILE_F32_ROWS ? row->use & TILE_FEW : panels) || !possible(t, &p)) continue;
            assert(m->n_tiles < MACHINE_TILES);
            m->tile[m->n_tiles++] = p.tile;
        }
}
