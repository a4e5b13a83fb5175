// What every tokenizer promises of any bytes.
#ifndef TESTS_FUZZ_IDS_H
#define TESTS_FUZZ_IDS_H
#include "runtime/tokenizer.h"

// Encodes text, as a whole and cut where it may be cut, decodes it, at once and byte by byte; aborts where
// they differ. whole: every byte has an id, so encoding never fails and the pieces of the ids are the text.
void fuzz_ids(const RtTokenizer *t, const char *text, size_t n, bool whole);

#endif
