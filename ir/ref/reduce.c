// The meaning of sums and of what contains sums.  The orders are those of ir/README.md.
#include "ir/ref/walk.h"

#define MEANING(name) void REF(name)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out)
#define UNUSED (void)attr, (void)n_in, (void)n_out

enum { CHUNK = 64 };

// ---- sum ------------------------------------------------------------------------------------------------

// Axes with the leaf axis split off (512*L is L, 512), largest first in memory.
typedef struct {
    int     ndim;
    int64_t dim[MAX_DIM + 1];
    bool    summed[MAX_DIM + 1];
} Axes;

static Axes axes_of(const Attrs *attr, const Tensor *x) {
    Axes s = {0};
    bool summed[MAX_DIM] = {0};
    for (int i = 0; i < attr->axes.n; i++) summed[attr->axes.at[i]] = true;
    bool split = attr->leaves > 1;
    for (int i = 0; i < x->ndim; i++) {
        if (i == 0 && split) {
            s.dim[0] = attr->leaves;
            s.summed[s.ndim++] = true;
        }
        s.dim[s.ndim] = i == 0 && split ? x->dim[0] / attr->leaves : x->dim[i];
        s.summed[s.ndim++] = summed[i];
    }
    return s;
}

// Offsets of all index combinations of the axes of s from `first` to `last` with summed == want, row-major.
static int64_t *offsets_of(const Axes *s, int first, int last, bool want, int64_t *n) {
    *n = 1;
    for (int i = first; i < last; i++)
        if (s->summed[i] == want) *n *= s->dim[i];
    int64_t *offset = malloc(sizeof *offset * (size_t)(*n > 0 ? *n : 1));
    if (!offset) abort();
    offset[0] = 0;
    if (!*n) return offset;
    int64_t step[MAX_DIM + 1], product = 1, filled = 1;
    for (int i = s->ndim - 1; i >= 0; i--) {
        step[i] = product;
        product *= s->dim[i];
    }
    for (int i = last - 1; i >= first; i--) {      // axis i becomes the slowest one so far
        if (s->summed[i] != want) continue;
        for (int64_t k = s->dim[i] - 1; k >= 0; k--)
            for (int64_t j = 0; j < filled; j++) offset[k * filled + j] = offset[j] + k * step[i];
        filled *= s->dim[i];
    }
    return offset;
}

static real *new_reals(int64_t n) {
    real *x = malloc(sizeof(real) * (size_t)(n > 0 ? n : 1));
    if (!x) abort();
    return x;
}

// One leaf's result, for one index of the kept axes outside: rows x[offset[i]] of `cols` numbers, in chunks
// and their tree.
static void sum_rows(const real *x, const int64_t *offset, int64_t n, int64_t cols, real *partial, real *y) {
    int64_t n_chunks = (n + CHUNK - 1) / CHUNK;
    for (int64_t k = 0; k < n_chunks; k++) {
        real *sum = partial + k * cols;
        for (int64_t c = 0; c < cols; c++) sum[c] = 0;
        for (int64_t i = k * CHUNK; i < n && i < (k + 1) * CHUNK; i++)
            for (int64_t c = 0; c < cols; c++) sum[c] += x[offset[i] + c];
    }
    REF(tree_rows)(partial, n_chunks, cols);
    for (int64_t c = 0; c < cols; c++) y[c] = n_chunks ? partial[c] : 0;
}

static void sum_reals(const Attrs *attr, const Tensor *in, Tensor *out) {
    Axes s = axes_of(attr, in);
    const real *x = reals(in);
    real *rows = NULL;

    // 1. the last axis, by lanes
    if (s.ndim && s.summed[s.ndim - 1]) {
        int64_t cols = s.dim[s.ndim - 1], n = 1;
        for (int i = 0; i + 1 < s.ndim; i++) n *= s.dim[i];
        rows = new_reals(n);
        for (int64_t i = 0; i < n; i++) rows[i] = REF(lanes_sum)(x + i * cols, cols);
        x = rows;
        s.dim[s.ndim - 1] = 1;
        s.summed[s.ndim - 1] = false;
    }

    // 2. the other axes of a leaf, by chunks; kept axes at the end are columns done side by side
    bool by_leaf = attr->leaves > 1;
    int first = by_leaf ? 1 : 0, last = s.ndim;
    int64_t leaves = by_leaf ? attr->leaves : 1, cols = 1, leaf_size = 1, n_sum, n_kept;
    while (last > first && !s.summed[last - 1]) cols *= s.dim[--last];
    for (int i = first; i < s.ndim; i++) leaf_size *= s.dim[i];
    int64_t *sum_at = offsets_of(&s, first, last, true, &n_sum);
    int64_t *kept_at = offsets_of(&s, first, last, false, &n_kept);
    real *partial = new_reals((n_sum + CHUNK - 1) / CHUNK * cols);
    real *by_leaves = leaves > 1 ? new_reals(leaves * n_kept * cols) : reals(out);
    for (int64_t l = 0; l < leaves; l++)
        for (int64_t k = 0; k < n_kept; k++)
            sum_rows(x + l * leaf_size + kept_at[k], sum_at, n_sum, cols, partial,
                     by_leaves + (l * n_kept + k) * cols);

    // 3. leaves, by their tree
    if (leaves > 1) {
        REF(tree_rows)(by_leaves, leaves, n_kept * cols);
        if (n_kept * cols > 0) memcpy(out->data, by_leaves, sizeof(real) * (size_t)(n_kept * cols));
        free(by_leaves);
    }
    free(partial);
    free(kept_at);
    free(sum_at);
    free(rows);
}

// Integers wrap, so their order is free.
static void sum_ints(const Attrs *attr, const Tensor *in, Tensor *out) {
    Walk w = {.ndim = in->ndim, .n_in = 1};
    int64_t step = 1, n_out = n_elements(out);
    for (int i = in->ndim - 1; i >= 0; i--) {
        w.dim[i] = in->dim[i];
        bool summed = false;
        for (int k = 0; k < attr->axes.n; k++) summed |= attr->axes.at[k] == i;
        w.step[0][i] = summed ? 0 : step;
        if (!summed) step *= in->dim[i];
    }
    walk_merge(&w);
    size_t size = element_size(out);
    if (n_out) memset(out->data, 0, size * (size_t)n_out);
    for_each_run(w, r, n) {
        for (int64_t i = 0; i < n; i++) {
            int64_t to = r.at[0] + i * w.step[0][w.ndim - 1];
            if (size == 4) ((uint32_t *)out->data)[to] += ((const uint32_t *)in->data)[r.y + i];
            else ((uint8_t *)out->data)[to] += ((const uint8_t *)in->data)[r.y + i];
        }
    }
}

MEANING(sum) {
    UNUSED;
    if (dtype_is_float(out->dtype)) sum_reals(attr, in, out);
    else sum_ints(attr, in, out);
}

// ---- along an axis --------------------------------------------------------------------------------------

#define MAX_LOOP(T)                                                                          \
    for (int64_t o = 0; o < outer; o++)                                                      \
        for (int64_t i = 0; i < inner; i++) {                                                \
            const T *x = (const T *)in[0].data + o * n * inner + i;                          \
            T most = x[0];                                                                   \
            for (int64_t k = 1; k < n; k++) most = most >= x[k * inner] ? most : x[k * inner]; \
            ((T *)out->data)[o * inner + i] = most;                                          \
        }

static void around(const Tensor *t, int64_t axis, int64_t *outer, int64_t *n, int64_t *inner) {
    *outer = *inner = 1;
    *n = t->dim[axis];
    for (int i = 0; i < axis; i++) *outer *= t->dim[i];
    for (int i = (int)axis + 1; i < t->ndim; i++) *inner *= t->dim[i];
}

MEANING(reduce_max) {
    UNUSED;
    int64_t outer, n, inner;
    around(&in[0], attr->axis, &outer, &n, &inner);
    if (!n) {
        if (n_elements(out)) memset(out->data, 0, element_size(out) * (size_t)n_elements(out));
        return;
    }
    switch (out->dtype) {
    case I32: MAX_LOOP(int32_t) break;
    case U32: MAX_LOOP(uint32_t) break;
    case I8:  MAX_LOOP(int8_t) break;
    case U8: case BOOL: MAX_LOOP(uint8_t) break;
    default:  MAX_LOOP(real) break;
    }
}

#define CUMSUM_LOOP(T, N)                                                                    \
    for (int64_t o = 0; o < outer; o++)                                                      \
        for (int64_t i = 0; i < inner; i++) {                                                \
            const T *x = (const T *)in[0].data + o * n * inner + i;                          \
            T *y = (T *)out->data + o * n * inner + i;                                       \
            N sum = 0;                                                                       \
            for (int64_t j = 0; j < n; j++) {                                                \
                int64_t k = (attr->reverse ? n - 1 - j : j) * inner;                         \
                N before = sum;                                                              \
                sum = (N)(sum + (N)x[k]);                                                    \
                y[k] = (T)(attr->exclusive ? before : sum);                                  \
            }                                                                                \
        }

MEANING(cumsum) {
    UNUSED;
    int64_t outer, n, inner;
    around(&in[0], attr->axis, &outer, &n, &inner);
    switch (out->dtype) {
    case I32: CUMSUM_LOOP(int32_t, uint32_t) break;
    case U32: CUMSUM_LOOP(uint32_t, uint32_t) break;
    case I8:  CUMSUM_LOOP(int8_t, uint8_t) break;
    case U8:  CUMSUM_LOOP(uint8_t, uint8_t) break;
    default:  CUMSUM_LOOP(real, real) break;
    }
}

// ---- softmax, logsumexp ---------------------------------------------------------------------------------

static real row_max(const real *x, int64_t n) {
    real most = x[0];
    for (int64_t i = 1; i < n; i++) most = most >= x[i] ? most : x[i];
    return most;
}

FAST static void exp_of_row(const real *x, real most, real *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = REAL_EXP(x[i] - most);
}

MEANING(softmax) {
    UNUSED;
    int64_t rows = n_rows(out), cols = n_cols(out);
    for (int64_t r = 0; cols && r < rows; r++) {
        const real *x = reals(&in[0]) + r * cols;
        real *y = reals(out) + r * cols, most = row_max(x, cols);
        exp_of_row(x, most, y, cols);
        real sum = REF(lanes_sum)(y, cols);
        for (int64_t i = 0; i < cols; i++) y[i] /= sum;
    }
}

MEANING(logsumexp) {
    UNUSED;
    int64_t rows = n_rows(&in[0]), cols = n_cols(&in[0]);
    real *e = new_reals(cols);
    for (int64_t r = 0; r < rows; r++) {
        const real *x = reals(&in[0]) + r * cols;
        real most = cols ? row_max(x, cols) : 0;
        exp_of_row(x, most, e, cols);
        reals(out)[r] = REAL_LOG(REF(lanes_sum)(e, cols)) + most;
    }
    free(e);
}
