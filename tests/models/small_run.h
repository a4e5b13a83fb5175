// What the tests over all models and all routers share: loading, passes, numbers for sources, the objective
// of a graph in double, and what a perturbation may not change.
#ifndef TESTS_MODELS_SMALL_RUN_H
#define TESTS_MODELS_SMALL_RUN_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "frontend/program.h"
#include "ir/eval.h"
#include "passes/util.h"

// ---- files and programs -----------------------------------------------------------------------------------

typedef struct {
    Arena *a, *scratch;
    Diag *d;
    Program *p;
    char messages[20000]; // all that was said so far
} Loaded;

static inline const char *told(Loaded *l) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diag_print(l->d, f, false);
    fclose(f);
    size_t have = strlen(l->messages), room = sizeof l->messages - 1 - have;
    strncat(l->messages + have, text, room);
    free(text);
    return l->messages;
}

static inline Loaded *load(const char *path) {
    Arena *a = arena_create();
    Loaded *l = arena_new(a, Loaded);
    l->a = a;
    l->scratch = arena_create();
    l->d = diag_new(a);
    l->p = program_load(a, l->d, path, "models");
    if (!l->p || diag_n_errors(l->d)) fail_msg("%s: %s", path, told(l));
    return l;
}

static inline void unload(Loaded *l) {
    arena_destroy(l->scratch);
    arena_destroy(l->a);
}

// "D=8 L=2": each word as --set.
static inline void set_all(Loaded *l, const char *sets) {
    char *text = arena_strdup(l->a, sets);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
        if (!program_set(l->p, word)) fail_msg("--set %s: %s", word, told(l));
}

static inline int is_program(const struct dirent *e) {
    size_t n = strlen(e->d_name);
    return n > 4 && !strcmp(e->d_name + n - 4, ".moe");
}

static inline int by_name(const struct dirent **x, const struct dirent **y) {
    return strcmp((*x)->d_name, (*y)->d_name);
}

// Calls check(name without .moe) for every program of a folder; returns how many there are.
static inline int for_each_program(const char *folder, void (*check)(const char *name)) {
    struct dirent **at = NULL;
    int n = scandir(folder, &at, is_program, by_name);
    for (int i = 0; i < n; i++) {
        at[i]->d_name[strlen(at[i]->d_name) - 4] = 0;
        check(at[i]->d_name);
        free(at[i]);
    }
    free(at);
    return n;
}

// ---- passes -----------------------------------------------------------------------------------------------

static const TrainOpts usual = {.dtype = "f32",
                                .recompute = "cheap",
                                .optimizer = "adamw",
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .decay = 0.1,
                                .clip = 1,
                                .lr_expert = 1,
                                .waves = 1};

static inline void check_text(Loaded *l, const Graph *g) {
    Arena *a = arena_create();
    Str text = {.arena = a}, again = {.arena = a};
    graph_print(g, &text, (PrintOpts){0});
    Diag *d = diag_new(a);
    int n = 0;
    Graph **read = graphs_parse(a, d, diag_add_file(d, "printed", text.text, text.n), &n);
    if (!read) diag_print(d, stderr, false);
    assert_non_null(read);
    assert_int_equal(n, 1);
    graph_print(read[0], &again, (PrintOpts){0});
    if (strcmp(text.text, again.text)) fail_msg("@%s prints otherwise after it was parsed", g->name);
    if (!graph_check(g, l->d)) fail_msg("@%s: %s", g->name, told(l));
    arena_destroy(a);
}

static inline Graph *elaborate(Loaded *l, const char *what, ElabOpts o) {
    Graph *g = program_elaborate(l->p, l->a, &o);
    if (!g) fail_msg("%s: %s", what, told(l));
    check_text(l, g);
    return g;
}

// A copy of g after the pipeline, checked after each pass.
static inline Graph *passed(Loaded *l, const char *what, const Graph *g, const char *const *pipeline,
                            const TrainOpts *train, const char *disabled, Graph **update) {
    Graph *out = graph_copy(l->a, g);
    Machine machine = machine_guess(64, 2);
    PassCtx cx = {.scratch = l->scratch, .diag = l->d, .machine = &machine, .train = train, .update = update};
    const char *const disable[] = {disabled, NULL};
    bool ok = passes_run(&out, pipeline, &cx, &(RunOpts){.verify_each = true, .disable = disable});
    if (!ok) fail_msg("%s: %s", what, told(l));
    const char *why = plan_overlap(l->scratch, out);
    if (why) fail_msg("%s: @%s: %s", what, g->name, why);
    check_text(l, out);
    return out;
}

// ---- sources ----------------------------------------------------------------------------------------------

// Numbers for parameters, states and inputs: functions of the name and the element's place in the whole
// batch.
typedef struct {
    int64_t vocab;      // ids are below it
    int64_t first_leaf; // of a graph that computes some leaves of the batch
    const char *nudged; // one element of this parameter is moved by `by`
    int64_t element;
    double by;
    bool ties;       // all router weights are 0: all scores of a token are equal
    bool equal_rows; // all tokens are the same
} Feed;

static inline double draw(const char *name, int64_t i) {
    uint64_t x = str_hash(name, strlen(name), 1) + (uint64_t)i * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
    x ^= x >> 33;
    return (double)(x >> 44) / (1 << 20); // 20 bits: exact in f32
}

static inline bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

static inline double source_number(const Feed *f, const Node *n, int64_t i, int64_t cols) {
    const char *name = n->attr.name;
    double u = draw(name, i);
    if (n->op == OP_PARAM && f->ties && (ends_with(name, ".gate") || ends_with(name, ".noise"))) return 0;
    if (n->op == OP_PARAM) return n->attr.init_a == 1 && n->attr.dims.n == 1 ? 0.5 + u : u - 0.5;
    if (n->op == OP_STATE)
        return n->out[0].type.dtype == I32 ? floor(u * (n->attr.init_a >= 1 ? n->attr.init_a : 1)) : u / 16;
    if (!strcmp(name, "positions")) return (double)(i % cols);
    if (!strcmp(name, "rng")) return (double)(i + 1);
    if (!strcmp(name, "images")) return u - 0.5;
    if (n->out[0].type.dtype == I32)
        return f->equal_rows && strcmp(name, "labels") ? 1 : floor(u * (double)f->vocab);
    return n->out[0].type.dtype == BOOL ? u < 0.7 : 1;
}

static inline bool feed(void *self, const Node *n, Tensor *t) {
    const Feed *f = self;
    int64_t elements = 1, first = 0, cols = t->ndim ? t->dim[t->ndim - 1] : 1;
    for (int i = 0; i < t->ndim; i++) elements *= t->dim[i];
    if (type_is_leafy(&n->out[0].type)) first = f->first_leaf * (elements / n->graph->leaf->bound);
    bool moved = n->op == OP_PARAM && f->nudged && !strcmp(f->nudged, n->attr.name);
    for (int64_t i = 0; i < elements; i++) {
        double x = source_number(f, n, first + i, cols) + (moved && i == f->element ? f->by : 0);
        switch (t->dtype) {
        case F32:
            ((float *)t->data)[i] = (float)x;
            break;
        case F64:
            ((double *)t->data)[i] = x;
            break;
        case I32:
            ((int32_t *)t->data)[i] = (int32_t)x;
            break;
        case BOOL:
            ((uint8_t *)t->data)[i] = x != 0;
            break;
        default:
            return false;
        }
    }
    return true;
}

static inline int64_t size_of(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

static inline double number_of(const Tensor *t, int64_t i) {
    switch (t->dtype) {
    case F64:
        return ((const double *)t->data)[i];
    case F32:
        return ((const float *)t->data)[i];
    case I32:
        return ((const int32_t *)t->data)[i];
    default:
        return ((const uint8_t *)t->data)[i];
    }
}

static inline Eval *evaluate(Arena *a, const Graph *g, Feed *f, bool f64) {
    Diag *d = diag_new(a);
    EvalOpts opts = {.f64 = f64, .source = feed, .self = f, .sym_value = random_sym_value};
    Eval *e = eval_graph(a, g, &opts, d);
    if (!e) diag_print(d, stderr, false);
    assert_non_null(e);
    return e;
}

// ---- gradients against central differences ----------------------------------------------------------------

// What autodiff differentiates: the sum over losses of weight times the sum over leaves.
static inline double objective(const Graph *g, const Eval *e) {
    double sum = 0;
    for_each_node(g, n) {
        if (n->op != OP_LOSS || (n->attr.until > 0 && n->attr.until <= 3)) continue; // rng: step 3
        const Tensor *t = eval_value(e, n->in[0]);
        double leaves = type_is_leafy(&n->in[0]->type) || !g->leaf ? 1 : (double)g->leaf->bound;
        for (int64_t i = 0; i < size_of(t); i++) sum += n->attr.weight * leaves * number_of(t, i);
    }
    return sum;
}

// Of all that is chosen: indices of topk, places in queues, choices after the drop; of comparisons of floats
// too.
static inline uint64_t decisions(const Graph *g, const Eval *e) {
    uint64_t hash = 1;
    for_each_node(g, n) {
        const Value *v = n->op == OP_TOPK                   ? &n->out[1]
                         : n->op == OP_QUEUE                ? &n->out[0]
                         : n->op == OP_ROUTE                ? n->in[0]
                         : n->op == OP_LT || n->op == OP_LE ? &n->out[0]
                                                            : NULL;
        if (!v) continue;
        const Tensor *t = eval_value(e, v);
        hash = str_hash(t->data, (size_t)(size_of(t) * dtype_bytes(t->dtype)), hash);
    }
    return hash;
}

// Does the parameter reach a loss through a stop_gradient?  Then its gradient is not that of the value, by
// design.
static inline bool is_stopped(Graph *g, const char *name) {
    Arena *a = arena_create();
    int n_values = graph_number(g);
    uint8_t *reached = arena_array(a, uint8_t, n_values + 1); // 1: depends on it; 2: through a stop
    bool stopped = false;
    for_each_node(g, n) {
        uint8_t bits = n->op == OP_PARAM && !strcmp(n->attr.name, name) ? 1 : 0;
        for (int i = 0; i < n->n_in; i++) bits |= reached[n->in[i]->id];
        if (n->op == OP_STOP_GRADIENT && bits) bits |= 2;
        if (n->op == OP_LOSS && bits & 2) stopped = true;
        for (int i = 0; i < n->n_out; i++)
            reached[n->out[i].id] = dtype_is_float(n->out[i].type.dtype) ? bits : 0;
    }
    arena_destroy(a);
    return stopped;
}

static inline const Node *gradient_of(const Graph *g, const char *param) {
    for_each_node(g, n) if (n->op == OP_RETURN && !strncmp(n->attr.name, "grad.", 5) &&
                            !strcmp(n->attr.name + 5, param)) return n;
    return NULL;
}

typedef struct {
    int params, checked, flipped, stopped, bodies, gates;
} Compared;

// forward: the elaborated graph.  back: the same after all passes, returning gradients.  Compares `per_param`
// elements of every parameter's gradient, the largest and random ones.
static inline Compared compare_gradients(const char *what, Graph *forward, Graph *back, Feed f,
                                         int per_param) {
    Arena *a = arena_create(), *scratch = arena_create();
    Compared c = {0};
    Eval *e = evaluate(a, back, &f, true);
    for_each_node(back, n) {
        if (!n->attr.body) continue;
        if (n->op == OP_GATE)
            c.gates++;
        else
            c.bodies++;
        for_each_node(n->attr.body, m) // all of it was run
            for (int i = 0; i < m->n_out; i++) assert_non_null(eval_value(e, &m->out[i]));
    }
    Feed moved = f;
    uint64_t chosen = decisions(forward, evaluate(scratch, forward, &moved, true));
    for_each_node(forward, p) {
        if (p->op != OP_PARAM) continue;
        const Node *r = gradient_of(back, p->attr.name);
        if (!r) continue;
        c.params++;
        if (is_stopped(forward, p->attr.name)) {
            c.stopped++;
            continue;
        }
        const Tensor *t = eval_value(e, r->in[0]);
        int64_t steepest = 0;
        for (int64_t i = 0; i < size_of(t); i++)
            if (fabs(number_of(t, i)) > fabs(number_of(t, steepest))) steepest = i;
        double largest = fabs(number_of(t, steepest));
        for (int k = 0; k < per_param; k++) {
            moved.nudged = p->attr.name;
            moved.element = k ? (int64_t)(draw(what, c.checked * 16 + k) * (double)size_of(t)) : steepest;
            const double step = 1e-5;
            double y[2];
            bool flips = false;
            for (int side = 0; side < 2; side++) {
                arena_reset(scratch);
                moved.by = side ? step : -step;
                Eval *at = evaluate(scratch, forward, &moved, true);
                y[side] = objective(forward, at);
                flips |= decisions(forward, at) != chosen;
            }
            if (flips) {
                c.flipped++;
                continue;
            }
            double want = (y[1] - y[0]) / (2 * step), is = number_of(t, moved.element);
            if (!(fabs(is - want) <= 1e-6 * largest + 3e-9 * fabs(y[0])))
                fail_msg("%s: the gradient of %s[%lld] is %.9g, differences give %.9g", what, p->attr.name,
                         (long long)moved.element, is, want);
            c.checked++;
        }
    }
    arena_destroy(scratch);
    arena_destroy(a);
    return c;
}

#endif
