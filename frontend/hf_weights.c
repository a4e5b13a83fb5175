// The rows of `weights hf`, matched against the tensors of a file.
//
// A row's pattern (with the prefixes of the scopes around it) is matched against each tensor's name; what its
// captures bind decides what the right side means:
//
//     "model.layers.{i}." = layers[i] {                        model.layers.3.mlp.experts.7.w1.weight
//       "mlp.experts.{e}.{w:w1,w2}.weight" = .experts[w][e]    i = 3, w = w1, e = 7:  element 7 of
//       layers.3.experts.w1
//
// A row whose right side names no parameter for these captures doesn't count: `.ffn.w1` in a layer with
// experts. So `either` needs nothing of its own: the alternative whose tensors are in the file is the one
// that matches, and the test that each element is covered exactly once catches a file that holds both.
#include "frontend/hf.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

// ---- captures and values -------------------------------------------------------------------------------

typedef enum { H_PATH, H_VIEW, H_WORD, H_NUMBER, H_LIST } HValKind;
typedef struct HVal HVal;
struct HVal {
    HValKind kind;
    const char *text; // PATH ("" is the root), WORD
    int64_t number;
    HfView *view;
    HVal *item;
    int n;
};

typedef struct Binding Binding;
struct Binding {
    const Binding *next;
    const char *name;
    HVal value;
};

typedef struct {
    const HfRules *r;
    const HfParam *param;
    int n_params;
    int *slot; // hash table of parameter names: number + 1, or 0
    size_t n_slots;
    const HfTensor *tensor;
    int n_tensors;
    const int *some; // the tensors whose names begin with the prefix of the scope
    int n_some;
    HfMatches *out;
    bool *used;      // per tensor: matched by a row or ignored
    const char *why; // why the last evaluation gave nothing; NULL: the path doesn't exist
    Span why_at;
    bool failed;
} Match;

// ---- patterns ------------------------------------------------------------------------------------------

static bool bind_number(Arena *a, const char *name, const char *text, size_t n, const Binding **b) {
    Binding *fresh = arena_new(a, Binding);
    *fresh = (Binding){*b, name, {.kind = H_NUMBER, .number = strtoll(arena_strndup(a, text, n), NULL, 10)}};
    for (const Binding *old = *b; old; old = old->next) // a name bound before must be the same number
        if (old->name == name) return old->value.kind == H_NUMBER && old->value.number == fresh->value.number;
    *b = fresh;
    return true;
}

static bool bind_word(Arena *a, const char *name, const char *word, size_t n, const Binding **b) {
    Binding *fresh = arena_new(a, Binding);
    *fresh = (Binding){*b, name, {.kind = H_WORD, .text = intern_n(word, n)}};
    for (const Binding *old = *b; old; old = old->next)
        if (old->name == name) return old->value.kind == H_WORD && old->value.text == fresh->value.text;
    *b = fresh;
    return true;
}

static const HVal *bound(const Binding *b, const char *name) {
    for (; b; b = b->next)
        if (b->name == name) return &b->value;
    return NULL;
}

// The text a `{...}` stands for when it is a compile-time value: {L}, {stack[0]}.  NULL: it is a capture.
static const char *fixed_text(Match *m, const char *inside, const Binding *b) {
    const HVal *v = NULL;
    HVal item;
    char name[64];
    long at = -1;
    size_t n = strcspn(inside, "[");
    if (n >= sizeof name) return NULL;
    memcpy(name, inside, n);
    name[n] = 0;
    if (inside[n] == '[') at = strtol(inside + n + 1, NULL, 10);
    v = bound(b, intern(name));
    if (v && v->kind == H_LIST && at >= 0 && at < v->n) {
        item = v->item[at];
        v = &item;
    } else if (!v) {
        int64_t number;
        const char *word = NULL;
        if (!m->r->lookup || !m->r->lookup(m->r->self, intern(name), &number, &word)) return NULL;
        return word ? word : arena_printf(m->r->arena, "%lld", (long long)number);
    }
    if (v->kind != H_NUMBER && v->kind != H_WORD) return NULL;
    return v->kind == H_NUMBER ? arena_printf(m->r->arena, "%lld", (long long)v->number) : v->text;
}

// Matches text[0..] against the pattern; whole: to the end of the text.  Returns what is left of the text, or
// NULL. Backtracks over the alternatives of a word capture and over `*`.
static const char *match_pattern(Match *m, const char *p, const char *text, bool whole, bool star,
                                 const Binding **b) {
    Arena *a = m->r->arena;
    while (*p) {
        if (star && *p == '*') {
            for (const char *t = text;; t++) {
                const Binding *try = *b;
                const char *rest = match_pattern(m, p + 1, t, whole, star, &try);
                if (rest) {
                    *b = try;
                    return rest;
                }
                if (!*t) return NULL;
            }
        }
        if (*p != '{') {
            if (*p++ != *text++) return NULL;
            continue;
        }
        const char *close = strchr(p, '}');
        if (!close) return NULL;
        char *inside = arena_strndup(a, p + 1, (size_t)(close - p - 1));
        p = close + 1;
        char *colon = strchr(inside, ':');
        const char *fixed = colon ? NULL : fixed_text(m, inside, *b);
        if (fixed) {
            size_t n = strlen(fixed);
            if (strncmp(text, fixed, n) != 0 ||
                (isdigit((unsigned char)fixed[0]) && isdigit((unsigned char)text[n])))
                return NULL;
            text += n;
            continue;
        }
        if (!colon) { // {i}: a number
            size_t n = strspn(text, "0123456789");
            if (!n || !bind_number(a, intern(inside), text, n, b)) return NULL;
            text += n;
            continue;
        }
        *colon = 0;
        const char *name = intern(inside);
        for (char *word = colon + 1; word;) { // {p:q,k} or {w:weight=g,bias=b}
            char *comma = strchr(word, ',');
            size_t n = comma ? (size_t)(comma - word) : strlen(word);
            const char *eq = memchr(word, '=', n);
            size_t n_text = eq ? (size_t)(eq - word) : n;
            if (strncmp(text, word, n_text) == 0) {
                const Binding *try = *b;
                const char *meaning = eq ? eq + 1 : word;
                if (bind_word(a, name, meaning, n - (size_t)(meaning - word), &try)) {
                    const char *rest = match_pattern(m, p, text + n_text, whole, star, &try);
                    if (rest) {
                        *b = try;
                        return rest;
                    }
                }
            }
            word = comma ? comma + 1 : NULL;
        }
        return NULL;
    }
    return whole && *text ? NULL : text;
}

// ---- the right side ------------------------------------------------------------------------------------

static int find_param(const Match *m, const char *path) {
    size_t mask = m->n_slots - 1;
    for (size_t i = str_hash(path, strlen(path), 0) & mask; m->slot[i]; i = (i + 1) & mask)
        if (!strcmp(m->param[m->slot[i] - 1].name, path)) return m->slot[i] - 1;
    return -1;
}

static void index_params(Match *m) {
    for (m->n_slots = 16; m->n_slots < 3 * (size_t)m->n_params; m->n_slots *= 2) {}
    m->slot = arena_array(m->r->arena, int, m->n_slots);
    for (int p = 0; p < m->n_params; p++) {
        const char *name = m->param[p].name;
        size_t i = str_hash(name, strlen(name), 0) & (m->n_slots - 1);
        while (m->slot[i]) i = (i + 1) & (m->n_slots - 1);
        m->slot[i] = p + 1;
    }
}

static bool eval(Match *m, const Expr *x, const char *subject, const Binding *b, HVal *out);

static const char *join(Arena *a, const char *path, const char *member) {
    return *path ? arena_printf(a, "%s.%s", path, member) : member;
}

// A path that names a parameter is that parameter.
static HVal path_value(const Match *m, const char *path) {
    int i = find_param(m, path);
    if (i < 0) return (HVal){.kind = H_PATH, .text = path};
    const HfParam *p = &m->param[i];
    return (HVal){.kind = H_VIEW, .text = path, .view = hf_view_param(m->r->arena, i, p->ndim, p->dim)};
}

static bool wrong(Match *m, Span at, const char *why) {
    m->why = why;
    m->why_at = at;
    return false;
}

static bool eval_view(Match *m, const Expr *x, const char *subject, const Binding *b, HfView **out) {
    HVal v;
    if (!eval(m, x, subject, b, &v)) return false;
    if (v.kind == H_PATH) return m->why = NULL, false;
    if (v.kind != H_VIEW) return wrong(m, x->at, "a parameter is expected");
    *out = v.view;
    return true;
}

static bool eval_int(Match *m, const Expr *x, const char *subject, const Binding *b, int64_t *out) {
    HVal v;
    if (!eval(m, x, subject, b, &v)) return false;
    if (v.kind != H_NUMBER) return wrong(m, x->at, "a number is expected");
    *out = v.number;
    return true;
}

static bool eval_ints(Match *m, const Expr *x, const char *subject, const Binding *b, int64_t *out, int *n) {
    if (x->kind != X_LIST || x->items.n > MAX_DIM) return wrong(m, x->at, "a list of numbers is expected");
    *n = x->items.n;
    for (int i = 0; i < *n; i++)
        if (!eval_int(m, x->items.at[i], subject, b, &out[i])) return false;
    return true;
}

static bool eval_call(Match *m, const Expr *x, const char *subject, const Binding *b, HVal *out) {
    Arena *a = m->r->arena;
    const char *f = x->a->kind == X_NAME ? x->a->name : "";
    HfView *child[16];
    int n = 0;
    int64_t axis = -1, dim[MAX_DIM];
    int n_dim = 0;
    for (int i = 0; i < x->args.n; i++) {
        const Arg *g = &x->args.at[i];
        if (g->name && !strcmp(g->name, "axis")) {
            if (!eval_int(m, g->value, subject, b, &axis)) return false;
        } else if (i && (!strcmp(f, "reshape") || !strcmp(f, "permute"))) {
            if (!eval_ints(m, g->value, subject, b, dim, &n_dim)) return false;
        } else if (g->value->kind == X_LIST &&
                   (!strcmp(f, "concat") || !strcmp(f, "stack") || !strcmp(f, "interleave"))) {
            for (int k = 0; k < g->value->items.n && n < 16; k++)
                if (!eval_view(m, g->value->items.at[k], subject, b, &child[n++])) return false;
        } else if (i && !strcmp(f, "cast")) {
            continue; // dtypes convert by themselves
        } else if (n < 16 && !eval_view(m, g->value, subject, b, &child[n++])) {
            return false;
        }
    }
    if (!n) return wrong(m, x->at, "a parameter is expected");
    const char *why = NULL;
    HfView *v = NULL;
    if (!strcmp(f, "concat"))
        v = hf_view_join(a, HV_CONCAT, child, n, (int)axis, &why);
    else if (!strcmp(f, "stack"))
        v = hf_view_join(a, HV_STACK, child, n, (int)axis, &why);
    else if (!strcmp(f, "interleave"))
        v = hf_view_join(a, HV_INTERLEAVE, child, n, (int)axis, &why);
    else if (!strcmp(f, "reshape"))
        v = hf_view_reshape(a, child[0], n_dim, dim, &why);
    else if (!strcmp(f, "permute")) {
        int perm[MAX_DIM];
        for (int i = 0; i < n_dim; i++) perm[i] = (int)dim[i];
        v = n_dim == child[0]->ndim ? hf_view_permute(a, child[0], perm, &why) : NULL;
        if (!v && !why) why = "permute needs each axis once";
    } else if (!strcmp(f, "cast"))
        v = child[0];
    else if (!strcmp(f, "mxfp4"))
        v = hf_view_mxfp4(a, child[0]);
    else
        why = arena_printf(
            a, "'%s' has no inverse: concat, stack, interleave, reshape, permute, cast, mxfp4 and .T have",
            f);
    if (!v) return wrong(m, x->at, why);
    *out = (HVal){.kind = H_VIEW, .view = v};
    return true;
}

static bool eval(Match *m, const Expr *x, const char *subject, const Binding *b, HVal *out) {
    Arena *a = m->r->arena;
    switch (x->kind) {
    case X_NUM: {
        int64_t n;
        if (!num_is_int(x->num, &n)) return wrong(m, x->at, "a whole number is expected");
        *out = (HVal){.kind = H_NUMBER, .number = n};
        return true;
    }
    case X_STR:
        *out = (HVal){.kind = H_WORD, .text = x->name};
        return true;
    case X_MODEL:
        *out = (HVal){.kind = H_PATH, .text = ""};
        return true;
    case X_DOT:
        *out = path_value(m, join(a, subject, x->name));
        return true;
    case X_NAME: {
        const HVal *v = bound(b, x->name);
        int64_t number;
        const char *word = NULL;
        if (v)
            *out = *v;
        else if (find_param(m, x->name) < 0 && m->r->lookup &&
                 m->r->lookup(m->r->self, x->name, &number, &word))
            *out = word ? (HVal){.kind = H_WORD, .text = word} : (HVal){.kind = H_NUMBER, .number = number};
        else
            *out = path_value(m, x->name);
        return true;
    }
    case X_LIST:
        *out = (HVal){.kind = H_LIST, .n = x->items.n, .item = arena_array(a, HVal, x->items.n + 1)};
        for (int i = 0; i < x->items.n; i++)
            if (!eval(m, x->items.at[i], subject, b, &out->item[i])) return false;
        return true;
    case X_MEMBER: {
        HVal v;
        if (!eval(m, x->a, subject, b, &v)) return false;
        if (v.kind == H_PATH) return *out = path_value(m, join(a, v.text, x->name)), true;
        if (v.kind != H_VIEW || strcmp(x->name, "T")) return m->why = NULL, false;
        const char *why = NULL;
        HfView *t = hf_view_transpose(a, v.view, &why);
        if (!t) return wrong(m, x->at, why);
        *out = (HVal){.kind = H_VIEW, .view = t};
        return true;
    }
    case X_INDEX: {
        HVal v, i;
        if (x->items.n != 1) return wrong(m, x->at, "one index is expected");
        if (!eval(m, x->a, subject, b, &v) || !eval(m, x->items.at[0], subject, b, &i)) return false;
        if (v.kind == H_LIST && i.kind == H_NUMBER && i.number >= 0 && i.number < v.n)
            return *out = v.item[i.number], true;
        if (v.kind == H_PATH && i.kind == H_WORD) return *out = path_value(m, join(a, v.text, i.text)), true;
        if (v.kind == H_PATH && i.kind == H_NUMBER)
            return *out = path_value(m, arena_printf(a, "%s.%lld", v.text, (long long)i.number)), true;
        if (v.kind != H_VIEW || i.kind != H_NUMBER) return m->why = NULL, false;
        const char *why = NULL;
        HfView *e = hf_view_element(a, v.view, i.number, &why);
        if (!e) return wrong(m, x->at, why);
        *out = (HVal){.kind = H_VIEW, .view = e};
        return true;
    }
    case X_BINARY: {
        HVal l, r;
        if (!eval(m, x->a, subject, b, &l) || !eval(m, x->b, subject, b, &r)) return false;
        if (!strcmp(x->name, "+") && l.kind == H_WORD && r.kind == H_WORD)
            return *out = (HVal){.kind = H_WORD, .text = intern(arena_printf(a, "%s%s", l.text, r.text))},
                   true;
        if (l.kind == H_NUMBER && r.kind == H_NUMBER && strchr("+-*", *x->name) && !x->name[1]) {
            int64_t n = *x->name == '+'   ? l.number + r.number
                        : *x->name == '-' ? l.number - r.number
                                          : l.number * r.number;
            return *out = (HVal){.kind = H_NUMBER, .number = n}, true;
        }
        if (!strcmp(x->name, "==") || !strcmp(x->name, "!=")) {
            bool same = l.kind == r.kind && l.number == r.number && (l.kind != H_WORD || l.text == r.text);
            return *out = (HVal){.kind = H_NUMBER, .number = same == (*x->name == '=')}, true;
        }
        return wrong(m, x->at, "only numbers and words can be computed here");
    }
    case X_NEG: {
        int64_t n;
        if (!eval_int(m, x->a, subject, b, &n)) return false;
        *out = (HVal){.kind = H_NUMBER, .number = -n};
        return true;
    }
    case X_CALL:
        return eval_call(m, x, subject, b, out);
    default:
        return wrong(m, x->at, "this has no meaning in a weights row");
    }
}

// ---- rows ----------------------------------------------------------------------------------------------

static const char *dims_text(Arena *a, int ndim, const int64_t *dim) {
    Str s = {.arena = a};
    str_add(&s, "[");
    for (int i = 0; i < ndim; i++) str_printf(&s, "%s%lld", i ? ", " : "", (long long)dim[i]);
    str_add(&s, "]");
    return s.text;
}

static bool same_dims(const HfView *v, const HfTensor *t) {
    return v->ndim == t->ndim && !memcmp(v->dim, t->dim, sizeof *t->dim * (size_t)t->ndim);
}

static int find_tensor(const Match *m, const char *name) {
    for (int i = 0; i < m->n_tensors; i++)
        if (!strcmp(m->tensor[i].name, name)) return i;
    return -1;
}

static void add_match(Match *m, const Entry *row, int tensor, HfView *v) {
    Arena *a = m->r->arena;
    const HfTensor *t = &m->tensor[tensor];
    HfMatch found = {.tensor = tensor, .view = v, .at = row->right->at, .scales = -1};
    m->used[tensor] = true;
    if (v->kind == HV_MXFP4) {
        size_t n = strlen(t->name);
        if (n > 7 && !strcmp(t->name + n - 7, "_scales")) return; // read with its blocks
        if (n > 7 && !strcmp(t->name + n - 7, "_blocks")) {
            found.mxfp4 = true;
            found.scales = find_tensor(m, arena_printf(a, "%.*s_scales", (int)n - 7, t->name));
            bool fits = found.scales >= 0 && t->ndim == v->ndim + 1 && t->dim[t->ndim - 1] == 16 &&
                        t->dim[t->ndim - 2] * 32 == v->dim[v->ndim - 1] &&
                        !memcmp(t->dim, v->dim, sizeof *v->dim * (size_t)(v->ndim - 1));
            if (!fits) {
                diag_error(m->r->diag, found.at, "%s: blocks %s and their scales are not MXFP4 of %s",
                           t->name, dims_text(a, t->ndim, t->dim), dims_text(a, v->ndim, v->dim));
                m->failed = true;
                return;
            }
        }
    }
    if (!found.mxfp4 && !same_dims(v, t)) {
        diag_error(m->r->diag, found.at, "%s: the file's tensor is %s, this is %s", t->name,
                   dims_text(a, t->ndim, t->dim), dims_text(a, v->ndim, v->dim));
        const char *why;
        HfView *turned = v->ndim >= 2 ? hf_view_transpose(a, v, &why) : NULL;
        if (turned && same_dims(turned, t))
            diag_help(m->r->diag, "%s.T has the file's shape", ast_text(a, m->r->diag, row->right->at));
        m->failed = true;
        return;
    }
    vec_push(a, m->out, found);
}

static void match_entries(Match *m, const Entries *entries, const char *prefix, const char *subject,
                          const Binding *b);

// All tensors against one row, or against the prefix of a scope.
static void match_row(Match *m, const Entry *e, const char *prefix, const char *subject,
                      const Binding *outer) {
    Arena *a = m->r->arena;
    const char *pattern = arena_printf(a, "%s%s", prefix, e->left->name);
    for (int k = 0; k < m->n_some; k++) {
        int i = m->some[k];
        const Binding *b = outer;
        if (!match_pattern(m, pattern, m->tensor[i].name, true, false, &b)) continue;
        HfView *v;
        m->why = NULL;
        if (eval_view(m, e->right, subject, b, &v))
            add_match(m, e, i, v);
        else if (m->why) {
            diag_error(m->r->diag, m->why_at, "%s: %s", m->tensor[i].name, m->why);
            m->failed = true;
        }
    }
}

// A scope: for each distinct binding of its prefix among the tensors, its rows with that subject.
static void match_scope(Match *m, const Entry *e, const char *prefix, const char *subject,
                        const Binding *outer) {
    Arena *a = m->r->arena;
    const char *pattern = arena_printf(a, "%s%s", prefix, e->left->name);
    const int *some = m->some;
    int n_some = m->n_some;
    typedef struct {
        const char *literal;
        const Binding *b;
        VEC(int) tensors;
    } Group;
    VEC(Group) groups = {0};
    for (int k = 0; k < n_some; k++) {
        const Binding *b = outer;
        const char *text = m->tensor[some[k]].name, *rest = match_pattern(m, pattern, text, false, false, &b);
        if (!rest) continue;
        size_t n = (size_t)(rest - text);
        int g = groups.n - 1; // mostly the last: files list layer by layer
        while (g >= 0 && (strncmp(groups.at[g].literal, text, n) != 0 || groups.at[g].literal[n])) g--;
        if (g < 0) {
            vec_push(a, &groups, ((Group){.literal = arena_strndup(a, text, n), .b = b}));
            g = groups.n - 1;
        }
        vec_push(a, &groups.at[g].tensors, some[k]);
    }
    for (int g = 0; g < groups.n; g++) {
        HVal v;
        m->why = NULL;
        if (!eval(m, e->right, subject, groups.at[g].b, &v) || (v.kind != H_PATH && v.kind != H_VIEW) ||
            !v.text)
            continue;
        m->some = groups.at[g].tensors.at;
        m->n_some = groups.at[g].tensors.n;
        match_entries(m, &e->body, groups.at[g].literal, v.text, groups.at[g].b);
    }
    m->some = some;
    m->n_some = n_some;
}

static void ignore_pattern(Match *m, const Expr *x, const char *prefix, const Binding *outer) {
    if (x->kind != X_STR) return;
    const char *pattern = arena_printf(m->r->arena, "%s%s", prefix, x->name);
    for (int i = 0; i < m->n_tensors; i++) {
        const Binding *b = outer;
        if (match_pattern(m, pattern, m->tensor[i].name, true, true, &b)) m->used[i] = true;
    }
}

static void match_entries(Match *m, const Entries *entries, const char *prefix, const char *subject,
                          const Binding *b) {
    for (int i = 0; i < entries->n; i++) {
        const Entry *e = entries->at[i];
        HVal v;
        switch (e->kind) {
        case E_SET:
            if (e->left->kind == X_STR)
                match_row(m, e, prefix, subject, b);
            else {
                diag_error(m->r->diag, e->left->at,
                           "the left side of a weights row is a name in the file: \"...\"");
                m->failed = true;
            }
            break;
        case E_SCOPE:
            match_scope(m, e, prefix, subject, b);
            break;
        case E_IGNORE:
            for (int k = 0; k < e->items.n; k++) ignore_pattern(m, e->items.at[k], prefix, b);
            break;
        case E_EITHER:
            match_entries(m, &e->body, prefix, subject, b);
            match_entries(m, &e->orelse, prefix, subject, b);
            break;
        case E_FOR:
            if (eval(m, e->right, subject, b, &v) && v.kind == H_LIST)
                for (int k = 0; k < v.n; k++) {
                    Binding each = {b, e->name, v.item[k]};
                    match_entries(m, &e->body, prefix, subject, &each);
                }
            break;
        case E_IF:
            if (eval(m, e->right, subject, b, &v))
                match_entries(m, v.number ? &e->body : &e->orelse, prefix, subject, b);
            break;
        case E_REQUIRE:
            break;
        }
    }
}

// ---- everything exactly once ---------------------------------------------------------------------------

typedef struct {
    const Match *m;
    int *count;    // per parameter: hits of the whole
    int **element; // per parameter: hits of each element of axis 0
} Cover;

static void cover_hit(void *self, int param, int64_t element) {
    Cover *c = self;
    const HfParam *p = &c->m->param[param];
    if (element < 0 || p->ndim == 0) {
        c->count[param]++;
        return;
    }
    if (!c->element[param]) c->element[param] = arena_array(c->m->r->arena, int, p->dim[0]);
    c->element[param][element]++;
}

static void list_names(Str *s, int *n, const char *name) {
    if (*n < 6) str_printf(s, "%s%s", *n ? ", " : "", name);
    ++*n;
}

static void check_cover(Match *m, Span block) {
    Arena *a = m->r->arena;
    Cover c = {m, arena_array(a, int, m->n_params + 1), arena_array(a, int *, m->n_params + 1)};
    for (int i = 0; i < m->out->n; i++) hf_view_covers(m->out->at[i].view, cover_hit, &c);
    Str missing = {.arena = a}, twice = {.arena = a}, unused = {.arena = a};
    int n_missing = 0, n_twice = 0, n_unused = 0;
    for (int i = 0; i < m->n_params; i++) {
        const HfParam *p = &m->param[i];
        int64_t holes = 0, doubles = c.count[i] > 1;
        if (!c.element[i])
            holes = !c.count[i];
        else
            for (int64_t e = 0; e < p->dim[0]; e++) {
                holes += c.element[i][e] + c.count[i] == 0;
                doubles += c.element[i][e] + c.count[i] > 1;
            }
        if (holes && !p->optional)
            list_names(&missing, &n_missing,
                       c.element[i] ? arena_printf(a, "%s (%lld of %lld elements)", p->name, (long long)holes,
                                                   (long long)p->dim[0])
                                    : p->name);
        if (doubles) list_names(&twice, &n_twice, p->name);
    }
    for (int i = 0; i < m->n_tensors; i++)
        if (!m->used[i]) list_names(&unused, &n_unused, m->tensor[i].name);
    if (n_missing)
        diag_error(m->r->diag, block, "%s: %d parameter%s found nowhere in the file: %s%s", m->r->file,
                   n_missing, n_missing == 1 ? " is" : "s are", missing.text, n_missing > 6 ? ", ..." : "");
    if (n_twice)
        diag_error(m->r->diag, block, "%s: %d parameter%s covered twice: %s%s", m->r->file, n_twice,
                   n_twice == 1 ? " is" : "s are", twice.text, n_twice > 6 ? ", ..." : "");
    if (n_unused)
        diag_error(m->r->diag, block, "%s: %d tensor%s in no row: %s%s", m->r->file, n_unused,
                   n_unused == 1 ? " is" : "s are", unused.text, n_unused > 6 ? ", ..." : "");
    m->failed |= n_missing || n_twice || n_unused;
}

static const Block *weights_block(const Module *module) {
    for (int i = 0; i < module->blocks.n; i++) {
        const Block *b = &module->blocks.at[i];
        if (!strcmp(b->name, "weights") && b->words.n && b->words.at[0]->kind == X_NAME &&
            !strcmp(b->words.at[0]->name, "hf"))
            return b;
    }
    return NULL;
}

bool hf_has_weights(const Module *m) { return weights_block(m) != NULL; }

bool hf_match(const HfRules *r, const HfTensor *tensor, int n_tensors, const HfParam *param, int n_params,
              HfMatches *out) {
    const Block *block = weights_block(r->module);
    if (!block) {
        diag_error(r->diag, (Span){0},
                   "%s has no 'weights hf' block: nothing says what the tensors of %s are", r->module->path,
                   r->file);
        return false;
    }
    Match m = {.r = r,
               .param = param,
               .n_params = n_params,
               .tensor = tensor,
               .n_tensors = n_tensors,
               .out = out,
               .used = arena_array(r->arena, bool, n_tensors + 1)};
    index_params(&m);
    int *all = arena_array(r->arena, int, n_tensors + 1);
    for (int i = 0; i < n_tensors; i++) all[i] = i;
    m.some = all;
    m.n_some = n_tensors;
    match_entries(&m, &block->entries, "", "", NULL);
    if (r->complete && !m.failed) check_cover(&m, block->at);
    return !m.failed;
}
