// Makes list order the order in which a rank runs: from here on each node may be executed at its place.
//
//     update %v {name = "w"}            %r = mul (param "w"), %x
//     %r = mul (param "w"), %x    =>    update %v {name = "w"}
//
// An update means "at the end; reads see the old".  It moves behind the last reader of what it overwrites,
// and not further, so that the memory of its operand is free early.  An update whose operand is itself a
// parameter or state gets a copy of it first: two states may be exchanged.  Accumulates stand directly behind
// what they read.
//
// One rank has no exchanges to overlap with compute.
#include "passes/util.h"

// The parameter or state whose memory v shows, or NULL.
static const Node *persistent(const Value *v) {
    const Node *n = value_shown(v)->node;
    return n->op == OP_PARAM || n->op == OP_STATE ? n : NULL;
}

static Node *later(Node *x, Node *y) { return x && x->id > y->id ? x : y; }

bool pass_schedule_a2a(Graph *g, PassCtx *cx) {
    bool changed = false;
    PtrMap last_reader = {.arena = cx->scratch};           // by name
    graph_number(g);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++) {
            const Node *source = persistent(n->in[i]);
            if (source) map_put(&last_reader, source->attr.name, n);
        }
    for_each_node(g, n) {
        if (n->op == OP_UPDATE && persistent(n->in[0]) && persistent(n->in[0])->attr.name != n->attr.name) {
            Builder b = builder_after(g, value_shown(n->in[0])->node);
            Node *source = n->in[0]->node;
            b.before = source->next;
            Value *copy = build_unary(&b, OP_COPY, n->in[0]);
            copy->node->id = source->id;
            replace_operand(n, 0, copy);
            changed = true;
        }
        if (n->op != OP_UPDATE && n->op != OP_ACCUMULATE) continue;
        Node *place = n->in[0]->node;
        Node *reader = n->op == OP_UPDATE ? map_get(&last_reader, n->attr.name) : NULL;
        place = later(reader && reader != n ? reader : NULL, place);
        if (place->next == n || place == n) continue;
        node_move_behind(n, place);
        changed = true;
    }
    TRACE(cx, "schedule-a2a: %d nodes\n", g->n_nodes);
    return changed;
}
