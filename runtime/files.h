// Files that are whole or not there: read, written beside and renamed, mapped.
#ifndef RUNTIME_FILES_H
#define RUNTIME_FILES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "runtime/status.h"

// A file in memory, read-only.
typedef struct {
    const unsigned char *data;
    size_t bytes;
} RtMap;
RtStatus rt_map_file(const char *path, RtMap *out, RtError *e);
void     rt_unmap(RtMap *m);

// The whole file, zero-terminated behind *bytes (which may be NULL).  The caller frees it.
RtStatus rt_read_file(const char *path, char **out, size_t *bytes, RtError *e);

// Written beside as PATH.tmp, synced, renamed.
RtStatus rt_write_file(const char *path, const void *data, size_t bytes, RtError *e);
RtStatus rt_write_all(int fd, const char *path, const void *data, size_t bytes, RtError *e);

RtStatus rt_make_dirs(const char *path, RtError *e);        // like mkdir -p
RtStatus rt_sync_dir(const char *path, RtError *e);         // makes renames in it last
void     rt_remove_tree(const char *path);                  // a folder of plain files; silent
bool     rt_is_dir(const char *path);
bool     rt_is_file(const char *path);
char *rt_path(const char *fmt, ...) __attribute__((format(printf, 1, 2))); // the caller frees it; never NULL
char *rt_absolute(const char *base, const char *path); // likewise; base NULL: current folder
// $XDG_CACHE_HOME/moec or ~/.cache/moec or, without a home, a folder of this user in /tmp.  The caller frees
// it.
char    *rt_cache_dir(void);

// 16 hex digits of XXH3.
void     rt_hex64(uint64_t hash, char out[17]);

#endif
