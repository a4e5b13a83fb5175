// Which experts a rank holds, as data: for each MoE layer of a plan a table of slots, which the ranks of a group share out
// in order, and the expert that each slot holds.
//
//     slot      0  1 | 2  3 | 4  5 | 6  7          ranks 0, 1, 2, 3 with two slots each
//     expert    5  0 | 3  7 | 1  2 | 6  4
//
// Tables are the same on all ranks.  They decide where an expert's rows are computed and its tensors lie, never what comes
// out: names, checkpoints and every bit are those of experts by number.
#ifndef RUNTIME_SLOTS_H
#define RUNTIME_SLOTS_H
#include "runtime/abi.h"
#include "runtime/settings.h"
#include "runtime/status.h"

typedef struct {
    const char *name;          // of the layer: layers.3.ffn.experts
    int      experts, slots;
    int32_t *expert;           // [slots]: whom a slot holds
    int32_t *slot;             // [experts]: where one is
    int64_t *rows;             // [experts]: that the ranks of this group sent it so far
} RtSlots;

// Those of a plan, by number; each expert in the slot of its number.
RtStatus rt_slots_open(const RtPlan *plan, RtSlots **out, RtError *e);
int64_t  rt_slots_bytes(const RtPlan *plan);                // that they take
void     rt_slots_close(RtSlots *t, const RtPlan *plan);     // NULL is fine
// Where experts are when a run begins, in layers of as many experts alike.  linear: neighbours on one rank; round_robin:
// each on the next.
void     rt_slots_begin(RtSlots *t, const RtPlan *plan, RtPlacementKind kind, uint64_t seed);
// Takes expert[slots]; false, and nothing changes: some expert would have no slot.
bool     rt_slots_set(RtSlots *t, const int32_t *expert);

#endif
