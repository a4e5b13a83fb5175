#include "runtime/monitor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runtime/comm.h"
#include "runtime/files.h"
#include "runtime/stop.h"
#include "runtime/trace.h"

static WirePage own_page = {.saved = -1};
WirePage *rt_page = &own_page;

static struct {
    bool      is_open;
    int       rank;
    pthread_t thread;
    _Atomic bool closing;
    char     *log_dir;
    pthread_mutex_t lock;              // of what follows
    Wire      wire;
    const RtPlanInstance *plan;
} monitor = {.lock = PTHREAD_MUTEX_INITIALIZER, .wire.fd = -1};

bool rt_is_supervised(void) { return monitor.is_open; }

// ---- what the rank does -------------------------------------------------------------------------------------

// "matmul of layers.0.ffn (models/std/ffn.moe:6)"
static void describe(const RtPlanInstance *p, uint32_t at, char *out, size_t bytes) {
    const RtPlan *plan = p->plan;
    const RtStep *s = &p->step[at];
    const RtSource *source = s->span < plan->sources.n ? RT_TABLE(plan, RtSource, sources) + s->span : NULL;
    const char *path = RT_TEXT(plan, s->path);
    int n = snprintf(out, bytes, "%s%s%s", RT_TEXT(plan, s->op), *path ? " of " : "", path);
    if (n > 0 && (size_t)n < bytes && source && source->line)
        snprintf(out + n, bytes - (size_t)n, " (%s:%u)", RT_TEXT(plan, source->file), source->line);
}

// The supervisor has no plan: this is all it wants to know of it.
static void write_steps(const RtPlanInstance *p) {
    char *path = rt_path("%s/" WIRE_STEPS, monitor.log_dir), line[400];
    FILE *f = fopen(path, "we");
    for (uint32_t i = 0; f && i < p->plan->steps.n; i++) {
        describe(p, i, line, sizeof line);
        fprintf(f, "%s\n", line);
    }
    if (f) fclose(f);
    free(path);
}

static WireMessage message(WireKind kind, int status) {
    return (WireMessage){.kind = kind, .rank = monitor.rank, .pid = (int32_t)getpid(), .status = status,
                         .text_bytes = 1, .place = wire_place(rt_page)};
}

void rt_monitor_plan(const RtPlanInstance *p) {
    if (monitor.is_open && monitor.rank == 0 && p) write_steps(p);
    pthread_mutex_lock(&monitor.lock);
    monitor.plan = p;
    pthread_mutex_unlock(&monitor.lock);
}

// ---- the thread ---------------------------------------------------------------------------------------------

// A dated line of this rank's log, which the supervisor leaves there.
static void note(const char *text) {
    char at[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    dprintf(2, "%s %s\n", at, text);
}

static void end_process(const char *why) {
    char text[2 * WIRE_TEXT], where[400] = "no step of the plan yet";
    WirePlace at = wire_place(rt_page);
    if (monitor.plan && at.plan_step < monitor.plan->plan->steps.n)
        describe(monitor.plan, at.plan_step, where, sizeof where);
    snprintf(text, sizeof text, "rank %d ends in step %lld, %s: %s", monitor.rank, (long long)at.step, where, why);
    note(text);
    _exit(rt_exit_status(RT_TIMEOUT));
}

// false: the supervisor is gone.  *heard: something came from it.
static bool listen_to_it(bool *heard) {
    WireMessage m;
    int got;
    while ((got = wire_get(&monitor.wire, &m)) == 1) {
        *heard = true;
        if (m.kind == WIRE_SIGNAL) rt_stop_note(m.status);
        if (m.kind == WIRE_END) end_process(m.text);
    }
    return got == 0;
}

static void *watch(void *unused) {
    (void)unused;
    WireSilence silence = {0};
    int64_t told_ns = 0;
    while (!monitor.closing) {
        struct pollfd p = {monitor.wire.fd, POLLIN, 0};
        poll(&p, 1, (int)(WIRE_TICK_NS / 1000000));
        pthread_mutex_lock(&monitor.lock);
        int64_t now_ns = rt_now_ns();
        bool heard = false, there = listen_to_it(&heard);
        if (there && now_ns - told_ns >= WIRE_TICK_NS) {
            WireMessage m = message(WIRE_ALIVE, 0);
            if (wire_is_empty(&monitor.wire)) wire_put(&monitor.wire, &m);
            told_ns = now_ns;
        }
        there = there && wire_flush(&monitor.wire);
        if (!there && !monitor.closing) end_process("the supervisor is gone");
        if (wire_silence(&silence, now_ns, heard) > WIRE_ALONE_NS)
            end_process("the supervisor can't be reached any more");
        pthread_mutex_unlock(&monitor.lock);
    }
    return NULL;
}

// Sends m even if it takes a while.
static void send_surely(const WireMessage *m) {
    enum { TRIES = 100, MS = 20 };
    pthread_mutex_lock(&monitor.lock);
    bool is_put = false;
    for (int i = 0; i < TRIES; i++) {
        is_put = is_put || wire_put(&monitor.wire, m);
        if (!wire_flush(&monitor.wire) || (is_put && wire_is_empty(&monitor.wire))) break;
        poll(&(struct pollfd){monitor.wire.fd, POLLOUT, 0}, 1, MS);
    }
    pthread_mutex_unlock(&monitor.lock);
}

void rt_monitor_failed(const RtError *e) {
    if (!monitor.is_open) return;
    WireMessage m = message(WIRE_FAILED, rt_exit_status(e->code));
    wire_text(&m, e->text);
    send_surely(&m);
}

void rt_monitor_close(int status) {
    if (!monitor.is_open) return;
    WireMessage m = message(WIRE_BYE, status);
    monitor.closing = true;
    send_surely(&m);
    pthread_join(monitor.thread, NULL);
    wire_close(&monitor.wire);
    free(monitor.log_dir);
    monitor.is_open = false;
}

// ---- opening ------------------------------------------------------------------------------------------------

typedef struct { char *port, *secret, *addresses, *pages, *log_dir; } Call;

static bool read_call(char *text, Call *c) {
    char *rest = text;
    c->port = strsep(&rest, ":");
    c->secret = rest ? strsep(&rest, ":") : NULL;
    c->addresses = rest ? strsep(&rest, ":") : NULL;
    c->pages = rest ? strsep(&rest, ":") : NULL;
    c->log_dir = rest;
    return c->log_dir != NULL;
}

// One of the supervisor's addresses, the other hosts of which may be known to it only.  -1: errno says why.
static int connect_to(const char *address, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) return errno = EINVAL, -1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    if (errno == EINPROGRESS) {
        struct pollfd p = {fd, POLLOUT, 0};
        socklen_t size = sizeof error;
        if (poll(&p, 1, 2000) == 0) error = ETIMEDOUT;
        else getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (!error) return fd;
    } else {
        error = errno;
    }
    close(fd);
    errno = error;
    return -1;
}

static RtStatus say_hello(const Call *c, RtError *e) {
    char host[256] = "", text[WIRE_TEXT];
    gethostname(host, sizeof host - 1);
    snprintf(text, sizeof text, "%s %s", c->secret, host);
    WireMessage m = message(WIRE_HELLO, 0);
    wire_text(&m, text);
    wire_put(&monitor.wire, &m);
    return wire_flush(&monitor.wire) ? RT_OK : rt_fail(e, RT_TIMEOUT, "the supervisor is gone");
}

static RtStatus connect_to_supervisor(const Call *c, RtError *e) {
    int fd = -1;
    char tried[512] = "", *rest = c->addresses;
    for (const char *address; fd < 0 && (address = strsep(&rest, ","));) {
        fd = connect_to(address, atoi(c->port));
        size_t n = strlen(tried);
        snprintf(tried + n, sizeof tried - n, "%s%s: %s", n ? ", " : "", address, strerror(errno));
    }
    if (fd < 0)
        return rt_fail(e, RT_TIMEOUT, "rank %d can't reach its supervisor on port %s (%s)", monitor.rank, c->port,
                       tried);
    wire_open(&monitor.wire, fd);
    return say_hello(c, e);
}

static void open_log(const char *dir) {
    char *path = rt_path("%s/rank-%04d.log", dir, monitor.rank);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd >= 0) {
        dup2(fd, 2);
        close(fd);
    }
    free(path);
}

// Where the supervisor is on another host, another process's file may have that name, or none.
static void share_page(const Call *c) {
    size_t bytes = sizeof(WirePages) + ((size_t)monitor.rank + 1) * sizeof(WirePage);
    struct stat st;
    int fd = open(c->pages, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    bool is_large = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (size_t)st.st_size >= bytes;
    void *at = is_large ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (at == MAP_FAILED) return;
    WirePages *pages = at;
    if (strncmp(pages->secret, c->secret, sizeof pages->secret) != 0) {
        munmap(at, bytes);
        return;
    }
    rt_page = &pages->page[monitor.rank];            // kept to the end of the process
}

RtStatus rt_monitor_open(RtError *e) {
    const char *env = getenv(WIRE_ENV);
    if (!env || monitor.is_open) return RT_OK;
    char *text = rt_path("%s", env), host[256] = "", line[400];
    Call call;
    monitor.rank = rt_comm_world_rank();
    RtStatus s =
        read_call(text, &call) ? RT_OK : rt_fail(e, RT_BAD_SETTING, WIRE_ENV " is not a supervisor's: %s", env);
    if (s == RT_OK) share_page(&call);
    if (s == RT_OK) s = connect_to_supervisor(&call, e);
    if (s == RT_OK) {
        monitor.log_dir = rt_path("%s", call.log_dir);
        open_log(call.log_dir);
        gethostname(host, sizeof host - 1);
        snprintf(line, sizeof line, "rank %d: process %ld on %s", monitor.rank, (long)getpid(), host);
        note(line);
        if (pthread_create(&monitor.thread, NULL, watch, NULL) == 0) monitor.is_open = true;
        else s = rt_fail(e, RT_NO_MEMORY, "the system gives no thread to watch over rank %d", monitor.rank);
    }
    free(text);
    return s;
}
