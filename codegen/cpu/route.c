// Routing: how often each expert occurs, places in its queue, rows sorted by expert; balanced scores (sinkhorn).
//
//     slots    0 1 2 3 | 4 5 6 7 | 8 ..                runs of about 2048 slots; borders of groups are run borders
//     phase 0  a histogram of experts per run                        [runs, E]
//     phase 1  exclusive sums over the runs of a group, by expert    where each run begins
//     phase 2  each run counts on from there                         places, rows
//
// A group is what is counted by itself: a leaf of `route`, each leading index of `count` and `queue`.  What is
// small enough for one thread does all three in one task.  A queue by choice has a histogram per choice, summed
// choice by choice.  A queue with priorities sorts each expert's slots by key: radix passes of 8 bits, stable.
#include <assert.h>
#include "codegen/cpu/cg.h"
#include "codegen/cpu/route.h"
#include "codegen/kernel.h"

enum { RUN = 2048, SMALL = 4096, DIGITS = 256, FEW = 64 };

typedef struct {
    const Type *e;               // [groups.., t, k]
    int64_t E, k;
    int     first;               // axes before it count groups
    int64_t times;               // of a first axis 512*L: 512, the tokens of each leaf
    int64_t groups, slots;       // bounds; slots are those of a group
    int64_t run, runs;           // slots of a run; runs of a group
    int64_t choices;             // histograms per run
} Slots;

// grain: tokens of a run, if a gate's kernel says so.
static Slots slots_of(const Node *n, int64_t grain) {
    const Type *e = &n->in[0]->type;
    Slots s = {.e = e, .E = n->attr.experts, .k = dim_bound(e->dim[e->ndim - 1]), .first = e->ndim - 2, .times = 1};
    if (n->op == OP_ROUTE) s.first = type_is_leafy(e) ? 1 : 0;
    s.groups = dims_bound(e, 0, s.first);
    if (n->op == OP_ROUTE && s.first) {
        s.groups = e->dim[0].sym->bound;
        s.times = e->dim[0].n;
    }
    s.slots = dims_bound(e, s.first, e->ndim) * s.times;
    s.run = RUN / s.k * s.k;
    if (s.run < s.k) s.run = s.k;
    if (s.slots <= SMALL) s.run = s.slots;
    if (grain) s.run = grain * s.k;
    if (s.run < 1) s.run = 1;
    s.runs = (s.slots + s.run - 1) / s.run;
    if (s.runs < 1) s.runs = 1;
    s.choices = n->op == OP_QUEUE && n->attr.by_choice ? s.k : 1;
    return s;
}

bool slots_keep_to_runs(const Node *n, int64_t tokens, int64_t run) {
    Slots s = slots_of(n, run);
    int64_t of_group = s.k > 0 ? s.slots / s.k : 0;
    return s.groups * of_group == tokens && of_group > 0 && (s.groups == 1 || of_group % run == 0);
}

bool slots_are_alike(const Node *a, const Node *b) {
    Slots s = slots_of(a, 0), t = slots_of(b, 0);
    return s.groups == t.groups && s.slots == t.slots && s.E == t.E;
}

// Of a group.
static LV slots_now(Cg *cg, const Slots *s) {
    return cg_muli(cg, cg_dims(cg, s->e, s->first, s->e->ndim), s->times);
}

// One histogram: [E] i32.
static LV histogram(Cg *cg, const Slots *s, LV base, LV number) {
    return cg_at(cg, I32, base, cg_muli(cg, number, s->E));
}

static LV expert_at(Cg *cg, LV slot) { return cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 0), slot)); }
static LV is_expert(Cg *cg, const Slots *s, LV e) {         // -1 is a large number here
    return LLVMBuildICmp(cg->b, LLVMIntULT, e, cg_int(cg, s->E), "");
}

// Adds 1 to table[i]; gives what was there.
static LV count_on(Cg *cg, LV table, LV i) {
    LV old = cg_load1(cg, I32, table, i);
    cg_store1(cg, I32, cg_add(cg, old, cg_int32(cg, 1)), table, i);
    return old;
}

// Slots lo .. hi - 1, of one choice or of all; lo is a multiple of k.
static void for_slots(Cg *cg, CgLoop *l, const Slots *s, LV lo, LV hi, int64_t choice) {
    bool by_choice = s->choices > 1;
    cg_for(cg, l, by_choice ? cg_addi(cg, lo, choice) : lo, hi, by_choice ? s->k : 1);
}

// The histograms of slots lo .. hi - 1 of the group that begins at `first`, `stride` of them apart by choice.
static void emit_histograms(Cg *cg, const Slots *s, LV first, LV lo, LV hi, LV to, int64_t stride) {
    for (int64_t c = 0; c < s->choices; c++) {
        LV table = cg_at(cg, I32, to, cg_int(cg, c * stride * s->E));
        cg_memset0(cg, table, cg_int(cg, s->E * 4));
        CgLoop l;
        for_slots(cg, &l, s, lo, hi, c);
        LV e = expert_at(cg, cg_add(cg, first, l.i));
        CgIf known;
        cg_if(cg, &known, is_expert(cg, s, e));
        count_on(cg, table, e);
        cg_endif(cg, &known);
        cg_end(cg, &l);
    }
}

// n histograms one behind the other become exclusive sums; totals[E], if not NULL, gets the sums of all.
static void emit_sums(Cg *cg, const Slots *s, LV table, int64_t n, LV totals) {
    CgLoop cols, l;
    cg_for(cg, &cols, cg_int(cg, 0), cg_int(cg, s->E), LANES);
    LV mask = cg_tail_mask(cg, cg_sub(cg, cg_int(cg, s->E), cols.i)), sum = cg_zero(cg->vi32);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, n), 1, 1, &sum);
    LV at = cg_add(cg, cg_muli(cg, l.i, s->E), cols.i);
    LV next = cg_add(cg, l.carry[0], cg_load_vec(cg, I32, table, at, mask));
    cg_store_vec(cg, I32, l.carry[0], table, at, mask);
    cg_loop_end(cg, &l, &next);
    if (totals) cg_store_vec(cg, I32, l.carry[0], totals, cols.i, mask);
    cg_end(cg, &cols);
}

// The slots of run `run` of a group that there are now.
static void run_range(Cg *cg, const Slots *s, LV run, LV *lo, LV *hi) {
    *lo = cg_min(cg, cg_muli(cg, run, s->run), slots_now(cg, s));
    *hi = cg_min(cg, cg_muli(cg, cg_addi(cg, run, 1), s->run), slots_now(cg, s));
}

// ---- count -------------------------------------------------------------------------------------------------

bool describe_count(const KernelNode *k, KernelDesc *d) {
    Slots s = slots_of(k->node, k->grain);
    if (k->node->in[0]->type.dtype != I32) return false;
    d->tasks[0] = tasks_of_dims(s.e, 0, s.first, 1);
    if (s.runs == 1 && !k->grain) return true;
    d->n_phases = 2;
    d->tasks[1] = d->tasks[0];
    d->tasks[0].times = s.runs;
    d->workspace = s.groups * s.runs * s.E * 4;
    str_printf(&d->key, " runs %lld", (long long)s.runs);
    return true;
}

void emit_count(Cg *cg, const KernelNode *k) {
    Slots s = slots_of(k->node, k->grain);
    LV lo, hi;
    if (s.runs == 1 && !k->grain) {
        run_range(cg, &s, cg_int(cg, 0), &lo, &hi);
        emit_histograms(cg, &s, cg_mul(cg, cg->task, slots_now(cg, &s)), lo, hi,
                        histogram(cg, &s, cg_out(cg, 0), cg->task), 0);
        return;
    }
    CgIf f;
    cg_if_phase(cg, &f, 0);
    LV runs = cg_int(cg, s.runs), group = cg_div(cg, cg->task, runs);
    run_range(cg, &s, cg_rem(cg, cg->task, runs), &lo, &hi);
    emit_histograms(cg, &s, cg_mul(cg, group, slots_now(cg, &s)), lo, hi,
                    histogram(cg, &s, cg_workspace(cg), cg->task), 0);
    cg_else(cg, &f);
    emit_sums(cg, &s, histogram(cg, &s, cg_workspace(cg), cg_mul(cg, cg->task, runs)), s.runs,
              histogram(cg, &s, cg_out(cg, 0), cg->task));
    cg_endif(cg, &f);
}

// ---- route -------------------------------------------------------------------------------------------------
// Tables: a histogram per run, then the totals of each leaf.

static bool is_one_task(const KernelNode *k, const Slots *s) { return !k->grain && s->groups * s->slots <= SMALL; }

int64_t route_totals_at(const KernelNode *k) {
    Slots s = slots_of(k->node, k->grain);
    return s.groups * s.runs * s.E * 4;
}

bool describe_route(const KernelNode *k, KernelDesc *d) {
    Slots s = slots_of(k->node, k->grain);
    int64_t tables = s.groups * (s.runs + 1) * s.E * 4;
    if (tables + s.E * 4 > RT_SCRATCH_BYTES) return false;
    if (is_one_task(k, &s)) return true;
    d->n_phases = 3;
    d->tasks[0] = d->tasks[2] = tasks_fixed(s.groups * s.runs);
    d->workspace = tables;
    str_printf(&d->key, " runs %lld", (long long)s.runs);
    return true;
}

// Where each (expert, leaf) begins, from the totals [leaf][E].
static void emit_offsets(Cg *cg, const Slots *s, LV totals) {
    LV offsets = cg_out(cg, 0), sum = cg_int32(cg, 0);
    CgLoop l;
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, s->E * s->groups), 1, 1, &sum);
    LV leaves = cg_int(cg, s->groups), e = cg_div(cg, l.i, leaves), leaf = cg_rem(cg, l.i, leaves);
    cg_store1(cg, I32, l.carry[0], offsets, l.i);
    LV next = cg_add(cg, l.carry[0], cg_load1(cg, I32, totals, cg_add(cg, cg_muli(cg, leaf, s->E), e)));
    cg_loop_end(cg, &l, &next);
    cg_store1(cg, I32, l.carry[0], offsets, cg_int(cg, s->E * s->groups));
}

// Rows of the slots of one run.  next: [E], made from where the run begins in its leaf.
static void emit_rows(Cg *cg, const Slots *s, LV leaf, LV lo, LV hi, LV begins, LV next) {
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, s->E), 1);
    LV begin = cg_load1(cg, I32, cg_out(cg, 0), cg_add(cg, cg_muli(cg, l.i, s->groups), leaf));
    cg_store1(cg, I32, cg_add(cg, begin, cg_load1(cg, I32, begins, l.i)), next, l.i);
    cg_end(cg, &l);
    LV first = cg_mul(cg, leaf, slots_now(cg, s));
    cg_for(cg, &l, lo, hi, 1);
    LV slot = cg_add(cg, first, l.i), e = expert_at(cg, slot);
    CgIf known;
    cg_if(cg, &known, is_expert(cg, s, e));
    LV row = count_on(cg, next, e);
    cg_store1(cg, I32, row, cg_out(cg, 1), slot);
    cg_store1(cg, I32, LLVMBuildTrunc(cg->b, slot, cg->i32, ""), cg_out(cg, 2), cg_i64(cg, row));
    cg_else(cg, &known);
    cg_store1(cg, I32, cg_int32(cg, -1), cg_out(cg, 1), slot);
    cg_endif(cg, &known);
    cg_end(cg, &l);
}

void emit_route(Cg *cg, const KernelNode *k) {
    Slots s = slots_of(k->node, k->grain);
    bool alone = is_one_task(k, &s);
    LV tables = alone ? cg->scratch : cg_workspace(cg), totals = histogram(cg, &s, tables, cg_int(cg, s.groups * s.runs));
    LV next = alone ? histogram(cg, &s, totals, cg_int(cg, s.groups)) : cg->scratch, lo, hi;
    LV runs = cg_int(cg, s.runs);
    CgIf f;
    CgLoop l;
    // the parts, for task or loop index i = leaf * runs + run
    if (alone) cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, s.groups * s.runs), 1);
    else cg_if_phase(cg, &f, 0);
    LV i = alone ? l.i : cg->task, leaf = cg_div(cg, i, runs);
    run_range(cg, &s, cg_rem(cg, i, runs), &lo, &hi);
    emit_histograms(cg, &s, cg_mul(cg, leaf, slots_now(cg, &s)), lo, hi, histogram(cg, &s, tables, i), 0);
    if (alone) cg_end(cg, &l);
    else cg_endif(cg, &f);

    if (!alone) cg_if_phase(cg, &f, 1);
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, s.groups), 1);
    emit_sums(cg, &s, histogram(cg, &s, tables, cg_mul(cg, l.i, runs)), s.runs, histogram(cg, &s, totals, l.i));
    cg_end(cg, &l);
    emit_offsets(cg, &s, totals);
    if (!alone) cg_endif(cg, &f);

    if (alone) cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, s.groups * s.runs), 1);
    else cg_if_phase(cg, &f, 2);
    i = alone ? l.i : cg->task;
    leaf = cg_div(cg, i, runs);
    run_range(cg, &s, cg_rem(cg, i, runs), &lo, &hi);
    emit_rows(cg, &s, leaf, lo, hi, histogram(cg, &s, tables, i), next);
    if (alone) cg_end(cg, &l);
    else cg_endif(cg, &f);
}

// ---- queue -------------------------------------------------------------------------------------------------
// Tables of a group: [choices][runs][E].

static bool has_priority(const Node *n) { return n->n_in > 1; }

// With priorities, of each group: where buckets (expert, choice) begin [E * choices + 1], then keys and slots twice.
static int64_t sorting_bytes(const Slots *s) { return (s->E * s->choices + 1 + 4 * s->slots) * 4; }

bool describe_queue(const KernelNode *k, KernelDesc *d) {
    Slots s = slots_of(k->node, k->grain);
    int64_t tables = s.choices * s.runs * s.E * 4;
    if (tables > RT_SCRATCH_BYTES) return false;
    d->tasks[0] = tasks_of_dims(s.e, 0, s.first, 1);
    if (has_priority(k->node)) {
        if ((s.E * s.choices + 1) * 4 > RT_SCRATCH_BYTES) return false;
        d->n_phases = 2;
        d->tasks[1] = d->tasks[0];
        d->tasks[1].times = s.E;
        d->workspace = s.groups * sorting_bytes(&s);
        str_printf(&d->key, " slots %lld", (long long)s.slots);
        return true;
    }
    if (s.runs == 1 && !k->grain) return true;
    d->n_phases = 3;
    d->tasks[1] = d->tasks[0];
    d->tasks[0].times = s.runs;
    d->tasks[2] = d->tasks[0];
    d->workspace = s.groups * tables;
    str_printf(&d->key, " runs %lld", (long long)s.runs);
    return true;
}

// next: tables of the run, `stride` histograms apart by choice; they are counted on.
static void emit_places(Cg *cg, const Slots *s, LV first, LV lo, LV hi, LV next, int64_t stride) {
    for (int64_t c = 0; c < s->choices; c++) {
        LV table = cg_at(cg, I32, next, cg_int(cg, c * stride * s->E));
        CgLoop l;
        for_slots(cg, &l, s, lo, hi, c);
        LV slot = cg_add(cg, first, l.i), e = expert_at(cg, slot);
        CgIf known;
        cg_if(cg, &known, is_expert(cg, s, e));
        cg_store1(cg, I32, count_on(cg, table, e), cg_out(cg, 0), slot);
        cg_else(cg, &known);
        cg_store1(cg, I32, cg_int32(cg, INT32_MAX), cg_out(cg, 0), slot);
        cg_endif(cg, &known);
        cg_end(cg, &l);
    }
}

// The memory of one group's sorting.
typedef struct { LV begins, key[2], slot[2]; } Sorting;
static Sorting sorting_at(Cg *cg, const Slots *s, LV group) {
    Sorting m = {.begins = cg_bytes(cg, cg_workspace(cg), cg_muli(cg, group, sorting_bytes(s)))};
    LV at = cg_at(cg, I32, m.begins, cg_int(cg, s->E * s->choices + 1));
    for (int i = 0; i < 2; i++) {
        m.key[i] = cg_at(cg, I32, at, cg_int(cg, 2 * i * s->slots));
        m.slot[i] = cg_at(cg, I32, at, cg_int(cg, (2 * i + 1) * s->slots));
    }
    return m;
}

// Slots into buckets, in order.  A bucket is an expert, or an expert's choice of one rank.
static void emit_buckets(Cg *cg, const Slots *s, DType priority, LV group) {
    Sorting m = sorting_at(cg, s, group);
    LV n = slots_now(cg, s), first = cg_mul(cg, group, n), next = cg->scratch;
    cg_memset0(cg, next, cg_int(cg, s->E * s->choices * 4));
    CgLoop l;
    LV slot, e;
    CgIf known;
    for (int pass = 0; pass < 2; pass++) {
        cg_for(cg, &l, cg_int(cg, 0), n, 1);
        slot = cg_add(cg, first, l.i);
        e = expert_at(cg, slot);
        cg_if(cg, &known, is_expert(cg, s, e));
        LV bucket = s->choices > 1 ? cg_add(cg, cg_muli(cg, e, s->choices), cg_rem(cg, l.i, cg_int(cg, s->k))) : e;
        LV place = count_on(cg, next, bucket);
        if (pass) {                                          // a key that ascends where the priority falls
            LV key = cg_order_key(cg, cg_load1(cg, priority, cg_in(cg, 1), slot));
            place = cg_i64(cg, place);
            cg_store1(cg, I32, LLVMBuildXor(cg->b, key, cg_int32(cg, INT32_MAX), ""), m.key[0], place);
            cg_store1(cg, I32, LLVMBuildTrunc(cg->b, slot, cg->i32, ""), m.slot[0], place);
        }
        cg_else(cg, &known);
        if (pass) cg_store1(cg, I32, cg_int32(cg, INT32_MAX), cg_out(cg, 0), slot);
        cg_endif(cg, &known);
        cg_end(cg, &l);
        if (pass) break;
        LV sum = cg_int32(cg, 0);
        cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, s->E * s->choices), 1, 1, &sum);
        LV after = cg_add(cg, l.carry[0], cg_load1(cg, I32, next, l.i));
        cg_store1(cg, I32, l.carry[0], next, l.i);
        cg_store1(cg, I32, l.carry[0], m.begins, l.i);
        cg_loop_end(cg, &l, &after);
        cg_store1(cg, I32, l.carry[0], m.begins, cg_int(cg, s->E * s->choices));
    }
}

// Few slots: how many stand before each.
static void emit_ranks(Cg *cg, const Sorting *m, LV lo, LV hi, LV before) {
    CgLoop l, others;
    cg_for(cg, &l, lo, hi, 1);
    LV key = cg_splat(cg, cg_load1(cg, I32, m->key[0], l.i)), here = cg_splat(cg, LLVMBuildTrunc(cg->b, l.i, cg->i32, ""));
    LV none = cg_zero(cg->vi32);
    cg_loop_begin(cg, &others, lo, hi, LANES, 1, &none);
    LV mask = cg_tail_mask(cg, cg_sub(cg, hi, others.i));
    LV other = cg_load_vec(cg, I32, m->key[0], others.i, mask);
    LV index = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, others.i, cg->i32, "")), "");
    LV earlier = LLVMBuildAnd(cg->b, LLVMBuildICmp(cg->b, LLVMIntEQ, other, key, ""),
                              LLVMBuildICmp(cg->b, LLVMIntSLT, index, here, ""), "");
    LV first = LLVMBuildOr(cg->b, LLVMBuildICmp(cg->b, LLVMIntULT, other, key, ""), earlier, "");
    first = LLVMBuildAnd(cg->b, first, mask, "");
    LV next = cg_add(cg, others.carry[0], LLVMBuildZExt(cg->b, first, cg->vi32, ""));
    cg_loop_end(cg, &others, &next);
    LV place = cg_add(cg, LLVMBuildTrunc(cg->b, before, cg->i32, ""), cg_fold_sum(cg, others.carry[0]));
    cg_store1(cg, I32, place, cg_out(cg, 0), cg_i64(cg, cg_load1(cg, I32, m->slot[0], l.i)));
    cg_end(cg, &l);
}

// Elements lo .. hi - 1 of keys and slots sorted by one digit of the key, from `from` to the other pair.
static void emit_digit(Cg *cg, const Sorting *m, int from, LV lo, LV hi, int shift) {
    LV table = cg->scratch, sum = LLVMBuildTrunc(cg->b, lo, cg->i32, "");
    cg_memset0(cg, table, cg_int(cg, DIGITS * 4));
    CgLoop l;
    for (int pass = 0; pass < 2; pass++) {
        cg_for(cg, &l, lo, hi, 1);
        LV key = cg_load1(cg, I32, m->key[from], l.i);
        LV digit = LLVMBuildAnd(cg->b, LLVMBuildLShr(cg->b, key, cg_int32(cg, shift), ""), cg_int32(cg, DIGITS - 1), "");
        LV place = count_on(cg, table, cg_i64(cg, digit));
        if (pass) {
            place = cg_i64(cg, place);
            cg_store1(cg, I32, key, m->key[!from], place);
            cg_store1(cg, I32, cg_load1(cg, I32, m->slot[from], l.i), m->slot[!from], place);
        }
        cg_end(cg, &l);
        if (pass) break;
        cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, DIGITS), 1, 1, &sum);
        LV next = cg_add(cg, l.carry[0], cg_load1(cg, I32, table, l.i));
        cg_store1(cg, I32, l.carry[0], table, l.i);
        cg_loop_end(cg, &l, &next);
    }
}

// The places of one expert's slots.
static void emit_sorted(Cg *cg, const Slots *s, LV group, LV expert) {
    Sorting m = sorting_at(cg, s, group);
    LV first = cg_muli(cg, expert, s->choices), base = cg_i64(cg, cg_load1(cg, I32, m.begins, first));
    CgLoop c, l;
    cg_for(cg, &c, first, cg_addi(cg, first, s->choices), 1);
    LV lo = cg_i64(cg, cg_load1(cg, I32, m.begins, c.i)), hi = cg_i64(cg, cg_load1(cg, I32, m.begins, cg_addi(cg, c.i, 1)));
    CgIf few;
    cg_if(cg, &few, cg_lt(cg, cg_sub(cg, hi, lo), cg_int(cg, FEW)));
    emit_ranks(cg, &m, lo, hi, cg_sub(cg, lo, base));
    cg_else(cg, &few);
    for (int i = 0; i < 4; i++) emit_digit(cg, &m, i % 2, lo, hi, 8 * i);
    cg_for(cg, &l, lo, hi, 1);
    cg_store1(cg, I32, LLVMBuildTrunc(cg->b, cg_sub(cg, l.i, base), cg->i32, ""), cg_out(cg, 0),
              cg_i64(cg, cg_load1(cg, I32, m.slot[0], l.i)));
    cg_end(cg, &l);
    cg_endif(cg, &few);
    cg_end(cg, &c);
}

void emit_queue(Cg *cg, const KernelNode *k) {
    Slots s = slots_of(k->node, k->grain);
    LV runs = cg_int(cg, s.runs), lo, hi;
    CgIf f;
    if (has_priority(k->node)) {
        cg_if_phase(cg, &f, 0);
        emit_buckets(cg, &s, k->node->in[1]->type.dtype, cg->task);
        cg_else(cg, &f);
        emit_sorted(cg, &s, cg_div(cg, cg->task, cg_int(cg, s.E)), cg_rem(cg, cg->task, cg_int(cg, s.E)));
        cg_endif(cg, &f);
        return;
    }
    if (s.runs == 1 && !k->grain) {
        LV first = cg_mul(cg, cg->task, slots_now(cg, &s));
        run_range(cg, &s, cg_int(cg, 0), &lo, &hi);
        emit_histograms(cg, &s, first, lo, hi, cg->scratch, 1);
        emit_sums(cg, &s, cg->scratch, s.choices, NULL);
        emit_places(cg, &s, first, lo, hi, cg->scratch, 1);
        return;
    }
    for (int phase = 0; phase < 3; phase++) {
        cg_if_phase(cg, &f, phase);
        LV group = phase == 1 ? cg->task : cg_div(cg, cg->task, runs), run = cg_rem(cg, cg->task, runs);
        LV tables = histogram(cg, &s, cg_workspace(cg), cg_muli(cg, group, s.choices * s.runs));
        LV first = cg_mul(cg, group, slots_now(cg, &s)), of_run = histogram(cg, &s, tables, run);
        if (phase != 1) run_range(cg, &s, run, &lo, &hi);
        if (phase == 0) emit_histograms(cg, &s, first, lo, hi, of_run, s.runs);
        if (phase == 1) emit_sums(cg, &s, tables, s.choices * s.runs, NULL);
        if (phase == 2) emit_places(cg, &s, first, lo, hi, of_run, s.runs);
        cg_endif(cg, &f);
    }
}

// ---- row_group ---------------------------------------------------------------------------------------------

bool describe_row_group(const KernelNode *k, KernelDesc *d) {
    d->tasks[0] = tasks_fixed(k->node->attr.sym->groups);
    return true;
}

void emit_row_group(Cg *cg, const KernelNode *k) {
    int64_t leaves = k->node->attr.sym->leaves;
    LV at = cg_muli(cg, cg->task, leaves), expert = cg_splat(cg, LLVMBuildTrunc(cg->b, cg->task, cg->i32, ""));
    LV lo = cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 0), at)), hi = cg_i64(cg, cg_load1(cg, I32, cg_in(cg, 0), cg_addi(cg, at, leaves)));
    CgLoop l;
    cg_for(cg, &l, lo, hi, LANES);
    cg_store_vec(cg, I32, expert, cg_out(cg, 0), l.i, cg_tail_mask(cg, cg_sub(cg, hi, l.i)));
    cg_end(cg, &l);
}

// ---- sinkhorn ----------------------------------------------------------------------------------------------
// A task is one assignment [t, E].  In its memory: exp(x) in rows of whole vectors, 0 behind E; factors of rows and of
// columns; how far those of columns moved; a row of sums for each chunk of rows.

enum { CHUNK = 64 };

typedef struct {
    const Type *x;
    int64_t E, cols, rows;                       // cols: whole vectors; rows: at bound
    LV t, a, row, column, moved, sums;           // t: rows now
} Balance;

static Balance balance_of(const Node *n) {
    const Type *x = &n->in[0]->type;
    int64_t E = type_cols(x), cols = (E + LANES - 1) / LANES * LANES;
    return (Balance){.x = x, .E = E, .cols = cols, .rows = (dim_bound(x->dim[x->ndim - 2]) + CHUNK - 1) / CHUNK * CHUNK};
}

static int64_t balance_floats(const Balance *s) { return s->rows * (s->cols + 1) + (2 + s->rows / CHUNK) * s->cols; }

bool describe_sinkhorn(const KernelNode *k, KernelDesc *d) {
    const Type *x = &k->node->in[0]->type;
    if (x->dtype != F32 || x->ndim < 2 || x->dim[x->ndim - 1].sym || !type_bound_elements(x)) return false;
    Balance s = balance_of(k->node);
    d->tasks[0] = tasks_of_dims(s.x, 0, s.x->ndim - 2, 1);
    d->workspace = dims_bound(s.x, 0, s.x->ndim - 2) * balance_floats(&s) * 4;
    str_printf(&d->key, " rows %lld", (long long)s.rows);
    return true;
}

// 1/n / (sum + 1e-8), as many lanes as sum has.
static LV even_share(Cg *cg, LV n, LV sum) {
    LV one = cg_float(cg, 1), share = cg_fdiv(cg, one, LLVMBuildSIToFP(cg->b, n, cg->f32, "")), tiny = cg_float(cg, 1e-8f);
    if (LLVMTypeOf(sum) != cg->f32) one = cg_splat(cg, one), share = cg_splat(cg, share), tiny = cg_splat(cg, tiny);
    return cg_fmul(cg, share, cg_fdiv(cg, one, cg_fadd(cg, sum, tiny)));
}

// A row's factor from those of columns; then its part of the sums of columns.
static void balance_row(Cg *cg, const Balance *s, LV t, LV sums) {
    CgLoop l;
    LV at = cg_muli(cg, t, s->cols), sum = cg_zero(cg->vf32), zero = cg_int(cg, 0), cols = cg_int(cg, s->cols);
    cg_loop_begin(cg, &l, zero, cols, LANES, 1, &sum);
    LV x = cg_fmul(cg, cg_load_vec(cg, F32, s->column, l.i, NULL), cg_load_vec(cg, F32, s->a, cg_add(cg, at, l.i), NULL));
    LV next = cg_fadd(cg, l.carry[0], x);
    cg_loop_end(cg, &l, &next);
    LV r = even_share(cg, s->t, cg_fold_sum(cg, l.carry[0]));
    cg_store1(cg, F32, r, s->row, t);
    cg_for(cg, &l, zero, cols, LANES);
    x = cg_fmul(cg, cg_splat(cg, r), cg_load_vec(cg, F32, s->a, cg_add(cg, at, l.i), NULL));
    cg_store_vec(cg, F32, cg_fadd(cg, cg_load_vec(cg, F32, sums, l.i, NULL), x), sums, l.i, NULL);
    cg_end(cg, &l);
}

// The factors of columns from the sums of chunks; how far they moved together.
static LV balance_columns(Cg *cg, const Balance *s) {
    CgLoop l;
    LV zero = cg_int(cg, 0), chunks = cg_div(cg, cg_addi(cg, s->t, CHUNK - 1), cg_int(cg, CHUNK));
    cg_for(cg, &l, zero, cg_int(cg, s->cols), LANES);
    LV old = cg_load_vec(cg, F32, s->column, l.i, NULL);
    LV now = even_share(cg, cg_int(cg, s->E), cg_tree(cg, s->sums, chunks, cg_int(cg, s->cols), l.i, NULL));
    LV grew = LLVMBuildFCmp(cg->b, LLVMRealOGT, now, old, "");
    cg_store_vec(cg, F32, cg_select(cg, grew, cg_fsub(cg, now, old), cg_fsub(cg, old, now)), s->moved, l.i, NULL);
    cg_store_vec(cg, F32, now, s->column, l.i, NULL);
    cg_end(cg, &l);
    LV sum = cg_float(cg, 0);
    cg_loop_begin(cg, &l, zero, cg_int(cg, s->E), 1, 1, &sum);
    LV next = cg_fadd(cg, l.carry[0], cg_load1(cg, F32, s->moved, l.i));
    cg_loop_end(cg, &l, &next);
    return l.carry[0];
}

// Gives whether another round is wanted.
static LV balance_round(Cg *cg, const Balance *s, double tolerance) {
    CgLoop chunk, l;
    cg_for(cg, &chunk, cg_int(cg, 0), s->t, CHUNK);
    LV sums = cg_at(cg, F32, s->sums, cg_muli(cg, cg_div(cg, chunk.i, cg_int(cg, CHUNK)), s->cols));
    cg_memset0(cg, sums, cg_int(cg, s->cols * 4));
    cg_for(cg, &l, chunk.i, cg_min(cg, cg_addi(cg, chunk.i, CHUNK), s->t), 1);
    balance_row(cg, s, l.i, sums);
    cg_end(cg, &l);
    cg_end(cg, &chunk);
    LV mean = cg_fdiv(cg, balance_columns(cg, s), cg_float(cg, (float)s->E));
    return LLVMBuildFCmp(cg->b, LLVMRealUGT, mean, cg_float(cg, (float)tolerance), "");
}

// to[t, e] = f(..) over all rows and columns: exp(x) into memory, or the result from it.
static void for_balance(Cg *cg, const Balance *s, LV x, bool to_result) {
    CgLoop l, c;
    cg_for(cg, &l, cg_int(cg, 0), s->t, 1);
    LV outside = cg_muli(cg, l.i, s->E), inside = cg_muli(cg, l.i, s->cols);
    cg_for(cg, &c, cg_int(cg, 0), cg_int(cg, s->cols), LANES);
    LV mask = s->E == s->cols ? NULL : cg_tail_mask(cg, cg_sub(cg, cg_int(cg, s->E), c.i));
    LV here = cg_add(cg, inside, c.i), there = cg_add(cg, outside, c.i);
    if (to_result) {
        LV y = cg_fmul(cg, cg_load_vec(cg, F32, s->column, c.i, NULL), cg_load_vec(cg, F32, s->a, here, NULL));
        cg_store_vec(cg, F32, cg_fmul(cg, y, cg_splat(cg, cg_load1(cg, F32, s->row, l.i))), x, there, mask);
    } else {
        LV y = cg_exp(cg, cg_load_vec(cg, F32, x, there, mask));
        cg_store_vec(cg, F32, mask ? cg_select(cg, mask, y, cg_zero(cg->vf32)) : y, s->a, here, NULL);
    }
    cg_end(cg, &c);
    cg_end(cg, &l);
}

void emit_sinkhorn(Cg *cg, const KernelNode *k) {
    Balance s = balance_of(k->node);
    s.t = cg_dim(cg, s.x->dim[s.x->ndim - 2]);
    s.a = cg_at(cg, F32, cg_workspace(cg), cg_muli(cg, cg->task, balance_floats(&s)));
    s.column = cg_at(cg, F32, s.a, cg_int(cg, s.rows * s.cols));
    s.moved = cg_at(cg, F32, s.column, cg_int(cg, s.cols));
    s.sums = cg_at(cg, F32, s.moved, cg_int(cg, s.cols));
    s.row = cg_at(cg, F32, s.sums, cg_int(cg, s.rows / CHUNK * s.cols));
    LV first = cg_mul(cg, cg->task, cg_muli(cg, s.t, s.E));
    CgLoop l;
    CgIf f;
    for_balance(cg, &s, cg_at(cg, F32, cg_in(cg, 0), first), false);
    cg_for(cg, &l, cg_int(cg, 0), cg_int(cg, s.cols), LANES);
    cg_store_vec(cg, F32, cg_vec(cg, 1), s.column, l.i, NULL);
    cg_end(cg, &l);
    LV go = cg_bool(cg, true);
    cg_loop_begin(cg, &l, cg_int(cg, 0), cg_int(cg, k->node->attr.limit), 1, 1, &go);
    cg_if(cg, &f, l.carry[0]);
    LV again = balance_round(cg, &s, k->node->attr.tolerance), no = cg_bool(cg, false);
    cg_else(cg, &f);
    cg_endif_join(cg, &f, 1, &again, &no, &go);
    cg_loop_end(cg, &l, &go);
    for_balance(cg, &s, cg_at(cg, F32, cg_out(cg, 0), first), true);
}
