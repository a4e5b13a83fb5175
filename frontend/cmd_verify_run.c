// Running programs one way for all targets: by the meaning of their ops, or compiled and through a plan.
#include <string.h>

#include "frontend/cmd_verify.h"
#include "ir/eval.h"
#include "runtime/convert.h"
#include "runtime/exec.h"
#include "runtime/generate.h"
#include "runtime/layout.h"

bool verify_is_ref(const Cli *c) {
    const char *target = cli_value(c, "target");
    return target && !strcmp(target, "ref");
}

const char *const *verify_pipeline(const Runner *r, bool backward) {
    // gradients are results here, and the forward graph is the one for evaluation: no optimizer
    static const char *const compiled[] = {"simplify",     "fuse-gating", "precision", "autodiff", "simplify",
                                           "contract",     "partition",   "recompute", "fuse",     "layout",
                                           "schedule-a2a", "plan-memory", NULL};
    static const char *const meaning[] = {"simplify", "fuse-gating", "precision", "autodiff", NULL};
    static const char *const meaning_forward[] = {"simplify", "fuse-gating", "precision", NULL};
    if (r->ref) return backward ? meaning : meaning_forward;
    return backward ? compiled : pipeline_forward;
}

static int64_t elements_of(int ndim, const int64_t *dim) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= dim[i];
    return n;
}

static bool failed(Runner *r, const RtError *e) {
    diag_error(r->s->diag, (Span){0}, "%s", e->text);
    return false;
}

static const Graph *find_program(const Runner *r, const char *name) {
    for (int i = 0; i < r->n_programs; i++)
        if (!strcmp(r->program[i]->name, name)) return r->program[i];
    return NULL;
}

static const Node *find_source(const Runner *r, Op op, const char *name) {
    for (int i = 0; i < r->n_programs; i++)
        for_each_node(r->program[i], n) if (n->op == op && !strcmp(n->attr.name, name)) return n;
    return NULL;
}

// ---- the evaluator's memory -------------------------------------------------------------------------------

static Stored *find_stored(Runner *r, const char *name) {
    for (int i = 0; i < r->stored.n; i++)
        if (!strcmp(r->stored.at[i].name, name)) return &r->stored.at[i];
    return NULL;
}

static DType held_as(const Runner *r, DType t) { return !dtype_is_float(t) ? t : r->f64 ? F64 : F32; }

// Room for n elements under this name; made at first sight, larger if need be.
static Stored *store(Runner *r, const char *name, DType dtype, int64_t n) {
    Stored *s = find_stored(r, name);
    if (!s) {
        vec_push(r->s->arena, &r->stored, ((Stored){.name = arena_strdup(r->s->arena, name)}));
        s = &vec_last(&r->stored);
    }
    if (!s->data || s->dtype != dtype || s->n < n)
        s->data = arena_alloc(r->s->arena, (size_t)(n * dtype_bytes(dtype)) + 1);
    s->dtype = dtype;
    s->n = n;
    return s;
}

static Stored *first_value(Runner *r, const Node *n) {
    const char *init = n->attr.init ? n->attr.init : "zeros";
    bool constant = !strcmp(init, "const");
    if (!constant && strcmp(init, "zeros") != 0) return NULL;
    int64_t elements = type_bound_elements(&n->out[0].type);
    Stored *s = store(r, n->attr.name, held_as(r, n->out[0].type.dtype), elements);
    for (int64_t i = 0; constant && i < elements; i++) rt_store_number(s->data, s->dtype, i, n->attr.init_a);
    return s;
}

static bool source(void *self, const Node *n, Tensor *t) {
    Runner *r = self;
    Stored *s = find_stored(r, n->attr.name);
    if (!s && n->op != OP_INPUT) s = first_value(r, n);
    int64_t elements = elements_of(t->ndim, t->dim);
    if (!s || s->dtype != t->dtype || s->n < elements) return false;
    memcpy(t->data, s->data, (size_t)(elements * dtype_bytes(t->dtype)));
    return true;
}

static int64_t sym_value(void *self, const Sym *s) {
    Runner *r = self;
    return !strcmp(s->name, "S") ? r->rows : !strcmp(s->name, "C") ? r->context : s->bound;
}

static void keep(Runner *r, const char *name, const Tensor *t) {
    int64_t n = elements_of(t->ndim, t->dim);
    Stored *s = store(r, name, t->dtype, n);
    memcpy(s->data, t->data, (size_t)(n * dtype_bytes(t->dtype)));
}

// A sum over the waves of a step.
static void accumulate(Runner *r, const char *name, const Tensor *t) {
    Stored *s = r->wave ? find_stored(r, name) : NULL;
    if (!s) {
        keep(r, name, t);
        return;
    }
    for (int64_t i = 0; i < s->n; i++)
        rt_store_number(s->data, s->dtype, i,
                        rt_load_number(s->data, s->dtype, i) + rt_load_number(t->data, t->dtype, i));
}

// What the run leaves behind.  Rows of a cache stand at the front of its pool.
static void carry_out(Runner *r, const Graph *g, const Eval *e) {
    for_each_node(g, n) {
        if (n->op == OP_UPDATE) keep(r, n->attr.name, eval_value(e, n->in[0]));
        if (n->op == OP_ACCUMULATE)
            accumulate(r, arena_printf(r->arena, "grad/%s", n->attr.name), eval_value(e, n->in[0]));
        if (n->op != OP_CACHE) continue;
        const Tensor *all = eval_value(e, &n->out[0]);
        Stored *pool = find_stored(r, n->in[0]->node->attr.name);
        memcpy(pool->data, all->data, (size_t)(elements_of(all->ndim, all->dim) * dtype_bytes(all->dtype)));
    }
}

// ---- opening -------------------------------------------------------------------------------------------

static void fill_stored(Runner *r, const HfParam *p, const float *value) {
    const Node *n = find_source(r, OP_PARAM, p->name);
    if (!n) n = find_source(r, OP_STATE, p->name);
    if (!n) return; // no program reads it
    int64_t elements = elements_of(p->ndim, p->dim);
    Stored *s = store(r, n->attr.name, held_as(r, n->out[0].type.dtype), elements);
    for (int64_t i = 0; i < elements; i++) rt_store_number(s->data, s->dtype, i, (double)value[i]);
}

bool runner_open(Runner *r, Session *s, Graph *const *programs, int n, const Weights *w,
                 float *const *value) {
    r->s = s;
    r->program = programs;
    r->n_programs = n;
    r->arena = arena_create();
    if (!r->ref && !session_start(s, programs, n)) return false;
    RtError e = {0};
    RtStatus status = r->comm ? rt_ranks_open(s->plan, r->comm, &r->ranks, &e) : RT_OK;
    if (status == RT_OK && !r->ref) status = rt_init(s->plan, 0, &e);
    if (status != RT_OK) return failed(r, &e);
    for (int i = 0; i < w->n_params; i++) {
        if (!value[i]) continue;
        if (r->ref) {
            fill_stored(r, &w->param[i], value[i]);
            continue;
        }
        const RtTensor *t = rt_tensor(s->plan, w->param[i].name);
        if (t) rt_tensor_take(s->plan, t, 0, weights_elements(&w->param[i]), value[i], F32);
    }
    return true;
}

void runner_close(Runner *r) {
    rt_ranks_close(r->ranks);
    r->ranks = NULL;
    arena_destroy(r->arena);
    r->arena = NULL;
}

// ---- inputs --------------------------------------------------------------------------------------------

// PROGRAM/NAME, where other programs have one of that name in another shape.
static const RtTensor *plan_input(const Runner *r, const char *program, const char *name) {
    const RtTensor *t = rt_tensor(r->s->plan, arena_printf(r->s->arena, "%s/%s", program, name));
    if (!t) t = rt_tensor(r->s->plan, name);
    return t && t->role == RT_INPUT ? t : NULL;
}

static const Node *find_input(const Runner *r, const char *program, const char *name) {
    for_each_node(find_program(r, program), n) if (n->op == OP_INPUT && !strcmp(n->attr.name, name)) return n;
    return NULL;
}

bool runner_has_input(const Runner *r, const char *program, const char *input) {
    return find_input(r, program, input) != NULL;
}

bool runner_set_ints(Runner *r, const char *program, const char *input, const int32_t *values, int64_t n) {
    const Node *node = find_input(r, program, input);
    const Type *t = node ? &node->out[0].type : NULL;
    if (!t || t->dtype != I32 || type_bound_elements(t) < n) {
        diag_error(r->s->diag, (Span){0}, "the model has no input '%s' of %lld ids", input, (long long)n);
        return false;
    }
    const RtTensor *planned = r->ref ? NULL : plan_input(r, program, input);
    if (r->ref)
        memcpy(store(r, input, I32, n)->data, values, (size_t)n * sizeof *values);
    else if (planned)
        memcpy(rt_tensor_data(r->s->plan, planned), values, (size_t)n * sizeof *values);
    return true;
}

void runner_set_number(Runner *r, const char *program, const char *input, double value) {
    if (!r->ref) { // a plan has inputs of its own: wave
        const RtTensor *t = plan_input(r, program, input);
        int64_t n = t ? rt_tensor_elements(r->s->plan, t) : 0;
        for (int64_t i = 0; i < n; i++)
            rt_store_number(rt_tensor_data(r->s->plan, t), (DType)t->dtype, i, value);
        return;
    }
    const Node *node = find_input(r, program, input);
    if (!node) return;
    int64_t n = type_bound_elements(&node->out[0].type);
    Stored *s = store(r, input, held_as(r, node->out[0].type.dtype), n);
    for (int64_t i = 0; i < n; i++) rt_store_number(s->data, s->dtype, i, value);
}

// ---- runs ----------------------------------------------------------------------------------------------

static bool is_output(const Node *n) { return n->op == OP_LOSS || n->op == OP_METRIC || n->op == OP_RETURN; }

static void add_output(Runner *r, Outputs *out, const Node *n, const Tensor *t) {
    Output o = {.name = n->attr.name,
                .path = n->path,
                .op = n->op,
                .weight = n->attr.weight,
                .ndim = t->ndim,
                .n = elements_of(t->ndim, t->dim)};
    memcpy(o.dim, t->dim, sizeof o.dim);
    o.at = arena_array(r->arena, double, o.n + 1);
    for (int64_t i = 0; i < o.n; i++) o.at[i] = rt_load_number(t->data, t->dtype, i);
    vec_push(r->arena, out, o);
}

// The plan's tensor of an output; several of one name are in program order.
static const RtTensor *plan_output(const Runner *r, int program, const Graph *g, const Node *of) {
    int earlier = 0;
    for_each_node(g, n) {
        if (n == of) break;
        earlier += n->op == of->op && n->attr.name == of->attr.name;
    }
    const RtPlanInstance *p = r->s->plan;
    RtOutputKind kind = of->op == OP_LOSS ? RT_OUT_LOSS : of->op == OP_METRIC ? RT_OUT_METRIC : RT_OUT_RESULT;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (t->role != RT_OUTPUT || t->kind != kind || strcmp(rt_output_name(p, t), of->attr.name) != 0)
            continue;
        if (rt_is_output_of(p, program, t) && earlier-- == 0) return t;
    }
    return NULL;
}

// What each leaf has, of the leaves of all ranks.
static bool gather_leaves(Runner *r, Output *o) {
    const RtTensor *tokens = rt_tensor(r->s->plan, "tokens");
    int64_t n = rt_data_ranks(r->ranks);
    if (n == 1 || !o->ndim || !tokens || o->dim[0] != tokens->dim[0]) return true;
    double *all = arena_array(r->arena, double, n * o->n + 1);
    RtError e = {0};
    if (rt_gather(r->ranks, o->at, o->n * (int64_t)sizeof *all, all, &e) != RT_OK) return failed(r, &e);
    o->at = all;
    o->n *= n;
    o->dim[0] *= n;
    return true;
}

bool runner_run(Runner *r, const char *program, Outputs *out) {
    const Graph *g = find_program(r, program);
    arena_reset(r->arena);
    if (out) *out = (Outputs){0};
    if (!r->ref) {
        int number = rt_program(r->s->plan, program);
        rt_run(r->s->plan, number);
        for_each_node(g, n) {
            const RtTensor *t = out && is_output(n) ? plan_output(r, number, g, n) : NULL;
            if (!t) continue;
            Tensor view = rt_tensor_view(r->s->plan, t);
            add_output(r, out, n, &view);
            if (!gather_leaves(r, &vec_last(out))) return false;
        }
        RtError e = {0};
        return rt_ranks_status(r->ranks, &e) == RT_OK || failed(r, &e);
    }
    EvalOpts o = {.f64 = r->f64, .source = source, .self = r, .sym_value = sym_value};
    Eval *e = eval_graph(r->arena, g, &o, r->s->diag);
    if (!e) return false;
    for_each_node(g, n) if (out && is_output(n)) add_output(r, out, n, eval_value(e, n->in[0]));
    carry_out(r, g, e);
    return true;
}

// From the ranks that have its parts; elsewhere than on the first it may be zeros.
static const void *whole_tensor(Runner *r, const RtTensor *t) {
    int parts = rt_tensor_parts(r->s->plan, t), within = rt_tensor_inner_parts(r->s->plan, t) * rt_tensor_tp(r->s->plan, t);
    if (parts * within == 1) return rt_tensor_data(r->s->plan, t);
    char *whole = arena_array(r->s->arena, char, t->bytes * parts * within);
    RtError e = {0};
    if (rt_gather_tensor(r->s->plan, t, parts, (RtPartAt){0}, whole, &e) != RT_OK) failed(r, &e);
    if (!t->table) return whole;
    const RtSlots *table = &r->ranks->table[t->table - 1];
    size_t one = (size_t)(t->bytes * within / t->dim[0]);
    char *by_expert = arena_array(r->s->arena, char, t->bytes * parts * within);
    for (int k = 0; k < table->experts; k++) memcpy(by_expert + (size_t)k * one, whole + (size_t)table->slot[k] * one, one);
    return by_expert;
}

const double *runner_value(Runner *r, const char *name, int64_t n) {
    const RtTensor *t = r->ref ? NULL : rt_tensor(r->s->plan, name);
    Stored *s = r->ref ? find_stored(r, name) : NULL;
    if (!t && !s) return NULL;
    double *x = arena_array(r->s->arena, double, n + 1);
    const void *data = t ? whole_tensor(r, t) : s->data;
    for (int64_t i = 0; i < n; i++) x[i] = rt_load_number(data, t ? (DType)t->dtype : s->dtype, i);
    return x;
}

const Output *find_output(const Outputs *o, Op op, const char *name) {
    for (int i = 0; i < o->n; i++)
        if (o->at[i].op == op && !strcmp(o->at[i].name, name)) return &o->at[i];
    return NULL;
}

// ---- decoding ------------------------------------------------------------------------------------------

struct RunnerDecoder {
    Runner *r;
    RtDecoder plan;
    double *row;
};

RunnerDecoder *runner_decoder(Runner *r) {
    RunnerDecoder *d = arena_new(r->s->arena, RunnerDecoder);
    d->r = r;
    RtError e = {0};
    if (r->ref || rt_decoder_open(r->s->plan, &d->plan, &e) == RT_OK) return d;
    diag_error(r->s->diag, (Span){0}, "%s", e.text);
    return NULL;
}

void runner_decoder_close(RunnerDecoder *d) {
    if (!d->r->ref) rt_decoder_close(&d->plan);
}

static const double *decode_by_meaning(Runner *r, int64_t past, const int32_t *ids, int64_t n,
                                       int64_t *vocab) {
    r->rows = n;
    r->context = past + n;
    if (!runner_set_ints(r, "run", "tokens", ids, n)) return NULL;
    if (runner_has_input(r, "run", "positions")) {
        Stored *s = store(r, "positions", I32, n);
        for (int64_t i = 0; i < n; i++) ((int32_t *)s->data)[i] = (int32_t)(past + i);
    }
    Outputs out;
    if (!runner_run(r, "run", &out)) return NULL;
    const Output *logits = find_output(&out, OP_RETURN, "logits");
    if (!logits || !logits->ndim) return NULL;
    *vocab = logits->dim[logits->ndim - 1];
    return logits->at + logits->n - *vocab;
}

const double *runner_decode(RunnerDecoder *d, int64_t past, const int32_t *ids, int64_t n, int64_t *vocab) {
    if (d->r->ref) return decode_by_meaning(d->r, past, ids, n, vocab);
    if (past == 0) rt_decoder_restart(&d->plan, 0);
    const float *row = rt_decoder_feed(&d->plan, ids, n);
    *vocab = d->plan.vocab;
    if (!d->row) d->row = arena_array(d->r->s->arena, double, *vocab);
    for (int64_t i = 0; i < *vocab; i++) d->row[i] = (double)row[i];
    return d->row;
}
