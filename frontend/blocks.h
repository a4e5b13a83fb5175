// The blocks after a model (train, data, parallel, generate) as plain numbers: defaults, the file's entries,
// --set.
#ifndef FRONTEND_BLOCKS_H
#define FRONTEND_BLOCKS_H
#include <stdbool.h>
#include <stdint.h>

// Interned: "step" "token" "sample" "epoch" "second" "minute" "hour"; unit NULL: not given.
typedef struct { double value; const char *unit; } Quantity;

typedef struct { int n; const char *const *at; } Words;
typedef struct { int n; const int64_t *at; } Ids;

typedef struct Source {
    const char *kind;              // text jsonl indexed cifar10 blend; NULL: none given
    int n_paths;
    const char *const *path;       // as written
    bool from_command_line;        // relative to the current folder, not to the program's file
    const char *field;             // jsonl
    int n_parts;                   // blend
    const struct Source *part;
    const double *share;
} Source;

typedef struct {
    struct {
        const char *dtype;         // "f32" "bf16" "f16"
        int64_t  batch, micro_batch, lanes, waves;     // batch = lanes * micro_batch * waves
        int64_t  sum_dense, sum_experts;               // 0: as the plan likes
        int64_t  sequence;
        Quantity length, stop;
        double   lr, lr_expert;
        struct {
            const char *kind;      // cosine linear constant inverse_sqrt wsd warmup_log
            Quantity warmup, length, decay;
            double   floor;
            const char *shape;     // wsd: linear, cosine or sqrt
        } schedule;
        struct {
            const char *kind;      // adamw adam sgd adafactor
            double beta1, beta2, eps, decay, momentum;
            bool   decay_all;
        } optimizer;
        double   clip;             // 0: none
        const char *average;       // leaf token
        struct {
            bool   dynamic;
            double start;          // the scale, if not dynamic
            int64_t window, hysteresis;
            double least;
        } loss_scale;
        bool     fast_gate;
        const char *recompute;     // none cheap layer offload
        int64_t  seed;
        bool     random_eval, exact;
        Quantity eval_every, save_every;               // unit NULL: never
        int64_t  keep;
    } train;
    struct {
        Source   source;
        const char *tokenizer;     // bytes gpt2 hf
        const char *tokenizer_path;
        bool     tokenizer_from_command_line;
        double   held_out;
        bool     shuffle;
        int64_t  end, pad;         // -1: none
        bool     documents;
        int      n_mean, n_std;
        const double *mean, *std;
    } data;
    struct {
        int64_t  ep, dp, tp, pp;   // dp 0: the rest
        int64_t  zero, etp;
        Words    order;            // of ep dp tp
        const char *progress;      // calls thread
        int64_t  chunks;           // 0: by predicted time
        const char *a2a;           // auto flat node
        const char *own_rows;      // auto apart with
        double   bound;
        int64_t  replicas;         // slots of a MoE layer beyond its experts
        const char *placement;     // linear round_robin random
        Quantity rebalance;        // unit NULL: as the command does by itself; 0: never
        Quantity rebalance_window; // unit NULL: as long
        int64_t  rebalance_groups;
        double   rebalance_gain;
    } parallel;
    struct {
        int64_t  max_tokens;
        double   temperature;
        int64_t  top_k;            // 0: all
        double   top_p, min_p, repetition;
        Ids      eos;
        Words    stop;
        int64_t  start;            // -1: none
        int64_t  seed;
        bool     dropless;
        int64_t  context, batch_tokens;
        int64_t  batch;              // sequences of a run; 0: as many as there are, within reason
        const char *dtype;         // trained (as train.dtype) f32 bf16
        const char *mla;           // absorbed plain
    } generate;
} Settings;

// What stands in the table of keys, as text: train.lr, its default, what it may be, what it is for.
typedef struct { const char *name, *fallback, *values, *doc; } BlockKey;
struct Arena;
int blocks_keys(struct Arena *a, const BlockKey **out);

#endif
