// moec verify: a checkpoint's numbers against those another implementation recorded for it.
//
//   reference.safetensors       ours
//   input_ids, labels           inputs
//   logits, logits_f64          what the model returns
//   loss, ce_loss, aux_loss     its losses; loss is their weighted sum
//   hidden.3, router_logits.3   what the instance layers.3 (or one inside it) put on that channel
//   decoder.hidden.3            the same of decoder.layers.3
//   grad.NAME                   gradients, put together as `weights hf` says what NAME is
//   greedy_ids, greedy_margin   the largest logits, step by step with a cache
#include "frontend/cmd_ranks.h"
#include "frontend/cmd_verify.h"

#include <ctype.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double logits_tolerance = 1e-4, loss_tolerance = 1e-5, weight_tolerance = 1e-5,
                    hidden_share = 1e-5, grad_share = 5e-5, grad_floor = 1e-7;
static const int64_t usual_prompt = 8; // where no margins say how many steps follow it
static const char *const channels[] = {"logits", "hidden", "router_logits", "topk_idx", "topk_weight", NULL};

typedef struct {
    Cli *cli;
    Session s;
    Ranks ranks;   // each computes some of the sequences; the first compares
    int64_t parts; // of how many the sequences are
    Runner runner;
    Table table;
    StFiles *files, *reference;
    const char *file; // name of the reference
    Weights w;
    float **value;
    bool encoder;         // the model has an encoder: input_ids feed it, labels are the decoder's
    int64_t B, S, source; // sequences; tokens and, of an encoder, source tokens of each
    int64_t prompt;       // ids that a recorded continuation begins with
    Outputs out;
    const char **published; // per output: its name in the reference
    bool *compared;         // per output
    double **grad;          // per parameter
    Weights grads;          // the reference's gradients
    double largest_grad;
} Verify;

// ---- opening -------------------------------------------------------------------------------------------

bool verify_open(Session *s, Cli *c, const char *dir, int n_sets, const char *const *sets) {
    if (!weights_open_model(s, c, dir)) return false;
    for (int i = 0; i < n_sets; i++) vec_push(s->arena, &s->sets, sets[i]);
    for (int i = 0; i < c->sets.n; i++) vec_push(s->arena, &s->sets, c->sets.at[i]);
    return session_settle(s);
}

static bool is_finite(Session *s, const Weights *w, float *const *value) {
    for (int i = 0; i < w->n_params; i++) {
        int64_t n = 1;
        for (int k = 0; k < w->param[i].ndim; k++) n *= w->param[i].dim[k];
        for (int64_t k = 0; value[i] && k < n; k++) {
            if (isfinite(value[i][k])) continue;
            diag_error(s->diag, (Span){0}, "%s: element %lld of %s is %g; weights must be finite",
                       w->files ? st_at(w->files, 0)->file : "", (long long)k, w->param[i].name,
                       (double)value[i][k]);
            return false;
        }
    }
    return true;
}

bool verify_weights(Session *s, const char *dir, StFiles **files, Weights *w, float ***value) {
    RtError e = {0};
    if (st_open(dir, files, &e) != RT_OK) {
        diag_error(s->diag, (Span){0}, "%s", e.text);
        return false;
    }
    if (!weights_match(s, *files, dir, "", true, w)) return false;
    *value = weights_read(s, w);
    return *value && is_finite(s, w, *value);
}

const StTensor *verify_tensor(Session *s, const StFiles *f, const char *file, const char *name) {
    const StTensor *t = st_find(f, name);
    if (!t) diag_error(s->diag, (Span){0}, "%s holds no tensor '%s'", file, name);
    return t;
}

double *verify_numbers(Session *s, const StTensor *t) {
    double *x = arena_array(s->arena, double, t->elements + 1);
    RtError e = {0};
    if (st_read_f64(t, 0, t->elements, x, &e) == RT_OK) return x;
    diag_error(s->diag, (Span){0}, "%s", e.text);
    return NULL;
}

int32_t *verify_ids(Session *s, const StTensor *t, bool may_be_ignored, int64_t most) {
    int32_t *id = arena_array(s->arena, int32_t, t->elements + 1);
    for (int64_t i = 0; i < t->elements; i++) {
        double x = st_number(t, i);
        bool ok = (x >= 0 && x <= (double)most && x == floor(x)) || (x == -100 && may_be_ignored);
        if (!ok) {
            diag_error(s->diag, (Span){0}, "%s: element %lld of %s is %g; ids go from 0 to %lld", t->file,
                       (long long)i, t->name, x, (long long)most);
            return NULL;
        }
        id[i] = (int32_t)x;
    }
    return id;
}

int64_t verify_vocabulary(const Graph *g) {
    for_each_node(g, n) if (n->op == OP_RETURN &&
                            !strcmp(n->attr.name, "logits")) return type_cols(&n->in[0]->type);
    return 0;
}

static bool open_reference(Verify *v, const char *dir) {
    RtError e = {0};
    v->file = arena_printf(v->s.arena, "%s/reference.safetensors", dir);
    if (st_open(v->file, &v->reference, &e) != RT_OK) {
        diag_error(v->s.diag, (Span){0}, "%s", e.text);
        return false;
    }
    const StTensor *ids = verify_tensor(&v->s, v->reference, v->file, "input_ids");
    const StTensor *labels = verify_tensor(&v->s, v->reference, v->file, "labels");
    if (!ids || !labels) return false;
    bool same = ids->ndim == 2 && labels->ndim == 2 && labels->dim[0] == ids->dim[0] &&
                (v->encoder || labels->dim[1] == ids->dim[1]);
    if (!same || !ids->elements || !labels->elements) {
        diag_error(v->s.diag, (Span){0}, "%s: input_ids are %s and labels %s; both are [sequences, tokens]%s",
                   v->file, verify_shape(v->s.arena, ids->ndim, ids->dim),
                   verify_shape(v->s.arena, labels->ndim, labels->dim), v->encoder ? "" : " of one shape");
        return false;
    }
    v->B = ids->dim[0];
    v->S = labels->dim[1];
    v->source = ids->dim[1];
    if (v->B % v->parts == 0) return true;
    diag_error(v->s.diag, (Span){0}, "%s has %lld sequences, which %lld ranks can't share evenly", v->file,
               (long long)v->B, (long long)v->parts);
    return false;
}

// ---- running -------------------------------------------------------------------------------------------

static Graph *elaborate(Verify *v, const ElabOpts *o, bool backward) {
    Graph *g = program_elaborate(v->s.program, v->s.arena, o);
    return g && session_passes(&v->s, &g, verify_pipeline(&v->runner, backward), NULL) ? g : NULL;
}

// With an encoder the continuation is read off one evaluation of all its steps: no step sees a later one.
static Graph *greedy_program(Verify *v, int64_t length) {
    if (!v->encoder) {
        ElabOpts run = {.kind = ELAB_RUN, .mesh = v->s.train.mesh, .leaves = 1, .B = 1, .S = length, .context = length};
        return elaborate(v, &run, false);
    }
    static const char *const logits[] = {"logits", NULL};
    ElabOpts steps = {.kind = ELAB_EVAL,
                      .mesh = v->s.train.mesh,
                      .leaves = 1,
                      .B = v->B,
                      .S = length - 1,
                      .source = v->source,
                      .waves = 1,
                      .returns = logits};
    Graph *g = elaborate(v, &steps, false);
    if (g) g->name = intern("greedy");
    return g;
}

static bool build_programs(Verify *v, const StTensor *greedy) {
    Graph **program = arena_array(v->s.arena, Graph *, 2);
    ElabOpts eval = {.kind = ELAB_EVAL,
                     .mesh = v->s.train.mesh,
                     .leaves = 1,
                     .B = v->B / v->parts,
                     .S = v->S,
                     .source = v->source,
                     .waves = 1,
                     .labels = true,
                     .returns = channels};
    v->s.train.return_grads = true;
    v->s.train.waves = 1;
    program[0] = elaborate(v, &eval, true);
    if (!program[0]) return false;
    if (greedy) program[1] = greedy_program(v, greedy->dim[1]);
    if (greedy && !program[1]) return false;
    return runner_open(&v->runner, &v->s, program, greedy ? 2 : 1, &v->w, v->value);
}

// What the decoder reads: a start id, then the targets; those that don't count are padding.
static bool shift_right(Verify *v, const int32_t *labels, int32_t *tokens) {
    int64_t start = v->s.settings->generate.start, pad = -1;
    Val hyper = program_hyper(v->s.program, "pad");
    if (hyper.kind != V_NUM || !num_is_int(hyper.num, &pad) || start < 0 || pad < 0) {
        diag_error(v->s.diag, (Span){0},
                   "a decoder needs generate.start, its first id, and the hyper-parameter pad");
        return false;
    }
    for (int64_t i = 0; i < v->B * v->S; i++) {
        int32_t before = i % v->S ? labels[i - 1] : (int32_t)start;
        tokens[i] = before == -100 ? (int32_t)pad : before;
    }
    return true;
}

// A leaf is what a rank computes.  Leaves count by their labels, as on one rank, where all are of one.
static void average_leaves(Verify *v, const int32_t *labels) {
    double *weight = arena_array(v->s.arena, double, v->parts), all = 0;
    for (int64_t i = 0; i < v->B * v->S; i++) {
        if (labels[i] == -100) continue;
        weight[i / (v->B * v->S / v->parts)]++;
        all++;
    }
    for (int i = 0; i < v->out.n; i++) {
        Output *o = &v->out.at[i];
        bool gradient = o->op == OP_RETURN && !strncmp(o->name, "grad.", 5);
        for (int64_t k = 0; gradient && k < o->n; k++) o->at[k] /= all;
        if (o->op != OP_LOSS || o->n != v->parts) continue;
        double sum = 0;
        for (int64_t k = 0; k < o->n; k++) sum += weight[k] * o->at[k];
        o->at[0] = sum / all;
        o->n = o->dim[0] = 1;
    }
}

static bool run(Verify *v) {
    int64_t most = verify_vocabulary(v->runner.program[0]) - 1, n = v->B * v->S, own = n / v->parts,
            source = v->B * v->source / v->parts, part = rt_data_rank(v->runner.ranks);
    const int32_t *ids = verify_ids(&v->s, st_find(v->reference, "input_ids"), false, most);
    const int32_t *given = verify_ids(&v->s, st_find(v->reference, "labels"), true, most), *labels = given;
    if (!ids || !given) return false;
    int32_t *made = arena_array(v->s.arena, int32_t, n);
    if (v->encoder) {
        if (!shift_right(v, given, made) ||
            !runner_set_ints(&v->runner, "eval", "source", ids + part * source, source))
            return false;
        ids = made;
    } else {
        for (int64_t i = 0; i < n; i++)
            made[i] = (i + 1) % v->S ? given[i + 1] : -100; // the file's are not shifted
        labels = made;
    }
    if (!runner_set_ints(&v->runner, "eval", "tokens", ids + part * own, own) ||
        !runner_set_ints(&v->runner, "eval", "labels", labels + part * own, own) ||
        !runner_run(&v->runner, "eval", &v->out))
        return false;
    if (v->parts > 1) average_leaves(v, labels);
    return true;
}

// ---- names ---------------------------------------------------------------------------------------------

// decoder.layers.3.ffn.router, hidden -> decoder.hidden.3.  NULL: the path has no numbered layer.
static const char *layer_name(Arena *a, const char *path, const char *channel) {
    static const char mark[] = "layers.";
    for (const char *at = path; at && (at = strstr(at, mark)); at++) {
        const char *digits = at + strlen(mark);
        size_t n = strspn(digits, "0123456789");
        if ((at != path && at[-1] != '.') || !n || (digits[n] && digits[n] != '.')) continue;
        return arena_printf(a, "%.*s%s.%.*s", (int)(at - path), path, channel, (int)n, digits);
    }
    return NULL;
}

// encoder.balance -> encoder_aux_loss
static const char *loss_name(Arena *a, const char *name) {
    static const struct {
        const char *ours, *theirs;
    } table[] = {{"ce", "ce_loss"}, {"aux", "aux_loss"}, {"balance", "aux_loss"}, {"router_z", "z_loss"}};
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].ours, last) != 0) continue;
        char *text = arena_printf(a, "%.*s%s", (int)(last - name), name, table[i].theirs);
        for (char *c = text; *c; c++)
            if (*c == '.') *c = '_';
        return text;
    }
    return NULL;
}

static void name_outputs(Verify *v) {
    Arena *a = v->s.arena;
    v->published = arena_array(a, const char *, v->out.n + 1);
    v->compared = arena_array(a, bool, v->out.n + 1);
    for (int i = 0; i < v->out.n; i++) {
        const Output *o = &v->out.at[i];
        if (o->op == OP_LOSS) v->published[i] = loss_name(a, o->name);
        if (o->op != OP_RETURN || !strncmp(o->name, "grad.", 5)) continue;
        const char *dot = strrchr(o->name, '.');
        bool numbered = dot && isdigit((unsigned char)dot[1]);
        const char *channel = numbered ? arena_strndup(a, o->name, (size_t)(dot - o->name)) : o->name;
        const char *layer = numbered && o->path ? layer_name(a, o->path, channel) : NULL;
        v->published[i] = layer ? layer : o->name;
    }
}

// ---- comparing -----------------------------------------------------------------------------------------

static const Output *take(Verify *v, const char *published) {
    for (int i = 0; i < v->out.n; i++)
        if (v->published[i] && !strcmp(v->published[i], published)) {
            v->compared[i] = true;
            return &v->out.at[i];
        }
    return NULL;
}

static const char *tensor_shape(Verify *v, const StTensor *t) {
    return verify_shape(v->s.arena, t->ndim, t->dim);
}

// The same numbers in the same order: as many, the last axis equally long.
static bool same_shape(const Output *o, const StTensor *t) {
    int64_t ours = o->ndim ? o->dim[o->ndim - 1] : 1, theirs = t->ndim ? t->dim[t->ndim - 1] : 1;
    return o->n == t->elements && (ours == theirs || o->n == 1);
}

static const Output *find_ours(Verify *v, const StTensor *t, const char *name) {
    const Output *o = take(v, name);
    if (!o)
        table_fail(&v->table, t->name, tensor_shape(v, t), "the model computes nothing of this name");
    else if (!same_shape(o, t)) {
        table_fail(&v->table, t->name, tensor_shape(v, t),
                   arena_printf(v->s.arena, "the model's is %s", verify_shape(v->s.arena, o->ndim, o->dim)));
        o = NULL;
    }
    return o;
}

static void compare(Verify *v, const StTensor *t, const char *ours, double tolerance, double share) {
    const Output *o = find_ours(v, t, ours);
    double *want = o ? verify_numbers(&v->s, t) : NULL;
    if (!want) return;
    if (share > 0) tolerance = share * largest_abs(want, o->n);
    table_add(&v->table, t->name, tensor_shape(v, t), largest_error(o->at, want, o->n), tolerance);
}

static void compare_loss(Verify *v, const StTensor *t) {
    double loss = 0;
    for (int i = 0; i < v->out.n; i++)
        for (int64_t k = 0; v->out.at[i].op == OP_LOSS && k < v->out.at[i].n; k++)
            loss += v->out.at[i].weight * v->out.at[i].at[k];
    if (t->elements != 1)
        table_fail(&v->table, t->name, tensor_shape(v, t), "a loss is one number");
    else
        table_add(&v->table, t->name, tensor_shape(v, t), fabs(loss - st_number(t, 0)), loss_tolerance);
}

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// As sets, per token.  The error is the number of tokens whose sets differ.
static void compare_choices(Verify *v, const StTensor *t) {
    const Output *o = find_ours(v, t, t->name);
    double *want = o ? verify_numbers(&v->s, t) : NULL;
    if (!want || !t->ndim) return;
    int64_t k = t->dim[t->ndim - 1], differ = 0;
    double *got = arena_array(v->s.arena, double, k + 1);
    for (int64_t i = 0; i < t->elements; i += k) {
        memcpy(got, o->at + i, (size_t)k * sizeof *got);
        qsort(got, (size_t)k, sizeof *got, by_number);
        qsort(want + i, (size_t)k, sizeof *want, by_number);
        differ += memcmp(got, want + i, (size_t)k * sizeof *got) != 0;
    }
    table_add(&v->table, t->name, tensor_shape(v, t), (double)differ, 0);
}

// Matched by expert: our entry j of a token for the recorded entry of the same expert that is not taken yet.
static void compare_weights(Verify *v, const StTensor *t) {
    const char *dot = strstr(t->name, "topk_weight.");
    const char *idx_name = arena_printf(v->s.arena, "%.*stopk_idx.%s", (int)(dot - t->name), t->name,
                                        dot + strlen("topk_weight."));
    const StTensor *idx = st_find(v->reference, idx_name);
    const Output *o = find_ours(v, t, t->name), *choice = take(v, idx_name);
    if (!o) return;
    if (!idx || !choice || idx->elements != t->elements || choice->n != o->n) {
        table_fail(&v->table, t->name, tensor_shape(v, t),
                   arena_printf(v->s.arena, "there is no %s beside it", idx_name));
        return;
    }
    int64_t k = t->dim[t->ndim - 1];
    double worst = 0;
    bool *taken = arena_array(v->s.arena, bool, k + 1);
    for (int64_t i = 0; i < t->elements; i += k) {
        memset(taken, 0, (size_t)k);
        for (int64_t a = 0; a < k; a++) {
            double best = NAN; // of several dropped ones (-1), the nearest
            int64_t which = -1;
            for (int64_t b = 0; b < k; b++) {
                double error = fabs(o->at[i + b] - st_number(t, i + a));
                if (taken[b] || choice->at[i + b] != st_number(idx, i + a) || (which >= 0 && !(error < best)))
                    continue;
                best = error;
                which = b;
            }
            if (which >= 0) taken[which] = true;
            if (isnan(worst) || isnan(best) || best > worst) worst = best;
        }
    }
    table_add(&v->table, t->name, tensor_shape(v, t), worst, weight_tolerance);
}

// ---- gradients -----------------------------------------------------------------------------------------

static bool prepare_gradients(Verify *v) {
    Arena *a = v->s.arena;
    int n = v->w.n_params;
    v->grad = arena_array(a, double *, n + 1);
    for (int i = 0; i < n; i++) {
        const Output *o = find_output(&v->out, OP_RETURN, arena_printf(a, "grad.%s", v->w.param[i].name));
        int64_t elements = 1;
        for (int k = 0; k < v->w.param[i].ndim; k++) elements *= v->w.param[i].dim[k];
        v->grad[i] = arena_array(a, double, elements + 1); // no loss depends on it: zero
        if (o && o->n == elements) memcpy(v->grad[i], o->at, (size_t)elements * sizeof(double));
    }
    if (!weights_match(&v->s, v->reference, v->file, "grad.", false, &v->grads)) return false;
    for (int i = 0; i < v->grads.n_tensors; i++)
        for (int64_t k = 0; k < v->grads.source[i]->elements; k++)
            v->largest_grad = fmax(v->largest_grad, fabs(st_number(v->grads.source[i], k)));
    return true;
}

static void compare_gradient(Verify *v, const StTensor *t) {
    const HfMatch *m = NULL;
    for (int i = 0; i < v->grads.matches.n && !m; i++)
        if (v->grads.source[v->grads.matches.at[i].tensor] == t) m = &v->grads.matches.at[i];
    if (!m) {
        table_fail(&v->table, t->name, tensor_shape(v, t), "no row of 'weights hf' names this tensor");
        return;
    }
    double *want = verify_numbers(&v->s, t), *got = arena_array(v->s.arena, double, t->elements + 1);
    if (!want) return;
    hf_view_gather(m->view, sizeof(double), (char *const *)v->grad, (char *)got);
    double tolerance = fmax(grad_share * largest_abs(want, t->elements), grad_floor * v->largest_grad);
    table_add(&v->table, t->name, tensor_shape(v, t), largest_error(got, want, t->elements), tolerance)
        ->folds = true;
}

// Tensors of the checkpoint that are trained, but have no recorded gradient.
static void note_missing_gradients(Verify *v) {
    for (int i = 0; i < v->w.matches.n; i++) {
        const HfMatch *m = &v->w.matches.at[i];
        const char *name = arena_printf(v->s.arena, "grad.%s", v->w.tensor[m->tensor].name);
        const HfView *of = m->view;
        while (of->kind != HV_PARAM) of = of->child[0];
        bool trained = !v->w.param[of->param].optional; // states are not
        if (trained && !st_find(v->reference, name)) table_note(&v->table, name, "not in the reference");
    }
}

// ---- greedy continuation -------------------------------------------------------------------------------

// ids[prompt ..] of a row are judged, each by the logits after the recorded ids before it.
typedef struct {
    const int32_t *ids;
    const StTensor *margin; // NULL: not recorded
    int64_t prompt, length, vocab, wrong;
    double margin_error;
} Greedy;

static void judge(Greedy *g, int64_t row, int64_t at, const double *logits) {
    int64_t best = 0;
    for (int64_t i = 1; i < g->vocab; i++)
        if (logits[i] > logits[best]) best = i;
    double second = -INFINITY;
    for (int64_t i = 0; i < g->vocab; i++)
        if (i != best && logits[i] > second) second = logits[i];
    g->wrong += g->ids[row * g->length + at] != best;
    if (!g->margin) return;
    double error =
        fabs(logits[best] - second - st_number(g->margin, row * (g->length - g->prompt) + at - g->prompt));
    if (!(error <= g->margin_error)) g->margin_error = error;
}

static bool continue_rows(Verify *v, Greedy *g, int64_t rows) {
    RunnerDecoder *d = runner_decoder(&v->runner);
    bool ok = d != NULL;
    for (int64_t row = 0; ok && row < rows; row++) {
        for (int64_t at = g->prompt, past = 0; ok && at < g->length; past = at++) {
            const double *logits =
                runner_decode(d, past, g->ids + row * g->length + past, at - past, &g->vocab);
            ok = logits != NULL;
            if (ok) judge(g, row, at, logits);
        }
    }
    if (d) runner_decoder_close(d);
    return ok;
}

static bool continue_source(Verify *v, Greedy *g) {
    int64_t steps = g->length - 1;
    int32_t *tokens = arena_array(v->s.arena, int32_t, v->B *steps);
    for (int64_t i = 0; i < v->B * steps; i++) tokens[i] = g->ids[i / steps * g->length + i % steps];
    const int32_t *source = verify_ids(&v->s, st_find(v->reference, "input_ids"), false, INT32_MAX);
    Outputs out;
    if (!source || !runner_set_ints(&v->runner, "greedy", "tokens", tokens, v->B * steps) ||
        !runner_set_ints(&v->runner, "greedy", "source", source, v->B * v->source) ||
        !runner_run(&v->runner, "greedy", &out))
        return false;
    const Output *logits = find_output(&out, OP_RETURN, "logits");
    if (!logits || logits->n != v->B * steps * g->vocab) return false;
    for (int64_t i = 0; i < v->B * steps; i++) judge(g, i / steps, i % steps + 1, logits->at + i * g->vocab);
    return true;
}

static void compare_greedy(Verify *v, const StTensor *t) {
    Greedy g = {.prompt = v->prompt,
                .length = t->dim[1],
                .margin = st_find(v->reference, "greedy_margin"),
                .vocab = verify_vocabulary(v->runner.program[0])};
    g.ids = verify_ids(&v->s, t, false, g.vocab - 1);
    if (!g.ids || !(v->encoder ? continue_source(v, &g) : continue_rows(v, &g, t->dim[0]))) return; // told
    table_add(&v->table, t->name, tensor_shape(v, t), (double)g.wrong, 0);
    if (g.margin)
        table_add(&v->table, g.margin->name, tensor_shape(v, g.margin), g.margin_error, 2 * logits_tolerance);
}

// The recorded continuation; NULL: none, or one that nothing can be compared with.
static const StTensor *find_greedy(Verify *v) {
    const StTensor *t = st_find(v->reference, "greedy_ids"), *margin = st_find(v->reference, "greedy_margin");
    if (!t) return NULL;
    int64_t rows = t->ndim == 2 ? t->dim[0] : 0, ids = t->ndim == 2 ? t->dim[1] : 0;
    v->prompt = v->encoder ? 1 : margin && margin->ndim == 2 ? ids - margin->dim[1] : usual_prompt;
    int64_t steps = ids - v->prompt;
    if (v->prompt > 0 && steps > 0 && (!v->encoder || rows == v->B) &&
        (!margin || margin->elements == rows * steps))
        return t;
    table_fail(&v->table, t->name, tensor_shape(v, t),
               arena_printf(v->s.arena,
                            "%lld ids and their continuation, with a margin for each step, are expected",
                            (long long)v->prompt));
    return NULL;
}

// ---- the whole -----------------------------------------------------------------------------------------

static bool has_part(const char *name, const char *part) {
    const char *at = strstr(name, part);
    return at && (at == name || at[-1] == '.');
}

static void compare_tensor(Verify *v, const StTensor *t) {
    const char *name = t->name;
    size_t n = strlen(name);
    if (!strcmp(name, "input_ids") || !strcmp(name, "labels") || !strcmp(name, "greedy_margin") ||
        !strcmp(name, "greedy_ids"))
        return;
    if (!strncmp(name, "grad.", 5))
        compare_gradient(v, t);
    else if (!strcmp(name, "logits") || !strcmp(name, "logits_f64"))
        compare(v, t, "logits", logits_tolerance, 0);
    else if (!strcmp(name, "loss") || !strcmp(name, "loss_f64"))
        compare_loss(v, t);
    else if (n > 5 && !strcmp(name + n - 5, "_loss"))
        compare(v, t, name, loss_tolerance, 0);
    else if (has_part(name, "hidden."))
        compare(v, t, name, 0, hidden_share);
    else if (has_part(name, "router_logits."))
        compare(v, t, name, logits_tolerance, 0);
    else if (has_part(name, "topk_idx."))
        compare_choices(v, t);
    else if (has_part(name, "topk_weight."))
        compare_weights(v, t);
    else
        table_fail(&v->table, name, tensor_shape(v, t), "nothing is known of this tensor");
}

static bool has_source(const Program *p) {
    const Fn *f = program_model(p);
    for (int i = 0; i < f->params.n; i++)
        if (f->params.at[i].type.kind == TY_TENSOR && !strcmp(f->params.at[i].name, "source")) return true;
    return false;
}

static bool open_model(Verify *v, const char *dir) {
    if (!ranks_open(v->cli, &v->ranks)) return false;
    const char *sets[] = {"train.dtype=f32", "train.micro_batch=1", "train.random_eval=false",
                          "parallel.dp=none", "parallel.ep=1", "parallel.tp=1", "parallel.pp=1",
                          v->ranks.n > 1 ? "train.average=token" : "train.average=leaf",
                          arena_printf(v->cli->arena, "train.batch=%d", v->ranks.n),
                          arena_printf(v->cli->arena, "train.lanes=%d", v->ranks.n)};
    if (!verify_open(&v->s, v->cli, dir, (int)(sizeof sets / sizeof *sets), sets) ||
        !ranks_mesh(&v->s, &v->ranks, &v->s.train.mesh))
        return false;
    v->parts = rt_group_size(v->s.train.mesh, RT_GROUP_DATA);
    v->runner.comm = v->ranks.comm;
    return true;
}

static bool verify(Verify *v, const char *dir) {
    if (!open_model(v, dir)) return false;
    v->table = (Table){.arena = v->s.arena, .many = "gradients"};
    v->encoder = has_source(v->s.program);
    if (!open_reference(v, dir) || !verify_weights(&v->s, dir, &v->files, &v->w, &v->value)) return false;
    const StTensor *greedy = find_greedy(v); // all ranks continue all sequences
    if (!build_programs(v, greedy) || !run(v)) return false;
    name_outputs(v);
    if (!prepare_gradients(v)) return false;
    for (int i = 0; i < st_count(v->reference); i++) compare_tensor(v, st_at(v->reference, i));
    for (int i = 0; i < v->out.n; i++)
        if (v->published[i] && !v->compared[i])
            table_note(&v->table, v->published[i], "not in the reference");
    note_missing_gradients(v);
    if (greedy) compare_greedy(v, greedy); // last: runs of the decoder replace the outputs
    return diag_n_errors(v->s.diag) == 0;
}

static const char *base_name(Arena *a, const char *dir) { return basename(arena_strdup(a, dir)); }

int cmd_verify(Cli *c) {
    const char *dir = c->args.at[0];
    if (cli_flag(c, "f64") && !verify_is_ref(c)) return cli_usage(c, "--f64 computes by --target ref only");
    if (verify_is_ref(c) && rt_comm_world_size() > 1)
        return cli_usage(c, "--target ref runs on one rank, but mpirun started %d", rt_comm_world_size());
    if (cli_flag(c, "train")) return cmd_verify_train(c, dir);
    Verify v = {.cli = c, .runner = {.ref = verify_is_ref(c), .f64 = cli_flag(c, "f64")}};
    int status = EXIT_WRONG;
    if (verify(&v, dir) && v.ranks.world.rank > 0)
        status = EXIT_DONE;
    else if (diag_n_errors(c->diag) == 0)
        status = table_print(&v.table, base_name(c->arena, dir), cli_flag(c, "all"), c->quiet);
    runner_close(&v.runner);
    session_close(&v.s);
    st_close(v.reference);
    st_close(v.files);
    status = cli_finish(c, status);
    ranks_close(&v.ranks);
    return status;
}
