// train.dtype = bf16: contractions read and write bf16; everything else, and every parameter, stays f32.
//
//     %h = mul %n, %g : f32[L,3,4]                   %h  = mul %n, %g : f32[L,3,4]
//     %w = param : f32[5,4]                          %hb = cast %h : bf16[L,3,4]
//     %y = matmul %h, %w {tb = 1} : f32[L,3,5]  =>   %w  = param : f32[5,4]
//                                                    %wb = cast %w : bf16[5,4]
//                                                    %yb = matmul %hb, %wb {tb = 1} : bf16[L,3,5]
//                                                    %y  = cast %yb : f32[L,3,5]
//
// Casts fuse into the bodies before and behind, so what is stored between a body and a contraction is bf16,
// and what a body computes (norms, softmax, losses, statistics, the residual stream) is f32.  Parameters are
// their own f32 masters, and the sums over rows that are their gradients are f32.  head_loss computes its losses in
// f32 and rounds the gradient of the logits to bf16 before it multiplies it.
//
// Stays f32: the contraction that makes a router's scores.  From choices (topk, queue, route, gates) we walk
// up through everything else to the first contraction.  Narrowing casts move above gathers and reshapes: less
// is copied.
#include <string.h>
#include "passes/util.h"

static bool is_contraction(const Node *n) {
    return n->op == OP_MATMUL || n->op == OP_GROUPED_MATMUL || n->op == OP_ATTENTION || n->op == OP_HEAD_LOSS;
}

static int n_narrowed(const Node *n) { return n->op == OP_ATTENTION ? 3 : 2; }     // q k v; a b; x w

enum { CHOOSES = 1 };         // Node.flags: a choice depends on it with no contraction between

static void find_choosers(Graph *g) {
    for_each_node(g, n) n->flags = 0;
    for_each_node_reverse(g, n) {
        bool is_choice = n->op == OP_TOPK || n->op == OP_QUEUE || n->op == OP_ROUTE || n->op == OP_GATE ||
                         n->op == OP_SINKHORN;
        bool hands_on = (n->flags & CHOOSES) && !is_contraction(n);
        for (int i = 0; i < n->n_in; i++)
            if (is_choice || hands_on) n->in[i]->node->flags |= CHOOSES;
    }
}

static Value *narrow(Builder *b, PtrMap *made, Value *x, DType type);

// What is cached for contractions alone is cached narrow.
static Value *narrowed_cache(Builder *b, Node *n, Value *rows) {
    Node *state = n->in[0]->node;
    state->attr.dtype = state->out[0].type.dtype = rows->type.dtype;
    return make(b, OP_CACHE, INS(n->in[0], rows), .sym = n->attr.sym);
}

// One narrow value of each, at its first reader: several contractions then have the same operand.  made NULL: one for
// each reader, since a gradient of all would be summed in the narrow type.
static Value *narrowed(Builder *b, PtrMap *made, Value *x, DType type) {
    Node *n = x->node;
    if (x->type.dtype != F32) return x;
    if (n->op == OP_CAST && n->in[0]->type.dtype == type) return n->in[0];
    Value *there = made ? map_get(made, x) : NULL;
    if (there) return there;
    there = narrow(b, made, x, type);
    if (made) map_put(made, x, there);
    return there;
}

static Value *narrow(Builder *b, PtrMap *made, Value *x, DType type) {
    Node *n = x->node;
    Dims dims = dims_of(&x->type);
    if (n->op == OP_RESHAPE) return build_reshape(b, narrowed(b, made, n->in[0], type), &dims);
    if (n->op == OP_GATHER_ROWS)
        return make(b, OP_GATHER_ROWS, INS(narrowed(b, made, n->in[0], type), n->in[1]), 0);
    if (n->op == OP_CACHE && x->n_uses == 1 && n->in[0]->n_uses == 1 && n->in[0]->node->op == OP_STATE)
        return narrowed_cache(b, n, narrowed(b, made, n->in[1], type));
    return build_cast(b, x, type);
}

// ---- weights of @run ------------------------------------------------------------------------------------
//
//     %w = param : f32[V,D]                               %w = param : bf16[V,D]
//     %x = gather_rows %w, %ids : f32[S,D]           =>   %g = gather_rows %w, %ids : bf16[S,D]
//                                                         %x = cast %g : f32[S,D]
//     %b = cast %w : bf16[V,D]
//     %y = matmul %h, %b {tb = 1} : bf16[S,V]             %y = matmul %h, %w {tb = 1} : bf16[S,V]
//
// Who generates has one number per weight, the one that contractions read.  Where the program set has its
// parameters to itself it is stored; else (a trainer's @run) it is made from the master at each call.

enum { NARROW = 2 };          // Node.flags of a parameter: a contraction reads it as `type`

static bool narrows_param(const Node *n, DType type) {
    return n->op == OP_CAST && n->in[0]->node->op == OP_PARAM && n->in[0]->type.dtype == F32 &&
           n->out[0].type.dtype == type;
}

// The number of every parameter that has one, as its value's mark.
static int narrow_params(Graph *g, const PassCtx *cx, DType type) {
    int count = 0;
    for_each_node(g, n) n->flags = 0;
    for_each_node(g, n)
        if (narrows_param(n, type)) n->in[0]->node->flags = NARROW;
    for_each_node(g, n) {
        if (!(n->flags & NARROW)) continue;
        count++;
        if (cx->own_parameters) {
            n->attr.dtype = n->out[0].type.dtype = type;
            n->out[0].mark = &n->out[0];
        } else {
            Builder b = builder_before(g, n->next);
            n->out[0].mark = build_cast(&b, &n->out[0], type);
        }
    }
    return count;
}

static int narrow_weights(Graph *g, const PassCtx *cx, DType type) {
    marks_clear(g);
    int count = narrow_params(g, cx, type);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++) {
            Value *x = n->in[i], *number = x->mark;
            if (!number || &n->out[0] == number) continue;
            Builder b = builder_before(g, n);
            if (x->node->op != OP_PARAM) replace_operand(n, i, number);
            else if (n->op == OP_CAST && n->out[0].type.dtype == type) n->out[0].mark = number;
            else if (n->op == OP_GATHER_ROWS && i == 0)
                n->out[0].mark = build_cast(&b, make(&b, OP_GATHER_ROWS, INS(number, n->in[1]), 0), F32);
            else replace_operand(n, i, build_cast(&b, number, F32));
        }
    for_each_node_reverse(g, n) {
        if (n->op != OP_PARAM && n->n_out && n->out[0].mark && !n->out[0].n_uses) graph_remove(n);
        n->flags = 0;
    }
    marks_clear(g);
    return count;
}

bool pass_precision(Graph *g, PassCtx *cx) {
    if (!cx->train || !strcmp(cx->train->dtype, "f32")) return false;
    DType type = !strcmp(cx->train->dtype, "bf16") ? BF16 : F16;
    if (type == F16 && !strcmp(g->name, "pass")) {
        diag_error(cx->diag, (Span){0},
                   "train.dtype is f16, whose gradients underflow; bf16 has the range of f32");
        return false;
    }
    int n_narrow = 0, n_wide = 0;
    PtrMap map = {.arena = cx->scratch}, *made = strcmp(g->name, "pass") ? &map : NULL;
    find_choosers(g);
    marks_clear(g);
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        if (!is_contraction(n) || n->in[0]->type.dtype != F32) continue;
        if (n->flags & CHOOSES) {
            n_wide++;
            continue;
        }
        Builder b = builder_before(g, n);
        Value **ins = arena_array(cx->scratch, Value *, n->n_in + 1);
        for (int i = 0; i < n->n_in; i++)
            ins[i] = i < n_narrowed(n) ? narrowed(&b, made, n->in[i], type) : n->in[i];
        Node *m = build_node(&b, n->op, ins, &n->attr);
        for (int i = 0; i < n->n_out; i++) {
            n->out[i].mark = build_cast(&b, &m->out[i], n->out[i].type.dtype);
            m->out[i].name = n->out[i].name;
        }
        n_narrow++;
    }
    for_each_node_reverse(g, n) {
        bool is_replaced = is_contraction(n) && n->n_out && n->out[0].mark;
        bool is_wide_cache = n->op == OP_CACHE && n->in[0]->type.dtype != n->in[1]->type.dtype;
        if (is_replaced || is_wide_cache) graph_remove(n);
        n->flags = 0;
    }
    marks_clear(g);
    int n_weights = strcmp(g->name, "run") ? 0 : narrow_weights(g, cx, type);
    TRACE(cx, "precision: %d contractions in %s, %d of routers in f32, %d parameters in %s\n", n_narrow,
          cx->train->dtype, n_wide, n_weights, cx->train->dtype);
    return n_narrow > 0;
}
