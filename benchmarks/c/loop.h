/* The event loop: one epoll. */
#ifndef LOOP_H
#define LOOP_H

#include <stdbool.h>
#include <stdint.h>

enum kind { CONNECTION, HTTP, GATE, TIMER }; /* of a file in epoll */

/* `number` is the file's among those of its kind, `events` are epoll's. */
typedef void file_handler(uint32_t number, uint32_t events);

void loop_begin(void);

/* Who is called for files of this kind. */
void loop_handle(enum kind kind, file_handler *handler);

/* Waits for `wanted` of this file from here on. `*interest` is what it is waited for by now, 0 at first. */
void watch(int fd, enum kind kind, uint32_t number, uint32_t *interest, uint32_t wanted);

/* The same for a file that need not be one that can be watched: false, with errno, if it is not. */
bool try_watch(int fd, enum kind kind, uint32_t events);
void unwatch(int fd);

/* Waits for something, at most until then, and does what there is to do. */
void poll_once(uint64_t until);

#endif
