// A gate becomes the nodes it consists of: pieces of one kernel, or where no kernel takes it whole, nodes of the graph.
//
//     gate {softmax topk sum div count route}   =>   fused {softmax topk sum div}    rows of tokens
//                                                    count                           runs of slots
//                                                    route
//
// Levels: a row-local node stands one above a column node or a node with another number of rows that it
// reads.  Row-local nodes of one level and row count make one body.
#include <assert.h>
#include <string.h>
#include "codegen/gates.h"
#include "codegen/kernel.h"
#include "ir/base/vec.h"
#include "ir/build.h"

typedef struct {
    Arena *a;
    Builder b;
    const Node *gate;
    const Graph *body;
    Value *const *in;                // what the gate's operands are where the pieces stand
    Sym *rows;                       // stands for the route's where the pieces are no part of its graph
    int *level;                      // by id of the body's nodes
    bool *done;
    Value **outside;                 // by id of the body's values: where the new graph has it
    bool *wanted;                    // read by another piece, or yielded
    int64_t temp, most_temp;         // memory of what no result holds, from the graph's end
} Gate;

enum { MOST_TABLE = 4096 };

static bool is_source(const Node *n) { return n->op == OP_CONST || n->op == OP_IOTA; }

static bool is_last_axis(const Node *n, int64_t axis) { return axis == n->in[0]->type.ndim - 1; }

static bool is_row_local(const Node *n) {
    switch (n->op) {
    case OP_SUM: return n->attr.axes.n == 1 && is_last_axis(n, n->attr.axes.at[0]) && n->attr.leaves <= 1;
    case OP_REDUCE_MAX: return is_last_axis(n, n->attr.axis);
    case OP_SLICE: case OP_CONCAT: return is_last_axis(n, n->attr.axis);
    case OP_BROADCAST:
    case OP_SOFTMAX:
    case OP_LOGSUMEXP:
    case OP_TOPK:
    case OP_TAKE:
    case OP_PUT: return true;
    default: return op_is(n->op, ELEMENTWISE) && n->op != OP_STOP_GRADIENT;
    }
}

static bool joins(const Node *n, const Node *like, const Gate *k) {
    return is_row_local(n) && !k->done[n->id] && k->level[n->id] == k->level[like->id] &&
           same_rows(&n->out[0].type, &like->out[0].type);
}

static void set_levels(Gate *k) {
    for_each_node(k->body, n)
        for (int i = 0; i < n->n_in; i++) {
            const Node *x = n->in[i]->node;
            if (x->op == OP_ARG || is_source(x)) continue;
            bool apart = is_row_local(n) && !(is_row_local(x) && same_rows(&x->out[0].type, &n->out[0].type));
            int least = k->level[x->id] + apart;
            if (least > k->level[n->id]) k->level[n->id] = least;
        }
}

static void give_memory(Gate *k, Value *v) {
    v->arena = RT_STEP;
    v->offset = k->b.g->arena_bytes + k->temp;
    k->temp += (type_bytes(&v->type) + 127) / 64 * 64;
    if (k->temp > k->most_temp) k->most_temp = k->temp;
}

// An iota as a constant: a piece by itself would cost a phase.
static Value *iota_table(Gate *k, const Node *n) {
    const Type *type = &n->out[0].type;
    Tensor t = {.dtype = I32, .ndim = type->ndim};
    int64_t count = type_bound_elements(type), inner = 1;
    int32_t *to = arena_array(k->a, int32_t, count + 1);
    for (int i = 0; i < t.ndim; i++) {
        t.dim[i] = dim_bound(type->dim[i]);
        if (i > n->attr.axis) inner *= t.dim[i];
    }
    for (int64_t i = 0; i < count; i++) to[i] = (int32_t)(i / inner % t.dim[n->attr.axis]);
    t.data = to;
    return build_data(&k->b, &t);
}

static bool is_table(const Gate *k, const Type *t) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym) return false;
    return k->rows && t->dtype == I32 && type_bound_elements(t) <= MOST_TABLE;
}

// The new graph's value for a value of the body; constants are made where they are wanted.
static Value *outside_of(Gate *k, Value *v) {
    if (!k->outside[v->id] && v->node->op == OP_CONST) {
        k->outside[v->id] = make(&k->b, OP_CONST, INS(NULL), .dtype = v->node->attr.dtype,
                                 .value = v->node->attr.value, .data = v->node->attr.data);
    } else if (!k->outside[v->id] && v->node->op == OP_IOTA && is_table(k, &v->type)) {
        k->outside[v->id] = iota_table(k, v->node);
    } else if (!k->outside[v->id] && v->node->op == OP_IOTA) {
        k->outside[v->id] = build_first(build_node(&k->b, OP_IOTA, INS(NULL), &v->node->attr));
        give_memory(k, k->outside[v->id]);
    }
    assert(k->outside[v->id]);
    return k->outside[v->id];
}

// One body of all undone row-local nodes of first's level and row count, from first on.
static void add_body(Gate *k, Node *first) {
    Graph *g = graph_new(k->a, "body");
    g->parent = k->b.g;
    Builder in = builder_end(g, NULL);
    in.path = k->gate->path;
    in.at = k->gate->at;
    int n_values = 0;
    for_each_node(k->body, n) n_values += n->n_out;
    Value **inside = arena_array(k->a, Value *, n_values + 1);
    VEC(Value *) args = {0}, results = {0}, yields = {0};
    for (Node *n = first; n; n = n->next) {
        if (!joins(n, first, k)) continue;
        Value **ops = arena_array(k->a, Value *, n->n_in + 1);
        for (int i = 0; i < n->n_in; i++) {
            Value *x = n->in[i];
            if (!inside[x->id] && x->node->op == OP_CONST && !x->node->attr.data) {
                inside[x->id] = build_const(&in, x->node->attr.value, x->type.dtype);
            } else if (!inside[x->id]) {
                Value *from = outside_of(k, x);
                inside[x->id] = make(&in, OP_ARG, INS(NULL), .k = args.n, .dtype = x->type.dtype,
                                     .dims = dims_of(&x->type));
                vec_push(k->a, &args, from);
            }
            ops[i] = inside[x->id];
        }
        Node *m = build_node(&in, n->op, ops, &n->attr);
        k->done[n->id] = true;
        for (int i = 0; i < n->n_out; i++) {
            inside[n->out[i].id] = &m->out[i];
            if (!k->wanted[n->out[i].id]) continue;
            vec_push(k->a, &results, &m->out[i]);
            vec_push(k->a, &yields, &n->out[i]);
        }
    }
    vec_push(k->a, &results, (Value *)NULL);
    vec_push(k->a, &args, (Value *)NULL);
    if (results.n == 1) return;                            // nobody reads any of it
    build_node(&in, OP_YIELD, results.at, &(Attrs){0});
    Type *types = arena_array(k->a, Type, results.n);
    for (int i = 0; i + 1 < results.n; i++) types[i] = results.at[i]->type;
    Node *fused = build_typed(&k->b, OP_FUSED, args.at, &(Attrs){.body = g}, results.n - 1, types);
    for (int i = 0; i < yields.n; i++) {
        k->outside[yields.at[i]->id] = &fused->out[i];
        give_memory(k, &fused->out[i]);
    }
}

static void add_alone(Gate *k, Node *n) {
    Value **ops = arena_array(k->a, Value *, n->n_in + 1);
    for (int i = 0; i < n->n_in; i++) ops[i] = outside_of(k, n->in[i]);
    Type *types = arena_array(k->a, Type, n->n_out + 1);
    Attrs attr = n->attr;
    for (int i = 0; i < n->n_out; i++) types[i] = n->out[i].type;
    if (n->op == OP_ROUTE && k->rows) {
        *k->rows = *attr.sym;
        attr.sym = types[2].dim[0].sym = k->rows;
    }
    Node *m = build_typed(&k->b, n->op, ops, &attr, n->n_out, types);
    k->done[n->id] = true;
    for (int i = 0; i < n->n_out; i++) {
        k->outside[n->out[i].id] = &m->out[i];
        give_memory(k, &m->out[i]);
    }
}

// Who is read outside the body that will hold it: by the yield, by lone nodes, by bodies of other levels or
// rows.
static void set_wanted(Gate *k) {
    for_each_node(k->body, n)
        for (int i = 0; i < n->n_in; i++) {
            const Node *x = n->in[i]->node;
            bool together = is_row_local(n) && is_row_local(x) && k->level[n->id] == k->level[x->id] &&
                            same_rows(&n->out[0].type, &x->out[0].type);
            if (!together) k->wanted[n->in[i]->id] = true;
        }
}

// What result i of the gate is: made by a piece, or a copy of what none makes for it.
static Value *result_of(Gate *k, int i) {
    const Node *yield = k->body->last;
    Value *from = outside_of(k, yield->in[i]);
    Op op = from->node->op;
    bool taken = yield->in[i]->node->op == OP_ARG || op == OP_CONST || op == OP_RESHAPE || op == OP_STOP_GRADIENT;
    for (int j = 0; j < i; j++) taken |= yield->in[j] == yield->in[i];
    return taken ? make(&k->b, OP_COPY, INS(from)) : from;
}

static void give_results(Gate *k, Node *gate) {
    Graph *g = gate->graph;
    for (int i = 0; i < gate->n_out; i++) {
        Value *from = result_of(k, i), *old = &gate->out[i];
        from->arena = old->arena;
        from->offset = old->offset;
        from->name = old->name;
        replace_all_uses(g, old, from);
        for (int s = 0; s < g->n_syms; s++)
            if (g->sym[s]->extent == old) g->sym[s]->extent = from;
    }
}

// The pieces, where k's builder stands.
static void add_pieces(Gate *k) {
    int n_values = graph_number((Graph *)k->body), most = 0, n_nodes = 0;
    for_each_node(k->body, n) n_nodes++;
    k->level = arena_array(k->a, int, n_nodes + 1);
    k->done = arena_array(k->a, bool, n_nodes + 1);
    k->outside = arena_array(k->a, Value *, n_values + 1);
    k->wanted = arena_array(k->a, bool, n_values + 1);
    k->temp = 0;
    set_levels(k);
    set_wanted(k);
    for_each_node(k->body, n) {
        if (n->op == OP_ARG) k->outside[n->out[0].id] = k->in[n->attr.k];
        if (n->op == OP_ARG || n->op == OP_YIELD || is_source(n)) k->done[n->id] = true;
        if (k->level[n->id] > most) most = k->level[n->id];
    }
    for (int level = 0; level <= most; level++) {
        for_each_node(k->body, n)
            if (!k->done[n->id] && k->level[n->id] == level && is_row_local(n)) add_body(k, n);
        for_each_node(k->body, n)
            if (!k->done[n->id] && k->level[n->id] == level && !is_row_local(n)) add_alone(k, n);
    }
}

GatePieces gate_pieces(Arena *a, const Node *gate) {
    GatePieces p = {.g = graph_new(a, "pieces"), .result = arena_array(a, Value *, gate->n_out + 1)};
    Gate k = {.a = a, .gate = gate, .body = gate->attr.body, .b = builder_end(p.g, NULL)};
    Value **in = arena_array(a, Value *, gate->n_in + 1);
    k.rows = arena_new(a, Sym);
    k.b.path = gate->path;
    k.b.at = gate->at;
    for (int i = 0; i < gate->n_in; i++) {
        const Type *t = &gate->in[i]->type;
        in[i] = make(&k.b, OP_ARG, INS(NULL), .k = i, .dtype = t->dtype, .dims = dims_of(t));
    }
    k.in = in;
    add_pieces(&k);
    for (int i = 0; i < gate->n_out; i++) p.result[i] = result_of(&k, i);
    for_each_node(p.g, n)
        if (n->op == OP_ROUTE) p.route = n;
    return p;
}

Graph *open_gates(Arena *a, Graph *g, bool (*is_kernel)(const Node *gate)) {
    bool any = false;
    for_each_node(g, n) any |= n->op == OP_GATE && !is_kernel(n);
    if (!any) return g;
    Graph *to = graph_copy(a, g);
    Gate k = {.a = a};
    for_each_node(to, n) {
        if (n->op != OP_GATE || is_kernel(n)) continue;
        k.gate = n;
        k.body = n->attr.body;
        k.in = n->in;
        k.b = builder_before(to, n);
        add_pieces(&k);
        give_results(&k, n);
        graph_remove(n);
    }
    to->arena_bytes = (to->arena_bytes + k.most_temp + 63) / 64 * 64;
    return to;
}
