// For tests: what happens to a rank at a given point.  MOEC_FAULT=ACTION@POINT[,rank=R][,step=S][,always], for example
// kill@save-manifest,rank=1,step=4.  Without rank and step: the first to come there.  Not after a restart, but for
// `always`.
#ifndef RUNTIME_FAULT_H
#define RUNTIME_FAULT_H
#include <stdint.h>
#include "runtime/status.h"

#define RT_FAULT_POINTS(X)                                                              \
    X(START, "start")                  /* before anything is opened */                  \
    X(STEP, "step")                    /* before a step */                              \
    X(SAVE, "save")                    /* before anything of a checkpoint is there */   \
    X(SAVE_TENSORS, "save-tensors")    /* the folder is there, no tensor */             \
    X(SAVE_FILE, "save-file")          /* one of a rank's files is there */             \
    X(SAVE_MANIFEST, "save-manifest")  /* all but the manifest */                       \
    X(SAVE_RENAME, "save-rename")      /* whole, under its temporary name */            \
    X(SAVE_LATEST, "save-latest")      /* renamed; `latest` names the one before */     \
    X(SAVE_DELETE, "save-delete")      /* an old one has its name of a dead one */      \
    X(LOAD, "load")                    /* before a checkpoint is read */

typedef enum {
#define X(name, text) FAULT_##name,
    RT_FAULT_POINTS(X)
#undef X
    FAULT_POINTS
} RtFaultPoint;

// Reads MOEC_FAULT; RT_BAD_SETTING lists what there is.
RtStatus rt_fault_open(RtError *e);
// kill: SIGKILL.  stop: SIGSTOP.  hang: never returns.  crash: SIGSEGV.  fail: RT_IO, as if the disk were full.
RtStatus rt_fault(RtFaultPoint at, int rank, int64_t step, RtError *e);

#endif
