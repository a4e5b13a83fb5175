// Generation: a sampler, a decoder around program "run", and the loop that joins them.
#include "runtime/generate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/convert.h"
#include "runtime/exec.h"
#include "runtime/gather.h"
#include "runtime/philox.h"
#include "runtime/trace.h"

// ---- sampling -------------------------------------------------------------------------------------------

struct RtSampler {
    RtSampling s;
    int64_t  vocab, n_heap;
    bool    *seen;
    double  *p;                     // logits, then probabilities
    int32_t *heap;                  // ids, the likeliest on top
    int32_t *kept;                  // ids in falling order of probability
};

RtSampler *rt_sampler_open(RtSampling s, int64_t vocab) {
    RtSampler *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    size_t n = (size_t)vocab + 1;
    *r = (RtSampler){.s = s, .vocab = vocab, .seen = calloc(n, sizeof *r->seen), .p = calloc(n, sizeof *r->p),
                     .heap = calloc(n, sizeof *r->heap), .kept = calloc(n, sizeof *r->kept)};
    if (r->seen && r->p && r->heap && r->kept) return r;
    rt_sampler_close(r);
    return NULL;
}

void rt_sampler_close(RtSampler *s) {
    if (!s) return;
    free(s->seen);
    free(s->p);
    free(s->heap);
    free(s->kept);
    free(s);
}

void rt_sampler_seen(RtSampler *s, int32_t id) {
    if (id >= 0 && id < s->vocab) s->seen[id] = true;
}

// Falling probability, ties by rising id.
static bool before(const RtSampler *s, int32_t a, int32_t b) {
    return s->p[a] > s->p[b] || (s->p[a] == s->p[b] && a < b);
}

static void sift(RtSampler *s, int64_t i) {
    int32_t *h = s->heap, moving = h[i];
    for (int64_t child; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && before(s, h[child + 1], h[child])) child++;
        if (before(s, moving, h[child])) break;
        h[i] = h[child];
    }
    h[i] = moving;
}

static int32_t pop(RtSampler *s) {
    int32_t top = s->heap[0];
    s->heap[0] = s->heap[--s->n_heap];
    if (s->n_heap) sift(s, 0);
    return top;
}

static int32_t largest(const RtSampler *s) {
    int32_t best = 0;
    for (int64_t i = 1; i < s->vocab; i++)
        if (s->p[i] > s->p[best]) best = (int32_t)i;
    return best;
}

// A number in [0, 1), another one for each draw.
static double uniform(const RtSampling *o, int64_t draw) {
    Philox4 r = philox4((Philox4){{(uint32_t)draw, (uint32_t)((uint64_t)draw >> 32), 0x67656e, 0}},
                        (uint32_t)o->seed, (uint32_t)(o->seed >> 32));
    return ((double)(((uint64_t)r.at[1] << 32 | r.at[0]) >> 11)) * 0x1p-53;
}

// Out of all: the likeliest first, so few are looked at.
static int32_t draw_of_all(RtSampler *s, double u) {
    int32_t id = pop(s);
    while ((u -= s->p[id]) >= 0 && s->n_heap && s->p[s->heap[0]] > 0) id = pop(s);
    return id;
}

int32_t rt_sampler_next(RtSampler *s, const float *logits, int64_t draw) {
    const RtSampling *o = &s->s;
    for (int64_t i = 0; i < s->vocab; i++) {
        double x = isnan(logits[i]) ? -INFINITY : (double)logits[i];
        if (s->seen[i] && o->repetition != 1) x = x > 0 ? x / o->repetition : x * o->repetition;
        s->p[i] = x;
    }
    int32_t best = largest(s);
    if (o->temperature <= 0 || o->top_k == 1 || s->p[best] == -INFINITY) return best;
    double top = s->p[best], total = 0;
    for (int64_t i = 0; i < s->vocab; i++)
        total += s->p[i] = s->p[i] == top ? 1 : exp((s->p[i] - top) / o->temperature);

    s->n_heap = s->vocab;
    for (int64_t i = 0; i < s->vocab; i++) s->heap[i] = (int32_t)i;
    for (int64_t i = s->vocab / 2; i-- > 0;) sift(s, i);
    if (!(o->top_k > 0 && o->top_k < s->vocab) && o->top_p >= 1 && o->min_p <= 0)
        return draw_of_all(s, uniform(o, draw) * total);
    // top-k: the share that top-p speaks of is of what top-k left
    int64_t most = o->top_k > 0 && o->top_k < s->vocab ? o->top_k : s->vocab, n = 0;
    double share = o->top_p < 1 && most == s->vocab ? o->top_p * total : INFINITY, sum = 0;
    bool least_is_known = o->top_p >= 1 || most == s->vocab;       // nobody asks for the sum of those below min_p
    while (n < most && sum < share) {
        int32_t id = pop(s);
        if (s->p[id] <= 0 || (n && least_is_known && s->p[id] < o->min_p)) break;
        s->kept[n++] = id;
        sum += s->p[id];
    }
    if (o->top_p < 1 && most < s->vocab) {
        double limit = o->top_p * sum, part = 0;
        int64_t m = 0;
        while (m < n && part < limit) part += s->p[s->kept[m++]];
        n = m;
    }
    if (n == 0) return best;                               // top_p = 0
    while (n > 1 && s->p[s->kept[n - 1]] < o->min_p) n--;   // the largest has probability 1 here
    sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s->p[s->kept[i]];

    double u = uniform(o, draw) * sum;
    for (int64_t i = 0; i < n; i++) {
        u -= s->p[s->kept[i]];
        if (u < 0) return s->kept[i];
    }
    return s->kept[n - 1];
}

// ---- decoding -------------------------------------------------------------------------------------------

// An input of program run: run/NAME where other programs have one of the same name and another shape.
static const RtTensor *run_input(const RtPlanInstance *p, const char *own_name, const char *name) {
    const RtTensor *own = rt_tensor(p, own_name);
    return own ? own : rt_tensor(p, name);
}

static RtStatus find_decoder(RtPlanInstance *p, RtDecoder *d, RtError *e) {
    d->program = rt_program(p, "run");
    if (d->program < 0) return rt_fail(e, RT_BAD_PLAN, "the plan has no program 'run'");
    d->sym_rows = rt_sym(p, "S");
    d->sym_context = rt_sym(p, "C");
    d->sym_sequences = rt_sym(p, "R");
    d->tokens = run_input(p, "run/tokens", "tokens");
    d->positions = run_input(p, "run/positions", "positions");
    d->sequences = run_input(p, "run/sequences", "sequences");
    d->last = run_input(p, "run/last", "last");
    d->logits = rt_output(p, d->program, "logits");
    if (d->sym_rows < 0 || !d->tokens || !d->logits || d->logits->ndim < 2 || (d->sym_sequences >= 0) != (d->last != NULL))
        return rt_fail(e, RT_BAD_PLAN,
                       "program 'run' must have rows S, the input tokens and the output logits");
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    d->max_rows = sym[d->sym_rows].bound;
    d->max_context = d->sym_context >= 0 ? sym[d->sym_context].bound : d->max_rows;
    d->places = d->sym_sequences >= 0 ? (int)sym[d->sym_sequences].bound : 1;
    d->vocab = d->logits->dim[d->logits->ndim - 1];
    return RT_OK;
}

RtStatus rt_decoder_open(RtPlanInstance *p, RtDecoder *d, RtError *e) {
    *d = (RtDecoder){.plan = p};
    RT_TRY(find_decoder(p, d, e));
    d->row = calloc((size_t)d->vocab + 1, sizeof *d->row);
    d->past = calloc((size_t)d->places, sizeof *d->past);
    return d->row && d->past ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for logits");
}

void rt_decoder_close(RtDecoder *d) {
    free(d->row);
    free(d->past);
    rt_rebalance_close(d->rebalance);
    d->rebalance = NULL;
    d->row = NULL;
    d->past = NULL;
}

void rt_decoder_restart(RtDecoder *d, int place) { d->past[place] = 0; }

void rt_decoder_begin(RtDecoder *d) {
    d->n = 0;
    d->rows = d->longest = 0;
}

static void put(RtDecoder *d, const RtTensor *t, int64_t at, int64_t x) {
    if (t) rt_store_number(rt_tensor_data(d->plan, t), (DType)t->dtype, at, (double)x);
}

int rt_decoder_add(RtDecoder *d, int place, const int32_t *ids, int64_t n) {
    assert(n >= 1 && n <= d->max_rows - d->rows && n <= d->max_context - d->past[place] && d->n < d->places);
    const int64_t column[SEQUENCE_COLUMNS] = {[SEQUENCE_FIRST] = d->rows, [SEQUENCE_ROWS] = n, [SEQUENCE_LENGTH] = d->past[place] + n,
                                              [SEQUENCE_PLACE] = place};
    for (int64_t i = 0; i < n; i++) {
        put(d, d->tokens, d->rows + i, ids[i]);
        put(d, d->positions, d->rows + i, d->past[place] + i);
    }
    d->rows += n;
    d->past[place] += n;
    if (d->past[place] > d->longest) d->longest = d->past[place];
    for (int i = 0; i < SEQUENCE_COLUMNS; i++) put(d, d->sequences, (int64_t)d->n * SEQUENCE_COLUMNS + i, column[i]);
    put(d, d->last, d->n, d->rows - 1);
    return d->n++;
}

void rt_decoder_run(RtDecoder *d) {
    RtPlanInstance *p = d->plan;
    rt_set_sym(p, d->sym_rows, d->rows);
    if (d->sym_context >= 0) rt_set_sym(p, d->sym_context, d->longest);
    if (d->sym_sequences >= 0) rt_set_sym(p, d->sym_sequences, d->n);
    if (d->rebalance) rt_rebalance_begin(d->rebalance);
    int64_t begin_ns = rt_now_ns();
    rt_run(p, d->program);
    d->seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
}

RtStatus rt_decoder_rebalance(RtDecoder *d, const RtSettings *s, RtError *e) {
    RtRebalanceSetting setting;
    RT_TRY(rt_rebalance_setting(s, (RtStepSize){1, 1, 1}, false, &setting, e));
    return rt_rebalance_open(d->plan, d->program, setting, &d->rebalance, e);
}

RtStatus rt_decoder_balance(RtDecoder *d, RtError *e) {
    RtRebalanced x, *all = &d->moved;
    if (!d->rebalance) return RT_OK;
    RT_TRY(rt_rebalance_end(d->rebalance, ++d->calls, d->seconds, INT64_MAX, &x, e));
    if (!x.considered) return RT_OK;
    if (!all->considered) all->before = x.before;
    all->considered = true;
    all->experts += x.experts;
    all->bytes += x.bytes;
    all->seconds += x.seconds;
    all->after = x.experts ? x.after : x.before;
    return RT_OK;
}

const float *rt_decoder_logits(RtDecoder *d, int number) {
    const RtTensor *t = d->logits;
    int64_t row = d->last ? number : d->rows - 1;
    if (t->dtype == F32) return (const float *)rt_tensor_data(d->plan, t) + row * d->vocab;
    for (int64_t i = 0; i < d->vocab; i++)
        d->row[i] = (float)rt_load_number(rt_tensor_data(d->plan, t), (DType)t->dtype, row * d->vocab + i);
    return d->row;
}

const float *rt_decoder_feed(RtDecoder *d, const int32_t *ids, int64_t n) {
    for (int64_t rows; n; ids += rows, n -= rows) {
        rows = n < d->max_rows ? n : d->max_rows;
        rt_decoder_begin(d);
        rt_decoder_add(d, 0, ids, rows);
        rt_decoder_run(d);
    }
    return rt_decoder_logits(d, 0);
}

// ---- text out -------------------------------------------------------------------------------------------

// Text waits here while it might be the beginning of a stop text.
typedef struct {
    char  *held;
    size_t n, cap;
    FILE  *out;
    const RtSettings *s;
} Outlet;

static void outlet_write(Outlet *o, size_t n) {
    if (o->out && n) {
        fwrite(o->held, 1, n, o->out);
        fflush(o->out);
    }
    if (o->n > n) memmove(o->held, o->held + n, o->n - n);      // nothing held: held may be NULL
    o->n -= n;
}

typedef enum { STOP_NONE, STOP_BEGUN, STOP_WHOLE } StopMatch;

// Does a stop text stand at held[at], or its beginning at the end of what is held?
static StopMatch find_stop(const Outlet *o, size_t at) {
    StopMatch found = STOP_NONE;
    for (int i = 0; i < o->s->n_stop_text; i++) {
        size_t length = strlen(o->s->stop_text[i]), there = o->n - at < length ? o->n - at : length;
        if (memcmp(o->held + at, o->s->stop_text[i], there) != 0) continue;
        if (there == length) return STOP_WHOLE;
        found = STOP_BEGUN;
    }
    return found;
}

// True once a stop text is complete: what stands before it has been written.
static bool outlet_add(Outlet *o, const char *text, size_t n) {
    if (o->n + n > o->cap) {
        o->cap = 2 * (o->n + n + 64);
        o->held = realloc(o->held, o->cap);
        if (!o->held) abort();
    }
    if (n) memcpy(o->held + o->n, text, n);
    o->n += n;
    for (size_t at = 0; at < o->n; at++)
        if (find_stop(o, at) == STOP_WHOLE) {
            outlet_write(o, at);
            return true;
        }
    size_t sure = 0;
    while (sure < o->n && find_stop(o, sure) == STOP_NONE) sure++;
    outlet_write(o, sure);
    return false;
}

static bool is_eos(const RtSettings *s, const RtTokenizer *t, int32_t id) {
    for (int i = 0; i < s->n_eos; i++)
        if (s->eos[i] == id) return true;
    return s->n_eos == 0 && t->end >= 0 && id == t->end;
}

static RtStatus encode_prompt(const RtDecoder *d, const RtTokenizer *t, const RtSettings *s,
                              const char *prompt, RtIds *ids, RtError *e) {
    if (s->start >= 0) rt_ids_add(ids, (int32_t)s->start);
    RT_TRY(t->encode(t, prompt, strlen(prompt), true, ids, e));
    if (ids->n == 0) {
        if (t->end < 0)
            return rt_fail(e, RT_BAD_SETTING,
                           "the prompt is empty and generate.start is none: there is nothing to continue");
        rt_ids_add(ids, t->end);
    }
    if (ids->n > d->max_context)
        return rt_fail(e, RT_BAD_SETTING, "the prompt has %lld tokens, but generate.context is %lld",
                       (long long)ids->n, (long long)d->max_context);
    for (int64_t i = 0; i < ids->n; i++)
        if (ids->at[i] < 0 || ids->at[i] >= d->vocab)
            return rt_fail(e, RT_BAD_SETTING, "the prompt has token %d, but the model knows %lld", ids->at[i],
                           (long long)d->vocab);
    return RT_OK;
}

// ---- requests -------------------------------------------------------------------------------------------

// What a place of the decoder is doing: a request, and its ids that were not yet fed.
typedef struct {
    RtRequest *request;                     // NULL: nothing
    RtSampler *sampler;
    Outlet   outlet;
    RtUtf8   utf8;
    const int32_t *ids;
    int64_t  n_ids, begin_ns;
    int32_t  next;
    int      number;                        // in the call at hand; -1: it has no rows there, or not all that were left
} Sequence;

typedef struct {
    RtDecoder d;
    const RtTokenizer *t;
    const RtSettings  *s;
    RtRequest *request;
    RtIds     *prompt;                      // of each request
    int      n, at, step;                   // at >= n: all have been begun; step: ranks that take turns
    Sequence *sequence;                     // at each place
} Generation;

static RtSampler *open_sampler(const RtSettings *s, int64_t vocab) {
    return rt_sampler_open((RtSampling){.temperature = s->temperature,
                                        .top_k = s->top_k,
                                        .top_p = s->top_p,
                                        .min_p = s->min_p,
                                        .repetition = s->repetition,
                                        .seed = s->generate_seed},
                           vocab);
}

static RtStatus begin_request(Generation *g, int place, RtError *e) {
    Sequence *q = &g->sequence[place];
    const RtIds *prompt = &g->prompt[g->at];
    rt_sampler_close(q->sampler);
    q->sampler = open_sampler(g->s, g->d.vocab);
    if (!q->sampler) return rt_fail(e, RT_NO_MEMORY, "no memory for sampling");
    for (int64_t i = 0; i < prompt->n; i++) rt_sampler_seen(q->sampler, prompt->at[i]);
    rt_decoder_restart(&g->d, place);
    q->request = &g->request[g->at];
    q->outlet.out = q->request->out;
    q->utf8 = (RtUtf8){.n_held = 0};
    q->ids = prompt->at;
    q->n_ids = prompt->n;
    q->request->result = (RtGenerateResult){.prompt_tokens = prompt->n, .why = "max_tokens"};
    q->begin_ns = rt_now_ns();
    g->at += g->step;
    return RT_OK;
}

static RtStatus end_request(Sequence *q, RtError *e) {
    RtRequest *r = q->request;
    size_t n;
    r->result.seconds = (double)(rt_now_ns() - q->begin_ns) / 1e9;
    if (strcmp(r->result.why, "stop") != 0) {
        const char *rest = rt_utf8_end(&q->utf8, &n);
        if (!outlet_add(&q->outlet, rest, n)) outlet_write(&q->outlet, q->outlet.n);
    }
    q->outlet.n = 0;
    rt_utf8_free(&q->utf8);
    q->request = NULL;
    return r->out && ferror(r->out) ? rt_fail(e, RT_IO, "cannot write the text") : RT_OK;
}

// The token behind all that was fed.  false: it is the last one.
static bool next_token(Generation *g, Sequence *q) {
    RtGenerateResult *r = &q->request->result;
    int32_t id = rt_sampler_next(q->sampler, rt_decoder_logits(&g->d, q->number), r->tokens);
    size_t length, n;
    r->tokens++;
    if (is_eos(g->s, g->t, id)) return r->why = "eos", false;
    rt_sampler_seen(q->sampler, id);
    const char *piece = g->t->piece(g->t, id, &length);
    const char *text = rt_utf8_add(&q->utf8, piece ? piece : "", piece ? length : 0, &n);
    if (outlet_add(&q->outlet, text, n)) return r->why = "stop", false;
    if (r->tokens == g->s->max_tokens) return false;
    if (g->d.past[q - g->sequence] == g->d.max_context) return r->why = "context", false;
    q->next = id;
    q->ids = &q->next;
    q->n_ids = 1;
    return true;
}

// Sequences at their end come first, so that none of them waits for others' prompts.
static void add_rows(Generation *g, bool prompts) {
    RtDecoder *d = &g->d;
    for (int place = 0; place < d->places; place++) {
        Sequence *q = &g->sequence[place];
        int64_t room = d->max_rows - d->rows, rows = q->n_ids < room ? q->n_ids : room;
        if (!q->request || prompts != (q->n_ids > 1) || !rows) continue;
        int number = rt_decoder_add(d, place, q->ids, rows);
        q->ids += rows;
        q->n_ids -= rows;
        if (!q->n_ids) q->number = number;
    }
}

// The rows of the next call.
static void put_together(Generation *g) {
    RtDecoder *d = &g->d;
    for (int place = 0; place < d->places; place++) g->sequence[place].number = -1;
    rt_decoder_begin(d);
    add_rows(g, false);
    add_rows(g, true);
}

static RtStatus advance(Generation *g, RtError *e) {
    RtDecoder *d = &g->d;
    rt_decoder_run(d);
    RT_TRY(rt_ranks_status(d->plan->ranks, e));
    for (int place = 0; place < d->places; place++) {
        Sequence *q = &g->sequence[place];
        if (!q->request || q->number < 0) continue;
        RtGenerateResult *r = &q->request->result;
        if (!r->tokens) {
            r->prompt_seconds = (double)(rt_now_ns() - q->begin_ns) / 1e9;
            q->begin_ns = rt_now_ns();
        }
        if (!next_token(g, q)) RT_TRY(end_request(q, e));
    }
    return rt_decoder_balance(d, e);
}

// Gives requests that wait the places that are free.
static RtStatus take_requests(Generation *g, RtError *e) {
    for (int place = 0; place < g->d.places && g->at < g->n; place++)
        if (!g->sequence[place].request) RT_TRY(begin_request(g, place, e));
    return RT_OK;
}

// Ranks that share experts run together until none of them has anything left: who has no tokens computes for the others.
static RtStatus decode_all(Generation *g, RtError *e) {
    RtRanks *ranks = g->d.plan->ranks;
    bool together = ranks && ranks->mesh.ep > 1;
    for (;;) {
        RT_TRY(take_requests(g, e));
        put_together(g);
        int32_t any[] = {g->d.rows > 0, together && g->d.rows > ranks->few_tokens};       // rows; many
        if (together) RT_TRY(rt_any(ranks, any, 2, e));
        if (!any[0]) return RT_OK;
        if (together) ranks->few = !any[1];
        RT_TRY(advance(g, e));
    }
}

static RtStatus prepare_requests(Generation *g, RtPlanInstance *p, RtError *e) {
    RT_TRY(rt_decoder_open(p, &g->d, e));
    g->prompt = calloc((size_t)g->n + 1, sizeof *g->prompt);
    g->sequence = calloc((size_t)g->d.places, sizeof *g->sequence);
    if (!g->prompt || !g->sequence) return rt_fail(e, RT_NO_MEMORY, "no memory for %d prompts", g->n);
    for (int place = 0; place < g->d.places; place++) g->sequence[place].outlet.s = g->s;
    for (int i = g->at; i < g->n; i += g->step)
        RT_TRY(encode_prompt(&g->d, g->t, g->s, g->request[i].prompt, &g->prompt[i], e));
    return RT_OK;
}

static void close_generation(Generation *g) {
    for (int i = 0; i < g->n && g->prompt; i++) free(g->prompt[i].at);
    for (int place = 0; place < g->d.places && g->sequence; place++) {
        Sequence *q = &g->sequence[place];
        free(q->outlet.held);
        rt_utf8_free(&q->utf8);
        rt_sampler_close(q->sampler);
    }
    free(g->prompt);
    free(g->sequence);
    rt_decoder_close(&g->d);
}

RtStatus rt_generate_all(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, RtRequest *request, int n,
                         RtRebalanced *moved, RtError *e) {
    Generation g = {.t = t, .s = s, .request = request, .n = n, .at = rt_data_rank(p->ranks), .step = rt_data_ranks(p->ranks)};
    RtStatus status = rt_agree(p->ranks, prepare_requests(&g, p, e), e);
    if (status == RT_OK) {
        status = rt_decoder_rebalance(&g.d, s, e);
        if (status == RT_OK) status = decode_all(&g, e);
        if (status != RT_OK) rt_give_up(p->ranks, e);
    }
    if (moved) *moved = g.d.moved;
    close_generation(&g);
    return status;
}

RtStatus rt_generate(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, const char *prompt,
                     FILE *out, RtGenerateResult *result, RtError *e) {
    RtRequest r = {.prompt = prompt, .out = out};
    RtStatus status = rt_generate_all(p, t, s, &r, 1, NULL, e);
    if (result) *result = r.result;
    return status;
}
