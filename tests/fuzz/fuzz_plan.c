// A plan block.  What passes the check can be opened, filled and looked at without leaving its memory.
#include <stdlib.h>
#include <string.h>
#include "runtime/plan.h"
#include "runtime/exec.h"
#include "tests/fuzz/fuzz.h"

static void nothing(const RtCall *c) { (void)c; }

static void touch(RtPlanInstance *p) {
    RtError e;
    volatile unsigned char sum = 0;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        Tensor v = rt_tensor_view(p, t);
        const char *name = rt_tensor_name(p, t);
        if (!rt_tensor(p, name)) abort();
        rt_tensor_nearest(p, name);
        int64_t bytes = dtype_bytes(v.dtype) * rt_tensor_elements(p, t);
        for (int64_t k = 0; k < bytes; k++) sum = (unsigned char)(sum + ((unsigned char *)v.data)[k]);
        for (int k = 0; k < p->n_programs; k++) rt_is_output_of(p, k, t);
    }
    for (int k = 0; k < p->n_programs; k++) {
        rt_program(p, RT_TEXT(p->plan, p->program[k].name));
        rt_output(p, k, "loss");
        rt_program_flops(p, k);
    }
    for (int i = 0; i < p->n_syms; i++) rt_read_sym(p, i);
    rt_parameters(p);
    rt_init(p, 1, &e);
}

void fuzz_plan(const uint8_t *data, size_t n) {
    RtPlan *plan = aligned_alloc(64, n / 64 * 64 + 64);
    memcpy(plan, data, n);
    RtError e;
    RtPlanInstance *p;
    if (rt_plan_check(plan, n, &e) == RT_OK && plan->persistent_bytes <= 1 << 20 &&
        plan->step_bytes <= 1 << 20) {
        RtKernelFn **kernels = malloc((plan->kernels.n + 1) * sizeof *kernels);
        for (uint32_t i = 0; i < plan->kernels.n; i++) kernels[i] = nothing;
        if (rt_plan_open(plan, kernels, 1, &p, &e) == RT_OK) {
            touch(p);
            rt_plan_close(p);
        }
        free(kernels);
    }
    free(plan);
}
