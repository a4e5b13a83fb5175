// PLANNED graphs become one plan.
//
//     values      where each lives: where plan-memory says, a persistent tensor, a constant, its operand
//     kernels     one per distinct key
//     steps       one per node that computes; copies for what leaves the graph and can't be written in place
//
// Values that leave a graph (outputs, gradients of a single-pass step, updates) are made where they belong
// when that is legal: their producer then writes the persistent buffer and no copy step follows.
#include "codegen/emit_plan.h"
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "codegen/interp/ref_kernel.h"
#include "ir/base/vec.h"

typedef struct { int64_t offset; int arena; } Loc;
enum { NOWHERE = -1 };

typedef struct {
    const Graph *g;
    Loc *loc;              // by value id
    int64_t workspace;     // largest of its steps
    int64_t chunk_bytes;   // offsets of chunks, behind what plan-memory has laid out
    int first_step, n_steps;
} Prog;

typedef struct {
    const Sym *sym;
    int index;
} SymSlot;

// From interned texts and from keys to numbers; open addressing.
typedef struct {
    const void **key;
    int64_t *value;
    int n, cap;
} Map;

typedef struct {
    RtTensor t;
    const char *name;
    int64_t ordinal;       // outputs: which of this name in its program
} TensorSlot;

typedef struct {
    Arena *a;
    Diag  *d;
    const PlanOpts *opts;
    Str text;
    Map texts, keys, names, places;        // by text, kernel key, tensor name, source position
    VEC(SymSlot) sym_slots;
    VEC(RtSym) syms;
    VEC(TensorSlot) tensors;
    VEC(RtSlotTable) slot_tables;
    VEC(PlanKernel) kernels;
    VEC(RtKernel) rt_kernels;
    VEC(RtArg) args;
    VEC(RtStep) steps;
    VEC(RtProgram) programs;
    VEC(RtSource) sources;
    char *consts;
    size_t n_consts, cap_consts;
    int64_t persistent;
    Map exchanges;         // from their nodes to their numbers: one, or one for each chunk that is sent by itself
    int n_exchanges;
    Map chunk_offsets;     // from offsets to where those of their chunks are
    int chunk, chunks;     // of the step that is added
    Prog *prog;            // being emitted
} Plan;

// ---- pieces of the block -------------------------------------------------------------------------------

static int64_t map_get(const Map *m, const void *key, int64_t none) {
    if (!m->cap) return none;
    for (size_t i = str_hash(&key, sizeof key, 0) & (size_t)(m->cap - 1);;
         i = (i + 1) & (size_t)(m->cap - 1)) {
        if (!m->key[i]) return none;
        if (m->key[i] == key) return m->value[i];
    }
}

static void map_put(Arena *a, Map *m, const void *key, int64_t value) {
    if (m->n * 2 >= m->cap) {
        Map old = *m;
        *m = (Map){.cap = old.cap ? old.cap * 2 : 64};
        m->key = arena_array(a, const void *, m->cap);
        m->value = arena_array(a, int64_t, m->cap);
        for (int i = 0; i < old.cap; i++)
            if (old.key[i]) map_put(a, m, old.key[i], old.value[i]);
    }
    size_t i = str_hash(&key, sizeof key, 0) & (size_t)(m->cap - 1);
    while (m->key[i]) i = (i + 1) & (size_t)(m->cap - 1);
    m->key[i] = key;
    m->value[i] = value;
    m->n++;
}

static uint32_t add_text(Plan *p, const char *text) {
    if (!text || !*text) return 0;                    // offset 0 is the empty text
    text = intern(text);
    int64_t at = map_get(&p->texts, text, -1);
    if (at < 0) {
        at = (int64_t)p->text.n;
        str_add_n(&p->text, text, strlen(text) + 1);
        map_put(p->a, &p->texts, text, at);
    }
    return (uint32_t)at;
}

static int64_t add_const_bytes(Plan *p, const void *bytes, size_t n) {
    size_t at = (p->n_consts + 63) & ~(size_t)63;
    if (at + n > p->cap_consts) {
        size_t cap = (at + n) * 2 + 4096;
        char *more = arena_alloc(p->a, cap);
        if (p->n_consts) memcpy(more, p->consts, p->n_consts);
        p->consts = more;
        p->cap_consts = cap;
    }
    memcpy(p->consts + at, bytes, n);
    p->n_consts = at + n;
    return (int64_t)at;
}

static int64_t add_persistent(Plan *p, int64_t bytes) {
    int64_t align = bytes > (2 << 20) ? 4096 : 64;
    int64_t at = (p->persistent + align - 1) / align * align;
    p->persistent = at + bytes;
    return at;
}

static uint32_t add_span(Plan *p, Span at) {
    const void *key = (const void *)(((uintptr_t)at.file << 40 | at.begin) + 1);
    int64_t number = map_get(&p->places, key, -1);
    if (number >= 0) return (uint32_t)number;
    RtSource s = {0};
    if (at.file) {
        int line = 0, column = 0;
        diag_line_column(p->d, at, &line, &column);
        s = (RtSource){add_text(p, diag_file_name(p->d, at.file)), (uint32_t)line, (uint32_t)column, 0};
    }
    vec_push(p->a, &p->sources, s);
    map_put(p->a, &p->places, key, p->sources.n - 1);
    return (uint32_t)p->sources.n - 1;
}

// Leaf and plain symbols of all programs share an entry by name; ragged ones have their own.
static int sym_index(Plan *p, const Sym *s) {
    for (int i = 0; i < p->sym_slots.n; i++)
        if (p->sym_slots.at[i].sym == s) return p->sym_slots.at[i].index;
    int index = -1;
    for (int i = 0; s->kind != SYM_RAGGED && i < p->sym_slots.n; i++) {
        const Sym *t = p->sym_slots.at[i].sym;
        if (t->kind == s->kind && t->name == s->name && t->bound == s->bound)
            index = p->sym_slots.at[i].index;
    }
    if (index < 0) {
        RtSym r = {.name = add_text(p, s->name), .bound = s->bound, .fixed = -1, .from_arena = -1,
                   .leaves = s->kind == SYM_LEAF ? (int32_t)s->bound : s->kind == SYM_RAGGED ? s->leaves : 0};
        if (s->kind == SYM_LEAF) r.fixed = s->bound;
        vec_push(p->a, &p->syms, r);
        index = p->syms.n - 1;
    }
    SymSlot slot = {s, index};
    vec_push(p->a, &p->sym_slots, slot);
    return index;
}

// ---- tensors -------------------------------------------------------------------------------------------

static bool same_shape(const RtTensor *a, const RtTensor *b) {
    return a->dtype == b->dtype && a->layout == b->layout && a->ndim == b->ndim && !memcmp(a->dim, b->dim, sizeof a->dim) &&
           !memcmp(a->dim_sym, b->dim_sym, sizeof a->dim_sym);
}

// Of anything but outputs; -1: none.
static int find_tensor(const Plan *p, const char *name) { return (int)map_get(&p->names, intern(name), -1); }

static RtTensor tensor_of_type(Plan *p, const Type *t, const char *name, RtRole role, Span at) {
    RtTensor x = {.name = add_text(p, name),
                  .dtype = (uint8_t)t->dtype,
                  .ndim = t->ndim,
                  .role = (uint8_t)role,
                  .arena = RT_PERSISTENT,
                  .layout = t->layout,
                  .bytes = type_bytes(t),
                  .span = add_span(p, at)};
    x.init_name = x.name;
    for (int i = 0; i < MAX_DIM; i++) x.dim_sym[i] = -1;
    for (int i = 0; i < t->ndim; i++) {
        x.dim[i] = dim_bound(t->dim[i]);
        if (t->dim[i].sym) x.dim_sym[i] = sym_index(p, t->dim[i].sym);
    }
    return x;
}

static int init_kind(const char *name) {
    static const char *const kinds[] = {"zeros",   "const",      "normal", "trunc_normal",
                                        "uniform", "random_int", "copy"};
    for (int i = 0; name && i < (int)(sizeof kinds / sizeof *kinds); i++)
        if (!strcmp(name, kinds[i])) return i;
    return RT_INIT_ZEROS;
}

// 1 + the number of the slot table by which axis 0 of what `experts` ranks have together is cut; 0: none.
static int slot_table(Plan *p, const Node *n, int64_t experts) {
    if (!n->attr.slots || !n->attr.over) return 0;
    uint32_t name = add_text(p, n->attr.slots);
    for (int i = 0; i < p->slot_tables.n; i++)
        if (p->slot_tables.at[i].name == name) return 1 + i;
    RtSlotTable t = {.name = name, .experts = (int32_t)experts, .slots = (int32_t)experts + n->graph->mesh.replicas};
    vec_push(p->a, &p->slot_tables, t);
    return p->slot_tables.n;
}

// The persistent tensor of a name: made at first sight, shared by all programs after that.  -1 after
// diag_error.
static int named_tensor(Plan *p, const Type *t, const char *name, RtRole role, const Node *n) {
    int i = find_tensor(p, name);
    RtTensor x = tensor_of_type(p, t, name, role, n->at);
    if (i >= 0) {
        if (same_shape(&p->tensors.at[i].t, &x)) {
            // a gradient may be known before its parameter's own node is seen; the declaring node says more
            if (p->tensors.at[i].t.role == role || role == RT_GRAD) return i;
            if (role == RT_STATE && p->tensors.at[i].t.role == RT_GRAD) return i;
        }
        diag_error(p->d, n->at, "`%s` is used as %s and as another tensor of the same name", name,
                   type_text(p->a, t));
        return -1;
    }
    if (role == RT_PARAM || role == RT_STATE) {
        x.init = (uint8_t)init_kind(n->attr.init);
        x.init_a = n->attr.init_a;
        x.init_b = n->attr.init_b;
        x.saved = 1;
        x.experts = n->attr.group && !strcmp(n->attr.group, "expert") && t->ndim > 1;
        if (x.init == RT_INIT_COPY) x.init_from = x.init_name = add_text(p, n->attr.init_from);
    }
    RtGroup group;
    bool is_cut = (n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_ACCUMULATE) && exchange_group(n, &group);
    if (is_cut) {
        x.shard = (uint8_t)(1 + group);
        x.table = (uint16_t)slot_table(p, n, x.dim[0] * rt_group_size(n->graph->mesh, group) - n->graph->mesh.replicas);
    }
    x.tp = (uint8_t)n->attr.tp;
    x.offset = add_persistent(p, x.bytes);
    TensorSlot slot = {x, name, 0};
    vec_push(p->a, &p->tensors, slot);
    map_put(p->a, &p->names, intern(name), p->tensors.n - 1);
    return p->tensors.n - 1;
}

static Loc tensor_loc(const Plan *p, int i) { return (Loc){p->tensors.at[i].t.offset, RT_PERSISTENT}; }

static bool is_grad_name(const char *name) { return !strncmp(name, "grad/", 5); }

// An input of a program that another one has in another shape (a batch there, one sequence here):
// PROGRAM/NAME.
static const char *input_name(Plan *p, const Node *n) {
    int i = find_tensor(p, n->attr.name);
    if (i < 0 || p->tensors.at[i].t.role != RT_INPUT) return n->attr.name;
    RtTensor x = tensor_of_type(p, &n->out[0].type, n->attr.name, RT_INPUT, n->at);
    return same_shape(&p->tensors.at[i].t, &x)
               ? n->attr.name
               : intern(arena_printf(p->a, "%s/%s", n->graph->name, n->attr.name));
}

static int source_tensor(Plan *p, const Node *n) {
    if (n->op == OP_INPUT) return named_tensor(p, &n->out[0].type, input_name(p, n), RT_INPUT, n);
    RtRole role = n->op == OP_PARAM ? RT_PARAM : is_grad_name(n->attr.name) ? RT_GRAD : RT_STATE;
    return named_tensor(p, &n->out[0].type, n->attr.name, role, n);
}

static int output_tensor(Plan *p, const Node *n, int64_t ordinal) {
    RtOutputKind kind = n->op == OP_LOSS ? RT_OUT_LOSS : n->op == OP_METRIC ? RT_OUT_METRIC : RT_OUT_RESULT;
    RtTensor x = tensor_of_type(p, &n->in[0]->type, n->attr.name, RT_OUTPUT, n->at);
    x.kind = (uint8_t)kind;
    x.weight = n->op == OP_LOSS ? (float)n->attr.weight : 0;
    if (n->op == OP_LOSS) x.init_a = n->attr.until;
    for (int i = 0; i < p->tensors.n; i++) {
        const TensorSlot *s = &p->tensors.at[i];
        if (s->t.role == RT_OUTPUT && s->ordinal == ordinal && !strcmp(s->name, n->attr.name) &&
            s->t.kind == x.kind && same_shape(&s->t, &x) && s->t.weight == x.weight)
            return i;
    }
    x.offset = add_persistent(p, x.bytes);
    TensorSlot slot = {x, n->attr.name, ordinal};
    vec_push(p->a, &p->tensors, slot);
    return p->tensors.n - 1;
}

// Gradients, optimizer states and the like of a tensor of experts are cut by expert too.
static void mark_experts(Plan *p) {
    for (int i = 0; i < p->tensors.n; i++) {
        RtTensor *t = &p->tensors.at[i].t;
        const char *slash = strchr(p->tensors.at[i].name, '/');
        if (t->role == RT_PARAM || t->role >= RT_INPUT || !slash) continue;
        int of = find_tensor(p, slash + 1);
        if (of >= 0 && p->tensors.at[of].t.experts && t->ndim == p->tensors.at[of].t.ndim) t->experts = 1;
    }
}

// ---- kernels -------------------------------------------------------------------------------------------

static void note_sym(Plan *p, KernelNode *k, const Sym *s) {
    if (!s || s->kind == SYM_LEAF) return;
    if (s->kind == SYM_PLAIN) {
        for (int i = 0; i < k->n_plain; i++)
            if (k->plain[i] == s) return;
        assert(k->n_plain < KERNEL_MAX_RAGGED);
        k->plain[k->n_plain] = s;
        k->plain_index[k->n_plain++] = sym_index(p, s);
        return;
    }
    if (s->extent && s->extent->node == k->node) return;        // defined here
    if (k->node->op == OP_ROUTE && k->node->attr.sym == s) return;
    for (int i = 0; i < k->n_ragged; i++)
        if (k->ragged[i] == s) return;
    assert(k->n_ragged < KERNEL_MAX_RAGGED);
    k->ragged[k->n_ragged++] = s;
}

static void note_type(Plan *p, KernelNode *k, const Type *t) {
    for (int i = 0; i < t->ndim; i++) note_sym(p, k, t->dim[i].sym);
}

static void note_node(Plan *p, KernelNode *k, const Node *n) {
    for (int i = 0; i < n->n_in; i++) note_type(p, k, &n->in[i]->type);
    for (int i = 0; i < n->n_out; i++) note_type(p, k, &n->out[i].type);
    for (int i = 0; i < n->attr.dims.n; i++) note_sym(p, k, n->attr.dims.at[i].sym);
    note_sym(p, k, n->attr.sym);
    const Graph *region[] = {n->attr.body, n->attr.epilogue};
    for (int r = 0; r < 2; r++) {
        if (!region[r]) continue;
        for_each_node(region[r], m) note_node(p, k, m);
    }
}

static void key_sym(Str *s, const KernelNode *k, const Sym *sym) {
    for (int i = 0; i < k->n_plain; i++)
        if (k->plain[i] == sym) {
            str_printf(s, "P%d", k->plain_index[i]);
            return;
        }
    for (int i = 0; i < k->n_ragged; i++)
        if (k->ragged[i] == sym) {
            str_printf(s, "R%d(%d,%d)", i, sym->groups, sym->leaves);
            return;
        }
    str_printf(s, "D(%d,%d)", sym->groups, sym->leaves);        // defined by the node
}

static void key_dim(Str *s, const KernelNode *k, Dim d) {
    if (d.sym && d.sym->kind == SYM_LEAF) {
        str_printf(s, "%lldL%lld", (long long)d.n, (long long)d.sym->bound);
        return;
    }
    str_printf(s, "%lld", (long long)d.n);
    if (d.sym) key_sym(s, k, d.sym);
}

static void key_type(Str *s, const KernelNode *k, const Type *t) {
    str_add(s, dtype_name(t->dtype));
    str_add(s, "[");
    for (int i = 0; i < t->ndim; i++) {
        if (i) str_add(s, ",");
        key_dim(s, k, t->dim[i]);
    }
    str_add(s, "]");
    if (t->layout != LAYOUT_ROWS) str_printf(s, ".%s", layout_name((Layout)t->layout));
}

static void key_body(Str *s, const KernelNode *k, const Graph *body);

static void key_attrs(Str *s, const KernelNode *k, const Node *n) {
    static const Attrs none;
    for (int i = 0; i < ATTR_COUNT; i++) {
        const char *at = (const char *)&n->attr + attr_info[i].offset,
                   *zero = (const char *)&none + attr_info[i].offset;
        switch (attr_info[i].kind) {
        case A_INT:
            if (memcmp(at, zero, sizeof(int64_t)))
                str_printf(s, " %s=%lld", attr_info[i].name, (long long)*(const int64_t *)at);
            break;
        case A_REAL:
            if (memcmp(at, zero, sizeof(double)))
                str_printf(s, " %s=%a", attr_info[i].name, *(const double *)at);
            break;
        case A_NAME:
            if (*(const Name *)at && i == ATTR_chain)
                str_printf(s, " %s=%s", attr_info[i].name, *(const Name *)at);
            break;
        case A_INTS: {
            const Ints *v = (const Ints *)at;
            for (int j = 0; j < v->n; j++) str_printf(s, "%s%lld", j ? "," : " ints=", (long long)v->at[j]);
            if (v->n) str_printf(s, "(%s)", attr_info[i].name);
            break;
        }
        case A_DIMS: {
            const Dims *v = (const Dims *)at;
            for (int j = 0; j < v->n; j++) {
                str_add(s, j ? "," : " dims=");
                key_dim(s, k, v->at[j]);
            }
            break;
        }
        case A_DATA: {
            const Data *data = *(const DataP *)at;
            if (data) str_printf(s, " data=%016llx", (unsigned long long)data->hash);
            break;
        }
        case A_SYM:
            if (*(const SymP *)at) {
                str_add(s, " sym=");
                if ((*(const SymP *)at)->kind == SYM_LEAF)
                    str_printf(s, "L%lld", (long long)(*(const SymP *)at)->bound);
                else key_sym(s, k, *(const SymP *)at);
            }
            break;
        case A_GRAPH:
            if (*(const GraphP *)at) {
                str_printf(s, " %s=", attr_info[i].name);
                key_body(s, k, *(const GraphP *)at);
            }
            break;
        }
    }
}

static void key_body(Str *s, const KernelNode *k, const Graph *body) {
    graph_number((Graph *)body);
    str_add(s, "{");
    for_each_node(body, n) {
        for (int i = 0; i < n->n_out; i++) {
            str_printf(s, "%%%d:", n->out[i].id);
            key_type(s, k, &n->out[i].type);
        }
        str_printf(s, "=%s", op_info[n->op].name);
        for (int i = 0; i < n->n_in; i++) str_printf(s, " %%%d", n->in[i]->id);
        key_attrs(s, k, n);
        str_add(s, ";");
    }
    str_add(s, "}");
}

double node_flops(const Node *n) {
    double out = n->n_out ? (double)type_bound_elements(&n->out[0].type) : 0;
    const Type *a = n->n_in ? &n->in[0]->type : NULL;
    switch (n->op) {
    case OP_MATMUL: case OP_GROUPED_MATMUL: {
        int last = a->ndim - (n->op == OP_MATMUL && n->attr.ta ? 2 : 1);
        return 2.0 * out * (double)dim_bound(a->dim[last]) * (n->attr.pair ? 2 : 1);
    }
    case OP_MATMUL_DW: case OP_GROUPED_DW: {
        Contraction c = contraction_of(n);
        return 2.0 * (double)rows_bound(&c.a) * (double)type_cols(&c.a) * (double)type_cols(&c.b);
    }
    case OP_ATTENTION: case OP_ATTENTION_GRAD: {
        const Type *q = a, *k = &n->in[1]->type;       // q [.., S, H, A], k [.., C, Hk, A]
        double scores = (double)rows_bound(q) * (double)dim_bound(k->dim[k->ndim - 3]);
        double pairs = n->attr.causal ? 0.5 : 1;
        double width = (double)type_cols(q) + (double)type_cols(&n->in[2]->type);
        return 2 * scores * pairs * width * (n->op == OP_ATTENTION ? 1 : 2.5);
    }
    case OP_HEAD_LOSS: case OP_HEAD_LOSS_GRAD: case OP_HEAD_LOSS_AND_GRAD:
        return 2.0 * (double)rows_bound(a) * (double)type_bound_elements(&n->in[1]->type) *
               (n->op == OP_HEAD_LOSS ? 1 : 3);
    case OP_FUSED: case OP_GATE: {
        double flops = 0;
        for_each_node(n->attr.body, m) {
            if (m->op == OP_ARG || m->op == OP_CONST || m->op == OP_YIELD) continue;
            flops += node_flops(m);
        }
        return flops;
    }
    default:
        for (int i = 0; i < n->n_in; i++) {
            double size = (double)type_bound_elements(&n->in[i]->type);
            if (size > out && n->op != OP_GATHER_ROWS && n->op != OP_SLICE) out = size;
        }
        return op_is(n->op, VIEW) || n->op == OP_COPY || n->op == OP_CONCAT || n->op == OP_GATHER_ROWS ? 0
                                                                                                       : out;
    }
}

RtWorkKind node_work(const Node *n) {
    if (!op_is(n->op, PRODUCTS)) return RT_ELEMENTWISE;
    return n->in[0]->type.dtype == BF16 && n->in[1]->type.dtype == BF16 ? RT_CONTRACTION_BF16 : RT_CONTRACTION;
}

static uint64_t key_hash(const char *key) { return str_hash(key, strlen(key), 0xcbf29ce484222325u); }

// The kernel of a key: the one that is there, or a new one.  data: its constant block, or NULL.
static int kernel_named(Plan *p, PlanKernel new, int n_rounds, const void *data, size_t bytes) {
    int64_t there = map_get(&p->keys, new.key, -1);
    if (there >= 0) return (int)there;
    map_put(p->a, &p->keys, new.key, p->kernels.n);
    RtKernel rt = {.symbol = add_text(p, new.symbol), .n_phases = (uint16_t)new.n_phases, .n_rounds = (uint16_t)n_rounds};
    if (data) rt.data = (RtSpan){(uint32_t)add_const_bytes(p, data, bytes), (uint32_t)bytes};       // moved by finish
    vec_push(p->a, &p->kernels, new);
    vec_push(p->a, &p->rt_kernels, rt);
    return p->kernels.n - 1;
}

// The kernel of a node: an equal one that is there, or a new one.  desc is filled in both cases.
static int kernel_of(Plan *p, KernelNode *k, KernelDesc *desc) {
    const Node *n = k->node;
    *desc = (KernelDesc){.key = {.arena = p->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) desc->tasks[i] = tasks_fixed(1);
    Str *key = &desc->key;
    str_add(key, op_info[n->op].name);
    for (int i = 0; i < kernel_n_args(k); i++) {
        str_add(key, i == n->n_in ? " -> " : " ");
        key_type(key, k, kernel_arg_type(k, i));
    }
    key_attrs(key, k, n);
    const KernelTemplate *t = p->opts->template_of ? p->opts->template_of(n->op) : NULL;
    KernelDesc fresh = *desc;
    if (t && !t->describe(k, desc)) {
        *desc = fresh;
        t = NULL;
    }
    for (int i = 0; !t && i < n->n_in; i++)
        if (n->in[i]->type.layout != LAYOUT_ROWS)
            diag_error(p->d, n->at, "this target runs %s by reference, which reads no %s", op_info[n->op].name,
                       type_text(p->a, &n->in[i]->type));
    if (desc->flops == 0) desc->flops = node_flops(n);
    k->workspace = desc->workspace > 0;
    void *data = NULL;
    size_t bytes = 0;
    if (t) {
        for (int i = 0; i < desc->n_phases; i++)
            str_printf(key, " phase %lld/%lld", (long long)desc->tasks[i].grain,
                       (long long)desc->tasks[i].times);
        if (desc->n_rounds > 1) str_printf(key, " rounds %d", desc->n_rounds);
        if (desc->workspace) str_add(key, " workspace");
    } else {
        data = ref_kernel_data(p->a, k, &bytes);
        str_printf(key, " ref %016llx", (unsigned long long)str_hash(data, bytes, 0));
    }
    const char *text = intern(key->text);
    const char *symbol =
        t ? arena_printf(p->a, "moec_%s_%016llx", op_info[n->op].name, (unsigned long long)key_hash(text))
          : REF_KERNEL_SYMBOL;
    PlanKernel kernel = {.key = text, .symbol = symbol, .made_by = t, .node = *k, .n_phases = desc->n_phases, .n_choices = desc->n_choices};
    memcpy(kernel.choice, desc->choice, sizeof kernel.choice);
    return kernel_named(p, kernel, desc->n_rounds, data, bytes);
}

// Exchanges are the runtime's: what they need to know stands in a block of their own.
// The symbol that sizes of x vary with: rows that are no leaves.  NULL: none.
static Sym *varying(const Type *t) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym && t->dim[i].sym->kind != SYM_LEAF) return t->dim[i].sym;
    return NULL;
}

static int64_t run_from(const Type *t, int64_t axis) {
    int64_t n = 1;
    for (int i = (int)axis; i < t->ndim; i++) n *= dim_bound(t->dim[i]);
    return n;
}

static int exchange_kernel(Plan *p, KernelNode *k, KernelDesc *desc) {
    static const int kind[N_OPS] = {[OP_TREE_ALL_REDUCE] = RT_TREE_ALL_REDUCE, [OP_TREE_REDUCE_SCATTER] = RT_TREE_REDUCE_SCATTER,
                                    [OP_ALL_GATHER] = RT_ALL_GATHER,           [OP_SHARD] = RT_SHARD,
                                    [OP_EXCHANGE_OFFSETS] = RT_EXCHANGE_OFFSETS, [OP_EXCHANGE_ROWS] = RT_EXCHANGE_ROWS,
                                    [OP_RETURN_ROWS] = RT_RETURN_ROWS,           [OP_SUM_REPLICAS] = RT_SUM_REPLICAS,
                                    [OP_WAIT] = RT_WAIT};
    const Node *n = k->node, *x = n->op == OP_WAIT ? n->in[0]->node : n;
    const Type *t = &x->in[0]->type;
    int by_itself = x->op == OP_RETURN_ROWS && p->chunks > 1 ? p->chunk : 0;
    const Sym *rows = x->op == OP_EXCHANGE_ROWS ? type_ragged(t) : x->op == OP_RETURN_ROWS ? x->attr.sym : NULL;
    RtGroup group = RT_GROUP_DATA;
    int line = 0, column = 0;
    exchange_group(x, &group);
    if (x->at.file) diag_line_column(p->d, x->at, &line, &column);
    if (map_get(&p->exchanges, x, -1) < 0) {
        map_put(p->a, &p->exchanges, x, p->n_exchanges);
        p->n_exchanges += x->op == OP_RETURN_ROWS && p->chunks > 1 ? p->chunks : 1;
    }
    RtExchange e = {.kind = kind[n->op],
                    .group = (int32_t)group,
                    .dtype = (int32_t)t->dtype,
                    .sequence = (uint32_t)(map_get(&p->exchanges, x, 0) + by_itself),
                    .pending = (int32_t)x->attr.pending,
                    .sym = -1,
                    .elements = type_bound_elements(t)};
    if (n->op == OP_RETURN_ROWS || (n->op == OP_WAIT && x->op == OP_EXCHANGE_ROWS)) {
        e.chunk = p->chunk;
        e.chunks = p->chunks;
    }
    e.where = add_text(p, arena_printf(p->a, "%s %s (%s:%d)", op_info[x->op].name, x->path ? x->path : "",
                                       x->at.file ? diag_file_name(p->d, x->at.file) : "", line));
    if (rows) {
        e.experts = rows->groups;
        e.leaves = rows->leaves;
        e.elements /= t->dim[0].sym->bound ? t->dim[0].sym->bound : 1;
    } else if (x->op == OP_EXCHANGE_OFFSETS) {
        e.experts = (int32_t)x->attr.experts;
        e.leaves = (int32_t)((t->dim[0].n - 1) / x->attr.experts);
    } else if (varying(t)) {
        Sym *s = varying(t);
        e.sym = sym_index(p, s);
        e.elements /= s->bound ? s->bound : 1;
    }
    int64_t first = t->ndim ? dim_bound(t->dim[0]) : 0;
    RtMesh mesh = x->graph->mesh;
    bool is_part = x->op == OP_ALL_GATHER || x->op == OP_SUM_REPLICAS;
    int64_t experts = e.experts ? e.experts : is_part ? first * rt_group_size(mesh, group) - mesh.replicas : first;
    e.table = slot_table(p, x, experts);
    if (e.table && (e.experts || x->op == OP_SUM_REPLICAS)) {
        e.experts = (int32_t)experts;
        e.slots = (int32_t)experts + mesh.replicas;
    }
    if (x->op == OP_SHARD) e.parts = (int32_t)x->attr.parts;
    if ((x->op == OP_ALL_GATHER || x->op == OP_SHARD) && x->attr.axis)
        e.run = run_from(x->op == OP_SHARD ? &x->out[0].type : t, x->attr.axis);
    *desc = (KernelDesc){.key = {.arena = p->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) desc->tasks[i] = tasks_fixed(1);
    PlanKernel kernel = {.key = intern(arena_printf(p->a, "%s %u chunk %d", op_info[n->op].name, e.sequence, e.chunk)),
                         .symbol = EXCHANGE_SYMBOL, .node = *k, .n_phases = 1, .is_exchange = true};
    return kernel_named(p, kernel, 1, &e, sizeof e);
}

static RtTasks rt_tasks(Plan *p, TaskCount t) {
    RtTasks r = {.n = t.n, .grain = t.grain, .times = t.times, .sym = -1, .extra = t.extra};
    if (t.sym && t.sym->kind == SYM_LEAF) r.n *= t.sym->bound;
    else if (t.sym) r.sym = sym_index(p, t.sym);
    return r;
}

// ---- steps ---------------------------------------------------------------------------------------------

static Loc loc_of(const Plan *p, const Value *v) {
    Loc l = p->prog->loc[v->id];
    assert(l.arena != NOWHERE);
    return l;
}

static void push_arg(Plan *p, Loc l) {
    RtArg arg = {.offset = l.offset, .arena = (uint32_t)l.arena};
    vec_push(p->a, &p->args, arg);
}

enum { LOCS = 4 * MAX_NAMED + 32 };    // most operands and results of a node
enum { WORKSPACE_MARK = 0x7fff };      // offset is set when the size of all step buffers is known

static void add_bytes(Plan *p, RtStep *s, const Type *t) {
    double bytes = (double)type_bytes(t);
    s->bytes += bytes;
    for (int i = 0; i < t->ndim; i++) {
        const Sym *sym = t->dim[i].sym;
        if (!sym || sym->kind == SYM_LEAF) continue;
        int index = sym_index(p, sym), part = 0;
        while (part < s->n_parts && s->part[part].sym != index) part++;
        if (part == RT_MAX_PARTS) continue;
        if (part == s->n_parts) s->part[s->n_parts++].sym = index;
        s->part[part].bytes += bytes;
        return;
    }
}

// Of operand i: no more is read of it than this.  A slice, and rows by number, are as large as what they become.
static const Type *read_of(const Node *n, int i) {
    const Type *all = &n->in[i]->type, *some = all;
    if (n->op == OP_CACHE) return &n->in[1]->type;
    if ((n->op == OP_GATHER_ROWS || n->op == OP_SLICE || n->op == OP_TAKE) && i == 0) some = &n->out[0].type;
    if (n->op == OP_FUSED)
        for_each_node(n->attr.body, m) for (int k = 0; k < m->n_in; k++) {
            const Node *arg = m->in[k]->node;
            if (arg->op != OP_ARG || arg->attr.k != i) continue;
            if (m->op != OP_GATHER_ROWS || k > 0) return all;
            some = &m->out[0].type;
        }
    return type_bytes(some) < type_bytes(all) ? some : all;
}

// What the step moves and computes.
static void measure_step(Plan *p, RtStep *s, const KernelNode *k) {
    const Node *n = k->node;
    for (int i = 0; i < n->n_in; i++) add_bytes(p, s, read_of(n, i));
    for (int i = 0; i < n->n_out; i++) add_bytes(p, s, n->op == OP_CACHE ? &n->in[1]->type : &n->out[i].type);
    s->work = node_work(n);
    if (n->op == OP_GROUPED_MATMUL || n->op == OP_GROUPED_DW)
        for (int i = 0; i < k->n_ragged; i++) s->experts = k->ragged[i]->groups;
}

static uint32_t results_in_place(const Node *n, const Loc *loc) {
    uint32_t in_place = 0;
    for (int j = 0; j < n->n_out && j < 32; j++)
        for (int i = 0; i < n->n_in; i++)
            if (loc[i].arena == loc[n->n_in + j].arena && loc[i].offset == loc[n->n_in + j].offset) in_place |= 1u << j;
    return in_place;
}

// One step: node n with its operands and results at the given places.
static void add_step(Plan *p, const Node *n, const Loc *loc) {
    KernelNode *k = arena_new(p->a, KernelNode);
    *k = (KernelNode){.node = n, .machine = p->opts->machine, .target = p->opts->target};
    note_node(p, k, n);
    RtStep step = {.first_arg = (uint32_t)p->args.n,
                   .span = add_span(p, n->at),
                   .defines_sym = -1,
                   .backward = n->backward,
                   .op = add_text(p, op_info[n->op].name),
                   .path = add_text(p, n->path)};
    measure_step(p, &step, k);
    k->bytes = step.bytes;
    k->in_place = results_in_place(n, loc);
    KernelDesc desc;
    step.kernel = (uint32_t)(op_is(n->op, COMM) ? exchange_kernel(p, k, &desc) : kernel_of(p, k, &desc));
    step.flops = desc.flops;
    for (int i = 0; i < kernel_n_args(k); i++) push_arg(p, loc[i]);
    for (int i = 0; i < k->n_ragged; i++) push_arg(p, loc_of(p, k->ragged[i]->extent));
    if (desc.workspace) {
        push_arg(p, (Loc){0, WORKSPACE_MARK});
        if (desc.workspace > p->prog->workspace) p->prog->workspace = desc.workspace;
    }
    step.n_args = (uint32_t)p->args.n - step.first_arg;
    for (int i = 0; i < RT_MAX_PHASES; i++) step.tasks[i] = rt_tasks(p, desc.tasks[i]);
    for (int i = 0; i < p->prog->g->n_syms; i++) {
        const Sym *s = p->prog->g->sym[i];
        if (s->kind == SYM_RAGGED && s->extent && s->extent->node == n) {
            if (step.defines_sym >= 0)
                diag_error(p->d, n->at, "a step can define the rows of one route, this one has two");
            step.defines_sym = sym_index(p, s);
        }
    }
    vec_push(p->a, &p->steps, step);
    p->prog->n_steps++;
}

// As the others: a part of the step's work.
static void shrink_step(RtStep *s, int chunks) {
    s->flops /= chunks;
    s->bytes /= chunks;
    for (int i = 0; i < s->n_parts; i++) s->part[i].bytes /= chunks;
}

static void locs_of(const Plan *p, const Node *n, Loc *loc) {
    assert(n->n_in + n->n_out <= LOCS);
    for (int i = 0; i < n->n_in; i++) loc[i] = loc_of(p, n->in[i]);
    for (int i = 0; i < n->n_out; i++) loc[n->n_in + i] = loc_of(p, &n->out[i]);
}

static void add_node(Plan *p, const Node *n) {
    Loc loc[LOCS];
    locs_of(p, n, loc);
    add_step(p, n, loc);
}

// ---- chunks --------------------------------------------------------------------------------------------

// Where the offsets of all chunks are; a step in front makes them, once in a program.
static Loc chunk_offsets(Plan *p, const Node *n, const Value *offsets) {
    int64_t there = map_get(&p->chunk_offsets, offsets, -1), one = type_bytes(&offsets->type);
    if (there >= 0) return (Loc){there, RT_STEP};
    Loc to = {p->prog->g->arena_bytes + p->prog->chunk_bytes, RT_STEP};
    map_put(p->a, &p->chunk_offsets, offsets, to.offset);
    p->prog->chunk_bytes += (one * p->chunks + 63) & ~INT64_C(63);
    const Node *by = offsets->node;
    RtGroup group = RT_GROUP_EXP;
    exchange_group(by, &group);
    RtExchange e = {.kind = RT_CHUNK_OFFSETS, .group = (int32_t)group, .dtype = I32, .experts = (int32_t)by->attr.experts, .slots = (int32_t)by->attr.experts + n->graph->mesh.replicas, .chunks = p->chunks, .sym = -1,
                    .leaves = (int32_t)((by->in[0]->type.dim[0].n - 1) / by->attr.experts), .where = add_text(p, "chunks")};
    PlanKernel kernel = {.key = intern(arena_printf(p->a, "chunk_offsets %d %d %d %d", e.experts, e.leaves, e.chunks, e.group)),
                         .symbol = EXCHANGE_SYMBOL, .node = {.node = by}, .n_phases = 1, .is_exchange = true};
    RtStep step = {.kernel = (uint32_t)kernel_named(p, kernel, 1, &e, sizeof e), .first_arg = (uint32_t)p->args.n, .n_args = 2,
                   .span = add_span(p, n->at), .defines_sym = -1, .op = add_text(p, "chunk_offsets"), .path = add_text(p, n->path)};
    for (int i = 0; i < RT_MAX_PHASES; i++) step.tasks[i] = rt_tasks(p, tasks_fixed(1));
    push_arg(p, loc_of(p, offsets));
    push_arg(p, to);
    vec_push(p->a, &p->steps, step);
    p->prog->n_steps++;
    return to;
}

// Can the node's kernel run for some experts only?  The reference computes everything each time.
static bool runs_in_chunks(Plan *p, const Node *n) {
    const KernelTemplate *t = p->opts->template_of ? p->opts->template_of(n->op) : NULL;
    KernelNode *k = arena_new(p->a, KernelNode);
    *k = (KernelNode){.node = n, .machine = p->opts->machine, .target = p->opts->target};
    note_node(p, k, n);
    KernelDesc desc = {.key = {.arena = p->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) desc.tasks[i] = tasks_fixed(1);
    return t && t->describe(k, &desc);
}

static void add_products(Plan *p, const Node *n, bool by_chunk) {
    if (!by_chunk && p->chunk + 1 < p->chunks) return;
    Loc loc[LOCS];
    locs_of(p, n, loc);
    if (by_chunk) {
        loc[2] = chunk_offsets(p, n, n->in[2]);
        loc[2].offset += p->chunk * type_bytes(&n->in[2]->type);
    }
    add_step(p, n, loc);
    if (by_chunk) shrink_step(&p->steps.at[p->steps.n - 1], p->chunks);
}

// Chunk after chunk: its rows are waited for, multiplied, sent back.  Returns the last node of the run.
static Node *add_chunked_run(Plan *p, Node *const *member, int n) {
    bool by_chunk = true;
    for (int i = 0; i < n; i++)
        if (member[i]->op == OP_GROUPED_MATMUL && !runs_in_chunks(p, member[i])) by_chunk = false;
    p->chunks = (int)member[0]->attr.chunks;
    for (int i = 0; i < n && by_chunk; i++)
        if (member[i]->op == OP_GROUPED_MATMUL) chunk_offsets(p, member[i], member[i]->in[2]);
    for (p->chunk = 0; p->chunk < p->chunks; p->chunk++)
        for (int i = 0; i < n; i++) {
            if (member[i]->op == OP_GROUPED_MATMUL) add_products(p, member[i], by_chunk);
            else add_node(p, member[i]);
        }
    p->chunk = p->chunks = 0;
    return member[n - 1];
}

// The end of rows that were sent back by chunks.
static void add_waits_of_chunks(Plan *p, const Node *wait) {
    p->chunks = (int)wait->in[0]->node->attr.chunks;
    for (p->chunk = 0; p->chunk < p->chunks; p->chunk++) add_node(p, wait);
    p->chunk = p->chunks = 0;
}

// A node that no graph holds, for steps the plan adds: operands are stand-ins of the given types.
static Node *stand_in(Plan *p, const Node *like, Op op, int n_in, const Type *const *types,
                      const Type *result) {
    Node *n = arena_new(p->a, Node);
    *n = (Node){.op = op, .n_in = (int16_t)n_in, .n_out = 1, .at = like->at, .path = like->path,
                .backward = like->backward || like->op == OP_ACCUMULATE};
    n->in = arena_array(p->a, Value *, n_in);
    for (int i = 0; i < n_in; i++) {
        n->in[i] = arena_new(p->a, Value);
        n->in[i]->type = *types[i];
    }
    n->out = arena_new(p->a, Value);
    n->out[0] = (Value){.node = n, .type = *result};
    return n;
}

static void add_copy(Plan *p, const Node *like, const Type *t, Loc from, Loc to) {
    if (from.arena == to.arena && from.offset == to.offset) return;
    add_step(p, stand_in(p, like, OP_COPY, 1, &t, t), (Loc[]){from, to});
}

static void body_add(Arena *a, Graph *body, Node *n) {
    (void)a;
    n->graph = body;
    n->prev = body->last;
    if (body->last) body->last->next = n; else body->first = n;
    body->last = n;
    body->n_nodes++;
}

static Value *body_node(Arena *a, Graph *body, Op op, int n_in, Value *const *in, const Type *t, Attrs attr) {
    Node *n = arena_new(a, Node);
    *n = (Node){.op = op, .n_in = (int16_t)n_in, .n_out = t ? 1 : 0, .attr = attr};
    n->in = arena_array(a, Value *, n_in ? n_in : 1);
    for (int i = 0; i < n_in; i++) n->in[i] = in[i];
    if (t) {
        n->out = arena_new(a, Value);
        n->out[0] = (Value){.node = n, .type = *t};
    }
    body_add(a, body, n);
    return n->out;
}

// grad = wave == 0 ? d : grad + d, in place.
static void add_accumulate(Plan *p, const Node *acc, Loc grad) {
    const Type *t = &acc->in[0]->type;
    Type i32 = type_make(I32, 0, NULL), bool_type = type_make(BOOL, 0, NULL);
    Node like = {.at = acc->at, .attr = {.name = intern("wave")}};
    int wave = named_tensor(p, &i32, "wave", RT_INPUT, &like);
    if (wave < 0) return;
    Graph *body = graph_new(p->a, "body");
    body->parent = (Graph *)p->prog->g;
    Arena *a = p->a;
    Value *d = body_node(a, body, OP_ARG, 0, NULL, t, (Attrs){.k = 0, .dtype = t->dtype, .dims = dims_of(t)});
    Value *old =
        body_node(a, body, OP_ARG, 0, NULL, t, (Attrs){.k = 1, .dtype = t->dtype, .dims = dims_of(t)});
    Value *w = body_node(a, body, OP_ARG, 0, NULL, &i32, (Attrs){.k = 2, .dtype = I32});
    Value *zero = body_node(a, body, OP_CONST, 0, NULL, &i32, (Attrs){.dtype = I32});
    Value *first = body_node(a, body, OP_EQ, 2, (Value *[]){w, zero}, &bool_type, (Attrs){0});
    Value *sum = body_node(a, body, OP_ADD, 2, (Value *[]){old, d}, t, (Attrs){0});
    Value *next = body_node(a, body, OP_SELECT, 3, (Value *[]){first, d, sum}, t, (Attrs){0});
    body_node(a, body, OP_YIELD, 1, (Value *[]){next}, NULL, (Attrs){0});
    Node *n = stand_in(p, acc, OP_FUSED, 3, (const Type *[]){t, t, &i32}, t);
    n->attr.body = body;
    add_step(p, n, (Loc[]){loc_of(p, acc->in[0]), grad, tensor_loc(p, wave), grad});
}

// ---- places --------------------------------------------------------------------------------------------

// Ops whose result is their operand's memory.
static bool is_alias(const Node *n) { return n->op == OP_RESHAPE || n->op == OP_STOP_GRADIENT || n->op == OP_WAIT; }

static const Value *base_of(const Value *v) {
    while (is_alias(v->node)) v = v->node->in[0];
    return v;
}

static Loc const_loc(Plan *p, const Node *n) {
    const Type *t = &n->out[0].type;
    return (Loc){add_const_bytes(p, const_elements(p->a, n, t->dtype), (size_t)type_bytes(t)), RT_CONST};
}

// A value made by a step of this graph, which may be made elsewhere instead.
static bool is_movable(const Value *v) {
    const Node *n = v->node;
    return !op_is(n->op, SOURCE) && !is_alias(n) && n->op != OP_CACHE;
}

// In place: the step that makes v reads the tensor at most elementwise, and nobody reads the tensor's old
// contents later.
static bool may_overwrite(const Graph *g, const Value *v, const char *name) {
    const Node *maker = v->node;
    if (maker->op != OP_FUSED && !op_is(maker->op, ELEMENTWISE)) return false;
    if (maker->op == OP_FUSED)
        for_each_node(maker->attr.body, n) if (n->op != OP_ARG && n->op != OP_CONST && n->op != OP_YIELD &&
                                               !op_is(n->op, ELEMENTWISE)) return false;
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++) {
            const Value *base = base_of(n->in[i]);
            const Node *source = base->node;
            if ((source->op != OP_PARAM && source->op != OP_STATE) || source->attr.name != name) continue;
            if (n->id > maker->id && !is_alias(n)) return false;
            if (n == maker && !type_eq(&n->in[i]->type, &v->type)) return false;
        }
    }
    return true;
}

static Name accumulated_name(Plan *p, const Node *n) {
    return intern(arena_printf(p->a, "grad/%s", n->attr.name));
}

// Sets loc for every value of the program, tensors for what it reads and leaves.  moved[id]: not at its own
// offset.
static void place_values(Plan *p, Graph *g) {
    Prog *prog = p->prog;
    int n_values = graph_number(g);
    prog->loc = arena_array(p->a, Loc, n_values);
    bool *moved = arena_array(p->a, bool, n_values);
    for (int i = 0; i < n_values; i++) prog->loc[i].arena = NOWHERE;
    for_each_node(g, n) {
        if (n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_INPUT) {
            int t = source_tensor(p, n);
            if (t < 0) return;
            prog->loc[n->out[0].id] = tensor_loc(p, t);
        } else if (n->op == OP_CONST) {
            prog->loc[n->out[0].id] = const_loc(p, n);
        } else {
            for (int i = 0; i < n->n_out; i++)
                if (n->out[i].arena >= 0) prog->loc[n->out[i].id] = (Loc){n->out[i].offset, n->out[i].arena};
        }
    }
    // offsets of routes live in persistent memory: whoever has rows of that symbol may read them
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind != SYM_RAGGED || !s->extent) continue;
        const Value *v = base_of(s->extent);
        if (!is_movable(v)) continue;
        prog->loc[v->id] = (Loc){add_persistent(p, type_bytes(&v->type)), RT_PERSISTENT};
        moved[v->id] = true;
    }
    int64_t ordinal = 0;
    for_each_node(g, n) {
        bool output = n->op == OP_LOSS || n->op == OP_METRIC || n->op == OP_RETURN;
        if (!output && n->op != OP_ACCUMULATE && n->op != OP_UPDATE) continue;
        const Value *v = base_of(n->in[0]);
        int t;
        if (output) {
            ordinal = 0;
            for_each_node(g, m)
                if (m == n) break;
                else if (m->op == n->op && m->attr.name == n->attr.name) ordinal++;
            t = output_tensor(p, n, ordinal);
        } else if (n->op == OP_ACCUMULATE) {
            t = named_tensor(p, &n->in[0]->type, accumulated_name(p, n), RT_GRAD, n);
        } else {
            t = find_tensor(p, n->attr.name);
            if (t < 0) t = named_tensor(p, &n->in[0]->type, n->attr.name, RT_STATE, n);
        }
        if (t < 0) return;
        n->flags = t;                                  // until its step is emitted
        if (!is_movable(v) || moved[v->id]) continue;
        if (n->op == OP_ACCUMULATE && p->opts->waves != 1) continue;
        if (n->op == OP_UPDATE && !may_overwrite(g, v, n->attr.name)) continue;
        prog->loc[v->id] = tensor_loc(p, t);
        moved[v->id] = true;
    }
    for_each_node(g, n) {
        if (is_alias(n)) prog->loc[n->out[0].id] = prog->loc[n->in[0]->id];
        if (n->op == OP_CACHE) prog->loc[n->out[0].id] = prog->loc[n->in[0]->id];
    }
}

static void emit_program(Plan *p, Graph *g) {
    Prog *prog = p->prog;
    prog->first_step = p->steps.n;
    place_values(p, g);
    if (diag_n_errors(p->d)) return;
    for_each_node(g, n) {
        Node *member[CHUNKED_RUN];
        int n_members = n->attr.chunks > 1 ? chunked_run(n, member) : 0;
        if (n_members) {
            n_next = add_chunked_run(p, member, n_members)->next;
            continue;
        }
        switch (n->op) {
        case OP_PARAM:
        case OP_STATE:
        case OP_INPUT:
        case OP_CONST:
        case OP_RESHAPE:
        case OP_STOP_GRADIENT:
        case OP_UPDATE: break;
        case OP_LOSS: case OP_METRIC: case OP_RETURN:
            add_copy(p, n, &n->in[0]->type, loc_of(p, n->in[0]), tensor_loc(p, n->flags));
            break;
        case OP_ACCUMULATE:
            if (p->opts->waves == 1)
                add_copy(p, n, &n->in[0]->type, loc_of(p, n->in[0]), tensor_loc(p, n->flags));
            else add_accumulate(p, n, tensor_loc(p, n->flags));
            break;
        case OP_WAIT:
            if (n->in[0]->node->attr.chunks > 1) add_waits_of_chunks(p, n);
            else add_node(p, n);
            break;
        default: add_node(p, n);
        }
    }
    // reads see the old contents, so updates come last; one that reads a tensor which another writes is saved
    // first
    int64_t extra = g->arena_bytes + prog->chunk_bytes;
    for_each_node(g, n) {
        if (n->op != OP_UPDATE) continue;
        const Node *source = base_of(n->in[0])->node;
        if (source->op != OP_STATE && source->op != OP_PARAM) continue;
        extra = (extra + 63) & ~INT64_C(63);
        add_copy(p, n, &n->in[0]->type, loc_of(p, n->in[0]), (Loc){extra, RT_STEP});
        prog->loc[n->in[0]->id] = (Loc){extra, RT_STEP};
        extra += type_bytes(&n->in[0]->type);
    }
    for_each_node(g, n)
        if (n->op == OP_UPDATE) add_copy(p, n, &n->in[0]->type, loc_of(p, n->in[0]), tensor_loc(p, n->flags));
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind != SYM_RAGGED || !s->extent) continue;
        RtSym *r = &p->syms.at[sym_index(p, s)];
        Loc l = loc_of(p, s->extent);
        if (l.arena == RT_CONST) {                     // expert choice: every expert takes its fill
            r->fixed = ((const int32_t *)(p->consts + l.offset))[s->groups * s->leaves];
            continue;
        }
        r->from_arena = l.arena;
        r->from_offset = l.offset;
        r->from_index = s->groups * s->leaves;
    }
    int64_t workspace = (extra + 63) & ~INT64_C(63);
    for (int i = prog->first_step; i < p->steps.n; i++)
        for (uint32_t j = 0; j < p->steps.at[i].n_args; j++) {
            RtArg *arg = &p->args.at[p->steps.at[i].first_arg + j];
            if (arg->arena == WORKSPACE_MARK) *arg = (RtArg){.offset = workspace, .arena = RT_STEP};
        }
    RtProgram r = {.name = add_text(p, g->name),
                   .first_step = (uint32_t)prog->first_step,
                   .n_steps = (uint32_t)(p->steps.n - prog->first_step),
                   .step_bytes = workspace + prog->workspace};
    vec_push(p->a, &p->programs, r);
}

// ---- the block -----------------------------------------------------------------------------------------

static RtSpan put(char *block, size_t *at, const void *items, size_t size, int n) {
    *at = (*at + 63) & ~(size_t)63;
    RtSpan s = {(uint32_t)*at, (uint32_t)n};
    if (block && n) memcpy(block + *at, items, size * (size_t)n);
    *at += size * (size_t)n;
    return s;
}

static size_t layout(Plan *p, RtPlan *r, const RtTensor *tensors, char *block) {
    size_t at = sizeof(RtPlan);
    r->text = put(block, &at, p->text.text, 1, (int)p->text.n);
    r->syms = put(block, &at, p->syms.at, sizeof(RtSym), p->syms.n);
    r->slot_tables = put(block, &at, p->slot_tables.at, sizeof(RtSlotTable), p->slot_tables.n);
    r->tensors = put(block, &at, tensors, sizeof(RtTensor), p->tensors.n);
    r->kernels = put(block, &at, p->rt_kernels.at, sizeof(RtKernel), p->rt_kernels.n);
    r->args = put(block, &at, p->args.at, sizeof(RtArg), p->args.n);
    r->steps = put(block, &at, p->steps.at, sizeof(RtStep), p->steps.n);
    r->programs = put(block, &at, p->programs.at, sizeof(RtProgram), p->programs.n);
    r->sources = put(block, &at, p->sources.at, sizeof(RtSource), p->sources.n);
    r->consts = put(block, &at, p->consts, 1, (int)p->n_consts);
    return (at + 63) & ~(size_t)63;
}

static RtPlan *finish(Plan *p, Graph *const *programs, int n) {
    RtPlan r = {.magic = RT_PLAN_MAGIC, .version = RT_PLAN_VERSION, .mesh = programs[0]->mesh,
                .persistent_bytes = p->persistent};
    r.arithmetic = add_text(p, p->opts->arithmetic);
    r.info = add_text(p, p->opts->info_json ? p->opts->info_json : "{}");
    for (int i = 0; i < n; i++) {
        uint64_t h = graph_hash(programs[i]);
        r.graph_hash = str_hash(&h, sizeof h, r.graph_hash);
        if (programs[i]->lower_bound_bytes > r.lower_bound_bytes)
            r.lower_bound_bytes = programs[i]->lower_bound_bytes;
        if (p->programs.at[i].step_bytes > r.step_bytes) r.step_bytes = p->programs.at[i].step_bytes;
    }
    RtTensor *tensors = arena_array(p->a, RtTensor, p->tensors.n + 1);
    for (int i = 0; i < p->tensors.n; i++) tensors[i] = p->tensors.at[i].t;
    size_t bytes = layout(p, &r, tensors, NULL);
    for (int i = 0; i < p->rt_kernels.n; i++)
        if (p->rt_kernels.at[i].data.n) p->rt_kernels.at[i].data.offset += r.consts.offset;
    char *raw = arena_alloc(p->a, bytes + 64);
    char *block = (char *)(((uintptr_t)raw + 63) & ~(uintptr_t)63);
    layout(p, &r, tensors, block);
    r.bytes = (uint32_t)bytes;
    memcpy(block, &r, sizeof r);
    return (RtPlan *)block;
}

bool graphs_have_one_chain(Graph *const *programs, int n) {
    for (int i = 0; i < n; i++)
        for_each_node(programs[i], x) if (x->attr.one_chain) return true;
    return false;
}

EmittedPlan *emit_plan(Arena *a, Graph *const *programs, int n, const PlanOpts *opts, Diag *d) {
    Plan *p = arena_new(a, Plan);
    *p = (Plan){.a = a, .d = d, .opts = opts, .text = {.arena = a}};
    str_add_n(&p->text, "", 1);
    add_span(p, (Span){0});
    for (int i = 0; i < n; i++) // fixed and host-set symbols first: their numbers go into code
        for (int j = 0; j < programs[i]->n_syms; j++)
            if (programs[i]->sym[j]->kind != SYM_RAGGED) sym_index(p, programs[i]->sym[j]);
    for (int i = 0; i < n; i++)                        // then parameters, in the order of the text
        for_each_node(programs[i], m)
            if (m->op == OP_PARAM && source_tensor(p, m) < 0) return NULL;
    for (int i = 0; i < n; i++) {
        p->prog = arena_new(a, Prog);
        p->prog->g = programs[i];
        emit_program(p, programs[i]);
        if (diag_n_errors(d)) return NULL;
    }
    mark_experts(p);
    EmittedPlan *e = arena_new(a, EmittedPlan);
    e->plan = finish(p, programs, n);
    e->n_kernels = p->kernels.n;
    e->kernel = p->kernels.at;
    if (opts->machine) {
        Machine *machine = arena_new(a, Machine);
        *machine = *opts->machine;
        e->machine = machine;
    }
    return e;
}
