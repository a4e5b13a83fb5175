#include "tests/fuzz/graphs.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

void fuzz_print(Diag *d) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diag_print(d, f, true);
    fclose(f);
    free(text);
}

static void must(bool holds, Diag *d) {
    if (!holds) diag_print(d, stderr, false);
    assert(holds);
}

void fuzz_graph_reads_back(Arena *a, Graph *g) {
    Diag *d = diag_new(a);
    must(graph_check(g, d), d);
    Str text = {.arena = a}, again = {.arena = a};
    graph_print(g, &text, (PrintOpts){0});
    int n = 0;
    Graph **read = graphs_parse(a, d, diag_add_file(d, "text", text.text, text.n), &n);
    must(read && n == 1, d);
    must(graph_check(read[0], d), d);
    graph_print(read[0], &again, (PrintOpts){0});
    assert(!strcmp(text.text, again.text));
}
