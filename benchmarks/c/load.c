/* load: many WebSocket connections to one server, in one thread. JOB.md describes its features and its report. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "connection.h"
#include "http.h"
#include "loop.h"
#include "shared.h"
#include "workload.h"

static struct {
    bool ended;      /* stdin */
    unsigned passed; /* lines read but not used */
    uint32_t interest;
} gate;

/* --- the gate --- */

static void read_gate(void) {
    char bytes[256];
    ssize_t got = read(STDIN_FILENO, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) return;
    if (got <= 0) {
        if (gate.interest) unwatch(STDIN_FILENO);
        gate.ended = true;
        return;
    }
    for (ssize_t n = 0; n < got; n++) gate.passed += bytes[n] == '\n';
}

static void gate_came(uint32_t number, uint32_t events) {
    (void)number, (void)events; /* there is only one; reading reports an error */
    read_gate();
}

static void gate_open(void) {
    loop_handle(GATE, gate_came);
    if (try_watch(STDIN_FILENO, GATE, EPOLLIN)) gate.interest = 1;
    else if (errno != EPERM) gate.ended = true; /* EPERM: a file, always ready. Otherwise it is closed */
}

/* Prints a word, and serves the connections until a line arrives. */
static void gate_wait(const char *word) {
    if (!load.job.gate) return;
    fprintf(stderr, "%s\n", word);
    while (gate.passed == 0 && !gate.ended) {
        if (gate.interest) poll_once(clock_us() + 1000000);
        else read_gate();
    }
    if (gate.passed) gate.passed--;
}

/* --- the phases --- */

static void open_all(void) {
    uint64_t began = clock_us();
    progress("opening %" PRIu64 " connections", load.job.connections);
    connections_open_more();
    connections_flush();
    while (load.joined < load.job.connections) {
        poll_once(clock_us() + 100000);
        connections_check_deadline();
    }
    progress("all have joined in %.3f s", (double)(clock_us() - began) / 1e6);
}

static void poll_for(uint64_t microseconds) {
    for (uint64_t until = clock_us() + microseconds; clock_us() < until;) poll_once(until);
}

static void stop_slow(void) {
    for (uint64_t number = load.job.connections - load.job.slow; number < load.job.connections; number++)
        connection_update(&load.connections[number]);
}

/* Lets slow connections read their pending data. */
static void drain_slow(void) {
    enum { QUIET = 300000, LONGEST = 2000000 }; /* µs */
    uint64_t end = clock_us() + LONGEST, before = (uint64_t)-1;
    if (load.job.slow == 0) return;
    stop_slow(); /* ends them after the phase */
    while (clock_us() < end && before != load.phase.bytes_in) {
        before = load.phase.bytes_in;
        poll_for(QUIET);
    }
}

static double total_cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void report(const struct phase *phase, double connect_seconds) {
    double seconds = (double)(phase->ended - phase->began) / 1e6;
    bool connecting = load.job.workload == CONNECT || load.job.workload == STORM;
    printf("{\"workload\": \"%s\", \"connections\": %" PRIu64 ", \"published\": %" PRIu64 ", \"expected\": %" PRIu64,
           load.job.workload_name, load.job.connections, phase->published, phase->expected);
    printf(", \"deliveries\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"strayed\": %" PRIu64, phase->deliveries,
           phase->expected - phase->deliveries, phase->duplicated, phase->strayed);
    printf(", \"seconds\": %.6f, \"deliveries_per_second\": %.1f, \"latency_us\": ", seconds,
           seconds > 0 ? (double)phase->deliveries / seconds : 0);
    histogram_print(connecting ? &load.connecting : &load.latency, stdout);
    printf(", \"connect_seconds\": %.6f, \"connect_us\": ", connecting ? seconds : connect_seconds);
    histogram_print(&load.connecting, stdout);
    printf(", \"frames_in\": %" PRIu64 ", \"compressed_in\": %" PRIu64 ", \"bytes_in\": %" PRIu64 ", \"bytes_out\": %" PRIu64
           ", \"pings\": %" PRIu64,
           phase->frames_in, phase->compressed_in, phase->bytes_in, phase->bytes_out, phase->pings);
    printf(", \"cpu_seconds\": %.6f, \"cpu_seconds_total\": %.6f", phase->cpu, total_cpu());
    printf(", \"errors\": {\"closed\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"timeouts\": %" PRIu64 "}", phase->closed, phase->refused,
           phase->timeouts);
    printf(", \"slow\": {\"connections\": %" PRIu64 ", \"deliveries\": %" PRIu64 ", \"closed\": %u}}\n", load.job.slow, load.slow_deliveries,
           load.slow_closed);
}

static void allow_files(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (load.job.connections + 64 > files.rlim_cur)
        die("%" PRIu64 " connections are too many: this process may have %llu files open", load.job.connections,
            (unsigned long long)files.rlim_cur);
}

static void check_arrived(const struct phase *phase) {
    if (phase->expected == 0 || phase->deliveries) return;
    const char *refusal = http_first_refusal();
    die("of %" PRIu64 " events that were published none has arrived%s%s", phase->published,
        *refusal ? "; the first publication was answered with " : "", refusal);
}

int main(int count, char **words) {
    const char *path = count == 2 ? words[1] : count == 3 ? words[2] : NULL;
    load.progress = count == 3 && strcmp(words[1], "--progress") == 0;
    if (path == NULL || (count == 3 && !load.progress)) {
        fprintf(stderr, "usage: %s [--progress] JOB\n", words[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stderr, NULL, _IOLBF, 0);
    job_read(&load.job, path);
    allow_files();
    loop_begin();
    if (load.job.gate) gate_open();
    workload_begin();

    uint64_t began = clock_us();
    if (load.job.workload != CONNECT) open_all();
    double connect_seconds = (double)(clock_us() - began) / 1e6;
    stop_slow();
    if (load.job.warmup > 0 && load.job.workload <= ECHO) {
        progress("warming up");
        workload_phase(load.job.warmup);
        check_arrived(&load.phase);
    }
    gate_wait("ready");
    progress("measuring");
    load.measuring = true;
    workload_phase(load.job.seconds);
    struct phase phase = load.phase;
    load.over = true;
    progress("measured");
    gate_wait("done");
    drain_slow();
    check_arrived(&phase);
    report(&phase, connect_seconds);
    return 0;
}
