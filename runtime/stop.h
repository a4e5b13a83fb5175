// SIGINT and SIGTERM: noted, for whoever trains to look at between steps.
#ifndef RUNTIME_STOP_H
#define RUNTIME_STOP_H
#include <stdbool.h>

// From the first open to the last close signals are noted; ranks that are threads of one process share them.
void rt_stop_open(void);
void rt_stop_close(void);
int  rt_stop_signal(void);          // the one that came, or 0
static inline bool rt_is_stopped(void) { return rt_stop_signal() != 0; }

#endif
