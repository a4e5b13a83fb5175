// Runs a program: every thread of the plan's team walks all steps.
//
//   step 0, phase 0:  tasks 0 .. n   handed out by one shared counter        barrier
//   step 0, phase 1:  ...                                                    barrier
//   ..                               as often as the kernel has rounds
//   step 1, ...                      a step that defines a row symbol: thread 0 reads it again, barrier
//
// A phase of one task is thread 0's, and one barrier stands behind as many of them as follow each other: most
// steps of a token are so small.
//
// What a task computes depends on sizes only and tasks of a phase are independent, so it doesn't matter which
// thread takes which, nor how many there are.  The counter of the next phase is reset while this one runs:
// the threads use two in turn, and whoever is in phase j has passed the barrier behind phase j - 1.
#include "runtime/exec.h"

#include "runtime/monitor.h"
#include "runtime/ranks.h"
#include "runtime/team.h"
#include "runtime/trace.h"

static void run_alone(RtPlanInstance *p, RtCall *call, uint32_t step, RtKernelFn *run) {
    RtTraceEvent event = {.step = (int32_t)step, .phase = call->phase, .tasks = 1};
    if (p->trace) {
        rt_trace_work(p->trace, (int)step, rt_step_work(p, &p->step[step]));
        event.begin_ns = rt_now_ns();
    }
    call->task = 0;
    run(call);
    if (!p->trace) return;
    event.end_ns = rt_now_ns();
    rt_trace_add(p->trace, 0, event);
}

// Messages move when somebody looks after them: thread 0 does between tasks, when PROGRESS_NS have gone by.
enum { PROGRESS_NS = 100000 };

static void progress(RtRanks *r, int64_t *last_ns) {
    int64_t now = rt_now_ns();
    if (now - *last_ns < PROGRESS_NS) return;
    rt_comm_progress(r->comm);
    *last_ns = now;
}

static void run_thread(RtPlanInstance *p, uint32_t first, uint32_t n_steps, int thread) {
    const RtKernel *kernel = RT_TABLE(p->plan, RtKernel, kernels);
    RtCall call = {
        .sym = p->sym,
        .thread = thread,
        .scratch = p->scratch + (size_t)thread * RT_SCRATCH_BYTES,
        .ranks = p->ranks};
    int turn = 0;
    int64_t progress_ns = 0;
    bool alone = false;                      // thread 0 has worked alone since the last barrier
    for (uint32_t i = first; i < first + n_steps; i++) {
        const RtStep *step = &p->step[i];
        RtKernelFn *run = p->kernel[step->kernel] ? p->kernel[step->kernel] : moec_exchange;
        call.arg = p->arg + step->first_arg;
        call.data = p->kernel_data[step->kernel];
        uint32_t n_phases = kernel[step->kernel].n_phases;
        if (thread == 0) rt_beat_step(i);
        for (uint32_t phase = 0; phase < n_phases * kernel[step->kernel].n_rounds; phase++) {
            int64_t n = rt_count_tasks(&step->tasks[phase % n_phases], p->sym);
            if (n == 0) continue;
            call.phase = (int32_t)phase;
            call.n_tasks = (int32_t)n;
            if (n == 1) {
                alone = true;
                if (thread == 0) run_alone(p, &call, i, run);
                if (thread == 0 && p->ranks) progress(p->ranks, &progress_ns);
                continue;
            }
            if (alone) rt_team_barrier(p->team, thread);
            alone = false;
            if (thread == 0) atomic_store_explicit(&p->next[turn ^ 1], 0, memory_order_relaxed);
            RtTraceEvent event = {.step = (int32_t)i, .phase = (int32_t)phase};
            if (p->trace) {
                if (thread == 0) rt_trace_work(p->trace, (int)i, rt_step_work(p, step));
                event.begin_ns = rt_now_ns();
            }
            for (int task; (task = atomic_fetch_add_explicit(&p->next[turn], 1, memory_order_relaxed)) < n;) {
                call.task = task;
                run(&call);
                event.tasks++;
                if (thread == 0) rt_beat();
                if (thread == 0 && p->ranks) progress(p->ranks, &progress_ns);
            }
            if (p->trace && event.tasks) {
                event.end_ns = rt_now_ns();
                rt_trace_add(p->trace, thread, event);
            }
            rt_team_barrier(p->team, thread);
            turn ^= 1;
        }
        if (step->defines_sym >= 0) {
            if (thread == 0) rt_read_sym(p, step->defines_sym);
            rt_team_barrier(p->team, thread);
            alone = false;
        }
    }
}

typedef struct { RtPlanInstance *p; uint32_t first, n; } Job;

static void run_job(void *arg, int thread) {
    const Job *job = arg;
    run_thread(job->p, job->first, job->n, thread);
}

void rt_run_steps(RtPlanInstance *p, int first, int n) {
    atomic_store(&p->next[0], 0);
    atomic_store(&p->next[1], 0);
    int64_t begin_ns = p->trace ? rt_now_ns() : 0;
    rt_team_run(p->team, run_job, &(Job){p, (uint32_t)first, (uint32_t)n});
    if (!p->trace || p->trace->runs == p->trace->max_runs) return;
    p->trace->run_ns += rt_now_ns() - begin_ns;
    p->trace->runs++;
}

void rt_run(RtPlanInstance *p, int program) {
    rt_run_steps(p, (int)p->program[program].first_step, (int)p->program[program].n_steps);
}
