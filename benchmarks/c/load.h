/* What the parts of `load` share: one thread, one epoll, one job. */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"
#include "job.h"

static const uint64_t EPOCH = 1000000000000000; /* µs, added to CLOCK_MONOTONIC: makes every time 16 digits long */

enum { MESSAGE_LIMIT = 64 << 20 }; /* bytes */
enum state { CLOSED, CONNECTING, UPGRADING, OPENING, JOINED };
enum kind { CONNECTION, HTTP, GATE, TIMER }; /* of a file in epoll */

struct connection {
    int fd;
    uint32_t number, room, interest;
    enum state state;
    bool slow, joined_seen, dirty; /* dirty: has something to send that was not tried yet */
    size_t step;                   /* of the job's, next */
    uint64_t began;                /* µs, its SYN */
    size_t sent;                   /* of `out` */
    struct buffer held, out;       /* the beginning of a frame; what is still to be sent */
    struct buffer message;         /* fragments of an unfinished message */
    bool fragmented, message_compressed;
    void *inflater; /* its own, where the server keeps its window from one message to the next */
    bool takeover;
    /* where each waits for its own */
    uint64_t stamp; /* of its event under way; 0: none */
    uint64_t turns_left;
    bool own_came, acknowledged;
};

/* What is counted in one phase. */
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
    uint64_t now, slow_deliveries; /* now: µs of CLOCK_MONOTONIC + 10^15, read once for each bunch of bytes */
    struct phase phase;
    struct histogram latency, connecting;
    bool measuring, over, progress; /* over: after the measured phase */
    int epoll;
};

extern struct load load;

/* --- load.c --- */
uint64_t clock_us(void);
void watch(int fd, enum kind kind, uint32_t number, uint32_t *interest, uint32_t wanted);
void poll_once(uint64_t until);
void progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* --- connection.c --- */
void connections_begin(void);
void connections_open_more(void); /* as many at a time as the job allows */
void connections_check_deadline(void);
void connection_cut(struct connection *connection);
void connection_handle(struct connection *connection, uint32_t events);
void connection_send_text(struct connection *connection, const char *text, size_t size);
void connection_update(struct connection *connection); /* slow ones stop reading, and read again when all is over */
void connections_flush(void); /* sends what has been queued since the last time */

/* --- inflate.c --- */
/* The text of a compressed message; it holds until the next one. */
const struct buffer *inflated(struct connection *connection, const char *payload, size_t size);
void inflate_end(struct connection *connection);

/* --- http.c --- */
void http_begin(void);
void http_submit(const struct filling *filling, const char *body, size_t size);
void http_handle(uint32_t number, uint32_t events);
const char *http_first_refusal(void); /* "" if there was none */

/* --- workload.c --- */
void workload_begin(void);
void workload_phase(double seconds);
void workload_text(struct connection *connection, const char *text, size_t size); /* of one that has joined */
void workload_gone(struct connection *connection);
void workload_timer(void);

#endif
