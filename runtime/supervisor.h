// Starts the ranks of a run, looks after them, and starts them again from the newest whole checkpoint when one is lost.
//
//   supervisor --fork--> launcher (mpirun, its own process group) --> rank 0, rank 1, ..
//        '------------------- TCP, wire.h -------------------------------'
//
// A rank is lost when its connection closes without a word, when it is silent for 4 s (stopped, or its host is cut
// off), or when it gets nothing done for stall_ns.  Then all are told to end, killed after half a second, and started
// again.
#ifndef RUNTIME_SUPERVISOR_H
#define RUNTIME_SUPERVISOR_H
#include <stdbool.h>
#include <stdint.h>
#include "runtime/status.h"

typedef struct {
    char *const *command;           // what starts all ranks, NULL at the end; each process finds `call_env`
    int   ranks;                    // processes that will call
    bool  remote;                   // some on other hosts
    const char *run_dir;            // is there; gets events.jsonl and log/
    int   restarts;                 // in a row, without a new checkpoint between them
    int64_t stall_ns;               // how long nothing may get done by a rank; 0: 60 s
    // leaving out hosts that are lost; hostfile NULL: never
    const char *hostfile;
    int   fewest;                   // ranks that share experts and matrices: no fewer can go on
    char *const *(*command_of)(void *self, const char *hostfile, int ranks);
    void *self;
    int   out;                      // file: what happens, and the lines of ranks
} RtSuperviseOpts;

// Returns the run's exit status: 0 done; 1 or another that a rank ended with, which trying again would not change; 75
// stopped by a signal after saving; 76 a rank was lost and restarts is 0 or a signal came; 77 given up.
int rt_supervise(const RtSuperviseOpts *o);

#endif
