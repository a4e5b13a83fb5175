#include "frontend/cmd_session.h"

#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd_machine.h"

char *read_file(Arena *a, const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    Str s = {.arena = a};
    str_add(&s, "");
    char piece[1 << 16];
    for (size_t k; (k = fread(piece, 1, sizeof piece, f)) > 0;) str_add_n(&s, piece, k);
    int error = ferror(f) ? errno : 0;
    fclose(f);
    if (error) {
        errno = error;
        return NULL;
    }
    if (n) *n = s.n;
    return s.text;
}

const char *session_models_dir(Arena *a) {
    const char *given = getenv("MOEC_MODELS");
    if (given && *given) return given;
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0) return "models";
    exe[n] = 0;
    char *folder = dirname(exe);
    const char *const places[] = {arena_printf(a, "%s/../share/moec/models", folder),
                                  arena_printf(a, "%s/../../models", folder),
#ifdef MOEC_SOURCE_MODELS
                                  MOEC_SOURCE_MODELS
#endif
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *try = places[i];
        char real[PATH_MAX];
        if (access(arena_printf(a, "%s/std", try), R_OK) == 0 && realpath(try, real)) return arena_strdup(a, real);
    }
    return "models";
}

static void fill_train_opts(Session *s) {
    const Settings *t = s->settings;
    s->train = (TrainOpts){
        .dtype = t->train.dtype, .recompute = t->train.recompute, .optimizer = t->train.optimizer.kind,
        .beta1 = t->train.optimizer.beta1, .beta2 = t->train.optimizer.beta2, .eps = t->train.optimizer.eps,
        .decay = t->train.optimizer.decay, .momentum = t->train.optimizer.momentum, .decay_all = t->train.optimizer.decay_all,
        .clip = t->train.clip, .lr_expert = t->train.lr_expert, .average_token = !strcmp(t->train.average, "token"),
        .one_chain = !t->train.exact, .waves = t->train.waves, .chunks = t->parallel.chunks, .a2a = t->parallel.a2a, .own_rows = t->parallel.own_rows};
}

static bool load(Session *s, Cli *c, const char *file, int n_files, const GivenFile *files) {
    *s = (Session){.cli = c, .arena = c->arena, .diag = c->diag};
    s->models_dir = session_models_dir(c->arena);
    s->base_dir = dirname(arena_strdup(c->arena, file));
    s->program = program_load_given(c->arena, c->diag, file, s->models_dir, n_files, files);
    return s->program != NULL && diag_n_errors(c->diag) == 0;
}

bool session_load(Session *s, Cli *c, const char *file) { return load(s, c, file, 0, NULL); }

bool session_settle(Session *s) {
    bool ok = true;
    for (int i = 0; i < s->sets.n; i++) ok &= program_set(s->program, s->sets.at[i]);
    if (!ok) return false;
    if (!program_model_name(s->program)) {
        diag_error(s->diag, (Span){0}, "%s holds no model", program_main(s->program)->path);
        return false;
    }
    s->settings = program_settings(s->program);
    if (!s->settings) return false;
    fill_train_opts(s);
    return true;
}

bool session_open(Session *s, Cli *c, const char *file, int n_sets, const char *const *sets) {
    return session_open_stored(s, c, file, 0, NULL, n_sets, sets);
}

bool session_open_stored(Session *s, Cli *c, const char *file, int n_files, const GivenFile *files, int n_sets,
                         const char *const *sets) {
    if (!load(s, c, file, n_files, files)) return false;
    for (int i = 0; i < n_sets; i++) vec_push(s->arena, &s->sets, sets[i]);
    for (int i = 0; i < c->sets.n; i++) vec_push(s->arena, &s->sets, c->sets.at[i]);
    return session_settle(s);
}

static void refuse(Session *s, bool unable, const char *what, const char *why) {
    if (unable) diag_error(s->diag, (Span){0}, "%s: %s", what, why);
}

static int64_t wanted_ranks(const Settings *t) {
    return t->parallel.ep * t->parallel.tp * t->parallel.pp * (t->parallel.dp ? t->parallel.dp : 1);
}

bool session_has_ranks(Session *s, const Settings *t, int ranks) {
    int64_t wanted = wanted_ranks(t);
    const char *command = s->cli->command->name;
    if (ranks != 1 || wanted <= 1) return true;
    diag_error(s->diag, (Span){0}, "the parallel block asks for %lld ranks, but there is one", (long long)wanted);
    diag_help(s->diag, "moec %s --local %lld makes them threads of one process, mpirun -n %lld moec %s processes; "
              "--set parallel.ep=1 (and dp, tp, pp) asks for one", command, (long long)wanted, (long long)wanted, command);
    return false;
}

bool session_can_train(Session *s, int ranks) {
    const Settings *t = s->settings;
    session_has_ranks(s, t, ranks);
    refuse(s, t->parallel.zero > 0 && ranks == 1 && wanted_ranks(t) <= 1, "parallel.zero", "there is nothing to share on one rank");
    refuse(s, t->parallel.replicas && ranks == 1 && wanted_ranks(t) <= 1, "parallel.replicas", "one rank has all experts");
    refuse(s, t->parallel.rebalance.value > 0 && ranks == 1 && wanted_ranks(t) <= 1, "parallel.rebalance",
           "one rank has all experts, there is nothing to move");
    refuse(s, t->train.fast_gate, "train.fast_gate", "this version always chooses as the router's text says");
    refuse(s, !strcmp(t->train.recompute, "offload"), "train.recompute is offload",
           "there is no slower memory to offload to on a CPU; none, cheap and layer are for it");
    refuse(s, t->train.waves > 1 && (t->train.sum_dense > 1 || t->train.sum_experts > 1), "train.sum",
           "this version chains the waves of a step after the tree over its lanes: dense and experts are 1");
    const char *source = t->data.source.kind;
    refuse(s, source && !strcmp(source, "cifar10"), "data.source is cifar10(..)",
           "this version trains on text(..) only; a model of images can be checked and dumped");
    refuse(s, source && strcmp(source, "cifar10") != 0 && strcmp(source, "text") != 0, "data.source",
           "this version trains on text(..) only");
    refuse(s, t->data.documents, "data.documents", "this version does not separate the documents of a text");
    refuse(s, t->data.pad >= 0, "data.pad", "texts are cut into full sequences: nothing is padded");
    return diag_n_errors(s->diag) == 0;
}

void session_close(Session *s) {
    rt_plan_close(s->plan);
    if (s->compiled) compiled_free(s->compiled);
    s->plan = NULL;
    s->compiled = NULL;
}

// ---- programs -----------------------------------------------------------------------------------------------

bool session_passes(Session *s, Graph **g, const char *const *pipeline, Graph **update) {
    if (!s->machine && !(s->machine = machine_open(s->cli, cli_flag(s->cli, "trace")))) return false;
    s->weighed.arena = s->arena;
    PassCtx cx = {.scratch = arena_create(), .diag = s->diag, .machine = s->first_machine ? s->first_machine : s->machine,
                  .train = &s->train, .update = update,
                  .own_parameters = s->own_parameters, .cpu = cli_value(s->cli, "target-cpu"), .weighed = &s->weighed};
    const Target *t = s->own_parameters ? session_target(s) : NULL;
    if (t) cx.layout = s->layout ? s->layout : t->layout;
    bool ok = passes_run(g, pipeline, &cx, &s->run);
    arena_destroy(cx.scratch);
    return ok;
}

bool session_run_passes(Session *s, Graph **g, const char *const *pipeline) {
    TrainOpts trained = s->train;
    if (strcmp(s->settings->generate.dtype, "trained") != 0) s->train.dtype = s->settings->generate.dtype;
    s->train.batch = s->settings->generate.batch;
    bool ok = session_passes(s, g, pipeline, NULL);
    s->train = trained;
    return ok;
}

ElabOpts session_train_opts(Session *s) {
    ElabOpts o = program_train_opts(s->program);
    if (rt_mesh_ranks(s->train.mesh) > 1) {
        o.mesh = s->train.mesh;
        o.leaves /= rt_group_size(o.mesh, RT_GROUP_DATA);
    }
    return o;
}

ElabOpts session_run_opts(const Session *s) {
    const Settings *t = s->settings;
    ElabOpts o = {.kind = ELAB_RUN, .leaves = 1, .B = 1, .S = t->generate.batch_tokens, .context = t->generate.context, .mesh = s->train.mesh,
                  .batch = t->generate.batch ? t->generate.batch : s->batch ? s->batch : 1};
    if (o.S < o.batch) o.S = o.batch;
    if (o.S > o.context * o.batch) o.S = o.context * o.batch;
    return o;
}

bool session_programs(Session *s, int want, Programs *out) {
    *out = (Programs){0};
    ElabOpts o = session_train_opts(s);
    s->own_parameters = want == WANT_EVAL || want == WANT_RUN;
    if (want & WANT_TRAIN) {
        out->pass = program_elaborate(s->program, s->arena, &o);
        if (!out->pass || !session_passes(s, &out->pass, pipeline_train, &out->update)) return false;
        if (!out->update || !session_passes(s, &out->update, pipeline_update, NULL)) return false;
    }
    if (want & WANT_EVAL) {
        ElabOpts e = o;
        e.kind = ELAB_EVAL;
        e.labels = true;
        e.waves = 1;
        out->eval = program_elaborate(s->program, s->arena, &e);
        if (!out->eval || !session_passes(s, &out->eval, pipeline_forward, NULL)) return false;
    }
    if (want & WANT_RUN) {
        refuse(s, !strcmp(s->settings->generate.mla, "absorbed"), "generate.mla is absorbed",
               "this version decodes latent attention as the text has it: plain");
        ElabOpts r = session_run_opts(s);
        out->run = program_elaborate(s->program, s->arena, &r);
        if (!out->run || !session_run_passes(s, &out->run, pipeline_forward)) return false;
    }
    return diag_n_errors(s->diag) == 0;
}

const Target *session_target(Session *s) {
    const char *name = cli_value(s->cli, "target");
    const Target *t = target_find(name ? name : "cpu");
    if (!t && !strcmp(name, "ref")) {
        diag_error(s->diag, (Span){0}, "target ref is for verify; a plan runs on cpu or interp");
    } else if (!t) {
        const char *known[16];
        int n = 0;
        while (targets[n] && n < 16) { known[n] = targets[n]->name; n++; }
        const char *near = did_you_mean(name, known, n);
        diag_error(s->diag, (Span){0}, "there is no target '%s'%s%s%s", name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    return t;
}

CompileOpts session_compile_opts(Session *s) {
    return (CompileOpts){.cpu = cli_value(s->cli, "target-cpu"), .waves = s->settings ? s->settings->train.waves : 1, .machine = s->machine};
}

int session_threads(Session *s, bool *ok) {
    const char *text = cli_value(s->cli, "threads");
    *ok = true;
    if (!text) return 0;
    char *end;
    long n = strtol(text, &end, 10);
    if (*end || n < 1 || n > 1024) {
        diag_error(s->diag, (Span){0}, "--threads is a number from 1 to 1024, not '%s'", text);
        *ok = false;
    }
    return (int)n;
}

static bool compile(Session *s, Graph *const *programs, int n, const char *info_json) {
    const Target *t = session_target(s);
    if (!t) return false;
    CompileOpts o = session_compile_opts(s);
    o.info_json = info_json;
    s->compiled = t->compile(programs, n, &o, s->diag);
    if (!s->compiled) return false;
    const RtPlan *plan = compiled_plan(s->compiled);
    int n_kernels = (int)plan->kernels.n;
    s->kernel = arena_array(s->arena, RtKernelFn *, n_kernels + 1);
    for (int i = 0; i < n_kernels; i++) s->kernel[i] = compiled_kernel(s->compiled, i);
    return true;
}

RtStatus session_open_plan(const Session *s, int threads, RtPlanInstance **out, RtError *e) {
    return rt_plan_open(compiled_plan(s->compiled), s->kernel, threads, out, e);
}

bool session_compile(Session *s, Graph *const *programs, int n, const char *info_json, int threads) {
    if (!compile(s, programs, n, info_json)) return false;
    RtError e = {0};
    if (session_open_plan(s, threads, &s->plan, &e) == RT_OK) return true;
    diag_error(s->diag, (Span){0}, "%s", e.text);
    return false;
}

bool session_code(Session *s, Graph *const *programs, int n) {
    char *json = session_json(s);
    bool ok = compile(s, programs, n, json);
    free(json);
    return ok;
}

bool session_start(Session *s, Graph *const *programs, int n) {
    bool ok;
    int threads = session_threads(s, &ok);
    if (!ok) return false;
    char *json = session_json(s);
    ok = session_compile(s, programs, n, json, threads);
    free(json);
    return ok;
}

// ---- settings as JSON -------------------------------------------------------------------------------------

static void set_quantity(json_t *o, const char *key, Quantity q) {
    if (!q.unit) return;
    json_object_set_new(o, key, json_pack("{s:f, s:o}", "value", q.value, "unit", json_sprintf("%ss", q.unit)));
}

static const char *absolute(Session *s, const char *path, bool from_command_line) {
    if (path[0] == '/') return path;
    char real[PATH_MAX];
    const char *joined = from_command_line ? path : arena_printf(s->arena, "%s/%s", s->base_dir, path);
    if (realpath(joined, real)) return arena_strdup(s->arena, real);
    if (joined[0] == '/' || !getcwd(real, sizeof real)) return joined;
    return arena_printf(s->arena, "%s/%s", real, joined);
}

static json_t *source_json(Session *s, const Source *source) {
    json_t *args = json_array();
    for (int i = 0; i < source->n_paths; i++)
        json_array_append_new(args, json_string(absolute(s, source->path[i], source->from_command_line)));
    return json_pack("{s:s, s:o}", "kind", source->kind, "args", args);
}

int64_t session_parameters(Session *s, int64_t *active) {
    int n;
    const ParamInfo *p = program_params(s->program, &n);
    int64_t total = 0;
    *active = 0;
    for (int i = 0; p && i < n; i++) {
        total += p[i].elements;
        *active += p[i].active;
    }
    return total;
}

// The input that ids come from, through reshapes and a select that sets some of them aside.  NULL: none.
static const Node *ids_from(const Value *v) {
    while (v->node->op == OP_RESHAPE || v->node->op == OP_SELECT) v = v->node->in[v->node->op == OP_SELECT];
    return v->node->op == OP_INPUT ? v->node : NULL;
}

// How many ids the model has room for: the least of the rows of tables that tokens are looked up in and the logits
// that labels are chosen from.  0: it reads none.
static int64_t vocabulary(Session *s) {
    int n;
    int64_t least = 0;
    const ParamInfo *p = program_params(s->program, &n);
    if (!p || n == 0) return 0;
    for_each_node(p[0].node->graph, node) {
        const Node *input = node->op == OP_GATHER_ROWS || node->op == OP_TAKE ? ids_from(node->in[1]) : NULL;
        if (!input || (strcmp(input->attr.name, "tokens") && strcmp(input->attr.name, "labels"))) continue;
        const Type *of = &node->in[0]->type;
        Dim room = of->dim[node->op == OP_TAKE ? of->ndim - 1 : 0];
        if (!room.sym && (!least || room.n < least)) least = room.n;
    }
    return least;
}

// The text of every imported file, by its name: a checkpoint is read without them.
static json_t *imported_files(Session *s) {
    int n;
    const Module *const *m = program_modules(s->program, &n);
    json_t *files = json_object();
    for (int i = 0; i < n; i++) {
        size_t bytes;
        const char *text = diag_file_text(s->diag, m[i]->file, &bytes);
        if (m[i] != program_main(s->program))
            json_object_set_new(files, program_file_name(s->program, m[i]), json_stringn(text, bytes));
    }
    return files;
}

char *session_json(Session *s) {
    const Settings *t = s->settings;
    json_t *train = json_object(), *data = json_object(), *parallel = json_object(), *gen = json_object(), *sets = json_array();
    json_object_set_new(train, "batch", json_integer(t->train.batch));
    json_object_set_new(train, "sequence", json_integer(t->train.sequence));
    set_quantity(train, "length", t->train.length);
    set_quantity(train, "stop", t->train.stop);
    set_quantity(train, "eval_every", t->train.eval_every);
    set_quantity(train, "save_every", t->train.save_every);
    json_object_set_new(train, "lr", json_real(t->train.lr));
    json_t *schedule = json_object();
    json_object_set_new(schedule, "kind", json_string(t->train.schedule.kind));
    set_quantity(schedule, "warmup", t->train.schedule.warmup);
    set_quantity(schedule, "length", t->train.schedule.length);
    set_quantity(schedule, "decay", t->train.schedule.decay);
    json_object_set_new(schedule, "floor", json_real(t->train.schedule.floor));
    if (t->train.schedule.shape) json_object_set_new(schedule, "shape", json_string(t->train.schedule.shape));
    json_object_set_new(train, "schedule", schedule);
    json_object_set_new(train, "optimizer", json_pack("{s:s, s:f, s:f}", "kind", t->train.optimizer.kind, "beta1",
                                                     t->train.optimizer.beta1, "beta2", t->train.optimizer.beta2));
    json_object_set_new(train, "average", json_string(t->train.average));
    json_object_set_new(train, "seed", json_integer(t->train.seed));
    json_object_set_new(train, "keep", json_integer(t->train.keep));

    if (t->data.source.kind) json_object_set_new(data, "source", source_json(s, &t->data.source));
    if (t->data.tokenizer_path)
        json_object_set_new(data, "tokenizer", json_pack("{s:s, s:[s]}", "kind", t->data.tokenizer, "args",
                                                        absolute(s, t->data.tokenizer_path, t->data.tokenizer_from_command_line)));
    else json_object_set_new(data, "tokenizer", json_string(t->data.tokenizer));
    json_object_set_new(data, "held_out", json_real(t->data.held_out));
    json_object_set_new(data, "shuffle", json_boolean(t->data.shuffle));
    if (t->data.end >= 0) json_object_set_new(data, "end", json_integer(t->data.end));
    if (t->data.pad >= 0) json_object_set_new(data, "pad", json_integer(t->data.pad));

    json_object_set_new(parallel, "placement", json_string(t->parallel.placement));
    set_quantity(parallel, "rebalance", t->parallel.rebalance);
    set_quantity(parallel, "rebalance_window", t->parallel.rebalance_window);
    json_object_set_new(parallel, "rebalance_groups", json_integer(t->parallel.rebalance_groups));
    json_object_set_new(parallel, "rebalance_gain", json_real(t->parallel.rebalance_gain));

    json_object_set_new(gen, "max_tokens", json_integer(t->generate.max_tokens));
    json_object_set_new(gen, "temperature", json_real(t->generate.temperature));
    if (t->generate.top_k) json_object_set_new(gen, "top_k", json_integer(t->generate.top_k));
    json_object_set_new(gen, "top_p", json_real(t->generate.top_p));
    json_object_set_new(gen, "min_p", json_real(t->generate.min_p));
    json_object_set_new(gen, "repetition", json_real(t->generate.repetition));
    json_t *eos = json_array(), *stop = json_array();
    for (int i = 0; i < t->generate.eos.n; i++) json_array_append_new(eos, json_integer(t->generate.eos.at[i]));
    for (int i = 0; i < t->generate.stop.n; i++) json_array_append_new(stop, json_string(t->generate.stop.at[i]));
    json_object_set_new(gen, "eos", eos);
    json_object_set_new(gen, "stop", stop);
    if (t->generate.start >= 0) json_object_set_new(gen, "start", json_integer(t->generate.start));
    json_object_set_new(gen, "seed", json_integer(t->generate.seed));

    for (int i = 0; i < s->sets.n; i++)
        if (!set_is_layout(s->sets.at[i])) json_array_append_new(sets, json_string(s->sets.at[i]));
    int64_t active, total = session_parameters(s, &active);
    size_t n;
    const char *text_of_model = diag_file_text(s->diag, program_main(s->program)->file, &n);
    json_t *root = json_pack("{s:{s:s, s:s, s:s%, s:o, s:I, s:I, s:I}, s:o, s:o, s:o, s:o, s:o}", "model", "name", program_model_name(s->program), "file",
                             program_main(s->program)->path, "text", text_of_model, n, "imports", imported_files(s), "parameters", (json_int_t)total, "active",
                             (json_int_t)active, "vocabulary", (json_int_t)vocabulary(s), "sets", sets, "train", train, "data", data, "parallel", parallel,
                             "generate", gen);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    return text;
}
