// Graph -> text.  Complete (parse.c reads it back to an equal graph) and deterministic (%0, %1, .. in list
// order).
//
//     graph @pass stage WHOLE {
//       leaves L = 8
//       rows R <= 8192 by 8 leaves 8 of %3
//       %0 = input {name = "ids"} : i32[L,2,256]
//       %1, %2 = topk %0 {k = 2} : f32[L,512,2], i32[L,512,2] !layers.0.ffn
//     }
//     data 9c1e5f0a11223344 f32[256,16] {
//       0000803f..
//     }
//
// Attributes stand in the order of attrs.def, those that are zero or empty are left out; `dtype` and `dims`
// are what the type after the colon says.  Reals have as many digits as they need to come back.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ir/base/vec.h"
#include "ir/ir.h"

enum { INLINE_ELEMENTS = 16 };

typedef struct {
    PrintOpts opts;
    bool data;                      // with the bytes of constants behind the graph
    Str *out;
    Arena *scratch;
    VEC(const Data *) consts;
} Printer;

// ---- literals -------------------------------------------------------------------------------------------

static void add_real(Str *s, double x) {
    char text[40];
    if (isnan(x)) {
        str_add(s, "nan");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    str_add(s, text);
}

static void add_float(Str *s, float x) {
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    str_add(s, isnan(x) ? "nan" : text);
}

static void add_quoted(Str *s, const char *text) {
    str_add(s, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') str_add(s, "\\");
        if (*text == '\n') str_add(s, "\\n");
        else str_add_n(s, text, 1);
    }
    str_add(s, "\"");
}

static bool is_small(const Data *data) {
    int64_t n = data->bytes / dtype_bytes(data->tensor.dtype);
    return n <= INLINE_ELEMENTS;
}

static void add_elements(Str *s, const Tensor *t, int64_t n) {
    str_add(s, "[");
    for (int64_t i = 0; i < n; i++) {
        if (i) str_add(s, ", ");
        if (t->dtype == F32) add_float(s, ((const float *)t->data)[i]);
        else if (t->dtype == I32) str_printf(s, "%d", ((const int32_t *)t->data)[i]);
        else str_printf(s, "%d", ((const uint8_t *)t->data)[i]);
    }
    str_add(s, "]");
}

static void add_data(Printer *p, const Data *data) {
    if (is_small(data)) {
        add_elements(p->out, &data->tensor, data->bytes / dtype_bytes(data->tensor.dtype));
        return;
    }
    str_printf(p->out, "data(%016llx)", (unsigned long long)data->hash);
    for (int i = 0; i < p->consts.n; i++)
        if (p->consts.at[i]->hash == data->hash) return;
    vec_push(p->scratch, &p->consts, data);
}

// ---- nodes ----------------------------------------------------------------------------------------------

static void add_value(const Printer *p, const Value *v) {
    if (p->opts.names && v->name) str_printf(p->out, "%%%s.%d", v->name, v->id);
    else str_printf(p->out, "%%%d", v->id);
}

// Zero says something here; elsewhere it is the absence of the attribute.
static bool prints_zero(const Node *n, AttrId attr) {
    switch (attr) {
    case ATTR_axis: if (op_is(n->op, COMM)) return false; break;
    case ATTR_begin: case ATTR_end: case ATTR_n: case ATTR_k: break;
    case ATTR_experts: case ATTR_stream: break;
    case ATTR_value: if (n->attr.data) return false; break;
    default: return false;
    }
    for (const int *a = op_info[n->op].attrs; *a; a++)
        if (*a == (int)attr + 1) return true;
    return false;
}

// The text of attribute `attr` of n goes to p->out; false: it is absent.
static bool add_attr(Printer *p, const Node *n, AttrId attr) {
    const void *at = (const char *)&n->attr + attr_info[attr].offset;
    Str *s = p->out;
    bool zero = prints_zero(n, attr);
    const char *name = attr_info[attr].name;
    switch (attr_info[attr].kind) {
    case A_INT:
        if (attr == ATTR_dtype || (!*(const int64_t *)at && !zero)) return false;
        if (attr == ATTR_leaves && *(const int64_t *)at == 1) return false;
        str_printf(s, "%s = %lld", name, (long long)*(const int64_t *)at);
        return true;
    case A_REAL:
        if (*(const double *)at == 0 && !zero) return false;
        str_printf(s, "%s = ", name);
        add_real(s, *(const double *)at);
        return true;
    case A_NAME:
        if (!*(const Name *)at) return false;
        str_printf(s, "%s = ", name);
        add_quoted(s, *(const Name *)at);
        return true;
    case A_INTS: {
        const Ints *ints = at;
        if (!ints->n) return false;
        str_printf(s, "%s = [", name);
        for (int i = 0; i < ints->n; i++) str_printf(s, "%s%lld", i ? ", " : "", (long long)ints->at[i]);
        str_add(s, "]");
        return true;
    }
    case A_DATA:
        if (!*(const DataP *)at) return false;
        str_printf(s, "%s = ", name);
        add_data(p, *(const DataP *)at);
        return true;
    case A_SYM:
        if (!*(const SymP *)at) return false;
        str_printf(s, "%s = %s", name, (*(const SymP *)at)->name);
        return true;
    case A_DIMS: case A_GRAPH:
        return false;           // the type says the dims; regions follow the attributes
    }
    return false;
}

static void add_notes(const Printer *p, const Node *n) {
    Str *s = p->out;
    for (int i = 0; i < n->n_out; i++) {
        static const char *const arena[] = {"persistent", "step", "const"};
        const Value *v = &n->out[i];
        if (n->graph->stage != PLANNED && v->arena < 0) continue;
        if (v->arena < 0) str_add(s, " &-");
        else if (v->offset < 0)
            str_printf(s, " &%s", arena[v->arena]); // placed later, when plans are made
        else str_printf(s, " &%s+0x%llx", arena[v->arena], (unsigned long long)v->offset);
    }
    if (n->path) str_printf(s, " !%s", n->path);
    if (n->backward) str_add(s, " @backward");
    if (n->keep) str_add(s, " @keep");
    if (p->opts.spans) str_printf(s, " loc(%u:%u:%u)", n->at.file, n->at.begin, n->at.end);
}

static void add_region(Printer *p, const Graph *g, int depth);

static void add_type(Printer *p, const Value *v, const char *before) {
    str_printf(p->out, "%s%s", before, type_text(p->scratch, &v->type));
    const Graph *g = v->node->graph;
    if (v->place && g->stage <= SHARDED && !g->parent) str_printf(p->out, " @ %s", v->place);
}

static void add_node(Printer *p, const Node *n, int depth) {
    Str *s = p->out;
    str_printf(s, "%*s", 2 * depth, "");
    for (int i = 0; i < n->n_out; i++) {
        if (i) str_add(s, ", ");
        add_value(p, &n->out[i]);
    }
    str_printf(s, "%s%s", n->n_out ? " = " : "", op_info[n->op].name);
    for (int i = 0; i < n->n_in; i++) {
        str_add(s, i ? ", " : " ");
        add_value(p, n->in[i]);
    }
    bool open = false;
    for (int i = 0; i < ATTR_COUNT; i++) {
        size_t before = s->n;
        str_add(s, open ? ", " : " {");
        if (add_attr(p, n, (AttrId)i)) {
            open = true;
        } else {
            s->n = before;
            s->text[before] = 0;
        }
    }
    if (open) str_add(s, "}");
    for (int i = 0; i < ATTR_COUNT; i++) {
        if (attr_info[i].kind != A_GRAPH) continue;
        Graph *const *region = (const void *)((const char *)&n->attr + attr_info[i].offset);
        if (!*region) continue;
        str_printf(s, " %s {\n", attr_info[i].name);
        add_region(p, *region, depth + 1);
        str_printf(s, "%*s}", 2 * depth, "");
    }
    for (int i = 0; i < n->n_out; i++)
        add_type(p, &n->out[i], i ? ", " : " : ");
    add_notes(p, n);
    str_add(s, "\n");
}

static void add_region(Printer *p, const Graph *g, int depth) {
    graph_number((Graph *)g);
    for_each_node(g, n) add_node(p, n, depth);
}

// ---- folding --------------------------------------------------------------------------------------------
// A run of nodes of one layer whose text equals that of an earlier layer, up to value numbers and the layer's
// own number, prints as one comment.

// "layers.12.ffn" -> 12, and the length of "layers.12"; -1 without a number.
static int layer_of(const char *path, size_t *n) {
    if (!path) return -1;
    const char *p = path;
    while ((p = strchr(p, '.'))) {
        p++;
        if (*p >= '0' && *p <= '9') {
            char *end;
            long k = strtol(p, &end, 10);
            if (*end != '.' && *end) continue;
            *n = (size_t)(end - path);
            return (int)k;
        }
    }
    return -1;
}

// Last node of the run of n's layer and direction.
static const Node *run_end(const Node *n) {
    size_t len, other;
    layer_of(n->path, &len);
    while (n->next && layer_of(n->next->path, &other) >= 0 && other == len &&
           !strncmp(n->path, n->next->path, len) && n->next->backward == n->backward)
        n = n->next;
    return n;
}

// Text of the run with the layer's number blanked and values counted from the run's first (values of before
// the run, which differ from layer to layer, become %_) and without the numbers of row symbols.
static uint64_t run_hash(Arena *scratch, const Node *first, const Node *last) {
    size_t len;
    layer_of(first->path, &len);
    const char *prefix = arena_strndup(scratch, first->path, len);
    int base = -1;
    for (const Node *n = first; base < 0 && n != last->next; n = n->next)
        if (n->n_out) base = n->out[0].id;
    Str text = {.arena = scratch};
    Printer p = {.out = &text, .scratch = scratch};
    uint64_t hash = 1;
    for (const Node *n = first; n != last->next; n = n->next) {
        text.n = 0;
        add_node(&p, n, 0);
        for (char *c = text.text; *c;) {
            if (!strncmp(c, prefix, len) &&
                (c[len] == '.' || c[len] == '"' || c[len] == '\n' || c[len] == ' ')) {
                hash = str_hash("#", 1, hash);
                c += len;
            } else if (*c == '%' && c[1] >= '0' && c[1] <= '9') {
                long id = strtol(c + 1, &c, 10);
                long local = id >= base ? id - base : -1;
                hash = str_hash(&local, sizeof local, hash);
            } else if (*c == 'R' && c[1] >= '0' && c[1] <= '9' && strchr("[, ", c[-1])) {
                strtol(c + 1, &c, 10);             // a route's rows: each layer has its own
            } else {
                hash = str_hash(c++, 1, hash);
            }
        }
    }
    return hash;
}

typedef struct { uint64_t hash; const char *name; bool backward; } Layer;

static void add_folded(Printer *p, const Graph *g) {
    VEC(Layer) seen = {0};
    for (const Node *n = g->first; n; n = n->next) {
        size_t len;
        if (layer_of(n->path, &len) < 0) {
            add_node(p, n, 1);
            continue;
        }
        const Node *last = run_end(n);
        Layer layer = {run_hash(p->scratch, n, last), arena_strndup(p->scratch, n->path, len), n->backward};
        const Layer *like = NULL;
        for (int i = 0; i < seen.n && !like; i++)
            if (seen.at[i].hash == layer.hash && seen.at[i].backward == layer.backward) like = &seen.at[i];
        int count = 1;
        for (const Node *m = n; m != last; m = m->next) count++;
        if (like && count > 1) {
            str_printf(p->out, "  // %s%s: %d nodes as %s\n", layer.name, layer.backward ? ", backward" : "",
                       count, like->name);
        } else {
            for (const Node *m = n; m != last->next; m = m->next) add_node(p, m, 1);
            vec_push(p->scratch, &seen, layer);
        }
        n = last;
    }
}

// ---- graphs ---------------------------------------------------------------------------------------------

static void add_syms(Printer *p, const Graph *g) {
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind == SYM_LEAF) str_printf(p->out, "  leaves %s = %lld\n", s->name, (long long)s->bound);
        else str_printf(p->out, "  rows %s <= %lld", s->name, (long long)s->bound);
        if (s->kind == SYM_LEAF) continue;
        if (s->kind == SYM_RAGGED) str_printf(p->out, " by %d leaves %d", s->groups, s->leaves);
        if (s->extent && s->extent->node->graph == g) {
            str_add(p->out, " of ");
            add_value(p, s->extent);
        }
        str_add(p->out, "\n");
    }
    if (g->arena_bytes || g->lower_bound_bytes)
        str_printf(p->out, "  arena %lld lower %lld\n", (long long)g->arena_bytes,
                   (long long)g->lower_bound_bytes);
}

static void add_side_data(Printer *p) {
    static const char digit[] = "0123456789abcdef";
    enum { PER_LINE = 48 };
    for (int i = 0; i < p->consts.n; i++) {
        const Data *data = p->consts.at[i];
        const uint8_t *bytes = data->tensor.data;
        str_printf(p->out, "data %016llx %s[", (unsigned long long)data->hash,
                   dtype_name(data->tensor.dtype));
        for (int k = 0; k < data->tensor.ndim; k++)
            str_printf(p->out, "%s%lld", k ? "," : "", (long long)data->tensor.dim[k]);
        str_add(p->out, "] {\n");
        for (int64_t at = 0; at < data->bytes; at += PER_LINE) {
            char line[2 * PER_LINE + 4] = "  ";
            int n = 2;
            for (int64_t k = at; k < data->bytes && k < at + PER_LINE; k++) {
                line[n++] = digit[bytes[k] >> 4];
                line[n++] = digit[bytes[k] & 15];
            }
            line[n++] = '\n';
            str_add_n(p->out, line, (size_t)n);
        }
        str_add(p->out, "}\n");
    }
}

static void print(Printer *p, const Graph *g) {
    graph_number((Graph *)g);            // ids are scratch
    str_printf(p->out, "graph @%s stage %s", g->name, stage_name[g->stage]);
    RtMesh m = g->mesh;
    if (rt_mesh_ranks(m) > 1) {
        str_printf(p->out, " dp %d ep %d tp %d", m.dp, m.ep, m.tp);
        if (m.etp) str_printf(p->out, " etp %d", m.etp);
        str_printf(p->out, " zero %d", m.zero);
        if (m.replicas) str_printf(p->out, " replicas %d", m.replicas);
    }
    str_add(p->out, " {\n");
    add_syms(p, g);
    if (p->opts.fold) add_folded(p, g);
    else for_each_node(g, n) add_node(p, n, 1);
    str_add(p->out, "}\n");
    if (p->data && !p->opts.fold) add_side_data(p);
}

void graph_print(const Graph *g, Str *out, PrintOpts opts) {
    Printer p = {.opts = opts, .data = true, .out = out, .scratch = arena_create()};
    print(&p, g);
    arena_destroy(p.scratch);
}

uint64_t graph_hash(const Graph *g) {
    Arena *scratch = arena_create();
    Str text = {.arena = scratch};
    Printer p = {.out = &text, .scratch = scratch};
    print(&p, g);
    uint64_t hash = str_hash(text.text, text.n, 0);
    arena_destroy(scratch);
    return hash;
}

void graph_show(const Graph *g) {
    Arena *scratch = arena_create();
    Str text = {.arena = scratch};
    graph_print(g, &text, (PrintOpts){.names = true});
    fputs(text.text, stderr);
    arena_destroy(scratch);
}

const char *node_str(const Node *n) {
    enum { RING = 8, LENGTH = 1024 };
    static char ring[RING][LENGTH];      // for people at a debugger: the one buffer that is shared
    static int next;
    Arena *scratch = arena_create();
    Str text = {.arena = scratch};
    Printer p = {.opts = {.names = true}, .out = &text, .scratch = scratch};
    add_node(&p, n, 0);
    char *to = ring[next = (next + 1) % RING];
    snprintf(to, LENGTH, "%.*s", (int)(text.n - 1), text.text);
    arena_destroy(scratch);
    return to;
}
