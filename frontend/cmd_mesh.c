#include "frontend/cmd_mesh.h"

#include "runtime/comm.h"

#define WRONG(...) (diag_error(d, (Span){0}, __VA_ARGS__), false)

int32_t mesh_etp(const Settings *t) { return t->parallel.tp > 1 ? (int32_t)t->parallel.etp : 0; }

static bool can_cut(Diag *d, const Settings *t) {
    long long tp = t->parallel.tp, etp = t->parallel.etp;
    if (t->parallel.zero > 2)
        return WRONG("parallel.zero is %lld: it would gather parameters anew for every layer of every pass, which this "
                     "version does not do", (long long)t->parallel.zero);
    if (!rt_is_power_of_two(tp)) return WRONG("parallel.tp is %lld: it must be a power of two, for sums over ranks are trees", tp);
    if (etp > 1 && etp != tp)
        return WRONG("parallel.etp is %lld: experts are whole (1), or cut as all else is, by parallel.tp = %lld", etp, tp);
    return true;
}

bool mesh_shape(Diag *d, const Settings *t, int64_t ranks, RtMesh *out) {
    int64_t ep = t->parallel.ep, tp = t->parallel.tp, dp = t->parallel.dp;
    if (!can_cut(d, t)) return false;
    if (!dp && ranks % (ep * tp))
        return WRONG("%lld ranks can't be shared out to groups of parallel.ep = %lld times parallel.tp = %lld", (long long)ranks, (long long)ep,
                     (long long)tp);
    if (!dp) dp = ranks / (ep * tp);
    if (dp * ep * tp != ranks)
        return WRONG("there are %lld ranks, but parallel.dp = %lld times parallel.ep = %lld times parallel.tp = %lld makes %lld",
                     (long long)ranks, (long long)dp, (long long)ep, (long long)tp, (long long)(dp * ep * tp));
    *out = (RtMesh){.dp = (int32_t)dp, .ep = (int32_t)ep, .tp = (int32_t)tp, .zero = (int32_t)t->parallel.zero,
                    .replicas = (int32_t)t->parallel.replicas, .etp = mesh_etp(t)};
    if (out->replicas && rt_expert_ranks(*out) == 1) return WRONG("parallel.replicas: with parallel.ep = 1 every rank has all experts");
    return true;
}

bool mesh_deals_lanes(Diag *d, const Settings *t, RtMesh m, int64_t lanes) {
    int data = rt_group_size(m, RT_GROUP_DATA), ranks = rt_lane_ranks(m);
    if (!rt_is_power_of_two(data) || !rt_is_power_of_two(m.ep))
        return WRONG("%d ranks, parallel.ep = %d: both must be powers of two, for sums over ranks are trees", data, m.ep);
    if (lanes % ranks == 0 && rt_is_power_of_two(lanes)) return true;
    if (lanes % ranks) diag_error(d, (Span){0}, "train.lanes is %lld: it can't be dealt to %d ranks", (long long)lanes, ranks);
    else diag_error(d, (Span){0}, "train.lanes is %lld: it is no power of two, which it must be on several ranks", (long long)lanes);
    if (t->train.batch % ranks == 0) diag_help(d, "--set train.lanes=%d", ranks);
    return false;
}
