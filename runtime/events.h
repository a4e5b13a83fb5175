// TensorBoard event files: records (length, masked CRC, data, masked CRC) of protocol buffers written by
// hand.
#ifndef RUNTIME_EVENTS_H
#define RUNTIME_EVENTS_H
#include <stddef.h>
#include <stdint.h>
#include "runtime/status.h"

typedef struct RtEvents RtEvents;

// A new file in dir.  first_step > 1 tells readers to forget what older files say of steps from there on.
RtStatus rt_events_open(const char *dir, int64_t first_step, RtEvents **out, RtError *e);
void     rt_events_scalar(RtEvents *ev, int64_t step, const char *tag, double value);   // collected
RtStatus rt_events_flush(RtEvents *ev, RtError *e);                                      // written
void     rt_events_close(RtEvents *ev);                                                  // NULL is fine

uint32_t rt_crc32c(const void *data, size_t n);
uint32_t rt_crc32c_masked(const void *data, size_t n);

#endif
