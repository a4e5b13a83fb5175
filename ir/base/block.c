#include "ir/base/block.h"

#include <string.h>

int64_t block_put(Block *b, const void *bytes, size_t n) {
    size_t begin = (b->n + 63) & ~(size_t)63;
    if (begin + n > b->cap) {
        size_t cap = (begin + n) * 2 + 1024;
        char *more = arena_alloc(b->arena, cap);
        if (b->n) memcpy(more, b->at, b->n);
        b->at = more;
        b->cap = cap;
    }
    if (n) memcpy(b->at + begin, bytes, n);
    b->n = begin + n;
    return (int64_t)begin;
}
