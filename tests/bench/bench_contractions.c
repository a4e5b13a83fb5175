// Speed of compiled contractions: GFLOP/s and the share of the FMA rate measured in the same run.
//     bench_contractions [threads] [name]
// The tasks of a kernel are dealt to the threads by one counter, as the runtime does.
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include "codegen/cpu/product.h"
#include "codegen/probe.h"
#include "tests/codegen/one_kernel.h"

enum { MAX_THREADS = 64 };

// One thread is timed by its own clock, which other programs on the machine don't disturb.
static clockid_t the_clock = CLOCK_THREAD_CPUTIME_ID;
static double now(void) {
    struct timespec t;
    clock_gettime(the_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    const OneKernel *o;
    void *const *arg;
    int64_t sym[4], tasks[RT_MAX_PHASES];
    int threads;
    atomic_int next[2];
    pthread_barrier_t barrier;
} Work;
typedef struct {
    Work *w;
    int thread;
    void *scratch;
} Worker;

static void *work(void *self) {
    Worker *me = self;
    Work *w = me->w;
    for (int p = 0; p < w->o->d.n_phases * w->o->d.n_rounds; p++) {
        int turn = p % 2, tasks = (int)w->tasks[p % w->o->d.n_phases];
        if (me->thread == 0) atomic_store(&w->next[turn ^ 1], 0);
        for (int i; (i = atomic_fetch_add(&w->next[turn], 1)) < tasks;) {
            RtCall c = {.arg = w->arg,
                        .sym = w->sym,
                        .task = i,
                        .n_tasks = tasks,
                        .phase = p,
                        .thread = me->thread,
                        .scratch = me->scratch};
            w->o->fn(&c);
        }
        pthread_barrier_wait(&w->barrier);
    }
    return NULL;
}

// Many executions so that starting threads doesn't count; best of five.
static double seconds_of(Work *w, int times) {
    double best = 1e30;
    void *scratch[MAX_THREADS];
    for (int i = 0; i < w->threads; i++) scratch[i] = aligned_alloc(64, RT_SCRATCH_BYTES);
    for (int round = 0; round < 15; round++) {
        double start = now();
        for (int n = 0; n < times; n++) {
            pthread_t id[MAX_THREADS];
            Worker worker[MAX_THREADS];
            for (int p = 0; p < 2; p++) atomic_store(&w->next[p], 0);
            for (int i = 0; i < w->threads; i++) worker[i] = (Worker){w, i, scratch[i]};
            for (int i = 1; i < w->threads; i++) pthread_create(&id[i], NULL, work, &worker[i]);
            work(&worker[0]);
            for (int i = 1; i < w->threads; i++) pthread_join(id[i], NULL);
        }
        double each = (now() - start) / times;
        if (each < best) best = each;
    }
    for (int i = 0; i < w->threads; i++) free(scratch[i]);
    return best;
}

static void *zeros(int64_t n) {
    size_t huge = 2 << 20, bytes = (size_t)n * 4, align = bytes > 2 * huge ? huge : 64;
    float *x = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (align == huge) madvise(x, bytes, MADV_HUGEPAGE);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(i % 17) * 0.01f;
    return x;
}

static double measure(OneKernel *o, DescribeFn *describe, EmitFn *emit, const char *target, int threads,
                      const int64_t *sym, int32_t *offsets, double *compile) {
    double start = now();
    if (!one_compile(o, one_target(target), describe, emit)) return -1;
    *compile = now() - start;
    void *arg[ONE_MAX + 8];
    int n = kernel_n_args(&o->k);
    for (int i = 0; i < n; i++) {
        const Type *t = kernel_arg_type(&o->k, i);
        int64_t elements = 1;
        for (int j = 0; j < t->ndim; j++)
            elements *= t->dim[j].n * (t->dim[j].sym ? t->dim[j].sym->bound : 1);
        arg[i] = t->dtype == I32 && offsets ? (void *)offsets : zeros(elements);
    }
    for (int i = 0; i < o->k.n_ragged; i++) arg[n + i] = offsets;
    arg[n + o->k.n_ragged] = zeros((o->d.workspace + 64) / 4);
    Work w = {.o = o, .arg = arg, .threads = threads};
    if (sym) memcpy(w.sym, sym, sizeof w.sym);
    for (int p = 0; p < o->d.n_phases; p++) w.tasks[p] = one_tasks(o, p, arg, w.sym);
    pthread_barrier_init(&w.barrier, NULL, (unsigned)threads);
    double once = seconds_of(&w, 1);
    int times = (int)(0.05 / once) + 1;
    return seconds_of(&w, times);
}

// The rate to compare with: fma, or dot products, in registers, on as many threads.
static double peak_of(const char *target, int threads) {
    enum { TASKS = 256 };
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    Probe p = {.kind = one_target(target)->dot ? PROBE_BF16_DOT : PROBE_FMA};
    Probes *code = probes_compile(target, &p, 1, d);
    if (!code) diag_print(d, stderr, false), exit(1);
    float *memory = zeros(16 * 2);
    int64_t counts[] = {(int64_t)(1e7 / p.work) + 1, 0};
    OneKernel o = {.fn = p.fn, .d = {.n_phases = 1, .n_rounds = 1}};
    Work w = {.o = &o, .arg = (void *[]){counts, memory, memory + 16}, .tasks = {TASKS}, .threads = threads};
    pthread_barrier_init(&w.barrier, NULL, (unsigned)threads);
    double rate = TASKS * (double)counts[0] * p.work / seconds_of(&w, 1);
    probes_free(code);
    arena_destroy(a);
    return rate;
}

typedef struct {
    const char *name;
    int kind;
    int64_t M, K, N;
    int experts, tb;
    DType dtype;
} Shape;
enum { DENSE, DENSE_DW, GROUPED, GROUPED_SUMS, VARYING };

static const Shape shapes[] = {
    {"matmul 4096x128x256", DENSE, 4096, 128, 256, 0, 0, F32},
    {"matmul tb 4096x256x128", DENSE, 4096, 256, 128, 0, 1, F32},
    {"matmul bf16 4096x128x256", DENSE, 4096, 128, 256, 0, 0, BF16},
    {"matmul 2048x384x512", DENSE, 2048, 384, 512, 0, 0, F32},
    {"matmul 1024x1024x1024", DENSE, 1024, 1024, 1024, 0, 0, F32},
    {"matmul 2048x384x8192", DENSE, 2048, 384, 8192, 0, 1, F32},
    {"router 4096x128x8", DENSE, 4096, 128, 8, 0, 0, F32},
    {"dw 4096x128x256", DENSE_DW, 4096, 128, 256, 0, 0, F32},
    {"dw 2048x384x512", DENSE_DW, 2048, 384, 512, 0, 0, F32},
    {"grouped 8x1024x128x256", GROUPED, 8192, 128, 256, 8, 0, F32},
    {"grouped tb 8x1024x256x128", GROUPED, 8192, 256, 128, 8, 1, F32},
    {"grouped 64x64x128x256", GROUPED, 4096, 128, 256, 64, 0, F32},
    {"grouped 64x16x512x1024", GROUPED, 1024, 512, 1024, 64, 0, F32},
    {"grouped dw 8x1024x128x256", GROUPED_SUMS, 8192, 128, 256, 8, 0, F32},
    {"grouped dw 64x64x128x256", GROUPED_SUMS, 4096, 128, 256, 64, 0, F32},
    {"decode 1x1024x4096", VARYING, 1, 1024, 4096, 0, 0, F32},
    {"decode bf16 1x1024x4096", VARYING, 1, 1024, 4096, 0, 0, BF16},
    {"decode tb 1x1024x4096", VARYING, 1, 1024, 4096, 0, 1, F32},
    {"decode 1x4096x14336 (DRAM)", VARYING, 1, 4096, 14336, 0, 0, F32},
    {"decode tb 1x4096x14336 (DRAM)", VARYING, 1, 4096, 14336, 0, 1, F32},
    {"decode bf16 1x4096x14336 (DRAM)", VARYING, 1, 4096, 14336, 0, 0, BF16},
    {"decode 4x1024x4096", VARYING, 4, 1024, 4096, 0, 0, F32},
};

static void bench(const Shape *s, const char *target, int threads, double peak) {
    OneKernel o = {0};
    enum { LEAVES = 8 };
    DType dtype = one_target(target)->dot ? BF16 : s->dtype;
    Sym rows = {.name = "R", .kind = SYM_RAGGED, .bound = s->M, .groups = s->experts, .leaves = LEAVES};
    Sym varying = {.name = "S", .kind = SYM_PLAIN, .bound = 512};
    int32_t *offsets = NULL;
    o.node.attr = (Attrs){.tb = s->tb, .leaves = LEAVES};
    DescribeFn *describe = describe_matmul;
    EmitFn *emit = emit_matmul;
    Dim m = dim_n(s->M), k = dim_n(s->K), n = dim_n(s->N), e = dim_n(s->experts);
    if (s->kind == VARYING) m = (Dim){1, &varying};
    if (s->experts) {
        m = (Dim){1, &rows};
        offsets = calloc((size_t)s->experts * LEAVES + 1, sizeof *offsets);
        for (int i = 0; i <= s->experts * LEAVES; i++)
            offsets[i] = (int32_t)(s->M * i / (s->experts * LEAVES));
    }
    bool sums = s->kind == DENSE_DW || s->kind == GROUPED_SUMS;
    one_in(&o, ONE_TYPE(dtype, m, k));
    if (sums)
        one_in(&o, ONE_TYPE(dtype, m, n));
    else if (s->experts)
        one_in(&o, ONE_TYPE(dtype, e, s->tb ? n : k, s->tb ? k : n));
    else
        one_in(&o, ONE_TYPE(dtype, s->tb ? n : k, s->tb ? k : n));
    if (s->experts) one_in(&o, ONE_TYPE(I32, dim_n(s->experts * LEAVES + 1)));
    if (!sums)
        one_out(&o, ONE_TYPE(dtype, m, n));
    else if (s->experts)
        one_out(&o, ONE_TYPE(F32, e, k, n));
    else
        one_out(&o, ONE_TYPE(F32, k, n));
    if (s->kind == DENSE_DW) describe = describe_matmul_dw, emit = emit_matmul_dw;
    if (s->kind == GROUPED) describe = describe_grouped_matmul, emit = emit_grouped_matmul;
    if (s->kind == GROUPED_SUMS) describe = describe_grouped_dw, emit = emit_grouped_dw;
    double compile, seconds = measure(&o, describe, emit, target, threads, (const int64_t[4]){s->M}, offsets, &compile);
    double flops = 2.0 * (double)s->M * (double)s->K * (double)s->N;
    double bytes = (double)(s->K * s->N * dtype_bytes(dtype));
    printf("%-28s %7.1f GFLOP/s  %5.1f %%   %6.1f GB/s of the matrix   %8.1f us   compiled in %5.1f ms\n",
           s->name, flops / seconds * 1e-9, 100 * flops / seconds / peak, bytes / seconds * 1e-9,
           seconds * 1e6, compile * 1e3);
    fflush(stdout);
}

// ---- attention and head -------------------------------------------------------------------------

typedef struct {
    const char *name;
    int64_t B, S, C, H, Hk, A, V;
    bool grad, vary;     // vary: numbers of rows and keys are symbols, as where a model runs
    DType dtype;
} Heads;
static const Heads heads[] = {
    {"attention 16x256, 4/2 of 32", 16, 256, 256, 4, 2, 32, 32, false, false, F32},
    {"attention 8x256, 6/2 of 64", 8, 256, 256, 6, 2, 64, 64, false, false, F32},
    {"attention 4x512, 8 of 64", 4, 512, 512, 8, 8, 64, 64, false, false, F32},
    {"attention 4x512, 8/2 of 128", 4, 512, 512, 8, 2, 128, 128, false, false, F32},
    {"attention 4x512, 8/2 of 64 bf16", 4, 512, 512, 8, 2, 64, 64, false, false, BF16},
    {"attention 1x512, 8 of 192/128", 1, 512, 512, 8, 8, 192, 128, false, false, F32},
    {"attention 1x2048, 8 of 64", 1, 2048, 2048, 8, 8, 64, 64, false, false, F32},
    {"attention 1x2048, 8/2 of 128", 1, 2048, 2048, 8, 2, 128, 128, false, false, F32},
    {"attention 1x8192, 2/1 of 128", 1, 8192, 8192, 2, 1, 128, 128, false, false, F32},
    {"attention grad 16x256, 4/2 of 32", 16, 256, 256, 4, 2, 32, 32, true, false, F32},
    {"attention grad 8x256, 6/2 of 64", 8, 256, 256, 6, 2, 64, 64, true, false, F32},
    {"attention grad 4x512, 8 of 64", 4, 512, 512, 8, 8, 64, 64, true, false, F32},
    {"attention grad 4x512, 8/2 of 128", 4, 512, 512, 8, 2, 128, 128, true, false, F32},
    {"attention grad 4x512, 8/2 of 64 bf16", 4, 512, 512, 8, 2, 64, 64, true, false, BF16},
    {"attention grad 1x512, 8 of 192/128", 1, 512, 512, 8, 8, 192, 128, true, false, F32},
    {"attention grad 1x2048, 8 of 64", 1, 2048, 2048, 8, 8, 64, 64, true, false, F32},
    {"attention grad 1x2048, 2/1 of 128", 1, 2048, 2048, 2, 1, 128, 128, true, false, F32},
    {"attention prefill 512, 16/4 of 64", 1, 512, 512, 16, 4, 64, 64, false, true, BF16},
    {"attention decode 576, 16/4 of 64", 1, 1, 576, 16, 4, 64, 64, false, true, BF16},
    {"attention decode 4096, 16/4 of 128", 1, 1, 4096, 16, 4, 128, 128, false, true, BF16},
    {"attention decode 4096, 8 of 128", 1, 1, 4096, 8, 8, 128, 128, false, true, F32},
    {"attention decode 32768, 8/2 of 128", 1, 1, 32768, 8, 2, 128, 128, false, true, F32},
};

static void report(const OneKernel *o, const char *name, double seconds, double peak, double compile) {
    printf("%-32s %7.1f GFLOP/s  %5.1f %%   %10.1f us   compiled in %5.1f ms\n", name,
           o->d.flops / seconds * 1e-9, 100 * o->d.flops / seconds / peak, seconds * 1e6, compile * 1e3);
    fflush(stdout);
}

// Counts the pairs of query and key that see each other, so what a kernel does beyond them on the diagonal is loss.
static void bench_attention(const Heads *h, const char *target, int threads, double peak) {
    OneKernel o = {0};
    Sym S = {.name = "S", .kind = SYM_PLAIN, .bound = h->S > 512 ? h->S : 512, .id = 0},
        C = {.name = "C", .kind = SYM_PLAIN, .bound = h->C, .id = 1};
    o.node.attr = (Attrs){.causal = 1, .scale = 0.125};
    Dim b = dim_n(h->B), s = h->vary ? (Dim){1, &S} : dim_n(h->S), c = h->vary ? (Dim){1, &C} : dim_n(h->C),
        n = dim_n(h->H), nk = dim_n(h->Hk), A = dim_n(h->A), V = dim_n(h->V);
    Type q = ONE_TYPE(h->dtype, b, s, n, A), k = ONE_TYPE(h->dtype, b, c, nk, A),
         v = ONE_TYPE(h->dtype, b, c, nk, V), y = ONE_TYPE(h->dtype, b, s, n, V), lse = ONE_TYPE(F32, b, s, n);
    one_in(&o, q), one_in(&o, k), one_in(&o, v);
    if (h->grad)
        one_in(&o, y), one_in(&o, lse), one_in(&o, y), one_out(&o, q), one_out(&o, k), one_out(&o, v);
    else
        one_out(&o, y), one_out(&o, lse);
    double compile,
        seconds = measure(&o, h->grad ? describe_attention_grad : describe_attention,
                          h->grad ? emit_attention_grad : emit_attention, target, threads,
                          (const int64_t[]){h->S, h->C, 0, 0}, NULL, &compile);
    double pairs = (double)h->S * ((double)(h->C - h->S) + 0.5 * (double)(h->S + 1));
    double per_pair = (double)(h->grad ? 3 * h->A + 2 * h->V : h->A + h->V);
    o.d.flops = 2.0 * (double)(h->B * h->H) * pairs * per_pair;
    report(&o, h->name, seconds, peak, compile);
    if (h->S == 1)
        printf("%-36s %7.1f GB/s of keys and values\n", "",
               (double)(h->B * h->C * h->Hk * (h->A + h->V) * dtype_bytes(h->dtype)) / seconds * 1e-9);
}

static void bench_head(const char *name, int64_t rows, int64_t D, int64_t V, Op op, const char *target,
                       int threads, double peak) {
    OneKernel o = {.node.op = op};
    Sym leaf = {.name = "L", .kind = SYM_LEAF, .bound = 8};
    o.node.attr = (Attrs){.leaves = 8};
    Dim l = {1, &leaf}, r = dim_n(rows / 8);
    Type x = ONE_TYPE(F32, l, r, dim_n(D)), w = ONE_TYPE(F32, dim_n(V), dim_n(D)),
         one = ONE_TYPE(F32, l, r, dim_n(1));
    one_in(&o, x), one_in(&o, w), one_in(&o, ONE_TYPE(I32, l, r));
    if (op != OP_HEAD_LOSS) one_in(&o, one);
    one_out(&o, one), one_out(&o, op == OP_HEAD_LOSS ? one : x);
    if (op != OP_HEAD_LOSS) one_out(&o, w);
    int32_t *labels = calloc((size_t)rows, sizeof *labels);
    for (int64_t i = 0; i < rows; i++) labels[i] = (int32_t)(i % V);
    double compile, seconds = measure(&o, describe_head_loss, emit_head_loss, target, threads, NULL, labels,
                                      &compile);
    o.d.flops = 2.0 * (double)rows * (double)D * (double)V * (op == OP_HEAD_LOSS ? 1 : 3);
    report(&o, name, seconds, peak, compile);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) threads = 1;
    if (threads > 1) the_clock = CLOCK_MONOTONIC;
    __builtin_cpu_init();
    const char *target = __builtin_cpu_supports("avx512f") ? "avx512"
                         : __builtin_cpu_supports("avx2")  ? "avx2"
                                                           : "sse2";
    if (getenv("BENCH_TARGET")) target = getenv("BENCH_TARGET");
    double peak = peak_of(target, threads);
    printf("%s, %d threads: %s %.1f GFLOP/s\n", target, threads,
           one_target(target)->dot ? "all in bf16, dot products" : "fma", peak * 1e-9);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (argc < 3 || strstr(shapes[i].name, argv[2])) bench(&shapes[i], target, threads, peak);
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        if (argc < 3 || strstr(heads[i].name, argv[2])) bench_attention(&heads[i], target, threads, peak);
    if (argc < 3 || strstr("head", argv[2]))
        for (int grad = 0; grad < 2; grad++) {
            Op op = grad ? OP_HEAD_LOSS_AND_GRAD : OP_HEAD_LOSS;
            bench_head(grad ? "head and grad 4096x128x256" : "head 4096x128x256", 4096, 128, 256, op, target,
                       threads, peak);
            bench_head(grad ? "head and grad 2048x384x8192" : "head 2048x384x8192", 2048, 384, 8192, op,
                       target, threads, peak);
        }
    return 0;
}
