// The block of a plan: what is put in as it is met, and how it lies in the end.
#include <string.h>
#include "codegen/planning.h"

uint32_t plan_add_text(Plan *p, const char *text) {
    if (!text || !*text) return 0;                    // offset 0 is the empty text
    text = intern(text);
    int64_t at = map_number(&p->texts, text, -1);
    if (at < 0) {
        at = (int64_t)p->text.n;
        str_add_n(&p->text, text, strlen(text) + 1);
        map_put_number(&p->texts, text, at);
    }
    return (uint32_t)at;
}

int64_t plan_add_persistent(Plan *p, int64_t bytes) {
    int64_t align = bytes > (2 << 20) ? 4096 : 64;
    int64_t at = (p->persistent + align - 1) / align * align;
    p->persistent = at + bytes;
    return at;
}

uint32_t plan_add_span(Plan *p, Span at) {
    const void *key = (const void *)(((uintptr_t)at.file << 40 | at.begin) + 1);
    int64_t number = map_number(&p->places, key, -1);
    if (number >= 0) return (uint32_t)number;
    RtSource s = {0};
    if (at.file) {
        int line = 0, column = 0;
        diag_line_column(p->d, at, &line, &column);
        s = (RtSource){plan_add_text(p, diag_file_name(p->d, at.file)), (uint32_t)line, (uint32_t)column, 0};
    }
    vec_push(p->a, &p->sources, s);
    map_put_number(&p->places, key, p->sources.n - 1);
    return (uint32_t)p->sources.n - 1;
}

// Leaf and plain symbols of all programs share an entry by name; ragged ones have their own.
int plan_sym(Plan *p, const Sym *s) {
    for (int i = 0; i < p->sym_slots.n; i++)
        if (p->sym_slots.at[i].sym == s) return p->sym_slots.at[i].index;
    int index = -1;
    for (int i = 0; s->kind != SYM_RAGGED && i < p->sym_slots.n; i++) {
        const Sym *t = p->sym_slots.at[i].sym;
        if (t->kind == s->kind && t->name == s->name && t->bound == s->bound)
            index = p->sym_slots.at[i].index;
    }
    if (index < 0) {
        RtSym r = {.name = plan_add_text(p, s->name), .bound = s->bound, .fixed = -1, .from_arena = -1,
                   .leaves = s->kind == SYM_LEAF ? (int32_t)s->bound : s->kind == SYM_RAGGED ? s->leaves : 0};
        if (s->kind == SYM_LEAF) r.fixed = s->bound;
        vec_push(p->a, &p->syms, r);
        index = p->syms.n - 1;
    }
    SymSlot slot = {s, index};
    vec_push(p->a, &p->sym_slots, slot);
    return index;
}

static RtSpan put(char *block, size_t *at, const void *items, size_t size, int n) {
    *at = (*at + 63) & ~(size_t)63;
    RtSpan s = {(uint32_t)*at, (uint32_t)n};
    if (block && n) memcpy(block + *at, items, size * (size_t)n);
    *at += size * (size_t)n;
    return s;
}

static size_t layout(Plan *p, RtPlan *r, const RtTensor *tensors, char *block) {
    size_t at = sizeof(RtPlan);
    r->text = put(block, &at, p->text.text, 1, (int)p->text.n);
    r->syms = put(block, &at, p->syms.at, sizeof(RtSym), p->syms.n);
    r->slot_tables = put(block, &at, p->slot_tables.at, sizeof(RtSlotTable), p->slot_tables.n);
    r->tensors = put(block, &at, tensors, sizeof(RtTensor), p->tensors.n);
    r->kernels = put(block, &at, p->rt_kernels.at, sizeof(RtKernel), p->rt_kernels.n);
    r->args = put(block, &at, p->args.at, sizeof(RtArg), p->args.n);
    r->steps = put(block, &at, p->steps.at, sizeof(RtStep), p->steps.n);
    r->programs = put(block, &at, p->programs.at, sizeof(RtProgram), p->programs.n);
    r->sources = put(block, &at, p->sources.at, sizeof(RtSource), p->sources.n);
    r->consts = put(block, &at, p->consts.at, 1, (int)p->consts.n);
    return (at + 63) & ~(size_t)63;
}

RtPlan *plan_finish(Plan *p, Graph *const *programs, int n) {
    RtPlan r = {.magic = RT_PLAN_MAGIC, .version = RT_PLAN_VERSION, .mesh = programs[0]->mesh,
                .persistent_bytes = p->persistent};
    r.arithmetic = plan_add_text(p, p->opts->arithmetic);
    r.info = plan_add_text(p, p->opts->info_json ? p->opts->info_json : "{}");
    for (int i = 0; i < n; i++) {
        uint64_t h = graph_hash(programs[i]);
        r.graph_hash = str_hash(&h, sizeof h, r.graph_hash);
        if (programs[i]->lower_bound_bytes > r.lower_bound_bytes)
            r.lower_bound_bytes = programs[i]->lower_bound_bytes;
        if (p->programs.at[i].step_bytes > r.step_bytes) r.step_bytes = p->programs.at[i].step_bytes;
    }
    RtTensor *tensors = arena_array(p->a, RtTensor, p->tensors.n + 1);
    for (int i = 0; i < p->tensors.n; i++) tensors[i] = p->tensors.at[i].t;
    size_t bytes = layout(p, &r, tensors, NULL);
    for (int i = 0; i < p->rt_kernels.n; i++)
        if (p->rt_kernels.at[i].data.n) p->rt_kernels.at[i].data.offset += r.consts.offset;
    char *raw = arena_alloc(p->a, bytes + 64);
    char *block = (char *)(((uintptr_t)raw + 63) & ~(uintptr_t)63);
    layout(p, &r, tensors, block);
    r.bytes = (uint32_t)bytes;
    memcpy(block, &r, sizeof r);
    return (RtPlan *)block;
}

