// Dot products of pairs of bf16.
#include "codegen/cpu/dot.h"

bool dot_used(const CpuTarget *t, DType a, DType b) { return t->dot && a == BF16 && b == BF16; }

static LV load(Cg *cg, LT type, LV at, LV mask) {
    if (!mask) return cg_load(cg, type, at, 2);
    LT overload[] = {type, cg->ptr};
    LV args[] = {at, cg_int32(cg, 2), mask, LLVMConstNull(type)};
    return cg_intrinsic(cg, "llvm.masked.load", overload, 2, args, 4);
}

LV dot_load_pairs(Cg *cg, LV base, LV index, LV mask) {
    LV x = load(cg, LLVMVectorType(cg->i16, 2 * LANES), cg_at(cg, BF16, base, index), mask);
    x = LLVMBuildBitCast(cg->b, x, cg->vi32, "");
    LV args[] = {x, x, cg_vec_int(cg, 16)};          // memory has the first element in the lower half
    return LLVMBuildBitCast(cg->b, cg_intrinsic(cg, "llvm.fshl", &cg->vi32, 1, args, 3), cg->vf32, "");
}

LV dot_tail_mask(Cg *cg, LV n_left) {
    LV lane[2 * LANES], most = cg_int(cg, 2 * LANES);
    LV n = cg_min(cg, cg_max(cg, n_left, cg_int(cg, 0)), most);
    for (int i = 0; i < 2 * LANES; i++) lane[i] = LLVMConstInt(cg->i16, (unsigned)i, 0);
    LV one = LLVMBuildInsertElement(cg->b, LLVMGetPoison(LLVMVectorType(cg->i16, 2 * LANES)),
                                    LLVMBuildTrunc(cg->b, n, cg->i16, ""), cg_int32(cg, 0), "");
    LV all = LLVMBuildShuffleVector(cg->b, one, LLVMGetPoison(LLVMTypeOf(one)),
                                    LLVMConstNull(LLVMVectorType(cg->i32, 2 * LANES)), "");
    return LLVMBuildICmp(cg->b, LLVMIntSLT, LLVMConstVector(lane, 2 * LANES), all, "");
}

LV dot_join_rows(Cg *cg, LV row, LV mask, LV next, LV next_mask) {
    LV x = LLVMBuildZExt(cg->b, load(cg, cg->v16, row, mask), cg->vi32, "");
    x = LLVMBuildShl(cg->b, x, cg_vec_int(cg, 16), "");
    if (next)
        x = LLVMBuildOr(cg->b, x, LLVMBuildZExt(cg->b, load(cg, cg->v16, next, next_mask), cg->vi32, ""), "");
    return LLVMBuildBitCast(cg->b, x, cg->vf32, "");
}
