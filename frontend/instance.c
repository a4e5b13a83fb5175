// The tree of instances.  A call gets its place in the tree when the first parameter or state is made in it
// or below it, so functions without any leave no trace in paths.
#include <string.h>

#include "frontend/interp.h"

static const char *join(Lower *lw, const char *path, const char *name) {
    return intern(path[0] ? arena_printf(lw->arena, "%s.%s", path, name) : name);
}

bool is_frozen(const Call *c) {
    for (; c; c = c->caller)
        if (c->frozen) return true;
    return false;
}

void set_path(Lower *lw, const Call *c) {
    while (c && !c->instance) c = c->caller;
    lw->b.path = c && c->instance->path[0] ? c->instance->path : NULL;
}

// Nodes made by this call before it had an instance get its path.
static void adopt_nodes(Lower *lw, const Call *c, const char *outer) {
    for (Node *n = lw->g->last; n && n != c->before; n = n->prev)
        if (n->path == outer) n->path = c->instance->path;
}

static Child *find_child(Instance *parent, const char *name) {
    for (int i = 0; i < parent->children.n; i++)
        if (parent->children.at[i].name == name) return &parent->children.at[i];
    return NULL;
}

static Instance *new_instance(Lower *lw, Instance *parent, const char *name, Span at) {
    Instance *in = arena_new(lw->arena, Instance);
    in->parent = parent;
    in->path = join(lw, parent->path, name);
    in->frozen = parent->frozen;
    if (parent->copy_from) in->copy_from = join(lw, parent->copy_from, name);
    Child child = {name, in, parent->visit, at};
    vec_push(lw->arena, &parent->children, child);
    return in;
}

// What the text of a call would be with a name of its own.
static const char *with_name(Lower *lw, Span at, const char *as) {
    return arena_printf(lw->arena, "%s as %s", ast_text(lw->arena, lw->diag, at), as);
}

// The notes of a message about a call begin with the call around it.
static void notes_around(Lower *lw, const Call *c) {
    const Call *inner = lw->call;
    lw->call = c->caller;
    lower_notes(lw);
    lw->call = inner;
}

static bool check_name(Lower *lw, const Call *c, const Child *known) {
    if (c->in_loop && !c->has_as) {
        error_at(lw, c->at, "this call makes an instance in each round of a loop and has no name of its own");
        if (c->scope->loop_var)
            diag_help(lw->diag, "%s",
                      with_name(lw, c->at, arena_printf(lw->arena, "layers[%s]", c->scope->loop_var)));
    } else if (known) {
        error_at(lw, c->at, "this scope already has an instance '%s'", c->segment);
        diag_note(lw->diag, known->at, "the first one");
        if (!c->has_as)
            diag_help(lw->diag, "name them: %s",
                      with_name(lw, c->at, arena_printf(lw->arena, "%s2", c->segment)));
    } else {
        return true;
    }
    notes_around(lw, c);
    return false;
}

Instance *instance_of(Lower *lw, Call *c) {
    if (c->instance) return c->instance;
    Instance *parent = instance_of(lw, c->scope);
    if (!parent) return NULL;
    Layer *layer = c->layer;
    if (layer && layer->instance) {
        c->instance = layer->instance;
    } else {
        Child *known = find_child(parent, c->segment);
        bool again =
            known && known->visit != parent->visit; // an earlier call of the same shared layer made it
        if (!layer && !check_name(lw, c, again ? NULL : known)) return NULL;
        if (layer && known && !again) {
            error_at(lw, layer->at, "this scope already has an instance '%s'", c->segment);
            diag_note(lw->diag, known->at, "the first one");
            return NULL;
        }
        if (again) {
            known->visit = parent->visit;
            known->at = c->at;
            c->instance = known->instance;
        } else {
            c->instance = new_instance(lw, parent, c->segment, c->at);
        }
    }
    Instance *in = c->instance;
    in->visit++;
    if (layer) {
        layer->instance = in;
        in->frozen |= layer->frozen;
    }
    if (c->copy && !in->copy_from) {
        const CopyOf *copy = c->copy;
        Instance *from = instance_of(lw, copy->layer ? copy->layer->scope : copy->scope);
        if (!from) return NULL;
        in->copy_from = join(lw, from->path, copy->layer ? copy->layer->name : copy->segment);
    }
    const Call *outer = c->caller;
    while (outer && !outer->instance) outer = outer->caller;
    adopt_nodes(lw, c, outer && outer->instance->path[0] ? outer->instance->path : NULL);
    set_path(lw, interp_of(lw)->call);
    return in;
}

const char *instance_path(Lower *lw, Call *c, const char *name) {
    Instance *in = instance_of(lw, c);
    return in ? join(lw, in->path, name) : NULL;
}
