// What a contraction does with its products before anybody else sees them: passes/attach.c made it a region.
//
// A product is formed in the memory of a result of its type (its home).  When a strip of rows is finished, and
// still in a near cache, the region runs over it and writes all results; elements of a home are read before
// they are written.
#ifndef CODEGEN_CPU_EPILOGUE_H
#define CODEGEN_CPU_EPILOGUE_H
#include "codegen/cpu/cg.h"

typedef struct {
    Contraction c;
    int home[2];       // result in whose memory product p is formed
    LT  type;
    LV  fn, ahead;
} Epilogue;

bool epilogue_possible(const KernelNode *k);     // true without one, too
// Emits its code, if the node has an epilogue; finds the homes.
void epilogue_begin(Cg *cg, Epilogue *e);
LV   epilogue_home(Cg *cg, const Epilogue *e, int product);
// Runs it over n rows from `row` and columns col .. end-1; col is a multiple of 16, so is end, or it is the
// number of columns.
void epilogue_run(Cg *cg, const Epilogue *e, LV row, LV n, LV col, LV end);
// Asks for what it will read there, while the strip is still being computed.
void epilogue_ahead(Cg *cg, const Epilogue *e, LV row, LV n, LV col, LV end);

#endif
