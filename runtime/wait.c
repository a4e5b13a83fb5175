// Spins that learn, then a futex.
#include "runtime/wait.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LEAST_SPINS = 32, MOST_SPINS = 1 << 13 };           // pauses: about 1 us to 300 us
enum { SHORT_SLEEP_NS = 100000 };                          // spinning would have been better

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

RtSpin rt_spin_begin(void) { return (RtSpin){MOST_SPINS / 8}; }

void rt_event_raise(RtEvent *e) {
    atomic_fetch_add(&e->value, 1);
    // whoever counts itself as a sleeper after this look finds the new value and doesn't sleep
    if (atomic_load(&e->sleepers)) syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static bool spin(RtEvent *e, uint32_t seen, RtSpin *s) {
    for (int i = s->spins; i > 0; i--) {
        if (rt_event_value(e) != seen) {
            if (s->spins < MOST_SPINS) s->spins *= 2;
            return true;
        }
        relax();
    }
    if (s->spins > LEAST_SPINS) s->spins /= 2;
    return false;
}

void rt_event_wait(RtEvent *e, uint32_t seen, RtSpin *s, bool can_spin, int64_t ns) {
    if (can_spin && spin(e, seen, s)) return;
    int64_t begin_ns = now_ns(), left = ns;
    atomic_fetch_add(&e->sleepers, 1);
    while (atomic_load(&e->value) == seen && (ns < 0 || left > 0)) {
        struct timespec t = {left / 1000000000, left % 1000000000};
        syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, seen, ns < 0 ? NULL : &t, NULL, 0);
        if (ns >= 0) left = ns - (now_ns() - begin_ns);
    }
    atomic_fetch_sub(&e->sleepers, 1);
    // else a thread whose spins have become too short to be rewarded would sleep every time
    if (now_ns() - begin_ns < SHORT_SLEEP_NS && s->spins <= MOST_SPINS / 4) s->spins *= 4;
}
