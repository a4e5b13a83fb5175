// What comm.c stands on: messages between two ranks, and nothing else.  A transport knows no collectives.
#ifndef RUNTIME_COMM_TRANSPORT_H
#define RUNTIME_COMM_TRANSPORT_H
#include "runtime/comm.h"

// One message, sent or received.  Of those between two ranks in one group with one tag, the first sent meets the
// first that is received; others may meet in any order.  Belongs to comm.c, to the transport from post until it comes
// out of progress.
typedef struct RtMessage {
    struct RtMessage *next, *from;       // the transport's; from progress, next: another one that has finished
    int      sender;             // the transport's
    void    *at;
    int64_t  bytes;
    uint32_t tag;                // below RT_TAGS
    int      group, peer;        // peer: group rank
    int      rank;               // the same among all ranks
    bool     is_send, failed;
    int64_t  arrived;            // received: how many bytes were sent; more than `bytes` were cut off
    // comm.c's own
    int64_t  at_part;            // where in its part
    const RtCommPart *part;      // NULL: free
    struct RtStream  *stream;
} RtMessage;

enum {
    RT_TAGS = 1 << 22,
    RT_PIECE_BYTES = 512 << 10,                       // of a message at most
    RT_WINDOW = 4,                                    // messages of one op to, or from, one rank at once
    RT_MESSAGES = RT_COMM_OPEN * 2 * RT_WINDOW        // of all ops
};

typedef struct RtTransport RtTransport;

typedef struct {
    const char *name;
    RtStatus (*open)(const RtCommConfig *cf, RtTransport **out, RtError *e);
    // with all ranks; in_order: nothing is under way, else others may not come
    void     (*close)(RtTransport *t, bool in_order);
    void     (*abort)(RtTransport *t, const RtError *e);
    bool     (*ended)(RtTransport *t, RtError *e);            // has a rank aborted?
    int      (*rank)(const RtTransport *t);
    int      (*ranks)(const RtTransport *t);
    int      (*node)(const RtTransport *t, int rank);
    RtStatus (*group)(RtTransport *t, int group, const int *ranks, int n, RtError *e);
    RtStatus (*shared)(RtTransport *t, size_t bytes, bool zeroed, void **at, RtError *e);
    void     (*post)(RtTransport *t, RtMessage *m);
    RtMessage *(*progress)(RtTransport *t);                   // what has finished since, linked by next
    void     (*rest)(RtTransport *t, int64_t ns);             // until something may have happened, at most ns
    // the tag of the first message from that group rank that is here and has no receiver
    bool     (*unexpected)(RtTransport *t, int group, int peer, int rank, uint32_t *tag);
} RtTransportOps;

extern const RtTransportOps rt_transport_local;
// In a library of its own, moec_mpi.so, so that programs run where there is no MPI.
#define RT_TRANSPORT_MPI "rt_transport_mpi"

#endif
