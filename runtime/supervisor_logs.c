// What is told: events, and the lines of ranks.
#include "runtime/supervisor_priv.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/files.h"

static const int64_t HOLD_NS = SECOND / 2;

// ---- what is told -------------------------------------------------------------------------------------------

// fields: taken over.
void sv_event(const Supervisor *s, const char *name, json_t *fields) {
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
void sv_skip_logs(Supervisor *s) {
    for (int i = 0; i < s->ranks; i++) {
        char *path = log_path(s, i);
        FILE *f = fopen(path, "r");
        if (f && fseek(f, 0, SEEK_END) == 0) s->rank[i].log_at = ftell(f);
        if (f) fclose(f);
        free(path);
    }
}

void sv_read_logs(Supervisor *s, int64_t now_ns, bool all) {
    read_log(s, 0, now_ns);
    if (all || now_ns - s->log_ns >= HOLD_NS) {
        for (int i = 1; i < s->ranks; i++) read_log(s, i, now_ns);
        s->log_ns = now_ns;
    }
    print_held(s, now_ns, all);
}
