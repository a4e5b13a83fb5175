// Schedules: factors on train.lr.  s counts steps from 1; W = warmup, N = length.
//
//   all with a warmup   s <= W:  s / W
//   cosine              floor + (1 - floor) (1 + cos(pi (s - W) / (N - W))) / 2
//   linear              1 - (1 - floor) (s - W) / (N - W)
//   inverse_sqrt        sqrt(W / s)
//   wsd                 1 until N - decay, then its shape down to floor at N
//   warmup_log          log(s) / log(W), 1 from W on
#include "runtime/schedule.h"

#include <math.h>

double rt_quantity_steps(RtQuantity q, RtStepSize size) {
    switch (q.unit) {
    case RT_NO_UNIT: return 0;
    case RT_STEPS: return q.value;
    case RT_TOKENS: return ceil(q.value / size.tokens);
    case RT_SAMPLES: return ceil(q.value / size.samples);
    case RT_EPOCHS: return ceil(q.value * size.samples_per_epoch / size.samples);
    case RT_MINUTES: return -1;
    }
    return 0;
}

RtSchedule rt_schedule(const RtSettings *s, RtStepSize size) {
    double length = rt_quantity_steps(s->schedule.length.unit ? s->schedule.length : s->length, size);
    return (RtSchedule){.kind = s->schedule.kind, .shape = s->schedule.shape, .lr = s->lr,
                        .warmup = rt_quantity_steps(s->schedule.warmup, size), .length = length,
                        .decay = rt_quantity_steps(s->schedule.decay, size), .floor = s->schedule.floor};
}

// How much of the way from 1 to floor is left after share q of the decay.
static double decay_left(RtDecayShape shape, double q) {
    switch (shape) {
    case SHAPE_LINEAR: return 1 - q;
    case SHAPE_COSINE: return (1 + cos(M_PI * q)) / 2;
    case SHAPE_EXPONENTIAL: return 2 * pow(0.5, q) - 1;
    case SHAPE_SQRT: return 1 - sqrt(q);
    case SHAPE_KINDS: break;
    }
    return 1;
}

// Share of [begin, begin + n] that is over at s.
static double progress(double s, double begin, double n) {
    if (s <= begin) return 0;
    return n <= 0 || s >= begin + n ? 1 : (s - begin) / n;
}

double rt_schedule_lr(const RtSchedule *c, int64_t step) {
    double s = (double)step, warmup = c->warmup;
    if (c->kind == SCHEDULE_CONSTANT) return c->lr;
    if (c->kind == SCHEDULE_WARMUP_LOG)
        return s >= warmup || warmup <= 1 ? c->lr : c->lr * log(s) / log(warmup);
    if (s <= warmup) return c->lr * s / warmup;
    double left = 1;
    switch (c->kind) {
    case SCHEDULE_COSINE: left = decay_left(SHAPE_COSINE, progress(s, warmup, c->length - warmup)); break;
    case SCHEDULE_LINEAR: left = decay_left(SHAPE_LINEAR, progress(s, warmup, c->length - warmup)); break;
    case SCHEDULE_WSD: left = decay_left(c->shape, progress(s, c->length - c->decay, c->decay)); break;
    case SCHEDULE_INVERSE_SQRT: return c->lr * sqrt((warmup > 0 ? warmup : 1) / s);
    default: break;
    }
    return c->lr * (c->floor + (1 - c->floor) * left);
}
