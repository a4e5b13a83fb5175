// A training run.
//
//   open            settings, tokenizer, data, first values or a checkpoint, the run's files
//   step            batch -> pass (a wave) ... -> update -> numbers to metrics.jsonl, TensorBoard and the progress line
//   now and then    evaluation, checkpoint
//   end             at the last step, or after SIGINT or SIGTERM: the step is finished, then saved
//
// Where there are several ranks, each runs this loop.  What comes next is decided by all together, so that they never
// part ways; the first alone writes the run's files, but for checkpoints.
#include "runtime/train.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/checkpoint.h"
#include "runtime/eval.h"
#include "runtime/events.h"
#include "runtime/exec.h"
#include "runtime/fault.h"
#include "runtime/files.h"
#include "runtime/gather.h"
#include "runtime/monitor.h"
#include "runtime/progress.h"
#include "runtime/rebalance.h"
#include "runtime/report.h"
#include "runtime/schedule.h"
#include "runtime/step.h"
#include "runtime/stop.h"
#include "runtime/trace.h"
#include "runtime/usage.h"

// How long a rank may be waited for: memory is touched first in the first step, files are read.
static const int64_t FIRST_SILENCE_NS = 600000000000, SILENCE_NS = 30000000000;

enum {
    RECENT = 20,                               // steps that the rate shown is the mean of
    SKIPS_SAID = 3                             // skipped steps in a row that are told one by one
};

typedef struct {
    const RtTrainOpts *o;
    const RtSettings  *s;
    RtPlanInstance    *p;
    RtRanks *ranks;                 // NULL: this one is alone
    bool     first_rank;
    RtStepWork work;
    RtRebalance *rebalance;         // NULL: experts stay where they are
    int     eval;
    int64_t steps_run;              // by this process
    double  lr, mfu, tokens_per_s, step_seconds;   // of the last step
    RtEvalResult evaluated;         // after the last step; {0}: it was not
    RtTokenizer *tokenizer;
    RtData  *data;
    int64_t last_step;              // by train.length or train.stop
    RtStepSize size;
    RtSchedule schedule;
    double  eval_every, save_every; // in steps; 0: never; -1: by minutes
    // the run so far
    int64_t step, skipped, skipped_in_a_row, tokens, first_step;
    RtDataPos pos;
    double  seconds_before;         // of earlier processes
    int64_t begin_ns, saved_ns, evaluated_ns, saved_step;
    double  recent[RECENT];         // seconds of the last steps
    FILE    *metrics, *routes;      // routes: NULL: they are not recorded
    RtEvents *events;
    RtProgress progress;
    RtUsage usage;
    int     signal;                 // that ends the run, on whichever rank it came
    bool    notes_signals, warned;
} Run;

// ---- opening --------------------------------------------------------------------------------------------

static bool first_on_node(const RtRanks *r) {
    int node = r ? rt_comm_node(r->comm, r->rank) : 0;
    for (int i = 0; r && i < r->rank; i++)
        if (rt_comm_node(r->comm, i) == node) return false;
    return true;
}

static RtStatus open_data(Run *r, RtError *e) {
    const RtSettings *s = r->s;
    // one after the other until a cache is there: the first rank, the first of each other node, the rest
    int turn = first_on_node(r->ranks) ? !r->first_rank : 2;
    for (int i = 0; i < 3; i++) {
        RtStatus status = RT_OK;
        if (i == turn) status = rt_data_open(s, r->work.in.sequence, r->tokenizer, r->o->cache_dir, &r->data, e);
        RT_TRY(rt_agree(r->ranks, status, e));
    }
    double sequences = (double)rt_work_sequences(&r->work);
    r->size = (RtStepSize){.tokens = sequences * (double)r->work.in.sequence,
                           .samples = sequences,
                           .samples_per_epoch = (double)rt_data_samples(r->data)};
    return RT_OK;
}

static RtStatus plan_steps(Run *r, RtError *e) {
    const RtSettings *s = r->s;
    double length = rt_quantity_steps(s->length, r->size),
           stop = s->stop.unit == RT_MINUTES ? 0 : rt_quantity_steps(s->stop, r->size);
    if (length < 1)
        return rt_fail(e, RT_BAD_SETTING,
                       "train.length must be at least one step, counted in steps, tokens, samples or epochs");
    r->last_step = (int64_t)(stop >= 1 && stop < length ? stop : length);
    r->schedule = rt_schedule(s, r->size);
    r->eval_every = rt_quantity_steps(s->eval_every, r->size);
    r->save_every = rt_quantity_steps(s->save_every, r->size);
    return RT_OK;
}

static RtStatus check_same_run(const Run *r, const RtCkptInfo *c, const char *dir, RtError *e) {
    const char *arithmetic = RT_TEXT(r->p->plan, r->p->plan->arithmetic);
    if (c->data_hash != rt_data_hash(r->data))
        return rt_fail(e, RT_BAD_SETTING,
                       "%s was trained on other data: data.source, data.tokenizer, data.end, data.held_out, "
                       "data.shuffle or "
                       "train.sequence has changed",
                       dir);
    if (c->seed != r->s->seed)
        return rt_fail(e, RT_BAD_SETTING, "%s began with train.seed = %llu, now it is %llu", dir,
                       (unsigned long long)c->seed, (unsigned long long)r->s->seed);
    int64_t leaves = rt_batch_all_leaves(&r->work.in);
    if (c->leaves != leaves || c->waves != r->work.waves)
        return rt_fail(
            e, RT_BAD_SETTING,
            "%s has %lld lanes and %lld waves, now they are %lld and %lld: the sums would be others", dir,
            (long long)c->leaves, (long long)c->waves, (long long)leaves, (long long)r->work.waves);
    if (c->arithmetic && strcmp(c->arithmetic, arithmetic) != 0)
        return rt_fail(e, RT_BAD_SETTING,
                       "%s was computed with arithmetic %s, now it is %s: the bits would be others", dir,
                       c->arithmetic, arithmetic);
    return RT_OK;
}

static RtStatus first_values(Run *r, RtError *e) {
    RT_TRY(rt_init(r->p, r->s->seed, e));
    return r->o->init_from ? rt_ckpt_load_weights(r->o->init_from, r->p, e) : RT_OK;
}

static const char *plural(int64_t n) { return n == 1 ? "" : "s"; }

static bool holds_a_run(const char *dir) {
    char *metrics = rt_path("%s/metrics.jsonl", dir), *ckpt = rt_path("%s/ckpt", dir);
    bool holds = rt_is_file(metrics) || rt_is_dir(ckpt);
    free(metrics);
    free(ckpt);
    return holds;
}

// Takes up the newest whole checkpoint; none at all is a run that ended before its first one, and begins
// again.
static RtStatus resume(Run *r, RtError *e) {
    char *dir = NULL;
    RtCkptSkipped damaged = {0};
    if (!rt_is_dir(r->o->run_dir))
        return rt_fail(e, RT_IO, "cannot go on with %s: there is no such folder", r->o->run_dir);
    RtCkptInfo c = {.owned = false};
    RtStatus s = rt_ckpt_load_newest(r->o->run_dir, r->p, &c, &dir, &damaged, e);
    if (s == RT_OK && !dir) {
        if (holds_a_run(r->o->run_dir))
            rt_progress_say(&r->progress, "%s holds no checkpoint yet: beginning at step 1", r->o->run_dir);
        return first_values(r, e);
    }
    RT_TRY(s);
    if (damaged.n)
        rt_progress_say(&r->progress, "passing over %d damaged or half-written checkpoint%s: %s", damaged.n, plural(damaged.n),
                        damaged.why);
    s = check_same_run(r, &c, dir, e);
    if (s == RT_OK) {
        r->step = r->saved_step = c.step;
        rt_page->step = r->step;
        r->skipped = c.skipped_steps;
        r->tokens = c.tokens;
        r->pos = c.data;
        r->seconds_before = c.seconds;
        rt_progress_say(&r->progress, "going on from %s", dir);
    }
    rt_ckpt_free(&c);
    free(dir);
    return s;
}

// Lines of steps that come after the checkpoint will be written again: cut them off.
static void cut_metrics(const char *path, int64_t step) {
    RtMap m;
    if (rt_map_file(path, &m, NULL) != RT_OK) return;
    size_t keep = 0;
    while (keep < m.bytes) {
        const char *line = (const char *)m.data + keep, *end = memchr(line, '\n', m.bytes - keep);
        static const char begin[] = "{\"step\": ";
        if (!end || (size_t)(end - line) < sizeof begin || memcmp(line, begin, sizeof begin - 1) != 0) break;
        if (strtoll(line + sizeof begin - 1, NULL, 10) > step) break;
        keep = (size_t)(end + 1 - (const char *)m.data);
    }
    bool whole = keep == m.bytes;
    rt_unmap(&m);
    if (!whole && truncate(path, (off_t)keep) != 0) unlink(path);
}

static RtStatus open_append(const char *dir, const char *name, FILE **out, RtError *e) {
    char *path = rt_path("%s/%s", dir, name);
    *out = fopen(path, "a");
    RtStatus s = *out ? RT_OK : rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
    free(path);
    return s;
}

static RtStatus open_routes(Run *r, RtError *e) {
    char *dir = rt_path("%s/routes", r->o->run_dir), name[40];
    snprintf(name, sizeof name, "rank-%04d.jsonl", rt_rank(r->ranks));
    RtStatus s = rt_make_dirs(dir, e);
    if (s == RT_OK) s = open_append(dir, name, &r->routes, e);
    free(dir);
    return s;
}

// What the first rank shows, every other one writes down, where it can.
static void open_rank_log(Run *r) {
    char name[40], *dir = rt_path("%s/log", r->o->run_dir);
    snprintf(name, sizeof name, "rank-%04d.log", rt_rank(r->ranks));
    if (rt_make_dirs(dir, NULL) == RT_OK) open_append(dir, name, &r->progress.log, NULL);
    free(dir);
}

static RtStatus open_outputs(Run *r, RtError *e) {
    const char *dir = r->o->run_dir;
    if (r->o->record_routes && r->ranks) RT_TRY(open_routes(r, e));
    if (!r->first_rank) {
        open_rank_log(r);
        return RT_OK;
    }
    RT_TRY(rt_make_dirs(dir, e));
    if (r->o->resume) {
        char *path = rt_path("%s/metrics.jsonl", dir);
        cut_metrics(path, r->step);
        free(path);
    }
    RT_TRY(open_append(dir, "metrics.jsonl", &r->metrics, e));
    RT_TRY(open_append(dir, "train.log", &r->progress.log, e));
    return rt_events_open(dir, r->step + 1, &r->events, e);
}

static RtStatus open_rebalance(Run *r, RtError *e) {
    RtRebalanceSetting s;
    RT_TRY(rt_rebalance_setting(r->s, r->size, true, &s, e));
    return rt_rebalance_open(r->p, r->work.pass, s, &r->rebalance, e);
}

static void say_start(Run *r) {
    RtProgress *g = &r->progress;
    const RtPlan *plan = r->p->plan;
    RtMesh mesh = r->ranks ? r->ranks->mesh : (RtMesh){1, 1, 1, 0};
    int64_t lanes = rt_batch_all_leaves(&r->work.in);
    char a[32], b[32], c[32], lower[64] = "", etp[24] = "";
    if (mesh.etp) snprintf(etp, sizeof etp, " (etp %d)", mesh.etp);
    rt_progress_say(g, "%s: %s parameters", r->o->model_name ? r->o->model_name : "model",
                    rt_thousands(rt_parameters(r->p), a));
    rt_progress_say(g, "step: %s tokens = %lld wave%s x %lld lane%s x %lld sequence%s of %lld; %d thread%s",
                    rt_thousands((int64_t)r->size.tokens, a), (long long)r->work.waves, plural(r->work.waves),
                    (long long)lanes, plural(lanes), (long long)r->work.in.batch,
                    plural(r->work.in.batch), (long long)r->work.in.sequence, r->p->threads, plural(r->p->threads));
    if (r->ranks)
        rt_progress_say(g, "ranks: %d = dp %d x ep %d x tp %d%s, %lld lane%s each", r->ranks->n, mesh.dp, mesh.ep, mesh.tp,
                        etp,
                        (long long)r->work.in.leaves, plural(r->work.in.leaves));
    rt_progress_say(g, "data: %s tokens%s: %s samples to train on, %s held out",
                    rt_thousands(rt_data_tokens(r->data), a), rt_data_cached(r->data) ? " (cached)" : "",
                    rt_thousands(rt_data_samples(r->data), b), rt_thousands(rt_data_held_out(r->data), c));
    if (plan->lower_bound_bytes)
        snprintf(lower, sizeof lower, ", %.2f x the lower bound",
                 (double)plan->step_bytes / (double)plan->lower_bound_bytes);
    rt_progress_say(g, "memory: %.1f MB kept between steps, %.1f MB for a step%s",
                    (double)plan->persistent_bytes / 1e6, (double)plan->step_bytes / 1e6, lower);
    if (r->o->startup) rt_progress_say(g, "%s", r->o->startup);
    if (r->step < r->last_step)
        rt_progress_say(g, "writing to %s, steps %lld to %lld", r->o->run_dir, (long long)r->step + 1,
                        (long long)r->last_step);
}

// Ranks that don't do the same would end in nonsense, or wait for each other for ever.
static RtStatus check_same_everywhere(Run *r, RtError *e) {
    if (!r->ranks) return RT_OK;
    const RtPlan *plan = r->p->plan;
    RtCommFact fact[] = {{"the program", plan->graph_hash},
                         {"the data", rt_data_hash(r->data)},
                         {"train.seed", r->s->seed},
                         {"train.lanes", (uint64_t)rt_batch_all_leaves(&r->work.in)},
                         {"train.batch", (uint64_t)rt_work_sequences(&r->work)},
                         {"--resume", r->o->resume}};
    return rt_comm_same(r->ranks->comm, fact, sizeof fact / sizeof *fact, e);
}

static RtStatus open_work(Run *r, RtError *e) {
    RT_TRY(rt_fault_open(e));
    RT_TRY(rt_fault(FAULT_START, rt_rank(r->ranks), 0, e));
    RT_TRY(rt_work_open(r->p, r->s, &r->work, e));
    r->eval = rt_program(r->p, "eval");
    if (r->first_rank && !r->o->resume && holds_a_run(r->o->run_dir))
        return rt_fail(e, RT_BAD_SETTING,
                       "%s already holds a run: go on with --resume, or choose another folder",
                       r->o->run_dir);
    return rt_open_tokenizer(r->s, &r->tokenizer, e);
}

static RtStatus begin(Run *r, RtError *e) {
    if (r->ranks) RT_TRY(rt_slots_begin(r->ranks->table, r->p->plan, r->s->placement, r->s->seed, e));
    RT_TRY(open_rebalance(r, e));
    RT_TRY(r->o->resume ? resume(r, e) : first_values(r, e));
    r->first_step = r->progress.first_step = r->step + 1;
    return open_outputs(r, e);
}

static RtStatus open_run(Run *r, RtError *e) {
    RT_TRY(rt_agree(r->ranks, open_work(r, e), e));
    RT_TRY(open_data(r, e));
    RT_TRY(check_same_everywhere(r, e));
    RT_TRY(rt_agree(r->ranks, plan_steps(r, e), e));
    rt_progress_open(&r->progress, r->o->quiet || !r->first_rank ? NULL : r->o->out, 1, r->last_step);
    RT_TRY(rt_agree(r->ranks, begin(r, e), e));
    say_start(r);
    rt_stop_open();
    r->notes_signals = true;
    r->begin_ns = r->saved_ns = r->evaluated_ns = rt_now_ns();
    return RT_OK;
}

static void close_run(Run *r) {
    rt_progress_close(&r->progress);
    rt_rebalance_close(r->rebalance);
    rt_events_close(r->events);
    if (r->metrics) fclose(r->metrics);
    if (r->routes) fclose(r->routes);
    rt_data_close(r->data);
    rt_tokenizer_close(r->tokenizer);
    rt_work_close(&r->work);
    if (r->notes_signals) rt_stop_close();
}

// ---- a step ---------------------------------------------------------------------------------------------

static double run_seconds(const Run *r) {
    return r->seconds_before + (double)(rt_now_ns() - r->begin_ns) / 1e9;
}

static void put_number(FILE *f, const char *name, double x) {
    if (isfinite(x)) fprintf(f, ", \"%s\": %.9g", name, x);
    else fprintf(f, ", \"%s\": null", name);                    // JSON knows no NaN
}

// One line a step; with the held-out numbers where the step was followed by an evaluation.
static void write_numbers(Run *r) {
    FILE *f = r->metrics;
    int64_t step = r->step;
    if (!r->first_rank) return;
    fprintf(f, "{\"step\": %lld", (long long)step);
    put_number(f, "loss", r->work.report.loss);
    rt_events_scalar(r->events, step, "loss/total", r->work.report.loss);
    for (int i = 0; i < r->work.report.n; i++) {
        const RtReportValue *v = &r->work.report.value[i];
        char tag[128], name[96];
        snprintf(name, sizeof name, v->kind == REPORT_LOAD ? "%s_max_over_mean" : "%s", v->name);
        snprintf(tag, sizeof tag, "%s/%s", v->kind == REPORT_LOSS ? "loss" : "metric", name);
        if (strcmp(name, "loss") != 0) put_number(f, name, v->value);
        rt_events_scalar(r->events, step, tag, v->value);
    }
    put_number(f, "lr", r->lr);
    put_number(f, "tokens_per_s", r->tokens_per_s);
    if (r->mfu >= 0) put_number(f, "mfu", r->mfu);
    if (r->evaluated.tokens) {
        put_number(f, "eval_loss", r->evaluated.ce);
        put_number(f, "eval_perplexity", r->evaluated.perplexity);
        put_number(f, "eval_bits_per_byte", r->evaluated.bits_per_byte);
        r->evaluated = (RtEvalResult){0};
    }
    fprintf(f, ", \"tokens\": %lld, \"skipped_steps\": %lld", (long long)r->tokens, (long long)r->skipped);
    put_number(f, "seconds", run_seconds(r));
    fputs("}\n", f);
    if (fflush(f) != 0 && !r->warned) {
        rt_progress_say(&r->progress, "cannot write metrics.jsonl: %s; training goes on", strerror(errno));
        r->warned = true;
    }
    rt_events_scalar(r->events, step, "train/lr", r->lr);
    rt_events_scalar(r->events, step, "train/tokens_per_s", r->tokens_per_s);
    rt_events_flush(r->events, NULL);
}

// The first number reported under one of these names, or -1.
static double reported(const RtReport *report, RtReportKind kind, const char *begin) {
    for (int i = 0; i < report->n; i++)
        if (report->value[i].kind == kind && !strncmp(report->value[i].name, begin, strlen(begin)))
            return report->value[i].value;
    return -1;
}

// Mean seconds of the last steps.  The first step of a process touches its memory for the first time: it
// counts as long as there is no other.
static double recent_mean(Run *r, double seconds) {
    int64_t k = r->steps_run++, n = k < 1 ? 1 : k < RECENT ? k : RECENT;
    r->recent[k < 1 ? 0 : (k - 1) % RECENT] = seconds;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += r->recent[i];
    return sum / (double)n;
}

static void next_batch(void *self, RtSlice slice, int32_t *tokens, int32_t *labels) {
    Run *r = self;
    rt_data_batch(r->data, &r->pos, slice, tokens, labels);
}

static RtStatus do_step(Run *r, RtError *e) {
    int64_t step = r->step + 1, traced = r->o->trace_step ? r->o->trace_step : r->first_step + 2;
    if (traced > r->last_step) traced = r->last_step;
    bool trace = r->o->trace_path && step == traced;
    if (trace) RT_TRY(rt_trace_begin(r->p, (int)r->work.waves + 1, e));
    int64_t begin_ns = rt_now_ns();
    double lr = rt_schedule_lr(&r->schedule, step);
    rt_page->step = step;
    if (r->ranks) {
        r->ranks->step = step;
        bool patient = step == r->first_step || rt_is_supervised();       // the supervisor looks after silence
        rt_comm_step(r->ranks->comm, step);
        rt_comm_silence(r->ranks->comm, patient ? FIRST_SILENCE_NS : SILENCE_NS);
    }
    RT_TRY(rt_fault(FAULT_STEP, rt_rank(r->ranks), step, e));
    if (r->rebalance) rt_rebalance_begin(r->rebalance);
    RtCommCounters before = r->ranks ? rt_comm_counters(r->ranks->comm) : (RtCommCounters){.ops = {0}};
    if (r->ranks) r->ranks->routes = r->routes;
    RT_TRY(rt_work_step(&r->work, (RtStepNumbers){step, step - r->skipped, r->tokens, lr}, next_batch, r, e));
    if (r->ranks) {
        r->ranks->routes = NULL;               // evaluations are not recorded
        rt_usage_add(&r->usage, &before, r->ranks->comm);
    }
    double seconds = r->step_seconds = (double)(rt_now_ns() - begin_ns) / 1e9;

    r->step = step;
    rt_page_phase(PHASE_TRAIN);
    r->tokens += (int64_t)r->size.tokens;
    if (rt_report_get(&r->work.report, "finite", 1) == 0) {
        r->skipped++;
        r->skipped_in_a_row++;
        if (r->skipped_in_a_row <= SKIPS_SAID)
            rt_progress_say(&r->progress,
                            "step %lld: the gradient is not finite; the step is skipped (%lld so far)%s",
                            (long long)step, (long long)r->skipped,
                            r->skipped_in_a_row == SKIPS_SAID ? "; more in a row are only counted" : "");
    } else {
        r->skipped_in_a_row = 0;
    }
    double recent = recent_mean(r, seconds);
    // MFU counts the model's work, backward as twice forward (Chowdhery et al., PaLM, 2022, appendix B), so
    // what is computed again doesn't count
    double forward = r->eval >= 0 ? rt_program_flops(r->p, r->eval) : rt_program_flops(r->p, r->work.pass) / 3;
    double flops = 3 * (double)r->work.waves * forward;
    double at_peak = r->o->limits.fma > 0 ? flops / r->o->limits.fma : 0;    // seconds; 0: unknown
    r->lr = lr;
    r->mfu = at_peak > 0 ? at_peak / seconds : -1;
    r->tokens_per_s = r->size.tokens / seconds;
    rt_progress_step(&r->progress,
                     &(RtProgressLine){.step = step,
                                       .loss = r->work.report.loss,
                                       .tokens_per_s = r->size.tokens / recent,
                                       .mfu = at_peak > 0 ? at_peak / recent : -1,
                                       .load = reported(&r->work.report, REPORT_LOAD, "load"),
                                       .drop = reported(&r->work.report, REPORT_DROP, "drop_rate"),
                                       .seconds_left = (double)(r->last_step - step) * recent,
                                       .skipped = r->skipped});
    if (trace) {
        RT_TRY(rt_trace_write(r->p, &r->o->limits, r->o->trace_path, e));
        rt_trace_end(r->p);
        if (r->first_rank) rt_progress_say(&r->progress, "trace of step %lld: %s", (long long)step, r->o->trace_path);
    }
    return RT_OK;
}

// ---- now and then ---------------------------------------------------------------------------------------

static bool is_due(double every, RtQuantity q, int64_t step, int64_t since_ns) {
    if (every < 0) return (double)(rt_now_ns() - since_ns) / 6e10 >= q.value;
    int64_t steps = (int64_t)every;
    return steps > 0 && step % steps == 0;
}

static bool time_is_over(const Run *r) {
    return r->s->stop.unit == RT_MINUTES && run_seconds(r) >= 60 * r->s->stop.value;
}

// What comes after a step, decided by all ranks together: a signal may have come to any of them, and the time is that
// of the first.
typedef enum { INTERRUPTED, TERMINATED, OVER, EVALUATE, SAVE, DECISIONS } Decision;

static RtStatus decide(Run *r, int32_t decision[DECISIONS], RtError *e) {
    const RtSettings *s = r->s;
    int signal_number = rt_stop_signal();
    decision[INTERRUPTED] = signal_number == SIGINT;
    decision[TERMINATED] = signal_number == SIGTERM || signal_number == SIGUSR2;
    decision[OVER] = r->step == r->last_step || (r->first_rank && time_is_over(r));
    decision[EVALUATE] = r->first_rank && is_due(r->eval_every, s->eval_every, r->step, r->evaluated_ns);
    decision[SAVE] = r->first_rank && is_due(r->save_every, s->save_every, r->step, r->saved_ns);
    decision[SAVE] |= rt_save_is_asked();
    RT_TRY(rt_any(r->ranks, decision, DECISIONS, e));
    r->signal = decision[TERMINATED] ? SIGTERM : decision[INTERRUPTED] ? SIGINT : 0;
    return RT_OK;
}

static RtStatus rebalance(Run *r, RtError *e) {
    RtRebalanced x;
    if (!r->rebalance) return RT_OK;
    RT_TRY(rt_rebalance_end(r->rebalance, r->step, r->step_seconds, r->last_step - r->step, &x, e));
    if (!x.considered || (x.unasked && !x.experts)) return RT_OK;
    void (*say)(RtProgress *, const char *, ...) = x.unasked ? rt_progress_note : rt_progress_say;
    if (x.experts)
        say(&r->progress, "step %lld: busiest rank at %.2f of the mean load; moved %lld experts, %.1f MB in %.0f ms: %.2f, %.1f ms less a step",
            (long long)r->step, x.before, (long long)x.experts, (double)x.bytes / 1e6, 1e3 * x.seconds, x.after, 1e3 * x.saves);
    else
        say(&r->progress, "step %lld: busiest rank at %.2f of the mean load; experts stay: %.2f would save %.1f ms a step and take %.1f ms",
            (long long)r->step, x.before, x.after, 1e3 * x.saves, 1e3 * x.takes);
    return RT_OK;
}

static RtStatus evaluate(Run *r, RtError *e) {
    if (r->eval < 0 || rt_data_held_out(r->data) == 0) return RT_OK;
    RtEvalResult v;
    RtStatus s = rt_eval_until(r->p, r->data, r->s->seed, 0, rt_is_stopped, &v, e);
    if (s == RT_STOPPED) {                            // whoever sent the signal waits for the checkpoint
        int32_t decision[DECISIONS];
        return decide(r, decision, e);
    }
    RT_TRY(s);
    rt_progress_say(&r->progress,
                    "step %lld: held out: loss %.4f, perplexity %.3f, %.4f bits per byte (%.1f s)",
                    (long long)r->step, v.ce, v.perplexity, v.bits_per_byte, v.seconds);
    r->evaluated = v;
    if (r->first_rank) {
        rt_events_scalar(r->events, r->step, "eval/loss", v.ce);
        rt_events_scalar(r->events, r->step, "eval/bits_per_byte", v.bits_per_byte);
    }
    r->evaluated_ns = rt_now_ns();
    return RT_OK;
}

// A full disk ends nothing but the checkpoint, unless it is the last one.
static RtStatus save(Run *r, bool last, RtError *e) {
    if (r->saved_step == r->step) return RT_OK;
    char *settings = rt_settings_json(r->s), *dir = NULL;
    RtCkptInfo info = {.step = r->step,
                       .tokens = r->tokens,
                       .skipped_steps = r->skipped,
                       .data = r->pos,
                       .data_hash = rt_data_hash(r->data),
                       .seed = r->s->seed,
                       .leaves = rt_batch_all_leaves(&r->work.in),
                       .waves = r->work.waves,
                       .seconds = run_seconds(r),
                       .model_file = r->o->model_file,
                       .model_text = r->o->model_text,
                       .settings = settings};
    int64_t begin_ns = rt_now_ns();
    rt_page_phase(PHASE_SAVE);
    RtStatus s = rt_ckpt_save(r->o->run_dir, r->p, &info, r->s->keep, &dir, e);
    if (s == RT_OK) {
        rt_progress_say(&r->progress, "saved %s (%.1f s)", dir, (double)(rt_now_ns() - begin_ns) / 1e9);
        r->saved_step = rt_page->saved = r->step;
    } else if (s == RT_IO && !last) {
        rt_progress_say(&r->progress, "%s; training goes on", e->text);
        s = RT_OK;
    }
    r->saved_ns = rt_now_ns();
    rt_save_is_done();
    rt_page_phase(PHASE_TRAIN);
    free(settings);
    free(dir);
    return s;
}

static RtStatus run_steps(Run *r, RtError *e) {
    while (r->step < r->last_step && !r->signal) {
        int32_t decision[DECISIONS];
        RT_TRY(do_step(r, e));
        RT_TRY(rebalance(r, e));
        RT_TRY(decide(r, decision, e));
        bool last = decision[OVER];
        if (!r->signal && (last || decision[EVALUATE])) RT_TRY(evaluate(r, e));
        write_numbers(r);
        if (last || r->signal || decision[SAVE]) RT_TRY(save(r, last || r->signal, e));
        if (last) break;
    }
    return r->signal && r->step < r->last_step ? RT_STOPPED : RT_OK;
}

// Other ranks than the first have nobody to tell why they ended; the first that fails ends all.
static void fail_for_all(Run *r, RtError *e) {
    if (!r->first_rank) rt_progress_say(&r->progress, "step %lld: %s", (long long)r->step, e->text);
    rt_give_up(r->ranks, e);
}

RtStatus rt_train(const RtTrainOpts *o, RtPlanInstance *p, RtTrainResult *result, RtError *e) {
    RtError unasked;
    if (!e) e = &unasked;
    Run r = {.o = o, .s = o->settings, .p = p, .ranks = p->ranks, .saved_step = -1};
    r.first_rank = rt_rank(r.ranks) == 0;
    rt_monitor_plan(p);
    RtStatus s = open_run(&r, e);
    if (s == RT_OK && r.step >= r.last_step)
        rt_progress_say(&r.progress, "step %lld of %lld is done: there is nothing to do", (long long)r.step,
                        (long long)r.last_step);
    if (s == RT_OK) s = run_steps(&r, e);
    if (s == RT_OK || s == RT_STOPPED) {
        RtStatus told = r.steps_run ? rt_usage_write(&r.usage, r.p, r.steps_run, o->run_dir, e) : RT_OK;
        if (told != RT_OK) s = told;
    }
    if (s == RT_STOPPED) {
        rt_fail(e, RT_STOPPED, "stopped by signal %d after step %lld; go on with --resume", r.signal,
                (long long)r.step);
        rt_progress_say(&r.progress, "stopped by signal %d after step %lld", r.signal, (long long)r.step);
    } else if (s != RT_OK) {
        fail_for_all(&r, e);
    }
    if (result) {
        double seconds = r.begin_ns ? (double)(rt_now_ns() - r.begin_ns) / 1e9 : 0;
        double tokens = (double)(r.step - r.first_step + 1) * r.size.tokens;
        *result = (RtTrainResult){.step = r.step,
                                  .skipped_steps = r.skipped,
                                  .tokens = r.tokens,
                                  .loss = r.work.report.loss,
                                  .seconds = seconds,
                                  .tokens_per_s = seconds > 0 && r.first_step ? tokens / seconds : 0};
    }
    close_run(&r);
    rt_monitor_plan(NULL);
    rt_page_phase(PHASE_END);
    return s;
}
