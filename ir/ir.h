// Graph, Node, Value, Type: the file to read first.
//
// A Graph is an ordered list of Nodes; each node applies an op (a row of ops.def) to Values and makes Values.
// List order is execution order: a node comes after everything it reads.  There is one graph form from the front
// end to code generation; Graph.stage says how far it has come and check.c what that promises.
//
// The leaf axis.  A training graph computes all leaves (micro-batches) of a pass at once.  Every value that depends
// on data carries them as its leading dimension L, a row symbol of fixed value (`leaves L = 8`): the text's
// x[B, S, D] is f32[L,B,S,D] here, its per-leaf statistics [E] are f32[L,E], a parameter stays f32[V,D].  So
// whatever couples tokens couples them inside a leaf, by type.  Summing over L is always the leaf tree.
// Dim 0 may also be a multiple of L (`512*L`: the rows of all leaves, leaf by leaf).
#ifndef IR_IR_H
#define IR_IR_H
#include <stdbool.h>
#include <stdint.h>
#include "ir/base/arena.h"
#include "ir/base/diag.h"
#include "ir/base/str.h"
#include "runtime/abi.h"

typedef const char *Name;           // interned: compare with ==
typedef struct Sym   Sym, *SymP;
typedef struct Value Value;
typedef struct Node  Node;
typedef struct Graph Graph, *GraphP;
typedef struct Builder Builder;

// ---- types ----------------------------------------------------------------------------------------------

typedef enum {
    SYM_LEAF,      // `leaves L = 8`           the leaf axis; value = bound, always
    SYM_PLAIN,     // `rows S <= 512`          set by the host for each call (inference)
    SYM_RAGGED     // `rows R <= 8192 by 8`    rows grouped by expert; value = last entry of the route's offsets
} SymKind;

struct Sym {
    Name    name;
    SymKind kind;
    int64_t bound;       // largest value (LEAF: the value)
    int32_t groups;      // RAGGED: number of experts
    int32_t leaves;      // RAGGED: leaves per expert in the offsets (>= 1)
    Value  *extent;      // RAGGED: the offsets value that defines it, i32[groups*leaves + 1], rows sorted by (expert, leaf)
    int     id;          // number in Graph.syms
};

// A dimension: n when sym is NULL, else n * (value of sym).
typedef struct {
    int64_t n;
    Sym    *sym;
} Dim;

typedef struct { int n; int64_t at[MAX_DIM]; } Ints;
typedef struct { int n; Dim at[MAX_DIM]; } Dims;

typedef struct {
    DType   dtype;
    uint8_t ndim;
    uint8_t layout;      // Layout: where elements lie, not what they are; ROWS but for parameters after pass layout
    Dim     dim[MAX_DIM];
} Type;

static inline Dim     dim_n(int64_t n) { return (Dim){n, NULL}; }
static inline bool    dim_eq(Dim a, Dim b) { return a.n == b.n && a.sym == b.sym; }
static inline bool    dim_is_1(Dim d) { return d.n == 1 && !d.sym; }
static inline int64_t dim_bound(Dim d) { return d.sym ? d.n * d.sym->bound : d.n; }
bool    type_eq(const Type *a, const Type *b);          // whatever their layouts
int64_t type_bound_elements(const Type *t);             // product of bounds (1 for scalars)
int64_t type_bytes(const Type *t);                      // at bound, as laid out; checked for overflow
int64_t type_cols(const Type *t);                       // last dimension; 1 for scalars (must be a number)
bool    type_is_leafy(const Type *t);                   // dim 0 is (a multiple of) the leaf axis
Sym    *type_ragged(const Type *t);                     // the ragged symbol of dim 0, or NULL
Type    type_make(DType dtype, int ndim, const Dim *dim);
Type    type_of_dims(DType dtype, const Dims *dims);
Dims    dims_of(const Type *t);
const char *type_text(Arena *a, const Type *t);         // f32[L,2,256,128]
const char *dim_text(Arena *a, Dim d);

// Constant data, shared by nodes; hash covers dtype, shape and bytes.
typedef struct {
    Tensor   tensor;     // F32, I32 or BOOL
    int64_t  bytes;
    uint64_t hash;
} Data, *DataP;

// ---- ops ------------------------------------------------------------------------------------------------

typedef enum {
#define OP(NAME, ...) OP_##NAME,
#include "ir/ops.def"
#undef OP
    N_OPS
} Op;

// All attributes there are.  An op uses those its row lists; the others stay 0.
typedef struct Attrs {
#define ATTR(name, type, doc) type name;
#include "ir/attrs.def"
#undef ATTR
} Attrs;

typedef enum {
#define ATTR(name, type, doc) ATTR_##name,
#include "ir/attrs.def"
#undef ATTR
    ATTR_COUNT
} AttrId;

typedef enum { A_INT, A_REAL, A_NAME, A_INTS, A_DIMS, A_DATA, A_SYM, A_GRAPH } AttrKind;
typedef struct { const char *name, *doc; AttrKind kind; size_t offset; } AttrInfo;
extern const AttrInfo attr_info[ATTR_COUNT];

enum { PURE = 1, COMMUTES = 2, EFFECT = 4, SOURCE = 8, ELEMENTWISE = 16, ROW_LOCAL = 32, VIEW = 64, PRODUCTS = 128, COMM = 256 };   // traits, see ops.def

// What an operand or result may be: a class of element types, or "the same as operand i".
typedef enum { K_NONE, K_ANY, K_NUMBER, K_FLOAT, K_INT, K_BOOL, K_F32, K_I32, K_SAME = 16 } ValueKind;
typedef struct { const char *name; int kind; } ValueInfo;      // kind: ValueKind, or K_SAME + i
enum { MAX_NAMED = 12 };

typedef bool ShapeRule(const Node *n, Type *out, Diag *d);     // fills out[0 .. n_out); false after diag_error
typedef bool CheckRule(const Node *n, Diag *d);                // what types alone can't say
// Builds d(objective)/d(operand i) in din[i].  dout[j] is the gradient of result j, NULL if none reaches it;
// din[i] may stay NULL where nothing flows back.  need[i]: somebody wants din[i] (others may be left NULL).
typedef void GradRule(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din);
// The meaning, on tensors with their actual sizes.  sum orders are those of ir/README.md.  All float tensors are
// f32 for `ref`, f64 for `ref64` (one source, ir/ref/, compiled twice).
typedef void RefKernel(const Attrs *attr, int n_in, const Tensor *in, int n_out, Tensor *out);

typedef struct {
    const char *name, *doc;
    ShapeRule *shape;
    RefKernel *ref, *ref64;
    GradRule  *grad;
    CheckRule *check;
    const char *ref_name, *grad_name;
    ValueInfo  ins[MAX_NAMED], outs[MAX_NAMED];
    int        variadic;          // 1: the last operand row may repeat
    int        attrs[16];         // ATTR_x + 1, zero-terminated
    int        traits;
} OpInfo;
extern const OpInfo op_info[N_OPS];

int  op_n_outs(Op op);                          // named results (ATTENTION_GRAD and FUSED have more: Node.n_out holds)
bool op_find(const char *name, Op *op);         // by text name
static inline bool op_is(Op op, int trait) { return (op_info[op].traits & trait) != 0; }

// ---- nodes and values -----------------------------------------------------------------------------------

struct Value {
    Node   *node;        // who makes it
    int     index;       // which of its results
    Type    type;
    Name    name;        // from the language, or NULL; printed by --names
    Name    place;       // up to stage SHARDED: which part of it a rank has, by groups of ranks (README.md); NULL: all of it
    int     n_uses;      // operand slots that read it (kept by build.c and check.c)
    int     id;          // scratch number: set by graph_number(), dense from 0 in list order
    // after plan-memory:
    int8_t  arena;       // RtArenaKind, -1: none
    int64_t offset;
    void   *mark;        // scratch pointer of the running pass; NULL between passes
};

struct Node {
    Op      op;
    int16_t n_in, n_out;
    Value **in;
    Value  *out;         // array [n_out]
    Attrs   attr;
    Span    at;          // source text it came from
    Name    path;        // instance path, layers.3.ffn, or NULL
    Node   *prev, *next; // list
    Graph  *graph;
    int     id;          // scratch number, set by graph_number()
    int     flags;       // scratch bits of the running pass
    bool    backward;    // made by autodiff
    bool    keep;        // a recompute clone: CSE leaves it alone
};

// ---- contractions ---------------------------------------------------------------------------------------

// What may be attached to matmul and grouped_matmul (all three), to matmul_dw and grouped_dw (gather):
//   gather    rows of a (or b) are those that gather_rows takes from it by row numbers
//   pair      a second product, of a and another right-hand side
//   epilogue  a body of elementwise ops: its arg 0 is the product, arg 1 the second product if there is one,
//             the next are the operands from `extra` on; its yields are the node's results
// Operands: its own | row numbers of a | row numbers of b | second right-hand side | more for the epilogue
typedef struct {
    int  own;            // operands it has without attachments
    int  index[2];       // operand with the row numbers of a, of b; -1: rows as they lie
    int  second;         // operand that is the other right-hand side; -1: none
    int  extra;          // first operand that only the epilogue reads
    int  products;       // 1 or 2
    Type a, b, y;        // as multiplied
} Contraction;
// Of scatter_add_rows: the operand that tells which source rows each result row gets (i32[.., k]), or NULL.
const Value *scatter_inverse(const Node *n);
bool        op_is_contraction(Op op);
// The group an exchange runs over; false: its `over` is none.
bool        exchange_group(const Node *n, RtGroup *group);
bool        exchange_group_named(Name name, RtGroup *group);
extern const char *const exchange_group_name[RT_GROUPS];
// Nodes that run chunk by chunk, from `first` on: waits for rows at their experts, products of these rows, the rows' way back.
// Sources may stand between them.  Returns how many (at most CHUNKED_RUN), 0: no run begins here.
enum { CHUNKED_RUN = 12 };
int         chunked_run(Node *first, Node **member);
bool        has_attachments(const Node *n);
Contraction contraction_of(const Node *n);               // n as node_check wants it

typedef enum { WHOLE, SHARDED, SCHEDULED, PLANNED, STAGE_COUNT } Stage;
extern const char *const stage_name[STAGE_COUNT];

struct Graph {
    Arena *arena;
    Name   name;         // pass update eval run
    Stage  stage;
    Node  *first, *last;
    int    n_nodes;
    Sym  **sym;
    int    n_syms, cap_syms;
    Graph *parent;       // regions: the graph that holds the node
    Sym   *leaf;         // the leaf axis, or NULL (inference, @update); of several ranks, one rank's leaves
    Sym   *own_leaf;     // the part of them that each rank of a tp group has by itself, or NULL (passes/tensor_parallel.c)
    RtMesh mesh;         // the ranks that run it, each on its leaves
    int64_t arena_bytes, lower_bound_bytes;   // after plan-memory
};

// Leaves of a pass on all ranks.
static inline int64_t graph_lanes(const Graph *g) {
    return g->leaf ? g->leaf->bound * rt_group_size(g->mesh, RT_GROUP_DATA) : 1;
}

Graph *graph_new(Arena *a, const char *name);
Sym   *graph_add_sym(Graph *g, const char *name, SymKind kind, int64_t bound, int groups, int leaves);
Sym   *graph_find_sym(const Graph *g, const char *name);    // looks in parents too; NULL if none
int    graph_number(Graph *g);               // numbers nodes and values in list order; returns the number of values
Graph *graph_copy(Arena *a, const Graph *g); // compact deep copy, regions included
uint64_t graph_hash(const Graph *g);         // of the printed text without spans: equal graphs, equal hash
void   graph_remove(Node *n);                // unlinks; nobody may read its results
void   replace_all_uses(Graph *g, Value *from, Value *to);   // in g only, O(nodes); types must be equal
void   replace_operand(Node *n, int i, Value *to);
void   graph_recount(Graph *g);              // recomputes n_uses

#define for_each_node(g, n) for (Node *n = (g)->first, *n##_next; n && (n##_next = n->next, true); n = n##_next)
#define for_each_node_reverse(g, n) for (Node *n = (g)->last, *n##_prev; n && (n##_prev = n->prev, true); n = n##_prev)

static inline Value *node_out(const Node *n, int i) { return (Value *)&n->out[i]; }

// ---- text and checks ------------------------------------------------------------------------------------

typedef struct { bool names, spans, fold; } PrintOpts;       // fold: equal layers print as one line
void  graph_print(const Graph *g, Str *out, PrintOpts opts);
const char *node_str(const Node *n);                         // one line, for gdb and messages (process-wide buffer ring)
void  graph_show(const Graph *g);                            // to stderr, for gdb
// Reads what graph_print wrote: any number of graphs.  NULL after diag_error.
Graph **graphs_parse(Arena *a, Diag *d, uint32_t file, int *n_graphs);
bool  node_check(const Node *n, Diag *d);                     // one node: operands, types as its shape rule says, check rule
bool  graph_check(const Graph *g, Diag *d);                  // the verifier: false after diag_error naming the node
void  node_was_made(const Node *n);                          // called for each new node; exists to be stopped at

#endif
