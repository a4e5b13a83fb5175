// The progress line.
#include "runtime/progress.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

void rt_duration(double seconds, char out[24]) {
    long s = seconds > 0 && seconds < 1e9 ? (long)(seconds + 0.5) : 0;
    if (s >= 86400) snprintf(out, 24, "%ldd%02ldh", s / 86400, s / 3600 % 24);
    else if (s >= 3600) snprintf(out, 24, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60) snprintf(out, 24, "%ldm%02lds", s / 60, s % 60);
    else snprintf(out, 24, "%lds", s);
}

char *rt_thousands(int64_t n, char out[32]) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0 && digits[i - 1] != '-') out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

void rt_progress_open(RtProgress *p, FILE *out, int64_t first_step, int64_t last_step) {
    *p = (RtProgress){.out = out, .first_step = first_step, .last_step = last_step};
    p->terminal = out && isatty(fileno(out));
}

static void end_line(RtProgress *p) {
    if (p->open_line) fputc('\n', p->out);
    p->open_line = false;
}

// Elsewhere than on a terminal: the first steps, the last, and a hundred between.
static bool is_plain_line(const RtProgress *p, int64_t step) {
    int64_t every = (p->last_step - p->first_step + 1) / 100;
    return every <= 1 || step == p->first_step || step == p->last_step || step % every == 0;
}

static void log_line(RtProgress *p, const char *text) {
    if (!p->log) return;
    char at[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    fprintf(p->log, "%s %s\n", at, text);
    fflush(p->log);
}

void rt_progress_step(RtProgress *p, const RtProgressLine *l) {
    bool plain = is_plain_line(p, l->step);
    if (!plain && !p->terminal) return;
    char text[256], left[24];
    size_t n = (size_t)snprintf(text, sizeof text, "step %lld/%lld  loss %.4f  %.0f tok/s", (long long)l->step,
                                (long long)p->last_step, isnan(l->loss) ? NAN : l->loss,   // without its sign
                                l->tokens_per_s);
    if (l->mfu >= 0) n += (size_t)snprintf(text + n, sizeof text - n, "  MFU %.1f%%", 100 * l->mfu);
    if (l->load >= 0) n += (size_t)snprintf(text + n, sizeof text - n, "  load %.2f", l->load);
    if (l->drop > 0) n += (size_t)snprintf(text + n, sizeof text - n, "  drop %.1f%%", 100 * l->drop);
    if (l->skipped) n += (size_t)snprintf(text + n, sizeof text - n, "  skipped %lld", (long long)l->skipped);
    rt_duration(l->seconds_left, left);
    if (l->step < p->last_step) snprintf(text + n, sizeof text - n, "  left %s", left);
    if (plain) log_line(p, text);
    if (!p->out) return;
    if (!p->terminal) {
        fprintf(p->out, "%s\n", text);
        fflush(p->out);
        return;
    }
    struct winsize w;
    if (ioctl(fileno(p->out), TIOCGWINSZ, &w) == 0 && w.ws_col > 8 && strlen(text) >= w.ws_col)
        text[w.ws_col - 1] = 0;
    fprintf(p->out, "\r%s\033[K", text);
    fflush(p->out);
    p->open_line = true;
}

static void tell(RtProgress *p, bool aloud, const char *fmt, va_list ap) {
    char text[1024];
    vsnprintf(text, sizeof text, fmt, ap);
    log_line(p, text);
    if (!p->out || !aloud) return;
    end_line(p);
    fprintf(p->out, "%s\n", text);
    fflush(p->out);
}

void rt_progress_note(RtProgress *p, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    tell(p, false, fmt, ap);
    va_end(ap);
}

void rt_progress_say(RtProgress *p, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    tell(p, true, fmt, ap);
    va_end(ap);
}

void rt_progress_close(RtProgress *p) {
    if (p->out) end_line(p);
    if (p->log) fclose(p->log);
    p->log = NULL;
}
