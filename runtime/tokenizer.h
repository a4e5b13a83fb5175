// Text to ids and back.
#ifndef RUNTIME_TOKENIZER_H
#define RUNTIME_TOKENIZER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "runtime/status.h"

typedef struct { int32_t *at; int64_t n, cap; } RtIds;         // grows with rt_ids_add; free(at)
void rt_ids_add(RtIds *ids, int32_t id);

typedef struct RtTokenizer RtTokenizer;
struct RtTokenizer {
    const char *kind;                 // "bytes", "gpt2"
    int32_t     vocab;                // ids are below this
    int32_t     end;                  // end-of-text id, or -1
    uint64_t    hash;                 // of everything that decides what ids a text gets
    // Appends the ids of text[n].  specials: special tokens written out in the text become their ids.
    // Thread-safe.
    RtStatus (*encode)(const RtTokenizer *t, const char *text, size_t n, bool specials, RtIds *out,
                       RtError *e);
    // The bytes an id stands for; NULL if there is no such id.
    const char *(*piece)(const RtTokenizer *t, int32_t id, size_t *n);
    bool      (*special)(const RtTokenizer *t, int32_t id);
    // May a text be cut here, before text[at], so that the parts get the ids of the whole?
    bool      (*may_cut)(const char *text, size_t n, size_t at);
    void      (*close)(RtTokenizer *t);
};

// kind "bytes" (dir unused) or "gpt2" (dir holds vocab.json and merges.txt).
RtStatus rt_tokenizer_open(const char *kind, const char *dir, RtTokenizer **out, RtError *e);
void     rt_tokenizer_close(RtTokenizer *t);                   // NULL is fine
RtStatus rt_tokenizer_open_gpt2(const char *dir, RtTokenizer **out, RtError *e);

// Text that comes byte by byte and leaves as whole characters: rt_utf8_add returns what is complete (valid
// until the next call), each maximal ill-formed part as one U+FFFD; rt_utf8_end what is left.
typedef struct {
    unsigned char held[4];            // the beginning of a character
    int    n_held;
    char  *text;
    size_t n, cap;
} RtUtf8;
const char *rt_utf8_add(RtUtf8 *u, const char *bytes, size_t n, size_t *n_out);
const char *rt_utf8_end(RtUtf8 *u, size_t *n_out);
void        rt_utf8_free(RtUtf8 *u);

// All of ids[n] as text; ill-formed bytes as U+FFFD.  The caller frees it.
char *rt_decode(const RtTokenizer *t, const int32_t *ids, int64_t n, bool skip_special, size_t *n_out);

#endif
