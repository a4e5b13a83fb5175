// Digits of 32 bits in words of 64: adding never carries, reading does.
#include "runtime/exact.h"

#include <math.h>
#include <stdbool.h>

enum { LOWEST = -320, DIGITS = RT_EXACT_DIGITS };

void rt_exact_add(RtExact *a, double x) {
    if (isnan(x)) {
        a->nan++;
        return;
    }
    if (fabs(x) >= 0x1p319) {
        *(x > 0 ? &a->plus_inf : &a->minus_inf) += 1;
        return;
    }
    int exponent;
    uint64_t bits = (uint64_t)ldexp(frexp(fabs(x), &exponent), 53);      // |x| = bits * 2^(exponent - 53)
    int at = exponent - 53 - LOWEST;
    if (at < 0) {
        bits = at > -64 ? bits >> -at : 0;
        at = 0;
    }
    unsigned __int128 wide = (unsigned __int128)bits << at % 32;         // 84 bits at most: three digits
    for (int64_t *digit = &a->digit[at / 32]; wide; wide >>= 32, digit++)
        *digit += x < 0 ? -(int64_t)(uint32_t)wide : (int64_t)(uint32_t)wide;
}

void rt_exact_merge(RtExact *a, const RtExact *b) {
    int64_t *to = a->digit;
    const int64_t *from = b->digit;
    for (int i = 0; i < DIGITS; i++) to[i] += from[i];
    a->nan += b->nan;
    a->plus_inf += b->plus_inf;
    a->minus_inf += b->minus_inf;
}

// Brings all digits but the last into [0, 2^32); true where the number is negative.
static bool carry(int64_t digit[DIGITS]) {
    for (int i = 0; i + 1 < DIGITS; i++) {
        int64_t over = digit[i] >> 32;
        digit[i] -= over * ((int64_t)1 << 32);
        digit[i + 1] += over;
    }
    return digit[DIGITS - 1] < 0;
}

// The magnitude of carried, not negative digits, rounded to 53 bits.
static double rounded(const int64_t digit[DIGITS]) {
    int top = DIGITS - 1;
    while (top >= 0 && digit[top] == 0) top--;
    if (top < 0) return 0;
    unsigned __int128 head = (uint64_t)digit[top];                       // then digits until 54 bits are there
    int below = top;
    while (below > 0 && head >> 54 == 0) head = head << 32 | (uint64_t)digit[--below];
    bool rest = false;
    int shift = 0;
    while (head >> shift >> 54) shift++;                                 // 54 bits: one to round by
    rest = (head & (((unsigned __int128)1 << shift) - 1)) != 0;
    for (int i = 0; i < below; i++) rest |= digit[i] != 0;
    uint64_t bits = (uint64_t)(head >> shift);
    if (bits >> 53) {                                                    // fewer are exact as they are
        bool half = bits & 1, odd = bits >> 1 & 1;
        bits = (bits >> 1) + (half && (rest || odd));
        shift++;
    }
    return ldexp((double)bits, shift + 32 * below + LOWEST);
}

double rt_exact_value(const RtExact *a) {
    if (a->nan || (a->plus_inf && a->minus_inf)) return NAN;
    if (a->plus_inf || a->minus_inf) return a->plus_inf ? INFINITY : -INFINITY;
    RtExact copy = *a;
    bool negative = carry(copy.digit);
    if (negative) {
        for (int i = 0; i < DIGITS; i++) copy.digit[i] = -copy.digit[i];
        carry(copy.digit);
    }
    double x = rounded(copy.digit);
    return negative ? -x : x;
}
