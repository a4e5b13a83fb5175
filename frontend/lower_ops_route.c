// Routing: from choices to rows grouped by expert and back.
//
//   route(w, e, E, keep: c)     e' = select(c, e, -1)                    a dropped choice gets no row
//                               offsets, row_of, slot_of = route(e')     defines the row symbol R
//   dispatch(x, r)              gather_rows(x, slot_of / K)              f32[E|*, D] is f32[R,D]
//   combine(y, r)               scatter_add_rows(y * w[slot_of], slot_of / K)
//
// Slots and tokens are counted over all leaves: slot (l, t, j) is (l * T + t) * K + j.
#include <assert.h>
#include <string.h>
#include "frontend/lower_ops.h"

// ---- counts and queues ----------------------------------------------------------------------------------

static bool is_choice(OpCx *cx, int param, int least_axes) {
    TVal *e = cx->arg[param].t;
    if (e->type.dtype == I32 && e->type.ndim >= least_axes) return true;
    op_error(cx, cx->arg_at[param], "%s: '%s' is i32 with at least %d axes, this is %s", cx->op,
             cx->row->param[param].name, least_axes, ltype_text(cx->lw, &e->type));
    op_note_made(cx, &cx->arg[param], e);
    return false;
}

static TVal *leafy(OpCx *cx, TVal *x) { return cx->lw->leaf ? t_with_lead(cx, x, LEAD_LEAF) : x; }

static OpResult op_counts(OpCx *cx) {
    int64_t n_experts;
    if (!is_choice(cx, 0, 2) || !arg_int(cx, 1, &n_experts)) return op_failed(cx);
    TVal *e = cx->arg[0].t;
    LType t = e->type;
    t.ndim -= 2;
    t.dim[t.ndim++] = val_poly(cx, &cx->arg[1]);
    return op_one(cx, t_new(cx, make(cx->b, OP_COUNT, INS(e->v), .experts = n_experts), t, t_lead(e)));
}

// [..., T, K] as the queues are cut: [T', K] with all leading axes joined, or [G, T', K] where axis 0
// separates.
static TVal *queue_shape(OpCx *cx, TVal *x, bool per_sequence) {
    return x ? t_flat(cx, x, per_sequence ? 1 : 0, x->type.ndim - 1) : NULL;
}

static OpResult op_queue(OpCx *cx) {
    TVal *e = cx->arg[0].t, *priority = NULL;
    bool per_sequence = !strcmp(cx->arg[4].str, "sequence");
    int64_t n_experts;
    if (!is_choice(cx, 0, 2) || !arg_int(cx, 1, &n_experts)) return op_failed(cx);
    if (per_sequence && e->type.ndim < 3) {
        op_error(cx, cx->arg_at[0], "queue: per \"sequence\" needs a leading axis of sequences, this is %s",
                 ltype_text(cx->lw, &e->type));
        return op_failed(cx);
    }
    if (cx->given[3]) {
        priority = cx->arg[3].t;
        if (!same_dims(&priority->type, &e->type)) {
            op_error(cx, cx->arg_at[3], "queue: 'priority' is %s, the choices are %s",
                     ltype_text(cx->lw, &priority->type), ltype_text(cx->lw, &e->type));
            return op_failed(cx);
        }
    }
    if (cx->lw->inference && cx->lw->dropless) { // an answer must not depend on its neighbours
        TVal *first = t_expand(cx, t_new(cx, build_const(cx->b, 0, I32), (LType){0}, LEAD_NONE), &e->type);
        if (first) first->keeps_all = true;
        return op_one(cx, first);
    }
    TVal *in[2] = {e, priority ? t_cast(cx, priority, F32) : e};
    if (!t_same_lead(cx, 2, in)) return op_failed(cx);
    TVal *q = queue_shape(cx, in[0], per_sequence),
         *p = priority ? queue_shape(cx, in[1], per_sequence) : NULL;
    if (!q || (priority && !p)) return op_failed(cx);
    Value *place = make(cx->b, OP_QUEUE, p ? INS(q->v, p->v) : INS(q->v), .experts = n_experts,
                        .by_choice = !strcmp(cx->arg[2].str, "choice"));
    return op_one(cx, t_reshape(cx, t_like(cx, place, q), &e->type));
}

// Every token of a leaf shares one assignment.
static OpResult op_sinkhorn(OpCx *cx) {
    TVal *z = cx->arg[0].t;
    double tolerance;
    int64_t limit;
    if (!arg_num(cx, 1, &tolerance) || !arg_int(cx, 2, &limit)) return op_failed(cx);
    if (z->type.ndim < 2) {
        op_error(cx, cx->arg_at[0], "sinkhorn: scores are [..., T, E], this is %s",
                 ltype_text(cx->lw, &z->type));
        return op_failed(cx);
    }
    TVal *flat = t_flat(cx, t_cast(cx, z, F32), 0, z->type.ndim - 1);
    if (!flat) return op_failed(cx);
    Value *y = make(cx->b, OP_SINKHORN, INS(flat->v), .tolerance = tolerance, .limit = limit);
    return op_one(cx, t_reshape(cx, t_like(cx, y, flat), &z->type));
}

// ---- routes ---------------------------------------------------------------------------------------------

static Sym *new_row_symbol(OpCx *cx, int64_t n_experts, int64_t bound) {
    const char *name = intern(arena_printf(cx->lw->arena, "R%d", cx->lw->n_routes++));
    int leaves = cx->lw->leaf ? (int)cx->lw->leaf->bound : 1;
    Sym *s = graph_add_sym(cx->lw->g, name, SYM_RAGGED, bound, (int)n_experts, leaves);
    poly_bind(cx->lw, name, (Dim){1, s});
    return s;
}

// The ROUTE node of r and what follows from it: which token each row belongs to, tokens having `per_token`
// slots.
static bool route_rows(OpCx *cx, RouteVal *r, Value *choice, int64_t per_token) {
    r->sym = new_row_symbol(cx, r->E, type_bound_elements(&choice->type));
    Node *n = build(cx->b, OP_ROUTE, INS(choice), .experts = r->E, .sym = r->sym);
    if (!n) return false;
    r->offsets = &n->out[0];
    r->row_of = &n->out[1];
    r->slot_of = &n->out[2];
    r->sym->extent = r->offsets;
    r->token_of = r->slot_of;
    if (per_token > 1)
        r->token_of = build_binary(cx->b, OP_DIV, r->slot_of, build_const(cx->b, (double)per_token, I32));
    return r->token_of != NULL;
}

static OpResult route_result(OpCx *cx, RouteVal *r) {
    return op_value((Val){.kind = V_ROUTE, .at = cx->at, .route = r});
}

static OpResult op_route(OpCx *cx) {
    TVal *w = cx->arg[0].t, *e = cx->arg[1].t;
    const Val *keep = &cx->arg[3];
    int64_t n_experts, k;
    if (!is_choice(cx, 1, 2) || !arg_int(cx, 2, &n_experts)) return op_failed(cx);
    if (!same_dims(&w->type, &e->type)) {
        op_error(cx, cx->at, "route: weights are %s, choices are %s", ltype_text(cx->lw, &w->type),
                 ltype_text(cx->lw, &e->type));
        op_note_made(cx, &cx->arg[0], w);
        op_note_made(cx, &cx->arg[1], e);
        return op_failed(cx);
    }
    if (!poly_known(cx, e->type.dim[e->type.ndim - 1], &k) || k > n_experts) {
        op_error(cx, cx->at, "route: %s choices of each token among %lld experts",
                 poly_text(cx->lw, e->type.dim[e->type.ndim - 1]), (long long)n_experts);
        return op_failed(cx);
    }
    w = leafy(cx, t_cast(cx, w, F32));
    e = leafy(cx, e);
    if (keep->kind == V_TENSOR) {
        TVal *c = keep->t;
        if (c->type.dtype != BOOL || !same_dims(&c->type, &cx->arg[1].t->type)) {
            op_error(cx, cx->arg_at[3], "route: 'keep' is bool%s, this is %s",
                     shape_text(cx, &cx->arg[1].t->type), ltype_text(cx->lw, &c->type));
            op_note_made(cx, keep, c);
            return op_failed(cx);
        }
        e = t_select(cx, c, e, t_new(cx, build_const(cx->b, -1, I32), (LType){0}, LEAD_NONE));
    }
    if (!w || !e) return op_failed(cx);
    RouteVal *r = arena_new(cx->lw->arena, RouteVal);
    *r = (RouteVal){.at = cx->at,
                    .E = n_experts,
                    .K = k,
                    .lead = e->type,
                    .leafy = e->leafy,
                    .weight = w->v,
                    .choice = e->v};
    r->lead.ndim--;
    r->lead.dtype = F32;
    return route_rows(cx, r, e->v, k) ? route_result(cx, r) : op_failed(cx);
}

// Experts choose: slot (l, e, c) holds the token t[l, e, c].  A route over slots, each of which "chose" its
// expert, puts them in the order of rows, (expert, leaf, place).
static OpResult op_route_by_expert(OpCx *cx) {
    TVal *w = cx->arg[0].t, *t = cx->arg[1].t;
    int64_t n_experts, slots, n_tokens;
    if (cx->lw->inference) {
        op_error(
            cx, cx->at,
            "experts cannot choose their tokens in generation: whom a token gets depends on later tokens");
        return op_failed(cx);
    }
    if (!is_choice(cx, 1, 2) || !arg_int(cx, 2, &n_tokens)) return op_failed(cx);
    if (!same_dims(&w->type, &t->type) || t->type.ndim != 2 || !poly_known(cx, t->type.dim[0], &n_experts) ||
        !poly_known(cx, t->type.dim[1], &slots)) {
        op_error(cx, cx->at, "route_by_expert: weights and tokens are [E, C], these are %s and %s",
                 ltype_text(cx->lw, &w->type), ltype_text(cx->lw, &t->type));
        return op_failed(cx);
    }
    w = leafy(cx, t_cast(cx, w, F32));
    t = leafy(cx, t);
    if (!w || !t) return op_failed(cx);
    RouteVal *r = arena_new(cx->lw->arena, RouteVal);
    *r = (RouteVal){
        .at = cx->at, .E = n_experts, .K = 1, .leafy = t->leafy, .by_expert = true, .weight = w->v};
    r->lead = (LType){.dtype = F32, .ndim = 1, .dim = {val_poly(cx, &cx->arg[2])}};

    Builder *b = cx->b;
    Dims expert = {2, {dim_n(n_experts), dim_n(slots)}}, one = {2, {dim_n(n_experts * slots), dim_n(1)}},
         all = one;
    if (t->leafy) all = (Dims){3, {{1, cx->lw->leaf}, one.at[0], one.at[1]}};
    Value *choice = make(b, OP_IOTA, INS(NULL), .dtype = I32, .dims = expert, .axis = 0);
    choice = choice ? build_reshape(b, choice, &one) : NULL;
    choice = choice ? build_broadcast(b, choice, &all) : NULL;
    if (!choice || !route_rows(cx, r, choice, 1)) return op_failed(cx);

    Value *tokens = t->v; // counted over all leaves
    if (t->leafy) {
        Dims leaves = {3, {{1, cx->lw->leaf}, dim_n(1), dim_n(1)}};
        Value *leaf = make(b, OP_IOTA, INS(NULL), .dtype = I32, .dims = leaves, .axis = 0);
        leaf = leaf ? build_binary(b, OP_MUL, leaf, build_const(b, (double)n_tokens, I32)) : NULL;
        tokens = leaf ? build_binary(b, OP_ADD, tokens, leaf) : NULL;
    }
    Dims column = {0}, rows = {1, {{1, r->sym}}};
    if (tokens) column = dims_of(&tokens->type);
    column.at[column.n++] = dim_n(1);
    tokens = tokens ? build_reshape(b, tokens, &column) : NULL;
    tokens = tokens ? make(b, OP_GATHER_ROWS, INS(tokens, r->slot_of)) : NULL;
    r->token_of = tokens ? build_reshape(b, tokens, &rows) : NULL;
    return r->token_of ? route_result(cx, r) : op_failed(cx);
}

// ---- rows -----------------------------------------------------------------------------------------------

static bool starts_with(const LType *t, const LType *lead) {
    if (t->ndim < lead->ndim) return false;
    for (int i = 0; i < lead->ndim; i++)
        if (t->dim[i] != lead->dim[i]) return false;
    return true;
}

static LType rows_type(RouteVal *r, DType dtype) { return (LType){.dtype = dtype, .rows = r}; }

static OpResult op_dispatch(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    RouteVal *r = cx->arg[1].route;
    const LType *lead = &r->lead;
    LType tokens = x->type;
    const Poly *k = poly_int(cx->lw, r->K);
    // Experts that choose count tokens in row-major order of the leading axes.
    int n_lead = r->by_expert ? x->type.ndim - 1 : lead->ndim;
    bool per_choice = !r->by_expert && x->type.ndim == n_lead + 2 && starts_with(&x->type, lead) &&
                      x->type.dim[n_lead] == k;
    bool matches = n_lead >= 1 && x->type.ndim == n_lead + 1 + per_choice;
    if (matches && r->by_expert) {
        tokens.ndim = n_lead;
        matches = ltype_elements(cx, &tokens) == lead->dim[0];
        if (matches) r->lead = tokens;
    } else if (matches) {
        matches = starts_with(&x->type, lead);
    }
    if (!matches) {
        op_error(cx, cx->arg_at[0], "dispatch: the route of line %d is for tokens %s, this is %s",
                 line_of(cx, r->at), shape_text(cx, lead), ltype_text(cx->lw, &x->type));
        diag_note(cx->lw->diag, r->at, "the route is made here");
        return op_failed(cx);
    }
    x = r->leafy ? leafy(cx, x) : x;
    if (!x) return op_failed(cx);
    LType t = rows_type(r, x->type.dtype);
    t.dim[t.ndim++] = x->type.dim[x->type.ndim - 1];
    Value *index = per_choice ? r->slot_of : r->token_of;
    return op_one(cx, t_new(cx, make(cx->b, OP_GATHER_ROWS, INS(x->v, index)), t, LEAD_ROWS));
}

// f32[R,1]: the weight of each row.
static Value *row_weight(OpCx *cx, RouteVal *r) {
    if (r->row_weight) return r->row_weight;
    Dims column = dims_of(&r->weight->type);
    column.at[column.n++] = dim_n(1);
    Value *w = build_reshape(cx->b, r->weight, &column);
    return r->row_weight = w ? make(cx->b, OP_GATHER_ROWS, INS(w, r->slot_of)) : NULL;
}

static OpResult op_gates(OpCx *cx) {
    RouteVal *r = cx->arg[0].route;
    LType t = rows_type(r, F32);
    t.dim[t.ndim++] = poly_int(cx->lw, 1);
    return op_one(cx, t_new(cx, row_weight(cx, r), t, LEAD_ROWS));
}

static bool of_this_route(OpCx *cx, const TVal *y, const RouteVal *r) {
    if (y->type.rows == r) return true;
    op_error(cx, cx->arg_at[1],
             "%s: these rows were dispatched by the route of line %d, not by the one of line %d", cx->op,
             line_of(cx, y->type.rows->at), line_of(cx, r->at));
    diag_note(cx->lw->diag, cx->arg[0].at, "the rows come from here");
    return false;
}

// [R, a, b] as [R, a*b]
static Value *flat_rows(OpCx *cx, const TVal *y) {
    int64_t n = 1;
    for (int i = 1; i < y->v->type.ndim; i++) n *= y->v->type.dim[i].n;
    Dims d = {2, {y->v->type.dim[0], dim_n(n)}};
    return build_reshape(cx->b, y->v, &d);
}

// Rows summed by token; with several groups of experts first inside each group, then over groups in order.
static Value *sum_rows(OpCx *cx, RouteVal *r, Value *rows, const Dims *dims, int64_t groups) {
    Builder *b = cx->b;
    if (groups == 1) return make(b, OP_SCATTER_ADD_ROWS, INS(rows, r->token_of), .dims = *dims);
    if (!r->row_group) r->row_group = make(b, OP_ROW_GROUP, INS(r->offsets), .sym = r->sym);
    Value *group = r->row_group
                       ? build_binary(b, OP_DIV, r->row_group, build_const(b, (double)(r->E / groups), I32))
                       : NULL;
    Value *sum = NULL, *nobody = build_const(b, -1, I32);
    for (int64_t i = 0; group && i < groups; i++) {
        Value *mine = build_binary(b, OP_EQ, group, build_const(b, (double)i, I32));
        Value *index = mine ? make(b, OP_SELECT, INS(mine, r->token_of, nobody)) : NULL;
        Value *part = index ? make(b, OP_SCATTER_ADD_ROWS, INS(rows, index), .dims = *dims) : NULL;
        if (!part) return NULL;
        sum = sum ? build_binary(b, OP_ADD, sum, part) : part;
    }
    return sum;
}

static OpResult op_combine(OpCx *cx) {
    TVal *y = cx->arg[0].t;
    RouteVal *r = cx->arg[1].route;
    int64_t groups = 1;
    if (!of_this_route(cx, y, r)) return op_failed(cx);
    if (cx->given[3] && !arg_int(cx, 3, &groups)) return op_failed(cx);
    if (groups < 1 || r->E % groups) {
        op_error(cx, cx->arg_at[3], "combine: %lld experts do not fall into %lld equal groups",
                 (long long)r->E, (long long)groups);
        return op_failed(cx);
    }
    LType t = r->lead, flat = r->lead;
    for (int i = 0; i < y->type.ndim; i++) {
        if (t.ndim == MAX_DIM - 1) {
            op_error(cx, cx->at, "combine: the result has too many axes: %d is the most", MAX_DIM - 1);
            return op_failed(cx);
        }
        t.dim[t.ndim++] = y->type.dim[i];
    }
    flat.dim[flat.ndim++] = ltype_elements(cx, &y->type);
    Lead lead = r->leafy ? LEAD_LEAF : LEAD_NONE;
    Dims dims;
    Value *rows = flat_rows(cx, y);
    rows = rows ? build_cast(cx->b, rows, F32) : NULL; // summed in f32 whatever y is
    if (rows && cx->arg[2].b) {
        Value *weight = row_weight(cx, r);
        rows = weight ? build_binary(cx->b, OP_MUL, rows, weight) : NULL;
    }
    if (!rows || !lead_dims(cx, lead, &flat, &dims)) return op_failed(cx);
    TVal *sum =
        t_cast(cx, t_new(cx, sum_rows(cx, r, rows, &dims, groups), flat, lead), float_dtype(y->type.dtype));
    return op_one(cx, t_reshape(cx, sum, &t));
}

static OpResult op_by_choice(OpCx *cx) {
    TVal *y = cx->arg[0].t;
    RouteVal *r = cx->arg[1].route;
    if (!of_this_route(cx, y, r)) return op_failed(cx);
    if (r->by_expert) {
        op_error(cx, cx->at, "by_choice: experts choose in the route of line %d; a token has no choices",
                 line_of(cx, r->at));
        return op_failed(cx);
    }
    LType flat = r->lead, t;
    flat.dim[flat.ndim++] = poly_int(cx->lw, r->K);
    t = flat;
    flat.dim[flat.ndim++] = ltype_elements(cx, &y->type);
    for (int i = 0; i < y->type.ndim && t.ndim < MAX_DIM; i++) t.dim[t.ndim++] = y->type.dim[i];
    Value *rows = flat_rows(cx, y);
    rows = rows ? make(cx->b, OP_GATHER_ROWS, INS(rows, r->row_of)) : NULL;
    return op_one(cx, t_reshape(cx, t_new(cx, rows, flat, r->leafy ? LEAD_LEAF : LEAD_NONE), &t));
}

// ---- the table ------------------------------------------------------------------------------------------

// clang-format off
static const OpRow rows[] = {
    {"counts",   op_counts,   R_REFUSE, {{"e", P_TENSOR}, {"E", P_INT}}},
    {"queue",    op_queue,    R_REFUSE, {{"e", P_TENSOR}, {"E", P_INT}, {"order", P_WORD, "token", "token|choice"},
                                         {"priority", P_TENSOR, "none"}, {"per", P_WORD, "batch", "batch|sequence"}}},
    {"sinkhorn", op_sinkhorn, R_REFUSE, {{"z", P_TENSOR}, {"tolerance", P_NUM, "1e-4"}, {"limit", P_INT, "100"}}},
    {"route",    op_route,    R_REFUSE, {{"w", P_TENSOR}, {"e", P_TENSOR}, {"E", P_INT}, {"keep", P_TENSOR, "none"}}},
    {"route_by_expert", op_route_by_expert, R_REFUSE, {{"w", P_TENSOR}, {"t", P_TENSOR}, {"T", P_INT}}},
    {"dispatch", op_dispatch, R_REFUSE, {{"x", P_TENSOR}, {"r", P_ROUTE}}},
    {"gates",    op_gates,    R_REFUSE, {{"r", P_ROUTE}}},
    {"combine",  op_combine,  R_GROUPED, {{"y", P_TENSOR}, {"r", P_ROUTE}, {"weighted", P_BOOL, "true"}, {"groups", P_INT, "none"}}},
    {"by_choice", op_by_choice, R_GROUPED, {{"y", P_TENSOR}, {"r", P_ROUTE}}},
};
// clang-format on

const OpTable route_ops = {rows, sizeof rows / sizeof *rows};
