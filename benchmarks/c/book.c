#include "book.h"

#include <stdlib.h>
#include <string.h>

#include "job.h"

enum { COMPLETE_KEPT = 1024 };

struct chain {
    struct event *oldest, *newest;
    size_t count;
};

static struct {
    uint32_t rooms;
    size_t words; /* in `had` */
    struct event **table; /* open addressing by stamp, linear probing */
    size_t slots, used;
    struct chain under_way, complete;
    struct event *spare; /* by `newer` */
    uint64_t first, last; /* stamps since book_clear */
} book;

static void chain_add(struct chain *chain, struct event *event) {
    event->newer = NULL;
    event->older = chain->newest;
    *(chain->newest ? &chain->newest->newer : &chain->oldest) = event;
    chain->newest = event;
    chain->count++;
}

static void chain_remove(struct chain *chain, struct event *event) {
    *(event->older ? &event->older->newer : &chain->oldest) = event->newer;
    *(event->newer ? &event->newer->older : &chain->newest) = event->older;
    chain->count--;
}

/* Multiplication spreads stamps that are close or evenly spaced. */
static size_t home(uint64_t stamp) { return (size_t)(stamp * 0x9E3779B97F4A7C15u >> 32) & (book.slots - 1); }

static void table_put(struct event *event) {
    size_t slot = home(event->stamp);
    while (book.table[slot]) slot = (slot + 1) & (book.slots - 1);
    book.table[slot] = event;
    book.used++;
}

struct event *book_find(uint64_t stamp) {
    for (size_t slot = home(stamp); book.table[slot]; slot = (slot + 1) & (book.slots - 1))
        if (book.table[slot]->stamp == stamp) return book.table[slot];
    return NULL;
}

/* Moves later entries into the freed place. */
static void table_remove(struct event *event) {
    size_t mask = book.slots - 1, hole = home(event->stamp);
    while (book.table[hole] != event) hole = (hole + 1) & mask;
    for (size_t next = (hole + 1) & mask; book.table[next]; next = (next + 1) & mask) {
        size_t from_home = (next - home(book.table[next]->stamp)) & mask;
        if (from_home >= ((next - hole) & mask)) book.table[hole] = book.table[next], hole = next;
    }
    book.table[hole] = NULL;
    book.used--;
}

static void table_make(size_t slots) {
    struct event **old = book.table;
    size_t old_slots = book.slots;
    book.table = calloc(slots, sizeof *book.table);
    if (book.table == NULL) die("there is no memory for %zu events", slots);
    book.slots = slots;
    book.used = 0;
    for (size_t n = 0; n < old_slots; n++)
        if (old[n]) table_put(old[n]);
    free(old);
}

static void discard(struct event *event) {
    table_remove(event);
    event->newer = book.spare;
    book.spare = event;
}

void book_begin(uint32_t connections, uint32_t rooms) {
    book.rooms = rooms;
    book.words = ((connections + rooms - 1) / rooms + 63) / 64;
    table_make(4 * COMPLETE_KEPT);
}

void book_clear(uint64_t now) {
    for (size_t n = 0; n < book.slots; n++)
        if (book.table[n]) {
            book.table[n]->newer = book.spare;
            book.spare = book.table[n];
        }
    memset(book.table, 0, book.slots * sizeof *book.table);
    book.used = 0;
    book.under_way = book.complete = (struct chain){0};
    book.first = now > book.last ? now : book.last + 1;
    book.last = book.first;
}

struct event *book_open(uint64_t stamp, uint32_t publisher, uint32_t awaited, bool alone) {
    struct event *event = book.spare;
    if (event) book.spare = event->newer;
    else if ((event = malloc(sizeof *event + book.words * sizeof *event->had)) == NULL) die("there is no memory for an event");
    event->stamp = stamp;
    event->room = publisher % book.rooms;
    event->publisher = publisher;
    event->awaited = awaited;
    event->alone = alone;
    event->under_way = true;
    memset(event->had, 0, book.words * sizeof *event->had);
    if (book.used * 4 >= book.slots) table_make(book.slots * 2);
    table_put(event);
    chain_add(&book.under_way, event);
    book.last = stamp;
    return event;
}

static bool is_for(const struct event *event, uint32_t connection) {
    return event->alone ? event->publisher == connection : event->room == connection % book.rooms;
}

enum delivery book_deliver(uint64_t stamp, uint32_t connection, struct event **found) {
    struct event *event = book_find(stamp);
    if (event == NULL) return stamp > book.last ? STRAY : stamp < book.first ? BEFORE : AGAIN;
    if (!is_for(event, connection)) return STRAY;
    uint32_t member = connection / book.rooms;
    uint64_t bit = (uint64_t)1 << (member & 63);
    if (event->had[member >> 6] & bit) return AGAIN;
    event->had[member >> 6] |= bit;
    event->awaited--;
    *found = event;
    return FIRST;
}

void book_complete(struct event *event) {
    if (event->under_way) chain_remove(&book.under_way, event);
    event->under_way = false;
    chain_add(&book.complete, event);
    if (book.complete.count > COMPLETE_KEPT) {
        struct event *oldest = book.complete.oldest;
        chain_remove(&book.complete, oldest);
        discard(oldest);
    }
}

void book_give_up(struct event *event) {
    chain_remove(&book.under_way, event);
    event->under_way = false;
}

struct event *book_oldest(void) { return book.under_way.oldest; }

size_t book_under_way(void) { return book.under_way.count; }

void book_forget(uint32_t connection) {
    uint32_t member = connection / book.rooms;
    uint64_t bit = (uint64_t)1 << (member & 63);
    for (size_t n = 0; n < book.slots; n++) {
        struct event *event = book.table[n];
        if (event == NULL || event->awaited == 0 || !is_for(event, connection) || event->had[member >> 6] & bit) continue;
        event->had[member >> 6] |= bit;
        event->awaited--;
    }
}
