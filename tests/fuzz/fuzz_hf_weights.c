// The rows of `weights hf` against a file's tensors.  What matches has the tensor's shape and can be read
// both ways.
//     // TENSOR: layers.0.w 4,8
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "frontend/hf.h"
#include "frontend/program.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/graphs.h"

enum { MOST_TENSORS = 64, MOST_ELEMENTS = 1 << 16 };

static bool lookup(void *self, const char *name, int64_t *number, const char **word) {
    (void)self;
    *word = NULL;
    *number = 2;
    if (!strcmp(name, "act")) *word = "silu";
    return strcmp(name, "nothing") != 0;
}

static int64_t count(int ndim, const int64_t *dim) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++)
        if (dim[i] < 0 || __builtin_mul_overflow(n, dim[i], &n) || n > MOST_ELEMENTS) return -1;
    return n;
}

static int read_tensors(Arena *a, const char *text, HfTensor *t) {
    int n = 0;
    for (const char *line = text; line && n < MOST_TENSORS; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        const char *rest;
        if (!fuzz_begins(line, "// TENSOR: ", &rest)) continue;
        HfTensor *x = &t[n];
        *x = (HfTensor){.name = arena_strndup(a, rest, strcspn(rest, " \n")), .dtype = F32};
        rest += strcspn(rest, " \n");
        while ((*rest == ' ' || *rest == ',') && x->ndim < MAX_DIM) {
            char *end;
            x->dim[x->ndim] = strtoll(rest + 1, &end, 10);
            if (end == rest + 1) break;
            x->ndim++;
            rest = end;
        }
        bool known = false;
        for (int i = 0; i < n; i++) known |= !strcmp(t[i].name, x->name);
        if (!known && count(x->ndim, x->dim) >= 0) n++;
    }
    return n;
}

// What a reader of safetensors and a model's parameters are: no sizes below zero, not too many elements.
static bool params_of(Program *p, Arena *a, HfParam **out, int *n) {
    const ParamInfo *info = program_params(p, n);
    if (!info || *n > MOST_TENSORS) return false;
    *out = arena_array(a, HfParam, *n + 1);
    for (int i = 0; i < *n; i++) {
        HfParam *h = &(*out)[i];
        *h = (HfParam){.name = info[i].path, .ndim = info[i].ndim, .optional = info[i].state};
        memcpy(h->dim, info[i].dim, sizeof h->dim);
        if (count(h->ndim, h->dim) < 0) return false;
    }
    return true;
}

static void both_ways(Arena *a, const HfMatches *m, const HfTensor *t, const HfParam *param, int n_params) {
    char **at = arena_array(a, char *, n_params + 1);
    for (int i = 0; i < n_params; i++)
        at[i] = arena_alloc(a, (size_t)count(param[i].ndim, param[i].dim) * 4 + 1);
    for (int i = 0; i < m->n; i++) {
        const HfMatch *x = &m->at[i];
        int64_t n = count(x->view->ndim, x->view->dim);
        if (!x->mxfp4) assert(n == count(t[x->tensor].ndim, t[x->tensor].dim));
        char *value = arena_alloc(a, (size_t)n * 4 + 1), *again = arena_alloc(a, (size_t)n * 4 + 1);
        for (int64_t k = 0; k < 4 * n; k++) value[k] = (char)(k * 7);
        hf_view_scatter(x->view, 4, at, value);
        hf_view_gather(x->view, 4, at, again);
        assert(!memcmp(value, again, (size_t)n * 4));
    }
}

void fuzz_hf_weights(const uint8_t *data, size_t n) {
    const char *path = fuzz_file("weights.moe", data, n);
    Arena *a = arena_create();
    Diag *d = diag_new(a);
    Program *p = program_load(a, d, path, "models");
    HfParam *param;
    int n_params;
    if (p && program_model_name(p) && hf_has_weights(program_main(p)) && params_of(p, a, &param, &n_params)) {
        HfTensor tensor[MOST_TENSORS];
        int n_tensors = read_tensors(a, arena_strndup(a, (const char *)data, n), tensor);
        HfRules rules = {.arena = a,
                         .diag = d,
                         .module = program_main(p),
                         .lookup = lookup,
                         .file = "file",
                         .complete = true};
        HfMatches matches = {0};
        int errors = diag_n_errors(d);
        if (hf_match(&rules, tensor, n_tensors, param, n_params, &matches))
            both_ways(a, &matches, tensor, param, n_params);
        else
            assert(diag_n_errors(d) > errors);
    }
    fuzz_print(d);
    arena_destroy(a);
}
