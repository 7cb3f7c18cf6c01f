/* A log-linear histogram: 64 steps for each power of two, so values are exact to 1.6 %. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>

enum { STEPS = 64, STEP_BITS = 6, OCTAVES = 40, CELLS = STEPS * OCTAVES };

struct histogram {
    uint64_t count, sum, max;
    uint64_t cells[CELLS];
};

static inline unsigned histogram_cell(uint64_t value) {
    if (value < STEPS) return (unsigned)value; /* the first two octaves are exact */
    unsigned octave = 63 - (unsigned)__builtin_clzll(value) - STEP_BITS;
    unsigned cell = (octave + 1) * STEPS + (unsigned)(value >> octave) - STEPS;
    return cell < CELLS ? cell : CELLS - 1;
}

static inline void histogram_add(struct histogram *histogram, uint64_t value) {
    histogram->count++;
    histogram->sum += value;
    if (value > histogram->max) histogram->max = value;
    histogram->cells[histogram_cell(value)]++;
}

/* Returns the quantile `share` (0 to 1); 0 without values. */
uint64_t histogram_quantile(const struct histogram *histogram, double share);

/* Writes {"p50": …, "p90": …, "p99": …, "p999": …, "max": …, "mean": …, "count": …}. */
void histogram_print(const struct histogram *histogram, FILE *out);

#endif
