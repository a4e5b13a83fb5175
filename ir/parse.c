// Text -> graph.  Reads what print.c writes, and what people write like it: values may have any names,
// comments run from // to the end of the line.  Every node is checked as it is made; the first mistake ends
// the reading.
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "ir/base/vec.h"
#include "ir/build.h"
#include "ir/ir.h"

enum { BUCKETS = 1024, MAX_VALUES = 256 };

typedef struct Entry Entry;
struct Entry {
    Name key;
    Value *value;
    Entry *next;
};

// The values of one graph or region by name.
typedef struct {
    Entry *bucket[BUCKETS];
} Scope;

typedef struct {
    Arena *arena, *scratch;
    Diag *diag;
    uint32_t file;
    const char *text, *at, *end;
    VEC(Data *) consts;
    bool failed;
} Parser;

// ---- tokens ---------------------------------------------------------------------------------------------

static Span span_from(const Parser *p, const char *begin, const char *end) {
    return (Span){p->file, (uint32_t)(begin - p->text), (uint32_t)(end - p->text)};
}

static void fail(Parser *p, const char *message, const char *what) {
    if (p->failed) return;
    p->failed = true;
    const char *end = p->at < p->end ? p->at + 1 : p->at;
    diag_error(p->diag, span_from(p, p->at, end), "%s%s", message, what ? what : "");
}

// White space and comments, to the end of the line or beyond it.
static void skip(Parser *p, bool over_lines) {
    while (p->at < p->end) {
        if (p->at[0] == '/' && p->at + 1 < p->end && p->at[1] == '/') {
            while (p->at < p->end && *p->at != '\n') p->at++;
        } else if (!isspace((unsigned char)*p->at) || (*p->at == '\n' && !over_lines)) {
            return;
        } else {
            p->at++;
        }
    }
}

static bool sees(Parser *p, const char *token) {
    skip(p, true);
    size_t n = strlen(token);
    return (size_t)(p->end - p->at) >= n && !strncmp(p->at, token, n);
}

static bool accept(Parser *p, const char *token) {
    if (!sees(p, token)) return false;
    p->at += strlen(token);
    return true;
}

static bool expect(Parser *p, const char *token) {
    if (accept(p, token)) return true;
    fail(p, "expected ", token);
    return false;
}

static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

// A word of letters, digits, _ and the characters in `more`; "" if there is none.
static const char *word(Parser *p, const char *more) {
    skip(p, true);
    const char *begin = p->at;
    while (p->at < p->end && (is_word(*p->at) || (*p->at && strchr(more, *p->at)))) p->at++;
    return intern_n(begin, (size_t)(p->at - begin));
}

static const char *need_word(Parser *p, const char *what) {
    const char *w = word(p, "");
    if (!*w) fail(p, "expected ", what);
    return w;
}

static int64_t need_int(Parser *p) {
    skip(p, true);
    char *end;
    long long n = strtoll(p->at, &end, 0);
    if (end == p->at) fail(p, "expected a whole number", NULL);
    p->at = end;
    return n;
}

static double need_real(Parser *p) {
    skip(p, true);
    char *end;
    double x = strtod(p->at, &end);
    if (end == p->at) fail(p, "expected a number", NULL);
    p->at = end;
    return x;
}

static const char *need_quoted(Parser *p) {
    if (!expect(p, "\"")) return "";
    Str s = {.arena = p->scratch};
    str_add(&s, "");
    while (p->at < p->end && *p->at != '"' && *p->at != '\n') {
        bool escaped = *p->at == '\\' && p->at + 1 < p->end && p->at[1] != '\n';
        if (escaped) p->at++;
        if (escaped && *p->at == 'n') str_add(&s, "\n");
        else str_add_n(&s, p->at, 1);
        p->at++;
    }
    expect(p, "\"");
    return intern(s.text);
}

// ---- values ---------------------------------------------------------------------------------------------

static unsigned bucket_of(Name key) { return (unsigned)(((uintptr_t)key >> 4) % BUCKETS); }

static Value *find_value(const Scope *s, Name key) {
    for (const Entry *e = s->bucket[bucket_of(key)]; e; e = e->next)
        if (e->key == key) return e->value;
    return NULL;
}

static void define_value(Parser *p, Scope *s, Name key, Value *v) {
    if (find_value(s, key)) {
        fail(p, "defined twice: %", key);
        return;
    }
    Entry *e = arena_new(p->scratch, Entry);
    *e = (Entry){key, v, s->bucket[bucket_of(key)]};
    s->bucket[bucket_of(key)] = e;
    const char *dot = strrchr(key, '.');            // %q.12: value 12, which the language calls q
    if (dot && dot > key) v->name = intern_n(key, (size_t)(dot - key));
    else if (!isdigit((unsigned char)*key)) v->name = key;
}

static Name value_key(Parser *p) {
    if (!expect(p, "%")) return NULL;
    Name key = word(p, ".");
    if (!*key) fail(p, "expected a value after %", NULL);
    return key;
}

// ---- types and symbols ----------------------------------------------------------------------------------

static Sym *need_sym(Parser *p, const Graph *g) {
    const char *name = need_word(p, "a row symbol");
    Sym *s = p->failed ? NULL : graph_find_sym(g, name);
    if (!s) fail(p, "there is no row symbol ", name);
    return s;
}

static DType need_dtype(Parser *p) {
    const char *name = need_word(p, "an element type");
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (!strcmp(name, dtype_name((DType)t))) return (DType)t;
    fail(p, "not an element type: ", name);
    return F32;
}

static Layout need_layout(Parser *p) {
    const char *name = need_word(p, "a layout");
    for (int l = 0; l < LAYOUT_COUNT; l++)
        if (!strcmp(name, layout_name((Layout)l))) return (Layout)l;
    fail(p, "not a layout: ", name);
    return LAYOUT_ROWS;
}

// g == NULL: numbers only.
static Type need_type(Parser *p, const Graph *g) {
    Type t = {.dtype = need_dtype(p)};
    if (!expect(p, "[") || accept(p, "]")) return t;
    do {
        if (t.ndim == MAX_DIM) {
            fail(p, "a tensor has at most 8 axes", NULL);
            break;
        }
        Dim d = {.n = 1};
        skip(p, true);
        if (p->at < p->end && isdigit((unsigned char)*p->at)) {
            d.n = need_int(p);
            if (g && accept(p, "*")) d.sym = need_sym(p, g);
        } else if (g) {
            d.sym = need_sym(p, g);
        } else {
            fail(p, "expected a size", NULL);
        }
        t.dim[t.ndim++] = d;
    } while (!p->failed && accept(p, ","));
    if (expect(p, "]") && accept(p, ".")) t.layout = (uint8_t)need_layout(p);
    return t;
}

// ---- constant data --------------------------------------------------------------------------------------

// NULL where the type holds more than the text could: sizes come from a file that may be damaged.
static Data *new_data(Parser *p, DType dtype, const Type *type) {
    int64_t bytes = dtype_bytes(dtype);
    for (int i = 0; i < type->ndim; i++)
        if (__builtin_mul_overflow(bytes, type->dim[i].n, &bytes) || bytes > 8 * (p->end - p->text)) {
            fail(p, "constant data ends too early", NULL);
            return NULL;
        }
    Data *data = arena_new(p->arena, Data);
    data->tensor = (Tensor){.dtype = dtype, .ndim = type->ndim, .data = arena_alloc(p->arena, (size_t)bytes)};
    data->bytes = bytes;
    for (int i = 0; i < type->ndim; i++) data->tensor.dim[i] = type->dim[i].n;
    return data;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// data HASH TYPE { hex }
static void read_side_data(Parser *p) {
    uint64_t hash = strtoull(word(p, ""), NULL, 16);
    Type type = need_type(p, NULL);
    if (!expect(p, "{")) return;
    Data *data = new_data(p, type.dtype, &type);
    if (!data) return;
    data->hash = hash;
    for (int64_t i = 0; i < data->bytes; i++) {
        skip(p, true);
        int high = p->end - p->at >= 2 ? hex_digit(p->at[0]) : -1, low = high < 0 ? -1 : hex_digit(p->at[1]);
        if (low < 0) {
            fail(p, "constant data ends too early", NULL);
            return;
        }
        ((uint8_t *)data->tensor.data)[i] = (uint8_t)(high << 4 | low);
        p->at += 2;
    }
    if (expect(p, "}")) vec_push(p->scratch, &p->consts, data);
}

// All side sections, before any graph is read.
static void find_side_data(Parser *p) {
    for (const char *line = p->text; line < p->end && !p->failed;) {
        if (p->end - line > 5 && !strncmp(line, "data ", 5)) {
            p->at = line + 5;
            read_side_data(p);
            line = p->at;
        }
        while (line < p->end && *line != '\n') line++;
        line++;
    }
    p->at = p->text;
}

static void skip_side_data(Parser *p) {
    while (p->at < p->end && *p->at != '}') p->at++;
    expect(p, "}");
}

// ---- attributes -----------------------------------------------------------------------------------------

// What can only be finished when the type is known.
typedef struct {
    VEC(const char *) element;      // where each inline element of `data` starts
} Pending;

static void read_attr_value(Parser *p, const Graph *g, AttrId attr, Attrs *attrs, Pending *pending) {
    void *at = (char *)attrs + attr_info[attr].offset;
    switch (attr_info[attr].kind) {
    case A_INT: *(int64_t *)at = need_int(p); break;
    case A_REAL: *(double *)at = need_real(p); break;
    case A_NAME: *(Name *)at = need_quoted(p); break;
    case A_SYM: *(SymP *)at = need_sym(p, g); break;
    case A_INTS: {
        Ints *ints = at;
        if (!expect(p, "[")) return;
        while (!p->failed && !accept(p, "]")) {
            if (ints->n == MAX_DIM) fail(p, "a list has at most 8 numbers", NULL);
            else ints->at[ints->n++] = need_int(p);
            if (!sees(p, "]")) expect(p, ",");
        }
        break;
    }
    case A_DATA:
        if (accept(p, "data(")) {
            uint64_t hash = strtoull(word(p, ""), NULL, 16);
            for (int i = 0; i < p->consts.n; i++)
                if (p->consts.at[i]->hash == hash) *(DataP *)at = p->consts.at[i];
            if (!*(DataP *)at)
                fail(p, "this constant's data section is missing: dump --full prints it", NULL);
            expect(p, ")");
            break;
        }
        if (!expect(p, "[")) return;
        while (!p->failed && !accept(p, "]")) {
            skip(p, true);
            vec_push(p->scratch, &pending->element, p->at);
            need_real(p);
            if (!sees(p, "]")) expect(p, ",");
        }
        if (!pending->element.n)
            pending->element.at = arena_array(p->scratch, const char *, 1); // empty, but there
        break;
    case A_DIMS: case A_GRAPH: fail(p, "not written as an attribute: ", attr_info[attr].name); break;
    }
}

static void read_attrs(Parser *p, const Graph *g, Attrs *attrs, Pending *pending) {
    while (!p->failed && !accept(p, "}")) {
        const char *name = need_word(p, "an attribute");
        int attr = 0;
        while (attr < ATTR_COUNT && strcmp(attr_info[attr].name, name)) attr++;
        if (attr == ATTR_COUNT) {
            fail(p, "no attribute is called ", name);
            return;
        }
        if (expect(p, "=")) read_attr_value(p, g, (AttrId)attr, attrs, pending);
        if (!sees(p, "}")) expect(p, ",");
    }
}

static void finish_data(Parser *p, Attrs *attrs, const Pending *pending, const Type *type) {
    if (!pending->element.at) return;
    DType dtype = dtype_is_float(type->dtype) ? F32 : type->dtype == BOOL ? BOOL : I32;
    Data *data = new_data(p, dtype, type);
    if (data && pending->element.n * dtype_bytes(dtype) != data->bytes)
        fail(p, "constant data does not fit its type", NULL);
    if (p->failed) return;
    for (int i = 0; i < pending->element.n; i++) {
        const char *text = pending->element.at[i];
        if (dtype == F32) ((float *)data->tensor.data)[i] = strtof(text, NULL);
        else if (dtype == I32) ((int32_t *)data->tensor.data)[i] = (int32_t)strtol(text, NULL, 10);
        else ((uint8_t *)data->tensor.data)[i] = (uint8_t)strtol(text, NULL, 10);
    }
    uint64_t hash = str_hash(&dtype, sizeof dtype, 0);
    hash = str_hash(data->tensor.dim, sizeof *data->tensor.dim * (size_t)data->tensor.ndim, hash);
    data->hash = str_hash(data->tensor.data, (size_t)data->bytes, hash);
    attrs->data = data;
}

// data:S0: a group of ranks, and how they have it.
static bool is_share(const char *w) {
    RtGroup group;
    const char *how = strchr(w, ':');
    if (!how || !exchange_group_named(intern_n(w, (size_t)(how - w)), &group)) return false;
    return !strcmp(how, ":P") || !strcmp(how, ":L") || (how[1] == 'S' && isdigit((unsigned char)how[2]) && !how[3]);
}

// Behind a type, on its line: @ data:S0 tp:P
static Name read_shares(Parser *p) {
    skip(p, false);
    if (p->failed || p->end - p->at < 2 || p->at[0] != '@' || p->at[1] != ' ') return NULL;
    p->at++;
    Str s = {.arena = p->scratch};
    str_add(&s, "");
    for (;;) {
        skip(p, false);
        const char *begin = p->at, *w = word(p, ":");
        if (!strchr(w, ':') && s.n) {
            p->at = begin;
            return intern(s.text);
        }
        if (!is_share(w)) {
            p->at = begin;
            fail(p, "expected a group of ranks (data, exp, edp, tp) and :S0, :P or :L, not ", w);
            return NULL;
        }
        str_printf(&s, "%s%s", s.n ? " " : "", w);
    }
}

// ---- nodes ----------------------------------------------------------------------------------------------

static void read_nodes(Parser *p, Graph *g, Scope *scope);

typedef struct {
    bool backward, keep, has_span;
    Name path;
    Span at;
    int n_places;
    int8_t arena[MAX_VALUES];
    int64_t offset[MAX_VALUES];
} Notes;

static void read_place(Parser *p, Notes *notes) {
    static const char *const arena[] = {"persistent", "step", "const"};
    if (notes->n_places == MAX_VALUES) {
        fail(p, "too many results", NULL);
        return;
    }
    int at = notes->n_places++;
    notes->arena[at] = -1;
    if (accept(p, "-")) return;
    const char *name = need_word(p, "an arena");
    for (int i = 0; i < RT_ARENAS; i++)
        if (!strcmp(name, arena[i])) notes->arena[at] = (int8_t)i;
    if (notes->arena[at] < 0) fail(p, "not an arena: ", name);
    else notes->offset[at] = *p->at == '+' && accept(p, "+") ? need_int(p) : -1;
}

// Notes stand on the node's own line.
static void read_notes(Parser *p, Notes *notes) {
    for (;;) {
        skip(p, false);
        if (p->failed || p->at >= p->end) return;
        if (accept(p, "&")) {
            read_place(p, notes);
        } else if (accept(p, "!")) {
            const char *begin = p->at;
            while (p->at < p->end && !isspace((unsigned char)*p->at)) p->at++;
            notes->path = intern_n(begin, (size_t)(p->at - begin));
        } else if (accept(p, "@backward")) {
            notes->backward = true;
        } else if (accept(p, "@keep")) {
            notes->keep = true;
        } else if (*p->at != '\n' && accept(p, "loc(")) {
            notes->has_span = true;
            notes->at.file = (uint32_t)need_int(p);
            expect(p, ":");
            notes->at.begin = (uint32_t)need_int(p);
            expect(p, ":");
            notes->at.end = (uint32_t)need_int(p);
            expect(p, ")");
        } else {
            return;
        }
    }
}

static bool lists(Op op, AttrId attr) {
    for (const int *a = op_info[op].attrs; *a; a++)
        if (*a == (int)attr + 1) return true;
    return false;
}

static bool read_op(Parser *p, Op *op) {
    const char *name = need_word(p, "an op");
    if (p->failed) return false;
    if (op_find(name, op)) return true;
    const char *names[N_OPS];
    for (int i = 0; i < N_OPS; i++) names[i] = op_info[i].name;
    fail(p, "there is no op ", name);
    const char *near = did_you_mean(name, names, N_OPS);
    if (near) diag_help(p->diag, "did you mean '%s'?", near);
    return false;
}

static void read_node(Parser *p, Graph *g, Scope *scope) {
    skip(p, true);
    const char *begin = p->at;
    Name result[MAX_VALUES];
    int n_out = 0, n_types = 0;
    VEC(Value *) in = {0};
    if (sees(p, "%")) {
        do {
            if (n_out == MAX_VALUES) fail(p, "too many results", NULL);
            else result[n_out++] = value_key(p);
        } while (!p->failed && accept(p, ","));
        expect(p, "=");
    }
    Op op;
    if (p->failed || !read_op(p, &op)) return;
    if (sees(p, "%")) {
        do {
            Name key = value_key(p);
            Value *v = key ? find_value(scope, key) : NULL;
            if (!v) fail(p, "not defined before: %", key);
            vec_push(p->scratch, &in, v);
        } while (!p->failed && accept(p, ","));
    }
    vec_push(p->scratch, &in, NULL);

    Attrs attrs = {0};
    Pending pending = {0};
    if (!p->failed && accept(p, "{")) read_attrs(p, g, &attrs, &pending);
    for (int i = 0; i < ATTR_COUNT && !p->failed; i++) {
        if (attr_info[i].kind != A_GRAPH || !sees(p, attr_info[i].name)) continue;
        const char *before = p->at;
        if (strcmp(word(p, ""), attr_info[i].name) || !accept(p, "{")) {
            p->at = before;
            continue;
        }
        Graph *region = graph_new(p->arena, attr_info[i].name);
        region->parent = g;
        Scope *inner = arena_new(p->scratch, Scope);
        read_nodes(p, region, inner);
        *(Graph **)(void *)((char *)&attrs + attr_info[i].offset) = region;
    }
    VEC(Name) places = {0};
    Type few[8], *types = n_out <= 8 ? few : arena_array(p->scratch, Type, n_out);
    if (!p->failed && n_out && expect(p, ":")) {
        do {
            types[n_types] = need_type(p, g);
            vec_push(p->scratch, &places, read_shares(p));
        } while (!p->failed && ++n_types < n_out && accept(p, ","));
        if (n_types != n_out) fail(p, "fewer types than results", NULL);
    }
    const char *end = p->at;
    Notes *notes = arena_new(p->scratch, Notes);
    if (!p->failed) read_notes(p, notes);
    if (p->failed) return;

    if (n_out && lists(op, ATTR_dtype)) attrs.dtype = types[0].dtype;
    if (n_out && lists(op, ATTR_dims)) attrs.dims = dims_of(&types[0]);
    if (n_out) finish_data(p, &attrs, &pending, &types[0]);
    Builder b = builder_end(g, p->diag);
    b.at = notes->has_span ? notes->at : span_from(p, begin, end);
    b.path = notes->path;
    b.backward = notes->backward;
    if (p->failed) return;
    Node *n = build_typed(&b, op, in.at, &attrs, n_out, types);
    if (!n || !node_check(n, p->diag)) {
        p->failed = true;
        return;
    }
    n->keep = notes->keep;
    for (int i = 0; i < n_out; i++) {
        define_value(p, scope, result[i], &n->out[i]);
        n->out[i].place = places.at[i];
        if (i < notes->n_places) {
            n->out[i].arena = notes->arena[i];
            n->out[i].offset = notes->offset[i];
        }
    }
}

static void read_nodes(Parser *p, Graph *g, Scope *scope) {
    while (!p->failed && !accept(p, "}")) {
        if (p->at >= p->end) fail(p, "expected }", NULL);
        else read_node(p, g, scope);
    }
}

// ---- graphs ---------------------------------------------------------------------------------------------

typedef struct { Sym *sym; Name value; const char *at; } Extent;
typedef VEC(Extent) Extents;

static bool accept_word(Parser *p, const char *w) {
    const char *before = p->at;
    if (!strcmp(word(p, ""), w)) return true;
    p->at = before;
    return false;
}

// The leaf axis; a second one has the leaves that each rank of a tp group has by itself.
static bool can_be_leaves(const Graph *g, int64_t n) {
    return n > 0 && !g->own_leaf && (!g->leaf || (g->mesh.tp > 1 && n * g->mesh.tp == g->leaf->bound));
}

static void add_sym(Parser *p, Graph *g, const char *name, SymKind kind, int64_t bound, int groups,
                    int leaves) {
    if (p->failed) return;
    if (graph_find_sym(g, name)) fail(p, "defined twice: ", name);
    else if (bound < 0 || (kind == SYM_LEAF && !can_be_leaves(g, bound))) fail(p, "not a size of rows: ", name);
    else graph_add_sym(g, name, kind, bound, groups, leaves);
}

static void read_rows(Parser *p, Graph *g, Extents *extents) {
    const char *name = need_word(p, "a row symbol");
    expect(p, "<=");
    int64_t bound = need_int(p), groups = 0, leaves = 0;
    bool ragged = accept_word(p, "by");
    if (ragged) {
        groups = need_int(p);
        if (accept_word(p, "leaves")) leaves = need_int(p);
    }
    add_sym(p, g, name, ragged ? SYM_RAGGED : SYM_PLAIN, bound, (int)groups, (int)leaves);
    skip(p, true);
    const char *at = p->at;
    if (p->failed || !accept_word(p, "of")) return;
    Extent e = {graph_find_sym(g, name), value_key(p), at};
    vec_push(p->scratch, extents, e);
}

static void read_mesh(Parser *p, RtMesh *m) {
    struct { const char *name; int32_t *at; int64_t least; } number[] = {
        {"dp", &m->dp, 1}, {"ep", &m->ep, 1}, {"tp", &m->tp, 1}, {"etp", &m->etp, 1}, {"zero", &m->zero, 0},
        {"replicas", &m->replicas, 0}};
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        if (!accept_word(p, number[i].name)) continue;
        int64_t n = need_int(p);
        if (n < number[i].least || n > 1 << 16) fail(p, "not a number of ranks: ", number[i].name);
        else *number[i].at = (int32_t)n;
    }
}

static Graph *read_graph(Parser *p) {
    expect(p, "@");
    Graph *g = graph_new(p->arena, need_word(p, "the name of a graph"));
    if (accept_word(p, "stage")) {
        const char *stage = need_word(p, "a stage");
        int i = 0;
        while (i < STAGE_COUNT && strcmp(stage, stage_name[i])) i++;
        if (i == STAGE_COUNT) fail(p, "not a stage: ", stage);
        else g->stage = (Stage)i;
    }
    read_mesh(p, &g->mesh);
    expect(p, "{");
    Extents extents = {0};
    while (!p->failed) {
        if (accept_word(p, "leaves")) {
            const char *name = need_word(p, "the leaf axis");
            expect(p, "=");
            int64_t n = need_int(p);
            add_sym(p, g, name, SYM_LEAF, n, 0, 0);
        } else if (accept_word(p, "rows")) {
            read_rows(p, g, &extents);
        } else if (accept_word(p, "arena")) {
            g->arena_bytes = need_int(p);
            if (accept_word(p, "lower")) g->lower_bound_bytes = need_int(p);
        } else {
            break;
        }
    }
    Scope *scope = arena_new(p->scratch, Scope);
    read_nodes(p, g, scope);
    const char *end = p->at;
    for (int i = 0; i < extents.n && !p->failed; i++) {
        Extent *e = &extents.at[i];
        p->at = e->at;                              // where a mistake is told
        e->sym->extent = e->value ? find_value(scope, e->value) : NULL;
        if (!e->sym->extent) fail(p, "not defined: %", e->value);
    }
    p->at = end;
    return g;
}

Graph **graphs_parse(Arena *a, Diag *d, uint32_t file, int *n_graphs) {
    size_t n;
    const char *text = diag_file_text(d, file, &n);
    Parser p = {.arena = a, .scratch = arena_create(), .diag = d, .file = file};
    p.text = p.at = arena_strndup(p.scratch, text, n);      // ends with 0 for strtod
    p.end = p.text + n;
    find_side_data(&p);
    VEC(Graph *) graphs = {0};
    while (!p.failed && (skip(&p, true), p.at < p.end)) {
        const char *before = p.at;
        if (accept_word(&p, "graph")) {
            Graph *g = read_graph(&p);
            vec_push(a, &graphs, g);
        } else if (accept_word(&p, "data")) {
            skip_side_data(&p);
        } else {
            p.at = before;
            fail(&p, "expected graph or data", NULL);
        }
    }
    bool failed = p.failed;
    arena_destroy(p.scratch);
    *n_graphs = failed ? 0 : graphs.n;
    if (failed) return NULL;
    return graphs.at ? graphs.at : arena_array(a, Graph *, 1);
}
