// A small model around a router, for tests of what routers do.
#ifndef TESTS_MODELS_ROUTER_MODEL_H
#define TESTS_MODELS_ROUTER_MODEL_H
#include "tests/models/small_run.h"

enum { D = 8 };

typedef struct {
    const char *router;
    const Fn *fn;
    const char *args; // beyond what the sizes ask for: ", norm: false"
    int E, B, S;
    bool masked;
} RouterCase;

static inline const char *case_text(Arena *a, const RouterCase *c) {
    return arena_printf(a, "%s(%s) of %d experts, %d x %d tokens%s", c->router, *c->args ? c->args + 2 : "",
                        c->E, c->B, c->S, c->masked ? ", some of them padding" : "");
}

static inline const Param *param_of(const Fn *f, const char *name) {
    for (int i = 0; i < f->params.n; i++)
        if (!strcmp(f->params.at[i].name, name)) return &f->params.at[i];
    return NULL;
}

static inline double default_of(const Fn *f, const char *name) {
    const Param *p = param_of(f, name);
    return p && p->fallback && p->fallback->kind == X_NUM ? num_value(p->fallback->num) : 0;
}

// What a router must be told so that it fits small sizes: rules by the parameter's name, not by the router's.
static inline void add_args(const RouterCase *c, Str *out) {
    const struct {
        const char *name, *value;
        bool given;
    } rule[] = {
        {"ids", "tokens", true},
        {"V", "V", true},
        {"k", "3", default_of(c->fn, "k") > 4},
        {"groups", c->E % 3 ? "1" : "3", true},
        {"open_groups", c->E % 3 ? "1" : "2", true},
        {"min_capacity", "0", c->B * c->S < 4},
        {"aux", "0.1", true},
        {"z", "0.1", true},
        {"jitter", "0.3", true},
        {"slots", "2", default_of(c->fn, "slots") > 8},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof rule / sizeof *rule; i++)
        if (rule[i].given && param_of(c->fn, rule[i].name) &&
            !strstr(c->args, arena_printf(out->arena, " %s:", rule[i].name)))
            str_printf(out, "%s%s: %s", n++ ? ", " : "", rule[i].name, rule[i].value);
    str_add(out, n ? c->args : *c->args ? c->args + 2 : "");
}

static inline Loaded *load_text(const char *text) {
    char path[] = "/tmp/moec-router-XXXXXX.moe";
    FILE *f = fdopen(mkstemps(path, 4), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    Loaded *l = load(path);
    remove(path);
    return l;
}

static inline Loaded *load_case(const RouterCase *c) {
    Arena *a = arena_create();
    Str args = {.arena = a};
    str_add(&args, "");
    add_args(c, &args);
    Loaded *l = load_text(
        arena_printf(a,
                     "import std.ffn, std.moe, routing.%s\n"
                     "model m(tokens: i32[B, S], labels: i32[B, S], V = 13, D = %d, E = %d) {\n"
                     "  param embed[V, D], head[V, D] = normal(0.02)\n"
                     "  x = take(embed, tokens)\n"
                     "  y = x + moe(x, E:, router: %s(%s), expert: swiglu(H: 6)%s)\n"
                     "  logits = y @ head.T\n"
                     "  loss ce = cross_entropy(logits, labels)\n"
                     "  return logits\n"
                     "}\n",
                     c->router, D, c->E, c->router, args.text, c->masked ? ", used: tokens != 0" : ""));
    arena_destroy(a);
    return l;
}

static inline const Node *find_op(const Graph *g, Op op) {
    for_each_node(g, n) if (n->op == op) return n;
    return NULL;
}

static inline const Fn *router_fn(const Loaded *l, const char *name) {
    const Module *m = program_main(l->p);
    for (int i = 0; i < m->fns.n; i++)
        if (!strcmp(m->fns.at[i]->name, name)) return m->fns.at[i];
    fail_msg("models/routing/%s.moe has no function '%s'", name, name);
    return NULL;
}

#endif
