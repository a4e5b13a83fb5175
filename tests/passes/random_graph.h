// Random graphs.  random_graph: smooth, bounded and differentiable, for whole pipelines.  random_any_graph:
// whatever the op table holds, with operands and attributes that fit; its shapes sit around the widths that
// kernels care about.
#ifndef TESTS_PASSES_RANDOM_GRAPH_H
#define TESTS_PASSES_RANDOM_GRAPH_H
#include <string.h>
#include "ir/base/vec.h"
#include "ir/build.h"

// Choices come from bytes while there are some, then from the state.
typedef struct {
    uint64_t state;
    const uint8_t *byte;
    size_t n_bytes;
} Choices;

static inline int pick(Choices *c, int n) {
    if (c->n_bytes) {
        c->n_bytes--;
        return *c->byte++ % n;
    }
    c->state = c->state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (int)((c->state >> 33) % (uint64_t)n);
}

// Mostly elementwise nodes over two shapes and their row numbers, with contractions, reductions and slices
// between.
static inline Graph *random_graph(Arena *a, int n_nodes, Choices *c) {
    Graph *g = graph_new(a, "pass");
    Builder b = builder_end(g, NULL);
    Sym *leaf = graph_add_sym(g, "L", SYM_LEAF, 2, 0, 0);
    Dims rows = {3, {{1, leaf}, {3, NULL}, {4, NULL}}}, square = {2, {{4, NULL}, {4, NULL}}};
    VEC(Value *) wide = {0}; // f32[L,3,4]
    for (int i = 0; i < 3; i++)
        vec_push(
            a, &wide,
            make(&b, OP_INPUT, NULL, .name = intern(arena_printf(a, "x%d", i)), .dtype = F32, .dims = rows));
    Value *w = make(&b, OP_PARAM, NULL, .name = intern("w"), .dtype = F32, .dims = square, .lr = 1);
    static const Op unary[] = {OP_TANH, OP_SIGMOID, OP_NEG, OP_ABS, OP_SOFTMAX};
    static const Op binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_MAX};
    for (int i = 0; i < n_nodes; i++) {
        Value *x = wide.at[wide.n - 1 - pick(c, wide.n < 8 ? wide.n : 8)], *y = wide.at[pick(c, wide.n)], *v;
        switch (pick(c, 10)) {
        case 0:
            v = make(&b, OP_MATMUL, INS(x, w), .tb = pick(c, 2));
            break;
        case 1:
            v = build_binary(&b, OP_MUL, x, build_sum(&b, y, &(Ints){1, {2}}));
            break;
        case 2:
            v = build_binary(&b, OP_ADD, x,
                             make(&b, OP_REDUCE_MAX, INS(build_unary(&b, OP_STOP_GRADIENT, y)), .axis = 2));
            break;
        case 3: {
            Value *p = make(&b, OP_SLICE, INS(x), .axis = 2, .begin = 0, .end = 2),
                  *q = make(&b, OP_SLICE, INS(y), .axis = 2, .begin = 2, .end = 4);
            v = make(&b, OP_CONCAT, INS(q, p), .axis = 2);
            break;
        }
        case 4:
            v = build_binary(&b, OP_ADD, x, build_sum(&b, y, &(Ints){1, {1}}));
            break;
        case 5:
        case 6:
            v = build_unary(&b, unary[pick(c, 5)], x);
            break;
        default:
            v = build_binary(&b, binary[pick(c, 4)], x, y);
            break;
        }
        v = build_binary(&b, OP_MIN, build_binary(&b, OP_MAX, v, build_const(&b, -2, F32)),
                         build_const(&b, 2, F32));
        vec_push(a, &wide, v);
    }
    Value *sum = build_sum(&b, wide.at[wide.n - 1], &(Ints){2, {1, 2}});
    build(&b, OP_LOSS, INS(sum), .name = intern("l"), .weight = 1);
    build(&b, OP_RETURN, INS(wide.at[wide.n - 2]), .name = intern("y"));
    return g;
}

// ---- any graph ------------------------------------------------------------------------------------------

typedef struct {
    Arena *arena;
    Graph *g;
    Builder b;
    Choices *choices;
    VEC(Value *) values;
    int n_sources;
} Wild;

enum { WILD_MOST_ELEMENTS = 1 << 15 };

static inline Value *wild_add(Wild *w, Value *v) {
    if (v) vec_push(w->arena, &w->values, v);
    return v;
}

static inline Value *wild_source(Wild *w, Op op, DType dtype, Dims dims, const char *prefix) {
    Name name = intern(arena_printf(w->arena, "%s%d", prefix, w->n_sources++));
    return wild_add(w, build_first(build(&w->b, op, NULL, .name = name, .dtype = dtype, .dims = dims, .lr = 1,
                                         .init = op == OP_PARAM ? intern("zeros") : NULL)));
}

static inline int64_t wild_size(Choices *c) {
    static const int size[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65, 70};
    return size[pick(c, 2) ? pick(c, 6) : pick(c, (int)(sizeof size / sizeof *size))];
}

// With the leaf axis in front where there is one, mostly.
static inline Dims wild_dims(Wild *w) {
    Dims d = {0};
    if (w->g->leaf && pick(w->choices, 4)) d.at[d.n++] = (Dim){1, w->g->leaf};
    for (int n = 1 + pick(w->choices, 3); n > 0; n--) d.at[d.n++] = dim_n(wild_size(w->choices));
    return d;
}

static inline bool wild_kind(DType t, int kind) {
    return kind == K_ANY      ? true
           : kind == K_NUMBER ? t != BOOL
           : kind == K_FLOAT  ? dtype_is_float(t)
           : kind == K_INT    ? t == I32
           : kind == K_BOOL   ? t == BOOL
           : kind == K_F32    ? t == F32
                              : t == I32;
}

// A value that is there, of this kind and, if `like` is given, mostly of its shape; NULL: found none.
static inline Value *wild_value(Wild *w, int kind, const Type *like) {
    int wanted = like ? pick(w->choices, 8) : 0;
    Value *second = NULL;
    int n = w->values.n, start = pick(w->choices, n);
    for (int i = 0; i < n; i++) {
        Value *v = w->values.at[(start + i) % n];
        if (!wild_kind(v->type.dtype, kind)) continue;
        bool same = like && v->type.ndim == like->ndim &&
                    !memcmp(v->type.dim, like->dim, sizeof *like->dim * like->ndim);
        if (!like || same || !wanted) return v;
        second = v;
    }
    return second;
}

static inline Attrs wild_attrs(Wild *w, Op op, const Value *x) {
    Choices *c = w->choices;
    int ndim = x ? x->type.ndim : 1;
    static const DType dtype[] = {F32, I32, BOOL, BF16, F16};
    Attrs s = {.dtype = dtype[pick(c, 5)],
               .axis = ndim ? pick(c, ndim) : 0,
               .k = 1 + pick(c, 4),
               .experts = 1 + pick(c, 8),
               .reverse = pick(c, 2),
               .exclusive = pick(c, 2),
               .by_choice = pick(c, 2),
               .ta = pick(c, 2),
               .tb = pick(c, 2),
               .causal = pick(c, 2),
               .window = pick(c, 3) ? 0 : 1 + pick(c, 5),
               .scale = 0.25 * (1 + pick(c, 4)),
               .stream = pick(c, 4),
               .tolerance = 1e-3,
               .limit = 1 + pick(c, 6),
               .stride = 1 + pick(c, 2),
               .pad = pick(c, 2),
               .n = wild_size(c),
               .kernel = {2, {1 + pick(c, 3), 1 + pick(c, 3)}}};
    s.end = s.begin = pick(c, 4);
    s.end += 1 + pick(c, 16);
    if (op == OP_SLICE && x && ndim && pick(c, 2)) s.end = dim_bound(x->type.dim[s.axis]);
    if (op == OP_UNSLICE && x && ndim) s.n = dim_bound(x->type.dim[s.axis]) + s.begin + pick(c, 5);
    for (int i = 0; i < ndim; i++)
        if (pick(c, 2)) s.axes.at[s.axes.n++] = i;
    s.perm.n = ndim;
    for (int i = 0; i < ndim; i++) s.perm.at[i] = i;
    for (int i = ndim - 1; i > 0; i--) {
        int j = pick(c, i + 1);
        int64_t t = s.perm.at[i];
        s.perm.at[i] = s.perm.at[j];
        s.perm.at[j] = t;
    }
    s.dims = x && pick(c, 3) ? dims_of(&x->type) : wild_dims(w);
    if (op == OP_BROADCAST && x)
        for (int i = 0; i < ndim; i++) {
            s.dims.n = ndim;
            s.dims.at[i] = dim_is_1(x->type.dim[i]) ? dim_n(wild_size(c)) : x->type.dim[i];
        }
    if (op == OP_RESHAPE && ndim > 1) { // two neighbours become one
        int at = pick(c, ndim - 1);
        s.dims = dims_of(&x->type);
        if (!s.dims.at[at + 1].sym) {
            s.dims.at[at].n *= s.dims.at[at + 1].n;
            memmove(&s.dims.at[at + 1], &s.dims.at[at + 2], sizeof(Dim) * (size_t)(ndim - at - 2));
            s.dims.n--;
        }
    }
    Attrs used = {0}; // those the row lists
    static const size_t bytes[] = {[A_INT] = sizeof(int64_t),
                                   [A_REAL] = sizeof(double),
                                   [A_INTS] = sizeof(Ints),
                                   [A_DIMS] = sizeof(Dims),
                                   [A_GRAPH] = 0};
    for (const int *at = op_info[op].attrs; *at; at++) {
        const AttrInfo *info = &attr_info[*at - 1];
        if (bytes[info->kind])
            memcpy((char *)&used + info->offset, (char *)&s + info->offset, bytes[info->kind]);
    }
    return used;
}

// A row of the table with operands of its kinds; most of what does not fit is refused by the builder.
static inline void wild_any(Wild *w) {
    Op op = (Op)pick(w->choices, N_OPS);
    const OpInfo *info = &op_info[op];
    if (!op_is(op, PURE) || op_is(op, SOURCE)) {
        op = OP_FMA; // sources and effects have their own place
        info = &op_info[op];
    }
    if (op == OP_FUSED || op == OP_GATE || op == OP_CACHE || op == OP_ROUTE || op == OP_ROW_GROUP) return;
    Value *ins[MAX_NAMED + 1] = {NULL};
    int n = 0;
    for (; n < MAX_NAMED && info->ins[n].name; n++) {
        int kind = info->ins[n].kind;
        if (info->variadic && !info->ins[n + 1].name && pick(w->choices, 2)) break;
        if (kind < K_SAME)
            ins[n] = wild_value(w, kind, n ? &ins[0]->type : NULL);
        else
            for (int tries = 0; tries < 8 && !ins[n]; tries++) {
                Value *v = wild_value(w, K_ANY, &ins[kind - K_SAME]->type);
                if (v->type.dtype == ins[kind - K_SAME]->type.dtype) ins[n] = v;
            }
        if (!ins[n]) return;
    }
    Attrs attrs = wild_attrs(w, op, ins[0]);
    Node *made = build_node(&w->b, op, ins, &attrs);
    for (int i = 0; made && i < made->n_out; i++) {
        int64_t elements = type_bound_elements(&made->out[i].type);
        if (elements < 0 || elements > WILD_MOST_ELEMENTS) {
            graph_remove(made);
            return;
        }
    }
    for (int i = 0; made && i < made->n_out; i++) wild_add(w, &made->out[i]);
}

static inline Dim wild_last(const Value *v) { return v->type.dim[v->type.ndim - 1]; }

// x @ a parameter that fits.
static inline void wild_matmul(Wild *w) {
    Value *x = wild_value(w, K_FLOAT, NULL);
    if (!x || x->type.ndim < 2 || wild_last(x).sym) return;
    int64_t n = wild_size(w->choices);
    bool tb = pick(w->choices, 2);
    Dim d[2] = {wild_last(x), dim_n(n)};
    if (tb) d[1] = d[0], d[0] = dim_n(n);
    Value *p = wild_source(w, OP_PARAM, x->type.dtype, (Dims){2, {d[0], d[1]}}, "w");
    wild_add(w, make(&w->b, OP_MATMUL, INS(x, p), .tb = tb));
}

// Tokens to experts and back.
static inline void wild_route(Wild *w) {
    Choices *c = w->choices;
    int64_t experts = 1 + pick(c, 7), k = 1 + pick(c, 2), tokens = wild_size(c), width = wild_size(c);
    Dims e = {0}, x = {0};
    int64_t leaves = w->g->leaf ? w->g->leaf->bound : 1;
    if (w->g->leaf) e.at[e.n++] = x.at[x.n++] = (Dim){1, w->g->leaf};
    e.at[e.n++] = x.at[x.n++] = dim_n(tokens);
    e.at[e.n++] = dim_n(k);
    x.at[x.n++] = dim_n(width);
    // small ints: with few experts some are beyond them
    Value *choice = wild_source(w, OP_INPUT, I32, e, "e"), *token = wild_source(w, OP_INPUT, F32, x, "x");
    Value *most = build_const(&w->b, (double)experts - 1, I32);
    choice = build_binary(&w->b, OP_MIN, choice, most);
    Sym *sym = graph_add_sym(w->g, arena_printf(w->arena, "R%d", w->g->n_syms), SYM_RAGGED,
                             leaves * tokens * k, (int)experts, (int)leaves);
    Node *r = build(&w->b, OP_ROUTE, INS(choice), .experts = experts, .sym = sym);
    if (!r) return;
    Value *offsets = &r->out[0], *slot_of = &r->out[2];
    Value *from = make(&w->b, OP_DIV, INS(slot_of, build_const(&w->b, (double)k, I32)));
    Value *rows = wild_add(w, make(&w->b, OP_GATHER_ROWS, INS(token, from)));
    int64_t n = wild_size(c);
    bool tb = pick(c, 2);
    Value *p = wild_source(w, OP_PARAM, F32,
                           (Dims){3, {dim_n(experts), dim_n(tb ? n : width), dim_n(tb ? width : n)}}, "w");
    Value *y =
        rows && p ? wild_add(w, make(&w->b, OP_GROUPED_MATMUL, INS(rows, p, offsets), .tb = tb)) : NULL;
    if (!y) return;
    if (pick(c, 2)) y = wild_add(w, build_unary(&w->b, OP_TANH, y));
    switch (pick(c, 4)) {
    case 0:
        wild_add(w, make(&w->b, OP_GROUPED_DW, INS(rows, y, offsets), .k = 0));
        break;
    case 1:
        wild_add(w, make(&w->b, OP_GROUPED_SUM, INS(y, offsets), .k = 0));
        break;
    case 2: {
        Dims back = x;
        back.at[back.n - 1] = wild_last(y);
        wild_add(w, make(&w->b, OP_SCATTER_ADD_ROWS, INS(y, from), .dims = back));
        break;
    }
    default:
        wild_add(w, make(&w->b, OP_GATHER_ROWS, INS(y, &r->out[1]), .k = 0));
    }
    wild_add(w, make(&w->b, OP_ROW_GROUP, INS(offsets), .sym = sym));
    wild_add(w, make(&w->b, OP_COUNT, INS(choice), .experts = experts));
}

static inline void wild_attention(Wild *w) {
    Choices *c = w->choices;
    int64_t S = wild_size(c), C = pick(c, 2) ? S : wild_size(c), Hk = 1 + pick(c, 2),
            H = Hk * (1 + pick(c, 2));
    int64_t A = wild_size(c), V = pick(c, 2) ? A : wild_size(c);
    Dims lead = {0};
    if (w->g->leaf) lead.at[lead.n++] = (Dim){1, w->g->leaf};
    lead.at[lead.n++] = dim_n(1 + pick(c, 2));
    Value *in[3];
    int64_t size[3][3] = {{S, H, A}, {C, Hk, A}, {C, Hk, V}};
    for (int i = 0; i < 3; i++) {
        Dims d = lead;
        for (int k = 0; k < 3; k++) d.at[d.n++] = dim_n(size[i][k]);
        in[i] = wild_source(w, OP_INPUT, F32, d, "q");
    }
    Node *n = build(&w->b, OP_ATTENTION, INS(in[0], in[1], in[2]), .causal = pick(c, 2),
                    .window = pick(c, 2) ? 0 : 1 + pick(c, 9), .scale = 0.5);
    if (n) wild_add(w, &n->out[0]);
}

static inline void wild_head_loss(Wild *w) {
    Value *x = wild_value(w, K_F32, NULL);
    if (!x || x->type.ndim < 2 || wild_last(x).sym || type_ragged(&x->type)) return;
    Dims label = dims_of(&x->type);
    label.n--;
    Value *l = wild_source(w, OP_INPUT, I32, label, "l");
    Value *p = wild_source(w, OP_PARAM, F32, (Dims){2, {dim_n(wild_size(w->choices)), wild_last(x)}}, "w");
    Node *n = build(&w->b, OP_HEAD_LOSS, INS(x, p, l), .k = 0);
    if (n) wild_add(w, &n->out[0]);
}

// leafy: every input has a leaf axis, mostly.  At most 8 results are returned, the last ones.
static inline Graph *random_any_graph(Arena *a, Diag *d, int n_nodes, bool leafy, Choices *c) {
    Wild w = {.arena = a, .g = graph_new(a, "eval"), .choices = c};
    w.b = builder_end(w.g, d);
    if (leafy) w.g->leaf = graph_add_sym(w.g, "L", SYM_LEAF, 1 + pick(c, 4), 0, 0);
    Dims usual = wild_dims(&w);
    static const DType dtype[] = {F32, F32, F32, I32, BOOL, BF16, F16};
    for (int i = 0; i < 5; i++)
        wild_source(&w, OP_INPUT, dtype[i < 2 ? 0 : pick(c, 7)], i < 3 ? usual : wild_dims(&w),
                    pick(c, 4) ? "x" : "p");
    for (int i = 0; i < n_nodes; i++) {
        switch (pick(c, 24)) {
        case 0:
            wild_matmul(&w);
            break;
        case 1:
            wild_route(&w);
            break;
        case 2:
            wild_attention(&w);
            break;
        case 3:
            wild_head_loss(&w);
            break;
        case 4:
            wild_source(&w, OP_INPUT, dtype[pick(c, 7)], wild_dims(&w), "x");
            break;
        case 5: {
            Value *rng = wild_source(&w, OP_INPUT, I32, (Dims){1, {dim_n(4)}}, "x");
            wild_add(&w, make(&w.b, OP_RANDOM, INS(rng), .stream = pick(c, 3), .dtype = F32,
                              .dims = wild_dims(&w)));
            break;
        }
        default:
            wild_any(&w);
        }
        diag_clear(d);
    }
    for (int i = w.values.n - 1, n = 0; i >= 0 && n < 8; i--) {
        if (w.values.at[i]->node->op == OP_INPUT || w.values.at[i]->node->op == OP_PARAM) continue;
        build(&w.b, OP_RETURN, INS(w.values.at[i]), .name = intern(arena_printf(a, "y%d", n++)));
    }
    return w.g;
}

#endif
