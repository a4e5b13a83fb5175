// LLVM helpers for CPU kernels: see cg.h.
#include "codegen/cpu/cg.h"
#include <assert.h>
#include <llvm-c/BitWriter.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// ---- constants -----------------------------------------------------------------------------------------

LV cg_int(Cg *cg, int64_t n) { return LLVMConstInt(cg->i64, (unsigned long long)n, true); }
LV cg_int32(Cg *cg, int32_t n) { return LLVMConstInt(cg->i32, (unsigned long long)(int64_t)n, true); }
LV cg_bool(Cg *cg, bool x) { return LLVMConstInt(cg->i1, x, false); }
LV cg_zero(LT t) { return LLVMConstNull(t); }

// Through the bits: a double on the way would lose the payload of a NaN.
LV cg_float(Cg *cg, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return LLVMConstBitCast(LLVMConstInt(cg->i32, bits, false), cg->f32);
}

LV cg_splat(Cg *cg, LV scalar) {
    if (LLVMIsConstant(scalar)) {
        LV lane[LANES];
        for (int i = 0; i < LANES; i++) lane[i] = scalar;
        return LLVMConstVector(lane, LANES);
    }
    LT v = LLVMVectorType(LLVMTypeOf(scalar), LANES);
    LV one = LLVMBuildInsertElement(cg->b, LLVMGetPoison(v), scalar, cg_int32(cg, 0), "");
    return LLVMBuildShuffleVector(cg->b, one, LLVMGetPoison(v), LLVMConstNull(cg->vi32), "");
}

LV cg_vec(Cg *cg, float x) { return cg_splat(cg, cg_float(cg, x)); }
LV cg_vec_int(Cg *cg, int32_t n) { return cg_splat(cg, cg_int32(cg, n)); }

LV cg_lanes(Cg *cg) {
    LV lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = cg_int32(cg, i);
    return LLVMConstVector(lane, LANES);
}

// ---- i64 arithmetic ------------------------------------------------------------------------------------

LV cg_add(Cg *cg, LV a, LV b) { return LLVMBuildAdd(cg->b, a, b, ""); }
LV cg_sub(Cg *cg, LV a, LV b) { return LLVMBuildSub(cg->b, a, b, ""); }
LV cg_mul(Cg *cg, LV a, LV b) { return LLVMBuildMul(cg->b, a, b, ""); }
LV cg_div(Cg *cg, LV a, LV b) { return LLVMBuildUDiv(cg->b, a, b, ""); }
LV cg_rem(Cg *cg, LV a, LV b) { return LLVMBuildURem(cg->b, a, b, ""); }
LV cg_lt(Cg *cg, LV a, LV b) { return LLVMBuildICmp(cg->b, LLVMIntSLT, a, b, ""); }
LV cg_eq(Cg *cg, LV a, LV b) { return LLVMBuildICmp(cg->b, LLVMIntEQ, a, b, ""); }
LV cg_select(Cg *cg, LV c, LV a, LV b) { return LLVMBuildSelect(cg->b, c, a, b, ""); }
LV cg_min(Cg *cg, LV a, LV b) { return cg_select(cg, cg_lt(cg, b, a), b, a); }
LV cg_max(Cg *cg, LV a, LV b) { return cg_select(cg, cg_lt(cg, a, b), b, a); }
LV cg_addi(Cg *cg, LV a, int64_t n) { return n ? cg_add(cg, a, cg_int(cg, n)) : a; }
LV cg_muli(Cg *cg, LV a, int64_t n) { return n == 1 ? a : cg_mul(cg, a, cg_int(cg, n)); }
LV cg_i64(Cg *cg, LV x) { return LLVMBuildSExt(cg->b, x, cg->i64, ""); }

// ---- control -------------------------------------------------------------------------------------------

static LLVMBasicBlockRef new_block(Cg *cg, const char *name) {
    return LLVMAppendBasicBlockInContext(cg->cx, cg->fn, name);
}

void cg_loop_begin(Cg *cg, CgLoop *l, LV lo, LV hi, int64_t step, int n, const LV *init) {
    assert(n <= CG_MAX_CARRY);
    LLVMBasicBlockRef before = LLVMGetInsertBlock(cg->b);
    l->head = new_block(cg, "head");
    l->body = new_block(cg, "body");
    l->exit = new_block(cg, "exit");
    l->n = n;
    l->step = cg_int(cg, step);
    LLVMBuildBr(cg->b, l->head);
    LLVMPositionBuilderAtEnd(cg->b, l->head);
    l->i = LLVMBuildPhi(cg->b, cg->i64, "i");
    LLVMAddIncoming(l->i, &lo, &before, 1);
    for (int j = 0; j < n; j++) {
        l->carry[j] = LLVMBuildPhi(cg->b, LLVMTypeOf(init[j]), "");
        LV first = init[j];
        LLVMAddIncoming(l->carry[j], &first, &before, 1);
    }
    LLVMBuildCondBr(cg->b, cg_lt(cg, l->i, hi), l->body, l->exit);
    LLVMPositionBuilderAtEnd(cg->b, l->body);
}

void cg_loop_end(Cg *cg, CgLoop *l, const LV *next) {
    LV i = LLVMBuildNSWAdd(cg->b, l->i, l->step, "");
    LLVMBasicBlockRef here = LLVMGetInsertBlock(cg->b);
    LLVMAddIncoming(l->i, &i, &here, 1);
    for (int j = 0; j < l->n; j++) {
        LV v = next[j];
        LLVMAddIncoming(l->carry[j], &v, &here, 1);
    }
    LLVMBuildBr(cg->b, l->head);
    LLVMMoveBasicBlockAfter(l->exit, here);
    LLVMPositionBuilderAtEnd(cg->b, l->exit);
}

void cg_for(Cg *cg, CgLoop *l, LV lo, LV hi, int64_t step) { cg_loop_begin(cg, l, lo, hi, step, 0, NULL); }
void cg_end(Cg *cg, CgLoop *l) { cg_loop_end(cg, l, NULL); }

void cg_if(Cg *cg, CgIf *f, LV cond) {
    f->yes = new_block(cg, "yes");
    f->no = new_block(cg, "no");
    f->exit = f->no;
    f->has_else = false;
    LLVMBuildCondBr(cg->b, cond, f->yes, f->no);
    LLVMPositionBuilderAtEnd(cg->b, f->yes);
}

void cg_else(Cg *cg, CgIf *f) {
    f->yes_end = LLVMGetInsertBlock(cg->b);
    f->exit = new_block(cg, "join");
    f->has_else = true;
    LLVMBuildBr(cg->b, f->exit);
    LLVMMoveBasicBlockAfter(f->no, f->yes_end);
    LLVMPositionBuilderAtEnd(cg->b, f->no);
}

void cg_endif(Cg *cg, CgIf *f) {
    LLVMBasicBlockRef here = LLVMGetInsertBlock(cg->b);
    LLVMBuildBr(cg->b, f->exit);
    LLVMMoveBasicBlockAfter(f->exit, here);
    LLVMPositionBuilderAtEnd(cg->b, f->exit);
}

void cg_endif_join(Cg *cg, CgIf *f, int n, const LV *yes, const LV *no, LV *out) {
    assert(f->has_else);
    LLVMBasicBlockRef from[2] = {f->yes_end, LLVMGetInsertBlock(cg->b)};
    cg_endif(cg, f);
    for (int j = 0; j < n; j++) {
        LV in[2] = {yes[j], no[j]};
        out[j] = LLVMBuildPhi(cg->b, LLVMTypeOf(yes[j]), "");
        LLVMAddIncoming(out[j], in, from, 2);
    }
}

void cg_if_phase(Cg *cg, CgIf *f, int phase) { cg_if(cg, f, cg_eq(cg, cg->phase, cg_int(cg, phase))); }

const char cg_passes[] = "function(early-cse,instcombine<no-verify-fixpoint>,simplifycfg),globaldce";

LLVMModuleRef cg_module(LLVMContextRef cx, LLVMModuleRef like, const char *name) {
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext(name, cx);
    LLVMSetDataLayout(module, LLVMGetDataLayoutStr(like));
    LLVMSetTarget(module, LLVMGetTarget(like));
    return module;
}

static void add_attribute(Cg *cg, LV fn, const char *key, const char *value) {
    LLVMAttributeRef a =
        LLVMCreateStringAttribute(cg->cx, key, (unsigned)strlen(key), value, (unsigned)strlen(value));
    LLVMAddAttributeAtIndex(fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex, a);
}

void cg_target_attributes(Cg *cg, LLVMModuleRef module) {
    const CpuTarget *t = cg->target;
    const char *width = t->vector_bytes == 64 ? "512" : t->vector_bytes == 32 ? "256" : "128";
    for (LV fn = LLVMGetFirstFunction(module); fn; fn = LLVMGetNextFunction(fn)) {
        if (LLVMIsDeclaration(fn)) continue;
        add_attribute(cg, fn, "prefer-vector-width", width);
        add_attribute(cg, fn, "target-cpu", t->cpu);
        if (*t->features) add_attribute(cg, fn, "target-features", t->features);
    }
}

void cg_function_begin(Cg *cg, CgFunction *f, const char *name, LT result, const LT *params, int n_params) {
    f->saved_fn = cg->fn;
    f->saved_module = cg->module;
    f->saved_block = LLVMGetInsertBlock(cg->b);
    f->saved_entry = cg->entry;
    snprintf(f->name, sizeof f->name, "%s", name);
    LT type[CG_MAX_CARRY];
    assert(n_params <= CG_MAX_CARRY);
    for (int i = 0; i < n_params; i++) type[i] = params[i];
    f->type = LLVMFunctionType(result, type, (unsigned)n_params, false);
    cg->module = cg_module(cg->cx, cg->module, "part");
    f->fn = LLVMAddFunction(cg->module, name, f->type);
    LLVMSetVisibility(f->fn, LLVMHiddenVisibility);
    unsigned noinline_kind = LLVMGetEnumAttributeKindForName("noinline", 8);
    LLVMAddAttributeAtIndex(f->fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex, LLVMCreateEnumAttribute(cg->cx, noinline_kind, 0));
    cg->fn = f->fn;
    cg->entry = new_block(cg, "entry");
    LLVMBasicBlockRef start = new_block(cg, "start");
    LLVMPositionBuilderAtEnd(cg->b, cg->entry);
    LLVMBuildBr(cg->b, start);
    LLVMPositionBuilderAtEnd(cg->b, start);
}

// The hash of all that its code depends on becomes part of a function's name.
static CgPart *name_part(Cg *cg, LV fn, const char *name) {
    cg_target_attributes(cg, cg->module);
    LLVMMemoryBufferRef bitcode = LLVMWriteBitcodeToMemoryBuffer(cg->module);
    XXH128_hash_t h = XXH3_128bits_withSeed(LLVMGetBufferStart(bitcode), LLVMGetBufferSize(bitcode),
                                            XXH3_64bits(cg_passes, sizeof cg_passes));
    LLVMDisposeMemoryBuffer(bitcode);
    CgParts *parts = cg->parts;
    parts->at = realloc(parts->at, (size_t)(parts->n + 1) * sizeof *parts->at);
    assert(parts->at);
    CgPart *part = &parts->at[parts->n++];
    part->module = cg->module;
    snprintf(part->name, sizeof part->name, "moec_%s_%016llx%016llx", name, (unsigned long long)h.high64, (unsigned long long)h.low64);
    LLVMSetValueName2(fn, part->name, strlen(part->name));
    for (int i = 0; i < parts->n - 1; i++)
        if (!strcmp(parts->at[i].name, part->name)) {
            LLVMDisposeModule(part->module);
            parts->n--;
            return &parts->at[i];
        }
    return part;
}

void cg_function_end(Cg *cg, CgFunction *f) {
    if (!LLVMGetBasicBlockTerminator(LLVMGetInsertBlock(cg->b))) LLVMBuildRetVoid(cg->b);
    const CgPart *part = name_part(cg, f->fn, f->name);
    cg->fn = f->saved_fn;
    cg->module = f->saved_module;
    cg->entry = f->saved_entry;
    LLVMPositionBuilderAtEnd(cg->b, f->saved_block);
    f->fn = cg_extern(cg, part->name, f->type);
    LLVMSetVisibility(f->fn, LLVMHiddenVisibility);
}

LV cg_call(Cg *cg, LT type, LV fn, const LV *args, int n) {
    LV a[CG_MAX_CARRY];
    assert(n <= CG_MAX_CARRY);
    for (int i = 0; i < n; i++) a[i] = args[i];
    return LLVMBuildCall2(cg->b, type, fn, a, (unsigned)n, "");
}

LV cg_extern(Cg *cg, const char *name, LT type) {
    LV fn = LLVMGetNamedFunction(cg->module, name);
    return fn ? fn : LLVMAddFunction(cg->module, name, type);
}

LV cg_alloca(Cg *cg, LT t, int64_t n, int align) {
    LLVMBasicBlockRef here = LLVMGetInsertBlock(cg->b);
    LLVMPositionBuilderBefore(cg->b, LLVMGetBasicBlockTerminator(cg->entry));
    LV at = LLVMBuildArrayAlloca(cg->b, t, cg_int32(cg, (int32_t)n), "");
    LLVMSetAlignment(at, (unsigned)align);
    LLVMPositionBuilderAtEnd(cg->b, here);
    return at;
}

LV cg_intrinsic(Cg *cg, const char *name, const LT *overload, int n_overload, const LV *args, int n_args) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    assert(id);
    LT o[4];
    for (int i = 0; i < n_overload; i++) o[i] = overload[i];
    LV fn = LLVMGetIntrinsicDeclaration(cg->module, id, o, (size_t)n_overload);
    return cg_call(cg, LLVMIntrinsicGetType(cg->cx, id, o, (size_t)n_overload), fn, args, n_args);
}

// ---- operands of the step ------------------------------------------------------------------------------

LV cg_arg(Cg *cg, int i) { return cg->arg[i]; }
LV cg_in(Cg *cg, int i) { return cg->arg[i]; }
LV cg_out(Cg *cg, int i) { return cg->arg[cg->k->node->n_in + i]; }
LV cg_workspace(Cg *cg) { return cg->arg[kernel_n_args(cg->k) + cg->k->n_ragged]; }

LV cg_sym(Cg *cg, const Sym *s) {
    if (s->kind == SYM_LEAF) return cg_int(cg, s->bound);
    if (s->kind == SYM_PLAIN) {
        int i = 0;
        while (cg->k->plain[i] != s) i++;
        assert(i < cg->k->n_plain);
        LV at = cg_bytes(cg, cg->call, cg_int(cg, (int64_t)offsetof(RtCall, sym)));
        return cg_load(cg, cg->i64,
                       cg_gep(cg, cg->i64, cg_load(cg, cg->ptr, at, 8), cg_int(cg, cg->k->plain_index[i])),
                       8);
    }
    int i = 0;
    while (i < cg->k->n_ragged && cg->k->ragged[i] != s) i++;
    assert(i < cg->k->n_ragged);
    LV offsets = cg->arg[kernel_n_args(cg->k) + i];
    return cg_i64(cg, cg_load1(cg, I32, offsets, cg_int(cg, (int64_t)s->groups * s->leaves)));
}

LV cg_dim(Cg *cg, Dim d) { return d.sym ? cg_muli(cg, cg_sym(cg, d.sym), d.n) : cg_int(cg, d.n); }

void cg_sequence(Cg *cg, LV table, LV number, LV *column) {
    LV at = cg_muli(cg, number, SEQUENCE_COLUMNS);
    for (int i = 0; i < SEQUENCE_COLUMNS; i++) column[i] = cg_i64(cg, cg_load1(cg, I32, table, cg_addi(cg, at, i)));
}

LV cg_dims(Cg *cg, const Type *t, int lo, int hi) {
    LV n = cg_int(cg, 1);
    for (int i = lo; i < hi; i++) n = cg_mul(cg, n, cg_dim(cg, t->dim[i]));
    return n;
}

LV cg_rows(Cg *cg, const Type *t) { return cg_dims(cg, t, 0, t->ndim - 1); }
LV cg_elements(Cg *cg, const Type *t) { return cg_dims(cg, t, 0, t->ndim); }

// ---- memory --------------------------------------------------------------------------------------------

LT cg_storage(Cg *cg, DType t) {
    switch (t) {
    case F32: return cg->f32;
    case BF16: case F16: return cg->i16;
    case I32: case U32: return cg->i32;
    default: return cg->i8;
    }
}

static LT storage_vec(Cg *cg, DType t) {
    switch (t) {
    case F32: return cg->vf32;
    case BF16: case F16: return cg->v16;
    case I32: case U32: return cg->vi32;
    default: return cg->v8;
    }
}

LV cg_gep(Cg *cg, LT elem, LV base, LV index) { return LLVMBuildGEP2(cg->b, elem, base, &index, 1, ""); }
LV cg_at(Cg *cg, DType t, LV base, LV index) { return cg_gep(cg, cg_storage(cg, t), base, index); }
LV cg_bytes(Cg *cg, LV base, LV n) { return cg_gep(cg, cg->i8, base, n); }

LV cg_load(Cg *cg, LT t, LV at, int align) {
    LV x = LLVMBuildLoad2(cg->b, t, at, "");
    LLVMSetAlignment(x, (unsigned)align);
    return x;
}

void cg_store(Cg *cg, LV x, LV at, int align) {
    LLVMSetAlignment(LLVMBuildStore(cg->b, x, at), (unsigned)align);
}

void cg_stream(Cg *cg, LV x, LV at) {
    LV store = LLVMBuildStore(cg->b, x, at);
    LLVMSetAlignment(store, 64);
    LLVMMetadataRef one = LLVMValueAsMetadata(cg_int32(cg, 1));
    LLVMSetMetadata(store, LLVMGetMDKindIDInContext(cg->cx, "nontemporal", 11),
                    LLVMMetadataAsValue(cg->cx, LLVMMDNodeInContext2(cg->cx, &one, 1)));
}

static LT like(LT scalar, LV x) {           // scalar, or 16 lanes of it if x is a vector
    return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind ? LLVMVectorType(scalar, LANES) : scalar;
}
static LV same(Cg *cg, LV constant, LV x) { // the constant as scalar or vector like x
    return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind ? cg_splat(cg, constant) : constant;
}

// From storage to registers; scalars and vectors.
static LV widen(Cg *cg, DType t, LV x) {
    switch (t) {
    case BF16: {
        LV wide = LLVMBuildZExt(cg->b, x, like(cg->i32, x), "");
        wide = LLVMBuildShl(cg->b, wide, same(cg, cg_int32(cg, 16), x), "");
        return LLVMBuildBitCast(cg->b, wide, like(cg->f32, x), "");
    }
    case F16: {
        LT half = LLVMHalfTypeInContext(cg->cx);
        return LLVMBuildFPExt(cg->b, LLVMBuildBitCast(cg->b, x, like(half, x), ""), like(cg->f32, x), "");
    }
    case I8: return LLVMBuildSExt(cg->b, x, like(cg->i32, x), "");
    case U8: return LLVMBuildZExt(cg->b, x, like(cg->i32, x), "");
    case BOOL: return LLVMBuildICmp(cg->b, LLVMIntNE, x, cg_zero(LLVMTypeOf(x)), "");
    default: return x;
    }
}

// From registers to storage.  bf16 rounds to nearest even and keeps NaN.
static LV narrow(Cg *cg, DType t, LV x) {
    switch (t) {
    case BF16: {
        LT wide = like(cg->i32, x);
        LV bits = LLVMBuildBitCast(cg->b, x, wide, "");
        LV odd = LLVMBuildAnd(cg->b, LLVMBuildLShr(cg->b, bits, same(cg, cg_int32(cg, 16), x), ""),
                              same(cg, cg_int32(cg, 1), x), "");
        LV up =
            LLVMBuildAdd(cg->b, bits, LLVMBuildAdd(cg->b, odd, same(cg, cg_int32(cg, 0x7fff), x), ""), "");
        LV quiet = LLVMBuildOr(cg->b, bits, same(cg, cg_int32(cg, 0x400000), x), "");
        LV nan = LLVMBuildFCmp(cg->b, LLVMRealUNO, x, x, "");
        LV r = LLVMBuildLShr(cg->b, LLVMBuildSelect(cg->b, nan, quiet, up, ""), same(cg, cg_int32(cg, 16), x),
                             "");
        return LLVMBuildTrunc(cg->b, r, like(cg->i16, x), "");
    }
    case F16: {
        LV half = LLVMBuildFPTrunc(cg->b, x, like(LLVMHalfTypeInContext(cg->cx), x), "");
        return LLVMBuildBitCast(cg->b, half, like(cg->i16, x), "");
    }
    case I8: case U8: return LLVMBuildTrunc(cg->b, x, like(cg->i8, x), "");
    case BOOL: return LLVMBuildZExt(cg->b, x, like(cg->i8, x), "");
    default: return x;
    }
}

LV cg_load1(Cg *cg, DType t, LV base, LV index) {
    return widen(cg, t, cg_load(cg, cg_storage(cg, t), cg_at(cg, t, base, index), dtype_bytes(t)));
}

void cg_store1(Cg *cg, DType t, LV x, LV base, LV index) {
    cg_store(cg, narrow(cg, t, x), cg_at(cg, t, base, index), dtype_bytes(t));
}

LV cg_load_vec(Cg *cg, DType t, LV base, LV index, LV mask) {
    LV at = cg_at(cg, t, base, index);
    LT v = storage_vec(cg, t);
    if (!mask) return widen(cg, t, cg_load(cg, v, at, dtype_bytes(t)));
    LT overload[] = {v, cg->ptr};
    LV args[] = {at, cg_int32(cg, dtype_bytes(t)), mask, cg_zero(v)};
    return widen(cg, t, cg_intrinsic(cg, "llvm.masked.load", overload, 2, args, 4));
}

void cg_store_vec(Cg *cg, DType t, LV x, LV base, LV index, LV mask) {
    LV at = cg_at(cg, t, base, index);
    x = narrow(cg, t, x);
    if (!mask) {
        cg_store(cg, x, at, dtype_bytes(t));
        return;
    }
    LT overload[] = {LLVMTypeOf(x), cg->ptr};
    LV args[] = {x, at, cg_int32(cg, dtype_bytes(t)), mask};
    cg_intrinsic(cg, "llvm.masked.store", overload, 2, args, 4);
}

LV cg_gather_vec(Cg *cg, DType t, LV base, LV index, LV mask) {
    LT v = storage_vec(cg, t);
    LV wide = LLVMBuildSExt(cg->b, index, cg->vi64, "");
    LV at = LLVMBuildGEP2(cg->b, cg_storage(cg, t), base, &wide, 1, "");
    LT overload[] = {v, LLVMVectorType(cg->ptr, LANES)};
    LV args[] = {at, cg_int32(cg, dtype_bytes(t)), mask ? mask : cg_splat(cg, cg_bool(cg, true)), cg_zero(v)};
    return widen(cg, t, cg_intrinsic(cg, "llvm.masked.gather", overload, 2, args, 4));
}

LV cg_tail_mask(Cg *cg, LV n_left) {
    LV n =
        LLVMBuildTrunc(cg->b, cg_min(cg, cg_max(cg, n_left, cg_int(cg, 0)), cg_int(cg, LANES)), cg->i32, "");
    return LLVMBuildICmp(cg->b, LLVMIntSLT, cg_lanes(cg), cg_splat(cg, n), "");
}

void cg_prefetch(Cg *cg, LV at, bool write, int locality) {
    LT overload[] = {cg->ptr};
    LV args[] = {at, cg_int32(cg, write), cg_int32(cg, locality), cg_int32(cg, 1)};
    cg_intrinsic(cg, "llvm.prefetch", overload, 1, args, 4);
}

void cg_loads_in_order(Cg *cg) {
    static const char clobbers[] = "~{memory}";
    LT type = LLVMFunctionType(cg->void_t, NULL, 0, false);
    LV nothing = LLVMGetInlineAsm(type, "", 0, clobbers, sizeof clobbers - 1, true, false, LLVMInlineAsmDialectATT, false);
    LLVMBuildCall2(cg->b, type, nothing, NULL, 0, "");
}

static LV call_field(Cg *cg, LT t, size_t offset) {
    return cg_load(cg, t, cg_bytes(cg, cg->call, cg_int(cg, (int64_t)offset)), t == cg->i32 ? 4 : 8);
}

void cg_kernel_begin(Cg *cg, const char *symbol) {
    LT type = LLVMFunctionType(cg->void_t, &cg->ptr, 1, false);
    cg->fn = LLVMAddFunction(cg->module, symbol, type);
    cg->call = LLVMGetParam(cg->fn, 0);
    cg->entry = LLVMAppendBasicBlockInContext(cg->cx, cg->fn, "entry");
    LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(cg->cx, cg->fn, "start");
    LLVMPositionBuilderAtEnd(cg->b, cg->entry);
    LLVMBuildBr(cg->b, start);
    LLVMPositionBuilderAtEnd(cg->b, start);
    cg->n_args = kernel_n_args(cg->k) + cg->k->n_ragged + cg->k->workspace;
    assert(cg->n_args <= (int)(sizeof cg->arg / sizeof *cg->arg));
    LV args = call_field(cg, cg->ptr, offsetof(RtCall, arg));
    for (int i = 0; i < cg->n_args; i++)
        cg->arg[i] = cg_load(cg, cg->ptr, cg_gep(cg, cg->ptr, args, cg_int(cg, i)), 8);
    cg->task = cg_i64(cg, call_field(cg, cg->i32, offsetof(RtCall, task)));
    cg->n_tasks = cg_i64(cg, call_field(cg, cg->i32, offsetof(RtCall, n_tasks)));
    cg->phase = cg_i64(cg, call_field(cg, cg->i32, offsetof(RtCall, phase)));
    cg->thread = cg_i64(cg, call_field(cg, cg->i32, offsetof(RtCall, thread)));
    cg->scratch = call_field(cg, cg->ptr, offsetof(RtCall, scratch));
}

LV cg_table(Cg *cg, const Node *n, DType t) {
    Arena *a = arena_create();
    int64_t count = type_bound_elements(&n->out[0].type);
    char *bytes = const_elements(a, n, t);
    LV init = LLVMConstStringInContext(cg->cx, bytes, (unsigned)(count * dtype_bytes(t)), true);
    LV global = LLVMAddGlobal(cg->module, LLVMTypeOf(init), "table");
    LLVMSetInitializer(global, init);
    LLVMSetGlobalConstant(global, true);
    LLVMSetLinkage(global, LLVMInternalLinkage);
    LLVMSetAlignment(global, 64);
    arena_destroy(a);
    return global;
}

void cg_memcpy(Cg *cg, LV to, LV from, LV bytes) { LLVMBuildMemCpy(cg->b, to, 1, from, 1, bytes); }
void cg_memset0(Cg *cg, LV to, LV bytes) { LLVMBuildMemSet(cg->b, to, LLVMConstNull(cg->i8), bytes, 1); }

// ---- float arithmetic ----------------------------------------------------------------------------------

LV cg_fadd(Cg *cg, LV a, LV b) { return LLVMBuildFAdd(cg->b, a, b, ""); }
LV cg_fsub(Cg *cg, LV a, LV b) { return LLVMBuildFSub(cg->b, a, b, ""); }
LV cg_fmul(Cg *cg, LV a, LV b) { return LLVMBuildFMul(cg->b, a, b, ""); }
LV cg_fdiv(Cg *cg, LV a, LV b) { return LLVMBuildFDiv(cg->b, a, b, ""); }
LV cg_fneg(Cg *cg, LV a) { return LLVMBuildFNeg(cg->b, a, ""); }

LV cg_fma(Cg *cg, LV a, LV b, LV c) {
    if (!cg->target->fma) return cg_fadd(cg, cg_fmul(cg, a, b), c);
    LT overload[] = {LLVMTypeOf(a)};
    LV args[] = {a, b, c};
    return cg_intrinsic(cg, "llvm.fma", overload, 1, args, 3);
}

// An intrinsic of three vectors, whose element types differ between versions of LLVM: the bits count.
static LV dot(Cg *cg, const char *name, LV acc, LV a, LV b) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    assert(id);
    LT type = LLVMIntrinsicGetType(cg->cx, id, NULL, 0), param[3];
    assert(LLVMCountParamTypes(type) == 3);
    LLVMGetParamTypes(type, param);
    LV args[] = {LLVMBuildBitCast(cg->b, acc, param[0], ""), LLVMBuildBitCast(cg->b, a, param[1], ""),
                 LLVMBuildBitCast(cg->b, b, param[2], "")};
    LV sum = cg_call(cg, type, LLVMGetIntrinsicDeclaration(cg->module, id, NULL, 0), args, 3);
    return LLVMBuildBitCast(cg->b, sum, LLVMTypeOf(acc), "");
}

LV cg_bf16_dot(Cg *cg, LV acc, LV a, LV b) {
    assert(cg->target->bf16_dot);
    return dot(cg, "llvm.x86.avx512bf16.dpbf16ps.512", acc, a, b);
}

static void halves(Cg *cg, LV v, int n, LV *low, LV *high);

LV cg_int8_dot(Cg *cg, LV acc, LV a, LV b) {
    assert(cg->target->int8_dot);
    if (cg->target->vector_bytes == 64) return dot(cg, "llvm.x86.avx512.vpdpbusd.512", acc, a, b);
    LV x[3][2], sum[2], all[LANES], operand[3] = {acc, a, b};
    for (int i = 0; i < 3; i++) halves(cg, operand[i], LANES, &x[i][0], &x[i][1]);
    for (int i = 0; i < 2; i++) sum[i] = dot(cg, "llvm.x86.avx512.vpdpbusd.256", x[0][i], x[1][i], x[2][i]);
    for (int i = 0; i < LANES; i++) all[i] = cg_int32(cg, i);
    return LLVMBuildShuffleVector(cg->b, sum[0], sum[1], LLVMConstVector(all, LANES), "");
}

LV cg_fmax(Cg *cg, LV a, LV b) { return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGE, a, b, ""), a, b); }
LV cg_fmin(Cg *cg, LV a, LV b) { return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOLE, a, b, ""), a, b); }

LV cg_sqrt(Cg *cg, LV a) {
    LT overload[] = {LLVMTypeOf(a)};
    return cg_intrinsic(cg, "llvm.sqrt", overload, 1, &a, 1);
}

LV cg_order_key(Cg *cg, LV x) {
    LT ints = like(cg->i32, x);
    LV bits = LLVMBuildBitCast(cg->b, cg_fadd(cg, x, cg_zero(LLVMTypeOf(x))), ints, "");
    LV sign = LLVMBuildAShr(cg->b, bits, same(cg, cg_int32(cg, 31), x), "");
    LV flip = LLVMBuildAnd(cg->b, sign, same(cg, cg_int32(cg, INT32_MAX), x), "");
    LV nan = LLVMBuildFCmp(cg->b, LLVMRealUNO, x, x, "");
    return cg_select(cg, nan, same(cg, cg_int32(cg, INT32_MIN + 1), x), LLVMBuildXor(cg->b, bits, flip, ""));
}

// The upper half of n lanes beside the lower half.
static void halves(Cg *cg, LV v, int n, LV *low, LV *high) {
    LV at[LANES];
    for (int i = 0; i < n / 2; i++) at[i] = cg_int32(cg, i);
    *low = LLVMBuildShuffleVector(cg->b, v, LLVMGetPoison(LLVMTypeOf(v)),
                                  LLVMConstVector(at, (unsigned)n / 2), "");
    for (int i = 0; i < n / 2; i++) at[i] = cg_int32(cg, n / 2 + i);
    *high = LLVMBuildShuffleVector(cg->b, v, LLVMGetPoison(LLVMTypeOf(v)),
                                   LLVMConstVector(at, (unsigned)n / 2), "");
}

static bool is_float(LV v) {
    LT t = LLVMTypeOf(v);
    if (LLVMGetTypeKind(t) == LLVMVectorTypeKind) t = LLVMGetElementType(t);
    return LLVMGetTypeKind(t) == LLVMFloatTypeKind || LLVMGetTypeKind(t) == LLVMDoubleTypeKind;
}

LV cg_fold_sum(Cg *cg, LV v) {
    for (int n = LANES; n > 1; n /= 2) {
        LV low, high;
        halves(cg, v, n, &low, &high);
        v = is_float(v) ? cg_fadd(cg, low, high) : cg_add(cg, low, high);
    }
    return LLVMBuildExtractElement(cg->b, v, cg_int32(cg, 0), "");
}

LV cg_fold_max(Cg *cg, LV v) {
    for (int n = LANES; n > 1; n /= 2) {
        LV low, high;
        halves(cg, v, n, &low, &high);
        v = is_float(v) ? cg_fmax(cg, low, high)
                        : cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGE, low, high, ""), low, high);
    }
    return LLVMBuildExtractElement(cg->b, v, cg_int32(cg, 0), "");
}

// Neighbours 1 apart, then 2, 4, ..: the same pairs as splitting at the largest power of two.
static LV tree(Cg *cg, DType t, LV base, LV n, LV stride, LV col, LV mask) {
    LLVMBasicBlockRef before = LLVMGetInsertBlock(cg->b);
    LLVMBasicBlockRef head = new_block(cg, "tree"), body = new_block(cg, "pairs"),
                      done = new_block(cg, "root");
    LV one = cg_int(cg, 1);
    LLVMBuildBr(cg->b, head);
    LLVMPositionBuilderAtEnd(cg->b, head);
    LV apart = LLVMBuildPhi(cg->b, cg->i64, "apart");
    LLVMAddIncoming(apart, &one, &before, 1);
    LLVMBuildCondBr(cg->b, cg_lt(cg, apart, n), body, done);
    LLVMPositionBuilderAtEnd(cg->b, body);
    LV pairs = cg_div(cg, cg_addi(cg, cg_add(cg, n, apart), -1), cg_muli(cg, apart, 2));
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), pairs, 1);
    LV left = cg_add(cg, cg_mul(cg, cg_mul(cg, cg_muli(cg, l.i, 2), apart), stride), col);
    LV right = cg_add(cg, left, cg_mul(cg, apart, stride));
    LV a = cg_load_vec(cg, t, base, left, mask), b = cg_load_vec(cg, t, base, right, mask);
    cg_store_vec(cg, t, t == F32 ? cg_fadd(cg, a, b) : cg_add(cg, a, b), base, left, mask);
    cg_end(cg, &l);
    LV twice = cg_muli(cg, apart, 2);
    LLVMBasicBlockRef here = LLVMGetInsertBlock(cg->b);
    LLVMAddIncoming(apart, &twice, &here, 1);
    LLVMBuildBr(cg->b, head);
    LLVMMoveBasicBlockAfter(done, here);
    LLVMPositionBuilderAtEnd(cg->b, done);
    return cg_load_vec(cg, t, base, col, mask);
}

LV cg_tree(Cg *cg, LV base, LV n, LV stride, LV col, LV mask) {
    return tree(cg, F32, base, n, stride, col, mask);
}
LV cg_tree_int(Cg *cg, LV base, LV n, LV stride, LV col, LV mask) {
    return tree(cg, I32, base, n, stride, col, mask);
}
