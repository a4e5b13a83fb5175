// What stands around a contraction becomes part of it, so that fewer values go to memory.
//
//     gather     %g = gather_rows %x, %rows              %y = grouped_matmul %x, %w, %o, %rows {gather = 1}
//                %y = grouped_matmul %g, %w, %o     =>
//     epilogue   %p = matmul %a, %b                      %h = matmul %a, %b, %c epilogue { .. }
//                %h = fused %p, %c body { .. }      =>
//     pair       two products of one %a that meet in a body become one node with two right-hand sides
//
// A gather goes when all its readers are contractions that can read rows by number: they pack rows anyway.
// A body becomes an epilogue if it works element by element, all its results have the product's dimensions,
// and whoever else reads the product comes behind it: then the contraction moves to the body's place, and a
// product that is read elsewhere becomes one more result.  Every op inside keeps its order, so no bit changes.
//
// A kernel forms a product in the memory of a result of its type and lets the epilogue write over it.  A
// product that finds none of that kind becomes a result that nobody reads.
#include <string.h>
#include "passes/util.h"

enum { MOST_OPERANDS = 24, LONGEST_NARROW_SUM = 8192 };

static bool same_dims(const Type *x, const Type *y) {
    Type z = *x;
    z.dtype = y->dtype;
    return type_eq(&z, y);
}

static Node *insert(Node *before, const Node *like, Op op, Value *const *ins, const Attrs *attr, int n_out,
                    const Type *types) {
    Builder b = builder_before(before->graph, before);
    b.at = like->at;
    b.path = like->path;
    b.backward = like->backward;
    Node *n = build_typed(&b, op, ins, attr, n_out, types);
    n->keep = like->keep;
    n->id = before->id;
    return n;
}

// ---- gathers ----

bool contraction_can_gather(const Node *n, int operand) {
    switch (n->op) {
    case OP_MATMUL:         return operand == 0 && !n->attr.ta && n->in[1]->type.ndim == 2;
    case OP_GROUPED_MATMUL: return operand == 0;
    case OP_MATMUL_DW:
    case OP_GROUPED_DW:     return operand < 2;
    default:                return false;
    }
}

static void read_through(Node *n, int operand, Node *gather) {
    Contraction c = contraction_of(n);
    Attrs attr = n->attr;
    Value *ins[MAX_NAMED + 1] = {NULL};
    int n_in = 0;
    for (int i = 0; i < c.own; i++) ins[n_in++] = i == operand ? gather->in[0] : n->in[i];
    for (int i = 0; i < 2; i++)
        if (i == operand) ins[n_in++] = gather->in[1];
        else if (c.index[i] >= 0) ins[n_in++] = n->in[c.index[i]];
    attr.gather |= INT64_C(1) << operand;
    Node *made = insert(n, n, n->op, ins, &attr, 1, &n->out[0].type);
    made->out[0].name = n->out[0].name;
    made->out[0].place = n->out[0].place;
    replace_all_uses(n->graph, &n->out[0], &made->out[0]);
    graph_remove(n);
}

static bool attach_gather(Graph *g, Node *gather) {
    Value *rows = &gather->out[0];
    if (!rows->n_uses || rows->type.dtype == F16) return false;
    if (type_bytes(&gather->in[0]->type) > type_bytes(&rows->type)) return false;    // few of many rows
    for (Node *n = gather->next; n; n = n->next)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i] == rows && !contraction_can_gather(n, i)) return false;
    for (Node *n = gather->next, *next; n && rows->n_uses; n = next) {
        next = n->next;
        for (int i = 0; i < n->n_in && i < 2; i++)
            if (n->in[i] == rows) {
                read_through(n, i, gather);
                n = next ? next->prev : g->last;          // what replaced it may read the rows once more
            }
    }
    graph_remove(gather);
    return true;
}

// ---- epilogues ----

static bool is_body(const Node *n) {
    if (n->op != OP_FUSED) return op_is(n->op, ELEMENTWISE) && !op_is(n->op, VIEW) && n->n_out == 1;
    for_each_node(n->attr.body, m) {
        if (m->op == OP_ARG || m->op == OP_CONST || m->op == OP_YIELD || m->op == OP_BROADCAST) continue;
        if (!op_is(m->op, ELEMENTWISE) || op_is(m->op, VIEW)) return false;
    }
    return true;
}

// Is operand i of the body a product that may be formed at the body's place?
static bool is_product(const Node *body, int i) {
    const Value *v = body->in[i];
    const Node *n = v->node;
    if (n->op != OP_MATMUL && n->op != OP_GROUPED_MATMUL) return false;
    if (n->attr.epilogue || n->backward != body->backward) return false;
    if (v->type.dtype == F16 || v->type.dim[v->type.ndim - 1].sym) return false;
    const Type *a = &n->in[0]->type;
    int64_t terms = dim_bound(a->dim[a->ndim - (n->attr.ta ? 2 : 1)]);
    if (v->type.dtype != F32 && terms > LONGEST_NARROW_SUM) return false;
    for (int k = 0; k < body->n_out; k++)
        if (!same_dims(&body->out[k].type, &v->type)) return false;
    for (const Node *m = n->next; m != body; m = m->next)
        for (int k = 0; k < m->n_in; k++)
            if (m->in[k] == v) return false;
    return true;
}

static bool are_pair(const Node *x, const Node *y) {
    if (x->op != y->op || x->n_in != y->n_in || x->attr.ta != y->attr.ta || x->attr.tb != y->attr.tb ||
        x->attr.gather != y->attr.gather || !type_eq(&x->in[1]->type, &y->in[1]->type))
        return false;
    for (int i = 0; i < x->n_in; i++)
        if (i != 1 && x->in[i] != y->in[i]) return false;
    return true;
}

typedef struct {
    Arena *scratch;
    Node  *body;
    Node  *product[2];         // in list order
    int    n_products;
    VEC(Value *) more;         // what else the epilogue reads
    VEC(Value *) yields;       // inside
    VEC(Value *) results;      // what they replace; NULL: nobody reads it
} Epilogue;

// The arg that stands for value v of the graph.
static Value *arg_for(Epilogue *e, Builder *inner, PtrMap *map, Value *v) {
    Value *arg = map_get(map, v);
    double number;
    if (arg) return arg;
    if (value_is_scalar_const(v, &number)) {
        arg = build_first(node_clone(inner, v->node, NULL));
    } else {
        int k = -1;
        for (int p = 0; p < e->n_products; p++)
            if (v == &e->product[p]->out[0]) k = p;
        if (k < 0) {
            k = e->n_products + e->more.n;
            vec_push(e->scratch, &e->more, v);
        }
        arg = make(inner, OP_ARG, NULL, .k = k, .dtype = v->type.dtype, .dims = dims_of(&v->type));
    }
    map_put(map, v, arg);
    return arg;
}

static int reads_of(const Node *n, const Value *v) {
    int reads = 0;
    for (int i = 0; i < n->n_in; i++) reads += n->in[i] == v;
    return reads;
}

static Graph *epilogue_of(Epilogue *e) {
    Node *body = e->body;
    Graph *region = region_new(body->graph, "epilogue");
    Builder inner = builder_end(region, NULL);
    PtrMap outer = {.arena = e->scratch}, map = {.arena = e->scratch};
    for (int p = 0; p < e->n_products; p++) arg_for(e, &inner, &outer, &e->product[p]->out[0]);
    if (body->op != OP_FUSED) {
        Value **ins = arena_array(e->scratch, Value *, body->n_in + 1);
        for (int i = 0; i < body->n_in; i++) ins[i] = arg_for(e, &inner, &outer, body->in[i]);
        vec_push(e->scratch, &e->yields, build_first(node_clone(&inner, body, ins)));
        vec_push(e->scratch, &e->results, &body->out[0]);
    } else {
        for_each_node(body->attr.body, m) {
            Value **ins = arena_array(e->scratch, Value *, m->n_in + 1);
            for (int i = 0; i < m->n_in; i++) ins[i] = map_get(&map, m->in[i]);
            if (m->op == OP_YIELD) {
                for (int i = 0; i < m->n_in; i++) {
                    vec_push(e->scratch, &e->yields, ins[i]);
                    vec_push(e->scratch, &e->results, &body->out[i]);
                }
            } else if (m->op == OP_ARG) {
                map_put(&map, &m->out[0], arg_for(e, &inner, &outer, body->in[m->attr.k]));
            } else {
                map_put(&map, &m->out[0], &node_clone(&inner, m, ins)->out[0]);
            }
        }
    }
    int homes = 0;                        // results in whose memory a product can be formed
    const Type *y = &e->product[0]->out[0].type;
    for (int i = 0; i < e->yields.n; i++) homes += type_eq(&e->yields.at[i]->type, y);
    for (int p = 0; p < e->n_products; p++) {
        Value *v = &e->product[p]->out[0];
        bool is_kept = v->n_uses > reads_of(body, v);
        if (!is_kept && homes-- > 0) continue;
        vec_push(e->scratch, &e->yields, map_get(&outer, v));
        vec_push(e->scratch, &e->results, is_kept ? v : NULL);
    }
    vec_push(e->scratch, &e->yields, NULL);
    build_node(&inner, OP_YIELD, e->yields.at, &(Attrs){0});
    return region;
}

// The contraction that took the body in, or NULL.
static Node *attach_epilogue(Graph *g, Arena *scratch, Node *body) {
    if (!is_body(body) || body->n_in + body->n_out > MOST_OPERANDS) return NULL;
    Epilogue e = {.scratch = scratch, .body = body};
    for (int i = 0; i < body->n_in; i++)
        if (is_product(body, i) && (!e.product[0] || body->in[i]->node->id > e.product[0]->id))
            e.product[0] = body->in[i]->node;
    if (!e.product[0]) return NULL;
    e.n_products = 1;
    for (int i = 0; i < body->n_in && e.n_products == 1; i++) {
        Node *other = body->in[i]->node;
        if (other == e.product[0] || !is_product(body, i) || !are_pair(other, e.product[0])) continue;
        e.product[1] = e.product[0];
        e.product[0] = other;
        e.n_products = 2;
    }

    Node *n = e.product[e.n_products - 1];
    Attrs attr = n->attr;
    attr.epilogue = epilogue_of(&e);
    attr.pair = e.n_products == 2;
    VEC(Value *) ins = {0};
    for (int i = 0; i < n->n_in; i++) vec_push(scratch, &ins, e.product[0]->in[i]);
    if (attr.pair) vec_push(scratch, &ins, n->in[1]);
    for (int i = 0; i < e.more.n; i++) vec_push(scratch, &ins, e.more.at[i]);
    vec_push(scratch, &ins, NULL);
    Type *types = arena_array(scratch, Type, e.results.n);
    for (int i = 0; i < e.results.n; i++) types[i] = e.yields.at[i]->type;
    Node *made = insert(body, n, n->op, ins.at, &attr, e.results.n, types);
    for (int i = 0; i < body->n_out; i++) replace_all_uses(g, &body->out[i], &made->out[i]);
    graph_remove(body);
    for (int i = 0; i < e.results.n; i++) {
        Value *old = e.results.at[i];
        if (!old) continue;
        made->out[i].name = old->name;
        made->out[i].place = old->place;
        if (i >= body->n_out) replace_all_uses(g, old, &made->out[i]);
    }
    for (int p = 0; p < e.n_products; p++) graph_remove(e.product[p]);
    return made;
}

bool pass_attach(Graph *g, PassCtx *cx) {
    int gathers = 0, epilogues = 0, pairs = 0;
    GraphWork work = graph_work(g);
    graph_number(g);
    for (Node *n = g->first, *prev; n; n = prev ? prev->next : g->first) {
        prev = n;
        if (n->op != OP_GATHER_ROWS) continue;
        Node *before = n->prev;
        if (!attach_gather(g, n)) continue;
        prev = before;
        gathers++;
    }
    graph_number(g);
    for_each_node(g, n) {
        Node *made = attach_epilogue(g, cx->scratch, n);
        if (!made) continue;
        epilogues++;
        pairs += made->attr.pair != 0;
    }
    TRACE(cx, "attach: %d gathers, %d epilogues, %d of pairs\n", gathers, epilogues, pairs);
    won_work(g, cx, work);
    return gathers + epilogues > 0;
}
