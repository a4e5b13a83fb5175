// train --ranks N --restarts R: this process starts those that train, and looks after them.
#ifndef FRONTEND_CMD_SUPERVISE_H
#define FRONTEND_CMD_SUPERVISE_H
#include "frontend/cli.h"

bool supervise_is_asked(Cli *c);
int  supervise(Cli *c);                     // the exit status

#endif
