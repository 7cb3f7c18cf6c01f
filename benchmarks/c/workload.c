#define _GNU_SOURCE
#include "workload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "book.h"
#include "connection.h"
#include "http.h"
#include "loop.h"

enum { STAMP_DIGITS = 16 };
static const uint64_t LOOK = 20000; /* polling interval for lost events, µs */

static struct {
    bool publishing;
    uint64_t until;       /* µs; no publishing after it */
    uint64_t last_stamp;
    uint64_t ids, first_id;
    uint64_t busy;        /* connections with an event in flight */
    uint64_t able;        /* publishing connections that are still open */
    uint64_t scheduled;   /* events of `rate` so far */
    int timer;
    struct buffer text;
} work;

/* --- publishing --- */

static uint64_t stamp_from(uint64_t time) {
    work.last_stamp = time > work.last_stamp ? time : work.last_stamp + 1;
    return work.last_stamp;
}

static void publish(const struct connection *connection, uint64_t stamp) {
    struct filling filling = {
        .number = connection->number, .room = connection->room, .stamp = stamp, .whole = load.job.payload, .padding = load.job.padding,
        /* within 32 bits, and above those of earlier runs: increases every 10 µs */
        .id = 1000000000 + (work.first_id + work.ids++) % 3000000000,
    };
    bool alone = load.job.workload == ECHO;
    uint32_t awaited = alone ? 1 : load.members[connection->room];
    book_open(stamp, connection->number, awaited, alone);
    load.phase.published++;
    load.phase.expected += awaited;
    work.text.size = 0;
    template_fill(&load.job.message, &load.job, &filling, &work.text);
    if (load.job.http_publish.count) http_submit(&filling, work.text.at, work.text.size);
    else connection_send_text(&load.connections[connection->number], work.text.at, work.text.size);
}

static bool may_publish(void) {
    if (work.publishing && load.job.turns == 0 && load.now >= work.until) work.publishing = false;
    return work.publishing;
}

static void fan_out(void) {
    while (book_under_way() < load.job.outstanding && may_publish()) publish(&load.connections[0], stamp_from(clock_us()));
}

static void next_turn(struct connection *connection) {
    if (connection->state != JOINED || !may_publish() || (load.job.turns && connection->turns_left == 0)) return;
    connection->turns_left--;
    connection->own_came = connection->acknowledged = false;
    connection->stamp = stamp_from(clock_us());
    work.busy++;
    publish(connection, connection->stamp);
}

static void turn_over(struct connection *connection) {
    connection->stamp = 0;
    work.busy--;
    next_turn(connection);
}

/* Returns the time of event n of `rate`. */
static uint64_t due(uint64_t n) { return load.phase.began + (uint64_t)((double)n * 1e6 / load.job.rate); }

/* Sets the timer to the next event, or off. Absolute times, because a rounded interval would drift. */
static void set_timer(bool on) {
    enum { LEAST = 50 }; /* µs between two expirations; at higher rates several events are then due at once */
    struct itimerspec set = {0};
    if (on) {
        uint64_t time = due(work.scheduled);
        if (load.job.rate * LEAST > 1e6 && time < load.now + LEAST) time = load.now + LEAST;
        time -= EPOCH;
        set.it_value = (struct timespec){(time_t)(time / 1000000), (long)(time % 1000000 * 1000)};
    }
    timerfd_settime(work.timer, TFD_TIMER_ABSTIME, &set, NULL);
}

static void timer(uint32_t number, uint32_t events) {
    (void)number, (void)events; /* there is only one timer, and it has expired */
    uint64_t expirations;
    if (read(work.timer, &expirations, sizeof expirations) < 0) return; /* a stale event of a timer that was set again */
    for (uint64_t intended; (intended = due(work.scheduled)) <= load.now && intended < work.until;) {
        const struct connection *connection = &load.connections[work.scheduled++ % load.job.active];
        if (connection->state == JOINED) publish(connection, stamp_from(intended));
        load.now = clock_us();
    }
    connections_flush();
    set_timer(due(work.scheduled) < work.until);
}

/* --- deliveries --- */

static void echo_done(struct connection *connection) {
    histogram_add(&load.latency, load.now - connection->stamp);
    struct event *event = book_find(connection->stamp);
    if (event) book_complete(event);
    turn_over(connection);
}

static void echo_came(struct connection *connection, struct event *event) {
    if (connection->stamp != event->stamp) { /* it counted as lost */
        histogram_add(&load.latency, load.now - event->stamp);
        book_complete(event);
        return;
    }
    connection->own_came = true;
    if (connection->acknowledged || load.job.echo_expect_size == 0) echo_done(connection);
}

static void first_delivery(struct connection *connection, struct event *event) {
    load.phase.deliveries++;
    load.phase.ended = load.now;
    if (load.job.workload == ECHO) {
        echo_came(connection, event);
        return;
    }
    uint64_t stamp = event->stamp;
    histogram_add(&load.latency, load.now > stamp ? load.now - stamp : 0);
    if (event->awaited == 0) {
        book_complete(event);
        if (load.job.workload == FANOUT) fan_out();
    }
    if (load.job.workload == ROOMS && connection->stamp == stamp) turn_over(connection);
}

static void delivered(struct connection *connection, uint64_t stamp) {
    struct event *event = NULL;
    if (connection->slow) {
        load.slow_deliveries++;
        return;
    }
    switch (book_deliver(stamp, connection->number, &event)) {
    case FIRST: first_delivery(connection, event); break;
    case AGAIN: load.phase.duplicated++; break;
    case STRAY: load.phase.strayed++; break;
    case BEFORE: break;
    }
}

/* Parses a stamp; returns false if it is not digits. */
static bool stamp_at(const char *at, uint64_t *stamp) {
    uint64_t value = 0;
    for (int n = 0; n < STAMP_DIGITS; n++) {
        unsigned digit = (unsigned)(unsigned char)at[n] - '0';
        if (digit > 9) return false;
        value = value * 10 + digit;
    }
    *stamp = value;
    return true;
}

static void take_text(struct connection *connection, const char *text, size_t size) {
    const char *at = text, *end = text + size;
    uint64_t stamp;
    if (load.job.echo_expect_size && connection->stamp && !connection->acknowledged &&
        memmem(text, size, load.job.echo_expect, load.job.echo_expect_size)) {
        connection->acknowledged = true;
        if (connection->own_came) echo_done(connection);
    }
    if (load.job.marker_size == 0) return;
    while (connection->state == JOINED && (at = memmem(at, (size_t)(end - at), load.job.marker, load.job.marker_size)) != NULL) {
        at += load.job.marker_size;
        if (end - at < STAMP_DIGITS) break;
        if (stamp_at(at, &stamp)) delivered(connection, stamp), at += STAMP_DIGITS;
    }
}

/* --- errors --- */

static void give_up_old(void) {
    uint64_t limit = (uint64_t)(load.job.patience * 1e6);
    for (struct event *event = book_oldest(), *newer; event && load.now > event->stamp + limit; event = newer) {
        newer = event->newer;
        load.phase.timeouts++;
        book_give_up(event);
        struct connection *publisher = &load.connections[event->publisher];
        if (publisher->stamp == event->stamp) turn_over(publisher);
    }
    if (load.job.workload == FANOUT) fan_out();
    connections_flush();
}

static void take_end(struct connection *connection) {
    load.members[connection->room]--;
    load.alive--;
    if (load.alive == 0) die("the server has ended all connections");
    if (connection->number < load.job.active && --work.able == 0 && load.job.workload <= ECHO && load.job.http_publish.count == 0)
        die("the server has ended all connections that publish");
    if (load.job.workload == FANOUT && load.members[0] == 0) die("the server has ended all connections of the room");
    book_forget(connection->number);
    for (struct event *event = book_oldest(), *newer; event; event = newer) {
        newer = event->newer;
        if (event->awaited == 0 && (!event->alone || event->publisher == connection->number)) book_complete(event);
    }
    if (connection->stamp) {
        connection->stamp = 0;
        work.busy--;
    }
    if (load.job.workload == FANOUT) fan_out();
}

/* --- phases --- */

void workload_begin(void) {
    struct timespec now;
    connections_begin(take_text, take_end);
    if (load.job.http_publish.count) http_begin();
    clock_gettime(CLOCK_REALTIME, &now);
    work.first_id = ((uint64_t)now.tv_sec * 100000 + (uint64_t)now.tv_nsec / 10000) % 3000000000;
    work.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    uint32_t interest = 0;
    loop_handle(TIMER, timer);
    watch(work.timer, TIMER, 0, &interest, 1);
    load.members = calloc(load.job.rooms, sizeof *load.members);
    if (load.members == NULL) die("there is no memory for the rooms");
    book_begin((uint32_t)load.job.connections, (uint32_t)load.job.rooms);
}

static void count_members(void) {
    memset(load.members, 0, load.job.rooms * sizeof *load.members);
    load.alive = 0;
    work.able = load.job.active;
    for (uint32_t number = 0; number < load.job.connections; number++) {
        struct connection *connection = &load.connections[number];
        if (connection->state != JOINED || connection->slow) continue;
        load.members[connection->room]++;
        load.alive++;
    }
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void start(void) {
    switch (load.job.workload) {
    case FANOUT: fan_out(); break;
    case RATE: set_timer(true); break;
    case ROOMS:
    case ECHO:
        for (uint32_t number = 0; number < load.job.active; number++) {
            load.connections[number].turns_left = load.job.turns;
            next_turn(&load.connections[number]);
        }
        break;
    case STORM:
        for (uint32_t number = 0; number < load.job.connections; number++) connection_cut(&load.connections[number]);
        load.job.concurrency = load.job.connections;
        memset(&load.connecting, 0, sizeof load.connecting);
        load.next_to_open = 0;
        connections_open_more();
        break;
    case CONNECT: connections_open_more(); break;
    case IDLE: break;
    }
    connections_flush();
}

static bool is_over(void) {
    if (load.job.workload == CONNECT || load.job.workload == STORM) return load.joined + load.phase.closed == load.job.connections;
    if (load.job.workload == IDLE || load.job.workload == RATE) {
        bool due_yet = load.job.workload == RATE && due(work.scheduled) < work.until; /* even if it is late by now */
        if (load.now >= work.until && !due_yet) work.publishing = false;
    } else if (load.job.turns && work.busy == 0) {
        work.publishing = false;
    } else {
        may_publish();
    }
    return !work.publishing && work.busy == 0 && book_under_way() == 0;
}

void workload_phase(double seconds) {
    memset(&load.phase, 0, sizeof load.phase);
    memset(&load.latency, 0, sizeof load.latency);
    load.now = clock_us();
    book_clear(load.now);
    count_members();
    work.busy = work.scheduled = 0;
    work.publishing = load.job.workload != CONNECT && load.job.workload != STORM; /* those end only with their last connection */
    load.phase.began = load.phase.ended = load.now;
    work.until = load.now + (uint64_t)(seconds * 1e6);
    load.phase.cpu = cpu_seconds();
    start();
    for (uint64_t next_look = load.now + LOOK; !is_over();) {
        bool ends_before = work.publishing && load.job.turns == 0 && work.until > load.now && work.until < next_look;
        uint64_t until = ends_before ? work.until : next_look;
        poll_once(until);
        if (load.now < next_look) continue;
        next_look = load.now + LOOK;
        give_up_old();
        connections_check_deadline();
    }
    set_timer(false);
    if (load.job.workload > ECHO) load.phase.ended = clock_us();
    load.phase.cpu = cpu_seconds() - load.phase.cpu;
}
