// `moec plan`: from a model and a cluster to what the planner needs of a layout.
#ifndef FRONTEND_CMD_PLAN_H
#define FRONTEND_CMD_PLAN_H
#include "frontend/cmd_session.h"
#include "planner/cluster.h"
#include "planner/evaluate.h"

typedef struct {
    Session  s;
    Cli     *c;
    Cluster *cluster;
    double   skew;
    Assumptions assume;
    bool     is_here;            // the cluster is ranks of this machine (--local)
} Planning;

// A layout's step, compiled but for its code.  Lives in arena.
typedef struct {
    Arena   *arena;
    Programs programs;
    const RtPlan *plan;
    RtSlots *table;              // where its experts are as a run begins
} PlannedStep;

// --machine or --local.  false after errors.
bool plan_cluster(Planning *p);
// The layout that the parallel block asks for on the cluster's devices.  false after errors.
bool plan_layout_asked(Planning *p, PlanLayout *out);
// false after errors; close either way.
bool plan_compile(Planning *p, const PlanLayout *l, PlannedStep *out);
void plan_close(PlannedStep *step);
bool plan_write_cluster(Planning *p);          // as --write-machine says, if it does
// Fits efficiencies to the trace of --calibrate, if there is one.  json: NULL, or where to tell it.  false after errors.
bool plan_calibrate(Planning *p, const PlanLayout *l, const RtPlan *plan, json_t *json);
TrafficOf plan_traffic(const Planning *p, const PlanLayout *l, const PlannedStep *step, int rank);

// Judges a compiled layout.  log: NULL, or what a run of it recorded.  trace: NULL, or where to write its timeline.  false after
// errors.
bool plan_judge(Planning *p, const PlanLayout *l, const PlannedStep *step, const RouteLog *log, double model_flops, const char *trace,
                Evaluation *out);
bool plan_evaluate(Planning *p, const PlanLayout *l, double model_flops, Evaluation *out);      // compiles it, too
// Of the model's products in a step of all ranks: backward counts twice, what is computed again doesn't.
bool plan_model_flops(Planning *p, double *out);

typedef struct {
    int listed, possible, tried;
    int n;
    Evaluation *all;             // [n] that fit, the fastest first
} SearchResult;

// Tries at most so many layouts.  nearest: in the order of how many settings differ from the layout asked for, and ends at the
// first number of changes at which one fits.
SearchResult plan_search(Planning *p, const Evaluation *asked, double model_flops, int tries, bool nearest);

#endif
