// Bytes choose a graph.  Compiled for the cpu (as it stands, or after the passes of a pipeline) it gives the
// bits that the evaluator gives; on machines with fma, whose arithmetic is that of the references.
#include "passes/pass.h"
#include "tests/codegen/run_graph.h"
#include "tests/fuzz/fuzz.h"
#include "tests/passes/random_graph.h"

enum { MOST_NODES = 14 };

static const TrainOpts train = {.dtype = "f32",
                                .recompute = "cheap",
                                .optimizer = "adamw",
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .lr_expert = 1,
                                .waves = 1,
                                .return_grads = true};

static bool run_passes(Case *c, const char *const *pipeline, const TrainOpts *opts) {
    Arena *scratch = arena_create();
    Graph *update = NULL;
    Machine machine = machine_guess(64, 2);
    PassCtx cx = {.scratch = scratch, .diag = c->diag, .machine = &machine, .train = opts, .update = &update};
    bool ok = passes_run(&c->g, pipeline, &cx, &(RunOpts){.verify_each = true});
    arena_destroy(scratch);
    return ok;
}

void fuzz_kernels(const uint8_t *data, size_t n) {
    Choices choices = {.state = n, .byte = data, .n_bytes = n};
    Case c = case_new();
    const char *cpu = pick(&choices, 2) && case_runs("avx2") ? "avx2" : "native";
    if (!case_runs("avx2")) cpu = NULL; // without fma only the interpreter keeps the bits
    int form = pick(&choices, 4), n_nodes = 2 + pick(&choices, MOST_NODES);
    bool ok = true, placed = true;
    if (form == 0) {
        c.g = random_graph(c.arena, n_nodes, &choices);
        ok = run_passes(&c, pipeline_train, &train);
    } else {
        c.g = random_any_graph(c.arena, c.diag, n_nodes, pick(&choices, 3), &choices);
        placed = form != 1;
        if (placed) ok = run_passes(&c, pipeline_forward, NULL);
    }
    if (ok) ok = (placed ? case_compare_placed(&c, cpu, 0, 0) : case_compare(&c, cpu, 0, 0)) == 0;
    if (!ok) {
        fflush(stdout);
        diag_print(c.diag, stderr, false);
        graph_show(c.g);
        abort();
    }
    case_free(&c);
}
