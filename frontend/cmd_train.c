// train, eval, generate: the same through the JIT that an ahead-of-time trainer does.
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/cmd_dry_run.h"
#include "frontend/cmd_machine.h"
#include "frontend/cmd_ranks.h"
#include "frontend/cmd_session.h"
#include "frontend/cmd_supervise.h"
#include "frontend/cmd_weights.h"
#include "ir/base/str.h"
#include "runtime/checkpoint.h"
#include "runtime/eval.h"
#include "runtime/exec.h"
#include "runtime/generate.h"
#include "runtime/monitor.h"
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
                     .trace_path = cli_value(c, "trace"), .record_routes = cli_flag(c, "record-routes"), .out = stderr, .quiet = c->quiet,
                     .limits = machine_limits(s->machine, t->threads), .startup = code_line(s)};
    RtStatus status = ranks_run(s, &t->ranks, t->threads, train_rank, &o, e);
    rt_settings_close(settings);
    return status;
}

static int dry_run_here(Training *t) {
    RtError e = {0};
    RtSettings *settings = NULL;
    RtStatus s = open_settings(&t->s, &settings, &e);
    bool all_well = s == RT_OK && dry_run(&t->s, &t->ranks, settings, t->threads, t->out, t->resume, &e);
    rt_settings_close(settings);
    if (e.code) return fail(&t->s, &e);
    session_close(&t->s);
    return cli_finish(t->cli, all_well ? EXIT_DONE : EXIT_WRONG);
}

static int train_and_tell(Training *t) {
    Cli *c = t->cli;
    if (!ranks_open(c, &t->ranks) || !ranks_find_link(&t->ranks, c->diag) || !ranks_in_turn(&t->ranks, c->diag, prepare, t)) return give_up(&t->s);
    if (cli_flag(c, "dry-run")) return dry_run_here(t);
    RtError e = {0};
    RtStatus status = train(t, &e);
    if (status == RT_OK) {
        session_close(&t->s);
        return cli_finish(c, EXIT_DONE);
    }
    if (rt_rank(t->ranks.among) != 0) {                  // every rank has the same to say
        session_close(&t->s);
        return rt_exit_status(e.code);
    }
    if (t->resume && (status == RT_BAD_FILE || status == RT_BAD_SETTING)) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        tell_sets(&t->s, t->out);
        return give_up(&t->s);
    }
    return fail(&t->s, &e);
}

static int train_here(Cli *c) {
    Training t = {.cli = c, .s = {.cli = c, .arena = c->arena, .diag = c->diag}};
    int exit = train_and_tell(&t);
    ranks_close(&t.ranks);
    return exit;
}

int cmd_train(Cli *c) {
    if (supervise_is_asked(c)) return supervise(c);
    RtError e = {0};
    if (rt_monitor_open(&e) != RT_OK) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        return cli_finish(c, rt_exit_status(e.code));
    }
    int status = train_here(c);
    rt_monitor_close(status);
    return status;
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
    RtCkptSkipped skipped = {0};
    RtCkptInfo info = {0};
    if (rt_ckpt_find(path, &dir, &skipped, &e) != RT_OK || rt_ckpt_info(dir, &info, &e) != RT_OK) {
        diag_error(c->diag, (Span){0}, "%s", e.text);
        return false;
    }
    if (skipped.n)
        fprintf(stderr, "moec: %d newer checkpoint%s damaged or incomplete (%s); using %s\n", skipped.n,
                skipped.n == 1 ? " is" : "s are", skipped.why, dir);
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
        bool fixed = !strncmp(set_text, "generate.context", 16) || !strncmp(set_text, "generate.batch", 14) ||
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

enum { MOST_SEQUENCES = 16 };      // of a run, unless generate.batch says more: their caches take memory

// What eval and generate have in common: from a path to programs, and to weights on every rank.
typedef struct {
    Session s;
    Cli    *cli;
    Ranks   ranks;
    int     threads, want;          // WANT_EVAL or WANT_RUN
    const char *path, *ckpt;
    bool    hf;
    int     n_requests;             // of generate
    RtSettings *settings;
    pthread_mutex_t matching;       // names of Hugging Face are matched in the session's arena
} Trained;

static bool prepare_trained(void *self) {
    Trained *t = self;
    Session *s = &t->s;
    Programs p;
    bool eval = t->want == WANT_EVAL;
    if (!open_trained(s, t->cli, t->path, &t->ckpt, &t->hf, &t->settings)) return false;
    if (eval && !t->settings->source.kind) {
        diag_error(s->diag, (Span){0}, "there is no text to evaluate on: --set 'data.source=text(\"book.txt\")'");
        return false;
    }
    if (!ranks_mesh_to_read(s, &t->ranks, eval, &s->train.mesh) || !ranks_moves_to_read(s, t->settings)) return false;
    if (eval && t->settings->rebalance.value > 0) {
        diag_error(s->diag, (Span){0}, "parallel.rebalance: eval goes through its text once, with experts where they are");
        return false;
    }
    if (!ranks_threads(s, &t->ranks, &t->threads)) return false;
    int data_ranks = rt_group_size(s->train.mesh, RT_GROUP_DATA), each = (t->n_requests + data_ranks - 1) / data_ranks;
    s->batch = each < MOST_SEQUENCES ? each : MOST_SEQUENCES;
    return session_programs(s, t->want, &p) && session_code(s, (Graph *[]){eval ? p.eval : p.run}, 1);
}

static bool trained_begin(Trained *t, Cli *c, int want) {
    *t = (Trained){.s = {.cli = c, .arena = c->arena, .diag = c->diag}, .cli = c, .want = want, .path = c->args.at[0]};
    pthread_mutex_init(&t->matching, NULL);
    return ranks_open(c, &t->ranks);
}

static bool trained_open(Trained *t) { return ranks_in_turn(&t->ranks, t->cli->diag, prepare_trained, t); }

// What this rank holds of the weights.
static RtStatus load_trained(Trained *t, RtPlanInstance *p, RtError *e) {
    RtStatus status = RT_OK;
    if (p->ranks) RT_TRY(rt_agree(p->ranks, rt_slots_begin(p->ranks->table, p->plan, t->settings->placement, t->settings->seed, e), e));
    if (!t->hf) {
        status = rt_ckpt_load_weights(t->ckpt, p, e);
    } else {
        pthread_mutex_lock(&t->matching);
        bool ok = diag_n_errors(t->s.diag) == 0 && weights_load(&t->s, p, t->path);
        pthread_mutex_unlock(&t->matching);
        if (!ok) status = rt_fail(e, RT_BAD_FILE, "the weights of %s can't be taken", t->path);
    }
    RT_TRY(rt_agree(p->ranks, status, e));
    if (!p->ranks) return RT_OK;
    RtCommFact fact[] = {{"the program", p->plan->graph_hash}, {"generate.seed", t->settings->generate_seed}};
    return rt_comm_same(p->ranks->comm, fact, sizeof fact / sizeof *fact, e);
}

static int trained_tell(Trained *t, RtStatus status, const RtError *e) {
    if (diag_n_errors(t->s.diag)) return give_up(&t->s);
    if (status != RT_OK && *e->text && rt_rank(t->ranks.among) == 0) return fail(&t->s, e);      // every rank has the same to say
    session_close(&t->s);
    return status == RT_OK ? cli_finish(t->cli, EXIT_DONE) : rt_exit_status(status);
}

static int trained_close(Trained *t, RtStatus status, const RtError *e) {
    rt_settings_close(t->settings);
    pthread_mutex_destroy(&t->matching);
    int exit = trained_tell(t, status, e);
    ranks_close(&t->ranks);
    return exit;
}

// ---- eval ---------------------------------------------------------------------------------------------------

static RtStatus evaluate(Trained *t, RtPlanInstance *p, RtTokenizer **tokenizer, RtData **data, RtEvalResult *result, RtError *e) {
    const RtTensor *tokens = rt_tensor(p, "tokens");
    RT_TRY(load_trained(t, p, e));
    RtStatus status = rt_open_tokenizer(t->settings, tokenizer, e);
    if (status == RT_OK) status = rt_data_open(t->settings, tokens->dim[tokens->ndim - 1], *tokenizer, NULL, data, e);
    RT_TRY(rt_agree(p->ranks, status, e));
    status = rt_eval(p, *data, t->settings->seed, 0, result, e);
    if (status != RT_OK) rt_give_up(p->ranks, e);
    return status;
}

static RtStatus eval_rank(void *self, RtPlanInstance *p, RtError *e) {
    RtTokenizer *tokenizer = NULL;
    RtData *data = NULL;
    RtEvalResult result;
    RtStatus status = evaluate(self, p, &tokenizer, &data, &result, e);
    if (status == RT_OK && rt_rank(p->ranks) == 0) rt_eval_print(&result, stdout);
    rt_data_close(data);
    rt_tokenizer_close(tokenizer);
    return status;
}

int cmd_eval(Cli *c) {
    Trained t;
    RtError e = {0};
    RtStatus status = RT_BAD_SETTING;
    if (trained_begin(&t, c, WANT_EVAL) && trained_open(&t)) status = ranks_run(&t.s, &t.ranks, t.threads, eval_rank, &t, &e);
    return trained_close(&t, status, &e);
}

// ---- generate -----------------------------------------------------------------------------------------------

enum { TRACED_RUNS = 9 };          // the prompt and eight tokens

typedef struct {
    Trained t;
    RtRequest *request;
    int     n;
    bool    as_json;                // --prompts: a line for each
    const char *trace;
} Generating;

// Of the first rank, which alone has a standard input.  NULL after an error.
static const char *read_text(Generating *g, const char *path, size_t *bytes) {
    Cli *c = g->t.cli;
    RtRanks *among = g->t.ranks.among;
    RtError e = {0};
    int64_t n = -1;
    char *text = NULL;
    if (rt_rank(among) == 0) {
        text = (char *)read_file(c->arena, strcmp(path, "-") ? path : "/dev/stdin", bytes);
        if (text) n = (int64_t)*bytes;
        else diag_error(c->diag, (Span){0}, "%s: %s", strcmp(path, "-") ? path : "standard input", strerror(errno));
    }
    RtStatus status = rt_from_first(among, &n, sizeof n, &e);
    if (status == RT_OK && n >= 0 && !text) text = arena_array(c->arena, char, n + 1);
    if (status == RT_OK && n > 0) status = rt_from_first(among, text, n, &e);
    if (status != RT_OK) diag_error(c->diag, (Span){0}, "%s", e.text);
    *bytes = n > 0 ? (size_t)n : 0;
    return status == RT_OK ? text : NULL;
}

// A prompt a line.
static bool read_prompts(Generating *g, const char *path) {
    Cli *c = g->t.cli;
    size_t bytes;
    const char *text = read_text(g, path, &bytes);
    if (!text) return false;
    int lines = 1;
    for (const char *at = text; (at = strchr(at, '\n')); at++) lines++;
    g->request = arena_array(c->arena, RtRequest, lines + 1);
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, "\n");
        json_t *utf8 = json_stringn(at, n);
        if (!utf8) return diag_error(c->diag, (Span){0}, "%s: line %d is not UTF-8", path, g->n + 1), false;
        json_decref(utf8);
        g->request[g->n++].prompt = arena_strndup(c->arena, at, n);
        at += n + (at[n] == '\n');
    }
    if (!g->n) diag_error(c->diag, (Span){0}, "%s holds no prompt", path);
    return g->n > 0;
}

static bool open_requests(Generating *g, Cli *c) {
    const char *path = cli_value(c, "prompts");
    g->as_json = path != NULL;
    if (path && cli_value(c, "prompt")) return diag_error(c->diag, (Span){0}, "--prompt and --prompts: one of them"), false;
    if (path) return read_prompts(g, path);
    g->request = arena_array(c->arena, RtRequest, 1);
    const char *prompt = cli_value(c, "prompt");
    size_t bytes;
    g->request->prompt = !prompt ? "" : strcmp(prompt, "-") ? prompt : read_text(g, prompt, &bytes);
    g->n = 1;
    return g->request->prompt != NULL;
}

static char *json_line(const RtRequest *r, const char *text) {
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:s}", "prompt", r->prompt, "text", text, "prompt_tokens", (json_int_t)r->result.prompt_tokens,
                          "tokens", (json_int_t)r->result.tokens, "ended_by", r->result.why);
    char *line = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return line;
}

// The lines of all ranks, in the order of the prompts: rank i's are i, i + ranks, ..
static RtStatus print_lines(const Generating *g, RtRanks *ranks, const char *own, RtError *e) {
    int n = rt_n_ranks(ranks), n_data = rt_data_ranks(ranks);
    char *all;
    RT_TRY(rt_gather_texts(ranks, own, &all, e));
    if (rt_rank(ranks) == 0) {
        const char **at = calloc((size_t)n_data, sizeof *at), *text = all;
        for (int rank = 0; at && rank < n; rank++, text += strlen(text) + 1)
            if (*text) at[ranks ? rt_group_rank(ranks->mesh, RT_GROUP_DATA, rank) : 0] = text;
        for (int i = 0; at && i < g->n; i++) {
            const char **line = &at[i % n_data];
            int length = (int)strcspn(*line, "\n");
            printf("%.*s\n", length, *line);
            *line += length + 1;
        }
        free(at);
    }
    free(all);
    return RT_OK;
}

// Requests with memory to write to where several are answered; on ranks that only help to compute, nowhere.
static RtStatus answer(const Generating *g, RtPlanInstance *p, const RtTokenizer *tokenizer, RtRequest *request, char **text, RtRebalanced *moved,
                       RtError *e) {
    RtRanks *ranks = p->ranks;
    bool writes = !ranks || rt_group_rank(ranks->mesh, RT_GROUP_TP, ranks->rank) == 0;
    int first = rt_data_rank(ranks), step = rt_data_ranks(ranks);
    size_t *bytes = calloc((size_t)g->n, sizeof *bytes);
    RtStatus status = bytes ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for %d texts", g->n);
    for (int i = first; writes && i < g->n && status == RT_OK; i += step) {
        request[i].out = g->as_json ? open_memstream(&text[i], &bytes[i]) : stdout;
        if (!request[i].out) status = rt_fail(e, RT_NO_MEMORY, "no memory for a text");
    }
    status = rt_agree(ranks, status, e);
    if (status == RT_OK) status = rt_generate_all(p, tokenizer, g->t.settings, request, g->n, moved, e);
    for (int i = first; g->as_json && i < g->n; i += step)
        if (request[i].out) fclose(request[i].out);
    free(bytes);
    RT_TRY(status);
    if (!g->as_json) return RT_OK;
    Arena *a = arena_create();
    Str lines = {.arena = a};
    for (int i = first; writes && i < g->n; i += step) {
        char *line = json_line(&request[i], text[i]);
        str_printf(&lines, "%s\n", line ? line : "{}");
        free(line);
    }
    status = print_lines(g, ranks, lines.text, e);
    arena_destroy(a);
    return status;
}

static void tell_moves(const RtRebalanced *x) {
    if (!x->considered) return;
    fprintf(stderr, "busiest rank at %.2f of the mean load; ", x->before);
    if (x->experts)
        fprintf(stderr, "%lld experts moved, %.1f MB in %.0f ms: %.2f\n", (long long)x->experts, (double)x->bytes / 1e6, 1e3 * x->seconds, x->after);
    else fprintf(stderr, "to move experts would not pay\n");
}

static RtStatus tell(const Generating *g, const RtRanks *ranks, const RtRequest *request, double seconds, RtError *e) {
    int64_t tokens = 0;
    bool counts = !ranks || rt_group_rank(ranks->mesh, RT_GROUP_TP, ranks->rank) == 0;
    for (int i = rt_data_rank(ranks); counts && i < g->n; i += rt_data_ranks(ranks)) tokens += request[i].result.tokens;
    if (g->as_json) RT_TRY(rt_sum((RtRanks *)ranks, &tokens, e));
    if (rt_rank(ranks) != 0 || g->t.cli->quiet) return RT_OK;
    const RtGenerateResult *r = &request[0].result;
    if (!g->as_json) {
        putchar('\n');
        fflush(stdout);
        fprintf(stderr, "%lld tokens in %.2f s (%.0f tokens/s) after a prompt of %lld; ended by %s\n", (long long)r->tokens,
                r->seconds, r->seconds > 0 ? (double)r->tokens / r->seconds : 0.0, (long long)r->prompt_tokens, r->why);
        return RT_OK;
    }
    fflush(stdout);
    fprintf(stderr, "%lld tokens for %d prompt%s in %.2f s (%.0f tokens/s)\n", (long long)tokens, g->n, g->n == 1 ? "" : "s", seconds,
            seconds > 0 ? (double)tokens / seconds : 0.0);
    return RT_OK;
}

static RtStatus generate(Generating *g, RtPlanInstance *p, RtTokenizer **tokenizer, RtRequest *request, char **text, RtError *e) {
    bool first = rt_rank(p->ranks) == 0;
    RT_TRY(load_trained(&g->t, p, e));
    RtStatus status = rt_open_tokenizer(g->t.settings, tokenizer, e);
    if (status == RT_OK && g->trace && first) status = rt_trace_begin(p, TRACED_RUNS, e);
    RT_TRY(rt_agree(p->ranks, status, e));
    if (first && !g->as_json && isatty(1) && !g->t.cli->quiet) fputs(request[0].prompt, stdout);
    int64_t begin_ns = rt_now_ns();
    RtRebalanced moved;
    RT_TRY(answer(g, p, *tokenizer, request, text, &moved, e));
    double seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
    if (g->trace && first) {
        RtLimits limits = machine_limits(g->t.s.machine, g->t.threads);
        RT_TRY(rt_trace_write(p, &limits, g->trace, e));
    }
    RT_TRY(tell(g, p->ranks, request, seconds, e));
    if (first && !g->t.cli->quiet) tell_moves(&moved);
    return RT_OK;
}

static RtStatus generate_rank(void *self, RtPlanInstance *p, RtError *e) {
    Generating *g = self;
    RtTokenizer *tokenizer = NULL;
    RtRequest *request = calloc((size_t)g->n, sizeof *request);
    char **text = calloc((size_t)g->n, sizeof *text);
    RtStatus status = request && text ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for %d prompts", g->n);
    status = rt_agree(p->ranks, status, e);
    if (status == RT_OK) {
        memcpy(request, g->request, sizeof *request * (size_t)g->n);
        status = generate(g, p, &tokenizer, request, text, e);
        if (status != RT_OK) rt_give_up(p->ranks, e);
    }
    for (int i = 0; text && i < g->n; i++) free(text[i]);
    free(text);
    free(request);
    rt_tokenizer_close(tokenizer);
    return status;
}

int cmd_generate(Cli *c) {
    Generating g = {.trace = cli_value(c, "trace")};
    RtError e = {0};
    RtStatus status = RT_BAD_SETTING;
    bool ok = trained_begin(&g.t, c, WANT_RUN) && open_requests(&g, c);
    g.t.n_requests = g.n;
    ok = ok && trained_open(&g.t);
    if (ok) status = ranks_run(&g.t.s, &g.t.ranks, g.t.threads, generate_rank, &g, &e);
    return trained_close(&g.t, status, &e);
}
