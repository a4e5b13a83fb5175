// Growable arrays in an arena.  A vector is any struct with fields `T *at; int n, cap;` (VEC(T) declares one).
#ifndef IR_BASE_VEC_H
#define IR_BASE_VEC_H
#include <string.h>
#include "ir/base/arena.h"

#define VEC(T) struct { T *at; int n, cap; }

// vec_push(arena, &v, item): amortised O(1).  The old array stays in the arena until it dies.
#define vec_push(a, v, item)                                                                   \
    do {                                                                                       \
        if ((v)->n == (v)->cap) {                                                              \
            int cap_ = (v)->cap ? (v)->cap * 2 : 8;                                            \
            void *at_ = arena_alloc((a), sizeof *(v)->at * (size_t)cap_);                      \
            if ((v)->n) memcpy(at_, (v)->at, sizeof *(v)->at * (size_t)(v)->n);                \
            (v)->at = at_;                                                                     \
            (v)->cap = cap_;                                                                   \
        }                                                                                      \
        (v)->at[(v)->n++] = (item);                                                            \
    } while (0)

#define vec_last(v) ((v)->at[(v)->n - 1])

#endif
