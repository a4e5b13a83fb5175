// Types, symbols, and the list of nodes: what every stage of the compiler has in common.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "ir/ir.h"

const char *const stage_name[STAGE_COUNT] = {"WHOLE", "SHARDED", "SCHEDULED", "PLANNED"};

// ---- types ----------------------------------------------------------------------------------------------

bool type_eq(const Type *a, const Type *b) {
    if (a->dtype != b->dtype || a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (!dim_eq(a->dim[i], b->dim[i])) return false;
    return true;
}

// Sizes of memory pass through here: a product that does not fit is a shape nobody can run.
static int64_t checked_mul(int64_t a, int64_t b) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) {
        fprintf(stderr, "moec: a tensor has more than 2^63 bytes\n");
        exit(1);
    }
    return product;
}

int64_t type_bound_elements(const Type *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n = checked_mul(n, dim_bound(t->dim[i]));
    return n;
}

int64_t type_bytes(const Type *t) {
    Type matrices = *t;
    int64_t each = 1;
    if (t->layout != LAYOUT_ROWS) {
        matrices.ndim = (uint8_t)(t->ndim - 2);
        each = layout_elements((Layout)t->layout, t->dim[t->ndim - 2].n, t->dim[t->ndim - 1].n);
    }
    return checked_mul(checked_mul(type_bound_elements(&matrices), each), dtype_bytes(t->dtype));
}

int64_t type_cols(const Type *t) {
    if (!t->ndim) return 1;
    assert(!t->dim[t->ndim - 1].sym);
    return t->dim[t->ndim - 1].n;
}

bool type_is_leafy(const Type *t) { return t->ndim && t->dim[0].sym && t->dim[0].sym->kind == SYM_LEAF; }

Sym *type_ragged(const Type *t) {
    return t->ndim && t->dim[0].sym && t->dim[0].sym->kind == SYM_RAGGED ? t->dim[0].sym : NULL;
}

Type type_make(DType dtype, int ndim, const Dim *dim) {
    assert(ndim <= MAX_DIM);
    Type t = {.dtype = dtype, .ndim = (uint8_t)ndim};
    for (int i = 0; i < ndim; i++) t.dim[i] = dim[i];
    return t;
}

Type type_of_dims(DType dtype, const Dims *dims) { return type_make(dtype, dims->n, dims->at); }

Dims dims_of(const Type *t) {
    Dims d = {.n = t->ndim};
    for (int i = 0; i < t->ndim; i++) d.at[i] = t->dim[i];
    return d;
}

static void add_dim(Str *s, Dim d) {
    if (!d.sym) str_printf(s, "%lld", (long long)d.n);
    else if (d.n == 1) str_add(s, d.sym->name);
    else str_printf(s, "%lld*%s", (long long)d.n, d.sym->name);
}

const char *dim_text(Arena *a, Dim d) {
    Str s = {.arena = a};
    add_dim(&s, d);
    return s.text;
}

const char *type_text(Arena *a, const Type *t) {
    Str s = {.arena = a};
    str_printf(&s, "%s[", dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++) {
        if (i) str_add(&s, ",");
        add_dim(&s, t->dim[i]);
    }
    str_add(&s, "]");
    if (t->layout != LAYOUT_ROWS) str_printf(&s, ".%s", layout_name((Layout)t->layout));
    return s.text;
}

// ---- graphs and symbols ---------------------------------------------------------------------------------

Graph *graph_new(Arena *a, const char *name) {
    Graph *g = arena_new(a, Graph);
    g->arena = a;
    g->name = intern(name);
    g->mesh = (RtMesh){1, 1, 1, 0};
    return g;
}

static const Graph *root_of(const Graph *g) {
    while (g->parent) g = g->parent;
    return g;
}

// Symbols belong to the outermost graph: a route inside a region still names the rows of everybody outside.
Sym *graph_add_sym(Graph *g, const char *name, SymKind kind, int64_t bound, int groups, int leaves) {
    g = (Graph *)root_of(g);
    assert(!graph_find_sym(g, name));
    if (g->n_syms == g->cap_syms) {
        g->cap_syms = g->cap_syms ? 2 * g->cap_syms : 8;
        Sym **grown = arena_array(g->arena, Sym *, g->cap_syms);
        if (g->n_syms) memcpy(grown, g->sym, sizeof *grown * (size_t)g->n_syms);
        g->sym = grown;
    }
    Sym *s = arena_new(g->arena, Sym);
    *s = (Sym){.name = intern(name),
               .kind = kind,
               .bound = bound,
               .groups = groups,
               .leaves = leaves,
               .id = g->n_syms};
    if (kind == SYM_RAGGED && s->leaves < 1) s->leaves = 1;
    g->sym[g->n_syms++] = s;
    if (kind == SYM_LEAF) {
        assert(!g->own_leaf);
        *(g->leaf ? &g->own_leaf : &g->leaf) = s;
    }
    return s;
}

Sym *graph_find_sym(const Graph *g, const char *name) {
    for (; g; g = g->parent)
        for (int i = 0; i < g->n_syms; i++)
            if (!strcmp(g->sym[i]->name, name)) return g->sym[i];
    return NULL;
}

int graph_number(Graph *g) {
    int nodes = 0, values = 0;
    for_each_node(g, n) {
        n->id = nodes++;
        for (int i = 0; i < n->n_out; i++) n->out[i].id = values++;
    }
    return values;
}

void graph_remove(Node *n) {
    Graph *g = n->graph;
    for (int i = 0; i < n->n_out; i++) assert(n->out[i].n_uses == 0);
    for (int i = 0; i < n->n_in; i++) n->in[i]->n_uses--;
    if (n->prev) n->prev->next = n->next;
    else g->first = n->next;
    if (n->next) n->next->prev = n->prev;
    else g->last = n->prev;
    const Graph *root = root_of(g);
    for (int i = 0; i < root->n_syms; i++)
        if (root->sym[i]->extent && root->sym[i]->extent->node == n) root->sym[i]->extent = NULL;
    n->prev = n->next = NULL;
    g->n_nodes--;
}

void replace_operand(Node *n, int i, Value *to) {
    n->in[i]->n_uses--;
    n->in[i] = to;
    to->n_uses++;
}

void replace_all_uses(Graph *g, Value *from, Value *to) {
    assert(type_eq(&from->type, &to->type));
    if (from == to) return;
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i] == from) replace_operand(n, i, to);
    const Graph *root = root_of(g);
    for (int i = 0; i < root->n_syms; i++)
        if (root->sym[i]->extent == from) root->sym[i]->extent = to;
}

void graph_recount(Graph *g) {
    for_each_node(g, n) {
        for (int i = 0; i < n->n_out; i++) n->out[i].n_uses = 0;
        if (n->attr.body) graph_recount(n->attr.body);
        if (n->attr.epilogue) graph_recount(n->attr.epilogue);
    }
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++) n->in[i]->n_uses++;
}

// ---- copies ---------------------------------------------------------------------------------------------

// What a copy has made so far; regions chain to the copy of the graph that holds them.
typedef struct Copy Copy;
struct Copy {
    Arena *arena;
    const Graph *from;
    Graph *to;
    Value **value;      // by id of the old value
    const Copy *outer;
};

static Sym *copy_sym(const Copy *c, Sym *s) {
    for (; c && s; c = c->outer)
        if (s->id < c->from->n_syms && c->from->sym[s->id] == s) return c->to->sym[s->id];
    return s;           // of a graph that is not being copied: shared
}

static Graph *copy_graph(Arena *a, const Graph *g, const Copy *outer);

static void copy_attrs(const Copy *c, Attrs *attr) {
    for (int i = 0; i < ATTR_COUNT; i++) {
        void *at = (char *)attr + attr_info[i].offset;
        if (attr_info[i].kind == A_GRAPH) {
            Graph **region = at;
            if (*region) *region = copy_graph(c->arena, *region, c);
        } else if (attr_info[i].kind == A_SYM) {
            SymP *s = at;
            *s = copy_sym(c, *s);
        } else if (attr_info[i].kind == A_DIMS) {
            Dims *d = at;
            for (int k = 0; k < d->n; k++) d->at[k].sym = copy_sym(c, d->at[k].sym);
        } else if (attr_info[i].kind == A_DATA) {
            DataP *data = at;
            if (*data) {                // constants move too: the copy may outlive the original's arena
                Data *copy = arena_new(c->arena, Data);
                *copy = **data;
                copy->tensor.data = arena_alloc(c->arena, (size_t)copy->bytes);
                if (copy->bytes) memcpy(copy->tensor.data, (*data)->tensor.data, (size_t)copy->bytes);
                *data = copy;
            }
        }
    }
}

static Graph *copy_graph(Arena *a, const Graph *g, const Copy *outer) {
    Graph *to = arena_new(a, Graph);
    *to = (Graph){.arena = a, .name = g->name, .stage = g->stage, .n_nodes = g->n_nodes,
                  .parent = outer ? outer->to : g->parent, .arena_bytes = g->arena_bytes,
                  .lower_bound_bytes = g->lower_bound_bytes, .n_syms = g->n_syms, .cap_syms = g->n_syms};
    if (g->n_syms) to->sym = arena_array(a, Sym *, g->n_syms);
    for (int i = 0; i < g->n_syms; i++) {
        to->sym[i] = arena_new(a, Sym);
        *to->sym[i] = *g->sym[i];
    }
    Copy c = {a, g, to, NULL, outer};
    to->leaf = copy_sym(&c, g->leaf);
    to->own_leaf = copy_sym(&c, g->own_leaf);
    to->mesh = g->mesh;
    Arena *scratch = arena_create();
    int n_values = graph_number((Graph *)g); // ids are scratch: numbering changes nothing anybody may rely on
    c.value = arena_array(scratch, Value *, n_values + 1);
    for_each_node(g, n) {
        Node *m = arena_new(a, Node);
        *m = *n;
        m->graph = to;
        m->prev = to->last;
        m->next = NULL;
        if (to->last) to->last->next = m;
        else to->first = m;
        to->last = m;
        m->in = arena_array(a, Value *, n->n_in + 1);
        for (int i = 0; i < n->n_in; i++) m->in[i] = c.value[n->in[i]->id];
        m->out = arena_array(a, Value, n->n_out);
        for (int i = 0; i < n->n_out; i++) {
            m->out[i] = n->out[i];
            m->out[i].node = m;
            m->out[i].mark = NULL;
            for (int k = 0; k < n->out[i].type.ndim; k++)
                m->out[i].type.dim[k].sym = copy_sym(&c, n->out[i].type.dim[k].sym);
            c.value[n->out[i].id] = &m->out[i];
        }
        copy_attrs(&c, &m->attr);
    }
    for (int i = 0; i < to->n_syms; i++) {
        Value *extent = g->sym[i]->extent;
        bool here = extent && extent->node->graph == g;
        to->sym[i]->extent = here ? c.value[extent->id] : NULL;
    }
    arena_destroy(scratch);
    return to;
}

Graph *graph_copy(Arena *a, const Graph *g) { return copy_graph(a, g, NULL); }

void node_was_made(const Node *n) { (void)n; }
