// `moec bench machine`: measures all rates, prints them, keeps them for the compiler.
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "frontend/cmd_bench.h"
#include "frontend/cmd_machine.h"
#include "frontend/machine_file.h"
#include "runtime/files.h"

static const char *bytes_text(Arena *a, int64_t n) {
    return n >= 1 << 20 ? arena_printf(a, "%lld MiB", (long long)n >> 20) : arena_printf(a, "%lld KiB", (long long)n >> 10);
}

static void print_arithmetic(const Machine *m) {
    const MachineRates *one = &m->rates[0], *all = &m->rates[m->n_rates - 1];
    const struct {
        const char *name;
        double one, all;
    } row[] = {{"f32 fma", one->fma, all->fma}, {"bf16 dot", one->bf16_dot, all->bf16_dot}, {"int8 dot", one->int8_dot, all->int8_dot}};
    printf("\n%-12s %9s", "Gop/s", "per fma");
    for (int i = 0; i < m->n_rates; i++) printf(" %6d thr", m->rates[i].threads);
    printf("  speed-up\n");
    for (int i = 0; i < 3; i++) {
        if (!row[i].one) {
            printf("%-12s         - (no such instruction)\n", row[i].name);
            continue;
        }
        printf("%-12s %9.2f", row[i].name, row[i].one / one->fma);
        for (int j = 0; j < m->n_rates; j++) {
            const MachineRates *r = &m->rates[j];
            printf(" %10.1f", (i == 0 ? r->fma : i == 1 ? r->bf16_dot : r->int8_dot) / 1e9);
        }
        printf(" %9.2f\n", row[i].all / row[i].one);
    }
}

static void print_memory(Arena *a, const Machine *m) {
    static const char *const name[] = {"L1", "L2", "L3", "DRAM"};
    printf("\n%-6s %9s %9s", "GB/s", "size", "probed");
    for (int w = 0; w < (m->threads > 1 ? 2 : 1); w++)
        printf("   %7s %7s %7s %7s", "read", "write", "copy", "stream");
    printf("\n%-26s   1 thread %s\n", "", m->threads > 1 ? arena_printf(a, "%22s%d threads", "", m->threads) : "");
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        const MachineLevel *l = &m->level[i];
        if (!l->probed) continue;
        printf("%-6s %9s %9s", name[i], l->size ? bytes_text(a, l->size) : "", bytes_text(a, l->probed));
        for (int w = 0; w < (m->threads > 1 ? 2 : 1); w++)
            printf("   %7.1f %7.1f %7.1f %7.1f", l->read[w] / 1e9, l->write[w] / 1e9, l->copy[w] / 1e9, l->stream[w] / 1e9);
        printf("\n");
    }
}

static void print_tiles(const Machine *m) {
    printf("\n%-16s %-14s %8s %12s\n", "register tile", "B", "Gop/s", "share of fma");
    for (int i = 0; i < m->n_tiles; i++) {
        const MachineTile *t = &m->tile[i];
        printf("%7d x %-6d %-14s %8.1f %11.0f%%\n", t->rows, t->vecs * 16, machine_tile_name(t->kind), t->rate / 1e9,
               100 * t->rate / m->rates[0].fma);
    }
}

int bench_machine(Cli *c) {
    Machine m;
    const char *path = machine_path(c);
    if (!machine_measure(&m, c->diag)) return cli_finish(c, EXIT_WRONG);
    char *dir = rt_cache_dir();
    RtError e = {0};
    bool ok = cli_value(c, "machine") || rt_make_dirs(dir, &e) == RT_OK;
    free(dir);
    if (!ok) return cli_fail(c, "%s", e.text);
    if (!machine_keep(path, &m)) return cli_fail(c, "%s: %s", path, strerror(errno));
    if (cli_flag(c, "json")) {
        json_t *all = json_pack("{s:o}", m.name, machine_json(&m));
        json_dumpf(all, stdout, MACHINE_JSON);
        printf("\n");
        json_decref(all);
        return cli_finish(c, EXIT_DONE);
    }
    printf("%s, registers of %d bytes\n", m.name, m.vector_bytes);
    print_arithmetic(&m);
    print_memory(c->arena, &m);
    print_tiles(&m);
    const MachineLevel *l3 = &m.level[LEVEL_L3], *memory = &m.level[LEVEL_DRAM];
    printf("\na line of each of 16 rows in turns, GB/s of one thread: L3 %.1f, DRAM %.1f; rows whole pages apart: %.1f, %.1f\n", l3->strips[0] / 1e9,
           memory->strips[0] / 1e9, l3->strips[1] / 1e9, memory->strips[1] / 1e9);
    printf("a tile's call takes %.1f ns beside its operations; columns are packed at %.1f GB/s\n", m.call * 1e9, m.turn / 1e9);
    printf("sums over rows, %d of a leaf, GFLOP/s: leaves one by one %.1f, in fours %.1f\n", MACHINE_LEAF_K, m.leaves / 1e9, m.fours / 1e9);
    printf("\nteam of %d: %.2f us to run an empty function, %.2f us for a barrier, %.3f us to take a task\n", m.threads, m.region * 1e6,
           m.barrier * 1e6, m.task * 1e6);
    if (!c->quiet) printf("kept in %s\n", path);
    return cli_finish(c, EXIT_DONE);
}
