// The functions of ir/vmath.def as LLVM code, sixteen lanes at a time, or those of two vectors.
#include <math.h>
#include "codegen/cpu/cg.h"

enum { MAX_LANES = 2 * LANES };

static LV constant(unsigned lanes, LV x) {
    LV each[MAX_LANES];
    for (unsigned i = 0; i < lanes; i++) each[i] = x;
    return LLVMConstVector(each, lanes);
}

// Lanes from, from + 1, .. of the lanes of a and then b.
static LV part(Cg *cg, LV a, LV b, int from, unsigned lanes) {
    LV lane[MAX_LANES];
    for (unsigned i = 0; i < lanes; i++) lane[i] = cg_int32(cg, from + (int)i);
    return LLVMBuildShuffleVector(cg->b, a, b, LLVMConstVector(lane, lanes), "");
}

// AVX-512 multiplies by a power of 2 in one instruction.
static bool has_scale(Cg *cg) { return cg->target->vector_bytes == 64; }
static LV scale(Cg *cg, unsigned lanes, LV y, LV n) {
    if (lanes > LANES) {
        LV half[2];
        for (int i = 0; i < 2; i++)
            half[i] = scale(cg, LANES, part(cg, y, y, i * LANES, LANES), part(cg, n, n, i * LANES, LANES));
        return part(cg, half[0], half[1], 0, lanes);
    }
    LV all = LLVMConstInt(LLVMInt16TypeInContext(cg->cx), 0xffff, false), as_control_says = cg_int32(cg, 4);
    LV args[5] = {y, n, y, all, as_control_says};
    return cg_intrinsic(cg, "llvm.x86.avx512.mask.scalef.ps.512", NULL, 0, args, 5);
}

#define V  LV
#define VI LV
#define VB LV
#define VM(name) vec_##name
#define VM_ENV  Cg *cg, unsigned lanes,
#define VM_PASS cg, lanes,
#define VM_INF INFINITY
#define VM_NAN NAN
#define K(c)  constant(lanes, cg_float(cg, c))
#define IK(c) constant(lanes, cg_int32(cg, c))
#define ADD(p, q) cg_fadd(cg, p, q)
#define SUB(p, q) cg_fsub(cg, p, q)
#define MUL(p, q) cg_fmul(cg, p, q)
#define DIV(p, q) cg_fdiv(cg, p, q)
#define FMA(p, q, r) cg_fma(cg, p, q, r)
#define LT(p, q) LLVMBuildFCmp(cg->b, LLVMRealOLT, p, q, "")
#define GT(p, q) LLVMBuildFCmp(cg->b, LLVMRealOGT, p, q, "")
#define EQ(p, q) LLVMBuildFCmp(cg->b, LLVMRealOEQ, p, q, "")
#define SEL(p, q, r)  cg_select(cg, p, q, r)
#define ISEL(p, q, r) cg_select(cg, p, q, r)
#define SCALE(p, q, r) (has_scale(cg) ? scale(cg, lanes, p, q) : (r))
#define BITS(p)  LLVMBuildBitCast(cg->b, p, LLVMVectorType(cg->i32, lanes), "")
#define FLOAT(p) LLVMBuildBitCast(cg->b, p, LLVMVectorType(cg->f32, lanes), "")
#define IADD(p, q) LLVMBuildAdd(cg->b, p, q, "")
#define ISUB(p, q) LLVMBuildSub(cg->b, p, q, "")
#define IAND(p, q) LLVMBuildAnd(cg->b, p, q, "")
#define IOR(p, q)  LLVMBuildOr(cg->b, p, q, "")
#define ISHL(p, q) LLVMBuildShl(cg->b, p, IK(q), "")
#define ISAR(p, q) LLVMBuildAShr(cg->b, p, IK(q), "")
#define ITOF(p) LLVMBuildSIToFP(cg->b, p, LLVMVectorType(cg->f32, lanes), "")
#include "ir/vmath.def"

LV cg_exp(Cg *cg, LV x) { return vec_exp(cg, LANES, x); }
LV cg_exp_down(Cg *cg, LV x) { return vec_exp_down(cg, LANES, x); }

static LV join(Cg *cg, const LV x[2]) { return part(cg, x[0], x[1], 0, MAX_LANES); }
static void split(Cg *cg, LV y, LV x[2]) {
    for (int i = 0; i < 2; i++) x[i] = part(cg, y, y, i * LANES, LANES);
}
void cg_exp_two(Cg *cg, LV x[2]) { split(cg, vec_exp(cg, MAX_LANES, join(cg, x)), x); }
void cg_exp_down_two(Cg *cg, LV x[2]) { split(cg, vec_exp_down(cg, MAX_LANES, join(cg, x)), x); }

LV cg_log(Cg *cg, LV x) { return vec_log(cg, LANES, x); }
LV cg_log1p(Cg *cg, LV x) { return vec_log1p(cg, LANES, x); }
LV cg_tanh(Cg *cg, LV x) { return vec_tanh(cg, LANES, x); }
LV cg_sigmoid(Cg *cg, LV x) { return vec_sigmoid(cg, LANES, x); }
LV cg_erf(Cg *cg, LV x) { return vec_erf(cg, LANES, x); }

// One lane after the other through the C library, in double, as vm_sin does.
static LV lane_by_lane(Cg *cg, const char *name, LV x) {
    LT type = LLVMFunctionType(cg->f64, &cg->f64, 1, false);
    LV fn = cg_extern(cg, name, type), y = LLVMGetPoison(cg->vf32);
    for (int i = 0; i < LANES; i++) {
        LV lane = LLVMBuildExtractElement(cg->b, x, cg_int32(cg, i), "");
        LV wide = LLVMBuildFPExt(cg->b, lane, cg->f64, "");
        LV r = LLVMBuildFPTrunc(cg->b, cg_call(cg, type, fn, &wide, 1), cg->f32, "");
        y = LLVMBuildInsertElement(cg->b, y, r, cg_int32(cg, i), "");
    }
    return y;
}

LV cg_sin(Cg *cg, LV x) { return lane_by_lane(cg, "sin", x); }
LV cg_cos(Cg *cg, LV x) { return lane_by_lane(cg, "cos", x); }
