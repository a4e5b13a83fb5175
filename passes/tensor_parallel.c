// Tensor parallelism: matrices are cut along axes that the model's text names (`split:`), over the ranks of a tp group.
//
//     %w1 = param : f32[H,D]                            %w1' = param {tp = 1} : f32[H/tp,D]
//     %h  = matmul %x, %w1 {tb = 1} : f32[L,S,H]        %h'  = matmul %x, %w1' {tb = 1} : f32[L,S,H/tp]
//     %w2 = param : f32[D,H]                       =>   %w2' = param {tp = 2} : f32[D,H/tp]
//     %y  = matmul %h, %w2 {tb = 1} : f32[L,S,D]        %y'  = matmul %h', %w2' {tb = 1} : f32[L,S,D]
//     %z  = add %x, %y                                  %y   = tree_all_reduce %y' {over = "tp"}
//                                                       %z   = add %x, %y
//
// One walk in list order over the whole step, so backward needs no rules of its own.  Each value is in one of these places:
//
//     WHOLE     on each rank, the same bits
//     OWN       of the leaves that this rank of the group has by itself (etp > 0): what is neither a cut matrix nor reads one
//     CUT       along an axis, a part on each
//     PARTIAL   each rank has a summand.  It is added at the first reader that isn't linear: sums of products are added
//               before they are exchanged, rows of experts after they were combined
//
//     PARTIAL -> WHOLE   tree_all_reduce       CUT, OWN -> WHOLE   all_gather     WHOLE -> CUT, OWN   shard, where nothing travels
//     PARTIAL -> OWN     tree_reduce_scatter   rows of a route: join_rows, sum_rows, own_rows
//
// An op without a rule has its operands whole.  Norms of tensors need no rule either: a sum over the axis that is cut is
// partial, one over a tensor that all hold is the same everywhere, so nothing is counted twice.
#include <string.h>

#include "passes/util.h"

static const char *const over_tp = "tp";

// ---- places ------------------------------------------------------------------------------------------------------

typedef enum { WHOLE_ON_EACH, OWN_LEAVES, CUT, PARTIAL } SpotKind;
typedef struct { SpotKind kind; int axis; } Spot;

static const Spot whole = {WHOLE_ON_EACH, 0}, own_leaves = {OWN_LEAVES, 0}, partial = {PARTIAL, 0};
static Spot cut(int axis) { return (Spot){CUT, axis}; }
static bool same_spot(Spot a, Spot b) { return a.kind == b.kind && (a.kind != CUT || a.axis == b.axis); }

// Where a value is, and as what it was taken elsewhere.  Hangs at its mark.
typedef struct {
    Spot   spot;
    Value *at_whole, *at_own, *at_cut[MAX_DIM], *shared;
} Twins;

typedef struct {
    Graph   *g;
    PassCtx *cx;
    int64_t  tp;
    PtrMap   params;           // by name
    PtrMap   joined;           // from symbols of own rows to Joined
    PtrMap   own_of;           // from offsets of all rows, and their symbols, to those of own rows
    PtrMap   moved;            // from values whose node was replaced to what stands for them
    Sym     *own;              // leaves of this rank alone; NULL: all ranks of the group have all rows
    Value   *tp_rank;          // the input of this name, made when somebody asks
    int      n_sums, n_gathers;
    double   bytes;
    bool     ok;
} Tp;

static Twins *twins_of(Tp *q, Value *v) {
    if (!v->mark) v->mark = arena_new(q->cx->scratch, Twins);
    return v->mark;
}

static Spot spot_of(const Value *v) { return v->mark ? ((Twins *)v->mark)->spot : whole; }
static void spot_set(Tp *q, Value *v, Spot s) {
    if (s.kind != WHOLE_ON_EACH || v->mark) twins_of(q, v)->spot = s;
}

static bool is_cut_at(const Value *v, int axis) { return same_spot(spot_of(v), cut(axis)); }

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
static void name_rows(Tp *q, Node *n, bool all) {
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

static bool are_leaves(const Tp *q, const Type *t) { return q->own && (type_is_leafy(t) || type_ragged(t)); }

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

static void want(Tp *q, Node *n, int i, Spot to) {
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
static void shape_again(Tp *q, Node *n, Spot s) {
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
static void place_own(Tp *q, Node *n) {
    name_rows(q, n, false);
    for (int i = 0; i < n->n_in; i++) want(q, n, i, are_leaves(q, &n->in[i]->type) ? own_leaves : whole);
    own_attrs(q, n);
    if (n->attr.body) own_region(q, n->attr.body);
    shape_again(q, n, own_leaves);
}

static bool is_at_leaves(const Tp *q, const Value *v) {
    SpotKind kind = spot_of(v).kind;
    return are_leaves(q, &v->type) && (kind == OWN_LEAVES || kind == PARTIAL);
}

// Where there is no rule: sums are added where they are read, of own leaves if there are.
static void settle(Tp *q, Node *n) {
    for (int i = 0; i < n->n_in && !op_is(n->op, EFFECT); i++)
        if (is_at_leaves(q, n->in[i])) {
            place_own(q, n);
            return;
        }
    want_all_whole(q, n);
}

// Rows of a route are those of a rank's own leaves, and so is what counts leaves.
static bool is_by_leaves(const Tp *q, const Node *n) {
    if (!q->own) return false;
    if (n->op == OP_IOTA) return type_is_leafy(&n->out[0].type);
    bool rows = false, routes = n->op == OP_ROUTE || n->op == OP_GATE;
    for (int i = 0; i < n->n_in; i++) rows |= type_ragged(&n->in[i]->type) || (routes && type_is_leafy(&n->in[i]->type));
    for (int i = 0; i < n->n_out; i++) rows |= type_ragged(&n->out[i].type) != NULL;
    return rows;
}

// But where experts are cut, each rank has a part of all rows; and their gradients are sums over all.
static bool is_of_all_rows(const Tp *q, const Node *n) {
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


// ---- tensors -----------------------------------------------------------------------------------------------------

// PARAM itself, grad/PARAM and the optimizer's states of it.
static const Node *param_of(const Tp *q, Name name) {
    const char *slash = strchr(name, '/');
    const Node *param = map_get(&q->params, slash ? intern(slash + 1) : name);
    return param ? param : map_get(&q->params, name);
}

static Spot tensor_spot(const Tp *q, Name name, const Dims *dims) {
    const Node *param = param_of(q, name);
    if (!param || param->attr.split < 0 || param->attr.split >= param->attr.dims.n || dims->n != param->attr.dims.n) return whole;
    for (int i = 0; i < dims->n; i++)
        if (!dim_eq(dims->at[i], param->attr.dims.at[i])) return whole;
    return cut((int)param->attr.split);
}

static void cut_tensor(Tp *q, Node *n, int axis) {
    n->attr.dims.at[axis].n /= q->tp;
    n->attr.tp = 1 + axis;
    n->out[0].type.dim[axis].n /= q->tp;
    spot_set(q, &n->out[0], cut(axis));
}

static void place_source(Tp *q, Node *n) {
    Spot s = tensor_spot(q, n->attr.name, &n->attr.dims);
    if (s.kind == CUT) cut_tensor(q, n, s.axis);
}

// ---- ops ---------------------------------------------------------------------------------------------------------

static bool all_partial(const Node *n) {
    for (int i = 0; i < n->n_in; i++)
        if (spot_of(n->in[i]).kind != PARTIAL) return false;
    return n->n_in > 0;
}

static bool is_additive(Op op) {
    return op == OP_ADD || op == OP_SUB || op == OP_NEG || op == OP_CAST || op == OP_COPY || op == OP_STOP_GRADIENT;
}

// The axis, counted from the right, along which most elements are cut; -1: none is.
static int cut_from_right(const Node *n) {
    int found = -1;
    int64_t most = 0;
    for (int i = 0; i < n->n_in; i++) {
        Spot s = spot_of(n->in[i]);
        int64_t elements = type_bound_elements(&n->in[i]->type);
        if (s.kind != CUT || elements <= most) continue;
        most = elements;
        found = n->in[i]->type.ndim - 1 - s.axis;
    }
    return found;
}

// Operands that have the axis are cut along it; those that are broadcast along it stay whole.
static void want_cut_from_right(Tp *q, Node *n, int right) {
    for (int i = 0; i < n->n_in; i++) {
        const Type *t = &n->in[i]->type;
        int axis = t->ndim - 1 - right;
        bool has = axis >= 0 && (is_cut_at(n->in[i], axis) || !dim_is_1(t->dim[axis]));
        want(q, n, i, has ? cut(axis) : whole);
    }
}

// The residual stream: what has been summed once is not summed again with what is added to it.
static bool any_has_own(Tp *q, const Node *n) {
    for (int i = 0; i < n->n_in; i++)
        if (are_leaves(q, &n->in[i]->type) && twins_of(q, n->in[i])->at_own) return true;
    return false;
}

static void place_elementwise(Tp *q, Node *n) {
    int right = cut_from_right(n), ndim = n->out[0].type.ndim;
    if (right < 0 && is_additive(n->op) && all_partial(n) && !any_has_own(q, n)) {
        shape_again(q, n, partial);
    } else if (right < 0) {
        settle(q, n);
    } else {
        want_cut_from_right(q, n, right);
        shape_again(q, n, cut(ndim - 1 - right));
    }
}

// a [.., M, K] by b [.., K, N]; ta, tb: read with the last two axes exchanged.
static void place_matmul(Tp *q, Node *n) {
    int na = n->in[0]->type.ndim, nb = n->in[1]->type.ndim, ny = n->out[0].type.ndim;
    int ak = n->attr.ta ? na - 2 : na - 1, am = n->attr.ta ? na - 1 : na - 2;
    int bk = n->attr.tb ? nb - 1 : nb - 2, bn = n->attr.tb ? nb - 2 : nb - 1;
    Spot a = spot_of(n->in[0]), b = spot_of(n->in[1]);
    bool batched = nb > 2;
    if (b.kind == CUT && b.axis == bn) {
        want(q, n, 0, whole);
        shape_again(q, n, cut(ny - 1));
    } else if ((b.kind == CUT && b.axis == bk) || (a.kind == CUT && a.axis == ak)) {
        want(q, n, 0, cut(ak));
        want(q, n, 1, cut(bk));
        shape_again(q, n, partial);
    } else if (batched && (b.kind == CUT || (a.kind == CUT && a.axis < na - 2))) {
        int batch = b.kind == CUT ? b.axis : a.axis;
        want(q, n, 0, cut(batch));
        want(q, n, 1, cut(batch));
        shape_again(q, n, cut(batch));
    } else if (a.kind == CUT) {
        want(q, n, 1, whole);
        shape_again(q, n, cut(a.axis == am ? ny - 2 : a.axis));
    } else {
        settle(q, n);
    }
}

// a [rows, M] and b [rows, N] -> [M, N].
static void place_matmul_dw(Tp *q, Node *n) {
    Spot a = spot_of(n->in[0]), b = spot_of(n->in[1]);
    int na = n->in[0]->type.ndim, nb = n->in[1]->type.ndim;
    if (a.kind == CUT && a.axis == na - 1) {
        want(q, n, 1, whole);
        shape_again(q, n, cut(0));
    } else if (b.kind == CUT && b.axis == nb - 1) {
        want(q, n, 0, whole);
        shape_again(q, n, cut(1));
    } else if ((a.kind == CUT || b.kind == CUT) && na == nb) {
        int rows = a.kind == CUT ? a.axis : b.axis;      // each rank has some
        want(q, n, 0, cut(rows));
        want(q, n, 1, cut(rows));
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// x [R, K] by w [E, K, N]; tb: [E, N, K].
static void place_grouped_matmul(Tp *q, Node *n) {
    int wk = n->attr.tb ? 2 : 1, wn = n->attr.tb ? 1 : 2;
    if (is_cut_at(n->in[1], wn)) {
        want(q, n, 0, whole);
        shape_again(q, n, cut(1));
    } else if (is_cut_at(n->in[1], wk) || is_cut_at(n->in[0], 1)) {
        want(q, n, 0, cut(1));
        want(q, n, 1, cut(wk));
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// a [R, M], b [R, N] -> [E, M, N].
static void place_grouped_dw(Tp *q, Node *n) {
    if (is_cut_at(n->in[0], 1)) {
        want(q, n, 1, whole);
        shape_again(q, n, cut(1));
    } else if (is_cut_at(n->in[1], 1)) {
        want(q, n, 0, whole);
        shape_again(q, n, cut(2));
    } else {
        settle(q, n);
    }
}

// What has rows or columns of its own along the axis that is cut, and one result: along any other axis nothing changes.
static void place_along_others(Tp *q, Node *n, int works_along) {
    int axis = -1;
    for (int i = 0; i < n->n_in; i++)
        if (spot_of(n->in[i]).kind == CUT) axis = spot_of(n->in[i]).axis;
    if (axis < 0 || axis == works_along) {
        settle(q, n);
        return;
    }
    for (int i = 0; i < n->n_in; i++) want(q, n, i, cut(axis));
    shape_again(q, n, cut(axis));
}

static void place_sum(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    if (s.kind == OWN_LEAVES) {
        place_own(q, n);
        return;
    }
    for (int i = 0; i < n->attr.axes.n && s.kind == CUT; i++)
        if (n->attr.axes.at[i] == s.axis) s = partial;
    shape_again(q, n, s);
}

typedef struct { int64_t n; int syms; } Product;

static void times(Product *p, Dim d) {
    p->n *= d.n;
    p->syms += d.sym ? 1 + d.sym->id : 0;
}

// Where the axis of a part is in another shape of the whole; -1: parts of it are no parts of any axis.
static int axis_after_reshape(const Type *part, int axis, const Dims *to, int64_t tp) {
    Product before = {1, 0}, there = {1, 0};
    int64_t n = part->dim[axis].n * tp;
    for (int i = 0; i < axis; i++) times(&before, part->dim[i]);
    for (int i = 0; i < to->n; times(&there, to->at[i++])) {
        int64_t m = to->at[i].n;
        if (there.n != before.n || there.syms != before.syms || (m == 1 && !to->at[i].sym)) continue;
        return !to->at[i].sym && m % tp == 0 && (n % m == 0 || m % n == 0) ? i : -1;
    }
    return -1;
}

static void place_reshape(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    if (s.kind == CUT) {
        int axis = axis_after_reshape(&n->in[0]->type, s.axis, &n->attr.dims, q->tp);
        if (axis < 0) {
            settle(q, n);
            return;
        }
        n->attr.dims.at[axis].n /= q->tp;
        s.axis = axis;
    }
    if (s.kind == OWN_LEAVES) place_own(q, n);
    else shape_again(q, n, s);
}

static void place_broadcast(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    if (s.kind != CUT) {
        settle(q, n);
        return;
    }
    s.axis += n->attr.dims.n - n->in[0]->type.ndim;
    n->attr.dims.at[s.axis].n /= q->tp;
    shape_again(q, n, s);
}

static void place_permute(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    if (s.kind == OWN_LEAVES) {
        place_own(q, n);
        return;
    }
    for (int i = 0; i < n->attr.perm.n && s.kind == CUT; i++)
        if (n->attr.perm.at[i] == s.axis) {
            s.axis = i;
            break;
        }
    shape_again(q, n, s);
}

// ---- the vocabulary ----------------------------------------------------------------------------------------------

static Value *tp_rank(Tp *q) {
    if (q->tp_rank) return q->tp_rank;
    Builder first = builder_before(q->g, q->g->first);
    return q->tp_rank = make(&first, OP_INPUT, INS(NULL), .name = intern("tp_rank"), .dtype = I32);
}

// 0 <= x < n.
static Value *is_below(Builder *b, Value *x, int64_t n) {
    Value *zero = build_const(b, 0, I32), *end = build_const(b, (double)n, I32);
    Value *least = build_binary(b, OP_LE, zero, x), *most = build_binary(b, OP_LT, x, end);
    return build_binary(b, OP_AND, least, most);
}

// Numbers of rows of the whole table as numbers of this rank's n; which of them are its own.
typedef struct { Value *own, *number; } LocalIds;

static LocalIds local_ids(Tp *q, Builder *b, Value *ids, int64_t n) {
    Value *rank = tp_rank(q), *each = build_const(b, (double)n, I32);
    Value *number = build_binary(b, OP_SUB, ids, build_binary(b, OP_MUL, rank, each));
    return (LocalIds){is_below(b, number, n), number};
}

static Value *choose(Builder *b, Value *c, Value *x, Value *y) { return make(b, OP_SELECT, INS(c, x, y)); }
static Value *own_or_none(Builder *b, LocalIds l) { return choose(b, l.own, l.number, build_const(b, -1, I32)); }

static void place_gather_rows(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    const Type *x = &n->in[0]->type;
    if (is_at_leaves(q, n->in[0]) || (is_at_leaves(q, n->in[1]) && (s.kind == WHOLE_ON_EACH || are_leaves(q, x)))) {
        place_own(q, n);
        return;
    }
    want(q, n, 1, whole);
    if (s.kind == CUT && s.axis == x->ndim - 1) {
        shape_again(q, n, cut(n->out[0].type.ndim - 1));
    } else if (s.kind == CUT && s.axis == 0 && x->ndim == 2) {
        Builder b = builder_before(q->g, n);
        replace_operand(n, 1, own_or_none(&b, local_ids(q, &b, n->in[1], x->dim[0].n)));     // of others' rows: zeros
        shape_again(q, n, partial);
    } else if (s.kind == PARTIAL && type_bound_elements(&n->out[0].type) <= type_bound_elements(x)) {
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// The parameter whose gradient v is, or NULL.
static const Node *gradient_of(const Tp *q, const Node *n) {
    for (const Node *m = n->next; m; m = m->next)
        if (m->op == OP_ACCUMULATE && m->in[0] == &n->out[0]) return map_get(&q->params, m->attr.name);
    return NULL;
}

static void place_scatter_add_rows(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    int last = n->attr.dims.n - 1;
    for (int i = 1; i < n->n_in; i++) want(q, n, i, whole);
    if (s.kind == CUT && s.axis == n->in[0]->type.ndim - 1 && n->attr.dims.at[last].n == type_cols(&n->in[0]->type) * q->tp) {
        n->attr.dims.at[last].n /= q->tp;
        shape_again(q, n, cut(last));
        return;
    }
    const Node *table = n->attr.dims.n == 2 && n->n_in == 2 ? gradient_of(q, n) : NULL;
    if (table && same_spot(tensor_spot(q, table->attr.name, &n->attr.dims), cut(0))) {
        want(q, n, 0, whole);
        Builder b = builder_before(q->g, n);
        n->attr.dims.at[0].n /= q->tp;
        replace_operand(n, 1, own_or_none(&b, local_ids(q, &b, n->in[1], n->attr.dims.at[0].n)));
        shape_again(q, n, cut(0));
    } else if (s.kind == PARTIAL) {
        shape_again(q, n, partial);
    } else {
        settle(q, n);
    }
}

// As the gradient of a part of the table reads them: one's own, n for those of other ranks, -1 for none.
static Value *labels_of_part(Tp *q, Builder *b, Value *label, int64_t n) {
    LocalIds l = local_ids(q, b, label, n);
    Value *elsewhere = build_const(b, (double)n, I32), *none = build_const(b, -1, I32);
    return choose(b, l.own, l.number, choose(b, is_below(b, label, n * q->tp), elsewhere, none));
}

// The losses of rows: log of the sum of exponentials over all parts of the vocabulary, less the logit of the label, which
// one rank has.
typedef struct { Value *x, *w, *label, *dnll; int64_t V; } HeadRows;
typedef struct { Value *nll, *lse; } HeadLoss;

static HeadLoss head_loss(Tp *q, Builder *b, const HeadRows *h, const Type *number) {
    LocalIds l = local_ids(q, b, h->label, h->V);
    Node *n = build(b, OP_HEAD_LOSS, INS(h->x, h->w, own_or_none(b, l)));
    Dims dims = dims_of(number);
    Value *own = build_reshape(b, l.own, &dims), *zero = build_const(b, 0, F32);
    Value *logit = choose(b, own, build_binary(b, OP_SUB, &n->out[1], &n->out[0]), zero);
    Value *lse = make(b, OP_ALL_GATHER, INS(&n->out[1]), .over = over_tp, .axis = number->ndim - 1);
    lse = build_unary(b, OP_LOGSUMEXP, lse);
    logit = make(b, OP_TREE_ALL_REDUCE, INS(logit), .over = over_tp);
    q->n_sums++;
    q->n_gathers++;
    Value *known = build_reshape(b, is_below(b, h->label, h->V * q->tp), &dims), *nll = build_binary(b, OP_SUB, lse, logit);
    return (HeadLoss){choose(b, known, nll, zero), lse};
}

static void head_grad(Tp *q, Builder *b, const HeadRows *h, Value *lse, const Attrs *attr, Node *old, int dx) {
    Value *label = labels_of_part(q, b, h->label, h->V);
    Node *n = build(b, OP_HEAD_LOSS_GRAD, INS(h->x, h->w, label, lse, h->dnll), .over = over_tp, .narrow = attr->narrow,
                    .leaves = attr->leaves);
    spot_set(q, &n->out[0], partial);
    spot_set(q, &n->out[1], cut(0));
    map_put(&q->moved, &old->out[dx], &n->out[0]);
    map_put(&q->moved, &old->out[dx + 1], &n->out[1]);
}

// Replaced by nodes in front of it; readers are sent on as the walk meets them.
static void place_head(Tp *q, Node *n) {
    if (!is_cut_at(n->in[1], 0)) {
        settle(q, n);
        return;
    }
    for (int i = 0; i < n->n_in; i++)
        if (i != 1) want(q, n, i, whole);
    Builder b = builder_before(q->g, n);
    HeadRows h = {n->in[0], n->in[1], n->in[2], n->in[n->n_in - 1], n->in[1]->type.dim[0].n};
    if (n->op == OP_HEAD_LOSS_GRAD) {
        head_grad(q, &b, &h, n->in[3], &n->attr, n, 0);
    } else {
        HeadLoss loss = head_loss(q, &b, &h, &n->out[0].type);
        map_put(&q->moved, &n->out[0], loss.nll);
        if (n->op == OP_HEAD_LOSS) map_put(&q->moved, &n->out[1], loss.lse);
        else head_grad(q, &b, &h, loss.lse, &n->attr, n, 1);
    }
}

// ---- attention ---------------------------------------------------------------------------------------------------

enum { HAS_SINKS = 1, HAS_BIAS = 2 };

// Keys and values: cut as queries are; whole where all ranks have the same single head; shared where a rank takes the one
// that its queries read.
typedef enum { KV_CUT, KV_WHOLE, KV_SHARED } KvKind;

static KvKind kv_kind(const Tp *q, const Value *k) {
    int heads = k->type.ndim - 2;
    if (is_cut_at(k, heads) || k->type.dim[heads].n % q->tp == 0) return KV_CUT;
    return k->type.dim[heads].n == 1 ? KV_WHOLE : KV_SHARED;
}

static void want_head(Tp *q, Node *n, int i, KvKind kind) {
    int heads = n->in[i]->type.ndim - 2;
    want(q, n, i, kind == KV_CUT ? cut(heads) : whole);
    if (kind != KV_SHARED) return;
    Twins *t = twins_of(q, n->in[i]);
    if (!t->shared) {
        Builder b = builder_before(q->g, n);
        t->shared = make(&b, OP_SHARD, INS(n->in[i]), .over = over_tp, .axis = heads, .parts = n->in[i]->type.dim[heads].n);
    }
    replace_operand(n, i, t->shared);
}

// Operands of attention, or its gradient, by heads.  false: all are whole.
static bool want_heads(Tp *q, Node *n, KvKind *kind) {
    int heads = n->in[0]->type.ndim - 2, i = 3;
    *kind = KV_CUT;
    if (!is_cut_at(n->in[0], heads)) {
        settle(q, n);
        return false;
    }
    *kind = kv_kind(q, n->in[1]);
    want_head(q, n, 1, *kind);
    want_head(q, n, 2, *kind);
    if (n->attr.has & HAS_SINKS) want(q, n, i++, cut(0));
    if (n->attr.has & HAS_BIAS) {
        int axis = n->in[i]->type.ndim - 3;
        want(q, n, i, is_cut_at(n->in[i], axis) || !dim_is_1(n->in[i]->type.dim[axis]) ? cut(axis) : whole);
        i++;
    }
    for (; n->op == OP_ATTENTION && i < n->n_in; i++) want(q, n, i, whole);
    if (n->op == OP_ATTENTION) return true;
    int after = n->n_in - 3;
    for (; i < after; i++) want(q, n, i, whole);
    want(q, n, after, cut(heads));
    want(q, n, after + 1, cut(heads));                   // lse [.., S, H]
    want(q, n, after + 2, cut(heads));
    return true;
}

static void place_attention(Tp *q, Node *n) {
    KvKind kind;
    if (!want_heads(q, n, &kind)) return;
    shape_again(q, n, cut(n->in[0]->type.ndim - 2));
}

// Gradients of the heads that each rank took: those of one head are added.
static Value *of_shared_heads(Tp *q, Node *n, Value *dk, int64_t n_heads) {
    Builder b = builder_after(q->g, n);
    int axis = dk->type.ndim - 2;
    Value *all = make(&b, OP_ALL_GATHER, INS(dk), .over = over_tp, .axis = axis);
    Dims dims = dims_of(&all->type), each = dims;
    each.n++;
    each.at[axis + 2] = each.at[axis + 1];
    each.at[axis] = dim_n(n_heads);
    each.at[axis + 1] = dim_n(q->tp / n_heads);
    dims.at[axis] = dim_n(n_heads);
    q->n_gathers++;
    return build_reshape(&b, build_sum(&b, build_reshape(&b, all, &each), &(Ints){1, {axis + 1}}), &dims);
}

static void place_attention_grad(Tp *q, Node *n) {
    KvKind kind;
    int64_t n_heads[2] = {n->out[1].type.dim[n->out[1].type.ndim - 2].n, n->out[2].type.dim[n->out[2].type.ndim - 2].n};
    int heads = n->in[0]->type.ndim - 2, i = 3;
    if (!want_heads(q, n, &kind)) return;
    shape_again(q, n, cut(heads));
    for (int k = 1; k <= 2; k++) {
        if (kind == KV_WHOLE) spot_set(q, &n->out[k], partial);
        if (kind == KV_SHARED) map_put(&q->moved, &n->out[k], of_shared_heads(q, n, &n->out[k], n_heads[k - 1]));
    }
    if (n->attr.has & HAS_SINKS) spot_set(q, &n->out[i++], cut(heads));            // [.., S, H]
    if (n->attr.has & HAS_BIAS) spot_set(q, &n->out[i], cut(n->out[i].type.ndim - 3));               // [.., H, S, C]
}

// The pool has the columns of what is appended.
static void place_cache(Tp *q, Node *n) {
    Spot s = spot_of(n->in[1]);
    Node *pool = n->in[0]->node;
    if (s.kind == CUT && s.axis > 1 && pool->op == OP_STATE && pool->out[0].n_uses == 1) {
        cut_tensor(q, pool, s.axis - (n->in[1]->type.ndim - pool->out[0].type.ndim));
        shape_again(q, n, s);
    } else {
        settle(q, n);
    }
}

// ---- the walk ----------------------------------------------------------------------------------------------------

static void place_effect(Tp *q, Node *n) {
    Spot s = whole;
    if (n->op == OP_UPDATE || n->op == OP_ACCUMULATE) {
        const Node *param = param_of(q, n->attr.name);
        if (param) s = tensor_spot(q, n->attr.name, &param->attr.dims);
    }
    for (int i = 0; i < n->n_in; i++) want(q, n, i, s);
    if (s.kind == CUT && n->op == OP_ACCUMULATE) n->attr.tp = 1 + s.axis;
}

static bool any_elsewhere(const Node *n) {
    for (int i = 0; i < n->n_in; i++)
        if (spot_of(n->in[i]).kind != WHOLE_ON_EACH) return true;
    return false;
}

static void want_all_rows(Tp *q, Node *n) {
    name_rows(q, n, true);
    for (int i = 0; i < n->n_in && (n->op == OP_GROUPED_DW || n->op == OP_GROUPED_SUM); i++)
        if (type_ragged(&n->in[i]->type) && spot_of(n->in[i]).kind == OWN_LEAVES) want(q, n, i, whole);
}

static void place_node(Tp *q, Node *n) {
    if (n->op == OP_PARAM || n->op == OP_STATE) {
        place_source(q, n);
        return;
    }
    if (n->op == OP_UPDATE || n->op == OP_ACCUMULATE) {
        place_effect(q, n);
        return;
    }
    if (is_by_leaves(q, n) && !is_of_all_rows(q, n)) {
        place_own(q, n);
        return;
    }
    if (is_by_leaves(q, n)) want_all_rows(q, n);
    if (!any_elsewhere(n) && n->op != OP_SCATTER_ADD_ROWS) return;
    switch (n->op) {
    case OP_MATMUL: place_matmul(q, n); return;
    case OP_MATMUL_DW: place_matmul_dw(q, n); return;
    case OP_GROUPED_MATMUL: place_grouped_matmul(q, n); return;
    case OP_GROUPED_DW: place_grouped_dw(q, n); return;
    case OP_GROUPED_SUM: case OP_SUM: place_sum(q, n); return;
    case OP_ATTENTION: place_attention(q, n); return;
    case OP_ATTENTION_GRAD: place_attention_grad(q, n); return;
    case OP_HEAD_LOSS: case OP_HEAD_LOSS_GRAD: case OP_HEAD_LOSS_AND_GRAD: place_head(q, n); return;
    case OP_GATHER_ROWS: place_gather_rows(q, n); return;
    case OP_SCATTER_ADD_ROWS: place_scatter_add_rows(q, n); return;
    case OP_RESHAPE: place_reshape(q, n); return;
    case OP_BROADCAST: place_broadcast(q, n); return;
    case OP_PERMUTE: place_permute(q, n); return;
    case OP_CACHE: place_cache(q, n); return;
    case OP_SLICE: case OP_UNSLICE: case OP_CONCAT: case OP_CUMSUM: case OP_REDUCE_MAX:
        place_along_others(q, n, (int)n->attr.axis);
        return;
    case OP_SOFTMAX: case OP_LOGSUMEXP: place_along_others(q, n, n->in[0]->type.ndim - 1); return;
    case OP_COPY: place_elementwise(q, n); return;
    default: break;
    }
    if (op_is(n->op, ELEMENTWISE)) place_elementwise(q, n);
    else settle(q, n);
}

// A sum that leaves parts uses its operand up.
static void spare_operands(Graph *g) {
    for_each_node(g, n) {
        if (n->op != OP_TREE_REDUCE_SCATTER || value_is_read_once(n->in[0])) continue;
        Builder b = builder_before(g, n);
        replace_operand(n, 0, build_unary(&b, OP_COPY, n->in[0]));
    }
}

// What partition will say of places: P each a summand, L each its own.
static void note_places(Tp *q) {
    Name summand = intern("tp:P"), own = intern("tp:L");
    for_each_node(q->g, n) {
        bool some = n->op == OP_INPUT && q->tp_rank && &n->out[0] == q->tp_rank;
        for (int i = 0; i < n->n_in && !op_is(n->op, COMM); i++) some |= n->in[i]->place != NULL;
        for (int i = 0; i < n->n_out; i++) {
            Spot s = spot_of(&n->out[i]);
            Name cut_at = s.kind == CUT ? intern(arena_printf(q->cx->scratch, "tp:S%d", s.axis)) : NULL;
            n->out[i].place = cut_at ? cut_at : s.kind == PARTIAL ? summand : s.kind == WHOLE_ON_EACH && some ? own : NULL;
        }
    }
}

static bool is_unread(const Node *n) {
    for (int i = 0; i < n->n_out; i++)
        if (n->out[i].n_uses) return false;
    return true;
}

bool pass_tensor_parallel(Graph *g, PassCtx *cx) {
    if (g->mesh.tp <= 1) {
        TRACE(cx, "tensor-parallel: no matrix is cut\n");
        return false;
    }
    Arena *a = cx->scratch;
    const PtrMap map = {.arena = a};
    Tp q = {.g = g, .cx = cx, .tp = g->mesh.tp, .params = map, .moved = map, .joined = map, .own_of = map, .ok = true};
    for_each_node(g, n)
        if (n->op == OP_PARAM) {
            Node *as_it_was = arena_new(a, Node);
            *as_it_was = *n;
            map_put(&q.params, n->attr.name, as_it_was);
        }
    if (g->leaf && g->mesh.etp)
        q.own = graph_add_sym(g, arena_printf(g->arena, "%s_own", g->leaf->name), SYM_LEAF, g->leaf->bound / q.tp, 0, 0);
    marks_clear(g);
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in && q.moved.n; i++) {
            Value *to = map_get(&q.moved, n->in[i]);
            if (to) replace_operand(n, i, to);
        }
        place_node(&q, n);
        if (!q.ok) return true;
    }
    for_each_node(g, n)
        if (map_get(&q.moved, &n->out[0]) && is_unread(n)) graph_remove(n);
    spare_operands(g);
    note_places(&q);
    marks_clear(g);
    WON(cx, "%d sums and %d gathers over tp, %.1f MB", q.n_sums, q.n_gathers, q.bytes / 1e6);
    return true;
}
