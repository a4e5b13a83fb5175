// The meaning of contractions.  Compiled kernels follow the orders below exactly.
//
// matmul, grouped_matmul   y = one chain c = fma(a[k], b[k], c) from +0, k ascending.
// matmul_dw                per leaf such a chain over the leaf's rows, ascending; then the leaf tree.
// grouped_dw               per (expert, leaf) such a chain over its rows; then, per expert, the leaf tree.
//   one_chain: no leaves, one chain over all rows (of an expert).
//                          A segment without rows is +0 and takes part in the tree.
// grouped_sum              per (expert, leaf) chunks of 64 rows from the segment's first row, added in order;
//                          chunks meet in the tree of abi.h; then the leaf tree.
//
// attention, for each query i and query head h (key head g = h * Hk / H); keys are cut into segments of 512
// and those into blocks of 64, both counted from key 0:
//   s_j = (chain over A of q * k_j) * scale, then + bias_ij;  visible keys only
//   a segment starts with m = -inf, l = 0, o = 0; its blocks follow, ascending, if they hold a visible key:
//     m'  = max(m, the block's largest s);  r = exp(m - m'), or 0 if m = -inf
//     p_j = exp(s_j - m'), 0 where not visible
//     l   = fma(l, r, lanes(p)): lane x of 16 adds p_x, p_x+16, ..; lanes fold 8-4-2-1; all 64 places
//     o   = o * r, then o = fma(p_j, v_j, o) for the visible j, ascending
//   segments meet in the tree of abi.h; one without a visible key changes nothing, else
//     m = max(ma, mb), ra = exp(ma - m) (0 if ma = -inf), rb = exp(mb - m)
//     l = fma(lb, rb, la * ra), o = fma(ob, rb, oa * ra)
//   a sink joins last:  m' = max(m, sink), r as above, l = fma(l, r, exp(sink - m')), o = o * r
//   o = o * (1 / l), lse = m + log(l);  no key visible: o = 0, and lse = the sink or -inf
//
// attention_grad: s as above, p = exp(s - lse), D = chain over V of do * o; visible keys, queries with lse > -inf only
//   dp    = chain over V of do * v_j;  ds = p * (dp - D);  t = ds * scale
//   dq    chain fma(t, k_j, .) over keys, ascending
//   dk dv chains fma(t, q_i, .), fma(p, do_i, .) over the query heads of the key head, in each over queries
//   dbias = ds (0 where not visible);  dsinks = -(exp(sink - lse) * D)
//
// head_loss: logits = chains over D; m = the largest, lse = m + log(lanes(exp(logit - m)));
//   nll = lse - logit of the label.
// head_loss_grad: g = (exp(logit - lse) - (1 at the label, else 0)) * dnll, for a part of V also where the label is in another;  dx = chain over V;
//   dw = matmul_dw of g and x.  With x of bf16 g is rounded to it.  head_loss_and_grad: both.
#include <assert.h>
#include "ir/ref/ref.h"

// Where the machine has an fma instruction the hot loops use it; the result is the same bit for bit.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) &&                       \
    !defined(__SANITIZE_THREAD__)
#define HOT __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define HOT
#endif

enum { BLOCK = 64, SEGMENT = 512, ROW_CHUNK = 64 };

// c [M,N] continues its chains over k: a[i*ai + k*ak] * b[k*N + j].
HOT static void chains(int64_t M, int64_t N, int64_t K, const real *a, int64_t ai, int64_t ak, const real *b,
                       real *c) {
    for (int64_t i = 0; i < M; i++)
        for (int64_t k = 0; k < K; k++) {
            real x = a[i * ai + k * ak];
            for (int64_t j = 0; j < N; j++) c[i * N + j] = REAL_FMA(x, b[k * N + j], c[i * N + j]);
        }
}

HOT static real dot(const real *a, const real *b, int64_t n) {
    real c = 0;
    for (int64_t i = 0; i < n; i++) c = REAL_FMA(a[i], b[i], c);
    return c;
}

// y += x * a, each element one fma.
HOT static void add_scaled(real *y, real x, const real *a, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = REAL_FMA(x, a[i], y[i]);
}

static real *reals_new(int64_t n) { return calloc((size_t)n + 1, sizeof(real)); }

static void transpose(real *to, const real *from, int64_t rows, int64_t cols) {      // to [cols, rows]
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) to[c * rows + r] = from[r * cols + c];
}

// y[i] = leaf tree over part[l][i].
static void leaf_tree(real *y, const real *part, int64_t leaves, int64_t size) {
    for (int64_t i = 0; i < size; i++) y[i] = REF(tree_sum)(part + i, leaves, size);
}

// ---- products -------------------------------------------------------------------------------------------

void REF(matmul)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const Tensor *a = &in[0], *b = &in[1], *y = &out[0];
    int64_t M = y->dim[y->ndim - 2], N = n_cols(y), K = a->dim[a->ndim - (attr->ta ? 2 : 1)];
    int64_t batch = 1;
    for (int i = 0; i + 2 < y->ndim; i++) batch *= y->dim[i];
    real *bt = attr->tb ? reals_new(K * N) : NULL;
    memset(y->data, 0, (size_t)(batch * M * N) * sizeof(real));
    for (int64_t g = 0; g < batch; g++) {
        const real *right = reals(b) + (b->ndim == 2 ? 0 : g * K * N);
        if (bt && (g == 0 || b->ndim != 2)) transpose(bt, right, N, K);
        chains(M, N, K, reals(a) + g * M * K, attr->ta ? 1 : K, attr->ta ? M : 1, bt ? bt : right,
               reals(y) + g * M * N);
    }
    free(bt);
}

void REF(matmul_dw)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in;
    (void)n_out;
    int64_t M = n_cols(&in[0]), N = n_cols(&in[1]), rows = n_rows(&in[0]),
            leaves = attr->leaves > 1 ? attr->leaves : 1;
    assert(rows % leaves == 0);
    int64_t run = rows / leaves;
    real *part = reals_new(leaves * M * N);
    for (int64_t l = 0; l < leaves; l++)
        chains(M, N, run, reals(&in[0]) + l * run * M, 1, M, reals(&in[1]) + l * run * N, part + l * M * N);
    leaf_tree(reals(&out[0]), part, leaves, M * N);
    free(part);
}

void REF(grouped_matmul)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const int32_t *offsets = ints(&in[2]);
    int64_t E = in[1].dim[0], leaves = (n_elements(&in[2]) - 1) / E, K = n_cols(&in[0]), N = n_cols(&out[0]);
    real *bt = attr->tb ? reals_new(K * N) : NULL;
    memset(out[0].data, 0, (size_t)n_elements(&out[0]) * sizeof(real));
    for (int64_t e = 0; e < E; e++) {
        int64_t begin = offsets[e * leaves], rows = offsets[(e + 1) * leaves] - begin;
        if (rows == 0) continue;
        const real *w = reals(&in[1]) + e * K * N;
        if (bt) transpose(bt, w, N, K);
        chains(rows, N, K, reals(&in[0]) + begin * K, K, 1, bt ? bt : w, reals(&out[0]) + begin * N);
    }
    free(bt);
}

void REF(grouped_dw)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const int32_t *offsets = ints(&in[2]);
    int64_t E = out[0].dim[0], leaves = (n_elements(&in[2]) - 1) / E, M = n_cols(&in[0]), N = n_cols(&in[1]);
    int64_t parts = attr->one_chain ? 1 : leaves, step = leaves / parts;
    real *part = reals_new(parts * M * N);
    for (int64_t e = 0; e < E; e++) {
        memset(part, 0, (size_t)(parts * M * N) * sizeof(real));
        for (int64_t l = 0; l < parts; l++) {
            int64_t begin = offsets[e * leaves + l * step], rows = offsets[e * leaves + (l + 1) * step] - begin;
            chains(M, N, rows, reals(&in[0]) + begin * M, 1, M, reals(&in[1]) + begin * N, part + l * M * N);
        }
        leaf_tree(reals(&out[0]) + e * M * N, part, parts, M * N);
    }
    free(part);
}

void REF(grouped_sum)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)attr; (void)n_in; (void)n_out;
    const int32_t *offsets = ints(&in[1]);
    int64_t E = out[0].dim[0], leaves = (n_elements(&in[1]) - 1) / E, N = n_cols(&in[0]);
    real *part = reals_new(leaves);
    for (int64_t e = 0; e < E; e++)
        for (int64_t c = 0; c < N; c++) {
            for (int64_t l = 0; l < leaves; l++) {
                int64_t begin = offsets[e * leaves + l], rows = offsets[e * leaves + l + 1] - begin;
                part[l] = rows ? REF(tree_of_chunks)(reals(&in[0]) + begin * N + c, rows, N) : 0;
            }
            reals(&out[0])[e * N + c] = REF(tree_sum)(part, leaves, 1);
        }
    free(part);
}

// ---- attention ------------------------------------------------------------------------------------------

typedef struct {
    const Tensor *q, *k, *v, *sinks, *bias, *valid, *documents, *sequences;      // options: NULL if not given
    int64_t batch, S, C, H, Hk, A, V, window;
    int64_t first_query, first_key;                                  // rows of the batch element at hand
    bool causal;
    real scale;
    int n_used;                                                      // operands read: 3 + options
} Attention;

enum { HAS_SINKS = 1, HAS_BIAS = 2, HAS_VALID = 4, HAS_DOCUMENTS = 8, HAS_SEQUENCES = 16 };

static Attention attention_of(const Attrs *attr, const Tensor *in) {
    Attention p = {.q = &in[0],
                   .k = &in[1],
                   .v = &in[2],
                   .batch = 1,
                   .n_used = 3,
                   .causal = attr->causal != 0,
                   .window = attr->window,
                   .scale = (real)attr->scale};
    int n = p.q->ndim;
    for (int i = 0; i + 3 < n; i++) p.batch *= p.q->dim[i];
    p.S = p.q->dim[n - 3], p.H = p.q->dim[n - 2], p.A = p.q->dim[n - 1];
    p.C = p.k->dim[n - 3], p.Hk = p.k->dim[n - 2], p.V = p.v->dim[n - 1];
    if (attr->has & HAS_SINKS) p.sinks = &in[p.n_used++];
    if (attr->has & HAS_BIAS) p.bias = &in[p.n_used++];
    if (attr->has & HAS_VALID) p.valid = &in[p.n_used++];
    if (attr->has & HAS_DOCUMENTS) p.documents = &in[p.n_used++];
    if (attr->has & HAS_SEQUENCES) {
        p.sequences = &in[p.n_used++];
        p.batch = p.sequences->dim[0];
    }
    return p;
}

static void begin_batch(Attention *p, int64_t b) {
    if (!p->sequences) {
        p->first_query = b * p->S;
        p->first_key = b * p->C;
        return;
    }
    const int32_t *s = ints(p->sequences) + b * SEQUENCE_COLUMNS;
    p->first_query = s[SEQUENCE_FIRST];
    p->S = s[SEQUENCE_ROWS];
    p->C = s[SEQUENCE_LENGTH];
    p->first_key = s[SEQUENCE_PLACE] * p->k->dim[p->k->ndim - 3];
}

// Which of t's leading blocks batch element b reads: axes of t before its last `inner` ones are aligned to
// the right of q's batch axes; those of size 1, and missing ones, are shared.
static int64_t batch_of(const Attention *p, const Tensor *t, int inner, int64_t b) {
    int lead = p->q->ndim - 3, own = t->ndim - inner;
    int64_t at = 0, stride = 1;
    for (int i = lead - 1, j = own - 1; j >= 0; i--, j--) {
        int64_t index = b % p->q->dim[i];
        b /= p->q->dim[i];
        if (t->dim[j] != 1) at += index * stride;
        stride *= t->dim[j];
    }
    return at;
}

// The row of t [.., S, H, *].
static const real *query(const Attention *p, const Tensor *t, int64_t h, int64_t i) {
    return reals(t) + ((p->first_query + i) * p->H + h) * n_cols(t);
}
// The row of t [.., C, Hk, *] that query head h reads.
static const real *key(const Attention *p, const Tensor *t, int64_t h, int64_t j) {
    return reals(t) + ((p->first_key + j) * p->Hk + h * p->Hk / p->H) * n_cols(t);
}

static bool visible(const Attention *p, int64_t b, int64_t i, int64_t j) {
    int64_t at = i + p->C - p->S;
    if (p->causal && j > at) return false;
    if (p->window && (j <= at - p->window || j >= at + p->window)) return false;
    if (p->valid && !bools(p->valid)[batch_of(p, p->valid, 1, b) * p->C + j]) return false;
    if (p->documents) {
        const int32_t *d = ints(p->documents) + batch_of(p, p->documents, 1, b) * p->C;
        if (d[j] != d[at]) return false;
    }
    return true;
}

static real score(const Attention *p, int64_t b, int64_t h, int64_t i, int64_t j) {
    real s = dot(query(p, p->q, h, i), key(p, p->k, h, j), p->A) * p->scale;
    if (p->bias) {
        const Tensor *t = p->bias;                                   // [.., 1 or H, 1 or S, 1 or C]
        int64_t dh = t->dim[t->ndim - 3], ds = t->dim[t->ndim - 2], dc = t->dim[t->ndim - 1];
        int64_t at = batch_of(p, t, 3, b) * dh + (dh == 1 ? 0 : h);
        at = at * ds + (ds == 1 ? 0 : p->sequences ? p->first_query + i : i);
        s += reals(t)[at * dc + (dc == 1 ? 0 : j)];
    }
    return s;
}

// Running softmax of one query: largest score m; sum of exponentials, weighted sum of values relative to it.
typedef struct { real m, l, *o; } Running;

static void attend_block(const Attention *p, int64_t b, int64_t h, int64_t i, int64_t first, Running *r) {
    real s[BLOCK] = {0};
    bool seen[BLOCK] = {0};
    int64_t n = p->C - first < BLOCK ? p->C - first : BLOCK;
    real largest = (real)-INFINITY;
    bool any = false;
    for (int64_t j = 0; j < n; j++) {
        seen[j] = visible(p, b, i, first + j);
        if (!seen[j]) continue;
        s[j] = score(p, b, h, i, first + j);
        any = true;
        if (s[j] > largest) largest = s[j];
    }
    if (!any) return;
    real m = largest > r->m ? largest : r->m;
    real keep = r->m == (real)-INFINITY ? 0 : REAL_EXP(r->m - m);
    for (int64_t j = 0; j < BLOCK; j++) s[j] = seen[j] ? REAL_EXP(s[j] - m) : 0;
    r->l = REAL_FMA(r->l, keep, REF(lanes_sum)(s, BLOCK));
    for (int64_t c = 0; c < p->V; c++) r->o[c] *= keep;
    for (int64_t j = 0; j < n; j++)
        if (seen[j]) add_scaled(r->o, s[j], key(p, p->v, h, first + j), p->V);
    r->m = m;
}

// Segments [lo, lo + n) into r[lo].
static void meet_segments(Running *r, int64_t n, int64_t V) {
    if (n < 2) return;
    int64_t left = tree_split(n);
    meet_segments(r, left, V);
    meet_segments(r + left, n - left, V);
    Running *a = r, *b = r + left;
    if (b->m == (real)-INFINITY) return;
    real m = a->m > b->m ? a->m : b->m;
    real ra = a->m == (real)-INFINITY ? 0 : REAL_EXP(a->m - m), rb = REAL_EXP(b->m - m);
    a->l = REAL_FMA(b->l, rb, a->l * ra);
    for (int64_t c = 0; c < V; c++) a->o[c] = REAL_FMA(b->o[c], rb, a->o[c] * ra);
    a->m = m;
}

void REF(attention)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    Attention p = attention_of(attr, in);
    int64_t most = (p.C + SEGMENT - 1) / SEGMENT;
    Running *r = calloc((size_t)most + 1, sizeof *r);
    real *o = reals_new((most + 1) * p.V);
    for (int64_t b = 0; b < p.batch; b++) {
        begin_batch(&p, b);
        int64_t segments = (p.C + SEGMENT - 1) / SEGMENT;
        for (int64_t i = 0; i < p.S; i++)
            for (int64_t h = 0; h < p.H; h++) {
                memset(o, 0, (size_t)((segments + 1) * p.V) * sizeof(real));
                for (int64_t s = 0; s <= segments; s++) r[s] = (Running){(real)-INFINITY, 0, o + s * p.V};
                for (int64_t s = 0; s < segments; s++)
                    for (int64_t j = s * SEGMENT; j < p.C && j < (s + 1) * SEGMENT; j += BLOCK)
                        attend_block(&p, b, h, i, j, &r[s]);
                meet_segments(r, segments, p.V);
                int64_t at = (p.first_query + i) * p.H + h;
                if (p.sinks) {
                    real sink = reals(p.sinks)[h], m = r->m > sink ? r->m : sink;
                    real keep = r->m == (real)-INFINITY ? 0 : REAL_EXP(r->m - m);
                    r->l = REAL_FMA(r->l, keep, REAL_EXP(sink - m));
                    for (int64_t c = 0; c < p.V; c++) r->o[c] *= keep;
                    r->m = m;
                }
                bool none = r->m == (real)-INFINITY;
                real inverse = none ? 0 : (real)1 / r->l;
                for (int64_t c = 0; c < p.V; c++) reals(&out[0])[at * p.V + c] = r->o[c] * inverse;
                reals(&out[1])[at] = none ? (real)-INFINITY : r->m + REAL_LOG(r->l);
            }
    }
    free(o);
    free(r);
}

void REF(attention_grad)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    Attention p = attention_of(attr, in);
    const Tensor *o = &in[p.n_used], *lse = &in[p.n_used + 1], *d_o = &in[p.n_used + 2];
    int next = 3;
    real *dsinks = p.sinks ? reals(&out[next++]) : NULL, *dbias = p.bias ? reals(&out[next++]) : NULL;
    for (int i = 0; i < 3; i++) memset(out[i].data, 0, (size_t)n_elements(&out[i]) * sizeof(real));
    for (int64_t b = 0; b < p.batch; b++) {
        begin_batch(&p, b);
        for (int64_t h = 0; h < p.H; h++)
            for (int64_t i = 0; i < p.S; i++) {
                int64_t at = (p.first_query + i) * p.H + h;
                const real *go = query(&p, d_o, h, i), *oo = query(&p, o, h, i),
                           *q = query(&p, p.q, h, i);
                real z = reals(lse)[at], D = dot(go, oo, p.V);
                if (dsinks) dsinks[at] = -(REAL_EXP(reals(p.sinks)[h] - z) * D);
                for (int64_t j = 0; j < p.C; j++) {
                    real ds = 0;
                    if (visible(&p, b, i, j) && z != (real)-INFINITY) {
                        const real *k = key(&p, p.k, h, j), *v = key(&p, p.v, h, j);
                        real w = REAL_EXP(score(&p, b, h, i, j) - z);
                        ds = w * (dot(go, v, p.V) - D);
                        real t = ds * p.scale;
                        add_scaled(reals(&out[0]) + (q - reals(p.q)), t, k, p.A);
                        add_scaled(reals(&out[1]) + (k - reals(p.k)), t, q, p.A);
                        add_scaled(reals(&out[2]) + (v - reals(p.v)), w, go, p.V);
                    }
                    if (dbias) dbias[((b * p.H + h) * p.S + i) * p.C + j] = ds;
                }
            }
    }
}

// ---- head -----------------------------------------------------------------------------------------------

void REF(head_loss)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)attr; (void)n_in; (void)n_out;
    const Tensor *x = &in[0], *w = &in[1];
    int64_t rows = n_rows(x), D = n_cols(x), V = w->dim[0];
    real *wt = reals_new(D * V), *logit = reals_new(V), *e = reals_new(V);
    transpose(wt, reals(w), V, D);
    for (int64_t r = 0; r < rows; r++) {
        memset(logit, 0, (size_t)V * sizeof(real));
        chains(1, V, D, reals(x) + r * D, D, 1, wt, logit);
        real m = logit[0];
        for (int64_t v = 1; v < V; v++) m = logit[v] > m ? logit[v] : m;
        for (int64_t v = 0; v < V; v++) e[v] = REAL_EXP(logit[v] - m);
        real lse = m + REAL_LOG(REF(lanes_sum)(e, V));
        int64_t label = ints(&in[2])[r];
        reals(&out[0])[r] = label >= 0 && label < V ? lse - logit[label] : 0;
        reals(&out[1])[r] = lse;
    }
    free(wt);
    free(logit);
    free(e);
}

void REF(head_loss_grad)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    const Tensor *x = &in[0], *w = &in[1];
    int64_t rows = n_rows(x), D = n_cols(x), V = w->dim[0], leaves = attr->leaves > 1 ? attr->leaves : 1;
    assert(rows % leaves == 0);
    real *wt = reals_new(D * V), *g = reals_new(ROW_CHUNK * V), *part = reals_new(leaves * V * D);
    transpose(wt, reals(w), V, D);
    memset(out[0].data, 0, (size_t)(rows * D) * sizeof(real));
    for (int64_t r = 0; r < rows;) {
        int64_t leaf = r / (rows / leaves), end = (leaf + 1) * (rows / leaves);
        int64_t n = end - r < ROW_CHUNK ? end - r : ROW_CHUNK;
        memset(g, 0, (size_t)(n * V) * sizeof(real));
        chains(n, V, D, reals(x) + r * D, D, 1, wt, g);
        for (int64_t i = 0; i < n; i++) {
            int64_t label = ints(&in[2])[r + i];
            bool known = label >= 0 && (label < V || attr->over);
            real lse = reals(&in[3])[r + i], d = known ? reals(&in[4])[r + i] : 0;
            for (int64_t v = 0; v < V; v++)
                g[i * V + v] = (REAL_EXP(g[i * V + v] - lse) - (real)(v == label)) * d;
            for (int64_t v = 0; attr->narrow && v < V; v++) g[i * V + v] = REAL_BF16(g[i * V + v]);
        }
        chains(n, D, V, g, V, 1, reals(w), reals(&out[0]) + r * D);
        chains(V, D, n, g, 1, V, reals(x) + r * D, part + leaf * V * D);
        r += n;
    }
    leaf_tree(reals(&out[1]), part, leaves, V * D);
    free(wt);
    free(g);
    free(part);
}

void REF(head_loss_and_grad)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    Tensor loss[2] = {out[0], out[0]}, grad_in[5] = {in[0], in[1], in[2], out[0], in[3]};
    loss[1].data = grad_in[3].data = reals_new(n_elements(&out[0]));
    REF(head_loss)(attr, 3, in, 2, loss);
    REF(head_loss_grad)(attr, 5, grad_in, 2, out + 1);
    free(loss[1].data);
}

// ---- convolution as a matmul ----------------------------------------------------------------------------

// Pairs each place of the windows with its pixel, ascending (window, channel, y, x); padding has no pixel.
static void windows(const Attrs *attr, const Tensor *image, const Tensor *patches,
                    void (*visit)(real *pixel, real *place)) {
    int64_t C = image->dim[image->ndim - 3], H = image->dim[image->ndim - 2], W = image->dim[image->ndim - 1];
    int64_t OH = patches->dim[patches->ndim - 3], OW = patches->dim[patches->ndim - 2];
    int64_t kh = attr->kernel.at[0], kw = attr->kernel.at[1], size = C * H * W,
            n = size ? n_elements(image) / size : 0;
    real *place = reals(patches);
    for (int64_t b = 0; b < n; b++)
        for (int64_t w = 0; w < OH * OW; w++)
            for (int64_t c = 0; c < C; c++)
                for (int64_t t = 0; t < kh * kw; t++, place++) {
                    int64_t y = w / OW * attr->stride + t / kw - attr->pad,
                            x = w % OW * attr->stride + t % kw - attr->pad;
                    bool inside = y >= 0 && y < H && x >= 0 && x < W;
                    visit(inside ? reals(image) + b * size + (c * H + y) * W + x : NULL, place);
                }
}

static void read_pixel(real *pixel, real *place) { *place = pixel ? *pixel : 0; }
static void add_pixel(real *pixel, real *place) { if (pixel) *pixel += *place; }

void REF(patches)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    windows(attr, &in[0], &out[0], read_pixel);
}

void REF(fold)(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out) {
    (void)n_in; (void)n_out;
    memset(out[0].data, 0, (size_t)n_elements(&out[0]) * sizeof(real));
    windows(attr, &out[0], &in[0], add_pixel);
}
