// Inside ir/ref/ only: walks over a result whose operands broadcast or are read with other strides.  Axes
// that all operands step through alike are merged, so operands of equal shape are one run from start to end.
#ifndef IR_REF_WALK_H
#define IR_REF_WALK_H
#include "ir/ref/ref.h"

// Loops over transcendental functions use the machine's fma instruction where it has one: the same bits.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define FAST __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FAST
#endif

enum { WALK_OPERANDS = 3 };

typedef struct {
    int     ndim, n_in;
    int64_t dim[MAX_DIM], step[WALK_OPERANDS][MAX_DIM];
} Walk;

// One innermost run: result elements y .. y + n - 1, operand k at at[k], at[k] + step, ..
typedef struct {
    bool    more;
    int64_t y, at[WALK_OPERANDS], index[MAX_DIM];
} Run;

static inline void walk_merge(Walk *w) {
    int n = 0;
    for (int i = 0; i < w->ndim; i++) {
        if (w->dim[i] == 1) continue;
        bool merge = n > 0;
        for (int k = 0; merge && k < w->n_in; k++) merge = w->step[k][n - 1] == w->step[k][i] * w->dim[i];
        if (merge) n--;
        w->dim[n] = merge ? w->dim[n] * w->dim[i] : w->dim[i];
        for (int k = 0; k < w->n_in; k++) w->step[k][n] = w->step[k][i];
        n++;
    }
    if (!n) {                       // a single element
        w->dim[0] = 1;
        for (int k = 0; k < w->n_in; k++) w->step[k][0] = 0;
        n = 1;
    }
    w->ndim = n;
}

static inline Walk walk_broadcast(const Tensor *out, int n_in, const Tensor *in) {
    Walk w = {.ndim = out->ndim, .n_in = n_in};
    for (int i = 0; i < out->ndim; i++) w.dim[i] = out->dim[i];
    for (int k = 0; k < n_in; k++) {
        int missing = out->ndim - in[k].ndim;
        int64_t step = 1;
        for (int i = in[k].ndim - 1; i >= 0; i--) {
            if (in[k].dim[i] != 1) w.step[k][i + missing] = step;
            step *= in[k].dim[i];
        }
    }
    walk_merge(&w);
    return w;
}

static inline Run walk_first(const Walk *w) {
    Run r = {.more = true};
    for (int i = 0; i < w->ndim; i++) r.more = r.more && w->dim[i] > 0;
    return r;
}

static inline void walk_next(const Walk *w, Run *r) {
    r->y += w->dim[w->ndim - 1];
    for (int i = w->ndim - 2; i >= 0; i--) {
        r->index[i]++;
        for (int k = 0; k < w->n_in; k++) r->at[k] += w->step[k][i];
        if (r->index[i] < w->dim[i]) return;
        for (int k = 0; k < w->n_in; k++) r->at[k] -= w->step[k][i] * w->dim[i];
        r->index[i] = 0;
    }
    r->more = false;
}

// for_each_run(w, r, n): r.y, r.at[k] and n as above
#define for_each_run(w, r, n) \
    for (Run r = walk_first(&(w)); r.more; walk_next(&(w), &r)) \
        for (int64_t n = (w).dim[(w).ndim - 1], once_ = 1; once_; once_ = 0)

static inline size_t element_size(const Tensor *t) {
    return dtype_is_float(t->dtype) ? sizeof(real) : (size_t)dtype_bytes(t->dtype);
}

#endif
