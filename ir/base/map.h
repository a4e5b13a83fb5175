// Hash tables from pointers (interned names, nodes, values): open addressing, in an arena.
#ifndef IR_BASE_MAP_H
#define IR_BASE_MAP_H
#include <stdint.h>
#include "ir/base/arena.h"

typedef struct { Arena *arena; const void **key; void **at; int n, cap; } PtrMap;
void  map_put(PtrMap *m, const void *key, void *value);                  // replaces
void *map_get(const PtrMap *m, const void *key);                         // NULL if absent
// To numbers, in a map that has nothing else.
void    map_put_number(PtrMap *m, const void *key, int64_t number);      // >= 0
int64_t map_number(const PtrMap *m, const void *key, int64_t none);      // none if absent

#endif
