// head_loss and head_loss_grad: the last matmul and the cross entropy behind it, logits for a chunk of rows
// at a time.
//
//     head_loss        task = chunk of rows: logits into scratch, then largest, sum of exponentials, loss
//     head_loss_grad   phase 0: chunk of rows: logits -> g -> dx = g w
//                      phase 1: run of the vocabulary: dw = g^T x, per leaf, then the leaf tree
//
// g is kept between the phases while it is small; otherwise phase 1 computes its columns again, rows by rows.
#include "codegen/cpu/product.h"
#include <math.h>

enum {
    LOGIT_BYTES = 2304 << 10, // of logits in scratch
    KEPT_BYTES = 16 << 20,    // of g in the workspace
    BLOCK_ROWS = 256          // whose columns of g phase 1 computes at once
};

typedef struct {
    DType type;
    int64_t rows, D, V, V16, chunk;
    bool vary;   // rows have a symbol
    bool keep;   // g lies in the workspace
    int64_t run; // columns of the vocabulary of a task of phase 1
    int leaves;
} Head;

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static bool head_of(const KernelNode *k, Head *h) {
    const Type *x = &k->node->in[0]->type, *w = &k->node->in[1]->type;
    *h = (Head){.type = x->dtype, .rows = rows_bound(x), .D = type_cols(x), .V = w->dim[0].n};
    for (int i = 0; i + 1 < x->ndim; i++) {
        const Sym *s = x->dim[i].sym;
        if (s && s->kind == SYM_RAGGED) return false;
        h->vary |= s && s->kind == SYM_PLAIN;
    }
    h->V16 = up(h->V, LANES);
    h->chunk = LOGIT_BYTES / (h->V16 * 4);
    if (h->chunk > ROWS_RUN) h->chunk = ROWS_RUN;
    h->leaves = k->node->attr.leaves > 1 ? (int)k->node->attr.leaves : 1;
    h->keep = h->rows * h->V16 * 4 <= KEPT_BYTES;
    int levels = 1;
    while ((1 << levels) <= h->leaves) levels++;
    for (h->run = 128; h->run > 32 && h->run * h->D * 4 * levels > RT_SCRATCH_BYTES / 3;) h->run /= 2;
    return h->chunk >= 1 && h->type != F16 && h->D <= 4096;
}

// Heights of tiles for `all` rows in chunks.
static unsigned chunk_heights(const Head *h, const CpuTarget *t, int64_t all, int64_t chunk) {
    int size = tile_size(t).rows;
    if (h->vary) return tile_all_heights(size);
    return (all >= chunk ? tile_heights(chunk, size) : 0) | tile_heights(all % chunk, size);
}

// logits [n rows][y_row] = x w^T.
static Rows logits_of(const Head *h, int64_t y_row, int64_t max_rows, unsigned heights,
                      int64_t scratch_used) {
    return (Rows){.a_type = h->type,
                  .b_type = h->type,
                  .y_type = F32,
                  .tb = true,
                  .K = h->D,
                  .N = h->V,
                  .y_row = y_row,
                  .min_rows = ROWS_RUN,
                  .max_rows = max_rows,
                  .heights = heights,
                  .scratch_used = scratch_used};
}

static RowsRun run_of(Cg *cg, const Head *h, const Rows *r, LV first, LV n, LV y) {
    return (RowsRun){.a = cg_at(cg, h->type, cg_in(cg, 0), cg_muli(cg, first, h->D)),
                     .b = cg_in(cg, 1),
                     .y = y,
                     .n = n,
                     .k = cg_int(cg, h->D),
                     .lo = cg_int(cg, 0),
                     .hi = cg_int(cg, rows_panels(cg->target, r->N))};
}

static LV larger(Cg *cg, LV a, LV b) {
    return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, a, b, ""), a, b);
}
static LV label_of(Cg *cg, LV row) { return cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 2), row)); }
static LV has_label(Cg *cg, const Head *h, LV label) {
    return LLVMBuildICmp(cg->b, LLVMIntULT, label, cg_int(cg, h->V), "");
}
static LV lane0(Cg *cg, LV v) { return LLVMBuildExtractElement(cg->b, v, cg_int32(cg, 0), ""); }

// ---- head_loss ----------------------------------------------------------------------------------

bool describe_head_loss(const KernelNode *k, KernelDesc *d) {
    Head h;
    if (!head_of(k, &h)) return false;
    d->tasks[0] = tasks_of_rows(&k->node->in[0]->type, h.chunk);
    d->flops = 2.0 * (double)h.rows * (double)h.D * (double)h.V;
    return true;
}

// Largest logit, and the sum of exponentials in 16 lanes; the last vector under a mask.
static void loss_of_row(Cg *cg, const Head *h, LV logits, LV row) {
    int64_t whole = h->V / LANES * LANES;
    LV mask = tile_mask(cg, (int)(h->V - whole)), tail = cg_int(cg, whole), init = cg_vec(cg, -INFINITY);
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), tail, LANES, 1, &init);
    LV next = larger(cg, cg_load_vec(cg, F32, logits, l.i, NULL), l.carry[0]);
    cg_loop_end(cg, &l, &next);
    LV most = l.carry[0];
    if (whole < h->V)
        most = cg_select(cg, mask, larger(cg, cg_load_vec(cg, F32, logits, tail, mask), most), most);
    LV m = cg_splat(cg, cg_fold_max(cg, most));
    init = cg_vec(cg, 0);
    cg_loop_begin(cg, &l, cg_int(cg, 0), tail, LANES, 1, &init);
    next = cg_fadd(cg, l.carry[0], cg_exp(cg, cg_fsub(cg, cg_load_vec(cg, F32, logits, l.i, NULL), m)));
    cg_loop_end(cg, &l, &next);
    LV sum = l.carry[0];
    if (whole < h->V) {
        LV e = cg_exp(cg, cg_fsub(cg, cg_load_vec(cg, F32, logits, tail, mask), m));
        sum = cg_select(cg, mask, cg_fadd(cg, sum, e), sum);
    }
    LV total = cg_splat(cg, cg_fold_sum(cg, sum)), lse = lane0(cg, cg_fadd(cg, m, cg_log(cg, total)));
    LV label = label_of(cg, row), known = has_label(cg, h, label);
    LV logit = cg_load1(cg, F32, logits, cg_select(cg, known, label, cg_int(cg, 0)));
    cg_store1(cg, F32, cg_select(cg, known, cg_fsub(cg, lse, logit), cg_float(cg, 0)), cg_out(cg, 0), row);
    cg_store1(cg, F32, lse, cg_out(cg, 1), row);
}

void emit_head_loss(Cg *cg, const KernelNode *k) {
    Head h;
    head_of(k, &h);
    Rows r =
        logits_of(&h, h.V16, h.chunk, chunk_heights(&h, cg->target, h.rows, h.chunk), h.chunk * h.V16 * 4);
    rows_begin(cg, &r);
    LV rows = cg_rows(cg, &k->node->in[0]->type), first = cg_muli(cg, cg->task, h.chunk);
    LV n = cg_min(cg, cg_sub(cg, rows, first), cg_int(cg, h.chunk));
    RowsRun u = run_of(cg, &h, &r, first, n, cg->scratch);
    rows_run(cg, &r, &u);
    CgLoop row;
    cg_for(cg, &row, cg_int(cg, 0), n, 1);
    loss_of_row(cg, &h, cg_at(cg, F32, cg->scratch, cg_muli(cg, row.i, h.V16)), cg_add(cg, first, row.i));
    cg_end(cg, &row);
}

// ---- head_loss_grad -----------------------------------------------------------------------------

bool describe_head_loss_grad(const KernelNode *k, KernelDesc *d) {
    Head h;
    if (!head_of(k, &h) || (h.type != F32 && h.V > 8192) || (!h.keep && h.D > 2048)) return false;
    if (h.vary) str_add(&d->key, h.keep ? " kept" : " made again");
    d->n_phases = 2;
    d->tasks[0] = tasks_of_rows(&k->node->in[0]->type, h.chunk);
    if (h.keep) {
        SumCut cut = sums_cut(h.V, h.D, 1);
        d->workspace = h.rows * h.V16 * 4;
        d->tasks[1] = tasks_fixed(cut.runs * cut.groups);
    } else {
        d->tasks[1] = tasks_fixed((h.V + h.run - 1) / h.run);
    }
    d->flops = 6.0 * (double)h.rows * (double)h.D * (double)h.V;
    return true;
}

// logit -> g for n rows of `cols` logits (columns first_col ..) that lie `step` apart.
static void weights_of_rows(Cg *cg, const Head *h, LV logits, int64_t step, LV first, LV n, LV first_col,
                            LV cols) {
    CgLoop row, col;
    cg_for(cg, &row, cg_int(cg, 0), n, 1);
    LV at = cg_add(cg, first, row.i), label = label_of(cg, at),
       to = cg_at(cg, F32, logits, cg_muli(cg, row.i, step));
    LV d = cg_select(cg, has_label(cg, h, label), cg_load1(cg, F32, cg_in(cg, 4), at), cg_float(cg, 0));
    LV lse = cg_splat(cg, cg_load1(cg, F32, cg_in(cg, 3), at)), dv = cg_splat(cg, d);
    LV place = cg_splat(cg, LLVMBuildTrunc(cg->b, cg_sub(cg, label, first_col), cg->i32, ""));
    cg_for(cg, &col, cg_int(cg, 0), cols, LANES);
    LV lane = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, col.i, cg->i32, "")), "");
    LV here = cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntEQ, lane, place, ""), cg_vec(cg, 1), cg_vec(cg, 0));
    LV e = cg_exp(cg, cg_fsub(cg, cg_load_vec(cg, F32, to, col.i, NULL), lse));
    cg_store_vec(cg, F32, cg_fmul(cg, cg_fsub(cg, e, here), dv), to, col.i, NULL);
    cg_end(cg, &col);
    cg_end(cg, &row);
}

typedef struct {
    const Head *h;
    Rows *logits;
    LV per_leaf, lo, hi, first_col, cols, g; // of the task: panels and columns of the vocabulary, place of g
} Columns;

static void leaf_rows(void *self, Cg *cg, LV leaf, LV *begin, LV *end) {
    Columns *c = self;
    *begin = cg_mul(cg, leaf, c->per_leaf);
    *end = cg_add(cg, *begin, c->per_leaf);
}

// The task's columns of g for n rows.
static LV make_rows(void *self, Cg *cg, LV begin, LV n) {
    Columns *c = self;
    LV shifted = cg_at(cg, F32, c->g, cg_sub(cg, cg_int(cg, 0), c->first_col));
    RowsRun u = run_of(cg, c->h, c->logits, begin, n, shifted);
    u.lo = c->lo;
    u.hi = c->hi;
    rows_run(cg, c->logits, &u);
    weights_of_rows(cg, c->h, c->g, c->logits->y_row, begin, n, c->first_col, c->cols);
    return c->g;
}

static void emit_dx(Cg *cg, const KernelNode *k, const Head *h) {
    int64_t used = h->keep ? 0 : h->chunk * h->V16 * 4;
    Rows r = logits_of(h, h->V16, h->chunk, chunk_heights(h, cg->target, h->rows, h->chunk), used);
    rows_begin(cg, &r);
    Rows dx = {.a_type = F32,
               .b_type = h->type,
               .y_type = h->type,
               .K = h->V,
               .N = h->D,
               .y_row = h->D,
               .a_given = h->V16,
               .min_rows = ROWS_RUN,
               .max_rows = h->chunk,
               .heights = r.heights,
               .scratch_used = used};
    rows_begin(cg, &dx);
    LV rows = cg_rows(cg, &k->node->in[0]->type), first = cg_muli(cg, cg->task, h->chunk);
    LV n = cg_min(cg, cg_sub(cg, rows, first), cg_int(cg, h->chunk));
    LV g = h->keep ? cg_at(cg, F32, cg_workspace(cg), cg_muli(cg, first, h->V16)) : cg->scratch;
    RowsRun u = run_of(cg, h, &r, first, n, g);
    rows_run(cg, &r, &u);
    weights_of_rows(cg, h, g, h->V16, first, n, cg_int(cg, 0), cg_int(cg, h->V));
    rows_run(cg, &dx,
             &(RowsRun){.a = g,
                        .b = cg_in(cg, 1),
                        .n = n,
                        .k = cg_int(cg, h->V),
                        .lo = cg_int(cg, 0),
                        .y = cg_at(cg, h->type, cg_out(cg, 0), cg_muli(cg, first, h->D)),
                        .hi = cg_int(cg, rows_panels(cg->target, h->D))});
}

static void emit_dw(Cg *cg, const KernelNode *k, const Head *h) {
    LV rows = cg_rows(cg, &k->node->in[0]->type);
    Columns c = {.h = h, .per_leaf = cg_div(cg, rows, cg_int(cg, h->leaves)), .g = cg->scratch};
    Sums s = {.a_type = F32, .b_type = h->type, .y_type = h->type, .M = h->V, .N = h->D, .leaves = h->leaves};
    SumsRun u = {.b = cg_in(cg, 0), .y = cg_out(cg, 1), .leaf = leaf_rows, .self = &c};
    if (h->keep) {
        s.a_given = h->V16;
        sums_begin(cg, &s, 1);
        u.a = cg_workspace(cg);
        u.run = cg_div(cg, cg->task, cg_int(cg, s.cut.groups));
        u.group = cg_rem(cg, cg->task, cg_int(cg, s.cut.groups));
        sums_run(cg, &s, &u);
        return;
    }
    // g of a block of rows comes first in scratch, then what the sums need, last what the logits need.
    s.a_given = h->run;
    s.cut = (SumCut){h->run, h->D, (h->V + h->run - 1) / h->run, 1};
    s.scratch_used = BLOCK_ROWS * h->run * 4;
    s.scratch_end = RT_SCRATCH_BYTES - (1 << 20);
    sums_begin(cg, &s, 1);
    Rows r = logits_of(h, h->run, s.rows, chunk_heights(h, cg->target, h->rows / h->leaves, s.rows),
                       s.scratch_end);
    rows_begin(cg, &r);
    c.logits = &r;
    c.first_col = cg_muli(cg, cg->task, h->run);
    c.cols = cg_min(cg, cg_sub(cg, cg_int(cg, h->V), c.first_col), cg_int(cg, h->run));
    c.lo = cg_div(cg, c.first_col, cg_int(cg, r.panel));
    c.hi = cg_min(cg, cg_addi(cg, c.lo, h->run / r.panel), cg_int(cg, r.n_panels));
    u.make = make_rows;
    u.run = cg->task;
    u.group = cg_int(cg, 0);
    sums_run(cg, &s, &u);
}

void emit_head_loss_grad(Cg *cg, const KernelNode *k) {
    Head h;
    CgIf phase;
    head_of(k, &h);
    cg_if_phase(cg, &phase, 0);
    emit_dx(cg, k, &h);
    cg_else(cg, &phase);
    emit_dw(cg, k, &h);
    cg_endif(cg, &phase);
}
