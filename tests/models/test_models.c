// Every file of models/ at a tiny size: elaborates, reads back, passes all passes with its meaning kept, has
// the gradients that central differences give, and computes each leaf as if it were alone.
#include "tests/models/small_run.h"

// Sizes by the name of the hyper-parameter, and what a model needs beyond or instead of them.  import: what
// an imported file must say instead, where sizes cannot be set from outside.
static const struct {
    const char *name, *value;
} usual_size[] = {
    {"V", "13"},           {"D", "16"},       {"L", "2"},         {"LD", "2"},       {"N", "4"},
    {"KV", "2"},           {"d", "4"},        {"E", "4"},         {"k", "2"},        {"H", "12"},
    {"HD", "12"},          {"HE", "8"},       {"HS", "8"},        {"ND", "4"},       {"q_rank", "8"},
    {"kv_rank", "8"},      {"nope", "4"},     {"rot", "4"},       {"v_dim", "4"},    {"shared", "1"},
    {"dense_layers", "1"}, {"window", "3"},   {"original", "16"}, {"longest", "16"}, {"slots", "2"},
    {"enc_step", "2"},     {"dec_step", "2"},
};

typedef struct {
    const char *name, *sets, *import, *from, *to;
} Small;
static const Small smalls[] = {
    {"cifar10_moe", "classes=5 residual=true"},
    {"deepseek_v2", "E=8 groups=4 open_groups=2 aux=0.1 q_rank=none"},
    {"deepseek_v3", "E=8 groups=4 open_groups=2 aux=0.1"},
    {"nllb_moe", "router=nllb(slots:3)"},
    {"pr_moe_350m", "L=4 experts=[2,3]"},
    {"pr_moe_350m_mos", "experts=[2]", "pr_moe_350m.moe",
     "V = 50304, D = 1024, L = 24, N = 16, longest = 2048, every = 2,\n             experts: list = [32] * "
     "10 + [64] * 2",
     "V = 13, D = 8, L = 4, N = 2, longest = 16, every = 2, experts: list = [2, 3]"},
};

static char *file_text(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s cannot be read", path);
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    for (int c; (c = getc(f)) != EOF;) putc(c, out);
    fclose(out);
    fclose(f);
    return text;
}

static void write_text(const char *path, const char *before, size_t n, const char *middle,
                       const char *after) {
    FILE *f = fopen(path, "wb");
    if (!f) fail_msg("%s cannot be written", path);
    fprintf(f, "%.*s%s%s", (int)n, before, middle, after);
    fclose(f);
}

// The model in a folder of its own beside its edited import.
static Loaded *load_edited(const Small *s) {
    char dir[] = "/tmp/moec-models-XXXXXX", path[200], import[200];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "models/%s", s->import);
    char *text = file_text(path), *at = strstr(text, s->from);
    if (!at) fail_msg("%s says nothing of\n%s", path, s->from);
    snprintf(import, sizeof import, "%s/%s", dir, s->import);
    write_text(import, text, (size_t)(at - text), s->to, at + strlen(s->from));
    free(text);
    snprintf(path, sizeof path, "models/%s.moe", s->name);
    text = file_text(path);
    snprintf(path, sizeof path, "%s/%s.moe", dir, s->name);
    write_text(path, text, strlen(text), "", "");
    free(text);
    Loaded *l = load(path);
    remove(path);
    remove(import);
    remove(dir);
    return l;
}

static Loaded *load_small(const char *name) {
    Small s = {name, ""};
    for (size_t i = 0; i < sizeof smalls / sizeof *smalls; i++)
        if (!strcmp(smalls[i].name, name)) s = smalls[i];
    char path[200];
    snprintf(path, sizeof path, "models/%s.moe", name);
    Loaded *l = s.import ? load_edited(&s) : load(path);
    int n, n_params;
    const char *const *hyper = program_hyper_names(l->p, &n);
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < sizeof usual_size / sizeof *usual_size; k++)
            if (!strcmp(usual_size[k].name, hyper[i]))
                set_all(l, arena_printf(l->a, "%s=%s", hyper[i], usual_size[k].value));
    set_all(l, s.sets);
    set_all(l, "train.dtype=f32");
    const ParamInfo *p = program_params(l->p, &n_params);
    if (!p) fail_msg("%s: %s", name, told(l));
    int64_t elements = 0;
    for (int i = 0; i < n_params; i++) elements += p[i].elements;
    if (elements > 200000)
        fail_msg("%s has %lld parameters: give it small sizes in tests/models/test_models.c", path,
                 (long long)elements);
    return l;
}

enum { LEAVES = 2, B = 2, S = 5, FAR = 7 };
static const ElabOpts training = {
    .kind = ELAB_TRAIN, .leaves = LEAVES, .B = B, .S = S, .source = FAR, .waves = 1};

static int64_t vocabulary(Loaded *l) { return program_hyper(l->p, "classes").kind == V_NUM ? 5 : 13; }

static bool has_op(const Graph *g, Op op) {
    for_each_node(g, n) if (n->op == op) return true;
    return false;
}

static bool reads(const Graph *g, const char *input) {
    for_each_node(g, n) if (n->op == OP_INPUT && !strcmp(n->attr.name, input)) return true;
    return false;
}

// ---- graphs and passes ------------------------------------------------------------------------------------

static void check_programs(const char *name) {
    Loaded *l = load_small(name);
    Graph *pass = elaborate(l, name, training), *update = NULL;
    passed(l, name, pass, pipeline_train, &usual, NULL, &update);
    assert_non_null(update);
    passed(l, name, update, pipeline_update, &usual, NULL, NULL);

    ElabOpts o = training;
    o.kind = ELAB_EVAL;
    o.labels = true;
    o.returns = (const char *const[]){"logits", NULL};
    passed(l, name, elaborate(l, name, o), pipeline_forward, NULL, NULL, NULL);
    if (reads(pass, "tokens")) {
        o = (ElabOpts){.kind = ELAB_RUN, .leaves = 1, .B = 1, .S = S, .source = FAR, .context = 12};
        passed(l, name, elaborate(l, name, o), pipeline_forward, NULL, NULL, NULL);
    }
    if (diag_n_errors(l->d)) fail_msg("%s: %s", name, told(l));
    unload(l);
}

static void models_pass_all_passes(void **state) {
    (void)state;
    setenv("MOE_DEBUG", "verify,roundtrip,semantics", 1);
    int n = for_each_program("models", check_programs);
    setenv("MOE_DEBUG", "", 1);
    assert_true(n >= 15);
}

// ---- gradients --------------------------------------------------------------------------------------------

static Compared total;

static void check_gradients(const char *name) {
    Loaded *l = load_small(name);
    Graph *forward = elaborate(l, name, training);
    TrainOpts train = usual;
    train.return_grads = true;
    Graph *back = passed(l, name, forward, pipeline_train, &train, NULL, NULL);
    Compared c = compare_gradients(name, forward, back, (Feed){.vocab = vocabulary(l)}, 2);
    const char *said = told(l);
    int n_params = 0, unreached = 0;
    for_each_node(forward, p) {
        if (p->op != OP_PARAM || p->attr.frozen) continue;
        n_params++;
        if (gradient_of(back, p->attr.name)) continue;
        unreached++;
        if (!strstr(said, p->attr.name))
            fail_msg("%s: nothing is said of %s, which no loss reaches", name, p->attr.name);
    }
    assert_int_equal(c.params + unreached, n_params);
    if (!c.checked || !c.bodies || (has_op(forward, OP_ROUTE) && !c.gates))
        fail_msg("%s: %d elements, %d bodies and %d gates are too few", name, c.checked, c.bodies, c.gates);
    print_message("%-16s %3d parameters (%d not reached), %3d elements compared (%d decisions flipped, %d "
                  "behind stop_gradient), "
                  "%3d bodies, %d gates\n",
                  name, c.params, unreached, c.checked, c.flipped, c.stopped, c.bodies, c.gates);
    total.checked += c.checked;
    total.flipped += c.flipped;

    // What is kept and what is computed again changes no bit.
    static const char *const recompute[] = {"none", "layer"};
    for (int i = 0; i < 2; i++) {
        train.recompute = recompute[i];
        Graph *other = passed(l, name, forward, pipeline_train, &train, NULL, NULL);
        const char *why = semantics_differ(l->a, back, other, 0);
        if (why) fail_msg("%s: recompute %s: %s", name, recompute[i], why);
    }
    unload(l);
}

static void gradients_are_differences(void **state) {
    (void)state;
    for_each_program("models", check_gradients);
    assert_true(total.flipped * 4 < total.checked);
}

// ---- leaves -----------------------------------------------------------------------------------------------

// tree(n) = tree(left) + tree(right), left the largest power of two below n.
static float leaf_tree(float *const *of_leaf, int n, int64_t i) {
    if (n == 1) return of_leaf[0][i];
    int left = 1;
    while (left * 2 < n) left *= 2;
    return leaf_tree(of_leaf, left, i) + leaf_tree(of_leaf + left, n - left, i);
}

static Graph *gradients_of_leaves(Loaded *l, const char *name, int64_t leaves) {
    ElabOpts o = training;
    o.leaves = leaves;
    o.B = 1;
    TrainOpts train = usual;
    train.return_grads = true;
    return passed(l, name, elaborate(l, name, o), pipeline_train, &train, NULL, NULL);
}

static void same_bits(const char *name, const char *what, const char *of, int64_t i, float is, float want) {
    if (memcmp(&is, &want, sizeof is))
        fail_msg("%s: %s %s[%lld] is %.9g for all leaves at once, %.9g leaf by leaf", name, what, of,
                 (long long)i, (double)is, (double)want);
}

static int n_alone, n_compared; // models; losses and gradients

// How many nodes read a parameter.
static int n_readers(const Graph *g, const char *param) {
    for_each_node(g, n) if (n->op == OP_PARAM && !strcmp(n->attr.name, param)) return n->out[0].n_uses;
    return 0;
}

// Losses are those of each leaf alone, the gradient that one reader gives a parameter is the tree of what the
// leaves give alone (each reader of a parameter has its own tree; these are then added).  Random draws are
// numbered over all leaves of a pass, so models that draw are left out.
static void check_leaves(const char *name) {
    enum { ALL = 7 }; // no power of two: the tree is lopsided
    Loaded *l = load_small(name);
    Graph *together = gradients_of_leaves(l, name, ALL), *alone = gradients_of_leaves(l, name, 1);
    Graph *forward = elaborate(l, name, training);
    if (has_op(forward, OP_RANDOM)) {
        unload(l);
        return;
    }
    static const char *const simplified[] = {"simplify", NULL};
    Machine machine = machine_guess(64, 2);
    PassCtx cx = {.scratch = l->scratch, .diag = l->d, .machine = &machine, .train = &usual};
    assert_true(passes_run(&forward, simplified, &cx, &(RunOpts){0}));
    Feed f = {.vocab = vocabulary(l)};
    Eval *all = evaluate(l->a, together, &f, false), *one[ALL];
    for (int i = 0; i < ALL; i++) {
        f.first_leaf = i;
        one[i] = evaluate(l->a, alone, &f, false);
    }
    const Node *m = alone->first;
    for_each_node(together, n) {
        if (n->op != OP_LOSS && n->op != OP_RETURN) continue;
        if (n->op == OP_RETURN && n_readers(forward, n->attr.name + 5) != 1) continue;
        while (m->op != n->op || m->attr.name != n->attr.name) {
            m = m->next;
            assert_non_null(m);
        }
        const Tensor *t = eval_value(all, n->in[0]);
        float *part[ALL];
        for (int i = 0; i < ALL; i++) part[i] = eval_value(one[i], m->in[0])->data;
        if (n->op == OP_RETURN)
            for (int64_t i = 0; i < size_of(t); i++)
                same_bits(name, "gradient", n->attr.name, i, ((float *)t->data)[i], leaf_tree(part, ALL, i));
        else
            for (int64_t i = 0; i < ALL; i++)
                same_bits(name, "loss", n->attr.name, i, ((float *)t->data)[i], part[i][0]);
        m = alone->first;
        n_compared++;
    }
    n_alone++;
    unload(l);
}

static void leaves_are_alone(void **state) {
    (void)state;
    for_each_program("models", check_leaves);
    print_message("%d models draw nothing: %d losses and gradients compared\n", n_alone, n_compared);
    assert_true(n_alone >= 8 && n_compared > 15 * n_alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_pass_all_passes),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(leaves_are_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
