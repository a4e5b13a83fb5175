// Messages between a supervisor and its ranks, over TCP; nothing of MPI is in it.  Never blocks.
#ifndef RUNTIME_WIRE_H
#define RUNTIME_WIRE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    WIRE_HELLO,            // rank -> supervisor: the first; text is the run's secret, then the host
    WIRE_ALIVE,            // rank -> supervisor: every WIRE_TICK_NS
    WIRE_FAILED,           // rank -> supervisor: it ends all with `status`; text says why
    WIRE_BYE,              // rank -> supervisor: it ends with `status`
    WIRE_PING,             // supervisor -> rank: every WIRE_TICK_NS
    WIRE_SIGNAL,           // supervisor -> rank: signal `status` came
    WIRE_END               // supervisor -> rank: end at once; text says why
} WireKind;

typedef enum { PHASE_START, PHASE_TRAIN, PHASE_SAVE, PHASE_END, PHASES } WirePhase;

// Where a rank stands.
typedef struct {
    uint64_t beats;            // grows with whatever the rank gets done
    int64_t  step, saved;      // being done; of the newest checkpoint this process wrote (-1: none)
    uint32_t phase;            // WirePhase
    uint32_t plan_step;        // the step of a program that was begun last
    uint32_t waits;            // for another rank
    uint32_t unused;
} WirePlace;

enum { WIRE_TEXT = 1200 };

typedef struct {
    uint32_t magic, kind;
    int32_t  rank, pid, status;
    uint32_t text_bytes;       // with its zero
    WirePlace place;
    char     text[WIRE_TEXT];  // only text_bytes of it travel
} WireMessage;

// The pages of the ranks on the supervisor's own host, shared with it: they tell where a rank was when it died.
typedef struct {
    _Atomic uint64_t beats;            // writers may overwrite each other: only that it moves counts
    _Atomic int64_t  step, saved;
    _Atomic uint32_t phase, plan_step, waits;
    uint32_t unused[7];
} WirePage;
_Static_assert(sizeof(WirePage) == 64, "a cache line");

typedef struct {
    char     secret[64];
    WirePage page[];
} WirePages;

WirePlace wire_place(const WirePage *p);

// The steps of the plan, one a line, in the log folder: "matmul of layers.0.ffn (models/std/ffn.moe:6)".
#define WIRE_STEPS "steps.txt"

static const int64_t WIRE_TICK_NS = 200000000;
static const int64_t WIRE_LOST_NS = 4000000000;        // a rank that is silent so long is lost ..
static const int64_t WIRE_ALONE_NS = 8000000000;       // .. and one that hears nothing so long ends itself

// PORT:SECRET:ADDRESS,ADDRESS..:PAGES:LOG-FOLDER; PAGES is a file of the supervisor's under /proc
#define WIRE_ENV "MOEC_SUPERVISOR"

enum { WIRE_SECRET = 33 };     // 32 hex digits

typedef struct {
    int      fd;               // -1: closed
    uint32_t n_in, n_out;      // bytes
    char     in[sizeof(WireMessage)], out[4 * sizeof(WireMessage)];
} Wire;

void wire_open(Wire *w, int fd);                       // takes fd over
void wire_close(Wire *w);
void wire_text(WireMessage *m, const char *text);      // cut where it is too long
// false: there is no room, since the other end does not read.
bool wire_put(Wire *w, const WireMessage *m);
// What can be sent without waiting.  false: the connection is gone.
bool wire_flush(Wire *w);
static inline bool wire_is_empty(const Wire *w) { return w->n_out == 0; }
// 1: a message; 0: none is there yet; -1: the connection is gone, or what came is none of ours.
int  wire_get(Wire *w, WireMessage *m);

// Silence, by whoever waits for it: time in which this process itself did not run counts as one tick.
typedef struct { int64_t looked_ns, silent_ns; } WireSilence;
int64_t wire_silence(WireSilence *s, int64_t now_ns, bool heard);

#endif
