// A rate is work over time, so a probe must do the work that it is counted for: as many operations, and every byte once.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/probe.h"
#include "tests/codegen/run_graph.h"

enum { BYTES = 8 * PROBE_STEP, ALL = PROBE_TILE_BYTES, OTHER = 0x5a5a5a5a };

typedef struct { char *to, *from; } Memory;

static Memory memory_new(int32_t to, int32_t from) {
    Memory m = {aligned_alloc(64, ALL), aligned_alloc(64, ALL)};
    for (int i = 0; i < ALL / 4; i++) ((int32_t *)m.to)[i] = to, ((int32_t *)m.from)[i] = from;
    return m;
}
static void memory_free(Memory m) { free(m.to), free(m.from); }

static void run(const Probe *p, Memory m, int64_t rounds) {
    int64_t counts[] = {rounds, BYTES};
    void *args[] = {counts, m.to, m.from};
    p->fn(&(RtCall){.arg = args, .n_tasks = 1});
}

static int32_t word(const char *at, int i) { return ((const int32_t *)at)[i]; }

// x * x is 2^-12 (or 2 for pairs of bf16, 4 for bytes) and every chain begins with 1: sums are exact and count the steps.
static void arithmetic(const Probe *p, int lanes_work, int32_t x, double each) {
    enum { ROUNDS = 16 };
    Memory m = memory_new(x, OTHER);
    run(p, m, 0);
    double chains = p->kind == PROBE_INT8_DOT ? word(m.from, 3) : ((float *)m.from)[3];
    run(p, m, ROUNDS);
    double sum = p->kind == PROBE_INT8_DOT ? word(m.from, 3) : ((float *)m.from)[3];
    double steps = (sum - chains) / each;
    if (steps * lanes_work != p->work * ROUNDS) fail_msg("%g operations, not %g", steps * lanes_work, p->work * ROUNDS);
    memory_free(m);
}

static void through_memory(const Probe *p) {
    Memory m = memory_new(3, 7);
    run(p, m, 5);
    int32_t inside = p->kind == PROBE_READ ? 3 : p->kind == PROBE_COPY ? 7 : PROBE_WORD;
    for (int i = p->kind == PROBE_READ ? 16 : 0; i < ALL / 4; i++) assert_int_equal(word(m.to, i), i < BYTES / 4 ? inside : 3);
    if (p->kind == PROBE_READ)                              // 16 lanes: each a sixteenth of the words, five times
        for (int i = 0; i < 16; i++) assert_int_equal(word(m.to, i), 5 * 3 * (BYTES / 64));
    for (int i = 0; i < ALL / 4; i++) assert_int_equal(word(m.from, i), 7);
    memory_free(m);
}

static void product(const Probe *p) {
    Memory m = memory_new(PROBE_WORD, OTHER);
    run(p, m, 2);
    int32_t bits = PROBE_WORD;
    bool dot = p->tile.kind == TILE_BF16_DOT, rows = p->tile.kind == TILE_F32_ROWS;
    float a, b = 1.0f;                                      // widened bf16
    memcpy(&a, &bits, 4);
    if (dot) a = 1.0f;
    else if (p->tile.kind != TILE_BF16_WIDENED) b = a;
    double k = ((float *)m.from)[0] / (a * b);
    if (p->k) assert_int_equal(lround(k), p->k);
    int n = rows ? (int)(p->work / (2 * round(k))) : p->tile.rows * p->tile.vecs * 16;
    if (rows) assert_true(n % (p->tile.rows * p->tile.vecs * 16) == 0 && n * 4 < PROBE_RESULT_BYTES);
    for (int i = 0; i < n; i++) assert_float_equal(((float *)m.from)[i], k * a * b, 1e-3 * k);
    assert_int_equal(word(m.from, n), OTHER);
    double panels = p->work / (2.0 * n * round(k));
    assert_float_equal(panels, floor(panels), 0);
    memory_free(m);
}

static void strips(const Probe *p) {
    int64_t row = p->kind == PROBE_STRIPS ? PROBE_ROW : PROBE_PAGE, n = 3 * 16 * row;
    int32_t *all = aligned_alloc(64, (size_t)(n + 16 * row));
    assert_non_null(all);
    for (int64_t i = 0; i < (n + 16 * row) / 4; i++) all[i] = i < n / 4 ? 3 : 100;
    int64_t counts[2] = {2, n + row};
    void *args[] = {counts, all, all};
    p->fn(&(RtCall){.arg = args, .n_tasks = 1});
    for (int i = 0; i < 16; i++) assert_int_equal(all[i], 2 * 3 * n / 64);
    for (int64_t i = 16; i < n / 4; i++) assert_int_equal(all[i], 3);
    free(all);
}

// One panel, which every 16 rows of the first memory are packed into.
static void turned(const Probe *p) {
    Memory m = memory_new(PROBE_WORD, OTHER);
    run(p, m, 1);
    int n = MACHINE_TILE_K * 16;
    for (int i = 0; i < n; i++) assert_int_equal(word(m.from, i), PROBE_WORD);
    assert_int_equal(word(m.from, n), OTHER);
    assert_true(p->work >= 4.0 * n && fmod(p->work, 4.0 * n) == 0 && p->work <= PROBE_TILE_BYTES);
    memory_free(m);
}

static void each_does_its_work(void **state) {
    static const char *const cpus[] = {"native", "avx512", "avx2", "sse2"};
    Arena *a = arena_create();
    for (int c = 0; c < 4; c++) {
        if (c && !case_runs(cpus[c])) continue;
        Probe p[] = {{.kind = PROBE_FMA}, {.kind = PROBE_BF16_DOT}, {.kind = PROBE_INT8_DOT}, {.kind = PROBE_READ}, {.kind = PROBE_WRITE},
                     {.kind = PROBE_COPY}, {.kind = PROBE_STREAM}, {.kind = PROBE_TURN}, {.kind = PROBE_STRIPS}, {.kind = PROBE_STRIPS_OF_PAGES}, {.kind = PROBE_LEAVES}, {.kind = PROBE_FOURS}, {.kind = PROBE_TILE, .tile = {2, 1, TILE_F32, 0}, .k = 32}, {.kind = PROBE_TILE, .tile = {2, 1, TILE_F32, 0}},
                     {.kind = PROBE_TILE, .tile = {14, 2, TILE_F32, 0}}, {.kind = PROBE_TILE, .tile = {1, 1, TILE_BF16_WIDENED, 0}},
                     {.kind = PROBE_TILE, .tile = {8, 2, TILE_BF16_DOT, 0}}, {.kind = PROBE_TILE, .tile = {1, 2, TILE_F32_ROWS, 0}},
                     {.kind = PROBE_TILE, .tile = {2, 1, TILE_F32_ROWS, 0}}};
        enum { N = sizeof p / sizeof *p };
        Diag *d = diag_new(a);
        Probes *code = probes_compile(cpus[c], p, N, d);
        assert_non_null(code);
        for (int i = 0; i < N; i++) {
            bool may_lack = p[i].kind == PROBE_BF16_DOT || p[i].kind == PROBE_INT8_DOT || p[i].tile.rows >= 8;
            if (!p[i].fn && may_lack) continue;
            assert_non_null(p[i].fn);
            if (p[i].kind == PROBE_FMA) arithmetic(&p[i], 2 * 16, 0x3c800000, 1.0 / 4096);            // 2^-6
            else if (p[i].kind == PROBE_BF16_DOT) arithmetic(&p[i], 4 * 16, 0x3f803f80, 2);             // 1, 1
            else if (p[i].kind == PROBE_INT8_DOT) arithmetic(&p[i], 8 * 16, 0x01010101, 4);             // 1, 1, 1, 1
            else if (p[i].kind >= PROBE_LEAVES) product(&p[i]);
            else if (p[i].kind == PROBE_TURN) turned(&p[i]);
            else if (p[i].kind == PROBE_STRIPS || p[i].kind == PROBE_STRIPS_OF_PAGES) strips(&p[i]);
            else through_memory(&p[i]);
        }
        probes_free(code);
    }
    arena_destroy(a);
}

static void machine_is_identified(void **state) {
    Machine m;
    probe_identify(&m, 3);
    assert_int_equal(m.threads, 3);
    assert_non_null(strstr(m.name, "3 threads"));
    assert_true(m.vector_bytes >= 16);
    for (int i = 0; i < LEVEL_DRAM; i++) assert_true(m.level[i].size >= 0 && m.level[i].size < (int64_t)16 << 30);
    assert_true(m.level[LEVEL_L1].size < m.level[LEVEL_L2].size);
    probe_tiles(&m);
    assert_true(m.n_tiles > 3 && m.n_tiles <= MACHINE_TILES);
    for (int i = 0; i < m.n_tiles; i++)
        for (int j = 0; j < i; j++)
            assert_false(m.tile[i].rows == m.tile[j].rows && m.tile[i].vecs == m.tile[j].vecs && m.tile[i].kind == m.tile[j].kind);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_does_its_work), cmocka_unit_test(machine_is_identified)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
