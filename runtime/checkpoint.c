// Checkpoints: written beside, synced, renamed; verified when read.
//
// Order of writing: tensors, side files, texts, then the manifest, then the folder's name.  Whatever is
// interrupted leaves a folder .tmp-step-N, which nobody reads and the next save removes.
//
// Where there are several ranks, each writes tensors into files of its own: its experts, and a share of what many
// hold, whole or in parts, which are put together first.  Names and hashes don't tell who wrote, so any other number of ranks can read it.
#include "runtime/checkpoint.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/convert.h"
#include "runtime/fault.h"
#include "runtime/files.h"
#include "runtime/gather.h"
#include "runtime/layout.h"
#include "runtime/safetensors.h"

enum { BLOCK = 4096, VERSION = 1 };                       // elements per hash; of the format
static const int64_t MAX_FILE = (int64_t)4 << 30;
static const char format[] = "moec-checkpoint";

#define BAD(...) rt_fail(e, RT_BAD_FILE, __VA_ARGS__)

// ---- names ----------------------------------------------------------------------------------------------

char *rt_expert_name(const char *name, int64_t expert) {
    const char *last = name;
    for (const char *c = name; *c; c++)
        if (*c == '.' || *c == '/') last = c + 1;
    return rt_path("%.*s%lld.%s", (int)(last - name), name, (long long)expert, last);
}

// In parts that are no tensors by themselves, as experts are.
static int joined_parts(const RtPlanInstance *p, const RtTensor *t) { return t->experts ? 1 : rt_tensor_parts(p, t); }
static int all_parts(const RtPlanInstance *p, const RtTensor *t) {
    return joined_parts(p, t) * rt_tensor_inner_parts(p, t) * rt_tensor_tp(p, t);
}
static bool is_cut(const RtPlanInstance *p, const RtTensor *t) { return all_parts(p, t) > 1; }
static int64_t joined_bytes(const RtPlanInstance *p, const RtTensor *t) { return t->bytes * all_parts(p, t); }

// Whose part tensor i is put together at.
static RtPartAt joined_at(const RtPlanInstance *p, int i) {
    const RtTensor *t = &p->tensor[i];
    return (RtPartAt){i % joined_parts(p, t), i % rt_tensor_inner_parts(p, t), i % rt_tensor_tp(p, t)};
}

// The pieces a plan tensor has in a checkpoint: one, or one per expert; of this rank's part.
static int64_t n_pieces(const RtTensor *t) { return t->experts ? t->dim[0] : 1; }

static StWrite piece(const RtPlanInstance *p, const RtTensor *t, int64_t k, char **name) {
    *name = t->experts ? rt_expert_name(rt_tensor_name(p, t), rt_tensor_expert(p, t, k)) : rt_path("%s", rt_tensor_name(p, t));
    StWrite w = {
        .name = *name, .dtype = st_dtype_of((DType)t->dtype), .ndim = t->ndim - (t->experts ? 1 : 0)};
    for (int i = 0; i < w.ndim; i++) w.dim[i] = t->dim[i + (t->experts ? 1 : 0)];
    if (joined_parts(p, t) > 1) w.dim[0] *= joined_parts(p, t);
    if (t->within) w.dim[t->experts ? 0 : 1] *= rt_tensor_inner_parts(p, t);
    if (t->tp) w.dim[t->tp - (t->experts ? 2 : 1)] *= rt_tensor_tp(p, t);
    int64_t bytes = t->experts && t->dim[0] ? t->bytes / t->dim[0] : t->bytes;
    w.data = (const char *)rt_tensor_data(p, t) + k * bytes;
    return w;
}

static int64_t elements(const StWrite *w) {
    int64_t n = 1;
    for (int i = 0; i < w->ndim; i++) n *= w->dim[i];
    return n;
}

// Caches of generation are states of the plan, but no part of what was learned.
static bool is_saved_of(const RtPlan *plan, const RtTensor *t) {
    return t->saved && t->role <= RT_STATE && strncmp(RT_TEXT(plan, t->name), "cache/", 6) != 0;
}

static bool is_saved(const RtPlanInstance *p, const RtTensor *t) { return is_saved_of(p->plan, t); }

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

static int64_t n_blocks(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

// Hashes of the blocks into block[n_blocks]; returns the hash of those.
static uint64_t hash_tensor(const void *data, int64_t n, int size, uint64_t *block) {
#pragma omp parallel for schedule(static) if (n > 1 << 20)
    for (int64_t b = 0; b < n_blocks(n); b++) {
        int64_t first = b * BLOCK, count = n - first < BLOCK ? n - first : BLOCK;
        block[b] = XXH3_64bits((const char *)data + first * size, (size_t)(count * size));
    }
    return XXH3_64bits(block, (size_t)n_blocks(n) * sizeof *block);
}

static json_t *hex_json(uint64_t hash) {
    char hex[17];
    rt_hex64(hash, hex);
    return json_string(hex);
}

static bool hex_read(const json_t *v, uint64_t *out) {
    const char *text = json_string_value(v);
    char *end = NULL;
    if (!text || strlen(text) != 16) return false;
    *out = strtoull(text, &end, 16);
    return !*end;
}

// The manifest's own hash stands in a field of 16 digits, which count as zeros.
static const char self_key[] = "\"self\": \"";

static char *self_field(char *text, size_t n) {
    size_t key = sizeof self_key - 1;
    for (size_t i = n; i >= key + 16; i--)
        if (!memcmp(text + i - key - 16, self_key, key)) return text + i - 16;
    return NULL;
}

static uint64_t self_hash(char *text, size_t n, char *field) {
    char was[16];
    memcpy(was, field, 16);
    memset(field, '0', 16);
    uint64_t hash = XXH3_64bits(text, n);
    memcpy(field, was, 16);
    return hash;
}

// ---- writing --------------------------------------------------------------------------------------------

typedef struct {
    const RtPlanInstance *p;
    const RtCkptInfo *info;
    const char *dir;
    json_t *files, *tensors;
    char **whole;                   // [n_tensors]: of those that are cut, put together where this rank writes them
} Saver;

// Number i of the ranks that a tensor is cut over; cut: 1 + their group, 0: it isn't.
static bool is_at(const RtPlanInstance *p, int cut, int rank, int i) {
    return !cut || !p->ranks || rt_group_rank(p->ranks->mesh, (RtGroup)(cut - 1), rank) == i;
}

// Ranks that hold the same, or parts of it, take turns: does this one write piece k of tensor i?
static bool is_writer(const RtPlanInstance *p, int i, int64_t k) {
    const RtTensor *t = &p->tensor[i];
    RtPartAt at = joined_at(p, i);
    int64_t holders = 0, own = -1;
    if (joined_parts(p, t) > 1 && at.part != rt_tensor_part(p, t)) return false;
    if (t->table && p->ranks) {                             // of replicas the first
        int64_t slot = rt_tensor_part(p, t) * t->dim[0] + k;
        const RtSlots *table = &p->ranks->table[t->table - 1];
        if (table->slot[table->expert[slot]] != slot) return false;
    }
    for (int rank = 0; rank < rt_n_ranks(p->ranks); rank++) {
        if (!is_at(p, t->shard, rank, rt_tensor_part(p, t)) || !is_at(p, t->within, rank, at.inner) ||
            !is_at(p, t->tp ? 1 + RT_GROUP_TP : 0, rank, at.tp)) continue;
        if (rank == rt_rank(p->ranks)) own = holders;
        holders++;
    }
    return (i + k) % holders == own;
}

static bool writes_any(const RtPlanInstance *p, int i) {
    for (int64_t k = 0; k < n_pieces(&p->tensor[i]); k++)
        if (is_writer(p, i, k)) return true;
    return false;
}

static char *file_name(const RtRanks *ranks, RtRole role, int number) {
    const char *kind = role == RT_PARAM ? "weights" : "state";
    return ranks ? rt_path("%s-%04d-%05d.safetensors", kind, ranks->rank, number)
                 : rt_path("%s-%05d.safetensors", kind, number);
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static bool has_tensors(const char *name) { return ends_with(name, ".safetensors"); }

// Tensors have hashes of their own, and side files only say where one is damaged.
static bool has_hash(const char *name) { return !has_tensors(name) && !ends_with(name, ".xxh"); }

static RtStatus note_file(Saver *s, const char *name, RtError *e) {
    char *path = rt_path("%s/%s", s->dir, name);
    RtMap m;
    RtStatus status = rt_map_file(path, &m, e);
    if (status == RT_OK) {
        json_t *file = json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)m.bytes);
        if (has_hash(name)) json_object_set_new(file, "xxh3", hex_json(XXH3_64bits(m.data, m.bytes)));
        json_array_append_new(s->files, file);
        rt_unmap(&m);
    }
    free(path);
    return status;
}

// One safetensors file and its side file of block hashes.
static RtStatus save_file(Saver *s, const char *name, const StWrite *w, int n, RtError *e) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += n_blocks(elements(&w[i]));
    uint64_t *block = malloc(((size_t)total + 1) * sizeof *block);
    int64_t *offset = malloc(((size_t)n + 1) * sizeof *offset);
    char *path = rt_path("%s/%s", s->dir, name), *side = rt_path("%s.xxh", name),
         *side_path = rt_path("%s/%s.xxh", s->dir, name);
    static const char *const metadata[] = {"format", "moec", NULL};
    RtStatus status =
        block && offset ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for the hashes of %s", path);
    if (status == RT_OK) status = st_write(path, w, n, metadata, offset, e);
    int64_t at = 0;
    for (int i = 0; status == RT_OK && i < n; i++) {
        int64_t count = elements(&w[i]);
        uint64_t hash = hash_tensor(w[i].data, count, st_dtype_bytes(w[i].dtype), block + at);
        json_t *shape = json_array();
        for (int d = 0; d < w[i].ndim; d++) json_array_append_new(shape, json_integer(w[i].dim[d]));
        json_object_set_new(s->tensors, w[i].name,
                            json_pack("{s:s, s:o, s:o, s:[{s:i, s:i, s:I, s:I}], s:I}", "dtype",
                                      st_dtype_name(w[i].dtype), "shape", shape, "hash", hex_json(hash),
                                      "pieces", "file", (int)json_array_size(s->files), "begin", 0, "end",
                                      (json_int_t)count, "offset", (json_int_t)offset[i], "blocks",
                                      (json_int_t)at));
        at += n_blocks(count);
    }
    if (status == RT_OK) status = note_file(s, name, e);
    if (status == RT_OK) status = rt_write_file(side_path, block, (size_t)total * sizeof *block, e);
    if (status == RT_OK) status = note_file(s, side, e);
    free(block);
    free(offset);
    free(path);
    free(side);
    free(side_path);
    return status;
}

// All parameters (weights-NNNNN, from 1) or all states (state-NNNNN, from 0), in plan order, files of at most
// 4 GiB.  Of several ranks: what is this one's to write, weights-RANK-NNNNN.
static RtStatus save_role(Saver *s, RtRole role, RtError *e) {
    const RtPlanInstance *p = s->p;
    int64_t most = 0;
    for (int i = 0; i < p->n_tensors; i++)
        if (is_saved(p, &p->tensor[i]) && p->tensor[i].role == role) most += n_pieces(&p->tensor[i]);
    StWrite *w = calloc((size_t)most + 1, sizeof *w);
    if (!w) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of tensors");
    RtStatus status = RT_OK;
    int n = 0, number = role == RT_PARAM ? 1 : 0;
    int64_t bytes = 0;
    for (int i = 0; i <= p->n_tensors && status == RT_OK; i++) {
        const RtTensor *t = i < p->n_tensors ? &p->tensor[i] : NULL;
        if (t && (!is_saved(p, t) || t->role != role)) continue;
        for (int64_t k = 0; k < (t ? n_pieces(t) : 1) && status == RT_OK; k++) {
            if (t && !is_writer(p, i, k)) continue;
            int64_t more = !t ? 0 : joined_bytes(p, t) / n_pieces(t);
            if (n && (!t || bytes + more > MAX_FILE)) {
                char *name = file_name(p->ranks, role, number++);
                status = save_file(s, name, w, n, e);
                free(name);
                while (n) free((char *)w[--n].name);
                bytes = 0;
            }
            if (!t) continue;
            char *name;
            w[n++] = piece(p, t, k, &name);
            if (is_cut(p, t)) w[n - 1].data = s->whole[i] + k * more;
            bytes += more;
        }
    }
    while (n) free((char *)w[--n].name);
    free(w);
    return status;
}

static RtStatus save_text(Saver *s, const char *name, const char *text, RtError *e) {
    if (!text) return RT_OK;
    char *path = rt_path("%s/%s", s->dir, name);
    RtStatus status = rt_write_file(path, text, strlen(text), e);
    free(path);
    return status == RT_OK ? note_file(s, name, e) : status;
}

// The experts in the slots of each table: any run may go on from there, none has to.
static json_t *placement_json(const RtPlanInstance *p) {
    json_t *all = json_object();
    for (uint32_t i = 0; p->ranks && i < p->plan->slot_tables.n; i++) {
        const RtSlots *t = &p->ranks->table[i];
        json_t *list = json_array();
        for (int s = 0; s < t->slots; s++) json_array_append_new(list, json_integer(t->expert[s]));
        json_object_set_new(all, t->name, list);
    }
    return all;
}

// Of another layout's run, what fits.
static RtStatus take_placement(const json_t *manifest, RtPlanInstance *p, RtError *e) {
    const json_t *all = json_object_get(json_object_get(manifest, "progress"), "placement");
    for (uint32_t i = 0; p->ranks && i < p->plan->slot_tables.n; i++) {
        RtSlots *t = &p->ranks->table[i];
        const json_t *list = json_object_get(all, t->name);
        if ((int)json_array_size(list) != t->slots) continue;
        int32_t *expert = malloc((size_t)t->slots * sizeof *expert);
        if (!expert) return rt_fail(e, RT_NO_MEMORY, "no memory for tables of experts");
        for (int s = 0; s < t->slots; s++) {
            json_int_t x = json_integer_value(json_array_get(list, (size_t)s));
            expert[s] = x >= 0 && x < t->experts ? (int32_t)x : -1;
        }
        rt_slots_set(t, expert);                            // replicas may be more than there are ranks now
        free(expert);
    }
    return RT_OK;
}

static RtStatus save_manifest(Saver *s, RtError *e) {
    const RtCkptInfo *info = s->info;
    RtMesh mesh = s->p->ranks ? s->p->ranks->mesh : (RtMesh){1, 1, 1, 0};
    time_t now = time(NULL);
    struct tm utc;
    char when[32], model_hash[17] = "", seconds[40];
    gmtime_r(&now, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    if (info->model_text) rt_hex64(XXH3_64bits(info->model_text, strlen(info->model_text)), model_hash);
    snprintf(seconds, sizeof seconds, "%a", info->seconds);
    json_t *m =
        json_pack("{s:s, s:i, s:[], s:I, s:s, s:{s:s, s:s, s:o}, s:{s:I, s:I, s:s}, s:{s:i, s:i, s:i, s:i}}",
                  "format", format, "version", VERSION, "needs", "step", (json_int_t)info->step, "time", when,
                  "model", "file", info->model_file ? info->model_file : "", "xxh3", model_hash, "graph",
                  hex_json(s->p->plan->graph_hash), "sum", "lanes", (json_int_t)info->leaves, "waves",
                  (json_int_t)info->waves, "kind", RT_TEXT(s->p->plan, s->p->plan->arithmetic), "layout",
                  "dp", mesh.dp, "ep", mesh.ep, "tp", mesh.tp, "zero", mesh.zero);
    json_t *progress =
        json_pack("{s:I, s:{s:o, s:I, s:I}, s:o, s:I, s:s}", "tokens", (json_int_t)info->tokens, "data",
                  "spec_hash", hex_json(info->data_hash), "epoch", (json_int_t)info->data.epoch,
                  "next_sample", (json_int_t)info->data.next_sample, "seed", hex_json(info->seed),
                  "skipped_steps", (json_int_t)info->skipped_steps, "seconds", seconds);
    json_object_set_new(progress, "placement", placement_json(s->p));
    json_object_set_new(m, "progress", progress);
    json_object_set(m, "files", s->files);
    json_object_set(m, "tensors", s->tensors);
    json_object_set_new(m, "self", json_string("0000000000000000"));
    char *text = json_dumps(m, JSON_INDENT(1));
    json_decref(m);
    if (!text) return rt_fail(e, RT_NO_MEMORY, "no memory for a manifest");
    size_t n = strlen(text);
    char *field = self_field(text, n), hex[17];
    rt_hex64(self_hash(text, n, field), hex);
    memcpy(field, hex, 16);
    char *path = rt_path("%s/manifest.json", s->dir);
    RtStatus status = rt_write_file(path, text, n, e);
    free(path);
    free(text);
    return status;
}

static int64_t step_of(const char *name) {
    if (strncmp(name, "step-", 5) != 0 || !isdigit((unsigned char)name[5])) return -1;
    char *end;
    int64_t step = strtoll(name + 5, &end, 10);
    return *end ? -1 : step;
}

typedef struct { int64_t step; char name[64]; } StepDir;

static int newest_first(const void *a, const void *b) {
    const StepDir *x = a, *y = b;
    return x->step > y->step ? -1 : x->step < y->step;
}

// The step-N folders of ckpt, newest first.  The caller frees the array; NULL: there is no such folder.
static StepDir *list_steps(const char *ckpt, int *n) {
    *n = 0;
    DIR *d = opendir(ckpt);
    if (!d) return NULL;
    StepDir *list = NULL;
    int cap = 0;
    for (struct dirent *entry; (entry = readdir(d));) {
        int64_t step = step_of(entry->d_name);
        if (step < 0 || strlen(entry->d_name) >= sizeof list->name) continue;
        if (*n == cap) {
            StepDir *more = realloc(list, (size_t)(cap = cap ? 2 * cap : 16) * sizeof *list);
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
static void sweep(const char *ckpt) {
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

static void delete_dir(const char *ckpt, const char *name) {
    char *path = rt_path("%s/%s", ckpt, name), *dead = rt_path("%s/.del-%s", ckpt, name);
    if (rename(path, dead) == 0) {
        rt_fault(FAULT_SAVE_DELETE, 0, step_of(name), NULL);
        rt_remove_tree(dead);
    }
    free(path);
    free(dead);
}

// Behind the one of `newest` just written.  Those of later steps are damaged, or it would not have been: they don't count.
static void retain(const char *ckpt, int64_t newest, int64_t keep) {
    int n;
    StepDir *list = list_steps(ckpt, &n);
    for (int i = 0, kept = 0; keep > 0 && i < n; i++)
        if (list[i].step <= newest && kept++ >= keep) delete_dir(ckpt, list[i].name);
    free(list);
}

static RtStatus fault(const Saver *s, RtFaultPoint at, RtError *e) {
    return rt_fault(at, rt_rank(s->p->ranks), s->info->step, e);
}

static RtStatus save_tensors(Saver *s, RtError *e) {
    RT_TRY(fault(s, FAULT_SAVE_TENSORS, e));
    RT_TRY(save_role(s, RT_PARAM, e));
    RT_TRY(fault(s, FAULT_SAVE_FILE, e));
    RT_TRY(save_role(s, RT_STATE, e));
    return rt_sync_dir(s->dir, e);
}

// What another rank wrote, behind one's own: its file numbers go on where these end.
static RtStatus take_over(Saver *s, const char *text, RtError *e) {
    json_t *from = json_loads(text, 0, NULL), *entry;
    if (!from) return rt_fail(e, RT_NO_MEMORY, "no memory for the files of another rank");
    json_int_t before = (json_int_t)json_array_size(s->files);
    json_array_extend(s->files, json_object_get(from, "files"));
    const char *name;
    json_object_foreach(json_object_get(from, "tensors"), name, entry) {
        json_t *where = json_array_get(json_object_get(entry, "pieces"), 0), *file = json_object_get(where, "file");
        json_integer_set(file, json_integer_value(file) + before);
        json_object_set(s->tensors, name, entry);
    }
    json_decref(from);
    return RT_OK;
}

static RtStatus take_over_all(Saver *s, RtError *e) {
    RtRanks *ranks = s->p->ranks;
    if (!ranks) return RT_OK;
    json_t *own = json_pack("{s:O, s:O}", "files", s->files, "tensors", s->tensors);
    char *text = json_dumps(own, JSON_COMPACT), *all = NULL;
    json_decref(own);
    RtStatus status = rt_gather_texts(ranks, text, &all, e);
    const char *at = all;
    for (int rank = 0; rank < ranks->n && status == RT_OK; rank++, at += strlen(at) + 1)
        if (rank != ranks->rank) status = take_over(s, at, e);
    free(text);
    free(all);
    return status;
}

static RtStatus save_rest(Saver *s, RtError *e) {
    RT_TRY(save_text(s, "model.moe", s->info->model_text, e));
    RT_TRY(save_text(s, "settings.json", s->info->settings, e));
    RT_TRY(fault(s, FAULT_SAVE_MANIFEST, e));
    RT_TRY(save_manifest(s, e));
    return rt_sync_dir(s->dir, e);
}

// Files hold rows; programs that only read their parameters have them otherwise, and save nothing.
static RtStatus can_be_saved(const RtPlanInstance *p, RtError *e) {
    for (int i = 0; i < p->n_tensors; i++)
        if (is_saved(p, &p->tensor[i]) && p->tensor[i].layout != LAYOUT_ROWS)
            return rt_fail(e, RT_BAD_PLAN, "'%s' lies in panels: programs made to be read from can't be saved",
                           rt_tensor_name(p, &p->tensor[i]));
    return RT_OK;
}

static RtStatus begin_folder(Saver *s, const char *ckpt, RtError *e) {
    RT_TRY(rt_make_dirs(ckpt, e));
    sweep(ckpt);
    return rt_make_dirs(s->dir, e);
}

static RtStatus move_in(Saver *s, const char *ckpt, const char *name, int64_t keep, RtError *e) {
    char *final = rt_path("%s/%s", ckpt, name), *latest = rt_path("%s/latest", ckpt);
    if (rt_is_dir(final)) delete_dir(ckpt, name); // saved before, by a run that went on from earlier
    RtStatus status = fault(s, FAULT_SAVE_RENAME, e);
    if (status == RT_OK && rename(s->dir, final) != 0) status = rt_fail(e, RT_IO, "cannot rename %s: %s", s->dir, strerror(errno));
    if (status == RT_OK) status = rt_sync_dir(ckpt, e);
    if (status == RT_OK) {
        fault(s, FAULT_SAVE_LATEST, NULL);
        rt_write_file(latest, name, strlen(name), NULL);                  // only a hint
        retain(ckpt, s->info->step, keep);
    }
    free(final);
    free(latest);
    return status;
}

// A part of saving is done when all ranks have done it.
static RtStatus together(const Saver *s, RtStatus own, RtError *e) {
    if (own != RT_OK) rt_add_context(e, own, "checkpoint of step %lld", (long long)s->info->step);
    return rt_agree(s->p->ranks, own, e);
}

static RtStatus make_room(Saver *s, RtError *e) {
    const RtPlanInstance *p = s->p;
    s->whole = calloc((size_t)p->n_tensors + 1, sizeof *s->whole);
    for (int i = 0; s->whole && i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!is_saved(p, t) || !is_cut(p, t) || !writes_any(p, i)) continue;
        s->whole[i] = malloc((size_t)joined_bytes(p, t) + 1);
        if (!s->whole[i]) return rt_fail(e, RT_NO_MEMORY, "no memory to put '%s' together", rt_tensor_name(p, t));
    }
    return s->whole ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for a list of tensors");
}

static RtStatus put_together(Saver *s, RtError *e) {
    const RtPlanInstance *p = s->p;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!is_saved(p, t) || !is_cut(p, t)) continue;
        RT_TRY(rt_gather_tensor(p, t, joined_parts(p, t), joined_at(p, i), s->whole[i], e));
    }
    return RT_OK;
}

static RtStatus save_as(Saver *s, const char *ckpt, const char *name, int64_t keep, RtError *e) {
    bool first = rt_rank(s->p->ranks) == 0;
    RtStatus status = can_be_saved(s->p, e);
    if (status == RT_OK) status = fault(s, FAULT_SAVE, e);
    if (status == RT_OK) status = make_room(s, e);
    if (status == RT_OK && first) status = begin_folder(s, ckpt, e);
    RT_TRY(together(s, status, e));
    RT_TRY(put_together(s, e));
    RT_TRY(together(s, save_tensors(s, e), e));
    status = take_over_all(s, e);
    if (status == RT_OK && first) status = save_rest(s, e);
    if (status == RT_OK && first) status = move_in(s, ckpt, name, keep, e);
    return together(s, status, e);
}

RtStatus rt_ckpt_save(const char *run, const RtPlanInstance *p, const RtCkptInfo *info, int64_t keep,
                      char **dir, RtError *e) {
    char *ckpt = rt_path("%s/ckpt", run), *name = rt_path("step-%08lld", (long long)info->step);
    char *tmp = rt_path("%s/.tmp-%s", ckpt, name);
    Saver s = {.p = p, .info = info, .dir = tmp, .files = json_array(), .tensors = json_object()};
    RtStatus status = save_as(&s, ckpt, name, keep, e);
    if (status != RT_OK && rt_rank(p->ranks) == 0) rt_remove_tree(tmp);
    if (status == RT_OK && dir) *dir = rt_path("%s/%s", ckpt, name);
    json_decref(s.files);
    json_decref(s.tensors);
    for (int i = 0; s.whole && i < p->n_tensors; i++) free(s.whole[i]);
    free(s.whole);
    free(ckpt);
    free(name);
    free(tmp);
    return status;
}

// ---- reading --------------------------------------------------------------------------------------------

static RtStatus read_manifest(const char *dir, json_t **out, RtError *e) {
    *out = NULL;
    char *path = rt_path("%s/manifest.json", dir), *text = NULL;
    size_t n = 0;
    RtStatus status = rt_read_file(path, &text, &n, e);
    if (status == RT_OK) {
        char *field = self_field(text, n), hex[17] = "";
        if (field) rt_hex64(self_hash(text, n, field), hex);
        if (!field || memcmp(hex, field, 16) != 0) status = BAD("%s is damaged: its hash does not fit", path);
    }
    json_error_t where;
    json_t *m = status == RT_OK ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &where) : NULL;
    if (status == RT_OK && !m) status = BAD("%s: %s", path, where.text);
    if (status == RT_OK) {
        const char *kind = json_string_value(json_object_get(m, "format"));
        json_int_t version = json_integer_value(json_object_get(m, "version"));
        const char *need = json_string_value(json_array_get(json_object_get(m, "needs"), 0));
        if (!kind || strcmp(kind, format) != 0) status = BAD("%s is not the manifest of a checkpoint", path);
        else if (version < 1 || version > VERSION)
            status =
                BAD("%s has version %lld; versions up to %d can be read", path, (long long)version, VERSION);
        else if (need) status = BAD("%s needs '%s', which this program cannot read", path, need);
    }
    if (status == RT_OK) *out = m;
    else json_decref(m);
    free(text);
    free(path);
    return status;
}

static RtStatus check_hash(const char *dir, const char *name, const json_t *file, RtError *e) {
    uint64_t expected;
    if (!hex_read(json_object_get(file, "xxh3"), &expected)) return RT_OK;       // also of what older versions wrote
    char *path = rt_path("%s/%s", dir, name);
    RtMap m;
    RtStatus status = rt_map_file(path, &m, e);
    if (status == RT_OK) {
        bool fits = XXH3_64bits(m.data, m.bytes) == expected;
        rt_unmap(&m);
        if (!fits) status = BAD("%s is damaged: its hash does not fit", path);
    }
    free(path);
    return status;
}

static RtStatus check_files(const char *dir, const json_t *manifest, RtError *e) {
    size_t i;
    json_t *f;
    json_array_foreach(json_object_get(manifest, "files"), i, f) {
        const char *name = json_string_value(json_object_get(f, "name"));
        if (!name || strchr(name, '/')) return BAD("%s/manifest.json: file %zu has no proper name", dir, i);
        char *path = rt_path("%s/%s", dir, name);
        struct stat st;
        bool there = stat(path, &st) == 0;
        free(path);
        if (!there) return BAD("%s: the file %s is missing", dir, name);
        json_int_t bytes = json_integer_value(json_object_get(f, "bytes"));
        if (st.st_size != bytes)
            return BAD("%s: the file %s has %lld bytes, not %lld", dir, name, (long long)st.st_size,
                       (long long)bytes);
        RT_TRY(check_hash(dir, name, f, e));
    }
    return RT_OK;
}

bool rt_ckpt_is_whole(const char *dir, RtError *e) {
    json_t *m;
    if (read_manifest(dir, &m, e) != RT_OK) return false;
    bool whole = check_files(dir, m, e) == RT_OK;
    json_decref(m);
    return whole;
}

static void skip(RtCkptSkipped *s, const char *why) {
    if (s->n++ == 0) snprintf(s->why, sizeof s->why, "%.399s", why);
}

// The newest whole one of a step before `before`, or path itself if it is a checkpoint; *step: its step.
// *dir NULL: there are none at all.
static RtStatus find_before(const char *path, int64_t before, char **dir, int64_t *step, RtCkptSkipped *skipped,
                            RtError *e) {
    *dir = NULL;
    char *manifest = rt_path("%s/manifest.json", path);
    bool is_checkpoint = rt_is_file(manifest);
    free(manifest);
    if (is_checkpoint && before == INT64_MAX) {
        if (!rt_ckpt_is_whole(path, e)) return RT_BAD_FILE;
        *dir = rt_path("%s", path);
        *step = 0;
        return RT_OK;
    }
    char *ckpt = rt_path("%s/ckpt", path);
    int n;
    errno = 0;
    StepDir *list = list_steps(ckpt, &n);
    int error = list || errno == ENOENT ? 0 : errno;
    RtError why = {RT_OK, ""};
    for (int i = 0; i < n && !*dir; i++) {
        if (list[i].step >= before) continue;
        char *candidate = rt_path("%s/%s", ckpt, list[i].name);
        if (rt_ckpt_is_whole(candidate, &why)) {
            *dir = candidate;
            *step = list[i].step;
            break;
        }
        skip(skipped, why.text);
        free(candidate);
    }
    free(list);
    RtStatus status = RT_OK;
    if (error) status = rt_fail(e, RT_IO, "cannot read %s: %s", ckpt, strerror(error));
    else if (n && !*dir)
        status = rt_fail(e, RT_BAD_FILE, "%s: no checkpoint is whole; of the newest: %s", path, skipped->why);
    free(ckpt);
    return status;
}

RtStatus rt_ckpt_find(const char *path, char **dir, RtCkptSkipped *skipped, RtError *e) {
    int64_t step;
    RtCkptSkipped passed_over = {0};
    RtStatus status = find_before(path, INT64_MAX, dir, &step, &passed_over, e);
    if (skipped) *skipped = passed_over;
    return status == RT_OK && !*dir ? rt_fail(e, RT_IO, "%s holds no checkpoint", path) : status;
}

typedef struct { const char *dir; json_t *manifest; StFiles **file; int n; } Loader;

static void loader_close(Loader *l) {
    for (int i = 0; i < l->n; i++) st_close(l->file[i]);
    free(l->file);
    json_decref(l->manifest);
}

static RtStatus loader_open(const char *dir, Loader *l, RtError *e) {
    *l = (Loader){.dir = dir};
    RT_TRY(read_manifest(dir, &l->manifest, e));
    RtStatus status = check_files(dir, l->manifest, e);
    const json_t *files = json_object_get(l->manifest, "files");
    l->n = (int)json_array_size(files);
    l->file = calloc((size_t)l->n + 1, sizeof *l->file);
    if (!l->file) status = rt_fail(e, RT_NO_MEMORY, "no memory for a list of files");
    for (int i = 0; i < l->n && status == RT_OK; i++) {
        const char *name = json_string_value(json_object_get(json_array_get(files, (size_t)i), "name"));
        if (!has_tensors(name)) continue;
        char *path = rt_path("%s/%s", dir, name);
        status = st_open(path, &l->file[i], e);
        free(path);
    }
    if (status != RT_OK) loader_close(l);
    return status;
}

// Weights are converted; where a run goes on, every state is what it was.
static RtStatus same_shape(const StTensor *from, const StWrite *to, bool convert, RtError *e) {
    DType any;
    bool same_type = from->dtype == to->dtype || (convert && st_dtype_to(from->dtype, &any) && dtype_is_float(any));
    bool same = same_type && from->ndim == to->ndim;
    for (int i = 0; same && i < to->ndim; i++) same = from->dim[i] == to->dim[i];
    if (same) return RT_OK;
    char text[2][160];
    for (int side = 0; side < 2; side++) {
        int n = snprintf(text[side], sizeof text[side], "%s[", st_dtype_name(side ? to->dtype : from->dtype));
        int ndim = side ? to->ndim : from->ndim;
        for (int i = 0; i < ndim; i++)
            n += snprintf(text[side] + n, sizeof text[side] - (size_t)n, "%s%lld", i ? "," : "",
                          (long long)(side ? to->dim[i] : from->dim[i]));
        snprintf(text[side] + n, sizeof text[side] - (size_t)n, "]");
    }
    return BAD("%s: '%s' is %s, but the model's is %s", from->file, from->name, text[0], text[1]);
}

// Which block is damaged, where the side file can tell; -1 otherwise.
static int64_t damaged_block(const char *file, const uint64_t *block, int64_t n, int64_t at) {
    char *path = rt_path("%s.xxh", file);
    RtMap m;
    int64_t found = -1;
    if (rt_map_file(path, &m, NULL) == RT_OK) {
        for (int64_t b = 0; b < n && found < 0 && (size_t)(at + b + 1) * 8 <= m.bytes; b++)
            if (memcmp(m.data + (at + b) * 8, &block[b], 8) != 0) found = b;
        rt_unmap(&m);
    }
    free(path);
    return found;
}

// Piece number k of a tensor, which is `to`.
static RtStatus load_piece(const Loader *l, const RtPlanInstance *p, const RtTensor *t, int64_t k, const StWrite *to,
                           bool exact, RtError *e) {
    const json_t *entry = json_object_get(json_object_get(l->manifest, "tensors"), to->name);
    const json_t *where = json_array_get(json_object_get(entry, "pieces"), 0);
    json_int_t file = json_integer_value(json_object_get(where, "file"));
    if (!entry || file < 0 || file >= l->n || !l->file[file])
        return BAD("%s: tensor '%s' is missing", l->dir, to->name);
    const StTensor *from = st_find(l->file[file], to->name);
    if (!from) return BAD("%s: tensor '%s' is missing from its file", l->dir, to->name);
    RT_TRY(same_shape(from, to, !exact && dtype_is_float((DType)t->dtype), e));
    uint64_t expected;
    if (!hex_read(json_object_get(entry, "hash"), &expected))
        return BAD("%s: tensor '%s' has no hash", l->dir, to->name);
    uint64_t *block = malloc(((size_t)n_blocks(from->elements) + 1) * sizeof *block);
    if (!block) return rt_fail(e, RT_NO_MEMORY, "no memory for the hashes of '%s'", to->name);
    uint64_t hash = hash_tensor(from->data, from->elements, st_dtype_bytes(from->dtype), block);
    RtStatus status = RT_OK;
    if (hash != expected) {
        int64_t bad = damaged_block(from->file, block, n_blocks(from->elements),
                                    json_integer_value(json_object_get(entry, "blocks")));
        status = bad < 0 ? BAD("%s: tensor '%s' is damaged: its hash does not fit", from->file, to->name)
                         : BAD("%s: tensor '%s' is damaged near element %lld: its hash does not fit",
                               from->file, to->name, (long long)(bad * BLOCK));
    } else {
        DType dtype = (DType)t->dtype;
        st_dtype_to(from->dtype, &dtype);
        int64_t first = t->experts ? rt_tensor_expert(p, t, k) * from->elements : 0;
        rt_tensor_take(p, t, first, from->elements, from->data, dtype);
        st_drop(from);
    }
    free(block);
    return status;
}

static RtStatus missing(const RtPlanInstance *p, const Loader *l, const char *name, RtError *e) {
    const char *near = NULL;
    size_t best = 0;
    const char *other;
    json_t *entry;
    json_object_foreach(json_object_get(l->manifest, "tensors"), other, entry) {       // longest common end
        size_t n = strlen(name), m = strlen(other), k = 0;
        while (k < n && k < m && name[n - 1 - k] == other[m - 1 - k]) k++;
        if (k > best && !rt_tensor(p, other)) best = k, near = other;
    }
    return BAD("%s has no tensor '%s'%s%s%s", l->dir, name, near ? "; nearest: '" : "", near ? near : "",
               near ? "'" : "");
}

static int64_t integer(const json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

static char *read_text(const char *dir, const char *name) {
    char *path = rt_path("%s/%s", dir, name), *text = NULL;
    rt_read_file(path, &text, NULL, NULL);
    free(path);
    return text;
}

static void fill_info(const char *dir, const json_t *m, RtCkptInfo *info) {
    const json_t *progress = json_object_get(m, "progress"), *data = json_object_get(progress, "data"),
                 *sum = json_object_get(m, "sum");
    const char *seconds = json_string_value(json_object_get(progress, "seconds"));
    const char *file = json_string_value(json_object_get(json_object_get(m, "model"), "file"));
    const char *arithmetic = json_string_value(json_object_get(sum, "kind"));
    *info = (RtCkptInfo){.step = integer(m, "step"),
                         .tokens = integer(progress, "tokens"),
                         .skipped_steps = integer(progress, "skipped_steps"),
                         .data = {integer(data, "epoch"), integer(data, "next_sample")},
                         .leaves = integer(sum, "lanes"),
                         .waves = integer(sum, "waves"),
                         .seconds = seconds ? strtod(seconds, NULL) : 0,
                         .owned = true};
    hex_read(json_object_get(data, "spec_hash"), &info->data_hash);
    hex_read(json_object_get(progress, "seed"), &info->seed);
    info->model_file = file && *file ? rt_path("%s", file) : NULL;
    info->arithmetic = arithmetic ? rt_path("%s", arithmetic) : NULL;
    info->model_text = read_text(dir, "model.moe");
    info->settings = read_text(dir, "settings.json");
}

RtStatus rt_ckpt_info(const char *dir, RtCkptInfo *info, RtError *e) {
    *info = (RtCkptInfo){.owned = true};
    json_t *m;
    RT_TRY(read_manifest(dir, &m, e));
    fill_info(dir, m, info);
    json_decref(m);
    return RT_OK;
}

void rt_ckpt_free(RtCkptInfo *info) {
    if (!info->owned) return;
    free((char *)info->model_file);
    free((char *)info->model_text);
    free((char *)info->settings);
    free((char *)info->arithmetic);
    *info = (RtCkptInfo){.owned = false};
}

// Parameters must all be there; states too if `all`, else those that are there are taken.
static RtStatus load_tensors(const Loader *l, RtPlanInstance *p, bool all, RtError *e) {
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!is_saved(p, t)) continue;
        for (int64_t k = 0; k < n_pieces(t); k++) {
            char *name;
            StWrite to = piece(p, t, k, &name);
            bool there = json_object_get(json_object_get(l->manifest, "tensors"), name) != NULL;
            RtStatus status = there                        ? load_piece(l, p, t, k, &to, all, e)
                              : all || t->role == RT_PARAM ? missing(p, l, name, e)
                                                           : RT_OK;
            free(name);
            RT_TRY(status);
        }
    }
    return RT_OK;
}

RtStatus rt_ckpt_load(const char *dir, RtPlanInstance *p, RtCkptInfo *info, RtError *e) {
    Loader l;
    RT_TRY(loader_open(dir, &l, e));
    RtStatus status = take_placement(l.manifest, p, e);
    if (status == RT_OK) status = load_tensors(&l, p, true, e);
    if (status == RT_OK && info) fill_info(dir, l.manifest, info);
    loader_close(&l);
    return status;
}

// find_before as the first rank sees it.
static RtStatus find_for_all(RtRanks *ranks, const char *run, char **dir, int64_t *step, RtCkptSkipped *skipped,
                             RtError *e) {
    struct { int64_t step; int32_t there; RtCkptSkipped skipped; char dir[PATH_MAX]; } found = {.step = *step, .skipped = *skipped};
    *dir = NULL;
    RtStatus status = RT_OK;
    if (rt_rank(ranks) == 0) {
        status = find_before(run, *step, dir, &found.step, &found.skipped, e);
        found.there = *dir != NULL;
        if (*dir) snprintf(found.dir, sizeof found.dir, "%s", *dir);
    }
    status = rt_agree(ranks, status, e);
    if (status == RT_OK) status = rt_from_first(ranks, &found, sizeof found, e);
    *step = found.step;
    *skipped = found.skipped;
    if (status == RT_OK && found.there && !*dir) *dir = rt_path("%s", found.dir);
    return status;
}

RtStatus rt_ckpt_load_newest(const char *run, RtPlanInstance *p, RtCkptInfo *info, char **dir, RtCkptSkipped *skipped,
                             RtError *e) {
    RtError of_newest = {RT_OK, ""};
    int64_t step = INT64_MAX;
    *skipped = (RtCkptSkipped){0};
    if (rt_rank(p->ranks) == 0) {
        char *ckpt = rt_path("%s/ckpt", run);
        sweep(ckpt);
        free(ckpt);
    }
    for (;;) {
        RtStatus status = find_for_all(p->ranks, run, dir, &step, skipped, e);
        if (status != RT_OK || !*dir) {
            if (!of_newest.code) return status;
            if (e) *e = of_newest;
            return of_newest.code;
        }
        rt_fault(FAULT_LOAD, rt_rank(p->ranks), step, NULL);
        RtStatus own = rt_ckpt_load(*dir, p, info, e);
        status = rt_agree(p->ranks, own, e);
        if (status == RT_OK) return status;
        if (own == RT_OK) rt_ckpt_free(info);
        free(*dir);
        *dir = NULL;
        if (status != RT_BAD_FILE) return status;
        // the one before may be better
        if (!of_newest.code) of_newest = e ? *e : (RtError){RT_BAD_FILE, ""};
        skip(skipped, e ? e->text : "");
    }
}

// A file's tensor, from element `first` of the whole one on.  Types that no plan holds go through floats.
static RtStatus put_any(const RtPlanInstance *p, const RtTensor *t, int64_t first, const StTensor *from, RtError *e) {
    DType dtype;
    int64_t n = from->elements;
    if (st_dtype_to(from->dtype, &dtype)) {
        rt_tensor_take(p, t, first, n, from->data, dtype);
        return RT_OK;
    }
    float *x = malloc(((size_t)n + 1) * sizeof *x);
    if (!x) return rt_fail(e, RT_NO_MEMORY, "no memory to convert '%s'", from->name);
    RtStatus status = st_read_f32(from, 0, n, x, e);
    if (status == RT_OK) rt_tensor_take(p, t, first, n, x, F32);
    free(x);
    return status;
}

// Any safetensors whose names are the model's; other float types are converted.
static RtStatus load_plain(const char *path, RtPlanInstance *p, RtError *e) {
    StFiles *f;
    RT_TRY(st_open(path, &f, e));
    RtStatus status = RT_OK;
    for (int i = 0; i < p->n_tensors && status == RT_OK; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!is_saved(p, t)) continue;
        const StTensor *whole = st_find(f, rt_tensor_name(p, t));
        for (int64_t k = 0; k < (whole ? 1 : n_pieces(t)) && status == RT_OK; k++) {
            char *name;
            StWrite to = piece(p, t, k, &name);
            const StTensor *from = whole ? whole : st_find(f, name);
            int64_t n = elements(&to), first = whole || !t->experts ? 0 : rt_tensor_expert(p, t, k) * n;
            if (whole && t->experts) n = rt_tensor_whole(p, t);
            if (!from && t->role == RT_PARAM) status = BAD("%s has no tensor '%s'", path, name);
            else if (from && from->elements != n)
                status = BAD("%s: '%s' has %lld elements, the model's has %lld", from->file, from->name,
                             (long long)from->elements, (long long)n);
            if (from && status == RT_OK) status = put_any(p, t, first, from, e);
            if (from) st_drop(from);
            free(name);
        }
    }
    st_close(f);
    return status;
}

RtStatus rt_ckpt_load_weights(const char *path, RtPlanInstance *p, RtError *e) {
    char *manifest = rt_path("%s/manifest.json", path), *ckpt = rt_path("%s/ckpt", path);
    bool ours = rt_is_file(manifest) || rt_is_dir(ckpt);
    free(manifest);
    free(ckpt);
    if (!ours) return load_plain(path, p, e);
    char *dir;
    RT_TRY(rt_ckpt_find(path, &dir, NULL, e));
    Loader l;
    RtStatus status = loader_open(dir, &l, e);
    if (status == RT_OK) {
        status = load_tensors(&l, p, false, e);
        loader_close(&l);
    }
    free(dir);
    return status;
}
