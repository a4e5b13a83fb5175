#include "ir/base/diag.h"

#include <stdarg.h>
#include <string.h>

#include "ir/base/str.h"
#include "ir/base/vec.h"

typedef enum { M_ERROR, M_WARNING, M_NOTE, M_HELP } Kind;

typedef struct {
    Kind kind;
    Span at;
    const char *text;
} Message;

typedef struct {
    const char *name, *text;
    size_t n;
} File;

struct Diag {
    Arena *arena;
    VEC(File) files;
    VEC(Message) messages;
    int n_errors, printed;
    bool dropping;    // the last message repeated an earlier one: its notes go too
};

Diag *diag_new(Arena *a) {
    Diag *d = arena_new(a, Diag);
    d->arena = a;
    return d;
}

uint32_t diag_add_file(Diag *d, const char *name, const char *text, size_t n) {
    File f = {arena_strdup(d->arena, name), text, n};
    vec_push(d->arena, &d->files, f);
    return (uint32_t)d->files.n;
}

const char *diag_file_name(const Diag *d, uint32_t file) {
    return file >= 1 && file <= (uint32_t)d->files.n ? d->files.at[file - 1].name : NULL;
}

const char *diag_file_text(const Diag *d, uint32_t file, size_t *n) {
    if (file < 1 || file > (uint32_t)d->files.n) return NULL;
    if (n) *n = d->files.at[file - 1].n;
    return d->files.at[file - 1].text;
}

int diag_n_files(const Diag *d) { return d->files.n; }

void diag_line_column(const Diag *d, Span at, int *line, int *column) {
    *line = *column = 0;
    size_t n = 0;
    const char *text = diag_file_text(d, at.file, &n);
    if (!text) return;
    *line = 1;
    size_t start = 0;
    for (size_t i = 0; i < at.begin && i < n; i++)
        if (text[i] == '\n') {
            ++*line;
            start = i + 1;
        }
    *column = (int)(at.begin - start) + 1;
}

static void add(Diag *d, Kind kind, Span at, const char *fmt, va_list ap) {
    Str s = {.arena = d->arena};
    str_vprintf(&s, fmt, ap);
    Message m = {kind, at, s.text ? s.text : ""};
    if (kind <= M_WARNING) {
        d->dropping = false;      // the same mistake, met twice on the way (a function called twice), is told once
        for (int i = 0; i < d->messages.n; i++) {
            Message *o = &d->messages.at[i];
            if (o->kind == kind && !memcmp(&o->at, &at, sizeof at) && !strcmp(o->text, m.text)) d->dropping = true;
        }
        if (kind == M_ERROR) d->n_errors++;
    }
    if (!d->dropping) vec_push(d->arena, &d->messages, m);
}

#define ADD(KIND, AT)              \
    va_list ap;                    \
    va_start(ap, fmt);             \
    add(d, KIND, AT, fmt, ap);     \
    va_end(ap)

void diag_error(Diag *d, Span at, const char *fmt, ...) { ADD(M_ERROR, at); }
void diag_warning(Diag *d, Span at, const char *fmt, ...) { ADD(M_WARNING, at); }
void diag_note(Diag *d, Span at, const char *fmt, ...) { ADD(M_NOTE, at); }
void diag_help(Diag *d, const char *fmt, ...) { ADD(M_HELP, (Span){0}); }

int diag_n_errors(const Diag *d) { return d->n_errors; }

void diag_clear(Diag *d) {
    d->messages.n = 0;
    d->n_errors = d->printed = 0;
    d->dropping = false;
}

// The source line with the caret under [begin, end), cut at the end of the line.
static void print_caret(const Diag *d, Span at, int line, int column, FILE *out, const char *on, const char *off) {
    size_t n = 0;
    const char *text = diag_file_text(d, at.file, &n);
    size_t start = at.begin - (size_t)(column - 1), end = start;
    while (end < n && text[end] != '\n') end++;
    fprintf(out, "%5d | %.*s\n      | ", line, (int)(end - start), text + start);
    for (size_t i = start; i < at.begin && i < end; i++) fputc(text[i] == '\t' ? '\t' : ' ', out);
    size_t width = at.end > at.begin ? at.end - at.begin : 1;
    if (at.begin + width > end) width = end > at.begin ? end - at.begin : 1;
    fputs(on, out);
    while (width--) fputc('^', out);
    fprintf(out, "%s\n", off);
}

void diag_print(Diag *d, FILE *out, bool color) {
    static const char *const word[] = {"error", "warning", "note", "help"};
    static const char *const tint[] = {"\033[1;31m", "\033[1;35m", "\033[1;36m", "\033[1;32m"};
    const char *off = color ? "\033[0m" : "";
    for (; d->printed < d->messages.n; d->printed++) {
        const Message *m = &d->messages.at[d->printed];
        const char *on = color ? tint[m->kind] : "";
        const char *file = diag_file_name(d, m->at.file);
        if (m->kind == M_HELP) {
            fprintf(out, "      %shelp:%s %s\n", on, off, m->text);
        } else if (file) {
            int line, column;
            diag_line_column(d, m->at, &line, &column);
            fprintf(out, "%s:%d:%d: %s%s:%s %s\n", file, line, column, on, word[m->kind], off, m->text);
            print_caret(d, m->at, line, column, out, on, off);
        } else {
            fprintf(out, "moec: %s%s:%s %s\n", on, word[m->kind], off, m->text);
        }
    }
}
