// Text files -> tokens in one mapped cache file -> samples in a computed order.
//
// The cache file: 64 bytes of header, then the tokens, 1, 2 or 4 bytes each.  Its name is a hash of the
// texts, the tokenizer and data.end, so a changed text is another file; it is written beside and renamed.
#include "runtime/data.h"

#include <assert.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/files.h"
#include "runtime/monitor.h"
#include "runtime/philox.h"

typedef struct {
    char     magic[8];              // "moectok1"
    uint64_t hash;                  // of the contents, as in the file's name
    int64_t  tokens;
    int32_t  width, vocab;          // bytes per token
    char     unused[32];
} CacheHeader;
_Static_assert(sizeof(CacheHeader) == 64, "tokens start aligned");

struct RtData {
    const RtTokenizer *tokenizer;
    RtMap    map;                   // the cache file
    unsigned char *memory;          // instead of it, where no cache could be written
    const unsigned char *token;
    int      width;
    int64_t  n_tokens, n_train, sequence, samples, held_out;
    uint64_t seed, hash;
    bool     shuffle, cached;
    char    *cache_path;
};

static int32_t token_at(const RtData *d, int64_t i) {
    if (d->width == 1) return d->token[i];
    if (d->width == 2) { uint16_t x; memcpy(&x, d->token + 2 * i, 2); return x; }
    int32_t x;
    memcpy(&x, d->token + 4 * i, 4);
    return x;
}

// ---- order ----------------------------------------------------------------------------------------------

int64_t rt_permute(int64_t i, int64_t n, uint64_t seed, uint64_t epoch) {
    int half = 1;
    while (half < 31 && (int64_t)1 << 2 * half < n) half++;
    uint32_t mask = (uint32_t)((1u << half) - 1);
    uint64_t x = (uint64_t)i;
    do {
        uint32_t left = (uint32_t)(x >> half), right = (uint32_t)x & mask;
        for (uint32_t round = 0; round < 6; round++) {
            Philox4 r = philox4((Philox4){{right, round, (uint32_t)epoch, (uint32_t)(epoch >> 32)}},
                                (uint32_t)seed, (uint32_t)(seed >> 32));
            uint32_t next = left ^ (r.at[0] & mask);
            left = right;
            right = next;
        }
        x = (uint64_t)left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

// ---- texts to tokens ------------------------------------------------------------------------------------

enum { CHUNK = 1 << 20 };           // text is cut about here, so that threads share the work

typedef struct { const char *text; size_t n; RtIds ids; RtError error; RtStatus status; } Chunk;

// Cuts text[n] where the tokenizer allows it.  The caller frees the array.
static Chunk *cut(const RtTokenizer *t, const char *text, size_t n, int *n_chunks) {
    Chunk *c = calloc(n / CHUNK + 2, sizeof *c);
    *n_chunks = 0;
    for (size_t begin = 0; c && begin < n;) {
        size_t end = n - begin > CHUNK ? begin + CHUNK : n;
        while (end < n && !t->may_cut(text, n, end)) end++;
        c[(*n_chunks)++] = (Chunk){.text = text + begin, .n = end - begin};
        begin = end;
    }
    return c;
}

// Appends the ids of one file to ids.
static RtStatus encode_file(const RtTokenizer *t, const RtMap *m, int64_t end_id, RtIds *ids, RtError *e) {
    int n;
    Chunk *c = cut(t, (const char *)m->data, m->bytes, &n);
    if (!c) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of texts");
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        c[i].status = t->encode(t, c[i].text, c[i].n, true, &c[i].ids, &c[i].error);
        rt_beat();
    }
    RtStatus s = RT_OK;
    for (int i = 0; i < n; i++) {
        if (s == RT_OK && c[i].status != RT_OK) s = rt_fail(e, c[i].status, "%s", c[i].error.text);
        for (int64_t k = 0; s == RT_OK && k < c[i].ids.n; k++) rt_ids_add(ids, c[i].ids.at[k]);
        free(c[i].ids.at);
    }
    free(c);
    if (s == RT_OK && end_id >= 0) rt_ids_add(ids, (int32_t)end_id);
    return s;
}

static unsigned char *pack(const RtIds *ids, int width) {
    unsigned char *packed = malloc((size_t)(ids->n * width) + 1);
    for (int64_t i = 0; packed && i < ids->n; i++)
        for (int b = 0; b < width; b++)
            packed[i * width + b] = (unsigned char)((uint32_t)ids->at[i] >> 8 * b & 0xff);
    return packed;
}

static bool use_cache_file(RtData *d, const char *path, uint64_t hash, int width) {
    RtMap m;
    if (rt_map_file(path, &m, NULL) != RT_OK) return false;
    const CacheHeader *h = (const CacheHeader *)m.data;
    bool good = m.bytes >= sizeof *h && !memcmp(h->magic, "moectok1", 8) && h->hash == hash &&
                h->width == width && h->tokens >= 0 && h->tokens <= (int64_t)(m.bytes - sizeof *h) / width &&
                m.bytes == sizeof *h + (size_t)(h->tokens * width);
    if (!good) {
        rt_unmap(&m);
        return false;
    }
    d->map = m;
    d->token = m.data + sizeof *h;
    d->n_tokens = h->tokens;
    return true;
}

// A cache that can't be written (no space, read-only) is no failure: the tokens stay in memory.
static RtStatus store(RtData *d, const RtIds *ids, const char *dir, uint64_t hash, int width, RtError *e) {
    size_t bytes = (size_t)(ids->n * width);
    unsigned char *packed = pack(ids, width), *file = packed ? malloc(sizeof(CacheHeader) + bytes) : NULL;
    if (!file) {
        free(packed);
        return rt_fail(e, RT_NO_MEMORY, "no memory for %lld tokens", (long long)ids->n);
    }
    CacheHeader h = {
        .magic = "moectok", .hash = hash, .tokens = ids->n, .width = width, .vocab = d->tokenizer->vocab};
    h.magic[7] = '1';
    memcpy(file, &h, sizeof h);
    memcpy(file + sizeof h, packed, bytes);
    bool written = rt_make_dirs(dir, NULL) == RT_OK &&
                   rt_write_file(d->cache_path, file, sizeof h + bytes, NULL) == RT_OK;
    free(file);
    if (written && use_cache_file(d, d->cache_path, hash, width)) {
        free(packed);
        return RT_OK;
    }
    free(d->cache_path);
    d->cache_path = NULL;
    d->memory = packed;
    d->token = packed;
    d->n_tokens = ids->n;
    return RT_OK;
}

static RtStatus read_tokens(RtData *d, const RtMap *file, int n_files, int64_t end_id, const char *dir,
                            RtError *e) {
    uint64_t hash = d->tokenizer->hash + (uint64_t)(end_id + 1) * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < n_files; i++) hash = XXH3_64bits_withSeed(file[i].data, file[i].bytes, hash);
    d->hash = hash;
    d->width = d->tokenizer->vocab <= 256 ? 1 : d->tokenizer->vocab <= 65536 ? 2 : 4;
    char hex[17];
    rt_hex64(hash, hex);
    d->cache_path = rt_path("%s/tokens-%s-%s.bin", dir, d->tokenizer->kind, hex);
    d->cached = use_cache_file(d, d->cache_path, hash, d->width);
    if (d->cached) return RT_OK;
    RtIds ids = {NULL, 0, 0};
    RtStatus s = RT_OK;
    for (int i = 0; i < n_files && s == RT_OK; i++) s = encode_file(d->tokenizer, &file[i], end_id, &ids, e);
    if (s == RT_OK) s = store(d, &ids, dir, hash, d->width, e);
    free(ids.at);
    return s;
}

// ---- opening --------------------------------------------------------------------------------------------

static RtStatus open_files(RtData *d, const RtSettings *s, const char *cache_dir, RtError *e) {
    if (!s->source.kind)
        return rt_fail(e, RT_BAD_SETTING,
                       "there is nothing to train on: set data.source, for instance to text(\"kjv.txt\")");
    if (strcmp(s->source.kind, "text") != 0)
        return rt_fail(e, RT_BAD_SETTING, "data.source is %s(..); this runtime reads text(\"FILE\", ..)",
                       s->source.kind);
    if (!s->source.n_args) return rt_fail(e, RT_BAD_SETTING, "data.source: text() names no file");
    if (s->end >= d->tokenizer->vocab)
        return rt_fail(e, RT_BAD_SETTING, "data.end is %lld, but the tokenizer's ids end at %d",
                       (long long)s->end, d->tokenizer->vocab - 1);
    RtMap *file = calloc((size_t)s->source.n_args, sizeof *file);
    if (!file) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of files");
    char *dir = cache_dir ? rt_path("%s", cache_dir) : rt_cache_dir();
    RtStatus status = RT_OK;
    for (int i = 0; i < s->source.n_args && status == RT_OK; i++)
        status = rt_add_context(e, rt_map_file(s->source.arg[i], &file[i], e), "data.source");
    if (status == RT_OK) status = read_tokens(d, file, s->source.n_args, s->end, dir, e);
    for (int i = 0; i < s->source.n_args; i++) rt_unmap(&file[i]);
    free(file);
    free(dir);
    return status;
}

RtStatus rt_open_tokenizer(const RtSettings *s, RtTokenizer **out, RtError *e) {
    const RtCallSetting *t = &s->tokenizer;
    RtStatus status = rt_tokenizer_open(t->kind, t->n_args ? t->arg[0] : NULL, out, e);
    if (status != RT_OK) return rt_add_context(e, status, "data.tokenizer");
    if (!s->vocabulary || (*out)->vocab <= s->vocabulary) return RT_OK;
    status = rt_fail(e, RT_BAD_SETTING,
                     "data.tokenizer: %s has %d ids, but the model has room for %lld: compile it with --set V=%d",
                     t->kind, (int)(*out)->vocab, (long long)s->vocabulary, (int)(*out)->vocab);
    rt_tokenizer_close(*out);
    *out = NULL;
    return status;
}

RtStatus rt_data_open(const RtSettings *s, int64_t sequence, const RtTokenizer *t, const char *cache_dir,
                      RtData **out, RtError *e) {
    *out = NULL;
    RtData *d = calloc(1, sizeof *d);
    if (!d) return rt_fail(e, RT_NO_MEMORY, "no memory for data");
    d->tokenizer = t;
    d->sequence = sequence;
    d->seed = s->seed;
    d->shuffle = s->shuffle;
    RtStatus status = open_files(d, s, cache_dir, e);
    if (status == RT_OK) {
        d->n_train = d->n_tokens - (int64_t)((double)d->n_tokens * s->held_out);
        d->samples = d->n_train > sequence ? (d->n_train - 1) / sequence : 0;
        int64_t rest = d->n_tokens - d->n_train;
        d->held_out = rest > sequence ? (rest - 1) / sequence : 0;
        uint64_t cut_at[4] = {d->hash, (uint64_t)d->n_train, (uint64_t)sequence, s->shuffle};
        d->hash = XXH3_64bits(cut_at, sizeof cut_at);
        if (d->samples == 0)
            status = rt_fail(e, RT_BAD_FILE,
                             "%s%s: %lld tokens to train on (data.held_out = %g is kept back) are less than "
                             "one sequence of "
                             "%lld and its last label",
                             s->source.arg[0], s->source.n_args > 1 ? ", .." : "", (long long)d->n_train,
                             s->held_out, (long long)sequence);
    }
    if (status != RT_OK) rt_data_close(d);
    else *out = d;
    return status;
}

void rt_data_close(RtData *d) {
    if (!d) return;
    rt_unmap(&d->map);
    free(d->memory);
    free(d->cache_path);
    free(d);
}

int64_t rt_data_tokens(const RtData *d) { return d->n_tokens; }
int64_t rt_data_samples(const RtData *d) { return d->samples; }
int64_t rt_data_held_out(const RtData *d) { return d->held_out; }
uint64_t rt_data_hash(const RtData *d) { return d->hash; }
bool rt_data_cached(const RtData *d) { return d->cached; }
const char *rt_data_cache_path(const RtData *d) { return d->cache_path; }

// ---- batches --------------------------------------------------------------------------------------------

static void copy_sample(const RtData *d, int64_t first_token, int32_t *tokens, int32_t *labels) {
    for (int64_t i = 0; i < d->sequence; i++) {
        tokens[i] = token_at(d, first_token + i);
        labels[i] = token_at(d, first_token + i + 1);
    }
}

static void move_on(const RtData *d, RtDataPos *pos, int64_t n) {
    pos->next_sample += n;
    pos->epoch += pos->next_sample / d->samples;
    pos->next_sample %= d->samples;
}

void rt_data_batch(const RtData *d, RtDataPos *pos, RtSlice slice, int32_t *tokens, int32_t *labels) {
    move_on(d, pos, slice.first);
    for (int64_t k = 0; k < slice.n; k++) {
        int64_t sample = d->shuffle ? rt_permute(pos->next_sample, d->samples, d->seed, (uint64_t)pos->epoch)
                                    : pos->next_sample;
        copy_sample(d, sample * d->sequence, tokens + k * d->sequence, labels + k * d->sequence);
        move_on(d, pos, 1);
    }
    move_on(d, pos, slice.all - slice.first - slice.n);
}

int64_t rt_data_held_out_batch(const RtData *d, int64_t first, int64_t n, int32_t *tokens, int32_t *labels,
                               int64_t *bytes) {
    assert(d->held_out > 0);
    int64_t real = 0, n_bytes = 0;
    for (int64_t k = 0; k < n; k++) {
        int64_t sample = first + k;
        int32_t *row = labels + k * d->sequence;
        copy_sample(d, d->n_train + sample % d->held_out * d->sequence, tokens + k * d->sequence, row);
        bool is_real = sample < d->held_out;
        real += is_real;
        for (int64_t i = 0; i < d->sequence; i++) {
            size_t length = 0;
            if (is_real) d->tokenizer->piece(d->tokenizer, row[i], &length);
            else row[i] = -100;
            n_bytes += (int64_t)length;
        }
    }
    if (bytes) *bytes = n_bytes;
    return real;
}
