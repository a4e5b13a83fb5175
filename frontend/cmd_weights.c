#include "frontend/cmd_weights.h"

#include <errno.h>
#include <string.h>

#include "frontend/hf_config.h"

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

static int64_t param_elements(const HfParam *p) {
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
        if (filled[i]) value[i] = arena_array(a, float, param_elements(&w->param[i]));
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

bool weights_load(Session *s, const char *dir) {
    RtError e = {0};
    StFiles *files;
    if (st_open(dir, &files, &e) != RT_OK) {
        diag_error(s->diag, (Span){0}, "%s", e.text);
        return false;
    }
    Weights w;
    float **value = weights_match(s, files, dir, "", true, &w) ? weights_read(s, &w) : NULL;
    for (int i = 0; value && i < w.n_params; i++) {
        const RtTensor *t = value[i] ? rt_tensor(s->plan, w.param[i].name) : NULL;
        if (!t) continue;                            // a parameter this program doesn't read
        if (t->dtype == F32) memcpy(rt_tensor_data(s->plan, t), value[i], (size_t)param_elements(&w.param[i]) * sizeof(float));
        else if (t->dtype == I32)
            for (int64_t k = 0; k < param_elements(&w.param[i]); k++) ((int32_t *)rt_tensor_data(s->plan, t))[k] = (int32_t)value[i][k];
    }
    st_close(files);
    return value != NULL;
}
