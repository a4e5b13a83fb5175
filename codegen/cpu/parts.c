// Functions that kernels share, in this process: whoever first needs one compiles it, the others take it when it is there.
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "codegen/cpu/cpu.h"

typedef struct Part Part;
struct Part {
    PartName name;
    Object object;                                         // no bytes: it is being made
    Part *next;
};

enum { N_CHAINS = 1024 };
static Part *chain[N_CHAINS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t made = PTHREAD_COND_INITIALIZER;

static Part **chain_of(const char *name) { return &chain[XXH3_64bits(name, strlen(name)) % N_CHAINS]; }

static Part *find(const char *name) {
    Part *p = *chain_of(name);
    while (p && strcmp(p->name.text, name)) p = p->next;
    return p;
}

static Part *add(const char *name) {
    Part *p = calloc(1, sizeof *p), **at = chain_of(name);
    assert(p && strlen(name) < sizeof p->name.text);
    strcpy(p->name.text, name);
    p->next = *at;
    return *at = p;
}

bool part_known(const char *name) {
    pthread_mutex_lock(&mutex);
    bool known = find(name);
    pthread_mutex_unlock(&mutex);
    return known;
}

bool part_claim(const char *name) {
    pthread_mutex_lock(&mutex);
    bool ours = !find(name);
    if (ours) add(name);
    pthread_mutex_unlock(&mutex);
    return ours;
}

void part_keep(const char *name, Object o) {
    pthread_mutex_lock(&mutex);
    Part *p = find(name);
    if (!p) p = add(name);
    if (p->object.bytes) free(o.bytes);
    else p->object = o;
    pthread_cond_broadcast(&made);
    pthread_mutex_unlock(&mutex);
}

const Object *part_wait(const char *name) {
    pthread_mutex_lock(&mutex);
    const Part *p = find(name);
    assert(p);
    while (!p->object.bytes) pthread_cond_wait(&made, &mutex);
    pthread_mutex_unlock(&mutex);
    return &p->object;
}

void code_free(Code *c) {
    free(c->object.bytes);
    free(c->part);
    *c = (Code){0};
}

static int by_name(const void *a, const void *b) { return strcmp(((const PartName *)a)->text, ((const PartName *)b)->text); }

PartName *code_parts(const Code *code, int n_kernels, int *n) {
    int all = 0, kept = 0;
    for (int i = 0; i < n_kernels; i++) all += code[i].n_parts;
    PartName *part = malloc((size_t)(all + 1) * sizeof *part);
    assert(part);
    for (int i = 0, at = 0; i < n_kernels; at += code[i++].n_parts)
        if (code[i].n_parts) memcpy(part + at, code[i].part, (size_t)code[i].n_parts * sizeof *part);
    qsort(part, (size_t)all, sizeof *part, by_name);
    for (int i = 0; i < all; i++)
        if (!kept || strcmp(part[kept - 1].text, part[i].text)) part[kept++] = part[i];
    *n = kept;
    return part;
}
