// No input may bring the program down: every file of tests/fuzz/corpus, then mutations of them for a few
// seconds each.
//
//     MOEC_FUZZ_SECONDS=60 test_fuzz          longer
//     test_fuzz language FILE..               these files alone
//
// An input that ends or stalls the process is left in moec-fuzz-TARGET in $TMPDIR or /tmp.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "tests/fuzz/fuzz.h"

enum { MOST_SEEDS = 512, STALLS_AFTER_S = 20 };

typedef struct {
    const char *name;
    double share;
    const char *seeds;
    FuzzFn *run;
} Target;
static const Target targets[] = {
#define FUZZ(name, share, seeds, doc) {#name, share, seeds, fuzz_##name},
#include "tests/fuzz/targets.def"
#undef FUZZ
};
enum { N_TARGETS = sizeof targets / sizeof *targets, SECONDS_FOR_ALL = 44 };

typedef struct {
    uint8_t *data;
    size_t n;
} Input;
typedef struct {
    Input at[MOST_SEEDS];
    int n;
} Seeds;

// ---- what runs now, for the case that it does not come back ---------------------------------------------

static uint8_t current[FUZZ_MAX_BYTES];
static size_t n_current;
static char left_in[256];

static void leave_input(int number) {
    int fd = open(left_in, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0) {
        if (write(fd, current, n_current) < 0 || write(2, "input left in ", 14) < 0 ||
            write(2, left_in, strlen(left_in)) < 0 || write(2, "\n", 1) < 0)
            _exit(2);
        close(fd);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void watch(const Target *t) {
    const char *tmp = getenv("TMPDIR");
    snprintf(left_in, sizeof left_in, "%s/moec-fuzz-%s", tmp ? tmp : "/tmp", t->name);
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) signal(numbers[i], leave_input);
}

static void run(const Target *t) {
    alarm(STALLS_AFTER_S);
    t->run(current, n_current);
    alarm(0);
}

// ---- inputs ---------------------------------------------------------------------------------------------

static void add_file(Seeds *s, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot read %s", path);
    Input in = {.data = malloc(FUZZ_MAX_BYTES)};
    in.n = fread(in.data, 1, FUZZ_MAX_BYTES, f);
    fclose(f);
    if (s->n == MOST_SEEDS) fail_msg("more than %d inputs", MOST_SEEDS);
    s->at[s->n++] = in;
}

static int is_input(const struct dirent *e) { return e->d_name[0] != '.'; }

static void add_folder(Seeds *s, const char *folder) {
    struct dirent **entry;
    int n = scandir(folder, &entry, is_input, alphasort);
    for (int i = 0; i < n; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry[i]->d_name);
        if (entry[i]->d_type != DT_DIR) add_file(s, path);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
}

static Seeds *seeds_of(const Target *t) {
    Seeds *s = calloc(1, sizeof *s);
    char folder[600];
    snprintf(folder, sizeof folder, "tests/fuzz/corpus/%s", t->name);
    add_folder(s, folder);
    for (const char *at = t->seeds; *at; at += strcspn(at, ":"), at += *at == ':') {
        snprintf(folder, sizeof folder, "%.*s", (int)strcspn(at, ":"), at);
        add_folder(s, folder);
    }
    return s;
}

static void free_seeds(Seeds *s) {
    for (int i = 0; i < s->n; i++) free(s->at[i].data);
    free(s);
}

static void load(const Input *in) {
    memcpy(current, in->data, in->n);
    n_current = in->n;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void survives(void **state) {
    const Target *t = *state;
    Seeds *s = seeds_of(t);
    assert_true(s->n > 0);
    watch(t);
    const char *wanted = getenv("MOEC_FUZZ_SECONDS");
    double shares = 0;
    for (int i = 0; i < N_TARGETS; i++) shares += targets[i].share;
    double end = now() + (wanted ? atof(wanted) : SECONDS_FOR_ALL * t->share / shares);
    for (int i = 0; i < s->n; i++) {
        load(&s->at[i]);
        run(t);
    }
    int n = 0;
    for (uint64_t random = 1; now() < end; n++) {
        const Input *a = &s->at[n % s->n], *b = &s->at[(n * 7 + n / s->n) % s->n];
        load(a);
        n_current = fuzz_mutate(current, n_current, FUZZ_MAX_BYTES, b->data, b->n, &random);
        run(t);
    }
    print_message("%s: %d inputs, %d mutations\n", t->name, s->n, n);
    free_seeds(s);
}

static int run_files(const char *name, char **path, int n) {
    for (int i = 0; i < N_TARGETS; i++) {
        if (strcmp(targets[i].name, name)) continue;
        watch(&targets[i]);
        for (int k = 0; k < n; k++) {
            Seeds *s = calloc(1, sizeof *s);
            add_file(s, path[k]);
            load(&s->at[0]);
            run(&targets[i]);
            free_seeds(s);
        }
        return 0;
    }
    fprintf(stderr, "there is no target %s\n", name);
    return 2;
}

int main(int argc, char **argv) {
    if (argc > 2) return run_files(argv[1], argv + 2, argc - 2);
    struct CMUnitTest tests[N_TARGETS];
    int n = 0;
    for (int i = 0; i < N_TARGETS; i++)
        if (argc < 2 || !strcmp(targets[i].name, argv[1]))
            tests[n++] =
                (struct CMUnitTest){targets[i].name, survives, NULL, NULL, (void *)(uintptr_t)&targets[i]};
    return _cmocka_run_group_tests("survives", tests, (size_t)n, NULL, NULL);
}
