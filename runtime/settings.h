// What a run may be told: the keys of train, data, parallel and generate, read from JSON and from `key=value`.
//
// The JSON is one object with the objects "train", "data", "parallel", "generate" (of others only model.vocabulary is read).  Keys and
// words are those of the language's blocks; none is null; a quantity is {"value": 500, "unit": "steps"} (a
// plain number where no unit is possible); a call is {"kind": "cosine", "warmup": {...}, "floor": 0.1}, its
// positional arguments in "args": {"kind": "text", "args": ["kjv.txt"]}.
#ifndef RUNTIME_SETTINGS_H
#define RUNTIME_SETTINGS_H
#include <stdbool.h>
#include <stdint.h>
#include "runtime/status.h"

typedef enum { RT_NO_UNIT, RT_STEPS, RT_TOKENS, RT_SAMPLES, RT_EPOCHS, RT_MINUTES } RtUnit;
typedef struct { double value; RtUnit unit; } RtQuantity;          // {0} = none

typedef enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_INVERSE_SQRT, SCHEDULE_WSD,
               SCHEDULE_WARMUP_LOG, SCHEDULE_KINDS } RtScheduleKind;
typedef enum { SHAPE_LINEAR, SHAPE_COSINE, SHAPE_EXPONENTIAL, SHAPE_SQRT, SHAPE_KINDS } RtDecayShape;
typedef struct {
    RtScheduleKind kind;
    RtQuantity warmup, length, decay;  // length {0}: train.length
    double floor;                      // share of lr
    RtDecayShape shape;                // of wsd
} RtScheduleSetting;

typedef enum { PLACEMENT_LINEAR, PLACEMENT_ROUND_ROBIN, PLACEMENT_RANDOM, PLACEMENT_KINDS } RtPlacementKind;
extern const char *const rt_placement_word[PLACEMENT_KINDS];

typedef struct { char *kind; char **arg; int n_args; } RtCallSetting;   // text("a.txt"), gpt2("dir"), bytes

typedef struct {
    int64_t vocabulary;                // of the model: token ids are below it; 0: unknown
    // train
    int64_t batch, sequence;           // 0: what the plan says
    RtQuantity length, stop, eval_every, save_every;
    double lr, beta1, beta2;
    RtScheduleSetting schedule;
    bool average_token;
    uint64_t seed;
    int64_t keep;
    // data
    RtCallSetting source, tokenizer;   // paths are absolute
    double held_out;
    bool shuffle;
    int64_t end, pad;                  // -1: none
    // parallel
    RtPlacementKind placement;         // of experts, at first
    RtQuantity rebalance, rebalance_window;    // rebalance.h; {0}: nobody has said; as long
    int64_t rebalance_groups;
    double rebalance_gain;
    // generate
    int64_t max_tokens, top_k;         // top_k 0: none
    double temperature, top_p, min_p, repetition;
    int64_t *eos; int n_eos;
    char **stop_text; int n_stop_text;
    int64_t start;                     // -1: none
    uint64_t generate_seed;
    void *json;                        // the whole object
} RtSettings;

// json NULL or "": all defaults.  Relative paths in it are meant from base_dir (NULL: the current folder).
RtStatus rt_settings_open(const char *json, const char *base_dir, RtSettings **out, RtError *e);
void     rt_settings_close(RtSettings *s);                              // NULL is fine
// "train.lr=1e-3": the value as in the language's blocks; relative paths from the current folder.  Keys that
// the plan has built in are refused.
RtStatus rt_settings_set(RtSettings *s, const char *assignment, RtError *e);
// As JSON with all paths absolute.  The caller frees it.
char    *rt_settings_json(const RtSettings *s);

#endif
