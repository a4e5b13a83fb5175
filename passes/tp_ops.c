// Rules of ops: along which axis operands and results are cut.
#include "passes/tp.h"

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

void place_elementwise(Tp *q, Node *n) {
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
void place_matmul(Tp *q, Node *n) {
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
void place_matmul_dw(Tp *q, Node *n) {
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
void place_grouped_matmul(Tp *q, Node *n) {
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
void place_grouped_dw(Tp *q, Node *n) {
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
void place_along_others(Tp *q, Node *n, int works_along) {
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

void place_sum(Tp *q, Node *n) {
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

void place_reshape(Tp *q, Node *n) {
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

void place_broadcast(Tp *q, Node *n) {
    Spot s = spot_of(n->in[0]);
    if (s.kind != CUT) {
        settle(q, n);
        return;
    }
    s.axis += n->attr.dims.n - n->in[0]->type.ndim;
    n->attr.dims.at[s.axis].n /= q->tp;
    shape_again(q, n, s);
}

void place_permute(Tp *q, Node *n) {
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
