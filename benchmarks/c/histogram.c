#include "histogram.h"

#include <inttypes.h>

/* Returns the largest value of a cell. */
static uint64_t upper(unsigned cell) {
    if (cell < STEPS) return cell;
    unsigned octave = cell / STEPS - 1;
    return ((uint64_t)(cell % STEPS + STEPS + 1) << octave) - 1;
}

uint64_t histogram_quantile(const struct histogram *histogram, double share) {
    double wanted = share * (double)histogram->count;
    uint64_t seen = 0;
    for (unsigned cell = 0; cell < CELLS; cell++) {
        seen += histogram->cells[cell];
        if (seen && (double)seen >= wanted) return upper(cell) < histogram->max ? upper(cell) : histogram->max;
    }
    return histogram->max;
}

void histogram_print(const struct histogram *histogram, FILE *out) {
    double mean = histogram->count ? (double)histogram->sum / (double)histogram->count : 0;
    fprintf(out, "{\"p50\": %" PRIu64 ", \"p90\": %" PRIu64 ", \"p99\": %" PRIu64 ", \"p999\": %" PRIu64,
            histogram_quantile(histogram, .5), histogram_quantile(histogram, .9), histogram_quantile(histogram, .99),
            histogram_quantile(histogram, .999));
    fprintf(out, ", \"max\": %" PRIu64 ", \"mean\": %.1f, \"count\": %" PRIu64 "}", histogram->max, mean, histogram->count);
}
