// The peak rate of f32 fused multiply-adds: independent chains of 16 lanes, compiled for the widest registers this
// processor has, the best of a few short runs.  Each thread counts its own processor time, so that other programs
// that run meanwhile don't make the machine seem slower than it is.
#include "frontend/cmd_machine.h"

#include <omp.h>
#include <time.h>

typedef float V16 __attribute__((vector_size(64)));

enum { CHAINS = 12, ROUNDS = 1000000 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WIDEST
#elif defined(__clang__)
#pragma STDC FP_CONTRACT ON
#define WIDEST __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#elif defined(__x86_64__)
#define WIDEST __attribute__((target_clones("avx512f", "arch=haswell", "default"), optimize("O3", "fp-contract=fast")))
#else
#define WIDEST
#endif

WIDEST static float chains(int rounds, float seed) {
    V16 a[CHAINS], x = (V16){0} + seed, y = (V16){0} + 1e-9f;
    for (int i = 0; i < CHAINS; i++) a[i] = x + (float)i;
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) a[i] = a[i] * x + y;
    V16 sum = a[0];
    for (int i = 1; i < CHAINS; i++) sum += a[i];
    return sum[0] + sum[15];
}

static double own_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double machine_peak_flops(int threads) {
    int cores = omp_get_num_procs();
    if (threads <= 0 || threads > cores) threads = cores;
    double best = 0;
    for (int run = 0; run < 5; run++) {
        double rate = 0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
        {
            double begin = own_time();
            volatile float sink = chains(ROUNDS, 0.999f);      // keeps the work
            (void)sink;
            rate += 2.0 * 16 * CHAINS * ROUNDS / (own_time() - begin);
        }
        if (rate > best) best = rate;
    }
    return best;
}
