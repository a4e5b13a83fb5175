// A rank among others: the group numbers, buffers and messages of a plan's exchanges.
#ifndef RUNTIME_RANKS_H
#define RUNTIME_RANKS_H
#include <stdio.h>
#include "runtime/comm.h"
#include "runtime/plan.h"
#include "runtime/slots.h"

// Of exchanges of rows: how long they were under way, and how much of that this rank spent on nothing else.  Of each route, rows of
// the rank that got most, and of all ranks of this one's group.
typedef struct { int64_t under_way_ns, exposed_ns, most, all; } RtRowsTime;

typedef struct RtRanks {
    RtComm  *comm;             // borrowed
    const RtPlan *plan;
    int      rank, n;
    RtMesh   mesh;
    int      group[RT_GROUPS]; // the communicator's number of the group that holds this rank; -1: it is alone there
    RtSlots *table;            // of the plan, by number: which experts its slots hold
    RtStatus status;           // of the first exchange that failed; those behind it do nothing
    RtError  error;
    RtError  agreed;           // the last error of rt_agree, which all ranks have
    struct RtSlot *slot;       // of exchanges under way
    int      n_slots;
    void   **shared;           // [n]: where rows between nodes lie, of each rank of this node; NULL: rows don't go by nodes
    struct RtDealt *dealt;     // by an exchange's number in the plan
    RtPlanInstance *plan_run;  // borrowed: whose exchanges these are
    RtRowsTime rows;           // since open
    bool     counts_busiest;   // most and all of rows are kept: they take a look at each slot of all ranks
    int64_t  few_tokens;       // most tokens of each rank for which `few` may be set; 0: never
    size_t   few_message_bytes;
    int      few_sym;          // of the rows at experts that are due
    bool     few;              // rows go as few_rows.h says: all ranks set it alike, before a run of @run
    FILE    *routes;           // where rows of each route are recorded, or NULL (borrowed)
    int64_t  step;             // of the run, for that
} RtRanks;

// Called by all ranks with the same plan: opens its groups and gives the instance its rank.  The mesh must have as many
// ranks as the communicator (RT_BAD_SETTING).  The instance's programs may exchange from here on; after a run of one,
// status says whether all went well.
RtStatus rt_ranks_open(RtPlanInstance *p, RtComm *comm, RtRanks **out, RtError *e);
void     rt_ranks_close(RtRanks *r);                     // NULL is fine

// Bytes that rt_ranks_open takes for this plan, its communicator's included.
int64_t  rt_ranks_bytes(const RtPlan *plan);
// What a step exchanges; NULL: nothing.
const RtExchange *rt_exchange_of(const RtPlan *plan, uint32_t step);

// Where rows lie that are exchanged: at home by (expert, own leaves), at the experts by (slot, rank, leaf).
typedef struct {
    const int32_t *home, *far;             // offsets
    unsigned char *home_rows, *far_rows;
    const RtSlots *table;                  // NULL: each expert is in the slot of its number
    int rank;                              // of the group, for which replicas serve it
} RtRowsAt;
typedef struct { RtCommPart *send, *recv; int64_t *cut; } RtExchangeRoom;       // [slots], [slots], [m + 1]

// What an exchange of this rank in a group of m is for the communicator: kind and sizes; group, tag and buffers are the
// caller's.  at: of rows; without rows of data (NULL) only sizes are right.  false: nothing travels.
bool     rt_exchange_op(const RtExchange *x, int m, const RtRowsAt *at, RtExchangeRoom room, RtCommOp *op);

// The kernel of all exchanges (EXCHANGE_SYMBOL): one task, thread 0's.  Waits for the others.
RtKernelFn moec_exchange;

#endif
