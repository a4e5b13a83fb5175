// Greedy twice: a slot that is left doubles up the expert with the largest load per replica; an item goes, heaviest
// first, to the lightest pack with room.
#include "runtime/eplb.h"

#include <stdlib.h>

#define BAD(...) rt_fail(e, RT_BAD_SETTING, __VA_ARGS__)

bool rt_eplb_is_hierarchical(const RtEplbSizes *z) { return z->nodes > 0 && z->groups % z->nodes == 0; }

static RtEplbSizes effective(const RtEplbSizes *z) {
    RtEplbSizes y = *z;
    if (!rt_eplb_is_hierarchical(z)) y.groups = y.nodes = 1;
    return y;
}

RtStatus rt_eplb_check(const RtEplbSizes *z, RtError *e) {
    if (z->experts < 1 || z->slots < 1 || z->ranks < 1 || z->nodes < 1 || z->groups < 1)
        return BAD("experts, slots, ranks, nodes and groups must be at least 1");
    if (z->ranks % z->nodes) return BAD("%d ranks can't be dealt evenly to %d nodes", z->ranks, z->nodes);
    if (z->slots % z->ranks) return BAD("%d slots can't be dealt evenly to %d ranks", z->slots, z->ranks);
    if (z->slots < z->experts) return BAD("%d slots are too few for %d experts", z->slots, z->experts);
    if (z->powers && z->slots > z->experts && (z->slots > 2 * z->experts || z->ranks < 2 || z->nodes > 1))
        return BAD("%d slots for %d experts on %d ranks can't all be replicas by powers of two", z->slots, z->experts, z->ranks);
    RtEplbSizes y = effective(z);
    if (y.experts % y.groups) return BAD("%d experts can't be dealt evenly to %d groups", y.experts, y.groups);
    return RT_OK;
}

// ---- packing -----------------------------------------------------------------------------------------------------

typedef struct { float weight; int32_t index; } Item;

static int heaviest_first(const void *a, const void *b) {
    const Item *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return x->index - y->index;
}

typedef struct {
    Item    *item;             // [items]
    float   *weight;           // [packs]
    int32_t *items;            // [packs]
} Packer;

// place[i] = pack * (items per pack) + its turn there.
static void pack(Packer *p, const float *weight, int n, int packs, int32_t *place) {
    int each = n / packs;
    if (each == 1) {
        for (int i = 0; i < n; i++) place[i] = i;
        return;
    }
    for (int i = 0; i < n; i++) p->item[i] = (Item){weight[i], i};
    qsort(p->item, (size_t)n, sizeof *p->item, heaviest_first);
    for (int k = 0; k < packs; k++) p->weight[k] = 0, p->items[k] = 0;
    for (int i = 0; i < n; i++) {
        int best = -1;
        for (int k = 0; k < packs; k++)
            if (p->items[k] < each && (best < 0 || p->weight[k] < p->weight[best])) best = k;
        place[p->item[i].index] = best * each + p->items[best]++;
        p->weight[best] += p->item[i].weight;
    }
}

// ---- replicas ----------------------------------------------------------------------------------------------------

static int hottest(const float *load, const int32_t *count, int experts, int most) {
    int best = -1;
    for (int i = 0; i < experts; i++)
        if (count[i] <= most && (best < 0 || load[i] / (float)count[i] > load[best] / (float)count[best])) best = i;
    return best;
}

// As many again, of whom that can still be said: 1, 2, 4, not more than slots are left, nor ranks.
static void double_up(const RtEplbSizes *z, const float *load, int32_t *slot, int32_t *count) {
    for (int s = z->experts; s < z->slots;) {
        int most = z->slots - s < 2 ? z->slots - s : 2;
        int best = hottest(load, count, z->experts, most < z->ranks / 2 ? most : z->ranks / 2), more = count[best];
        for (int k = 0; k < more; k++) slot[s++] = best;
        count[best] += more;
    }
}

static void replicate(const float *load, int experts, int slots, int32_t *slot, int32_t *count) {
    for (int s = experts; s < slots; s++) {
        int best = hottest(load, count, experts, slots);
        slot[s] = best;
        count[best]++;
    }
}

// ---- both --------------------------------------------------------------------------------------------------------

typedef struct {
    Packer   packer;
    float   *group, *load, *share;      // [groups]; [experts], by node; [slots of a node]
    int32_t *place, *by_node;           // of groups, then of a node's slots; the expert at each place of a node
    int32_t *replica, *replicas;        // of a node: slots, experts
} Work;

static void free_work(Work *w) {
    free(w->packer.item);
    free(w->packer.weight);
    free(w->packer.items);
    free(w->group);
    free(w->load);
    free(w->share);
    free(w->place);
    free(w->by_node);
    free(w->replica);
    free(w->replicas);
}

static bool open_work(Work *w, const RtEplbSizes *z) {
    size_t most = (size_t)(z->slots > z->groups ? z->slots : z->groups);
    *w = (Work){.packer = {malloc(most * sizeof(Item)), malloc(most * sizeof(float)), malloc(most * sizeof(int32_t))},
                .group = calloc(most, sizeof(float)),
                .load = malloc(most * sizeof(float)),
                .share = malloc(most * sizeof(float)),
                .place = malloc(most * sizeof(int32_t)),
                .by_node = malloc(most * sizeof(int32_t)),
                .replica = malloc(most * sizeof(int32_t)),
                .replicas = malloc(most * sizeof(int32_t))};
    return w->packer.item && w->packer.weight && w->packer.items && w->group && w->load && w->share && w->place && w->by_node &&
           w->replica && w->replicas;
}

// Groups to nodes: by_node lists the experts node by node.
static void deal_groups(Work *w, const RtEplbSizes *z, const float *load) {
    int each = z->experts / z->groups;
    for (int i = 0; i < z->experts; i++) w->group[i / each] += load[i];
    pack(&w->packer, w->group, z->groups, z->nodes, w->place);
    for (int i = 0; i < z->experts; i++) w->by_node[w->place[i / each] * each + i % each] = i;
    for (int i = 0; i < z->experts; i++) w->load[i] = load[w->by_node[i]];
}

static void fill_node(Work *w, const RtEplbSizes *z, int node, int32_t *slot, int32_t *count) {
    int experts = z->experts / z->nodes, slots = z->slots / z->nodes;
    const float *load = w->load + node * experts;
    const int32_t *expert = w->by_node + node * experts;
    for (int i = 0; i < experts; i++) w->replica[i] = i, w->replicas[i] = 1;
    if (z->powers) double_up(z, load, w->replica, w->replicas);
    else replicate(load, experts, slots, w->replica, w->replicas);
    for (int s = 0; s < slots; s++) w->share[s] = load[w->replica[s]] / (float)w->replicas[w->replica[s]];
    pack(&w->packer, w->share, slots, z->ranks / z->nodes, w->place);
    for (int s = 0; s < slots; s++) slot[node * slots + w->place[s]] = expert[w->replica[s]];
    for (int i = 0; i < experts; i++) count[expert[i]] = w->replicas[i];
}

RtStatus rt_eplb(const RtEplbSizes *z, const float *load, int32_t *slot, int32_t *count, RtError *e) {
    RT_TRY(rt_eplb_check(z, e));
    for (int i = 0; i < z->experts; i++)
        if (!(load[i] >= 0 && load[i] <= 3e38f)) return BAD("the load of expert %d is %g", i, (double)load[i]);
    RtEplbSizes y = effective(z);
    Work w;
    RtStatus s = open_work(&w, &y) ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory to place %d experts", y.experts);
    if (s == RT_OK) {
        deal_groups(&w, &y, load);
        for (int node = 0; node < y.nodes; node++) fill_node(&w, &y, node, slot, count);
    }
    free_work(&w);
    return s;
}

double rt_eplb_imbalance(const RtEplbSizes *z, const float *load, const int32_t *slot, const int32_t *count) {
    int each = z->slots / z->ranks;
    double most = 0, sum = 0;
    for (int r = 0; r < z->ranks; r++) {
        double own = 0;
        for (int s = r * each; s < (r + 1) * each; s++) own += (double)load[slot[s]] / count[slot[s]];
        if (own > most) most = own;
        sum += own;
    }
    return sum > 0 ? most * z->ranks / sum : 1;
}
