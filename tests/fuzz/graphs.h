// What several targets ask of a graph.
#ifndef TESTS_FUZZ_GRAPHS_H
#define TESTS_FUZZ_GRAPHS_H
#include "ir/ir.h"

// Aborts unless g passes the verifier, and its text reads back as a graph with the same text.
void fuzz_graph_reads_back(Arena *a, Graph *g);
// Formats all messages, as for a user.
void fuzz_print(Diag *d);

#endif
