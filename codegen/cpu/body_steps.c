// Values of a body as steps of a row.
#include "codegen/cpu/body.h"

static Step *refuse(Body *b) {
    b->ok = false;
    return NULL;
}

// The rows of target or sources.
const Type *body_rows(const Body *b, int source) {
    return is_source(source) ? &b->combine->in[0]->type : b->rows;
}

int body_space(Body *b, const Type *t, int source) {
    for (int i = 0; i < b->spaces.n; i++) {
        const Type *s = &b->spaces.at[i].type;
        bool same = s->ndim == t->ndim && b->spaces.at[i].source == source;
        for (int k = 0; same && k + 1 < t->ndim; k++) same = dim_eq(s->dim[k], t->dim[k]);
        if (same) return i;
    }
    if (!same_rows(t, body_rows(b, source))) return -1;
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
    Step *x = body_step(b, n->in[0], space);
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
    Step *v = body_step(b, n->in[0], space), *at = body_step(b, n->in[1], space);
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
    Step *x = body_step(b, n->in[0], space), *at = body_step(b, n->in[1], space);
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
        int of = body_space(b, v, i);
        Step *x = of < 0 ? NULL : body_step(b, n->in[0], of);
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
        from[i] = body_step(b, n->in[i], space);
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
        return body_step(b, n->in[0], space);
    case OP_BROADCAST:
        return body_step(b, n->in[0], space);
    case OP_RESHAPE: {
        const Type *from = &n->in[0]->type;
        if (n->in[0]->node->op == OP_ARG) {                    // the operand, read in the new shape
            Step *s = load_of(b, S_LOAD, t, space);
            if (s) s->arg = (int)n->in[0]->node->attr.k;
            return s;
        }
        if (type_bound_elements(t) == 1 && type_bound_elements(from) == 1) return body_step(b, n->in[0], space);
        if (!dim_eq(last_dim(t), last_dim(from)) || !same_rows(from, t)) return refuse(b);
        int inner = space, source = b->spaces.at[space].source;
        if (same_rows(t, body_rows(b, source))) inner = body_space(b, from, source);
        else {                                                 // fewer rows: only axes of 1 may come or go
            int i = from->ndim - 1, j = t->ndim - 1;
            while (i >= 0 || j >= 0) {
                if (i >= 0 && j >= 0 && dim_eq(from->dim[i], t->dim[j])) i--, j--;
                else return refuse(b);
            }
        }
        return inner < 0 ? refuse(b) : body_step(b, n->in[0], inner);
    }
    case OP_SUM: case OP_REDUCE_MAX: {
        bool is_any = n->op == OP_REDUCE_MAX && t->dtype == BOOL;
        if (!is_last_axis(n) || !(is_reducible(t->dtype) || is_any)) return refuse(b);
        Step *x = body_step(b, n->in[0], space);
        if (!x) return NULL;
        x = spread(b, x, last_dim(&n->in[0]->type));
        return rounded(b, t->dtype, reduce(b, n->op == OP_SUM ? S_SUM : S_MAX, x));
    }
    case OP_SOFTMAX: case OP_LOGSUMEXP: {
        Step *x = body_step(b, n->in[0], space);
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
        Step *x = body_step(b, n->in[0], space);
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
            x[i] = body_step(b, n->in[i], space);
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
    return s.source > 0 && b->in_all[v->id] ? body_space(b, &s.type, 0) : space;
}

Step *body_step(Body *b, const Value *v, int space) {
    if (!b->ok) return NULL;
    space = space_of_step(b, v, space);
    for (struct Memo *m = b->memo; m; m = m->next)
        if (m->v == v && m->space == space) return m->step;
    Step *s = build_step(b, v, space);
    if (!s) return refuse(b);
    remember(b, v, space, s);
    return s;
}
