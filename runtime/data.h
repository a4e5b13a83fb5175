// Text files as batches of token sequences, in an order that depends on the seed alone.
//
//   files --tokenizer--> tokens (one mapped cache file)  =  [ training ............... | held out ]
//   sample i of the training part = tokens [i S, i S + S]: S inputs and, one further, S labels
//   epoch k takes the samples in the order of a permutation that is computed, not stored
#ifndef RUNTIME_DATA_H
#define RUNTIME_DATA_H
#include "runtime/settings.h"
#include "runtime/tokenizer.h"

// The tokenizer that data.tokenizer names; refused if it has ids that the model has no place for.
RtStatus rt_open_tokenizer(const RtSettings *s, RtTokenizer **out, RtError *e);

typedef struct RtData RtData;
typedef struct { int64_t epoch, next_sample; } RtDataPos;          // {0} = the beginning
typedef struct { int64_t first, n, all; } RtSlice;                 // n from first on, of `all`

// sequence: S.  cache_dir NULL: rt_cache_dir().  t must live as long as the data.
RtStatus rt_data_open(const RtSettings *s, int64_t sequence, const RtTokenizer *t, const char *cache_dir,
                      RtData **out, RtError *e);
void     rt_data_close(RtData *d);                                 // NULL is fine

int64_t  rt_data_tokens(const RtData *d);
int64_t  rt_data_samples(const RtData *d);                         // of the training part
int64_t  rt_data_held_out(const RtData *d);                        // samples of the held-out part
uint64_t rt_data_hash(const RtData *d);                            // of the tokens and how they are cut
bool     rt_data_cached(const RtData *d);                          // the tokens were found in the cache
const char *rt_data_cache_path(const RtData *d);                   // NULL: only in memory

// A slice of the next training samples, tokens and labels both [n, S]; moves pos on by all of them.
void     rt_data_batch(const RtData *d, RtDataPos *pos, RtSlice slice, int32_t *tokens, int32_t *labels);
// Held-out samples first .. first + n.  Behind the last one: repeated tokens, labels -100.  Returns how many
// are real; *bytes (may be NULL) is how many bytes of text their labels stand for.
int64_t rt_data_held_out_batch(const RtData *d, int64_t first, int64_t n, int32_t *tokens, int32_t *labels,
                               int64_t *bytes);

// Place of i in a permutation of [0, n): a Feistel network over the next even number of bits, walked until it
// is below n.
int64_t  rt_permute(int64_t i, int64_t n, uint64_t seed, uint64_t epoch);

#endif
