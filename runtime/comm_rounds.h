// What collectives are made of: rounds, in each of which a rank exchanges at most one list of bytes with each other
// rank of its group.  Pure functions: the communicator runs them, the planner counts them.
#ifndef RUNTIME_COMM_ROUNDS_H
#define RUNTIME_COMM_ROUNDS_H
#include "runtime/comm.h"

typedef struct {
    void   *send, *recv;
    int64_t send_bytes, recv_bytes;
    bool    adds;              // what comes is added to recv
    bool    parts;             // send and recv are the op's parts of that peer instead
} RtShare;

int     rt_rounds(const RtCommOp *op, int m);
RtShare rt_share(const RtCommOp *op, int i, int m, int round, int peer);
int64_t rt_piece_bytes(bool adds);           // longer messages are cut in pieces of so many bytes

// After the last round: where all have sent their operands to all, they are summed here.
void    rt_finish_rounds(const RtCommOp *op, int i, int m);

// to[] = low[] + high[]; to may be either.
void    rt_comm_add(DType dtype, void *to, const void *low, const void *high, int64_t bytes);

#endif
