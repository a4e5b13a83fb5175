// Places of values, what is exchanged between two of them, and what a rank does of its own leaves alone.
#include "passes/tp.h"

Twins *twins_of(Tp *q, Value *v) {
    if (!v->mark) v->mark = arena_new(q->cx->scratch, Twins);
    return v->mark;
}

void spot_set(Tp *q, Value *v, Spot s) {
    if (s.kind != WHOLE_ON_EACH || v->mark) twins_of(q, v)->spot = s;
}

// The rows of all leaves of the group: where a matrix of an expert is cut, each rank has a part of every row.
typedef struct { Sym *all; Value *offsets; } Joined;

static Joined *joined_rows(Tp *q, Sym *own) {
    Joined *j = map_get(&q->joined, own);
    if (j) return j;
    j = arena_new(q->cx->scratch, Joined);
    const char *name = arena_printf(q->g->arena, "%s_all", own->name);
    j->all = graph_add_sym(q->g, name, SYM_RAGGED, own->bound * q->tp, own->groups, own->leaves * (int)q->tp);
    Builder b = builder_after(q->g, own->extent->node);
    j->offsets = make(&b, OP_JOIN_OFFSETS, INS(own->extent), .experts = own->groups, .sym = j->all, .over = over_tp);
    j->all->extent = j->offsets;
    map_put(&q->joined, own, j);
    map_put(&q->own_of, j->all, own);
    map_put(&q->own_of, j->offsets, own->extent);
    q->n_gathers++;
    return j;
}

// Offsets and symbols of rows that n has as attributes or reads: of all rows, or of own ones.
void name_rows(Tp *q, Node *n, bool all) {
    for (int i = 0; i < n->n_in; i++) {
        const Sym *s = NULL;
        for (int k = 0; k < q->g->n_syms && !s; k++)
            if (q->g->sym[k]->extent == n->in[i] && q->g->sym[k]->kind == SYM_RAGGED) s = q->g->sym[k];
        bool is_all = s && map_get(&q->own_of, s);
        if (s && all && !is_all) replace_operand(n, i, joined_rows(q, (Sym *)s)->offsets);
        if (s && !all && is_all) replace_operand(n, i, map_get(&q->own_of, n->in[i]));
    }
    for (int i = 0; i < n->attr.dims.n; i++) {
        Dim *d = &n->attr.dims.at[i];
        if (!d->sym || d->sym->kind != SYM_RAGGED) continue;
        Sym *own = map_get(&q->own_of, d->sym);
        if (all && !own) d->sym = joined_rows(q, d->sym)->all;
        else if (!all && own) d->sym = own;
    }
}

// Of rows: what is exchanged over tp instead.
static Value *rows_exchanged(Tp *q, Builder *b, Value *v, Spot from, Spot to) {
    Sym *s = type_ragged(&v->type);
    if (from.kind == OWN_LEAVES) {
        Joined *j = joined_rows(q, s);
        if (v->node->op == OP_ROW_GROUP) return make(b, OP_ROW_GROUP, INS(j->offsets), .sym = j->all);
        return make(b, OP_JOIN_ROWS, INS(v, s->extent, j->offsets), .sym = j->all, .over = over_tp);
    }
    Sym *own = map_get(&q->own_of, s);
    Op op = from.kind == PARTIAL ? OP_SUM_ROWS : OP_OWN_ROWS;
    return to.kind == OWN_LEAVES ? make(b, op, INS(v, own->extent, s->extent), .sym = own, .over = over_tp) : NULL;
}

static Value **twin(Twins *t, Spot s) {
    return s.kind == WHOLE_ON_EACH ? &t->at_whole : s.kind == OWN_LEAVES ? &t->at_own : &t->at_cut[s.axis];
}

// One step of the way; NULL: it takes two, by way of the whole.
static Value *exchanged(Tp *q, Builder *b, Value *v, Spot from, Spot to) {
    bool of_leaves = from.kind == OWN_LEAVES || to.kind == OWN_LEAVES;
    if (of_leaves && type_ragged(&v->type) && (from.kind != CUT && to.kind != CUT)) return rows_exchanged(q, b, v, from, to);
    int axis = from.kind == CUT ? from.axis : to.kind == CUT ? to.axis : 0;
    if (of_leaves && (from.kind == CUT || to.kind == CUT)) return NULL;
    if (from.kind == WHOLE_ON_EACH) return make(b, OP_SHARD, INS(v), .over = over_tp, .axis = axis);
    if (from.kind == PARTIAL && to.kind == OWN_LEAVES) return make(b, OP_TREE_REDUCE_SCATTER, INS(v), .over = over_tp);
    if (to.kind != WHOLE_ON_EACH) return NULL;
    if (from.kind == PARTIAL) return make(b, OP_TREE_ALL_REDUCE, INS(v), .over = over_tp);
    return make(b, OP_ALL_GATHER, INS(v), .over = over_tp, .axis = axis);
}

static Value *taken(Tp *q, Value *v, Spot to, Node *before) {
    Spot from = spot_of(v);
    if (same_spot(from, to)) return v;
    Value **there = twin(twins_of(q, v), to);
    if (*there) return *there;
    Builder b = builder_before(q->g, before);
    Value *y = exchanged(q, &b, v, from, to);
    if (!y) return taken(q, taken(q, v, whole, before), to, before);
    if (from.kind != WHOLE_ON_EACH) {
        *(from.kind == PARTIAL ? &q->n_sums : &q->n_gathers) += 1;
        q->bytes += (double)type_bytes(&v->type);
    }
    *there = y;
    spot_set(q, y, to);
    if (from.kind != PARTIAL) *twin(twins_of(q, y), from) = v;
    return y;
}

void want(Tp *q, Node *n, int i, Spot to) {
    Value *v = taken(q, n->in[i], to, n);
    if (v != n->in[i]) replace_operand(n, i, v);
}

// Results follow from operands again.
static void types_again(Tp *q, Node *n) {
    Type *types = arena_array(q->cx->scratch, Type, n->n_out + MAX_NAMED);
    if (op_info[n->op].shape(n, types, q->cx->diag))
        for (int i = 0; i < n->n_out; i++) n->out[i].type = types[i];
    else q->ok = false;
}

// So they are where s says, if they have leaves or s is not about leaves.
void shape_again(Tp *q, Node *n, Spot s) {
    types_again(q, n);
    for (int i = 0; i < n->n_out && q->ok; i++)
        spot_set(q, &n->out[i], s.kind == OWN_LEAVES && !are_leaves(q, &n->out[i].type) ? whole : s);
}

static void want_all_whole(Tp *q, Node *n) {
    bool rows = false;
    for (int i = 0; i < n->n_in; i++) {
        want(q, n, i, whole);
        rows |= q->own && type_ragged(&n->in[i]->type);
    }
    if (rows) shape_again(q, n, whole);
}

// ---- leaves ------------------------------------------------------------------------------------------------------

static void own_dims(const Tp *q, int n, Dim *dim) {
    for (int i = 0; i < n; i++)
        if (dim[i].sym == q->g->leaf) dim[i].sym = q->own;
}

static void own_attrs(const Tp *q, Node *n) {
    own_dims(q, n->attr.dims.n, n->attr.dims.at);
    if (n->attr.leaves > 1) n->attr.leaves /= q->tp;
    if (n->op != OP_ROUTE) return;
    n->attr.sym->bound /= q->tp;
    n->attr.sym->leaves /= (int)q->tp;
}

static void own_region(Tp *q, Graph *body) {
    for_each_node(body, n) {
        own_attrs(q, n);
        if (op_is(n->op, SOURCE))
            for (int i = 0; i < n->n_out; i++) own_dims(q, n->out[i].type.ndim, n->out[i].type.dim);
        else types_again(q, n);
    }
}

// As on one rank, but of fewer leaves.  What has none of its operands' leaves any more is a sum over them, which partition
// completes.
void place_own(Tp *q, Node *n) {
    name_rows(q, n, false);
    for (int i = 0; i < n->n_in; i++) want(q, n, i, are_leaves(q, &n->in[i]->type) ? own_leaves : whole);
    own_attrs(q, n);
    if (n->attr.body) own_region(q, n->attr.body);
    shape_again(q, n, own_leaves);
}

bool is_at_leaves(const Tp *q, const Value *v) {
    SpotKind kind = spot_of(v).kind;
    return are_leaves(q, &v->type) && (kind == OWN_LEAVES || kind == PARTIAL);
}

// Where there is no rule: sums are added where they are read, of own leaves if there are.
void settle(Tp *q, Node *n) {
    for (int i = 0; i < n->n_in && !op_is(n->op, EFFECT); i++)
        if (is_at_leaves(q, n->in[i])) {
            place_own(q, n);
            return;
        }
    want_all_whole(q, n);
}

// Rows of a route are those of a rank's own leaves, and so is what counts leaves.
bool is_by_leaves(const Tp *q, const Node *n) {
    if (!q->own) return false;
    if (n->op == OP_IOTA) return type_is_leafy(&n->out[0].type);
    bool rows = false, routes = n->op == OP_ROUTE || n->op == OP_GATE;
    for (int i = 0; i < n->n_in; i++) rows |= type_ragged(&n->in[i]->type) || (routes && type_is_leafy(&n->in[i]->type));
    for (int i = 0; i < n->n_out; i++) rows |= type_ragged(&n->out[i].type) != NULL;
    return rows;
}

// But where experts are cut, each rank has a part of all rows; and their gradients are sums over all.
bool is_of_all_rows(const Tp *q, const Node *n) {
    if (q->g->mesh.etp == 1 || n->op == OP_GATHER_ROWS || n->op == OP_SCATTER_ADD_ROWS) {
        bool table = n->op == OP_GATHER_ROWS && !are_leaves(q, &n->in[0]->type) && spot_of(n->in[0]).kind == CUT;
        return q->g->mesh.etp != 1 && table;
    }
    if (n->op == OP_GROUPED_DW || n->op == OP_GROUPED_SUM) return true;
    for (int i = 0; i < n->n_in; i++) {
        SpotKind kind = spot_of(n->in[i]).kind;
        if (kind == CUT || (type_ragged(&n->in[i]->type) && kind != OWN_LEAVES)) return true;
    }
    return false;
}
