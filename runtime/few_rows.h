// Rows of few tokens, as decoding has them: latency is all they cost, so to each rank goes one message, with counts and rows
// together, and nothing is asked for before.
//
//     to rank k     | rows of each of its slots and my leaves, i32 | rows, by slot and leaf |
//     back to it    | rows, by slot and leaf |
//
// Who receives has room for the most there may be.  So offsets at the experts are known when rows are there, not before:
// where a plan reads them earlier, rows go the long way.
#ifndef RUNTIME_FEW_ROWS_H
#define RUNTIME_FEW_ROWS_H
#include "runtime/comm.h"
#include "runtime/slots.h"

// Most tokens that each rank may have in a run for rows to go so; 0: never (a plan that isn't of generation, chunks, nodes).
int64_t rt_few_tokens(const RtPlan *plan);
size_t  rt_few_message_bytes(const RtPlan *plan);        // 0 where there are none

typedef struct {
    RtExchange x;                          // RT_EXCHANGE_ROWS or RT_RETURN_ROWS
    int      m, i;                         // ranks of the group; this one
    const RtSlots *table;                  // NULL: each expert is in the slot of its number
    const int32_t *home;                   // offsets
    int32_t *far;                          // written at the end of RT_EXCHANGE_ROWS
    unsigned char *home_rows, *far_rows;
    unsigned char *work;                   // [2 * m] messages
    size_t   message_bytes;
} RtFewRows;

// Packs what goes, and says what is due.  send, recv: [m].
void rt_few_op(const RtFewRows *w, RtCommPart *send, RtCommPart *recv, RtCommOp *op);
void rt_few_end(const RtFewRows *w);       // puts what has come where it belongs

#endif
