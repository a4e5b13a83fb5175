// Messages of a step, by the functions that the runtime sizes its exchanges with.  What data decide, the rows of experts, is
// modelled or comes from a record.
#ifndef PLANNER_TRAFFIC_H
#define PLANNER_TRAFFIC_H
#include "ir/base/arena.h"
#include "ir/base/diag.h"
#include "planner/layout.h"
#include "planner/routes.h"
#include "runtime/slots.h"
#include "runtime/usage.h"

typedef struct {
    const RtPlan *plan;
    int    rank, per_node;         // whose messages; ranks of a node
    double tokens;                 // of a rank's pass
    double node_rows;              // > 0: a token's rows go to so many nodes at most, and once to each
    double row_bytes;              // > 0: of an element on the way to its expert (the runtime: as computed)
    const RtSlots *table;          // of the plan, by number: which experts are where
    double skew;                   // experts are chosen as 1 / (number + 1)^skew
    const RouteLog *log;           // what a run of this layout recorded: its mean rows instead; NULL: the model
} TrafficOf;

// Rows behind an exchange of offsets.
typedef struct {
    int32_t *rows;                 // [members of its group][experts]: that a member sends to an expert
    int32_t *distinct;             // [members][nodes]: different ones for a node's experts; NULL: they don't go by nodes
} TrafficRows;
TrafficRows *traffic_rows(const TrafficOf *t, Arena *a, uint32_t offsets_step);

// Of these, the rows at the experts of the rank that t names.
int64_t traffic_rows_here(const TrafficOf *t, uint32_t offsets_step, const TrafficRows *rows);

typedef struct {
    RtCommKind kind;
    int       rounds;              // one after the other
    RtTraffic sent[RT_LINKS], received[RT_LINKS];
    int64_t   handed;              // bytes that are no message: between memory that a node shares and the rank's rows
} StepTraffic;

// Of a step of the plan.  rows: of the route whose rows it moves; false: it moves nothing.
bool traffic_of_step(const TrafficOf *t, Arena *a, uint32_t step, const TrafficRows *rows, StepTraffic *out);
// The step that makes the offsets whose rows a step moves; UINT32_MAX: it moves none.
uint32_t traffic_offsets_step(const RtPlan *plan, uint32_t step);

// A whole step of training: the waves and the update.
void traffic_of_training_step(const TrafficOf *t, Arena *a, int64_t waves, RtUsage *out);

// All steps of a record together.  false after an error: the log is of another plan.
bool traffic_recorded(const TrafficOf *t, Arena *a, Diag *d, const RouteLog *log, int64_t waves, RtUsage *out);

#endif
