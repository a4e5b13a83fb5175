// Collects what is reported.
//
// What a program leaves per leaf lies on the rank that has the leaf.  One table of all leaves' numbers, gathered in
// the order of leaves, is what sums are made from; so they don't depend on who computed what.
//
//     leaf    labels   ce     layers.0..balance   load.layers.0.. [E]   ..
//     0       512      5.41   1.02                70 61 ..
//     1
#include "runtime/report.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/convert.h"
#include "runtime/gather.h"
#include "runtime/inputs.h"

typedef struct RtReportSource {
    const RtTensor *t;
    int     program, value;
    int64_t column, width;          // in the table of leaves; column 0: not of leaves, but the same on all ranks
    double *load;                   // [width], summed
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

static bool is_of_leaves(const RtReport *r, const RtTensor *t) { return t->ndim > 0 && t->dim[0] == r->leaves; }

// Numbers, one per leaf or one for all; and loads.  Other tensors are for other readers.
static bool is_reported(const RtReport *r, const RtTensor *t, const char *name) {
    if (t->role != RT_OUTPUT || t->kind == RT_OUT_RESULT) return false;
    if (is_load(t, name)) return true;
    int64_t n = rt_tensor_elements(r->p, t);
    return n == 1 || (n == r->leaves && is_of_leaves(r, t));
}

static RtStatus open_table(RtReport *r, RtError *e) {
    r->own = calloc((size_t)(r->leaves * r->columns) + 1, sizeof *r->own);
    r->all = calloc((size_t)(r->all_leaves * r->columns) + 1, sizeof *r->all);
    return r->own && r->all ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for reports");
}

RtStatus rt_report_open(RtReport *r, RtPlanInstance *p, int pass, int update, RtError *e) {
    const RtTensor *tokens = rt_tensor(p, "tokens");
    *r = (RtReport){.p = p, .leaves = tokens && tokens->ndim == 3 ? tokens->dim[0] : 1, .columns = 1};
    r->all_leaves = r->leaves * rt_data_ranks(p->ranks);
    r->value = calloc((size_t)p->n_tensors + 1, sizeof *r->value);
    r->source = calloc(2 * (size_t)p->n_tensors + 1, sizeof *r->source);
    if (!r->value || !r->source) return rt_fail(e, RT_NO_MEMORY, "no memory for reports");
    for (int k = 0; k < 2; k++) {
        int program = k ? update : pass;
        for (int i = 0; program >= 0 && i < p->n_tensors; i++) {
            const RtTensor *t = &p->tensor[i];
            const char *path = rt_output_name(p, t), *name = rt_last_segment(path);
            if (!is_reported(r, t, path) || !rt_is_output_of(p, program, t)) continue;
            Source *s = &r->source[r->n_sources++];
            RtReportKind kind = t->kind == RT_OUT_LOSS ? REPORT_LOSS
                                : is_load(t, path)     ? REPORT_LOAD
                                                       : REPORT_METRIC;
            bool routed = kind == REPORT_LOAD && path[0] == 'r';
            if (kind == REPORT_LOAD) name = routed ? "drop_rate" : "load";
            if (routed) kind = REPORT_DROP;
            *s = (Source){.t = t, .program = program, .routed = routed, .width = 1, .value = value_of(r, name, kind)};
            if (kind == REPORT_LOAD || kind == REPORT_DROP) {
                s->width = t->dim[t->ndim - 1];
                s->load = calloc((size_t)s->width, sizeof *s->load);
                if (!s->load) return rt_fail(e, RT_NO_MEMORY, "no memory for reports");
            }
            if (!is_of_leaves(r, t)) continue;
            s->column = r->columns;
            r->columns += s->width;
        }
    }
    return open_table(r, e);
}

void rt_report_close(RtReport *r) {
    for (int i = 0; i < r->n_sources; i++) free(r->source[i].load);
    free(r->source);
    free(r->value);
    free(r->own);
    free(r->all);
    *r = (RtReport){0};
}

void rt_report_begin(RtReport *r) {
    r->loss = 0;
    for (int i = 0; i < r->n_sources; i++) {
        r->source[i].sum = 0;
        if (r->source[i].load) memset(r->source[i].load, 0, (size_t)r->source[i].width * sizeof(double));
    }
}

RtStatus rt_report_collect(RtReport *r, int program, const int64_t *counts, RtError *e) {
    bool any = counts != NULL;
    for (int64_t l = 0; counts && l < r->leaves; l++) r->own[l * r->columns] = (double)counts[l];
    for (int i = 0; i < r->n_sources; i++) {
        const Source *s = &r->source[i];
        if (s->program != program || !s->column) continue;
        any = true;
        for (int64_t k = 0; k < r->leaves * s->width; k++)
            r->own[k / s->width * r->columns + s->column + k % s->width] =
                rt_load_number(rt_tensor_data(r->p, s->t), (DType)s->t->dtype, k);
    }
    if (!any) return rt_ranks_status(r->p->ranks, e);
    RT_TRY(rt_gather(r->p->ranks, r->own, r->leaves * r->columns * (int64_t)sizeof *r->own, r->all, e));
    r->labels = 0;
    for (int64_t l = 0; counts && l < r->all_leaves; l++) r->labels += (int64_t)r->all[l * r->columns];
    return RT_OK;
}

// Rows of numbers with a step between them: of all leaves, or of the output itself.
typedef struct { int64_t n, step; const double *leaf; const void *data; DType dtype; } Rows;

static Rows rows_of(const RtReport *r, const Source *s) {
    if (s->column) return (Rows){.n = r->all_leaves, .step = r->columns, .leaf = r->all + s->column};
    return (Rows){.n = rt_tensor_elements(r->p, s->t) / s->width, .step = s->width,
                  .data = rt_tensor_data(r->p, s->t), .dtype = (DType)s->t->dtype};
}

static double at(const Rows *w, int64_t row, int64_t k) {
    return w->leaf ? w->leaf[row * w->step + k] : rt_load_number(w->data, w->dtype, row * w->step + k);
}

static double mean_of(const RtReport *r, const Source *s, bool by_labels) {
    Rows w = rows_of(r, s);
    double sum = 0, total = 0;
    for (int64_t l = 0; l < w.n; l++) {
        double weight = by_labels && w.leaf ? r->all[l * r->columns] : 1;
        if (weight == 0) continue;
        sum += weight * at(&w, l, 0);
        total += weight;
    }
    return total > 0 ? sum / total : 0;
}

void rt_report_add(RtReport *r, int program, int64_t step, double share, bool by_labels) {
    for (int i = 0; i < r->n_sources; i++) {
        Source *s = &r->source[i];
        if (s->program != program) continue;
        if (s->load) {
            Rows w = rows_of(r, s);
            for (int64_t l = 0; l < w.n; l++)
                for (int64_t k = 0; k < s->width; k++) s->load[k] += at(&w, l, k);
            continue;
        }
        double mean = mean_of(r, s, by_labels);
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
        for (int64_t e = 0; s->load && e < s->width; e++) *(s->routed ? &routed : &kept) += s->load[e];
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
            double load = s->load ? largest_over_mean(s->load, s->width) : 0;
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
