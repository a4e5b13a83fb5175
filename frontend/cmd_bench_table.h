// What benches share: their options, and rows of numbers shown as a table or as JSON.
#ifndef FRONTEND_CMD_BENCH_TABLE_H
#define FRONTEND_CMD_BENCH_TABLE_H
#include <jansson.h>

#include "frontend/cli.h"

// A whole number of at least `least` given by an option; `otherwise` where it is not given.  *ok: false after an error.
int64_t bench_number(Cli *c, const char *option, int64_t least, int64_t otherwise, bool *ok);

// Prints facts (an object), then rows (an array of objects with the same keys), and frees both.  With --json: one object,
// the facts and "rows".  Units are part of keys: gflop_s, step_ms; a key that begins with share is a part of 1, one that
// begins with times a ratio; both are shown so in the table.
void bench_show(Cli *c, json_t *facts, json_t *rows);
// Ends a bench that --only may leave without rows: which is an error that says what names look like ("product's name, such as
// 'f32 x w 16x512x1792'").  ok false: an error was told.  Frees facts and rows.
int bench_finish(Cli *c, bool ok, const char *names, json_t *facts, json_t *rows);
// The table alone.
void bench_rows(Cli *c, const json_t *rows, FILE *out);

// The middle one; sorts x.
double bench_median(double *x, int n);

#endif
