// Typical machines, and what is read off measured rates.
#include "ir/machine.h"

// Of a core with such registers, and of its caches and memory: what the slower of some AMD and Intel machines showed.  They
// say nothing of dot products, which run at half the rate of fma on one machine and at twice on another.
enum { SHARED_MEMORY = 2 };                                // so many cores use up the bandwidth of L3 and memory
static const struct {
    int vector_bytes;
    double fma, turn, leaves, fours;
} typical[] = {{64, 110e9, 16e9, 70e9, 70e9}, {32, 80e9, 30e9, 57e9, 72e9}, {16, 24e9, 6e9, 15e9, 15e9}};
static const struct {
    int64_t size;
    double read, write, copy, stream;
} levels[MACHINE_LEVELS] = {
    {32 << 10, 150e9, 100e9, 150e9, 8e9},
    {1 << 20, 80e9, 50e9, 60e9, 8e9},
    {16 << 20, 30e9, 20e9, 30e9, 8e9},
    {0, 15e9, 9e9, 14e9, 15e9},
};

static void both(double rate[2], double one, int threads) {
    rate[0] = one;
    rate[1] = one * threads;
}

Machine machine_guess(int vector_bytes, int threads) {
    Machine m = {.threads = threads, .vector_bytes = vector_bytes, .n_rates = threads > 1 ? 2 : 1, .region = 3e-6, .barrier = 1e-6, .task = 1e-7, .call = 12e-9};
    int row = 0;
    while (row < 2 && typical[row].vector_bytes > vector_bytes) row++;
    m.turn = typical[row].turn;
    m.leaves = typical[row].leaves;
    m.fours = typical[row].fours;
    m.rates[0] = (MachineRates){.threads = 1, .fma = typical[row].fma};
    m.rates[1] = (MachineRates){.threads = threads, .fma = typical[row].fma * threads};
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        int n = i >= LEVEL_L3 && threads > SHARED_MEMORY ? SHARED_MEMORY : threads;
        m.level[i].size = levels[i].size;
        both(m.level[i].read, levels[i].read, n);
        both(m.level[i].write, levels[i].write, n);
        both(m.level[i].copy, levels[i].copy, n);
        both(m.level[i].stream, levels[i].stream, n);
        m.level[i].strips[0] = m.level[i].strips[1] = levels[i].read;
    }
    return m;
}

static double between(double a, double b, double share) { return a + (b - a) * share; }

MachineRates machine_rates(const Machine *m, int threads) {
    if (threads <= 0 || threads > m->threads) threads = m->threads;
    int i = 0;
    while (i < m->n_rates && m->rates[i].threads < threads) i++;
    if (i == m->n_rates) return m->rates[i - 1];           // more threads than were measured: no more work gets done
    const MachineRates *b = &m->rates[i];
    if (i == 0 || b->threads == threads) return *b;
    const MachineRates *a = b - 1;
    double share = (double)(threads - a->threads) / (b->threads - a->threads);
    return (MachineRates){threads, between(a->fma, b->fma, share), between(a->bf16_dot, b->bf16_dot, share),
                          between(a->int8_dot, b->int8_dot, share)};
}

MachineLevelKind machine_level(const Machine *m, int64_t bytes, int threads) {
    if (threads <= 0 || threads > m->threads) threads = m->threads;
    for (MachineLevelKind i = LEVEL_L1; i < LEVEL_DRAM; i++) {
        int64_t all = i == LEVEL_L3 ? m->level[i].size : m->level[i].size * threads;
        if (bytes <= all) return i;
    }
    return LEVEL_DRAM;
}

double machine_bandwidth(const Machine *m, const double rate[2], int threads) {
    if (threads <= 0 || threads > m->threads) threads = m->threads;
    return m->threads == 1 ? rate[0] : between(rate[0], rate[1], (double)(threads - 1) / (m->threads - 1));
}

double machine_strips(const Machine *m, MachineLevelKind level, int64_t row) {
    enum { PAGE = 4096 };
    const MachineLevel *l = &m->level[level];
    double rate = l->strips[row % PAGE == 0];
    return rate > 0 && rate < l->read[0] ? l->read[0] / rate : 1;
}

const char *machine_tile_name(MachineTileKind kind) {
    static const char *const name[TILE_KINDS] = {"f32", "bf16 widened", "bf16 dot", "f32 rows"};
    return name[kind];
}

double machine_tile(const Machine *m, int rows, int vecs, MachineTileKind kind) {
    for (int i = 0; i < m->n_tiles; i++)
        if (m->tile[i].rows == rows && m->tile[i].vecs == vecs && m->tile[i].kind == kind) return m->tile[i].rate;
    return 0;
}
