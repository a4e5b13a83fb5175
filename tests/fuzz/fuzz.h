// Entry points for damaged input: each takes any bytes and returns, whatever they are.  Compiled twice: as
// libFuzzer programs (cmake --preset fuzz; entry.c) and into test_fuzz, which runs the corpus and some
// thousand mutations. What a target promises of good input beyond not crashing (text that prints and reads
// back, ids that decode to their bytes) it asserts.
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H
#include <stddef.h>
#include <stdint.h>

typedef void FuzzFn(const uint8_t *data, size_t n);
#define FUZZ(name, share, seeds, doc) FuzzFn fuzz_##name;
#include "tests/fuzz/targets.def"
#undef FUZZ

enum { FUZZ_MAX_BYTES = 1 << 15 };

// The path of `name` in a folder of this process, which is removed when it ends.  Valid until the process
// ends.
const char *fuzz_path(const char *name);
// Writes a file there and returns its path.
const char *fuzz_file(const char *name, const void *data, size_t n);
// Does `text` begin with `start`?  Then *rest is what follows.
int fuzz_begins(const char *text, const char *start, const char **rest);

// Changes data (room for cap bytes) in place and returns its new size: bits, bytes, runs of bytes and lines
// moved, doubled or dropped, numbers replaced by awkward ones, pieces of `other` pasted in.
size_t fuzz_mutate(uint8_t *data, size_t n, size_t cap, const uint8_t *other, size_t n_other,
                   uint64_t *random);

#endif
