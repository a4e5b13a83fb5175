// Hugging Face directories: `config hf` rows turn a config.json into hyper-parameters, `weights hf` rows say
// what each tensor of the file is.  Rows are read from the model's own text; no family is known here.
#ifndef FRONTEND_HF_H
#define FRONTEND_HF_H
#include "frontend/ast.h"
#include "frontend/hf_view.h"

// ---- weights (hf_weights.c) -------------------------------------------------------------------------------

typedef struct {
    const char *name;
    DType dtype;
    int ndim;
    int64_t dim[MAX_DIM];
} HfTensor;

typedef struct {
    const char *name; // path: layers.3.ffn.experts.w1
    int ndim;
    int64_t dim[MAX_DIM];
    bool optional; // states: may keep their initial value
} HfParam;

// One tensor of the file and what it is.  tensor: index in the list given.
typedef struct {
    int tensor;
    HfView *view; // shape = the tensor's
    Span at;      // the row
    bool mxfp4;   // stored as TENSOR_blocks and TENSOR_scales: tensor is the blocks, scales the other
    int scales;
} HfMatch;
typedef VEC(HfMatch) HfMatches;

// A hyper-parameter named in a pattern ({L}) or an expression.  false: there is none of that name.
typedef bool HfLookup(void *self, const char *name, int64_t *number, const char **word);

typedef struct {
    Arena *arena;
    Diag *diag;
    const Module *module; // the file that holds `weights hf`
    HfLookup *lookup;
    void *self;
    const char *file; // name of the checkpoint, for messages
    bool complete;    // every parameter must be covered and every tensor used or ignored
} HfRules;

// What the file's tensors are.  false after errors: shapes that don't fit (with the help of a transposition
// that would), parameters in no row or twice, tensors nobody uses.
bool hf_match(const HfRules *r, const HfTensor *tensor, int n_tensors, const HfParam *param, int n_params,
              HfMatches *out);
bool hf_has_weights(const Module *m);

#endif
