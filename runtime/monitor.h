// The rank's end of supervision: a page that says what the rank does, and a thread that tells the supervisor
// (supervisor.h), hears from it, and ends the process when the run is over or nobody is there any more.
//
// The thread touches sockets only, so it works while the rank hangs in a kernel or in MPI.  Without a supervisor only
// the page is kept.
#ifndef RUNTIME_MONITOR_H
#define RUNTIME_MONITOR_H
#include <stdatomic.h>
#include "runtime/plan.h"
#include "runtime/wire.h"

// One per process: ranks that are threads share it.
extern WirePage *rt_page;

static inline void rt_beat(void) {
    uint64_t n = atomic_load_explicit(&rt_page->beats, memory_order_relaxed);
    atomic_store_explicit(&rt_page->beats, n + 1, memory_order_relaxed);
}
static inline void rt_beat_step(uint32_t plan_step) {
    atomic_store_explicit(&rt_page->plan_step, plan_step, memory_order_relaxed);
    rt_beat();
}
static inline void rt_page_waits(bool waits) {
    atomic_store_explicit(&rt_page->waits, waits, memory_order_relaxed);
    rt_beat();
}
static inline void rt_page_phase(WirePhase phase) {
    atomic_store_explicit(&rt_page->phase, phase, memory_order_relaxed);
    rt_beat();
}

// Called first of all, before MPI is opened, by a process that a supervisor may have started: connects, sends stderr to
// this rank's log.  Nothing happens where there is no supervisor.  RT_TIMEOUT: it can't be reached.
RtStatus rt_monitor_open(RtError *e);
bool     rt_is_supervised(void);
// The supervisor will find that the rank has ended as it should.
void     rt_monitor_close(int status);
// Whose steps plan_step counts; NULL before it is closed.
void     rt_monitor_plan(const RtPlanInstance *p);
// This rank is about to end all: tells why, and returns when the supervisor can know.
void     rt_monitor_failed(const RtError *e);

#endif
