// What saving and loading share: names, pieces, hashes, folders.
#include "runtime/checkpoint_parts.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/convert.h"
#include "runtime/files.h"

const char ckpt_format[] = "moec-checkpoint";

// ---- names ----------------------------------------------------------------------------------------------

char *rt_expert_name(const char *name, int64_t expert) {
    const char *last = name;
    for (const char *c = name; *c; c++)
        if (*c == '.' || *c == '/') last = c + 1;
    return rt_path("%.*s%lld.%s", (int)(last - name), name, (long long)expert, last);
}

// In parts that are no tensors by themselves, as experts are.
int ckpt_joined_parts(const RtPlanInstance *p, const RtTensor *t) { return t->experts ? 1 : rt_tensor_parts(p, t); }

// The pieces a plan tensor has in a checkpoint: one, or one per expert; of this rank's part.
int64_t ckpt_n_pieces(const RtTensor *t) { return t->experts ? t->dim[0] : 1; }

StWrite ckpt_piece(const RtPlanInstance *p, const RtTensor *t, int64_t k, char **name) {
    *name = t->experts ? rt_expert_name(rt_tensor_name(p, t), rt_tensor_expert(p, t, k)) : rt_path("%s", rt_tensor_name(p, t));
    StWrite w = {
        .name = *name, .dtype = st_dtype_of((DType)t->dtype), .ndim = t->ndim - (t->experts ? 1 : 0)};
    for (int i = 0; i < w.ndim; i++) w.dim[i] = t->dim[i + (t->experts ? 1 : 0)];
    if (ckpt_joined_parts(p, t) > 1) w.dim[0] *= ckpt_joined_parts(p, t);
    if (t->within) w.dim[t->experts ? 0 : 1] *= rt_tensor_inner_parts(p, t);
    if (t->tp) w.dim[t->tp - (t->experts ? 2 : 1)] *= rt_tensor_tp(p, t);
    int64_t bytes = t->experts && t->dim[0] ? t->bytes / t->dim[0] : t->bytes;
    w.data = (const char *)rt_tensor_data(p, t) + k * bytes;
    return w;
}

int64_t ckpt_elements(const StWrite *w) {
    int64_t n = 1;
    for (int i = 0; i < w->ndim; i++) n *= w->dim[i];
    return n;
}

// Caches of generation are states of the plan, but no part of what was learned.
static bool is_saved_of(const RtPlan *plan, const RtTensor *t) {
    return t->saved && t->role <= RT_STATE && strncmp(RT_TEXT(plan, t->name), "cache/", 6) != 0;
}

bool ckpt_is_saved(const RtPlanInstance *p, const RtTensor *t) { return is_saved_of(p->plan, t); }

int64_t rt_ckpt_bytes(const RtPlan *plan) {
    int64_t bytes = 0;
    for (uint32_t i = 0; i < plan->tensors.n; i++) {
        const RtTensor *t = RT_TABLE(plan, RtTensor, tensors) + i;
        int64_t parts = t->shard ? rt_group_size(plan->mesh, (RtGroup)(t->shard - 1)) : 1;
        if (t->within) parts *= rt_group_size(plan->mesh, (RtGroup)(t->within - 1));
        if (is_saved_of(plan, t)) bytes += t->bytes * parts * (t->tp ? plan->mesh.tp : 1);
    }
    return bytes;
}

// ---- hashes ---------------------------------------------------------------------------------------------

int64_t ckpt_n_blocks(int64_t n) { return (n + CKPT_BLOCK - 1) / CKPT_BLOCK; }

// Hashes of the blocks into block[n_blocks]; returns the hash of those.
uint64_t ckpt_hash_tensor(const void *data, int64_t n, int size, uint64_t *block) {
#pragma omp parallel for schedule(static) if (n > 1 << 20)
    for (int64_t b = 0; b < ckpt_n_blocks(n); b++) {
        int64_t first = b * CKPT_BLOCK, count = n - first < CKPT_BLOCK ? n - first : CKPT_BLOCK;
        block[b] = XXH3_64bits((const char *)data + first * size, (size_t)(count * size));
    }
    return XXH3_64bits(block, (size_t)ckpt_n_blocks(n) * sizeof *block);
}

// The manifest's own hash stands in a field of 16 digits, which count as zeros.
static const char self_key[] = "\"self\": \"";

char *ckpt_self_field(char *text, size_t n) {
    size_t key = sizeof self_key - 1;
    for (size_t i = n; i >= key + 16; i--)
        if (!memcmp(text + i - key - 16, self_key, key)) return text + i - 16;
    return NULL;
}

uint64_t ckpt_self_hash(char *text, size_t n, char *field) {
    char was[16];
    memcpy(was, field, 16);
    memset(field, '0', 16);
    uint64_t hash = XXH3_64bits(text, n);
    memcpy(field, was, 16);
    return hash;
}

// ---- folders --------------------------------------------------------------------------------------------

bool ckpt_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

bool ckpt_has_tensors(const char *name) { return ckpt_ends_with(name, ".safetensors"); }

int64_t ckpt_step_of(const char *name) {
    if (strncmp(name, "step-", 5) != 0 || !isdigit((unsigned char)name[5])) return -1;
    char *end;
    int64_t step = strtoll(name + 5, &end, 10);
    return *end ? -1 : step;
}

static int newest_first(const void *a, const void *b) {
    const CkptStep *x = a, *y = b;
    return x->step > y->step ? -1 : x->step < y->step;
}

// The step-N folders of ckpt, newest first.  The caller frees the array; NULL: there is no such folder.
CkptStep *ckpt_list_steps(const char *ckpt, int *n) {
    *n = 0;
    DIR *d = opendir(ckpt);
    if (!d) return NULL;
    CkptStep *list = NULL;
    int cap = 0;
    for (struct dirent *entry; (entry = readdir(d));) {
        int64_t step = ckpt_step_of(entry->d_name);
        if (step < 0 || strlen(entry->d_name) >= sizeof list->name) continue;
        if (*n == cap) {
            CkptStep *more = realloc(list, (size_t)(cap = cap ? 2 * cap : 16) * sizeof *list);
            if (!more) break;
            list = more;
        }
        list[*n].step = step;
        snprintf(list[(*n)++].name, sizeof list->name, "%s", entry->d_name);
    }
    closedir(d);
    if (list) qsort(list, (size_t)*n, sizeof *list, newest_first);
    return list;
}

// What an interrupted save or deletion left.
void ckpt_sweep(const char *ckpt) {
    DIR *d = opendir(ckpt);
    if (!d) return;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (strncmp(entry->d_name, ".tmp-", 5) != 0 && strncmp(entry->d_name, ".del-", 5) != 0) continue;
        char *path = rt_path("%s/%s", ckpt, entry->d_name);
        rt_remove_tree(path);
        free(path);
    }
    closedir(d);
}
