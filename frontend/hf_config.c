// The rows of `config hf`.  A leading dot is a member of the JSON object; absent and null are both `none`.
#include "frontend/hf_config.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Keys that say nothing about what is computed; ignored in every config.json.
static const char *const everywhere[] = {"architectures",
                                         "transformers_version",
                                         "torch_dtype",
                                         "dtype",
                                         "use_cache",
                                         "model_type",
                                         "_name_or_path",
                                         "auto_map",
                                         "bos_token_id",
                                         "eos_token_id",
                                         "attention_dropout",
                                         "max_position_embeddings",
                                         "initializer_range",
                                         "pad_token_id",
                                         "head_dim",
                                         "rope_scaling",
                                         "rope_theta",
                                         "rope_parameters",
                                         "layer_types",
                                         "router_aux_loss_coef",
                                         "id2label",
                                         "label2id",
                                         "is_encoder_decoder",
                                         "decoder_start_token_id",
                                         "quantization_config",
                                         "return_dict",
                                         "output_attentions",
                                         "output_hidden_states",
                                         "tie_word_embeddings",
                                         "use_return_dict",
                                         "chunk_size_feed_forward",
                                         "problem_type",
                                         "router_jitter_noise"};

typedef struct {
    Arena *arena;
    json_t *root;
    VEC(const char *) known; // top-level keys that some row read or ignored
} Config;

static Val val_of_json(Arena *a, Span at, const json_t *j) {
    switch (json_typeof(j)) {
    case JSON_INTEGER:
        return program_val_num(at, num_int(json_integer_value(j)));
    case JSON_REAL: {
        // decimal text means that rational number, as in programs
        char text[64];
        snprintf(text, sizeof text, "%.17g", json_real_value(j));
        char shorter[64];
        for (int digits = 1; digits < 17; digits++) {
            snprintf(shorter, sizeof shorter, "%.*g", digits, json_real_value(j));
            if (strtod(shorter, NULL) == json_real_value(j)) {
                memcpy(text, shorter, sizeof text);
                break;
            }
        }
        if (text[0] == '-' || !isfinite(json_real_value(j)))
            return program_val_num(at, num_double(json_real_value(j)));
        return program_val_num(at, num_parse(text, strlen(text)));
    }
    case JSON_TRUE:
        return program_val_bool(at, true);
    case JSON_FALSE:
        return program_val_bool(at, false);
    case JSON_STRING:
        return program_val_str(at, intern(json_string_value(j)));
    case JSON_ARRAY: {
        int n = (int)json_array_size(j);
        Val *item = arena_array(a, Val, n + 1);
        for (int i = 0; i < n; i++) item[i] = val_of_json(a, at, json_array_get(j, (size_t)i));
        return program_val_list(a, at, n, item);
    }
    default:
        return program_val_none(at);
    }
}

static bool member(void *self, Span at, int n, const char *const *path, Val *out) {
    Config *c = self;
    const json_t *j = c->root;
    for (int i = 0; i < n; i++) {
        if (i == 0) vec_push(c->arena, &c->known, path[0]);
        j = json_is_object(j) ? json_object_get(j, path[i]) : NULL;
        if (!j) return false;
    }
    if (json_is_null(j)) return false;
    *out = val_of_json(c->arena, at, j);
    return true;
}

static json_t *parse(Diag *d, const char *json, const char *json_name) {
    json_error_t e;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        diag_error(d, (Span){0}, "%s:%d:%d: %s", json_name, e.line, e.column, e.text);
    else if (!json_is_object(root)) {
        diag_error(d, (Span){0}, "%s: an object is expected", json_name);
        json_decref(root);
        root = NULL;
    }
    return root;
}

const char *hf_model_type(Arena *a, Diag *d, const char *json, const char *json_name) {
    json_t *root = parse(d, json, json_name);
    if (!root) return NULL;
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (!type) diag_error(d, (Span){0}, "%s: there is no \"model_type\"", json_name);
    const char *copy = type ? arena_strdup(a, type) : NULL;
    json_decref(root);
    return copy;
}

static const Block *config_block(const Module *m) {
    for (int i = 0; i < m->blocks.n; i++) {
        const Block *b = &m->blocks.at[i];
        if (!strcmp(b->name, "config") && b->words.n && b->words.at[0]->kind == X_NAME &&
            !strcmp(b->words.at[0]->name, "hf"))
            return b;
    }
    return NULL;
}

static bool names_type(const Block *b, const char *model_type) {
    for (int i = 1; b && i < b->words.n; i++)
        if (b->words.at[i]->kind == X_STR && !strcmp(b->words.at[i]->name, model_type)) return true;
    return false;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static char *read_text(Arena *a, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) return NULL;
    Str s = {.arena = a};
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;) str_add_n(&s, piece, n);
    fclose(f);
    return s.text;
}

const char *hf_find_model(Arena *a, const char *models_dir, const char *model_type) {
    DIR *dir = opendir(models_dir);
    if (!dir) return NULL;
    VEC(const char *) files = {0};
    for (struct dirent *e; (e = readdir(dir));) {
        size_t n = strlen(e->d_name);
        if (n > 4 && !strcmp(e->d_name + n - 4, ".moe"))
            vec_push(a, &files, arena_printf(a, "%s/%s", models_dir, e->d_name));
    }
    closedir(dir);
    if (files.n) qsort(files.at, (size_t)files.n, sizeof *files.at, by_name);
    const char *found = NULL, *broken = NULL;
    for (int i = 0; i < files.n && !found; i++) {
        char *text = read_text(a, files.at[i]);
        if (!text || !strstr(text, "config") || !strstr(text, model_type))
            continue; // parse only what may match
        Diag *quiet = diag_new(a);
        Module m = {.path = files.at[i]};
        uint32_t file = diag_add_file(quiet, files.at[i], text, strlen(text));
        m.file = file;
        if (!ast_parse(a, quiet, file, &m))
            broken = strstr(text, arena_printf(a, "\"%s\"", model_type)) ? files.at[i] : broken;
        else if (names_type(config_block(&m), model_type))
            found = files.at[i];
    }
    return found ? found : broken; // the caller parses it again and tells what is wrong
}

// ---- rows -------------------------------------------------------------------------------------------------

static const char *expr_text(Program *p, Arena *a, Span at) { return ast_text(a, program_diag(p), at); }

static bool is_dot(const Expr *e) {
    while (e->kind == X_MEMBER) e = e->a;
    return e->kind == X_DOT;
}

// The member a failed condition speaks of, for the message: the first that is there, else the first.
static const Expr *first_dot(Program *p, const Subject *s, const Expr *e, Val *is) {
    if (!e) return NULL;
    if (is_dot(e)) {
        *is = program_eval(p, e, s, 0, NULL);
        return e;
    }
    const Expr *part[] = {e->a, e->b, e->c}, *found = NULL;
    for (int i = 0; i < 3 && (!found || is->kind == V_NONE); i++) {
        Val other;
        const Expr *next = first_dot(p, s, part[i], &other);
        if (!next || (found && other.kind == V_NONE)) continue;
        found = next;
        *is = other;
    }
    return found;
}

static void ignore_key(Config *c, const Expr *e) {
    while (e && e->kind == X_MEMBER) e = e->a;
    if (e && e->kind == X_DOT) vec_push(c->arena, &c->known, e->name);
}

static bool configure_entry(Program *p, Config *c, const Subject *s, const Entry *e, const char *json_name) {
    Diag *d = program_diag(p);
    Val v;
    switch (e->kind) {
    case E_SET:
        v = program_eval(p, e->right, s, 0, NULL);
        if (v.kind == V_ERROR) return false;
        if (e->left->kind == X_NAME) return program_set_value(p, e->left->name, v, e->at);
        if (e->left->kind == X_MEMBER && e->left->a->kind == X_NAME)
            return program_set_key(p, e->left->a->name, e->left->name, v, e->at);
        diag_error(d, e->left->at, "the left side of a config row is a hyper-parameter or block.key");
        return false;
    case E_REQUIRE: {
        v = program_eval(p, e->right, s, 0, NULL);
        if (v.kind == V_ERROR) return false;
        if (v.kind == V_BOOL && v.b) return true;
        Val is;
        const Expr *dot = first_dot(p, s, e->right, &is);
        if (dot)
            diag_error(d, e->at, "%s: %s is %s; this model cannot represent it", json_name,
                       expr_text(p, c->arena, dot->at) + 1, program_val_text(p, &is));
        else
            diag_error(d, e->at, "%s: %s does not hold; this model cannot represent it", json_name,
                       expr_text(p, c->arena, e->right->at));
        return false;
    }
    case E_IGNORE:
        for (int i = 0; i < e->items.n; i++) ignore_key(c, e->items.at[i]);
        return true;
    case E_IF:
        v = program_eval(p, e->right, s, 0, NULL);
        if (v.kind == V_ERROR) return false;
        for (int i = 0; i < (v.b ? &e->body : &e->orelse)->n; i++)
            if (!configure_entry(p, c, s, (v.b ? &e->body : &e->orelse)->at[i], json_name)) return false;
        return true;
    default:
        diag_error(d, e->at, "a config block holds rows, require, ignore and if");
        return false;
    }
}

static bool is_known(const Config *c, const char *key) {
    for (size_t i = 0; i < sizeof everywhere / sizeof *everywhere; i++)
        if (!strcmp(everywhere[i], key)) return true;
    for (int i = 0; i < c->known.n; i++)
        if (!strcmp(c->known.at[i], key)) return true;
    return false;
}

bool hf_configure(Program *p, Arena *a, const char *json, const char *json_name) {
    Diag *d = program_diag(p);
    const Block *block = config_block(program_main(p));
    if (!block) {
        diag_error(d, (Span){0}, "%s has no 'config hf' block: nothing says what %s means",
                   program_main(p)->path, json_name);
        return false;
    }
    Config c = {.arena = a, .root = parse(d, json, json_name)};
    if (!c.root) return false;
    Subject s = {member, &c};
    bool ok = true;
    for (int i = 0; i < block->entries.n; i++)
        ok &= configure_entry(p, &c, &s, block->entries.at[i], json_name);
    const char *key;
    json_t *value;
    Str unread = {.arena = a};
    json_object_foreach(c.root, key, value) {
        if (!is_known(&c, key) && !json_is_null(value))
            str_printf(&unread, "%s%s", unread.n ? ", " : "", key);
    }
    if (ok && unread.n) diag_warning(d, block->at, "%s: no row reads %s", json_name, unread.text);
    json_decref(c.root);
    return ok;
}
