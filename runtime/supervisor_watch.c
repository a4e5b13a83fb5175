// Looking after an attempt: who is silent, stuck or late, and the end of all.
#include "runtime/supervisor_priv.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "runtime/trace.h"

static const int64_t DEFAULT_STALL_NS = 60 * SECOND;
static const int64_t PATIENCE_NS = 600 * SECOND;     // while ranks start (compiling) or save
static const int64_t TOLD_NS = SECOND / 2;           // for ranks to end by themselves, then they are killed ..
static const int64_t ALONE_NS = 2 * SECOND;          // for their launcher to end as well, then it is told to ..
static const int64_t KILLED_NS = 4 * SECOND;         // .. and killed, so long after the beginning of the end
static const int64_t LATE_NS = 5 * SECOND;           // the last ranks after the first that ended; the launcher after them

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
    for (int i = first, end; i < s->ranks && n < bytes; i = end) {
        end = i + 1;
        if (!are_alike(&s->rank[i], like)) continue;
        while (end < s->ranks && are_alike(&s->rank[end], like)) end++;
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
    for (int i = 0; i < s->ranks; i++) {
        const Rank *r = &s->rank[i];
        if (r->state != PRESENT || was_said(s, i)) continue;
        same_ranks(s, i, list, sizeof list);
        sv_say_where(s, &r->at, where);
        say(s, "  rank %s: %s %s", list, r->at.waits ? "waits for others" : "works", where);
    }
}

// A rank that gets nothing done while it works; or any, where all wait.
static void find_stuck(Supervisor *s, int64_t now_ns) {
    int stuck = -1;
    bool others_work = false;
    for (int i = 0; i < s->ranks; i++) {
        Rank *r = &s->rank[i];
        if (r->state != PRESENT) continue;
        bool is_stuck = wire_silence(&r->stall, now_ns, false) > stall_bound(s, r);
        others_work |= !is_stuck;
        if (is_stuck && (stuck < 0 || (s->rank[stuck].at.waits && !r->at.waits))) stuck = i;
    }
    if (stuck < 0 || (s->rank[stuck].at.waits && others_work)) return;
    char how[100];
    snprintf(how, sizeof how, "it got nothing done for %.0f s", (double)s->rank[stuck].stall.silent_ns / 1e9);
    sv_lose(s, STUCK, stuck, now_ns, how);
    say(s, "rank %d got nothing done for %.0f s:", stuck, (double)s->rank[stuck].stall.silent_ns / 1e9);
    say_all(s);
}

// A rank that ended with an error of its own has told it; the others should follow.  So should the launcher.
static void find_stragglers(Supervisor *s, int64_t now_ns) {
    int failed = -1, left = 0, present = 0;
    for (int i = 0; i < s->ranks; i++) {
        const Rank *r = &s->rank[i];
        present += r->state == PRESENT;
        left += r->state == LEFT;
        if (r->state == LEFT && r->status && r->status != STOPPED) failed = i;
    }
    bool are_late = present ? failed >= 0 || !s->launcher : left > 0 && s->launcher;
    if (!are_late || !s->left_ns) s->left_ns = now_ns;
    bool are_orphans = present && !s->launcher;
    if (now_ns - s->left_ns < (are_orphans ? SECOND : LATE_NS)) return;
    if (failed >= 0 && sv_begin_end(s, FAILED, failed, now_ns)) s->failed_status = s->rank[failed].status;
    else if (sv_begin_end(s, LAUNCHER, -1, now_ns))
        snprintf(s->why, sizeof s->why,
                 present ? "%s has ended, but not its ranks" : "%s does not end, but its ranks have", s->command[0]);
}

static void find_silent(Supervisor *s, int64_t now_ns) {
    for (int i = 0; i < s->ranks; i++)
        if (s->rank[i].state == PRESENT && s->rank[i].silence.silent_ns > WIRE_LOST_NS)
            sv_lose(s, SILENT, i, now_ns, "nothing is heard of it any more: it was stopped, or its host can't be reached");
}

static int far_ones(const Supervisor *s) {
    int n = 0;
    for (int i = 0; i < s->ranks; i++) n += s->rank[i].state == PRESENT && !s->rank[i].is_local;
    return n;
}

// As far as the end has come: told, killed, and the launcher too.  (mpirun crashes when it is told to end while it
// does; but only it reaches ranks of other hosts.)
static void end_all(Supervisor *s, int64_t now_ns) {
    int64_t past_ns = now_ns - s->end_ns;
    if (!s->is_told) {
        s->is_told = true;
        sv_tell_all(s, WIRE_END, 0, s->why);
    }
    if (past_ns > TOLD_NS && !s->is_killed) {
        s->is_killed = true;
        for (int i = 0; i < s->ranks; i++)
            if (s->rank[i].state == PRESENT && s->rank[i].is_local && s->rank[i].pid > 1) kill(s->rank[i].pid, SIGKILL);
    }
    bool is_wanted = far_ones(s) || past_ns > ALONE_NS;
    if (past_ns > TOLD_NS && is_wanted && s->launcher && !s->is_asked) {
        s->is_asked = true;
        kill(s->launcher, SIGTERM);
    }
    if (past_ns > KILLED_NS && s->launcher) kill(-s->launcher, SIGKILL);
}

static void wait_for_something(Supervisor *s, struct pollfd *p) {
    int n = 0;
    p[n++] = (struct pollfd){s->listener, POLLIN, 0};
    if (s->output >= 0) p[n++] = (struct pollfd){s->output, POLLIN, 0};
    for (int i = 0; i < sv_n_callers(s); i++)
        if (s->caller[i].wire.fd >= 0) p[n++] = (struct pollfd){s->caller[i].wire.fd, POLLIN, 0};
    for (int i = 0; i < s->ranks; i++)
        if (s->rank[i].state == PRESENT) p[n++] = (struct pollfd){s->rank[i].wire.fd, POLLIN, 0};
    poll(p, (nfds_t)n, (int)(WIRE_TICK_NS / 2000000));
}

static bool is_over(const Supervisor *s) { return !s->launcher && sv_n_in(s, PRESENT) == 0; }

// From the start of all ranks until all are gone.
void sv_watch(Supervisor *s, struct pollfd *p) {
    int64_t gone_ns = 0;
    while (!is_over(s)) {
        wait_for_something(s, p);
        int64_t now_ns = rt_now_ns();
        sv_read_output(s);
        sv_hear_all(s, now_ns);
        sv_reap(s, now_ns);
        sv_pass_on_signals(s, now_ns);
        if (now_ns - s->ping_ns >= WIRE_TICK_NS) {
            sv_tell_all(s, WIRE_PING, 0, "");
            s->ping_ns = now_ns;
            if (!s->end_ns) find_silent(s, now_ns);
            if (!s->end_ns) find_stuck(s, now_ns);
            if (!s->end_ns) find_stragglers(s, now_ns);
        }
        sv_read_logs(s, now_ns, false);
        rt_outlet_drain(&s->out, 0);
        if (s->end_ns) end_all(s, now_ns);
        if (!s->launcher && s->end_ns && !gone_ns) gone_ns = now_ns;
        if (gone_ns && now_ns - gone_ns > KILLED_NS) break;        // of a host that can't be reached: it ends by itself
    }
    sv_read_output(s);
    sv_read_logs(s, rt_now_ns(), true);
}
