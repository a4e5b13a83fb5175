// Panels are filled 64 k at a time, out of a small block of floats.
#include "runtime/layout.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/convert.h"

typedef struct { int64_t rows, cols, k, n, elements; bool transposed; } Matrix;      // k, n: as a contraction reads it

static Matrix matrix_of(const RtTensor *t) {
    int64_t rows = t->ndim > 1 ? t->dim[t->ndim - 2] : 1, cols = t->ndim ? t->dim[t->ndim - 1] : 1;
    bool transposed = layout_is_transposed((Layout)t->layout);
    return (Matrix){rows, cols, transposed ? cols : rows, transposed ? rows : cols,
                    layout_elements((Layout)t->layout, rows, cols), transposed};
}

int64_t rt_tensor_index(const RtTensor *t, int64_t i) {
    if (t->layout == LAYOUT_ROWS) return i;
    Matrix m = matrix_of(t);
    int64_t inside = i % (m.rows * m.cols);
    return i / (m.rows * m.cols) * m.elements +
           layout_index((Layout)t->layout, m.rows, m.cols, inside / m.cols, inside % m.cols);
}

enum { BLOCK_K = 64 };

static void read_floats(const void *from, DType dtype, int64_t at, int64_t n, float *to) {
    if (dtype == F32) memcpy(to, (const char *)from + at * 4, (size_t)n * 4);
    else if (dtype == BF16)
        for (int64_t i = 0; i < n; i++) {
            uint16_t x;
            memcpy(&x, (const char *)from + (at + i) * 2, 2);
            to[i] = rt_bf16_to_f32(x);
        }
    else
        for (int64_t i = 0; i < n; i++) to[i] = (float)rt_load_number(from, dtype, at + i);
}

// Panel number `panel` of the matrix that begins at element `begin` of `from`.
static void put_panel(const RtTensor *t, const Matrix *m, int64_t panel, const void *from, DType dtype,
                      int64_t begin, void *matrix) {
    bool pairs = layout_is_pairs((Layout)t->layout);
    int64_t n0 = panel * PANEL_COLS, live = m->n - n0 < PANEL_COLS ? m->n - n0 : PANEL_COLS;
    int64_t height = pairs ? m->k + m->k % 2 : m->k;
    float block[BLOCK_K][PANEL_COLS], row[BLOCK_K];
    for (int64_t k0 = 0; k0 < height; k0 += BLOCK_K) {
        int64_t there = m->k - k0 < BLOCK_K ? m->k - k0 : BLOCK_K,
                put = height - k0 < BLOCK_K ? height - k0 : BLOCK_K;
        memset(block, 0, sizeof block);
        for (int64_t j = 0; m->transposed && j < live; j++) {
            read_floats(from, dtype, begin + (n0 + j) * m->cols + k0, there, row);
            for (int64_t k = 0; k < there; k++) block[k][j] = row[k];
        }
        for (int64_t k = 0; !m->transposed && k < there; k++)
            read_floats(from, dtype, begin + (k0 + k) * m->cols + n0, live, block[k]);
        int64_t at = (panel * height + k0) * PANEL_COLS;
        if (!pairs) {
            memcpy((float *)matrix + at, block, (size_t)(put * PANEL_COLS) * sizeof(float));
            continue;
        }
        uint16_t *to = (uint16_t *)matrix + at;
        for (int64_t k = 0; k < put; k += 2)
            for (int64_t j = 0; j < PANEL_COLS; j++) {
                to[k * PANEL_COLS + 2 * j] = rt_f32_to_bf16(block[k + 1][j]);
                to[k * PANEL_COLS + 2 * j + 1] = rt_f32_to_bf16(block[k][j]);
            }
    }
}

// A piece of a tensor in rows.
static void put_rows(const RtTensor *t, int64_t first, int64_t n, const void *from, DType dtype, int64_t begin,
                     void *data) {
    DType type = (DType)t->dtype;
    if (dtype == type)
        memcpy((char *)data + first * dtype_bytes(type), (const char *)from + begin * dtype_bytes(type),
               (size_t)(n * dtype_bytes(type)));
    else
        for (int64_t i = 0; i < n; i++)
            rt_store_number(data, type, first + i, rt_load_number(from, dtype, begin + i));
}

void rt_tensor_put(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n, const void *from,
                   DType dtype) {
    enum { PIECE = 1 << 16 };
    char *data = rt_tensor_data(p, t);
    if (t->layout == LAYOUT_ROWS) {
#pragma omp parallel for num_threads(p->threads) schedule(static) if (n > PIECE)
        for (int64_t i = 0; i < n; i += PIECE)
            put_rows(t, first + i, n - i < PIECE ? n - i : PIECE, from, dtype, i, data);
        return;
    }
    Matrix m = matrix_of(t);
    int64_t size = m.rows * m.cols, panels = (m.n + PANEL_COLS - 1) / PANEL_COLS;
    if (size == 0) return;
    assert(first % size == 0 && n % size == 0);
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t i = 0; i < n / size * panels; i++) {
        char *matrix = data + (first / size + i / panels) * m.elements * dtype_bytes((DType)t->dtype);
        put_panel(t, &m, i % panels, from, dtype, i / panels * size, matrix);
    }
}

// Of run i, what lies in [first, first + n): [*begin, *end) of the whole tensor.
static bool in_run(const RtOwn *own, int64_t i, int64_t first, int64_t n, int64_t *begin, int64_t *end) {
    int64_t from = rt_own_begin(own, i), to = from + own->run;
    *begin = from > first ? from : first;
    *end = to < first + n ? to : first + n;
    return *begin < *end;
}

bool rt_tensor_holds(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n) {
    RtOwn own = rt_tensor_own(p, t);
    int64_t begin, end;
    for (int64_t i = 0; i < own.runs; i++)
        if (in_run(&own, i, first, n, &begin, &end)) return true;
    return false;
}

// Matrices in panels are put as a whole: their runs are put together first.
static void take_matrices(const RtPlanInstance *p, const RtTensor *t, const RtOwn *own, int64_t first, int64_t n,
                          const void *from, DType dtype) {
    Matrix m = matrix_of(t);
    int64_t size = m.rows * m.cols, runs = own->run < size ? size / own->run : 1, begin, end;
    size_t bytes = (size_t)dtype_bytes(dtype);
    char *matrix = malloc((size_t)size * bytes);
    if (!matrix) abort();
    for (int64_t i = 0; i + runs <= own->runs; i += runs) {
        if (!in_run(own, i, first, n, &begin, &end)) continue;
        for (int64_t k = 0; k < runs; k++)
            memcpy(matrix + (size_t)(k * own->run) * bytes,
                   (const char *)from + (size_t)(rt_own_begin(own, i + k) - first) * bytes, (size_t)own->run * bytes);
        rt_tensor_put(p, t, i * own->run, size, matrix, dtype);
    }
    free(matrix);
}

void rt_tensor_take(const RtPlanInstance *p, const RtTensor *t, int64_t first, int64_t n, const void *from,
                    DType dtype) {
    RtOwn own = rt_tensor_own(p, t);
    int64_t begin, end;
    if (t->layout != LAYOUT_ROWS && own.run < matrix_of(t).rows * matrix_of(t).cols) {
        take_matrices(p, t, &own, first, n, from, dtype);
        return;
    }
    for (int64_t i = 0; i < own.runs; i++)
        if (in_run(&own, i, first, n, &begin, &end))
            rt_tensor_put(p, t, begin - rt_own_begin(&own, i) + i * own.run, end - begin,
                          (const char *)from + (begin - first) * dtype_bytes(dtype), dtype);
}
