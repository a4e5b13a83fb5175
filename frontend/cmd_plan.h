// `moec plan`: from a model and a cluster to what the planner needs of a layout.
#ifndef FRONTEND_CMD_PLAN_H
#define FRONTEND_CMD_PLAN_H
#include "frontend/cmd_session.h"
#include "planner/cluster.h"
#include "planner/layout.h"
#include "planner/traffic.h"

typedef struct {
    Session  s;
    Cli     *c;
    Cluster *cluster;
    double   skew;
    bool     is_here;            // the cluster is ranks of this machine (--local)
} Planning;

// A layout's step, compiled but for its code.  Lives in arena.
typedef struct {
    Arena   *arena;
    Programs programs;
    const RtPlan *plan;
} PlannedStep;

// --machine or --local.  false after errors.
bool plan_cluster(Planning *p);
// The layout that the parallel block asks for on the cluster's devices.  false after errors.
bool plan_layout_asked(Planning *p, PlanLayout *out);
// false after errors; close either way.
bool plan_compile(Planning *p, const PlanLayout *l, PlannedStep *out);
void plan_close(PlannedStep *step);
TrafficOf plan_traffic(const Planning *p, const PlanLayout *l, const RtPlan *plan, int rank);

#endif
