#include "runtime/supervisor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <jansson.h>
#include <linux/memfd.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/checkpoint.h"
#include "runtime/files.h"
#include "runtime/outlet.h"
#include "runtime/trace.h"
#include "runtime/wire.h"

#define SECOND INT64_C(1000000000)

static const int64_t DEFAULT_STALL_NS = 60 * SECOND;
static const int64_t PATIENCE_NS = 600 * SECOND;     // while ranks start (compiling) or save
static const int64_t TOLD_NS = SECOND / 2;           // for ranks to end by themselves, then they are killed ..
static const int64_t ALONE_NS = 2 * SECOND;          // for their launcher to end as well, then it is told to ..
static const int64_t KILLED_NS = 4 * SECOND;         // .. and killed, so long after the beginning of the end
static const int64_t LATE_NS = 5 * SECOND; // the last ranks after the first that ended; the launcher after them
static const int64_t FAR_NS = 10 * SECOND;           // ranks of a host cut off have ended themselves by then

enum { LAST_WORDS_MS = 2000 };                       // for what was not read so far
enum { LOST = 76, GAVE_UP = 77, STOPPED = 75, SAME_STEP = 3, MOST_BACKOFF = 60, LINE = 1200 };

typedef enum { ABSENT, PRESENT, LEFT, GONE } State;  // LEFT: it said goodbye

typedef struct {
    State   state;
    Wire    wire;
    char    host[128];
    bool    is_local;
    int     pid, status;             // LEFT: its exit status
    WirePlace at;
    WireSilence silence, stall;
    // its log
    int64_t log_at;                  // bytes of it that were read
    char    partial[LINE];           // a line that has no end yet
    size_t  n_partial;
} Rank;

// A connection that hasn't said who it is.
typedef struct { Wire wire; int64_t since_ns; } Caller;
enum { STRANGERS = 16 };             // there is room for so many that never will

// A line of ranks other than the first, held back until others may have said the same.
typedef struct { char text[LINE]; int rank, n; int64_t ns; } Held;
enum { HELD = 64 };
static const int64_t HOLD_NS = SECOND / 2;

typedef enum { NOTHING, FAILED, LOST_RANK, SILENT, STUCK, LAUNCHER } Cause;

typedef struct {
    const RtSuperviseOpts *o;
    Rank   *rank;
    Caller *caller;                  // [ranks + STRANGERS]
    char    secret[WIRE_SECRET];
    WirePages *pages;                // NULL: there are none
    int     pages_file;
    int     listener, port;
    char    host[128];
    FILE   *events, *launcher_log;
    RtOutlet out;
    Held    held[HELD];
    int     n_held;
    // the attempt
    int     attempt, output;         // output: of the launcher; -1: closed
    pid_t   launcher;                // 0: it has ended ..
    int     launcher_status;         // .. like this
    int     launcher_signal;         // that killed it; 0: none, or it was sent from here
    char    last_words[LINE];        // of the launcher
    bool    anybody;                 // at least one rank has called
    Cause   cause;
    int     failed_rank, failed_status;
    char    why[LINE + 400];
    int64_t end_ns;                  // when the end began; 0: it did not
    bool    is_told, is_killed, is_asked;
    int64_t ping_ns, log_ns, left_ns;  // left_ns: since when ranks or the launcher are the last that are there
    // the run
    int64_t saved, failed_step;
    int     used, same_step;         // restarts since the last checkpoint; failures in failed_step in a row
    int     signal;                  // that was passed on
    int64_t signal_ns;
} Supervisor;

// ---- signals to the supervisor ------------------------------------------------------------------------------

static volatile sig_atomic_t came[NSIG];

static void on_signal(int signal_number) { came[signal_number] = 1; }

static const int passed_on[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGUSR1};
enum { PASSED_ON = sizeof passed_on / sizeof *passed_on };

static void note_signals(void) {
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

// ---- what is told -------------------------------------------------------------------------------------------

#define say(s, ...) rt_outlet_line(&(s)->out, "moec: " __VA_ARGS__)

// fields: taken over.
static void event(const Supervisor *s, const char *name, json_t *fields) {
    struct timespec now;
    struct tm utc;
    char when[48];
    clock_gettime(CLOCK_REALTIME, &now);
    size_t n = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &utc));
    snprintf(when + n, sizeof when - n, ".%03ldZ", now.tv_nsec / 1000000);
    json_t *all = json_pack("{s:s, s:s, s:i}", "time", when, "event", name, "attempt", s->attempt);
    json_object_update(all, fields);
    char *text = json_dumps(all, JSON_COMPACT);
    if (s->events && text) {
        fprintf(s->events, "%s\n", text);
        fflush(s->events);
    }
    free(text);
    json_decref(fields);
    json_decref(all);
}

// ---- lines of ranks -----------------------------------------------------------------------------------------

static void print_held(Supervisor *s, int64_t now_ns, bool all) {
    int kept = 0;
    for (int i = 0; i < s->n_held; i++) {
        Held *h = &s->held[i];
        if (!all && now_ns - h->ns < HOLD_NS) {
            s->held[kept++] = *h;
            continue;
        }
        if (h->n > 1) rt_outlet_line(&s->out, "[rank %d, ..] %s (x %d ranks)", h->rank, h->text, h->n);
        else rt_outlet_line(&s->out, "[rank %d] %s", h->rank, h->text);
    }
    s->n_held = kept;
}

// The first rank's lines are shown as they come; of the others what they say beside their dated ones, which are
// progress.
static void take_line(Supervisor *s, int rank, const char *text, int64_t now_ns) {
    bool is_dated = strlen(text) > 20 && text[4] == '-' && text[10] == 'T' && text[19] == 'Z';
    if (is_dated) return;
    if (rank == 0) {
        rt_outlet_line(&s->out, "%s", text);
        return;
    }
    for (int i = 0; i < s->n_held; i++)
        if (!strcmp(s->held[i].text, text)) {
            s->held[i].n++;
            return;
        }
    if (s->n_held == HELD) print_held(s, now_ns, true);
    Held *h = &s->held[s->n_held++];
    snprintf(h->text, sizeof h->text, "%s", text);
    h->rank = rank;
    h->n = 1;
    h->ns = now_ns;
}

static char *log_path(const Supervisor *s, int rank) { return rt_path("%s/log/rank-%04d.log", s->o->run_dir, rank); }

static void read_log(Supervisor *s, int i, int64_t now_ns) {
    Rank *r = &s->rank[i];
    char *path = log_path(s, i), piece[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    free(path);
    if (fd < 0) return;
    for (ssize_t n; (n = pread(fd, piece, sizeof piece, (off_t)r->log_at)) > 0; r->log_at += n)
        for (ssize_t k = 0; k < n; k++) {
            bool ends = piece[k] == '\n' || r->n_partial == sizeof r->partial - 1;
            if (piece[k] != '\n' && !ends) r->partial[r->n_partial++] = piece[k];
            if (!ends) continue;
            r->partial[r->n_partial] = 0;
            r->n_partial = 0;
            take_line(s, i, r->partial, now_ns);
        }
    close(fd);
}

// New lines only, where the run goes on with logs that are there.
static void skip_logs(Supervisor *s) {
    for (int i = 0; i < s->o->ranks; i++) {
        char *path = log_path(s, i);
        FILE *f = fopen(path, "r");
        if (f && fseek(f, 0, SEEK_END) == 0) s->rank[i].log_at = ftell(f);
        if (f) fclose(f);
        free(path);
    }
}

static void read_logs(Supervisor *s, int64_t now_ns, bool all) {
    read_log(s, 0, now_ns);
    if (all || now_ns - s->log_ns >= HOLD_NS) {
        for (int i = 1; i < s->o->ranks; i++) read_log(s, i, now_ns);
        s->log_ns = now_ns;
    }
    print_held(s, now_ns, all);
}

// ---- the launcher -------------------------------------------------------------------------------------------

static void read_output(Supervisor *s) {
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

static bool start_launcher(Supervisor *s) {
    int out[2];
    if (pipe(out) != 0) return false;
    for (int i = 0; i < 2; i++) fcntl(out[i], F_SETFD, FD_CLOEXEC);
    pid_t parent = getpid();
    s->launcher = fork();
    if (s->launcher == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(LOST);
        for (int i = 0; i < PASSED_ON; i++) signal(passed_on[i], SIG_DFL);
        signal(SIGPIPE, SIG_DFL);
        signal(SIGTSTP, SIG_DFL);
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        execvp(s->o->command[0], s->o->command);
        fprintf(stderr, "%s: %s\n", s->o->command[0], strerror(errno));
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

// ---- ranks --------------------------------------------------------------------------------------------------

static bool begin_end(Supervisor *s, Cause cause, int rank, int64_t now_ns) {
    if (s->end_ns) return false;
    s->cause = cause;
    s->failed_rank = rank;
    s->end_ns = now_ns;
    return true;
}

enum { WHERE = 400 };

// What a rank does.
static void say_where(const Supervisor *s, const WirePlace *at, char out[WHERE]) {
    static const char *const phase[PHASES] = {"at the start", "training", "while saving", "at the end"};
    bool in_step = at->phase <= PHASE_TRAIN && at->step > 0;
    snprintf(out, WHERE, "%s", phase[at->phase < PHASES ? at->phase : PHASE_TRAIN]);
    char *path = rt_path("%s/log/" WIRE_STEPS, s->o->run_dir), line[WHERE];
    FILE *f = in_step ? fopen(path, "re") : NULL;
    free(path);
    for (uint32_t i = 0; f && fgets(line, sizeof line, f); i++) {
        if (i != at->plan_step) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, WHERE, "in %.390s", line);
        break;
    }
    if (f) fclose(f);
}

static void describe(const Supervisor *s, int i, char *out, size_t bytes) {
    const Rank *r = &s->rank[i];
    char where[WHERE], step[32] = "";
    if (r->at.step > 0) snprintf(step, sizeof step, ", step %lld", (long long)r->at.step);
    say_where(s, &r->at, where);
    snprintf(out, bytes, "rank %d (process %d on %s)%s, %s", i, r->pid, r->host, step, where);
}

static void look_at_page(Supervisor *s, int i) {
    Rank *r = &s->rank[i];
    if (r->is_local && s->pages) r->at = wire_place(&s->pages->page[i]);
}

static void lose(Supervisor *s, Cause cause, int i, int64_t now_ns, const char *how) {
    char who[LINE];
    if (!begin_end(s, cause, i, now_ns)) return;
    for (int k = 0; k < s->o->ranks; k++) look_at_page(s, k);
    describe(s, i, who, sizeof who);
    snprintf(s->why, sizeof s->why, "%s: %s", who, how);
}

static void note_place(Supervisor *s, int i, WirePlace at, int64_t now_ns) {
    Rank *r = &s->rank[i];
    bool moved = at.beats != r->at.beats || at.phase != r->at.phase;
    r->at = at;
    if (moved) wire_silence(&r->stall, now_ns, true);
    if (i > 0 || at.saved <= s->saved) return;
    s->saved = at.saved;
    s->used = 0;
    event(s, "saved", json_pack("{s:I}", "step", (json_int_t)at.saved));
}

static void hear(Supervisor *s, int i, const WireMessage *m, int64_t now_ns) {
    Rank *r = &s->rank[i];
    note_place(s, i, m->place, now_ns);
    if (m->kind == WIRE_BYE) {
        r->state = LEFT;
        r->status = m->status;
    }
    if (m->kind == WIRE_FAILED && begin_end(s, FAILED, i, now_ns)) {
        s->failed_status = m->status;
        snprintf(s->why, sizeof s->why, "%s", m->text);
    }
}

static void lose_connection(Supervisor *s, int i, int64_t now_ns) {
    Rank *r = &s->rank[i];
    wire_close(&r->wire);
    if (r->state != PRESENT) return;
    if (r->is_local && s->pages) note_place(s, i, wire_place(&s->pages->page[i]), now_ns);
    r->state = GONE;
    lose(s, LOST_RANK, i, now_ns, "it is gone");
}

static void hear_rank(Supervisor *s, int i, int64_t now_ns) {
    Rank *r = &s->rank[i];
    WireMessage m;
    int got;
    bool heard = false;
    while ((got = wire_get(&r->wire, &m)) == 1) {
        hear(s, i, &m, now_ns);
        heard = true;
    }
    wire_silence(&r->silence, now_ns, heard);
    if (got < 0) lose_connection(s, i, now_ns);
}

// ---- who calls ----------------------------------------------------------------------------------------------

static void tell(Rank *r, WireKind kind, int status, const char *text) {
    WireMessage m = {.kind = kind, .status = status};
    wire_text(&m, text);
    if (wire_put(&r->wire, &m)) wire_flush(&r->wire);
}

static void take_caller(Supervisor *s, Wire *w, const WireMessage *m) {
    char *host = strchr(m->text, ' ');
    bool is_ours = m->kind == WIRE_HELLO && host && (size_t)(host - m->text) == strlen(s->secret) &&
                   !memcmp(m->text, s->secret, strlen(s->secret));
    Rank *r = is_ours && m->rank >= 0 && m->rank < s->o->ranks ? &s->rank[m->rank] : NULL;
    if (!r || r->state != ABSENT) {
        if (r) say(s, "two processes say they are rank %d: was it the launcher of another MPI?", m->rank);
        wire_close(w);
        return;
    }
    int64_t log_at = r->log_at;
    *r = (Rank){.state = PRESENT, .wire = *w, .pid = m->pid, .at = m->place, .log_at = log_at};
    w->fd = -1;
    snprintf(r->host, sizeof r->host, "%s", host + 1);
    r->is_local = !strcmp(r->host, s->host);
    s->anybody = true;
    if (s->signal) tell(r, WIRE_SIGNAL, s->signal, "");
}

static int n_callers(const Supervisor *s) { return s->o->ranks + STRANGERS; }

// In the place of whoever has been silent longest, if there is no other.
static void accept_caller(Supervisor *s, int fd, int64_t now_ns) {
    Caller *place = &s->caller[0];
    for (int i = 0; i < n_callers(s) && place->wire.fd >= 0; i++) {
        Caller *c = &s->caller[i];
        if (c->wire.fd < 0 || c->since_ns < place->since_ns) place = c;
    }
    wire_close(&place->wire);
    wire_open(&place->wire, fd);
    place->since_ns = now_ns;
}

static void accept_callers(Supervisor *s, int64_t now_ns) {
    for (int fd; (fd = accept(s->listener, NULL, NULL)) >= 0;) accept_caller(s, fd, now_ns);
    WireMessage m;
    for (int i = 0; i < n_callers(s); i++) {
        Wire *w = &s->caller[i].wire;
        if (w->fd < 0) continue;
        int got = wire_get(w, &m);
        if (got == 1) take_caller(s, w, &m);
        else if (got < 0) wire_close(w);
    }
}

static void tell_all(Supervisor *s, WireKind kind, int status, const char *text) {
    for (int i = 0; i < s->o->ranks; i++)
        if (s->rank[i].state == PRESENT) tell(&s->rank[i], kind, status, text);
}

// ---- watching -----------------------------------------------------------------------------------------------

static int64_t stall_bound(const Supervisor *s, const Rank *r) {
    int64_t bound = s->o->stall_ns ? s->o->stall_ns : DEFAULT_STALL_NS;
    bool is_patient = r->at.phase == PHASE_START || r->at.phase == PHASE_SAVE;
    return is_patient && bound < PATIENCE_NS ? PATIENCE_NS : bound;
}

static bool are_alike(const Rank *a, const Rank *b) {
    return a->state == b->state && a->at.waits == b->at.waits && a->at.phase == b->at.phase &&
           a->at.plan_step == b->at.plan_step;
}

// "0-2, 5": the ranks from `first` on of which the same is to be said.
static void same_ranks(const Supervisor *s, int first, char *out, size_t bytes) {
    size_t n = 0;
    const Rank *like = &s->rank[first];
    out[0] = 0;
    for (int i = first, end; i < s->o->ranks && n < bytes; i = end) {
        end = i + 1;
        if (!are_alike(&s->rank[i], like)) continue;
        while (end < s->o->ranks && are_alike(&s->rank[end], like)) end++;
        n += (size_t)snprintf(out + n, bytes - n, end - i > 1 ? "%s%d-%d" : "%s%d", n ? ", " : "", i, end - 1);
    }
}

static bool was_said(const Supervisor *s, int i) {
    for (int k = 0; k < i; k++)
        if (are_alike(&s->rank[k], &s->rank[i])) return true;
    return false;
}

static void say_all(Supervisor *s) {
    char list[200], where[WHERE];
    for (int i = 0; i < s->o->ranks; i++) {
        const Rank *r = &s->rank[i];
        if (r->state != PRESENT || was_said(s, i)) continue;
        same_ranks(s, i, list, sizeof list);
        say_where(s, &r->at, where);
        say(s, "  rank %s: %s %s", list, r->at.waits ? "waits for others" : "works", where);
    }
}

// A rank that gets nothing done while it works; or any, where all wait.
static void find_stuck(Supervisor *s, int64_t now_ns) {
    int stuck = -1;
    bool others_work = false;
    for (int i = 0; i < s->o->ranks; i++) {
        Rank *r = &s->rank[i];
        if (r->state != PRESENT) continue;
        bool is_stuck = wire_silence(&r->stall, now_ns, false) > stall_bound(s, r);
        others_work |= !is_stuck;
        if (is_stuck && (stuck < 0 || (s->rank[stuck].at.waits && !r->at.waits))) stuck = i;
    }
    if (stuck < 0 || (s->rank[stuck].at.waits && others_work)) return;
    char how[100];
    snprintf(how, sizeof how, "it got nothing done for %.0f s", (double)s->rank[stuck].stall.silent_ns / 1e9);
    lose(s, STUCK, stuck, now_ns, how);
    say(s, "rank %d got nothing done for %.0f s:", stuck, (double)s->rank[stuck].stall.silent_ns / 1e9);
    say_all(s);
}

// A rank that ended with an error of its own has told it; the others should follow.  So should the launcher.
static void find_stragglers(Supervisor *s, int64_t now_ns) {
    int failed = -1, left = 0, present = 0;
    for (int i = 0; i < s->o->ranks; i++) {
        const Rank *r = &s->rank[i];
        present += r->state == PRESENT;
        left += r->state == LEFT;
        if (r->state == LEFT && r->status && r->status != STOPPED) failed = i;
    }
    bool are_late = present ? failed >= 0 || !s->launcher : left > 0 && s->launcher;
    if (!are_late || !s->left_ns) s->left_ns = now_ns;
    bool are_orphans = present && !s->launcher;
    if (now_ns - s->left_ns < (are_orphans ? SECOND : LATE_NS)) return;
    if (failed >= 0 && begin_end(s, FAILED, failed, now_ns)) s->failed_status = s->rank[failed].status;
    else if (begin_end(s, LAUNCHER, -1, now_ns))
        snprintf(s->why, sizeof s->why,
                 present ? "%s has ended, but not its ranks" : "%s does not end, but its ranks have", s->o->command[0]);
}

static void find_silent(Supervisor *s, int64_t now_ns) {
    for (int i = 0; i < s->o->ranks; i++)
        if (s->rank[i].state == PRESENT && s->rank[i].silence.silent_ns > WIRE_LOST_NS)
            lose(s, SILENT, i, now_ns, "nothing is heard of it any more: it was stopped, or its host can't be reached");
}

static int n_in(const Supervisor *s, State state) {
    int n = 0;
    for (int i = 0; i < s->o->ranks; i++) n += s->rank[i].state == state;
    return n;
}

static void reap(Supervisor *s, int64_t now_ns) {
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
    read_output(s);
    if (n_in(s, LEFT) == s->o->ranks || s->end_ns || n_in(s, PRESENT)) return;       // whose connections will close
    begin_end(s, LAUNCHER, -1, now_ns);
    snprintf(s->why, sizeof s->why, "%s ended with status %d", s->o->command[0], s->launcher_status);
}

static int far_ones(const Supervisor *s) {
    int n = 0;
    for (int i = 0; i < s->o->ranks; i++) n += s->rank[i].state == PRESENT && !s->rank[i].is_local;
    return n;
}

// As far as the end has come: told, killed, and the launcher too.  (mpirun crashes when it is told to end while it
// does; but only it reaches ranks of other hosts.)
static void end_all(Supervisor *s, int64_t now_ns) {
    int64_t past_ns = now_ns - s->end_ns;
    if (!s->is_told) {
        s->is_told = true;
        tell_all(s, WIRE_END, 0, s->why);
    }
    if (past_ns > TOLD_NS && !s->is_killed) {
        s->is_killed = true;
        for (int i = 0; i < s->o->ranks; i++)
            if (s->rank[i].state == PRESENT && s->rank[i].is_local && s->rank[i].pid > 1) kill(s->rank[i].pid, SIGKILL);
    }
    bool is_wanted = far_ones(s) || past_ns > ALONE_NS;
    if (past_ns > TOLD_NS && is_wanted && s->launcher && !s->is_asked) {
        s->is_asked = true;
        kill(s->launcher, SIGTERM);
    }
    if (past_ns > KILLED_NS && s->launcher) kill(-s->launcher, SIGKILL);
}

static void pass_on_signals(Supervisor *s, int64_t now_ns) {
    for (int i = 0; i < PASSED_ON; i++) {
        int n = passed_on[i];
        if (!came[n]) continue;
        came[n] = 0;
        if (n == SIGUSR1) {
            tell_all(s, WIRE_SIGNAL, n, "");
        } else if (!s->signal) {
            s->signal = n == SIGHUP ? SIGTERM : n;           // the terminal is gone, the run is not
            s->signal_ns = now_ns;
            tell_all(s, WIRE_SIGNAL, s->signal, "");
            event(s, "signal", json_pack("{s:i}", "signal", n));
        } else if (now_ns - s->signal_ns > 2 * SECOND) {
            if (begin_end(s, LAUNCHER, -1, now_ns))
                snprintf(s->why, sizeof s->why, "a second signal: ended without saving");
        }
    }
}

static void wait_for_something(Supervisor *s, struct pollfd *p) {
    int n = 0;
    p[n++] = (struct pollfd){s->listener, POLLIN, 0};
    if (s->output >= 0) p[n++] = (struct pollfd){s->output, POLLIN, 0};
    for (int i = 0; i < n_callers(s); i++)
        if (s->caller[i].wire.fd >= 0) p[n++] = (struct pollfd){s->caller[i].wire.fd, POLLIN, 0};
    for (int i = 0; i < s->o->ranks; i++)
        if (s->rank[i].state == PRESENT) p[n++] = (struct pollfd){s->rank[i].wire.fd, POLLIN, 0};
    poll(p, (nfds_t)n, (int)(WIRE_TICK_NS / 2000000));
}

// Ranks that are killed together close their connections in the order of their death, but may be seen at once: who
// said why goes before who merely went.
static void hear_all(Supervisor *s, int64_t now_ns) {
    accept_callers(s, now_ns);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < s->o->ranks; i++) {
            Rank *r = &s->rank[i];
            WireMessage m;
            int got = 0;
            if (r->wire.fd < 0 || (r->state != PRESENT && r->state != LEFT)) continue;
            if (turn == 1) {
                hear_rank(s, i, now_ns);
                continue;
            }
            while ((got = wire_get(&r->wire, &m)) == 1) {
                hear(s, i, &m, now_ns);
                wire_silence(&r->silence, now_ns, true);
            }
        }
}

static bool is_over(const Supervisor *s) { return !s->launcher && n_in(s, PRESENT) == 0; }

// From the start of all ranks until all are gone.
static void watch(Supervisor *s, struct pollfd *p) {
    int64_t gone_ns = 0;
    while (!is_over(s)) {
        wait_for_something(s, p);
        int64_t now_ns = rt_now_ns();
        read_output(s);
        hear_all(s, now_ns);
        reap(s, now_ns);
        pass_on_signals(s, now_ns);
        if (now_ns - s->ping_ns >= WIRE_TICK_NS) {
            tell_all(s, WIRE_PING, 0, "");
            s->ping_ns = now_ns;
            if (!s->end_ns) find_silent(s, now_ns);
            if (!s->end_ns) find_stuck(s, now_ns);
            if (!s->end_ns) find_stragglers(s, now_ns);
        }
        read_logs(s, now_ns, false);
        rt_outlet_drain(&s->out, 0);
        if (s->end_ns) end_all(s, now_ns);
        if (!s->launcher && s->end_ns && !gone_ns) gone_ns = now_ns;
        if (gone_ns && now_ns - gone_ns > KILLED_NS) break;        // of a host that can't be reached: it ends by itself
    }
    read_output(s);
    read_logs(s, rt_now_ns(), true);
}

// ---- attempts -----------------------------------------------------------------------------------------------

static void open_attempt(Supervisor *s) {
    char number[16];
    snprintf(number, sizeof number, "%d", s->attempt);
    setenv("MOEC_ATTEMPT", number, 1);
    for (int i = 0; i < s->o->ranks; i++) {
        int64_t log_at = s->rank[i].log_at;
        s->rank[i] = (Rank){.wire.fd = -1, .log_at = log_at};
        if (s->pages) memset(&s->pages->page[i], 0, sizeof s->pages->page[i]);
        if (s->pages) s->pages->page[i].saved = -1;
    }
    for (int i = 0; i < n_callers(s); i++) s->caller[i].wire.fd = -1;
    s->anybody = s->is_told = s->is_killed = s->is_asked = false;
    s->cause = NOTHING;
    s->failed_rank = -1;
    s->end_ns = s->ping_ns = s->log_ns = s->left_ns = 0;
    s->why[0] = s->last_words[0] = 0;
    s->launcher_status = s->launcher_signal = 0;
    s->output = -1;
}

static void close_attempt(Supervisor *s) {
    for (int i = 0; i < s->o->ranks; i++) wire_close(&s->rank[i].wire);
    for (int i = 0; i < n_callers(s); i++) wire_close(&s->caller[i].wire);
    if (s->output >= 0) close(s->output);
    s->output = -1;
}

static int64_t newest_checkpoint(const Supervisor *s) {
    char *dir = NULL;
    RtCkptInfo info;
    int64_t step = 0;
    if (rt_ckpt_find(s->o->run_dir, &dir, NULL, NULL) == RT_OK && rt_ckpt_info(dir, &info, NULL) == RT_OK) {
        step = info.step;
        rt_ckpt_free(&info);
    }
    free(dir);
    return step;
}

static void say_command(Supervisor *s) {
    json_t *words = json_array();
    for (char *const *w = s->o->command; *w; w++) json_array_append_new(words, json_string(*w));
    event(s, "start", json_pack("{s:i, s:o, s:s, s:I}", "ranks", s->o->ranks, "command", words, "host", s->host, "step",
                                (json_int_t)newest_checkpoint(s)));
}

// The status that ranks have agreed on; -1: they have not.
static int common_status(const Supervisor *s) {
    int status = -1;
    for (int i = 0; i < s->o->ranks; i++) {
        const Rank *r = &s->rank[i];
        if (r->state != LEFT || (status >= 0 && r->status != status)) return -1;
        status = r->status;
    }
    return status;
}

// One attempt.  The exit status of the run, or -1: ranks were lost.
static int try_once(Supervisor *s, struct pollfd *p) {
    open_attempt(s);
    say_command(s);
    if (!start_launcher(s)) {
        snprintf(s->why, sizeof s->why, "cannot start %s: %s", s->o->command[0], strerror(errno));
        s->cause = LAUNCHER;
    } else {
        watch(s, p);
    }
    close_attempt(s);
    int status = common_status(s);
    if (status >= 0 && status != LOST) return status;
    if (s->cause == FAILED && s->failed_status != LOST) return s->failed_status;
    if (status == LOST && s->cause == NOTHING) snprintf(s->why, sizeof s->why, "all ranks ended with status %d", LOST);
    bool never_began = !s->anybody && s->attempt == 0;
    if (never_began && s->launcher_status != 0 && s->launcher_status < 128) {
        say(s, "error: %s\n%s", s->why, s->last_words);
        return s->launcher_status == 2 ? 2 : 1;
    }
    if (s->cause == NOTHING)
        snprintf(s->why, sizeof s->why, "%s ended with status %d before all of its ranks had", s->o->command[0],
                 s->launcher_status);
    return -1;
}

static int64_t furthest_step(const Supervisor *s) {
    int64_t step = 0;
    for (int i = 0; i < s->o->ranks; i++)
        if (s->rank[i].at.step > step) step = s->rank[i].at.step;
    return step;
}

static void tell_loss(Supervisor *s) {
    if (s->launcher_signal && s->o->ranks > 1) {                   // then its ranks went because of it
        s->cause = LAUNCHER;
        s->failed_rank = -1;
        snprintf(s->why, sizeof s->why, "%s was killed by signal %d", s->o->command[0], s->launcher_signal);
    }
    int i = s->failed_rank;
    const Rank *r = i >= 0 ? &s->rank[i] : NULL;
    say(s, "%s%s", i >= 0 && s->cause != FAILED ? "lost " : "", s->why);
    if (!s->anybody && *s->last_words) say(s, "last words of %s:\n%s", s->o->command[0], s->last_words);
    static const char *const cause[] = {"launcher", "failed", "gone", "silent", "stuck", "launcher"};
    json_t *fields = json_pack("{s:s, s:s, s:I, s:i, s:f}", "cause", cause[s->cause], "text", s->why, "step",
                               (json_int_t)furthest_step(s), "launcher_status", s->launcher_status, "seconds",
                               s->end_ns ? (double)(rt_now_ns() - s->end_ns) / 1e9 : 0.0);
    if (r) {
        char where[WHERE];
        say_where(s, &r->at, where);
        json_object_set_new(fields, "rank", json_integer(i));
        json_object_set_new(fields, "host", json_string(r->host));
        json_object_set_new(fields, "where", json_string(where));
    }
    event(s, "lost", fields);
}

// Sleeps, but for signals.
static void pause_for(Supervisor *s, int64_t ns) {
    int64_t until_ns = rt_now_ns() + ns;
    while (rt_now_ns() < until_ns && !s->signal) {
        poll(NULL, 0, 50);
        pass_on_signals(s, rt_now_ns());
        rt_outlet_drain(&s->out, 0);
    }
}

// After a loss: -1 is another attempt, anything else the exit status.
static int decide(Supervisor *s) {
    int64_t step = furthest_step(s);
    s->same_step = step == s->failed_step ? s->same_step + 1 : 1;
    s->failed_step = step;
    if (s->signal) {
        say(s, "signal %d had come: not started again", s->signal);
        return LOST;
    }
    if (s->o->restarts == 0) return LOST;
    if (s->same_step >= SAME_STEP) {
        say(s, "given up: step %lld fails each time", (long long)step);
        return GAVE_UP;
    }
    if (s->used >= s->o->restarts) {
        say(s, "given up: %d restart%s without a new checkpoint", s->used, s->used == 1 ? "" : "s");
        return GAVE_UP;
    }
    int seconds = 1;
    for (int i = 0; i < s->used && seconds < MOST_BACKOFF; i++) seconds *= 2;
    int64_t wait_ns = (seconds < MOST_BACKOFF ? seconds : MOST_BACKOFF) * SECOND;
    bool is_far = s->cause == SILENT && !s->rank[s->failed_rank].is_local;
    if (is_far && wait_ns < FAR_NS) wait_ns = FAR_NS;
    s->used++;
    s->attempt++;
    int64_t from = newest_checkpoint(s);
    say(s, "restart %d of %d in %lld s, from step %lld", s->used, s->o->restarts, (long long)(wait_ns / SECOND),
        (long long)from);
    event(s, "restart", json_pack("{s:I, s:f}", "step", (json_int_t)from, "after_seconds", (double)wait_ns / 1e9));
    pause_for(s, wait_ns);
    if (!s->signal) return -1;
    say(s, "signal %d: not started again; go on with --resume", s->signal);
    return STOPPED;
}

// ---- opening ------------------------------------------------------------------------------------------------

static RtStatus open_listener(Supervisor *s, RtError *e) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(s->o->remote ? INADDR_ANY : INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listener < 0 || bind(s->listener, (struct sockaddr *)&at, size) != 0 || listen(s->listener, 1024) != 0 ||
        getsockname(s->listener, (struct sockaddr *)&at, &size) != 0)
        return rt_fail(e, RT_IO, "cannot listen for ranks: %s", strerror(errno));
    s->port = ntohs(at.sin_port);
    return RT_OK;
}

// Where ranks may find this host: loopback first, which answers at once where it is not the right one.
static char *own_addresses(const Supervisor *s) {
    char *list = rt_path("127.0.0.1");
    struct ifaddrs *all = NULL;
    if (s->o->remote) getifaddrs(&all);
    for (const struct ifaddrs *a = all; a; a = a->ifa_next) {
        bool is_usable =
            a->ifa_addr && a->ifa_addr->sa_family == AF_INET && a->ifa_flags & IFF_UP && !(a->ifa_flags & IFF_LOOPBACK);
        char text[INET_ADDRSTRLEN];
        if (!is_usable) continue;
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a->ifa_addr;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        char *longer = rt_path("%s,%s", list, text);
        free(list);
        list = longer;
    }
    freeifaddrs(all);
    return list;
}

// Ranks of this host find them as a file of this process: nothing is left of them when it ends.
static void open_pages(Supervisor *s) {
    size_t bytes = sizeof(WirePages) + (size_t)s->o->ranks * sizeof(WirePage);
    s->pages_file = (int)syscall(SYS_memfd_create, "moec-ranks", MFD_CLOEXEC);
    bool is_there = s->pages_file >= 0 && ftruncate(s->pages_file, (off_t)bytes) == 0;
    void *at = is_there ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->pages_file, 0) : MAP_FAILED;
    if (at == MAP_FAILED) return;
    s->pages = at;
    snprintf(s->pages->secret, sizeof s->pages->secret, "%s", s->secret);
}

static RtStatus open_run(Supervisor *s, RtError *e) {
    unsigned char secret[(WIRE_SECRET - 1) / 2];
    char *log_dir = rt_path("%s/log", s->o->run_dir), *events = rt_path("%s/events.jsonl", s->o->run_dir),
         *launcher = rt_path("%s/launcher.log", log_dir), *full = rt_absolute(NULL, log_dir),
         *addresses = own_addresses(s);
    RtStatus status = rt_make_dirs(log_dir, e);
    if (status == RT_OK && getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        status = rt_fail(e, RT_IO, "no random numbers: %s", strerror(errno));
    for (size_t i = 0; i < sizeof secret; i++) snprintf(s->secret + 2 * i, 3, "%02x", secret[i]);
    if (status == RT_OK) status = open_listener(s, e);
    s->events = fopen(events, "ae");
    s->launcher_log = fopen(launcher, "ae");
    open_pages(s);
    char *call =
        rt_path("%d:%s:%s:/proc/%ld/fd/%d:%s", s->port, s->secret, addresses, (long)getpid(), s->pages_file, full);
    setenv(WIRE_ENV, call, 1);
    gethostname(s->host, sizeof s->host - 1);
    s->rank = calloc((size_t)s->o->ranks, sizeof *s->rank);
    s->caller = calloc((size_t)n_callers(s), sizeof *s->caller);
    if (status == RT_OK && (!s->rank || !s->caller))
        status = rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", s->o->ranks);
    if (status == RT_OK) skip_logs(s);
    free(log_dir);
    free(events);
    free(launcher);
    free(full);
    free(addresses);
    free(call);
    return status;
}

static void close_run(Supervisor *s) {
    if (s->events) fclose(s->events);
    if (s->launcher_log) fclose(s->launcher_log);
    if (s->listener >= 0) close(s->listener);
    if (s->pages_file >= 0) close(s->pages_file);
    free(s->rank);
    free(s->caller);
}

int rt_supervise(const RtSuperviseOpts *o) {
    Supervisor s = {.o = o, .listener = -1, .pages_file = -1, .saved = -1, .failed_step = -1};
    RtError e = {0};
    rt_outlet_open(&s.out, o->out);
    struct pollfd *p = calloc((size_t)o->ranks * 2 + STRANGERS + 2, sizeof *p);
    RtStatus opened = p ? open_run(&s, &e) : rt_fail(&e, RT_NO_MEMORY, "no memory for %d ranks", o->ranks);
    int status = opened == RT_OK ? -1 : 1;
    if (opened != RT_OK) say(&s, "error: %s", e.text);
    else note_signals();
    while (status < 0 && (status = try_once(&s, p)) < 0) {
        tell_loss(&s);
        status = decide(&s);
    }
    if (opened == RT_OK) event(&s, "end", json_pack("{s:i}", "status", status));
    rt_outlet_drain(&s.out, LAST_WORDS_MS);
    close_run(&s);
    free(p);
    return status;
}
