// A kernel that runs an op, or a body of ops, by its reference meaning.
//
// The data block is position-independent: a header, then tables.
//
//     RefHead | syms | values | nodes (with attributes) | operand numbers | constants
//
// A value lives in an argument of the step, in temporary memory, or in the block (constants).  Floats narrower than f32
// are widened to temporaries, as reference meanings want them.
#include "codegen/interp/ref_kernel.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "ir/base/vec.h"

typedef enum { AT_ARG, AT_TEMP, AT_CONST } Place;

typedef struct {
    int64_t n;
    int32_t sym, pad;            // number in the block's syms; -1: none
} RefDim;

typedef struct {
    int32_t dtype, ndim, place, arg;
    int64_t at;                  // AT_TEMP: offset in temporary memory; AT_CONST: in the block
    int64_t wide;                // offset in temporary memory of the widened form; -1: none
    RefDim  dim[MAX_DIM];
} RefValue;

typedef struct {
    int32_t kind, groups, leaves, source;    // source: RtCall.sym number (plain), argument (ragged), -1: bound
    int64_t bound;
} RefSym;

enum { REF_MAX_SYMS = 8 };

typedef struct {
    int32_t op, n_in, n_out, first;          // operand then result values in the number table
    int32_t attr_sym;
    int32_t dims_sym[MAX_DIM];
    int32_t pad;
    Attrs   attr;                            // pointers zeroed
} RefNode;

typedef struct {
    int32_t n_syms, n_values, n_nodes, n_results;
    int64_t syms, values, nodes, numbers;    // offsets in the block
    int32_t result[2 * MAX_NAMED + 16];      // bodies: value that becomes result i
    int32_t first_result;                    // argument number of result 0
    int32_t is_body;
    int64_t temp_bytes;
} RefHead;

// ---- storage types --------------------------------------------------------------------------------------

static float bf16_to_f32(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void round_to(DType t, float *x, int64_t n) {
    if (t == BF16)
        for (int64_t i = 0; i < n; i++) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    else if (t == F16)
        for (int64_t i = 0; i < n; i++) x[i] = (float)(_Float16)x[i];
}

// ---- making the block -----------------------------------------------------------------------------------

typedef struct {
    Arena *a;
    const KernelNode *k;
    char  *block;
    size_t n, cap;
    const Sym *sym[REF_MAX_SYMS];
    RefSym ref_sym[REF_MAX_SYMS];
    int    n_syms;
    VEC(RefValue) values;
    VEC(RefNode) nodes;
    VEC(int32_t) numbers;
    VEC(const Data *) data;                  // constants, by the order of AT_CONST values
    int64_t temp;
} Maker;

static int64_t align64(int64_t n) { return (n + 63) & ~INT64_C(63); }

static int32_t sym_number(Maker *m, const Sym *s) {
    if (!s) return -1;
    for (int i = 0; i < m->n_syms; i++)
        if (m->sym[i] == s) return i;
    assert(m->n_syms < REF_MAX_SYMS);
    RefSym r = {.kind = (int32_t)s->kind, .groups = s->groups, .leaves = s->leaves, .source = -1, .bound = s->bound};
    for (int i = 0; i < m->k->n_plain; i++)
        if (m->k->plain[i] == s) r.source = m->k->plain_index[i];
    for (int i = 0; i < m->k->n_ragged; i++)
        if (m->k->ragged[i] == s) r.source = kernel_n_args(m->k) + i;
    m->sym[m->n_syms] = s;
    m->ref_sym[m->n_syms] = r;
    return m->n_syms++;
}

static bool is_narrow(DType t) { return t == BF16 || t == F16; }

static int64_t temp_new(Maker *m, int64_t bytes) {
    int64_t at = m->temp;
    m->temp = align64(at + bytes);
    return at;
}

static int32_t add_value(Maker *m, const Type *t, Place place, int arg) {
    RefValue v = {.dtype = t->dtype, .ndim = t->ndim, .place = place, .arg = arg, .wide = -1};
    for (int i = 0; i < t->ndim; i++) v.dim[i] = (RefDim){.n = t->dim[i].n, .sym = sym_number(m, t->dim[i].sym)};
    if (place == AT_TEMP) v.at = temp_new(m, type_bound_elements(t) * 4);
    else if (is_narrow(t->dtype)) v.wide = temp_new(m, type_bound_elements(t) * 4);
    vec_push(m->a, &m->values, v);
    return m->values.n - 1;
}

static int32_t add_const(Maker *m, const Node *n) {
    Type t = n->out[0].type;
    Data *data = arena_new(m->a, Data);
    int64_t count = type_bound_elements(&t);
    bool narrow_type = is_narrow(t.dtype);
    if (narrow_type) t.dtype = F32;            // rounded, but kept wide
    data->bytes = count * dtype_bytes(t.dtype);
    data->tensor = (Tensor){.dtype = t.dtype, .data = const_elements(m->a, n, t.dtype)};
    if (narrow_type) round_to(n->out[0].type.dtype, data->tensor.data, count);
    int32_t v = add_value(m, &t, AT_CONST, 0);
    m->values.at[v].at = m->data.n;
    vec_push(m->a, &m->data, data);
    return v;
}

static void add_node(Maker *m, const Node *n, const int32_t *in, const int32_t *out) {
    RefNode r = {.op = n->op, .n_in = n->n_in, .n_out = n->n_out, .first = m->numbers.n, .attr = n->attr};
    for (int i = 0; i < ATTR_COUNT; i++) {
        AttrKind kind = attr_info[i].kind;
        if (kind == A_NAME || kind == A_DATA || kind == A_SYM || kind == A_GRAPH)
            memset((char *)&r.attr + attr_info[i].offset, 0, sizeof(void *));
    }
    r.attr_sym = sym_number(m, n->attr.sym);
    for (int i = 0; i < MAX_DIM; i++) {
        r.dims_sym[i] = i < n->attr.dims.n ? sym_number(m, n->attr.dims.at[i].sym) : -1;
        r.attr.dims.at[i].sym = NULL;
    }
    for (int i = 0; i < n->n_in; i++) vec_push(m->a, &m->numbers, in[i]);
    for (int i = 0; i < n->n_out; i++) vec_push(m->a, &m->numbers, out[i]);
    vec_push(m->a, &m->nodes, r);
}

static void add_body(Maker *m, const Graph *body, RefHead *head) {
    int n_values = graph_number((Graph *)body);
    int32_t *number = arena_array(m->a, int32_t, n_values);
    for_each_node(body, n) {
        if (n->op == OP_ARG) {
            number[n->out[0].id] = (int32_t)n->attr.k;
        } else if (n->op == OP_CONST) {
            number[n->out[0].id] = add_const(m, n);
        } else if (n->op == OP_YIELD) {
            for (int i = 0; i < n->n_in; i++) head->result[i] = number[n->in[i]->id];
            head->n_results = n->n_in;
        } else {
            int32_t *in = arena_array(m->a, int32_t, n->n_in), *out = arena_array(m->a, int32_t, n->n_out);
            for (int i = 0; i < n->n_in; i++) in[i] = number[n->in[i]->id];
            for (int i = 0; i < n->n_out; i++)
                out[i] = number[n->out[i].id] = add_value(m, &n->out[i].type, AT_TEMP, 0);
            add_node(m, n, in, out);
        }
    }
}

static int64_t put(Maker *m, const void *bytes, size_t n) {
    size_t at = (m->n + 63) & ~(size_t)63;
    if (at + n > m->cap) {
        size_t cap = (at + n) * 2 + 1024;
        char *block = arena_alloc(m->a, cap);
        if (m->n) memcpy(block, m->block, m->n);
        m->block = block;
        m->cap = cap;
    }
    if (n) memcpy(m->block + at, bytes, n);
    m->n = at + n;
    return (int64_t)at;
}

void *ref_kernel_data(Arena *a, const KernelNode *k, size_t *bytes) {
    Maker *m = arena_new(a, Maker);
    m->a = a;
    m->k = k;
    const Node *n = k->node;
    RefHead head = {.first_result = n->n_in};
    for (int i = 0; i < kernel_n_args(k); i++) add_value(m, kernel_arg_type(k, i), AT_ARG, i);
    if (n->attr.body) {
        head.is_body = 1;
        add_body(m, n->attr.body, &head);
    } else {
        int32_t *number = arena_array(a, int32_t, kernel_n_args(k));
        for (int i = 0; i < kernel_n_args(k); i++) number[i] = i;
        add_node(m, n, number, number + n->n_in);
    }
    put(m, &head, sizeof head);
    head.n_syms = m->n_syms;
    head.n_values = m->values.n;
    head.n_nodes = m->nodes.n;
    head.temp_bytes = m->temp;
    for (int i = 0; i < m->values.n; i++)
        if (m->values.at[i].place == AT_CONST) {
            const Data *data = m->data.at[m->values.at[i].at];
            m->values.at[i].at = put(m, data->tensor.data, (size_t)data->bytes);
        }
    head.syms = put(m, m->ref_sym, sizeof *m->ref_sym * (size_t)m->n_syms);
    head.values = put(m, m->values.at, sizeof *m->values.at * (size_t)m->values.n);
    head.nodes = put(m, m->nodes.at, sizeof *m->nodes.at * (size_t)m->nodes.n);
    head.numbers = put(m, m->numbers.at, sizeof *m->numbers.at * (size_t)m->numbers.n);
    memcpy(m->block, &head, sizeof head);
    put(m, NULL, 0);
    *bytes = m->n;
    return m->block;
}

// ---- running it -----------------------------------------------------------------------------------------

static void widen(DType t, const void *from, float *to, int64_t n) {
    if (t == BF16)
        for (int64_t i = 0; i < n; i++) to[i] = bf16_to_f32(((const uint16_t *)from)[i]);
    else
        for (int64_t i = 0; i < n; i++) to[i] = (float)((const _Float16 *)from)[i];
}

static void narrow(DType t, const float *from, void *to, int64_t n) {
    if (t == BF16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = f32_to_bf16(from[i]);
    else
        for (int64_t i = 0; i < n; i++) ((_Float16 *)to)[i] = (_Float16)from[i];
}

static DType wide_dtype(DType t) { return is_narrow(t) ? F32 : t; }

typedef struct {
    const RtCall *c;
    const RefHead *head;
    const RefSym *sym;
    const RefValue *value;
    char *temp;
    int64_t sym_value[REF_MAX_SYMS];
    Sym syms[REF_MAX_SYMS];
} Run;

static Tensor tensor_of(Run *r, int32_t v) {
    const RefValue *x = &r->value[v];
    Tensor t = {.dtype = wide_dtype((DType)x->dtype), .ndim = x->ndim};
    for (int i = 0; i < x->ndim; i++) t.dim[i] = x->dim[i].n * (x->dim[i].sym < 0 ? 1 : r->sym_value[x->dim[i].sym]);
    if (x->wide >= 0) t.data = r->temp + x->wide;
    else if (x->place == AT_ARG) t.data = r->c->arg[x->arg];
    else if (x->place == AT_TEMP) t.data = r->temp + x->at;
    else t.data = (char *)r->head + x->at;
    return t;
}

static int64_t elements(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

// Appends the rows of this call to the pool: row 0 of them is row C - S of the sequence.
static void append_rows(Run *r, const RefNode *n, const int32_t *number) {
    Tensor rows = tensor_of(r, number[1]);
    const RefValue *x = &r->value[number[1]];
    int64_t row = dtype_bytes((DType)x->dtype), S = rows.ndim > 1 ? rows.dim[1] : 1;
    for (int i = 2; i < rows.ndim; i++) row *= rows.dim[i];
    int64_t C = r->sym_value[n->attr_sym];
    memcpy((char *)r->c->arg[0] + (C - S) * row, r->c->arg[1], (size_t)(S * row));
}

static void run_node(Run *r, const RefNode *n, const int32_t *number) {
    if (n->op == OP_CACHE) {
        append_rows(r, n, number);
        return;
    }
    Tensor in[2 * MAX_NAMED + 16], out[2 * MAX_NAMED + 16];
    assert(n->n_in <= 2 * MAX_NAMED + 16 && n->n_out <= 2 * MAX_NAMED + 16);
    for (int i = 0; i < n->n_in; i++) in[i] = tensor_of(r, number[i]);
    for (int i = 0; i < n->n_out; i++) out[i] = tensor_of(r, number[n->n_in + i]);
    Attrs attr = n->attr;
    if (n->attr_sym >= 0) attr.sym = &r->syms[n->attr_sym];
    for (int i = 0; i < attr.dims.n; i++)
        if (n->dims_sym[i] >= 0) attr.dims.at[i].sym = &r->syms[n->dims_sym[i]];
    op_info[n->op].ref(&attr, n->n_in, in, n->n_out, out);
    if (n->op == OP_ROUTE && n->attr_sym >= 0)      // from here on its rows are as many as there are
        r->sym_value[n->attr_sym] = ((const int32_t *)out[0].data)[elements(&out[0]) - 1];
    for (int i = 0; i < n->n_out; i++) {      // storage precision of what stays in temporaries
        DType t = (DType)r->value[number[n->n_in + i]].dtype;
        int64_t size = elements(&out[i]);
        round_to(t, out[i].data, size);
    }
}

void moec_ref_kernel(const RtCall *c) {
    const char *block = c->data;
    Run r = {.c = c, .head = c->data};
    const RefHead *head = r.head;
    r.sym = (const RefSym *)(block + head->syms);
    r.value = (const RefValue *)(block + head->values);
    const RefNode *node = (const RefNode *)(block + head->nodes);
    const int32_t *numbers = (const int32_t *)(block + head->numbers);
    for (int i = 0; i < head->n_syms; i++) {
        const RefSym *s = &r.sym[i];
        r.syms[i] = (Sym){.kind = (SymKind)s->kind, .bound = s->bound, .groups = s->groups, .leaves = s->leaves};
        r.sym_value[i] = s->source < 0 ? s->bound
                       : s->kind == SYM_PLAIN ? c->sym[s->source]
                       : ((const int32_t *)c->arg[s->source])[(int64_t)s->groups * s->leaves];
    }
    void *heap = NULL;
    r.temp = c->scratch;
    if (head->temp_bytes > RT_SCRATCH_BYTES) r.temp = heap = malloc((size_t)head->temp_bytes);
    assert(r.temp || !head->temp_bytes);
    for (int i = 0; i < head->n_values; i++) {
        const RefValue *v = &r.value[i];
        if (v->place != AT_ARG || v->wide < 0 || v->arg >= head->first_result) continue;
        Tensor t = tensor_of(&r, i);
        widen((DType)v->dtype, c->arg[v->arg], t.data, elements(&t));
    }
    for (int i = 0; i < head->n_nodes; i++) run_node(&r, &node[i], numbers + node[i].first);
    for (int i = 0; head->is_body && i < head->n_results; i++) {
        Tensor from = tensor_of(&r, head->result[i]), to = tensor_of(&r, head->first_result + i);
        memcpy(to.data, from.data, (size_t)(elements(&to) * dtype_bytes(to.dtype)));
    }
    for (int i = 0; i < head->n_values; i++) {
        const RefValue *v = &r.value[i];
        if (v->place != AT_ARG || v->wide < 0 || v->arg < head->first_result) continue;
        Tensor t = tensor_of(&r, i);
        if (node[0].op != OP_CACHE) narrow((DType)v->dtype, t.data, c->arg[v->arg], elements(&t));
    }
    free(heap);
}
