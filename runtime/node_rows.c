#include "runtime/node_rows.h"

#include <string.h>

enum { ALIGN = 64 };

static int64_t up(int64_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }
static int64_t row_bytes(const RtExchange *x) { return x->elements * dtype_bytes((DType)x->dtype); }
static bool goes_back(const RtExchange *x) { return x->kind == RT_RETURN_ROWS; }

// By way of integers: the planner has sizes, no rows.
static void *address(unsigned char *base, int64_t bytes) { return (void *)((uintptr_t)base + (uintptr_t)bytes); }

// ---- ranks and nodes ---------------------------------------------------------------------------------------------

static int nodes(const RtNodeRows *r) { return r->m / r->x.per_node; }
static int node_of(const RtNodeRows *r, int k) { return k / r->x.per_node; }
static int place_of(const RtNodeRows *r, int k) { return k % r->x.per_node; }
static bool is_near(const RtNodeRows *r, int k) { return node_of(r, k) == node_of(r, r->i); }
// One of another node whom this rank exchanges with.
static bool is_partner(const RtNodeRows *r, int k) { return !is_near(r, k) && place_of(r, k) == place_of(r, r->i); }
static int slots_of_node(const RtNodeRows *r) { return r->x.slots / nodes(r); }
static int expert_of(const RtNodeRows *r, int slot) { return r->table ? r->table->expert[slot] : slot; }
static bool serves(const RtNodeRows *r, int slot, int k) { return !r->table || rt_slot_serves(r->table, slot, k); }

// ---- counts ------------------------------------------------------------------------------------------------------

int64_t rt_node_count_elements(const RtExchange *x, int m) { return (int64_t)x->experts * x->leaves + m / x->per_node; }

static const int32_t *block_of(const RtNodeRows *r, int k) {
    RtCommOp by_nodes = {.kind = RT_COMM_COUNTS, .per_node = r->x.per_node};
    return r->counts + rt_comm_block(&by_nodes, r->m, k) * rt_node_count_elements(&r->x, r->m);
}

int32_t rt_node_rows(const RtNodeRows *r, int k, int expert, int leaf) { return block_of(r, k)[expert * r->x.leaves + leaf]; }

// Rows that rank k has for a slot.
static int64_t rows_for(const RtNodeRows *r, int k, int slot) {
    int64_t n = 0;
    if (!serves(r, slot, k)) return 0;
    const int32_t *rows = block_of(r, k) + (int64_t)expert_of(r, slot) * r->x.leaves;
    for (int l = 0; l < r->x.leaves; l++) n += rows[l];
    return n;
}

// Rows that rank k has for slots of a node; distinct ones.
static int64_t pairs_for(const RtNodeRows *r, int k, int node) {
    int64_t n = 0;
    for (int s = 0; s < slots_of_node(r); s++) n += rows_for(r, k, node * slots_of_node(r) + s);
    return n;
}
int32_t rt_node_distinct(const RtNodeRows *r, int k, int node) { return block_of(r, k)[(int64_t)r->x.experts * r->x.leaves + node]; }

// ---- messages ----------------------------------------------------------------------------------------------------
// There: the map, then rows.  Back, or without a map: the rows of all pairs.

static bool has_map(const RtExchange *x) { return x->tokens > 0; }
static int64_t map_bytes(const RtExchange *x, int64_t pairs) { return has_map(x) ? up(pairs * (int64_t)sizeof(int32_t)) : 0; }

static int64_t message_bytes(const RtNodeRows *r, int from, int node) {
    int64_t pairs = pairs_for(r, from, node);
    return pairs == 0 ? 0 : map_bytes(&r->x, pairs) + (has_map(&r->x) ? rt_node_distinct(r, from, node) : pairs) * row_bytes(&r->x);
}

static int64_t most_bytes(const RtExchange *x) {
    int64_t rows = has_map(x) && x->tokens < x->rows ? x->tokens : x->rows;
    return up(map_bytes(x, x->rows) + rows * row_bytes(x));
}

size_t rt_node_box_bytes(const RtExchange *x, int m) { return (size_t)((m / x->per_node - 1) * most_bytes(x)); }

// What ranks of a node tell each other is this byte; then messages, or rows that came back; then what was seen of tokens.
enum { TOLD = ALIGN };
static int64_t seen_bytes(const RtExchange *x) { return up(2 * (int64_t)x->tokens * (int64_t)sizeof(int32_t)); }

size_t rt_node_work_bytes(const RtExchange *x, int m) {
    if (x->kind == RT_EXCHANGE_COUNTS) return (size_t)seen_bytes(x);
    int64_t gaps = 2 * ALIGN * (int64_t)(m / x->per_node);
    return (size_t)(TOLD + seen_bytes(x) + map_bytes(x, x->rows) + up(x->rows * row_bytes(x)) + gaps);
}

static unsigned char *packed(const RtNodeRows *r) { return address(r->work, TOLD + seen_bytes(&r->x)); }

// Where messages from and to another node lie in the memory that a node shares.
static unsigned char *box(const RtNodeRows *r, int place, int node) {
    int other = node < node_of(r, r->i) ? node : node - 1;
    return address(r->box[place], other * most_bytes(&r->x));
}

// ---- the op ------------------------------------------------------------------------------------------------------

typedef struct { RtCommPart *at; int n; } List;
static void add(List *l, void *at, int64_t bytes, int peer) { l->at[l->n++] = (RtCommPart){at, bytes, peer}; }

// Rows between this rank and one of its node: where they lie at home, where at their experts.
static void add_near(const RtNodeRows *r, int k, List *home, List *far) {
    int mine = r->x.slots / r->m, leaves = r->x.leaves;
    int64_t row = row_bytes(&r->x);
    for (int s = 0; s < mine; s++) {
        int slot = k * mine + s;
        const int32_t *h = r->home + (int64_t)expert_of(r, slot) * leaves, *f = r->far + (int64_t)(s * r->m + k) * leaves;
        add(home, address(r->home_rows, h[0] * row), serves(r, slot, r->i) ? (h[leaves] - h[0]) * row : 0, k);
        add(far, address(r->far_rows, f[0] * row), (f[leaves] - f[0]) * row, k);
    }
}

// "My memory holds what it has to": a byte to each rank of the node, and from each.
static void add_word(const RtNodeRows *r, int k, List *send, List *recv) {
    if (k == r->i) return;
    add(send, r->work, 1, k);
    add(recv, address(r->work, 1), 1, k);
}

// Do the rows of a node's slots lie at home as the message has them?
static bool is_in_order(const RtNodeRows *r, int node, int64_t *first) {
    int64_t at = -1;
    for (int s = node * slots_of_node(r); s < (node + 1) * slots_of_node(r); s++) {
        const int32_t *h = r->home + (int64_t)expert_of(r, s) * r->x.leaves;
        if (!serves(r, s, r->i) || h[r->x.leaves] == h[0]) continue;
        if (at < 0) *first = at = h[0];
        if (h[0] != at) return false;
        at = h[r->x.leaves];
    }
    return true;
}

static void op_there(const RtNodeRows *r, List *send, List *recv, RtCommOp *op) {
    unsigned char *message = packed(r);
    for (int k = 0; k < r->m; k++) {
        if (is_near(r, k)) add_near(r, k, send, recv);
        if (!is_partner(r, k)) continue;
        int64_t bytes = message_bytes(r, r->i, node_of(r, k));
        add(send, message, bytes, k);
        add(recv, box(r, place_of(r, r->i), node_of(r, k)), message_bytes(r, k, node_of(r, r->i)), k);
        message = address(message, up(bytes));
    }
    int before = send->n;
    for (int k = 0; k < r->m; k++)
        if (is_near(r, k)) add_word(r, k, send, recv);
    op->send_later = op->recv_later = send->n - before;
}

static void op_back(const RtNodeRows *r, List *send, List *recv, RtCommOp *op) {
    int64_t row = row_bytes(&r->x), first = 0, staged = 0;
    for (int k = 0; k < r->m; k++) {
        if (!is_near(r, k)) continue;
        add_near(r, k, recv, send);
        add_word(r, k, send, recv);
    }
    int before = send->n;
    for (int k = 0; k < r->m; k++) {
        if (!is_partner(r, k)) continue;
        int64_t bytes = pairs_for(r, r->i, node_of(r, k)) * row;
        bool in_order = is_in_order(r, node_of(r, k), &first);
        add(send, box(r, place_of(r, r->i), node_of(r, k)), pairs_for(r, k, node_of(r, r->i)) * row, k);
        add(recv, in_order ? address(r->home_rows, first * row) : address(packed(r), staged), bytes, k);
        staged += bytes;
    }
    op->send_later = op->recv_later = send->n - before;
}

void rt_node_op(const RtNodeRows *r, RtCommPart *send, RtCommPart *recv, RtCommOp *op) {
    List to = {send, 0}, from = {recv, 0};
    (goes_back(&r->x) ? op_back : op_there)(r, &to, &from, op);
    op->send = send;
    op->recv = recv;
    op->n_send = to.n;
    op->n_recv = from.n;
}

// ---- there -------------------------------------------------------------------------------------------------------

typedef struct { int32_t *node, *place; } Seen;      // by token: the last node it was packed for, and where

static Seen seen_in(const RtNodeRows *r, unsigned char *at) {
    Seen s = {(int32_t *)(void *)at, (int32_t *)(void *)at + r->x.tokens};
    if (r->same) memset(s.node, 0xff, (size_t)r->x.tokens * sizeof *s.node);
    return s;
}

// Puts the rows for a node together; to: NULL: only counts them.  How many there are.
static int32_t pack(const RtNodeRows *r, Seen seen, int node, unsigned char *to) {
    int64_t row = row_bytes(&r->x);
    int32_t n = 0, *map = (int32_t *)(void *)to;
    if (to && r->same) to = address(to, map_bytes(&r->x, pairs_for(r, r->i, node)));
    for (int slot = node * slots_of_node(r); slot < (node + 1) * slots_of_node(r); slot++) {
        const int32_t *h = r->home + (int64_t)expert_of(r, slot) * r->x.leaves;
        int32_t end = h[r->x.leaves];
        if (!serves(r, slot, r->i)) continue;
        if (!r->same && to) memcpy(to + n * row, r->home_rows + h[0] * row, (size_t)((end - h[0]) * row));
        if (!r->same) n += end - h[0];
        for (int32_t k = h[0]; r->same && k < end; k++) {
            int32_t token = r->same[k];
            if (seen.node[token] != node) {
                seen.node[token] = node;
                seen.place[token] = n++;
                if (to) memcpy(to + seen.place[token] * row, r->home_rows + k * row, (size_t)row);
            }
            if (to) *map++ = seen.place[token];
        }
    }
    return n;
}

void rt_node_count(const RtNodeRows *r, int32_t *block) {
    int64_t n = (int64_t)r->x.experts * r->x.leaves;
    Seen seen = seen_in(r, r->work);
    for (int64_t k = 0; k < n; k++) block[k] = r->home[k + 1] - r->home[k];
    for (int node = 0; node < nodes(r); node++) block[n + node] = node == node_of(r, r->i) ? 0 : pack(r, seen, node, NULL);
}

static void pack_all(const RtNodeRows *r) {
    Seen seen = seen_in(r, address(r->work, TOLD));
    unsigned char *message = packed(r);
    for (int node = 0; node < nodes(r); node++) {
        if (node == node_of(r, r->i)) continue;
        int64_t bytes = message_bytes(r, r->i, node);
        if (bytes) pack(r, seen, node, message);
        message = address(message, up(bytes));
    }
}

// ---- at the experts' node ----------------------------------------------------------------------------------------

// Between the message of rank k, of another node, and this rank's rows.
static void copy_message(const RtNodeRows *r, int k, unsigned char *message) {
    int mine = r->x.slots / r->m, first = node_of(r, r->i) * slots_of_node(r), leaves = r->x.leaves;
    int64_t row = row_bytes(&r->x), at = 0;
    const int32_t *map = (const int32_t *)(const void *)message;
    if (has_map(&r->x)) message += map_bytes(&r->x, pairs_for(r, k, node_of(r, r->i)));
    for (int slot = first; slot < (r->i + 1) * mine; slot++) {
        int64_t n = rows_for(r, k, slot);
        unsigned char *far = slot < r->i * mine ? NULL : r->far_rows + r->far[((slot - r->i * mine) * r->m + k) * leaves] * row;
        if (far && n && goes_back(&r->x)) memcpy(message + at * row, far, (size_t)(n * row));
        else if (far && n && !has_map(&r->x)) memcpy(far, message + at * row, (size_t)(n * row));
        else if (far && n)
            for (int64_t p = 0; p < n; p++) memcpy(far + p * row, message + map[at + p] * row, (size_t)row);
        at += n;
    }
}

static void copy_messages(const RtNodeRows *r) {
    for (int k = 0; k < r->m; k++)
        if (!is_near(r, k)) copy_message(r, k, box(r, place_of(r, k), node_of(r, k)));
}

// ---- back at home ------------------------------------------------------------------------------------------------

// What could not be received where it belongs.
static void unpack(const RtNodeRows *r) {
    int64_t row = row_bytes(&r->x), first;
    unsigned char *from = packed(r);
    for (int node = 0; node < nodes(r); node++) {
        if (node == node_of(r, r->i)) continue;
        bool in_order = is_in_order(r, node, &first);
        for (int slot = node * slots_of_node(r); slot < (node + 1) * slots_of_node(r); slot++) {
            const int32_t *h = r->home + (int64_t)expert_of(r, slot) * r->x.leaves;
            size_t bytes = serves(r, slot, r->i) ? (size_t)((h[r->x.leaves] - h[0]) * row) : 0;
            if (!in_order && bytes) memcpy(r->home_rows + h[0] * row, from, bytes);
            from += bytes;
        }
    }
}

void rt_node_begin(const RtNodeRows *r) {
    if (goes_back(&r->x)) copy_messages(r);
    else pack_all(r);
}

void rt_node_end(const RtNodeRows *r) {
    if (goes_back(&r->x)) unpack(r);
    else copy_messages(r);
}
