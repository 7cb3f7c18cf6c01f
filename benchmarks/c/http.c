#define _GNU_SOURCE
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

/* A connection for publishing; one request at a time. */
struct line {
    int fd;
    uint32_t interest;
    bool busy;
    size_t sent;
    struct buffer in, out;
};

struct request {
    struct request *next;
    size_t size;
    char bytes[];
};

static struct {
    struct line *lines;
    struct sockaddr_in server;
    struct request *oldest, **end; /* requests that wait for a connection */
    struct buffer text;
    char refusal[120];
} http;

const char *http_first_refusal(void) { return http.refusal; }

static void set_interest(struct line *line) {
    uint32_t wanted = EPOLLIN | (line->sent < line->out.size ? EPOLLOUT : 0);
    watch(line->fd, HTTP, (uint32_t)(line - http.lines), &line->interest, wanted);
}

static void line_open(struct line *line) {
    int one = 1;
    line->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (line->fd < 0) die("no socket for publications: %s", strerror(errno));
    setsockopt(line->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(line->fd, (struct sockaddr *)&http.server, sizeof http.server) < 0 && errno != EINPROGRESS)
        die("publications: %s:%u: %s", load.job.http_host, (unsigned)load.job.http_port, strerror(errno));
    line->interest = 0;
    line->in.size = 0;
}

static void line_close(struct line *line) {
    close(line->fd);
    line->fd = -1;
    line->out.size = line->sent = 0;
}

static void refused(const char *why, size_t size) {
    load.phase.refused++;
    if (*http.refusal == 0) snprintf(http.refusal, sizeof http.refusal, "%.*s", (int)size, why);
}

static void line_flush(struct line *line) {
    while (line->sent < line->out.size) {
        ssize_t sent = send(line->fd, line->out.at + line->sent, line->out.size - line->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) break; /* not connected yet, or full; reading reports an error */
        line->sent += (size_t)sent;
        load.phase.bytes_out += (uint64_t)sent;
    }
    if (line->sent == line->out.size) line->sent = line->out.size = 0;
    set_interest(line);
}

static void line_send(struct line *line, const char *bytes, size_t size) {
    if (line->fd < 0) line_open(line);
    line->busy = true;
    buffer_add(&line->out, bytes, size);
    line_flush(line);
}

void http_submit(const struct filling *filling, const char *body, size_t size) {
    struct buffer *out = &http.text;
    char fixed[160];
    out->size = 0;
    template_fill(&load.job.http_publish, &load.job, filling, out);
    int fixed_size = snprintf(fixed, sizeof fixed, " HTTP/1.1\r\nHost: %s:%u\r\nContent-Length: %zu\r\n", load.job.http_host,
                              (unsigned)load.job.http_port, size);
    buffer_add(out, fixed, (size_t)fixed_size);
    for (size_t n = 0; n < load.job.http_headers.count; n++) {
        template_fill(&load.job.http_headers.at[n], &load.job, filling, out);
        buffer_add(out, "\r\n", 2);
    }
    buffer_add(out, "\r\n", 2);
    buffer_add(out, body, size);
    for (struct line *line = http.lines; line < http.lines + load.job.http_connections; line++)
        if (!line->busy) {
            line_send(line, out->at, out->size);
            return;
        }
    struct request *request = malloc(sizeof *request + out->size);
    if (request == NULL) die("there is no memory for a publication");
    request->next = NULL;
    request->size = out->size;
    memcpy(request->bytes, out->at, out->size);
    *http.end = request;
    http.end = &request->next;
}

static void line_next(struct line *line) {
    struct request *request = http.oldest;
    line->busy = false;
    if (request == NULL) return;
    http.oldest = request->next;
    if (http.oldest == NULL) http.end = &http.oldest;
    line_send(line, request->bytes, request->size);
    free(request);
}

/* Returns whether the response is complete. `bytes` ends with NUL. */
static bool is_whole(const char *bytes, size_t size, bool *last) {
    const char *end = strstr(bytes, "\r\n\r\n");
    if (end == NULL) return false;
    char *head = strndup(bytes, (size_t)(end - bytes));
    if (head == NULL) die("there is no memory for an answer");
    size_t body = size - (size_t)(end + 4 - bytes);
    const char *length = strcasestr(head, "\r\nContent-Length:");
    bool empty = strncmp(head + strcspn(head, " "), " 204", 4) == 0, whole = empty;
    if (length) whole |= body >= strtoull(length + 17, NULL, 10);
    else if (strcasestr(head, "\r\nTransfer-Encoding:")) whole |= body >= 5 && memcmp(bytes + size - 5, "0\r\n\r\n", 5) == 0;
    *last = strcasestr(head, "\r\nConnection: close") != NULL;
    free(head);
    return whole;
}

static void handle(uint32_t number, uint32_t events) {
    struct line *line = &http.lines[number];
    if (line->fd < 0) return;
    if (events & EPOLLOUT) line_flush(line);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(line->fd, buffer_grow(&line->in, 65537), 65536, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { /* a server may close an idle connection */
        const char *why = got ? strerror(errno) : "the server closed the connection";
        line_close(line);
        if (line->busy) {
            refused(why, strlen(why));
            line_next(line);
        }
        return;
    }
    bool last = false;
    load.phase.bytes_in += (uint64_t)got;
    line->in.size += (size_t)got;
    line->in.at[line->in.size] = 0;
    if (!line->busy || !is_whole(line->in.at, line->in.size, &last)) return;
    const char *status = line->in.at + strcspn(line->in.at, " ");
    if (status[0] == 0 || status[1] != '2') refused(line->in.at, strcspn(line->in.at, "\r\n"));
    line->in.size = 0;
    if (last) line_close(line);
    line_next(line);
}

void http_begin(void) {
    http.end = &http.oldest;
    http.server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)load.job.http_port)};
    if (inet_pton(AF_INET, load.job.http_host, &http.server.sin_addr) != 1) die("http_host: %s is no IPv4 address", load.job.http_host);
    http.lines = calloc(load.job.http_connections, sizeof *http.lines);
    if (http.lines == NULL) die("there is no memory for the connections");
    for (uint64_t n = 0; n < load.job.http_connections; n++) http.lines[n].fd = -1;
    loop_handle(HTTP, handle);
}
