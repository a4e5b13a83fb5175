// On how many ranks a command runs, and how they share its work.
#ifndef FRONTEND_CMD_RANKS_H
#define FRONTEND_CMD_RANKS_H
#include "frontend/cmd_session.h"
#include "runtime/gather.h"

typedef struct {
    int     n;
    bool    local;               // --local: threads of this process.  Otherwise mpirun's, or one
    int     node_ranks;          // of those on a pretended node (MOE_DEBUG=nodes:RANKS); 0: all are on one
    RtComm *comm;                // of mpirun's ranks: this one's end
    MachineLink link;            // between nodes (ranks_find_link)
    const Machine *machine;      // the first rank's, which passes of all choose by: they make one plan.  NULL: each its own
    int     threads;             // the first rank's, for the same reason
    RtRanks world, *among;       // how to reach the others before the mesh is there; NULL: no need to
} Ranks;

// By --local and mpirun.  false after an error.
bool ranks_open(Cli *c, Ranks *r);
// When everything is said: mpirun ends all others as soon as one rank has gone with an error.
void ranks_close(Ranks *r);
// Measures the way between nodes, where there are several, for ranks_mesh.  Called by all ranks at once.  false after an error.
bool ranks_find_link(Ranks *r, Diag *d);
// From the parallel block and the number of ranks; checks what it asks for.  false after errors.
bool ranks_mesh(Session *s, const Ranks *r, RtMesh *out);
// The same of programs that only read their parameters.  What the model's file says of ranks is for training: on one
// rank only the command line's word counts.
bool ranks_mesh_to_read(Session *s, const Ranks *r, bool has_lanes, RtMesh *out);
// Where such programs' experts begin and when they move: the command line's word, too.  false after an error.
bool ranks_moves_to_read(Session *s, RtSettings *settings);
// How many neighbours of those that share experts are on each node; 0: not the same number everywhere, or not neighbours.
int  ranks_per_node(const Ranks *r, RtMesh m);
int  ranks_pretended_nodes(Arena *a);
// Threads of each rank, by --threads, which is the whole of a process.  false after an error.
bool ranks_threads(Session *s, const Ranks *r, int *out);

// First on one rank of each node, then on the others, which find in caches what it made.  All ranks return the same;
// the first that failed alone keeps its errors in diag, to be printed.
bool ranks_in_turn(Ranks *r, Diag *d, bool (*prepare)(void *self), void *self);

// Opens a plan on every rank of this process and runs `run` there, until all are done.
typedef RtStatus RanksRun(void *self, RtPlanInstance *p, RtError *e);
RtStatus ranks_run(Session *s, const Ranks *r, int threads, RanksRun *run, void *self, RtError *e);

#endif
