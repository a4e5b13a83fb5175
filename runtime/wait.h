// Waiting for another thread: a little spinning, then sleep.
//
// A fixed long spin is best on an idle machine and ruinous on a busy one, where it burns the time slice that the
// thread waited for needs: so each waiter spins longer after spins that were rewarded, or a short sleep, and
// shorter after those that were not.
#ifndef RUNTIME_WAIT_H
#define RUNTIME_WAIT_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// Raised by anyone, waited for by anyone: who saw value v waits until it is another.
typedef struct {
    _Atomic uint32_t value, sleepers;
} RtEvent;

typedef struct { int spins; } RtSpin;           // one waiter's habit

RtSpin rt_spin_begin(void);
void   rt_event_raise(RtEvent *e);
// Until e's value isn't `seen`, or ns have passed (< 0: however long).
void   rt_event_wait(RtEvent *e, uint32_t seen, RtSpin *spin, bool can_spin, int64_t ns);

static inline uint32_t rt_event_value(RtEvent *e) { return atomic_load_explicit(&e->value, memory_order_acquire); }

#endif
