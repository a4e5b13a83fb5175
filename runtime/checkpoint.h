// Checkpoints: a folder step-NNNNNNNN is complete iff its manifest.json is there and its hash fits.
//
//   RUN/ckpt/step-00001200/manifest.json                what there is, with hashes; written last
//                          weights-00001.safetensors    parameters, canonical names, one tensor per expert
//                          state-00000.safetensors      moments and states
//                          NAME.safetensors.xxh         XXH3 of each 4096 elements
//                          model.moe, settings.json     what was trained
//   RUN/ckpt/latest                                     name of the newest: a hint; the truth is the folders
//
// Several ranks write weights-RANK-NNNNN and state-RANK-NNNNN.  Any layout reads what any other wrote.
#ifndef RUNTIME_CHECKPOINT_H
#define RUNTIME_CHECKPOINT_H
#include "runtime/data.h"
#include "runtime/plan.h"

typedef struct {
    int64_t   step, tokens, skipped_steps;
    RtDataPos data;
    uint64_t  data_hash, seed;
    int64_t   leaves, waves;
    double    seconds;              // of training so far
    const char *model_file;         // name of the .moe file; NULL: unknown
    const char *model_text;         // its text; NULL: not stored
    const char *settings;           // JSON; NULL: not stored
    const char *arithmetic;         // ckpt_load fills it with memory of its own: rt_ckpt_free
    bool      owned;                // the strings are ours
} RtCkptInfo;

// Writes RUN/ckpt/step-N beside, then renames it; then keeps the newest `keep` (0: all) and deletes the
// others. A failure leaves every older checkpoint as it was.  *dir (may be NULL): the new folder; the caller
// frees it.  Called by all ranks (p->ranks), and fails on all if it does on one.
RtStatus rt_ckpt_save(const char *run, const RtPlanInstance *p, const RtCkptInfo *info, int64_t keep,
                      char **dir, RtError *e);

// Newer checkpoints that are damaged or half-written, and so passed over: how many, and what is wrong with the newest.
typedef struct { int n; char why[400]; } RtCkptSkipped;

// path: a run (its newest whole checkpoint) or a checkpoint.  The caller frees *dir.  skipped may be NULL.
RtStatus rt_ckpt_find(const char *path, char **dir, RtCkptSkipped *skipped, RtError *e);
bool     rt_ckpt_is_whole(const char *dir, RtError *e);            // false says why in e

// Everything: parameters, moments, states.  Verifies each tensor's hash.  info (may be NULL): rt_ckpt_free.
RtStatus rt_ckpt_load(const char *dir, RtPlanInstance *p, RtCkptInfo *info, RtError *e);
// The same of the newest checkpoint of a run that can be loaded, *dir (the caller frees it); *skipped as above.
// *dir NULL: the run holds none.  Called by all ranks; they take the same one.
RtStatus rt_ckpt_load_newest(const char *run, RtPlanInstance *p, RtCkptInfo *info, char **dir, RtCkptSkipped *skipped,
                             RtError *e);
// Parameters and those states the checkpoint has, from a checkpoint, a run, or any safetensors with canonical
// names.
RtStatus rt_ckpt_load_weights(const char *path, RtPlanInstance *p, RtError *e);
// Of the tensors of one checkpoint.
int64_t  rt_ckpt_bytes(const RtPlan *plan);
RtStatus rt_ckpt_info(const char *dir, RtCkptInfo *info, RtError *e);
void     rt_ckpt_free(RtCkptInfo *info);

// layers.3.ffn.experts.w1, 17 -> layers.3.ffn.experts.17.w1.  The caller frees it.
char    *rt_expert_name(const char *name, int64_t expert);

#endif
