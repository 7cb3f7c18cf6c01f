/* The job file: what `load` is to do. Its format is JOB.md. */
#ifndef JOB_H
#define JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow. */
struct buffer {
    char *at;
    size_t size, space;
};

/* Makes room for `more` bytes behind the others and returns where they go; `size` is not changed. */
char *buffer_grow(struct buffer *buffer, size_t more);
void buffer_add(struct buffer *buffer, const void *bytes, size_t size);

/* Writes a sentence on stderr and ends the process with 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct piece {
    char kind; /* 0: bytes; otherwise the letter of a placeholder */
    const char *bytes;
    size_t size;
};

/* Bytes with places to fill in. */
struct template {
    struct piece *pieces;
    size_t count;
};

/* What is filled in. */
struct filling {
    uint32_t number, room;
    uint64_t stamp, id;
    size_t whole, padding; /* bytes of the whole, or of the padding alone; see `payload` and `padding` */
};

struct step {
    bool awaited; /* otherwise sent */
    struct template text;
};

struct answer {
    const char *question, *text;
    size_t question_size, text_size;
};

enum workload { FANOUT, RATE, ROOMS, ECHO, CONNECT, STORM, IDLE };
enum deflate { PLAIN, DEFLATE, DEFLATE_TAKEOVER };

#define LISTS(OF) OF(struct template, headers) OF(struct template, http_headers) OF(struct step, steps) OF(struct answer, answers)
#define LIST(type, name) struct { type *at; size_t count; } name;

struct job {
    const char *host, *http_host, *workload_name;
    uint64_t port, http_port, http_connections;
    struct template path, subprotocol, joined_expect, message, http_publish;
    const char *marker, *echo_expect;
    size_t marker_size, echo_expect_size;
    uint64_t connections, rooms, sources, concurrency, outstanding, active, turns, slow, slow_buffer, payload, padding;
    double timeout, seconds, warmup, rate, patience;
    enum workload workload;
    enum deflate deflate;
    bool gate;
    const char **values;
    size_t value_count;
    LISTS(LIST)
};

/* Reads the file and puts defaults; ends the process with a sentence that names file and line when it is wrong. */
void job_read(struct job *job, const char *path);

/* Appends the template, filled in. */
void template_fill(const struct template *template, const struct job *job, const struct filling *filling, struct buffer *out);

#endif
