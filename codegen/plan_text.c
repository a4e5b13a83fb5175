// Text of a plan.
//
//     plan  kernels 27  steps 41  persistent 10.8 MB  step 21.4 MB (lower bound 21.4 MB)
//     tensor layers.0.ffn.w1 f32[8,128,256] param persistent+0x1000
//     choose kernel 7 product 6x16: 1.21 ms | 5x16: 1.24 ms | 2x48: 1.3 ms  of 8
//     program pass
//       step 9  matmul  layers.0.attention  kernel 7  tasks 32  args step+0x400 ..  tiny.moe:31:14
#include "codegen/emit_plan.h"

static const char *const arena_name[] = {"persistent", "step", "const"};
static const char *const role_name[] = {"param", "state", "grad", "input", "output"};

static void print_tasks(const RtPlan *p, RtTasks t, Str *out) {
    const RtSym *syms = RT_TABLE(p, RtSym, syms);
    str_printf(out, " %lld", (long long)t.n);
    if (t.sym >= 0) str_printf(out, "*%s", RT_TEXT(p, syms[t.sym].name));
    if (t.grain != 1) str_printf(out, "/%lld", (long long)t.grain);
    if (t.extra) str_printf(out, "+%d", t.extra);
    if (t.times != 1) str_printf(out, "*%lld", (long long)t.times);
}

static void print_tensor(const RtPlan *p, const RtTensor *t, Str *out) {
    const RtSym *syms = RT_TABLE(p, RtSym, syms);
    str_printf(out, "tensor %s %s[", RT_TEXT(p, t->name), dtype_name((DType)t->dtype));
    for (int i = 0; i < t->ndim; i++) {
        str_printf(out, "%s%lld", i ? "," : "", (long long)t->dim[i]);
        if (t->dim_sym[i] >= 0) str_printf(out, "(%s)", RT_TEXT(p, syms[t->dim_sym[i]].name));
    }
    str_add(out, "]");
    if (t->layout != LAYOUT_ROWS) str_printf(out, ".%s", layout_name((Layout)t->layout));
    str_printf(out, " %s %s+0x%llx%s%s\n", role_name[t->role], arena_name[t->arena],
               (unsigned long long)t->offset, t->saved ? " saved" : "", t->experts ? " experts" : "");
}

static void print_step(const RtPlan *p, uint32_t number, Str *out) {
    const RtStep *s = &RT_TABLE(p, RtStep, steps)[number];
    const RtKernel *k = &RT_TABLE(p, RtKernel, kernels)[s->kernel];
    const RtArg *arg = RT_TABLE(p, RtArg, args) + s->first_arg;
    const RtSource *at = &RT_TABLE(p, RtSource, sources)[s->span];
    str_printf(out, "  step %u  %s  %s  kernel %u %s  tasks", number, RT_TEXT(p, s->op), RT_TEXT(p, s->path),
               s->kernel, RT_TEXT(p, k->symbol));
    for (uint32_t i = 0; i < k->n_phases; i++) print_tasks(p, s->tasks[i], out);
    if (k->n_rounds > 1) str_printf(out, " in %u rounds", k->n_rounds);
    str_add(out, "  args");
    for (uint32_t i = 0; i < s->n_args; i++)
        str_printf(out, " %s+0x%llx", arena_name[arg[i].arena], (unsigned long long)arg[i].offset);
    if (s->defines_sym >= 0)
        str_printf(out, "  defines %s", RT_TEXT(p, RT_TABLE(p, RtSym, syms)[s->defines_sym].name));
    if (at->line) str_printf(out, "  %s:%u:%u", RT_TEXT(p, at->file), at->line, at->column);
    str_add(out, "\n");
}

// The ways to make a kernel that were weighed: the one taken, then the next best.
static void print_choices(const PlanKernel *k, int number, const Machine *m, Str *out) {
    for (int i = 0; i < k->n_choices; i++) {
        const Choice *c = &k->choice[i];
        str_printf(out, "choose kernel %d %s", number, c->what);
        for (int j = 0; j < c->n; j++)
            str_printf(out, "%s %s: %.4g ms", j ? " |" : "", c->best[j].text,
                       1e3 * predicted_seconds(m, &c->best[j].takes, 1));
        str_printf(out, "  of %d\n", c->candidates);
    }
}

void plan_print(const EmittedPlan *e, Str *out) {
    const RtPlan *p = e->plan;
    str_printf(
        out,
        "plan  kernels %u  steps %u  persistent %.1f MB  step %.1f MB (lower bound %.1f MB)  arithmetic %s\n",
        p->kernels.n, p->steps.n, 1e-6 * (double)p->persistent_bytes, 1e-6 * (double)p->step_bytes,
        1e-6 * (double)p->lower_bound_bytes, RT_TEXT(p, p->arithmetic));
    const RtSym *syms = RT_TABLE(p, RtSym, syms);
    for (uint32_t i = 0; i < p->syms.n; i++) {
        str_printf(out, "sym %s <= %lld", RT_TEXT(p, syms[i].name), (long long)syms[i].bound);
        if (syms[i].fixed >= 0) str_printf(out, " = %lld", (long long)syms[i].fixed);
        if (syms[i].from_arena >= 0)
            str_printf(out, " from %s+0x%llx[%d]", arena_name[syms[i].from_arena],
                       (unsigned long long)syms[i].from_offset, syms[i].from_index);
        str_add(out, "\n");
    }
    for (uint32_t i = 0; i < p->tensors.n; i++) print_tensor(p, &RT_TABLE(p, RtTensor, tensors)[i], out);
    for (int i = 0; i < e->n_kernels; i++) print_choices(&e->kernel[i], i, e->machine, out);
    const RtProgram *program = RT_TABLE(p, RtProgram, programs);
    for (uint32_t i = 0; i < p->programs.n; i++) {
        str_printf(out, "program %s\n", RT_TEXT(p, program[i].name));
        for (uint32_t j = 0; j < program[i].n_steps; j++) print_step(p, program[i].first_step + j, out);
    }
}
