// A plan must keep what the graph means: updates see old contents, gradients add over waves, equal kernels
// are one, damaged cache files are compiled again, objects hold the same plan.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/codegen/run_graph.h"

typedef struct { Compiled *code; CaseMemory m; const RtPlan *plan; } Loaded;

static Loaded load(Graph *const *programs, int n, const char *target, const CompileOpts *opts, Diag *d) {
    for (int i = 0; i < n; i++) case_place(programs[i]);
    Loaded l = {.code = target_find(target)->compile(programs, n, opts, d)};
    if (!l.code) diag_print(d, stderr, false);
    assert_non_null(l.code);
    l.plan = compiled_plan(l.code);
    l.m.base[RT_PERSISTENT] = calloc(1, (size_t)l.plan->persistent_bytes + 64);
    l.m.base[RT_STEP] = calloc(1, (size_t)l.plan->step_bytes + 64);
    l.m.base[RT_CONST] = (char *)l.plan + l.plan->consts.offset;
    l.m.sym = calloc(l.plan->syms.n + 1, 8);
    return l;
}

static void unload(Loaded *l) {
    free(l->m.base[RT_PERSISTENT]);
    free(l->m.base[RT_STEP]);
    free(l->m.sym);
    compiled_free(l->code);
}

static const RtTensor *tensor(const Loaded *l, const char *name) {
    const RtTensor *t = RT_TABLE(l->plan, RtTensor, tensors);
    for (uint32_t i = 0; i < l->plan->tensors.n; i++)
        if (!strcmp(RT_TEXT(l->plan, t[i].name), name)) return &t[i];
    return NULL;
}

static void *data(const Loaded *l, const char *name) {
    const RtTensor *t = tensor(l, name);
    assert_non_null(t);
    return l->m.base[t->arena] + t->offset;
}

static Value *state(Case *c, const char *name, int64_t n) {
    return make(&c->b, OP_STATE, INS(NULL), .name = intern(name), .dtype = F32, .dims = DIMS(dim_n(n)),
                .init = intern("zeros"));
}

static const char *const both[] = {"cpu", "interp"};

static void updates_see_the_old_contents(void **test) {
    for (int t = 0; t < 2; t++) {
        Case c = case_new();
        Value *a = state(&c, "a", 40), *b = state(&c, "b", 40), *s = state(&c, "s", 40);
        build(&c.b, OP_UPDATE, INS(b), .name = intern("a")); // a and b change places
        build(&c.b, OP_UPDATE, INS(a), .name = intern("b"));
        Value *next = build_binary(&c.b, OP_ADD, s, a); // s is overwritten in place
        build(&c.b, OP_UPDATE, INS(next), .name = intern("s"));
        Value *late = state(&c, "late", 40), *sum = build_binary(&c.b, OP_ADD, late, b);
        Value *again = build_binary(&c.b, OP_MUL, late, late); // reads late after its successor is made
        build(&c.b, OP_UPDATE, INS(sum), .name = intern("late"));
        case_return(&c, again, "again");
        CompileOpts opts = {.cache_dir = ""};
        Loaded l = load(&c.g, 1, both[t], &opts, c.diag);
        float *fa = data(&l, "a"), *fb = data(&l, "b"), *fs = data(&l, "s"), *fl = data(&l, "late");
        for (int i = 0; i < 40; i++) fa[i] = (float)i, fb[i] = (float)(100 + i), fs[i] = 1, fl[i] = 3;
        case_execute(l.code, &l.m, 0);
        for (int i = 0; i < 40; i++) {
            assert_true(fa[i] == (float)(100 + i) && fb[i] == (float)i && fs[i] == (float)(1 + i));
            assert_true(fl[i] == (float)(103 + i) && ((float *)data(&l, "again"))[i] == 9);
        }
        unload(&l);
        case_free(&c);
    }
}

static void gradients_add_over_waves(void **test) {
    for (int64_t waves = 0; waves < 2; waves++) {
        Case c = case_new();
        Value *x = case_input(&c, "x", F32, DIMS(dim_n(5), dim_n(33)));
        Value *w = make(&c.b, OP_PARAM, INS(NULL), .name = intern("w"), .dtype = F32,
                        .dims = DIMS(dim_n(5), dim_n(33)), .init = intern("normal"), .init_a = 0.5,
                        .group = intern("expert"));
        build(&c.b, OP_ACCUMULATE, INS(build_binary(&c.b, OP_MUL, x, w)), .name = intern("w"));
        Case u = case_new();
        u.g->name = intern("update");
        Value *g = make(&u.b, OP_STATE, INS(NULL), .name = intern("grad/w"), .dtype = F32,
                        .dims = DIMS(dim_n(5), dim_n(33)));
        case_return(&u, g, "seen");
        CompileOpts opts = {.cache_dir = "", .waves = waves};
        Loaded l = load((Graph *[]){c.g, u.g}, 2, "cpu", &opts, c.diag);
        assert_int_equal(tensor(&l, "grad/w")->role, RT_GRAD);
        assert_int_equal(tensor(&l, "grad/w")->experts, 1);
        assert_int_equal(tensor(&l, "w")->init, RT_INIT_NORMAL);
        float *grad = data(&l, "grad/w"), *fx = data(&l, "x"), *fw = data(&l, "w");
        for (int i = 0; i < 165; i++) grad[i] = NAN, fx[i] = (float)i, fw[i] = 2;
        case_execute(l.code, &l.m, 0);                       // both programs, one after the other
        for (int i = 0; i < 165; i++)
            assert_true(grad[i] == (float)(2 * i) && ((float *)data(&l, "seen"))[i] == (float)(2 * i));
        if (waves != 1) {
            *(int32_t *)data(&l, "wave") = 1;
            for (int i = 0; i < 165; i++) fx[i] = 1;
            case_execute(l.code, &l.m, 0);
            for (int i = 0; i < 165; i++) assert_true(grad[i] == (float)(2 * i + 2));
        }
        unload(&l);
        case_free(&c);
        case_free(&u);
    }
}

static void equal_kernels_are_one_and_constants_count(void **test) {
    Case c = case_new();
    Value *x = case_input(&c, "x", F32, DIMS(dim_n(4), dim_n(50))),
          *y = case_input(&c, "y", F32, DIMS(dim_n(4), dim_n(50)));
    Value *in[] = {x, y, x};
    static const double factor[] = {2, 2, 3};
    for (int i = 0; i < 3; i++) {
        BodyCase k = body_new(&c);
        Node *f = body_end(&c, &k, (Value *[]){build_scale(&k.b, body_arg(&k, in[i]), factor[i]), NULL});
        case_return(&c, &f->out[0], arena_printf(c.arena, "r%d", i));
    }
    case_place(c.g);
    CompileOpts opts = {.cache_dir = ""};
    Compiled *code = target_find("cpu")->compile(&c.g, 1, &opts, c.diag);
    assert_int_equal(compiled_stats(code).kernels, 2);
    assert_int_equal(compiled_stats(code).reference, 0);
    compiled_free(code);
    assert_int_equal(case_compare(&c, "native", 0, 0), 0);
    case_free(&c);
}

// All choices dropped: no rows anywhere.
static void routes_without_rows_do_nothing(void **test) {
    Case c = case_new();
    Sym *R = graph_add_sym(c.g, "R", SYM_RAGGED, 60, 8, 1);
    Value *x = case_input(&c, "x", F32, DIMS(dim_n(30), dim_n(20))),
          *e = case_input(&c, "e", I32, DIMS(dim_n(30), dim_n(2)));
    Value *none = make(&c.b, OP_MIN, INS(e, build_const(&c.b, -1, I32)));
    Node *route = build(&c.b, OP_ROUTE, INS(none), .experts = 8, .sym = R);
    R->extent = &route->out[0];
    Value *token = build_binary(&c.b, OP_DIV, &route->out[2], build_const(&c.b, 2, I32));
    Value *rows = build_unary(&c.b, OP_EXP, make(&c.b, OP_GATHER_ROWS, INS(x, token)));
    case_return(&c, make(&c.b, OP_SCATTER_ADD_ROWS, INS(rows, token), .dims = DIMS(dim_n(30), dim_n(20))),
                "sum");
    assert_int_equal(case_compare_all(&c, 0, 0), 0);
    case_free(&c);
}

// ---- the code cache and object files -------------------------------------------------------------------

static Graph *small_graph(Case *c) {
    Value *x = case_input(c, "x", F32, DIMS(dim_n(4), dim_n(50)));
    case_return(c, build_unary(&c->b, OP_EXP, x), "e");
    case_return(c, make(&c->b, OP_SOFTMAX, INS(x)), "s");
    case_place(c->g);
    return c->g;
}

static CompileStats compile_stats(Case *c, const char *dir) {
    CompileOpts opts = {.cache_dir = dir};
    Compiled *code = target_find("cpu")->compile(&c->g, 1, &opts, c->diag);
    assert_non_null(code);
    CompileStats s = compiled_stats(code);
    compiled_free(code);
    return s;
}

static void for_files(const char *dir, void (*f)(const char *path)) {
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') f(path);
    }
    closedir(d);
}

static void damage(const char *path) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -3, SEEK_END);
    fputc('x', f);
    fclose(f);
}

static void cut(const char *path) { assert_int_equal(truncate(path, 30), 0); }
static void delete_file(const char *path) { unlink(path); }

static void the_cache_gives_whole_objects_or_none(void **test) {
    char dir[] = "/tmp/moec-cache-XXXXXX";
    assert_non_null(mkdtemp(dir));
    Case c = case_new();
    small_graph(&c);
    CompileStats s = compile_stats(&c, dir);
    assert_int_equal(s.compiled, 2);
    assert_int_equal(compile_stats(&c, dir).cached, 2);
    for_files(dir, damage);
    s = compile_stats(&c, dir);
    assert_int_equal(s.compiled, 2);
    assert_int_equal(s.cached, 0);
    for_files(dir, cut);
    assert_int_equal(compile_stats(&c, dir).compiled, 2);
    assert_int_equal(compile_stats(&c, dir).cached, 2);
    for_files(dir, delete_file);
    rmdir(dir);
    assert_int_equal(compile_stats(&c, "/proc/nowhere").compiled, 2);            // no cache, no error
    case_free(&c);
}

static int n_objects;
static void count_object(const char *path) {
    n_objects++;
    unlink(path);
}

static void objects_are_written_for_every_kernel_and_the_plan(void **test) {
    char dir[] = "/tmp/moec-objects-XXXXXX";
    assert_non_null(mkdtemp(dir));
    Case c = case_new();
    small_graph(&c);
    CompileOpts opts = {.cache_dir = "", .cpu = "sse2"};
    assert_true(target_find("cpu")->emit_objects(&c.g, 1, &opts, dir, c.diag));
    n_objects = 0;
    for_files(dir, count_object);
    assert_int_equal(n_objects, 3);
    rmdir(dir);
    assert_false(target_find("cpu")->emit_objects(&c.g, 1, &opts, "/proc/nowhere", c.diag));
    assert_int_equal(diag_n_errors(c.diag), 1);
    case_free(&c);
}

static void unknown_machines_are_an_error(void **test) {
    Case c = case_new();
    small_graph(&c);
    CompileOpts opts = {.cache_dir = "", .cpu = "z80"};
    assert_null(target_find("cpu")->compile(&c.g, 1, &opts, c.diag));
    assert_int_equal(diag_n_errors(c.diag), 1);
    case_free(&c);
}

static void dumps_name_every_kernel(void **test) {
    static const char *const forms[] = {"llvm", "asm", "plan"};
    Case c = case_new();
    small_graph(&c);
    for (int i = 0; i < 3; i++) {
        Str out = {.arena = c.arena};
        CompileOpts opts = {.cache_dir = ""};
        assert_true(target_find("cpu")->dump(&c.g, 1, &opts, forms[i], &out, c.diag));
        assert_non_null(strstr(out.text, "moec_softmax_"));
        assert_non_null(strstr(out.text, "moec_exp_"));
    }
    case_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(updates_see_the_old_contents),
        cmocka_unit_test(gradients_add_over_waves),
        cmocka_unit_test(equal_kernels_are_one_and_constants_count),
        cmocka_unit_test(routes_without_rows_do_nothing),
        cmocka_unit_test(the_cache_gives_whole_objects_or_none),
        cmocka_unit_test(objects_are_written_for_every_kernel_and_the_plan),
        cmocka_unit_test(unknown_machines_are_an_error),
        cmocka_unit_test(dumps_name_every_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
