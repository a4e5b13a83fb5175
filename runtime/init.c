// First values.  A draw is Philox(key = seed, counter = element number, attempt, hash of the tensor's name):
// it depends on nothing else, so threads, ranks and the order of tensors don't matter.  A tensor of stacked
// experts counts its elements as a whole; of a tensor that is cut over ranks, each draws its part.
#include <math.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/convert.h"
#include "runtime/exec.h"
#include "runtime/layout.h"
#include "runtime/philox.h"

typedef struct { uint64_t seed, name; } DrawKey;

static Philox4 draw(DrawKey key, uint64_t i, uint32_t attempt) {
    Philox4 counter = {{(uint32_t)i, (uint32_t)(i >> 32 & 0xffff) | attempt << 16, (uint32_t)key.name,
                        (uint32_t)(key.name >> 32)}};
    return philox4(counter, (uint32_t)key.seed, (uint32_t)(key.seed >> 32));
}

// 53 random bits in (0, 1): never 0, so its logarithm is finite.
static double uniform53(uint32_t low, uint32_t high) {
    uint64_t bits = ((uint64_t)high << 32 | low) >> 11;
    return ((double)bits + 0.5) * 0x1p-53;
}

// Box-Muller: elements 2i and 2i + 1 share a block.
static double standard_normal(DrawKey key, uint64_t i, uint32_t attempt) {
    Philox4 r = draw(key, i >> 1, attempt);
    double radius = sqrt(-2 * log(uniform53(r.at[0], r.at[1])));
    double angle = 6.283185307179586477 * uniform53(r.at[2], r.at[3]);
    return radius * (i & 1 ? sin(angle) : cos(angle));
}

// Draws outside +-cut are drawn again; a cut below 1e-3 would take long and means nothing.
static double cut_normal(DrawKey key, uint64_t i, double cut) {
    double x = standard_normal(key, i, 0);
    for (uint32_t attempt = 1; fabs(x) > cut && attempt < 0xffff; attempt++)
        x = standard_normal(key, i, attempt);
    return fabs(x) > cut ? 0 : x;
}

static double first_value(const RtTensor *t, DrawKey key, uint64_t i) {
    switch ((RtInitKind)t->init) {
    case RT_INIT_CONST: return t->init_a;
    case RT_INIT_NORMAL: return t->init_a * standard_normal(key, i, 0);
    case RT_INIT_TRUNC_NORMAL: return t->init_a * cut_normal(key, i, t->init_b > 0 ? t->init_b : 2);
    case RT_INIT_UNIFORM: {
        Philox4 r = draw(key, i, 0);
        return t->init_a * (2 * uniform53(r.at[0], r.at[1]) - 1);
    }
    case RT_INIT_RANDOM_INT: {
        Philox4 r = draw(key, i, 0);
        uint64_t bits = (uint64_t)r.at[1] << 32 | r.at[0];
        return (double)(uint64_t)(((unsigned __int128)bits * (uint64_t)t->init_a) >> 64);
    }
    case RT_INIT_ZEROS: case RT_INIT_COPY: break;
    }
    return 0;
}

enum { BLOCK = 4096 };                       // elements that a thread draws at once

static void draw_tensor(const RtPlanInstance *p, const RtTensor *t, uint64_t seed) {
    const char *name = RT_TEXT(p->plan, t->init_name);
    DrawKey key = {seed, XXH3_64bits(name, strlen(name))};
    RtOwn own = rt_tensor_own(p, t);
    int64_t blocks = (own.run + BLOCK - 1) / BLOCK;
    void *data = rt_tensor_data(p, t);
    if (t->init == RT_INIT_ZEROS) {
        memset(data, 0, (size_t)t->bytes);
        return;
    }
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t b = 0; b < own.runs * blocks; b++) {
        int64_t run = b / blocks, begin = b % blocks * BLOCK, first = rt_own_begin(&own, run);
        for (int64_t i = begin; i < own.run && i < begin + BLOCK; i++)
            rt_store_number(data, (DType)t->dtype, rt_tensor_index(t, run * own.run + i),
                            first_value(t, key, (uint64_t)(first + i)));
    }
}

// Where element k of the whole tensor is in a rank's part; -1: it is another rank's.
static int64_t held_at(const RtOwn *own, int64_t k) {
    k -= own->first;
    if (k < 0 || !own->run) return -1;
    int64_t entry = k / own->block, in = k % own->block, run = in / own->stride;
    if (run >= own->each || in % own->stride >= own->run) return -1;
    if (own->expert) {
        int64_t slot = 0;
        while (slot * own->each < own->runs && own->expert[slot] != entry) slot++;
        entry = slot;
    }
    run += entry * own->each;
    return run < own->runs ? run * own->run + in % own->stride : -1;
}

// A copy may be larger than its source: then it repeats (the same start for every expert).
static RtStatus copy_tensor(const RtPlanInstance *p, const RtTensor *t, RtError *e) {
    const char *from = RT_TEXT(p->plan, t->init_from);
    const RtTensor *source = rt_tensor(p, from);
    if (!source)
        return rt_fail(e, RT_BAD_PLAN, "'%s' starts as a copy of '%s', which does not exist",
                       rt_tensor_name(p, t), from);
    RtOwn own = rt_tensor_own(p, t), there = rt_tensor_own(p, source);
    int64_t n = own.runs * own.run, m = rt_tensor_whole(p, source);
    if (n && (!m || rt_tensor_whole(p, t) % m))
        return rt_fail(e, RT_BAD_PLAN, "'%s' has %lld elements and starts as a copy of '%s' with %lld",
                       rt_tensor_name(p, t), (long long)rt_tensor_whole(p, t), from, (long long)m);
    void *data = rt_tensor_data(p, t);
    const void *source_data = rt_tensor_data(p, source);
    bool elsewhere = false;
#pragma omp parallel for num_threads(p->threads) schedule(static) reduction(|| : elsewhere)
    for (int64_t i = 0; i < n; i++) {
        int64_t k = held_at(&there, (rt_own_begin(&own, i / own.run) + i % own.run) % m);
        if (k < 0) elsewhere = true;
        else rt_store_number(data, (DType)t->dtype, rt_tensor_index(t, i),
                             rt_load_number(source_data, (DType)source->dtype, rt_tensor_index(source, k)));
    }
    if (elsewhere)
        return rt_fail(e, RT_BAD_PLAN, "'%s' starts as a copy of '%s', which is cut over other ranks", rt_tensor_name(p, t), from);
    return RT_OK;
}

// How many copies stand between a tensor and values that are drawn; n_tensors + 1: they go in a circle.
static int copy_depth(const RtPlanInstance *p, const RtTensor *t) {
    int depth = 0;
    while (t && t->init == RT_INIT_COPY && depth <= p->n_tensors) {
        t = rt_tensor(p, RT_TEXT(p->plan, t->init_from));
        depth++;
    }
    return depth;
}

RtStatus rt_init(RtPlanInstance *p, uint64_t seed, RtError *e) {
    int deepest = 0;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (t->role == RT_GRAD) memset(rt_tensor_data(p, t), 0, (size_t)t->bytes);
        if (t->role > RT_STATE) continue;
        int depth = copy_depth(p, t);
        if (depth > p->n_tensors)
            return rt_fail(e, RT_BAD_PLAN, "'%s' starts as a copy of itself", rt_tensor_name(p, t));
        if (depth > deepest) deepest = depth;
        if (depth == 0) draw_tensor(p, t, seed);
    }
    for (int depth = 1; depth <= deepest; depth++)
        for (int i = 0; i < p->n_tensors; i++)
            if (p->tensor[i].role <= RT_STATE && copy_depth(p, &p->tensor[i]) == depth)
                RT_TRY(copy_tensor(p, &p->tensor[i], e));
    return RT_OK;
}
