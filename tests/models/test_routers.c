// Every file of models/routing/ keeps the contract of a router: a token meets an expert at most once, an
// expert takes no more than its capacity and drops nobody before it is full, what is asked and what is
// dropped is counted, weights are finite and not negative, padding gets no expert, gradients reach the scores
// and are right, and the fused gate computes what its parts compute, bit for bit: on random scores, ties,
// equal rows and a single token.
#include "tests/models/router_model.h"

enum { MOST_VARIANTS = 24 };
typedef RouterCase Case;

// ---- the rows of a route ----------------------------------------------------------------------------------

static const Tensor *metric_of(const Graph *g, const Eval *e, const char *begin) {
    for_each_node(g, n) if (n->op == OP_METRIC &&
                            !strncmp(n->attr.name, begin, strlen(begin))) return eval_value(e, n->in[0]);
    return NULL;
}

// The first gather of rows that are `cols` wide by the route: what is dispatched, or the rows' weights.
static const Node *gather_by(const Graph *g, const Node *route, int64_t cols) {
    for_each_node(g, n) {
        const Type *t = &n->out[0].type;
        if (n->op == OP_GATHER_ROWS && t->ndim == 2 && t->dim[0].sym == route->attr.sym &&
            t->dim[1].n == cols && t->dtype == F32)
            return n;
    }
    return NULL;
}

static const Value *behind_reshapes(const Value *v) {
    while (v->node->op == OP_RESHAPE) v = v->node->in[0];
    return v;
}

// Do tokens choose?  Where experts do, the route's choices are no data: its slots are the experts' own.
static bool tokens_choose(const Node *route) {
    for (const Value *v = route->in[0]; v; v = v->node->n_in ? v->node->in[0] : NULL)
        if (v->node->op != OP_IOTA && v->node->op != OP_RESHAPE && v->node->op != OP_BROADCAST) return true;
    return false;
}

// The capacity that the places of a queue are compared with; -1: they are not.
static double capacity_of(const Graph *g, const Node *queue) {
    double capacity;
    for_each_node(g, n) if (n->op == OP_LT && behind_reshapes(n->in[0])->node == queue &&
                            value_is_number(n->in[1], &capacity)) return capacity;
    return -1;
}

// Places of an expert's queue are 0, 1, ..; adds to kept[leaf][expert] those below the capacity.
static int check_queue(const char *what, const Graph *g, const Eval *e, const Node *queue, int leaves,
                       int64_t *kept) {
    double capacity = capacity_of(g, queue);
    if (capacity < 0) fail_msg("%s: places in a queue are compared with no capacity", what);
    const Tensor *choice = eval_value(e, queue->in[0]), *place = eval_value(e, &queue->out[0]);
    int64_t slots = choice->dim[choice->ndim - 1] * choice->dim[choice->ndim - 2], E = queue->attr.experts;
    int64_t queues = size_of(choice) / slots;
    int dropped = 0;
    for (int64_t q = 0; q < queues; q++)
        for (int64_t x = 0; x < E; x++) {
            int64_t asked = 0, held = 0, sum = 0;
            for (int64_t i = q * slots; i < (q + 1) * slots; i++) {
                if (((int32_t *)choice->data)[i] != x) continue;
                int32_t at = ((int32_t *)place->data)[i];
                asked++;
                sum += at;
                held += at < capacity;
            }
            if (sum != asked * (asked - 1) / 2)
                fail_msg("%s: the places of expert %lld are not 0, 1, ..", what, (long long)x);
            int64_t most = (int64_t)ceil(capacity), want = asked < most ? asked : most;
            if (held != want)
                fail_msg("%s: expert %lld holds %lld of %lld with a capacity of %g", what, (long long)x,
                         (long long)held, (long long)asked, capacity);
            kept[q / (queues / leaves) * E + x] += held;
            dropped += (int)(asked - held);
        }
    return dropped;
}

typedef struct {
    int rows, dropped;
} Routed;

static Routed check_rows(const char *what, const Graph *g, const Eval *e, bool masked) {
    const Node *route = find_op(g, OP_ROUTE), *queue = find_op(g, OP_QUEUE);
    if (!route) fail_msg("%s: there is no route", what);
    const Node *dispatch = gather_by(g, route, D), *weights = gather_by(g, route, 1);
    assert_non_null(dispatch);
    assert_non_null(weights);
    int leaves = g->leaf ? (int)g->leaf->bound : 1;
    int64_t E = route->attr.experts;
    const Tensor *offsets = eval_value(e, &route->out[0]), *token = eval_value(e, dispatch->in[1]);
    const Tensor *weight = eval_value(e, &weights->out[0]), *load = metric_of(g, e, "load."), *ids = NULL;
    const Tensor *asked = metric_of(g, e, "routed.");
    for_each_node(g, n) if (n->op == OP_INPUT && !strcmp(n->attr.name, "tokens")) ids =
        eval_value(e, &n->out[0]);
    const int32_t *from = offsets->data, *of = token->data;
    int64_t rows = size_of(token), tokens = size_of(ids);
    assert_int_equal(from[E * leaves], rows);
    assert_int_equal(size_of(weight), rows);
    if (!load && g->leaf && tokens_choose(route)) fail_msg("%s: the load is not reported", what);

    bool *met = calloc((size_t)(tokens * E), sizeof *met);
    int64_t *kept = calloc((size_t)(leaves * E), sizeof *kept);
    for (int64_t x = 0; x < E; x++)
        for (int64_t leaf = 0; leaf < leaves; leaf++) {
            int64_t first = from[x * leaves + leaf], last = from[x * leaves + leaf + 1];
            if (load && number_of(load, leaf * E + x) != (double)(last - first))
                fail_msg("%s: the metric load says %g of expert %lld, which has %lld rows", what,
                         number_of(load, leaf * E + x), (long long)x, (long long)(last - first));
            for (int64_t r = first; r < last; r++) {
                if (of[r] / (tokens / leaves) != leaf)
                    fail_msg("%s: row %lld of leaf %lld holds token %d", what, (long long)r, (long long)leaf,
                             (int)of[r]);
                if (met[of[r] * E + x])
                    fail_msg("%s: token %d meets expert %lld twice", what, (int)of[r], (long long)x);
                met[of[r] * E + x] = true;
                double w = number_of(weight, r);
                if (!isfinite(w) || w < 0)
                    fail_msg("%s: token %d has weight %g at expert %lld", what, (int)of[r], w, (long long)x);
                if (masked && !((int32_t *)ids->data)[of[r]])
                    fail_msg("%s: padding meets expert %lld", what, (long long)x);
            }
        }
    Routed r = {.rows = (int)rows};
    if (queue) {
        assert_non_null(asked);
        r.dropped = check_queue(what, g, e, queue, leaves, kept);
        double dropped = 0;
        for (int64_t i = 0; i < leaves * E; i++) {
            dropped += number_of(asked, i) - number_of(load, i);
            if (number_of(load, i) != (double)kept[i])
                fail_msg("%s: an expert has %g rows, its queue holds %lld", what, number_of(load, i),
                         (long long)kept[i]);
        }
        assert_int_equal((int)dropped, r.dropped);
    }
    free(met);
    free(kept);
    return r;
}

// ---- fused and unfused ------------------------------------------------------------------------------------

static bool is_effect(const Node *n) { return op_is(n->op, EFFECT) && n->attr.name; }

// All effects of x and y on the same sources.
static void same_effects(const char *what, const Graph *x, const Graph *y, Feed f) {
    Arena *a = arena_create();
    Eval *ex = evaluate(a, x, &f, false), *ey = evaluate(a, y, &f, false);
    int n_same = 0;
    for_each_node(x, n) {
        if (!is_effect(n)) continue;
        const Node *m = y->first;
        while (m && (m->op != n->op || m->attr.name != n->attr.name)) m = m->next;
        if (!m) fail_msg("%s: only fused there is %s %s", what, op_info[n->op].name, n->attr.name);
        const Tensor *t = eval_value(ex, n->in[0]), *u = eval_value(ey, m->in[0]);
        assert_int_equal(size_of(t), size_of(u));
        for (int64_t i = 0; i < size_of(t); i++)
            if (number_of(t, i) != number_of(u, i) && !(isnan(number_of(t, i)) && isnan(number_of(u, i))))
                fail_msg("%s: %s %s[%lld] is %.9g fused, %.9g in parts", what, op_info[n->op].name,
                         n->attr.name, (long long)i, number_of(t, i), number_of(u, i));
        n_same++;
    }
    assert_true(n_same > 0);
    arena_destroy(a);
}

static const Feed feeds[] = {{.vocab = 13},
                             {.vocab = 13, .ties = true},
                             {.vocab = 13, .equal_rows = true},
                             {.vocab = 13, .ties = true, .equal_rows = true}};
enum { N_FEEDS = sizeof feeds / sizeof *feeds };

static struct {
    int cases, gates, dropped, compared, flipped;
} total;

static void check_graph(Loaded *l, const char *what, const Case *c, Graph *g, const char *const *pipeline,
                        const TrainOpts *train) {
    Graph *fused = passed(l, what, g, pipeline, train, NULL, NULL);
    Graph *parts = passed(l, what, g, pipeline, train, "fuse-gating", NULL);
    if (find_op(g, OP_TOPK) && !find_op(fused, OP_GATE)) fail_msg("%s: nothing is fused", what);
    assert_null(find_op(parts, OP_GATE));
    total.gates += find_op(fused, OP_GATE) != NULL;
    for (int i = 0; i < N_FEEDS; i++) {
        Arena *a = arena_create();
        Feed f = feeds[i];
        const char *at =
            arena_printf(a, "%s%s%s", what, f.ties ? ", ties" : "", f.equal_rows ? ", equal rows" : "");
        total.dropped += check_rows(at, g, evaluate(a, g, &f, false), c->masked).dropped;
        same_effects(at, fused, parts, f);
        arena_destroy(a);
    }
}

// Parameters of the router: all but those of the model and of the experts.
static int check_router_gradients(const char *what, const Graph *back) {
    Arena *a = arena_create();
    Feed f = feeds[0];
    Eval *e = evaluate(a, back, &f, false);
    int n = 0;
    for_each_node(back, p) {
        if (p->op != OP_PARAM || !strstr(p->attr.name, ".router.")) continue;
        const Node *r = gradient_of(back, p->attr.name);
        if (!r) fail_msg("%s: no gradient reaches %s", what, p->attr.name);
        const Tensor *t = eval_value(e, r->in[0]);
        double largest = 0;
        for (int64_t i = 0; i < size_of(t); i++) largest = fmax(largest, fabs(number_of(t, i)));
        if (!(largest > 0) || !isfinite(largest))
            fail_msg("%s: the gradient of %s is %g", what, p->attr.name, largest);
        n++;
    }
    arena_destroy(a);
    return n;
}

static void check_case(const Case *c) {
    enum { LEAVES = 2 };
    Loaded *l = load_case(c);
    const char *what = case_text(l->a, c);
    TrainOpts train = usual;
    train.return_grads = true;
    ElabOpts o = {.kind = ELAB_TRAIN, .leaves = LEAVES, .B = c->B, .S = c->S, .waves = 1};
    Graph *pass = elaborate(l, what, o);
    check_graph(l, arena_printf(l->a, "%s, training", what), c, pass, pipeline_train, &train);
    if (c->B * c->S > 1) {
        Graph *back = passed(l, what, pass, pipeline_train, &train, NULL, NULL);
        int n = check_router_gradients(what, back);
        Compared d = compare_gradients(what, pass, back, feeds[0], 2);
        if (n && !d.checked) fail_msg("%s: no gradient was compared", what);
        total.compared += d.checked;
        total.flipped += d.flipped;
    }
    o.kind = ELAB_EVAL;
    o.labels = true;
    o.returns = (const char *const[]){"logits", NULL};
    check_graph(l, arena_printf(l->a, "%s, evaluation", what), c, elaborate(l, what, o), pipeline_forward,
                NULL);
    total.cases++;

    // generation keeps every choice, since an answer must not depend on its neighbours; experts that choose
    // refuse it
    o = (ElabOpts){.kind = ELAB_RUN, .leaves = 1, .B = 1, .S = c->S, .context = 16};
    Graph *run = program_elaborate(l->p, l->a, &o);
    if (run) {
        assert_null(find_op(run, OP_QUEUE));
        check_graph(l, arena_printf(l->a, "%s, generation", what), c, run, pipeline_forward, NULL);
    } else if (tokens_choose(find_op(pass, OP_ROUTE)) || !strstr(told(l), "generation")) {
        fail_msg("%s, generation: %s", what, told(l));
    }
    unload(l);
}

// Each word a parameter may be, each switch the other way round: one at a time.
static int variants_of(Arena *a, const Fn *f, const char **out) {
    int n = 0;
    out[n++] = "";
    for (int i = 0; i < f->params.n; i++) {
        const Param *p = &f->params.at[i];
        const Expr *e = p->fallback;
        for (int k = 0; p->type.kind == TY_WORDS && k < p->type.words.n; k++)
            if (n < MOST_VARIANTS && strcmp(p->type.words.at[k], e->name) != 0)
                out[n++] = arena_printf(a, ", %s: \"%s\"", p->name, p->type.words.at[k]);
        if (n < MOST_VARIANTS && e && (e->kind == X_BOOL))
            out[n++] = arena_printf(a, ", %s: %s", p->name, num_value(e->num) != 0 ? "false" : "true");
    }
    return n;
}

static void check_router(const char *name) {
    Arena *a = arena_create();
    char path[200];
    snprintf(path, sizeof path, "models/routing/%s.moe", name);
    Loaded *l = load(path);
    const Fn *f = router_fn(l, name);
    const char *variant[MOST_VARIANTS];
    int n = variants_of(a, f, variant);
    bool can_mask = param_of(f, "used") != NULL;
    for (int i = 0; i < n; i++) check_case(&(Case){name, f, variant[i], 12, 2, 6, can_mask});
    check_case(&(Case){name, f, "", 12, 2, 6, false});
    check_case(&(Case){name, f, "", 5, 3, 4, can_mask});
    check_case(&(Case){name, f, "", 16, 1, 9, can_mask});
    check_case(&(Case){name, f, "", 5, 1, 1, can_mask});
    unload(l);
    arena_destroy(a);
}

static void routers_keep_their_contract(void **state) {
    (void)state;
    int n = for_each_program("models/routing", check_router);
    print_message("%d routers in %d cases: %d gates, %d choices dropped, %d gradients compared (%d decisions "
                  "flipped)\n",
                  n, total.cases, total.gates, total.dropped, total.compared, total.flipped);
    assert_true(n >= 16 && total.dropped > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routers_keep_their_contract),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
