#include "loop.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "shared.h"

enum { BUNCH = 512, KINDS = TIMER + 1 };
static const uint32_t WATCHED = 1 << 26;        /* a bit that epoll does not use: the file is registered */

static struct {
    int epoll;
    file_handler *handlers[KINDS];
} loop;

void loop_begin(void) {
    loop.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (loop.epoll < 0) die("epoll: %s", strerror(errno));
}

void loop_handle(enum kind kind, file_handler *handler) { loop.handlers[kind] = handler; }

void watch(int fd, enum kind kind, uint32_t number, uint32_t *interest, uint32_t wanted) {
    wanted |= WATCHED;
    if (*interest == wanted) return;
    struct epoll_event event = {.events = wanted & ~WATCHED, .data.u64 = (uint64_t)kind << 32 | number};
    if (epoll_ctl(loop.epoll, *interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0) die("epoll: %s", strerror(errno));
    *interest = wanted;
}

bool try_watch(int fd, enum kind kind, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32};
    return epoll_ctl(loop.epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

void unwatch(int fd) { epoll_ctl(loop.epoll, EPOLL_CTL_DEL, fd, NULL); }

void poll_once(uint64_t until) {
    struct epoll_event events[BUNCH];
    uint64_t now = clock_us();
    int timeout = until > now ? (int)((until - now + 999) / 1000) : 0;
    int count = epoll_wait(loop.epoll, events, BUNCH, timeout);
    if (count < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
    load.now = clock_us();
    for (int n = 0; n < count; n++) loop.handlers[events[n].data.u64 >> 32]((uint32_t)events[n].data.u64, events[n].events);
}
