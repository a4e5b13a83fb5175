// Threads, a generation barrier on a futex.
#include "runtime/team.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LEAST_SPINS = 32, MOST_SPINS = 1 << 13 };           // pauses: about 1 us to 300 us
enum { SHORT_SLEEP_NS = 100000 };                          // spinning would have been better

typedef struct {
    _Alignas(64) RtTeam *team;
    pthread_t thread;
    int       number, spins;
} Member;

struct RtTeam {
    _Alignas(64) _Atomic uint32_t generation;              // how often all have met
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic int arrived;
    _Atomic int threads;
    int       started;                                     // beside the caller
    bool      can_spin, over;
    RtTeamFn *f;
    void     *arg;
    Member    member[];
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void futex(_Atomic uint32_t *at, int what, uint32_t value) {
    syscall(SYS_futex, at, what, value, NULL, NULL, 0);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool spin(const RtTeam *t, Member *m, uint32_t generation) {
    for (int i = t->can_spin ? m->spins : 0; i > 0; i--) {
        if (atomic_load_explicit(&t->generation, memory_order_acquire) != generation) {
            if (m->spins < MOST_SPINS) m->spins *= 2;
            return true;
        }
        relax();
    }
    if (m->spins > LEAST_SPINS) m->spins /= 2;
    return false;
}

void rt_team_barrier(RtTeam *t, int thread) {
    if (t->threads == 1) return;
    uint32_t generation = atomic_load_explicit(&t->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->threads - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store(&t->generation, generation + 1);
        // whoever counts itself as a sleeper after this look finds the new generation and doesn't sleep
        if (atomic_load(&t->sleepers)) futex(&t->generation, FUTEX_WAKE_PRIVATE, INT32_MAX);
        return;
    }
    if (spin(t, &t->member[thread], generation)) return;
    int64_t begin_ns = now_ns();
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->generation) == generation) futex(&t->generation, FUTEX_WAIT_PRIVATE, generation);
    atomic_fetch_sub(&t->sleepers, 1);
    // else a thread whose spins have become too short to be rewarded would sleep at every barrier
    Member *m = &t->member[thread];
    if (now_ns() - begin_ns < SHORT_SLEEP_NS && m->spins <= MOST_SPINS / 4) m->spins *= 4;
}

static void *live(void *arg) {
    Member *m = arg;
    RtTeam *t = m->team;
    for (;;) {
        rt_team_barrier(t, m->number);
        if (t->over) return NULL;
        t->f(t->arg, m->number);
        rt_team_barrier(t, m->number);
    }
}

RtTeam *rt_team_open(int threads) {
    size_t bytes = (sizeof(RtTeam) + (size_t)threads * sizeof(Member) + 63) / 64 * 64;
    RtTeam *t = aligned_alloc(64, bytes);
    if (!t) return NULL;
    *t = (RtTeam){.threads = threads, .can_spin = threads <= sysconf(_SC_NPROCESSORS_ONLN)};
    for (int i = 0; i < threads; i++)
        t->member[i] = (Member){.team = t, .number = i, .spins = MOST_SPINS / 8};
    sigset_t all, was;                                     // signals are for the caller's thread
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &was);
    int error = 0;
    for (int i = 1; i < threads && !error; i++) {
        error = pthread_create(&t->member[i].thread, NULL, live, &t->member[i]);
        if (!error) t->started++;
    }
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    if (!error) return t;
    t->threads = t->started + 1;                           // who is there waits for as many as there are
    rt_team_close(t);
    errno = error;
    return NULL;
}

void rt_team_close(RtTeam *t) {
    if (!t) return;
    t->over = true;
    rt_team_barrier(t, 0);
    for (int i = 1; i <= t->started; i++) pthread_join(t->member[i].thread, NULL);
    free(t);
}

void rt_team_run(RtTeam *t, RtTeamFn *f, void *arg) {
    t->f = f;
    t->arg = arg;
    rt_team_barrier(t, 0);
    f(arg, 0);
    rt_team_barrier(t, 0);
}
