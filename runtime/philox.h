// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter-based, so a draw
// depends on its key and counter alone, never on order.  Shared by compiler and runtime, like abi.h.
#ifndef RUNTIME_PHILOX_H
#define RUNTIME_PHILOX_H
#include <stdint.h>

typedef struct { uint32_t at[4]; } Philox4;

static inline Philox4 philox4(Philox4 counter, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * counter.at[0], p1 = (uint64_t)0xCD9E8D57u * counter.at[2];
        counter = (Philox4){{(uint32_t)(p1 >> 32) ^ counter.at[1] ^ k0, (uint32_t)p1,
                             (uint32_t)(p0 >> 32) ^ counter.at[3] ^ k1, (uint32_t)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// 24 random bits as a float in [0, 1).
static inline float philox_uniform(uint32_t bits) { return (float)(bits >> 8) * 0x1p-24f; }

// Element i of the tensor a RANDOM node makes: word i % 4 of block i / 4.  rng = {seed_lo, seed_hi, step, wave}.
static inline float philox_element(const int32_t *rng, uint32_t stream, uint64_t i) {
    Philox4 c = {{(uint32_t)(i >> 2), (uint32_t)rng[3], stream, (uint32_t)rng[2]}};
    return philox_uniform(philox4(c, (uint32_t)rng[0], (uint32_t)rng[1]).at[i & 3]);
}

#endif
