// Signals to the supervisor are passed on to ranks.
#include "runtime/supervisor_priv.h"

#include <signal.h>
#include <sys/prctl.h>


static volatile sig_atomic_t came[NSIG];

static void on_signal(int signal_number) { came[signal_number] = 1; }

static const int passed_on[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGUSR1};
enum { PASSED_ON = sizeof passed_on / sizeof *passed_on };

void sv_note_signals(void) {
    struct sigaction a = {.sa_handler = on_signal}, old;
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < PASSED_ON; i++) {
        sigaction(passed_on[i], NULL, &old);
        bool is_nohup = passed_on[i] == SIGHUP && old.sa_handler == SIG_IGN;
        if (!is_nohup) sigaction(passed_on[i], &a, NULL);
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);          // ranks would hear nothing any more, and end
}

void sv_default_signals(void) {
    for (int i = 0; i < PASSED_ON; i++) signal(passed_on[i], SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTSTP, SIG_DFL);
}

void sv_pass_on_signals(Supervisor *s, int64_t now_ns) {
    for (int i = 0; i < PASSED_ON; i++) {
        int n = passed_on[i];
        if (!came[n]) continue;
        came[n] = 0;
        if (n == SIGUSR1) {
            sv_tell_all(s, WIRE_SIGNAL, n, "");
        } else if (!s->signal) {
            s->signal = n == SIGHUP ? SIGTERM : n;           // the terminal is gone, the run is not
            s->signal_ns = now_ns;
            sv_tell_all(s, WIRE_SIGNAL, s->signal, "");
            sv_event(s, "signal", json_pack("{s:i}", "signal", n));
        } else if (now_ns - s->signal_ns > 2 * SECOND) {
            if (sv_begin_end(s, LAUNCHER, -1, now_ns))
                snprintf(s->why, sizeof s->why, "a second signal: ended without saving");
        }
    }
}
