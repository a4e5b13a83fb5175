// Contractions, attention, losses and convolutions; what depends on the place of a token in its sequence;
// random numbers; what is summed over the whole step.
//
//   x @ w.T               ->  matmul {tb = 1}, and grouped_matmul {tb = 1} inside an expert
//   cross_entropy(z, y)   ->  nll = logsumexp(z) - take(z, y); sum(nll) / max(count, 1), one number per leaf
//   conv2d(x, w)          ->  patches, matmul, permute
#include <assert.h>
#include <math.h>
#include <string.h>
#include "frontend/lower_ops.h"

static TVal *scalar(OpCx *cx, double value, DType dtype) {
    return t_new(cx, build_const(cx->b, value, dtype), (LType){0}, LEAD_NONE);
}

// ---- matmul ---------------------------------------------------------------------------------------------

static const Poly *dim_back(const LType *t, int axis) { return t->dim[t->ndim - axis]; }

// b as the graph reads it: what stands before .T, with tb = 1.
static TVal *matmul_operand(OpCx *cx, TVal *b, DType dtype, int *tb) {
    *tb = b->transpose_of != NULL;
    return t_cast(cx, b->transpose_of ? (TVal *)b->transpose_of : b, dtype);
}

static TVal *row_dependence(OpCx *cx) {
    return op_error(cx, cx->at,
                    "inside an expert a row may not depend on other rows: axis 0 is the rows of the expert");
}

// Rows of an expert on the left.
static TVal *expert_matmul(OpCx *cx, TVal *a, TVal *b, DType dtype) {
    int tb;
    LType type = a->type;
    type.dim[type.ndim - 1] = dim_back(&b->type, 1);
    TVal *x = t_cast(cx, a, dtype), *w = matmul_operand(cx, b, dtype, &tb);
    if (!x || !w) return NULL;
    if (b->per_expert) {
        if (a->type.ndim != 2 || b->type.ndim != 2)
            return op_error(cx, cx->at,
                            "matmul: inside an expert rows [rows, %s] meet a matrix, these are %s and %s",
                            poly_text(cx->lw, dim_back(&a->type, 1)), ltype_text(cx->lw, &a->type),
                            ltype_text(cx->lw, &b->type));
        return t_new(cx, make(cx->b, OP_GROUPED_MATMUL, INS(x->v, w->v, a->type.rows->offsets), .tb = tb),
                     type, LEAD_NONE);
    }
    if (b->leafy)
        return op_error(cx, cx->at, "matmul: inside an expert %s is not available: it belongs to the tokens",
                        ltype_text(cx->lw, &b->type));
    if (is_expert_rows(b) && b->type.ndim != a->type.ndim) return row_dependence(cx);
    if (!is_expert_rows(b) && b->type.ndim != 2)
        return op_error(cx, cx->at, "matmul: inside an expert the right side is a matrix, this is %s",
                        ltype_text(cx->lw, &b->type));
    return t_new(cx, make(cx->b, OP_MATMUL, INS(x->v, w->v), .tb = tb), type, LEAD_NONE);
}

// Batches on both sides: leading axes stretch to a common shape.
static TVal *batch_matmul(OpCx *cx, TVal *a, TVal *b, DType dtype, Lead lead) {
    int tb, na = a->type.ndim - 2, nb = b->type.ndim - 2, n = na > nb ? na : nb;
    LType batch = {.ndim = n};
    for (int i = 1; i <= n; i++) {
        const Poly *p = i <= na ? a->type.dim[na - i] : NULL, *q = i <= nb ? b->type.dim[nb - i] : NULL;
        const Poly *one = poly_int(cx->lw, 1), *d = !p || p == one ? (q ? q : p) : p;
        if (p && q && p != q && p != one && q != one)
            return op_error(cx, cx->at, "matmul: the leading axes of %s and %s do not agree",
                            shape_text(cx, &a->type), shape_text(cx, &b->type));
        batch.dim[n - i] = d;
    }
    TVal *x = t_with_lead(cx, t_cast(cx, a, dtype), lead),
         *w = t_with_lead(cx, matmul_operand(cx, b, dtype, &tb), lead);
    if (!x || !w) return NULL;
    LType tx = batch, tw = batch;
    for (int i = 2; i >= 1; i--) {
        tx.dim[tx.ndim++] = dim_back(&x->type, i);
        tw.dim[tw.ndim++] = dim_back(&w->type, i);
    }
    if (!same_dims(&tx, &x->type)) x = t_expand(cx, x, &tx);
    if (!same_dims(&tw, &w->type)) w = t_expand(cx, w, &tw);
    if (!x || !w) return NULL;
    LType type = x->type;
    type.dim[type.ndim - 1] = dim_back(&b->type, 1);
    return t_new(cx, make(cx->b, OP_MATMUL, INS(x->v, w->v), .tb = tb), type, lead);
}

TVal *t_matmul(OpCx *cx, TVal *a, TVal *b, const Val *a_val, const Val *b_val) {
    if (!a || !b) return NULL;
    TVal *both[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (t_lead(both[i]) == LEAD_ROWS) {
            op_error(cx, cx->at, "matmul: these are rows grouped by expert, %s",
                     ltype_text(cx->lw, &both[i]->type));
            diag_help(cx->lw->diag, "each_expert(f, rows) runs f on the rows of each expert");
            return NULL;
        }
        if (both[i]->type.ndim < 2)
            return op_error(cx, cx->at, "matmul: %s has %s, a matrix has two",
                            ltype_text(cx->lw, &both[i]->type), both[i]->type.ndim ? "one axis" : "no axes");
    }
    if (is_expert_rows(b) && b->type.ndim == 2) return row_dependence(cx);
    const Poly *columns = dim_back(&a->type, 1), *rows = dim_back(&b->type, 2);
    if (columns != rows) {
        op_error(cx, cx->at, "matmul: a has %s columns, b has %s rows", poly_text(cx->lw, columns),
                 poly_text(cx->lw, rows));
        op_note_made(cx, a_val, a);
        op_note_made(cx, b_val, b);
        if (dim_back(&b->type, 1) == columns && b->what && !b->transpose_of)
            diag_help(cx->lw->diag, "%s.T has %s rows", b->what, poly_text(cx->lw, columns));
        return NULL;
    }
    DType dtype = float_dtype(common_dtype(
        cx, 2, (const Val *[]){&(Val){.kind = V_TENSOR, .t = a}, &(Val){.kind = V_TENSOR, .t = b}}));
    if (is_expert_rows(a)) return expert_matmul(cx, a, b, dtype);
    if (is_expert_rows(b)) return row_dependence(cx);
    Lead la = t_lead(a), lb = t_lead(b);
    if (la != LEAD_NONE && lb != LEAD_NONE && la != lb)
        return op_error(cx, cx->at, "matmul: inside an expert %s is not available: it belongs to the tokens",
                        ltype_text(cx->lw, &(la == LEAD_LEAF ? a : b)->type));
    if (lb == LEAD_NONE && b->type.ndim == 2) { // all leading axes of a are rows
        int tb;
        LType type = a->type;
        type.dim[type.ndim - 1] = dim_back(&b->type, 1);
        TVal *x = t_cast(cx, a, dtype), *w = matmul_operand(cx, b, dtype, &tb);
        return x && w ? t_new(cx, make(cx->b, OP_MATMUL, INS(x->v, w->v), .tb = tb), type, la) : NULL;
    }
    Lead lead = la != LEAD_NONE ? la : lb;
    if (b->type.ndim > 2 || a->type.ndim == 2) return batch_matmul(cx, a, b, dtype, lead);
    LType type = a->type; // one matrix per leaf, many rows
    type.dim[type.ndim - 1] = dim_back(&b->type, 1);
    return t_reshape(cx, batch_matmul(cx, t_flat(cx, a, 0, a->type.ndim - 1), b, dtype, lead), &type);
}

// ---- einsum ---------------------------------------------------------------------------------------------
// "s n d, t n d -> n s t": both sides are permuted to [batch, kept, summed] and [batch, summed, kept].

enum { MAX_TERMS = 2 };
typedef struct {
    int n;
    const char *at[MAX_DIM];
} Names;

static bool read_names(OpCx *cx, const char **text, Names *out) {
    *out = (Names){0};
    for (const char *s = *text;;) {
        while (*s == ' ') s++;
        size_t len = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
        if (!len) {
            *text = s;
            return true;
        }
        if (out->n == MAX_DIM) {
            op_error(cx, cx->arg_at[0], "einsum: a tensor has at most %d axes", MAX_DIM - 1);
            return false;
        }
        out->at[out->n++] = intern_n(s, len);
        s += len;
    }
}

static int name_index(const Names *n, const char *name) {
    for (int i = 0; i < n->n; i++)
        if (n->at[i] == name) return i;
    return -1;
}

static bool parse_einsum(OpCx *cx, const char *text, Names *term, int *n_terms, Names *out) {
    for (*n_terms = 0;; text++) {
        if (*n_terms == MAX_TERMS) break;
        if (!read_names(cx, &text, &term[(*n_terms)++])) return false;
        if (*text != ',') break;
    }
    if (text[0] == '-' && text[1] == '>') {
        text += 2;
        if (!read_names(cx, &text, out)) return false;
        if (!*text) return true;
    }
    op_error(cx, cx->arg_at[0], "einsum: names of axes are expected, as in \"s n d, t n d -> n s t\"");
    return false;
}

// Sums the axes that stand nowhere else.
static TVal *sum_alone(OpCx *cx, TVal *x, Names *names, const Names *other, const Names *out) {
    Ints axes = {0};
    Names kept = {0};
    for (int i = 0; i < names->n; i++) {
        if (name_index(out, names->at[i]) >= 0 || (other && name_index(other, names->at[i]) >= 0))
            kept.at[kept.n++] = names->at[i];
        else
            axes.at[axes.n++] = i;
    }
    for (int i = 0; i < axes.n; i++)
        if (!rows_axis_free(cx, x, (int)axes.at[i], cx->at)) return NULL;
    *names = kept;
    return axes.n ? t_sum(cx, x, &axes, false) : x;
}

// Orders the axes of x by `names`, which holds the same names.
static TVal *order_axes(OpCx *cx, TVal *x, const Names *have, const Names *want) {
    int perm[MAX_DIM];
    for (int i = 0; i < want->n; i++) perm[i] = name_index(have, want->at[i]);
    return t_permute(cx, x, perm);
}

static OpResult op_einsum(OpCx *cx) {
    Names term[MAX_TERMS], out, batch = {0}, left = {0}, right = {0}, summed = {0};
    int n_terms;
    if (!parse_einsum(cx, cx->arg[0].str, term, &n_terms, &out)) return op_failed(cx);
    if (n_terms != 1 + cx->given[2]) {
        op_error(cx, cx->arg_at[0], "einsum: %d tensors are named, %d given", n_terms, 1 + cx->given[2]);
        return op_failed(cx);
    }
    TVal *x[MAX_TERMS] = {cx->arg[1].t, cx->given[2] ? cx->arg[2].t : NULL};
    const Poly *size[MAX_TERMS * MAX_DIM];
    Names all = {0};
    for (int t = 0; t < n_terms; t++) {
        if (term[t].n != x[t]->type.ndim) {
            op_error(cx, cx->arg_at[1 + t], "einsum: %d axes are named, this is %s", term[t].n,
                     ltype_text(cx->lw, &x[t]->type));
            return op_failed(cx);
        }
        for (int i = 0; i < term[t].n; i++) {
            int k = name_index(&all, term[t].at[i]);
            if (name_index(&term[t], term[t].at[i]) != i || (k < 0 && all.n == MAX_DIM)) {
                op_error(cx, cx->arg_at[0],
                         "einsum: axis '%s' stands twice in one tensor, or there are too many",
                         term[t].at[i]);
                return op_failed(cx);
            }
            if (k < 0) all.at[k = all.n++] = term[t].at[i], size[k] = x[t]->type.dim[i];
            if (size[k] == x[t]->type.dim[i]) continue;
            op_error(cx, cx->at, "einsum: axis '%s' is %s in one tensor and %s in the other", term[t].at[i],
                     poly_text(cx->lw, size[k]), poly_text(cx->lw, x[t]->type.dim[i]));
            return op_failed(cx);
        }
    }
    for (int i = 0; i < out.n; i++) {
        if (name_index(&all, out.at[i]) >= 0 && name_index(&out, out.at[i]) == i) continue;
        op_error(cx, cx->arg_at[0],
                 "einsum: axis '%s' of the result must stand in a tensor, once in the result", out.at[i]);
        return op_failed(cx);
    }
    for (int t = 0; t < n_terms; t++) {
        x[t] = sum_alone(cx, x[t], &term[t], n_terms == 2 ? &term[1 - t] : NULL, &out);
        if (!x[t]) return op_failed(cx);
    }
    if (n_terms == 1) return op_one(cx, order_axes(cx, x[0], &term[0], &out));

    for (int i = 0; i < term[0].n; i++) {
        const char *name = term[0].at[i];
        bool in_b = name_index(&term[1], name) >= 0, in_out = name_index(&out, name) >= 0;
        Names *to = !in_b ? &left : in_out ? &batch : &summed;
        to->at[to->n++] = name;
    }
    for (int i = 0; i < term[1].n; i++)
        if (name_index(&term[0], term[1].at[i]) < 0) right.at[right.n++] = term[1].at[i];
    // [batch, left, summed] @ [batch, summed, right], each group joined to one axis
    Names order[2] = {{0}, {0}}, flat = {0};
    const Names *group[2][3] = {{&batch, &left, &summed}, {&batch, &summed, &right}};
    TVal *y[2];
    for (int t = 0; t < 2; t++) {
        LType joined = {0};
        for (int g = 0; g < 3; g++) {
            const Poly *n = poly_int(cx->lw, 1);
            for (int i = 0; i < group[t][g]->n; i++) {
                const char *name = group[t][g]->at[i];
                order[t].at[order[t].n++] = name;
                n = poly_mul(cx->lw, n, size[name_index(&all, name)]);
            }
            if (g || batch.n) joined.dim[joined.ndim++] = n;
        }
        y[t] = t_reshape(cx, order_axes(cx, x[t], &term[t], &order[t]), &joined);
    }
    TVal *z = t_matmul(cx, y[0], y[1], NULL, NULL);
    LType full = {0};
    const Names *parts[3] = {&batch, &left, &right};
    for (int g = 0; g < 3; g++)
        for (int i = 0; i < parts[g]->n; i++) {
            flat.at[flat.n++] = parts[g]->at[i];
            full.dim[full.ndim++] = size[name_index(&all, parts[g]->at[i])];
        }
    z = t_reshape(cx, z, &full);
    return op_one(cx, z ? order_axes(cx, z, &flat, &out) : NULL);
}

// ---- attention ------------------------------------------------------------------------------------------

enum { A_Q, A_K, A_V, A_MASK, A_WINDOW, A_SCALE, A_SINKS, A_BIAS, A_VALID, A_DOCUMENTS };
enum { HAS_SINKS = 1, HAS_BIAS = 2, HAS_VALID = 4, HAS_DOCUMENTS = 8 };

static bool attention_shapes(OpCx *cx, TVal *const *x) {
    const LType *q = &x[0]->type, *k = &x[1]->type, *v = &x[2]->type;
    bool fits = q->ndim >= 3 && k->ndim == q->ndim && v->ndim == q->ndim;
    for (int i = 0; fits && i < q->ndim - 3; i++) fits = q->dim[i] == k->dim[i] && k->dim[i] == v->dim[i];
    fits = fits && dim_back(k, 3) == dim_back(v, 3) && dim_back(k, 2) == dim_back(v, 2) &&
           dim_back(q, 1) == dim_back(k, 1);
    if (!fits) {
        op_error(
            cx, cx->at,
            "attention needs q [B, S, N, d], k [B, C, KV, d] and v [B, C, KV, e], these are %s, %s and %s",
            shape_text(cx, q), shape_text(cx, k), shape_text(cx, v));
        return false;
    }
    int64_t heads, key_heads;
    if (!poly_known(cx, dim_back(q, 2), &heads) || !poly_known(cx, dim_back(k, 2), &key_heads) ||
        key_heads < 1 || heads % key_heads) {
        op_error(cx, cx->at, "attention: %s key heads do not divide %s query heads",
                 poly_text(cx->lw, dim_back(k, 2)), poly_text(cx->lw, dim_back(q, 2)));
        return false;
    }
    return true;
}

// valid and documents: one entry for each key.
static bool names_keys(OpCx *cx, int param, DType dtype, const LType *k) {
    const TVal *t = cx->arg[param].t;
    LType keys = *k;
    keys.ndim -= 2;
    keys.dtype = dtype;
    if (t->type.dtype == dtype && same_dims(&t->type, &keys)) return true;
    op_error(cx, cx->arg_at[param], "attention: '%s' is %s, this is %s", cx->row->param[param].name,
             ltype_text(cx->lw, &keys), ltype_text(cx->lw, &t->type));
    op_note_made(cx, &cx->arg[param], t);
    return false;
}

// A bias [B, N, S, C] or what stretches to it; leading axes may be missing.
static Value *attention_bias(OpCx *cx, const LType *q, const LType *k) {
    TVal *bias = t_cast(cx, cx->arg[A_BIAS].t, F32);
    LType want = *q;
    int64_t n;
    want.rows = NULL;
    want.dim[want.ndim - 3] = dim_back(q, 2);
    want.dim[want.ndim - 2] = dim_back(q, 3);
    want.dim[want.ndim - 1] = dim_back(k, 3);
    if (!bias) return NULL;
    bool fits = bias->type.ndim >= 3 && bias->type.ndim <= want.ndim;
    for (int i = 1; fits && i <= bias->type.ndim; i++)
        fits = dim_back(&bias->type, i) == dim_back(&want, i) ||
               (poly_is_int(dim_back(&bias->type, i), &n) && n == 1);
    if (!fits)
        return op_error(cx, cx->arg_at[A_BIAS], "attention: 'bias' is %s, this is %s", shape_text(cx, &want),
                        shape_text(cx, &bias->type));
    while (bias && t_shift(bias) && bias->type.ndim < want.ndim) bias = t_insert_axis(cx, bias, 0);
    return bias ? bias->v : NULL;
}

static OpResult op_attention(OpCx *cx) {
    TVal *x[3] = {cx->arg[A_Q].t, cx->arg[A_K].t, cx->arg[A_V].t};
    const Val *given[3] = {&cx->arg[A_Q], &cx->arg[A_K], &cx->arg[A_V]};
    int64_t window = 0, d;
    double scale;
    if (!attention_shapes(cx, x)) return op_failed(cx);
    DType dtype = float_dtype(common_dtype(cx, 3, given));
    for (int i = 0; i < 3; i++) x[i] = t_cast(cx, x[i], dtype);
    if (!t_same_lead(cx, 3, x)) return op_failed(cx);
    const LType *q = &x[0]->type, *k = &x[1]->type;
    if (cx->given[A_WINDOW] && (!arg_int(cx, A_WINDOW, &window) || window < 1)) {
        if (window < 0 || cx->arg[A_WINDOW].kind == V_NUM)
            op_error(cx, cx->arg_at[A_WINDOW], "attention: a window sees at least 1 key, not %lld",
                     (long long)window);
        return op_failed(cx);
    }
    if (cx->given[A_SCALE]) {
        if (!arg_num(cx, A_SCALE, &scale)) return op_failed(cx);
    } else {
        if (!poly_known(cx, dim_back(q, 1), &d)) return op_failed(cx);
        scale = 1 / sqrt((double)d);
    }
    int has = 0, n = 3;
    Value *in[8] = {x[0]->v, x[1]->v, x[2]->v};
    if (cx->given[A_SINKS]) {
        TVal *s = cx->arg[A_SINKS].t;
        if (s->type.ndim != 1 || s->type.dim[0] != dim_back(q, 2) || t_lead(s) != LEAD_NONE ||
            !dtype_is_float(s->type.dtype)) {
            op_error(cx, cx->arg_at[A_SINKS], "attention: 'sinks' is a parameter [%s], this is %s",
                     poly_text(cx->lw, dim_back(q, 2)), ltype_text(cx->lw, &s->type));
            return op_failed(cx);
        }
        has |= HAS_SINKS;
        in[n++] = build_cast(cx->b, s->v, F32);
    }
    if (cx->given[A_BIAS]) {
        has |= HAS_BIAS;
        if (!(in[n++] = attention_bias(cx, q, k))) return op_failed(cx);
    }
    if (cx->given[A_VALID]) {
        if (!names_keys(cx, A_VALID, BOOL, k)) return op_failed(cx);
        has |= HAS_VALID;
        in[n++] = cx->arg[A_VALID].t->v;
    }
    if (cx->given[A_DOCUMENTS]) {
        if (!names_keys(cx, A_DOCUMENTS, I32, k)) return op_failed(cx);
        has |= HAS_DOCUMENTS;
        in[n++] = cx->arg[A_DOCUMENTS].t->v;
    }
    LType type = *q;
    type.dim[type.ndim - 1] = dim_back(&x[2]->type, 1);
    Value *o = make(cx->b, OP_ATTENTION, in, .causal = !strcmp(cx->arg[A_MASK].str, "causal"),
                    .window = window, .scale = scale, .has = has);
    return op_one(cx, t_new(cx, o, type, t_lead(x[0])));
}

// ---- cross entropy --------------------------------------------------------------------------------------

enum { IGNORED_LABEL = -100 };

static OpResult op_cross_entropy(OpCx *cx) {
    TVal *z = t_cast(cx, cx->arg[0].t, F32), *label = cx->arg[1].t;
    LType want = cx->arg[0].t->type;
    double smoothing;
    if (!z || !arg_num(cx, 2, &smoothing)) return op_failed(cx);
    want.ndim--;
    if (want.ndim < 0 || label->type.dtype != I32 || !same_dims(&want, &label->type)) {
        op_error(cx, cx->at, "cross_entropy needs logits [..., V] and labels i32[...], these are %s and %s",
                 ltype_text(cx->lw, &cx->arg[0].t->type), ltype_text(cx->lw, &label->type));
        op_note_made(cx, &cx->arg[0], cx->arg[0].t);
        return op_failed(cx);
    }
    TVal *both[2] = {z, label};
    if (!t_same_lead(cx, 2, both)) return op_failed(cx);
    z = both[0];
    label = t_insert_axis(cx, both[1], both[1]->type.ndim);
    int last = z->type.ndim - 1;
    TVal *counts = t_unary(cx, OP_NOT, t_binary_number(cx, OP_EQ, label, IGNORED_LABEL));
    TVal *index = t_select(cx, counts, label, scalar(cx, -1, I32));
    if (!index) return op_failed(cx);
    LType one = z->type;
    one.dim[last] = poly_int(cx->lw, 1);
    TVal *lse = t_new(cx, build_unary(cx->b, OP_LOGSUMEXP, z->v), one, t_lead(z));
    TVal *nll = t_binary(cx, OP_SUB, lse, t_take(cx, z, index));
    if (smoothing > 0) { // a share of the target is spread over all classes
        TVal *spread = t_binary(cx, OP_SUB, lse, t_mean(cx, z, &(Ints){1, {last}}, true));
        spread = t_binary_number(cx, OP_MUL, spread, smoothing);
        nll = t_binary(cx, OP_ADD, t_binary_number(cx, OP_MUL, nll, 1 - smoothing), spread);
    }
    nll = t_select(cx, counts, nll, scalar(cx, 0, F32));
    Ints all = {0};
    for (int i = 0; i <= last; i++) all.at[all.n++] = i;
    TVal *n = t_sum(cx, t_cast(cx, counts, F32), &all, false);
    n = t_binary(cx, OP_MAX, n, scalar(cx, 1, F32));
    return op_one(cx, t_binary(cx, OP_DIV, t_sum(cx, nll, &all, false), n));
}

// ---- convolution ----------------------------------------------------------------------------------------

// x [.., C, H, W] as patches [.., OH, OW, C*kh*kw].
static TVal *patches(OpCx *cx, TVal *x, int64_t kh, int64_t kw, int64_t stride, int64_t pad) {
    int64_t c, h, w;
    if (!x) return NULL;
    bool known = x->type.ndim >= 3 && poly_known(cx, dim_back(&x->type, 3), &c) &&
                 poly_known(cx, dim_back(&x->type, 2), &h) && poly_known(cx, dim_back(&x->type, 1), &w);
    if (!known || stride < 1 || pad < 0 || kh < 1 || kw < 1 || h + 2 * pad < kh || w + 2 * pad < kw)
        return op_error(cx, cx->at, "%s: a window of %lld x %lld with stride %lld does not fit an image %s",
                        cx->op, (long long)kh, (long long)kw, (long long)stride,
                        ltype_text(cx->lw, &x->type));
    LType t = x->type;
    t.dim[t.ndim - 3] = poly_int(cx->lw, (h + 2 * pad - kh) / stride + 1);
    t.dim[t.ndim - 2] = poly_int(cx->lw, (w + 2 * pad - kw) / stride + 1);
    t.dim[t.ndim - 1] = poly_int(cx->lw, c * kh * kw);
    return t_new(cx,
                 make(cx->b, OP_PATCHES, INS(x->v), .kernel = {2, {kh, kw}}, .stride = stride, .pad = pad), t,
                 t_lead(x));
}

// [.., OH, OW, C] -> [.., C, OH, OW]
static TVal *channels_first(OpCx *cx, TVal *x) {
    if (!x) return NULL;
    int perm[MAX_DIM], n = x->type.ndim;
    for (int i = 0; i < n; i++) perm[i] = i;
    perm[n - 3] = n - 1;
    perm[n - 2] = n - 3;
    perm[n - 1] = n - 2;
    return t_permute(cx, x, perm);
}

static OpResult op_conv2d(OpCx *cx) {
    TVal *x = cx->arg[0].t, *w = cx->arg[1].t;
    int64_t stride, pad, kh, kw;
    if (!arg_int(cx, 3, &stride) || !arg_int(cx, 4, &pad)) return op_failed(cx);
    if (w->type.ndim != 4 || x->type.ndim < 3 || w->type.dim[1] != dim_back(&x->type, 3) ||
        t_lead(w) != LEAD_NONE || !poly_known(cx, w->type.dim[2], &kh) ||
        !poly_known(cx, w->type.dim[3], &kw)) {
        op_error(cx, cx->at, "conv2d needs x [B, I, Y, X] and w [O, I, y, x], these are %s and %s",
                 ltype_text(cx->lw, &x->type), ltype_text(cx->lw, &w->type));
        return op_failed(cx);
    }
    DType t = float_dtype(common_dtype(cx, 2, (const Val *[]){&cx->arg[0], &cx->arg[1]}));
    TVal *p = patches(cx, t_cast(cx, x, t), kh, kw, stride, pad), *flat = t_flat(cx, t_cast(cx, w, t), 1, 4);
    if (!p || !flat) return op_failed(cx);
    LType type = p->type;
    type.dim[type.ndim - 1] = w->type.dim[0];
    TVal *y = t_new(cx, make(cx->b, OP_MATMUL, INS(p->v, flat->v), .tb = 1), type, t_lead(p));
    if (cx->given[2]) {
        TVal *bias = cx->arg[2].t;
        if (bias->type.ndim != 1 || bias->type.dim[0] != w->type.dim[0]) {
            op_error(cx, cx->arg_at[2], "conv2d: 'b' is [%s], this is %s", poly_text(cx->lw, w->type.dim[0]),
                     ltype_text(cx->lw, &bias->type));
            return op_failed(cx);
        }
        y = t_binary(cx, OP_ADD, y, t_cast(cx, bias, t));
    }
    return op_one(cx, channels_first(cx, y));
}

static OpResult op_pool2d(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    int64_t size, c;
    if (!arg_int(cx, 1, &size)) return op_failed(cx);
    TVal *p = patches(cx, t_cast(cx, x, float_dtype(x->type.dtype)), size, size, size, 0);
    if (!p || !poly_known(cx, dim_back(&x->type, 3), &c)) return op_failed(cx);
    LType split = p->type; // [.., OH, OW, C, size * size]
    split.dim[split.ndim - 1] = poly_int(cx->lw, c);
    split.dim[split.ndim++] = poly_int(cx->lw, size * size);
    TVal *windows = t_reshape(cx, p, &split);
    if (!windows) return op_failed(cx);
    LType one = windows->type;
    one.dim[one.ndim - 1] = poly_int(cx->lw, 1);
    int last = one.ndim - 1;
    TVal *y =
        cx->row->op == OP_MAX
            ? t_drop_axis(cx, t_new(cx, make(cx->b, OP_TOPK, INS(windows->v), .k = 1), one, t_lead(windows)),
                          last)
            : t_mean(cx, windows, &(Ints){1, {last}}, false);
    return op_one(cx, channels_first(cx, y));
}

// ---- the place in a sequence ----------------------------------------------------------------------------

// Whether an axis is that of the input `tokens` in generation, which has a past.
static bool has_past(OpCx *cx, const Poly *axis) { return cx->lw->inference && axis == cx->lw->sequence; }

static const Poly *with_past(OpCx *cx, const Poly *axis) {
    return poly_add(cx->lw, axis, poly_sym(cx->lw, "past"));
}

static bool is_sequence(OpCx *cx, const TVal *t, int least) {
    if (t->type.ndim >= least) return true;
    op_error(cx, cx->arg_at[0], "%s needs a sequence axis after the batch, this is %s", cx->op,
             ltype_text(cx->lw, &t->type));
    return false;
}

static OpResult op_positions(OpCx *cx) {
    TVal *ids = cx->arg[0].t;
    if (!is_sequence(cx, ids, 1)) return op_failed(cx);
    const Poly *axis = dim_back(&ids->type, 1);
    LType t = {.dtype = I32, .ndim = ids->type.ndim};
    memcpy(t.dim, ids->type.dim, sizeof t.dim);
    if (!has_past(cx, axis)) return op_one(cx, t_expand(cx, t_iota(cx, axis), &t));
    Dims d;
    if (!lead_dims(cx, LEAD_NONE, &t, &d)) return op_failed(cx);
    return op_one(
        cx, t_new(cx, make(cx->b, OP_INPUT, INS(NULL), .name = intern("positions"), .dtype = I32, .dims = d),
                  t, LEAD_NONE));
}

static OpResult op_context(OpCx *cx) {
    TVal *ids = cx->arg[0].t;
    if (!is_sequence(cx, ids, 1)) return op_failed(cx);
    const Poly *axis = dim_back(&ids->type, 1);
    return op_value(poly_val(cx, has_past(cx, axis) ? with_past(cx, axis) : axis));
}

static bool state_exists(const Graph *g, Name name) {
    for_each_node(g, n) if (n->op == OP_STATE && n->attr.name == name) return true;
    return false;
}

static OpResult op_cache(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    if (!is_sequence(cx, x, 2)) return op_failed(cx);
    if (!has_past(cx, x->type.dim[1])) return op_one(cx, x);
    LType t = x->type;
    Dim context;
    t.dim[1] = with_past(cx, x->type.dim[1]);
    if (!op_dim(cx, t.dim[1], &context)) return op_failed(cx);
    assert(context.sym && context.n == 1);
    const char *path = cx->b->path ? cx->b->path : "";
    Name name = NULL;
    for (int i = 0; !name || state_exists(cx->lw->g, name); i++)
        name = intern(arena_printf(cx->lw->arena, "cache/%s%s%d", path, *path ? "." : "", i));
    Dims pool = {1, {dim_n(context.sym->bound)}};
    for (int i = 2; i < x->v->type.ndim; i++) pool.at[pool.n++] = x->v->type.dim[i];
    Value *state = make(cx->b, OP_STATE, INS(NULL), .name = name, .dtype = x->type.dtype, .dims = pool,
                        .init = intern("zeros"));
    return op_one(cx,
                  state ? t_new(cx, make(cx->b, OP_CACHE, INS(state, x->v), .sym = context.sym), t, LEAD_NONE)
                        : NULL);
}

// What it is computed from does not change within a sequence, so computing it again gives the same.
static OpResult op_once(OpCx *cx) { return op_one(cx, cx->arg[0].t); }

// ---- random ---------------------------------------------------------------------------------------------

static TVal *uniform(OpCx *cx, LType t) {
    Lower *lw = cx->lw;
    if (!lw->training && !lw->random_eval) {
        op_error(cx, cx->at, "randomness in evaluation");
        diag_help(lw->diag, "if training { ... }, or train.random_eval = true");
        return NULL;
    }
    for (int i = 0; i < t.ndim; i++)
        if (!t.dim[i]) return op_error(cx, cx->arg_at[0], "%s: nothing to infer _ from", cx->op);
    Lead lead = lw->expert ? LEAD_EXPERT : lw->leaf ? LEAD_LEAF : LEAD_NONE;
    if (lw->expert && t.ndim && t.dim[0] == poly_sym(lw, lw->expert->sym->name)) {
        lead = LEAD_NONE;
        t.rows = lw->expert;
        t.expert_rows = true;
    }
    Dims d, four = {1, {dim_n(4)}};
    if (!lead_dims(cx, lead, &t, &d)) return NULL;
    if (!lw->rng)
        lw->rng = make(cx->b, OP_INPUT, INS(NULL), .name = intern("rng"), .dtype = I32, .dims = four);
    if (!lw->rng) return NULL;
    // rows of a route draw by where they come from: as many experts or ranks as there may be, a slot draws alike
    Value *slot = t.expert_rows ? lw->expert->slot_of : NULL;
    Value *u = slot ? make(cx->b, OP_RANDOM, INS(lw->rng, slot), .stream = lw->n_streams++, .dtype = F32, .dims = d)
                    : make(cx->b, OP_RANDOM, INS(lw->rng), .stream = lw->n_streams++, .dtype = F32, .dims = d);
    return t_new(cx, u, t, lead);
}

// log(max(u, 2^-25)): finite for every draw.
static TVal *log_uniform(OpCx *cx, LType t) {
    TVal *u = uniform(cx, t);
    return u ? t_unary(cx, OP_LOG, t_binary_number(cx, OP_MAX, u, 0x1p-25)) : NULL;
}

static OpResult op_rand(OpCx *cx) {
    LType t;
    return arg_shape(cx, 0, &t) ? op_one(cx, uniform(cx, t)) : op_failed(cx);
}

// Box and Muller: sqrt(-2 log u) cos(2 pi v).
static OpResult op_randn(OpCx *cx) {
    LType t;
    if (!arg_shape(cx, 0, &t)) return op_failed(cx);
    TVal *radius = log_uniform(cx, t), *angle = radius ? uniform(cx, t) : NULL;
    if (!angle) return op_failed(cx);
    radius = t_unary(cx, OP_SQRT, t_binary_number(cx, OP_MUL, radius, -2));
    return op_one(cx,
                  t_binary(cx, OP_MUL, radius,
                           t_unary(cx, OP_COS, t_binary_number(cx, OP_MUL, angle, 6.28318530717958647693))));
}

// -log(-log u)
static OpResult op_gumbel(OpCx *cx) {
    LType t;
    if (!arg_shape(cx, 0, &t)) return op_failed(cx);
    TVal *inner = t_unary(cx, OP_NEG, log_uniform(cx, t));
    return op_one(cx, t_unary(cx, OP_NEG, t_unary(cx, OP_LOG, inner)));
}

// ---- over the whole step --------------------------------------------------------------------------------

static OpResult op_stop_gradient(OpCx *cx) {
    if (cx->arg[0].kind != V_TENSOR) return op_value(cx->arg[0]);
    TVal *x = cx->arg[0].t;
    return op_one(cx, dtype_is_float(x->type.dtype) ? t_unary(cx, OP_STOP_GRADIENT, x) : x);
}

// Over the leaves of this pass: f32[L,E] -> f32[E], a value without leaves.
static TVal *over_leaves(OpCx *cx, TVal *x, bool largest) {
    if (!x) return NULL;
    Dims d;
    Value *v =
        largest ? make(cx->b, OP_REDUCE_MAX, INS(x->v), .axis = 0) : build_sum(cx->b, x->v, &(Ints){1, {0}});
    if (!v || !lead_dims(cx, LEAD_NONE, &x->type, &d)) return NULL;
    return t_new(cx, build_reshape(cx->b, v, &d), x->type, LEAD_NONE);
}

enum { STEP_SUM, STEP_MEAN, STEP_MAX };

// The sum over the leaves of this pass.  An update of the text that reads it gets the sum over all passes of
// the step: the optimizer cuts its expression here.
static OpResult op_step(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    Lower *lw = cx->lw;
    int kind = cx->row->op;
    int64_t waves = lw->training ? lw->n_waves : 1; // an evaluation pass stands for itself
    double n = (double)(lw->n_leaves * waves);
    if (x->type.dtype == BOOL || kind == STEP_MEAN) x = t_cast(cx, x, kind == STEP_MEAN ? F32 : I32);
    if (!lw->leaf || !x) return op_one(cx, x); // generation: one sequence
    if (!x->leafy) return op_one(cx, kind == STEP_SUM ? t_binary_number(cx, OP_MUL, x, n) : x);
    if (kind == STEP_MAX && waves > 1) {
        op_error(cx, cx->at, "step_max needs all micro-batches of a step in one pass, here they run in %lld",
                 (long long)waves);
        return op_failed(cx);
    }
    TVal *y = over_leaves(cx, x, kind == STEP_MAX);
    if (y && waves > 1) vec_push(lw->arena, &lw->step_sums, (const Value *)y->v);
    return op_one(cx, kind == STEP_MEAN ? t_binary(cx, OP_DIV, y, scalar(cx, n, F32)) : y);
}

// Earlier waves of the step lie in a state, which the first wave must not see: it holds the step before.
//     sum    = this pass              so_far = sum + (wave > 0 ? state : 0)              state := so_far
static OpResult op_so_far(OpCx *cx) {
    TVal *x = cx->arg[0].t;
    Lower *lw = cx->lw;
    if (!lw->leaf) return op_one(cx, x);
    if (x->type.dtype == BOOL) x = t_cast(cx, x, I32);
    TVal *sum = over_leaves(cx, t_with_lead(cx, x, LEAD_LEAF), false);
    if (lw->n_waves <= 1 || !lw->training || !sum) return op_one(cx, sum);
    Dims none = {0}, dims = dims_of(&sum->v->type);
    const char *path = cx->b->path ? cx->b->path : "";
    Name name = NULL;
    for (int i = 0; !name || state_exists(lw->g, name); i++)
        name = intern(arena_printf(lw->arena, "so_far.%s%s%d", path, *path ? "." : "", i));
    Value *wave = make(cx->b, OP_INPUT, INS(NULL), .name = intern("wave"), .dtype = I32, .dims = none);
    Value *state = make(cx->b, OP_STATE, INS(NULL), .name = name, .dtype = sum->type.dtype, .dims = dims,
                        .init = intern("zeros"));
    Value *later = wave ? build_binary(cx->b, OP_LT, build_const(cx->b, 0, I32), wave) : NULL;
    if (!state || !later) return op_failed(cx);
    TVal *is_later = t_new(cx, later, (LType){0}, LEAD_NONE);
    TVal *zero = scalar(cx, 0, sum->type.dtype);
    TVal *before = t_select(cx, is_later, t_like(cx, state, sum), zero);
    TVal *so_far = t_binary(cx, OP_ADD, before, sum);
    if (!so_far || !build(cx->b, OP_UPDATE, INS(so_far->v), .name = name)) return op_failed(cx);
    return op_one(cx, so_far);
}

bool lower_needs_no_step_sum(Lower *lw, Span at, const char *what, const Value *v) {
    if (!lw->step_sums.n || !v) return true;
    graph_number(lw->g);
    bool *seen = arena_array(lw->arena, bool, lw->g->n_nodes + 1);
    const Node **todo = arena_array(lw->arena, const Node *, lw->g->n_nodes + 1);
    int n = 0;
    seen[v->node->id] = true;
    todo[n++] = v->node;
    while (n) {
        const Node *m = todo[--n];
        for (int i = 0; i < lw->step_sums.n; i++) {
            if (lw->step_sums.at[i]->node != m) continue;
            diag_error(lw->diag, at,
                       "%s needs a sum over all micro-batches of a step, but they run in %lld waves: it is "
                       "known after the last",
                       what, (long long)lw->n_waves);
            diag_note(lw->diag, m->at, "this sum");
            return false;
        }
        for (int i = 0; i < m->n_in; i++) {
            const Node *from = m->in[i]->node;
            if (!seen[from->id]) seen[from->id] = true, todo[n++] = from;
        }
    }
    return true;
}

// ---- the table ------------------------------------------------------------------------------------------

#define X                                                                                                    \
    { "x", P_TENSOR }

// clang-format off
static const OpRow rows[] = {
    {"einsum",    op_einsum,    R_INSIDE, {{"axes", P_STR}, {"a", P_TENSOR}, {"b", P_TENSOR, "none"}}},
    {"attention", op_attention, R_REFUSE,
     {{"q", P_TENSOR}, {"k", P_TENSOR}, {"v", P_TENSOR}, {"mask", P_WORD, "causal", "causal|full"}, {"window", P_INT, "none"},
      {"scale", P_NUM, "none"}, {"sinks", P_TENSOR, "none"}, {"bias", P_TENSOR, "none"}, {"valid", P_TENSOR, "none"},
      {"documents", P_TENSOR, "none"}}},
    {"cross_entropy", op_cross_entropy, R_REFUSE, {{"logits", P_TENSOR}, {"labels", P_TENSOR}, {"smoothing", P_NUM, "0"}}},
    {"conv2d",    op_conv2d,    R_REFUSE, {X, {"w", P_TENSOR}, {"b", P_TENSOR, "none"}, {"stride", P_INT, "1"}, {"pad", P_INT, "0"}}},
    {"max_pool2d", op_pool2d,   R_REFUSE, {X, {"size", P_INT}}, OP_MAX},
    {"avg_pool2d", op_pool2d,   R_REFUSE, {X, {"size", P_INT}}, OP_SUM},
    {"positions", op_positions, R_REFUSE, {{"ids", P_TENSOR}}},
    {"context",   op_context,   R_REFUSE, {{"ids", P_TENSOR}}},
    {"cache",     op_cache,     R_REFUSE, {X}},
    {"once",      op_once,      R_REFUSE, {X}},
    {"rand",      op_rand,      R_INSIDE, {{"shape", P_SHAPE}}},
    {"randn",     op_randn,     R_INSIDE, {{"shape", P_SHAPE}}},
    {"gumbel",    op_gumbel,    R_INSIDE, {{"shape", P_SHAPE}}},
    {"stop_gradient", op_stop_gradient, R_BOTH, {{"x", P_VALUE}}},
    {"step_sum",  op_step,      R_REFUSE, {X}, STEP_SUM},
    {"step_mean", op_step,      R_REFUSE, {X}, STEP_MEAN},
    {"step_max",  op_step,      R_REFUSE, {X}, STEP_MAX},
    {"so_far",    op_so_far,    R_REFUSE, {X}},
};
// clang-format on

const OpTable nn_ops = {rows, sizeof rows / sizeof *rows};
