#include "ir/base/map.h"

static int map_slot(const PtrMap *m, const void *key) {
    uint64_t h = ((uint64_t)(uintptr_t)key >> 4) * 0x9e3779b97f4a7c15ULL;
    int i = (int)(h >> 32) & (m->cap - 1);
    while (m->key[i] && m->key[i] != key) i = (i + 1) & (m->cap - 1);
    return i;
}

void map_put(PtrMap *m, const void *key, void *value) {
    if (m->n * 2 >= m->cap) {
        PtrMap bigger = {.arena = m->arena, .cap = m->cap ? m->cap * 2 : 64};
        bigger.key = arena_array(m->arena, const void *, bigger.cap);
        bigger.at = arena_array(m->arena, void *, bigger.cap);
        for (int i = 0; i < m->cap; i++)
            if (m->key[i]) map_put(&bigger, m->key[i], m->at[i]);
        *m = bigger;
    }
    int i = map_slot(m, key);
    m->n += !m->key[i];
    m->key[i] = key;
    m->at[i] = value;
}

void *map_get(const PtrMap *m, const void *key) { return m->cap ? m->at[map_slot(m, key)] : NULL; }

void map_put_number(PtrMap *m, const void *key, int64_t number) { map_put(m, key, (void *)(intptr_t)(number + 1)); }

int64_t map_number(const PtrMap *m, const void *key, int64_t none) {
    void *there = map_get(m, key);
    return there ? (int64_t)(intptr_t)there - 1 : none;
}
