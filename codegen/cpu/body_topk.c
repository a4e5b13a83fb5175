// topk and put of rows in memory.
#include "codegen/cpu/body.h"

// The lane with the largest key, of equal ones that with the lowest index.
static LV best_index(Cg *cg, LV key, LV index) {
    for (int n = LANES; n > 1; n /= 2) {
        LV low[LANES], high[LANES], none = LLVMGetPoison(LLVMTypeOf(key));
        for (int i = 0; i < n / 2; i++) low[i] = cg_int32(cg, i), high[i] = cg_int32(cg, n / 2 + i);
        LV take_low = LLVMConstVector(low, (unsigned)n / 2),
           take_high = LLVMConstVector(high, (unsigned)n / 2);
        LV ka = LLVMBuildShuffleVector(cg->b, key, none, take_low, ""),
           kb = LLVMBuildShuffleVector(cg->b, key, none, take_high, "");
        LV ia = LLVMBuildShuffleVector(cg->b, index, none, take_low, ""),
           ib = LLVMBuildShuffleVector(cg->b, index, none, take_high, "");
        LV tie = LLVMBuildAnd(cg->b, LLVMBuildICmp(cg->b, LLVMIntEQ, ka, kb, ""),
                              LLVMBuildICmp(cg->b, LLVMIntSLT, ib, ia, ""), "");
        LV second = LLVMBuildOr(cg->b, LLVMBuildICmp(cg->b, LLVMIntSGT, kb, ka, ""), tie, "");
        key = cg_select(cg, second, kb, ka);
        index = cg_select(cg, second, ib, ia);
    }
    return LLVMBuildExtractElement(cg->b, index, cg_int32(cg, 0), "");
}

// Keys in memory, in 16 groups of neighbours whose largest are a vector: k times the first of the largest group that holds
// the largest of all is taken, and that group's largest found again.  Of several rows in turns.
typedef struct { Step *step; int group; LV x, keys, largest; } TopK;

// The larger of each two neighbours in 32 lanes.
static LV larger_neighbours(Cg *cg, LV low, LV high) {
    LV even[LANES], odd[LANES];
    for (int i = 0; i < LANES; i++) even[i] = cg_int32(cg, 2 * i), odd[i] = cg_int32(cg, 2 * i + 1);
    LV a = LLVMBuildShuffleVector(cg->b, low, high, LLVMConstVector(even, LANES), "");
    LV b = LLVMBuildShuffleVector(cg->b, low, high, LLVMConstVector(odd, LANES), "");
    return cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntSGT, a, b, ""), a, b);
}

static void topk_begin(Em *e, TopK *t, Step *s) {
    Cg *cg = e->cg;
    int64_t n = type_cols(&s->node->in[0]->type);
    *t = (TopK){.step = s, .group = 1, .x = body_column_at(e, s->in[0]), .keys = cg_bytes(cg, cg->scratch, cg_int(cg, s->keys))};
    while (t->group * LANES < n) t->group *= 2;
    LV key[TOPK_CHUNKS];
    for (int c = 0; c < t->group; c++) {
        int64_t left = n - c * LANES;
        key[c] = cg_vec_int(cg, INT32_MIN);                                    // below the key of NaN
        if (left <= 0) continue;
        LV x = cg_order_key(cg, cg_load_vec(cg, F32, t->x, cg_int(cg, c * LANES), NULL));
        key[c] = left < LANES ? cg_select(cg, cg_tail_mask(cg, cg_int(cg, left)), x, key[c]) : x;
        if (t->group > 1) cg_store_vec(cg, I32, key[c], t->keys, cg_int(cg, c * LANES), NULL);
    }
    for (int c = t->group; c > 1; c /= 2)
        for (int i = 0; i < c / 2; i++) key[i] = larger_neighbours(cg, key[2 * i], key[2 * i + 1]);
    t->largest = key[0];
}

static LV splat_lanes(Cg *cg, LV x, int n) {
    LV all[LANES], one = LLVMGetPoison(LLVMVectorType(cg->i32, (unsigned)n));
    for (int i = 0; i < n; i++) all[i] = cg_int32(cg, 0);
    one = LLVMBuildInsertElement(cg->b, one, x, cg_int32(cg, 0), "");
    return LLVMBuildShuffleVector(cg->b, one, one, LLVMConstVector(all, (unsigned)n), "");
}

// The first of n lanes that is x, which one is.
static LV first_lane(Cg *cg, LV v, LV x, int n) {
    LT overload[] = {cg->i32};
    LV equal = LLVMBuildICmp(cg->b, LLVMIntEQ, v, splat_lanes(cg, x, n), "");
    equal = LLVMBuildBitCast(cg->b, equal, LLVMIntTypeInContext(cg->cx, (unsigned)n), "");
    LV args[] = {LLVMBuildZExt(cg->b, equal, cg->i32, ""), cg_bool(cg, true)};
    return cg_intrinsic(cg, "llvm.cttz", overload, 1, args, 2);
}

static LV largest_lane(Cg *cg, LV v) {
    LT overload[] = {LLVMTypeOf(v)};
    return cg_intrinsic(cg, "llvm.vector.reduce.smax", overload, 1, &v, 1);
}

// v with x in one of n lanes.
static LV with_lane(Cg *cg, LV v, LV lane, LV x, int n) {
    LV number[LANES];
    for (int i = 0; i < n; i++) number[i] = cg_int32(cg, i);
    LV here = LLVMBuildICmp(cg->b, LLVMIntEQ, LLVMConstVector(number, (unsigned)n), splat_lanes(cg, lane, n), "");
    return cg_select(cg, here, splat_lanes(cg, x, n), v);
}

// Takes one out of its group; gives its index and the group's largest that is left.
static LV take_from_group(Cg *cg, const TopK *t, LV group, LV best, LV *left) {
    LT type = LLVMVectorType(cg->i32, (unsigned)t->group);
    LV first = LLVMBuildMul(cg->b, group, cg_int32(cg, t->group), ""), at = cg_at(cg, I32, t->keys, cg_i64(cg, first));
    LV keys = cg_load(cg, type, at, 4 * t->group), lane = first_lane(cg, keys, best, t->group);
    keys = with_lane(cg, keys, lane, cg_int32(cg, INT32_MIN), t->group);
    cg_store(cg, keys, at, 4 * t->group);
    *left = largest_lane(cg, keys);
    return LLVMBuildAdd(cg->b, first, lane, "");
}

static void topk_round(Em *e, TopK *t, int k) {
    Cg *cg = e->cg;
    LV best = largest_lane(cg, t->largest), group = first_lane(cg, t->largest, best, LANES);
    LV i = group, left = cg_int32(cg, INT32_MIN);
    if (t->group > 1) i = take_from_group(cg, t, group, best, &left);
    t->largest = with_lane(cg, t->largest, group, left, LANES);
    cg_store1(cg, F32, cg_load1(cg, F32, t->x, cg_i64(cg, i)), body_column_at(e, t->step->filled[0]), cg_int(cg, k));
    cg_store1(cg, I32, i, body_column_at(e, t->step->filled[1]), cg_int(cg, k));
}

// All of a level that are alike: those of the rows that are done at once.
static void emit_topks(Em *e, Step *first, int level) {
    TopK t[MOST_AT_ONCE];
    int n = 0;
    for (int i = 0; i < e->b->steps.n && n < MOST_AT_ONCE; i++) {
        Step *s = e->b->steps.at[i];
        if (s->kind == S_TOPK && s->level == level && s->node == first->node) topk_begin(e, &t[n++], s);
    }
    for (int k = 0; k < first->node->attr.k; k++)
        for (int i = 0; i < n; i++) topk_round(e, &t[i], k);
}

static bool is_first_of_its_node(const Body *b, const Step *s) {
    for (int i = 0; b->steps.at[i] != s; i++)
        if (b->steps.at[i]->kind == S_TOPK && b->steps.at[i]->node == s->node) return false;
    return true;
}

// k rounds: the best of all columns that are left.
static void topk_of_many(Em *e, Step *s) {
    Cg *cg = e->cg;
    LV x = body_column_at(e, s->in[0]), keys = cg_bytes(cg, cg->scratch, cg_int(cg, s->keys));
    LV values = body_column_at(e, s->filled[0]), index = body_column_at(e, s->filled[1]);
    LV n = cg_dim(cg, last_dim(&s->node->in[0]->type)), zero = cg_int(cg, 0);
    LV taken = cg_vec_int(cg, INT32_MIN);                // below the key of NaN
    CgLoop c, k;
    cg_for(cg, &c, zero, n, LANES);
    LV key = cg_order_key(cg, cg_load_vec(cg, F32, x, c.i, NULL));
    cg_store_vec(cg, I32, cg_select(cg, cg_tail_mask(cg, cg_sub(cg, n, c.i)), key, taken), keys, c.i, NULL);
    cg_end(cg, &c);
    cg_for(cg, &k, zero, cg_int(cg, s->node->attr.k), 1);
    LV best[2] = {taken, cg_zero(cg->vi32)};
    cg_loop_begin(cg, &c, zero, n, LANES, 2, best);
    key = cg_load_vec(cg, I32, keys, c.i, NULL);
    LV better = LLVMBuildICmp(cg->b, LLVMIntSGT, key, c.carry[0], "");
    LV here = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_splat(cg, LLVMBuildTrunc(cg->b, c.i, cg->i32, "")), "");
    best[0] = cg_select(cg, better, key, c.carry[0]);
    best[1] = cg_select(cg, better, here, c.carry[1]);
    cg_loop_end(cg, &c, best);
    LV i = best_index(cg, c.carry[0], c.carry[1]), wide = cg_i64(cg, i);
    cg_store1(cg, I32, i, index, k.i);
    cg_store1(cg, F32, cg_load1(cg, F32, x, wide), values, k.i);
    cg_store1(cg, I32, cg_int32(cg, INT32_MIN), keys, wide);
    cg_end(cg, &k);
}

void body_emit_topk(Em *e, Step *s) {
    if (!is_topk_in_groups(s)) topk_of_many(e, s);
    else if (is_first_of_its_node(e->b, s)) emit_topks(e, s, e->level);
}

// Few columns: each value added in its lane.
static void emit_put_in_registers(Em *e, Step *s) {
    Cg *cg = e->cg;
    DType t = buffer_type(s->dtype);
    LV v = body_column_at(e, s->in[0]), index = body_column_at(e, s->in[1]), y[REGISTER_CHUNKS];
    int64_t n = type_cols(&s->node->out[0].type), k = type_cols(&s->node->in[1]->type);
    for (int c = 0; c * LANES < n; c++) y[c] = cg_zero(t == F32 ? cg->vf32 : cg->vi32);
    for (int j = 0; j < k; j++) {
        LV at = cg_splat(cg, cg_load1(cg, I32, index, cg_int(cg, j))), x = cg_splat(cg, cg_load1(cg, t, v, cg_int(cg, j)));
        for (int c = 0; c * LANES < n; c++) {
            LV lanes = LLVMBuildAdd(cg->b, cg_lanes(cg), cg_vec_int(cg, c * LANES), "");
            LV sum = t == F32 ? cg_fadd(cg, y[c], x) : cg_add(cg, y[c], x);
            y[c] = cg_select(cg, LLVMBuildICmp(cg->b, LLVMIntEQ, lanes, at, ""), sum, y[c]);
        }
    }
    for (int c = 0; c * LANES < n; c++)
        cg_store_vec(cg, t, y[c], body_column_at(e, s->filled[0]), cg_int(cg, c * LANES), NULL);
}

void body_emit_put(Em *e, Step *s) {
    Cg *cg = e->cg;
    Dim width = last_dim(&s->node->out[0].type), few = last_dim(&s->node->in[1]->type);
    if (in_registers(width) && !few.sym && few.n <= LANES) {
        emit_put_in_registers(e, s);
        return;
    }
    DType t = buffer_type(s->dtype);
    LV v = body_column_at(e, s->in[0]), index = body_column_at(e, s->in[1]), y = body_column_at(e, s->filled[0]);
    LV n = cg_dim(cg, last_dim(&s->node->out[0].type));
    CgLoop l;
    cg_for(cg, &l, cg_int(cg, 0), n, LANES);
    cg_store_vec(cg, t, cg_zero(t == F32 ? cg->vf32 : cg->vi32), y, l.i, NULL);
    cg_end(cg, &l);
    cg_for(cg, &l, cg_int(cg, 0), cg_dim(cg, last_dim(&s->node->in[1]->type)), 1);
    LV i = cg_i64(cg, cg_load1(cg, I32, index, l.i)), x = cg_load1(cg, t, v, l.i);
    CgIf f;
    cg_if(cg, &f, LLVMBuildICmp(cg->b, LLVMIntULT, i, n, ""));
    LV old = cg_load1(cg, t, y, i);
    cg_store1(cg, t, t == F32 ? cg_fadd(cg, old, x) : cg_add(cg, old, x), y, i);
    cg_endif(cg, &f);
    cg_end(cg, &l);
}
