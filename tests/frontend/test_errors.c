// Every file of tests/frontend/errors says with `// ERROR: text` on a line what is wrong there: exactly those
// messages must come, each on its line.  `// SET: D=3` sets from outside, `// EXPECT: text` is a message
// about that.
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/program.h"

#define FOLDER "tests/frontend/errors"

typedef struct { int line; char text[400]; bool seen; } Expected;

static int read_expected(const char *path, Expected *out, int most, char sets[][100], int *n_sets) {
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char line[600];
    int n = 0;
    *n_sets = 0;
    for (int number = 1; fgets(line, sizeof line, f); number++) {
        line[strcspn(line, "\n")] = 0;
        char *p;
        if ((p = strstr(line, "// SET: "))) snprintf(sets[(*n_sets)++], 100, "%s", p + 8);
        int at = 0;
        if ((p = strstr(line, "// ERROR: "))) at = number, p += 10;
        else if ((p = strstr(line, "// EXPECT: "))) p += 11;
        if (!p || !at) {
            if (!(p && strstr(line, "// EXPECT: "))) continue;
        }
        assert_true(n < most);
        out[n].line = at;
        out[n].seen = false;
        snprintf(out[n++].text, sizeof out[0].text, "%s", p);
    }
    fclose(f);
    return n;
}

static void check_file(const char *name) {
    char path[300];
    snprintf(path, sizeof path, FOLDER "/%s", name);
    Expected expected[32];
    char sets[8][100];
    int n_sets, n = read_expected(path, expected, 32, sets, &n_sets);

    Arena *a = arena_create();
    Diag *d = diag_new(a);
    Program *p = program_load(a, d, path, "models");
    for (int i = 0; p && i < n_sets; i++) program_set(p, sets[i]);
    if (p && program_model_name(p) && program_settings(p)) {
        ElabOpts opts = program_train_opts(p);
        bool ok = program_elaborate(p, a, &opts) != NULL;
        assert_true(ok || diag_n_errors(d) > 0);
        opts.kind = ELAB_EVAL;
        program_elaborate(p, a, &opts);
    }
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    diag_print(d, out, false);
    fclose(out);

    int wrong = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char *message = strstr(line, ": error: ");
        if (!message) continue;
        int number = 0;
        if (strncmp(line, path, strlen(path)) == 0) number = atoi(line + strlen(path) + 1);
        bool found = false;
        for (int i = 0; i < n && !found; i++)
            if (!expected[i].seen && (expected[i].line == number || !expected[i].line) &&
                strstr(message, expected[i].text))
                found = expected[i].seen = true;
        if (!found) {
            print_error("not expected: %s\n", line);
            wrong++;
        }
    }
    for (int i = 0; i < n; i++)
        if (!expected[i].seen) {
            print_error("%s:%d: did not come: %s\n", path, expected[i].line, expected[i].text);
            wrong++;
        }
    free(text);
    arena_destroy(a);
    if (n == 0 && strcmp(name, "errors_norm.moe") != 0) {
        print_error("%s expects nothing\n", path);
        wrong++;
    }
    if (wrong) fail();
}

static void run_file(void **state) { check_file(*state); }

static int is_program(const struct dirent *e) {
    size_t n = strlen(e->d_name);
    return n > 4 && strcmp(e->d_name + n - 4, ".moe") == 0;
}

int main(void) {
    struct dirent **files;
    int n = scandir(FOLDER, &files, is_program, alphasort);
    if (n <= 0) return fprintf(stderr, "run this from the source folder\n"), 1;
    struct CMUnitTest *tests = calloc((size_t)n, sizeof *tests);
    for (int i = 0; i < n; i++)
        tests[i] = (struct CMUnitTest){files[i]->d_name, run_file, NULL, NULL, files[i]->d_name};
    int failed = _cmocka_run_group_tests("messages", tests, (size_t)n, NULL, NULL);
    for (int i = 0; i < n; i++) free(files[i]);
    free(files);
    free(tests);
    return failed;
}
