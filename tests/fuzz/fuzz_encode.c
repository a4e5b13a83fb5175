// Any bytes through the tokenizers that have an id for every byte.
#include <stdlib.h>
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/ids.h"

static RtTokenizer *tokenizer[2];

static void close_all(void) {
    for (int i = 0; i < 2; i++) rt_tokenizer_close(tokenizer[i]);
}

void fuzz_encode(const uint8_t *data, size_t n) {
    if (!tokenizer[1]) {
        RtError e;
        if (rt_tokenizer_open("bytes", NULL, &tokenizer[0], &e) != RT_OK) abort();
        if (rt_tokenizer_open("gpt2", "tests/goldens/tokenizers/gpt2", &tokenizer[1], &e) != RT_OK) abort();
        atexit(close_all);
    }
    for (int i = 0; i < 2; i++) fuzz_ids(tokenizer[i], (const char *)data, n, true);
}
