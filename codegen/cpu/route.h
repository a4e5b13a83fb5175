// What the gate's kernel (gate.c) asks of the pieces it lays over each other.
#ifndef CODEGEN_CPU_ROUTE_H
#define CODEGEN_CPU_ROUTE_H
#include "codegen/kernel.h"

bool gate_is_kernel(const Node *gate);               // does one kernel take all of it?

// A count, queue or route of `tokens` tokens: is each run of so many of them in one group, runs in order?
bool slots_keep_to_runs(const Node *n, int64_t tokens, int64_t run);
// A count and a route of the same choices: are their groups and experts the same?
bool slots_are_alike(const Node *count, const Node *route);
// Where a route by runs has the totals [group, expert] of its histograms in its workspace.
int64_t route_totals_at(const KernelNode *k);

// A sum over tokens: how many tasks of its first phase read no token but those of a run; 0: they don't keep to runs.
int64_t sum_tasks_of_run(const Node *n, int64_t tokens, int64_t run);

#endif
