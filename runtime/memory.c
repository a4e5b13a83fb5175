#include "runtime/memory.h"

#include <string.h>

#include "runtime/ranks.h"

const char *rt_memory_name(RtMemoryKind kind) {
    static const char *const name[RT_MEMORY_KINDS] = {
#define X(kind, text) text,
        RT_MEMORY_KINDS_DO(X)
#undef X
    };
    return name[kind];
}

// An optimizer's states are called after it and the parameter: adam.m/NAME.
static bool is_optimizer_state(const RtPlan *plan, const RtTensor *t) {
    const char *slash = strchr(RT_TEXT(plan, t->name), '/');
    const RtTensor *all = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; slash && i < plan->tensors.n; i++)
        if (all[i].role == RT_PARAM && !strcmp(RT_TEXT(plan, all[i].name), slash + 1)) return true;
    return false;
}

RtMemoryKind rt_memory_of_tensor(const RtPlan *plan, const RtTensor *t) {
    switch ((RtRole)t->role) {
    case RT_PARAM: return RT_MEMORY_WEIGHTS;
    case RT_GRAD:  return RT_MEMORY_GRADIENTS;
    case RT_STATE: return is_optimizer_state(plan, t) ? RT_MEMORY_OPTIMIZER : RT_MEMORY_STATES;
    default:       return RT_MEMORY_NUMBERS;
    }
}

RtMemory rt_plan_memory(const RtPlan *plan, int threads) {
    RtMemory m = {{0}};
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    int64_t named = 0;
    for (uint32_t i = 0; i < plan->tensors.n; i++) {
        if (t[i].arena != RT_PERSISTENT) continue;
        m.bytes[rt_memory_of_tensor(plan, &t[i])] += t[i].bytes;
        named += t[i].bytes;
    }
    m.bytes[RT_MEMORY_NUMBERS] += (int64_t)rt_arena_bytes(plan, RT_PERSISTENT) - named;      // offsets of routes, gaps
    m.bytes[RT_MEMORY_STEP] = (int64_t)rt_arena_bytes(plan, RT_STEP);
    m.bytes[RT_MEMORY_CONSTS] = (int64_t)rt_arena_bytes(plan, RT_CONST);
    m.bytes[RT_MEMORY_SCRATCH] = (int64_t)rt_scratch_bytes(threads);
    m.bytes[RT_MEMORY_TABLES] = (int64_t)rt_tables_bytes(plan);
    if (rt_mesh_ranks(plan->mesh) > 1) m.bytes[RT_MEMORY_EXCHANGES] = rt_ranks_bytes(plan);
    return m;
}

int64_t rt_memory_total(const RtMemory *m) {
    int64_t total = 0;
    for (int i = 0; i < RT_MEMORY_KINDS; i++) total += m->bytes[i];
    return total;
}
