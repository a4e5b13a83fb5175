// moec verify: running programs one way for all targets, and the table of errors.
#ifndef FRONTEND_CMD_VERIFY_H
#define FRONTEND_CMD_VERIFY_H
#include "frontend/cmd_session.h"
#include "frontend/cmd_weights.h"
#include "runtime/gather.h"
#include "runtime/safetensors.h"

// ---- running (cmd_verify_run.c) ---------------------------------------------------------------------------

// What a run left: losses, metrics and returned values, in program order.
typedef struct {
    const char *name, *path; // path: of the instance it came from, or NULL
    Op op;                   // OP_LOSS, OP_METRIC, OP_RETURN
    double weight;           // of a loss
    int ndim;
    int64_t dim[MAX_DIM], n;
    double *at;
} Output;
typedef VEC(Output) Outputs;

// A tensor by name in the memory of the reference evaluator.
typedef struct {
    const char *name;
    DType dtype;
    int64_t n;
    void *data;
} Stored;

// Programs that share parameters and states: evaluated by the meaning of their ops (--target ref) or
// compiled.
typedef struct {
    Session *s;
    bool ref, f64;
    Graph *const *program;
    int n_programs;
    Arena *arena;          // of the last run's outputs
    VEC(Stored) stored;    // ref: parameters, states and inputs
    int64_t rows, context; // ref: values of the symbols S and C
    int64_t wave;          // ref: of the step, from 0; sums over the step go on in later ones
    RtComm *comm;          // the other ranks, which run the same; NULL: this one is alone
    RtRanks *ranks;
} Runner;

bool verify_is_ref(const Cli *c);
const char *const *verify_pipeline(const Runner *r, bool backward); // for session_passes

// Of several ranks each sets its own leaves' inputs; what comes out is of all leaves, and on the first rank whole.

// Compiles the programs (or nothing, for ref) and fills the parameters: value[i] of w->param[i], NULL: its
// first value.
bool runner_open(Runner *r, Session *s, Graph *const *programs, int n, const Weights *w, float *const *value);
void runner_close(Runner *r);
// false after an error
bool runner_set_ints(Runner *r, const char *program, const char *input, const int32_t *values, int64_t n);
bool runner_has_input(const Runner *r, const char *program, const char *input);
// Nothing happens if there is no such input.
void runner_set_number(Runner *r, const char *program, const char *input, double value);
bool runner_run(Runner *r, const char *program, Outputs *out); // out: valid until the next run
// A parameter as it is now; lives as long as the session.
const double *runner_value(Runner *r, const char *name, int64_t n);
const Output *find_output(const Outputs *o, Op op, const char *name); // NULL: there is none

// Feeds ids[n] after the `past` ids of the sequence so far; the logits of the last one.  NULL after an error.
typedef struct RunnerDecoder RunnerDecoder;
RunnerDecoder *runner_decoder(Runner *r); // NULL after an error
const double *runner_decode(RunnerDecoder *d, int64_t past, const int32_t *ids, int64_t n, int64_t *vocab);
void runner_decoder_close(RunnerDecoder *d);

// ---- the table (cmd_verify_table.c) --------------------------------------------------------------------

typedef enum { CHECK_OK, CHECK_FAIL, CHECK_EXCUSED, CHECK_NOTE } Verdict;
typedef struct {
    const char *name, *shape, *note; // note: instead of numbers
    double error, tolerance;
    Verdict verdict;
    bool folds; // one of many (gradients, weights): printed if it is among the worst, or fails
} Check;
typedef struct {
    Arena *arena;
    const char *many; // what those that fold are: "gradients"
    VEC(Check) checks;
} Table;

// An error that isn't a number fails.
Check *table_add(Table *t, const char *name, const char *shape, double error, double tolerance);
void table_fail(Table *t, const char *name, const char *shape, const char *note);
void table_note(Table *t, const char *name, const char *note);
// Prints it, sorted by name.  The last line sums up.  Returns the exit status.
int table_print(const Table *t, const char *title, bool all, bool quiet);
const char *verify_shape(Arena *a, int ndim, const int64_t *dim); // 2x24x256
// max |got - want|; NaN if any is.
double largest_error(const double *got, const double *want, int64_t n);
double largest_abs(const double *x, int64_t n);

// ---- both commands -------------------------------------------------------------------------------------

// Opens DIR's model and settles it: f32 and `sets`, then the command line's.
bool verify_open(Session *s, Cli *c, const char *dir, int n_sets, const char *const *sets);
// Weights of DIR, finite and complete.  *files stays open.
bool verify_weights(Session *s, const char *dir, StFiles **files, Weights *w, float ***value);
// NULL after an error: there is none.
const StTensor *verify_tensor(Session *s, const StFiles *f, const char *file, const char *name);
double *verify_numbers(Session *s, const StTensor *t); // all elements; NULL after an error
// Every value from 0 to most (or -100, where that may be): NULL after an error.
int32_t *verify_ids(Session *s, const StTensor *t, bool may_be_ignored, int64_t most);
int64_t verify_vocabulary(const Graph *g); // columns of the logits it returns; 0: none
int cmd_verify_train(Cli *c, const char *dir);

#endif
