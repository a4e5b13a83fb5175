// Reading files into trees, and trees back into text.
#include "frontend/ast.h"

#include <ctype.h>
#include <string.h>

#include "frontend/moe.tab.h"

// ---- reading --------------------------------------------------------------------------------------------

static bool read_text(Arena *a, Diag *d, uint32_t file, ScanStart start, Module *m, Scan **out) {
    Scan *s = arena_new(a, Scan);
    s->arena = a;
    s->diag = d;
    s->file = file;
    s->start = start;
    s->module = m;
    *out = s;
    return moe_read(s);
}

bool ast_parse(Arena *a, Diag *d, uint32_t file, Module *m) {
    Scan *s;
    m->file = file;
    return read_text(a, d, file, SCAN_FILE, m, &s);
}

Entry *ast_parse_entry(Arena *a, Diag *d, uint32_t file) {
    Scan *s;
    return read_text(a, d, file, SCAN_ENTRY, NULL, &s) ? s->entry : NULL;
}

Expr *ast_parse_expr(Arena *a, Diag *d, uint32_t file) {
    Scan *s;
    return read_text(a, d, file, SCAN_EXPR, NULL, &s) ? s->expr : NULL;
}

// ---- source text ----------------------------------------------------------------------------------------

const char *ast_text(Arena *a, const Diag *d, Span at) {
    size_t n;
    const char *text = diag_file_text(d, at.file, &n);
    if (!text || at.end > n) return "";
    Str s = {.arena = a};
    bool blank = false;
    for (size_t i = at.begin; i < at.end; i++) {
        if (isspace((unsigned char)text[i])) {
            blank = s.n > 0;
            continue;
        }
        if (text[i] == '/' && i + 1 < at.end && text[i + 1] == '/') {       // a comment inside a longer call
            while (i < at.end && text[i] != '\n') i++;
            blank = true;
            continue;
        }
        if (blank) str_add(&s, " ");
        blank = false;
        str_add_n(&s, text + i, 1);
    }
    return s.text ? s.text : "";
}

const char *ast_doc(Arena *a, const Diag *d, const Fn *f) {
    size_t n;
    const char *text = diag_file_text(d, f->at.file, &n);
    if (!text) return NULL;
    size_t line = f->at.begin;
    while (line > 0 && text[line - 1] != '\n') line--;
    size_t first = line;                                // the first line of the comment
    while (first > 0) {
        size_t start = first - 1;
        while (start > 0 && text[start - 1] != '\n') start--;
        if (text[start] != '/' || text[start + 1] != '/') break;
        first = start;
    }
    if (first == line) return NULL;
    Str s = {.arena = a};
    for (size_t i = first; i < line;) {
        i += 2;
        if (text[i] == ' ') i++;
        size_t end = i;
        while (text[end] != '\n') end++;
        str_add_n(&s, text + i, end - i + 1);
        i = end + 1;
    }
    return s.text;
}

// ---- printing -------------------------------------------------------------------------------------------

// How tightly the form binds, as in the grammar: a part that binds less tightly than its place needs
// brackets.
static int level_of(const Expr *e) {
    static const struct { const char *op; int level;
    } levels[] = {{"??", 1}, {"or", 2}, {"and", 3}, {"==", 5}, {"!=", 5},     {"<", 5},
                  {"<=", 5}, {">", 5},  {">=", 5},  {"in", 5}, {"not in", 5}, {"+", 7},
                  {"-", 7},  {"*", 8},  {"/", 8},   {"%", 8},  {"@", 8},      {"**", 10}};
    switch (e->kind) {
    case X_IF: return 0;
    case X_NOT: return 4;
    case X_RANGE: return 6;
    case X_NEG: return 9;
    case X_AS: return 11;
    case X_BINARY:
        for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
            if (strcmp(levels[i].op, e->name) == 0) return levels[i].level;
        return 0;
    default: return 12;
    }
}

static void print_at(Str *out, const Expr *e, int least) {
    bool brackets = level_of(e) < least;
    if (brackets) str_add(out, "(");
    ast_print_expr(out, e);
    if (brackets) str_add(out, ")");
}

static void print_list(Str *out, const Exprs *list) {
    for (int i = 0; i < list->n; i++) {
        if (i) str_add(out, ", ");
        ast_print_expr(out, list->at[i]);
    }
}

static void print_args(Str *out, const Args *args) {
    for (int i = 0; i < args->n; i++) {
        if (i) str_add(out, ", ");
        if (args->at[i].name) str_printf(out, "%s: ", args->at[i].name);
        ast_print_expr(out, args->at[i].value);
    }
}

void ast_print_expr(Str *out, const Expr *e) {
    int level = level_of(e);
    switch (e->kind) {
    case X_NAME: str_add(out, e->name); break;
    case X_MODEL: str_add(out, "model"); break;
    case X_NUM: str_add(out, num_text(out->arena, e->num)); break;
    case X_QUANTITY: str_printf(out, "%s %s", num_text(out->arena, e->num), e->unit); break;
    case X_STR: str_printf(out, "\"%s\"", e->name); break;
    case X_BOOL: str_add(out, e->num.num ? "true" : "false"); break;
    case X_NONE: str_add(out, "none"); break;
    case X_INF: str_add(out, "inf"); break;
    case X_DOT: str_printf(out, ".%s", e->name); break;
    case X_REST: str_add(out, "..."); break;
    case X_ALL: str_add(out, ":"); break;
    case X_LIST:
        str_add(out, "[");
        print_list(out, &e->items);
        str_add(out, "]");
        break;
    case X_EACH:
        str_add(out, "[");
        ast_print_expr(out, e->a);
        str_printf(out, " for %s in ", e->name);
        ast_print_expr(out, e->b);
        if (e->c) {
            str_add(out, " if ");
            ast_print_expr(out, e->c);
        }
        str_add(out, "]");
        break;
    case X_CALL:
        print_at(out, e->a, 12);
        str_add(out, "(");
        print_args(out, &e->args);
        str_add(out, ")");
        break;
    case X_INDEX:
        print_at(out, e->a, 12);
        str_add(out, "[");
        print_list(out, &e->items);
        str_add(out, "]");
        break;
    case X_MEMBER:
        print_at(out, e->a, 12);
        str_printf(out, ".%s", e->name);
        break;
    case X_AS:
        print_at(out, e->a, 12);
        str_printf(out, " as %s", e->name);
        if (e->b) {
            str_add(out, "[");
            ast_print_expr(out, e->b);
            str_add(out, "]");
        }
        break;
    case X_NOT:
        str_add(out, "not ");
        print_at(out, e->a, 4);
        break;
    case X_NEG:
        str_add(out, "-");
        print_at(out, e->a, 9);
        break;
    case X_RANGE:
        if (e->a) print_at(out, e->a, 7);
        str_add(out, "..");
        if (e->b) print_at(out, e->b, 7);
        break;
    case X_BINARY:                 // ?? and ** lean right, comparisons don't chain, the others lean left
        print_at(out, e->a, level == 1 || level == 5 || level == 10 ? level + 1 : level);
        str_printf(out, " %s ", e->name);
        print_at(out, e->b, level == 1 ? 1 : level == 10 ? 9 : level + 1);
        break;
    case X_IF:
        str_add(out, "if ");
        ast_print_expr(out, e->a);
        str_add(out, " then ");
        ast_print_expr(out, e->b);
        str_add(out, " else ");
        ast_print_expr(out, e->c);
        break;
    }
}

static void indent(Str *out, int depth) {
    for (int i = 0; i < depth; i++) str_add(out, "  ");
}

static void print_type(Str *out, const TypeExpr *t) {
    static const char *const words[] = {[TY_INT] = "int", [TY_NUM] = "num",   [TY_BOOL] = "bool",
                                        [TY_STR] = "str", [TY_LIST] = "list", [TY_FN] = "fn"};
    if (t->kind == TY_TENSOR) {
        str_printf(out, "%s[", t->element ? t->element : "");
        print_list(out, &t->shape);
        str_add(out, "]");
    } else if (t->kind == TY_WORDS) {
        for (int i = 0; i < t->words.n; i++) str_printf(out, "%s\"%s\"", i ? " | " : "", t->words.at[i]);
    } else if (t->kind != TY_ANY) {
        str_add(out, words[t->kind]);
    }
}

static void print_options(Str *out, const Args *options) {
    if (options->n) str_add(out, ", ");
    print_args(out, options);
}

static void print_body(Str *out, const Stmts *body, int depth);

static void print_decls(Str *out, const Stmt *t) {
    str_add(out, t->kind == S_PARAM ? "param " : "state ");
    for (int i = 0; i < t->decls.n; i++) {
        const Decl *d = &t->decls.at[i];
        str_printf(out, "%s%s", i ? ", " : "", d->name);
        if (d->element) str_printf(out, ": %s", d->element);
        str_add(out, "[");
        print_list(out, &d->shape);
        str_add(out, "]");
    }
    str_add(out, " = ");
    ast_print_expr(out, t->value);
    print_options(out, &t->options);
}

static void print_stmt(Str *out, const Stmt *t, int depth) {
    static const char *const words[] = {[S_UPDATE] = "update", [S_LOSS] = "loss", [S_METRIC] = "metric",
                                        [S_EMIT] = "emit", [S_LAYER] = "layer"};
    switch (t->kind) {
    case S_ASSIGN:
        print_list(out, &t->left);
        str_add(out, " = ");
        print_list(out, &t->right);
        break;
    case S_UPDATE_BY:
        print_list(out, &t->left);
        str_printf(out, " %s= ", t->name);
        print_list(out, &t->right);
        break;
    case S_EXPR: print_list(out, &t->right); break;
    case S_PARAM: case S_STATE: print_decls(out, t); break;
    case S_UPDATE: case S_LOSS: case S_METRIC: case S_EMIT: case S_LAYER:
        str_printf(out, "%s %s = ", words[t->kind], t->name);
        ast_print_expr(out, t->value);
        print_options(out, &t->options);
        break;
    case S_ASSERT:
        str_add(out, "assert ");
        ast_print_expr(out, t->value);
        str_printf(out, ", \"%s\"", t->name);
        break;
    case S_RETURN:
        str_add(out, "return ");
        print_list(out, &t->right);
        break;
    case S_FOR:
        str_printf(out, "for %s in ", t->name);
        ast_print_expr(out, t->value);
        print_body(out, &t->body, depth);
        break;
    case S_IF:
        str_add(out, "if ");
        ast_print_expr(out, t->value);
        print_body(out, &t->body, depth);
        if (t->orelse.n) {
            str_add(out, " else");
            print_body(out, &t->orelse, depth);
        }
        break;
    }
}

static void print_body(Str *out, const Stmts *body, int depth) {
    str_add(out, " {\n");
    for (int i = 0; i < body->n; i++) {
        indent(out, depth + 1);
        print_stmt(out, body->at[i], depth + 1);
        str_add(out, "\n");
    }
    indent(out, depth);
    str_add(out, "}");
}

static void print_fn(Str *out, const Fn *f) {
    str_printf(out, "%s %s(", f->is_model ? "model" : "fn", f->name);
    for (int i = 0; i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        str_printf(out, "%s%s", i ? ", " : "", p->name);
        bool floats = p->type.kind == TY_TENSOR && !p->type.element;
        if (p->type.kind != TY_ANY && !floats) str_add(out, ": ");
        print_type(out, &p->type);
        if (p->fallback) {
            str_add(out, " = ");
            ast_print_expr(out, p->fallback);
        }
    }
    str_add(out, ")");
    for (int i = 0; i < f->returns.n; i++) {
        str_add(out, i ? ", " : " -> ");
        print_type(out, &f->returns.at[i]);
    }
    if (f->value) {
        str_add(out, " = ");
        ast_print_expr(out, f->value);
    } else {
        print_body(out, &f->body, 0);
    }
    str_add(out, "\n");
}

static void print_entries(Str *out, const Entries *entries, int depth);

static void print_entry(Str *out, const Entry *e, int depth) {
    switch (e->kind) {
    case E_SET: case E_SCOPE:
        ast_print_expr(out, e->left);
        str_add(out, " = ");
        ast_print_expr(out, e->right);
        print_options(out, &e->options);
        if (e->kind == E_SCOPE) print_entries(out, &e->body, depth);
        break;
    case E_REQUIRE:
        str_add(out, "require ");
        ast_print_expr(out, e->right);
        break;
    case E_IGNORE:
        str_add(out, "ignore ");
        print_list(out, &e->items);
        break;
    case E_EITHER:
        str_add(out, "either");
        print_entries(out, &e->body, depth);
        str_add(out, " or");
        print_entries(out, &e->orelse, depth);
        break;
    case E_FOR:
        str_printf(out, "for %s in ", e->name);
        ast_print_expr(out, e->right);
        print_entries(out, &e->body, depth);
        break;
    case E_IF:
        str_add(out, "if ");
        ast_print_expr(out, e->right);
        print_entries(out, &e->body, depth);
        if (e->orelse.n) {
            str_add(out, " else");
            print_entries(out, &e->orelse, depth);
        }
        break;
    }
}

static void print_entries(Str *out, const Entries *entries, int depth) {
    str_add(out, " {\n");
    for (int i = 0; i < entries->n; i++) {
        indent(out, depth + 1);
        print_entry(out, entries->at[i], depth + 1);
        str_add(out, "\n");
    }
    indent(out, depth);
    str_add(out, "}");
}

void ast_print(Str *out, const Module *m) {
    for (int i = 0; i < m->imports.n; i++) {
        const Import *im = &m->imports.at[i];
        str_add(out, "import ");
        if (im->quoted) {
            str_printf(out, "\"%s\"", im->path);
        } else {
            for (const char *p = im->path; *p && strcmp(p, ".moe") != 0; p++)
                str_printf(out, "%c", *p == '/' ? '.' : *p);
        }
        if (im->as) str_printf(out, " as %s", im->as);
        str_add(out, "\n");
    }
    for (int i = 0; i < m->fns.n; i++) {
        str_add(out, "\n");
        print_fn(out, m->fns.at[i]);
    }
    for (int i = 0; i < m->blocks.n; i++) {
        const Block *b = &m->blocks.at[i];
        str_printf(out, "\n%s", b->name);
        for (int k = 0; k < b->words.n; k++) {
            str_add(out, " ");
            ast_print_expr(out, b->words.at[k]);
        }
        print_entries(out, &b->entries, 0);
        str_add(out, "\n");
    }
}
