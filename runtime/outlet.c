#include "runtime/outlet.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "runtime/trace.h"

void rt_outlet_open(RtOutlet *o, int fd) {
    o->fd = fd;
    o->n = 0;
    o->dropped = 0;
}

static void add(RtOutlet *o, const char *fmt, va_list ap) {
    size_t room = sizeof o->text - o->n;
    int n = vsnprintf(o->text + o->n, room, fmt, ap);
    if (n < 0 || (size_t)n + 1 >= room) {
        o->dropped++;
        return;
    }
    o->n += (size_t)n;
    o->text[o->n++] = '\n';
}

void rt_outlet_line(RtOutlet *o, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    add(o, fmt, ap);
    va_end(ap);
    rt_outlet_drain(o, 0);
}

// A pipe that can be written takes this much at once.
static bool is_writable(const RtOutlet *o, int ms) {
    struct pollfd p = {o->fd, POLLOUT, 0};
    return poll(&p, 1, ms) == 1;
}

void rt_outlet_drain(RtOutlet *o, int ms) {
    int64_t until_ns = rt_now_ns() + ms * INT64_C(1000000);
    while (o->n) {
        int64_t left_ms = (until_ns - rt_now_ns()) / 1000000;
        if (!is_writable(o, left_ms > 0 ? (int)left_ms : 0)) return;
        ssize_t n = write(o->fd, o->text, o->n < PIPE_BUF ? o->n : PIPE_BUF);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) n = (ssize_t)o->n;                        // nobody will ever read it
        memmove(o->text, o->text + n, o->n - (size_t)n);
        o->n -= (size_t)n;
        if (o->n || !o->dropped) continue;
        o->n = (size_t)snprintf(o->text, sizeof o->text, "(%ld lines were left out here)\n", o->dropped);
        o->dropped = 0;
    }
}
