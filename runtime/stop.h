// Signals, noted for whoever trains to look at between steps: SIGINT, SIGTERM and SIGUSR2 end a run, SIGUSR1 asks for a
// checkpoint.
#ifndef RUNTIME_STOP_H
#define RUNTIME_STOP_H
#include <stdbool.h>

// From the first open to the last close signals are noted; ranks that are threads of one process share them.
void rt_stop_open(void);
void rt_stop_close(void);
int  rt_stop_signal(void);          // the one that came and ends the run, or 0
void rt_stop_note(int signal_number);   // as if it had come
bool rt_save_is_asked(void);
void rt_save_is_done(void);
static inline bool rt_is_stopped(void) { return rt_stop_signal() != 0; }

#endif
