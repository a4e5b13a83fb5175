// Placement is that of the reference (tests/goldens/eplb), and whatever the loads every expert has a slot and every rank as many.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/eplb.h"

enum { MOST = 256 };

static int integer(const json_t *o, const char *key) { return (int)json_integer_value(json_object_get(o, key)); }
static const json_t *row(const json_t *o, const char *key, int layer) {
    return json_array_get(json_object_get(o, key), (size_t)layer);
}

static void equal_row(const char *name, const char *what, const json_t *want, const int32_t *is, int n) {
    assert_int_equal(json_array_size(want), n);
    for (int i = 0; i < n; i++)
        if (json_integer_value(json_array_get(want, (size_t)i)) != is[i])
            fail_msg("%s: %s[%d] is %d, must be %d", name, what, i, is[i],
                     (int)json_integer_value(json_array_get(want, (size_t)i)));
}

static void one_case(const json_t *c) {
    const char *name = json_string_value(json_object_get(c, "name"));
    RtEplbSizes z = {.experts = integer(c, "experts"), .slots = integer(c, "replicas"), .ranks = integer(c, "gpus"),
                     .nodes = integer(c, "nodes"), .groups = integer(c, "groups")};
    int32_t slot[MOST], count[MOST];
    float load[MOST];
    for (int layer = 0; layer < integer(c, "layers"); layer++) {
        for (int i = 0; i < z.experts; i++)
            load[i] = (float)json_number_value(json_array_get(row(c, "weight", layer), (size_t)i));
        RtError e;
        RtStatus s = rt_eplb(&z, load, slot, count, &e);
        if (json_object_get(c, "error")) {
            assert_int_equal(s, RT_BAD_SETTING);
            continue;
        }
        if (s != RT_OK) fail_msg("%s: %s", name, e.text);
        const char *policy = json_string_value(json_object_get(c, "policy"));
        assert_int_equal(rt_eplb_is_hierarchical(&z), !strcmp(policy, "hierarchical"));
        equal_row(name, "phy2log", row(c, "phy2log", layer), slot, z.slots);
        equal_row(name, "logcnt", row(c, "logcnt", layer), count, z.experts);
        double most = 0, sum = 0, ranks = z.ranks;
        for (int r = 0; r < z.ranks; r++) {
            double x = json_number_value(json_array_get(row(c, "gpu_load", layer), (size_t)r));
            sum += x;
            most = x > most ? x : most;
        }
        double imbalance = rt_eplb_imbalance(&z, load, slot, count);
        assert_true(fabs(imbalance - (sum > 0 ? most * ranks / sum : 1)) < 1e-5 * imbalance);
    }
}

static void reference(void **state) {
    const char *goldens = getenv("MOEC_GOLDENS");
    char path[512];
    snprintf(path, sizeof path, "%s/eplb/eplb.json", goldens ? goldens : "tests/goldens");
    json_error_t why;
    json_t *all = json_load_file(path, 0, &why), *cases = json_object_get(all, "cases");
    if (!all) fail_msg("%s: %s", path, why.text);
    assert_true(json_array_size(cases) >= 23);
    for (size_t i = 0; i < json_array_size(cases); i++) one_case(json_array_get(cases, i));
    json_decref(all);
}

static uint32_t draw(uint64_t *state, uint32_t n) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % n;
}

static void any_loads(void **state) {
    uint64_t seed = 7;
    for (int turn = 0; turn < 2000; turn++) {
        int nodes = 1 << draw(&seed, 3), per_node = 1 << draw(&seed, 3), per_rank = 1 + (int)draw(&seed, 4);
        RtEplbSizes z = {.nodes = nodes, .ranks = nodes * per_node, .slots = nodes * per_node * per_rank, .groups = nodes};
        z.experts = z.slots - (int)draw(&seed, (uint32_t)(per_node * per_rank)) / nodes * nodes;
        z.experts -= z.experts % nodes;
        if (nodes > 1 && draw(&seed, 2)) {                      // global
            z.groups = nodes + 1;
            z.experts = z.slots - (int)draw(&seed, (uint32_t)z.slots);
        }
        float load[MOST];
        int32_t slot[MOST], count[MOST], seen[MOST] = {0};
        bool integers = draw(&seed, 2);
        for (int i = 0; i < z.experts; i++) {
            load[i] = integers ? (float)draw(&seed, 50) : expf((float)draw(&seed, 1000) / 100 - 5);
            if (!draw(&seed, 5)) load[i] = 0;
        }
        RtError e;
        if (rt_eplb(&z, load, slot, count, &e) != RT_OK) fail_msg("%s", e.text);
        for (int s = 0; s < z.slots; s++) {
            assert_in_range(slot[s], 0, z.experts - 1);
            seen[slot[s]]++;
        }
        float spare = 0;                                        // nobody has more per replica than a last replica could take off
        int hottest = 0;
        for (int i = 0; i < z.experts; i++) {
            assert_true(count[i] >= 1 && seen[i] == count[i]);
            if (load[i] / (float)count[i] > load[hottest] / (float)count[hottest]) hottest = i;
            if (count[i] > 1 && load[i] / (float)(count[i] - 1) > spare) spare = load[i] / (float)(count[i] - 1);
        }
        bool global = !rt_eplb_is_hierarchical(&z);
        if (global && z.slots > z.experts) assert_true(load[hottest] / (float)count[hottest] <= spare);
        if (!global)                                            // groups stay on one node
            for (int i = 0; i < z.experts; i++)
                for (int s = 0, node = -1; s < z.slots; s++) {
                    if (slot[s] / (z.experts / z.groups) != i / (z.experts / z.groups)) continue;
                    int here = s / (z.slots / z.nodes);
                    assert_true(node < 0 || node == here);
                    node = here;
                }
        assert_true(rt_eplb_imbalance(&z, load, slot, count) >= 1 - 1e-6);
        int32_t again[MOST], counts[MOST];
        assert_int_equal(rt_eplb(&z, load, again, counts, &e), RT_OK);
        assert_memory_equal(slot, again, sizeof *slot * (size_t)z.slots);
    }
}

static void replicas_by_powers_of_two(void **state) {
    uint64_t seed = 11;
    int fours = 0;
    for (int turn = 0; turn < 1000; turn++) {
        int ranks = 2 << draw(&seed, 3), experts = ranks * (1 + (int)draw(&seed, 4));
        RtEplbSizes z = {.experts = experts, .ranks = ranks, .nodes = 1, .groups = 1, .powers = true};
        z.slots = experts + ranks * (int)draw(&seed, (uint32_t)(experts / ranks) + 1);
        float load[MOST];
        int32_t slot[MOST], count[MOST], seen[MOST] = {0};
        for (int i = 0; i < experts; i++) load[i] = expf((float)draw(&seed, 1000) / 200);
        RtError e;
        if (rt_eplb(&z, load, slot, count, &e) != RT_OK) fail_msg("%s", e.text);
        for (int s = 0; s < z.slots; s++) seen[slot[s]]++;
        for (int i = 0; i < experts; i++) {
            assert_true(seen[i] == count[i] && (count[i] == 1 || count[i] == 2 || count[i] == 4) && count[i] <= ranks);
            fours += count[i] == 4;
            for (int k = 0; k < experts; k++)                   // no doubling was given to one whose replicas had less to do
                assert_true(count[k] == 1 || count[i] > 1 || load[k] / (float)(count[k] / 2) >= load[i] || count[k] > 2);
        }
    }
    assert_true(fours > 100);
}

static void refused(const char *pattern, RtEplbSizes z, float second) {
    float load[16] = {1, second};
    int32_t slot[MOST], count[MOST];
    RtError e = {RT_OK, ""};
    assert_int_equal(rt_eplb(&z, load, slot, count, &e), RT_BAD_SETTING);
    if (!strstr(e.text, pattern)) fail_msg("'%s' says nothing of '%s'", e.text, pattern);
}

static void what_does_not_divide(void **state) {
    refused("3 ranks can't be dealt evenly to 2 nodes", (RtEplbSizes){8, 12, 3, 2, 1}, 1);
    refused("9 slots can't be dealt evenly to 4 ranks", (RtEplbSizes){8, 9, 4, 2, 2}, 1);
    refused("4 slots are too few for 8 experts", (RtEplbSizes){8, 4, 4, 2, 2}, 1);
    refused("8 experts can't be dealt evenly to 6 groups", (RtEplbSizes){8, 8, 4, 2, 6}, 1);
    refused("by powers of two", (RtEplbSizes){4, 12, 4, 1, 1, true}, 1);
    refused("at least 1", (RtEplbSizes){8, 8, 4, 0, 1}, 1);
    refused("load of expert 1 is -2", (RtEplbSizes){8, 8, 4, 2, 2}, -2);
    refused("load of expert 1 is", (RtEplbSizes){8, 8, 4, 2, 2}, NAN);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reference), cmocka_unit_test(any_loads),
                                       cmocka_unit_test(replicas_by_powers_of_two),
                                       cmocka_unit_test(what_does_not_divide)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
