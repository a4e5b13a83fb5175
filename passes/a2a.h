// How long rows of experts are under way, and whether they go by nodes.  Of schedule-a2a, and of what plans.
#ifndef PASSES_A2A_H
#define PASSES_A2A_H
#include "passes/util.h"

// Products of rows, with what they wait for and send back.
typedef struct {
    double there, back;        // bytes of a rank on its way (a2a_on_link)
    double products;           // operations at mean loads
    double beside_there, beside_back;      // seconds of other work while rows are under way
    int    kernels;
    int    ranks, slots;       // that share the experts; of each rank.  0: own rows can't be multiplied apart
    double matrices;           // bytes of one's experts
} A2aRun;

// How a run is cut: others' rows in chunks, along experts; own: attribute own.
typedef struct { int chunks, own; } A2aCut;

int    a2a_ranks(const Node *exchange);                          // of its group
// Of so many bytes that a rank has for all experts, those that others wait for: what goes to other ranks, or where there are
// several nodes, to those, times the ranks that share a node's way.
double a2a_on_link(const PassCtx *cx, double bytes, int ranks);
double a2a_row_bytes(const Node *rows_exchange);
double a2a_rows_at_home(const Node *rows_exchange);              // bound
double a2a_products_flops(const Node *products);
double a2a_matrices_bytes(const Node *products);
int    a2a_slots(const Node *offsets);                           // of a rank
// Seconds so cut, with messages to so many ranks each way.
double a2a_seconds(const PassCtx *cx, const A2aRun *r, A2aCut cut, int peers);
int    a2a_peers(const PassCtx *cx, int ranks);                  // whose messages take the way that is slow
// The fastest cut, in at most so many chunks, groups of each rank's experts.
A2aCut a2a_best_cut(const PassCtx *cx, const A2aRun *r, int experts, int peers);

// Of tokens with k experts each, drawn evenly, the share that wants one or more of `there` of them.
double a2a_share_of_node(int k, double experts, double there);

// In front of scheduling: routes whose rows go by nodes (parallel.a2a).
bool   a2a_by_nodes(Graph *g, PassCtx *cx);
#endif
