// train --dry-run: what would be trained, and whether every host has what it takes.
#ifndef FRONTEND_CMD_DRY_RUN_H
#define FRONTEND_CMD_DRY_RUN_H
#include "frontend/cmd_ranks.h"
#include "runtime/settings.h"

// Called by all ranks with their code compiled; the first one prints.  false: some host lacks something, which was said;
// or e says why it could not be found out.
bool dry_run(Session *s, Ranks *r, const RtSettings *settings, int threads, const char *out, bool resume, RtError *e);

#endif
