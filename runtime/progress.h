// What a person sees of a run: one line that is rewritten on a terminal, plain lines elsewhere.
#ifndef RUNTIME_PROGRESS_H
#define RUNTIME_PROGRESS_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
    FILE   *out;                    // NULL: nothing is shown
    FILE   *log;                    // gets the plain lines too, with the time; NULL: nobody. Owned: closed with it
    bool    terminal, open_line;
    int64_t first_step, last_step;  // of this process
} RtProgress;

typedef struct {
    int64_t step;
    double  loss, tokens_per_s, mfu;        // mfu < 0: unknown
    double  load, drop;                     // < 0: not reported; a drop of 0 is not shown
    double  seconds_left;
    int64_t skipped;
} RtProgressLine;

void rt_progress_open(RtProgress *p, FILE *out, int64_t first_step, int64_t last_step);
void rt_progress_step(RtProgress *p, const RtProgressLine *l);
// A line of its own.
void rt_progress_say(RtProgress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void rt_progress_note(RtProgress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));   // into the log alone
void rt_progress_close(RtProgress *p);
// 1234567 -> "1,234,567"; returns out
char *rt_thousands(int64_t n, char out[32]);
// 3725 -> "1h02m", 95 -> "1m35s"
void rt_duration(double seconds, char out[24]);

#endif
