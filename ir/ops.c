// Turns ops.def into op_info[] and attrs.def into attr_info[].  Nothing about any single op belongs here.
#include <stddef.h>
#include <string.h>

#include "ir/ir.h"

// Declare every rule a row names: a rule nobody wrote then fails to link, by name.
#define OP(NAME, TEXT, SHAPE, REF, GRAD, CHECK, ...) \
    ShapeRule shape_##SHAPE; RefKernel ref_##REF, ref64_##REF; GradRule grad_##GRAD; CheckRule check_##CHECK;
#include "ir/ops.def"
#undef OP

const OpInfo op_info[N_OPS] = {
#define OP(NAME, TEXT, SHAPE, REF, GRAD, CHECK, ...) [OP_##NAME] = {                                        \
        .name = TEXT, .shape = shape_##SHAPE, .ref = ref_##REF, .ref64 = ref64_##REF, .grad = grad_##GRAD,  \
        .check = check_##CHECK, .ref_name = #REF, .grad_name = #GRAD, __VA_ARGS__ },
#include "ir/ops.def"
#undef OP
};

const AttrInfo attr_info[ATTR_COUNT] = {
#define ATTR(NAME, TYPE, DOC) [ATTR_##NAME] = {                                                             \
        .name = #NAME, .doc = DOC, .offset = offsetof(Attrs, NAME),                                         \
        .kind = _Generic(((Attrs *)0)->NAME, int64_t: A_INT, double: A_REAL, Name: A_NAME, Ints: A_INTS,    \
                         Dims: A_DIMS, DataP: A_DATA, SymP: A_SYM, GraphP: A_GRAPH) },
#include "ir/attrs.def"
#undef ATTR
};

int op_n_outs(Op op) {
    int n = 0;
    while (n < MAX_NAMED && op_info[op].outs[n].name) n++;
    return n;
}

bool op_find(const char *name, Op *op) {
    for (int i = 0; i < N_OPS; i++)
        if (!strcmp(op_info[i].name, name)) {
            *op = (Op)i;
            return true;
        }
    return false;
}
