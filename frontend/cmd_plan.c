// plan: what a run on a described cluster would take, told before anybody buys time on it.
#include "frontend/cmd_plan.h"

#include <stdlib.h>

#include "frontend/cmd_machine.h"
#include "runtime/memory.h"

static void print_layout(const Planning *p, const PlanLayout *l) {
    Arena *a = p->c->arena;
    printf("%s on %s\n", program_model_name(p->s.program), p->cluster->name);
    printf("  layout      %d rank%s = ", layout_ranks(l), layout_ranks(l) == 1 ? "" : "s");
    if (l->pp > 1) printf("pp %d x ", l->pp);
    printf("dp %d x ep %d x tp %d, zero %d, recompute %s\n", l->mesh.dp, l->mesh.ep, l->mesh.tp, l->mesh.zero, l->recompute);
    printf("  a step      %s tokens = %lld wave%s x %lld lane%s x %lld sequence%s of %lld\n", str_thousands(a, (int64_t)layout_step_tokens(l)),
           (long long)l->waves, l->waves == 1 ? "" : "s", (long long)l->lanes, l->lanes == 1 ? "" : "s", (long long)l->micro_batch,
           l->micro_batch == 1 ? "" : "s", (long long)l->sequence);
}

static void print_memory(const RtMemory *m) {
    printf("\nmemory of a rank        bytes\n");
    for (int i = 0; i < RT_MEMORY_KINDS; i++)
        if (m->bytes[i]) printf("  %-20s %20lld\n", rt_memory_name((RtMemoryKind)i), (long long)m->bytes[i]);
    printf("  %-20s %20lld\n", "total", (long long)rt_memory_total(m));
}

static json_t *memory_json(const RtMemory *m) {
    json_t *o = json_object();
    for (int i = 0; i < RT_MEMORY_KINDS; i++)
        if (m->bytes[i]) json_object_set_new(o, rt_memory_name((RtMemoryKind)i), json_integer(m->bytes[i]));
    json_object_set_new(o, "total", json_integer(rt_memory_total(m)));
    return o;
}

static bool plan(Planning *p) {
    PlanLayout l;
    PlannedStep step = {0};
    if (!plan_layout_asked(p, &l)) return false;
    bool ok = plan_compile(p, &l, &step);
    if (ok) {
        RtMemory m = rt_plan_memory(step.plan, p->cluster->threads);
        if (cli_flag(p->c, "json")) {
            json_t *o = json_pack("{s:o}", "memory", memory_json(&m));
            json_dumpf(o, stdout, JSON_INDENT(1));
            putchar('\n');
            json_decref(o);
        } else {
            print_layout(p, &l);
            print_memory(&m);
        }
    }
    plan_close(&step);
    return ok;
}

int cmd_plan(Cli *c) {
    Planning p = {.c = c};
    bool ok = session_open(&p.s, c, c->args.at[0], 0, NULL) && plan_cluster(&p);
    if (ok && p.cluster->kind == DEVICE_CPU) ok = (p.s.machine = machine_here(c, false)) != NULL;
    if (ok && p.cluster->kind == DEVICE_GPU) {
        Machine *guess = arena_new(c->arena, Machine);
        *guess = machine_guess(64, 1);
        p.s.machine = guess;
    }
    ok = ok && plan(&p);
    session_close(&p.s);
    return cli_finish(c, ok ? EXIT_DONE : EXIT_WRONG);
}
