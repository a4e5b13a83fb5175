// A program: reading a file with its imports, what is set from outside, values without a graph.
#include "frontend/program.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "frontend/interp.h"

// ---- files ----------------------------------------------------------------------------------------------

static const char *folder_of(Arena *a, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? arena_strndup(a, path, (size_t)(slash - path)) : ".";
}

static bool read_file(Arena *a, const char *path, char **text, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    Str s = {.arena = a};
    char chunk[1 << 14];
    size_t got;
    str_add(&s, "");
    while ((got = fread(chunk, 1, sizeof chunk, f)) > 0) str_add_n(&s, chunk, got);
    bool ok = !ferror(f);
    fclose(f);
    *text = s.text;
    *n = s.n;
    return ok;
}

static Module *load_module(Program *p, const char *path, char *text, size_t n);

static Module *find_module(const Program *p, const char *path) {
    for (int i = 0; i < p->modules.n; i++)
        if (strcmp(p->modules.at[i]->path, path) == 0) return (Module *)p->modules.at[i];
    return NULL;
}

// path without a folder in front of it; NULL: it lies elsewhere.
static const char *inside(const char *folder, const char *path) {
    if (!folder || !strcmp(folder, ".")) return NULL;
    size_t n = strlen(folder);
    return !strncmp(path, folder, n) && path[n] == '/' ? path + n + 1 : NULL;
}

static const char *file_name(const Program *p, const char *path) {
    const char *name = inside(p->folder, path);
    if (!name) name = inside(p->models_dir, path);
    return name ? name : path;
}

static bool find_text(const Program *p, const char *path, char **text, size_t *n) {
    const char *name = file_name(p, path);
    for (int i = 0; i < p->n_given; i++) {
        if (strcmp(p->given[i].name, name) != 0) continue;
        *text = arena_strndup(p->arena, p->given[i].text, p->given[i].n);
        *n = p->given[i].n;
        return true;
    }
    return read_file(p->arena, path, text, n);
}

// Beside the importing file, in the program's folder, then in models_dir; quoted paths beside the file only.
static bool load_import(Program *p, const Module *m, Import *im) {
    const char *beside = folder_of(p->arena, m->path);
    const char *folders[] = {beside, im->quoted ? NULL : p->folder, im->quoted ? NULL : p->models_dir};
    for (int i = 0; i < 3; i++) {
        if (!folders[i]) continue;
        bool plain = strcmp(folders[i], ".") == 0 || im->path[0] == '/';
        const char *path = plain ? im->path : arena_printf(p->arena, "%s/%s", folders[i], im->path);
        im->module = find_module(p, path);
        if (im->module) return true;
        char *text;
        size_t n;
        if (!find_text(p, path, &text, &n)) continue;
        im->module = load_module(p, path, text, n);
        return im->module != NULL;
    }
    if (im->quoted) diag_error(p->diag, im->at, "there is no file '%s' beside %s", im->path, m->path);
    else
        diag_error(p->diag, im->at, "there is no file '%s' beside %s nor in %s", im->path, m->path,
                   p->models_dir ? p->models_dir : "models");
    return false;
}

static Module *load_module(Program *p, const char *path, char *text, size_t n) {
    Module *m = arena_new(p->arena, Module);
    m->path = path;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    m->name = intern_n(name, dot ? (size_t)(dot - name) : strlen(name));
    uint32_t file = diag_add_file(p->diag, path, text, n);
    const Module *entry = m;
    vec_push(p->arena, &p->modules, entry);
    bool ok = ast_parse(p->arena, p->diag, file, m);
    for (int i = 0; i < m->imports.n; i++) ok &= load_import(p, m, &m->imports.at[i]);
    return ok ? m : NULL;
}

Program *program_load(Arena *a, Diag *d, const char *path, const char *models_dir) {
    return program_load_given(a, d, path, models_dir, 0, NULL);
}

Program *program_load_given(Arena *a, Diag *d, const char *path, const char *models_dir, int n_given,
                            const GivenFile *given) {
    Program *p = arena_new(a, Program);
    p->given = given;
    p->n_given = n_given;
    p->arena = a;
    p->diag = d;
    p->folder = folder_of(a, path);
    p->models_dir = models_dir;
    char *text;
    size_t n;
    if (!read_file(a, path, &text, &n)) {
        diag_error(d, (Span){0}, "cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    Module *m = load_module(p, arena_strdup(a, path), text, n);
    if (!m) return NULL;
    p->main = m;
    for (int i = 0; i < m->fns.n; i++)
        if (m->fns.at[i]->is_model) p->model = m->fns.at[i];
    for (int i = 0; i < p->modules.n; i++) p->names_wrong |= !resolve(a, d, p->modules.at[i]);
    return p;
}

// ---- what is asked --------------------------------------------------------------------------------------

const char *program_file_name(const Program *p, const Module *m) { return file_name(p, m->path); }

const Module *program_main(const Program *p) { return p->main; }
const char *program_model_name(const Program *p) { return p->model ? p->model->name : NULL; }
const Fn *program_model(const Program *p) { return p->model; }
Diag *program_diag(Program *p) { return p->diag; }

const Module *const *program_modules(const Program *p, int *n) {
    *n = p->modules.n;
    return p->modules.at;
}

const FrozenModel *program_frozen(const Program *p, int *n) {
    *n = p->frozen.n;
    return p->frozen.at;
}

int program_channel_count(const Program *p, const char *channel) {
    int n = 0;
    for (int i = 0; i < p->emits.n; i++) n += strcmp(p->emits.at[i].name, channel) == 0;
    return n;
}

// ---- setting --------------------------------------------------------------------------------------------

static void changed(Program *p) {
    p->values = NULL;
    p->hyper_call = NULL;
    p->settings = NULL;
    p->settings_failed = false;
    p->params.n = 0;
}

static bool check_hyper(Program *p, const char *name, Span at) {
    if (!p->model) {
        diag_error(p->diag, at, "%s has no model, so no hyper-parameter '%s'", p->main->path, name);
        return false;
    }
    VEC(const char *) names = {0};
    for (int i = 0; i < p->model->params.n; i++) {
        const Param *q = &p->model->params.at[i];
        if (q->name == name && q->type.kind == TY_TENSOR) {
            diag_error(p->diag, at, "'%s' is an input of %s: data fills it", name, p->model->name);
            return false;
        }
        if (q->name == name) return true;
        if (q->type.kind != TY_TENSOR) vec_push(p->arena, &names, q->name);
    }
    const char *near = did_you_mean(name, names.at, names.n);
    if (near)
        diag_error(p->diag, at, "%s has no hyper-parameter '%s'; did you mean '%s'?", p->model->name, name,
                   near);
    else diag_error(p->diag, at, "%s has no hyper-parameter '%s'", p->model->name, name);
    return false;
}

bool program_set(Program *p, const char *assignment) {
    const char *text = arena_strdup(p->arena, assignment);
    uint32_t file = diag_add_file(p->diag, "<--set>", text, strlen(text));
    const Entry *e = ast_parse_entry(p->arena, p->diag, file);
    if (!e) return false;
    const Expr *left = e->left;
    changed(p);
    if (left->kind == X_NAME) {
        if (!check_hyper(p, left->name, left->at)) return false;
        Override o = {.name = left->name, .e = e->right, .at = e->right->at, .command_line = true};
        vec_push(p->arena, &p->hyper, o);
        return true;
    }
    if (left->kind == X_MEMBER && left->a->kind == X_NAME) {
        if (!blocks_check_key(p->diag, left->a->name, left->a->at, left->name, left->op_at)) return false;
        KeySet k = {.block = left->a->name,
                    .key = left->name,
                    .e = e->right,
                    .at = e->right->at,
                    .key_at = left->op_at,
                    .command_line = true};
        vec_push(p->arena, &p->keys, k);
        return true;
    }
    diag_error(p->diag, left->at,
               "what is set is a hyper-parameter (D=256) or a key of a block (train.lr=1e-3)");
    return false;
}

bool program_set_value(Program *p, const char *name, Val v, Span at) {
    name = intern(name);
    if (!check_hyper(p, name, at)) return false;
    changed(p);
    v.at = at;
    Override o = {.name = name, .v = v, .at = at};
    vec_push(p->arena, &p->hyper, o);
    return true;
}

bool program_set_key(Program *p, const char *block, const char *key, Val v, Span at) {
    if (!blocks_check_key(p->diag, block, at, key, at)) return false;
    changed(p);
    v.at = at;
    KeySet k = {.block = block, .key = key, .v = v, .at = at, .key_at = at};
    vec_push(p->arena, &p->keys, k);
    return true;
}

// ---- hyper-parameters -----------------------------------------------------------------------------------

// The last setting of a name; the command line's wins.
static const Override *find_override(const Program *p, const char *name) {
    const Override *found = NULL;
    for (int i = 0; i < p->hyper.n; i++) {
        const Override *o = &p->hyper.at[i];
        if (o->name == name && (!found || o->command_line >= found->command_line)) found = o;
    }
    return found;
}

// Names of the inputs' axes that are no hyper-parameters: B, S.
static void bind_symbols(Lower *lw, Call *c, const Fn *f) {
    for (int i = 0; i < f->params.n; i++)
        for (int k = 0; k < f->params.at[i].type.shape.n; k++) {
            const Expr *x = f->params.at[i].type.shape.at[k];
            bool hyper = x->kind != X_NAME;
            for (int j = 0; j < f->params.n && !hyper; j++) hyper = f->params.at[j].name == x->name;
            if (!hyper) set_var(lw, c, x->name, value_of_poly(lw, x->at, poly_sym(lw, x->name)));
        }
}

bool bind_hyper(Lower *lw, Call *c, Program *p) {
    bool ok = true;
    const Fn *f = p->model;
    bind_symbols(lw, c, f);
    for (int i = 0; i < f->params.n; i++) {
        const Param *q = &f->params.at[i];
        if (q->type.kind == TY_TENSOR) continue;
        const Override *o = find_override(p, q->name);
        Val v;
        if (o) {
            bool word = o->e && o->e->kind == X_NAME && q->type.kind == TY_WORDS; // quotes may be left out
            v = word ? val_of_str(o->at, o->e->name) : o->e ? eval(lw, c, o->e) : o->v;
            if (has_error(&v) || !check_value(lw, f, i, &v, o->at, NULL)) v = val_error(o->at);
        } else if (q->fallback) {
            v = default_value(lw, c, f, i, q->at);
        } else {
            diag_error(lw->diag, q->at, "hyper-parameter '%s' of %s has no value", q->name, f->name);
            diag_help(lw->diag, "give it a default, or --set %s=...", q->name);
            v = val_error(q->at);
        }
        ok &= v.kind != V_ERROR;
        set_var(lw, c, q->name, v);
    }
    return ok;
}

// The interpreter without a graph, and the hyper-parameters in a call of the model that never runs: errors for those
// that have no value, and false.
static bool bind_values(Program *p, Diag *d, Lower **lw, Call **c) {
    static const ElabOpts no_opts = {.kind = ELAB_EVAL};
    *lw = lower_new(p, p->arena, NULL, &no_opts);
    (*lw)->diag = d;
    *c = call_new(*lw, NULL, p->model, (Span){0});
    bool ok = !p->model || bind_hyper(*lw, *c, p);
    for (int i = 0; p->model && i < p->model->params.n; i++)
        if (p->model->params.at[i].type.kind == TY_TENSOR)
            set_var(*lw, *c, p->model->params.at[i].name, val_none(p->model->params.at[i].at));
    (*lw)->diag = p->diag;
    return ok;
}

static bool make_values(Program *p) {
    if (p->values) return p->hyper_call != NULL;
    Call *c;
    if (!bind_values(p, p->diag, &p->values, &c)) return false;
    p->hyper_call = c;
    return true;
}

Val program_hyper(Program *p, const char *name) {
    if (!make_values(p)) return val_error((Span){0});
    const Val *v = find_var(p->hyper_call, intern(name));
    return v ? *v : val_error((Span){0});
}

const char *const *program_hyper_names(Program *p, int *n) {
    VEC(const char *) names = {0};
    for (int i = 0; p->model && i < p->model->params.n; i++)
        if (p->model->params.at[i].type.kind != TY_TENSOR)
            vec_push(p->arena, &names, p->model->params.at[i].name);
    *n = names.n;
    return names.at;
}

const Settings *program_settings(Program *p) {
    if (p->settings || p->settings_failed) return p->settings;
    Settings *s = arena_new(p->arena, Settings);
    if (make_values(p) && blocks_evaluate(p->values, p->hyper_call, p, s)) p->settings = s;
    else p->settings_failed = true;
    return p->settings;
}

// ---- expressions ----------------------------------------------------------------------------------------

// While rows of `config hf` set one hyper-parameter after the other, the default of another may not fit those set so
// far (D / N): that is an error only for who reads it.
Val program_eval(Program *p, const Expr *e, const Subject *subject, int n_names, const Named *names) {
    Lower *lw = p->values;
    Call *hyper = p->hyper_call;
    bool all = hyper || bind_values(p, diag_new(p->arena), &lw, &hyper);
    if (all) {
        p->values = lw;
        p->hyper_call = hyper;
    }
    Call *c = call_new(lw, NULL, p->model, e->at);
    for (int i = 0; i < hyper->vars.n; i++) set_var(lw, c, hyper->vars.at[i].name, hyper->vars.at[i].v);
    for (int i = 0; i < n_names; i++) set_var(lw, c, intern(names[i].name), names[i].v);
    interp_of(lw)->subject = subject;
    int errors = diag_n_errors(p->diag);
    Val v = eval(lw, c, e);
    interp_of(lw)->subject = NULL;
    if (!has_error(&v)) return v;
    if (!all && diag_n_errors(p->diag) == errors) make_values(p);       // says what is wrong with what was read
    return val_error(e->at);
}

Val program_val_num(Span at, Num n) { return val_num(at, n); }
Val program_val_bool(Span at, bool b) { return val_of_bool(at, b); }
Val program_val_str(Span at, const char *text) { return val_of_str(at, text); }
Val program_val_none(Span at) { return val_none(at); }

Val program_val_list(Arena *a, Span at, int n, const Val *items) {
    Lower lw = {.arena = a};
    return val_list(&lw, at, n, items);
}

static void add_val(Program *p, Str *s, const Val *v) {
    if (v->kind == V_NUM) {
        str_add(s, num_text(p->arena, v->num));
    } else if (v->kind == V_LIST) {
        str_add(s, "[");
        for (int i = 0; i < v->list->n; i++) {
            if (i) str_add(s, ", ");
            add_val(p, s, &v->list->at[i]);
        }
        str_add(s, "]");
    } else if (v->kind == V_FN) {
        str_add(s, v->fn->fn ? v->fn->fn->name : v->fn->op);
    } else {
        Lower lw = {.arena = p->arena};
        str_add(s, val_text(&lw, v));
    }
}

const char *program_val_text(Program *p, const Val *v) {
    Str s = {.arena = p->arena};
    add_val(p, &s, v);
    return s.text;
}
