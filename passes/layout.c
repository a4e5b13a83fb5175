// Data that targets want in another order than rows.  Kernels pack what they need in their own workspace, so
// every value stays in rows.
#include "passes/pass.h"

bool pass_layout(Graph *g, PassCtx *cx) {
    (void)g;
    TRACE(cx, "layout: rows\n");
    return false;
}
