// Elementwise ops on vectors of 16 lanes, as LLVM code.
#ifndef CODEGEN_CPU_ELEM_H
#define CODEGEN_CPU_ELEM_H
#include "codegen/cpu/cg.h"

bool elem_supported(const Node *n);                  // an elementwise node that elem_emit can do
bool is_shown(const Node *n);                        // its result is its operand, seen with other dimensions
// The result of node n for vectors of operands.
LV elem_emit(Cg *cg, const Node *n, const LV *x);
LV elem_round(Cg *cg, DType t, LV x);                // to what t's storage keeps
LV elem_const(Cg *cg, const Node *n);                // a scalar CONST in all lanes

// Where a row of `space` (all dimensions of it but the last) lies in an operand that broadcasts to it.
// Strides per dimension of space, in elements.
typedef struct { Dim stride[MAX_DIM]; bool used, whole; } RowMap;
bool row_map(const Type *operand, const Type *space, RowMap *m);       // false: does not broadcast
// Indices of row `row` along the dimensions of space but the last.
void row_indices(Cg *cg, const Type *space, LV row, LV *index);
LV row_offset(Cg *cg, const Type *operand, const Type *space, const RowMap *m, LV row, const LV *index);

#endif
