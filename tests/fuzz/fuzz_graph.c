// The text of graphs.  What the reader and the verifier take prints as text that reads back; small graphs are
// also evaluated, so the verifier's word is enough for the meanings of the ops.
#include <string.h>
#include "ir/eval.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/graphs.h"

enum { MOST_BYTES = 1 << 20 };

// Small, and no route promises fewer rows than there may be choices: whether that holds is up to the data.
static bool can_run(const Graph *g, int64_t *bytes) {
    for (const Node *n = g->first; n; n = n->next) {
        for (int i = 0; i < n->n_out; i++) {
            int64_t more = type_bytes(&n->out[i].type);
            if (more < 0 || more > MOST_BYTES || (*bytes += more) > MOST_BYTES) return false;
        }
        if (n->op == OP_ROUTE && n->attr.sym->bound < type_bound_elements(&n->in[0]->type)) return false;
        if (n->attr.body && !can_run(n->attr.body, bytes)) return false;
        if (n->attr.epilogue && !can_run(n->attr.epilogue, bytes)) return false;
    }
    return true;
}

static bool fill(void *self, const Node *n, Tensor *t) {
    (void)self;
    int64_t count = 1;
    uint32_t x = (uint32_t)strlen(n->attr.name) * 2654435761u;
    for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
    for (int64_t i = 0; i < count; i++) {
        x = x * 1664525u + 1013904223u;
        int32_t small = (int32_t)(x >> 28) - 2; // -2 .. 13
        if (t->dtype == F32)
            ((float *)t->data)[i] = (float)small / 4;
        else if (t->dtype == F64)
            ((double *)t->data)[i] = (double)small / 4;
        else if (t->dtype == BOOL)
            ((uint8_t *)t->data)[i] = small > 4;
        else if (t->dtype == I32 || t->dtype == U32)
            ((int32_t *)t->data)[i] = small;
        else
            ((uint8_t *)t->data)[i] = (uint8_t)small;
    }
    return true;
}

void fuzz_graph(const uint8_t *data, size_t n) {
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    char *text = arena_strndup(a, (const char *)data, n);
    int n_graphs = 0;
    Graph **g = graphs_parse(a, d, diag_add_file(d, "input", text, n), &n_graphs);
    for (int i = 0; g && i < n_graphs; i++) {
        if (!graph_check(g[i], d)) continue;
        fuzz_graph_reads_back(a, g[i]);
        int64_t bytes = 0;
        if (can_run(g[i], &bytes)) eval_graph(a, g[i], &(EvalOpts){.source = fill}, d);
    }
    fuzz_print(d);
    arena_destroy(a);
}
