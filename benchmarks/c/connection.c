#define _GNU_SOURCE
#include "connection.h"

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

#include "accept.h"
#include "frame.h"
#include "inflate.h"
#include "loop.h"

enum { READ_SPACE = 256 << 10, HEAD_OF_UPGRADE_LIMIT = 64 << 10 };

static struct {
    struct buffer input; /* bytes of the connection that is being read */
    struct buffer text;  /* of templates */
    char key[KEY_SIZE + 1], accept[ACCEPT_SIZE + 1];
    struct sockaddr_in server;
    bool loopback;
    uint32_t *dirty; /* connections with something new to send */
    size_t dirty_count, dirty_space;
    uint32_t mask;
    text_taker *on_text;
    end_taker *on_end;
} shared;

/* --- ends --- */

static void discard(struct connection *connection) {
    if (connection->state != CLOSED && connection->state != JOINED) load.opening--;
    close(connection->fd);
    free(connection->held.at);
    free(connection->out.at);
    free(connection->message.at);
    inflate_end(connection);
    *connection = (struct connection){
        .fd = -1, .number = connection->number, .room = connection->room, .slow = connection->slow, .dirty = connection->dirty,
        .stamp = connection->stamp,
    };
}

void connection_cut(struct connection *connection) {
    if (connection->state == JOINED) load.joined--;
    if (connection->state != CLOSED) discard(connection);
}

/* The server ended the connection or broke a rule. */
static void ended(struct connection *connection, const char *why) {
    static const char *const doing[] = {"after its end", "while connecting", "while upgrading", "before it had joined", "once joined"};
    if (connection->state == CLOSED) return;
    bool joined = connection->state == JOINED;
    if (!load.over && (!joined || (!load.measuring && !connection->slow)))
        die("connection %u ended %s: %s", connection->number, doing[connection->state], why);
    connection_cut(connection);
    if (connection->slow) load.slow_closed++;
    else if (!load.over) {
        load.phase.closed++;
        progress("connection %u ended: %s", connection->number, why);
        shared.on_end(connection);
    }
}

_Noreturn static void refuse(const struct connection *connection, const char *why) {
    die("connection %u: %s", connection->number, why);
}

/* --- sending --- */

static void set_interest(struct connection *connection) {
    uint32_t wanted = connection->state == CONNECTING || connection->sent < connection->out.size ? EPOLLOUT : 0;
    if (connection->state != CONNECTING && !(connection->slow && connection->state == JOINED && !load.over)) wanted |= EPOLLIN;
    watch(connection->fd, CONNECTION, connection->number, &connection->interest, wanted);
}

void connection_update(struct connection *connection) {
    if (connection->state != CLOSED) set_interest(connection);
}

static void flush(struct connection *connection) {
    if (connection->state == CLOSED || connection->state == CONNECTING) return;
    while (connection->sent < connection->out.size) {
        size_t left = connection->out.size - connection->sent;
        ssize_t sent = send(connection->fd, connection->out.at + connection->sent, left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            ended(connection, strerror(errno));
            return;
        }
        connection->sent += (size_t)sent;
        load.phase.bytes_out += (uint64_t)sent;
    }
    if (connection->sent == connection->out.size) connection->sent = connection->out.size = 0;
    set_interest(connection);
}

static void mark_dirty(struct connection *connection) {
    if (connection->dirty) return;
    connection->dirty = true;
    if (shared.dirty_count == shared.dirty_space) {
        shared.dirty_space = shared.dirty_space ? 2 * shared.dirty_space : 64;
        shared.dirty = realloc(shared.dirty, shared.dirty_space * sizeof *shared.dirty);
        if (shared.dirty == NULL) die("there is no memory for the connections");
    }
    shared.dirty[shared.dirty_count++] = connection->number;
}

void connections_flush(void) {
    for (size_t n = 0; n < shared.dirty_count; n++) { /* an ending connection may make others publish, which are appended */
        struct connection *connection = &load.connections[shared.dirty[n]];
        connection->dirty = false;
        flush(connection);
    }
    shared.dirty_count = 0;
}

/* Clients mask with fresh keys, RFC 6455 section 5.3; these are not secret. */
static void send_frame(struct connection *connection, uint8_t opcode, const char *payload, size_t size) {
    uint8_t mask[4];
    shared.mask ^= shared.mask << 13, shared.mask ^= shared.mask >> 17, shared.mask ^= shared.mask << 5;
    memcpy(mask, &shared.mask, 4);
    uint8_t *at = (uint8_t *)buffer_grow(&connection->out, HEAD_LIMIT + size);
    size_t head = frame_write(at, opcode, size, mask);
    memcpy(at + head, payload, size);
    frame_mask(at + head, size, mask);
    connection->out.size += head + size;
    mark_dirty(connection);
}

void connection_send_text(struct connection *connection, const char *text, size_t size) { send_frame(connection, TEXT, text, size); }

static struct filling filling_of(const struct connection *connection) {
    return (struct filling){.number = connection->number, .room = connection->room};
}

/* Returns the rendered template, valid until the next call. */
static const struct buffer *filled(const struct template *template, const struct connection *connection) {
    struct filling filling = filling_of(connection);
    shared.text.size = 0;
    template_fill(template, &load.job, &filling, &shared.text);
    return &shared.text;
}

/* --- opening --- */

static void connection_open(struct connection *connection) {
    int one = 1, space = (int)load.job.slow_buffer;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) die("connection %u: no socket: %s", connection->number, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connection->slow) setsockopt(connection->fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof space); /* before the SYN, which fixes the window */
    if (shared.loopback && load.job.sources > 1) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(0x7F000001 + connection->number % (uint32_t)load.job.sources);
        /* the kernel chooses the port on connect, so one port can serve several servers */
        setsockopt(connection->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(connection->fd, (struct sockaddr *)&source, sizeof source) < 0)
            die("connection %u: it cannot come from %s: %s", connection->number, inet_ntoa(source.sin_addr), strerror(errno));
    }
    connection->began = load.now = clock_us();
    connection->state = CONNECTING;
    load.opening++;
    if (connect(connection->fd, (struct sockaddr *)&shared.server, sizeof shared.server) < 0 && errno != EINPROGRESS)
        die("connection %u: %s:%u: %s", connection->number, load.job.host, (unsigned)load.job.port, strerror(errno));
    set_interest(connection);
}

void connections_open_more(void) {
    while (load.opening < load.job.concurrency && load.next_to_open < load.job.connections)
        connection_open(&load.connections[load.next_to_open++]);
}

void connections_check_deadline(void) {
    uint64_t limit = (uint64_t)(load.job.timeout * 1e6);
    if (load.opening == 0) return;
    for (uint32_t number = 0; number < load.next_to_open; number++) {
        struct connection *connection = &load.connections[number];
        if (connection->state != CLOSED && connection->state != JOINED && load.now > connection->began + limit) {
            static const char *const lacking[] = {"", "is not connected", "has no answer to its upgrade", "has not joined", ""};
            char step[80] = "";
            if (connection->state == OPENING && connection->step < load.job.steps.count)
                snprintf(step, sizeof step, ", at the %zu. of its open and open_expect lines", connection->step + 1);
            die("connection %u %s after %g s%s", number, lacking[connection->state], load.job.timeout, step);
        }
    }
}

static void send_upgrade(struct connection *connection) {
    static const char *const offers[] = {
        "", "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n",
        "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n"};
    struct filling filling = filling_of(connection);
    struct buffer *out = &connection->out;
    char fixed[320];
    buffer_add(out, "GET ", 4);
    template_fill(&load.job.path, &load.job, &filling, out);
    int size = snprintf(fixed, sizeof fixed,
                        " HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                        "Sec-WebSocket-Key: %s\r\n%s",
                        load.job.host, (unsigned)load.job.port, shared.key, offers[load.job.deflate]);
    buffer_add(out, fixed, (size_t)size);
    if (load.job.subprotocol.count) {
        buffer_add(out, "Sec-WebSocket-Protocol: ", 24);
        template_fill(&load.job.subprotocol, &load.job, &filling, out);
        buffer_add(out, "\r\n", 2);
    }
    for (size_t n = 0; n < load.job.headers.count; n++) {
        template_fill(&load.job.headers.at[n], &load.job, &filling, out);
        buffer_add(out, "\r\n", 2);
    }
    buffer_add(out, "\r\n", 2);
}

static void connected(struct connection *connection) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) die("connection %u: %s:%u: %s", connection->number, load.job.host, (unsigned)load.job.port, strerror(error));
    connection->state = UPGRADING;
    send_upgrade(connection);
    flush(connection);
}

/* Returns the value of a response header, up to the end of its line; NULL if there is none. `head` ends with NUL. */
static const char *header_of(const char *head, const char *name, size_t *size) {
    char line[64];
    snprintf(line, sizeof line, "\r\n%s:", name);
    const char *value = strcasestr(head, line);
    if (value == NULL) return NULL;
    value += strlen(line);
    value += strspn(value, " \t");
    *size = strcspn(value, "\r\n");
    while (*size && (value[*size - 1] == ' ' || value[*size - 1] == '\t')) --*size;
    return value;
}

static void check_deflate(struct connection *connection, const char *head) {
    size_t size;
    const char *found = header_of(head, "Sec-WebSocket-Extensions", &size);
    if (load.job.deflate == PLAIN) {
        if (found) refuse(connection, "the server chose an extension that was not offered");
        return;
    }
    if (found == NULL || memmem(found, size, "permessage-deflate", 18) == NULL)
        refuse(connection, "the server did not accept permessage-deflate");
    connection->takeover = memmem(found, size, "server_no_context_takeover", 26) == NULL;
}

static void joined_if_so(struct connection *connection) {
    if (connection->step < load.job.steps.count || !connection->joined_seen) return;
    connection->state = JOINED;
    load.opening--;
    load.joined++;
    histogram_add(&load.connecting, load.now - connection->began);
    connections_open_more();
}

/* Sends all `open` lines up to the next `open_expect`. */
static void send_steps(struct connection *connection) {
    for (; connection->step < load.job.steps.count && !load.job.steps.at[connection->step].awaited; connection->step++) {
        const struct buffer *text = filled(&load.job.steps.at[connection->step].text, connection);
        connection_send_text(connection, text->at, text->size);
    }
}

/* Handles a message of a connection that has not joined. */
static void opening_text(struct connection *connection, const char *text, size_t size) {
    const char *at = text, *end = text + size;
    if (!connection->joined_seen) {
        const struct buffer *wanted = filled(&load.job.joined_expect, connection);
        connection->joined_seen = memmem(text, size, wanted->at, wanted->size) != NULL;
    }
    while (connection->step < load.job.steps.count) {
        const struct buffer *wanted = filled(&load.job.steps.at[connection->step].text, connection);
        const char *found = memmem(at, (size_t)(end - at), wanted->at, wanted->size);
        if (found == NULL) break;
        at = found + wanted->size;
        connection->step++;
        send_steps(connection);
    }
    joined_if_so(connection);
}

/* Parses the response to the upgrade; returns its length, or 0 if it is incomplete. `bytes` ends with NUL. */
static size_t take_upgrade(struct connection *connection, const char *bytes, size_t size) {
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (end == NULL) {
        if (size > HEAD_OF_UPGRADE_LIMIT) refuse(connection, "the answer to the upgrade has no end");
        return 0;
    }
    size_t head_size = (size_t)(end - bytes) + 2, found_size;
    char *head = strndup(bytes, head_size);
    if (head == NULL) die("there is no memory for an answer");
    if (strncmp(head, "HTTP/1.1 101", 12) != 0)
        die("connection %u: the upgrade was answered with %.*s", connection->number, (int)strcspn(head, "\r\n"), head);
    const char *accept = header_of(head, "Sec-WebSocket-Accept", &found_size);
    if (accept == NULL || found_size != ACCEPT_SIZE || memcmp(accept, shared.accept, ACCEPT_SIZE) != 0)
        refuse(connection, "the Sec-WebSocket-Accept of the answer is wrong");
    if (load.job.subprotocol.count) {
        const struct buffer *wanted = filled(&load.job.subprotocol, connection);
        const char *protocol = header_of(head, "Sec-WebSocket-Protocol", &found_size);
        if (protocol == NULL || found_size != wanted->size || memcmp(protocol, wanted->at, found_size) != 0)
            refuse(connection, "the server did not choose the subprotocol");
    }
    check_deflate(connection, head);
    free(head);
    connection->state = OPENING;
    connection->joined_seen = load.job.joined_expect.count == 0;
    send_steps(connection);
    joined_if_so(connection);
    return head_size + 2;
}

/* --- frames --- */

static void take_message(struct connection *connection, const char *text, size_t size, bool compressed) {
    load.phase.frames_in++;
    if (compressed) {
        if (load.job.deflate == PLAIN) refuse(connection, "a frame is compressed, and no extension was chosen");
        load.phase.compressed_in++;
        const struct buffer *whole = inflated(connection, text, size);
        text = whole->at;
        size = whole->size;
    }
    for (const struct answer *answer = load.job.answers.at; answer < load.job.answers.at + load.job.answers.count; answer++)
        if (size >= answer->question_size && memcmp(text, answer->question, answer->question_size) == 0)
            connection_send_text(connection, answer->text, answer->text_size);
    if (connection->state == JOINED) shared.on_text(connection, text, size);
    else opening_text(connection, text, size);
}

static void take_close(struct connection *connection, const uint8_t *payload, size_t size) {
    char why[160] = "closed without a code";
    if (size >= 2) {
        int shown = size - 2 < 100 ? (int)size - 2 : 100;
        snprintf(why, sizeof why, "closed with %u %.*s", payload[0] << 8 | payload[1], shown, (const char *)payload + 2);
    }
    send_frame(connection, CLOSE, (const char *)payload, size >= 2 ? 2 : 0);
    flush(connection);
    ended(connection, why);
}

static void take_frame(struct connection *connection, const struct head *head, const uint8_t *payload) {
    size_t size = (size_t)head->size;
    const char *text = (const char *)payload;
    if (head->masked) refuse(connection, "the server masks its frames");
    switch (head->opcode) {
    case PING:
        load.phase.pings++;
        send_frame(connection, PONG, text, size);
        break;
    case PONG: break;
    case CLOSE: take_close(connection, payload, size); break;
    case TEXT:
    case BINARY:
        if (connection->fragmented) refuse(connection, "a message begins within another");
        if (head->fin) {
            take_message(connection, text, size, head->compressed);
            break;
        }
        connection->fragmented = true;
        connection->message_compressed = head->compressed;
        buffer_add(&connection->message, text, size);
        break;
    case CONTINUATION:
        if (!connection->fragmented) refuse(connection, "a continuation of nothing");
        if (connection->message.size + size > MESSAGE_LIMIT) refuse(connection, "a message has no end");
        buffer_add(&connection->message, text, size);
        if (!head->fin) break;
        connection->fragmented = false;
        take_message(connection, connection->message.at, connection->message.size, connection->message_compressed);
        connection->message.size = 0;
        break;
    default: die("connection %u: a frame of the unknown kind %u", connection->number, head->opcode);
    }
}

/* Handles complete frames; returns their length. */
static size_t take_frames(struct connection *connection, const char *bytes, size_t size) {
    size_t at = 0, head_size;
    struct head head;
    while (connection->state != CLOSED && (head_size = frame_read((const uint8_t *)bytes + at, size - at, &head)) != 0) {
        if (head.size > MESSAGE_LIMIT) die("connection %u: a frame of %llu bytes", connection->number, (unsigned long long)head.size);
        if (size - at - head_size < head.size) break;
        take_frame(connection, &head, (const uint8_t *)bytes + at + head_size);
        at += head_size + (size_t)head.size;
    }
    return at;
}

/* Reads once. What is left of a frame that has not come whole is held, and stands before the next bytes: every message is looked
   through in one piece, wherever TCP has cut it. */
static void take_bytes(struct connection *connection) {
    struct buffer *input = &shared.input, *held = &connection->held;
    input->size = 0;
    buffer_grow(input, READ_SPACE + 2 * held->size + 1); /* twice: a long frame is not read in small steps; one for NUL */
    if (held->size) memcpy(input->at, held->at, held->size);
    ssize_t got = recv(connection->fd, input->at + held->size, input->space - held->size - 1, MSG_DONTWAIT);
    load.now = clock_us();
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        ended(connection, got == 0 ? "the server closed the connection" : strerror(errno));
        return;
    }
    load.phase.bytes_in += (uint64_t)got;
    size_t size = held->size + (size_t)got, used = 0;
    held->size = 0;
    input->at[size] = 0;
    if (connection->state == UPGRADING) used = take_upgrade(connection, input->at, size);
    if (connection->state != UPGRADING) used += take_frames(connection, input->at + used, size - used);
    if (connection->state != CLOSED) buffer_add(held, input->at + used, size - used);
}

static void handle(uint32_t number, uint32_t events) {
    struct connection *connection = &load.connections[number];
    if (connection->state == CLOSED) return; /* by an earlier event of the same batch */
    if (connection->state == CONNECTING) {
        connected(connection);
    } else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        take_bytes(connection); /* reading also reports an error, after the data before it */
    }
    if (events & EPOLLOUT) flush(connection);
    connections_flush();
}

void connections_begin(text_taker *on_text, end_taker *on_end) {
    shared.on_text = on_text;
    shared.on_end = on_end;
    loop_handle(CONNECTION, handle);
    shared.server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)load.job.port)};
    if (inet_pton(AF_INET, load.job.host, &shared.server.sin_addr) != 1) die("host: %s is no IPv4 address", load.job.host);
    shared.loopback = (ntohl(shared.server.sin_addr.s_addr) >> 24) == 127;
    load.connections = calloc(load.job.connections, sizeof *load.connections);
    if (load.connections == NULL) die("there is no memory for the connections");
    accept_new_key(shared.key);
    accept_of_key(shared.key, KEY_SIZE, shared.accept);
    shared.mask = 0x9E3779B9;
    for (uint32_t number = 0; number < load.job.connections; number++) {
        struct connection *connection = &load.connections[number];
        connection->fd = -1;
        connection->number = number;
        connection->room = number % (uint32_t)load.job.rooms;
        connection->slow = number >= load.job.connections - load.job.slow;
    }
}
