// How the runtime reports that the world refused: a status, and a text that grows on the way up.
#ifndef RUNTIME_STATUS_H
#define RUNTIME_STATUS_H

typedef enum {
    RT_OK,
    RT_BAD_PLAN,       // the plan block is damaged or of another version
    RT_BAD_FILE,       // a file's contents are wrong
    RT_BAD_SETTING,    // a setting's value is wrong
    RT_IO,             // the system refused: no such file, disk full
    RT_NO_MEMORY,
    RT_STOPPED,        // by a signal, after saving
    RT_COMM,           // ranks don't run the same program, or can't reach each other
    RT_TIMEOUT         // a rank is silent or gone
} RtStatus;

typedef struct {
    RtStatus code;
    char     text[1024];
} RtError;

// Sets e (which may be NULL) and returns code.
RtStatus rt_fail(RtError *e, RtStatus code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// Puts "context: " in front of e's text; returns e's code.
RtStatus rt_add_context(RtError *e, RtStatus code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
// What a process that ends with this status returns: 0, 1, 75 (stopped by a signal after saving), 76 (lost ranks).
int rt_exit_status(RtStatus code);

// Edit distance of two names, counting no further than `limit`; names beyond 127 bytes are never near.
int rt_distance(const char *a, const char *b, int limit);

#define RT_TRY(call)                       \
    do {                                   \
        RtStatus status_ = (call);         \
        if (status_ != RT_OK) return status_; \
    } while (0)

#endif
