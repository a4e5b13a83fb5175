// The data block of a reference kernel: made by ref_data.c while compiling, read by ref_kernel.c while running (also in
// ahead-of-time trainers, which hold no compiler).  Position-independent: a header, then tables.
//
//     RefHead | constants | syms | values | nodes (with attributes) | operand numbers
//
// A value lives in an argument of the step, in temporary memory, or in the block (constants).  Floats narrower than f32
// are widened to temporaries, as reference meanings want them.
#ifndef CODEGEN_INTERP_REF_BLOCK_H
#define CODEGEN_INTERP_REF_BLOCK_H
#include <string.h>
#include "ir/ir.h"

typedef enum { AT_ARG, AT_TEMP, AT_CONST } Place;

typedef struct {
    int64_t n;
    int32_t sym, pad;            // number in the block's syms; -1: none
} RefDim;

typedef struct {
    int32_t dtype, ndim, place, arg;
    int64_t at;                  // AT_TEMP: offset in temporary memory; AT_CONST: in the block
    int64_t wide;                // offset in temporary memory of the widened form; -1: none
    RefDim  dim[MAX_DIM];
} RefValue;

typedef struct {
    int32_t kind, groups, leaves, source;    // source: RtCall.sym number (plain), argument (ragged), -1: bound
    int64_t bound;
} RefSym;

enum { REF_MAX_SYMS = 8 };

typedef struct {
    int32_t op, n_in, n_out, first;          // operand then result values in the number table
    int32_t attr_sym;
    int32_t dims_sym[MAX_DIM];
    int32_t pad;
    Attrs   attr;                            // pointers zeroed
} RefNode;

typedef struct {
    int32_t n_syms, n_values, n_nodes, n_results;
    int64_t syms, values, nodes, numbers;    // offsets in the block
    int32_t result[2 * MAX_NAMED + 16];      // bodies: value that becomes result i
    int32_t first_result;                    // argument number of result 0
    int32_t is_body;
    int64_t temp_bytes;
} RefHead;

static inline bool is_narrow(DType t) { return t == BF16 || t == F16; }

static inline float bf16_to_f32(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void round_to(DType t, float *x, int64_t n) {
    if (t == BF16)
        for (int64_t i = 0; i < n; i++) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    else if (t == F16)
        for (int64_t i = 0; i < n; i++) x[i] = (float)(_Float16)x[i];
}

#endif
