#include "runtime/slots.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/eplb.h"
#include "runtime/philox.h"

static bool open_table(RtSlots *t, const RtPlan *plan, const RtSlotTable *from) {
    *t = (RtSlots){.name = RT_TEXT(plan, from->name), .experts = from->experts, .slots = from->slots, .ranks = rt_expert_ranks(plan->mesh)};
    t->expert = calloc((size_t)t->slots, sizeof *t->expert);
    t->turn = calloc((size_t)t->slots, sizeof *t->turn);
    t->slot = calloc((size_t)t->experts, sizeof *t->slot);
    t->count = calloc((size_t)t->experts, sizeof *t->count);
    t->rows = calloc((size_t)t->experts, sizeof *t->rows);
    return t->expert && t->turn && t->slot && t->count && t->rows;
}

int64_t rt_slots_bytes(const RtPlan *plan) {
    const RtSlotTable *t = RT_TABLE(plan, RtSlotTable, slot_tables);
    int64_t bytes = (plan->slot_tables.n + 1) * (int64_t)sizeof(RtSlots);
    for (uint32_t i = 0; i < plan->slot_tables.n; i++)
        bytes += 2 * (t[i].slots + t[i].experts) * (int64_t)sizeof(int32_t) + t[i].experts * (int64_t)sizeof(int64_t);
    return bytes;
}

RtStatus rt_slots_open(const RtPlan *plan, RtSlots **out, RtError *e) {
    const RtSlotTable *from = RT_TABLE(plan, RtSlotTable, slot_tables);
    RtSlots *t = *out = calloc((size_t)plan->slot_tables.n + 1, sizeof *t);
    bool ok = t != NULL;
    for (uint32_t i = 0; i < plan->slot_tables.n && ok; i++) ok = open_table(&t[i], plan, &from[i]);
    if (!ok) return rt_fail(e, RT_NO_MEMORY, "no memory for tables of experts");
    return rt_slots_begin(t, plan, PLACEMENT_LINEAR, 0, e);
}

void rt_slots_close(RtSlots *t, const RtPlan *plan) {
    for (uint32_t i = 0; t && i < plan->slot_tables.n; i++) {
        free(t[i].expert);
        free(t[i].turn);
        free(t[i].slot);
        free(t[i].count);
        free(t[i].rows);
    }
    free(t);
}

static uint32_t draw(uint64_t seed, int i, uint32_t what) {
    return philox4((Philox4){{(uint32_t)i, what, 0, 0x736c6f74}}, (uint32_t)seed, (uint32_t)(seed >> 32)).at[0];
}

static void shuffle(int32_t *x, int n, uint64_t seed) {
    for (int i = n - 1; i > 0; i--) {
        int k = (int)(draw(seed, i, 0) % (uint32_t)(i + 1));
        int32_t was = x[i];
        x[i] = x[k];
        x[k] = was;
    }
}

// Of as many experts alike, one table: linear or round robin without replicas, else what EPLB makes of equal loads; random
// draws loads, then the order of slots.
static RtStatus begin_table(RtSlots *t, RtPlacementKind kind, uint64_t seed, RtError *e) {
    int each = t->slots / t->ranks;
    float *load = malloc((size_t)t->experts * sizeof *load);
    int32_t *expert = malloc((size_t)t->slots * sizeof *expert), *count = malloc((size_t)t->experts * sizeof *count);
    RtEplbSizes z = {.experts = t->experts, .slots = t->slots, .ranks = t->ranks, .nodes = 1, .groups = 1, .powers = true};
    RtStatus s = load && expert && count ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for tables of experts");
    for (int i = 0; s == RT_OK && i < t->experts; i++)
        load[i] = kind == PLACEMENT_RANDOM ? (float)(1 << draw(seed, i, 1) % 8) : 1;
    if (s == RT_OK && t->slots > t->experts) s = rt_eplb(&z, load, expert, count, e);
    for (int i = 0; s == RT_OK && i < t->slots && t->slots == t->experts; i++)
        expert[i] = kind == PLACEMENT_ROUND_ROBIN ? i % each * t->ranks + i / each : i;
    if (s == RT_OK && kind == PLACEMENT_RANDOM) shuffle(expert, t->slots, seed);
    if (s == RT_OK && !rt_slots_set(t, expert)) s = rt_fail(e, RT_BAD_PLAN, "%s: replicas can't share %d ranks", t->name, t->ranks);
    free(load);
    free(expert);
    free(count);
    return s;
}

RtStatus rt_slots_begin(RtSlots *t, const RtPlan *plan, RtPlacementKind kind, uint64_t seed, RtError *e) {
    for (uint32_t i = 0; i < plan->slot_tables.n; i++) RT_TRY(begin_table(&t[i], kind, seed, e));
    return RT_OK;
}

bool rt_slots_set(RtSlots *t, const int32_t *expert) {
    int32_t *count = calloc((size_t)t->experts, sizeof *count);
    bool ok = count != NULL;
    for (int s = 0; s < t->slots && ok; s++) {
        ok = expert[s] >= 0 && expert[s] < t->experts;
        if (ok) count[expert[s]]++;
    }
    for (int i = 0; i < t->experts && ok; i++) ok = (count[i] == 1 || count[i] == 2 || count[i] == 4) && count[i] <= t->ranks;
    if (ok) {
        memset(t->count, 0, (size_t)t->experts * sizeof *t->count);
        for (int s = 0; s < t->slots; s++) {
            int i = t->expert[s] = expert[s];
            if (!t->count[i]) t->slot[i] = s;
            t->turn[s] = t->count[i]++;
        }
    }
    free(count);
    return ok;
}
