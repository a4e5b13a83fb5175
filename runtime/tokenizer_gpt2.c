// GPT-2's byte-level BPE, from vocab.json and merges.txt.
//
//   text -> words, by GPT-2's regular expression -> each word's bytes as symbols -> again and again the
//   adjacent pair that stands first in merges.txt becomes one symbol -> ids
//
// Short words are merged by looking at all pairs again, long ones with a heap of pairs over a linked list:
// O(n log n).
#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/files.h"
#include "runtime/tokenizer.h"

// White space as Unicode has it: PCRE2's \s with UCP also takes U+180E.
#define SPACE                                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
    "3000}"
static const char pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE
                              "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";
static const char end_of_text[] = "<|endoftext|>";

typedef struct { int32_t left, right, rank, made; } Merge;      // rank < 0: empty place of the table

typedef struct {
    RtTokenizer base;
    pcre2_code *regex;
    Merge   *merge;                 // open addressing
    uint32_t merge_mask;
    int32_t  byte_id[256];
    char    *text;                  // the bytes of all pieces
    uint32_t *at;                   // [vocab + 1]: piece i is text[at[i] .. at[i + 1])
} Gpt2;

// ---- loading --------------------------------------------------------------------------------------------

// vocab.json writes bytes as printable characters: itself if printable in Latin-1, else U+0100 + a running
// number.
static void fill_byte_chars(uint16_t *of_byte) {
    int next = 256;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        of_byte[b] = (uint16_t)(printable ? b : next++);
    }
}

static size_t put_char(char *out, uint16_t c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

// The bytes a piece of vocab.json stands for; false if it holds a character that stands for none.
static bool piece_bytes(const uint16_t *of_byte, const char *piece, char *out, size_t *n) {
    *n = 0;
    for (const unsigned char *p = (const unsigned char *)piece; *p;) {
        unsigned c = *p < 0x80             ? *p
                     : (*p & 0xe0) == 0xc0 ? (unsigned)(*p & 0x1f) << 6 | (p[1] & 0x3f)
                                           : 0xffff;
        p += *p < 0x80 ? 1 : 2;
        int b = 0;
        while (b < 256 && of_byte[b] != c) b++;
        if (b == 256) return false;
        out[(*n)++] = (char)b;
    }
    return true;
}

static RtStatus load_pieces(Gpt2 *g, const json_t *vocab, const uint16_t *of_byte, const char *path,
                            RtError *e) {
    int32_t n = (int32_t)json_object_size(vocab);
    g->base.vocab = n;
    const char **piece = calloc((size_t)n + 1, sizeof *piece);
    g->at = calloc((size_t)n + 1, sizeof *g->at);
    if (!piece || !g->at) { free(piece); return rt_fail(e, RT_NO_MEMORY, "no memory for %s", path); }
    size_t total = 0;
    const char *name;
    json_t *value;
    RtStatus s = RT_OK;
    json_object_foreach((json_t *)vocab, name, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= n || piece[id]) {
            s = rt_fail(e, RT_BAD_FILE, "%s: '%s' has id %lld; the ids must be 0 to %d, each once", path,
                        name, (long long)id, n - 1);
            break;
        }
        piece[id] = name;
        total += strlen(name);
    }
    g->text = s == RT_OK ? malloc(total + 1) : NULL;
    size_t used = 0;
    for (int32_t i = 0; s == RT_OK && i < n; i++) {
        size_t length;
        g->at[i] = (uint32_t)used;
        if (!strcmp(piece[i], end_of_text)) {
            g->base.end = i;
            length = strlen(end_of_text);
            memcpy(g->text + used, end_of_text, length);
        } else if (!piece_bytes(of_byte, piece[i], g->text + used, &length))
            s = rt_fail(e, RT_BAD_FILE, "%s: '%s' is not a piece of a byte-level vocabulary", path, piece[i]);
        used += length;
        g->at[i + 1] = (uint32_t)used;
    }
    free(piece);
    return s;
}

static uint32_t pair_hash(int32_t left, int32_t right) {
    uint64_t x = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(x >> 32);
}

static const Merge *find_merge(const Gpt2 *g, int32_t left, int32_t right) {
    for (uint32_t i = pair_hash(left, right);; i++) {
        const Merge *m = &g->merge[i & g->merge_mask];
        if (m->rank < 0) return NULL;
        if (m->left == left && m->right == right) return m;
    }
}

static int32_t vocab_id(const json_t *vocab, const char *piece) {
    const json_t *id = json_object_get(vocab, piece);
    return json_is_integer(id) ? (int32_t)json_integer_value(id) : -1;
}

static RtStatus load_merges(Gpt2 *g, const json_t *vocab, char *text, const char *path, RtError *e) {
    uint32_t lines = 0, size = 1024;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    while (size < 2 * (lines + 2)) size *= 2;
    g->merge = malloc(size * sizeof *g->merge);
    if (!g->merge) return rt_fail(e, RT_NO_MEMORY, "no memory for %s", path);
    g->merge_mask = size - 1;
    for (uint32_t i = 0; i < size; i++) g->merge[i].rank = -1;
    int32_t rank = 0;
    int number = 0;
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        line[strcspn(line, "\r")] = 0;
        if (++number == 1 && !strncmp(line, "#version", 8)) continue;
        if (!*line) continue;
        char *right = strchr(line, ' ');
        if (!right || strchr(right + 1, ' '))
            return rt_fail(e, RT_BAD_FILE, "%s:%d: a merge is two pieces with a blank between", path, number);
        *right++ = 0;
        char *joined = rt_path("%s%s", line, right);
        Merge m = {vocab_id(vocab, line), vocab_id(vocab, right), rank++, vocab_id(vocab, joined)};
        free(joined);
        if (m.left < 0 || m.right < 0 || m.made < 0)
            return rt_fail(e, RT_BAD_FILE, "%s:%d: '%s' and '%s' and their union must be in vocab.json", path,
                           number, line, right);
        if (find_merge(g, m.left, m.right)) continue;        // the first one counts
        uint32_t i = pair_hash(m.left, m.right);
        while (g->merge[i & g->merge_mask].rank >= 0) i++;
        g->merge[i & g->merge_mask] = m;
    }
    return RT_OK;
}

static RtStatus compile_regex(Gpt2 *g, RtError *e) {
    int code;
    PCRE2_SIZE at;
    g->regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &code, &at, NULL);
    if (!g->regex) {
        char why[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return rt_fail(e, RT_BAD_FILE, "PCRE2 refuses the word pattern at %zu: %s", (size_t)at, why);
    }
    pcre2_jit_compile(g->regex, PCRE2_JIT_COMPLETE);         // without it, matching is only slower
    return RT_OK;
}

// ---- encoding -------------------------------------------------------------------------------------------

// One encode call's memory.
typedef struct {
    int32_t *id, *prev, *next;      // symbols of a word as a linked list by index
    uint64_t *heap;                 // rank << 32 | index of the left symbol
    int64_t cap, n_heap;
} Work;

static void work_reserve(Work *w, int64_t n) {
    if (n <= w->cap) return;
    w->cap = 2 * n;
    size_t room = (size_t)w->cap;
    w->id = realloc(w->id, room * sizeof *w->id);
    w->prev = realloc(w->prev, room * sizeof *w->prev);
    w->next = realloc(w->next, room * sizeof *w->next);
    w->heap = realloc(w->heap, 3 * room * sizeof *w->heap);
    if (!w->id || !w->prev || !w->next || !w->heap) abort();
}

static void merge_short(const Gpt2 *g, int32_t *id, int64_t *n) {
    for (;;) {
        const Merge *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < *n; i++) {
            const Merge *m = find_merge(g, id[i], id[i + 1]);
            if (m && (!best || m->rank < best->rank)) best = m, at = i;
        }
        if (!best) return;
        id[at] = best->made;
        memmove(id + at + 1, id + at + 2, (size_t)(*n - at - 2) * sizeof *id);
        --*n;
    }
}

static void heap_push(Work *w, const Gpt2 *g, int64_t left) {
    if (left < 0 || w->next[left] < 0) return;
    const Merge *m = find_merge(g, w->id[left], w->id[w->next[left]]);
    if (!m) return;
    uint64_t item = (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)left;
    int64_t i = w->n_heap++;
    for (; i && w->heap[(i - 1) / 2] > item; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = item;
}

static uint64_t heap_pop(Work *w) {
    uint64_t top = w->heap[0], last = w->heap[--w->n_heap];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= last) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

// An entry is stale if its pair no longer has its rank: then it is skipped (the new pair has an entry of its
// own).
static void merge_long(const Gpt2 *g, Work *w, int64_t *n) {
    w->n_heap = 0;
    for (int64_t i = 0; i < *n; i++) {
        w->prev[i] = (int32_t)i - 1;
        w->next[i] = i + 1 < *n ? (int32_t)i + 1 : -1;
    }
    for (int64_t i = 0; i < *n; i++) heap_push(w, g, i);
    while (w->n_heap) {
        uint64_t item = heap_pop(w);
        int32_t left = (int32_t)(uint32_t)item, right = w->id[left] < 0 ? -1 : w->next[left];
        if (right < 0) continue;
        const Merge *m = find_merge(g, w->id[left], w->id[right]);
        if (!m || (uint32_t)m->rank != item >> 32) continue;
        w->id[left] = m->made;
        w->id[right] = -1;
        w->next[left] = w->next[right];
        if (w->next[right] >= 0) w->prev[w->next[right]] = left;
        heap_push(w, g, w->prev[left]);
        heap_push(w, g, left);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i >= 0; i = w->next[i])
        w->prev[kept++] = w->id[i]; // prev[] is free to write: kept <= i
    memcpy(w->id, w->prev, (size_t)kept * sizeof *w->id);
    *n = kept;
}

enum { SHORT_WORD = 24 };

static void encode_word(const Gpt2 *g, Work *w, const char *word, size_t bytes, RtIds *out) {
    int64_t n = (int64_t)bytes;
    work_reserve(w, n);
    for (int64_t i = 0; i < n; i++) w->id[i] = g->byte_id[(unsigned char)word[i]];
    if (n <= SHORT_WORD) merge_short(g, w->id, &n);
    else merge_long(g, w, &n);
    for (int64_t i = 0; i < n; i++) rt_ids_add(out, w->id[i]);
}

// Bytes the pattern never matches are not UTF-8; each such run is a word.
static RtStatus encode_plain(const Gpt2 *g, Work *w, pcre2_match_data *match, const char *text, size_t n,
                             RtIds *out, RtError *e) {
    size_t done = 0;
    while (done < n) {
        int found = pcre2_match(g->regex, (PCRE2_SPTR)text, n, done, PCRE2_NOTEMPTY, match, NULL);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
            char why[128];
            pcre2_get_error_message(found, (PCRE2_UCHAR *)why, sizeof why);
            return rt_fail(e, RT_BAD_FILE, "the text cannot be split into words at byte %zu: %s", done, why);
        }
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
        size_t begin = found < 0 ? n : range[0];
        if (begin > done) encode_word(g, w, text + done, begin - done, out);
        done = begin;
        if (found < 0) break;
        encode_word(g, w, text + done, range[1] - done, out);
        done = range[1];
    }
    return RT_OK;
}

static const char *find_end(const char *text, size_t n) {
    size_t length = sizeof end_of_text - 1;
    for (const char *at = text; (size_t)(text + n - at) >= length; at++) {
        at = memchr(at, '<', (size_t)(text + n - at) - length + 1);
        if (!at) return NULL;
        if (!memcmp(at, end_of_text, length)) return at;
    }
    return NULL;
}

static RtStatus gpt2_encode(const RtTokenizer *t, const char *text, size_t n, bool specials, RtIds *out,
                            RtError *e) {
    const Gpt2 *g = (const Gpt2 *)t;
    Work w = {.cap = 0};
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) return rt_fail(e, RT_NO_MEMORY, "no memory for a match");
    RtStatus s = RT_OK;
    while (n && s == RT_OK) {
        const char *end = specials && g->base.end >= 0 ? find_end(text, n) : NULL;
        size_t plain = end ? (size_t)(end - text) : n;
        s = encode_plain(g, &w, match, text, plain, out, e);
        if (end) rt_ids_add(out, g->base.end), plain += sizeof end_of_text - 1;
        text += plain;
        n -= plain;
    }
    pcre2_match_data_free(match);
    free(w.id);
    free(w.prev);
    free(w.next);
    free(w.heap);
    return s;
}

// ---- the rest of the interface --------------------------------------------------------------------------

static const char *gpt2_piece(const RtTokenizer *t, int32_t id, size_t *n) {
    const Gpt2 *g = (const Gpt2 *)t;
    *n = 0;
    if (id < 0 || id >= t->vocab) return NULL;
    *n = g->at[id + 1] - g->at[id];
    return g->text + g->at[id];
}

static bool gpt2_special(const RtTokenizer *t, int32_t id) { return id == t->end && id >= 0; }

// Behind a single line end between two characters that are no white space: the pattern splits there whatever
// follows.
static bool gpt2_may_cut(const char *text, size_t n, size_t at) {
    if (at < 2 || at >= n || text[at - 1] != '\n') return false;
    unsigned char before = (unsigned char)text[at - 2], after = (unsigned char)text[at];
    return before > ' ' && before < 0x7f && after > ' ' && after < 0x7f;
}

static void gpt2_close(RtTokenizer *t) {
    Gpt2 *g = (Gpt2 *)t;
    pcre2_code_free(g->regex);
    free(g->merge);
    free(g->text);
    free(g->at);
    free(g);
}

static RtStatus load(Gpt2 *g, const char *vocab_path, const char *merges_path, RtError *e) {
    uint16_t of_byte[256];
    fill_byte_chars(of_byte);
    char *text = NULL, *merges = NULL;
    size_t bytes = 0, merges_bytes = 0;
    json_t *vocab = NULL;
    json_error_t where;
    RtStatus s = rt_read_file(vocab_path, &text, &bytes, e);
    if (s == RT_OK) s = rt_read_file(merges_path, &merges, &merges_bytes, e);
    if (s == RT_OK) {
        g->base.hash = XXH3_64bits_withSeed(merges, merges_bytes, XXH3_64bits(text, bytes));
        vocab = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(vocab))
            s = rt_fail(e, RT_BAD_FILE, "%s: not a JSON object (%s)", vocab_path,
                        vocab ? "another value" : where.text);
    }
    if (s == RT_OK) s = load_pieces(g, vocab, of_byte, vocab_path, e);
    for (int b = 0; s == RT_OK && b < 256; b++) {
        char piece[4] = {0};
        put_char(piece, of_byte[b]);
        g->byte_id[b] = vocab_id(vocab, piece);
        if (g->byte_id[b] < 0) s = rt_fail(e, RT_BAD_FILE, "%s: byte %d has no piece", vocab_path, b);
    }
    if (s == RT_OK) s = load_merges(g, vocab, merges, merges_path, e);
    if (s == RT_OK) s = compile_regex(g, e);
    json_decref(vocab);
    free(text);
    free(merges);
    return s;
}

RtStatus rt_tokenizer_open_gpt2(const char *dir, RtTokenizer **out, RtError *e) {
    *out = NULL;
    Gpt2 *g = calloc(1, sizeof *g);
    if (!g) return rt_fail(e, RT_NO_MEMORY, "no memory for a tokenizer");
    g->base = (RtTokenizer){.kind = "gpt2",
                            .end = -1,
                            .encode = gpt2_encode,
                            .piece = gpt2_piece,
                            .special = gpt2_special,
                            .may_cut = gpt2_may_cut,
                            .close = gpt2_close};
    char *vocab = rt_path("%s/vocab.json", dir), *merges = rt_path("%s/merges.txt", dir);
    RtStatus s = load(g, vocab, merges, e);
    free(vocab);
    free(merges);
    if (s != RT_OK) gpt2_close(&g->base);
    else *out = &g->base;
    return s;
}
