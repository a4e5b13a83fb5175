// Makes nodes: operands are checked, results shaped, attributes completed, uses counted, and the node is put
// in place.
#include "ir/build.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

Builder builder_end(Graph *g, Diag *d) { return (Builder){.g = g, .diag = d}; }

Builder builder_before(Graph *g, Node *n) {
    return (Builder){.g = g, .before = n, .at = n->at, .path = n->path, .backward = n->backward};
}

Builder builder_after(Graph *g, Node *n) {
    Builder b = builder_before(g, n);
    b.before = n->next;
    return b;
}

// ---- operands -------------------------------------------------------------------------------------------

static bool lists(Op op, AttrId attr) {
    const int *a = op_info[op].attrs;
    while (*a && *a != (int)attr + 1) a++;
    return *a != 0;
}

static bool is_kind(DType t, int kind) {
    switch (kind) {
    case K_ANY: return true;
    case K_NUMBER: return t != BOOL;
    case K_FLOAT: return dtype_is_float(t);
    case K_INT: return !dtype_is_float(t) && t != BOOL;
    case K_BOOL: return t == BOOL;
    case K_F32: return t == F32;
    case K_I32: return t == I32;
    default: return false;
    }
}

static const char *kind_word(int kind) {
    static const char *const word[] = {"nothing",  "anything", "numbers", "float",
                                       "integers", "bool",     "f32",     "i32"};
    return word[kind];
}

static int n_named_ins(Op op) {
    int n = 0;
    while (n < MAX_NAMED && op_info[op].ins[n].name) n++;
    return n;
}

static bool has_operands(const Node *n, Diag *d) {
    const OpInfo *op = &op_info[n->op];
    int named = n_named_ins(n->op), least = named - op->variadic;
    if (n->n_in < least || (!op->variadic && n->n_in > named)) {
        diag_error(d, n->at, "%s takes %s%d operand%s, not %d", op->name, op->variadic ? "at least " : "",
                   least, least == 1 ? "" : "s", n->n_in);
        return false;
    }
    for (int i = 0; i < n->n_in; i++) {
        const ValueInfo *want = &op->ins[i < named ? i : named - 1];
        const Type *is = &n->in[i]->type;
        Arena *a = n->graph->arena;
        if (want->kind >= K_SAME) {
            int other = want->kind - K_SAME;
            if (is->dtype == n->in[other]->type.dtype) continue;
            diag_error(d, n->at,
                       "operands '%s' and '%s' of %s must have the same element type, but are %s and %s",
                       op->ins[other].name, want->name, op->name, type_text(a, &n->in[other]->type),
                       type_text(a, is));
            return false;
        }
        if (is_kind(is->dtype, want->kind)) continue;
        diag_error(d, n->at, "operand '%s' of %s must be %s, but is %s", want->name, op->name,
                   kind_word(want->kind), type_text(a, is));
        return false;
    }
    return true;
}

// Regions give as many results as their yield names; other ops as many as their row.
static int count_results(Op op, const Attrs *attr) {
    const Graph *region = lists(op, ATTR_body) ? attr->body : attr->epilogue;
    if (!lists(op, ATTR_body) && !region) return op_n_outs(op);
    const Node *yield = region ? region->last : NULL;
    return yield && yield->op == OP_YIELD ? yield->n_in : 0;
}

// Sizes that later sums and products of sizes can't bring to overflow.
static bool has_size(const Type *t) {
    const int64_t most = (int64_t)1 << 56;
    int64_t bytes = dtype_bytes(t->dtype);
    for (int i = 0; i < t->ndim; i++) {
        int64_t size = t->dim[i].n;
        if (size < 0) return false;
        if (t->dim[i].sym && __builtin_mul_overflow(size, t->dim[i].sym->bound, &size)) return false;
        if (size > most || __builtin_mul_overflow(bytes, size ? size : 1, &bytes) || bytes > most)
            return false;
    }
    return true;
}

// What is asked for, before any rule works with it: the number of results and the shape.  Only attention_grad
// has more results than its row, and counts them itself.
static bool has_form(const Node *n, Diag *d) {
    int results = count_results(n->op, &n->attr);
    if (n->n_out != results && n->op != OP_ATTENTION_GRAD) {
        diag_error(d, n->at, "%s gives %d results, not %d", op_info[n->op].name, results, n->n_out);
        return false;
    }
    if (!lists(n->op, ATTR_dims)) return true;
    Type t = type_of_dims((DType)n->attr.dtype, &n->attr.dims);
    if (has_size(&t)) return true;
    diag_error(d, n->at, "%s of shape %s: no tensor may have more than 2^56 bytes", op_info[n->op].name,
               type_text(n->graph->arena, &t));
    return false;
}

static bool has_results(const Node *n, const Type *types, Diag *d) {
    const OpInfo *op = &op_info[n->op];
    for (int i = 0; i < n->n_out; i++)
        if (!has_size(&types[i])) {
            diag_error(d, n->at, "result %d of %s is %s: no tensor may have more than 2^56 bytes", i,
                       op->name, type_text(n->graph->arena, &types[i]));
            return false;
        }
    int named = n->attr.epilogue ? 0 : op_n_outs(n->op);      // an epilogue's results are what it yields
    for (int i = 0; i < named && i < n->n_out; i++) {
        int kind = op->outs[i].kind;
        bool right = kind >= K_SAME ? types[i].dtype == n->in[kind - K_SAME]->type.dtype
                                    : is_kind(types[i].dtype, kind);
        if (right) continue;
        diag_error(d, n->at, "result '%s' of %s can't be %s", op->outs[i].name, op->name,
                   type_text(n->graph->arena, &types[i]));
        return false;
    }
    return true;
}

// ---- attributes that follow from operands ---------------------------------------------------------------

// How many leaves the sums of the node end in.  Rows cut by offsets know their own leaves; otherwise axis 0
// says it.
static int64_t summed_leaves(const Node *n) {
    if (!n->n_in || n->attr.one_chain) return 1;
    int rows = n->attr.gather & 1 ? (n->op == OP_GROUPED_DW ? 3 : 2) : 0;     // the operand that has a's rows
    const Type *t = &n->in[rows < n->n_in ? rows : 0]->type;
    if (lists(n->op, ATTR_axes) && !(n->attr.axes.n && n->attr.axes.at[0] == 0)) return 1;
    if (lists(n->op, ATTR_dims)) {
        Type to = type_of_dims(t->dtype, &n->attr.dims);
        if (type_is_leafy(&to)) return 1;
    }
    if (type_is_leafy(t)) return t->dim[0].sym->bound;
    int named = n_named_ins(n->op);
    bool has_offsets = false;
    for (int i = 0; i < named && i < n->n_in; i++)
        has_offsets |= !strcmp(op_info[n->op].ins[i].name, "offsets");
    return has_offsets && type_ragged(t) ? type_ragged(t)->leaves : 1;
}

static void complete_attrs(Node *n) {
    if (lists(n->op, ATTR_leaves)) n->attr.leaves = summed_leaves(n);
    if (lists(n->op, ATTR_narrow)) n->attr.narrow = n->n_in > 0 && n->in[0]->type.dtype == BF16;
    if (lists(n->op, ATTR_dtype) && op_n_outs(n->op) == 1) { // a row that allows one element type gives it
        if (op_info[n->op].outs[0].kind == K_I32) n->attr.dtype = I32;
        if (op_info[n->op].outs[0].kind == K_F32) n->attr.dtype = F32;
    }
    if (n->attr.data && n->attr.dtype == F32) n->attr.dtype = n->attr.data->tensor.dtype;
    if (n->attr.body) n->attr.body->parent = n->graph;
    if (n->attr.epilogue) n->attr.epilogue->parent = n->graph;
}

// ---- nodes ----------------------------------------------------------------------------------------------

static bool reads_layout(const Node *n, int i) {
    bool transposed = layout_is_transposed((Layout)n->in[i]->type.layout);
    if (n->op == OP_GATHER_ROWS) return i == 0 && transposed && n->in[0]->type.ndim == 2;
    if (n->op != OP_MATMUL && n->op != OP_GROUPED_MATMUL) return false;
    int second = contraction_of(n).second;
    bool pair_agrees = second < 0 || n->in[1]->type.layout == n->in[second]->type.layout;
    return (i == 1 || i == second) && transposed == (n->attr.tb != 0) && pair_agrees;
}

// Panels are parameters, and matrices for those who read them.
static bool has_layouts(const Node *n, Diag *d) {
    for (int i = 0; i < n->n_out; i++) {
        const Type *t = &n->out[i].type;
        Layout l = (Layout)t->layout;
        if (l == LAYOUT_ROWS) continue;
        bool matrix = t->ndim >= 2;
        for (int k = 0; k < t->ndim; k++) matrix &= t->dim[k].sym == NULL;
        if (n->op == OP_PARAM && matrix && t->dtype == (layout_is_pairs(l) ? BF16 : F32)) continue;
        diag_error(d, n->at, "only parameters that are matrices lie in panels, f32 in P32 and bf16 in P32V, not %s",
                   type_text(n->graph->arena, t));
        return false;
    }
    for (int i = 0; i < n->n_in; i++) {
        if (n->in[i]->type.layout == LAYOUT_ROWS || reads_layout(n, i)) continue;
        diag_error(d, n->at, "operand %d of %s can't be in panels as %s is", i, op_info[n->op].name,
                   type_text(n->graph->arena, &n->in[i]->type));
        return false;
    }
    return true;
}

bool node_check(const Node *n, Diag *d) {
    enum { FEW = 8 };
    Type few[FEW], *types = n->n_out <= FEW ? few : malloc(sizeof *types * (size_t)n->n_out);
    if (!types) abort();
    bool ok = has_operands(n, d) && has_form(n, d) && op_info[n->op].shape(n, types, d) &&
              has_results(n, types, d);
    for (int i = 0; ok && i < n->n_out; i++) {
        if (type_eq(&types[i], &n->out[i].type)) continue;
        Arena *a = n->graph->arena;
        diag_error(d, n->at, "result %d of %s is %s by its operands, but %s is written", i,
                   op_info[n->op].name, type_text(a, &types[i]), type_text(a, &n->out[i].type));
        ok = false;
    }
    if (types != few) free(types);
    return ok && has_layouts(n, d) && op_info[n->op].check(n, d);
}

static void insert(Graph *g, Node *n, Node *before) {
    n->next = before;
    n->prev = before ? before->prev : g->last;
    if (n->prev) n->prev->next = n;
    else g->first = n;
    if (before) before->prev = n;
    else g->last = n;
    g->n_nodes++;
}

// A node that a pass builds wrongly is our bug: say which and stop.
static Node *refuse(const Builder *b, Diag *d, const Node *n) {
    if (b->diag) return NULL;
    diag_print(d, stderr, false);
    fprintf(stderr, "moec: internal: a wrong '%s' was built in @%s", op_info[n->op].name, b->g->name);
    for (int i = 0; i < n->n_in; i++)
        fprintf(stderr, "%s %s", i ? "," : ", operands", type_text(b->g->arena, &n->in[i]->type));
    fprintf(stderr, "\n");
    abort();
}

// Rows that a route inside a region defines are known outside by the region's result.
static void lift_extents(Node *n) {
    const Graph *root = n->graph;
    while (root->parent) root = root->parent;
    const Node *yield = n->attr.body->last;
    if (!yield || yield->op != OP_YIELD || yield->n_in < n->n_out) return;      // node_check tells
    for (int s = 0; s < root->n_syms; s++)
        for (int i = 0; i < n->n_out; i++)
            if (root->sym[s]->extent == yield->in[i]) {
                root->sym[s]->extent = &n->out[i];
                break;
            }
}

static Node *build_any(Builder *b, Op op, Value *const *ins, const Attrs *attrs, int n_out,
                       const Type *types) {
    Arena *a = b->g->arena;
    int n_in = 0;
    while (ins && ins[n_in]) n_in++;
    // An operand that an earlier error left out ends the list early: that error was told already.
    if (n_in < n_named_ins(op) - op_info[op].variadic && b->diag && diag_n_errors(b->diag)) return NULL;

    Node *n = arena_new(a, Node);
    *n = (Node){.op = op, .n_in = (int16_t)n_in, .attr = *attrs, .at = b->at, .path = b->path, .graph = b->g,
                .backward = b->backward};
    n->in = arena_array(a, Value *, n_in + 1);
    if (n_in) memcpy(n->in, ins, sizeof *ins * (size_t)n_in);
    complete_attrs(n);
    if (n_out < 0) n_out = count_results(op, &n->attr);
    n->n_out = (int16_t)n_out;
    n->out = arena_array(a, Value, n_out);
    for (int i = 0; i < n_out; i++) n->out[i] = (Value){.node = n, .index = i, .arena = -1};

    Diag *d = b->diag ? b->diag : diag_new(a);
    if (!has_operands(n, d) || !has_form(n, d)) return refuse(b, d, n);
    if (types) {
        for (int i = 0; i < n_out; i++) n->out[i].type = types[i];
    } else {
        Type few[4] = {{0}}, *shaped = n_out <= 4 ? few : arena_array(a, Type, n_out);
        if (!op_info[op].shape(n, shaped, d)) return refuse(b, d, n);
        for (int i = 0; i < n_out; i++) n->out[i].type = shaped[i];
        if (!has_results(n, shaped, d)) return refuse(b, d, n);
    }
    if (!op_info[op].check(n, d)) return refuse(b, d, n);

    for (int i = 0; i < n_in; i++) n->in[i]->n_uses++;
    insert(b->g, n, b->before);
    if (op == OP_ROUTE && n->attr.sym) n->attr.sym->extent = &n->out[0];
    if (n->attr.body) lift_extents(n);
    node_was_made(n);
    return n;
}

Node *build_node(Builder *b, Op op, Value *const *ins, const Attrs *attrs) {
    return build_any(b, op, ins, attrs, -1, NULL);
}

Node *build_typed(Builder *b, Op op, Value *const *ins, const Attrs *attrs, int n_out, const Type *types) {
    return build_any(b, op, ins, attrs, n_out, types);
}

// ---- small ones -----------------------------------------------------------------------------------------

Value *build_const(Builder *b, double value, DType dtype) {
    return make(b, OP_CONST, NULL, .dtype = dtype, .value = value);
}

Value *build_data(Builder *b, const Tensor *t) {
    Data *data = arena_new(b->g->arena, Data);
    data->tensor = *t;
    data->bytes = dtype_bytes(t->dtype);
    for (int i = 0; i < t->ndim; i++) data->bytes *= t->dim[i];
    data->tensor.data = arena_alloc(b->g->arena, (size_t)data->bytes);
    if (data->bytes) memcpy(data->tensor.data, t->data, (size_t)data->bytes);
    uint64_t hash = str_hash(&t->dtype, sizeof t->dtype, 0);
    hash = str_hash(t->dim, sizeof *t->dim * (size_t)t->ndim, hash);
    data->hash = str_hash(data->tensor.data, (size_t)data->bytes, hash);
    return make(b, OP_CONST, NULL, .dtype = t->dtype, .data = data);
}

Value *build_unary(Builder *b, Op op, Value *x) { return make(b, op, INS(x), 0); }

Value *build_binary(Builder *b, Op op, Value *x, Value *y) { return make(b, op, INS(x, y), 0); }

Value *build_scale(Builder *b, Value *x, double factor) {
    if (!x || factor == 1) return x;
    return build_binary(b, OP_MUL, x, build_const(b, factor, x->type.dtype));
}

Value *build_cast(Builder *b, Value *x, DType dtype) {
    if (!x || x->type.dtype == dtype) return x;
    return make(b, OP_CAST, INS(x), .dtype = dtype);
}

static bool has_dims(const Value *x, const Dims *dims) {
    Type t = type_of_dims(x->type.dtype, dims);
    return type_eq(&x->type, &t);
}

Value *build_reshape(Builder *b, Value *x, const Dims *dims) {
    if (!x || has_dims(x, dims)) return x;
    return make(b, OP_RESHAPE, INS(x), .dims = *dims);
}

Value *build_broadcast(Builder *b, Value *x, const Dims *dims) {
    if (!x || has_dims(x, dims)) return x;
    return make(b, OP_BROADCAST, INS(x), .dims = *dims);
}

Value *build_sum(Builder *b, Value *x, const Ints *axes) { return make(b, OP_SUM, INS(x), .axes = *axes); }

Value *build_sum_to(Builder *b, Value *x, const Type *to) {
    if (!x) return NULL;
    const Type *t = &x->type;
    Ints axes = {0};
    int missing = t->ndim - to->ndim;
    assert(missing >= 0);
    for (int i = 0; i < t->ndim; i++) {
        bool repeated = i < missing || (dim_is_1(to->dim[i - missing]) && !dim_is_1(t->dim[i]));
        if (repeated && !dim_is_1(t->dim[i])) axes.at[axes.n++] = i;
    }
    if (axes.n) x = build_sum(b, x, &axes);
    if (!x) return NULL;
    Dims dims = dims_of(to);
    return build_reshape(b, x, &dims);
}
