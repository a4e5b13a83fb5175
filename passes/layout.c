// Parameters of a program set that only reads them, in the order their readers want.
//
//     %w = param : bf16[8000,1024]                      %w = param : bf16[8000,1024].P32VT
//     %y = matmul %x, %w {tb = 1} : bf16[S,8000]   =>   %y = matmul %x, %w {tb = 1} : bf16[S,8000]
//
// A matrix that is a contraction's right-hand side lies in panels, as the register tile walks it: nobody packs
// it again at each call, and few rows of the left-hand side read it as one stream.  What loads the parameter
// permutes it once; checkpoints stay in rows.  The target says for each reader what it wants; readers that
// disagree leave the matrix in rows.
#include "passes/pass.h"

enum { GATHERED = 64, ASKED = 32, WANT = 31 };       // Node.flags of a parameter; WANT: the Layout of who asked first

static void ask(PassCtx *cx, const Node *reader, int i) {
    Node *param = reader->in[i]->node;
    if (reader->op == OP_GATHER_ROWS && i == 0) {
        param->flags |= GATHERED;
        return;
    }
    int one = (int)cx->layout(reader, i);
    param->flags = param->flags & ASKED && (param->flags & WANT) != one ? ASKED | LAYOUT_ROWS
                                                                        : param->flags | ASKED | one;
}

// Rows are gathered out of panels, if they are rows there; nobody would put a matrix in panels for that.
static Layout answer(const Node *param) {
    Layout l = (Layout)(param->flags & WANT);
    bool can_gather = param->out[0].type.ndim == 2 && layout_is_transposed(l);
    return param->flags & GATHERED && !can_gather ? LAYOUT_ROWS : l;
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

bool pass_layout(Graph *g, PassCtx *cx) {
    if (!cx->own_parameters || !cx->layout) {
        TRACE(cx, "layout: rows\n");
        return false;
    }
    int n_panels = 0;
    double bytes = 0, padding = 0;
    for_each_node(g, n) n->flags = 0;
    for_each_node(g, n)
        for (int i = 0; i < n->n_in; i++)
            if (n->in[i]->node->op == OP_PARAM) ask(cx, n, i);
    for_each_node(g, n) {
        if (n->op == OP_PARAM) n->out[0].type.layout = (uint8_t)answer(n);
        n->flags = 0;
    }
    while (part_pairs(g)) {}
    for_each_node(g, n) {
        Type rows = n->n_out ? n->out[0].type : (Type){0};
        if (n->op != OP_PARAM || rows.layout == LAYOUT_ROWS) continue;
        rows.layout = LAYOUT_ROWS;
        n_panels++;
        bytes += (double)type_bytes(&rows);
        padding += (double)(type_bytes(&n->out[0].type) - type_bytes(&rows));
        TRACE(cx, "layout: %s %s\n", n->attr.name, type_text(cx->scratch, &n->out[0].type));
    }
    WON(cx, "%d parameters in panels, %.1f MB that no call packs again, %.1f MB of padding", n_panels,
        bytes / 1e6, padding / 1e6);
    return n_panels > 0;
}
