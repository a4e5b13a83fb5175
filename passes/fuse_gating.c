// A router around its route becomes one gate node.
//
//     %p     = softmax %z : f32[L,512,8]                  %w, %c, %off, %row, %slot = gate %z {body =
//     %v, %e = topk %p {k = 2}                              %0 = arg {k = 0}
//     %s     = sum %v {axes = [2]}                          %1 = softmax %0
//     %w     = div %v, %s                            =>     ...
//     %c     = count %e {experts = 8}                       yield ..
//     %off, %row, %slot = route %e                        }
//
// There is no list of known routers.  Anchor is a route.  A node is row-local if row t of its result depends
// only on row t of operands that have the route's rows (its tokens); column ops are sums over tokens, count,
// queue and route.
//   1. up: from the route's operand collect row-local nodes and queues, stopping at everything else
//   2. down and sideways, until nothing changes: row-local nodes and column ops all of whose token operands
//      are in the region or read by it: weights after the drop, statistics, z-loss rows
//   3. convexity: nodes that depend on the region through a node outside leave it
// Fused equals unfused: members are the same nodes with the same types and orders of sums, moved.  Effects,
// scalars of losses and everything after a sum over tokens stay outside.
//
// The body yields what is read outside, always the route's results, and in a graph with losses those of its
// topks, softmaxes and sums: their gradients read them, and choosing again or summing again would cost more.
#include <string.h>
#include "passes/util.h"

enum { MOST_COLUMNS = 4096, MOST_NODES = 512 };
enum {
    INSIDE = 1,
    READ = 2,
    TAINTED = 4
}; // Node.flags: in the region; its result is read there; depends on it from outside

typedef struct {
    Graph *g;
    Node  *route;
    Type   tokens;         // leading axes of the route's operand: dtype unused
} Region;

// ---- rows ----

// How many leading axes of t hold exactly the tokens; -1 if t has no such axes.
static int token_axes(const Region *r, const Type *t) {
    int64_t want = 1, have = 1;
    const Sym *want_sym = NULL, *sym = NULL;
    for (int i = 0; i < r->tokens.ndim; i++) {
        want *= r->tokens.dim[i].n;
        if (r->tokens.dim[i].sym) want_sym = r->tokens.dim[i].sym;
    }
    for (int i = 0; i < t->ndim; i++) {
        have *= t->dim[i].n;
        if (t->dim[i].sym && sym) return -1;
        if (t->dim[i].sym) sym = t->dim[i].sym;
        if (have == want && sym == want_sym &&
            (i + 1 == t->ndim || !dim_is_1(t->dim[i + 1]) || i + 1 >= r->tokens.ndim))
            return i + 1;
        if (have > want) return -1;
    }
    return -1;
}

static bool has_tokens(const Region *r, const Value *v) { return token_axes(r, &v->type) > 0; }

// All of `axes` lie behind the tokens of v.
static bool along_columns(const Region *r, const Value *v, const int64_t *axes, int n) {
    int first = token_axes(r, &v->type);
    for (int i = 0; i < n; i++)
        if (axes[i] < first) return false;
    return first > 0;
}

static int64_t columns(const Region *r, const Value *v) {
    int64_t n = 1;
    for (int i = token_axes(r, &v->type); i < v->type.ndim; i++) n *= dim_bound(v->type.dim[i]);
    return n;
}

static bool is_row_local(const Region *r, const Node *n) {
    for (int i = 0; i < n->n_out; i++)
        if (!has_tokens(r, &n->out[i]) || columns(r, &n->out[i]) > MOST_COLUMNS) return false;
    if (!n->n_out || !op_is(n->op, PURE) || n->backward) return false;
    const Value *x = n->n_in ? n->in[0] : NULL;
    switch (n->op) {
    case OP_RANDOM:
    case OP_IOTA:       return true;
    case OP_RESHAPE:    return has_tokens(r, x);
    case OP_BROADCAST:  return true;
    case OP_PERMUTE:
        for (int i = 0; i < token_axes(r, &x->type); i++)
            if (n->attr.perm.at[i] != i) return false;
        return has_tokens(r, x);
    case OP_SUM:        return along_columns(r, x, n->attr.axes.at, n->attr.axes.n);
    case OP_REDUCE_MAX:
    case OP_CUMSUM:
    case OP_SLICE:
    case OP_UNSLICE:
    case OP_CONCAT:     return along_columns(r, x, &n->attr.axis, 1);
    default:            break;
    }
    if (op_is(n->op, ROW_LOCAL)) {
        int64_t last = x->type.ndim - 1;
        return along_columns(r, x, &last, 1);
    }
    return op_is(n->op, ELEMENTWISE);
}

// A sum over tokens of each leaf, or one of the routing ops.
static bool is_column_op(const Region *r, const Node *n) {
    if (n->op == OP_COUNT || n->op == OP_QUEUE) return true;
    if (n->op == OP_ROUTE) return n == r->route;
    if (n->op != OP_SUM || n->backward) return false;
    const Value *x = n->in[0];
    bool over_tokens = false;
    for (int i = 0; i < n->attr.axes.n; i++) {
        if (x->type.dim[n->attr.axes.at[i]].sym) return false;          // over leaves
        over_tokens |= n->attr.axes.at[i] < token_axes(r, &x->type);
    }
    return over_tokens && columns(r, x) <= MOST_COLUMNS;
}

// ---- the region ----

static void collect_up(const Region *r, Node *n) {
    if (n->flags & INSIDE) return;
    bool fits = n == r->route || n->op == OP_QUEUE || (is_row_local(r, n) && !op_is(n->op, SOURCE));
    if (!fits) return;
    n->flags |= INSIDE;
    for (int i = 0; i < n->n_in; i++) collect_up(r, n->in[i]->node);
}

static void mark_reads(const Region *r) {
    for_each_node(r->g, n) n->flags &= ~READ;
    for_each_node(r->g, n)
        for (int i = 0; i < n->n_in; i++)
            if (n->flags & INSIDE) n->in[i]->node->flags |= READ;
}

static bool belongs(const Region *r, const Node *n) {
    if (!op_is(n->op, PURE) || op_is(n->op, SOURCE) || n->attr.body) return false;
    bool joins = false;
    for (int i = 0; i < n->n_in; i++) {
        const Node *m = n->in[i]->node;
        bool inside = m->flags & INSIDE;
        if (!has_tokens(r, n->in[i])) {
            if (inside) return false;              // after a sum over tokens
            continue;
        }
        if (!inside && !(m->flags & READ) && m->op != OP_IOTA && m->op != OP_CONST) return false;
        joins |= inside || (m->flags & READ && !op_is(m->op, SOURCE));
    }
    return joins && (is_row_local(r, n) || is_column_op(r, n));
}

static void collect_down(const Region *r) {
    bool again = true;
    while (again) {
        again = false;
        mark_reads(r);
        for_each_node(r->g, n) {
            if (n->flags & INSIDE || !belongs(r, n)) continue;
            n->flags |= INSIDE;
            again = true;
        }
    }
}

// In list order: whoever depends on the region through a node outside is outside too.
static void make_convex(const Region *r) {
    for_each_node(r->g, n) {
        bool tainted = false, reads_region = false;
        for (int i = 0; i < n->n_in; i++) {
            tainted |= (n->in[i]->node->flags & TAINTED) != 0;
            reads_region |= (n->in[i]->node->flags & INSIDE) != 0;
        }
        if (tainted) n->flags &= ~INSIDE;
        if (!(n->flags & INSIDE) && (tainted || reads_region)) n->flags |= TAINTED;
    }
}

// A reshape that nobody inside reads stays outside: what it shows is yielded, which others may want too.
static void leave_views_outside(const Region *r) {
    mark_reads(r);
    for_each_node_reverse(r->g, n) {
        if (!(n->flags & INSIDE) || n->flags & READ || n->op != OP_RESHAPE) continue;
        n->flags = TAINTED;
        mark_reads(r);
    }
}

// ---- the node ----

// Makes the members contiguous: those that depend on them and stand between move behind the last one.
static Node *move_readers_behind(Graph *g) {
    Node *first = NULL, *last = NULL;
    for_each_node(g, n)
        if (n->flags & INSIDE) {
            if (!first) first = n;
            last = n;
        }
    Node *place = last;
    for (Node *n = first, *next; n != last; n = next) {
        next = n->next;
        if (!(n->flags & TAINTED)) continue;
        node_move_behind(n, place);
        place = n;
    }
    return last;
}

static bool is_read_outside(const Value *v, const bool *outside) { return outside[v->id]; }

static void build_gate(Region *r, PassCtx *cx) {
    Graph *g = r->g;
    Arena *a = cx->scratch;
    Node *last = move_readers_behind(g);
    bool has_losses = false;
    bool *outside = arena_array(a, bool, graph_number(g) + 1);
    for_each_node(g, n) {
        has_losses |= n->op == OP_LOSS;
        for (int i = 0; i < n->n_in; i++)
            if (!(n->flags & INSIDE)) outside[n->in[i]->id] = true;
    }
    Graph *body = region_new(g, "gate");
    Builder inner = builder_end(body, NULL);
    PtrMap map = {.arena = a};
    VEC(Value *) ins = {0};
    VEC(Value *) yields = {0};
    VEC(Value *) results = {0};
    for_each_node(g, n) {
        if (!(n->flags & INSIDE)) continue;
        Value **mapped = arena_array(a, Value *, n->n_in + 1);
        for (int i = 0; i < n->n_in; i++) {
            Value *x = n->in[i], *y = map_get(&map, x);
            double number;
            if (!y && value_is_scalar_const(x, &number)) {
                y = build_first(node_clone(&inner, x->node, NULL));
            } else if (!y) {
                Builder arg = inner;
                arg.at = x->node->at;
                y = make(&arg, OP_ARG, NULL, .k = ins.n, .dtype = x->type.dtype, .dims = dims_of(&x->type));
                vec_push(a, &ins, x);
            }
            map_put(&map, x, y);
            mapped[i] = y;
        }
        Node *copy = node_clone(&inner, n, mapped);
        for (int i = 0; i < n->n_out; i++) {
            map_put(&map, &n->out[i], &copy->out[i]);
            bool for_gradient = has_losses && (n->op == OP_TOPK || n->op == OP_SOFTMAX || n->op == OP_SUM);
            if (!is_read_outside(&n->out[i], outside) && n != r->route && !for_gradient) continue;
            vec_push(a, &yields, &copy->out[i]);
            vec_push(a, &results, &n->out[i]);
        }
    }
    vec_push(a, &yields, NULL);
    vec_push(a, &ins, NULL);
    build_node(&inner, OP_YIELD, yields.at, &(Attrs){0});

    Builder b = builder_after(g, last);
    b.at = r->route->at;
    b.path = r->route->path;
    Node *gate = build(&b, OP_GATE, ins.at, .body = body);
    marks_clear(g);
    for (int i = 0; i < results.n; i++) {
        results.at[i]->mark = &gate->out[i];
        gate->out[i].name = results.at[i]->name;
    }
    Sym *rows = r->route->attr.sym;
    int n_members = 0;
    for (Node *n = gate->next; n; n = n->next)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
    for (int i = 0; i < results.n; i++)
        if (results.at[i] == &r->route->out[0]) rows->extent = &gate->out[i];
    Value *extent = rows->extent;
    for_each_node_reverse(g, n) {
        if (!(n->flags & INSIDE)) continue;
        graph_remove(n);
        n_members++;
    }
    rows->extent = extent;
    marks_clear(g);
    TRACE(cx, "fuse-gating: %s: %d nodes, %d inputs, %d results\n", gate->path ? gate->path : "", n_members,
          gate->n_in, gate->n_out);
}

bool pass_fuse_gating(Graph *g, PassCtx *cx) {
    VEC(Node *) routes = {0};
    for_each_node(g, n)
        if (n->op == OP_ROUTE) vec_push(cx->scratch, &routes, n);
    bool changed = false;
    for (int k = 0; k < routes.n; k++) {
        Region r = {.g = g, .route = routes.at[k]};
        r.tokens = r.route->in[0]->type;
        r.tokens.ndim--;
        if (!r.tokens.ndim) continue;
        for_each_node(g, n) n->flags = 0;
        collect_up(&r, r.route);
        collect_down(&r);
        make_convex(&r);
        leave_views_outside(&r);
        int n_members = 0;
        for_each_node(g, n) n_members += (n->flags & INSIDE) != 0;
        if (!(r.route->flags & INSIDE) || n_members < 2 || n_members > MOST_NODES) {
            TRACE(cx, "fuse-gating: %s stays as it is: a region of %d nodes\n",
                  r.route->path ? r.route->path : "", n_members);
            continue;
        }
        build_gate(&r, cx);
        changed = true;
    }
    for_each_node(g, n) n->flags = 0;
    return changed;
}
