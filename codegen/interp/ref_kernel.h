// A kernel that runs an op, or a body of ops, by its reference meaning.  What it runs stands in its data block.
#ifndef CODEGEN_INTERP_REF_KERNEL_H
#define CODEGEN_INTERP_REF_KERNEL_H
#include "codegen/kernel.h"

#define REF_KERNEL_SYMBOL "moec_ref_kernel"
RtKernelFn moec_ref_kernel;

// The data block for a node.  bytes: its size, a multiple of 64.
void *ref_kernel_data(Arena *a, const KernelNode *k, size_t *bytes);

#endif
