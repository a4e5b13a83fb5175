// Batches depend on text, tokenizer and seed alone: every sample once an epoch, another order each epoch, the
// same again from the same position.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "runtime/data.h"
#include "runtime/files.h"

enum { S = 8 };
static char dir[] = "/tmp/moec-data-XXXXXX", text_path[64], cache[64];
static RtTokenizer *bytes;

static int make_dir(void **state) {
    RtError e;
    if (!mkdtemp(dir)) return 1;
    snprintf(text_path, sizeof text_path, "%s/text", dir);
    snprintf(cache, sizeof cache, "%s/cache", dir);
    return rt_tokenizer_open("bytes", NULL, &bytes, &e) != RT_OK;
}

static int remove_dir(void **state) {
    rt_tokenizer_close(bytes);
    rt_remove_tree(cache);
    rt_remove_tree(dir);
    return 0;
}

// A text whose byte i is i % 251: a window of it tells where it is from.
static void put_text(size_t n) {
    FILE *f = fopen(text_path, "w");
    for (size_t i = 0; i < n; i++) fputc((int)(i % 251), f);
    fclose(f);
}

static RtSettings *settings(double held_out, bool shuffle, int64_t seed) {
    char json[512];
    snprintf(json, sizeof json,
             "{\"train\": {\"seed\": %lld}, \"data\": {\"source\": {\"kind\": \"text\", \"args\": [\"%s\"]}, "
             "\"held_out\": %g, \"shuffle\": %s}}",
             (long long)seed, text_path, held_out, shuffle ? "true" : "false");
    RtSettings *s;
    RtError e;
    if (rt_settings_open(json, NULL, &s, &e) != RT_OK) fail_msg("%s", e.text);
    return s;
}

static RtData *open_data(const RtSettings *s) {
    RtData *d;
    RtError e;
    if (rt_data_open(s, S, bytes, cache, &d, &e) != RT_OK) fail_msg("%s", e.text);
    return d;
}

static void permutations_are_permutations(void **state) {
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int64_t n = sizes[k], fixed = 0;
        char *seen = calloc((size_t)n, 1);
        for (int64_t i = 0; i < n; i++) {
            int64_t j = rt_permute(i, n, 5, 1);
            assert_in_range(j, 0, n - 1);
            assert_false(seen[j]);
            seen[j] = 1;
            fixed += i == j;
        }
        if (n >= 1000) assert_true(fixed < 10);
        free(seen);
    }
}

static void every_sample_once_an_epoch(void **state) {
    put_text(2001);                                              // 250 samples of 8
    RtSettings *s = settings(0, true, 3);
    RtData *d = open_data(s);
    assert_int_equal(rt_data_samples(d), 250);
    int order[2][250], seen[2][250] = {{0}};
    RtDataPos pos = {0, 0};
    for (int epoch = 0; epoch < 2; epoch++)
        for (int i = 0; i < 250; i += 5) {
            int32_t tokens[5 * S], labels[5 * S];
            rt_data_batch(d, &pos, (RtSlice){0, 5, 5}, tokens, labels);
            for (int k = 0; k < 5; k++) {
                int sample = 0; // which one is it?  Windows repeat after 251 samples only
                while (sample * S % 251 != tokens[k * S]) sample++;
                order[epoch][i + k] = sample;
                seen[epoch][sample]++;
                for (int t = 0; t < S; t++) assert_int_equal(labels[k * S + t], (sample * S + t + 1) % 251);
                for (int t = 0; t < S; t++) assert_int_equal(tokens[k * S + t], (sample * S + t) % 251);
            }
        }
    assert_int_equal(pos.epoch, 2);
    assert_int_equal(pos.next_sample, 0);
    for (int i = 0; i < 250; i++) assert_true(seen[0][i] == 1 && seen[1][i] == 1);
    assert_memory_not_equal(order[0], order[1], sizeof order[0]);
    rt_data_close(d);
    rt_settings_close(s);
}

static void the_same_again_from_a_position(void **state) {
    put_text(5000);
    RtSettings *s = settings(0.1, true, 9), *other = settings(0.1, true, 10);
    RtData *d = open_data(s), *again = open_data(s), *seeded = open_data(other);
    assert_true(rt_data_cached(again));
    int32_t a[2][7 * S], b[2][7 * S], c[2][7 * S];
    RtDataPos pos = {0, 0}, pos2, pos3;
    for (int i = 0; i < 90; i++) rt_data_batch(d, &pos, (RtSlice){0, 7, 7}, a[0], a[1]);      // beyond an epoch
    pos2 = pos3 = pos;
    rt_data_batch(d, &pos, (RtSlice){0, 7, 7}, a[0], a[1]);
    rt_data_batch(again, &pos2, (RtSlice){0, 7, 7}, b[0], b[1]);
    rt_data_batch(seeded, &pos3, (RtSlice){0, 7, 7}, c[0], c[1]);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    assert_memory_equal(&pos, &pos2, sizeof pos);
    assert_true(pos.epoch > 0);
    assert_int_equal(rt_data_hash(d), rt_data_hash(again));
    rt_data_close(d), rt_data_close(again), rt_data_close(seeded);
    rt_settings_close(s), rt_settings_close(other);
}

static void held_out_samples_are_the_end_of_the_text(void **state) {
    put_text(1000);
    RtSettings *s = settings(0.1, true, 0);
    RtData *d = open_data(s);
    assert_int_equal(rt_data_held_out(d), 12);                   // 100 tokens: (100 - 1) / 8
    int32_t tokens[5 * S], labels[5 * S];
    int64_t bytes_of, total = 0, real = 0;
    for (int64_t first = 0; first < 12; first += 5) {
        int64_t n = rt_data_held_out_batch(d, first, 5, tokens, labels, &bytes_of);
        for (int64_t k = 0; k < n; k++) assert_int_equal(tokens[k * S], (900 + (first + k) * S) % 251);
        for (int64_t k = n * S; k < 5 * S; k++) assert_int_equal(labels[k], -100);
        real += n;
        total += bytes_of;
    }
    assert_int_equal(real, 12);
    assert_int_equal(total, 12 * S);
    assert_int_equal(rt_data_samples(d), 112);                   // (900 - 1) / 8: none touches them
    rt_data_close(d);
    rt_settings_close(s);
}

static void a_changed_text_is_read_anew(void **state) {
    put_text(1000);
    RtSettings *s = settings(0, false, 0);
    RtData *d = open_data(s);
    uint64_t hash = rt_data_hash(d);
    char *file = rt_path("%s", rt_data_cache_path(d));
    rt_data_close(d);
    put_text(1008);
    d = open_data(s);
    assert_false(rt_data_cached(d));
    assert_int_not_equal(rt_data_hash(d), hash);
    rt_data_close(d);
    // a damaged cache file is made again
    put_text(1000);
    assert_int_equal(truncate(file, 500), 0);
    d = open_data(s);
    assert_false(rt_data_cached(d));
    assert_int_equal(rt_data_tokens(d), 1000);
    rt_data_close(d);
    free(file);
    // and a cache that can't be written is done without
    RtError e;
    put_text(777);
    if (rt_data_open(s, S, bytes, "/proc/no-such-folder", &d, &e) != RT_OK) fail_msg("%s", e.text);
    assert_null(rt_data_cache_path(d));
    assert_int_equal(rt_data_tokens(d), 777);
    rt_data_close(d);
    rt_settings_close(s);
}

static void says_what_is_wrong(void **state) {
    RtData *d;
    RtError e;
    put_text(S);
    RtSettings *s = settings(0, true, 0);
    assert_int_equal(rt_data_open(s, S, bytes, cache, &d, &e), RT_BAD_FILE);
    assert_non_null(strstr(e.text, "less than one sequence of 8"));
    put_text(S + 1);
    assert_int_equal(rt_data_open(s, S, bytes, cache, &d, &e), RT_OK);
    rt_data_close(d);
    unlink(text_path);
    assert_int_equal(rt_data_open(s, S, bytes, cache, &d, &e), RT_IO);
    assert_non_null(strstr(e.text, "No such file"));
    rt_settings_close(s);
    assert_int_equal(rt_settings_open("{\"data\": {\"source\": {\"kind\": \"cifar10\", \"args\": [\"d\"]}}}",
                                      NULL, &s, &e),
                     RT_OK);
    assert_int_equal(rt_data_open(s, S, bytes, cache, &d, &e), RT_BAD_SETTING);
    rt_settings_close(s);
    assert_int_equal(rt_settings_open("{}", NULL, &s, &e), RT_OK);
    assert_int_equal(rt_data_open(s, S, bytes, cache, &d, &e), RT_BAD_SETTING);
    assert_non_null(strstr(e.text, "data.source"));
    rt_settings_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutations_are_permutations),
        cmocka_unit_test(every_sample_once_an_epoch),
        cmocka_unit_test(the_same_again_from_a_position),
        cmocka_unit_test(held_out_samples_are_the_end_of_the_text),
        cmocka_unit_test(a_changed_text_is_read_anew),
        cmocka_unit_test(says_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
