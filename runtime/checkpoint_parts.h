// What saving and loading checkpoints share.  Inside checkpoint*.c only.
#ifndef RUNTIME_CHECKPOINT_PARTS_H
#define RUNTIME_CHECKPOINT_PARTS_H
#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"

enum { CKPT_BLOCK = 4096, CKPT_VERSION = 1 };              // elements per hash; of the format
extern const char ckpt_format[];

// Parts that are no tensors by themselves, as experts are.
int      ckpt_joined_parts(const RtPlanInstance *p, const RtTensor *t);
// The pieces a plan tensor has in a checkpoint: one, or one per expert; of this rank's part.  The caller frees *name.
int64_t  ckpt_n_pieces(const RtTensor *t);
StWrite  ckpt_piece(const RtPlanInstance *p, const RtTensor *t, int64_t k, char **name);
int64_t  ckpt_elements(const StWrite *w);
bool     ckpt_is_saved(const RtPlanInstance *p, const RtTensor *t);

// Hashes of the blocks into block[ckpt_n_blocks(n)]; returns the hash of those.
int64_t  ckpt_n_blocks(int64_t n);
uint64_t ckpt_hash_tensor(const void *data, int64_t n, int size, uint64_t *block);
// The manifest's own hash stands in a field of 16 digits, which count as zeros; NULL: there is none.
char    *ckpt_self_field(char *text, size_t n);
uint64_t ckpt_self_hash(char *text, size_t n, char *field);

bool     ckpt_ends_with(const char *text, const char *end);
bool     ckpt_has_tensors(const char *file);
int64_t  ckpt_step_of(const char *folder);                 // -1: it is no checkpoint's
typedef struct { int64_t step; char name[64]; } CkptStep;
// The step-N folders of ckpt, newest first.  The caller frees the array; NULL: there is no such folder.
CkptStep *ckpt_list_steps(const char *ckpt, int *n);
void     ckpt_sweep(const char *ckpt);                     // what an interrupted save or deletion left

#endif
