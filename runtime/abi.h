// THE WAIST: what compiler and runtime agree on.  Element types, tensor views, kernel signature, plan format.
// Whoever changes this file changes both sides, and says so in the commit (and counts RT_PLAN_VERSION up).
#ifndef RUNTIME_ABI_H
#define RUNTIME_ABI_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ---- element types --------------------------------------------------------------------------------------

typedef enum {
    F32, BF16, F16,        // floating point that graphs may hold
    I32, U32, I8, U8,
    BOOL,                  // one byte, 0 or 1
    F64, I64,              // only in files and in the double-precision reference evaluator, never in a plan
    DTYPE_COUNT
} DType;

static inline int dtype_bytes(DType t) {
    static const uint8_t bytes[DTYPE_COUNT] = {4, 2, 2, 4, 4, 1, 1, 1, 8, 8};
    return bytes[t];
}
static inline const char *dtype_name(DType t) {
    static const char *const name[DTYPE_COUNT] = {"f32", "bf16", "f16", "i32", "u32", "i8", "u8", "bool", "f64", "i64"};
    return name[t];
}
static inline bool dtype_is_float(DType t) { return t <= F16 || t == F64; }

enum { MAX_DIM = 8 };

// Where the elements of a tensor lie: row by row, or as contractions read a matrix (the last two axes): in panels of
// 32 columns, k after k.  Pairs are two k in 32 bits, the first in the upper half;
// what panels have beyond the matrix is 0.
//     P32     [N/32][K][32]       of [K, N]         P32V     [N/32][K/2][32][2]     of [K, N]
//     P32T    [N/32][K][32]       of [N, K]         P32VT    [N/32][K/2][32][2]     of [N, K]
typedef enum { LAYOUT_ROWS, LAYOUT_P32, LAYOUT_P32T, LAYOUT_P32V, LAYOUT_P32VT, LAYOUT_COUNT } Layout;
enum { PANEL_COLS = 32 };

static inline const char *layout_name(Layout l) {
    static const char *const name[LAYOUT_COUNT] = {"ROWS", "P32", "P32T", "P32V", "P32VT"};
    return name[l];
}
static inline bool layout_is_pairs(Layout l) { return l >= LAYOUT_P32V; }
static inline bool layout_is_transposed(Layout l) { return l == LAYOUT_P32T || l == LAYOUT_P32VT; }

// Elements that a matrix takes, those beyond it included.
static inline int64_t layout_elements(Layout l, int64_t rows, int64_t cols) {
    if (l == LAYOUT_ROWS) return rows * cols;
    int64_t k = layout_is_transposed(l) ? cols : rows, n = layout_is_transposed(l) ? rows : cols;
    return (n + PANEL_COLS - 1) / PANEL_COLS * PANEL_COLS * (layout_is_pairs(l) ? k + k % 2 : k);
}

// Where an element of a matrix lies.
static inline int64_t layout_index(Layout l, int64_t rows, int64_t cols, int64_t row, int64_t col) {
    if (l == LAYOUT_ROWS) return row * cols + col;
    bool transposed = layout_is_transposed(l);
    int64_t K = transposed ? cols : rows, k = transposed ? col : row, n = transposed ? row : col;
    int64_t panel = n / PANEL_COLS, lane = n % PANEL_COLS;
    if (!layout_is_pairs(l)) return (panel * K + k) * PANEL_COLS + lane;
    return ((panel * ((K + 1) / 2) + k / 2) * PANEL_COLS + lane) * 2 + 1 - k % 2;
}

// A dense row-major tensor in memory; dim[] are actual sizes.  Owns nothing.
typedef struct {
    DType   dtype;
    int     ndim;
    int64_t dim[MAX_DIM];
    void   *data;
} Tensor;

// ---- kernels --------------------------------------------------------------------------------------------

// One call = one task of one phase of one step.  Tasks of a phase are independent and may run on any thread in
// any order; phases are separated by barriers.  A kernel of several rounds runs its phases once in each, and the
// phase counts on: round = phase / n_phases.  What a task computes depends on sizes only, never on the thread.
typedef struct {
    void *const   *arg;       // base addresses of the step's operands, then results (order: the step's args)
    const int64_t *sym;       // current value of each row symbol of the plan, by index (RtSym)
    int32_t        task, n_tasks, phase, thread;
    void          *scratch;   // RT_SCRATCH_BYTES private to the thread, 64-byte aligned, contents undefined
    struct RtRanks *ranks;    // the other ranks, for steps that exchange with them (runtime/ranks.h); NULL: there are none
    const void    *data;      // the kernel's constant block (RtKernel.data), or NULL
} RtCall;
typedef void RtKernelFn(const RtCall *c);

enum { RT_SCRATCH_BYTES = 4 << 20, RT_MAX_PHASES = 8 };

// ---- ranks ----------------------------------------------------------------------------------------------
// One plan is every rank's.  rank = (dp_i * ep + ep_i) * tp + tp_i; leaves are dealt to data ranks dp_i * ep + ep_i in
// order, slots of experts to ep_i in order; matrices are cut over tp_i.  What is cut is cut in equal parts.
// etp: the ranks of a tp group share its leaves where no matrix is cut; 1: experts are whole, too, and their slots dealt to
// ep_i * tp + tp_i.

typedef struct {
    int32_t dp, ep, tp, zero;
    int32_t replicas;      // slots of a MoE layer beyond its experts
    int32_t etp;           // 0: all rows are on each rank of a tp group; 1: experts are whole; tp: they are cut
} RtMesh;

typedef enum {
    RT_GROUP_DATA,     // by data rank: those that hold other leaves
    RT_GROUP_EXP,      // by ep_i (etp 1: and tp_i): those that hold the other experts
    RT_GROUP_EDP,      // by dp_i: those that hold the same experts
    RT_GROUP_TP,       // by tp_i: those that hold the same leaves
    RT_GROUPS
} RtGroup;

// Ranks that hold different slots of experts.
static inline int rt_expert_ranks(RtMesh m) { return m.etp == 1 ? m.ep * m.tp : m.ep; }
static inline int rt_group_size(RtMesh m, RtGroup g) {
    return g == RT_GROUP_DATA ? m.dp * m.ep : g == RT_GROUP_EXP ? rt_expert_ranks(m) : g == RT_GROUP_EDP ? m.dp : m.tp;
}
static inline int rt_mesh_ranks(RtMesh m) { return m.dp * m.ep * m.tp; }
// Ranks that share out the lanes of a step somewhere: each has at least one.
static inline int rt_lane_ranks(RtMesh m) { return m.dp * m.ep * (m.etp ? m.tp : 1); }
// The number of `rank` within its group.
static inline int rt_group_rank(RtMesh m, RtGroup g, int rank) {
    int tp_i = rank % m.tp, data = rank / m.tp, ep_i = data % m.ep, dp_i = data / m.ep;
    if (g == RT_GROUP_EXP) return m.etp == 1 ? ep_i * m.tp + tp_i : ep_i;
    return g == RT_GROUP_DATA ? data : g == RT_GROUP_EDP ? dp_i : tp_i;
}
// The rank that is number i in the group of `rank`.
static inline int rt_group_member(RtMesh m, RtGroup g, int rank, int i) {
    int tp_i = rank % m.tp, data = rank / m.tp, ep_i = data % m.ep, dp_i = data / m.ep;
    if (g == RT_GROUP_TP) return data * m.tp + i;
    if (g == RT_GROUP_EXP && m.etp == 1) return dp_i * m.ep * m.tp + i;
    data = g == RT_GROUP_DATA ? i : g == RT_GROUP_EXP ? dp_i * m.ep + i : i * m.ep + ep_i;
    return data * m.tp + tp_i;
}

// A step whose kernel is EXCHANGE_SYMBOL; its constant block.
#define EXCHANGE_SYMBOL "moec_exchange"
typedef enum {
    RT_TREE_ALL_REDUCE,     // x -> y      y = balanced tree over the group's ranks
    RT_TREE_REDUCE_SCATTER, // x -> y      one part of it along an axis; x is used up
    RT_ALL_GATHER,          // x -> y      the parts of all along an axis
    RT_SHARD,               // x -> y      one's own part along an axis; nothing travels
    RT_EXCHANGE_OFFSETS,    // offsets at home [E*n + 1], counts? -> offsets at the experts [E/g * n*g + 1]
    RT_EXCHANGE_ROWS,       // x, offsets at home, at the experts, counts?, same? -> y      each row to its expert's rank ..
    RT_RETURN_ROWS,         // .. and back
    RT_EXCHANGE_COUNTS,     // offsets at home, same? -> counts      of all ranks, where rows go by nodes (node_rows.h)
    RT_JOIN_OFFSETS,        // offsets of own rows [E*n + 1] -> of the rows of all ranks [E * g*n + 1]
    RT_JOIN_ROWS,           // x, own offsets, those of all -> y            the rows of all ranks
    RT_SUM_ROWS,            // x, own offsets, those of all -> y            of all rows, sums over the ranks of one's own
    RT_OWN_ROWS,            // x, own offsets, those of all -> y            of all rows one's own; nothing travels
    RT_SUM_REPLICAS,        // x -> y      for each slot, the balanced tree over those that hold the same expert
    RT_WAIT,                // ends the pending exchange of the same sequence
    RT_CHUNK_OFFSETS        // offsets at the experts -> for each chunk and slot two ranges of rows [chunks + RT_CHUNKS_MORE, slots, 4]
} RtExchangeKind;

typedef struct {
    int32_t kind, group;    // RtExchangeKind, RtGroup
    int32_t dtype;
    int32_t experts, slots; // RT_EXCHANGE_*, RT_SUM_REPLICAS: of all ranks; RT_JOIN_*, RT_SUM_ROWS: blocks of leaves, pieces
    int32_t leaves;         // RT_EXCHANGE_*: of one rank
    uint32_t sequence;      // number of this exchange in the plan
    uint32_t where;         // text offset: instance and line, for messages
    int32_t pending;        // 1: only started; a later step waits for it
    int32_t table;          // 1 + number of the slot table, where axis 0 or rows are of experts; else 0
    int32_t parts;          // RT_SHARD: fewer than ranks: rank i of m has number i * parts / m; 0: one for each
    int32_t sym;            // >= 0: elements are multiplied by its value
    int32_t chunk, chunks;  // chunks > 1: only of this chunk, a group of each rank's experts (RT_CHUNK_OFFSETS: of all)
    int32_t per_node;       // > 0: by nodes, of so many of the group's ranks: counts are operands
    int32_t tokens;         // > 0: rows of the same number, below this, are one: they are operands
    int32_t own;            // > 0: rows of this rank for itself are computed apart (RT_CHUNK_OFFSETS: of own - 1 slots first)
    int64_t rows;           // by nodes: the bound of those at home
    int64_t elements;       // of x; of a row, where x has rows
    int64_t run;            // of what is cut along an axis: elements of a part from there on; 0: all (axis 0)
} RtExchange;

// Behind the chunks of others' rows: rows of one's own that come first, those that come last; and all rows.
enum { RT_CHUNK_OWN_FIRST, RT_CHUNK_OWN_LAST, RT_CHUNK_ALL, RT_CHUNKS_MORE, RT_CHUNK_NUMBERS = 4 };

// The first of a rank's `experts` experts that belongs to a chunk (chunk = chunks: the end).
static inline int rt_chunk_begin(int experts, int chunk, int chunks) { return chunks > 1 ? (int)((int64_t)experts * chunk / chunks) : chunk ? experts : 0; }

// ---- sequences ------------------------------------------------------------------------------------------
// A run over rows of several sequences is told of them by the input sequences i32 [R, 4], a row each:
enum {
    SEQUENCE_FIRST,                 // its first row in this run
    SEQUENCE_ROWS,                  // how many it has
    SEQUENCE_LENGTH,                // rows of the sequence so far, with these
    SEQUENCE_PLACE,                 // where in the pools its keys and values are
    SEQUENCE_COLUMNS
};

// ---- plan -----------------------------------------------------------------------------------------------
// One position-independent block: RtPlan, then tables; every reference is a byte offset from the block's start
// (RtSpan) or an index into a table.  Built in memory by the JIT, linked as a constant array into a trainer.

enum { RT_PLAN_MAGIC = 0x6365f06d, RT_PLAN_VERSION = 9 };

typedef struct { uint32_t offset, n; } RtSpan;   // n entries (bytes for text) at offset

typedef enum { RT_PERSISTENT, RT_STEP, RT_CONST, RT_ARENAS } RtArenaKind;

// How many tasks a phase has: times * (ceil(rows / grain) + extra), or times * rows if that is less;
// rows = n * (sym < 0 ? 1 : value of sym).  extra: rows that come in groups are cut at the groups' borders, too.
typedef struct { int64_t n, grain, times; int32_t sym, extra; } RtTasks;
static inline int64_t rt_count_tasks(const RtTasks *t, const int64_t *sym) {
    int64_t rows = t->sym < 0 ? t->n : t->n * sym[t->sym], cut = (rows + t->grain - 1) / t->grain + t->extra;
    return (cut < rows ? cut : rows) * t->times;
}

typedef struct {
    uint32_t name;          // text offset
    int32_t  leaves;        // 0: not cut into leaves
    int64_t  bound;         // largest value; arenas are sized for it
    int64_t  fixed;         // >= 0: always this value.  -1: see `from`
    int32_t  from_arena;    // ragged rows: i32 offsets array of the route: value = offsets[from_index] there;
    int32_t  from_index;    //   read again after each step that writes it.  from_arena < 0: the host sets it (T of `run`)
    int64_t  from_offset;
} RtSym;

typedef enum { RT_PARAM, RT_STATE, RT_GRAD, RT_INPUT, RT_OUTPUT } RtRole;
typedef enum { RT_INIT_ZEROS, RT_INIT_CONST, RT_INIT_NORMAL, RT_INIT_TRUNC_NORMAL, RT_INIT_UNIFORM,
               RT_INIT_RANDOM_INT, RT_INIT_COPY } RtInitKind;

typedef struct {
    uint32_t name;          // text offset; canonical path: layers.3.ffn.experts.w1, adam.m/NAME, grad/NAME, ...
    uint8_t  dtype, ndim, role, init;
    uint8_t  arena;         // RT_PERSISTENT or RT_STEP
    uint8_t  saved;         // part of checkpoints
    uint8_t  experts;       // 1: axis 0 counts experts; checkpoints hold one tensor per expert (NAME with the number
                            //    before its last segment: layers.3.ffn.experts.17.w1)
    uint8_t  kind;          // outputs: RtOutputKind
    uint8_t  layout;        // Layout; checkpoints hold rows
    uint8_t  shard;         // 1 + RtGroup over which axis 0 is cut: dim[] are of a part.  0: whole on every rank
    uint8_t  within;        // 1 + RtGroup over which axis 1 is cut besides: dim[] are of a part.  0: none
    uint8_t  tp;            // 1 + axis that is cut over RT_GROUP_TP: dim[] are of a part.  0: none.  Axes 0, 1: cut over tp first
    uint16_t table;         // 1 + number of the slot table that says which experts the part is of; 0: none
    int64_t  dim[MAX_DIM];  // bound sizes
    int32_t  dim_sym[MAX_DIM];   // >= 0: dim[i] is scaled by that symbol (dim[i] = n * bound; size now = n * value)
    int64_t  offset, bytes;      // bytes: as laid out
    double   init_a, init_b;     // const: a; normal: std a; trunc_normal: std a, cut at b std; uniform: bound a; random_int: n = a
    uint32_t init_from;     // RT_INIT_COPY: name of the source tensor
    uint32_t init_name;     // text hashed into the random key instead of `name` (copies, tied draws); usually = name
    float    weight;        // losses: factor in the objective
    uint32_t span;          // index into spans
} RtTensor;

// Which experts a rank holds is data (runtime/slots.h): the ranks of a group have slots, each as many, in order.
typedef struct { uint32_t name; int32_t experts, slots, pad; } RtSlotTable;   // name: text offset; of a MoE layer

typedef enum { RT_OUT_LOSS, RT_OUT_METRIC, RT_OUT_RESULT } RtOutputKind;

typedef struct { uint32_t symbol; uint16_t n_phases, n_rounds; RtSpan data; } RtKernel;   // symbol: text offset of the code's name

typedef struct { int64_t offset; uint32_t arena, pad; } RtArg;

// What a step's operations are: which of the machine's rates is their limit.
typedef enum { RT_ELEMENTWISE, RT_CONTRACTION, RT_CONTRACTION_BF16, RT_WORK_KINDS } RtWorkKind;

typedef struct { double bytes; int32_t sym, pad; } RtPart;      // bytes, at bound, that grow with a symbol

enum { RT_MAX_PARTS = 3 };

typedef struct {
    uint32_t kernel, first_arg, n_args, span;
    RtTasks  tasks[RT_MAX_PHASES];
    int32_t  defines_sym;   // >= 0: this step writes the offsets of that symbol
    uint32_t op;            // text offset: op or template name, for traces
    uint32_t path;          // text offset: layers.3.ffn
    uint32_t work;          // RtWorkKind
    // Of one execution at bound sizes: for MFU and traces.  flops grow with the symbols of all parts.
    double   flops, bytes;
    RtPart   part[RT_MAX_PARTS]; // of bytes
    int32_t  n_parts;
    int32_t  experts;       // > 0: bytes in no part are matrices of so many experts; a row reads one
    int32_t  backward, pad; // backward: made by autodiff
} RtStep;

typedef struct { uint32_t name, first_step, n_steps, pad; int64_t step_bytes; } RtProgram;  // pass update eval run
typedef struct { uint32_t file, line, column, pad; } RtSource;                             // file: text offset

typedef struct {
    uint32_t magic, version, bytes, flags;
    uint64_t graph_hash;
    RtMesh   mesh;
    int64_t  persistent_bytes, step_bytes, lower_bound_bytes;
    uint32_t arithmetic;    // text offset: name of the arithmetic ("f32-fma", "f32-mul-add"): part of a run's identity
    uint32_t info;          // text offset: JSON the compiler leaves for the runtime: model name, settings, counts
    RtSpan   text, syms, slot_tables, tensors, kernels, args, steps, programs, sources, consts;
} RtPlan;

#define RT_TABLE(plan, Type, span) ((const Type *)((const char *)(plan) + (plan)->span.offset))
#define RT_TEXT(plan, at) ((const char *)(plan) + (plan)->text.offset + (at))

// ---- the same bits: trees -------------------------------------------------------------------------------
// tree(lo,hi) = tree(lo,mid) + tree(mid,hi), mid - lo the largest power of two below hi - lo.
static inline int64_t tree_split(int64_t n) {   // n >= 2: the size of the left part
    int64_t p = 1;
    while (p * 2 < n) p *= 2;
    return p;
}

#endif
