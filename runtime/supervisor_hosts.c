// Going on without a host that is lost: fewer ranks, on those that are left.  Lanes of the step stay as many, so each rank takes
// more of them, and no bit changes.
#include "runtime/supervisor_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/files.h"

static int ranks_on(const Supervisor *s, const char *host) {
    int n = 0;
    for (int i = 0; i < s->ranks; i++) n += !strcmp(s->rank[i].host, host);
    return n;
}

// Silent: it is stopped or can't be reached.  Ranks of it that went may have crashed alone; so it is lost when, at the next
// attempt, nothing of it comes back.
const char *sv_lost_host(Supervisor *s) {
    const Rank *r = s->failed_rank >= 0 ? &s->rank[s->failed_rank] : NULL;
    bool stays_away = s->suspect[0] && s->cause == LAUNCHER && ranks_on(s, s->suspect) == 0;
    if (stays_away) return s->suspect;
    s->suspect[0] = 0;
    if (!r || r->is_local || (s->cause != SILENT && s->cause != LOST_RANK)) return NULL;
    snprintf(s->suspect, sizeof s->suspect, "%s", r->host);
    s->suspect_ranks = ranks_on(s, r->host);
    s->suspect_number = 0;                                   // among the hosts, in the order of their ranks
    for (int i = 1; i < s->ranks && strcmp(s->rank[i - 1].host, r->host) != 0; i++)
        s->suspect_number += strcmp(s->rank[i].host, s->rank[i - 1].host) != 0;
    return s->cause == SILENT ? s->suspect : NULL;
}

// "node1.cluster slots=8" is node1: by its first word, with or without what follows a dot.
static bool is_line_of(const char *line, const char *host) {
    size_t word = strcspn(line, " \t\n"), name = strcspn(line, ". \t\n"), own = strcspn(host, ".");
    bool is_number = line[0] >= '0' && line[0] <= '9';       // an address has dots, too
    return (word == strlen(host) && !strncmp(line, host, word)) || (!is_number && name == own && !strncmp(line, host, own));
}

static bool names_host(const char *line) {
    size_t blank = strspn(line, " \t");
    return line[blank] && line[blank] != '\n' && line[blank] != '#';
}

// The line of the lost host: by name, else the one of its number.
static int line_of(FILE *f, const Supervisor *s) {
    char line[LINE];
    int hosts = 0, by_number = -1, found = -1;
    for (int i = 0; fgets(line, sizeof line, f); i++) {
        if (!names_host(line)) continue;
        if (found < 0 && is_line_of(line + strspn(line, " \t"), s->suspect)) found = i;
        if (hosts++ == s->suspect_number) by_number = i;
    }
    rewind(f);
    return found >= 0 ? found : by_number;
}

// RUN/hosts: the host file without it.
static bool write_hosts(const Supervisor *s, const char *path) {
    char line[LINE], *beside = rt_path("%s.new", path);
    FILE *from = fopen(s->hostfile, "re"), *to = fopen(beside, "we");
    bool ok = from && to;
    int without = ok ? line_of(from, s) : -1, left = 0;
    for (int i = 0; ok && fgets(line, sizeof line, from); i++) {
        if (i == without) continue;
        left += names_host(line);
        ok = fputs(line, to) >= 0;
    }
    if (from) fclose(from);
    if (to) ok = fclose(to) == 0 && ok;
    ok = ok && without >= 0 && left > 0 && rename(beside, path) == 0;
    free(beside);
    return ok;
}

bool sv_leave_out(Supervisor *s, const char *host) {
    int left = s->ranks - s->suspect_ranks, ranks = s->ranks;
    while (ranks > left) ranks /= 2;
    if (ranks < s->o->fewest) {
        say(s, "given up: host %s is lost, and the %d rank%s of the others are fewer than the %d that share experts and matrices", host, left,
            left == 1 ? "" : "s", s->o->fewest);
        return false;
    }
    char *path = rt_path("%s/hosts", s->o->run_dir);
    bool ok = write_hosts(s, path);
    char *const *command = ok ? s->o->command_of(s->o->self, path, ranks) : NULL;
    if (!command) {
        say(s, "given up: host %s is lost, and %s cannot be written without it: %s", host, path, ok ? "no command" : strerror(errno));
        free(path);
        return false;
    }
    say(s, "host %s is lost: %d rank%s go on without it, of %d", host, ranks, ranks == 1 ? "" : "s", s->ranks);
    sv_event(s, "left_out", json_pack("{s:s, s:i, s:i}", "host", host, "ranks", ranks, "of", s->ranks));
    free(s->own_hosts);
    s->hostfile = s->own_hosts = path;
    s->command = command;
    s->next_ranks = ranks;
    s->suspect[0] = 0;
    return true;
}
