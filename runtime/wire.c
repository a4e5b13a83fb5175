#include "runtime/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAGIC = 0x6d6f6577, HEAD = offsetof(WireMessage, text) };

void wire_open(Wire *w, int fd) {
    int yes = 1;
    w->fd = fd;
    w->n_in = w->n_out = 0;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

void wire_close(Wire *w) {
    if (w->fd >= 0) close(w->fd);
    w->fd = -1;
}

void wire_text(WireMessage *m, const char *text) {
    size_t n = strnlen(text, WIRE_TEXT - 1);
    memcpy(m->text, text, n);
    m->text[n] = 0;
    m->text_bytes = (uint32_t)n + 1;
}

bool wire_put(Wire *w, const WireMessage *m) {
    uint32_t bytes = HEAD + m->text_bytes;
    if (w->n_out + bytes > sizeof w->out) return false;
    memcpy(w->out + w->n_out, m, bytes);
    memcpy(w->out + w->n_out, &(uint32_t){MAGIC}, sizeof(uint32_t));       // which comes first
    w->n_out += bytes;
    return true;
}

static bool has_to_wait(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

bool wire_flush(Wire *w) {
    while (w->fd >= 0 && w->n_out) {
        ssize_t n = send(w->fd, w->out, w->n_out, MSG_NOSIGNAL);
        if (n < 0) return has_to_wait();
        memmove(w->out, w->out + n, w->n_out - (size_t)n);
        w->n_out -= (uint32_t)n;
    }
    return w->fd >= 0;
}

// Of the message at the beginning of in; 0: not known yet; more than there is room for: none of ours.
static uint32_t message_bytes(const Wire *w) {
    uint32_t magic, text;
    if (w->n_in < HEAD) return 0;
    memcpy(&magic, w->in, sizeof magic);
    memcpy(&text, w->in + offsetof(WireMessage, text_bytes), sizeof text);
    return magic != MAGIC || text > WIRE_TEXT ? UINT32_MAX : HEAD + text;
}

int wire_get(Wire *w, WireMessage *m) {
    for (;;) {
        uint32_t bytes = message_bytes(w);
        if (bytes == UINT32_MAX) return -1;
        if (bytes && w->n_in >= bytes) {
            memcpy(m, w->in, bytes);
            m->text[m->text_bytes ? m->text_bytes - 1 : 0] = 0;
            memmove(w->in, w->in + bytes, w->n_in - bytes);
            w->n_in -= bytes;
            return 1;
        }
        if (w->fd < 0) return -1;
        ssize_t n = recv(w->fd, w->in + w->n_in, sizeof w->in - w->n_in, 0);
        if (n == 0) return -1;
        if (n < 0) return has_to_wait() ? 0 : -1;
        w->n_in += (uint32_t)n;
    }
}

WirePlace wire_place(const WirePage *p) {
    return (WirePlace){.beats = atomic_load_explicit(&p->beats, memory_order_relaxed),
                       .step = atomic_load_explicit(&p->step, memory_order_relaxed),
                       .saved = atomic_load_explicit(&p->saved, memory_order_relaxed),
                       .phase = atomic_load_explicit(&p->phase, memory_order_relaxed),
                       .plan_step = atomic_load_explicit(&p->plan_step, memory_order_relaxed),
                       .waits = atomic_load_explicit(&p->waits, memory_order_relaxed)};
}

int64_t wire_silence(WireSilence *s, int64_t now_ns, bool heard) {
    int64_t past_ns = s->looked_ns ? now_ns - s->looked_ns : 0;
    s->looked_ns = now_ns;
    s->silent_ns = heard ? 0 : s->silent_ns + (past_ns < 5 * WIRE_TICK_NS ? past_ns : WIRE_TICK_NS);
    return s->silent_ns;
}
