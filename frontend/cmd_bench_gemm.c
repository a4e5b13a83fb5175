// `moec bench gemm`: contractions as models have them, each compiled from a graph of its own and compared with the machine's
// rate of fused multiply-adds and, with --peer, with cblas_sgemm of a library in the same process.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_bench.h"
#include "frontend/cmd_bench_graph.h"
#include "frontend/cmd_bench_table.h"
#include "frontend/cmd_machine.h"
#include "ir/base/str.h"
#include "passes/pass.h"
#include "runtime/exec.h"

typedef enum { FORWARD, PANELS, GRAD_X, GRAD_W, EXPERTS, EXPERTS_GRAD_W, HEAD, HEAD_GRAD } Kind;

// Rows of what tokens there are, K and N of the matrix W [K, N].
typedef struct { Kind kind; int64_t experts, M, K, N; } Shape;

enum { LEAVES = 8 };

// Y = X W;  the same with W as generating has it, in panels;  dX = dY W^T;  dW = X^T dY, by leaves.  Experts gather their rows, M each, while they pack.  A head makes logits
// and losses of them; its gradient is three products, the logits once more among them.
static const char *graph_text(Arena *a, const Shape *s, const char *dtype) {
    long long M = s->M, K = s->K, N = s->N, E = s->experts;
    switch (s->kind) {
    case FORWARD: case PANELS:
        return arena_printf(a, "graph @eval stage WHOLE {\n  %%x = input {name = \"x\"} : %s[%lld,%lld]\n  %%w = %s : %s[%lld,%lld]\n"
                               "  %%y = matmul %%x, %%w : %s[%lld,%lld]\n  return %%y {name = \"y\"}\n}\n",
                            dtype, M, K, s->kind == PANELS ? "param {name = \"w\", init = \"zeros\", group = \"dense\", lr = 1}" : "input {name = \"w\"}",
                            dtype, K, N, dtype, M, N);
    case GRAD_X:
        return arena_printf(a, "graph @eval stage WHOLE {\n  %%x = input {name = \"x\"} : %s[%lld,%lld]\n  %%w = input {name = \"w\"} : %s[%lld,%lld]\n"
                               "  %%y = matmul %%x, %%w {tb = 1} : %s[%lld,%lld]\n  return %%y {name = \"y\"}\n}\n",
                            dtype, M, N, dtype, K, N, dtype, M, K);
    case GRAD_W:
        return arena_printf(a, "graph @eval stage WHOLE {\n  leaves L = %d\n  %%x = input {name = \"x\"} : %s[L,%lld,%lld]\n"
                               "  %%dy = input {name = \"w\"} : %s[L,%lld,%lld]\n  %%dw = matmul_dw %%x, %%dy {leaves = %d} : f32[%lld,%lld]\n"
                               "  return %%dw {name = \"y\"}\n}\n",
                            LEAVES, dtype, M / LEAVES, K, dtype, M / LEAVES, N, LEAVES, K, N);
    case HEAD: case HEAD_GRAD: {
        long long m = M / LEAVES;
        const char *one = arena_printf(a, "f32[L,%lld,1]", m);
        const char *in = arena_printf(a, "graph @eval stage WHOLE {\n  leaves L = %d\n  %%x = input {name = \"x\"} : %s[L,%lld,%lld]\n  %%w = input {name = \"w\"} : %s[%lld,%lld]\n"
                                         "  %%label = input {name = \"label\"} : i32[L,%lld]\n", LEAVES, dtype, m, K, dtype, N, K, m);
        if (s->kind == HEAD)
            return arena_printf(a, "%s  %%nll, %%lse = head_loss %%x, %%w, %%label : %s, %s\n  return %%nll {name = \"y\"}\n  return %%lse {name = \"lse\"}\n}\n", in, one, one);
        return arena_printf(a, "%s  %%lse = input {name = \"lse\"} : %s\n  %%d = input {name = \"d\"} : %s\n"
                               "  %%dx, %%dw = head_loss_grad %%x, %%w, %%label, %%lse, %%d {leaves = %d} : %s[L,%lld,%lld], f32[%lld,%lld]\n"
                               "  return %%dx {name = \"y\"}\n  return %%dw {name = \"dw\"}\n}\n", in, one, one, LEAVES, dtype, m, K, N, K);
    }
    default: break;
    }
    Str t = {.arena = a};
    long long T = M * E / LEAVES;                          // tokens of a leaf; each has one expert
    str_printf(&t, "graph @eval stage WHOLE {\n  leaves L = %d\n  rows R <= %lld by %lld leaves %d of %%off\n", LEAVES, M * E, E, LEAVES);
    str_printf(&t, "  %%x = input {name = \"x\"} : %s[L,%lld,%lld]\n  %%e = input {name = \"e\"} : i32[L,%lld,1]\n", dtype, T, K, T);
    str_printf(&t, "  %%off, %%row, %%slot = route %%e {experts = %lld, sym = R, leaves = %d} : i32[%lld], i32[L,%lld,1], i32[R]\n", E, LEAVES,
               E * LEAVES + 1, T);
    str_printf(&t, "  %%rows = gather_rows %%x, %%slot : %s[R,%lld]\n", dtype, K);
    if (s->kind == EXPERTS)
        str_printf(&t, "  %%w = input {name = \"w\"} : %s[%lld,%lld,%lld]\n  %%y = grouped_matmul %%rows, %%w, %%off : %s[R,%lld]\n", dtype, E, K, N, dtype, N);
    else
        str_printf(&t, "  %%dy = input {name = \"w\"} : %s[L,%lld,%lld]\n  %%drows = gather_rows %%dy, %%slot : %s[R,%lld]\n"
                       "  %%y = grouped_dw %%rows, %%drows, %%off {leaves = %d} : f32[%lld,%lld,%lld]\n",
                   dtype, T, N, dtype, N, LEAVES, E, K, N);
    str_add(&t, "  return %y {name = \"y\"}\n}\n");
    return t.text;
}

static const char *shape_name(Arena *a, const Shape *s) {
    static const char *const kind[] = {"x w", "x panels", "dy w^T", "x^T dy", "x w", "x^T dy", "head", "head gradient"};
    const char *each = s->experts ? arena_printf(a, "%lld experts ", (long long)s->experts) : "";
    return arena_printf(a, "%s%s %lldx%lldx%lld", each, kind[s->kind], (long long)s->M, (long long)s->K, (long long)s->N);
}

// ---- the peer -----------------------------------------------------------------------------------------------

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };     // of the C interface to BLAS
typedef void SgemmFn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                     float *c, int ldc);

typedef struct {
    SgemmFn *sgemm;
    void (*set_threads)(int n);
    const char *name;
} Peer;

// Old OpenBLAS takes a CPU that it does not know for one without vectors: it is told which kernels to use.
static bool peer_open(Cli *c, const Machine *m, Peer *p) {
    const char *path = cli_value(c, "peer");
    *p = (Peer){.name = NULL};
    if (!path) return true;
    if (m->vector_bytes >= 64) setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
    else if (m->vector_bytes >= 32) setenv("OPENBLAS_CORETYPE", "Haswell", 1);
    unsetenv("OPENBLAS_L2_SIZE");
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        diag_error(c->diag, (Span){0}, "--peer: %s", dlerror());
        return false;
    }
    *(void **)&p->sgemm = dlsym(lib, "cblas_sgemm");
    *(void **)&p->set_threads = dlsym(lib, "openblas_set_num_threads");
    if (!p->sgemm) diag_error(c->diag, (Span){0}, "--peer: %s has no cblas_sgemm", path);
    char *(*core)(void);
    *(void **)&core = dlsym(lib, "openblas_get_corename");
    p->name = core ? arena_printf(c->arena, "OpenBLAS (%s)", core()) : path;
    return p->sgemm != NULL;
}

typedef struct { const Peer *p; const Shape *s; const float *x, *w; float *y; } PeerRun;

static void run_peer(void *self) {
    const PeerRun *r = self;
    const Shape *s = r->s;
    int M = (int)s->M, K = (int)s->K, N = (int)s->N;
    int64_t n = s->experts ? s->experts : 1;
    for (int64_t e = 0; e < n; e++)
        switch (s->kind) {
        case FORWARD: case PANELS: case EXPERTS:
            r->p->sgemm(ROW_MAJOR, NO_TRANS, NO_TRANS, M, N, K, 1, r->x + e * M * K, K, r->w + e * K * N, N, 0, r->y + e * M * N, N);
            break;
        case GRAD_X: r->p->sgemm(ROW_MAJOR, NO_TRANS, TRANS, M, K, N, 1, r->x, N, r->w, N, 0, r->y, K); break;
        case GRAD_W: case EXPERTS_GRAD_W:
            r->p->sgemm(ROW_MAJOR, TRANS, NO_TRANS, K, N, M, 1, r->x + e * M * K, K, r->w + e * M * N, N, 0, r->y + e * K * N, N);
            break;
        default: break;
        }
}

// ---- the table ----------------------------------------------------------------------------------------------

// false after an error.
static bool bench_one(Cli *c, const Machine *known, const Machine *m, const Peer *peer, const Shape *s, const char *dtype, int threads, double budget, json_t *rows) {
    const char *name = shape_name(c->arena, s);
    BenchGraph b;
    bool ok = bench_graph_open(&b, c, known, name, graph_text(c->arena, s, dtype), pipeline_forward, threads);
    if (ok) {
        bool is_f32 = !strcmp(dtype, "f32");
        bench_graph_fill(&b, s->experts ? (int)s->experts : (int)s->N);
        rt_run(b.plan, 0);                                 // sizes that the route decides
        const RtTensor *x = rt_tensor(b.plan, "x"), *w = rt_tensor(b.plan, "w"), *y = rt_tensor(b.plan, "y");
        BenchSteps steps = bench_graph_steps(&b, bench_is_contraction);
        PeerRun other = {peer, s, rt_tensor_data(b.plan, x), rt_tensor_data(b.plan, w), NULL};   // panels are numbers too
        BenchRun what[2] = {bench_steps(&steps), {run_peer, &other, 0}};
        bool with_peer = peer->sgemm && is_f32 && s->kind < HEAD;
        if (with_peer) {
            other.y = aligned_alloc(64, (size_t)(y->bytes + 63) / 64 * 64);
            if (peer->set_threads) peer->set_threads(threads);
        }
        bench_times(what, with_peer ? 2 : 1, threads, budget);
        free(other.y);
        double flops = 2.0 * (double)(s->M * s->K * s->N) * (double)(s->experts ? s->experts : 1) * (s->kind == HEAD_GRAD ? 3 : 1);
        MachineRates r = machine_rates(m, threads);
        double rate = flops / what[0].seconds;
        json_t *row = json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:o}", "product", name, "dtype", dtype, "threads", threads, "time_us",
                                what[0].seconds * 1e6, "predicted_us", bench_predicted(&b, &steps, threads) * 1e6, "gflop_s", rate / 1e9, "share_of_fma", rate / r.fma, "share_of_bf16_dot",
                                is_f32 || !r.bf16_dot ? json_null() : json_real(rate / r.bf16_dot));
        if (peer->sgemm) {
            json_object_set_new(row, "peer_gflop_s", with_peer ? json_real(flops / what[1].seconds / 1e9) : json_null());
            json_object_set_new(row, "times_peer", with_peer ? json_real(what[1].seconds / what[0].seconds) : json_null());
        }
        json_array_append_new(rows, row);
    }
    bench_graph_close(&b);
    return ok;
}

// cpu.md's list: squares, experts' matrices, their gradients, routers.
static int list_shapes(Shape *out) {
    static const int64_t matrix[][2] = {{512, 1792}, {1024, 3584}, {2048, 1024}}, rows[] = {1, 4, 16, 64, 256, 1024};
    int n = 0;
    for (int64_t side = 1024; side <= 2048; side *= 2) out[n++] = (Shape){FORWARD, 0, side, side, side};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 6; k++) out[n++] = (Shape){FORWARD, 0, rows[k], matrix[i][0], matrix[i][1]};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 6; k++) out[n++] = (Shape){PANELS, 0, rows[k], matrix[i][0], matrix[i][1]};
    for (int i = 0; i < 3; i++)
        for (int k = 3; k < 6; k++) out[n++] = (Shape){GRAD_X, 0, rows[k], matrix[i][0], matrix[i][1]};
    for (int i = 0; i < 3; i++)
        for (int k = 3; k < 6; k++) out[n++] = (Shape){GRAD_W, 0, rows[k], matrix[i][0], matrix[i][1]};
    for (int i = 0; i < 2; i++)
        for (int k = 1; k < 5; k++) out[n++] = (Shape){EXPERTS, 8, rows[k], matrix[i][0], matrix[i][1]};
    for (int i = 0; i < 2; i++)
        for (int k = 3; k < 5; k++) out[n++] = (Shape){EXPERTS_GRAD_W, 8, rows[k], matrix[i][0], matrix[i][1]};
    out[n++] = (Shape){FORWARD, 0, 256, 1024, 8};
    out[n++] = (Shape){FORWARD, 0, 256, 2048, 64};
    out[n++] = (Shape){FORWARD, 0, 1, 2048, 64};
    for (Kind kind = HEAD; kind <= HEAD_GRAD; kind++) {
        out[n++] = (Shape){kind, 0, 4096, 128, 256};
        out[n++] = (Shape){kind, 0, 2048, 384, 8192};
    }
    return n;
}

int bench_gemm(Cli *c) {
    static const char *const dtype[] = {"f32", "bf16"};
    bool ok = true;
    int given = (int)bench_number(c, "threads", 1, 0, &ok);
    double budget = (double)bench_number(c, "milliseconds", 1, 200, &ok) / 1e3;
    const char *only = cli_value(c, "only");
    Machine m;                                             // now; code is made by what is known of the machine, as a model's
    Peer peer;
    const Machine *known = ok ? machine_open(c, false) : NULL;
    if (!known || !machine_measure(&m, c->diag) || !peer_open(c, &m, &peer)) return cli_finish(c, EXIT_WRONG);
    Shape shape[80];
    int n = list_shapes(shape);
    json_t *rows = json_array();
    for (int pass = 0; ok && pass < (given || m.threads == 1 ? 1 : 2); pass++)
        for (int d = 0; ok && d < 2; d++)
            for (int i = 0; ok && i < n; i++) {
                const char *name = arena_printf(c->arena, "%s %s", dtype[d], shape_name(c->arena, &shape[i]));
                if (only && !strstr(name, only)) continue;
                ok = bench_one(c, known, &m, &peer, &shape[i], dtype[d], given ? given : pass ? m.threads : 1, budget, rows);
            }
    json_t *facts = json_pack("{s:s, s:f}", "cpu", m.name, "fma_gflop_s", m.rates[0].fma / 1e9);
    if (m.rates[0].bf16_dot) json_object_set_new(facts, "bf16_dot_gflop_s", json_real(m.rates[0].bf16_dot / 1e9));
    if (peer.name) json_object_set_new(facts, "peer", json_string(peer.name));
    return bench_finish(c, ok, "product's name, such as 'f32 x w 16x512x1792'", facts, rows);
}
