// plan: what a run on a described cluster would take, told before anybody buys time on it.
#include "frontend/cmd_plan.h"

#include <errno.h>
#include <stdlib.h>

#include "frontend/cmd_machine.h"

enum { DEFAULT_TRIES = 16, TOLD = 5, NEAREST_TRIES = 6, MORE_NODES_TRIES = 2, MORE_NODES = 3 };

static double gb(double bytes) { return bytes / 1e9; }

// ---- as text ------------------------------------------------------------------------------------------------------

static void print_layout(const Planning *p, const PlanLayout *l) {
    Arena *a = p->c->arena;
    printf("%s on %s\n", program_model_name(p->s.program), p->cluster->name);
    printf("  layout     %d rank%s = ", layout_ranks(l), layout_ranks(l) == 1 ? "" : "s");
    if (l->pp > 1) printf("pp %d x ", l->pp);
    printf("dp %d x ep %d x tp %d%s, zero %d, recompute %s\n", l->mesh.dp, l->mesh.ep, l->mesh.tp, l->mesh.etp ? arena_printf(a, " (etp %d)", l->mesh.etp) : "",
           l->mesh.zero, l->recompute);
    printf("  a step     %s tokens = %lld wave%s x %lld lane%s x %lld sequence%s of %lld\n", str_thousands(a, (int64_t)layout_step_tokens(l)),
           (long long)l->waves, l->waves == 1 ? "" : "s", (long long)l->lanes, l->lanes == 1 ? "" : "s", (long long)l->micro_batch,
           l->micro_batch == 1 ? "" : "s", (long long)l->sequence);
    if (l->row_bound > 0 && rt_expert_ranks(l->mesh) > 1)
        printf("  rows       at experts at most %g times those at home (parallel.bound)\n", l->row_bound);
}

static void print_memory(const Evaluation *e) {
    const RtMemory *m = &e->memory;
    if (e->layout.pp > 1) printf("\nmemory of a rank of stage %d of %d\n", e->stage + 1, e->layout.pp);
    else printf("\nmemory of a rank\n");
    double total = (double)rt_memory_total(m), unit = total < 10e9 ? 1e6 : 1e9;
    const char *name = total < 10e9 ? "MB" : "GB";
    for (int i = 0; i < RT_MEMORY_KINDS; i++)
        if (m->bytes[i]) printf("  %-20s %9.3f %s\n", rt_memory_name((RtMemoryKind)i), (double)m->bytes[i] / unit, name);
    printf("  %-20s %9.3f %s of %.3f (%lld bytes)\n", "total", total / unit, name, e->room / unit, (long long)rt_memory_total(m));
}

static void print_traffic(const RtUsage *u, const char *of) {
    bool any = false;
    for (int k = 0; k < RT_COMM_KINDS; k++)
        for (int l = 0; l < RT_LINKS; l++) {
            if (!u->sent[k][l].messages && !u->received[k][l].messages) continue;
            if (!any) printf("\n%-20s %19s %19s %19s %19s\n", of, "messages sent", "bytes", "received", "bytes");
            any = true;
            printf("  %-13s %-4s %19lld %19lld %19lld %19lld\n", rt_comm_kind_name((RtCommKind)k), rt_link_name((RtLink)l),
                   (long long)u->sent[k][l].messages, (long long)u->sent[k][l].bytes, (long long)u->received[k][l].messages,
                   (long long)u->received[k][l].bytes);
        }
}

static void print_time(const Evaluation *e) {
    const Simulated *t = &e->time;
    int ranks = layout_ranks(&e->layout);
    printf("\ntime of a step         %.4g s: %.6g tokens/s, %.5g a device, MFU %.1f %%\n", t->seconds, e->tokens_per_s, e->tokens_per_s / ranks,
           100 * e->mfu);
    for (int i = 0; i < SPENT_KINDS; i++)
        if (t->spent[i] > 0) printf("  %-20s %9.4g s  %5.1f %%\n", spent_name((SpentKind)i), t->spent[i], 100 * t->spent[i] / t->seconds);
    for (int l = 0; l < RT_LINKS; l++)
        if (t->link[l] > 0) printf("  link %-15s %9.4g s  %5.1f %% busy\n", rt_link_name((RtLink)l), t->link[l], 100 * t->link[l] / t->seconds);
    if (e->far_rows > 1)
        printf("  the fullest experts get %.2f times the rows that have room: %d rounds\n", e->far_rows, (int)(e->far_rows + 0.999));
}

static void print_found(const SearchResult *r) {
    printf("\nlayouts: %d, by formula %d might fit, %d were compiled, of these %d fit\n", r->listed, r->possible, r->tried, r->n);
    if (r->n) printf("   pp   tp   dp   ep  zero  recompute   lanes   waves        GB    s/step     tokens/s    MFU\n");
    for (int i = 0; i < r->n && i < TOLD; i++) {
        const Evaluation *e = &r->all[i];
        const PlanLayout *l = &e->layout;
        printf(" %4d %4d %4d %4d  %4d  %-9s %7lld %7lld %9.2f %9.4g %12.5g %5.1f%%\n", l->pp, l->mesh.tp, l->mesh.dp, l->mesh.ep, l->mesh.zero,
               l->recompute, (long long)l->lanes, (long long)l->waves, gb((double)rt_memory_total(&e->memory)), e->time.seconds,
               e->tokens_per_s, 100 * e->mfu);
    }
}

static const char *sets_of(Arena *a, const PlanLayout *l) {
    Str s = {.arena = a};
    str_printf(&s, "--set parallel.dp=%d --set parallel.ep=%d", l->mesh.dp, l->mesh.ep);
    if (l->pp > 1) str_printf(&s, " --set parallel.pp=%d", l->pp);
    if (l->mesh.tp > 1) str_printf(&s, " --set parallel.tp=%d", l->mesh.tp);
    if (l->mesh.etp) str_printf(&s, " --set parallel.etp=%d", l->mesh.etp);
    if (l->mesh.zero) str_printf(&s, " --set parallel.zero=%d", l->mesh.zero);
    str_printf(&s, " --set train.lanes=%lld --set train.recompute=%s", (long long)l->lanes, l->recompute);
    return s.text;
}

// What one layout spends less on than another, most first: one line.
static void print_reason(const Evaluation *best, const Evaluation *other, const char *name) {
    int most = -1;
    double saved = 0;
    for (int i = 0; i < SPENT_KINDS; i++) {
        double less = other->time.spent[i] - best->time.spent[i];
        if (less > saved) {
            saved = less;
            most = i;
        }
    }
    double gain = 100 * (other->time.seconds / best->time.seconds - 1);
    if (most < 0 || gain < 0.05) printf("  %s is as fast\n", name);
    else printf("  %s takes %.1f %% longer: most of it, %.3g s, is %s\n", name, gain, saved, spent_name((SpentKind)most));
}

static void print_best(const Planning *p, const SearchResult *r, const Evaluation *asked) {
    if (!r->n) return;
    const Evaluation *best = &r->all[0];
    printf("\nbest: moec train %s %s\n", p->c->args.at[0], sets_of(p->c->arena, &best->layout));
    if (evaluation_fits(asked)) print_reason(best, asked, "the layout asked for");
    if (r->n > 1) print_reason(best, &r->all[1], "the next one");
    print_time(best);
}

// ---- as JSON ------------------------------------------------------------------------------------------------------

static json_t *memory_json(const RtMemory *m) {
    json_t *o = json_object();
    for (int i = 0; i < RT_MEMORY_KINDS; i++)
        if (m->bytes[i]) json_object_set_new(o, rt_memory_name((RtMemoryKind)i), json_integer(m->bytes[i]));
    json_object_set_new(o, "total", json_integer(rt_memory_total(m)));
    return o;
}

static json_t *evaluation_json(const Evaluation *e) {
    const PlanLayout *l = &e->layout;
    json_t *spent = json_object(), *links = json_object();
    for (int i = 0; i < SPENT_KINDS; i++)
        if (e->time.spent[i] > 0) json_object_set_new(spent, spent_name((SpentKind)i), json_real(e->time.spent[i]));
    for (int i = 0; i < RT_LINKS; i++)
        if (e->time.link[i] > 0) json_object_set_new(links, rt_link_name((RtLink)i), json_real(e->time.link[i]));
    json_t *layout = json_pack("{s:i, s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I}", "pp", l->pp, "tp", l->mesh.tp, "dp", l->mesh.dp, "ep",
                               l->mesh.ep, "zero", l->mesh.zero, "recompute", l->recompute, "lanes", (json_int_t)l->lanes, "waves",
                               (json_int_t)l->waves, "micro_batch", (json_int_t)l->micro_batch, "sequence", (json_int_t)l->sequence);
    return json_pack("{s:o, s:b, s:f, s:o, s:i, s:f, s:f, s:f, s:f, s:o, s:o, s:f}", "layout", layout, "fits", evaluation_fits(e), "room",
                     e->room, "memory", memory_json(&e->memory), "stage", e->stage, "seconds", e->time.seconds, "pass_seconds", e->time.pass,
                     "tokens_per_s", e->tokens_per_s, "mfu", e->mfu, "spent", spent, "links", links, "flops", e->time.flops);
}

static json_t *rank_json(int rank, const RtUsage *u) {
    return json_pack("{s:i, s:o, s:o}", "rank", rank, "sent", rt_traffic_json(u->sent), "received", rt_traffic_json(u->received));
}

// ---- messages -----------------------------------------------------------------------------------------------------

// Of the first rank in a step, by the model of the router; or of all ranks in all steps that were recorded.
static bool tell_traffic(Planning *p, const PlanLayout *l, const PlannedStep *step, const RouteLog *log, json_t *json) {
    json_t *ranks = json_array();
    int told = log ? layout_ranks(l) : 1;
    bool ok = true;
    for (int i = 0; i < told && ok; i++) {
        TrafficOf t = plan_traffic(p, l, step, i);
        Arena *scratch = arena_create();
        RtUsage u;
        if (log) ok = traffic_recorded(&t, scratch, p->c->diag, log, l->waves, &u);
        else traffic_of_training_step(&t, scratch, l->waves, &u);
        arena_destroy(scratch);
        if (ok) json_array_append_new(ranks, rank_json(i, &u));
        if (ok && !json && i == 0)
            print_traffic(&u, log ? arena_printf(p->c->arena, "rank 0, %lld steps", (long long)routes_steps(log))
                                  : l->pp > 1 ? "rank 0, all layers" : "rank 0, a step");
    }
    if (json) {
        json_object_set_new(json, "steps", json_integer(log ? routes_steps(log) : 1));
        json_object_set(json, "ranks", ranks);
    }
    json_decref(ranks);
    return ok;
}

// ---- what doesn't fit ---------------------------------------------------------------------------------------------

// Where a parameter of the layer stands in the text.
static Span span_of_layer(Planning *p, const char *layer) {
    int n;
    const ParamInfo *param = program_params(p->s.program, &n);
    Span at = {0};
    int64_t most = 0;
    for (int i = 0; param && i < n; i++) {
        const char *of = layer_name(p->s.arena, param[i].path);
        bool own = layer ? of && !strcmp(of, layer) : !of;
        if (!own || param[i].elements <= most) continue;
        most = param[i].elements;
        at = param[i].node->at;
    }
    return at;
}

static bool refuse(Planning *p, const Evaluation *e, const SearchResult *r) {
    Arena *a = p->c->arena;
    const char *layer = e->fullest >= 0 && e->fullest < e->layers.n ? e->layers.name[e->fullest] : NULL;
    double total = (double)rt_memory_total(&e->memory);
    diag_error(p->c->diag, span_of_layer(p, layer), "a rank needs %.1f GB, but a device of %s has %.1f GB for it; %s takes the most, %.1f GB",
               gb(total), p->cluster->name, gb(e->room), layer ? layer : "what stands outside of layers", gb(e->fullest_bytes));
    if (r->n) diag_help(p->c->diag, "the nearest layout that fits (%.1f GB, %.4g tokens/s): %s", gb((double)rt_memory_total(&r->all[0].memory)),
                        r->all[0].tokens_per_s, sets_of(a, &r->all[0].layout));
    return false;
}

// The same on more nodes, twice as many each time.
static bool refuse_all(Planning *p, const Evaluation *e, double model_flops) {
    SearchResult none = {0};
    refuse(p, e, &none);
    Cluster *given = p->cluster, larger = *given;
    Diag *told = p->c->diag;
    int nodes = 0;
    SearchResult r = {0};
    for (int i = 0; i < MORE_NODES && !r.n; i++) {
        larger.nodes *= 2;
        if (larger.nodes > 1 && !larger.link[RT_LINK_NET].kind) larger.link[RT_LINK_NET] = larger.link[RT_LINK_NODE];
        nodes = larger.nodes;
        p->cluster = &larger;
        p->c->diag = p->s.diag = diag_new(p->c->arena);      // errors of tries are not the user's
        r = plan_search(p, e, model_flops, MORE_NODES_TRIES, false);
        p->c->diag = p->s.diag = told;
    }
    p->cluster = given;
    if (r.n)
        diag_help(told, "no layout of its %d devices fits; %d nodes of them do (%.1f GB): %s", cluster_devices(given), nodes,
                  gb((double)rt_memory_total(&r.all[0].memory)), sets_of(p->c->arena, &r.all[0].layout));
    return false;
}

// ---- the command --------------------------------------------------------------------------------------------------

static bool tries_asked(Planning *p, int *out) {
    const char *text = cli_value(p->c, "tries");
    char *end;
    *out = DEFAULT_TRIES;
    if (!text) return true;
    long n = strtol(text, &end, 10);
    *out = (int)n;
    if (!*end && n >= 1 && n <= 10000) return true;
    diag_error(p->c->diag, (Span){0}, "--tries is a number from 1 to 10000, not '%s'", text);
    return false;
}

static bool tell(Planning *p, const PlanLayout *l, double model_flops, json_t *json) {
    Evaluation e;
    int tries;
    PlannedStep step;
    const char *dir = cli_value(p->c, "routes");
    const RouteLog *log = dir ? routes_read(p->c->arena, p->c->diag, dir, layout_ranks(l)) : NULL;
    if (!tries_asked(p, &tries) || (dir && !log)) return false;
    bool ok = plan_compile(p, l, &step) && plan_calibrate(p, l, step.plan, json) &&
              plan_judge(p, l, &step, log, model_flops, cli_value(p->c, "trace"), &e);
    if (ok && json) json_object_update_missing_new(json, evaluation_json(&e));
    if (ok && !json) {
        print_layout(p, l);
        print_memory(&e);
    }
    ok = ok && tell_traffic(p, l, &step, log, json);
    plan_close(&step);
    if (!ok) return false;
    if (!json) print_time(&e);
    fflush(stdout);
    if (cli_flag(p->c, "search")) {
        SearchResult r = plan_search(p, &e, model_flops, tries, false);
        if (!json) {
            print_found(&r);
            print_best(p, &r, &e);
        } else {
            json_t *found = json_array();
            for (int i = 0; i < r.n; i++) json_array_append_new(found, evaluation_json(&r.all[i]));
            json_object_set_new(json, "found", found);
        }
        if (r.n || evaluation_fits(&e)) return true;
        return refuse_all(p, &e, model_flops);
    }
    if (evaluation_fits(&e)) return true;
    SearchResult r = plan_search(p, &e, model_flops, cli_value(p->c, "tries") ? tries : NEAREST_TRIES, true);
    return r.n ? refuse(p, &e, &r) : refuse_all(p, &e, model_flops);
}

static bool plan(Planning *p) {
    PlanLayout l;
    double model_flops;
    if (!plan_layout_asked(p, &l) || !plan_model_flops(p, &model_flops)) return false;
    json_t *json = cli_flag(p->c, "json") ? json_object() : NULL;
    bool ok = tell(p, &l, model_flops, json);
    if (json_object_size(json)) {
        json_dumpf(json, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    json_decref(json);
    return ok;
}

int cmd_plan(Cli *c) {
    Planning p = {.c = c};
    bool ok = session_open(&p.s, c, c->args.at[0], 0, NULL) && plan_cluster(&p);
    if (ok && p.cluster->kind == DEVICE_CPU) ok = (p.s.machine = machine_here(c, false)) != NULL;
    if (ok && p.cluster->kind == DEVICE_GPU) {           // plans of GPUs don't depend on this machine
        Machine *guess = arena_new(c->arena, Machine);
        *guess = machine_guess(64, 1);
        p.s.machine = guess;
    }
    ok = ok && plan(&p);
    session_close(&p.s);
    return cli_finish(c, ok ? EXIT_DONE : EXIT_WRONG);
}
