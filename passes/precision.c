// Parameters of the training's own type are read from f32 masters.
//
//     %w = param {name = "w"} : bf16[4,8]      =>     %m = param {name = "w"} : f32[4,8]
//                                                     %w = cast %m : bf16[4,8]
//
// The front end writes activations in train.dtype where the text leaves the element type open, and in f32 where the
// text says so (routers, the inside of norms, losses), so types already say what is stored how.  What is left is that
// an optimizer needs f32: masters, moments and gradients.  Autodiff differentiates the cast, so gradients of masters
// come out in f32.  States stay what the text says.
#include <string.h>
#include "passes/util.h"

bool pass_precision(Graph *g, PassCtx *cx) {
    if (!cx->train || !strcmp(cx->train->dtype, "f32")) return false;
    int n_masters = 0;
    marks_clear(g);
    for_each_node(g, n) {
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->mark) replace_operand(n, i, n->in[i]->mark);
        DType type = (DType)n->attr.dtype;
        if (n->op != OP_PARAM || (type != BF16 && type != F16)) continue;
        Builder b = builder_before(g, n);
        Attrs attr = n->attr;
        attr.dtype = F32;
        Node *master = build_node(&b, OP_PARAM, NULL, &attr);
        master->out[0].name = n->out[0].name;
        n->out[0].mark = build_cast(&b, &master->out[0], type);
        n_masters++;
    }
    for_each_node_reverse(g, n)
        if (n->op == OP_PARAM && n->out[0].mark) graph_remove(n);
    marks_clear(g);
    TRACE(cx, "precision: %d masters\n", n_masters);
    return n_masters > 0;
}
