// Where ranks call: who is who, what they say, who is gone.
#include "runtime/supervisor_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/memfd.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/files.h"
#include "runtime/trace.h"

// ---- ranks --------------------------------------------------------------------------------------------------

bool sv_begin_end(Supervisor *s, Cause cause, int rank, int64_t now_ns) {
    if (s->end_ns) return false;
    s->cause = cause;
    s->failed_rank = rank;
    s->end_ns = now_ns;
    return true;
}

// What a rank does.
void sv_say_where(const Supervisor *s, const WirePlace *at, char out[WHERE]) {
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
    sv_say_where(s, &r->at, where);
    snprintf(out, bytes, "rank %d (process %d on %s)%s, %s", i, r->pid, r->host, step, where);
}

static void look_at_page(Supervisor *s, int i) {
    Rank *r = &s->rank[i];
    if (r->is_local && s->pages) r->at = wire_place(&s->pages->page[i]);
}

void sv_lose(Supervisor *s, Cause cause, int i, int64_t now_ns, const char *how) {
    char who[LINE];
    if (!sv_begin_end(s, cause, i, now_ns)) return;
    for (int k = 0; k < s->ranks; k++) look_at_page(s, k);
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
    sv_event(s, "saved", json_pack("{s:I}", "step", (json_int_t)at.saved));
}

static void hear(Supervisor *s, int i, const WireMessage *m, int64_t now_ns) {
    Rank *r = &s->rank[i];
    note_place(s, i, m->place, now_ns);
    if (m->kind == WIRE_BYE) {
        r->state = LEFT;
        r->status = m->status;
    }
    if (m->kind == WIRE_FAILED && sv_begin_end(s, FAILED, i, now_ns)) {
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
    sv_lose(s, LOST_RANK, i, now_ns, "it is gone");
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

int sv_n_in(const Supervisor *s, State state) {
    int n = 0;
    for (int i = 0; i < s->ranks; i++) n += s->rank[i].state == state;
    return n;
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
    Rank *r = is_ours && m->rank >= 0 && m->rank < s->ranks ? &s->rank[m->rank] : NULL;
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

// In the place of whoever has been silent longest, if there is no other.
static void accept_caller(Supervisor *s, int fd, int64_t now_ns) {
    Caller *place = &s->caller[0];
    for (int i = 0; i < sv_n_callers(s) && place->wire.fd >= 0; i++) {
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
    for (int i = 0; i < sv_n_callers(s); i++) {
        Wire *w = &s->caller[i].wire;
        if (w->fd < 0) continue;
        int got = wire_get(w, &m);
        if (got == 1) take_caller(s, w, &m);
        else if (got < 0) wire_close(w);
    }
}

void sv_tell_all(Supervisor *s, WireKind kind, int status, const char *text) {
    for (int i = 0; i < s->ranks; i++)
        if (s->rank[i].state == PRESENT) tell(&s->rank[i], kind, status, text);
}

// Ranks that are killed together close their connections in the order of their death, but may be seen at once: who
// said why goes before who merely went.
void sv_hear_all(Supervisor *s, int64_t now_ns) {
    accept_callers(s, now_ns);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < s->ranks; i++) {
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
    size_t bytes = sizeof(WirePages) + (size_t)s->ranks * sizeof(WirePage);
    s->pages_file = (int)syscall(SYS_memfd_create, "moec-ranks", MFD_CLOEXEC);
    bool is_there = s->pages_file >= 0 && ftruncate(s->pages_file, (off_t)bytes) == 0;
    void *at = is_there ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->pages_file, 0) : MAP_FAILED;
    if (at == MAP_FAILED) return;
    s->pages = at;
    snprintf(s->pages->secret, sizeof s->pages->secret, "%s", s->secret);
}

RtStatus sv_open_hub(Supervisor *s, const char *log_dir, RtError *e) {
    unsigned char secret[(WIRE_SECRET - 1) / 2];
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret) return rt_fail(e, RT_IO, "no random numbers: %s", strerror(errno));
    for (size_t i = 0; i < sizeof secret; i++) snprintf(s->secret + 2 * i, 3, "%02x", secret[i]);
    RT_TRY(open_listener(s, e));
    open_pages(s);
    char *addresses = own_addresses(s), *full = rt_absolute(NULL, log_dir);
    char *call = rt_path("%d:%s:%s:/proc/%ld/fd/%d:%s", s->port, s->secret, addresses, (long)getpid(), s->pages_file, full);
    setenv(WIRE_ENV, call, 1);
    gethostname(s->host, sizeof s->host - 1);
    free(addresses);
    free(full);
    free(call);
    return RT_OK;
}
