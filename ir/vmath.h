// Scalar f32 exp, log, .. : the sequence of operations that compiled code runs sixteen lanes at a time (vmath.def),
// so that the reference meanings and compiled code give the same bits.
#ifndef IR_VMATH_H
#define IR_VMATH_H
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline int32_t vm_bits(float x) { int32_t i; memcpy(&i, &x, sizeof i); return i; }
// To the nearest bf16, half to even; NaN stays one.
static inline float vm_round_bf16(float x) {
    uint32_t i;
    memcpy(&i, &x, sizeof i);
    if ((i & 0x7fffffff) > 0x7f800000) return x;
    i = (i + 0x7fff + (i >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &i, sizeof x);
    return x;
}
static inline float   vm_float(int32_t i) { float x; memcpy(&x, &i, sizeof x); return x; }

#define V  float
#define VI int32_t
#define VB bool
#define VM(name) vm_##name
#define VM_ENV
#define VM_PASS
#define VM_INF INFINITY
#define VM_NAN NAN
#define K(c)  (c)
#define IK(c) (c)
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define MUL(a, b) ((a) * (b))
#define DIV(a, b) ((a) / (b))
#define FMA(a, b, c) fmaf(a, b, c)
#define LT(a, b) ((a) < (b))
#define GT(a, b) ((a) > (b))
#define EQ(a, b) ((a) == (b))
#define SEL(c, a, b)  ((c) ? (a) : (b))
#define ISEL(c, a, b) ((c) ? (a) : (b))
#define SCALE(y, n, e) (e)
#define BITS(x)  vm_bits(x)
#define FLOAT(i) vm_float(i)
#define IADD(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define ISUB(a, b) ((int32_t)((uint32_t)(a) - (uint32_t)(b)))
#define IAND(a, b) ((a) & (b))
#define IOR(a, b)  ((a) | (b))
#define ISHL(i, n) ((int32_t)((uint32_t)(i) << (n)))
#define ISAR(i, n) ((i) >> (n))
#define ITOF(i) ((float)(i))
#include "ir/vmath.def"
#undef V
#undef VI
#undef VB
#undef VM
#undef VM_ENV
#undef VM_PASS
#undef VM_INF
#undef VM_NAN
#undef K
#undef IK
#undef ADD
#undef SUB
#undef MUL
#undef DIV
#undef FMA
#undef LT
#undef GT
#undef EQ
#undef SEL
#undef ISEL
#undef SCALE
#undef BITS
#undef FLOAT
#undef IADD
#undef ISUB
#undef IAND
#undef IOR
#undef ISHL
#undef ISAR
#undef ITOF

// Not worth vectors: through libm in double, correctly rounded but for a few arguments.
static inline float vm_sin(float x) { return (float)sin((double)x); }
static inline float vm_cos(float x) { return (float)cos((double)x); }
static inline float vm_rsqrt(float x) { return 1.0f / sqrtf(x); }

#endif
