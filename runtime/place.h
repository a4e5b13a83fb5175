// New slot tables of a layer's experts: balanced by EPLB, and as near to the present ones as alike loads allow.
#ifndef RUNTIME_PLACE_H
#define RUNTIME_PLACE_H
#include "runtime/slots.h"

typedef struct {
    int ranks;                 // of the table's group
    int nodes;                 // its ranks are dealt to in order; 1: they are all alike
    int groups;                // of experts, which stay on a node whole if nodes share them evenly (eplb.h)
} RtPlaces;

// expert[slots] for these loads of experts.
RtStatus rt_place(const RtSlots *t, RtPlaces p, const int64_t *load, int32_t *expert, RtError *e);

#endif
