// Files of tensors in the safetensors format: 8 bytes length of a JSON header, the header, the data.
#ifndef RUNTIME_SAFETENSORS_H
#define RUNTIME_SAFETENSORS_H
#include <stdbool.h>
#include "runtime/abi.h"
#include "runtime/status.h"

typedef enum {
    ST_F64,
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_I64,
    ST_I32,
    ST_I16,
    ST_I8,
    ST_U64,
    ST_U32,
    ST_U16,
    ST_U8,
    ST_BOOL,
    ST_F8_E4M3,
    ST_F8_E5M2,
    ST_DTYPES
} StDType;
const char *st_dtype_name(StDType t);          // as in files: "F32"
int         st_dtype_bytes(StDType t);
StDType     st_dtype_of(DType t);
bool        st_dtype_to(StDType t, DType *out);   // false: no plan holds this type (I16, U16, U64, F8)

typedef struct {
    const char *name;
    StDType dtype;
    int     ndim;
    int64_t dim[MAX_DIM];
    int64_t elements;
    const unsigned char *data;      // in the mapped file; may be unaligned
    size_t  bytes;
    size_t  offset;                 // of data in its file
    const char *file;               // path, for messages
} StTensor;

typedef struct StFiles StFiles;

// path: a file; or a folder with model.safetensors.index.json, model.safetensors or weights-*.safetensors.
// Everything the headers say is checked: sizes, ranges, overlaps, holes.  Tensors are sorted by name.
RtStatus        st_open(const char *path, StFiles **out, RtError *e);
void            st_close(StFiles *f);                                  // NULL is fine
int             st_count(const StFiles *f);
const StTensor *st_at(const StFiles *f, int i);
const StTensor *st_find(const StFiles *f, const char *name);           // NULL: there is none
const char *st_metadata(const StFiles *f, const char *key); // of the first file; NULL: there is none

// Has been read: the memory that shows its part of the file may go.
void st_drop(const StTensor *t);

// Elements [begin, begin + n) as f32 or f64, from any type.
RtStatus st_read_f32(const StTensor *t, int64_t begin, int64_t n, float *out, RtError *e);
RtStatus st_read_f64(const StTensor *t, int64_t begin, int64_t n, double *out, RtError *e);
double   st_number(const StTensor *t, int64_t i);

typedef struct {
    const char *name;
    StDType dtype;
    int     ndim;
    int64_t dim[MAX_DIM];
    const void *data;
} StWrite;

// Writes beside (PATH.tmp), syncs, renames.  Tensors are laid out by falling element size, otherwise in this
// order. metadata: key, value, ..., NULL; or NULL.  offset (may be NULL): where the data of tensor i begins
// in the file.
RtStatus st_write(const char *path, const StWrite *tensor, int n, const char *const *metadata,
                  int64_t *offset, RtError *e);

#endif
