// What a run recorded of its routes (train --record-routes): RUN/routes/rank-NNNN.jsonl, a line for each route of each pass.
#ifndef PLANNER_ROUTES_H
#define PLANNER_ROUTES_H
#include "ir/base/arena.h"
#include "ir/base/diag.h"

typedef struct RouteLog RouteLog;
// Of so many ranks.  NULL after errors.
RouteLog *routes_read(Arena *a, Diag *d, const char *dir, int ranks);
int64_t  routes_steps(const RouteLog *log);
int      routes_lines(const RouteLog *log);                      // of each rank
uint32_t routes_exchange(const RouteLog *log, int line);         // number of the exchange of offsets in the plan
// Rows to each expert, different ones to each node (nodes 0: rows didn't go so).  false: the line has other numbers of them.
bool     routes_rows(const RouteLog *log, int line, int rank, int32_t *to, int experts, int32_t *distinct, int nodes);
// Of all lines of an exchange.  false: there is none with so many.
bool     routes_mean(const RouteLog *log, uint32_t exchange, int rank, int32_t *to, int experts, int32_t *distinct, int nodes);

#endif
