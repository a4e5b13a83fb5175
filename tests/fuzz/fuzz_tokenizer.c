// vocab.json, merges.txt and a text for them; and any bytes through tokenizers that are whole.
#define _GNU_SOURCE // memmem
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/ids.h"

static void must_be_whole(const RtTokenizer *t, const RtIds *ids, const char *text, size_t n) {
    size_t at = 0;
    for (int64_t i = 0; i < ids->n; i++) {
        size_t size;
        const char *piece = t->piece(t, ids->at[i], &size);
        assert(piece && size <= n - at && !memcmp(piece, text + at, size));
        at += size;
    }
    assert(at == n);
}

// One character after the other gives the same text as all at once.
static void decode_in_pieces(const char *bytes, size_t n, const char *want, size_t n_want) {
    RtUtf8 u = {0};
    size_t at = 0, n_out;
    for (size_t i = 0; i <= n; i++) {
        const char *out = i < n ? rt_utf8_add(&u, bytes + i, 1, &n_out) : rt_utf8_end(&u, &n_out);
        assert(n_out <= n_want - at && !memcmp(out, want + at, n_out));
        at += n_out;
    }
    assert(at == n_want);
    rt_utf8_free(&u);
}

void fuzz_ids(const RtTokenizer *t, const char *text, size_t n, bool whole) {
    RtIds ids = {0}, parts = {0};
    RtError e;
    RtStatus status = t->encode(t, text, n, false, &ids, &e);
    assert(status == RT_OK || !whole);
    for (int64_t i = 0; i < ids.n; i++) assert(ids.at[i] >= 0 && ids.at[i] < t->vocab);
    if (whole) {
        must_be_whole(t, &ids, text, n);
        size_t from = 0;
        for (size_t at = 1; at <= n; at++)
            if (at == n || t->may_cut(text, n, at)) {
                assert(t->encode(t, text + from, at - from, false, &parts, &e) == RT_OK);
                from = at;
            }
        assert(parts.n == ids.n && (!ids.n || !memcmp(parts.at, ids.at, (size_t)ids.n * sizeof *ids.at)));
    }
    if (status == RT_OK) {
        size_t n_text;
        char *decoded = rt_decode(t, ids.at, ids.n, false, &n_text);
        assert(decoded);
        if (whole) decode_in_pieces(text, n, decoded, n_text);
        free(decoded);
    }
    ids.n = 0;
    t->encode(t, text, n, true, &ids, &e);
    static const int32_t nobody[] = {-1, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 3; i++) {
        size_t size;
        assert(!t->piece(t, nobody[i], &size));
        t->special(t, nobody[i]);
    }
    free(ids.at);
    free(parts.at);
}

void fuzz_tokenizer(const uint8_t *data, size_t n) {
    static const char cut[] = "\n====\n";
    char *text = malloc(n + 1), *part[3];
    size_t size[3] = {0};
    memcpy(text, data, n);
    text[n] = 0;
    int parts = 0;
    for (char *at = text, *end; parts < 3; at = end + sizeof cut - 1) {
        end = parts < 2 ? memmem(at, n - (size_t)(at - text), cut, sizeof cut - 1) : NULL;
        part[parts] = at;
        size[parts++] = end ? (size_t)(end - at) : n - (size_t)(at - text);
        if (!end) break;
    }
    mkdir(fuzz_path("tokenizer"), 0700);
    fuzz_file("tokenizer/vocab.json", part[0], size[0]);
    fuzz_file("tokenizer/merges.txt", parts > 1 ? part[1] : "", parts > 1 ? size[1] : 0);
    RtTokenizer *t;
    RtError e;
    if (rt_tokenizer_open("gpt2", fuzz_path("tokenizer"), &t, &e) == RT_OK) {
        if (parts > 2) fuzz_ids(t, part[2], size[2], false);
        rt_tokenizer_close(t);
    }
    free(text);
}
