// The learning rate of a step.
#ifndef RUNTIME_SCHEDULE_H
#define RUNTIME_SCHEDULE_H
#include "runtime/settings.h"

// What one step takes of everything a quantity may be counted in.
typedef struct { double tokens, samples, samples_per_epoch; } RtStepSize;

// A quantity in steps (minutes: -1; none: 0).
double rt_quantity_steps(RtQuantity q, RtStepSize size);

typedef struct {
    RtScheduleKind kind;
    RtDecayShape shape;
    double lr, warmup, length, decay, floor;         // in steps; floor is a share of lr
} RtSchedule;

RtSchedule rt_schedule(const RtSettings *s, RtStepSize size);
double     rt_schedule_lr(const RtSchedule *s, int64_t step);       // steps count from 1

#endif
