// Checkpoints: bit for bit back, damage found by name, and after a crash or on a full disk the older ones are
// whole.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "runtime/checkpoint.h"
#include "runtime/exec.h"
#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "tests/runtime/fake_plan.h"

enum { E = 3, N = 9000 };
static char dir[] = "/tmp/moec-ckpt-XXXXXX", run[80];

static int make_dir(void **state) {
    if (!mkdtemp(dir)) return 1;
    snprintf(run, sizeof run, "%s/run", dir);
    return 0;
}

static void remove_run(const char *where) {
    char *command = rt_path("rm -rf '%s'", where);
    if (system(command) != 0) fail_msg("cannot remove %s", where);
    free(command);
}
static int remove_dir(void **state) { return remove_run(dir), 0; }

static RtPlan *make_plan(PlanBuilder *b) {
    *b = (PlanBuilder){0};
    RtTensor *t[] = {pb_tensor(b, "embed", RT_PARAM, F32, N, 0, 0),
                     pb_tensor(b, "layers.0.ffn.experts.w1", RT_PARAM, BF16, E, 40, 50),
                     pb_tensor(b, "adam.m/layers.0.ffn.experts.w1", RT_STATE, F32, E, 40, 50),
                     pb_tensor(b, "layers.0.router.bias", RT_STATE, F32, E, 0, 0),
                     pb_tensor(b, "grad/embed", RT_GRAD, F32, N, 0, 0),
                     pb_tensor(b, "cache/0", RT_STATE, F32, 64, 0, 0)};
    for (int i = 0; i < 4; i++) t[i]->init = RT_INIT_NORMAL, t[i]->init_a = 1;
    t[1]->experts = t[2]->experts = 1;
    pb_begin(b, "pass");
    return pb_finish(b);
}

static RtPlan *plan;
static PlanBuilder builder;
// One thread: OpenMP's other threads would not live on in a child.
static RtPlanInstance *open_plan(uint64_t seed) {
    if (!plan) plan = make_plan(&builder);
    RtPlanInstance *p;
    RtError e;
    if (rt_plan_open(plan, NULL, 1, &p, &e) != RT_OK || rt_init(p, seed, &e) != RT_OK) fail_msg("%s", e.text);
    return p;
}

static RtCkptInfo info_at(int64_t step) {
    return (RtCkptInfo){.step = step,
                        .tokens = step * 4096,
                        .skipped_steps = 2,
                        .data = {1, 77},
                        .data_hash = 0xfedcba9876543210u,
                        .seed = UINT64_MAX - 5,
                        .leaves = 8,
                        .waves = 2,
                        .seconds = 0.1,
                        .model_file = "m.moe",
                        .model_text = "model m() {}\n",
                        .settings = "{\"train\": {}}"};
}

static char *save(const RtPlanInstance *p, int64_t step, int64_t keep) {
    RtCkptInfo info = info_at(step);
    RtError e;
    char *where;
    if (rt_ckpt_save(run, p, &info, keep, &where, &e) != RT_OK) fail_msg("%s", e.text);
    return where;
}

static bool same_tensor(const RtPlanInstance *p, const RtPlanInstance *q, const char *name) {
    const RtTensor *t = rt_tensor(p, name);
    return !memcmp(rt_tensor_data(p, t), rt_tensor_data(q, t), (size_t)t->bytes);
}

static void comes_back_bit_for_bit(void **state) {
    RtPlanInstance *p = open_plan(1), *q = open_plan(2);
    char *where = save(p, 1200, 3), *found;
    RtError e;
    RtCkptInfo c;
    assert_int_equal(rt_ckpt_find(run, &found, NULL, &e), RT_OK);
    assert_string_equal(found, where);
    assert_non_null(strstr(where, "/ckpt/step-00001200"));
    if (rt_ckpt_load(where, q, &c, &e) != RT_OK) fail_msg("%s", e.text);
    static const char *const names[] = {"embed", "layers.0.ffn.experts.w1", "adam.m/layers.0.ffn.experts.w1",
                                        "layers.0.router.bias"};
    for (int i = 0; i < 4; i++) assert_true(same_tensor(p, q, names[i]));
    RtCkptInfo was = info_at(1200);
    assert_true(c.step == was.step && c.tokens == was.tokens && c.skipped_steps == 2 && c.data.epoch == 1 &&
                c.data.next_sample == 77);
    assert_true(c.data_hash == was.data_hash && c.seed == was.seed && c.leaves == 8 && c.waves == 2 &&
                c.seconds == 0.1);
    assert_string_equal(c.model_text, was.model_text);
    assert_string_equal(c.settings, was.settings);
    assert_string_equal(c.arithmetic, "f32-fma");
    rt_ckpt_free(&c);
    free(where), free(found);
    rt_plan_close(p), rt_plan_close(q);
    remove_run(run);
}

static void names_are_canonical(void **state) {
    RtPlanInstance *p = open_plan(1);
    char *where = save(p, 5, 3), *name = rt_expert_name("adam.m/layers.3.ffn.experts.w1", 17);
    assert_string_equal(name, "adam.m/layers.3.ffn.experts.17.w1");
    free(name);
    StFiles *f;
    RtError e;
    if (st_open(where, &f, &e) != RT_OK) fail_msg("%s", e.text);      // the weights, as anybody reads them
    assert_int_equal(st_count(f), 1 + E);
    const StTensor *t = st_find(f, "layers.0.ffn.experts.2.w1");
    assert_non_null(t);
    assert_true(t->dtype == ST_BF16 && t->ndim == 2 && t->dim[0] == 40 && t->dim[1] == 50);
    assert_memory_equal(
        t->data, (char *)rt_tensor_data(p, rt_tensor(p, "layers.0.ffn.experts.w1")) + 2 * 40 * 50 * 2, 4000);
    st_close(f);
    char *path = rt_path("%s/model.moe", where);
    assert_true(rt_is_file(path));
    free(path);
    // equal runs write equal files
    RtPlanInstance *q = open_plan(1);
    char was[80];
    snprintf(was, sizeof was, "%s", run);
    snprintf(run, sizeof run, "%s/other", dir);
    char *second = save(q, 5, 3),
         *command = rt_path("cmp '%s/weights-00001.safetensors' '%s/weights-00001.safetensors' && cmp "
                            "'%s/state-00000.safetensors' "
                            "'%s/state-00000.safetensors'",
                            where, second, where, second);
    assert_int_equal(system(command), 0);
    remove_run(run);
    snprintf(run, sizeof run, "%s", was);
    free(command), free(second), free(where);
    rt_plan_close(p), rt_plan_close(q);
    remove_run(run);
}

static void keeps_the_newest(void **state) {
    RtPlanInstance *p = open_plan(1);
    for (int64_t step = 1; step <= 6; step++) free(save(p, step, 3));
    for (int64_t step = 1; step <= 6; step++) {
        char *path = rt_path("%s/ckpt/step-%08lld", run, (long long)step);
        assert_int_equal(rt_is_dir(path), step > 3);
        free(path);
    }
    char *latest = rt_path("%s/ckpt/latest", run), *text;
    RtError e;
    assert_int_equal(rt_read_file(latest, &text, NULL, &e), RT_OK);
    assert_string_equal(text, "step-00000006");
    free(latest), free(text);
    free(save(p, 6, 0));                                           // again: replaced
    rt_plan_close(p);
    remove_run(run);
}

// Changes one byte of a file, or cuts it.
static void damage(const char *where, const char *name, int64_t at, bool cut) {
    char *path = rt_path("%s/%s", where, name), byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    if (at < 0) at += lseek(fd, 0, SEEK_END);
    if (cut) assert_int_equal(ftruncate(fd, at), 0);
    else {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    free(path);
}

static void damage_is_found(void **state) {
    static const struct { const char *file; int64_t at; bool cut, whole; const char *word;
    } cases[] = {{"weights-00001.safetensors", -3, false, true, "layers.0.ffn.experts.2.w1"},
                 {"weights-00001.safetensors", -3, true, false, "bytes"},
                 {"weights-00001.safetensors", 20000, false, true, "near element 4096"},
                 {"state-00000.safetensors", -30, false, true, "damaged"},
                 {"manifest.json", 200, false, false, "hash does not fit"},
                 {"manifest.json", 200, true, false, "hash does not fit"},
                 {"weights-00001.safetensors", 0, true, false, "bytes"}};
    RtPlanInstance *p = open_plan(1), *q = open_plan(2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *old = save(p, 10, 3), *where = save(p, 20, 3), *found;
        RtCkptSkipped skipped;
        damage(where, cases[i].file, cases[i].at, cases[i].cut);
        RtError e = {0};
        assert_int_equal(rt_ckpt_is_whole(where, &e), cases[i].whole);
        assert_int_equal(rt_ckpt_load(where, q, NULL, &e), RT_BAD_FILE);
        if (!strstr(e.text, cases[i].word))
            fail_msg("case %zu: '%s' should speak of '%s'", i, e.text, cases[i].word);
        if (!cases[i].whole) {                                     // the one before is taken
            assert_int_equal(rt_ckpt_find(run, &found, &skipped, &e), RT_OK);
            assert_string_equal(found, old);
            assert_int_equal(skipped.n, 1);
            free(found);
        }
        free(old), free(where);
        remove_run(run);
    }
    rt_plan_close(p), rt_plan_close(q);
}

static void a_missing_tensor_is_named(void **state) {
    RtPlanInstance *p = open_plan(1);
    char *where = save(p, 1, 3);
    PlanBuilder b = {0};
    pb_tensor(&b, "embedding", RT_PARAM, F32, N, 0, 0);
    pb_begin(&b, "pass");
    RtPlan *other = pb_finish(&b);
    RtPlanInstance *q;
    RtError e;
    assert_int_equal(rt_plan_open(other, NULL, 1, &q, &e), RT_OK);
    assert_int_equal(rt_ckpt_load(where, q, NULL, &e), RT_BAD_FILE);
    assert_non_null(strstr(e.text, "no tensor 'embedding'"));
    rt_plan_close(q);
    free(other);
    b = (PlanBuilder){0};
    pb_tensor(&b, "embed", RT_PARAM, F32, 2, N / 2, 0);
    pb_begin(&b, "pass");
    other = pb_finish(&b);
    assert_int_equal(rt_plan_open(other, NULL, 1, &q, &e), RT_OK);
    assert_int_equal(rt_ckpt_load_weights(where, q, &e), RT_BAD_FILE);
    assert_non_null(strstr(e.text, "F32[9000]"));
    assert_non_null(strstr(e.text, "F32[2,4500]"));
    rt_plan_close(q);
    free(other);
    free(where);
    rt_plan_close(p);
    remove_run(run);
}

// A child saves without end and is killed at some moment: what is found then is whole, and at least what it
// had told.
static void a_crash_leaves_a_whole_one(void **state) {
    for (int round = 0; round < 12; round++) {
        int told[2];
        assert_int_equal(pipe(told), 0);
        pid_t child = fork();
        if (child == 0) {
            RtPlanInstance *p = open_plan(1);
            for (int64_t step = 1;; step++) {
                ((float *)rt_tensor_data(p, rt_tensor(p, "embed")))[0] = (float)step;
                free(save(p, step, 2));
                if (write(told[1], &step, sizeof step) < 0) _exit(1);
            }
        }
        close(told[1]);
        int64_t last = 0, step;
        assert_int_equal(read(told[0], &last, sizeof last), sizeof last);
        usleep(1000 * (unsigned)(round * 7 % 23));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(told[0], &step, sizeof step) == (ssize_t)sizeof step) last = step;
        close(told[0]);
        RtPlanInstance *q = open_plan(2);
        char *found;
        RtError e;
        RtCkptInfo c;
        if (rt_ckpt_find(run, &found, NULL, &e) != RT_OK) fail_msg("%s", e.text);
        if (rt_ckpt_load(found, q, &c, &e) != RT_OK) fail_msg("%s", e.text);
        assert_true(c.step >= last);
        assert_true(*(float *)rt_tensor_data(q, rt_tensor(q, "embed")) == (float)c.step);
        free(save(q, c.step + 1, 2));                              // sweeps what the crash left
        char *command = rt_path("ls -A '%s/ckpt' | grep -q '^\\.'", run);
        assert_int_not_equal(system(command), 0);
        free(command);
        rt_ckpt_free(&c);
        free(found);
        rt_plan_close(q);
        remove_run(run);
    }
}

static void check_full(const char *expected) {
    RtPlanInstance *p = open_plan(1), *q = open_plan(2);
    RtError e = {0};
    char *old = NULL, *found;
    RtCkptInfo info = info_at(1);
    if (rt_ckpt_save(run, p, &info, 1, &old, &e) != RT_OK) fail_msg("%s", e.text);
    if (!strcmp(expected, "No space left")) {                      // fill what is left
        char *path = rt_path("%s/filler", run);
        int fd = open(path, O_WRONLY | O_CREAT, 0600);
        char zeros[4096] = {0};
        while (write(fd, zeros, sizeof zeros) > 0) {}
        close(fd);
        free(path);
    } else assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){20000, RLIM_INFINITY}), 0);
    info = info_at(2);
    assert_int_equal(rt_ckpt_save(run, p, &info, 1, NULL, &e), RT_IO);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
    if (!strstr(e.text, expected) || !strstr(e.text, "step 2"))
        fail_msg("'%s' should speak of '%s' and the step", e.text, expected);
    assert_int_equal(rt_ckpt_find(run, &found, NULL, &e), RT_OK);
    assert_string_equal(found, old);
    if (rt_ckpt_load(found, q, NULL, &e) != RT_OK) fail_msg("%s", e.text);
    assert_true(same_tensor(p, q, "embed"));
    free(old), free(found);
    rt_plan_close(p), rt_plan_close(q);
    char *command = rt_path("ls -A '%s/ckpt' | grep -q '^\\.'", run);
    assert_int_not_equal(system(command), 0);                      // nothing half-written stays
    free(command);
}

static void a_full_disk_leaves_the_old_one(void **state) {
    signal(SIGXFSZ, SIG_IGN);
    check_full("File too large");
    remove_run(run);
    if (mkdir(run, 0700) != 0 || mount("none", run, "tmpfs", 0, "size=200k") != 0) {
        print_message("skipped: a small file system needs the right to mount\n");
        remove_run(run);
        return;
    }
    check_full("No space left");
    assert_int_equal(umount(run), 0);
    remove_run(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back_bit_for_bit),
        cmocka_unit_test(names_are_canonical),
        cmocka_unit_test(keeps_the_newest),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_crash_leaves_a_whole_one),
        cmocka_unit_test(a_full_disk_leaves_the_old_one),
    };
    int status = cmocka_run_group_tests(tests, make_dir, remove_dir);
    free(plan);
    return status;
}
