// 16-bit floats, and reading one number of any element type.
#ifndef RUNTIME_CONVERT_H
#define RUNTIME_CONVERT_H
#include <stdint.h>
#include <string.h>
#include "runtime/abi.h"

static inline float rt_bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// To nearest, ties to even; NaN stays NaN.
static inline uint16_t rt_f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float    rt_f16_to_f32(uint16_t h);
uint16_t rt_f32_to_f16(float x);

// Element i of an array of this type, as a double, and back (rounded to nearest even).
double rt_load_number(const void *data, DType dtype, int64_t i);
void   rt_store_number(void *data, DType dtype, int64_t i, double x);

#endif
