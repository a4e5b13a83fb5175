// A rank among others: what a plan's exchanges and the loops around them need.
#ifndef RUNTIME_RANKS_H
#define RUNTIME_RANKS_H
#include "runtime/abi.h"
#include "runtime/status.h"

struct RtComm;

typedef struct RtRanks {
    struct RtComm *comm;         // borrowed
    int     rank, n;
    RtMesh  mesh;
    int     group[RT_GROUPS];  // the communicator's numbers of the groups that hold this rank
    RtStatus status;           // of the first exchange that failed; those behind it do nothing
    RtError  error;
} RtRanks;

// The kernel of all exchanges (EXCHANGE_SYMBOL): one task, thread 0's.  Waits for the others; a failure is kept in
// call->ranks.
RtKernelFn moec_exchange;

#endif
