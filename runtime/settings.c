// Settings: one table of keys, filled from JSON; and a reader of `key=value` that makes JSON of a value's
// text.
#include "runtime/settings.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/files.h"

// ---- the table ------------------------------------------------------------------------------------------

typedef enum {
    BUILT_IN,        // the plan has it: not read here, can't be changed
    INT, UINT, REAL, BOOLEAN, INT_OR_NONE, REAL_OR_NONE,
    QUANTITY,
    CALL,            // source, tokenizer
    SCHEDULE, OPTIMIZER, AVERAGE, PLACEMENT, INT_LIST, TEXT_LIST
} KeyType;

typedef struct {
    const char *block, *key;
    KeyType type;
    size_t  offset;
    double  least, most;            // of numbers and quantities
    bool    fixed;                  // read, but part of the plan
} Key;

#define AT(field) offsetof(RtSettings, field)
#define ANY -INFINITY, INFINITY

static const Key keys[] = {
    {"train", "batch", INT, AT(batch), 1, 1e9, true},
    {"train", "sequence", INT, AT(sequence), 1, 1e9, true},
    {"train", "length", QUANTITY, AT(length), 0, 1e18, false},
    {"train", "stop", QUANTITY, AT(stop), 0, 1e18, false},
    {"train", "lr", REAL, AT(lr), 0, 1e6, false},
    {"train", "schedule", SCHEDULE, AT(schedule), ANY, false},
    {"train", "optimizer", OPTIMIZER, AT(beta1), ANY, true},
    {"train", "average", AVERAGE, AT(average_token), ANY, true},
    {"train", "seed", UINT, AT(seed), 0, 0x1p63, false},
    {"train", "eval_every", QUANTITY, AT(eval_every), 0, 1e18, false},
    {"train", "save_every", QUANTITY, AT(save_every), 0, 1e18, false},
    {"train", "keep", INT, AT(keep), 1, 1e9, false},
    {"train", "dtype", BUILT_IN},
    {"train", "micro_batch", BUILT_IN},
    {"train", "lanes", BUILT_IN},
    {"train", "sum", BUILT_IN},
    {"train", "lr_expert", BUILT_IN},
    {"train", "clip", BUILT_IN},
    {"train", "loss_scale", BUILT_IN},
    {"train", "fast_gate", BUILT_IN},
    {"train", "recompute", BUILT_IN},
    {"train", "random_eval", BUILT_IN},
    {"train", "exact", BUILT_IN},
    {"data", "source", CALL, AT(source), ANY, false},
    {"data", "tokenizer", CALL, AT(tokenizer), ANY, false},
    {"data", "held_out", REAL, AT(held_out), 0, 0.9, false},
    {"data", "shuffle", BOOLEAN, AT(shuffle), ANY, false},
    {"data", "end", INT_OR_NONE, AT(end), 0, 0x7fffffff, false},
    {"data", "pad", INT_OR_NONE, AT(pad), 0, 0x7fffffff, false},
    {"data", "documents", BUILT_IN},
    {"data", "mean", BUILT_IN},
    {"data", "std", BUILT_IN},
    {"parallel", "placement", PLACEMENT, AT(placement), ANY, false},
    {"parallel", "rebalance", QUANTITY, AT(rebalance), 0, 1e18, false},
    {"parallel", "rebalance_window", QUANTITY, AT(rebalance_window), 0, 1e18, false},
    {"parallel", "rebalance_groups", INT, AT(rebalance_groups), 1, 1 << 20, false},
    {"parallel", "rebalance_gain", REAL, AT(rebalance_gain), 0, 1e6, false},
    {"generate", "max_tokens", INT, AT(max_tokens), 1, 1e12, false},
    {"generate", "temperature", REAL, AT(temperature), 0, 1e6, false},
    {"generate", "top_k", INT_OR_NONE, AT(top_k), 0, 1e9, false},
    {"generate", "top_p", REAL, AT(top_p), 0, 1, false},
    {"generate", "min_p", REAL, AT(min_p), 0, 1, false},
    {"generate", "repetition", REAL, AT(repetition), 1e-6, 1e6, false},
    {"generate", "eos", INT_LIST, AT(eos), ANY, false},
    {"generate", "stop", TEXT_LIST, AT(stop_text), ANY, false},
    {"generate", "start", INT_OR_NONE, AT(start), 0, 0x7fffffff, false},
    {"generate", "seed", UINT, AT(generate_seed), 0, 0x1p63, false},
    {"generate", "dropless", BUILT_IN},
    {"generate", "context", BUILT_IN},
    {"generate", "batch", BUILT_IN},
    {"generate", "batch_tokens", BUILT_IN},
    {"generate", "dtype", BUILT_IN},
    {"generate", "mla", BUILT_IN},
};
enum { N_KEYS = sizeof keys / sizeof *keys };

#define BAD(...) rt_fail(e, RT_BAD_SETTING, __VA_ARGS__)

// ---- JSON to fields -------------------------------------------------------------------------------------

static RtStatus expected(const char *name, const char *what, const json_t *v, RtError *e) {
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    BAD("%s must be %s, but is %.100s", name, what, text ? text : "missing");
    free(text);
    return RT_BAD_SETTING;
}

static const char *const unit_word[] = {
    [RT_NO_UNIT] = "",        [RT_STEPS] = "steps",   [RT_TOKENS] = "tokens",
    [RT_SAMPLES] = "samples", [RT_EPOCHS] = "epochs", [RT_MINUTES] = "minutes"};
enum { N_UNITS = sizeof unit_word / sizeof *unit_word };

// "step" and "steps" alike; seconds and hours become minutes.  -1: no unit.
static int find_unit(const char *word, double *factor) {
    size_t n = strlen(word);
    *factor = 1;
    if (!strncmp(word, "second", 6)) return *factor = 1 / 60.0, RT_MINUTES;
    if (!strncmp(word, "hour", 4)) return *factor = 60, RT_MINUTES;
    for (int u = RT_STEPS; u < N_UNITS; u++) {
        size_t full = strlen(unit_word[u]);
        if (!strcmp(word, unit_word[u]) || (n == full - 1 && !strncmp(word, unit_word[u], n))) return u;
    }
    return -1;
}

static RtStatus read_quantity(const json_t *v, const char *name, RtQuantity *out, RtError *e) {
    if (json_is_null(v)) return *out = (RtQuantity){0}, RT_OK;
    if (json_is_number(v)) {
        *out = (RtQuantity){json_number_value(v), RT_STEPS};
    } else {
        const json_t *value = json_object_get(v, "value");
        const char *unit = json_string_value(json_object_get(v, "unit"));
        double factor = 1;
        int u = unit ? find_unit(unit, &factor) : -1;
        if (!json_is_number(value) || u < 0)
            return expected(name, "a number of steps, tokens, samples, epochs or minutes", v, e);
        *out = (RtQuantity){json_number_value(value) * factor, (RtUnit)u};
    }
    if (!(out->value >= 0)) return expected(name, "at least 0", v, e);
    return RT_OK;
}

static void free_call(RtCallSetting *c) {
    for (int i = 0; i < c->n_args; i++) free(c->arg[i]);
    free(c->arg);
    free(c->kind);
    *c = (RtCallSetting){NULL, NULL, 0};
}

// All text arguments of a call, positional first.
static RtStatus read_call(const json_t *v, const char *name, RtCallSetting *out, RtError *e) {
    free_call(out);
    const char *kind =
        json_is_string(v) ? json_string_value(v) : json_string_value(json_object_get(v, "kind"));
    if (json_is_null(v)) {
        if (strcmp(name, "data.tokenizer") == 0) out->kind = rt_path("bytes");
        return RT_OK;
    }
    if (!kind) return expected(name, "a name with arguments, as in text(\"a.txt\")", v, e);
    out->kind = rt_path("%s", kind);
    size_t room = json_array_size(json_object_get(v, "args")) + json_object_size(v) + 1;
    out->arg = calloc(room, sizeof *out->arg);
    if (!out->arg) return rt_fail(e, RT_NO_MEMORY, "no memory for settings");
    size_t i;
    json_t *arg;
    json_array_foreach(json_object_get(v, "args"), i, arg) {
        if (!json_is_string(arg)) return expected(name, "called with texts", v, e);
        out->arg[out->n_args++] = rt_path("%s", json_string_value(arg));
    }
    return RT_OK;
}

static int find_word(const char *word, const char *const *words, int n) {
    for (int i = 0; word && i < n; i++)
        if (!strcmp(word, words[i])) return i;
    return -1;
}

static const char *const schedule_word[SCHEDULE_KINDS] = {
    [SCHEDULE_COSINE] = "cosine", [SCHEDULE_LINEAR] = "linear", [SCHEDULE_CONSTANT] = "constant",
    [SCHEDULE_INVERSE_SQRT] = "inverse_sqrt", [SCHEDULE_WSD] = "wsd", [SCHEDULE_WARMUP_LOG] = "warmup_log"};
static const char *const shape_word[SHAPE_KINDS] = {[SHAPE_LINEAR] = "linear",
                                                    [SHAPE_COSINE] = "cosine",
                                                    [SHAPE_EXPONENTIAL] = "exponential",
                                                    [SHAPE_SQRT] = "sqrt"};

const char *const rt_placement_word[PLACEMENT_KINDS] = {[PLACEMENT_LINEAR] = "linear",
                                                            [PLACEMENT_ROUND_ROBIN] = "round_robin",
                                                            [PLACEMENT_RANDOM] = "random"};

static RtStatus read_schedule(const json_t *v, const char *name, RtScheduleSetting *out, RtError *e) {
    const char *word =
        json_is_string(v) ? json_string_value(v) : json_string_value(json_object_get(v, "kind"));
    int kind = find_word(word, schedule_word, SCHEDULE_KINDS);
    if (kind < 0) return expected(name, "cosine, linear, constant, inverse_sqrt, wsd or warmup_log", v, e);
    *out = (RtScheduleSetting){
        .kind = (RtScheduleKind)kind,
        .warmup = {kind == SCHEDULE_COSINE || kind == SCHEDULE_LINEAR ? 100 : 0, RT_STEPS},
        .floor = kind == SCHEDULE_COSINE ? 0.1 : 0};
    const json_t *first = json_array_get(json_object_get(v, "args"), 0);         // warmup_log(1000 steps)
    if (first) RT_TRY(read_quantity(first, name, &out->warmup, e));
    if (!json_is_object(v)) return RT_OK;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value) {
        if (!strcmp(key, "kind") || !strcmp(key, "args")) continue;
        if (!strcmp(key, "warmup") || !strcmp(key, "n"))
            RT_TRY(read_quantity(value, "warmup of train.schedule", &out->warmup, e));
        else if (!strcmp(key, "length"))
            RT_TRY(read_quantity(value, "length of train.schedule", &out->length, e));
        else if (!strcmp(key, "decay"))
            RT_TRY(read_quantity(value, "decay of train.schedule", &out->decay, e));
        else if (!strcmp(key, "floor")) {
            out->floor = json_is_number(value) ? json_number_value(value) : -1;
            if (!(out->floor >= 0 && out->floor <= 1))
                return expected("floor of train.schedule", "a share of lr, 0 to 1", value, e);
        } else if (!strcmp(key, "shape")) {
            int shape = find_word(json_string_value(value), shape_word, SHAPE_KINDS);
            if (shape < 0)
                return expected("shape of train.schedule", "linear, cosine, exponential or sqrt", value, e);
            out->shape = (RtDecayShape)shape;
        } else return BAD("train.schedule: %s has no argument '%s'", word, key);
    }
    return RT_OK;
}

static RtStatus read_optimizer(const json_t *v, RtSettings *s, RtError *e) {
    const char *word =
        json_is_string(v) ? json_string_value(v) : json_string_value(json_object_get(v, "kind"));
    if (!word) return expected("train.optimizer", "adamw, adam, sgd or adafactor", v, e);
    bool adam = !strncmp(word, "adam", 4);
    s->beta1 = adam ? 0.9 : 0;
    s->beta2 = adam ? 0.95 : 0;
    const json_t *b1 = json_object_get(v, "beta1"), *b2 = json_object_get(v, "beta2");
    if (json_is_number(b1)) s->beta1 = json_number_value(b1);
    if (json_is_number(b2)) s->beta2 = json_number_value(b2);
    return RT_OK;
}

static RtStatus read_int_list(const json_t *v, const char *name, RtSettings *s, RtError *e) {
    free(s->eos);
    s->eos = NULL;
    s->n_eos = 0;
    if (json_is_null(v)) return RT_OK;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    s->eos = calloc(n + 1, sizeof *s->eos);
    for (size_t i = 0; s->eos && i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id)) return expected(name, "a list of ids", v, e);
        s->eos[s->n_eos++] = json_integer_value(id);
    }
    return RT_OK;
}

static void free_texts(char **text, int n) {
    for (int i = 0; i < n; i++) free(text[i]);
    free(text);
}

static RtStatus read_text_list(const json_t *v, const char *name, RtSettings *s, RtError *e) {
    free_texts(s->stop_text, s->n_stop_text);
    s->stop_text = NULL;
    s->n_stop_text = 0;
    if (json_is_null(v)) return RT_OK;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    s->stop_text = calloc(n + 1, sizeof *s->stop_text);
    for (size_t i = 0; s->stop_text && i < n; i++) {
        const char *text = json_string_value(json_is_array(v) ? json_array_get(v, i) : v);
        if (!text || !*text) return expected(name, "a list of texts", v, e);
        s->stop_text[s->n_stop_text++] = rt_path("%s", text);
    }
    return RT_OK;
}

static RtStatus read_number(const Key *k, const json_t *v, const char *name, void *field, RtError *e) {
    bool whole = k->type != REAL && k->type != REAL_OR_NONE;
    double x = json_is_number(v) ? json_number_value(v) : NAN;
    char what[96];
    snprintf(what, sizeof what, k->most <= 1e6 ? "a %snumber from %g to %g" : "a %snumber from %g",
             whole ? "whole " : "", k->least, k->most);
    if (!(x >= k->least && x <= k->most) || (whole && x != floor(x))) return expected(name, what, v, e);
    if (k->type == UINT)
        *(uint64_t *)field = json_is_integer(v) ? (uint64_t)json_integer_value(v) : (uint64_t)x;
    else if (whole) *(int64_t *)field = json_is_integer(v) ? json_integer_value(v) : (int64_t)x;
    else *(double *)field = x;
    return RT_OK;
}

static RtStatus read_key(const Key *k, const json_t *v, RtSettings *s, RtError *e) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", k->block, k->key);
    void *field = (char *)s + k->offset;
    switch (k->type) {
    case BUILT_IN: return RT_OK;
    case INT: case UINT: case REAL: return read_number(k, v, name, field, e);
    case INT_OR_NONE:
        if (json_is_null(v)) return *(int64_t *)field = k->offset == AT(top_k) ? 0 : -1, RT_OK;
        return read_number(k, v, name, field, e);
    case REAL_OR_NONE: return json_is_null(v) ? RT_OK : read_number(k, v, name, field, e);
    case BOOLEAN:
        if (!json_is_boolean(v)) return expected(name, "true or false", v, e);
        *(bool *)field = json_is_true(v);
        return RT_OK;
    case QUANTITY: return read_quantity(v, name, field, e);
    case CALL: return read_call(v, name, field, e);
    case SCHEDULE: return read_schedule(v, name, field, e);
    case OPTIMIZER: return read_optimizer(v, s, e);
    case AVERAGE:
        if (!json_is_string(v)) return expected(name, "leaf or token", v, e);
        s->average_token = !strcmp(json_string_value(v), "token");
        return RT_OK;
    case PLACEMENT: {
        int kind = find_word(json_string_value(v), rt_placement_word, PLACEMENT_KINDS);
        if (kind < 0) return expected(name, "linear, round_robin or random", v, e);
        s->placement = (RtPlacementKind)kind;
        return RT_OK;
    }
    case INT_LIST: return read_int_list(v, name, s, e);
    case TEXT_LIST: return read_text_list(v, name, s, e);
    }
    return RT_OK;
}

// Text arguments of data.source and data.tokenizer are paths: made absolute, so that a run can be gone on
// with from anywhere.
static void make_paths_absolute(json_t *json, const char *base_dir) {
    static const char *const holders[] = {"source", "tokenizer"};
    for (int h = 0; h < 2; h++) {
        json_t *args = json_object_get(json_object_get(json_object_get(json, "data"), holders[h]), "args");
        for (size_t i = 0; i < json_array_size(args); i++) {
            const char *path = json_string_value(json_array_get(args, i));
            if (!path) continue;
            char *absolute = rt_absolute(base_dir, path);
            json_array_set_new(args, i, json_string(absolute));
            free(absolute);
        }
    }
}

static RtStatus read_all(RtSettings *s, RtError *e) {
    for (int i = 0; i < N_KEYS; i++) {
        const json_t *v = json_object_get(json_object_get(s->json, keys[i].block), keys[i].key);
        if (v) RT_TRY(read_key(&keys[i], v, s, e));
    }
    s->vocabulary = json_integer_value(json_object_get(json_object_get(s->json, "model"), "vocabulary"));
    return RT_OK;
}

RtStatus rt_settings_open(const char *json, const char *base_dir, RtSettings **out, RtError *e) {
    *out = NULL;
    RtSettings *s = calloc(1, sizeof *s);
    if (!s) return rt_fail(e, RT_NO_MEMORY, "no memory for settings");
    *s = (RtSettings){.length = {1000, RT_STEPS},
                      .eval_every = {500, RT_STEPS},
                      .save_every = {1000, RT_STEPS},
                      .keep = 3,
                      .lr = 3e-4,
                      .beta1 = 0.9,
                      .beta2 = 0.95,
                      .schedule = {.kind = SCHEDULE_COSINE, .warmup = {100, RT_STEPS}, .floor = 0.1},
                      .held_out = 0.01,
                      .shuffle = true,
                      .rebalance_groups = 1, .rebalance_gain = 1,
                      .end = -1,
                      .pad = -1,
                      .max_tokens = 256,
                      .temperature = 1,
                      .top_p = 1,
                      .repetition = 1,
                      .start = -1};
    json_error_t where;
    s->tokenizer.kind = rt_path("bytes");
    s->json = json && *json ? json_loads(json, JSON_REJECT_DUPLICATES, &where) : json_object();
    RtStatus status = RT_OK;
    if (!json_is_object((json_t *)s->json))
        status = BAD("the settings are not a JSON object (%s)", s->json ? "another value" : where.text);
    if (status == RT_OK) {
        make_paths_absolute(s->json, base_dir);
        status = read_all(s, e);
    }
    if (status != RT_OK) rt_settings_close(s);
    else *out = s;
    return status;
}

void rt_settings_close(RtSettings *s) {
    if (!s) return;
    free_call(&s->source);
    free_call(&s->tokenizer);
    free(s->eos);
    free_texts(s->stop_text, s->n_stop_text);
    json_decref(s->json);
    free(s);
}

char *rt_settings_json(const RtSettings *s) { return json_dumps(s->json, JSON_INDENT(2)); }

// ---- text of a value to JSON ----------------------------------------------------------------------------
// value:  number [unit] | "text" | word | word(args) | [value, ...]        args: value or name: value, commas
// between

typedef struct { const char *at; RtError *e; } Reader;

static void skip_blanks(Reader *r) { while (isspace((unsigned char)*r->at)) r->at++; }

static bool take(Reader *r, char c) {
    skip_blanks(r);
    if (*r->at != c) return false;
    r->at++;
    return true;
}

static size_t word_length(const char *at) {
    size_t n = 0;
    while (isalnum((unsigned char)at[n]) || at[n] == '_') n++;
    return n;
}

static json_t *read_value(Reader *r);

static json_t *read_text(Reader *r) {
    char *text = malloc(strlen(r->at) + 1);
    size_t n = 0;
    for (r->at++; *r->at && *r->at != '"'; r->at++) {
        if (*r->at == '\\' && r->at[1]) {
            r->at++;
            text[n++] = *r->at == 'n' ? '\n' : *r->at == 't' ? '\t' : *r->at;
        } else text[n++] = *r->at;
    }
    text[n] = 0;
    json_t *v = *r->at == '"' ? json_string(text) : NULL;
    if (v) r->at++;
    free(text);
    return v;
}

static json_t *read_list(Reader *r) {
    json_t *list = json_array();
    r->at++;
    if (take(r, ']')) return list;
    do {
        json_t *v = read_value(r);
        if (!v) { json_decref(list); return NULL; }
        json_array_append_new(list, v);
    } while (take(r, ','));
    if (take(r, ']')) return list;
    json_decref(list);
    return NULL;
}

// 300, 1e-3, 2 ** 16, 400k; a unit makes it a quantity.
static json_t *read_quantity_text(Reader *r) {
    char *end;
    double x = strtod(r->at, &end);
    r->at = end;
    if (*r->at && strchr("kMBT", *r->at) && word_length(r->at) == 1)
        x *= *r->at == 'k' ? 1e3 : *r->at == 'M' ? 1e6 : *r->at == 'B' ? 1e9 : 1e12, r->at++;
    skip_blanks(r);
    if (r->at[0] == '*' && r->at[1] == '*') {
        r->at += 2;
        x = pow(x, strtod(r->at, &end));
        r->at = end;
        skip_blanks(r);
    }
    json_t *number = x == floor(x) && fabs(x) < 0x1p53 ? json_integer((json_int_t)x) : json_real(x);
    size_t n = word_length(r->at);
    char word[16] = "";
    if (n && n < sizeof word) memcpy(word, r->at, n);
    double factor;
    int unit = n ? find_unit(word, &factor) : -1;
    if (unit < 0) return number;
    r->at += n;
    return json_pack("{s:o, s:s}", "value", number, "unit", word);
}

static json_t *read_call_text(Reader *r, const char *kind, size_t n) {
    json_t *call = json_pack("{s:s%}", "kind", kind, n), *args = json_array();
    if (take(r, ')')) { json_decref(args); return call; }
    do {
        skip_blanks(r);
        size_t name = word_length(r->at);
        const char *after = r->at + name;
        while (isspace((unsigned char)*after)) after++;
        char *key = name && isalpha((unsigned char)*r->at) && *after == ':'
                        ? rt_path("%.*s", (int)name, r->at)
                        : NULL;
        if (key) r->at = after + 1;
        json_t *v = read_value(r);
        if (v && key) json_object_set_new(call, key, v);
        else if (v) json_array_append_new(args, v);
        free(key);
        if (!v) { json_decref(args); json_decref(call); return NULL; }
    } while (take(r, ','));
    if (json_array_size(args)) json_object_set(call, "args", args);
    json_decref(args);
    if (take(r, ')')) return call;
    json_decref(call);
    return NULL;
}

static json_t *read_value(Reader *r) {
    skip_blanks(r);
    if (*r->at == '"') return read_text(r);
    if (*r->at == '[') return read_list(r);
    if (isdigit((unsigned char)*r->at) ||
        ((*r->at == '-' || *r->at == '.') && (isdigit((unsigned char)r->at[1]) || r->at[1] == '.')))
        return read_quantity_text(r);
    size_t n = word_length(r->at);
    if (!n) return NULL;
    const char *word = r->at;
    r->at += n;
    if (take(r, '(')) return read_call_text(r, word, n);
    if (n == 4 && !strncmp(word, "none", 4)) return json_null();
    if (n == 4 && !strncmp(word, "true", 4)) return json_true();
    if (n == 5 && !strncmp(word, "false", 5)) return json_false();
    return json_stringn(word, n);
}

// ---- key=value ------------------------------------------------------------------------------------------

static RtStatus unknown_key(const char *name, RtError *e) {
    const char *dot = strchr(name, '.');
    if (!dot) return BAD("'%s' was fixed when this program was built", name);
    const Key *near = NULL;
    int limit = 4;
    for (int i = 0; i < N_KEYS && limit; i++) {
        char full[64];
        snprintf(full, sizeof full, "%s.%s", keys[i].block, keys[i].key);
        // the right key in the wrong block is the usual slip
        int d = !strcmp(dot + 1, keys[i].key) ? 0 : rt_distance(name, full, limit);
        if (d < limit) limit = d, near = &keys[i];
    }
    return near ? BAD("there is no setting '%s'; did you mean '%s.%s'?", name, near->block, near->key)
                : BAD("there is no setting '%s'", name);
}

RtStatus rt_settings_set(RtSettings *s, const char *assignment, RtError *e) {
    const char *equals = strchr(assignment, '=');
    if (!equals) return BAD("'%s' is not KEY=VALUE", assignment);
    char *name = rt_path("%.*s", (int)(equals - assignment), assignment);
    for (size_t n = strlen(name); n && isspace((unsigned char)name[n - 1]);) name[--n] = 0;
    const Key *k = NULL;
    for (int i = 0; i < N_KEYS && !k; i++) {
        size_t block = strlen(keys[i].block);
        if (!strncmp(name, keys[i].block, block) && name[block] == '.' &&
            !strcmp(name + block + 1, keys[i].key))
            k = &keys[i];
    }
    RtStatus status = RT_OK;
    if (!k)
        status = !strncmp(name, "parallel.", 9) ? BAD("'%s' was fixed when this program was built", name)
                                                : unknown_key(name, e);
    else if (k->type == BUILT_IN || k->fixed)
        status = BAD("'%s' was fixed when this program was built", name);
    Reader r = {equals + 1, e};
    json_t *v = status == RT_OK ? read_value(&r) : NULL;
    skip_blanks(&r);
    if (status == RT_OK && (!v || *r.at)) status = BAD("%s: cannot read the value '%s'", name, equals + 1);
    if (status == RT_OK) {
        if (k->type == CALL) {
            json_t *outer = json_pack("{s:{s:O}}", "data", k->key, v);
            make_paths_absolute(outer, NULL);
            json_decref(outer);
        }
        status = read_key(k, v, s, e);
    }
    if (status == RT_OK) {
        json_t *block = json_object_get(s->json, k->block);
        if (!block) json_object_set_new(s->json, k->block, block = json_object());
        json_object_set(block, k->key, v);
    }
    json_decref(v);
    free(name);
    return status;
}
