// Models elaborate for training, evaluation and generation; parameters are those that checkpoints hold; the
// first loss of a fresh model is that of guessing.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/program.h"
#include "ir/eval.h"

typedef struct {
    Arena *a;
    Diag *d;
    Program *p;
} Loaded;

static Loaded load(const char *path) {
    Loaded l = {.a = arena_create()};
    l.d = diag_new(l.a);
    l.p = program_load(l.a, l.d, path, "models");
    if (!l.p || diag_n_errors(l.d)) diag_print(l.d, stderr, false);
    assert_non_null(l.p);
    assert_int_equal(diag_n_errors(l.d), 0);
    return l;
}

static void unload(Loaded *l) { arena_destroy(l->a); }

static Graph *elaborate(Loaded *l, ElabOpts opts) {
    Graph *g = program_elaborate(l->p, l->a, &opts);
    if (g) graph_check(g, l->d);
    diag_print(l->d, stderr, false);
    assert_non_null(g);
    assert_int_equal(diag_n_errors(l->d), 0);
    return g;
}

// The counts of language.md section 15, and of the READMEs of the models' authors.
static const struct { const char *path; int64_t params, states; } models[] = {
    {"models/bench_m30.moe", 33840000, 0},
    {"models/bench_mixtral.moe", 742081536, 0},
    {"models/cifar10_moe.moe", 76454, 0},
    {"models/deepseek_v3.moe", 671026404352, 14848},
    {"models/gpt_oss.moe", 116829156672, 0},
    {"models/gshard.moe", 0, 0},
    {"models/llama.moe", 0, 0},
    {"models/mixtral.moe", 46702792704, 0},
    {"models/nllb_moe.moe", 0, 0},
    {"models/pr_moe_350m.moe", 4116793368, 0},
    {"models/pr_moe_350m_mos.moe", 0, 0},
    {"models/qwen3_moe.moe", 30532122624, 0},
    {"models/switch_base.moe", 619339008, 0},
    {"models/tiny_dense.moe", 0, 0},
    {"models/tiny_mixtral.moe", 0, 0},
    {"models/tiny_switch.moe", 0, 0},
};

static void counts_parameters(void **state) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Loaded l = load(models[i].path);
        int n;
        const ParamInfo *p = program_params(l.p, &n);
        assert_non_null(p);
        int64_t params = 0, states = 0;
        for (int k = 0; k < n; k++) *(p[k].state ? &states : &params) += p[k].elements;
        if (models[i].params) assert_int_equal(params, models[i].params);
        assert_int_equal(states, models[i].states);
        unload(&l);
    }
}

static void elaborates_three_ways(void **state) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Loaded l = load(models[i].path);
        ElabOpts opts = program_train_opts(l.p);
        elaborate(&l, opts);
        opts.kind = ELAB_EVAL;
        opts.returns = (const char *const[]){"logits", "hidden", "router_logits", "topk_idx", NULL};
        elaborate(&l, opts);
        opts.labels = false;
        elaborate(&l, opts);
        if (!strstr(models[i].path, "cifar"))
            elaborate(&l, (ElabOpts){.kind = ELAB_RUN, .S = 32, .context = 64});
        unload(&l);
    }
}

static void elaborates_every_router(void **state) {
    static const char *const routers[] = {"batch_priority",
                                          "ds_top1",
                                          "ds_top2",
                                          "ds_top_k",
                                          "gshard",
                                          "nllb",
                                          "noisy_top_k",
                                          "sigmoid_groups(groups: 4, open_groups: 2, k: 2)",
                                          "sinkhorn_top_k",
                                          "softmax_after",
                                          "softmax_groups(groups: 2, k: 2)",
                                          "sparsemixer",
                                          "switch",
                                          "top_k"};
    static const char *const others[] = {"hashed(x[B, S, 32], ids[B, S])", "weighed_before(x[B, S, 32])",
                                         "shared(x[B, S, 32])", "residual(x[B, S, 32])",
                                         "routed(x[B, S, 32], router: expert_choice)"};
    enum { N_ROUTERS = sizeof routers / sizeof *routers, N_OTHERS = sizeof others / sizeof *others };
    Loaded l = load("tests/frontend/routers.moe");
    for (int i = 0; i < 2 * N_ROUTERS + N_OTHERS; i++) {
        const char *call =
            i < N_ROUTERS ? arena_printf(l.a, "routed(x[B, S, 32], router: %s)", routers[i])
            : i < 2 * N_ROUTERS
                ? arena_printf(l.a, "masked(x[B, S, 32], ids[B, S], router: %s)", routers[i - N_ROUTERS])
                : others[i - 2 * N_ROUTERS];
        for (int kind = ELAB_TRAIN; kind <= ELAB_RUN; kind++) {
            if (kind == ELAB_RUN && (strstr(call, "expert_choice") || strstr(call, "ids"))) continue;
            ElabOpts opts = program_train_opts(l.p);
            opts.kind = kind;
            opts.context = 64;
            Graph *g = program_elaborate_call(l.p, l.a, call, &opts);
            bool ok = g && graph_check(g, l.d);
            diag_print(l.d, stderr, false);
            if (!ok) print_error("%s (%d)\n", call, kind);
            assert_true(ok);
        }
    }
    unload(&l);
}

// ---- names ----------------------------------------------------------------------------------------------

static const Node *find_param(const Graph *g, const char *name) {
    for_each_node(g, n)
        if ((n->op == OP_PARAM || n->op == OP_STATE) && strcmp(n->attr.name, name) == 0) return n;
    return NULL;
}

static void names_instances(void **state) {
    Loaded l = load("models/tiny_mixtral.moe");
    Graph *g = elaborate(&l, program_train_opts(l.p));
    static const char *const names[] = {"embed",
                                        "layers.0.attn_norm.g",
                                        "layers.3.attn.q.w",
                                        "layers.1.ffn.router.gate",
                                        "layers.2.ffn.experts.w1",
                                        "norm.g",
                                        "head.w"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_non_null(find_param(g, names[i]));
    const Node *w1 = find_param(g, "layers.2.ffn.experts.w1");
    assert_int_equal(w1->attr.dims.n, 3);
    assert_int_equal(w1->attr.dims.at[0].n, 8);
    assert_string_equal(w1->attr.group, "expert");
    assert_int_equal(w1->attr.decay, 1);
    assert_int_equal(find_param(g, "norm.g")->attr.decay, 0);
    int losses = 0, metrics = 0;
    for_each_node(g, n) {
        losses += n->op == OP_LOSS;
        metrics += n->op == OP_METRIC;
    }
    assert_int_equal(losses, 5);
    assert_int_equal(metrics, 8);
    unload(&l);
}

static void shares_layers_and_copies(void **state) {
    Loaded l = load("models/cifar10_moe.moe");
    assert_true(program_set(l.p, "residual = true"));
    assert_true(program_set(l.p, "experts = [2, 4]"));
    Graph *g = elaborate(&l, program_train_opts(l.p));
    const Node *copy = find_param(g, "moe.1.routed.experts.w");
    assert_non_null(copy);
    assert_string_equal(copy->attr.init, "copy");
    assert_string_equal(copy->attr.init_from, "mlp.w");
    int mlps = 0;
    for_each_node(g, n) mlps += n->op == OP_PARAM && strstr(n->attr.name, "mlp.w") != NULL;
    assert_int_equal(mlps, 1);                            // one MLP for both layers
    unload(&l);
}

static void freezes_teachers(void **state) {
    Loaded l = load("models/pr_moe_350m_mos.moe");
    Graph *g = elaborate(&l, program_train_opts(l.p));
    const Node *teacher = find_param(g, "teacher.embed"), *student = find_param(g, "student.embed");
    assert_true(teacher && teacher->attr.frozen);
    assert_true(student && !student->attr.frozen);
    bool until = false;
    for_each_node(g, n) {
        if (n->op == OP_LOSS) assert_null(strstr(n->attr.name, "teacher"));
        if (n->op == OP_LOSS && strcmp(n->attr.name, "mos") == 0) until = n->attr.until == 400000;
    }
    assert_true(until);
    int n;
    const FrozenModel *f = program_frozen(l.p, &n);
    assert_int_equal(n, 1);
    assert_string_equal(f[0].path, "teacher");
    assert_string_equal(f[0].weights, "checkpoints/pr_moe_350m");
    unload(&l);
}

// ---- values ---------------------------------------------------------------------------------------------

static uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

static double uniform(uint64_t key, int64_t i) {
    return (double)(mix(key + (uint64_t)i * 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
}

// Parameters by their initialisers, ids by a hash.
static bool fill(void *self, const Node *n, Tensor *t) {
    int64_t count = 1, vocabulary = *(const int64_t *)self;
    for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
    uint64_t key = str_hash(n->attr.name, strlen(n->attr.name), 1);
    for (int64_t i = 0; i < count; i++) {
        double v = 0, u = uniform(key, 2 * i), w = uniform(key, 2 * i + 1);
        const char *init = n->attr.init;
        if (init && strcmp(init, "const") == 0) v = n->attr.init_a;
        if (init && strcmp(init, "normal") == 0)
            v = n->attr.init_a * sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * w);
        if (init && strcmp(init, "uniform") == 0) v = n->attr.init_a * (2 * u - 1);
        if (n->op == OP_INPUT) v = floor(u * (double)vocabulary);
        if (t->dtype == I32) ((int32_t *)t->data)[i] = (int32_t)v;
        else if (t->dtype == F32) ((float *)t->data)[i] = (float)v;
        else if (t->dtype == F64) ((double *)t->data)[i] = v;
        else return false;
    }
    return true;
}

static void starts_at_a_guess(void **state) {
    static const char *const tiny[] = {"models/tiny_dense.moe", "models/tiny_mixtral.moe",
                                       "models/tiny_switch.moe"};
    for (int i = 0; i < 3; i++) {
        Loaded l = load(tiny[i]);
        assert_true(program_set(l.p, "L=2"));
        Graph *g =
            elaborate(&l, (ElabOpts){.kind = ELAB_TRAIN, .leaves = 2, .B = 1, .S = 16, .labels = true});
        int64_t vocabulary = 256;
        Eval *e = eval_graph(l.a, g, &(EvalOpts){.source = fill, .self = &vocabulary}, l.d);
        diag_print(l.d, stderr, false);
        assert_non_null(e);
        bool seen = false;
        for_each_node(g, n) {
            if (n->op != OP_LOSS) continue;
            const Tensor *t = eval_value(e, n->in[0]);
            double per_leaf = ((const float *)t->data)[0];
            bool guess = strcmp(n->attr.name, "ce") == 0;
            if (guess) assert_true(fabs(per_leaf - log(256)) < 0.3);
            else assert_true(per_leaf > 0.9 && per_leaf < 2);          // a balancing loss: 1 when even
            seen |= guess;
        }
        assert_true(seen);
        unload(&l);
    }
}

// ---- settings -------------------------------------------------------------------------------------------

static void reads_settings(void **state) {
    Loaded l = load("models/tiny_mixtral.moe");
    const Settings *s = program_settings(l.p);
    assert_non_null(s);
    assert_int_equal(s->train.batch, 16);
    assert_int_equal(s->train.lanes, 8);
    assert_int_equal(s->train.micro_batch, 2);
    assert_int_equal(s->train.waves, 1);
    assert_string_equal(s->train.schedule.kind, "cosine");
    assert_true(s->train.schedule.warmup.value == 50);
    assert_string_equal(s->train.optimizer.kind, "adamw");
    assert_true(s->generate.top_p == 0.95);
    assert_int_equal(s->generate.context, 4096);

    assert_true(program_set(l.p, "train.lr=5e-4"));
    assert_true(program_set(l.p, "train.batch=24"));
    assert_true(program_set(l.p, "train.micro_batch=1"));
    assert_true(program_set(l.p, "generate.stop=[\"end\"]"));
    assert_true(program_set(l.p, "data.source=text(\"a.txt\", \"b.txt\")"));
    assert_true(program_set(l.p, "D=64"));
    s = program_settings(l.p);
    assert_non_null(s);
    assert_true(s->train.lr == 5e-4);
    assert_int_equal(s->train.lanes, 8);
    assert_int_equal(s->train.waves, 3);
    assert_int_equal(s->generate.stop.n, 1);
    assert_int_equal(s->data.source.n_paths, 2);
    assert_true(s->data.source.from_command_line);
    Val d = program_hyper(l.p, "D");
    assert_true(d.kind == V_NUM && num_value(d.num) == 64);
    unload(&l);
}

// ---- text -----------------------------------------------------------------------------------------------

static void prints_what_it_reads(void **state) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Loaded l = load(models[i].path);
        int n;
        const Module *const *m = program_modules(l.p, &n);
        for (int k = 0; k < n; k++) {
            Str first = {.arena = l.a}, second = {.arena = l.a};
            ast_print(&first, m[k]);
            Module again = {0};
            assert_true(ast_parse(l.a, l.d, diag_add_file(l.d, "printed", first.text, first.n), &again));
            ast_print(&second, &again);
            assert_string_equal(first.text, second.text);
        }
        unload(&l);
    }
}

static void keeps_numbers_exact(void **state) {
    Arena *a = arena_create();
    Num factor = num_parse("1.1", 3);
    Num capacity = num_ceil(num_mul(num_div(num_mul(num_int(100), num_int(2)), num_int(4)), factor));
    assert_string_equal(num_text(a, capacity), "55");               // in f64 it would be 56
    assert_string_equal(num_text(a, num_parse("4k", 2)), "4000");
    assert_string_equal(num_text(a, num_parse("4Ki", 3)), "4096");
    assert_string_equal(num_text(a, num_parse("1_000", 5)), "1000");
    assert_string_equal(num_text(a, num_parse("14.8T", 5)), "14800000000000");
    assert_string_equal(num_text(a, num_parse("1e-5", 4)), "1e-05");
    assert_true(num_value(num_parse("1e-5", 4)) == 1e-5);
    assert_true(num_value(num_parse("1.1920929e-7", 12)) == 1.1920929e-7);
    assert_string_equal(num_text(a, num_round(num_parse("2.5", 3))), "2");
    assert_string_equal(num_text(a, num_round(num_parse("3.5", 3))), "4");
    assert_string_equal(num_text(a, num_pow(num_int(2), num_int(62))), "4611686018427387904");
    assert_true(!num_pow(num_int(2), num_int(64)).exact);
    arena_destroy(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_numbers_exact),   cmocka_unit_test(prints_what_it_reads),
        cmocka_unit_test(counts_parameters),     cmocka_unit_test(elaborates_three_ways),
        cmocka_unit_test(elaborates_every_router), cmocka_unit_test(names_instances),
        cmocka_unit_test(shares_layers_and_copies), cmocka_unit_test(freezes_teachers),
        cmocka_unit_test(starts_at_a_guess),     cmocka_unit_test(reads_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
