// Kernels that do one thing as fast as a machine can, to measure it by; made and loaded as all code of the cpu target.
#ifndef CODEGEN_PROBE_H
#define CODEGEN_PROBE_H
#include "ir/base/diag.h"
#include "ir/machine.h"
#include "runtime/abi.h"

typedef enum { PROBE_FMA, PROBE_BF16_DOT, PROBE_INT8_DOT, PROBE_READ, PROBE_WRITE, PROBE_COPY, PROBE_STREAM, PROBE_STRIPS, PROBE_STRIPS_OF_PAGES, PROBE_TURN, PROBE_LEAVES, PROBE_FOURS, PROBE_TILE } ProbeKind;

// args of the kernel:  const int64_t[2]: rounds, bytes | memory | memory
//   arithmetic   a round is `work` operations; reads 64 bytes of the first memory, writes 64 of the second
//   memory       a round goes through `bytes` (a multiple of PROBE_STEP) of the first memory, a copy from the second to the first
//   strips       reads 16 rows at a time, a line of each in turns; whole blocks of 16 x PROBE_ROW, or 16 pages
//   turn         a round packs `work` bytes of columns of the first memory (PROBE_TILE_BYTES) into the second (PROBE_RESULT_BYTES)
//   leaves       the same as a tile, whose chain is MACHINE_LEAVES leaves of MACHINE_LEAF_K, one by one or in fours
//   a tile       a round is `work` operations; reads PROBE_TILE_BYTES of the first memory, writes PROBE_RESULT_BYTES of the second
// Memory holds PROBE_WORD everywhere: in every type numbers near 1, since some machines are slow with denormal ones.
enum { PROBE_STEP = 512, PROBE_ROW = 7168, PROBE_PAGE = 4096, PROBE_TILE_BYTES = 384 << 10, PROBE_RESULT_BYTES = 64 << 10, PROBE_WORD = 0x3f803f80 };

typedef struct {
    ProbeKind   kind;
    MachineTile tile;              // which, for PROBE_TILE; of leaves it is set
    int         k;                 // of a call of it, of panels of f32; 0: MACHINE_TILE_K
    double      work;              // set: operations, or bytes, of a round
    RtKernelFn *fn;                // set: NULL if this machine has no such instruction, or can't hold the tile in its registers
} Probe;

typedef struct Probes Probes;
// Fills work and fn of n probes in the code of a target's machine (NULL: native), which must run here; they live until
// probes_free.  NULL after diag_error.
Probes *probes_compile(const char *cpu, Probe *probe, int n, Diag *d);
void    probes_free(Probes *p);

// Name, number of threads and registers of this machine's CPU, its cache sizes, and typical rates for everything else.
void probe_identify(Machine *m, int threads);
// The tiles worth measuring on this machine, with rates 0.
void probe_tiles(Machine *m);

#endif
