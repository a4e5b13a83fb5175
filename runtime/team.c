// Threads, a generation barrier.
#include "runtime/team.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/wait.h"

typedef struct {
    _Alignas(64) RtTeam *team;
    pthread_t thread;
    int       number;
    RtSpin    spin;
} Member;

struct RtTeam {
    _Alignas(64) RtEvent met;                              // its value: how often all have met
    _Alignas(64) _Atomic int arrived;
    _Atomic int threads;
    int       started;                                     // beside the caller
    bool      can_spin, over;
    RtTeamFn *f;
    void     *arg;
    Member    member[];
};

void rt_team_barrier(RtTeam *t, int thread) {
    if (t->threads == 1) return;
    uint32_t generation = atomic_load_explicit(&t->met.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->threads - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        rt_event_raise(&t->met);
        return;
    }
    rt_event_wait(&t->met, generation, &t->member[thread].spin, t->can_spin, -1);
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
        t->member[i] = (Member){.team = t, .number = i, .spin = rt_spin_begin()};
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
