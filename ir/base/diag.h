// Spans, errors, notes, the caret.
#ifndef IR_BASE_DIAG_H
#define IR_BASE_DIAG_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "ir/base/arena.h"

// Half-open byte range [begin, end) of one source file.  {0} means "no source" (files count from 1).
typedef struct {
    uint32_t file, begin, end;
} Span;

typedef struct Diag Diag;

Diag *diag_new(Arena *a);
// Registers a source text (borrowed: it must live as long as d) and returns its number, from 1.
uint32_t    diag_add_file(Diag *d, const char *name, const char *text, size_t n);
const char *diag_file_name(const Diag *d, uint32_t file);
const char *diag_file_text(const Diag *d, uint32_t file, size_t *n);
int         diag_n_files(const Diag *d);
// Line and column, both from 1; columns count bytes.  {0,0} without source.
void diag_line_column(const Diag *d, Span at, int *line, int *column);

// Messages are kept until diag_print.  Wording: lower case, no full stop, what is and what must be, with values.
void diag_error(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void diag_warning(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void diag_note(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));   // belongs to the last message
void diag_help(Diag *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));            // likewise; only if always right

int  diag_n_errors(const Diag *d);
void diag_print(Diag *d, FILE *out, bool color);   // prints what was not printed yet, sorted as it came
void diag_clear(Diag *d);                          // forgets all messages (not the files)

#endif
