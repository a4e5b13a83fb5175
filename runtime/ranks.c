#include "runtime/ranks.h"

#include <stdlib.h>

#include "runtime/inputs.h"

static RtStatus open_groups(RtRanks *r, RtError *e) {
    int *members = malloc((size_t)r->n * sizeof *members);
    RtStatus s = members ? RT_OK : rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", r->n);
    for (int g = 0; g < RT_GROUPS && s == RT_OK; g++) {
        int m = rt_group_size(r->mesh, (RtGroup)g);
        r->group[g] = -1;
        if (m == 1) continue;
        for (int i = 0; i < m; i++) members[i] = rt_group_member(r->mesh, (RtGroup)g, r->rank, i);
        s = rt_comm_group(r->comm, members, m, &r->group[g], e);
    }
    free(members);
    return s;
}

RtStatus rt_ranks_open(RtPlanInstance *p, RtComm *comm, RtRanks **out, RtError *e) {
    int n = rt_comm_ranks(comm);
    *out = NULL;
    if (rt_mesh_ranks(p->plan->mesh) != n)
        return rt_fail(e, RT_BAD_SETTING, "the plan is for %d ranks, but there are %d", rt_mesh_ranks(p->plan->mesh), n);
    RtRanks *r = calloc(1, sizeof *r);
    if (!r) return rt_fail(e, RT_NO_MEMORY, "no memory for %d ranks", n);
    *r = (RtRanks){.comm = comm, .rank = rt_comm_rank(comm), .n = n, .mesh = p->plan->mesh};
    RtStatus s = open_groups(r, e);
    if (s != RT_OK) {
        rt_ranks_close(r);
        return s;
    }
    p->ranks = r;
    rt_set_input(p, "data_rank", rt_group_rank(r->mesh, RT_GROUP_DATA, r->rank));
    *out = r;
    return RT_OK;
}

void rt_ranks_close(RtRanks *r) { free(r); }
