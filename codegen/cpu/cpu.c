// The cpu target: kernels from templates, compiled by LLVM for one of a table of machines.
#include "codegen/cpu/cpu.h"
#include <assert.h>
#include <llvm-c/Analysis.h>
#include <llvm-c/Linker.h>
#include <llvm-c/Target.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "codegen/compiled.h"
#include "codegen/cpu/dot.h"
#include "codegen/cpu/layout.h"
#include "codegen/cpu/product.h"
#include "codegen/cpu/route.h"
#include "codegen/gates.h"
#include "codegen/interp/ref_kernel.h"

// ---- machines ------------------------------------------------------------------------------------------

static const CpuTarget machine[] = {
    {"avx512", "x86-64-v4", "", true, 64, 32, false, false, false},
    {"avx512bf16", "x86-64-v4", "+avx512bf16", true, 64, 32, true, false, true},
    {"avx2", "x86-64-v3", "", true, 32, 16, false, false, false},
    {"sse2", "x86-64", "", false, 16, 16, false, false, false},
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static CpuTarget native;                    // filled once: LLVM's name and features of this machine

static void init_once(void) {
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
    LLVMInitializeNativeAsmParser();
    const char *features = LLVMGetHostCPUFeatures();       // kept: native is for the life of the process
    native = (CpuTarget){.name = "native", .cpu = LLVMGetHostCPUName(), .features = features,
                         .fma = strstr(features, "+fma,") != NULL, .vector_bytes = 16, .n_registers = 16};
    if (strstr(features, "+avx2,")) {
        native.vector_bytes = 32;
        native.int8_dot = strstr(features, "+avxvnni,") != NULL;
    }
    if (strstr(features, "+avx512f,") && strstr(features, "+avx512vl")) {
        native.vector_bytes = 64, native.n_registers = 32;
        native.bf16_dot = strstr(features, "+avx512bf16,") != NULL;
        native.int8_dot = strstr(features, "+avx512vnni,") != NULL;
    }
#if defined(__aarch64__)
    native.fma = true;
    native.n_registers = 32;
#endif
}

static bool runs_here(const CpuTarget *t) {
#if defined(__x86_64__)
    if (!strcmp(t->name, "avx512")) return __builtin_cpu_supports("x86-64-v4");
    if (!strcmp(t->name, "avx512bf16"))
        return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(t->name, "avx2")) return __builtin_cpu_supports("x86-64-v3");
    return true;
#else
    return t == &native;
#endif
}

const CpuTarget *cpu_find(const char *name, bool run_here, Diag *d) {
    pthread_once(&once, init_once);
    if (!name || !strcmp(name, "native")) return &native;
    for (size_t i = 0; i < sizeof machine / sizeof *machine; i++) {
        if (strcmp(machine[i].name, name)) continue;
        if (!run_here || runs_here(&machine[i])) return &machine[i];
        diag_error(d, (Span){0}, "this machine can't run %s code; its own is `native`", name);
        return NULL;
    }
    diag_error(d, (Span){0}, "no cpu `%s`; there are native, avx512bf16, avx512, avx2, sse2", name);
    return NULL;
}

// ---- templates -----------------------------------------------------------------------------------------

static const KernelTemplate template[] = {
#define KERNEL(OP, describe, emit) {OP_##OP, describe, emit},
#include "codegen/cpu/kernels.def"
#undef KERNEL
};

const KernelTemplate *cpu_template(Op op) {
    for (size_t i = 0; i < sizeof template / sizeof *template; i++)
        if (template[i].op == op) return &template[i];
    return NULL;
}

// ---- one kernel ----------------------------------------------------------------------------------------

static LLVMTargetMachineRef new_machine(const CpuTarget *t) {
    char *triple = LLVMGetDefaultTargetTriple(), *error = NULL;
    LLVMTargetRef target;
    if (LLVMGetTargetFromTriple(triple, &target, &error)) {
        fprintf(stderr, "LLVM knows no target %s: %s\n", triple, error);
        abort();
    }
    LLVMTargetMachineRef tm = LLVMCreateTargetMachine(
        target, triple, t->cpu, t->features, LLVMCodeGenLevelAggressive, LLVMRelocPIC, LLVMCodeModelDefault);
    LLVMDisposeMessage(triple);
    return tm;
}

static void init_types(Cg *cg) {
    LLVMContextRef cx = cg->cx;
    cg->void_t = LLVMVoidTypeInContext(cx);
    cg->i1 = LLVMInt1TypeInContext(cx);
    cg->i8 = LLVMInt8TypeInContext(cx);
    cg->i16 = LLVMInt16TypeInContext(cx);
    cg->i32 = LLVMInt32TypeInContext(cx);
    cg->i64 = LLVMInt64TypeInContext(cx);
    cg->f32 = LLVMFloatTypeInContext(cx);
    cg->f64 = LLVMDoubleTypeInContext(cx);
    cg->ptr = LLVMPointerTypeInContext(cx, 0);
    cg->v1 = LLVMVectorType(cg->i1, LANES);
    cg->v8 = LLVMVectorType(cg->i8, LANES);
    cg->v16 = LLVMVectorType(cg->i16, LANES);
    cg->vi32 = LLVMVectorType(cg->i32, LANES);
    cg->vi64 = LLVMVectorType(cg->i64, LANES);
    cg->vf32 = LLVMVectorType(cg->f32, LANES);
    cg->vf64 = LLVMVectorType(cg->f64, LANES);
}

static void check_module(LLVMModuleRef module, const char *what) {
    char *error = NULL;
    if (!LLVMVerifyModule(module, LLVMReturnStatusAction, &error)) {
        LLVMDisposeMessage(error);
        return;
    }
    fprintf(stderr, "%s: the emitted code is wrong: %s\n", what, error);
    abort();
}

static Object copy_object(const char *bytes, size_t n) {
    Object o = {malloc(n + 1), n};
    assert(o.bytes);
    memcpy(o.bytes, bytes, n);
    o.bytes[n] = 0;
    return o;
}

static Object write_module(LLVMModuleRef module, LLVMTargetMachineRef tm, LLVMCodeGenFileType type) {
    char *error = NULL;
    LLVMMemoryBufferRef buffer;
    if (LLVMTargetMachineEmitToMemoryBuffer(tm, module, type, &error, &buffer)) {
        fprintf(stderr, "LLVM can't write an object: %s\n", error);
        abort();
    }
    Object o = copy_object(LLVMGetBufferStart(buffer), LLVMGetBufferSize(buffer));
    LLVMDisposeMemoryBuffer(buffer);
    return o;
}

static LLVMModuleRef new_module(LLVMContextRef cx, LLVMTargetMachineRef tm, const char *name) {
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext(name, cx);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(tm);
    LLVMSetModuleDataLayout(module, layout);
    LLVMDisposeTargetData(layout);
    char *triple = LLVMGetTargetMachineTriple(tm);
    LLVMSetTarget(module, triple);
    LLVMDisposeMessage(triple);
    return module;
}

static void optimize(LLVMModuleRef module, LLVMTargetMachineRef tm, const char *what) {
    check_module(module, what);
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMErrorRef error = LLVMRunPasses(module, cg_passes, tm, options);
    assert(!error);
    (void)error;
    LLVMDisposePassBuilderOptions(options);
}

// Heights of tiles that no branch is left for.
static void drop_unused(Cg *cg) {
    CgParts *parts = cg->parts;
    int used = 0;
    for (int i = 0; i < parts->n; i++) {
        LV fn = LLVMGetNamedFunction(cg->module, parts->at[i].name);
        if (fn && LLVMGetFirstUse(fn)) parts->at[used++] = parts->at[i];
        else LLVMDisposeModule(parts->at[i].module);
    }
    parts->n = used;
}

static Cg *emission_begin(const CpuTarget *t, const PlanKernel *k, LLVMTargetMachineRef tm) {
    Cg *cg = calloc(1, sizeof *cg);
    assert(cg);
    cg->parts = calloc(1, sizeof *cg->parts);
    assert(cg->parts);
    cg->target = t;
    cg->k = &k->node;
    cg->cx = LLVMContextCreate();
    cg->module = new_module(cg->cx, tm, k->symbol);
    cg->b = LLVMCreateBuilderInContext(cg->cx);
    init_types(cg);
    cg_kernel_begin(cg, k->symbol);
    k->made_by->emit(cg, &k->node);
    LLVMBuildRetVoid(cg->b);
    cg_target_attributes(cg, cg->module);
    optimize(cg->module, tm, k->key);
    drop_unused(cg);
    return cg;
}

static void emission_end(Cg *cg, LLVMTargetMachineRef tm) {
    for (int i = 0; i < cg->parts->n; i++)
        if (cg->parts->at[i].module) LLVMDisposeModule(cg->parts->at[i].module);
    LLVMDisposeBuilder(cg->b);
    LLVMDisposeModule(cg->module);
    LLVMContextDispose(cg->cx);
    LLVMDisposeTargetMachine(tm);
    free(cg->parts->at);
    free(cg->parts);
    free(cg);
}

static Object compile_part(const CgPart *p, LLVMTargetMachineRef tm, const CodeCache *cache) {
    Object o;
    if (cache_load_part(cache, p->name, &o)) return o;
    optimize(p->module, tm, p->name);
    o = write_module(p->module, tm, LLVMObjectFile);
    cache_store_part(cache, p->name, &o);
    return o;
}

Code cpu_emit(const CpuTarget *t, const PlanKernel *k, const CodeCache *cache) {
    LLVMTargetMachineRef tm = new_machine(t);
    Cg *cg = emission_begin(t, k, tm);
    const CgParts *parts = cg->parts;
    Code c = {.n_parts = parts->n, .part = calloc((size_t)parts->n + 1, sizeof *c.part)};
    assert(c.part);
    for (int i = 0; i < parts->n; i++) {
        strcpy(c.part[i].text, parts->at[i].name);
        if (part_claim(parts->at[i].name)) part_keep(parts->at[i].name, compile_part(&parts->at[i], tm, cache));
    }
    c.object = write_module(cg->module, tm, LLVMObjectFile);
    emission_end(cg, tm);
    return c;
}

Object cpu_emit_text(const CpuTarget *t, const PlanKernel *k, TextForm form) {
    LLVMTargetMachineRef tm = new_machine(t);
    Cg *cg = emission_begin(t, k, tm);
    for (int i = 0; i < cg->parts->n; i++) {
        CgPart *p = &cg->parts->at[i];
        optimize(p->module, tm, p->name);
        bool failed = LLVMLinkModules2(cg->module, p->module);       // which disposes of the part
        assert(!failed);
        (void)failed;
        p->module = NULL;
    }
    Object o;
    if (form == FORM_LLVM) {
        char *text = LLVMPrintModuleToString(cg->module);
        o = copy_object(text, strlen(text));
        LLVMDisposeMessage(text);
    } else {
        o = write_module(cg->module, tm, LLVMAssemblyFile);
    }
    emission_end(cg, tm);
    return o;
}

Object cpu_emit_plan_object(const CpuTarget *t, const EmittedPlan *e) {
    LLVMTargetMachineRef tm = new_machine(t);
    LLVMContextRef cx = LLVMContextCreate();
    LLVMModuleRef module = new_module(cx, tm, "plan");
    LV bytes = LLVMConstStringInContext(cx, (const char *)e->plan, (unsigned)e->plan->bytes, true);
    LV plan = LLVMAddGlobal(module, LLVMTypeOf(bytes), "moec_plan");
    LLVMSetInitializer(plan, bytes);
    LLVMSetGlobalConstant(plan, true);
    LLVMSetAlignment(plan, 64);
    LT ptr = LLVMPointerTypeInContext(cx, 0),
       fn = LLVMFunctionType(LLVMVoidTypeInContext(cx), &ptr, 1, false);
    LV *kernel = malloc(sizeof *kernel * (size_t)(e->n_kernels + 1));
    assert(kernel);
    for (int i = 0; i < e->n_kernels; i++) {
        kernel[i] = LLVMGetNamedFunction(module, e->kernel[i].symbol);
        if (!kernel[i]) kernel[i] = LLVMAddFunction(module, e->kernel[i].symbol, fn);
    }
    LV array = LLVMConstArray2(ptr, kernel, (uint64_t)e->n_kernels);
    LV table = LLVMAddGlobal(module, LLVMTypeOf(array), "moec_kernels");
    LLVMSetInitializer(table, array);
    LLVMSetGlobalConstant(table, true);
    free(kernel);
    check_module(module, "plan");
    Object o = write_module(module, tm, LLVMObjectFile);
    LLVMDisposeModule(module);
    LLVMContextDispose(cx);
    LLVMDisposeTargetMachine(tm);
    return o;
}

// ---- the target ----------------------------------------------------------------------------------------

static bool available(const char **why_not) {
    pthread_once(&once, init_once);
    (void)why_not;
    return true;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The machine that opts name, and how it multiplies bf16: the native one by what was measured, a row of the table
// as it says.
static const CpuTarget *choose_target(Arena *a, const CompileOpts *opts, bool run_here, Diag *d) {
    const CpuTarget *found = cpu_find(opts->cpu, run_here, d);
    if (found != &native || !opts->machine) return found;
    CpuTarget *t = arena_new(a, CpuTarget);
    *t = native;
    t->dot = choose_dots(t, opts->machine);
    return t;
}

static bool uses_dots(const CpuTarget *t, const Graph *g) {
    for_each_node(g, n) {
        bool head = n->op == OP_HEAD_LOSS || n->op == OP_HEAD_LOSS_GRAD || n->op == OP_HEAD_LOSS_AND_GRAD;
        if (!head && !op_is_contraction(n->op)) continue;
        if (dot_used(t, n->in[0]->type.dtype, n->in[1]->type.dtype)) return true;
    }
    return false;
}

static const char *arithmetic_of(const CpuTarget *t, Graph *const *programs, int n) {
    bool dots = false, one_chain = graphs_have_one_chain(programs, n);
    for (int i = 0; i < n; i++) dots |= uses_dots(t, programs[i]);
    if (dots) return one_chain ? "bf16-dot one-chain" : "bf16-dot";
    if (!t->fma) return one_chain ? "f32-mul-add one-chain" : "f32-mul-add";
    return one_chain ? "f32-fma one-chain" : "f32-fma";
}

static EmittedPlan *plan_for(Arena *a, const CpuTarget *t, Graph *const *programs, int n,
                             const CompileOpts *opts, Diag *d) {
    Machine *guess = arena_new(a, Machine);
    *guess = machine_guess(t->vector_bytes, 2);
    PlanOpts po = {.template_of = cpu_template, .arithmetic = arithmetic_of(t, programs, n),
                   .info_json = opts->info_json, .waves = opts->waves,
                   .machine = opts->machine ? opts->machine : guess, .target = t};
    Graph **opened = arena_array(a, Graph *, n + 1);
    for (int i = 0; i < n; i++) opened[i] = open_gates(a, programs[i], gate_is_kernel);
    return emit_plan(a, opened, n, &po, d);
}

static const RtPlan *plan(Arena *a, Graph *const *programs, int n, const CompileOpts *opts, Diag *d) {
    const CpuTarget *t = choose_target(a, opts, false, d);
    EmittedPlan *e = t ? plan_for(a, t, programs, n, opts, d) : NULL;
    return e ? e->plan : NULL;
}

static void free_all(Code *code, int n) {
    for (int i = 0; i < n; i++) code_free(&code[i]);
}

static void free_code(void *code) { jit_free(code); }

static Compiled *compile(Graph *const *programs, int n, const CompileOpts *opts, Diag *d) {
    double start = now();
    Arena *a = arena_create();
    const CpuTarget *t = choose_target(a, opts, true, d);
    EmittedPlan *e = t ? plan_for(a, t, programs, n, opts, d) : NULL;
    if (!e) {
        arena_destroy(a);
        return NULL;
    }
    Compiled *c = arena_new(a, Compiled);
    *c = (Compiled){.arena = a,
                    .emitted = e,
                    .fn = arena_array(a, RtKernelFn *, e->n_kernels + 1),
                    .free_code = free_code};
    Code *code = arena_array(a, Code, e->n_kernels + 1);
    cpu_objects(t, e, opts, code, &c->stats);
    c->code = jit_load(e, code, c->fn, d);
    free_all(code, e->n_kernels);
    if (!c->code) {
        arena_destroy(a);
        return NULL;
    }
    for (int i = 0; i < e->n_kernels; i++)
        if (!e->kernel[i].made_by) c->fn[i] = e->kernel[i].is_exchange ? NULL : moec_ref_kernel;
    c->stats.seconds = now() - start;
    return c;
}

static bool write_file(const char *dir, const char *name, const Object *o, Diag *d) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.o", dir, name);
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(o->bytes, 1, o->n, f) == o->n;
    if (f && fclose(f)) ok = false;
    if (!ok) diag_error(d, (Span){0}, "can't write %s", path);
    return ok;
}

static bool emit_objects(Graph *const *programs, int n, const CompileOpts *opts, const char *dir, Diag *d) {
    Arena *a = arena_create();
    const CpuTarget *t = choose_target(a, opts, false, d);
    EmittedPlan *e = t ? plan_for(a, t, programs, n, opts, d) : NULL;
    bool ok = e != NULL;
    if (e) {
        Code *code = arena_array(a, Code, e->n_kernels + 1);
        Object plan = cpu_emit_plan_object(t, e);
        CompileStats stats;
        int n_parts;
        cpu_objects(t, e, opts, code, &stats);
        PartName *part = code_parts(code, e->n_kernels, &n_parts);
        for (int i = 0; ok && i < e->n_kernels; i++)
            if (code[i].object.bytes) ok = write_file(dir, e->kernel[i].symbol, &code[i].object, d);
        for (int i = 0; ok && i < n_parts; i++) ok = write_file(dir, part[i].text, part_wait(part[i].text), d);
        if (ok) ok = write_file(dir, "moec_plan", &plan, d);
        free(part);
        free_all(code, e->n_kernels);
        free(plan.bytes);
    }
    arena_destroy(a);
    return ok;
}

static bool dump(Graph *const *programs, int n, const CompileOpts *opts, const char *what, Str *out,
                 Diag *d) {
    TextForm form = !strcmp(what, "llvm") ? FORM_LLVM : FORM_ASSEMBLY;
    if (form == FORM_ASSEMBLY && strcmp(what, "asm") && strcmp(what, "plan")) return false;
    Arena *a = arena_create();
    const CpuTarget *t = choose_target(a, opts, false, d);
    EmittedPlan *e = t ? plan_for(a, t, programs, n, opts, d) : NULL;
    if (e && !strcmp(what, "plan")) plan_print(e, out);
    else if (e)
        for (int i = 0; i < e->n_kernels; i++) {
            str_printf(out, "%s kernel %d: %s\n", form == FORM_LLVM ? ";" : "#", i, e->kernel[i].key);
            if (!e->kernel[i].made_by) continue;
            Object o = cpu_emit_text(t, &e->kernel[i], form);
            str_add(out, o.bytes);
            str_add(out, "\n");
            free(o.bytes);
        }
    arena_destroy(a);
    return e != NULL;
}

static LayoutOffer layout(const Node *n, int operand, const char *cpu, const Machine *m, int64_t passing) {
    Arena *a = arena_create();
    const CpuTarget *t = choose_target(a, &(CompileOpts){.cpu = cpu, .machine = m}, false, diag_new(a));
    LayoutOffer offer = t ? cpu_layout(n, operand, t, m, passing) : (LayoutOffer){0};      // no such cpu: compiling will say so
    arena_destroy(a);
    return offer;
}

extern const Target target_cpu;
const Target target_cpu = {
    "cpu", "machine code by LLVM for this machine or a table row", available, compile, plan, emit_objects, dump,
    layout};
