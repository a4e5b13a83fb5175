// Mutations, and the folder for files of targets that read paths.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/fuzz/fuzz.h"

// ---- files ----------------------------------------------------------------------------------------------

static char folder[64];

static void remove_folder(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) fprintf(stderr, "cannot remove %s\n", folder);
}

const char *fuzz_path(const char *name) {
    static char path[16][160];
    static unsigned at;
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "%s/moec-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
        if (!mkdtemp(folder)) abort();
        atexit(remove_folder);
    }
    char *p = path[at++ % 16];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

const char *fuzz_file(const char *name, const void *data, size_t n) {
    const char *path = fuzz_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) abort();
    return path;
}

int fuzz_begins(const char *text, const char *start, const char **rest) {
    size_t n = strlen(start);
    if (strncmp(text, start, n)) return 0;
    *rest = text + n;
    return 1;
}

// ---- mutations ------------------------------------------------------------------------------------------

static uint64_t draw(uint64_t *random) {
    uint64_t x = *random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static size_t pick(uint64_t *random, size_t n) { return n ? (size_t)(draw(random) % n) : 0; }

// Puts `with` in the place of data[at .. at + old).
static size_t put(uint8_t *data, size_t n, size_t cap, size_t at, size_t old, const void *with,
                  size_t n_with) {
    if (n - old + n_with > cap) return n;
    memmove(data + at + n_with, data + at + old, n - at - old);
    memcpy(data + at, with, n_with);
    return n - old + n_with;
}

static int is_word(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
}

// The word, or the single byte, at or around data[at].
static void word_at(const uint8_t *data, size_t n, size_t at, size_t *begin, size_t *end) {
    *begin = *end = at;
    while (*begin > 0 && is_word(data[*begin - 1])) --*begin;
    while (*end < n && is_word(data[*end])) ++*end;
    if (*begin == *end) *end = at + 1;
}

// The line that holds data[at], with its end.
static void line_at(const uint8_t *data, size_t n, size_t at, size_t *begin, size_t *end) {
    *begin = *end = at;
    while (*begin > 0 && data[*begin - 1] != '\n') --*begin;
    while (*end < n && data[*end] != '\n') ++*end;
    if (*end < n) ++*end;
}

size_t fuzz_mutate(uint8_t *data, size_t n, size_t cap, const uint8_t *other, size_t n_other,
                   uint64_t *random) {
    static const char *const awkward[] = {
        "0", "1", "-1", "2", "3", "7", "8", "255", "256", "65536", "2147483647", "2147483648",
        "-2147483648", "4294967296", "9223372036854775807", "-9223372036854775808", "18446744073709551616",
        "1e308", "1e-320", "0.5", "1e400", "nan", "inf", "none", "null", "true", "\"\"", "[]", "{}", "()",
        "..", "?", "%", "*", "-", "\\u0000"};
    int rounds = 1 + (int)pick(random, 4);
    for (int i = 0; i < rounds; i++) {
        size_t at = pick(random, n), begin, end, from, to;
        uint8_t byte = (uint8_t)draw(random), piece[256];
        if (n == 0) {
            n = put(data, 0, cap, 0, 0, &byte, 1);
            continue;
        }
        switch (pick(random, 12)) {
        case 0:
            data[at] ^= (uint8_t)(1 << pick(random, 8));
            break;
        case 1:
            data[at] = byte;
            break;
        case 2:
            n = put(data, n, cap, at, 0, &byte, 1);
            break;
        case 3: { // a run goes
            size_t run = 1 + pick(random, n - at < 32 ? n - at : 32);
            n = put(data, n, cap, at, run > n - at ? n - at : run, "", 0);
            break;
        }
        case 4:
            n = at;
            break; // the end is missing
        case 5:
        case 6: { // a word becomes an awkward one
            word_at(data, n, at, &begin, &end);
            const char *with = awkward[pick(random, sizeof awkward / sizeof *awkward)];
            n = put(data, n, cap, begin, end - begin, with, strlen(with));
            break;
        }
        case 7:
        case 8: // a word becomes one of another input
            if (!n_other) break;
            word_at(data, n, at, &begin, &end);
            word_at(other, n_other, pick(random, n_other), &from, &to);
            n = put(data, n, cap, begin, end - begin, other + from, to - from);
            break;
        case 9: // a line of another input comes in
            if (!n_other) break;
            line_at(data, n, at, &begin, &end);
            line_at(other, n_other, pick(random, n_other), &from, &to);
            n = put(data, n, cap, begin, pick(random, 2) ? end - begin : 0, other + from, to - from);
            break;
        case 10: { // a piece stands twice
            size_t run = 1 + pick(random, n - at < sizeof piece ? n - at : sizeof piece);
            if (run > n - at) run = n - at;
            memcpy(piece, data + at, run);
            n = put(data, n, cap, pick(random, n), 0, piece, run);
            break;
        }
        case 11: { // binary numbers
            static const uint64_t number[] = {0,
                                              1,
                                              0xff,
                                              0x7fff,
                                              0xffff,
                                              0x7fffffff,
                                              0x80000000,
                                              0xffffffff,
                                              0x7fffffffffffffff,
                                              0x8000000000000000,
                                              0xffffffffffffffff};
            uint64_t x = number[pick(random, sizeof number / sizeof *number)];
            size_t width = (size_t)1 << pick(random, 4);
            if (at + width <= n) memcpy(data + at, &x, width);
            break;
        }
        }
    }
    return n;
}
