// Exact numbers of compile time: a rational (num/den in lowest terms, den > 0), or a double once exactness
// was lost.
#ifndef FRONTEND_NUM_H
#define FRONTEND_NUM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "ir/base/arena.h"

typedef struct { bool exact; int64_t num, den; double f; } Num;

Num    num_int(int64_t n);
Num    num_double(double f);
double num_value(Num a);
bool   num_is_int(Num a, int64_t *out);      // out may be NULL
Num    num_add(Num a, Num b);
Num    num_sub(Num a, Num b);
Num    num_mul(Num a, Num b);
Num    num_div(Num a, Num b);                // b = 0: inf/nan as double
Num    num_mod(Num a, Num b);                // a - b * floor(a / b)
Num    num_pow(Num a, Num b);                // exact for whole b
Num    num_floor(Num a);
Num    num_ceil(Num a);
Num    num_round(Num a);                     // half to even
int    num_cmp(Num a, Num b);                // -1, 0, 1; 2 if either is nan
const char *num_text(Arena *a, Num n);
// A number as programs write it, suffixes k M B G T Ki Mi Gi Ti included: "1_000", "0.02", "1e-5", "375M".
Num    num_parse(const char *text, size_t n);

#endif
