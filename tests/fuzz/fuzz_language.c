// A program as text.  What elaborates is a graph that checks, and whose text reads back as the same graph.
//     // SET: D=8                        as --set, before it is elaborated
//     // CALL: swiglu(x[B, S, 8], H: 16) that function alone, where the file has no model
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "frontend/program.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/graphs.h"

enum { MOST_LINES = 8 };

static int directives(Arena *a, const uint8_t *data, size_t n, const char *key, const char **at) {
    int found = 0;
    char *text = arena_strndup(a, (const char *)data, n);
    for (char *line = text; line && found < MOST_LINES; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        const char *rest;
        if (fuzz_begins(line, key, &rest)) at[found++] = arena_strndup(a, rest, strcspn(rest, "\n"));
    }
    return found;
}

static void elaborate(Program *p, Arena *a, const char *call) {
    static const char *const returns[] = {"logits", NULL};
    ElabOpts opts = program_train_opts(p);
    opts.leaves = 2;
    opts.B = 1;
    opts.S = 4;
    for (int kind = ELAB_TRAIN; kind <= ELAB_RUN; kind++) {
        opts.kind = kind;
        opts.labels = kind == ELAB_EVAL;
        opts.returns = kind == ELAB_TRAIN ? NULL : returns;
        opts.context = kind == ELAB_RUN ? 8 : 0;
        Graph *g = call ? program_elaborate_call(p, a, call, &opts) : program_elaborate(p, a, &opts);
        if (!g) {
            assert(diag_n_errors(program_diag(p)) > 0);
            if (kind == ELAB_TRAIN) return;
            continue;
        }
        fuzz_graph_reads_back(a, g);
    }
}

void fuzz_language(const uint8_t *data, size_t n) {
    const char *path = fuzz_file("main.moe", data, n);
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    const char *line[MOST_LINES];
    Program *p = program_load(a, d, path, "models");
    if (p && program_model_name(p)) {
        int n_lines = directives(a, data, n, "// SET: ", line);
        for (int i = 0; i < n_lines; i++) program_set(p, line[i]);
        if (program_settings(p)) {
            elaborate(p, a, NULL);
            int n_params;
            if (!diag_n_errors(d)) program_params(p, &n_params);
        }
    } else if (p) {
        int n_lines = directives(a, data, n, "// CALL: ", line);
        for (int i = 0; i < n_lines; i++) elaborate(p, a, line[i]);
    }
    fuzz_print(d);
    arena_destroy(a);
}
