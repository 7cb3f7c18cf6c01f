#include "inflate.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static z_stream *new_inflater(void) {
    z_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL || inflateInit2(stream, -15) != Z_OK) die("there is no memory to inflate");
    return stream;
}

static void inflate_into(const struct connection *connection, z_stream *stream, const char *payload, size_t size, struct buffer *text) {
    static const char tail[4] = {0, 0, (char)0xff, (char)0xff}; /* omitted by the sender, section 7.2.2 */
    const char *parts[] = {payload, tail};
    size_t sizes[] = {size, sizeof tail};
    for (int n = 0; n < 2; n++) {
        stream->next_in = (Bytef *)(uintptr_t)parts[n]; /* zlib does not write there; its API lacks the const */
        stream->avail_in = (uInt)sizes[n];
        int result;
        do {
            stream->next_out = (Bytef *)buffer_grow(text, 4096);
            stream->avail_out = (uInt)(text->space - text->size);
            result = inflate(stream, Z_SYNC_FLUSH);
            text->size = (size_t)((char *)stream->next_out - text->at);
            if (text->size > MESSAGE_LIMIT) die("connection %u: a compressed message has no end", connection->number);
        } while (result == Z_OK && (stream->avail_in || stream->avail_out == 0));
        if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
            die("connection %u: a compressed message cannot be inflated", connection->number);
    }
}

/* Messages without context takeover are the same bytes for many connections: cache a few. */
const struct buffer *inflated(struct connection *connection, const char *payload, size_t size) {
    enum { REMEMBERED = 16 };
    static struct { struct buffer payload, text; } known[REMEMBERED];
    static unsigned latest;
    static z_stream *stream;
    static struct buffer text;
    if (connection->takeover) {
        if (connection->inflater == NULL) connection->inflater = new_inflater();
        text.size = 0;
        inflate_into(connection, connection->inflater, payload, size, &text);
        return &text;
    }
    for (unsigned back = 0; back < REMEMBERED; back++) {
        unsigned n = (latest - back) % REMEMBERED;
        if (known[n].payload.size == size && size && memcmp(known[n].payload.at, payload, size) == 0) return &known[n].text;
    }
    if (stream == NULL) stream = new_inflater();
    latest = (latest + 1) % REMEMBERED;
    known[latest].payload.size = known[latest].text.size = 0;
    buffer_add(&known[latest].payload, payload, size);
    inflateReset(stream);
    inflate_into(connection, stream, payload, size, &known[latest].text);
    return &known[latest].text;
}

void inflate_end(struct connection *connection) {
    if (connection->inflater) inflateEnd(connection->inflater);
    free(connection->inflater);
    connection->inflater = NULL;
}
