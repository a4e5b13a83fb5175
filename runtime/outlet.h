// Lines for a terminal or pipe that may not be read for a while: whoever writes never waits.
#ifndef RUNTIME_OUTLET_H
#define RUNTIME_OUTLET_H
#include <stddef.h>

typedef struct {
    int    fd;
    size_t n;                  // bytes not yet written
    long   dropped;            // lines for which there was no room
    char   text[1 << 16];
} RtOutlet;

void rt_outlet_open(RtOutlet *o, int fd);
void rt_outlet_line(RtOutlet *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Writes what is taken, for at most ms.
void rt_outlet_drain(RtOutlet *o, int ms);

#endif
