// The code cache: one file per kernel, named by the hash of the kernel's key, the machine and this compiler.
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
static const char magic[8] = "moecobj1";

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

bool cache_load(const CodeCache *c, const CpuTarget *t, const char *key, Object *o) {
    if (!c->on) return false;
    char path[4352];
    file_name(c, t, key, path, sizeof path);
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    struct { char magic[8]; uint64_t checksum, n; } head;
    bool ok = fread(&head, sizeof head, 1, f) == 1 && !memcmp(head.magic, magic, sizeof magic) &&
              head.n < CACHE_BYTES;
    if (ok) {
        o->n = (size_t)head.n;
        o->bytes = malloc(o->n + 1);
        ok = o->bytes && fread(o->bytes, 1, o->n, f) == o->n && XXH3_64bits(o->bytes, o->n) == head.checksum;
        if (!ok) {
            free(o->bytes);
            o->bytes = NULL;
        }
    }
    fclose(f);
    return ok;
}

void cache_store(const CodeCache *c, const CpuTarget *t, const char *key, const Object *o) {
    if (!c->on) return;
    char path[4352], beside[4480];
    file_name(c, t, key, path, sizeof path);
    snprintf(beside, sizeof beside, "%s.%ld.%p", path, (long)getpid(), (const void *)o);
    FILE *f = fopen(beside, "wb");
    if (!f) return;
    struct {
        char magic[8];
        uint64_t checksum, n;
    } head = {.checksum = XXH3_64bits(o->bytes, o->n), .n = o->n};
    memcpy(head.magic, magic, sizeof magic);
    bool ok = fwrite(&head, sizeof head, 1, f) == 1 && fwrite(o->bytes, 1, o->n, f) == o->n;
    ok = !fclose(f) && ok;
    if (!ok || rename(beside, path)) unlink(beside);
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
