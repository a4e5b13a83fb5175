// What nodes compute.
#include "codegen/emit_plan.h"

double node_flops(const Node *n) {
    double out = n->n_out ? (double)type_bound_elements(&n->out[0].type) : 0;
    const Type *a = n->n_in ? &n->in[0]->type : NULL;
    switch (n->op) {
    case OP_MATMUL: case OP_GROUPED_MATMUL: {
        int last = a->ndim - (n->op == OP_MATMUL && n->attr.ta ? 2 : 1);
        return 2.0 * out * (double)dim_bound(a->dim[last]) * (n->attr.pair ? 2 : 1);
    }
    case OP_MATMUL_DW: case OP_GROUPED_DW: {
        Contraction c = contraction_of(n);
        return 2.0 * (double)rows_bound(&c.a) * (double)type_cols(&c.a) * (double)type_cols(&c.b);
    }
    case OP_ATTENTION: case OP_ATTENTION_GRAD: {
        const Type *q = a, *k = &n->in[1]->type;       // q [.., S, H, A], k [.., C, Hk, A]
        double scores = (double)rows_bound(q) * (double)dim_bound(k->dim[k->ndim - 3]);
        double pairs = n->attr.causal ? 0.5 : 1;
        double width = (double)type_cols(q) + (double)type_cols(&n->in[2]->type);
        return 2 * scores * pairs * width * (n->op == OP_ATTENTION ? 1 : 2.5);
    }
    case OP_HEAD_LOSS: case OP_HEAD_LOSS_GRAD: case OP_HEAD_LOSS_AND_GRAD:
        return 2.0 * (double)rows_bound(a) * (double)type_bound_elements(&n->in[1]->type) *
               (n->op == OP_HEAD_LOSS ? 1 : 3);
    case OP_FUSED: case OP_GATE: {
        double flops = 0;
        for_each_node(n->attr.body, m) {
            if (m->op == OP_ARG || m->op == OP_CONST || m->op == OP_YIELD) continue;
            flops += node_flops(m);
        }
        return flops;
    }
    default:
        for (int i = 0; i < n->n_in; i++) {
            double size = (double)type_bound_elements(&n->in[i]->type);
            if (size > out && n->op != OP_GATHER_ROWS && n->op != OP_SLICE) out = size;
        }
        return op_is(n->op, VIEW) || n->op == OP_COPY || n->op == OP_CONCAT || n->op == OP_GATHER_ROWS ? 0
                                                                                                       : out;
    }
}

RtWorkKind node_work(const Node *n) {
    if (!op_is(n->op, PRODUCTS)) return RT_ELEMENTWISE;
    return n->in[0]->type.dtype == BF16 && n->in[1]->type.dtype == BF16 ? RT_CONTRACTION_BF16 : RT_CONTRACTION;
}
