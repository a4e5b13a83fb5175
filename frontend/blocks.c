// The blocks train, data, parallel and generate: one row per key.  A row's default is text of the language,
// read like the user's own.
#include "frontend/blocks.h"

#include <stddef.h>
#include <string.h>

#include "frontend/interp.h"

// ---- the keys -------------------------------------------------------------------------------------------

typedef enum {
    KEY_WORD,          // one of `words`
    KEY_INT, KEY_NUM,    // none is `none_is` where the row allows it
    KEY_BOOL,
    KEY_QUANTITY,      // units in `words`
    KEY_WORDS, KEY_IDS, KEY_NUMS,
    KEY_SUM, KEY_SCHEDULE, KEY_OPTIMIZER, KEY_LOSS_SCALE, KEY_SOURCE, KEY_TOKENIZER
} KeyKind;

typedef struct {
    const char *block, *key;
    KeyKind kind;
    size_t  offset;
    const char *words;       // separated by blanks
    bool    may_be_none;
    double  none_is;
    double  least;           // INT, NUM: smallest value
    const char *fallback;    // default
    const char *doc;
} KeyRow;

#define AT(field) offsetof(Settings, field)
static const KeyRow rows[] = {
    {"train", "dtype", KEY_WORD, AT(train.dtype), "f32 bf16 f16", .fallback = "f32",
     .doc = "storage and activations; masters, routers and reductions stay f32"},
    {"train", "batch", KEY_INT, AT(train.batch), .least = 1, .fallback = "16",
     .doc = "sequences of an optimizer step: lanes * micro_batch * passes of a step"},
    {"train", "micro_batch", KEY_INT, AT(train.micro_batch), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "sequences of a leaf; none: batch / lanes"},
    {"train", "lanes", KEY_INT, AT(train.lanes), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "leaves of a step that are summed as a tree, and that ranks share out; none: the largest power of two up to 8"},
    {"train", "sum", KEY_SUM, AT(train.sum_dense), .may_be_none = true, .fallback = "none",
     .doc = "accumulators of gradients, of dense parameters and of experts'; this version has 1 of each"},
    {"train", "sequence", KEY_INT, AT(train.sequence), .least = 1, .fallback = "256",
     .doc = "tokens of a sequence"},
    {"train", "length", KEY_QUANTITY, AT(train.length), "step token sample epoch", .fallback = "1000 steps",
     .doc = "of the run and its schedule"},
    {"train", "stop", KEY_QUANTITY, AT(train.stop), "step token sample epoch", true, .fallback = "none",
     .doc = "ends earlier, saved, with the schedule of length; --resume may change it"},
    {"train", "lr", KEY_NUM, AT(train.lr), .fallback = "3e-4",
     .doc = "learning rate at its highest"},
    {"train", "lr_expert", KEY_NUM, AT(train.lr_expert), .fallback = "1.0",
     .doc = "factor of it for the parameters of experts"},
    {"train", "schedule", KEY_SCHEDULE, AT(train.schedule), .fallback = "cosine(warmup: 100 steps, floor: 0.1)",
     .doc = "of the learning rate: steps of warmup, then down to floor * lr at the end"},
    {"train", "optimizer", KEY_OPTIMIZER, AT(train.optimizer), .fallback = "adamw",
     .doc = "and its numbers; decay_all: norms and biases decay, too"},
    {"train", "clip", KEY_NUM, AT(train.clip), .may_be_none = true, .fallback = "1.0",
     .doc = "largest norm of all gradients together"},
    {"train", "average", KEY_WORD, AT(train.average), "leaf token", .fallback = "\"leaf\"",
     .doc = "of losses: each leaf counts alike, or each token"},
    {"train", "loss_scale", KEY_LOSS_SCALE, AT(train.loss_scale), .fallback = "dynamic(start: 2 ** 16, window: 1000, hysteresis: 2, least: 1)",
     .doc = "of f16 gradients, against underflow"},
    {"train", "fast_gate", KEY_BOOL, AT(train.fast_gate), .fallback = "false",
     .doc = "not in this version"},
    {"train", "recompute", KEY_WORD, AT(train.recompute), "none cheap layer offload", .fallback = "\"cheap\"",
     .doc = "what backward computes again to save memory; no choice changes a bit"},
    {"train", "seed", KEY_INT, AT(train.seed), .fallback = "0",
     .doc = "of first weights, noise, and the order of samples"},
    {"train", "random_eval", KEY_BOOL, AT(train.random_eval), .fallback = "false",
     .doc = "routers draw noise in evaluation, too"},
    {"train", "exact", KEY_BOOL, AT(train.exact), .fallback = "true",
     .doc = "gradients as a tree over leaves: the same bits on any number of ranks; false: one chain"},
    {"train", "eval_every", KEY_QUANTITY, AT(train.eval_every), "step second minute hour", true, .fallback = "500 steps",
     .doc = "evaluation on held-out text"},
    {"train", "save_every", KEY_QUANTITY, AT(train.save_every), "step second minute hour", true, .fallback = "1000 steps",
     .doc = "checkpoint; the last step is always saved"},
    {"train", "keep", KEY_INT, AT(train.keep), .least = 1, .fallback = "3",
     .doc = "checkpoints that stay"},
    {"data", "source", KEY_SOURCE, AT(data.source), .may_be_none = true, .fallback = "none",
     .doc = "what is trained on; paths are beside the model file, on the command line in the current folder"},
    {"data", "tokenizer", KEY_TOKENIZER, AT(data.tokenizer), .fallback = "bytes",
     .doc = "how text becomes ids; gpt2 and hf read the tokenizer's files in a folder"},
    {"data", "held_out", KEY_NUM, AT(data.held_out), .fallback = "0.01",
     .doc = "share of the text that is kept for evaluation"},
    {"data", "shuffle", KEY_BOOL, AT(data.shuffle), .fallback = "true",
     .doc = "samples in random order, another one each epoch"},
    {"data", "end", KEY_INT, AT(data.end), .may_be_none = true, .none_is = -1, .fallback = "none",
     .doc = "id between texts"},
    {"data", "pad", KEY_INT, AT(data.pad), .may_be_none = true, .none_is = -1, .fallback = "none",
     .doc = "not in this version: texts are cut into full sequences"},
    {"data", "documents", KEY_BOOL, AT(data.documents), .fallback = "false",
     .doc = "not in this version"},
    {"data", "mean", KEY_NUMS, AT(data.n_mean), .fallback = "0",
     .doc = "of images, that is subtracted"},
    {"data", "std", KEY_NUMS, AT(data.n_std), .fallback = "1",
     .doc = "of images, that is divided by"},
    {"parallel", "ep", KEY_INT, AT(parallel.ep), .least = 1, .fallback = "1",
     .doc = "ranks that share the experts of each MoE layer"},
    {"parallel", "dp", KEY_INT, AT(parallel.dp), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "groups of ep ranks, each with other sequences; none: as many as there are ranks for"},
    {"parallel", "tp", KEY_INT, AT(parallel.tp), .least = 1, .fallback = "1",
     .doc = "ranks that share each matrix"},
    {"parallel", "pp", KEY_INT, AT(parallel.pp), .least = 1, .fallback = "1",
     .doc = "stages of layers; for moec plan"},
    {"parallel", "zero", KEY_INT, AT(parallel.zero), .fallback = "0",
     .doc = "1: ranks share optimizer states; 2: and gradients"},
    {"parallel", "etp", KEY_INT, AT(parallel.etp), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "1: experts' matrices are whole; tp: cut, each rank of a tp group sends its own rows; none: cut, all send all"},
    {"parallel", "order", KEY_WORDS, AT(parallel.order), "ep dp tp", .fallback = "[ep, dp, tp]",
     .doc = "which ranks are neighbours, the nearest last"},
    {"parallel", "progress", KEY_WORD, AT(parallel.progress), "calls thread", .fallback = "\"calls\"",
     .doc = "how messages go on meanwhile: between tasks"},
    {"parallel", "chunks", KEY_INT, AT(parallel.chunks), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "pieces of an all-to-all, computed while others travel; none: by predicted time"},
    {"parallel", "a2a", KEY_WORD, AT(parallel.a2a), "auto flat node", .fallback = "\"auto\"",
     .doc = "rows from rank to rank, or once to each node; auto: by predicted time"},
    {"parallel", "own_rows", KEY_WORD, AT(parallel.own_rows), "auto apart with", .fallback = "\"auto\"",
     .doc = "rows that stay on their rank: computed apart while others travel, or with them; auto: by predicted time"},
    {"parallel", "bound", KEY_NUM, AT(parallel.bound), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "for moec plan: rows that a rank has room for, over the mean"},
    {"parallel", "replicas", KEY_INT, AT(parallel.replicas), .fallback = "0",
     .doc = "slots of a MoE layer beyond its experts: the busiest have 2 or 4"},
    {"parallel", "placement", KEY_WORD, AT(parallel.placement), "linear round_robin random", .fallback = "\"linear\"",
     .doc = "where experts begin"},
    {"parallel", "rebalance", KEY_QUANTITY, AT(parallel.rebalance), "step", true, .fallback = "none",
     .doc = "experts move to even out loads, each so many steps or calls, where that pays; none: in training, inside a node"},
    {"parallel", "rebalance_window", KEY_QUANTITY, AT(parallel.rebalance_window), "step", true, .fallback = "none",
     .doc = "steps whose rows count; none: as many as lie between"},
    {"parallel", "rebalance_groups", KEY_INT, AT(parallel.rebalance_groups), .least = 1, .fallback = "1",
     .doc = "groups of experts that stay on one node each"},
    {"parallel", "rebalance_gain", KEY_NUM, AT(parallel.rebalance_gain), .fallback = "1",
     .doc = "a move must save so many times what it takes; 0: whenever loads say so"},
    {"generate", "max_tokens", KEY_INT, AT(generate.max_tokens), .least = 1, .fallback = "256",
     .doc = "of a continuation"},
    {"generate", "temperature", KEY_NUM, AT(generate.temperature), .fallback = "1",
     .doc = "0: the likeliest token"},
    {"generate", "top_k", KEY_INT, AT(generate.top_k), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "only so many of the likeliest"},
    {"generate", "top_p", KEY_NUM, AT(generate.top_p), .fallback = "1",
     .doc = "of these, the likeliest that together have this probability"},
    {"generate", "min_p", KEY_NUM, AT(generate.min_p), .fallback = "0",
     .doc = "and this share of the largest probability at least"},
    {"generate", "repetition", KEY_NUM, AT(generate.repetition), .fallback = "1",
     .doc = "above 1: tokens that were seen become less likely"},
    {"generate", "eos", KEY_IDS, AT(generate.eos), .fallback = "[]",
     .doc = "ids that end a text; []: what the tokenizer says"},
    {"generate", "stop", KEY_WORDS, AT(generate.stop), .fallback = "[]",
     .doc = "texts that end one"},
    {"generate", "start", KEY_INT, AT(generate.start), .may_be_none = true, .none_is = -1, .fallback = "none",
     .doc = "id in front of the prompt"},
    {"generate", "seed", KEY_INT, AT(generate.seed), .fallback = "0",
     .doc = "of the draws"},
    {"generate", "dropless", KEY_BOOL, AT(generate.dropless), .fallback = "true",
     .doc = "capacities do not count: an answer depends on no other"},
    {"generate", "context", KEY_INT, AT(generate.context), .least = 1, .fallback = "4096",
     .doc = "tokens of the longest sequence: room in the caches"},
    {"generate", "batch", KEY_INT, AT(generate.batch), .may_be_none = true, .least = 1, .fallback = "none",
     .doc = "sequences at a time; none: as many as there are prompts, at most 16"},
    {"generate", "batch_tokens", KEY_INT, AT(generate.batch_tokens), .least = 1, .fallback = "512",
     .doc = "rows of a call at most: longer prompts go in pieces"},
    {"generate", "dtype", KEY_WORD, AT(generate.dtype), "trained f32 bf16", .fallback = "\"trained\"",
     .doc = "of weights and caches; trained: as train.dtype"},
    {"generate", "mla", KEY_WORD, AT(generate.mla), "plain absorbed", .fallback = "\"plain\"",
     .doc = "latent attention: keys and values made from the cache; absorbed is not in this version"},
};
#undef AT
enum { N_ROWS = sizeof rows / sizeof *rows };

static const char *const block_names[] = {"train", "data", "parallel", "generate"};

// ---- words ----------------------------------------------------------------------------------------------

static int split_words(const char *text, const char **out, int most) {
    int n = 0;
    while (text && *text && n < most) {
        size_t k = strcspn(text, " ");
        out[n++] = intern_n(text, k);
        text += k + strspn(text + k, " ");
    }
    return n;
}

static const char *list_words(Arena *a, const char *const *words, int n, const char *last) {
    Str s = {.arena = a};
    for (int i = 0; i < n; i++) str_printf(&s, "%s%s", i == 0 ? "" : i == n - 1 ? last : ", ", words[i]);
    return s.text;
}

// "one two three" -> "one, two or three"; ones if there is more than one of each.
static const char *either(Arena *a, const char *words, const char *plural) {
    const char *word[8];
    int n = split_words(words, word, 8);
    for (int i = 0; i < n; i++) word[i] = arena_printf(a, "%s%s", word[i], plural);
    return list_words(a, word, n, " or ");
}

// ---- for people -----------------------------------------------------------------------------------------

static const char *values_of(Arena *a, const KeyRow *row) {
    const char *or_none = row->may_be_none ? ", or none" : "";
    switch (row->kind) {
    case KEY_WORD: return either(a, row->words, "");
    case KEY_INT: return arena_printf(a, "a whole number%s%s", row->least ? arena_printf(a, ", %g or more", row->least) : "", or_none);
    case KEY_NUM: return arena_printf(a, "a number%s", or_none);
    case KEY_BOOL: return "true or false";
    case KEY_QUANTITY: return arena_printf(a, "so many %s%s", either(a, row->words, "s"), or_none);
    case KEY_WORDS: return row->words ? arena_printf(a, "a list of %s", either(a, row->words, "")) : "a list of texts";
    case KEY_IDS: return "a list of ids";
    case KEY_NUMS: return "a number, or a list of one for each channel";
    case KEY_SUM: return "sum(dense:, experts:), or none";
    case KEY_SCHEDULE:
        return "cosine or linear(warmup:, length:, floor:), constant, inverse_sqrt(warmup:),\n    wsd(warmup:, decay:, floor:, shape:) or warmup_log(N)";
    case KEY_OPTIMIZER: return "adamw or adam(beta1:, beta2:, eps:, decay:, decay_all:), sgd(momentum:)";
    case KEY_LOSS_SCALE: return "a number, or dynamic(start:, window:, hysteresis:, least:)";
    case KEY_SOURCE: return "text(\"FILE\", ..)";
    case KEY_TOKENIZER: return "bytes, gpt2(\"DIR\") or hf(\"DIR\")";
    }
    return "";
}

int blocks_keys(Arena *a, const BlockKey **out) {
    BlockKey *all = arena_array(a, BlockKey, N_ROWS);
    for (int i = 0; i < N_ROWS; i++)
        all[i] = (BlockKey){arena_printf(a, "%s.%s", rows[i].block, rows[i].key), rows[i].fallback, values_of(a, &rows[i]), rows[i].doc};
    *out = all;
    return N_ROWS;
}

// ---- one reading ----------------------------------------------------------------------------------------

typedef struct {
    Lower *lw;
    Arena *arena;            // of the program: what Settings points to
    Call  *hyper;
    Settings *out;
    const KeyRow *row;
    const char *name;        // "train.lr"
    bool  command_line;
    const Val *given;        // a value instead of an expression
} Reader;

static bool wrong(Reader *r, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static bool wrong(Reader *r, Span at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    Str s = {.arena = r->arena};
    str_vprintf(&s, fmt, ap);
    va_end(ap);
    diag_error(r->lw->diag, at, "%s", s.text);
    return false;
}

static void *field(Reader *r) { return (char *)r->out + r->row->offset; }

static bool read_value(Reader *r, const Expr *e, Val *out) {
    *out = e ? eval(r->lw, r->hyper, e) : *r->given;
    return !has_error(out);
}

// A word written with or without quotes.
static const char *bare_word(const Expr *e, const Val *given) {
    if (e && (e->kind == X_NAME || e->kind == X_STR)) return e->name;
    return !e && given && given->kind == V_STR ? given->str : NULL;
}

static bool read_word(Reader *r, const Expr *e, Span at, const char **out) {
    const char *words[8];
    int n = split_words(r->row->words, words, 8);
    const char *word = bare_word(e, r->given);
    if (e && e->kind == X_NONE) word = "none";
    for (int round = 0; round < 2; round++) {
        for (int i = 0; word && i < n; i++)
            if (strcmp(words[i], word) == 0) {
                *out = words[i];
                return true;
            }
        if (round == 1 || (e && e->kind == X_STR) || !e || e->kind == X_NONE) break;
        if (e->kind == X_NAME && !find_var(r->hyper, e->name)) break;
        Val v;
        if (!read_value(r, e, &v)) return false;
        word = v.kind == V_STR ? v.str : NULL;
    }
    const char *near = word ? did_you_mean(word, words, n) : NULL;
    const char *list = list_words(r->arena, words, n, " or ");
    if (near) return wrong(r, at, "%s is %s, not %s; did you mean %s?", r->name, list, word, near);
    if (word) return wrong(r, at, "%s is %s, not %s", r->name, list, word);
    return wrong(r, at, "%s is %s", r->name, list);
}

static bool number_of(Reader *r, const Val *v, Span at, const char *what, bool whole, double *out) {
    if (v->kind == V_NUM && (!whole || num_is_int(v->num, NULL))) {
        *out = num_value(v->num);
        return true;
    }
    return wrong(r, at, "%s is a %snumber, not %s", what, whole ? "whole " : "", val_text(r->lw, v));
}

static bool quantity_of(Reader *r, const Val *v, Span at, const char *what, const char *units,
                        Quantity *out) {
    const char *words[8];
    int n = split_words(units, words, 8);
    for (int i = 0; i < n && v->kind == V_QUANTITY; i++)
        if (words[i] == v->quantity.unit) {
            *out = (Quantity){num_value(v->quantity.num), words[i]};
            return true;
        }
    const char *list = either(r->arena, units, "s");
    if (v->kind == V_NUM) return wrong(r, at, "%s needs a unit: %s", what, list);
    return wrong(r, at, "%s is a number of %s, not %s", what, list, val_text(r->lw, v));
}

// ---- forms: cosine(warmup: 100 steps), text("a.txt", "b.txt") ---------------------------------------------

typedef struct {
    Reader *r;
    const char *head;
    Span at;
    const Args *args;
    bool *used;
    int  next;               // first positional argument not read
    bool ok;
} Form;

static const char *of_form(const Form *f, const char *name) {
    return arena_printf(f->r->arena, "%s: '%s' of %s", f->r->name, name, f->head);
}

// The word before the bracket must be one of `heads`.
static bool form_begin(Reader *r, const Expr *e, const char *heads, Form *f) {
    static const Args no_args;
    const char *words[8];
    int n = split_words(heads, words, 8);
    const Expr *head = e && e->kind == X_CALL ? e->a : e;
    const char *word = bare_word(head, r->given);
    Span at = head ? head->at : r->given->at;
    *f = (Form){
        .r = r, .at = e ? e->at : at, .args = e && e->kind == X_CALL ? &e->args : &no_args, .ok = true};
    f->used = arena_array(r->arena, bool, f->args->n + 1);
    for (int i = 0; i < n && word; i++)
        if (strcmp(words[i], word) == 0) {
            f->head = words[i];
            return true;
        }
    const char *near = word ? did_you_mean(word, words, n) : NULL;
    const char *list = list_words(r->arena, words, n, " or ");
    if (near) return wrong(r, at, "%s is %s, not %s; did you mean %s?", r->name, list, word, near);
    return wrong(r, at, "%s is %s", r->name, list);
}

static const Expr *form_arg(Form *f, const char *name) {
    for (int i = 0; i < f->args->n; i++)
        if (f->args->at[i].name && strcmp(f->args->at[i].name, name) == 0) {
            f->used[i] = true;
            return f->args->at[i].value;
        }
    return NULL;
}

static const Expr *form_positional(Form *f) {
    while (f->next < f->args->n && f->args->at[f->next].name) f->next++;
    if (f->next == f->args->n) return NULL;
    f->used[f->next] = true;
    return f->args->at[f->next++].value;
}

static void form_number(Form *f, const char *name, bool whole, double *out) {
    const Expr *e = form_arg(f, name);
    Val v;
    if (!e) return;
    if (!read_value(f->r, e, &v) || !number_of(f->r, &v, e->at, of_form(f, name), whole, out)) f->ok = false;
}

static void form_int(Form *f, const char *name, int64_t *out) {
    double n = (double)*out;
    form_number(f, name, true, &n);
    *out = (int64_t)n;
}

static void form_bool(Form *f, const char *name, bool *out) {
    const Expr *e = form_arg(f, name);
    Val v;
    if (!e) return;
    if (!read_value(f->r, e, &v)) f->ok = false;
    else if (v.kind == V_BOOL) *out = v.b;
    else f->ok = wrong(f->r, e->at, "%s is true or false, not %s", of_form(f, name), val_text(f->r->lw, &v));
}

static void form_quantity(Form *f, const char *name, Quantity *out) {
    const Expr *e = form_arg(f, name);
    Val v;
    if (!e) return;
    if (!read_value(f->r, e, &v)) f->ok = false;
    else if (v.kind != V_NONE &&
             !quantity_of(f->r, &v, e->at, of_form(f, name), "step token sample epoch", out))
        f->ok = false;
}

static const char *form_string(Form *f, const Expr *e, const char *name) {
    Val v;
    if (!read_value(f->r, e, &v)) f->ok = false;
    else if (v.kind == V_STR) return v.str;
    else f->ok = wrong(f->r, e->at, "%s is a string, not %s", of_form(f, name), val_text(f->r->lw, &v));
    return NULL;
}

// Names that were read above are known; anything else is an error.
static bool form_end(Form *f, const char *names) {
    const char *words[8];
    int n = split_words(names, words, 8);
    for (int i = 0; i < f->args->n; i++) {
        const Arg *a = &f->args->at[i];
        if (f->used[i]) continue;
        f->ok = false;
        if (!a->name) {
            wrong(f->r, a->at, "%s: %s takes no further argument", f->r->name, f->head);
            continue;
        }
        const char *near = did_you_mean(a->name, words, n);
        if (near)
            wrong(f->r, a->name_at, "%s: %s has no '%s'; did you mean '%s'?", f->r->name, f->head, a->name,
                  near);
        else if (n)
            wrong(f->r, a->name_at, "%s: %s has no '%s'; it has %s", f->r->name, f->head, a->name,
                  list_words(f->r->arena, words, n, " and "));
        else wrong(f->r, a->name_at, "%s: %s has no '%s'", f->r->name, f->head, a->name);
    }
    return f->ok;
}

static bool read_schedule(Reader *r, const Expr *e) {
    Form f;
    if (!form_begin(r, e, "cosine linear constant inverse_sqrt wsd warmup_log", &f)) return false;
    const char *step = intern("step");
    Settings *s = r->out;
    memset(&s->train.schedule, 0, sizeof s->train.schedule);
    s->train.schedule.kind = f.head;
    s->train.schedule.shape = intern("linear");
    bool wsd = strcmp(f.head, "wsd") == 0,
         decays = strcmp(f.head, "cosine") == 0 || strcmp(f.head, "linear") == 0;
    if (strcmp(f.head, "warmup_log") == 0) {
        const Expr *x = form_positional(&f);
        Val v;
        if (!x)
            return wrong(r, f.at, "%s: warmup_log takes the number of steps: warmup_log(1000 steps)",
                         r->name);
        if (!read_value(r, x, &v)) return false;
        if (v.kind == V_NUM) s->train.schedule.warmup = (Quantity){num_value(v.num), step};
        else if (!quantity_of(r, &v, x->at, of_form(&f, "n"), "step token sample epoch",
                              &s->train.schedule.warmup))
            return false;
        return form_end(&f, "");
    }
    if (strcmp(f.head, "constant") == 0) return form_end(&f, "");
    s->train.schedule.warmup = (Quantity){0, step};
    form_quantity(&f, "warmup", &s->train.schedule.warmup);
    if (decays) form_quantity(&f, "length", &s->train.schedule.length);
    if (decays || wsd) form_number(&f, "floor", false, &s->train.schedule.floor);
    if (wsd) {
        form_quantity(&f, "decay", &s->train.schedule.decay);
        const Expr *x = form_arg(&f, "shape");
        const char *shape = x ? bare_word(x, NULL) : NULL;
        static const char *const shapes[] = {"linear", "cosine", "sqrt"};
        for (int i = 0; x && i < 3; i++)
            if (shape && strcmp(shapes[i], shape) == 0) s->train.schedule.shape = shape;
        if (x && s->train.schedule.shape != shape)
            f.ok = wrong(r, x->at, "%s: 'shape' of wsd is linear, cosine or sqrt", r->name);
    }
    return form_end(&f, wsd ? "warmup decay floor shape" : decays ? "warmup length floor" : "warmup");
}

static bool read_optimizer(Reader *r, const Expr *e) {
    Form f;
    if (!form_begin(r, e, "adamw adam sgd adafactor", &f)) return false;
    bool adamw = strcmp(f.head, "adamw") == 0, adam = strcmp(f.head, "adam") == 0,
         sgd = strcmp(f.head, "sgd") == 0;
    Settings *s = r->out;
    memset(&s->train.optimizer, 0, sizeof s->train.optimizer);
    s->train.optimizer.kind = f.head;
    if (adamw || adam) {
        s->train.optimizer.beta1 = 0.9;
        s->train.optimizer.beta2 = adamw ? 0.95 : 0.999;
        s->train.optimizer.eps = 1e-8;
        s->train.optimizer.decay = adamw ? 0.1 : 0;
        form_number(&f, "beta1", false, &s->train.optimizer.beta1);
        form_number(&f, "beta2", false, &s->train.optimizer.beta2);
        form_number(&f, "eps", false, &s->train.optimizer.eps);
    }
    if (sgd) form_number(&f, "momentum", false, &s->train.optimizer.momentum);
    if (adamw || adam || sgd) {
        form_number(&f, "decay", false, &s->train.optimizer.decay);
        form_bool(&f, "decay_all", &s->train.optimizer.decay_all);
    }
    return form_end(&f, sgd             ? "momentum decay decay_all"
                        : adamw || adam ? "beta1 beta2 eps decay decay_all"
                                        : "");
}

static bool read_loss_scale(Reader *r, const Expr *e) {
    Settings *s = r->out;
    if (e && e->kind != X_CALL && e->kind != X_NAME) {
        Val v;
        s->train.loss_scale.dynamic = false;
        return read_value(r, e, &v) && number_of(r, &v, e->at, r->name, false, &s->train.loss_scale.start);
    }
    Form f;
    if (!form_begin(r, e, "dynamic", &f)) return false;
    s->train.loss_scale.dynamic = true;
    s->train.loss_scale.start = 65536;
    s->train.loss_scale.window = 1000;
    s->train.loss_scale.hysteresis = 2;
    s->train.loss_scale.least = 1;
    form_number(&f, "start", false, &s->train.loss_scale.start);
    form_int(&f, "window", &s->train.loss_scale.window);
    form_int(&f, "hysteresis", &s->train.loss_scale.hysteresis);
    form_number(&f, "least", false, &s->train.loss_scale.least);
    return form_end(&f, "start window hysteresis least");
}

static bool read_sum(Reader *r, const Expr *e) {
    Form f;
    r->out->train.sum_dense = r->out->train.sum_experts = 0;
    if (!e || e->kind == X_NONE) return true;
    if (!form_begin(r, e, "sum", &f)) return false;
    form_int(&f, "dense", &r->out->train.sum_dense);
    form_int(&f, "experts", &r->out->train.sum_experts);
    return form_end(&f, "dense experts");
}

static bool read_source(Reader *r, const Expr *e, Source *out);

static bool read_blend(Reader *r, Form *f, Source *out) {
    const Expr *list = form_positional(f);
    if (!list || list->kind != X_LIST || list->items.n == 0)
        return wrong(
            r, f->at,
            "%s: blend takes a list of shares and sources: blend([[0.7, text(\"a\")], [0.3, text(\"b\")]])",
            r->name);
    int n = list->items.n;
    Source *part = arena_array(r->arena, Source, n);
    double *share = arena_array(r->arena, double, n);
    for (int i = 0; i < n; i++) {
        const Expr *pair = list->items.at[i];
        Val v;
        if (pair->kind != X_LIST || pair->items.n != 2)
            return wrong(r, pair->at, "%s: a part of blend is a share and a source: [0.7, text(\"a\")]",
                         r->name);
        if (!read_value(r, pair->items.at[0], &v) ||
            !number_of(r, &v, pair->items.at[0]->at, "a share of blend", false, &share[i]) ||
            !read_source(r, pair->items.at[1], &part[i]))
            return false;
    }
    out->n_parts = n;
    out->part = part;
    out->share = share;
    return form_end(f, "");
}

static bool read_source(Reader *r, const Expr *e, Source *out) {
    Form f;
    memset(out, 0, sizeof *out);
    if (e && e->kind == X_NONE) return true;
    if (!form_begin(r, e, "text jsonl indexed cifar10 blend", &f)) return false;
    out->kind = f.head;
    out->from_command_line = r->command_line;
    if (strcmp(f.head, "blend") == 0) return read_blend(r, &f, out);
    VEC(const char *) paths = {0};
    for (const Expr *x; (x = form_positional(&f));) {
        const char *path = form_string(&f, x, "path");
        if (path) vec_push(r->arena, &paths, path);
        if (strcmp(f.head, "text") != 0) break;
    }
    if (paths.n == 0 && f.ok)
        return wrong(r, f.at, "%s: %s takes a path: %s(\"...\")", r->name, f.head, f.head);
    out->n_paths = paths.n;
    out->path = paths.at;
    bool jsonl = strcmp(f.head, "jsonl") == 0;
    if (jsonl) {
        out->field = intern("text");
        const Expr *x = form_arg(&f, "field");
        if (x) out->field = form_string(&f, x, "field");
    }
    return form_end(&f, jsonl ? "field" : "");
}

static bool read_tokenizer(Reader *r, const Expr *e) {
    Form f;
    if (!form_begin(r, e, "bytes gpt2 hf", &f)) return false;
    r->out->data.tokenizer = f.head;
    r->out->data.tokenizer_path = NULL;
    r->out->data.tokenizer_from_command_line = r->command_line;
    if (strcmp(f.head, "bytes") != 0) {
        const Expr *x = form_positional(&f);
        if (!x)
            return wrong(r, f.at, "%s: %s takes the folder of the tokenizer: %s(\"...\")", r->name, f.head,
                         f.head);
        r->out->data.tokenizer_path = form_string(&f, x, "folder");
    }
    return form_end(&f, "");
}

// ---- lists ----------------------------------------------------------------------------------------------

static bool read_words(Reader *r, const Expr *e, Span at) {
    const char *words[8];
    int n_words = split_words(r->row->words, words, 8);
    int n = e && e->kind == X_LIST ? e->items.n : 0;
    Val v = {0};
    bool bare = e && e->kind == X_LIST && n_words;           // [ep, dp, tp]
    if (!bare) {
        if (!read_value(r, e, &v)) return false;
        if (v.kind != V_LIST)
            return wrong(r, at, "%s is a list of strings, not %s", r->name, val_text(r->lw, &v));
        n = v.list->n;
    }
    const char **out = arena_array(r->arena, const char *, n + 1);
    for (int i = 0; i < n; i++) {
        Span item_at = bare ? e->items.at[i]->at : v.list->at[i].at;
        out[i] = bare                          ? bare_word(e->items.at[i], NULL)
                 : v.list->at[i].kind == V_STR ? v.list->at[i].str
                                               : NULL;
        bool known = n_words == 0 && out[i];
        for (int k = 0; k < n_words; k++) known |= out[i] && strcmp(words[k], out[i]) == 0;
        if (!known && n_words)
            return wrong(r, item_at, "%s holds %s", r->name, list_words(r->arena, words, n_words, " and "));
        if (!known)
            return wrong(r, item_at, "%s is a list of strings, not %s", r->name,
                         val_text(r->lw, &v.list->at[i]));
    }
    *(Words *)field(r) = (Words){n, out};
    return true;
}

static bool read_numbers(Reader *r, const Expr *e, Span at, bool whole, int *n, double **out) {
    Val v;
    if (!read_value(r, e, &v)) return false;
    bool list = v.kind == V_LIST;
    *n = v.kind == V_NONE ? 0 : list ? v.list->n : 1;        // one id may stand without brackets
    *out = arena_array(r->arena, double, *n + 1);
    for (int i = 0; i < *n; i++) {
        const Val *x = list ? &v.list->at[i] : &v;
        if (!number_of(r, x, list ? x->at : at, r->name, whole, &(*out)[i])) return false;
    }
    return true;
}

static bool read_ids(Reader *r, const Expr *e, Span at) {
    int n;
    double *numbers;
    if (!read_numbers(r, e, at, true, &n, &numbers)) return false;
    int64_t *ids = arena_array(r->arena, int64_t, n + 1);
    for (int i = 0; i < n; i++) ids[i] = (int64_t)numbers[i];
    *(Ids *)field(r) = (Ids){n, ids};
    return true;
}

static bool read_nums(Reader *r, const Expr *e, Span at) {
    int n;
    double *numbers;
    if (!read_numbers(r, e, at, false, &n, &numbers)) return false;
    if (r->row->offset == offsetof(Settings, data.n_mean)) {
        r->out->data.n_mean = n;
        r->out->data.mean = numbers;
    } else {
        r->out->data.n_std = n;
        r->out->data.std = numbers;
    }
    return true;
}

// ---- one key --------------------------------------------------------------------------------------------

static bool read_number(Reader *r, const Expr *e, Span at) {
    const KeyRow *row = r->row;
    Val v;
    double n = row->none_is;
    if (!read_value(r, e, &v)) return false;
    bool none = v.kind == V_NONE && row->may_be_none;
    if (!none) {
        if (!number_of(r, &v, at, r->name, row->kind == KEY_INT, &n)) return false;
        if (n < row->least) return wrong(r, at, "%s is at least %g, not %g", r->name, row->least, n);
    }
    if (row->kind == KEY_INT) *(int64_t *)field(r) = (int64_t)n;
    else *(double *)field(r) = n;
    return true;
}

static bool read_key(Reader *r, const Expr *e, Span at) {
    Val v;
    switch (r->row->kind) {
    case KEY_WORD: return read_word(r, e, at, field(r));
    case KEY_INT: case KEY_NUM: return read_number(r, e, at);
    case KEY_BOOL:
        if (!read_value(r, e, &v)) return false;
        if (v.kind != V_BOOL)
            return wrong(r, at, "%s is true or false, not %s", r->name, val_text(r->lw, &v));
        *(bool *)field(r) = v.b;
        return true;
    case KEY_QUANTITY:
        if (!read_value(r, e, &v)) return false;
        if (v.kind == V_NONE && r->row->may_be_none) {
            *(Quantity *)field(r) = (Quantity){0};
            return true;
        }
        return quantity_of(r, &v, at, r->name, r->row->words, field(r));
    case KEY_WORDS: return read_words(r, e, at);
    case KEY_IDS: return read_ids(r, e, at);
    case KEY_NUMS: return read_nums(r, e, at);
    case KEY_SUM: return read_sum(r, e);
    case KEY_SCHEDULE: return read_schedule(r, e);
    case KEY_OPTIMIZER: return read_optimizer(r, e);
    case KEY_LOSS_SCALE: return read_loss_scale(r, e);
    case KEY_SOURCE: return read_source(r, e, field(r));
    case KEY_TOKENIZER: return read_tokenizer(r, e);
    }
    return false;
}

static const KeyRow *find_row(const char *block, const char *key) {
    for (int i = 0; i < N_ROWS; i++)
        if (strcmp(rows[i].block, block) == 0 && strcmp(rows[i].key, key) == 0) return &rows[i];
    return NULL;
}

bool blocks_check_key(Diag *d, const char *block, Span block_at, const char *key, Span key_at) {
    if (find_row(block, key)) return true;
    const char *keys[N_ROWS];
    int n = 0;
    for (int i = 0; i < N_ROWS; i++)
        if (strcmp(rows[i].block, block) == 0) keys[n++] = rows[i].key;
    if (n == 0) {
        const char *near = did_you_mean(block, block_names, 4);
        if (near) diag_error(d, block_at, "there is no block '%s'; did you mean '%s'?", block, near);
        else
            diag_error(d, block_at, "there is no block '%s'; there are train, data, parallel and generate",
                       block);
        return false;
    }
    const char *near = did_you_mean(key, keys, n);
    if (near) diag_error(d, key_at, "block '%s' has no key '%s'; did you mean '%s'?", block, key, near);
    else diag_error(d, key_at, "block '%s' has no key '%s'", block, key);
    return false;
}

static bool set_key(Reader *r, const char *block, const char *key, const Expr *e, const Val *given, Span at) {
    r->row = find_row(block, key);
    r->name = arena_printf(r->arena, "%s.%s", block, key);
    r->given = given;
    return read_key(r, e, at);
}

// ---- all of them ----------------------------------------------------------------------------------------

static bool is_setting(const char *block) {
    for (int i = 0; i < 4; i++)
        if (strcmp(block_names[i], block) == 0) return true;
    return false;
}

static bool read_entries(Reader *r, const char *block, const Entries *entries, Span *batch_at) {
    bool ok = true;
    for (int i = 0; i < entries->n; i++) {
        const Entry *e = entries->at[i];
        if (e->kind == E_IF) {
            bool chosen;
            if (!eval_bool(r->lw, r->hyper, e->right, &chosen)) ok = false;
            else ok &= read_entries(r, block, chosen ? &e->body : &e->orelse, batch_at);
            continue;
        }
        if (e->kind != E_SET || e->left->kind != X_NAME || e->options.n) {
            ok = wrong(r, e->at, "block '%s' holds lines key = value", block);
            continue;
        }
        if (!blocks_check_key(r->lw->diag, block, e->at, e->left->name, e->left->at)) {
            ok = false;
            continue;
        }
        if (strcmp(block, "train") == 0 &&
            (strstr(e->left->name, "batch") || strcmp(e->left->name, "lanes") == 0))
            *batch_at = e->right->at;
        ok &= set_key(r, block, e->left->name, e->right, NULL, e->right->at);
    }
    return ok;
}

static bool read_defaults(Reader *r) {
    Str text = {.arena = r->arena};
    for (int i = 0; i < N_ROWS; i++) {
        if (i == 0 || rows[i].block != rows[i - 1].block)
            str_printf(&text, "%s%s {\n", i ? "}\n" : "", rows[i].block);
        str_printf(&text, "  %s = %s\n", rows[i].key, rows[i].fallback);
    }
    str_add(&text, "}\n");
    Module *m = arena_new(r->arena, Module);
    uint32_t file = diag_add_file(r->lw->diag, "<defaults>", text.text, text.n);
    bool ok = ast_parse(r->arena, r->lw->diag, file, m);
    Span unused;
    for (int i = 0; ok && i < m->blocks.n; i++)
        ok = read_entries(r, m->blocks.at[i].name, &m->blocks.at[i].entries, &unused);
    return ok;
}

static int64_t largest_lanes(int64_t leaves) {
    int64_t lanes = 1;
    while (lanes < 8 && leaves % (lanes * 2) == 0) lanes *= 2;
    return lanes;
}

// batch = lanes * micro_batch * waves
static bool share_batch(Reader *r, Span at) {
    Settings *s = r->out;
    int64_t batch = s->train.batch, micro = s->train.micro_batch, lanes = s->train.lanes;
    if (micro && batch % micro != 0)
        return wrong(r, at, "train.batch = %lld is not a multiple of train.micro_batch = %lld",
                     (long long)batch, (long long)micro);
    if (!lanes) lanes = largest_lanes(micro ? batch / micro : batch);
    if (!micro && batch % lanes == 0) micro = batch / lanes;
    if (!micro || batch % (lanes * micro) != 0)
        return wrong(r, at, "train.batch = %lld is not a multiple of train.lanes = %lld%s", (long long)batch,
                     (long long)lanes,
                     micro ? arena_printf(r->arena, " times train.micro_batch = %lld", (long long)micro)
                           : "");
    s->train.lanes = lanes;
    s->train.micro_batch = micro;
    s->train.waves = batch / (lanes * micro);
    return true;
}

bool blocks_evaluate(Lower *lw, Call *hyper, Program *p, Settings *out) {
    Reader r = {.lw = lw, .arena = p->arena, .hyper = hyper, .out = out};
    memset(out, 0, sizeof *out);
    bool ok = read_defaults(&r);
    Span batch_at = p->model ? p->model->name_at : (Span){0};
    for (int i = 0; i < p->main->blocks.n; i++) {
        const Block *b = &p->main->blocks.at[i];
        if (is_setting(b->name)) ok &= read_entries(&r, b->name, &b->entries, &batch_at);
    }
    for (int round = 0; round < 2; round++)              // what config hf says, then the command line
        for (int i = 0; i < p->keys.n; i++) {
            const KeySet *k = &p->keys.at[i];
            if (k->command_line != (round == 1)) continue;
            if (!blocks_check_key(lw->diag, k->block, k->at, k->key, k->key_at)) {
                ok = false;
                continue;
            }
            r.command_line = k->command_line;
            if (strcmp(k->block, "train") == 0 && (strstr(k->key, "batch") || strcmp(k->key, "lanes") == 0))
                batch_at = k->at;
            ok &= set_key(&r, k->block, k->key, k->e, &k->v, k->at);
        }
    return ok && share_batch(&r, batch_at);
}
