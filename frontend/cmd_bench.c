// `moec bench WHAT`: finds the row of bench.def.
#include "frontend/cmd_bench.h"

#include <string.h>

#include "ir/base/str.h"

static const struct {
    const char *what;
    int (*run)(Cli *c);
    const char *options;
} bench[] = {
#define BENCH(what, run, options, doc) {what, run, options},
#include "frontend/bench.def"
#undef BENCH
};
enum { N_BENCH = sizeof bench / sizeof *bench };

// Options of the command that this row has no use for would be without effect.
static const char *useless(Cli *c, const char *options) {
    for (int i = 0; i < c->given.n; i++) {
        const char *name = c->given.at[i].name;
        if (strcmp(name, "json") && strcmp(name, "quiet") && strcmp(name, "color") && !strstr(options, arena_printf(c->arena, "%s,", name)))
            return name;
    }
    return c->sets.n && !strstr(options, "set,") ? "set" : NULL;
}

// By its name; any file of the language means FILE.moe.
static bool is_meant(const char *row, const char *what) {
    size_t n = strlen(what);
    return !strcmp(row, what) || (!strcmp(row, "FILE.moe") && n > 4 && !strcmp(what + n - 4, ".moe"));
}

int cmd_bench(Cli *c) {
    const char *what = c->args.at[0], *known[N_BENCH];
    for (int i = 0; i < N_BENCH; i++) {
        known[i] = bench[i].what;
        if (!is_meant(bench[i].what, what)) continue;
        const char *option = useless(c, bench[i].options);
        if (option) return cli_usage(c, "bench %s has no use for --%s", what, option);
        return bench[i].run(c);
    }
    const char *near = did_you_mean(what, known, N_BENCH);
    return near ? cli_usage(c, "there is nothing '%s' to bench; did you mean '%s'?", what, near)
                : cli_usage(c, "there is nothing '%s' to bench; moec bench --help lists what there is", what);
}
