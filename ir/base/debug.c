// MOE_DEBUG: a comma-separated list of switches, some with an argument after a colon.
#include "ir/base/debug.h"
#include <stdlib.h>
#include <string.h>
#include "ir/base/str.h"

static const struct { const char *name, *arg, *doc; } switches[DEBUG_COUNT] = {
#define DEBUG(name, arg, doc) {#name, arg, doc},
#include "ir/base/debug.def"
#undef DEBUG
};

typedef struct { const char *name, *arg; size_t name_n, arg_n; } Item;

// Cuts the next item off *text; false at the end.
static bool next_item(const char **text, Item *item) {
    while (**text == ',' || **text == ' ') (*text)++;
    if (!**text) return false;
    size_t n = strcspn(*text, ", ");
    const char *colon = memchr(*text, ':', n);
    *item = (Item){*text, NULL, n, 0};
    if (colon) {
        item->name_n = (size_t)(colon - *text);
        item->arg = colon + 1;
        item->arg_n = n - item->name_n - 1;
    }
    *text += n;
    return true;
}

static bool is_named(const Item *item, const char *name) {
    return item->name_n == strlen(name) && !strncmp(item->name, name, item->name_n);
}

const char *debug_help(Arena *a) {
    Str s = {.arena = a};
    str_add(&s, "MOE_DEBUG is a list of these, as in MOE_DEBUG=dump:fuse,time\n");
    for (int i = 0; i < DEBUG_COUNT; i++) {
        const char *name = *switches[i].arg ? arena_printf(a, "%s:%s", switches[i].name, switches[i].arg)
                                            : switches[i].name;
        str_printf(&s, "  %-18s %s\n", name, switches[i].doc);
    }
    return s.text;
}

const char *debug_error(Arena *a, const char *text) {
    Item item;
    while (text && next_item(&text, &item)) {
        bool known = false;
        for (int i = 0; i < DEBUG_COUNT; i++) known |= is_named(&item, switches[i].name);
        if (!known)
            return arena_printf(a, "MOE_DEBUG: there is no switch '%.*s'\n%s", (int)item.name_n, item.name,
                                debug_help(a));
    }
    return NULL;
}

bool debug_on(DebugSwitch s) {
    const char *text = getenv("MOE_DEBUG");
    Item item;
    while (text && next_item(&text, &item))
        if (is_named(&item, switches[s].name)) return true;
    return false;
}

bool debug_on_for(DebugSwitch s, const char *name) {
    const char *text = getenv("MOE_DEBUG");
    Item item;
    while (text && next_item(&text, &item))
        if (is_named(&item, switches[s].name)
            && (!item.arg || (item.arg_n == strlen(name) && !strncmp(item.arg, name, item.arg_n))))
            return true;
    return false;
}

const char *debug_arg(Arena *a, DebugSwitch s) {
    const char *text = getenv("MOE_DEBUG");
    Item item;
    while (text && next_item(&text, &item))
        if (is_named(&item, switches[s].name) && item.arg) return arena_strndup(a, item.arg, item.arg_n);
    return NULL;
}
