// Collects what is reported.
#include "runtime/report.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/convert.h"
#include "runtime/inputs.h"

typedef struct RtReportSource {
    const RtTensor *t;
    int     program, value;
    int64_t experts;                // of a load
    double *load;                   // [experts], summed
    bool    routed;                 // load before the drop
    double  sum;
} Source;

// Every route reports `load.PATH` and `routed.PATH`: choices per expert, [L, E], after and before the drop.
static bool is_load(const RtTensor *t, const char *name) {
    return (!strncmp(name, "load.", 5) || !strncmp(name, "routed.", 7)) && t->ndim > 1;
}

static int value_of(RtReport *r, const char *name, RtReportKind kind) {
    for (int i = 0; i < r->n; i++)
        if (r->value[i].kind == kind && !strcmp(r->value[i].name, name)) return i;
    r->value[r->n] = (RtReportValue){.name = name, .kind = kind};
    return r->n++;
}

// Numbers, one per leaf or one for all; and loads.  Other tensors are for other readers.
static bool is_reported(const RtPlanInstance *p, const RtTensor *t, const char *name) {
    if (t->role != RT_OUTPUT || t->kind == RT_OUT_RESULT) return false;
    if (is_load(t, name)) return true;
    const RtTensor *tokens = rt_tensor(p, "tokens");
    int64_t n = rt_tensor_elements(p, t), leaves = tokens && tokens->ndim == 3 ? tokens->dim[0] : 1;
    return n == 1 || n == leaves;
}

RtStatus rt_report_open(RtReport *r, const RtPlanInstance *p, int pass, int update, RtError *e) {
    *r = (RtReport){0};
    r->value = calloc((size_t)p->n_tensors + 1, sizeof *r->value);
    r->source = calloc(2 * (size_t)p->n_tensors + 1, sizeof *r->source);
    if (!r->value || !r->source) return rt_fail(e, RT_NO_MEMORY, "no memory for reports");
    for (int k = 0; k < 2; k++) {
        int program = k ? update : pass;
        for (int i = 0; program >= 0 && i < p->n_tensors; i++) {
            const RtTensor *t = &p->tensor[i];
            const char *path = rt_output_name(p, t), *name = rt_last_segment(path);
            if (!is_reported(p, t, path) || !rt_is_output_of(p, program, t)) continue;
            Source *s = &r->source[r->n_sources++];
            RtReportKind kind = t->kind == RT_OUT_LOSS ? REPORT_LOSS
                                : is_load(t, path)     ? REPORT_LOAD
                                                       : REPORT_METRIC;
            bool routed = kind == REPORT_LOAD && path[0] == 'r';
            if (kind == REPORT_LOAD) name = routed ? "drop_rate" : "load";
            if (routed) kind = REPORT_DROP;
            *s = (Source){.t = t, .program = program, .routed = routed, .value = value_of(r, name, kind)};
            if (kind != REPORT_LOAD && kind != REPORT_DROP) continue;
            s->experts = t->dim[t->ndim - 1];
            s->load = calloc((size_t)s->experts, sizeof *s->load);
            if (!s->load) return rt_fail(e, RT_NO_MEMORY, "no memory for reports");
        }
    }
    return RT_OK;
}

void rt_report_close(RtReport *r) {
    for (int i = 0; i < r->n_sources; i++) free(r->source[i].load);
    free(r->source);
    free(r->value);
    *r = (RtReport){0};
}

void rt_report_begin(RtReport *r) {
    r->loss = 0;
    for (int i = 0; i < r->n_sources; i++) {
        r->source[i].sum = 0;
        if (r->source[i].load) memset(r->source[i].load, 0, (size_t)r->source[i].experts * sizeof(double));
    }
}

void rt_report_add(RtReport *r, const RtPlanInstance *p, int program, int64_t step, double share,
                   int64_t leaves, const int64_t *counts) {
    for (int i = 0; i < r->n_sources; i++) {
        Source *s = &r->source[i];
        if (s->program != program) continue;
        if (s->load) {
            int64_t n = rt_tensor_elements(p, s->t);
            for (int64_t k = 0; k < n; k++)
                s->load[k % s->experts] += rt_load_number(rt_tensor_data(p, s->t), (DType)s->t->dtype, k);
            continue;
        }
        double mean = rt_output_mean(p, s->t, leaves, counts);
        s->sum += share * mean;
        bool ended = s->t->init_a > 0 && (double)step > s->t->init_a;           // a loss with `until`
        if (s->t->kind == RT_OUT_LOSS && !ended) r->loss += share * (double)s->t->weight * mean;
    }
}

void rt_report_scale(RtReport *r, double factor) {
    r->loss *= factor;
    for (int i = 0; i < r->n_sources; i++) r->source[i].sum *= factor;
}

static double largest_over_mean(const double *load, int64_t n) {
    double sum = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += load[i];
        if (load[i] > most) most = load[i];
    }
    return sum > 0 ? most * (double)n / sum : 0;
}

// Share of all choices that found no place, over all routes.
static double drop_rate(const RtReport *r) {
    double routed = 0, kept = 0;
    for (int i = 0; i < r->n_sources; i++) {
        const Source *s = &r->source[i];
        for (int64_t e = 0; s->load && e < s->experts; e++) *(s->routed ? &routed : &kept) += s->load[e];
    }
    return routed > 0 ? 1 - kept / routed : 0;
}

void rt_report_end(RtReport *r) {
    for (int v = 0; v < r->n; v++) {
        double sum = 0, worst = 0;
        int n = 0;
        for (int i = 0; i < r->n_sources; i++) {
            const Source *s = &r->source[i];
            if (s->value != v) continue;
            n++;
            sum += s->sum;
            double load = s->load ? largest_over_mean(s->load, s->experts) : 0;
            if (load > worst) worst = load;
        }
        RtReportValue *value = &r->value[v];
        value->value = value->kind == REPORT_LOAD ? worst : value->kind == REPORT_DROP ? drop_rate(r)
                     : value->kind == REPORT_METRIC && n ? sum / n : sum;
    }
}

double rt_report_get(const RtReport *r, const char *name, double none) {
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->value[i].name, name)) return r->value[i].value;
    return none;
}
