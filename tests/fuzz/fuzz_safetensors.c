// A safetensors file, or an index of several.  Every element a reader lets through can be read.
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "runtime/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void read_all(const char *path) {
    StFiles *f;
    RtError e;
    if (st_open(path, &f, &e) != RT_OK) return;
    static float f32[1000];
    static double f64[1000];
    for (int i = 0; i < st_count(f); i++) {
        const StTensor *t = st_at(f, i);
        if (st_find(f, t->name) == NULL) abort();
        for (int64_t at = 0, n; at < t->elements; at += n) {
            n = t->elements - at < 1000 ? t->elements - at : 1000;
            if (st_read_f32(t, at, n, f32, &e) != RT_OK || st_read_f64(t, at, n, f64, &e) != RT_OK) abort();
        }
    }
    st_metadata(f, "format");
    st_close(f);
}

// The folder an index is read in holds two good files.
static void read_index(const char *text, size_t n) {
    static const char *const name[] = {"model-1.safetensors", "model-2.safetensors"};
    static const char *const folder = "indexed/";
    static char made;
    char path[64];
    if (!made) {
        mkdir(fuzz_path("indexed"), 0700);
        static const float x[6] = {1, 2, 3, 4, 5, 6};
        for (int i = 0; i < 2; i++) {
            StWrite w[2] = {{i ? "c" : "a", ST_F32, 2, {2, 3}, x}, {i ? "d" : "b", ST_BF16, 1, {4}, x}};
            strcat(strcpy(path, folder), name[i]);
            if (st_write(fuzz_path(path), w, 2, NULL, NULL, NULL) != RT_OK) abort();
        }
        made = 1;
    }
    strcat(strcpy(path, folder), "model.safetensors.index.json");
    fuzz_file(path, text, n);
    read_all(fuzz_path("indexed"));
}

void fuzz_safetensors(const uint8_t *data, size_t n) {
    if (n >= 6 && !memcmp(data, "index\n", 6))
        read_index((const char *)data + 6, n - 6);
    else
        read_all(fuzz_file("model.safetensors", data, n));
}
