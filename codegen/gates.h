// Gates as the pieces they consist of.
#ifndef CODEGEN_GATES_H
#define CODEGEN_GATES_H
#include "ir/ir.h"

// Row-local nodes of equal row counts joined into bodies (FUSED), the others alone, in an order that runs.
typedef struct {
    Graph  *g;               // ARG nodes for the gate's operands, then the pieces and constants they read
    Value **result;          // by the gate's results: each made by a piece, no two the same
    Node   *route;
} GatePieces;
GatePieces gate_pieces(Arena *a, const Node *gate);

// The graph itself, or a copy in which each gate that is no kernel by itself is its pieces.  Values get memory behind the
// graph's own.
Graph *open_gates(Arena *a, Graph *g, bool (*is_kernel)(const Node *gate));

#endif
