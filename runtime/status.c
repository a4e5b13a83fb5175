// Errors of the runtime as text.
#include "runtime/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

RtStatus rt_fail(RtError *e, RtStatus code, const char *fmt, ...) {
    if (!e) return code;
    va_list ap;
    va_start(ap, fmt);
    e->code = code;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return code;
}

RtStatus rt_add_context(RtError *e, RtStatus code, const char *fmt, ...) {
    if (!e || code == RT_OK) return code;
    char context[sizeof e->text], all[2 * sizeof e->text + 4];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(context, sizeof context, fmt, ap);
    va_end(ap);
    snprintf(all, sizeof all, "%s: %s", context, e->text);
    size_t n = strnlen(all, sizeof e->text - 1);
    memcpy(e->text, all, n);
    e->text[n] = 0;
    return code;
}

int rt_exit_status(RtStatus code) { return code == RT_OK ? 0 : code == RT_STOPPED ? 75 : 1; }
