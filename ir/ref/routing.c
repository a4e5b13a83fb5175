// The meaning of selection and routing: topk, take, put, rows by index, counts, queues, routes, Sinkhorn.
#include <assert.h>
#include "ir/ref/ref.h"

static size_t element_bytes(const Tensor *t) {
    return dtype_is_float(t->dtype) ? sizeof(real) : (size_t)dtype_bytes(t->dtype);
}

// Any number as a double, exactly (real and the 32-bit integers fit).
static double number_at(const Tensor *t, int64_t i) {
    if (dtype_is_float(t->dtype)) return (double)((const real *)t->data)[i];
    switch (t->dtype) {
    case I32:  return ((const int32_t *)t->data)[i];
    case U32:  return ((const uint32_t *)t->data)[i];
    case I8:   return ((const int8_t *)t->data)[i];
    default:   return ((const uint8_t *)t->data)[i];
    }
}

// y[i] += x[j], for numbers.
static void add_element(Tensor *y, int64_t i, const Tensor *x, int64_t j) {
    if (dtype_is_float(y->dtype)) { reals(y)[i] += reals(x)[j]; return; }
    switch (y->dtype) {
    case I32: case U32: ((uint32_t *)y->data)[i] += ((const uint32_t *)x->data)[j]; break;
    default:            ((uint8_t *)y->data)[i] += ((const uint8_t *)x->data)[j]; break;
    }
}

// ---- selection ------------------------------------------------------------------------------------------

// a before b: larger first, NaN behind everything, ties by index.
static bool ranks_before(double a, int64_t ia, double b, int64_t ib) {
    bool a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && a != b) return a > b;
    return ia < ib;
}

void REF(topk)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const Tensor *x = &in[0];
    int64_t rows = n_rows(x), n = n_cols(x), k = attr->k;
    size_t bytes = element_bytes(x);
    for (int64_t r = 0; r < rows; r++) {
        int32_t *index = ints(&out[1]) + r * k;
        int64_t kept = 0;                       // insertion into the sorted front
        for (int64_t i = 0; i < n; i++) {
            double v = number_at(x, r * n + i);
            int64_t at = kept;
            while (at > 0 && ranks_before(v, i, number_at(x, r * n + index[at - 1]), index[at - 1])) at--;
            if (at == k) continue;
            if (kept < k) kept++;
            for (int64_t j = kept - 1; j > at; j--) index[j] = index[j - 1];
            index[at] = (int32_t)i;
        }
        for (int64_t j = 0; j < k; j++)
            memcpy((char *)out[0].data + (size_t)(r * k + j) * bytes,
                   (const char *)x->data + (size_t)(r * n + index[j]) * bytes, bytes);
    }
}

void REF(take)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)attr; (void)n_in; (void)n_out;
    const Tensor *x = &in[0];
    const int32_t *index = ints(&in[1]);
    int64_t rows = n_rows(&in[1]), k = n_cols(&in[1]), n = n_cols(x);
    size_t bytes = element_bytes(x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < k; j++) {
            char *to = (char *)out[0].data + (size_t)(r * k + j) * bytes;
            int64_t i = index[r * k + j];
            if (i < 0 || i >= n) memset(to, 0, bytes);
            else memcpy(to, (const char *)x->data + (size_t)(r * n + i) * bytes, bytes);
        }
}

void REF(put)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const int32_t *index = ints(&in[1]);
    int64_t rows = n_rows(&in[1]), k = n_cols(&in[1]), n = attr->n;
    memset(out[0].data, 0, (size_t)n_elements(&out[0]) * element_bytes(&out[0]));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < k; j++) {
            int64_t i = index[r * k + j];
            if (i >= 0 && i < n) add_element(&out[0], r * n + i, &in[0], r * k + j);
        }
}

// ---- rows by index --------------------------------------------------------------------------------------

void REF(gather_rows)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)attr; (void)n_in; (void)n_out;
    const Tensor *x = &in[0];
    const int32_t *index = ints(&in[1]);
    int64_t n = n_rows(x), m = n_elements(&in[1]);
    size_t bytes = (size_t)n_cols(x) * element_bytes(x);
    for (int64_t i = 0; i < m; i++) {
        char *to = (char *)out[0].data + (size_t)i * bytes;
        if (index[i] < 0 || index[i] >= n) memset(to, 0, bytes);
        else memcpy(to, (const char *)x->data + (size_t)index[i] * bytes, bytes);
    }
}

// Adds rows [begin, end) of v to y, in order.
static void scatter_run(Tensor *y, const Tensor *v, const int32_t *index, int64_t begin, int64_t end) {
    int64_t n = n_rows(y), cols = n_cols(y);
    for (int64_t i = begin; i < end; i++) {
        if (index[i] < 0 || index[i] >= n) continue;
        for (int64_t c = 0; c < cols; c++) add_element(y, index[i] * cols + c, v, i * cols + c);
    }
}

// One order for all: from zero, ascending source row.  Where the target is no data of a leaf (the gradient of
// a parameter) that happens in each leaf by itself, and the leaves meet in their tree; rows of a leaf lie
// together, or, in grouped rows, between the offsets of each (expert, leaf).
void REF(scatter_add_rows)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_out;
    const Tensor *v = &in[0];
    const int32_t *index = ints(&in[1]);
    Tensor *y = &out[0];
    int64_t m = n_elements(&in[1]), size = n_elements(y);
    size_t bytes = (size_t)size * element_bytes(y);
    const Sym *target = attr->dims.n ? attr->dims.at[0].sym : NULL;
    int64_t leaves = attr->leaves > 1 ? attr->leaves : 1;
    memset(y->data, 0, bytes);
    if (leaves == 1 || (target && target->kind != SYM_PLAIN) || !dtype_is_float(y->dtype)) {
        scatter_run(y, v, index, 0, m);
        return;
    }
    real *part = calloc((size_t)(leaves * size) + 1, sizeof(real));
    const int32_t *offsets = n_in > 2 ? ints(&in[2]) : NULL;
    int64_t groups = offsets ? (n_elements(&in[2]) - 1) / leaves : 1;
    for (int64_t l = 0; l < leaves; l++) {
        Tensor of_leaf = *y;
        of_leaf.data = part + l * size;
        for (int64_t e = 0; e < groups; e++) {
            int64_t begin = offsets ? offsets[e * leaves + l] : m / leaves * l;
            int64_t end = offsets ? offsets[e * leaves + l + 1] : m / leaves * (l + 1);
            scatter_run(&of_leaf, v, index, begin, end);
        }
    }
    for (int64_t i = 0; i < size; i++) reals(y)[i] = REF(tree_sum)(part + i, leaves, size);
    free(part);
}

// ---- routing --------------------------------------------------------------------------------------------

void REF(count)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const Tensor *e = &in[0];
    int64_t run = n_cols(e) * e->dim[e->ndim - 2], E = attr->experts, n = n_elements(&out[0]) / E;
    memset(out[0].data, 0, (size_t)(n * E) * sizeof(int32_t));
    for (int64_t g = 0; g < n; g++)
        for (int64_t i = 0; i < run; i++) {
            int32_t expert = ints(e)[g * run + i];
            if (expert >= 0 && expert < E) ints(&out[0])[g * E + expert]++;
        }
}

typedef struct { int32_t choice, slot; double priority; } Waiting;

// Who stands first in a queue: lower choice (0 for all if tokens decide), then higher priority, then lower
// slot (token, then choice).
static int stands_before(const void *pa, const void *pb) {
    const Waiting *a = pa, *b = pb;
    if (a->choice != b->choice) return a->choice < b->choice ? -1 : 1;
    bool a_nan = a->priority != a->priority, b_nan = b->priority != b->priority;
    if (a_nan != b_nan) return b_nan ? -1 : 1;
    if (!a_nan && a->priority != b->priority) return a->priority > b->priority ? -1 : 1;
    return a->slot < b->slot ? -1 : a->slot > b->slot;
}

void REF(queue)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_out;
    const Tensor *e = &in[0];
    int64_t k = n_cols(e), run = k * e->dim[e->ndim - 2], E = attr->experts, total = n_elements(e);
    Waiting *w = malloc((size_t)(run + 1) * sizeof *w);
    int32_t *length = malloc((size_t)(E + 1) * sizeof *length);
    for (int64_t first = 0; first < total; first += run) {
        for (int64_t i = 0; i < run; i++)
            w[i] = (Waiting){attr->by_choice ? (int32_t)(i % k) : 0, (int32_t)i,
                             n_in > 1 ? (double)reals(&in[1])[first + i] : 0};
        qsort(w, (size_t)run, sizeof *w, stands_before);      // slots differ, so the order is total
        memset(length, 0, (size_t)E * sizeof *length);
        for (int64_t i = 0; i < run; i++) {
            int32_t expert = ints(e)[first + w[i].slot];
            ints(&out[0])[first + w[i].slot] = expert >= 0 && expert < E ? length[expert]++ : INT32_MAX;
        }
    }
    free(w);
    free(length);
}

// Counting sort by (expert, leaf).  slot_of comes with room for the bound and leaves with the rows there are.
void REF(route)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const int32_t *e = ints(&in[0]);
    int32_t *offsets = ints(&out[0]), *row_of = ints(&out[1]), *slot_of = ints(&out[2]);
    int64_t slots = n_elements(&in[0]), E = attr->experts, segments = n_elements(&out[0]) - 1;
    int64_t leaves = segments / E, per_leaf = slots / leaves;
    assert(segments % E == 0 && slots % leaves == 0);
    memset(offsets, 0, (size_t)(segments + 1) * sizeof *offsets);
    for (int64_t i = 0; i < slots; i++)
        if (e[i] >= 0 && e[i] < E) offsets[e[i] * leaves + i / per_leaf + 1]++;
    for (int64_t s = 0; s < segments; s++) offsets[s + 1] += offsets[s];
    assert(offsets[segments] <= out[2].dim[0]);
    out[2].dim[0] = offsets[segments];
    for (int64_t i = 0; i < slots; i++) {                   // a segment's offset is its next free row meanwhile
        row_of[i] = -1;
        if (e[i] < 0 || e[i] >= E) continue;
        int32_t row = offsets[e[i] * leaves + i / per_leaf]++;
        row_of[i] = row;
        slot_of[row] = (int32_t)i;
    }
    memmove(offsets + 1, offsets, (size_t)segments * sizeof *offsets);
    offsets[0] = 0;
}

void REF(row_group)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const int32_t *offsets = ints(&in[0]);
    int64_t segments = n_elements(&in[0]) - 1, leaves = attr->sym->leaves;
    for (int64_t s = 0; s < segments; s++)
        for (int64_t r = offsets[s]; r < offsets[s + 1]; r++) ints(&out[0])[r] = (int32_t)(s / leaves);
}

// a = exp(x); in turns r[t] = 1/T / (sum_e c[e] a[t,e] + 1e-8) and c[e] = 1/E / (sum_t r[t] a[t,e] + 1e-8)
// until c moves by no more than the tolerance on average; the result is c[e] a[t,e] r[t].
void REF(sinkhorn)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const Tensor *x = &in[0];
    int64_t E = n_cols(x), T = x->ndim > 1 ? x->dim[x->ndim - 2] : 1, size = T * E, total = n_elements(x);
    real *a = malloc((size_t)(size + 1) * sizeof(real)), *tmp = malloc((size_t)(size + 1) * sizeof(real));
    real *r = malloc((size_t)(T + 1) * sizeof(real)), *c = malloc((size_t)(E + 1) * sizeof(real));
    for (int64_t first = 0; first < total; first += size) {
        for (int64_t i = 0; i < size; i++) a[i] = REAL_EXP(reals(x)[first + i]);
        for (int64_t e = 0; e < E; e++) c[e] = 1;
        for (int64_t round = 0; round < attr->limit; round++) {
            for (int64_t t = 0; t < T; t++) {
                for (int64_t e = 0; e < E; e++) tmp[e] = c[e] * a[t * E + e];
                r[t] = (real)1 / (real)T * ((real)1 / (REF(lanes_sum)(tmp, E) + (real)1e-8));
            }
            for (int64_t i = 0; i < size; i++) tmp[i] = r[i / E] * a[i];
            real moved = 0;
            for (int64_t e = 0; e < E; e++) {
                real old = c[e], sum = REF(tree_of_chunks)(tmp + e, T, E);
                c[e] = (real)1 / (real)E * ((real)1 / (sum + (real)1e-8));
                moved += c[e] > old ? c[e] - old : old - c[e];
            }
            if (moved / (real)E <= (real)attr->tolerance) break;
        }
        for (int64_t i = 0; i < size; i++) reals(&out[0])[first + i] = c[i % E] * a[i] * r[i / E];
    }
    free(a);
    free(tmp);
    free(r);
    free(c);
}
