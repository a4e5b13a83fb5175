#include "planner/evaluate.h"

bool evaluation_fits(const Evaluation *e) { return (double)rt_memory_total(&e->memory) <= e->room; }

// Seconds of each layer's kernels, for a balanced pipeline.
static double *layer_weights(Arena *a, const Layers *l, const Costs *costs) {
    double *weight = arena_array(a, double, l->n + 2);
    const RtProgram *p = RT_TABLE(costs->plan, RtProgram, programs);
    for (uint32_t i = p->first_step; i < p->first_step + p->n_steps; i++)              // @pass is the first program
        if (!costs->of[0][i].moves) weight[l->step_layer[i] + 1] += costs->of[0][i].seconds;
    return weight;
}

// What a stage hands on of a micro-batch: the residual stream, as wide as what tokens are looked up in.  (Bodies of the plan
// reach from a layer into the next; a border between stages would cut them there.)
static double stream_bytes(const TrafficOf *t, const Layers *l, bool bf16) {
    const RtTensor *tensor = RT_TABLE(t->plan, RtTensor, tensors);
    for (uint32_t i = 0; i < t->plan->tensors.n; i++)
        if (tensor[i].role == RT_PARAM && tensor[i].ndim == 2 && l->tensor_layer[i] == -1)
            return t->tokens * (double)tensor[i].dim[1] * (bf16 ? 2 : 4);
    return 0;
}

static double send_seconds(const Cluster *c, const PlanLayout *l, double bytes) {
    RtLink link = c->nodes > 1 && rt_mesh_ranks(l->mesh) >= c->per_node ? RT_LINK_NET : RT_LINK_NODE;
    const ClusterLink *k = &c->link[link];
    return k->kind ? k->latency + bytes * (k->per_node ? c->per_node : 1) / k->rate : 0;
}

static bool evaluate_stages(Arena *a, const Cluster *c, const PlanLayout *l, const TrafficOf *t, const LayerMemory *m, Costs *costs, bool overlap,
                            Timeline *timeline, Evaluation *e) {
    e->stage_of = arena_array(a, int, e->layers.n + 2);
    if (!stages_split(&e->layers, layer_weights(a, &e->layers, costs), l->pp, e->stage_of)) return false;
    for (uint32_t i = 0; i < t->plan->steps.n; i++) costs->of[0][i].stage = e->stage_of[e->layers.step_layer[i] + 1];
    for (int s = 0; s < l->pp; s++) {
        RtMemory own = stage_memory(&e->layers, m, t->plan, e->stage_of, s, l, c->kind == DEVICE_CPU ? c->threads : 0);
        if (s && rt_memory_total(&own) <= rt_memory_total(&e->memory)) continue;
        e->memory = own;
        e->stage = s;
    }
    e->time = simulate_pipeline(a, c, l, costs, send_seconds(c, l, stream_bytes(t, &e->layers, costs->bf16)), overlap, timeline);
    return true;
}

static void find_fullest(Arena *a, const LayerMemory *m, const RtPlan *plan, Evaluation *e) {
    const double *bytes = layers_bytes(a, &e->layers, m, plan, stage_under_way(&e->layout, e->stage));
    for (int i = 0; i < e->layers.n + 2; i++) {
        if (bytes[i] <= e->fullest_bytes || (e->stage_of && e->stage_of[i] != e->stage)) continue;
        e->fullest = i - 1;
        e->fullest_bytes = bytes[i];
    }
}

enum { MOST_SIMULATED = 64 };

// Ranks whose rows differ are simulated side by side, if they are few; more are all like the one that t names.
static int ranks_to_simulate(const TrafficOf *t, const PlanLayout *l) {
    bool differ = t->log || t->skew > 0;
    return differ && l->pp == 1 && rt_mesh_ranks(l->mesh) <= MOST_SIMULATED ? rt_mesh_ranks(l->mesh) : 1;
}

bool evaluate(Arena *a, const Cluster *c, const PlanLayout *l, const TrafficOf *t, Graph *pass, double model_flops, bool overlap,
              Timeline *timeline, Evaluation *out) {
    *out = (Evaluation){.layout = *l, .room = c->memory - c->reserve, .layers = layers_of(a, t->plan)};
    Costs costs = costs_of(a, c, t, ranks_to_simulate(t, l));
    LayerMemory m = layers_memory(a, &out->layers, pass);
    out->far_rows = costs.far_rows;
    if (l->pp > 1) {
        if (!evaluate_stages(a, c, l, t, &m, &costs, overlap, timeline, out)) return false;
    } else {
        out->memory = rt_plan_memory(t->plan, c->kind == DEVICE_CPU ? c->threads : 0);
        out->time = simulate(a, c, l, &costs, timeline);
    }
    for (int i = 0; i < out->layers.n + 2; i++) out->kept += m.kept[i];
    find_fullest(a, &m, t->plan, out);
    out->tokens_per_s = layout_step_tokens(l) / out->time.seconds;
    double rate = c->flops_bf16 > c->flops_f32 && costs.bf16 ? c->flops_bf16 : c->flops_f32;
    out->mfu = model_flops / (out->time.seconds * rate * layout_ranks(l));
    return true;
}
