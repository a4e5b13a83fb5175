// What a tensor of a checkpoint file is, as an expression over parameters: w, w[e], w.T, concat(w1, w3, axis:
// 1), ... Every form only moves elements, so one expression is read both ways: gather (forwards: the file's
// tensor from the parameters, for export and for gradients under published names) and scatter (backwards:
// parameters from the file).
#ifndef FRONTEND_HF_VIEW_H
#define FRONTEND_HF_VIEW_H
#include <stdbool.h>

#include "ir/base/arena.h"
#include "runtime/abi.h"

typedef enum {
    HV_PARAM,
    HV_ELEMENT,
    HV_PERMUTE,
    HV_RESHAPE,
    HV_CONCAT,
    HV_STACK,
    HV_INTERLEAVE,
    HV_MXFP4
} HfViewKind;

typedef struct HfView HfView;
struct HfView {
    HfViewKind kind;
    int ndim;
    int64_t dim[MAX_DIM]; // shape of the value
    int param;            // PARAM: index of the parameter or state in the model's list
    int64_t element;      // ELEMENT: index along axis 0 of child[0]
    int axis;             // CONCAT, STACK, INTERLEAVE
    int perm[MAX_DIM];    // PERMUTE: axis i of the value is axis perm[i] of child[0]
    int n;                // children
    HfView **child;
};

// Constructors compute the shape; NULL with *why set (text in a) if the operands don't fit.
HfView *hf_view_param(Arena *a, int param, int ndim, const int64_t *dim);
HfView *hf_view_element(Arena *a, HfView *of, int64_t e, const char **why);
HfView *hf_view_permute(Arena *a, HfView *of, const int *perm, const char **why);
HfView *hf_view_transpose(Arena *a, HfView *of, const char **why); // the last two axes
HfView *hf_view_reshape(Arena *a, HfView *of, int ndim, const int64_t *dim, const char **why);
// CONCAT, STACK, INTERLEAVE.
HfView *hf_view_join(Arena *a, HfViewKind kind, HfView **child, int n, int axis, const char **why);
HfView *hf_view_mxfp4(Arena *a, HfView *of); // storage format; the same values

// `size` bytes per element.  params[i]: base of parameter i, dense row-major; value: dense, of the view's
// shape.
void hf_view_gather(const HfView *v, int size, char *const *params, char *value);
void hf_view_scatter(const HfView *v, int size, char *const *params, const char *value);

// Calls hit(self, param, element) for each parameter the view covers, or each element along its axis 0 where the
// view takes elements of a stack (-1: all of it): used to see that everything is covered exactly once.
void hf_view_covers(const HfView *v, void (*hit)(void *self, int param, int64_t element), void *self);

// MXFP4 of gpt-oss: blocks u8 [.., rows, K/32, 16], scales u8 [.., rows, K/32] -> f32 [.., rows, K].  Low
// nibble first; a nibble is a sign and 0 0.5 1 1.5 2 3 4 6; the scale is 2^(byte - 127).
void hf_decode_mxfp4(const uint8_t *blocks, const uint8_t *scales, int64_t n_blocks, float *out);

#endif
