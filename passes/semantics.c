// Does a pass keep the meaning?  Evaluates the graph as it was and as it is on the same random sources.
#include <float.h>
#include <math.h>
#include <string.h>
#include "ir/eval.h"
#include "passes/util.h"

// ---- random sources: a function of the tensor's name and the element's number ----

static uint64_t mixed(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

// The largest index + 1 that a node may be given at operand i; INT64_MAX: any.
static int64_t index_limit(const Node *n, int i) {
    const Type *t = &n->in[0]->type;
    switch (n->op) {
    case OP_GATHER_ROWS: return i == 1 ? type_bound_elements(t) / type_cols(t) : INT64_MAX;
    case OP_TAKE:        return i == 1 ? type_cols(t) : INT64_MAX;
    case OP_PUT:         return i == 1 ? n->attr.n : INT64_MAX;
    case OP_SCATTER_ADD_ROWS:
        return i == 1 ? type_bound_elements(&n->out[0].type) / type_cols(&n->out[0].type) : INT64_MAX;
    case OP_HEAD_LOSS: case OP_HEAD_LOSS_AND_GRAD: return i == 2 ? dim_bound(n->in[1]->type.dim[0]) : INT64_MAX;
    case OP_COUNT:
    case OP_QUEUE:
    case OP_ROUTE:       return i == 0 ? n->attr.experts : INT64_MAX;
    default:             return INT64_MAX;
    }
}

// Walking backwards, the limit of an integer value is the least of its readers'; integer ops hand it on to
// operands.
RandomSources random_sources(Arena *a, Graph *g) {
    int n_values = graph_number(g);
    RandomSources s = {g, arena_array(a, int64_t, n_values + 1)};
    for (int i = 0; i < n_values; i++) s.int_limit[i] = INT64_MAX;
    for_each_node_reverse(g, n) {
        int64_t handed_on = INT64_MAX;
        for (int i = 0; i < n->n_out; i++)
            if (n->out[i].type.dtype == I32 && s.int_limit[n->out[i].id] < handed_on)
                handed_on = s.int_limit[n->out[i].id];
        bool is_lookup = n->op == OP_GATHER_ROWS || n->op == OP_TAKE;    // the result comes from the table
        for (int i = 0; i < n->n_in; i++) {
            int64_t limit = index_limit(n, i);
            if (!is_lookup && handed_on < limit) limit = handed_on;
            int64_t *mine = &s.int_limit[n->in[i]->id];
            if (limit < *mine) *mine = limit;
        }
    }
    return s;
}

static int64_t int_limit_of(const RandomSources *s, const char *name) {
    for_each_node(s->g, n)
        if (n->op == OP_INPUT && n->attr.name == name && s->int_limit[n->out[0].id] != INT64_MAX)
            return s->int_limit[n->out[0].id];
    return 5;
}

int64_t random_sym_value(void *self, const Sym *s) {
    (void)self;
    int64_t wish = !strcmp(s->name, "S") ? 3 : !strcmp(s->name, "R") ? 1 : 7;
    return wish < s->bound ? wish : s->bound;
}

static int64_t sym_value(const RandomSources *s, const char *name) {
    const Sym *sym = graph_find_sym(s->g, name);
    return sym ? random_sym_value(NULL, sym) : 1;
}

// A run of one sequence.
static bool told_sequence(const RandomSources *s, const Node *n, int64_t i, int32_t *x) {
    int64_t rows = sym_value(s, "S");
    int32_t of[SEQUENCE_COLUMNS] = {[SEQUENCE_ROWS] = (int32_t)rows, [SEQUENCE_LENGTH] = (int32_t)sym_value(s, "C")};
    bool last = !strcmp(n->attr.name, "last");
    if (!last && strcmp(n->attr.name, "sequences")) return false;
    *x = last ? (int32_t)rows - 1 : of[i % SEQUENCE_COLUMNS];
    return true;
}

bool random_source(void *self, const Node *n, Tensor *t) {
    const RandomSources *s = self;
    int64_t elements = 1;
    for (int i = 0; i < t->ndim; i++) elements *= t->dim[i];
    int64_t cols = t->ndim ? t->dim[t->ndim - 1] : 1;
    uint64_t key = str_hash(n->attr.name, strlen(n->attr.name), 1);
    bool is_positions = !strcmp(n->attr.name, "positions");
    int64_t limit = t->dtype == I32 ? int_limit_of(s, n->attr.name) : 0;
    for (int64_t i = 0; i < elements; i++) {
        uint64_t r = mixed(key + (uint64_t)i * 0x9e3779b97f4a7c15ULL);
        double u = (double)(r >> 11) / 9007199254740992.0;
        // parameters around 0; states and inputs positive (second moments, learning rates)
        double x = n->op == OP_PARAM ? u - 0.5 : 0.5 + u;
        switch (t->dtype) {
        case F32:  ((float *)t->data)[i] = (float)x; break;
        case F64:  ((double *)t->data)[i] = (float)x; break;
        case I32:
            if (n->op == OP_INPUT && told_sequence(s, n, i, (int32_t *)t->data + i)) break;
            ((int32_t *)t->data)[i] = (int32_t)(is_positions ? i % cols : (int64_t)(r % (uint64_t)limit));
            break;
        case BOOL: ((uint8_t *)t->data)[i] = r >> 40 & 1; break;
        default:   return false;
        }
    }
    return true;
}


// ---- comparison ----

static bool is_outcome(const Node *n) {
    return n->op == OP_LOSS || n->op == OP_METRIC || n->op == OP_RETURN || n->op == OP_UPDATE ||
           n->op == OP_ACCUMULATE;
}

// The effect of `after` that answers to n: same op and name, the same one in order.
static const Node *counterpart(const Graph *before, const Node *n, const Graph *after) {
    int nth = 0;
    for_each_node(before, m) {
        if (m == n) break;
        nth += m->op == n->op && m->attr.name == n->attr.name;
    }
    for_each_node(after, m)
        if (m->op == n->op && m->attr.name == n->attr.name && nth-- == 0) return m;
    return NULL;
}

static const char *tensors_differ(Arena *a, const Tensor *x, const Tensor *y, double tolerance) {
    int64_t n = 1;
    if (x->dtype != y->dtype || x->ndim != y->ndim) return "types differ";
    for (int i = 0; i < x->ndim; i++) {
        if (x->dim[i] != y->dim[i]) return "sizes differ";
        n *= x->dim[i];
    }
    if (x->dtype != F64) {
        const char *p = x->data, *q = y->data;
        int bytes = dtype_bytes(x->dtype);
        for (int64_t i = 0; i < n; i++, p += bytes, q += bytes) {
            if (!memcmp(p, q, (size_t)bytes)) continue;
            if (x->dtype == F32) {
                float fx = ((const float *)x->data)[i], fy = ((const float *)y->data)[i];
                if (fx == fy || (isnan(fx) && isnan(fy))) continue;
                return arena_printf(a, "element %ld: %.9g, now %.9g", (long)i, fx, fy);
            }
            return arena_printf(a, "element %ld of %s", (long)i, dtype_name(x->dtype));
        }
        return NULL;
    }
    double largest = 0;
    const double *p = x->data, *q = y->data;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(p[i]));
    for (int64_t i = 0; i < n; i++) {
        if (p[i] == q[i] || (isnan(p[i]) && isnan(q[i]))) continue;
        if (!(fabs(p[i] - q[i]) <= tolerance * largest + 1e-9))
            return arena_printf(a, "element %ld: %.9g, now %.9g", (long)i, p[i], q[i]);
    }
    return NULL;
}

const char *semantics_differ(Arena *a, const Graph *before, const Graph *after, double tolerance) {
    Arena *scratch = arena_create();
    Diag *d = diag_new(scratch);
    RandomSources s = random_sources(scratch, (Graph *)before);       // numbers values, changes nothing else
    EvalOpts opts = {
        .f64 = tolerance > 0, .source = random_source, .self = &s, .sym_value = random_sym_value};
    const char *why = NULL;
    Eval *x = eval_graph(scratch, before, &opts, d);
    Eval *y = x ? eval_graph(scratch, after, &opts, d) : NULL;
    if (!y) why = arena_printf(a, "the graph %s the pass can't be evaluated", x ? "after" : "before");
    for (const Node *n = y ? before->first : NULL; n && !why; n = n->next) {
        if (!is_outcome(n)) continue;
        const Node *m = counterpart(before, n, after);
        if (!m && n->op == OP_UPDATE) continue;
        const char *what = m ? tensors_differ(a, eval_value(x, n->in[0]), eval_value(y, m->in[0]), tolerance)
                             : "is gone";
        if (what)
            why = arena_printf(a, "%s %s: %s", op_info[n->op].name, n->attr.name ? n->attr.name : "", what);
    }
    arena_destroy(scratch);
    return why;
}
