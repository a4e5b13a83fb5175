// Each rank's program.  One rank holds all leaves, all experts and all parameters, so its program is the
// graph as it is, and every value is where it is needed.
#include "passes/pass.h"

bool pass_partition(Graph *g, PassCtx *cx) {
    (void)g;
    TRACE(cx, "partition: one rank\n");
    return false;
}
