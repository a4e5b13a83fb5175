// Inside ir/ops/ only: what shape, check and gradient rules of several families share.
#ifndef IR_OPS_RULES_H
#define IR_OPS_RULES_H
#include "ir/build.h"
#include "ir/ir.h"

// Every rule a row of the table names.
#define OP(NAME, TEXT, SHAPE, REF, GRAD, CHECK, ...) \
    ShapeRule shape_##SHAPE; GradRule grad_##GRAD; CheckRule check_##CHECK;
#include "ir/ops.def"
#undef OP

// Every rule a row of the table names.
#define OP(NAME, TEXT, SHAPE, REF, GRAD, CHECK, ...)                                                         \
    ShapeRule shape_##SHAPE;                                                                                 \
    GradRule grad_##GRAD;                                                                                    \
    CheckRule check_##CHECK;
#include "ir/ops.def"
#undef OP

// Types of two operands met by broadcasting: right-aligned, axes of constant 1 stretch.  false after
// diag_error.
bool rule_broadcast(const Node *n, const Type *a, const Type *b, Type *out, Diag *d);
// axis counts from 0 and lies inside t; false after diag_error.
bool rule_axis(const Node *n, int64_t axis, const Type *t, Diag *d);

static inline const char *rule_type(const Node *n, const Type *t) { return type_text(n->graph->arena, t); }

#endif
