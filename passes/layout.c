// Parameters of a program set that only reads them, as their readers read them fastest.
//
//     %w = param : bf16[8000,1024]                      %w = param : bf16[8000,1024].P32VT
//     %y = matmul %x, %w {tb = 1} : bf16[S,8000]   =>   %y = matmul %x, %w {tb = 1} : bf16[S,8000]
//
// A matrix that is a contraction's right-hand side may lie in panels, as the register tile walks it: nobody packs it again at
// each call, and few rows of the left-hand side read it as one stream.  What loads the parameter permutes it once;
// checkpoints stay in rows.  The target offers for each reader a layout and predicts, by the machine's measured rates, what
// the reader takes with it and with rows; the smaller sum over all readers decides.  Readers whose offers differ leave the
// matrix in rows.
#include <string.h>
#include "ir/base/debug.h"
#include "passes/pass.h"

// What the readers of a parameter said.
typedef struct {
    bool   asked, differ, gathered;
    Layout layout;
    double rows, laid;         // seconds of all
} Readers;

static void ask(PassCtx *cx, const Node *reader, int i, int64_t passing) {
    Readers *r = reader->in[i]->mark;
    if (reader->op == OP_GATHER_ROWS && i == 0) {
        r->gathered = true;
        return;
    }
    LayoutOffer o = cx->layout(reader, i, cx->cpu, cx->machine, passing);
    r->differ |= r->asked && o.layout != r->layout;
    r->asked = true;
    r->layout = o.layout;
    r->rows += o.rows;
    r->laid += o.laid;
}

static bool may_lie(const Node *param, const Readers *r) {
    // Rows are gathered out of panels, if they are rows there.
    bool can_gather = param->out[0].type.ndim == 2 && layout_is_transposed(r->layout);
    return r->asked && !r->differ && r->layout != LAYOUT_ROWS && (!r->gathered || can_gather);
}

// Equal times, as far as predictions tell: panels, of which nothing is packed.
static bool is_faster(const Readers *r, const char *forced) {
    const double near = 1.02;
    return forced ? !strcmp(forced, "panels") : r->laid <= near * r->rows;
}

// The products of a pair are made by the same code.
static bool part_pairs(Graph *g) {
    bool changed = false;
    for_each_node(g, n) {
        if (!op_is_contraction(n->op) || !n->attr.pair) continue;
        Type *a = &n->in[1]->type, *b = &n->in[contraction_of(n).second]->type;
        if (a->layout == b->layout) continue;
        a->layout = b->layout = LAYOUT_ROWS;
        changed = true;
    }
    return changed;
}

static int64_t begin(Graph *g, PassCtx *cx) {
    int64_t bytes = 0;
    for_each_node(g, n) {
        if (n->op != OP_PARAM) continue;
        n->out[0].mark = arena_new(cx->scratch, Readers);
        bytes += type_bytes(&n->out[0].type);
    }
    return bytes;
}

static void tell(PassCtx *cx, const Node *param, const Readers *r) {
    const Type *t = &param->out[0].type;
    Type rows = *t;
    rows.layout = LAYOUT_ROWS;
    double ms[2] = {1e3 * r->laid, 1e3 * r->rows};
    const char *name[2] = {layout_name(r->layout), "rows"}, *type = type_text(cx->scratch, &rows);
    int first = t->layout == LAYOUT_ROWS;
    const char *line = arena_printf(cx->scratch, "layout %s %s %s: %.4g ms | %s: %.4g ms\n", param->attr.name, type, name[first], ms[first],
                                    name[!first], ms[!first]);
    TRACE(cx, "%s", line);
    if (cx->weighed) str_add(cx->weighed, line);
}

bool pass_layout(Graph *g, PassCtx *cx) {
    if (!cx->own_parameters || !cx->layout) {
        TRACE(cx, "layout: rows\n");
        return false;
    }
    const char *forced = debug_arg(cx->scratch, DEBUG_layout);
    int n_panels = 0, n_rows = 0;
    double bytes = 0, padding = 0, won = 0;
    int64_t passing = begin(g, cx);
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->node->op == OP_PARAM) ask(cx, n, i, passing);
    for_each_node(g, n) {
        const Readers *r = n->op == OP_PARAM ? n->out[0].mark : NULL;
        if (r) n->out[0].type.layout = (uint8_t)(may_lie(n, r) && is_faster(r, forced) ? r->layout : LAYOUT_ROWS);
    }
    while (part_pairs(g)) {}
    for_each_node(g, n) {
        if (n->op != OP_PARAM) continue;
        const Readers *r = n->out[0].mark;
        n->out[0].mark = NULL;
        if (!may_lie(n, r)) continue;
        tell(cx, n, r);
        Type rows = n->out[0].type;
        if (rows.layout == LAYOUT_ROWS) {
            n_rows++;
            continue;
        }
        rows.layout = LAYOUT_ROWS;
        n_panels++;
        won += r->rows - r->laid;
        bytes += (double)type_bytes(&rows);
        padding += (double)(type_bytes(&n->out[0].type) - type_bytes(&rows));
    }
    WON(cx, "%d parameters in panels, %d in rows as predicted, %.4g ms won; %.1f MB that no call packs again, %.1f MB of padding", n_panels,
        n_rows, 1e3 * won, bytes / 1e6, padding / 1e6);
    return n_panels > 0;
}
