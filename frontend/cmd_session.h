// From a file and a command line to programs that run: what check, dump, build, train, eval, generate and verify share.
#ifndef FRONTEND_CMD_SESSION_H
#define FRONTEND_CMD_SESSION_H
#include <string.h>

#include "codegen/target.h"
#include "frontend/cli.h"
#include "frontend/program.h"
#include "passes/pass.h"
#include "runtime/plan.h"
#include "runtime/settings.h"

typedef struct {
    Cli     *cli;
    Arena   *arena;
    Diag    *diag;
    Program *program;
    const Settings *settings;
    TrainOpts train;
    const Machine *machine;      // rates that passes and templates choose by; from the first pass on
    const Machine *first_machine;            // those of the first of several ranks, which passes choose by instead
    const char *models_dir;      // where std/ and routing/ are found
    Compiled *compiled;
    RtKernelFn **kernel;         // of its plan
    RtPlanInstance *plan;
    RunOpts  run;                // options of passes_run
    int64_t  batch;              // sequences of a run where generate.batch doesn't say; 0: one
    bool     own_parameters;     // as PassCtx, of the programs being made
    LayoutFn *layout;            // in the place of the target's, if there is one; NULL: the target's
    Str      weighed;            // what passes told of their choices
    VEC(const char *) sets;      // all --set in force: those a checkpoint remembers, then the command line's
    const char *base_dir;        // relative paths of the data block are meant from here
} Session;

// Loads the program and applies `sets` (may be NULL) and the command line's --set.  false after errors in diag.
bool session_open(Session *s, Cli *c, const char *file, int n_sets, const char *const *sets);
// The same of a checkpoint's model.moe, whose imports are among the files given.
bool session_open_stored(Session *s, Cli *c, const char *file, int n_files, const GivenFile *files, int n_sets,
                         const char *const *sets);
// The same without settling settings: for a program that config hf will configure first.  session_settle ends it.
bool session_load(Session *s, Cli *c, const char *file);
bool session_settle(Session *s);
// What the blocks may say but this version can't do: an error each, so that no setting is silently without effect.
// ranks: that are there.
bool session_can_train(Session *s, int ranks);
bool session_has_ranks(Session *s, const Settings *t, int ranks);       // that t's parallel block asks for
void session_close(Session *s);

typedef struct { Graph *pass, *update, *eval, *run; } Programs;
enum { WANT_TRAIN = 1, WANT_EVAL = 2, WANT_RUN = 4 };

// Elaborates and runs the passes.  Programs not wanted stay NULL.
// Of a step, as s->train says; with several ranks each has its share of the leaves (which must divide).
ElabOpts session_train_opts(Session *s);
ElabOpts session_run_opts(const Session *s);            // of @run, by the generate block
bool session_programs(Session *s, int want, Programs *out);
// Passes over one graph with this session's options.  update: where optimizer leaves @update, or NULL.
bool session_passes(Session *s, Graph **g, const char *const *pipeline, Graph **update);
// The same for @run, in generate.dtype.
bool session_run_passes(Session *s, Graph **g, const char *const *pipeline);
CompileOpts session_compile_opts(Session *s);
const Target *session_target(Session *s);               // by --target; NULL after an error
// Compiles and opens the plan: s->compiled, s->plan.
bool session_start(Session *s, Graph *const *programs, int n);
// The same of programs without settings.  info_json: as CompileOpts; threads 0: all cores.
bool session_compile(Session *s, Graph *const *programs, int n, const char *info_json, int threads);
// The two halves of session_start: s->compiled; an instance of its plan, as many as one likes.
bool session_code(Session *s, Graph *const *programs, int n);
RtStatus session_open_plan(const Session *s, int threads, RtPlanInstance **out, RtError *e);
int  session_threads(Session *s, bool *ok);             // --threads, 0: all cores

// How ranks share the work, which is no part of what is trained.
static inline bool set_is_layout(const char *set) { return !strncmp(set, "parallel.", 9); }
// The settings as the JSON that runtime/settings.h reads (data paths absolute), with the model's name and counts.
char *session_json(Session *s);                         // malloc'ed
int64_t session_parameters(Session *s, int64_t *active);

const char *session_models_dir(Arena *a);               // $MOEC_MODELS, else where an installed program or a build folder has it
char *read_file(Arena *a, const char *path, size_t *n); // NULL: errno says why

#endif
