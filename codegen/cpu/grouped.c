// grouped_matmul, grouped_dw and grouped_sum: rows sorted by (expert, leaf); offsets say where each segment begins.
//
//     grouped_matmul   task = (run of rows, whatever experts it touches; group of panels)
//     grouped_dw       task = (expert, run of rows of its matrix, group of panels); leaves are summed inside a task
//     grouped_sum      task = (expert, 16 columns)
#include "codegen/cpu/product.h"

static LV offset_at(Cg *cg, LV offsets, LV i) { return cg_i64(cg, cg_load1(cg, I32, offsets, i)); }

// ---- grouped_matmul ---------------------------------------------------------------------------------------------

typedef struct { int64_t experts, leaves, bound, groups; Rows r; } GroupedMatmul;

static bool grouped_of(const KernelNode *k, GroupedMatmul *g) {
    const Attrs *attr = &k->node->attr;
    const Type *x = &k->node->in[0]->type, *w = &k->node->in[1]->type, *y = &k->node->out[0].type;
    const Type *offsets = &k->node->in[2]->type;
    if (attr->epilogue || attr->pair || attr->gather || x->dtype == F16 || x->ndim != 2 || offsets->dim[0].sym) return false;
    g->experts = w->dim[0].n;
    g->leaves = (offsets->dim[0].n - 1) / g->experts;
    g->bound = dim_bound(x->dim[0]);
    g->r = (Rows){.a_type = x->dtype, .b_type = w->dtype, .y_type = y->dtype, .tb = attr->tb, .K = type_cols(x),
                  .N = type_cols(y), .y_row = type_cols(y), .max_rows = g->bound < ROWS_RUN ? g->bound : ROWS_RUN};
    g->groups = rows_groups((g->bound + ROWS_RUN - 1) / ROWS_RUN, g->r.max_rows, g->r.K, g->r.N, true);
    return rows_possible(&g->r);
}

bool describe_grouped_matmul(const KernelNode *k, KernelDesc *d) {
    GroupedMatmul g;
    if (!grouped_of(k, &g)) return false;
    d->tasks[0] = tasks_of_rows(&k->node->out[0].type, ROWS_RUN);
    d->tasks[0].times *= g.groups;
    str_printf(&d->key, " groups %d%s", (int)g.groups, g.bound <= TILE_MAX_ROWS ? " few" : "");
    d->flops = 2.0 * (double)g.bound * (double)g.r.K * (double)g.r.N;
    return true;
}

void emit_grouped_matmul(Cg *cg, const KernelNode *k) {
    GroupedMatmul g;
    grouped_of(k, &g);
    Rows *r = &g.r;
    r->max_rows = g.bound <= TILE_MAX_ROWS ? g.bound : ROWS_RUN;        // as far as the key says it
    r->heights = tile_all_heights(tile_size(cg->target).rows);
    rows_begin(cg, r);
    LV x = cg_in(cg, 0), w = cg_in(cg, 1), offsets = cg_in(cg, 2), y = cg_out(cg, 0);
    LV run = cg_div(cg, cg->task, cg_int(cg, g.groups)), group = cg_rem(cg, cg->task, cg_int(cg, g.groups));
    int panels = rows_panels(cg->target, r->N);
    int64_t each = (panels + g.groups - 1) / g.groups;
    LV rows = cg_rows(cg, &k->node->out[0].type), lo = cg_muli(cg, run, ROWS_RUN);
    LV hi = cg_min(cg, cg_addi(cg, lo, ROWS_RUN), rows), p0 = cg_muli(cg, group, each);
    LV p1 = cg_min(cg, cg_addi(cg, p0, each), cg_int(cg, panels));
    CgLoop expert;
    cg_for(cg, &expert, cg_int(cg, 0), cg_int(cg, g.experts), 1);
    LV at = cg_muli(cg, expert.i, g.leaves);
    LV begin = cg_max(cg, lo, offset_at(cg, offsets, at));
    LV end = cg_min(cg, hi, offset_at(cg, offsets, cg_addi(cg, at, g.leaves)));
    RowsRun u = {.a = cg_at(cg, r->a_type, x, cg_muli(cg, begin, r->K)),
                 .b = cg_at(cg, r->b_type, w, cg_muli(cg, expert.i, r->K * r->N)),
                 .y = cg_at(cg, r->y_type, y, cg_muli(cg, begin, r->N)), .n = cg_sub(cg, end, begin),
                 .k = cg_int(cg, r->K), .lo = p0, .hi = p1};
    rows_run(cg, r, &u);
    cg_end(cg, &expert);
    if (type_ragged(&k->node->out[0].type)) return;
    // Rows of nobody are zeros; the first group of panels writes them.
    CgIf mine;
    LV used = cg_max(cg, lo, offset_at(cg, offsets, cg_int(cg, g.experts * g.leaves)));
    cg_if(cg, &mine, LLVMBuildAnd(cg->b, cg_eq(cg, group, cg_int(cg, 0)), cg_lt(cg, used, hi), ""));
    int64_t row = r->N * dtype_bytes(r->y_type);
    cg_memset0(cg, cg_bytes(cg, y, cg_muli(cg, used, row)), cg_muli(cg, cg_sub(cg, hi, used), row));
    cg_endif(cg, &mine);
}

// ---- grouped_dw -------------------------------------------------------------------------------------------------

static Sums grouped_sums_of(const KernelNode *k, int64_t *experts) {
    const Type *a = &k->node->in[0]->type, *b = &k->node->in[1]->type, *y = &k->node->out[0].type;
    *experts = y->dim[0].n;
    return (Sums){.a_type = a->dtype, .b_type = b->dtype, .y_type = y->dtype, .M = type_cols(a), .N = type_cols(b),
                  .leaves = (int)((k->node->in[2]->type.dim[0].n - 1) / *experts)};
}

bool describe_grouped_dw(const KernelNode *k, KernelDesc *d) {
    int64_t experts;
    Sums s = grouped_sums_of(k, &experts);
    if (s.a_type == F16) return false;
    SumCut cut = sums_cut(s.M, s.N, experts);
    d->tasks[0] = tasks_fixed(experts * cut.runs * cut.groups);
    d->flops = 2.0 * (double)rows_bound(&k->node->in[0]->type) * (double)s.M * (double)s.N;
    return true;
}

typedef struct { LV offsets, first; } Segments;      // first: number of the expert's first segment

static void segment_rows(void *self, Cg *cg, LV leaf, LV *begin, LV *end) {
    Segments *s = self;
    LV at = cg_add(cg, s->first, leaf);
    *begin = offset_at(cg, s->offsets, at);
    *end = offset_at(cg, s->offsets, cg_addi(cg, at, 1));
}

void emit_grouped_dw(Cg *cg, const KernelNode *k) {
    int64_t experts;
    Sums s = grouped_sums_of(k, &experts);
    sums_begin(cg, &s, experts);
    LV groups = cg_int(cg, s.cut.groups), runs = cg_int(cg, s.cut.runs), rest = cg_div(cg, cg->task, groups);
    LV expert = cg_div(cg, rest, runs);
    Segments segments = {cg_in(cg, 2), cg_muli(cg, expert, s.leaves)};
    sums_run(cg, &s, cg_in(cg, 0), cg_in(cg, 1), cg_at(cg, s.y_type, cg_out(cg, 0), cg_muli(cg, expert, s.M * s.N)),
             cg_rem(cg, rest, runs), cg_rem(cg, cg->task, groups), segment_rows, &segments);
}
