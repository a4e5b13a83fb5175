#include "runtime/stop.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

// Set by the handler or by the monitor's thread, read between steps.
static atomic_int stop_signal;
static atomic_int stop_alarm;                  // seconds on the monotonic clock when it came, cut to an int
static atomic_int save_asked;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;
static const int noted[] = {SIGINT, SIGTERM, SIGUSR2, SIGUSR1};
enum { NOTED = sizeof noted / sizeof *noted };
static struct sigaction old[NOTED];

// Supervisors signal the process and its group, so the same signal may come twice at once: only one that
// comes over two seconds after the first ends the run without saving.
static void on_signal(int signal_number) {
    if (signal_number == SIGUSR1) {
        save_asked = 1;
        return;
    }
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
        struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigemptyset(&a.sa_mask);
        for (int i = 0; i < NOTED; i++) sigaction(noted[i], &a, &old[i]);
    }
    pthread_mutex_unlock(&lock);
}

void rt_stop_close(void) {
    pthread_mutex_lock(&lock);
    if (--users == 0) {
        for (int i = 0; i < NOTED; i++) sigaction(noted[i], &old[i], NULL);
        stop_signal = save_asked = 0;
    }
    pthread_mutex_unlock(&lock);
}

int rt_stop_signal(void) { return stop_signal; }
bool rt_save_is_asked(void) { return save_asked; }
void rt_save_is_done(void) { save_asked = 0; }

void rt_stop_note(int signal_number) {
    if (signal_number == SIGUSR1) save_asked = 1;
    else if (!stop_signal) stop_signal = signal_number;
}
