#include "planner/cluster.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include "ir/base/str.h"

typedef enum { TEXT, COUNT, ABOVE_0, FROM_0, SHARE } Kind;
typedef struct {
    const char *name;
    Kind   kind;
    size_t at;
    bool   optional;
    double fallback;
} Member;

static const Member of_cluster[] = {
    {"name", TEXT, offsetof(Cluster, name)},
    {"source", TEXT, offsetof(Cluster, source), true},
    {"nodes", COUNT, offsetof(Cluster, nodes)},
    {0}};
static const Member of_device[] = {
    {"per_node", COUNT, offsetof(Cluster, per_node)},
    {"threads", COUNT, offsetof(Cluster, threads), true, 1},
    {"cores", COUNT, offsetof(Cluster, cores), true, 0},
    {"memory", ABOVE_0, offsetof(Cluster, memory)},
    {"reserve", FROM_0, offsetof(Cluster, reserve), true, 0},
    {"bandwidth", ABOVE_0, offsetof(Cluster, bandwidth)},
    {"launch", FROM_0, offsetof(Cluster, launch), true, 0},
    {"comm_share", SHARE, offsetof(Cluster, comm_share), true, 0},
    {0}};
static const Member of_flops[] = {
    {"f32", ABOVE_0, offsetof(Cluster, flops_f32)},
    {"bf16", ABOVE_0, offsetof(Cluster, flops_bf16)},
    {0}};
static const Member of_efficiency[] = {
    {"gemm", SHARE, offsetof(Cluster, efficiency.gemm)},
    {"attention", SHARE, offsetof(Cluster, efficiency.attention)},
    {"rows", SHARE, offsetof(Cluster, efficiency.rows)},
    {0}};
static const Member of_link[] = {
    {"kind", TEXT, offsetof(ClusterLink, kind)},
    {"rate", ABOVE_0, offsetof(ClusterLink, rate)},
    {"latency", FROM_0, offsetof(ClusterLink, latency)},
    {"message", FROM_0, offsetof(ClusterLink, message), true, 0},
    {"cpu", FROM_0, offsetof(ClusterLink, cpu), true, 0},
    {0}};
static const char *const kind_names[DEVICE_KINDS] = {[DEVICE_CPU] = "cpu", [DEVICE_GPU] = "gpu"};

static const char *must_be(Kind k) {
    static const char *const must[] = {[TEXT] = "a text", [COUNT] = "a whole number from 1 to 1048576", [ABOVE_0] = "a number above 0",
                                       [FROM_0] = "a number from 0", [SHARE] = "a number from 0 to 1"};
    return must[k];
}

// ---- where a member stands, for messages ------------------------------------------------------------------------
// The text is JSON already: jansson has read it.

static const char *skip_space(const char *t) {
    while (*t == ' ' || *t == '\t' || *t == '\n' || *t == '\r') t++;
    return t;
}

static const char *skip_text(const char *t) {
    for (t++; *t != '"'; t++) t += *t == '\\';
    return t + 1;
}

static const char *skip_value(const char *t) {
    int depth = 0;
    for (t = skip_space(t);; t = *t == '"' ? skip_text(t) : t + 1) {
        bool ends = *t == ',' || *t == '}' || *t == ']' || !*t;
        if (depth == 0 && ends) return t;
        depth += *t == '{' || *t == '[';
        depth -= *t == '}' || *t == ']';
        if (depth == 0 && (*t == '}' || *t == ']')) return t + 1;
    }
}

// The value of a member, or of the element at an index, of the value at t.  NULL: it has none.
static const char *find_in(const char *t, const char *name, int index) {
    t = skip_space(t);
    bool object = *t == '{';
    for (t = skip_space(t + 1); *t && *t != '}' && *t != ']'; t = skip_space(t)) {
        const char *key = t, *value = t;
        if (object) value = skip_space(skip_space(skip_text(t)) + 1);
        bool here = object ? name && !strncmp(key + 1, name, strlen(name)) && key[1 + strlen(name)] == '"' : index-- == 0;
        if (here) return value;
        t = skip_space(skip_value(value));
        if (*t == ',') t++;
    }
    return NULL;
}

typedef struct {
    Diag *d;
    uint32_t file;
    const char *text;
    bool ok;
} Reader;

// An object or a list on the way from the top: a member's name or an element's index.
typedef struct Place {
    const struct Place *of;
    const char *name;          // NULL: element `index`
    int index;
} Place;

static const char *find(const Reader *r, const Place *p) {
    if (!p) return r->text;
    const char *outer = find(r, p->of), *at = outer ? find_in(outer, p->name, p->index) : NULL;
    return at ? at : outer;
}

static void place_text(Str *s, const Place *p) {
    if (!p) return;
    place_text(s, p->of);
    if (!p->name) str_printf(s, "[%d]", p->index);
    else str_printf(s, p->of ? ".%s" : "%s", p->name);
}

static Span span_of(const Reader *r, const Place *p) {
    const char *at = skip_space(find(r, p)), *end = at;
    while (*end && *end != '\n' && *end != ',' && *end != '}' && *end != ']') end++;
    return (Span){r->file, (uint32_t)(at - r->text), (uint32_t)(end > at ? end - r->text : at + 1 - r->text)};
}

static bool wrong(Reader *r, Arena *a, const Place *p, const char *fmt, ...) {
    Str s = {.arena = a};
    str_add(&s, "");
    place_text(&s, p);
    str_add(&s, *s.text ? " " : "the file ");
    va_list ap;
    va_start(ap, fmt);
    str_vprintf(&s, fmt, ap);
    va_end(ap);
    diag_error(r->d, span_of(r, p), "%s", s.text);
    return r->ok = false;
}

// ---- reading ----------------------------------------------------------------------------------------------------

static bool read_member(Reader *r, Arena *a, const Member *m, const Place *of, const json_t *o, char *to) {
    const json_t *v = json_object_get(o, m->name);
    Place p = {of, m->name, 0};
    char *at = to + m->at;
    if (!v && !m->optional) return wrong(r, a, of, "has no member \"%s\"; it must be %s", m->name, must_be(m->kind));
    double x = v ? json_number_value(v) : m->fallback;
    bool number = !v || (json_is_number(v) && isfinite(x) && x < 1e30);
    bool fits = m->kind == TEXT      ? !v || (json_is_string(v) && *json_string_value(v))
                : m->kind == COUNT   ? !v || (number && x == floor(x) && x >= 1 && x <= 1 << 20)
                : m->kind == ABOVE_0 ? number && x > 0
                                     : number && x >= 0 && (m->kind == FROM_0 || x <= 1);
    if (!fits) return wrong(r, a, &p, "must be %s", must_be(m->kind));
    if (m->kind == TEXT) *(const char **)(void *)at = v ? arena_strdup(a, json_string_value(v)) : "";
    else if (m->kind == COUNT) *(int *)(void *)at = (int)x;
    else *(double *)(void *)at = x;
    return true;
}

// The rows' members of an object, and no others but `more`.
static void read_members(Reader *r, Arena *a, const Member *members, const Place *of, const json_t *o, void *to,
                         const char *const *more) {
    if (!json_is_object(o)) {
        wrong(r, a, of, "must be an object");
        return;
    }
    for (const Member *m = members; m->name; m++) read_member(r, a, m, of, o, to);
    const char *key, *known[16];
    int n = 0;
    for (const Member *m = members; m->name; m++) known[n++] = m->name;
    for (; *more; more++) known[n++] = *more;
    json_t *v;
    json_object_foreach((json_t *)o, key, v) {
        bool is_known = false;
        for (int i = 0; i < n; i++) is_known |= !strcmp(known[i], key);
        if (is_known) continue;
        const char *near = did_you_mean(key, known, n);
        Place p = {of, arena_strdup(a, key), 0};
        wrong(r, a, &p, near ? "is not known here; did you mean \"%s\"?" : "is not known here%s", near ? near : "");
    }
}

static void read_link(Reader *r, Arena *a, Cluster *c, const Place *p, const json_t *o) {
    static const char *const more[] = {"level", "per", NULL};
    ClusterLink link = {0};
    read_members(r, a, of_link, p, o, &link, more);
    if (!r->ok) return;
    const char *level = json_string_value(json_object_get(o, "level")), *per = json_string_value(json_object_get(o, "per"));
    int l = 0;
    while (l < RT_LINKS && (!level || strcmp(level, rt_link_name((RtLink)l)) != 0)) l++;
    Place at_level = {p, "level", 0}, at_per = {p, "per", 0};
    if (l == RT_LINKS) {
        wrong(r, a, &at_level, "must be \"node\" (between devices of a node) or \"net\" (between nodes)");
        return;
    }
    if (c->link[l].kind) wrong(r, a, p, "is the second link of level \"%s\"; each level has one", level);
    bool per_is_there = json_object_get(o, "per") != NULL;
    if (per_is_there && (!per || (strcmp(per, "device") != 0 && strcmp(per, "node") != 0)))
        wrong(r, a, &at_per, "must be \"device\" (each has the rate) or \"node\" (all of a node share it)");
    link.per_node = per && !strcmp(per, "node");
    c->link[l] = link;
}

static void read_caches(Reader *r, Arena *a, Cluster *c, const Place *p, const json_t *list) {
    static const Member of_cache[] = {{"bytes", ABOVE_0, 0}, {"rate", ABOVE_0, sizeof(double)}, {0}};
    static const char *const none[] = {NULL};
    c->n_caches = 0;
    if (!list) return;
    if (!json_is_array(list) || json_array_size(list) > CLUSTER_CACHES) {
        wrong(r, a, p, "must be a list of at most %d objects", CLUSTER_CACHES);
        return;
    }
    for (int i = 0; i < (int)json_array_size(list); i++) {
        Place at = {p, NULL, i};
        read_members(r, a, of_cache, &at, json_array_get(list, (size_t)i), &c->cache[i], none);
        if (r->ok && i && c->cache[i].bytes <= c->cache[i - 1].bytes) wrong(r, a, &at, "must hold more than the one before");
        c->n_caches++;
    }
}

// Shares of ops, by their names: {"matmul": 0.6, ..}.
static void read_ops(Reader *r, Arena *a, Cluster *c, const Place *p, json_t *o) {
    const char *op;
    json_t *v;
    if (o && (!json_is_object(o) || json_object_size(o) > CLUSTER_OPS)) {
        wrong(r, a, p, "must be an object with at most %d members", CLUSTER_OPS);
        return;
    }
    json_object_foreach(o, op, v) {
        double share = json_number_value(v);
        Place at = {p, arena_strdup(a, op), 0};
        if (!json_is_number(v) || !(share > 0 && share < 1e6)) wrong(r, a, &at, "must be %s", must_be(ABOVE_0));
        c->op[c->n_ops].op = at.name;
        c->op[c->n_ops++].share = share;
    }
}

double cluster_op_share(const Cluster *c, const char *op) {
    for (int i = 0; i < c->n_ops; i++)
        if (!strcmp(c->op[i].op, op)) return c->op[i].share;
    return 0;
}

static void read_device(Reader *r, Arena *a, Cluster *c, const json_t *o) {
    static const char *const more[] = {"kind", "flops", "efficiency", "caches", NULL}, *const none[] = {NULL}, *const ops[] = {"ops", NULL};
    Place p = {NULL, "device", 0}, at_kind = {&p, "kind", 0}, flops = {&p, "flops", 0}, efficiency = {&p, "efficiency", 0}, caches = {&p, "caches", 0};
    read_members(r, a, of_device, &p, o, c, more);
    if (!json_is_object(o)) return;
    const char *kind = json_string_value(json_object_get(o, "kind"));
    int k = 0;
    while (k < DEVICE_KINDS && (!kind || strcmp(kind, kind_names[k]) != 0)) k++;
    if (k == DEVICE_KINDS) wrong(r, a, &at_kind, "must be \"cpu\" or \"gpu\"");
    c->kind = (DeviceKind)k;
    read_members(r, a, of_flops, &flops, json_object_get(o, "flops"), c, none);
    const json_t *shares = json_object_get(o, "efficiency");
    Place of_ops = {&efficiency, "ops", 0};
    read_members(r, a, of_efficiency, &efficiency, shares, c, ops);
    read_ops(r, a, c, &of_ops, json_object_get(shares, "ops"));
    read_caches(r, a, c, &caches, json_object_get(o, "caches"));
}

Cluster *cluster_read(Arena *a, Diag *d, const char *path, const char *text, size_t n) {
    static const char *const more[] = {"device", "links", NULL};
    Reader r = {d, diag_add_file(d, path, text, n), text, true};
    json_error_t e;
    json_t *all = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!all) {
        uint32_t at = e.position > 0 && (size_t)e.position <= n ? (uint32_t)e.position - 1 : 0;
        diag_error(d, (Span){r.file, at, at + 1}, "this is not JSON: %s", e.text);
        return NULL;
    }
    Cluster *c = arena_new(a, Cluster);
    *c = (Cluster){0};
    read_members(&r, a, of_cluster, NULL, all, c, more);
    read_device(&r, a, c, json_object_get(all, "device"));
    const json_t *links = json_object_get(all, "links");
    Place p = {NULL, "links", 0};
    if (!json_is_array(links)) wrong(&r, a, &p, "must be a list of links, each an object");
    for (int i = 0; r.ok && i < (int)json_array_size(links); i++) {
        Place at = {&p, NULL, i};
        read_link(&r, a, c, &at, json_array_get(links, (size_t)i));
    }
    if (r.ok && c->per_node > 1 && !c->link[RT_LINK_NODE].kind)
        wrong(&r, a, &p, "must have one of level \"node\": a node has %d devices", c->per_node);
    if (r.ok && c->nodes > 1 && !c->link[RT_LINK_NET].kind)
        wrong(&r, a, &p, "must have one of level \"net\": there are %d nodes", c->nodes);
    Place device = {NULL, "device", 0}, reserve = {&device, "reserve", 0};
    if (r.ok && c->reserve >= c->memory) wrong(&r, a, &reserve, "must be less than device.memory");
    json_decref(all);
    return r.ok ? c : NULL;
}

// ---- writing ----------------------------------------------------------------------------------------------------

static void write_members(json_t *o, const Member *m, const void *from) {
    for (; m->name; m++) {
        const char *at = (const char *)from + m->at;
        if (m->kind == TEXT && *(const char *const *)(const void *)at)
            json_object_set_new(o, m->name, json_string(*(const char *const *)(const void *)at));
        else if (m->kind == COUNT && *(const int *)(const void *)at) json_object_set_new(o, m->name, json_integer(*(const int *)(const void *)at));
        else if (m->kind != TEXT && m->kind != COUNT) json_object_set_new(o, m->name, json_real(*(const double *)(const void *)at));
    }
}

json_t *cluster_json(const Cluster *c) {
    json_t *o = json_object(), *device = json_object(), *flops = json_object(), *efficiency = json_object(), *links = json_array();
    write_members(o, of_cluster, c);
    json_object_set_new(device, "kind", json_string(kind_names[c->kind]));
    write_members(device, of_device, c);
    write_members(flops, of_flops, c);
    write_members(efficiency, of_efficiency, c);
    json_t *ops = json_object();
    for (int i = 0; i < c->n_ops; i++) json_object_set_new(ops, c->op[i].op, json_real(c->op[i].share));
    if (c->n_ops) json_object_set(efficiency, "ops", ops);
    json_decref(ops);
    json_object_set_new(device, "flops", flops);
    json_object_set_new(device, "efficiency", efficiency);
    json_t *caches = json_array();
    for (int i = 0; i < c->n_caches; i++)
        json_array_append_new(caches, json_pack("{s:f, s:f}", "bytes", c->cache[i].bytes, "rate", c->cache[i].rate));
    if (c->n_caches) json_object_set(device, "caches", caches);
    json_decref(caches);
    for (int l = 0; l < RT_LINKS; l++) {
        if (!c->link[l].kind) continue;
        json_t *link = json_object();
        json_object_set_new(link, "level", json_string(rt_link_name((RtLink)l)));
        write_members(link, of_link, &c->link[l]);
        json_object_set_new(link, "per", json_string(c->link[l].per_node ? "node" : "device"));
        json_array_append_new(links, link);
    }
    json_object_set_new(o, "device", device);
    json_object_set_new(o, "links", links);
    return o;
}
