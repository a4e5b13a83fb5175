// A kernel that runs an op, or a body of ops, by its reference meaning: what it runs stands in its data
// block.
#include "codegen/interp/ref_kernel.h"
#include <assert.h>
#include <stdlib.h>
#include "codegen/interp/ref_block.h"

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
    for (int i = 0; i < x->ndim; i++)
        t.dim[i] = x->dim[i].n * (x->dim[i].sym < 0 ? 1 : r->sym_value[x->dim[i].sym]);
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

static void append_to_each(Run *r, const int32_t *number) {
    const RefValue *pool = &r->value[number[0]];
    Tensor sequences = tensor_of(r, number[2]), all = tensor_of(r, number[0]);
    int64_t row = dtype_bytes((DType)pool->dtype);
    for (int i = 2; i < all.ndim; i++) row *= all.dim[i];
    for (int64_t k = 0; k < sequences.dim[0]; k++) {
        const int32_t *s = (const int32_t *)sequences.data + k * SEQUENCE_COLUMNS;
        int64_t to = s[SEQUENCE_PLACE] * all.dim[1] + s[SEQUENCE_LENGTH] - s[SEQUENCE_ROWS];
        memcpy((char *)r->c->arg[0] + to * row, (char *)r->c->arg[1] + s[SEQUENCE_FIRST] * row, (size_t)(s[SEQUENCE_ROWS] * row));
    }
}

// Appends the rows of this call to the pool: row 0 of them is row C - S of the sequence.
static void append_rows(Run *r, const RefNode *n, const int32_t *number) {
    Tensor rows = tensor_of(r, number[1]);
    if (n->n_in > 2) {
        append_to_each(r, number);
        return;
    }
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
        r.syms[i] =
            (Sym){.kind = (SymKind)s->kind, .bound = s->bound, .groups = s->groups, .leaves = s->leaves};
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
