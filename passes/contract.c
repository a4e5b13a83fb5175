// A product that is only added becomes one fma: one rounding instead of two, decided here once and for all,
// so that neither fusion nor a target changes a bit afterwards.
//
//     %m = mul %a, %b                                 %m = mul %a, %b
//     %y = add %m, %c   =>  %y = fma %a, %b, %c       %y = sub %c, %m   =>  %n = neg %a
//                                                                           %y = fma %n, %b, %c
//     %y = sub %m, %c   =>  %n = neg %c
//                           %y = fma %a, %b, %n
//
// The product must have no other reader and the type of the result.  Of two products the first is taken.
// Bodies of regions are rewritten likewise: a node means the same inside and outside.
//
// Gradients are done by now, so stop_gradient is its operand.
#include "passes/util.h"

static bool is_product_for(const Node *n, int i) {
    const Value *m = n->in[i];
    return m->node->op == OP_MUL && m->n_uses == 1 && type_eq(&m->type, &n->out[0].type) &&
           dtype_is_float(m->type.dtype);
}

static Value *contracted(Builder *b, const Node *n) {
    for (int i = 0; i < 2; i++) {
        if (!is_product_for(n, i)) continue;
        Value *x = n->in[i]->node->in[0], *y = n->in[i]->node->in[1], *z = n->in[1 - i];
        if (n->op == OP_SUB && i == 0) z = build_unary(b, OP_NEG, z);
        if (n->op == OP_SUB && i == 1) x = build_unary(b, OP_NEG, x);
        return make(b, OP_FMA, INS(x, y, z), 0);
    }
    return NULL;
}

static int contract(Graph *g) {
    int n_made = 0;
    marks_clear(g);
    for_each_node(g, n) {
        if (n->attr.body) n_made += contract(n->attr.body);
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        if (n->op == OP_STOP_GRADIENT) n->out[0].mark = n->in[0];
        if (n->op != OP_ADD && n->op != OP_SUB) continue;
        Builder b = builder_before(g, n);
        Value *v = contracted(&b, n);
        if (!v) continue;
        v->name = n->out[0].name;
        v->node->keep = n->keep;
        n->out[0].mark = v;
        n_made++;
    }
    for_each_node_reverse(g, n)
        if (n->op == OP_ADD || n->op == OP_SUB || n->op == OP_MUL || n->op == OP_STOP_GRADIENT)
            if (!n->out[0].n_uses) graph_remove(n);
    marks_clear(g);
    return n_made;
}

bool pass_contract(Graph *g, PassCtx *cx) {
    int n = contract(g);
    TRACE(cx, "contract: %d fma\n", n);
    return n > 0;
}
