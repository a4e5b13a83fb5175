// Shapes and checks of exchanges between ranks.  What they do: runtime/ranks.c; who puts them there: passes/partition.c.
#include <string.h>

#include "ir/ops/rules.h"

bool exchange_group_named(Name name, RtGroup *group) {
    for (int i = 0; i < RT_GROUPS; i++)
        if (name && !strcmp(name, exchange_group_name[i])) {
            *group = (RtGroup)i;
            return true;
        }
    return false;
}

bool exchange_group(const Node *n, RtGroup *group) { return exchange_group_named(n->attr.over, group); }

const char *const exchange_group_name[RT_GROUPS] = {"data", "exp", "edp", "tp"};

static int stage_in_run(const Node *n) { return n->op == OP_WAIT ? 0 : n->op == OP_GROUPED_MATMUL ? 1 : 2; }

int chunked_run(Node *first, Node **member) {
    int n = 0, stage = 0;
    for (Node *m = first; m && n < CHUNKED_RUN; m = m->next) {
        if (n && op_is(m->op, SOURCE)) continue;
        if (m->attr.chunks < 1 || m->attr.chunks != first->attr.chunks || stage_in_run(m) < stage) break;
        stage = stage_in_run(m);
        member[n++] = m;
    }
    return n;
}

static int64_t parts_of(const Node *n) {
    RtGroup group;
    return exchange_group(n, &group) ? rt_group_size(n->graph->mesh, group) : 1;
}

// Slots that a MoE layer has beyond its experts.
static int64_t replicas_of(const Node *n) { return n->attr.slots ? n->graph->mesh.replicas : 0; }

bool check_exchange(const Node *n, Diag *d) {
    RtGroup group;
    if (exchange_group(n, &group)) return true;
    diag_error(d, n->at, "%s needs over = data, exp, edp or tp, but has '%s'", op_info[n->op].name,
               n->attr.over ? n->attr.over : "");
    return false;
}

// Of leaves: those that a rank of a tp group has by itself.
static bool cuts_leaves(const Node *n, const Type *t) {
    const Graph *g = n->graph;
    return g->own_leaf && type_is_leafy(t) && t->dim[0].sym == g->leaf && !n->attr.axis && !n->attr.parts && n->attr.over &&
           !strcmp(n->attr.over, exchange_group_name[RT_GROUP_TP]);
}

bool shape_part(const Node *n, Type *out, Diag *d) {
    int64_t ranks = parts_of(n), parts = n->attr.parts ? n->attr.parts : ranks, axis = n->attr.axis,
            more = replicas_of(n);
    out[0] = n->in[0]->type;
    if (cuts_leaves(n, &out[0])) {
        out[0].dim[0].sym = n->graph->own_leaf;
        return true;
    }
    if (axis >= 0 && axis < out[0].ndim && !out[0].dim[axis].sym && (out[0].dim[axis].n + more) % parts == 0 && ranks % parts == 0) {
        out[0].dim[axis].n = (out[0].dim[axis].n + more) / parts;
        return true;
    }
    diag_error(d, n->at, "%s over %s cuts axis %lld in %lld parts, which %s does not allow", op_info[n->op].name,
               n->attr.over ? n->attr.over : "", (long long)axis, (long long)parts, rule_type(n, &n->in[0]->type));
    return false;
}

// Leaves of all ranks are no leaf axis any more: a number.  Those of a tp group are.
bool shape_parts(const Node *n, Type *out, Diag *d) {
    int64_t axis = n->attr.axis;
    out[0] = n->in[0]->type;
    if (n->graph->own_leaf && type_is_leafy(&out[0]) && out[0].dim[0].sym == n->graph->own_leaf && !axis) {
        out[0].dim[0].sym = n->graph->leaf;
        return true;
    }
    const Sym *s = axis >= 0 && axis < out[0].ndim ? out[0].dim[axis].sym : NULL;
    if (axis >= 0 && axis < out[0].ndim && (!s || s->kind == SYM_LEAF)) {
        out[0].dim[axis] = dim_n(dim_bound(out[0].dim[axis]) * parts_of(n) - replicas_of(n));
        return true;
    }
    diag_error(d, n->at, "all_gather needs an axis %lld of constant size, but got %s", (long long)axis,
               rule_type(n, &n->in[0]->type));
    return false;
}

bool shape_exchange_offsets(const Node *n, Type *out, Diag *d) {
    int64_t parts = parts_of(n), experts = n->attr.experts, slots = experts + replicas_of(n);
    const Sym *rows = n->attr.sym;
    const Type *home = &n->in[0]->type;
    int64_t leaves = experts > 0 && home->ndim == 1 ? (home->dim[0].n - 1) / experts : 0;
    if (leaves < 1 || home->dim[0].sym || home->dim[0].n != experts * leaves + 1 || slots % parts || !rows ||
        rows->groups != slots / parts || rows->leaves != leaves * parts) {
        diag_error(d, n->at,
                   "exchange_offsets of %s for %lld experts on %lld ranks defines rows by %lld leaves %lld, not by %d "
                   "leaves %d",
                   rule_type(n, home), (long long)experts, (long long)parts, (long long)(slots / parts),
                   (long long)(leaves * parts), rows ? rows->groups : 0, rows ? rows->leaves : 0);
        return false;
    }
    out[0] = type_make(I32, 1, &(Dim){(int64_t)rows->groups * rows->leaves + 1, NULL});
    return true;
}

bool shape_join_offsets(const Node *n, Type *out, Diag *d) {
    int64_t parts = parts_of(n), experts = n->attr.experts;
    const Sym *rows = n->attr.sym;
    const Type *own = &n->in[0]->type;
    int64_t leaves = experts > 0 && own->ndim == 1 && !own->dim[0].sym ? (own->dim[0].n - 1) / experts : 0;
    if (leaves < 1 || own->dim[0].n != experts * leaves + 1 || !rows || experts % rows->groups ||
        (int64_t)rows->groups * rows->leaves != experts * leaves * parts) {
        diag_error(d, n->at, "join_offsets of %s in %lld blocks on %lld ranks defines rows of %lld leaves of experts, not by %d leaves %d",
                   rule_type(n, own), (long long)experts, (long long)parts, (long long)(experts * leaves * parts),
                   rows ? rows->groups : 0, rows ? rows->leaves : 0);
        return false;
    }
    out[0] = type_make(I32, 1, &(Dim){(int64_t)rows->groups * rows->leaves + 1, NULL});
    return true;
}

bool shape_exchange_counts(const Node *n, Type *out, Diag *d) {
    const Type *home = &n->in[0]->type;
    int64_t parts = parts_of(n), experts = n->attr.experts, per_node = n->attr.per_node;
    if (experts < 1 || per_node < 1 || parts % per_node || home->ndim != 1 || home->dim[0].sym || (home->dim[0].n - 1) % experts ||
        (n->n_in > 1) != (n->attr.tokens > 0)) {
        diag_error(d, n->at, "exchange_counts of %s for %lld experts on %lld ranks, %lld on each node: offsets of leaves are by expert, "
                   "nodes alike, and tokens is how many different rows there may be", rule_type(n, home), (long long)experts, (long long)parts,
                   (long long)per_node);
        return false;
    }
    out[0] = type_make(I32, 1, &(Dim){parts * (home->dim[0].n - 1 + parts / per_node), NULL});
    return true;
}

// By nodes there are counts, and numbers of rows that may be the same.
static bool has_operands_of_nodes(const Node *n) {
    int more = n->n_in - 3, most = n->op == OP_EXCHANGE_ROWS && n->attr.tokens ? 2 : 1;
    return n->attr.per_node ? more == most : more == 0;
}

bool shape_exchange_rows(const Node *n, Type *out, Diag *d) {
    const Sym *from = type_ragged(&n->in[0]->type);
    bool back = n->op == OP_RETURN_ROWS || n->op == OP_SUM_ROWS || n->op == OP_OWN_ROWS;
    const Type *home = &n->in[1]->type, *experts = &n->in[2]->type;
    const Sym *near = back ? n->attr.sym : from, *far = back ? from : n->attr.sym;
    if (!from || !n->attr.sym || !has_operands_of_nodes(n) || n->attr.sym->kind != SYM_RAGGED || home->ndim != 1 || experts->ndim != 1 ||
        home->dim[0].n != (int64_t)near->groups * near->leaves + 1 ||
        experts->dim[0].n != (int64_t)far->groups * far->leaves + 1) {
        diag_error(d, n->at, "%s needs rows of a route, their offsets and those of the other side, but got %s, %s and %s",
                   op_info[n->op].name, rule_type(n, &n->in[0]->type), rule_type(n, home), rule_type(n, experts));
        return false;
    }
    out[0] = n->in[0]->type;
    out[0].dim[0].sym = n->attr.sym;
    return true;
}
