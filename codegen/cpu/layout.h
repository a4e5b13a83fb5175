// How a parameter that is only read may lie.
#ifndef CODEGEN_CPU_LAYOUT_H
#define CODEGEN_CPU_LAYOUT_H
#include "codegen/cpu/cpu.h"

// As LayoutFn, for code of target t.
LayoutOffer cpu_layout(const Node *n, int operand, const CpuTarget *t, const Machine *m, int64_t passing);

#endif
