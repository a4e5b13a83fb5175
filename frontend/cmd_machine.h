// What the machine can do, measured in a few milliseconds: the limit that MFU is a share of.
#ifndef FRONTEND_CMD_MACHINE_H
#define FRONTEND_CMD_MACHINE_H

// f32 operations per second of fused multiply-adds in registers, on `threads` threads (0: all cores).
double machine_peak_flops(int threads);

#endif
