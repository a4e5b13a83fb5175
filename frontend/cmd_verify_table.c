// The table of errors that moec verify prints.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_verify.h"

enum { SHOWN_GRADIENTS = 3, SHOWN_FAILURES = 20 };

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

void table_add(Table *t, const char *name, const char *shape, double error, double tolerance) {
    bool ok = error <= tolerance;                              // false for NaN
    vec_push(t->arena, &t->checks, ((Check){.name = name, .shape = shape, .error = error, .tolerance = tolerance,
             .verdict = ok ? CHECK_OK : CHECK_FAIL, .gradient = !strncmp(name, "grad.", 5)}));
}

void table_fail(Table *t, const char *name, const char *shape, const char *note) {
    vec_push(t->arena, &t->checks, ((Check){.name = name, .shape = shape, .note = note, .verdict = CHECK_FAIL}));
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

static void print_check(const Check *c, int width) {
    static const char *const verdict[] = {"ok", "FAIL", "excused", ""};
    if (c->note) printf("%-*s  %-12s %s  %s\n", width, c->name, c->shape, c->note, verdict[c->verdict]);
    else printf("%-*s  %-12s %9.2e  %9.2e  %s\n", width, c->name, c->shape, c->error, c->tolerance, verdict[c->verdict]);
}

int table_print(const Table *t, const char *title, bool all, bool quiet) {
    const Check **gradient = arena_array(t->arena, const Check *, t->checks.n + 1), *worst = NULL;
    bool *shown = arena_array(t->arena, bool, t->checks.n + 1);
    int n_gradients = 0, n_shown = 0, compared = 0, failed = 0, failed_gradients = 0;
    int width = (int)strlen("tensor");
    for (int i = 0; i < t->checks.n; i++) {
        const Check *c = &t->checks.at[i];
        compared += c->verdict != CHECK_NOTE;
        failed += c->verdict == CHECK_FAIL;
        if (c->verdict != CHECK_NOTE && c->verdict != CHECK_EXCUSED && (!worst || share(c) > share(worst))) worst = c;
        if (c->gradient) gradient[n_gradients++] = c;
        else shown[i] = true;
    }
    qsort(gradient, (size_t)n_gradients, sizeof *gradient, by_share);
    for (int i = 0; i < n_gradients; i++) {
        bool fails = gradient[i]->verdict == CHECK_FAIL;
        failed_gradients += fails;
        bool show = all || i < SHOWN_GRADIENTS || (fails && i < SHOWN_FAILURES);
        shown[gradient[i] - t->checks.at] = show;
        n_shown += show;
    }
    for (int i = 0; i < t->checks.n; i++)
        if (shown[i] && (int)strlen(t->checks.at[i].name) > width) width = (int)strlen(t->checks.at[i].name);
    if (!quiet) {
        printf("%-*s  %-12s %9s  %9s\n", width, "tensor", "shape", "error", "allowed");
        for (int i = 0; i < t->checks.n; i++)
            if (shown[i]) print_check(&t->checks.at[i], width);
        int hidden = n_gradients - n_shown, hidden_failures = failed_gradients > SHOWN_FAILURES && !all ? failed_gradients - SHOWN_FAILURES : 0;
        if (hidden_failures) printf("... and %d more gradients, %d of them FAIL (--all prints them)\n", hidden, hidden_failures);
        else if (hidden) printf("... and %d more gradients, all closer (--all prints them)\n", hidden);
    }
    printf("%s: ", title);
    if (failed) printf("%d of %d tensors FAIL", failed, compared);
    else printf("%d tensors compared", compared);
    if (worst && isfinite(share(worst))) printf(", worst %.2g of its tolerance (%s)", share(worst), worst->name);
    else if (worst) printf(", worst: %s", worst->name);
    putchar('\n');
    return failed || !compared ? EXIT_WRONG : EXIT_DONE;
}
