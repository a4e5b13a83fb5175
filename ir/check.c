// The verifier.  What holds at every stage: a node comes after what it reads and reads nothing of another
// graph; use counts are right; types follow from operands by the shape rules; regions are whole.  What a
// stage adds: PLANNED graphs have a place for every value that needs memory.
#include <stdlib.h>

#include "ir/build.h"
#include "ir/ir.h"

static bool wrong(Diag *d, const Node *n, const char *what) {
    diag_error(d, n->at, "%s: %s", node_str(n), what);
    return false;
}

static bool is_linked(const Graph *g, Diag *d) {
    int count = 0;
    const Node *prev = NULL;
    for (const Node *n = g->first; n; prev = n, n = n->next, count++) {
        if (n->prev != prev) return wrong(d, n, "the node before it is not the one that leads to it");
        if (n->graph != g) return wrong(d, n, "stands in another graph than it says");
    }
    if (prev == g->last && count == g->n_nodes) return true;
    diag_error(d, (Span){0}, "@%s counts %d nodes, but its list has %d", g->name, g->n_nodes, count);
    return false;
}

// Operands stand before, in this graph, and count their readers.  Numbers come from graph_number.
static bool reads_well(const Graph *g, Diag *d) {
    int n_values = graph_number((Graph *)g);
    int *uses = calloc((size_t)n_values + 1, sizeof *uses);
    if (!uses) abort();
    bool ok = true;
    for (const Node *n = g->first; n && ok; n = n->next)
        for (int i = 0; i < n->n_in && ok; i++) {
            const Value *v = n->in[i];
            if (v->node->graph != g) ok = wrong(d, n, "reads a value of another graph");
            else if (v->node->id >= n->id) ok = wrong(d, n, "reads a value that is made later");
            else if (&v->node->out[v->index] != v) ok = wrong(d, n, "reads what is no result of its node");
            else uses[v->id]++;
        }
    for (const Node *n = g->first; n && ok; n = n->next)
        for (int i = 0; i < n->n_out && ok; i++)
            if (uses[n->out[i].id] != n->out[i].n_uses) ok = wrong(d, n, "counts its readers wrong");
    free(uses);
    return ok;
}

static bool knows_sym(const Graph *g, const Sym *s) { return graph_find_sym(g, s->name) == s; }

static bool has_known_syms(const Graph *g, const Node *n, Diag *d) {
    for (int i = 0; i < n->n_out; i++)
        for (int k = 0; k < n->out[i].type.ndim; k++) {
            const Sym *s = n->out[i].type.dim[k].sym;
            if (s && !knows_sym(g, s)) return wrong(d, n, "its type names a row symbol of another graph");
        }
    return true;
}

// Effects stay outside regions; a region ends in its only yield.
static bool is_well_placed(const Graph *g, const Node *n, Diag *d) {
    bool in_region = g->parent != NULL;
    if (n->op == OP_YIELD && (!in_region || n->next))
        return wrong(d, n, "a yield ends a region and stands nowhere else");
    if (n->op == OP_ARG && !in_region) return wrong(d, n, "an arg stands outside a region");
    if (in_region && op_is(n->op, EFFECT) && n->op != OP_YIELD)
        return wrong(d, n, "an effect stands inside a region");
    return true;
}

// What plan-memory promises.  Views have a place too: that of the value they look at.
static bool has_place(const Node *n, Diag *d) {
    for (int i = 0; i < n->n_out; i++)
        if (n->out[i].n_uses && n->out[i].arena < 0 && n->op != OP_CONST)
            return wrong(d, n, "a planned value has no place in memory");
    return true;
}

static bool check(const Graph *g, Diag *d);

static bool check_one(const Graph *g, const Node *n, Diag *d) {
    if (!node_check(n, d)) {
        diag_note(d, (Span){0}, "in @%s: %s", g->name, node_str(n));
        return false;
    }
    if (!has_known_syms(g, n, d) || !is_well_placed(g, n, d)) return false;
    if (g->stage == PLANNED && !g->parent && !has_place(n, d)) return false;
    const Graph *const region[] = {n->attr.body, n->attr.epilogue};
    for (int i = 0; i < 2; i++) {
        if (!region[i]) continue;
        if (region[i]->parent != g) return wrong(d, n, "its region belongs to another graph");
        if (!check(region[i], d)) {
            diag_note(d, n->at, "in the region of %s", op_info[n->op].name);
            return false;
        }
    }
    return true;
}

static bool check(const Graph *g, Diag *d) {
    if (!is_linked(g, d) || !reads_well(g, d)) return false;
    for (const Node *n = g->first; n; n = n->next)
        if (!check_one(g, n, d)) return false;
    graph_number((Graph *)g);       // messages about regions numbered those
    return true;
}

bool graph_check(const Graph *g, Diag *d) {
    if (!check(g, d)) return false;
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        if (s->kind != SYM_RAGGED || !s->extent) continue;
        const Type *t = &s->extent->type;
        bool fits = t->dtype == I32 && t->ndim == 1 && !t->dim[0].sym &&
                    t->dim[0].n == (int64_t)s->groups * s->leaves + 1;
        if (!fits || s->extent->node->graph != g) {
            diag_error(d, s->extent->node->at, "rows %s by %d leaves %d need offsets i32[%lld], but have %s",
                       s->name, s->groups, s->leaves, (long long)s->groups * s->leaves + 1,
                       type_text(g->arena, t));
            return false;
        }
    }
    return true;
}
