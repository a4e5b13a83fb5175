// Which layout is best: all are listed, a bound by formula throws out what can't fit and orders the rest, and the first of these
// are compiled and simulated.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "frontend/cmd_plan.h"

// ---- what formulas need to know of a model ------------------------------------------------------------------------

typedef struct {
    double dense, experts;         // elements
    double state;                  // bytes of the optimizer for each
    double rows_bytes;             // of all MoE layers: bytes of a token's rows, one way
    int64_t most_ep;               // divides every layer's experts
    int    layers;
} ModelSize;

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

static ModelSize model_size(Planning *p) {
    int n;
    const ParamInfo *param = program_params(p->s.program, &n);
    const Settings *t = p->s.settings;
    const char *optimizer = t->train.optimizer.kind, *layer = NULL;
    ModelSize m = {.state = !strcmp(optimizer, "sgd") ? (t->train.optimizer.momentum > 0 ? 4 : 0) : 8, .most_ep = 0, .layers = 0};
    double element = strcmp(t->train.dtype, "f32") ? 2 : 4;
    const char *routed = NULL;
    for (int i = 0; param && i < n; i++) {
        if (param[i].state) continue;
        const char *of = layer_name(p->s.arena, param[i].path);
        if (of && (!layer || strcmp(layer, of) != 0)) {
            layer = of;
            m.layers++;
        }
        if (!param[i].experts) {
            m.dense += (double)param[i].elements;
            continue;
        }
        m.experts += (double)param[i].elements;
        m.most_ep = gcd(m.most_ep, param[i].experts);
        bool first = !routed || !of || strcmp(routed, of) != 0;           // of the layer's matrices
        if (first && param[i].ndim > 1) m.rows_bytes += (double)param[i].k * (double)param[i].dim[param[i].ndim - 1] * element;
        routed = of;
    }
    if (!m.most_ep) m.most_ep = 1;
    return m;
}

// Bytes of weights, their copies in bf16, gradients and optimizer: no layout takes less.
static double least_bytes(const Planning *p, const ModelSize *m, const PlanLayout *l) {
    double data = layout_data_ranks(l), tp = l->mesh.tp, pp = l->pp, copies = strcmp(p->s.settings->train.dtype, "f32") ? 2 : 0;
    double dense = m->dense / (tp * pp), experts = m->experts / (l->mesh.ep * tp * pp);
    double gradients = l->mesh.zero >= 2 ? dense * 4 / data : dense * 4, state = l->mesh.zero >= 1 ? dense * m->state / data : dense * m->state;
    double of_experts = experts * (8 + copies) + experts * m->state / (l->mesh.zero ? l->mesh.dp : 1);
    return dense * (4 + copies) + gradients + state + of_experts;
}

static const ClusterLink *link_of(const Cluster *c, int ranks) {
    return &c->link[ranks > c->per_node && c->link[RT_LINK_NET].kind ? RT_LINK_NET : RT_LINK_NODE];
}

// Seconds of a step: arithmetic, rows and sums of every pass, and the pipeline's bubble.  For the order of tries only.
static double guess_seconds(const Planning *p, const ModelSize *m, const PlanLayout *l, double model_flops) {
    const Cluster *c = p->cluster;
    bool bf16 = strcmp(p->s.settings->train.dtype, "f32") != 0;
    double compute = model_flops / (layout_ranks(l) * (bf16 ? c->flops_bf16 : c->flops_f32) * c->efficiency.gemm);
    double tokens = (double)layout_leaves(l) * (double)l->micro_batch * (double)l->sequence, waves = (double)l->waves, ep = l->mesh.ep;
    const ClusterLink *rows = link_of(c, l->mesh.ep * l->mesh.tp), *sums = link_of(c, rt_mesh_ranks(l->mesh));
    double moved = ep > 1 ? 4 * tokens * m->rows_bytes / l->pp * (1 - 1 / ep) / rows->rate : 0;
    double gradients = layout_data_ranks(l) > 1 ? 8 * m->dense / (l->pp * l->mesh.tp) : 0;
    if (l->mesh.dp > 1) gradients += 8 * m->experts / (ep * l->pp * l->mesh.tp);
    double summed = gradients > 0 ? gradients / sums->rate : 0;
    double bubble = 1 + (l->pp - 1) / waves;
    double split = l->mesh.tp > 1 ? 1.1 : 1;           // messages between the parts of each matrix
    return (compute * split + waves * moved) * bubble + summed * (l->pp > 1 ? 1 : waves);
}

enum { RECOMPUTES = 3 };
static const char *const recompute_names[RECOMPUTES] = {"none", "cheap", "layer"};

// ---- candidates ---------------------------------------------------------------------------------------------------

typedef struct {
    PlanLayout l;
    int    changes;                // of settings, from the layout asked for
    double guess;
} Candidate;

typedef VEC(Candidate) Candidates;

static int changed(const PlanLayout *a, const PlanLayout *b) {
    return (a->pp != b->pp) + (a->mesh.tp != b->mesh.tp) + (a->mesh.ep != b->mesh.ep) + (a->mesh.zero != b->mesh.zero) +
           (layout_leaves(a) != layout_leaves(b)) + (strcmp(a->recompute, b->recompute) != 0);
}

typedef struct {
    Planning *p;
    const PlanLayout *asked;
    ModelSize size;
    double model_flops;
    Candidates all;
    int listed;
    double kept[RECOMPUTES];       // bytes of a leaf of a pass that backward reads, as tried layouts have it; 0: not yet known
} Search;

static int recompute_number(const char *name) {
    int k = 0;
    while (strcmp(recompute_names[k], name) != 0) k++;
    return k;
}

// What tried layouts have shown of values that backward reads: computing less again keeps no less.
static bool can_fit(const Search *s, const PlanLayout *l) {
    double kept = 0;
    for (int k = recompute_number(l->recompute); k < RECOMPUTES; k++)
        if (s->kept[k] > kept) kept = s->kept[k];
    kept *= (double)layout_leaves(l) / (l->pp * l->mesh.tp);
    double least = least_bytes(s->p, &s->size, l) + kept * (double)stage_under_way(l, 0);
    return least <= s->p->cluster->memory - s->p->cluster->reserve;
}

static void learn(Search *s, const Evaluation *e) {
    double *kept = &s->kept[recompute_number(e->layout.recompute)], seen = e->kept / (double)layout_leaves(&e->layout) * e->layout.mesh.tp;
    if (*kept == 0 || seen < *kept) *kept = seen;
}

static void list_one(Search *s, PlanLayout l) {
    int64_t batch = s->p->s.settings->train.batch, sequences = l.lanes * l.micro_batch;
    if (batch % sequences) return;
    l.waves = batch / sequences;
    for (int k = 0; k < RECOMPUTES; k++) {
        l.recompute = recompute_names[k];
        s->listed++;
        if (!can_fit(s, &l)) continue;
        // what is computed again costs about a fifth, or a third
        double guess = guess_seconds(s->p, &s->size, &l, s->model_flops * (1 + 0.02 * (k == 1) + 0.3 * (k == 2)));
        vec_push(s->p->s.arena, &s->all, ((Candidate){l, changed(&l, s->asked), guess}));
    }
}

enum { MOST_LEAVES = 16 };

static void list_all(Search *s) {
    int devices = cluster_devices(s->p->cluster), per_node = s->p->cluster->per_node;
    for (int pp = 1; pp <= s->size.layers && pp <= devices; pp *= 2)
        for (int tp = 1; tp <= per_node && tp * pp <= devices; tp *= 2)
            for (int ep = 1; ep * tp * pp <= devices && s->size.most_ep % ep == 0; ep *= 2) {
                int dp = devices / (ep * tp * pp);
                if (dp * ep * tp * pp != devices || (dp & (dp - 1))) continue;
                for (int zero = 0; zero <= (dp * ep > 1 ? 2 : 0); zero++)
                    for (int leaves = 1; leaves <= MOST_LEAVES; leaves *= 2) {
                        PlanLayout l = *s->asked;
                        l.pp = pp;
                        l.mesh = (RtMesh){.dp = dp, .ep = ep, .tp = tp, .zero = zero, .etp = tp > 1 ? s->asked->mesh.etp > 1 ? tp : s->asked->mesh.etp : 0};
                        if (pp == 1 && rt_expert_ranks(l.mesh) > 1) l.mesh.replicas = s->asked->mesh.replicas;
                        l.lanes = (int64_t)dp * ep * leaves;
                        list_one(s, l);
                    }
            }
}

static int by_changes(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->changes != y->changes) return x->changes < y->changes ? -1 : 1;
    return x->guess < y->guess ? -1 : x->guess > y->guess;
}

static int by_guess(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return x->guess < y->guess ? -1 : x->guess > y->guess;
}

// ---- trying -------------------------------------------------------------------------------------------------------

static bool same_but_recompute(const PlanLayout *a, const PlanLayout *b) {
    return a->pp == b->pp && !memcmp(&a->mesh, &b->mesh, sizeof a->mesh) && a->lanes == b->lanes;
}

static int by_seconds(const void *a, const void *b) {
    const Evaluation *x = a, *y = b;
    return x->time.seconds < y->time.seconds ? -1 : x->time.seconds > y->time.seconds;
}

static void say_try(const Search *s, int i, int n) {
    if (!s->p->c->quiet && isatty(2)) fprintf(stderr, "\rtrying layout %d of %d", i + 1, n);
}

SearchResult plan_search(Planning *p, const Evaluation *asked, double model_flops, int tries, bool nearest) {
    Search s = {.p = p, .asked = &asked->layout, .size = model_size(p), .model_flops = model_flops};
    SearchResult r = {.all = arena_array(p->s.arena, Evaluation, tries + 1)};
    learn(&s, asked);
    list_all(&s);
    if (s.all.n) qsort(s.all.at, (size_t)s.all.n, sizeof *s.all.at, nearest ? by_changes : by_guess);
    r.listed = s.listed;
    r.possible = s.all.n;
    int changes = -1;                                  // of the nearest that fits
    for (int i = 0; i < s.all.n && r.tried < tries; i++) {
        const Candidate *c = &s.all.at[i];
        if (nearest && changes >= 0 && c->changes > changes) break;
        bool settled = false;                          // less computed again fits already
        for (int k = 0; k < r.n; k++) settled |= same_but_recompute(&r.all[k].layout, &c->l);
        if (settled || !can_fit(&s, &c->l)) continue;
        say_try(&s, r.tried, s.all.n < tries ? s.all.n : tries);
        Evaluation e;
        r.tried++;
        if (!plan_evaluate(p, &c->l, model_flops, &e)) {
            diag_clear(p->c->diag);                    // a layout that this model or version can't have
            continue;
        }
        learn(&s, &e);
        if (!evaluation_fits(&e)) continue;
        changes = c->changes;
        r.all[r.n++] = e;
    }
    if (!p->c->quiet && isatty(2)) fputs("\r                              \r", stderr);
    if (r.n) qsort(r.all, (size_t)r.n, sizeof *r.all, by_seconds);
    return r;
}
