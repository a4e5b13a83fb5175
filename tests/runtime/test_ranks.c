// A run on several ranks, as threads: whoever computes which leaf and holds which expert, numbers and checkpoints are
// the same, any layout goes on with what another began, and what happens to one rank happens to all.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "runtime/checkpoint.h"
#include "runtime/exec.h"
#include "runtime/files.h"
#include "runtime/gather.h"
#include "runtime/train.h"
#include "tests/runtime/fake_plan.h"

// The model: w[token] + u[token % E][token] should become label / 256; loss of a leaf = mean of squares.  u are experts.
// Each rank sums the leaves it has, then all sum over ranks: the same tree in any layout.
enum { LANES = 4, B = 2, S = 8, V = 256, E = 4, MOST = 4 };
static char dir[] = "/tmp/moec-ranks-XXXXXX";
static int raise_at;                // SIGTERM comes to the third rank's pass of this step

static void exchange(const RtCall *c, RtCommKind kind, RtGroup group, float *x, int64_t n) {
    int64_t cut[MOST + 1];
    int m = rt_group_size(c->ranks->mesh, group);
    if (m == 1) return;
    for (int i = 0; i <= m; i++) cut[i] = n / m * i;
    RtCommOp op = {.kind = kind, .group = c->ranks->group[group], .dtype = F32, .n = n, .buf = x};
    if (kind == RT_COMM_GATHER) op.cut = cut;
    op.scratch = malloc((size_t)rt_comm_scratch_bytes(kind, F32, n, m) + 1);
    RtStatus s = rt_comm_run(c->ranks->comm, &op, &c->ranks->error);
    if (s != RT_OK) c->ranks->status = s;
    free(op.scratch);
}

// This rank's experts among all of them.
static int first_expert(const RtCall *c) {
    return c->ranks ? E / c->ranks->mesh.ep * rt_group_rank(c->ranks->mesh, RT_GROUP_EXP, c->ranks->rank) : 0;
}
static int n_experts(const RtCall *c) { return c->ranks ? E / c->ranks->mesh.ep : E; }

static void all_experts(const RtCall *c, const float *own, float u[E][V]) {
    memcpy(u[first_expert(c)], own, (size_t)n_experts(c) * V * sizeof(float));
    if (c->ranks) exchange(c, RT_COMM_GATHER, RT_GROUP_EXP, u[0], E * V);
}

// Sums of leaves by neighbours first, into leaf 0.
static void add_tree(float *x, int64_t leaves, int64_t n) {
    for (int64_t d = 1; d < leaves; d *= 2)
        for (int64_t l = 0; l + d < leaves; l += 2 * d)
            for (int64_t i = 0; i < n; i++) x[l * n + i] += x[(l + d) * n + i];
}

static float leaf_loss(const int32_t *tokens, const int32_t *labels, const float *w, float u[E][V], float *grad, int32_t *load) {
    float sum = 0;
    int n = 0;
    for (int i = 0; i < B * S; i++) {
        int t = tokens[i];
        if (labels[i] == -100) continue;
        float d = w[t] + u[t % E][t] - (float)labels[i] / 256;
        sum += d * d;
        if (grad) grad[t] += 2 * d, grad[V + t % E * V + t] += 2 * d;
        if (load) load[t % E]++;
        n++;
    }
    return n ? sum / (float)n : NAN;
}

// args: tokens, labels, wave, w, u, grad (of w, then of all u), ce, load, step, data_rank
static void pass(const RtCall *c) {
    enum { N = V + E * V };
    const int32_t *tokens = c->arg[0], *labels = c->arg[1];
    float *grad = c->arg[5], *ce = c->arg[6], *sum = calloc(LANES * N, sizeof *sum), u[E][V];
    int32_t *load = c->arg[7];
    int64_t n = c->sym[0];
    int step = (int)*(float *)c->arg[8];
    assert(*(int32_t *)c->arg[9] == rt_data_rank(c->ranks));
    memset(load, 0, (size_t)n * E * sizeof *load);
    all_experts(c, c->arg[4], u);
    for (int64_t l = 0; l < n; l++)
        ce[l] = leaf_loss(tokens + l * B * S, labels + l * B * S, c->arg[3], u, sum + l * N, load + l * E);
    add_tree(sum, n, N);
    if (c->ranks) exchange(c, RT_COMM_TREE_REDUCE, RT_GROUP_DATA, sum, N);
    for (int i = 0; i < N; i++) grad[i] = *(int32_t *)c->arg[2] ? grad[i] + sum[i] : sum[i];
    free(sum);
    if (raise_at == step && (!c->ranks || c->ranks->rank == 2)) raise(SIGTERM);
}

// Of its own, so that compilers contract it in one way whatever the loop around it.
static __attribute__((noinline)) float moment(float m, float g) { return 0.9f * m + 0.1f * g; }

// args: w, u, grad, adam.m/u, lr, grad_scale, grad_norm, adam.m/w (with zero: a part of it)
static void update(const RtCall *c) {
    float *w = c->arg[0], *u = c->arg[1], *grad = c->arg[2], *m = c->arg[3], norm = 0;
    float lr = *(float *)c->arg[4], scale = *(float *)c->arg[5];
    for (int i = 0; i < V + E * V; i++) norm += grad[i] * grad[i];
    *(float *)c->arg[6] = sqrtf(norm) * scale;
    for (int i = 0; i < V; i++) w[i] -= lr * grad[i] * scale;
    const float *own = grad + V + first_expert(c) * V;
    for (int i = 0; i < n_experts(c) * V; i++) {
        m[i] = moment(m[i], own[i] * scale);
        u[i] -= lr * m[i];
    }
    int parts = c->ranks && c->ranks->mesh.zero ? rt_data_ranks(c->ranks) : 1;
    const float *part = grad + (parts > 1 ? V / parts * rt_data_rank(c->ranks) : 0);
    for (int i = 0; i < V / parts; i++) ((float *)c->arg[7])[i] = moment(((float *)c->arg[7])[i], part[i] * scale);
}

// args: tokens, labels, w, u, ce
static void eval(const RtCall *c) {
    const int32_t *tokens = c->arg[0], *labels = c->arg[1];
    float u[E][V];
    all_experts(c, c->arg[3], u);
    for (int64_t l = 0; l < c->sym[0]; l++)
        ((float *)c->arg[4])[l] = leaf_loss(tokens + l * B * S, labels + l * B * S, c->arg[2], u, NULL, NULL);
}

static RtPlan *make_plan(PlanBuilder *b, RtMesh mesh) {
    *b = (PlanBuilder){.mesh = mesh};
    int64_t n = LANES / (mesh.dp * mesh.ep), experts = E / mesh.ep;
    pb_sym(b, "L", n, n);
    RtTensor *tokens = pb_tensor(b, "tokens", RT_INPUT, I32, n, B, S), *labels = pb_tensor(b, "labels", RT_INPUT, I32, n, B, S);
    RtTensor *wave = pb_tensor(b, "wave", RT_INPUT, I32, 0, 0, 0), *number = pb_tensor(b, "data_rank", RT_INPUT, I32, 0, 0, 0);
    RtTensor *w = pb_tensor(b, "w", RT_PARAM, F32, V, 0, 0), *u = pb_tensor(b, "ffn.experts.u", RT_PARAM, F32, experts, V, 0);
    RtTensor *m = pb_tensor(b, "adam.m/ffn.experts.u", RT_STATE, F32, experts, V, 0);
    RtTensor *start = pb_tensor(b, "start/ffn.experts.u", RT_STATE, F32, experts, V, 0);
    RtTensor *grad = pb_tensor(b, "grad/all", RT_GRAD, F32, V + E * V, 0, 0), *ce = pb_tensor(b, "ce", RT_OUTPUT, F32, n, 0, 0);
    RtTensor *load = pb_tensor(b, "load.ffn", RT_OUTPUT, I32, n, E, 0), *step = pb_tensor(b, "step", RT_INPUT, F32, 0, 0, 0);
    RtTensor *lr = pb_tensor(b, "lr", RT_INPUT, F32, 0, 0, 0), *scale = pb_tensor(b, "grad_scale", RT_INPUT, F32, 0, 0, 0);
    int parts = mesh.zero ? mesh.dp * mesh.ep : 1;
    RtTensor *moments = pb_tensor(b, "adam.m/w", RT_STATE, F32, V / parts, 0, 0);
    if (parts > 1) moments->shard = 1 + RT_GROUP_DATA;
    RtTensor *norm = pb_tensor(b, "grad_norm", RT_OUTPUT, F32, 0, 0, 0);
    w->init = u->init = RT_INIT_NORMAL;
    w->init_a = u->init_a = 1;
    start->init = RT_INIT_COPY;
    start->init_from = u->name;
    u->experts = m->experts = start->experts = 1;
    if (mesh.ep > 1) u->shard = m->shard = start->shard = 1 + RT_GROUP_EXP;
    ce->kind = RT_OUT_LOSS;
    ce->weight = 1;
    load->kind = norm->kind = RT_OUT_METRIC;
    RtTensor *args[3][10] = {{tokens, labels, wave, w, u, grad, ce, load, step, number}, {w, u, grad, m, lr, scale, norm, moments},
                             {tokens, labels, w, u, ce}};
    static const char *const name[] = {"pass", "update", "eval"};
    RtKernelFn *const run[] = {pass, update, eval};
    for (int i = 0; i < 3; i++) {
        int k = pb_kernel(b, name[i], run[i], 1);
        pb_begin(b, name[i]);
        pb_step(b, k, 1);
        for (int a = 0; a < 10 && args[i][a]; a++) pb_arg(b, args[i][a]);
    }
    return pb_finish(b);
}

// ---- running ------------------------------------------------------------------------------------------------

typedef struct {
    RtMesh mesh;
    int    rank;
    const char *run, *more;
    int    odd_batch, odd_seed;     // of the third rank, where it differs
    bool   resume;
    RtLocalWorld *world;            // NULL: alone
    RtStatus status;
    RtError  error;
    RtTrainResult result;
    float  u[E][V];                 // this rank's experts at first
} Rank;

static int make_dir(void **state) {
    if (!mkdtemp(dir)) return 1;
    char *path = rt_path("%s/text", dir);
    FILE *f = fopen(path, "w");
    for (unsigned i = 0, x = 1; i < 5000; i++) fputc((int)((x = x * 1664525 + 1013904223) >> 26), f);
    free(path);
    return fclose(f);
}

static int remove_dir(void **state) {
    char *command = rt_path("rm -rf '%s'", dir);
    int status = system(command);
    free(command);
    return status;
}

static RtStatus train_plan(Rank *r, RtComm *comm, const RtPlan *plan, RtKernelFn *const *fn) {
    RtPlanInstance *p;
    RtRanks *ranks = NULL;
    RtSettings *s;
    char json[1024], *cache = rt_path("%s/cache", dir);
    snprintf(json, sizeof json,
             "{\"train\": {\"lr\": 0.05, \"sequence\": 8, \"batch\": %d, \"seed\": %d, \"length\": 12, \"eval_every\": 1, "
             "\"save_every\": 4 %s}, \"data\": {\"source\": {\"kind\": \"text\", \"args\": [\"text\"]}, \"held_out\": 0.1}}",
             r->rank == 2 && r->odd_batch ? r->odd_batch : 16, r->rank == 2 && r->odd_seed ? r->odd_seed : 7, r->more);
    if (rt_plan_open(plan, fn, 1, &p, &r->error) != RT_OK) abort();
    if (rt_settings_open(json, dir, &s, &r->error) != RT_OK) abort();
    RtTrainOpts o = {.settings = s, .run_dir = r->run, .resume = r->resume, .model_text = "model", .cache_dir = cache};
    RtStatus status = comm ? rt_ranks_open(p, comm, &ranks, &r->error) : RT_OK;
    if (status == RT_OK) status = rt_train(&o, p, &r->result, &r->error);
    const RtTensor *u = rt_tensor(p, "start/ffn.experts.u");
    memcpy(r->u, rt_tensor_data(p, u), (size_t)u->bytes);
    rt_plan_close(p);
    rt_ranks_close(ranks);
    rt_settings_close(s);
    free(cache);
    return status;
}

static void *train_rank(void *arg) {
    Rank *r = arg;
    PlanBuilder *b = malloc(sizeof *b);
    RtPlan *plan = make_plan(b, r->mesh);
    RtComm *comm = NULL;
    if (r->world) r->status = rt_comm_open(&(RtCommConfig){.world = r->world, .rank = r->rank}, &comm, &r->error);
    if (r->status == RT_OK) r->status = train_plan(r, comm, plan, b->fn);
    rt_comm_close(comm);
    free(plan);
    free(b);
    return NULL;
}

typedef struct { int dp, ep, zero; } Mesh;          // dp 0: one rank, without a communicator
static const Mesh one_rank = {0, 1, 0};

// The caller frees what comes back, one for each rank.
static Rank *train(const char *name, Mesh l, Rank like) {
    int n = l.dp ? l.dp * l.ep : 1;
    Rank *r = calloc((size_t)n, sizeof *r);
    pthread_t thread[MOST];
    RtError e;
    char *run = rt_path("%s/%s", dir, name);
    RtLocalWorld *world = NULL;
    if (l.dp && rt_local_open(n, 0, &world, &e) != RT_OK) fail_msg("%s", e.text);
    for (int i = 0; i < n; i++) {
        r[i] = like;
        r[i].mesh = (RtMesh){l.dp ? l.dp : 1, l.ep, 1, l.zero};
        r[i].rank = i;
        r[i].run = run;
        r[i].world = world;
        if (!r[i].more) r[i].more = "";
        assert_int_equal(pthread_create(&thread[i], NULL, train_rank, &r[i]), 0);
    }
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    rt_local_close(world);
    free(run);
    return r;
}

static void must_train(const char *name, Mesh l, const char *more, bool resume) {
    Rank *r = train(name, l, (Rank){.more = more, .resume = resume});
    for (int i = 0; i < (l.dp ? l.dp * l.ep : 1); i++)
        if (r[i].status != RT_OK) fail_msg("%s, dp %d, ep %d, rank %d: %s", name, l.dp, l.ep, i, r[i].error.text);
    free(r);
}

// ---- comparing ----------------------------------------------------------------------------------------------

// metrics.jsonl without what depends on time.  The caller frees it.
static char *numbers(const char *name) {
    char *path = rt_path("%s/%s/metrics.jsonl", dir, name), *text;
    RtError e;
    if (rt_read_file(path, &text, NULL, &e) != RT_OK) fail_msg("%s", e.text);
    json_t *rows = json_array();
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        *next++ = 0;
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        json_object_del(row, "tokens_per_s");
        json_object_del(row, "seconds");
        json_array_append_new(rows, row);
    }
    char *all = json_dumps(rows, 0);
    json_decref(rows);
    free(path), free(text);
    return all;
}

static json_t *manifest(const char *name, int step) {
    char *path = rt_path("%s/%s/ckpt/step-%08d/manifest.json", dir, name, step);
    json_t *m = json_load_file(path, 0, NULL);
    if (!m) fail_msg("%s", path);
    free(path);
    return m;
}

// Which tensors there are, and what they hold; not where.  The caller frees it.
static char *tensors(const char *name, int step) {
    json_t *m = manifest(name, step), *all = json_object(), *entry;
    const char *tensor;
    json_object_foreach(json_object_get(m, "tensors"), tensor, entry) json_object_set(all, tensor, json_object_get(entry, "hash"));
    char *text = json_dumps(all, JSON_SORT_KEYS);
    json_decref(m);
    json_decref(all);
    return text;
}

static void same_weights(const char *a, const char *b) {
    char *x = tensors(a, 12), *y = tensors(b, 12);
    assert_string_equal(x, y);
    assert_non_null(strstr(x, "ffn.experts.3.u"));
    free(x), free(y);
}

static void same_run(const char *a, const char *b) {
    char *x = numbers(a), *y = numbers(b);
    assert_string_equal(x, y);
    free(x), free(y);
    same_weights(a, b);
}

static const struct { const char *name; Mesh mesh; } layouts[] = {
    {"dp1", {1, 1, 0}}, {"dp2", {2, 1, 0}},    {"ep2", {1, 2, 0}},      {"dp4", {4, 1, 0}},
    {"ep4", {1, 4, 0}}, {"dp2ep2", {2, 2, 0}}, {"dp4zero", {4, 1, 1}}, {"dp2ep2zero", {2, 2, 1}}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

static void every_layout_has_the_same_numbers_and_weights(void **state) {
    must_train("alone", one_rank, "", false);
    for (int i = 0; i < N_LAYOUTS; i++) {
        must_train(layouts[i].name, layouts[i].mesh, "", false);
        same_run("alone", layouts[i].name);
    }
    json_t *m = manifest("dp2ep2", 12), *layout = json_object_get(m, "layout");
    assert_int_equal(json_integer_value(json_object_get(layout, "ep")), 2);
    json_decref(m);
}

static void labels_count_the_same_too(void **state) {
    static const char by_token[] = ", \"average\": \"token\"";
    must_train("tokens", one_rank, by_token, false);
    must_train("tokens4", (Mesh){2, 2, 0}, by_token, false);
    same_run("tokens", "tokens4");
}

static void any_layout_goes_on_with_any_other(void **state) {
    must_train("straight", one_rank, "", false);
    for (int i = 0; i < N_LAYOUTS; i++) {
        int j = (i + 1) % N_LAYOUTS, k = (i + 3) % N_LAYOUTS;
        char *name = rt_path("chain%d", i);
        must_train(name, layouts[i].mesh, ", \"stop\": 3", false);
        must_train(name, layouts[j].mesh, ", \"stop\": 8", true);
        must_train(name, i % 2 ? layouts[k].mesh : one_rank, "", true);
        same_run("straight", name);
        free(name);
    }
}

static void each_rank_writes_its_part_and_reads_no_other(void **state) {
    must_train("parts", (Mesh){1, 4, 0}, "", false);
    json_t *m = manifest("parts", 12), *entry;
    const char *tensor;
    json_object_foreach(json_object_get(m, "tensors"), tensor, entry) {
        const char *number = strstr(tensor, "experts.");
        if (!number) continue;
        json_t *where = json_array_get(json_object_get(entry, "pieces"), 0);
        json_t *file = json_array_get(json_object_get(m, "files"), (size_t)json_integer_value(json_object_get(where, "file")));
        const char *name = json_string_value(json_object_get(file, "name"));
        int rank = atoi(strchr(name, '-') + 1);
        assert_int_equal(rank, atoi(number + 8));
    }
    json_decref(m);
}

// ---- what happens to one rank ---------------------------------------------------------------------------------

static void an_error_of_one_rank_ends_all_and_names_it(void **state) {
    static const struct { int batch, seed; const char *rank, *what; } odd[] = {
        {13, 0, "rank 2: ", "train.batch is 13"}, {32, 0, "rank", "train.batch"}, {0, 8, "rank", "train.seed"}};
    for (int k = 0; k < 3; k++) {
        Rank *r = train("odd", (Mesh){2, 2, 0}, (Rank){.odd_batch = odd[k].batch, .odd_seed = odd[k].seed});
        for (int i = 0; i < 4; i++) {
            assert_int_not_equal(r[i].status, RT_OK);
            if (!strstr(r[i].error.text, odd[k].rank) || !strstr(r[i].error.text, odd[k].what)) fail_msg("%s", r[i].error.text);
        }
        free(r);
    }
    char *metrics = rt_path("%s/odd/metrics.jsonl", dir);
    assert_false(rt_is_file(metrics));
    free(metrics);
}

static void a_signal_to_one_rank_stops_all_after_the_same_step(void **state) {
    raise_at = 6;
    Rank *r = train("signal", (Mesh){2, 2, 0}, (Rank){0});
    raise_at = 0;
    for (int i = 0; i < 4; i++) {
        if (r[i].status != RT_STOPPED) fail_msg("rank %d: %s", i, r[i].error.text);
        assert_int_equal(r[i].result.step, 6);
    }
    free(r);
    must_train("signal", (Mesh){1, 2, 0}, "", true);
    must_train("unstopped", one_rank, "", false);
    same_weights("unstopped", "signal");
}

static void a_full_disk_costs_a_checkpoint_but_the_last(void **state) {
    must_train("roomy", (Mesh){1, 2, 0}, ", \"stop\": 1", false);                    // makes the cache
    struct rlimit was;
    getrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){4000, was.rlim_max});        // less than the states of two experts
    Rank *r = train("full", (Mesh){1, 2, 0}, (Rank){.more = ", \"stop\": 6"});
    setrlimit(RLIMIT_FSIZE, &was);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r[i].status, RT_IO);
        assert_int_equal(r[i].result.step, 6);                            // that of step 4 was passed over
        if (!strstr(r[i].error.text, "checkpoint of step 6: cannot write")) fail_msg("%s", r[i].error.text);
    }
    free(r);
    char *tmp = rt_path("%s/full/ckpt/.tmp-step-00000006", dir);
    assert_false(rt_is_dir(tmp));
    free(tmp);
}

static void a_damaged_part_sends_all_to_the_checkpoint_before(void **state) {
    must_train("damaged", (Mesh){1, 4, 0}, ", \"stop\": 8", false);
    char *path = rt_path("%s/damaged/ckpt/step-00000008/state-0003-00000.safetensors", dir);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -5, SEEK_END);
    fputc(0x77, f);
    fclose(f);
    free(path);
    must_train("damaged", (Mesh){1, 4, 0}, "", true);
    must_train("undamaged", one_rank, "", false);
    same_run("undamaged", "damaged");
}

// ---- first values, batches ------------------------------------------------------------------------------------

static void parts_begin_as_the_whole_does(void **state) {
    Rank *whole = train("first", one_rank, (Rank){.more = ", \"stop\": 1"});
    Rank *four = train("first4", (Mesh){1, 4, 0}, (Rank){.more = ", \"stop\": 1"});
    for (int i = 0; i < 4; i++) assert_memory_equal(whole->u[i], four[i].u[0], V * sizeof(float));
    assert_memory_not_equal(whole->u[0], whole->u[1], V * sizeof(float));
    free(whole), free(four);
}

// The second rank makes an exchange more, alone, so that no message shows it.
static void *decide(void *arg) {
    RtCommConfig *config = arg;
    RtError *e = calloc(1, sizeof *e);
    RtRanks r = {.n = 2, .rank = config->rank};
    int alone;
    int32_t flag[2] = {config->rank == 1, 0};
    if (rt_comm_open(config, &r.comm, e) != RT_OK) return e;
    RtStatus s = rt_comm_group(r.comm, &r.rank, 1, &alone, e);
    if (s == RT_OK) s = rt_any(&r, flag, 2, e);
    if (s == RT_OK && (flag[0] != 1 || flag[1] != 0)) s = rt_fail(e, RT_BAD_PLAN, "%d %d", flag[0], flag[1]);
    RtCommOp op = {.kind = RT_COMM_ROWS, .group = alone, .tag = {.node = 9, .where = "m.moe:31"}};
    if (s == RT_OK && r.rank == 1) s = rt_comm_run(r.comm, &op, e);
    if (s == RT_OK) rt_any(&r, flag, 2, e);
    rt_comm_close(r.comm);
    return e;
}

static void decisions_find_ranks_that_differ(void **state) {
    RtLocalWorld *world;
    pthread_t thread[2];
    RtCommConfig config[2];
    assert_int_equal(rt_local_open(2, 0, &world, NULL), RT_OK);
    for (int i = 0; i < 2; i++) {
        config[i] = (RtCommConfig){.world = world, .rank = i};
        pthread_create(&thread[i], NULL, decide, &config[i]);
    }
    for (int i = 0; i < 2; i++) {
        void *e;
        pthread_join(thread[i], &e);
        assert_int_equal(((RtError *)e)->code, RT_COMM);
        assert_non_null(strstr(((RtError *)e)->text, "rank 1: rows (m.moe:31; node 9; #1 of group 1)"));
        free(e);
    }
    rt_local_close(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_has_the_same_numbers_and_weights),
        cmocka_unit_test(labels_count_the_same_too),
        cmocka_unit_test(any_layout_goes_on_with_any_other),
        cmocka_unit_test(each_rank_writes_its_part_and_reads_no_other),
        cmocka_unit_test(an_error_of_one_rank_ends_all_and_names_it),
        cmocka_unit_test(a_signal_to_one_rank_stops_all_after_the_same_step),
        cmocka_unit_test(a_full_disk_costs_a_checkpoint_but_the_last),
        cmocka_unit_test(a_damaged_part_sends_all_to_the_checkpoint_before),
        cmocka_unit_test(parts_begin_as_the_whole_does),
        cmocka_unit_test(decisions_find_ranks_that_differ),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
