#include "runtime/few_rows.h"

#include <string.h>

#include "runtime/ranks.h"

enum { MOST_TOKENS = 64, MOST_BYTES = 512 << 10 };       // of a rank in a run; of a message

// ---- what a plan allows ----------------------------------------------------------------------------------

static int64_t bound_of(const RtPlan *plan, const char *name) {
    const RtSym *s = RT_TABLE(plan, RtSym, syms);
    for (uint32_t i = 0; i < plan->syms.n; i++)
        if (!strcmp(RT_TEXT(plan, s[i].name), name)) return s[i].bound;
    return 0;
}

static bool is_same_place(const RtArg *a, const RtArg *b) { return a->arena == b->arena && a->offset == b->offset; }

static bool reads(const RtPlan *plan, const RtStep *step, const RtArg *what, int sym) {
    const RtArg *arg = RT_TABLE(plan, RtArg, args) + step->first_arg;
    for (uint32_t i = 0; i < step->n_args; i++)
        if (is_same_place(&arg[i], what)) return true;
    for (int p = 0; p < RT_MAX_PHASES; p++)
        if (step->tasks[p].n && step->tasks[p].sym == sym) return true;
    return false;
}

// Does a step read the offsets that step `at` makes before the first rows that go by them are there?
static bool is_read_early(const RtPlan *plan, uint32_t at) {
    const RtStep *step = RT_TABLE(plan, RtStep, steps);
    const RtArg *args = RT_TABLE(plan, RtArg, args), *far = &args[step[at].first_arg + 1];
    const RtExchange *rows = NULL;
    for (uint32_t i = at + 1; i < plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        if (x && x->kind == RT_WAIT) {
            if (rows && x->sequence == rows->sequence) return false;
        } else if (x && x->kind == RT_EXCHANGE_ROWS && is_same_place(&args[step[i].first_arg + 2], far)) {
            if (!rows) rows = x;
            if (!x->pending) return false;
        } else if (reads(plan, &step[i], far, step[at].defines_sym)) {
            return true;
        }
    }
    return true;
}

typedef struct { int64_t tokens, header, choices, row; } Few;

static Few few_of(const RtPlan *plan) {
    Few f = {.tokens = MOST_TOKENS};
    int64_t S = bound_of(plan, "S"), m = rt_group_size(plan->mesh, RT_GROUP_EXP);
    if (!S || !bound_of(plan, "R") || m == 1) return (Few){0};
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        const RtExchange *x = rt_exchange_of(plan, i);
        if (!x) continue;
        if (x->per_node || x->chunks) return (Few){0};
        if (x->kind == RT_EXCHANGE_OFFSETS) {
            int sym = RT_TABLE(plan, RtStep, steps)[i].defines_sym;
            if (sym < 0 || is_read_early(plan, i)) return (Few){0};
            int64_t choices = (RT_TABLE(plan, RtSym, syms)[sym].bound + m * S - 1) / (m * S);
            int64_t header = (int64_t)x->slots / m * x->leaves * (int64_t)sizeof(int32_t);
            if (choices > f.choices) f.choices = choices;
            if (header > f.header) f.header = header;
        } else if (x->kind == RT_EXCHANGE_ROWS || x->kind == RT_RETURN_ROWS) {
            int64_t row = x->elements * dtype_bytes((DType)x->dtype);
            if (row > f.row) f.row = row;
        }
    }
    if (!f.choices || !f.row) return (Few){0};
    int64_t fit = (MOST_BYTES - f.header) / (f.choices * f.row);
    if (fit < f.tokens) f.tokens = fit > 0 ? fit : 0;
    return f;
}

int64_t rt_few_tokens(const RtPlan *plan) { return few_of(plan).tokens; }

size_t rt_few_message_bytes(const RtPlan *plan) {
    Few f = few_of(plan);
    return f.tokens ? ((size_t)(f.header + f.tokens * f.choices * f.row) + 63) & ~(size_t)63 : 0;
}

// ---- messages --------------------------------------------------------------------------------------------

static size_t row_bytes(const RtFewRows *w) { return (size_t)(w->x.elements * dtype_bytes((DType)w->x.dtype)); }
static unsigned char *sent(const RtFewRows *w, int k) { return w->work + (size_t)k * w->message_bytes; }
static unsigned char *came(const RtFewRows *w, int k) { return sent(w, w->m + k); }

// Offsets at home of what goes to slot `slot`, from [0] to [leaves]; NULL: another replica serves this rank.
static const int32_t *at_home(const RtFewRows *w, int slot) {
    if (w->table && !rt_slot_serves(w->table, slot, w->i)) return NULL;
    return w->home + (int64_t)(w->table ? w->table->expert[slot] : slot) * w->x.leaves;
}

static const int32_t *at_experts(const RtFewRows *w, int s, int k) { return w->far + (int64_t)(s * w->m + k) * w->x.leaves; }

static int slots_of_rank(const RtFewRows *w) { return w->x.slots / w->m; }

static size_t move(unsigned char *to, const unsigned char *from, size_t bytes) {
    if (bytes) memcpy(to, from, bytes);
    return bytes;
}

static size_t pack_for_experts(const RtFewRows *w, int k) {
    int mine = slots_of_rank(w), leaves = w->x.leaves;
    int32_t *count = (int32_t *)(void *)sent(w, k);
    unsigned char *rows = (unsigned char *)(count + (int64_t)mine * leaves);
    for (int s = 0; s < mine; s++) {
        const int32_t *h = at_home(w, k * mine + s);
        for (int l = 0; l < leaves; l++) *count++ = h ? h[l + 1] - h[l] : 0;
        if (h) rows += move(rows, w->home_rows + (size_t)h[0] * row_bytes(w), (size_t)(h[leaves] - h[0]) * row_bytes(w));
    }
    return (size_t)(rows - sent(w, k));
}

static size_t pack_for_home(const RtFewRows *w, int k) {
    unsigned char *rows = sent(w, k);
    for (int s = 0; s < slots_of_rank(w); s++) {
        const int32_t *f = at_experts(w, s, k);
        rows += move(rows, w->far_rows + (size_t)f[0] * row_bytes(w), (size_t)(f[w->x.leaves] - f[0]) * row_bytes(w));
    }
    return (size_t)(rows - sent(w, k));
}

static size_t due_at_home(const RtFewRows *w, int k) {
    int64_t n = 0;
    for (int s = 0; s < slots_of_rank(w); s++) {
        const int32_t *h = at_home(w, k * slots_of_rank(w) + s);
        n += h ? h[w->x.leaves] - h[0] : 0;
    }
    return (size_t)n * row_bytes(w);
}

void rt_few_op(const RtFewRows *w, RtCommPart *send, RtCommPart *recv, RtCommOp *op) {
    bool back = w->x.kind == RT_RETURN_ROWS;
    int n = 0;
    for (int k = 0; k < w->m; k++) {
        size_t bytes = back ? pack_for_home(w, k) : pack_for_experts(w, k);
        if (k == w->i) {
            move(came(w, k), sent(w, k), bytes);
            continue;
        }
        send[n] = (RtCommPart){sent(w, k), (int64_t)bytes, k};
        recv[n++] = (RtCommPart){came(w, k), back ? (int64_t)due_at_home(w, k) : (int64_t)w->message_bytes, k};
    }
    op->kind = back ? RT_COMM_BACK : RT_COMM_FEW;
    op->send = send;
    op->recv = recv;
    op->n_send = op->n_recv = n;
}

static void unpack_at_experts(const RtFewRows *w) {
    int mine = slots_of_rank(w), leaves = w->x.leaves;
    int32_t at = 0, *to = w->far;
    for (int s = 0; s < mine; s++)
        for (int k = 0; k < w->m; k++)
            for (int l = 0; l < leaves; l++) {
                *to++ = at;
                at += ((const int32_t *)(const void *)came(w, k))[s * leaves + l];
            }
    *to = at;
    for (int k = 0; k < w->m; k++) {
        const unsigned char *rows = came(w, k) + (size_t)mine * (size_t)leaves * sizeof(int32_t);
        for (int s = 0; s < mine; s++) {
            const int32_t *f = at_experts(w, s, k);
            rows += move(w->far_rows + (size_t)f[0] * row_bytes(w), rows, (size_t)(f[leaves] - f[0]) * row_bytes(w));
        }
    }
}

static void unpack_at_home(const RtFewRows *w) {
    for (int k = 0; k < w->m; k++) {
        const unsigned char *rows = came(w, k);
        for (int s = 0; s < slots_of_rank(w); s++) {
            const int32_t *h = at_home(w, k * slots_of_rank(w) + s);
            if (h) rows += move(w->home_rows + (size_t)h[0] * row_bytes(w), rows, (size_t)(h[w->x.leaves] - h[0]) * row_bytes(w));
        }
    }
}

void rt_few_end(const RtFewRows *w) {
    if (w->x.kind == RT_RETURN_ROWS) unpack_at_home(w);
    else unpack_at_experts(w);
}
