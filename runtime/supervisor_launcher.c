// The command that starts all ranks: its process, its output, its end.
#include "runtime/supervisor_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

void sv_read_output(Supervisor *s) {
    char piece[4096];
    for (ssize_t n; s->output >= 0 && (n = read(s->output, piece, sizeof piece)) != 0;) {
        if (n < 0) return;
        if (s->launcher_log) {
            fwrite(piece, 1, (size_t)n, s->launcher_log);
            fflush(s->launcher_log);
        }
        size_t room = sizeof s->last_words - 1, had = strlen(s->last_words), more = (size_t)n;
        const char *at = piece;
        if (more > room) at += more - room, more = room;
        if (had + more > room) {
            memmove(s->last_words, s->last_words + had + more - room, room - more);
            had = room - more;
        }
        memcpy(s->last_words + had, at, more);
        s->last_words[had + more] = 0;
    }
    if (s->output >= 0) close(s->output);
    s->output = -1;
}

bool sv_start_launcher(Supervisor *s) {
    int out[2];
    if (pipe(out) != 0) return false;
    for (int i = 0; i < 2; i++) fcntl(out[i], F_SETFD, FD_CLOEXEC);
    pid_t parent = getpid();
    s->launcher = fork();
    if (s->launcher == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(LOST);
        sv_default_signals();
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        execvp(s->command[0], s->command);
        fprintf(stderr, "%s: %s\n", s->command[0], strerror(errno));
        _exit(127);
    }
    close(out[1]);
    if (s->launcher < 0) {
        s->launcher = 0;
        close(out[0]);
        return false;
    }
    setpgid(s->launcher, s->launcher);
    s->output = out[0];
    fcntl(s->output, F_SETFL, O_NONBLOCK);
    return true;
}

void sv_reap(Supervisor *s, int64_t now_ns) {
    int status = 0, of_launcher = 0;
    bool has_ended = false;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {        // ranks whose mpirun was killed become ours
        if (pid != s->launcher) continue;
        has_ended = true;
        of_launcher = status;
    }
    if (!has_ended) return;
    status = of_launcher;
    s->launcher = 0;
    s->launcher_signal = WIFSIGNALED(status) && !s->is_asked ? WTERMSIG(status) : 0;
    s->launcher_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    sv_read_output(s);
    if (sv_n_in(s, LEFT) == s->ranks || s->end_ns || sv_n_in(s, PRESENT)) return;       // whose connections will close
    sv_begin_end(s, LAUNCHER, -1, now_ns);
    snprintf(s->why, sizeof s->why, "%s ended with status %d", s->command[0], s->launcher_status);
}
