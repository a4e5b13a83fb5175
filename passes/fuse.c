// Elementwise work and row reductions become single bodies: values between them never go to memory.
//
//     %q = mul %x, %x                            %h = fused %x, %g body {
//     %s = sum %q {axes = [1]}                     %0 = arg {k = 0}
//     %m = fma %s, 0.0078125, 1e-05                %1 = mul %0, %0
//     %r = rsqrt %m                         =>     %2 = sum %1 {axes = [1]}
//     %n = mul %x, %r                              ...
//     %h = mul %n, %g                              yield %6
//                                                }
//
// A body has one iteration space: rows (all axes but the last) times C columns.  What it may hold stands in
// README.md, the contract with the code generators.  Inside, each node is the node it was, so a body computes
// the same bits.
//
// Rows moved by number join in.  gather_rows is a load, of operands only.  scatter_add_rows with its inverse
// known brings rows of another space to those of the body: what is done to them happens where they are added
// up.  So combine takes in the weighting of rows before it and the residual and the norm behind it:
//
//     %m = mul %y, %w               rows R
//     %s = scatter_add_rows %m ..   R to T       =>   one body over T
//     %x = add %x0, %s              rows T
//
// Greedy: edges between fusible nodes in order of bytes saved (a value with one reader is neither written nor
// read, another one is read once less), ties by list position.  An edge joins its two groups if they have the
// same space, if no path leaves the union and comes back, and if the union stays small: operands, results,
// and the values alive at once by the body's own order.  Then siblings: groups of one space that read the
// same value, with no path between them.  Forward and backward nodes never meet: there is always a path
// through the losses.
#include <stdlib.h>
#include <string.h>
#include "passes/util.h"

enum { MOST_PARTS = 8, MOST_NODES = 64, MOST_OPERANDS = 32, MOST_LIVE = 24, MOST_REDUCED_COLUMNS = 8192, MOST_SOURCES = 16, MOST_PICKED = 1024 };

typedef struct {
    int   *member;          // node ids, ascending
    int    n;
    Type   space;           // dtype unused; last dimension: columns, 1 if no member has more
    Type   rows;            // combines: the space of the rows that a scatter brings to `space`
    bool   combines;
    bool   reduces;
    bool   joins_columns;   // holds a concat, take or put: its members may have several numbers of columns
} Group;

typedef struct {
    Graph   *g;
    PassCtx *cx;
    Node   **node;          // by id
    int      n_nodes;
    Group  **group;         // by node id; NULL: not fusible
    int *first_reader, *reader; // CSR: readers of node i are reader[first_reader[i] .. first_reader[i+1])
    int     *reach;         // [position] the last member of any group that has members on both sides of it
    int     *stamp, now;    // visited marks of searches
    int     *stack;
} Fuse;

// ---- what may be in a body ----

static bool is_last_axis(const Value *x, int64_t axis) { return axis == x->type.ndim - 1; }

static bool is_row_reduction(const Node *n) {
    const Value *x = n->in[0];
    switch (n->op) {
    case OP_SUM:        return n->attr.axes.n == 1 && is_last_axis(x, n->attr.axes.at[0]) && x->type.ndim > 1;
    case OP_REDUCE_MAX: return is_last_axis(x, n->attr.axis) && x->type.ndim > 1;
    case OP_SOFTMAX:
    case OP_LOGSUMEXP:  return x->type.ndim > 1;
    default:            return false;
    }
}

// A slice of columns is a load at an offset: of operands only.
static bool is_column_slice(const Node *n) {
    return n->op == OP_SLICE && is_last_axis(n->in[0], n->attr.axis);
}

static bool is_column_concat(const Node *n) {
    return n->op == OP_CONCAT && is_last_axis(n->in[0], n->attr.axis) && n->n_in <= MOST_PARTS;
}

// Columns by number: of every row its own.
static bool picks_columns(const Node *n) {
    return (n->op == OP_TAKE || n->op == OP_PUT) && type_cols(&n->in[0]->type) <= MOST_PICKED &&
           type_cols(&n->out[0].type) <= MOST_PICKED && (n->out[0].type.dtype == F32 || n->out[0].type.dtype == I32);
}

static bool is_combine(const Node *n) {
    return n->op == OP_SCATTER_ADD_ROWS && scatter_inverse(n) && type_cols(&scatter_inverse(n)->type) <= MOST_SOURCES &&
           type_cols(&n->out[0].type) <= MOST_REDUCED_COLUMNS;
}

// A load from another row: of a gather that no contraction does by itself, nor from a parameter that one multiplies by,
// whose layout it chooses (layout.c).
static bool is_load_by_number(Fuse *f, const Node *n) {
    if (n->op != OP_GATHER_ROWS) return false;
    const Node *table = n->in[0]->node;
    for (int r = f->first_reader[table->id]; table->op == OP_PARAM && r < f->first_reader[table->id + 1]; r++)
        if (op_is_contraction(f->node[f->reader[r]]->op)) return false;
    bool only_contractions = true;
    for (int r = f->first_reader[n->id]; r < f->first_reader[n->id + 1]; r++) {
        const Node *m = f->node[f->reader[r]];
        for (int i = 0; i < m->n_in; i++)
            if (m->in[i] == &n->out[0]) only_contractions &= contraction_can_gather(m, i);
    }
    DType t = n->out[0].type.dtype;
    return !only_contractions && (dtype_is_float(t) || t == I32);
}

// The iteration space of a node alone; false if it can't be in a body.
static bool space_of(Fuse *f, const Node *n, Type *space) {
    if (n->n_out != 1 || n->attr.body) return false;
    bool fits = (op_is(n->op, ELEMENTWISE) && !op_is(n->op, VIEW)) || n->op == OP_BROADCAST ||
                is_column_slice(n) || is_column_concat(n) || (n->n_in && is_row_reduction(n)) ||
                is_load_by_number(f, n) || is_combine(n) || picks_columns(n);
    if (!fits) return false;
    *space = n->out[0].type;
    if (n->n_in && is_row_reduction(n)) *space = n->in[0]->type;
    return !space->ndim || !space->dim[space->ndim - 1].sym;
}

static bool is_reduction(const Node *n) { return n->n_in && is_row_reduction(n); }

// Equal rows; columns equal or 1, or any if a concat brings them together.
static bool spaces_meet(const Type *x, const Type *y, bool any_columns, Type *both) {
    if (x->ndim != y->ndim) return false;
    *both = *x;
    if (!x->ndim) return true;
    int last = x->ndim - 1;
    for (int i = 0; i < last; i++)
        if (!dim_eq(x->dim[i], y->dim[i])) return false;
    if (y->dim[last].n > x->dim[last].n) both->dim[last] = y->dim[last];
    return any_columns || dim_is_1(x->dim[last]) || dim_is_1(y->dim[last]) ||
           dim_eq(x->dim[last], y->dim[last]);
}

// ---- legality ----

// Is there a path from group a to group b through a node outside both?
static bool has_path_outside(Fuse *f, const Group *a, const Group *b) {
    int last = b->member[b->n - 1], n = 0;
    while (f->reach[last] > last) last = f->reach[last];       // behind it no group leads back before it
    f->now++;
    for (int i = 0; i < a->n; i++) {
        f->stamp[a->member[i]] = f->now;
        f->stack[n++] = a->member[i];
    }
    while (n) {
        int at = f->stack[--n];
        for (int r = f->first_reader[at]; r < f->first_reader[at + 1]; r++) {
            int to = f->reader[r];
            if (to > last || f->stamp[to] == f->now) continue;
            const Group *group = f->group[to];
            if (group == b) {
                if (f->group[at] != a) return true;
                continue;
            }
            if (!group) {
                f->stamp[to] = f->now;
                f->stack[n++] = to;
                continue;
            }
            for (int i = 0; i < group->n; i++) {           // a group runs as one: all its readers come after
                if (f->stamp[group->member[i]] == f->now) continue;
                f->stamp[group->member[i]] = f->now;
                f->stack[n++] = group->member[i];
            }
        }
    }
    return false;
}

static bool reads_group(Fuse *f, const Group *reader, const Group *of) {
    for (int i = 0; i < reader->n; i++) {
        const Node *n = f->node[reader->member[i]];
        for (int k = 0; k < n->n_in; k++)
            if (f->group[n->in[k]->node->id] == of) return true;
    }
    return false;
}

static int by_int(const void *x, const void *y) { return *(const int *)x - *(const int *)y; }

static bool is_read_elsewhere(Fuse *f, const Node *n, const Group *x, const Group *y) {
    for (int r = f->first_reader[n->id]; r < f->first_reader[n->id + 1]; r++)
        if (f->group[f->reader[r]] != x && f->group[f->reader[r]] != y) return true;
    return false;
}

// Operands and results together, and the values alive at once when the members run in list order.
static bool is_small(Fuse *f, const int *member, int n, const Group *x, const Group *y) {
    int n_args = 0, live = 0, most = 0;
    f->now++;
    for (int i = 0; i < n; i++) {
        const Node *m = f->node[member[i]];
        for (int k = 0; k < m->n_in; k++) {
            Node *from = m->in[k]->node;
            bool inside = f->group[from->id] && (f->group[from->id] == x || f->group[from->id] == y);
            if (inside || from->op == OP_CONST || f->stamp[from->id] == f->now) continue;
            f->stamp[from->id] = f->now;
            n_args++;
        }
        n_args += is_read_elsewhere(f, m, x, y);
    }
    if (n_args > MOST_OPERANDS) return false;
    for (int i = 0; i < n; i++) {
        const Node *m = f->node[member[i]];
        // how many members' values are alive at m: those before it that are read at or behind it
        live = 0;
        for (int k = 0; k < i; k++) {
            const Node *e = f->node[member[k]];
            for (int r = f->first_reader[e->id]; r < f->first_reader[e->id + 1]; r++) {
                const Group *group = f->group[f->reader[r]];
                if (group && (group == x || group == y) && f->reader[r] >= m->id) {
                    live++;
                    break;
                }
            }
        }
        if (live > most) most = live;
    }
    return most <= MOST_LIVE;
}

// What y reads in another way than row by row, and so as an operand: is some of it made in x?
static bool needs_as_operand(Fuse *f, const Group *x, const Group *y) {
    for (int i = 0; i < y->n; i++) {
        const Node *n = f->node[y->member[i]];
        int first = is_column_slice(n) || n->op == OP_GATHER_ROWS ? 0 : n->op == OP_SCATTER_ADD_ROWS ? 1 : n->n_in;
        for (int k = first; k < n->n_in; k++)
            if (f->group[n->in[k]->node->id] == x) return true;
    }
    return false;
}

// The spaces of a body of both; false if they share no rows: neither their own, nor those that one brings together.
static bool unite(const Group *x, const Group *y, Group *both) {
    if (x->combines && y->combines) return false;
    const Group *outer = y->combines ? y : x, *other = outer == x ? y : x;
    Type t;
    *both = *outer;
    both->reduces |= other->reduces;
    if (outer->combines && !other->joins_columns && spaces_meet(&outer->rows, &other->space, false, &t)) {
        both->rows = t;
        return true;
    }
    both->joins_columns |= other->joins_columns;
    return spaces_meet(&x->space, &y->space, both->joins_columns, &both->space);
}

// Joins y into x if that is legal.
static bool join(Fuse *f, Group *x, Group *y) {
    Group both;
    if (x == y || x->n + y->n > MOST_NODES || !unite(x, y, &both)) return false;
    if (f->node[x->member[0]]->backward != f->node[y->member[0]]->backward) return false;
    if (both.reduces && type_cols(&both.space) > MOST_REDUCED_COLUMNS) return false;
    if (both.reduces && both.combines && type_cols(&both.rows) > MOST_REDUCED_COLUMNS) return false;
    if (needs_as_operand(f, x, y) || needs_as_operand(f, y, x)) return false;
    if (has_path_outside(f, x, y) || has_path_outside(f, y, x)) return false;
    int *member = arena_array(f->cx->scratch, int, x->n + y->n), n = x->n + y->n;
    memcpy(member, x->member, sizeof *member * (size_t)x->n);
    memcpy(member + x->n, y->member, sizeof *member * (size_t)y->n);
    qsort(member, (size_t)n, sizeof *member, by_int);
    if (!is_small(f, member, n, x, y)) return false;
    *x = both;
    x->member = member;
    x->n = n;
    for (int i = 0; i < n; i++) f->group[member[i]] = x;
    for (int at = member[0]; at < member[n - 1]; at++)
        if (f->reach[at] < member[n - 1]) f->reach[at] = member[n - 1];
    return true;
}

// ---- choosing ----

typedef struct { int64_t saved; int from, to; } Edge;

static int by_saving(const void *x, const void *y) {
    const Edge *a = x, *b = y;
    if (a->saved != b->saved) return a->saved > b->saved ? -1 : 1;
    if (a->to != b->to) return a->to - b->to;
    return a->from - b->from;
}

static void index_readers(Fuse *f) {
    Arena *a = f->cx->scratch;
    f->first_reader = arena_array(a, int, f->n_nodes + 2);
    int n_edges = 0;
    for_each_node(f->g, n)
        for (int i = 0; i < n->n_in; i++, n_edges++) f->first_reader[n->in[i]->node->id + 1]++;
    for (int i = 0; i < f->n_nodes; i++) f->first_reader[i + 1] += f->first_reader[i];
    f->reader = arena_array(a, int, n_edges + 1);
    int *fill = arena_array(a, int, f->n_nodes + 1);
    for_each_node(f->g, n)
        for (int i = 0; i < n->n_in; i++) {
            int from = n->in[i]->node->id;
            f->reader[f->first_reader[from] + fill[from]++] = n->id;
        }
}

static void join_along_edges(Fuse *f) {
    VEC(Edge) edges = {0};
    for_each_node(f->g, n) {
        if (!f->group[n->id] || is_column_slice(n) || n->op == OP_GATHER_ROWS) continue;
        for (int i = 0; i < n->n_in; i++) {
            const Value *v = n->in[i];
            if (!f->group[v->node->id]) continue;
            int64_t bytes = type_bytes(&v->type);
            vec_push(f->cx->scratch, &edges,
                     ((Edge){v->n_uses == 1 ? 2 * bytes : bytes, v->node->id, n->id}));
        }
    }
    if (edges.n) qsort(edges.at, (size_t)edges.n, sizeof *edges.at, by_saving);
    for (int i = 0; i < edges.n; i++) join(f, f->group[edges.at[i].from], f->group[edges.at[i].to]);
}

// The value covers the group's space; a weight or a scalar doesn't count.
static bool covers(const Value *v, const Group *x) {
    Type both;
    return type_bound_elements(&v->type) > 1 &&
           (spaces_meet(&v->type, &x->space, false, &both) ||
            (x->combines && spaces_meet(&v->type, &x->rows, false, &both)));
}

// Groups that read the same value save a read together.
static void join_siblings(Fuse *f) {
    enum { NEAR = 400 };       // list positions: what is far apart would keep values alive for long
    for_each_node(f->g, n) {
        if (n->op == OP_CONST) continue;
        int first = f->first_reader[n->id], end = f->first_reader[n->id + 1];
        for (int r = first; r < end; r++) {
            Group *x = f->group[f->reader[r]];
            if (!x) continue;
            for (int s = r + 1; s < end && f->reader[s] - f->reader[r] < NEAR; s++) {
                Group *y = f->group[f->reader[s]];
                x = f->group[f->reader[r]];
                if (!y || x == y || dim_is_1(x->space.dim[x->space.ndim ? x->space.ndim - 1 : 0])) continue;
                bool is_large = false;
                for (int i = 0; i < n->n_out; i++) is_large |= covers(&n->out[i], x);
                if (!is_large || reads_group(f, x, y) || reads_group(f, y, x)) continue;
                join(f, x, y);
            }
        }
    }
}

// Elementwise work on a product is about to become its epilogue (attach.c), which reads no rows by number: gathers
// leave such a group.
static void keep_epilogues(Fuse *f, Group *x) {
    bool has_product = false, has_gather = false;
    if (x->reduces || x->joins_columns) return;
    for (int i = 0; i < x->n; i++) {
        const Node *n = f->node[x->member[i]];
        if (is_column_slice(n)) return;
        has_gather |= n->op == OP_GATHER_ROWS;
        for (int k = 0; k < n->n_in; k++)
            has_product |= n->in[k]->node->op == OP_MATMUL || n->in[k]->node->op == OP_GROUPED_MATMUL;
    }
    if (!has_product || !has_gather) return;
    int n = 0;
    for (int i = 0; i < x->n; i++) {
        int id = x->member[i];
        if (f->node[id]->op == OP_GATHER_ROWS) f->group[id] = NULL;
        else x->member[n++] = id;
    }
    x->n = n;
}

// ---- building ----

static Node *build_body(Fuse *f, const Group *group) {
    Graph *g = f->g;
    Arena *a = f->cx->scratch;
    Graph *body = region_new(g, "fused");
    Builder inner = builder_end(body, NULL);
    PtrMap map = {.arena = a};
    VEC(Value *) ins = {0};
    VEC(Value *) yields = {0};
    VEC(Value *) results = {0};
    for (int i = 0; i < group->n; i++) {
        Node *n = f->node[group->member[i]];
        Value **mapped = arena_array(a, Value *, n->n_in + 1);
        for (int k = 0; k < n->n_in; k++) {
            Value *x = n->in[k], *y = map_get(&map, x);
            double number;
            if (!y && value_is_scalar_const(x, &number)) {
                y = build_first(node_clone(&inner, x->node, NULL));
            } else if (!y) {
                Value *from = x->mark ? x->mark : x;         // perhaps the result of another body by now
                y = make(&inner, OP_ARG, NULL, .k = ins.n, .dtype = x->type.dtype, .dims = dims_of(&x->type));
                vec_push(a, &ins, from);
            }
            map_put(&map, x, y);
            mapped[k] = y;
        }
        Node *copy = node_clone(&inner, n, mapped);
        map_put(&map, &n->out[0], &copy->out[0]);
        if (is_read_elsewhere(f, n, group, group)) {
            vec_push(a, &yields, &copy->out[0]);
            vec_push(a, &results, &n->out[0]);
        }
    }
    vec_push(a, &yields, NULL);
    vec_push(a, &ins, NULL);
    build_node(&inner, OP_YIELD, yields.at, &(Attrs){0});

    const Node *last = f->node[group->member[group->n - 1]];
    Builder b = builder_end(g, NULL);
    b.at = last->at;
    b.path = last->path;
    b.backward = last->backward;
    Node *fused = build(&b, OP_FUSED, ins.at, .body = body);
    for (int i = 0; i < results.n; i++) {
        results.at[i]->mark = &fused->out[i];
        fused->out[i].name = results.at[i]->name;
        fused->out[i].place = results.at[i]->place;
    }
    return fused;
}

// Writes the list anew: nodes at the end of the list in an order in which operands come first; a group where
// its last member stood, or where its first reader needs it.
static void emit(Fuse *f, int id, bool *is_done) {
    if (is_done[id]) return;
    const Group *group = f->group[id];
    bool is_body = group && group->n > 1;
    int one[1] = {id};
    const int *member = is_body ? group->member : one;
    int n_members = is_body ? group->n : 1;
    for (int i = 0; i < n_members; i++) is_done[member[i]] = true;
    for (int i = 0; i < n_members; i++) {
        const Node *n = f->node[member[i]];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k]->node->id >= 0) emit(f, n->in[k]->node->id, is_done);
    }
    Node *n = f->node[id];
    if (is_body) {
        build_body(f, group)->id = -1;
        return;
    }
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k]->mark) replace_operand(n, k, n->in[k]->mark);
    if (n != f->g->last) node_move_behind(n, f->g->last);
}

static void write_list(Fuse *f) {
    bool *is_done = arena_array(f->cx->scratch, bool, f->n_nodes + 1);
    marks_clear(f->g);
    for (int id = 0; id < f->n_nodes; id++) {
        const Group *group = f->group[id];
        if (!group || group->n == 1 || group->member[group->n - 1] == id) emit(f, id, is_done);
    }
    for (int id = f->n_nodes - 1; id >= 0; id--)
        if (f->group[id] && f->group[id]->n > 1) graph_remove(f->node[id]);
    for (int i = 0; i < f->g->n_syms; i++)
        if (f->g->sym[i]->extent && f->g->sym[i]->extent->mark)
            f->g->sym[i]->extent = f->g->sym[i]->extent->mark;
    marks_clear(f->g);
    for_each_node_reverse(f->g, n)          // scalars that only bodies read now
        if (n->op == OP_CONST && !n->out[0].n_uses) {
            bool is_extent = false;
            for (int i = 0; i < f->g->n_syms; i++) is_extent |= f->g->sym[i]->extent == &n->out[0];
            if (!is_extent) graph_remove(n);
        }
}

bool pass_fuse(Graph *g, PassCtx *cx) {
    Arena *a = cx->scratch;
    graph_number(g);
    Fuse f = {.g = g, .cx = cx, .n_nodes = g->n_nodes};
    GraphWork before = graph_work(g);
    f.node = arena_array(a, Node *, g->n_nodes + 1);
    f.group = arena_array(a, Group *, g->n_nodes + 1);
    f.stamp = arena_array(a, int, g->n_nodes + 1);
    f.stack = arena_array(a, int, g->n_nodes + 1);
    f.reach = arena_array(a, int, g->n_nodes + 1);
    for_each_node(g, n) f.node[n->id] = n;
    index_readers(&f);
    for_each_node(g, n) {
        Type space;
        if (!space_of(&f, n, &space)) continue;
        Group *group = arena_new(a, Group);
        *group = (Group){.member = arena_array(a, int, 1),
                         .n = 1,
                         .space = space,
                         .combines = is_combine(n),
                         .reduces = is_reduction(n) || is_combine(n),
                         .joins_columns = is_column_concat(n) || picks_columns(n)};
        if (group->combines) group->rows = n->in[0]->type;
        group->member[0] = n->id;
        f.group[n->id] = group;
    }
    join_along_edges(&f);
    join_siblings(&f);
    for (int i = 0; i < f.n_nodes; i++)
        if (f.group[i] && f.group[i]->member[0] == i) keep_epilogues(&f, f.group[i]);
    int n_bodies = 0, n_inside = 0;
    for (int i = 0; i < f.n_nodes; i++) {
        if (!f.group[i] || f.group[i]->n == 1) continue;
        n_inside++;
        n_bodies += f.group[i]->member[0] == i;
    }
    if (n_bodies) write_list(&f);
    TRACE(cx, "fuse: %d nodes in %d bodies\n", n_inside, n_bodies);
    won_work(g, cx, before);
    return n_bodies > 0;
}
