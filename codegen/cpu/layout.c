// How a parameter that is only read may lie, and what its readers are predicted to take then.
#include "codegen/cpu/layout.h"
#include <string.h>
#include "codegen/cpu/product.h"

static Layout panels_for(const Node *n, int operand) {
    if (n->op != OP_MATMUL && n->op != OP_GROUPED_MATMUL) return LAYOUT_ROWS;
    DType a = n->in[0]->type.dtype, b = n->in[operand]->type.dtype;
    KernelNode k = {.node = n};
    if ((operand != 1 && operand != contraction_of(n).second) || a != b || (a != F32 && a != BF16)) return LAYOUT_ROWS;
    if (!(n->op == OP_MATMUL ? matmul_takes_panels(&k) : grouped_takes_panels(&k))) return LAYOUT_ROWS;
    return b == F32 ? (n->attr.tb ? LAYOUT_P32T : LAYOUT_P32) : n->attr.tb ? LAYOUT_P32VT : LAYOUT_P32V;
}

// The node as if its matrices lay so.
static Node *with_layout(Arena *a, const Node *n, Layout l) {
    const int matrix[] = {1, contraction_of(n).second};
    Node *copy = arena_new(a, Node);
    *copy = *n;
    copy->in = arena_array(a, Value *, n->n_in);
    memcpy(copy->in, n->in, sizeof *copy->in * (size_t)n->n_in);
    for (int i = 0; i < 2; i++) {
        if (matrix[i] < 0) continue;
        Value *v = arena_new(a, Value);
        *v = *n->in[matrix[i]];
        v->type.layout = (uint8_t)l;
        copy->in[matrix[i]] = v;
    }
    return copy;
}

static bool rows_vary(const Node *n) {
    const Type *y = &n->out[0].type;
    for (int i = 0; i < y->ndim; i++)
        if (y->dim[i].sym && y->dim[i].sym->kind != SYM_LEAF) return true;
    return false;
}

static double seconds_of(Arena *a, KernelNode k, int64_t at_rows) {
    KernelDesc d = {.key = {.arena = a}, .n_phases = 1, .n_rounds = 1};
    k.at_rows = at_rows;
    DescribeFn *describe = cpu_template(k.node->op)->describe;
    return describe(&k, &d) ? predicted_seconds(k.machine, &d.choice[0].best[0].takes, 1) : 0;
}

// Of rows whose number varies: those of a prompt at once and as many tokens one by one.
static double seconds_so(Arena *a, KernelNode k, Layout l) {
    const Node *n = k.node;
    k.node = with_layout(a, n, l);
    double all = seconds_of(a, k, 0);
    return rows_vary(n) ? all + (double)rows_bound(&n->out[0].type) * seconds_of(a, k, 1) : all;
}

LayoutOffer cpu_layout(const Node *n, int operand, const CpuTarget *t, const Machine *m, int64_t passing) {
    LayoutOffer offer = {.layout = panels_for(n, operand)};
    if (offer.layout == LAYOUT_ROWS) return offer;
    Machine typical = machine_guess(t->vector_bytes, 1);
    KernelNode k = {.node = n, .target = t, .machine = m ? m : &typical, .passing = passing};
    double share = n->attr.pair ? 0.5 : 1;                 // each matrix of a pair is asked for
    Arena *a = arena_create();
    offer.rows = share * seconds_so(a, k, LAYOUT_ROWS);
    offer.laid = share * seconds_so(a, k, offer.layout);
    arena_destroy(a);
    return offer;
}
