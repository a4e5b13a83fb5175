#include "frontend/cmd_dry_run.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "ir/base/str.h"
#include "runtime/checkpoint.h"
#include "runtime/data.h"
#include "runtime/files.h"
#include "runtime/memory.h"
#include "runtime/progress.h"

// ---- what a host has ----------------------------------------------------------------------------------------

// One line for each thing looked at; a problem begins with "error: ".
typedef struct {
    Session *s;
    const RtPlan *plan;
    const RtSettings *settings;
    const char *out;
    Str text;
} Host;

static void check_data(Host *h) {
    RtError e = {0};
    RtTokenizer *tokenizer = NULL;
    RtData *data = NULL;
    char n[32], samples[32];
    int64_t batch = h->settings->batch;
    RtStatus s = rt_open_tokenizer(h->settings, &tokenizer, &e);
    if (s == RT_OK) s = rt_data_open(h->settings, h->settings->sequence, tokenizer, NULL, &data, &e);
    if (s != RT_OK)
        str_printf(&h->text, "error: %s\n", e.text);
    else if (rt_data_samples(data) < batch)
        str_printf(&h->text, "error: data: %lld samples are less than a step's %lld\n",
                   (long long)rt_data_samples(data), (long long)batch);
    else
        str_printf(&h->text, "data: %s tokens, %s samples\n", rt_thousands(rt_data_tokens(data), n),
                   rt_thousands(rt_data_samples(data), samples));
    rt_data_close(data);
    rt_tokenizer_close(tokenizer);
}

// The folder itself, or the nearest one above that is there.
static const char *nearest_folder(Host *h) {
    const char *at = h->out;
    while (!rt_is_dir(at) && strcmp(at, ".") != 0 && strcmp(at, "/") != 0) {
        struct stat st;
        if (stat(at, &st) == 0) break;                       // a file stands in the way
        at = dirname(arena_strdup(h->s->arena, at));
    }
    return at;
}

// "12.3 MB"
static const char *size(Arena *a, double bytes) {
    return bytes < 1e9 ? arena_printf(a, "%.1f MB", bytes / 1e6) : arena_printf(a, "%.1f GB", bytes / 1e9);
}

static void check_output(Host *h) {
    const char *folder = nearest_folder(h);
    char *probe = arena_printf(h->s->arena, "%s/.moec-dry-run-%ld", folder, (long)getpid());
    int fd = rt_is_dir(folder) ? open(probe, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : (errno = ENOTDIR, -1);
    if (fd < 0) {
        str_printf(&h->text, "error: --out %s: cannot write in %s: %s\n", h->out, folder, strerror(errno));
        return;
    }
    close(fd);
    unlink(probe);
    struct statvfs v;
    double one = (double)rt_ckpt_bytes(h->plan), wanted = one * (double)(h->settings->keep ? h->settings->keep + 1 : 2);
    if (statvfs(folder, &v) != 0) {
        str_printf(&h->text, "error: --out %s: %s\n", h->out, strerror(errno));
        return;
    }
    double there = (double)v.f_bavail * (double)v.f_frsize;
    Arena *a = h->s->arena;
    str_printf(&h->text, "%s%s has %s free; %lld checkpoints of %s take %s\n",
               there < wanted ? "error: " : "output: ", folder, size(a, there), (long long)(wanted / one + 0.5),
               size(a, one), size(a, wanted));
}

// What the kernel would give to new programs; 0: unknown.
static double memory_available(Arena *a) {
    const char *text = read_file(a, "/proc/meminfo", NULL), *line = text ? strstr(text, "MemAvailable:") : NULL;
    return line ? 1024 * strtod(line + strlen("MemAvailable:"), NULL) : 0;
}

static void check_memory(Host *h, int ranks, int threads) {
    RtMemory m = rt_plan_memory(h->plan, threads);
    double wanted = (double)ranks * (double)rt_memory_total(&m), there = memory_available(h->s->arena);
    if (there <= 0) return;
    // activations of experts are bounded by the worst case, which hardly ever is touched: no error
    str_printf(&h->text, "memory: %s available; %d rank%s at most %s\n", size(h->s->arena, there), ranks,
               ranks == 1 ? " takes" : "s take", size(h->s->arena, wanted));
}

static void check_resume(Host *h) {
    char *dir = NULL;
    RtCkptSkipped skipped = {0};
    RtError e = {0};
    RtStatus s = rt_ckpt_find(h->out, &dir, &skipped, &e);
    if (s == RT_OK) str_printf(&h->text, "resume: from %s\n", dir);
    else if (s == RT_IO) str_printf(&h->text, "resume: from the beginning: %s\n", e.text);
    else str_printf(&h->text, "error: %s\n", e.text);
    if (skipped.n && s == RT_OK) str_printf(&h->text, "resume: passing over %d: %s\n", skipped.n, skipped.why);
    free(dir);
}

// ---- what is printed ----------------------------------------------------------------------------------------

static const char *plural(int64_t n) { return n == 1 ? "" : "s"; }

static void print_run(Session *s, const Ranks *r, const RtPlan *plan, const RtSettings *settings, int threads) {
    char a[32], b[32];
    int64_t active, total = session_parameters(s, &active);
    RtMesh mesh = plan->mesh;
    RtMemory m = rt_plan_memory(plan, threads);
    long long lanes = (long long)s->settings->train.lanes, waves = (long long)s->settings->train.waves;
    printf("model       %s: %s parameters, %s active\n", program_model_name(s->program), rt_thousands(total, a),
           rt_thousands(active, b));
    printf("step        %lld sequences of %lld tokens = %lld wave%s x %lld lane%s\n", (long long)settings->batch,
           (long long)settings->sequence, waves, plural(waves), lanes, plural(lanes));
    int n_threads = threads ? threads : omp_get_num_procs();
    printf("layout      %d rank%s%s = dp %d x ep %d x tp %d, zero %d; %d thread%s each\n", r->n, plural(r->n),
           r->local ? " (threads of one process)" : "", mesh.dp, mesh.ep, mesh.tp, mesh.zero, n_threads,
           plural(n_threads));
    printf("memory      %s a rank at most:", size(s->arena, (double)rt_memory_total(&m)));
    for (int k = 0; k < RT_MEMORY_KINDS; k++)
        if (m.bytes[k])
            printf(" %s %s%s", rt_memory_name((RtMemoryKind)k), size(s->arena, (double)m.bytes[k]),
                   k + 1 < RT_MEMORY_KINDS ? "," : "");
    printf("\nkernels     %u, %u steps in the plan\n", plan->kernels.n, plan->steps.n);
}

// text: "NAME\nline\nline\n".  false: a line is an error.
static bool print_host(const char *text, const char *ranks) {
    const char *end = strchr(text, '\n');
    bool all_well = true;
    printf("host        %.*s, %s\n", (int)(end - text), text, ranks);
    for (const char *line = end + 1; *line; line = end + 1) {
        end = strchr(line, '\n');
        bool is_error = !strncmp(line, "error: ", 7);
        all_well &= !is_error;
        printf("  %s%.*s\n", is_error ? "" : "ok: ", (int)(end - line), line);
    }
    return all_well;
}

static int ranks_of_node(const Ranks *r, int node, int *first) {
    int n = 0;
    *first = -1;
    for (int i = 0; i < r->n; i++) {
        if (r->comm && rt_comm_node(r->comm, i) != node) continue;
        if (*first < 0) *first = i;
        n++;
    }
    return n;
}

bool dry_run(Session *s, Ranks *r, const RtSettings *settings, int threads, const char *out, bool resume, RtError *e) {
    Host h = {
        .s = s, .plan = compiled_plan(s->compiled), .settings = settings, .out = out, .text = {.arena = s->arena}};
    int rank = rt_rank(r->among), here = r->comm ? rt_comm_node(r->comm, rank) : 0, first;
    int ranks_here = ranks_of_node(r, here, &first);
    str_add(&h.text, "");
    if (rank == first) {
        char name[256] = "";
        gethostname(name, sizeof name - 1);
        str_printf(&h.text, "%s\n", name);
        check_data(&h);
        check_output(&h);
        check_memory(&h, ranks_here, threads);
        if (resume) check_resume(&h);
    }
    char *all = NULL;
    if (rt_gather_texts(r->among, h.text.text, &all, e) != RT_OK) return false;
    if (rank == 0) print_run(s, r, h.plan, settings, threads);
    bool all_well = true;
    const char *at = all;
    for (int i = 0, n = rt_n_ranks(r->among); i < n; i++, at += strlen(at) + 1) {
        if (!*at) continue;
        int first_there, ranks_there = ranks_of_node(r, r->comm ? rt_comm_node(r->comm, i) : 0, &first_there);
        const char *line =
            arena_printf(s->arena, "%d rank%s, the first is %d", ranks_there, plural(ranks_there), first_there);
        if (rank == 0) all_well &= print_host(at, line);
        else for (const char *w = strstr(at, "\nerror: "); w; w = NULL) all_well = false;
    }
    if (rank == 0) puts(all_well ? "nothing is missing" : "not all is there: see the errors");
    free(all);
    return all_well;
}
