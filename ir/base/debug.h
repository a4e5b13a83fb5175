// Developer switches from the environment: MOE_DEBUG=dump:fuse,time.  The list: debug.def.
#ifndef IR_BASE_DEBUG_H
#define IR_BASE_DEBUG_H
#include <stdbool.h>
#include "ir/base/arena.h"

typedef enum {
#define DEBUG(name, arg, doc) DEBUG_##name,
#include "ir/base/debug.def"
#undef DEBUG
    DEBUG_COUNT
} DebugSwitch;

// NULL if `text` (or the absence of it: NULL) is a valid setting, else what is wrong with it, with the list (in a).
const char *debug_error(Arena *a, const char *text);
const char *debug_help(Arena *a);
// Is the switch in MOE_DEBUG?  The environment is read anew at every call; nothing is kept.
bool debug_on(DebugSwitch s);
// Is it there for `name`: as dump:name, or without an argument (then for every name)?
bool debug_on_for(DebugSwitch s, const char *name);
// The argument of its first appearance, copied to a; NULL if it isn't there or has none.
const char *debug_arg(Arena *a, DebugSwitch s);

#endif
