// Sums of numbers without an order: an accumulator so wide that adding is integer addition, hence exact up to what
// lies below 2^-320, and the same whoever adds what when.  Losses, squared norms and metrics are summed so, over leaves
// and ranks (RT_COMM_EXACT), and rounded to a double once.
#ifndef RUNTIME_EXACT_H
#define RUNTIME_EXACT_H
#include <stdint.h>

enum { RT_EXACT_DIGITS = 20 };

// digit[i] counts 2^(32 i - 320); carries wait, so that accumulators are added word by word (2^31 addends).
typedef struct {
    int64_t digit[RT_EXACT_DIGITS];
    int64_t nan, plus_inf, minus_inf;        // addends that were so; beyond 2^319 counts as infinite
} RtExact;

enum { RT_EXACT_WORDS = sizeof(RtExact) / sizeof(int64_t) };     // as the buffer of an RT_COMM_EXACT

void   rt_exact_add(RtExact *a, double x);
void   rt_exact_merge(RtExact *a, const RtExact *b);
double rt_exact_value(const RtExact *a);     // to nearest, ties to even; the sum 0 is +0

#endif
