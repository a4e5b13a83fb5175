// Objects of kernels, compiled in parallel or taken from the cache, and loaded into this process by ORC.
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "codegen/cpu/cpu.h"

// ---- compiling in parallel -----------------------------------------------------------------------------

typedef struct {
    const CpuTarget *t;
    const EmittedPlan *e;
    const CodeCache *cache;
    Code *code;
    atomic_int next, compiled, cached;
} Work;

static void *compile_kernels(void *arg) {
    Work *w = arg;
    for (int i; (i = atomic_fetch_add(&w->next, 1)) < w->e->n_kernels;) {
        const PlanKernel *k = &w->e->kernel[i];
        if (!k->made_by) continue;
        if (cache_load(w->cache, w->t, k->key, &w->code[i])) {
            atomic_fetch_add(&w->cached, 1);
            continue;
        }
        w->code[i] = cpu_emit(w->t, k, w->cache);
        cache_store(w->cache, w->t, k->key, &w->code[i]);
        atomic_fetch_add(&w->compiled, 1);
    }
    return NULL;
}

enum { MAX_COMPILE_THREADS = 64 };

void cpu_objects(const CpuTarget *t, const EmittedPlan *e, const CompileOpts *opts, Code *code, CompileStats *stats) {
    CodeCache cache =
        opts->cache_dir && !*opts->cache_dir ? (CodeCache){.on = false} : cache_open(opts->cache_dir);
    Work w = {.t = t, .e = e, .cache = &cache, .code = code};
    int n = opts->threads > 0 ? opts->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (n > MAX_COMPILE_THREADS) n = MAX_COMPILE_THREADS;
    if (n > e->n_kernels) n = e->n_kernels;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 16 << 20);            // LLVM recurses deeply
    pthread_t thread[MAX_COMPILE_THREADS];
    int started = 0;
    while (started < n - 1 && !pthread_create(&thread[started], &attr, compile_kernels, &w)) started++;
    compile_kernels(&w);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    pthread_attr_destroy(&attr);
    *stats = (CompileStats){
        .kernels = e->n_kernels, .compiled = atomic_load(&w.compiled), .cached = atomic_load(&w.cached)};
    for (int i = 0; i < e->n_kernels; i++) {
        if (e->kernel[i].is_exchange) stats->kernels--;      // the runtime's
        else stats->reference += !e->kernel[i].made_by;
    }
    if (stats->compiled) cache_trim(&cache);
}

// ---- loading -------------------------------------------------------------------------------------------

struct Jit { LLVMOrcLLJITRef jit; };

static bool failed(LLVMErrorRef error, const char *what, Diag *d) {
    if (!error) return false;
    char *text = LLVMGetErrorMessage(error);
    diag_error(d, (Span){0}, "%s: %s", what, text);
    LLVMDisposeErrorMessage(text);
    return true;
}

static bool add_object(LLVMOrcLLJITRef jit, LLVMOrcJITDylibRef lib, const Object *o, const char *name, Diag *d) {
    LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(o->bytes, o->n, name);
    return !failed(LLVMOrcLLJITAddObjectFile(jit, lib, buffer), "can't load compiled code", d);
}

Jit *jit_load(const EmittedPlan *e, const Code *code, RtKernelFn **fn, Diag *d) {
    LLVMOrcLLJITRef jit = NULL;
    if (failed(LLVMOrcCreateLLJIT(&jit, LLVMOrcCreateLLJITBuilder()),
               "can't start the loader of compiled code", d))
        return NULL;
    LLVMOrcJITDylibRef lib = LLVMOrcLLJITGetMainJITDylib(jit);
    LLVMOrcDefinitionGeneratorRef process = NULL;          // memcpy, sin, ..
    bool ok = !failed(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(
                          &process, LLVMOrcLLJITGetGlobalPrefix(jit), NULL, NULL),
                      "can't see this process's symbols", d);
    if (ok) LLVMOrcJITDylibAddGenerator(lib, process);
    int n_parts;
    PartName *part = code_parts(code, e->n_kernels, &n_parts);
    for (int i = 0; ok && i < n_parts; i++) ok = add_object(jit, lib, part_wait(part[i].text), part[i].text, d);
    free(part);
    for (int i = 0; ok && i < e->n_kernels; i++)
        if (code[i].object.bytes) ok = add_object(jit, lib, &code[i].object, e->kernel[i].symbol, d);
    for (int i = 0; ok && i < e->n_kernels; i++) {
        if (!code[i].object.bytes) continue;
        LLVMOrcExecutorAddress at = 0;
        ok = !failed(LLVMOrcLLJITLookup(jit, &at, e->kernel[i].symbol), "can't find compiled code", d);
        fn[i] = (RtKernelFn *)(uintptr_t)at;
    }
    if (!ok) {
        LLVMOrcDisposeLLJIT(jit);
        return NULL;
    }
    Jit *j = malloc(sizeof *j);
    if (!j) abort();
    j->jit = jit;
    return j;
}

void jit_free(Jit *j) {
    if (!j) return;
    LLVMErrorRef error = LLVMOrcDisposeLLJIT(j->jit);
    if (error) LLVMConsumeError(error);
    free(j);
}
