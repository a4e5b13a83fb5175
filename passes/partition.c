// Each rank's program.  The graph comes with the leaves of one rank; what partition adds is what ranks owe each other:
//
//     sums over leaves      a rank has those of its own            tree_all_reduce over the data ranks
//     tensors of experts    a rank holds some, whole               rows travel to them and back
//     replicas of experts   a rank has the rows of some lanes      sum_replicas between those of an expert
//     optimizer states      (zero) a rank holds a part of each     parts of the gradient, parts of the new weights
//
//     %r = gather_rows %x, %i : f32[R,D]               %r  = gather_rows %x, %i : f32[R,D]
//     %y = grouped_matmul %r, %w, %off          =>     %r' = exchange_rows %r, %off, %off' : f32[R_far,D]
//     %z = scatter_add_rows %y, %i                     %y' = grouped_matmul %r', %w', %off' : f32[R_far,H]
//                                                      %y  = return_rows %y', %off, %off' : f32[R,H]
//                                                      %z  = scatter_add_rows %y, %i
//
// One walk in list order.  Values have places (placement.h), ops say where they want their operands, and a value that is
// elsewhere is taken there once.  It runs on the whole step, so backward needs no rules of its own.
//
// The same bits on every layout: leaves are dealt in order, so one's own leaves are a subtree of the leaf tree and the
// ranks' sums meet at its upper nodes; a sum over a tensor's parts is cut where it still is one per row, and the rows are
// gathered; a row's result never depends on where it is computed, and at its expert rows are sorted by (expert, leaf) as at
// home.
//
// The group of every exchange is written in the graph, no rank number is: one text for all ranks.  Behind each type stands
// where the value is (ir/README.md).
#include <string.h>

#include "passes/placement.h"

static const Place at_home = {HOME, RT_GROUP_DATA, NULL, false}, at_experts = {AT_EXPERTS, RT_GROUP_EXP, NULL, false};

typedef struct {
    Placement p;
    PtrMap params;             // PARAM nodes by name
    PtrMap sums;               // from what is a summand on each rank to the groups it is to be summed over
    Value *data_rank, *own_rank;       // whose leaves these are: made when somebody draws
    bool   ok;
} Partition;

static void refuse(Partition *q, const Node *n, const char *what) {
    diag_error(q->p.cx->diag, n->at, "%s %s: this can't be computed on several ranks", op_info[n->op].name, what);
    q->ok = false;
}

// ---- tensors -----------------------------------------------------------------------------------------------------

// The slot table of a tensor of experts: all of a layer share one, so that what an expert has lies on one rank.
static Name slots_of(const Node *param) {
    if (param->attr.slots) return param->attr.slots;
    const char *dot = strrchr(param->attr.name, '.');
    return dot ? intern_n(param->attr.name, (size_t)(dot - param->attr.name)) : intern("experts");
}

static bool same_dims(const Dims *a, const Dims *b) {
    if (a->n != b->n) return false;
    for (int i = 0; i < a->n; i++)
        if (!dim_eq(a->at[i], b->at[i])) return false;
    return true;
}

// Experts are never shared out further: several ranks hold the same, and each a part of the rows of each.
static bool can_be_nested(const Partition *q, const Dims *whole) {
    int64_t parts = group_size(&q->p, inner_group(&q->p));
    return parts > 1 && whole->at[1].n % parts == 0;
}

// Where the tensor of this name and shape lies: PARAM itself; grad/PARAM and the optimizer's states of it.
static Place tensor_place(const Partition *q, Name name, const Dims *whole) {
    const char *slash = strchr(name, '/');
    const Node *param = map_get(&q->params, slash ? intern(slash + 1) : name);
    if (!param) param = map_get(&q->params, name);
    if (!param || !same_dims(whole, &param->attr.dims)) return at_home;
    const RtMesh *m = &q->p.g->mesh;
    bool is_state = slash && strncmp(name, "grad/", 5), is_gradient = slash && !is_state;
    bool cut = (is_state && m->zero >= 1) || (is_gradient && m->zero >= 2);
    bool nested = cut && param_is_of_experts(param) && can_be_nested(q, whole);
    if (param_is_of_experts(param) && rt_expert_ranks(*m) > 1) return (Place){PART, RT_GROUP_EXP, slots_of(param), nested};
    int64_t parts = group_size(&q->p, RT_GROUP_DATA);
    if (cut && parts > 1 && whole->n > 1 && whole->at[0].n % parts == 0) return (Place){PART, RT_GROUP_DATA, NULL, false};
    return nested ? (Place){PART, RT_GROUP_EXP, NULL, true} : at_home;
}

static void cut_source(Partition *q, Node *n) {
    Place place = tensor_place(q, n->attr.name, &n->attr.dims);
    if (place.kind != PART) return;
    if (place.nested) {
        n->attr.within = intern(exchange_group_name[inner_group(&q->p)]);
        n->out[0].type.dim[1].n = n->attr.dims.at[1].n /= group_size(&q->p, inner_group(&q->p));
        place_set(&q->p, &n->out[0], place);
        if (outer_place(&q->p, place).kind == HOME) return;
    }
    int64_t parts = group_size(&q->p, place.group);
    Dim *first = &n->attr.dims.at[0];
    int more = place.slots ? q->p.g->mesh.replicas : 0;
    if ((first->n + more) % parts || more > first->n) {
        bool fold = place.slots && q->p.g->mesh.etp == 1 && q->p.g->mesh.tp > 1;
        const char *and = more ? arena_printf(q->p.cx->scratch, " and %d replicas (parallel.replicas)", more) : "";
        diag_error(q->p.cx->diag, n->at, "%s has %lld experts%s, which %lld ranks (parallel.ep%s) can't share evenly%s",
                   n->attr.name, (long long)first->n, and, (long long)parts, fold ? " times parallel.tp" : "",
                   more > first->n ? "; replicas are at most as many as experts" : "");
        q->ok = false;
        return;
    }
    first->n = part_size(&q->p, place, first->n);
    n->attr.over = intern(exchange_group_name[place.group]);
    n->attr.slots = place.slots;
    n->out[0].type.dim[0] = *first;
    place_set(&q->p, &n->out[0], place);
}

// ---- operands ----------------------------------------------------------------------------------------------------

// Parts are made of parts: what they were cut from may have no reader left.
static void remove_unread(Node *n) {
    if (!op_is(n->op, ELEMENTWISE) || n->out[0].n_uses) return;
    Value *in[MAX_NAMED];
    int n_in = n->n_in < MAX_NAMED ? n->n_in : MAX_NAMED;
    for (int i = 0; i < n_in; i++) {
        in[i] = n->in[i];
        for (int k = 0; k < i; k++)                  // a square: once
            if (in[k] == in[i]) in[i] = NULL;
    }
    graph_remove(n);
    for (int i = 0; i < n_in; i++)
        if (in[i] && !in[i]->n_uses) remove_unread(in[i]->node);
}

static void want(Partition *q, Node *n, int i, Place place) {
    Value *old = n->in[i], *v = placed(&q->p, old, place, n);
    if (v == old) return;
    replace_operand(n, i, v);
    remove_unread(old->node);
}

static void want_all_home(Partition *q, Node *n) {
    for (int i = 0; i < n->n_in; i++) want(q, n, i, at_home);
}

// Results follow from operands again.
static void shape_again(Partition *q, Node *n, Place place) {
    Type types[MAX_NAMED];
    if (!op_info[n->op].shape(n, types, q->p.cx->diag)) {
        q->ok = false;
        return;
    }
    for (int i = 0; i < n->n_out; i++) {
        n->out[i].type = types[i];
        place_set(&q->p, &n->out[i], place);
    }
}

static FarRows *rows_of(Partition *q, const Value *v) {
    Sym *s = type_ragged(&v->type);
    return s ? rows_known(&q->p, s) : NULL;
}

// Everything that has rows is at the experts; offsets are those there.
static void want_at_experts(Partition *q, Node *n) {
    FarRows *r = NULL;
    for (int i = 0; i < n->n_in; i++) {
        if (!rows_of(q, n->in[i])) continue;
        r = rows_of(q, n->in[i]);
        want(q, n, i, at_experts);
    }
    for (int i = 0; i < n->n_in; i++)
        if (r && n->in[i] == r->near_offsets) replace_operand(n, i, r->far_offsets);
    for (int i = 0; r && i < n->attr.dims.n; i++)
        if (n->attr.dims.at[i].sym == r->near) n->attr.dims.at[i].sym = r->far;
}

static bool any_at_experts(const Partition *q, const Node *n) {
    for (int i = 0; i < n->n_in; i++)
        if (place_of(&q->p, n->in[i]).kind == AT_EXPERTS) return true;
    return false;
}

// ---- ops ---------------------------------------------------------------------------------------------------------

// x by w: rows go where the matrices are.
static void place_grouped_matmul(Partition *q, Node *n) {
    Place w = place_of(&q->p, n->in[1]);
    if (w.kind != PART || !rows_far(&q->p, type_ragged(&n->in[0]->type), w.slots)) {
        want_all_home(q, n);
        return;
    }
    want_at_experts(q, n);
    want(q, n, 1, (Place){PART, RT_GROUP_EXP, rows_of(q, n->in[0])->slots, false});
    shape_again(q, n, at_experts);
}

// Gradients of tensors of experts: summed where they lie.
static void place_grouped_sum(Partition *q, Node *n) {
    Sym *rows = type_ragged(&n->in[0]->type);
    FarRows *r = rows ? rows_known(&q->p, rows) : NULL;
    if (!r) {
        want_all_home(q, n);
        return;
    }
    want_at_experts(q, n);
    n->attr.leaves = r->far->leaves;
    shape_again(q, n, (Place){PART, RT_GROUP_EXP, r->slots, false});
}

static void place_gather_rows(Partition *q, Node *n) {
    Place x = place_of(&q->p, n->in[0]);
    FarRows *r = rows_of(q, n->in[1]);
    bool by_expert = x.kind == PART && x.group == RT_GROUP_EXP && r && r->slots == x.slots;
    if (by_expert && n->in[1]->node->op == OP_ROW_GROUP) {          // biases of experts, by their own numbers
        want(q, n, 1, at_experts);
        shape_again(q, n, at_experts);
        return;
    }
    want_all_home(q, n);
}

// An axis of the operands that have it whole, and of the result.
static bool keeps_axis(const Node *n, int axis, int64_t whole) {
    const Dims *dims = &n->attr.dims;
    switch (n->op) {
    case OP_SUM:       return n->attr.axes.n && n->attr.axes.at[0] > axis;
    case OP_REDUCE_MAX: case OP_SLICE: case OP_CUMSUM: case OP_CONCAT: case OP_UNSLICE: return n->attr.axis > axis;
    case OP_PERMUTE:   return n->attr.perm.n > axis && n->attr.perm.at[axis] == axis;
    case OP_RESHAPE:   return axis == 0 && dims->n && dims->at[0].n && dims->at[0].n % whole == 0;
    case OP_BROADCAST: return dims->n == n->in[0]->type.ndim && dims->n > axis && dims->at[axis].n == whole;
    case OP_SOFTMAX: case OP_LOGSUMEXP: return n->in[0]->type.ndim > axis + 1;
    default:           return op_is(n->op, ELEMENTWISE) || n->op == OP_COPY;
    }
}

// Of the operands in parts: the place with the smallest ones.
static bool smallest_part(const Partition *q, const Node *n, Place *which) {
    bool found = false;
    for (int i = 0; i < n->n_in; i++) {
        Place place = place_of(&q->p, n->in[i]);
        if (place.kind != PART || (found && !place.nested)) continue;
        *which = place;
        found = true;
    }
    return found;
}

// How long an axis is in all ranks' parts together.
static int64_t whole_axis(const Partition *q, const Value *v, int axis) {
    Place is = place_of(&q->p, v);
    int64_t n = dim_bound(v->type.dim[axis]);
    if (is.kind == PART && axis == 0) n = n * group_size(&q->p, is.group) - (is.slots ? q->p.g->mesh.replicas : 0);
    return is.nested && axis == 1 ? n * group_size(&q->p, inner_group(&q->p)) : n;
}

static void place_part(Partition *q, Node *n, Place place) {
    int64_t whole[2] = {0};
    int ndim = 0;
    for (int i = 0; i < n->n_in; i++) {
        const Value *v = n->in[i];
        if (v->type.ndim > ndim) ndim = v->type.ndim;
        if (place_of(&q->p, v).kind != PART) continue;
        whole[0] = whole_axis(q, v, 0);
        if (v->type.ndim > 1 && whole_axis(q, v, 1) > whole[1]) whole[1] = whole_axis(q, v, 1);
    }
    bool keeps = keeps_axis(n, 0, whole[0]);
    for (int i = 0; i < n->n_in; i++) {
        Place is = place_of(&q->p, n->in[i]);
        bool other = is.group != place.group || is.slots != place.slots || n->in[i]->type.ndim != ndim;
        if (is.kind == PART && other) keeps = false;
    }
    if (keeps && place.nested && !keeps_axis(n, 1, whole[1])) {
        place = outer_place(&q->p, place);
        keeps = place.kind == PART;
    }
    if (!keeps) {
        want_all_home(q, n);
        return;
    }
    for (int i = 0; i < n->n_in; i++) {
        const Value *v = n->in[i];
        if (v->type.ndim != ndim || (place_of(&q->p, v).kind != PART && v->type.dim[0].n != whole[0])) continue;
        want(q, n, i, place.nested && whole_axis(q, v, 1) != whole[1] ? outer_place(&q->p, place) : place);
    }
    if (n->attr.dims.n) n->attr.dims.at[0].n = part_size(&q->p, place, n->attr.dims.at[0].n);
    if (n->attr.dims.n && place.nested) n->attr.dims.at[1].n /= group_size(&q->p, inner_group(&q->p));
    shape_again(q, n, place);
}

// The tensor that an effect writes: a parameter's, its gradient's or an optimizer state's.
static const Node *written_param(const Partition *q, const Node *n) {
    const char *slash = n->op == OP_UPDATE ? strchr(n->attr.name, '/') : NULL;
    return map_get(&q->params, slash ? intern(slash + 1) : n->attr.name);
}

static void place_effect(Partition *q, Node *n) {
    if (n->op != OP_UPDATE && n->op != OP_ACCUMULATE) {
        want_all_home(q, n);
        return;
    }
    const Node *param = written_param(q, n);
    Name name = n->attr.name;
    if (n->op == OP_ACCUMULATE) name = intern(arena_printf(q->p.cx->scratch, "grad/%s", name));
    Place place = param ? tensor_place(q, name, &param->attr.dims) : at_home;
    want(q, n, 0, place);
    if (place.kind != PART || n->op != OP_ACCUMULATE) return;
    if (place.nested) n->attr.within = intern(exchange_group_name[inner_group(&q->p)]);
    if (place.nested && outer_place(&q->p, place).kind == HOME) return;
    n->attr.over = intern(exchange_group_name[place.group]);
    n->attr.slots = place.slots;
}

// Rows of all leaves of a tp group.
static bool is_joined(const Sym *rows) { return rows->extent && rows->extent->node->op == OP_JOIN_OFFSETS; }

// The table of the experts that read these rows; NULL: they are on all ranks.
static Name slots_of_readers(const Partition *q, const Node *joined) {
    for (const Node *n = joined->next; n; n = n->next) {
        if (n->op != OP_GROUPED_MATMUL || type_ragged(&n->in[0]->type) != joined->attr.sym) continue;
        for (const Value *w = n->in[1]; w; w = w->node->n_in ? w->node->in[0] : NULL) {
            Place place = w->node->op == OP_PARAM ? tensor_place(q, w->node->attr.name, &w->node->attr.dims) : at_home;
            if (place.kind == PART || (w->node->op == OP_PARAM && place_of(&q->p, w).kind == PART)) return slots_of(w->node);
        }
    }
    return NULL;
}

// Rows of one's own leaves go to their experts, and are joined there.
static void place_join_offsets(Partition *q, Node *n) {
    Sym *own = NULL, *all = n->attr.sym;
    for (int i = 0; i < q->p.g->n_syms; i++)
        if (q->p.g->sym[i]->extent == n->in[0]) own = q->p.g->sym[i];
    Name slots = rt_expert_ranks(q->p.g->mesh) > 1 ? slots_of_readers(q, n) : NULL;
    FarRows *r = own && slots ? rows_far(&q->p, own, slots) : NULL;
    if (!r) return;
    replace_operand(n, 0, r->far_offsets);
    all->groups = r->far->groups;
    n->attr.experts = (int64_t)r->far->groups * (r->far->leaves / own->leaves);     // blocks: each rank's leaves
    all->leaves = r->far->leaves * q->p.g->mesh.tp;
    all->bound = r->far->bound * q->p.g->mesh.tp;
    shape_again(q, n, at_home);
    FarRows *joined = arena_new(q->p.cx->scratch, FarRows);
    *joined = (FarRows){all, all, &n->out[0], &n->out[0], slots};
    map_put(&q->p.near_of, all, joined);
}

// x, offsets of own rows, of all: there where all rows are.
static void place_joined(Partition *q, Node *n) {
    bool joins = n->op == OP_JOIN_ROWS;
    Sym *all = joins ? n->attr.sym : type_ragged(&n->in[0]->type), *own = joins ? type_ragged(&n->in[0]->type) : n->attr.sym;
    FarRows *r = rows_known(&q->p, all) ? rows_known(&q->p, own) : NULL;
    if (!r) return;
    if (joins) want(q, n, 0, at_experts);
    else n->attr.sym = r->far;
    replace_operand(n, 1, r->far_offsets);
    shape_again(q, n, at_experts);
}

static void place_node(Partition *q, Node *n) {
    Place part;
    switch (n->op) {
    case OP_JOIN_OFFSETS: place_join_offsets(q, n); return;
    case OP_JOIN_ROWS: case OP_SUM_ROWS: case OP_OWN_ROWS: place_joined(q, n); return;
    case OP_ROW_GROUP:
        if (is_joined(n->attr.sym) && rows_known(&q->p, n->attr.sym)) {
            shape_again(q, n, at_experts);
            return;
        }
        break;
    default: break;
    }
    switch (n->op) {
    case OP_PARAM: case OP_STATE: cut_source(q, n); return;
    case OP_GROUPED_MATMUL: place_grouped_matmul(q, n); return;
    case OP_GROUPED_DW: case OP_GROUPED_SUM: place_grouped_sum(q, n); return;
    case OP_GATHER_ROWS: place_gather_rows(q, n); return;
    case OP_SCATTER_ADD_ROWS: case OP_ROW_GROUP: want_all_home(q, n); return;
    default: break;
    }
    if (op_is(n->op, EFFECT) && n->op != OP_CACHE) {
        place_effect(q, n);
    } else if (any_at_experts(q, n) && !n->attr.body) {
        want_at_experts(q, n);
        shape_again(q, n, at_experts);
    } else if (smallest_part(q, n, &part)) {
        place_part(q, n, part);
    }
}

// ---- sums over leaves --------------------------------------------------------------------------------------------

static bool has_leaves(const Type *t) { return type_is_leafy(t) || type_ragged(t); }

// Of leaves that a rank of a tp group has by itself: the group's sum stands below that of data ranks in the tree.
static bool is_of_own_leaves(const Partition *q, const Node *n) {
    const Sym *own = q->p.g->own_leaf;
    for (int i = 0; own && i < n->n_in; i++) {
        const Type *t = &n->in[i]->type;
        const Sym *rows = type_ragged(t);
        if (rows ? !is_joined(rows) : type_is_leafy(t) && t->dim[0].sym == own) return true;
    }
    return false;
}

// The result that is a sum over leaves; -1: none.
static int sum_over_leaves(Partition *q, const Node *n) {
    bool reads = false;
    if (!q->p.g->leaf) return -1;                    // @run: ranks have sequences of their own
    for (int i = 0; i < n->n_in; i++) reads |= has_leaves(&n->in[i]->type);
    if (!reads || n->op == OP_ROUTE || n->op == OP_GATE || op_is(n->op, COMM) || op_is(n->op, EFFECT)) return -1;
    if (n->op == OP_CUMSUM && n->attr.axis == 0) refuse(q, n, "runs over leaves");
    for (int i = 0; i < n->n_out; i++) {
        if (has_leaves(&n->out[i].type)) continue;
        switch (n->op) {
        case OP_SUM: case OP_REDUCE_MAX:
            if (!type_is_leafy(&n->in[0]->type)) refuse(q, n, "over all rows of a route");
            return i;
        case OP_MATMUL_DW:
            if (!type_is_leafy(&n->in[0]->type)) refuse(q, n, "over all rows of a route");
            return i;
        case OP_GROUPED_DW: case OP_GROUPED_SUM: case OP_SCATTER_ADD_ROWS:
        case OP_HEAD_LOSS_GRAD: case OP_HEAD_LOSS_AND_GRAD:
            return i;
        default: refuse(q, n, "brings leaves together");
        }
    }
    return -1;
}

static Value *summed_over(Partition *q, Builder *b, Op op, Value *v, RtGroup group, Name slots) {
    if (group_size(&q->p, group) == 1 && op != OP_SUM_REPLICAS) return v;
    Name over = intern(exchange_group_name[group]);
    q->p.n_exchanges++;
    q->p.bytes += (double)type_bytes(&v->type);
    Value *x = op == OP_REDUCE_MAX ? make(b, OP_ALL_GATHER, INS(v), .over = over) : NULL;
    Value *y = x ? make(b, OP_REDUCE_MAX, INS(x), .axis = 0) : make(b, op, INS(v), .over = over, .slots = slots);
    y->place = v->place;
    return y;
}

static void reduce_over_ranks(Partition *q, Node *n, int result) {
    Value *v = &n->out[result], *y = v;
    Place place = place_of(&q->p, v);
    Op op = n->op == OP_REDUCE_MAX ? OP_REDUCE_MAX : OP_TREE_ALL_REDUCE;
    RtGroup group = place.kind == PART ? RT_GROUP_EDP : RT_GROUP_DATA;
    bool own = place.kind != PART && is_of_own_leaves(q, n);
    Builder b = builder_after(q->p.g, n);
    if (place.kind == PART && q->p.g->mesh.replicas) y = summed_over(q, &b, OP_SUM_REPLICAS, y, RT_GROUP_EXP, place.slots);
    place_set(&q->p, y, place);
    if (group_size(&q->p, group) > 1) {
        Name summand = intern(arena_printf(q->p.cx->scratch, "%s:P", exchange_group_name[group]));
        map_put(&q->sums, y, (void *)summand);
        map_put(&q->sums, v, (void *)summand);
    }
    if (own) {
        y = summed_over(q, &b, op, y, RT_GROUP_TP, NULL);
        place_set(&q->p, y, place);
        map_put(&q->sums, y, map_get(&q->sums, v));
        v->place = intern("tp:P");
    }
    y = summed_over(q, &b, op, y, group, NULL);
    if (y == v) return;
    place_set(&q->p, y, place);
    v->mark = y;                                         // who comes to read v reads y
}

// Draws of a rank are its part of those of all: n is replaced by one that knows which, from `part` on in its graph.
static void place_random(Node *n, Value *part) {
    const Type *t = &n->out[0].type;
    if (!type_is_leafy(t)) return;
    Builder b = builder_before(n->graph, n);
    Value *y = make(&b, OP_RANDOM, INS(n->in[0], part), .stream = n->attr.stream, .dtype = n->attr.dtype, .dims = n->attr.dims);
    replace_all_uses(n->graph, &n->out[0], y);
    graph_remove(n);
}

static Value *input_named(Graph *g, const char *name) {
    for_each_node(g, n) if (n->op == OP_INPUT && !strcmp(n->attr.name, name)) return &n->out[0];
    Builder first = builder_before(g, g->first);
    return make(&first, OP_INPUT, INS(NULL), .name = intern(name), .dtype = I32);
}

static Value *data_rank(Partition *q) {
    return q->data_rank ? q->data_rank : (q->data_rank = input_named(q->p.g, "data_rank"));
}

// Which part of all leaves a rank of a tp group has by itself.
static Value *own_rank(Partition *q) {
    if (q->own_rank) return q->own_rank;
    Value *data = data_rank(q), *tp_i = input_named(q->p.g, "tp_rank");
    Builder b = builder_before(q->p.g, q->p.g->first);
    Value *tp = build_const(&b, (double)q->p.g->mesh.tp, I32);
    node_move_behind(data->node, tp->node);
    node_move_behind(tp_i->node, tp->node);
    b = builder_after(q->p.g, data->node);
    return q->own_rank = build_binary(&b, OP_ADD, build_binary(&b, OP_MUL, data, tp), tp_i);
}

// How many slots this rank's tokens have.
static int64_t own_slots(const Sym *rows) {
    const Node *route = rows->extent->node;
    if (route->op == OP_GATE)
        for_each_node(route->attr.body, n) if (n->op == OP_ROUTE && n->attr.sym == rows) return type_bound_elements(&n->in[0]->type);
    return type_bound_elements(&route->in[0]->type);
}

// Rows of a route draw by their slots, which are numbered over all ranks here, wherever the rows are.
static void place_random_rows(Partition *q, Node *n) {
    Sym *rows = type_ragged(&n->out[0].type);
    if (n->n_in == 1) {
        refuse(q, n, "draws for rows of a route by their places");
        return;
    }
    Builder b = builder_before(q->p.g, n);
    Value *rank = q->p.g->own_leaf ? own_rank(q) : data_rank(q);
    Value *before = build_binary(&b, OP_MUL, rank, build_const(&b, (double)own_slots(rows), I32));
    replace_operand(n, 1, build_binary(&b, OP_ADD, n->in[1], before));
    if (!rows_known(&q->p, rows)) return;
    want_at_experts(q, n);
    shape_again(q, n, at_experts);
}

// Routers draw inside their gate.
static void place_random_in(Partition *q, Node *gate) {
    Graph *body = gate->attr.body;
    Value *part = NULL;
    for_each_node(body, n) {
        if (n->op != OP_RANDOM) continue;
        if (!part) {
            Builder first = builder_before(body, body->first);
            node_add_operand(gate, is_of_own_leaves(q, gate) ? own_rank(q) : data_rank(q));
            part = make(&first, OP_ARG, INS(NULL), .k = gate->n_in - 1, .dtype = I32);
        }
        place_random(n, part);
    }
}

// ---- what the graph says of it -----------------------------------------------------------------------------------

static const char *cut_over(const Partition *q, RtGroup group, const char *how) {
    return group_size(&q->p, group) > 1 ? arena_printf(q->p.cx->scratch, " %s:%s", exchange_group_name[group], how) : "";
}

// By its type or where it was taken; "": by neither.
static const char *place_text(const Partition *q, const Value *v) {
    Arena *a = q->p.cx->scratch;
    const Sym *s = v->type.ndim ? v->type.dim[0].sym : NULL;
    const FarRows *r = s ? map_get(&q->p.near_of, s) : NULL;
    bool own = q->p.g->own_leaf && s && (s == q->p.g->own_leaf || (s->kind == SYM_RAGGED && !is_joined(s)));
    Place place = place_of(&q->p, v);
    const char *summand = map_get(&q->sums, v);
    if (place.kind == PART) {
        const char *inner = place.nested ? cut_over(q, inner_group(&q->p), "S1") : "";
        const char *parts = place.nested && outer_place(&q->p, place).kind == HOME ? "" : cut_over(q, place.group, "S0");
        return arena_printf(a, "%s%s%s%s", parts, inner, summand ? " " : "", summand ? summand : "");
    }
    const char *of_tp = own && !(r && q->p.g->mesh.etp == 1) ? cut_over(q, RT_GROUP_TP, "S0") : "";
    if (r) return arena_printf(a, "%s%s%s", cut_over(q, RT_GROUP_EXP, "S0"), cut_over(q, RT_GROUP_EDP, "S0"), of_tp);
    bool joined = v->node->op == OP_JOIN_OFFSETS && map_get(&q->p.near_of, v->node->attr.sym);
    if (v->node->op == OP_EXCHANGE_OFFSETS || joined)
        return arena_printf(a, "%s%s", cut_over(q, RT_GROUP_EXP, "L"), cut_over(q, RT_GROUP_EDP, "L"));
    if (has_leaves(&v->type)) return arena_printf(a, "%s%s", cut_over(q, RT_GROUP_DATA, "S0"), of_tp);
    return summand ? arena_printf(a, " %s", summand) : "";
}

// What has no place of its own but is made of what ranks have parts of, each has for itself.
static void note_places(Partition *q) {
    for_each_node(q->p.g, n) {
        bool data = &n->out[0] == q->data_rank, tp = false;
        for (int i = 0; i < n->n_in && !op_is(n->op, COMM); i++) {
            const char *of = n->in[i]->place;
            data |= of && (strstr(of, "data:") || strstr(of, "exp:") || strstr(of, "edp:"));
            tp |= of && strstr(of, "tp:");
        }
        for (int i = 0; i < n->n_out; i++) {
            Value *v = &n->out[i];
            const char *text = place_text(q, v), *of_tp = v->place;
            if (!*text && data) text = cut_over(q, RT_GROUP_DATA, "L");
            if (!of_tp && tp && !strstr(text, "tp:") && !strstr(text, "exp:")) of_tp = cut_over(q, RT_GROUP_TP, "L") + 1;
            if (of_tp && *text) text = arena_printf(q->p.cx->scratch, "%s %s", text, of_tp);
            else if (of_tp) text = arena_printf(q->p.cx->scratch, " %s", of_tp);
            v->place = *text ? intern(text + 1) : NULL;
        }
    }
}

// A part of a sum needs no whole one, and what is summed is used up.
static void scatter_sums(Graph *g) {
    for_each_node(g, n) {
        if (n->op != OP_SHARD) continue;
        Node *sum = n->in[0]->node;
        if (sum->op != OP_TREE_ALL_REDUCE || sum->attr.over != n->attr.over || sum->out[0].n_uses != 1) continue;
        if (!value_is_read_once(sum->in[0])) continue;
        Builder b = builder_before(g, n);
        Value *y = make(&b, OP_TREE_REDUCE_SCATTER, INS(sum->in[0]), .axis = n->attr.axis, .over = n->attr.over);
        y->place = n->out[0].place;
        replace_all_uses(g, &n->out[0], y);
        graph_remove(n);
        graph_remove(sum);
    }
}

bool pass_partition(Graph *g, PassCtx *cx) {
    if (rt_group_size(g->mesh, RT_GROUP_DATA) == 1 && rt_expert_ranks(g->mesh) == 1 && !g->own_leaf) {
        TRACE(cx, "partition: one rank has all leaves and experts\n");
        return false;
    }
    Arena *a = cx->scratch;
    Partition q = {.p = {.g = g, .cx = cx, .twins = {.arena = a}, .far_of = {.arena = a}, .near_of = {.arena = a}},
                   .params = {.arena = a}, .sums = {.arena = a},
                   .ok = true};
    for_each_node(g, n)
        if (n->op == OP_PARAM) {
            Node *whole = arena_new(a, Node);            // as it was: n's own dims are cut
            *whole = *n;
            map_put(&q.params, n->attr.name, whole);
        }
    marks_clear(g);
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        if (n->op == OP_RANDOM) {
            if (type_ragged(&n->out[0].type)) place_random_rows(&q, n);
            else place_random(n, data_rank(&q));
            if (!q.ok) return true;
            continue;
        }
        if (n->op == OP_GATE) place_random_in(&q, n);
        place_node(&q, n);
        int sum = q.ok ? sum_over_leaves(&q, n) : -1;
        if (!q.ok) return true;
        if (sum >= 0) reduce_over_ranks(&q, n, sum);
    }
    marks_clear(g);
    note_places(&q);
    scatter_sums(g);
    WON(cx, "%d exchanges, %.1f MB sent at most", q.p.n_exchanges, q.p.bytes / 1e6);
    return true;
}
