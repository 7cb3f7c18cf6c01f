#include "shared.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

struct load load;

uint64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return EPOCH + (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void progress(const char *format, ...) {
    va_list values;
    if (!load.progress) return;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
}
