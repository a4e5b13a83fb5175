// Do all ranks run the same program, and where do they stand?
//
// A message's tag holds a collective's number in its group, its kind, and a few bits of node, chunk and size.  Ranks
// that don't run the same thing send messages that nobody receives: whoever waits looks for such.  What that misses
// (a collective that has nothing to send, say), the hash over all collectives of a step finds.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/comm_priv.h"
#include "runtime/monitor.h"
#include "runtime/trace.h"

enum { KIND_BIT = 8, NUMBER_BIT = 12, NUMBERS = RT_TAGS >> NUMBER_BIT };

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

uint32_t rt_comm_tag(const RtCommOp *op, int64_t in_group) {
    bool by_data = op->kind == RT_COMM_ROWS || op->kind == RT_COMM_BACK || op->kind == RT_COMM_MOVE || op->kind == RT_COMM_FEW;
    uint64_t h = mix(mix(1, op->tag.node), op->tag.chunk);
    if (!by_data) h = mix(mix(mix(h, (uint64_t)op->n), op->dtype), (uint64_t)op->root);
    return (uint32_t)(in_group % NUMBERS) << NUMBER_BIT | op->kind << KIND_BIT | (h >> 40 & 255);
}

// ---- pages ----------------------------------------------------------------------------------------------

// Whoever reads a word of the new record finds number 0, or the new one, afterwards.
static void write_record(_Atomic int64_t *page, const RtCommRecord *r) {
    int64_t word[RT_RECORD_WORDS];
    memcpy(word, r, sizeof word);
    atomic_store_explicit(&page[0], 0, memory_order_relaxed);
    for (int i = 1; i < RT_RECORD_WORDS; i++) atomic_store_explicit(&page[i], word[i], memory_order_release);
    atomic_store_explicit(&page[0], word[0], memory_order_release);
}

// number 0: it was overwritten meanwhile, or never there.
static RtCommRecord read_record(_Atomic int64_t *page) {
    int64_t word[RT_RECORD_WORDS];
    word[0] = atomic_load_explicit(&page[0], memory_order_acquire);
    for (int i = 1; i < RT_RECORD_WORDS; i++) word[i] = atomic_load_explicit(&page[i], memory_order_acquire);
    if (atomic_load_explicit(&page[0], memory_order_relaxed) != word[0]) word[0] = 0;
    RtCommRecord r;
    memcpy(&r, word, sizeof r);
    return r;
}

static RtCommRecord record_of(RtCommPage *p, int64_t number) {
    RtCommRecord r = read_record(p->op[number % RT_PAGE_OPS]);
    if (r.number != number) r.number = 0;
    return r;
}

static RtCommRecord record(const RtComm *c, const RtCommRun *run) {
    const RtCommOp *op = &run->op;
    RtCommRecord r = {.number = run->number, .step = c->step, .in_group = run->in_group, .kind = op->kind,
                      .group = (uint32_t)op->group, .node = op->tag.node, .chunk = op->tag.chunk};
    snprintf(r.where, sizeof r.where, "%s", op->tag.where ? op->tag.where : "");
    return r;
}

void rt_comm_note_start(RtComm *c, const RtCommRun *run) {
    RtCommRecord r = record(c, run);
    write_record(c->page[c->rank]->op[r.number % RT_PAGE_OPS], &r);
    c->hash = mix(mix(mix(c->hash, (uint64_t)r.in_group), (uint64_t)r.group << 32 | r.kind),
                  (uint64_t)r.node << 32 | r.chunk);
}

void rt_comm_note_wait(RtComm *c, const RtCommRun *run) {
    RtCommPage *p = c->page[c->rank];
    atomic_store_explicit(&p->since_ns, rt_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&p->waits_for, run->number, memory_order_relaxed);
    rt_page_waits(true);
}

void rt_comm_note_done(RtComm *c, const RtCommRun *run) {
    RtCommPage *p = c->page[c->rank];
    atomic_store_explicit(&p->since_ns, rt_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&p->waits_for, 0, memory_order_relaxed);
    atomic_store_explicit(&p->done, run->number, memory_order_relaxed);
    rt_page_waits(false);
}

void rt_comm_note_go_on(RtComm *c) { atomic_store_explicit(&c->page[c->rank]->waits_for, 0, memory_order_relaxed); }

// ---- text -----------------------------------------------------------------------------------------------

typedef struct { char *at, *end; } Text;

static void say(Text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(Text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->at, (size_t)(t->end - t->at), fmt, ap);
    va_end(ap);
    t->at = n < t->end - t->at ? t->at + n : t->end - 1;
}

enum { OP_TEXT = 200 };

static void say_op(Text *t, const RtCommRecord *r) {
    if (!r->number) {
        say(t, "nothing");
        return;
    }
    say(t, "%s (", rt_comm_kind_name(r->kind));
    if (r->where[0]) say(t, "%s; ", r->where);
    say(t, "node %u", r->node);
    if (r->chunk) say(t, ", chunk %u", r->chunk);
    say(t, "; #%lld of group %u)", (long long)r->in_group + 1, r->group);
}

const char *rt_comm_op_text(const RtComm *c, const RtCommRun *run, char text[OP_TEXT]) {
    RtCommRecord r = record(c, run);
    say_op(&(Text){text, text + OP_TEXT}, &r);
    return text;
}

// "0-2, 5": the ranks whose line is the same as that of `like`.
static void say_ranks(Text *t, const char *const *line, int ranks, int like) {
    const char *between = "";
    for (int first = like, end; first < ranks; first = end) {
        end = first + 1;
        if (strcmp(line[first], line[like]) != 0) continue;
        while (end < ranks && strcmp(line[end], line[like]) == 0) end++;
        say(t, "%s%d", between, first);
        if (end - first > 1) say(t, "%s%d", end - first > 2 ? "-" : ", ", end - 1);
        between = ", ";
    }
}

// One line for all ranks of which the same is to be said.
static void say_table(Text *t, const char *const *line, int ranks) {
    for (int r = 0; r < ranks; r++) {
        bool said = false;
        for (int s = 0; s < r; s++) said |= strcmp(line[s], line[r]) == 0;
        if (said) continue;
        say(t, "\n  rank ");
        say_ranks(t, line, ranks, r);
        say(t, ": %s", line[r]);
    }
}

// ---- silence --------------------------------------------------------------------------------------------

static int64_t bytes_left(const RtStream *s) {
    int64_t bytes = s->part < s->end ? -s->at : 0;
    for (const RtCommPart *p = s->part; p < s->end; p++) bytes += p->bytes;
    for (int i = 0; s->busy && i < RT_WINDOW; i++) bytes += s->message[i].part ? s->message[i].bytes : 0;
    return bytes;
}

static void say_missing(Text *t, const RtComm *c, const RtCommRun *run) {
    enum { MOST = 6 };
    int said = 0;
    for (int j = 0; j < run->m; j++) {
        int64_t in = bytes_left(&run->in[j]), out = bytes_left(&run->out[j]);
        if (j == run->i || (!in && !out)) continue;
        if (++said > MOST) continue;
        int rank = c->group[run->op.group].ranks[j];
        if (in) say(t, "%s %lld bytes from rank %d", said > 1 ? "," : "", (long long)in, rank);
        else say(t, "%s rank %d to take %lld bytes", said > 1 ? "," : "", rank, (long long)out);
    }
    if (said > MOST) say(t, " and %d more", said - MOST);
}

static void say_rank(Text *t, RtCommPage *p) {
    if (!p) {
        say(t, "on another node");
        return;
    }
    int64_t done = atomic_load_explicit(&p->done, memory_order_relaxed),
            waits_for = atomic_load_explicit(&p->waits_for, memory_order_relaxed),
            since_ns = atomic_load_explicit(&p->since_ns, memory_order_relaxed);
    RtCommRecord last = record_of(p, done), now = record_of(p, waits_for);
    say(t, "last completed ");
    say_op(t, &last);
    say(t, ", ");
    if (waits_for) {
        say(t, "waits for ");
        say_op(t, &now);
    } else {
        say(t, "computes");
    }
    if (since_ns) say(t, " since %.0f s", (double)(rt_now_ns() - since_ns) / 1e9);
}

enum { LINE = 2 * OP_TEXT + 100 };

typedef struct { char (*text)[LINE]; const char **line; } Lines;

static void lines_close(Lines *l) {
    free(l->text);
    free(l->line);
}

static bool lines_open(Lines *l, int n) {
    *l = (Lines){calloc((size_t)n, sizeof *l->text), calloc((size_t)n, sizeof *l->line)};
    bool open = l->text && l->line;
    for (int i = 0; open && i < n; i++) l->line[i] = l->text[i];
    if (!open) lines_close(l);
    return open;
}

static Text text_of(Lines *l, int i) { return (Text){l->text[i], l->text[i] + LINE}; }

static Text begin_error(RtComm *c, RtStatus code) {
    c->error.code = code;
    return (Text){c->error.text, c->error.text + sizeof c->error.text};
}

void rt_comm_tell_silence(RtComm *c, const RtCommRun *run, int64_t bound_ns) {
    char op[OP_TEXT];
    Text t = begin_error(c, RT_TIMEOUT);
    say(&t, "rank %d, step %lld, %s: nothing moved for %.1f s; it waits for", c->rank, (long long)c->step,
        rt_comm_op_text(c, run, op), (double)bound_ns / 1e9);
    say_missing(&t, c, run);
    Lines l;
    if (lines_open(&l, c->ranks)) {
        for (int r = 0; r < c->ranks; r++) {
            Text line = text_of(&l, r);
            say_rank(&line, c->page[r]);
        }
        say_table(&t, l.line, c->ranks);
        lines_close(&l);
    }
}

// ---- strays ---------------------------------------------------------------------------------------------

// A rank's record of a collective, by its number in a group.
static RtCommRecord find_record(RtCommPage *p, int group, int64_t in_group) {
    for (int i = 0; p && i < RT_PAGE_OPS; i++) {
        RtCommRecord r = read_record(p->op[i]);
        if (r.number && (int)r.group == group && r.in_group == in_group) return r;
    }
    return (RtCommRecord){0};
}

static void tell_stray(RtComm *c, int group, int64_t in_group, int rank, uint32_t tag) {
    RtCommRecord here = find_record(c->page[c->rank], group, in_group),
                 there = find_record(c->page[rank], group, in_group);
    Text t = begin_error(c, RT_COMM);
    say(&t, "step %lld: the ranks don't run the same program.\n  rank %d: ", (long long)c->step, c->rank);
    say_op(&t, &here);
    say(&t, "\n  rank %d: ", rank);
    if (there.number) say_op(&t, &there);
    else say(&t, "%s", rt_comm_kind_name(tag >> KIND_BIT & 15));
    if (here.kind == there.kind && here.node == there.node && here.chunk == there.chunk) say(&t, ", of another size");
}

// Is this the tag of something else than what the group's collective of that number is here?  (A rank that is 960
// collectives ahead would look so; whatever sums or gathers keeps ranks nearer.)
static bool is_stray(const RtCommGroup *g, uint32_t tag, int64_t *in_group) {
    int64_t back = (g->started - (tag >> NUMBER_BIT)) & (NUMBERS - 1);
    *in_group = g->started - back;
    return back >= 1 && back <= RT_COMM_OPEN && *in_group >= 0 && g->recent[*in_group % RT_COMM_OPEN] != tag;
}

bool rt_comm_find_stray(RtComm *c) {
    for (int i = 0; i < c->n_groups; i++) {
        const RtCommGroup *g = &c->group[i];
        for (int j = 0; j < g->m; j++) {
            uint32_t tag;
            int64_t in_group;
            bool is_there = j != g->i && c->ops->unexpected(c->transport, i, j, g->ranks[j], &tag);
            if (!is_there || !is_stray(g, tag, &in_group)) continue;
            tell_stray(c, i, in_group, g->ranks[j], tag);
            return true;
        }
    }
    return false;
}

// ---- the hash of a step ---------------------------------------------------------------------------------
// All ranks must come to the same verdict, so that all take part in what follows: n numbers are equal if and only if
// n * (sum of their squares) = (their sum)^2.  Two halves of 24 bits keep the squares' sums in words of 64.

void rt_comm_check_words(const RtComm *c, int64_t word[RT_CHECK_WORDS]) {
    int64_t low = (int64_t)(c->hash & 0xffffff), high = (int64_t)(c->hash >> 24 & 0xffffff);
    word[0] = low;
    word[1] = low * low;
    word[2] = high;
    word[3] = high * high;
}

static bool are_equal(int64_t sum, int64_t squares, int n) { return (__int128)squares * n == (__int128)sum * sum; }

// Every rank's list, `words` of each, in order of ranks; NULL: there was an error.  Caller frees.
static int64_t *gather(RtComm *c, const int64_t *own, int words, const char *what, RtError *e) {
    int64_t *all = calloc((size_t)c->ranks * (size_t)words, sizeof *all);
    if (!all) {
        rt_fail(e, RT_NO_MEMORY, "no memory to compare ranks");
        return NULL;
    }
    memcpy(all + (int64_t)c->rank * words, own, (size_t)words * sizeof *all);
    RtCommOp op = {.kind = RT_COMM_COUNTS, .tag = {.where = what}, .dtype = I64, .n = words, .buf = all};
    if (rt_comm_run(c, &op, e) == RT_OK) return all;
    free(all);
    return NULL;
}

static const RtCommRecord *ring_of(const int64_t *all, int rank) {
    return (const RtCommRecord *)(all + (int64_t)rank * RT_PAGE_OPS * RT_RECORD_WORDS);
}

static const RtCommRecord *numbered(const int64_t *all, int rank, int64_t number) {
    const RtCommRecord *r = &ring_of(all, rank)[number % RT_PAGE_OPS];
    return r->number == number ? r : NULL;
}

static bool are_alike(const RtCommRecord *a, const RtCommRecord *b) {
    if (!a || !b) return a == b;
    return a->in_group == b->in_group && a->kind == b->kind && a->group == b->group && a->node == b->node &&
           a->chunk == b->chunk;
}

static int64_t last_number(const int64_t *all, int rank) {
    int64_t last = 0;
    for (int i = 0; i < RT_PAGE_OPS; i++)
        if (ring_of(all, rank)[i].number > last) last = ring_of(all, rank)[i].number;
    return last;
}

// The number of the first collective that isn't the same on all ranks, among those that all remember; 0: none.
static int64_t first_difference(const int64_t *all, int ranks) {
    int64_t most = 0;
    for (int r = 0; r < ranks; r++)
        if (last_number(all, r) > most) most = last_number(all, r);
    for (int64_t number = most > RT_PAGE_OPS ? most - RT_PAGE_OPS + 1 : 1; number <= most; number++)
        for (int r = 1; r < ranks; r++)
            if (!are_alike(numbered(all, 0, number), numbered(all, r, number))) return number;
    return 0;
}

static RtStatus tell_difference(const RtComm *c, const int64_t *all, RtError *e) {
    int64_t number = first_difference(all, c->ranks);
    rt_fail(e, RT_COMM, "step %lld: the ranks don't run the same program%s", (long long)c->step,
            number ? "" : ": they differ further back than is remembered");
    Text t = {e->text + strlen(e->text), e->text + sizeof e->text};
    Lines l;
    if (number && lines_open(&l, c->ranks)) {
        for (int r = 0; r < c->ranks; r++) {
            Text line = text_of(&l, r);
            const RtCommRecord *record = numbered(all, r, number);
            say_op(&line, record ? record : &(RtCommRecord){0});
        }
        say_table(&t, l.line, c->ranks);
        lines_close(&l);
    }
    return RT_COMM;
}

RtStatus rt_comm_check(RtComm *c, const int64_t sum[RT_CHECK_WORDS], RtError *e) {
    if (are_equal(sum[0], sum[1], c->ranks) && are_equal(sum[2], sum[3], c->ranks)) return RT_OK;
    int64_t own[RT_PAGE_OPS * RT_RECORD_WORDS];
    for (int i = 0; i < RT_PAGE_OPS; i++) {
        RtCommRecord r = read_record(c->page[c->rank]->op[i]);
        memcpy(own + i * RT_RECORD_WORDS, &r, sizeof r);
    }
    int64_t *all = gather(c, own, RT_PAGE_OPS * RT_RECORD_WORDS, "check of a step", e);
    if (!all) return e->code;
    RtStatus s = tell_difference(c, all, e);
    free(all);
    return s;
}

// ---- facts ----------------------------------------------------------------------------------------------

static RtStatus tell_fact(const RtComm *c, const char *name, const int64_t *all, int n, RtError *e) {
    rt_fail(e, RT_COMM, "the ranks differ in %s", name);
    Text t = {e->text + strlen(e->text), e->text + sizeof e->text};
    Lines l;
    if (lines_open(&l, c->ranks)) {
        for (int r = 0; r < c->ranks; r++) {
            Text line = text_of(&l, r);
            say(&line, "%016llx", (unsigned long long)all[(int64_t)r * n]);
        }
        say_table(&t, l.line, c->ranks);
        lines_close(&l);
    }
    return RT_COMM;
}

RtStatus rt_comm_same(RtComm *c, const RtCommFact *fact, int n, RtError *e) {
    int64_t *own = calloc((size_t)n, sizeof *own);
    if (!own) return rt_fail(e, RT_NO_MEMORY, "no memory to compare ranks");
    for (int i = 0; i < n; i++) own[i] = (int64_t)fact[i].value;
    int64_t *all = gather(c, own, n, "check at the start", e);
    free(own);
    if (!all) return e->code;
    RtStatus s = RT_OK;
    for (int i = 0; s == RT_OK && i < n; i++)
        for (int r = 1; s == RT_OK && r < c->ranks; r++)
            if (all[(int64_t)r * n + i] != all[i]) s = tell_fact(c, fact[i].name, all + i, n, e);
    free(all);
    return s;
}
