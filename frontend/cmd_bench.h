// `moec bench`: one function for each row of bench.def.
#ifndef FRONTEND_CMD_BENCH_H
#define FRONTEND_CMD_BENCH_H
#include "frontend/cli.h"

#define BENCH(what, run, options, doc) int run(Cli *c);
#include "frontend/bench.def"
#undef BENCH

#endif
