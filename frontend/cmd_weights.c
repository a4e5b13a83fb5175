#include "frontend/cmd_weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/hf_config.h"
#include "runtime/layout.h"

static bool lookup(void *self, const char *name, int64_t *number, const char **word) {
    Session *s = self;
    int n;
    const char *const *names = program_hyper_names(s->program, &n);
    for (int i = 0; i < n; i++) {
        if (names[i] != name) continue;
        Val v = program_hyper(s->program, name);
        if (v.kind == V_STR) return *word = v.str, true;
        return v.kind == V_NUM && num_is_int(v.num, number);
    }
    return false;
}

bool weights_open_model(Session *s, Cli *c, const char *dir) {
    *s = (Session){.cli = c, .arena = c->arena, .diag = c->diag};
    const char *name = arena_printf(c->arena, "%s/config.json", dir);
    const char *json = read_file(c->arena, name, NULL);
    if (!json) {
        diag_error(c->diag, (Span){0}, "%s: %s", name, strerror(errno));
        return false;
    }
    const char *type = hf_model_type(c->arena, c->diag, json, name);
    if (!type) return false;
    const char *file = cli_value(c, "model");
    if (!file) file = hf_find_model(c->arena, session_models_dir(c->arena), type);
    if (!file) {
        diag_error(c->diag, (Span){0}, "no model of models/ reads model_type \"%s\" (%s); --model FILE names one that does", type, name);
        return false;
    }
    return session_load(s, c, file) && hf_configure(s->program, c->arena, json, name);
}

bool weights_match(Session *s, const StFiles *files, const char *file_name, const char *prefix, bool complete, Weights *out) {
    Arena *a = s->arena;
    *out = (Weights){.files = files};
    size_t n_prefix = strlen(prefix);
    int n = st_count(files);
    out->tensor = arena_array(a, HfTensor, n + 1);
    out->source = arena_array(a, const StTensor *, n + 1);
    for (int i = 0; i < n; i++) {
        const StTensor *t = st_at(files, i);
        if (strncmp(t->name, prefix, n_prefix) != 0) continue;
        HfTensor *h = &out->tensor[out->n_tensors];
        h->name = t->name + n_prefix;
        h->ndim = t->ndim;
        memcpy(h->dim, t->dim, sizeof h->dim);
        out->source[out->n_tensors++] = t;
    }
    const ParamInfo *p = program_params(s->program, &out->n_params);
    if (!p) return false;
    out->param = arena_array(a, HfParam, out->n_params + 1);
    for (int i = 0; i < out->n_params; i++) {
        HfParam *h = &out->param[i];
        *h = (HfParam){.name = p[i].path, .ndim = p[i].ndim, .optional = p[i].state};
        memcpy(h->dim, p[i].dim, sizeof h->dim);
    }
    HfRules rules = {.arena = a, .diag = s->diag, .module = program_main(s->program), .lookup = lookup, .self = s,
                     .file = file_name, .complete = complete};
    return hf_match(&rules, out->tensor, out->n_tensors, out->param, out->n_params, &out->matches);
}

int64_t weights_elements(const HfParam *p) {
    int64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= p->dim[i];
    return n;
}

static void note_param(void *self, int param, int64_t element) {
    (void)element;
    ((bool *)self)[param] = true;
}

static bool read_value(Session *s, const Weights *w, const HfMatch *m, float *out) {
    RtError e = {0};
    const StTensor *t = w->source[m->tensor];
    if (m->mxfp4) {
        const StTensor *scales = w->source[m->scales];
        if (t->dtype != ST_U8 || scales->dtype != ST_U8) {
            diag_error(s->diag, m->at, "%s: MXFP4 blocks and scales are U8, these are %s and %s", t->name, st_dtype_name(t->dtype), st_dtype_name(scales->dtype));
            return false;
        }
        hf_decode_mxfp4(t->data, scales->data, t->elements / 16, out);
        return true;
    }
    if (st_read_f32(t, 0, t->elements, out, &e) == RT_OK) return true;
    diag_error(s->diag, m->at, "%s", e.text);
    return false;
}

float **weights_read(Session *s, const Weights *w) {
    Arena *a = s->arena;
    bool *filled = arena_array(a, bool, w->n_params + 1);
    for (int i = 0; i < w->matches.n; i++) hf_view_covers(w->matches.at[i].view, note_param, filled);
    float **value = arena_array(a, float *, w->n_params + 1);
    for (int i = 0; i < w->n_params; i++)
        if (filled[i]) value[i] = arena_array(a, float, weights_elements(&w->param[i]));
    for (int i = 0; i < w->matches.n; i++) {
        const HfMatch *m = &w->matches.at[i];
        int64_t n = 1;
        for (int d = 0; d < m->view->ndim; d++) n *= m->view->dim[d];
        Arena *scratch = arena_create();
        float *file = arena_array(scratch, float, n);
        bool ok = read_value(s, w, m, file);
        if (ok) hf_view_scatter(m->view, sizeof(float), (char *const *)value, (const char *)file);
        arena_destroy(scratch);
        if (!ok) return NULL;
    }
    return value;
}

// The parameter that is all of what a view names, or all of it at one expert; element -1: all.  -1: it is more than that.
static int whole_param(const HfView *v, int64_t *element) {
    *element = v->kind == HV_ELEMENT ? v->element : -1;
    if (v->kind == HV_ELEMENT) v = v->child[0];
    return v->kind == HV_PARAM ? v->param : -1;
}

// Parameters on their way from the file to the plan.  One that some tensor of the file holds together with others, or
// in a form only floats can take, is put together in memory until its last tensor has come.
typedef struct {
    Session *s;
    RtPlanInstance *plan;
    const Weights *w;
    float **value;               // NULL: goes straight to the plan
    int *to_come;                // tensors of the file
    bool *by_value;
} Loading;

// From one tensor of the file straight to the plan; -1: not so.
static int direct_param(const Weights *w, const HfMatch *m, int64_t *element, DType *dtype) {
    return m->mxfp4 || !st_dtype_to(w->source[m->tensor]->dtype, dtype) ? -1 : whole_param(m->view, element);
}

static void expect_param(void *self, int param, int64_t element) {
    (void)element;
    ((Loading *)self)->to_come[param]++;
}

static void mark_param(void *self, int param, int64_t element) {
    (void)element;
    ((Loading *)self)->by_value[param] = true;
}

static void open_param(void *self, int param, int64_t element) {
    (void)element;
    Loading *l = self;
    if (l->value[param]) return;
    l->value[param] = calloc((size_t)weights_elements(&l->w->param[param]) + 1, sizeof(float));
    if (!l->value[param]) abort();
}

static void close_param(void *self, int param, int64_t element) {
    (void)element;
    Loading *l = self;
    if (--l->to_come[param] || !l->value[param]) return;
    const HfParam *h = &l->w->param[param];
    const RtTensor *t = rt_tensor(l->plan, h->name);                   // NULL: a parameter this program doesn't read
    if (t) rt_tensor_take(l->plan, t, 0, weights_elements(h), l->value[param], F32);
    free(l->value[param]);
    l->value[param] = NULL;
}

typedef struct { Loading *l; bool any; } Wanted;

static void want_param(void *self, int param, int64_t element) {
    Wanted *w = self;
    const HfParam *h = &w->l->w->param[param];
    const RtTensor *t = rt_tensor(w->l->plan, h->name);
    int64_t n = weights_elements(h), first = 0;
    if (element >= 0) {
        n /= h->dim[0];
        first = element * n;
    }
    w->any |= t && rt_tensor_holds(w->l->plan, t, first, n);
}

static bool load_match(Loading *l, const HfMatch *m) {
    int64_t element, n = 1;
    DType dtype;
    const StTensor *from = l->w->source[m->tensor];
    int param = direct_param(l->w, m, &element, &dtype);
    if (param >= 0 && !l->by_value[param]) {
        const RtTensor *t = rt_tensor(l->plan, l->w->param[param].name);
        int64_t first = element < 0 ? 0 : element * from->elements;
        if (t) rt_tensor_take(l->plan, t, first, from->elements, from->data, dtype);
        return true;
    }
    for (int d = 0; d < m->view->ndim; d++) n *= m->view->dim[d];
    Wanted wanted = {l, false};
    hf_view_covers(m->view, want_param, &wanted);
    if (!wanted.any) return true;                                      // all of it is other ranks'
    hf_view_covers(m->view, open_param, l);
    Arena *scratch = arena_create();
    float *file = arena_array(scratch, float, n);
    bool ok = read_value(l->s, l->w, m, file);
    if (ok) hf_view_scatter(m->view, sizeof(float), (char *const *)l->value, (const char *)file);
    arena_destroy(scratch);
    return ok;
}

bool weights_load(Session *s, RtPlanInstance *p, const char *dir) {
    RtError e = {0};
    StFiles *files;
    if (st_open(dir, &files, &e) != RT_OK) {
        diag_error(s->diag, (Span){0}, "%s", e.text);
        return false;
    }
    Weights w;
    bool ok = weights_match(s, files, dir, "", true, &w);
    int n = ok ? w.matches.n : 0, n_params = ok ? w.n_params : 0;
    Loading l = {s, p, &w, arena_array(s->arena, float *, n_params + 1), arena_array(s->arena, int, n_params + 1),
                 arena_array(s->arena, bool, n_params + 1)};
    for (int i = 0; i < n; i++) {
        int64_t element;
        DType dtype;
        hf_view_covers(w.matches.at[i].view, expect_param, &l);
        if (direct_param(&w, &w.matches.at[i], &element, &dtype) < 0)
            hf_view_covers(w.matches.at[i].view, mark_param, &l);
    }
    for (int i = 0; ok && i < n; i++) {
        ok = load_match(&l, &w.matches.at[i]);
        st_drop(w.source[w.matches.at[i].tensor]);
        if (ok) hf_view_covers(w.matches.at[i].view, close_param, &l);
    }
    for (int i = 0; i < n_params; i++) free(l.value[i]);
    st_close(files);
    return ok;
}
