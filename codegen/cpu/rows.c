// Rows moved by index, and memory moved by shape.
//
//     gather_rows        copies of rows; -1 gives zeros
//     scatter_add_rows   sources of each target row, found by a counting sort, are added in ascending order;
//                        where they are known it is a body
//     slice unslice concat   runs of consecutive elements:   [outer, n, inner]
//     permute            rows whose source is found index by index
//     cache              the rows of this call behind those that are there
#include <assert.h>
#include "codegen/cpu/cg.h"
#include "codegen/kernel.h"

enum { RUN = 4096, COLUMNS = 4 };       // elements per task of a copy; vectors of columns kept in registers

static bool is_one_byte(DType t) { return dtype_bytes(t) == 1; }
// Elements moved as they are: no conversion.
static DType raw(DType t) { return dtype_bytes(t) == 4 ? I32 : dtype_bytes(t) == 2 ? BF16 : U8; }


// n consecutive elements; from NULL: zeros.  Bytes go through memcpy, words by vectors.
static void move(Cg *cg, DType t, LV to, LV from, LV n) {
    LV bytes = cg_muli(cg, n, dtype_bytes(t));
    if (!from) {
        cg_memset0(cg, to, bytes);
        return;
    }
    if (is_one_byte(t) || dtype_bytes(t) == 2) {
        cg_memcpy(cg, to, from, bytes);
        return;
    }
    LV whole = LLVMBuildAnd(cg->b, n, cg_int(cg, -LANES), "");
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), whole, LANES);
    cg_store_vec(cg, I32, cg_load_vec(cg, I32, from, l.i, NULL), to, l.i, NULL);
    cg_end(cg, &l);
    if (LLVMIsConstant(n) && LLVMConstIntGetSExtValue(n) % LANES == 0) return;
    LV mask = cg_tail_mask(cg, cg_sub(cg, n, whole));
    cg_store_vec(cg, I32, cg_load_vec(cg, I32, from, whole, mask), to, whole, mask);
}

// ---- gather --------------------------------------------------------------------------------------------

static int64_t gather_grain(const Node *n) {
    int64_t D = type_cols(&n->in[0]->type);
    int64_t grain = RUN / (D > 0 ? D : 1);
    return grain < 1 ? 1 : grain;
}

// Row `row` out of panels that hold matrices of [N, K] with K = D: a lane of one panel, k after k.
static void move_from_panel(Cg *cg, const Type *x, LV to, LV from, LV row, int64_t D) {
    bool pairs = layout_is_pairs((Layout)x->layout);
    int64_t n = pairs ? 2 : 1, step = PANEL_COLS * n;              // k of a row of the panel, its elements
    LV panel = cg_muli(cg, cg_div(cg, row, cg_int(cg, PANEL_COLS)), layout_elements((Layout)x->layout, PANEL_COLS, D));
    LV at = cg_add(cg, panel, cg_muli(cg, cg_rem(cg, row, cg_int(cg, PANEL_COLS)), n));
    LV base = cg_at(cg, x->dtype, from, at);
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, D), LANES);
    LV k = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, l.i, cg->i32, "")), "");
    LV index = LLVMBuildMul(cg->b, pairs ? LLVMBuildLShr(cg->b, k, cg_vec_int(cg, 1), "") : k,
                            cg_vec_int(cg, (int32_t)step), "");
    if (pairs) {                                                   // the first k of two lies second
        LV second = LLVMBuildAnd(cg->b, LLVMBuildNot(cg->b, k, ""), cg_vec_int(cg, 1), "");
        index = LLVMBuildAdd(cg->b, index, second, "");
    }
    LV mask = D % LANES ? cg_tail_mask(cg, cg_sub(cg, cg_int(cg, D), l.i)) : NULL;
    cg_store_vec(cg, x->dtype, cg_gather_vec(cg, x->dtype, base, index, mask), to, l.i, mask);
    cg_end(cg, &l);
}

bool describe_gather_rows(const KernelNode *k, KernelDesc *d) {
    const Type *index = &k->node->in[1]->type;
    d->tasks[0] = tasks_of_dims(index, 0, index->ndim, gather_grain(k->node));
    return true;
}

void emit_gather_rows(Cg *cg, const KernelNode *k) {
    const Node *n = k->node;
    const Type *x = &n->in[0]->type, *index = &n->in[1]->type;
    int64_t D = type_cols(x), grain = gather_grain(n);
    LV rows = cg_rows(cg, x), count = cg_dims(cg, index, 0, index->ndim);
    LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), count);
    CgLoop l;
    cg_for(cg, &l, lo, hi, 1);
    LV at = cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 1), l.i));
    LV to = cg_at(cg, x->dtype, cg_out(cg, 0), cg_muli(cg, l.i, D));
    CgIf f;
    cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, at, rows, ""));         // -1 is a large number here
    if (x->layout == LAYOUT_ROWS)
        move(cg, x->dtype, to, cg_at(cg, x->dtype, cg_in(cg, 0), cg_muli(cg, at, D)), cg_int(cg, D));
    else move_from_panel(cg, x, to, cg_in(cg, 0), at, D);
    cg_else(cg, &f);
    move(cg, x->dtype, to, NULL, cg_int(cg, D));
    cg_endif(cg, &f);
    cg_end(cg, &l);
}

// ---- scatter -------------------------------------------------------------------------------------------
// Workspace: last[V] (one past the list of row v), then order[M], the source rows list by list.

static int64_t scatter_leaves(const Node *n) {
    const Sym *target = n->attr.dims.n ? n->attr.dims.at[0].sym : NULL;
    return n->attr.leaves > 1 && !(target && target->kind != SYM_PLAIN) ? n->attr.leaves : 1;
}

static int64_t scatter_grain(const Node *n) {
    int64_t D = type_cols(&n->out[0].type), grain = RUN / (D > 0 ? D : 1);
    return grain < 1 ? 1 : grain;
}

bool describe_scatter_add_rows(const KernelNode *k, KernelDesc *d) {
    const Node *n = k->node;
    const Type *y = &n->out[0].type, *index = &n->in[1]->type;
    if (scatter_inverse(n) && describe_body(k, d)) return true;
    if (!dtype_is_float(y->dtype) || (n->n_in > 2 && scatter_leaves(n) > 1)) return false;
    if (scatter_leaves(n) * COLUMNS * LANES * 4 > RT_SCRATCH_BYTES) return false;
    d->n_phases = 2;
    d->tasks[0] = tasks_fixed(1);
    d->tasks[1] = tasks_of_dims(y, 0, y->ndim - 1, scatter_grain(n));
    d->workspace = (dims_bound(y, 0, y->ndim - 1) + dims_bound(index, 0, index->ndim) + 32) * 4;
    str_printf(&d->key, " rows %lld", (long long)dims_bound(y, 0, y->ndim - 1));
    return true;
}

static void sort_sources(Cg *cg, LV last, LV order, LV V, LV M) {
    LV index = cg_in(cg, 1), one = cg_int32(cg, 1);
    cg_memset0(cg, last, cg_muli(cg, V, 4));
    CgLoop l;
    CgIf f;
    cg_for(cg, &l, cg_int(cg, 0), M, 1);                     // how many for each
    LV at = cg_i64(cg, cg_load1(cg, I32, index, l.i));
    cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, at, V, ""));
    cg_store1(cg, I32, cg_add(cg, cg_load1(cg, I32, last, at), one), last, at);
    cg_endif(cg, &f);
    cg_end(cg, &l);
    LV sum = cg_int32(cg, 0);                                // where each list begins
    cg_loop_begin(cg, &l, cg_int(cg, 0), V, 1, 1, &sum);
    LV next = cg_add(cg, l.carry[0], cg_load1(cg, I32, last, l.i));
    cg_store1(cg, I32, l.carry[0], last, l.i);
    cg_loop_end(cg, &l, &next);
    cg_for(cg, &l, cg_int(cg, 0), M, 1);                     // each begin moves to its end
    at = cg_i64(cg, cg_load1(cg, I32, index, l.i));
    cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, at, V, ""));
    LV place = cg_load1(cg, I32, last, at);
    cg_store1(cg, I32, LLVMBuildTrunc(cg->b, l.i, cg->i32, ""), order, cg_i64(cg, place));
    cg_store1(cg, I32, cg_add(cg, place, one), last, at);
    cg_endif(cg, &f);
    cg_end(cg, &l);
}

typedef struct { LV order, lo, hi, row, per_leaf; int64_t D, leaves; } Target;

// Columns col .. of one target row; n_vec vectors, the last one under mask if that is not NULL.
static void add_columns(Cg *cg, const Node *n, const Target *t, LV col, int n_vec, LV mask) {
    DType tv = n->in[0]->type.dtype, ty = n->out[0].type.dtype;
    LV acc[COLUMNS], zero = cg_zero(cg->vf32);
    for (int j = 0; j < n_vec; j++) acc[j] = zero;
    CgLoop l;
    if (t->leaves == 1) {
        cg_loop_begin(cg, &l, t->lo, t->hi, 1, n_vec, acc);
        LV from = cg_add(cg, cg_muli(cg, cg_i64(cg, cg_load1(cg, I32, t->order, l.i)), t->D), col);
        for (int j = 0; j < n_vec; j++)
            acc[j] = cg_fadd(cg, l.carry[j],
                             cg_load_vec(cg, tv, cg_in(cg, 0), cg_addi(cg, from, j * LANES),
                                         j == n_vec - 1 ? mask : NULL));
        cg_loop_end(cg, &l, acc);
        for (int j = 0; j < n_vec; j++) acc[j] = l.carry[j];
    } else {                                                 // per leaf in scratch, then their tree
        for (int64_t leaf = 0; leaf < t->leaves; leaf++)
            for (int j = 0; j < n_vec; j++)
                cg_store_vec(cg, F32, zero, cg->scratch, cg_int(cg, (leaf * COLUMNS + j) * LANES), NULL);
        cg_for(cg, &l, t->lo, t->hi, 1);
        LV source = cg_i64(cg, cg_load1(cg, I32, t->order, l.i)),
           from = cg_add(cg, cg_muli(cg, source, t->D), col);
        LV part = cg_muli(cg, cg_div(cg, source, t->per_leaf), COLUMNS * LANES);
        for (int j = 0; j < n_vec; j++) {
            LV at = cg_addi(cg, part, j * LANES);
            LV x =
                cg_load_vec(cg, tv, cg_in(cg, 0), cg_addi(cg, from, j * LANES), j == n_vec - 1 ? mask : NULL);
            cg_store_vec(cg, F32, cg_fadd(cg, cg_load_vec(cg, F32, cg->scratch, at, NULL), x), cg->scratch,
                         at, NULL);
        }
        cg_end(cg, &l);
        for (int j = 0; j < n_vec; j++)
            acc[j] = cg_tree(cg, cg->scratch, cg_int(cg, t->leaves), cg_int(cg, COLUMNS * LANES),
                             cg_int(cg, j * LANES), NULL);
    }
    LV to = cg_add(cg, cg_muli(cg, t->row, t->D), col);
    for (int j = 0; j < n_vec; j++)
        cg_store_vec(cg, ty, acc[j], cg_out(cg, 0), cg_addi(cg, to, j * LANES), j == n_vec - 1 ? mask : NULL);
}

void emit_scatter_add_rows(Cg *cg, const KernelNode *k) {
    const Node *n = k->node;
    if (!k->workspace) {
        emit_body(cg, k);
        return;
    }
    const Type *y = &n->out[0].type, *index = &n->in[1]->type;
    int64_t D = type_cols(y), grain = scatter_grain(n), block = COLUMNS * LANES;
    LV V = cg_rows(cg, y), M = cg_dims(cg, index, 0, index->ndim), last = cg_workspace(cg);
    LV order = cg_at(cg, I32, last, cg_int(cg, dims_bound(y, 0, y->ndim - 1)));
    CgIf f;
    cg_if_phase(cg, &f, 0);
    sort_sources(cg, last, order, V, M);
    cg_else(cg, &f);
    Target t = {.order = order, .D = D, .leaves = scatter_leaves(n)};
    if (t.leaves > 1) t.per_leaf = cg_div(cg, M, cg_int(cg, t.leaves));
    LV lo = cg_muli(cg, cg->task, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), V);
    CgLoop rows, cols;
    cg_for(cg, &rows, lo, hi, 1);
    t.row = rows.i;
    LV before = cg_i64(cg, cg_load1(cg, I32, last, cg_max(cg, cg_addi(cg, t.row, -1), cg_int(cg, 0))));
    t.lo = cg_select(cg, cg_eq(cg, t.row, cg_int(cg, 0)), cg_int(cg, 0), before);
    t.hi = cg_i64(cg, cg_load1(cg, I32, last, t.row));
    CgIf empty;
    cg_if(cg, &empty, cg_eq(cg, t.lo, t.hi));
    move(cg, y->dtype, cg_at(cg, y->dtype, cg_out(cg, 0), cg_muli(cg, t.row, D)), NULL, cg_int(cg, D));
    cg_else(cg, &empty);
    cg_for(cg, &cols, cg_int(cg, 0), cg_int(cg, D / block * block), block);
    add_columns(cg, n, &t, cols.i, COLUMNS, NULL);
    cg_end(cg, &cols);
    int64_t rest = D % block;
    if (rest)
        add_columns(cg, n, &t, cg_int(cg, D - rest), (int)((rest + LANES - 1) / LANES),
                    rest % LANES ? cg_tail_mask(cg, cg_int(cg, rest % LANES)) : NULL);
    cg_endif(cg, &empty);
    cg_end(cg, &rows);
    cg_endif(cg, &f);
}

// ---- runs ----------------------------------------------------------------------------------------------
// Both sides are [outer, n, inner]; a piece moves m of the n, in one run of m * inner elements per outer
// index.

typedef struct { int in; LV from, to, m; } Piece;             // in < 0: zeros

static int run_axis(const Node *n) { return (int)n->attr.axis; }

static int64_t longest_run(const Node *n) {
    const Type *y = &n->out[0].type;
    return dims_bound(y, run_axis(n), y->ndim);
}

bool describe_runs(const KernelNode *k, KernelDesc *d) {
    const Node *n = k->node;
    const Type *y = &n->out[0].type;
    int64_t runs = (longest_run(n) + RUN - 1) / RUN, outer = dims_bound(y, 0, run_axis(n));
    int64_t grain = runs > 1 ? 1 : RUN / (longest_run(n) > 0 ? longest_run(n) : 1);
    if (grain > outer) grain = outer;
    d->tasks[0] = tasks_of_dims(y, 0, run_axis(n), grain < 1 ? 1 : grain);
    d->tasks[0].times = runs < 1 ? 1 : runs;
    str_printf(&d->key, " runs %lld", (long long)runs);
    return true;
}

static void add_piece(Cg *cg, const Node *n, const Piece *p, LV outer, LV chunk, LV inner, int64_t runs) {
    const Type *y = &n->out[0].type;
    int axis = run_axis(n);
    LV length = cg_mul(cg, p->m, inner);
    LV lo = runs > 1 ? cg_muli(cg, chunk, RUN) : cg_int(cg, 0);
    LV left = cg_sub(cg, length, lo);
    if (runs > 1) left = cg_max(cg, cg_min(cg, left, cg_int(cg, RUN)), cg_int(cg, 0));
    LV to = cg_add(
        cg,
        cg_add(cg, cg_mul(cg, outer, cg_mul(cg, cg_dim(cg, y->dim[axis]), inner)), cg_mul(cg, p->to, inner)),
        lo);
    LV from = NULL;
    if (p->in >= 0) {
        LV stride = cg_mul(cg, cg_dim(cg, n->in[p->in]->type.dim[axis]), inner);
        LV at = cg_add(cg, cg_add(cg, cg_mul(cg, outer, stride), cg_mul(cg, p->from, inner)), lo);
        from = cg_at(cg, y->dtype, cg_in(cg, p->in), at);
    }
    move(cg, y->dtype, cg_at(cg, y->dtype, cg_out(cg, 0), to), from, left);
}

void emit_runs(Cg *cg, const KernelNode *k) {
    const Node *n = k->node;
    const Type *y = &n->out[0].type;
    int axis = run_axis(n);
    Piece piece[40];
    int n_pieces = 0;
    LV zero = cg_int(cg, 0);
    if (n->op == OP_SLICE) {
        piece[n_pieces++] = (Piece){0, cg_int(cg, n->attr.begin), zero, cg_dim(cg, y->dim[axis])};
    } else if (n->op == OP_UNSLICE) {
        LV begin = cg_int(cg, n->attr.begin), m = cg_dim(cg, n->in[0]->type.dim[axis]),
           end = cg_add(cg, begin, m);
        if (n->attr.begin) piece[n_pieces++] = (Piece){-1, NULL, zero, begin};
        piece[n_pieces++] = (Piece){0, zero, begin, m};
        piece[n_pieces++] = (Piece){-1, NULL, end, cg_sub(cg, cg_dim(cg, y->dim[axis]), end)};
    } else {
        LV to = zero;
        assert(n->n_in <= (int)(sizeof piece / sizeof *piece));
        for (int i = 0; i < n->n_in; i++) {
            LV m = cg_dim(cg, n->in[i]->type.dim[axis]);
            piece[n_pieces++] = (Piece){i, zero, to, m};
            to = cg_add(cg, to, m);
        }
    }
    int64_t runs = (longest_run(n) + RUN - 1) / RUN;
    if (runs < 1) runs = 1;
    int64_t grain = runs > 1 ? 1 : RUN / (longest_run(n) > 0 ? longest_run(n) : 1),
            bound = dims_bound(y, 0, axis);
    if (grain > bound) grain = bound;
    if (grain < 1) grain = 1;
    LV inner = cg_dims(cg, y, axis + 1, y->ndim), outer = cg_dims(cg, y, 0, axis);
    LV group = runs > 1 ? cg_div(cg, cg->task, cg_int(cg, runs)) : cg->task;
    LV chunk = runs > 1 ? cg_rem(cg, cg->task, cg_int(cg, runs)) : zero;
    LV lo = cg_muli(cg, group, grain), hi = cg_min(cg, cg_addi(cg, lo, grain), outer);
    CgLoop l;
    cg_for(cg, &l, lo, hi, 1);
    for (int i = 0; i < n_pieces; i++) add_piece(cg, n, &piece[i], l.i, chunk, inner, runs);
    cg_end(cg, &l);
}

// ---- permute -------------------------------------------------------------------------------------------

static int64_t permute_grain(const Node *n) {
    const Type *y = &n->out[0].type;
    return rows_grain(y, dim_bound(y->dim[y->ndim - 1]) * dtype_bytes(y->dtype));
}

bool describe_permute(const KernelNode *k, KernelDesc *d) {
    const Type *y = &k->node->out[0].type;
    if (!y->ndim) return false;
    d->tasks[0] = tasks_of_rows(y, permute_grain(k->node));
    return true;
}

void emit_permute(Cg *cg, const KernelNode *k) {
    const Node *n = k->node;
    const Type *x = &n->in[0]->type, *y = &n->out[0].type;
    DType t = raw(y->dtype);
    LV stride[MAX_DIM], step = cg_int(cg, 1);                 // of x
    for (int i = x->ndim - 1; i >= 0; i--) {
        stride[i] = step;
        step = cg_mul(cg, step, cg_dim(cg, x->dim[i]));
    }
    int last = y->ndim - 1;
    int64_t grain = permute_grain(n);
    LV cols = cg_dim(cg, y->dim[last]), lo = cg_muli(cg, cg->task, grain),
       hi = cg_min(cg, cg_addi(cg, lo, grain), cg_rows(cg, y));
    CgLoop rows, l;
    cg_for(cg, &rows, lo, hi, 1);
    LV rest = rows.i, from = cg_int(cg, 0), to = cg_mul(cg, rows.i, cols);
    for (int i = last - 1; i >= 0; i--) {
        LV size = cg_dim(cg, y->dim[i]);
        from = cg_add(cg, from, cg_mul(cg, cg_rem(cg, rest, size), stride[n->attr.perm.at[i]]));
        rest = cg_div(cg, rest, size);
    }
    if (n->attr.perm.at[last] == last) {
        move(cg, y->dtype, cg_at(cg, t, cg_out(cg, 0), to), cg_at(cg, t, cg_in(cg, 0), from), cols);
    } else {
        LT elem = cg_storage(cg, t);
        LV apart = stride[n->attr.perm.at[last]];
        cg_for(cg, &l, cg_int(cg, 0), cols, 1);
        LV v = cg_load(cg, elem, cg_gep(cg, elem, cg_in(cg, 0), cg_add(cg, from, cg_mul(cg, l.i, apart))),
                       dtype_bytes(t));
        cg_store(cg, v, cg_gep(cg, elem, cg_out(cg, 0), cg_add(cg, to, l.i)), dtype_bytes(t));
        cg_end(cg, &l);
    }
    cg_end(cg, &rows);
}

// ---- cache ---------------------------------------------------------------------------------------------

bool describe_cache(const KernelNode *k, KernelDesc *d) {
    const Node *n = k->node;
    if (n->n_in > 2) d->tasks[0] = (TaskCount){n->in[2]->type.dim[0].n, 1, 1, n->in[2]->type.dim[0].sym, 0};
    return n->in[1]->type.ndim >= 2;
}

// Task = a sequence.
static void emit_cache_of_many(Cg *cg, const KernelNode *k) {
    const Type *pool = &k->node->in[0]->type;
    LV row = cg_muli(cg, cg_dims(cg, pool, 2, pool->ndim), dtype_bytes(pool->dtype)), s[SEQUENCE_COLUMNS];
    cg_sequence(cg, cg_in(cg, 2), cg->task, s);
    LV to = cg_add(cg, cg_mul(cg, s[SEQUENCE_PLACE], cg_dim(cg, pool->dim[1])), cg_sub(cg, s[SEQUENCE_LENGTH], s[SEQUENCE_ROWS]));
    cg_memcpy(cg, cg_bytes(cg, cg_in(cg, 0), cg_mul(cg, to, row)), cg_bytes(cg, cg_in(cg, 1), cg_mul(cg, s[SEQUENCE_FIRST], row)),
              cg_mul(cg, s[SEQUENCE_ROWS], row));
}

void emit_cache(Cg *cg, const KernelNode *k) {
    if (k->node->n_in > 2) {
        emit_cache_of_many(cg, k);
        return;
    }
    const Type *rows = &k->node->in[1]->type;
    LV row = cg_muli(cg, cg_dims(cg, rows, 2, rows->ndim), dtype_bytes(rows->dtype)),
       S = cg_dim(cg, rows->dim[1]);
    LV first = cg_sub(cg, cg_sym(cg, k->node->attr.sym), S);
    cg_memcpy(cg, cg_bytes(cg, cg_in(cg, 0), cg_mul(cg, first, row)), cg_in(cg, 1), cg_mul(cg, S, row));
}
