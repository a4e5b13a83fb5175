// How ranks talk.  An RtComm is one rank's end of the connection to all others; a collective is started, makes
// progress under other work, and is waited for:
//
//   ticket = start(op);  ... progress() between tiles of other work ...;  done(ticket)
//
// Behind it stands a transport that moves messages between two ranks: `local` (ranks are threads of one process)
// or `mpi`.  What a collective is made of, and the order of every sum, is comm.c's, so both give the same bits.
//
// * All ranks of a group start the same collectives in the same order; waiting for them may have any order.
//   A rank with nothing to send takes part all the same.
// * An op, and all it points to, is borrowed from start to done.  Meanwhile what is sent may be read by others but
//   not written, what is received may not be touched.  Nothing is allocated after the groups are there.
// * One thread of a rank calls these functions, always the same: the one that opened.
// * After an error other than in arguments (RT_BAD_PLAN) the communicator is good for rt_comm_close only; call
//   rt_comm_abort first, so that others don't wait for this rank.
#ifndef RUNTIME_COMM_H
#define RUNTIME_COMM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "runtime/abi.h"
#include "runtime/status.h"

// As many ranks as a tree of sums may have.
static inline bool rt_is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// ---- what ranks do together -----------------------------------------------------------------------------
// m: ranks of the group; i: this one.  Blocks and pieces: [cut[j], cut[j + 1]) elements of buf, j < m.
//
//   COUNTS        integers that sizes depend on: buf [m][n], block rt_comm_block(op, m, i) filled; then all of it is
//   ROWS, BACK    send[] to recv[]: rows to their experts, and back
//   TREE_REDUCE   buf [n] becomes the sum over ranks: tree order, the same on all
//   TREE_SCATTER  the same, but only piece rt_comm_piece(i, m) of buf is that sum; the rest is undefined
//   TREE_GATHER   the way back: piece rt_comm_piece(i, m) of buf filled; then all of it is
//   GATHER        block i of buf filled; then all of it is
//   EXACT         buf [n] of I32 or I64 becomes the sum over ranks: no order (exact.h)
//   BCAST         buf [n] of rank `root` to all
//   MOVE          send[] to recv[]: anything from rank to rank
//   FEW           the same, one part to a rank, which may be shorter than what its receiver has room for (it tells itself)
#define RT_COMM_KINDS_DO(X)                                                                                   \
    X(COUNTS, "counts") X(ROWS, "rows") X(BACK, "back") X(TREE_REDUCE, "tree_reduce")                         \
    X(TREE_SCATTER, "tree_scatter") X(TREE_GATHER, "tree_gather") X(GATHER, "gather") X(EXACT, "exact")       \
    X(BCAST, "bcast") X(MOVE, "move") X(FEW, "few")

typedef enum {
#define X(name, text) RT_COMM_##name,
    RT_COMM_KINDS_DO(X)
#undef X
    RT_COMM_KINDS
} RtCommKind;

const char *rt_comm_kind_name(RtCommKind kind);

// The tree: ((0 + 1) + (2 + 3)) + ..., neighbours of the group's list first, the lower rank's operand on the left.
// m is a power of two.  F32, or BF16: added in f32 and rounded to nearest even at every node.  Neither n nor the
// cuts change a bit of a sum.

// What a rank sends another, in one part or several: bytes to, or from, group rank `peer`.  Lists are in the order of
// peers.  The j-th part sent to a peer is the j-th it receives from here, and both are of the same size; 0 bytes
// send nothing.  peer may be this rank itself (its parts of both lists are copied).
typedef struct {
    void   *at;
    int64_t bytes;
    int     peer;
} RtCommPart;

// Where the plan has the op, for checks and messages.  node and chunk are the same on all ranks.
typedef struct {
    uint32_t node, chunk;
    const char *where;         // "layer 5, models/tiny_mixtral.moe:31"; NULL: nowhere.  Must live as long as the RtComm
} RtCommTag;

typedef struct {
    RtCommKind kind;
    int        group;          // of rt_comm_group; 0: all ranks
    RtCommTag  tag;
    DType      dtype;          // of elements; EXACT: I32 or I64, TREE_REDUCE and TREE_SCATTER: F32 or BF16
    int        root;           // BCAST: group rank
    int64_t    n;              // elements (COUNTS: of a block)
    void      *buf;            // all but ROWS, BACK, MOVE: in place
    void      *scratch;        // rt_comm_scratch_bytes of it
    const int64_t *cut;        // [m + 1], ascending from 0 to n: TREE_SCATTER, TREE_GATHER, GATHER
    int        per_node;       // COUNTS: > 0: go between nodes of so many ranks each, neighbours, then inside them
    const RtCommPart *send, *recv;   // ROWS, BACK, MOVE
    int        n_send, n_recv;
    bool       own_later;      // what goes from this rank to itself is copied when the op is waited for
    int        send_later, recv_later;     // so many of them, the last, go when all before have come and gone here: each
                                           // list of the two is in the order of peers, no later part is for oneself
    int64_t    expected_ns;    // predicted time: lengthens the bound on silence
} RtCommOp;

// Bytes of scratch an op of these sizes needs in a group of m ranks; 0: none.
int64_t rt_comm_scratch_bytes(RtCommKind kind, DType dtype, int64_t n, int m);

// Which block of COUNTS is group rank i's: its own number; between nodes those of one place in their nodes are neighbours.
int rt_comm_block(const RtCommOp *op, int m, int i);

// The piece that group rank i of m = 2^q ends with: i's q bits in reverse (the first halving is with the neighbour).
int rt_comm_piece(int i, int m);

// Cuts n elements into m = 2^q pieces at borders that are multiples of grain, halving each time at the border
// nearest to the middle (the lower of two).  cut has m + 1 entries.  Lists with other borders are cut by the plan.
void rt_comm_cut(int64_t n, int64_t grain, int m, int64_t *cut);

// ---- opening --------------------------------------------------------------------------------------------

enum { RT_COMM_OPEN = 64 };    // collectives a rank may have started and not waited for

// For tests: what the world does to messages.  Decided by seed, rank and the message's number.
typedef struct {
    uint64_t seed;
    int64_t  delay_ns;         // > 0: each message is held back for up to so long
    int64_t  lose;             // > 0: the lose-th message this rank sends never goes out
} RtCommFaults;

typedef struct RtLocalWorld RtLocalWorld;
typedef struct RtComm RtComm;

typedef struct {
    RtLocalWorld *world;       // local; NULL: mpi
    int     rank;              // local: this thread's
    int64_t silence_ns;        // how long a collective may stand still; 0: 30 s
    const RtCommFaults *faults;      // borrowed; NULL: none
} RtCommConfig;

// n ranks of this process, `node_ranks` of them on each (pretended) node; 0: one node.  Threads are the caller's.
RtStatus rt_local_open(int ranks, int node_ranks, RtLocalWorld **out, RtError *e);
void     rt_local_close(RtLocalWorld *w);                   // after all ranks have closed; NULL is fine

// Ranks this process was started with (mpirun), from the environment; 1: by itself.
int      rt_comm_world_size(void);
int      rt_comm_world_rank(void);                          // this process among them, likewise

// Called by all ranks; returns when all are there.  RT_COMM where this installation has no MPI.
RtStatus rt_comm_open(const RtCommConfig *cf, RtComm **out, RtError *e);
void     rt_comm_close(RtComm *c);                          // with all ranks, or after an error; NULL is fine
// The run is over for all: who waits, or comes to wait, gets e's status and text.  Under MPI the job ends here,
// with rt_exit_status(e->code).
void     rt_comm_abort(RtComm *c, const RtError *e);

// Bytes that a communicator of so many ranks takes with its groups (all ranks are the first) and their members together;
// and what one took.  Memory of the transport is not in it.
int64_t  rt_comm_bytes(int ranks, int groups, int members);
int64_t  rt_comm_allocated(const RtComm *c);

int      rt_comm_rank(const RtComm *c);
int      rt_comm_ranks(const RtComm *c);
int      rt_comm_node(const RtComm *c, int rank);           // number of the node (shared memory) where a rank lives

// Called by all ranks, in the same order, each with its own group's ranks (itself among them; in group-rank order);
// the groups of one call don't overlap, those of different calls may.  All that is ever allocated is by then.
RtStatus rt_comm_group(RtComm *c, const int *ranks, int n, int *group, RtError *e);
int      rt_comm_group_rank(const RtComm *c, int group);
int      rt_comm_group_ranks(const RtComm *c, int group);

// Called by all ranks at the same place: `bytes` of memory of each, which all ranks of its node reach at at[rank]; NULL for
// ranks of other nodes.  64-byte aligned; freed by rt_comm_close.  zeroed: or else nobody has touched its pages.
RtStatus rt_comm_shared(RtComm *c, size_t bytes, bool zeroed, void **at, RtError *e);

// ---- running --------------------------------------------------------------------------------------------

void     rt_comm_step(RtComm *c, int64_t step);             // of the run: for messages
void     rt_comm_silence(RtComm *c, int64_t ns);            // another bound from now on (longer in a first step)

// Never waits.
RtStatus rt_comm_start(RtComm *c, const RtCommOp *op, int *ticket, RtError *e);
// Cheap; called between tiles of other work.  Errors are kept for done.
void     rt_comm_progress(RtComm *c);
// Is recv[part] there?  (Makes no progress by itself.)  Of an op without later parts.
bool     rt_comm_ready(const RtComm *c, int ticket, int part);
// Waits, with progress; the ticket is free then.  RT_TIMEOUT when nothing of the op moved within the bound
// (silence_ns + 10 * expected_ns), with the peers that are missing and what each rank does; RT_COMM when ranks don't
// run the same ops, or sizes differ.
RtStatus rt_comm_done(RtComm *c, int ticket, RtError *e);
// When the collective of a ticket, waited for or not, last got further: when it was over, once it is.
int64_t  rt_comm_moved_ns(const RtComm *c, int ticket);
// Waits until recv[p] is there for all p with p % stride < below; the ticket stays.
RtStatus rt_comm_done_parts(RtComm *c, int ticket, int stride, int below, RtError *e);
RtStatus rt_comm_run(RtComm *c, const RtCommOp *op, RtError *e);      // start, done

// ---- what was moved -------------------------------------------------------------------------------------

typedef enum { RT_LINK_NODE, RT_LINK_NET, RT_LINKS } RtLink;         // ranks of one node; of two
const char *rt_link_name(RtLink link);

typedef struct { int64_t messages, bytes; } RtTraffic;

typedef struct {
    RtTraffic sent[RT_COMM_KINDS][RT_LINKS], received[RT_COMM_KINDS][RT_LINKS];
    RtTraffic plan_sent[RT_COMM_KINDS][RT_LINKS], plan_received[RT_COMM_KINDS][RT_LINKS];      // of ops with a tag.where
    int64_t   ops[RT_COMM_KINDS];
} RtCommCounters;

RtCommCounters rt_comm_counters(const RtComm *c);           // since open

// What rank i of a group of m sends to, and receives from, each group rank (arrays of m; added to what is there).
// The communicator cuts messages by the same rules; only sizes of the op are read.
void rt_comm_traffic(const RtCommOp *op, int i, int m, RtTraffic *sent, RtTraffic *received);

// ---- do all ranks run the same program? -----------------------------------------------------------------
// Three checks: facts at the start; kind, node, chunk and size of every collective, where messages meet; and once per
// step a hash over all that was started, whose sums ride in the step's EXACT message.

typedef struct { const char *name; uint64_t value; } RtCommFact;      // "plan", hash of its text

// Collective over all ranks.  RT_COMM names the first fact that differs, and the ranks.
RtStatus rt_comm_same(RtComm *c, const RtCommFact *fact, int n, RtError *e);

enum { RT_CHECK_WORDS = 4 };
// What this rank adds to an EXACT message over all ranks ..
void     rt_comm_check_words(const RtComm *c, int64_t word[RT_CHECK_WORDS]);
// .. and what their sums say, on all ranks alike: RT_COMM with the first collective that differs.  Nothing may have
// been started between the two but that EXACT.
RtStatus rt_comm_check(RtComm *c, const int64_t sum[RT_CHECK_WORDS], RtError *e);

#endif
