/* The job file of `load`. JOB.md describes the format. */
#ifndef JOB_H
#define JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A growing byte buffer. */
struct buffer {
    char *at;
    size_t size, space;
};

/* Reserves `more` bytes at the end and returns their place; `size` does not change. */
char *buffer_grow(struct buffer *buffer, size_t more);
void buffer_add(struct buffer *buffer, const void *bytes, size_t size);

/* Prints an error and exits with status 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct piece {
    char kind; /* 0: bytes; otherwise the letter of a placeholder */
    const char *bytes;
    size_t size;
};

/* A template: bytes with placeholders. */
struct template {
    struct piece *pieces;
    size_t count;
};

/* The values of the placeholders. */
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

/* Reads the file and sets defaults. Exits with an error that names file and line if the file is wrong. */
void job_read(struct job *job, const char *path);

/* Appends the rendered template. */
void template_fill(const struct template *template, const struct job *job, const struct filling *filling, struct buffer *out);

#endif
