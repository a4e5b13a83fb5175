// Hugging Face directories as models: config.json chooses and configures the program, `weights hf` fills its parameters.
#ifndef FRONTEND_CMD_WEIGHTS_H
#define FRONTEND_CMD_WEIGHTS_H
#include "frontend/cmd_session.h"
#include "frontend/hf.h"
#include "runtime/safetensors.h"

// Finds the .moe file for DIR/config.json (or --model), loads it and applies config hf.  Not settled yet: set what is
// wanted, then session_settle.  false after errors; a family nobody describes is "no model of models/ reads ...".
bool weights_open_model(Session *s, Cli *c, const char *dir);

// What each tensor of `files` is, for the parameters of the session's program (program_params: call it first).
// Names in `files` may carry a prefix ("grad."): only those are looked at, without it.  complete: see HfRules.
typedef struct {
    const StFiles *files;
    HfTensor *tensor;            // by number in HfMatch
    const StTensor **source;
    int n_tensors;
    HfParam *param;              // order of program_params
    int n_params;
    HfMatches matches;
} Weights;
int64_t weights_elements(const HfParam *p);
bool weights_match(Session *s, const StFiles *files, const char *file_name, const char *prefix, bool complete, Weights *out);
// The values of all parameters as f32, in memory of s->arena, by number; states that the file doesn't hold stay NULL.
float **weights_read(Session *s, const Weights *w);

// DIR's weights into an opened plan; of several ranks', what this one holds.
bool weights_load(Session *s, RtPlanInstance *p, const char *dir);

#endif
