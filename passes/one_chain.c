// train.exact = false: the weight gradients of a rank's leaves are sums over all their rows in one go.
//
//     %dw = grouped_dw %x, %g, %offsets      =>      %dw = grouped_dw %x, %g, %offsets {one_chain = 1}
//
// A chain of products per leaf, met in a tree, lets leaves move between waves and ranks without another bit.  Without that
// promise tiles neither end at leaves nor keep unfinished sums.  Only what costs something is let go: sums of scalars,
// norms and ranks keep their order.  The plan's arithmetic says so, hence a run does not go on as the other kind.
#include "passes/pass.h"

static bool sums_products_over_rows(Op op) {
    return op == OP_MATMUL_DW || op == OP_GROUPED_DW || op == OP_HEAD_LOSS_GRAD || op == OP_HEAD_LOSS_AND_GRAD;
}

bool pass_one_chain(Graph *g, PassCtx *cx) {
    int n_sums = 0;
    if (!cx->train || !cx->train->one_chain) return false;
    for_each_node(g, n) {
        if (!sums_products_over_rows(n->op) || n->attr.leaves <= 1) continue;
        n->attr.one_chain = 1;
        n->attr.leaves = 1;
        n_sums++;
    }
    TRACE(cx, "one-chain: %d weight gradients without a leaf tree\n", n_sums);
    return n_sums > 0;
}
