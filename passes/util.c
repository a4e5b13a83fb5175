// What several passes need.
#include "passes/util.h"
#include <assert.h>
#include <string.h>

Node *node_clone(Builder *b, const Node *n, Value *const *ins) {
    Arena *a = b->g->arena;
    Value **in = arena_array(a, Value *, n->n_in + 1);
    if (n->n_in) memcpy(in, ins, sizeof *in * (size_t)n->n_in);
    Type *types = arena_array(a, Type, n->n_out + 1);
    for (int i = 0; i < n->n_out; i++) types[i] = n->out[i].type;
    Builder at = *b;
    at.at = n->at;
    at.path = n->path;
    at.backward = n->backward || b->backward;
    Node *copy = build_typed(&at, n->op, in, &n->attr, n->n_out, types);
    for (int i = 0; i < n->n_out; i++) {
        copy->out[i].name = n->out[i].name;
        copy->out[i].place = n->out[i].place;
    }
    return copy;
}

static bool data_equal(const Data *x, const Data *y) {
    if (x == y) return true;
    if (!x || !y || x->hash != y->hash || x->bytes != y->bytes || x->tensor.dtype != y->tensor.dtype)
        return false;
    if (x->tensor.ndim != y->tensor.ndim) return false;
    for (int i = 0; i < x->tensor.ndim; i++)
        if (x->tensor.dim[i] != y->tensor.dim[i]) return false;
    return !memcmp(x->tensor.data, y->tensor.data, (size_t)x->bytes);
}

static bool dims_equal(const Dims *x, const Dims *y) {
    if (x->n != y->n) return false;
    for (int i = 0; i < x->n; i++)
        if (!dim_eq(x->at[i], y->at[i])) return false;
    return true;
}

static bool ints_equal(const Ints *x, const Ints *y) {
    return x->n == y->n && !memcmp(x->at, y->at, sizeof *x->at * (size_t)x->n);
}

bool attrs_equal(Op op, const Attrs *x, const Attrs *y) {
    for (const int *id = op_info[op].attrs; *id; id++) {
        const AttrInfo *info = &attr_info[*id - 1];
        const void *p = (const char *)x + info->offset, *q = (const char *)y + info->offset;
        bool same = false;
        switch (info->kind) {
        case A_INT:   same = *(const int64_t *)p == *(const int64_t *)q; break;
        case A_REAL:  same = !memcmp(p, q, sizeof(double)); break;         // by bits: 0 and -0 differ
        case A_NAME:
        case A_SYM:
        case A_GRAPH: same = *(void *const *)p == *(void *const *)q; break;
        case A_INTS:  same = ints_equal(p, q); break;
        case A_DIMS:  same = dims_equal(p, q); break;
        case A_DATA:  same = data_equal(*(Data *const *)p, *(Data *const *)q); break;
        }
        if (!same) return false;
    }
    return true;
}

static bool data_is_uniform(const Data *data, double *number) {
    int bytes = dtype_bytes(data->tensor.dtype);
    int64_t n = data->bytes / bytes;
    const char *p = data->tensor.data;
    for (int64_t i = 1; i < n; i++)
        if (memcmp(p, p + i * bytes, (size_t)bytes)) return false;
    if (!n) return false;
    switch (data->tensor.dtype) {
    case F32:  *number = *(const float *)(const void *)p; return true;
    case I32:  *number = *(const int32_t *)(const void *)p; return true;
    case BOOL: *number = *(const uint8_t *)(const void *)p; return true;
    default:   return false;
    }
}

bool value_is_number(const Value *v, double *number) {
    const Node *n = v->node;
    while (n->op == OP_BROADCAST || n->op == OP_RESHAPE || n->op == OP_STOP_GRADIENT) n = n->in[0]->node;
    if (n->op != OP_CONST) return false;
    if (n->attr.data) return data_is_uniform(n->attr.data, number);
    *number = n->attr.value;
    return true;
}

bool value_is_scalar_const(const Value *v, double *number) {
    if (v->node->op != OP_CONST || v->node->attr.data || v->type.ndim) return false;
    *number = v->node->attr.value;
    return true;
}

bool value_is_read_once(const Value *v) {
    while (v->n_uses == 1 && node_is_view(v->node)) v = v->node->in[0];
    return v->n_uses == 1 && !op_is(v->node->op, SOURCE);
}

bool param_is_of_experts(const Node *param) {
    return param->attr.group && !strcmp(param->attr.group, "expert") && param->attr.dims.n > 1;
}

Graph *region_new(Graph *g, const char *name) {
    Graph *body = graph_new(g->arena, name);
    body->parent = g;
    body->leaf = g->leaf;
    body->stage = g->stage;
    return body;
}

void marks_clear(Graph *g) {
    for_each_node(g, n)
        for (int i = 0; i < n->n_out; i++) n->out[i].mark = NULL;
}

void node_add_operand(Node *n, Value *v) {
    Value **in = arena_array(n->graph->arena, Value *, n->n_in + 1);
    if (n->n_in) memcpy(in, n->in, sizeof *in * (size_t)n->n_in);
    in[n->n_in++] = v;
    n->in = in;
    v->n_uses++;
}

void node_move_behind(Node *n, Node *place) {
    Graph *g = n->graph;
    assert(place->graph == g && place != n);
    if (place->next == n) return;
    *(n->prev ? &n->prev->next : &g->first) = n->next;
    *(n->next ? &n->next->prev : &g->last) = n->prev;
    n->prev = place;
    n->next = place->next;
    *(place->next ? &place->next->prev : &g->last) = n;
    place->next = n;
}

// A node that moves rows reads no more of its source than it writes.
GraphWork graph_work(const Graph *g) {
    GraphWork w = {0};
    for_each_node(g, n) {
        bool is_source = n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_INPUT || n->op == OP_CONST;
        if (is_source || op_is(n->op, EFFECT) || node_is_view(n)) continue;
        bool moves = n->op == OP_GATHER_ROWS || n->op == OP_SLICE || n->op == OP_TAKE;
        w.launches++;
        for (int i = 0; i < n->n_out; i++) w.bytes += (double)type_bytes(&n->out[i].type);
        for (int i = 0; i < n->n_in; i++)
            w.bytes += (double)type_bytes(moves && i == 0 ? &n->out[0].type : &n->in[i]->type);
    }
    return w;
}

void won_work(const Graph *g, PassCtx *cx, GraphWork before) {
    GraphWork now = graph_work(g);
    WON(cx, "%d -> %d launches, %.1f -> %.1f MB read and written", before.launches, now.launches,
        before.bytes / 1e6, now.bytes / 1e6);
}
