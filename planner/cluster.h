// A cluster as a machine file describes it: nodes of equal devices, and the links inside a node and between nodes.
//
//   {"name": "8x A100 80 GB", "source": "where the figures are from", "nodes": 1,
//    "device": {"kind": "gpu", "per_node": 8, "memory": 80e9, "reserve": 3e9, "flops": {"f32": 19.5e12, "bf16": 312e12},
//               "bandwidth": 2.0e12, "launch": 4e-6, "efficiency": {"gemm": 0.7, "attention": 0.45, "rows": 0.8}},
//    "links": [{"level": "node", "kind": "nvlink", "rate": 240e9, "latency": 5e-6}]}
//
// Bytes, seconds, and their quotients.
#ifndef PLANNER_CLUSTER_H
#define PLANNER_CLUSTER_H
#include <jansson.h>

#include "ir/base/arena.h"
#include "ir/base/diag.h"
#include "runtime/comm.h"

typedef enum { DEVICE_CPU, DEVICE_GPU, DEVICE_KINDS } DeviceKind;

typedef struct {
    const char *kind;          // as the file calls it; NULL: there is no such link
    double rate;               // of a device and direction; `per` "node": of all devices of a node together
    double latency;            // from a send to its arrival, of an empty message
    double message;            // compute that each message costs its ranks
    double cpu;                // compute that each byte costs its ranks, where they move it
    bool   per_node;
} ClusterLink;

enum { CLUSTER_CACHES = 4, CLUSTER_OPS = 64 };

typedef struct {
    const char *name, *source;
    int    nodes, per_node;
    DeviceKind kind;
    int    threads;            // of a rank
    int    cores;              // ranks of a node that compute at once: more take turns, and rates are a rank's share; 0: all
    double memory, reserve;    // reserve: what the system and libraries take of it
    double flops_f32, flops_bf16;
    double bandwidth, launch;  // launch: from one kernel to the next
    double comm_share;         // of the compute that communication takes while it runs
    int    n_caches;           // what fits in bytes is read at rate, smallest first
    struct { double bytes, rate; } cache[CLUSTER_CACHES];
    struct { double gemm, attention, rows; } efficiency;       // shares of flops, flops and bandwidth that kernels reach
    int    n_ops;              // of these, measured (planner/calibrate.h): the share of their limit, whichever it is
    struct { const char *op; double share; } op[CLUSTER_OPS];
    ClusterLink link[RT_LINKS];
} Cluster;

static inline int cluster_devices(const Cluster *c) { return c->nodes * c->per_node; }
double cluster_op_share(const Cluster *c, const char *op);     // 0: not measured

// NULL after errors, which show the member of the file that is wrong.  text must live as long as d.
Cluster *cluster_read(Arena *a, Diag *d, const char *path, const char *text, size_t n);
json_t *cluster_json(const Cluster *c);        // what cluster_read reads; a new reference

#endif
