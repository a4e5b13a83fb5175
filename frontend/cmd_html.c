// The page of `moec dump --html`: facts as JSON, put into page.html (which is linked in as text).
//
// Passes rewrite graphs in place and renumber nothing here: a value keeps one number over all snapshots, so what a
// pass did is the difference of two lists.  A node whose text changed is a new version under a new number.
#include "frontend/cmd_html.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/page.h"          // page_html[], made from page.html by the build
#include "ir/base/vec.h"

typedef struct {
    const void *key;
    int number;
} Slot;

typedef struct {
    Slot  *slot;
    size_t n, cap;
} Numbers;

typedef struct {
    const char *text;
    int id;
} Version;

struct Html {
    Arena *arena;
    const Diag *diag;
    json_t *page, *programs, *program, *nodes, *passes;
    Numbers values, versions;          // Value * -> number; Node * -> index in `version`
    VEC(Version) version;
    int next_id;
};

static int *number_of(Html *h, Numbers *t, const void *key) {
    if (t->n * 2 >= t->cap) {
        Numbers bigger = {.cap = t->cap ? t->cap * 2 : 1024, .n = t->n};
        bigger.slot = arena_array(h->arena, Slot, bigger.cap);
        for (size_t i = 0; i < t->cap; i++)
            if (t->slot[i].key) {
                size_t k = ((uintptr_t)t->slot[i].key >> 4) * 0x9E3779B97F4A7C15u >> 20 & (bigger.cap - 1);
                while (bigger.slot[k].key) k = (k + 1) & (bigger.cap - 1);
                bigger.slot[k] = t->slot[i];
            }
        *t = bigger;
    }
    size_t k = ((uintptr_t)key >> 4) * 0x9E3779B97F4A7C15u >> 20 & (t->cap - 1);
    while (t->slot[k].key && t->slot[k].key != key) k = (k + 1) & (t->cap - 1);
    if (!t->slot[k].key) {
        t->slot[k] = (Slot){key, -1};
        t->n++;
    }
    return &t->slot[k].number;
}

static int value_number(Html *h, const Value *v) {
    int *n = number_of(h, &h->values, v);
    if (*n < 0) *n = (int)h->values.n - 1;
    return *n;
}

Html *html_new(Arena *a, const Diag *d, const char *model, const char *file) {
    Html *h = arena_new(a, Html);
    h->arena = a;
    h->diag = d;
    h->page = json_object();
    h->programs = json_array();
    json_object_set_new(h->page, "model", json_string(model));
    json_object_set_new(h->page, "file", json_string(file));
    json_object_set_new(h->page, "facts", json_array());
    json_object_set_new(h->page, "programs", h->programs);
    return h;
}

void html_fact(Html *h, const char *name, const char *value) {
    json_array_append_new(json_object_get(h->page, "facts"), json_pack("[ss]", name, value));
}

void html_program(Html *h, const char *name) {
    h->program = json_object();
    h->nodes = json_object();
    h->passes = json_array();
    json_object_set_new(h->program, "name", json_string(name));
    json_object_set_new(h->program, "nodes", h->nodes);
    json_object_set_new(h->program, "passes", h->passes);
    json_array_append_new(h->programs, h->program);
}

void html_select(Html *h, int program) {
    h->program = json_array_get(h->programs, (size_t)program);
    h->nodes = json_object_get(h->program, "nodes");
    h->passes = json_object_get(h->program, "passes");
}

// ---- the text of a node ---------------------------------------------------------------------------------

static void add_node_text(Html *h, Str *s, const Node *n, int depth);

static void add_attr(Html *h, Str *s, const AttrInfo *a, const void *field, int depth) {
    const Ints *ints = field;
    const Dims *dims = field;
    Name name;
    SymP sym;
    GraphP body;
    DataP data;
    switch (a->kind) {
    case A_INT: str_printf(s, "%s = %lld", a->name, (long long)*(const int64_t *)field); return;
    case A_REAL: str_printf(s, "%s = %.9g", a->name, *(const double *)field); return;
    case A_NAME: memcpy(&name, field, sizeof name); str_printf(s, "%s = \"%s\"", a->name, name ? name : ""); return;
    case A_INTS:
        str_printf(s, "%s = [", a->name);
        for (int i = 0; i < ints->n; i++) str_printf(s, "%s%lld", i ? "," : "", (long long)ints->at[i]);
        str_add(s, "]");
        return;
    case A_DIMS:
        str_printf(s, "%s = [", a->name);
        for (int i = 0; i < dims->n; i++) str_printf(s, "%s%s", i ? "," : "", dim_text(h->arena, dims->at[i]));
        str_add(s, "]");
        return;
    case A_DATA:
        memcpy(&data, field, sizeof data);
        if (data) str_printf(s, "%s = data(%016llx)", a->name, (unsigned long long)data->hash);
        else str_printf(s, "%s = none", a->name);
        return;
    case A_SYM: memcpy(&sym, field, sizeof sym); str_printf(s, "%s = %s", a->name, sym ? sym->name : "none"); return;
    case A_GRAPH:
        memcpy(&body, field, sizeof body);
        str_printf(s, "%s = {\n", a->name);
        if (body)
            for (const Node *n = body->first; n; n = n->next) {
                str_printf(s, "%*s", 2 * depth + 2, "");
                add_node_text(h, s, n, depth + 1);
                str_add(s, "\n");
            }
        str_printf(s, "%*s}", 2 * depth, "");
        return;
    }
}

// What the type says, and what is not set, is left out.
static bool says_something(int id, const AttrInfo *a, const void *field) {
    static const char nothing[sizeof(Dims)];
    size_t n = a->kind == A_DIMS || a->kind == A_INTS ? sizeof(int) : a->kind == A_INT || a->kind == A_REAL ? 8 : sizeof(void *);
    if (id == ATTR_value) return true;
    return id != ATTR_dtype && id != ATTR_dims && memcmp(field, nothing, n) != 0;
}

static void add_node_text(Html *h, Str *s, const Node *n, int depth) {
    for (int i = 0; i < n->n_out; i++) str_printf(s, "%s%%%d", i ? ", " : "", value_number(h, &n->out[i]));
    const OpInfo *op = &op_info[n->op];
    str_printf(s, "%s%s", n->n_out ? " = " : "", op->name);
    for (int i = 0; i < n->n_in; i++) str_printf(s, "%s%%%d", i ? ", " : " ", value_number(h, n->in[i]));
    bool any = false;
    for (int i = 0; op->attrs[i]; i++) {
        const AttrInfo *a = &attr_info[op->attrs[i] - 1];
        const char *field = (const char *)&n->attr + a->offset;
        if (!says_something(op->attrs[i] - 1, a, field)) continue;
        str_add(s, any ? ", " : " {");
        add_attr(h, s, a, field, depth);
        any = true;
    }
    if (any) str_add(s, "}");
    for (int i = 0; i < n->n_out; i++) str_printf(s, "%s%s", i ? ", " : " : ", type_text(h->arena, &n->out[i].type));
}

static const char *source_line(Html *h, Span at) {
    size_t n;
    const char *text = diag_file_text(h->diag, at.file, &n);
    if (!text || at.begin >= n) return "";
    size_t b = at.begin, e = at.begin;
    while (b && text[b - 1] != '\n') b--;
    while (e < n && text[e] != '\n') e++;
    while (b < e && text[b] == ' ') b++;
    return arena_strndup(h->arena, text + b, e - b);
}

static json_t *node_json(Html *h, const Node *n, const char *text) {
    int line, column;
    diag_line_column(h->diag, n->at, &line, &column);
    const char *file = diag_file_name(h->diag, n->at.file);
    json_t *in = json_array(), *out = json_array(), *types = json_array();
    for (int i = 0; i < n->n_in; i++) json_array_append_new(in, json_integer(value_number(h, n->in[i])));
    for (int i = 0; i < n->n_out; i++) {
        json_array_append_new(out, json_integer(value_number(h, &n->out[i])));
        json_array_append_new(types, json_string(type_text(h->arena, &n->out[i].type)));
    }
    json_t *j = json_object();
    json_object_set_new(j, "op", json_string(op_info[n->op].name));
    json_object_set_new(j, "text", json_string(text));
    json_object_set_new(j, "path", json_string(n->path ? n->path : ""));
    if (n->attr.name) json_object_set_new(j, "name", json_string(n->attr.name));
    json_object_set_new(j, "in", in);
    json_object_set_new(j, "out", out);
    json_object_set_new(j, "types", types);
    if (n->backward) json_object_set_new(j, "backward", json_true());
    if (file) {
        json_object_set_new(j, "at", json_sprintf("%s:%d:%d", file, line, column));
        json_object_set_new(j, "line", json_string(source_line(h, n->at)));
    }
    return j;
}

static int version_of(Html *h, const Node *n) {
    Str s = {.arena = h->arena};
    add_node_text(h, &s, n, 0);
    int *at = number_of(h, &h->versions, n);
    if (*at >= 0 && !strcmp(h->version.at[*at].text, s.text)) return h->version.at[*at].id;
    Version v = {s.text, h->next_id++};
    char id[16];
    snprintf(id, sizeof id, "%d", v.id);
    json_object_set_new(h->nodes, id, node_json(h, n, s.text));
    *at = h->version.n;
    vec_push(h->arena, &h->version, v);
    return v.id;
}

void html_seen(void *html, const char *pass, const Graph *g, double seconds) {
    Html *h = html;
    json_t *list = json_array();
    for (const Node *n = g->first; n; n = n->next) json_array_append_new(list, json_integer(version_of(h, n)));
    json_array_append_new(h->passes, json_pack("{s:s, s:f, s:o}", "name", pass, "seconds", seconds, "nodes", list));
    if (g->stage != PLANNED) return;
    json_t *buffers = json_array();
    int at = 0;
    for (const Node *n = g->first; n; n = n->next, at++)
        for (int i = 0; i < n->n_out; i++) {
            const Value *v = &n->out[i];
            if (v->arena != RT_STEP) continue;
            int end = at, k = at;
            for (const Node *r = n->next; r && v->n_uses; r = r->next) {
                k++;
                for (int j = 0; j < r->n_in; j++)
                    if (r->in[j] == v) end = k;
            }
            json_array_append_new(buffers, json_pack("[i, i, I, I, i]", at, end, (json_int_t)v->offset, (json_int_t)type_bytes(&v->type),
                                                     version_of(h, n)));
        }
    json_object_set_new(h->program, "memory", json_pack("{s:I, s:I, s:o}", "bytes", (json_int_t)g->arena_bytes, "lower",
                                                       (json_int_t)g->lower_bound_bytes, "buffers", buffers));
}

void html_kernel(Html *h, const Node *n, const char *kernel) {
    char id[16];
    snprintf(id, sizeof id, "%d", version_of(h, n));
    json_object_set_new(json_object_get(h->nodes, id), "kernel", json_string(kernel));
}

bool html_write(Html *h, const char *path) {
    const char *hole = strstr(page_html, "\"@DATA@\"");
    const char *beside = arena_printf(h->arena, "%s.tmp", path);
    FILE *f = fopen(beside, "w");
    if (!f) return false;
    char *text = json_dumps(h->page, JSON_COMPACT);
    fwrite(page_html, 1, (size_t)(hole - page_html), f);
    for (const char *p = text; *p; p++) {           // "</script>" inside a string would end the script
        if (p[0] == '<' && p[1] == '/') fputs("<\\", f);
        else fputc(*p, f);
    }
    fputs(hole + strlen("\"@DATA@\""), f);
    free(text);
    json_decref(h->page);
    bool ok = !ferror(f) && fflush(f) == 0;
    int error = errno;
    if (fclose(f) != 0 && ok) {
        ok = false;
        error = errno;
    }
    if (ok && rename(beside, path) != 0) {
        ok = false;
        error = errno;
    }
    if (!ok) unlink(beside);
    errno = error;
    return ok;
}
