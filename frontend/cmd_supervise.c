#include "frontend/cmd_supervise.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/cmd_ranks.h"
#include "runtime/comm.h"
#include "runtime/files.h"
#include "runtime/supervisor.h"

enum { MOST_RANKS = 1 << 16, MOST_RESTARTS = 1 << 20, MOST_SECONDS = 1 << 24 };

typedef VEC(char *) CommandLine;

static const char *const options[] = {"ranks", "hostfile", "launcher", "restarts", "stall-seconds", "elastic", NULL};

static bool is_among(const char *const *list, const char *word) {
    while (*list && strcmp(*list, word) != 0) list++;
    return *list != NULL;
}

bool supervise_is_asked(Cli *c) {
    bool asked = false;
    for (const char *const *o = options; *o; o++) asked |= cli_flag(c, *o);
    return asked;
}

// An option that is a number from `least` to `most`; absent: none.
static int64_t number(Cli *c, const char *option, int64_t least, int64_t most, int64_t none) {
    const char *text = cli_value(c, option);
    if (!text) return none;
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno || end == text || *end || n < least || n > most)
        diag_error(c->diag, (Span){0}, "--%s is a number from %lld to %lld, not '%s'", option, (long long)least,
                   (long long)most, text);
    return n;
}

// ---- the command --------------------------------------------------------------------------------------------

static void add(Cli *c, CommandLine *to, const char *word) { vec_push(c->arena, to, arena_strdup(c->arena, word)); }

// Words between blanks; '..' and ".." hold blanks.
static void add_words(Cli *c, CommandLine *to, const char *text) {
    while (*text) {
        char *word = arena_strdup(c->arena, text), *end = word, quote = 0;
        for (; *text && (quote || *text != ' '); text++) {
            if (*text == quote) quote = 0;
            else if (!quote && (*text == '\'' || *text == '"')) quote = *text;
            else *end++ = *text;
        }
        *end = 0;
        if (end > word) vec_push(c->arena, to, word);
        while (*text == ' ') text++;
    }
}

static bool is_mpirun(const char *program) {
    const char *slash = strrchr(program, '/'), *name = slash ? slash + 1 : program;
    return !strcmp(name, "mpirun") || !strcmp(name, "mpiexec") || !strcmp(name, "orterun");
}

// mpirun hands its environment to its own host only.
static void add_environment(Cli *c, CommandLine *to) {
    extern char **environ;
    add(c, to, "-x");
    add(c, to, "MOEC_SUPERVISOR");
    add(c, to, "-x");
    add(c, to, "MOEC_ATTEMPT");
    for (char **e = environ; *e; e++) {
        const char *eq = strchr(*e, '=');
        if (!eq || strncmp(*e, "MOEC_", 5) != 0) continue;
        add(c, to, "-x");
        vec_push(c->arena, to, arena_strndup(c->arena, *e, (size_t)(eq - *e)));
    }
}

// By option, or by what mpirun itself looks at.
static bool has_hosts(Cli *c) {
    return cli_flag(c, "hostfile") || getenv("OMPI_MCA_orte_default_hostfile") || getenv("PRTE_MCA_prte_default_hostfile");
}

static void add_launcher(Cli *c, CommandLine *to, const char *hostfile, int ranks) {
    const char *launcher = cli_value(c, "launcher");
    add_words(c, to, launcher ? launcher : "mpirun");
    if (hostfile) {
        add(c, to, "--hostfile");
        add(c, to, hostfile);
    }
    if (!launcher) {
        add(c, to, "--bind-to");                 // a rank's threads have the host's cores divided by its ranks
        add(c, to, "none");
    }
    if (!launcher && !has_hosts(c) && ranks > sysconf(_SC_NPROCESSORS_ONLN))
        add_words(c, to, "--oversubscribe --mca mpi_yield_when_idle 1");
    if (is_mpirun(to->at[0]) && (launcher || has_hosts(c))) add_environment(c, to);
    add(c, to, "-n");
    add(c, to, arena_printf(c->arena, "%d", ranks));
}

// dp: > 0: other than settings say.
static void add_program(Cli *c, CommandLine *to, const char *out, int dp) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    add(c, to, n > 0 ? self : c->program);
    add(c, to, "train");
    add(c, to, c->args.at[0]);
    for (int i = 0; i < c->sets.n; i++) {
        add(c, to, "--set");
        add(c, to, c->sets.at[i]);
    }
    if (dp) {
        add(c, to, "--set");
        add(c, to, arena_printf(c->arena, "parallel.dp=%d", dp));
    }
    for (int i = 0; i < c->given.n; i++) {
        const char *name = c->given.at[i].name, *value = c->given.at[i].value;
        if (is_among(options, name) || !strcmp(name, "out") || !strcmp(name, "resume")) continue;
        add(c, to, *value ? arena_printf(c->arena, "--%s=%s", name, value) : arena_printf(c->arena, "--%s", name));
    }
    add(c, to, "--out");
    add(c, to, out);
    bool is_begun = !cli_flag(c, "dry-run");     // by supervise; without a checkpoint --resume begins anew
    if (is_begun || cli_flag(c, "resume")) add(c, to, "--resume");
}

typedef struct {
    Cli *c;
    const char *out;
    RtMesh mesh;
} Run;

static char **command_of(const Run *r, const char *hostfile, int ranks, bool fewer) {
    CommandLine command = {0};
    bool remote = has_hosts(r->c) || cli_flag(r->c, "launcher");
    if (ranks > 1 || remote) add_launcher(r->c, &command, hostfile, ranks);
    add_program(r->c, &command, r->out, fewer ? ranks / (r->mesh.ep * r->mesh.tp) : 0);
    vec_push(r->c->arena, &command, NULL);
    return command.at;
}

static char *const *command_of_fewer(void *self, const char *hostfile, int ranks) { return command_of(self, hostfile, ranks, true); }

// ---- checks, which ranks would make each for itself ---------------------------------------------------------

static bool check_options(Cli *c, int ranks) {
    bool has_ranks = cli_flag(c, "ranks");
    static const char *const with_ranks[] = {"hostfile", "launcher"};
    if (rt_comm_world_size() > 1)
        diag_error(
            c->diag, (Span){0},
            "mpirun started %d processes, each of which would supervise: moec train --ranks %d starts mpirun by itself",
            rt_comm_world_size(), rt_comm_world_size());
    if (has_ranks && cli_flag(c, "local"))
        diag_error(c->diag, (Span){0}, "--ranks %d are processes, --local %s threads of one: choose", ranks,
                   cli_value(c, "local"));
    for (int i = 0; i < 2; i++)
        if (!has_ranks && cli_flag(c, with_ranks[i]))
            diag_error(c->diag, (Span){0}, "--%s needs --ranks N, the number of ranks to start", with_ranks[i]);
    const char *hostfile = cli_value(c, "hostfile");
    if (cli_flag(c, "elastic") && (!hostfile || !cli_flag(c, "restarts")))
        diag_error(c->diag, (Span){0}, "--elastic goes on without a host that is lost: it needs --hostfile FILE and --restarts N");
    if (hostfile && access(hostfile, R_OK) != 0)
        diag_error(c->diag, (Span){0}, "--hostfile %s: %s", hostfile, strerror(errno));
    const char *launcher = cli_value(c, "launcher");
    if (launcher && !launcher[strspn(launcher, " ")])
        diag_error(c->diag, (Span){0}, "--launcher is a command, not nothing");
    return diag_n_errors(c->diag) == 0;
}

static bool may_write(Cli *c, const char *out) {
    struct stat st;
    bool is_there = stat(out, &st) == 0, resume = cli_flag(c, "resume");
    if (!resume && is_there)
        diag_error(c->diag, (Span){0}, "%s exists; --resume goes on with it, another --out begins anew", out);
    if (resume && !is_there) diag_error(c->diag, (Span){0}, "there is no run %s to resume", out);
    RtError e = {0};
    bool is_to_be = diag_n_errors(c->diag) == 0 && !cli_flag(c, "dry-run");
    if (is_to_be && rt_make_dirs(out, &e) != RT_OK) diag_error(c->diag, (Span){0}, "%s", e.text);
    return diag_n_errors(c->diag) == 0;
}

// The model's text, its settings and how ranks share it.
static bool check_run(Cli *c, int ranks, Run *run) {
    Session s;
    const char *local = cli_value(c, "local");
    Ranks r = {.n = local ? atoi(local) : ranks, .local = local != NULL};
    if (!session_open(&s, c, c->args.at[0], 0, NULL) || !session_can_train(&s, r.n) ||
        !ranks_mesh(&s, &r, &s.train.mesh))
        return false;
    const char *out = cli_value(c, "out");
    *run = (Run){c, out ? out : arena_printf(c->arena, "runs/%s", program_model_name(s.program)), s.train.mesh};
    return true;
}

// In place of this process: all hosts are asked by the command that would train.
static int start_dry_run(Cli *c, char *const *command) {
    fputs("command     ", stdout);
    for (char *const *w = command; *w; w++) {
        if (!strcmp(*w, "--dry-run")) continue;
        bool is_plain = **w && !strpbrk(*w, " '\"\\$`*?[](){}<>|&;#~!");
        printf(is_plain ? "%s%s" : "%s'%s'", w == command ? "" : " ", *w);
    }
    putchar('\n');
    fflush(stdout);
    execvp(command[0], command);
    diag_error(c->diag, (Span){0}, "%s: %s", command[0], strerror(errno));
    return cli_finish(c, EXIT_WRONG);
}

int supervise(Cli *c) {
    int ranks = (int)number(c, "ranks", 1, MOST_RANKS, 1);
    int restarts = (int)number(c, "restarts", 0, MOST_RESTARTS, 0);
    int64_t stall = number(c, "stall-seconds", 1, MOST_SECONDS, 0);
    Run run;
    if (diag_n_errors(c->diag) || !check_options(c, ranks) || !check_run(c, ranks, &run)) return cli_finish(c, EXIT_WRONG);
    diag_clear(c->diag);                         // the first rank warns of the same
    if (!may_write(c, run.out)) return cli_finish(c, EXIT_WRONG);
    const char *hostfile = cli_value(c, "hostfile");
    char *const *command = command_of(&run, hostfile, ranks, false);
    if (cli_flag(c, "dry-run")) return start_dry_run(c, command);
    RtSuperviseOpts o = {.command = command, .ranks = ranks, .remote = has_hosts(c) || cli_flag(c, "launcher"), .run_dir = run.out,
                         .restarts = restarts, .stall_ns = stall * 1000000000, .out = STDERR_FILENO};
    if (cli_flag(c, "elastic")) {
        o.hostfile = hostfile;
        o.fewest = run.mesh.ep * run.mesh.tp;
        o.command_of = command_of_fewer;
        o.self = &run;
    }
    return rt_supervise(&o);
}
