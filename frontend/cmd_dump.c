// dump: the graph after any pass as text or dot, the plan, the emitted code, or a page of it all.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_html.h"
#include "frontend/cmd_ranks.h"
#include "frontend/cmd_mesh.h"

static const char *const *split_list(Arena *a, const char *text) {
    VEC(const char *) list = {0};
    while (text && *text) {
        const char *comma = strchr(text, ',');
        size_t n = comma ? (size_t)(comma - text) : strlen(text);
        vec_push(a, &list, intern_n(text, n));
        text += n + (comma != NULL);
    }
    vec_push(a, &list, NULL);
    return list.at;
}

static bool known_pass(Cli *c, const char *name) {
    if (!strcmp(name, "input") || pass_find(name)) return true;
    const char *known[64];
    int n = 0;
    for (int i = 0; i < n_passes && n < 64; i++) known[n++] = pass_info[i].name;
    const char *near = did_you_mean(name, known, n);
    diag_error(c->diag, (Span){0}, near ? "there is no pass '%s'; did you mean '%s'?" : "there is no pass '%s'; moec passes lists them%s",
               name, near ? near : "");
    return false;
}

// The first names of the list, up to and with `after`.  "input": none.
static const char *const *cut_pipeline(Arena *a, const char *const *names, const char *after) {
    VEC(const char *) list = {0};
    for (; *names && strcmp(after, "input") != 0; names++) {
        vec_push(a, &list, *names);
        if (!strcmp(*names, after)) break;
    }
    vec_push(a, &list, NULL);
    return list.at;
}

static bool in_list(const char *const *names, const char *name) {
    for (; *names; names++)
        if (!strcmp(*names, name)) return true;
    return false;
}

// ---- dot ----------------------------------------------------------------------------------------------------

static void print_dot(const Graph *g, FILE *out, Arena *a) {
    fprintf(out, "digraph \"%s\" {\n  node [shape=box, style=filled, fontname=\"sans\", fontsize=10];\n", g->name);
    int id = 0;
    for (Node *n = g->first; n; n = n->next) n->id = id++;
    for (const Node *n = g->first; n; n = n->next) {
        const char *color = op_is(n->op, SOURCE) ? "#e3e7ee" : op_is(n->op, EFFECT) ? "#f5a9a9" : n->backward ? "#fbf3c8" : "#a9e2b8";
        fprintf(out, "  n%d [label=\"%s%s%s\\n%s\", fillcolor=\"%s\"];\n", n->id, op_info[n->op].name, n->attr.name ? " " : "",
                n->attr.name ? n->attr.name : "", n->n_out ? type_text(a, &n->out[0].type) : "", color);
        for (int i = 0; i < n->n_in; i++) fprintf(out, "  n%d -> n%d;\n", n->in[i]->node->id, n->id);
    }
    fprintf(out, "}\n");
}

// ---- the page -------------------------------------------------------------------------------------------------

// Steps follow the list; a step belongs to the next node of its op and path.
static void name_kernels(Html *h, const Graph *g, const RtPlan *plan, const char *program) {
    const RtProgram *programs = RT_TABLE(plan, RtProgram, programs);
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    const RtKernel *kernel = RT_TABLE(plan, RtKernel, kernels);
    for (uint32_t p = 0; p < plan->programs.n; p++) {
        if (strcmp(RT_TEXT(plan, programs[p].name), program) != 0) continue;
        uint32_t at = programs[p].first_step, end = at + programs[p].n_steps;
        for (const Node *n = g->first; n; n = n->next)
            for (uint32_t k = at; k < end; k++) {
                const char *path = n->path ? n->path : "";
                if (strcmp(RT_TEXT(plan, step[k].op), op_info[n->op].name) != 0 || strcmp(RT_TEXT(plan, step[k].path), path) != 0) continue;
                html_kernel(h, n, RT_TEXT(plan, kernel[step[k].kernel].symbol));
                at = k + 1;
                break;
            }
    }
}

// The program of each rank, where the parallel block asks for several and the lanes can be dealt to them.
static void share(Session *s) {
    const Settings *t = s->settings;
    RtMesh m = {.dp = (int32_t)(t->parallel.dp ? t->parallel.dp : 1), .ep = (int32_t)t->parallel.ep, .tp = (int32_t)t->parallel.tp,
                .zero = (int32_t)t->parallel.zero, .etp = mesh_etp(t)};
    int ranks = rt_lane_ranks(m);
    if (rt_expert_ranks(m) > 1) m.replicas = (int32_t)t->parallel.replicas;
    if (rt_mesh_ranks(m) == 1) return;
    Ranks as_here = {.n = rt_mesh_ranks(m), .local = true, .node_ranks = ranks_pretended_nodes(s->arena)};
    s->train.per_node = ranks_per_node(&as_here, m) % rt_expert_ranks(m);
    if (t->train.lanes % ranks == 0) s->train.mesh = m;
    else diag_warning(s->diag, (Span){0}, "this is the program of one rank: train.lanes = %lld can't be dealt to %d ranks",
                      (long long)t->train.lanes, ranks);
}

static int dump_html(Session *s, const char *path) {
    Arena *a = s->arena;
    Html *h = html_new(a, s->diag, program_model_name(s->program), program_main(s->program)->path);
    s->run.seen = html_seen;
    s->run.self = h;
    int64_t active, total = session_parameters(s, &active);
    html_fact(h, "parameters", str_thousands(a, total));
    html_fact(h, "active per token", str_thousands(a, active));
    html_fact(h, "tokens per step", str_thousands(a, s->settings->train.batch * s->settings->train.sequence));
    Programs p = {0};
    Graph *list[4];
    int n = 0;
    ElabOpts o = session_train_opts(s);
    html_program(h, "pass");
    p.pass = program_elaborate(s->program, a, &o);
    if (!p.pass || !session_passes(s, &p.pass, pipeline_train, &p.update)) return EXIT_WRONG;
    list[n++] = p.pass;
    html_program(h, "update");
    if (!p.update || !session_passes(s, &p.update, pipeline_update, NULL)) return EXIT_WRONG;
    list[n++] = p.update;
    const Target *t = session_target(s);
    if (!t) return EXIT_WRONG;
    CompileOpts co = session_compile_opts(s);
    char *json = session_json(s);
    co.info_json = json;
    s->compiled = t->compile(list, n, &co, s->diag);
    free(json);
    if (!s->compiled) return EXIT_WRONG;
    const RtPlan *plan = compiled_plan(s->compiled);
    html_fact(h, "persistent memory", arena_printf(a, "%.1f MB", 1e-6 * (double)plan->persistent_bytes));
    html_fact(h, "step arena", arena_printf(a, "%.1f MB", 1e-6 * (double)plan->step_bytes));
    html_fact(h, "kernels", arena_printf(a, "%u", plan->kernels.n));
    // kernels belong to the programs in the order they were recorded
    html_select(h, 0);
    name_kernels(h, p.pass, plan, "pass");
    html_select(h, 1);
    name_kernels(h, p.update, plan, "update");
    if (html_write(h, path)) return EXIT_DONE;
    diag_error(s->diag, (Span){0}, "%s: %s", path, strerror(errno));
    return EXIT_WRONG;
}

// ---- the command ------------------------------------------------------------------------------------------------

static int print_graph(Session *s, const Graph *g) {
    Cli *c = s->cli;
    const char *emit = cli_value(c, "emit");
    if (emit && !strcmp(emit, "dot")) {
        print_dot(g, stdout, s->arena);
        return EXIT_DONE;
    }
    Str text = {.arena = s->arena};
    graph_print(g, &text, (PrintOpts){.names = cli_flag(c, "names"), .spans = cli_flag(c, "spans"), .fold = !cli_flag(c, "full")});
    fputs(text.text, stdout);
    return EXIT_DONE;
}

static bool is_code(const char *emit) { return emit && (!strcmp(emit, "plan") || !strcmp(emit, "llvm") || !strcmp(emit, "asm")); }

static int print_code(Session *s, Graph *const *graphs, int n, const char *emit) {
    const Target *t = session_target(s);
    CompileOpts co = session_compile_opts(s);
    if (!s->settings) co.waves = 0;                        // a graph may be a pass of any number
    char *json = s->settings ? session_json(s) : NULL;
    co.info_json = json;
    Str text = {.arena = s->arena};
    bool ok = t && t->dump && t->dump(graphs, n, &co, emit, &text, s->diag);
    free(json);
    if (!ok) {
        if (t && !diag_n_errors(s->diag)) diag_error(s->diag, (Span){0}, "target %s has no %s to print", t->name, emit);
        return EXIT_WRONG;
    }
    if (s->weighed.text && !strcmp(emit, "plan")) fputs(s->weighed.text, stdout);
    if (text.text) fputs(text.text, stdout);
    return EXIT_DONE;
}

// Code is made of planned graphs.
static bool is_planned(Session *s, const Graph *g, const char *emit) {
    if (g->stage == PLANNED) return true;
    diag_error(s->diag, (Span){0}, "graph @%s is in stage %s; --emit %s is made of graphs in stage %s", g->name, stage_name[g->stage], emit,
               stage_name[PLANNED]);
    if (g->stage != WHOLE) return false;
    bool trains = false;
    for_each_node(g, n) trains |= n->op == OP_LOSS;
    Str list = {.arena = s->arena};
    for (const char *const *name = trains ? pipeline_train : pipeline_forward; *name; name++)
        str_printf(&list, "%s%s", list.n ? "," : "", *name);
    diag_help(s->diag, "--passes=%s", list.text);
    return false;
}

static int dump_ir(Cli *c, Session *s) {
    size_t n;
    const char *path = c->args.at[0];
    char *text = read_file(c->arena, path, &n);
    if (!text) return cli_fail(c, "%s: %s", path, strerror(errno));
    int n_graphs;
    Graph **g = graphs_parse(c->arena, c->diag, diag_add_file(c->diag, path, text, n), &n_graphs);
    if (!g) return cli_finish(c, EXIT_WRONG);
    const char *const *names = split_list(c->arena, cli_value(c, "passes"));
    for (int i = 0; i < n_graphs; i++) {
        Graph *update = NULL;
        s->train = (TrainOpts){.dtype = intern("f32"), .recompute = intern("cheap"), .optimizer = intern("adamw"), .beta1 = 0.9, .beta2 = 0.95,
                               .eps = 1e-8, .decay = 0.1, .clip = 1, .lr_expert = 1, .waves = 1};
        if (!session_passes(s, &g[i], names, &update)) return cli_finish(c, EXIT_WRONG);
        if (!is_code(cli_value(c, "emit"))) {
            print_graph(s, g[i]);
            if (update) print_graph(s, update);
        }
    }
    const char *emit = cli_value(c, "emit");
    for (int i = 0; is_code(emit) && i < n_graphs; i++)
        if (!is_planned(s, g[i], emit)) return cli_finish(c, EXIT_WRONG);
    return cli_finish(c, is_code(emit) ? print_code(s, g, n_graphs, emit) : EXIT_DONE);
}

int cmd_dump(Cli *c) {
    Session s = {.cli = c, .arena = c->arena, .diag = c->diag};
    const char *path = c->args.at[0], *after = cli_value(c, "after"), *emit = cli_value(c, "emit"), *program = cli_value(c, "program");
    RunOpts run = {.verify_each = cli_flag(c, "verify-each"), .time = cli_flag(c, "time-passes"), .log = stderr};
    if (emit && !in_list((const char *const[]){"ir", "dot", "plan", "llvm", "asm", NULL}, emit))
        return cli_usage(c, "--emit is one of ir, dot, plan, llvm, asm, not '%s'", emit);
    if (program && !in_list((const char *const[]){"pass", "update", "eval", "run", NULL}, program))
        return cli_usage(c, "--program is one of pass, update, eval, run, not '%s'", program);
    const char *const *passes = cli_value(c, "passes") ? split_list(c->arena, cli_value(c, "passes")) : NULL;
    run.disable = cli_value(c, "disable") ? split_list(c->arena, cli_value(c, "disable")) : NULL;
    for (const char *const *p = passes; p && *p; p++)
        if (!known_pass(c, *p)) return cli_finish(c, EXIT_WRONG);
    for (const char *const *p = run.disable; p && *p; p++)
        if (!known_pass(c, *p)) return cli_finish(c, EXIT_WRONG);
    if (after && !known_pass(c, after)) return cli_finish(c, EXIT_WRONG);
    size_t n = strlen(path);
    if (n > 3 && !strcmp(path + n - 3, ".ir")) {
        s.run = run;
        return dump_ir(c, &s);
    }
    if (!session_open(&s, c, path, 0, NULL)) return cli_finish(c, EXIT_WRONG);
    share(&s);
    s.run = run;
    int status = EXIT_WRONG;
    if (cli_value(c, "html")) {
        status = dump_html(&s, cli_value(c, "html"));
    } else if (is_code(emit)) {
        Programs p;
        if (session_programs(&s, WANT_TRAIN | WANT_EVAL, &p)) {
            Graph *list[] = {p.pass, p.update, p.eval};
            Graph *one = !program ? NULL : !strcmp(program, "update") ? p.update : !strcmp(program, "eval") ? p.eval : p.pass;
            if (program && !strcmp(program, "run")) one = session_programs(&s, WANT_RUN, &p) ? p.run : NULL;
            status = program ? one ? print_code(&s, &one, 1, emit) : EXIT_WRONG : print_code(&s, list, 3, emit);
        }
    } else {
        const char *want = program ? program : "pass";
        bool training = !strcmp(want, "pass") || !strcmp(want, "update");
        const char *const *pipeline = passes ? passes : training ? pipeline_train : pipeline_forward;
        if (after && strcmp(after, "input") != 0 && !in_list(pipeline, after) && !in_list(pipeline_update, after))
            return cli_fail(c, "pass '%s' is not in the pipeline of @%s", after, want);
        if (after && strcmp(want, "update") != 0) pipeline = cut_pipeline(c->arena, pipeline, after);
        ElabOpts o = session_train_opts(&s);
        if (!strcmp(want, "eval")) o.kind = ELAB_EVAL, o.labels = true;
        if (!strcmp(want, "run")) o = session_run_opts(&s);
        Graph *g = program_elaborate(s.program, c->arena, &o), *update = NULL;
        s.own_parameters = !training;
        bool ok = g && (strcmp(want, "run") ? session_passes(&s, &g, pipeline, &update) : session_run_passes(&s, &g, pipeline));
        if (ok) {
            if (strcmp(want, "update") != 0) status = print_graph(&s, g);
            else if (!update) diag_error(c->diag, (Span){0}, "these passes make no @update: optimizer is not among them");
            else if (session_passes(&s, &update, after ? cut_pipeline(c->arena, pipeline_update, after) : pipeline_update, NULL))
                status = print_graph(&s, update);
        }
    }
    session_close(&s);
    return cli_finish(c, status);
}
