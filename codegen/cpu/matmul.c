// matmul and matmul_dw.
//
//     matmul      task = (run of rows, matrix of a batch, group of panels)
//     matmul_dw   task = (run of row tiles of the result, group of panels); the leaves are summed inside a
//     task
#include "codegen/cpu/product.h"

// A product of dimensions: number * value of one symbol at most (leaf symbols are numbers).
typedef struct {
    int64_t n;
    const Sym *sym;
    bool ok;
} Extent;

static Extent extent(const Type *t, int from, int to) {
    Extent e = {1, NULL, true};
    for (int i = from; i < to; i++) {
        e.n *= t->dim[i].n;
        const Sym *s = t->dim[i].sym;
        if (s && s->kind == SYM_LEAF)
            e.n *= s->bound;
        else if (s && e.sym)
            e.ok = false;
        else if (s)
            e.sym = s;
    }
    return e;
}
static int64_t extent_bound(const Extent *e) { return e->sym ? e->n * e->sym->bound : e->n; }
static LV extent_now(Cg *cg, const Extent *e) {
    return e->sym ? cg_muli(cg, cg_sym(cg, e->sym), e->n) : cg_int(cg, e->n);
}

typedef struct {
    Extent rows, batch, k;
    bool shared; // one b for all of the batch
    int64_t runs, groups, panels_each;
    int parts;   // tasks of a group
    Rows r;
} Matmul;

// From types and attributes.  false: a form the reference runs.
static bool matmul_of(const KernelNode *k, Matmul *m) {
    const Attrs *attr = &k->node->attr;
    Contraction c = contraction_of(k->node);
    const Type *a = &c.a, *b = &c.b, *y = &c.y;
    if (a->dtype == F16 || !epilogue_possible(k)) return false;
    *m = (Matmul){.shared = b->ndim == 2};
    bool flat = m->shared && !attr->ta; // leading axes of a are rows
    m->batch = flat ? (Extent){1, NULL, true} : extent(y, 0, y->ndim - 2);
    m->rows = flat ? extent(y, 0, y->ndim - 1) : extent(y, y->ndim - 2, y->ndim - 1);
    int k_axis = a->ndim - (attr->ta ? 2 : 1);
    m->k = extent(a, k_axis, k_axis + 1);
    if (!m->batch.ok || !m->rows.ok || y->dim[y->ndim - 1].sym || (m->k.sym && !attr->ta)) return false;
    int64_t bound = extent_bound(&m->rows), runs = (bound + ROWS_RUN - 1) / ROWS_RUN, each = (bound + runs - 1) / (runs ? runs : 1);
    m->r = (Rows){.a_type = a->dtype,
                  .b_type = b->dtype,
                  .y_type = y->dtype,
                  .ta = attr->ta,
                  .tb = attr->tb,
                  .numbered = attr->gather != 0,
                  .layout = (Layout)b->layout,
                  .K = extent_bound(&m->k),
                  .N = y->dim[y->ndim - 1].n,
                  .y_row = y->dim[y->ndim - 1].n,
                  .max_rows = m->rows.sym && bound > ROWS_RUN ? ROWS_RUN : each};
    m->runs = runs;
    m->groups =
        rows_groups(k->machine, runs * extent_bound(&m->batch), m->r.max_rows, m->r.K, m->r.N, m->rows.sym != NULL);
    m->parts = m->rows.sym ? rows_parts(&m->r, k->target, m->groups) : 1;
    return rows_possible(&m->r);
}

// How it is made, on the machine whose code it becomes.
static void matmul_choose(const KernelNode *k, Matmul *m, KernelDesc *d) {
    int64_t bound = extent_bound(&m->rows), batch = extent_bound(&m->batch), weighed = rows_weighed(k, bound, m->rows.sym);
    int64_t each = weighed < m->r.max_rows ? weighed : m->r.max_rows;
    bool vary = m->rows.sym != NULL;
    RowsLoad load = {.vary = vary,
                     .sides = k->node->attr.pair ? 2 : 1,
                     .matrices = m->shared ? 1 : (double)batch,
                     .runs = (double)(weighed * (m->shared ? batch : 1)) / (double)(each ? each : 1),
                     .rows = (double)each,
                     .tasks = (double)(m->runs * batch * m->groups * m->parts),
                     .groups = (double)m->groups};
    rows_choose(&m->r, k, load, d, "product");
    int size = m->r.schedule.rows;
    int64_t last = bound - (m->runs - 1) * m->r.max_rows;
    m->r.heights = vary ? tile_all_heights(size) : tile_heights(m->r.max_rows, size) | tile_heights(last, size);
    m->panels_each = rows_panels_each(&m->r, m->groups);
    m->r.cols = m->panels_each * m->r.schedule.vecs * LANES;
}

bool matmul_takes_panels(const KernelNode *k) {
    Matmul m;
    return matmul_of(k, &m) && m.shared && !m.r.ta;
}

bool describe_matmul(const KernelNode *k, KernelDesc *d) {
    Matmul m;
    if (!matmul_of(k, &m)) return false;
    int64_t batch = extent_bound(&m.batch);
    if (m.rows.sym || m.batch.sym || m.k.sym) // what the code takes from bounds
        str_printf(&d->key, " runs %d groups %d rows %d k %lld", (int)m.runs, (int)m.groups,
                   (int)m.r.max_rows, (long long)m.r.K);
    if (m.rows.sym && !m.batch.sym)
        d->tasks[0] = (TaskCount){m.rows.n, ROWS_RUN, batch * m.groups * m.parts, m.rows.sym};
    else if (m.batch.sym)
        d->tasks[0] = (TaskCount){m.batch.n, 1, m.runs * m.groups * m.parts, m.batch.sym};
    else
        d->tasks[0] = tasks_fixed(m.runs * batch * m.groups * m.parts);
    product_key(k, d);
    matmul_choose(k, &m, d);
    d->flops = 2.0 * (double)extent_bound(&m.rows) * (double)batch * (double)m.r.N * (double)m.r.K;
    d->flops *= k->node->attr.pair ? 2 : 1;
    return true;
}

void emit_matmul(Cg *cg, const KernelNode *k) {
    Matmul m;
    Epilogue e;
    matmul_of(k, &m);
    matmul_choose(k, &m, NULL);
    Rows *r = &m.r;
    rows_begin(cg, r);
    epilogue_begin(cg, &e);
    LV rows = extent_now(cg, &m.rows), batch = extent_now(cg, &m.batch), depth = extent_now(cg, &m.k);
    LV part = cg_rem(cg, cg->task, cg_int(cg, m.parts)), task = cg_div(cg, cg->task, cg_int(cg, m.parts));
    LV group = cg_rem(cg, task, cg_int(cg, m.groups)), rest = cg_div(cg, task, cg_int(cg, m.groups));
    LV index = cg_rem(cg, rest, batch), run = cg_div(cg, rest, batch), zero = cg_int(cg, 0);
    LV runs = cg_div(cg, cg_addi(cg, rows, ROWS_RUN - 1), cg_int(cg, ROWS_RUN));
    LV each = cg_div(cg, cg_add(cg, rows, cg_addi(cg, runs, -1)), cg_max(cg, runs, cg_int(cg, 1)));
    LV first = cg_mul(cg, run, each), row = cg_add(cg, cg_mul(cg, index, rows), first);
    LV lo = cg_muli(cg, group, m.panels_each);
    LV a = cg_add(cg, cg_mul(cg, cg_mul(cg, index, rows), depth), r->ta ? first : cg_mul(cg, first, depth));
    LV b = m.shared ? zero : cg_muli(cg, cg_mul(cg, index, depth), r->N);
    RowsRun u = {.a = cg_at(cg, r->a_type, cg_in(cg, 0), r->numbered ? zero : a),
                 .a_step = r->ta ? rows : NULL,
                 .n = cg_min(cg, cg_sub(cg, rows, first), each),
                 .k = depth,
                 .lo = lo,
                 .hi = cg_min(cg, cg_addi(cg, lo, m.panels_each), cg_int(cg, rows_panels(r))),
                 .row = row};
    if (r->numbered) u.rows = row_numbers(cg, &e.c, 0, row);
    if (m.rows.sym) rows_part(cg, r, &u, u.n, group, part, (int)m.groups, m.parts);
    rows_attached(cg, r, u, &e, b, cg_muli(cg, row, r->N));
}

// ---- matmul_dw ----------------------------------------------------------------------------------

static Sums sums_of(const KernelNode *k) {
    Contraction c = contraction_of(k->node);
    const Type *a = &c.a, *b = &c.b;
    int64_t leaves = k->node->attr.leaves > 1 ? k->node->attr.leaves : 1;
    Extent rows = extent(a, 0, a->ndim - 1);
    return (Sums){.a_type = a->dtype,
                  .b_type = b->dtype,
                  .y_type = k->node->out[0].type.dtype,
                  .M = type_cols(a),
                  .N = type_cols(b),
                  .numbered = {c.index[0] >= 0, c.index[1] >= 0},
                  .leaves = (int)leaves,
                  .all_there = true,
                  .leaf_rows = rows.ok && !rows.sym ? rows.n / leaves : 0};
}

bool describe_matmul_dw(const KernelNode *k, KernelDesc *d) {
    Sums s = sums_of(k);
    if (s.a_type == F16) return false;
    Contraction c = contraction_of(k->node);
    sums_choose(&s, k, 1, (double)rows_bound(&c.a), d, "sum");
    d->tasks[0] = tasks_fixed(s.cut.runs * s.cut.groups);
    d->flops = 2.0 * (double)rows_bound(&c.a) * (double)s.M * (double)s.N;
    return true;
}

static void leaf_rows(void *self, Cg *cg, LV leaf, LV *begin, LV *end) {
    LV per_leaf = self;
    *begin = cg_mul(cg, leaf, per_leaf);
    *end = cg_add(cg, *begin, per_leaf);
}

void emit_matmul_dw(Cg *cg, const KernelNode *k) {
    Contraction c = contraction_of(k->node);
    Sums s = sums_of(k);
    sums_choose(&s, k, 1, (double)rows_bound(&c.a), NULL, "sum");
    sums_begin(cg, &s);
    LV rows = cg_rows(cg, &c.a), per_leaf = cg_div(cg, rows, cg_int(cg, s.leaves));
    LV groups = cg_int(cg, s.cut.groups);
    SumsRun u = {.a = cg_in(cg, 0),
                 .b = cg_in(cg, 1),
                 .y = cg_out(cg, 0),
                 .run = cg_div(cg, cg->task, groups),
                 .group = cg_rem(cg, cg->task, groups),
                 .leaf = leaf_rows,
                 .self = per_leaf,
                 .leaf_rows = per_leaf};
    for (int i = 0; i < 2; i++)
        if (s.numbered[i]) u.rows[i] = row_numbers(cg, &c, i, cg_int(cg, 0));
    sums_run(cg, &s, &u);
}
