// In which loop over the columns a step is computed, and what waits between loops.
#include "codegen/cpu/body.h"

int body_available(const Step *s) {        // first level that may read s
    if (s->anywhere && s->kind != S_ELEM) return 0;
    return s->kind == S_SUM || s->kind == S_MAX ? s->level + 1 : s->level;
}

static bool is_cheap(const Step *s) {
    switch (s->op) {
    case OP_EXP:
    case OP_LOG:
    case OP_LOG1P:
    case OP_TANH:
    case OP_SIGMOID:
    case OP_ERF:
    case OP_SIN:
    case OP_COS:
    case OP_DIV: case OP_MOD: case OP_SQRT: case OP_RSQRT: return false;
    default: break;
    }
    for (int i = 0; i < s->n_in; i++) {
        const Step *x = s->in[i];
        if (x->wide && x->kind != S_LOAD && x->kind != S_TABLE && x->kind != S_INDEX) return false;
    }
    return true;
}

void body_set_levels(Body *b) {
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        for (int j = 0; j < s->n_in; j++)
            if (body_available(s->in[j]) > s->level) s->level = body_available(s->in[j]);
        for (int j = 0; j < s->n_parts; j++)
            if (body_available(s->part[j].from) + 1 > s->level) s->level = body_available(s->part[j].from) + 1;
        if (s->whole) s->level = s->whole->level;
        if (s->by) s->level = s->by->level;
        if (s->kind == S_ELEM && s->wide && is_cheap(s)) s->anywhere = true;
        if (s->kind == S_BUFFER) s->anywhere = false;
        if (s->level + 1 > b->n_levels) b->n_levels = s->level + 1;
    }
    // as late as their readers allow: fewer values wait in buffers
    int n = b->steps.n;
    int *latest = arena_array(b->a, int, n + 1);
    for (int i = 0; i < n; i++) latest[i] = -1;
    for (int i = 0; i < n; i++) b->steps.at[i]->seen = i;      // number, for now
    for (int i = 0; i < b->stores.n; i++) latest[b->stores.at[i].from->seen] = b->stores.at[i].from->level;
    for (int i = n - 1; i >= 0; i--) {
        Step *s = b->steps.at[i];
        if (is_computed(s) && latest[i] > s->level) s->level = latest[i];
        for (int j = 0; j < s->n_in; j++) {
            int *l = &latest[s->in[j]->seen];
            if (*l < 0 || *l > s->level) *l = s->level;
        }
        for (int j = 0; j < s->n_parts; j++) {
            int *l = &latest[s->part[j].from->seen];
            if (*l < 0 || *l > s->level - 1) *l = s->level - 1;
        }
    }
    for (int i = 0; i < n; i++) b->steps.at[i]->seen = -1;
}

static int64_t buffer_bytes(Dim width) {
    return ((dim_bound(width) + LANES - 1) / LANES * LANES + LANES) * 4;
}

// Who is read in a later loop than its own, and where such values wait.
void body_keep_values(Body *b) {
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        for (int j = 0; j < s->n_in; j++) {
            Step *x = s->in[j];
            if (is_computed(x) && x->wide && !x->anywhere && x->level < s->level) x->kept = true;
        }
        for (int j = 0; j < s->n_parts; j++) {
            Step *x = s->part[j].from;
            if (is_computed(x) && x->wide && !x->anywhere && x->level < s->level - 1) x->kept = true;
        }
    }
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        bool memory = s->kind == S_BUFFER ? !s->whole : s->kept && !in_registers(s->width);
        if (s->kind == S_TOPK) {
            s->keys = b->scratch;
            b->scratch += (buffer_bytes(s->width) + 63) / 64 * 64;
        }
        if (!memory) continue;
        s->buffer = b->scratch;
        b->scratch += (buffer_bytes(s->width) + 63) / 64 * 64;
    }
    if (b->scratch > RT_SCRATCH_BYTES) b->ok = false;
}
