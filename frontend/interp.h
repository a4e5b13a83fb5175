// The interpreter's own state, shared by lower*.c, blocks.c and program.c.  Nobody else includes this.
//
//   lower.c         a whole elaboration: inputs, the model, results, what is collected on the way
//   lower_call.c    calls: matching arguments, functions that lack some, running a body
//   lower_bind.c    values and shapes on parameters, defaults
//   lower_builtin.c a call in the text; each_expert, emitted, copy
//   lower_stmt.c    statements: params, states, losses, loops, ...
//   lower_value.c   expressions
//   instance.c      the tree of instances: paths, sharing, copies
//   lower_poly.c    symbolic ints
#ifndef FRONTEND_INTERP_H
#define FRONTEND_INTERP_H
#include "frontend/lower.h"
#include "frontend/program.h"

typedef struct Interp   Interp;
typedef struct Instance Instance;
typedef struct Call     Call;
typedef struct Layer    Layer;

// ---- functions as values ---------------------------------------------------------------------------------

typedef struct { int param; const char *name; Val v; Span at; } Given;   // param -1: an operation's argument

// A function with some arguments already given: a function of a file, an operation, or an initialiser.
struct FnVal {
    Span at;
    const Fn *fn;            // NULL: op
    const char *op;          // an operation ("relu") or an initialiser ("normal")
    bool  init;              // op is an initialiser
    VEC(Given) given;
    const char *via;         // the parameter or layer it was reached through, which names its instance
    Layer *layer;            // all calls share one instance
    const struct CopyOf *copy;
};

// `layer name = f, ...`: one instance for all calls.
struct Layer {
    const char *name;
    Span  at;
    Call *scope;             // where it was declared
    Instance *instance;      // NULL before the first call
    bool  frozen;
    const char *weights;
};

// copy(f): whose instance holds the initial values.
typedef struct CopyOf {
    Span  at;
    Call *scope;             // where copy() stands
    const char *segment;     // name of f's instance in that scope
    Layer *layer;            // or f is this layer
} CopyOf;

// ---- instances -------------------------------------------------------------------------------------------

typedef struct { const char *name; Instance *instance; int visit; Span at; } Child;
typedef struct { const char *name; TVal *t; int visit; Span at; } Own;

// A call that owns parameters or states, itself or below.  Calling a shared one again is another visit: what
// was made in an earlier visit is found, what was made in this one is a name used twice.
struct Instance {
    Instance *parent;
    const char *path;        // "" for the model; "layers.3.ffn"
    const char *copy_from;   // path whose values these parameters start with, or NULL
    bool frozen;
    int  visit;
    VEC(Child) children;
    VEC(Own)   own;
};

// ---- calls -----------------------------------------------------------------------------------------------

typedef struct { const char *name; Val v; } Bind;
enum { MAX_RESULTS = 8, MAX_CALLS = 64 };
typedef struct { int n; Val v[MAX_RESULTS]; } Results;

// One running call of a function of a file.
struct Call {
    Call *caller;
    const Fn *fn;
    Span  at;                // the text of the call
    VEC(Bind) vars;          // parameters, dimensions and what was assigned
    bool  has_rest;          // `...` is known
    LType rest;              // its axes
    const char *segment;     // name of its instance, should it get one
    bool  has_as, in_loop;
    Layer *layer;
    Call *scope;             // whose instance is the parent of its
    const CopyOf *copy;
    Instance *instance;      // NULL until something is made in it
    Node *before;            // the graph's last node when it began
    int   loops;             // loops around the running statement
    const char *loop_var;    // of the innermost
    int   first_emit;
    bool  per_expert;        // each_expert runs it
    bool  frozen;
    bool  returned;
    Results results;
};

typedef struct {
    const char *name, *path;
    TVal *t;
    Span  at;
    bool  automatic;         // put there by a route
} Emission;
typedef struct { Node *node; int64_t experts, k; bool state; } Made;

struct Interp {
    Lower *lw;
    Program *program;
    const ElabOpts *opts;
    const Subject *subject;
    Call *call;                       // innermost, as lw->call
    struct PolyTable *polys;
    VEC(Emission) emits;
    VEC(Made) made;                   // parameters and states
    VEC(Layer *) layers;
    bool  may_wait;                   // in an assert: comparisons use the plan's numbers
    bool  waited;                     // .. which were not known
    Value *step, *tokens_seen;
};

static inline Interp *interp_of(const Lower *lw) { return lw->interp; }
struct PolyTable *poly_table_new(Arena *a);
// 1 or 0: so for all values; -1: it depends.
int poly_compare(Lower *lw, const char *op, const Poly *a, const Poly *b);

// ---- lower_value.c ---------------------------------------------------------------------------------------
Val   eval(Lower *lw, Call *c, const Expr *e);
Results eval_all(Lower *lw, Call *c, const Expr *e);              // several values; {1, V_ERROR} after errors
bool  eval_bool(Lower *lw, Call *c, const Expr *e, bool *out);    // false after an error
Val   binary_values(Lower *lw, Span at, const char *op, const Val *a, const Val *b);
bool  eval_dim(Lower *lw, Call *c, const Expr *e, const Poly **out);      // an element of a shape
bool  eval_shape(Lower *lw, Call *c, const Exprs *shape, LType *out);     // `...` expanded
Val   value_of_poly(Lower *lw, Span at, const Poly *p);
bool  poly_of_value(Lower *lw, const Val *v, const Poly **out);
bool  values_equal(Lower *lw, const Val *a, const Val *b);        // compile-time values
Val   val_of_bool(Span at, bool b);
Val   val_of_str(Span at, const char *s);
Val   val_none(Span at);
Val   val_list(Lower *lw, Span at, int n, const Val *items);
bool  has_error(const Val *v);                                    // V_ERROR, or a list that holds one
const Val *find_var(const Call *c, const char *name);
void  set_var(Lower *lw, Call *c, const char *name, Val v);
Val   fn_message(Lower *lw, const Val *v, const char *needs);     // "this is a function: f still lacks .."

// ---- lower_call.c ----------------------------------------------------------------------------------------
// Where a call stands: what its instance would be called.
typedef struct {
    const char *segment;
    bool has_as, per_expert;
    const Expr *expr;                 // its text, or NULL
} Site;
Results call_fn(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at, const Site *site);
Results call_op(Lower *lw, const char *op, int n, const OpArg *args, Span at);
Results call_init(Lower *lw, const FnVal *f, int n, const OpArg *args, Span at);
Results call_value(Lower *lw, Call *c, const FnVal *f, int n, const OpArg *args, Span at,
                   const char *segment);
Val   lookup_fn(Lower *lw, const Module *m, const char *name, Span at);   // V_NONE: no such function
Val   lookup_own(Lower *lw, const Module *m, const char *name, Span at);  // for importers
Call *call_new(Lower *lw, Call *caller, const Fn *fn, Span at);
Results run_body(Lower *lw, Call *c);

// ---- lower_builtin.c -------------------------------------------------------------------------------------
Results eval_call(Lower *lw, Call *c, const Expr *e, const Expr *as);     // as: `e as name` around it, or NULL

// ---- lower_bind.c ----------------------------------------------------------------------------------------
// By parameter: what was given.
typedef struct {
    bool *given;
    Val  *v;
    Span *at;
} Matched;
int   find_param(const Fn *f, const char *name);                  // -1: none
// Is v what the parameter takes?  bind_params looks at shapes.  call: for a better help text, or NULL.
bool  check_value(Lower *lw, const Fn *f, int param, const Val *v, Span at, const Expr *call);
bool  bind_params(Lower *lw, Call *c, const Matched *m, Span at, const Expr *call);
Val   default_value(Lower *lw, Call *c, const Fn *f, int param, Span call_at);

// ---- lower_stmt.c ----------------------------------------------------------------------------------------
void  exec_body(Lower *lw, Call *c, const Stmts *body);

// ---- instance.c ------------------------------------------------------------------------------------------
Instance *instance_of(Lower *lw, Call *c);                        // makes it and those above; NULL: an error
const char *instance_path(Lower *lw, Call *c, const char *name);  // path of a parameter of its instance
void  set_path(Lower *lw, const Call *c);                         // lw->b.path := where c stands
bool  is_frozen(const Call *c);

// ---- resolve.c -------------------------------------------------------------------------------------------
const Fn *find_own_fn(const Module *m, const char *name);
const Fn *find_fn(const Module *m, const char *name, const Fn **other);   // *other: in another import as well
bool  is_init(const char *name);                                  // normal, zeros, ...
bool  is_builtin(const char *name);                               // an operation, zeros, each_expert, ...
const char *near_name(Arena *a, const Module *m, int n_vars, const char *const *vars, bool with_ops,
                      const char *name);
bool  resolve(Arena *a, Diag *d, const Module *m);                // false after errors

// ---- blocks.c --------------------------------------------------------------------------------------------
bool  blocks_check_key(Diag *d, const char *block, Span block_at, const char *key, Span key_at);
bool  blocks_evaluate(Lower *lw, Call *hyper, Program *p, Settings *out);      // false after errors

// ---- program.c -------------------------------------------------------------------------------------------
// What was set from outside: an expression, or (e NULL) a value.
typedef struct { const char *name; const Expr *e; Val v; Span at; bool command_line; } Override;
typedef struct { const char *block, *key; const Expr *e; Val v; Span at, key_at; bool command_line; } KeySet;

struct Program {
    Arena *arena;
    Diag  *diag;
    const char *folder, *models_dir;
    const GivenFile *given;
    int    n_given;
    VEC(const Module *) modules;
    const Module *main;
    const Fn *model;
    VEC(Override) hyper;
    VEC(KeySet) keys;
    Lower *values;                    // evaluates without a graph; made anew after something was set
    Call  *hyper_call;                // the model's hyper-parameters, or NULL after an error
    Settings *settings;
    bool   settings_failed;
    bool   names_wrong;               // resolve found errors
    VEC(ParamInfo) params;            // of the training graph, once asked for
    VEC(FrozenModel) frozen;          // of the last elaboration
    VEC(Emission) emits;
    VEC(Made) made;
};
Lower *lower_new(Program *p, Arena *a, Graph *g, const ElabOpts *opts);
bool   bind_hyper(Lower *lw, Call *c, Program *p);                // hyper-parameters; false: an error

// ---- for all ---------------------------------------------------------------------------------------------
// Without the chain of calls: lower_notes adds it.
void  error_at(Lower *lw, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// Did you mean; c NULL: functions only.
const char *name_near(Lower *lw, const Call *c, const Module *m, const char *name);

#endif
