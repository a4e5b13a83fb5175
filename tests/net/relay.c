// A switch in user space that holds every frame back for a while: hosts with a delay between them where the kernel has no netem.
//
//   relay MICROSECONDS NAME...    makes a TAP device of each name, says "ready" and runs until it is killed
//
// Whoever started it moves the devices into namespaces; frames go to the port that their address was last seen at, or to all.
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PORTS = 16, ADDRESS = 6, FRAME = 9216, QUEUE = 4096 };

typedef struct { int64_t due_ns; int port, bytes; unsigned char data[FRAME]; } Frame;

static struct { int fd; unsigned char address[ADDRESS]; } port[PORTS];
static int ports;
static Frame *queue;
static int64_t first, last;                                       // frames first .. last - 1 are held, at their number % QUEUE

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int open_tap(const char *name) {
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(r.ifr_name, name, IFNAMSIZ - 1);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && ioctl(fd, TUNSETIFF, &r) == 0) return fd;
    fprintf(stderr, "relay: %s: %s\n", name, strerror(errno));
    return -1;
}

static void take(int from, int64_t delay_ns) {
    while (last - first < QUEUE) {                                // else they wait in the device's own queue
        Frame *f = &queue[last % QUEUE];
        ssize_t n = read(port[from].fd, f->data, FRAME);
        if (n < 2 * ADDRESS) return;
        memcpy(port[from].address, f->data + ADDRESS, ADDRESS);
        f->due_ns = now_ns() + delay_ns;
        f->port = from;
        f->bytes = (int)n;
        last++;
    }
}

static void pass_on(const Frame *f) {
    int to = -1;
    for (int i = 0; i < ports; i++)
        if (i != f->port && !memcmp(port[i].address, f->data, ADDRESS)) to = i;
    for (int i = 0; i < ports; i++)
        if (i == to || (to < 0 && i != f->port))
            if (write(port[i].fd, f->data, (size_t)f->bytes) < 0) continue;      // its device is down
}

int main(int n, char **arg) {
    int64_t delay_ns = n > 1 ? atoll(arg[1]) * 1000 : -1;
    if (delay_ns < 0 || n < 4 || n - 2 > PORTS) {
        fprintf(stderr, "usage: relay MICROSECONDS NAME NAME.. (2 to %d)\n", PORTS);
        return 2;
    }
    queue = malloc(QUEUE * sizeof *queue);
    for (; ports < n - 2; ports++)
        if (!queue || (port[ports].fd = open_tap(arg[ports + 2])) < 0) return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd p[PORTS];
        for (int i = 0; i < ports; i++) p[i] = (struct pollfd){port[i].fd, POLLIN, 0};
        int64_t left = first < last ? queue[first % QUEUE].due_ns - now_ns() : 1000000000;
        struct timespec t = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        ppoll(p, (nfds_t)ports, &t, NULL);
        for (int i = 0; i < ports; i++)
            if (p[i].revents & POLLIN) take(i, delay_ns);
        for (; first < last && queue[first % QUEUE].due_ns <= now_ns(); first++) pass_on(&queue[first % QUEUE]);
    }
}
