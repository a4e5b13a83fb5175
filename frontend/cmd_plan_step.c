// Cluster, layout and the step of a layout: what `moec plan` works on.
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "codegen/emit_plan.h"
#include "frontend/cmd_machine.h"
#include "frontend/cmd_plan.h"
#include "frontend/cmd_mesh.h"
#include "frontend/cmd_ranks.h"
#include "runtime/ranks.h"

static const double USUAL_BOUND = 1.5; // of rows at experts, times those at home: what parallel.bound = none plans with

// ---- the cluster ------------------------------------------------------------------------------------------------

// A file, or the name of one that came with the program: machines/a100-8.json as a100-8.
static const char *find_cluster_file(Planning *p, const char *given) {
    Arena *a = p->c->arena;
    if (access(given, R_OK) == 0 || strchr(given, '/')) return given;
    const char *const places[] = {arena_printf(a, "%s/../machines/%s.json", p->s.models_dir, given),
#ifdef MOEC_SOURCE_MACHINES
                                  arena_printf(a, "%s/%s.json", MOEC_SOURCE_MACHINES, given),
#endif
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (access(places[i], R_OK) == 0) return places[i];
    return given;
}

// Ranks of this machine share its cores, its memory and the bandwidth of that memory.
static Cluster *cluster_here(Planning *p, int ranks, int threads) {
    const Machine *m = machine_here(p->c, true);
    if (!m) return NULL;
    Arena *a = p->c->arena;
    Cluster *c = arena_new(a, Cluster);
    if (!threads) threads = m->threads > ranks ? m->threads / ranks : 1;
    int used = ranks * threads < m->threads ? ranks * threads : m->threads, at_once = used / threads > 0 ? used / threads : 1;
    double all = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double copy = machine_bandwidth(m, m->level[LEVEL_DRAM].copy, used);
    MachineRates rates = machine_rates(m, used);
    double dot = rates.bf16_dot > rates.fma ? rates.bf16_dot : rates.fma;
    *c = (Cluster){.name = arena_printf(a, "%s, %d local rank%s", m->name, ranks, ranks == 1 ? "" : "s"),
                   .source = "measured by moec bench machine", .nodes = 1, .per_node = ranks, .kind = DEVICE_CPU, .threads = threads, .cores = at_once < ranks ? at_once : 0,
                   .memory = all / ranks, .flops_f32 = rates.fma / ranks, .flops_bf16 = dot / ranks,
                   .bandwidth = machine_bandwidth(m, m->level[LEVEL_DRAM].read, used) / ranks, .launch = threads > 1 ? m->barrier : 0,
                   .efficiency = {.gemm = 0.85, .attention = 0.6, .rows = 0.8}};
    for (int i = LEVEL_L1; i <= LEVEL_L3; i++)
        if (m->level[i].size && m->level[i].probed) {
            c->cache[c->n_caches].bytes = i < LEVEL_L3 ? (double)m->level[i].size * threads : (double)m->level[i].size / ranks;
            c->cache[c->n_caches++].rate = machine_bandwidth(m, m->level[i].read, used) / ranks;
        }
    for (int i = 0; i < m->n_ops; i++) {
        c->op[c->n_ops].op = m->op[i].op;
        c->op[c->n_ops++].share = m->op[i].share;
    }
    // a rank copies what others have; a copy's bytes count twice
    c->link[RT_LINK_NODE] = (ClusterLink){.kind = "shared memory", .rate = copy / 2 / ranks, .latency = 2e-6, .message = 1e-6,
                                          .cpu = 2 * ranks / copy};
    return c;
}

bool plan_write_cluster(Planning *p) {
    const char *path = cli_value(p->c, "write-machine");
    if (!path) return true;
    json_t *o = cluster_json(p->cluster);
    bool ok = json_dump_file(o, path, JSON_INDENT(1) | JSON_REAL_PRECISION(5)) == 0;
    json_decref(o);
    if (!ok) diag_error(p->c->diag, (Span){0}, "%s: %s", path, strerror(errno));
    return ok;
}

static Cluster *cluster_of_file(Planning *p, const char *file) {
    const char *path = find_cluster_file(p, file);
    size_t n;
    char *text = read_file(p->c->arena, path, &n);
    if (text) return cluster_read(p->c->arena, p->c->diag, path, text, n);
    diag_error(p->c->diag, (Span){0}, "%s: %s", path, strerror(errno));
    diag_help(p->c->diag, "a machine file describes devices and links: see machines/README.md");
    return NULL;
}

static bool read_assumptions(Planning *p) {
    static const char *const known[] = {"node-rows", "row-bytes", "overlap"};
    for (int i = 0; i < p->c->given.n; i++) {
        if (strcmp(p->c->given.at[i].name, "assume") != 0) continue;
        const char *text = p->c->given.at[i].value, *eq = strchr(text, '='), *name = eq ? arena_strndup(p->c->arena, text, (size_t)(eq - text)) : text;
        char *end = NULL;
        double x = eq ? strtod(eq + 1, &end) : 0;
        bool number = end && !*end && x > 0 && x <= 1e6;
        if (!strcmp(name, "overlap") && !eq) p->assume.overlap = true;
        else if (!strcmp(name, "node-rows") && number) p->assume.node_rows = x;
        else if (!strcmp(name, "row-bytes") && number) p->assume.row_bytes = x;
        else {
            const char *near = did_you_mean(name, known, 3);
            diag_error(p->c->diag, (Span){0}, "--assume is node-rows=N, row-bytes=N or overlap, not '%s'", text);
            if (near && strcmp(near, name) != 0) diag_help(p->c->diag, "did you mean %s?", near);
            return false;
        }
    }
    return true;
}

bool plan_cluster(Planning *p) {
    const char *file = cli_value(p->c, "machine"), *local = cli_value(p->c, "local");
    char *end = NULL;
    long n = local ? strtol(local, &end, 10) : 0;
    Diag *d = p->c->diag;
    p->is_here = local != NULL;
    bool ok = true;
    int threads = session_threads(&p->s, &ok);
    if (!ok) return false;
    if (!file == !local) diag_error(d, (Span){0}, "moec plan needs a machine: either --machine FILE or --local N");
    else if (local && (*end || n < 1 || n > 256)) diag_error(d, (Span){0}, "--local is a number of ranks from 1 to 256, not '%s'", local);
    else p->cluster = local ? cluster_here(p, (int)n, threads) : cluster_of_file(p, file);
    const char *skew = cli_value(p->c, "skew");
    p->skew = skew ? strtod(skew, &end) : 0;
    if (skew && (*end || !(p->skew >= 0) || p->skew > 8)) diag_error(d, (Span){0}, "--skew is a number from 0 to 8, not '%s'", skew);
    if (!read_assumptions(p) || !p->cluster || diag_n_errors(d)) return false;
    if (threads) p->cluster->threads = threads;
    return cli_value(p->c, "calibrate") || plan_write_cluster(p);      // or when the shares are known
}

// ---- the layout -------------------------------------------------------------------------------------------------

#define WRONG(...) (diag_error(p->c->diag, (Span){0}, __VA_ARGS__), false)

bool plan_layout_asked(Planning *p, PlanLayout *out) {
    const Settings *t = p->s.settings;
    int devices = cluster_devices(p->cluster);
    int64_t pp = t->parallel.pp, ep = t->parallel.ep, tp = t->parallel.tp, dp = t->parallel.dp, lanes = t->train.lanes;
    if (devices % pp) return WRONG("%d devices can't be shared out to the stages of parallel.pp = %lld", devices, (long long)pp);
    if (pp * dp * ep * tp > devices)
        return WRONG("pp %lld x dp %lld x ep %lld x tp %lld makes %lld ranks, but %s has %d devices", (long long)pp, (long long)dp,
                     (long long)ep, (long long)tp, (long long)(pp * dp * ep * tp), p->cluster->name, devices);
    RtMesh mesh;
    if (!mesh_shape(p->c->diag, t, dp ? dp * ep * tp : devices / pp, &mesh)) return false;
    if (t->parallel.replicas && pp > 1) return WRONG("parallel.replicas is %lld: this version plans pipelines with experts in one place each",
                                                     (long long)t->parallel.replicas);
    int ranks = rt_lane_ranks(mesh);
    if (ranks > lanes && t->train.batch % (ranks * t->train.micro_batch) == 0) {
        diag_warning(p->c->diag, (Span){0}, "train.lanes is %lld: planned with %d, one for each rank that holds other sequences", (long long)lanes,
                     ranks);
        lanes = ranks;
    }
    if (ranks > 1 && !mesh_deals_lanes(p->c->diag, t, mesh, lanes)) return false;      // one may have any number of lanes
    *out = (PlanLayout){.pp = (int)pp, .mesh = mesh, .lanes = lanes,
                        .waves = t->train.batch / (lanes * t->train.micro_batch), .micro_batch = t->train.micro_batch, .sequence = t->train.sequence,
                        .recompute = t->train.recompute,
                        .row_bound = p->cluster->kind != DEVICE_GPU ? 0 : t->parallel.bound ? t->parallel.bound : USUAL_BOUND};
    return true;
}

// ---- the step ---------------------------------------------------------------------------------------------------

static MachineLink rate_of_link(const Cluster *c, RtLink l) {
    const ClusterLink *k = &c->link[l];
    if (!k->kind) return (MachineLink){0};
    return (MachineLink){.rate = k->rate / (k->per_node ? c->per_node : 1), .latency = k->latency, .message = k->message, .cpu = k->cpu};
}

// What the schedule of rows follows, and a run measures: how fast products are, and the way between nodes.
static bool set_rates(Planning *p, RtMesh m) {
    const Cluster *c = p->cluster;
    TrainOpts *t = &p->s.train;
    int experts = rt_expert_ranks(m), apart = m.etp == 1 ? 1 : m.tp;                  // neighbours share matrices, then experts
    int near = c->per_node > apart ? c->per_node / apart : 1;
    t->per_node = near < experts ? near : 0;
    t->threads = c->threads;
    t->flops = p->is_here ? 0 : (strcmp(t->dtype, "f32") ? c->flops_bf16 : c->flops_f32) * c->efficiency.gemm;
    t->near = p->is_here || c->kind == DEVICE_CPU ? (MachineLink){0} : rate_of_link(c, RT_LINK_NODE);
    t->link = experts > near ? rate_of_link(c, RT_LINK_NET) : (MachineLink){0};
    t->link.rate *= near;
    if (experts <= near || experts % near == 0 || strcmp(t->a2a, "node") != 0) return true;
    return WRONG("parallel.a2a is node: the %d ranks that share experts (parallel.ep) must be neighbours, as many on each node", experts);
}

static bool place_experts(Planning *p, PlannedStep *step) {
    const Settings *t = p->s.settings;
    int kind = 0;
    RtError e;
    while (kind < PLACEMENT_KINDS - 1 && strcmp(rt_placement_word[kind], t->parallel.placement) != 0) kind++;
    if (rt_slots_open(step->plan, &step->table, &e) == RT_OK &&
        rt_slots_begin(step->table, step->plan, (RtPlacementKind)kind, (uint64_t)t->train.seed, &e) == RT_OK) return true;
    diag_error(p->c->diag, (Span){0}, "%s", e.text);
    return false;
}

// As train would, but for code: the programs of a rank and their plan.
static bool compile(Planning *p, const PlanLayout *l, PlannedStep *out) {
    Session *s = &p->s;
    s->train.mesh = l->mesh;
    s->train.recompute = l->recompute;
    s->train.row_bound = l->row_bound;
    s->train.waves = l->waves;
    if (!set_rates(p, l->mesh)) return false;
    if (!session_programs(s, WANT_TRAIN | WANT_EVAL, &out->programs)) return false;
    const Target *t = session_target(s);
    if (!t) return false;
    CompileOpts o = session_compile_opts(s);
    o.waves = l->waves;
    char *json = session_json(s);
    o.info_json = json;
    out->plan = t->plan(s->arena, (Graph *[]){out->programs.pass, out->programs.update, out->programs.eval}, 3, &o, s->diag);
    free(json);
    return out->plan && place_experts(p, out);
}

// A mesh with tp whose plan exchanges nothing over it is not cut.
static bool is_cut(const PlanLayout *l, const RtPlan *plan) {
    bool cut = l->mesh.tp == 1;
    for (uint32_t i = 0; i < plan->steps.n && !cut; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        cut = x && x->group == RT_GROUP_TP;
    }
    return cut;
}

bool plan_compile(Planning *p, const PlanLayout *l, PlannedStep *out) {
    Session *s = &p->s;
    const Settings *t = s->settings;
    *out = (PlannedStep){.arena = arena_create()};
    if (t->train.lanes != l->lanes || t->train.micro_batch != l->micro_batch) {
        bool ok = program_set(s->program, arena_printf(s->arena, "train.lanes=%lld", (long long)l->lanes)) &&
                  program_set(s->program, arena_printf(s->arena, "train.micro_batch=%lld", (long long)l->micro_batch));
        s->settings = ok ? program_settings(s->program) : NULL;
        if (!s->settings) return false;
    }
    Arena *kept = s->arena;
    s->arena = out->arena;
    bool ok = compile(p, l, out);
    s->arena = kept;
    if (ok && !is_cut(l, out->plan)) return WRONG("parallel.tp is %d: there is nothing in this model that this version cuts over it", l->mesh.tp);
    return ok;
}

void plan_close(PlannedStep *step) {
    if (step->plan) rt_slots_close(step->table, step->plan);
    if (step->arena) arena_destroy(step->arena);
    step->arena = NULL;
}

TrafficOf plan_traffic(const Planning *p, const PlanLayout *l, const PlannedStep *step, int rank) {
    return (TrafficOf){.plan = step->plan, .table = step->table, .rank = rank, .per_node = p->cluster->per_node, .skew = p->skew,
                          .node_rows = p->assume.node_rows, .row_bytes = p->assume.row_bytes,
                       .tokens = (double)layout_routed_leaves(l) * (double)l->micro_batch * (double)l->sequence};
}

// ---- judging ----------------------------------------------------------------------------------------------------

bool plan_judge(Planning *p, const PlanLayout *l, const PlannedStep *step, const RouteLog *log, double model_flops, const char *trace,
                Evaluation *out) {
    Timeline timeline = {.arena = step->arena};
    TrafficOf t = plan_traffic(p, l, step, 0);
    t.log = log;
    if (!evaluate(p->c->arena, p->cluster, l, &t, step->programs.pass, model_flops, p->assume.overlap, trace ? &timeline : NULL, out))
        return WRONG("parallel.pp is %d: the model has %d layers, which are dealt to stages whole", l->pp, out->layers.n);
    if (!trace || timeline_write(&timeline, trace)) return true;
    return WRONG("%s: %s", trace, strerror(errno));
}

bool plan_evaluate(Planning *p, const PlanLayout *l, double model_flops, Evaluation *out) {
    PlannedStep step;
    bool ok = plan_compile(p, l, &step) && plan_judge(p, l, &step, NULL, model_flops, NULL, out);
    plan_close(&step);
    return ok;
}

bool plan_model_flops(Planning *p, double *out) {
    Session *s = &p->s;
    Arena *kept = s->arena, *scratch = arena_create();
    Programs programs;
    s->train.mesh = (RtMesh){0};
    s->arena = scratch;
    bool ok = session_programs(s, WANT_EVAL, &programs);
    s->arena = kept;
    double flops = 0;
    if (ok) {
        for_each_node(programs.eval, n) if (node_work(n) != RT_ELEMENTWISE) flops += node_flops(n);
        *out = 3 * flops * (double)s->settings->train.waves;
    }
    arena_destroy(scratch);
    return ok;
}
