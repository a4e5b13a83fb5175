// Numbers of all element types.  Addresses may be unaligned: files put tensors anywhere.
#include "runtime/convert.h"

#include <math.h>

float rt_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff, bits;
    if (exponent == 31) bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {                                      // zero or subnormal: mantissa * 2^-24, exact in f32
        float x = (float)mantissa * 0x1p-24f;
        return sign ? -x : x;
    }
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t rt_f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00;
    if (magnitude >= 0x47800000u) return sign | 0x7c00;              // 65536 and above
    if (magnitude < 0x38800000u) {                                   // below 2^-14: subnormal or zero
        float scaled = fabsf(x) * 0x1p24f;                           // exact
        return sign | (uint16_t)nearbyintf(scaled);
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return sign | (uint16_t)((rounded - (112u << 23)) >> 13);        // may carry into infinity, as it should
}

double rt_load_number(const void *data, DType dtype, int64_t i) {
    const unsigned char *at = (const unsigned char *)data + i * dtype_bytes(dtype);
    switch (dtype) {
    case F32: { float x; memcpy(&x, at, 4); return (double)x; }
    case F64: { double x; memcpy(&x, at, 8); return x; }
    case BF16: { uint16_t x; memcpy(&x, at, 2); return (double)rt_bf16_to_f32(x); }
    case F16: { uint16_t x; memcpy(&x, at, 2); return (double)rt_f16_to_f32(x); }
    case I32: { int32_t x; memcpy(&x, at, 4); return x; }
    case U32: { uint32_t x; memcpy(&x, at, 4); return x; }
    case I64: { int64_t x; memcpy(&x, at, 8); return (double)x; }
    case I8: return *(const int8_t *)at;
    case U8: case BOOL: return *at;
    case DTYPE_COUNT: break;
    }
    return 0;
}

// What an integer can hold of x; NaN is 0.
static double within(double x, double least, double most) {
    return x >= most ? most : x > least ? x : x <= least ? least : 0;
}

void rt_store_number(void *data, DType dtype, int64_t i, double x) {
    unsigned char *at = (unsigned char *)data + i * dtype_bytes(dtype);
    switch (dtype) {
    case F32: { float y = (float)x; memcpy(at, &y, 4); return; }
    case F64: memcpy(at, &x, 8); return;
    case BF16: { uint16_t y = rt_f32_to_bf16((float)x); memcpy(at, &y, 2); return; }
    case F16: { uint16_t y = rt_f32_to_f16((float)x); memcpy(at, &y, 2); return; }
    case I32: { int32_t y = (int32_t)within(x, -0x1p31, 0x1p31 - 1); memcpy(at, &y, 4); return; }
    case U32: { uint32_t y = (uint32_t)within(x, 0, 0x1p32 - 1); memcpy(at, &y, 4); return; }
    case I64: { int64_t y = (int64_t)within(x, -0x1p63, 0x1.fffffffffffffp62); memcpy(at, &y, 8); return; }
    case I8: *at = (unsigned char)(int8_t)within(x, -128, 127); return;
    case U8: *at = (unsigned char)within(x, 0, 255); return;
    case BOOL: *at = x != 0; return;
    case DTYPE_COUNT: return;
    }
}
