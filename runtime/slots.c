#include "runtime/slots.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/philox.h"

static bool open_table(RtSlots *t, const RtPlan *plan, const RtSlotTable *from) {
    *t = (RtSlots){.name = RT_TEXT(plan, from->name), .experts = from->experts, .slots = from->slots};
    t->expert = calloc((size_t)t->slots, sizeof *t->expert);
    t->slot = calloc((size_t)t->experts, sizeof *t->slot);
    t->rows = calloc((size_t)t->experts, sizeof *t->rows);
    if (!t->expert || !t->slot || !t->rows) return false;
    for (int i = 0; i < t->slots; i++) t->expert[i] = i;
    for (int i = 0; i < t->experts; i++) t->slot[i] = i;
    return true;
}

int64_t rt_slots_bytes(const RtPlan *plan) {
    const RtSlotTable *t = RT_TABLE(plan, RtSlotTable, slot_tables);
    int64_t bytes = (plan->slot_tables.n + 1) * (int64_t)sizeof(RtSlots);
    for (uint32_t i = 0; i < plan->slot_tables.n; i++) bytes += (t[i].slots + t[i].experts) * (int64_t)sizeof(int32_t) + t[i].experts * (int64_t)sizeof(int64_t);
    return bytes;
}

RtStatus rt_slots_open(const RtPlan *plan, RtSlots **out, RtError *e) {
    const RtSlotTable *from = RT_TABLE(plan, RtSlotTable, slot_tables);
    RtSlots *t = *out = calloc((size_t)plan->slot_tables.n + 1, sizeof *t);
    bool ok = t != NULL;
    for (uint32_t i = 0; i < plan->slot_tables.n && ok; i++) ok = open_table(&t[i], plan, &from[i]);
    return ok ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for tables of experts");
}

void rt_slots_close(RtSlots *t, const RtPlan *plan) {
    for (uint32_t i = 0; t && i < plan->slot_tables.n; i++) {
        free(t[i].expert);
        free(t[i].slot);
        free(t[i].rows);
    }
    free(t);
}

static void shuffle(int32_t *x, int n, uint64_t seed) {
    for (int i = n - 1; i > 0; i--) {
        Philox4 draw = philox4((Philox4){{(uint32_t)i, 0, 0, 0x736c6f74}}, (uint32_t)seed, (uint32_t)(seed >> 32));
        int k = (int)(draw.at[0] % (uint32_t)(i + 1));
        int32_t was = x[i];
        x[i] = x[k];
        x[k] = was;
    }
}

void rt_slots_begin(RtSlots *t, const RtPlan *plan, RtPlacementKind kind, uint64_t seed) {
    int ranks = plan->mesh.ep;
    for (uint32_t i = 0; i < plan->slot_tables.n; i++, t++) {
        int each = t->slots / ranks;
        for (int s = 0; s < t->slots; s++) t->expert[s] = kind == PLACEMENT_ROUND_ROBIN ? s % each * ranks + s / each : s;
        if (kind == PLACEMENT_RANDOM) shuffle(t->expert, t->slots, seed);
        for (int s = 0; s < t->slots; s++) t->slot[t->expert[s]] = s;
    }
}

bool rt_slots_set(RtSlots *t, const int32_t *expert) {
    int32_t *slot = malloc((size_t)t->experts * sizeof *slot);
    bool ok = slot != NULL;
    for (int i = 0; i < t->experts && ok; i++) slot[i] = -1;
    for (int s = 0; s < t->slots && ok; s++) {
        ok = expert[s] >= 0 && expert[s] < t->experts && slot[expert[s]] < 0;
        if (ok) slot[expert[s]] = s;
    }
    if (ok) {
        memcpy(t->expert, expert, (size_t)t->slots * sizeof *expert);
        memcpy(t->slot, slot, (size_t)t->experts * sizeof *slot);
    }
    free(slot);
    return ok;
}
