// head_loss, head_loss_grad and both at once: the last matmul and the cross entropy behind it.
//
//     a round takes some of the rows; its logits, [rows of the round, V] of f32, lie in the workspace
//     phase 0    logits = x w^T              task = run of rows x panels of the vocabulary
//     phase 1    largest, sum of exponentials, loss;  logits -> g, in the type of x      task = few rows
//     phase 2    dx = g w                    task = run of rows x columns of D
//                dw = g^T x, leaf tree       task = part of [V, D]
//
// A round's rows are whole leaves, or a piece of one.  What dw has of earlier rounds, finished sums of leaves
// and chains that go on, lies in dw itself and in levels behind the logits: those of a binary counter over
// rounds.  The fewer rows, the smaller the logits, but the more often w is packed and dw read and written.
#include "codegen/cpu/product.h"
#include <math.h>

enum {
    ROUND_BYTES = 32 << 20, // of logits and levels: no choice of rounds has to be smaller
    LEAST_ROWS = 256,       // of a round that is a piece of a leaf
    RUN_ROWS = 512,         // most of a task that packs w
    LOSS_ROWS = 8,          // of a task of phase 1
    LEAST_TASKS = 8,        // wanted of a phase
    NARROW_COLUMNS = 256    // of dx at once, if it is not f32
};

typedef struct {
    DType type;
    int64_t rows, D, V, step;    // bound of rows; elements from a row of logits to the next
    int leaves;
    int64_t leaf_rows;           // at bound
    bool vary;                   // rows have a symbol
    bool loss, grad;             // which of both ops
    bool part;                   // of the vocabulary: labels may be in another
    int lse_in, dnll_in, lse_out, dx_out;
    int group, pieces;           // a round is `group` leaves, or one of `pieces` of a leaf
    int rounds, units, levels;   // units: groups of leaves; levels of dw in the workspace
    int64_t round_rows;          // most
    int64_t run, runs, columns, groups;       // of phase 0: rows, panels of w
    int64_t dx_run, dx_runs, dx_columns, dx_groups;
    SumCut cut;
} Head;

static int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
static bool is_even(unsigned n) { return !(n & 1); }

// What is merged behind unit i: the levels its carry runs through, behind the last all.
static int merges_behind(int i, int units, int *top) {
    int n = 0;
    *top = 0;
    for (int bits = i; bits; bits &= bits - 1) ++*top;
    if (i == units - 1) return *top;
    for (unsigned next = (unsigned)i + 1; is_even(next); next /= 2) n++;
    return n;
}

// Levels above the first that rounds write.
static int levels_of(int units, int pieces) {
    int most = 0, top;
    for (int i = 0; i < units; i++) {
        int merges = merges_behind(i, units, &top), level = pieces > 1 ? top : top - merges;
        if (level > most) most = level;
    }
    return most;
}

static int64_t workspace_of(const Head *h) {
    int64_t level = h->rounds > 1 && h->grad ? h->V * h->D * 4 : 0;
    return h->round_rows * h->step * 4 + level * h->levels;
}

static void set_rounds(Head *h, int group, int pieces) {
    h->group = group;
    h->pieces = pieces;
    h->units = (int)parts(h->leaves, group);
    h->rounds = h->units * pieces;
    h->round_rows = pieces > 1 ? parts(h->leaf_rows, pieces) : group * h->leaf_rows;
    h->levels = levels_of(h->units, pieces);
}

// Choice i, by falling number of rows: 2^j leaves, then halves, quarters, .. of one.  False: there is none.
static bool set_choice(Head *h, int i) {
    int most = 0;
    while (1 << most < h->leaves) most++;
    int pieces = i > most ? 1 << (i - most) : 1, group = i > most ? 1 : 1 << (most - i);
    if (pieces > 1 && parts(h->leaf_rows, pieces) < LEAST_ROWS) return false;
    set_rounds(h, group < h->leaves ? group : h->leaves, pieces);
    return true;
}

// The most rows whose workspace is within ROUND_BYTES, or little larger than the smallest there is.
static void choose_rounds(Head *h) {
    int64_t least = INT64_MAX;
    for (int i = 0; set_choice(h, i); i++)
        if (workspace_of(h) < least) least = workspace_of(h);
    int64_t enough = least + least / 4 > ROUND_BYTES ? least + least / 4 : ROUND_BYTES;
    for (int i = 0; set_choice(h, i) && workspace_of(h) > enough; i++) {}
}

// Parts of [V, D], as wide as can be: each part packs its columns of g, and x, for itself.
static SumCut cut_of(int64_t V, int64_t D) {
    SumCut c = {.m = 112, .n = 512};
    for (;;) {
        c.runs = parts(V, c.m);
        c.groups = parts(D, c.n);
        if (c.runs * c.groups >= LEAST_TASKS || (c.m == 28 && c.n == 32)) break;
        if (c.m > 28) c.m /= 2;
        else c.n /= 2;
    }
    c.m = parts(V, c.runs);
    c.n = up(parts(D, c.groups), 2 * LANES);
    c.groups = parts(D, c.n);
    return c;
}

static bool head_of(const KernelNode *k, Head *h) {
    const Node *n = k->node;
    const Type *x = &n->in[0]->type, *w = &n->in[1]->type;
    *h = (Head){.type = x->dtype, .rows = rows_bound(x), .D = type_cols(x), .V = w->dim[0].n};
    for (int i = 0; i + 1 < x->ndim; i++) {
        const Sym *s = x->dim[i].sym;
        if (s && s->kind == SYM_RAGGED) return false;
        h->vary |= s && s->kind == SYM_PLAIN;
    }
    h->loss = n->op != OP_HEAD_LOSS_GRAD;
    h->grad = n->op != OP_HEAD_LOSS;
    h->part = n->op == OP_HEAD_LOSS_GRAD && n->attr.over;
    h->lse_in = h->loss ? -1 : 3;
    h->lse_out = h->grad ? -1 : 1;
    h->dnll_in = !h->grad ? -1 : h->loss ? 3 : 4;
    h->dx_out = !h->grad ? -1 : h->loss ? 1 : 0;
    h->leaves = h->grad && n->attr.leaves > 1 ? (int)n->attr.leaves : 1;
    h->leaf_rows = h->rows / h->leaves;
    // Rows of logits a multiple of 4 KiB apart would meet in the same cache sets.
    h->step = up(h->V, LANES) / LANES % 2 ? up(h->V, LANES) : up(h->V, LANES) + LANES;
    choose_rounds(h);
    h->runs = parts(h->round_rows, RUN_ROWS);
    h->run = parts(h->round_rows, h->runs);
    h->groups = rows_groups(k->machine, h->runs, h->run, h->D, h->V, h->vary);
    h->dx_runs = h->runs;
    h->dx_run = h->run;
    h->dx_groups = parts(LEAST_TASKS / 2, h->dx_runs);
    h->dx_columns = up(parts(h->D, h->dx_groups), 2 * LANES);
    h->dx_groups = parts(h->D, h->dx_columns);
    h->cut = cut_of(h->V, h->D);
    Rows logits = {.a_type = h->type, .y_type = F32, .K = h->D, .N = h->V, .max_rows = h->run};
    return h->type != F16 && h->rows > 0 && rows_possible(&logits);
}

// ---- its products -------------------------------------------------------------------------------

// Elements from a row of g to the next, in the place of the logits.
static int64_t g_step(const Head *h) { return h->step * 4 / dtype_bytes(h->type); }

// Heights of tiles for a round's rows in runs.
static unsigned heights_of(const Head *h, int size, int64_t run) {
    if (h->vary) return tile_all_heights(size);
    int64_t last = h->pieces > 1 ? h->leaf_rows - (h->pieces - 1) * h->round_rows
                                 : (h->leaves - (h->units - 1) * h->group) * h->leaf_rows;
    return tile_heights(run, size) | tile_heights(h->round_rows % run, size) |
           (last >= run ? tile_heights(run, size) : 0) | tile_heights(last % run, size);
}

static Rows logits_of(const KernelNode *k, const Head *h, KernelDesc *d) {
    Rows y = {.a_type = h->type, .b_type = h->type, .y_type = F32, .tb = true, .K = h->D, .N = h->V, .y_row = h->step, .max_rows = h->run};
    RowsLoad load = {.vary = h->vary, .sides = 1, .matrices = 1, .runs = (double)h->rows / (double)h->run, .rows = (double)h->run,
                     .tasks = (double)(h->rounds * h->runs * h->groups)};
    rows_choose(&y, k, load, d, "logits");
    y.heights = heights_of(h, y.schedule.rows, h->run);
    return y;
}

// A chain over the vocabulary may be cut, and then goes on from what is stored: so that is f32.
static Rows dx_of(const KernelNode *k, const Head *h, KernelDesc *d) {
    bool narrow = h->type != F32;
    Rows dx = {.a_type = h->type, .b_type = h->type, .y_type = F32, .K = h->V, .N = h->D, .y_row = narrow ? NARROW_COLUMNS : h->D,
               .a_given = g_step(h), .max_rows = h->dx_run, .scratch_used = narrow ? h->dx_run * NARROW_COLUMNS * 4 : 0};
    RowsLoad load = {.cut = true, .vary = h->vary, .sides = 1, .matrices = 1, .runs = (double)h->rows / (double)h->dx_run,
                     .rows = (double)h->dx_run, .tasks = (double)(h->rounds * h->dx_runs * h->dx_groups)};
    rows_choose(&dx, k, load, d, "dx");
    dx.heights = heights_of(h, dx.schedule.rows, h->dx_run);
    return dx;
}

static Sums dw_of(const KernelNode *k, const Head *h, KernelDesc *d) {
    Sums s = {.a_type = h->type, .b_type = h->type, .y_type = F32, .M = h->V, .N = h->D, .leaves = h->group, .a_given = g_step(h), .cut = h->cut};
    sums_choose(&s, k, 1, (double)h->rows, d, "dw");
    return s;
}

bool describe_head_loss(const KernelNode *k, KernelDesc *d) {
    Head h;
    if (!head_of(k, &h)) return false;
    if (h.vary) str_printf(&d->key, " at most %lld", (long long)h.rows);
    product_key(k, d);
    logits_of(k, &h, d);
    if (h.grad) dx_of(k, &h, d), dw_of(k, &h, d);
    d->n_phases = h.grad ? 3 : 2;
    d->n_rounds = h.rounds;
    d->tasks[0] = tasks_fixed(h.runs * h.groups);
    d->tasks[1] = tasks_fixed(parts(h.round_rows, LOSS_ROWS));
    if (h.grad) d->tasks[2] = tasks_fixed(h.dx_runs * h.dx_groups + h.cut.runs * h.cut.groups);
    d->workspace = workspace_of(&h);
    return true;
}

// ---- the round ----------------------------------------------------------------------------------

typedef struct {
    const Head *h;
    LV round, phase, begin, n;   // rows begin .. begin + n - 1
    LV leaf_rows;                // now
    LV logits;                   // of row `begin`
} Round;

static Round round_of(Cg *cg, const KernelNode *k, const Head *h) {
    LV zero = cg_int(cg, 0), phases = cg_int(cg, h->grad ? 3 : 2), pieces = cg_int(cg, h->pieces);
    LV rows = cg_rows(cg, &k->node->in[0]->type);
    Round r = {.h = h, .round = zero, .phase = cg->phase, .logits = cg_workspace(cg)};
    r.leaf_rows = cg_div(cg, rows, cg_int(cg, h->leaves));
    if (h->rounds > 1) {
        r.round = cg_div(cg, cg->phase, phases);
        r.phase = cg_rem(cg, cg->phase, phases);
    }
    r.begin = cg_mul(cg, cg_muli(cg, cg_div(cg, r.round, pieces), h->group), r.leaf_rows);
    LV end = cg_min(cg, cg_add(cg, r.begin, cg_muli(cg, r.leaf_rows, h->group)), rows);
    if (h->pieces > 1) {
        r.begin = cg_add(cg, r.begin, cg_muli(cg, cg_rem(cg, r.round, pieces), h->round_rows));
        end = cg_min(cg, end, cg_addi(cg, r.begin, h->round_rows));
    }
    r.n = cg_max(cg, cg_sub(cg, end, r.begin), zero);
    return r;
}

// Rows first .. of the round, at most `most`.
static LV rows_from(Cg *cg, const Round *r, LV first, int64_t most) {
    return cg_min(cg, cg_sub(cg, r->n, first), cg_int(cg, most));
}
static LV logits_at(Cg *cg, const Round *r, LV row) {
    return cg_at(cg, F32, r->logits, cg_muli(cg, row, r->h->step));
}

// ---- phase 0 ------------------------------------------------------------------------------------

static void emit_logits(Cg *cg, const Round *r) {
    const Head *h = r->h;
    Rows y = logits_of(cg->k, h, NULL);
    rows_begin(cg, &y);
    LV groups = cg_int(cg, h->groups), each = cg_int(cg, parts(y.n_panels, h->groups));
    LV first = cg_muli(cg, cg_div(cg, cg->task, groups), h->run);
    LV lo = cg_mul(cg, cg_rem(cg, cg->task, groups), each);
    rows_run(cg, &y,
             &(RowsRun){.a = cg_at(cg, h->type, cg_in(cg, 0),
                                   cg_muli(cg, cg_add(cg, r->begin, first), h->D)),
                        .b = cg_in(cg, 1),
                        .y = logits_at(cg, r, first),
                        .n = rows_from(cg, r, first, h->run),
                        .k = cg_int(cg, h->D),
                        .lo = lo,
                        .hi = cg_min(cg, cg_add(cg, lo, each), cg_int(cg, y.n_panels))});
}

// ---- phase 1 ------------------------------------------------------------------------------------

static LV larger(Cg *cg, LV a, LV b) {
    return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, a, b, ""), a, b);
}
static LV lane0(Cg *cg, LV v) { return LLVMBuildExtractElement(cg->b, v, cg_int32(cg, 0), ""); }

// log of the sum of exponentials of a row.
static LV lse_of_row(Cg *cg, const Head *h, LV logits) {
    enum { AT_ONCE = 4 };
    int64_t whole = h->V / LANES * LANES, fours = whole / (AT_ONCE * LANES) * (AT_ONCE * LANES),
            twos = whole / (2 * LANES) * (2 * LANES);
    LV mask = tile_mask(cg, (int)(h->V - whole)), tail = cg_int(cg, whole), most[AT_ONCE], next[AT_ONCE];
    CgLoop l;
    for (int i = 0; i < AT_ONCE; i++) most[i] = cg_vec(cg, -INFINITY);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, fours), AT_ONCE * LANES, AT_ONCE, most);
    for (int i = 0; i < AT_ONCE; i++)
        next[i] =
            larger(cg, cg_load_vec(cg, F32, logits, cg_addi(cg, l.i, i * LANES), NULL), l.carry[i]);
    cg_loop_end(cg, &l, next);
    for (int i = 0; i < AT_ONCE; i++) most[i] = l.carry[i];
    for (int i = 1; i < AT_ONCE; i++) most[0] = larger(cg, most[i], most[0]);
    for (int64_t at = fours; at < whole; at += LANES)
        most[0] = larger(cg, cg_load_vec(cg, F32, logits, cg_int(cg, at), NULL), most[0]);
    if (whole < h->V)
        most[0] = cg_select(cg, mask, larger(cg, cg_load_vec(cg, F32, logits, tail, mask), most[0]), most[0]);
    LV m = cg_splat(cg, cg_fold_max(cg, most[0])), init = cg_vec(cg, 0);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, twos), 2 * LANES, 1, &init);
    LV e[2], sum = l.carry[0];
    for (int i = 0; i < 2; i++)
        e[i] = cg_fsub(cg, cg_load_vec(cg, F32, logits, cg_addi(cg, l.i, i * LANES), NULL), m);
    cg_exp_down_two(cg, e);
    for (int i = 0; i < 2; i++) sum = cg_fadd(cg, sum, e[i]);
    cg_loop_end(cg, &l, &sum);
    sum = l.carry[0];
    if (twos < whole)
        sum = cg_fadd(cg, sum, cg_exp_down(cg, cg_fsub(cg, cg_load_vec(cg, F32, logits, cg_int(cg, twos), NULL), m)));
    if (whole < h->V) {
        LV last = cg_exp_down(cg, cg_fsub(cg, cg_load_vec(cg, F32, logits, tail, mask), m));
        sum = cg_select(cg, mask, cg_fadd(cg, sum, last), sum);
    }
    LV total = cg_splat(cg, cg_fold_sum(cg, sum));
    return lane0(cg, cg_fadd(cg, m, cg_log(cg, total)));
}

// logits -> g = (exp(logit - lse) - (taken at the label)) * dnll, in place: a bf16 lies where a logit was that has been read.
// The vector with the label comes last: elsewhere nothing is taken off.
static void weigh_row(Cg *cg, const Head *h, LV logits, LV lse, LV label, LV taken, LV dnll) {
    LV lane = cg_rem(cg, label, cg_int(cg, LANES)), at = cg_sub(cg, label, lane);
    LV z = cg_splat(cg, lse), d = cg_splat(cg, dnll), held = cg_load_vec(cg, F32, logits, at, NULL);
    int64_t odd = parts(h->V, LANES) % 2, whole = up(h->V, LANES) - odd * LANES;
    CgLoop col;
    cg_for(cg, &col, cg_int(cg, 0), cg_int(cg, whole), 2 * LANES);
    LV x[2];
    for (int i = 0; i < 2; i++)
        x[i] = cg_fsub(cg, cg_load_vec(cg, F32, logits, cg_addi(cg, col.i, i * LANES), NULL), z);
    cg_exp_two(cg, x);
    for (int i = 0; i < 2; i++)
        cg_store_vec(cg, h->type, cg_fmul(cg, x[i], d), logits, cg_addi(cg, col.i, i * LANES), NULL);
    cg_end(cg, &col);
    LV e, last = cg_int(cg, whole);
    if (odd) {
        e = cg_exp(cg, cg_fsub(cg, cg_load_vec(cg, F32, logits, last, NULL), z));
        cg_store_vec(cg, h->type, cg_fmul(cg, e, d), logits, last, NULL);
    }
    LV is_label = LLVMBuildICmp(cg->b, LLVMIntEQ, cg_lanes(cg),
                                cg_splat(cg, LLVMBuildTrunc(cg->b, lane, cg->i32, "")), "");
    LV one = cg_select(cg, is_label, cg_splat(cg, taken), cg_vec(cg, 0));
    e = cg_fsub(cg, cg_exp(cg, cg_fsub(cg, held, z)), one);
    cg_store_vec(cg, h->type, cg_fmul(cg, e, d), logits, at, NULL);
}

static void emit_loss(Cg *cg, const Round *r) {
    const Head *h = r->h;
    LV zero = cg_int(cg, 0), nought = cg_float(cg, 0), first = cg_muli(cg, cg->task, LOSS_ROWS);
    CgLoop row;
    cg_for(cg, &row, first, cg_add(cg, first, rows_from(cg, r, first, LOSS_ROWS)), 1);
    LV at = cg_add(cg, r->begin, row.i), logits = logits_at(cg, r, row.i);
    LV label = cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 2), at));
    LV known = LLVMBuildICmp(cg->b, LLVMIntULT, label, cg_int(cg, h->V), "");
    LV counts = h->part ? LLVMBuildICmp(cg->b, LLVMIntSGE, label, zero, "") : known;
    label = cg_select(cg, known, label, zero);
    LV lse = h->loss ? lse_of_row(cg, h, logits) : cg_load1(cg, F32, cg_in(cg, h->lse_in), at);
    if (h->loss) {
        LV nll = cg_fsub(cg, lse, cg_load1(cg, F32, logits, label));
        cg_store1(cg, F32, cg_select(cg, known, nll, nought), cg_out(cg, 0), at);
        if (h->lse_out >= 0) cg_store1(cg, F32, lse, cg_out(cg, h->lse_out), at);
    }
    if (h->grad) {
        LV taken = h->part ? cg_select(cg, known, cg_float(cg, 1), nought) : cg_float(cg, 1);
        LV d = cg_select(cg, counts, cg_load1(cg, F32, cg_in(cg, h->dnll_in), at), nought);
        weigh_row(cg, h, logits, lse, label, taken, d);
    }
    cg_end(cg, &row);
}

// ---- phase 2 ------------------------------------------------------------------------------------

// n x cols numbers of f32 become the type of dx.
static void narrow_rows(Cg *cg, const Head *h, LV from, int64_t from_step, LV to, LV n, LV cols) {
    CgLoop row, col;
    cg_for(cg, &row, cg_int(cg, 0), n, 1);
    LV source = cg_at(cg, F32, from, cg_muli(cg, row.i, from_step)),
       target = cg_at(cg, h->type, to, cg_muli(cg, row.i, h->D));
    cg_for(cg, &col, cg_int(cg, 0), cols, LANES);
    LV mask = h->D % LANES ? cg_tail_mask(cg, cg_sub(cg, cols, col.i)) : NULL;
    cg_store_vec(cg, h->type, cg_load_vec(cg, F32, source, col.i, mask), target, col.i, mask);
    cg_end(cg, &col);
    cg_end(cg, &row);
}

static void emit_dx(Cg *cg, const Round *r, LV task) {
    const Head *h = r->h;
    bool narrow = h->type != F32;
    Rows dx = dx_of(cg->k, h, NULL);
    rows_begin(cg, &dx);
    LV groups = cg_int(cg, h->dx_groups), D = cg_int(cg, h->D);
    LV first = cg_muli(cg, cg_div(cg, task, groups), h->dx_run);
    LV col = cg_muli(cg, cg_rem(cg, task, groups), h->dx_columns);
    LV end = cg_min(cg, cg_addi(cg, col, h->dx_columns), D), n = rows_from(cg, r, first, h->dx_run);
    LV at = cg_at(cg, h->type, cg_out(cg, h->dx_out), cg_muli(cg, cg_add(cg, r->begin, first), h->D));
    RowsRun u = {.a = logits_at(cg, r, first), .b = cg_in(cg, 1), .y = at, .n = n, .k = cg_int(cg, h->V)};
    CgLoop part;
    cg_for(cg, &part, col, end, narrow ? NARROW_COLUMNS : up(h->dx_columns, dx.panel));
    LV cols = cg_min(cg, cg_sub(cg, end, part.i), cg_int(cg, narrow ? NARROW_COLUMNS : h->dx_columns));
    u.lo = cg_div(cg, part.i, cg_int(cg, dx.panel));
    u.hi = cg_div(cg, cg_addi(cg, cg_add(cg, part.i, cols), dx.panel - 1), cg_int(cg, dx.panel));
    if (narrow) u.y = cg_at(cg, F32, cg->scratch, cg_sub(cg, cg_int(cg, 0), part.i));
    rows_run(cg, &dx, &u);
    if (narrow) narrow_rows(cg, h, cg->scratch, NARROW_COLUMNS, cg_at(cg, h->type, at, part.i), n, cols);
    cg_end(cg, &part);
}

// A leaf of the round, or its piece of one.
static void leaf_rows(void *self, Cg *cg, LV leaf, LV *begin, LV *end) {
    const Round *r = self;
    *begin = cg_mul(cg, leaf, r->leaf_rows);
    *end = cg_min(cg, cg_add(cg, *begin, r->leaf_rows), r->n);
}

static LV count_bits(Cg *cg, LV x) { return cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &x, 1); }
static LV trailing_zeros(Cg *cg, LV x) { // x is not 0
    LV args[2] = {x, cg_bool(cg, true)};
    return cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, args, 2);
}

static SumLevels levels_in(Cg *cg, const Round *r) {
    const Head *h = r->h;
    LV pieces = cg_int(cg, h->pieces), zero = cg_int(cg, 0);
    LV unit = cg_div(cg, r->round, pieces), piece = cg_rem(cg, r->round, pieces);
    SumLevels l = {.step = h->V * h->D * 4, .top = count_bits(cg, unit)};
    l.above = logits_at(cg, r, cg_int(cg, h->round_rows));
    l.goes_on = cg_lt(cg, zero, piece);
    LV finished = cg_eq(cg, piece, cg_int(cg, h->pieces - 1));
    LV merges = cg_select(cg, cg_eq(cg, unit, cg_int(cg, h->units - 1)), l.top,
                          trailing_zeros(cg, cg_addi(cg, unit, 1)));
    l.merges = cg_select(cg, finished, merges, zero);
    return l;
}

static void emit_dw(Cg *cg, Round *r, LV task) {
    const Head *h = r->h;
    Sums s = dw_of(cg->k, h, NULL);
    sums_begin(cg, &s);
    LV groups = cg_int(cg, h->cut.groups);
    SumLevels levels = levels_in(cg, r);
    LV left = cg_sub(cg, cg_int(cg, h->leaves), cg_muli(cg, r->round, h->group));
    SumsRun u = {.a = r->logits,
                 .b = cg_at(cg, h->type, cg_in(cg, 0), cg_muli(cg, r->begin, h->D)),
                 .y = cg_out(cg, h->dx_out + 1),
                 .run = cg_div(cg, task, groups),
                 .group = cg_rem(cg, task, groups),
                 .leaf = leaf_rows,
                 .self = r,
                 .n_leaves = h->pieces > 1 ? NULL : cg_min(cg, left, cg_int(cg, h->group)),
                 .levels = h->rounds > 1 ? &levels : NULL};
    sums_run(cg, &s, &u);
}

static void emit_products(Cg *cg, Round *r) {
    int64_t n_dx = r->h->dx_runs * r->h->dx_groups;
    CgIf f;
    cg_if(cg, &f, cg_lt(cg, cg->task, cg_int(cg, n_dx)));
    emit_dx(cg, r, cg->task);
    cg_else(cg, &f);
    emit_dw(cg, r, cg_addi(cg, cg->task, -n_dx));
    cg_endif(cg, &f);
}

// ---- the templates ------------------------------------------------------------------------------

void emit_head_loss(Cg *cg, const KernelNode *k) {
    Head h;
    CgIf first, second;
    head_of(k, &h);
    Round r = round_of(cg, k, &h);
    cg_if(cg, &first, cg_eq(cg, r.phase, cg_int(cg, 0)));
    emit_logits(cg, &r);
    cg_else(cg, &first);
    if (h.grad) cg_if(cg, &second, cg_eq(cg, r.phase, cg_int(cg, 1)));
    emit_loss(cg, &r);
    if (h.grad) {
        cg_else(cg, &second);
        emit_products(cg, &r);
        cg_endif(cg, &second);
    }
    cg_endif(cg, &first);
}
