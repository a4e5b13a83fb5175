// The meaning of ops that only move elements.
#include "ir/ref/walk.h"

#define MEANING(name) void REF(name)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out)
#define UNUSED (void)attr, (void)n_in, (void)n_out

static void copy_bytes(void *to, const void *from, size_t bytes) {
    if (bytes) memcpy(to, from, bytes);
}

MEANING(copy) {
    UNUSED;
    copy_bytes(out->data, in[0].data, element_size(out) * (size_t)n_elements(out));
}

// ---- by strides -----------------------------------------------------------------------------------------

#define STRIDED_LOOP(T)                                                              \
    for_each_run(*w, r, n) {                                                         \
        const T *x = (const T *)in->data + r.at[0];                                  \
        T *y = (T *)out->data + r.y;                                                 \
        const int64_t step = w->step[0][w->ndim - 1];                                \
        for (int64_t i = 0; i < n; i++) y[i] = x[i * step];                          \
    }

static void copy_strided(const Walk *w, const Tensor *in, Tensor *out) {
    switch (element_size(out)) {
    case 1:  STRIDED_LOOP(uint8_t) break;
    case 4:  STRIDED_LOOP(uint32_t) break;
    default: STRIDED_LOOP(uint64_t) break;
    }
}

MEANING(permute) {
    UNUSED;
    Walk w = {.ndim = out->ndim, .n_in = 1};
    int64_t step[MAX_DIM] = {0}, product = 1;
    for (int i = in[0].ndim - 1; i >= 0; i--) {
        step[i] = product;
        product *= in[0].dim[i];
    }
    for (int i = 0; i < out->ndim; i++) {
        w.dim[i] = out->dim[i];
        w.step[0][i] = step[attr->perm.at[i]];
    }
    walk_merge(&w);
    copy_strided(&w, in, out);
}

MEANING(broadcast) {
    UNUSED;
    Walk w = walk_broadcast(out, 1, in);
    copy_strided(&w, in, out);
}

// ---- along an axis --------------------------------------------------------------------------------------

// Axes before and after `axis`, as counts; after in bytes.
static void around(const Tensor *t, int64_t axis, int64_t *before, size_t *after) {
    *before = 1;
    *after = element_size(t);
    for (int i = 0; i < axis; i++) *before *= t->dim[i];
    for (int i = (int)axis + 1; i < t->ndim; i++) *after *= (size_t)t->dim[i];
}

MEANING(slice) {
    UNUSED;
    int64_t before;
    size_t after;
    around(out, attr->axis, &before, &after);
    size_t from = after * (size_t)in[0].dim[attr->axis], to = after * (size_t)out->dim[attr->axis];
    for (int64_t i = 0; i < before; i++)
        copy_bytes((char *)out->data + (size_t)i * to,
                   (char *)in[0].data + (size_t)i * from + after * (size_t)attr->begin, to);
}

MEANING(unslice) {
    UNUSED;
    int64_t before;
    size_t after;
    around(out, attr->axis, &before, &after);
    size_t from = after * (size_t)in[0].dim[attr->axis], to = after * (size_t)out->dim[attr->axis];
    if (before && to) memset(out->data, 0, (size_t)before * to);
    for (int64_t i = 0; i < before; i++)
        copy_bytes((char *)out->data + (size_t)i * to + after * (size_t)attr->begin,
                   (char *)in[0].data + (size_t)i * from, from);
}

MEANING(concat) {
    UNUSED;
    int64_t before;
    size_t after, at = 0;
    around(out, attr->axis, &before, &after);
    size_t to = after * (size_t)out->dim[attr->axis];
    for (int k = 0; k < n_in; k++) {
        size_t from = after * (size_t)in[k].dim[attr->axis];
        for (int64_t i = 0; i < before; i++)
            copy_bytes((char *)out->data + (size_t)i * to + at, (char *)in[k].data + (size_t)i * from, from);
        at += from;
    }
}

static void append_to_each(const Tensor *in, Tensor *out) {
    size_t row = element_size(out);
    for (int i = 2; i < out->ndim; i++) row *= (size_t)out->dim[i];
    copy_bytes(out->data, in[0].data, row * (size_t)(out->dim[0] * out->dim[1]));
    for (int64_t r = 0; r < in[2].dim[0]; r++) {
        const int32_t *s = (const int32_t *)in[2].data + r * SEQUENCE_COLUMNS;
        size_t to = (size_t)(s[SEQUENCE_PLACE] * out->dim[1] + s[SEQUENCE_LENGTH] - s[SEQUENCE_ROWS]);
        copy_bytes((char *)out->data + row * to, (char *)in[1].data + row * (size_t)s[SEQUENCE_FIRST], row * (size_t)s[SEQUENCE_ROWS]);
    }
}

// The C - S rows the pool holds already, then the S new ones.
MEANING(cache) {
    UNUSED;
    if (n_in > 2) {
        append_to_each(in, out);
        return;
    }
    int64_t kept = out->dim[1] - in[1].dim[1];
    size_t row = element_size(out);
    for (int i = 2; i < out->ndim; i++) row *= (size_t)out->dim[i];
    copy_bytes(out->data, in[0].data, row * (size_t)kept);
    copy_bytes((char *)out->data + row * (size_t)kept, in[1].data, row * (size_t)in[1].dim[1]);
}
