// check: what a program is, without running it.
#include <string.h>

#include "frontend/cmd_session.h"

static int print_doc(Cli *c, Session *s, const char *name) {
    int n;
    const Module *const *m = program_modules(s->program, &n);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < m[i]->fns.n; k++) {
            const Fn *f = m[i]->fns.at[k];
            if (strcmp(f->name, name) != 0) continue;
            const char *doc = ast_doc(c->arena, c->diag, f);
            printf("%s  (%s)\n", ast_text(c->arena, c->diag, f->at), m[i]->path);
            if (doc) printf("%s\n", doc);
            return EXIT_DONE;
        }
    return cli_fail(c, "there is no function '%s' in this file and its imports", name);
}

static const char *bytes_text(Arena *a, double n) {
    static const char *const unit[] = {"B", "KB", "MB", "GB", "TB", "PB"};
    int u = 0;
    while (n >= 1000 && u < 5) {
        n /= 1000;
        u++;
    }
    return u ? arena_printf(a, "%.3g %s", n, unit[u]) : arena_printf(a, "%.0f B", n);
}

// One line per shape of parameter: layers.0..31.attn.q.w
static void print_params(const Cli *c, const ParamInfo *p, int n) {
    for (int i = 0; i < n; i++) {
        Str shape = {.arena = c->arena};
        for (int k = 0; k < p[i].ndim; k++) str_printf(&shape, "%s%lld", k ? ", " : "", (long long)p[i].dim[k]);
        printf("  %-44s %s[%s]%s%s\n", p[i].path, dtype_name(p[i].dtype), shape.text ? shape.text : "", p[i].state ? " state" : "",
               p[i].frozen ? " frozen" : "");
    }
}

int cmd_check(Cli *c) {
    Session s;
    if (!session_load(&s, c, c->args.at[0])) return cli_finish(c, EXIT_WRONG);
    for (int i = 0; i < c->sets.n; i++) vec_push(s.arena, &s.sets, c->sets.at[i]);
    if (cli_value(c, "doc")) return print_doc(c, &s, cli_value(c, "doc"));
    if (cli_value(c, "function")) {
        ElabOpts o = {.kind = ELAB_TRAIN, .leaves = 1, .B = 2, .S = 8, .waves = 1};
        bool ok = true;
        for (int i = 0; i < s.sets.n; i++) ok &= program_set(s.program, s.sets.at[i]);
        Graph *g = ok ? program_elaborate_call(s.program, s.arena, cli_value(c, "function"), &o) : NULL;
        if (!g) return cli_finish(c, EXIT_WRONG);
        if (!c->quiet) printf("%s: %d nodes\n", cli_value(c, "function"), g->n_nodes);
        return cli_finish(c, EXIT_DONE);
    }
    if (!program_model_name(s.program)) {                       // a library file: names and argument lists only
        if (!c->quiet && diag_n_errors(c->diag) == 0) printf("%s: %d functions\n", c->args.at[0], program_main(s.program)->fns.n);
        return cli_finish(c, EXIT_DONE);
    }
    if (!session_settle(&s)) return cli_finish(c, EXIT_WRONG);
    int n;
    const ParamInfo *p = program_params(s.program, &n);
    if (!p || diag_n_errors(c->diag)) return cli_finish(c, EXIT_WRONG);
    int64_t active, total = session_parameters(&s, &active), states = 0;
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        if (p[i].state) states += p[i].elements;
        bytes += p[i].elements * 4;
    }
    const Settings *t = s.settings;
    if (!c->quiet) {
        Arena *a = c->arena;
        int64_t tokens = t->train.batch * t->train.sequence;
        printf("%s  (%s)\n", program_model_name(s.program), c->args.at[0]);
        printf("  parameters        %s", str_thousands(a, total));
        if (states) printf("  (%s of them state)", str_thousands(a, states));
        printf("\n  active per token  %s\n", str_thousands(a, active));
        printf("  work per token    %.4g MFLOP forward, %.4g MFLOP to train (2 and 6 per active parameter, attention apart)\n",
               2e-6 * (double)active, 6e-6 * (double)active);
        printf("  a step            %s tokens: %lld lanes x %lld wave%s x %lld sequence%s of %lld\n", str_thousands(a, tokens),
               (long long)t->train.lanes, (long long)t->train.waves, t->train.waves == 1 ? "" : "s", (long long)t->train.micro_batch,
               t->train.micro_batch == 1 ? "" : "s", (long long)t->train.sequence);
        printf("  f32 memory        %s of weights, %s with gradients and AdamW's moments\n", bytes_text(a, (double)bytes),
               bytes_text(a, 4.0 * (double)bytes));
        if (cli_flag(c, "all")) print_params(c, p, n);
    }
    return cli_finish(c, EXIT_DONE);
}
