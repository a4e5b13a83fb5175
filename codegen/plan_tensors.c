// Persistent tensors of a plan, and what programs leave.
#include <string.h>
#include "codegen/planning.h"

static bool same_shape(const RtTensor *a, const RtTensor *b) {
    return a->dtype == b->dtype && a->layout == b->layout && a->ndim == b->ndim && !memcmp(a->dim, b->dim, sizeof a->dim) &&
           !memcmp(a->dim_sym, b->dim_sym, sizeof a->dim_sym);
}

// Of anything but outputs; -1: none.
int plan_find_tensor(const Plan *p, const char *name) { return (int)map_number(&p->names, intern(name), -1); }

static RtTensor tensor_of_type(Plan *p, const Type *t, const char *name, RtRole role, Span at) {
    RtTensor x = {.name = plan_add_text(p, name),
                  .dtype = (uint8_t)t->dtype,
                  .ndim = t->ndim,
                  .role = (uint8_t)role,
                  .arena = RT_PERSISTENT,
                  .layout = t->layout,
                  .bytes = type_bytes(t),
                  .span = plan_add_span(p, at)};
    x.init_name = x.name;
    for (int i = 0; i < MAX_DIM; i++) x.dim_sym[i] = -1;
    for (int i = 0; i < t->ndim; i++) {
        x.dim[i] = dim_bound(t->dim[i]);
        if (t->dim[i].sym) x.dim_sym[i] = plan_sym(p, t->dim[i].sym);
    }
    return x;
}

static int init_kind(const char *name) {
    static const char *const kinds[] = {"zeros",   "const",      "normal", "trunc_normal",
                                        "uniform", "random_int", "copy"};
    for (int i = 0; name && i < (int)(sizeof kinds / sizeof *kinds); i++)
        if (!strcmp(name, kinds[i])) return i;
    return RT_INIT_ZEROS;
}

// 1 + the number of the slot table by which axis 0 of what `experts` ranks have together is cut; 0: none.
int plan_slot_table(Plan *p, const Node *n, int64_t experts) {
    if (!n->attr.slots || !n->attr.over) return 0;
    uint32_t name = plan_add_text(p, n->attr.slots);
    for (int i = 0; i < p->slot_tables.n; i++)
        if (p->slot_tables.at[i].name == name) return 1 + i;
    RtSlotTable t = {.name = name, .experts = (int32_t)experts, .slots = (int32_t)experts + n->graph->mesh.replicas};
    vec_push(p->a, &p->slot_tables, t);
    return p->slot_tables.n;
}

// The persistent tensor of a name: made at first sight, shared by all programs after that.  -1 after
// diag_error.
int plan_named_tensor(Plan *p, const Type *t, const char *name, RtRole role, const Node *n) {
    int i = plan_find_tensor(p, name);
    RtTensor x = tensor_of_type(p, t, name, role, n->at);
    if (i >= 0) {
        if (same_shape(&p->tensors.at[i].t, &x)) {
            // a gradient may be known before its parameter's own node is seen; the declaring node says more
            if (p->tensors.at[i].t.role == role || role == RT_GRAD) return i;
            if (role == RT_STATE && p->tensors.at[i].t.role == RT_GRAD) return i;
        }
        diag_error(p->d, n->at, "`%s` is used as %s and as another tensor of the same name", name,
                   type_text(p->a, t));
        return -1;
    }
    if (role == RT_PARAM || role == RT_STATE) {
        x.init = (uint8_t)init_kind(n->attr.init);
        x.init_a = n->attr.init_a;
        x.init_b = n->attr.init_b;
        x.saved = 1;
        x.experts = n->attr.group && !strcmp(n->attr.group, "expert") && t->ndim > 1;
        if (x.init == RT_INIT_COPY) x.init_from = x.init_name = plan_add_text(p, n->attr.init_from);
    }
    RtGroup group;
    bool is_cut = (n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_ACCUMULATE) && exchange_group(n, &group);
    if (is_cut) {
        x.shard = (uint8_t)(1 + group);
        x.table = (uint16_t)plan_slot_table(p, n, x.dim[0] * rt_group_size(n->graph->mesh, group) - n->graph->mesh.replicas);
    }
    if (exchange_group_named(n->attr.within, &group)) x.within = (uint8_t)(1 + group);
    x.tp = (uint8_t)n->attr.tp;
    x.offset = plan_add_persistent(p, x.bytes);
    TensorSlot slot = {x, name, 0};
    vec_push(p->a, &p->tensors, slot);
    map_put_number(&p->names, intern(name), p->tensors.n - 1);
    return p->tensors.n - 1;
}

Loc plan_tensor_loc(const Plan *p, int i) { return (Loc){p->tensors.at[i].t.offset, RT_PERSISTENT}; }

static bool is_grad_name(const char *name) { return !strncmp(name, "grad/", 5); }

// An input of a program that another one has in another shape (a batch there, one sequence here):
// PROGRAM/NAME.
static const char *input_name(Plan *p, const Node *n) {
    int i = plan_find_tensor(p, n->attr.name);
    if (i < 0 || p->tensors.at[i].t.role != RT_INPUT) return n->attr.name;
    RtTensor x = tensor_of_type(p, &n->out[0].type, n->attr.name, RT_INPUT, n->at);
    return same_shape(&p->tensors.at[i].t, &x)
               ? n->attr.name
               : intern(arena_printf(p->a, "%s/%s", n->graph->name, n->attr.name));
}

int plan_source_tensor(Plan *p, const Node *n) {
    if (n->op == OP_INPUT) return plan_named_tensor(p, &n->out[0].type, input_name(p, n), RT_INPUT, n);
    RtRole role = n->op == OP_PARAM ? RT_PARAM : is_grad_name(n->attr.name) ? RT_GRAD : RT_STATE;
    return plan_named_tensor(p, &n->out[0].type, n->attr.name, role, n);
}

int plan_output_tensor(Plan *p, const Node *n, int64_t ordinal) {
    RtOutputKind kind = n->op == OP_LOSS ? RT_OUT_LOSS : n->op == OP_METRIC ? RT_OUT_METRIC : RT_OUT_RESULT;
    RtTensor x = tensor_of_type(p, &n->in[0]->type, n->attr.name, RT_OUTPUT, n->at);
    x.kind = (uint8_t)kind;
    x.weight = n->op == OP_LOSS ? (float)n->attr.weight : 0;
    if (n->op == OP_LOSS) x.init_a = n->attr.until;
    for (int i = 0; i < p->tensors.n; i++) {
        const TensorSlot *s = &p->tensors.at[i];
        if (s->t.role == RT_OUTPUT && s->ordinal == ordinal && !strcmp(s->name, n->attr.name) &&
            s->t.kind == x.kind && same_shape(&s->t, &x) && s->t.weight == x.weight)
            return i;
    }
    x.offset = plan_add_persistent(p, x.bytes);
    TensorSlot slot = {x, n->attr.name, ordinal};
    vec_push(p->a, &p->tensors, slot);
    return p->tensors.n - 1;
}

// Gradients, optimizer states and the like of a tensor of experts are cut by expert too.
void plan_mark_experts(Plan *p) {
    for (int i = 0; i < p->tensors.n; i++) {
        RtTensor *t = &p->tensors.at[i].t;
        const char *slash = strchr(p->tensors.at[i].name, '/');
        if (t->role == RT_PARAM || t->role >= RT_INPUT || !slash) continue;
        int of = plan_find_tensor(p, slash + 1);
        if (of >= 0 && p->tensors.at[of].t.experts && t->ndim == p->tensors.at[of].t.ndim) t->experts = 1;
    }
}
