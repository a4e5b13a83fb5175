#include "ir/base/str.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t str_hash(const void *bytes, size_t n, uint64_t seed) {
    const unsigned char *p = bytes;
    uint64_t h = 0xcbf29ce484222325u ^ seed;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

// The table of interned names: open addressing, never shrinks, lives as long as the process.
static struct {
    pthread_mutex_t lock;
    Arena *arena;
    const char **slot;
    size_t n, cap;
} names = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t find_slot(const char **slot, size_t cap, const char *text, size_t n) {
    size_t i = str_hash(text, n, 0) & (cap - 1);
    while (slot[i] && (strncmp(slot[i], text, n) != 0 || slot[i][n] != 0)) i = (i + 1) & (cap - 1);
    return i;
}

const char *intern_n(const char *text, size_t n) {
    pthread_mutex_lock(&names.lock);
    if (!names.arena) names.arena = arena_create();
    if (names.n * 2 >= names.cap) {
        size_t cap = names.cap ? names.cap * 2 : 1024;
        const char **slot = calloc(cap, sizeof *slot);
        if (!slot) abort();
        for (size_t i = 0; i < names.cap; i++)
            if (names.slot[i]) slot[find_slot(slot, cap, names.slot[i], strlen(names.slot[i]))] = names.slot[i];
        free(names.slot);
        names.slot = slot;
        names.cap = cap;
    }
    size_t i = find_slot(names.slot, names.cap, text, n);
    if (!names.slot[i]) {
        names.slot[i] = arena_strndup(names.arena, text, n);
        names.n++;
    }
    const char *result = names.slot[i];
    pthread_mutex_unlock(&names.lock);
    return result;
}

const char *intern(const char *text) { return intern_n(text, strlen(text)); }

static void reserve(Str *s, size_t more) {
    if (s->n + more + 1 <= s->cap) return;
    size_t cap = s->cap ? s->cap * 2 : 128;
    while (cap < s->n + more + 1) cap *= 2;
    char *text = arena_alloc(s->arena, cap);
    if (s->n) memcpy(text, s->text, s->n);
    s->text = text;
    s->cap = cap;
}

void str_add_n(Str *s, const char *text, size_t n) {
    reserve(s, n);
    memcpy(s->text + s->n, text, n);
    s->n += n;
    s->text[s->n] = 0;
}

void str_add(Str *s, const char *text) { str_add_n(s, text, strlen(text)); }

void str_vprintf(Str *s, const char *fmt, va_list ap) {
    va_list ap2;
    va_copy(ap2, ap);
    int n = vsnprintf(NULL, 0, fmt, ap2);
    va_end(ap2);
    reserve(s, (size_t)n);
    vsnprintf(s->text + s->n, (size_t)n + 1, fmt, ap);
    s->n += (size_t)n;
}

void str_printf(Str *s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    str_vprintf(s, fmt, ap);
    va_end(ap);
}

// Damerau-Levenshtein (adjacent swaps count once), case-insensitive; words over 63 letters never match.
static int distance(const char *a, const char *b) {
    enum { MOST = 64 };
    size_t la = strlen(a), lb = strlen(b);
    if (la >= MOST || lb >= MOST) return MOST;
    int d[MOST + 1][MOST + 1];
    for (size_t i = 0; i <= la; i++) d[i][0] = (int)i;
    for (size_t j = 0; j <= lb; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= la; i++)
        for (size_t j = 1; j <= lb; j++) {
            int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
            int best = d[i - 1][j - 1] + (ca != cb);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) && cb == tolower((unsigned char)a[i - 2]) &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[la][lb];
}

const char *did_you_mean(const char *word, const char *const *candidates, int n) {
    const char *best = NULL;
    int least = (int)strlen(word) / 3 + 1;       // a third of the letters may differ, at least one
    size_t longest = strlen(word);
    for (int i = 0; i < n; i++) {
        if (!candidates[i]) continue;
        int d = distance(word, candidates[i]);
        // "learning_rate" for "lr" and the like: initials of the words count as near
        if (d < least || (d == least && !best)) {
            best = candidates[i];
            least = d;
        }
    }
    if (best) return best;
    char initials[16];
    int k = 0;
    for (size_t i = 0; i < longest && k < 15; i++)
        if (i == 0 || word[i - 1] == '_' || word[i - 1] == '-') initials[k++] = word[i];
    initials[k] = 0;
    for (int i = 0; k > 1 && i < n; i++)
        if (candidates[i] && strcmp(candidates[i], initials) == 0) return candidates[i];
    return NULL;
}

const char *str_thousands(Arena *a, int64_t n) {
    char digits[32];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)(n < 0 ? -n : n));
    Str s = {.arena = a};
    if (n < 0) str_add(&s, "-");
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) str_add(&s, ",");
        str_add_n(&s, digits + i, 1);
    }
    return s.text;
}
