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

#include "passes/tp.h"

// ---- tensors -----------------------------------------------------------------------------------------------------

// PARAM itself, grad/PARAM and the optimizer's states of it.
const Node *param_of(const Tp *q, Name name) {
    const char *slash = strchr(name, '/');
    const Node *param = map_get(&q->params, slash ? intern(slash + 1) : name);
    return param ? param : map_get(&q->params, name);
}

Spot tensor_spot(const Tp *q, Name name, const Dims *dims) {
    const Node *param = param_of(q, name);
    if (!param || param->attr.split < 0 || param->attr.split >= param->attr.dims.n || dims->n != param->attr.dims.n) return whole;
    for (int i = 0; i < dims->n; i++)
        if (!dim_eq(dims->at[i], param->attr.dims.at[i])) return whole;
    return cut((int)param->attr.split);
}

void cut_tensor(Tp *q, Node *n, int axis) {
    n->attr.dims.at[axis].n /= q->tp;
    n->attr.tp = 1 + axis;
    n->out[0].type.dim[axis].n /= q->tp;
    spot_set(q, &n->out[0], cut(axis));
}

static void place_source(Tp *q, Node *n) {
    Spot s = tensor_spot(q, n->attr.name, &n->attr.dims);
    if (s.kind == CUT) cut_tensor(q, n, s.axis);
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
