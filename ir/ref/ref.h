// Inside ir/ref/ only: one source for two precisions.  Each file here is compiled twice: as it stands, `real` is
// float and REF(x) is ref_x; with -DREF_F64, `real` is double and REF(x) is ref64_x.  All float tensors hold `real`
// then (bf16 and f16 storage is rounded to by the evaluator, not here).  ints are int32_t, bools uint8_t.
#ifndef IR_REF_REF_H
#define IR_REF_REF_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "ir/ir.h"
#include "ir/vmath.h"

#ifdef REF_F64
typedef double real;
#define REF(name) ref64_##name
#define REAL_FMA fma
#define REAL_SQRT sqrt
#define REAL_FLOOR floor
#define REAL_ROUND rint
#define REAL_ABS fabs
#define REAL_EXP exp
#define REAL_LOG log
#define REAL_LOG1P log1p
#define REAL_TANH tanh
#define REAL_SIGMOID(x) (1 / (1 + exp(-(x))))
#define REAL_ERF erf
#define REAL_SIN sin
#define REAL_COS cos
#define REAL_DTYPE F64
#define REAL_BF16(x) (x)      // nothing is rounded to storage types
#else
typedef float real;
#define REF(name) ref_##name
#define REAL_FMA fmaf
#define REAL_SQRT sqrtf
#define REAL_FLOOR floorf
#define REAL_ROUND rintf
#define REAL_ABS fabsf
#define REAL_EXP vm_exp       // as compiled code computes them: the same bits
#define REAL_LOG vm_log
#define REAL_LOG1P vm_log1p
#define REAL_TANH vm_tanh
#define REAL_SIGMOID vm_sigmoid
#define REAL_ERF vm_erf
#define REAL_SIN vm_sin
#define REAL_COS vm_cos
#define REAL_DTYPE F32
#define REAL_BF16 vm_round_bf16
#endif

// Every meaning a row of the table names.
#define OP(NAME, TEXT, SHAPE, MEANING, ...) RefKernel REF(MEANING);
#include "ir/ops.def"
#undef OP

static inline int64_t n_elements(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}
static inline int64_t n_cols(const Tensor *t) { return t->ndim ? t->dim[t->ndim - 1] : 1; }
static inline int64_t n_rows(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i + 1 < t->ndim; i++) n *= t->dim[i];
    return n;
}
static inline real    *reals(const Tensor *t) { return t->data; }
static inline int32_t *ints(const Tensor *t) { return t->data; }
static inline uint8_t *bools(const Tensor *t) { return t->data; }

// Sum of n terms in the fixed tree over chunks of 64: term(i) are added in order inside a chunk, chunks meet in
// the tree of abi.h.  (graph.md section 7: "over rows of a leaf".)
real REF(tree_of_chunks)(const real *x, int64_t n, int64_t stride);
// Sum along contiguous columns: 16 lanes, lane l adds columns l, l+16, .., then lanes fold 8, 4, 2, 1.
real REF(lanes_sum)(const real *x, int64_t n);
real REF(tree_sum)(const real *x, int64_t n, int64_t stride);     // the leaf tree
// The same trees over n rows of `cols` contiguous numbers at once: row 0 becomes their sum; x is overwritten.
void REF(tree_rows)(real *x, int64_t n, int64_t cols);

#endif
