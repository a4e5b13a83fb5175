// A rank among others: the group numbers, buffers and messages of a plan's exchanges.
#ifndef RUNTIME_RANKS_H
#define RUNTIME_RANKS_H
#include "runtime/comm.h"
#include "runtime/plan.h"

typedef struct RtRanks {
    RtComm  *comm;             // borrowed
    const RtPlan *plan;
    int      rank, n;
    RtMesh   mesh;
    int      group[RT_GROUPS]; // the communicator's number of the group that holds this rank; -1: it is alone there
    RtStatus status;           // of the first exchange that failed; those behind it do nothing
    RtError  error;
    RtError  agreed;           // the last error of rt_agree, which all ranks have
    struct RtSlot *slot;       // of exchanges under way
    int      n_slots;
    int     *slot_of;          // by an exchange's number in the plan
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

// The kernel of all exchanges (EXCHANGE_SYMBOL): one task, thread 0's.  Waits for the others.
RtKernelFn moec_exchange;

#endif
