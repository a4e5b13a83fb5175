// PLANNED graphs become one plan.
//
//     values      where each lives: where plan-memory says, a persistent tensor, a constant, its operand
//     kernels     one per distinct key
//     steps       one per node that computes; copies for what leaves the graph and can't be written in place
//
// Values that leave a graph (outputs, gradients of a single-pass step, updates) are made where they belong
// when that is legal: their producer then writes the persistent buffer and no copy step follows.
#include <string.h>
#include "codegen/planning.h"

// Ops whose result is their operand's memory.
static bool is_alias(const Node *n) { return n->op == OP_RESHAPE || n->op == OP_STOP_GRADIENT || n->op == OP_WAIT; }

static const Value *base_of(const Value *v) {
    while (is_alias(v->node)) v = v->node->in[0];
    return v;
}

static Loc const_loc(Plan *p, const Node *n) {
    const Type *t = &n->out[0].type;
    return (Loc){block_put(&p->consts, const_elements(p->a, n, t->dtype), (size_t)type_bytes(t)), RT_CONST};
}

// A value made by a step of this graph, which may be made elsewhere instead.
static bool is_movable(const Value *v) {
    const Node *n = v->node;
    return !op_is(n->op, SOURCE) && !is_alias(n) && n->op != OP_CACHE;
}

// In place: the step that makes v reads the tensor at most elementwise (one that gathers parts, not at all), and
// nobody reads the tensor's old contents later.
static bool may_overwrite(const Graph *g, const Value *v, const char *name) {
    const Node *maker = v->node;
    if (maker->op != OP_FUSED && maker->op != OP_ALL_GATHER && !op_is(maker->op, ELEMENTWISE)) return false;
    if (maker->op == OP_FUSED)
        for_each_node(maker->attr.body, n) if (n->op != OP_ARG && n->op != OP_CONST && n->op != OP_YIELD &&
                                               !op_is(n->op, ELEMENTWISE)) return false;
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++) {
            const Value *base = base_of(n->in[i]);
            const Node *source = base->node;
            if ((source->op != OP_PARAM && source->op != OP_STATE) || source->attr.name != name) continue;
            if (n->id > maker->id && !is_alias(n)) return false;
            if (n == maker && !type_eq(&n->in[i]->type, &v->type)) return false;
        }
    }
    return true;
}

static Name accumulated_name(Plan *p, const Node *n) {
    return intern(arena_printf(p->a, "grad/%s", n->attr.name));
}

// Sets loc for every value of the program, tensors for what it reads and leaves.  moved[id]: not at its own
// offset.
static void place_values(Plan *p, Graph *g) {
    Prog *prog = p->prog;
    int n_values = graph_number(g);
    prog->loc = arena_array(p->a, Loc, n_values);
    bool *moved = arena_array(p->a, bool, n_values);
    for (int i = 0; i < n_values; i++) prog->loc[i].arena = NOWHERE;
    for_each_node(g, n) {
        if (n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_INPUT) {
            int t = plan_source_tensor(p, n);
            if (t < 0) return;
            prog->loc[n->out[0].id] = plan_tensor_loc(p, t);
        } else if (n->op == OP_CONST) {
            prog->loc[n->out[0].id] = const_loc(p, n);
        } else {
            for (int i = 0; i < n->n_out; i++)
                if (n->out[i].arena >= 0) prog->loc[n->out[i].id] = (Loc){n->out[i].offset, n->out[i].arena};
        }
    }
    // offsets of routes live in persistent memory: whoever has rows of that symbol may read them
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind != SYM_RAGGED || !s->extent) continue;
        const Value *v = base_of(s->extent);
        if (!is_movable(v)) continue;
        prog->loc[v->id] = (Loc){plan_add_persistent(p, type_bytes(&v->type)), RT_PERSISTENT};
        moved[v->id] = true;
    }
    int64_t ordinal = 0;
    for_each_node(g, n) {
        bool output = n->op == OP_LOSS || n->op == OP_METRIC || n->op == OP_RETURN;
        if (!output && n->op != OP_ACCUMULATE && n->op != OP_UPDATE) continue;
        const Value *v = base_of(n->in[0]);
        int t;
        if (output) {
            ordinal = 0;
            for_each_node(g, m)
                if (m == n) break;
                else if (m->op == n->op && m->attr.name == n->attr.name) ordinal++;
            t = plan_output_tensor(p, n, ordinal);
        } else if (n->op == OP_ACCUMULATE) {
            t = plan_named_tensor(p, &n->in[0]->type, accumulated_name(p, n), RT_GRAD, n);
        } else {
            t = plan_find_tensor(p, n->attr.name);
            if (t < 0) t = plan_named_tensor(p, &n->in[0]->type, n->attr.name, RT_STATE, n);
        }
        if (t < 0) return;
        n->flags = t;                                  // until its step is emitted
        if (!is_movable(v) || moved[v->id]) continue;
        if (n->op == OP_ACCUMULATE && p->opts->waves != 1) continue;
        if (n->op == OP_UPDATE && !may_overwrite(g, v, n->attr.name)) continue;
        prog->loc[v->id] = plan_tensor_loc(p, t);
        moved[v->id] = true;
    }
    for_each_node(g, n) {
        if (is_alias(n)) prog->loc[n->out[0].id] = prog->loc[n->in[0]->id];
        if (n->op == OP_CACHE) prog->loc[n->out[0].id] = prog->loc[n->in[0]->id];
    }
}

static void emit_program(Plan *p, Graph *g) {
    Prog *prog = p->prog;
    prog->first_step = p->steps.n;
    place_values(p, g);
    if (diag_n_errors(p->d)) return;
    for_each_node(g, n) {
        Node *member[CHUNKED_RUN];
        int n_members = n->attr.chunks ? chunked_run(n, member) : 0;
        if (n_members) {
            n_next = plan_add_chunked_run(p, member, n_members)->next;
            continue;
        }
        switch (n->op) {
        case OP_PARAM:
        case OP_STATE:
        case OP_INPUT:
        case OP_CONST:
        case OP_RESHAPE:
        case OP_STOP_GRADIENT:
        case OP_UPDATE: break;
        case OP_LOSS: case OP_METRIC: case OP_RETURN:
            plan_add_copy(p, n, &n->in[0]->type, plan_loc_of(p, n->in[0]), plan_tensor_loc(p, n->flags));
            break;
        case OP_ACCUMULATE:
            if (p->opts->waves == 1)
                plan_add_copy(p, n, &n->in[0]->type, plan_loc_of(p, n->in[0]), plan_tensor_loc(p, n->flags));
            else plan_add_accumulate(p, n, plan_tensor_loc(p, n->flags));
            break;
        case OP_WAIT:
            if (n->in[0]->node->attr.chunks) plan_add_waits_of_chunks(p, n);
            else plan_add_node(p, n);
            break;
        default: plan_add_node(p, n);
        }
    }
    // reads see the old contents, so updates come last; one that reads a tensor which another writes is saved
    // first
    int64_t extra = g->arena_bytes + prog->chunk_bytes;
    for_each_node(g, n) {
        if (n->op != OP_UPDATE) continue;
        const Node *source = base_of(n->in[0])->node;
        if (source->op != OP_STATE && source->op != OP_PARAM) continue;
        extra = (extra + 63) & ~INT64_C(63);
        plan_add_copy(p, n, &n->in[0]->type, plan_loc_of(p, n->in[0]), (Loc){extra, RT_STEP});
        prog->loc[n->in[0]->id] = (Loc){extra, RT_STEP};
        extra += type_bytes(&n->in[0]->type);
    }
    for_each_node(g, n)
        if (n->op == OP_UPDATE)
            plan_add_copy(p, n, &n->in[0]->type, plan_loc_of(p, n->in[0]), plan_tensor_loc(p, n->flags));
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind != SYM_RAGGED || !s->extent) continue;
        RtSym *r = &p->syms.at[plan_sym(p, s)];
        Loc l = plan_loc_of(p, s->extent);
        if (l.arena == RT_CONST) {                     // expert choice: every expert takes its fill
            r->fixed = ((const int32_t *)(p->consts.at + l.offset))[s->groups * s->leaves];
            continue;
        }
        r->from_arena = l.arena;
        r->from_offset = l.offset;
        r->from_index = s->groups * s->leaves;
    }
    int64_t workspace = (extra + 63) & ~INT64_C(63);
    for (int i = prog->first_step; i < p->steps.n; i++)
        for (uint32_t j = 0; j < p->steps.at[i].n_args; j++) {
            RtArg *arg = &p->args.at[p->steps.at[i].first_arg + j];
            if (arg->arena == WORKSPACE_MARK) *arg = (RtArg){.offset = workspace, .arena = RT_STEP};
        }
    RtProgram r = {.name = plan_add_text(p, g->name),
                   .first_step = (uint32_t)prog->first_step,
                   .n_steps = (uint32_t)(p->steps.n - prog->first_step),
                   .step_bytes = workspace + prog->workspace};
    vec_push(p->a, &p->programs, r);
}

bool graphs_have_one_chain(Graph *const *programs, int n) {
    for (int i = 0; i < n; i++)
        for_each_node(programs[i], x) if (x->attr.one_chain) return true;
    return false;
}

EmittedPlan *emit_plan(Arena *a, Graph *const *programs, int n, const PlanOpts *opts, Diag *d) {
    Plan *p = arena_new(a, Plan);
    PtrMap map = {.arena = a};
    *p = (Plan){.a = a, .d = d, .opts = opts, .text = {.arena = a}, .consts = {.arena = a}, .texts = map, .keys = map,
                .names = map, .places = map, .exchanges = map, .chunk_offsets = map};
    str_add_n(&p->text, "", 1);
    plan_add_span(p, (Span){0});
    for (int i = 0; i < n; i++) // fixed and host-set symbols first: their numbers go into code
        for (int j = 0; j < programs[i]->n_syms; j++)
            if (programs[i]->sym[j]->kind != SYM_RAGGED) plan_sym(p, programs[i]->sym[j]);
    for (int i = 0; i < n; i++)                        // then parameters, in the order of the text
        for_each_node(programs[i], m)
            if (m->op == OP_PARAM && plan_source_tensor(p, m) < 0) return NULL;
    for (int i = 0; i < n; i++) {
        p->prog = arena_new(a, Prog);
        p->prog->g = programs[i];
        emit_program(p, programs[i]);
        if (diag_n_errors(d)) return NULL;
    }
    plan_mark_experts(p);
    EmittedPlan *e = arena_new(a, EmittedPlan);
    e->plan = plan_finish(p, programs, n);
    e->n_kernels = p->kernels.n;
    e->kernel = p->kernels.at;
    if (opts->machine) {
        Machine *machine = arena_new(a, Machine);
        *machine = *opts->machine;
        e->machine = machine;
    }
    return e;
}
