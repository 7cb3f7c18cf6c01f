#include "job.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIME_DIGITS = 16, ID_DIGITS = 10, NUMBER_LIMIT = 20 };

_Noreturn void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

char *buffer_grow(struct buffer *buffer, size_t more) {
    if (buffer->space - buffer->size < more) {
        size_t space = buffer->space ? buffer->space : 256;
        while (space - buffer->size < more) space *= 2;
        buffer->at = realloc(buffer->at, space);
        if (buffer->at == NULL) die("there is no memory for %zu bytes", space);
        buffer->space = space;
    }
    return buffer->at + buffer->size;
}

void buffer_add(struct buffer *buffer, const void *bytes, size_t size) {
    if (size == 0) return;
    memcpy(buffer_grow(buffer, size), bytes, size);
    buffer->size += size;
}

/* --- templates --- */

static size_t digits(char *out, uint64_t number, size_t width) {
    char reversed[NUMBER_LIMIT];
    size_t size = 0;
    do reversed[size++] = (char)('0' + number % 10);
    while ((number /= 10) || size < width);
    for (size_t n = 0; n < size; n++) out[n] = reversed[size - 1 - n];
    return size;
}

void template_fill(const struct template *template, const struct job *job, const struct filling *filling, struct buffer *out) {
    size_t start = out->size, padding_at = (size_t)-1;
    for (const struct piece *piece = template->pieces; piece < template->pieces + template->count; piece++) {
        char *end = buffer_grow(out, NUMBER_LIMIT);
        switch (piece->kind) {
        case 0: buffer_add(out, piece->bytes, piece->size); break;
        case 'u': out->size += digits(end, filling->number, 1); break;
        case 'r': out->size += digits(end, filling->room, 1); break;
        case 't': out->size += digits(end, filling->stamp, TIME_DIGITS); break;
        case 'i': out->size += digits(end, filling->id, ID_DIGITS); break;
        case 'p': padding_at = out->size; break;
        case 'v': {
            const char *value = job->values[filling->number % job->value_count];
            buffer_add(out, value, strlen(value));
        }
        }
    }
    if (padding_at == (size_t)-1) return;
    size_t size = out->size - start, padding = filling->padding;
    if (filling->whole > size) padding = filling->whole - size;
    buffer_grow(out, padding);
    memmove(out->at + padding_at + padding, out->at + padding_at, out->size - padding_at);
    memset(out->at + padding_at, 'x', padding);
    out->size += padding;
}

/* --- the file --- */

struct reader {
    const char *path;
    int line;
    const char *key;
};

_Noreturn static void wrong(const struct reader *reader, const char *what) {
    die("%s:%d: %s: %s", reader->path, reader->line, reader->key, what);
}

static void *append(void *items, size_t *count, size_t size) {
    void *grown = realloc(items, (*count + 1) * size);
    if (grown == NULL) die("there is no memory for the job");
    ++*count;
    return grown;
}

#define APPEND(list, ...) \
    ((list).at = append((list).at, &(list).count, sizeof *(list).at), (list).at[(list).count - 1] = (__VA_ARGS__))

static int hex(char digit) { return isdigit((unsigned char)digit) ? digit - '0' : tolower((unsigned char)digit) - 'a' + 10; }

/* Decodes escapes in place and returns the length. The bytes may be NUL. */
static size_t unescape(const struct reader *reader, char *value) {
    char *out = value;
    for (const char *in = value; *in; in++) {
        if (*in != '\\') {
            *out++ = *in;
            continue;
        }
        switch (*++in) {
        case 'n': *out++ = '\n'; break;
        case 'r': *out++ = '\r'; break;
        case 't': *out++ = '\t'; break;
        case '\\': *out++ = '\\'; break;
        case 'x':
            if (!isxdigit((unsigned char)in[1]) || !isxdigit((unsigned char)in[2])) wrong(reader, "\\x wants two hexadecimal digits");
            *out++ = (char)(hex(in[1]) << 4 | hex(in[2]));
            in += 2;
            break;
        default: wrong(reader, "an unknown escape: a backslash is written \\\\");
        }
    }
    *out = 0;
    return (size_t)(out - value);
}

static struct template compiled(const struct reader *reader, const char *value, size_t size, const char *letters) {
    struct template template = {0};
    size_t start = 0, at = 0, paddings = 0;
    struct { struct piece *at; size_t count; } pieces = {0};
    while (at < size) {
        char letter = value[at] == '%' && at + 1 < size ? value[at + 1] : 0;
        if (letter == '%' || (letter && strchr(letters, letter))) {
            size_t literal = at - start + (letter == '%');
            if (literal) APPEND(pieces, (struct piece){0, value + start, literal});
            if (letter != '%') APPEND(pieces, (struct piece){letter, NULL, 0});
            paddings += letter == 'p';
            start = at += 2;
        } else {
            at++;
        }
    }
    if (at > start) APPEND(pieces, (struct piece){0, value + start, at - start});
    if (paddings > 1) wrong(reader, "%p may stand once");
    template.pieces = pieces.at;
    template.count = pieces.count;
    return template;
}

static double number(const struct reader *reader, const char *value, double low, double high) {
    char *end;
    errno = 0;
    double found = strtod(value, &end);
    if (end == value || *end || errno || !isfinite(found)) wrong(reader, "not a number");
    if (found < low || found > high) {
        char what[80];
        snprintf(what, sizeof what, "must be from %g to %g", low, high);
        wrong(reader, what);
    }
    return found;
}

static uint64_t whole(const struct reader *reader, const char *value, double low, double high) {
    double found = number(reader, value, low, high);
    if (found != floor(found)) wrong(reader, "not a whole number");
    return (uint64_t)found;
}

static size_t choice(const struct reader *reader, const char *value, const char *const *names) {
    for (size_t n = 0; names[n]; n++)
        if (strcmp(names[n], value) == 0) return n;
    char what[160] = "must be one of";
    for (size_t n = 0; names[n]; n++) {
        strncat(what, " ", sizeof what - strlen(what) - 1);
        strncat(what, names[n], sizeof what - strlen(what) - 1);
    }
    wrong(reader, what);
}

static char *contents(const char *path) {
    FILE *file = fopen(path, "rb");
    struct buffer all = {0};
    if (file == NULL) die("%s cannot be read: %s", path, strerror(errno));
    size_t got;
    while ((got = fread(buffer_grow(&all, 65536), 1, 65536, file))) all.size += got;
    if (ferror(file)) die("%s cannot be read", path);
    fclose(file);
    buffer_add(&all, "", 1);
    return all.at;
}

static void read_values(const struct reader *reader, struct job *job, const char *path) {
    char *rest = contents(path), *line;
    struct { const char **at; size_t count; } lines = {0};
    while ((line = strsep(&rest, "\n")) != NULL)
        if (*line) APPEND(lines, line);
    if (lines.count == 0) wrong(reader, "the file is empty");
    job->values = lines.at;
    job->value_count = lines.count;
}

static const char PLACES[] = "urv", ALL_PLACES[] = "urvtip";
static const char *const WORKLOADS[] = {"fanout", "rate", "rooms", "echo", "connect", "storm", "idle", NULL};
static const char *const DEFLATES[] = {"no", "yes", "takeover", NULL};
static const char *const NO_YES[] = {"no", "yes", NULL};
static const char *const REPEATABLE[] = {"header", "http_header", "open", "open_expect", "answer", NULL};
enum { CONNECTIONS_LIMIT = 1000000, BYTES_LIMIT = 16 << 20 };

#define IS(name) (strcmp(reader->key, name) == 0)

static void add_answer(const struct reader *reader, struct job *job, char *value) {
    char *text = strchr(value, '\t');
    if (text == NULL) wrong(reader, "wants the beginning of a frame, a tab, and the answer");
    *text++ = 0;
    size_t question_size = unescape(reader, value), text_size = unescape(reader, text);
    APPEND(job->answers, (struct answer){value, text, question_size, text_size});
}

/* Sets keys with byte values; returns false for other keys. */
static bool read_bytes(const struct reader *reader, struct job *job, char *value) {
    if (IS("answer")) {
        add_answer(reader, job, value);
        return true;
    }
    size_t size = unescape(reader, value);
#define COMPILED(letters) compiled(reader, value, size, letters)
    if (IS("path")) job->path = COMPILED(PLACES);
    else if (IS("header")) APPEND(job->headers, COMPILED(PLACES));
    else if (IS("subprotocol")) job->subprotocol = COMPILED(PLACES);
    else if (IS("open")) APPEND(job->steps, (struct step){false, COMPILED(PLACES)});
    else if (IS("open_expect")) {
        if (size) APPEND(job->steps, (struct step){true, COMPILED(PLACES)});
    }
    else if (IS("joined_expect")) job->joined_expect = COMPILED(PLACES);
    else if (IS("message")) job->message = COMPILED(ALL_PLACES);
    else if (IS("http_publish")) {
        if (strchr(value, ' ') == NULL) wrong(reader, "wants a method, a space, and a path");
        job->http_publish = COMPILED(PLACES);
    }
    else if (IS("http_header")) APPEND(job->http_headers, COMPILED(ALL_PLACES));
    else if (IS("marker")) job->marker = value, job->marker_size = size;
    else if (IS("echo_expect")) job->echo_expect = value, job->echo_expect_size = size;
    else if (IS("host")) job->host = value;
    else if (IS("http_host")) job->http_host = value;
    else if (IS("values")) read_values(reader, job, value);
    else return false;
    return true;
}

static void read_figure(const struct reader *reader, struct job *job, const char *value) {
#define WHOLE(low, high) whole(reader, value, low, high)
#define NUMBER(low, high) number(reader, value, low, high)
    if (IS("port")) job->port = WHOLE(1, 65535);
    else if (IS("http_port")) job->http_port = WHOLE(1, 65535);
    else if (IS("http_connections")) job->http_connections = WHOLE(1, 1000);
    else if (IS("connections")) job->connections = WHOLE(1, CONNECTIONS_LIMIT);
    else if (IS("rooms")) job->rooms = WHOLE(1, CONNECTIONS_LIMIT);
    else if (IS("sources")) job->sources = WHOLE(1, 250);
    else if (IS("concurrency")) job->concurrency = WHOLE(1, CONNECTIONS_LIMIT);
    else if (IS("outstanding")) job->outstanding = WHOLE(1, 100000);
    else if (IS("active")) job->active = WHOLE(1, CONNECTIONS_LIMIT);
    else if (IS("turns")) job->turns = WHOLE(0, 1e12);
    else if (IS("slow")) job->slow = WHOLE(0, CONNECTIONS_LIMIT);
    else if (IS("slow_buffer")) job->slow_buffer = WHOLE(1, BYTES_LIMIT);
    else if (IS("payload")) job->payload = WHOLE(0, BYTES_LIMIT);
    else if (IS("padding")) job->padding = WHOLE(0, BYTES_LIMIT);
    else if (IS("timeout")) job->timeout = NUMBER(0.1, 3600);
    else if (IS("seconds")) job->seconds = NUMBER(0.001, 86400);
    else if (IS("warmup")) job->warmup = NUMBER(0, 3600);
    else if (IS("rate")) job->rate = NUMBER(0.001, 200000);
    else if (IS("patience")) job->patience = NUMBER(0.01, 3600);
    else if (IS("workload")) job->workload = choice(reader, value, WORKLOADS), job->workload_name = WORKLOADS[job->workload];
    else if (IS("deflate")) job->deflate = choice(reader, value, DEFLATES);
    else if (IS("gate")) job->gate = choice(reader, value, NO_YES);
    else wrong(reader, "an unknown key");
}

static bool among(const char *key, const char *const *names) {
    for (; *names; names++)
        if (strcmp(key, *names) == 0) return true;
    return false;
}

static bool uses(const struct template *template, char kind) {
    for (size_t n = 0; n < template->count; n++)
        if (template->pieces[n].kind == kind) return true;
    return false;
}

static bool uses_values(const struct job *job) {
    bool found = uses(&job->path, 'v') || uses(&job->subprotocol, 'v') || uses(&job->joined_expect, 'v') || uses(&job->message, 'v') ||
                 uses(&job->http_publish, 'v');
    for (size_t n = 0; n < job->headers.count; n++) found |= uses(&job->headers.at[n], 'v');
    for (size_t n = 0; n < job->http_headers.count; n++) found |= uses(&job->http_headers.at[n], 'v');
    for (size_t n = 0; n < job->steps.count; n++) found |= uses(&job->steps.at[n].text, 'v');
    return found;
}

static void check(struct job *job, const char *path) {
    if (job->workload_name == NULL) die("%s: there is no workload", path);
    if (job->port == 0) die("%s: there is no port", path);
    if (uses_values(job) && job->values == NULL) die("%s: %%v is used, and there is no file of values", path);
    if (job->workload <= ECHO) {
        if (job->marker_size == 0) die("%s: there is no marker", path);
        if (!uses(&job->message, 't')) die("%s: there is no message with %%t in it", path);
    }
    if (job->workload == RATE && job->rate == 0) die("%s: there is no rate", path);
    if (job->workload == FANOUT) job->active = 1;
    if (job->active == 0) job->active = job->workload == RATE ? 1 : job->connections - job->slow;
    if (job->slow && job->workload != FANOUT && job->workload != RATE && job->workload != IDLE)
        die("%s: slow is for fanout, rate and idle", path);
    if (job->slow >= job->connections || job->active > job->connections - job->slow)
        die("%s: there are %llu connections, too few for those that are active and slow", path, (unsigned long long)job->connections);
    if (job->rooms > job->connections) die("%s: there are more rooms than connections", path);
    if (job->http_host == NULL) job->http_host = job->host;
    if (job->http_port == 0) job->http_port = job->port;
    if (job->http_connections == 0) job->http_connections = job->outstanding > 8 ? job->outstanding : 8;
    if (job->concurrency == 0) job->concurrency = 100;
    if (job->concurrency > job->connections) job->concurrency = job->connections;
}

void job_read(struct job *job, const char *path) {
    struct reader reader = {path, 0, ""};
    struct { const char **at; size_t count; } seen = {0};
    char *rest = contents(path), *line;
    static char root[] = "/";
    *job = (struct job){
        .host = "127.0.0.1", .connections = 1, .rooms = 1, .sources = 1, .outstanding = 1, .slow_buffer = 4096,
        .timeout = 30, .seconds = 2, .patience = 5,
    };
    while ((line = strsep(&rest, "\n")) != NULL) {
        reader.line++;
        if (*line == 0 || *line == '#') continue;
        reader.key = strsep(&line, " ");
        if (line == NULL) wrong(&reader, "there is no value");
        for (size_t n = 0; n < seen.count; n++)
            if (strcmp(seen.at[n], reader.key) == 0 && !among(reader.key, REPEATABLE)) wrong(&reader, "given twice");
        APPEND(seen, reader.key);
        if (!read_bytes(&reader, job, line)) read_figure(&reader, job, line);
    }
    free(seen.at);
    if (job->path.count == 0) job->path = compiled(&reader, root, 1, "");
    check(job, path);
}
