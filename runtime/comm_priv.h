// An RtComm from inside: what comm.c runs and comm_check.c watches.
#ifndef RUNTIME_COMM_PRIV_H
#define RUNTIME_COMM_PRIV_H
#include <stdatomic.h>
#include "runtime/comm.h"
#include "runtime/comm_transport.h"

// ---- running --------------------------------------------------------------------------------------------

// What goes to one rank, or comes from it, in the present round of an op: parts one after the other, cut in pieces,
// RT_WINDOW of them on the way.
typedef struct RtStream {
    struct RtCommRun *run;
    int      peer;
    bool     is_send, adds;
    int      busy;                     // messages on the way
    const RtCommPart *part, *end;      // not yet posted
    int64_t  at;                       // so much of *part is
    int64_t  held_ns;                  // RtCommFaults: the next message goes out then
    RtCommPart whole;                  // the part of a stream that has just one
    RtMessage  message[RT_WINDOW];
} RtStream;

// A collective that was started and not yet waited for.
typedef struct RtCommRun {
    RtCommOp op;
    RtStream *out, *in;                // [m]
    int64_t  number;                   // of this rank's collectives, from 1; 0: not in use
    int64_t  in_group;                 // of the group's, from 0
    int64_t  moved_ns;                 // when it last got further
    uint32_t tag;
    int      m, i;                     // ranks of the group, this one
    int      round, open;              // streams that are not through
    bool     is_over;
} RtCommRun;

typedef struct {
    int     *ranks;                    // [m]
    int      m, i;
    int64_t  started;
    uint32_t recent[RT_COMM_OPEN];     // tags of the last collectives, by their number in the group
} RtCommGroup;

// ---- watching -------------------------------------------------------------------------------------------
// Each rank has a page that all ranks of its node can read at any time: its last collectives, which of them it
// waits for, which it has done.

enum { RT_PAGE_OPS = 64, RT_PAGE_TEXT = 72 };

// One started collective; plain words, so that it can be copied word by word and sent.
typedef struct {
    int64_t  number, step, in_group;   // number: 0 while it is written
    uint32_t kind, group, node, chunk;
    char     where[RT_PAGE_TEXT];
} RtCommRecord;

enum { RT_RECORD_WORDS = sizeof(RtCommRecord) / sizeof(int64_t) };

typedef struct {
    _Atomic int64_t waits_for, done;   // numbers; 0: none
    _Atomic int64_t since_ns;          // when that began
    _Atomic int64_t op[RT_PAGE_OPS][RT_RECORD_WORDS];
} RtCommPage;

struct RtComm {
    const RtTransportOps *ops;
    RtTransport *transport;
    int          rank, ranks;
    int64_t      step, silence_ns, started;
    const RtCommFaults *faults;
    int64_t      n_posted;             // messages this rank has sent
    RtCommGroup *group;
    int          n_groups;
    int64_t      allocated;            // bytes
    RtStream    *streams;
    RtCommRun    run[RT_COMM_OPEN];
    RtCommCounters counters;
    RtError      error;                // code RT_OK: none yet
    RtCommPage **page;                 // [ranks]; NULL: on another node
    uint64_t     hash;                 // of all that was started
};

// A collective was started; is waited for; is done.
void rt_comm_note_start(RtComm *c, const RtCommRun *run);
void rt_comm_note_wait(RtComm *c, const RtCommRun *run);
void rt_comm_note_done(RtComm *c, const RtCommRun *run);
void rt_comm_note_go_on(RtComm *c);                            // not waiting any more, for something of it is there

// Into c->error: that the op stands still; a message that shows another program (false: there is none).
void rt_comm_tell_silence(RtComm *c, const RtCommRun *run, int64_t bound_ns);
bool rt_comm_find_stray(RtComm *c);

uint32_t rt_comm_tag(const RtCommOp *op, int64_t in_group);
// "rows (layer 5, models/tiny_mixtral.moe:31; node 23; #58 of group 1)"
const char *rt_comm_op_text(const RtComm *c, const RtCommRun *run, char text[200]);

#endif
