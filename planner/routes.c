#include "planner/routes.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ir/base/str.h"
#include "ir/base/vec.h"

typedef struct {
    int64_t  step;
    uint32_t exchange;
    int      experts, nodes;
    int32_t *rows, *distinct;
} Line;

typedef VEC(Line) Lines;

struct RouteLog {
    int ranks;
    int64_t steps;
    Lines *of;                 // [ranks]
};

static bool read_counts(Arena *a, const json_t *list, int32_t **out) {
    bool ok = true;
    *out = arena_array(a, int32_t, (int)json_array_size(list) + 1);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        ok &= json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= INT32_MAX;
        (*out)[i] = (int32_t)json_integer_value(v);
    }
    return ok;
}

static bool read_line(Arena *a, const char *text, Line *out) {
    json_t *o = json_loads(text, 0, NULL);
    const json_t *rows = json_object_get(o, "rows"), *step = json_object_get(o, "step"), *exchange = json_object_get(o, "exchange"),
                 *nodes = json_object_get(o, "nodes");
    *out = (Line){json_integer_value(step), (uint32_t)json_integer_value(exchange), (int)json_array_size(rows), (int)json_array_size(nodes), NULL, NULL};
    bool ok = json_is_integer(step) && json_is_integer(exchange) && out->experts > 0 && read_counts(a, rows, &out->rows) &&
              read_counts(a, nodes, &out->distinct);
    json_decref(o);
    return ok;
}

static bool read_rank(Arena *a, Diag *d, const char *path, Lines *to) {
    FILE *f = fopen(path, "r");
    if (!f) {
        diag_error(d, (Span){0}, "%s: %s", path, strerror(errno));
        return false;
    }
    char *text = NULL;
    size_t room = 0;
    bool ok = true;
    while (ok && getline(&text, &room, f) > 0) {
        Line line;
        ok = read_line(a, text, &line);
        if (ok) vec_push(a, to, line);
        else diag_error(d, (Span){0}, "%s:%d: not a line that train --record-routes writes", path, to->n + 1);
    }
    free(text);
    fclose(f);
    return ok;
}

RouteLog *routes_read(Arena *a, Diag *d, const char *dir, int ranks) {
    RouteLog *log = arena_new(a, RouteLog);
    *log = (RouteLog){.ranks = ranks, .of = arena_array(a, Lines, ranks)};
    for (int i = 0; i < ranks; i++)
        if (!read_rank(a, d, arena_printf(a, "%s/rank-%04d.jsonl", dir, i), &log->of[i])) return NULL;
    const Lines *first = &log->of[0];
    for (int i = 1; i < ranks; i++) {
        bool same = log->of[i].n == first->n;
        for (int k = 0; same && k < first->n; k++)
            same = log->of[i].at[k].step == first->at[k].step && log->of[i].at[k].exchange == first->at[k].exchange;
        if (same) continue;
        diag_error(d, (Span){0}, "%s: ranks 0 and %d have recorded different exchanges", dir, i);
        return NULL;
    }
    if (!first->n) {
        diag_error(d, (Span){0}, "%s: nothing was recorded", dir);
        return NULL;
    }
    for (int k = 0; k < first->n; k++) log->steps += k == 0 || first->at[k].step != first->at[k - 1].step;
    return log;
}

int64_t routes_steps(const RouteLog *log) { return log->steps; }
int routes_lines(const RouteLog *log) { return log->of[0].n; }
uint32_t routes_exchange(const RouteLog *log, int line) { return log->of[0].at[line].exchange; }

static bool is_of(const Line *l, int experts, int nodes) { return l->experts == experts && (!nodes || l->nodes == nodes); }

bool routes_rows(const RouteLog *log, int line, int rank, int32_t *to, int experts, int32_t *distinct, int nodes) {
    const Line *l = &log->of[rank].at[line];
    if (!is_of(l, experts, nodes)) return false;
    memcpy(to, l->rows, sizeof *to * (size_t)experts);
    if (nodes) memcpy(distinct, l->distinct, sizeof *distinct * (size_t)nodes);
    return true;
}

bool routes_mean(const RouteLog *log, uint32_t exchange, int rank, int32_t *to, int experts, int32_t *distinct, int nodes) {
    int64_t n = 0;
    for (int e = 0; e < experts + nodes; e++) {
        int64_t sum = n = 0;
        for (int i = 0; i < routes_lines(log); i++) {
            const Line *l = &log->of[rank].at[i];
            if (l->exchange != exchange || !is_of(l, experts, nodes)) continue;
            sum += e < experts ? l->rows[e] : l->distinct[e - experts];
            n++;
        }
        *(e < experts ? to + e : distinct + e - experts) = n ? (int32_t)((sum + n / 2) / n) : 0;
    }
    return n > 0;
}
