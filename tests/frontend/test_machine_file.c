// The file of measured rates: what is written is read back; what can't be a machine's rates is refused, with the member and
// the reason; another CPU's rates are not taken for this one's.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "frontend/machine_file.h"

static Machine sample(const char *name, int threads) {
    Machine m = machine_guess(64, threads);
    snprintf(m.name, sizeof m.name, "%s", name);
    m.rates[0].bf16_dot = 231.5e9;
    m.level[LEVEL_L2].probed = 1 << 19;
    m.n_tiles = 2;
    m.tile[0] = (MachineTile){14, 2, TILE_F32, 117.4e9};
    m.tile[1] = (MachineTile){8, 3, TILE_BF16_WIDENED, 0.04e9};
    return m;
}

static char *text_of(int n, const Machine *m) {
    json_t *all = json_object();
    for (int i = 0; i < n; i++) json_object_set_new(all, m[i].name, machine_json(&m[i]));
    char *text = json_dumps(all, MACHINE_JSON);
    json_decref(all);
    return text;
}

static void same(double a, double b) {
    if (fabs(a - b) > 1e-4 * fabs(a)) fail_msg("%g became %g", a, b);
}

static void assert_same(const Machine *a, const Machine *b) {
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->threads, b->threads);
    assert_int_equal(a->vector_bytes, b->vector_bytes);
    assert_int_equal(a->n_rates, b->n_rates);
    for (int i = 0; i < a->n_rates; i++) {
        assert_int_equal(a->rates[i].threads, b->rates[i].threads);
        same(a->rates[i].fma, b->rates[i].fma);
        same(a->rates[i].bf16_dot, b->rates[i].bf16_dot);
        same(a->rates[i].int8_dot, b->rates[i].int8_dot);
    }
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        const MachineLevel *x = &a->level[i], *y = &b->level[i];
        assert_int_equal(x->size, y->size);
        assert_int_equal(x->probed, y->probed);
        for (int j = 0; j < 2; j++)
            same(x->read[j], y->read[j]), same(x->write[j], y->write[j]), same(x->copy[j], y->copy[j]), same(x->stream[j], y->stream[j]);
    }
    same(a->region, b->region);
    same(a->barrier, b->barrier);
    same(a->call, b->call);
    same(a->turn, b->turn);
    same(a->task, b->task);
    assert_int_equal(a->n_tiles, b->n_tiles);
    for (int i = 0; i < a->n_tiles; i++) {
        assert_int_equal(a->tile[i].rows, b->tile[i].rows);
        assert_int_equal(a->tile[i].vecs, b->tile[i].vecs);
        assert_int_equal(a->tile[i].kind, b->tile[i].kind);
        same(a->tile[i].rate, b->tile[i].rate);
    }
}

// Files of versions that measured less.
static void reads_earlier_files(void **state) {
    Machine m = sample("A", 2), again;
    m.n_tiles = 0;
    m.task = 5e-3;
    json_t *all = json_object(), *one = machine_json(&m);
    json_object_del(one, "task");
    json_object_set_new(all, "A", one);
    char *text = json_dumps(all, MACHINE_JSON), why[256];
    json_decref(all);
    if (machine_in_text(&again, "A", false, text, strlen(text), why) != MACHINE_FOUND) fail_msg("%s", why);
    m.task = machine_guess(64, 2).task;
    assert_same(&m, &again);
    free(text);
}

static void reads_what_it_writes(void **state) {
    char why[256];
    for (int threads = 1; threads <= 3; threads++) {
        Machine m = sample("A", threads), again;
        char *text = text_of(1, &m);
        if (machine_in_text(&again, "A", false, text, strlen(text), why) != MACHINE_FOUND) fail_msg("%s", why);
        assert_same(&m, &again);
        free(text);
    }
}

static void keeps_cpus_apart(void **state) {
    char why[256];
    Machine m[] = {sample("A", 2), sample("B", 4)}, found;
    char *two = text_of(2, m), *one = text_of(1, m);
    assert_int_equal(machine_in_text(&found, "B", false, two, strlen(two), why), MACHINE_FOUND);
    assert_same(&m[1], &found);
    assert_int_equal(machine_in_text(&found, "C", false, two, strlen(two), why), MACHINE_FOREIGN);
    assert_non_null(strstr(why, "\"C\""));
    assert_int_equal(machine_in_text(&found, "C", true, two, strlen(two), why), MACHINE_FOREIGN);      // which of both?
    assert_int_equal(machine_in_text(&found, "C", false, one, strlen(one), why), MACHINE_FOREIGN);
    assert_int_equal(machine_in_text(&found, "C", true, one, strlen(one), why), MACHINE_FOUND);
    assert_same(&m[0], &found);
    free(two);
    free(one);
}

static void damaged_text_is_refused(void **state) {
    char why[256];
    Machine m = sample("A", 2), found;
    char *text = text_of(1, &m);
    for (size_t n = 0; n < strlen(text); n += 7)            // cut anywhere
        assert_int_equal(machine_in_text(&found, "A", true, text, n, why), MACHINE_DAMAGED);
    assert_int_equal(machine_in_text(&found, "A", true, "[1]", 3, why), MACHINE_DAMAGED);
    assert_int_equal(machine_in_text(&found, "A", true, "{\"A\": 3}", 8, why), MACHINE_DAMAGED);
    free(text);
}

// One member changed: what is said, in part.
static const struct {
    const char *from, *to, *says;
} wrongs[] = {
    {"\"threads\": 2", "\"threads\": 0", "machine.threads is 0; it must be a whole number"},
    {"\"threads\": 2", "\"threads\": 2.5", "machine.threads is 2.5"},
    {"\"threads\": 2", "\"threads\": 3", "machine.rates[1].threads is 2; rates must"},
    {"\"region\": 3.0", "\"regions\": 3.0", "machine.region is missing; it must be a number above 0"},
    {"\"region\": 3.0", "\"region\": -3.0", "machine.region is -3.0; it must be a number above 0"},
    {"\"region\": 3.0", "\"region\": \"3\"", "machine.region is \"3\""},
    {"\"region\": 3.0", "\"region\": 3.0, \"colour\": 1", "members"},
    {"\"fma\": 110.0", "\"fma\": 0", "machine.rates[0].fma is 0; it must be a number above 0"},
    {"\"fma\": 110.0", "\"fma\": 1e300", "machine.rates[0].fma is 1"},
    {"\"bf16_dot\": 231.5", "\"bf16_dot\": -1", "machine.rates[0].bf16_dot is -1; it must be a number, 0 if"},
    {"\"size\": 32768", "\"size\": -32768", "machine.levels.L1.size is -32768; it must be a number of bytes"},
    {"\"L3\"", "\"L4\"", "machine.levels.L3 is missing"},
    {"\"rows\": 14", "\"rows\": null", "machine.tiles[0].rows is null"},
    {"bf16 widened", "bf16 widend", "machine.tiles[1].kind is \"bf16 widend\"; it must be a kind of tile"},
};

static void wrong_members_are_named(void **state) {
    char why[256];
    Machine m = sample("A", 2), found;
    char *text = text_of(1, &m);
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        const char *at = strstr(text, wrongs[i].from);
        if (!at) fail_msg("the sample has no %s", wrongs[i].from);
        size_t n = strlen(text) + 64;
        char *bad = malloc(n);
        snprintf(bad, n, "%.*s%s%s", (int)(at - text), text, wrongs[i].to, at + strlen(wrongs[i].from));
        assert_int_equal(machine_in_text(&found, "A", true, bad, strlen(bad), why), MACHINE_DAMAGED);
        if (!strstr(why, wrongs[i].says)) fail_msg("%s: said '%s', not '%s'", wrongs[i].to, why, wrongs[i].says);
        free(bad);
    }
    free(text);
}

// What is read off the rates: between counts of threads, and which level holds so many bytes.
static void rates_between(void **state) {
    Machine m = machine_guess(64, 8);
    m.n_rates = 3;
    m.rates[0] = (MachineRates){1, 100, 50, 0};
    m.rates[1] = (MachineRates){4, 400, 200, 0};
    m.rates[2] = (MachineRates){8, 600, 300, 0};
    same(machine_rates(&m, 1).fma, 100);
    same(machine_rates(&m, 2).fma, 200);
    same(machine_rates(&m, 6).bf16_dot, 250);
    same(machine_rates(&m, 0).fma, 600);
    same(machine_rates(&m, 99).fma, 600);
    const double read[2] = {10, 24};
    same(machine_bandwidth(&m, read, 1), 10);
    same(machine_bandwidth(&m, read, 0), 24);
    same(machine_bandwidth(&m, read, 4), 16);
    m.level[LEVEL_L1].size = 32 << 10, m.level[LEVEL_L2].size = 1 << 20, m.level[LEVEL_L3].size = 16 << 20;
    assert_int_equal(machine_level(&m, 32 << 10, 1), LEVEL_L1);
    assert_int_equal(machine_level(&m, 33 << 10, 1), LEVEL_L2);
    assert_int_equal(machine_level(&m, 33 << 10, 2), LEVEL_L1);
    assert_int_equal(machine_level(&m, 9 << 20, 8), LEVEL_L3);
    assert_int_equal(machine_level(&m, 17 << 20, 8), LEVEL_DRAM);
    m.level[LEVEL_L3].size = 0;
    assert_int_equal(machine_level(&m, 9 << 20, 8), LEVEL_DRAM);
    Machine one = machine_guess(16, 1);
    assert_int_equal(one.n_rates, 1);
    same(machine_bandwidth(&one, read, 0), 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_what_it_writes), cmocka_unit_test(reads_earlier_files), cmocka_unit_test(keeps_cpus_apart),
                                       cmocka_unit_test(damaged_text_is_refused), cmocka_unit_test(wrong_members_are_named),
                                       cmocka_unit_test(rates_between)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
