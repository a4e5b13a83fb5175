// One target as a libFuzzer program: FUZZ_TARGET names it.
#include <string.h>
#include "tests/fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t cap);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t cap, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b, uint8_t *out,
                                 size_t cap, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    FUZZ_TARGET(data, n);
    return 0;
}

// Words and lines beside libFuzzer's bytes.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t cap, unsigned seed) {
    static uint8_t before[FUZZ_MAX_BYTES];
    uint64_t random = seed;
    if (seed % 2 || n > sizeof before) return LLVMFuzzerMutate(data, n, cap);
    memcpy(before, data, n);
    return fuzz_mutate(data, n, cap, before, n, &random);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b, uint8_t *out,
                                 size_t cap, unsigned seed) {
    uint64_t random = seed;
    if (n_a > cap) n_a = cap;
    memcpy(out, a, n_a);
    return fuzz_mutate(out, n_a, cap, b, n_b, &random);
}
