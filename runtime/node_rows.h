// Rows of experts between ranks of several nodes, in two levels.  Of a group's m ranks per_node are on each node, neighbours:
// rank (n, g) is number n * per_node + g.
//
//   there   (n,g) packs what node n' gets, each row once however many experts there want it, behind a map that says which row
//           each pair of row and expert is; one message to (n',g), into memory that n' shares; whoever has the expert copies it out
//   back    ranks of n' write the rows of (n,g) where n' shares memory with (n',g), which sends them in one message
//
// So a pair of nodes exchanges per_node messages, not per_node * per_node, and a row crosses once.  Pairs are in the order of
// the node's slots, leaves, rows at home.  Rows between ranks of one node travel as they would without nodes.
#ifndef RUNTIME_NODE_ROWS_H
#define RUNTIME_NODE_ROWS_H
#include "runtime/comm.h"
#include "runtime/slots.h"

typedef struct {
    RtExchange x;
    int m, i;                        // ranks of the group; this one
    const RtSlots *table;            // NULL: each expert is in the slot of its number
    const int32_t *home, *far;       // offsets
    const int32_t *counts;           // blocks of all ranks (rt_comm_block): rows by expert and leaf, then distinct ones by node
    const int32_t *same;             // rows at home of one number are one row; NULL: each is its own
    unsigned char *home_rows, *far_rows;
    unsigned char *work;             // rt_node_work_bytes
    unsigned char **box;             // [per_node]: of each rank of this node, rt_node_box_bytes that all reach
} RtNodeRows;

// Sizes at the rows' bound.
size_t  rt_node_work_bytes(const RtExchange *x, int m);
size_t  rt_node_box_bytes(const RtExchange *x, int m);
int64_t rt_node_count_elements(const RtExchange *x, int m);            // of a block of counts

// This rank's block of `counts`, by home and same.
void rt_node_count(const RtNodeRows *r, int32_t *block);
// Rows of rank k for an expert's leaf; different ones that it has for a node's experts.
int32_t rt_node_rows(const RtNodeRows *r, int k, int expert, int leaf);
int32_t rt_node_distinct(const RtNodeRows *r, int k, int node);

// What the communicator moves; sizes are right without rows and memory, too.  send, recv: [slots + m + 2].
void rt_node_op(const RtNodeRows *r, RtCommPart *send, RtCommPart *recv, RtCommOp *op);
void rt_node_begin(const RtNodeRows *r);           // before that: what is sent is put together
void rt_node_end(const RtNodeRows *r);             // behind it: what has come goes where it belongs

#endif
