// The main program of an executable built ahead of time: the plan and its kernels are linked in.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/checkpoint.h"
#include "runtime/eval.h"
#include "runtime/exec.h"
#include "runtime/generate.h"
#include "runtime/train.h"

extern const unsigned char moec_plan[];         // the block
extern RtKernelFn *const moec_kernels[];        // one per kernel of the plan

enum { DONE = 0, WRONG = 1, USAGE = 2, MAX_SETS = 256 };

typedef struct {
    const char *command, *out, *run, *prompt, *trace, *init_from;
    const char *set[MAX_SETS];
    int  n_sets, threads;
    bool resume, quiet, help;
} Options;

typedef struct {
    const RtPlan *plan;
    json_t *info;                               // what the compiler left
    RtPlanInstance *p;
    RtSettings *settings;
    RtTokenizer *tokenizer;
    RtData *data;
} Program;

static const char usage[] =
    "usage: %s train --out DIR [--resume] [--init-from CHECKPOINT] [--trace FILE] [--set KEY=VALUE].. "
    "[--threads N] [--quiet]\n"
    "       %s eval RUN|CHECKPOINT [--set KEY=VALUE].. [--threads N]\n"
    "       %s generate RUN|CHECKPOINT --prompt TEXT [--set KEY=VALUE].. [--threads N]\n"
    "Settings: train.lr, .length, .stop, .schedule, .seed, .eval_every, .save_every, .keep; data.*; "
    "generate.*.\n"
    "Exit status: 0 done; 1 the run or a file is wrong; 2 the command line is wrong; 75 stopped by a signal "
    "after saving.\n";

static int wrong_usage(const char *name, const char *what, const char *word) {
    fprintf(stderr, "%s: %s%s; --help tells more\n", name, what, word ? word : "");
    return USAGE;
}

// The value of an option, from --name=value or the next word; NULL: this is another option.
static const char *value_of(const char *option, char **argv, int *i, int argc) {
    size_t n = strlen(option);
    if (strncmp(argv[*i], option, n) != 0) return NULL;
    if (argv[*i][n] == '=') return argv[*i] + n + 1;
    if (argv[*i][n] || *i + 1 >= argc) return NULL;
    return argv[++*i];
}

static int read_options(int argc, char **argv, Options *o) {
    for (int i = 1; i < argc; i++) {
        const char *v;
        if (!strcmp(argv[i], "--resume")) o->resume = true;
        else if (!strcmp(argv[i], "--quiet")) o->quiet = true;
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return o->help = true, DONE;
        else if ((v = value_of("--out", argv, &i, argc))) o->out = v;
        else if ((v = value_of("--prompt", argv, &i, argc))) o->prompt = v;
        else if ((v = value_of("--trace", argv, &i, argc))) o->trace = v;
        else if ((v = value_of("--init-from", argv, &i, argc))) o->init_from = v;
        else if ((v = value_of("--threads", argv, &i, argc))) {
            char *end;
            long n = strtol(v, &end, 10);
            if (*end || n < 1 || n > 1024)
                return wrong_usage(argv[0], "--threads is a number from 1 to 1024, not ", v);
            o->threads = (int)n;
        }
        else if ((v = value_of("--set", argv, &i, argc))) {
            if (o->n_sets == MAX_SETS) return wrong_usage(argv[0], "too many --set", NULL);
            o->set[o->n_sets++] = v;
        } else if (argv[i][0] == '-') return wrong_usage(argv[0], "unknown or incomplete option ", argv[i]);
        else if (!o->command) o->command = argv[i];
        else if (!o->run) o->run = argv[i];
        else return wrong_usage(argv[0], "one argument too many: ", argv[i]);
    }
    if (!o->command) return wrong_usage(argv[0], "which command? train, eval or generate", NULL);
    bool trains = !strcmp(o->command, "train");
    if (!trains && strcmp(o->command, "eval") != 0 && strcmp(o->command, "generate") != 0)
        return wrong_usage(argv[0], "there is no command ", o->command);
    if (trains && o->run && !o->out) o->out = o->run;
    if (trains && !o->out) return wrong_usage(argv[0], "train needs --out DIR", NULL);
    if (!trains && !o->run) return wrong_usage(argv[0], o->command, " needs a run or a checkpoint");
    return DONE;
}

static const char *info_text(const Program *g, const char *key) {
    return json_string_value(json_object_get(json_object_get(g->info, "model"), key));
}

// What a checkpoint remembers of data and tokenizer stands above what was built in, --set above both.
static RtStatus open_settings(Program *g, const Options *o, const char *dir, RtError *e) {
    RtCkptInfo c = {.owned = false};
    if (dir) RT_TRY(rt_ckpt_info(dir, &c, e));
    RtStatus s =
        rt_settings_open(c.settings ? c.settings : RT_TEXT(g->plan, g->plan->info), NULL, &g->settings, e);
    rt_ckpt_free(&c);
    // the model's text has its own place in checkpoints
    if (s == RT_OK) json_object_del(json_object_get(g->settings->json, "model"), "text");
    for (int i = 0; i < o->n_sets && s == RT_OK; i++) s = rt_settings_set(g->settings, o->set[i], e);
    return s;
}

static RtStatus open_program(Program *g, const Options *o, RtError *e) {
    g->plan = (const RtPlan *)(const void *)moec_plan;
    RT_TRY(rt_plan_open(g->plan, moec_kernels, o->threads, &g->p, e));
    g->info = json_loads(RT_TEXT(g->plan, g->plan->info), 0, NULL);
    if (!strcmp(o->command, "train")) return open_settings(g, o, NULL, e);
    char *dir;
    RtCkptSkipped skipped;
    RT_TRY(rt_ckpt_find(o->run, &dir, &skipped, e));
    if (skipped.n) fprintf(stderr, "passing over %d damaged checkpoint(s): %s\n", skipped.n, skipped.why);
    RtStatus s = open_settings(g, o, dir, e);
    if (s == RT_OK) s = rt_init(g->p, g->settings->seed, e);
    if (s == RT_OK) s = rt_ckpt_load_weights(dir, g->p, e);
    free(dir);
    RT_TRY(s);
    return rt_open_tokenizer(g->settings, &g->tokenizer, e);
}

static void close_program(Program *g) {
    rt_data_close(g->data);
    rt_tokenizer_close(g->tokenizer);
    rt_settings_close(g->settings);
    rt_plan_close(g->p);
    json_decref(g->info);
}

static RtStatus train(Program *g, const Options *o, RtError *e) {
    RtTrainOpts t = {.settings = g->settings,
                     .run_dir = o->out,
                     .resume = o->resume,
                     .init_from = o->init_from,
                     .model_name = info_text(g, "name"),
                     .model_file = info_text(g, "file"),
                     .model_text = info_text(g, "text"),
                     .trace_path = o->trace,
                     .out = stderr,
                     .quiet = o->quiet,
                     .startup = "kernels: built in"};
    return rt_train(&t, g->p, NULL, e);
}

static RtStatus eval(Program *g, RtError *e) {
    const RtTensor *tokens = rt_tensor(g->p, "tokens");
    if (!tokens || tokens->ndim != 3)
        return rt_fail(e, RT_BAD_PLAN, "the plan has no input tokens to evaluate with");
    RT_TRY(rt_data_open(g->settings, tokens->dim[2], g->tokenizer, NULL, &g->data, e));
    RtEvalResult r;
    RT_TRY(rt_eval(g->p, g->data, g->settings->seed, 0, &r, e));
    rt_eval_print(&r, stdout);
    return RT_OK;
}

static RtStatus generate(Program *g, const Options *o, RtError *e) {
    RtGenerateResult r;
    RT_TRY(rt_generate(g->p, g->tokenizer, g->settings, o->prompt ? o->prompt : "", stdout, &r, e));
    putchar('\n');
    fflush(stdout);
    if (!o->quiet)
        fprintf(stderr, "%lld tokens in %.2f s after a prompt of %lld; ended by %s\n", (long long)r.tokens,
                r.seconds, (long long)r.prompt_tokens, r.why);
    return RT_OK;
}

int main(int argc, char **argv) {
    Options o = {.threads = 0};
    int status = read_options(argc, argv, &o);
    if (status != DONE) return status;
    if (o.help) return printf(usage, argv[0], argv[0], argv[0]), DONE;
    Program g = {.plan = NULL};
    RtError e = {RT_OK, ""};
    RtStatus s = open_program(&g, &o, &e);
    if (s == RT_OK)
        s = !strcmp(o.command, "train")  ? train(&g, &o, &e)
            : !strcmp(o.command, "eval") ? eval(&g, &e)
                                         : generate(&g, &o, &e);
    close_program(&g);
    if (s != RT_OK) fprintf(stderr, "%s: %s\n", argv[0], e.text);
    return rt_exit_status(s);
}
