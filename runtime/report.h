// What the programs of a step report: losses and metrics, collected over waves and instances by name.
#ifndef RUNTIME_REPORT_H
#define RUNTIME_REPORT_H
#include "runtime/plan.h"

typedef enum {
    REPORT_LOSS,   // without its weight: summed over instances (layers), mean over leaves and waves
    REPORT_METRIC, // mean over instances, leaves and waves
    REPORT_LOAD,   // rows per expert: largest over mean, the worst route
    REPORT_DROP    // share of choices without a place, over all routes
} RtReportKind;

typedef struct {
    const char *name;               // last segment of the path: layers.3.ffn.balance -> balance
    RtReportKind kind;
    double value;
} RtReportValue;

typedef struct RtReport {
    RtReportValue *value;
    int    n;
    double loss;                    // the objective: sum of weight * value
    int64_t labels;                 // that count, of the last run
    struct RtReportSource *source;
    int    n_sources;
    RtPlanInstance *p;
    int64_t leaves, all_leaves;     // of this rank; of all
    int64_t columns;                // numbers that a leaf reports
    double *own, *all;              // [leaves, columns], [all_leaves, columns]
} RtReport;

// Of the outputs of these programs (-1: none).
RtStatus rt_report_open(RtReport *r, RtPlanInstance *p, int pass, int update, RtError *e);
void     rt_report_close(RtReport *r);
void     rt_report_begin(RtReport *r);
// After a run: takes what it left, of the leaves of all ranks.  counts[leaves]: labels of this rank's leaves that
// count; NULL: of a program without labels.
RtStatus rt_report_collect(RtReport *r, int program, const int64_t *counts, RtError *e);
// Adds what was collected.  share: this run's part of the step's leaves (or labels).  by_labels: a leaf counts by its
// labels, not by itself.
void     rt_report_add(RtReport *r, int program, int64_t step, double share, bool by_labels);
// Divides what was collected so far (not loads): shares that were no shares yet.
void     rt_report_scale(RtReport *r, double factor);
void     rt_report_end(RtReport *r);
// value of a name, or none.
double   rt_report_get(const RtReport *r, const char *name, double none);

#endif
