// grouped_matmul, grouped_dw and grouped_sum: rows sorted by (expert, leaf); offsets say where each segment
// begins.
//
//     grouped_matmul   task = (expert, run of its rows; group of panels)
//     grouped_dw       task = (expert, run of rows of its matrix, group of panels); leaves are summed inside
//     a task grouped_sum      task = (expert, 64 columns)
#include "codegen/cpu/product.h"

static LV offset_at(Cg *cg, LV offsets, LV i) { return cg_i64(cg, cg_load1(cg, I32, offsets, i)); }

// ---- grouped_matmul -----------------------------------------------------------------------------

enum { EXPERT_RUN = 504 };       // rows of an expert that a task takes: a matrix is packed once for so many

typedef struct {
    int64_t experts, leaves, bound, groups;
    int ranges;  // of an expert's rows, where offsets are those of chunks; else 0
    int parts;   // tasks of a group
    Rows r;
} GroupedMatmul;

static bool grouped_of(const KernelNode *k, GroupedMatmul *g) {
    const Attrs *attr = &k->node->attr;
    Contraction c = contraction_of(k->node);
    const Type *x = &c.a, *w = &c.b, *y = &c.y, *offsets = &k->node->in[2]->type;
    if (x->dtype == F16 || x->ndim != 2 || offsets->dim[0].sym || !epilogue_possible(k)) return false;
    g->experts = w->dim[0].n;
    g->leaves = (offsets->dim[0].n - 1) / g->experts;
    g->ranges = attr->chunks ? RT_CHUNK_NUMBERS / 2 : 0;
    g->bound = dim_bound(x->dim[0]);
    g->r = (Rows){.a_type = x->dtype,
                  .b_type = w->dtype,
                  .y_type = y->dtype,
                  .tb = attr->tb,
                  .numbered = attr->gather != 0,
                  .layout = (Layout)w->layout,
                  .K = type_cols(x),
                  .N = type_cols(y),
                  .y_row = type_cols(y),
                  .max_rows = g->bound < EXPERT_RUN ? g->bound : EXPERT_RUN};
    int64_t runs = (g->bound + EXPERT_RUN - 1) / EXPERT_RUN, busy = g->bound < g->experts ? g->bound : g->experts;
    g->groups = rows_groups(k->machine, runs > busy ? runs : busy, g->r.max_rows, g->r.K, g->r.N, true);
    g->parts = rows_parts(&g->r, k->target, g->groups);
    return rows_possible(&g->r);
}

// Rows as if all experts had as many.
static void grouped_choose(const KernelNode *k, GroupedMatmul *g, KernelDesc *d) {
    int64_t all = rows_weighed(k, g->bound, contraction_of(k->node).a.dim[0].sym), most = all < g->experts ? all : g->experts;
    int64_t rows = (all + most - 1) / most, runs = (rows + EXPERT_RUN - 1) / EXPERT_RUN;
    RowsLoad load = {.vary = true,
                     .sides = k->node->attr.pair ? 2 : 1,
                     .matrices = (double)most,
                     .runs = (double)runs,
                     .rows = (double)rows / (double)runs,
                     .tasks = (double)(most * runs * g->groups * g->parts),
                     .groups = (double)g->groups};
    rows_choose(&g->r, k, load, d, "product");
}

bool grouped_takes_panels(const KernelNode *k) {
    GroupedMatmul g;
    return grouped_of(k, &g);
}

bool describe_grouped_matmul(const KernelNode *k, KernelDesc *d) {
    GroupedMatmul g;
    if (!grouped_of(k, &g)) return false;
    d->tasks[0] = tasks_of_rows(&k->node->out[0].type, EXPERT_RUN);
    d->tasks[0].extra = (int)g.experts * (g.ranges ? g.ranges : 1);
    d->tasks[0].times *= g.groups * g.parts;
    str_printf(&d->key, " groups %d%s%s", (int)g.groups, g.ranges ? " ranges" : "", g.bound <= TILE_MAX_ROWS ? " few" : "");
    product_key(k, d);
    grouped_choose(k, &g, d);
    d->flops = 2.0 * (double)g.bound * (double)g.r.K * (double)g.r.N * (k->node->attr.pair ? 2 : 1);
    return true;
}

// Run number `run` of all experts' runs, or of their ranges'; those without rows have none.  n is 0 behind the last.
typedef struct { LV expert, begin, n; } Run;

static Run run_of_expert(Cg *cg, const GroupedMatmul *g, LV offsets, LV run) {
    enum { LEFT, EXPERT, BEGIN, ROWS, N };
    LV zero = cg_int(cg, 0), carry[N] = {run, zero, zero, zero};
    CgLoop l;
    int ranges = g->ranges ? g->ranges : 1;
    int64_t next = g->ranges ? 2 : g->leaves, end = g->ranges ? 1 : g->leaves;
    cg_loop_begin(cg, &l, zero, cg_int(cg, g->experts * ranges), 1, N, carry);
    LV at = cg_muli(cg, l.i, next), begin = offset_at(cg, offsets, at), left = l.carry[LEFT];
    LV rows = cg_sub(cg, offset_at(cg, offsets, cg_addi(cg, at, end)), begin);
    LV expert = ranges > 1 ? cg_div(cg, l.i, cg_int(cg, ranges)) : l.i;
    LV runs = cg_div(cg, cg_addi(cg, rows, EXPERT_RUN - 1), cg_int(cg, EXPERT_RUN));
    LV each = cg_div(cg, cg_add(cg, rows, cg_addi(cg, runs, -1)), cg_max(cg, runs, cg_int(cg, 1)));
    LV first = cg_mul(cg, left, each), here = LLVMBuildICmp(cg->b, LLVMIntULT, left, runs, "");
    carry[LEFT] = cg_sub(cg, left, runs);
    carry[EXPERT] = cg_select(cg, here, expert, l.carry[EXPERT]);
    carry[BEGIN] = cg_select(cg, here, cg_add(cg, begin, first), l.carry[BEGIN]);
    carry[ROWS] = cg_select(cg, here, cg_min(cg, each, cg_sub(cg, rows, first)), l.carry[ROWS]);
    cg_loop_end(cg, &l, carry);
    return (Run){l.carry[EXPERT], l.carry[BEGIN], l.carry[ROWS]};
}

void emit_grouped_matmul(Cg *cg, const KernelNode *k) {
    GroupedMatmul g;
    Epilogue e;
    grouped_of(k, &g);
    Rows *r = &g.r;
    r->max_rows = g.bound <= TILE_MAX_ROWS ? g.bound : EXPERT_RUN; // as far as the key says it
    grouped_choose(k, &g, NULL);
    r->heights = tile_all_heights(r->schedule.rows);
    int panels = rows_panels(r);
    int64_t each = rows_panels_each(r, g.groups);
    r->cols = each * r->schedule.vecs * LANES;
    rows_begin(cg, r);
    epilogue_begin(cg, &e);
    LV x = cg_in(cg, 0), offsets = cg_in(cg, 2);
    LV part = cg_rem(cg, cg->task, cg_int(cg, g.parts)), task = cg_div(cg, cg->task, cg_int(cg, g.parts));
    LV run = cg_div(cg, task, cg_int(cg, g.groups)), group = cg_rem(cg, task, cg_int(cg, g.groups));
    LV p0 = cg_muli(cg, group, each);
    Run at = run_of_expert(cg, &g, offsets, run);
    RowsRun u = {.a = r->numbered ? x : cg_at(cg, r->a_type, x, cg_muli(cg, at.begin, r->K)),
                 .n = at.n,
                 .k = cg_int(cg, r->K),
                 .lo = p0,
                 .hi = cg_min(cg, cg_addi(cg, p0, each), cg_int(cg, panels)),
                 .row = at.begin};
    if (r->numbered) u.rows = row_numbers(cg, &e.c, 0, at.begin);
    rows_part(cg, r, &u, at.n, group, part, (int)g.groups, g.parts);
    rows_attached(cg, r, u, &e, cg_muli(cg, at.expert, rows_matrix(r)), cg_muli(cg, at.begin, r->N));
}

// ---- grouped_dw ---------------------------------------------------------------------------------

static int64_t leaves_of(const Node *n, int64_t experts) { return (n->in[2]->type.dim[0].n - 1) / experts; }

static Sums grouped_sums_of(const KernelNode *k, int64_t *experts) {
    Contraction c = contraction_of(k->node);
    const Type *a = &c.a, *b = &c.b, *y = &c.y;
    *experts = y->dim[0].n;
    return (Sums){.a_type = a->dtype,
                  .b_type = b->dtype,
                  .y_type = y->dtype,
                  .M = type_cols(a),
                  .N = type_cols(b),
                  .numbered = {c.index[0] >= 0, c.index[1] >= 0},
                  .all_there = true,
                  .leaves = k->node->attr.one_chain ? 1 : (int)leaves_of(k->node, *experts)};
}

bool describe_grouped_dw(const KernelNode *k, KernelDesc *d) {
    int64_t experts;
    Sums s = grouped_sums_of(k, &experts);
    if (s.a_type == F16) return false;
    Contraction c = contraction_of(k->node);
    sums_choose(&s, k, experts, (double)rows_bound(&c.a) / (double)experts, d, "sum");
    d->tasks[0] = tasks_fixed(experts * s.cut.runs * s.cut.groups);
    d->flops = 2.0 * (double)rows_bound(&c.a) * (double)s.M * (double)s.N;
    return true;
}

// first: number of the expert's first segment; a leaf of the sum is `step` of them.
typedef struct {
    LV offsets, first;
    int64_t step;
} Segments;

static void segment_rows(void *self, Cg *cg, LV leaf, LV *begin, LV *end) {
    Segments *s = self;
    LV at = cg_add(cg, s->first, cg_muli(cg, leaf, s->step));
    *begin = offset_at(cg, s->offsets, at);
    *end = offset_at(cg, s->offsets, cg_addi(cg, at, s->step));
}

void emit_grouped_dw(Cg *cg, const KernelNode *k) {
    int64_t experts;
    Sums s = grouped_sums_of(k, &experts);
    Contraction c = contraction_of(k->node);
    sums_choose(&s, k, experts, (double)rows_bound(&c.a) / (double)experts, NULL, "sum");
    sums_begin(cg, &s);
    LV groups = cg_int(cg, s.cut.groups), runs = cg_int(cg, s.cut.runs), rest = cg_div(cg, cg->task, groups);
    LV expert = cg_div(cg, rest, runs);
    int64_t leaves = leaves_of(k->node, experts);
    Segments segments = {cg_in(cg, 2), cg_muli(cg, expert, leaves), leaves / s.leaves};
    SumsRun u = {.a = cg_in(cg, 0),
                 .b = cg_in(cg, 1),
                 .y = cg_at(cg, s.y_type, cg_out(cg, 0), cg_muli(cg, expert, s.M * s.N)),
                 .run = cg_rem(cg, rest, runs),
                 .group = cg_rem(cg, cg->task, groups),
                 .leaf = segment_rows,
                 .self = &segments};
    for (int i = 0; i < 2; i++)
        if (s.numbered[i]) u.rows[i] = row_numbers(cg, &c, i, cg_int(cg, 0));
    sums_run(cg, &s, &u);
}

// ---- grouped_sum --------------------------------------------------------------------------------

enum { SUM_COLS = 64, CHUNK = 64 };

bool describe_grouped_sum(const KernelNode *k, KernelDesc *d) {
    const Type *x = &k->node->in[0]->type, *y = &k->node->out[0].type;
    if (x->ndim != 2 || y->ndim != 2 || x->dtype == F16) return false;
    d->tasks[0] = tasks_fixed(y->dim[0].n * ((type_cols(y) + SUM_COLS - 1) / SUM_COLS));
    d->flops = (double)rows_bound(x) * (double)type_cols(x);
    return true;
}

// A tree of n vectors met one by one: number i joins those that the carry of i + 1 runs through; the last
// joins all. The stack lies at `stack`, one vector a level.
static void counter_put(Cg *cg, LV stack, LV i, LV n, LV x) {
    LV zeros[2] = {cg_addi(cg, i, 1), cg_bool(cg, true)};
    LV top = cg_intrinsic(cg, "llvm.ctpop", &cg->i64, 1, &i, 1),
       carry = cg_intrinsic(cg, "llvm.cttz", &cg->i64, 1, zeros, 2);
    LV merges = cg_select(cg, cg_eq(cg, zeros[0], n), top, carry), next[2] = {x, top};
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), merges, 1, 2, next);
    next[1] = cg_addi(cg, l.carry[1], -1);
    next[0] = cg_fadd(cg, cg_load_vec(cg, F32, stack, cg_muli(cg, next[1], LANES), NULL), l.carry[0]);
    cg_loop_end(cg, &l, next);
    cg_store_vec(cg, F32, l.carry[0], stack, cg_muli(cg, l.carry[1], LANES), NULL);
}

void emit_grouped_sum(Cg *cg, const KernelNode *k) {
    const Type *x = &k->node->in[0]->type, *y = &k->node->out[0].type;
    int64_t N = type_cols(x), parts = (N + SUM_COLS - 1) / SUM_COLS;
    int64_t leaves = (k->node->in[1]->type.dim[0].n - 1) / y->dim[0].n;
    LV expert = cg_div(cg, cg->task, cg_int(cg, parts)), part = cg_rem(cg, cg->task, cg_int(cg, parts)),
       zero = cg_int(cg, 0);
    LV chunks = cg->scratch, sums = cg_bytes(cg, cg->scratch, cg_int(cg, 64 * LANES * 4)),
       first = cg_muli(cg, part, SUM_COLS);
    CgLoop col, leaf, chunk, row;
    cg_for(cg, &col, first, cg_min(cg, cg_addi(cg, first, SUM_COLS), cg_int(cg, N)), LANES);
    LV mask = N % LANES ? cg_tail_mask(cg, cg_sub(cg, cg_int(cg, N), col.i)) : NULL, none = cg_vec(cg, 0);
    cg_for(cg, &leaf, zero, cg_int(cg, leaves), 1);
    LV at = cg_add(cg, cg_muli(cg, expert, leaves), leaf.i), begin = offset_at(cg, cg_in(cg, 1), at);
    LV end = offset_at(cg, cg_in(cg, 1), cg_addi(cg, at, 1)),
       n = cg_div(cg, cg_addi(cg, cg_sub(cg, end, begin), CHUNK - 1), cg_int(cg, CHUNK));
    cg_store_vec(cg, F32, none, chunks, zero, NULL);
    cg_for(cg, &chunk, zero, n, 1);
    LV lo = cg_add(cg, begin, cg_muli(cg, chunk.i, CHUNK));
    cg_loop_begin(cg, &row, lo, cg_min(cg, cg_addi(cg, lo, CHUNK), end), 1, 1, &none);
    LV next =
        cg_fadd(cg, row.carry[0],
                cg_load_vec(cg, x->dtype, cg_in(cg, 0), cg_add(cg, cg_muli(cg, row.i, N), col.i), mask));
    cg_loop_end(cg, &row, &next);
    counter_put(cg, chunks, chunk.i, n, row.carry[0]);
    cg_end(cg, &chunk);
    counter_put(cg, sums, leaf.i, cg_int(cg, leaves), cg_load_vec(cg, F32, chunks, zero, NULL));
    cg_end(cg, &leaf);
    cg_store_vec(cg, y->dtype, cg_load_vec(cg, F32, sums, zero, NULL), cg_out(cg, 0),
                 cg_add(cg, cg_muli(cg, expert, N), col.i), mask);
    cg_end(cg, &col);
}
