// Memory that dies together.  Whoever allocates takes an arena first; what it returns lives as long as that.
#ifndef IR_BASE_ARENA_H
#define IR_BASE_ARENA_H
#include <stddef.h>

typedef struct Arena Arena;

Arena *arena_create(void);
void   arena_destroy(Arena *a);                  // frees everything; NULL is fine
void   arena_reset(Arena *a);                    // frees everything allocated since creation
void  *arena_alloc(Arena *a, size_t size);       // zeroed, 16-byte aligned; never NULL (out of memory ends the program)
char  *arena_strdup(Arena *a, const char *text);
char  *arena_strndup(Arena *a, const char *text, size_t n);
char  *arena_printf(Arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
size_t arena_used_bytes(const Arena *a);

#define arena_new(a, T)      ((T *)arena_alloc((a), sizeof(T)))
#define arena_array(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))

#endif
