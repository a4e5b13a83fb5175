// Typical machines, and what is read off measured rates.
#include "ir/machine.h"

// Rates per core of one AMD and one Intel core with the registers named, rounded down.  They say nothing of instructions
// that not all of those machines have: which arithmetic to choose is measured or not chosen.
#define G 1e9
#define CACHES {                                                                                                          \
    {32 << 10, 0, {150 * G, 300 * G}, {100 * G, 200 * G}, {150 * G, 300 * G}, {8 * G, 16 * G}},                           \
    {1 << 20, 0, {80 * G, 160 * G}, {50 * G, 100 * G}, {60 * G, 120 * G}, {8 * G, 16 * G}},                               \
    {16 << 20, 0, {30 * G, 60 * G}, {20 * G, 40 * G}, {30 * G, 60 * G}, {8 * G, 16 * G}},                                 \
    {0, 0, {15 * G, 28 * G}, {9 * G, 16 * G}, {14 * G, 26 * G}, {15 * G, 28 * G}}}
static const Machine typical[] = {
    {"typical, 64-byte vectors", 2, 64, 2, {{1, 110 * G, 0, 0}, {2, 220 * G, 0, 0}}, CACHES, 3e-6, 1e-6, 0, {{0}}},
    {"typical, 32-byte vectors", 2, 32, 2, {{1, 80 * G, 0, 0}, {2, 160 * G, 0, 0}}, CACHES, 3e-6, 1e-6, 0, {{0}}},
    {"typical, 16-byte vectors", 2, 16, 2, {{1, 24 * G, 0, 0}, {2, 48 * G, 0, 0}}, CACHES, 3e-6, 1e-6, 0, {{0}}},
};

const Machine *machine_typical(int vector_bytes) {
    return &typical[vector_bytes >= 64 ? 0 : vector_bytes >= 32 ? 1 : 2];
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

double machine_tile(const Machine *m, int rows, int vecs, MachineTileKind kind) {
    for (int i = 0; i < m->n_tiles; i++)
        if (m->tile[i].rows == rows && m->tile[i].vecs == vecs && m->tile[i].kind == kind) return m->tile[i].rate;
    return 0;
}
