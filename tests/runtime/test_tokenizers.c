// Texts get the ids that the tokenizers library gives them, and come back byte for byte; a stream holds whole
// characters.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/files.h"
#include "runtime/tokenizer.h"

static RtTokenizer *gpt2;
static char goldens[512];

static int open_gpt2(void **state) {
    const char *root = getenv("MOEC_GOLDENS");
#ifdef MOEC_SOURCE_DIR
    if (!root) root = MOEC_SOURCE_DIR "/tests/goldens";
#endif
    if (!root) return 0;
    snprintf(goldens, sizeof goldens, "%s/tokenizers", root);
    char dir[2][600];
    snprintf(dir[0], sizeof dir[0], "%s/gpt2", goldens);
    snprintf(dir[1], sizeof dir[1], "%s/../../tokenizers/gpt2", goldens);
    for (int i = 0; i < 2 && !gpt2; i++) {
        RtError e;
        if (!rt_is_dir(dir[i])) continue;
        if (rt_tokenizer_open("gpt2", dir[i], &gpt2, &e) != RT_OK) fprintf(stderr, "%s\n", e.text);
    }
    return 0;
}
static int close_gpt2(void **state) { return rt_tokenizer_close(gpt2), 0; }

// The lines of a golden file as an array; skips the test where there is none.
static json_t *lines(const char *name) {
    char path[600], *text = NULL;
    snprintf(path, sizeof path, "%s/%s", goldens, name);
    if (!gpt2 || rt_read_file(path, &text, NULL, NULL) != RT_OK) {
        print_message("skipped: no %s (MOEC_GOLDENS names the folder)\n", *goldens ? path : "reference data");
        skip();
    }
    json_t *all = json_array();
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL);
        assert_non_null(row);
        json_array_append_new(all, row);
    }
    free(text);
    return all;
}

static const char *text_of(json_t *texts, const char *name, size_t *n) {
    size_t i;
    json_t *row;
    json_array_foreach(texts, i, row)
        if (!strcmp(json_string_value(json_object_get(row, "name")), name)) {
            json_t *text = json_object_get(row, "text");
            *n = json_string_length(text);
            return json_string_value(text);
        }
    fail_msg("no text %s", name);
    return NULL;
}

static RtIds ids_of(const json_t *row) {
    RtIds ids = {NULL, 0, 0};
    size_t i;
    json_t *id;
    json_array_foreach(json_object_get(row, "ids"), i, id) rt_ids_add(&ids, (int32_t)json_integer_value(id));
    return ids;
}

static void gpt2_encodes_as_recorded(void **state) {
    json_t *rows = lines("gpt2.encode.jsonl"), *texts = lines("texts.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_object_get(row, "name"));
        size_t n = 0, n_back;
        const char *text = text_of(texts, name, &n);
        RtIds expected = ids_of(row), got = {NULL, 0, 0};
        RtError e;
        if (gpt2->encode(gpt2, text, n, json_is_true(json_object_get(row, "parse_special")), &got, &e) !=
            RT_OK)
            fail_msg("%s", e.text);
        bool same = got.n == expected.n && (!got.n || !memcmp(got.at, expected.at, (size_t)got.n * 4));
        if (!same) fail_msg("%s: %lld ids, expected %lld", name, (long long)got.n, (long long)expected.n);
        char *back = rt_decode(gpt2, got.at, got.n, false, &n_back);
        json_t *decoded = json_object_get(row, "decoded");
        assert_int_equal(n_back, decoded ? json_string_length(decoded) : n);
        assert_memory_equal(back, decoded ? json_string_value(decoded) : text, n_back);
        free(back);
        json_t *no_special = json_object_get(row, "decoded_skip_special");
        back = rt_decode(gpt2, got.at, got.n, true, &n_back);
        if (no_special) assert_memory_equal(back, json_string_value(no_special), n_back);
        free(back);
        free(got.at);
        free(expected.at);
    }
    print_message("%zu encodings\n", json_array_size(rows));
    json_decref(rows);
    json_decref(texts);
}

static void gpt2_streams_whole_characters(void **state) {
    json_t *rows = lines("gpt2.stream.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        RtIds ids = ids_of(row);
        RtUtf8 u = {.n_held = 0};
        for (int64_t k = 0; k < ids.n; k++) {
            size_t n_piece, n;
            const char *piece = gpt2->piece(gpt2, ids.at[k], &n_piece),
                       *text = rt_utf8_add(&u, piece, n_piece, &n);
            json_t *expected = json_array_get(json_object_get(row, "prompt"), (size_t)k);
            if (n != json_string_length(expected) || memcmp(text, json_string_value(expected), n) != 0)
                fail_msg("%s: id %lld gives '%s'", json_string_value(json_object_get(row, "name")),
                         (long long)k, text);
        }
        rt_utf8_free(&u);
        free(ids.at);
    }
    json_decref(rows);
}

static void gpt2_decodes_damaged_ids(void **state) {
    json_t *rows = lines("gpt2.damaged.jsonl"), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        RtIds ids = ids_of(row);
        size_t n;
        char *text = rt_decode(gpt2, ids.at, ids.n, false, &n);
        json_t *expected = json_object_get(row, "decoded");
        if (n != json_string_length(expected) || memcmp(text, json_string_value(expected), n) != 0)
            fail_msg("%s: '%s' instead of '%s'", json_string_value(json_object_get(row, "name")), text,
                     json_string_value(expected));
        free(text);
        free(ids.at);
    }
    json_decref(rows);
}

// A text may be cut where may_cut says so: the parts have the ids of the whole.
static void gpt2_parts_have_the_ids_of_the_whole(void **state) {
    json_t *texts = lines("texts.jsonl"), *row;
    size_t i;
    int cuts = 0;
    json_array_foreach(texts, i, row) {
        json_t *t = json_object_get(row, "text");
        const char *text = json_string_value(t);
        size_t n = json_string_length(t);
        for (size_t at = 1; at < n; at++) {
            if (!gpt2->may_cut(text, n, at)) continue;
            RtIds whole = {NULL, 0, 0}, parts = {NULL, 0, 0};
            RtError e;
            assert_int_equal(gpt2->encode(gpt2, text, n, true, &whole, &e), RT_OK);
            assert_int_equal(gpt2->encode(gpt2, text, at, true, &parts, &e), RT_OK);
            assert_int_equal(gpt2->encode(gpt2, text + at, n - at, true, &parts, &e), RT_OK);
            assert_int_equal(whole.n, parts.n);
            assert_memory_equal(whole.at, parts.at, (size_t)whole.n * 4);
            free(whole.at), free(parts.at);
            cuts++;
        }
    }
    print_message("%d cuts\n", cuts);
    json_decref(texts);
}

// Words of thousands of letters and invalid UTF-8 come back as they were.
static void gpt2_long_words_and_invalid_bytes(void **state) {
    if (!gpt2) skip();
    char word[4001];
    RtError e;
    for (int seed = 1; seed < 6; seed++) {
        unsigned x = (unsigned)seed;
        for (int i = 0; i < 4000; i++) word[i] = "etaoinshrdlu"[(x = x * 1664525 + 1013904223) >> 20 & 7];
        RtIds ids = {NULL, 0, 0};
        assert_int_equal(gpt2->encode(gpt2, word, 4000, true, &ids, &e), RT_OK);
        assert_in_range(ids.n, 500, 3000);
        size_t n;
        char *back = rt_decode(gpt2, ids.at, ids.n, false, &n);
        assert_int_equal(n, 4000);
        assert_memory_equal(back, word, 4000);
        free(back);
        free(ids.at);
    }
    static const char broken[] = "abc \xff\xfe def\xe2\x82 ok\xf0\x9f\x98 \xc3";
    RtIds ids = {NULL, 0, 0};
    assert_int_equal(gpt2->encode(gpt2, broken, sizeof broken - 1, true, &ids, &e), RT_OK);
    char bytes[64];
    size_t n = 0;
    for (int64_t i = 0; i < ids.n; i++) {
        size_t length;
        const char *piece = gpt2->piece(gpt2, ids.at[i], &length);
        memcpy(bytes + n, piece, length);
        n += length;
    }
    assert_int_equal(n, sizeof broken - 1);
    assert_memory_equal(bytes, broken, n);
    free(ids.at);
    assert_null(gpt2->piece(gpt2, -1, &n));
    assert_null(gpt2->piece(gpt2, gpt2->vocab, &n));
}

static void bytes_are_their_own_ids(void **state) {
    RtTokenizer *t;
    RtError e;
    assert_int_equal(rt_tokenizer_open("bytes", NULL, &t, &e), RT_OK);
    RtIds ids = {NULL, 0, 0};
    assert_int_equal(t->encode(t, "A\xc3\xa9\0z", 5, true, &ids, &e), RT_OK);
    assert_int_equal(ids.n, 5);
    assert_int_equal(ids.at[1], 0xc3);
    size_t n;
    char *text = rt_decode(t, ids.at, ids.n, false, &n);
    assert_memory_equal(text, "A\xc3\xa9\0z", 5);
    free(text);
    free(ids.at);
    rt_tokenizer_close(t);
    assert_int_equal(rt_tokenizer_open("byte", NULL, &t, &e), RT_BAD_SETTING);
    assert_int_equal(rt_tokenizer_open("gpt2", "/nonexistent", &t, &e), RT_IO);
    assert_non_null(strstr(e.text, "vocab.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_encodes_as_recorded),
        cmocka_unit_test(gpt2_streams_whole_characters),
        cmocka_unit_test(gpt2_decodes_damaged_ids),
        cmocka_unit_test(gpt2_parts_have_the_ids_of_the_whole),
        cmocka_unit_test(gpt2_long_words_and_invalid_bytes),
        cmocka_unit_test(bytes_are_their_own_ids),
    };
    return cmocka_run_group_tests(tests, open_gpt2, close_gpt2);
}
