// safetensors: reading with every claim of the header checked, and writing files that are whole or not there.
#include "runtime/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/convert.h"
#include "runtime/files.h"

enum { MAX_HEADER = 100000000, MAX_FILES = 4096, MAX_TENSORS = 4000000 };

// ---- element types --------------------------------------------------------------------------------------

static const struct { const char *name; int bytes; int dtype;
} types[ST_DTYPES] = {
    [ST_F64] = {"F64", 8, F64},    [ST_F32] = {"F32", 4, F32},        [ST_F16] = {"F16", 2, F16},
    [ST_BF16] = {"BF16", 2, BF16}, [ST_I64] = {"I64", 8, I64},        [ST_I32] = {"I32", 4, I32},
    [ST_I16] = {"I16", 2, -1},     [ST_I8] = {"I8", 1, I8},           [ST_U64] = {"U64", 8, -1},
    [ST_U32] = {"U32", 4, U32},    [ST_U16] = {"U16", 2, -1},         [ST_U8] = {"U8", 1, U8},
    [ST_BOOL] = {"BOOL", 1, BOOL}, [ST_F8_E4M3] = {"F8_E4M3", 1, -1}, [ST_F8_E5M2] = {"F8_E5M2", 1, -1},
};

const char *st_dtype_name(StDType t) { return types[t].name; }
int st_dtype_bytes(StDType t) { return types[t].bytes; }

StDType st_dtype_of(DType t) {
    for (int i = 0; i < ST_DTYPES; i++)
        if (types[i].dtype == (int)t) return (StDType)i;
    return ST_U8;
}

bool st_dtype_to(StDType t, DType *out) {
    if (types[t].dtype < 0) return false;
    *out = (DType)types[t].dtype;
    return true;
}

// ---- reading --------------------------------------------------------------------------------------------

typedef struct { char *path; RtMap map; json_t *header; } OneFile;

struct StFiles {
    OneFile  *file;
    int       n_files;
    StTensor *tensor;
    int       n, cap;
    json_t   *index;            // of a sharded folder
};

#define BAD(...) rt_fail(e, RT_BAD_FILE, __VA_ARGS__)

static RtStatus read_shape(const json_t *shape, StTensor *t, RtError *e) {
    if (!json_is_array(shape)) return BAD("%s: tensor '%s' has no shape", t->file, t->name);
    if (json_array_size(shape) > MAX_DIM)
        return BAD("%s: tensor '%s' has %zu dimensions, at most %d are read", t->file, t->name,
                   json_array_size(shape), MAX_DIM);
    t->ndim = (int)json_array_size(shape);
    t->elements = 1;
    for (int i = 0; i < t->ndim; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        t->dim[i] = json_is_integer(d) ? (int64_t)json_integer_value(d) : -1;
        if (t->dim[i] < 0 || __builtin_mul_overflow(t->elements, t->dim[i], &t->elements))
            return BAD("%s: tensor '%s': dimension %d is wrong or too large", t->file, t->name, i);
    }
    return RT_OK;
}

static RtStatus read_entry(const json_t *entry, StTensor *t, const unsigned char *data, size_t data_bytes,
                           size_t data_at, RtError *e) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype) return BAD("%s: tensor '%s' has no dtype", t->file, t->name);
    int type = 0;
    while (type < ST_DTYPES && strcmp(types[type].name, dtype) != 0) type++;
    if (type == ST_DTYPES)
        return BAD("%s: tensor '%s' has dtype '%.32s', which is not known", t->file, t->name, dtype);
    t->dtype = (StDType)type;
    RT_TRY(read_shape(json_object_get(entry, "shape"), t, e));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return BAD("%s: tensor '%s' has no data_offsets", t->file, t->name);
    int64_t begin = json_integer_value(from), end = json_integer_value(to), bytes;
    if (begin < 0 || end < begin)
        return BAD("%s: tensor '%s': data_offsets [%lld, %lld]", t->file, t->name, (long long)begin,
                   (long long)end);
    if (__builtin_mul_overflow(t->elements, (int64_t)types[type].bytes, &bytes) || bytes != end - begin)
        return BAD(
            "%s: tensor '%s': its shape needs %lld elements of %d bytes, but data_offsets hold %lld bytes",
            t->file, t->name, (long long)t->elements, types[type].bytes, (long long)(end - begin));
    if ((uint64_t)end > data_bytes)
        return BAD(
            "%s: tensor '%s' ends at byte %llu of the file, which has only %llu: the file is truncated",
            t->file, t->name, (unsigned long long)(data_at + (uint64_t)end),
            (unsigned long long)(data_at + data_bytes));
    t->bytes = (size_t)bytes;
    t->offset = data_at + (size_t)begin;
    t->data = data + begin;
    return RT_OK;
}

static int by_offset(const void *a, const void *b) {
    const StTensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

// The tensors of one file, in order of offset, must fill the data part exactly.
static RtStatus check_ranges(StTensor *t, int n, const char *path, size_t data_at, size_t file_bytes,
                             RtError *e) {
    if (n) qsort(t, (size_t)n, sizeof *t, by_offset);
    size_t end = data_at;
    for (int i = 0; i < n; i++) {
        if (t[i].offset < end)
            return BAD("%s: tensors '%s' and '%s' overlap", path, t[i - 1].name, t[i].name);
        if (t[i].offset > end)
            return BAD("%s: %zu bytes before tensor '%s' belong to nobody", path, t[i].offset - end,
                       t[i].name);
        end += t[i].bytes;
    }
    if (end != file_bytes)
        return BAD("%s: %zu bytes after the last tensor belong to nobody", path, file_bytes - end);
    return RT_OK;
}

static RtStatus reserve(StFiles *f, int more, RtError *e) {
    if (f->n + more > MAX_TENSORS) return BAD("more than %d tensors", MAX_TENSORS);
    if (f->n + more <= f->cap) return RT_OK;
    int cap = (f->n + more) * 2;
    StTensor *t = realloc(f->tensor, (size_t)cap * sizeof *t);
    if (!t) return rt_fail(e, RT_NO_MEMORY, "no memory for %d tensors", cap);
    f->tensor = t;
    f->cap = cap;
    return RT_OK;
}

// Takes over path.
static RtStatus add_file(StFiles *f, char *path, RtError *e) {
    OneFile *one = realloc(f->file, (size_t)(f->n_files + 1) * sizeof *one);
    if (!one) { free(path); return rt_fail(e, RT_NO_MEMORY, "no memory for a list of files"); }
    f->file = one;
    one += f->n_files++;
    *one = (OneFile){.path = path};
    RT_TRY(rt_map_file(path, &one->map, e));
    if (one->map.bytes < 8) return BAD("%s has %zu bytes: not a safetensors file", path, one->map.bytes);
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | one->map.data[i];
    if (header_bytes > MAX_HEADER)
        return BAD("%s: the header has %llu bytes: not a safetensors file", path,
                   (unsigned long long)header_bytes);
    if (header_bytes > one->map.bytes - 8)
        return BAD("%s: the header has %llu bytes, but the file only %zu: the file is truncated", path,
                   (unsigned long long)header_bytes, one->map.bytes);
    json_error_t where;
    one->header = json_loadb((const char *)one->map.data + 8, header_bytes, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(one->header))
        return BAD("%s: the header is not a JSON object (%s)", path,
                   one->header ? "another value" : where.text);

    RT_TRY(reserve(f, (int)json_object_size(one->header), e));
    size_t data_at = 8 + (size_t)header_bytes;
    int first = f->n;
    const char *name;
    json_t *entry;
    json_object_foreach(one->header, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        StTensor *t = &f->tensor[f->n];
        *t = (StTensor){.name = name, .file = path};
        RT_TRY(read_entry(entry, t, one->map.data + data_at, one->map.bytes - data_at, data_at, e));
        f->n++;
    }
    return check_ranges(f->tensor + first, f->n - first, path, data_at, one->map.bytes, e);
}

static RtStatus check_names(StFiles *f, RtError *e) {
    if (f->n) qsort(f->tensor, (size_t)f->n, sizeof *f->tensor, by_name);
    for (int i = 1; i < f->n; i++)
        if (!strcmp(f->tensor[i - 1].name, f->tensor[i].name))
            return BAD("tensor '%s' is in %s and in %s", f->tensor[i].name, f->tensor[i - 1].file,
                       f->tensor[i].file);
    return RT_OK;
}

static int text_order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static RtStatus add_index(StFiles *f, const char *dir, const char *index_path, RtError *e) {
    json_error_t where;
    f->index = json_load_file(index_path, JSON_REJECT_DUPLICATES, &where);
    if (!f->index) return BAD("%s: %s", index_path, where.text);
    json_t *map = json_object_get(f->index, "weight_map");
    if (!json_is_object(map)) return BAD("%s has no weight_map", index_path);
    json_t *seen = json_object();
    const char *name;
    json_t *value;
    RtStatus s = RT_OK;
    json_object_foreach(map, name, value) {
        const char *file = json_string_value(value);
        if (!file || !*file || strchr(file, '/') || file[0] == '.')
            s = BAD("%s: tensor '%s' lies in a file of no proper name", index_path, name);
        else if (!json_object_get(seen, file)) json_object_set_new(seen, file, json_true());
        if (s != RT_OK) break;
    }
    if (s == RT_OK && json_object_size(seen) > MAX_FILES)
        s = BAD("%s names %zu files", index_path, json_object_size(seen));
    if (s == RT_OK)
        json_object_foreach(seen, name, value) {
            s = add_file(f, rt_path("%s/%s", dir, name), e);
            if (s != RT_OK) break;
        }
    json_decref(seen);
    RT_TRY(s);
    RT_TRY(check_names(f, e));
    json_object_foreach(map, name, value) {
        const StTensor *t = st_find(f, name);
        if (!t)
            return BAD("%s says that %s holds tensor '%s', but it does not", index_path,
                       json_string_value(value), name);
    }
    return RT_OK;
}

// weights-00001.safetensors ... of a checkpoint.
static RtStatus add_pieces(StFiles *f, const char *dir, RtError *e) {
    DIR *d = opendir(dir);
    if (!d) return rt_fail(e, RT_IO, "cannot open folder %s: %s", dir, strerror(errno));
    char *path[MAX_FILES];
    int n = 0;
    for (struct dirent *entry; n < MAX_FILES && (entry = readdir(d));) {
        size_t length = strlen(entry->d_name);
        if (!strncmp(entry->d_name, "weights-", 8) && length > 12 &&
            !strcmp(entry->d_name + length - 12, ".safetensors"))
            path[n++] = rt_path("%s/%s", dir, entry->d_name);
    }
    closedir(d);
    qsort(path, (size_t)n, sizeof *path, text_order);
    if (n == 0)
        return rt_fail(
            e, RT_IO,
            "%s holds neither model.safetensors.index.json nor model.safetensors nor weights-*.safetensors",
            dir);
    RtStatus s = RT_OK;
    for (int i = 0; i < n; i++) {
        if (s == RT_OK) s = add_file(f, path[i], e);
        else free(path[i]);
    }
    return s;
}

static RtStatus add_path(StFiles *f, const char *path, RtError *e) {
    if (!rt_is_dir(path)) {
        RT_TRY(add_file(f, rt_path("%s", path), e));
        return check_names(f, e);
    }
    char *index = rt_path("%s/model.safetensors.index.json", path),
         *single = rt_path("%s/model.safetensors", path);
    RtStatus s;
    if (rt_is_file(index)) s = add_index(f, path, index, e);
    else if (rt_is_file(single)) {
        s = add_file(f, single, e);
        single = NULL;
        if (s == RT_OK) s = check_names(f, e);
    } else {
        s = add_pieces(f, path, e);
        if (s == RT_OK) s = check_names(f, e);
    }
    free(index);
    free(single);
    return s;
}

RtStatus st_open(const char *path, StFiles **out, RtError *e) {
    *out = NULL;
    StFiles *f = calloc(1, sizeof *f);
    if (!f) return rt_fail(e, RT_NO_MEMORY, "no memory for %s", path);
    RtStatus s = add_path(f, path, e);
    if (s != RT_OK) st_close(f);
    else *out = f;
    return s;
}

void st_close(StFiles *f) {
    if (!f) return;
    for (int i = 0; i < f->n_files; i++) {
        json_decref(f->file[i].header);
        rt_unmap(&f->file[i].map);
        free(f->file[i].path);
    }
    json_decref(f->index);
    free(f->file);
    free(f->tensor);
    free(f);
}

int st_count(const StFiles *f) { return f->n; }
const StTensor *st_at(const StFiles *f, int i) { return &f->tensor[i]; }

const StTensor *st_find(const StFiles *f, const char *name) {
    StTensor key = {.name = name};
    return f->n ? bsearch(&key, f->tensor, (size_t)f->n, sizeof key, by_name) : NULL;
}

const char *st_metadata(const StFiles *f, const char *key) {
    if (!f->n_files) return NULL;
    return json_string_value(json_object_get(json_object_get(f->file[0].header, "__metadata__"), key));
}

// 8-bit floats: E4M3 has no infinities, its largest exponent with all ones is NaN; E5M2 is half of an f16.
static double f8_e4m3(unsigned char x) {
    int exponent = x >> 3 & 15, mantissa = x & 7;
    double magnitude = exponent == 15 && mantissa == 7 ? (double)__builtin_nanf("")
                     : exponent ? (8 + mantissa) * 0x1p-10 * (double)(1 << exponent) : mantissa * 0x1p-9;
    return x & 0x80 ? -magnitude : magnitude;
}

double st_number(const StTensor *t, int64_t i) {
    const unsigned char *at = t->data + i * types[t->dtype].bytes;
    switch (t->dtype) {
    case ST_I16: { int16_t x; memcpy(&x, at, 2); return x; }
    case ST_U16: { uint16_t x; memcpy(&x, at, 2); return x; }
    case ST_U64: { uint64_t x; memcpy(&x, at, 8); return (double)x; }
    case ST_F8_E4M3: return f8_e4m3(*at);
    case ST_F8_E5M2: return (double)rt_f16_to_f32((uint16_t)(*at << 8));
    default: return rt_load_number(t->data, (DType)types[t->dtype].dtype, i);
    }
}

void st_drop(const StTensor *t) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)t->data + page - 1) / page * page, end = ((uintptr_t)t->data + t->bytes) / page * page;
    if (first < end) madvise((void *)first, end - first, MADV_DONTNEED);      // comes back from the file if need be
}

static RtStatus check_range(const StTensor *t, int64_t begin, int64_t n, RtError *e) {
    if (begin >= 0 && n >= 0 && n <= t->elements - begin) return RT_OK;
    return BAD("%s: tensor '%s' has %lld elements, not [%lld, %lld)", t->file, t->name,
               (long long)t->elements, (long long)begin, (long long)(begin + n));
}

RtStatus st_read_f32(const StTensor *t, int64_t begin, int64_t n, float *out, RtError *e) {
    RT_TRY(check_range(t, begin, n, e));
    if (t->dtype == ST_F32) {
        if (n) memcpy(out, t->data + begin * 4, (size_t)n * 4);
        return RT_OK;
    }
    for (int64_t i = 0; i < n; i++) out[i] = (float)st_number(t, begin + i);
    return RT_OK;
}

RtStatus st_read_f64(const StTensor *t, int64_t begin, int64_t n, double *out, RtError *e) {
    RT_TRY(check_range(t, begin, n, e));
    for (int64_t i = 0; i < n; i++) out[i] = st_number(t, begin + i);
    return RT_OK;
}

// ---- writing --------------------------------------------------------------------------------------------

static int64_t write_bytes(const StWrite *w) {
    int64_t bytes = types[w->dtype].bytes;
    for (int i = 0; i < w->ndim; i++) bytes *= w->dim[i];
    return bytes;
}

// Tensor numbers, larger elements first (so every tensor is aligned), otherwise as given.
static int *layout_order(const StWrite *tensor, int n) {
    int *order = malloc(((size_t)n + 1) * sizeof *order), filled = 0;
    if (!order) return NULL;
    for (int size = 8; size; size /= 2)
        for (int i = 0; i < n; i++)
            if (types[tensor[i].dtype].bytes == size) order[filled++] = i;
    return order;
}

static char *make_header(const StWrite *tensor, int n, const int *order, const char *const *metadata,
                         size_t *bytes) {
    json_t *header = json_object();
    if (metadata) {
        json_t *m = json_object();
        for (; metadata[0]; metadata += 2) json_object_set_new(m, metadata[0], json_string(metadata[1]));
        json_object_set_new(header, "__metadata__", m);
    }
    int64_t at = 0;
    for (int k = 0; k < n; k++) {
        const StWrite *w = &tensor[order[k]];
        json_t *shape = json_array();
        for (int i = 0; i < w->ndim; i++) json_array_append_new(shape, json_integer(w->dim[i]));
        int64_t end = at + write_bytes(w);
        json_object_set_new(header, w->name,
                            json_pack("{s:s, s:o, s:[I,I]}", "dtype", types[w->dtype].name, "shape", shape,
                                      "data_offsets", (json_int_t)at, (json_int_t)end));
        at = end;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) return NULL;
    size_t used = strlen(text), padded = (8 + used + 63) / 64 * 64 - 8;   // data starts at a multiple of 64
    char *block = malloc(8 + padded);
    if (block) {
        for (int i = 0; i < 8; i++) block[i] = (char)(padded >> 8 * i & 0xff);
        memcpy(block + 8, text, used);
        memset(block + 8 + used, ' ', padded - used);
        *bytes = 8 + padded;
    }
    free(text);
    return block;
}

static RtStatus write_parts(int fd, const char *path, const StWrite *tensor, int n, const int *order,
                            const char *header, size_t header_bytes, int64_t *offset, RtError *e) {
    int64_t total = (int64_t)header_bytes;
    for (int i = 0; i < n; i++) total += write_bytes(&tensor[i]);
    int full = posix_fallocate(fd, 0, total);               // a full disk shows before anything is written
    if (full == ENOSPC || full == EFBIG || full == EDQUOT)
        return rt_fail(e, RT_IO, "cannot write %s (%.1f MB): %s", path, (double)total / 1e6, strerror(full));
    RT_TRY(rt_write_all(fd, path, header, header_bytes, e));
    int64_t at = (int64_t)header_bytes;
    for (int k = 0; k < n; k++) {
        const StWrite *w = &tensor[order[k]];
        if (offset) offset[order[k]] = at;
        RT_TRY(rt_write_all(fd, path, w->data, (size_t)write_bytes(w), e));
        at += write_bytes(w);
    }
    if (fsync(fd) != 0) return rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
    return RT_OK;
}

RtStatus st_write(const char *path, const StWrite *tensor, int n, const char *const *metadata,
                  int64_t *offset, RtError *e) {
    size_t header_bytes = 0;
    int *order = layout_order(tensor, n);
    char *header = order ? make_header(tensor, n, order, metadata, &header_bytes) : NULL;
    char *tmp = rt_path("%s.tmp", path);
    RtStatus s = header ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for the header of %s", path);
    int fd = s == RT_OK ? open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : -1;
    if (s == RT_OK && fd < 0) s = rt_fail(e, RT_IO, "cannot create %s: %s", tmp, strerror(errno));
    if (s == RT_OK) s = write_parts(fd, tmp, tensor, n, order, header, header_bytes, offset, e);
    if (fd >= 0 && close(fd) != 0 && s == RT_OK)
        s = rt_fail(e, RT_IO, "cannot write %s: %s", tmp, strerror(errno));
    if (s == RT_OK && rename(tmp, path) != 0)
        s = rt_fail(e, RT_IO, "cannot rename %s: %s", tmp, strerror(errno));
    if (s != RT_OK && fd >= 0) unlink(tmp);
    free(tmp);
    free(header);
    free(order);
    return s;
}
