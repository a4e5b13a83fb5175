// Names: what every function of every file mentions must exist, whether somebody calls the function or not.
//
// Variables are judged by the text above: a name assigned further up, in whatever branch, counts as known.
// Whether the branch was taken is seen when the function runs (lower_value.c).
#include <string.h>

#include "frontend/interp.h"

// ---- functions ------------------------------------------------------------------------------------------

const Fn *find_own_fn(const Module *m, const char *name) {
    for (int i = 0; m && i < m->fns.n; i++)
        if (m->fns.at[i]->name == name) return m->fns.at[i];
    return NULL;
}

const Fn *find_fn(const Module *m, const char *name, const Fn **other) {
    *other = NULL;
    const Fn *found = find_own_fn(m, name);
    if (found || !m) return found;
    for (int i = 0; i < m->imports.n && name[0] != '_'; i++) {
        const Import *im = &m->imports.at[i];
        const Fn *f = im->as ? NULL : find_own_fn(im->module, name);
        if (!f || f == found) continue;
        if (found) *other = f;
        else found = f;
    }
    return found;
}

static const char *const constants[] = {"training", "random_eval", "pi", "step", "tokens_seen", "_"};
static const char *const inits[] = {"normal", "trunc_normal", "uniform",   "zeros",
                                    "ones",   "const",        "random_int"};
static const char *const builtins[] = {"each_expert", "emitted", "copy"};
enum { N_CONSTANTS = 6, N_INITS = 7, N_BUILTINS = 3 };

static bool is_in(const char *name, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(list[i], name) == 0) return true;
    return false;
}

bool is_init(const char *name) { return is_in(name, inits, N_INITS); }
bool is_builtin(const char *name) {
    return is_in(name, builtins, N_BUILTINS) || is_init(name) || lower_is_op(name);
}

const char *near_name(Arena *a, const Module *m, int n_vars, const char *const *vars, bool with_ops,
                      const char *name) {
    VEC(const char *) names = {0};
    for (int i = 0; i < n_vars; i++) vec_push(a, &names, vars[i]);
    for (int i = 0; m && i < m->fns.n; i++) {
        const char *own = m->fns.at[i]->name;
        if (with_ops || own[0] != '_') vec_push(a, &names, own);
    }
    for (int i = 0; with_ops && m && i < m->imports.n; i++) {
        const Import *im = &m->imports.at[i];
        if (im->as) vec_push(a, &names, im->as);
        for (int k = 0; !im->as && im->module && k < im->module->fns.n; k++)
            if (im->module->fns.at[k]->name[0] != '_') vec_push(a, &names, im->module->fns.at[k]->name);
    }
    if (with_ops) {
        int n;
        const char *const *ops = lower_op_names(&n);
        for (int i = 0; i < n; i++) vec_push(a, &names, ops[i]);
        for (int i = 0; i < N_INITS; i++) vec_push(a, &names, inits[i]);
        for (int i = 0; i < N_BUILTINS; i++) vec_push(a, &names, builtins[i]);
        for (int i = 0; i < N_CONSTANTS - 1; i++) vec_push(a, &names, constants[i]);
    }
    return did_you_mean(name, names.at, names.n);
}

// ---- one function ---------------------------------------------------------------------------------------

typedef struct {
    Arena *arena;
    Diag  *diag;
    const Module *m;
    const Fn *f;
    VEC(const char *) vars;
} Scope;

static bool is_var(const Scope *s, const char *name) {
    for (int i = 0; i < s->vars.n; i++)
        if (s->vars.at[i] == name) return true;
    return false;
}

static void add_var(Scope *s, const char *name) {
    if (!is_var(s, name)) vec_push(s->arena, &s->vars, name);
}

static const Import *find_alias(const Module *m, const char *name) {
    for (int i = 0; i < m->imports.n; i++)
        if (m->imports.at[i].as == name) return &m->imports.at[i];
    return NULL;
}

static void check_expr(Scope *s, const Expr *e);

// The function a call names, if the text alone says so.
static const Fn *static_callee(const Scope *s, const Expr *e) {
    const Fn *other;
    if (e->kind == X_NAME) return is_var(s, e->name) ? NULL : find_fn(s->m, e->name, &other);
    if (e->kind == X_MEMBER && e->a->kind == X_NAME && !is_var(s, e->a->name)) {
        const Import *im = find_alias(s->m, e->a->name);
        return im && e->name[0] != '_' ? find_own_fn(im->module, e->name) : NULL;
    }
    return NULL;
}

static bool surely_a_value(const Expr *e) {
    return e->kind == X_NUM || e->kind == X_QUANTITY || e->kind == X_STR || e->kind == X_BOOL ||
           e->kind == X_LIST || e->kind == X_CALL || e->kind == X_AS;
}

static void check_args(Scope *s, const Fn *f, const Expr *call) {
    int positional = 0;
    for (int i = 0; i < call->args.n; i++) {
        const Arg *a = &call->args.at[i];
        if (!a->name) {
            if (++positional == f->params.n + 1) {
                diag_error(s->diag, a->at, "%s takes %d arguments, this is one more", f->name, f->params.n);
                diag_note(s->diag, f->at, "its parameters");
            }
            continue;
        }
        bool known =
            strcmp(a->name, "used") == 0 || !surely_a_value(a->value); // what is none may be passed on
        VEC(const char *) names = {0};
        for (int k = 0; k < f->params.n; k++) {
            known |= f->params.at[k].name == a->name;
            vec_push(s->arena, &names, f->params.at[k].name);
        }
        if (known) continue;
        const char *near = did_you_mean(a->name, names.at, names.n);
        if (near)
            diag_error(s->diag, a->name_at, "%s has no parameter '%s'; did you mean '%s'?", f->name, a->name,
                       near);
        else diag_error(s->diag, a->name_at, "%s has no parameter '%s'", f->name, a->name);
        diag_note(s->diag, f->at, "its parameters");
    }
}

static void check_ambiguous(Scope *s, Span at, const char *name) {
    const Fn *other, *f = find_fn(s->m, name, &other);
    if (!f || !other) return;
    diag_error(s->diag, at, "'%s' is in two imports: %s and %s", name, f->module->name, other->module->name);
    diag_help(s->diag, "give one import a name (import ... as n) and write n.%s", name);
}

static void check_callee(Scope *s, const Expr *e) {
    const Fn *other;
    if (e->kind != X_NAME) {
        check_expr(s, e);
        return;
    }
    check_ambiguous(s, e->at, e->name);
    if (is_var(s, e->name) || find_fn(s->m, e->name, &other) || is_builtin(e->name)) return;
    const char *near = near_name(s->arena, s->m, s->vars.n, s->vars.at, true, e->name);
    if (near)
        diag_error(s->diag, e->at, "there is no operation or function '%s'; did you mean '%s'?", e->name,
                   near);
    else diag_error(s->diag, e->at, "there is no operation or function '%s'", e->name);
}

static void check_name(Scope *s, const Expr *e) {
    const Fn *other;
    if (is_var(s, e->name) || is_in(e->name, constants, N_CONSTANTS)) return;
    check_ambiguous(s, e->at, e->name);
    if (find_fn(s->m, e->name, &other) || is_builtin(e->name)) return;
    const char *near = near_name(s->arena, s->m, s->vars.n, s->vars.at, true, e->name);
    if (near) diag_error(s->diag, e->at, "there is no '%s'; did you mean '%s'?", e->name, near);
    else diag_error(s->diag, e->at, "there is no '%s'", e->name);
}

static void check_member(Scope *s, const Expr *e) {
    const Import *im = e->a->kind == X_NAME && !is_var(s, e->a->name) ? find_alias(s->m, e->a->name) : NULL;
    if (!im) {
        check_expr(s, e->a);
        return;
    }
    if (e->name[0] != '_' && find_own_fn(im->module, e->name)) return;
    const char *near = near_name(s->arena, im->module, 0, NULL, false, e->name);
    if (near)
        diag_error(s->diag, e->op_at, "%s has no function '%s'; did you mean '%s'?", im->as, e->name, near);
    else diag_error(s->diag, e->op_at, "%s has no function '%s'", im->as, e->name);
}

static void check_expr(Scope *s, const Expr *e) {
    if (!e) return;
    switch (e->kind) {
    case X_NAME: check_name(s, e); return;
    case X_MEMBER: check_member(s, e); return;
    case X_CALL: {
        check_callee(s, e->a);
        const Fn *f = static_callee(s, e->a);
        if (f) check_args(s, f, e);
        for (int i = 0; i < e->args.n; i++) check_expr(s, e->args.at[i].value);
        return;
    }
    case X_EACH: {
        check_expr(s, e->b);
        int n = s->vars.n;
        add_var(s, e->name);
        check_expr(s, e->a);
        check_expr(s, e->c);
        s->vars.n = n;
        return;
    }
    default:
        check_expr(s, e->a);
        check_expr(s, e->b);
        check_expr(s, e->c);
        for (int i = 0; i < e->items.n; i++) check_expr(s, e->items.at[i]);
    }
}

static void check_options(Scope *s, const Stmt *t) {
    static const char *const none[] = {NULL};
    static const char *const param[] = {"decay", "lr", "group", "split", "frozen", "dtype", NULL};
    static const char *const loss[] = {"weight", "until", NULL};
    static const char *const layer[] = {"frozen", "weights", NULL};
    const char *const *allowed = t->kind == S_PARAM   ? param
                                 : t->kind == S_LOSS  ? loss
                                 : t->kind == S_LAYER ? layer
                                                      : none;
    int n = 0;
    while (allowed[n]) n++;
    for (int i = 0; i < t->options.n; i++) {
        const Arg *a = &t->options.at[i];
        if (t->kind == S_PARAM && strcmp(a->name, "split") == 0 && a->value->kind == X_NAME) {
            bool stands = false;                       // a name of the shape, which need not be a variable
            for (int k = 0; k < t->decls.n; k++)
                for (int j = 0; j < t->decls.at[k].shape.n; j++) {
                    const Expr *x = t->decls.at[k].shape.at[j];
                    stands |= x->kind == X_NAME && x->name == a->value->name;
                }
            if (!stands) check_expr(s, a->value);
        } else {
            check_expr(s, a->value);
        }
        if (is_in(a->name, allowed, n)) continue;
        static const char *const words[] = {
            [S_PARAM] = "param",   [S_STATE] = "state", [S_UPDATE] = "update", [S_LOSS] = "loss",
            [S_METRIC] = "metric", [S_EMIT] = "emit",   [S_LAYER] = "layer"};
        const char *near = did_you_mean(a->name, allowed, n);
        if (near)
            diag_error(s->diag, a->name_at, "'%s' has no option '%s'; did you mean '%s'?", words[t->kind],
                       a->name, near);
        else diag_error(s->diag, a->name_at, "'%s' has no option '%s'", words[t->kind], a->name);
    }
}

static void check_body(Scope *s, const Stmts *body);

static void check_stmt(Scope *s, const Stmt *t) {
    for (int i = 0; i < t->right.n; i++) check_expr(s, t->right.at[i]);
    if (t->value) check_expr(s, t->value);
    check_options(s, t);
    for (int i = 0; i < t->left.n; i++) {
        const Expr *e = t->left.at[i];
        if (e->kind == X_INDEX) {
            for (int k = 0; k < e->items.n; k++) check_expr(s, e->items.at[k]);
            e = e->a;
        }
        if (e->kind != X_NAME)
            diag_error(s->diag, e->at, "only a name, or a name with a shape, can be assigned to");
        else if (t->kind == S_UPDATE_BY) check_expr(s, e);
        else add_var(s, e->name);
    }
    for (int i = 0; i < t->decls.n; i++)
        for (int k = 0; k < t->decls.at[i].shape.n; k++) check_expr(s, t->decls.at[i].shape.at[k]);
    for (int i = 0; i < t->decls.n; i++) add_var(s, t->decls.at[i].name);
    if (t->kind == S_LAYER || t->kind == S_FOR) add_var(s, t->name);
    check_body(s, &t->body);
    check_body(s, &t->orelse);
}

static void check_body(Scope *s, const Stmts *body) {
    for (int i = 0; i < body->n; i++) check_stmt(s, body->at[i]);
}

// An expression in a signature's shape may use parameters and what stands alone in some shape.
static void check_shape_names(Scope *s, const Expr *e) {
    if (!e) return;
    if (e->kind == X_NAME && !is_var(s, e->name) && !is_builtin(e->name))
        diag_error(s->diag, e->at,
                   "%s is not known where this shape is solved: it is no parameter and stands alone nowhere",
                   e->name);
    check_shape_names(s, e->a);
    check_shape_names(s, e->b);
    check_shape_names(s, e->c);
    for (int i = 0; i < e->args.n; i++) check_shape_names(s, e->args.at[i].value);
}

static void check_signature(Scope *s) {
    const Fn *f = s->f;
    for (int i = 0; i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        for (int k = 0; k < i; k++)
            if (f->params.at[k].name == p->name)
                diag_error(s->diag, p->name_at, "there are two parameters '%s'", p->name);
        add_var(s, p->name);
        for (int k = 0; k < p->type.shape.n; k++)
            if (p->type.shape.at[k]->kind == X_NAME) add_var(s, p->type.shape.at[k]->name);
    }
    for (int i = 0; i < f->params.n; i++) {
        const TypeExpr *t = &f->params.at[i].type;
        for (int k = 0; k < t->shape.n; k++)
            if (t->shape.at[k]->kind != X_NAME) check_shape_names(s, t->shape.at[k]);
        check_expr(s, f->params.at[i].fallback);
    }
    for (int i = 0; i < f->returns.n; i++)
        for (int k = 0; k < f->returns.at[i].shape.n; k++) check_expr(s, f->returns.at[i].shape.at[k]);
}

// ---- what only losses need --------------------------------------------------------------------------------

// Names that matter where losses, metrics and updates vanish (generation, frozen models).
typedef struct {
    Arena *arena;
    VEC(const char *) names;
    bool grew;
} Needed;

static bool is_needed(const Needed *n, const char *name) {
    for (int i = 0; i < n->names.n; i++)
        if (n->names.at[i] == name) return true;
    return false;
}

static void need_expr(Needed *n, const Expr *e) {
    if (!e) return;
    if (e->kind == X_NAME && !is_needed(n, e->name)) {
        vec_push(n->arena, &n->names, e->name);
        n->grew = true;
    }
    need_expr(n, e->a);
    need_expr(n, e->b);
    need_expr(n, e->c);
    for (int i = 0; i < e->items.n; i++) need_expr(n, e->items.at[i]);
    for (int i = 0; i < e->args.n; i++) need_expr(n, e->args.at[i].value);
}

static const char *target(const Expr *left) {
    if (left->kind == X_INDEX) left = left->a;
    return left->kind == X_NAME ? left->name : NULL;
}

static bool assigns_needed(const Needed *n, const Stmt *t) {
    for (int i = 0; i < t->left.n; i++) {
        const char *name = target(t->left.at[i]);
        if (!name || is_needed(n, name)) return true;
    }
    return false;
}

static void need_body(Needed *n, const Stmts *body) {
    for (int i = 0; i < body->n; i++) {
        const Stmt *t = body->at[i];
        bool vanishes = t->kind == S_LOSS || t->kind == S_METRIC || t->kind == S_UPDATE || t->kind == S_EXPR;
        bool assignment = t->kind == S_ASSIGN || t->kind == S_UPDATE_BY;
        if (vanishes || (assignment && !assigns_needed(n, t))) continue;
        for (int k = 0; k < t->left.n; k++)
            if (t->left.at[k]->kind == X_INDEX) need_expr(n, t->left.at[k]);
        for (int k = 0; k < t->right.n; k++) need_expr(n, t->right.at[k]);
        need_expr(n, t->value);
        for (int k = 0; k < t->decls.n; k++)
            for (int j = 0; j < t->decls.at[k].shape.n; j++) need_expr(n, t->decls.at[k].shape.at[j]);
        for (int k = 0; k < t->options.n; k++) need_expr(n, t->options.at[k].value);
        need_body(n, &t->body);
        need_body(n, &t->orelse);
    }
}

static void mark_for_losses(const Needed *n, Stmts *body) {
    for (int i = 0; i < body->n; i++) {
        Stmt *t = body->at[i];
        bool assignment = t->kind == S_ASSIGN || t->kind == S_UPDATE_BY;
        t->for_losses = t->kind == S_EXPR || (assignment && !assigns_needed(n, t));
        mark_for_losses(n, &t->body);
        mark_for_losses(n, &t->orelse);
    }
}

static void find_what_losses_need(Arena *a, Fn *f) {
    Needed n = {.arena = a, .grew = true};
    while (n.grew) {
        n.grew = false;
        need_body(&n, &f->body);
    }
    mark_for_losses(&n, &f->body);
}

// ---- functions that call themselves ---------------------------------------------------------------------

typedef struct {
    Arena *arena;
    Diag  *diag;
    VEC(const Fn *) done, open;
} Cycles;

static void visit_fn(Cycles *y, const Fn *f);

static void visit_expr(Cycles *y, const Fn *f, const Expr *e) {
    if (!e) return;
    if (e->kind == X_CALL && e->a->kind == X_NAME) {
        const Fn *other, *g = find_fn(f->module, e->a->name, &other);
        for (int i = 0; g && i < f->params.n; i++)
            if (f->params.at[i].name == g->name) g = NULL;           // the parameter is called
        for (int i = 0; g && i < y->open.n; i++)
            if (y->open.at[i] == g) {
                diag_error(y->diag, e->at, g == f ? "'%s' calls itself" : "'%s' is called by what it calls",
                           g->name);
                g = NULL;
            }
        if (g) visit_fn(y, g);
    }
    visit_expr(y, f, e->a);
    visit_expr(y, f, e->b);
    visit_expr(y, f, e->c);
    for (int i = 0; i < e->items.n; i++) visit_expr(y, f, e->items.at[i]);
    for (int i = 0; i < e->args.n; i++) visit_expr(y, f, e->args.at[i].value);
}

static void visit_body(Cycles *y, const Fn *f, const Stmts *body) {
    for (int i = 0; i < body->n; i++) {
        const Stmt *t = body->at[i];
        for (int k = 0; k < t->right.n; k++) visit_expr(y, f, t->right.at[k]);
        visit_expr(y, f, t->value);
        visit_body(y, f, &t->body);
        visit_body(y, f, &t->orelse);
    }
}

static void visit_fn(Cycles *y, const Fn *f) {
    for (int i = 0; i < y->done.n; i++)
        if (y->done.at[i] == f) return;
    vec_push(y->arena, &y->open, f);
    if (f->value) visit_expr(y, f, f->value);
    visit_body(y, f, &f->body);
    y->open.n--;
    vec_push(y->arena, &y->done, f);
}

// ---- files ----------------------------------------------------------------------------------------------

static void check_blocks(Diag *d, const Module *m) {
    static const char *const known[] = {"train", "data", "parallel", "generate", "config", "weights"};
    for (int i = 0; i < m->blocks.n; i++) {
        const Block *b = &m->blocks.at[i];
        if (is_in(b->name, known, 6)) continue;
        const char *near = did_you_mean(b->name, known, 6);
        if (near) diag_error(d, b->name_at, "there is no block '%s'; did you mean '%s'?", b->name, near);
        else
            diag_error(
                d, b->name_at,
                "there is no block '%s'; there are train, data, parallel, generate, config and weights",
                b->name);
    }
}

bool resolve(Arena *a, Diag *d, const Module *m) {
    int before = diag_n_errors(d);
    const Fn *model = NULL;
    Cycles cycles = {.arena = a, .diag = d};
    for (int i = 0; i < m->fns.n; i++) {
        Fn *f = m->fns.at[i];
        find_what_losses_need(a, f);
        for (int k = 0; k < i; k++)
            if (m->fns.at[k]->name == f->name) {
                diag_error(d, f->name_at, "there is a function '%s' in this file already", f->name);
                diag_note(d, m->fns.at[k]->name_at, "the first one");
            }
        if (f->is_model && model) {
            diag_error(d, f->name_at, "a file holds one model");
            diag_note(d, model->name_at, "the first one");
        }
        if (f->is_model) model = f;
        Scope s = {.arena = a, .diag = d, .m = m, .f = f};
        check_signature(&s);
        if (f->value) check_expr(&s, f->value);
        check_body(&s, &f->body);
        visit_fn(&cycles, f);
    }
    check_blocks(d, m);
    return diag_n_errors(d) == before;
}
