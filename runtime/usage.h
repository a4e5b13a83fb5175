// What a run took of each rank: memory, and messages to others.  The planner's figures are held against it.
#ifndef RUNTIME_USAGE_H
#define RUNTIME_USAGE_H
#include <jansson.h>
#include "runtime/comm.h"
#include "runtime/plan.h"

// What the steps of the plan sent and received, by kind and link.
typedef struct {
    RtTraffic sent[RT_COMM_KINDS][RT_LINKS], received[RT_COMM_KINDS][RT_LINKS];
} RtUsage;

// Adds what was moved since `before`.
void rt_usage_add(RtUsage *u, const RtCommCounters *before, const RtComm *c);

// {"rows": {"node": [MESSAGES, BYTES]}, ..} of one direction; a new reference.
json_t *rt_traffic_json(const RtTraffic t[RT_COMM_KINDS][RT_LINKS]);

// By all ranks: the first writes RUN/ranks.json,
//   {"steps": 6, "ranks": [{"rank": 0, "memory": {"weights": BYTES, .., "allocated": BYTES},
//     "sent": {"rows": {"node": [MESSAGES, BYTES]}, ..}, "received": {..}}, ..]}
RtStatus rt_usage_write(const RtUsage *u, RtPlanInstance *p, int64_t steps, const char *run_dir, RtError *e);

#endif
