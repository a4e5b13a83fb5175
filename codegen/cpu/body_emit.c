// The code of a body: its levels, row by row.
#include <assert.h>
#include <string.h>
#include "codegen/cpu/body.h"

LV body_buffer_at(Em *e, const Step *s) {
    return cg_bytes(e->cg, e->cg->scratch, cg_int(e->cg, s->buffer));
}

LV body_column_at(Em *e, const Step *s) {
    return cg_at(e->cg, buffer_type(s->dtype), body_buffer_at(e, s->whole ? s->whole : s),
                 cg_int(e->cg, s->begin));
}

static LV emit_step(Em *e, Step *s);

static LV value_of(Em *e, Step *s) {                 // 16 lanes of the current chunk
    if (!s->wide) return s->value;
    if (is_computed(s) && !s->anywhere && s->level < e->level) {
        if (in_registers(s->width)) return s->chunk[e->chunk_number];
        if (s->seen == e->stamp) return s->value;
        s->seen = e->stamp;
        return s->value = cg_load_vec(e->cg, buffer_type(s->dtype), body_buffer_at(e, s), e->col, NULL);
    }
    if (s->seen == e->stamp) return s->value;
    LV v = emit_step(e, s);
    s->seen = e->stamp;
    return s->value = v;
}

static LV emit_arith(Em *e, const Step *s, const LV *x) {
    Cg *cg = e->cg;
    LV zero = cg_zero(cg->vf32);
    if (s->node) return elem_emit(cg, s->node, x);
    switch (s->op) {
    case OP_ADD: return cg_fadd(cg, x[0], x[1]);
    case OP_SUB: return cg_fsub(cg, x[0], x[1]);
    case OP_DIV: return cg_fdiv(cg, x[0], x[1]);
    case OP_EXP: return cg_exp(cg, x[0]);
    case OP_LOG: return cg_log(cg, x[0]);
    case OP_SELECT: {                                          // sums begin at 0: 0 + -0 is 0
        int source = e->b->spaces.at[s->space].source;
        LV sum = source ? x[0] : cg_fadd(cg, zero, x[0]);
        return e->all_there ? sum : cg_select(cg, cg_splat(cg, e->is_source[source]), sum, zero);
    }
    default: return elem_round(cg, s->dtype, x[0]);
    }
}

// Whole rows ahead, where they follow each other: the work on one leaves no room to wait for the next one's first lines.
static void ask_ahead(Em *e, DType t, LV base, LV at, Dim cols, bool write) {
    if (!e->b->asks_ahead || e->mask || (cols.sym && !e->b->flat)) return;
    int64_t least = AHEAD_BYTES / dtype_bytes(t), rows = e->b->flat || !cols.n ? 0 : (least + cols.n - 1) / cols.n;
    LV next = cg_addi(e->cg, at, rows > 1 ? rows * cols.n : least);
    cg_prefetch(e->cg, cg_at(e->cg, t, base, next), write, 3);
}

// The row that a combine brings sources to, read by number.
static bool is_target_row(const Em *e, const Step *s) {
    const Node *combine = e->b->combine;
    return combine && is_source(e->b->spaces.at[s->space].source) && combine->in[1]->node->attr.k == s->number->arg;
}

static bool is_in_order(const Em *e, const Step *s) {
    if (s->kind != S_LOAD) return false;
    return s->number ? is_target_row(e, s) : s->map.whole && !is_source(e->b->spaces.at[s->space].source);
}

static LV emit_step(Em *e, Step *s) {
    Cg *cg = e->cg;
    switch (s->kind) {
    case S_LOAD: case S_TABLE: {
        LV base = s->kind == S_LOAD && !s->number ? cg_in(cg, s->arg) : s->chunk[0];
        if (!s->wide) return cg_splat(cg, cg_load1(cg, s->dtype, base, cg_addi(cg, s->row, s->begin)));
        LV at = cg_add(cg, cg_addi(cg, s->row, s->begin), e->col);
        if (!s->asked && is_in_order(e, s)) ask_ahead(e, s->dtype, base, at, last_dim(s->number ? &s->source : &s->view), false);
        s->asked = true;
        return cg_load_vec(cg, s->dtype, base, at, e->mask);
    }
    case S_CONST: return elem_const(cg, s->node);
    case S_INDEX: {
        if (s->wide)
            return LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, e->col, cg->i32, "")),
                                "");
        const Type *space = &e->b->spaces.at[s->space].type;
        int axis = (int)s->node->attr.axis + space->ndim - s->view.ndim;
        LV i = axis == space->ndim - 1 || dim_is_1(s->view.dim[s->node->attr.axis])
                   ? cg_int(cg, 0)
                   : e->index[s->space][axis];
        return cg_splat(cg, LLVMBuildTrunc(cg->b, i, cg->i32, ""));
    }
    case S_BUFFER:
        return cg_load_vec(cg, buffer_type(s->dtype), body_column_at(e, s), e->col, NULL);
    case S_TAKE: {
        LV at = value_of(e, s->in[1]),
           n = LLVMBuildTrunc(cg->b, cg_dim(cg, last_dim(&s->node->in[0]->type)), cg->i32, "");
        LV inside = LLVMBuildICmp(cg->b, LLVMIntULT, at, cg_splat(cg, n), "");
        if (e->mask) inside = LLVMBuildAnd(cg->b, inside, e->mask, "");
        return cg_gather_vec(cg, buffer_type(s->dtype), body_column_at(e, s->in[0]), at, inside);
    }
    default: {
        LV x[MAX_OPERANDS];
        for (int i = 0; i < s->n_in; i++) x[i] = value_of(e, s->in[i]);
        return emit_arith(e, s, x);
    }
    }
}

static LV neutral(Cg *cg, const Step *red) {
    bool f = dtype_is_float(red->dtype);
    if (red->kind == S_SUM) return cg_zero(f ? cg->vf32 : cg->vi32);
    if (red->dtype == BOOL) return cg_zero(cg->v1);
    return f ? cg_vec(cg, -__builtin_inff()) : cg_vec_int(cg, INT32_MIN);
}

static LV combine(Cg *cg, const Step *red, LV a, LV x) {
    bool f = dtype_is_float(red->dtype);
    if (red->kind == S_SUM) return f ? cg_fadd(cg, a, x) : cg_add(cg, a, x);
    if (red->dtype == BOOL) return LLVMBuildOr(cg->b, a, x, "");
    return f ? cg_fmax(cg, a, x) : cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGE, a, x, ""), a, x);
}

static LV fold(Cg *cg, const Step *red, LV a) {
    if (red->kind == S_SUM) return cg_fold_sum(cg, a);
    if (red->dtype != BOOL) return cg_fold_max(cg, a);
    return LLVMBuildICmp(cg->b, LLVMIntNE, LLVMBuildBitCast(cg->b, a, cg->i16, ""), cg_zero(cg->i16), "");
}

// What a level does over columns of one width.
typedef struct {
    Dim    width;
    Step  *red[MOST_REDUCTIONS];
    int    n_red;
    Store *store[MOST_STORES];
    int    n_store;
    Step  *keep[MOST_KEPT];
    int    n_keep;
    Step  *into[MOST_PARTS];         // buffers, and which of their parts
    int    part[MOST_PARTS], n_into;
} Sweep;

static LV row_number(Em *e, int source) {
    return is_source(source) ? e->source_row[source] : cg_addi(e->cg, e->row, THIS_ROW - source);
}

// Where the row of a result begins, in elements.
static LV result_row(Em *e, const Store *s) {
    return cg_mul(e->cg, row_number(e, s->source), cg_dim(e->cg, last_dim(&e->b->result[s->result]->type)));
}

static void sweep_chunk(Em *e, const Sweep *w, LV col, LV mask, int chunk_number, LV *acc) {
    Cg *cg = e->cg;
    e->col = col;
    e->mask = mask;
    e->stamp++;
    e->chunk_number = chunk_number;
    for (int i = 0; i < w->n_red; i++) {
        LV x = value_of(e, w->red[i]->in[0]);
        if (mask) x = cg_select(cg, mask, x, neutral(cg, w->red[i]));
        acc[i] = combine(cg, w->red[i], acc[i], x);
    }
    for (int i = 0; i < w->n_keep; i++) {
        LV x = value_of(e, w->keep[i]);
        if (in_registers(w->keep[i]->width)) w->keep[i]->chunk[chunk_number] = x;
        else cg_store_vec(cg, buffer_type(w->keep[i]->dtype), x, body_buffer_at(e, w->keep[i]), col, NULL);
    }
    for (int i = 0; i < w->n_into; i++) {
        const Part *p = &w->into[i]->part[w->part[i]];
        cg_store_vec(cg, buffer_type(w->into[i]->dtype), value_of(e, p->from), body_buffer_at(e, w->into[i]),
                     cg_addi(cg, col, p->begin), mask);
    }
    LV x[sizeof w->store / sizeof *w->store];      // all before the first store: a result may lie where an operand does
    for (int i = 0; i < w->n_store; i++) x[i] = value_of(e, w->store[i]->from);
    for (int i = 0; i < w->n_store; i++) {
        const Store *s = w->store[i];
        LV there = mask;
        if (is_source(s->source) && !e->all_there) {
            there = cg_splat(cg, e->is_source[s->source]);
            if (mask) there = LLVMBuildAnd(cg->b, there, mask, "");
        }
        DType t = e->b->k->node->out[s->result].type.dtype;
        LV at = cg_add(cg, cg_addi(cg, result_row(e, s), s->begin), col);
        bool streamed = e->b->streamed >> s->result & 1 && !there && s->begin % LANES == 0;
        if (!streamed && !is_source(s->source)) ask_ahead(e, t, cg_out(cg, s->result), at, last_dim(&e->b->result[s->result]->type), true);
        if (streamed) cg_stream(cg, x[i], cg_at(cg, t, cg_out(cg, s->result), at));
        else cg_store_vec(cg, t, x[i], cg_out(cg, s->result), at, there);
    }
}

// Columns lo .. hi - 1; lo is a multiple of 16.
static void sweep_range(Em *e, const Sweep *w, LV lo, LV hi, LV *acc) {
    Cg *cg = e->cg;
    LV whole = cg_add(cg, lo, LLVMBuildAnd(cg->b, cg_sub(cg, hi, lo), cg_int(cg, -LANES), ""));
    CgLoop l;
    cg_loop_begin(cg, &l, lo, whole, LANES, w->n_red, acc);
    LV next[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) next[i] = l.carry[i];
    sweep_chunk(e, w, l.i, NULL, -1, next);
    cg_loop_end(cg, &l, next);
    for (int i = 0; i < w->n_red; i++) acc[i] = l.carry[i];
    if (LLVMIsConstant(hi) && LLVMIsConstant(lo)) {
        int64_t n = LLVMConstIntGetSExtValue(hi) - LLVMConstIntGetSExtValue(lo);
        if (n % LANES) sweep_chunk(e, w, whole, cg_tail_mask(cg, cg_int(cg, n % LANES)), -1, acc);
        return;
    }
    CgIf f;
    cg_if(cg, &f, cg_lt(cg, whole, hi));
    LV before[MOST_REDUCTIONS], tail[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) before[i] = tail[i] = acc[i];
    sweep_chunk(e, w, whole, cg_tail_mask(cg, cg_sub(cg, hi, whole)), -1, tail);
    cg_else(cg, &f);
    cg_endif_join(cg, &f, w->n_red, tail, before, acc);
}

static void emit_sweep(Em *e, const Sweep *w) {
    Cg *cg = e->cg;
    LV acc[MOST_REDUCTIONS];
    for (int i = 0; i < w->n_red; i++) acc[i] = neutral(cg, w->red[i]);
    if (in_registers(w->width)) {
        int64_t n = w->width.n;
        for (int64_t c = 0; c < n; c += LANES)
            sweep_chunk(e, w, cg_int(cg, c), n - c < LANES ? cg_tail_mask(cg, cg_int(cg, n - c)) : NULL,
                        (int)(c / LANES), acc);
    } else {
        sweep_range(e, w, cg_int(cg, 0), cg_dim(cg, w->width), acc);
    }
    for (int i = 0; i < w->n_red; i++) w->red[i]->value = cg_splat(cg, fold(cg, w->red[i], acc[i]));
}

static Sweep *sweep_for(Em *e, Sweep *sweeps, int *n, Dim width) {
    (void)e;
    for (int i = 0; i < *n; i++)
        if (dim_eq(sweeps[i].width, width)) return &sweeps[i];
    assert(*n < MAX_WIDTHS);
    memset(&sweeps[*n], 0, sizeof *sweeps);
    sweeps[*n].width = width;
    return &sweeps[(*n)++];
}

// A value without columns that leaves as columns: repeated.
static Dim store_width(const Store *s) { return s->from->wide ? s->from->width : s->cols; }

static void emit_level(Em *e, int level) {
    Cg *cg = e->cg;
    Body *b = e->b;
    e->level = level;
    e->mask = NULL;
    for (int i = 0; i < b->steps.n; i++) {               // what has no columns
        Step *s = b->steps.at[i];
        if (s->kind == S_TOPK && s->level == level) body_emit_topk(e, s);
        if (s->kind == S_PUT && s->level == level) body_emit_put(e, s);
        bool now = is_computed(s) || s->kind == S_BUFFER ? s->level == level
                                                         : (s->kind == S_LOAD || s->kind == S_TABLE ||
                                                            s->kind == S_CONST || s->kind == S_INDEX) &&
                                                               level == 0;
        if (s->wide || !now) continue;
        if (s->kind == S_BUFFER)
            s->value = cg_splat(cg, cg_load1(cg, buffer_type(s->dtype), body_column_at(e, s), cg_int(cg, 0)));
        else s->value = emit_step(e, s);
    }
    Sweep *sweeps = arena_array(b->a, Sweep, MAX_WIDTHS);
    int n = 0;
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if ((s->kind == S_SUM || s->kind == S_MAX) && s->level == level) {
            if (!s->in[0]->wide) {                       // one column
                LV x = s->in[0]->value;
                s->value = s->kind == S_MAX ? x : combine(cg, s, neutral(cg, s), x);
                continue;
            }
            Sweep *w = sweep_for(e, sweeps, &n, s->in[0]->width);
            assert(w->n_red < MOST_REDUCTIONS);
            w->red[w->n_red++] = s;
        }
        if (s->kept && s->level == level) {
            Sweep *w = sweep_for(e, sweeps, &n, s->width);
            assert(w->n_keep < MOST_KEPT);
            w->keep[w->n_keep++] = s;
        }
        for (int j = 0; j < s->n_parts; j++) {
            const Part *p = &s->part[j];
            if (s->level - 1 != level) continue;
            Sweep *w = sweep_for(e, sweeps, &n, p->width);
            assert(w->n_into < MOST_PARTS);
            w->into[w->n_into] = s;
            w->part[w->n_into++] = j;
        }
    }
    for (int i = 0; i < b->stores.n; i++) {
        Store *s = &b->stores.at[i];
        int at = body_available(s->from);
        if (at != level) continue;
        Dim width = store_width(s);
        if (dim_is_1(width)) {
            LV x = LLVMBuildExtractElement(cg->b, s->from->value, cg_int32(cg, 0), "");
            CgIf f;
            bool perhaps = is_source(s->source) && !e->all_there;
            if (perhaps) cg_if(cg, &f, e->is_source[s->source]);
            cg_store1(cg, b->k->node->out[s->result].type.dtype, x, cg_out(cg, s->result),
                      cg_addi(cg, result_row(e, s), s->begin));
            if (perhaps) cg_endif(cg, &f);
            continue;
        }
        Sweep *w = sweep_for(e, sweeps, &n, width);
        assert(w->n_store < MOST_STORES);
        w->store[w->n_store++] = s;
    }
    for (int i = 0; i < n; i++) emit_sweep(e, &sweeps[i]);
}

// Where a row read by number begins; a number that is none reads zeros.
static LV numbered_row(Em *e, const Step *s) {
    Cg *cg = e->cg;
    const Type *x = &s->source;
    LV i = is_target_row(e, s) ? e->row : cg_i64(cg, cg_load1(cg, I32, cg_in(cg, s->number->arg), s->number->row));
    LV there = LLVMBuildICmp(cg->b, LLVMIntULT, i, cg_rows(cg, x), "");
    return cg_select(cg, there, cg_at(cg, x->dtype, cg_in(cg, s->arg), cg_muli(cg, i, type_cols(x))), e->zeros);
}

static void make_zeros(Em *e) {
    Cg *cg = e->cg;
    int64_t most = 0;
    for (int i = 0; i < e->b->steps.n; i++) {
        const Step *s = e->b->steps.at[i];
        if (s->number && type_cols(&s->source) > most) most = type_cols(&s->source);
    }
    if (!most) return;
    LT t = LLVMArrayType(cg->i8, (unsigned)((most + LANES) * 4));
    e->zeros = LLVMAddGlobal(cg->module, t, "zeros");
    LLVMSetInitializer(e->zeros, LLVMConstNull(t));
    LLVMSetLinkage(e->zeros, LLVMInternalLinkage);
    LLVMSetAlignment(e->zeros, 64);
}

// Sorts n numbers that are not negative, and -1 behind them: Batcher's network, without what would meet numbers
// from n on.
static void sort_numbers(Cg *cg, LV *x, int n) {
    LT overload[] = {cg->i32};
    for (int p = 1; p < n; p *= 2)
        for (int k = p; k >= 1; k /= 2)
            for (int j = k % p; j + k < n; j += 2 * k)
                for (int i = 0; i < k && i + j + k < n; i++) {
                    if ((i + j) / (2 * p) != (i + j + k) / (2 * p)) continue;
                    LV two[] = {x[i + j], x[i + j + k]};
                    x[i + j] = cg_intrinsic(cg, "llvm.umin", overload, 1, two, 2);
                    x[i + j + k] = cg_intrinsic(cg, "llvm.umax", overload, 1, two, 2);
                }
}

static void find_sources(Em *e) {
    Cg *cg = e->cg;
    const Value *inverse = scatter_inverse(e->b->combine);
    int k = (int)type_cols(&inverse->type);
    LV number[MOST_SOURCES], first = cg_muli(cg, e->row, k);
    for (int i = 0; i < k; i++)
        number[i] = cg_load1(cg, I32, cg_in(cg, (int)inverse->node->attr.k), cg_addi(cg, first, i));
    sort_numbers(cg, number, k);
    for (int i = 0; i < k; i++) {
        e->is_source[i] = LLVMBuildICmp(cg->b, LLVMIntSGE, number[i], cg_int32(cg, 0), "");
        e->source_row[i] = cg_i64(cg, cg_select(cg, e->is_source[i], number[i], cg_int32(cg, 0)));
    }
}

static void emit_levels(Em *e) {
    for (int i = 0; i < e->b->steps.n; i++) e->b->steps.at[i]->asked = false;
    for (int level = 0; level <= e->b->n_levels; level++) emit_level(e, level);
}

static void emit_row(Em *e) {
    Cg *cg = e->cg;
    Body *b = e->b;
    if (b->combine) find_sources(e);
    for (int i = 0; i < b->spaces.n; i++) row_indices(cg, &b->spaces.at[i].type, row_number(e, b->spaces.at[i].source), e->index[i]);
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if (s->kind != S_LOAD && s->kind != S_TABLE) continue;
        if (s->number) {
            s->chunk[0] = numbered_row(e, s);
            s->row = cg_int(cg, 0);
        } else {
            s->row = row_offset(cg, &s->view, &b->spaces.at[s->space].type, &s->map,
                                row_number(e, b->spaces.at[s->space].source), e->index[s->space]);
        }
    }
    if (!b->combine) {
        emit_levels(e);
        return;
    }
    LV all = cg_bool(cg, true);                    // mostly so: without a mask for each
    for (int i = 0; i < type_cols(&scatter_inverse(b->combine)->type); i++)
        all = LLVMBuildAnd(cg->b, all, e->is_source[i], "");
    CgIf f;
    cg_if(cg, &f, all);
    e->all_there = true;
    emit_levels(e);
    cg_else(cg, &f);
    e->all_there = false;
    emit_levels(e);
    cg_endif(cg, &f);
}

// One run of a flat body: elements task * FLAT_RUN .. as columns of the only row.
static void emit_flat(Em *e) {
    Cg *cg = e->cg;
    Body *b = e->b;
    LV zero = cg_int(cg, 0);
    e->row = zero;
    for (int i = 0; i < b->steps.n; i++) b->steps.at[i]->row = zero;
    e->level = 0;
    for (int i = 0; i < b->steps.n; i++) {
        Step *s = b->steps.at[i];
        if (!s->wide) s->value = emit_step(e, s);
    }
    Sweep w = {.width = b->rows->dim[0]};
    for (int i = 0; i < b->stores.n; i++) w.store[w.n_store++] = &b->stores.at[i];
    LV lo = cg_muli(cg, cg->task, FLAT_RUN), hi = cg_min(cg, cg_addi(cg, lo, FLAT_RUN), cg_dim(cg, w.width));
    sweep_range(e, &w, lo, cg_max(cg, lo, hi), NULL);
}

LV body_emit_rows(Cg *cg, Arena *a, Body *b, LV lo, LV hi, int at_once) {
    Em *e = arena_new(a, Em);
    e->cg = cg;
    e->b = b;
    for (int i = 0; i < b->steps.n; i++)
        if (b->steps.at[i]->kind == S_TABLE) b->steps.at[i]->chunk[0] = cg_table(cg, b->steps.at[i]->node, b->steps.at[i]->dtype);
    make_zeros(e);
    if (b->flat) {
        emit_flat(e);
        return hi;
    }
    CgLoop l;
    LV last = at_once > 1 ? cg_addi(cg, hi, 1 - at_once) : hi;
    cg_for(cg, &l, lo, last, at_once);
    e->row = l.i;
    emit_row(e);
    cg_end(cg, &l);
    return l.i;
}
