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

int rt_exit_status(RtStatus code) {
    return code == RT_OK ? 0 : code == RT_STOPPED ? 75 : code == RT_TIMEOUT ? 76 : 1;
}

int rt_distance(const char *a, const char *b, int limit) {
    size_t n = strlen(a), m = strlen(b);
    if (n > 127 || m > 127 || (n > m ? n - m : m - n) >= (size_t)limit) return limit;
    int row[128];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int above = row[j], change = diagonal + (a[i - 1] != b[j - 1]);
            int least = above < row[j - 1] ? above + 1 : row[j - 1] + 1;
            diagonal = above;
            row[j] = change < least ? change : least;
        }
    }
    return row[m] < limit ? row[m] : limit;
}
