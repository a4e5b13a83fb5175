// A team of threads that run one function together and meet at barriers.
#ifndef RUNTIME_TEAM_H
#define RUNTIME_TEAM_H

typedef struct RtTeam RtTeam;
typedef void RtTeamFn(void *arg, int thread);

// The caller is thread 0 of the team.  NULL: the system gives no more threads (errno).
RtTeam *rt_team_open(int threads);
void    rt_team_close(RtTeam *t);                          // NULL is fine
void    rt_team_run(RtTeam *t, RtTeamFn *f, void *arg);    // returns when all have returned from f
void    rt_team_barrier(RtTeam *t, int thread);            // inside f only, by all

#endif
