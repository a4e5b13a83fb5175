// Places, and the exchanges between them.
//
//     HOME   -> PART         shard            PART       -> HOME     all_gather
//     HOME   -> AT_EXPERTS   exchange_rows    AT_EXPERTS -> HOME     return_rows
//     PART   -> nested       shard            nested     -> PART     all_gather
//
// Each is the other's transpose, so what goes one way in forward comes back the other way in backward without a rule of
// its own.
#include "passes/placement.h"

// Where a value is, and as what it was taken elsewhere.
typedef struct {
    Place  place;
    Value *home, *experts, *part[RT_GROUPS], *nested;
} Twins;

int64_t group_size(const Placement *p, RtGroup group) { return rt_group_size(p->g->mesh, group); }

int64_t part_size(const Placement *p, Place place, int64_t whole) {
    return (whole + (place.slots ? p->g->mesh.replicas : 0)) / group_size(p, place.group);
}

// Without experts elsewhere it is all data ranks that hold the same.
RtGroup inner_group(const Placement *p) { return group_size(p, RT_GROUP_EXP) > 1 ? RT_GROUP_EDP : RT_GROUP_DATA; }

Place outer_place(const Placement *p, Place nested) {
    if (group_size(p, nested.group) == 1) return (Place){HOME, RT_GROUP_DATA, NULL, false};
    return (Place){PART, nested.group, nested.slots, false};
}

static Twins *twins_of(Placement *p, const Value *v) {
    Twins *t = map_get(&p->twins, v);
    if (t) return t;
    t = arena_new(p->cx->scratch, Twins);
    map_put(&p->twins, v, t);
    return t;
}

Place place_of(const Placement *p, const Value *v) {
    const Twins *t = map_get(&p->twins, v);
    return t ? t->place : (Place){HOME, RT_GROUP_DATA, NULL, false};
}

void place_set(Placement *p, Value *v, Place place) { twins_of(p, v)->place = place; }

static bool same_place(Place a, Place b) {
    return a.kind == b.kind && (a.kind != PART || (a.group == b.group && a.slots == b.slots && a.nested == b.nested));
}

static Value **twin(Twins *t, Place place) {
    if (place.nested) return &t->nested;
    return place.kind == HOME ? &t->home : place.kind == PART ? &t->part[place.group] : &t->experts;
}

FarRows *rows_known(const Placement *p, Sym *s) {
    FarRows *r = map_get(&p->far_of, s);
    return r ? r : map_get(&p->near_of, s);
}

FarRows *rows_far(Placement *p, Sym *near, Name slots) {
    FarRows *r = rows_known(p, near);
    int64_t ep = group_size(p, RT_GROUP_EXP);
    if (r || ep == 1 || !near->extent) return r;
    r = arena_new(p->cx->scratch, FarRows);
    // at worst, all rows of all ranks are for the experts of one
    double bound = p->cx->train ? p->cx->train->row_bound : 0;
    int64_t most = near->bound * ep, some = (int64_t)(bound * (double)near->bound) / 32 * 32 + 32;
    if (bound > 0 && some < most) most = some;
    *r = (FarRows){.near = near, .near_offsets = near->extent, .slots = slots};
    r->far = graph_add_sym(p->g, arena_printf(p->g->arena, "%s_far", near->name), SYM_RAGGED, most,
                           (near->groups + p->g->mesh.replicas) / (int)ep, near->leaves * (int)ep);
    Builder b = builder_after(p->g, near->extent->node);
    r->far_offsets = make(&b, OP_EXCHANGE_OFFSETS, INS(near->extent), .experts = near->groups, .sym = r->far,
                          .over = intern(exchange_group_name[RT_GROUP_EXP]), .slots = slots);
    r->far->extent = r->far_offsets;
    p->n_exchanges++;
    map_put(&p->far_of, near, r);
    map_put(&p->near_of, r->far, r);
    return r;
}

static Value *sent(Placement *p, Builder *b, Value *v, Place place) {
    Place from = place_of(p, v);
    Name inner = intern(exchange_group_name[inner_group(p)]);
    if (from.nested) return make(b, OP_ALL_GATHER, INS(v), .axis = 1, .over = inner);
    if (place.nested) return make(b, OP_SHARD, INS(v), .axis = 1, .over = inner);
    RtGroup group = place.kind == PART ? place.group : from.kind == PART ? from.group : RT_GROUP_EXP;
    Name over = intern(exchange_group_name[group]);
    if (from.kind == PART) return make(b, OP_ALL_GATHER, INS(v), .over = over, .slots = from.slots);
    if (place.kind == PART) return make(b, OP_SHARD, INS(v), .over = over, .slots = place.slots);
    FarRows *r = rows_known(p, type_ragged(&v->type));
    if (place.kind == HOME)
        return make(b, OP_RETURN_ROWS, INS(v, r->near_offsets, r->far_offsets), .sym = r->near, .over = over,
                    .slots = r->slots);
    if (v->node->op == OP_ROW_GROUP) return make(b, OP_ROW_GROUP, INS(r->far_offsets), .sym = r->far);
    return make(b, OP_EXCHANGE_ROWS, INS(v, r->near_offsets, r->far_offsets), .sym = r->far, .over = over, .slots = r->slots);
}

// A part of a result is made of parts of the operands, so that no more is computed than is read: who reads the whole
// computes it once more, or, most often, wants a part as well.
static Value *part_made(Placement *p, const Value *v, Place place, Node *before) {
    Node *n = v->node;
    if (place.kind != PART || n->n_out != 1 || !op_is(n->op, ELEMENTWISE) || !v->type.ndim) return NULL;
    Value **in = arena_array(p->cx->scratch, Value *, n->n_in + 1);
    for (int i = 0; i < n->n_in; i++) {
        const Type *t = &n->in[i]->type;
        bool is_cut = t->ndim == v->type.ndim && dim_eq(t->dim[0], v->type.dim[0]) &&
                      (!place.nested || dim_eq(t->dim[1], v->type.dim[1]));
        in[i] = is_cut ? placed(p, n->in[i], place, before) : n->in[i];
    }
    Builder b = builder_before(p->g, before);
    Value *part = build_first(node_clone(&b, n, in));
    if (place.nested) part->type.dim[1].n /= group_size(p, inner_group(p));
    else part->type.dim[0].n = part_size(p, place, part->type.dim[0].n);
    place_set(p, part, place);
    return part;
}

Value *placed(Placement *p, Value *v, Place place, Node *before) {
    Place from = place_of(p, v);
    if (same_place(from, place)) return v;
    const Place home = {HOME, RT_GROUP_DATA, NULL, false};
    Place by = from;                                  // where it has to go first
    if (place.nested) by = outer_place(p, place);
    else if (from.nested) by = outer_place(p, from);
    else if (from.kind == PART && place.kind == PART) by = home;
    if (!same_place(by, from) && !same_place(by, place)) return placed(p, placed(p, v, by, before), place, before);
    Value **there = twin(twins_of(p, v), place);
    if (*there && same_place(place_of(p, *there), place)) return *there;
    if (!from.nested && (*there = part_made(p, v, place, before))) return *there;
    Builder b = builder_before(p->g, before);
    Value *to = sent(p, &b, v, place);
    to->place = v->place;
    *twin(twins_of(p, v), place) = to;
    place_set(p, to, place);
    *twin(twins_of(p, to), from) = v;
    if (to->node->op != OP_SHARD && to->node->op != OP_ROW_GROUP) {
        p->n_exchanges++;
        p->bytes += (double)type_bytes(&v->type);
    }
    return to;
}
