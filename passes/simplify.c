// Algebra, constant folding, common and dead nodes, until nothing changes.
//
//     %a = mul %x, %y                          %a = mul %x, %y
//     %b = mul %y, %x               =>         %c = add %a, %a
//     %c = add %a, %b
//     %d = exp %x            (unread)
//
// One sweep walks the list once: each node first reads what its operands became, is then dropped for an equal
// node seen before, or for what a rule (rules.c) makes of it.  A replaced value points at its replacement
// through Value.mark, so a sweep is linear.  Each rule makes the graph smaller or moves it towards the normal
// form that rules.c states, so sweeps end.
#include <assert.h>
#include <string.h>
#include "passes/simplify.h"

// ---- dead nodes ----

static bool is_read(const Node *n) {
    for (int i = 0; i < n->n_out; i++)
        if (n->out[i].n_uses) return true;
    return false;
}

// The offsets of a ragged axis stay as long as some value has that axis: they are its extent.
static void find_extents(Graph *g, bool *sym_is_used) {
    for (int i = 0; i < g->n_syms; i++) sym_is_used[i] = false;
    for_each_node(g, n) {
        for (int i = 0; i < n->n_out; i++) {
            const Type *t = &n->out[i].type;
            for (int k = 0; k < t->ndim; k++) {
                const Sym *s = t->dim[k].sym;
                bool defines_it = s && s->extent && s->extent->node == n;
                if (s && !defines_it) sym_is_used[s->id] = true;
            }
        }
    }
}

static bool is_used_extent(Graph *g, const Node *n, const bool *sym_is_used) {
    for (int i = 0; i < g->n_syms; i++)
        if (sym_is_used[i] && g->sym[i]->extent && g->sym[i]->extent->node == n) return true;
    return false;
}

bool drop_dead(Graph *g, PassCtx *cx) {
    bool changed = false, again = true;
    bool *sym_is_used = arena_array(cx->scratch, bool, g->n_syms + 1);
    while (again) {
        again = false;
        find_extents(g, sym_is_used);
        for_each_node_reverse(g, n) {
            if (!op_is(n->op, PURE) || is_read(n) || is_used_extent(g, n, sym_is_used)) continue;
            again |= n->n_out > 0 && type_ragged(&n->out[0].type) != NULL;    // perhaps the last of its rows
            graph_remove(n);
            changed = true;
        }
    }
    return changed;
}

// ---- equal nodes ----

static uint64_t node_hash(const Node *n) {
    uint64_t h = str_hash(&n->op, sizeof n->op, 0);
    const Value *ins[2] = {n->n_in ? n->in[0] : NULL, n->n_in > 1 ? n->in[1] : NULL};
    if (op_is(n->op, COMMUTES) && ins[0] > ins[1]) {
        ins[0] = n->in[1];
        ins[1] = n->in[0];
    }
    h = str_hash(ins, sizeof ins, h);
    for (int i = 2; i < n->n_in; i++) h = str_hash(&n->in[i], sizeof n->in[i], h);
    // a few attributes that tell sources and slices apart; attrs_equal compares all
    h = str_hash(&n->attr.name, sizeof n->attr.name, h);
    h = str_hash(&n->attr.value, sizeof n->attr.value, h);
    h = str_hash(&n->attr.begin, sizeof n->attr.begin, h);
    if (n->attr.data) h = str_hash(&n->attr.data->hash, sizeof n->attr.data->hash, h);
    return h;
}

static bool is_same(const Node *x, const Node *y) {
    if (x->op != y->op || x->n_in != y->n_in || x->n_out != y->n_out) return false;
    bool straight = true;
    for (int i = 0; i < x->n_in; i++) straight &= x->in[i] == y->in[i];
    bool swapped = op_is(x->op, COMMUTES) && x->in[0] == y->in[1] && x->in[1] == y->in[0];
    if (!straight && !swapped) return false;
    for (int i = 0; i < x->n_out; i++)
        if (!type_eq(&x->out[i].type, &y->out[i].type)) return false;
    return attrs_equal(x->op, &x->attr, &y->attr);
}

typedef struct { Node **slot; uint64_t cap; } Seen;

// The equal node seen before, or NULL after n was remembered.
static Node *seen_before(Seen *seen, Node *n) {
    uint64_t i = node_hash(n) & (seen->cap - 1);
    for (; seen->slot[i]; i = (i + 1) & (seen->cap - 1))
        if (is_same(seen->slot[i], n)) return seen->slot[i];
    seen->slot[i] = n;
    return NULL;
}

// ---- the driver ----

static void resolve_operands(Node *n) {
    for (int i = 0; i < n->n_in; i++) {
        Value *v = mark_end(n->in[i]);
        if (v != n->in[i]) replace_operand(n, i, v);
    }
}

void marks_apply(Graph *g) {
    for_each_node(g, n) resolve_operands(n);
    for (int i = 0; i < g->n_syms; i++)
        if (g->sym[i]->extent) g->sym[i]->extent = mark_end(g->sym[i]->extent);
    marks_clear(g);
}

static bool sweep(Graph *g, PassCtx *cx) {
    bool changed = false;
    Seen seen = {NULL, 64};
    while (seen.cap < (uint64_t)g->n_nodes * 2) seen.cap *= 2;
    seen.slot = arena_array(cx->scratch, Node *, seen.cap);
    marks_clear(g);
    for_each_node(g, n) {
        resolve_operands(n);
        if (!op_is(n->op, PURE) || n->keep) continue;
        Node *same = seen_before(&seen, n);
        if (same) {
            for (int i = 0; i < n->n_out; i++) n->out[i].mark = &same->out[i];
            changed = true;
            continue;
        }
        if (n->n_out != 1) continue;
        Builder b = builder_before(g, n);
        Value *better = rule_apply(&b, n);
        if (!better || better == &n->out[0]) continue;
        assert(type_eq(&better->type, &n->out[0].type));
        if (!better->name) better->name = n->out[0].name;
        n->out[0].mark = better;
        changed = true;
    }
    marks_apply(g);
    return drop_dead(g, cx) || changed;
}

bool pass_simplify(Graph *g, PassCtx *cx) {
    enum { MOST_ROUNDS = 64 };      // a safety net: rules shrink, so it isn't reached
    bool changed = false, again = true;
    int n_before = g->n_nodes, rounds = 0;
    while (again && rounds++ < MOST_ROUNDS) {
        again = sweep(g, cx);
        if (!again) again = fold_constants(g, cx);
        if (!again) again = tabulate_positions(g, cx);
        if (!again) again = recognise_head_loss(g, cx) || merge_head_loss(g, cx);
        changed |= again;
    }
    assert(rounds <= MOST_ROUNDS);
    TRACE(cx, "simplify: %d nodes, now %d, in %d rounds\n", n_before, g->n_nodes, rounds);
    return changed;
}
