// How long rows of experts are under way, and whether they go by nodes.  Of schedule-a2a only.
#ifndef PASSES_A2A_H
#define PASSES_A2A_H
#include "passes/util.h"

// Products of rows, with what they wait for and send back.
typedef struct {
    double there, back;        // bytes of a rank on its way (a2a_on_link)
    double products;           // operations at mean loads
    double beside_there, beside_back;      // seconds of other work while rows are under way
    int    kernels;
} A2aRun;

int    a2a_ranks(const Node *exchange);                          // of its group
// Of so many bytes that a rank has for all experts, those that others wait for: what goes to other ranks, or where there are
// several nodes, to those, times the ranks that share a node's way.
double a2a_on_link(const PassCtx *cx, double bytes, int ranks);
double a2a_row_bytes(const Node *rows_exchange);
double a2a_rows_at_home(const Node *rows_exchange);              // bound
double a2a_products_flops(const Node *products);
// Seconds in q chunks, with messages to so many ranks each way.
double a2a_seconds(const PassCtx *cx, const A2aRun *r, int q, int peers);
int    a2a_peers(const PassCtx *cx, int ranks);                  // whose messages take the way that is slow
// The fastest number of chunks, of groups of each rank's experts.
int    a2a_best_chunks(const PassCtx *cx, const A2aRun *r, int experts, int peers);

// In front of scheduling: routes whose rows go by nodes (parallel.a2a).
bool   a2a_by_nodes(Graph *g, PassCtx *cx);
#endif
