// What one machine can do: measured rates that choices of instruction, tile, layout and recomputation follow.
// `moec bench machine` measures them (frontend/cmd_machine.c) and keeps them in a file (frontend/machine_file.c).
// No rate may change a bit of a result: rates choose among ways that give the same bits, or an arithmetic that the
// plan names.  Rates differ from run to run, so what enters a kernel's key is what was chosen, never the rate.
#ifndef IR_MACHINE_H
#define IR_MACHINE_H
#include <stdint.h>
#include "runtime/abi.h"

enum { MACHINE_COUNTS = 12, MACHINE_TILES = 160, MACHINE_OPS = 64 };
enum { MACHINE_LEAF_K = 8, MACHINE_LEAVES = 8 };
enum { MACHINE_TILE_K = 256 };     // operations of each element of a tile whose rate is measured, in one call

// Operations a second in registers, of `threads` threads together; a multiply-add is two.  0: no such instruction.
typedef struct {
    int    threads;
    double fma;                    // f32
    double bf16_dot;               // pairs of bf16 into f32 (vdpbf16ps)
    double int8_dot;               // quadruples of u8 x i8 into i32 (vpdpbusd)
} MachineRates;

// Bytes a second of all threads together: [0] one thread, [1] all.  A copy counts what it reads and what it writes.
typedef enum { LEVEL_L1, LEVEL_L2, LEVEL_L3, LEVEL_DRAM, MACHINE_LEVELS } MachineLevelKind;
typedef struct {
    int64_t size;                  // bytes; L1 and L2 of one core, L3 of all that share it; 0: there is none, or no limit (DRAM)
    int64_t probed;                // bytes that all threads together went through when it was measured; 0: never measured
    double  read[2], write[2], copy[2];
    double  stream[2];             // written by stores that pass the caches by
    double  strips[2];             // read by one thread, a line of each of 16 rows at a time; [1]: rows whole pages apart.  0: as read
} MachineLevel;

// Operations a second of one thread in a register tile of a contraction (codegen/cpu/tile.h) with its operands in L1 and L2.
// B lies in panels of f32; of bf16, widened; of pairs of bf16 for dot products; or in rows of f32, a few of them at a time.
typedef enum { TILE_F32, TILE_BF16_WIDENED, TILE_BF16_DOT, TILE_F32_ROWS, TILE_KINDS } MachineTileKind;
const char *machine_tile_name(MachineTileKind kind);       // "f32", "bf16 widened", ..
typedef struct {
    int    rows, vecs;             // vectors of 16 columns
    MachineTileKind kind;
    double rate;
} MachineTile;

// Share of the machine's rates that kernels of an op reached in a run (moec plan --calibrate): for plans, not for code.
typedef struct { char op[32]; double share; } MachineOp;

// From one rank to another.
typedef struct {
    double rate;                   // bytes a second; 0: nobody knows
    double latency;                // seconds until an empty message is there
    double message, cpu;           // seconds of a core that a message costs, and each byte of it
} MachineLink;

typedef struct {
    char   name[96];               // of the CPU
    int    threads;                // that run at once
    int    vector_bytes;           // of the widest registers; tiles were measured with these
    int    n_rates;                // thread counts measured: 1, 2, 4, .. and all, ascending
    MachineRates rates[MACHINE_COUNTS];
    MachineLevel level[MACHINE_LEVELS];
    double region;                 // seconds from calling the team of all threads until all have returned from an empty function
    double barrier;                // seconds that a phase more costs: all threads meet once
    double task;                   // seconds of a thread that taking a task costs
    double call;                   // and that a call of a tile takes beside its operations
    double leaves, fours;          // operations a second of one thread in sums over rows whose leaves have MACHINE_LEAF_K: a tile's go one by
                                   // one, or in fours whose sums meet in registers (codegen/cpu/tile.h)
    double turn;                   // bytes a second of one thread that packs the columns of a matrix, 16 x 16 at a time, near by
    int    n_tiles;
    MachineTile tile[MACHINE_TILES];
    int    n_ops;
    MachineOp op[MACHINE_OPS];
} Machine;

// How an operand of a node may lie other than in rows, and what the node is predicted to take of one thread's time with it in rows
// and so.  LAYOUT_ROWS: in no other way.
typedef struct { Layout layout; double rows, laid; } LayoutOffer;
// cpu: as CompileOpts.  passing: bytes that pass by before the operand is read again.
struct Node;
typedef LayoutOffer LayoutFn(const struct Node *n, int operand, const char *cpu, const Machine *m, int64_t passing);

// Typical numbers of a machine with registers of that width (64, 32, 16 bytes), without a name: what is used until
// something was measured.
Machine machine_guess(int vector_bytes, int threads);

// Rates of `threads` threads (0: all): between counts that were measured in proportion.
MachineRates machine_rates(const Machine *m, int threads);
// The nearest level that holds so many bytes, which all threads use together.
MachineLevelKind machine_level(const Machine *m, int64_t bytes, int threads);
// Bytes a second of `threads` threads (0: all), for one of the rates of a level: m->level[i].read, ...
double machine_bandwidth(const Machine *m, const double rate[2], int threads);
// How much longer than a stream of one thread reading lines of 16 rows in turns takes.  row: bytes from one to the next.
double machine_strips(const Machine *m, MachineLevelKind level, int64_t row);
// Rate of a tile of exactly this size; 0: not measured.
double machine_tile(const Machine *m, int rows, int vecs, MachineTileKind kind);

#endif
