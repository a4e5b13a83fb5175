// Epilogues of contractions: elementwise regions over strips of a product.
#include "codegen/cpu/epilogue.h"
#include <assert.h>
#include <string.h>
#include "codegen/cpu/elem.h"
#include "codegen/cpu/tile.h"

// Finds a result for each product: one that is the product itself, or another one of its type.
static bool find_homes(const Node *n, const Contraction *c, int *home) {
    const Graph *region = n->attr.epilogue;
    bool taken[2 * MAX_NAMED + 64] = {false};
    for (int p = 0; p < c->products; p++) home[p] = region ? -1 : 0;
    for (int kept = 1; region && kept >= 0; kept--)
        for (int p = 0; p < c->products; p++)
            for (int i = 0; i < n->n_out && home[p] < 0; i++) {
                const Node *maker = region->last->in[i]->node;
                bool is_arg = maker->op == OP_ARG && maker->attr.k < c->products;
                if (taken[i] || !type_eq(&n->out[i].type, &c->y)) continue;
                if (kept ? !is_arg || maker->attr.k != p : is_arg) continue;
                home[p] = i;
                taken[i] = true;
            }
    for (int p = 0; p < c->products; p++)
        if (home[p] < 0) return false;
    return true;
}

bool epilogue_possible(const KernelNode *k) {
    const Node *n = k->node;
    int home[2];
    Contraction c = contraction_of(n);
    if (!n->attr.epilogue) return true;
    for_each_node(n->attr.epilogue, m) {
        RowMap map;
        if (m->op == OP_ARG && !row_map(&m->out[0].type, &c.y, &map)) return false;
    }
    return body_is_elementwise(n->attr.epilogue) && find_homes(n, &c, home);
}

LV epilogue_home(Cg *cg, const Epilogue *e, int product) { return cg_out(cg, e->home[product]); }

typedef struct {
    const Epilogue *e;
    LV row, col, mask;
} Place;

static LV arg_at(void *self, Cg *cg, const Node *arg) {
    const Place *p = self;
    int k = (int)arg->attr.k, products = p->e->c.products;
    LV base = k < products ? epilogue_home(cg, p->e, k) : cg_in(cg, p->e->c.extra + k - products);
    return cg_load_broadcast(cg, base, &arg->out[0].type, &p->e->c.y, p->row, p->col, p->mask);
}

// 16 columns of a row.  A result that is a product in its home is there already.
static void emit_vector(Cg *cg, const Epilogue *e, LV row, LV col, LV mask) {
    const Node *n = cg->k->node;
    const Graph *region = n->attr.epilogue;
    Place place = {e, row, col, mask};
    LV result[2 * MAX_NAMED + 64], at = cg_add(cg, cg_muli(cg, row, type_cols(&e->c.y)), col);
    cg_body(cg, region, &(BodyArgs){arg_at, &place}, result);
    for (int i = 0; i < n->n_out; i++) {
        const Node *maker = region->last->in[i]->node;
        if (maker->op == OP_ARG && maker->attr.k < e->c.products && e->home[maker->attr.k] == i) continue;
        cg_store_vec(cg, n->out[i].type.dtype, result[i], cg_out(cg, i), at, mask);
    }
}

static bool is_as_large(const Type *t, const Type *y) {
    Type like = *y;
    like.dtype = t->dtype;
    return type_eq(t, &like);
}

static bool reads_much(const Epilogue *e, const Node *n) {
    for (int i = e->c.extra; i < n->n_in; i++)
        if (is_as_large(&n->in[i]->type, &e->c.y)) return true;
    return false;
}

// The lines of a row's columns col .. col + 15 in all operands of the product's size.
static void ask_for(Cg *cg, const Epilogue *e, LV row, LV col) {
    const Node *n = cg->k->node;
    LV at = cg_add(cg, cg_muli(cg, row, type_cols(&e->c.y)), col);
    for (int i = e->c.extra; i < n->n_in; i++)
        if (is_as_large(&n->in[i]->type, &e->c.y))
            cg_prefetch(cg, cg_at(cg, n->in[i]->type.dtype, cg_in(cg, i), at), false, 2);
}

enum { P_CALL, P_ROW, P_N, P_COL, P_END, N_PARAMS };

// A function over rows and columns; with `ask` it only asks for lines.
static LV emit_function(Cg *cg, Epilogue *e, const char *name, bool ask) {
    LT params[N_PARAMS] = {cg->ptr, cg->i64, cg->i64, cg->i64, cg->i64};
    LV call = cg->call, arg[sizeof cg->arg / sizeof *cg->arg];
    memcpy(arg, cg->arg, sizeof arg);
    CgFunction f;
    CgLoop row, col;
    CgIf rest;
    cg_function_begin(cg, &f, name, cg->void_t, params, N_PARAMS);
    cg->call = LLVMGetParam(f.fn, P_CALL);
    LV args = cg_load(cg, cg->ptr, cg_bytes(cg, cg->call, cg_int(cg, offsetof(RtCall, arg))), 8);
    for (int i = 0; i < cg->n_args; i++)
        cg->arg[i] = cg_load(cg, cg->ptr, cg_gep(cg, cg->ptr, args, cg_int(cg, i)), 8);
    LV first = LLVMGetParam(f.fn, P_ROW), begin = LLVMGetParam(f.fn, P_COL), end = LLVMGetParam(f.fn, P_END);
    LV whole = cg_add(cg, begin, LLVMBuildAnd(cg->b, cg_sub(cg, end, begin), cg_int(cg, -LANES), ""));
    int tail = (int)(type_cols(&e->c.y) % LANES);
    cg_for(cg, &row, first, cg_add(cg, first, LLVMGetParam(f.fn, P_N)), 1);
    cg_for(cg, &col, begin, ask ? end : whole, LANES);
    if (ask) ask_for(cg, e, row.i, col.i);
    else emit_vector(cg, e, row.i, col.i, NULL);
    cg_end(cg, &col);
    if (tail && !ask) {
        cg_if(cg, &rest, cg_lt(cg, whole, end));
        emit_vector(cg, e, row.i, whole, tile_mask(cg, tail));
        cg_endif(cg, &rest);
    }
    cg_end(cg, &row);
    cg_function_end(cg, &f);
    cg->call = call;
    memcpy(cg->arg, arg, sizeof arg);
    e->type = f.type;
    return f.fn;
}

void epilogue_begin(Cg *cg, Epilogue *e) {
    const Node *n = cg->k->node;
    *e = (Epilogue){.c = contraction_of(n)};
    bool found = find_homes(n, &e->c, e->home);
    assert(found);
    (void)found;
    if (!n->attr.epilogue) return;
    e->fn = emit_function(cg, e, "epilogue", false);
    if (reads_much(e, n)) e->ahead = emit_function(cg, e, "ahead", true);
}

void epilogue_run(Cg *cg, const Epilogue *e, LV row, LV n, LV col, LV end) {
    cg_call(cg, e->type, e->fn, (LV[]){cg->call, row, n, col, end}, N_PARAMS);
}

void epilogue_ahead(Cg *cg, const Epilogue *e, LV row, LV n, LV col, LV end) {
    if (e->ahead) cg_call(cg, e->type, e->ahead, (LV[]){cg->call, row, n, col, end}, N_PARAMS);
}
