// Gives every value an offset in one arena.
//
//     list position    1   2   3   4   5
//     %a  4 KB         |-------|                offset 0
//     %b  8 KB             |-------|            offset 4096
//     %c  4 KB                 |---|            offset 0
//
// Buffers: values that are the same memory.  A reshape is its operand; an elementwise node may write over an
// operand of its type that nobody reads later.  A buffer lives from the node that writes it to the last that
// reads it; the offsets of a ragged axis live as long as any value has that axis.  The new contents of a
// parameter or state are written where the old ones are (RT_PERSISTENT, offset -1) if their maker works
// element by element and nobody reads the old ones later; otherwise they live in the arena to the end of the
// program, where updates are copied.
//
// Placement is offline: four orders (size, size x lifetime, start, lifetime), each placed by best fit in the
// gaps left by placed buffers that overlap in time.  The best order seeds a repair: a buffer that sticks out
// above the lower bound moves forward in the order, everything is placed again, and the try is kept if it
// isn't worse.  No choice depends on anything but the graph.
//
// Parameters, states, gradients and inputs are laid out by who makes the plan: here they are RT_PERSISTENT,
// offset -1; constants RT_CONST.
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "passes/util.h"

typedef struct {
    int64_t bytes;
    int     begin, end;        // list positions, both inclusive
    int64_t offset;
    int     id;
} Buffer;

enum { ALIGN = 64, BIG_ALIGN = 4096, BIG = 2 << 20, MOST_FOR_REPAIR = 1500, TRIES = 200 };

static int64_t rounded_up(int64_t bytes) {
    int64_t to = bytes > BIG ? BIG_ALIGN : ALIGN;
    return bytes ? (bytes + to - 1) / to * to : ALIGN;
}

// ---- which values are one buffer ----

typedef struct {
    Graph  *g;
    Value **value;          // by id
    int    *last_read;      // [value id] list position; the value's own if nobody reads it
    int    *begin;          // [value id] list position from which on it is written
    int    *buffer;         // [value id] union-find: the value that stands for the buffer
    int    *buffer_end;     // [value id of a root]
    bool   *is_in_place;    // [value id] written over the old contents of what it updates: not in the arena
} Lives;

static int root(Lives *l, int id) {
    while (l->buffer[id] != id) id = l->buffer[id] = l->buffer[l->buffer[id]];
    return id;
}

static void unite(Lives *l, int earlier, int later) {
    int a = root(l, earlier), b = root(l, later);
    l->buffer[b] = a;
    if (l->buffer_end[b] > l->buffer_end[a]) l->buffer_end[a] = l->buffer_end[b];
}

bool node_is_view(const Node *n) { return n->op == OP_RESHAPE || n->op == OP_STOP_GRADIENT || n->op == OP_WAIT; }

const Value *value_shown(const Value *v) {
    while (node_is_view(v->node)) v = v->node->in[0];
    return v;
}

static RtArenaKind arena_of(const Value *v) {
    Op op = value_shown(v)->node->op;
    if (op == OP_CONST) return RT_CONST;
    return op == OP_PARAM || op == OP_STATE || op == OP_INPUT || op == OP_CACHE ? RT_PERSISTENT : RT_STEP;
}


static bool is_in_arena(const Lives *l, const Value *v) {
    return arena_of(v) == RT_STEP && !l->is_in_place[value_shown(v)->id];
}

static bool same_dims(const Type *x, const Type *y) {
    Type z = *x;
    z.dtype = y->dtype;
    return type_eq(&z, y);
}

// Does the body work element by element, each of them of type t's shape, and not hand operand i on as it is?
static bool is_straight(const Graph *body, int i, const Type *t) {
    for_each_node(body, n) {
        if (n->op == OP_ARG || n->op == OP_CONST) continue;
        if (n->op != OP_YIELD && (!op_is(n->op, ELEMENTWISE) || !same_dims(&n->out[0].type, t))) return false;
        for (int k = 0; n->op == OP_YIELD && k < n->n_in; k++)
            if (n->in[k]->node->op == OP_ARG && n->in[k]->node->attr.k == i) return false;
    }
    return true;
}

bool node_can_overwrite(const Node *n, int operand, int result) {
    const Value *x = n->in[operand], *y = &n->out[result];
    if (!type_eq(&x->type, &y->type)) return false;
    for (int k = 0; k < n->n_in; k++)            // the same memory seen in another shape would be read late
        if (value_shown(n->in[k]) == value_shown(x) && !type_eq(&n->in[k]->type, &y->type)) return false;
    if (n->op == OP_TREE_ALL_REDUCE) return true;
    if (n->op == OP_FUSED) return is_straight(n->attr.body, operand, &y->type);
    return op_is(n->op, ELEMENTWISE) && n->op != OP_STOP_GRADIENT;
}

// The last node that reads each parameter or state, by name.
static void find_readers(Graph *g, PtrMap *last_reader) {
    for_each_node(g, n)
        for (int i = 0; i < n->n_in && !node_is_view(n); i++) {
            const Node *source = value_shown(n->in[i])->node;
            if (source->op == OP_PARAM || source->op == OP_STATE) map_put(last_reader, source->attr.name, n);
        }
}

// The old contents of `name` are read by no node behind v's maker, and it reads them element by element, or, gathering
// new ones, not at all.
static bool may_replace(const PtrMap *last_reader, const Value *v, Name name) {
    const Node *maker = v->node, *last = map_get(last_reader, name);
    bool in_place = maker->op == OP_FUSED ? is_straight(maker->attr.body, -1, &v->type)
                                          : op_is(maker->op, ELEMENTWISE) || maker->op == OP_ALL_GATHER;
    if (!in_place || node_is_view(maker) || (last && last->op != OP_UPDATE && last->id > maker->id))
        return false;
    for (int i = 0; i < maker->n_in; i++) {
        const Node *source = value_shown(maker->in[i])->node;
        bool reads_it = (source->op == OP_PARAM || source->op == OP_STATE) && source->attr.name == name;
        if (reads_it && !type_eq(&maker->in[i]->type, &v->type)) return false;
    }
    return true;
}

// In a run of chunks everything happens again and again: what is read or written there is in use all along.
static void stretch_over_chunks(Lives *l) {
    Node *member[CHUNKED_RUN];
    for_each_node(l->g, first) {
        int n = first->attr.chunks ? chunked_run(first, member) : 0;
        if (!n) continue;
        int end = member[n - 1]->id;
        for (int m = 0; m < n; m++) {
            for (int i = 0; i < member[m]->n_in; i++) {
                int *last = &l->last_read[member[m]->in[i]->id];
                if (*last < end) *last = end;
            }
            for (int i = 0; i < member[m]->n_out; i++) l->begin[member[m]->out[i].id] = first->id;
        }
        first_next = member[n - 1]->next;
    }
}

static void find_lives(Lives *l, Arena *a) {
    Graph *g = l->g;
    int end = g->n_nodes;
    for_each_node(g, n) {
        for (int i = 0; i < n->n_out; i++) {
            Value *v = &n->out[i];
            l->value[v->id] = v;
            l->buffer[v->id] = v->id;
            l->last_read[v->id] = l->begin[v->id] = n->id;
        }
        for (int i = 0; i < n->n_in; i++) l->last_read[n->in[i]->id] = n->id;
    }
    PtrMap readers = {.arena = a};
    find_readers(g, &readers);
    for_each_node(g, n) {
        if (n->op != OP_UPDATE) continue;
        const Value *v = value_shown(n->in[0]);
        if (may_replace(&readers, v, n->attr.name)) l->is_in_place[v->id] = true;
        else l->last_read[n->in[0]->id] = end;
    }
    for (int s = 0; s < g->n_syms; s++) {
        const Value *extent = g->sym[s]->extent;
        if (!extent || extent->node->graph != g) continue;
        int *last = &l->last_read[extent->id];
        for_each_node(g, n) {
            for (int i = 0; i < n->n_out; i++) {
                bool has_rows = type_ragged(&n->out[i].type) == g->sym[s];
                if (has_rows && l->last_read[n->out[i].id] > *last) *last = l->last_read[n->out[i].id];
            }
        }
    }
    stretch_over_chunks(l);
    for_each_node(g, n)
        for (int i = 0; i < n->n_out; i++) l->buffer_end[n->out[i].id] = l->last_read[n->out[i].id];
}

static void find_aliases(Lives *l) {
    for_each_node(l->g, n)
        if (node_is_view(n) && is_in_arena(l, n->in[0])) unite(l, n->in[0]->id, n->out[0].id);
    for_each_node(l->g, n) {
        for (int r = 0; r < n->n_out && !node_is_view(n); r++) {
            if (!is_in_arena(l, &n->out[r])) continue;
            for (int i = 0; i < n->n_in; i++) {
                const Value *x = n->in[i];
                if (!is_in_arena(l, x) || !node_can_overwrite(n, i, r) ||
                    l->buffer_end[root(l, x->id)] != n->id)
                    continue;
                bool is_taken = false;          // by another result of this node
                for (int k = 0; k < r; k++) is_taken |= root(l, n->out[k].id) == root(l, x->id);
                if (is_taken) continue;
                unite(l, x->id, n->out[r].id);
                break;
            }
        }
    }
}

// ---- placement ----

// Places buffers in the given order; returns the arena's size.  placed: room for n.  O(n^2), but with small
// steps: buffers that are placed stand in order of their offsets, so one walk over them meets the gaps in
// order.
static int64_t place(Buffer *const *order, int n, Buffer **placed) {
    int64_t top = 0;
    for (int i = 0; i < n; i++) {
        Buffer *b = order[i];
        int64_t align = b->bytes > BIG ? BIG_ALIGN : ALIGN;
        int64_t free_from = 0, best = -1, best_gap = INT64_MAX;
        for (int k = 0; k < i; k++) {
            const Buffer *o = placed[k];
            if (o->begin > b->end || b->begin > o->end) continue;
            int64_t at = (free_from + align - 1) / align * align;
            int64_t gap = o->offset - at;
            if (gap >= b->bytes && gap < best_gap) {
                best = at;
                best_gap = gap;
            }
            if (o->offset + o->bytes > free_from) free_from = o->offset + o->bytes;
        }
        b->offset = best >= 0 ? best : (free_from + align - 1) / align * align;
        if (b->offset + b->bytes > top) top = b->offset + b->bytes;
        int at = i;
        while (at > 0 && placed[at - 1]->offset > b->offset) at--;
        memmove(&placed[at + 1], &placed[at], sizeof *placed * (size_t)(i - at));
        placed[at] = b;
    }
    return top;
}

typedef double Key(const Buffer *b);
static double key_size(const Buffer *b) { return (double)-b->bytes; }
static double key_area(const Buffer *b) { return (double)-b->bytes * (b->end - b->begin + 1); }
static double key_begin(const Buffer *b) { return b->begin; }
static double key_lifetime(const Buffer *b) { return -(b->end - b->begin); }
static Key *const keys[] = {key_size, key_area, key_begin, key_lifetime};

typedef struct { double key; Buffer *b; } Keyed;

static int by_key(const void *x, const void *y) {
    const Keyed *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->b->id < b->b->id ? -1 : 1;
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return *state >> 33;
}

// The smallest arena it finds; offsets are those of the last placement that was kept.
static int64_t place_well(Arena *a, Buffer *buffers, int n, int64_t lower_bound) {
    Buffer **best = arena_array(a, Buffer *, n + 1), **order = arena_array(a, Buffer *, n + 1);
    Buffer **placed = arena_array(a, Buffer *, n + 1);
    Keyed *keyed = arena_array(a, Keyed, n + 1);
    int64_t best_bytes = INT64_MAX;
    for (size_t k = 0; k < sizeof keys / sizeof *keys && best_bytes > lower_bound; k++) {
        for (int i = 0; i < n; i++) keyed[i] = (Keyed){keys[k](&buffers[i]), &buffers[i]};
        qsort(keyed, (size_t)n, sizeof *keyed, by_key);
        for (int i = 0; i < n; i++) order[i] = keyed[i].b;
        int64_t bytes = place(order, n, placed);
        if (bytes >= best_bytes) continue;
        best_bytes = bytes;
        memcpy(best, order, sizeof *best * (size_t)n);
    }
    uint64_t random = 1;
    for (int t = 0; t < TRIES && n <= MOST_FOR_REPAIR && best_bytes > lower_bound; t++) {
        place(best, n, placed);
        int n_high = 0, pick = -1;                     // one of those above the lower bound
        for (int i = 0; i < n; i++)
            if (best[i]->offset + best[i]->bytes > lower_bound &&
                next_random(&random) % (uint64_t)++n_high == 0)
                pick = i;
        if (pick < 1) break;
        int to = t % 2 ? (int)(next_random(&random) % (uint64_t)pick) : 0;
        memcpy(order, best, sizeof *best * (size_t)n);
        memmove(&order[to + 1], &order[to], sizeof *order * (size_t)(pick - to));
        order[to] = best[pick];
        int64_t bytes = place(order, n, placed);
        if (bytes > best_bytes) continue;
        best_bytes = bytes;
        memcpy(best, order, sizeof *best * (size_t)n);
    }
    return n ? place(best, n, placed) : 0;
}

static int64_t peak(const Buffer *b, int n, int n_positions, Arena *a) {
    int64_t *change = arena_array(a, int64_t, n_positions + 2), live = 0, most = 0;
    for (int i = 0; i < n; i++) {
        change[b[i].begin] += b[i].bytes;
        change[b[i].end + 1] -= b[i].bytes;
    }
    for (int i = 0; i <= n_positions; i++) {
        live += change[i];
        if (live > most) most = live;
    }
    return most;
}

bool pass_plan_memory(Graph *g, PassCtx *cx) {
    Arena *a = cx->scratch;
    int n_values = graph_number(g);
    Lives l = {.g = g,
               .value = arena_array(a, Value *, n_values + 1),
               .last_read = arena_array(a, int, n_values + 1),
               .begin = arena_array(a, int, n_values + 1),
               .buffer = arena_array(a, int, n_values + 1),
               .buffer_end = arena_array(a, int, n_values + 1),
               .is_in_place = arena_array(a, bool, n_values + 1)};
    find_lives(&l, a);
    find_aliases(&l);

    Buffer *buffers = arena_array(a, Buffer, n_values + 1);
    int *number = arena_array(a, int, n_values + 1);           // of a root's buffer
    int n = 0;
    int64_t total = 0;
    for (int id = 0; id < n_values; id++) {
        const Value *v = l.value[id];
        if (!is_in_arena(&l, v)) continue;
        int64_t bytes = rounded_up(type_bytes(&v->type));
        total += node_is_view(v->node) ? 0 : bytes;
        if (root(&l, id) != id) continue;
        number[id] = n;
        buffers[n] = (Buffer){bytes, l.begin[id], l.buffer_end[id], 0, n};
        n++;
    }
    g->lower_bound_bytes = peak(buffers, n, g->n_nodes, a);
    g->arena_bytes = place_well(a, buffers, n, g->lower_bound_bytes);

    for (int id = 0; id < n_values; id++) {
        Value *v = l.value[id];
        bool in_arena = is_in_arena(&l, v);
        v->arena = (int8_t)(in_arena || arena_of(v) != RT_STEP ? arena_of(v) : RT_PERSISTENT);
        v->offset = v->arena == RT_STEP ? buffers[number[root(&l, id)]].offset : -1;
    }
    double mb = 1e6;
    WON(cx, "%.1f -> %.1f MB in one buffer, %.3f x the lower bound", (double)total / mb,
        (double)g->arena_bytes / mb,
        g->lower_bound_bytes ? (double)g->arena_bytes / (double)g->lower_bound_bytes : 1.0);
    return true;
}
