// Runs passes and watches them: stage, checker, time, dumps, and the two suspicious modes of MOE_DEBUG.
//   roundtrip   prints the graph, parses the text and goes on with what was read: a pass can hand nothing
//               to the next one but the graph
//   semantics   evaluates the graph before and after on random sources
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "ir/base/debug.h"
#include "passes/util.h"

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// How exactly a pass keeps values: 0 = every bit.
static double tolerance_of(const PassInfo *p, const PassCtx *cx) {
    if (!strcmp(p->name, "precision"))
        return cx->train && strcmp(cx->train->dtype, "f32") ? -1 : 0; // -1: not compared
    return !strcmp(p->name, "simplify") || !strcmp(p->name, "contract") ? 1e-5 : 0;
}

static void write_graph(const Graph *g, const char *path, Arena *a) {
    Str text = {.arena = a};
    graph_print(g, &text, (PrintOpts){0});
    FILE *f = fopen(path, "w");
    if (!f) return;
    fputs(text.text, f);
    fclose(f);
}

// The pass is wrong: say which, keep the graph it got, say how to see it again.
static void blame(const PassInfo *p, const Graph *before, const char *why, Diag *d) {
    Arena *a = arena_create();
    fflush(stdout);
    fprintf(stderr, "internal error: after %s: %s\n", p->name, why);
    if (d) diag_print(d, stderr, false);
    if (before) {
        const char *path = arena_printf(a, "/tmp/moec-%ld.ir", (long)getpid());
        write_graph(before, path, a);
        fprintf(stderr, "the graph before this pass: %s\nrepeat with:  moec dump %s --passes=%s\n", path,
                path, p->name);
    }
    arena_destroy(a);
    abort();
}

static Graph *parsed_again(const Graph *g, const PassInfo *p) {
    Arena *a = arena_create();
    Str text = {.arena = a}, again = {.arena = a};
    graph_print(g, &text, (PrintOpts){.spans = true});
    Diag *d = diag_new(a);
    int n = 0;
    uint32_t file = diag_add_file(d, "(printed graph)", text.text, text.n);
    Graph **read = graphs_parse(g->arena, d, file, &n);
    if (!read || n != 1) blame(p, g, "the printed graph can't be parsed", d);
    graph_print(read[0], &again, (PrintOpts){.spans = true});
    if (strcmp(text.text, again.text)) blame(p, g, "the parsed graph prints otherwise", NULL);
    arena_destroy(a);
    return read[0];
}

static void dump(const char *name, const Graph *g, int number, bool changed, Arena *a) {
    if (debug_on_for(DEBUG_dump, name)) {
        Str text = {.arena = a};
        if (changed) graph_print(g, &text, (PrintOpts){0});
        fprintf(stderr, "// after %s%s\n%s", name, changed ? "" : ": unchanged", changed ? text.text : "");
    }
    const char *directory = debug_arg(a, DEBUG_files);
    if (directory) write_graph(g, arena_printf(a, "%s/%s-%02d-%s.ir", directory, g->name, number, name), a);
}

static bool is_in(const char *const *names, const char *name) {
    for (int i = 0; names && names[i]; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

// False after an error.
static bool run_one(Graph **graph, const PassInfo *p, PassCtx *cx, const RunOpts *opts, int number,
                    bool verify) {
    Graph *g = *graph;
    assert(p->needs == ANY_STAGE || (int)g->stage == p->needs);
    bool semantics = debug_on(DEBUG_semantics) && tolerance_of(p, cx) >= 0 && rt_mesh_ranks(g->mesh) == 1; // no rank has a meaning alone
    Arena *kept = verify || semantics ? arena_create() : NULL;
    Graph *before = kept ? graph_copy(kept, g) : NULL;
    int n_before = g->n_nodes;
    cx->trace = debug_on_for(DEBUG_trace, p->name) ? stderr : NULL;
    cx->won = NULL;

    double start = seconds_now();
    bool changed = p->run(g, cx);
    double seconds = seconds_now() - start;
    bool ok = !diag_n_errors(cx->diag);
    if (ok) {
        if (p->leaves != SAME_STAGE) g->stage = (Stage)p->leaves;
        graph_recount(g);
        if (verify) {
            Diag *d = diag_new(kept);
            if (!graph_check(g, d)) blame(p, before, "the graph is wrong", d);
        }
        if (semantics) {
            const char *why = semantics_differ(kept, before, g, tolerance_of(p, cx));
            if (why) blame(p, before, why, NULL);
        }
        if (debug_on(DEBUG_roundtrip)) *graph = g = parsed_again(g, p);
        FILE *log = opts->time && opts->log ? opts->log : debug_on(DEBUG_time) ? stderr : NULL;
        if (log)
            fprintf(log, "  @%-7s %-14s %8.2f ms  %6d nodes %-12s%s\n", g->name, p->name, seconds * 1e3,
                    g->n_nodes,
                    changed ? arena_printf(cx->scratch, "(%+d)", g->n_nodes - n_before) : "unchanged",
                    cx->won ? cx->won : "");
        if (cx->won) TRACE(cx, "%s: %s\n", p->name, cx->won);
        dump(p->name, g, number, changed, cx->scratch);
        if (opts->seen) opts->seen(opts->self, p->name, g, seconds);
    }
    arena_reset(cx->scratch);
    if (kept) arena_destroy(kept);
    return ok;
}

bool passes_run(Graph **g, const char *const *pipeline, PassCtx *cx, const RunOpts *opts) {
    const char *wrong = pipeline_check(cx->scratch, pipeline);
    if (wrong) {
        diag_error(cx->diag, (Span){0}, "%s", wrong);
        return false;
    }
    bool verify = opts->verify_each || debug_on(DEBUG_verify);
#ifndef NDEBUG
    verify = verify || (*g)->n_nodes < 2000; // a debug build checks always, but not at the price of minutes
#endif
    dump("input", *g, 0, true, cx->scratch);
    if (opts->seen) opts->seen(opts->self, "input", *g, 0);
    for (int i = 0; pipeline[i]; i++) {
        const PassInfo *p = pass_find(pipeline[i]);
        if (!is_in(opts->disable, p->name)) {
            if (!run_one(g, p, cx, opts, i + 1, verify)) return false;
        } else if (p->leaves != SAME_STAGE) {
            (*g)->stage = (Stage)p->leaves;         // what follows needs the stage, not the pass
        }
        if (opts->after && !strcmp(p->name, opts->after)) break;
    }
    return true;
}
