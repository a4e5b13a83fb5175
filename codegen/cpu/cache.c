// The code cache: one file per kernel, named by the hash of the kernel's key, the machine and this compiler, and one per part,
// whose name says all that its code depends on.
// Files are written beside and renamed, so readers never see half of one; a file that fails its checksum
// counts as not there.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "codegen/cpu/cpu.h"

enum { CACHE_BYTES = 256 << 20 };
static const char magic[8] = "moecobj2";

static bool make_dirs(char *path) {
    for (char *p = path + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            bool ok = !mkdir(path, 0777) || errno == EEXIST;
            *p = '/';
            if (!ok) return false;
        }
    return !mkdir(path, 0777) || errno == EEXIST;
}

CodeCache cache_open(const char *dir) {
    CodeCache c = {.on = false};
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (dir) n = snprintf(c.dir, sizeof c.dir, "%s", dir);
    else if (xdg && *xdg) n = snprintf(c.dir, sizeof c.dir, "%s/moec", xdg);
    else if (home && *home) n = snprintf(c.dir, sizeof c.dir, "%s/.cache/moec", home);
    c.on = n > 0 && n < (int)sizeof c.dir - 128 && make_dirs(c.dir);
    return c;
}

// This compiler: another build may make other code from the same key.
static uint64_t compiler_identity(void) {
    struct stat s;
    if (stat("/proc/self/exe", &s)) return 0;
    int64_t id[] = {s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec};
    return XXH3_64bits(id, sizeof id);
}

static void file_name(const CodeCache *c, const CpuTarget *t, const char *key, char *path, size_t n) {
    XXH3_state_t *state = XXH3_createState();
    uint64_t self = compiler_identity();
    unsigned major, minor, patch;
    LLVMGetVersion(&major, &minor, &patch);
    unsigned llvm[] = {major, minor, patch};
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, key, strlen(key) + 1);
    XXH3_128bits_update(state, t->cpu, strlen(t->cpu) + 1);
    XXH3_128bits_update(state, t->features, strlen(t->features) + 1);
    XXH3_128bits_update(state, &t->dot, sizeof t->dot);
    XXH3_128bits_update(state, llvm, sizeof llvm);
    XXH3_128bits_update(state, &self, sizeof self);
    XXH128_hash_t h = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(path, n, "%s/%016llx%016llx.o", c->dir, (unsigned long long)h.high64,
             (unsigned long long)h.low64);
}

typedef struct {
    char magic[8];
    uint64_t checksum, n, n_object;                        // bytes in all, of them the object's; names of parts follow
} Head;

static bool load(const char *path, char **bytes, Head *head) {
    *bytes = NULL;
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    bool ok = fread(head, sizeof *head, 1, f) == 1 && !memcmp(head->magic, magic, sizeof magic) &&
              head->n < CACHE_BYTES && head->n_object <= head->n && (head->n - head->n_object) % sizeof(PartName) == 0;
    if (ok) {
        *bytes = malloc((size_t)head->n + 1);
        ok = *bytes && fread(*bytes, 1, (size_t)head->n, f) == head->n &&
             XXH3_64bits_withSeed(*bytes, (size_t)head->n, head->n_object) == head->checksum;
        if (!ok) {
            free(*bytes);
            *bytes = NULL;
        }
    }
    fclose(f);
    return ok;
}

static void store(const char *path, const char *bytes, size_t n, size_t n_object) {
    char beside[4480];
    snprintf(beside, sizeof beside, "%s.%ld.%p", path, (long)getpid(), (const void *)bytes);
    FILE *f = fopen(beside, "wb");
    if (!f) return;
    Head head = {.checksum = XXH3_64bits_withSeed(bytes, n, n_object), .n = n, .n_object = n_object};
    memcpy(head.magic, magic, sizeof magic);
    bool ok = fwrite(&head, sizeof head, 1, f) == 1 && fwrite(bytes, 1, n, f) == n;
    ok = !fclose(f) && ok;
    if (!ok || rename(beside, path)) unlink(beside);
}

static void part_file(const CodeCache *c, const char *name, char *path, size_t n) {
    XXH128_hash_t h = XXH3_128bits(name, strlen(name));
    snprintf(path, n, "%s/%016llx%016llx.o", c->dir, (unsigned long long)h.high64, (unsigned long long)h.low64);
}

bool cache_load_part(const CodeCache *c, const char *name, Object *o) {
    char path[4352];
    Head head;
    if (!c->on) return false;
    part_file(c, name, path, sizeof path);
    if (!load(path, &o->bytes, &head)) return false;
    o->n = (size_t)head.n_object;
    return true;
}

void cache_store_part(const CodeCache *c, const char *name, const Object *o) {
    char path[4352];
    if (!c->on) return;
    part_file(c, name, path, sizeof path);
    store(path, o->bytes, o->n, o->n);
}

static bool load_parts(const CodeCache *c, const Code *code) {
    for (int i = 0; i < code->n_parts; i++) {
        const char *name = code->part[i].text;
        Object o;
        if (part_known(name)) continue;
        if (!cache_load_part(c, name, &o)) return false;
        part_keep(name, o);
    }
    return true;
}

bool cache_load(const CodeCache *c, const CpuTarget *t, const char *key, Code *code) {
    char path[4352], *bytes;
    Head head;
    if (!c->on) return false;
    file_name(c, t, key, path, sizeof path);
    if (!load(path, &bytes, &head)) return false;
    size_t names = (size_t)(head.n - head.n_object);
    *code = (Code){.object = {bytes, (size_t)head.n_object}, .part = malloc(names + 1), .n_parts = (int)(names / sizeof(PartName))};
    if (code->part) memcpy(code->part, bytes + head.n_object, names);
    if (code->part && load_parts(c, code)) return true;
    code_free(code);
    return false;
}

void cache_store(const CodeCache *c, const CpuTarget *t, const char *key, const Code *code) {
    char path[4352];
    size_t n = code->object.n, names = (size_t)code->n_parts * sizeof *code->part;
    char *bytes = c->on ? malloc(n + names + 1) : NULL;
    if (!bytes) return;
    memcpy(bytes, code->object.bytes, n);
    if (names) memcpy(bytes + n, code->part, names);
    file_name(c, t, key, path, sizeof path);
    store(path, bytes, n + names, n);
    free(bytes);
}

typedef struct { char name[64]; int64_t bytes, time; } CacheFile;

static int by_age(const void *a, const void *b) {
    const CacheFile *x = a, *y = b;
    return x->time < y->time ? -1 : x->time > y->time;
}

void cache_trim(const CodeCache *c) {
    DIR *dir = c->on ? opendir(c->dir) : NULL;
    if (!dir) return;
    CacheFile *file = NULL;
    int64_t total = 0;
    int n = 0, cap = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        size_t length = strlen(e->d_name);
        char path[4480];
        struct stat s;
        if (length != 34 || strcmp(e->d_name + 32, ".o")) continue;
        snprintf(path, sizeof path, "%s/%s", c->dir, e->d_name);
        if (stat(path, &s)) continue;
        if (n == cap) {
            cap = cap ? cap * 2 : 256;
            CacheFile *more = realloc(file, sizeof *file * (size_t)cap);
            if (!more) break;
            file = more;
        }
        file[n] = (CacheFile){.bytes = s.st_size, .time = s.st_mtim.tv_sec};
        memcpy(file[n++].name, e->d_name, length + 1);
        total += s.st_size;
    }
    closedir(dir);
    if (total > CACHE_BYTES) {
        qsort(file, (size_t)n, sizeof *file, by_age);
        for (int i = 0; i < n && total > CACHE_BYTES * 3LL / 4; i++) {
            char path[4480];
            snprintf(path, sizeof path, "%s/%s", c->dir, file[i].name);
            if (!unlink(path)) total -= file[i].bytes;
        }
    }
    free(file);
}
