// plan --calibrate: what kernels of a traced run reached, kept for plans of this machine.
#include "frontend/cmd_plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "frontend/cmd_machine.h"
#include "planner/calibrate.h"

// Ranks that take turns at cores are in each other's times.
static bool can_tell(Planning *p) {
    const Cluster *c = p->cluster;
    if (!c->cores || c->cores >= c->per_node) return true;
    diag_error(p->c->diag, (Span){0}, "%d ranks share %d cores: a trace of at most %d ranks tells what kernels reach", c->per_node, c->cores,
               c->cores);
    return false;
}

static bool keep_for_this_cpu(Planning *p) {
    const Cluster *c = p->cluster;
    Machine m = *machine_here(p->c, false);
    m.n_ops = 0;
    for (int i = 0; i < c->n_ops; i++) {
        if (strlen(c->op[i].op) >= sizeof m.op->op) continue;
        strcpy(m.op[m.n_ops].op, c->op[i].op);
        m.op[m.n_ops++].share = c->op[i].share;
    }
    const char *path = machine_cache_path(p->c);
    if (machine_keep(path, &m)) return true;
    diag_error(p->c->diag, (Span){0}, "%s: %s", path, strerror(errno));
    return false;
}

static void print_calibration(const Planning *p, const Calibration *k) {
    printf("%-20s %6s %10s %10s %8s\n", "kernels traced", "steps", "took ms", "limit ms", "share");
    for (int i = 0; i < k->n; i++) {
        const CalibratedOp *op = &k->op[i];
        if (op->seconds < 1e-5) break;
        printf("  %-18s %6d %10.2f %10.2f %6.1f %%\n", op->op, op->steps, 1e3 * op->seconds, 1e3 * op->limit, 100 * op->limit / op->seconds);
    }
    printf("  a step took %.4g s; %s\n\n", k->step_seconds,
           p->is_here ? "these shares are kept for plans with --local" : "--write-machine keeps these shares");
}

static json_t *calibration_json(const Calibration *k) {
    json_t *ops = json_object();
    for (int i = 0; i < k->n; i++)
        json_object_set_new(ops, k->op[i].op, json_pack("{s:i, s:f, s:f}", "steps", k->op[i].steps, "seconds", k->op[i].seconds, "limit", k->op[i].limit));
    return json_pack("{s:f, s:o}", "step_seconds", k->step_seconds, "ops", ops);
}

bool plan_calibrate(Planning *p, const PlanLayout *l, const RtPlan *plan, json_t *json) {
    const char *trace = cli_value(p->c, "calibrate");
    Calibration k;
    if (!trace) return true;
    if (!can_tell(p) || !calibrate(p->c->arena, p->c->diag, p->cluster, plan, l->waves, trace, &k)) return false;
    if (json) json_object_set_new(json, "calibration", calibration_json(&k));
    else print_calibration(p, &k);
    return (!p->is_here || keep_for_this_cpu(p)) && plan_write_cluster(p);
}
