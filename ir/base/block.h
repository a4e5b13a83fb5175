// One block of bytes that grows in an arena; what is put in begins at multiples of 64.
#ifndef IR_BASE_BLOCK_H
#define IR_BASE_BLOCK_H
#include <stdint.h>
#include "ir/base/arena.h"

typedef struct { Arena *arena; char *at; size_t n, cap; } Block;
// Gives where in the block they begin.  No bytes: only its end moves to such a place.  at may move.
int64_t block_put(Block *b, const void *bytes, size_t n);

#endif
