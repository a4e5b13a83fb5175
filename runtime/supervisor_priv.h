// What the parts of the supervisor share.
//
//   supervisor.c            attempts: start, watch, decide
//   supervisor_watch.c      an attempt: who is silent, stuck or late; the end of all
//   supervisor_hub.c        where ranks call, and what they say
//   supervisor_launcher.c   the process that starts them
//   supervisor_hosts.c      going on without a host that is lost
//   supervisor_logs.c       events, lines of ranks
//   supervisor_signals.c    signals to the supervisor
#ifndef RUNTIME_SUPERVISOR_PRIV_H
#define RUNTIME_SUPERVISOR_PRIV_H
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <sys/types.h>

#include "runtime/outlet.h"
#include "runtime/supervisor.h"
#include "runtime/wire.h"

#define SECOND INT64_C(1000000000)

enum { LOST = 76, GAVE_UP = 77, STOPPED = 75, LINE = 1200 };

typedef enum { ABSENT, PRESENT, LEFT, GONE } State;  // LEFT: it said goodbye

typedef struct {
    State   state;
    Wire    wire;
    char    host[128];
    bool    is_local;
    int     pid, status;             // LEFT: its exit status
    WirePlace at;
    WireSilence silence, stall;
    // its log
    int64_t log_at;                  // bytes of it that were read
    char    partial[LINE];           // a line that has no end yet
    size_t  n_partial;
} Rank;

// A connection that hasn't said who it is.
typedef struct { Wire wire; int64_t since_ns; } Caller;
enum { STRANGERS = 16 };             // there is room for so many that never will

// A line of ranks other than the first, held back until others may have said the same.
typedef struct { char text[LINE]; int rank, n; int64_t ns; } Held;
enum { HELD = 64 };

typedef enum { NOTHING, FAILED, LOST_RANK, SILENT, STUCK, LAUNCHER } Cause;

typedef struct {
    const RtSuperviseOpts *o;
    int     ranks, next_ranks;       // of this attempt, of the next
    char *const *command;
    Rank   *rank;                    // [o->ranks]
    Caller *caller;                  // [ranks + STRANGERS]
    char    secret[WIRE_SECRET];
    WirePages *pages;                // NULL: there are none
    int     pages_file;
    int     listener, port;
    char    host[128];
    FILE   *events, *launcher_log;
    RtOutlet out;
    Held    held[HELD];
    int     n_held;
    // the attempt
    int     attempt, output;         // output: of the launcher; -1: closed
    pid_t   launcher;                // 0: it has ended ..
    int     launcher_status;         // .. like this
    int     launcher_signal;         // that killed it; 0: none, or it was sent from here
    char    last_words[LINE];        // of the launcher
    bool    anybody;                 // at least one rank has called
    Cause   cause;
    int     failed_rank, failed_status;
    char    why[LINE + 400];
    int64_t end_ns;                  // when the end began; 0: it did not
    bool    is_told, is_killed, is_asked;
    int64_t ping_ns, log_ns, left_ns;  // left_ns: since when ranks or the launcher are the last that are there
    // the run
    int64_t saved, failed_step;
    int     used, same_step;         // restarts since the last checkpoint; failures in failed_step in a row
    const char *hostfile;
    char   *own_hosts;               // hostfile, once a host was left out
    char    suspect[128];            // host whose ranks went; "": none
    int     suspect_ranks, suspect_number;
    int     signal;                  // that was passed on
    int64_t signal_ns;
} Supervisor;

static inline int sv_n_callers(const Supervisor *s) { return s->o->ranks + STRANGERS; }

// ---- what is told
#define say(s, ...) rt_outlet_line(&(s)->out, "moec: " __VA_ARGS__)
void sv_event(const Supervisor *s, const char *name, json_t *fields);           // takes fields
void sv_skip_logs(Supervisor *s);                                               // what they have already
void sv_read_logs(Supervisor *s, int64_t now_ns, bool all);

// ---- the launcher
bool sv_start_launcher(Supervisor *s);                                          // false: errno
void sv_read_output(Supervisor *s);
void sv_reap(Supervisor *s, int64_t now_ns);

// ---- ranks
RtStatus sv_open_hub(Supervisor *s, const char *log_dir, RtError *e);
void sv_hear_all(Supervisor *s, int64_t now_ns);
void sv_tell_all(Supervisor *s, WireKind kind, int status, const char *text);
int  sv_n_in(const Supervisor *s, State state);
enum { WHERE = 400 };
void sv_say_where(const Supervisor *s, const WirePlace *at, char out[WHERE]);   // what a rank does
// The end of an attempt begins.  false: it has already.
bool sv_begin_end(Supervisor *s, Cause cause, int rank, int64_t now_ns);
void sv_lose(Supervisor *s, Cause cause, int rank, int64_t now_ns, const char *how);

// ---- an attempt
void sv_watch(Supervisor *s, struct pollfd *p);                                 // from the start until all are gone

// ---- hosts (--elastic)
const char *sv_lost_host(Supervisor *s);                                        // by this attempt and the one before; NULL: none
bool sv_leave_out(Supervisor *s, const char *host);                             // from the next attempt on; false: nobody can go on

// ---- signals
void sv_note_signals(void);
void sv_default_signals(void);                                                  // in a child
void sv_pass_on_signals(Supervisor *s, int64_t now_ns);

#endif
