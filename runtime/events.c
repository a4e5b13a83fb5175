// TensorBoard event files.
//
//   record   u64 length, u32 masked crc of those 8 bytes, data, u32 masked crc of data
//   data     message Event: 1 double wall_time, 2 int64 step, 3 string file_version, 5 Summary, 7 SessionLog
//   Summary  repeated 1 Value: 1 string tag, 2 float simple_value
//
// Only these fields are needed, so the protocol buffers are written by hand: key = field << 3 | kind (0
// varint, 1 eight bytes, 2 length and bytes, 5 four bytes).
#include "runtime/events.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/files.h"

// CRC-32C (Castagnoli), reflected, bit by bit: a few hundred bytes a step.
uint32_t rt_crc32c(const void *data, size_t n) {
    const unsigned char *at = data;
    uint32_t crc = 0xffffffffu;
    while (n--) {
        crc ^= *at++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

uint32_t rt_crc32c_masked(const void *data, size_t n) {
    uint32_t crc = rt_crc32c(data, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

typedef struct { unsigned char *at; size_t n, cap; } Bytes;

static void put(Bytes *b, const void *data, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n + 64);
        b->at = realloc(b->at, b->cap);
        if (!b->at) abort();
    }
    memcpy(b->at + b->n, data, n);
    b->n += n;
}

static void put_varint(Bytes *b, uint64_t x) {
    for (; x > 127; x >>= 7) put(b, &(unsigned char){(unsigned char)(x | 128)}, 1);
    put(b, &(unsigned char){(unsigned char)x}, 1);
}

static void put_key(Bytes *b, int field, int kind) { put_varint(b, (uint64_t)(field << 3 | kind)); }

static void put_bytes(Bytes *b, int field, const void *data, size_t n) {
    put_key(b, field, 2);
    put_varint(b, n);
    put(b, data, n);
}

static void put_little(Bytes *b, uint64_t x, int bytes) {
    for (int i = 0; i < bytes; i++) put(b, &(unsigned char){(unsigned char)(x >> 8 * i)}, 1);
}

struct RtEvents {
    int   fd;
    char *path;
    int64_t step;                   // of the collected values
    Bytes summary, event, record;
};

static void begin_event(RtEvents *ev, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    uint64_t bits;
    memcpy(&bits, &seconds, 8);
    ev->event.n = 0;
    put_key(&ev->event, 1, 1);
    put_little(&ev->event, bits, 8);
    put_key(&ev->event, 2, 0);
    put_varint(&ev->event, (uint64_t)step);
}

// Appends the event to the file.
static RtStatus write_event(RtEvents *ev, RtError *e) {
    Bytes *r = &ev->record;
    r->n = 0;
    put_little(r, ev->event.n, 8);
    put_little(r, rt_crc32c_masked(r->at, 8), 4);
    put(r, ev->event.at, ev->event.n);
    put_little(r, rt_crc32c_masked(ev->event.at, ev->event.n), 4);
    return rt_write_all(ev->fd, ev->path, r->at, r->n, e);
}

RtStatus rt_events_open(const char *dir, int64_t first_step, RtEvents **out, RtError *e) {
    *out = NULL;
    RtEvents *ev = calloc(1, sizeof *ev);
    if (!ev) return rt_fail(e, RT_NO_MEMORY, "no memory for events");
    char host[64] = "host";
    gethostname(host, sizeof host - 1);
    for (int n = 0; n < 1000; n++) {            // a run gone on with within a second needs another name
        ev->path = rt_path("%s/events.out.tfevents.%lld.%s.%d.%d", dir, (long long)time(NULL), host,
                           (int)getpid(), n);
        ev->fd = open(ev->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (ev->fd >= 0 || errno != EEXIST) break;
        free(ev->path);
        ev->path = NULL;
    }
    RtStatus s = ev->fd < 0
                     ? rt_fail(e, RT_IO, "cannot create %s: %s", ev->path ? ev->path : dir, strerror(errno))
                     : RT_OK;
    if (s == RT_OK) {
        begin_event(ev, 0);
        put_bytes(&ev->event, 3, "brain.Event:2", 13);
        s = write_event(ev, e);
    }
    if (s == RT_OK && first_step > 1) {         // SessionLog {1: status = START}
        begin_event(ev, first_step);
        put_bytes(&ev->event, 7, (unsigned char[]){0x08, 0x01}, 2);
        s = write_event(ev, e);
    }
    if (s != RT_OK) rt_events_close(ev);
    else *out = ev;
    return s;
}

void rt_events_scalar(RtEvents *ev, int64_t step, const char *tag, double value) {
    float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    Bytes *v = &ev->event;                      // a value is built in the event's memory
    v->n = 0;
    put_bytes(v, 1, tag, strlen(tag));
    put_key(v, 2, 5);
    put_little(v, bits, 4);
    put_bytes(&ev->summary, 1, v->at, v->n);
    ev->step = step;
}

RtStatus rt_events_flush(RtEvents *ev, RtError *e) {
    if (!ev->summary.n) return RT_OK;
    begin_event(ev, ev->step);
    put_bytes(&ev->event, 5, ev->summary.at, ev->summary.n);
    ev->summary.n = 0;
    return write_event(ev, e);
}

void rt_events_close(RtEvents *ev) {
    if (!ev) return;
    if (ev->fd >= 0) close(ev->fd);
    free(ev->path);
    free(ev->summary.at);
    free(ev->event.at);
    free(ev->record.at);
    free(ev);
}
