// The rates of the machine that code is made for: read from a file, or measured.
#ifndef FRONTEND_CMD_MACHINE_H
#define FRONTEND_CMD_MACHINE_H
#include "frontend/cli.h"
#include "ir/machine.h"
#include "runtime/trace.h"

// What --machine names; else this CPU's entry of the cache's machine.json; else what a few milliseconds show, which is kept
// there.  all: bandwidths and tiles must have been measured too, or are now.  NULL after an error.
const Machine *machine_open(Cli *c, bool all);
// The same whatever --machine says.
const Machine *machine_here(Cli *c, bool all);

// What a run with so many threads (0: all) can reach at most; without levels that were not measured.
RtLimits machine_limits(const Machine *m, int threads);

// Measures everything (bench machine), in one to three seconds.  false after an error.
bool machine_measure(Machine *m, Diag *d);
// Arithmetic alone, in some hundredths of a second and with no memory to speak of.  false after an error.
bool machine_measure_arithmetic(Machine *m, Diag *d);
// Takes the better rates of arithmetic of both: what a run is held against is measured before and behind it, since neighbours
// may have the machine for one of them.
void machine_better_arithmetic(Machine *m, const Machine *other);

// The file in force: --machine's or the cache's.  In the arena of c.
const char *machine_path(Cli *c);
// The cache's, whatever --machine says.
const char *machine_cache_path(Cli *c);
// Puts m into the file, beside what it says of other CPUs.  false, errno: it could not be written.
bool machine_keep(const char *path, const Machine *m);

#endif
