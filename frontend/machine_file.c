#include "frontend/machine_file.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- members: read and written by the same rows -------------------------------------------------------------

typedef enum { COUNT, BYTES, RATE, MAYBE, PAIR, SECONDS } Kind;
typedef struct {
    const char *name;
    Kind kind;
    size_t at;
    bool may_lack;             // files of earlier versions don't have it: what is there stays
} Member;

static const Member of_machine[] = {
    {"threads", COUNT, offsetof(Machine, threads)},
    {"vector_bytes", COUNT, offsetof(Machine, vector_bytes)},
    {"region", SECONDS, offsetof(Machine, region)},
    {"barrier", SECONDS, offsetof(Machine, barrier)},
    {"task", SECONDS, offsetof(Machine, task), true},
    {"call", SECONDS, offsetof(Machine, call), true},
    {"turn", RATE, offsetof(Machine, turn), true},
    {"leaves", RATE, offsetof(Machine, leaves), true},
    {"fours", RATE, offsetof(Machine, fours), true},
    {0}};
static const Member of_rates[] = {
    {"threads", COUNT, offsetof(MachineRates, threads)},
    {"fma", RATE, offsetof(MachineRates, fma)},
    {"bf16_dot", MAYBE, offsetof(MachineRates, bf16_dot)},
    {"int8_dot", MAYBE, offsetof(MachineRates, int8_dot)},
    {0}};
static const Member of_level[] = {
    {"size", BYTES, offsetof(MachineLevel, size)},   {"probed", BYTES, offsetof(MachineLevel, probed)},
    {"read", PAIR, offsetof(MachineLevel, read)},    {"write", PAIR, offsetof(MachineLevel, write)},
    {"copy", PAIR, offsetof(MachineLevel, copy)},    {"stream", PAIR, offsetof(MachineLevel, stream)},
    {"strips", PAIR, offsetof(MachineLevel, strips), true},
    {0}};
static const Member of_tile[] = {
    {"rows", COUNT, offsetof(MachineTile, rows)},
    {"vecs", COUNT, offsetof(MachineTile, vecs)},
    {"rate", RATE, offsetof(MachineTile, rate)},
    {0}};
static const char *const level_names[MACHINE_LEVELS] = {[LEVEL_L1] = "L1", [LEVEL_L2] = "L2", [LEVEL_L3] = "L3", [LEVEL_DRAM] = "DRAM"};

static double unit(Kind k) { return k == SECONDS ? 1e-6 : 1e9; }

static json_t *write_members(const Member *m, const void *from) {
    json_t *o = json_object();
    for (; m->name; m++) {
        const char *at = (const char *)from + m->at;
        const double *x = (const double *)at;
        json_t *v = m->kind == COUNT   ? json_integer(*(const int *)at)
                    : m->kind == BYTES ? json_integer(*(const int64_t *)at)
                    : m->kind == PAIR  ? json_pack("[f, f]", x[0] / 1e9, x[1] / 1e9)
                                       : json_real(*x / unit(m->kind));
        json_object_set_new(o, m->name, v);
    }
    return o;
}

json_t *machine_json(const Machine *m) {
    json_t *o = write_members(of_machine, m), *rates = json_array(), *levels = json_object(), *tiles = json_array();
    for (int i = 0; i < m->n_rates; i++) json_array_append_new(rates, write_members(of_rates, &m->rates[i]));
    for (int i = 0; i < MACHINE_LEVELS; i++) json_object_set_new(levels, level_names[i], write_members(of_level, &m->level[i]));
    for (int i = 0; i < m->n_tiles; i++) {
        json_t *tile = write_members(of_tile, &m->tile[i]);
        json_object_set_new(tile, "kind", json_string(machine_tile_name(m->tile[i].kind)));
        json_array_append_new(tiles, tile);
    }
    json_object_set_new(o, "rates", rates);
    json_object_set_new(o, "levels", levels);
    json_object_set_new(o, "tiles", tiles);
    json_t *ops = json_object();
    for (int i = 0; i < m->n_ops; i++) json_object_set_new(ops, m->op[i].op, json_real(m->op[i].share));
    if (m->n_ops) json_object_set(o, "ops", ops);
    json_decref(ops);
    return o;
}

// ---- reading ------------------------------------------------------------------------------------------------

typedef struct { char *why; } Reader;

static bool wrong(Reader *r, const char *path, const json_t *is, const char *must) {
    char *text = is ? json_dumps(is, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (text && strlen(text) > 40) memcpy(text + 37, "...", 4);
    snprintf(r->why, 256, "%s is %s; it must be %s", path, text ? text : "missing", must);
    free(text);
    return false;
}

static bool read_number(Reader *r, const char *path, const json_t *v, double least, const char *must, double *x) {
    *x = json_number_value(v);
    return (json_is_number(v) && isfinite(*x) && *x >= least && *x < 1e16) || wrong(r, path, v, must);
}

static bool read_member(Reader *r, const Member *m, const char *path, const json_t *v, char *at) {
    double *x = (double *)at;
    if (m->kind == COUNT || m->kind == BYTES) {
        json_int_t n = json_integer_value(v), least = m->kind == COUNT, most = m->kind == COUNT ? 1 << 16 : (json_int_t)1 << 50;
        if (!json_is_integer(v) || n < least || n > most) return wrong(r, path, v, least ? "a whole number from 1 to 65536" : "a number of bytes");
        if (m->kind == COUNT) *(int *)at = (int)n;
        else *(int64_t *)at = n;
        return true;
    }
    if (m->kind == PAIR) {
        const char *must = "two numbers above 0";
        return json_array_size(v) == 2 ? read_number(r, path, json_array_get(v, 0), 1e-6, must, &x[0]) &&
                                             read_number(r, path, json_array_get(v, 1), 1e-6, must, &x[1]) && (x[0] *= 1e9, x[1] *= 1e9, true)
                                       : wrong(r, path, v, must);
    }
    bool may_lack = m->kind == MAYBE;
    if (!read_number(r, path, v, may_lack ? 0 : 1e-6, may_lack ? "a number, 0 if there is no such instruction" : "a number above 0", x)) return false;
    *x *= unit(m->kind);
    return true;
}

// The rows' members of an object, and no others but `more`.
static bool read_members(Reader *r, const Member *members, const char *path, const json_t *o, void *to, const char *const *more) {
    if (!json_is_object(o)) return wrong(r, path, o, "an object");
    char name[160];
    int n = 0;
    for (const Member *m = members; m->name; m++) {
        if (m->may_lack && !json_object_get(o, m->name)) continue;
        n++;
        snprintf(name, sizeof name, "%s.%s", path, m->name);
        if (!read_member(r, m, name, json_object_get(o, m->name), (char *)to + m->at)) return false;
    }
    for (; *more; more++, n++) {
        snprintf(name, sizeof name, "%s.%s", path, *more);
        if (!json_object_get(o, *more)) return wrong(r, name, NULL, "there");
    }
    if ((int)json_object_size(o) > n) {
        snprintf(r->why, 256, "%s has %d members; it must have the %d that this version knows", path, (int)json_object_size(o), n);
        return false;
    }
    return true;
}

static bool read_ops(Reader *r, json_t *o, Machine *m) {
    const char *op;
    json_t *v;
    if (!json_is_object(o) || json_object_size(o) > MACHINE_OPS) return wrong(r, "machine.ops", o, "an object of at most 64 shares");
    json_object_foreach(o, op, v) {
        MachineOp *to = &m->op[m->n_ops++];
        char path[64];
        snprintf(path, sizeof path, "machine.ops.%.40s", op);
        if (strlen(op) >= sizeof to->op) return wrong(r, path, v, "of an op that there is");
        memcpy(to->op, op, strlen(op) + 1);
        if (!read_number(r, path, v, 1e-6, "a number above 0", &to->share)) return false;
    }
    return true;
}

static bool is_list(Reader *r, const char *path, const json_t *v, int least, int most) {
    int n = (int)json_array_size(v);
    char must[64];
    snprintf(must, sizeof must, "a list of %d to %d objects", least, most);
    return (json_is_array(v) && n >= least && n <= most) || wrong(r, path, v, must);
}

static bool read_kind(Reader *r, const char *path, const json_t *v, MachineTileKind *kind) {
    for (MachineTileKind k = 0; k < TILE_KINDS; k++)
        if (json_is_string(v) && !strcmp(json_string_value(v), machine_tile_name(k))) return *kind = k, true;
    return wrong(r, path, v, "a kind of tile: \"f32\", \"bf16 widened\", \"bf16 dot\" or \"f32 rows\"");
}

bool machine_from_json(Machine *m, const char *name, const json_t *o, char why[256]) {
    static const char *const lists[] = {"rates", "levels", "tiles", NULL}, *const lists_and_ops[] = {"rates", "levels", "tiles", "ops", NULL}, *const none[] = {NULL}, *const kind[] = {"kind", NULL};
    Reader r = {why};
    char path[64];
    Machine typical = machine_guess(32, 1);
    *m = (Machine){.task = typical.task, .call = typical.call, .turn = typical.turn};
    snprintf(m->name, sizeof m->name, "%s", name);
    json_t *ops = json_object_get(o, "ops");
    if (!read_members(&r, of_machine, "machine", o, m, ops ? lists_and_ops : lists) || (ops && !read_ops(&r, ops, m))) return false;
    const json_t *rates = json_object_get(o, "rates"), *levels = json_object_get(o, "levels"), *tiles = json_object_get(o, "tiles");
    if (!is_list(&r, "machine.rates", rates, 1, MACHINE_COUNTS) || !is_list(&r, "machine.tiles", tiles, 0, MACHINE_TILES)) return false;
    m->n_rates = (int)json_array_size(rates);
    for (int i = 0; i < m->n_rates; i++) {
        snprintf(path, sizeof path, "machine.rates[%d]", i);
        if (!read_members(&r, of_rates, path, json_array_get(rates, (size_t)i), &m->rates[i], none)) return false;
        int least = i ? m->rates[i - 1].threads + 1 : 1, most = i ? m->threads : 1;
        if (m->rates[i].threads < least || m->rates[i].threads > most || (i == m->n_rates - 1 && m->rates[i].threads != m->threads)) {
            snprintf(why, 256, "%s.threads is %d; rates must begin with 1 thread, rise, and end with all %d", path, m->rates[i].threads, m->threads);
            return false;
        }
    }
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        snprintf(path, sizeof path, "machine.levels.%s", level_names[i]);
        if (!read_members(&r, of_level, path, json_object_get(levels, level_names[i]), &m->level[i], none)) return false;
    }
    m->n_tiles = (int)json_array_size(tiles);
    for (int i = 0; i < m->n_tiles; i++) {
        snprintf(path, sizeof path, "machine.tiles[%d]", i);
        const json_t *tile = json_array_get(tiles, (size_t)i);
        if (!read_members(&r, of_tile, path, tile, &m->tile[i], kind)) return false;
        snprintf(path, sizeof path, "machine.tiles[%d].kind", i);
        if (!read_kind(&r, path, json_object_get(tile, "kind"), &m->tile[i].kind)) return false;
    }
    return true;
}

MachineFound machine_in_text(Machine *m, const char *name, bool any, const char *text, size_t n, char why[256]) {
    json_error_t e;
    json_t *all = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e), *one;
    if (!json_is_object(all)) {
        snprintf(why, 256, all ? "it must be an object with a member for each CPU" : "line %d: %.200s", e.line, e.text);
        json_decref(all);
        return MACHINE_DAMAGED;
    }
    one = json_object_get(all, name);
    if (!one && any && json_object_size(all) == 1) {
        void *it = json_object_iter(all);
        name = json_object_iter_key(it);
        one = json_object_iter_value(it);
    }
    MachineFound found = MACHINE_FOREIGN;
    if (one) found = machine_from_json(m, name, one, why) ? MACHINE_FOUND : MACHINE_DAMAGED;
    else snprintf(why, 256, "it describes %d other CPUs; this one is \"%.96s\"", (int)json_object_size(all), name);
    json_decref(all);
    return found;
}
