// sum: along the last axis it is a body of one node; over other axes the rows of a leaf are added in chunks
// of 64, in order, and chunks, then leaves, meet in the tree of abi.h.
//
//     operand [leaves, axes..., columns]     summed axes, flattened row-major: what chunks are cut from
//     phase 0   task (leaf, kept index, chunk): a partial row in the workspace
//     phase 1   task (kept index, block of columns): trees
//
// reduce_max: along the last axis a body of one node; over another one 16 columns at a time.
// cumsum: a task is a run of rows, or columns of one outer index, whose running sums no other task needs.
#include <assert.h>
#include "codegen/cpu/cg.h"
#include "codegen/cpu/route.h"

enum { CHUNK = 64, COLUMNS = 4, MAX_PARTS = MAX_DIM + 1 };

typedef struct {
    int64_t leaves, kept, chunks, cols;      // chunks: at bound
    Dim     dim[MAX_PARTS];                  // of one leaf, without columns
    bool    summed[MAX_PARTS];
    int     n;
    bool    fold_rows;                       // the last axis is summed too: a row's number is its lanes' sum
    int64_t width;                           // elements of a row in memory
    Dim     rows;                            // how many rows are summed
} Shape;

static bool shape_of(const Node *n, Shape *s) {
    const Type *x = &n->in[0]->type;
    bool summed[MAX_DIM] = {false};
    *s = (Shape){.leaves = n->attr.leaves > 1 ? n->attr.leaves : 1,
                 .kept = 1,
                 .cols = 1,
                 .width = 1,
                 .rows = dim_n(1)};
    for (int i = 0; i < n->attr.axes.n; i++) summed[n->attr.axes.at[i]] = true;
    int last = x->ndim;
    if (!last) return false;
    if (summed[last - 1]) {
        if (x->dim[last - 1].sym) return false;
        s->fold_rows = true;
        s->width = x->dim[--last].n;
    } else {
        while (last > 0 && !summed[last - 1]) {
            if (s->leaves > 1 && last == 1) break;
            Dim d = x->dim[--last];
            if (d.sym && d.sym->kind != SYM_LEAF) return false;
            s->cols *= dim_bound(d);
        }
        s->width = s->cols;
    }
    for (int i = 0; i < last; i++) {
        Dim d = x->dim[i];
        if (d.sym && d.sym->kind == SYM_LEAF) d = dim_n(d.n * d.sym->bound);
        if (i == 0 && s->leaves > 1) {
            if (d.sym || d.n % s->leaves || !summed[0]) return false;
            d.n /= s->leaves;
        }
        s->dim[s->n] = d;
        s->summed[s->n++] = summed[i];
        if (!summed[i] && d.sym) return false;
        if (summed[i]) {
            if (d.sym && s->rows.sym) return false;
            s->rows = (Dim){s->rows.n * d.n, d.sym ? d.sym : s->rows.sym};
        } else {
            s->kept *= d.n;
        }
    }
    s->chunks = (dim_bound(s->rows) + CHUNK - 1) / CHUNK;
    if (s->chunks < 1) s->chunks = 1;
    return x->dtype == F32 || x->dtype == BF16 || x->dtype == F16 || x->dtype == I32;
}

// Rows of the sum must be the tokens, or so many of each; those of a kept index must follow each other.
int64_t sum_tasks_of_run(const Node *n, int64_t tokens, int64_t run) {
    Shape s;
    if (!shape_of(n, &s) || s.leaves > 1 || s.rows.sym) return 0;
    for (int i = 1; i < s.n; i++)
        if (s.summed[i - 1] && !s.summed[i]) return 0;
    int64_t all = s.kept * s.rows.n, rows = all / tokens * run;
    if (s.rows.n < 1 || all % tokens) return 0;
    if (rows % s.rows.n == 0) return rows / s.rows.n * s.chunks;
    return rows % CHUNK == 0 && (s.kept == 1 || s.rows.n % rows == 0) ? rows / CHUNK : 0;
}

static int64_t blocks(const Shape *s) { return (s->cols + COLUMNS * LANES - 1) / (COLUMNS * LANES); }

bool describe_sum(const KernelNode *k, KernelDesc *d) {
    const Node *n = k->node;
    int last = n->in[0]->type.ndim - 1;
    if (n->attr.axes.n == 1 && n->attr.axes.at[0] == last && n->attr.leaves <= 1 && describe_body(k, d))
        return true;
    Shape s;
    if (!shape_of(n, &s)) return false;
    d->n_phases = 2;
    d->tasks[0] = tasks_fixed(s.leaves * s.kept * s.chunks);
    d->tasks[1] = tasks_fixed(s.kept * blocks(&s));
    d->workspace = s.leaves * s.kept * s.chunks * s.cols * 4;
    str_printf(&d->key, " chunks %lld", (long long)s.chunks);
    return true;
}

static LV plus(Cg *cg, bool is_float, LV a, LV b) { return is_float ? cg_fadd(cg, a, b) : cg_add(cg, a, b); }

// First element of the row with this index among the summed and that among the kept ones.
static LV row_at(Cg *cg, const Shape *s, LV leaf, LV summed, LV kept) {
    LV at = cg_int(cg, 0), stride = cg_int(cg, s->width);
    for (int i = s->n - 1; i >= 0; i--) {
        LV size = cg_dim(cg, s->dim[i]), *index = s->summed[i] ? &summed : &kept;
        at = cg_add(cg, at, cg_mul(cg, cg_rem(cg, *index, size), stride));
        *index = cg_div(cg, *index, size);
        stride = cg_mul(cg, stride, size);
    }
    return cg_add(cg, at, cg_mul(cg, leaf, stride));
}

static LV lanes_sum(Cg *cg, DType t, LV base, LV at, int64_t width) {
    bool f = t != I32;
    LV acc = cg_zero(f ? cg->vf32 : cg->vi32), whole = cg_int(cg, width / LANES * LANES);
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), whole, LANES, 1, &acc);
    LV next = plus(cg, f, l.carry[0], cg_load_vec(cg, t, base, cg_add(cg, at, l.i), NULL));
    cg_loop_end(cg, &l, &next);
    acc = l.carry[0];
    if (width % LANES)
        acc = plus(
            cg, f, acc,
            cg_load_vec(cg, t, base, cg_add(cg, at, whole), cg_tail_mask(cg, cg_int(cg, width % LANES))));
    return cg_fold_sum(cg, acc);
}

// Adds rows lo .. hi - 1 of one leaf and kept index; columns col .. by n_vec vectors.
static void sum_chunk(Cg *cg, const Node *n, const Shape *s, LV leaf, LV kept, LV lo, LV hi, LV to, LV col,
                      int n_vec, LV mask) {
    DType t = n->in[0]->type.dtype;
    bool f = t != I32;
    LV acc[COLUMNS];
    for (int j = 0; j < n_vec; j++)
        acc[j] = s->fold_rows ? cg_zero(f ? cg->f32 : cg->i32) : cg_zero(f ? cg->vf32 : cg->vi32);
    CgLoop l;
    cg_loop_begin(cg, &l, lo, hi, 1, n_vec, acc);
    LV at = row_at(cg, s, leaf, l.i, kept);
    if (s->fold_rows) {
        acc[0] = plus(cg, f, l.carry[0], lanes_sum(cg, t, cg_in(cg, 0), at, s->width));
    } else {
        for (int j = 0; j < n_vec; j++)
            acc[j] = plus(cg, f, l.carry[j],
                          cg_load_vec(cg, t, cg_in(cg, 0), cg_addi(cg, cg_add(cg, at, col), j * LANES),
                                      j == n_vec - 1 ? mask : NULL));
    }
    cg_loop_end(cg, &l, acc);
    for (int j = 0; j < n_vec; j++) {
        LV place = cg_addi(cg, cg_add(cg, to, col), j * LANES);
        if (s->fold_rows) cg_store1(cg, f ? F32 : I32, l.carry[0], cg_workspace(cg), to);
        else
            cg_store_vec(cg, f ? F32 : I32, l.carry[j], cg_workspace(cg), place,
                         j == n_vec - 1 ? mask : NULL);
    }
}

static void emit_chunks(Cg *cg, const Node *n, const Shape *s) {
    LV chunk = cg_rem(cg, cg->task, cg_int(cg, s->chunks)),
       rest = cg_div(cg, cg->task, cg_int(cg, s->chunks));
    LV kept = cg_rem(cg, rest, cg_int(cg, s->kept)), leaf = cg_div(cg, rest, cg_int(cg, s->kept));
    LV rows = cg_dim(cg, s->rows), lo = cg_muli(cg, chunk, CHUNK),
       hi = cg_min(cg, cg_addi(cg, lo, CHUNK), rows);
    LV to = cg_muli(cg, cg->task, s->cols);
    int64_t block = COLUMNS * LANES, whole = s->cols / block * block;
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, whole), block);
    sum_chunk(cg, n, s, leaf, kept, lo, hi, to, l.i, COLUMNS, NULL);
    cg_end(cg, &l);
    int64_t tail = s->cols - whole;
    if (tail)
        sum_chunk(cg, n, s, leaf, kept, lo, hi, to, cg_int(cg, whole), (int)((tail + LANES - 1) / LANES),
                  tail % LANES ? cg_tail_mask(cg, cg_int(cg, tail % LANES)) : NULL);
}

static void emit_trees(Cg *cg, const Node *n, const Shape *s) {
    LV block = cg_rem(cg, cg->task, cg_int(cg, blocks(s))),
       kept = cg_div(cg, cg->task, cg_int(cg, blocks(s)));
    LV first = cg_muli(cg, block, COLUMNS * LANES),
       end = cg_min(cg, cg_addi(cg, first, COLUMNS * LANES), cg_int(cg, s->cols));
    LV chunks = cg_div(cg, cg_addi(cg, cg_dim(cg, s->rows), CHUNK - 1), cg_int(cg, CHUNK));
    chunks = cg_max(cg, chunks, cg_int(cg, 1));              // no rows: the first chunk is zeros
    int64_t leaf_step = s->kept * s->chunks * s->cols;
    LV base = cg_at(cg, F32, cg_workspace(cg), cg_muli(cg, kept, s->chunks * s->cols));
    bool f = n->in[0]->type.dtype != I32;
    CgLoop l, leaf;
    cg_for(cg, &l, first, end, LANES);
    LV mask = cg_tail_mask(cg, cg_sub(cg, cg_int(cg, s->cols), l.i));
    cg_for(cg, &leaf, cg_int(cg, 0), cg_int(cg, s->leaves), 1);
    LV of_leaf = cg_at(cg, F32, base, cg_muli(cg, leaf.i, leaf_step));
    if (f) cg_tree(cg, of_leaf, chunks, cg_int(cg, s->cols), l.i, mask);
    else cg_tree_int(cg, of_leaf, chunks, cg_int(cg, s->cols), l.i, mask);
    cg_end(cg, &leaf);
    LV sum = f ? cg_tree(cg, base, cg_int(cg, s->leaves), cg_int(cg, leaf_step), l.i, mask)
               : cg_tree_int(cg, base, cg_int(cg, s->leaves), cg_int(cg, leaf_step), l.i, mask);
    cg_store_vec(cg, n->out[0].type.dtype, sum, cg_out(cg, 0), cg_add(cg, cg_muli(cg, kept, s->cols), l.i),
                 mask);
    cg_end(cg, &l);
}

void emit_sum(Cg *cg, const KernelNode *k) {
    const Node *n = k->node;
    int last = n->in[0]->type.ndim - 1;
    if (!k->workspace && n->attr.axes.n == 1 && n->attr.axes.at[0] == last) {
        emit_body(cg, k);
        return;
    }
    Shape s;
    bool ok = shape_of(n, &s);
    assert(ok);
    (void)ok;
    CgIf f;
    cg_if_phase(cg, &f, 0);
    emit_chunks(cg, n, &s);
    cg_else(cg, &f);
    emit_trees(cg, n, &s);
    cg_endif(cg, &f);
}

// ---- cumsum --------------------------------------------------------------------------------------------
// [outer, n, inner]; running sums along n of 16 inner columns at once, or of one.

static int64_t outer_grain(const Type *x, int axis) {
    int64_t n = dims_bound(x, axis, x->ndim);
    return n < 4096 ? 4096 / (n > 0 ? n : 1) : 1;
}

static int64_t max_grain(const KernelNode *k) {
    return k->grain ? k->grain : outer_grain(&k->node->in[0]->type, (int)k->node->attr.axis);
}

bool describe_max(const KernelNode *k, KernelDesc *d) {
    const Type *x = &k->node->in[0]->type;
    int axis = (int)k->node->attr.axis;
    if (axis == x->ndim - 1) return describe_body(k, d);
    if (!dtype_is_float(x->dtype) && x->dtype != I32 && x->dtype != BOOL) return false;
    if (dim_bound(x->dim[axis]) < 1 || x->dim[axis].sym) return false;
    d->tasks[0] = tasks_of_dims(x, 0, axis, max_grain(k));
    str_printf(&d->key, " grain %lld", (long long)max_grain(k));
    return true;
}

// As the reference has it: a NaN gives way to what follows.
static LV larger_of(Cg *cg, DType t, LV a, LV x) {
    if (t == BOOL) return LLVMBuildOr(cg->b, a, x, "");
    LV stays = t == I32 ? LLVMBuildICmp(cg->b, LLVMIntSGE, a, x, "") : LLVMBuildFCmp(cg->b, LLVMRealOGE, a, x, "");
    return cg_select(cg, stays, a, x);
}

void emit_max(Cg *cg, const KernelNode *k) {
    const Type *x = &k->node->in[0]->type;
    int axis = (int)k->node->attr.axis;
    if (axis == x->ndim - 1) {
        emit_body(cg, k);
        return;
    }
    LV n = cg_dim(cg, x->dim[axis]), inner = cg_dims(cg, x, axis + 1, x->ndim);
    LV lo = cg_muli(cg, cg->task, max_grain(k)), hi = cg_min(cg, cg_addi(cg, lo, max_grain(k)), cg_dims(cg, x, 0, axis));
    CgLoop rows, cols, l;
    cg_for(cg, &rows, lo, hi, 1);
    cg_for(cg, &cols, cg_int(cg, 0), inner, LANES);
    LV mask = cg_tail_mask(cg, cg_sub(cg, inner, cols.i));
    LV first = cg_add(cg, cg_mul(cg, rows.i, cg_mul(cg, n, inner)), cols.i);
    LV most = cg_load_vec(cg, x->dtype, cg_in(cg, 0), first, mask);
    cg_loop_begin(cg, &l, cg_int(cg, 1), n, 1, 1, &most);
    LV next = cg_load_vec(cg, x->dtype, cg_in(cg, 0), cg_add(cg, first, cg_mul(cg, l.i, inner)), mask);
    next = larger_of(cg, x->dtype, l.carry[0], next);
    cg_loop_end(cg, &l, &next);
    cg_store_vec(cg, x->dtype, l.carry[0], cg_out(cg, 0), cg_add(cg, cg_mul(cg, rows.i, inner), cols.i), mask);
    cg_end(cg, &cols);
    cg_end(cg, &rows);
}

static bool runs_by_column(const Type *x, int axis) { return axis + 1 < x->ndim && dims_bound(x, axis + 1, x->ndim) >= LANES; }

bool describe_cumsum(const KernelNode *k, KernelDesc *d) {
    const Type *x = &k->node->in[0]->type;
    int axis = (int)k->node->attr.axis;
    if (!dtype_is_float(x->dtype) && x->dtype != I32) return false;
    if (runs_by_column(x, axis)) {
        d->tasks[0] = tasks_of_dims(x, 0, axis, 1);
        int64_t inner = dims_bound(x, axis + 1, x->ndim);
        d->tasks[0].times = (inner + LANES - 1) / LANES;
        str_printf(&d->key, " inner %lld", (long long)inner);
    } else {
        d->tasks[0] = tasks_of_dims(x, 0, axis, outer_grain(x, axis));
        str_printf(&d->key, " grain %lld", (long long)outer_grain(x, axis));
    }
    return true;
}

// The running sums from element `at`, n of them `stride` apart; of 16 columns under mask, or (mask NULL) of one.
static void emit_running(Cg *cg, const Node *node, LV at, LV n, LV stride, LV mask) {
    DType t = node->in[0]->type.dtype;
    bool f = t != I32;
    LV sum = mask ? cg_zero(f ? cg->vf32 : cg->vi32) : cg_zero(f ? cg->f32 : cg->i32);
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), n, 1, 1, &sum);
    LV i = node->attr.reverse ? cg_sub(cg, cg_addi(cg, n, -1), l.i) : l.i;
    LV place = cg_add(cg, at, cg_mul(cg, i, stride));
    LV x = mask ? cg_load_vec(cg, t, cg_in(cg, 0), place, mask) : cg_load1(cg, t, cg_in(cg, 0), place);
    LV next = plus(cg, f, l.carry[0], x), y = node->attr.exclusive ? l.carry[0] : next;
    if (mask) cg_store_vec(cg, t, y, cg_out(cg, 0), place, mask);
    else cg_store1(cg, t, y, cg_out(cg, 0), place);
    cg_loop_end(cg, &l, &next);
}

void emit_cumsum(Cg *cg, const KernelNode *k) {
    const Type *x = &k->node->in[0]->type;
    int axis = (int)k->node->attr.axis;
    LV n = cg_dim(cg, x->dim[axis]), inner = cg_dims(cg, x, axis + 1, x->ndim);
    if (runs_by_column(x, axis)) {
        int64_t blocks = (dims_bound(x, axis + 1, x->ndim) + LANES - 1) / LANES;
        LV outer = cg_div(cg, cg->task, cg_int(cg, blocks));
        LV col = cg_muli(cg, cg_rem(cg, cg->task, cg_int(cg, blocks)), LANES);
        LV at = cg_add(cg, cg_mul(cg, outer, cg_mul(cg, n, inner)), col);
        emit_running(cg, k->node, at, n, inner, cg_tail_mask(cg, cg_sub(cg, inner, col)));
        return;
    }
    int64_t grain = outer_grain(x, axis);
    LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), cg_dims(cg, x, 0, axis));
    CgLoop rows, l;
    cg_for(cg, &rows, lo, hi, 1);
    cg_for(cg, &l, cg_int(cg, 0), inner, 1);
    emit_running(cg, k->node, cg_add(cg, cg_mul(cg, rows.i, cg_mul(cg, n, inner)), l.i), n, inner, NULL);
    cg_end(cg, &l);
    cg_end(cg, &rows);
}
