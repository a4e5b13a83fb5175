// Compiles the kernel of one node and runs it: for tests and benchmarks of templates, without graph and plan.
#ifndef TESTS_CODEGEN_ONE_KERNEL_H
#define TESTS_CODEGEN_ONE_KERNEL_H
#include <assert.h>
#include <llvm-c/Analysis.h>
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/cpu/cg.h"

enum { ONE_MAX = 24 };

typedef struct {
    Node node;
    Value value[ONE_MAX], out[ONE_MAX], *in[ONE_MAX];
    KernelNode k;
    KernelDesc d;
    Arena *arena;
    LLVMOrcLLJITRef jit;
    LLVMTargetMachineRef machine;
    Machine rates;
    RtKernelFn *fn;
} OneKernel;

// Operands and results are added with their types before compiling.
static inline void one_in(OneKernel *o, Type t) {
    Value *v = &o->value[o->node.n_in];
    v->type = t;
    o->in[o->node.n_in++] = v;
}
static inline void one_out(OneKernel *o, Type t) { o->out[o->node.n_out++].type = t; }
static inline Type one_type(DType dtype, int n, ...) {
    Type t = {.dtype = dtype, .ndim = (uint8_t)n};
    va_list ap;
    va_start(ap, n);
    for (int i = 0; i < n; i++) t.dim[i] = va_arg(ap, Dim);
    va_end(ap);
    return t;
}
#define ONE_COUNT(...) (int)(sizeof((Dim[]){__VA_ARGS__}) / sizeof(Dim))
#define ONE_TYPE(dtype, ...) one_type(dtype, ONE_COUNT(__VA_ARGS__), __VA_ARGS__)

static inline void one_note_sym(OneKernel *o, const Sym *s) {
    if (!s || s->kind == SYM_LEAF) return;
    KernelNode *k = &o->k;
    if (s->kind == SYM_PLAIN) {
        for (int i = 0; i < k->n_plain; i++)
            if (k->plain[i] == s) return;
        k->plain_index[k->n_plain] = s->id;
        k->plain[k->n_plain++] = s;
    } else {
        for (int i = 0; i < k->n_ragged; i++)
            if (k->ragged[i] == s) return;
        k->ragged[k->n_ragged++] = s;
    }
}

static inline void one_check(LLVMErrorRef e) {
    if (!e) return;
    fprintf(stderr, "%s\n", LLVMGetErrorMessage(e));
    abort();
}

static inline const CpuTarget *one_target(const char *name) {
    static const CpuTarget avx512 = {"avx512", "x86-64-v4", "", true, 64, 32, false, false, false},
                           dot = {"avx512bf16", "x86-64-v4", "+avx512bf16", true, 64, 32, true, false, true},
                           avx2 = {"avx2", "x86-64-v3", "", true, 32, 16, false, false, false},
                           sse2 = {"sse2", "x86-64", "", false, 16, 16, false, false, false};
    const CpuTarget *all[] = {&avx512, &dot, &avx2, &sse2};
    for (int i = 0; i < 4; i++)
        if (!strcmp(all[i]->name, name)) return all[i];
    return NULL;
}

// false: the template declines the node.
static inline bool one_compile(OneKernel *o, const CpuTarget *target, DescribeFn *describe, EmitFn *emit) {
    Node *n = &o->node;
    n->in = o->in;
    n->out = o->out;
    o->k.node = n;
    o->rates = machine_guess(target->vector_bytes, 2);
    o->k.machine = &o->rates;
    o->k.target = target;
    for (int i = 0; i < kernel_n_args(&o->k); i++)
        for (int j = 0; j < kernel_arg_type(&o->k, i)->ndim; j++)
            one_note_sym(o, kernel_arg_type(&o->k, i)->dim[j].sym);
    o->arena = arena_create();
    o->d = (KernelDesc){.key.arena = o->arena, .n_phases = 1, .n_rounds = 1};
    for (int i = 0; i < RT_MAX_PHASES; i++) o->d.tasks[i] = tasks_fixed(1);
    if (!describe(&o->k, &o->d)) return false;

    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    char *triple = LLVMGetDefaultTargetTriple(), *message = NULL;
    LLVMTargetRef t;
    if (LLVMGetTargetFromTriple(triple, &t, &message)) abort();
    o->machine = LLVMCreateTargetMachine(t, triple, target->cpu, target->features, LLVMCodeGenLevelDefault,
                                         LLVMRelocDefault, LLVMCodeModelJITDefault);
    LLVMOrcThreadSafeContextRef safe = LLVMOrcCreateNewThreadSafeContext();
    Cg cg = {.target = target, .k = &o->k, .cx = LLVMOrcThreadSafeContextGetContext(safe)};
    LLVMContextRef cx = cg.cx;
    cg.module = LLVMModuleCreateWithNameInContext("kernel", cx);
    LLVMSetTarget(cg.module, triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(o->machine);
    LLVMSetModuleDataLayout(cg.module, layout);
    cg.b = LLVMCreateBuilderInContext(cx);
    cg.void_t = LLVMVoidTypeInContext(cx);
    cg.i1 = LLVMInt1TypeInContext(cx), cg.i8 = LLVMInt8TypeInContext(cx), cg.i16 = LLVMInt16TypeInContext(cx);
    cg.i32 = LLVMInt32TypeInContext(cx), cg.i64 = LLVMInt64TypeInContext(cx);
    cg.f32 = LLVMFloatTypeInContext(cx), cg.f64 = LLVMDoubleTypeInContext(cx),
    cg.ptr = LLVMPointerTypeInContext(cx, 0);
    cg.v1 = LLVMVectorType(cg.i1, LANES), cg.v8 = LLVMVectorType(cg.i8, LANES),
    cg.v16 = LLVMVectorType(cg.i16, LANES);
    cg.vi32 = LLVMVectorType(cg.i32, LANES), cg.vi64 = LLVMVectorType(cg.i64, LANES);
    cg.vf32 = LLVMVectorType(cg.f32, LANES), cg.vf64 = LLVMVectorType(cg.f64, LANES);
    LT param = cg.ptr;
    cg.fn = LLVMAddFunction(cg.module, "kernel", LLVMFunctionType(cg.void_t, &param, 1, false));
    cg.call = LLVMGetParam(cg.fn, 0);
    cg.entry = LLVMAppendBasicBlockInContext(cx, cg.fn, "entry");
    LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(cx, cg.fn, "start");
    LLVMPositionBuilderAtEnd(cg.b, cg.entry);
    LLVMBuildBr(cg.b, start);
    LLVMPositionBuilderAtEnd(cg.b, start);
#define FIELD(t, f) cg_load(&cg, t, cg_bytes(&cg, cg.call, cg_int(&cg, (int64_t)offsetof(RtCall, f))), 4)
    LV args = FIELD(cg.ptr, arg);
    cg.n_args = kernel_n_args(&o->k) + o->k.n_ragged + 1;
    for (int i = 0; i < cg.n_args; i++)
        cg.arg[i] = cg_load(&cg, cg.ptr, cg_gep(&cg, cg.ptr, args, cg_int(&cg, i)), 8);
    cg.task = cg_i64(&cg, FIELD(cg.i32, task));
    cg.n_tasks = cg_i64(&cg, FIELD(cg.i32, n_tasks));
    cg.phase = cg_i64(&cg, FIELD(cg.i32, phase));
    cg.thread = cg_i64(&cg, FIELD(cg.i32, thread));
    cg.scratch = FIELD(cg.ptr, scratch);
#undef FIELD
    emit(&cg, &o->k);
    LLVMBuildRetVoid(cg.b);
    if (LLVMVerifyModule(cg.module, LLVMPrintMessageAction, &message)) abort();
    LLVMDisposeMessage(message);
    LLVMPassBuilderOptionsRef opts = LLVMCreatePassBuilderOptions();
    one_check(LLVMRunPasses(cg.module, "function(early-cse,instcombine<no-verify-fixpoint>,simplifycfg)",
                            o->machine, opts));
    LLVMDisposePassBuilderOptions(opts);
    if (getenv("ONE_ASM")) {
        LLVMMemoryBufferRef text;
        LLVMTargetMachineEmitToMemoryBuffer(o->machine, cg.module, LLVMAssemblyFile, &message, &text);
        fwrite(LLVMGetBufferStart(text), 1, LLVMGetBufferSize(text), stdout);
        LLVMDisposeMemoryBuffer(text);
    }
    LLVMDisposeBuilder(cg.b);
    LLVMOrcLLJITBuilderRef b = LLVMOrcCreateLLJITBuilder();
    LLVMTargetMachineRef again =
        LLVMCreateTargetMachine(t, triple, target->cpu, target->features, LLVMCodeGenLevelDefault,
                                LLVMRelocDefault, LLVMCodeModelJITDefault);
    LLVMOrcLLJITBuilderSetJITTargetMachineBuilder(
        b, LLVMOrcJITTargetMachineBuilderCreateFromTargetMachine(again));
    one_check(LLVMOrcCreateLLJIT(&o->jit, b));
    LLVMOrcJITDylibRef lib = LLVMOrcLLJITGetMainJITDylib(o->jit);
    LLVMOrcDefinitionGeneratorRef process;
    one_check(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(
        &process, LLVMOrcLLJITGetGlobalPrefix(o->jit), NULL, NULL));
    LLVMOrcJITDylibAddGenerator(lib, process);
    one_check(LLVMOrcLLJITAddLLVMIRModule(o->jit, lib, LLVMOrcCreateNewThreadSafeModule(cg.module, safe)));
    LLVMOrcExecutorAddress at;
    one_check(LLVMOrcLLJITLookup(o->jit, &at, "kernel"));
    o->fn = (RtKernelFn *)(uintptr_t)at;
    LLVMOrcDisposeThreadSafeContext(safe);
    LLVMDisposeTargetData(layout);
    LLVMDisposeMessage(triple);
    return true;
}

static inline void one_free(OneKernel *o) {
    if (o->jit) LLVMOrcDisposeLLJIT(o->jit);
    if (o->machine) LLVMDisposeTargetMachine(o->machine);
    if (o->arena) arena_destroy(o->arena);
}

// All tasks of all phases, in order.  arg: operands, results, offsets of ragged symbols, workspace.
static inline int64_t one_tasks(const OneKernel *o, int phase, void *const *arg, const int64_t *sym) {
    TaskCount t = o->d.tasks[phase % o->d.n_phases];
    int64_t n = t.n;
    if (t.sym && t.sym->kind == SYM_RAGGED) {
        const int32_t *offsets = arg[kernel_n_args(&o->k)];
        n *= offsets[t.sym->groups * t.sym->leaves];
    } else if (t.sym) {
        n *= t.sym->kind == SYM_LEAF ? t.sym->bound : sym[t.sym->id];
    }
    return rt_count_tasks(&(RtTasks){n, t.grain, t.times, -1, t.extra}, NULL);
}

static inline void one_run(const OneKernel *o, void *const *arg, const int64_t *sym, void *scratch) {
    for (int p = 0; p < o->d.n_phases * o->d.n_rounds; p++) {
        int64_t n = one_tasks(o, p, arg, sym);
        for (int64_t i = n - 1; i >= 0; i--) { // backwards: the order must not matter
            RtCall c = {.arg = arg,
                        .sym = sym,
                        .task = (int32_t)i,
                        .n_tasks = (int32_t)n,
                        .phase = p,
                        .scratch = scratch};
            o->fn(&c);
        }
    }
}

#endif
