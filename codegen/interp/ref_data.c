// Makes the data block of a reference kernel: see ref_block.h.
#include <assert.h>
#include "codegen/interp/ref_block.h"
#include "codegen/interp/ref_kernel.h"
#include "ir/base/block.h"
#include "ir/base/vec.h"

typedef struct {
    Arena *a;
    const KernelNode *k;
    Block  block;
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

// arg[k]: the value that arg k stands for; NULL: argument k of the step.
static void add_body(Maker *m, const Graph *body, const int32_t *arg, RefHead *head) {
    int n_values = graph_number((Graph *)body);
    int32_t *number = arena_array(m->a, int32_t, n_values);
    for_each_node(body, n) {
        if (n->op == OP_ARG) {
            number[n->out[0].id] = arg ? arg[n->attr.k] : (int32_t)n->attr.k;
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

// Gathered rows and products become temporaries, the epilogue a body over them.
static void add_attached(Maker *m, const Node *n, RefHead *head) {
    Contraction c = contraction_of(n);
    int32_t own[3], *arg = arena_array(m->a, int32_t, c.products + n->n_in);
    for (int i = 0; i < c.own; i++) {
        own[i] = i;
        if (i > 1 || c.index[i] < 0) continue;
        own[i] = add_value(m, i ? &c.b : &c.a, AT_TEMP, 0);
        Node gather = {.op = OP_GATHER_ROWS, .n_in = 2, .n_out = 1};
        add_node(m, &gather, (int32_t[]){i, c.index[i]}, &own[i]);
    }
    for (int p = 0; p < c.products; p++) {
        Node plain = *n;
        plain.n_in = (int16_t)c.own;
        plain.n_out = 1;
        if (p) own[1] = c.second;
        arg[p] = n->attr.epilogue ? add_value(m, &c.y, AT_TEMP, 0) : n->n_in;
        add_node(m, &plain, own, &arg[p]);
    }
    for (int i = c.extra; i < n->n_in; i++) arg[c.products + i - c.extra] = i;
    if (!n->attr.epilogue) return;
    head->is_body = 1;
    add_body(m, n->attr.epilogue, arg, head);
}

void *ref_kernel_data(Arena *a, const KernelNode *k, size_t *bytes) {
    Maker *m = arena_new(a, Maker);
    m->a = m->block.arena = a;
    m->k = k;
    const Node *n = k->node;
    RefHead head = {.first_result = n->n_in};
    for (int i = 0; i < kernel_n_args(k); i++) add_value(m, kernel_arg_type(k, i), AT_ARG, i);
    if (n->attr.body) {
        head.is_body = 1;
        add_body(m, n->attr.body, NULL, &head);
    } else if (has_attachments(n)) {
        add_attached(m, n, &head);
    } else {
        int32_t *number = arena_array(a, int32_t, kernel_n_args(k));
        for (int i = 0; i < kernel_n_args(k); i++) number[i] = i;
        add_node(m, n, number, number + n->n_in);
    }
    block_put(&m->block, &head, sizeof head);
    head.n_syms = m->n_syms;
    head.n_values = m->values.n;
    head.n_nodes = m->nodes.n;
    head.temp_bytes = m->temp;
    for (int i = 0; i < m->values.n; i++)
        if (m->values.at[i].place == AT_CONST) {
            const Data *data = m->data.at[m->values.at[i].at];
            m->values.at[i].at = block_put(&m->block, data->tensor.data, (size_t)data->bytes);
        }
    head.syms = block_put(&m->block, m->ref_sym, sizeof *m->ref_sym * (size_t)m->n_syms);
    head.values = block_put(&m->block, m->values.at, sizeof *m->values.at * (size_t)m->values.n);
    head.nodes = block_put(&m->block, m->nodes.at, sizeof *m->nodes.at * (size_t)m->nodes.n);
    head.numbers = block_put(&m->block, m->numbers.at, sizeof *m->numbers.at * (size_t)m->numbers.n);
    memcpy(m->block.at, &head, sizeof head);
    block_put(&m->block, NULL, 0);
    *bytes = m->block.n;
    return m->block.at;
}
