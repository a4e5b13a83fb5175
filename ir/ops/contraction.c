// Shapes, checks and gradients of contractions.  Their meaning and order of sums: ir/ref/contraction.c.
#include <assert.h>

#include "ir/ops/rules.h"

static const Type *in_type(const Node *n, int i) { return &n->in[i]->type; }

static bool same_dims(const Type *a, const Type *b, int n) {
    for (int i = 0; i < n; i++)
        if (!dim_eq(a->dim[i], b->dim[i])) return false;
    return true;
}

// axis counts from the end: 1 is the last.
static Dim dim_back(const Type *t, int axis) { return t->dim[t->ndim - axis]; }

// ---- attachments ----------------------------------------------------------------------------------------

bool op_is_contraction(Op op) {
    return op == OP_MATMUL || op == OP_MATMUL_DW || op == OP_GROUPED_MATMUL || op == OP_GROUPED_DW;
}

bool has_attachments(const Node *n) {
    return op_is_contraction(n->op) && (n->attr.gather || n->attr.pair || n->attr.epilogue);
}

// Where operands stand; false if there are too few.
static bool place_operands(const Node *n, Contraction *c) {
    *c = (Contraction){.own = n->op == OP_GROUPED_MATMUL || n->op == OP_GROUPED_DW ? 3 : 2,
                       .index = {-1, -1}, .second = -1, .products = n->attr.pair ? 2 : 1};
    int at = c->own;
    for (int i = 0; i < 2; i++)
        if (n->attr.gather >> i & 1) c->index[i] = at++;
    if (n->attr.pair) c->second = at++;
    c->extra = at;
    return at <= n->n_in;
}

// Operand i as it is multiplied.
static Type rows_read(const Node *n, const Contraction *c, int i) {
    const Type *t = in_type(n, i);
    if (c->index[i] < 0) return *t;
    Type rows = *in_type(n, c->index[i]);
    rows.dtype = t->dtype;
    if (rows.ndim < MAX_DIM) rows.dim[rows.ndim++] = dim_back(t, 1);
    return rows;
}

// Places operands and finds the types of a and b; false after diag_error.
static bool open_contraction(const Node *n, Contraction *c, Diag *d) {
    const char *name = op_info[n->op].name;
    if (!place_operands(n, c) || (!n->attr.epilogue && n->n_in != c->extra)) {
        diag_error(d, n->at, "%s with these attachments takes %s%d operands, not %d", name,
                   n->attr.epilogue ? "at least " : "", c->extra, n->n_in);
        return false;
    }
    for (int i = 0; i < 2; i++) {
        const Type *index = c->index[i] < 0 ? NULL : in_type(n, c->index[i]);
        if (index && (index->dtype != I32 || index->ndim >= MAX_DIM || in_type(n, i)->ndim < 2)) {
            diag_error(d, n->at, "%s gathers rows by i32 numbers, but got %s of %s", name,
                       rule_type(n, index), rule_type(n, in_type(n, i)));
            return false;
        }
        *(i ? &c->b : &c->a) = rows_read(n, c, i);
    }
    if (n->attr.pair && (!n->attr.epilogue || !type_eq(in_type(n, c->second), in_type(n, 1)))) {
        diag_error(d, n->at, "%s needs two right-hand sides alike and an epilogue, but got %s and %s", name,
                   rule_type(n, in_type(n, 1)), rule_type(n, in_type(n, c->second)));
        return false;
    }
    if (n->attr.gather && (n->attr.ta || (n->op == OP_MATMUL && (n->attr.gather > 1 || c->b.ndim != 2)) ||
                           (n->op == OP_GROUPED_MATMUL && n->attr.gather > 1))) {
        diag_error(d, n->at, "%s can't gather these rows", name);
        return false;
    }
    return true;
}

// Results from the product's type: itself, or what the epilogue yields.
static bool close_contraction(const Node *n, const Contraction *c, Type *out, Diag *d) {
    const Graph *body = n->attr.epilogue;
    if (!body) {
        out[0] = c->y;
        return true;
    }
    const Node *yield = body->last;
    if (!yield || yield->op != OP_YIELD || yield->n_in != n->n_out) {
        diag_error(d, n->at, "the epilogue of %s must end in a yield of %d results", op_info[n->op].name,
                   n->n_out);
        return false;
    }
    for_each_node(body, m) {
        if (m->op != OP_ARG) continue;
        int64_t k = m->attr.k, more = n->n_in - c->extra;
        bool known = k >= 0 && k < c->products + more;
        const Type *is = !known ? NULL : k < c->products ? &c->y : in_type(n, c->extra - c->products + (int)k);
        if (is && type_eq(&m->out[0].type, is)) continue;
        diag_error(d, n->at, "arg %lld in the epilogue of %s is %s, but stands for %s", (long long)k,
                   op_info[n->op].name, rule_type(n, &m->out[0].type), is ? rule_type(n, is) : "nothing");
        return false;
    }
    for (int i = 0; i < n->n_out; i++) {
        out[i] = yield->in[i]->type;
        Type like = c->y;
        like.dtype = out[i].dtype;
        if (type_eq(&out[i], &like)) continue;
        diag_error(d, n->at, "result %d of the epilogue of %s is %s, but must have the dimensions of %s", i,
                   op_info[n->op].name, rule_type(n, &out[i]), rule_type(n, &c->y));
        return false;
    }
    return true;
}

Contraction contraction_of(const Node *n) {
    Contraction c;
    bool fits = place_operands(n, &c);
    assert(fits);
    (void)fits;
    c.a = rows_read(n, &c, 0);
    c.b = rows_read(n, &c, 1);
    c.y = n->out[0].type;
    if (n->attr.epilogue)
        for_each_node(n->attr.epilogue, m)
            if (m->op == OP_ARG && m->attr.k == 0) c.y = m->out[0].type;
    return c;
}

// ---- matmul ---------------------------------------------------------------------------------------------

bool shape_matmul(const Node *n, Type *out, Diag *d) {
    Contraction c;
    if (!open_contraction(n, &c, d)) return false;
    const Type *a = &c.a, *b = &c.b;
    int ta = n->attr.ta != 0, tb = n->attr.tb != 0;
    bool fits = a->ndim >= 2 && b->ndim >= 2 &&
                (b->ndim == 2 || (a->ndim == b->ndim && same_dims(a, b, a->ndim - 2)));
    if (!fits) {
        diag_error(
            d, n->at,
            "matmul needs two matrices, batches of equal size, or rows and a matrix, but got %s and %s",
            rule_type(n, a), rule_type(n, b));
        return false;
    }
    Dim ka = dim_back(a, ta ? 2 : 1), kb = dim_back(b, tb ? 1 : 2);
    if (!dim_eq(ka, kb)) {
        Arena *m = n->graph->arena;
        diag_error(d, n->at, "matmul sums over an axis of size %s in %s but %s in %s", dim_text(m, ka),
                   rule_type(n, a), dim_text(m, kb), rule_type(n, b));
        return false;
    }
    c.y = *a;
    c.y.dim[a->ndim - 2] = dim_back(a, ta ? 1 : 2);
    c.y.dim[a->ndim - 1] = dim_back(b, tb ? 2 : 1);
    return close_contraction(n, &c, out, d);
}

static Value *swap_last(Builder *b, Value *x) {
    int n = x->type.ndim;
    Ints perm = {.n = n};
    for (int i = 0; i < n; i++) perm.at[i] = i;
    perm.at[n - 2] = n - 1;
    perm.at[n - 1] = n - 2;
    return make(b, OP_PERMUTE, INS(x), .perm = perm);
}

// x^T y summed over all rows.  Rows grouped by expert are cut into leaves by their offsets only.
static Value *sum_over_rows(Builder *b, Value *x, Value *y) {
    Sym *rows = type_ragged(&x->type);
    if (!rows) return make(b, OP_MATMUL_DW, INS(x, y), 0);
    Value *per_group = make(b, OP_GROUPED_DW, INS(x, y, rows->extent), 0);
    if (!per_group) return NULL;
    Type flat = type_make(per_group->type.dtype, 2, per_group->type.dim + 1);
    return build_sum_to(b, per_group, &flat);
}

// y = A B with A = a or a^T, B = b or b^T:  dA = d B^T, dB = A^T d.
void grad_matmul(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    Value *x = n->in[0], *w = n->in[1], *d = dout[0];
    int ta = n->attr.ta != 0, tb = n->attr.tb != 0;
    bool batched = w->type.ndim > 2;
    if (!d) return;
    if (need[0]) {
        if (!ta) din[0] = make(b, OP_MATMUL, INS(d, w), .tb = !tb);
        else if (batched || x->type.ndim == 2) din[0] = make(b, OP_MATMUL, INS(w, d), .ta = tb, .tb = 1);
        else din[0] = swap_last(b, make(b, OP_MATMUL, INS(d, w), .tb = !tb));
    }
    if (need[1]) {
        if (batched) {
            din[1] = tb ? make(b, OP_MATMUL, INS(d, x), .ta = 1, .tb = ta)
                        : make(b, OP_MATMUL, INS(x, d), .ta = !ta);
        } else {
            Value *rows = ta ? swap_last(b, x) : x;
            din[1] = tb ? sum_over_rows(b, d, rows) : sum_over_rows(b, rows, d);
        }
    }
}

bool shape_matmul_dw(const Node *n, Type *out, Diag *d) {
    Contraction c;
    if (!open_contraction(n, &c, d)) return false;
    const Type *a = &c.a, *b = &c.b;
    if (a->ndim < 2 || a->ndim != b->ndim || !same_dims(a, b, a->ndim - 1)) {
        diag_error(d, n->at, "matmul_dw needs the same rows twice, but got %s and %s", rule_type(n, a),
                   rule_type(n, b));
        return false;
    }
    out[0] = type_make(F32, 2, (Dim[]){dim_back(a, 1), dim_back(b, 1)});
    return true;
}

// ---- grouped --------------------------------------------------------------------------------------------

// x is [R, columns] with offsets for the groups of R.
static bool is_grouped(const Node *n, const Type *x, const Type *offsets, Diag *d) {
    const Sym *rows = type_ragged(x);
    if (x->ndim == 2 && rows && x->dim[0].n == 1 && offsets->ndim == 1 &&
        dim_eq(offsets->dim[0], dim_n((int64_t)rows->groups * rows->leaves + 1)))
        return true;
    diag_error(d, n->at, "%s needs rows grouped by expert and their offsets, but got %s and %s",
               op_info[n->op].name, rule_type(n, x), rule_type(n, offsets));
    return false;
}

bool shape_grouped_matmul(const Node *n, Type *out, Diag *d) {
    Contraction c;
    if (!open_contraction(n, &c, d)) return false;
    const Type *x = &c.a, *w = in_type(n, 1);
    int tb = n->attr.tb != 0;
    if (!is_grouped(n, x, in_type(n, 2), d)) return false;
    if (w->ndim != 3 || !dim_eq(w->dim[0], dim_n(type_ragged(x)->groups)) ||
        !dim_eq(w->dim[tb ? 2 : 1], x->dim[1])) {
        diag_error(d, n->at, "grouped_matmul needs one matrix for each of %d groups of rows %s, but got %s%s",
                   type_ragged(x)->groups, rule_type(n, x), rule_type(n, w), tb ? ", read transposed" : "");
        return false;
    }
    c.y = *x;
    c.y.dim[1] = w->dim[tb ? 1 : 2];
    return close_contraction(n, &c, out, d);
}

void grad_grouped_matmul(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    Value *x = n->in[0], *w = n->in[1], *offsets = n->in[2], *d = dout[0];
    int tb = n->attr.tb != 0;
    if (!d) return;
    if (need[0]) din[0] = make(b, OP_GROUPED_MATMUL, INS(d, w, offsets), .tb = !tb);
    if (need[1])
        din[1] = tb ? make(b, OP_GROUPED_DW, INS(d, x, offsets), 0)
                    : make(b, OP_GROUPED_DW, INS(x, d, offsets), 0);
}

bool shape_grouped_dw(const Node *n, Type *out, Diag *d) {
    Contraction c;
    if (!open_contraction(n, &c, d)) return false;
    const Type *a = &c.a, *b = &c.b;
    if (!is_grouped(n, a, in_type(n, 2), d) || !is_grouped(n, b, in_type(n, 2), d)) return false;
    if (!dim_eq(a->dim[0], b->dim[0])) {
        diag_error(d, n->at, "grouped_dw needs the same rows twice, but got %s and %s", rule_type(n, a),
                   rule_type(n, b));
        return false;
    }
    out[0] = type_make(F32, 3, (Dim[]){dim_n(type_ragged(a)->groups), a->dim[1], b->dim[1]});
    return true;
}

bool shape_grouped_sum(const Node *n, Type *out, Diag *d) {
    const Type *x = in_type(n, 0);
    if (!is_grouped(n, x, in_type(n, 1), d)) return false;
    out[0] = type_make(x->dtype, 2, (Dim[]){dim_n(type_ragged(x)->groups), x->dim[1]});
    return true;
}

// ---- attention ------------------------------------------------------------------------------------------

enum { HAS_SINKS = 1, HAS_BIAS = 2, HAS_VALID = 4, HAS_DOCUMENTS = 8, HAS_SEQUENCES = 16 };

static int n_options(const Node *n) {
    int count = 0;
    for (int64_t has = n->attr.has; has; has >>= 1) count += has & 1;
    return count;
}

// [.., S, H, V] of the result, from q and v.
static Type attention_o(const Node *n) {
    Type o = *in_type(n, 0);
    o.dim[o.ndim - 1] = dim_back(in_type(n, 2), 1);
    return o;
}

// q [1, S, H, A], k and v [P, bound, Hk, ..], sequences i32 [R, 4]; keys are masked by position alone
static bool is_of_sequences(const Node *n, Diag *d) {
    const Type *q = in_type(n, 0), *k = in_type(n, 1), *sequences = in_type(n, n->n_in - 1);
    bool ok = n->op == OP_ATTENTION && q->ndim == 4 && dim_is_1(q->dim[0]) && k->ndim == 4 && !k->dim[0].sym && !k->dim[1].sym &&
              !(n->attr.has & (HAS_VALID | HAS_DOCUMENTS)) && n->attr.causal && sequences->ndim == 2 && sequences->dtype == I32 &&
              dim_eq(sequences->dim[1], dim_n(SEQUENCE_COLUMNS));
    if (ok) return true;
    diag_error(d, n->at, "%s of several sequences needs causal q [1, S, H, A], pools k and v [P, bound, ..] and sequences i32[R, %d], but got %s, %s "
               "and %s", op_info[n->op].name, SEQUENCE_COLUMNS, rule_type(n, q), rule_type(n, k), rule_type(n, sequences));
    return false;
}

static bool attention_operands(const Node *n, int more, Diag *d) {
    if (n->attr.has < 0 || n->attr.has >= 2 * HAS_SEQUENCES || n->n_in != 3 + n_options(n) + more) {
        diag_error(d, n->at, "%s with has = %lld takes %d operands, not %d", op_info[n->op].name,
                   (long long)n->attr.has, 3 + n_options(n) + more, n->n_in);
        return false;
    }
    const Type *q = in_type(n, 0), *k = in_type(n, 1), *v = in_type(n, 2);
    bool pools = n->attr.has & HAS_SEQUENCES;
    if (pools && !is_of_sequences(n, d)) return false;
    if (q->ndim < 3 || k->ndim != q->ndim || v->ndim != q->ndim || (!pools && !same_dims(q, k, q->ndim - 3)) ||
        !same_dims(k, v, k->ndim - 1) || !dim_eq(dim_back(q, 1), dim_back(k, 1))) {
        diag_error(
            d, n->at,
            "attention needs q [.., S, H, A], k [.., C, Hk, A] and v [.., C, Hk, V], but got %s, %s and %s",
            rule_type(n, q), rule_type(n, k), rule_type(n, v));
        return false;
    }
    Dim H = dim_back(q, 2), Hk = dim_back(k, 2);
    if (H.sym || Hk.sym || Hk.n < 1 || H.n % Hk.n) {
        Arena *m = n->graph->arena;
        diag_error(d, n->at, "attention has %s query heads, which must be a multiple of its %s key heads",
                   dim_text(m, H), dim_text(m, Hk));
        return false;
    }
    return true;
}

bool shape_attention(const Node *n, Type *out, Diag *d) {
    if (!attention_operands(n, 0, d)) return false;
    out[0] = attention_o(n);
    out[1] = type_make(F32, out[0].ndim - 1, out[0].dim);
    return true;
}

// t broadcasts to `want`: aligned to the right, axes of 1 stretch, leading ones may be missing.
static bool option_fits(const Node *n, int i, const char *what, int dtype, Type want, Diag *d) {
    const Type *t = in_type(n, i);
    bool fits = t->ndim <= want.ndim && (dtype < 0 ? dtype_is_float(t->dtype) : t->dtype == (DType)dtype);
    for (int j = 0; fits && j < t->ndim; j++)
        fits = dim_is_1(dim_back(t, j + 1)) || dim_eq(dim_back(t, j + 1), dim_back(&want, j + 1));
    if (fits) return true;
    want.dtype = dtype < 0 ? F32 : (DType)dtype;
    diag_error(d, n->at, "'%s' of attention must broadcast to %s, but is %s", what, rule_type(n, &want),
               rule_type(n, t));
    return false;
}

// [.., H, S, C] of the scores.
static Type attention_scores(const Node *n, DType dtype) {
    Type s = *in_type(n, 0);
    s.dtype = dtype;
    s.dim[s.ndim - 3] = dim_back(in_type(n, 0), 2);
    s.dim[s.ndim - 2] = dim_back(in_type(n, 0), 3);
    s.dim[s.ndim - 1] = dim_back(in_type(n, 1), 3);
    return s;
}

bool check_attention(const Node *n, Diag *d) {
    const Type *q = in_type(n, 0), *k = in_type(n, 1);
    int i = 3, has = (int)n->attr.has;
    Type keys = type_make(BOOL, q->ndim - 2, k->dim), heads = type_make(F32, 1, &q->dim[q->ndim - 2]);
    if (n->attr.window < 0) {
        diag_error(d, n->at, "attention's window is %lld, but must not be negative",
                   (long long)n->attr.window);
        return false;
    }
    if ((has & HAS_SINKS)) {
        if (in_type(n, i)->ndim != 1 || !dim_eq(in_type(n, i)->dim[0], heads.dim[0])) {
            diag_error(d, n->at, "'sinks' of attention must be %s, but is %s", rule_type(n, &heads),
                       rule_type(n, in_type(n, i)));
            return false;
        }
        i++;
    }
    if ((has & HAS_BIAS)) {
        Type scores = attention_scores(n, F32);
        if (has & HAS_SEQUENCES) scores.dim[scores.ndim - 1] = dim_back(in_type(n, i), 1);       // the longest of them
        if (in_type(n, i)->ndim < 3 || !option_fits(n, i, "bias", -1, scores, d)) return false;
        i++;
    }
    const Type *last;
    for (int bit = HAS_VALID; bit <= HAS_DOCUMENTS; bit <<= 1) {
        if (!(has & bit)) continue;
        const char *what = bit == HAS_VALID ? "valid" : "documents";
        if (!option_fits(n, i, what, bit == HAS_VALID ? BOOL : I32, keys, d)) return false;
        last = in_type(n, i++);
        if (last->ndim && dim_eq(dim_back(last, 1), dim_back(&keys, 1))) continue;
        diag_error(d, n->at, "'%s' of attention must name every key, but is %s", what, rule_type(n, last));
        return false;
    }
    return true;
}

// q k v options.. o lse do -> dq dk dv, dsinks [.., S, H], dbias [.., H, S, C]
bool shape_attention_grad(const Node *n, Type *out, Diag *d) {
    if (!attention_operands(n, 3, d)) return false;
    int i = 3, j = 3, after = 3 + n_options(n);
    Type o = attention_o(n), lse = type_make(F32, o.ndim - 1, o.dim);
    if (!type_eq(in_type(n, after), &o) || !type_eq(in_type(n, after + 1), &lse) ||
        !type_eq(in_type(n, after + 2), &o)) {
        diag_error(d, n->at, "attention_grad needs o, lse and do of %s and %s, but got %s, %s and %s",
                   rule_type(n, &o), rule_type(n, &lse), rule_type(n, in_type(n, after)),
                   rule_type(n, in_type(n, after + 1)), rule_type(n, in_type(n, after + 2)));
        return false;
    }
    int results = 3 + ((n->attr.has & HAS_SINKS) != 0) + ((n->attr.has & HAS_BIAS) != 0);
    if (n->n_out != results) {
        diag_error(d, n->at, "attention_grad with has = %lld gives %d results, not %d",
                   (long long)n->attr.has, results, n->n_out);
        return false;
    }
    for (int t = 0; t < 3; t++) out[t] = *in_type(n, t);
    if (n->attr.has & HAS_SINKS) {
        out[j] = lse;
        out[j++].dtype = in_type(n, i++)->dtype;
    }
    if (n->attr.has & HAS_BIAS) out[j] = attention_scores(n, in_type(n, i)->dtype);
    return true;
}

void grad_attention(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    assert(!dout[1]);                      // lse is for the gradient's own use
    if (!dout[0]) return;
    int options = n_options(n), count = 0;
    Value *ins[3 + 4 + 3 + 1] = {NULL};
    for (int i = 0; i < 3 + options; i++) ins[count++] = n->in[i];
    ins[count++] = node_out(n, 0);
    ins[count++] = node_out(n, 1);
    ins[count++] = dout[0];
    bool sinks = n->attr.has & HAS_SINKS, bias = n->attr.has & HAS_BIAS;
    Type types[5];
    int n_out = 3;
    for (int i = 0; i < 3; i++) types[i] = *in_type(n, i);
    if (sinks) {
        types[n_out] = node_out(n, 1)->type;
        types[n_out++].dtype = in_type(n, 3)->dtype;
    }
    if (bias) {
        types[n_out] = attention_scores(n, in_type(n, 3 + sinks)->dtype);
        n_out++;
    }
    Attrs attr = {
        .causal = n->attr.causal, .window = n->attr.window, .scale = n->attr.scale, .has = n->attr.has};
    Node *g = build_typed(b, OP_ATTENTION_GRAD, ins, &attr, n_out, types);
    if (!g) return;
    for (int i = 0; i < 3; i++)
        if (need[i]) din[i] = node_out(g, i);
    for (int i = 3; i < 3 + sinks + bias; i++)
        if (need[i]) din[i] = build_sum_to(b, node_out(g, i), in_type(n, i));
}

// ---- head -----------------------------------------------------------------------------------------------

static bool head_operands(const Node *n, Diag *d) {
    const Type *x = in_type(n, 0), *w = in_type(n, 1), *label = in_type(n, 2);
    if (x->ndim >= 2 && w->ndim == 2 && dim_eq(dim_back(x, 1), w->dim[1]) && label->ndim == x->ndim - 1 &&
        same_dims(x, label, label->ndim))
        return true;
    diag_error(d, n->at, "%s needs x [.., D], w [V, D] and label [..], but got %s, %s and %s",
               op_info[n->op].name, rule_type(n, x), rule_type(n, w), rule_type(n, label));
    return false;
}

static Type in_f32(const Type *x) {
    Type t = *x;
    t.dtype = F32;
    return t;
}

static Type one_per_row(const Type *x) {
    Type t = *x;
    t.dtype = F32;
    t.dim[t.ndim - 1] = dim_n(1);
    return t;
}

bool shape_head_loss(const Node *n, Type *out, Diag *d) {
    if (!head_operands(n, d)) return false;
    out[0] = out[1] = one_per_row(in_type(n, 0));
    return true;
}

bool shape_head_loss_grad(const Node *n, Type *out, Diag *d) {
    if (!head_operands(n, d)) return false;
    Type number = one_per_row(in_type(n, 0));
    if (!type_eq(in_type(n, 3), &number) || !type_eq(in_type(n, 4), &number)) {
        diag_error(d, n->at, "head_loss_grad needs lse and dnll of %s, but got %s and %s",
                   rule_type(n, &number), rule_type(n, in_type(n, 3)), rule_type(n, in_type(n, 4)));
        return false;
    }
    out[0] = *in_type(n, 0);
    out[1] = in_f32(in_type(n, 1));
    return true;
}

bool shape_head_loss_and_grad(const Node *n, Type *out, Diag *d) {
    if (!head_operands(n, d)) return false;
    Type number = one_per_row(in_type(n, 0));
    if (!type_eq(in_type(n, 3), &number)) {
        diag_error(d, n->at, "head_loss_and_grad needs dnll of %s, but got %s", rule_type(n, &number),
                   rule_type(n, in_type(n, 3)));
        return false;
    }
    out[0] = number;
    out[1] = *in_type(n, 0);
    out[2] = in_f32(in_type(n, 1));
    return true;
}

void grad_head_loss(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    assert(!dout[1]);                      // lse is for the gradient's own use
    if (!dout[0]) return;
    Node *g = build(b, OP_HEAD_LOSS_GRAD, INS(n->in[0], n->in[1], n->in[2], node_out(n, 1), dout[0]), 0);
    if (!g) return;
    for (int i = 0; i < 2; i++)
        if (need[i]) din[i] = node_out(g, i);
}

// ---- convolution as a matmul ----------------------------------------------------------------------------

// image [.., C, H, W] -> [.., OH, OW, C*kh*kw]; false if no window fits.
static bool patches_of(const Type *image, const Attrs *attr, Type *out) {
    if (image->ndim < 3 || attr->kernel.n != 2 || attr->stride < 1 || attr->pad < 0) return false;
    Dim C = dim_back(image, 3), H = dim_back(image, 2), W = dim_back(image, 1);
    int64_t kh = attr->kernel.at[0], kw = attr->kernel.at[1];
    if (C.sym || H.sym || W.sym || kh < 1 || kw < 1 || H.n + 2 * attr->pad < kh || W.n + 2 * attr->pad < kw)
        return false;
    *out = *image;
    out->dim[image->ndim - 3] = dim_n((H.n + 2 * attr->pad - kh) / attr->stride + 1);
    out->dim[image->ndim - 2] = dim_n((W.n + 2 * attr->pad - kw) / attr->stride + 1);
    out->dim[image->ndim - 1] = dim_n(C.n * kh * kw);
    return true;
}

bool shape_patches(const Node *n, Type *out, Diag *d) {
    if (patches_of(in_type(n, 0), &n->attr, &out[0])) return true;
    diag_error(
        d, n->at,
        "patches needs an image [.., C, H, W] of constant size, not smaller than its kernel, but got %s",
        rule_type(n, in_type(n, 0)));
    return false;
}

bool shape_fold(const Node *n, Type *out, Diag *d) {
    Type image = type_of_dims(in_type(n, 0)->dtype, &n->attr.dims), patches;
    if (patches_of(&image, &n->attr, &patches) && type_eq(&patches, in_type(n, 0))) {
        out[0] = image;
        return true;
    }
    diag_error(d, n->at, "fold needs the patches of an image %s, but got %s", rule_type(n, &image),
               rule_type(n, in_type(n, 0)));
    return false;
}

void grad_patches(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (!dout[0] || !need[0]) return;
    din[0] = make(b, OP_FOLD, INS(dout[0]), .dims = dims_of(in_type(n, 0)), .kernel = n->attr.kernel,
                  .stride = n->attr.stride, .pad = n->attr.pad);
}

void grad_fold(Builder *b, const Node *n, Value *const *dout, const bool *need, Value **din) {
    if (!dout[0] || !need[0]) return;
    din[0] = make(b, OP_PATCHES, INS(dout[0]), .kernel = n->attr.kernel, .stride = n->attr.stride,
                  .pad = n->attr.pad);
}
