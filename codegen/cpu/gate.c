// A gate as one kernel: the pieces that open_gates.c would make of it, each with the code of its own template, their
// phases laid over each other.
//
//     phase 0   a task is a run of tokens         scores, choice, weights; chunks of sums; histograms
//     phase 1   one task                          trees over chunks; histograms become places, offsets
//     phase 2   runs again                        rows of slots, slots of rows
//
// Where a queue drops tokens the route counts what is kept: two phases more.  What a piece reads of the same run needs no
// barrier, anything else the end of a phase.  Pieces that are not cut by tokens (random numbers by leaf, queues with
// priorities) have tasks of their own in a phase.  Counts of what the route counts too are copied from there.
//
// A gate whose tokens are known only when it runs, or one that needs more than RT_MAX_PHASES, is opened.
#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include "codegen/cpu/cg.h"
#include "codegen/cpu/route.h"
#include "codegen/gates.h"
#include "ir/base/vec.h"

enum { MOST_TOKENS = 256, ENOUGH_TOKENS = 64, FEWEST_TOKENS = 16, RUN_BYTES = 64 << 10 };

typedef enum { BY_RUN, ALONE, OF_ITS_OWN } Cut;      // how tasks of a phase are cut

typedef struct Piece Piece;
struct Piece {
    KernelNode kernel;
    const KernelTemplate *made_by;
    KernelDesc desc;
    bool by_run;                     // its first phase goes by runs of tokens
    int  phase[RT_MAX_PHASES];       // of the gate, by phase of the piece
    Cut  cut[RT_MAX_PHASES];
    const Piece *counted_by;         // COUNT: a route with the same histograms
    int64_t workspace;               // where its own begins
    LV   fn;
};

// Where a value lies, and from which phase on.  in_runs: tasks of that phase may read it in their own run.
typedef struct { enum { OPERAND, RESULT, INSIDE, TABLE } kind; int64_t at; int phase; bool in_runs; } Place;

typedef struct {
    Arena *a;
    const KernelNode *gate;
    GatePieces opened;
    VEC(Piece *) pieces;
    Place  *place;                   // by value of the opened graph
    int64_t tokens, run, runs;
    int     n_phases;
    int64_t workspace;
} Gate;

// ---- pieces --------------------------------------------------------------------------------------------

static const Value *base_of(const Value *v) {
    while (v->node->op == OP_RESHAPE || v->node->op == OP_STOP_GRADIENT) v = v->node->in[0];
    return v;
}

static bool is_made(const Node *n) {
    return n->op != OP_ARG && n->op != OP_CONST && n->op != OP_RESHAPE && n->op != OP_STOP_GRADIENT;
}

static bool is_sized(const Type *t, const Sym *own) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym && t->dim[i].sym != own && t->dim[i].sym->kind != SYM_LEAF) return false;
    return true;
}

static bool all_sized(const Node *n) {
    const Sym *own = n->op == OP_ROUTE ? n->attr.sym : NULL;
    bool ok = true;
    for (int i = 0; i < n->n_in; i++) ok &= is_sized(&n->in[i]->type, NULL);
    for (int i = 0; i < n->n_out; i++) ok &= is_sized(&n->out[i].type, own);
    return ok;
}

// The rows that tasks of its first phase go through.
static int64_t rows_of(const Node *n) {
    const Value *v = n->op == OP_FUSED ? n->attr.body->last->in[0] : n->out;
    if (n->op == OP_REDUCE_MAX && n->attr.axis + 1 < n->in[0]->type.ndim) return dims_bound(&n->in[0]->type, 0, (int)n->attr.axis);
    while (v->node->op == OP_RESHAPE) v = v->node->in[0];
    return rows_bound(&v->type);
}

// Do tasks of the piece's first phase keep to runs of `run` tokens?
static bool goes_by_run(const Gate *g, const Node *n, int64_t run) {
    switch (n->op) {
    case OP_FUSED: case OP_COPY: case OP_REDUCE_MAX: return rows_of(n) > 0 && rows_of(n) % g->tokens == 0;
    case OP_RANDOM: return (n->n_in == 1 || !n->in[1]->type.ndim) && rows_of(n) % g->tokens == 0 && rows_of(n) / g->tokens * run * type_cols(&n->out[0].type) % 4 == 0;
    case OP_SUM: return sum_tasks_of_run(n, g->tokens, run) > 0;
    case OP_COUNT: case OP_ROUTE: return slots_keep_to_runs(n, g->tokens, run);
    case OP_QUEUE: return n->n_in == 1 && slots_keep_to_runs(n, g->tokens, run);
    default: return false;
    }
}

static int64_t bytes_of_token(const Gate *g) {
    int64_t bytes = 0;
    for_each_node(g->opened.g, n)
        for (int i = 0; i < n->n_out; i++)
            if (is_made(n) && rows_bound(&n->out[i].type) == g->tokens) bytes += type_bytes(&n->out[i].type) / g->tokens;
    return bytes;
}

// The run by which most pieces go.
static bool choose_run(Gate *g) {
    const Type *e = &g->opened.route->in[0]->type;
    g->tokens = rows_bound(e);
    if (g->tokens < 1) return false;
    int64_t bytes = bytes_of_token(g), limit = bytes > 0 ? RUN_BYTES / bytes : MOST_TOKENS;
    limit = limit > MOST_TOKENS ? MOST_TOKENS : limit < ENOUGH_TOKENS ? ENOUGH_TOKENS : limit;
    int most = 0;
    for (int64_t run = limit < g->tokens ? limit : g->tokens; run > 0; run--) {
        int n = 0;
        for_each_node(g->opened.g, x) n += is_made(x) && goes_by_run(g, x, run);
        if (n <= most || (run < FEWEST_TOKENS && g->run)) continue;
        most = n;
        g->run = run;
    }
    if (!g->run) return false;
    g->runs = (g->tokens + g->run - 1) / g->run;
    return true;
}

// What the template understands as a run.
static int64_t grain_of(const Gate *g, const Node *n) {
    bool of_slots = n->op == OP_COUNT || n->op == OP_QUEUE || n->op == OP_ROUTE;
    return of_slots || n->op == OP_SUM ? g->run : rows_of(n) / g->tokens * g->run;
}

static bool add_piece(Gate *g, const Node *n) {
    Piece *p = arena_new(g->a, Piece);
    *p = (Piece){.made_by = cpu_template(n->op), .by_run = goes_by_run(g, n, g->run)};
    p->kernel = (KernelNode){.node = n, .machine = g->gate->machine, .target = g->gate->target, .grain = p->by_run ? grain_of(g, n) : 0};
    p->desc = (KernelDesc){.key = {.arena = g->a}, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) p->desc.tasks[i] = tasks_fixed(1);
    if (!p->made_by || !all_sized(n) || !p->made_by->describe(&p->kernel, &p->desc) || p->desc.n_rounds > 1) return false;
    p->kernel.workspace = p->desc.workspace > 0;
    vec_push(g->a, &g->pieces, p);
    return true;
}

static int64_t take_workspace(Gate *g, int64_t bytes) {
    int64_t at = g->workspace;
    g->workspace += (bytes + 127) / 64 * 64;
    return at;
}

// ---- phases --------------------------------------------------------------------------------------------

static int64_t tasks_of(const Piece *p, int phase) {
    const TaskCount *t = &p->desc.tasks[phase];
    int64_t rows = t->n * (t->sym ? t->sym->bound : 1), cut = (rows + t->grain - 1) / t->grain + t->extra;
    return (cut < rows ? cut : rows) * t->times;
}

// The first phase in which a piece cut like this may read the value.
static int readable(const Gate *g, const Value *v, Cut cut) {
    const Place *p = &g->place[base_of(v)->id];
    return p->phase + !(p->in_runs && cut == BY_RUN);
}

static Cut cut_of(const Piece *p, int phase) {
    if (!p->by_run) return tasks_of(p, phase) == 1 ? ALONE : OF_ITS_OWN;
    return phase == 1 ? ALONE : BY_RUN;                // chunks and histograms, their sums, what follows from these
}

static bool has_equal_histograms(const Piece *count, const Piece *route) {
    return route->by_run && count->by_run && base_of(count->kernel.node->in[0]) == base_of(route->kernel.node->in[0]) &&
           slots_are_alike(count->kernel.node, route->kernel.node);
}

static const Piece *route_piece(const Gate *g) {
    for (int i = 0; i < g->pieces.n; i++)
        if (g->pieces.at[i]->kernel.node->op == OP_ROUTE) return g->pieces.at[i];
    return NULL;
}

static bool place_piece(Gate *g, Piece *p) {
    const Node *n = p->kernel.node;
    int first = 0, n_phases = p->desc.n_phases;
    for (int i = 0; i < n_phases; i++) p->cut[i] = cut_of(p, i);
    for (int i = 0; i < n->n_in; i++) {
        int ready = readable(g, n->in[i], p->cut[0]);
        if (ready > first) first = ready;
    }
    if (first + n_phases > RT_MAX_PHASES) return false;
    for (int i = 0; i < n_phases; i++) p->phase[i] = first + i;
    if (first + n_phases > g->n_phases) g->n_phases = first + n_phases;
    for (int i = 0; i < n->n_out; i++) {
        bool sorted = n->op == OP_ROUTE && i == 2;          // by expert: from all runs
        Place *at = &g->place[n->out[i].id];
        at->phase = n->op == OP_ROUTE && i == 0 ? p->phase[1] : p->phase[n_phases - 1];
        at->in_runs = p->by_run && p->cut[n_phases - 1] == BY_RUN && !sorted && !(n->op == OP_ROUTE && i == 0);
    }
    return true;
}

static void place_values(Gate *g) {
    g->place = arena_array(g->a, Place, graph_number(g->opened.g) + 1);
    for_each_node(g->opened.g, n)
        for (int i = 0; i < n->n_out; i++) {
            Place *p = &g->place[n->out[i].id];
            *p = (Place){.kind = n->op == OP_ARG ? OPERAND : n->op == OP_CONST ? TABLE : INSIDE, .at = n->attr.k, .phase = -1};
        }
    for (int j = 0; j < g->gate->node->n_out; j++) {
        Place *p = &g->place[g->opened.result[j]->id];
        p->kind = RESULT;
        p->at = j;
    }
    for_each_node(g->opened.g, n)
        for (int i = 0; i < n->n_out; i++)
            if (is_made(n) && g->place[n->out[i].id].kind == INSIDE)
                g->place[n->out[i].id].at = take_workspace(g, type_bytes(&n->out[i].type));
}

static bool make_gate(Gate *g, Arena *a, const KernelNode *k) {
    *g = (Gate){.a = a, .gate = k, .opened = gate_pieces(a, k->node)};
    if (!choose_run(g)) return false;
    place_values(g);
    for_each_node(g->opened.g, n)
        if (is_made(n) && !add_piece(g, n)) return false;
    const Piece *route = route_piece(g);
    for (int i = 0; i < g->pieces.n; i++) {
        Piece *p = g->pieces.at[i];
        p->workspace = take_workspace(g, p->desc.workspace);
        if (!place_piece(g, p)) return false;
        if (p->kernel.node->op == OP_COUNT && has_equal_histograms(p, route)) p->counted_by = route;
    }
    return true;
}

bool gate_is_kernel(const Node *gate) {
    Arena *a = arena_create();
    Gate g;
    bool ok = make_gate(&g, a, &(KernelNode){.node = gate});
    arena_destroy(a);
    return ok;
}

// ---- tasks of a phase: those that go by run, one alone, then those of each piece's own --------------------

static bool has(const Gate *g, int phase, Cut cut) {
    for (int i = 0; i < g->pieces.n; i++)
        for (int j = 0; j < g->pieces.at[i]->desc.n_phases; j++)
            if (g->pieces.at[i]->phase[j] == phase && g->pieces.at[i]->cut[j] == cut) return true;
    return false;
}

static int64_t phase_tasks(const Gate *g, int phase) {
    int64_t n = (has(g, phase, BY_RUN) ? g->runs : 0) + has(g, phase, ALONE);
    for (int i = 0; i < g->pieces.n; i++)
        for (int j = 0; j < g->pieces.at[i]->desc.n_phases; j++) {
            const Piece *p = g->pieces.at[i];
            if (p->phase[j] == phase && p->cut[j] == OF_ITS_OWN) n += tasks_of(p, j);
        }
    return n;
}

bool describe_gate(const KernelNode *k, KernelDesc *d) {
    Arena *a = arena_create();
    Gate g;
    bool ok = make_gate(&g, a, k);
    if (ok) {
        d->n_phases = g.n_phases;
        for (int i = 0; i < g.n_phases; i++) d->tasks[i] = tasks_fixed(phase_tasks(&g, i));
        d->workspace = g.workspace;
        str_printf(&d->key, " run %lld", (long long)g.run);
        for (int i = 0; i < g.pieces.n; i++)
            if (g.pieces.at[i]->desc.key.n) str_add(&d->key, g.pieces.at[i]->desc.key.text);
    }
    arena_destroy(a);
    return ok;
}

// ---- emission ------------------------------------------------------------------------------------------

// The piece's own kernel, as a function of the module.
static void emit_piece(Cg *cg, Piece *p) {
    Cg gate = *cg;
    LLVMBasicBlockRef block = LLVMGetInsertBlock(cg->b);
    char symbol[64];
    cg->k = &p->kernel;
    snprintf(symbol, sizeof symbol, "piece_%s", op_info[p->kernel.node->op].name);
    cg_kernel_begin(cg, symbol);
    LLVMSetLinkage(cg->fn, LLVMInternalLinkage);
    p->fn = cg->fn;
    p->made_by->emit(cg, &p->kernel);
    LLVMBuildRetVoid(cg->b);
    *cg = gate;
    LLVMPositionBuilderAtEnd(cg->b, block);
}

static LV address_of(Cg *cg, const Gate *g, const Value *v) {
    v = base_of(v);
    const Place *p = &g->place[v->id];
    switch (p->kind) {
    case OPERAND: return cg_in(cg, (int)p->at);
    case RESULT: return cg_out(cg, (int)p->at);
    case TABLE: return cg_table(cg, v->node, v->type.dtype);
    default: return cg_bytes(cg, cg_workspace(cg), cg_int(cg, p->at));
    }
}

static void set_field(Cg *cg, LV call, size_t offset, LV x, int align) { cg_store(cg, x, cg_bytes(cg, call, cg_int(cg, (int64_t)offset)), align); }

// The call of a piece, but for the task's number: the gate's with other arguments.
static LV piece_call(Cg *cg, const Gate *g, const Piece *p, int phase) {
    const Node *n = p->kernel.node;
    int n_args = kernel_n_args(&p->kernel);
    LV args = cg_alloca(cg, cg->ptr, n_args + 1, 8), call = cg_alloca(cg, cg->i8, sizeof(RtCall), 8);
    for (int i = 0; i < n_args; i++) {
        const Value *v = i < n->n_in ? n->in[i] : &n->out[i - n->n_in];
        cg_store(cg, address_of(cg, g, v), cg_gep(cg, cg->ptr, args, cg_int(cg, i)), 8);
    }
    LV own = cg_bytes(cg, cg_workspace(cg), cg_int(cg, p->workspace));
    cg_store(cg, own, cg_gep(cg, cg->ptr, args, cg_int(cg, n_args)), 8);
    cg_memcpy(cg, call, cg->call, cg_int(cg, sizeof(RtCall)));
    set_field(cg, call, offsetof(RtCall, arg), args, 8);
    set_field(cg, call, offsetof(RtCall, n_tasks), cg_int32(cg, (int32_t)tasks_of(p, phase)), 4);
    set_field(cg, call, offsetof(RtCall, phase), cg_int32(cg, phase), 4);
    return call;
}

// Tasks lo .. hi - 1 of a phase of the piece.
static void emit_tasks(Cg *cg, const Gate *g, const Piece *p, int phase, LV lo, LV hi) {
    LV call = piece_call(cg, g, p, phase);
    LT type = LLVMFunctionType(cg->void_t, &cg->ptr, 1, false);
    CgLoop l;
    cg_for(cg, &l, lo, hi, 1);
    set_field(cg, call, offsetof(RtCall, task), LLVMBuildTrunc(cg->b, l.i, cg->i32, ""), 4);
    cg_call(cg, type, p->fn, &call, 1);
    cg_end(cg, &l);
}

// What the route counted, as the result of a count.
static void emit_copied_counts(Cg *cg, const Gate *g, const Piece *p) {
    const Node *count = p->kernel.node;
    LV totals = cg_bytes(cg, cg_workspace(cg), cg_int(cg, p->counted_by->workspace + route_totals_at(&p->counted_by->kernel)));
    cg_memcpy(cg, address_of(cg, g, &count->out[0]), totals, cg_int(cg, type_bytes(&count->out[0].type)));
}

static void emit_run(Cg *cg, const Gate *g, int phase, LV run) {
    for (int i = 0; i < g->pieces.n; i++)
        for (int j = 0; j < g->pieces.at[i]->desc.n_phases; j++) {
            const Piece *p = g->pieces.at[i];
            if (p->phase[j] != phase || p->cut[j] != BY_RUN || p->counted_by) continue;
            int64_t each = p->kernel.node->op == OP_SUM ? sum_tasks_of_run(p->kernel.node, g->tokens, g->run) : 1;
            LV lo = cg_muli(cg, run, each);
            emit_tasks(cg, g, p, j, lo, cg_min(cg, cg_addi(cg, lo, each), cg_int(cg, tasks_of(p, j))));
        }
}

static void emit_alone(Cg *cg, const Gate *g, int phase) {
    for (int copies = 0; copies < 2; copies++)
        for (int i = 0; i < g->pieces.n; i++)
            for (int j = 0; j < g->pieces.at[i]->desc.n_phases; j++) {
                const Piece *p = g->pieces.at[i];
                if (p->phase[j] != phase || p->cut[j] != ALONE || copies != (p->counted_by != NULL)) continue;
                if (p->counted_by) emit_copied_counts(cg, g, p);
                else emit_tasks(cg, g, p, j, cg_int(cg, 0), cg_int(cg, tasks_of(p, j)));
            }
}

static void emit_phase(Cg *cg, const Gate *g, int phase) {
    int64_t first = 0;
    CgIf f;
    if (has(g, phase, BY_RUN)) {
        first = g->runs;
        cg_if(cg, &f, cg_lt(cg, cg->task, cg_int(cg, first)));
        emit_run(cg, g, phase, cg->task);
        cg_endif(cg, &f);
    }
    if (has(g, phase, ALONE)) {
        cg_if(cg, &f, cg_eq(cg, cg->task, cg_int(cg, first++)));
        emit_alone(cg, g, phase);
        cg_endif(cg, &f);
    }
    for (int i = 0; i < g->pieces.n; i++)
        for (int j = 0; j < g->pieces.at[i]->desc.n_phases; j++) {
            const Piece *p = g->pieces.at[i];
            if (p->phase[j] != phase || p->cut[j] != OF_ITS_OWN) continue;
            LV task = cg_addi(cg, cg->task, -first);
            cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, task, cg_int(cg, tasks_of(p, j)), ""));
            emit_tasks(cg, g, p, j, task, cg_addi(cg, task, 1));
            cg_endif(cg, &f);
            first += tasks_of(p, j);
        }
}

void emit_gate(Cg *cg, const KernelNode *k) {
    Arena *a = arena_create();
    Gate g;
    bool ok = make_gate(&g, a, k);
    assert(ok);
    (void)ok;
    for (int i = 0; i < g.pieces.n; i++) emit_piece(cg, g.pieces.at[i]);
    for (int phase = 0; phase < g.n_phases; phase++) {
        CgIf f;
        cg_if_phase(cg, &f, phase);
        emit_phase(cg, &g, phase);
        cg_endif(cg, &f);
    }
    arena_destroy(a);
}
