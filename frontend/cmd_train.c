// train, eval, generate: the same through the JIT that an ahead-of-time trainer does.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/cmd_machine.h"
#include "frontend/cmd_ranks.h"
#include "frontend/cmd_session.h"
#include "frontend/cmd_weights.h"
#include "ir/base/str.h"
#include "runtime/checkpoint.h"
#include "runtime/eval.h"
#include "runtime/exec.h"
#include "runtime/generate.h"
#include "runtime/trace.h"
#include "runtime/train.h"

static int fail(Session *s, const RtError *e) {
    int status = rt_exit_status(e->code);
    if (e->code == RT_STOPPED) fprintf(stderr, "moec: %s\n", e->text);
    else diag_error(s->diag, (Span){0}, "%s", e->text);
    session_close(s);
    int told = cli_finish(s->cli, status);
    return e->code == RT_STOPPED ? status : told;
}

static int give_up(Session *s) {
    session_close(s);
    return cli_finish(s->cli, EXIT_WRONG);
}

static const char *code_line(Session *s) {
    CompileStats c = compiled_stats(s->compiled);
    return arena_printf(s->arena, "%d kernels: %d compiled, %d from the cache%s in %.2f s", c.kernels, c.compiled, c.cached,
                        c.reference ? arena_printf(s->arena, ", %d by reference,", c.reference) : "", c.seconds);
}

static RtStatus open_settings(Session *s, RtSettings **out, RtError *e) {
    char *json = session_json(s);
    RtStatus status = rt_settings_open(json, s->base_dir, out, e);
    free(json);
    return status;
}

static bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

// All --set that a checkpoint's settings were made with.
static int stored_sets(Arena *a, const char *settings, const char ***out) {
    json_t *json = settings ? json_loads(settings, 0, NULL) : NULL, *sets = json_object_get(json, "sets");
    *out = arena_array(a, const char *, json_array_size(sets) + 1);
    int n = 0;
    for (size_t i = 0; i < json_array_size(sets); i++) {
        const char *text = json_string_value(json_array_get(sets, i));
        if (text) (*out)[n++] = arena_strdup(a, text);
    }
    json_decref(json);
    return n;
}

static bool same_sets(const Session *s, int n, const char *const *set) {
    int k = 0;
    for (int i = 0; i < s->sets.n; i++) {
        if (set_is_layout(s->sets.at[i])) continue;
        if (k == n || strcmp(set[k++], s->sets.at[i]) != 0) return false;
    }
    return k == n;
}

// A run that can't be gone on with was most often begun with other --set: says with which.
static void tell_sets(Session *s, const char *run) {
    char *dir;
    RtCkptInfo info = {0};
    if (rt_ckpt_find(run, &dir, NULL, NULL) != RT_OK) return;
    const char **set = NULL;
    int n = rt_ckpt_info(dir, &info, NULL) == RT_OK ? stored_sets(s->arena, info.settings, &set) : 0;
    rt_ckpt_free(&info);
    free(dir);
    if (same_sets(s, n, set)) return;
    Str text = {.arena = s->arena};
    for (int i = 0; i < n; i++) str_printf(&text, strpbrk(set[i], " ()[]\"'*") ? " --set '%s'" : " --set %s", set[i]);
    diag_help(s->diag, "it was begun with%s", n ? text.text : "out --set");
}

// ---- train --------------------------------------------------------------------------------------------------

typedef struct {
    Session s;
    Cli    *cli;
    Ranks   ranks;
    int     threads;
    bool    resume;
    const char *out;
} Training;

static bool may_write(Training *t) {
    if (!t->resume && file_exists(t->out))
        diag_error(t->s.diag, (Span){0}, "%s exists; --resume goes on with it, another --out begins anew", t->out);
    if (t->resume && !file_exists(t->out)) diag_error(t->s.diag, (Span){0}, "there is no run %s to resume", t->out);
    return diag_n_errors(t->s.diag) == 0;
}

// From the file to code.
static bool prepare(void *self) {
    Training *t = self;
    Session *s = &t->s;
    Cli *c = t->cli;
    if (!session_open(s, c, c->args.at[0], 0, NULL) || !session_can_train(s, t->ranks.n)) return false;
    if (!ranks_mesh(s, &t->ranks, &s->train.mesh) || !ranks_threads(s, &t->ranks, &t->threads)) return false;
    if (!s->settings->data.source.kind) {
        diag_error(c->diag, (Span){0}, "there is no data to train on: set data.source, for example --set 'data.source=text(\"book.txt\")'");
        return false;
    }
    t->out = cli_value(c, "out");
    if (!t->out) t->out = arena_printf(c->arena, "runs/%s", program_model_name(s->program));
    t->resume = cli_flag(c, "resume");
    if (!may_write(t)) return false;
    Programs p;
    return session_programs(s, WANT_TRAIN | WANT_EVAL, &p) && session_code(s, (Graph *[]){p.pass, p.update, p.eval}, 3);
}

static RtStatus train_rank(void *self, RtPlanInstance *p, RtError *e) { return rt_train(self, p, NULL, e); }

static RtStatus train(Training *t, RtError *e) {
    Session *s = &t->s;
    Cli *c = t->cli;
    RtSettings *settings;
    RT_TRY(open_settings(s, &settings, e));
    size_t n;
    const char *text = diag_file_text(c->diag, program_main(s->program)->file, &n);
    RtTrainOpts o = {.settings = settings, .run_dir = t->out, .resume = t->resume, .model_name = program_model_name(s->program),
                     .model_file = program_main(s->program)->path, .model_text = arena_strndup(c->arena, text, n),
                     .trace_path = cli_value(c, "trace"), .out = stderr, .quiet = c->quiet,
                     .limits = machine_limits(s->machine, t->threads), .startup = code_line(s)};
    RtStatus status = ranks_run(s, &t->ranks, t->threads, train_rank, &o, e);
    rt_settings_close(settings);
    return status;
}

int cmd_train(Cli *c) {
    Training t = {.cli = c, .s = {.cli = c, .arena = c->arena, .diag = c->diag}};
    if (!ranks_open(c, &t.ranks) || !ranks_in_turn(&t.ranks, c->diag, prepare, &t)) {
        ranks_close(&t.ranks);
        return give_up(&t.s);
    }
    RtError e = {0};
    RtStatus status = train(&t, &e);
    bool tells = rt_rank(t.ranks.among) == 0;            // every rank has the same to say
    ranks_close(&t.ranks);
    if (status == RT_OK) {
        session_close(&t.s);
        return cli_finish(c, EXIT_DONE);
    }
    if (!tells) {
        session_close(&t.s);
        return rt_exit_status(e.code);
    }
    if (t.resume && (status == RT_BAD_FILE || status == RT_BAD_SETTING)) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        tell_sets(&t.s, t.out);
        return give_up(&t.s);
    }
    return fail(&t.s, &e);
}

// ---- what was trained before ----------------------------------------------------------------------------------

// Opens what eval and generate are given: a run or checkpoint (its own copy of the model and settings), or a Hugging
// Face directory.  *hf: the weights are read through `weights hf`.  settings: what was in force, with --set over it.
static bool open_trained(Session *s, Cli *c, const char *path, const char **ckpt, bool *hf, RtSettings **settings) {
    RtError e = {0};
    *settings = NULL;
    *ckpt = NULL;
    *hf = file_exists(arena_printf(c->arena, "%s/config.json", path));
    if (!file_exists(path)) {
        *s = (Session){.cli = c, .arena = c->arena, .diag = c->diag};
        diag_error(c->diag, (Span){0}, "%s: %s", path, strerror(errno));
        return false;
    }
    if (*hf) {
        if (!weights_open_model(s, c, path)) return false;
        for (int i = 0; i < c->sets.n; i++) vec_push(s->arena, &s->sets, c->sets.at[i]);
        if (!session_settle(s)) return false;
        if (open_settings(s, settings, &e) == RT_OK) return true;
        diag_error(c->diag, (Span){0}, "%s", e.text);
        return false;
    }
    *s = (Session){.cli = c, .arena = c->arena, .diag = c->diag};
    char *dir;
    int skipped = 0;
    RtCkptInfo info = {0};
    if (rt_ckpt_find(path, &dir, &skipped, &e) != RT_OK || rt_ckpt_info(dir, &info, &e) != RT_OK) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        return false;
    }
    if (skipped) fprintf(stderr, "moec: %d newer checkpoint%s damaged or incomplete; using %s\n", skipped, skipped == 1 ? " is" : "s are", dir);
    *ckpt = arena_strdup(c->arena, dir);
    free(dir);
    const char **set;
    int n_sets = 0, n_stored = stored_sets(c->arena, info.settings, &set);
    for (int i = 0; i < n_stored; i++)
        if (strncmp(set[i], "data.", 5) != 0) set[n_sets++] = set[i];
    json_t *json = info.settings ? json_loads(info.settings, 0, NULL) : NULL;
    json_t *imports = json_object_get(json_object_get(json, "model"), "imports"), *import;
    GivenFile *file = arena_array(c->arena, GivenFile, json_object_size(imports) + 1);
    int n_files = 0;
    const char *name;
    json_object_foreach(imports, name, import) {
        size_t n = json_string_length(import);
        file[n_files++] = (GivenFile){arena_strdup(c->arena, name), arena_strndup(c->arena, json_string_value(import), n), n};
    }
    json_decref(json);
    bool ok = session_open_stored(s, c, arena_printf(c->arena, "%s/model.moe", *ckpt), n_files, file, n_sets, set);
    if (ok && rt_settings_open(info.settings, NULL, settings, &e) != RT_OK) {
        diag_error(c->diag, (Span){0}, "%s: %s", *ckpt, e.text);
        ok = false;
    }
    for (int i = 0; ok && i < c->sets.n; i++) {
        const char *set_text = c->sets.at[i];
        bool block = !strncmp(set_text, "train.", 6) || !strncmp(set_text, "data.", 5) || !strncmp(set_text, "generate.", 9);
        bool fixed = !strncmp(set_text, "generate.context", 16) || !strncmp(set_text, "generate.batch_tokens", 21) ||
                     !strncmp(set_text, "generate.dropless", 17) || !strncmp(set_text, "generate.mla", 12) ||
                     !strncmp(set_text, "generate.dtype", 14);
        if (block && !fixed && rt_settings_set(*settings, set_text, &e) != RT_OK) {
            diag_error(c->diag, (Span){0}, "--set %s: %s", set_text, e.text);
            ok = false;
        }
    }
    rt_ckpt_free(&info);
    return ok;
}

static bool load_trained(Session *s, const char *path, const char *ckpt, bool hf) {
    if (hf) return weights_load(s, path);
    RtError e = {0};
    if (rt_ckpt_load_weights(ckpt, s->plan, &e) == RT_OK) return true;
    diag_error(s->diag, (Span){0}, "%s", e.text);
    return false;
}

int cmd_eval(Cli *c) {
    Session s;
    RtSettings *settings;
    const char *ckpt, *path = c->args.at[0];
    bool hf;
    Programs p;
    if (!open_trained(&s, c, path, &ckpt, &hf, &settings)) return give_up(&s);
    if (!settings->source.kind) {
        diag_error(c->diag, (Span){0}, "there is no text to evaluate on: --set 'data.source=text(\"book.txt\")'");
        return give_up(&s);
    }
    if (!session_programs(&s, WANT_EVAL, &p) || !session_start(&s, (Graph *[]){p.eval}, 1)) return give_up(&s);
    if (!load_trained(&s, path, ckpt, hf)) return give_up(&s);
    RtError e = {0};
    RtTokenizer *tokenizer = NULL;
    RtData *data = NULL;
    RtEvalResult result;
    const RtTensor *tokens = rt_tensor(s.plan, "tokens");
    RtStatus status = rt_open_tokenizer(settings, &tokenizer, &e);
    if (status == RT_OK) status = rt_data_open(settings, tokens->dim[tokens->ndim - 1], tokenizer, NULL, &data, &e);
    if (status == RT_OK) status = rt_eval(s.plan, data, settings->seed, 0, &result, &e);
    if (status == RT_OK) rt_eval_print(&result, stdout);
    rt_data_close(data);
    rt_tokenizer_close(tokenizer);
    rt_settings_close(settings);
    if (status != RT_OK) return fail(&s, &e);
    session_close(&s);
    return cli_finish(c, EXIT_DONE);
}

static const char *prompt_text(Cli *c) {
    const char *prompt = cli_value(c, "prompt");
    if (!prompt) return "";
    return strcmp(prompt, "-") ? prompt : read_file(c->arena, "/dev/stdin", NULL);
}

enum { TRACED_RUNS = 9 };          // the prompt and eight tokens

int cmd_generate(Cli *c) {
    Session s;
    RtSettings *settings;
    const char *ckpt, *path = c->args.at[0];
    bool hf;
    Programs p;
    if (!open_trained(&s, c, path, &ckpt, &hf, &settings)) return give_up(&s);
    if (!session_programs(&s, WANT_RUN, &p) || !session_start(&s, (Graph *[]){p.run}, 1)) return give_up(&s);
    if (!load_trained(&s, path, ckpt, hf)) return give_up(&s);
    RtError e = {0};
    RtTokenizer *tokenizer = NULL;
    const char *prompt = prompt_text(c);
    if (!prompt) {
        diag_error(c->diag, (Span){0}, "standard input: %s", strerror(errno));
        return give_up(&s);
    }
    RtGenerateResult result = {0};
    const char *trace = cli_value(c, "trace");
    bool ok;
    int threads = session_threads(&s, &ok);          // ok: the plan was opened with them
    RtStatus status = rt_open_tokenizer(settings, &tokenizer, &e);
    if (status == RT_OK && trace) status = rt_trace_begin(s.plan, TRACED_RUNS, &e);
    if (status == RT_OK) {
        if (isatty(1) && !c->quiet) fputs(prompt, stdout);
        status = rt_generate(s.plan, tokenizer, settings, prompt, stdout, &result, &e);
    }
    if (status == RT_OK && trace) {
        RtLimits limits = machine_limits(s.machine, threads);
        status = rt_trace_write(s.plan, &limits, trace, &e);
    }
    if (status == RT_OK) {
        putchar('\n');
        fflush(stdout);
        if (!c->quiet)
            fprintf(stderr, "%lld tokens in %.2f s (%.0f tokens/s) after a prompt of %lld; ended by %s\n", (long long)result.tokens,
                    result.seconds, result.seconds > 0 ? (double)result.tokens / result.seconds : 0.0, (long long)result.prompt_tokens, result.why);
    }
    rt_tokenizer_close(tokenizer);
    rt_settings_close(settings);
    if (status != RT_OK) return fail(&s, &e);
    session_close(&s);
    return cli_finish(c, EXIT_DONE);
}
