#include "planner/stages.h"

#include <ctype.h>
#include <string.h>

#include "ir/base/vec.h"

// ---- layers -------------------------------------------------------------------------------------------------------

const char *layer_name(Arena *a, const char *path) {
    if (!path) return NULL;
    const char *slash = strchr(path, '/');
    if (slash) path = slash + 1;
    for (const char *part = path; *part; part += *part == '.') {
        const char *end = part;
        while (isdigit((unsigned char)*end)) end++;
        if (end > part && (*end == '.' || !*end)) return arena_strndup(a, path, (size_t)(end - path));
        part += strcspn(part, ".");
    }
    return NULL;
}

int layer_find(const Layers *l, const char *path) {
    const char *slash = path ? strchr(path, '/') : NULL;
    if (slash) path = slash + 1;
    for (int i = 0; path && i < l->n; i++) {
        size_t n = strlen(l->name[i]);
        if (!strncmp(path, l->name[i], n) && (path[n] == '.' || !path[n])) return i;
    }
    return -2;
}

static const RtProgram *program_of(const RtPlan *plan, const char *name) {
    const RtProgram *p = RT_TABLE(plan, RtProgram, programs);
    for (uint32_t i = 0; i < plan->programs.n; i++)
        if (!strcmp(RT_TEXT(plan, p[i].name), name)) return &p[i];
    return NULL;
}

static int tensor_at(const RtPlan *plan, const RtArg *arg) {
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; arg->arena == RT_PERSISTENT && i < plan->tensors.n; i++)
        if (t[i].arena == RT_PERSISTENT && arg->offset >= t[i].offset && arg->offset < t[i].offset + t[i].bytes) return (int)i;
    return -1;
}

static void find_layers(Arena *a, const RtPlan *plan, const RtProgram *pass, Layers *l) {
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    VEC(const char *) names = {0};
    for (uint32_t i = pass->first_step; i < pass->first_step + pass->n_steps; i++) {
        const char *path = RT_TEXT(plan, step[i].path);
        l->name = names.at;
        l->n = names.n;
        if (step[i].backward || layer_find(l, path) >= 0) continue;
        const char *name = layer_name(a, path);
        if (name) vec_push(a, &names, name);
    }
    l->name = names.at;
    l->n = names.n;
}

// Steps without a layer are of the one before them, but for those before the first.
static void place_steps(const RtPlan *plan, const RtProgram *p, Layers *l) {
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    uint32_t end = p->first_step + p->n_steps, last_forward = 0, last_backward = 0;
    for (uint32_t i = p->first_step; i < end; i++)
        if (layer_find(l, RT_TEXT(plan, step[i].path)) >= 0) *(step[i].backward ? &last_backward : &last_forward) = i;
    int at[2] = {-1, l->n};
    for (uint32_t i = p->first_step; i < end; i++) {
        bool back = step[i].backward;
        int own = layer_find(l, RT_TEXT(plan, step[i].path));
        if (own >= 0) at[back] = own;
        else if (i > (back ? last_backward : last_forward)) at[back] = back ? -1 : l->n;
        l->step_layer[i] = at[back];
    }
}

Layers layers_of(Arena *a, const RtPlan *plan) {
    const RtProgram *pass = program_of(plan, "pass"), *update = program_of(plan, "update");
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    const RtArg *arg = RT_TABLE(plan, RtArg, args);
    Layers l = {.step_layer = arena_array(a, int, (int)plan->steps.n + 1), .tensor_layer = arena_array(a, int, (int)plan->tensors.n + 1)};
    find_layers(a, plan, pass, &l);
    place_steps(plan, pass, &l);
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; i < plan->tensors.n; i++) l.tensor_layer[i] = layer_find(&l, RT_TEXT(plan, t[i].name));
    for (uint32_t i = pass->first_step; i < pass->first_step + pass->n_steps; i++)       // of others: their first reader's
        for (uint32_t k = 0; k < step[i].n_args && !step[i].backward; k++) {
            int of = tensor_at(plan, &arg[step[i].first_arg + k]);
            if (of >= 0 && l.tensor_layer[of] == -2) l.tensor_layer[of] = l.step_layer[i];
        }
    for (uint32_t i = 0; i < plan->tensors.n; i++) {                                     // states: their parameter's
        const char *name = RT_TEXT(plan, t[i].name), *slash = strchr(name, '/');
        for (uint32_t k = 0; slash && l.tensor_layer[i] == -2 && k < plan->tensors.n; k++)
            if (t[k].role == RT_PARAM && !strcmp(RT_TEXT(plan, t[k].name), slash + 1)) l.tensor_layer[i] = l.tensor_layer[k];
        if (l.tensor_layer[i] == -2) l.tensor_layer[i] = -1;
    }
    int at = -1;
    for (uint32_t i = update ? update->first_step : 0; update && i < update->first_step + update->n_steps; i++) {
        for (uint32_t k = 0; k < step[i].n_args; k++) {
            int of = tensor_at(plan, &arg[step[i].first_arg + k]);
            if (of >= 0 && t[of].role != RT_INPUT && t[of].role != RT_OUTPUT) at = l.tensor_layer[of];
        }
        l.step_layer[i] = at;
    }
    return l;
}

// ---- stages -------------------------------------------------------------------------------------------------------

// Fills stages in turn, none above `most`, leaving a layer for each that comes.  The stages it took.
static int fill(const Layers *l, const double *weight, int pp, double most, int *stage) {
    int s = 0;
    double in = weight[0];                             // what stands before the first layer is of the first stage
    stage[0] = 0;
    for (int i = 1; i <= l->n; i++) {
        double w = weight[i] + (i == l->n ? weight[l->n + 1] : 0);
        bool must = l->n - i + 1 == pp - 1 - s, full = in + w > most;
        bool begun = i > 1 && (must || full);
        if (begun) {
            s++;
            in = 0;
        }
        in += w;
        stage[i] = s;
    }
    stage[l->n + 1] = s;
    return s + 1;
}

bool stages_split(const Layers *l, const double *weight, int pp, int *stage) {
    if (l->n < pp) return false;
    double low = 0, high = 0;
    for (int i = 0; i < l->n + 2; i++) high += weight[i];
    for (int turn = 0; turn < 60; turn++) {
        double most = (low + high) / 2;
        *(fill(l, weight, pp, most, stage) <= pp ? &high : &low) = most;
    }
    fill(l, weight, pp, high * (1 + 1e-9), stage);
    return true;
}

// ---- memory -------------------------------------------------------------------------------------------------------

static const Value *shown(const Value *v) {
    while (v->node->op == OP_RESHAPE || v->node->op == OP_STOP_GRADIENT || v->node->op == OP_WAIT) v = v->node->in[0];
    return v;
}

// Forward list order of a node without a layer decides as place_steps does.
static int *node_layers(Arena *a, const Layers *l, Graph *g) {
    int *of = arena_array(a, int, g->n_nodes + 1), last[2] = {0, 0}, at[2] = {-1, l->n};
    for_each_node(g, n)
        if (layer_find(l, n->path) >= 0) last[n->backward] = n->id;
    for_each_node(g, n) {
        bool back = n->backward;
        int own = layer_find(l, n->path);
        if (own >= 0) at[back] = own;
        else if (n->id > last[back]) at[back] = back ? -1 : l->n;
        of[n->id] = at[back];
    }
    return of;
}

LayerMemory layers_memory(Arena *a, const Layers *l, Graph *g) {
    int n_values = graph_number(g), n_nodes = g->n_nodes;
    LayerMemory m = {arena_array(a, double, l->n + 2), arena_array(a, double, l->n + 2), arena_array(a, double, l->n + 2)};
    int *layer = node_layers(a, l, g), *last = arena_array(a, int, n_values + 1);
    bool *kept = arena_array(a, bool, n_values + 1), *varies = arena_array(a, bool, n_values + 1);
    for_each_node(g, n) {
        bool from_data = n->op == OP_INPUT || n->op == OP_RANDOM;
        for (int i = 0; i < n->n_in; i++) {
            const Value *v = shown(n->in[i]);
            from_data |= varies[v->id];
            if (n->id > last[v->id]) last[v->id] = n->id;
            kept[v->id] |= n->backward && !v->node->backward;
        }
        for (int i = 0; i < n->n_out; i++) varies[n->out[i].id] = from_data;
    }
    double *change = arena_array(a, double, n_nodes + 2);
    for_each_node(g, n)
        for (int i = 0; i < n->n_out; i++) {
            const Value *v = &n->out[i];
            if (shown(v) != v || v->arena != RT_STEP) continue;
            double bytes = (double)((type_bytes(&v->type) + 63) / 64 * 64);
            int at = layer[n->id] + 1;
            if (kept[v->id]) {
                *(varies[v->id] ? &m.kept[at] : &m.fixed[at]) += bytes;
                continue;
            }
            change[n->id] += bytes;
            change[last[v->id] > n->id ? last[v->id] + 1 : n->id + 1] -= bytes;
        }
    double live = 0;
    for_each_node(g, n) {
        live += change[n->id];
        double *most = &m.passing[layer[n->id] + 1];
        if (live > *most) *most = live;
    }
    return m;
}

RtMemory stage_memory(const Layers *l, const LayerMemory *m, const RtPlan *plan, const int *stage, int s, const PlanLayout *layout, int threads) {
    RtMemory all = rt_plan_memory(plan, threads);
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; i < plan->tensors.n; i++)
        if (t[i].arena == RT_PERSISTENT && stage[l->tensor_layer[i] + 1] != s) all.bytes[rt_memory_of_tensor(plan, &t[i])] -= t[i].bytes;
    double kept = 0, fixed = 0, passing = 0;
    for (int i = 0; i < l->n + 2; i++) {
        if (stage[i] != s) continue;
        kept += m->kept[i];
        fixed += m->fixed[i];
        if (m->passing[i] > passing) passing = m->passing[i];
    }
    all.bytes[RT_MEMORY_STEP] = (int64_t)(kept * (double)stage_under_way(layout, s) + fixed + passing);
    return all;
}

double *layers_bytes(Arena *a, const Layers *l, const LayerMemory *m, const RtPlan *plan, int64_t under_way) {
    double *bytes = arena_array(a, double, l->n + 2);
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; i < plan->tensors.n; i++)
        if (t[i].arena == RT_PERSISTENT) bytes[l->tensor_layer[i] + 1] += (double)t[i].bytes;
    for (int i = 0; i < l->n + 2; i++) bytes[i] += m->kept[i] * (double)under_way + m->fixed[i] + m->passing[i];
    return bytes;
}
