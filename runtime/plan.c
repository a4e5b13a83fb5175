// Loads a plan: check every offset and index once, then allocate everything the steps will ever need.
#include "runtime/plan.h"

#include <assert.h>
#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/ranks.h"
#include "runtime/team.h"
#include "runtime/trace.h"

// ---- checking -------------------------------------------------------------------------------------------

#define BAD(...) rt_fail(e, RT_BAD_PLAN, "the plan is damaged: " __VA_ARGS__)

static RtStatus check_table(const RtPlan *plan, const char *name, RtSpan s, size_t entry, RtError *e) {
    if (s.offset < sizeof *plan || (entry > 1 && s.offset % 8))
        return s.n ? BAD("table '%s' starts at byte %u", name, s.offset) : RT_OK;
    if (s.offset > plan->bytes || s.n > (plan->bytes - s.offset) / entry)
        return BAD("table '%s' (%u entries at byte %u) goes beyond its %u bytes", name, s.n, s.offset,
                   plan->bytes);
    return RT_OK;
}

static bool text_ok(const RtPlan *plan, uint32_t at) { return at < plan->text.n; }

// Bytes [offset, offset + bytes) lie inside an arena.
static bool in_arena(const RtPlan *plan, uint32_t arena, int64_t offset, int64_t bytes) {
    int64_t size = arena == RT_PERSISTENT ? plan->persistent_bytes : arena == RT_STEP ? plan->step_bytes
                 : arena == RT_CONST ? (int64_t)plan->consts.n : -1;
    return offset >= 0 && bytes >= 0 && offset <= size && bytes <= size - offset;
}

static RtStatus check_syms(const RtPlan *plan, RtError *e) {
    const RtSym *s = RT_TABLE(plan, RtSym, syms);
    for (uint32_t i = 0; i < plan->syms.n; i++) {
        if (!text_ok(plan, s[i].name)) return BAD("symbol %u has no name", i);
        if (s[i].bound < 0 || s[i].fixed > s[i].bound)
            return BAD("symbol '%s': bound %lld", RT_TEXT(plan, s[i].name), (long long)s[i].bound);
        if (s[i].fixed < 0 && s[i].from_arena >= 0 &&
            (s[i].from_index < 0 || !in_arena(plan, (uint32_t)s[i].from_arena, s[i].from_offset,
                                              4 * ((int64_t)s[i].from_index + 1))))
            return BAD("symbol '%s' is read from outside its arena", RT_TEXT(plan, s[i].name));
    }
    return RT_OK;
}

// Panels are matrices of fixed size; *bytes: what they take.
static bool lies_in_panels(const RtTensor *t, int64_t *bytes) {
    Layout l = (Layout)t->layout;
    if (t->ndim < 2 || t->dtype != (layout_is_pairs(l) ? BF16 : F32)) return false;
    *bytes = dtype_bytes((DType)t->dtype);
    for (int d = 0; d < t->ndim; d++) {
        if (t->dim_sym[d] >= 0 || t->dim[d] > INT64_MAX / 2 - PANEL_COLS) return false;
        int64_t n = t->dim[d], k = layout_is_transposed(l) ? t->ndim - 1 : t->ndim - 2;
        if (d == k) n += layout_is_pairs(l) ? n % 2 : 0;
        else if (d >= t->ndim - 2) n = (n + PANEL_COLS - 1) / PANEL_COLS * PANEL_COLS;
        if (__builtin_mul_overflow(*bytes, n, bytes)) return false;
    }
    return true;
}

static RtStatus check_slot_tables(const RtPlan *plan, RtError *e) {
    const RtSlotTable *t = RT_TABLE(plan, RtSlotTable, slot_tables);
    RtMesh m = plan->mesh;
    for (uint32_t i = 0; i < plan->slot_tables.n; i++) {
        if (!text_ok(plan, t[i].name)) return BAD("slot table %u has no name", i);
        if (t[i].experts < 1 || t[i].slots < t[i].experts || t[i].slots > 2 * t[i].experts || m.ep < 1 || m.tp < 1 || t[i].slots % rt_expert_ranks(m))
            return BAD("slot table '%s' has %d experts in %d slots", RT_TEXT(plan, t[i].name), t[i].experts, t[i].slots);
    }
    return RT_OK;
}

// Its part has as many experts as a rank has slots in its table.
static bool is_dealt(const RtPlan *plan, const RtTensor *t) {
    const RtSlotTable *table = RT_TABLE(plan, RtSlotTable, slot_tables) + t->table - 1;
    return t->shard == 1 + RT_GROUP_EXP && t->dim_sym[0] < 0 && t->dim[0] == table->slots / rt_expert_ranks(plan->mesh);
}

static RtStatus check_tensors(const RtPlan *plan, RtError *e) {
    const RtTensor *t = RT_TABLE(plan, RtTensor, tensors);
    for (uint32_t i = 0; i < plan->tensors.n; i++) {
        if (!text_ok(plan, t[i].name)) return BAD("tensor %u has no name", i);
        const char *name = RT_TEXT(plan, t[i].name);
        if (t[i].dtype >= DTYPE_COUNT || t[i].ndim > MAX_DIM || t[i].role > RT_OUTPUT ||
            t[i].init > RT_INIT_COPY)
            return BAD("tensor '%s': type, rank, role or initial values are out of range", name);
        int64_t bytes = dtype_bytes(t[i].dtype);
        for (int d = 0; d < t[i].ndim; d++) {
            if (t[i].dim[d] < 0 || __builtin_mul_overflow(bytes, t[i].dim[d], &bytes))
                return BAD("tensor '%s': dimension %d is %lld", name, d, (long long)t[i].dim[d]);
            if (t[i].dim_sym[d] >= (int64_t)plan->syms.n)
                return BAD("tensor '%s': no symbol %d", name, t[i].dim_sym[d]);
        }
        if (t[i].layout >= LAYOUT_COUNT || (t[i].layout != LAYOUT_ROWS && !lies_in_panels(&t[i], &bytes)))
            return BAD("tensor '%s' can't lie as it says", name);
        if (bytes > t[i].bytes || t[i].arena > RT_STEP ||
            !in_arena(plan, t[i].arena, t[i].offset, t[i].bytes))
            return BAD("tensor '%s' (%lld bytes at %lld) lies outside its arena", name, (long long)t[i].bytes,
                       (long long)t[i].offset);
        if (t[i].init == RT_INIT_COPY && !text_ok(plan, t[i].init_from))
            return BAD("tensor '%s' copies nothing", name);
        if (t[i].init == RT_INIT_RANDOM_INT && !(t[i].init_a >= 0 && t[i].init_a <= 0x1p62))
            return BAD("tensor '%s': random integers below %g", name, t[i].init_a);
        if (t[i].role <= RT_STATE && !text_ok(plan, t[i].init_name))
            return BAD("tensor '%s' has no random key", name);
        if (t[i].shard > RT_GROUPS || (t[i].shard && t[i].ndim == 0))
            return BAD("tensor '%s' is cut over ranks that are no group", name);
        if (t[i].within > RT_GROUPS || (t[i].within && (t[i].ndim < 2 || t[i].dim_sym[1] >= 0)))
            return BAD("tensor '%s' is cut within a part it does not have", name);
        if (t[i].table > plan->slot_tables.n || (t[i].table && !is_dealt(plan, &t[i])))
            return BAD("tensor '%s' has experts by no table", name);
        if (t[i].tp > t[i].ndim || (t[i].tp && t[i].shard == 1 + RT_GROUP_TP))
            return BAD("tensor '%s' is cut along an axis it does not have", name);
        if (t[i].experts && t[i].ndim == 0) return BAD("tensor '%s' has no axis of experts", name);
    }
    return RT_OK;
}

static RtStatus check_kernels(const RtPlan *plan, RtError *e) {
    const RtKernel *k = RT_TABLE(plan, RtKernel, kernels);
    for (uint32_t i = 0; i < plan->kernels.n; i++) {
        if (!text_ok(plan, k[i].symbol)) return BAD("kernel %u has no name", i);
        if (k[i].n_phases > RT_MAX_PHASES)
            return BAD("kernel '%s' has %u phases", RT_TEXT(plan, k[i].symbol), k[i].n_phases);
        if (!k[i].n_rounds) return BAD("kernel '%s' has no rounds", RT_TEXT(plan, k[i].symbol));
        RT_TRY(check_table(plan, RT_TEXT(plan, k[i].symbol), k[i].data, 1, e));
    }
    const RtArg *a = RT_TABLE(plan, RtArg, args);
    for (uint32_t i = 0; i < plan->args.n; i++)
        if (!in_arena(plan, a[i].arena, a[i].offset, 0)) return BAD("argument %u lies outside its arena", i);
    return RT_OK;
}

static RtStatus check_steps(const RtPlan *plan, RtError *e) {
    const RtStep *s = RT_TABLE(plan, RtStep, steps);
    for (uint32_t i = 0; i < plan->steps.n; i++) {
        if (s[i].kernel >= plan->kernels.n)
            return BAD("step %u runs kernel %u of %u", i, s[i].kernel, plan->kernels.n);
        if (s[i].first_arg > plan->args.n || s[i].n_args > plan->args.n - s[i].first_arg)
            return BAD("step %u has arguments that do not exist", i);
        uint32_t n_phases = RT_TABLE(plan, RtKernel, kernels)[s[i].kernel].n_phases;
        for (uint32_t k = 0; k < n_phases; k++) {
            const RtTasks *t = &s[i].tasks[k];
            if (t->grain < 1 || t->n < 0 || t->times < 0 || t->extra < 0 || t->sym >= (int64_t)plan->syms.n)
                return BAD("step %u: the number of tasks of phase %u", i, k);
        }
        if (s[i].defines_sym >= (int64_t)plan->syms.n)
            return BAD("step %u defines symbol %d", i, s[i].defines_sym);
        if (s[i].work >= RT_WORK_KINDS || s[i].n_parts < 0 || s[i].n_parts > RT_MAX_PARTS)
            return BAD("step %u: what work it is", i);
        for (int k = 0; k < s[i].n_parts; k++)
            if (s[i].part[k].sym < 0 || s[i].part[k].sym >= (int64_t)plan->syms.n)
                return BAD("step %u: the size of its work", i);
        if (!text_ok(plan, s[i].op) || !text_ok(plan, s[i].path)) return BAD("step %u has no name", i);
    }
    const RtProgram *p = RT_TABLE(plan, RtProgram, programs);
    for (uint32_t i = 0; i < plan->programs.n; i++) {
        if (!text_ok(plan, p[i].name)) return BAD("program %u has no name", i);
        if (p[i].first_step > plan->steps.n || p[i].n_steps > plan->steps.n - p[i].first_step)
            return BAD("program '%s' has steps that do not exist", RT_TEXT(plan, p[i].name));
    }
    return RT_OK;
}

RtStatus rt_plan_check(const RtPlan *plan, size_t available, RtError *e) {
    if (available < sizeof *plan)
        return rt_fail(e, RT_BAD_PLAN, "a plan has at least %zu bytes, this has %zu", sizeof *plan,
                       available);
    if (plan->magic != RT_PLAN_MAGIC)
        return rt_fail(e, RT_BAD_PLAN, "this is not a plan (it begins with %08x)", plan->magic);
    if (plan->version != RT_PLAN_VERSION)
        return rt_fail(e, RT_BAD_PLAN,
                       "the plan has version %u, this program reads version %d: build it again",
                       plan->version, RT_PLAN_VERSION);
    if (plan->bytes > available || plan->bytes < sizeof *plan)
        return BAD("it says %u bytes, but has %zu", plan->bytes, available);
    if (plan->persistent_bytes < 0 || plan->step_bytes < 0 ||
        plan->persistent_bytes > INT64_MAX - plan->step_bytes)
        return BAD("arenas of %lld and %lld bytes", (long long)plan->persistent_bytes,
                   (long long)plan->step_bytes);
    RT_TRY(check_table(plan, "text", plan->text, 1, e));
    if (!plan->text.n || RT_TEXT(plan, 0)[plan->text.n - 1]) return BAD("its text does not end");
    if (!text_ok(plan, plan->arithmetic) || !text_ok(plan, plan->info)) return BAD("its texts are missing");
    RT_TRY(check_table(plan, "syms", plan->syms, sizeof(RtSym), e));
    RT_TRY(check_table(plan, "slot tables", plan->slot_tables, sizeof(RtSlotTable), e));
    RT_TRY(check_table(plan, "tensors", plan->tensors, sizeof(RtTensor), e));
    RT_TRY(check_table(plan, "kernels", plan->kernels, sizeof(RtKernel), e));
    RT_TRY(check_table(plan, "args", plan->args, sizeof(RtArg), e));
    RT_TRY(check_table(plan, "steps", plan->steps, sizeof(RtStep), e));
    RT_TRY(check_table(plan, "programs", plan->programs, sizeof(RtProgram), e));
    RT_TRY(check_table(plan, "sources", plan->sources, sizeof(RtSource), e));
    RT_TRY(check_table(plan, "consts", plan->consts, 1, e));
    RT_TRY(check_syms(plan, e));
    RT_TRY(check_slot_tables(plan, e));
    RT_TRY(check_tensors(plan, e));
    RT_TRY(check_kernels(plan, e));
    return check_steps(plan, e);
}

// ---- opening --------------------------------------------------------------------------------------------

enum { HUGE_PAGE = 2 << 20, PAGE = 4096 };

static size_t whole_pages(size_t bytes) { return (bytes + !bytes + PAGE - 1) / PAGE * PAGE; }

size_t rt_arena_bytes(const RtPlan *plan, RtArenaKind kind) {
    return whole_pages(kind == RT_PERSISTENT ? (size_t)plan->persistent_bytes
                       : kind == RT_STEP     ? (size_t)plan->step_bytes
                                             : plan->consts.n);
}

size_t rt_scratch_bytes(int threads) { return whole_pages((size_t)threads * RT_SCRATCH_BYTES); }

// Tables of an instance, each with an entry to spare.
static size_t syms_bytes(const RtPlan *plan) { return ((size_t)plan->syms.n + 1) * sizeof(int64_t); }
static size_t args_bytes(const RtPlan *plan) { return ((size_t)plan->args.n + 1) * sizeof(void *); }
static size_t kernel_data_bytes(const RtPlan *plan) { return ((size_t)plan->kernels.n + 1) * sizeof(void *); }
static size_t names_bytes(const RtPlan *plan) { return ((size_t)plan->tensors.n + 1) * sizeof(uint32_t); }
static size_t instance_bytes(void) { return (sizeof(RtPlanInstance) + 63) / 64 * 64; }

size_t rt_tables_bytes(const RtPlan *plan) {
    return instance_bytes() + syms_bytes(plan) + args_bytes(plan) + kernel_data_bytes(plan) + names_bytes(plan);
}

static void *take_table(RtPlanInstance *p, size_t bytes) {
    p->allocated += (int64_t)bytes;
    return calloc(1, bytes);
}

// Zeroed memory, of huge pages where the kernel grants them.
static RtStatus map_memory(RtPlanInstance *p, size_t room, unsigned char **out, RtError *e) {
    *out = NULL;
    void *m = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        return rt_fail(e, RT_NO_MEMORY, "no memory for %.1f MB: %s", (double)room / 1e6, strerror(errno));
    p->allocated += (int64_t)room;
    if (room >= HUGE_PAGE) madvise(m, room, MADV_HUGEPAGE);
    *out = m;
    return RT_OK;
}

static RtStatus check_memory(const RtPlan *plan, RtError *e) {
    int64_t need = plan->persistent_bytes + plan->step_bytes;
    int64_t have = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    if (have > 0 && need > have)
        return rt_fail(e, RT_NO_MEMORY,
                       "the plan needs %.1f GB (parameters, optimizer and gradients %.1f, one pass %.1f), "
                       "but this machine has %.1f GB",
                       (double)need / 1e9, (double)plan->persistent_bytes / 1e9,
                       (double)plan->step_bytes / 1e9, (double)have / 1e9);
    return RT_OK;
}

// Heap sort of tensor numbers by name: qsort has no context argument in C11.
static const char *name_at(const RtPlanInstance *p, uint32_t i) {
    return RT_TEXT(p->plan, p->tensor[i].name);
}

static void sift(const RtPlanInstance *p, uint32_t *a, uint32_t i, uint32_t n) {
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && strcmp(name_at(p, a[child + 1]), name_at(p, a[child])) > 0) child++;
        if (strcmp(name_at(p, a[child]), name_at(p, a[i])) <= 0) return;
        uint32_t t = a[i]; a[i] = a[child]; a[child] = t;
    }
}

static void sort_names(RtPlanInstance *p) {
    uint32_t n = (uint32_t)p->n_tensors, *a = p->by_name;
    for (uint32_t i = 0; i < n; i++) a[i] = i;
    for (uint32_t i = n / 2; i-- > 0;) sift(p, a, i, n);
    for (uint32_t i = n; i-- > 1;) {
        uint32_t t = a[0]; a[0] = a[i]; a[i] = t;
        sift(p, a, 0, i);
    }
}

static RtStatus fill(RtPlanInstance *p, RtError *e) {
    const RtPlan *plan = p->plan;
    for (int i = 0; i < RT_ARENAS; i++) RT_TRY(map_memory(p, p->arena_bytes[i], &p->arena[i], e));
    RT_TRY(map_memory(p, rt_scratch_bytes(p->threads), &p->scratch, e));
    p->sym = take_table(p, syms_bytes(plan));
    p->arg = take_table(p, args_bytes(plan));
    p->kernel_data = take_table(p, kernel_data_bytes(plan));
    p->by_name = take_table(p, names_bytes(plan));
    if (!p->sym || !p->arg || !p->kernel_data || !p->by_name)
        return rt_fail(e, RT_NO_MEMORY, "no memory for the plan's tables");
    memcpy(p->arena[RT_CONST], (const char *)plan + plan->consts.offset, plan->consts.n);
    const RtSym *sym = RT_TABLE(plan, RtSym, syms);
    for (int i = 0; i < p->n_syms; i++)
        p->sym[i] = sym[i].fixed >= 0 ? sym[i].fixed : sym[i].from_arena < 0 ? sym[i].bound : 0;
    const RtArg *arg = RT_TABLE(plan, RtArg, args);
    for (uint32_t i = 0; i < plan->args.n; i++) p->arg[i] = p->arena[arg[i].arena] + arg[i].offset;
    const RtKernel *kernel = RT_TABLE(plan, RtKernel, kernels);
    for (uint32_t i = 0; i < plan->kernels.n; i++)
        p->kernel_data[i] = kernel[i].data.n ? (const char *)plan + kernel[i].data.offset : NULL;
    sort_names(p);
    return RT_OK;
}

RtStatus rt_plan_open(const RtPlan *plan, RtKernelFn *const *kernels, int threads, RtPlanInstance **out,
                      RtError *e) {
    *out = NULL;
    RT_TRY(rt_plan_check(plan, plan->bytes, e));
    RT_TRY(check_memory(plan, e));
    RtPlanInstance *p = aligned_alloc(64, instance_bytes());
    if (!p) return rt_fail(e, RT_NO_MEMORY, "no memory for a plan");
    memset(p, 0, sizeof *p);
    p->allocated = (int64_t)instance_bytes();
    p->plan = plan;
    p->kernel = kernels;
    p->tensor = RT_TABLE(plan, RtTensor, tensors);
    p->step = RT_TABLE(plan, RtStep, steps);
    p->program = RT_TABLE(plan, RtProgram, programs);
    p->n_tensors = (int)plan->tensors.n;
    p->n_programs = (int)plan->programs.n;
    p->n_syms = (int)plan->syms.n;
    p->threads = threads > 0 ? threads : omp_get_num_procs();
    for (int i = 0; i < RT_ARENAS; i++) p->arena_bytes[i] = rt_arena_bytes(plan, (RtArenaKind)i);
    RtStatus s = fill(p, e);
    if (s == RT_OK) {
        p->team = rt_team_open(p->threads);
        if (!p->team)
            s = rt_fail(e, RT_NO_MEMORY, "cannot start %d threads: %s", p->threads, strerror(errno));
    }
    if (s != RT_OK) rt_plan_close(p);
    else *out = p;
    return s;
}

void rt_plan_close(RtPlanInstance *p) {
    if (!p) return;
    rt_trace_end(p);
    rt_team_close(p->team);
    for (int i = 0; i < RT_ARENAS; i++)
        if (p->arena[i]) munmap(p->arena[i], p->arena_bytes[i]);
    if (p->scratch) munmap(p->scratch, rt_scratch_bytes(p->threads));
    free(p->sym);
    free(p->arg);
    free(p->kernel_data);
    free(p->by_name);
    free(p);
}

// ---- looking things up ----------------------------------------------------------------------------------

int rt_program(const RtPlanInstance *p, const char *name) {
    for (int i = 0; i < p->n_programs; i++)
        if (!strcmp(RT_TEXT(p->plan, p->program[i].name), name)) return i;
    return -1;
}

const char *rt_tensor_name(const RtPlanInstance *p, const RtTensor *t) { return RT_TEXT(p->plan, t->name); }

const RtTensor *rt_tensor(const RtPlanInstance *p, const char *name) {
    int low = 0, high = p->n_tensors;
    while (low < high) {
        int mid = (low + high) / 2;
        int order = strcmp(name_at(p, p->by_name[mid]), name);
        if (order == 0) return &p->tensor[p->by_name[mid]];
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    return NULL;
}

const char *rt_tensor_nearest(const RtPlanInstance *p, const char *name) {
    const char *best = NULL;
    int limit = 6;
    for (int i = 0; i < p->n_tensors; i++) {
        int d = rt_distance(name, RT_TEXT(p->plan, p->tensor[i].name), limit);
        if (d < limit) {
            limit = d;
            best = RT_TEXT(p->plan, p->tensor[i].name);
        }
    }
    return best;
}

void *rt_tensor_data(const RtPlanInstance *p, const RtTensor *t) { return p->arena[t->arena] + t->offset; }

Tensor rt_tensor_view(const RtPlanInstance *p, const RtTensor *t) {
    Tensor v = {.dtype = (DType)t->dtype, .ndim = t->ndim, .data = rt_tensor_data(p, t)};
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    for (int i = 0; i < t->ndim; i++) {
        int s = t->dim_sym[i];
        bool scaled = s >= 0 && sym[s].bound > 0;
        v.dim[i] = scaled ? t->dim[i] / sym[s].bound * p->sym[s] : t->dim[i];
    }
    return v;
}

int64_t rt_tensor_elements(const RtPlanInstance *p, const RtTensor *t) {
    Tensor v = rt_tensor_view(p, t);
    int64_t n = 1;
    for (int i = 0; i < v.ndim; i++) n *= v.dim[i];
    return n;
}

int rt_tensor_parts(const RtPlanInstance *p, const RtTensor *t) {
    return t->shard && p->ranks ? rt_group_size(p->ranks->mesh, (RtGroup)(t->shard - 1)) : 1;
}

int rt_tensor_part(const RtPlanInstance *p, const RtTensor *t) {
    return t->shard && p->ranks ? rt_group_rank(p->ranks->mesh, (RtGroup)(t->shard - 1), p->ranks->rank) : 0;
}

// This rank's slots of a tensor of experts; NULL: each expert's slot has its number.
static const int32_t *own_slots(const RtPlanInstance *p, const RtTensor *t) {
    return t->table && p->ranks ? p->ranks->table[t->table - 1].expert + rt_tensor_part(p, t) * t->dim[0] : NULL;
}

int64_t rt_tensor_expert(const RtPlanInstance *p, const RtTensor *t, int64_t k) {
    const int32_t *expert = own_slots(p, t);
    return expert ? expert[k] : rt_tensor_part(p, t) * t->dim[0] + k;
}

int rt_tensor_tp(const RtPlanInstance *p, const RtTensor *t) { return t->tp && p->ranks ? p->ranks->mesh.tp : 1; }

int rt_tensor_inner_parts(const RtPlanInstance *p, const RtTensor *t) {
    return t->within && p->ranks ? rt_group_size(p->ranks->mesh, (RtGroup)(t->within - 1)) : 1;
}

int rt_tensor_inner_part(const RtPlanInstance *p, const RtTensor *t) {
    return t->within && p->ranks ? rt_group_rank(p->ranks->mesh, (RtGroup)(t->within - 1), p->ranks->rank) : 0;
}

RtOwn rt_tensor_place(const RtPlanInstance *p, const RtTensor *t, RtPartAt at) {
    Tensor here = rt_tensor_view(p, t);
    int64_t whole[MAX_DIM], begin[MAX_DIM];              // along each axis: the tensor's size, where this part begins
    int tp_axis = rt_tensor_tp(p, t) > 1 ? t->tp - 1 : -1, last = 0;       // last: the innermost axis that is cut
    for (int i = 0; i < here.ndim; i++) {
        int parts = i == 0 ? rt_tensor_parts(p, t) : i == 1 ? rt_tensor_inner_parts(p, t) : 1;
        int part = i == 0 ? at.part : i == 1 ? at.inner : 0, tp = i == tp_axis ? rt_tensor_tp(p, t) : 1;
        if (i == tp_axis) part += at.tp * parts;
        whole[i] = here.dim[i] * parts * tp;
        begin[i] = here.dim[i] * part;
        if (parts * tp > 1) last = i;
    }
    RtOwn own = {.runs = 1, .run = 1, .stride = 1, .each = 1, .block = 1};
    int64_t size = 1;
    for (int i = here.ndim - 1; i >= 0; i--) {
        own.first += begin[i] * size;
        if (i == last) own.stride = size * whole[i];
        if (i >= last) own.run *= here.dim[i];
        else own.runs *= here.dim[i];
        if (i > 0 && i < last) own.each *= here.dim[i];
        if (i > 0) own.block *= whole[i];
        size *= whole[i];
    }
    if (last == 0) own.block = own.stride = own.run;      // in one run
    return own;
}

RtOwn rt_tensor_own(const RtPlanInstance *p, const RtTensor *t) {
    int tp_i = rt_tensor_tp(p, t) > 1 ? rt_group_rank(p->ranks->mesh, RT_GROUP_TP, p->ranks->rank) : 0;
    RtPartAt at = {rt_tensor_part(p, t), rt_tensor_inner_part(p, t), tp_i};
    const int32_t *expert = own_slots(p, t);
    if (!expert) return rt_tensor_place(p, t, at);
    at.part = 0;
    RtOwn own = rt_tensor_place(p, t, at);
    if (own.stride == own.run && t->dim[0]) {             // whole experts: runs of one each
        own.runs = t->dim[0];
        own.block = own.stride = own.run /= t->dim[0];
    }
    own.expert = expert;
    return own;
}

int64_t rt_tensor_whole(const RtPlanInstance *p, const RtTensor *t) {
    int64_t n = rt_tensor_elements(p, t);
    n *= rt_tensor_tp(p, t) * rt_tensor_inner_parts(p, t);
    return own_slots(p, t) ? n / t->dim[0] * p->ranks->table[t->table - 1].experts : n * rt_tensor_parts(p, t);
}

// The program whose name and a slash begin this tensor's name, or -1.
static int program_prefix(const RtPlanInstance *p, const char *name) {
    for (int i = 0; i < p->n_programs; i++) {
        const char *program = RT_TEXT(p->plan, p->program[i].name);
        size_t n = strlen(program);
        if (!strncmp(name, program, n) && name[n] == '/') return i;
    }
    return -1;
}

const char *rt_output_name(const RtPlanInstance *p, const RtTensor *t) {
    const char *name = rt_tensor_name(p, t);
    int i = program_prefix(p, name);
    return i < 0 ? name : name + strlen(RT_TEXT(p->plan, p->program[i].name)) + 1;
}

bool rt_is_output_of(const RtPlanInstance *p, int program, const RtTensor *t) {
    if (t->role != RT_OUTPUT) return false;
    int prefix = program_prefix(p, rt_tensor_name(p, t));
    if (prefix >= 0) return prefix == program;
    const RtArg *arg = RT_TABLE(p->plan, RtArg, args);
    const RtProgram *pr = &p->program[program];
    for (uint32_t s = pr->first_step; s < pr->first_step + pr->n_steps; s++)
        for (uint32_t a = p->step[s].first_arg; a < p->step[s].first_arg + p->step[s].n_args; a++)
            if (arg[a].arena == t->arena && arg[a].offset >= t->offset &&
                arg[a].offset < t->offset + t->bytes)
                return true;
    return false;
}

const RtTensor *rt_output(const RtPlanInstance *p, int program, const char *name) {
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (t->role == RT_OUTPUT && !strcmp(rt_output_name(p, t), name) && rt_is_output_of(p, program, t))
            return t;
    }
    return NULL;
}

int rt_sym(const RtPlanInstance *p, const char *name) {
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    for (int i = 0; i < p->n_syms; i++)
        if (!strcmp(RT_TEXT(p->plan, sym[i].name), name)) return i;
    return -1;
}

void rt_set_sym(RtPlanInstance *p, int sym, int64_t value) {
    const RtSym *s = RT_TABLE(p->plan, RtSym, syms) + sym;
    assert(s->fixed < 0 && s->from_arena < 0 && value >= 0 && value <= s->bound);
    p->sym[sym] = value;
}

void rt_read_sym(RtPlanInstance *p, int sym) {
    const RtSym *s = RT_TABLE(p->plan, RtSym, syms) + sym;
    if (s->fixed >= 0 || s->from_arena < 0) return;
    int32_t value;
    memcpy(&value, p->arena[s->from_arena] + s->from_offset + 4 * (int64_t)s->from_index, 4);
    assert(value >= 0 && value <= s->bound);
    p->sym[sym] = value;
}

int64_t rt_parameters(const RtPlanInstance *p) {
    int64_t n = 0;
    for (int i = 0; i < p->n_tensors; i++)
        if (p->tensor[i].role == RT_PARAM)
            n += rt_tensor_whole(p, &p->tensor[i]);
    return n;
}

// Leaves of one rank; of a program without a leaf axis those of the rows that a route has at home.
static double own_leaves(const RtPlanInstance *p) {
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    int32_t least = 0;
    for (int i = 0; i < p->n_syms; i++) {
        if (sym[i].from_arena < 0 && sym[i].leaves) return sym[i].leaves;
        if (sym[i].leaves && (!least || sym[i].leaves < least)) least = sym[i].leaves;
    }
    return least;
}

// Rows at experts of several ranks are bounded by those of all leaves; on average they are as many as at home.
static double expected_share(const RtPlanInstance *p, const RtStep *s, double own) {
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    for (int i = 0; i < s->n_parts; i++) {
        const RtSym *rows = &sym[s->part[i].sym];
        if (own && rows->from_arena >= 0 && rows->leaves > own) return own / rows->leaves;
    }
    return 1;
}

static double sum_flops(const RtPlanInstance *p, int program, bool at_experts) {
    double flops = 0, own = own_leaves(p);
    for (uint32_t i = 0; i < p->program[program].n_steps; i++) {
        const RtStep *s = &p->step[p->program[program].first_step + i];
        double share = expected_share(p, s, own);
        if (s->work != RT_ELEMENTWISE && (share < 1 || !at_experts)) flops += s->flops * share;
    }
    return flops;
}

double rt_program_flops(const RtPlanInstance *p, int program) { return sum_flops(p, program, false); }
double rt_expert_flops(const RtPlanInstance *p, int program) { return sum_flops(p, program, true); }

RtWork rt_step_work(const RtPlanInstance *p, const RtStep *s) {
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    RtWork w = {s->flops, s->bytes, s->bytes};
    double rows = s->experts;
    bool set_by_host = false;              // rows of routes grow with them
    for (int i = 0; i < s->n_parts; i++) {
        const RtSym *y = &sym[s->part[i].sym];
        set_by_host |= y->fixed < 0 && y->from_arena < 0;
    }
    for (int i = 0; i < s->n_parts; i++) {
        const RtSym *y = &sym[s->part[i].sym];
        bool ragged = y->from_arena >= 0;
        double value = (double)p->sym[s->part[i].sym], share = y->bound > 0 ? value / (double)y->bound : 1;
        w.bytes -= (1 - share) * s->part[i].bytes;
        w.fixed_bytes -= s->part[i].bytes;
        if (!ragged || !set_by_host) w.flops *= share;
        if (ragged) rows = value;
    }
    if (rows < s->experts) {
        double unread = (1 - rows / s->experts) * w.fixed_bytes;
        w.bytes -= unread;
        w.fixed_bytes -= unread;
    }
    return w;
}
