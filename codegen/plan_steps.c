// Steps of a plan: one for each node that computes, more where experts are taken in chunks, copies and sums over waves.
#include <assert.h>
#include "codegen/planning.h"

Loc plan_loc_of(const Plan *p, const Value *v) {
    Loc l = p->prog->loc[v->id];
    assert(l.arena != NOWHERE);
    return l;
}

static void push_arg(Plan *p, Loc l) {
    RtArg arg = {.offset = l.offset, .arena = (uint32_t)l.arena};
    vec_push(p->a, &p->args, arg);
}

enum { LOCS = 4 * MAX_NAMED + 32 };    // most operands and results of a node

static void add_bytes(Plan *p, RtStep *s, const Type *t) {
    double bytes = (double)type_bytes(t);
    s->bytes += bytes;
    for (int i = 0; i < t->ndim; i++) {
        const Sym *sym = t->dim[i].sym;
        if (!sym || sym->kind == SYM_LEAF) continue;
        int index = plan_sym(p, sym), part = 0;
        while (part < s->n_parts && s->part[part].sym != index) part++;
        if (part == RT_MAX_PARTS) continue;
        if (part == s->n_parts) s->part[s->n_parts++].sym = index;
        s->part[part].bytes += bytes;
        return;
    }
}

enum { HAS_SEQUENCES = 16 };

// Of operand i: no more is read of it than this.  A slice, and rows by number, are as large as what they become.
static const Type *read_of(const Node *n, int i) {
    const Type *all = &n->in[i]->type, *some = all;
    if (n->op == OP_CACHE && i < 2) return &n->in[1]->type;
    if (n->op == OP_ATTENTION && (n->attr.has & HAS_SEQUENCES) && (i == 1 || i == 2)) {      // of pools, what sequences have so far
        Type *read = arena_new(n->graph->arena, Type);
        *read = *all;
        read->dim[1] = (Dim){1, graph_find_sym(n->graph, "C")};
        return read->dim[1].sym ? read : all;
    }
    if ((n->op == OP_GATHER_ROWS || n->op == OP_SLICE || n->op == OP_TAKE) && i == 0) some = &n->out[0].type;
    if (n->op == OP_FUSED)
        for_each_node(n->attr.body, m) for (int k = 0; k < m->n_in; k++) {
            const Node *arg = m->in[k]->node;
            if (arg->op != OP_ARG || arg->attr.k != i) continue;
            if (m->op != OP_GATHER_ROWS || k > 0) return all;
            some = &m->out[0].type;
        }
    return type_bytes(some) < type_bytes(all) ? some : all;
}

// What the step moves and computes.
static void measure_step(Plan *p, RtStep *s, const KernelNode *k) {
    const Node *n = k->node;
    for (int i = 0; i < n->n_in; i++) add_bytes(p, s, read_of(n, i));
    for (int i = 0; i < n->n_out; i++) add_bytes(p, s, n->op == OP_CACHE ? &n->in[1]->type : &n->out[i].type);
    s->work = node_work(n);
    if (n->op == OP_GROUPED_MATMUL || n->op == OP_GROUPED_DW)
        for (int i = 0; i < k->n_ragged; i++) s->experts = k->ragged[i]->groups;
}

static uint32_t results_in_place(const Node *n, const Loc *loc) {
    uint32_t in_place = 0;
    for (int j = 0; j < n->n_out && j < 32; j++)
        for (int i = 0; i < n->n_in; i++)
            if (loc[i].arena == loc[n->n_in + j].arena && loc[i].offset == loc[n->n_in + j].offset) in_place |= 1u << j;
    return in_place;
}

// One step: node n with its operands and results at the given places.
static void add_step(Plan *p, const Node *n, const Loc *loc) {
    KernelNode *k = plan_kernel_node(p, n);
    RtStep step = {.first_arg = (uint32_t)p->args.n,
                   .span = plan_add_span(p, n->at),
                   .defines_sym = -1,
                   .backward = n->backward,
                   .op = plan_add_text(p, op_info[n->op].name),
                   .path = plan_add_text(p, n->path)};
    measure_step(p, &step, k);
    k->bytes = step.bytes;
    k->in_place = results_in_place(n, loc);
    KernelDesc desc;
    step.kernel = (uint32_t)(op_is(n->op, COMM) ? plan_exchange_kernel(p, k, &desc) : plan_kernel_of(p, k, &desc));
    step.flops = desc.flops;
    for (int i = 0; i < kernel_n_args(k); i++) push_arg(p, loc[i]);
    for (int i = 0; i < k->n_ragged; i++) push_arg(p, plan_loc_of(p, k->ragged[i]->extent));
    if (desc.workspace) {
        push_arg(p, (Loc){0, WORKSPACE_MARK});
        if (desc.workspace > p->prog->workspace) p->prog->workspace = desc.workspace;
    }
    step.n_args = (uint32_t)p->args.n - step.first_arg;
    for (int i = 0; i < RT_MAX_PHASES; i++) step.tasks[i] = plan_tasks(p, desc.tasks[i]);
    for (int i = 0; i < p->prog->g->n_syms; i++) {
        const Sym *s = p->prog->g->sym[i];
        if (s->kind == SYM_RAGGED && s->extent && s->extent->node == n) {
            if (step.defines_sym >= 0)
                diag_error(p->d, n->at, "a step can define the rows of one route, this one has two");
            step.defines_sym = plan_sym(p, s);
        }
    }
    vec_push(p->a, &p->steps, step);
    p->prog->n_steps++;
}

static void shrink_step(RtStep *s, double share) {
    s->flops *= share;
    s->bytes *= share;
    for (int i = 0; i < s->n_parts; i++) s->part[i].bytes *= share;
}

static void locs_of(const Plan *p, const Node *n, Loc *loc) {
    assert(n->n_in + n->n_out <= LOCS);
    for (int i = 0; i < n->n_in; i++) loc[i] = plan_loc_of(p, n->in[i]);
    for (int i = 0; i < n->n_out; i++) loc[n->n_in + i] = plan_loc_of(p, &n->out[i]);
}

void plan_add_node(Plan *p, const Node *n) {
    Loc loc[LOCS];
    locs_of(p, n, loc);
    add_step(p, n, loc);
}

// ---- chunks --------------------------------------------------------------------------------------------

static int64_t chunk_numbers_bytes(const Node *products) {
    return contraction_of(products).b.dim[0].n * RT_CHUNK_NUMBERS * (int64_t)sizeof(int32_t);
}

// Where the offsets of all chunks are; a step in front makes them, once for all runs that are cut alike.
static Loc chunk_offsets(Plan *p, const Node *n, const Value *offsets) {
    Name cut = intern(arena_printf(p->a, "%p %d %d", (const void *)offsets, p->chunks, p->own));
    int64_t there = map_number(&p->chunk_offsets, cut, -1);
    if (there >= 0) return (Loc){there, RT_STEP};
    Loc to = {p->prog->g->arena_bytes + p->prog->chunk_bytes, RT_STEP};
    map_put_number(&p->chunk_offsets, cut, to.offset);
    p->prog->chunk_bytes += (chunk_numbers_bytes(n) * (p->chunks + RT_CHUNKS_MORE) + 63) & ~INT64_C(63);
    const Node *by = offsets->node;
    RtGroup group = RT_GROUP_EXP;
    exchange_group(by, &group);
    RtExchange e = {.kind = RT_CHUNK_OFFSETS,
                    .group = (int32_t)group,
                    .dtype = I32,
                    .experts = (int32_t)by->attr.experts,
                    .slots = (int32_t)by->attr.experts + n->graph->mesh.replicas,
                    .leaves = (int32_t)((by->in[0]->type.dim[0].n - 1) / by->attr.experts),
                    .chunks = p->chunks,
                    .own = p->own,
                    .sym = -1,
                    .where = plan_add_text(p, "chunks")};
    const char *key = intern(arena_printf(p->a, "chunk_offsets %d %d %d %d %d", e.experts, e.leaves, e.chunks, e.own, e.group));
    PlanKernel kernel = {.key = key, .symbol = EXCHANGE_SYMBOL, .node = {.node = by}, .n_phases = 1, .is_exchange = true};
    RtStep step = {.kernel = (uint32_t)plan_kernel_named(p, kernel, 1, &e, sizeof e),
                   .first_arg = (uint32_t)p->args.n,
                   .n_args = 2,
                   .span = plan_add_span(p, n->at),
                   .defines_sym = -1,
                   .op = plan_add_text(p, "chunk_offsets"),
                   .path = plan_add_text(p, n->path)};
    for (int i = 0; i < RT_MAX_PHASES; i++) step.tasks[i] = plan_tasks(p, tasks_fixed(1));
    push_arg(p, plan_loc_of(p, offsets));
    push_arg(p, to);
    vec_push(p->a, &p->steps, step);
    p->prog->n_steps++;
    return to;
}

// Can the node's kernel run for some experts only?  The reference computes everything each time.
static bool runs_in_chunks(Plan *p, const Node *n) {
    const KernelTemplate *t = p->opts->template_of ? p->opts->template_of(n->op) : NULL;
    KernelNode *k = plan_kernel_node(p, n);
    KernelDesc desc = {.key = {.arena = p->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) desc.tasks[i] = tasks_fixed(1);
    return t && t->describe(k, &desc);
}

// Of the rows that a run of chunks has for itself, or of all.
static double share_of_chunk(const Plan *p, const Node *n, int chunk) {
    RtGroup group = RT_GROUP_EXP;
    exchange_group(n->in[2]->node, &group);
    double slots = (double)contraction_of(n).b.dim[0].n, own = p->own ? 1.0 / rt_group_size(n->graph->mesh, group) : 0, first = (p->own - 1) / slots;
    if (chunk < p->chunks) return (1 - own) / p->chunks;
    return chunk == p->chunks + RT_CHUNK_OWN_FIRST ? own * first : chunk == p->chunks + RT_CHUNK_OWN_LAST ? own * (1 - first) : 1;
}

static void add_products(Plan *p, const Node *n, int chunk) {
    double share = share_of_chunk(p, n, chunk);
    Loc loc[LOCS];
    if (share == 0) return;
    locs_of(p, n, loc);
    if (runs_in_chunks(p, n)) {
        loc[2] = chunk_offsets(p, n, n->in[2]);
        loc[2].offset += chunk * chunk_numbers_bytes(n);
    }
    add_step(p, n, loc);
    shrink_step(&p->steps.at[p->steps.n - 1], share);
}

static void add_all_products(Plan *p, Node *const *member, int n, int chunk) {
    for (int i = 0; i < n; i++)
        if (member[i]->op == OP_GROUPED_MATMUL) add_products(p, member[i], chunk);
}

// Rows of one's own, which are there; chunk after chunk: its rows are waited for, multiplied, sent back; the rest of one's own.
// If a kernel can't be cut, all are multiplied behind the last wait.  Returns the last node of the run.
Node *plan_add_chunked_run(Plan *p, Node *const *member, int n) {
    bool by_chunk = true;
    p->chunks = (int)member[0]->attr.chunks;
    p->own = (int)member[0]->attr.own;
    for (int i = 0; i < n; i++) {
        if (member[i]->op != OP_GROUPED_MATMUL) continue;
        if (runs_in_chunks(p, member[i])) chunk_offsets(p, member[i], member[i]->in[2]);
        else by_chunk = false;
    }
    if (by_chunk && p->own) add_all_products(p, member, n, p->chunks + RT_CHUNK_OWN_FIRST);
    for (p->chunk = 0; p->chunk < p->chunks; p->chunk++)
        for (int i = 0; i < n; i++) {
            if (member[i]->op != OP_GROUPED_MATMUL) plan_add_node(p, member[i]);
            else if (by_chunk) add_products(p, member[i], p->chunk);
            else if (p->chunk + 1 == p->chunks) add_products(p, member[i], p->chunks + RT_CHUNK_ALL);
        }
    if (by_chunk && p->own) add_all_products(p, member, n, p->chunks + RT_CHUNK_OWN_LAST);
    p->chunk = p->chunks = p->own = 0;
    return member[n - 1];
}

// The end of rows that were sent back by chunks.
void plan_add_waits_of_chunks(Plan *p, const Node *wait) {
    p->chunks = (int)wait->in[0]->node->attr.chunks;
    for (p->chunk = 0; p->chunk < p->chunks; p->chunk++) plan_add_node(p, wait);
    p->chunk = p->chunks = 0;
}

// ---- steps of no node -----------------------------------------------------------------------------------

// A node that no graph holds, for steps the plan adds: operands are stand-ins of the given types.
static Node *stand_in(Plan *p, const Node *like, Op op, int n_in, const Type *const *types,
                      const Type *result) {
    Node *n = arena_new(p->a, Node);
    *n = (Node){.op = op, .n_in = (int16_t)n_in, .n_out = 1, .at = like->at, .path = like->path,
                .backward = like->backward || like->op == OP_ACCUMULATE};
    n->in = arena_array(p->a, Value *, n_in);
    for (int i = 0; i < n_in; i++) {
        n->in[i] = arena_new(p->a, Value);
        n->in[i]->type = *types[i];
    }
    n->out = arena_new(p->a, Value);
    n->out[0] = (Value){.node = n, .type = *result};
    return n;
}

void plan_add_copy(Plan *p, const Node *like, const Type *t, Loc from, Loc to) {
    if (from.arena == to.arena && from.offset == to.offset) return;
    add_step(p, stand_in(p, like, OP_COPY, 1, &t, t), (Loc[]){from, to});
}

static void body_add(Arena *a, Graph *body, Node *n) {
    (void)a;
    n->graph = body;
    n->prev = body->last;
    if (body->last) body->last->next = n; else body->first = n;
    body->last = n;
    body->n_nodes++;
}

static Value *body_node(Arena *a, Graph *body, Op op, int n_in, Value *const *in, const Type *t, Attrs attr) {
    Node *n = arena_new(a, Node);
    *n = (Node){.op = op, .n_in = (int16_t)n_in, .n_out = t ? 1 : 0, .attr = attr};
    n->in = arena_array(a, Value *, n_in ? n_in : 1);
    for (int i = 0; i < n_in; i++) n->in[i] = in[i];
    if (t) {
        n->out = arena_new(a, Value);
        n->out[0] = (Value){.node = n, .type = *t};
    }
    body_add(a, body, n);
    return n->out;
}

// grad = wave == 0 ? d : grad + d, in place.
void plan_add_accumulate(Plan *p, const Node *acc, Loc grad) {
    const Type *t = &acc->in[0]->type;
    Type i32 = type_make(I32, 0, NULL), bool_type = type_make(BOOL, 0, NULL);
    Node like = {.at = acc->at, .attr = {.name = intern("wave")}};
    int wave = plan_named_tensor(p, &i32, "wave", RT_INPUT, &like);
    if (wave < 0) return;
    Graph *body = graph_new(p->a, "body");
    body->parent = (Graph *)p->prog->g;
    Arena *a = p->a;
    Value *d = body_node(a, body, OP_ARG, 0, NULL, t, (Attrs){.k = 0, .dtype = t->dtype, .dims = dims_of(t)});
    Value *old =
        body_node(a, body, OP_ARG, 0, NULL, t, (Attrs){.k = 1, .dtype = t->dtype, .dims = dims_of(t)});
    Value *w = body_node(a, body, OP_ARG, 0, NULL, &i32, (Attrs){.k = 2, .dtype = I32});
    Value *zero = body_node(a, body, OP_CONST, 0, NULL, &i32, (Attrs){.dtype = I32});
    Value *first = body_node(a, body, OP_EQ, 2, (Value *[]){w, zero}, &bool_type, (Attrs){0});
    Value *sum = body_node(a, body, OP_ADD, 2, (Value *[]){old, d}, t, (Attrs){0});
    Value *next = body_node(a, body, OP_SELECT, 3, (Value *[]){first, d, sum}, t, (Attrs){0});
    body_node(a, body, OP_YIELD, 1, (Value *[]){next}, NULL, (Attrs){0});
    Node *n = stand_in(p, acc, OP_FUSED, 3, (const Type *[]){t, t, &i32}, t);
    n->attr.body = body;
    add_step(p, n, (Loc[]){plan_loc_of(p, acc->in[0]), grad, plan_tensor_loc(p, wave), grad});
}
