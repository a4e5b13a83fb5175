// A run that is stopped and gone on with ends in the same bits; steps that are not finite are skipped and
// counted.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "runtime/checkpoint.h"
#include "runtime/eval.h"
#include "runtime/exec.h"
#include "runtime/files.h"
#include "runtime/train.h"
#include "tests/runtime/fake_plan.h"

// The model: w[token] should become label / 256.  loss of a leaf = mean (w[token] - label / 256)^2.
enum { L = 2, B = 3, S = 8, V = 256, EXPERTS = 4 };
static char dir[] = "/tmp/moec-train-XXXXXX";
static int raise_at;                // pass sends SIGTERM to the process at this step

// args: tokens, labels, rng, wave, w, grad/w, ce, load, step
static void pass(const RtCall *c) {
    const int32_t *tokens = c->arg[0], *labels = c->arg[1], *rng = c->arg[2], *wave = c->arg[3];
    const float *w = c->arg[4], *step = c->arg[8];
    float *grad = c->arg[5], *ce = c->arg[6], *load = c->arg[7];
    assert(rng[0] == 7 && rng[2] == (int)*step - 1 && rng[3] == *wave);
    if (*wave == 0) memset(grad, 0, V * sizeof *grad);
    memset(load, 0, L * EXPERTS * sizeof *load);
    for (int l = 0; l < L; l++) {
        float sum = 0;
        int n = 0;
        for (int i = 0; i < B * S; i++) {
            int t = tokens[l * B * S + i], y = labels[l * B * S + i];
            if (y == -100) continue;
            float d = w[t] - (float)y / 256;
            sum += d * d;
            grad[t] += 2 * d;
            load[l * EXPERTS + (t % EXPERTS == 3 ? 0 : t % EXPERTS)]++;
            n++;
        }
        ce[l] = n ? sum / (float)n : NAN;
    }
    if (raise_at && (int)*step == raise_at) raise(SIGTERM);
}

// args: w, grad/w, adam.m/w, lr, grad_scale, bias1, grad_norm, finite, step_number
static void update(const RtCall *c) {
    float *w = c->arg[0], *grad = c->arg[1], *m = c->arg[2], norm = 0;
    float lr = *(float *)c->arg[3], scale = *(float *)c->arg[4], bias1 = *(float *)c->arg[5];
    for (int i = 0; i < V; i++) norm += grad[i] * grad[i];
    bool finite = *(float *)c->arg[8] != 4;                        // as if step 4 had overflowed
    *(float *)c->arg[6] = finite ? sqrtf(norm) * scale : NAN;
    *(float *)c->arg[7] = finite;
    for (int i = 0; i < V && finite; i++) {
        m[i] = 0.9f * m[i] + 0.1f * grad[i] * scale;
        w[i] -= lr * m[i] / bias1;
    }
}

// args: tokens, labels, w, ce
static void eval(const RtCall *c) {
    float grad[V], load[L * EXPERTS], step = 1;
    int32_t rng[4] = {7, 0, 0, 0}, wave = 0;
    void *const arg[] = {c->arg[0], c->arg[1], rng, &wave, c->arg[2], grad, c->arg[3], load, &step};
    int was = raise_at;
    raise_at = 0;
    pass(&(RtCall){.arg = arg});
    raise_at = was;
}

static RtPlan *make_plan(PlanBuilder *b) {
    *b = (PlanBuilder){0};
    RtTensor *tokens = pb_tensor(b, "tokens", RT_INPUT, I32, L, B, S),
             *labels = pb_tensor(b, "labels", RT_INPUT, I32, L, B, S);
    RtTensor *rng = pb_tensor(b, "rng", RT_INPUT, I32, 4, 0, 0),
             *wave = pb_tensor(b, "wave", RT_INPUT, I32, 0, 0, 0);
    RtTensor *w = pb_tensor(b, "w", RT_PARAM, F32, V, 0, 0),
             *grad = pb_tensor(b, "grad/w", RT_GRAD, F32, V, 0, 0);
    RtTensor *m = pb_tensor(b, "adam.m/w", RT_STATE, F32, V, 0, 0),
             *ce = pb_tensor(b, "ce", RT_OUTPUT, F32, L, 1, 0);
    RtTensor *load = pb_tensor(b, "load.layers.0", RT_OUTPUT, F32, L, EXPERTS, 0),
             *step = pb_tensor(b, "step", RT_INPUT, F32, 0, 0, 0);
    RtTensor *lr = pb_tensor(b, "lr", RT_INPUT, F32, 0, 0, 0),
             *scale = pb_tensor(b, "grad_scale", RT_INPUT, F32, 0, 0, 0);
    RtTensor *bias1 = pb_tensor(b, "bias1", RT_INPUT, F32, 0, 0, 0),
             *norm = pb_tensor(b, "grad_norm", RT_OUTPUT, F32, 0, 0, 0);
    RtTensor *finite = pb_tensor(b, "finite", RT_OUTPUT, F32, 0, 0, 0),
             *number = pb_tensor(b, "step_number", RT_INPUT, F32, 0, 0, 0);
    w->init = RT_INIT_NORMAL;
    w->init_a = 1;
    ce->kind = RT_OUT_LOSS;
    ce->weight = 1;
    load->kind = norm->kind = finite->kind = RT_OUT_METRIC;
    RtTensor *pass_args[] = {tokens, labels, rng, wave, w, grad, ce, load, step},
             *update_args[] = {w, grad, m, lr, scale, bias1, norm, finite, number};
    RtTensor *eval_args[] = {tokens, labels, w, ce};
    int k[] = {pb_kernel(b, "pass", pass, 1), pb_kernel(b, "update", update, 1),
               pb_kernel(b, "eval", eval, 1)};
    pb_begin(b, "pass");
    pb_step(b, k[0], 1);
    for (int i = 0; i < 9; i++) pb_arg(b, pass_args[i]);
    pb_begin(b, "update");
    pb_step(b, k[1], 1);
    for (int i = 0; i < 9; i++) pb_arg(b, update_args[i]);
    pb_begin(b, "eval");
    pb_step(b, k[2], 1);
    for (int i = 0; i < 4; i++) pb_arg(b, eval_args[i]);
    return pb_finish(b);
}

static int make_dir(void **state) {
    if (!mkdtemp(dir)) return 1;
    char *path = rt_path("%s/text", dir);
    FILE *f = fopen(path, "w");
    for (unsigned i = 0, x = 1; i < 3000; i++) fputc((int)((x = x * 1664525 + 1013904223) >> 26), f);
    free(path);
    return fclose(f);
}

static int remove_dir(void **state) {
    char *command = rt_path("rm -rf '%s'", dir);
    int status = system(command);
    free(command);
    return status;
}

static RtSettings *settings(const char *more) {
    RtSettings *s;
    RtError e;
    char json[1024];
    snprintf(json, sizeof json,
             "{\"train\": {\"lr\": 0.05, \"sequence\": 8, %s %s \"length\": 30, \"schedule\": {\"kind\": "
             "\"cosine\", \"warmup\": 5}, "
             "\"eval_every\": 10, \"save_every\": 7 %s}, \"data\": {\"source\": {\"kind\": \"text\", "
             "\"args\": [\"text\"]}, \"held_out\": 0.1}}",
             strstr(more, "seed") ? "" : "\"seed\": 7,", strstr(more, "batch") ? "" : "\"batch\": 12,", more);
    if (rt_settings_open(json, dir, &s, &e) != RT_OK) fail_msg("%s", e.text);
    return s;
}

typedef struct {
    float w[V], m[V];
    RtTrainResult result;
    RtStatus status;
    RtError error;
    char log[65536];
} Outcome;

static Outcome *train(const char *name, const char *more, bool resume, int threads) {
    static PlanBuilder b;
    Outcome *o = calloc(1, sizeof *o);
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p;
    if (rt_plan_open(plan, b.fn, threads, &p, &o->error) != RT_OK) fail_msg("%s", o->error.text);
    RtSettings *s = settings(more);
    char *run = rt_path("%s/%s", dir, name), *cache = rt_path("%s/cache", dir);
    FILE *log = fmemopen(o->log, sizeof o->log - 1, "w");
    RtTrainOpts opts = {.settings = s,
                        .run_dir = run,
                        .resume = resume,
                        .model_name = "table",
                        .model_text = "model table() {}",
                        .cache_dir = cache,
                        .out = log,
                        .limits = {.fma = 1e9}};
    o->status = rt_train(&opts, p, &o->result, &o->error);
    fclose(log);
    memcpy(o->w, rt_tensor_data(p, rt_tensor(p, "w")), sizeof o->w);
    memcpy(o->m, rt_tensor_data(p, rt_tensor(p, "adam.m/w")), sizeof o->m);
    rt_plan_close(p);
    rt_settings_close(s);
    free(plan), free(run), free(cache);
    return o;
}

static Outcome *must_train(const char *name, const char *more, bool resume, int threads) {
    Outcome *o = train(name, more, resume, threads);
    if (o->status != RT_OK) fail_msg("%s", o->error.text);
    return o;
}

// The lines of a run's metrics that belong to steps.
static json_t *metrics(const char *name) {
    char *path = rt_path("%s/%s/metrics.jsonl", dir, name), *text;
    RtError e;
    if (rt_read_file(path, &text, NULL, &e) != RT_OK) fail_msg("%s", e.text);
    json_t *all = json_array();
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        assert_int_equal(*next, '\n');
        *next++ = 0;
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        if (json_object_get(row, "lr")) json_array_append(all, row);
        json_decref(row);
    }
    free(path), free(text);
    return all;
}

static double number(const json_t *rows, int i, const char *key) {
    const json_t *v = json_object_get(json_array_get(rows, (size_t)i), key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static void reports_every_step(void **state) {
    Outcome *o = must_train("whole", "", false, 2);
    assert_int_equal(o->result.step, 30);
    assert_int_equal(o->result.skipped_steps, 1);
    assert_int_equal(o->result.tokens, 30 * 96);
    json_t *rows = metrics("whole");
    assert_int_equal(json_array_size(rows), 30);
    for (int i = 0; i < 30; i++) {
        assert_int_equal((int)number(rows, i, "step"), i + 1);
        assert_true(number(rows, i, "loss") == number(rows, i, "ce"));
        assert_true(number(rows, i, "load.layers.0") !=
                    number(rows, i, "layers.0.load")); // by its last name only
        assert_true(number(rows, i, "load_max_over_mean") > 1.2 &&
                    number(rows, i, "load_max_over_mean") < 2.9); // half of the rows go to expert 0
        assert_true(number(rows, i, "mfu") > 0);
        assert_int_equal((int)number(rows, i, "skipped_steps"), i >= 3);
    }
    assert_true(isnan(number(rows, 3, "grad_norm")) && number(rows, 4, "grad_norm") > 0);
    assert_true(fabs(number(rows, 0, "lr") - 0.01) < 1e-9 && fabs(number(rows, 29, "lr") - 0.005) < 1e-9);
    assert_true(number(rows, 29, "loss") < 0.8 * number(rows, 0, "loss"));
    json_decref(rows);
    assert_non_null(strstr(o->log, "step 30/30  loss "));
    assert_non_null(strstr(o->log, "load "));
    assert_non_null(strstr(o->log, "MFU"));
    assert_non_null(strstr(o->log, "held out: loss"));
    assert_non_null(strstr(o->log, "step 4: the gradient is not finite"));
    char *last = rt_path("%s/whole/ckpt/step-00000030", dir);
    assert_true(rt_is_dir(last)); // the last step is saved though 30 is no multiple of 7
    free(last);
    free(o);
}

static void threads_change_nothing(void **state) {
    Outcome *a = must_train("one", "", false, 1), *b = must_train("five", "", false, 5);
    assert_memory_equal(a->w, b->w, sizeof a->w);
    assert_memory_equal(a->m, b->m, sizeof a->m);
    free(a), free(b);
}

static void resumed_runs_end_in_the_same_bits(void **state) {
    Outcome *whole = must_train("straight", "", false, 2);
    Outcome *first = must_train("pieces", ", \"stop\": 9", false, 2);
    assert_int_equal(first->result.step, 9);
    Outcome *refused = train("pieces", "", false, 2);
    assert_int_equal(refused->status, RT_BAD_SETTING);
    assert_non_null(strstr(refused->error.text, "--resume"));
    // a crash after step 12: metrics of later steps are there, the checkpoint is that of step 9
    char *path = rt_path("%s/pieces/metrics.jsonl", dir);
    FILE *f = fopen(path, "a");
    fputs("{\"step\": 10, \"loss\": 99, \"lr\": 1}\n{\"step\": 11, \"lo", f);
    fclose(f);
    free(path);
    Outcome *second = must_train("pieces", ", \"stop\": 20", true, 1);
    Outcome *third = must_train("pieces", "", true, 3);
    assert_int_equal(third->result.step, 30);
    assert_memory_equal(whole->w, third->w, sizeof whole->w);
    assert_memory_equal(whole->m, third->m, sizeof whole->m);
    json_t *a = metrics("straight"), *b = metrics("pieces");
    assert_int_equal(json_array_size(b), 30);
    for (int i = 0; i < 30; i++) {
        assert_true(number(a, i, "loss") == number(b, i, "loss"));
        assert_true(number(a, i, "skipped_steps") == number(b, i, "skipped_steps"));
    }
    json_decref(a), json_decref(b);
    // nothing is left to do
    Outcome *fourth = must_train("pieces", "", true, 1);
    assert_memory_equal(whole->w, fourth->w, sizeof whole->w);
    assert_non_null(strstr(fourth->log, "nothing to do"));
    free(whole), free(first), free(refused), free(second), free(third), free(fourth);
}

static void a_signal_saves_and_stops(void **state) {
    raise_at = 13;
    Outcome *o = train("signal", "", false, 1);
    raise_at = 0;
    assert_int_equal(o->status, RT_STOPPED);
    assert_int_equal(rt_exit_status(o->status), 75);
    assert_int_equal(o->result.step, 13);
    Outcome *rest = must_train("signal", "", true, 1), *whole = must_train("unstopped", "", false, 1);
    assert_memory_equal(rest->w, whole->w, sizeof whole->w);
    free(o), free(rest), free(whole);
}

static void other_runs_are_not_gone_on_with(void **state) {
    free(must_train("first", ", \"stop\": 3", false, 1));
    Outcome *o = train("first", ", \"seed\": 8", true, 1);
    assert_int_equal(o->status, RT_BAD_SETTING);
    free(o);
    o = train("first", ", \"batch\": 18", true, 1);
    assert_non_null(strstr(o->error.text, "waves"));
    free(o);
    o = train("odd", ", \"batch\": 13", false, 1);
    assert_non_null(strstr(o->error.text, "a pass of the plan takes 6"));
    free(o);
    o = train("nowhere", "", true, 1);
    assert_int_equal(o->status, RT_IO);
    free(o);
}

static void evaluation_counts_every_label_once(void **state) {
    static PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p;
    RtError e;
    RtTokenizer *t;
    RtData *d;
    RtEvalResult r;
    char *cache = rt_path("%s/cache", dir);
    assert_int_equal(rt_plan_open(plan, b.fn, 1, &p, &e), RT_OK);
    RtSettings *s = settings("");
    assert_int_equal(rt_init(p, 7, &e), RT_OK);
    assert_int_equal(rt_tokenizer_open("bytes", NULL, &t, &e), RT_OK);
    assert_int_equal(rt_data_open(s, S, t, cache, &d, &e), RT_OK);
    if (rt_eval(p, d, 7, 0, &r, &e) != RT_OK) fail_msg("%s", e.text);
    assert_int_equal(r.samples, 37); // (300 - 1) / 8; 37 = 6 * 6 + 1: the last batch has empty rows
    assert_int_equal(r.tokens, 37 * 8);
    assert_int_equal(r.bytes, 37 * 8);
    const float *w = rt_tensor_data(p, rt_tensor(p, "w"));
    char *path = rt_path("%s/text", dir), *text;
    assert_int_equal(rt_read_file(path, &text, NULL, &e), RT_OK);
    double sum = 0;
    for (int i = 2700; i < 2700 + 37 * 8; i++) {
        double diff = (double)w[(unsigned char)text[i]] - (unsigned char)text[i + 1] / 256.0;
        sum += diff * diff;
    }
    assert_true(fabs(r.ce - sum / (37 * 8)) < 1e-5);
    assert_true(fabs(r.bits_per_byte - r.ce / log(2)) < 1e-9 && fabs(r.perplexity - exp(r.ce)) < 1e-9 &&
                fabs(r.loss - r.ce) < 1e-9);
    free(path), free(text), free(cache);
    rt_data_close(d);
    rt_tokenizer_close(t);
    rt_settings_close(s);
    rt_plan_close(p);
    free(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reports_every_step),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(resumed_runs_end_in_the_same_bits),
        cmocka_unit_test(a_signal_saves_and_stops),
        cmocka_unit_test(other_runs_are_not_gone_on_with),
        cmocka_unit_test(evaluation_counts_every_label_once),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
