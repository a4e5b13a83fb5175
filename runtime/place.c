// EPLB says which experts lie together.  Which rank gets which pack of them is free, and so is the order of its slots.
#include "runtime/place.h"

#include <stdlib.h>

#include "runtime/eplb.h"

static int in_common(const int32_t *a, const int32_t *b, int n) {
    int both = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++) both += a[i] == b[k];
    return both;
}

// Blocks of `each` slots: which new one each old one becomes, so that much stays, the most alike first.
static void match(const int32_t *old, const int32_t *new, int blocks, int each, int *owner, bool *taken) {
    for (int k = 0; k < blocks; k++) owner[k] = -1, taken[k] = false;
    for (int turn = 0; turn < blocks; turn++) {
        int best = -1, block = 0, which = 0;
        for (int r = 0; r < blocks; r++)
            for (int k = 0; k < blocks && owner[r] < 0; k++) {
                int both = taken[k] ? -1 : in_common(old + r * each, new + k * each, each);
                if (both > best) best = both, block = r, which = k;
            }
        owner[block] = which;
        taken[which] = true;
    }
}

// A rank's pack into its slots: who is there already stays in its slot.
static void keep_slots(const int32_t *old, const int32_t *pack, int each, int32_t *to, bool *done) {
    for (int k = 0; k < each; k++) done[k] = false;
    for (int s = 0; s < each; s++) {
        to[s] = -1;
        for (int k = 0; k < each && to[s] < 0; k++)
            if (!done[k] && pack[k] == old[s]) to[s] = pack[k], done[k] = true;
    }
    for (int s = 0, k = 0; s < each; s++) {
        if (to[s] >= 0) continue;
        while (done[k]) k++;
        to[s] = pack[k];
        done[k] = true;
    }
}

// Nodes first, where packs belong to nodes, then the ranks of each.
static bool keep_in_place(const RtSlots *t, int ranks, int nodes, const int32_t *pack, int32_t *expert) {
    int each = t->slots / ranks, per_node = ranks / nodes;
    int *node = malloc((size_t)nodes * sizeof *node), *owner = malloc((size_t)per_node * sizeof *owner);
    bool *taken = malloc((size_t)t->slots * sizeof *taken);
    bool ok = node && owner && taken;
    if (ok) match(t->expert, pack, nodes, per_node * each, node, taken);
    for (int n = 0; ok && n < nodes; n++) {
        const int32_t *old = t->expert + n * per_node * each, *new = pack + node[n] * per_node * each;
        match(old, new, per_node, each, owner, taken);
        for (int r = 0; r < per_node; r++) keep_slots(old + r * each, new + owner[r] * each, each, expert + (n * per_node + r) * each, taken);
    }
    free(node);
    free(owner);
    free(taken);
    return ok;
}

RtStatus rt_place(const RtSlots *t, RtPlaces p, const int64_t *load, int32_t *expert, RtError *e) {
    // replicas serve neighbouring ranks of all nodes, so no group of them stays on one
    bool replicas = t->slots > t->experts;
    RtEplbSizes z = {.experts = t->experts, .slots = t->slots, .ranks = p.ranks, .nodes = replicas ? 1 : p.nodes,
                     .groups = replicas ? 1 : p.groups, .powers = replicas};
    float *loads = malloc((size_t)t->experts * sizeof *loads);
    int32_t *pack = malloc((size_t)t->slots * sizeof *pack), *count = malloc((size_t)t->experts * sizeof *count);
    bool ok = loads && pack && count;
    for (int i = 0; ok && i < t->experts; i++) loads[i] = (float)load[i];
    RtStatus s = ok ? rt_eplb(&z, loads, pack, count, e) : RT_NO_MEMORY;
    int nodes = rt_eplb_is_hierarchical(&z) ? z.nodes : 1;
    if (s == RT_OK && !keep_in_place(t, p.ranks, nodes, pack, expert)) s = RT_NO_MEMORY;
    if (s == RT_NO_MEMORY) rt_fail(e, s, "no memory to place experts of %s", t->name);
    free(loads);
    free(pack);
    free(count);
    return s;
}
