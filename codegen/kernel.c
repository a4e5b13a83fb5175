// How work is cut into tasks: from sizes and what the machine has, never from the threads of a run.  Contents of constants.
#include "codegen/kernel.h"
#include <string.h>

int64_t dims_bound(const Type *t, int lo, int hi) {
    int64_t n = 1;
    for (int i = lo; i < hi; i++) n *= dim_bound(t->dim[i]);
    return n;
}

TaskCount tasks_of_dims(const Type *t, int lo, int hi, int64_t grain) {
    TaskCount c = {1, grain, 1, NULL, 0};
    for (int i = lo; i < hi; i++) {
        const Sym *s = t->dim[i].sym;
        c.n *= t->dim[i].n;
        if (!s) continue;
        if (s->kind == SYM_LEAF || c.sym) c.n *= s->bound;
        else c.sym = s;
    }
    return c;
}

int64_t rows_bound(const Type *t) { return dims_bound(t, 0, t->ndim - 1); }

TaskCount tasks_of_rows(const Type *t, int64_t grain) { return tasks_of_dims(t, 0, t->ndim - 1, grain); }

int64_t rows_grain(const Type *t, int64_t bytes_per_row) {
    int64_t rows = rows_bound(t), grain = (64 << 10) / (bytes_per_row > 0 ? bytes_per_row : 1);
    if (grain < 1) grain = 1;
    if (grain > rows) grain = rows > 0 ? rows : 1;
    return grain;
}

static bool is_streamable(const Type *t) {
    for (int i = 0; i < t->ndim; i++)
        if (t->dim[i].sym && t->dim[i].sym->kind == SYM_PLAIN) return false;       // mostly far below its bound
    return t->dtype == F32 && t->ndim && !t->dim[t->ndim - 1].sym && type_cols(t) % 16 == 0;
}

uint32_t streamed_results(const KernelNode *k) {
    const Machine *m = k->machine;
    const MachineLevel *memory = m ? &m->level[LEVEL_DRAM] : NULL;
    if (!m || machine_level(m, (int64_t)k->bytes, 0) != LEVEL_DRAM ||
        machine_bandwidth(m, memory->stream, 0) <= machine_bandwidth(m, memory->write, 0))
        return 0;
    uint32_t streamed = 0;
    for (int i = 0; i < k->node->n_out && i < 32; i++)
        if (is_streamable(&k->node->out[i].type)) streamed |= 1u << i;
    return streamed & ~k->in_place;
}

bool same_rows(const Type *a, const Type *b) {
    int64_t n[2] = {1, 1};
    const Sym *sym[2][MAX_DIM];
    int n_sym[2] = {0, 0};
    const Type *t[2] = {a, b};
    for (int j = 0; j < 2; j++)
        for (int i = 0; i + 1 < t[j]->ndim; i++) {
            const Sym *s = t[j]->dim[i].sym;
            n[j] *= t[j]->dim[i].n;
            if (s && s->kind == SYM_LEAF) n[j] *= s->bound;
            else if (s) sym[j][n_sym[j]++] = s;
        }
    if (n[0] != n[1] || n_sym[0] != n_sym[1]) return false;
    for (int i = 0; i < n_sym[0]; i++) {
        int here = 0, there = 0;
        for (int j = 0; j < n_sym[0]; j++) here += sym[0][j] == sym[0][i], there += sym[1][j] == sym[0][i];
        if (here != there) return false;
    }
    return true;
}

static double data_element(const Tensor *t, int64_t i) {
    if (!t->ndim) i = 0;
    switch (t->dtype) {
    case F32: return (double)((const float *)t->data)[i];
    case I32: return ((const int32_t *)t->data)[i];
    default: return ((const uint8_t *)t->data)[i];
    }
}

void *const_elements(Arena *a, const Node *n, DType t) {
    int64_t count = type_bound_elements(&n->out[0].type);
    char *to = arena_alloc(a, (size_t)(count * dtype_bytes(t)) + 1);
    for (int64_t i = 0; i < count; i++) {
        double x = n->attr.data ? data_element(&n->attr.data->tensor, i) : n->attr.value;
        switch (t) {
        case F32: ((float *)to)[i] = (float)x; break;
        case BF16: {
            float f = (float)x;
            uint32_t bits;
            memcpy(&bits, &f, sizeof bits);
            ((uint16_t *)to)[i] =
                (uint16_t)(f != f ? (bits >> 16 | 0x40) : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            break;
        }
        case F16: ((_Float16 *)to)[i] = (_Float16)(float)x; break;
        case I32: ((int32_t *)to)[i] = (int32_t)x; break;
        case U32: ((uint32_t *)to)[i] = (uint32_t)x; break;
        case I8: ((int8_t *)to)[i] = (int8_t)x; break;
        case U8: ((uint8_t *)to)[i] = (uint8_t)x; break;
        default: to[i] = x != 0; break;
        }
    }
    return to;
}

double predicted_seconds(const Machine *m, const Predicted *p, int threads) {
    if (threads <= 0 || threads > m->threads) threads = m->threads;
    double compute = p->compute / threads, moved = p->bytes / machine_bandwidth(m, m->level[p->level].read, threads);
    if (p->slower) moved *= p->slower;
    return (compute > moved ? compute : moved) + p->tasks * m->task / threads;
}
