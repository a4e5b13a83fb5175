// Elementwise ops on vectors of 16 lanes, epilogue bodies, and rows of operands that broadcast.
#include "codegen/cpu/elem.h"
#include <assert.h>

bool is_shown(const Node *n) {
    return n->op == OP_RESHAPE || n->op == OP_STOP_GRADIENT || n->op == OP_BROADCAST || n->op == OP_COPY;
}

static bool is_register_type(DType t) { return t == F32 || t == BF16 || t == F16 || t == I32 || t == BOOL; }

bool elem_supported(const Node *n) {
    if (!op_is(n->op, ELEMENTWISE) || n->op == OP_STOP_GRADIENT) return false;
    for (int i = 0; i < n->n_in; i++)
        if (!is_register_type(n->in[i]->type.dtype)) return false;
    return n->n_out == 1 && is_register_type(n->out[0].type.dtype);
}

static LV intrinsic1(Cg *cg, const char *name, LV x) {
    LT overload[] = {LLVMTypeOf(x)};
    return cg_intrinsic(cg, name, overload, 1, &x, 1);
}

// floor(a / b) of integers, 0 for b = 0.  In doubles: the quotient of 32-bit integers lies further from the next whole
// number than a double's rounding.
static LV floor_div(Cg *cg, LV a, LV b) {
    LV none = LLVMBuildICmp(cg->b, LLVMIntEQ, b, cg_zero(cg->vi32), "");
    LV q = LLVMBuildFDiv(cg->b, LLVMBuildSIToFP(cg->b, a, cg->vf64, ""),
                         LLVMBuildSIToFP(cg->b, cg_select(cg, none, cg_vec_int(cg, 1), b), cg->vf64, ""), "");
    LV most = cg_splat(cg, LLVMConstReal(cg->f64, 2147483647.0)), floor = intrinsic1(cg, "llvm.floor", q);
    LV wraps = LLVMBuildFCmp(cg->b, LLVMRealOGT, floor, most, "");             // -2^31 / -1 only
    LV whole = LLVMBuildFPToSI(cg->b, cg_select(cg, wraps, most, floor), cg->vi32, "");
    whole = cg_select(cg, wraps, cg_vec_int(cg, INT32_MIN), whole);
    return cg_select(cg, none, cg_zero(cg->vi32), whole);
}

static LV cast(Cg *cg, DType from, DType to, LV x) {
    if (dtype_is_float(from)) {
        if (dtype_is_float(to)) return x;
        if (to == BOOL) return LLVMBuildFCmp(cg->b, LLVMRealUNE, x, cg_zero(cg->vf32), "");
        LT overload[] = {cg->vi32, cg->vf32};
        return cg_intrinsic(cg, "llvm.fptosi.sat", overload, 2, &x, 1);
    }
    if (from == BOOL)
        return dtype_is_float(to) ? LLVMBuildUIToFP(cg->b, x, cg->vf32, "")
               : to == I32        ? LLVMBuildZExt(cg->b, x, cg->vi32, "")
                                  : x;
    if (dtype_is_float(to)) return LLVMBuildSIToFP(cg->b, x, cg->vf32, "");
    return to == BOOL ? LLVMBuildICmp(cg->b, LLVMIntNE, x, cg_zero(cg->vi32), "") : x;
}

static LV compare(Cg *cg, DType t, LLVMRealPredicate real, LLVMIntPredicate i, LV a, LV b) {
    return dtype_is_float(t) ? LLVMBuildFCmp(cg->b, real, a, b, "") : LLVMBuildICmp(cg->b, i, a, b, "");
}

static LV emit_float(Cg *cg, Op op, const LV *x) {
    LV one = cg_vec(cg, 1.0f);
    switch (op) {
    case OP_ADD: return cg_fadd(cg, x[0], x[1]);
    case OP_SUB: return cg_fsub(cg, x[0], x[1]);
    case OP_MUL: return cg_fmul(cg, x[0], x[1]);
    case OP_DIV: return cg_fdiv(cg, x[0], x[1]);
    case OP_MOD:
        return cg_fsub(cg, x[0], cg_fmul(cg, x[1], intrinsic1(cg, "llvm.floor", cg_fdiv(cg, x[0], x[1]))));
    case OP_MAX: return cg_fmax(cg, x[0], x[1]);
    case OP_MIN: return cg_fmin(cg, x[0], x[1]);
    case OP_FMA: return cg_fma(cg, x[0], x[1], x[2]);
    case OP_NEG: return cg_fneg(cg, x[0]);
    case OP_ABS: return intrinsic1(cg, "llvm.fabs", x[0]);
    case OP_SIGN: {
        LV zero = cg_zero(cg->vf32);
        LV up = cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, x[0], zero, ""), one, zero);
        return cg_fsub(cg, up, cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOLT, x[0], zero, ""), one, zero));
    }
    case OP_EXP: return cg_exp(cg, x[0]);
    case OP_LOG: return cg_log(cg, x[0]);
    case OP_LOG1P: return cg_log1p(cg, x[0]);
    case OP_SQRT: return cg_sqrt(cg, x[0]);
    case OP_RSQRT: return cg_fdiv(cg, one, cg_sqrt(cg, x[0]));
    case OP_TANH: return cg_tanh(cg, x[0]);
    case OP_SIGMOID: return cg_sigmoid(cg, x[0]);
    case OP_ERF: return cg_erf(cg, x[0]);
    case OP_SIN: return cg_sin(cg, x[0]);
    case OP_COS: return cg_cos(cg, x[0]);
    case OP_FLOOR: return intrinsic1(cg, "llvm.floor", x[0]);
    case OP_ROUND: return intrinsic1(cg, "llvm.rint", x[0]);
    default: assert(!"elementwise op on floats"); return NULL;
    }
}

static LV emit_int(Cg *cg, Op op, const LV *x) {
    LV zero = cg_zero(cg->vi32);
    switch (op) {
    case OP_ADD: return LLVMBuildAdd(cg->b, x[0], x[1], "");
    case OP_SUB: return LLVMBuildSub(cg->b, x[0], x[1], "");
    case OP_MUL: return LLVMBuildMul(cg->b, x[0], x[1], "");
    case OP_DIV: return floor_div(cg, x[0], x[1]);
    case OP_MOD:
        return LLVMBuildSub(cg->b, x[0], LLVMBuildMul(cg->b, x[1], floor_div(cg, x[0], x[1]), ""), "");
    case OP_MAX: return cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGE, x[0], x[1], ""), x[0], x[1]);
    case OP_MIN: return cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSLE, x[0], x[1], ""), x[0], x[1]);
    case OP_NEG: return LLVMBuildSub(cg->b, zero, x[0], "");
    case OP_ABS: {
        LV minus = LLVMBuildSub(cg->b, zero, x[0], "");
        return cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSLT, x[0], zero, ""), minus, x[0]);
    }
    case OP_SIGN: {
        LV up = LLVMBuildZExt(cg->b, LLVMBuildICmp(cg->b, LLVMIntSGT, x[0], zero, ""), cg->vi32, "");
        return LLVMBuildAdd(
            cg->b, up, LLVMBuildSExt(cg->b, LLVMBuildICmp(cg->b, LLVMIntSLT, x[0], zero, ""), cg->vi32, ""),
            "");
    }
    default: assert(!"elementwise op on integers"); return NULL;
    }
}

// bf16 and f16 values are held wide, rounded to what their storage keeps.
LV elem_round(Cg *cg, DType t, LV x) {
    if (t == F16) {
        LT half = LLVMVectorType(LLVMHalfTypeInContext(cg->cx), LANES);
        return LLVMBuildFPExt(cg->b, LLVMBuildFPTrunc(cg->b, x, half, ""), cg->vf32, "");
    }
    if (t != BF16) return x;
    LV bits = LLVMBuildBitCast(cg->b, x, cg->vi32, "");
    LV odd = LLVMBuildAnd(cg->b, LLVMBuildLShr(cg->b, bits, cg_vec_int(cg, 16), ""), cg_vec_int(cg, 1), "");
    LV up = LLVMBuildAdd(cg->b, bits, LLVMBuildAdd(cg->b, odd, cg_vec_int(cg, 0x7fff), ""), "");
    up = LLVMBuildAnd(cg->b, up, cg_vec_int(cg, (int32_t)0xffff0000), "");
    LV nan = LLVMBuildFCmp(cg->b, LLVMRealUNO, x, x, "");
    return cg_select(cg, nan, x, LLVMBuildBitCast(cg->b, up, cg->vf32, ""));
}

LV elem_emit(Cg *cg, const Node *n, const LV *x) {
    DType in = n->in[0]->type.dtype, out = n->out[0].type.dtype;
    switch (n->op) {
    case OP_CAST: return elem_round(cg, out, cast(cg, in, out, x[0]));
    case OP_EQ: return compare(cg, in, LLVMRealOEQ, LLVMIntEQ, x[0], x[1]);
    case OP_LT: return compare(cg, in, LLVMRealOLT, LLVMIntSLT, x[0], x[1]);
    case OP_LE: return compare(cg, in, LLVMRealOLE, LLVMIntSLE, x[0], x[1]);
    case OP_AND: return LLVMBuildAnd(cg->b, x[0], x[1], "");
    case OP_OR: return LLVMBuildOr(cg->b, x[0], x[1], "");
    case OP_NOT: return LLVMBuildNot(cg->b, x[0], "");
    case OP_SELECT: return cg_select(cg, x[0], x[1], x[2]);
    default:
        return dtype_is_float(out) ? elem_round(cg, out, emit_float(cg, n->op, x)) : emit_int(cg, n->op, x);
    }
}

LV elem_const(Cg *cg, const Node *n) {
    Arena *a = arena_create();
    DType t = n->out[0].type.dtype;
    LV v;
    if (dtype_is_float(t)) v = elem_round(cg, t, cg_vec(cg, *(float *)const_elements(a, n, F32)));
    else if (t == BOOL) v = cg_splat(cg, cg_bool(cg, *(uint8_t *)const_elements(a, n, BOOL)));
    else v = cg_vec_int(cg, *(int32_t *)const_elements(a, n, I32));
    arena_destroy(a);
    return v;
}

// ---- epilogue bodies -----------------------------------------------------------------------------------

bool body_is_elementwise(const Graph *body) {
    for_each_node(body, n) {
        if (n->op == OP_ARG || n->op == OP_YIELD || is_shown(n)) continue;
        if (n->op == OP_CONST && (!n->attr.data || type_bound_elements(&n->out[0].type) == 1)) continue;
        if (!elem_supported(n)) return false;
    }
    return true;
}

void cg_body(Cg *cg, const Graph *body, const BodyArgs *args, LV *results) {
    Arena *a = arena_create();
    LV *at = arena_array(a, LV, graph_number((Graph *)body) + 1);
    for_each_node(body, n) {
        LV x[3] = {NULL};
        for (int i = 0; n->op != OP_YIELD && i < n->n_in && i < 3; i++) x[i] = at[n->in[i]->id];
        if (n->op == OP_YIELD)
            for (int i = 0; i < n->n_in; i++) results[i] = at[n->in[i]->id];
        else if (n->op == OP_ARG) at[n->out[0].id] = args->arg(args->self, cg, n);
        else if (n->op == OP_CONST) at[n->out[0].id] = elem_const(cg, n);
        else at[n->out[0].id] = is_shown(n) ? x[0] : elem_emit(cg, n, x);
    }
    arena_destroy(a);
}

// ---- rows of operands that broadcast -------------------------------------------------------------------

bool row_map(const Type *operand, const Type *space, RowMap *m) {
    *m = (RowMap){.whole = true};
    int missing = space->ndim - operand->ndim;
    if (missing < 0) return false;
    Dim stride = operand->ndim ? operand->dim[operand->ndim - 1] : dim_n(1);
    for (int i = space->ndim - 2; i >= 0; i--) {
        Dim have = i - missing >= 0 ? operand->dim[i - missing] : dim_n(1);
        m->stride[i] = dim_n(0);
        if (dim_is_1(have)) {
            if (!dim_is_1(space->dim[i])) m->whole = false;
            continue;
        }
        if (!dim_eq(have, space->dim[i])) return false;
        m->used = true;
        m->stride[i] = stride;
        if (stride.sym && stride.sym->kind == SYM_LEAF) stride = dim_n(stride.n * stride.sym->bound);
        Dim d = have;
        if (d.sym && d.sym->kind == SYM_LEAF) d = dim_n(d.n * d.sym->bound);
        bool outermost = true;
        for (int k = 0; k < i; k++) outermost &= k - missing < 0 || dim_is_1(operand->dim[k - missing]);
        if (stride.sym && d.sym && !outermost) return false;      // a product of two symbols
        stride = (Dim){stride.n * d.n, stride.sym ? stride.sym : d.sym};
    }
    return true;
}

void row_indices(Cg *cg, const Type *space, LV row, LV *index) {
    for (int i = space->ndim - 2; i >= 0; i--) {
        bool outermost = true;
        for (int k = 0; k < i; k++) outermost &= dim_is_1(space->dim[k]);
        if (dim_is_1(space->dim[i])) {
            index[i] = cg_int(cg, 0);
        } else if (outermost) {
            index[i] = row;
        } else {
            LV n = cg_dim(cg, space->dim[i]);
            index[i] = cg_rem(cg, row, n);
            row = cg_div(cg, row, n);
        }
    }
}

LV row_offset(Cg *cg, const Type *operand, const Type *space, const RowMap *m, LV row, const LV *index) {
    if (!m->used) return cg_int(cg, 0);
    if (m->whole) return cg_mul(cg, row, cg_dim(cg, operand->dim[operand->ndim - 1]));
    LV at = cg_int(cg, 0);
    for (int i = 0; i + 1 < space->ndim; i++) {
        if (m->stride[i].n == 0) continue;
        at = cg_add(cg, at, cg_mul(cg, index[i], cg_dim(cg, m->stride[i])));
    }
    return at;
}

LV cg_load_broadcast(Cg *cg, LV base, const Type *operand, const Type *space, LV row, LV col, LV mask) {
    RowMap m;
    bool ok = row_map(operand, space, &m);
    assert(ok);
    (void)ok;
    LV index[MAX_DIM] = {NULL};
    if (m.used && !m.whole) row_indices(cg, space, row, index);
    LV at = row_offset(cg, operand, space, &m, row, index);
    bool wide = operand->ndim && !dim_is_1(operand->dim[operand->ndim - 1]);
    if (!wide) return cg_splat(cg, cg_load1(cg, operand->dtype, base, at));
    return cg_load_vec(cg, operand->dtype, base, cg_add(cg, at, col), mask);
}
