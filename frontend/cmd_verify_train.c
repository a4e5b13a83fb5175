// moec verify --train: a training curve step by step against one recorded elsewhere, by the recipe it was
// made with.
//
//   batches.safetensors   batches i32[steps, sequences, tokens + 1]
//   curve_f64.csv         step,loss,ce,aux,grad_norm,router_margin,lr: of each step, before its update
//   final.safetensors     weights after the last step
#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_ranks.h"
#include "frontend/cmd_verify.h"
#include "runtime/schedule.h"

static const double loss_tolerance = 1e-5, norm_share = 1e-4, weight_tolerance = 1e-4, lr_share = 1e-9,
                    least_margin = 1e-6;

typedef struct {
    double loss, ce, aux, grad_norm, margin, lr;
} Point;

typedef struct {
    Cli *cli;
    Session s;
    Runner runner;
    Ranks ranks;
    StFiles *files, *batch_files, *final_files;
    Weights w;
    float **value;
    const StTensor *batches;
    int64_t steps, B, S;
    int32_t *ids;
    Point *want, *got;
    RtSettings *settings;
    RtSchedule schedule;
    int64_t excused_from; // steps after this one are excused; 0: none
} Curve;

// ---- reading -------------------------------------------------------------------------------------------

static bool read_curve(Curve *v, const char *dir) {
    static const char head[] = "step,loss,ce,aux,grad_norm,router_margin,lr";
    const char *name = arena_printf(v->s.arena, "%s/curve_f64.csv", dir);
    const char *text = read_file(v->s.arena, name, NULL);
    if (!text) {
        diag_error(v->s.diag, (Span){0}, "%s: %s", name, strerror(errno));
        return false;
    }
    if (strncmp(text, head, strlen(head)) != 0) {
        diag_error(v->s.diag, (Span){0}, "%s: the first line must be %s", name, head);
        return false;
    }
    v->want = arena_array(v->s.arena, Point, v->steps + 1);
    for (int64_t i = 0; i < v->steps; i++) {
        Point *p = &v->want[i];
        double step;
        text = strchr(text, '\n');
        if (!text ||
            sscanf(++text, "%lf,%lf,%lf,%lf,%lf,%lf,%lf", &step, &p->loss, &p->ce, &p->aux, &p->grad_norm,
                   &p->margin, &p->lr) != 7 ||
            step != (double)(i + 1)) {
            diag_error(v->s.diag, (Span){0}, "%s: line %lld is not step %lld with its six numbers", name,
                       (long long)i + 2, (long long)i + 1);
            return false;
        }
    }
    return true;
}

static bool open_file(Curve *v, const char *dir, const char *name, StFiles **out) {
    RtError e = {0};
    if (st_open(arena_printf(v->cli->arena, "%s/%s", dir, name), out, &e) == RT_OK) return true;
    diag_error(v->cli->diag, (Span){0}, "%s", e.text);
    return false;
}

static bool open_batches(Curve *v, const char *dir) {
    if (!open_file(v, dir, "batches.safetensors", &v->batch_files)) return false;
    v->batches = st_find(v->batch_files, "batches");
    if (!v->batches || v->batches->ndim != 3 || v->batches->dim[2] < 2 || !v->batches->elements) {
        diag_error(v->cli->diag, (Span){0},
                   "%s/batches.safetensors must hold batches: [steps, sequences, tokens + 1]", dir);
        return false;
    }
    v->steps = v->batches->dim[0];
    v->B = v->batches->dim[1];
    v->S = v->batches->dim[2] - 1;
    return true;
}

// What the curve was made with; the rest is the defaults of the language, whatever the model's blocks say.
static bool open_model(Curve *v, const char *dir) {
    Arena *a = v->cli->arena;
    const char *sets[] = {"train.dtype=f32",
                          "train.micro_batch=none",
                          "train.lanes=1",
                          "train.sum=none",
                          "train.lr=1e-3",
                          "train.lr_expert=1.0",
                          "train.schedule=cosine(warmup: 10 steps, floor: 0.1)",
                          "train.optimizer=adamw",
                          "train.clip=1.0",
                          "train.average=leaf",
                          "train.recompute=cheap",
                          "train.seed=0",
                          "train.stop=none",
                          "data.source=none",
                          arena_printf(a, "train.batch=%lld", (long long)v->B),
                          arena_printf(a, "train.sequence=%lld", (long long)v->S),
                          arena_printf(a, "train.length=%lld steps", (long long)v->steps)};
    if (!verify_open(&v->s, v->cli, dir, (int)(sizeof sets / sizeof *sets), sets)) return false;
    if (!ranks_mesh(&v->s, &v->ranks, &v->s.train.mesh)) return false;
    RtError e = {0};
    char *json = session_json(&v->s);
    RtStatus status = rt_settings_open(json, dir, &v->settings, &e);
    free(json);
    if (status != RT_OK) {
        diag_error(v->s.diag, (Span){0}, "%s", e.text);
        return false;
    }
    const Settings *t = v->s.settings;
    if (t->train.batch != v->B || t->train.sequence != v->S) {
        diag_error(
            v->s.diag, (Span){0},
            "the batches have %lld sequences of %lld tokens: train.batch and train.sequence cannot be others",
            (long long)v->B, (long long)v->S);
        return false;
    }
    v->schedule = rt_schedule(v->settings, (RtStepSize){.tokens = (double)(v->B * v->S),
                                                        .samples = (double)v->B,
                                                        .samples_per_epoch = (double)(v->B * v->steps)});
    return true;
}

// ---- training ------------------------------------------------------------------------------------------

static bool build_programs(Curve *v) {
    static const char *const meaning[] = {"simplify", "fuse-gating", "precision",
                                          "autodiff", "optimizer",   NULL};
    static const char *const meaning_update[] = {"simplify", NULL};
    Graph **program = arena_array(v->s.arena, Graph *, 2);
    if (v->runner.ref) {
        ElabOpts o = program_train_opts(v->s.program);
        program[0] = program_elaborate(v->s.program, v->s.arena, &o);
        if (!program[0] || !session_passes(&v->s, &program[0], meaning, &program[1])) return false;
        if (!program[1] || !session_passes(&v->s, &program[1], meaning_update, NULL)) return false;
    } else {
        Programs p;
        if (!session_programs(&v->s, WANT_TRAIN, &p)) return false;
        program[0] = p.pass;
        program[1] = p.update;
    }
    return runner_open(&v->runner, &v->s, program, 2, &v->w, v->value);
}

static void set_numbers(Curve *v, const char *program, int64_t step, int64_t wave) {
    const Settings *t = v->s.settings;
    Runner *r = &v->runner;
    double scale =
        1 / (double)(v->s.train.average_token ? v->B * v->S
                                              : t->train.lanes * t->train.waves); // all labels count
    int32_t rng[4] = {(int32_t)t->train.seed, (int32_t)(t->train.seed >> 32), (int32_t)(step - 1),
                      (int32_t)wave};
    if (runner_has_input(r, program, "rng")) runner_set_ints(r, program, "rng", rng, 4);
    runner_set_number(r, program, "step", (double)step);
    runner_set_number(r, program, "tokens_seen", (double)((step - 1) * v->B * v->S));
    runner_set_number(r, program, "wave", (double)wave);
    runner_set_number(r, program, "lr", rt_schedule_lr(&v->schedule, step));
    runner_set_number(r, program, "bias1", 1 - pow(t->train.optimizer.beta1, (double)step));
    runner_set_number(r, program, "bias2", 1 - pow(t->train.optimizer.beta2, (double)step));
    runner_set_number(r, program, "grad_scale", scale);
}

// The mean over leaves of the losses with this last segment; NULL: of the objective.
static double loss_of(const Outputs *out, const char *segment) {
    double sum = 0;
    for (int i = 0; i < out->n; i++) {
        const Output *o = &out->at[i];
        const char *dot = strrchr(o->name, '.');
        if (o->op != OP_LOSS || (segment && strcmp(dot ? dot + 1 : o->name, segment) != 0)) continue;
        for (int64_t k = 0; k < o->n; k++) sum += (segment ? 1 : o->weight) * o->at[k] / (double)o->n;
    }
    return sum;
}

static bool run_wave(Curve *v, int64_t step, int64_t wave, Outputs *out) {
    Runner *r = &v->runner;
    int64_t all = v->B / v->s.settings->train.waves, sequences = all / rt_data_ranks(r->ranks), n = sequences * v->S,
            first = wave * all + rt_data_rank(r->ranks) * sequences;
    int32_t *tokens = arena_array(v->s.arena, int32_t, n), *labels = arena_array(v->s.arena, int32_t, n);
    for (int64_t i = 0; i < n; i++) {
        const int32_t *row = v->ids + ((step - 1) * v->B + first + i / v->S) * (v->S + 1);
        tokens[i] = row[i % v->S];
        labels[i] = row[i % v->S + 1];
    }
    set_numbers(v, "pass", step, wave);
    r->wave = wave;
    return runner_set_ints(r, "pass", "tokens", tokens, n) &&
           runner_set_ints(r, "pass", "labels", labels, n) && runner_run(r, "pass", out);
}

static bool train_step(Curve *v, int64_t step) {
    Point *p = &v->got[step - 1];
    int64_t waves = v->s.settings->train.waves;
    Outputs out;
    p->lr = rt_schedule_lr(&v->schedule, step);
    for (int64_t wave = 0; wave < waves; wave++) {
        if (!run_wave(v, step, wave, &out)) return false;
        p->loss += loss_of(&out, NULL) / (double)waves;
        p->ce += loss_of(&out, "ce") / (double)waves;
        p->aux += loss_of(&out, "aux") / (double)waves;
    }
    set_numbers(v, "update", step, 0);
    if (!runner_run(&v->runner, "update", &out)) return false;
    const Output *norm = find_output(&out, OP_METRIC, "grad_norm");
    p->grad_norm = norm && norm->n == 1 ? norm->at[0] : NAN;
    return true;
}

// ---- comparing -----------------------------------------------------------------------------------------

// Largest deviation as a share of what is allowed.
static double step_share(const Point *got, const Point *want) {
    double share[] = {fabs(got->loss - want->loss) / loss_tolerance,
                      fabs(got->ce - want->ce) / loss_tolerance, fabs(got->aux - want->aux) / loss_tolerance,
                      fabs(got->grad_norm - want->grad_norm) / (norm_share * want->grad_norm),
                      fabs(got->lr - want->lr) / (lr_share * want->lr)};
    double most = 0;
    for (size_t i = 0; i < sizeof share / sizeof *share; i++)
        if (isnan(share[i]))
            return INFINITY;
        else if (share[i] > most)
            most = share[i];
    return most;
}

static void print_step(const Point *got, const Point *want, int64_t step, const char *verdict) {
    printf("%5lld  %10.6f  %9.1e %9.1e %9.1e  %9.4f  %9.1e  %8.1e  %s\n", (long long)step, got->loss,
           got->loss - want->loss, got->ce - want->ce, got->aux - want->aux, got->grad_norm,
           got->grad_norm / want->grad_norm - 1, got->lr, verdict);
}

// Returns how many steps fail; *worst, *at: the largest share.
static int compare_steps(Curve *v, bool all, bool quiet, double *worst, int64_t *at) {
    int failed = 0;
    *worst = 0;
    *at = 0;
    if (!quiet)
        printf("%5s  %10s  %9s %9s %9s  %9s  %9s  %8s\n", "step", "loss", "error", "ce error", "aux error",
               "norm", "rel error", "lr");
    for (int64_t i = 0; i < v->steps; i++) {
        double share = step_share(&v->got[i], &v->want[i]);
        bool excused = v->excused_from && i + 1 > v->excused_from, fails = !(share <= 1) && !excused;
        failed += fails;
        if (!excused && (!*at || share > *worst)) {
            *worst = share;
            *at = i + 1;
        }
        bool show = all || i == 0 || (i + 1) % 10 == 0 || (fails && failed <= 10);
        if (show && !quiet)
            print_step(&v->got[i], &v->want[i], i + 1,
                       fails                      ? "FAIL"
                       : excused && !(share <= 1) ? "excused"
                                                  : "ok");
        if (v->want[i].margin < least_margin && !v->excused_from) {
            v->excused_from = i + 1;
            printf("step %lld: the nearest routing decision is %.1e away (below %.0e); what follows is "
                   "excused\n",
                   (long long)i + 1, v->want[i].margin, least_margin);
        }
    }
    return failed;
}

static bool compare_final(Curve *v, Table *t) {
    Weights final;
    if (!weights_match(&v->s, v->final_files, "final.safetensors", "", true, &final)) return false;
    const double **now = arena_array(v->s.arena, const double *, final.n_params + 1);
    for (int i = 0; i < final.n_params; i++) {
        int64_t n = 1;
        for (int k = 0; k < final.param[i].ndim; k++) n *= final.param[i].dim[k];
        now[i] = runner_value(&v->runner, final.param[i].name, n);
        if (!now[i]) now[i] = arena_array(v->s.arena, double, n + 1);
    }
    for (int i = 0; i < final.matches.n; i++) {
        const HfMatch *m = &final.matches.at[i];
        const StTensor *tensor = final.source[m->tensor];
        double *want = verify_numbers(&v->s, tensor),
               *got = arena_array(v->s.arena, double, tensor->elements + 1);
        if (!want) return false;
        hf_view_gather(m->view, sizeof(double), (char *const *)now, (char *)got);
        Check *c = table_add(t, tensor->name, verify_shape(v->s.arena, tensor->ndim, tensor->dim),
                             largest_error(got, want, tensor->elements), weight_tolerance);
        c->folds = true;
        if (v->excused_from && c->verdict == CHECK_FAIL) c->verdict = CHECK_EXCUSED;
    }
    return true;
}

static bool train(Curve *v, const char *dir) {
    if (!ranks_open(v->cli, &v->ranks)) return false;
    v->runner.comm = v->ranks.comm;
    if (!open_batches(v, dir) || !open_model(v, dir) || !read_curve(v, dir)) return false;
    if (!verify_weights(&v->s, dir, &v->files, &v->w, &v->value) ||
        !open_file(v, dir, "final.safetensors", &v->final_files))
        return false;
    Val vocabulary = program_hyper(v->s.program, "V");
    int64_t most = INT32_MAX;
    if (vocabulary.kind == V_NUM && num_is_int(vocabulary.num, &most)) most--;
    v->ids = verify_ids(&v->s, v->batches, false, most);
    if (!v->ids || !build_programs(v)) return false;
    v->got = arena_array(v->s.arena, Point, v->steps + 1);
    for (int64_t step = 1; step <= v->steps; step++)
        if (!train_step(v, step)) return false;
    return true;
}

int cmd_verify_train(Cli *c, const char *dir) {
    Curve v = {.cli = c, .runner = {.ref = verify_is_ref(c), .f64 = cli_flag(c, "f64")}};
    int status = EXIT_WRONG;
    bool trained = train(&v, dir), first = rt_rank(v.ranks.among) == 0;
    if (trained && !first) {                               // the first rank compares
        Table t = {.arena = c->arena};
        status = compare_final(&v, &t) ? EXIT_DONE : EXIT_WRONG;
    } else if (trained) {
        double worst;
        int64_t at;
        bool all = cli_flag(c, "all");
        int failed = compare_steps(&v, all, c->quiet, &worst, &at);
        Table t = {.arena = c->arena, .many = "weights"};
        if (compare_final(&v, &t)) {
            const char *title = arena_printf(
                c->arena,
                "%s: %lld steps, %d FAIL, worst %.2g of its tolerance (step %lld); weights after them",
                basename(arena_strdup(c->arena, dir)), (long long)v.steps, failed, worst, (long long)at);
            status = table_print(&t, title, all, c->quiet);
            if (failed) status = EXIT_WRONG;
        }
    }
    runner_close(&v.runner);
    session_close(&v.s);
    rt_settings_close(v.settings);
    st_close(v.files);
    st_close(v.batch_files);
    st_close(v.final_files);
    status = cli_finish(c, status);
    ranks_close(&v.ranks);
    return status;
}
