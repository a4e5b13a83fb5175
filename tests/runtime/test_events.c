// TensorBoard files: known check sums, and records that a reader of the format takes apart.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/events.h"
#include "runtime/files.h"

static void crc_of_known_texts(void **state) {
    unsigned char zeros[32] = {0}, ones[32];
    memset(ones, 0xff, 32);
    assert_int_equal(rt_crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(rt_crc32c(zeros, 32), 0x8A9136AAu);       // RFC 3720, B.4
    assert_int_equal(rt_crc32c(ones, 32), 0x62A8AB43u);
    assert_int_equal(rt_crc32c("", 0), 0);
}

static uint64_t little(const unsigned char *at, int n) {
    uint64_t x = 0;
    while (n--) x = x << 8 | at[n];
    return x;
}

static uint64_t varint(const unsigned char **at) {
    uint64_t x = 0;
    int shift = 0;
    do x |= (uint64_t)(**at & 127) << shift, shift += 7;
    while (*(*at)++ & 128);
    return x;
}

static void records_can_be_read(void **state) {
    char dir[] = "/tmp/moec-events-XXXXXX";
    assert_non_null(mkdtemp(dir));
    RtEvents *ev;
    RtError e;
    if (rt_events_open(dir, 301, &ev, &e) != RT_OK) fail_msg("%s", e.text);
    rt_events_scalar(ev, 301, "loss/ce", 2.5);
    rt_events_scalar(ev, 301, "train/lr", 1e-3);
    assert_int_equal(rt_events_flush(ev, &e), RT_OK);
    assert_int_equal(rt_events_flush(ev, &e), RT_OK);          // nothing collected: nothing written
    rt_events_close(ev);

    DIR *d = opendir(dir);
    char *path = NULL;
    for (struct dirent *entry; (entry = readdir(d));)
        if (!strncmp(entry->d_name, "events.out.tfevents.", 20)) path = rt_path("%s/%s", dir, entry->d_name);
    closedir(d);
    assert_non_null(path);
    RtMap m;
    assert_int_equal(rt_map_file(path, &m, &e), RT_OK);
    const unsigned char *at = m.data, *end = m.data + m.bytes;
    int n_records = 0, n_values = 0, version = 0, session = 0;
    while (at < end) {
        uint64_t length = little(at, 8);
        assert_int_equal(little(at + 8, 4), rt_crc32c_masked(at, 8));
        const unsigned char *data = at + 12, *stop = data + length;
        assert_true(stop + 4 <= end);
        assert_int_equal(little(stop, 4), rt_crc32c_masked(data, length));
        at = stop + 4;
        n_records++;
        while (data < stop) {
            uint64_t key = varint(&data);
            if (key == (1 << 3 | 1)) data += 8;
            else if (key == (2 << 3 | 0)) {
                uint64_t step = varint(&data);
                assert_true(step == 0 || step == 301);
            } else {
                assert_int_equal(key & 7, 2);
                uint64_t n = varint(&data);
                if (key >> 3 == 3) version += n == 13 && !memcmp(data, "brain.Event:2", 13);
                if (key >> 3 == 7) session++;
                if (key >> 3 == 5) {
                    const unsigned char *v = data;
                    while (v < data + n) {
                        assert_int_equal(varint(&v), 1 << 3 | 2);
                        const unsigned char *next = v;
                        uint64_t size = varint(&next);
                        v = next;
                        assert_int_equal(varint(&v), 1 << 3 | 2);
                        uint64_t tag = varint(&v);
                        bool is_loss = tag == 7 && !memcmp(v, "loss/ce", 7),
                             is_lr = tag == 8 && !memcmp(v, "train/lr", 8);
                        assert_true(is_loss || is_lr);
                        v += tag;
                        assert_int_equal(varint(&v), 2 << 3 | 5);
                        uint32_t bits = (uint32_t)little(v, 4);
                        float x;
                        memcpy(&x, &bits, 4);
                        assert_true(x == (is_loss ? 2.5f : 1e-3f));
                        v += 4;
                        assert_ptr_equal(v, next + size);
                        n_values++;
                    }
                }
                data += n;
            }
        }
    }
    assert_int_equal(n_records, 3);
    assert_int_equal(n_values, 2);
    assert_int_equal(version, 1);
    assert_int_equal(session, 1);
    rt_unmap(&m);
    free(path);
    rt_remove_tree(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(crc_of_known_texts),
                                       cmocka_unit_test(records_can_be_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
