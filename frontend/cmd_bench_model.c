// `moec bench FILE.moe`: steps of training on random ids, or with --generate a prompt and single tokens by random weights.
// The machine is measured behind the steps, so that its memory is not part of the peak that is reported.
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codegen/emit_plan.h"
#include "frontend/cmd_bench.h"
#include "frontend/cmd_bench_table.h"
#include "frontend/cmd_machine.h"
#include "frontend/cmd_ranks.h"
#include "frontend/cmd_session.h"
#include "runtime/exec.h"
#include "runtime/generate.h"
#include "runtime/rebalance.h"
#include "runtime/step.h"
#include "runtime/trace.h"

enum { PROFILED = 3, LINES = 8 };       // steps in a profile; lines before "others" and "idle"

static bool failed(Cli *c, const RtError *e) {
    diag_error(c->diag, (Span){0}, "%s", e->text);
    return false;
}

// Most memory the process had so far, MB; 0: unknown.
static double peak_megabytes(void) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long long kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld", &kb) == 1) break;
    if (f) fclose(f);
    return (double)kb / 1024;
}

// ---- random ids ---------------------------------------------------------------------------------------------

typedef struct { uint64_t state; int64_t vocabulary, sequence; } RandomIds;

static int32_t next_id(RandomIds *r) {
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((r->state >> 33) % (uint64_t)r->vocabulary);
}

static void random_batch(void *self, RtSlice slice, int32_t *tokens, int32_t *labels) {
    RandomIds *r = self;
    for (int64_t i = 0; i < slice.n * r->sequence; i++) {
        tokens[i] = next_id(r);
        labels[i] = next_id(r);
    }
}

// ---- profile ------------------------------------------------------------------------------------------------

static json_t *profile_row(double wall, double ms, double limit_ms, RtWork w, json_int_t launches, const char *op, const char *where,
                           const char *source, const char *kernel) {
    double s = ms / 1e3;
    bool known = s > 0 && limit_ms > 0;
    return json_pack("{s:f, s:f, s:o, s:o, s:o, s:I, s:s, s:s, s:s, s:s}", "ms", ms, "share", wall > 0 ? ms / 1e3 / wall : 0, "gflop_s",
                     known ? json_real(w.flops / s / 1e9) : json_null(), "gb_s", known ? json_real(w.bytes / s / 1e9) : json_null(),
                     "share_of_limit", known ? json_real(limit_ms / ms) : json_null(), "launches", launches, "op", op, "where", where,
                     "source", source, "kernel", kernel);
}

// Ten lines that add up to the time of a run: the longest kernels, the others together, and what threads waited.
static json_t *profile_rows(Arena *a, const RtProfile *r, int runs) {
    json_t *rows = json_array();
    double wall = r->wall_seconds / runs, scale = 1e3 / runs;
    RtProfileLine rest = {.op = "others"};
    int n_rest = 0;
    for (int i = 0; i < r->n; i++) {
        const RtProfileLine *l = &r->line[i];
        if (i >= LINES) {
            rest.seconds += l->seconds;
            rest.limit_seconds += l->limit_seconds;
            rest.work.flops += l->work.flops;
            rest.work.bytes += l->work.bytes;
            rest.launches += l->launches;
            n_rest++;
            continue;
        }
        RtWork work = {l->work.flops / runs, l->work.bytes / runs, 0};
        json_array_append_new(rows, profile_row(wall, l->seconds * scale, l->limit_seconds * scale, work, l->launches / runs, l->op, l->path,
                                                *l->source ? arena_printf(a, "%s:%u", l->source, l->line) : "", l->kernel));
    }
    if (n_rest) {
        RtWork work = {rest.work.flops / runs, rest.work.bytes / runs, 0};
        json_array_append_new(rows, profile_row(wall, rest.seconds * scale, rest.limit_seconds * scale, work, rest.launches / runs, "others",
                                                arena_printf(a, "%d more lines", n_rest), "", ""));
    }
    json_array_append_new(rows, profile_row(wall, r->idle_seconds * scale, 0, (RtWork){0, 0, 0}, 0, "idle", "barriers", "", ""));
    return rows;
}

// The trace that p holds as --profile and --trace want it.
static bool tell_trace(Cli *c, RtPlanInstance *p, const RtLimits *limits, int runs, json_t *facts) {
    RtError e = {0};
    RtProfile r;
    if (cli_value(c, "trace") && rt_trace_write(p, limits, cli_value(c, "trace"), &e) != RT_OK) return failed(c, &e);
    if (!cli_flag(c, "profile")) return true;
    if (rt_profile_open(p, limits, &r, &e) != RT_OK) return failed(c, &e);
    json_object_set_new(facts, "profile", profile_rows(c->arena, &r, runs));
    rt_profile_close(&r);
    return true;
}

static bool wants_trace(const Cli *c) { return cli_value(c, "trace") || cli_flag(c, "profile"); }

// ---- training -----------------------------------------------------------------------------------------------

// Of one pass forward: what MFU counts as the model's work, a third of a step's.
static double forward_flops(Session *s) {
    Programs p;
    if (!session_programs(s, WANT_EVAL, &p)) return 0;
    double flops = 0;
    for_each_node(p.eval, n) if (node_work(n) != RT_ELEMENTWISE) flops += node_flops(n);
    return flops;
}

static int64_t launches(const RtPlanInstance *p, int program) { return p->program[program].n_steps; }

// The same on every rank; the first tells of it.
typedef struct {
    Cli     *c;
    Session *s;
    const RtSettings *settings;
    bool     local;                // ranks are threads: b is one for all
    int64_t  warm, steps, traced;
    double   forward;              // of the leaves of all ranks
    Machine  before;               // its arithmetic
    json_t  *facts;
} TrainBench;

// Of rows: messages and bytes that this rank has sent to other nodes.
typedef struct { int64_t messages, bytes; } RowsSent;

static RowsSent rows_sent(const RtRanks *r) {
    RtCommCounters all = rt_comm_counters(r->comm);
    const RtTraffic *there = &all.sent[RT_COMM_ROWS][RT_LINK_NET], *back = &all.sent[RT_COMM_BACK][RT_LINK_NET];
    return (RowsSent){there->messages + back->messages, there->bytes + back->bytes};
}

// As a run of these steps does it, by parallel.rebalance.  Sums up the moves.
static RtStatus move_experts(RtRebalance *r, int64_t step, double seconds, int64_t steps_left, RtRebalanced *moved, RtError *e) {
    RtRebalanced x;
    if (!r) return RT_OK;
    RT_TRY(rt_rebalance_end(r, step, seconds, steps_left, &x, e));
    moved->experts += x.experts;
    moved->seconds += x.seconds;
    return RT_OK;
}

static RtStatus run_steps(const TrainBench *b, RtStepWork *w, RtRebalance *r, double *took, RowsSent *before, RtRebalanced *moved, RtError *e) {
    RandomIds ids = {1 + (uint64_t)rt_rank(w->p->ranks), b->settings->vocabulary, w->in.sequence};
    int64_t number = 0, tokens = rt_work_sequences(w) * w->in.sequence, end = b->steps + b->traced;
    if (w->p->ranks) RT_TRY(rt_slots_begin(w->p->ranks->table, w->p->plan, b->settings->placement, b->settings->seed, e));
    RT_TRY(rt_init(w->p, b->settings->seed, e));
    for (int64_t i = -b->warm; i < end; i++) {
        if (i == 0 && w->p->ranks) {
            w->p->ranks->rows = (RtRowsTime){0};
            w->p->ranks->counts_busiest = true;
            *before = rows_sent(w->p->ranks);
        }
        if (i == b->steps) RT_TRY(rt_trace_begin(w->p, (int)(b->traced * (w->waves + 1)), e));
        if (r) rt_rebalance_begin(r);
        int64_t begin_ns = rt_now_ns();
        number++;
        RT_TRY(rt_work_step(w, (RtStepNumbers){number, number, tokens * (number - 1), b->settings->lr}, random_batch, &ids, e));
        double seconds = (double)(rt_now_ns() - begin_ns) / 1e9;
        if (i >= 0 && i < b->steps) took[i] = seconds;
        RT_TRY(move_experts(r, number, seconds, end - 1 - i, moved, e));
    }
    return RT_OK;
}

// Exchanges of rows of the first rank, per step, how many more rows than the mean the busiest rank's experts got in a
// layer, how many experts moved, and what all ranks sent to other nodes.
static RtStatus tell_rows(TrainBench *b, RtRanks *r, RowsSent before, const RtRebalance *rebalance, RtRebalanced moved, RtError *e) {
    RowsSent sent = rows_sent(r);
    int64_t sums[] = {sent.messages - before.messages, sent.bytes - before.bytes};
    RT_TRY(rt_sum_over(r, RT_GROUP_DATA, sums, 2, e));
    if (r->rank || !b->facts || !r->rows.all) return RT_OK;
    double steps = (double)(b->steps + b->traced);
    json_object_set_new(b->facts, "rows_under_way_ms", json_real((double)r->rows.under_way_ns / 1e6 / steps));
    json_object_set_new(b->facts, "rows_exposed_ms", json_real((double)r->rows.exposed_ns / 1e6 / steps));
    json_object_set_new(b->facts, "most_rows_over_mean", json_real((double)r->rows.most * rt_expert_ranks(r->mesh) / (double)r->rows.all));
    if (rebalance) json_object_set_new(b->facts, "experts_moved", json_integer(moved.experts));
    if (rebalance) json_object_set_new(b->facts, "moves_ms_a_step", json_real(moved.seconds * 1e3 / (steps + (double)b->warm)));
    if (!sums[0]) return RT_OK;
    json_object_set_new(b->facts, "rows_net_messages", json_real((double)sums[0] / steps));
    json_object_set_new(b->facts, "rows_net_mb", json_real((double)sums[1] / 1e6 / steps));
    return RT_OK;
}

static void tell_steps(TrainBench *b, const RtStepWork *w, double *took) {
    RtPlanInstance *p = w->p;
    double megabytes = peak_megabytes(), tokens = (double)(rt_work_sequences(w) * w->in.sequence);
    int ranks = rt_n_ranks(p->ranks);
    Machine m;
    if (!machine_measure(&m, b->c->diag)) return;
    machine_better_arithmetic(&m, &b->before);
    RtLimits limits = machine_limits(&m, p->threads);
    double seconds = bench_median(took, (int)b->steps), rate = 3 * (double)w->waves * b->forward / seconds, peak = ranks * limits.fma;
    b->facts = json_pack("{s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:I}", "model", program_model_name(b->s->program), "threads",
                         ranks * p->threads, "step_tokens", (json_int_t)tokens, "tokens_s", tokens / seconds, "step_ms", seconds * 1e3,
                         "gflop_s", rate / 1e9, "fma_gflop_s", peak / 1e9, "share_of_fma", rate / peak, "peak_mb", megabytes,
                         "kernels", (int)p->plan->kernels.n, "launches",
                         (json_int_t)(launches(p, w->pass) * w->waves + launches(p, w->update)));
    if (ranks > 1) json_object_set_new(b->facts, "ranks", json_integer(ranks));
    if (b->traced && !tell_trace(b->c, p, &limits, (int)b->traced, b->facts)) {
        json_decref(b->facts);
        b->facts = NULL;
    }
}

static RtStatus open_rebalance(const TrainBench *b, const RtStepWork *w, RtRebalance **out, RtError *e) {
    double samples = (double)rt_work_sequences(w);
    RtRebalanceSetting setting;
    RT_TRY(rt_rebalance_setting(b->settings, (RtStepSize){samples * (double)w->in.sequence, samples, samples}, true, &setting, e));
    return rt_rebalance_open(w->p, w->pass, setting, out, e);
}

static RtStatus bench_rank(void *self, RtPlanInstance *p, RtError *e) {
    TrainBench *b = self;
    RtStepWork w;
    RtRebalance *rebalance = NULL;
    RtRebalanced moved = {0};
    RowsSent before = {0, 0};
    double *took = calloc((size_t)b->steps, sizeof *took);
    RtStatus status = took ? rt_work_open(p, b->settings, &w, e) : rt_fail(e, RT_NO_MEMORY, "no memory for times");
    if (status == RT_OK) {
        status = open_rebalance(b, &w, &rebalance, e);
        if (status == RT_OK) status = run_steps(b, &w, rebalance, took, &before, &moved, e);
        if (status == RT_OK && rt_rank(p->ranks) == 0) tell_steps(b, &w, took);
        else if (status == RT_OK && cli_value(b->c, "trace")) status = rt_trace_write(p, NULL, cli_value(b->c, "trace"), e);
        if (status == RT_OK && p->ranks) status = tell_rows(b, p->ranks, before, rebalance, moved, e);
        if (status == RT_OK && rt_rank(p->ranks) && !b->local) b->facts = json_object();
        rt_trace_end(p);
        rt_rebalance_close(rebalance);
        rt_work_close(&w);
    }
    if (status != RT_OK) rt_give_up(p->ranks, e);
    free(took);
    return status;
}

static json_t *train_facts(Cli *c, Session *s, const Ranks *ranks, const RtSettings *settings, double forward) {
    bool ok = true;
    TrainBench b = {.c = c, .s = s, .settings = settings, .local = ranks->local, .forward = forward, .warm = bench_number(c, "warmup", 0, 5, &ok),
                    .steps = bench_number(c, "steps", 1, 20, &ok),
                    .traced = wants_trace(c) ? cli_flag(c, "profile") ? PROFILED : 1 : 0};
    int threads;
    RtError e = {0};
    if (!ok || !ranks_threads(s, ranks, &threads) || !machine_measure_arithmetic(&b.before, c->diag)) return NULL;
    if (ranks_run(s, ranks, threads, bench_rank, &b, &e) != RT_OK) failed(c, &e);
    return b.facts;
}

// ---- generating ---------------------------------------------------------------------------------------------

// Work of the run that was the last one, and the least time it can take.
static RtWork last_work(const RtDecoder *d, const RtLimits *limits, double *least) {
    const RtPlanInstance *p = d->plan;
    RtWork sum = {0, 0, 0};
    *least = 0;
    for (uint32_t i = 0; i < p->program[d->program].n_steps; i++) {
        const RtStep *s = &p->step[p->program[d->program].first_step + i];
        RtWork w = rt_step_work(p, s);
        if (s->work != RT_ELEMENTWISE) sum.flops += w.flops;
        sum.bytes += w.bytes;
        sum.fixed_bytes += w.fixed_bytes;
        *least += rt_limit_seconds(limits, (RtWorkKind)s->work, w);
    }
    return sum;
}

// n ids to each place, whose texts stand `apart` ids from each other.
static RtStatus feed(RtDecoder *d, const int32_t *text, int64_t apart, int64_t n, RtError *e) {
    for (int64_t fed = 0; fed < n * d->places;) {
        rt_decoder_begin(d);
        while (fed < n * d->places && d->rows < d->max_rows) {
            int64_t left = n - fed % n, room = d->max_rows - d->rows, rows = left < room ? left : room;
            rt_decoder_add(d, (int)(fed / n), text + fed / n * apart + fed % n, rows);
            fed += rows;
        }
        if (d->plan->ranks) d->plan->ranks->few = d->rows <= d->plan->ranks->few_tokens;      // all ranks have as many
        rt_decoder_run(d);
        RT_TRY(rt_ranks_status(d->plan->ranks, e));
        RT_TRY(rt_decoder_balance(d, e));
    }
    return RT_OK;
}

static void restart(RtDecoder *d) {
    for (int place = 0; place < d->places; place++) rt_decoder_restart(d, place);
}

// Prompts, or single tokens behind one.
static RtStatus trace_runs(RtDecoder *d, bool tokens, const int32_t *text, int64_t apart, int64_t prompt, RtError *e) {
    int64_t all = prompt * d->places, rows = all < d->max_rows ? all : d->max_rows, pieces = (all + rows - 1) / rows;
    restart(d);
    if (tokens) RT_TRY(feed(d, text, apart, prompt, e));
    RT_TRY(rt_trace_begin(d->plan, (int)(PROFILED * (tokens ? 1 : pieces)), e));
    for (int i = 0; i < PROFILED; i++) {
        if (!tokens) restart(d);
        RT_TRY(feed(d, tokens ? text + prompt + i % 2 : text, apart, tokens ? 1 : prompt, e));
    }
    return RT_OK;
}

// As many sequences as there are places on the data ranks, fed in step.
typedef struct {
    const Session *s;
    const RtSettings *settings;
    int64_t prompt, tokens, rounds;
    const char *trace;           // on ranks: a file, or NULL
    bool    decode;              // of single tokens
    json_t *facts;               // the first rank's
} GenerateBench;

// What this rank has sent so far in steps of the plan.
static RtTraffic sent_by(const RtRanks *ranks) {
    RtTraffic all = {0};
    if (!ranks) return all;
    RtCommCounters n = rt_comm_counters(ranks->comm);
    for (int kind = 0; kind < RT_COMM_KINDS; kind++)
        for (size_t link = 0; link < sizeof n.plan_sent[0] / sizeof n.plan_sent[0][0]; link++) {
            all.messages += n.plan_sent[kind][link].messages;
            all.bytes += n.plan_sent[kind][link].bytes;
        }
    return all;
}

// A decoder with room for all of it, and first weights.
static RtStatus open_decoder(const GenerateBench *b, RtPlanInstance *p, RtDecoder *d, RtError *e) {
    RT_TRY(rt_decoder_open(p, d, e));
    if (b->prompt + b->tokens > d->max_context)
        return rt_fail(e, RT_BAD_SETTING, "%lld + %lld tokens do not fit in generate.context, which is %lld", (long long)b->prompt,
                       (long long)b->tokens, (long long)d->max_context);
    if (p->ranks) RT_TRY(rt_slots_begin(p->ranks->table, p->plan, b->settings->placement, b->settings->seed, e));
    return rt_init(p, b->settings->seed, e);
}

// text: [places, prompt + tokens]; took: [rounds] of the prompts, then [rounds, tokens].
// *sent: in the last round, behind the prompts.
static RtStatus feed_rounds(const GenerateBench *b, RtDecoder *d, int32_t *text, double *took, RtTraffic *sent, RtError *e) {
    RtRanks *ranks = d->plan->ranks;
    int64_t apart = b->prompt + b->tokens;
    RandomIds ids = {1 + (uint64_t)rt_data_rank(ranks), d->vocab, 0};
    for (int64_t i = 0; i < apart * d->places; i++) text[i] = next_id(&ids);
    for (int64_t r = -1; r < b->rounds; r++) {           // one round to touch all memory
        restart(d);
        for (int64_t i = 0; i <= b->tokens; i++) {
            int64_t begin_ns = rt_now_ns();
            RT_TRY(feed(d, i ? text + b->prompt + i - 1 : text, apart, i ? 1 : b->prompt, e));
            double *to = i ? took + b->rounds + (r * b->tokens + i - 1) : took + r;
            if (r >= 0) *to = (double)(rt_now_ns() - begin_ns) / 1e9;
            if (i == 0) *sent = sent_by(ranks);
        }
    }
    RtTraffic now = sent_by(ranks);
    *sent = (RtTraffic){.messages = now.messages - sent->messages, .bytes = now.bytes - sent->bytes};
    return RT_OK;
}

static json_t *generate_facts(Cli *c, Session *s, const RtSettings *settings) {
    bool ok = true;
    int64_t prompt = bench_number(c, "prompt", 1, 512, &ok), tokens = bench_number(c, "tokens", 2, 64, &ok), rounds = bench_number(c, "rounds", 1, 5, &ok);
    if (!ok) return NULL;
    GenerateBench bench = {.s = s, .settings = settings, .prompt = prompt, .tokens = tokens, .rounds = rounds};
    RtDecoder d = {0};
    RtTraffic none;
    RtError e = {0};
    json_t *facts = NULL;
    Machine before, m;
    ok = machine_measure_arithmetic(&before, c->diag) && (open_decoder(&bench, s->plan, &d, &e) == RT_OK || failed(c, &e));
    int64_t apart = prompt + tokens, n = d.places;
    int32_t *text = arena_array(c->arena, int32_t, apart * n);
    double *first = arena_array(c->arena, double, rounds * (tokens + 1)), *each = first + rounds;
    ok = ok && (feed_rounds(&bench, &d, text, first, &none, &e) == RT_OK || failed(c, &e));
    double megabytes = peak_megabytes();
    if (ok && machine_measure(&m, c->diag)) {
        machine_better_arithmetic(&m, &before);
        RtLimits limits = machine_limits(&m, s->plan->threads);
        double prefill = bench_median(first, (int)rounds), decode = bench_median(each, (int)(rounds * tokens)), least_prefill, least_decode;
        int64_t all = prompt * n, rows = all < d.max_rows ? all : d.max_rows;
        restart(&d);
        rt_decoder_begin(&d);
        for (int64_t left = rows, place = 0; left > 0; left -= prompt, place++)
            rt_decoder_add(&d, (int)place, text + place * apart, left < prompt ? left : prompt);
        rt_decoder_run(&d);
        RtWork a = last_work(&d, &limits, &least_prefill);
        restart(&d);
        feed(&d, text, apart, prompt + tokens / 2, &e);      // one rank's can't fail
        feed(&d, text, apart, 1, &e);
        RtWork b = last_work(&d, &limits, &least_decode);
        double whole = (double)all / (double)rows;              // pieces, the last one perhaps a part
        double read = machine_bandwidth(&m, m.level[LEVEL_DRAM].read, s->plan->threads);
        facts = json_pack("{s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "model", program_model_name(s->program), "threads",
                          s->plan->threads, "batch", (json_int_t)n, "prefill_tokens_s", (double)all / prefill, "prefill_gflop_s",
                          a.flops * whole / prefill / 1e9, "fma_gflop_s", limits.fma / 1e9, "bf16_dot_gflop_s",
                          limits.bf16_dot / 1e9, "decode_tokens_s", (double)n / decode, "decode_step_ms", decode * 1e3, "weights_mb_a_step",
                          b.fixed_bytes / 1e6, "decode_gb_s", b.fixed_bytes / decode / 1e9, "dram_read_gb_s", read / 1e9, "peak_mb", megabytes, "kernels",
                          (int)s->plan->plan->kernels.n);
        json_object_set_new(facts, "share_of_fma_in_prefill", json_real(a.flops * whole / prefill / limits.fma));
        json_object_set_new(facts, "share_of_limit_in_prefill", json_real(least_prefill * whole / prefill));
        json_object_set_new(facts, "share_of_limit_in_decode", json_real(least_decode / decode));
        json_object_set_new(facts, "share_of_dram_read_in_decode", json_real(b.fixed_bytes / decode / read));
        if (wants_trace(c) && !((trace_runs(&d, cli_flag(c, "decode"), text, apart, prompt, &e) == RT_OK || failed(c, &e)) &&
                                tell_trace(c, s->plan, &limits, PROFILED, facts))) {
            json_decref(facts);
            facts = NULL;
        }
    }
    rt_trace_end(s->plan);
    rt_decoder_close(&d);
    return facts;
}

static RtStatus bench_generate_rank(void *self, RtPlanInstance *p, RtError *e) {
    GenerateBench *b = self;
    RtDecoder d = {0};
    int32_t *text = NULL;
    double *took = calloc((size_t)(b->rounds * (b->tokens + 1)), sizeof *took);
    RtStatus s = open_decoder(b, p, &d, e);
    if (s == RT_OK) text = calloc((size_t)((b->prompt + b->tokens) * d.places), sizeof *text);
    if (s == RT_OK && (!text || !took)) s = rt_fail(e, RT_NO_MEMORY, "no memory for times");
    s = rt_agree(p->ranks, s, e);
    RtTraffic sent;
    if (s == RT_OK) s = rt_decoder_rebalance(&d, b->settings, e);
    if (s == RT_OK) s = feed_rounds(b, &d, text, took, &sent, e);
    if (s == RT_OK && b->trace) s = trace_runs(&d, b->decode, text, b->prompt + b->tokens, b->prompt, e);
    if (s == RT_OK && b->trace) s = rt_agree(p->ranks, rt_trace_write(p, NULL, b->trace, e), e);
    rt_trace_end(p);
    if (s == RT_OK && rt_rank(p->ranks) == 0) {
        int n = rt_data_ranks(p->ranks) * d.places;
        double decode = bench_median(took + b->rounds, (int)(b->rounds * b->tokens));
        b->facts = json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:f}", "model", program_model_name(b->s->program), "ranks", rt_n_ranks(p->ranks),
                             "threads", p->threads, "batch", d.places, "sequences", n, "prefill_tokens_s",
                             n * (double)b->prompt / bench_median(took, (int)b->rounds), "decode_tokens_s", n / decode, "decode_step_ms", decode * 1e3);
        json_object_set_new(b->facts, "messages_a_step", json_real((double)sent.messages / (double)b->tokens));
        json_object_set_new(b->facts, "sent_kb_a_step", json_real((double)sent.bytes / 1e3 / (double)b->tokens));
        if (d.moved.considered) {
            json_object_set_new(b->facts, "most_rows_over_mean_before", json_real(d.moved.before));
            json_object_set_new(b->facts, "most_rows_over_mean_after", json_real(d.moved.after));
            json_object_set_new(b->facts, "experts_moved", json_integer(d.moved.experts));
        }
    } else if (s == RT_OK && rt_rank(p->ranks) && !b->facts && rt_comm_world_size() > 1) {
        b->facts = json_object();
    }
    if (s != RT_OK) rt_give_up(p->ranks, e);
    rt_decoder_close(&d);
    free(text);
    free(took);
    return s;
}

static json_t *generate_facts_of_ranks(Cli *c, Session *s, const Ranks *ranks, const RtSettings *settings) {
    bool ok = true;
    GenerateBench b = {.s = s, .settings = settings, .prompt = bench_number(c, "prompt", 1, 512, &ok),
                       .tokens = bench_number(c, "tokens", 2, 64, &ok), .rounds = bench_number(c, "rounds", 1, 5, &ok)};
    int threads;
    RtError e = {0};
    b.trace = cli_value(c, "trace");
    b.decode = cli_flag(c, "decode");
    if (cli_flag(c, "profile")) {
        diag_error(c->diag, (Span){0}, "--profile of --generate is of one rank");
        return NULL;
    }
    if (!ok || !ranks_threads(s, ranks, &threads)) return NULL;
    if (ranks_run(s, ranks, threads, bench_generate_rank, &b, &e) != RT_OK) failed(c, &e);
    return b.facts;
}

// ---- a model ------------------------------------------------------------------------------------------------

// NULL after an error.
static json_t *model_facts(Cli *c, const char *file) {
    Session s;
    Programs p;
    RtError e = {0};
    RtSettings *settings = NULL;
    json_t *facts = NULL;
    bool generate = cli_flag(c, "generate");
    Ranks ranks;
    if (!ranks_open(c, &ranks) || !session_open(&s, c, file, 0, NULL)) return NULL;
    bool shared = ranks.local || ranks.n > 1;
    if (!generate && !session_can_train(&s, ranks.n)) return NULL;
    double forward = generate ? 0 : forward_flops(&s);
    bool ok = (generate ? ranks_mesh_to_read(&s, &ranks, false, &s.train.mesh) : ranks_find_link(&ranks, c->diag) && ranks_mesh(&s, &ranks, &s.train.mesh)) &&
              session_programs(&s, generate ? WANT_RUN : WANT_TRAIN, &p) &&
              (!generate ? session_code(&s, (Graph *[]){p.pass, p.update}, 2)
               : shared  ? session_code(&s, (Graph *[]){p.run}, 1)
                         : session_start(&s, (Graph *[]){p.run}, 1));
    char *json = ok ? session_json(&s) : NULL;
    if (ok && rt_settings_open(json, s.base_dir, &settings, &e) != RT_OK) ok = failed(c, &e);
    if (ok && generate) ok = ranks_moves_to_read(&s, settings);
    free(json);
    if (ok && !generate && !settings->vocabulary) {
        diag_error(c->diag, (Span){0}, "%s takes no ids: there is nothing to feed it at random", program_model_name(s.program));
        ok = false;
    }
    if (ok && generate && shared) facts = generate_facts_of_ranks(c, &s, &ranks, settings);
    else if (ok) facts = generate ? generate_facts(c, &s, settings) : train_facts(c, &s, &ranks, settings, forward);
    rt_settings_close(settings);
    diag_print(c->diag, stderr, c->color);
    ranks_close(&ranks);
    session_close(&s);
    return facts;
}

int bench_model(Cli *c) {
    json_t *facts = model_facts(c, c->args.at[0]);
    if (!facts) return cli_finish(c, EXIT_WRONG);
    if (!json_object_size(facts)) return cli_finish(c, EXIT_DONE);     // the first rank tells
    json_t *profile = json_incref(json_object_get(facts, "profile"));
    bool table = !cli_flag(c, "json");
    if (table) json_object_del(facts, "profile");
    bench_show(c, facts, table ? profile : NULL);
    if (!table) json_decref(profile);
    return cli_finish(c, EXIT_DONE);
}

// ---- three models -------------------------------------------------------------------------------------------

// Each in a process of its own, whose peak of memory is its own.
int bench_step(Cli *c) {
    static const char *const model[] = {"tiny_mixtral", "bench_m30", "tiny_switch"};
    json_t *rows = json_array();
    for (size_t i = 0; i < sizeof model / sizeof *model; i++) {
        int ends[2];
        if (pipe(ends) != 0) return cli_fail(c, "no pipe for a process");
        fflush(NULL);
        pid_t child = fork();
        if (child < 0) return cli_fail(c, "no process for a model");
        if (child == 0) {
            close(ends[0]);
            json_t *facts = model_facts(c, arena_printf(c->arena, "%s/%s.moe", session_models_dir(c->arena), model[i]));
            bool ok = facts && json_dumpfd(facts, ends[1], 0) == 0;
            int status = cli_finish(c, ok ? EXIT_DONE : EXIT_WRONG);
            fflush(NULL);
            _exit(status);
        }
        close(ends[1]);
        json_t *facts = json_loadfd(ends[0], 0, NULL);
        close(ends[0]);
        int status;
        if (waitpid(child, &status, 0) != child || status || !facts) {
            json_decref(facts);
            json_decref(rows);
            return EXIT_WRONG;                             // the child has said why
        }
        json_array_append_new(rows, facts);
    }
    bench_show(c, json_object(), rows);
    return cli_finish(c, EXIT_DONE);
}
