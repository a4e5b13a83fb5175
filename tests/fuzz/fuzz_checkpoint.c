// One file of a checkpoint replaced: `manifest.json`, `weights-00001.safetensors`, .. in the first line, then
// its contents.  A manifest's own hash is put right, and so are the sizes it gives: what is behind them is
// looked at too. A checkpoint that loads gives every tensor the bytes its hash says.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "runtime/checkpoint.h"
#include "runtime/files.h"
#include "tests/fuzz/fuzz.h"
#include "tests/runtime/fake_plan.h"

enum { N_FILES = 7 };
static const char *const file[N_FILES] = {"manifest.json",
                                          "weights-00001.safetensors",
                                          "weights-00001.safetensors.xxh",
                                          "state-00000.safetensors",
                                          "state-00000.safetensors.xxh",
                                          "model.moe",
                                          "settings.json"};

static struct {
    RtPlan *plan;
    RtPlanInstance *p;
    char *good[N_FILES];
    size_t bytes[N_FILES];
} fixed;

static void free_all(void) {
    rt_plan_close(fixed.p);
    free(fixed.plan);
    for (int i = 0; i < N_FILES; i++) free(fixed.good[i]);
}

static void make_checkpoint(void) {
    static PlanBuilder b;
    pb_tensor(&b, "embed", RT_PARAM, F32, 10, 0, 0);
    pb_tensor(&b, "layers.0.ffn.experts.w1", RT_PARAM, BF16, 2, 3, 0)->experts = 1;
    pb_tensor(&b, "adam.m/embed", RT_STATE, F32, 10, 0, 0);
    pb_begin(&b, "pass");
    RtError e;
    fixed.plan = pb_finish(&b);
    if (rt_plan_open(fixed.plan, NULL, 1, &fixed.p, &e) != RT_OK) abort();
    RtCkptInfo info = {.step = 7,
                       .leaves = 2,
                       .waves = 1,
                       .model_file = "m.moe",
                       .model_text = "model m() {}\n",
                       .settings = "{\"train\": {}}"};
    char *dir;
    if (rt_ckpt_save(fuzz_path("run"), fixed.p, &info, 0, &dir, &e) != RT_OK) abort();
    for (int i = 0; i < N_FILES; i++) {
        char *path = rt_path("%s/%s", dir, file[i]);
        if (rt_read_file(path, &fixed.good[i], &fixed.bytes[i], &e) != RT_OK) abort();
        free(path);
    }
    free(dir);
    atexit(free_all);
}

// Puts the hash right, if there is a field for it.
static void sign(char *text, size_t n) {
    static const char key[] = "\"self\": \"";
    size_t k = sizeof key - 1;
    for (size_t i = n; i >= k + 16; i--) {
        if (memcmp(text + i - 16 - k, key, k)) continue;
        char hex[17];
        memset(text + i - 16, '0', 16);
        rt_hex64(XXH3_64bits(text, n), hex);
        memcpy(text + i - 16, hex, 16);
        return;
    }
}

// The size of file[i] in the good manifest becomes `bytes`.
static char *manifest_with_size(int i, size_t bytes, size_t *n) {
    const char *good = fixed.good[0];
    char *name = rt_path("\"name\": \"%s\"", file[i]), *at = strstr(good, name), *number;
    free(name);
    if (!at || !(number = strstr(at, "\"bytes\": "))) abort();
    number += strlen("\"bytes\": ");
    char *text =
        rt_path("%.*s%zu%s", (int)(number - good), good, bytes, number + strspn(number, "0123456789"));
    *n = strlen(text);
    sign(text, *n);
    return text;
}

void fuzz_checkpoint(const uint8_t *data, size_t n) {
    if (!fixed.plan) make_checkpoint();
    const uint8_t *end = memchr(data, '\n', n);
    int which = -1;
    for (int i = 0; end && i < N_FILES; i++)
        if ((size_t)(end - data) == strlen(file[i]) && !memcmp(data, file[i], strlen(file[i]))) which = i;
    if (which < 0) return;
    size_t size = n - (size_t)(end + 1 - data), n_manifest;
    char *text = malloc(size + 1);
    memcpy(text, end + 1, size);
    mkdir(fuzz_path("run/ckpt/step-00000007"), 0700);
    if (which == 0)
        sign(text, size);
    else {
        char *manifest = manifest_with_size(which, size, &n_manifest);
        fuzz_file("run/ckpt/step-00000007/manifest.json", manifest, n_manifest);
        free(manifest);
    }
    char name[96];
    snprintf(name, sizeof name, "run/ckpt/step-00000007/%s", file[which]);
    fuzz_file(name, text, size);
    free(text);

    char *dir = NULL;
    RtCkptSkipped skipped;
    RtError e;
    if (rt_ckpt_find(fuzz_path("run"), &dir, &skipped, &e) == RT_OK) {
        RtCkptInfo info;
        if (rt_ckpt_load(dir, fixed.p, &info, &e) == RT_OK) rt_ckpt_free(&info);
        if (rt_ckpt_info(dir, &info, &e) == RT_OK) rt_ckpt_free(&info);
        rt_ckpt_load_weights(dir, fixed.p, &e);
    }
    free(dir);
    for (int i = 0; i < N_FILES; i += which ? which : N_FILES) { // as it was, for the next input
        snprintf(name, sizeof name, "run/ckpt/step-00000007/%s", file[i]);
        fuzz_file(name, fixed.good[i], fixed.bytes[i]);
        if (i) break;
    }
}
