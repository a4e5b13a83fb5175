// Checkpoints read: the newest whole one, verified, by any layout of ranks.
#include "runtime/checkpoint_parts.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/convert.h"
#include "runtime/fault.h"
#include "runtime/files.h"
#include "runtime/gather.h"
#include "runtime/layout.h"

#define BAD(...) rt_fail(e, RT_BAD_FILE, __VA_ARGS__)

static bool hex_read(const json_t *v, uint64_t *out) {
    const char *text = json_string_value(v);
    char *end = NULL;
    if (!text || strlen(text) != 16) return false;
    *out = strtoull(text, &end, 16);
    return !*end;
}

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

static RtStatus read_manifest(const char *dir, json_t **out, RtError *e) {
    *out = NULL;
    char *path = rt_path("%s/manifest.json", dir), *text = NULL;
    size_t n = 0;
    RtStatus status = rt_read_file(path, &text, &n, e);
    if (status == RT_OK) {
        char *field = ckpt_self_field(text, n), hex[17] = "";
        if (field) rt_hex64(ckpt_self_hash(text, n, field), hex);
        if (!field || memcmp(hex, field, 16) != 0) status = BAD("%s is damaged: its hash does not fit", path);
    }
    json_error_t where;
    json_t *m = status == RT_OK ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &where) : NULL;
    if (status == RT_OK && !m) status = BAD("%s: %s", path, where.text);
    if (status == RT_OK) {
        const char *kind = json_string_value(json_object_get(m, "format"));
        json_int_t version = json_integer_value(json_object_get(m, "version"));
        const char *need = json_string_value(json_array_get(json_object_get(m, "needs"), 0));
        if (!kind || strcmp(kind, ckpt_format) != 0) status = BAD("%s is not the manifest of a checkpoint", path);
        else if (version < 1 || version > CKPT_VERSION)
            status =
                BAD("%s has version %lld; versions up to %d can be read", path, (long long)version, CKPT_VERSION);
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
    CkptStep *list = ckpt_list_steps(ckpt, &n);
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
        if (!ckpt_has_tensors(name)) continue;
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
    uint64_t *block = malloc(((size_t)ckpt_n_blocks(from->elements) + 1) * sizeof *block);
    if (!block) return rt_fail(e, RT_NO_MEMORY, "no memory for the hashes of '%s'", to->name);
    uint64_t hash = ckpt_hash_tensor(from->data, from->elements, st_dtype_bytes(from->dtype), block);
    RtStatus status = RT_OK;
    if (hash != expected) {
        int64_t bad = damaged_block(from->file, block, ckpt_n_blocks(from->elements),
                                    json_integer_value(json_object_get(entry, "blocks")));
        status = bad < 0 ? BAD("%s: tensor '%s' is damaged: its hash does not fit", from->file, to->name)
                         : BAD("%s: tensor '%s' is damaged near element %lld: its hash does not fit",
                               from->file, to->name, (long long)(bad * CKPT_BLOCK));
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
        if (!ckpt_is_saved(p, t)) continue;
        for (int64_t k = 0; k < ckpt_n_pieces(t); k++) {
            char *name;
            StWrite to = ckpt_piece(p, t, k, &name);
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
        ckpt_sweep(ckpt);
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
        if (!ckpt_is_saved(p, t)) continue;
        const StTensor *whole = st_find(f, rt_tensor_name(p, t));
        for (int64_t k = 0; k < (whole ? 1 : ckpt_n_pieces(t)) && status == RT_OK; k++) {
            char *name;
            StWrite to = ckpt_piece(p, t, k, &name);
            const StTensor *from = whole ? whole : st_find(f, name);
            int64_t n = ckpt_elements(&to), first = whole || !t->experts ? 0 : rt_tensor_expert(p, t, k) * n;
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
