#include "frontend/cmd_bench_table.h"

#include <stdlib.h>
#include <string.h>

#include "ir/base/str.h"

int64_t bench_number(Cli *c, const char *option, int64_t least, int64_t otherwise, bool *ok) {
    const char *text = cli_value(c, option);
    if (!text) return otherwise;
    char *end;
    long long n = strtoll(text, &end, 10);
    if (end != text && !*end && n >= least && n <= 1000000000) return n;
    diag_error(c->diag, (Span){0}, "--%s is a whole number from %lld on, not '%s'", option, (long long)least, text);
    *ok = false;
    return otherwise;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static bool ends(const char *text, const char *with) {
    size_t n = strlen(text), k = strlen(with);
    return n >= k && !strcmp(text + n - k, with);
}

static const char *cell(Arena *a, const char *key, const json_t *v) {
    if (json_is_string(v)) return json_string_value(v);
    if (json_is_integer(v)) return arena_printf(a, "%lld", (long long)json_integer_value(v));
    if (json_is_boolean(v)) return json_is_true(v) ? "yes" : "no";
    if (!json_is_real(v)) return "-";
    double x = json_real_value(v);
    if (begins(key, "share")) return arena_printf(a, "%.1f%%", 100 * x);
    if (begins(key, "times")) return arena_printf(a, "%.2fx", x);
    if (ends(key, "_ms") || ends(key, "_us")) return arena_printf(a, x < 10 ? "%.3f" : "%.2f", x);
    return arena_printf(a, x < 100 ? "%.2f" : "%.1f", x);
}

// gflop_s -> GFLOP/s; share_of_fma -> share of fma
static const char *title(Arena *a, const char *key) {
    static const char *const units[][2] = {{"gflop_s", "GFLOP/s"}, {"gb_s", "GB/s"}, {"tokens_s", "tokens/s"},
                                           {"_mb", " MB"},         {"_", " "}};
    Str s = {.arena = a};
    str_add(&s, "");
    while (*key) {
        size_t i = 0, n = sizeof units / sizeof *units;
        while (i < n && !begins(key, units[i][0])) i++;
        if (i < n) str_add(&s, units[i][1]);
        else str_add_n(&s, key, 1);
        key += i < n ? strlen(units[i][0]) : 1;
    }
    return s.text;
}

enum { COLUMNS = 24 };

void bench_rows(Cli *c, const json_t *rows, FILE *out) {
    Arena *a = c->arena;
    const char *key[COLUMNS], *name;
    int width[COLUMNS], n = 0;
    const json_t *v, *row;
    size_t i;
    json_object_foreach((json_t *)json_array_get(rows, 0), name, v) if (n < COLUMNS) key[n++] = name;
    for (int k = 0; k < n; k++) {
        width[k] = (int)strlen(title(a, key[k]));
        json_array_foreach(rows, i, row) {
            int w = (int)strlen(cell(a, key[k], json_object_get(row, key[k])));
            if (w > width[k]) width[k] = w;
        }
    }
    for (int k = 0; k < n; k++) {
        bool text = json_is_string(json_object_get(json_array_get(rows, 0), key[k]));
        fprintf(out, "%s%*s", k ? "  " : "", text ? -width[k] : width[k], title(a, key[k]));
    }
    fputc('\n', out);
    json_array_foreach(rows, i, row) {
        for (int k = 0; k < n; k++) {
            v = json_object_get(row, key[k]);
            fprintf(out, "%s%*s", k ? "  " : "", json_is_string(v) ? -width[k] : width[k], cell(a, key[k], v));
        }
        fputc('\n', out);
    }
}

void bench_show(Cli *c, json_t *facts, json_t *rows) {
    if (cli_flag(c, "json")) {
        if (rows) json_object_set(facts, "rows", rows);
        json_dumpf(facts, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        fputc('\n', stdout);
    } else {
        const char *key;
        json_t *v;
        json_object_foreach(facts, key, v)
            if (!json_is_object(v) && !json_is_array(v)) printf("%-22s %s\n", title(c->arena, key), cell(c->arena, key, v));
        if (rows && json_array_size(rows)) {
            fputc('\n', stdout);
            bench_rows(c, rows, stdout);
        }
    }
    json_decref(facts);
    json_decref(rows);
}

int bench_finish(Cli *c, bool ok, const char *names, json_t *facts, json_t *rows) {
    if (ok && !json_array_size(rows)) {
        diag_error(c->diag, (Span){0}, "--only '%s' is part of no %s", cli_value(c, "only"), names);
        ok = false;
    }
    if (ok) {
        bench_show(c, facts, rows);
        return cli_finish(c, EXIT_DONE);
    }
    json_decref(facts);
    json_decref(rows);
    return cli_finish(c, EXIT_WRONG);
}
