// Which experts a rank holds, as data: for each MoE layer of a plan a table of slots, which the ranks of a group share out
// in order, and the expert that each slot holds.
//
//     slot      0  1 | 2  3 | 4  5 | 6  7          ranks 0, 1, 2, 3 with two slots each
//     expert    5  0 | 3  7 | 1  2 | 6  4
//
// An expert may have 2 or 4 slots: replicas, which serve a half or a quarter of the ranks each, neighbours.  So the sum over the
// rows of one is a subtree of the sum over all, and the whole is the tree over replicas.
//
// Tables are the same on all ranks.  They decide where an expert's rows are computed and its tensors lie, never what comes
// out: names, checkpoints and every bit are those of experts by number.
#ifndef RUNTIME_SLOTS_H
#define RUNTIME_SLOTS_H
#include "runtime/abi.h"
#include "runtime/settings.h"
#include "runtime/status.h"

enum { MOST_REPLICAS = 4 };    // of an expert

typedef struct {
    const char *name;          // of the layer: layers.3.ffn.experts
    int      experts, slots, ranks;
    int32_t *expert;           // [slots]: whom a slot holds
    int32_t *turn;             // [slots]: which of its replicas
    int32_t *slot, *count;     // [experts]: where the first of its replicas is, how many there are
    int64_t *rows;             // [experts]: that this rank sent it so far
} RtSlots;

// Those of a plan, by number; each expert in the slot of its number.
RtStatus rt_slots_open(const RtPlan *plan, RtSlots **out, RtError *e);
int64_t  rt_slots_bytes(const RtPlan *plan);                // that they take
void     rt_slots_close(RtSlots *t, const RtPlan *plan);     // NULL is fine
// Where experts are when a run begins, in layers of as many experts alike.  linear: neighbours on one rank; round_robin:
// each on the next.
RtStatus rt_slots_begin(RtSlots *t, const RtPlan *plan, RtPlacementKind kind, uint64_t seed, RtError *e);
// Takes expert[slots]; false, and nothing changes: some expert would have no slot, or replicas that can't share the ranks.
bool     rt_slots_set(RtSlots *t, const int32_t *expert);
// Do the rows that a rank has for this slot's expert go there?
static inline bool rt_slot_serves(const RtSlots *t, int slot, int rank) {
    return rank * t->count[t->expert[slot]] / t->ranks == t->turn[slot];
}

#endif
