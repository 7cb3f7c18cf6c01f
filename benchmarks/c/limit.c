/* limit: the least that a WebSocket server can do for rooms: one read for a message, one send for each member of the room.
   What other servers take is set against what this takes.

   limit PORT: listens on 127.0.0.1 (PORT 0: any), writes "listening PORT" on stdout, serves until it is killed.
   GET /?room=R joins the room R, 0 to 65535; each text frame goes to all members of it, its sender too.
   GET /?room=R&echo=1: it goes to its sender alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "accept.h"
#include "frame.h"
#include "job.h"

enum { ROOMS_LIMIT = 65536, BUNCH = 512, BACKLOG = 4096, INPUT = 64 << 10, OUTBOX_LIMIT = 4 << 20 };

struct member {
    int fd;
    bool upgraded, echo, writing; /* writing: `out` has unsent data */
    uint32_t room, place;         /* its index in the room's members */
    size_t sent;
    struct buffer in, out; /* an incomplete frame; unsent data */
};

static struct {
    struct member **members;
    uint32_t count, space;
} rooms[ROOMS_LIMIT];

static struct buffer input;
static int epoll;

static void join(struct member *member) {
    uint32_t count = rooms[member->room].count;
    if (count == rooms[member->room].space) {
        rooms[member->room].space = count ? 2 * count : 16;
        rooms[member->room].members = realloc(rooms[member->room].members, rooms[member->room].space * sizeof(struct member *));
        if (rooms[member->room].members == NULL) die("there is no memory for a room");
    }
    member->place = count;
    rooms[member->room].members[rooms[member->room].count++] = member;
}

static void leave(struct member *member) {
    struct member *last = rooms[member->room].members[--rooms[member->room].count];
    rooms[member->room].members[member->place] = last;
    last->place = member->place;
}

/* Do not call inside a loop over the room's members. */
static void end(struct member *member) {
    if (member->upgraded) leave(member);
    close(member->fd);
    free(member->in.at);
    free(member->out.at);
    free(member);
}

static void watch(struct member *member, int how) {
    struct epoll_event event = {.events = EPOLLIN | (member->writing ? EPOLLOUT : 0), .data.ptr = member};
    if (epoll_ctl(epoll, how, member->fd, &event) < 0) die("epoll: %s", strerror(errno));
}

/* Sends once and queues the rest. A reader that is megabytes behind is shut down, and ends at its next event. */
static void give(struct member *member, const uint8_t *bytes, size_t size) {
    ssize_t sent = 0;
    if (!member->writing && (sent = send(member->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT)) == (ssize_t)size) return;
    if (sent < 0 && errno != EAGAIN) return; /* the error comes as an event */
    if (sent < 0) sent = 0;
    if (member->out.size > OUTBOX_LIMIT) {
        shutdown(member->fd, SHUT_RDWR);
        return;
    }
    buffer_add(&member->out, bytes + sent, size - (size_t)sent);
    if (!member->writing) {
        member->writing = true;
        watch(member, EPOLL_CTL_MOD);
    }
}

static void give_rest(struct member *member) {
    ssize_t sent = send(member->fd, member->out.at + member->sent, member->out.size - member->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) member->sent += (size_t)sent;
    if (member->sent < member->out.size) return;
    member->sent = member->out.size = 0;
    member->writing = false;
    watch(member, EPOLL_CTL_MOD);
}

static bool upgrade(struct member *member, const char *head, size_t size) {
    static const char name[] = "\r\nSec-WebSocket-Key:";
    char accept[ACCEPT_SIZE + 1], answer[200];
    const char *line_end = memmem(head, size, "\r\n", 2), *key = strcasestr(head, name), *room = strstr(head, "room=");
    if (key == NULL || strncmp(head, "GET ", 4) != 0) return false;
    key += sizeof name - 1;
    key += strspn(key, " ");
    accept_of_key(key, strcspn(key, " \r"), accept);
    member->room = room && room < line_end ? (uint32_t)strtoul(room + 5, NULL, 10) % ROOMS_LIMIT : 0;
    member->echo = memmem(head, (size_t)(line_end - head), "echo=1", 6) != NULL;
    member->upgraded = true;
    join(member);
    int answer_size = snprintf(answer, sizeof answer,
                               "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: %s\r\n\r\n",
                               accept);
    give(member, (const uint8_t *)answer, (size_t)answer_size);
    return true;
}

/* The payload's place is in front of itself by four bytes of mask: the head that goes out always fits before it. */
static void pass_on(struct member *member, uint8_t *payload, const struct head *head, uint8_t opcode) {
    uint8_t written[HEAD_LIMIT];
    size_t size = frame_write(written, opcode, head->size, NULL);
    frame_mask(payload, head->size, head->mask);
    uint8_t *frame = payload - size;
    memcpy(frame, written, size);
    if (member->echo || opcode != TEXT) {
        give(member, frame, size + head->size);
        return;
    }
    struct member **members = rooms[member->room].members;
    for (uint32_t n = 0, count = rooms[member->room].count; n < count; n++) give(members[n], frame, size + head->size);
}

/* Handles complete frames; returns their length, or -1 at the end of the connection. */
static ssize_t take(struct member *member, uint8_t *bytes, size_t size) {
    size_t at = 0, head_size;
    struct head head;
    if (!member->upgraded) {
        const uint8_t *head_end = memmem(bytes, size, "\r\n\r\n", 4);
        if (head_end == NULL) return size < INPUT ? 0 : -1;
        at = (size_t)(head_end - bytes) + 4;
        bytes[at - 1] = 0; /* the head as a string */
        if (!upgrade(member, (const char *)bytes, at)) return -1;
    }
    while ((head_size = frame_read(bytes + at, size - at, &head)) != 0) {
        if (!head.masked || !head.fin || head.size > OUTBOX_LIMIT) return -1;
        if (size - at - head_size < head.size) break;
        uint8_t *payload = bytes + at + head_size;
        at += head_size + (size_t)head.size;
        if (head.opcode == TEXT) pass_on(member, payload, &head, TEXT);
        else if (head.opcode == PING) pass_on(member, payload, &head, PONG);
        else if (head.opcode == CLOSE) {
            pass_on(member, payload, &head, CLOSE);
            return -1;
        } else if (head.opcode != PONG) return -1;
    }
    return (ssize_t)at;
}

static void serve(struct member *member, uint32_t events) {
    if (events & EPOLLOUT) give_rest(member);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    size_t held = member->in.size;
    input.size = 0;
    buffer_grow(&input, INPUT + 2 * held);
    if (held) memcpy(input.at, member->in.at, held);
    ssize_t got = recv(member->fd, input.at + held, input.space - held, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    ssize_t used = got <= 0 ? -1 : take(member, (uint8_t *)input.at, held + (size_t)got);
    if (used < 0) {
        end(member);
        return;
    }
    member->in.size = 0;
    buffer_add(&member->in, input.at + used, held + (size_t)got - (size_t)used);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct member *member = calloc(1, sizeof *member);
        if (member == NULL) die("there is no memory for a connection");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        member->fd = fd;
        watch(member, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) die("accept: %s", strerror(errno));
}

static int listen_on(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, BACKLOG) < 0)
        die("127.0.0.1:%s: %s", port, strerror(errno));
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("listening %u\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **words) {
    struct rlimit files;
    if (count != 2) {
        fprintf(stderr, "usage: %s PORT\n", words[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll: %s", strerror(errno));
    int listener = listen_on(words[1]);
    struct epoll_event events[BUNCH], listening = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &listening);
    for (;;) {
        int ready = epoll_wait(epoll, events, BUNCH, -1);
        for (int n = 0; n < ready; n++) {
            if (events[n].data.ptr == NULL) accept_all(listener);
            else serve(events[n].data.ptr, events[n].events);
        }
    }
}
