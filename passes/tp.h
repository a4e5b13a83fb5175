// Of tensor parallelism (tensor_parallel.c): where values are, how they get elsewhere, and the rules of ops.
#ifndef PASSES_TP_H
#define PASSES_TP_H
#include "passes/util.h"

typedef enum { WHOLE_ON_EACH, OWN_LEAVES, CUT, PARTIAL } SpotKind;
typedef struct { SpotKind kind; int axis; } Spot;

static const Spot whole = {WHOLE_ON_EACH, 0}, own_leaves = {OWN_LEAVES, 0}, partial = {PARTIAL, 0};
static inline Spot cut(int axis) { return (Spot){CUT, axis}; }
static inline bool same_spot(Spot a, Spot b) { return a.kind == b.kind && (a.kind != CUT || a.axis == b.axis); }

// Where a value is, and as what it was taken elsewhere.  Hangs at its mark.
typedef struct {
    Spot   spot;
    Value *at_whole, *at_own, *at_cut[MAX_DIM], *shared;
} Twins;

typedef struct {
    Graph   *g;
    PassCtx *cx;
    int64_t  tp;
    PtrMap   params;           // by name
    PtrMap   joined;           // from symbols of own rows to Joined
    PtrMap   own_of;           // from offsets of all rows, and their symbols, to those of own rows
    PtrMap   moved;            // from values whose node was replaced to what stands for them
    Sym     *own;              // leaves of this rank alone; NULL: all ranks of the group have all rows
    Value   *tp_rank;          // the input of this name, made when somebody asks
    int      n_sums, n_gathers;
    double   bytes;
    bool     ok;
} Tp;

static const char *const over_tp = "tp";

static inline Spot spot_of(const Value *v) { return v->mark ? ((Twins *)v->mark)->spot : whole; }
static inline bool is_cut_at(const Value *v, int axis) { return same_spot(spot_of(v), cut(axis)); }
static inline bool are_leaves(const Tp *q, const Type *t) { return q->own && (type_is_leafy(t) || type_ragged(t)); }

// ---- tp_spots.c
Twins *twins_of(Tp *q, Value *v);
void   spot_set(Tp *q, Value *v, Spot s);
// Operand i of n in another place: exchanged in front of n, or as somebody took it there before.
void   want(Tp *q, Node *n, int i, Spot to);
// Results of n follow from its operands again and are where s says, if they have leaves or s is not about leaves.
void   shape_again(Tp *q, Node *n, Spot s);
// Offsets and symbols of rows that n has as attributes or reads: of all rows, or of own ones.
void   name_rows(Tp *q, Node *n, bool all);
// n as on one rank, but of fewer leaves.
void   place_own(Tp *q, Node *n);
// n without a rule: sums are added where they are read, of own leaves if there are.
void   settle(Tp *q, Node *n);
bool   is_at_leaves(const Tp *q, const Value *v);
// Does n work on rows of a route, or count leaves: are they a rank's own?  But where experts are cut, is it of all rows?
bool   is_by_leaves(const Tp *q, const Node *n);
bool   is_of_all_rows(const Tp *q, const Node *n);

// ---- tensor_parallel.c
// The parameter of PARAM itself, grad/PARAM and the optimizer's states of it.  NULL: there is none.
const Node *param_of(const Tp *q, Name name);
Spot   tensor_spot(const Tp *q, Name name, const Dims *dims);
void   cut_tensor(Tp *q, Node *n, int axis);

// ---- rules: operands and results of n get their places
typedef void TpRule(Tp *q, Node *n);
// tp_ops.c
TpRule place_elementwise, place_matmul, place_matmul_dw, place_grouped_matmul, place_grouped_dw, place_sum, place_reshape,
       place_broadcast, place_permute;
// The same of what has an axis that it works along: any other may be cut.
void   place_along_others(Tp *q, Node *n, int works_along);
// tp_heads.c
TpRule place_gather_rows, place_scatter_add_rows, place_head, place_attention, place_attention_grad, place_cache;

#endif
