// Text: interned names (equal text = equal pointer), growing strings, "did you mean".
#ifndef IR_BASE_STR_H
#define IR_BASE_STR_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "ir/base/arena.h"

// Interned for the life of the process; thread-safe.
const char *intern(const char *text);
const char *intern_n(const char *text, size_t n);

// A growing string in an arena: always zero-terminated once something was appended; text may be NULL before.
typedef struct {
    Arena *arena;
    char  *text;
    size_t n, cap;
} Str;

void str_add(Str *s, const char *text);
void str_add_n(Str *s, const char *text, size_t n);
void str_printf(Str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void str_vprintf(Str *s, const char *fmt, va_list ap);

// The candidate nearest to `word` by edit distance, or NULL if none is near.  candidates[n] may hold NULLs.
const char *did_you_mean(const char *word, const char *const *candidates, int n);

// 46702792704 -> "46,702,792,704"
const char *str_thousands(Arena *a, int64_t n);

uint64_t str_hash(const void *bytes, size_t n, uint64_t seed);   // FNV-1a, 64 bit; for tables, not for files

#endif
