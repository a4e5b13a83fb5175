// Sampling picks what its settings say, in their order; the decode loop feeds a prompt in pieces and stops
// where it should.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/generate.h"
#include "tests/runtime/fake_plan.h"

// ---- sampling -------------------------------------------------------------------------------------------

enum { V = 8 };
static const float logits[V] = {0, 3, 1, 2.5f, -1, 2.5f, -2, 0.5f};

// How often each id comes in n draws.
static void draw(RtSampling s, const int32_t *seen, int n_seen, int n, int *count) {
    RtSampler *r = rt_sampler_open(s, V);
    for (int i = 0; i < n_seen; i++) rt_sampler_seen(r, seen[i]);
    memset(count, 0, V * sizeof *count);
    for (int i = 0; i < n; i++) count[rt_sampler_next(r, logits, i)]++;
    rt_sampler_close(r);
}

static const RtSampling plain = {.temperature = 1, .top_p = 1, .repetition = 1, .seed = 5};

static void greedy_takes_the_largest_and_the_first_of_equals(void **state) {
    int count[V];
    RtSampling s = plain;
    s.temperature = 0;
    draw(s, NULL, 0, 10, count);
    assert_int_equal(count[1], 10);
    s.repetition = 10; // 3 / 10 < 2.5: of the two equal ones the first
    draw(s, (int32_t[]){1}, 1, 10, count);
    assert_int_equal(count[3], 10);
}

static void draws_follow_the_softmax(void **state) {
    int count[V];
    for (int warm = 0; warm < 2; warm++) {
        RtSampling s = plain;
        s.temperature = warm ? 2 : 1;
        draw(s, NULL, 0, 40000, count);
        double p[V], total = 0;
        for (int i = 0; i < V; i++) total += p[i] = exp((double)logits[i] / s.temperature);
        for (int i = 0; i < V; i++) {
            double expected = 40000 * p[i] / total;
            if (fabs(count[i] - expected) > 5 * sqrt(expected) + 1)
                fail_msg("id %d: %d draws, expected %.0f", i, count[i], expected);
        }
    }
}

static void drawn_only_from(RtSampling s, const char *allowed) {
    int count[V];
    draw(s, NULL, 0, 5000, count);
    for (int i = 0; i < V; i++)
        if ((count[i] > 0) != (allowed[i] == '1'))
            fail_msg("id %d was drawn %d times, allowed %s", i, count[i], allowed);
}

// Probabilities: .402 (1), .244 (3), .244 (5), .054 (2), .033 (7), .020 (0), .007 (4), .003 (6).
static void filters_leave_what_they_should(void **state) {
    RtSampling s = plain;
    s.top_k = 2;
    drawn_only_from(s, "01010000");                                // ties to the smaller id
    s = plain, s.top_p = 0.6;
    drawn_only_from(s, "01010000");                                // .402 + .244 reaches it
    s = plain, s.top_p = 0.66;
    drawn_only_from(s, "01010100");
    s = plain, s.top_p = 0;
    drawn_only_from(s, "01000000");
    s = plain, s.min_p = 0.1;
    drawn_only_from(s, "01110100");                                // .054 / .402 = .13, .033 / .402 = .08
    s = plain, s.top_k = 3, s.top_p = 0.7; // of the three: .452 .274 .274; .452 + .274 >= .7
    drawn_only_from(s, "01010000");
    s = plain, s.top_k = 3, s.top_p = 0.75;
    drawn_only_from(s, "01010100");
    s = plain, s.top_k = 5, s.min_p = 0.5;
    drawn_only_from(s, "01010100");
    s = plain, s.temperature = 0.01;
    drawn_only_from(s, "01000000");
}

static void seeds_decide(void **state) {
    int a[V], b[V];
    RtSampling s = plain;
    draw(s, NULL, 0, 1000, a);
    draw(s, NULL, 0, 1000, b);
    assert_memory_equal(a, b, sizeof a);
    s.seed = 6;
    draw(s, NULL, 0, 1000, b);
    assert_memory_not_equal(a, b, sizeof a);
}

static void odd_logits_do_no_harm(void **state) {
    RtSampler *r = rt_sampler_open(plain, 3);
    float nan_one[3] = {NAN, 1, NAN}, infinite[3] = {-INFINITY, INFINITY, 0},
          none[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (int i = 0; i < 20; i++) {
        assert_int_equal(rt_sampler_next(r, nan_one, i), 1);
        assert_int_equal(rt_sampler_next(r, infinite, i), 1);
        assert_in_range(rt_sampler_next(r, none, i), 0, 2);
    }
    rt_sampler_close(r);
}

// ---- decoding: a model whose next token is the last one + 1, or, at multiples of 10, that of the row C - 9
// ----------

enum { ROWS = 4, CONTEXT = 40, BYTES = 256 };

// args: tokens i32[1, S], positions i32[1, S], pool f32[CONTEXT], logits f32[1, S, 256]
static void next_letter(const RtCall *c) {
    const int32_t *tokens = c->arg[0], *positions = c->arg[1];
    float *pool = c->arg[2], *out = c->arg[3];
    int64_t rows = c->sym[0], context = c->sym[1];
    for (int64_t i = 0; i < rows; i++) {
        assert(positions[i] == context - rows + i);
        pool[positions[i]] = (float)tokens[i];
        memset(out + i * BYTES, 0, BYTES * sizeof *out);
        int next = tokens[i] + 1;
        if (tokens[i] == 'z')
            next = (int)pool[0]; // needs the first token: the pool keeps rows of earlier calls
        out[i * BYTES + next] = 50;
    }
}

static RtPlan *make_plan(PlanBuilder *b) {
    *b = (PlanBuilder){0};
    int s = pb_sym(b, "S", ROWS, -1);
    pb_sym(b, "C", CONTEXT, -1);
    RtTensor *t[] = {pb_tensor(b, "tokens", RT_INPUT, I32, 1, ROWS, 0),
                     pb_tensor(b, "positions", RT_INPUT, I32, 1, ROWS, 0),
                     pb_tensor(b, "cache/0", RT_STATE, F32, CONTEXT, 0, 0),
                     pb_tensor(b, "logits", RT_OUTPUT, F32, 1, ROWS, BYTES)};
    for (int i = 0; i < 4; i++)
        if (i != 2) t[i]->dim_sym[1] = s;
    int k = pb_kernel(b, "next_letter", next_letter, 1);
    pb_begin(b, "run");
    pb_step(b, k, 1);
    for (int i = 0; i < 4; i++) pb_arg(b, t[i]);
    return pb_finish(b);
}

static void generates(const char *json, const char *prompt, const char *expected, const char *why) {
    PlanBuilder b;
    RtPlan *plan = make_plan(&b);
    RtPlanInstance *p = NULL;
    RtTokenizer *t = NULL;
    RtSettings *s = NULL;
    RtError e;
    RtGenerateResult r;
    if (rt_plan_open(plan, b.fn, 2, &p, &e) != RT_OK || rt_tokenizer_open("bytes", NULL, &t, &e) != RT_OK ||
        rt_settings_open(json, NULL, &s, &e) != RT_OK)
        fail_msg("%s", e.text);
    char text[512] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    RtStatus status = rt_generate(p, t, s, prompt, out, &r, &e);
    fclose(out);
    if (status != RT_OK) {
        if (why) fail_msg("%s", e.text);
        assert_non_null(strstr(e.text, expected));
    } else {
        assert_string_equal(text, expected);
        assert_string_equal(r.why, why);
        assert_int_equal(r.prompt_tokens, strlen(prompt));
    }
    rt_settings_close(s);
    rt_tokenizer_close(t);
    rt_plan_close(p);
    free(plan);
}

static void the_loop_decodes(void **state) {
    generates("{\"generate\": {\"max_tokens\": 5}}", "ABC", "DEFGH", "max_tokens");
    generates("{\"generate\": {\"max_tokens\": 5}}", "Qqqqqqqqqz", "QRSTU",
              "max_tokens"); // a prompt of three pieces
    generates("{\"generate\": {\"max_tokens\": 20, \"eos\": [72]}}", "ABC", "DEFG", "eos");
    generates("{\"generate\": {\"max_tokens\": 20, \"stop\": [\"HI\", \"GHX\"]}}", "ABC", "DEFG", "stop");
    generates("{\"generate\": {\"max_tokens\": 4, \"stop\": [\"GHX\"]}}", "ABC", "DEFG",
              "max_tokens"); // what was held back comes at the end
    generates("{\"generate\": {\"max_tokens\": 20, \"stop\": [\"EFGX\", \"FG\"]}}", "ABC", "DE", "stop");
    generates("{\"generate\": {\"max_tokens\": 999}}", "!", "\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHI",
              "context");
    generates("{\"generate\": {\"max_tokens\": 3}}", "\xc2\xa8", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd",
              "max_tokens"); // a9 aa ab: no character
    generates("{}", "", "the prompt is empty", NULL);
    generates("{}", "0123456789012345678901234567890123456789+", "generate.context is 40", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest_and_the_first_of_equals),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(filters_leave_what_they_should),
        cmocka_unit_test(seeds_decide),
        cmocka_unit_test(odd_logits_do_no_harm),
        cmocka_unit_test(the_loop_decodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
