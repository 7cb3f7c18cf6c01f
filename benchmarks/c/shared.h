/* What the parts of `load` share: one thread, one job, its connections and its counters.

Who knows whom: load > workload > connection, http > loop, inflate > shared > job, histogram. What has to go the other way is
a function that the upper part has given to the lower one. */
#ifndef SHARED_H
#define SHARED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"
#include "job.h"

static const uint64_t EPOCH = 1000000000000000; /* µs, added to CLOCK_MONOTONIC: makes every time 16 digits long */

enum { MESSAGE_LIMIT = 64 << 20 }; /* bytes */
enum state { CLOSED, CONNECTING, UPGRADING, OPENING, JOINED };

struct connection {
    int fd;
    uint32_t number, room, interest;
    enum state state;
    bool slow, joined_seen, dirty; /* dirty: has new data to send */
    size_t step;                   /* of the job's, next */
    uint64_t began;                /* µs, its SYN */
    size_t sent;                   /* of `out` */
    struct buffer held, out;       /* an incomplete frame; unsent data */
    struct buffer message;         /* fragments of an unfinished message */
    bool fragmented, message_compressed;
    void *inflater; /* its own, if the server uses context takeover */
    bool takeover;
    /* where each waits for its own */
    uint64_t stamp; /* of its event in flight; 0: none */
    uint64_t turns_left;
    bool own_came, acknowledged;
};

/* The counters of one phase. */
struct phase {
    uint64_t published, expected, deliveries, duplicated, strayed;
    uint64_t frames_in, compressed_in, bytes_in, bytes_out, pings, closed, refused, timeouts;
    uint64_t began, ended; /* µs; ended: the last delivery */
    double cpu;
};

struct load {
    struct job job;
    struct connection *connections;
    uint32_t *members; /* of each room: those that are awaited */
    uint32_t alive, joined, opening, next_to_open, slow_closed;
    uint64_t now, slow_deliveries; /* now: µs of CLOCK_MONOTONIC + 10^15, read once for each read from the kernel */
    struct phase phase;
    struct histogram latency, connecting;
    bool measuring, over, progress; /* over: after the measured phase */
};

extern struct load load;

uint64_t clock_us(void);
void progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
