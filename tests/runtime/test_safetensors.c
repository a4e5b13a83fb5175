// Files of tensors: what is written is read back; every kind of damage is told with file and tensor.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "runtime/files.h"
#include "runtime/safetensors.h"

static char dir[] = "/tmp/moec-st-XXXXXX";
static char path[64];

static int make_dir(void **state) {
    if (!mkdtemp(dir)) return 1;
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    return 0;
}
static int remove_dir(void **state) { return rt_remove_tree(dir), 0; }

// A file of this header and so many bytes 0, 1, 2, ...
static void put_file(const char *name, const char *header, size_t n_data) {
    size_t n = strlen(header);
    FILE *f = fopen(name, "w");
    for (int i = 0; i < 8; i++) fputc((int)(n >> 8 * i & 0xff), f);
    fwrite(header, 1, n, f);
    for (size_t i = 0; i < n_data; i++) fputc((int)i & 0xff, f);
    fclose(f);
}

static void refused(const char *header, size_t n_data, const char *word) {
    put_file(path, header, n_data);
    StFiles *f;
    RtError e = {0};
    if (st_open(path, &f, &e) == RT_OK) fail_msg("accepted: %s", header);
    assert_null(f);
    if (!strstr(e.text, word)) fail_msg("'%s' should speak of '%s'", e.text, word);
    assert_non_null(strstr(e.text, "x.safetensors"));
}

static void writes_and_reads_back(void **state) {
    float w[6] = {1, -2, 3.5f, 1e30f, -0.0f, 7};
    uint8_t flags[3] = {1, 0, 1};
    int64_t big[2] = {INT64_MAX, -5};
    double scalar = 0.1;
    StWrite out[] = {{"flags", ST_BOOL, 1, {3}, flags},
                     {"w", ST_F32, 2, {2, 3}, w},
                     {"big", ST_I64, 1, {2}, big},
                     {"scalar", ST_F64, 0, {0}, &scalar},
                     {"none", ST_F32, 2, {0, 4}, NULL}};
    const char *metadata[] = {"format", "moec", NULL};
    int64_t offset[5];
    RtError e;
    if (st_write(path, out, 5, metadata, offset, &e) != RT_OK) fail_msg("%s", e.text);
    StFiles *f;
    if (st_open(path, &f, &e) != RT_OK) fail_msg("%s", e.text);
    assert_int_equal(st_count(f), 5);
    assert_string_equal(st_metadata(f, "format"), "moec");
    for (int i = 0; i < 5; i++) {
        const StTensor *t = st_find(f, out[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, out[i].dtype);
        assert_int_equal(t->offset, offset[i]);
        if (t->bytes) assert_memory_equal(t->data, out[i].data, t->bytes);
        assert_int_equal((uintptr_t)t->data % (uintptr_t)st_dtype_bytes(t->dtype), 0);
    }
    float read[2];
    assert_int_equal(st_read_f32(st_find(f, "w"), 3, 2, read, &e), RT_OK);
    assert_memory_equal(read, w + 3, 8);
    assert_int_equal(st_read_f32(st_find(f, "w"), 5, 2, read, &e), RT_BAD_FILE);
    assert_null(st_find(f, "W"));
    st_close(f);
    char tmp[80];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_false(rt_is_file(tmp));
}

static void refuses_damage(void **state) {
    static const char one[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";
    put_file(path, one, 16);
    StFiles *f;
    RtError e;
    assert_int_equal(st_open(path, &f, &e), RT_OK);
    st_close(f);
    refused(one, 15, "truncated");
    refused(one, 17, "belong to nobody");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,12]}}", 12, "shape");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,-2],\"data_offsets\":[0,16]}}", 16, "dimension");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2.5],\"data_offsets\":[0,16]}}", 16, "dimension");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
            "too large");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "shape");
    refused("{\"a\":{\"dtype\":\"Q4\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "Q4");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
            "dimensions");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets");
    refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
            "\"shape\":[4],\"data_offsets\":[2,6]}}",
            6, "overlap");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
            "\"shape\":[4],\"data_offsets\":[6,10]}}",
            10, "belong to nobody");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\","
            "\"shape\":[1],\"data_offsets\":[1,2]}}",
            2, "duplicate");
    refused("[1, 2]", 0, "JSON object");
    refused("{\"a\":", 0, "JSON");
    FILE *out = fopen(path, "w");
    fputs("abc", out);
    fclose(out);
    assert_int_equal(st_open(path, &f, &e), RT_BAD_FILE);
    out = fopen(path, "w");
    fputs("\xff\xff\xff\xff\xff\xff\xff\x7f{}", out);
    fclose(out);
    assert_int_equal(st_open(path, &f, &e), RT_BAD_FILE);
    out = fopen(path, "w");
    fwrite("\x40\0\0\0\0\0\0\0{}", 1, 10, out);
    fclose(out);
    assert_int_equal(st_open(path, &f, &e), RT_BAD_FILE);
    assert_non_null(strstr(e.text, "truncated"));
    unlink(path);
    assert_int_equal(st_open(path, &f, &e), RT_IO);
}

// A truncated file at every length: an error, never a crash.
static void survives_truncation_anywhere(void **state) {
    float w[40];
    for (int i = 0; i < 40; i++) w[i] = (float)i;
    StWrite out[] = {{"a.b", ST_F32, 2, {4, 5}, w}, {"c", ST_F32, 1, {20}, w + 20}};
    RtError e;
    assert_int_equal(st_write(path, out, 2, NULL, NULL, &e), RT_OK);
    char *bytes;
    size_t n;
    assert_int_equal(rt_read_file(path, &bytes, &n, &e), RT_OK);
    for (size_t k = 0; k < n; k++) {
        FILE *f = fopen(path, "w");
        fwrite(bytes, 1, k, f);
        fclose(f);
        StFiles *files;
        assert_int_not_equal(st_open(path, &files, &e), RT_OK);
    }
    free(bytes);
}

static void reads_all_types(void **state) {
    put_file(path,
             "{\"f16\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},\"bf16\":{\"dtype\":\"BF16\","
             "\"shape\":[1],\"data_offsets\":[2,4]},"
             "\"i16\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[4,6]},\"i8\":{\"dtype\":\"I8\","
             "\"shape\":[1],\"data_offsets\":[6,7]},"
             "\"u8\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[7,8]},\"i32\":{\"dtype\":\"I32\","
             "\"shape\":[1],\"data_offsets\":[8,12]},"
             "\"f8\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[12,16]}}",
             16);
    FILE *f = fopen(path, "r+");
    fseek(f, -16, SEEK_END);
    fwrite("\x00\xc2\xc0\x3f\xfe\xff\xff\xff\x01\x00\x00\x80\x38\xb8\x01\x7e", 1, 16, f);
    fclose(f);
    StFiles *s;
    RtError e;
    if (st_open(path, &s, &e) != RT_OK) fail_msg("%s", e.text);
    static const struct { const char *name; double value; } expected[] = {
        {"f16", -3}, {"bf16", 1.5}, {"i16", -2}, {"i8", -1}, {"u8", 255}, {"i32", -2147483647.0}, {"f8", 1}};
    for (int i = 0; i < 7; i++) {
        double x;
        assert_int_equal(st_read_f64(st_find(s, expected[i].name), 0, 1, &x, &e), RT_OK);
        assert_true(x == expected[i].value);
    }
    assert_true(st_number(st_find(s, "f8"), 1) == -1 && st_number(st_find(s, "f8"), 2) == 0x1p-9 &&
                st_number(st_find(s, "f8"), 3) == 448);
    st_close(s);
}

static void reads_sharded_folders(void **state) {
    float w[4] = {1, 2, 3, 4};
    char part[2][96], index[96];
    RtError e;
    StFiles *f;
    for (int i = 0; i < 2; i++) {
        snprintf(part[i], sizeof part[i], "%s/model-%d.safetensors", dir, i);
        StWrite out = {i ? "b" : "a", ST_F32, 1, {2}, w + 2 * i};
        assert_int_equal(st_write(part[i], &out, 1, NULL, NULL, &e), RT_OK);
    }
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    static const char good[] =
        "{\"weight_map\": {\"a\": \"model-0.safetensors\", \"b\": \"model-1.safetensors\"}}";
    assert_int_equal(rt_write_file(index, good, strlen(good), &e), RT_OK);
    if (st_open(dir, &f, &e) != RT_OK) fail_msg("%s", e.text);
    assert_true(st_number(st_find(f, "b"), 1) == 4);
    st_close(f);
    static const char *const bad[][2] = {
        {"{\"weight_map\": {\"a\": \"../model-0.safetensors\"}}", "no proper name"},
        {"{\"weight_map\": {\"c\": \"model-0.safetensors\"}}", "'c'"},
        {"{\"weight_map\": {\"a\": \"model-7.safetensors\"}}", "model-7"},
        {"{}", "weight_map"}};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(rt_write_file(index, bad[i][0], strlen(bad[i][0]), &e), RT_OK);
        assert_int_not_equal(st_open(dir, &f, &e), RT_OK);
        if (!strstr(e.text, bad[i][1])) fail_msg("'%s' should speak of %s", e.text, bad[i][1]);
    }
    unlink(index), unlink(part[0]), unlink(part[1]);
    assert_int_equal(st_open(dir, &f, &e), RT_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_and_reads_back),        cmocka_unit_test(refuses_damage),
        cmocka_unit_test(survives_truncation_anywhere), cmocka_unit_test(reads_all_types),
        cmocka_unit_test(reads_sharded_folders),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
