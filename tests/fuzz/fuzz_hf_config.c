// A config.json through `config hf` of the model it names.  Where the sizes are small, the model is also
// elaborated.
#include <stdlib.h>
#include <string.h>
#include "frontend/hf_config.h"
#include "frontend/num.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/graphs.h"

static bool is_small(Program *p) {
    int n;
    const char *const *names = program_hyper_names(p, &n);
    for (int i = 0; i < n; i++) {
        Val v = program_hyper(p, names[i]);
        if (v.kind == V_ERROR) return false;
        if (v.kind == V_NUM && num_value(v.num) > (strcmp(names[i], "L") ? 300 : 4)) return false;
    }
    return true;
}

void fuzz_hf_config(const uint8_t *data, size_t n) {
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    char *json = arena_strndup(a, (const char *)data, n);
    const char *type = hf_model_type(a, d, json, "config.json");
    const char *file = type && *type ? hf_find_model(a, "models", type) : NULL;
    Program *p = file ? program_load(a, d, file, "models") : NULL;
    if (p && hf_configure(p, a, json, "config.json") && is_small(p) && program_settings(p)) {
        ElabOpts opts = {.kind = ELAB_EVAL, .leaves = 1, .B = 1, .S = 4};
        Graph *g = program_elaborate(p, a, &opts);
        if (g) fuzz_graph_reads_back(a, g);
    }
    fuzz_print(d);
    arena_destroy(a);
}
