// The meaning of sources and elementwise ops.
#include "ir/ref/walk.h"
#include "runtime/philox.h"

#define MEANING(name) void REF(name)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out)
#define UNUSED (void)attr, (void)n_in, (void)n_out

// Effects and sources whose contents come from outside: the evaluator handles them.
MEANING(none) {
    UNUSED, (void)in, (void)out;
    abort();
}

// Regions: the evaluator runs their nodes.
MEANING(region) {
    UNUSED, (void)in, (void)out;
    abort();
}

// ---- numbers of any type ----------------------------------------------------------------------------------

static double number_at(const Tensor *t, int64_t i) {
    if (dtype_is_float(t->dtype)) return (double)reals(t)[i];
    switch (t->dtype) {
    case I32: return ints(t)[i];
    case U32: return ((const uint32_t *)t->data)[i];
    case I8:  return ((const int8_t *)t->data)[i];
    default:  return bools(t)[i];
    }
}

// Truncates towards zero; what does not fit becomes the nearest number that does, NaN becomes 0.
static int64_t to_int(double x, int64_t least, int64_t most) {
    if (!(x == x)) return 0;
    if (x <= (double)least) return least;
    return x >= (double)most ? most : (int64_t)x;
}

static void set_number(const Tensor *t, int64_t i, double x) {
    if (dtype_is_float(t->dtype)) {
        reals(t)[i] = (real)x;
        return;
    }
    switch (t->dtype) {
    case I32:  ints(t)[i] = (int32_t)to_int(x, INT32_MIN, INT32_MAX); break;
    case U32:  ((uint32_t *)t->data)[i] = (uint32_t)to_int(x, 0, UINT32_MAX); break;
    case I8:   ((int8_t *)t->data)[i] = (int8_t)to_int(x, INT8_MIN, INT8_MAX); break;
    case BOOL: bools(t)[i] = x != 0; break;
    default:   bools(t)[i] = (uint8_t)to_int(x, 0, UINT8_MAX); break;
    }
}

// ---- sources --------------------------------------------------------------------------------------------

MEANING(const) {
    UNUSED, (void)in;
    const Tensor *data = attr->data ? &attr->data->tensor : NULL;
    for (int64_t i = 0, n = n_elements(out); i < n; i++) {
        double x = attr->value;
        if (data && data->dtype == F32) x = (double)((const float *)data->data)[i];
        else if (data && data->dtype == I32) x = ((const int32_t *)data->data)[i];
        else if (data) x = ((const uint8_t *)data->data)[i];
        set_number(out, i, x);
    }
}

MEANING(iota) {
    UNUSED, (void)in;
    int64_t inner = 1, n = out->dim[attr->axis], all = n_elements(out);
    for (int i = (int)attr->axis + 1; i < out->ndim; i++) inner *= out->dim[i];
    for (int64_t i = 0; i < all; i++) ints(out)[i] = (int32_t)(i / inner % n);
}

MEANING(random) {
    UNUSED;
    int64_t n = n_elements(out), rows = n_in > 1 && in[1].ndim ? out->dim[0] : 1, each = rows ? n / rows : 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t before = n_in > 1 ? ints(&in[1])[r] * each : 0;
        for (int64_t i = 0; i < each; i++)
            reals(out)[r * each + i] = philox_element(ints(&in[0]), (uint32_t)attr->stream, (uint64_t)(before + i));
    }
}

// ---- arithmetic -----------------------------------------------------------------------------------------
// Each op is one expression on reals and one on integers (int64_t; the result wraps to its type).

#define LOOP2(T, N, expression)                                                                          \
    for_each_run(w, r, n) {                                                                              \
        const T *pa = (const T *)in[0].data + r.at[0], *pb = (const T *)in[1].data + r.at[1];            \
        T *y = (T *)out->data + r.y;                                                                     \
        const int64_t sa = w.step[0][w.ndim - 1], sb = w.step[1][w.ndim - 1];                            \
        for (int64_t i = 0; i < n; i++) {                                                                \
            const N a = pa[i * sa], b = pb[i * sb];                                                      \
            y[i] = (T)(expression);                                                                      \
        }                                                                                                \
    }

#define ARITHMETIC2(name, of_reals, of_ints)                                                             \
    MEANING(name) {                                                                                      \
        UNUSED;                                                                                          \
        Walk w = walk_broadcast(out, 2, in);                                                             \
        switch (in[0].dtype) {                                                                           \
        case I32: LOOP2(int32_t, int64_t, of_ints) break;                                                \
        case U32: LOOP2(uint32_t, int64_t, of_ints) break;                                               \
        case I8:  LOOP2(int8_t, int64_t, of_ints) break;                                                 \
        case U8:  LOOP2(uint8_t, int64_t, of_ints) break;                                                \
        default:  LOOP2(real, real, of_reals) break;                                                     \
        }                                                                                                \
    }

static int64_t floor_div(int64_t a, int64_t b) {
    if (!b) return 0;
    int64_t q = a / b;
    return a % b && (a < 0) != (b < 0) ? q - 1 : q;
}

ARITHMETIC2(add, a + b, a + b)
ARITHMETIC2(sub, a - b, a - b)
ARITHMETIC2(mul, a * b, (uint64_t)a * (uint64_t)b)
ARITHMETIC2(div, a / b, floor_div(a, b))
ARITHMETIC2(mod, a - b * REAL_FLOOR(a / b), a - b * floor_div(a, b))
ARITHMETIC2(max, a >= b ? a : b, a >= b ? a : b)
ARITHMETIC2(min, a <= b ? a : b, a <= b ? a : b)

MEANING(fma) {
    UNUSED;
    Walk w = walk_broadcast(out, 3, in);
    for_each_run(w, r, n) {
        const real *a = reals(&in[0]) + r.at[0], *b = reals(&in[1]) + r.at[1], *c = reals(&in[2]) + r.at[2];
        real *y = reals(out) + r.y;
        const int64_t *step[] = {w.step[0], w.step[1], w.step[2]};
        const int64_t sa = step[0][w.ndim - 1], sb = step[1][w.ndim - 1], sc = step[2][w.ndim - 1];
        for (int64_t i = 0; i < n; i++) y[i] = REAL_FMA(a[i * sa], b[i * sb], c[i * sc]);
    }
}

// ---- functions of one number ------------------------------------------------------------------------------

#define REAL_FUNCTION(name, expression)                                              \
    FAST static void each_##name(const real *from, real *to, int64_t n) {            \
        for (int64_t i = 0; i < n; i++) {                                            \
            const real x = from[i];                                                  \
            to[i] = expression;                                                      \
        }                                                                            \
    }                                                                                \
    MEANING(name) {                                                                  \
        UNUSED;                                                                      \
        each_##name(reals(&in[0]), reals(out), n_elements(out));                     \
    }

REAL_FUNCTION(exp, REAL_EXP(x))
REAL_FUNCTION(log, REAL_LOG(x))
REAL_FUNCTION(log1p, REAL_LOG1P(x))
REAL_FUNCTION(sqrt, REAL_SQRT(x))
REAL_FUNCTION(rsqrt, 1 / REAL_SQRT(x))
REAL_FUNCTION(tanh, REAL_TANH(x))
REAL_FUNCTION(sigmoid, REAL_SIGMOID(x))
REAL_FUNCTION(erf, REAL_ERF(x))
REAL_FUNCTION(sin, REAL_SIN(x))
REAL_FUNCTION(cos, REAL_COS(x))
REAL_FUNCTION(floor, REAL_FLOOR(x))
REAL_FUNCTION(round, REAL_ROUND(x))

#define LOOP1(T, N, expression)                                                      \
    for (int64_t i = 0, n = n_elements(out); i < n; i++) {                           \
        const N x = ((const T *)in[0].data)[i];                                      \
        ((T *)out->data)[i] = (T)(expression);                                       \
    }

#define ARITHMETIC1(name, of_reals, of_ints)                                         \
    MEANING(name) {                                                                  \
        UNUSED;                                                                      \
        switch (in[0].dtype) {                                                       \
        case I32: LOOP1(int32_t, int64_t, of_ints) break;                            \
        case U32: LOOP1(uint32_t, int64_t, of_ints) break;                           \
        case I8:  LOOP1(int8_t, int64_t, of_ints) break;                             \
        case U8:  LOOP1(uint8_t, int64_t, of_ints) break;                            \
        default:  LOOP1(real, real, of_reals) break;                                 \
        }                                                                            \
    }

ARITHMETIC1(neg, -x, -x)
ARITHMETIC1(abs, REAL_ABS(x), x < 0 ? -x : x)
ARITHMETIC1(sign, (x > 0) - (x < 0), (x > 0) - (x < 0))

MEANING(cast) {
    UNUSED;
    int64_t n = n_elements(out);
    if (dtype_is_float(in[0].dtype) && dtype_is_float(out->dtype)) {
        if (n)
            memcpy(out->data, in[0].data, sizeof(real) * (size_t)n); // the evaluator rounds to bf16 and f16
        return;
    }
    for (int64_t i = 0; i < n; i++) set_number(out, i, number_at(&in[0], i));
}

// ---- truth ----------------------------------------------------------------------------------------------

#define COMPARE_LOOP(T, expression)                                                                      \
    for_each_run(w, r, n) {                                                                              \
        const T *pa = (const T *)in[0].data + r.at[0], *pb = (const T *)in[1].data + r.at[1];            \
        const int64_t sa = w.step[0][w.ndim - 1], sb = w.step[1][w.ndim - 1];                            \
        for (int64_t i = 0; i < n; i++) {                                                                \
            const T a = pa[i * sa], b = pb[i * sb];                                                      \
            bools(out)[r.y + i] = expression;                                                            \
        }                                                                                                \
    }

#define COMPARISON(name, expression)                                                                     \
    MEANING(name) {                                                                                      \
        UNUSED;                                                                                          \
        Walk w = walk_broadcast(out, 2, in);                                                             \
        switch (in[0].dtype) {                                                                           \
        case I32: COMPARE_LOOP(int32_t, expression) break;                                               \
        case U32: COMPARE_LOOP(uint32_t, expression) break;                                              \
        case I8:  COMPARE_LOOP(int8_t, expression) break;                                                \
        case U8: case BOOL: COMPARE_LOOP(uint8_t, expression) break;                                     \
        default:  COMPARE_LOOP(real, expression) break;                                                  \
        }                                                                                                \
    }

COMPARISON(eq, a == b)
COMPARISON(lt, a < b)
COMPARISON(le, a <= b)
COMPARISON(and, a && b)
COMPARISON(or, a || b)

MEANING(not) {
    UNUSED;
    for (int64_t i = 0, n = n_elements(out); i < n; i++) bools(out)[i] = !bools(&in[0])[i];
}

#define SELECT_LOOP(T)                                                                                   \
    for_each_run(w, r, n) {                                                                              \
        const uint8_t *c = bools(&in[0]) + r.at[0];                                                      \
        const T *a = (const T *)in[1].data + r.at[1], *b = (const T *)in[2].data + r.at[2];              \
        T *y = (T *)out->data + r.y;                                                                     \
        const int64_t sc = w.step[0][w.ndim - 1], sa = w.step[1][w.ndim - 1], sb = w.step[2][w.ndim - 1];\
        for (int64_t i = 0; i < n; i++) y[i] = c[i * sc] ? a[i * sa] : b[i * sb];                        \
    }

MEANING(select) {
    UNUSED;
    Walk w = walk_broadcast(out, 3, in);
    switch (element_size(out)) {
    case 1:  SELECT_LOOP(uint8_t) break;
    case 4:  SELECT_LOOP(uint32_t) break;
    default: SELECT_LOOP(uint64_t) break;
    }
}
