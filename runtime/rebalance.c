// Counting, placing, deciding, moving.
#include "runtime/rebalance.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/gather.h"
#include "runtime/place.h"
#include "runtime/trace.h"

static const int64_t STAGING = 64 << 20, PROBE = 1 << 20;

// Of a table and a step: rows of the busiest rank; bytes of the one that moves most.
typedef struct { double before, after, mean, bytes; } Prospect;

struct RtRebalance {
    RtPlanInstance *p;
    RtRanks *ranks;
    RtRebalanceSetting s;
    RtPlaces places;
    int      n_tables, n_experts, n_slots;      // of all tables
    int64_t *counts;           // [window, n_experts]
    int64_t *sum;              // [n_experts]
    int32_t *expert;           // [n_slots]: new tables
    int64_t  counted;          // steps
    int64_t *moved;            // [n_tables]: of them, when a table's experts moved last
    Prospect *prospect;        // [n_tables]: of the new tables
    int32_t *flag;             // [n_tables]: whose experts move
    double   share;            // of a step's work that is experts', were they loaded evenly
    double   rate;             // bytes a second of the last move; 0: not known yet
    double   seconds;          // of the steps since the last decision
    int64_t  timed;
};

// ---- moving ------------------------------------------------------------------------------------------------------

// A round: of each expert that moves, the same bytes.  All that leave are copied before any arrive, so circles are no
// case of their own.
typedef struct {
    const RtSlots *t;
    const int32_t *to;         // the new table
    int      ranks, rank, each;
    unsigned char *staging;
    RtCommPart *send, *recv;
} Mover;

static bool changes(const Mover *m, int slot) { return m->to[slot] != m->t->expert[slot]; }
// The slot that a new one is filled from: of this rank, if it has the expert.
static int  source(const Mover *m, int slot) {
    int first = slot / m->each * m->each;
    for (int s = first; s < first + m->each; s++)
        if (m->t->expert[s] == m->to[slot]) return s;
    return m->t->slot[m->to[slot]];
}

// Slots that one rank fills, its own among them: of the rank that fills most.
static int most_sent(const Mover *m) {
    int most = 1, *sent = calloc((size_t)m->ranks, sizeof *sent);
    for (int s = 0; sent && s < m->t->slots; s++)
        if (changes(m, s) && ++sent[source(m, s) / m->each] > most) most = sent[source(m, s) / m->each];
    free(sent);
    return most;
}

static RtStatus move_round(const Mover *m, RtRanks *r, unsigned char *data, size_t one, size_t begin, size_t n, RtError *e) {
    int n_send = 0, n_recv = 0;
    for (int s = 0; s < m->t->slots; s++) {
        if (!changes(m, s) || source(m, s) / m->each != m->rank) continue;
        unsigned char *copy = m->staging + (size_t)n_send * n;
        memcpy(copy, data + (size_t)(source(m, s) % m->each) * one + begin, n);
        m->send[n_send++] = (RtCommPart){copy, (int64_t)n, s / m->each};
    }
    for (int from = 0; from < m->ranks; from++)
        for (int s = m->rank * m->each; s < (m->rank + 1) * m->each; s++)
            if (changes(m, s) && source(m, s) / m->each == from)
                m->recv[n_recv++] = (RtCommPart){data + (size_t)(s % m->each) * one + begin, (int64_t)n, from};
    return rt_move(r, RT_GROUP_EXP, m->send, n_send, m->recv, n_recv, e);
}

static RtStatus move_tensor(const Mover *m, const RtPlanInstance *p, const RtTensor *t, size_t slice, RtError *e) {
    size_t one = (size_t)(t->bytes / t->dim[0]);
    for (size_t begin = 0; begin < one; begin += slice)
        RT_TRY(move_round(m, p->ranks, rt_tensor_data(p, t), one, begin, one - begin < slice ? one - begin : slice, e));
    return RT_OK;
}

static bool moves(const RtTensor *t, int table) { return t->table == table + 1 && (t->role == RT_PARAM || t->role == RT_STATE); }

static int64_t bytes_of_expert(const RtPlanInstance *p, int table) {
    int64_t bytes = 0;
    for (int i = 0; i < p->n_tensors; i++)
        if (moves(&p->tensor[i], table)) bytes += p->tensor[i].bytes / p->tensor[i].dim[0];
    return bytes;
}

static Mover mover(const RtPlanInstance *p, int table, const int32_t *expert) {
    const RtSlots *t = &p->ranks->table[table];
    int ranks = rt_expert_ranks(p->ranks->mesh);
    return (Mover){.t = t, .to = expert, .ranks = ranks, .each = t->slots / ranks,
                   .rank = rt_group_rank(p->ranks->mesh, RT_GROUP_EXP, p->ranks->rank)};
}

// The tensors of a layer's experts come to lie as `expert` says, then that is the table.  out: what travelled.
static RtStatus move_experts(RtPlanInstance *p, int table, const int32_t *expert, RtRebalanced *out, RtError *e) {
    RtSlots *t = &p->ranks->table[table];
    Mover m = mover(p, table, expert);
    int most = most_sent(&m), n = 0;
    size_t slice = (size_t)(STAGING / most) & ~(size_t)63;
    m.staging = malloc(slice * (size_t)most);
    m.send = calloc((size_t)t->slots, sizeof *m.send);
    m.recv = calloc((size_t)m.each, sizeof *m.recv);
    RtStatus s = m.staging && m.send && m.recv ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory to move experts of %s", t->name);
    s = rt_agree(p->ranks, s, e);
    for (int i = 0; i < p->n_tensors && s == RT_OK; i++)
        if (moves(&p->tensor[i], table)) s = move_tensor(&m, p, &p->tensor[i], slice, e);
    for (int k = 0; k < t->slots; k++) n += changes(&m, k) && source(&m, k) / m.each != k / m.each;
    if (s == RT_OK) {
        out->experts += n;
        out->bytes += n * bytes_of_expert(p, table) * (rt_mesh_ranks(p->ranks->mesh) / rt_expert_ranks(p->ranks->mesh));
        rt_slots_set(t, expert);
    }
    free(m.staging);
    free(m.send);
    free(m.recv);
    return s;
}

// ---- placing -----------------------------------------------------------------------------------------------------

static int replicas(const int32_t *expert, int slots, int of) {
    int n = 0;
    for (int s = 0; s < slots; s++) n += expert[s] == of;
    return n;
}

static double busiest(const RtSlots *t, const int64_t *sum, const int32_t *expert, int ranks) {
    double most = 0;
    int each = t->slots / ranks;
    for (int r = 0; r < ranks; r++) {
        double load = 0;
        for (int s = r * each; s < (r + 1) * each; s++) load += (double)sum[expert[s]] / replicas(expert, t->slots, expert[s]);
        if (load > most) most = load;
    }
    return most;
}

// ---- deciding ----------------------------------------------------------------------------------------------------

// Bytes a second between neighbours, all at once.
static RtStatus probe(RtRebalance *r, RtError *e) {
    int m = rt_expert_ranks(r->ranks->mesh), i = rt_group_rank(r->ranks->mesh, RT_GROUP_EXP, r->ranks->rank);
    unsigned char *buffer = calloc(2, (size_t)PROBE);
    RtStatus s = rt_agree(r->ranks, buffer ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory to move experts"), e);
    for (int turn = 0; turn < 2 && s == RT_OK; turn++) {                       // the first touches its memory
        RtCommPart send = {buffer, PROBE, (i + 1) % m}, recv = {buffer + PROBE, PROBE, (i + m - 1) % m};
        int64_t begin = rt_now_ns();
        s = rt_move(r->ranks, RT_GROUP_EXP, &send, 1, &recv, 1, e);
        r->rate = (double)PROBE / ((double)(rt_now_ns() - begin) / 1e9);
    }
    free(buffer);
    return s;
}

// The newest steps that count for a table.
static int64_t steps_seen(const RtRebalance *r, int table) {
    int64_t kept = r->counted < r->s.window ? r->counted : r->s.window, since = r->counted - r->moved[table];
    return r->s.unasked && since < kept ? since : kept;
}

static Prospect prospect(const RtRebalance *r, int table, const int64_t *sum, const int32_t *expert) {
    const RtSlots *t = &r->ranks->table[table];
    int ranks = rt_expert_ranks(r->ranks->mesh);
    Mover m = mover(r->p, table, expert);
    double all = 0, steps = (double)steps_seen(r, table);
    bool any = false;
    for (int i = 0; i < t->experts; i++) all += (double)sum[i];
    for (int s = 0; s < t->slots; s++) any |= changes(&m, s);
    return (Prospect){.before = busiest(t, sum, t->expert, ranks) / steps,
                      .after = busiest(t, sum, expert, ranks) / steps,
                      .mean = all / ranks / steps,
                      .bytes = any ? (double)most_sent(&m) * (double)bytes_of_expert(r->p, table) : 0};
}

// Steps for which a new table is held to save: until the next time, or as long as it would have.
static int64_t steps_to_come(const RtRebalance *r, int table, int64_t steps_left) {
    int64_t steps = r->s.unasked ? steps_seen(r, table) : r->s.interval;
    return steps < steps_left ? steps : steps_left;
}

// Which layers' experts move.
static void decide(RtRebalance *r, int64_t steps_left, RtRebalanced *out) {
    const Prospect *x = r->prospect;
    double before = 0, after = 0, mean = 0;
    for (int i = 0; i < r->n_tables; i++) before += x[i].before, after += x[i].after, mean += x[i].mean;
    double imbalance = mean > 0 ? before / mean : 1, experts = r->share * imbalance,
           seconds = r->seconds / (double)r->timed * experts / (1 - r->share + experts);        // of a step, in experts
    out->before = imbalance;
    out->after = mean > 0 ? after / mean : 1;
    for (int i = 0; i < r->n_tables; i++) {
        double saves = before > 0 ? seconds * (x[i].before - x[i].after) / before : 0, takes = x[i].bytes / r->rate;
        r->flag[i] = x[i].bytes > 0 && saves > 0 && saves * (double)steps_to_come(r, i, steps_left) >= r->s.gain * takes;
        out->saves += saves;
        out->takes += takes;
    }
}

static RtStatus sum_counts(RtRebalance *r, RtError *e) {
    int64_t *sum = r->sum;
    memset(r->sum, 0, (size_t)r->n_experts * sizeof *r->sum);
    for (int i = 0; i < r->n_tables; i++) {
        int experts = r->ranks->table[i].experts;
        for (int64_t k = r->counted - steps_seen(r, i); k < r->counted; k++)
            for (int x = 0; x < experts; x++) sum[x] += r->counts[k % r->s.window * r->n_experts + (sum - r->sum) + x];
        sum += experts;
    }
    RT_TRY(rt_sum_over(r->ranks, RT_GROUP_EXP, r->sum, r->n_experts, e));
    if (r->ranks->mesh.etp > 1) RT_TRY(rt_sum_over(r->ranks, RT_GROUP_TP, r->sum, r->n_experts, e));     // each has seen its leaves
    return rt_sum_over(r->ranks, RT_GROUP_EDP, r->sum, r->n_experts, e);
}

static RtStatus move_those(RtRebalance *r, RtRebalanced *out, RtError *e) {
    const int32_t *expert = r->expert;
    int64_t begin = rt_now_ns();
    for (int i = 0; i < r->n_tables; i++) {
        if (r->flag[i]) {
            RT_TRY(move_experts(r->p, i, expert, out, e));
            r->moved[i] = r->counted;
        }
        expert += r->ranks->table[i].slots;
    }
    out->seconds = (double)(rt_now_ns() - begin) / 1e9;
    return RT_OK;
}

static RtStatus place_all(RtRebalance *r, RtError *e) {
    int32_t *expert = r->expert;
    const int64_t *sum = r->sum;
    for (int i = 0; i < r->n_tables; i++) {
        const RtSlots *t = &r->ranks->table[i];
        RT_TRY(rt_place(t, r->places, sum, expert, e));
        r->prospect[i] = prospect(r, i, sum, expert);
        expert += t->slots;
        sum += t->experts;
    }
    return RT_OK;
}

static RtStatus rebalance(RtRebalance *r, int64_t steps_left, RtRebalanced *out, RtError *e) {
    double bytes = 0;
    out->considered = true;
    out->unasked = r->s.unasked;
    RT_TRY(sum_counts(r, e));
    if (r->rate == 0) RT_TRY(probe(r, e));
    RT_TRY(rt_agree(r->ranks, place_all(r, e), e));
    decide(r, steps_left, out);
    RT_TRY(rt_from_first(r->ranks, r->flag, r->n_tables * (int64_t)sizeof *r->flag, e));
    RT_TRY(move_those(r, out, e));
    for (int i = 0; i < r->n_tables; i++) bytes += r->flag[i] ? r->prospect[i].bytes : 0;
    if (bytes > 0 && out->seconds > 0) r->rate = bytes / out->seconds;
    r->seconds = 0;
    r->timed = 0;
    return RT_OK;
}

// ---- nodes -------------------------------------------------------------------------------------------------------

// Of the ranks who share experts, the i-th.
static int node_of(const RtRanks *r, int i) { return rt_comm_node(r->comm, rt_group_member(r->mesh, RT_GROUP_EXP, r->rank, i)); }

// Between nodes experts move only where somebody asks for it: a limited router counts on who is together on one.
static RtStatus may_move(RtRanks *r, bool unasked, int32_t *out, RtError *e) {
    *out = 1;
    for (int i = 1; i < rt_expert_ranks(r->mesh); i++) *out &= !unasked || node_of(r, i) == node_of(r, 0);
    return rt_from_first(r, out, sizeof *out, e);
}

// The nodes that the ranks who share experts are dealt to in order, as many to each; 1 if they lie otherwise.
static int nodes_of(const RtRanks *r) {
    int m = rt_expert_ranks(r->mesh), nodes = 1;
    for (int i = 1; i < m; i++) nodes += node_of(r, i) != node_of(r, i - 1);
    for (int i = 0; i < m && m % nodes == 0; i++)
        if (node_of(r, i) != node_of(r, i / (m / nodes) * (m / nodes))) return 1;
    return m % nodes ? 1 : nodes;
}

static RtStatus find_places(RtRebalance *r, RtError *e) {
    int32_t nodes = nodes_of(r->ranks);                      // one word for all groups
    RT_TRY(rt_from_first(r->ranks, &nodes, sizeof nodes, e));
    r->places = (RtPlaces){.ranks = rt_expert_ranks(r->ranks->mesh), .nodes = nodes, .groups = r->s.groups};
    for (int i = 0; i < r->n_tables; i++)
        if (r->ranks->table[i].experts % r->s.groups)
            return rt_fail(e, RT_BAD_SETTING, "parallel.rebalance_groups is %d, which doesn't divide the %d experts of %s", r->s.groups,
                           r->ranks->table[i].experts, r->ranks->table[i].name);
    return RT_OK;
}

// ---- a run -------------------------------------------------------------------------------------------------------

// A window beyond the interval would be memory for steps long ago; beyond this, of steps nobody remembers.
RtStatus rt_rebalance_setting(const RtSettings *s, RtStepSize size, bool by_default, RtRebalanceSetting *out, RtError *e) {
    enum { LONGEST = 100000, UNASKED_WINDOW = 10 };
    bool unasked = s->rebalance.unit == RT_NO_UNIT;
    double every = unasked ? by_default : rt_quantity_steps(s->rebalance, size), window = rt_quantity_steps(s->rebalance_window, size);
    *out = (RtRebalanceSetting){.interval = 0};
    if (every <= 0) return RT_OK;
    if (every < 1 || window < 0 || window > LONGEST)
        return rt_fail(e, RT_BAD_SETTING, "parallel.rebalance and parallel.rebalance_window are whole numbers of steps, at most %d",
                       LONGEST);
    *out = (RtRebalanceSetting){.interval = (int64_t)every, .gain = s->rebalance_gain, .groups = (int)s->rebalance_groups, .unasked = unasked};
    out->window = window >= 1 ? (int64_t)window : unasked ? UNASKED_WINDOW : out->interval < LONGEST ? out->interval : LONGEST;
    return RT_OK;
}

RtStatus rt_rebalance_open(RtPlanInstance *p, int program, RtRebalanceSetting s, RtRebalance **out, RtError *e) {
    *out = NULL;
    int32_t may;
    if (!s.interval || !p->ranks || !p->plan->slot_tables.n) return RT_OK;
    RT_TRY(may_move(p->ranks, s.unasked, &may, e));
    if (!may) return RT_OK;
    RtRebalance *r = *out = calloc(1, sizeof *r);
    if (!r) return rt_fail(e, RT_NO_MEMORY, "no memory to count rows of experts");
    *r = (RtRebalance){.p = p, .ranks = p->ranks, .s = s, .n_tables = (int)p->plan->slot_tables.n};
    for (int i = 0; i < r->n_tables; i++) {
        r->n_experts += p->ranks->table[i].experts;
        r->n_slots += p->ranks->table[i].slots;
    }
    r->counts = calloc((size_t)(s.window * r->n_experts) + 1, sizeof *r->counts);
    r->sum = calloc((size_t)r->n_experts + 1, sizeof *r->sum);
    r->expert = calloc((size_t)r->n_slots + 1, sizeof *r->expert);
    r->moved = calloc((size_t)r->n_tables + 1, sizeof *r->moved);
    r->prospect = calloc((size_t)r->n_tables + 1, sizeof *r->prospect);
    r->flag = calloc((size_t)r->n_tables + 1, sizeof *r->flag);
    bool ok = r->counts && r->sum && r->expert && r->moved && r->prospect && r->flag;
    double all = rt_program_flops(p, program);
    r->share = all > 0 ? rt_expert_flops(p, program) / all : 0;
    RtStatus status = ok ? find_places(r, e)
                         : rt_fail(e, RT_NO_MEMORY, "no memory to count the rows of %d experts for %lld steps", r->n_experts, (long long)s.window);
    if (status == RT_OK) return RT_OK;
    rt_rebalance_close(r);
    *out = NULL;
    return status;
}

void rt_rebalance_close(RtRebalance *r) {
    if (!r) return;
    free(r->counts);
    free(r->sum);
    free(r->expert);
    free(r->moved);
    free(r->prospect);
    free(r->flag);
    free(r);
}

void rt_rebalance_begin(RtRebalance *r) {
    for (int i = 0; i < r->n_tables; i++)
        memset(r->ranks->table[i].rows, 0, (size_t)r->ranks->table[i].experts * sizeof *r->ranks->table[i].rows);
}

RtStatus rt_rebalance_end(RtRebalance *r, int64_t step, double seconds, int64_t steps_left, RtRebalanced *out, RtError *e) {
    int64_t *row = r->counts + r->counted % r->s.window * r->n_experts;
    *out = (RtRebalanced){0};
    for (int i = 0; i < r->n_tables; i++) {
        memcpy(row, r->ranks->table[i].rows, (size_t)r->ranks->table[i].experts * sizeof *row);
        row += r->ranks->table[i].experts;
    }
    r->counted++;
    if (r->counted > 1) r->seconds += seconds, r->timed++;                     // the first step touches its memory
    if (step % r->s.interval || !r->timed || !steps_left) return RT_OK;
    return rebalance(r, steps_left, out, e);
}
