// A kernel as a body, and the templates of bodies.
#include <assert.h>
#include "codegen/cpu/body.h"

// A lone node as a body: its operands are ARGs.
static const Graph *one_node_body(Arena *a, const Node *n) {
    Graph *g = graph_new(a, "body");
    g->parent = n->graph;
    Node *last = NULL;
    Node *core = arena_new(a, Node);
    *core = *n;
    core->in = arena_array(a, Value *, n->n_in + 1);
    core->out = arena_array(a, Value, n->n_out + 1);
    core->graph = g;
    Node *yield = arena_new(a, Node);
    *yield = (Node){.op = OP_YIELD, .n_in = n->n_out, .graph = g};
    yield->in = arena_array(a, Value *, n->n_out + 1);
    for (int i = 0; i < n->n_out; i++) {
        core->out[i] = (Value){.node = core, .index = i, .type = n->out[i].type};
        yield->in[i] = &core->out[i];
    }
    for (int i = 0; i < n->n_in + 2; i++) {
        Node *m = i == n->n_in ? core : i > n->n_in ? yield : arena_new(a, Node);
        if (i < n->n_in) {
            const Type *t = &n->in[i]->type;
            *m = (Node){.op = OP_ARG,
                        .n_out = 1,
                        .graph = g,
                        .attr = {.k = i, .dtype = t->dtype, .dims = dims_of(t)}};
            m->out = arena_new(a, Value);
            m->out[0] = (Value){.node = m, .type = *t};
            core->in[i] = m->out;
        }
        m->prev = last;
        m->next = NULL;
        if (last) last->next = m; else g->first = m;
        last = g->last = m;
        g->n_nodes++;
    }
    return g;
}

static bool all_elements(const Type *t, Dim *n) {          // elements as one dimension
    *n = dim_n(1);
    for (int i = 0; i < t->ndim; i++) {
        Dim d = plain_width(t->dim[i]);
        if (d.sym && n->sym) return false;
        *n = (Dim){n->n * d.n, d.sym ? d.sym : n->sym};
    }
    return true;
}

// Elementwise only, every operand as large as the results or one element.
static bool is_flat(const Body *b) {
    Dim n, m;
    if (!all_elements(b->rows, &n)) return false;
    for (int i = 0; i < b->k->node->n_out; i++)
        if (!all_elements(&b->k->node->out[i].type, &m) || !dim_eq(n, m)) return false;
    for_each_node(b->body, x) {
        if (x->op == OP_YIELD) continue;
        if (x->op == OP_CONST && type_bound_elements(&x->out[0].type) == 1) continue;
        if (x->op != OP_ARG && !is_shown(x) && !elem_supported(x)) return false;
        if (!all_elements(&x->out[0].type, &m)) return false;
        if (x->op == OP_BROADCAST) {
            if (type_bound_elements(&x->in[0]->type) != 1) return false;
            continue;
        }
        if (!dim_eq(n, m) && type_bound_elements(&x->out[0].type) != 1) return false;
    }
    return true;
}

// In flat bodies every full value is [n], every other one a scalar.
static void flatten_types(Body *b) {
    Dim n;
    all_elements(b->rows, &n);
    Type *flat = arena_new(b->a, Type);
    *flat = type_make(b->rows->dtype, 1, &n);
    // a copy, since the node's own types stay as they are
    Graph *g = graph_new(b->a, "flat");
    g->parent = b->body->parent;
    int n_values = graph_number((Graph *)b->body);
    Value **to = arena_array(b->a, Value *, n_values + 1);
    Node *last = NULL;
    for_each_node(b->body, x) {
        Node *m = arena_new(b->a, Node);
        *m = *x;
        m->in = arena_array(b->a, Value *, x->n_in + 1);
        m->out = arena_array(b->a, Value, x->n_out + 1);
        m->graph = g;
        for (int i = 0; i < x->n_in; i++) m->in[i] = to[x->in[i]->id];
        for (int i = 0; i < x->n_out; i++) {
            bool one = type_bound_elements(&x->out[i].type) == 1 && !dim_is_1(n);
            m->out[i] = (Value){
                .node = m, .index = i, .type = one ? type_make(x->out[i].type.dtype, 0, NULL) : *flat};
            m->out[i].type.dtype = x->out[i].type.dtype;
            to[x->out[i].id] = &m->out[i];
        }
        if (m->op == OP_RESHAPE) m->op = OP_COPY;
        m->prev = last;
        m->next = NULL;
        if (last) last->next = m; else g->first = m;
        last = g->last = m;
    }
    b->body = g;
    b->rows = flat;
}

// What result i is stored from.
static bool add_store(Body *b, int i, int source) {
    const Type *t = &b->result[i]->type;
    int space = body_space(b, t, source);
    if (space < 0) return false;
    const Node *concat = b->result[i]->node;
    if (concat->op == OP_CONCAT && concat->attr.axis == t->ndim - 1 && !last_dim(t).sym) {
        int64_t at = 0;                                    // parts go to their place
        for (int j = 0; b->ok && j < concat->n_in; j++) {
            Step *s = body_step(b, concat->in[j], space);
            if (!s) return false;
            Store store = {s, i, source, at, last_dim(&concat->in[j]->type)};
            vec_push(b->a, &b->stores, store);
            at += store.cols.n;
        }
        return b->ok;
    }
    Step *s = body_step(b, b->result[i], space);
    if (!s) return false;
    Store store = {s, i, source, 0, plain_width(last_dim(t))};
    vec_push(b->a, &b->stores, store);
    return b->ok;
}

static const Node *combining_node(const Graph *body) {
    for_each_node(body, n)
        if (n->op == OP_SCATTER_ADD_ROWS && scatter_inverse(n)) return n;
    return NULL;
}

// Made of constants and of what a row's sources read by its own number.
static bool is_in_all(const Body *b, const Node *n) {
    if (n->op == OP_CONST) return type_bound_elements(&n->out[0].type) == 1;
    if (n->op == OP_GATHER_ROWS)
        return n->in[0]->node->op == OP_ARG && n->in[1]->node->op == OP_ARG && n->in[1] == b->combine->in[1];
    bool all = n->n_in > 0 && n->op != OP_SCATTER_ADD_ROWS;
    for (int i = 0; i < n->n_in; i++) all &= b->in_all[n->in[i]->id];
    return all;
}

static void find_common_values(Body *b) {
    b->in_all = arena_array(b->a, bool, graph_number((Graph *)b->body) + 1);
    for_each_node(b->body, n)
        for (int i = 0; i < n->n_out; i++) b->in_all[n->out[i].id] = is_in_all(b, n);
}

// More than a sweep over columns has room for.
static bool is_too_much(const Body *b) {
    int reductions = 0, parts = 0;
    for (int i = 0; i < b->steps.n; i++) {
        reductions += b->steps.at[i]->kind == S_SUM || b->steps.at[i]->kind == S_MAX;
        parts += b->steps.at[i]->n_parts;
    }
    return reductions > MOST_REDUCTIONS || b->stores.n > MOST_STORES || parts > MOST_PARTS;
}

// What lies in the last cache comes as fast by itself: asking costs a tenth to a fifth there.
static bool leaves_caches(const KernelNode *k) {
    return k->machine && machine_level(k->machine, (int64_t)k->bytes, 0) > LEVEL_L3;
}

// Work on `at_once` rows, step by step in turns.
static bool make_body(Body *b, Arena *a, const KernelNode *k, int at_once) {
    const Node *n = k->node;
    *b = (Body){.a = a, .k = k, .ok = true, .streamed = streamed_results(k), .asks_ahead = leaves_caches(k)};
    b->body = n->attr.body ? n->attr.body : one_node_body(a, n);
    if (n->n_out < 1 || n->n_out > MAX_RESULTS) return false;
    b->rows = &n->out[0].type;
    b->flat = !k->grain && is_flat(b);
    if (b->flat) flatten_types(b);
    for (int i = 0; i < n->n_out; i++) {
        b->result[i] = b->body->last->in[i];
        while (b->result[i]->node->op == OP_RESHAPE) b->result[i] = b->result[i]->node->in[0];
    }
    b->combine = combining_node(b->body);
    b->rows = b->combine ? &b->combine->out[0].type : &b->result[0]->type;
    if (b->combine) find_common_values(b);
    int n_sources = b->combine ? (int)type_cols(&scatter_inverse(b->combine)->type) : 0;
    for (int i = 0; i < n->n_out; i++) {
        if (same_rows(&b->result[i]->type, b->rows)) {
            for (int j = 0; j < at_once; j++)
                if (!add_store(b, i, THIS_ROW - j)) return false;
            continue;
        }
        if (!b->combine || !same_rows(&b->result[i]->type, body_rows(b, 0)) || n_sources > MOST_SOURCES) return false;
        for (int j = 0; j < n_sources; j++)
            if (!add_store(b, i, j)) return false;
    }
    if (!b->ok || is_too_much(b)) return false;
    body_set_levels(b);
    body_keep_values(b);
    return b->ok;
}

// How many rows at once.  A short row that is reduced is a chain of operations that wait for each other: several of them
// fill the time.  More so a row that is chosen from, k chains one behind the other, or put together in memory, where
// columns wait for single ones to be written.
static bool is_chain_in_memory(const Step *s) { return is_topk_in_groups(s) || (s->kind == S_PUT && !in_registers(last_dim(&s->node->out[0].type))); }
static int rows_at_once(const Body *b) {
    int64_t widest = 1;
    bool reduces = false, waits = false;
    if (b->flat || b->combine) return 1;
    for (int i = 0; i < b->steps.n; i++) {
        const Step *s = b->steps.at[i];
        if (s->width.sym) return 1;
        if (s->width.n > widest) widest = s->width.n;
        reduces |= s->kind == S_SUM || s->kind == S_MAX;
        waits |= is_chain_in_memory(s);
    }
    int64_t rows = (waits ? 4 : 1) * COLUMNS_AT_ONCE / widest;
    return !(reduces || waits) || rows < 1 ? 1 : rows < MOST_AT_ONCE ? (int)rows : MOST_AT_ONCE;
}

// ---- the templates -------------------------------------------------------------------------------------

// Rows per task, by the bytes that loads and stores of a row touch.  Where a task begins nothing is under way yet from the
// caches, which costs what some 16 KiB take from L3: tasks are as large as leaves every thread so many that all end together.
enum { LARGE_TASK_BYTES = 512 << 10, TASKS_OF_THREAD = 8 };
static int64_t body_grain(const Body *b) {
    int64_t bytes = 0;
    if (b->k->grain) return b->k->grain;
    for (int i = 0; i < b->steps.n; i++) {
        const Step *s = b->steps.at[i];
        if (s->kind == S_LOAD) bytes += dim_bound(s->width) * dtype_bytes(s->dtype);
    }
    for (int i = 0; i < b->stores.n; i++) bytes += dim_bound(b->stores.at[i].cols) * 4;
    int64_t least = rows_grain(b->rows, bytes), most = LARGE_TASK_BYTES / (bytes > 0 ? bytes : 1);
    int64_t even = b->k->machine ? rows_bound(b->rows) / (b->k->machine->threads * TASKS_OF_THREAD) : 0, grain = even < most ? even : most;
    return grain > least ? grain : least;
}

bool describe_body(const KernelNode *k, KernelDesc *d) {
    Arena *a = arena_create();
    Body b;
    bool ok = make_body(&b, a, k, 1);
    if (ok && b.flat) {
        Dim n = b.rows->dim[0];
        d->tasks[0] = (TaskCount){n.n, FLAT_RUN, 1, n.sym};
    } else if (ok) {
        d->tasks[0] = tasks_of_rows(b.rows, body_grain(&b));
    }
    if (ok && b.streamed) str_printf(&d->key, " stream %x", b.streamed);
    if (ok && b.asks_ahead) str_add(&d->key, " ahead");
    arena_destroy(a);
    return ok;
}

void emit_body(Cg *cg, const KernelNode *k) {
    Arena *a = arena_create();
    Body one, more;
    bool ok = make_body(&one, a, k, 1);
    assert(ok);
    (void)ok;
    int64_t grain = one.flat ? 1 : body_grain(&one);
    LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), cg_rows(cg, one.rows));
    int at_once = rows_at_once(&one);
    if (at_once > 1 && make_body(&more, a, k, at_once)) lo = body_emit_rows(cg, a, &more, lo, hi, at_once);
    body_emit_rows(cg, a, &one, lo, hi, 1);
    arena_destroy(a);
}
