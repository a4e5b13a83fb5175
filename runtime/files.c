// Files that are whole or not there.
#include "runtime/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/monitor.h"

char *rt_path(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *text = malloc((size_t)n + 1);
    if (!text) abort();
    va_start(ap, fmt);
    vsnprintf(text, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return text;
}

RtStatus rt_map_file(const char *path, RtMap *out, RtError *e) {
    *out = (RtMap){NULL, 0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return rt_fail(e, RT_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    RtStatus s = RT_OK;
    if (fstat(fd, &st) != 0) s = rt_fail(e, RT_IO, "cannot read %s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) s = rt_fail(e, RT_IO, "%s is not a plain file", path);
    else if (st.st_size > 0) {
        void *m = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (m == MAP_FAILED) s = rt_fail(e, RT_IO, "cannot map %s: %s", path, strerror(errno));
        else *out = (RtMap){m, (size_t)st.st_size};
    }
    close(fd);
    return s;
}

void rt_unmap(RtMap *m) {
    if (m->data) munmap((void *)m->data, m->bytes);
    *m = (RtMap){NULL, 0};
}

RtStatus rt_read_file(const char *path, char **out, size_t *bytes, RtError *e) {
    *out = NULL;
    RtMap m;
    RT_TRY(rt_map_file(path, &m, e));
    char *text = malloc(m.bytes + 1);
    if (!text) {
        rt_unmap(&m);
        return rt_fail(e, RT_NO_MEMORY, "no memory for %s", path);
    }
    if (m.bytes) memcpy(text, m.data, m.bytes);
    text[m.bytes] = 0;
    if (bytes) *bytes = m.bytes;
    rt_unmap(&m);
    *out = text;
    return RT_OK;
}

RtStatus rt_write_all(int fd, const char *path, const void *data, size_t bytes, RtError *e) {
    const char *at = data;
    enum { MOST = 16 << 20 };                          // at once: slow disks show that they work
    while (bytes) {
        ssize_t n = write(fd, at, bytes < MOST ? bytes : MOST);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
        at += n;
        bytes -= (size_t)n;
        rt_beat();
    }
    return RT_OK;
}

RtStatus rt_write_file(const char *path, const void *data, size_t bytes, RtError *e) {
    char *tmp = rt_path("%s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    RtStatus s = fd < 0 ? rt_fail(e, RT_IO, "cannot create %s: %s", tmp, strerror(errno)) : RT_OK;
    if (s == RT_OK) s = rt_write_all(fd, tmp, data, bytes, e);
    if (s == RT_OK && fsync(fd) != 0) s = rt_fail(e, RT_IO, "cannot write %s: %s", tmp, strerror(errno));
    if (fd >= 0 && close(fd) != 0 && s == RT_OK)
        s = rt_fail(e, RT_IO, "cannot write %s: %s", tmp, strerror(errno));
    if (s == RT_OK && rename(tmp, path) != 0)
        s = rt_fail(e, RT_IO, "cannot rename %s: %s", tmp, strerror(errno));
    if (s != RT_OK && fd >= 0) unlink(tmp);
    free(tmp);
    return s;
}

RtStatus rt_make_dirs(const char *path, RtError *e) {
    char *at = rt_path("%s", path);
    RtStatus s = RT_OK;
    for (char *slash = at + 1; s == RT_OK; slash++) {
        char c = *slash;
        if (c && c != '/') continue;
        *slash = 0;
        if (mkdir(at, 0777) != 0 && errno != EEXIST)
            s = rt_fail(e, RT_IO, "cannot create folder %s: %s", at, strerror(errno));
        else if (!rt_is_dir(at)) s = rt_fail(e, RT_IO, "%s is not a folder", at);
        *slash = c;
        if (!c) break;
    }
    free(at);
    return s;
}

RtStatus rt_sync_dir(const char *path, RtError *e) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return rt_fail(e, RT_IO, "cannot open folder %s: %s", path, strerror(errno));
    RtStatus s = fsync(fd) != 0 && errno != EINVAL
                     ? rt_fail(e, RT_IO, "cannot sync folder %s: %s", path, strerror(errno))
                     : RT_OK;
    close(fd);
    return s;
}

void rt_remove_tree(const char *path) {
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        unlinkat(dirfd(d), entry->d_name, 0);
    }
    closedir(d);
    rmdir(path);
}

bool rt_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool rt_is_file(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

char *rt_absolute(const char *base, const char *path) {
    if (path[0] == '/') return rt_path("%s", path);
    if (base && base[0] == '/') return rt_path("%s/%s", base, path);
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return rt_path("%s%s%s", base ? base : "", base ? "/" : "", path);
    return base && *base && strcmp(base, ".") != 0 ? rt_path("%s/%s/%s", here, base, path)
                                                   : rt_path("%s/%s", here, path);
}

char *rt_cache_dir(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache) return rt_path("%s/moec", cache);
    if (home && *home) return rt_path("%s/.cache/moec", home);
    return rt_path("/tmp/moec-%ld", (long)getuid());
}

void rt_hex64(uint64_t hash, char out[17]) { snprintf(out, 17, "%016llx", (unsigned long long)hash); }
