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

static json_t *rank_json(int rank, const RtUsage *u) {
    return json_pack("{s:i, s:o, s:o}", "rank", rank, "sent", rt_traffic_json(u->sent), "received", rt_traffic_json(u->received));
}

static void print_traffic(const RtUsage *u, const char *of) {
    bool any = false;
    for (int k = 0; k < RT_COMM_KINDS; k++)
        for (int l = 0; l < RT_LINKS; l++) {
            if (!u->sent[k][l].messages && !u->received[k][l].messages) continue;
            if (!any) printf("\nmessages of %s             sent               bytes            received               bytes\n", of);
            any = true;
            printf("  %-14s%-6s%15lld %19lld %19lld %19lld\n", rt_comm_kind_name((RtCommKind)k), rt_link_name((RtLink)l),
                   (long long)u->sent[k][l].messages, (long long)u->sent[k][l].bytes, (long long)u->received[k][l].messages,
                   (long long)u->received[k][l].bytes);
        }
}

// What all ranks move: of a step by the model of the router, or of all steps that were recorded.
static bool tell_traffic(Planning *p, const PlanLayout *l, const RtPlan *plan, json_t *json) {
    const char *dir = cli_value(p->c, "routes");
    RouteLog *log = dir ? routes_read(p->c->arena, p->c->diag, dir, layout_ranks(l)) : NULL;
    if (dir && !log) return false;
    json_t *ranks = json_array();
    int told = dir ? layout_ranks(l) : 1;
    bool ok = true;
    for (int i = 0; i < told && ok; i++) {
        TrafficOf t = plan_traffic(p, l, plan, i);
        Arena *scratch = arena_create();
        RtUsage u;
        if (log) ok = traffic_recorded(&t, scratch, p->c->diag, log, l->waves, &u);
        else traffic_of_training_step(&t, scratch, l->waves, &u);
        arena_destroy(scratch);
        if (ok) json_array_append_new(ranks, rank_json(i, &u));
        if (ok && !json && i == 0)
            print_traffic(&u, log ? arena_printf(p->c->arena, "rank 0 in %lld steps", (long long)routes_steps(log)) : "a step, rank 0");
    }
    if (json) {
        json_object_set_new(json, "steps", json_integer(log ? routes_steps(log) : 1));
        json_object_set(json, "ranks", ranks);
    }
    json_decref(ranks);
    return ok;
}

static bool tell(Planning *p, const PlanLayout *l, const PlannedStep *step, json_t *json) {
    RtMemory m = rt_plan_memory(step->plan, p->cluster->threads);
    if (json) {
        json_object_set_new(json, "memory", memory_json(&m));
    } else {
        print_layout(p, l);
        print_memory(&m);
    }
    return tell_traffic(p, l, step->plan, json);
}

static bool plan(Planning *p) {
    PlanLayout l;
    PlannedStep step = {0};
    if (!plan_layout_asked(p, &l)) return false;
    json_t *json = cli_flag(p->c, "json") ? json_object() : NULL;
    bool ok = plan_compile(p, &l, &step) && tell(p, &l, &step, json);
    if (ok && json) {
        json_dumpf(json, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    json_decref(json);
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
