/* The books: which events are under way, and which connection has had which.

An event's name is its timestamp. It is told exactly for every connection whether a delivery is the first one, a second one,
or none that it should have got; events that have reached everybody are kept a while for that. */
#ifndef BOOK_H
#define BOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event {
    uint64_t stamp; /* µs of CLOCK_MONOTONIC + 10^15 */
    uint32_t room, publisher;
    uint32_t awaited; /* connections that have not received it */
    bool alone;       /* only its publisher receives it */
    bool under_way;   /* neither complete nor lost */
    struct event *older, *newer; /* in the list of events in flight, or of complete ones */
    uint64_t had[];   /* a bit for each member of the room */
};

enum delivery { FIRST, AGAIN, STRAY, BEFORE };

/* Creates empty books. Connection u is member u / rooms of room u % rooms. */
void book_begin(uint32_t connections, uint32_t rooms);

/* Removes all events. Later deliveries of them, and of stamps below `now`, return BEFORE. */
void book_clear(uint64_t now);

/* Adds an event. Stamps must increase. */
struct event *book_open(uint64_t stamp, uint32_t publisher, uint32_t awaited, bool alone);

/* Records a delivery. FIRST: `*event` is the event, and one connection less awaits it. */
enum delivery book_deliver(uint64_t stamp, uint32_t connection, struct event **event);

/* Returns the event with this stamp, or NULL. */
struct event *book_find(uint64_t stamp);

/* Marks an event as complete. */
void book_complete(struct event *event);

/* Marks an event as lost; it may still arrive. */
void book_give_up(struct event *event);

/* Returns the oldest event in flight; `newer` leads to the others. */
struct event *book_oldest(void);
size_t book_under_way(void);

/* Removes a connection from all events that it has not received. The caller completes events with 0 awaited. */
void book_forget(uint32_t connection);

#endif
