// Inside frontend/lower_ops*.c: the table of operations, and building blocks on TVals.
//
//   lower_ops.c         finding a row, matching arguments, messages; operators, indexing
//   lower_ops_tensor.c  building blocks on tensors: broadcasting, reshapes, sums
//   lower_ops_math.c    elementwise operations and reductions, also of compile-time numbers
//   lower_ops_shape.c   reshape, permute, concat, slices, gathers, topk
//   lower_ops_route.c   counts, queue, route, dispatch, combine
//   lower_ops_nn.c      matmul, einsum, attention, losses, convolutions; sequence, random and step-wide operations
//
// The lead of a tensor is the graph axis in front of its text axes:
//   none     x[B, S]  is  f32[2,256]       parameters, constants; inside an expert also its rows, [R, D]
//   leaf     x[B, S]  is  f32[L,2,256]     data in training and evaluation
//   expert   w[H, D]  is  f32[E,96,64]     a parameter inside each_expert
//   rows     f32[E|*, D]  is  f32[R,64]    rows grouped by expert, outside each_expert
// All t_ functions give NULL after an error was reported, and pass on NULL operands.
#ifndef FRONTEND_LOWER_OPS_H
#define FRONTEND_LOWER_OPS_H
#include "frontend/lower.h"

typedef enum { LEAD_NONE, LEAD_LEAF, LEAD_EXPERT, LEAD_ROWS } Lead;

// ---- the table ------------------------------------------------------------------------------------------

typedef enum {
    P_ANY,        // anything, checked by the operation
    P_TENSOR,
    P_VALUE,      // a tensor, number or bool
    P_NUM,        // a compile-time number (perhaps symbolic)
    P_INT,        // a whole one
    P_BOOL,
    P_WORD,       // one of `words`
    P_AXIS,       // an int
    P_AXES,       // an int, a list of ints or "all"
    P_SHAPE,      // a list of ints, one of which may be _
    P_LIST,
    P_TENSORS,    // a list of tensors
    P_ROUTE,
    P_STR
} ParamKind;

typedef struct { const char *name; ParamKind kind; const char *def, *words; } OpParam;   // def NULL: must be given

// What happens to grouped rows (outside an expert) and to an expert's rows (inside).
typedef enum {
    R_REFUSE,     // neither
    R_INSIDE,     // rows of an expert only; the operation keeps axis 0 apart
    R_GROUPED,    // grouped rows only
    R_BOTH        // elementwise
} RowsRule;

enum { MAX_OP_PARAMS = 10 };
typedef struct OpRow OpRow;
typedef struct {
    Lower *lw;
    Builder *b;                        // &lw->b
    Span at;                           // the whole call
    const char *op;                    // as messages show it: topk, '+'
    const OpRow *row;                  // NULL for operators and indexing
    Val  arg[MAX_OP_PARAMS];           // by parameter; defaults filled in
    bool given[MAX_OP_PARAMS];
    Span arg_at[MAX_OP_PARAMS];
} OpCx;
typedef OpResult OpFn(OpCx *cx);

struct OpRow {
    const char *name;
    OpFn *fn;
    RowsRule rows;
    OpParam param[MAX_OP_PARAMS];
    int op;                            // the graph's op, where one function serves several rows
    double (*fold)(double);            // its value for compile-time numbers
};

typedef struct { const OpRow *row; int n; } OpTable;
extern const OpTable math_ops, shape_ops, route_ops, nn_ops;

// ---- results and messages -------------------------------------------------------------------------------

// Reports and returns NULL.
void *op_error(OpCx *cx, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void  op_note_made(OpCx *cx, const Val *v, const TVal *t);   // "w is f32[512, 128]" where it was made
const char *shape_text(OpCx *cx, const LType *t);            // [B, S, 512]
int   line_of(OpCx *cx, Span at);
OpResult op_failed(OpCx *cx);
OpResult op_one(OpCx *cx, TVal *t);                          // NULL: op_failed
OpResult op_two(OpCx *cx, TVal *a, TVal *b);
OpResult op_number(OpCx *cx, Num n);
OpResult op_value(Val v);
Val   tensor_val(OpCx *cx, TVal *t);
Val   poly_val(OpCx *cx, const Poly *p);                     // V_NUM where it is a number

// ---- compile-time values --------------------------------------------------------------------------------
bool  is_number(const Val *v);                               // V_NUM or V_POLY
const Poly *val_poly(OpCx *cx, const Val *v);                // of a number
bool  val_int(OpCx *cx, const Val *v, int64_t *out);         // whole and known (the plan may fix it), no message
bool  arg_int(OpCx *cx, int param, int64_t *out);            // the same with a message
bool  arg_num(OpCx *cx, int param, double *out);
bool  poly_known(OpCx *cx, const Poly *p, int64_t *out);     // likewise for a dimension
bool  op_dim(OpCx *cx, const Poly *p, Dim *out);             // as a graph dimension, with a message
bool  arg_shape(OpCx *cx, int param, LType *out);            // dims of a list; _ becomes NULL
const Poly *ltype_elements(OpCx *cx, const LType *t);
bool  arg_axis(OpCx *cx, int param, const LType *t, int *axis);     // negative from the end
bool  arg_axes(OpCx *cx, int param, const LType *t, Ints *axes);    // ascending

// ---- tensors --------------------------------------------------------------------------------------------
Lead  t_lead(const TVal *t);
static inline int t_shift(const TVal *t) { return t_lead(t) != LEAD_NONE; }     // text axis i is graph axis i + shift
static inline bool is_expert_rows(const TVal *t) { return t->type.rows && t->type.expert_rows; }
static inline bool is_grouped(const TVal *t) { return t->type.rows && !t->type.expert_rows; }
bool  lead_dims(OpCx *cx, Lead lead, const LType *t, Dims *out);                // the graph's shape
TVal *t_new(OpCx *cx, Value *v, LType type, Lead lead);
TVal *t_like(OpCx *cx, Value *v, const TVal *like);                             // same type and lead
TVal *t_number(OpCx *cx, const Val *number, DType dtype);                       // scalar constant
TVal *t_operand(OpCx *cx, const Val *v, DType dtype);                           // a tensor, cast, or a constant
DType common_dtype(OpCx *cx, int n, const Val *const *v);                       // of tensors and numbers that meet
DType float_dtype(DType t);                                                     // itself, or f32 for ints and bools
bool  rows_axis_free(OpCx *cx, const TVal *t, int axis, Span at);               // false, with a message: axis 0 of expert rows
bool  same_dims(const LType *a, const LType *b);
// Brings n values to one lead and one number of axes, so that the graph's right-aligned broadcasting does what
// the text's does.  type gets the broadcast dims (dtype is left alone).
bool  t_align(OpCx *cx, int n, TVal *const *x, Value **v, LType *type, Lead *lead);
TVal *t_with_lead(OpCx *cx, TVal *x, Lead lead);            // repeats a value that has none
bool  t_same_lead(OpCx *cx, int n, TVal **x);               // all with the lead of the first that has one

TVal *t_cast(OpCx *cx, TVal *x, DType dtype);
TVal *t_unary(OpCx *cx, Op op, TVal *x);
TVal *t_binary(OpCx *cx, Op op, TVal *a, TVal *b);          // equal dtypes; comparisons give bool
TVal *t_select(OpCx *cx, TVal *c, TVal *a, TVal *b);
TVal *t_binary_number(OpCx *cx, Op op, TVal *a, double n);
TVal *t_reshape(OpCx *cx, TVal *x, const LType *dims);      // same elements, by the caller's word
TVal *t_permute(OpCx *cx, TVal *x, const int *perm);
TVal *t_swap_last(OpCx *cx, TVal *x, int axis);             // axis to the end, its own inverse
TVal *t_expand(OpCx *cx, TVal *x, const LType *dims);
TVal *t_insert_axis(OpCx *cx, TVal *x, int axis);           // of size 1
TVal *t_drop_axis(OpCx *cx, TVal *x, int axis);             // of size 1
TVal *t_slice(OpCx *cx, TVal *x, int axis, int64_t begin, int64_t end);
TVal *t_concat(OpCx *cx, int n, TVal **x, int axis);
TVal *t_sum(OpCx *cx, TVal *x, const Ints *axes, bool keepdim);
TVal *t_mean(OpCx *cx, TVal *x, const Ints *axes, bool keepdim);
TVal *t_iota(OpCx *cx, const Poly *n);
TVal *t_matmul(OpCx *cx, TVal *a, TVal *b, const Val *a_val, const Val *b_val);
TVal *t_transpose(OpCx *cx, TVal *x);
TVal *t_flat(OpCx *cx, TVal *x, int from, int to);          // joins axes from .. to-1
TVal *t_take(OpCx *cx, TVal *x, TVal *index);               // along the last axis
Val   op_arithmetic(OpCx *cx, const char *op, const Val *a, const Val *b);     // operators on tensors

#endif
