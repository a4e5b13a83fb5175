// Does a memory plan hold?  Looks at all pairs of values; takes nothing from the pass but what kernels
// promise.
#include "passes/util.h"

typedef struct { const Value *v; int begin, end; int64_t bytes; } Life;

// May `later` lie on `earlier` although both live when it is written?
static bool is_meant(const Life *earlier, const Life *later) {
    if (value_shown(earlier->v) == value_shown(later->v)) return true;
    const Node *n = later->v->node;
    if (earlier->end != later->begin) return false;
    for (int i = 0; i < n->n_in; i++)
        if (value_shown(n->in[i]) == value_shown(earlier->v) && node_can_overwrite(n, i, later->v->index))
            return true;
    return false;
}

// As an operand, or as the extent of an operand's or result's rows.
static bool reads(const Node *n, const Value *v) {
    for (int i = 0; i < n->n_in; i++) {
        const Sym *s = type_ragged(&n->in[i]->type);
        if (n->in[i] == v || (s && s->extent == v)) return true;
    }
    for (int i = 0; i < n->n_out; i++) {
        const Sym *s = type_ragged(&n->out[i].type);
        if (s && s->extent == v) return true;
    }
    return false;
}

// A sum that only leaves parts uses its operand up.
static const Node *reads_used_up(Graph *g) {
    for_each_node(g, n) {
        if (n->op != OP_TREE_REDUCE_SCATTER) continue;
        for (const Node *r = n->next; r; r = r->next)
            for (int i = 0; i < r->n_in && r->op != OP_WAIT; i++)
                if (value_shown(r->in[i]) == value_shown(n->in[0])) return r;
    }
    return NULL;
}

const char *plan_overlap(Arena *a, Graph *g) {
    const Node *late = reads_used_up(g);
    if (late) return arena_printf(a, "%s reads what a sum has used up", node_str(late));
    int n_values = graph_number(g), n = 0;
    Life *life = arena_array(a, Life, n_values + 1);
    for_each_node(g, m) {
        for (int i = 0; i < m->n_out; i++) {
            const Value *v = &m->out[i];
            if (v->arena != RT_STEP) continue;
            Life x = {v, m->id, m->id, type_bytes(&v->type)};
            for (Node *r = m->next; r; r = r->next) {
                if (!reads(r, v)) continue;
                if (r->id > x.end) x.end = r->id;
            }
            if (v->offset < 0 || v->offset % 64 || v->offset + x.bytes > g->arena_bytes)
                return arena_printf(a, "%s lies at %ld, %ld bytes, outside the arena", node_str(m),
                                    (long)v->offset, (long)x.bytes);
            life[n++] = x;
        }
    }
    for (int i = 0; i < n; i++) {
        for (int k = i + 1; k < n; k++) {
            const Life *x = &life[i], *y = &life[k];
            bool same_time = x->begin <= y->end && y->begin <= x->end;
            bool same_place =
                x->v->offset < y->v->offset + y->bytes && y->v->offset < x->v->offset + x->bytes;
            if (same_time && same_place && !is_meant(x, y))
                return arena_printf(a, "%s and %s overlap", node_str(x->v->node), node_str(y->v->node));
        }
    }
    return NULL;
}
