/* Compressed messages, RFC 7692. */
#ifndef INFLATE_H
#define INFLATE_H

#include "shared.h"

/* The text of a compressed message; it holds until the next one. */
const struct buffer *inflated(struct connection *connection, const char *payload, size_t size);
void inflate_end(struct connection *connection);

#endif
