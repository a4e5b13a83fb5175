// What all tokenizers share, and the one for bytes.
#include "runtime/tokenizer.h"

#include <stdlib.h>
#include <string.h>

void rt_ids_add(RtIds *ids, int32_t id) {
    if (ids->n == ids->cap) {
        ids->cap = ids->cap ? ids->cap * 2 : 256;
        ids->at = realloc(ids->at, (size_t)ids->cap * sizeof *ids->at);
        if (!ids->at) abort();
    }
    ids->at[ids->n++] = id;
}

// ---- bytes: the id is the byte --------------------------------------------------------------------------

static RtStatus bytes_encode(const RtTokenizer *t, const char *text, size_t n, bool specials, RtIds *out,
                             RtError *e) {
    (void)t, (void)specials, (void)e;
    for (size_t i = 0; i < n; i++) rt_ids_add(out, (unsigned char)text[i]);
    return RT_OK;
}

#define ROW4(x) x, x + 1, x + 2, x + 3
#define ROW16(x) ROW4(x), ROW4(x + 4), ROW4(x + 8), ROW4(x + 12)
#define ROW64(x) ROW16(x), ROW16(x + 16), ROW16(x + 32), ROW16(x + 48)
static const unsigned char all_bytes[256] = {ROW64(0), ROW64(64), ROW64(128), ROW64(192)};

static const char *bytes_piece(const RtTokenizer *t, int32_t id, size_t *n) {
    (void)t;
    *n = id >= 0 && id < 256;
    return *n ? (const char *)&all_bytes[id] : NULL;
}

static bool bytes_special(const RtTokenizer *t, int32_t id) { return (void)t, (void)id, false; }
static bool bytes_may_cut(const char *text, size_t n, size_t at) {
    return (void)text, (void)n, (void)at, true;
}
static void bytes_close(RtTokenizer *t) { free(t); }

RtStatus rt_tokenizer_open(const char *kind, const char *dir, RtTokenizer **out, RtError *e) {
    *out = NULL;
    if (!strcmp(kind, "gpt2")) {
        if (!dir)
            return rt_fail(e, RT_BAD_SETTING,
                           "tokenizer gpt2 needs a folder with vocab.json and merges.txt: gpt2(\"DIR\")");
        return rt_tokenizer_open_gpt2(dir, out, e);
    }
    if (strcmp(kind, "bytes") != 0)
        return rt_fail(e, RT_BAD_SETTING, "there is no tokenizer '%s'; there are bytes and gpt2", kind);
    RtTokenizer *t = calloc(1, sizeof *t);
    if (!t) return rt_fail(e, RT_NO_MEMORY, "no memory for a tokenizer");
    *t = (RtTokenizer){.kind = "bytes",
                       .vocab = 256,
                       .end = -1,
                       .hash = 1,
                       .encode = bytes_encode,
                       .piece = bytes_piece,
                       .special = bytes_special,
                       .may_cut = bytes_may_cut,
                       .close = bytes_close};
    *out = t;
    return RT_OK;
}

void rt_tokenizer_close(RtTokenizer *t) {
    if (t) t->close(t);
}

// ---- whole characters -----------------------------------------------------------------------------------

// How many of bytes[n], n >= 1, are the first character (*good), its ill-formed beginning (not good), or, 0,
// a beginning that may still become one.  Table 3-7 of the Unicode standard.
static size_t utf8_step(const unsigned char *b, size_t n, bool *good) {
    static const struct { unsigned char first, last, low, high, length;
    } row[] = {{0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
               {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
               {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    *good = false;
    for (size_t r = 0; r < sizeof row / sizeof *row; r++) {
        if (b[0] < row[r].first || b[0] > row[r].last) continue;
        for (size_t i = 1; i < row[r].length; i++) {
            if (i == n) return 0;
            bool continues = i == 1 ? b[1] >= row[r].low && b[1] <= row[r].high : (b[i] & 0xc0) == 0x80;
            if (!continues) return i;
        }
        *good = true;
        return row[r].length;
    }
    return 1;
}

static void utf8_put(RtUtf8 *u, const void *bytes, size_t n) {
    if (u->n + n + 1 > u->cap) {
        u->cap = 2 * (u->n + n + 64);
        u->text = realloc(u->text, u->cap);
        if (!u->text) abort();
    }
    memcpy(u->text + u->n, bytes, n);
    u->n += n;
    u->text[u->n] = 0;
}

static const char replacement[] = "\xef\xbf\xbd";

const char *rt_utf8_add(RtUtf8 *u, const char *bytes, size_t n, size_t *n_out) {
    u->n = 0;
    utf8_put(u, "", 0);
    for (size_t i = 0; i < n; i++) {
        u->held[u->n_held++] = (unsigned char)bytes[i];
        bool good;
        for (size_t step; u->n_held && (step = utf8_step(u->held, (size_t)u->n_held, &good));) {
            if (good) utf8_put(u, u->held, step);
            else utf8_put(u, replacement, 3);
            u->n_held -= (int)step;
            memmove(u->held, u->held + step, (size_t)u->n_held);
        }
    }
    *n_out = u->n;
    return u->text;
}

const char *rt_utf8_end(RtUtf8 *u, size_t *n_out) {
    u->n = 0;
    utf8_put(u, "", 0);
    if (u->n_held) utf8_put(u, replacement, 3);
    u->n_held = 0;
    *n_out = u->n;
    return u->text;
}

void rt_utf8_free(RtUtf8 *u) {
    free(u->text);
    *u = (RtUtf8){.n_held = 0};
}

char *rt_decode(const RtTokenizer *t, const int32_t *ids, int64_t n, bool skip_special, size_t *n_out) {
    RtUtf8 bytes = {.n_held = 0}, whole = {.n_held = 0};
    utf8_put(&bytes, "", 0);
    for (int64_t i = 0; i < n; i++) {
        size_t length;
        const char *piece = t->piece(t, ids[i], &length);
        if (piece && !(skip_special && t->special(t, ids[i]))) utf8_put(&bytes, piece, length);
    }
    rt_utf8_add(&whole, bytes.text, bytes.n, n_out);
    if (whole.n_held) utf8_put(&whole, replacement, 3);
    *n_out = whole.n;
    rt_utf8_free(&bytes);
    return whole.text;
}
