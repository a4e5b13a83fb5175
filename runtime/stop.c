#include "runtime/stop.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

// The only way a signal can be told: set by the handler, read between steps.
static volatile sig_atomic_t stop_signal;
static volatile sig_atomic_t stop_alarm;       // seconds on the monotonic clock when it came, cut to an int

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;
static struct sigaction old_int, old_term;

// Supervisors signal the process and its group, so the same signal may come twice at once: only one that
// comes over two seconds after the first ends the run without saving.
static void on_signal(int signal_number) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int now = (int)(t.tv_sec & 0x3fffffff);
    if (stop_signal && now > stop_alarm + 2) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
        return;
    }
    if (!stop_signal) stop_alarm = now;
    stop_signal = signal_number;
}

void rt_stop_open(void) {
    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        stop_signal = 0;
        struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigemptyset(&a.sa_mask);
        sigaction(SIGINT, &a, &old_int);
        sigaction(SIGTERM, &a, &old_term);
    }
    pthread_mutex_unlock(&lock);
}

void rt_stop_close(void) {
    pthread_mutex_lock(&lock);
    if (--users == 0) {
        sigaction(SIGINT, &old_int, NULL);
        sigaction(SIGTERM, &old_term, NULL);
    }
    pthread_mutex_unlock(&lock);
}

int rt_stop_signal(void) { return stop_signal; }
