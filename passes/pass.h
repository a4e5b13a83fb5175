// What a pass is.  The list: passes.def; the order and its reasons: pipeline.c; who runs them: runner.c.
#ifndef PASSES_PASS_H
#define PASSES_PASS_H
#include "ir/build.h"
#include "ir/ir.h"
#include "ir/machine.h"

// What the user's blocks say that passes need (from frontend; strings interned).
typedef struct {
    const char *dtype;                       // "f32" "bf16" "f16"
    const char *recompute;                   // "none" "cheap" "layer" (train.recompute)
    const char *optimizer;                   // "adamw" "adam" "sgd"
    double beta1, beta2, eps, decay, momentum;
    bool   decay_all;
    double clip;                             // 0: none
    double lr_expert;
    bool   average_token;                    // train.average = "token"
    bool   one_chain;                        // train.exact = false
    int64_t waves;                           // passes of a step (gradient accumulation)
    RtMesh mesh;                             // ranks that share the step; {0}: one
    MachineLink link;                        // between ranks that share experts; rate 0: as inside a node
    MachineLink near;                        // inside a node, as it is described; rate 0: cores copy
    int64_t per_node;                        // ranks that share experts on each of several nodes; 0: all are on one, or lie otherwise
    const char *a2a;                         // "auto" "flat" "node" (parallel.a2a)
    const char *own_rows;                    // "auto" "apart" "with" (parallel.own_rows)
    int    threads;                          // of a rank; 0: one
    double flops;                            // operations a second of a rank's products; 0: by the machine's rates
    int64_t chunks;                          // of exchanges of rows; 0: as many as are predicted to be fastest
    int64_t batch;                           // @run: sequences asked for (generate.batch); 0: not asked
    double row_bound;                        // > 0: rows at experts are at most so many times those at home (planner); 0: all ranks'
    bool   return_grads;                     // @pass returns "grad.NAME" and accumulates nothing (verify)
} TrainOpts;

typedef struct {
    Arena *scratch;            // emptied after every pass
    Diag  *diag;
    FILE  *trace;              // the pass's own chatter; NULL unless MOE_DEBUG asks for it
    const char *won;           // set by a pass: what it won, in a unit of the user's; in scratch.  See WON
    const Machine *machine;
    const TrainOpts *train;    // NULL: no training graph
    bool own_parameters;       // the program set only reads its parameters, and shares them with nobody
    LayoutFn *layout;          // what the target offers for those parameters; NULL: rows
    const char *cpu;           // whose code it will be, as CompileOpts
    Str   *weighed;            // told, line by line, what was weighed; NULL: nobody reads it
    // optimizer: the second program it makes.  Input graph is @pass; it leaves *update.
    Graph **update;
} PassCtx;

// Rewrites g in place.  True if it changed anything.  After an error in cx->diag the runner stops.
typedef bool PassFn(Graph *g, PassCtx *cx);

typedef struct {
    const char *name, *doc;
    PassFn *run;
    int needs, leaves;         // Stage, or ANY_STAGE / SAME_STAGE
    const char *fn_name;
} PassInfo;
enum { ANY_STAGE = -1, SAME_STAGE = -1 };
#define PASS(name, fn, needs, leaves, doc) PassFn fn;
#include "passes/passes.def"
#undef PASS
extern const PassInfo pass_info[];
extern const int n_passes;
const PassInfo *pass_find(const char *name);

// Pipelines are data: NULL-terminated lists of names.
extern const char *const pipeline_train[];      // @pass: ends PLANNED
extern const char *const pipeline_update[];     // @update
extern const char *const pipeline_forward[];    // eval, run
// NULL, or why `names` breaks an order constraint (text in a).
const char *pipeline_check(Arena *a, const char *const *names);

typedef struct {
    const char *after;          // stop after this pass; NULL: run all
    const char *const *disable; // NULL-terminated, or NULL
    bool verify_each;           // graph_check after every pass (always on in debug builds)
    bool time;                  // print time, node count and what was won, per pass, to `log`
    FILE *log;
    // called after each pass (index in pipeline) and once before the first with name "input"; for dumps
    void (*seen)(void *self, const char *pass, const Graph *g, double seconds);
    void *self;
} RunOpts;

// Runs the pipeline on *g, which MOE_DEBUG=roundtrip may replace by its re-parsed equal.  false: errors.
// MOE_DEBUG=semantics: evaluates before and after on random inputs and compares (bitwise from `contract` on).
bool passes_run(Graph **g, const char *const *pipeline, PassCtx *cx, const RunOpts *opts);

#define TRACE(cx, ...) do { if ((cx)->trace) fprintf((cx)->trace, __VA_ARGS__); } while (0)
// Printed beside the pass's time, and in its trace.
#define WON(cx, ...) ((cx)->won = arena_printf((cx)->scratch, __VA_ARGS__))

#endif
