// Tensors whose elements don't lie row by row: reading and writing them as if they did.
#ifndef RUNTIME_LAYOUT_H
#define RUNTIME_LAYOUT_H
#include "runtime/plan.h"

// Where element i, counted row by row, lies in the tensor's memory.
int64_t rt_tensor_index(const RtTensor *t, int64_t i);

// Elements [first, first + n), counted row by row, from an array of another type or the same, which may be
// unaligned.  Of a tensor in panels: whole matrices.  Runs on the plan's number of threads; needs no memory of
// its own.
void rt_tensor_put(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n, const void *from,
                   DType dtype);
// The same of the whole tensor, of which this rank takes what it holds.
void rt_tensor_take(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n, const void *from,
                    DType dtype);
// Does this rank hold any of them?
bool rt_tensor_holds(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n);

#endif
