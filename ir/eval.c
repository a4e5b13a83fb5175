// Runs a graph node by node by the meaning of its ops (ir/ref/).  Slow, plain, and the judge of everything
// else.
//
// Float tensors are held in f32 (or all in f64); after each node whose type is bf16 or f16 its results are
// rounded to that type, so storage precision shows at the same places as in compiled code.  In f64 nothing is
// rounded.
//
// Sizes.  A leaf axis has its fixed size, a plain row symbol what the caller says.  A ragged one gets its
// value from the last of the offsets that define it, which a route computes: its results are made as large as
// the bound allows and cut when the offsets are there.
#include "ir/eval.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "ir/vmath.h"

enum { UNKNOWN = -1 };

// What all regions of a run share.
typedef struct {
    Arena *arena;
    const EvalOpts *opts;
    Diag *diag;
    int64_t *sym;          // by Sym.id; UNKNOWN before its offsets are known
} Run;

struct Eval {
    Run run;
    const Graph *g;
    Tensor *tensor;        // by Value.id, as numbered when the run began
    const Tensor *arg;     // regions: the operands of the node that holds them
    const Value **of;      // by id: guards against a graph that was renumbered since
    int n_values;
    Eval *region;          // chain of evaluated regions, for eval_value
    Eval *next;
};

// ---- tensors --------------------------------------------------------------------------------------------

static int64_t size_of(const Run *run, Dim d) {
    if (!d.sym) return d.n;
    int64_t value = run->sym[d.sym->id];
    return d.n * (value == UNKNOWN ? d.sym->bound : value);
}

static int64_t count(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

static Tensor shape_tensor(const Run *run, const Type *type) {
    Tensor t = {.dtype = type->dtype, .ndim = type->ndim};
    if (dtype_is_float(type->dtype)) t.dtype = run->opts->f64 ? F64 : F32;
    for (int i = 0; i < type->ndim; i++) t.dim[i] = size_of(run, type->dim[i]);
    return t;
}

static Tensor new_tensor(const Run *run, const Type *type) {
    Tensor t = shape_tensor(run, type);
    t.data = arena_alloc(run->arena, (size_t)(count(&t) * dtype_bytes(t.dtype)));
    return t;
}

// To 11 significant bits, fewer below 2^-14; above 65504 (rounded) infinite.
static float round_f16(float x) {
    if (!isfinite(x) || x == 0) return x;
    int exponent;
    frexpf(x, &exponent);                                           // |x| in [2^(e-1), 2^e)
    int unit = exponent - 11 < -24 ? -24 : exponent - 11;
    float y = ldexpf(rintf(ldexpf(x, -unit)), unit);
    return fabsf(y) > 65504 ? copysignf(INFINITY, y) : y;
}

static void round_tensor(const Tensor *t, DType storage) {
    float *x = t->data;
    int64_t n = count(t);
    if (storage == BF16)
        for (int64_t i = 0; i < n; i++) x[i] = vm_round_bf16(x[i]);
    else
        for (int64_t i = 0; i < n; i++) x[i] = round_f16(x[i]);
}

// ---- nodes ----------------------------------------------------------------------------------------------

static Eval *eval_region(const Run *run, const Graph *g, const Tensor *arg, Eval **chain);

// A symbol whose offsets these are takes their last entry as its value.
static void define_sym(const Run *run, const Sym *s, const Tensor *offsets) {
    int64_t n = count(offsets);
    if (n) run->sym[s->id] = ((const int32_t *)offsets->data)[n - 1];
}

static void cut_to_sym(const Run *run, const Node *n, const Sym *s, Tensor *out) {
    for (int i = 0; i < n->n_out; i++)
        for (int k = 0; k < n->out[i].type.ndim; k++)
            if (n->out[i].type.dim[k].sym == s) {
                assert(k == 0);
                out[i].dim[0] = size_of(run, n->out[i].type.dim[0]);
            }
}

static void run_op(const Run *run, Op op, const Attrs *attr, int n_in, const Tensor *in, int n_out,
                   Tensor *out) {
    (run->opts->f64 ? op_info[op].ref64 : op_info[op].ref)(attr, n_in, in, n_out, out);
}

static void round_result(const Run *run, Tensor *t, DType storage) {
    if (!run->opts->f64 && (storage == BF16 || storage == F16)) round_tensor(t, storage);
}

// Rows are gathered, the plain products formed, the epilogue is a region over them.
static bool eval_attached(const Run *run, const Node *n, const Tensor *in, Tensor *out, Eval **chain) {
    Contraction c = contraction_of(n);
    Tensor own[3], *arg = arena_array(run->arena, Tensor, c.products + n->n_in);
    for (int i = 0; i < c.own; i++) {
        own[i] = in[i];
        if (i > 1 || c.index[i] < 0) continue;
        own[i] = new_tensor(run, i ? &c.b : &c.a);
        run_op(run, OP_GATHER_ROWS, &(Attrs){0}, 2, (Tensor[]){in[i], in[c.index[i]]}, 1, &own[i]);
    }
    for (int p = 0; p < c.products; p++) {
        if (p) own[1] = in[c.second];
        arg[p] = new_tensor(run, &c.y);
        run_op(run, n->op, &n->attr, c.own, own, 1, &arg[p]);
        round_result(run, &arg[p], c.y.dtype);
    }
    out[0] = arg[0];
    if (!n->attr.epilogue) return true;
    for (int i = c.extra; i < n->n_in; i++) arg[c.products + i - c.extra] = in[i];
    Eval *r = eval_region(run, n->attr.epilogue, arg, chain);
    for (int i = 0; r && i < n->n_out; i++) out[i] = r->tensor[n->attr.epilogue->last->in[i]->id];
    return r != NULL;
}

static bool is_from_outside(const Node *n) {
    return n->op == OP_PARAM || n->op == OP_STATE || n->op == OP_INPUT;
}

static bool eval_node(Eval *e, const Node *n, Eval **chain) {
    const Run *run = &e->run;
    const OpInfo *op = &op_info[n->op];
    Tensor few_in[8], few_out[8], *in = n->n_in <= 8 ? few_in : arena_array(run->arena, Tensor, n->n_in);
    Tensor *out = n->n_out <= 8 ? few_out : arena_array(run->arena, Tensor, n->n_out);
    for (int i = 0; i < n->n_in; i++) in[i] = e->tensor[n->in[i]->id];

    if (n->attr.body) {
        Eval *r = eval_region(run, n->attr.body, in, chain);
        if (!r) return false;
        const Node *yield = n->attr.body->last;
        for (int i = 0; i < n->n_out; i++) out[i] = r->tensor[yield->in[i]->id];
    } else if (n->op == OP_ARG) {
        out[0] = e->arg[n->attr.k];
    } else if (is_from_outside(n)) {
        out[0] = new_tensor(run, &n->out[0].type);
        if (!run->opts->source || !run->opts->source(run->opts->self, n, &out[0])) {
            diag_error(run->diag, n->at, "nothing gives %s '%s' its contents", op->name, n->attr.name);
            return false;
        }
        round_result(run, &out[0], n->out[0].type.dtype);
    } else if (op->ref == op_info[OP_COPY].ref) {       // same bits, other shape: nothing to move
        out[0] = shape_tensor(run, &n->out[0].type);
        out[0].data = in[0].data;
    } else if (has_attachments(n)) {
        if (!eval_attached(run, n, in, out, chain)) return false;
    } else if (n->n_out) {
        const Sym *defined = n->op == OP_ROUTE ? n->attr.sym : NULL;
        if (defined) run->sym[defined->id] = UNKNOWN;
        for (int i = 0; i < n->n_out; i++) out[i] = new_tensor(run, &n->out[i].type);
        run_op(run, n->op, &n->attr, n->n_in, in, n->n_out, out);
        if (defined) {
            define_sym(run, defined, &out[0]);
            cut_to_sym(run, n, defined, out);
        }
        for (int i = 0; i < n->n_out; i++) round_result(run, &out[i], n->out[i].type.dtype);
    }

    for (int i = 0; i < n->n_out; i++) e->tensor[n->out[i].id] = out[i];
    return true;
}

static Eval *eval_nodes(const Run *run, const Graph *g, const Tensor *arg, Eval **chain) {
    Eval *e = arena_new(run->arena, Eval);
    e->run = *run;
    e->g = g;
    e->arg = arg;
    e->n_values = graph_number((Graph *)g);        // ids are scratch
    e->tensor = arena_array(run->arena, Tensor, e->n_values + 1);
    e->of = arena_array(run->arena, const Value *, e->n_values + 1);
    for_each_node(g, n) {
        for (int i = 0; i < n->n_out; i++) e->of[n->out[i].id] = &n->out[i];
        if (!eval_node(e, n, chain)) return NULL;
        for (int i = 0; i < g->n_syms; i++)        // offsets that are no route's: constants of expert choice
            if (g->sym[i]->extent && g->sym[i]->extent->node == n)
                define_sym(run, g->sym[i], &e->tensor[g->sym[i]->extent->id]);
    }
    return e;
}

static Eval *eval_region(const Run *run, const Graph *g, const Tensor *arg, Eval **chain) {
    Eval *e = eval_nodes(run, g, arg, chain);
    if (e) {
        e->next = *chain;
        *chain = e;
    }
    return e;
}

static Run new_run(Arena *a, const Graph *g, const EvalOpts *opts, Diag *d) {
    Run run = {.arena = a, .opts = opts, .diag = d};
    run.sym = arena_array(a, int64_t, g->n_syms + 1);
    for (int i = 0; i < g->n_syms; i++) {
        const Sym *s = g->sym[i];
        run.sym[i] = s->kind == SYM_LEAF ? s->bound : s->kind == SYM_RAGGED ? UNKNOWN
                   : opts->sym_value ? opts->sym_value(opts->self, s) : s->bound;
    }
    return run;
}

Eval *eval_graph(Arena *a, const Graph *g, const EvalOpts *opts, Diag *d) {
    EvalOpts *kept = arena_new(a, EvalOpts);
    *kept = *opts;
    Run run = new_run(a, g, kept, d);
    Eval *regions = NULL, *e = eval_nodes(&run, g, NULL, &regions);
    if (e) e->region = regions;
    return e;
}

static bool knows(const Eval *e, const Value *v) { return v->id < e->n_values && e->of[v->id] == v; }

const Tensor *eval_value(const Eval *e, const Value *v) {
    if (knows(e, v)) return &e->tensor[v->id];
    for (const Eval *r = e->region; r; r = r->next)
        if (knows(r, v)) return &r->tensor[v->id];
    for (int i = 0; i < e->n_values; i++)          // somebody numbered the graph again: search
        if (e->of[i] == v) return &e->tensor[i];
    for (const Eval *r = e->region; r; r = r->next)
        for (int i = 0; i < r->n_values; i++)
            if (r->of[i] == v) return &r->tensor[i];
    return NULL;
}

// ---- constant folding -----------------------------------------------------------------------------------
// In double from the leaves of the expression on, rounded once: tables of angles come out right.

typedef struct Known Known;
struct Known {
    const Node *node;
    Tensor *out;
    Known *next;
};

typedef struct {
    Run run;
    Known *known;
} Folder;

static bool is_foldable(const Node *n) {
    if (!op_is(n->op, PURE) || n->op == OP_ARG || is_from_outside(n) || n->attr.body || has_attachments(n) ||
        n->op == OP_ROUTE)
        return false;
    for (int i = 0; i < n->n_out; i++)
        for (int k = 0; k < n->out[i].type.ndim; k++) {
            const Sym *s = n->out[i].type.dim[k].sym;
            if (s && s->kind != SYM_LEAF) return false;
        }
    return true;
}

static const Tensor *fold(Folder *f, const Node *n) {
    for (Known *k = f->known; k; k = k->next)
        if (k->node == n) return k->out;
    if (!is_foldable(n)) return NULL;
    Tensor *in = arena_array(f->run.arena, Tensor, n->n_in + 1);
    for (int i = 0; i < n->n_in; i++) {
        const Tensor *t = fold(f, n->in[i]->node);
        if (!t) return NULL;
        in[i] = t[n->in[i]->index];
    }
    Tensor *out = arena_array(f->run.arena, Tensor, n->n_out + 1);
    for (int i = 0; i < n->n_out; i++) out[i] = new_tensor(&f->run, &n->out[i].type);
    op_info[n->op].ref64(&n->attr, n->n_in, in, n->n_out, out);
    Known *k = arena_new(f->run.arena, Known);
    *k = (Known){n, out, f->known};
    f->known = k;
    return out;
}

const Tensor *eval_constant(Arena *a, const Node *n) {
    Arena *scratch = arena_create();
    EvalOpts opts = {.f64 = true};
    const Graph *root = n->graph;
    while (root->parent) root = root->parent;
    Folder f = {.run = new_run(scratch, root, &opts, NULL)};
    const Tensor *folded = fold(&f, n);
    Tensor *result = NULL;
    if (folded) {
        result = arena_array(a, Tensor, n->n_out + 1);
        for (int i = 0; i < n->n_out; i++) {
            Tensor *t = &result[i];
            *t = folded[i];
            int64_t elements = count(t);
            if (t->dtype == F64) {
                t->dtype = F32;
                float *x = arena_array(a, float, elements);
                for (int64_t k = 0; k < elements; k++) x[k] = (float)((const double *)folded[i].data)[k];
                t->data = x;
                DType storage = n->out[i].type.dtype;
                if (storage == BF16 || storage == F16) round_tensor(t, storage);
            } else {
                size_t bytes = (size_t)(elements * dtype_bytes(t->dtype));
                t->data = arena_alloc(a, bytes);
                if (bytes) memcpy(t->data, folded[i].data, bytes);
            }
        }
    }
    arena_destroy(scratch);
    return result;
}
