// The table of errors that moec verify prints.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_verify.h"

enum { SHOWN_ALWAYS = 3, SHOWN_FAILURES = 20 };

double largest_error(const double *got, const double *want, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs(got[i] - want[i]);
        if (isnan(e)) return NAN;
        if (e > worst) worst = e;
    }
    return worst;
}

double largest_abs(const double *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabs(x[i]) > most) most = fabs(x[i]);
    return most;
}

const char *verify_shape(Arena *a, int ndim, const int64_t *dim) {
    Str s = {.arena = a};
    str_add(&s, ndim ? "" : "1");
    for (int i = 0; i < ndim; i++) str_printf(&s, "%s%lld", i ? "x" : "", (long long)dim[i]);
    return s.text;
}

Check *table_add(Table *t, const char *name, const char *shape, double error, double tolerance) {
    bool ok = error <= tolerance; // false for NaN
    vec_push(t->arena, &t->checks,
             ((Check){.name = name,
                      .shape = shape,
                      .error = error,
                      .tolerance = tolerance,
                      .verdict = ok ? CHECK_OK : CHECK_FAIL}));
    return &vec_last(&t->checks);
}

void table_fail(Table *t, const char *name, const char *shape, const char *note) {
    vec_push(t->arena, &t->checks,
             ((Check){.name = name, .shape = shape, .note = note, .verdict = CHECK_FAIL}));
}

void table_note(Table *t, const char *name, const char *note) {
    vec_push(t->arena, &t->checks, ((Check){.name = name, .shape = "", .note = note, .verdict = CHECK_NOTE}));
}

// The error as a share of what is allowed; infinite where that is nothing, or the error no number.
static double share(const Check *c) {
    if (c->note) return c->verdict == CHECK_FAIL ? INFINITY : 0;
    if (isnan(c->error)) return INFINITY;
    return c->error == 0 ? 0 : c->error / c->tolerance;
}

static int by_share(const void *a, const void *b) {
    double x = share(*(const Check *const *)a), y = share(*(const Check *const *)b);
    return x > y ? -1 : x < y;
}

static int by_name(const void *a, const void *b) {
    const Check *x = *(const Check *const *)a, *y = *(const Check *const *)b;
    bool x_note = x->verdict == CHECK_NOTE, y_note = y->verdict == CHECK_NOTE;
    return x_note != y_note ? x_note - y_note : strcmp(x->name, y->name);
}

static void print_check(const Check *c, int width) {
    static const char *const verdict[] = {"ok", "FAIL", "excused", ""};
    if (c->verdict == CHECK_NOTE)
        printf("%-*s  %s\n", width, c->name, c->note);
    else if (c->note)
        printf("%-*s  %-12s %s: %s\n", width, c->name, c->shape, verdict[c->verdict], c->note);
    else
        printf("%-*s  %-12s %9.2e  %9.2e  %s\n", width, c->name, c->shape, c->error, c->tolerance,
               verdict[c->verdict]);
}

// Of those that fold, puts what is to be printed behind shown[n_shown]; the rest is counted.
static int choose(const Table *t, bool all, const Check **shown, int n_shown, int *hidden,
                  int *hidden_failures) {
    const Check **many = arena_array(t->arena, const Check *, t->checks.n + 1);
    int n = 0;
    for (int i = 0; i < t->checks.n; i++)
        if (t->checks.at[i].folds) many[n++] = &t->checks.at[i];
    qsort(many, (size_t)n, sizeof *many, by_share);
    *hidden = *hidden_failures = 0;
    for (int i = 0; i < n; i++) {
        bool fails = many[i]->verdict == CHECK_FAIL;
        if (all || i < SHOWN_ALWAYS || (fails && i < SHOWN_FAILURES)) {
            shown[n_shown++] = many[i];
            continue;
        }
        ++*hidden;
        *hidden_failures += fails;
    }
    return n_shown;
}

static void print_checks(const Table *t, bool all) {
    const Check **shown = arena_array(t->arena, const Check *, t->checks.n + 1);
    int n = 0, hidden, hidden_failures, width = (int)strlen("tensor");
    for (int i = 0; i < t->checks.n; i++)
        if (!t->checks.at[i].folds) shown[n++] = &t->checks.at[i];
    n = choose(t, all, shown, n, &hidden, &hidden_failures);
    qsort(shown, (size_t)n, sizeof *shown, by_name);
    for (int i = 0; i < n; i++)
        if ((int)strlen(shown[i]->name) > width) width = (int)strlen(shown[i]->name);
    printf("%-*s  %-12s %9s  %9s\n", width, "tensor", "shape", "error", "allowed");
    for (int i = 0; i < n; i++) print_check(shown[i], width);
    if (hidden_failures)
        printf("... and %d more %s, %d of them FAIL (--all prints them)\n", hidden, t->many, hidden_failures);
    else if (hidden)
        printf("... and %d more %s, all closer (--all prints them)\n", hidden, t->many);
}

int table_print(const Table *t, const char *title, bool all, bool quiet) {
    const Check *worst = NULL;
    int compared = 0, failed = 0;
    for (int i = 0; i < t->checks.n; i++) {
        const Check *c = &t->checks.at[i];
        if (c->verdict == CHECK_NOTE) continue;
        compared++;
        failed += c->verdict == CHECK_FAIL;
        if (c->verdict != CHECK_EXCUSED && (!worst || share(c) > share(worst))) worst = c;
    }
    if (!quiet) print_checks(t, all);
    printf("%s: ", title);
    if (failed)
        printf("%d of %d tensors FAIL", failed, compared);
    else
        printf("%d tensors compared", compared);
    if (worst && isfinite(share(worst)))
        printf(", worst %.2g of its tolerance (%s)", share(worst), worst->name);
    else if (worst)
        printf(", worst: %s", worst->name);
    putchar('\n');
    return failed || !compared ? EXIT_WRONG : EXIT_DONE;
}
