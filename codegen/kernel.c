// How work is cut into tasks: from sizes only, never from threads.
#include "codegen/kernel.h"

int64_t rows_bound(const Type *t) {
    int64_t n = 1;
    for (int i = 0; i + 1 < t->ndim; i++) n *= dim_bound(t->dim[i]);
    return n;
}

TaskCount tasks_of_rows(const Type *t, int64_t grain) {
    TaskCount c = {1, grain, 1, NULL};
    for (int i = 0; i + 1 < t->ndim; i++) {
        const Sym *s = t->dim[i].sym;
        c.n *= t->dim[i].n;
        if (!s) continue;
        if (s->kind == SYM_LEAF || c.sym) c.n *= s->bound;
        else c.sym = s;
    }
    return c;
}

int64_t rows_grain(const Type *t, int64_t bytes_per_row) {
    int64_t rows = rows_bound(t), grain = (16 << 10) / (bytes_per_row > 0 ? bytes_per_row : 1);
    if (grain < 1) grain = 1;
    if (grain > rows) grain = rows > 0 ? rows : 1;
    return grain;
}
