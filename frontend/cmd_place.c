// moec place: loads of experts -> which rank holds which.
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cli.h"
#include "runtime/eplb.h"
#include "runtime/files.h"

typedef struct {
    const char *name;
    int experts;
    float *load;
} Layer;

typedef struct {
    Cli *c;
    RtEplbSizes sizes;         // of all layers but for experts, and slots where they are not given
    bool json;
    VEC(Layer) layers;
} Place;

// ---- loads -------------------------------------------------------------------------------------------------------

static bool read_layer(Place *p, const char *name, const json_t *v) {
    Layer l = {name, (int)json_array_size(v), NULL};
    if (!json_is_array(v) || !l.experts) {
        cli_fail(p->c, "%s: layer %s must be a list of numbers, the loads of its experts", p->c->args.at[0], name);
        return false;
    }
    l.load = arena_array(p->c->arena, float, l.experts);
    for (int i = 0; i < l.experts; i++) {
        const json_t *x = json_array_get(v, (size_t)i);
        l.load[i] = json_is_number(x) ? (float)json_number_value(x) : NAN;
        if (l.load[i] >= 0 && isfinite(l.load[i])) continue;
        char *text = json_dumps(x, JSON_ENCODE_ANY | JSON_COMPACT);
        cli_fail(p->c, "%s: the load of expert %d of layer %s must be a number from 0, but is %.60s", p->c->args.at[0], i, name,
                 text ? text : "nothing");
        free(text);
        return false;
    }
    vec_push(p->c->arena, &p->layers, l);
    return true;
}

static bool read_loads(Place *p) {
    Cli *c = p->c;
    json_error_t why;
    RtError e;
    char *text;
    size_t bytes;
    if (rt_read_file(c->args.at[0], &text, &bytes, &e) != RT_OK) return cli_fail(c, "%s", e.text), false;
    json_t *all = json_loadb(text, bytes, 0, &why);
    free(text);
    if (!all) return cli_fail(c, "%s:%d: %s", c->args.at[0], why.line, why.text), false;
    bool ok = true;
    if (json_is_object(all)) {
        const char *name;
        json_t *v;
        json_object_foreach(all, name, v) ok = ok && read_layer(p, arena_printf(c->arena, "%s", name), v);
    } else if (json_is_number(json_array_get(all, 0))) {
        ok = read_layer(p, "0", all);
    } else {
        for (size_t i = 0; i < json_array_size(all) && ok; i++)
            ok = read_layer(p, arena_printf(c->arena, "%zu", i), json_array_get(all, i));
    }
    if (ok && !p->layers.n) cli_fail(c, "%s holds no loads: they are lists of numbers, one list a layer", c->args.at[0]);
    json_decref(all);
    return ok && p->layers.n;
}

static bool number(Cli *c, const char *option, int otherwise, int *out) {
    const char *text = cli_value(c, option);
    char *end = NULL;
    errno = 0;
    long x = text ? strtol(text, &end, 10) : otherwise;
    *out = (int)x;
    if (!text || (*text && !*end && !errno && x >= 1 && x <= 1 << 20)) return true;
    cli_usage(c, "--%s is a whole number from 1 to %d, not '%s'", option, 1 << 20, text);
    return false;
}

// ---- tables ------------------------------------------------------------------------------------------------------

static json_t *integers(const int32_t *x, int n) {
    json_t *v = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(v, json_integer(x[i]));
    return v;
}

// Slots of each expert, in order.
static json_t *slots_of_experts(const RtEplbSizes *z, const int32_t *slot) {
    json_t *v = json_array();
    for (int i = 0; i < z->experts; i++) json_array_append_new(v, json_array());
    for (int s = 0; s < z->slots; s++) json_array_append_new(json_array_get(v, (size_t)slot[s]), json_integer(s));
    return v;
}

static double load_of(const RtEplbSizes *z, const Layer *l, const int32_t *slot, const int32_t *count, int rank) {
    int each = z->slots / z->ranks;
    double sum = 0;
    for (int s = rank * each; s < (rank + 1) * each; s++) sum += (double)l->load[slot[s]] / count[slot[s]];
    return sum;
}

static json_t *layer_json(const RtEplbSizes *z, const Layer *l, const int32_t *slot, const int32_t *count) {
    json_t *loads = json_array();
    for (int r = 0; r < z->ranks; r++) json_array_append_new(loads, json_real(load_of(z, l, slot, count, r)));
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:f}", "layer", l->name, "policy",
                     rt_eplb_is_hierarchical(z) ? "hierarchical" : "global", "phy2log", integers(slot, z->slots), "log2phy",
                     slots_of_experts(z, slot), "logcnt", integers(count, z->experts), "load", loads, "max_over_mean",
                     rt_eplb_imbalance(z, l->load, slot, count));
}

// Experts in the order of their numbers, without replicas: NULL where they don't divide.
static const char *unplaced(const Place *p, const RtEplbSizes *z, const Layer *l) {
    if (z->experts % z->ranks) return "";
    RtEplbSizes y = *z;
    y.slots = y.experts;
    int32_t *slot = arena_array(p->c->arena, int32_t, y.experts), *one = arena_array(p->c->arena, int32_t, y.experts);
    for (int i = 0; i < y.experts; i++) slot[i] = i, one[i] = 1;
    return arena_printf(p->c->arena, " (%.3f by number)", rt_eplb_imbalance(&y, l->load, slot, one));
}

static void print_layer(const Place *p, const RtEplbSizes *z, const Layer *l, const int32_t *slot, const int32_t *count) {
    int each = z->slots / z->ranks, digits = snprintf(NULL, 0, "%d", z->experts - 1);
    printf("layer %s: max/mean load %.3f%s\n", l->name, rt_eplb_imbalance(z, l->load, slot, count), unplaced(p, z, l));
    if (p->c->quiet) return;
    for (int r = 0; r < z->ranks; r++) {
        printf("  rank %-3d ", r);
        for (int s = r * each; s < (r + 1) * each; s++) printf(" %*d%s", digits, slot[s], count[slot[s]] > 1 ? "*" : " ");
        printf("  load %.6g\n", load_of(z, l, slot, count, r));
    }
}

int cmd_place(Cli *c) {
    Place p = {.c = c, .json = cli_flag(c, "json")};
    int slots;
    if (!number(c, "ranks", 0, &p.sizes.ranks) || !number(c, "nodes", 1, &p.sizes.nodes) ||
        !number(c, "groups", 1, &p.sizes.groups) || !number(c, "slots", 0, &slots))
        return EXIT_USAGE;
    if (!p.sizes.ranks) return cli_usage(c, "moec place needs --ranks N: among how many ranks experts are shared out");
    if (!read_loads(&p)) return EXIT_WRONG;
    json_t *all = json_array();
    for (int i = 0; i < p.layers.n; i++) {
        const Layer *l = &p.layers.at[i];
        RtEplbSizes z = p.sizes;
        z.experts = l->experts;
        z.slots = slots ? slots : l->experts;
        int32_t *slot = arena_array(c->arena, int32_t, z.slots), *count = arena_array(c->arena, int32_t, z.experts);
        RtError e;
        if (rt_eplb(&z, l->load, slot, count, &e) != RT_OK) return json_decref(all), cli_fail(c, "layer %s: %s", l->name, e.text);
        if (p.json) json_array_append_new(all, layer_json(&z, l, slot, count));
        else print_layer(&p, &z, l, slot, count);
        if (!p.json && i == p.layers.n - 1 && !c->quiet)
            printf("%s; * has replicas\n", z.nodes > 1 && rt_eplb_is_hierarchical(&z) ? "hierarchical: groups stay on one node"
                                                                                     : "global: any expert on any rank");
    }
    if (p.json) json_dumpf(all, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)), puts("");
    json_decref(all);
    return cli_finish(c, EXIT_DONE);
}
