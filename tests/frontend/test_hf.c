// Hugging Face directories: views read both ways, rows of `weights hf` against a file's tensors, rows of
// `config hf`.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/hf.h"
#include "frontend/hf_config.h"

static Arena *arena;

static int begin(void **state) {
    arena = arena_create();
    return 0;
}

static int end(void **state) {
    arena_destroy(arena);
    return 0;
}

static const char *messages(Diag *d) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diag_print(d, f, false);
    fclose(f);
    const char *kept = arena_strdup(arena, text);
    free(text);
    return kept;
}

static void assert_says(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("expected \"%s\" in:\n%s", part, text);
}

// ---- views ---------------------------------------------------------------------------------------------

static HfView *param(int number, int ndim, const int64_t *dim) {
    return hf_view_param(arena, number, ndim, dim);
}

// The value of a view of parameters whose elements count up from 0, 1000, 2000, ..; and scattering it back
// gives them.
static float *gathered(const HfView *v, int n_params, const int *elements) {
    char **from = arena_array(arena, char *, n_params), **to = arena_array(arena, char *, n_params);
    for (int p = 0; p < n_params; p++) {
        float *x = arena_array(arena, float, elements[p]);
        for (int i = 0; i < elements[p]; i++) x[i] = (float)(1000 * p + i);
        from[p] = (char *)x;
        to[p] = (char *)arena_array(arena, float, elements[p]);
    }
    int64_t n = 1;
    for (int i = 0; i < v->ndim; i++) n *= v->dim[i];
    float *value = arena_array(arena, float, n);
    hf_view_gather(v, sizeof(float), from, (char *)value);
    hf_view_scatter(v, sizeof(float), to, (char *)value);
    float *again = arena_array(arena, float, n);
    hf_view_gather(v, sizeof(float), to, (char *)again);
    assert_memory_equal(value, again, (size_t)n * sizeof *value);
    return value;
}

static void assert_floats(const float *got, int n, const float *want) {
    for (int i = 0; i < n; i++)
        if (got[i] != want[i]) fail_msg("element %d is %g, not %g", i, (double)got[i], (double)want[i]);
}

static void test_elements_and_transposition(void **state) {
    const char *why;
    HfView *w = param(0, 3, (int64_t[]){2, 2, 3});
    HfView *second = hf_view_element(arena, w, 1, &why);
    assert_int_equal(second->ndim, 2);
    assert_floats(gathered(second, 1, (int[]){12}), 6, (float[]){6, 7, 8, 9, 10, 11});
    HfView *turned = hf_view_transpose(arena, w, &why);
    assert_int_equal(turned->dim[1], 3);
    assert_floats(gathered(turned, 1, (int[]){12}), 12, (float[]){0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11});
    assert_floats(gathered(hf_view_element(arena, turned, 1, &why), 1, (int[]){12}), 6,
                  (float[]){6, 9, 7, 10, 8, 11});
    assert_null(hf_view_element(arena, w, 2, &why));
    assert_string_equal(why, "there is no element 2 in [2, 2, 3]");
    assert_null(hf_view_transpose(arena, param(0, 1, (int64_t[]){4}), &why));
}

static void test_joins(void **state) {
    const char *why;
    HfView *a = param(0, 2, (int64_t[]){2, 2}), *b = param(1, 2, (int64_t[]){2, 2});
    int elements[] = {4, 4};
    HfView *rows = hf_view_join(arena, HV_CONCAT, (HfView *[]){a, b}, 2, 0, &why);
    assert_int_equal(rows->dim[0], 4);
    assert_floats(gathered(rows, 2, elements), 8, (float[]){0, 1, 2, 3, 1000, 1001, 1002, 1003});
    HfView *columns = hf_view_join(arena, HV_CONCAT, (HfView *[]){a, b}, 2, -1, &why);
    assert_floats(gathered(columns, 2, elements), 8, (float[]){0, 1, 1000, 1001, 2, 3, 1002, 1003});
    HfView *mixed = hf_view_join(arena, HV_INTERLEAVE, (HfView *[]){a, b}, 2, -1, &why);
    assert_floats(gathered(mixed, 2, elements), 8, (float[]){0, 1000, 1, 1001, 2, 1002, 3, 1003});
    HfView *stacked = hf_view_join(arena, HV_STACK, (HfView *[]){a, b}, 2, 1, &why);
    assert_int_equal(stacked->ndim, 3);
    assert_floats(gathered(stacked, 2, elements), 8, (float[]){0, 1, 1000, 1001, 2, 3, 1002, 1003});
    // gpt-oss: even columns gate, odd ones up, input-major in the file
    HfView *at = hf_view_transpose(arena, a, &why), *bt = hf_view_transpose(arena, b, &why);
    HfView *both = hf_view_join(arena, HV_INTERLEAVE, (HfView *[]){at, bt}, 2, -1, &why);
    assert_floats(gathered(both, 2, elements), 8, (float[]){0, 1000, 2, 1002, 1, 1001, 3, 1003});
    assert_null(hf_view_join(arena, HV_CONCAT, (HfView *[]){a, param(1, 2, (int64_t[]){2, 3})}, 2, 0, &why));
    assert_string_equal(why, "[2, 2] and [2, 3] cannot be joined");
}

static void test_reshapes(void **state) {
    const char *why;
    HfView *w = param(0, 2, (int64_t[]){2, 6});
    HfView *flat = hf_view_reshape(arena, hf_view_transpose(arena, w, &why), 3, (int64_t[]){3, 2, 2}, &why);
    assert_floats(gathered(flat, 1, (int[]){12}), 12, (float[]){0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11});
    HfView *moved = hf_view_permute(arena, flat, (int[]){1, 0, 2}, &why);
    assert_floats(gathered(moved, 1, (int[]){12}), 12, (float[]){0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11});
    assert_null(hf_view_reshape(arena, w, 1, (int64_t[]){11}, &why));
    assert_null(hf_view_permute(arena, w, (int[]){0, 0}, &why));
}

static void test_mxfp4(void **state) {
    uint8_t blocks[16] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe}, scale = 128; // 2^1
    float x[32];
    hf_decode_mxfp4(blocks, &scale, 1, x);
    assert_floats(x, 17, (float[]){0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12, 0});
    scale = 0;
    blocks[0] = 0x77;
    hf_decode_mxfp4(blocks, &scale, 1, x);
    assert_true(x[0] == ldexpf(6, -127));
}

// ---- weights hf ----------------------------------------------------------------------------------------

typedef struct {
    const char *text; // messages
    HfMatches out;
    bool ok;
} Matched;

static bool no_hyper(void *self, const char *name, int64_t *number, const char **word) {
    if (strcmp(name, "L") != 0) return false;
    *number = 2;
    return true;
}

static Matched match(const char *rows, const HfTensor *tensor, int n_tensors, const HfParam *p,
                     int n_params) {
    Matched r = {0};
    Diag *d = diag_new(arena);
    const char *text = arena_printf(arena, "weights hf {\n%s\n}\n", rows);
    Module *m = arena_new(arena, Module);
    m->path = "m.moe";
    uint32_t file = diag_add_file(d, "m.moe", text, strlen(text));
    m->file = file;
    if (!ast_parse(arena, d, file, m)) fail_msg("%s", messages(d));
    HfRules rules = {
        .arena = arena, .diag = d, .module = m, .lookup = no_hyper, .file = "dir", .complete = true};
    r.ok = hf_match(&rules, tensor, n_tensors, p, n_params, &r.out);
    r.text = messages(d);
    return r;
}

static const HfParam layer[] = {{"embed", 2, {8, 4}},
                                {"layers.0.w1", 2, {6, 4}},
                                {"layers.1.experts.w1", 3, {2, 6, 4}},
                                {"layers.1.experts.bias", 2, {2, 6}, true}};

static void test_rows(void **state) {
    HfTensor t[] = {{"e.weight", F32, 2, {8, 4}},
                    {"l.0.up.weight", F32, 2, {6, 4}},
                    {"l.1.x.0.up.weight", F32, 2, {6, 4}},
                    {"l.1.x.1.up.weight", F32, 2, {6, 4}},
                    {"l.2.mtp.weight", F32, 1, {3}}};
    Matched m = match("\"e.weight\" = embed\n"
                      "\"l.{i}.\" = layers[i] {\n"
                      "  \"up.weight\"       = .w1\n" // names nothing in a layer of experts
                      "  \"x.{e}.{w:up=w1,down=w2}.weight\" = .experts[w][e]\n"
                      "}\n"
                      "ignore \"l.{L}.*\"",
                      t, 5, layer, 4);
    if (!m.ok) fail_msg("%s", m.text);
    assert_int_equal(m.out.n, 4);
    for (int i = 0; i < 4; i++) {
        const HfView *v = m.out.at[i].view;
        if (m.out.at[i].tensor < 2)
            assert_int_equal(v->kind, HV_PARAM);
        else
            assert_int_equal(v->element, m.out.at[i].tensor - 2);
    }
}

static void test_rows_that_do_not_fit(void **state) {
    HfTensor t[] = {{"e.weight", F32, 2, {4, 8}},
                    {"l.0.up.weight", F32, 2, {6, 4}},
                    {"l.1.x.0.up.weight", F32, 2, {6, 4}}};
    static const char rows[] = "\"e.weight\" = embed\n\"l.{i}.up.weight\" = "
                               "layers[i].w1\n\"l.{i}.x.{e}.up.weight\" = layers[i].experts.w1[e]";
    Matched m = match(rows, t, 3, layer, 4);
    assert_false(m.ok);
    assert_says(m.text, "e.weight: the file's tensor is [4, 8], this is [8, 4]");
    assert_says(m.text, "embed.T has the file's shape");
    memcpy(t[0].dim, layer[0].dim, sizeof t[0].dim);
    m = match(rows, t, 3, layer, 4);
    assert_false(m.ok);
    assert_says(m.text, "1 parameter is found nowhere in the file: layers.1.experts.w1 (1 of 2 elements)");
    HfTensor more[] = {
        t[0], t[1], t[2], {"l.1.x.1.up.weight", F32, 2, {6, 4}}, {"l.1.x.2.up.weight", F32, 2, {6, 4}}};
    m = match(rows, more, 5, layer, 4);
    assert_says(m.text, "l.1.x.2.up.weight: there is no element 2 in [2, 6, 4]");
    more[4] = (HfTensor){"other", F32, 1, {1}};
    m = match(rows, more, 5, layer, 4);
    assert_says(m.text, "1 tensor is in no row: other");
    more[4] = (HfTensor){"copy.weight", F32, 2, {8, 4}};
    m = match(arena_printf(arena, "%s\n\"copy.weight\" = embed", rows), more, 5, layer, 4);
    assert_says(m.text, "1 parameter is covered twice: embed");
    m = match("\"e.weight\" = silu(embed)", more, 1, layer, 1);
    assert_says(m.text, "'silu' has no inverse");
}

static void test_alternatives(void **state) {
    static const char rows[] =
        "either {\n\"x.{e}.up\" = experts.w1[e]\n \"x.{e}.gate\" = experts.w3[e]\n} or {\n\"x.gate_up\" = "
        "concat(experts.w3, experts.w1, axis: 1)\n\"x.gate_up_{t:blocks,scales}\" = "
        "mxfp4(interleave(experts.w3, experts.w1, axis: -2))\n}";
    HfParam p[] = {{"experts.w1", 3, {1, 2, 32}}, {"experts.w3", 3, {1, 2, 32}}};
    HfTensor plain[] = {{"x.0.up", F32, 2, {2, 32}}, {"x.0.gate", F32, 2, {2, 32}}},
             fused[] = {{"x.gate_up", F32, 3, {1, 4, 32}}};
    HfTensor mx[] = {{"x.gate_up_blocks", U8, 4, {1, 4, 1, 16}}, {"x.gate_up_scales", U8, 3, {1, 4, 1}}};
    assert_true(match(rows, plain, 2, p, 2).ok);
    assert_true(match(rows, fused, 1, p, 2).ok);
    Matched m = match(rows, mx, 2, p, 2);
    assert_true(m.ok);
    assert_int_equal(m.out.n, 1);
    assert_true(m.out.at[0].mxfp4);
    assert_int_equal(m.out.at[0].scales, 1);
    mx[0].dim[2] = 2;
    assert_says(match(rows, mx, 2, p, 2).text, "are not MXFP4 of [1, 4, 32]");
    HfTensor both[] = {plain[0], plain[1], fused[0]};
    assert_says(match(rows, both, 3, p, 2).text, "2 parameters are covered twice");
}

// ---- config hf -----------------------------------------------------------------------------------------

static const char program_text[] = "model tiny(tokens: i32[B, S], D = 32, N = 8, d: int = D / N, act = "
                                   "\"silu\", dense: list = [], pad: int = none) {\n"
                                   "  param embed[D, D] = normal(0.02)\n"
                                   "  return take(embed, tokens)\n"
                                   "}\n"
                                   "config hf \"tiny\" \"tiny2\" {\n"
                                   "  D     = .hidden.size ?? .hidden_size\n"
                                   "  N     = .heads\n"
                                   "  d     = .head_dim ?? D / N\n"
                                   "  dense = .dense ?? []\n"
                                   "  pad   = .pad_token_id\n"
                                   "  require .act == \"silu\"\n"
                                   "  ignore .noise\n"
                                   "}\n";

static Program *configured(const char *json, const char **text, bool *ok) {
    const char *path = arena_printf(arena, "%s/tiny_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    int fd = mkstemp((char *)path);
    FILE *f = fdopen(fd, "w");
    fputs(program_text, f);
    fclose(f);
    Diag *d = diag_new(arena);
    Program *p = program_load(arena, d, path, "models");
    remove(path);
    if (!p || diag_n_errors(d)) fail_msg("%s", messages(d));
    *ok = hf_configure(p, arena, json, "config.json");
    *text = messages(d);
    return p;
}

static int64_t hyper(Program *p, const char *name) {
    Val v = program_hyper(p, name);
    int64_t n = -1;
    assert_int_equal(v.kind, V_NUM);
    assert_true(num_is_int(v.num, &n));
    return n;
}

static void test_config(void **state) {
    const char *text;
    bool ok;
    // 35 / 8 is no whole number, but d's default is never read
    Program *p = configured("{\"hidden_size\": 35, \"heads\": 5, \"act\": \"silu\", \"noise\": 0.5, "
                            "\"pad_token_id\": null, \"dense\": [1, 3]}",
                            &text, &ok);
    if (!ok || *text) fail_msg("%s", text);
    assert_int_equal(hyper(p, "D"), 35);
    assert_int_equal(hyper(p, "d"), 7);
    assert_int_equal(program_hyper(p, "pad").kind, V_NONE);
    assert_int_equal(program_hyper(p, "dense").list->n, 2);
    p = configured("{\"hidden\": {\"size\": 64}, \"heads\": 8, \"head_dim\": 16, \"act\": \"silu\", "
                   "\"pad_token_id\": 3}",
                   &text, &ok);
    assert_true(ok);
    assert_int_equal(hyper(p, "d"), 16);
    assert_int_equal(hyper(p, "pad"), 3);
}

static void test_config_that_does_not_fit(void **state) {
    const char *text;
    bool ok;
    configured("{\"hidden_size\": 32, \"heads\": 8, \"act\": \"gelu\"}", &text, &ok);
    assert_false(ok);
    assert_says(text, "config.json: act is \"gelu\"; this model cannot represent it");
    configured("{\"hidden_size\": 32, \"heads\": 8, \"act\": \"silu\", \"banana\": 1}", &text, &ok);
    assert_true(ok);
    assert_says(text, "no row reads banana");
    configured("{\"hidden_size\": \"wide\", \"heads\": 8, \"act\": \"silu\"}", &text, &ok);
    assert_false(ok);
    assert_says(text, "'D' is a number, not \"wide\"");
    // kinds are looked at when all rows are in
    Program *p = configured("{\"hidden_size\": 35, \"heads\": 8, \"act\": \"silu\"}", &text, &ok);
    assert_true(ok);
    assert_int_equal(program_hyper(p, "d").kind, V_ERROR);
    assert_says(messages(program_diag(p)), "'d' is a whole number, not 4.375");
    configured("{\"hidden_size\": 32,", &text, &ok);
    assert_false(ok);
    assert_says(text, "config.json:1:");
    configured("[]", &text, &ok);
    assert_says(text, "an object is expected");
}

static void test_families(void **state) {
    const char *path = hf_find_model(arena, "models", "mixtral");
    assert_non_null(path);
    assert_string_equal(path, "models/mixtral.moe");
    assert_string_equal(hf_find_model(arena, "models", "nllb-moe"), "models/nllb_moe.moe");
    assert_null(hf_find_model(arena, "models", "mixtra"));
    assert_null(hf_find_model(arena, "nowhere", "mixtral"));
}

int main(void) {
#define CASE(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {CASE(test_elements_and_transposition),
                                       CASE(test_joins),
                                       CASE(test_reshapes),
                                       CASE(test_mxfp4),
                                       CASE(test_rows),
                                       CASE(test_rows_that_do_not_fit),
                                       CASE(test_alternatives),
                                       CASE(test_config),
                                       CASE(test_config_that_does_not_fit),
                                       CASE(test_families)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
