// The command line: one table of commands and options, from which parsing, --help, the man page and the bash
// completion are made.  Only frontend/main.c and frontend/cmd_*.c include this.
#ifndef FRONTEND_CLI_H
#define FRONTEND_CLI_H
#include <stdbool.h>
#include <stdio.h>

#include "ir/base/arena.h"
#include "ir/base/diag.h"
#include "ir/base/vec.h"

enum { EXIT_DONE = 0, EXIT_WRONG = 1, EXIT_USAGE = 2, EXIT_STOPPED = 75 };

typedef struct {
    const char *name, *arg, *doc;      // arg NULL: a flag; --name ARG or --name=ARG otherwise
} Option;

typedef struct Cli Cli;

typedef struct {
    const char *name, *args, *doc, *example, *more;
    const Option *options;             // ended by {0}
    int least, most;                   // number of arguments
    int (*run)(Cli *c);
} Command;

typedef struct {
    const char *name, *value;          // value "" for flags
} Given;

struct Cli {
    const Command *command;
    Arena *arena;
    Diag  *diag;
    VEC(const char *) args;
    VEC(Given) given;
    VEC(const char *) sets;            // --set key=value, in order
    bool  quiet, color;                // color: of stderr
    const char *program;               // argv[0]
};

extern const Command commands[];
extern const int n_commands;

const char *cli_value(const Cli *c, const char *option);          // NULL if not given; the last one wins
bool        cli_flag(const Cli *c, const char *option);
// Prints what diag collected; EXIT_WRONG if there were errors, else `status`.
int         cli_finish(Cli *c, int status);
int         cli_fail(Cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));   // one error without source: EXIT_WRONG
int         cli_usage(Cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));  // EXIT_USAGE

int cmd_check(Cli *c);
int cmd_dump(Cli *c);
int cmd_build(Cli *c);
int cmd_train(Cli *c);
int cmd_eval(Cli *c);
int cmd_generate(Cli *c);
int cmd_plan(Cli *c);
int cmd_verify(Cli *c);
int cmd_bench(Cli *c);
int cmd_place(Cli *c);
int cmd_ops(Cli *c);
int cmd_passes(Cli *c);
int cmd_targets(Cli *c);
int cmd_settings(Cli *c);

#endif
