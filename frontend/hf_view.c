// Views of parameters, read both ways.  A view is walked with strides: each leaf (a parameter, or one element
// of a stack) occupies a strided box of the value, so gather and scatter are the same walk with the copy
// turned round.
#include "frontend/hf_view.h"

#include <math.h>
#include <string.h>

static HfView *view_new(Arena *a, HfViewKind kind, HfView *of) {
    HfView *v = arena_new(a, HfView);
    v->kind = kind;
    if (of) {
        v->n = 1;
        v->child = arena_array(a, HfView *, 1);
        v->child[0] = of;
        v->ndim = of->ndim;
        memcpy(v->dim, of->dim, sizeof v->dim);
    }
    return v;
}

static const char *shape_text(Arena *a, int ndim, const int64_t *dim) {
    const char *text = "[";
    for (int i = 0; i < ndim; i++) text = arena_printf(a, "%s%s%lld", text, i ? ", " : "", (long long)dim[i]);
    return arena_printf(a, "%s]", text);
}

HfView *hf_view_param(Arena *a, int param, int ndim, const int64_t *dim) {
    HfView *v = view_new(a, HV_PARAM, NULL);
    v->param = param;
    v->ndim = ndim;
    memcpy(v->dim, dim, sizeof *dim * (size_t)ndim);
    return v;
}

HfView *hf_view_element(Arena *a, HfView *of, int64_t e, const char **why) {
    if (of->ndim < 1 || e < 0 || e >= of->dim[0]) {
        *why =
            arena_printf(a, "there is no element %lld in %s", (long long)e, shape_text(a, of->ndim, of->dim));
        return NULL;
    }
    HfView *v = view_new(a, HV_ELEMENT, of);
    v->element = e;
    v->ndim = of->ndim - 1;
    memmove(v->dim, of->dim + 1, sizeof *v->dim * (size_t)v->ndim);
    return v;
}

HfView *hf_view_permute(Arena *a, HfView *of, const int *perm, const char **why) {
    HfView *v = view_new(a, HV_PERMUTE, of);
    unsigned seen = 0;
    for (int i = 0; i < of->ndim; i++) {
        if (perm[i] < 0 || perm[i] >= of->ndim || (seen >> perm[i] & 1)) {
            *why = "permute needs each axis once";
            return NULL;
        }
        seen |= 1u << perm[i];
        v->perm[i] = perm[i];
        v->dim[i] = of->dim[perm[i]];
    }
    return v;
}

HfView *hf_view_transpose(Arena *a, HfView *of, const char **why) {
    if (of->ndim < 2) {
        *why = ".T needs two axes";
        return NULL;
    }
    int perm[MAX_DIM];
    for (int i = 0; i < of->ndim; i++) perm[i] = i;
    perm[of->ndim - 1] = of->ndim - 2;
    perm[of->ndim - 2] = of->ndim - 1;
    return hf_view_permute(a, of, perm, why);
}

static int64_t product(int ndim, const int64_t *dim) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= dim[i];
    return n;
}

HfView *hf_view_reshape(Arena *a, HfView *of, int ndim, const int64_t *dim, const char **why) {
    if (product(ndim, dim) != product(of->ndim, of->dim)) {
        *why = arena_printf(a, "reshape: %s has other elements than %s", shape_text(a, of->ndim, of->dim),
                            shape_text(a, ndim, dim));
        return NULL;
    }
    HfView *v = view_new(a, HV_RESHAPE, of);
    v->ndim = ndim;
    memcpy(v->dim, dim, sizeof *dim * (size_t)ndim);
    return v;
}

HfView *hf_view_join(Arena *a, HfViewKind kind, HfView **child, int n, int axis, const char **why) {
    HfView *first = child[0];
    int ndim = first->ndim + (kind == HV_STACK);
    if (axis < 0) axis += ndim;
    if (axis < 0 || axis >= ndim) {
        *why = "there is no such axis";
        return NULL;
    }
    HfView *v = view_new(a, kind, first);
    v->n = n;
    v->child = arena_array(a, HfView *, n);
    memcpy(v->child, child, sizeof *child * (size_t)n);
    v->axis = axis;
    v->ndim = ndim;
    if (kind == HV_STACK) {
        memcpy(v->dim, first->dim, sizeof *v->dim * (size_t)axis);
        v->dim[axis] = n;
        memcpy(v->dim + axis + 1, first->dim + axis, sizeof *v->dim * (size_t)(first->ndim - axis));
    }
    for (int i = 0; i < n; i++) {
        bool ok = child[i]->ndim == first->ndim;
        for (int d = 0; ok && d < first->ndim; d++)
            ok = child[i]->dim[d] == first->dim[d] || (kind == HV_CONCAT && d == axis);
        if (!ok) {
            *why = arena_printf(a, "%s and %s cannot be joined", shape_text(a, first->ndim, first->dim),
                                shape_text(a, child[i]->ndim, child[i]->dim));
            return NULL;
        }
        if (kind != HV_STACK && i) v->dim[axis] += child[i]->dim[axis];
    }
    return v;
}

HfView *hf_view_mxfp4(Arena *a, HfView *of) { return view_new(a, HV_MXFP4, of); }

// ---- the walk ---------------------------------------------------------------------------------------------
// A box: where the elements of a view lie in the value, as an offset and a stride per axis (in elements).
// Views that a box can't describe (reshape of a strided box) go through a dense copy.

typedef struct {
    int64_t offset, stride[MAX_DIM];
} Box;

typedef struct {
    int size;
    bool scatter;
    char *const *params;
    char *value;
} Walk;

static void dense_strides(int ndim, const int64_t *dim, int64_t *stride) {
    int64_t s = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        stride[i] = s;
        s *= dim[i];
    }
}

// Copies between a dense tensor and a box of the value.
static void copy_box(const Walk *w, int ndim, const int64_t *dim, const Box *box, char *dense) {
    int64_t n = product(ndim, dim), index[MAX_DIM] = {0}, at = box->offset;
    for (int64_t i = 0; i < n; i++) {
        char *d = dense + i * w->size, *v = w->value + at * w->size;
        if (w->scatter)
            memcpy(d, v, (size_t)w->size);
        else
            memcpy(v, d, (size_t)w->size);
        for (int k = ndim - 1; k >= 0; k--) {
            at += box->stride[k];
            if (++index[k] < dim[k]) break;
            at -= box->stride[k] * dim[k];
            index[k] = 0;
        }
    }
}

static void walk(const Walk *w, const HfView *v, Box box) {
    switch (v->kind) {
    case HV_PARAM:
        copy_box(w, v->ndim, v->dim, &box, w->params[v->param]);
        return;
    case HV_ELEMENT: {
        const HfView *of = v->child[0];
        if (of->kind == HV_PARAM) {
            copy_box(w, v->ndim, v->dim, &box,
                     w->params[of->param] + v->element * product(v->ndim, v->dim) * w->size);
            return;
        }
        // an element of a derived stack: through a dense copy of the whole stack
        int64_t n = product(of->ndim, of->dim);
        Arena *scratch = arena_create();
        char *whole = arena_alloc(scratch, (size_t)(n * w->size));
        hf_view_gather(of, w->size, w->params, whole);
        copy_box(w, v->ndim, v->dim, &box, whole + v->element * product(v->ndim, v->dim) * w->size);
        if (w->scatter) hf_view_scatter(of, w->size, w->params, whole);
        arena_destroy(scratch);
        return;
    }
    case HV_PERMUTE: {
        Box inner = {.offset = box.offset};
        for (int i = 0; i < v->ndim; i++) inner.stride[v->perm[i]] = box.stride[i];
        walk(w, v->child[0], inner);
        return;
    }
    case HV_MXFP4:
        walk(w, v->child[0], box);
        return;
    case HV_RESHAPE: {
        int64_t n = product(v->ndim, v->dim);
        Arena *scratch = arena_create();
        char *dense = arena_alloc(scratch, (size_t)(n * w->size));
        if (w->scatter) {
            copy_box(w, v->ndim, v->dim, &box, dense);
            hf_view_scatter(v->child[0], w->size, w->params, dense);
        } else {
            hf_view_gather(v->child[0], w->size, w->params, dense);
            copy_box(w, v->ndim, v->dim, &box, dense);
        }
        arena_destroy(scratch);
        return;
    }
    case HV_CONCAT:
        for (int i = 0; i < v->n; i++) {
            walk(w, v->child[i], box);
            box.offset += box.stride[v->axis] * v->child[i]->dim[v->axis];
        }
        return;
    case HV_STACK:
        for (int i = 0; i < v->n; i++) {
            Box inner = {.offset = box.offset + box.stride[v->axis] * i};
            for (int d = 0, k = 0; d < v->ndim; d++)
                if (d != v->axis) inner.stride[k++] = box.stride[d];
            walk(w, v->child[i], inner);
        }
        return;
    case HV_INTERLEAVE:
        for (int i = 0; i < v->n; i++) {
            Box inner = box;
            inner.offset += box.stride[v->axis] * i;
            inner.stride[v->axis] *= v->n;
            walk(w, v->child[i], inner);
        }
        return;
    }
}

void hf_view_gather(const HfView *v, int size, char *const *params, char *value) {
    Box box = {0};
    dense_strides(v->ndim, v->dim, box.stride);
    walk(&(Walk){size, false, params, value}, v, box);
}

void hf_view_scatter(const HfView *v, int size, char *const *params, const char *value) {
    Box box = {0};
    dense_strides(v->ndim, v->dim, box.stride);
    walk(&(Walk){size, true, params, (char *)value}, v, box); // scatter only reads the value
}

void hf_view_covers(const HfView *v, void (*hit)(void *self, int param, int64_t element), void *self) {
    if (v->kind == HV_PARAM)
        hit(self, v->param, -1);
    else if (v->kind == HV_ELEMENT && v->child[0]->kind == HV_PARAM)
        hit(self, v->child[0]->param, v->element);
    else
        for (int i = 0; i < v->n; i++) hf_view_covers(v->child[i], hit, self);
}

void hf_decode_mxfp4(const uint8_t *blocks, const uint8_t *scales, int64_t n_blocks, float *out) {
    static const float magnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int64_t b = 0; b < n_blocks; b++) {
        float scale = ldexpf(1, scales[b] - 127);
        for (int i = 0; i < 32; i++) {
            int nibble = blocks[b * 16 + i / 2] >> (i & 1 ? 4 : 0) & 15;
            *out++ = scale * (nibble & 8 ? -magnitude[nibble & 7] : magnitude[nibble & 7]);
        }
    }
}
