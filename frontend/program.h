// A program: a file of the language with what it imports.  What the driver and hf.c see of the front end.
#ifndef FRONTEND_PROGRAM_H
#define FRONTEND_PROGRAM_H
#include "frontend/blocks.h"
#include "frontend/lower.h"

typedef struct Program Program;

// Reads a file and its imports, found beside the file, then in models_dir (std/, routing/).  NULL after
// errors in the text; a program whose names are wrong is returned, and every program_elaborate of it fails.
Program *program_load(Arena *a, Diag *d, const char *path, const char *models_dir);
// The same with files whose text is known, under the names that program_file_name gave them: a checkpoint's.
typedef struct { const char *name, *text; size_t n; } GivenFile;
Program *program_load_given(Arena *a, Diag *d, const char *path, const char *models_dir, int n_given,
                            const GivenFile *given);
// A module's path from the program's folder or from models_dir.
const char *program_file_name(const Program *p, const Module *m);

// "train.lr=1e-3", "D=256", "generate.stop=[\"end\"]": as on the command line.  false after an error.
bool program_set(Program *p, const char *assignment);
// A hyper-parameter's value, as `config hf` gives it.  Its type is checked when the model is elaborated.
bool program_set_value(Program *p, const char *name, Val v, Span at);
// block.key from `config hf`: as if the file said so.
bool program_set_key(Program *p, const char *block, const char *key, Val v, Span at);

const Module *program_main(const Program *p);
const Module *const *program_modules(const Program *p, int *n);   // all files, the main one first
const char *program_model_name(const Program *p);                 // NULL: the file has no model
const Fn   *program_model(const Program *p);
const Settings *program_settings(Program *p);                     // NULL after errors
Diag *program_diag(Program *p);

// ---- values ----------------------------------------------------------------------------------------------

// A hyper-parameter's value with everything set so far.  V_ERROR: there is none of that name, or after an
// error (reported).  Tensor inputs are none.
Val   program_hyper(Program *p, const char *name);
const char *const *program_hyper_names(Program *p, int *n);

// Answers `.a.b.c`: the members from the block's subject on.  false: there is none, which is `none`.
typedef struct {
    bool (*member)(void *self, Span at, int n, const char *const *path, Val *out);
    void *self;
} Subject;

typedef struct { const char *name; Val v; } Named;
// The value of an expression that stands in a block: hyper-parameters, the names given and the members of the
// subject (NULL: none) are known.  V_ERROR after an error.
Val   program_eval(Program *p, const Expr *e, const Subject *subject, int n_names, const Named *names);
// Plain values for a subject's answers.
Val   program_val_num(Span at, Num n);
Val   program_val_bool(Span at, bool b);
Val   program_val_str(Span at, const char *text);
Val   program_val_none(Span at);
Val   program_val_list(Arena *a, Span at, int n, const Val *items);
const char *program_val_text(Program *p, const Val *v); // "silu", 3, [1, 2]: for messages and --settings

// ---- graphs ----------------------------------------------------------------------------------------------

typedef struct {
    enum { ELAB_TRAIN, ELAB_EVAL, ELAB_RUN } kind;
    RtMesh  mesh;                    // {0} is one rank
    int64_t leaves, B, S;            // leaves of one rank.  RUN: S is the bound of the rows
    int64_t source;                  // length of other sequences than tokens, an encoder's; 0: S
    int64_t waves;                   // passes of a step; 0: 1
    int64_t context;                 // RUN: bound of the cache
    int64_t batch;                   // RUN: sequences, of each of which the last row's logits are asked for; 0: those of all rows
    bool    labels;                  // EVAL: labels are given, losses are kept
    const char *const *returns;      // channels, ended by NULL: "logits", "hidden", ...; RUN always returns logits
} ElabOpts;

// TRAIN: @pass.  EVAL: @eval.  RUN: @run, one sequence, rows S <= opts.S, S + past = C <= opts.context.
// NULL after errors.
Graph *program_elaborate(Program *p, Arena *a, const ElabOpts *opts);
// One function alone: "swiglu(x[B, S, 64], H: 96)".  NULL after errors.
Graph *program_elaborate_call(Program *p, Arena *a, const char *call, const ElabOpts *opts);
// The options that train.* asks for.
ElabOpts program_train_opts(Program *p);

// ---- what the last program_elaborate found --------------------------------------------------------------

typedef struct { const char *path, *weights; Span at; } FrozenModel;      // layer .., weights: .., frozen: true
const FrozenModel *program_frozen(const Program *p, int *n);
// The channel a RETURN is of: how many values it has ("hidden.0" .. "hidden.n-1").
int program_channel_count(const Program *p, const char *channel);

typedef struct {
    const char *path, *group;
    const Node *node;                // of the training graph
    DType   dtype;
    int     ndim;
    int64_t dim[MAX_DIM], elements;
    int64_t experts, k;              // experts > 0: axis 0 counts experts, k of which a token uses
    int64_t active;                  // elements a token meets: elements * k / experts
    bool    state, frozen;
} ParamInfo;
// Parameters and states of the training graph, in program order.  NULL after errors.
const ParamInfo *program_params(Program *p, int *n);

#endif
