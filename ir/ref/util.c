// The fixed orders of sums (ir/README.md), which compiled code keeps too.
#include "ir/ref/ref.h"

enum { CHUNK = 64, LANES = 16 };

real REF(tree_sum)(const real *x, int64_t n, int64_t stride) {
    if (n <= 0) return 0;
    if (n == 1) return x[0];
    int64_t left = tree_split(n);
    return REF(tree_sum)(x, left, stride) + REF(tree_sum)(x + left * stride, n - left, stride);
}

static real chunk_sum(const real *x, int64_t n, int64_t stride) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i * stride];
    return sum;
}

real REF(tree_of_chunks)(const real *x, int64_t n, int64_t stride) {
    if (n <= CHUNK) return chunk_sum(x, n, stride);
    int64_t left = CHUNK * tree_split((n + CHUNK - 1) / CHUNK);
    return REF(tree_of_chunks)(x, left, stride) + REF(tree_of_chunks)(x + left * stride, n - left, stride);
}

real REF(lanes_sum)(const real *x, int64_t n) {
    real lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += x[i + l];
    for (int l = 0; i + l < n; l++) lane[l] += x[i + l];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

void REF(tree_rows)(real *x, int64_t n, int64_t cols) {
    if (n <= 1) return;
    int64_t left = tree_split(n);
    real *right = x + left * cols;
    REF(tree_rows)(x, left, cols);
    REF(tree_rows)(right, n - left, cols);
    for (int64_t c = 0; c < cols; c++) x[c] += right[c];
}
