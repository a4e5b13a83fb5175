// Attempts: start all ranks, watch them, and after a loss decide what then.
#include "runtime/supervisor_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/checkpoint.h"
#include "runtime/files.h"
#include "runtime/trace.h"

static const int64_t FAR_NS = 10 * SECOND;           // ranks of a host cut off have ended themselves by then
enum { LAST_WORDS_MS = 2000 };                       // for what was not read so far
enum { SAME_STEP = 3, MOST_BACKOFF = 60 };

// ---- attempts -----------------------------------------------------------------------------------------------

static void open_attempt(Supervisor *s) {
    char number[16];
    s->ranks = s->next_ranks;
    snprintf(number, sizeof number, "%d", s->attempt);
    setenv("MOEC_ATTEMPT", number, 1);
    for (int i = 0; i < s->ranks; i++) {
        int64_t log_at = s->rank[i].log_at;
        s->rank[i] = (Rank){.wire.fd = -1, .log_at = log_at};
        if (s->pages) memset(&s->pages->page[i], 0, sizeof s->pages->page[i]);
        if (s->pages) s->pages->page[i].saved = -1;
    }
    for (int i = 0; i < sv_n_callers(s); i++) s->caller[i].wire.fd = -1;
    s->anybody = s->is_told = s->is_killed = s->is_asked = false;
    s->cause = NOTHING;
    s->failed_rank = -1;
    s->end_ns = s->ping_ns = s->log_ns = s->left_ns = 0;
    s->why[0] = s->last_words[0] = 0;
    s->launcher_status = s->launcher_signal = 0;
    s->output = -1;
}

static void close_attempt(Supervisor *s) {
    for (int i = 0; i < s->ranks; i++) wire_close(&s->rank[i].wire);
    for (int i = 0; i < sv_n_callers(s); i++) wire_close(&s->caller[i].wire);
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
    for (char *const *w = s->command; *w; w++) json_array_append_new(words, json_string(*w));
    sv_event(s, "start", json_pack("{s:i, s:o, s:s, s:I}", "ranks", s->ranks, "command", words, "host", s->host, "step",
                                (json_int_t)newest_checkpoint(s)));
}

// The status that ranks have agreed on; -1: they have not.
static int common_status(const Supervisor *s) {
    int status = -1;
    for (int i = 0; i < s->ranks; i++) {
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
    if (!sv_start_launcher(s)) {
        snprintf(s->why, sizeof s->why, "cannot start %s: %s", s->command[0], strerror(errno));
        s->cause = LAUNCHER;
    } else {
        sv_watch(s, p);
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
        snprintf(s->why, sizeof s->why, "%s ended with status %d before all of its ranks had", s->command[0],
                 s->launcher_status);
    return -1;
}

static int64_t furthest_step(const Supervisor *s) {
    int64_t step = 0;
    for (int i = 0; i < s->ranks; i++)
        if (s->rank[i].at.step > step) step = s->rank[i].at.step;
    return step;
}

static void tell_loss(Supervisor *s) {
    if (s->launcher_signal && s->ranks > 1) {                   // then its ranks went because of it
        s->cause = LAUNCHER;
        s->failed_rank = -1;
        snprintf(s->why, sizeof s->why, "%s was killed by signal %d", s->command[0], s->launcher_signal);
    }
    int i = s->failed_rank;
    const Rank *r = i >= 0 ? &s->rank[i] : NULL;
    say(s, "%s%s", i >= 0 && s->cause != FAILED ? "lost " : "", s->why);
    if (!s->anybody && *s->last_words) say(s, "last words of %s:\n%s", s->command[0], s->last_words);
    static const char *const cause[] = {"launcher", "failed", "gone", "silent", "stuck", "launcher"};
    json_t *fields = json_pack("{s:s, s:s, s:I, s:i, s:f}", "cause", cause[s->cause], "text", s->why, "step",
                               (json_int_t)furthest_step(s), "launcher_status", s->launcher_status, "seconds",
                               s->end_ns ? (double)(rt_now_ns() - s->end_ns) / 1e9 : 0.0);
    if (r) {
        char where[WHERE];
        sv_say_where(s, &r->at, where);
        json_object_set_new(fields, "rank", json_integer(i));
        json_object_set_new(fields, "host", json_string(r->host));
        json_object_set_new(fields, "where", json_string(where));
    }
    sv_event(s, "lost", fields);
}

// Sleeps, but for signals.
static void pause_for(Supervisor *s, int64_t ns) {
    int64_t until_ns = rt_now_ns() + ns;
    while (rt_now_ns() < until_ns && !s->signal) {
        poll(NULL, 0, 50);
        sv_pass_on_signals(s, rt_now_ns());
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
    const char *lost = s->o->hostfile ? sv_lost_host(s) : NULL;
    if (lost && !sv_leave_out(s, lost)) return GAVE_UP;
    s->used++;
    s->attempt++;
    int64_t from = newest_checkpoint(s);
    say(s, "restart %d of %d in %lld s, from step %lld", s->used, s->o->restarts, (long long)(wait_ns / SECOND),
        (long long)from);
    sv_event(s, "restart", json_pack("{s:I, s:f}", "step", (json_int_t)from, "after_seconds", (double)wait_ns / 1e9));
    pause_for(s, wait_ns);
    if (!s->signal) return -1;
    say(s, "signal %d: not started again; go on with --resume", s->signal);
    return STOPPED;
}

// ---- opening ------------------------------------------------------------------------------------------------

static RtStatus open_run(Supervisor *s, RtError *e) {
    char *log_dir = rt_path("%s/log", s->o->run_dir), *events = rt_path("%s/events.jsonl", s->o->run_dir),
         *launcher = rt_path("%s/launcher.log", log_dir);
    s->rank = calloc((size_t)s->o->ranks, sizeof *s->rank);
    s->caller = calloc((size_t)sv_n_callers(s), sizeof *s->caller);
    RtStatus status = s->rank && s->caller ? rt_make_dirs(log_dir, e) : rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", s->o->ranks);
    if (status == RT_OK) status = sv_open_hub(s, log_dir, e);
    s->events = fopen(events, "ae");
    s->launcher_log = fopen(launcher, "ae");
    if (status == RT_OK) sv_skip_logs(s);
    free(log_dir);
    free(events);
    free(launcher);
    return status;
}

static void close_run(Supervisor *s) {
    if (s->events) fclose(s->events);
    if (s->launcher_log) fclose(s->launcher_log);
    if (s->listener >= 0) close(s->listener);
    if (s->pages_file >= 0) close(s->pages_file);
    free(s->own_hosts);
    free(s->rank);
    free(s->caller);
}

int rt_supervise(const RtSuperviseOpts *o) {
    Supervisor s = {.o = o, .ranks = o->ranks, .next_ranks = o->ranks, .hostfile = o->hostfile, .command = o->command, .listener = -1, .pages_file = -1, .saved = -1, .failed_step = -1};
    RtError e = {0};
    rt_outlet_open(&s.out, o->out);
    struct pollfd *p = calloc((size_t)o->ranks * 2 + STRANGERS + 2, sizeof *p);
    RtStatus opened = p ? open_run(&s, &e) : rt_fail(&e, RT_NO_MEMORY, "no memory for %d ranks", o->ranks);
    int status = opened == RT_OK ? -1 : 1;
    if (opened != RT_OK) say(&s, "error: %s", e.text);
    else sv_note_signals();
    while (status < 0 && (status = try_once(&s, p)) < 0) {
        tell_loss(&s);
        status = decide(&s);
    }
    if (opened == RT_OK) sv_event(&s, "end", json_pack("{s:i}", "status", status));
    rt_outlet_drain(&s.out, LAST_WORDS_MS);
    close_run(&s);
    free(p);
    return status;
}
