// Memory that dies together: a chain of zeroed blocks.
#include "ir/base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Block Block;
struct Block {
    Block *next;
    size_t size, used;
};

struct Arena {
    Block *first;
};

#if defined(__SANITIZE_ADDRESS__)
enum { ALIGN = 1, BLOCK_BYTES = 0 };          // every piece is a block of its own: a step beside it shows
#else
enum { ALIGN = 16, BLOCK_BYTES = 64 << 10 };
#endif
enum { HEADER = (sizeof(Block) + 15) & ~15u };

static void out_of_memory(size_t size) {
    fprintf(stderr, "moec: out of memory (%zu bytes)\n", size);
    exit(1);
}

Arena *arena_create(void) {
    Arena *a = calloc(1, sizeof *a);
    if (!a) out_of_memory(sizeof *a);
    return a;
}

void arena_reset(Arena *a) {
    for (Block *b = a->first, *next; b; b = next) {
        next = b->next;
#ifndef NDEBUG
        memset((char *)b + HEADER, 0xDD, b->used);   // a pointer that outlived its arena shows at once
#endif
        free(b);
    }
    a->first = NULL;
}

void arena_destroy(Arena *a) {
    if (!a) return;
    arena_reset(a);
    free(a);
}

void *arena_alloc(Arena *a, size_t size) {
    size = (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    Block *b = a->first;
    if (!b || b->size - b->used < size) {
        size_t want = size > BLOCK_BYTES / 4 ? size : BLOCK_BYTES;
        Block *fresh = calloc(1, HEADER + want);
        if (!fresh) out_of_memory(want);
        fresh->size = want;
        if (want == size && b) {      // a big one: goes behind the block in use, whose rest stays usable
            fresh->next = b->next;
            b->next = fresh;
        } else {
            fresh->next = b;
            a->first = fresh;
        }
        b = fresh;
    }
    void *p = (char *)b + HEADER + b->used;
    b->used += size;
    return p;
}

char *arena_strndup(Arena *a, const char *text, size_t n) {
    char *copy = arena_alloc(a, n + 1);
    memcpy(copy, text, n);
    return copy;
}

char *arena_strdup(Arena *a, const char *text) { return arena_strndup(a, text, strlen(text)); }

char *arena_printf(Arena *a, const char *fmt, ...) {
    va_list ap, ap2;
    va_start(ap, fmt);
    va_copy(ap2, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *text = arena_alloc(a, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, ap2);
    va_end(ap2);
    return text;
}

size_t arena_used_bytes(const Arena *a) {
    size_t n = 0;
    for (const Block *b = a->first; b; b = b->next) n += b->used;
    return n;
}
