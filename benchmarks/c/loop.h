/* The event loop: one epoll. */
#ifndef LOOP_H
#define LOOP_H

#include <stdbool.h>
#include <stdint.h>

enum kind { CONNECTION, HTTP, GATE, TIMER }; /* of a file in epoll */

/* `number` is the file's among those of its kind, `events` are epoll's. */
typedef void file_handler(uint32_t number, uint32_t events);

void loop_begin(void);

/* Sets the callback for files of this kind. */
void loop_handle(enum kind kind, file_handler *handler);

/* Watches a file for `wanted`. `*interest` has the currently watched events, 0 at first. */
void watch(int fd, enum kind kind, uint32_t number, uint32_t *interest, uint32_t wanted);

/* The same for a file that may not be watchable; then returns false and sets errno. */
bool try_watch(int fd, enum kind kind, uint32_t events);
void unwatch(int fd);

/* Waits for events until then at the latest, and calls their callbacks. */
void poll_once(uint64_t until);

#endif
