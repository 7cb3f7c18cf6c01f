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
    uint32_t awaited; /* connections that it has not reached */
    bool alone;       /* it is for its publisher only */
    bool under_way;   /* neither complete nor given up */
    struct event *older, *newer; /* among those under way, or those complete */
    uint64_t had[];   /* a bit for each member of the room */
};

enum delivery { FIRST, AGAIN, STRAY, BEFORE };

/* Begins empty; connection u is member u / rooms of room u % rooms. */
void book_begin(uint32_t connections, uint32_t rooms);

/* Forgets all events; deliveries of those, and of whatever has a stamp below `now`, are BEFORE from here on. */
void book_clear(uint64_t now);

/* A new event. Stamps must grow. */
struct event *book_open(uint64_t stamp, uint32_t publisher, uint32_t awaited, bool alone);

/* Enters a delivery. FIRST: `*event` is it, and one less awaits it. */
enum delivery book_deliver(uint64_t stamp, uint32_t connection, struct event **event);

/* The event with this stamp, or NULL. */
struct event *book_find(uint64_t stamp);

/* It has reached everybody, or is awaited no more. */
void book_complete(struct event *event);

/* It is no more under way, but may still arrive. */
void book_give_up(struct event *event);

/* The oldest that is under way; the others by `newer`. */
struct event *book_oldest(void);
size_t book_under_way(void);

/* This connection will get nothing more: what it has not had does not await it. Completes nothing: see who is left with 0. */
void book_forget(uint32_t connection);

#endif
