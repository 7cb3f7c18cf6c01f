/* Compressed messages, RFC 7692. */
#ifndef INFLATE_H
#define INFLATE_H

#include "shared.h"

/* Returns the text of a compressed message, valid until the next call. */
const struct buffer *inflated(struct connection *connection, const char *payload, size_t size);
void inflate_end(struct connection *connection);

#endif
