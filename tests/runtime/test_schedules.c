// Learning rates at hand-computed steps, quantities in their units, and settings that say what is wrong with
// them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/schedule.h"

static const RtStepSize size = {.tokens = 4096, .samples = 16, .samples_per_epoch = 160};

static RtSettings *settings(const char *json) {
    RtSettings *s;
    RtError e;
    if (rt_settings_open(json, "/base", &s, &e) != RT_OK) fail_msg("%s", e.text);
    return s;
}

static void rates(const char *train, int n, const double (*expected)[2]) {
    char json[512];
    snprintf(json, sizeof json, "{\"train\": {%s}}", train);
    RtSettings *s = settings(json);
    RtSchedule c = rt_schedule(s, size);
    for (int i = 0; i < n; i++) {
        double lr = rt_schedule_lr(&c, (int64_t)expected[i][0]);
        if (!(fabs(lr - expected[i][1]) <= 1e-12))
            fail_msg("%s: lr(%g) = %.15g, not %.15g", train, expected[i][0], lr, expected[i][1]);
    }
    rt_settings_close(s);
}
#define RATES(train, ...)                                                                                    \
    rates(train, sizeof((const double[][2]){__VA_ARGS__}) / sizeof(double[2]),                               \
          (const double[][2]){__VA_ARGS__})

static void rates_of_all_schedules(void **state) {
    RATES("\"lr\": 1e-3, \"length\": {\"value\": 100, \"unit\": \"steps\"}, \"schedule\": {\"kind\": "
          "\"cosine\", \"warmup\": {\"value\": 10, \"unit\": "
          "\"steps\"}, \"floor\": 0.1}",
          {1, 1e-4}, {2, 2e-4}, {10, 1e-3}, {55, 5.5e-4}, {100, 1e-4}, {1000, 1e-4});
    RATES("\"lr\": 1, \"length\": 110, \"schedule\": {\"kind\": \"linear\", \"warmup\": 10, \"floor\": 0.2}",
          {5, 0.5}, {10, 1}, {60, 0.6}, {110, 0.2});
    RATES("\"lr\": 0.5, \"schedule\": \"constant\"", {1, 0.5}, {99999, 0.5});
    RATES("\"lr\": 1, \"schedule\": {\"kind\": \"inverse_sqrt\", \"warmup\": 100}", {50, 0.5}, {100, 1},
          {400, 0.5});
    RATES("\"lr\": 1, \"length\": 1000, \"schedule\": {\"kind\": \"wsd\", \"warmup\": 10, \"decay\": 100, "
          "\"floor\": 0.5}",
          {5, 0.5}, {10, 1}, {900, 1}, {950, 0.75}, {1000, 0.5});
    RATES(
        "\"lr\": 1, \"length\": 1000, \"schedule\": {\"kind\": \"wsd\", \"decay\": 100, \"shape\": \"sqrt\"}",
        {900, 1}, {925, 0.5}, {1000, 0});
    RATES("\"lr\": 1, \"length\": 1000, \"schedule\": {\"kind\": \"wsd\", \"decay\": 100, \"shape\": "
          "\"cosine\"}",
          {950, 0.5}, {1000, 0});
    RATES("\"lr\": 1, \"schedule\": {\"kind\": \"warmup_log\", \"args\": [{\"value\": 1000, \"unit\": "
          "\"steps\"}]}",
          {1, 0}, {10, 1.0 / 3}, {1000, 1}, {2000, 1});
    // the warmup is the whole run: still lr s / warmup
    RATES("\"lr\": 1, \"length\": 10, \"schedule\": {\"kind\": \"cosine\", \"warmup\": 20}", {10, 0.5},
          {20, 1});
    // a schedule with its own length, in tokens: 40960 tokens are 10 steps
    RATES("\"lr\": 1, \"length\": 5, \"schedule\": {\"kind\": \"linear\", \"warmup\": 0, \"length\": "
          "{\"value\": 40960, \"unit\": \"tokens\"}}",
          {5, 0.5}, {10, 0});
}

static void quantities_in_steps(void **state) {
    assert_true(rt_quantity_steps((RtQuantity){7, RT_STEPS}, size) == 7);
    assert_true(rt_quantity_steps((RtQuantity){4097, RT_TOKENS}, size) == 2);
    assert_true(rt_quantity_steps((RtQuantity){32, RT_SAMPLES}, size) == 2);
    assert_true(rt_quantity_steps((RtQuantity){1.5, RT_EPOCHS}, size) == 15);
    assert_true(rt_quantity_steps((RtQuantity){5, RT_MINUTES}, size) == -1);
    assert_true(rt_quantity_steps((RtQuantity){0}, size) == 0);
}

static void reads_json(void **state) {
    RtSettings *s =
        settings("{\"train\": {\"lr\": 0.01, \"batch\": 32, \"seed\": 18446744073, \"average\": \"token\", "
                 "\"optimizer\": {\"kind\": \"adamw\", \"beta1\": 0.8, "
                 "\"beta2\": 0.999}, \"eval_every\": {\"value\": 2, \"unit\": \"hours\"}, \"stop\": null},"
                 "\"data\": {\"source\": {\"kind\": \"text\", \"args\": [\"a.txt\", \"/b.txt\"]}, "
                 "\"tokenizer\": {\"kind\": \"gpt2\", \"args\": "
                 "[\"t\"]}, \"held_out\": 0.05, \"end\": null}, \"generate\": {\"top_k\": null, \"eos\": [1, "
                 "2], \"stop\": [\"\\n\\n\"], "
                 "\"temperature\": 0.7, \"context\": 4096}, \"parallel\": {\"ep\": 2}}");
    assert_true(s->lr == 0.01 && s->batch == 32 && s->seed == 18446744073 && s->average_token &&
                s->beta1 == 0.8 && s->beta2 == 0.999);
    assert_true(s->eval_every.unit == RT_MINUTES && s->eval_every.value == 120 && s->stop.unit == RT_NO_UNIT);
    assert_int_equal(s->source.n_args, 2);
    assert_string_equal(s->source.arg[0], "/base/a.txt");
    assert_string_equal(s->source.arg[1], "/b.txt");
    assert_string_equal(s->tokenizer.arg[0], "/base/t");
    assert_int_equal(s->top_k, 0);
    assert_int_equal(s->n_eos, 2);
    assert_string_equal(s->stop_text[0], "\n\n");
    char *json = rt_settings_json(s);
    RtSettings *again = settings(json);                          // what is stored reads the same
    assert_string_equal(again->source.arg[0], "/base/a.txt");
    assert_true(again->temperature == 0.7);
    free(json);
    rt_settings_close(again);
    rt_settings_close(s);
    s = settings("");
    assert_true(s->lr == 3e-4 && s->keep == 3 && s->length.value == 1000 && s->schedule.floor == 0.1 &&
                s->temperature == 1);
    assert_string_equal(s->tokenizer.kind, "bytes");
    rt_settings_close(s);
}

static void set(RtSettings *s, const char *assignment) {
    RtError e;
    if (rt_settings_set(s, assignment, &e) != RT_OK) fail_msg("%s: %s", assignment, e.text);
}

static void reads_assignments(void **state) {
    RtSettings *s = settings(NULL);
    set(s, "train.lr=1e-3");
    assert_true(s->lr == 1e-3);
    set(s, "train.length=200 steps");
    assert_true(s->length.value == 200 && s->length.unit == RT_STEPS);
    set(s, "train.length = 300B tokens");
    assert_true(s->length.value == 300e9 && s->length.unit == RT_TOKENS);
    set(s, "train.save_every=10 minutes");
    assert_true(s->save_every.unit == RT_MINUTES);
    set(s, "train.schedule=wsd(warmup: 10 steps, decay: 400k tokens, shape: \"sqrt\", floor: 0.2)");
    assert_true(s->schedule.kind == SCHEDULE_WSD && s->schedule.decay.value == 4e5 &&
                s->schedule.shape == SHAPE_SQRT && s->schedule.floor == 0.2);
    set(s, "train.schedule=warmup_log(1k steps)");
    assert_true(s->schedule.kind == SCHEDULE_WARMUP_LOG && s->schedule.warmup.value == 1000);
    set(s, "data.source=text(\"/x/a.txt\", \"/x/b.txt\")");
    assert_int_equal(s->source.n_args, 2);
    set(s, "data.tokenizer=bytes");
    assert_string_equal(s->tokenizer.kind, "bytes");
    set(s, "data.shuffle=false");
    assert_false(s->shuffle);
    set(s, "generate.stop=[\"end\", \"\\n\"]");
    assert_string_equal(s->stop_text[1], "\n");
    set(s, "generate.eos=[3, 4]");
    assert_int_equal(s->eos[1], 4);
    set(s, "generate.top_k=none");
    set(s, "train.seed=2 ** 16");
    assert_int_equal(s->seed, 65536);
    char *json = rt_settings_json(s);
    assert_non_null(strstr(json, "/x/b.txt"));
    free(json);
    rt_settings_close(s);
}

static void says_what_is_wrong(void **state) {
    static const struct { const char *assignment, *word;
    } wrong[] = {{"train.lr=abc", "number"},
                 {"train.lr=-1", "from 0"},
                 {"train.keep=1.5", "whole"},
                 {"train.length=5 apples", "cannot read"},
                 {"train.length=\"x\"", "number of steps"},
                 {"generate.top_p=1.5", "from 0 to 1"},
                 {"train.dtype=bf16", "fixed when this program was built"},
                 {"train.batch=8", "fixed when"},
                 {"D=256", "fixed when"},
                 {"parallel.ep=2", "fixed when"},
                 {"train.temperature=1", "generate.temperature"},
                 {"train.learning=1", "there is no setting"},
                 {"train.schedule=cosinus", "cosine"},
                 {"train.schedule=cosine(wramup: 3 steps)", "wramup"},
                 {"train.lr", "KEY=VALUE"},
                 {"train.lr=", "cannot read"},
                 {"train.lr=1 2", "cannot read"},
                 {"data.source=text(", "cannot read"},
                 {"generate.stop=[\"a\", 3]", "texts"},
                 {"data.shuffle=7", "true or false"}};
    RtSettings *s = settings(NULL);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        RtError e = {0};
        if (rt_settings_set(s, wrong[i].assignment, &e) != RT_BAD_SETTING)
            fail_msg("accepted: %s", wrong[i].assignment);
        if (!strstr(e.text, wrong[i].word))
            fail_msg("%s: '%s' should speak of '%s'", wrong[i].assignment, e.text, wrong[i].word);
    }
    rt_settings_close(s);
    RtError e;
    assert_int_equal(rt_settings_open("{\"train\": ", NULL, &s, &e), RT_BAD_SETTING);
    assert_int_equal(rt_settings_open("[1]", NULL, &s, &e), RT_BAD_SETTING);
    assert_int_equal(rt_settings_open("{\"train\": {\"lr\": \"big\"}}", NULL, &s, &e), RT_BAD_SETTING);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rates_of_all_schedules),
        cmocka_unit_test(quantities_in_steps),
        cmocka_unit_test(reads_json),
        cmocka_unit_test(reads_assignments),
        cmocka_unit_test(says_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
