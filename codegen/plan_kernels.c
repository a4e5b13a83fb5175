// One kernel per distinct key: op, types, attributes and what its template adds.  Exchanges have a block of their own.
#include <assert.h>
#include <string.h>
#include "codegen/interp/ref_kernel.h"
#include "codegen/planning.h"

static void note_sym(Plan *p, KernelNode *k, const Sym *s) {
    if (!s || s->kind == SYM_LEAF) return;
    if (s->kind == SYM_PLAIN) {
        for (int i = 0; i < k->n_plain; i++)
            if (k->plain[i] == s) return;
        assert(k->n_plain < KERNEL_MAX_RAGGED);
        k->plain[k->n_plain] = s;
        k->plain_index[k->n_plain++] = plan_sym(p, s);
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

KernelNode *plan_kernel_node(Plan *p, const Node *n) {
    KernelNode *k = arena_new(p->a, KernelNode);
    *k = (KernelNode){.node = n, .machine = p->opts->machine, .target = p->opts->target};
    note_node(p, k, n);
    return k;
}

// Bounds are in code: of buffers, and where work is cut.
static void key_sym(Str *s, const KernelNode *k, const Sym *sym) {
    long long bound = (long long)sym->bound;
    for (int i = 0; i < k->n_plain; i++)
        if (k->plain[i] == sym) {
            str_printf(s, "P%d<=%lld", k->plain_index[i], bound);
            return;
        }
    for (int i = 0; i < k->n_ragged; i++)
        if (k->ragged[i] == sym) {
            str_printf(s, "R%d<=%lld(%d,%d)", i, bound, sym->groups, sym->leaves);
            return;
        }
    str_printf(s, "D<=%lld(%d,%d)", bound, sym->groups, sym->leaves);        // defined by the node
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

static uint64_t key_hash(const char *key) { return str_hash(key, strlen(key), 0xcbf29ce484222325u); }

// The kernel of a key: the one that is there, or a new one.  data: its constant block, or NULL.
int plan_kernel_named(Plan *p, PlanKernel new, int n_rounds, const void *data, size_t bytes) {
    int64_t there = map_number(&p->keys, new.key, -1);
    if (there >= 0) return (int)there;
    map_put_number(&p->keys, new.key, p->kernels.n);
    RtKernel rt = {.symbol = plan_add_text(p, new.symbol), .n_phases = (uint16_t)new.n_phases,
                   .n_rounds = (uint16_t)n_rounds};
    if (data) rt.data = (RtSpan){(uint32_t)block_put(&p->consts, data, bytes), (uint32_t)bytes};       // moved by finish
    vec_push(p->a, &p->kernels, new);
    vec_push(p->a, &p->rt_kernels, rt);
    return p->kernels.n - 1;
}

// The kernel of a node: an equal one that is there, or a new one.  desc is filled in both cases.
int plan_kernel_of(Plan *p, KernelNode *k, KernelDesc *desc) {
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
    PlanKernel kernel = {.key = text, .symbol = symbol, .made_by = t, .node = *k, .n_phases = desc->n_phases,
                         .n_choices = desc->n_choices};
    memcpy(kernel.choice, desc->choice, sizeof kernel.choice);
    return plan_kernel_named(p, kernel, desc->n_rounds, data, bytes);
}

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

// Exchanges are the runtime's: what they need to know stands in a block of their own.
int plan_exchange_kernel(Plan *p, KernelNode *k, KernelDesc *desc) {
    static const int kind[N_OPS] = {
        [OP_TREE_ALL_REDUCE] = RT_TREE_ALL_REDUCE,   [OP_TREE_REDUCE_SCATTER] = RT_TREE_REDUCE_SCATTER,
        [OP_ALL_GATHER] = RT_ALL_GATHER,             [OP_SHARD] = RT_SHARD,
        [OP_EXCHANGE_OFFSETS] = RT_EXCHANGE_OFFSETS, [OP_EXCHANGE_ROWS] = RT_EXCHANGE_ROWS,
        [OP_RETURN_ROWS] = RT_RETURN_ROWS,           [OP_EXCHANGE_COUNTS] = RT_EXCHANGE_COUNTS,
        [OP_JOIN_OFFSETS] = RT_JOIN_OFFSETS,         [OP_JOIN_ROWS] = RT_JOIN_ROWS,
        [OP_SUM_ROWS] = RT_SUM_ROWS,                 [OP_OWN_ROWS] = RT_OWN_ROWS,
        [OP_SUM_REPLICAS] = RT_SUM_REPLICAS,
        [OP_WAIT] = RT_WAIT};
    const Node *n = k->node, *x = n->op == OP_WAIT ? n->in[0]->node : n;
    const Type *t = &x->in[0]->type;
    int by_itself = x->op == OP_RETURN_ROWS && p->chunks > 1 ? p->chunk : 0;
    bool sends = x->op == OP_EXCHANGE_ROWS || x->op == OP_JOIN_ROWS;
    bool brings = x->op == OP_RETURN_ROWS || x->op == OP_SUM_ROWS || x->op == OP_OWN_ROWS;
    bool joins = x->op == OP_JOIN_OFFSETS || x->op == OP_JOIN_ROWS || x->op == OP_SUM_ROWS || x->op == OP_OWN_ROWS;
    const Sym *rows = sends ? type_ragged(t) : brings ? x->attr.sym : NULL;
    RtGroup group = RT_GROUP_DATA;
    int line = 0, column = 0;
    exchange_group(x, &group);
    if (x->at.file) diag_line_column(p->d, x->at, &line, &column);
    if (map_number(&p->exchanges, x, -1) < 0) {
        map_put_number(&p->exchanges, x, p->n_exchanges);
        p->n_exchanges += x->op == OP_RETURN_ROWS && p->chunks > 1 ? p->chunks : 1;
    }
    RtExchange e = {.kind = kind[n->op],
                    .group = (int32_t)group,
                    .dtype = (int32_t)t->dtype,
                    .sequence = (uint32_t)(map_number(&p->exchanges, x, 0) + by_itself),
                    .pending = (int32_t)x->attr.pending,
                    .sym = -1,
                    .per_node = (int32_t)x->attr.per_node,
                    .tokens = (int32_t)x->attr.tokens,
                    .own = n->op == OP_RETURN_ROWS ? (int32_t)n->attr.own : 0,
                    .elements = type_bound_elements(t)};
    if (n->op == OP_RETURN_ROWS || (n->op == OP_WAIT && x->op == OP_EXCHANGE_ROWS)) {
        e.chunk = p->chunk;
        e.chunks = p->chunks;
    }
    e.where = plan_add_text(p, arena_printf(p->a, "%s %s (%s:%d)", op_info[x->op].name, x->path ? x->path : "",
                                       x->at.file ? diag_file_name(p->d, x->at.file) : "", line));
    if (rows) {
        e.experts = rows->groups;
        e.leaves = rows->leaves;
        e.rows = rows->bound;
        e.elements /= t->dim[0].sym->bound ? t->dim[0].sym->bound : 1;
    } else if (x->op == OP_EXCHANGE_OFFSETS || x->op == OP_EXCHANGE_COUNTS || x->op == OP_JOIN_OFFSETS) {
        e.experts = (int32_t)x->attr.experts;
        e.leaves = (int32_t)((t->dim[0].n - 1) / x->attr.experts);
    } else if (varying(t)) {
        Sym *s = varying(t);
        e.sym = plan_sym(p, s);
        e.elements /= s->bound ? s->bound : 1;
    }
    int64_t first = t->ndim ? dim_bound(t->dim[0]) : 0;
    RtMesh mesh = x->graph->mesh;
    bool is_part = x->op == OP_ALL_GATHER || x->op == OP_SUM_REPLICAS;
    int64_t experts = e.experts ? e.experts : is_part ? first * rt_group_size(mesh, group) - mesh.replicas : first;
    e.table = plan_slot_table(p, x, experts);
    if (e.table && (e.experts || x->op == OP_SUM_REPLICAS)) {
        e.experts = (int32_t)experts;
        e.slots = (int32_t)experts + mesh.replicas;
    }
    if (joins && rows) {
        e.experts = (int32_t)x->in[2]->node->attr.experts;
        e.leaves = (int32_t)((x->in[1]->type.dim[0].n - 1) / e.experts);
    }
    if (joins) e.slots = e.experts * rt_group_size(mesh, group);
    if (x->op == OP_SHARD) e.parts = (int32_t)x->attr.parts;
    bool cuts = x->op == OP_SHARD || x->op == OP_TREE_REDUCE_SCATTER;
    if ((cuts || x->op == OP_ALL_GATHER) && x->attr.axis) e.run = run_from(cuts ? &x->out[0].type : t, x->attr.axis);
    *desc = (KernelDesc){.key = {.arena = p->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) desc->tasks[i] = tasks_fixed(1);
    PlanKernel kernel = {.key = intern(arena_printf(p->a, "%s %u chunk %d", op_info[n->op].name, e.sequence, e.chunk)),
                         .symbol = EXCHANGE_SYMBOL, .node = *k, .n_phases = 1, .is_exchange = true};
    return plan_kernel_named(p, kernel, 1, &e, sizeof e);
}

RtTasks plan_tasks(Plan *p, TaskCount t) {
    RtTasks r = {.n = t.n, .grain = t.grain, .times = t.times, .sym = -1, .extra = t.extra};
    if (t.sym && t.sym->kind == SYM_LEAF) r.n *= t.sym->bound;
    else if (t.sym) r.sym = plan_sym(p, t.sym);
    return r;
}
