// Where the values of a rank's program are, and how one gets from one place to another.  Of partition only.
#ifndef PASSES_PLACEMENT_H
#define PASSES_PLACEMENT_H
#include "passes/util.h"

typedef enum {
    HOME,            // whole on each rank; what has leaves or rows: one's own leaves, all their rows
    PART,            // a part of axis 0, over a group; nested: of that a part of axis 1
    AT_EXPERTS       // rows, on the ranks of their experts
} PlaceKind;

typedef struct {
    PlaceKind kind;
    RtGroup   group;
    Name      slots;           // of a part over the ranks of experts: the table that says whose it is
    bool      nested;          // axis 1 is cut, too, over the ranks that hold the same experts
} Place;

// The rows of a route, seen by the ranks of its experts.
typedef struct {
    Sym   *near, *far;
    Value *near_offsets, *far_offsets;
    Name   slots;
} FarRows;

typedef struct {
    Graph  *g;
    PassCtx *cx;
    PtrMap  twins;             // of values: where they are and have been taken
    PtrMap  far_of, near_of;   // from symbols to FarRows
    int     n_exchanges;
    double  bytes;             // that a rank sends, at bound
} Placement;

Place place_of(const Placement *p, const Value *v);
void  place_set(Placement *p, Value *v, Place place);
// v in another place: made in front of `before`, or an earlier one.
Value *placed(Placement *p, Value *v, Place place, Node *before);
// The rows of a symbol at their experts; made at the first call, by this table.  NULL: its experts are on every rank.
FarRows *rows_far(Placement *p, Sym *near, Name slots);
FarRows *rows_known(const Placement *p, Sym *s);      // whichever side s is; NULL if nobody sent them
// Of axis 0 as a whole, what a part of this place has.
int64_t  part_size(const Placement *p, Place place, int64_t whole);
// A nested place without its cut of axis 1, and the ranks that share that axis.
Place    outer_place(const Placement *p, Place nested);
RtGroup  inner_group(const Placement *p);
int64_t  group_size(const Placement *p, RtGroup group);
#endif
