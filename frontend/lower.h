// Elaboration: the language's functions run once, with tensors replaced by graph values.
// Shared by the interpreter (lower.c: functions, instances, shapes at a call, statements) and the operations
// (lower_ops.c: what `softmax(x)` or `x @ w` becomes in the graph).
//
// Two kinds of shape.  The text's shape of a tensor is symbolic in B, S, U.. and `past` (Poly); the graph's is what
// the plan fixes (numbers, and row symbols at inference).  A TVal carries both.  In a training or eval graph a
// tensor that depends on data (`leafy`) has the leaf axis L in front of its text axes: text axis i is graph axis
// i + 1.  A tensor that doesn't (parameters, constants, step_sum(..)) has no such axis: text axis i is graph axis i.
// Without a leaf axis (inference, lw->leaf == NULL) nothing is leafy.
#ifndef FRONTEND_LOWER_H
#define FRONTEND_LOWER_H
#include "frontend/ast.h"
#include "ir/base/vec.h"
#include "ir/build.h"

// ---- symbolic ints (exact numbers: num.h) ------------------------------------------------------------------
// A polynomial with rational coefficients over the symbols inputs bind (B, S, U, past) and opaque atoms
// (floor/ceil/round/min/max of such).  Immutable, in normal form, hash-consed in lw: equal iff same pointer.
typedef struct Poly Poly;

// ---- values ----------------------------------------------------------------------------------------------
typedef struct Lower   Lower;
typedef struct FnVal   FnVal;
typedef struct RouteVal RouteVal;
typedef enum { V_NONE, V_NUM, V_POLY, V_BOOL, V_STR, V_LIST, V_FN, V_QUANTITY, V_TENSOR, V_ROUTE, V_ERROR } VKind;

// The text's type of a tensor.
typedef struct {
    DType dtype;
    int   ndim;
    const Poly *dim[MAX_DIM];
    RouteVal *rows;         // not NULL: grouped, f32[E|*, ...]: dim[] are the axes after the row axis
    bool  expert_rows;      // inside each_expert: dim[0] is the row axis of the expert, poly_sym(rows->sym->name)
} LType;

typedef struct TVal {
    Value *v;               // in the graph; NULL in a check-only elaboration after an error
    LType  type;
    bool   leafy;
    bool   per_expert;      // inside each_expert: a parameter w[H, D] that is [E, H, D] in the graph
    const char *what;       // name in the text, for messages, or NULL
    const struct TVal *transpose_of;    // made by .T from this one: a matmul reads that transposed instead
    bool  keeps_all;        // places in a queue without an end (generate.dropless): below any capacity
} TVal;

typedef struct Val Val;
typedef struct { int n; Val *at; } ListVal;
struct Val {
    VKind kind;
    Span  at;               // where it was made
    union {
        Num num;
        const Poly *poly;
        bool b;
        const char *str;    // interned
        ListVal *list;
        FnVal *fn;
        struct { Num num; const char *unit; } quantity;   // unit in singular: "step", "token", ...
        TVal *t;
        RouteVal *route;
    };
};

struct RouteVal {
    Span at;                // where it was made
    int64_t E;
    int64_t K;              // choices per token (1 for expert choice)
    LType lead;             // the leading axes `...` of the tokens (ndim axes)
    bool leafy;
    bool by_expert;         // made by route_by_expert
    Value *weight;          // graph [L, .., K] f32 (by_expert: [L,E,C])
    Value *choice;          // i32 [L, .., K] after the drop (-1: nobody); NULL for by_expert
    Value *offsets, *row_of, *slot_of;     // of the ROUTE node
    Value *token_of;        // i32[R]: row -> token, counted over all leaves
    Value *row_weight;      // f32[R,1]: made once on demand by gates()/combine()
    Value *row_group;       // i32[R], the expert of each row: made once on demand
    Sym *sym;               // the rows' symbol R
    const char *slots;      // path of the first instance that each_expert ran on them; NULL: it has no parameters so far
};

// ---- the elaboration -------------------------------------------------------------------------------------
struct Lower {
    Arena *arena;
    Diag  *diag;
    Graph *g;
    Builder b;              // at the end of g; b.at and b.path are kept current by the interpreter
    Sym   *leaf;            // NULL at inference
    bool   training;
    bool   random_eval;
    bool   inference;       // `run`: S and context are row symbols
    bool   dropless;        // generate.dropless, at inference: every choice is kept
    const Poly *sequence;   // the sequence axis of the input `tokens`, to which `past` belongs; NULL: none has it
    RouteVal *expert;       // inside each_expert: the route of its rows (set and reset by the interpreter), else NULL
    VEC(const Value *) step_sums;   // what step_sum & co. made, where a step has several waves
    int    n_routes;        // routes made so far (names of the row symbols: R0, R1, ..)
    DType  float_type;      // what `x[B, D]` without an element type means: train.dtype
    int64_t n_leaves, n_waves;
    int    n_streams;       // random draws so far
    Value *rng;             // input i32[4] {seed_lo, seed_hi, step, wave}, made on demand
    const struct Call *call;   // innermost call, for note chains (lower.c)
    void  *interp;          // lower.c's own state
};

// ---- symbolic ints (lower_poly.c) ----------------------------------------------------------------------------
const Poly *poly_int(Lower *lw, int64_t n);
const Poly *poly_num(Lower *lw, Num n);
const Poly *poly_sym(Lower *lw, const char *name);            // "B", "S", "past", ...
const Poly *poly_add(Lower *lw, const Poly *a, const Poly *b);
const Poly *poly_sub(Lower *lw, const Poly *a, const Poly *b);
const Poly *poly_mul(Lower *lw, const Poly *a, const Poly *b);
const Poly *poly_div(Lower *lw, const Poly *a, const Poly *b);        // NULL if b is no number and doesn't divide a
const Poly *poly_opaque(Lower *lw, const char *op, const Poly *a, const Poly *b);   // floor ceil round min max
bool  poly_is_int(const Poly *p, int64_t *out);               // a constant whole number
bool  poly_is_num(const Poly *p, Num *out);
const char *poly_text(Lower *lw, const Poly *p);              // "S + past", "2*B*S"
void  poly_bind(Lower *lw, const char *sym, Dim value);       // what the plan fixes: B -> 2, S -> sym S, S + past -> sym C
bool  poly_dim(Lower *lw, const Poly *p, Dim *out);           // as a graph dimension; false if fractional or unbound
bool  poly_value(Lower *lw, const Poly *p, Num *out);         // its number where the plan fixes all of it

// ---- helpers both sides use --------------------------------------------------------------------------------
Val   val_error(Span at);                                      // silences what depends on it
Val   val_tensor(Lower *lw, Span at, Value *v, LType type, bool leafy);
Val   val_num(Span at, Num n);
const char *ltype_text(Lower *lw, const LType *t);             // f32[B, S, 128]; f32[8|*, 128]
const char *val_text(Lower *lw, const Val *v);                 // for messages: "a number", "a tensor f32[B, S, 8]", ...
void  lower_notes(Lower *lw);                                  // after diag_error: adds the chain of calls as notes

// ---- operations (lower_ops.c) ------------------------------------------------------------------------------
// A call of an operation with its arguments evaluated: positional first, then named, in the order written.
typedef struct { const char *name; Val v; Span at; } OpArg;    // name NULL: positional; interned
typedef struct { Span at; const char *op; int n; OpArg *arg; } OpCall;
typedef struct { int n; Val v[3]; } OpResult;                  // several results: topk, split, sort (split: list values -> v[0] is a V_LIST)

bool     lower_is_op(const char *name);                        // "softmax", "topk", ... (also compile-time ones: sqrt, floor, len)
const char *const *lower_op_names(int *n);                     // for did-you-mean
OpResult lower_op(Lower *lw, const OpCall *call);              // v[0].kind == V_ERROR after a message
// Operators: "+ - * / % ** @ == != < <= > >= and or not neg T".  b is NULL for unary ones.  At least one is a tensor
// (compile-time operands are folded by the interpreter, num_op/poly).
Val      lower_operator(Lower *lw, Span at, const char *op, const Val *a, const Val *b);
typedef enum { IX_AT, IX_RANGE, IX_ALL, IX_REST } IndexKind;                // x[3], x[a..b], x[:], x[...]
typedef struct { IndexKind kind; Val from, to; Span at; } Index;            // V_NONE: open end
Val      lower_index(Lower *lw, Span at, const Val *x, const Index *index, int n_index);   // tensors only
// For `loss` and `metric`: false after an error if `v` needs step_sum(..) & co. and the step has several waves, so
// that their sums exist only after the last one (in @update).
bool     lower_needs_no_step_sum(Lower *lw, Span at, const char *what, const Value *v);

#endif
