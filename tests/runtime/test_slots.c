// Wherever experts are, each rank's rows of an expert have one slot to go to, and replicas share the ranks in blocks.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "runtime/place.h"
#include "runtime/slots.h"

typedef struct {
    RtPlan plan;
    char   text[8];
    RtSlotTable table[3];
} Plan;

// Four ranks: 8 experts in 8, in 12 and in 16 slots.
static void make_plan(Plan *p) {
    *p = (Plan){.text = "\0moe", .table = {{1, 8, 8, 0}, {1, 8, 12, 0}, {1, 8, 16, 0}}};
    p->plan.mesh = (RtMesh){.dp = 1, .ep = 4, .tp = 1};
    p->plan.text = (RtSpan){offsetof(Plan, text), sizeof p->text};
    p->plan.slot_tables = (RtSpan){offsetof(Plan, table), 3};
}

static void each_rank_is_served_once(const RtSlots *t) {
    for (int i = 0; i < t->experts; i++)
        for (int rank = 0, last = -1; rank < t->ranks; rank++) {
            int slot = -1;
            for (int s = 0; s < t->slots; s++) {
                if (t->expert[s] != i || !rt_slot_serves(t, s, rank)) continue;
                assert_int_equal(slot, -1);
                slot = s;
            }
            assert_true(slot >= 0);
            if (rank % (t->ranks / t->count[i])) assert_int_equal(slot, last);         // a block of ranks, aligned
            last = slot;
        }
}

static void all_ways_to_begin(void **state) {
    Plan p;
    int fours = 0;
    make_plan(&p);
    for (int kind = 0; kind < PLACEMENT_KINDS; kind++)
        for (uint64_t seed = 0; seed < 100; seed++) {
            RtSlots *t;
            RtError e;
            assert_int_equal(rt_slots_open(&p.plan, &t, &e), RT_OK);
            assert_int_equal(rt_slots_begin(t, &p.plan, (RtPlacementKind)kind, seed, &e), RT_OK);
            for (int i = 0; i < 3; i++) {
                each_rank_is_served_once(&t[i]);
                for (int k = 0; k < t[i].experts; k++) fours += t[i].count[k] == 4;
            }
            if (kind == PLACEMENT_LINEAR) assert_int_equal(t[0].slot[5], 5);
            if (kind == PLACEMENT_ROUND_ROBIN) assert_int_equal(t[0].slot[5], 3);      // the second of rank 1
            rt_slots_close(t, &p.plan);
        }
    assert_true(fours > 50);
}

static void what_is_no_placement_changes_nothing(void **state) {
    Plan p;
    RtSlots *t;
    RtError e;
    make_plan(&p);
    assert_int_equal(rt_slots_open(&p.plan, &t, &e), RT_OK);
    int32_t twice[] = {0, 0, 1, 2, 3, 4, 5, 6}, beyond[] = {0, 1, 2, 3, 4, 5, 6, 8}, below[] = {-1, 0, 1, 2, 3, 4, 5, 6};
    int32_t three[] = {0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 1, 2}, good[] = {7, 6, 5, 4, 3, 2, 1, 0};
    assert_false(rt_slots_set(&t[0], twice) || rt_slots_set(&t[0], beyond) || rt_slots_set(&t[0], below));
    assert_false(rt_slots_set(&t[1], three));
    assert_int_equal(t[0].expert[7], 7);
    assert_true(rt_slots_set(&t[0], good));
    assert_int_equal(t[0].slot[7], 0);
    each_rank_is_served_once(&t[0]);
    each_rank_is_served_once(&t[1]);
    rt_slots_close(t, &p.plan);
}

// Two nodes of two ranks, 16 experts in 4 groups: the groups of most load are not on one node, none is on two, and whoever
// may stay does.
static void groups_stay_on_nodes(void **state) {
    struct { RtPlan plan; char text[8]; RtSlotTable table; } p = {.text = "\0moe", .table = {1, 16, 16, 0}};
    p.plan.mesh = (RtMesh){.dp = 1, .ep = 4, .tp = 1};
    p.plan.text = (RtSpan){offsetof(__typeof__(p), text), sizeof p.text};
    p.plan.slot_tables = (RtSpan){offsetof(__typeof__(p), table), 1};
    RtSlots *t;
    RtError e;
    assert_int_equal(rt_slots_open(&p.plan, &t, &e), RT_OK);
    int64_t load[16];
    int32_t expert[16];
    for (int i = 0; i < 16; i++) load[i] = i < 8 ? 100 + i : 10 + i;      // groups 0 and 1 are busy, and on node 0 as it begins
    assert_int_equal(rt_place(t, (RtPlaces){4, 2, 4}, load, expert, &e), RT_OK);
    assert_true(rt_slots_set(t, expert));
    int node[4];
    for (int g = 0; g < 4; g++) {
        node[g] = t->slot[g * 4] / 8;
        for (int i = 1; i < 4; i++) assert_int_equal(t->slot[g * 4 + i] / 8, node[g]);
    }
    assert_int_not_equal(node[0], node[1]);
    assert_int_not_equal(node[2], node[3]);
    int32_t again[16];
    assert_int_equal(rt_place(t, (RtPlaces){4, 2, 4}, load, again, &e), RT_OK);       // the same loads move nobody
    assert_memory_equal(again, expert, sizeof expert);
    assert_int_equal(rt_place(t, (RtPlaces){4, 1, 1}, load, expert, &e), RT_OK);      // all nodes alike: evener, and groups part
    bool parted = false;
    for (int s = 0; s < 16; s++) parted |= s / 8 != t->slot[expert[s] / 4 * 4] / 8;
    assert_true(parted);
    rt_slots_close(t, &p.plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(groups_stay_on_nodes),
        cmocka_unit_test(all_ways_to_begin), cmocka_unit_test(what_is_no_placement_changes_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
