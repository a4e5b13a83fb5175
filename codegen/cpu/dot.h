// Dot products of pairs of bf16: the arithmetic `bf16-dot`.
//
// A pair is 32 bits: element k of a chain in the upper half, k + 1 in the lower one, 0 behind the last.  One
// instruction (vdpbf16ps) takes a pair of A and a pair of B and does two steps of the chain, upper half first:
//
//     c = fma(a[k], b[k], c);  c = fma(a[k + 1], b[k + 1], c)
//
// So sums have the order and the roundings of `f32-fma`; what differs is that subnormal elements count as 0 and
// subnormal sums become 0.  Pairs are as large as an f32: tiles and panels treat them as one element of A or B.
#ifndef CODEGEN_CPU_DOT_H
#define CODEGEN_CPU_DOT_H
#include "codegen/cpu/cg.h"

// Whether a target multiplies such operands so.
bool dot_used(const CpuTarget *t, DType a, DType b);
// 16 pairs, as <16 x float>, from 32 bf16 in a row.  mask: <32 x i1>, or NULL; lanes without it are 0.
LV   dot_load_pairs(Cg *cg, LV base, LV index, LV mask);
LV   dot_tail_mask(Cg *cg, LV n_left);               // <32 x i1>: lane < n_left
// 16 pairs from 16 bf16 of one row and 16 of the next; masks as in cg_load_vec.  next NULL: 0.
LV   dot_join_rows(Cg *cg, LV row, LV mask, LV next, LV next_mask);

#endif
