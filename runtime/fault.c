#include "runtime/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/files.h"

static const char *const points[FAULT_POINTS] = {
#define X(name, text) [FAULT_##name] = text,
    RT_FAULT_POINTS(X)
#undef X
};

typedef enum { NONE, KILL, STOP, HANG, CRASH, FAIL, ACTIONS } Action;
static const char *const actions[ACTIONS] = {
    [KILL] = "kill", [STOP] = "stop", [HANG] = "hang", [CRASH] = "crash", [FAIL] = "fail"};

typedef struct {
    Action  action;
    int     point;
    int64_t rank, step;                // -1: any
    bool    always;
} Fault;

static int find(const char *const *list, int n, const char *word) {
    for (int i = 0; i < n; i++)
        if (list[i] && !strcmp(list[i], word)) return i;
    return -1;
}

static bool read_fault(char *text, Fault *f) {
    char *rest = text, *end = "", *point = strsep(&rest, ",");
    char *action = strsep(&point, "@");
    *f = (Fault){.rank = -1, .step = -1};
    int a = find(actions, ACTIONS, action);
    f->point = point ? find(points, FAULT_POINTS, point) : -1;
    if (a < 0 || f->point < 0) return false;
    f->action = (Action)a;
    for (char *word; (word = strsep(&rest, ","));) {
        if (!strcmp(word, "always")) f->always = true;
        else if (!strncmp(word, "rank=", 5)) f->rank = strtoll(word + 5, &end, 10);
        else if (!strncmp(word, "step=", 5)) f->step = strtoll(word + 5, &end, 10);
        else return false;
        if (*end) return false;
    }
    return true;
}

static bool find_fault(Fault *f) {
    const char *env = getenv("MOEC_FAULT");
    char *text = rt_path("%s", env ? env : "");
    bool found = env && read_fault(text, f);
    free(text);
    return found;
}

RtStatus rt_fault_open(RtError *e) {
    Fault f;
    if (!getenv("MOEC_FAULT") || find_fault(&f)) return RT_OK;
    rt_fail(e, RT_BAD_SETTING,
            "MOEC_FAULT=%s is not ACTION@POINT[,rank=R][,step=S][,always]; actions:", getenv("MOEC_FAULT"));
    for (int i = KILL; i < ACTIONS + FAULT_POINTS; i++) {
        size_t n = strlen(e->text);
        bool is_point = i >= ACTIONS;
        snprintf(e->text + n, sizeof e->text - n, "%s %s", i == ACTIONS ? "; points:" : "",
                 is_point ? points[i - ACTIONS] : actions[i]);
    }
    return RT_BAD_SETTING;
}

RtStatus rt_fault(RtFaultPoint at, int rank, int64_t step, RtError *e) {
    Fault f;
    const char *attempt = getenv("MOEC_ATTEMPT");
    if (!getenv("MOEC_FAULT") || !find_fault(&f) || f.point != (int)at) return RT_OK;
    if ((f.rank >= 0 && f.rank != rank) || (f.step >= 0 && f.step != step)) return RT_OK;
    if (attempt && strcmp(attempt, "0") != 0 && !f.always) return RT_OK;
    switch (f.action) {
    case KILL: raise(SIGKILL); break;
    case STOP: raise(SIGSTOP); break;
    case CRASH: signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); break;
    case HANG:
        for (;;) pause();
    case FAIL: return rt_fail(e, RT_IO, "cannot write (MOEC_FAULT): %s", strerror(ENOSPC));
    default: break;
    }
    return RT_OK;
}
