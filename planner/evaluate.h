// A layout judged: memory, messages, time.
#ifndef PLANNER_EVALUATE_H
#define PLANNER_EVALUATE_H
#include "planner/pipeline.h"
#include "planner/stages.h"

// What is taken for granted beyond what the runtime does.
typedef struct {
    double node_rows;              // > 0: a token's row goes to at most so many nodes, once to each
    double row_bytes;              // > 0: bytes of an element on the way to experts (1: fp8)
    bool   overlap;                // of micro-batches (DualPipe)
} Assumptions;

typedef struct {
    PlanLayout layout;
    RtMemory  memory;              // of the rank with the most
    int       stage;               // its stage
    double    room;                // bytes of a device for it
    Simulated time;
    double    far_rows;            // rows at the fullest experts over their bound; > 1: several rounds
    double    tokens_per_s;        // of all ranks
    double    mfu;
    Layers    layers;
    int      *stage_of;            // [layer + 1]; NULL: one stage
    double    kept;                // bytes of a pass's forward values that backward reads, of all layers
    int       fullest;             // layer with the most memory of that rank; -1, layers.n: before and behind them
    double    fullest_bytes;
} Evaluation;

// model_flops: of the model's products, forward and backward, for a step of all ranks.  timeline: NULL, or where a step is
// recorded.  false: the model has fewer layers than stages.
bool evaluate(Arena *a, const Cluster *c, const PlanLayout *l, const TrafficOf *t, Graph *pass, double model_flops, bool overlap,
              Timeline *timeline, Evaluation *out);
bool evaluation_fits(const Evaluation *e);

#endif
