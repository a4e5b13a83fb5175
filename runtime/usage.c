#include "runtime/usage.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/files.h"
#include "runtime/gather.h"
#include "runtime/memory.h"

static void add(RtTraffic *to, RtTraffic now, RtTraffic before) {
    to->messages += now.messages - before.messages;
    to->bytes += now.bytes - before.bytes;
}

void rt_usage_add(RtUsage *u, const RtCommCounters *before, const RtComm *c) {
    RtCommCounters now = rt_comm_counters(c);
    for (int k = 0; k < RT_COMM_KINDS; k++)
        for (int l = 0; l < RT_LINKS; l++) {
            add(&u->sent[k][l], now.plan_sent[k][l], before->plan_sent[k][l]);
            add(&u->received[k][l], now.plan_received[k][l], before->plan_received[k][l]);
        }
}

json_t *rt_traffic_json(const RtTraffic t[RT_COMM_KINDS][RT_LINKS]) {
    json_t *all = json_object();
    for (int k = 0; k < RT_COMM_KINDS; k++)
        for (int l = 0; l < RT_LINKS; l++) {
            if (!t[k][l].messages) continue;
            const char *kind = rt_comm_kind_name((RtCommKind)k);
            json_t *links = json_object_get(all, kind);
            if (!links) json_object_set_new(all, kind, links = json_object());
            json_object_set_new(links, rt_link_name((RtLink)l),
                                json_pack("[I, I]", (json_int_t)t[k][l].messages, (json_int_t)t[k][l].bytes));
        }
    return all;
}

static char *rank_text(const RtUsage *u, const RtPlanInstance *p) {
    RtMemory m = rt_plan_memory(p->plan, p->threads);
    json_t *memory = json_object();
    for (int i = 0; i < RT_MEMORY_KINDS; i++)
        if (m.bytes[i]) json_object_set_new(memory, rt_memory_name((RtMemoryKind)i), json_integer(m.bytes[i]));
    json_object_set_new(memory, "allocated", json_integer(p->allocated));
    json_t *o = json_pack("{s:i, s:o, s:o, s:o}", "rank", rt_rank(p->ranks), "memory", memory, "sent", rt_traffic_json(u->sent),
                          "received", rt_traffic_json(u->received));
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

// all: a text of each rank, one after the other.
static RtStatus write_all(const char *all, int ranks, int64_t steps, const char *run_dir, RtError *e) {
    char *path = rt_path("%s/ranks.json", run_dir);
    FILE *f = fopen(path, "w");
    bool ok = f != NULL;
    if (f) {
        fprintf(f, "{\"steps\": %lld, \"ranks\": [\n", (long long)steps);
        for (int i = 0; i < ranks; i++, all += strlen(all) + 1) fprintf(f, " %s%s\n", all, i + 1 < ranks ? "," : "");
        fprintf(f, "]}\n");
        ok = !ferror(f);
        ok &= fclose(f) == 0;
    }
    RtStatus s = ok ? RT_OK : rt_fail(e, RT_IO, "cannot write %s: %s", path, strerror(errno));
    free(path);
    return s;
}

RtStatus rt_usage_write(const RtUsage *u, RtPlanInstance *p, int64_t steps, const char *run_dir, RtError *e) {
    char *own = rank_text(u, p), *all = NULL;
    RtStatus s = RT_OK;
    if (p->ranks) s = rt_gather_texts(p->ranks, own, &all, e);
    if (s == RT_OK && rt_rank(p->ranks) == 0) s = write_all(all ? all : own ? own : "", rt_n_ranks(p->ranks), steps, run_dir, e);
    s = rt_agree(p->ranks, s, e);
    free(own);
    free(all);
    return s;
}
