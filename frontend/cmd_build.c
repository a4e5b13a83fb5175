// build: objects and plan from the target, linked by the system's cc with the runtime into one executable.
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frontend/cmd_session.h"

// Where the trainer's parts are: beside an installed program, or in the build folder (bin/..).
static const char *find_libraries(Arena *a) {
    const char *given = getenv("MOEC_LIB");
    if (given && *given) return given;
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0) return NULL;
    exe[n] = 0;
    char *folder = dirname(exe);
    static const char *const places[] = {"../lib/moec", ".."};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *try = arena_printf(a, "%s/%s", folder, places[i]);
        if (access(arena_printf(a, "%s/libruntime.a", try), R_OK) == 0) return try;
    }
    return NULL;
}

static void remove_folder(const char *dir) {
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", "--", dir, (char *)NULL);
        _exit(127);
    }
    if (pid > 0) waitpid(pid, NULL, 0);
}

// $CC OBJECTS library... -o OUT; false after an error with what it said on stderr.
static bool link_trainer(Session *s, const char *dir, const char *lib, const char *out) {
    static const char line[] =
        "exec ${CC:-cc} -o \"$1\" \"$2\"/*.o \"$3/libtrainer.a\" \"$3/libruntime.a\" \"$3/libir.a\" "
        "-fopenmp -ljansson -lpcre2-8 -lxxhash -lpthread -lm";
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", line, "sh", out, dir, lib, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status)) {
        const char *cc = getenv("CC");
        diag_error(s->diag, (Span){0},
                   "%s could not link the trainer; it must be a C compiler with OpenMP and find the libraries "
                   "jansson, pcre2-8 and xxhash (on Debian: gcc libjansson-dev libpcre2-dev libxxhash-dev)",
                   cc && *cc ? cc : "cc");
        return false;
    }
    return true;
}

int cmd_build(Cli *c) {
    Session s;
    if (!session_open(&s, c, c->args.at[0], 0, NULL) || !session_can_train(&s, 1)) return cli_finish(c, EXIT_WRONG);
    const char *out = cli_value(c, "o");
    if (!out) out = program_model_name(s.program);
    const char *lib = find_libraries(c->arena);
    if (!lib) return cli_fail(c, "the trainer's libraries are not beside this program; MOEC_LIB names their folder");
    Programs p;
    if (!session_programs(&s, WANT_TRAIN | WANT_EVAL | WANT_RUN, &p)) return cli_finish(c, EXIT_WRONG);
    const char *tmp = getenv("TMPDIR");
    char *dir = arena_printf(c->arena, "%s/moec-build-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return cli_fail(c, "%s: %s", dir, strerror(errno));
    const char *beside = arena_printf(c->arena, "%s.tmp%d", out, (int)getpid());
    const Target *t = target_find("cpu");
    CompileOpts o = session_compile_opts(&s);
    char *json = session_json(&s);
    o.info_json = json;
    bool ok = t->emit_objects((Graph *[]){p.pass, p.update, p.eval, p.run}, 4, &o, dir, c->diag) && link_trainer(&s, dir, lib, beside);
    free(json);
    remove_folder(dir);
    if (ok && rename(beside, out) != 0) {
        diag_error(c->diag, (Span){0}, "%s: %s", out, strerror(errno));
        ok = false;
    }
    if (!ok) unlink(beside);
    else if (!c->quiet) printf("%s: train, eval and generate of %s\n", out, program_model_name(s.program));
    session_close(&s);
    return cli_finish(c, ok ? EXIT_DONE : EXIT_WRONG);
}
