// ops, passes, targets, settings: printed from the tables.
#include <string.h>

#include "codegen/target.h"
#include "frontend/blocks.h"
#include "frontend/cli.h"
#include "ir/ir.h"
#include "passes/pass.h"

static void print_op(const OpInfo *o) {
    printf("%s(", o->name);
    for (int i = 0; i < MAX_NAMED && o->ins[i].name; i++) printf("%s%s", i ? ", " : "", o->ins[i].name);
    if (o->variadic) printf("...");
    printf(") ->");
    for (int i = 0; i < MAX_NAMED && o->outs[i].name; i++) printf("%s %s", i ? "," : "", o->outs[i].name);
    printf("\n  %s\n", o->doc);
    for (int i = 0; o->attrs[i]; i++) {
        const AttrInfo *a = &attr_info[o->attrs[i] - 1];
        printf("  %-12s %s\n", a->name, a->doc);
    }
    printf("  gradient: %s\n", o->grad_name);
}

int cmd_ops(Cli *c) {
    if (c->args.n) {
        Op op;
        if (op_find(c->args.at[0], &op)) {
            print_op(&op_info[op]);
            return EXIT_DONE;
        }
        const char *known[N_OPS];
        for (int i = 0; i < N_OPS; i++) known[i] = op_info[i].name;
        const char *near = did_you_mean(c->args.at[0], known, N_OPS);
        return near ? cli_fail(c, "there is no op '%s'; did you mean '%s'?", c->args.at[0], near)
                    : cli_fail(c, "there is no op '%s'; moec ops lists them", c->args.at[0]);
    }
    printf("%-18s %-20s %s\n", "op", "gradient", "what it does");
    for (int i = 0; i < N_OPS; i++) printf("%-18s %-20s %s\n", op_info[i].name, op_info[i].grad_name, op_info[i].doc);
    return EXIT_DONE;
}

int cmd_passes(Cli *c) {
    (void)c;
    printf("%-14s %-10s %-10s %s\n", "pass", "needs", "leaves", "what it is for");
    for (int i = 0; i < n_passes; i++) {
        const PassInfo *p = &pass_info[i];
        printf("%-14s %-10s %-10s %s\n", p->name, p->needs < 0 ? "any" : stage_name[p->needs],
               p->leaves < 0 ? "the same" : stage_name[p->leaves], p->doc);
    }
    const struct { const char *name; const char *const *list; } pipelines[] = {
        {"train (@pass)", pipeline_train}, {"update (@update)", pipeline_update}, {"forward (@eval, @run)", pipeline_forward}};
    for (size_t i = 0; i < sizeof pipelines / sizeof *pipelines; i++) {
        printf("\n%s:\n ", pipelines[i].name);
        for (const char *const *p = pipelines[i].list; *p; p++) printf(" %s", *p);
        printf("\n");
    }
    return EXIT_DONE;
}

int cmd_targets(Cli *c) {
    (void)c;
    for (const Target *const *t = targets; *t; t++) {
        const char *why = "";
        bool ok = !(*t)->available || (*t)->available(&why);
        printf("%-8s %s%s%s\n", (*t)->name, (*t)->doc, ok ? "" : " -- not available: ", ok ? "" : why);
    }
    printf("%-8s %s\n", "ref", "the meaning of the ops on the graph itself, single or double precision (--f64); verify only");
    printf("\n--target-cpu of cpu: native (default), avx512bf16, avx512, avx2, sse2.  Where there is a fused multiply-add all give the same bits;\n"
           "sse2 has none.\n");
    return EXIT_DONE;
}

// Of all blocks, of one, or of one key.
int cmd_settings(Cli *c) {
    const BlockKey *key;
    int n = blocks_keys(c->arena, &key), found = 0;
    const char *wanted = c->args.n ? c->args.at[0] : NULL, **names = arena_array(c->arena, const char *, n);
    size_t length = wanted ? strlen(wanted) : 0;
    for (int i = 0; i < n; i++) {
        const BlockKey *k = &key[i];
        names[i] = k->name;
        if (wanted && (strncmp(k->name, wanted, length) != 0 || (k->name[length] && k->name[length] != '.'))) continue;
        found++;
        printf("%s = %s\n    %s\n    value: %s\n", k->name, k->fallback, k->doc, k->values);
    }
    if (found) return EXIT_DONE;
    const char *near = did_you_mean(wanted, names, n);
    return near ? cli_fail(c, "there is no setting '%s'; did you mean '%s'?", wanted, near)
                : cli_fail(c, "there is no setting '%s'; moec settings lists them", wanted);
}
