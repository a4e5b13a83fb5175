// Trees by halving (m = 4; letters are quarters of buf, what a rank keeps is in capitals):
//
//   rank      0           1           2           3
//   round 0   A B <-----> C D         A B <-----> C D       half against the neighbour: 0 + 1, 2 + 3
//   round 1   A <-------------------> B                      then with distance 2: (0 + 1) + (2 + 3)
//                         C <-------------------> D
//
// Each element meets its operands in the order of the tree, wherever the cuts are; the lower ranks' sum stands on
// the left.  TREE_GATHER is the same picture upwards.  Near ranks exchange the big halves.
//
// Small sums are latency alone: all send everything to all, and each evaluates the whole tree by itself.
#include "runtime/comm_rounds.h"

#include <assert.h>
#include <string.h>

#include "runtime/comm_transport.h"
#include "runtime/convert.h"

enum { ADD_BYTES = 256 << 10, COPY_BYTES = RT_PIECE_BYTES, DIRECT_BYTES = 4096 };
enum { CACHE_LINE = 64 };

int64_t rt_piece_bytes(bool adds) { return adds ? ADD_BYTES : COPY_BYTES; }

static int log2_up(int m) {
    int q = 0;
    while (1 << q < m) q++;
    return q;
}

static bool is_sum(RtCommKind kind) {
    return kind == RT_COMM_TREE_REDUCE || kind == RT_COMM_TREE_SCATTER || kind == RT_COMM_EXACT;
}

static bool is_direct(RtCommKind kind, DType dtype, int64_t n, int m) {
    return is_sum(kind) && (n * dtype_bytes(dtype) <= DIRECT_BYTES || !rt_is_power_of_two(m));
}

int64_t rt_comm_scratch_bytes(RtCommKind kind, DType dtype, int64_t n, int m) {
    if (!is_sum(kind) || m == 1) return 0;
    int64_t bytes = n * dtype_bytes(dtype), window = RT_WINDOW * (int64_t)ADD_BYTES;
    if (is_direct(kind, dtype, n, m)) return bytes * m;
    return bytes < window ? bytes : window;
}

int rt_comm_piece(int i, int m) {
    int piece = 0;
    for (int bit = 1; bit < m; bit *= 2, i /= 2) piece = piece * 2 + i % 2;
    return piece;
}

static int64_t middle(int64_t begin, int64_t end, int64_t grain) {
    int64_t half = begin + (end - begin) / 2, below = half / grain * grain, above = below + grain;
    if (below < begin || (above <= end && above - half < half - below)) below = above;
    return below < end ? below : end;
}

static void cut_range(int64_t *cut, int pieces, int64_t grain) {
    if (pieces == 1) return;
    cut[pieces / 2] = middle(cut[0], cut[pieces], grain);
    cut_range(cut, pieces / 2, grain);
    cut_range(cut + pieces / 2, pieces / 2, grain);
}

void rt_comm_cut(int64_t n, int64_t grain, int m, int64_t *cut) {
    cut[0] = 0;
    cut[m] = n;
    cut_range(cut, m, grain);
}

// ---- the exchanges --------------------------------------------------------------------------------------

typedef struct { int64_t begin, end; } Range;

// The elements that rank i holds after so many halvings.
static Range held(const RtCommOp *op, int i, int m, int halvings) {
    Range r = {0, op->n};
    int first = 0, pieces = m, line = CACHE_LINE / dtype_bytes(op->dtype);
    for (int k = 0; k < halvings; k++) {
        pieces /= 2;
        int64_t border = op->cut ? op->cut[first + pieces] : middle(r.begin, r.end, line);
        bool upper = i >> k & 1;
        if (upper) first += pieces;
        *(upper ? &r.begin : &r.end) = border;
    }
    return r;
}

// By way of integers: the planner has sizes, no buffers.
static void *address(void *base, int64_t bytes) { return (void *)((uintptr_t)base + (uintptr_t)bytes); }
static void *element(const RtCommOp *op, int64_t i) { return address(op->buf, i * dtype_bytes(op->dtype)); }
static int64_t range_bytes(const RtCommOp *op, Range r) { return (r.end - r.begin) * dtype_bytes(op->dtype); }

static RtShare share(const RtCommOp *op, Range send, Range recv) {
    return (RtShare){.send = element(op, send.begin), .send_bytes = range_bytes(op, send),
                     .recv = element(op, recv.begin), .recv_bytes = range_bytes(op, recv)};
}

static RtShare halve(const RtCommOp *op, int i, int m, int k, int peer) {
    if (peer != (i ^ 1 << k)) return (RtShare){0};
    RtShare s = share(op, held(op, peer, m, k + 1), held(op, i, m, k + 1));
    s.adds = true;
    return s;
}

static RtShare join(const RtCommOp *op, int i, int m, int k, int peer) {
    if (peer != (i ^ 1 << k)) return (RtShare){0};
    return share(op, held(op, i, m, k + 1), held(op, peer, m, k + 1));
}

// What rank i sums where all send to all: everything, or its piece.
static Range summed(const RtCommOp *op, int i, int m) {
    return op->kind == RT_COMM_TREE_SCATTER ? held(op, i, m, log2_up(m)) : (Range){0, op->n};
}

static void *operand(const RtCommOp *op, int64_t bytes, int j) { return address(op->scratch, j * bytes); }

static RtShare direct(const RtCommOp *op, int i, int m, int peer) {
    Range mine = summed(op, i, m);
    RtShare s = share(op, summed(op, peer, m), mine);
    s.recv = operand(op, range_bytes(op, mine), peer);
    return s;
}

static RtShare from_root(const RtCommOp *op, int i, int m, int k, int peer) {
    int place = (i - op->root + m) % m, other = (peer - op->root + m) % m, reached = 1 << k;
    Range all = {0, op->n}, none = {0, 0};
    if (place < reached && other == place + reached) return share(op, all, none);
    if (other < reached && place == other + reached) return share(op, none, all);
    return (RtShare){0};
}

static Range block(const RtCommOp *op, int m, int j) {
    int64_t b = rt_comm_block(op, m, j);
    return op->kind == RT_COMM_COUNTS ? (Range){b * op->n, (b + 1) * op->n} : (Range){op->cut[j], op->cut[j + 1]};
}

int rt_comm_block(const RtCommOp *op, int m, int i) { return op->per_node ? i % op->per_node * (m / op->per_node) + i / op->per_node : i; }

// Ranks of one place in their nodes first exchange their blocks; then ranks of a node what each of them got.
static RtShare by_nodes(const RtCommOp *op, int i, int m, int round, int peer) {
    int per = op->per_node, nodes = m / per;
    bool same_place = i % per == peer % per, same_node = i / per == peer / per;
    if (round == 0 && same_place && !same_node) return share(op, block(op, m, i), block(op, m, peer));
    if (round == 0 || !same_node) return (RtShare){0};
    Range mine = {i % per * nodes * op->n, (i % per + 1) * nodes * op->n}, its = {peer % per * nodes * op->n, (peer % per + 1) * nodes * op->n};
    return share(op, mine, its);
}

int rt_rounds(const RtCommOp *op, int m) {
    int q = log2_up(m);
    if (m == 1) return 0;
    if (is_direct(op->kind, op->dtype, op->n, m)) return 1;
    switch (op->kind) {
    case RT_COMM_TREE_REDUCE:
    case RT_COMM_EXACT: return 2 * q;
    case RT_COMM_TREE_SCATTER:
    case RT_COMM_TREE_GATHER:
    case RT_COMM_BCAST: return q;
    case RT_COMM_COUNTS: return op->per_node ? 2 : 1;
    default: return op->send_later + op->recv_later > 0 ? 2 : 1;
    }
}

RtShare rt_share(const RtCommOp *op, int i, int m, int round, int peer) {
    int q = log2_up(m);
    if (is_direct(op->kind, op->dtype, op->n, m)) return direct(op, i, m, peer);
    switch (op->kind) {
    case RT_COMM_TREE_SCATTER: return halve(op, i, m, round, peer);
    case RT_COMM_TREE_GATHER: return join(op, i, m, q - 1 - round, peer);
    case RT_COMM_TREE_REDUCE:
    case RT_COMM_EXACT: return round < q ? halve(op, i, m, round, peer) : join(op, i, m, 2 * q - 1 - round, peer);
    case RT_COMM_COUNTS:
        if (op->per_node) return by_nodes(op, i, m, round, peer);
        return share(op, block(op, m, i), block(op, m, peer));
    case RT_COMM_GATHER: return share(op, block(op, m, i), block(op, m, peer));
    case RT_COMM_BCAST: return from_root(op, i, m, round, peer);
    default: return (RtShare){.parts = true};
    }
}

// ---- sums -----------------------------------------------------------------------------------------------

static void add_f32(float *to, const float *low, const float *high, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = low[i] + high[i];
}

static void add_bf16(uint16_t *to, const uint16_t *low, const uint16_t *high, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = rt_f32_to_bf16(rt_bf16_to_f32(low[i]) + rt_bf16_to_f32(high[i]));
}

static void add_u32(uint32_t *to, const uint32_t *low, const uint32_t *high, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = low[i] + high[i];
}

static void add_u64(uint64_t *to, const uint64_t *low, const uint64_t *high, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = low[i] + high[i];
}

void rt_comm_add(DType dtype, void *to, const void *low, const void *high, int64_t bytes) {
    int64_t n = bytes / dtype_bytes(dtype);
    switch (dtype) {
    case F32: add_f32(to, low, high, n); break;
    case BF16: add_bf16(to, low, high, n); break;
    case I32: add_u32(to, low, high, n); break;              // wraps, as two's complement does
    case I64: add_u64(to, low, high, n); break;
    default: assert(!"sums are of f32, bf16, i32, i64");
    }
}

// operand[0] = tree over operand[0 .. m), for m that is a power of two; integers may have any m.
static void sum_tree(const RtCommOp *op, int64_t bytes, int m) {
    for (int d = 1; d < m; d *= 2)
        for (int j = 0; j + d < m; j += 2 * d)
            rt_comm_add(op->dtype, operand(op, bytes, j), operand(op, bytes, j), operand(op, bytes, j + d), bytes);
}

void rt_finish_rounds(const RtCommOp *op, int i, int m) {
    if (m == 1 || !is_direct(op->kind, op->dtype, op->n, m)) return;
    Range mine = summed(op, i, m);
    int64_t bytes = range_bytes(op, mine);
    if (bytes == 0) return;
    memcpy(operand(op, bytes, i), element(op, mine.begin), (size_t)bytes);
    sum_tree(op, bytes, m);
    memcpy(element(op, mine.begin), op->scratch, (size_t)bytes);
}

// ---- counting -------------------------------------------------------------------------------------------

static void count(RtTraffic *t, int64_t bytes, bool adds) {
    int64_t piece = rt_piece_bytes(adds);
    t->messages += (bytes + piece - 1) / piece;
    t->bytes += bytes;
}

void rt_comm_traffic(const RtCommOp *op, int i, int m, RtTraffic *sent, RtTraffic *received) {
    for (int round = 0; round < rt_rounds(op, m); round++)
        for (int j = 0; j < m; j++) {
            if (j == i) continue;
            RtShare s = rt_share(op, i, m, round, j);
            count(&sent[j], s.send_bytes, s.adds);
            count(&received[j], s.recv_bytes, s.adds);
        }
    for (int p = 0; p < op->n_send; p++)
        if (op->send[p].peer != i) count(&sent[op->send[p].peer], op->send[p].bytes, false);
    for (int p = 0; p < op->n_recv; p++)
        if (op->recv[p].peer != i) count(&received[op->recv[p].peer], op->recv[p].bytes, false);
}
