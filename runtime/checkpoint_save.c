// Checkpoints: written beside, synced, renamed; verified when read.
//
// Order of writing: tensors, side files, texts, then the manifest, then the folder's name.  Whatever is
// interrupted leaves a folder .tmp-step-N, which nobody reads and the next save removes.
//
// Where there are several ranks, each writes tensors into files of its own: its experts, and a share of what many
// hold, whole or in parts, which are put together first.  Names and hashes don't tell who wrote, so any other number of ranks can read it.
#include "runtime/checkpoint_parts.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/convert.h"
#include "runtime/fault.h"
#include "runtime/files.h"
#include "runtime/gather.h"

static const int64_t MAX_FILE = (int64_t)4 << 30;

static int all_parts(const RtPlanInstance *p, const RtTensor *t) {
    return ckpt_joined_parts(p, t) * rt_tensor_inner_parts(p, t) * rt_tensor_tp(p, t);
}
static bool is_cut(const RtPlanInstance *p, const RtTensor *t) { return all_parts(p, t) > 1; }
static int64_t joined_bytes(const RtPlanInstance *p, const RtTensor *t) { return t->bytes * all_parts(p, t); }

// Whose part tensor i is put together at.
static RtPartAt joined_at(const RtPlanInstance *p, int i) {
    const RtTensor *t = &p->tensor[i];
    return (RtPartAt){i % ckpt_joined_parts(p, t), i % rt_tensor_inner_parts(p, t), i % rt_tensor_tp(p, t)};
}

static json_t *hex_json(uint64_t hash) {
    char hex[17];
    rt_hex64(hash, hex);
    return json_string(hex);
}

typedef struct {
    const RtPlanInstance *p;
    const RtCkptInfo *info;
    const char *dir;
    json_t *files, *tensors;
    char **whole;                   // [n_tensors]: of those that are cut, put together where this rank writes them
} Saver;

// Number i of the ranks that a tensor is cut over; cut: 1 + their group, 0: it isn't.
static bool is_at(const RtPlanInstance *p, int cut, int rank, int i) {
    return !cut || !p->ranks || rt_group_rank(p->ranks->mesh, (RtGroup)(cut - 1), rank) == i;
}

// Ranks that hold the same, or parts of it, take turns: does this one write piece k of tensor i?
static bool is_writer(const RtPlanInstance *p, int i, int64_t k) {
    const RtTensor *t = &p->tensor[i];
    RtPartAt at = joined_at(p, i);
    int64_t holders = 0, own = -1;
    if (ckpt_joined_parts(p, t) > 1 && at.part != rt_tensor_part(p, t)) return false;
    if (t->table && p->ranks) {                             // of replicas the first
        int64_t slot = rt_tensor_part(p, t) * t->dim[0] + k;
        const RtSlots *table = &p->ranks->table[t->table - 1];
        if (table->slot[table->expert[slot]] != slot) return false;
    }
    for (int rank = 0; rank < rt_n_ranks(p->ranks); rank++) {
        if (!is_at(p, t->shard, rank, rt_tensor_part(p, t)) || !is_at(p, t->within, rank, at.inner) ||
            !is_at(p, t->tp ? 1 + RT_GROUP_TP : 0, rank, at.tp)) continue;
        if (rank == rt_rank(p->ranks)) own = holders;
        holders++;
    }
    return (i + k) % holders == own;
}

static bool writes_any(const RtPlanInstance *p, int i) {
    for (int64_t k = 0; k < ckpt_n_pieces(&p->tensor[i]); k++)
        if (is_writer(p, i, k)) return true;
    return false;
}

static char *file_name(const RtRanks *ranks, RtRole role, int number) {
    const char *kind = role == RT_PARAM ? "weights" : "state";
    return ranks ? rt_path("%s-%04d-%05d.safetensors", kind, ranks->rank, number)
                 : rt_path("%s-%05d.safetensors", kind, number);
}

// Tensors have hashes of their own, and side files only say where one is damaged.
static bool has_hash(const char *name) { return !ckpt_has_tensors(name) && !ckpt_ends_with(name, ".xxh"); }

static RtStatus note_file(Saver *s, const char *name, RtError *e) {
    char *path = rt_path("%s/%s", s->dir, name);
    RtMap m;
    RtStatus status = rt_map_file(path, &m, e);
    if (status == RT_OK) {
        json_t *file = json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)m.bytes);
        if (has_hash(name)) json_object_set_new(file, "xxh3", hex_json(XXH3_64bits(m.data, m.bytes)));
        json_array_append_new(s->files, file);
        rt_unmap(&m);
    }
    free(path);
    return status;
}

// One safetensors file and its side file of block hashes.
static RtStatus save_file(Saver *s, const char *name, const StWrite *w, int n, RtError *e) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += ckpt_n_blocks(ckpt_elements(&w[i]));
    uint64_t *block = malloc(((size_t)total + 1) * sizeof *block);
    int64_t *offset = malloc(((size_t)n + 1) * sizeof *offset);
    char *path = rt_path("%s/%s", s->dir, name), *side = rt_path("%s.xxh", name),
         *side_path = rt_path("%s/%s.xxh", s->dir, name);
    static const char *const metadata[] = {"format", "moec", NULL};
    RtStatus status =
        block && offset ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for the hashes of %s", path);
    if (status == RT_OK) status = st_write(path, w, n, metadata, offset, e);
    int64_t at = 0;
    for (int i = 0; status == RT_OK && i < n; i++) {
        int64_t count = ckpt_elements(&w[i]);
        uint64_t hash = ckpt_hash_tensor(w[i].data, count, st_dtype_bytes(w[i].dtype), block + at);
        json_t *shape = json_array();
        for (int d = 0; d < w[i].ndim; d++) json_array_append_new(shape, json_integer(w[i].dim[d]));
        json_object_set_new(s->tensors, w[i].name,
                            json_pack("{s:s, s:o, s:o, s:[{s:i, s:i, s:I, s:I}], s:I}", "dtype",
                                      st_dtype_name(w[i].dtype), "shape", shape, "hash", hex_json(hash),
                                      "pieces", "file", (int)json_array_size(s->files), "begin", 0, "end",
                                      (json_int_t)count, "offset", (json_int_t)offset[i], "blocks",
                                      (json_int_t)at));
        at += ckpt_n_blocks(count);
    }
    if (status == RT_OK) status = note_file(s, name, e);
    if (status == RT_OK) status = rt_write_file(side_path, block, (size_t)total * sizeof *block, e);
    if (status == RT_OK) status = note_file(s, side, e);
    free(block);
    free(offset);
    free(path);
    free(side);
    free(side_path);
    return status;
}

// All parameters (weights-NNNNN, from 1) or all states (state-NNNNN, from 0), in plan order, files of at most
// 4 GiB.  Of several ranks: what is this one's to write, weights-RANK-NNNNN.
static RtStatus save_role(Saver *s, RtRole role, RtError *e) {
    const RtPlanInstance *p = s->p;
    int64_t most = 0;
    for (int i = 0; i < p->n_tensors; i++)
        if (ckpt_is_saved(p, &p->tensor[i]) && p->tensor[i].role == role) most += ckpt_n_pieces(&p->tensor[i]);
    StWrite *w = calloc((size_t)most + 1, sizeof *w);
    if (!w) return rt_fail(e, RT_NO_MEMORY, "no memory for a list of tensors");
    RtStatus status = RT_OK;
    int n = 0, number = role == RT_PARAM ? 1 : 0;
    int64_t bytes = 0;
    for (int i = 0; i <= p->n_tensors && status == RT_OK; i++) {
        const RtTensor *t = i < p->n_tensors ? &p->tensor[i] : NULL;
        if (t && (!ckpt_is_saved(p, t) || t->role != role)) continue;
        for (int64_t k = 0; k < (t ? ckpt_n_pieces(t) : 1) && status == RT_OK; k++) {
            if (t && !is_writer(p, i, k)) continue;
            int64_t more = !t ? 0 : joined_bytes(p, t) / ckpt_n_pieces(t);
            if (n && (!t || bytes + more > MAX_FILE)) {
                char *name = file_name(p->ranks, role, number++);
                status = save_file(s, name, w, n, e);
                free(name);
                while (n) free((char *)w[--n].name);
                bytes = 0;
            }
            if (!t) continue;
            char *name;
            w[n++] = ckpt_piece(p, t, k, &name);
            if (is_cut(p, t)) w[n - 1].data = s->whole[i] + k * more;
            bytes += more;
        }
    }
    while (n) free((char *)w[--n].name);
    free(w);
    return status;
}

static RtStatus save_text(Saver *s, const char *name, const char *text, RtError *e) {
    if (!text) return RT_OK;
    char *path = rt_path("%s/%s", s->dir, name);
    RtStatus status = rt_write_file(path, text, strlen(text), e);
    free(path);
    return status == RT_OK ? note_file(s, name, e) : status;
}

// The experts in the slots of each table: any run may go on from there, none has to.
static json_t *placement_json(const RtPlanInstance *p) {
    json_t *all = json_object();
    for (uint32_t i = 0; p->ranks && i < p->plan->slot_tables.n; i++) {
        const RtSlots *t = &p->ranks->table[i];
        json_t *list = json_array();
        for (int s = 0; s < t->slots; s++) json_array_append_new(list, json_integer(t->expert[s]));
        json_object_set_new(all, t->name, list);
    }
    return all;
}

// Of another layout's run, what fits.
static RtStatus save_manifest(Saver *s, RtError *e) {
    const RtCkptInfo *info = s->info;
    RtMesh mesh = s->p->ranks ? s->p->ranks->mesh : (RtMesh){1, 1, 1, 0};
    time_t now = time(NULL);
    struct tm utc;
    char when[32], model_hash[17] = "", seconds[40];
    gmtime_r(&now, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    if (info->model_text) rt_hex64(XXH3_64bits(info->model_text, strlen(info->model_text)), model_hash);
    snprintf(seconds, sizeof seconds, "%a", info->seconds);
    json_t *m =
        json_pack("{s:s, s:i, s:[], s:I, s:s, s:{s:s, s:s, s:o}, s:{s:I, s:I, s:s}, s:{s:i, s:i, s:i, s:i}}",
                  "format", ckpt_format, "version", CKPT_VERSION, "needs", "step", (json_int_t)info->step, "time", when,
                  "model", "file", info->model_file ? info->model_file : "", "xxh3", model_hash, "graph",
                  hex_json(s->p->plan->graph_hash), "sum", "lanes", (json_int_t)info->leaves, "waves",
                  (json_int_t)info->waves, "kind", RT_TEXT(s->p->plan, s->p->plan->arithmetic), "layout",
                  "dp", mesh.dp, "ep", mesh.ep, "tp", mesh.tp, "zero", mesh.zero);
    json_t *progress =
        json_pack("{s:I, s:{s:o, s:I, s:I}, s:o, s:I, s:s}", "tokens", (json_int_t)info->tokens, "data",
                  "spec_hash", hex_json(info->data_hash), "epoch", (json_int_t)info->data.epoch,
                  "next_sample", (json_int_t)info->data.next_sample, "seed", hex_json(info->seed),
                  "skipped_steps", (json_int_t)info->skipped_steps, "seconds", seconds);
    json_object_set_new(progress, "placement", placement_json(s->p));
    json_object_set_new(m, "progress", progress);
    json_object_set(m, "files", s->files);
    json_object_set(m, "tensors", s->tensors);
    json_object_set_new(m, "self", json_string("0000000000000000"));
    char *text = json_dumps(m, JSON_INDENT(1));
    json_decref(m);
    if (!text) return rt_fail(e, RT_NO_MEMORY, "no memory for a manifest");
    size_t n = strlen(text);
    char *field = ckpt_self_field(text, n), hex[17];
    rt_hex64(ckpt_self_hash(text, n, field), hex);
    memcpy(field, hex, 16);
    char *path = rt_path("%s/manifest.json", s->dir);
    RtStatus status = rt_write_file(path, text, n, e);
    free(path);
    free(text);
    return status;
}

static void delete_dir(const char *ckpt, const char *name) {
    char *path = rt_path("%s/%s", ckpt, name), *dead = rt_path("%s/.del-%s", ckpt, name);
    if (rename(path, dead) == 0) {
        rt_fault(FAULT_SAVE_DELETE, 0, ckpt_step_of(name), NULL);
        rt_remove_tree(dead);
    }
    free(path);
    free(dead);
}

// Behind the one of `newest` just written.  Those of later steps are damaged, or it would not have been: they don't count.
static void retain(const char *ckpt, int64_t newest, int64_t keep) {
    int n;
    CkptStep *list = ckpt_list_steps(ckpt, &n);
    for (int i = 0, kept = 0; keep > 0 && i < n; i++)
        if (list[i].step <= newest && kept++ >= keep) delete_dir(ckpt, list[i].name);
    free(list);
}

static RtStatus fault(const Saver *s, RtFaultPoint at, RtError *e) {
    return rt_fault(at, rt_rank(s->p->ranks), s->info->step, e);
}

static RtStatus save_tensors(Saver *s, RtError *e) {
    RT_TRY(fault(s, FAULT_SAVE_TENSORS, e));
    RT_TRY(save_role(s, RT_PARAM, e));
    RT_TRY(fault(s, FAULT_SAVE_FILE, e));
    RT_TRY(save_role(s, RT_STATE, e));
    return rt_sync_dir(s->dir, e);
}

// What another rank wrote, behind one's own: its file numbers go on where these end.
static RtStatus take_over(Saver *s, const char *text, RtError *e) {
    json_t *from = json_loads(text, 0, NULL), *entry;
    if (!from) return rt_fail(e, RT_NO_MEMORY, "no memory for the files of another rank");
    json_int_t before = (json_int_t)json_array_size(s->files);
    json_array_extend(s->files, json_object_get(from, "files"));
    const char *name;
    json_object_foreach(json_object_get(from, "tensors"), name, entry) {
        json_t *where = json_array_get(json_object_get(entry, "pieces"), 0), *file = json_object_get(where, "file");
        json_integer_set(file, json_integer_value(file) + before);
        json_object_set(s->tensors, name, entry);
    }
    json_decref(from);
    return RT_OK;
}

static RtStatus take_over_all(Saver *s, RtError *e) {
    RtRanks *ranks = s->p->ranks;
    if (!ranks) return RT_OK;
    json_t *own = json_pack("{s:O, s:O}", "files", s->files, "tensors", s->tensors);
    char *text = json_dumps(own, JSON_COMPACT), *all = NULL;
    json_decref(own);
    RtStatus status = rt_gather_texts(ranks, text, &all, e);
    const char *at = all;
    for (int rank = 0; rank < ranks->n && status == RT_OK; rank++, at += strlen(at) + 1)
        if (rank != ranks->rank) status = take_over(s, at, e);
    free(text);
    free(all);
    return status;
}

static RtStatus save_rest(Saver *s, RtError *e) {
    RT_TRY(save_text(s, "model.moe", s->info->model_text, e));
    RT_TRY(save_text(s, "settings.json", s->info->settings, e));
    RT_TRY(fault(s, FAULT_SAVE_MANIFEST, e));
    RT_TRY(save_manifest(s, e));
    return rt_sync_dir(s->dir, e);
}

// Files hold rows; programs that only read their parameters have them otherwise, and save nothing.
static RtStatus can_be_saved(const RtPlanInstance *p, RtError *e) {
    for (int i = 0; i < p->n_tensors; i++)
        if (ckpt_is_saved(p, &p->tensor[i]) && p->tensor[i].layout != LAYOUT_ROWS)
            return rt_fail(e, RT_BAD_PLAN, "'%s' lies in panels: programs made to be read from can't be saved",
                           rt_tensor_name(p, &p->tensor[i]));
    return RT_OK;
}

static RtStatus begin_folder(Saver *s, const char *ckpt, RtError *e) {
    RT_TRY(rt_make_dirs(ckpt, e));
    ckpt_sweep(ckpt);
    return rt_make_dirs(s->dir, e);
}

static RtStatus move_in(Saver *s, const char *ckpt, const char *name, int64_t keep, RtError *e) {
    char *final = rt_path("%s/%s", ckpt, name), *latest = rt_path("%s/latest", ckpt);
    if (rt_is_dir(final)) delete_dir(ckpt, name); // saved before, by a run that went on from earlier
    RtStatus status = fault(s, FAULT_SAVE_RENAME, e);
    if (status == RT_OK && rename(s->dir, final) != 0) status = rt_fail(e, RT_IO, "cannot rename %s: %s", s->dir, strerror(errno));
    if (status == RT_OK) status = rt_sync_dir(ckpt, e);
    if (status == RT_OK) {
        fault(s, FAULT_SAVE_LATEST, NULL);
        rt_write_file(latest, name, strlen(name), NULL);                  // only a hint
        retain(ckpt, s->info->step, keep);
    }
    free(final);
    free(latest);
    return status;
}

// A part of saving is done when all ranks have done it.
static RtStatus together(const Saver *s, RtStatus own, RtError *e) {
    if (own != RT_OK) rt_add_context(e, own, "checkpoint of step %lld", (long long)s->info->step);
    return rt_agree(s->p->ranks, own, e);
}

static RtStatus make_room(Saver *s, RtError *e) {
    const RtPlanInstance *p = s->p;
    s->whole = calloc((size_t)p->n_tensors + 1, sizeof *s->whole);
    for (int i = 0; s->whole && i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!ckpt_is_saved(p, t) || !is_cut(p, t) || !writes_any(p, i)) continue;
        s->whole[i] = malloc((size_t)joined_bytes(p, t) + 1);
        if (!s->whole[i]) return rt_fail(e, RT_NO_MEMORY, "no memory to put '%s' together", rt_tensor_name(p, t));
    }
    return s->whole ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for a list of tensors");
}

static RtStatus put_together(Saver *s, RtError *e) {
    const RtPlanInstance *p = s->p;
    for (int i = 0; i < p->n_tensors; i++) {
        const RtTensor *t = &p->tensor[i];
        if (!ckpt_is_saved(p, t) || !is_cut(p, t)) continue;
        RT_TRY(rt_gather_tensor(p, t, ckpt_joined_parts(p, t), joined_at(p, i), s->whole[i], e));
    }
    return RT_OK;
}

static RtStatus save_as(Saver *s, const char *ckpt, const char *name, int64_t keep, RtError *e) {
    bool first = rt_rank(s->p->ranks) == 0;
    RtStatus status = can_be_saved(s->p, e);
    if (status == RT_OK) status = fault(s, FAULT_SAVE, e);
    if (status == RT_OK) status = make_room(s, e);
    if (status == RT_OK && first) status = begin_folder(s, ckpt, e);
    RT_TRY(together(s, status, e));
    RT_TRY(put_together(s, e));
    RT_TRY(together(s, save_tensors(s, e), e));
    status = take_over_all(s, e);
    if (status == RT_OK && first) status = save_rest(s, e);
    if (status == RT_OK && first) status = move_in(s, ckpt, name, keep, e);
    return together(s, status, e);
}

RtStatus rt_ckpt_save(const char *run, const RtPlanInstance *p, const RtCkptInfo *info, int64_t keep,
                      char **dir, RtError *e) {
    char *ckpt = rt_path("%s/ckpt", run), *name = rt_path("step-%08lld", (long long)info->step);
    char *tmp = rt_path("%s/.tmp-%s", ckpt, name);
    Saver s = {.p = p, .info = info, .dir = tmp, .files = json_array(), .tensors = json_object()};
    RtStatus status = save_as(&s, ckpt, name, keep, e);
    if (status != RT_OK && rt_rank(p->ranks) == 0) rt_remove_tree(tmp);
    if (status == RT_OK && dir) *dir = rt_path("%s/%s", ckpt, name);
    json_decref(s.files);
    json_decref(s.tensors);
    for (int i = 0; s.whole && i < p->n_tensors; i++) free(s.whole[i]);
    free(s.whole);
    free(ckpt);
    free(name);
    free(tmp);
    return status;
}
