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
    d->tokens = run_input(p, "run/tokens", "tokens");
    d->positions = run_input(p, "run/positions", "positions");
    d->logits = rt_output(p, d->program, "logits");
    if (d->sym_rows < 0 || !d->tokens || !d->logits || d->logits->ndim < 2)
        return rt_fail(e, RT_BAD_PLAN,
                       "program 'run' must have rows S, the input tokens and the output logits");
    const RtSym *sym = RT_TABLE(p->plan, RtSym, syms);
    d->max_rows = sym[d->sym_rows].bound;
    d->max_context = d->sym_context >= 0 ? sym[d->sym_context].bound : d->max_rows;
    d->vocab = d->logits->dim[d->logits->ndim - 1];
    return RT_OK;
}

RtStatus rt_decoder_open(RtPlanInstance *p, RtDecoder *d, RtError *e) {
    *d = (RtDecoder){.plan = p};
    RT_TRY(find_decoder(p, d, e));
    d->row = calloc((size_t)d->vocab + 1, sizeof *d->row);
    return d->row ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for logits");
}

void rt_decoder_close(RtDecoder *d) {
    free(d->row);
    d->row = NULL;
}

void rt_decoder_restart(RtDecoder *d) { d->past = 0; }

// One run, of rows that fit into one; of none where other ranks have some.
static void run_rows(RtDecoder *d, const int32_t *ids, int64_t rows) {
    RtPlanInstance *p = d->plan;
    rt_set_sym(p, d->sym_rows, rows);
    if (d->sym_context >= 0) rt_set_sym(p, d->sym_context, d->past + rows);
    for (int64_t i = 0; i < rows; i++) {
        rt_store_number(rt_tensor_data(p, d->tokens), (DType)d->tokens->dtype, i, ids[i]);
        if (d->positions)
            rt_store_number(rt_tensor_data(p, d->positions), (DType)d->positions->dtype, i, (double)(d->past + i));
    }
    rt_run(p, d->program);
    d->past += rows;
}

static const float *last_logits(RtDecoder *d) {
    RtPlanInstance *p = d->plan;
    int64_t last = rt_tensor_elements(p, d->logits) / d->vocab - 1;
    if (d->logits->dtype == F32) return (const float *)rt_tensor_data(p, d->logits) + last * d->vocab;
    for (int64_t i = 0; i < d->vocab; i++)
        d->row[i] =
            (float)rt_load_number(rt_tensor_data(p, d->logits), (DType)d->logits->dtype, last * d->vocab + i);
    return d->row;
}

const float *rt_decoder_feed(RtDecoder *d, const int32_t *ids, int64_t n) {
    assert(n >= 1 && n <= d->max_context - d->past);
    while (n) {
        int64_t rows = n < d->max_rows ? n : d->max_rows;
        run_rows(d, ids, rows);
        ids += rows;
        n -= rows;
    }
    return last_logits(d);
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

// What a rank is doing: the request at hand, and its ids that were not yet fed.
typedef struct {
    RtDecoder d;
    const RtTokenizer *t;
    const RtSettings  *s;
    RtRequest *request;
    RtIds     *prompt;                      // of each request
    int      n, at, step;                   // at >= n: nothing is left; step: ranks that take turns
    RtSampler *sampler;
    Outlet   outlet;
    RtUtf8   utf8;
    const int32_t *ids;
    int64_t  n_ids, begin_ns;
    int32_t  next;
} Generation;

static bool is_idle(const Generation *g) { return g->at >= g->n; }

static RtSampler *open_sampler(const RtSettings *s, int64_t vocab) {
    return rt_sampler_open((RtSampling){.temperature = s->temperature,
                                        .top_k = s->top_k,
                                        .top_p = s->top_p,
                                        .min_p = s->min_p,
                                        .repetition = s->repetition,
                                        .seed = s->generate_seed},
                           vocab);
}

static RtStatus begin_request(Generation *g, RtError *e) {
    if (is_idle(g)) {
        rt_decoder_restart(&g->d);
        return RT_OK;
    }
    const RtIds *prompt = &g->prompt[g->at];
    rt_sampler_close(g->sampler);
    g->sampler = open_sampler(g->s, g->d.vocab);
    if (!g->sampler) return rt_fail(e, RT_NO_MEMORY, "no memory for sampling");
    for (int64_t i = 0; i < prompt->n; i++) rt_sampler_seen(g->sampler, prompt->at[i]);
    rt_decoder_restart(&g->d);
    g->outlet.out = g->request[g->at].out;
    g->utf8 = (RtUtf8){.n_held = 0};
    g->ids = prompt->at;
    g->n_ids = prompt->n;
    g->request[g->at].result = (RtGenerateResult){.prompt_tokens = prompt->n, .why = "max_tokens"};
    g->begin_ns = rt_now_ns();
    return RT_OK;
}

static RtStatus end_request(Generation *g, RtError *e) {
    RtRequest *r = &g->request[g->at];
    size_t n;
    r->result.seconds = (double)(rt_now_ns() - g->begin_ns) / 1e9;
    if (strcmp(r->result.why, "stop") != 0) {
        const char *rest = rt_utf8_end(&g->utf8, &n);
        if (!outlet_add(&g->outlet, rest, n)) outlet_write(&g->outlet, g->outlet.n);
    }
    g->outlet.n = 0;
    rt_utf8_free(&g->utf8);
    if (r->out && ferror(r->out)) return rt_fail(e, RT_IO, "cannot write the text");
    g->at += g->step;
    return begin_request(g, e);
}

// The token behind all that was fed.  false: it is the last one.
static bool next_token(Generation *g) {
    RtGenerateResult *r = &g->request[g->at].result;
    int32_t id = rt_sampler_next(g->sampler, last_logits(&g->d), r->tokens);
    size_t length, n;
    r->tokens++;
    if (is_eos(g->s, g->t, id)) return r->why = "eos", false;
    rt_sampler_seen(g->sampler, id);
    const char *piece = g->t->piece(g->t, id, &length);
    const char *text = rt_utf8_add(&g->utf8, piece ? piece : "", piece ? length : 0, &n);
    if (outlet_add(&g->outlet, text, n)) return r->why = "stop", false;
    if (r->tokens == g->s->max_tokens) return false;
    if (g->d.past == g->d.max_context) return r->why = "context", false;
    g->next = id;
    g->ids = &g->next;
    g->n_ids = 1;
    return true;
}

static RtStatus advance(Generation *g, RtError *e) {
    int64_t rows = is_idle(g) ? 0 : g->n_ids < g->d.max_rows ? g->n_ids : g->d.max_rows;
    run_rows(&g->d, g->ids, rows);
    RT_TRY(rt_ranks_status(g->d.plan->ranks, e));
    if (is_idle(g)) return RT_OK;
    g->ids += rows;
    g->n_ids -= rows;
    if (g->n_ids) return RT_OK;
    RtGenerateResult *r = &g->request[g->at].result;
    if (!r->tokens) {
        r->prompt_seconds = (double)(rt_now_ns() - g->begin_ns) / 1e9;
        g->begin_ns = rt_now_ns();
    }
    return next_token(g) ? RT_OK : end_request(g, e);
}

// Ranks that share experts run together until none of them has anything left: who has no tokens computes for the others.
static RtStatus decode_all(Generation *g, RtError *e) {
    RtRanks *ranks = g->d.plan->ranks;
    bool together = ranks && ranks->mesh.ep > 1;
    RT_TRY(begin_request(g, e));
    for (;;) {
        int32_t busy = !is_idle(g);
        if (together) RT_TRY(rt_any(ranks, &busy, 1, e));
        if (!busy) return RT_OK;
        RT_TRY(advance(g, e));
    }
}

static RtStatus prepare_requests(Generation *g, RtPlanInstance *p, RtError *e) {
    RT_TRY(rt_decoder_open(p, &g->d, e));
    g->prompt = calloc((size_t)g->n + 1, sizeof *g->prompt);
    if (!g->prompt) return rt_fail(e, RT_NO_MEMORY, "no memory for %d prompts", g->n);
    for (int i = g->at; i < g->n; i += g->step)
        RT_TRY(encode_prompt(&g->d, g->t, g->s, g->request[i].prompt, &g->prompt[i], e));
    return RT_OK;
}

RtStatus rt_generate_all(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, RtRequest *request, int n,
                         RtError *e) {
    Generation g = {.t = t, .s = s, .request = request, .n = n, .at = rt_data_rank(p->ranks), .step = rt_data_ranks(p->ranks),
                    .outlet = {.s = s}};
    RtStatus status = rt_agree(p->ranks, prepare_requests(&g, p, e), e);
    if (status == RT_OK) {
        status = decode_all(&g, e);
        if (status != RT_OK) rt_give_up(p->ranks, e);
    }
    for (int i = 0; i < n && g.prompt; i++) free(g.prompt[i].at);
    free(g.prompt);
    free(g.outlet.held);
    rt_utf8_free(&g.utf8);
    rt_sampler_close(g.sampler);
    rt_decoder_close(&g.d);
    return status;
}

RtStatus rt_generate(RtPlanInstance *p, const RtTokenizer *t, const RtSettings *s, const char *prompt,
                     FILE *out, RtGenerateResult *result, RtError *e) {
    RtRequest r = {.prompt = prompt, .out = out};
    RtStatus status = rt_generate_all(p, t, s, &r, 1, e);
    if (result) *result = r.result;
    return status;
}
