// Bodies: elementwise work and row reductions over one space of rows, values in registers.  A single
// elementwise node, softmax, logsumexp or sum along the last axis is a body of one node.
//
// A body becomes a list of steps per row; softmax and logsumexp are spelled out in them.  Reductions cut a
// row's work into levels; each level runs over the columns once:
//
//     level 0   m = max(x)                       LOAD steps are repeated wherever they are read
//     level 1   e = exp(x - m); s = sum(e)       e is kept: in registers (64 columns) or a row buffer
//     level 2   store e / s
//
// Row buffers lie in the thread's scratch memory.  `slice` and `concat` of computed columns go through one
// too, and topk, take and put find their columns there; topk and put run before the columns of their level.
// gather_rows is a load from another row.  scatter_add_rows by a known inverse is a sum of rows of another space,
// the sources of the row; their numbers, sorted, are the rows of as many spaces more, and what is done to sources
// is done once in each:
//
//     row t     r0 < r1 < .. = inverse[t]          y = 0 + f(row r0) + f(row r1) + ..        -1, no row: + 0
//
// A body without reductions whose operands all have the space's own shape (or one element) runs flat: its
// elements are one long row, cut into runs of 4096.
#include <assert.h>
#include <string.h>
#include "codegen/cpu/elem.h"
#include "ir/base/vec.h"

enum { REGISTER_CHUNKS = 4, TOPK_CHUNKS = 16, MOST_AT_ONCE = 4, COLUMNS_AT_ONCE = 128, FLAT_RUN = 4096 };
enum { MAX_WIDTHS = 12, MAX_OPERANDS = 3, MOST_SOURCES = 16, MAX_SPACES = 8 + MOST_SOURCES, MAX_RESULTS = 32 };
enum { AHEAD_BYTES = 4096 };     // where the processor's own prefetch ends
enum { MOST_REDUCTIONS = CG_MAX_CARRY, MOST_STORES = 128, MOST_KEPT = 128, MOST_PARTS = 128 };   // of a body

typedef enum {
    S_LOAD, S_TABLE, S_CONST, S_INDEX, S_ELEM, S_SUM, S_MAX, S_BUFFER, S_TAKE, S_TOPK, S_PUT
} StepKind;

typedef struct Step Step;
// Columns begin .. of a buffer, written from a step.
typedef struct { Step *from; int64_t begin; Dim width; } Part;

struct Step {
    StepKind kind;
    const Node *node;            // ELEM, CONST, TABLE: the node; INDEX: the iota
    Op op;                       // ELEM without node: arithmetic of softmax, COPY, which rounds, or SELECT: 0
                                 // for a source that there is not
    Step *in[MAX_OPERANDS];
    int  n_in;
    DType dtype;
    bool wide;                   // has columns
    Dim  width;
    // LOAD, TABLE, INDEX
    int  arg, space;             // operand number; number of the row space it is read in
    Type view;                   // operand's type as read
    RowMap map;
    int64_t begin;               // first column read; BUFFER: of the buffer
    Step *number;                // LOAD: of the row it reads of the operand, whose own type is `source`
    Type source;
    // BUFFER
    Part  part[16];
    int   n_parts;
    Step *whole;                 // a slice of another buffer
    Step *by;                    // filled by this topk or put
    // TOPK, PUT: operands in[] are buffers
    Step *filled[2];
    int64_t keys;                // TOPK: offset in scratch of the keys
    // schedule
    int  level;                  // loop in which it is computed
    bool anywhere;               // cheap: computed again in every loop that wants it
    bool kept;                   // wanted in later loops
    int64_t buffer;              // offset in scratch; -1: none
    // emission
    LV   value, row;             // of the current chunk, or of the row; LOAD: row offset
    LV   chunk[REGISTER_CHUNKS + 1];
    int  seen;                   // chunk for which `value` holds
    bool asked;                  // LOAD: the level that reads it first asks for its next rows
};

typedef struct { Step *from; int result, source; int64_t begin; Dim cols; } Store;
// Leading dimensions are what counts.  Whose row it is: THIS_ROW - n is the n-th behind the current one, what is not
// negative the number of a source of it.
typedef struct { Type type; int source; } Space;
enum { THIS_ROW = -1 };
static bool is_source(int source) { return source >= 0; }

typedef struct {
    Arena *a;
    const KernelNode *k;
    const Graph *body;
    VEC(Step *) steps;
    VEC(Store) stores;
    VEC(Space) spaces;
    struct Memo { const Value *v; int space; Step *step; struct Memo *next; } *memo;
    bool ok, flat;
    int  n_levels;
    int64_t scratch;
    int64_t grain;
    const Value *result[MAX_RESULTS];     // what is stored; reshapes at the end only rename its dimensions
    const Type *rows;            // the rows of all: those of result 0, or of what a scatter brings together
    const Node *combine;         // the scatter, or NULL
    bool *in_all;                // by the body's values: the same in all sources of a row
    uint32_t streamed;           // streamed_results
    bool asks_ahead;             // for the rows after this one
} Body;

// ---- from nodes to steps -------------------------------------------------------------------------------

static Step *refuse(Body *b) {
    b->ok = false;
    return NULL;
}

static Dim last_dim(const Type *t) { return t->ndim ? t->dim[t->ndim - 1] : dim_n(1); }

static Dim plain_width(Dim d) {
    return d.sym && d.sym->kind == SYM_LEAF ? dim_n(d.n * d.sym->bound) : d;
}

// The rows of target or sources.
static const Type *rows_of(const Body *b, int source) {
    return is_source(source) ? &b->combine->in[0]->type : b->rows;
}

static int space_number(Body *b, const Type *t, int source) {
    for (int i = 0; i < b->spaces.n; i++) {
        const Type *s = &b->spaces.at[i].type;
        bool same = s->ndim == t->ndim && b->spaces.at[i].source == source;
        for (int k = 0; same && k + 1 < t->ndim; k++) same = dim_eq(s->dim[k], t->dim[k]);
        if (same) return i;
    }
    if (!same_rows(t, rows_of(b, source))) return -1;
    if (b->spaces.n == MAX_SPACES) return -1;
    vec_push(b->a, &b->spaces, ((Space){*t, source}));
    return b->spaces.n - 1;
}

static Step *new_step(Body *b, StepKind kind, DType dtype, Dim width) {
    Step *s = arena_new(b->a, Step);
    *s = (Step){.kind = kind,
                .dtype = dtype,
                .width = plain_width(width),
                .wide = !dim_is_1(plain_width(width)),
                .buffer = -1,
                .seen = -1};
    vec_push(b->a, &b->steps, s);
    return s;
}

static Step *arith(Body *b, Op op, DType dtype, Step *x, Step *y) {
    Step *s = new_step(b, S_ELEM, dtype, x->wide || !y ? x->width : y->width);
    s->op = op;
    s->in[s->n_in++] = x;
    if (y) s->in[s->n_in++] = y;
    return s;
}

// x in all of `width` columns, if it is the same in each and so far has none.
static Step *spread(Body *b, Step *x, Dim width) {
    if (x->wide || dim_is_1(plain_width(width))) return x;
    Step *s = arith(b, OP_COPY, x->dtype, x, NULL);
    s->width = plain_width(width);
    s->wide = true;
    return s;
}

static Step *reduce(Body *b, StepKind kind, Step *x) {
    Step *s = new_step(b, kind, dtype_is_float(x->dtype) ? F32 : x->dtype, dim_n(1));
    s->in[s->n_in++] = x;
    return s;
}

// Sums and softmax work in f32 whatever the storage.
static Step *rounded(Body *b, DType t, Step *x) {
    return t == BF16 || t == F16 ? arith(b, OP_COPY, t, x, NULL) : x;
}

static bool is_reducible(DType t) { return dtype_is_float(t) || t == I32; }

static bool is_last_axis(const Node *n) {
    int last = n->in[0]->type.ndim - 1;
    if (n->op == OP_SUM)
        return n->attr.axes.n == 1 && n->attr.axes.at[0] == last && (last > 0 || n->attr.leaves <= 1);
    return n->attr.axis == last;
}

static Step *step_of(Body *b, const Value *v, int space);

// Columns begin .. begin + width of x.
static Step *slice_of(Body *b, Step *x, int64_t begin, Dim width) {
    if (x->kind == S_LOAD && x->wide) {
        Step *s = new_step(b, S_LOAD, x->dtype, width);
        s->arg = x->arg, s->view = x->view, s->map = x->map, s->space = x->space;
        s->number = x->number, s->source = x->source;
        s->begin = x->begin + begin;
        return s;
    }
    if (!x->wide) return x;
    Step *whole = x->whole ? x->whole : x;
    if (x->kind != S_BUFFER) {
        whole = new_step(b, S_BUFFER, x->dtype, x->width);
        whole->part[whole->n_parts++] = (Part){x, 0, x->width};
    }
    Step *s = new_step(b, S_BUFFER, x->dtype, width);
    s->whole = whole;
    s->begin = begin + (x->kind == S_BUFFER ? x->begin : 0);
    return s;
}

// x in memory.
static Step *in_memory(Body *b, Step *x, Dim width) {
    if (x->kind == S_BUFFER) return x;
    Step *s = new_step(b, S_BUFFER, x->dtype, width);
    s->part[s->n_parts++] = (Part){x, 0, plain_width(width)};
    return s;
}

static Step *filled_by(Body *b, Step *by, int i, const Value *v) {
    Step *s = new_step(b, S_BUFFER, v->type.dtype, last_dim(&v->type));
    s->by = by;
    by->filled[i] = s;
    return s;
}

static void remember(Body *b, const Value *v, int space, Step *s) {
    struct Memo *m = arena_new(b->a, struct Memo);
    *m = (struct Memo){v, space, s, b->memo};
    b->memo = m;
}

static Step *load_of(Body *b, StepKind kind, const Type *view, int space) {
    Step *s = new_step(b, kind, view->dtype, last_dim(view));
    s->view = *view;
    s->space = space;
    s->anywhere = true;
    if (!row_map(view, &b->spaces.at[space].type, &s->map)) return refuse(b);
    return s;
}

static Step *topk_of(Body *b, const Node *n, int index, int space) {
    Step *x = step_of(b, n->in[0], space);
    if (!x || !dtype_is_float(x->dtype)) return refuse(b);
    x = in_memory(b, x, last_dim(&n->in[0]->type));
    Step *s = new_step(b, S_TOPK, x->dtype, last_dim(&n->in[0]->type));
    s->node = n;
    s->in[s->n_in++] = x;
    Step *result[2];
    for (int i = 0; i < 2; i++) {
        result[i] = filled_by(b, s, i, &n->out[i]);
        if (i != index) remember(b, &n->out[i], space, result[i]);
    }
    return result[index];
}

static Step *put_of(Body *b, const Node *n, int space) {
    Step *v = step_of(b, n->in[0], space), *at = step_of(b, n->in[1], space);
    if (!v || !at || !is_reducible(v->dtype) || at->dtype != I32) return refuse(b);
    v = in_memory(b, v, last_dim(&n->in[0]->type));
    at = in_memory(b, at, last_dim(&n->in[1]->type));
    Step *s = new_step(b, S_PUT, v->dtype, last_dim(&n->in[1]->type));
    s->node = n;
    s->in[s->n_in++] = v;
    s->in[s->n_in++] = at;
    return filled_by(b, s, 0, &n->out[0]);
}

static Step *take_of(Body *b, const Node *n, int space) {
    Step *x = step_of(b, n->in[0], space), *at = step_of(b, n->in[1], space);
    if (!x || !at || at->dtype != I32) return refuse(b);
    x = in_memory(b, x, last_dim(&n->in[0]->type));
    Step *s = new_step(b, S_TAKE, x->dtype, last_dim(&n->in[1]->type));
    s->node = n;
    s->in[s->n_in++] = x;
    s->in[s->n_in++] = at;
    return s;
}

// Rows of an operand, by number.
static Step *gather_of(Body *b, const Node *n, int space) {
    const Node *from = n->in[0]->node, *index = n->in[1]->node;
    Type numbers = n->in[1]->type;
    if (from->op != OP_ARG || index->op != OP_ARG || numbers.ndim == MAX_DIM) return refuse(b);
    numbers.dim[numbers.ndim++] = dim_n(1);
    Step *number = load_of(b, S_LOAD, &numbers, space);
    if (!number) return NULL;
    number->arg = (int)index->attr.k;
    Step *s = new_step(b, S_LOAD, n->out[0].type.dtype, last_dim(&n->out[0].type));
    s->arg = (int)from->attr.k;
    s->space = space;
    s->anywhere = true;
    s->number = number;
    s->source = n->in[0]->type;
    return s;
}

// The sum of the sources of a row.
static Step *combine_of(Body *b, const Node *n, int space) {
    const Value *inverse = scatter_inverse(n);
    const Type *y = &n->out[0].type, *v = &n->in[0]->type;
    if (n != b->combine || is_source(b->spaces.at[space].source) || inverse->node->op != OP_ARG ||
        n->in[1]->node->op != OP_ARG || !same_rows(y, &inverse->type) || !dtype_is_float(y->dtype) || last_dim(y).sym ||
        last_dim(&inverse->type).sym || type_cols(&inverse->type) > MOST_SOURCES)
        return refuse(b);
    Step *sum = NULL;
    for (int i = 0; i < type_cols(&inverse->type); i++) {
        int of = space_number(b, v, i);
        Step *x = of < 0 ? NULL : step_of(b, n->in[0], of);
        if (!x) return refuse(b);
        x = arith(b, OP_SELECT, F32, x, NULL);
        x->space = of;
        sum = sum ? arith(b, OP_ADD, F32, sum, x) : x;
    }
    return rounded(b, y->dtype, sum);
}

static Step *concat_of(Body *b, const Node *n, int space) {
    if (n->attr.axis != n->out[0].type.ndim - 1 || n->n_in > (int)(sizeof((Step *)0)->part / sizeof(Part)))
        return refuse(b);
    Step *from[16];
    for (int i = 0; i < n->n_in; i++) {
        from[i] = step_of(b, n->in[i], space);
        if (!from[i] || last_dim(&n->in[i]->type).sym) return refuse(b);
    }
    Step *s = new_step(b, S_BUFFER, n->out[0].type.dtype, last_dim(&n->out[0].type));
    for (int64_t i = 0, at = 0; i < n->n_in; i++) {
        Dim width = last_dim(&n->in[i]->type);
        s->part[s->n_parts++] = (Part){from[i], at, width};
        at += width.n;
    }
    return s;
}

// The value of v in a row of `space`, with v's own columns.  Memoised by build.
static Step *build_step(Body *b, const Value *v, int space) {
    const Node *n = v->node;
    const Type *t = &v->type;
    switch (n->op) {
    case OP_ARG: {
        Step *s = load_of(b, S_LOAD, t, space);
        if (s) s->arg = (int)n->attr.k;
        return s;
    }
    case OP_CONST:
        if (type_bound_elements(t) == 1) {
            Step *s = new_step(b, S_CONST, t->dtype, dim_n(1));
            s->node = n;
            s->anywhere = true;
            return s;
        } else {
            Step *s = load_of(b, S_TABLE, t, space);
            if (s) s->node = n;
            return s;
        }
    case OP_IOTA: {
        Step *s = load_of(b, S_INDEX, t, space);
        if (!s || t->dtype != I32) return refuse(b);
        s->node = n;
        s->wide = n->attr.axis == t->ndim - 1 && s->wide;
        if (!s->wide) s->width = dim_n(1);
        return s;
    }
    case OP_STOP_GRADIENT: case OP_COPY:
        return step_of(b, n->in[0], space);
    case OP_BROADCAST:
        return step_of(b, n->in[0], space);
    case OP_RESHAPE: {
        const Type *from = &n->in[0]->type;
        if (n->in[0]->node->op == OP_ARG) {                    // the operand, read in the new shape
            Step *s = load_of(b, S_LOAD, t, space);
            if (s) s->arg = (int)n->in[0]->node->attr.k;
            return s;
        }
        if (type_bound_elements(t) == 1 && type_bound_elements(from) == 1) return step_of(b, n->in[0], space);
        if (!dim_eq(last_dim(t), last_dim(from)) || !same_rows(from, t)) return refuse(b);
        int inner = space, source = b->spaces.at[space].source;
        if (same_rows(t, rows_of(b, source))) inner = space_number(b, from, source);
        else {                                                 // fewer rows: only axes of 1 may come or go
            int i = from->ndim - 1, j = t->ndim - 1;
            while (i >= 0 || j >= 0) {
                if (i >= 0 && j >= 0 && dim_eq(from->dim[i], t->dim[j])) i--, j--;
                else return refuse(b);
            }
        }
        return inner < 0 ? refuse(b) : step_of(b, n->in[0], inner);
    }
    case OP_SUM: case OP_REDUCE_MAX: {
        bool is_any = n->op == OP_REDUCE_MAX && t->dtype == BOOL;
        if (!is_last_axis(n) || !(is_reducible(t->dtype) || is_any)) return refuse(b);
        Step *x = step_of(b, n->in[0], space);
        if (!x) return NULL;
        x = spread(b, x, last_dim(&n->in[0]->type));
        return rounded(b, t->dtype, reduce(b, n->op == OP_SUM ? S_SUM : S_MAX, x));
    }
    case OP_SOFTMAX: case OP_LOGSUMEXP: {
        Step *x = step_of(b, n->in[0], space);
        if (!x) return NULL;
        x = spread(b, x, last_dim(&n->in[0]->type));
        Step *m = reduce(b, S_MAX, x), *e = arith(b, OP_EXP, F32, arith(b, OP_SUB, F32, x, m), NULL),
             *s = reduce(b, S_SUM, e);
        s = n->op == OP_SOFTMAX ? arith(b, OP_DIV, F32, e, s)
                                : arith(b, OP_ADD, F32, arith(b, OP_LOG, F32, s, NULL), m);
        return rounded(b, t->dtype, s);
    }
    case OP_SLICE: {
        Dim have = last_dim(&n->in[0]->type);
        if (n->attr.axis != t->ndim - 1 || have.sym) return refuse(b);
        Step *x = step_of(b, n->in[0], space);
        return x ? slice_of(b, x, n->attr.begin, last_dim(t)) : NULL;
    }
    case OP_CONCAT:
        return concat_of(b, n, space);
    case OP_TOPK:
        return topk_of(b, n, v->index, space);
    case OP_TAKE:
        return take_of(b, n, space);
    case OP_PUT:
        return put_of(b, n, space);
    case OP_GATHER_ROWS:
        return gather_of(b, n, space);
    case OP_SCATTER_ADD_ROWS:
        return combine_of(b, n, space);
    default: {
        if (!elem_supported(n)) return refuse(b);
        Step *x[MAX_OPERANDS];
        for (int i = 0; i < n->n_in; i++) {
            x[i] = step_of(b, n->in[i], space);
            if (!x[i]) return NULL;
        }
        Step *s = new_step(b, S_ELEM, t->dtype, last_dim(t));
        s->node = n;
        s->op = n->op;
        s->n_in = n->n_in;
        bool wide = false;
        for (int i = 0; i < n->n_in; i++) {
            s->in[i] = x[i];
            wide |= x[i]->wide;
        }
        if (!wide) s->wide = false, s->width = dim_n(1);       // the same in all columns
        return s;
    }
    }
}

// What all sources of a row share is a step of the first one.
static int space_of_step(Body *b, const Value *v, int space) {
    Space s = b->spaces.at[space];
    return s.source > 0 && b->in_all[v->id] ? space_number(b, &s.type, 0) : space;
}

static Step *step_of(Body *b, const Value *v, int space) {
    if (!b->ok) return NULL;
    space = space_of_step(b, v, space);
    for (struct Memo *m = b->memo; m; m = m->next)
        if (m->v == v && m->space == space) return m->step;
    Step *s = build_step(b, v, space);
    if (!s) return refuse(b);
    remember(b, v, space, s);
    return s;
}

// ---- levels --------------------------------------------------------------------------------------------

// Columns or numbers made from other steps, again for every chunk.
static bool is_computed(const Step *s) { return s->kind == S_ELEM || s->kind == S_TAKE; }

static int available(const Step *s) {        // first level that may read s
    if (s->anywhere && s->kind != S_ELEM) return 0;
    return s->kind == S_SUM || s->kind == S_MAX ? s->level + 1 : s->level;
}

static bool is_cheap(const Step *s) {
    switch (s->op) {
    case OP_EXP:
    case OP_LOG:
    case OP_LOG1P:
    case OP_TANH:
    case OP_SIGMOID:
    case OP_ERF:
    case OP_SIN:
    case OP_COS:
    case OP_DIV: case OP_MOD: case OP_SQRT: case OP_RSQRT: return false;
    default: break;
    }
    for (int i = 0; i < s->n_in; i++) {
        const Step *x = s->in[i];
        if (x->wide && x->kind != S_LOAD && x->kind != S_TABLE && x->kind != S_INDEX) return false;
    }
    return true;
}

static void set_levels(Body *b) {
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        for (int j = 0; j < s->n_in; j++)
            if (available(s->in[j]) > s->level) s->level = available(s->in[j]);
        for (int j = 0; j < s->n_parts; j++)
            if (available(s->part[j].from) + 1 > s->level) s->level = available(s->part[j].from) + 1;
        if (s->whole) s->level = s->whole->level;
        if (s->by) s->level = s->by->level;
        if (s->kind == S_ELEM && s->wide && is_cheap(s)) s->anywhere = true;
        if (s->kind == S_BUFFER) s->anywhere = false;
        if (s->level + 1 > b->n_levels) b->n_levels = s->level + 1;
    }
    // as late as their readers allow: fewer values wait in buffers
    int n = b->steps.n;
    int *latest = arena_array(b->a, int, n + 1);
    for (int i = 0; i < n; i++) latest[i] = -1;
    for (int i = 0; i < n; i++) b->steps.at[i]->seen = i;      // number, for now
    for (int i = 0; i < b->stores.n; i++) latest[b->stores.at[i].from->seen] = b->stores.at[i].from->level;
    for (int i = n - 1; i >= 0; i--) {
        Step *s = b->steps.at[i];
        if (is_computed(s) && latest[i] > s->level) s->level = latest[i];
        for (int j = 0; j < s->n_in; j++) {
            int *l = &latest[s->in[j]->seen];
            if (*l < 0 || *l > s->level) *l = s->level;
        }
        for (int j = 0; j < s->n_parts; j++) {
            int *l = &latest[s->part[j].from->seen];
            if (*l < 0 || *l > s->level - 1) *l = s->level - 1;
        }
    }
    for (int i = 0; i < n; i++) b->steps.at[i]->seen = -1;
}

static bool in_registers(Dim width) { return !width.sym && width.n <= REGISTER_CHUNKS * LANES; }

static int64_t buffer_bytes(Dim width) {
    return ((dim_bound(width) + LANES - 1) / LANES * LANES + LANES) * 4;
}

// Who is read in a later loop than its own, and where such values wait.
static void keep_values(Body *b) {
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        for (int j = 0; j < s->n_in; j++) {
            Step *x = s->in[j];
            if (is_computed(x) && x->wide && !x->anywhere && x->level < s->level) x->kept = true;
        }
        for (int j = 0; j < s->n_parts; j++) {
            Step *x = s->part[j].from;
            if (is_computed(x) && x->wide && !x->anywhere && x->level < s->level - 1) x->kept = true;
        }
    }
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        bool memory = s->kind == S_BUFFER ? !s->whole : s->kept && !in_registers(s->width);
        if (s->kind == S_TOPK) {
            s->keys = b->scratch;
            b->scratch += (buffer_bytes(s->width) + 63) / 64 * 64;
        }
        if (!memory) continue;
        s->buffer = b->scratch;
        b->scratch += (buffer_bytes(s->width) + 63) / 64 * 64;
    }
    if (b->scratch > RT_SCRATCH_BYTES) b->ok = false;
}

// ---- the body of a kernel ------------------------------------------------------------------------------

// A lone node as a body: its operands are ARGs.
static const Graph *one_node_body(Arena *a, const Node *n) {
    Graph *g = graph_new(a, "body");
    g->parent = n->graph;
    Node *last = NULL;
    Node *core = arena_new(a, Node);
    *core = *n;
    core->in = arena_array(a, Value *, n->n_in + 1);
    core->out = arena_array(a, Value, n->n_out + 1);
    core->graph = g;
    Node *yield = arena_new(a, Node);
    *yield = (Node){.op = OP_YIELD, .n_in = n->n_out, .graph = g};
    yield->in = arena_array(a, Value *, n->n_out + 1);
    for (int i = 0; i < n->n_out; i++) {
        core->out[i] = (Value){.node = core, .index = i, .type = n->out[i].type};
        yield->in[i] = &core->out[i];
    }
    for (int i = 0; i < n->n_in + 2; i++) {
        Node *m = i == n->n_in ? core : i > n->n_in ? yield : arena_new(a, Node);
        if (i < n->n_in) {
            const Type *t = &n->in[i]->type;
            *m = (Node){.op = OP_ARG,
                        .n_out = 1,
                        .graph = g,
                        .attr = {.k = i, .dtype = t->dtype, .dims = dims_of(t)}};
            m->out = arena_new(a, Value);
            m->out[0] = (Value){.node = m, .type = *t};
            core->in[i] = m->out;
        }
        m->prev = last;
        m->next = NULL;
        if (last) last->next = m; else g->first = m;
        last = g->last = m;
        g->n_nodes++;
    }
    return g;
}

static bool all_elements(const Type *t, Dim *n) {          // elements as one dimension
    *n = dim_n(1);
    for (int i = 0; i < t->ndim; i++) {
        Dim d = plain_width(t->dim[i]);
        if (d.sym && n->sym) return false;
        *n = (Dim){n->n * d.n, d.sym ? d.sym : n->sym};
    }
    return true;
}

// Elementwise only, every operand as large as the results or one element.
static bool is_flat(const Body *b) {
    Dim n, m;
    if (!all_elements(b->rows, &n)) return false;
    for (int i = 0; i < b->k->node->n_out; i++)
        if (!all_elements(&b->k->node->out[i].type, &m) || !dim_eq(n, m)) return false;
    for_each_node(b->body, x) {
        if (x->op == OP_YIELD) continue;
        if (x->op == OP_CONST && type_bound_elements(&x->out[0].type) == 1) continue;
        if (x->op != OP_ARG && !is_shown(x) && !elem_supported(x)) return false;
        if (!all_elements(&x->out[0].type, &m)) return false;
        if (x->op == OP_BROADCAST) {
            if (type_bound_elements(&x->in[0]->type) != 1) return false;
            continue;
        }
        if (!dim_eq(n, m) && type_bound_elements(&x->out[0].type) != 1) return false;
    }
    return true;
}

static void flatten_types(Body *b);

// What result i is stored from.
static bool add_store(Body *b, int i, int source) {
    const Type *t = &b->result[i]->type;
    int space = space_number(b, t, source);
    if (space < 0) return false;
    const Node *concat = b->result[i]->node;
    if (concat->op == OP_CONCAT && concat->attr.axis == t->ndim - 1 && !last_dim(t).sym) {
        int64_t at = 0;                                    // parts go to their place
        for (int j = 0; b->ok && j < concat->n_in; j++) {
            Step *s = step_of(b, concat->in[j], space);
            if (!s) return false;
            Store store = {s, i, source, at, last_dim(&concat->in[j]->type)};
            vec_push(b->a, &b->stores, store);
            at += store.cols.n;
        }
        return b->ok;
    }
    Step *s = step_of(b, b->result[i], space);
    if (!s) return false;
    Store store = {s, i, source, 0, plain_width(last_dim(t))};
    vec_push(b->a, &b->stores, store);
    return b->ok;
}

static const Node *combining_node(const Graph *body) {
    for_each_node(body, n)
        if (n->op == OP_SCATTER_ADD_ROWS && scatter_inverse(n)) return n;
    return NULL;
}

// Made of constants and of what a row's sources read by its own number.
static bool is_in_all(const Body *b, const Node *n) {
    if (n->op == OP_CONST) return type_bound_elements(&n->out[0].type) == 1;
    if (n->op == OP_GATHER_ROWS)
        return n->in[0]->node->op == OP_ARG && n->in[1]->node->op == OP_ARG && n->in[1] == b->combine->in[1];
    bool all = n->n_in > 0 && n->op != OP_SCATTER_ADD_ROWS;
    for (int i = 0; i < n->n_in; i++) all &= b->in_all[n->in[i]->id];
    return all;
}

static void find_common_values(Body *b) {
    b->in_all = arena_array(b->a, bool, graph_number((Graph *)b->body) + 1);
    for_each_node(b->body, n)
        for (int i = 0; i < n->n_out; i++) b->in_all[n->out[i].id] = is_in_all(b, n);
}

// More than a sweep over columns has room for.
static bool is_too_much(const Body *b) {
    int reductions = 0, parts = 0;
    for (int i = 0; i < b->steps.n; i++) {
        reductions += b->steps.at[i]->kind == S_SUM || b->steps.at[i]->kind == S_MAX;
        parts += b->steps.at[i]->n_parts;
    }
    return reductions > MOST_REDUCTIONS || b->stores.n > MOST_STORES || parts > MOST_PARTS;
}

// More than the caches of the cores hold.
static bool leaves_caches(const KernelNode *k) {
    return k->machine && machine_level(k->machine, (int64_t)k->bytes, 0) >= LEVEL_L3;
}

// Work on `at_once` rows, step by step in turns.
static bool make_body(Body *b, Arena *a, const KernelNode *k, int at_once) {
    const Node *n = k->node;
    *b = (Body){.a = a, .k = k, .ok = true, .streamed = streamed_results(k), .asks_ahead = leaves_caches(k)};
    b->body = n->attr.body ? n->attr.body : one_node_body(a, n);
    if (n->n_out < 1 || n->n_out > MAX_RESULTS) return false;
    b->rows = &n->out[0].type;
    b->flat = !k->grain && is_flat(b);
    if (b->flat) flatten_types(b);
    for (int i = 0; i < n->n_out; i++) {
        b->result[i] = b->body->last->in[i];
        while (b->result[i]->node->op == OP_RESHAPE) b->result[i] = b->result[i]->node->in[0];
    }
    b->combine = combining_node(b->body);
    b->rows = b->combine ? &b->combine->out[0].type : &b->result[0]->type;
    if (b->combine) find_common_values(b);
    int n_sources = b->combine ? (int)type_cols(&scatter_inverse(b->combine)->type) : 0;
    for (int i = 0; i < n->n_out; i++) {
        if (same_rows(&b->result[i]->type, b->rows)) {
            for (int j = 0; j < at_once; j++)
                if (!add_store(b, i, THIS_ROW - j)) return false;
            continue;
        }
        if (!b->combine || !same_rows(&b->result[i]->type, rows_of(b, 0)) || n_sources > MOST_SOURCES) return false;
        for (int j = 0; j < n_sources; j++)
            if (!add_store(b, i, j)) return false;
    }
    if (!b->ok || is_too_much(b)) return false;
    set_levels(b);
    keep_values(b);
    return b->ok;
}

static bool is_topk_in_groups(const Step *s) {
    if (s->kind != S_TOPK) return false;
    Dim width = last_dim(&s->node->in[0]->type);
    return !width.sym && width.n <= TOPK_CHUNKS * LANES && s->node->attr.k <= LANES;
}

// How many rows at once.  A short row that is reduced is a chain of operations that wait for each other: several of them
// fill the time.
static int rows_at_once(const Body *b) {
    int64_t widest = 1;
    bool reduces = false, chooses = false;
    if (b->flat || b->combine) return 1;
    for (int i = 0; i < b->steps.n; i++) {
        const Step *s = b->steps.at[i];
        if (s->width.sym) return 1;
        if (s->width.n > widest) widest = s->width.n;
        reduces |= s->kind == S_SUM || s->kind == S_MAX;
        chooses |= is_topk_in_groups(s);
    }
    int64_t rows = (chooses ? 2 : 1) * COLUMNS_AT_ONCE / widest;
    return !(reduces || chooses) || rows < 1 ? 1 : rows < MOST_AT_ONCE ? (int)rows : MOST_AT_ONCE;
}

// In flat bodies every full value is [n], every other one a scalar.
static void flatten_types(Body *b) {
    Dim n;
    all_elements(b->rows, &n);
    Type *flat = arena_new(b->a, Type);
    *flat = type_make(b->rows->dtype, 1, &n);
    // a copy, since the node's own types stay as they are
    Graph *g = graph_new(b->a, "flat");
    g->parent = b->body->parent;
    int n_values = graph_number((Graph *)b->body);
    Value **to = arena_array(b->a, Value *, n_values + 1);
    Node *last = NULL;
    for_each_node(b->body, x) {
        Node *m = arena_new(b->a, Node);
        *m = *x;
        m->in = arena_array(b->a, Value *, x->n_in + 1);
        m->out = arena_array(b->a, Value, x->n_out + 1);
        m->graph = g;
        for (int i = 0; i < x->n_in; i++) m->in[i] = to[x->in[i]->id];
        for (int i = 0; i < x->n_out; i++) {
            bool one = type_bound_elements(&x->out[i].type) == 1 && !dim_is_1(n);
            m->out[i] = (Value){
                .node = m, .index = i, .type = one ? type_make(x->out[i].type.dtype, 0, NULL) : *flat};
            m->out[i].type.dtype = x->out[i].type.dtype;
            to[x->out[i].id] = &m->out[i];
        }
        if (m->op == OP_RESHAPE) m->op = OP_COPY;
        m->prev = last;
        m->next = NULL;
        if (last) last->next = m; else g->first = m;
        last = g->last = m;
    }
    b->body = g;
    b->rows = flat;
}

// ---- emission ------------------------------------------------------------------------------------------

typedef struct {
    Cg   *cg;
    Body *b;
    LV    row;
    LV    index[MAX_SPACES][MAX_DIM];       // by row space
    LV    source_row[MOST_SOURCES], is_source[MOST_SOURCES];     // sorted; 0 where there is none
    bool  all_there;                 // no source is missing
    LV    zeros;                     // what rows read by a number that is none show
    int   level, stamp, chunk_number;  // chunk_number: within a width kept in registers, else -1
    LV    col, mask;
} Em;

static LV buffer_at(Em *e, const Step *s) {
    return cg_bytes(e->cg, e->cg->scratch, cg_int(e->cg, s->buffer));
}

// How values wait in row buffers: booleans as bytes, all else as in registers.
static DType buffer_type(DType t) { return t == BOOL || t == I32 ? t : F32; }

// The first column of a buffer or a part of one.
static LV column_at(Em *e, const Step *s) {
    return cg_at(e->cg, buffer_type(s->dtype), buffer_at(e, s->whole ? s->whole : s),
                 cg_int(e->cg, s->begin));
}

// The lane with the largest key, of equal ones that with the lowest index.
static LV best_index(Cg *cg, LV key, LV index) {
    for (int n = LANES; n > 1; n /= 2) {
        LV low[LANES], high[LANES], none = LLVMGetPoison(LLVMTypeOf(key));
        for (int i = 0; i < n / 2; i++) low[i] = cg_int32(cg, i), high[i] = cg_int32(cg, n / 2 + i);
        LV take_low = LLVMConstVector(low, (unsigned)n / 2),
           take_high = LLVMConstVector(high, (unsigned)n / 2);
        LV ka = LLVMBuildShuffleVector(cg->b, key, none, take_low, ""),
           kb = LLVMBuildShuffleVector(cg->b, key, none, take_high, "");
        LV ia = LLVMBuildShuffleVector(cg->b, index, none, take_low, ""),
           ib = LLVMBuildShuffleVector(cg->b, index, none, take_high, "");
        LV tie = LLVMBuildAnd(cg->b, LLVMBuildICmp(cg->b, LLVMIntEQ, ka, kb, ""),
                              LLVMBuildICmp(cg->b, LLVMIntSLT, ib, ia, ""), "");
        LV second = LLVMBuildOr(cg->b, LLVMBuildICmp(cg->b, LLVMIntSGT, kb, ka, ""), tie, "");
        key = cg_select(cg, second, kb, ka);
        index = cg_select(cg, second, ib, ia);
    }
    return LLVMBuildExtractElement(cg->b, index, cg_int32(cg, 0), "");
}

// Keys in memory, in 16 groups of neighbours whose largest are a vector: k times the first of the largest group that holds
// the largest of all is taken, and that group's largest found again.  Of several rows in turns.
typedef struct { Step *step; int group; LV x, keys, largest; } TopK;

// The larger of each two neighbours in 32 lanes.
static LV larger_neighbours(Cg *cg, LV low, LV high) {
    LV even[LANES], odd[LANES];
    for (int i = 0; i < LANES; i++) even[i] = cg_int32(cg, 2 * i), odd[i] = cg_int32(cg, 2 * i + 1);
    LV a = LLVMBuildShuffleVector(cg->b, low, high, LLVMConstVector(even, LANES), "");
    LV b = LLVMBuildShuffleVector(cg->b, low, high, LLVMConstVector(odd, LANES), "");
    return cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGT, a, b, ""), a, b);
}

static void topk_begin(Em *e, TopK *t, Step *s) {
    Cg *cg = e->cg;
    int64_t n = type_cols(&s->node->in[0]->type);
    *t = (TopK){.step = s, .group = 1, .x = column_at(e, s->in[0]), .keys = cg_bytes(cg, cg->scratch, cg_int(cg, s->keys))};
    while (t->group * LANES < n) t->group *= 2;
    LV key[TOPK_CHUNKS];
    for (int c = 0; c < t->group; c++) {
        int64_t left = n - c * LANES;
        key[c] = cg_vec_int(cg, INT32_MIN);                                    // below the key of NaN
        if (left <= 0) continue;
        LV x = cg_order_key(cg, cg_load_vec(cg, F32, t->x, cg_int(cg, c * LANES), NULL));
        key[c] = left < LANES ? cg_select(cg, cg_tail_mask(cg, cg_int(cg, left)), x, key[c]) : x;
        if (t->group > 1) cg_store_vec(cg, I32, key[c], t->keys, cg_int(cg, c * LANES), NULL);
    }
    for (int c = t->group; c > 1; c /= 2)
        for (int i = 0; i < c / 2; i++) key[i] = larger_neighbours(cg, key[2 * i], key[2 * i + 1]);
    t->largest = key[0];
}

static LV splat_lanes(Cg *cg, LV x, int n) {
    LV all[LANES], one = LLVMGetPoison(LLVMVectorType(cg->i32, (unsigned)n));
    for (int i = 0; i < n; i++) all[i] = cg_int32(cg, 0);
    one = LLVMBuildInsertElement(cg->b, one, x, cg_int32(cg, 0), "");
    return LLVMBuildShuffleVector(cg->b, one, one, LLVMConstVector(all, (unsigned)n), "");
}

// The first of n lanes that is x, which one is.
static LV first_lane(Cg *cg, LV v, LV x, int n) {
    LT overload[] = {cg->i32};
    LV equal = LLVMBuildICmp(cg->b, LLVMIntEQ, v, splat_lanes(cg, x, n), "");
    equal = LLVMBuildBitCast(cg->b, equal, LLVMIntTypeInContext(cg->cx, (unsigned)n), "");
    LV args[] = {LLVMBuildZExt(cg->b, equal, cg->i32, ""), cg_bool(cg, true)};
    return cg_intrinsic(cg, "llvm.cttz", overload, 1, args, 2);
}

static LV largest_lane(Cg *cg, LV v) {
    LT overload[] = {LLVMTypeOf(v)};
    return cg_intrinsic(cg, "llvm.vector.reduce.smax", overload, 1, &v, 1);
}

// v with x in one of n lanes.
static LV with_lane(Cg *cg, LV v, LV lane, LV x, int n) {
    LV number[LANES];
    for (int i = 0; i < n; i++) number[i] = cg_int32(cg, i);
    LV here = LLVMBuildICmp(cg->b, LLVMIntEQ, LLVMConstVector(number, (unsigned)n), splat_lanes(cg, lane, n), "");
    return cg_select(cg, here, splat_lanes(cg, x, n), v);
}

// Takes one out of its group; gives its index and the group's largest that is left.
static LV take_from_group(Cg *cg, const TopK *t, LV group, LV best, LV *left) {
    LT type = LLVMVectorType(cg->i32, (unsigned)t->group);
    LV first = LLVMBuildMul(cg->b, group, cg_int32(cg, t->group), ""), at = cg_at(cg, I32, t->keys, cg_i64(cg, first));
    LV keys = cg_load(cg, type, at, 4 * t->group), lane = first_lane(cg, keys, best, t->group);
    keys = with_lane(cg, keys, lane, cg_int32(cg, INT32_MIN), t->group);
    cg_store(cg, keys, at, 4 * t->group);
    *left = largest_lane(cg, keys);
    return LLVMBuildAdd(cg->b, first, lane, "");
}

static void topk_round(Em *e, TopK *t, int k) {
    Cg *cg = e->cg;
    LV best = largest_lane(cg, t->largest), group = first_lane(cg, t->largest, best, LANES), i = group, left = cg_int32(cg, INT32_MIN);
    if (t->group > 1) i = take_from_group(cg, t, group, best, &left);
    t->largest = with_lane(cg, t->largest, group, left, LANES);
    cg_store1(cg, F32, cg_load1(cg, F32, t->x, cg_i64(cg, i)), column_at(e, t->step->filled[0]), cg_int(cg, k));
    cg_store1(cg, I32, i, column_at(e, t->step->filled[1]), cg_int(cg, k));
}

// All of a level that are alike: those of the rows that are done at once.
static void emit_topks(Em *e, Step *first, int level) {
    TopK t[MOST_AT_ONCE];
    int n = 0;
    for (int i = 0; i < e->b->steps.n && n < MOST_AT_ONCE; i++) {
        Step *s = e->b->steps.at[i];
        if (s->kind == S_TOPK && s->level == level && s->node == first->node) topk_begin(e, &t[n++], s);
    }
    for (int k = 0; k < first->node->attr.k; k++)
        for (int i = 0; i < n; i++) topk_round(e, &t[i], k);
}

static bool is_first_of_its_node(const Body *b, const Step *s) {
    for (int i = 0; b->steps.at[i] != s; i++)
        if (b->steps.at[i]->kind == S_TOPK && b->steps.at[i]->node == s->node) return false;
    return true;
}

// k rounds: the best of all columns that are left.
static void emit_topk(Em *e, Step *s) {
    Cg *cg = e->cg;
    LV x = column_at(e, s->in[0]), keys = cg_bytes(cg, cg->scratch, cg_int(cg, s->keys));
    LV values = column_at(e, s->filled[0]), index = column_at(e, s->filled[1]);
    LV n = cg_dim(cg, last_dim(&s->node->in[0]->type)), zero = cg_int(cg, 0);
    LV taken = cg_vec_int(cg, INT32_MIN);                // below the key of NaN
    CgLoop c, k;
    cg_for(cg, &c, zero, n, LANES);
    LV key = cg_order_key(cg, cg_load_vec(cg, F32, x, c.i, NULL));
    cg_store_vec(cg, I32, cg_select(cg, cg_tail_mask(cg, cg_sub(cg, n, c.i)), key, taken), keys, c.i, NULL);
    cg_end(cg, &c);
    cg_for(cg, &k, zero, cg_int(cg, s->node->attr.k), 1);
    LV best[2] = {taken, cg_zero(cg->vi32)};
    cg_loop_begin(cg, &c, zero, n, LANES, 2, best);
    key = cg_load_vec(cg, I32, keys, c.i, NULL);
    LV better = LLVMBuildICmp(cg->b, LLVMIntSGT, key, c.carry[0], "");
    LV here = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, c.i, cg->i32, "")), "");
    best[0] = cg_select(cg, better, key, c.carry[0]);
    best[1] = cg_select(cg, better, here, c.carry[1]);
    cg_loop_end(cg, &c, best);
    LV i = best_index(cg, c.carry[0], c.carry[1]), wide = cg_i64(cg, i);
    cg_store1(cg, I32, i, index, k.i);
    cg_store1(cg, F32, cg_load1(cg, F32, x, wide), values, k.i);
    cg_store1(cg, I32, cg_int32(cg, INT32_MIN), keys, wide);
    cg_end(cg, &k);
}

// Few columns: each value added in its lane.
static void emit_put_in_registers(Em *e, Step *s) {
    Cg *cg = e->cg;
    DType t = buffer_type(s->dtype);
    LV v = column_at(e, s->in[0]), index = column_at(e, s->in[1]), y[REGISTER_CHUNKS];
    int64_t n = type_cols(&s->node->out[0].type), k = type_cols(&s->node->in[1]->type);
    for (int c = 0; c * LANES < n; c++) y[c] = cg_zero(t == F32 ? cg->vf32 : cg->vi32);
    for (int j = 0; j < k; j++) {
        LV at = cg_splat(cg, cg_load1(cg, I32, index, cg_int(cg, j))), x = cg_splat(cg, cg_load1(cg, t, v, cg_int(cg, j)));
        for (int c = 0; c * LANES < n; c++) {
            LV lanes = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_vec_int(cg, c * LANES), "");
            LV sum = t == F32 ? cg_fadd(cg, y[c], x) : cg_add(cg, y[c], x);
            y[c] = cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntEQ, lanes, at, ""), sum, y[c]);
        }
    }
    for (int c = 0; c * LANES < n; c++)
        cg_store_vec(cg, t, y[c], column_at(e, s->filled[0]), cg_int(cg, c * LANES), NULL);
}

static void emit_put(Em *e, Step *s) {
    Cg *cg = e->cg;
    Dim width = last_dim(&s->node->out[0].type), few = last_dim(&s->node->in[1]->type);
    if (in_registers(width) && !few.sym && few.n <= LANES) {
        emit_put_in_registers(e, s);
        return;
    }
    DType t = buffer_type(s->dtype);
    LV v = column_at(e, s->in[0]), index = column_at(e, s->in[1]), y = column_at(e, s->filled[0]);
    LV n = cg_dim(cg, last_dim(&s->node->out[0].type));
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), n, LANES);
    cg_store_vec(cg, t, cg_zero(t == F32 ? cg->vf32 : cg->vi32), y, l.i, NULL);
    cg_end(cg, &l);
    cg_for(cg, &l, cg_int(cg, 0), cg_dim(cg, last_dim(&s->node->in[1]->type)), 1);
    LV i = cg_i64(cg, cg_load1(cg, I32, index, l.i)), x = cg_load1(cg, t, v, l.i);
    CgIf f;
    cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, i, n, ""));
    LV old = cg_load1(cg, t, y, i);
    cg_store1(cg, t, t == F32 ? cg_fadd(cg, old, x) : cg_add(cg, old, x), y, i);
    cg_endif(cg, &f);
    cg_end(cg, &l);
}

static LV emit_step(Em *e, Step *s);

static LV value_of(Em *e, Step *s) {                 // 16 lanes of the current chunk
    if (!s->wide) return s->value;
    if (is_computed(s) && !s->anywhere && s->level < e->level) {
        if (in_registers(s->width)) return s->chunk[e->chunk_number];
        if (s->seen == e->stamp) return s->value;
        s->seen = e->stamp;
        return s->value = cg_load_vec(e->cg, buffer_type(s->dtype), buffer_at(e, s), e->col, NULL);
    }
    if (s->seen == e->stamp) return s->value;
    LV v = emit_step(e, s);
    s->seen = e->stamp;
    return s->value = v;
}

static LV emit_arith(Em *e, const Step *s, const LV *x) {
    Cg *cg = e->cg;
    LV zero = cg_zero(cg->vf32);
    if (s->node) return elem_emit(cg, s->node, x);
    switch (s->op) {
    case OP_ADD: return cg_fadd(cg, x[0], x[1]);
    case OP_SUB: return cg_fsub(cg, x[0], x[1]);
    case OP_DIV: return cg_fdiv(cg, x[0], x[1]);
    case OP_EXP: return cg_exp(cg, x[0]);
    case OP_LOG: return cg_log(cg, x[0]);
    case OP_SELECT: {                                          // sums begin at 0: 0 + -0 is 0
        int source = e->b->spaces.at[s->space].source;
        LV sum = source ? x[0] : cg_fadd(cg, zero, x[0]);
        return e->all_there ? sum : cg_select(cg, cg_splat(cg, e->is_source[source]), sum, zero);
    }
    default: return elem_round(cg, s->dtype, x[0]);
    }
}

// Whole rows ahead, where they follow each other: the work on one leaves no room to wait for the next one's first lines.
static void ask_ahead(Em *e, DType t, LV base, LV at, Dim cols, bool write) {
    if (!e->b->asks_ahead || e->mask || (cols.sym && !e->b->flat)) return;
    int64_t least = AHEAD_BYTES / dtype_bytes(t), rows = e->b->flat || !cols.n ? 0 : (least + cols.n - 1) / cols.n;
    LV next = cg_addi(e->cg, at, rows > 1 ? rows * cols.n : least);
    cg_prefetch(e->cg, cg_at(e->cg, t, base, next), write, 3);
}

// The row that a combine brings sources to, read by number.
static bool is_target_row(const Em *e, const Step *s) {
    const Node *combine = e->b->combine;
    return combine && is_source(e->b->spaces.at[s->space].source) && combine->in[1]->node->attr.k == s->number->arg;
}

static bool is_in_order(const Em *e, const Step *s) {
    if (s->kind != S_LOAD) return false;
    return s->number ? is_target_row(e, s) : s->map.whole && !is_source(e->b->spaces.at[s->space].source);
}

static LV emit_step(Em *e, Step *s) {
    Cg *cg = e->cg;
    switch (s->kind) {
    case S_LOAD: case S_TABLE: {
        LV base = s->kind == S_LOAD && !s->number ? cg_in(cg, s->arg) : s->chunk[0];
        if (!s->wide) return cg_splat(cg, cg_load1(cg, s->dtype, base, cg_addi(cg, s->row, s->begin)));
        LV at = cg_add(cg, cg_addi(cg, s->row, s->begin), e->col);
        if (!s->asked && is_in_order(e, s)) ask_ahead(e, s->dtype, base, at, last_dim(s->number ? &s->source : &s->view), false);
        s->asked = true;
        return cg_load_vec(cg, s->dtype, base, at, e->mask);
    }
    case S_CONST: return elem_const(cg, s->node);
    case S_INDEX: {
        if (s->wide)
            return LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, e->col, cg->i32, "")),
                                "");
        const Type *space = &e->b->spaces.at[s->space].type;
        int axis = (int)s->node->attr.axis + space->ndim - s->view.ndim;
        LV i = axis == space->ndim - 1 || dim_is_1(s->view.dim[s->node->attr.axis])
                   ? cg_int(cg, 0)
                   : e->index[s->space][axis];
        return cg_splat(cg, LLVMBuildTrunc(cg->b, i, cg->i32, ""));
    }
    case S_BUFFER:
        return cg_load_vec(cg, buffer_type(s->dtype), column_at(e, s), e->col, NULL);
    case S_TAKE: {
        LV at = value_of(e, s->in[1]),
           n = LLVMBuildTrunc(cg->b, cg_dim(cg, last_dim(&s->node->in[0]->type)), cg->i32, "");
        LV inside = LLVMBuildICmp(cg->b, LLVMIntULT, at, cg_splat(cg, n), "");
        if (e->mask) inside = LLVMBuildAnd(cg->b, inside, e->mask, "");
        return cg_gather_vec(cg, buffer_type(s->dtype), column_at(e, s->in[0]), at, inside);
    }
    default: {
        LV x[MAX_OPERANDS];
        for (int i = 0; i < s->n_in; i++) x[i] = value_of(e, s->in[i]);
        return emit_arith(e, s, x);
    }
    }
}

static LV neutral(Cg *cg, const Step *red) {
    bool f = dtype_is_float(red->dtype);
    if (red->kind == S_SUM) return cg_zero(f ? cg->vf32 : cg->vi32);
    if (red->dtype == BOOL) return cg_zero(cg->v1);
    return f ? cg_vec(cg, -__builtin_inff()) : cg_vec_int(cg, INT32_MIN);
}

static LV combine(Cg *cg, const Step *red, LV a, LV x) {
    bool f = dtype_is_float(red->dtype);
    if (red->kind == S_SUM) return f ? cg_fadd(cg, a, x) : cg_add(cg, a, x);
    if (red->dtype == BOOL) return LLVMBuildOr(cg->b, a, x, "");
    return f ? cg_fmax(cg, a, x) : cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGE, a, x, ""), a, x);
}

static LV fold(Cg *cg, const Step *red, LV a) {
    if (red->kind == S_SUM) return cg_fold_sum(cg, a);
    if (red->dtype != BOOL) return cg_fold_max(cg, a);
    return LLVMBuildICmp(cg->b, LLVMIntNE, LLVMBuildBitCast(cg->b, a, cg->i16, ""), cg_zero(cg->i16), "");
}

// What a level does over columns of one width.
typedef struct {
    Dim    width;
    Step  *red[MOST_REDUCTIONS];
    int    n_red;
    Store *store[MOST_STORES];
    int    n_store;
    Step  *keep[MOST_KEPT];
    int    n_keep;
    Step  *into[MOST_PARTS];         // buffers, and which of their parts
    int    part[MOST_PARTS], n_into;
} Sweep;

static LV row_number(Em *e, int source) {
    return is_source(source) ? e->source_row[source] : cg_addi(e->cg, e->row, THIS_ROW - source);
}

// Where the row of a result begins, in elements.
static LV result_row(Em *e, const Store *s) {
    return cg_mul(e->cg, row_number(e, s->source), cg_dim(e->cg, last_dim(&e->b->result[s->result]->type)));
}

static void sweep_chunk(Em *e, const Sweep *w, LV col, LV mask, int chunk_number, LV *acc) {
    Cg *cg = e->cg;
    e->col = col;
    e->mask = mask;
    e->stamp++;
    e->chunk_number = chunk_number;
    for (int i = 0; i < w->n_red; i++) {
        LV x = value_of(e, w->red[i]->in[0]);
        if (mask) x = cg_select(cg, mask, x, neutral(cg, w->red[i]));
        acc[i] = combine(cg, w->red[i], acc[i], x);
    }
    for (int i = 0; i < w->n_keep; i++) {
        LV x = value_of(e, w->keep[i]);
        if (in_registers(w->keep[i]->width)) w->keep[i]->chunk[chunk_number] = x;
        else cg_store_vec(cg, buffer_type(w->keep[i]->dtype), x, buffer_at(e, w->keep[i]), col, NULL);
    }
    for (int i = 0; i < w->n_into; i++) {
        const Part *p = &w->into[i]->part[w->part[i]];
        cg_store_vec(cg, buffer_type(w->into[i]->dtype), value_of(e, p->from), buffer_at(e, w->into[i]),
                     cg_addi(cg, col, p->begin), mask);
    }
    LV x[sizeof w->store / sizeof *w->store];      // all before the first store: a result may lie where an operand does
    for (int i = 0; i < w->n_store; i++) x[i] = value_of(e, w->store[i]->from);
    for (int i = 0; i < w->n_store; i++) {
        const Store *s = w->store[i];
        LV there = mask;
        if (is_source(s->source) && !e->all_there) {
            there = cg_splat(cg, e->is_source[s->source]);
            if (mask) there = LLVMBuildAnd(cg->b, there, mask, "");
        }
        DType t = e->b->k->node->out[s->result].type.dtype;
        LV at = cg_add(cg, cg_addi(cg, result_row(e, s), s->begin), col);
        bool streamed = e->b->streamed >> s->result & 1 && !there && s->begin % LANES == 0;
        if (!streamed && !is_source(s->source)) ask_ahead(e, t, cg_out(cg, s->result), at, last_dim(&e->b->result[s->result]->type), true);
        if (streamed) cg_stream(cg, x[i], cg_at(cg, t, cg_out(cg, s->result), at));
        else cg_store_vec(cg, t, x[i], cg_out(cg, s->result), at, there);
    }
}

// Columns lo .. hi - 1; lo is a multiple of 16.
static void sweep_range(Em *e, const Sweep *w, LV lo, LV hi, LV *acc) {
    Cg *cg = e->cg;
    LV whole = cg_add(cg, lo, LLVMBuildAnd(cg->b, cg_sub(cg, hi, lo), cg_int(cg, -LANES), ""));
    CgLoop l;
    cg_loop_begin(cg, &l, lo, whole, LANES, w->n_red, acc);
    LV next[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) next[i] = l.carry[i];
    sweep_chunk(e, w, l.i, NULL, -1, next);
    cg_loop_end(cg, &l, next);
    for (int i = 0; i < w->n_red; i++) acc[i] = l.carry[i];
    if (LLVMIsConstant(hi) && LLVMIsConstant(lo)) {
        int64_t n = LLVMConstIntGetSExtValue(hi) - LLVMConstIntGetSExtValue(lo);
        if (n % LANES) sweep_chunk(e, w, whole, cg_tail_mask(cg, cg_int(cg, n % LANES)), -1, acc);
        return;
    }
    CgIf f;
    cg_if(cg, &f, cg_lt(cg, whole, hi));
    LV before[MOST_REDUCTIONS], tail[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) before[i] = tail[i] = acc[i];
    sweep_chunk(e, w, whole, cg_tail_mask(cg, cg_sub(cg, hi, whole)), -1, tail);
    cg_else(cg, &f);
    cg_endif_join(cg, &f, w->n_red, tail, before, acc);
}

static void emit_sweep(Em *e, const Sweep *w) {
    Cg *cg = e->cg;
    LV acc[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) acc[i] = neutral(cg, w->red[i]);
    if (in_registers(w->width)) {
        int64_t n = w->width.n;
        for (int64_t c = 0; c < n; c += LANES)
            sweep_chunk(e, w, cg_int(cg, c), n - c < LANES ? cg_tail_mask(cg, cg_int(cg, n - c)) : NULL,
                        (int)(c / LANES), acc);
    } else {
        sweep_range(e, w, cg_int(cg, 0), cg_dim(cg, w->width), acc);
    }
    for (int i = 0; i < w->n_red; i++) w->red[i]->value = cg_splat(cg, fold(cg, w->red[i], acc[i]));
}

static Sweep *sweep_for(Em *e, Sweep *sweeps, int *n, Dim width) {
    (void)e;
    for (int i = 0; i < *n; i++)
        if (dim_eq(sweeps[i].width, width)) return &sweeps[i];
    assert(*n < MAX_WIDTHS);
    memset(&sweeps[*n], 0, sizeof *sweeps);
    sweeps[*n].width = width;
    return &sweeps[(*n)++];
}

// A value without columns that leaves as columns: repeated.
static Dim store_width(const Store *s) { return s->from->wide ? s->from->width : s->cols; }

static void emit_level(Em *e, int level) {
    Cg *cg = e->cg;
    Body *b = e->b;
    e->level = level;
    e->mask = NULL;
    for (int i = 0; i < b->steps.n; i++) {               // what has no columns
        Step *s = b->steps.at[i];
        if (s->kind == S_TOPK && s->level == level) {
            if (!is_topk_in_groups(s)) emit_topk(e, s);
            else if (is_first_of_its_node(b, s)) emit_topks(e, s, level);
        }
        if (s->kind == S_PUT && s->level == level) emit_put(e, s);
        bool now = is_computed(s) || s->kind == S_BUFFER ? s->level == level
                                                         : (s->kind == S_LOAD || s->kind == S_TABLE ||
                                                            s->kind == S_CONST || s->kind == S_INDEX) &&
                                                               level == 0;
        if (s->wide || !now) continue;
        if (s->kind == S_BUFFER)
            s->value = cg_splat(cg, cg_load1(cg, buffer_type(s->dtype), column_at(e, s), cg_int(cg, 0)));
        else s->value = emit_step(e, s);
    }
    Sweep *sweeps = arena_array(b->a, Sweep, MAX_WIDTHS);
    int n = 0;
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if ((s->kind == S_SUM || s->kind == S_MAX) && s->level == level) {
            if (!s->in[0]->wide) {                       // one column
                LV x = s->in[0]->value;
                s->value = s->kind == S_MAX ? x : combine(cg, s, neutral(cg, s), x);
                continue;
            }
            Sweep *w = sweep_for(e, sweeps, &n, s->in[0]->width);
            assert(w->n_red < MOST_REDUCTIONS);
            w->red[w->n_red++] = s;
        }
        if (s->kept && s->level == level) {
            Sweep *w = sweep_for(e, sweeps, &n, s->width);
            assert(w->n_keep < MOST_KEPT);
            w->keep[w->n_keep++] = s;
        }
        for (int j = 0; j < s->n_parts; j++) {
            const Part *p = &s->part[j];
            if (s->level - 1 != level) continue;
            Sweep *w = sweep_for(e, sweeps, &n, p->width);
            assert(w->n_into < MOST_PARTS);
            w->into[w->n_into] = s;
            w->part[w->n_into++] = j;
        }
    }
    for (int i = 0; i < b->stores.n; i++) {
        Store *s = &b->stores.at[i];
        int at = available(s->from);
        if (at != level) continue;
        Dim width = store_width(s);
        if (dim_is_1(width)) {
            LV x = LLVMBuildExtractElement(cg->b, s->from->value, cg_int32(cg, 0), "");
            CgIf f;
            bool perhaps = is_source(s->source) && !e->all_there;
            if (perhaps) cg_if(cg, &f, e->is_source[s->source]);
            cg_store1(cg, b->k->node->out[s->result].type.dtype, x, cg_out(cg, s->result),
                      cg_addi(cg, result_row(e, s), s->begin));
            if (perhaps) cg_endif(cg, &f);
            continue;
        }
        Sweep *w = sweep_for(e, sweeps, &n, width);
        assert(w->n_store < MOST_STORES);
        w->store[w->n_store++] = s;
    }
    for (int i = 0; i < n; i++) emit_sweep(e, &sweeps[i]);
}

// Where a row read by number begins; a number that is none reads zeros.
static LV numbered_row(Em *e, const Step *s) {
    Cg *cg = e->cg;
    const Type *x = &s->source;
    LV i = is_target_row(e, s) ? e->row : cg_i64(cg, cg_load1(cg, I32, cg_in(cg, s->number->arg), s->number->row));
    LV there = LLVMBuildICmp(cg->b, LLVMIntULT, i, cg_rows(cg, x), "");
    return cg_select(cg, there, cg_at(cg, x->dtype, cg_in(cg, s->arg), cg_muli(cg, i, type_cols(x))), e->zeros);
}

static void make_zeros(Em *e) {
    Cg *cg = e->cg;
    int64_t most = 0;
    for (int i = 0; i < e->b->steps.n; i++) {
        const Step *s = e->b->steps.at[i];
        if (s->number && type_cols(&s->source) > most) most = type_cols(&s->source);
    }
    if (!most) return;
    LT t = LLVMArrayType(cg->i8, (unsigned)((most + LANES) * 4));
    e->zeros = LLVMAddGlobal(cg->module, t, "zeros");
    LLVMSetInitializer(e->zeros, LLVMConstNull(t));
    LLVMSetLinkage(e->zeros, LLVMInternalLinkage);
    LLVMSetAlignment(e->zeros, 64);
}

// Sorts n numbers that are not negative, and -1 behind them: Batcher's network, without what would meet numbers
// from n on.
static void sort_numbers(Cg *cg, LV *x, int n) {
    LT overload[] = {cg->i32};
    for (int p = 1; p < n; p *= 2)
        for (int k = p; k >= 1; k /= 2)
            for (int j = k % p; j + k < n; j += 2 * k)
                for (int i = 0; i < k && i + j + k < n; i++) {
                    if ((i + j) / (2 * p) != (i + j + k) / (2 * p)) continue;
                    LV two[] = {x[i + j], x[i + j + k]};
                    x[i + j] = cg_intrinsic(cg, "llvm.umin", overload, 1, two, 2);
                    x[i + j + k] = cg_intrinsic(cg, "llvm.umax", overload, 1, two, 2);
                }
}

static void find_sources(Em *e) {
    Cg *cg = e->cg;
    const Value *inverse = scatter_inverse(e->b->combine);
    int k = (int)type_cols(&inverse->type);
    LV number[MOST_SOURCES], first = cg_muli(cg, e->row, k);
    for (int i = 0; i < k; i++)
        number[i] = cg_load1(cg, I32, cg_in(cg, (int)inverse->node->attr.k), cg_addi(cg, first, i));
    sort_numbers(cg, number, k);
    for (int i = 0; i < k; i++) {
        e->is_source[i] = LLVMBuildICmp(cg->b, LLVMIntSGE, number[i], cg_int32(cg, 0), "");
        e->source_row[i] = cg_i64(cg, cg_select(cg, e->is_source[i], number[i], cg_int32(cg, 0)));
    }
}

static void emit_levels(Em *e) {
    for (int i = 0; i < e->b->steps.n; i++) e->b->steps.at[i]->asked = false;
    for (int level = 0; level <= e->b->n_levels; level++) emit_level(e, level);
}

static void emit_row(Em *e) {
    Cg *cg = e->cg;
    Body *b = e->b;
    if (b->combine) find_sources(e);
    for (int i = 0; i < b->spaces.n; i++) row_indices(cg, &b->spaces.at[i].type, row_number(e, b->spaces.at[i].source), e->index[i]);
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if (s->kind != S_LOAD && s->kind != S_TABLE) continue;
        if (s->number) {
            s->chunk[0] = numbered_row(e, s);
            s->row = cg_int(cg, 0);
        } else {
            s->row = row_offset(cg, &s->view, &b->spaces.at[s->space].type, &s->map,
                                row_number(e, b->spaces.at[s->space].source), e->index[s->space]);
        }
    }
    if (!b->combine) {
        emit_levels(e);
        return;
    }
    LV all = cg_bool(cg, true);                    // mostly so: without a mask for each
    for (int i = 0; i < type_cols(&scatter_inverse(b->combine)->type); i++)
        all = LLVMBuildAnd(cg->b, all, e->is_source[i], "");
    CgIf f;
    cg_if(cg, &f, all);
    e->all_there = true;
    emit_levels(e);
    cg_else(cg, &f);
    e->all_there = false;
    emit_levels(e);
    cg_endif(cg, &f);
}

// One run of a flat body: elements task * FLAT_RUN .. as columns of the only row.
static void emit_flat(Em *e) {
    Cg *cg = e->cg;
    Body *b = e->b;
    LV zero = cg_int(cg, 0);
    e->row = zero;
    for (int i = 0; i < b->steps.n; i++) b->steps.at[i]->row = zero;
    e->level = 0;
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if (!s->wide) s->value = emit_step(e, s);
    }
    Sweep w = {.width = b->rows->dim[0]};
    for (int i = 0; i < b->stores.n; i++) w.store[w.n_store++] = &b->stores.at[i];
    LV lo = cg_muli(cg, cg->task, FLAT_RUN), hi = cg_min(cg, cg_addi(cg, lo, FLAT_RUN), cg_dim(cg, w.width));
    sweep_range(e, &w, lo, cg_max(cg, lo, hi), NULL);
}

// ---- the templates -------------------------------------------------------------------------------------

// Rows per task, by the bytes that loads and stores of a row touch.
static int64_t body_grain(const Body *b) {
    int64_t bytes = 0;
    if (b->k->grain) return b->k->grain;
    for (int i = 0; i < b->steps.n; i++) {
        const Step *s = b->steps.at[i];
        if (s->kind == S_LOAD) bytes += dim_bound(s->width) * dtype_bytes(s->dtype);
    }
    for (int i = 0; i < b->stores.n; i++) bytes += dim_bound(b->stores.at[i].cols) * 4;
    return rows_grain(b->rows, bytes);
}

bool describe_body(const KernelNode *k, KernelDesc *d) {
    Arena *a = arena_create();
    Body b;
    bool ok = make_body(&b, a, k, 1);
    if (ok && b.flat) {
        Dim n = b.rows->dim[0];
        d->tasks[0] = (TaskCount){n.n, FLAT_RUN, 1, n.sym};
    } else if (ok) {
        d->tasks[0] = tasks_of_rows(b.rows, body_grain(&b));
    }
    if (ok && b.streamed) str_printf(&d->key, " stream %x", b.streamed);
    if (ok && b.asks_ahead) str_add(&d->key, " ahead");
    arena_destroy(a);
    return ok;
}

// Rows lo .. hi - 1, as many at once as b holds; gives the first that is left.
static LV emit_rows(Cg *cg, Arena *a, Body *b, LV lo, LV hi, int at_once) {
    Em *e = arena_new(a, Em);
    e->cg = cg;
    e->b = b;
    for (int i = 0; i < b->steps.n; i++)
        if (b->steps.at[i]->kind == S_TABLE) b->steps.at[i]->chunk[0] = cg_table(cg, b->steps.at[i]->node, b->steps.at[i]->dtype);
    make_zeros(e);
    if (b->flat) {
        emit_flat(e);
        return hi;
    }
    CgLoop l;
    LV last = at_once > 1 ? cg_addi(cg, hi, 1 - at_once) : hi;
    cg_for(cg, &l, lo, last, at_once);
    e->row = l.i;
    emit_row(e);
    cg_end(cg, &l);
    return l.i;
}

void emit_body(Cg *cg, const KernelNode *k) {
    Arena *a = arena_create();
    Body one, more;
    bool ok = make_body(&one, a, k, 1);
    assert(ok);
    (void)ok;
    int64_t grain = one.flat ? 1 : body_grain(&one);
    LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), cg_rows(cg, one.rows));
    int at_once = rows_at_once(&one);
    if (at_once > 1 && make_body(&more, a, k, at_once)) lo = emit_rows(cg, a, &more, lo, hi, at_once);
    emit_rows(cg, a, &one, lo, hi, 1);
    arena_destroy(a);
}
